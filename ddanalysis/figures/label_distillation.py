"""Soft labels: what they are, what networks make of those learned for real images, and how they came about."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ddanalysis import checks
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.figures.soft_labels import TURNED, key, levels, published_mark, shown_images, steps_and_rates
from ddanalysis.figures.style import GREY, METHOD_COLOURS, METHOD_NAMES, SPARE_COLOURS, WIDTH, need, side_by_side
from ddanalysis.intervals import mean_and_half_width, unit_means

ALGORITHM_COLOURS = {
    "second-order": "#0072B2",
    "ridge": "#D55E00",
    "images": "#009E73",
    "images, ridge": "#CC79A7",
    "true labels": "#555555",
    "smoothed labels": "#A0A0A0",
    "true labels, ridge": "#7A5C3A",
    "smoothed labels, ridge": "#C3A982",
}
"""Of what learns, and of the baselines; other algorithms get spare ones."""
UNITS = ("set_seed", "repetition")
"""What an interval is over: the first of these that accuracies differ in."""
_GAP = 1.12  # from image to image, in image widths
_HIGH = 1.95  # of an image, its title and its bars, in image widths


def label_map(one: DistilledSet, data: ImageData, groups: Sequence[object] = ()) -> Figure:
    """The labels of a set as a heat map: a row an image, a column a class; numbers where there are few enough.

    ``groups`` names the group of each image, such as its true class: images are sorted by it, known classes in their
    order first, and where it is a class of the data, that is framed. Without it groups are steps, if the set has any.
    """
    fits(one, data)
    if len(groups) not in (0, len(one)):
        raise ValueError(f"{len(groups)} groups for {len(one)} images: one an image, or none, is needed")
    y = one.y if one.y.ndim == 2 else F.one_hot(one.y, one.n_classes)
    rows, names = _grouped(one, data, groups)
    shown = y[rows].float().cpu().numpy()
    size = (min(WIDTH, 1.6 + 0.42 * one.n_classes), min(0.6 + max(0.16 * len(one), 0.6), 8.5))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    top = float(np.abs(shown).max()) or 1.0
    scale: dict[str, Any] = (
        {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if shown.min() < 0 else {"cmap": "Blues", "vmin": 0}
    )
    drawn = ax.imshow(shown, aspect="auto", interpolation="nearest", **scale)
    if len(one) <= 30 and one.n_classes <= 12:
        for (i, c), weight in np.ndenumerate(shown):
            dark = abs(weight) > 0.6 * top
            ax.text(c, i, f"{weight:.2f}", ha="center", va="center", fontsize=5.5, color="white" if dark else "black")
    _name_groups(ax, names, data.classes, bool(len(groups)))
    turned = TURNED if max(map(len, data.classes)) > 3 else {}
    ax.set_xticks(range(one.n_classes), list(data.classes), fontsize="x-small", **turned)
    ax.tick_params(length=0)
    figure.colorbar(drawn, ax=ax, shrink=min(1.0, 3 / size[1]), label="Weight in the label")
    return figure


def _grouped(one: DistilledSet, data: ImageData, groups: Sequence[object]) -> tuple[torch.Tensor, list[str]]:
    """Rows of the set in the order of their groups, and the name of the group of each."""
    if len(groups):
        known = {name: i for i, name in enumerate(data.classes)}
        order = sorted(range(len(one)), key=lambda i: (known.get(str(groups[i]), len(known)), str(groups[i]), i))
        return torch.tensor(order), [str(groups[i]) for i in order]
    if one.order is None:
        return torch.arange(len(one)), [str(i + 1) for i in range(len(one))] if len(one) <= 30 else [""] * len(one)
    batches, _ = steps_and_rates(one)
    return torch.tensor(sum(batches, [])), [f"Step {s + 1}" for s, batch in enumerate(batches) for _ in batch]


def _name_groups(ax: Axes, names: Sequence[str], classes: Sequence[str], framed: bool) -> None:
    """A tick at the middle of every group, a line between two, and a frame around the column that is its class."""
    starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    ends = [*starts[1:], len(names)]
    several = any(b - a > 1 for a, b in zip(starts, ends, strict=True))
    for a, b in zip(starts, ends, strict=True):
        if a and several:
            ax.axhline(a - 0.5, color=GREY, linewidth=0.5)
        if framed and names[a] in classes:
            corner = (classes.index(names[a]) - 0.5, a - 0.5)
            ax.add_patch(Rectangle(corner, 1, b - a, fill=False, edgecolor="black", linewidth=0.9, zorder=4))
    middle = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
    ax.set_yticks(middle, [names[a] for a in starts], fontsize="x-small")


def base_images(one: DistilledSet, data: ImageData, true: Sequence[object] = (), count: int = 20) -> Figure:
    """``count`` of the base images, evenly out of all, each over the bars of its label, the classes from left to right;
    above it the class of the highest weight.

    ``true`` names the true class of every image: where it is one of the data its bar is orange. Pixels are
    de-normalised and clipped to [0, 1], bars as high as the highest weight of all that are shown.
    """
    fits(one, data)
    checks.whole("count", count)
    if one.y.ndim != 2 or float(one.y.min()) < 0:
        raise ValueError(f"the labels of {one.name} are no soft labels of at least 0: there are no bars to draw")
    if len(true) not in (0, len(one)):
        raise ValueError(f"{len(true)} true classes for {len(one)} images: one an image, or none, is needed")
    rows = np.unique(np.linspace(0, len(one) - 1, min(count, len(one))).round().astype(int))
    labels, images, columns = one.y.float().cpu().numpy(), shown_images(one), min(len(rows), 10)
    lines, inches, top = -(-len(rows) // columns), min(0.62, WIDTH / columns / _GAP), float(labels[rows].max())
    figure, ax = plt.subplots(figsize=(inches * columns * _GAP, inches * _HIGH * lines), layout="constrained")
    for place, i in enumerate(rows):
        left, above = (place % columns) * _GAP, (place // columns) * _HIGH + 0.3
        ax.imshow(images[i], extent=(left, left + 1, above + 1, above), interpolation="nearest")
        best = int(labels[i].argmax())
        words = f"{data.classes[best][:7]} {labels[i, best]:.2f}"
        ax.text(left + 0.5, above - 0.04, words, ha="center", va="bottom", fontsize=6)
        own = data.classes.index(str(true[i])) if len(true) and str(true[i]) in data.classes else -1
        _bars(ax, left, above + 1.55, labels[i] / top, own)
    ax.set(xlim=(-0.02, columns * _GAP - 0.08), ylim=(lines * _HIGH - 0.05, 0), aspect=data.shape[1] / data.shape[2])
    ax.axis("off")
    return figure


def _bars(ax: Axes, left: float, bottom: float, label: np.ndarray, own: int) -> None:
    """A label as bars, the one of class ``own`` orange."""
    for c, weight in enumerate(label):
        corner, wide = (left + c / len(label), bottom), 0.8 / len(label)
        colour = "#E69F00" if c == own else "#0072B2"
        ax.add_patch(Rectangle(corner, wide, -0.48 * float(weight), color=colour, linewidth=0))
    ax.plot([left, left + 1], [bottom, bottom], color=GREY, linewidth=0.5)


def accuracy_by_base(table: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Test accuracy by the number of base examples: a line an algorithm, dashed for what learns no labels, a panel a
    (source, target, test_network).

    Columns source, target, test_network, algorithm, base_examples, set_seed, repetition and accuracy. Bars are 95 % t
    intervals over sets, over repetitions where there is one set. ``published`` has the columns target, algorithm and
    base_examples, source if sources differ, and published, published_deviation and certainty: stars, grey where the
    number is only recalled.
    """
    return _curves(table, "base_examples", "Base examples", published)


