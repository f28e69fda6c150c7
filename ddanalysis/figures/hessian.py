"""The curvature of a network in training: traces, top eigenvalues, spectral densities and shared eigenspaces."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddanalysis.figures.style import GREY, METHOD_NAMES, WIDTH, colours, in_order, legend, need, side_by_side
from ddanalysis.intervals import mean_and_half_width

_KEYS = ("dataset", "target", "ipc", "network", "set_seed", "network_seed", "update")
_UNITS = ("network_seed", "set_seed")


def trace_curves(table: pd.DataFrame, mark: float | None = None) -> Figure:
    """The trace of the Hessian over a training on real data, on these and on every set (Yang et al. 2024, section 4.3).

    Columns of ``analysis.hessian.TRACE_COLUMNS``, raw or smoothed. A panel a (dataset, network, ipc), a line a target,
    black for the real data. Bands are 95 % intervals: over networks, each the mean of its sets, or over sets where
    there is one network; of a single line, from its standard errors. ``mark``: an update with a dotted line, 60 as
    published.
    """
    need(table, [*_KEYS, "trace", "trace_se"])
    figure, axes = _panels(table, 2.4)
    for ax, (_, lines) in zip(axes, _by_panel(table), strict=True):
        for target, line in _by_target(lines):
            _trace_line(ax, line, colours(table["target"])[target], 2.0 if target == "real" else 1.4)
        if mark is not None:
            ax.axvline(mark, color=GREY, linewidth=1, linestyle=":")
        ax.set_xlabel("Update")
        ax.margins(x=0)
    axes[0].set_ylabel("Trace of the Hessian")
    _legend(figure, table)
    return figure


def _trace_line(ax: Axes, rows: pd.DataFrame, colour: str, width: float) -> None:
    units = next((u for u in _UNITS if rows[u].nunique() > 1), None)
    if units is None:
        rows = rows.sort_values("update")
        at, middle, half = rows["update"], rows["trace"].to_numpy(), 1.96 * rows["trace_se"].to_numpy()
    else:
        means = rows.groupby(["update", units])["trace"].mean().unstack()
        at, (middle, half) = means.index, mean_and_half_width(means.to_numpy())
    ax.plot(at, middle, color=colour, linewidth=width, zorder=3)
    ax.fill_between(at, middle - half, middle + half, color=colour, alpha=0.2, linewidth=0, zorder=2)


def stopped_traces(table: pd.DataFrame) -> Figure:
    """The trace as PyHessian's stopping rule leaves it (marks; crosses where it took 2 probes) over that of all probes.

    The table is that of ``analysis.pyhessian_trace.stopped_early``: a panel a target and ipc, bands 95 % intervals.
    """
    need(table, [*_KEYS, "shipped", "shipped_probes", "trace", "trace_se"])
    settings = table[["target", "ipc"]].drop_duplicates().values.tolist()
    figure, axes = side_by_side(len(settings), 2.2)
    for ax, (target, ipc) in zip(axes, settings, strict=True):
        rows = table[(table["target"] == target) & (table["ipc"] == ipc)].sort_values("update")
        colour = colours(table["target"])[target]
        ax.plot(rows["update"], rows["trace"], color=GREY, linewidth=1.2)
        low, high = (rows["trace"] + sign * 1.96 * rows["trace_se"] for sign in (-1, 1))
        ax.fill_between(rows["update"], low, high, color=GREY, alpha=0.25, linewidth=0)
        for marker, chosen in (("x", rows["shipped_probes"] == 2), ("o", rows["shipped_probes"] > 2)):
            ax.plot(rows.loc[chosen, "update"], rows.loc[chosen, "shipped"], marker, color=colour, markersize=4)
        ax.set(title=f"{METHOD_NAMES.get(target, target)} · IPC {ipc}", xlabel="Update")
    axes[0].set_ylabel("Trace")
    return figure


def eigenvalue_points(table: pd.DataFrame) -> Figure:
    """The top eigenvalues of the Hessian by rank, a column of panels an update.

    Columns of ``analysis.hessian.EIGENVALUE_COLUMNS``. A point is the mean over networks and sets, a bar its 95 %
    interval as in :func:`trace_curves`; of a single one, the residual, which bounds the error.
    """
    need(table, [*_KEYS, "rank", "eigenvalue", "residual"])
    return _grid(table, _eigenvalue_panel, "Rank", "Eigenvalue")


def _eigenvalue_panel(ax: Axes, lines: pd.DataFrame, colour: dict[str, str]) -> None:
    targets = list(_by_target(lines))
    for place, (target, line) in enumerate(targets):
        units = next((u for u in _UNITS if line[u].nunique() > 1), None)
        if units is None:
            line = line.sort_values("rank")
            ranks, middle, half = line["rank"].to_numpy(), line["eigenvalue"].to_numpy(), line["residual"].to_numpy()
        else:
            means = line.groupby(["rank", units])["eigenvalue"].mean().unstack()
            ranks, (middle, half) = means.index.to_numpy(), mean_and_half_width(means.to_numpy())
        offset = (place - (len(targets) - 1) / 2) * 0.6 / len(targets)
        ax.errorbar(ranks + offset, middle, half, fmt=".", color=colour[target], markersize=5, linewidth=1)
    ax.axhline(0, color=GREY, linewidth=0.6, zorder=0)


def spectral_curves(table: pd.DataFrame) -> Figure:
    """Spectral densities, on a logarithmic scale, a column of panels an update.

    The table is that of ``analysis.hessian.density_curves``; lines are means over networks and sets.
    """
    need(table, [*_KEYS, "value", "density"])
    figure = _grid(table, _density_panel, "Eigenvalue", "Density")
    for ax in figure.axes:
        ax.set(yscale="log", ylim=(1e-6 * table["density"].max(), 2 * table["density"].max()))
    return figure


def _density_panel(ax: Axes, lines: pd.DataFrame, colour: dict[str, str]) -> None:
    for target, line in _by_target(lines):
        mean = line.groupby("value")["density"].mean()
        ax.plot(mean.index, mean, color=colour[target], linewidth=1.8 if target == "real" else 1.2)


def overlap_curves(table: pd.DataFrame) -> Figure:
    """The share of each set's top eigenspace that it has in common with the real data's, by update.

    Columns of ``analysis.hessian.OVERLAP_COLUMNS``. Points are means over networks and sets, bars 95 % intervals where
    there are several; dotted is what two random spaces share.
    """
    need(table, [*_KEYS, "overlap", "chance"])
    figure, axes = _panels(table, 2.2)
    for ax, (_, lines) in zip(axes, _by_panel(table), strict=True):
        for target, line in _by_target(lines):
            units = next((u for u in _UNITS if line[u].nunique() > 1), _UNITS[0])
            means = line.groupby(["update", units])["overlap"].mean().unstack()
            middle, half = mean_and_half_width(means.to_numpy())
            colour = colours(table["target"])[target]
            ax.errorbar(means.index, middle, np.nan_to_num(half), color=colour, marker=".", linewidth=1.2, capsize=2)
        ax.axhline(lines["chance"].mean(), color=GREY, linewidth=1, linestyle=":")
        ax.set(xlabel="Update", ylim=(-0.02, 1.02))
    axes[0].set_ylabel("Shared with the real data")
    _legend(figure, table)
    return figure


# ---------------------------------------------------------------------------------------------------------- the panels


def _settings(table: pd.DataFrame) -> list[tuple[str, str, int | None]]:
    """The (dataset, network, ipc) of the panels; the real data alone, without ipc, where there is no set."""
    keys = ["dataset", "network", "ipc"]
    sets = table[table["target"] != "real"]
    found = (sets if len(sets) else table)[keys].drop_duplicates().values.tolist()
    return [(dataset, network, None if pd.isna(ipc) else int(ipc)) for dataset, network, ipc in found]


def _by_panel(table: pd.DataFrame) -> list[tuple[tuple[str, str, int | None], pd.DataFrame]]:
    """The rows of each panel: those of its sets, and the real data's in all of a dataset and network."""
    panels = []
    for dataset, network, ipc in _settings(table):
        here = table[(table["dataset"] == dataset) & (table["network"] == network)]
        own = here["target"] == "real"
        if ipc is not None:
            own |= (here["ipc"] == ipc).fillna(False).astype(bool)
        panels.append(((dataset, network, ipc), here[own]))
    return panels


