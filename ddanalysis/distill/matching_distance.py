"""How far the gradients of real images are from those of distilled ones, K pairs at once.

Zhao et al., *Dataset condensation with gradient matching* (ICLR 2021), section 3.3 and code. Gradients are lists of
tensors (K, ...), one a parameter; distances are (K,), 0 where two gradients are equal.
"""

from collections.abc import Sequence

import torch

from ddanalysis import checks
from ddanalysis.architectures import Architecture

DISTANCES = ("row-cosine", "mse", "cos")
EPSILON = 1e-6
"""Added to the product of two norms, so that a gradient of 0 has distance 1."""

Gradients = Sequence[torch.Tensor]


def matched(architecture: Architecture, distance: str) -> list[str]:
    """The parameters whose gradients ``distance`` looks at: for "row-cosine" those with rows, else all trainable ones.

    Raises ``ValueError`` for an unknown distance.
    """
    checks.one_of("distance of gradients", distance, DISTANCES)
    lowest = 2 if distance == "row-cosine" else 1
    weights = architecture.weights().items()
    return [name for name, w in weights if not w.role.startswith("running") and len(w.shape) >= lowest]


def between(distance: str, real: Gradients, synthetic: Gradients) -> torch.Tensor:
    """The distances (K,) of K pairs of gradients, differentiable in both.

    * "row-cosine", the published one: 1 - cosine of each row, what flows into one output unit, summed over the rows of
      all parameters; those without rows (biases, scales) do not count, given or not
    * "cos": 1 - cosine of the whole gradients
    * "mse": their squared distance, a sum
    """
    checks.one_of("distance of gradients", distance, DISTANCES)
    if distance == "row-cosine":
        pairs = zip(real, synthetic, strict=True)
        parts = [_apart(r.flatten(2), s.flatten(2)).sum(1) for r, s in pairs if r.ndim > 2]
        return torch.stack(parts).sum(0)
    whole = [torch.cat([t.flatten(1) for t in gradients], 1) for gradients in (real, synthetic)]
    return _apart(*whole) if distance == "cos" else (whole[0] - whole[1]).square().sum(1)


def _apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - cosine along the last dimension."""
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + EPSILON)