def step_curve(table: pd.DataFrame) -> Figure:
    """Test accuracy by how many steps more or fewer than chosen for it a set is trained on.

    Columns as of :func:`accuracy_by_base`, and offset.
    """
    figure = _curves(table, "offset", "Steps beside those chosen", None)
    for ax in figure.axes:
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    return figure


def accuracy_by_target(table: pd.DataFrame) -> Figure:
    """Test accuracy by how many target images labels were learned from. Columns as of :func:`accuracy_by_base`, and
    target_size.
    """
    return _curves(table, "target_size", "Target images", None)


def _curves(table: pd.DataFrame, across: str, label: str, published: pd.DataFrame | None) -> Figure:
    shared = ["source", "target", "test_network"]
    need(table, [*shared, "algorithm", across, *UNITS, "accuracy"])
    panels, shades = table[shared].drop_duplicates().values.tolist(), algorithm_colours(table["algorithm"])
    figure, axes = side_by_side(len(panels), 2.7)
    for ax, panel in zip(axes, panels, strict=True):
        here = table[(table[shared] == panel).all(axis=1)]
        for algorithm, colour in shades.items():
            own = here[here["algorithm"] == algorithm]
            means = [unit_means(rows, "accuracy", UNITS)[1] for _, rows in own.groupby(across)]
            if not means:
                continue
            x, both = levels(own[across]), np.array([mean_and_half_width(one[None]) for one in means])[:, :, 0]
            dashes: Any = (0, (4, 2)) if "labels" in str(algorithm) else "-"
            style: dict[str, Any] = {
                "color": colour,
                "linestyle": dashes,
                "linewidth": 1.3,
                "marker": "o",
                "markersize": 3,
            }
            ax.errorbar(x, both[:, 0], both[:, 1], elinewidth=0.9, capsize=1.5, **style)
            for value in x:
                what = dict(zip(shared, panel, strict=True)) | {"algorithm": algorithm, across: value}
                published_mark(ax, value, published, what, edge=colour)
        if min(levels(here[across])) > 0:
            ax.set_xscale("log")
        ax.set_xticks(levels(here[across]), [f"{value:g}" for value in levels(here[across])])
        ax.minorticks_off()
        ax.set(xlabel=label)
        ax.set_title(" · ".join([_way(panel[0], panel[1]), panel[2]]), fontsize="small")
        ax.grid(axis="y", linewidth=0.5, alpha=0.4)
    axes[0].set_ylabel("Test accuracy")
    key(figure, shades, published)
    return figure


