"""When label distillation begins a new network, and for how many steps its labels are to be trained on.

The clock of Bohdal et al. 2020 (code): it watches the sum of the last ``window`` errors. Once that has not fallen for
``window`` steps in a row, the next step that does not lower it either ends the network, and the step at which the sum
was lowest is recorded. So the earliest record is ``window``, and the earliest end step 2 ``window`` + 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ddanalysis import checks
from ddanalysis.store import Tensors


@dataclass(frozen=True)
class Clock:
    """The clock of one network: ``steps`` it has made, the last errors, and their lowest sum so far."""

    window: int
    steps: int = 0
    errors: tuple[float, ...] = ()
    lowest: float = math.inf
    best: int = 0  # the step of the lowest sum, counted from 1
    waited: int = 0  # steps since then, at most the window

    def __post_init__(self) -> None:
        checks.whole("window of the reset clock", self.window)

    def tick(self, error: float) -> tuple["Clock", int | None]:
        """The clock after one more step of this error; of the next network, with the step to record, if it ends."""
        errors, steps = (*self.errors, error)[-self.window :], self.steps + 1
        if steps < self.window:
            return Clock(self.window, steps, errors), None
        total = math.fsum(errors)  # of equal errors in another order the same number
        if total < self.lowest:
            return Clock(self.window, steps, errors, total, steps), None
        if self.waited < self.window:
            return Clock(self.window, steps, errors, self.lowest, self.best, self.waited + 1), None
        return Clock(self.window), self.best

    def tensors(self) -> Tensors:
        """What :func:`restored` makes the clock of again."""
        numbers = (self.window, self.steps, self.best, self.waited, self.lowest)
        as_float64 = {"numbers": numbers, "errors": self.errors}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in as_float64.items()}


def restored(saved: Tensors) -> Clock:
    """The clock of its :meth:`Clock.tensors`."""
    window, steps, best, waited = map(int, saved["numbers"][:4].tolist())
    return Clock(window, steps, tuple(saved["errors"].tolist()), float(saved["numbers"][4]), best, waited)


def published_window(dataset: str, n: int, learn: str = "labels") -> int:
    """The published window for ``n`` base images of a target: 50, 100 or 200; 50 wherever images are learned."""
    checks.one_of("thing to learn", learn, ("labels", "images"))
    if learn == "images":
        return 50
    if dataset.split("-")[0] in ("cifar100", "kuzushiji49", "kuzushiji49_published"):
        return 100
    return 200 if n > 100 else 50


def steps_to_train(recorded: Sequence[int], steps: int) -> int:
    """How long to train on the labels: the mean of the last three records, rounded down; ``steps``, those made so far,
    before the first.
    """
    last = recorded[-3:]
    return sum(last) // len(last) if last else steps
