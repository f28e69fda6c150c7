"""Expert trajectories: networks trained on real data, their weights kept after every epoch.

One pool serves every set, whatever its seed, as published. With a constant learning rate the first epochs of a short
training are those of a long one, so experts are trained only as far as their weights are used: 3 epochs in place of the
published 50 for CIFAR-10 at one image a class. Sets that use more epochs, or another count of experts, have a pool of
their own. Kept are parameters alone, in float32; the running statistics of batch normalisation are not, as published.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from ddanalysis import networks, training, unroll
from ddanalysis.architectures import Architecture
from ddanalysis.compute import networks_together, slices
from ddanalysis.distill.making import Job, Progress
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe

IN_MEMORY = 2**31
"""Bytes up to which a pool stays in memory; of a larger one each expert is read when wanted, if it is kept in files."""


@dataclass(frozen=True)
class Experts:
    """Weights (epochs + 1, P) float32 of each expert, before training and after every epoch, on the CPU."""

    kept: list[Tensor | Callable[[], Tensor]]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Tensor:
        """The weights of one expert."""
        kept = self.kept[index]
        return kept if isinstance(kept, Tensor) else kept()


def pool_bytes(architecture: Architecture, count: int, epochs: int) -> int:
    """The size of ``count`` experts of so many epochs, on disk or in memory."""
    return 4 * architecture.parameter_count() * (epochs + 1) * count


def train_experts(job: Job, count: int, recipe: Recipe, seed: int = 0) -> Experts:
    """``count`` networks trained on the real training images, read where they are kept; the recipe counts epochs."""
    a, n = job.architecture, len(job.data.train_y)
    streamed = job.share is not None and pool_bytes(a, count, recipe.epochs or 0) > IN_MEMORY
    kept: list[Tensor | Callable[[], Tensor]] = []
    for part in slices(count, networks_together(a, min(recipe.batch_size or n, n), job.data.train_x.device)):
        together, trained = range(part.start, part.stop), dict[int, Tensor]()
        for e in together:
            read = partial(_expert, job, e, count, recipe, seed, together, trained)
            weights = read()
            kept.append(read if streamed else weights)
        trained.clear()
    return Experts(kept)


def _expert(
    job: Job, e: int, count: int, recipe: Recipe, seed: int, together: range, trained: dict[int, Tensor]
) -> Tensor:
    """One expert of a pool of ``count``. If it is missing, all of a pass are ``trained``, and the next find theirs."""

    def build(checkpoint: Checkpoint | None, progress: Progress | None) -> Tensors:
        if e not in trained:
            trained.update(zip(together, _train(job, together, recipe, seed, checkpoint, progress), strict=True))
        return {"weights": trained.pop(e)}

    network = job.architecture.name
    name = f"{job.data.name}_{network}_{recipe.epochs}epochs_s{seed}_{e}of{count}"
    arguments = {"network": network, "recipe": asdict(recipe), "count": count, "expert": e, "seed": seed}
    return job.shared("experts", name, 1, arguments, build)["weights"]


def _train(
    job: Job, members: range, recipe: Recipe, seed: int, checkpoint: Checkpoint | None, progress: Progress | None
) -> Tensor:
    """(experts, epochs + 1, P) of some of the experts, together."""
    x, y, seeds = job.data.train_x, job.data.train_y, [stream_seed(seed, "expert", e) for e in members]
    at = range(0, recipe.total_updates(len(y)) + 1, recipe.batches_per_epoch(len(y)))
    fresh = networks.create(job.architecture, seeds, device=x.device, dtype=x.dtype)
    trained = training.train(
        fresh, x, y, recipe, seeds, observe=lambda nets: {"weights": unroll.flat(nets)}, at=at, checkpoint=checkpoint,
        progress=progress,
    )  # fmt: skip
    return trained.observed["weights"].to("cpu", torch.float32)