def _way(source: str, target: str) -> str:
    return str(target) if source == target else f"{source} → {target}"


def algorithm_colours(column: pd.Series) -> dict[str, str]:
    """A colour for each algorithm of a column: what learns first, then the baselines, then others."""
    known, found = list(ALGORITHM_COLOURS), list(column.unique())
    ordered = sorted(found, key=lambda name: (known.index(name) if name in known else len(known), name))
    strangers = [name for name in ordered if name not in known]
    spare = {name: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, name in enumerate(strangers)}
    return {name: ALGORITHM_COLOURS.get(name) or spare[name] for name in ordered}


def transfer_matrix(table: pd.DataFrame, across: str = "test_network") -> Figure:
    """Mean test accuracy by algorithm and, ``across``, "test_network", "optimiser", "set_seed" or "variant" (what else
    is varied), with half its 95 % t interval.

    Columns source, target, network, base_examples, algorithm, ``across``, set_seed, repetition and accuracy. A panel a
    (source, target, network, base_examples); intervals as of :func:`accuracy_by_base`.
    """
    checks.one_of("across", across, ("test_network", "optimiser", "set_seed", "variant"))
    shared = ["source", "target", "network", "base_examples"]
    need(table, [*shared, "algorithm", across, *UNITS, "accuracy"])
    panels = table[shared].drop_duplicates().values.tolist()
    kinds, algorithms = levels(table[across]), list(algorithm_colours(table["algorithm"]))
    figure, axes = side_by_side(len(panels), 0.34 * len(algorithms) + 1.0)
    means = table.groupby([*shared, across, "algorithm"])["accuracy"].mean()
    low, high = float(means.min()), float(means.max())
    for ax, panel in zip(axes, panels, strict=True):
        here = table[(table[shared] == panel).all(axis=1)]
        middle = np.full((len(algorithms), len(kinds)), np.nan)
        for (kind, algorithm), own in here.groupby([across, "algorithm"]):
            x, y = kinds.index(kind), algorithms.index(algorithm)
            mean, half = mean_and_half_width(unit_means(own, "accuracy", UNITS)[1][None])
            middle[y, x] = mean[0]
            words = f"{mean[0]:.3f}" + ("" if np.isnan(half[0]) else f"\n± {half[0]:.3f}")
            pale = mean[0] < low + 0.5 * (high - low)
            ax.text(x, y, words, ha="center", va="center", fontsize=6, color="black" if pale else "white")
        ax.imshow(middle, cmap="Blues", vmin=low - 0.3 * (high - low) - 1e-6, vmax=high, aspect="auto")
        ax.set_xticks(range(len(kinds)), kinds, rotation=20, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(algorithms)), algorithms)
        ax.tick_params(length=0, labelsize="small")
        ax.set_title(f"{_way(*panel[:2])}\n{panel[2]}, N = {panel[3]}", fontsize="small")
    return figure


