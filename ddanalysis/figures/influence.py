"""What single distilled images teach: which test images they help or hurt, how sure that is, and what estimates say."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddanalysis import checks
from ddanalysis.analysis.influence_estimates import CEILING
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet
from ddanalysis.figures.sets import image_grid
from ddanalysis.figures.style import GREY, METHOD_NAMES, colours, in_order, legend, need, side_by_side
from ddanalysis.intervals import mean_and_half_width, unit_means

if TYPE_CHECKING:
    from ipywidgets import VBox

DIRECTIONS = {"helped": "Most helped", "hurt": "Most hurt"}
GRID_COLUMNS = ["dataset", "method", "ipc", "set_seed", "image", "direction", "rank", "test_image", "test_class"]


def influence_grid(table: pd.DataFrame, one: DistilledSet, data: ImageData, direction: str = "helped") -> Figure:
    """Distilled images, and beside each the test images that it helps (or hurts) most (Yang et al. 2024, Fig. 10).

    ``table`` is that of ``analysis.influence.top_influences`` for the set ``one``, or those of its rows that are to be
    shown: a row of the figure for every image in it. Pixels are de-normalised and clipped to [0, 1] for display.
    """
    checks.one_of("direction", direction, DIRECTIONS)
    here = rows_of(table, one)
    here = here[here["direction"] == direction].sort_values(["image", "rank"])
    if not len(here):
        raise ValueError(f"the table has no {direction} images of {one.name}: at least one is needed to draw a figure")
    counts = here.groupby("image")["rank"].count()
    if counts.nunique() > 1:
        raise ValueError(f"the images of {one.name} have from {counts.min()} to {counts.max()} rows: give each as many")
    images, titles = [], []
    for image, rows in here.groupby("image"):
        images += [one.x[[image]].cpu(), data.test_x[rows["test_image"].to_numpy(copy=True)].cpu()]
        titles += [data.classes[int(one.labels()[image])], *rows["test_class"]]
    labels = [str(image) for image in counts.index]
    figure = image_grid(data.denormalise(torch.cat(images)), int(counts.iloc[0]) + 1, titles, labels)
    method = METHOD_NAMES.get(one.method, one.method)
    figure.suptitle(f"{method}: distilled image · {DIRECTIONS[direction].lower()} test images", color=GREY)
    return figure


def rows_of(table: pd.DataFrame, one: DistilledSet) -> pd.DataFrame:
    """The rows of a table of top influences that are about one set."""
    need(table, GRID_COLUMNS)
    return table[(table["method"] == one.method) & (table["ipc"] == one.ipc) & (table["set_seed"] == one.seed)]


def influence_noise(table: pd.DataFrame) -> Figure:
    """How sure influences are: a dot a distilled image, its influences' size over the standard error of them.

    ``table`` is that of ``analysis.influence.noise``, of several initialisations. A panel a (dataset, ipc, network);
    above the line influences are larger than their standard error.
    """
    need(table, ["dataset", "method", "ipc", "network", "spread", "influence_se"])
    methods = in_order(table["method"])
    panels = table[["dataset", "network", "ipc"]].drop_duplicates().values.tolist()
    figure, axes = side_by_side(len(panels), 2.6)
    sure = table.dropna(subset=["influence_se"])
    if not len(sure):
        raise ValueError("the table has no standard errors: influences of at least 2 initialisations are needed")
    values = sure[["spread", "influence_se"]].to_numpy()
    ends = np.array([values[values > 0].min() / 1.3, values.max() * 1.3])
    for ax, (dataset, network, ipc) in zip(axes, panels, strict=True):
        here = sure[(sure["dataset"] == dataset) & (sure["network"] == network) & (sure["ipc"] == ipc)]
        ax.plot(ends, ends, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
        for method in methods:
            own = here[here["method"] == method]
            colour = colours(methods)[method]
            ax.scatter(own["influence_se"], own["spread"], s=10, color=colour, alpha=0.6, linewidths=0, zorder=2)
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=f"{dataset} · IPC {ipc} · {network}")
        ax.set_xlabel("Standard error of the influence")
    axes[0].set_ylabel("Size of the influence (nats)")
    legend(figure, {METHOD_NAMES.get(m, m): colours(methods)[m] for m in methods}, marker="o")
    return figure


def estimator_points(table: pd.DataFrame, value: str = "spearman") -> Figure:
    """How well estimates of influence rank test images, beside another initialisation's exact influences.

    ``table`` is that of ``analysis.influence_estimates.scored``; ``value`` is "spearman" or "pearson". A panel a
    (dataset, ipc, network), a faint dot the mean over the images of one initialisation, a diamond the mean, a bar its
    95 % t interval over sets, over initialisations where there is one set. Dashed lines are the means for another
    initialisation's exact influences: what an estimate that does not know the initialisation can reach.
    """
    checks.one_of("value", value, ("spearman", "pearson"))
    need(table, ["dataset", "method", "ipc", "network", "estimator", "set_seed", "network_seed", value])
    methods, estimators = in_order(table["method"]), list(dict.fromkeys(table["estimator"]))
    panels = table[["dataset", "network", "ipc"]].drop_duplicates().values.tolist()
    figure, axes = side_by_side(len(panels), 0.28 * len(estimators) + 1.2)
    for ax, (dataset, network, ipc) in zip(axes, panels, strict=True):
        here = table[(table["dataset"] == dataset) & (table["network"] == network) & (table["ipc"] == ipc)]
        for place, estimator in enumerate(estimators):
            for m, method in enumerate(methods):
                rows = here[(here["estimator"] == estimator) & (here["method"] == method)].dropna(subset=[value])
                if len(rows):
                    height = place + (m - (len(methods) - 1) / 2) * 0.7 / len(methods)
                    _correlation(ax, height, rows, value, colours(methods)[method], estimator == CEILING)
        ax.set(title=f"{dataset} · IPC {ipc} · {network}", xlabel=f"{value.capitalize()} correlation")
        ax.set_yticks(range(len(estimators)), estimators)
        ax.set_ylim(len(estimators) - 0.5, -0.5)
        ax.grid(axis="x", linewidth=0.5, alpha=0.4)
    legend(figure, {METHOD_NAMES.get(m, m): colours(methods)[m] for m in methods}, marker="D")
    return figure


def _correlation(ax: Axes, height: float, rows: pd.DataFrame, value: str, colour: str, ceiling: bool) -> None:
    """One method and estimator: initialisations, their mean, its interval, and a line for the ceiling."""
    each = rows.groupby(["set_seed", "network_seed"])[value].mean()
    _, means = unit_means(rows, value, ("set_seed", "network_seed"))
    middle, half = mean_and_half_width(means[None])
    ax.scatter(each, np.full(len(each), height), s=9, color=colour, alpha=0.35, linewidths=0, zorder=2)
    ax.errorbar(middle, [height], xerr=half, color=colour, linewidth=1.3, capsize=2.5, zorder=3)
    ax.plot(
        middle[0], height, "D", color=colour, markersize=3.8, markeredgecolor="white", markeredgewidth=0.5, zorder=4
    )
    if ceiling:
        ax.axvline(middle[0], color=colour, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)


def _png(figure: Figure) -> bytes:
    """The figure as a picture; it is closed."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight")
    plt.close(figure)
    return drawn.getvalue()


