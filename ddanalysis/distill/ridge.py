"""Networks whose last layer is a running mean of ridge regressions: label distillation's other learner.

Bohdal et al. 2020 (code). With features Z = [phi(x), 1] of a batch and its labels Y, the batch's own head is the dual
ridge solution w_l = Z' (Z Z' + penalty I)^-1 Y, and the network's is w <- (1 - head_rate) w + head_rate w_l, from 0.
The features learn by the soft cross-entropy of Z s w, whose gradient counts the newest w_l too; s is a learned scale
that predictions leave out.

K learners are named states: "network" (K, P), "head" (K, f + 1, classes) and "scale" (K, 1, 1).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks, optimisers, unroll
from ddanalysis.architectures import Architecture
from ddanalysis.compute import images_per_pass, slices
from ddanalysis.layers import Parameters
from ddanalysis.networks import Networks, cross_entropy
from ddanalysis.optimisers import Optimiser
from ddanalysis.store import Tensors
from ddanalysis.unroll import State

ADAM = Optimiser("adam")
States = dict[str, State]


@dataclass(frozen=True)
class Ridge:
    """The published constants of a ridge head."""

    penalty: float = 1.0  # on the bias too
    head_rate: float = 0.01
    scale_rate: float = 0.01  # of Adam

    def __post_init__(self) -> None:
        for name in ("penalty", "head_rate", "scale_rate"):
            checks.at_least(f"{name} of the ridge head", getattr(self, name), 0)
        if not self.penalty:
            raise ValueError("penalty of the ridge head is 0: it must be above, for a solution in every batch")
        if self.head_rate > 1:
            raise ValueError(f"head_rate of the ridge head is {self.head_rate}: it must be at most 1")


PUBLISHED = Ridge()


def descend(state: State, gradient: Tensor, rate: float, optimiser: Optimiser = ADAM) -> State:
    """One more update."""
    weights, averages = optimisers.update(optimiser, state.weights, state.averages, gradient, rate, state.step)
    return State(weights, averages, state.step + 1)


def start(weights: Tensor, optimiser: Optimiser = ADAM) -> State:
    """Weights before their first update."""
    return State(weights, optimiser.averages(weights))


def begin(networks: Networks, optimiser: Optimiser = ADAM) -> States:
    """Learners before their first step, of whose networks the last layer is not used."""
    weights, last = unroll.flat(networks), networks.architecture.weights()["head.weight"].shape
    head = weights.new_zeros(len(weights), last[1] + 1, last[0])
    scale = weights.new_ones(len(weights), 1, 1)
    return {"network": start(weights, optimiser), "head": State(head), "scale": start(scale)}


def features(architecture: Architecture, weights: Tensor, x: Tensor, running: Parameters) -> Tensor:
    """Features and a column of ones (K, n, f + 1), by the statistics of the batch, which ``running`` is updated with.

    ``weights`` (K, P); ``x`` (n, c, h, w), or with a leading K.
    """
    networks = unroll.unflat(architecture, weights)
    updated: Parameters = {}
    found = architecture.features(networks.state | running, networks.spread(x), updated).transpose(0, 1)
    running.update({name: t.detach() for name, t in updated.items()})
    return torch.cat([found, found.new_ones(*found.shape[:2], 1)], 2)


def solution(z: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Z' (Z Z' + penalty I)^-1 Y: (K, f, classes) of features (K, n, f) and labels (K, n, classes) or (n, classes)."""
    return z.mT @ _solved(z, y, penalty)


def _solved(z: Tensor, right: Tensor, penalty: float) -> Tensor:
    """(Z Z' + penalty I)^-1 times (..., n, m)."""
    kernel = z @ z.mT + penalty * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return torch.linalg.solve(kernel, right.expand(len(z), -1, -1))


@dataclass(frozen=True)
class Fit:
    """A batch as its learners see it, with the graph back to weights and scale (the leaves)."""

    weights: Tensor
    scale: Tensor
    z: Tensor
    head: Tensor  # with the batch's solution in it


