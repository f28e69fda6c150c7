"""The outer loop of methods that learn images through training: updates, recorded numbers, exact resumption."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from ddanalysis.data import class_rows
from ddanalysis.distill.making import Job, Made, Numbers, Regulariser, real_batch
from ddanalysis.optimisers import Optimiser, update
from ddanalysis.seeding import generator
from ddanalysis.store import Tensors

Step = Callable[[int, Tensors, Numbers], tuple[Tensors, Numbers]]
"""Of an iteration, what is learned, and numbers carried from one iteration to the next, which it may change: the
gradients by name, and what to record.
"""


def optimise(
    job: Job,
    what: str,
    start: Callable[[], Tensors],
    step: Step,
    optimiser: Optimiser,
    rates: Mapping[str, float] | Callable[[int], Mapping[str, float]],
    iterations: int,
    after: Callable[[Tensors], Numbers] | None = None,
    as_set: Callable[[Tensors], Tensors] = lambda learned: learned,
) -> Made:
    """Learn the tensors of ``start`` with one learning rate each: the set they end as, and the history.

    ``rates`` that change are given as a function of the iteration, counted from 0. ``after`` is called behind every
    update: it may change what is learned in place, and gives more to record. ``as_set`` turns what is learned into the
    tensors of a set by name, as far as they are learned or, for "learning_rates" and "order", there. Raises
    ``FloatingPointError`` as soon as a recorded number is not finite; ``what`` names the method there.
    """
    learned, averages, history, carried = _resume(job, start, optimiser)
    for iteration in range(len(next(iter(history.values()), [])), iterations):
        if job.keep:
            job.keep(iteration, partial(_set, job, learned, as_set))
        gradients, recorded = step(iteration, learned, carried)
        if job.regulariser:
            labels = learned.get("y", job.labels())
            recorded["regulariser"] = _regularise(job.regulariser, learned, labels, gradients, iteration, as_set)
        for name, value in recorded.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} of {what} is {value} in iteration {iteration}: lower a learning rate")
        now = rates(iteration) if callable(rates) else rates
        for name, gradient in gradients.items():
            old, rate = learned[name], now[name]
            learned[name], averages[name] = update(optimiser, old, averages[name], gradient, rate, iteration)
        for name, value in (recorded | (after(learned) if after else {})).items():
            history.setdefault(name, []).append(value)
        job.advance()
        if job.checkpoint and job.checkpoint.due():
            job.checkpoint.save(_saved(learned, averages, history, carried))
    curves = {name: torch.tensor(values) for name, values in history.items()}
    return Made(history=curves, **_set(job, learned, as_set))


def _set(job: Job, learned: Tensors, as_set: Callable[[Tensors], Tensors]) -> Tensors:
    return {"y": job.labels()} | as_set(learned)


def _regularise(
    regulariser: Regulariser,
    learned: Tensors,
    labels: Tensor,
    gradients: Tensors,
    iteration: int,
    as_set: Callable[[Tensors], Tensors],
) -> float:
    """Add the regulariser's gradient to those of what is learned, from which the images follow; its value."""
    leaves = {name: t.detach().requires_grad_() for name, t in learned.items()}
    x = as_set(leaves)["x"]
    value, extra = regulariser(x.detach(), labels, iteration)
    found = torch.autograd.grad(x, list(leaves.values()), extra, allow_unused=True)
    for name, own in zip(leaves, found, strict=True):
        if own is not None:
            gradients[name] = gradients[name] + own
    return value


Averages = dict[str, tuple[Tensor, ...]]
History = dict[str, list[float]]


def _saved(learned: Tensors, averages: Averages, history: History, carried: Numbers) -> Tensors:
    saved = {f"learned/{name}": t for name, t in learned.items()}
    saved |= {f"average/{i}/{name}": t for name, own in averages.items() for i, t in enumerate(own)}
    saved |= {f"history/{name}": torch.tensor(values, dtype=torch.float64) for name, values in history.items()}
    return saved | {f"carried/{name}": torch.tensor(value, dtype=torch.float64) for name, value in carried.items()}


def _resume(job: Job, start: Callable[[], Tensors], optimiser: Optimiser) -> tuple[Tensors, Averages, History, Numbers]:
    """What :func:`_saved` wrote, or the start."""
    saved = job.checkpoint.load() if job.checkpoint else None
    if saved is None:
        learned = start()
        return learned, {name: optimiser.averages(t) for name, t in learned.items()}, {}, {}

    def under(prefix: str) -> Tensors:
        return {name.removeprefix(prefix): t for name, t in saved.items() if name.startswith(prefix)}

    device = job.data.train_x.device
    learned = {name: t.to(device) for name, t in under("learned/").items()}
    averages = {
        name: tuple(saved[f"average/{i}/{name}"].to(device) for i in range(len(optimiser.averages(t))))
        for name, t in learned.items()
    }
    history = {name: t.tolist() for name, t in under("history/").items()}
    return learned, averages, history, {name: float(t) for name, t in under("carried/").items()}


def clipped(gradients: Tensors, largest: float) -> tuple[Tensors, float]:
    """Gradients scaled down together to a norm of at most ``largest``, and the norm that they had."""
    norm = float(torch.stack([t.norm() for t in gradients.values()]).norm())
    scale = min(largest / (norm + 1e-6), 1.0)
    return {name: t * scale for name, t in gradients.items()}, norm


def real_rows(job: Job, per_class: int, iteration: int) -> Tensor:
    """``per_class`` training rows of every class, class-major, drawn without replacement for this iteration."""
    by_class = [class_rows(job.data.train_y, c) for c in range(job.data.n_classes)]
    return torch.cat([real_batch(own, per_class, job.seed, iteration, c) for c, own in enumerate(by_class)])


def some_rows(job: Job, per_class: int | None, *names: object) -> Tensor | None:
    """Rows of ``per_class`` images of every class of the set, drawn without replacement from a named stream.

    None, for all rows in their order, where that is all of them.
    """
    if per_class is None or per_class >= job.ipc:
        return None
    g = generator(job.seed, *names)
    order = torch.rand(job.data.n_classes, job.ipc, generator=g).argsort(1)[:, :per_class]
    rows = order + job.ipc * torch.arange(job.data.n_classes)[:, None]
    return rows.flatten().to(job.data.train_x.device, non_blocking=True)
