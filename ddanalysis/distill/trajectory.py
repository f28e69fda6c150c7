"""MTT, matching training trajectories, and TESLA's approximation of its gradient.

Cazenavette et al., *Dataset distillation by matching training trajectories* (CVPR 2022): a student starts at the
weights of an expert after t epochs of real data and takes N steps of gradient descent on the images; it should end
where the expert was M epochs later, theta*: L = ||phi_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2. The step
size is learned with the images.

Cui et al., *Scaling up dataset distillation to ImageNet-1K with constant memory* (TESLA, ICML 2023), save memory by
holding the student's path fixed when they differentiate. That is exact for one step and an approximation for more. Over
20 steps of a small network without normalisation their gradient is off by 4 % at a step size of 0.01, 33 % at 0.1 and
100 % at 1; over 20 steps of the ConvNet with its instance normalisation (MNIST, width 16) by 7 % at 0.001 and already
50 % at 0.01. Here the exact gradient costs hardly more memory (:mod:`ddanalysis.unroll`), so theirs is kept for
comparison. Their soft labels, those of the expert at its target, go with either gradient.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import augment, checks, unroll
from ddanalysis.compute import Compute, images_per_pass, slices
from ddanalysis.distill import outer
from ddanalysis.distill.experts import Experts, train_experts
from ddanalysis.distill.making import Job, Made
from ddanalysis.evaluation import dsa_strategy
from ddanalysis.optimisers import Optimiser
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Tensors
from ddanalysis.training import Recipe, epoch_order
from ddanalysis.unroll import State

_COLUMNS = ("steps", "expert_epochs", "latest_start", "minibatch", "rate", "rate_of_step_size", "step_size")
PRESETS: dict[tuple[str, int], dict[str, Any]] = {
    key: dict(zip(_COLUMNS, row, strict=True))
    for key, row in {
        ("cifar10", 1): (50, 2, 2, None, 100.0, 1e-7, 0.01),
        ("cifar10", 10): (30, 2, 20, None, 100.0, 1e-5, 0.001),  # the rate is that of DC-BENCH: the authors' is a slip
        ("cifar10", 50): (30, 2, 40, None, 1000.0, 1e-5, 0.001),
        ("cifar100", 1): (20, 3, 20, None, 1000.0, 1e-5, 0.01),
        ("cifar100", 10): (20, 2, 20, None, 1000.0, 1e-5, 0.01),
        ("cifar100", 50): (80, 2, 40, 125, 1000.0, 1e-5, 0.01),
        ("tiny_imagenet", 1): (10, 2, 10, None, 1e4, 1e-4, 0.01),
        ("tiny_imagenet", 10): (20, 2, 40, 200, 1e4, 1e-4, 0.01),
        ("tiny_imagenet", 50): (20, 2, 40, 300, 1e4, 1e-4, 0.01),
    }.items()
}
"""The published settings by dataset and images a class (as DC-BENCH records them)."""


def trajectory_matching(
    job: Job,
    iterations: int = 5000,
    steps: int | None = None,
    expert_epochs: int | None = None,
    latest_start: int | None = None,
    minibatch: int | None = None,
    rate: float | None = None,
    rate_of_step_size: float | None = None,
    step_size: float | None = None,
    momentum: float = 0.5,
    experts: int = 100,
    expert_rate: float = 0.01,
    expert_batch: int = 256,
    expert_seed: int = 0,
    strategy: str | None = None,
    gradient: str = "exact",
    labels: str = "hard",
    initialisation: str = "real",
    at_once: int = 1,
    compiled: bool = False,
) -> Made:
    """Distil by matching ``steps`` student steps to ``expert_epochs`` epochs of an expert; defaults are the published.

    Experts learn by plain gradient descent on the real images under ``strategy`` (None: the dataset's DSA strategy),
    and so do students, on ``minibatch`` of all images a step. The start is uniform over experts and epochs 0 to
    ``latest_start`` - 1; ``at_once`` students, published 1, are averaged over. The ``step_size`` is learned, at
    ``rate_of_step_size``; None is that of the given set, if images start as "given" and it has one, else published.
    Any other None is :func:`preset`. ``gradient`` is "exact" or "tesla". ``labels`` "teacher" are soft, in every
    iteration what the experts at their targets say of the images, and the set has those of the last iteration.
    Images start as "real", "noise" or "given". ``compiled`` is that of :mod:`ddanalysis.unroll`. ``history`` has the
    loss of every iteration and the step size after it. Whitening, published for some presets, is up to the data.

    Raises ``FloatingPointError`` where the step size leaves the positive numbers.
    """
    own = preset(
        job.data.name, job.ipc,
        {
            "iterations": iterations, "steps": steps, "expert_epochs": expert_epochs, "latest_start": latest_start,
            "minibatch": minibatch, "rate": rate, "rate_of_step_size": rate_of_step_size,
            "step_size": _given_step_size(job, initialisation) if step_size is None else step_size,
            "momentum": momentum, "experts": experts, "expert_rate": expert_rate, "expert_batch": expert_batch,
            "expert_seed": expert_seed, "strategy": strategy, "gradient": gradient, "labels": labels,
            "at_once": at_once, "compiled": compiled,
        },
    )  # fmt: skip
    _check(own)
    start = job.start(initialisation)
    pool = train_experts(job, experts, _recipe_of_experts(own), expert_seed)
    first = {"x": start, "learning_rates": start.new_tensor([own["step_size"]])}
    if labels == "teacher":
        first["y"] = F.one_hot(job.labels(), job.data.n_classes).to(start.dtype)

    return outer.optimise(
        job, "MTT", lambda: first, lambda iteration, learned, _: _step(job, pool, own, iteration, learned),
        Optimiser("sgd", momentum), {"x": own["rate"], "learning_rates": own["rate_of_step_size"]}, iterations,
        _still_positive,
    )  # fmt: skip


def _recipe_of_experts(own: dict[str, Any]) -> Recipe:
    """As many epochs of plain gradient descent as starts and targets need."""
    return Recipe(
        own["latest_start"] - 1 + own["expert_epochs"],
        batch_size=own["expert_batch"],
        learning_rate=own["expert_rate"],
        momentum=0.0,
        augment=own["strategy"],
    )


def preset(dataset: str, ipc: int, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of MTT that are ``given``, those that are None as published.

    That is for the dataset and the nearest number of images a class at or below ``ipc``, else above. Datasets of which
    nothing is published have CIFAR-10's, and every dataset its DSA strategy.
    """
    name = dataset.split("-")[0]
    rows = {count: row for (of, count), row in PRESETS.items() if of == name}
    rows = rows or {count: row for (of, count), row in PRESETS.items() if of == "cifar10"}
    nearest = max((count for count in rows if count <= ipc), default=min(rows))
    published = {"strategy": dsa_strategy(dataset)} | rows[nearest]
    return published | {key: value for key, value in given.items() if value is not None}


def _given_step_size(job: Job, initialisation: str) -> float | None:
    """The one learning rate of the set that the images start from."""
    rates = job.given.learning_rates if initialisation == "given" and job.given else None
    return float(rates) if rates is not None and len(rates) == 1 else None


def _check(own: dict[str, Any]) -> None:
    """Refuse settings before any work."""
    Compute(compiled=own["compiled"])
    for name in ("iterations", "steps", "expert_epochs", "latest_start", "experts", "expert_batch", "at_once"):
        checks.whole(f"{name} of MTT", own[name])
    for name in ("rate", "rate_of_step_size", "step_size", "momentum", "expert_rate"):
        checks.at_least(f"{name} of MTT", own[name], 0)
    if own["step_size"] == 0:
        raise ValueError("step_size of MTT is 0: it must be above 0, or students stay where they start")
    if own["minibatch"] is not None:
        checks.whole("minibatch of MTT", own["minibatch"])
    checks.whole("expert_seed of MTT", own["expert_seed"], 0)
    checks.one_of("gradient of MTT", own["gradient"], ("exact", "tesla"))
    checks.one_of("labels of MTT", own["labels"], ("hard", "teacher"))
    augment.parse_strategy(own["strategy"])


def _step(
    job: Job, pool: Experts, own: dict[str, Any], iteration: int, learned: Tensors
) -> tuple[Tensors, outer.Numbers]:
    """The loss of one iteration, averaged over its students, and its gradients; soft labels are put in their place."""
    x, y = learned["x"].detach().requires_grad_(), job.labels()
    start, target = _stretch(job, pool, own, iteration)
    if own["labels"] == "teacher":
        y = _teacher_labels(job, target, x)
        learned["y"] = y.mean(0)
    a, plain, batches = job.architecture, Optimiser(), _batches(job, x, y, own, iteration)
    rates = learned["learning_rates"].expand(own["steps"])
    trace = unroll.forward(a, plain, State(start), batches, rates, True, own["compiled"])
    gap, whole = trace.end.weights - target, (start - target).square().sum(1, keepdim=True)
    loss = (gap.square().sum(1, keepdim=True) / whole).mean()
    into_end = 2 * gap / whole / own["at_once"]
    truncated = own["gradient"] == "tesla"
    found = unroll.adjoint(a, plain, trace, batches, into_end, [x], None, truncated, own["compiled"])
    if found.rates is None:
        raise RuntimeError("the unroll kept no directions, from which the step size learns")
    return {"x": found.inputs[0], "learning_rates": found.rates.sum(0, keepdim=True)}, {"loss": float(loss)}


def _stretch(job: Job, pool: Experts, own: dict[str, Any], iteration: int) -> tuple[Tensor, Tensor]:
    """Where the students (K, P) of an iteration start, and where their experts were some epochs later."""
    g, count = generator(job.seed, "MTT start", iteration), own["at_once"]
    experts = torch.randint(len(pool), (count,), generator=g).tolist()
    epochs = torch.randint(own["latest_start"], (count,), generator=g).tolist()
    ends = [pool[e][[t, t + own["expert_epochs"]]] for e, t in zip(experts, epochs, strict=True)]
    start, target = torch.stack(ends, 1).to(job.data.train_x.device, job.data.train_x.dtype)
    return start, target


@torch.no_grad()
def _teacher_labels(job: Job, target: Tensor, x: Tensor) -> Tensor:
    """Soft labels (K, n, classes) that experts with the weights ``target`` give the images as they are."""
    a, nets = job.architecture, unroll.unflat(job.architecture, target)
    size = len(x) if a.batch_statistics else images_per_pass(a, len(nets), x.device)
    logits = [a.logits(nets.state, nets.spread(x[s]), {}) for s in slices(len(x), size)]
    return torch.cat(logits).transpose(0, 1).softmax(2)


def _batches(job: Job, x: Tensor, y: Tensor, own: dict[str, Any], iteration: int) -> unroll.Batches:
    """Chunks of a random order of the images, and of another when it ends, each step under its own augmentation.

    Labels ``y`` are (n,) ids, or (K, n, classes) soft ones.
    """
    order = Recipe(updates=own["steps"], batch_size=own["minibatch"])
    per_epoch, everything = order.batches_per_epoch(len(x)), torch.arange(len(x))

    def batch(t: int) -> tuple[Tensor, Tensor]:
        epoch, chunk = divmod(t, per_epoch)
        rows = epoch_order(order, everything, stream_seed(job.seed, "MTT batches", iteration), epoch)
        rows = rows.split(own["minibatch"] or len(x))[chunk].to(x.device, non_blocking=True)
        own_x = x if len(rows) == len(x) else x[rows]
        g = generator(job.seed, "MTT augmentation", iteration, t)
        return augment.augment(own_x, own["strategy"], g), y[rows] if y.ndim == 1 else y[:, rows]

    return batch


def _still_positive(learned: Tensors) -> outer.Numbers:
    """The step size, to be recorded."""
    value = float(learned["learning_rates"])
    if not (math.isfinite(value) and value > 0):
        raise FloatingPointError(f"the step size of MTT became {value}: lower rate_of_step_size")
    return {"learning_rate": value}
