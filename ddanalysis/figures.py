"""Figures: each is a function of a table of results and returns a matplotlib ``Figure``, open in pyplot.

Nothing is computed here but the means and intervals that are drawn. Sizes are those of a paper's text width; type and
axes are as the theme in force has them.
"""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ddanalysis import checks
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet
from ddanalysis.intervals import mean_and_half_width, unit_means

METHOD_COLOURS = {
    "bptt": "#E69F00",
    "dm": "#0072B2",
    "dc": "#009E73",
    "mtt": "#CC79A7",
    "dsa": "#332288",
    "rat": "#117733",
    "random": "#8A8A8A",
    "class_mean": "#882255",
    "k_means": "#56B4E9",
    "herding": "#D55E00",
    "real": "#000000",
    "test": "#000000",
}
"""One colour a method in every figure, told apart by colour-blind readers (Okabe and Ito 2008; two of Tol's)."""

METHOD_NAMES = {
    "bptt": "BPTT",
    "dm": "Distribution matching",
    "dc": "Gradient matching",
    "mtt": "Trajectory matching",
    "dsa": "Siamese augmentation",
    "rat": "Windowed BPTT",
    "random": "Random images",
    "class_mean": "Class means",
    "k_means": "k-means centres",
    "herding": "Herding",
    "real": "Real images",
    "test": "Real test images",
}
"""What a reader sees for a method."""

POOL_COLOURS = {"subset": "#FFC20A", "early": "#0C7BDC"}
POOL_NAMES = {"subset": "Trained on a subset", "early": "Stopped early"}
MEASURE_NAMES = {"agreement": "Agreement", "error_agreement": "Agreement on errors", "kappa": "Cohen's kappa"}
SPARE_COLOURS = ("#44AA99", "#999933", "#AA4499", "#661100", "#DDCC77", "#6699CC", "#AA4466")

GREY = "#555555"
WIDTH = 7.0
"""Inches, a text width."""


def colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method: its own in ``METHOD_COLOURS``, else a spare one, in alphabetical order."""
    methods = set(methods)
    strangers = sorted(methods - set(METHOD_COLOURS))
    spare = {name: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, name in enumerate(strangers)}
    return {name: METHOD_COLOURS.get(name) or spare[name] for name in methods}


# ----------------------------------------------------------------------------------------------------------- agreement


def agreement_panels(table: pd.DataFrame, measure: str = "agreement") -> Figure:
    """How networks trained on distilled sets agree with both pools (Yang et al. 2024, Fig. 4): a panel a method.

    ``table`` is that of ``analysis.agreement.agreement_table``, or several of them: each (dataset, ipc, network,
    matching) is a row of panels. A pool is drawn as a density over its pairs, or as ticks if these have fewer than 3
    distinct values; lines are means, n is the number of pairs.
    """
    checks.one_of("measure", measure, MEASURE_NAMES)
    settings = ["dataset", "ipc", "network", "matching"]
    _need(table, [*settings, "method", "pool", measure])
    methods, rows = _in_order(table["method"]), table[settings].drop_duplicates().values.tolist()
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


# ---------------------------------------------------------------------------------------------------------- recognition


def recognition_curves(table: pd.DataFrame, value: str = "accuracy") -> Figure:
    """What a network in training says of real test images and of distilled sets (Yang et al. 2024, Fig. 5).

    Columns dataset, method, ipc, network, set_seed, network_seed, update, target ("test" or "set"), accuracy (share of
    1) and loss; ``value`` says which is drawn. A panel a (dataset, ipc, network), a line a method, black for the test
    images. Bands are 95 % t intervals over networks, each the mean of its sets; over sets where there is one network.
    """
    checks.one_of("value", value, ("accuracy", "loss"))
    _need(table, ["dataset", "method", "ipc", "network", "set_seed", "network_seed", "update", "target", value])
    settings = ["dataset", "network", "ipc"]
    panels = table.loc[table["target"] == "set", settings].drop_duplicates().values.tolist()
    if not panels:
        raise ValueError("the table has no row with target 'set': the curves of at least one distilled set are needed")
    methods = _in_order(table.loc[table["target"] == "set", "method"])
    figure, axes = _panels(len(panels), 2.4)
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
    _legend(figure, lines | {METHOD_NAMES.get(m, m): colours(methods)[m] for m in methods})
    return figure


def _curve(ax: Axes, rows: pd.DataFrame, value: str, colour: str, width: float = 1.5) -> None:
    """One line and its band."""
    if len(rows):
        units = next((u for u in ("network_seed", "set_seed") if rows[u].nunique() > 1), "network_seed")
        means = rows.groupby(["update", units], dropna=False)[value].mean().unstack()
        middle, half = mean_and_half_width(means.to_numpy())
        ax.plot(means.index, middle, color=colour, linewidth=width, zorder=3)
        ax.fill_between(means.index, middle - half, middle + half, color=colour, alpha=0.18, linewidth=0, zorder=2)


# ------------------------------------------------------------------------------------------------------------- accuracy


def accuracy_points(table: pd.DataFrame) -> Figure:
    """Test accuracy by method and ipc: a faint dot a network, a diamond at the mean, a bar for its 95 % t interval.

    Columns dataset, method, ipc, network, set_seed, network_seed, accuracy (share of 1), and protocol if there are
    several. The interval is over sets, each the mean of its networks; over networks where sets do not differ.
    """
    _need(table, ["dataset", "method", "ipc", "network", "set_seed", "network_seed", "accuracy"])
    settings = ["dataset", "network", *(["protocol"] if "protocol" in table.columns else [])]
    panels = table[settings].drop_duplicates().values.tolist()
    methods, ipcs = _in_order(table["method"]), sorted(table["ipc"].unique())
    figure, axes = _panels(len(panels), 2.6)
    for ax, setting in zip(axes, panels, strict=True):
        here = table[(table[settings] == setting).all(axis=1)]
        for place, method in enumerate(methods):
            offset = (place - (len(methods) - 1) / 2) * 0.8 / len(methods)
            for x, ipc in enumerate(ipcs):
                rows = here[(here["method"] == method) & (here["ipc"] == ipc)]
                _points(ax, x + offset, 0.5 / len(methods), rows, colours(methods)[method])
        ax.set_xticks(range(len(ipcs)), [str(ipc) for ipc in ipcs])
        ax.set(title=" · ".join(map(str, setting)), xlabel="Images a class", xlim=(-0.55, len(ipcs) - 0.45))
        ax.tick_params(axis="x", length=0)
        for x in range(len(ipcs) - 1):
            ax.axvline(x + 0.5, color="#DDDDDD", linewidth=0.6, zorder=0)
        ax.grid(axis="y", linewidth=0.5, alpha=0.4)
        ax.set_axisbelow(True)
    low, high = table["accuracy"].min(), table["accuracy"].max()
    margin = 0.15 * max(high - low, 0.1)  # an interval over few sets may reach far beyond what an accuracy can be
    axes[0].set(ylabel="Test accuracy", ylim=(max(low - margin, -0.02), min(high + margin, 1.02)))
    _legend(figure, {METHOD_NAMES.get(m, m): colours(methods)[m] for m in methods}, marker="D")
    return figure


def _points(ax: Axes, x: float, spread: float, rows: pd.DataFrame, colour: str) -> None:
    """The networks of one method at one ipc, side by side in order of their seeds, and their mean."""
    if not len(rows):
        return
    rows = rows.sort_values(["set_seed", "network_seed"])
    across = x + (np.linspace(-0.5, 0.5, len(rows)) * spread if len(rows) > 1 else np.zeros(1))
    ax.scatter(across, rows["accuracy"], s=9, color=colour, alpha=0.35, linewidths=0, zorder=2)
    _, means = unit_means(rows, "accuracy", ("set_seed", "network_seed"))
    middle, half = mean_and_half_width(means[None])
    ax.errorbar(x, middle, half, color=colour, linewidth=1.3, capsize=2.5, zorder=3)
    ax.plot(x, middle[0], "D", color=colour, markersize=3.8, markeredgecolor="white", markeredgewidth=0.5, zorder=4)


# --------------------------------------------------------------------------------------------------------------- images


def image_grid(
    pixels: torch.Tensor, columns: int = 10, titles: Sequence[str] = (), row_labels: Sequence[str] = ()
) -> Figure:
    """Images (n, c, h, w), c = 1 (grey) or 3 (RGB), side by side, row by row; pixels are clipped to [0, 1] for display.

    ``titles``: one a column, above the first row, or one an image, above it. ``row_labels``: one a row.
    """
    checks.images("pixels", pixels)
    checks.whole("columns", columns)
    n, channels, height, width = pixels.shape
    checks.one_of("number of channels", channels, (1, 3))
    columns = min(columns, n)
    rows = -(-n // columns)
    if len(titles) not in (0, columns, n):
        raise ValueError(
            f"{len(titles)} titles for {n} images: one a column ({columns}), one an image, or none is needed"
        )
    if len(row_labels) not in (0, rows):
        raise ValueError(f"{len(row_labels)} row labels for {rows} rows: one a row, or none, is needed")
    above = 0.36 if len(titles) == n > columns else 0.06  # in image heights; a title needs room
    images = pixels.detach().float().clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
    inches = min(0.72, WIDTH / columns)
    size = (inches * columns * 1.06, inches * rows * (1 + above) * height / width)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    for i, image in enumerate(images):
        top, left = (i // columns) * (1 + above), (i % columns) * 1.06
        ax.imshow(image, extent=(left, left + 1, top + 1, top), interpolation="nearest")
        if len(titles) == n > columns:
            ax.text(left + 0.5, top - 0.06, titles[i], ha="center", va="bottom", fontsize="small")
    ax.set(xlim=(-0.02, columns * 1.06 - 0.04), ylim=(rows * (1 + above) - above + 0.02, -0.02), aspect=height / width)
    _label_grid(ax, titles if len(titles) == columns else (), row_labels, above)
    return figure


def set_grid(sets: Sequence[DistilledSet], data: ImageData, per_class: int = 1) -> Figure:
    """The first ``per_class`` images of each class of every set, a row a set and its place in the class, a column a
    class.

    Pixels are de-normalised and clipped to [0, 1] for display.
    """
    if not sets or min(one.ipc for one in sets) < per_class:
        raise ValueError(f"{per_class} images a class are to be shown of {len(sets)} sets: each needs as many")
    rows = [one.x.view(-1, one.ipc, *one.x.shape[1:])[:, i].cpu() for one in sets for i in range(per_class)]
    labels = [METHOD_NAMES.get(one.method, one.method) if i == 0 else "" for one in sets for i in range(per_class)]
    return image_grid(data.denormalise(torch.cat(rows)), data.n_classes, data.classes, labels)


def loss_curves(history: pd.DataFrame, window: int = 50) -> Figure:
    """Losses while distilling: every iteration faint, the mean of the last ``window`` in full, on a logarithmic axis.

    Columns dataset, method, ipc, set_seed, iteration, component, value. A panel a component, a line a method and ipc;
    of several seeds the first is drawn.
    """
    _need(history, ["dataset", "method", "ipc", "set_seed", "iteration", "component", "value"])
    first = history[history["set_seed"] == history["set_seed"].min()]
    components, ipcs = list(first["component"].unique()), sorted(first["ipc"].unique())
    figure, axes = _panels(len(components), 2.6)
    styles = ("-", "--", ":", "-.")
    for ax, component in zip(axes, components, strict=True):
        here = first[first["component"] == component]
        for (method, ipc), curve in here.groupby(["method", "ipc"]):
            colour, style = colours([method])[method], styles[ipcs.index(ipc) % len(styles)]
            ax.plot(curve["iteration"], curve["value"], color=colour, alpha=0.15, linewidth=0.6)
            smooth = curve["value"].rolling(window, min_periods=1).mean()
            name = f"{METHOD_NAMES.get(method, method)}, IPC {ipc}"
            ax.plot(curve["iteration"], smooth, style, color=colour, linewidth=1.4, label=name)
        ax.set(xlabel="Iteration", yscale="log", title=component if len(components) > 1 else "")
    axes[0].set_ylabel("Loss")
    axes[-1].legend(loc="best", frameon=False)
    return figure


def _label_grid(ax: Axes, titles: Sequence[str], row_labels: Sequence[str], above: float) -> None:
    """Labels in the place of ticks: column titles on top, row labels on the left, no axes."""
    ax.xaxis.tick_top()
    ax.set_xticks([0.5 + 1.06 * i for i in range(len(titles))], list(titles))
    ax.set_yticks([0.5 + (1 + above) * i for i in range(len(row_labels))], list(row_labels))
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)


# --------------------------------------------------------------------------------------------------------------- shared


def _need(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """The table has rows, and these columns."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}: needed are {', '.join(columns)}")
    if not len(table):
        raise ValueError("the table has no rows: at least one is needed to draw a figure")


def _in_order(methods: pd.Series) -> list[str]:
    """The methods of a table as ``METHOD_NAMES`` orders them, then others by name."""
    known = list(METHOD_NAMES)
    return sorted(methods.unique(), key=lambda m: (known.index(m) if m in known else len(known), m))


def _panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of n panels of one scale of y, at most 3 in a row."""
    columns = min(n, 3)
    rows = -(-n // columns)
    size = (WIDTH, height * rows + (0.5 if n > 1 else 0.2))
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for spare in axes.flat[n:]:
        spare.set_visible(False)
    return figure, list(axes.flat[:n])


def _legend(figure: Figure, lines: dict[str, str], marker: str = "") -> None:
    """A legend beside a single panel, below several."""
    style = {"linestyle": "", "markersize": 5} if marker else {"linewidth": 2}
    handles = [Line2D([], [], color=colour, marker=marker, label=name, **style) for name, colour in lines.items()]
    if len(figure.axes) == 1:
        figure.legend(handles=handles, loc="outside right center", frameon=False)
    else:
        columns = -(-len(handles) // -(-len(handles) // 4))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
