"""Which findings of a paper came out: effects and intervals, a column a finding."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ddanalysis.analysis.hypotheses import COLUMNS, FINDINGS
from ddanalysis.figures.style import GREY, METHOD_NAMES, WIDTH, colours, in_order, need

ACROSS = 3
"""Panels in a row, which share their labels."""
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "h")
"""Of networks, in the order of the table."""
SHADE = "#EEF3EA"


def forest(table: pd.DataFrame) -> Figure:
    """Every hypothesis with its effects and 95 % intervals (``analysis.hypotheses.table``): a panel a hypothesis, a row
    a method and ipc, a marker a network.

    The paper's side is shaded. Points are hollow where the interval, if there is one, leaves it undecided; lines are
    dotted where the paper does not say so of the method. Small print is n.
    """
    need(table, COLUMNS)
    hypotheses = list(dict.fromkeys(table["hypothesis"]))
    marker = dict(zip(dict.fromkeys(table["network"]), MARKERS * len(table), strict=False))
    across = min(len(hypotheses), ACROSS)
    chunks = [hypotheses[i : i + across] for i in range(0, len(hypotheses), across)]
    rows = [_rows(table[table["hypothesis"].isin(chunk)]) for chunk in chunks]
    lines = [_lines(table[table["hypothesis"].isin(chunk)]) for chunk in chunks]
    heights = [(0.12 + 0.07 * n) * len(own) + 0.8 for n, own in zip(lines, rows, strict=True)]
    figure = plt.figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    grid = figure.subplots(len(chunks), across, sharey="row", squeeze=False, height_ratios=heights)
    for axes, chunk, own in zip(grid, chunks, rows, strict=True):
        for ax, hypothesis in zip(axes, chunk, strict=False):
            _panel(ax, table[table["hypothesis"] == hypothesis], own, marker)
        for spare in axes[len(chunk) :]:
            spare.set_visible(False)
        axes[0].set_yticks(range(len(own)), [_label(row, table) for row in own], fontsize="small")
        axes[0].set_ylim(len(own) - 0.4, -0.6)
    keys = [Patch(color=SHADE, label="The paper's side"), _key("none", "Undecided", "o")]
    keys.append(Line2D([], [], color=GREY, linewidth=1.1, linestyle=":", label="Not claimed"))
    if len(marker) > 1:
        keys += [_key(GREY, network, shape) for network, shape in marker.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def _rows(table: pd.DataFrame) -> list[tuple[object, ...]]:
    """Every (dataset, method, ipc), methods in their order."""
    order = {method: place for place, method in enumerate(in_order(table["method"]))}
    rows = table[["dataset", "method", "ipc"]].drop_duplicates()
    rows = rows.assign(place=rows["method"].map(order)).sort_values(["dataset", "place", "ipc"])
    return list(rows[["dataset", "method", "ipc"]].itertuples(index=False, name=None))


def _lines(table: pd.DataFrame) -> int:
    """The most networks in a row of a panel."""
    return int(table.groupby(["hypothesis", "dataset", "method", "ipc"], dropna=False).size().max())


def _label(row: Sequence[object], table: pd.DataFrame) -> str:
    dataset, method, ipc = row
    name = METHOD_NAMES.get(str(method), str(method))
    return ", ".join([name, f"IPC {ipc}", *([str(dataset)] if table["dataset"].nunique() > 1 else [])])


def _key(inside: str, label: str, marker: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, markersize=4.5, color=GREY, markerfacecolor=inside, label=label)


def _panel(ax: Axes, table: pd.DataFrame, rows: Sequence[tuple[object, ...]], marker: dict[str, str]) -> None:
    """One hypothesis; the networks of a row lie one below the other."""
    for place, row in enumerate(rows):
        own = table[(table[["dataset", "method", "ipc"]] == list(row)).all(axis=1)]
        spread = np.linspace(-0.3, 0.3, len(own)) if len(own) > 1 else np.zeros(len(own))
        for y, one in zip(place + spread, own.itertuples(), strict=True):
            style: dict[str, Any] = {"color": colours([one.method])[one.method], "zorder": 2}
            claimed = one.source not in ("control", "not claimed")
            ax.plot([one.low, one.high], [y, y], linewidth=1.1, linestyle="-" if claimed else ":", **style)
            inside = "white" if one.holds == "undecided" else style["color"]
            ax.plot(one.effect, y, marker[one.network], markerfacecolor=inside, markersize=3.6, **style)
        counts = dict.fromkeys(f"{one.n} {one.n_of.split()[0].strip(',')}" for one in own.itertuples())
        ax.text(1.02, place, "\n".join(counts), transform=ax.get_yaxis_transform(), **_SMALL)
    _side(ax, table["hypothesis"].iloc[0])
    ax.set_title(textwrap.fill(table["hypothesis"].iloc[0].capitalize(), 24), fontsize="small")
    ax.set_xlabel(table["unit"].iloc[0].capitalize(), fontsize="small")
    ax.tick_params(axis="x", labelsize="x-small")
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)


_SMALL: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 5, "color": GREY, "linespacing": 0.9}


def _side(ax: Axes, hypothesis: str) -> None:
    """0, in sight, and the paper's side of it."""
    sign = {finding.hypothesis: finding.sign for finding in FINDINGS}.get(hypothesis, 0)
    ax.margins(x=0.08)
    low, high = ax.get_xlim()
    low, high = min(low, -0.1 * high), max(high, -0.1 * low)
    ax.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    if sign:
        ax.axvspan(*((0, high) if sign > 0 else (low, 0)), color=SHADE, linewidth=0, zorder=0)
    ax.set_xlim(low, high)
