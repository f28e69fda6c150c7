"""What the test images that a distilled image helps most have in common, beside chance."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ddanalysis.figures.style import GREY, METHOD_NAMES, WIDTH, colours, in_order, need

FOLD = 2.0
"""Enrichment is drawn from 2 ** -FOLD to 2 ** FOLD times what is expected."""


def enrichment_map(table: pd.DataFrame, null: str = "class", level: float = 0.05) -> Figure:
    """Enrichment of every attribute (row) under every image of a set (column); a dot where ``p_adjusted`` is at most
    ``level``.

    ``table`` is that of ``analysis.semantics.enrichment_table``, or several of them: a panel a (method, ipc), of
    several seeds the first. White lines part the classes. Where nothing was expected it is grey.
    """
    need(table, ["method", "ipc", "set_seed", "image", "image_class", "attribute", "enrichment", "p_adjusted", "null"])
    here = _of_null(table, null)
    attributes = list(dict.fromkeys(here["attribute"]))
    panels = _panels(here)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, rows * (0.105 * len(attributes) + 0.45) + 0.3),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for spare in axes.flat[len(panels) :]:
        spare.set_visible(False)
    for ax, (method, ipc) in zip(axes.flat, panels, strict=False):
        own = here[(here["method"] == method) & (here["ipc"] == ipc)]
        drawn = _map(ax, own, attributes, level)
        ax.set_title(f"{METHOD_NAMES.get(method, method)}, IPC {ipc}", fontsize="small")
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(attributes)), attributes, fontsize="xx-small")
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0)
    ends = np.arange(-FOLD, FOLD + 1)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, ticks=ends, label="Times as often as by chance")
    bar.ax.set_yticklabels([f"{2.0**end:g}" for end in ends])
    return figure


def _map(ax: Axes, rows: pd.DataFrame, attributes: list[str], level: float) -> AxesImage:
    """One heat map; images in the order of their classes."""
    order = _by_class(rows).drop_duplicates("image")
    fold, p = (
        rows.pivot(index="attribute", columns="image", values=value)
        .reindex(index=attributes, columns=order["image"])
        .to_numpy()
        for value in ("enrichment", "p_adjusted")
    )
    with np.errstate(divide="ignore"):
        fold = np.clip(np.log2(fold), -FOLD, FOLD)
    ax.set_facecolor("#DDDDDD")
    drawn = ax.imshow(fold, cmap="RdBu_r", vmin=-FOLD, vmax=FOLD, aspect="auto", interpolation="nearest")
    at, across = np.nonzero(p <= level)
    ax.plot(across, at, "o", color="black", markersize=2.6, markeredgecolor="white", markeredgewidth=0.5)
    for edge in np.nonzero(order["image_class"].ne(order["image_class"].shift(-1)).to_numpy()[:-1])[0]:
        ax.axvline(edge + 0.5, color="white", linewidth=0.8)
    ax.set_xticks([])
    ax.set_xlabel(f"{len(order)} images, by class", fontsize="x-small")
    return drawn


def alikeness_points(table: pd.DataFrame, null: str = "class", level: float = 0.05) -> Figure:
    """Mean similarity of the test images that each image helps most, over the central 95 % of random ones.

    ``table`` is that of ``analysis.semantics.alikeness_table``, or several of them: a column of panels a (method, ipc),
    of several seeds the first, a row a space. Full points are significant (``p_adjusted`` at most ``level``); images
    are in the order of their classes.
    """
    columns = ["similarity", "null_mean", "null_low", "null_high", "p_adjusted", "null", "space"]
    need(table, ["method", "ipc", "set_seed", "image", "image_class", *columns])
    here = _of_null(table, null)
    panels, spaces = _panels(here), list(dict.fromkeys(here["space"]))
    size = (max(WIDTH, 1.5 * len(panels)) if len(panels) > 2 else 3.5 * len(panels), 1.7 * len(spaces) + 0.7)
    figure, axes = plt.subplots(
        len(spaces), len(panels), figsize=size, sharey="row", squeeze=False, layout="constrained"
    )
    for column, (method, ipc) in enumerate(panels):
        own = here[(here["method"] == method) & (here["ipc"] == ipc)]
        for row, space in enumerate(spaces):
            _points(axes[row, column], own[own["space"] == space], colours([method])[method], level)
        axes[0, column].set_title(f"{METHOD_NAMES.get(method, method)}\nIPC {ipc}", fontsize="small")
        axes[-1, column].set_xlabel("Images, by class", fontsize="small")
    for row, space in enumerate(spaces):
        axes[row, 0].set_ylabel(f"Similarity\n({space})")
    return figure


def _points(ax: Axes, rows: pd.DataFrame, colour: str, level: float) -> None:
    rows = _by_class(rows)
    x, full = np.arange(len(rows)), (rows["p_adjusted"] <= level).to_numpy()
    ax.vlines(x, rows["null_low"], rows["null_high"], color=GREY, alpha=0.35, linewidth=1.6, zorder=1)
    ax.plot(x, rows["null_mean"], "_", color=GREY, markersize=2.5, zorder=2)
    for chosen, face in ((full, colour), (~full, "white")):
        y = rows["similarity"].to_numpy()[chosen]
        ax.scatter(x[chosen], y, s=9, facecolors=face, edgecolors=colour, linewidths=0.7, zorder=3)
    ax.set_xticks([])


def _by_class(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows by class, the classes in the order in which they first appear, and by image."""
    place = rows["image_class"].map({name: i for i, name in enumerate(rows["image_class"].unique())})
    return rows.assign(place=place).sort_values(["place", "image"], kind="stable")


def _panels(table: pd.DataFrame) -> list[tuple[str, int]]:
    """The methods and ipcs of a table, in order."""
    pairs = set(zip(table["method"], table["ipc"], strict=True))
    return [(m, n) for m in in_order(table["method"]) for n in sorted(table["ipc"].unique()) if (m, n) in pairs]


def _of_null(table: pd.DataFrame, null: str) -> pd.DataFrame:
    """The rows of one null and of each method's first seed; ``ValueError`` where there are none."""
    first = table.groupby(["method", "ipc"])["set_seed"].transform("min")
    here = table[(table["null"] == null) & (table["set_seed"] == first)]
    if not len(here):
        raise ValueError(f"the table has no rows of the null {null!r}: it has {', '.join(sorted(set(table['null'])))}")
    return here