def influence_explorer(table: pd.DataFrame, sets: Sequence[DistilledSet], data: ImageData) -> "VBox":
    """Menus of set, class, image and direction, and the grid of the image that is chosen; for a notebook.

    ``table`` is that of ``analysis.influence.top_influences`` for all ``sets``, which are offered by name.
    """
    import ipywidgets

    if not sets:
        raise ValueError("no distilled sets were given: at least 1 is needed")
    if lacking := [one.name for one in sets if not len(rows_of(table, one))]:
        raise ValueError(f"the table has no rows of {lacking[0]}: give the top influences of every set")
    by_name = {one.name: one for one in sets}
    name = ipywidgets.Dropdown(options=list(by_name), description="set")
    image_class = ipywidgets.Dropdown(options=list(data.classes), description="class")
    image = ipywidgets.Dropdown(description="image")
    direction = ipywidgets.Dropdown(options=[(text, key) for key, text in DIRECTIONS.items()], description="shown")
    shown = ipywidgets.Image(format="png")  # an Output would run the batch client's hooks, which can lose a message

    def offer(*_: object) -> None:
        labels = by_name[name.value].labels()
        image.options = (labels == data.classes.index(image_class.value)).nonzero()[:, 0].tolist()
        image.value = next(iter(image.options), None)

    def draw(*_: object) -> None:
        one = by_name[name.value]
        own = rows_of(table, one).loc[lambda t: (t["image"] == image.value) & (t["direction"] == direction.value)]
        shown.value = _png(influence_grid(own, one, data, direction.value)) if len(own) else b""

    offer()
    draw()
    for menu in (name, image_class):
        menu.observe(offer, "value")
    for menu in (name, image, direction):
        menu.observe(draw, "value")
    return ipywidgets.VBox([ipywidgets.HBox([name, image_class, image, direction]), shown])
