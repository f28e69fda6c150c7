"""Figures: each is a function of a table of results and returns a matplotlib ``Figure``, open in pyplot.

Nothing is computed here but the means and intervals that are drawn. Sizes are those of a paper's text width; type and
axes are as the theme in force has them.
"""

from ddanalysis.figures.hessian import (
    eigenvalue_points,
    overlap_curves,
    spectral_curves,
    stopped_traces,
    trace_curves,
)
from ddanalysis.figures.hypotheses import forest
from ddanalysis.figures.influence import estimator_points, influence_explorer, influence_grid, influence_noise
from ddanalysis.figures.label_distillation import (
    accuracy_by_base,
    accuracy_by_target,
    base_images,
    label_map,
    step_curve,
    time_line,
    transfer_matrix,
)
from ddanalysis.figures.pools import agreement_panels, recognition_curves
from ddanalysis.figures.real_data import embedding_scatter, mixing_curves, pixel_density_curves, pretrained_bars
from ddanalysis.figures.semantics import alikeness_points, enrichment_map
from ddanalysis.figures.sets import accuracy_along, accuracy_points, gain_intervals, image_grid, loss_curves, set_grid
from ddanalysis.figures.soft_labels import accuracy_against, analogy_panels, before_after, one_step_curves, step_grid
from ddanalysis.figures.style import METHOD_COLOURS, METHOD_NAMES, SPARE_COLOURS, colours

__all__ = [
    "METHOD_COLOURS",
    "METHOD_NAMES",
    "SPARE_COLOURS",
    "accuracy_against",
    "accuracy_along",
    "accuracy_by_base",
    "accuracy_by_target",
    "accuracy_points",
    "agreement_panels",
    "alikeness_points",
    "analogy_panels",
    "base_images",
    "before_after",
    "colours",
    "eigenvalue_points",
    "embedding_scatter",
    "enrichment_map",
    "estimator_points",
    "forest",
    "gain_intervals",
    "image_grid",
    "influence_explorer",
    "influence_grid",
    "influence_noise",
    "label_map",
    "loss_curves",
    "mixing_curves",
    "one_step_curves",
    "overlap_curves",
    "pixel_density_curves",
    "pretrained_bars",
    "recognition_curves",
    "set_grid",
    "spectral_curves",
    "step_curve",
    "step_grid",
    "stopped_traces",
    "time_line",
    "trace_curves",
    "transfer_matrix",
]
