"""What all figures share: colours and names of methods, panels, points, legends, and the check of a table's columns."""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddanalysis.intervals import mean_and_half_width, unit_means

METHOD_COLOURS = {
    "bptt": "#E69F00",
    "dm": "#0072B2",
    "dc": "#009E73",
    "mtt": "#CC79A7",
    "dsa": "#332288",
    "rat": "#117733",
    "clom_dc": "#44BB99",
    "clom_dsa": "#7766C6",
    "clom_dm": "#77AADD",
    "clom_mtt": "#EE9DC8",
    "clom_bptt": "#F7C96B",
    "dd": "#A6761D",
    "sldd": "#E31A1C",
    "ld": "#1F78B4",
    "ld_ridge": "#B15928",
    "ld_images": "#33A02C",
    "ld_images_ridge": "#6A3D9A",
    "random": "#8A8A8A",
    "class_mean": "#882255",
    "k_means": "#56B4E9",
    "herding": "#D55E00",
    "real": "#000000",
    "test": "#000000",
}
"""One colour a method in every figure, told apart by colour-blind readers (Okabe and Ito 2008; some of Tol's).

With CLOM, a paler one.
"""

METHOD_NAMES = {
    "bptt": "BPTT",
    "dm": "Distribution matching",
    "dc": "Gradient matching",
    "mtt": "Trajectory matching",
    "dsa": "Siamese augmentation",
    "rat": "Windowed BPTT",
    "clom_dc": "Gradient matching, CLOM",
    "clom_dsa": "Siamese augmentation, CLOM",
    "clom_dm": "Distribution matching, CLOM",
    "clom_mtt": "Trajectory matching, CLOM",
    "clom_bptt": "BPTT, CLOM",
    "dd": "Dataset distillation",
    "sldd": "Soft-label distillation",
    "ld": "Label distillation",
    "ld_ridge": "Label distillation, ridge",
    "ld_images": "Images by label distillation",
    "ld_images_ridge": "Images by label distillation, ridge",
    "random": "Random images",
    "class_mean": "Class means",
    "k_means": "k-means centres",
    "herding": "Herding",
    "real": "Real images",
    "test": "Real test images",
}
"""What a reader sees for a method."""

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


def need(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """The table has rows, and these columns."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}: needed are {', '.join(columns)}")
    if not len(table):
        raise ValueError("the table has no rows: at least one is needed to draw a figure")


def in_order(methods: pd.Series) -> list[str]:
    """The methods of a table as ``METHOD_NAMES`` orders them, then others by name."""
    known = list(METHOD_NAMES)
    return sorted(methods.unique(), key=lambda m: (known.index(m) if m in known else len(known), m))


def side_by_side(n: int, height: float, one_scale: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of n panels, at most 3 in a row, of ``one_scale`` of y or each of its own."""
    columns = min(n, 3)
    rows = -(-n // columns)
    size = (WIDTH, height * rows + (0.5 if n > 1 else 0.2))
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=one_scale, squeeze=False, layout="constrained")
    for spare in axes.flat[n:]:
        spare.set_visible(False)
    return figure, list(axes.flat[:n])


def legend(figure: Figure, lines: dict[str, str], marker: str = "") -> None:
    """A legend beside a single panel, below several."""
    style = {"linestyle": "", "markersize": 5} if marker else {"linewidth": 2}
    handles = [Line2D([], [], color=colour, marker=marker, label=name, **style) for name, colour in lines.items()]
    if len(figure.axes) == 1:
        figure.legend(handles=handles, loc="outside right center", frameon=False)
    else:
        columns = -(-len(handles) // -(-len(handles) // 4))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def points(ax: Axes, x: float, spread: float, rows: pd.DataFrame, colour: str, units: Sequence[str]) -> None:
    """The accuracies of ``rows`` side by side around x, their mean, and its interval over the first of ``units`` that
    they differ in.
    """
    if not len(rows):
        return
    rows = rows.sort_values(list(units))
    across = x + (np.linspace(-0.5, 0.5, len(rows)) * spread if len(rows) > 1 else np.zeros(1))
    alpha = 0.35 if len(rows) <= 50 else 0.15
    ax.scatter(across, rows["accuracy"], s=8, color=colour, alpha=alpha, linewidths=0, zorder=2)
    middle, half = mean_and_half_width(unit_means(rows, "accuracy", units)[1][None])
    ax.errorbar(x, middle, half, color=colour, linewidth=1.3, capsize=2.5, zorder=3)
    ax.plot(x, middle[0], "D", color=colour, markersize=3.8, markeredgecolor="white", markeredgewidth=0.5, zorder=4)
