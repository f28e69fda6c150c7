"""What every method takes and gives."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ddanalysis import checks
from ddanalysis.architectures import Architecture
from ddanalysis.data import ImageData, balanced_rows, class_rows
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint, Tensors


@dataclass(frozen=True)
class Job:
    """One set to be made: ``ipc`` images a class of ``data``, with networks of ``architecture`` where the method uses
    any.
    """

    data: ImageData
    architecture: Architecture
    ipc: int
    seed: int = 0
    checkpoint: Checkpoint | None = None
    progress: Callable[[int], object] | None = None

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
        """The images a method starts from: "real" or "noise"."""
        checks.one_of("initialisation of the images", initialisation, ("real", "noise"))
        return self.real_images() if initialisation == "real" else self.noise()


@dataclass(frozen=True)
class Made:
    """Images (n, c, h, w) and labels of a new set, and what was recorded while it was made (one row an iteration)."""

    x: torch.Tensor
    y: torch.Tensor
    history: Tensors = field(default_factory=dict)
    learning_rates: torch.Tensor | None = None  # (1,) the step size to train with, where the method learns one


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


def resume(job: Job, initialisation: str) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Images, their momentum and the losses so far: from the checkpoint where there is one."""
    saved = job.checkpoint.load() if job.checkpoint else None
    if saved is None:
        x = job.start(initialisation)
        return x, torch.zeros_like(x), []
    device = job.data.train_x.device
    return saved["x"].to(device), saved["momentum"].to(device), saved["losses"].tolist()


def real_batch(rows: torch.Tensor, n: int, seed: int, iteration: int, c: int) -> torch.Tensor:
    """``n`` of the ``rows`` of class ``c``, without replacement."""
    return rows[torch.randperm(len(rows), generator=generator(seed, "real batch", iteration, c))[:n].to(rows.device)]


def rows_by_class(job: Job, what: str, batch_real: int) -> list[torch.Tensor]:
    """The training rows of every class; ``ValueError`` unless each has ``batch_real`` of them."""
    checks.whole(f"batch_real of {what}", batch_real)
    by_class = [class_rows(job.data.train_y, c) for c in range(job.data.n_classes)]
    smallest = min(map(len, by_class))
    if smallest < batch_real:
        raise ValueError(f"batch_real is {batch_real}: the smallest class of {job.data.name} has {smallest} images")
    return by_class


def match(
    job: Job, initialisation: str, iterations: int, step: Callable[[int, torch.Tensor, torch.Tensor], float]
) -> Made:
    """The loop of a matching method: ``step(iteration, x, velocity)`` changes both in place and returns the loss."""
    x, velocity, losses = resume(job, initialisation)
    for iteration in range(len(losses), iterations):
        losses.append(step(iteration, x, velocity))
        job.advance()
        if job.checkpoint and job.checkpoint.due():
            job.checkpoint.save({"x": x, "momentum": velocity, "losses": torch.tensor(losses)})
    return Made(x, job.labels(), {"loss": torch.tensor(losses)})