def _title(dataset: str, network: str, ipc: int | None) -> str:
    return " · ".join([dataset, *([f"IPC {ipc}"] if ipc is not None else []), network])


def _by_target(lines: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(target, lines[lines["target"] == target]) for target in in_order(lines["target"])]


def _panels(table: pd.DataFrame, height: float) -> tuple[Figure, list[Axes]]:
    settings = _settings(table)
    figure, axes = side_by_side(len(settings), height)
    for ax, setting in zip(axes, settings, strict=True):
        ax.set_title(_title(*setting))
    return figure, axes


def _grid(table: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame, dict[str, str]], None], x: str, y: str) -> Figure:
    """A row of panels a setting, a column an update."""
    panels, updates = _by_panel(table), sorted(table["update"].unique())
    size = (max(WIDTH, 1.7 * len(updates)), 1.9 * len(panels) + 0.6)
    figure, axes = plt.subplots(
        len(panels), len(updates), figsize=size, sharex="col", squeeze=False, layout="constrained"
    )
    for row, (setting, lines) in zip(axes, panels, strict=True):
        for ax, update in zip(row, updates, strict=True):
            draw(ax, lines[lines["update"] == update], colours(table["target"]))
            ax.set_title(f"{_title(*setting)}\n{update} updates" if update == updates[0] else f"\n{update} updates")
        row[0].set_ylabel(y)
    for ax in axes[-1]:
        ax.set_xlabel(x)
    _legend(figure, table)
    return figure


def _legend(figure: Figure, table: pd.DataFrame) -> None:
    targets: Sequence[str] = in_order(table["target"])
    legend(figure, {METHOD_NAMES.get(t, t): colours(targets)[t] for t in targets})
