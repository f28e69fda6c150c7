"""Networks trained on distilled sets beside pools of networks trained on real data, and such networks while they
learn.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ddanalysis import checks
from ddanalysis.figures.style import (
    GREY,
    METHOD_COLOURS,
    METHOD_NAMES,
    WIDTH,
    colours,
    in_order,
    legend,
    need,
    side_by_side,
)
from ddanalysis.intervals import mean_and_half_width

POOL_COLOURS = {"subset": "#FFC20A", "early": "#0C7BDC"}
POOL_NAMES = {"subset": "Trained on a subset", "early": "Stopped early"}
MEASURE_NAMES = {"agreement": "Agreement", "error_agreement": "Agreement on errors", "kappa": "Cohen's kappa"}


def agreement_panels(table: pd.DataFrame, measure: str = "agreement") -> Figure:
    """How networks trained on distilled sets agree with both pools (Yang et al. 2024, Fig. 4): a panel a method.

    ``table`` is that of ``analysis.agreement.agreement_table``, or several of them: each (dataset, ipc, network,
    matching) is a row of panels. A pool is drawn as a density over its pairs, or as ticks if these have fewer than 3
    distinct values; lines are means, n is the number of pairs.
    """
    checks.one_of("measure", measure, MEASURE_NAMES)
    settings = ["dataset", "ipc", "network", "matching"]
    need(table, [*settings, "method", "pool", measure])
    methods, rows = in_order(table["method"]), table[settings].drop_duplicates().values.tolist()
    figure, axes = plt.subplots(
        len(rows),
        len(methods),
        figsize=(max(WIDTH, 1.6 * len(methods)) if len(methods) > 2 else 3.5 * len(methods), 1.7 * len(rows) + 0.7),
        sharex="row",
        squeeze=False,
        layout="constrained",
    )
    shared, own = _apart([[row[0], f"IPC {row[1]}", *row[2:]] for row in rows])
    for row, setting in enumerate(rows):
        here = table[(table[settings] == setting).all(axis=1)]
        for column, method in enumerate(methods):
            _agreement_panel(axes[row, column], here[here["method"] == method], measure)
        axes[row, 0].set_ylabel(own[row])
    for ax, method in zip(axes[0], methods, strict=True):
        ax.set_title(METHOD_NAMES.get(method, method), pad=16)
    for ax in axes[-1]:
        ax.set_xlabel(MEASURE_NAMES[measure])
    if shared:
        figure.suptitle(shared, fontsize="medium", color=GREY)
    handles = [Patch(color=colour, alpha=0.6, label=POOL_NAMES[pool]) for pool, colour in POOL_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _agreement_panel(ax: Axes, pairs: pd.DataFrame, measure: str) -> None:
    counts = []
    for height, (pool, colour) in enumerate(POOL_COLOURS.items()):
        values = pairs.loc[pairs["pool"] == pool, measure].dropna().to_numpy()
        counts.append(f"{len(values)} {pool}")
        if len(np.unique(values)) >= 3:
            seaborn.kdeplot(x=values, ax=ax, fill=True, color=colour, alpha=0.5, linewidth=1.2, zorder=2 + height)
        elif len(values):
            level, along_x = np.full(len(values), 0.15 + 0.3 * height), ax.get_xaxis_transform()
            ax.plot(values, level, "|", color=colour, markersize=14, markeredgewidth=1.6, transform=along_x)
        if len(values):
            ax.axvline(values.mean(), color=colour, linewidth=1.2, linestyle=(0, (3, 2)), zorder=5)
    n = f"n = {', '.join(counts)}"
    ax.text(0.5, 1.03, n, ha="center", va="bottom", fontsize="small", color=GREY, transform=ax.transAxes)
    ax.set(xlabel="", ylabel="", yticks=[])
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.locator_params(axis="x", nbins=4)


def _apart(settings: list[list[object]]) -> tuple[str, list[str]]:
    """What all settings share, and for each what it does not, in words."""
    alike = [len({str(value) for value in column}) == 1 for column in zip(*settings, strict=True)]
    shared = " · ".join(str(value) for value, same in zip(settings[0], alike, strict=True) if same)
    own = [" · ".join(str(v) for v, same in zip(setting, alike, strict=True) if not same) for setting in settings]
    return shared, own


def recognition_curves(table: pd.DataFrame, value: str = "accuracy") -> Figure:
    """What a network in training says of real test images and of distilled sets (Yang et al. 2024, Fig. 5).

    Columns dataset, method, ipc, network, set_seed, network_seed, update, target ("test" or "set"), accuracy (share of
    1) and loss; ``value`` says which is drawn. A panel a (dataset, ipc, network), a line a method, black for the test
    images. Bands are 95 % t intervals over networks, each the mean of its sets; over sets where there is one network.
    """
    checks.one_of("value", value, ("accuracy", "loss"))
    need(table, ["dataset", "method", "ipc", "network", "set_seed", "network_seed", "update", "target", value])
    settings = ["dataset", "network", "ipc"]
    panels = table.loc[table["target"] == "set", settings].drop_duplicates().values.tolist()
    if not panels:
        raise ValueError("the table has no row with target 'set': the curves of at least one distilled set are needed")
    methods = in_order(table.loc[table["target"] == "set", "method"])
    figure, axes = side_by_side(len(panels), 2.4)
    for ax, (dataset, network, ipc) in zip(axes, panels, strict=True):
        here = table[(table["dataset"] == dataset) & (table["network"] == network)]
        sets = here[(here["target"] == "set") & (here["ipc"] == ipc)]
        for method in methods:
            _curve(ax, sets[sets["method"] == method], value, colours(methods)[method])
        tested = here[here["target"] == "test"].drop_duplicates(["network_seed", "update"])
        _curve(ax, tested, value, METHOD_COLOURS["test"], width=2.0)
        ax.set(title=f"{dataset} · IPC {ipc} · {network}", xlabel="Update")
        ax.margins(x=0)
    axes[0].set_ylim(0, 1.02 if value == "accuracy" else None)
    axes[0].set_ylabel(value.capitalize())
    lines = {METHOD_NAMES["test"]: METHOD_COLOURS["test"]} if (table["target"] == "test").any() else {}
    legend(figure, lines | {METHOD_NAMES.get(m, m): colours(methods)[m] for m in methods})
    return figure


def _curve(ax: Axes, rows: pd.DataFrame, value: str, colour: str, width: float = 1.5) -> None:
    """One line and its band."""
    if len(rows):
        units = next((u for u in ("network_seed", "set_seed") if rows[u].nunique() > 1), "network_seed")
        means = rows.groupby(["update", units], dropna=False)[value].mean().unstack()
        middle, half = mean_and_half_width(means.to_numpy())
        ax.plot(means.index, middle, color=colour, linewidth=width, zorder=3)
        ax.fill_between(means.index, middle - half, middle + half, color=colour, alpha=0.18, linewidth=0, zorder=2)
