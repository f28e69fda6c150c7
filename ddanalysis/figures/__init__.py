"""Figures: each is a function of a table of results and returns a matplotlib ``Figure``, open in pyplot.

Nothing is computed here but the means and intervals that are drawn. Sizes are those of a paper's text width; type and
axes are as the theme in force has them.
"""

from ddanalysis.figures.pools import agreement_panels, recognition_curves
from ddanalysis.figures.sets import accuracy_along, accuracy_points, gain_intervals, image_grid, loss_curves, set_grid
from ddanalysis.figures.style import METHOD_COLOURS, METHOD_NAMES, SPARE_COLOURS, colours

__all__ = [
    "METHOD_COLOURS",
    "METHOD_NAMES",
    "SPARE_COLOURS",
    "accuracy_along",
    "accuracy_points",
    "agreement_panels",
    "colours",
    "gain_intervals",
    "image_grid",
    "loss_curves",
    "recognition_curves",
    "set_grid",
]
