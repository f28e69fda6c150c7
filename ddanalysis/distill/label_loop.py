"""What the four methods of label distillation share: their task, the loop, its resets and validations, resumption."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks, networks, unroll
from ddanalysis.distill import resets
from ddanalysis.distill import ridge as ridges
from ddanalysis.distill.base_images import base_images, split, true_labels
from ddanalysis.distill.label_learners import learn
from ddanalysis.distill.making import Job, Made, Numbers
from ddanalysis.distill.resets import Clock
from ddanalysis.distill.ridge import PUBLISHED, Ridge, States, descend
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Tensors
from ddanalysis.training import Recipe, epoch_order

INNER_BATCH = {10: 10, 20: 10, 50: 25}
"""The published batches of sets of so many images; 50 for larger ones (100 on CIFAR-100)."""


def preset(job: Job, learn: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of learning "labels" or "images" that are ``given``, those that are None as published.

    They are the batch of the set, the window of the reset clock, the numbers of validation images
    (:func:`base_images.split`) and the iterations between validations: five epochs of target images.
    """
    n, name = count(job, given), job.data.name.split("-")[0]
    rows, held_out = split(job.data, job.seed, given["validation"], given["target_size"])
    checks.whole("batch_real of label distillation", given["batch_real"])
    published = {
        "inner_batch": min(n, 100) if name == "cifar100" else INNER_BATCH.get(n, min(n, 50)),
        "window": resets.published_window(job.data.name, n, learn),
        "validation": len(held_out),
        "validate_every": 5 * math.ceil(len(rows) / given["batch_real"]),
    }
    return given | {key: value for key, value in published.items() if given[key] is None}


def count(job: Job, given: dict[str, Any]) -> int:
    """How many images a set has: ``base_examples`` of the settings that are ``given``, None for ipc of each class."""
    asked = given.get("base_examples")
    checks.whole("base_examples", 1 if asked is None else asked)
    if asked is not None and given.get("balanced"):
        raise ValueError(f"base_examples is {asked} and balanced True: a balanced set has ipc images of each class")
    return job.ipc * job.data.n_classes if asked is None else asked


