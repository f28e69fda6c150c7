"""The settings of dataset distillation, with hard labels and with soft ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ddanalysis import augment, checks
from ddanalysis.compute import Compute
from ddanalysis.networks import INITIALISATIONS
from ddanalysis.optimisers import Optimiser

INNER = {"sgd": Optimiser(), "adam": Optimiser("adam"), "adam-higher": Optimiser("adam", early_epsilon=True)}
"""What networks descend by: published, PyTorch's Adam, and that of the library higher."""

BETAS = {"adam": (0.5, 0.999), "adamw": (0.9, 0.999)}
"""Of the outer optimisers: the published one, and PyTorch's AdamW."""


@dataclass(frozen=True)
class Settings:
    """The settings of :func:`dataset_distillation.dd`, by default the published ones; making one checks what can be
    checked without data.
    """

    iterations: int = 23_600
    steps: int = 10
    passes: int = 3
    step_size: float = 0.02
    rate: float = 0.01
    decay: float = 0.5
    decay_every: int = 2_360
    batch_real: int = 1024
    networks: str = "random"
    at_once: int = 1
    fixed: int = 1
    weights: str = "xavier_normal"
    learn_images: bool = True
    learn_labels: bool = False
    learn_rates: bool = True
    label_start: str = "one-hot"
    label_file: str = ""
    label_scale: float = 1.0
    label_shift: float = 0.0
    label_softmax: bool = False
    label_classes: Sequence[int] | None = None
    attack: Sequence[int] | None = None
    source: str = ""
    pretrained: int = 200
    pretrained_epochs: int | None = None
    initialisation: str = "noise"
    strategy: str = ""
    inner: str = "sgd"
    positive_rates: bool = True
    shared_rate: bool = False
    outer: str = "adam"
    weight_decay: float = 0.0
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "steps", "passes", "decay_every", "batch_real", "at_once", "fixed", "pretrained"):
            checks.whole(f"{name} of DD", getattr(self, name))
        checks.whole("pretrained_epochs of DD", 1 if self.pretrained_epochs is None else self.pretrained_epochs)
        for name in ("rate", "weight_decay"):
            checks.at_least(f"{name} of DD", getattr(self, name), 0)
        for name, highest in (("step_size", math.inf), ("decay", 1.0)):
            if not 0 < getattr(self, name) <= highest:
                raise ValueError(f"{name} of DD is {getattr(self, name)!r}: it must be above 0, and at most {highest}")
        checks.one_of("networks of DD", self.networks, ("random", "fixed", "pretrained", "imagenet"))
        checks.one_of("weights of DD", self.weights, INITIALISATIONS)
        checks.one_of("inner optimiser of DD", self.inner, tuple(INNER))
        checks.one_of("outer optimiser of DD", self.outer, tuple(BETAS))
        if self.weight_decay and self.outer != "adamw":
            raise ValueError(f"weight_decay of DD is {self.weight_decay}: it is for outer 'adamw'")
        if self.source and self.networks != "pretrained":
            raise ValueError(f"source of DD is {self.source!r}: networks are {self.networks!r}, not 'pretrained' on it")
        if not (self.learn_images or self.learn_labels or self.learn_rates):
            raise ValueError("DD is to learn neither images nor labels nor rates: there is nothing to do")
        augment.parse_strategy(self.strategy)
        Compute(compiled=self.compiled)

    def rate_in(self, iteration: int) -> float:
        """The rate of everything that is learned, in ``iteration``, counted from 0."""
        return self.rate * self.decay ** (iteration // self.decay_every)
