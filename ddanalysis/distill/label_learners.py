"""Learners of label distillation: K fresh networks trained on a small set, with a linear or a ridge head.

As Bohdal et al. 2020 (code) test their labels: Adam at 1e-3, every step on a batch drawn anew without replacement. They
never train labels of one method with the other's head, nor with another optimiser; here both are arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute, networks_together, slices
from ddanalysis.distill import ridge as ridges
from ddanalysis.distill.ridge import PUBLISHED, Ridge
from ddanalysis.evaluation import initial_seed
from ddanalysis.networks import Networks, Outputs, stack
from ddanalysis.optimisers import Optimiser
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe

OPTIMISERS = {"adam": ("adam", 0.0), "sgd": ("sgd", 0.0), "momentum": ("sgd", 0.9)}
HEADS = ("linear", "ridge")


@dataclass(frozen=True)
class Learners:
    """K trained networks (a ridge head is their last layer), and the accuracies (K, counts) observed on the way."""

    networks: Networks
    accuracy: Tensor

    def evaluate(self, x: Tensor, y: Tensor, compute: Compute = Compute()) -> Outputs:
        """Predictions, accuracies and losses on images (n, c, h, w) with labels y; a ridge head's are uncalibrated."""
        return self.networks.evaluate(x, y, compute)


def learn(
    architecture: Architecture,
    x: Tensor,
    y: Tensor,
    steps: int,
    batch: int,
    seeds: Sequence[int],
    head: str = "linear",
    optimiser: str = "adam",
    rate: float = 1e-3,
    ridge: Ridge = PUBLISHED,
    real: tuple[Tensor, Tensor] | None = None,
    at: Sequence[int] = (),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Learners:
    """Train a fresh network a seed for ``steps`` updates on batches of ``batch`` of x (n, c, h, w), y ids or soft rows.

    A learner depends on its own seed alone. ``optimiser`` is "adam", "sgd" or "momentum" (0.9), at ``rate``; with a
    ridge head that of the features. After each count of updates in ``at`` the accuracies on the ``real`` images and
    labels are taken, for a search of steps in one training. ``progress`` is called with network updates done. Raises
    ``ValueError`` before any work.
    """
    checks.one_of("head", head, HEADS)
    checks.one_of("optimiser of the learners", optimiser, OPTIMISERS)
    checks.at_least("rate of the learners", rate, 0)
    moments = sorted(set(at))
    _check(architecture, x, y, steps, batch, moments, real is not None)
    fresh = networks.create(architecture, [initial_seed(s) for s in seeds], device=x.device, dtype=x.dtype)
    kind, momentum = OPTIMISERS[optimiser]
    recipe = Recipe(None, steps, batch, kind, rate, momentum)
    rows = [_batches(seed, len(x), recipe) for seed in seeds]
    observe = partial(_accuracy, real) if real is not None and moments else None
    if head == "linear":
        trained = training.train(fresh, x, y, recipe, seeds, rows, observe, moments, Compute(), checkpoint, progress)
    else:
        trained = _with_ridge(fresh, x, y, recipe, rows, ridge, observe, moments, checkpoint, progress)
    nothing = x.new_empty(len(seeds), 0, dtype=torch.float64)
    return Learners(trained.networks, trained.observed.get("accuracy", nothing))


def _check(
    architecture: Architecture, x: Tensor, y: Tensor, steps: int, batch: int, moments: Sequence[int], observed: bool
) -> None:
    checks.whole("steps", steps)
    checks.whole("batch", batch)
    checks.images("images to learn from", x, (architecture.channels, architecture.size, architecture.size))
    checks.labels("labels to learn from", y, len(x), architecture.classes)
    if batch > len(x):
        raise ValueError(f"batch is {batch}: there are {len(x)} images to learn from")
    if moments and not observed:
        raise ValueError("accuracies are asked for on the way: real images and labels are needed")
    if moments and not 0 <= moments[0] <= moments[-1] <= steps:
        raise ValueError(f"accuracies are asked for after {moments} steps: allowed are 0 to {steps}")


def _batches(seed: int, n: int, recipe: Recipe) -> Tensor:
    """The rows (steps, batch) of every step; those of fewer steps are the first of them."""
    steps = range(recipe.total_updates(n))
    drawn = [torch.randperm(n, generator=generator(seed, "label learner", t))[: recipe.batch_size] for t in steps]
    return torch.stack(drawn)


def _accuracy(real: tuple[Tensor, Tensor], trained: Networks) -> Tensors:
    return {"accuracy": trained.evaluate(*real).accuracy}


def _with_ridge(
    fresh: Networks,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    rows: Sequence[Tensor],
    ridge: Ridge,
    observe: training.Observer | None,
    moments: Sequence[int],
    checkpoint: Checkpoint | None,
    progress: Callable[[int], object] | None,
) -> training.Trained:
    """As :func:`training.train`, with ids as one-hot rows."""
    a = fresh.architecture
    soft = y if y.is_floating_point() else F.one_hot(y, a.classes).to(x.dtype)
    parts: list[Networks] = []
    accuracies: list[Tensor] = []
    for part, chosen in enumerate(slices(len(fresh), networks_together(a, rows[0].shape[1], x.device))):
        batches = torch.stack(list(rows[chosen]), 1).to(x.device)
        own = checkpoint.child(part) if checkpoint else None
        seen: list[Tensor] = []
        steps = _ridge_steps(fresh[chosen], x, soft, batches, recipe, ridge, seen, own)
        for now, (t, trained) in enumerate(steps):
            if observe and t in moments[len(seen) :]:
                seen.append(observe(trained())["accuracy"])
            if progress and now:
                progress(batches.shape[1])
        parts.append(trained())
        accuracies += [torch.stack(seen, 1)] if seen else []
    return training.Trained(stack(parts), {"accuracy": torch.cat(accuracies)} if accuracies else {})


def _ridge_steps(
    fresh: Networks,
    x: Tensor,
    y: Tensor,
    batches: Tensor,
    recipe: Recipe,
    ridge: Ridge,
    seen: list[Tensor],
    checkpoint: Checkpoint | None,
) -> Iterator[tuple[int, Callable[[], Networks]]]:
    """The number of updates done, from 0 or where the checkpoint was, and what gives the learners as they are then.

    ``batches`` (steps, K, batch). What the caller puts into ``seen`` is kept with the checkpoint.
    """
    a, optimiser = fresh.architecture, Optimiser(recipe.optimiser, recipe.momentum)
    states = ridges.begin(fresh, optimiser)
    running = fresh.running()
    saved = checkpoint.load() if checkpoint else None
    if saved is not None:
        states = ridges.restored(ridges.under("states/", saved), x.device)
        running = {name: t.to(x.device) for name, t in ridges.under("running/", saved).items()}
        seen += saved["seen"].to(x.device).unbind(1) if "seen" in saved else []
    yield states["head"].step, partial(ridges.networks, a, states, running)
    for t in range(states["head"].step, len(batches)):
        images, labels = x[batches[t]], y[batches[t]]
        batch = ridges.fit(a, states, images, labels, ridge, running)
        states, _ = ridges.learned(states, batch, labels, ridge, recipe.learning_rate, optimiser)
        yield t + 1, partial(ridges.networks, a, states, running)
        if checkpoint and (t + 1 == len(batches) or checkpoint.due()):
            all_states = {f"states/{name}": own for name, own in ridges.tensors(states).items()}
            others = {f"running/{name}": own for name, own in running.items()}
            checkpoint.save(all_states | others | ({"seen": torch.stack(seen, 1)} if seen else {}))
