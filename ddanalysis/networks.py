"""K networks of one architecture as one immutable state.

``Networks`` holds every parameter with a leading K. K = 1 is the ordinary case, K = 520 a model pool, K = 101 a
leave-one-out study. Its methods are pure: they change nothing and draw nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch.nn import init

from ddanalysis import checks
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute, images_per_pass, logits_function, networks_together, slices
from ddanalysis.layers import Parameters, Weight
from ddanalysis.rules import WEIGHTS
from ddanalysis.seeding import generator

INITIALISATIONS = WEIGHTS


@dataclass(frozen=True)
class Networks:
    """K networks: ``state[name]`` is (K, ...), trainable parameters and running statistics alike."""

    architecture: Architecture
    state: Parameters

    def __post_init__(self) -> None:
        weights = self.architecture.weights()
        if set(weights) != set(self.state):
            odd = sorted(set(weights) ^ set(self.state))
            raise ValueError(f"the state does not fit {self.architecture.name}: {odd[0]} is missing or not known")
        for name, weight in weights.items():
            if tuple(self.state[name].shape) != (len(self), *weight.shape):
                raise ValueError(f"{name} is {tuple(self.state[name].shape)}: {(len(self), *weight.shape)} is needed")

    def __len__(self) -> int:
        return next(iter(self.state.values())).shape[0]

    def __getitem__(self, index: int | slice | Sequence[int]) -> "Networks":
        """Some of the networks, always with a leading K."""
        chosen = [index] if isinstance(index, int) else index
        return replace(self, state={name: t[chosen] for name, t in self.state.items()})

    def __iter__(self) -> Iterator["Networks"]:
        return (self[k] for k in range(len(self)))

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(iter(self.state.values())).device

    def to(self, target: torch.device | torch.dtype | str) -> "Networks":
        """The same networks on another device or in another floating-point type."""
        return replace(self, state={name: t.to(target) for name, t in self.state.items()})

    def trainable(self) -> list[str]:
        """Names of the parameters that training changes by gradients."""
        return [name for name, w in self.architecture.weights().items() if not w.role.startswith("running")]

    def running(self) -> Parameters:
        """The running statistics of batch normalisation, the rest of the state."""
        learned = set(self.trainable())
        return {name: t for name, t in self.state.items() if name not in learned}

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Images for all networks: (n, c, h, w) seen by each, or (K, n, c, h, w) of their own -> (n, K * c, h, w)."""
        if x.ndim == 4:
            return x if len(self) == 1 else x.repeat(1, len(self), 1, 1)
        if x.ndim != 5 or x.shape[0] != len(self):
            raise ValueError(f"images have shape {tuple(x.shape)}: (n, c, h, w) or ({len(self)}, n, c, h, w) is needed")
        return x.transpose(0, 1).flatten(1, 2)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(K, n, classes) in evaluation mode, differentiable in images and parameters; one pass over everything."""
        return self.architecture.logits(self.state, self.spread(x)).transpose(0, 1)

    def features(self, x: torch.Tensor, training: bool = False) -> torch.Tensor:
        """Penultimate features (K, n, f), differentiable; ``training`` uses the batch's own statistics (batch
        normalisation).
        """
        updated: Parameters | None = {} if training else None
        return self.architecture.features(self.state, self.spread(x), updated).transpose(0, 1)

    @torch.no_grad()
    def all_features(self, x: torch.Tensor) -> torch.Tensor:
        """Penultimate features (n, f) of the one network's images (n, c, h, w), in bounded memory."""
        if len(self) != 1:
            raise ValueError(f"features of {len(self)} networks were asked for at once: pick one, networks[k]")
        per_pass = images_per_pass(self.architecture, 1, x.device)
        return torch.cat([self.features(x[s])[0] for s in slices(len(x), per_pass)])

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy (K,) over images of labels y (n,) ids or (n, classes) soft, differentiable."""
        return cross_entropy(self.logits(x), y).mean(1)

    @torch.no_grad()
    def evaluate(self, x: torch.Tensor, y: torch.Tensor, compute: Compute = Compute()) -> "Outputs":
        """Predictions, accuracies and losses of every network on images (n, c, h, w) with labels y, in bounded
        memory.
        """
        _fits(self.architecture, x)
        together = min(networks_together(self.architecture, 64, x.device), len(self))
        per_pass = images_per_pass(self.architecture, together, x.device)
        parts = [self[s]._evaluate(x, y, compute, per_pass) for s in slices(len(self), together)]
        return Outputs(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Outputs)))

    def _evaluate(self, x: torch.Tensor, y: torch.Tensor, compute: Compute, per_pass: int) -> "Outputs":
        forward, logits = logits_function(self.architecture, compute), []
        for s in slices(len(x), per_pass):
            images = x[s]
            if compute.compiled and len(images) < per_pass:  # one compiled shape serves every slice
                images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, per_pass - len(images)))
            logits.append(forward(self.state, self.spread(images))[: s.stop - s.start])
        both = torch.cat(logits).transpose(0, 1)
        predictions, hard = both.argmax(2), y.argmax(1) if y.is_floating_point() else y
        return Outputs(predictions, (predictions == hard).double().mean(1), cross_entropy(both, y).double().mean(1))


@dataclass(frozen=True)
class Outputs:
    """What K networks say of n images."""

    predictions: torch.Tensor  # (K, n) int64 class ids
    accuracy: torch.Tensor  # (K,) float64, share of 1
    loss: torch.Tensor  # (K,) float64, mean cross-entropy


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (K, n) of logits (K, n, classes) and labels (n,) ids or (n, classes) soft rows."""
    if y.is_floating_point():
        return -(y * F.log_softmax(logits, 2)).sum(2)
    return F.cross_entropy(logits.transpose(1, 2), y.expand(len(logits), -1), reduction="none")