@dataclass(frozen=True)
class Task:
    """One set to be made: what does not change while it is."""

    job: Job
    what: str
    learn: str
    own: dict[str, Any]
    head: str
    ridge: Ridge  # not used by a linear head
    rows: Tensor  # of the training images: those to learn from, and those for validation
    held_out: Tensor
    x: Tensor | None  # base images, where labels are learned
    begin: Tensor  # what is learned, as it is at first

    def pair(self, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Images and soft labels of the set; differentiable in what is learned."""
        if self.x is not None:
            return self.x, learned
        data = self.job.data
        mean, std = (torch.tensor(v).to(learned).view(-1, 1, 1) for v in (data.mean, data.std))
        return (learned - mean) / std, F.one_hot(self.job.labels(), data.n_classes).to(learned)

    def batch(self, iteration: int, step: int = 0) -> Tensor:
        """Rows of the set for one step of the look-ahead."""
        g = generator(self.job.seed, "inner batch", iteration, step)
        rows = torch.randperm(len(self.begin), generator=g)[: self.own["inner_batch"]]
        return rows.to(self.begin.device, non_blocking=True)

    def real(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Target images and labels: the next batch of an epoch in random order, whose last may be short."""
        order = Recipe(updates=1, batch_size=self.own["batch_real"])
        epoch, batch = divmod(iteration, order.batches_per_epoch(len(self.rows)))
        rows = epoch_order(order, self.rows, stream_seed(self.job.seed, "target batches"), epoch)
        rows = rows.split(self.own["batch_real"])[batch]
        return self.job.data.train_x[rows], self.job.data.train_y[rows]

    def network(self, number: int) -> States:
        """A new network before its first step."""
        seed, x = stream_seed(self.job.seed, "network to train on the labels", number), self.job.data.train_x
        fresh = networks.create(self.job.architecture, [seed], device=x.device, dtype=x.dtype)
        return ridges.begin(fresh) if self.head == "ridge" else {"network": ridges.start(unroll.flat(fresh))}

    def moved(self, states: States, gradient: Tensor) -> States:
        """What is learned after a step of Adam, in its bounds."""
        after = descend(states["learned"], gradient, self.own["rate"])
        own = simplex(after.weights) if self.x is not None else after.weights.clamp(0, 1)
        return states | {"learned": unroll.State(own, after.averages, after.step)}


def simplex(y: Tensor) -> Tensor:
    """Rows (n, classes) clamped to [0, 1] and divided by their sums; one of zeros becomes uniform."""
    clamped = y.clamp(0, 1)
    total = clamped.sum(1, keepdim=True)
    return torch.where(total > 0, clamped / total.where(total > 0, 1), 1 / y.shape[1])


def task(job: Job, what: str, learn: str, given: dict[str, Any]) -> Task:
    """Check the settings and set up what does not change."""
    own = preset(job, learn, given)
    for name in ("iterations", "inner_batch", "batch_real", "validate_every", "horizon", "window"):
        checks.whole(f"{name} of {what}", own.get(name, 1))
    for name in ("rate", "network_rate", "inner_rate"):
        checks.at_least(f"{name} of {what}", own.get(name, 0), 0)
    data, n = job.data, count(job, own)
    if own["inner_batch"] > n:
        raise ValueError(f"inner_batch of {what} is {own['inner_batch']}: the set has {n} images")
    head = "ridge" if "penalty" in own else "linear"
    ridge = Ridge(*(own[name] for name in ("penalty", "head_rate", "scale_rate"))) if head == "ridge" else PUBLISHED
    rows, held_out = split(data, job.seed, own["validation"], own["target_size"])
    if learn == "images":
        if data.whitening is not None:
            raise ValueError(f"{what} learns pixels between 0 and 1: {data.name} is whitened")
        pixels = torch.rand(n, *data.shape, generator=generator(job.seed, "uniform pixels")).to(data.train_x)
        return Task(job, what, learn, own, head, ridge, rows, held_out, None, pixels)
    checks.one_of(f"start of {what}", own["start"], ("uniform", "true"))
    pool = None if own["overlap"] else split(data, job.seed, own["validation"])[0]
    x, classes = base_images(data, n, job.seed, own["source"], own["balanced"], pool)
    uniform = x.new_full((n, data.n_classes), 1 / data.n_classes)
    y = true_labels(classes, data.n_classes, x.dtype) if own["start"] == "true" else uniform
    return Task(job, what, learn, own, head, ridge, rows, held_out, x, y)


# ---------------------------------------------------------------------------------------------------------- the loop

Teach = Callable[[Task, States, int], tuple[States, Numbers]]
"""One iteration: what is learned and the network after it, and the loss, accuracy and more to record."""


@dataclass
class _Record:
    """What the loop keeps beside what is learned and the network."""

    clock: Clock
    best: Tensor  # what was learned when validation was best
    best_steps: int = 0
    best_accuracy: float = -1.0
    recorded: list[int] = field(default_factory=list)  # the steps of networks that ended
    history: dict[str, list[float]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How long to train on what is learned now."""
        return resets.steps_to_train(self.recorded, max(self.clock.steps, 1))

    def add(self, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self.history.setdefault(name, []).append(value)


def distil(task: Task, teach: Teach) -> Made:
    """Learn the set: the best one on validation images, with its steps, each at the network's rate, as learning rates.

    Beside what an iteration gives, ``history`` has the ``accuracy`` and ``steps`` of the last validation
    ("validation_accuracy", "validation_steps", 0 before the first) and, where a network ended, the steps recorded of it
    ("reset", else 0). ``FloatingPointError`` for a loss that is not finite.
    """
    job, own = task.job, task.own
    states, record = _resume(task)
    for iteration in range(len(record.history.get("loss", [])), own["iterations"]):
        if job.keep:
            job.keep(iteration, partial(_set, task, states["learned"].weights, record.steps))
        states, numbers = teach(task, states, iteration)
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} of {task.what} is {value} in iteration {iteration}: lower a learning rate"
                )
        record.clock, ended = record.clock.tick(1 - numbers["accuracy"])
        if ended is not None:
            record.recorded.append(ended)
            states |= task.network(len(record.recorded))
        if (iteration + 1) % own["validate_every"] == 0 or iteration + 1 == own["iterations"]:
            numbers |= _validate(task, states["learned"].weights, record, iteration)
        last = {name: record.history.get(name, [0.0])[-1] for name in ("validation_accuracy", "validation_steps")}
        record.add({"reset": float(ended or 0)} | last | numbers)
        job.advance()
        if job.checkpoint and job.checkpoint.due():
            job.checkpoint.save(_saved(states, record))
    history = {name: torch.tensor(values) for name, values in record.history.items()}
    return Made(history=history, **_set(task, record.best, record.best_steps))


def _set(task: Task, learned: Tensor, steps: int) -> Tensors:
    x, y = task.pair(learned)
    rates = torch.full((steps,), task.own["network_rate"], dtype=torch.float32, device=x.device)
    return {"x": x, "y": y if task.learn == "labels" else task.job.labels(), "learning_rates": rates}


def _validate(task: Task, learned: Tensor, record: _Record, iteration: int) -> Numbers:
    """Train a fresh network on the set, and keep the set if none was better on the validation images."""
    job, (x, y), steps = task.job, task.pair(learned), record.steps
    seed = stream_seed(job.seed, "validation of labels", iteration)
    batch, rate = task.own["inner_batch"], task.own["network_rate"]
    fresh = learn(job.architecture, x, y, steps, batch, [seed], task.head, rate=rate, ridge=task.ridge)
    held_out = job.data.train_x[task.held_out], job.data.train_y[task.held_out]
    accuracy = float(fresh.evaluate(*held_out).accuracy)
    if accuracy >= record.best_accuracy:
        record.best, record.best_steps, record.best_accuracy = learned, steps, accuracy
    return {"validation_accuracy": accuracy, "validation_steps": float(steps)}


def _saved(states: States, record: _Record) -> Tensors:
    saved = {f"states/{name}": t for name, t in ridges.tensors(states).items()}
    saved |= {f"clock/{name}": t for name, t in record.clock.tensors().items()}
    saved |= {f"history/{name}": torch.tensor(v, dtype=torch.float64) for name, v in record.history.items()}
    best = torch.tensor([record.best_steps, record.best_accuracy], dtype=torch.float64)
    return saved | {"best": record.best.clone(), "best numbers": best, "recorded": torch.tensor(record.recorded)}


def _resume(task: Task) -> tuple[States, _Record]:
    """What :func:`_saved` wrote, or the start."""
    saved = task.job.checkpoint.load() if task.job.checkpoint else None
    if saved is None:
        states = {"learned": ridges.start(task.begin)} | task.network(0)
        return states, _Record(Clock(task.own["window"]), task.begin)
    device = task.begin.device
    steps, accuracy = saved["best numbers"].tolist()
    record = _Record(
        resets.restored(ridges.under("clock/", saved)), saved["best"].to(device), int(steps), accuracy,
        [int(n) for n in saved["recorded"].tolist()],
        {name: t.tolist() for name, t in ridges.under("history/", saved).items()},
    )  # fmt: skip
    return ridges.restored(ridges.under("states/", saved), device), record
