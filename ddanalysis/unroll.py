"""Training that can be differentiated: K networks trained for T steps, and the exact derivative of where they end.

The way there keeps the weights before each step and no graph; the way back makes the graph of one step at a time anew,
so memory hardly grows with T. For SGD with momentum, v' = mu v + g(w; x) and w' = w - r v', the way back is (Deng and
Russakovsky, *Remember the past*, NeurIPS 2022), from lw = dL/dw_T and lv = 0 and with t falling::

    lv -= r lw;  (hx, hw) = d<g(w_t; x_t), lv> / d(x, w);  dL/dx_t = hx;  lw += hw;  lv *= mu

Plain SGD is its case mu = 0, trajectory matching its case with a learned r, and Adam has two averages in place of one.

Weights of K networks are one matrix (K, P), the rows of parameters one after the other in the order of the
architecture. Batch normalisation uses the statistics of each batch throughout and keeps no running ones.

``compiled`` has the gradient of a step and its derivative through ``torch.compile``, which takes about a minute and a
C++ compiler on a CPU, and then about 1.4 times less time a step. On a GPU small steps go by :mod:`ddanalysis.recorded`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ddanalysis.architectures import Architecture
from ddanalysis.compute import images_per_pass, slices, waits_for_launches
from ddanalysis.layers import Parameters, Weight
from ddanalysis.networks import Networks, cross_entropy
from ddanalysis.optimisers import Optimiser, adam_averages, back, update
from ddanalysis.recorded import recorded

Batches = Callable[[int], tuple[Tensor, Tensor]]
"""The batch of a step, counted from 0: images (n, c, h, w) for all networks, or (K, n, c, h, w), and labels with or
without that K, ids or soft rows. A function of what is learned, computed anew, with the same result, at every call.
"""

SEGMENT = 4
"""Steps from one kept pair of Adam's averages to the next: those between are made anew on the way back."""


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


def loss_and_gradient(
    architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy (K,) of one batch, and its gradient (K, P), in bounded memory; no graph is left."""
    total, gradient = weights.new_zeros(len(weights)), torch.zeros_like(weights)
    first_order = _derivatives(architecture, (), compiled)
    for part_x, part_y, n in _slices(architecture, weights, x, y):
        part, losses = first_order(weights.detach(), part_x.detach(), part_y.detach(), n)
        gradient += part
        total += losses
    return total, gradient


def _derivatives(
    architecture: Architecture, wanted: tuple[int, ...], compiled: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """What computes :func:`_second_order` of what is ``wanted`` or, with nothing wanted, :func:`_first_order`."""
    function, constants = _chosen(architecture, wanted, compiled)

    def computed(weights: Tensor, x: Tensor, y: Tensor, *others: Any) -> tuple[Tensor, ...]:
        images = x.shape[_batch_dims(x, y)[0]]
        if waits_for_launches(architecture, len(weights), images, weights.device):
            return recorded(function, *constants, weights, x, y, *others)
        return function(*constants, weights, x, y, *others)

    return computed


def _chosen(
    architecture: Architecture, wanted: tuple[int, ...], compiled: bool
) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Any, ...]]:
    """A function, and its first arguments."""
    if compiled:
        return _compiled(architecture, wanted), ()
    return (_second_order, (architecture, wanted)) if wanted else (_first_order, (architecture,))


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
        along, into_averages, direction = back(optimiser, kept, into_weights, into_averages, rate, step)
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
    own, later = rates[:segment], rates[segment:]
    if len(later) == 0:
        trace = forward(architecture, optimiser, state, batches, own, compiled=compiled)
        losses, gradient = end(trace.end.weights)
        return losses, adjoint(architecture, optimiser, trace, batches, gradient, inputs, compiled=compiled)
    after = advance(architecture, optimiser, state, batches, own.detach(), compiled)

    def rest(t: int) -> tuple[Tensor, Tensor]:
        return batches(segment + t)

    losses, into = through(architecture, optimiser, after, rest, later, inputs, end, segment, compiled)
    trace = forward(architecture, optimiser, state, batches, own, compiled=compiled)
    found = adjoint(architecture, optimiser, trace, batches, into.weights, inputs, into.averages, compiled=compiled)
    totals = [early + late for early, late in zip(found.inputs, into.inputs, strict=True)]
    both = None if found.rates is None or into.rates is None else torch.cat([found.rates, into.rates])
    return losses, replace(found, inputs=totals, rates=both)


def _backwards(optimiser: Optimiser, trace: Trace) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """The steps from the last to the first, and what was kept of each: of Adam, the averages after the step too."""
    if optimiser.kind != "adam":
        yield from reversed(list(enumerate(trace.kept)))
        return
    for start in reversed(range(0, len(trace.kept), SEGMENT)):
        averages, segment = trace.marks[start // SEGMENT], []
        for t in range(start, min(start + SEGMENT, len(trace.kept))):
            averages = adam_averages(optimiser.betas, averages, trace.kept[t][0])
            segment.append((t, (trace.kept[t][0], *averages)))
        yield from reversed(segment)


def _step_back(
    architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor, along: Tensor, hessian: bool, compiled: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives of <gradient(weights; x, y), ``along``> in x, y and, if ``hessian``, in the weights.

    None where x or y depend on nothing that is learned.
    """
    wanted = tuple(i for i, asked in enumerate((hessian, x.requires_grad, y.requires_grad)) if asked)
    found: dict[int, list[Tensor]] = {i: [] for i in wanted}
    if wanted:
        second_order = _derivatives(architecture, wanted, compiled)
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
