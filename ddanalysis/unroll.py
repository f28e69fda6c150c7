"""Training that can be differentiated: K networks trained for T steps, and the exact derivative of where they end.

The way there keeps the weights before each step and no graph; the way back makes the graph of one step at a time anew,
so memory hardly grows with T. For SGD with momentum, v' = mu v + g(w; x) and w' = w - r v', the way back is (Deng and
Russakovsky, *Remember the past*, NeurIPS 2022), from lw = dL/dw_T and lv = 0 and with t falling::

    lv -= r lw;  (hx, hw) = d<g(w_t; x_t), lv> / d(x, w);  dL/dx_t = hx;  lw += hw;  lv *= mu

Plain SGD is its case mu = 0, trajectory matching its case with a learned r, and Adam has two averages in place of one.

Weights of K networks are one matrix (K, P), the rows of parameters one after the other in the order of the
architecture. Batch normalisation uses the statistics of each batch throughout and keeps no running ones.

``compiled`` has the gradient of a step and its derivative through ``torch.compile``, which takes about a minute and a
C++ compiler on a CPU, and then about 1.4 times less time a step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from ddanalysis import checks
from ddanalysis.architectures import Architecture
from ddanalysis.compute import images_per_pass, slices
from ddanalysis.layers import Parameters, Weight
from ddanalysis.networks import Networks, cross_entropy

Batches = Callable[[int], tuple[Tensor, Tensor]]
"""The batch of a step, counted from 0: images (n, c, h, w) for all networks, or (K, n, c, h, w), and labels with or
without that K, ids or soft rows. A function of what is learned, computed anew, with the same result, at every call.
"""

Betas = tuple[float, float]
EPSILON = 1e-8
SEGMENT = 4
"""Steps from one kept pair of Adam's averages to the next: those between are made anew on the way back."""


@dataclass(frozen=True)
class Optimiser:
    """SGD with ``momentum`` (0: none), or Adam with ``betas``; other constants and the arithmetic are PyTorch's."""

    kind: str = "sgd"
    momentum: float = 0.0
    betas: Betas = (0.9, 0.999)

    def __post_init__(self) -> None:
        checks.one_of("optimiser", self.kind, ("sgd", "adam"))
        checks.at_least("momentum", self.momentum, 0)

    def averages(self, like: Tensor) -> tuple[Tensor, ...]:
        """The running averages before the first update: none, the momentum, or Adam's mean and square."""
        count = 2 if self.kind == "adam" else int(self.momentum > 0)
        return tuple(torch.zeros_like(like) for _ in range(count))


@dataclass(frozen=True)
class State:
    """K networks in training: weights and each running average (K, P), and how many updates are done."""

    weights: Tensor
    averages: tuple[Tensor, ...] = ()
    step: int = 0


@dataclass(frozen=True)
class Trace:
    """T steps of training as :func:`adjoint` needs them: the weights before each, and what its optimiser wants kept."""

    weights: Tensor  # (T, K, P)
    kept: list[tuple[Tensor, ...]]
    marks: list[tuple[Tensor, ...]]  # Adam's averages before every SEGMENT-th step
    rates: Tensor  # (T,)
    first: int  # updates that were done before
    end: State


@dataclass(frozen=True)
class Gradients:
    """The derivative of a loss of the end, summed over the K networks."""

    inputs: list[Tensor]  # as the inputs asked for
    rates: Tensor | None  # (T,), one a step: a shared rate has their sum; None if not asked for
    weights: Tensor  # (K, P) in the initial weights
    averages: tuple[Tensor, ...]  # in the initial averages


Layout = list[tuple[str, Weight, int]]
"""(name, weight, numbers in the matrix of weights) of every parameter; running statistics have none."""


@cache
def _layout(architecture: Architecture) -> Layout:
    weights = architecture.weights().items()
    return [(name, w, 0 if w.role.startswith("running") else math.prod(w.shape)) for name, w in weights]


