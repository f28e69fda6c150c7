"""Pools of networks trained on real data, and what each says of every test image.

Yang et al. 2024, section 4.1: a pool trained to the end on small subsets, and a pool stopped early on all of the data.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ddanalysis import checks, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData, fraction_rows
from ddanalysis.evaluation import small
from ddanalysis.networks import Networks
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe


@dataclass(frozen=True)
class Pool:
    """Test predictions of R networks at U moments of their training."""

    name: str  # "subset" or "early"
    predictions: torch.Tensor  # (R, U, n) class ids
    updates: torch.Tensor  # (R, U) int64, updates done at each moment


def subset_networks(
    data: ImageData,
    architecture: Architecture,
    count: int,
    fractions: tuple[float, float],
    recipe: Recipe,
    seed: int,
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Pool:
    """``count`` networks, each trained on its own class-balanced share s ~ U(``fractions``) of the training images.

    Published: 520 networks, 0.5 to 5 %, 100 epochs of batches of 256, SGD 0.01, momentum 0.9.
    """
    rows = subset_rows(data, count, fractions, seed)
    seeds = [stream_seed(seed, "subset pool", k) for k in range(count)]
    fresh = networks.create(architecture, seeds, device=data.train_x.device)
    trained = training.train(
        fresh, data.train_x, data.train_y, recipe, seeds, rows, compute=compute, checkpoint=checkpoint, progress=progress
    )
    outputs = trained.networks.evaluate(data.test_x, data.test_y, compute)
    updates = torch.tensor([[recipe.total_updates(len(own))] for own in rows])
    return Pool("subset", small(outputs.predictions, data.n_classes)[:, None], updates)


def subset_rows(data: ImageData, count: int, fractions: tuple[float, float], seed: int) -> list[torch.Tensor]:
    """The training rows of each network of a subset pool."""
    checks.whole("count of the subset pool", count)
    low, high = fractions
    if not 0 < low < high <= 1:
        raise ValueError(f"fractions are {fractions}: two numbers are needed, 0 < low < high <= 1")
    shares = low + (high - low) * torch.rand(count, generator=generator(seed, "subset fractions"), dtype=torch.float64)
    return [fraction_rows(data.train_y, float(s), stream_seed(seed, "subset", k)) for k, s in enumerate(shares)]


def early_networks(
    data: ImageData,
    architecture: Architecture,
    count: int,
    recipe: Recipe,
    seed: int,
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Pool:
    """``count`` networks on all training images, their test predictions after every update of ``recipe`` (the first included).

    Published: 30 networks, 196 updates (one epoch) of batches of 256, SGD 0.01, momentum 0.9.
    """
    checks.whole("count of the early-stopping pool", count)
    seeds = [stream_seed(seed, "early pool", k) for k in range(count)]
    fresh = networks.create(architecture, seeds, device=data.train_x.device)
    moments = range(1, recipe.total_updates(len(data.train_y)) + 1)

    def predict(now: Networks) -> Tensors:
        return {"predictions": small(now.evaluate(data.test_x, data.test_y, compute).predictions, data.n_classes)}

    observed = training.train(
        fresh, data.train_x, data.train_y, recipe, seeds, None, predict, moments, compute, checkpoint, progress
    ).observed["predictions"]
    return Pool("early", observed, torch.tensor(list(moments)).expand(count, -1).contiguous())
