"""Pools of networks trained on real data, and what each says of every test image.

Yang et al. 2024, section 4.1: a pool trained to the end on small subsets, and a pool stopped early on all of the data.
"""

from collections.abc import Callable, Sequence
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

KINDS = ("subset", "early")


@dataclass(frozen=True, eq=False)
class Pool:
    """What R networks trained on real data predict, each at U recorded moments. Making one checks it (``ValueError``).

    ``name`` is "subset" (U = 1, the trained network) or "early". ``predictions`` (R, U, n) hold class ids of any
    integer type, ``updates`` (R, U) int64 the number of updates done, rising within a run.
    """

    name: str
    predictions: torch.Tensor
    updates: torch.Tensor

    def __post_init__(self) -> None:
        checks.one_of("pool", self.name, KINDS)
        check_ids(f"predictions of the {self.name} pool", self.predictions, 3)
        if self.updates.dtype != torch.int64 or self.updates.shape != self.predictions.shape[:2]:
            needed = f"int64 {tuple(self.predictions.shape[:2])} is needed"
            raise ValueError(
                f"updates of the {self.name} pool are {self.updates.dtype} {tuple(self.updates.shape)}: {needed}"
            )
        if bool((self.updates < 0).any()) or bool((self.updates.diff(dim=1) <= 0).any()):
            raise ValueError(f"updates of the {self.name} pool must be at least 0 and rise within a run")
        if self.name == "subset" and self.updates.shape[1] != 1:
            recorded = self.updates.shape[1]
            raise ValueError(f"the subset pool has {recorded} recorded updates a run: 1, the last, is needed")


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
        fresh,
        data.train_x,
        data.train_y,
        recipe,
        seeds,
        rows,
        compute=compute,
        checkpoint=checkpoint,
        progress=progress,
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
    """``count`` networks on all training images, their test predictions after every update of ``recipe`` (the first
    included).

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
    return Pool("early", observed.cpu(), torch.tensor(list(moments)).expand(count, -1).contiguous())


def real_accuracy(
    data: ImageData,
    architecture: Architecture,
    recipe: Recipe,
    seeds: Sequence[int],
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """The test accuracy (networks,) of networks trained on all training images: what a distilled set falls short of."""
    own = [stream_seed(seed, "network trained on all real data") for seed in seeds]
    fresh = networks.create(architecture, own, device=data.train_x.device)
    trained = training.train(
        fresh, data.train_x, data.train_y, recipe, own, compute=compute, checkpoint=checkpoint, progress=progress
    )
    return trained.networks.evaluate(data.test_x, data.test_y, compute).accuracy.cpu()


def check_ids(what: str, t: torch.Tensor, dimensions: int) -> None:
    """``t`` holds class ids and is of ``dimensions`` dimensions, none of length 0."""
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise ValueError(f"{what} are of type {t.dtype}: integer class ids are needed")
    if t.ndim != dimensions or 0 in t.shape:
        raise ValueError(f"{what} have shape {tuple(t.shape)}: {dimensions} dimensions, none of length 0, are needed")
    if int(t.min()) < 0:
        raise ValueError(f"{what} hold the class id {int(t.min())}: the lowest allowed is 0")
