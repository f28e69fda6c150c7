"""Sets made step by step, their soft labels, what networks make of them, and what they are like."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Wedge

from ddanalysis import checks
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet, fits, pixels
from ddanalysis.figures.style import GREY, SPARE_COLOURS, WIDTH, need, points, side_by_side
from ddanalysis.intervals import mean_and_half_width, unit_means

if TYPE_CHECKING:
    from ddanalysis.analysis.analogy import Analogy

KIND_COLOURS = {"hard": "#0072B2", "soft": "#D55E00"}
BEFORE, AFTER = "#BDBDBD", "#0072B2"
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73")
"""Of the three flowers, as regions and slices of labels."""
MODE_NAMES = {
    "selection": "Selection",
    "location": "Location",
    "label": "Label",
    "location_and_label": "Both",
    "2points": "Two points",
    "true": "All flowers",
}
UNITS = ("set_seed", "network_seed")
RECALLED = "#9A9A9A"
_GAP = 1.06  # from image to image, in image widths
TURNED: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
_STAR: dict[str, Any] = {
    "linestyle": "",
    "marker": "*",
    "markersize": 9,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
}

# --------------------------------------------------------------------------------------------------------- images


def step_grid(one: DistilledSet, data: ImageData) -> Figure:
    """The images of a set made step by step: a row a step, which goes on below after 10 images, in the order of
    training.

    At the left the number of the step and its learning rate in each pass; above an image its class, or the three
    classes of the highest weight. Pixels are de-normalised and clipped to [0, 1]. ``ValueError`` for a set without an
    order.
    """
    batches, rates = steps_and_rates(one)
    fits(one, data)
    lines = 3 if one.y.ndim == 2 and one.n_classes > 2 else one.n_classes if one.y.ndim == 2 else 1
    above = 0.06 + 0.21 * lines
    images, columns = shown_images(one), min(max(map(len, batches)), 10)
    cells = [batch[i : i + columns] for batch in batches for i in range(0, len(batch), columns)]
    first = np.cumsum([0] + [-(-len(batch) // columns) for batch in batches])[:-1]
    inches = min(0.62, WIDTH * 0.88 / columns)
    high = (1 + above) * data.shape[1] / data.shape[2]
    figure, ax = plt.subplots(
        figsize=(inches * columns * _GAP + 0.65, inches * high * len(cells) + 0.1), layout="constrained"
    )
    for top, batch in zip(np.arange(len(cells)) * (1 + above) + above, cells, strict=True):
        for i, row in enumerate(batch):
            ax.imshow(images[row], extent=(i * _GAP, i * _GAP + 1, top + 1, top), interpolation="nearest")
            words = _words(one.y[row], data.classes)
            ax.text(i * _GAP + 0.5, top - 0.05, words, ha="center", va="bottom", fontsize=6, linespacing=1.1)
    ax.set(xlim=(-0.02, columns * _GAP - 0.04), ylim=(len(cells) * (1 + above) + 0.02, 0))
    ax.set_aspect(data.shape[1] / data.shape[2])
    names = [f"Step {i + 1}\n{_rates(own)}".strip() for i, own in enumerate(rates)]
    ax.set_yticks(first * (1 + above) + above + 0.5, names, fontsize="x-small")
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def steps_and_rates(one: DistilledSet) -> tuple[list[list[int]], list[list[float]]]:
    """The rows of every distinct step in the order of training, and its learning rate in each pass."""
    if one.order is None:
        raise ValueError(f"the set {one.name} has no order: only one that is made step by step has steps to show")
    rates = [] if one.learning_rates is None else one.learning_rates.expand(len(one.order)).tolist()
    found: dict[tuple[int, ...], list[float]] = {}
    for t, batch in enumerate(one.order.tolist()):
        found.setdefault(tuple(batch), []).extend(rates[t : t + 1])
    return [list(batch) for batch in found], list(found.values())


def _rates(rates: Sequence[float]) -> str:
    shown = [f"{rate:.3g}" for rate in rates[:3]]
    return "\n".join(shown + (["…"] if len(rates) > 3 else []))


def shown_images(one: DistilledSet) -> np.ndarray:
    """Images (n, h, w, 3) to look at."""
    checks.one_of("number of channels", one.x.shape[1], (1, 3))
    return pixels(one).clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def _words(label: torch.Tensor, classes: Sequence[str]) -> str:
    """A class, or the three of the highest weight, a line each."""
    if label.ndim == 0:
        return classes[int(label)][:9]
    best = label.topk(min(3, len(label)))
    both = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return "\n".join(f"{classes[c][:8]} {weight:.2f}" for c, weight in both)


# ------------------------------------------------------------------------------------------------------- accuracy


def accuracy_against(
    table: pd.DataFrame, setting: str, by: str = "labels", published: pd.DataFrame | None = None
) -> Figure:
    """Test accuracy by the values of a ``setting``: a faint dot a network, a diamond at the mean, a bar for its 95 %
    t interval over sets, each the mean of its networks (over networks where sets do not differ).

    Columns dataset, network, initialisation, set_seed, network_seed, accuracy, ``setting`` and ``by``. A panel a
    (dataset, network, initialisation), a colour a value of ``by``. ``published`` has published, published_deviation and
    certainty, as ``published.beside`` adds them, beside those of the columns above that say what a number is of: stars,
    grey where it is only recalled.
    """
    need(table, ["dataset", "network", "initialisation", *UNITS, "accuracy", setting, by])
    keys = ["dataset", "network", "initialisation", setting, by]
    shared = ["dataset", "network", "initialisation"]
    panels = table[shared].drop_duplicates().values.tolist()
    values, kinds = levels(table[setting]), kind_colours(table[by])
    words = [_word(value) for value in values]
    figure, axes = side_by_side(len(panels), 2.5 + (0.045 * max(map(len, words)) if _long(words) else 0))
    for ax, (dataset, network, initialisation) in zip(axes, panels, strict=True):
        here = table[(table[shared] == [dataset, network, initialisation]).all(axis=1)]
        for (place, (kind, colour)), (x, value) in _crossed(kinds, values):
            at = x + (place - (len(kinds) - 1) / 2) * 0.7 / len(kinds)
            rows = here[(here[by] == kind) & (here[setting] == value)]
            points(ax, at, 0.4 / len(kinds), rows, colour, UNITS)
            if len(rows):
                published_mark(
                    ax, at, published, dict(zip(keys, (dataset, network, initialisation, value, kind), strict=True))
                )
        ax.set_xticks(range(len(words)), words, **(TURNED if _long(words) else {}))
        ax.set(xlabel=setting.replace("_", " ").capitalize(), xlim=(-0.6, len(words) - 0.4))
        ax.tick_params(axis="x", length=0)
        ax.grid(axis="y", linewidth=0.5, alpha=0.4)
        ax.set_axisbelow(True)
        ax.set_title(f"{dataset} · {network} · {initialisation}", fontsize="small")
    axes[0].set_ylabel("Test accuracy")
    key(figure, kinds, published)
    return figure


def _crossed(kinds: dict[Any, str], values: list[Any]) -> list[tuple[Any, Any]]:
    return [(kind, value) for kind in enumerate(kinds.items()) for value in enumerate(values)]


def levels(column: pd.Series) -> list[Any]:
    """The values of a column: numbers in their order, words in that of the table."""
    found = list(column.dropna().unique())
    return sorted(found) if pd.api.types.is_numeric_dtype(column) else found


def kind_colours(column: pd.Series) -> dict[Any, str]:
    """A colour for each value of a column, in the order of :func:`levels`."""
    found = levels(column)
    spare = {kind: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, kind in enumerate(found)}
    return {kind: KIND_COLOURS.get(str(kind), spare[kind]) for kind in found}


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _long(words: Sequence[str]) -> bool:
    """Whether ticks are to be turned."""
    return sum(map(len, words)) > 30


def published_mark(
    ax: Axes,
    at: float,
    published: pd.DataFrame | None,
    what: dict[str, Any],
    level: bool = False,
    edge: str = "white",
) -> None:
    """A star for each published number of ``what``, with its deviation, grey where it is recalled; ``level`` lays it on
    its side. Of ``what`` those count that ``published`` has as columns.
    """
    if published is None or not len(published):
        return
    need(published, ["published", "published_deviation", "certainty"])
    same = same_rows(published, {k: v for k, v in what.items() if k in published.columns})
    for one in published[same].dropna(subset="published").drop_duplicates("published").itertuples():
        colour = RECALLED if str(one.certainty).startswith("recalled") else "black"
        error = None if pd.isna(one.published_deviation) else one.published_deviation
        x, y = (one.published, at) if level else (at, one.published)
        bars: dict[str, Any] = {"xerr" if level else "yerr": error}
        ax.errorbar(x, y, **bars, color=colour, elinewidth=0.8, zorder=5, **_STAR | {"markeredgecolor": edge})


def key(figure: Figure, kinds: dict[Any, str], published: pd.DataFrame | None = None) -> None:
    """The legend of all panels, below them: kinds, and what stars are."""
    style: dict[str, Any] = {"linestyle": "", "marker": "D", "markersize": 4}
    handles = [Line2D([], [], color=colour, label=str(kind), **style) for kind, colour in kinds.items()]
    handles += _stars(published)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)


def _stars(published: pd.DataFrame | None) -> list[Line2D]:
    if published is None or not published["published"].notna().any():
        return []
    recalled = published.dropna(subset="published")["certainty"].str.startswith("recalled")
    printed = [Line2D([], [], color="black", label="Published", **_STAR)] if (~recalled).any() else []
    return printed + ([Line2D([], [], color=RECALLED, label="Recalled, unverified", **_STAR)] if recalled.any() else [])


def before_after(
    table: pd.DataFrame,
    by: Sequence[str] = ("mode", "initialisation", "labels"),
    published: pd.DataFrame | None = None,
) -> Figure:
    """Accuracy before and after the steps of the sets: a pair of bars for each combination of ``by``, a panel a
    dataset.

    Columns dataset, network, ``by``, set_seed, network_seed, accuracy_before (missing where there is no network) and
    accuracy. Dots are networks, intervals and ``published`` as of :func:`accuracy_against`. ``ValueError`` where a pair
    would mix architectures.
    """
    by = list(by)
    need(table, ["dataset", "network", *by, *UNITS, "accuracy_before", "accuracy"])
    mixed = table.groupby(["dataset", *by], dropna=False)["network"].nunique()
    if mixed.max() > 1:
        raise ValueError(f"bars of {mixed.idxmax()} would mix networks of several architectures: add network to by")
    datasets, groups = list(table["dataset"].unique()), table[by].drop_duplicates().values.tolist()
    figure, axes = side_by_side(len(datasets), 0.36 * len(groups) + 0.7)
    for ax, dataset in zip(axes, datasets, strict=True):
        for place, group in enumerate(groups):
            what = {"dataset": dataset} | dict(zip(by, group, strict=True))
            rows = table[same_rows(table, what)]
            if len(rows):
                _pair(ax, place, rows)
                published_mark(ax, place + 0.19, published, what, level=True)
        ax.set_title(dataset)
        ax.set(xlabel="Test accuracy", xlim=(0, 1.02))
        ax.grid(axis="x", linewidth=0.5, alpha=0.4)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(groups)), [", ".join(str(v) for v in group if not pd.isna(v)) for group in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    handles = [Patch(color=BEFORE, label="Before"), Patch(color=AFTER, label="After"), *_stars(published)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def same_rows(table: pd.DataFrame, what: dict[str, Any]) -> np.ndarray:
    """Which rows have all these values; a missing one is like another."""
    columns = [table[k].isna() if pd.isna(v) else (table[k] == v).fillna(False) for k, v in what.items()]
    return np.logical_and.reduce(columns).astype(bool)


def _pair(ax: Axes, place: int, rows: pd.DataFrame) -> None:
    """Both bars of a group, the networks after the steps, and the intervals of both means."""
    for value, offset, colour in (("accuracy_before", -0.19, BEFORE), ("accuracy", 0.19, AFTER)):
        known = rows.dropna(subset=value)
        if not len(known):
            continue
        middle, half = mean_and_half_width(unit_means(known, value, UNITS)[1][None])
        ax.barh(place + offset, middle, 0.36, color=colour, zorder=2)
        ax.errorbar(middle, place + offset, xerr=half, color="black", linewidth=0.8, capsize=1.5, zorder=4)
    across = place + 0.19 + (np.linspace(-0.13, 0.13, len(rows)) if len(rows) > 1 else np.zeros(1))
    alpha = 0.6 if len(rows) <= 50 else 0.12
    ax.scatter(rows["accuracy"], across, s=3, color=GREY, alpha=alpha, linewidths=0, zorder=3)


# ------------------------------------------------------------------------------------------- what they are like


def analogy_panels(analogies: "Sequence[Analogy]") -> Figure:
    """Iris by few prototypes: a row a mode, a column a frame. Regions have the colour of their class, stronger where it
    is surer; dots are flowers, pies the labels of prototypes, and above is the share of flowers in their own region.
    """
    if not analogies or len({len(one.regions) for one in analogies}) > 1:
        raise ValueError(f"{len(analogies)} analogies: at least one is needed, all of as many frames")
    frames = len(analogies[0].regions)
    size = (WIDTH, 0.3 + 1.35 * len(analogies))
    figure, axes = plt.subplots(len(analogies), frames, figsize=size, squeeze=False, layout="constrained")
    for row, one in zip(axes, analogies, strict=True):
        for frame, ax in enumerate(row):
            _frame(ax, one, frame)
        row[0].set_ylabel(MODE_NAMES[one.mode], fontsize="small")
    figure.supxlabel("Sepal length", fontsize="small")
    figure.supylabel("Sepal width", fontsize="small")
    return figure


def _frame(ax: Axes, one: "Analogy", frame: int) -> None:
    palette = np.array([to_rgb(colour) for colour in CLASS_COLOURS])
    extent = (float(one.across[0]), float(one.across[-1]), float(one.up[0]), float(one.up[-1]))
    share = one.regions[frame].numpy()
    sure = 0.15 + 0.6 * (share.max(-1, keepdims=True) - 1 / 3) * 1.5
    ax.imshow(1 - sure * (1 - palette[share.argmax(-1)]), extent=extent, origin="lower", aspect="auto")
    inside = palette[one.classes.numpy()]
    ax.scatter(one.flowers[:, 0], one.flowers[:, 1], s=4, c=inside, edgecolors="white", linewidths=0.2, zorder=2)
    if len(one.locations[frame]) < len(one.flowers):
        for place, label in zip(one.locations[frame].tolist(), one.labels[frame].tolist(), strict=True):
            _pie(ax, place, label)
    ax.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    ax.set_title(f"{one.notes[frame]}: {one.accuracy[frame]:.0%}", fontsize="x-small", pad=2)


def _pie(ax: Axes, place: Sequence[float], label: Sequence[float]) -> None:
    """A label as a pie; in units of the panel, so that it is round whatever the axes are."""
    inset = ax.inset_axes((place[0] - 0.3, place[1] - 0.3, 0.6, 0.6), transform=ax.transData, zorder=5)
    start = 90.0
    inset.add_patch(Circle((0, 0), 1, facecolor="none", edgecolor="black", linewidth=0.8))
    for share, colour in zip(label, CLASS_COLOURS, strict=True):
        wedge = Wedge((0, 0), 1, start, start + 360 * share, facecolor=colour, linewidth=0)
        inset.add_patch(wedge)
        start += 360 * share
    inset.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    inset.axis("off")


def one_step_curves(table: pd.DataFrame) -> Figure:
    """What one step of linear regression leaves of the loss, by the number of synthetic rows: the table of
    ``analysis.linear_regression.errors_by_rows``.
    """
    need(table, ["rows", "bound", "mean_excess", "measured", "highest"])
    figure, ax = plt.subplots(figsize=(WIDTH * 0.6, 2.6), layout="constrained")
    ax.plot(table["rows"], table["bound"], color="black", linewidth=3, alpha=0.25, label="Lower bound")
    ax.plot(table["rows"], table["mean_excess"], color=AFTER, linewidth=1.3, label="Mean, closed form")
    ax.plot(table["rows"], table["measured"], "o", color=AFTER, markersize=4, label="Mean, measured")
    ax.plot(table["rows"], table["highest"], "^", color="#D55E00", markersize=4, label="Highest, measured")
    ax.set(xlabel="Synthetic rows", ylabel="Excess of the real loss", xticks=table["rows"])
    ax.legend(frameon=False, fontsize="small")
    return figure
