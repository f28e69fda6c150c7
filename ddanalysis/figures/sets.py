"""Distilled images, the losses they were made by, and the accuracy of networks trained on them."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddanalysis import checks
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet
from ddanalysis.figures.style import GREY, METHOD_NAMES, WIDTH, colours, in_order, legend, need, points, side_by_side
from ddanalysis.intervals import mean_and_half_width

STYLES = ("-", "--", ":", "-.")
COMPONENT_COLOURS = ("#555555", "#D62728", "#8C6D31")
"""Of what a method records besides its loss."""


def accuracy_points(table: pd.DataFrame) -> Figure:
    """Test accuracy by method and ipc: a faint dot a network, a diamond at the mean, a bar for its 95 % t interval.

    Columns dataset, method, ipc, network, set_seed, network_seed, accuracy (share of 1), and protocol if there are
    several. The interval is over sets, each the mean of its networks; over networks where sets do not differ.
    """
    need(table, ["dataset", "method", "ipc", "network", "set_seed", "network_seed", "accuracy"])
    settings = ["dataset", "network", *(["protocol"] if "protocol" in table.columns else [])]
    panels = table[settings].drop_duplicates().values.tolist()
    methods, ipcs = in_order(table["method"]), sorted(table["ipc"].unique())
    figure, axes = side_by_side(len(panels), 2.6)
    for ax, setting in zip(axes, panels, strict=True):
        here = table[(table[settings] == setting).all(axis=1)]
        for place, method in enumerate(methods):
            offset = (place - (len(methods) - 1) / 2) * 0.8 / len(methods)
            for x, ipc in enumerate(ipcs):
                rows = here[(here["method"] == method) & (here["ipc"] == ipc)]
                points(ax, x + offset, 0.5 / len(methods), rows, colours(methods)[method], ["set_seed", "network_seed"])
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
    legend(figure, {METHOD_NAMES.get(m, m): colours(methods)[m] for m in methods}, marker="D")
    return figure


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
    if not sets or min(len(one) // one.n_classes for one in sets) < per_class:
        raise ValueError(f"{per_class} images a class are to be shown of {len(sets)} sets: each needs as many")
    rows = [one.x.view(one.n_classes, -1, *one.x.shape[1:])[:, i].cpu() for one in sets for i in range(per_class)]
    labels = [METHOD_NAMES.get(one.method, one.method) if i == 0 else "" for one in sets for i in range(per_class)]
    return image_grid(data.denormalise(torch.cat(rows)), data.n_classes, data.classes, labels)


def loss_curves(history: pd.DataFrame, window: int = 20) -> Figure:
    """Losses while distilling: every iteration faint, the mean of the last ``window`` in full, on logarithmic axes.

    Columns dataset, method, ipc, set_seed, iteration, component, value. A panel a method, whose losses are its own; a
    line a component and ipc; of several seeds the first is drawn.
    """
    need(history, ["dataset", "method", "ipc", "set_seed", "iteration", "component", "value"])
    first = history[history["set_seed"] == history["set_seed"].min()]
    methods, components = in_order(first["method"]), list(first["component"].unique())
    ipcs = sorted(first["ipc"].unique())
    figure, axes = side_by_side(len(methods), 1.9, one_scale=False)
    for ax, method in zip(axes, methods, strict=True):
        here = first[first["method"] == method]
        for (component, ipc), curve in here.groupby(["component", "ipc"], sort=False):
            colour = (
                colours([method])[method] if component == "loss" else COMPONENT_COLOURS[components.index(component)]
            )
            ax.plot(curve["iteration"], curve["value"], color=colour, alpha=0.15, linewidth=0.6)
            smooth = curve["value"].rolling(window, min_periods=1).mean()
            style, name = STYLES[ipcs.index(ipc) % len(STYLES)], component.replace("_", " ")
            ax.plot(curve["iteration"], smooth, style, color=colour, linewidth=1.4, label=f"{name}, IPC {ipc}")
        ax.set(xlabel="Iteration", yscale="log", title=METHOD_NAMES.get(method, method))
        ax.legend(loc="best", fontsize="x-small", frameon=True, framealpha=0.6, edgecolor="none")
    axes[0].set_ylabel("Loss")
    return figure


def accuracy_along(table: pd.DataFrame) -> Figure:
    """Test accuracy of networks trained on sets as they were on the way, from their start to their end.

    Columns dataset, method, ipc, network, protocol, set_seed, network_seed, accuracy and iteration. A panel for each of
    the ipcs, networks and protocols, a line a method, over the share of its iterations that is done; bands are 95 % t
    intervals over sets, each the mean of its networks.
    """
    need(
        table, ["dataset", "method", "ipc", "network", "protocol", "set_seed", "network_seed", "accuracy", "iteration"]
    )
    settings = ["dataset", "ipc", "network", "protocol"]
    rows, methods = table[settings].drop_duplicates().values.tolist(), in_order(table["method"])
    figure, axes = side_by_side(len(rows), 2.6)
    for ax, setting in zip(axes, rows, strict=True):
        here = table[(table[settings] == setting).all(axis=1)]
        for method in methods:
            own = here[here["method"] == method]
            if not len(own):
                continue
            means = own.groupby(["iteration", "set_seed"])["accuracy"].mean().unstack()
            middle, half = mean_and_half_width(means.to_numpy())
            share, colour = means.index / means.index.max(), colours(methods)[method]
            ax.plot(share, middle, color=colour, linewidth=1.5, marker="." if len(share) < 20 else "")
            ax.fill_between(share, middle - half, middle + half, color=colour, alpha=0.18, linewidth=0)
        dataset, ipc, network, protocol = setting
        ax.set(title=f"{dataset} · IPC {ipc} · {network}\n{protocol}", xlabel="Share of the iterations")
    axes[0].set_ylabel("Test accuracy")
    legend(figure, {METHOD_NAMES.get(m, m): colours(methods)[m] for m in methods})
    return figure


def gain_intervals(table: pd.DataFrame) -> Figure:
    """Gains in accuracy, each with its 95 % interval; where one lies right of 0 there is a gain.

    Columns method, ipc, over (what the gain is over), mean, low and high. A panel for each of ``over``, a row a method
    and ipc.
    """
    need(table, ["method", "ipc", "over", "mean", "low", "high"])
    overs = list(dict.fromkeys(table["over"]))
    rows = [(m, n) for m in in_order(table["method"]) for n in sorted(table.loc[table["method"] == m, "ipc"].unique())]
    size = (WIDTH, 0.2 * len(rows) + 0.8)
    figure, axes = plt.subplots(1, len(overs), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, over in zip(axes[0], overs, strict=True):
        here = table[table["over"] == over]
        for place, (method, ipc) in enumerate(rows):
            own = here[(here["method"] == method) & (here["ipc"] == ipc)]
            spread = np.linspace(-0.2, 0.2, len(own)) if len(own) > 1 else np.zeros(len(own))
            for offset, one in zip(spread, own.itertuples(), strict=True):
                bar = np.array([[one.mean - one.low], [one.high - one.mean]])
                colour = colours([method])[method]
                ax.errorbar(one.mean, place + offset, xerr=bar, fmt="D", color=colour, markersize=3.5, capsize=2)
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        ax.set(title=f"over {over}", xlabel="Gain in test accuracy")
        ax.grid(axis="x", linewidth=0.5, alpha=0.4)
    axes[0, 0].set_yticks(range(len(rows)), [f"{METHOD_NAMES.get(m, m)}, IPC {n}" for m, n in rows])
    axes[0, 0].invert_yaxis()
    return figure


def _label_grid(ax: Axes, titles: Sequence[str], row_labels: Sequence[str], above: float) -> None:
    """Labels in the place of ticks: column titles on top, row labels on the left, no axes."""
    ax.xaxis.tick_top()
    ax.set_xticks([0.5 + 1.06 * i for i in range(len(titles))], list(titles))
    ax.set_yticks([0.5 + (1 + above) * i for i in range(len(row_labels))], list(row_labels))
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)