def time_line(history: pd.DataFrame, window: int = 50, published: pd.DataFrame | None = None) -> Figure:
    """How labels came about: accuracy on target images while learning, faint and as the mean of ``window`` iterations,
    validation accuracies as dots, and ticks where a new network began.

    Columns dataset, method, ipc, set_seed, iteration, component ("accuracy", "validation_accuracy", "validation_steps",
    "reset") and value; of several seeds the first is drawn, a panel a (dataset, method, ipc), and variant where there
    is that column. ``published`` has the
    columns iteration, published, published_deviation and certainty, and any of dataset, method and ipc: stars.
    """
    need(history, ["dataset", "method", "ipc", "set_seed", "iteration", "component", "value"])
    checks.whole("window", window)
    first = history[history["set_seed"] == history["set_seed"].min()]
    if not (first["component"] == "validation_accuracy").any():
        raise ValueError("the history has no component 'validation_accuracy': that of label distillation is needed")
    shared = ["dataset", "method", "ipc"] + ["variant"] * ("variant" in history)
    panels = first[shared].drop_duplicates().values.tolist()
    figure, axes = side_by_side(len(panels), 2.4)
    for ax, panel in zip(axes, panels, strict=True):
        here = first[(first[shared] == panel).all(axis=1)]
        curves = here.pivot(index="iteration", columns="component", values="value")
        _time_line(ax, curves, window, METHOD_COLOURS.get(panel[1], "#0072B2"))
        for iteration in [] if published is None else published["iteration"].unique():
            what = dict(zip(shared, panel, strict=True)) | {"iteration": iteration}
            published_mark(ax, float(iteration), published, what)
        words = [panel[0], METHOD_NAMES.get(panel[1], panel[1]), f"IPC {panel[2]}", *filter(None, panel[3:])]
        ax.set_title(" · ".join(words), fontsize="small")
        ax.set(xlabel="Iteration", ylim=(0, 1.02))
    axes[0].set_ylabel("Accuracy")
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _time_line(ax: Axes, curves: pd.DataFrame, window: int, colour: str) -> None:
    ax.plot(curves.index, curves["accuracy"], color=colour, alpha=0.15, linewidth=0.6)
    smooth = curves["accuracy"].rolling(window, min_periods=1).mean()
    ax.plot(curves.index, smooth, color=colour, linewidth=1.3, label="On target images")
    told = curves["validation_steps"].ne(curves["validation_steps"].shift(fill_value=0.0))
    told |= curves["validation_accuracy"].ne(curves["validation_accuracy"].shift(fill_value=0.0))
    known = curves["validation_accuracy"][told]
    ax.plot(known.index, known, "o-", color="black", markersize=3, linewidth=0.8, label="Validation, fresh network")
    ends = curves.index[curves["reset"] > 0]
    ax.plot(ends, np.full(len(ends), 0.02), "|", color=GREY, markersize=8, label="New network begins")
