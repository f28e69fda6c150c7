"""Distilled images beside real ones: to networks that know real data, mixed with real data, and pixel by pixel."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

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
from ddanalysis.intervals import mean_and_half_width, unit_means, wilson

NETWORK_COLOURS = {"ConvNet-Tiny": "#9ECAE1", "ConvNet": "#3182BD", "ResNet18": "#FDAE6B", "ResNet34": "#D95F0E"}
"""In the order in which they are drawn; other widths of one take its place, other networks follow in greys."""
METHOD_MARKERS = {"bptt": "s", "dm": "o", "dc": "*", "mtt": "^", "random": "D", "herding": "v", "k_means": "P"}
"""As in the published figures, where they have one."""
TOGETHER = 4
"""Bins of a density that are drawn as one: 16 grey levels, about those of 8 x 8 digits."""
OTHER_MARKERS = ("X", "p", "h", "<", ">", "d", "8")


def markers(methods: list[str]) -> dict[str, str]:
    """A marker for each method: its own in ``METHOD_MARKERS``, else a spare one, in alphabetical order."""
    strangers = sorted(set(methods) - set(METHOD_MARKERS))
    spare = {name: OTHER_MARKERS[i % len(OTHER_MARKERS)] for i, name in enumerate(strangers)}
    return {name: METHOD_MARKERS.get(name) or spare[name] for name in methods}


def _dataset_and_ipc(table: pd.DataFrame) -> list[list[Any]]:
    """Every dataset and ipc of a table, small ones first."""
    return table[["dataset", "ipc"]].drop_duplicates().sort_values(["dataset", "ipc"]).values.tolist()


# ------------------------------------------------------------------------------------------ pretrained networks


def pretrained_bars(table: pd.DataFrame) -> Figure:
    """Which share of each set networks recognise that have learned the real data (Yang et al. 2024, Fig. 2 left).

    Columns dataset, method, ipc, network, set_seed, network_seed, accuracy (share of 1) and images; rows of method
    "real", the test images, come last in each panel. A panel a (dataset, ipc), a bar a method and network, a dot a
    network and set. Error bars are 95 % Wilson intervals of the mean over networks, with the images of all sets as
    trials: they say how sure a number from so few images is, not how much networks differ.
    """
    need(table, ["dataset", "method", "ipc", "network", "set_seed", "network_seed", "accuracy", "images"])
    sets = table[table["method"] != "real"]
    panels = _dataset_and_ipc(sets if len(sets) else table)
    figure, axes = side_by_side(len(panels), 2.5)
    shades = _network_colours(table["network"])
    for ax, (dataset, ipc) in zip(axes, panels, strict=True):
        here = table[
            (table["dataset"] == dataset) & ((table["ipc"] == ipc) | (table["method"] == "real")).fillna(False)
        ]
        methods = [m for m in in_order(here["method"]) if m != "real"] + ["real"] * bool(
            (here["method"] == "real").any()
        )
        for place, method in enumerate(methods):
            for i, network in enumerate(shades):
                rows = here[(here["method"] == method) & (here["network"] == network)]
                _bar(
                    ax,
                    place + (i - (len(shades) - 1) / 2) * 0.8 / len(shades),
                    0.74 / len(shades),
                    rows,
                    shades[network],
                )
        names = [METHOD_NAMES["test"] if m == "real" else METHOD_NAMES.get(m, m) for m in methods]
        ax.set_xticks(range(len(methods)), names, rotation=30, ha="right", rotation_mode="anchor")
        ax.set(title=dataset if pd.isna(ipc) else f"{dataset} · IPC {ipc}", ylim=(0, 1.02))
        ax.tick_params(axis="x", length=0)
    axes[0].set_ylabel("Share recognised")
    handles = [Patch(color=colour, label=name) for name, colour in shades.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _network_colours(names: pd.Series) -> dict[str, str]:
    """A colour for each network, in the order in which they are drawn: ``ConvNet-W32`` has that of ``ConvNet``."""
    kinds = sorted(NETWORK_COLOURS, key=len, reverse=True)  # ConvNet-Tiny before ConvNet
    kind_of = {n: next((kind for kind in kinds if f"{n}-".startswith(f"{kind}-")), "") for n in names.unique()}
    found: dict[str, str] = {}
    for kind, colour in NETWORK_COLOURS.items():
        found |= {n: colour for n in sorted(n for n in kind_of if kind_of[n] == kind)[:1]}
    others = [n for n in kind_of if n not in found]
    return found | {n: f"{0.35 + 0.5 * i / len(others):.2f}" for i, n in enumerate(others)}


def _bar(ax: Axes, x: float, width: float, rows: pd.DataFrame, colour: str) -> None:
    if not len(rows):
        return
    mean = rows["accuracy"].mean()
    low, high = wilson(mean, int(rows.drop_duplicates("set_seed")["images"].sum()))
    ax.bar(x, mean, width, color=colour, zorder=2)
    ax.errorbar(x, mean, [[mean - low], [high - mean]], color="black", linewidth=0.8, capsize=1.5, zorder=4)
    across = x + np.linspace(-0.3, 0.3, len(rows)) * width if len(rows) > 1 else np.array([x])
    ax.scatter(across, rows["accuracy"], s=4, color=GREY, alpha=0.6, linewidths=0, zorder=3)


# ------------------------------------------------------------------------------------------------------ features


def embedding_scatter(table: pd.DataFrame) -> Figure:
    """The features of test images and distilled images on one map (Yang et al. 2024, Fig. 2 right).

    Columns dataset, network, what ("test" or a method), class, x and y. A panel a (dataset, network). Test images are
    dots in the colour of their class, distilled ones bigger marks, by method, with a black edge. Axes mean nothing.
    """
    need(table, ["dataset", "network", "what", "class", "x", "y"])
    panels = table[["dataset", "network"]].drop_duplicates().values.tolist()
    columns = min(len(panels), 2)
    size = (WIDTH, -(-len(panels) // columns) * (3.3 if columns == 2 else 4.6))
    figure, axes = plt.subplots(-(-len(panels) // columns), columns, figsize=size, squeeze=False, layout="constrained")
    classes = sorted(table["class"].unique(), key=str)
    rainbow = dict(zip(classes, plt.colormaps["rainbow"](np.linspace(0, 1, len(classes))), strict=True))
    methods = [m for m in in_order(table["what"]) if m != "test"]
    for ax, (dataset, network) in zip(axes.flat, panels, strict=False):
        here = table[(table["dataset"] == dataset) & (table["network"] == network)]
        for what in ["test", *methods]:
            rows = here[here["what"] == what]
            inside = np.array([rainbow[name] for name in rows["class"]]).reshape(-1, 4)
            marks = _dot(len(rows)) if what == "test" else _mark(markers(methods)[what])
            ax.scatter(rows["x"], rows["y"], c=inside, **marks)
        ax.set(title=f"{dataset} · {network}", xticks=[], yticks=[])
    for spare in axes.flat[len(panels) :]:
        spare.set_visible(False)
    of_class = [Line2D([], [], linestyle="", marker=".", color=rainbow[c], label=str(c)) for c in classes]
    of_method = [
        _key(METHOD_NAMES.get(m, m), "white", markers(methods)[m], linestyle="", markeredgecolor="black")
        for m in methods
    ]
    figure.legend(handles=[*of_class, *of_method], loc="outside lower center", ncols=5, frameon=False)
    return figure


def _dot(n: int) -> dict[str, Any]:
    """Size 1 as published, for 10,000 of them; fewer may be seen better."""
    return {"s": 1 if n > 2000 else 5, "linewidths": 0, "rasterized": True}


def _mark(marker: str) -> dict[str, Any]:
    return {"s": 30 if marker == "*" else 18, "marker": marker, "edgecolors": "black", "linewidths": 0.5, "zorder": 3}


def _key(label: str, colour: str, marker: str, **style: Any) -> Line2D:
    return Line2D([], [], marker=marker, markersize=5, color=colour, label=label, **style)


# -------------------------------------------------------------------------------------------------------- mixing


def mixing_curves(table: pd.DataFrame) -> Figure:
    """Test accuracy of networks trained on sets with k real images a class (Yang et al. 2024, Fig. 3 right).

    Columns dataset, method, ipc, network, mode, real_per_class, set_seed, network_seed, accuracy (share of 1). A panel
    for each dataset, ipc, network and mode, a line a method; bars are 95 % t intervals over sets, each the mean of its
    networks, or over networks where sets do not differ.
    """
    need(
        table,
        ["dataset", "method", "ipc", "network", "mode", "real_per_class", "set_seed", "network_seed", "accuracy"],
    )
    settings = ["dataset", "network", "ipc", "mode"]
    told = table.groupby(settings)["real_per_class"].transform("max") > 0  # +0 alone says nothing
    order = table[told][settings].drop_duplicates().sort_values(settings[:3], kind="stable")
    panels, methods = order.values.tolist(), in_order(table["method"])
    if not panels:
        raise ValueError("the table has no row with real_per_class above 0: there is nothing to draw a curve of")
    counts, (low, high) = sorted(table["real_per_class"].unique()), table["accuracy"].agg(["min", "max"])
    figure, axes = side_by_side(len(panels), 2.5)
    for ax, setting in zip(axes, panels, strict=True):
        here = table[(table[settings] == setting).all(axis=1)]
        for method in methods:
            _mixing_line(ax, here[here["method"] == method], method, methods)
        dataset, network, ipc, mode = setting
        ax.set_title(f"{dataset} · IPC {ipc}\n{network}, {mode}", fontsize="small")
        _mixing_axis(ax, counts)
    margin = 0.15 * max(high - low, 0.1)  # an interval over few networks may reach far beyond
    axes[0].set(ylabel="Test accuracy", ylim=(max(low - margin, -0.02), min(high + margin, 1.02)))
    keys = [_key(METHOD_NAMES.get(m, m), colours(methods)[m], markers(methods)[m]) for m in methods]
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 4}
    figure.legend(handles=keys, frameon=False, **(place if len(panels) > 1 else {"loc": "outside right center"}))
    return figure


def _mixing_axis(ax: Axes, counts: list[int]) -> None:
    """Numbers of real images, linear up to the first above 0 and logarithmic beyond."""
    threshold = min(k for k in counts if k)
    ax.set_xscale("symlog", linthresh=threshold)
    ax.set(xlabel="Real images a class", xlim=(-0.3 * threshold, 1.4 * counts[-1]))
    ax.set_xticks(counts, [f"+{k}" for k in counts])
    ax.minorticks_off()
    ax.grid(axis="y", linewidth=0.5, alpha=0.4)


def _mixing_line(ax: Axes, rows: pd.DataFrame, method: str, methods: list[str]) -> None:
    if not len(rows):
        return
    counts = sorted(rows["real_per_class"].unique())
    units = [unit_means(rows[rows["real_per_class"] == k], "accuracy", ("set_seed", "network_seed"))[1] for k in counts]
    middle, half = np.array([mean_and_half_width(means[None]) for means in units])[:, :, 0].T
    style: dict[str, Any] = {"linestyle": "--" if method == "random" else "-", "linewidth": 1.3, "capsize": 2}
    style |= {"color": colours(methods)[method], "marker": markers(methods)[method], "markersize": 4.5}
    ax.errorbar(counts, middle, half, **style)


# -------------------------------------------------------------------------------------------------------- pixels


def pixel_density_curves(table: pd.DataFrame, channel: str = "all") -> Figure:
    """Densities of the pixel values of all images of each set and of real images (Yang et al. 2024, Fig. 3 left).

    Columns dataset, method, ipc, set_seed, channel, low, high and density; those of ``channel`` are drawn. A panel a
    (dataset, ipc), a line a method, the mean over its sets, black for real images; dotted lines are black and white.
    """
    need(table, ["dataset", "method", "ipc", "set_seed", "channel", "low", "high", "density"])
    here = table[table["channel"] == channel]
    if not len(here):
        raise ValueError(f"the table has no channel {channel!r}: it has {', '.join(table['channel'].unique())}")
    sets = here[here["method"] != "real"]
    panels = _dataset_and_ipc(sets if len(sets) else here)
    methods = in_order(sets["method"])
    figure, axes = side_by_side(len(panels), 2.3, one_scale=False)
    for ax, (dataset, ipc) in zip(axes, panels, strict=True):
        own = here[here["dataset"] == dataset]
        _density(ax, own[own["method"] == "real"], METHOD_COLOURS["real"], 0.12)
        for method in methods:
            rows = own[(own["method"] == method) & (own["ipc"] == ipc).fillna(False)]
            _density(ax, rows, colours(methods)[method], 0)
        for end in (0, 1):
            ax.axvline(end, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        ax.set(title=dataset if pd.isna(ipc) else f"{dataset} · IPC {ipc}", xlabel="Pixel value", yticks=[])
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_ylim(0, None)
        ax.spines["left"].set_visible(False)
    axes[0].set_ylabel("Density")
    real = {METHOD_NAMES["real"]: METHOD_COLOURS["real"]} if (here["method"] == "real").any() else {}
    legend(figure, real | {METHOD_NAMES.get(m, m): colours(methods)[m] for m in methods})
    return figure


def _density(ax: Axes, rows: pd.DataFrame, colour: str, shade: float) -> None:
    if not len(rows):
        return
    mean = rows.groupby(["low", "high"])["density"].mean().reset_index()
    mean = mean.groupby(mean.index // TOGETHER).agg({"low": "min", "high": "max", "density": "mean"})
    filled = mean.index[mean["density"] > 0]
    if len(filled):
        mean = mean.loc[max(filled[0] - 1, 0) : filled[-1] + 1]
    middle = (mean["low"] + mean["high"]) / 2
    ax.plot(middle, mean["density"], color=colour, linewidth=1.2, zorder=3)
    ax.fill_between(middle, mean["density"], color=colour, alpha=shade, linewidth=0, zorder=2)
