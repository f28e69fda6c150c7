"""Expert trajectories: networks trained on real data, their weights kept after every epoch.

With a constant learning rate the first epochs of a short training are those of a long one, so an expert is trained
only as far as its weights are used: 3 epochs in place of the published 50 for CIFAR-10 at one image a class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddanalysis import networks, training, unroll
from ddanalysis.compute import networks_together, slices
from ddanalysis.distill.making import Job
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

IN_MEMORY = 2**31
"""Bytes up to which all experts stay in memory; of more, each is read from beside the job's checkpoint when wanted."""


@dataclass(frozen=True)
class Experts:
    """Weights (epochs + 1, P) float32 of each expert, before training and after every epoch, on the CPU."""

    kept: list[Tensor | Checkpoint]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Tensor:
        """The weights of one expert."""
        kept = self.kept[index]
        weights = _load(kept) if isinstance(kept, Checkpoint) else kept
        if weights is None:
            raise RuntimeError(f"the weights of expert {index} have gone from the checkpoint: start again")
        return weights


def train_experts(job: Job, count: int, recipe: Recipe) -> Experts:
    """Train ``count`` networks on the real training images.

    Each is kept beside the job's checkpoint, if it has one, and read from there when the job resumes; batch statistics
    are not kept.
    """
    a, n = job.architecture, len(job.data.train_y)
    size = 4 * a.parameter_count() * ((recipe.epochs or 0) + 1) * count
    kept: list[Tensor | Checkpoint] = []
    for part in slices(count, networks_together(a, min(recipe.batch_size or n, n), job.data.train_x.device)):
        members = range(part.start, part.stop)
        files = [job.checkpoint.child(f"expert{e}") if job.checkpoint else None for e in members]
        found = [weights for weights in map(_load, files) if weights is not None]
        if len(found) < len(files):
            found = list(_train(job, members, recipe))
            for file, weights in zip(files, found, strict=True):
                if file:
                    file.save({"weights": weights})
        kept += [file if file and size > IN_MEMORY else own for file, own in zip(files, found, strict=True)]
    return Experts(kept)


def _load(file: Checkpoint | None) -> Tensor | None:
    saved = file.load() if file else None
    return None if saved is None else saved["weights"]


def _train(job: Job, members: range, recipe: Recipe) -> Tensor:
    """(experts, epochs + 1, P) of some of the experts, together."""
    x, y, seeds = job.data.train_x, job.data.train_y, [stream_seed(job.seed, "expert", e) for e in members]
    at = range(0, recipe.total_updates(len(y)) + 1, recipe.batches_per_epoch(len(y)))
    unfinished = job.checkpoint.child(f"experts-from-{members.start}") if job.checkpoint else None
    fresh = networks.create(job.architecture, seeds, device=x.device, dtype=x.dtype)
    trained = training.train(
        fresh, x, y, recipe, seeds, observe=lambda nets: {"weights": unroll.flat(nets)}, at=at, checkpoint=unfinished,
        progress=job.progress,
    )  # fmt: skip
    if unfinished:
        unfinished.remove()
    return trained.observed["weights"].to("cpu", torch.float32)
