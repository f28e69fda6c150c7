"""What every method takes and gives."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ddanalysis import checks
from ddanalysis.architectures import Architecture
from ddanalysis.data import ImageData, balanced_rows, class_rows
from ddanalysis.distilled import DistilledSet
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint, Tensors

Numbers = dict[str, float]
Progress = Callable[[int], object]
Build = Callable[[Checkpoint | None, Progress | None], Tensors]
Share = Callable[[str, str, int, Mapping[str, Any], Build], Tensors]
Regulariser = Callable[[torch.Tensor, torch.Tensor, int], tuple[float, torch.Tensor]]
"""Of images, their labels and the number of the update: a term of the loss, and its gradient in the images."""


@dataclass(frozen=True)
class Job:
    """One set to be made: ``ipc`` images a class of ``data``, with networks of ``architecture`` where the method uses
    any.

    ``given`` is a set to continue from. ``keep`` is called with the number of iterations done, from 0 on, and what
    gives the tensors of the set as it is then; ``share`` keeps what several sets use (see :meth:`shared`).
    """

    data: ImageData
    architecture: Architecture
    ipc: int
    seed: int = 0
    checkpoint: Checkpoint | None = None
    progress: Progress | None = None
    given: DistilledSet | None = None
    regulariser: Regulariser | None = None
    keep: Callable[[int, Callable[[], Tensors]], object] | None = None
    share: Share | None = None

    def __post_init__(self) -> None:
        checks.whole("ipc", self.ipc)
        a, (c, h, _) = self.architecture, self.data.shape
        if (a.channels, a.size, a.classes) != (c, h, self.data.n_classes):
            images = (a.channels, a.size, a.size)
            raise ValueError(f"{a.name} is for {images} and {a.classes} classes, not those of {self.data.name}")

    def advance(self, n: int = 1) -> None:
        """Report ``n`` steps done."""
        if self.progress:
            self.progress(n)

    def labels(self) -> torch.Tensor:
        """Class-major labels of the set, ``ipc`` a class."""
        return torch.arange(self.data.n_classes, device=self.data.train_y.device).repeat_interleave(self.ipc)

    def real_images(self) -> torch.Tensor:
        """``ipc`` real training images a class, drawn by the seed, class-major."""
        return self.data.train_x[balanced_rows(self.data.train_y, self.ipc, self.seed)].clone()

    def noise(self) -> torch.Tensor:
        """Standard normal images in normalised space."""
        shape = (self.ipc * self.data.n_classes, *self.data.shape)
        return torch.randn(shape, generator=generator(self.seed, "noise images")).to(self.data.train_x.device)

    def start(self, initialisation: str) -> torch.Tensor:
        """The images a method starts from: "real" ones, "noise", or those of the "given" set."""
        checks.one_of("initialisation of the images", initialisation, ("real", "noise", "given"))
        if initialisation != "given":
            return self.real_images() if initialisation == "real" else self.noise()
        if self.given is None:
            raise ValueError("initialisation of the images is 'given' and no set is: name its file in given")
        if not torch.equal(self.given.labels(), self.labels().to(self.given.x.device)):
            raise ValueError(f"the given set {self.given.name} has not {self.ipc} images a class, class by class")
        return self.given.x.to(self.data.train_x).clone()

    def shared(self, kind: str, name: str, version: int, arguments: Mapping[str, Any], build: Build) -> Tensors:
        """What several sets use, made by ``build(checkpoint, progress)`` once for the same ``arguments``; in place
        where nobody keeps it.
        """
        if self.share:
            return self.share(kind, name, version, arguments, build)
        return build(self.checkpoint.child(name) if self.checkpoint else None, self.progress)


@dataclass(frozen=True)
class Made:
    """Images (n, c, h, w) and labels of a new set, and what was recorded while it was made (one row an iteration)."""

    x: torch.Tensor
    y: torch.Tensor
    history: Tensors = field(default_factory=dict)
    learning_rates: torch.Tensor | None = None  # (1,) or (steps,) to train with, where the method learns them
    order: torch.Tensor | None = None  # (steps, batch) the rows of every step, where the method fixes them


@dataclass(frozen=True)
class Method:
    """A way to make a set. ``version`` is raised by hand when a change makes other sets of the same settings."""

    make: Callable[..., Made]  # of a job and the method's settings
    version: int
    networked: bool = False  # whether the set depends on the job's architecture

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """Every setting of the method, the ``given`` ones and the published ones; ``ValueError`` for a setting it
        does not have.
        """
        known = {name: p.default for name, p in list(inspect.signature(self.make).parameters.items())[1:]}
        for name in given:
            checks.one_of(f"setting of {self.make.__name__}", name, known)
        return known | given


def real_batch(rows: torch.Tensor, n: int, seed: int, iteration: int, c: int) -> torch.Tensor:
    """``n`` of the ``rows`` of class ``c``, without replacement."""
    drawn = torch.randperm(len(rows), generator=generator(seed, "real batch", iteration, c))[:n]
    return rows[drawn.to(rows.device, non_blocking=True)]


def rows_by_class(job: Job, what: str, batch_real: int) -> list[torch.Tensor]:
    """The training rows of every class; ``ValueError`` unless each has ``batch_real`` of them."""
    checks.whole(f"batch_real of {what}", batch_real)
    by_class = [class_rows(job.data.train_y, c) for c in range(job.data.n_classes)]
    smallest = min(map(len, by_class))
    if smallest < batch_real:
        raise ValueError(f"batch_real is {batch_real}: the smallest class of {job.data.name} has {smallest} images")
    return by_class


def match(
    job: Job, initialisation: str, iterations: int, step: Callable[[int, torch.Tensor, torch.Tensor], Numbers]
) -> Made:
    """The loop of a matching method: ``step(iteration, x, velocity)`` changes both in place and says what to record."""
    x, velocity, history = _resume(job, initialisation)
    for iteration in range(len(next(iter(history.values()), [])), iterations):
        if job.keep:
            job.keep(iteration, lambda: {"x": x, "y": job.labels()})
        for name, value in step(iteration, x, velocity).items():
            history.setdefault(name, []).append(value)
        job.advance()
        if job.checkpoint and job.checkpoint.due():
            job.checkpoint.save({"x": x, "momentum": velocity} | _recorded(history))
    return Made(x, job.labels(), {name: torch.tensor(values) for name, values in history.items()})


def move(
    job: Job, x: torch.Tensor, velocity: torch.Tensor, gradient: torch.Tensor, rate: float, momentum: float, update: int
) -> Numbers:
    """One update of the images ``x`` by gradient descent with momentum, in place; the regulariser counts, where there
    is one, and its value is returned.
    """
    value, extra = job.regulariser(x, job.labels(), update) if job.regulariser else (None, 0.0)
    velocity.mul_(momentum).add_(gradient + extra)
    x.sub_(velocity, alpha=rate)
    return {} if value is None else {"regulariser": value}


def _recorded(history: dict[str, list[float]]) -> Tensors:
    return {f"history/{name}": torch.tensor(values, dtype=torch.float64) for name, values in history.items()}


def _resume(job: Job, initialisation: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, list[float]]]:
    """Images, their momentum and what was recorded so far: from the checkpoint where there is one."""
    saved = job.checkpoint.load() if job.checkpoint else None
    if saved is None:
        x = job.start(initialisation)
        return x, torch.zeros_like(x), {}
    device = job.data.train_x.device
    recorded = {k.removeprefix("history/"): t.tolist() for k, t in saved.items() if k.startswith("history/")}
    return saved["x"].to(device), saved["momentum"].to(device), recorded
