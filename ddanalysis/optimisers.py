"""One update of an optimiser on any tensors, and the derivative of one: the steps that an unroll goes along.

For SGD with momentum, v' = mu v + g and w' = w - r v'; plain SGD is its case mu = 0; Adam has two averages in place of
one. Constants and arithmetic are PyTorch's.

What Adam's epsilon does to a step is little, and all there is to the derivative of its first one, a sign but for that.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddanalysis import checks

Betas = tuple[float, float]
EPSILON = 1e-8


@dataclass(frozen=True)
class Optimiser:
    """SGD with ``momentum`` (0: none), or Adam with ``betas``; other constants and the arithmetic are PyTorch's.

    With ``early_epsilon`` Adam adds epsilon to the root of the square before its bias is corrected, which makes it 32
    times as large in the first step: as PyTorch before 1.3, and the library higher (0.2.1), have it.
    """

    kind: str = "sgd"
    momentum: float = 0.0
    betas: Betas = (0.9, 0.999)
    early_epsilon: bool = False

    def __post_init__(self) -> None:
        checks.one_of("optimiser", self.kind, ("sgd", "adam"))
        checks.at_least("momentum", self.momentum, 0)

    def averages(self, like: Tensor) -> tuple[Tensor, ...]:
        """The running averages before the first update: none, the momentum, or Adam's mean and square."""
        count = 2 if self.kind == "adam" else int(self.momentum > 0)
        return tuple(torch.zeros_like(like) for _ in range(count))


def update(
    optimiser: Optimiser,
    weights: Tensor,
    averages: tuple[Tensor, ...],
    gradient: Tensor,
    rate: Tensor | float,
    step: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """New weights and averages after update number ``step`` (counted from 0); any tensors of one shape."""
    if optimiser.kind == "adam":
        averages = adam_averages(optimiser.betas, averages, gradient)
        direction, _, _ = _adam_direction(optimiser, averages, step)
    else:
        direction = gradient.add(averages[0], alpha=optimiser.momentum) if averages else gradient
        averages = (direction,) if averages else ()
    return weights - rate * direction, averages


def adam_averages(betas: Betas, averages: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's mean and square of the gradients after another gradient."""
    mean, square = averages
    return mean.lerp(gradient, 1 - betas[0]), (square * betas[1]).addcmul(gradient, gradient, value=1 - betas[1])


def _adam_direction(optimiser: Optimiser, averages: tuple[Tensor, ...], step: int) -> tuple[Tensor, Tensor, Tensor]:
    """The direction of Adam, the root of the unbiased square, and that with epsilon, by which it is divided."""
    mean, square = averages
    unbiased = [1 - beta ** (step + 1) for beta in optimiser.betas]
    root = (square / unbiased[1]).sqrt()
    divisor = root + (EPSILON / math.sqrt(unbiased[1]) if optimiser.early_epsilon else EPSILON)
    return mean / unbiased[0] / divisor, root, divisor


def back(
    optimiser: Optimiser,
    kept: tuple[Tensor, ...],
    into_weights: Tensor,
    into_averages: tuple[Tensor, ...],
    rate: Tensor,
    step: int,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """One :func:`update` backwards: the adjoints of its gradient and of the averages before it, and its direction."""
    if optimiser.kind == "adam":
        return _back_adam(optimiser, kept, rate * into_weights, into_averages, step)
    along = -rate * into_weights
    if into_averages:
        along = along + into_averages[0]
    return along, tuple(optimiser.momentum * along for _ in into_averages), kept[0] if kept else None


def _back_adam(
    optimiser: Optimiser,
    kept: tuple[Tensor, ...],
    into_step: Tensor,
    into_averages: tuple[Tensor, ...],
    step: int,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """As :func:`back`; the root's infinite slope at 0, where a unit is dead, counts as 0."""
    betas, (gradient, *averages) = optimiser.betas, kept
    unbiased = [1 - beta ** (step + 1) for beta in betas]
    direction, root, divisor = _adam_direction(optimiser, (averages[0], averages[1]), step)
    scaled = into_step / divisor
    into_mean = into_averages[0] - scaled / unbiased[0]
    slope = (0.5 * scaled * direction / (root * unbiased[1])).where(root > 0, 0)
    into_square = into_averages[1] + slope
    along = (1 - betas[0]) * into_mean + 2 * (1 - betas[1]) * gradient * into_square
    return along, (betas[0] * into_mean, betas[1] * into_square), direction