def flat(networks: Networks) -> Tensor:
    """The trainable parameters of K networks as one matrix (K, P)."""
    return torch.cat([networks.state[name].flatten(1) for name in networks.trainable()], 1)


def unflat(architecture: Architecture, weights: Tensor) -> Networks:
    """The networks of a matrix (K, P), as views of it; their running statistics are those of fresh networks."""
    return Networks(architecture, _named(_layout(architecture), weights))


def _named(layout: Layout, weights: Tensor) -> Parameters:
    state: Parameters = {}
    for (name, weight, _), part in zip(layout, weights.split([size for *_, size in layout], 1), strict=True):
        if weight.role.startswith("running"):
            state[name] = weights.new_full((len(weights), *weight.shape), float(weight.role == "running_var"))
        else:
            state[name] = part.view(len(weights), *weight.shape)
    return state


def begin(networks: Networks, optimiser: Optimiser) -> State:
    """Networks before their first update."""
    weights = flat(networks)
    return State(weights, optimiser.averages(weights))


def update(
    optimiser: Optimiser,
    weights: Tensor,
    averages: tuple[Tensor, ...],
    gradient: Tensor,
    rate: Tensor | float,
    step: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """New weights and averages after update number ``step`` (counted from 0); any tensors of one shape."""
    if optimiser.kind == "adam":
        averages = _adam_averages(optimiser.betas, averages, gradient)
        direction, _ = _adam_direction(optimiser.betas, averages, step)
    else:
        direction = gradient.add(averages[0], alpha=optimiser.momentum) if averages else gradient
        averages = (direction,) if averages else ()
    return weights - rate * direction, averages


def _adam_averages(betas: Betas, averages: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, Tensor]:
    mean, square = averages
    return mean.lerp(gradient, 1 - betas[0]), (square * betas[1]).addcmul(gradient, gradient, value=1 - betas[1])


def _adam_direction(betas: Betas, averages: tuple[Tensor, ...], step: int) -> tuple[Tensor, Tensor]:
    """The direction of Adam, and the root of the unbiased square that it is divided by."""
    mean, square = averages
    unbiased = [1 - beta ** (step + 1) for beta in betas]
    root = (square / unbiased[1]).sqrt()
    return mean / unbiased[0] / (root + EPSILON), root


def loss_and_gradient(
    architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy (K,) of one batch, and its gradient (K, P), in bounded memory; no graph is left."""
    total, gradient = weights.new_zeros(len(weights)), torch.zeros_like(weights)
    first_order = _compiled(architecture, ()) if compiled else partial(_first_order, architecture)
    for part_x, part_y, n in _slices(architecture, weights, x, y):
        part, losses = first_order(weights.detach(), part_x.detach(), part_y.detach(), n)
        gradient += part
        total += losses
    return total, gradient


def _first_order(architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The gradient (K, P) of :func:`_losses` in the weights, and the losses."""
    leaf = weights.detach().requires_grad_()
    with torch.enable_grad():
        losses = _losses(architecture, _layout(architecture), leaf, x, y, n)
        return torch.autograd.grad(losses.sum(), leaf)[0], losses.detach()


def _losses(architecture: Architecture, layout: Layout, weights: Tensor, x: Tensor, y: Tensor, n: int) -> Tensor:
    """Cross-entropies (K,), summed over these images and divided by ``n``."""
    networks = Networks(architecture, _named(layout, weights))
    logits = architecture.logits(networks.state, networks.spread(x), {}).transpose(0, 1)
    return cross_entropy(logits, y).sum(1) / n


@cache
def _compiled(architecture: Architecture, wanted: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """:func:`_second_order` of one architecture compiled or, with nothing ``wanted``, :func:`_first_order`."""
    layout = _layout(architecture)

    def summed(weights: Tensor, x: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor]:
        losses = _losses(architecture, layout, weights, x, y, n)
        return losses.sum(), losses

    gradient = torch.func.grad(summed, has_aux=True)

    def inner_product(weights: Tensor, x: Tensor, y: Tensor, n: int, along: Tensor) -> Tensor:
        return (gradient(weights, x, y, n)[0] * along).sum()

    function = torch.func.grad(inner_product, argnums=wanted) if wanted else gradient
    return torch.compile(function, dynamic=False)


def _batch_dims(x: Tensor, y: Tensor) -> tuple[int, int]:
    """Which dimension of images and of labels counts the images of a batch: 0, or 1 where each network has its own."""
    return x.ndim - 4, y.ndim - (2 if y.is_floating_point() else 1)


def _slices(architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, int]]:
    """A batch in pieces (x, y, size of the whole); in one where it has batch statistics."""
    along_x, along_y = _batch_dims(x, y)
    n = x.shape[along_x]
    size = n if architecture.batch_statistics else images_per_pass(architecture, len(weights), weights.device)
    if size >= n:
        return [(x, y, n)]
    pieces = ((s.start, s.stop - s.start) for s in slices(n, size))
    return [(x.narrow(along_x, *piece), y.narrow(along_y, *piece), n) for piece in pieces]


@torch.no_grad()
def advance(
    architecture: Architecture,
    optimiser: Optimiser,
    state: State,
    batches: Batches,
    rates: Sequence[float] | Tensor,
    compiled: bool = False,
) -> State:
    """Train for one update a rate and keep nothing of the way."""
    for t, rate in enumerate(rates):
        _, gradient = loss_and_gradient(architecture, state.weights, *batches(t), compiled)
        weights, averages = update(optimiser, state.weights, state.averages, gradient, rate, state.step)
        state = State(weights, averages, state.step + 1)
    return state


@torch.no_grad()
def forward(
    architecture: Architecture,
    optimiser: Optimiser,
    state: State,
    batches: Batches,
    rates: Tensor,
    learned_rates: bool = False,
    compiled: bool = False,
) -> Trace:
    """Train for one update each of ``rates`` (T,) so that :func:`adjoint` can go back.

    A step costs the copy of its weights; Adam's gradient and half of one besides; with ``learned_rates`` SGD's
    direction.
    """
    if rates.ndim != 1 or len(rates) == 0:
        raise ValueError(
            f"the rates of an unroll have shape {tuple(rates.shape)}: (steps,), one step or more, is needed"
        )
    first, before = state.step, state.weights.new_empty(len(rates), *state.weights.shape)
    kept: list[tuple[Tensor, ...]] = []
    marks: list[tuple[Tensor, ...]] = []
    for t, rate in enumerate(rates.detach()):
        _, gradient = loss_and_gradient(architecture, state.weights, *batches(t), compiled)
        weights, averages = update(optimiser, state.weights, state.averages, gradient, rate, state.step)
        before[t] = state.weights
        if optimiser.kind == "adam":
            kept.append((gradient,))
            if t % SEGMENT == 0:
                marks.append(state.averages)
        else:
            kept.append((averages or (gradient,)) if learned_rates else ())
        state = State(weights, averages, state.step + 1)
    return Trace(before, kept, marks, rates.detach(), first, state)


def adjoint(
    architecture: Architecture,
    optimiser: Optimiser,
    trace: Trace,
    batches: Batches,
    gradient: Tensor,
    inputs: Sequence[Tensor],
    averages: tuple[Tensor, ...] | None = None,
    truncated: bool = False,
    compiled: bool = False,
) -> Gradients:
    """The derivative of a loss in ``inputs``, rates and initial state, from its ``gradient`` (K, P) in the end weights.

    ``inputs`` are leaves that require a gradient and that ``batches``, those of the way there, are a function of.
    ``averages`` are the loss's gradients in the end averages (None: it has none). ``truncated`` leaves out how a step
    changes the gradients of later steps (TESLA's approximation, exact for one step).
    """
    if not all(t.is_leaf and t.requires_grad for t in inputs):
        raise ValueError("the inputs of an adjoint must be leaves that require a gradient")
    if gradient.shape != trace.end.weights.shape:
        wanted = tuple(trace.end.weights.shape)
        raise ValueError(f"the gradient of the end is {tuple(gradient.shape)}: {wanted}, as the weights, is needed")
    into_weights, into_averages = gradient, averages or tuple(torch.zeros_like(t) for t in trace.end.averages)
    totals, into_rates = [torch.zeros_like(t) for t in inputs], torch.zeros_like(trace.rates)
    for t, kept in _backwards(optimiser, trace):
        rate, step = trace.rates[t], trace.first + t
        along, into_averages, direction = _back(optimiser, kept, into_weights, into_averages, rate, step)
        if direction is not None:
            into_rates[t] = -(into_weights * direction).sum()
        with torch.enable_grad():
            x, y = batches(t)
        into_x, into_y, hessian = _step_back(architecture, trace.weights[t], x, y, along, not truncated, compiled)
        into_weights = into_weights if hessian is None else into_weights + hessian
        _add(totals, inputs, (x, y), (into_x, into_y))
    return Gradients(totals, into_rates if trace.kept[0] else None, into_weights, into_averages)


def through(
    architecture: Architecture,
    optimiser: Optimiser,
    state: State,
    batches: Batches,
    rates: Tensor,
    inputs: Sequence[Tensor],
    end: Callable[[Tensor], tuple[Tensor, Tensor]],
    segment: int,
    compiled: bool = False,
) -> tuple[Tensor, Gradients]:
    """:func:`forward`, the losses (K,) of ``end`` and their :func:`adjoint`, a ``segment`` of the steps at a time.

    ``end`` gives the losses of the end weights (K, P) and the gradient of their sum. Kept are the weights where
    segments begin and those in one of them, for which all but the last are walked twice.
    """
    parts, starts = list(slices(len(rates), segment)), [state]
    for part in parts[:-1]:
        starts.append(
            advance(architecture, optimiser, starts[-1], _from(part, batches), rates[part].detach(), compiled)
        )

    def trace_of(i: int) -> Trace:
        own = _from(parts[i], batches)
        return forward(architecture, optimiser, starts[i], own, rates[parts[i]], compiled=compiled)

    def back(trace: Trace, i: int, gradient: Tensor, averages: tuple[Tensor, ...] | None) -> Gradients:
        own = _from(parts[i], batches)
        return adjoint(architecture, optimiser, trace, own, gradient, inputs, averages, compiled=compiled)

    trace = trace_of(len(parts) - 1)
    losses, gradient = end(trace.end.weights)
    found = back(trace, len(parts) - 1, gradient, None)
    del trace
    totals, into_rates = found.inputs, [found.rates]
    for i in reversed(range(len(parts) - 1)):
        found = back(trace_of(i), i, found.weights, found.averages)
        totals = [total + own for total, own in zip(totals, found.inputs, strict=True)]
        into_rates.insert(0, found.rates)
    known = [rates for rates in into_rates if rates is not None]
    return losses, Gradients(totals, torch.cat(known) if known else None, found.weights, found.averages)


def _from(part: slice, batches: Batches) -> Batches:
    return lambda t: batches(part.start + t)


def _backwards(optimiser: Optimiser, trace: Trace) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """The steps from the last to the first, and what was kept of each: of Adam, the averages after the step too."""
    if optimiser.kind != "adam":
        yield from reversed(list(enumerate(trace.kept)))
        return
    for start in reversed(range(0, len(trace.kept), SEGMENT)):
        averages, segment = trace.marks[start // SEGMENT], []
        for t in range(start, min(start + SEGMENT, len(trace.kept))):
            averages = _adam_averages(optimiser.betas, averages, trace.kept[t][0])
            segment.append((t, (trace.kept[t][0], *averages)))
        yield from reversed(segment)


def _back(
    optimiser: Optimiser,
    kept: tuple[Tensor, ...],
    into_weights: Tensor,
    into_averages: tuple[Tensor, ...],
    rate: Tensor,
    step: int,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """One :func:`update` backwards: the adjoints of its gradient and of the averages before it, and its direction."""
    if optimiser.kind == "adam":
        return _back_adam(optimiser.betas, kept, rate * into_weights, into_averages, step)
    along = -rate * into_weights
    if into_averages:
        along = along + into_averages[0]
    return along, tuple(optimiser.momentum * along for _ in into_averages), kept[0] if kept else None


def _back_adam(
    betas: Betas, kept: tuple[Tensor, ...], into_step: Tensor, into_averages: tuple[Tensor, ...], step: int
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """As :func:`_back`; the root's infinite slope at 0, where a unit is dead, counts as 0."""
    gradient, *averages = kept
    unbiased = [1 - beta ** (step + 1) for beta in betas]
    direction, root = _adam_direction(betas, (averages[0], averages[1]), step)
    scaled = into_step / (root + EPSILON)
    into_mean = into_averages[0] - scaled / unbiased[0]
    slope = (0.5 * scaled * direction / (root * unbiased[1])).where(root > 0, 0)
    into_square = into_averages[1] + slope
    along = (1 - betas[0]) * into_mean + 2 * (1 - betas[1]) * gradient * into_square
    return along, (betas[0] * into_mean, betas[1] * into_square), direction


def _step_back(
    architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, along: Tensor, hessian: bool, compiled: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives of <gradient(weights; x, y), ``along``> in x, y and, if ``hessian``, in the weights.

    None where x or y depend on nothing that is learned.
    """
    wanted = tuple(i for i, asked in enumerate((hessian, x.requires_grad, y.requires_grad)) if asked)
    found: dict[int, list[Tensor]] = {i: [] for i in wanted}
    if wanted:
        second_order = _compiled(architecture, wanted) if compiled else partial(_second_order, architecture, wanted)
        for part_x, part_y, n in _slices(architecture, weights, x.detach(), y.detach()):
            for i, part in zip(wanted, second_order(weights.detach(), part_x, part_y, n, along), strict=True):
                found[i].append(part)
    into_weights = torch.stack(found[0]).sum(0) if hessian else None
    into_x, into_y = (
        torch.cat(found[i], along) if i in found else None for i, along in enumerate(_batch_dims(x, y), 1)
    )
    return into_x, into_y, into_weights


def _second_order(
    architecture: Architecture, wanted: tuple[int, ...], weights: Tensor, x: Tensor, y: Tensor, n: int, along: Tensor
) -> tuple[Tensor, ...]:
    """The derivatives of <gradient, ``along``> in those ``wanted`` of (0) weights, (1) x and (2) y."""
    leaf = weights.detach().requires_grad_()
    given = (leaf, x.detach().requires_grad_(1 in wanted), y.detach().requires_grad_(2 in wanted))
    with torch.enable_grad():
        loss = _losses(architecture, _layout(architecture), *given, n).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return torch.autograd.grad(gradient, [given[i] for i in wanted], along)


def _add(
    totals: list[Tensor], inputs: Sequence[Tensor], outputs: tuple[Tensor, ...], found: tuple[Tensor | None, ...]
) -> None:
    """Carry the derivatives ``found`` of a batch back to what it was made of, and add them up."""
    pairs = [(output, own) for output, own in zip(outputs, found, strict=True) if own is not None]
    if not pairs or not inputs:
        return
    parts = torch.autograd.grad([output for output, _ in pairs], inputs, [own for _, own in pairs], allow_unused=True)
    for total, part in zip(totals, parts, strict=True):
        if part is not None:
            total += part