def fit(architecture: Architecture, states: States, x: Tensor, y: Tensor, ridge: Ridge, running: Parameters) -> Fit:
    """Features of a batch, and the head with its solution; ``x`` and ``y`` are in the graph if they want a gradient."""
    weights, scale = (states[name].weights.detach().requires_grad_() for name in ("network", "scale"))
    with torch.enable_grad():
        z = features(architecture, weights, x, running)
        head = states["head"].weights.lerp(solution(z, y, ridge.penalty), ridge.head_rate)
    return Fit(weights, scale, z, head)


def learned(
    states: States, batch: Fit, y: Tensor, ridge: Ridge, rate: float, optimiser: Optimiser = ADAM
) -> tuple[States, Tensor]:
    """The learners after the step of features and scale on labels ``y`` of the batch, and their losses (K,)."""
    with torch.enable_grad():
        losses = cross_entropy(batch.z @ (batch.scale * batch.head), y).mean(1)
        into_weights, into_scale = torch.autograd.grad(losses.sum(), (batch.weights, batch.scale))
    new = {
        "network": descend(states["network"], into_weights, rate, optimiser),
        "head": State(batch.head.detach(), (), states["head"].step + 1),
        "scale": descend(states["scale"], into_scale, ridge.scale_rate),
    }
    return states | new, losses.detach()


@torch.no_grad()
def target(architecture: Architecture, batch: Fit, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the learners say of target images: losses (K,), accuracies (K,), and the gradient (K, f + 1, classes) of the
    losses in the batch's head.
    """
    weights, n = batch.weights.detach(), len(x)
    calibrated = (batch.scale * batch.head).detach()
    size = n if architecture.batch_statistics else images_per_pass(architecture, len(weights), x.device)
    losses, gradient = weights.new_zeros(len(weights)), torch.zeros_like(calibrated)
    right = torch.zeros_like(losses, dtype=torch.int64)
    for s in slices(n, size):
        z = features(architecture, weights, x[s], {})
        logits = z @ calibrated
        losses += cross_entropy(logits, y[s]).sum(1) / n
        right += (logits.argmax(2) == y[s]).sum(1)
        gradient += z.mT @ (logits.softmax(2) - F.one_hot(y[s], logits.shape[2])) / n
    return losses, right.double() / n, batch.scale.detach() * gradient


@torch.no_grad()
def label_gradient(batch: Fit, gradient: Tensor, ridge: Ridge) -> Tensor:
    """The derivative (K, n, classes) of a loss in the labels of the batch, from its ``gradient`` in the batch's head:
    head_rate (Z Z' + penalty I)^-1 Z times it.
    """
    return ridge.head_rate * _solved(batch.z, batch.z @ gradient, ridge.penalty)


def networks(architecture: Architecture, states: States, running: Parameters) -> Networks:
    """The learners as networks: the head, without its scale, is their last layer."""
    found, head = unroll.unflat(architecture, states["network"].weights).state, states["head"].weights
    last = {"head.weight": head[:, :-1].mT.contiguous(), "head.bias": head[:, -1]}
    return Networks(architecture, {name: t.clone() for name, t in (found | running | last).items()})


def tensors(states: States) -> Tensors:
    """States as named tensors, of which :func:`restored` makes them again."""
    saved: Tensors = {}
    for name, state in states.items():
        saved |= {f"{name}/weights": state.weights, f"{name}/step": torch.tensor(state.step)}
        saved |= {f"{name}/average{i}": t for i, t in enumerate(state.averages)}
    return saved


def restored(saved: Tensors, device: torch.device) -> States:
    """The states of their :func:`tensors`."""
    names = [name.removesuffix("/weights") for name in saved if name.endswith("/weights")]
    states = {}
    for name in names:
        count = sum(key.startswith(f"{name}/average") for key in saved)
        averages = tuple(saved[f"{name}/average{i}"].to(device) for i in range(count))
        states[name] = State(saved[f"{name}/weights"].to(device), averages, int(saved[f"{name}/step"]))
    return states


def under(prefix: str, saved: Tensors) -> Tensors:
    """Those of the tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): t for name, t in saved.items() if name.startswith(prefix)}
