"""How much is computed at once, and in which arithmetic: a function of device and sizes, never of a clock or of free
memory.

On a CPU small networks gain from running together (one grouped convolution for all of them) and wide ones lose; wide
ones gain from small slices of a batch, whose feature maps stay in reused memory, and from a compiled step. On a GPU
everything goes together up to a fixed number of activations. ``docs/performance.md`` has the measurements.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from ddanalysis import checks
from ddanalysis.architectures import Architecture
from ddanalysis.layers import Parameters

# All in numbers of the largest feature map, by device type; the CPU's are where the measured gain turns into a loss.
TOGETHER = {"cpu": 2**17, "cuda": 2**26}  # a network whose batch is larger than this runs alone
PASS = {"cpu": 2**20, "cuda": 2**28}  # networks that run together have at most this much in one pass
SLICE = {"cpu": 2**21, "cuda": 2**28}  # a network that runs alone has its batch cut into slices of at most this
RECORDED = {"cpu": 0, "cuda": 2**22}  # a pass of at most this waits for its launches


@dataclass(frozen=True)
class Compute:
    """Arithmetic of the forward and backward pass.

    ``precision`` "bfloat16" is autocast over float32 weights: equal accuracy, but near ties in predictions can flip.
    ``compiled`` uses ``torch.compile``: it needs a C++ compiler on a CPU and pays off after minutes of work on wide
    networks.
    """

    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        checks.one_of("precision", self.precision, ("float32", "bfloat16"))
        if self.compiled and not any(shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++") if c):
            raise ValueError(
                "compiled is True, but there is no C++ compiler (CXX, g++ or clang++): use compiled = False"
            )


def networks_together(architecture: Architecture, batch: int, device: torch.device) -> int:
    """Networks in one pass over a batch of ``batch`` images each; 1 = one after the other."""
    activations = architecture.widest * batch
    if activations > TOGETHER[device.type]:
        return 1
    return max(PASS[device.type] // activations, 1)


def images_per_pass(architecture: Architecture, networks: int, device: torch.device) -> int:
    """Images of each of ``networks`` networks in one pass of an evaluation."""
    limit = SLICE if networks == 1 else PASS
    return max(limit[device.type] // (architecture.widest * networks), 1)


def waits_for_launches(architecture: Architecture, networks: int, images: int, device: torch.device) -> bool:
    """Whether a pass of ``networks`` networks over ``images`` images each is better recorded
    (:mod:`ddanalysis.recorded`).
    """
    return architecture.widest * networks * images <= RECORDED[device.type]


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``n`` things."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def padded(t: torch.Tensor, size: int) -> torch.Tensor:
    """``t`` with zeros up to ``size`` rows, so that one compiled shape serves every slice; they are to weigh 0."""
    return t if len(t) >= size else torch.cat([t, t.new_zeros(size - len(t), *t.shape[1:])])


@cache
def loss_function(architecture: Architecture, compute: Compute) -> Callable[..., tuple[torch.Tensor, Parameters]]:
    """``f(p, x, y, w)``: the weighted sum of cross-entropies, and new running statistics of batch normalisation.

    x (n, K * c, h, w), y (n, K) ids or (n, K, classes) soft labels, w (n, K) weights, 1 / batch for a mean and 0 for
    padding.
    """

    def loss(p: Parameters, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, Parameters]:
        updated: Parameters = {}
        logits = _autocast(architecture, compute, p, x, updated)
        if y.is_floating_point():
            each = -(y * F.log_softmax(logits, 2)).sum(2)
        else:
            each = F.cross_entropy(logits.transpose(1, 2), y, reduction="none")
        return (each * w).sum(), updated

    return torch.compile(loss, dynamic=False) if compute.compiled else loss


@cache
def logits_function(architecture: Architecture, compute: Compute) -> Callable[[Parameters, torch.Tensor], torch.Tensor]:
    """``f(p, x)``: logits (n, K, classes) of images (n, K * c, h, w), in evaluation mode."""

    def logits(p: Parameters, x: torch.Tensor) -> torch.Tensor:
        return _autocast(architecture, compute, p, x, None)

    return torch.compile(logits, dynamic=False) if compute.compiled else logits


def _autocast(
    architecture: Architecture, compute: Compute, p: Parameters, x: torch.Tensor, updated: Parameters | None
) -> torch.Tensor:
    if compute.precision == "float32":
        return architecture.logits(p, x, updated)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return architecture.logits(p, x, updated).float()