def create(
    architecture: Architecture,
    seeds: Sequence[int],
    initialisation: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Networks:
    """One freshly initialised network a seed; a network depends on its own seed alone.

    ``initialisation`` is one of ``INITIALISATIONS``, or "" for the architecture's own ("default": PyTorch's). Biases
    are PyTorch's in "default" and 0 otherwise; the gain is that of ReLU for Kaiming and 1 else. "kaiming_convolutions"
    is "kaiming_normal" for convolutions, "default" for linear layers. "kaiming_in", of variance 1 / fan-in, and
    "normal", of variance 1, are among those of Wang et al. 2018 (code).
    """
    initialisation = initialisation or architecture.initialisation
    checks.one_of("initialisation", initialisation, INITIALISATIONS)
    if not len(seeds):
        raise ValueError("no seeds were given: a pool needs at least 1 network")
    weights = architecture.weights()
    state = {name: torch.empty(len(seeds), *w.shape) for name, w in weights.items()}
    for k, seed in enumerate(seeds):
        g = generator(seed, "initialisation")
        for name, weight in weights.items():
            _initialise(state[name][k], weight, initialisation, g)
    return Networks(architecture, state).to(device).to(dtype)


def _initialise(t: torch.Tensor, weight: Weight, how: str, g: torch.Generator) -> None:
    if how == "kaiming_convolutions":
        how = "kaiming_normal" if t.ndim == 4 else "default"
    if weight.role in ("scale", "running_var"):
        t.fill_(1.0)
    elif weight.role in ("shift", "running_mean"):
        t.zero_()
    elif weight.role == "bias":
        bound = 1 / math.sqrt(weight.fan_in) if how == "default" else 0.0
        t.uniform_(-bound, bound, generator=g)
    elif how == "default":
        init.kaiming_uniform_(t, a=math.sqrt(5), generator=g)
    elif how == "kaiming_normal":
        init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu", generator=g)
    elif how == "kaiming_in":
        init.kaiming_normal_(t, a=1.0, generator=g)
    elif how == "kaiming_uniform":
        init.kaiming_uniform_(t, nonlinearity="relu", generator=g)
    else:
        getattr(init, f"{how}_")(t, generator=g)


def stack(parts: Sequence[Networks]) -> Networks:
    """Networks of one architecture, one group after the other."""
    names = sorted({part.architecture.name for part in parts})
    if len({part.architecture for part in parts}) != 1:
        raise ValueError(f"networks of {', '.join(names)} cannot be one state: one architecture is needed")
    return Networks(
        parts[0].architecture, {name: torch.cat([part.state[name] for part in parts]) for name in parts[0].state}
    )


def _fits(architecture: Architecture, x: torch.Tensor) -> None:
    shape = (architecture.channels, architecture.size, architecture.size)
    if x.ndim != 4 or tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"images have shape {tuple(x.shape)}: {architecture.name} takes (n, {', '.join(map(str, shape))})"
        )
