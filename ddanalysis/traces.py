"""The trace of the Hessian of one network's loss, by probes of small blocks of images and of groups of layers.

For a vector v of random signs v H v is the trace of H on average (Hutchinson's estimator). Two things make it far less
noisy at the same cost. Every block of a few images has probes of its own, whose noise averages out over the blocks. And
only the diagonal blocks of H count: for v_l, the part of v that belongs to one group of layers, the sum of v_l H v_l
has the same mean and lacks the noise of all that lies between groups. Each v_l H v_l is the second derivative of the
loss along v_l, by forward passes alone (:mod:`ddanalysis.jets`), which is also cheaper than a product with H.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ddanalysis import checks, unroll
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute, slices
from ddanalysis.curvature import VECTORS, check, in_passes, probe
from ddanalysis.jets import Jet
from ddanalysis.layers import Parameters
from ddanalysis.networks import Networks

GROUPS = 4
"""Groups of layers at most: each costs two passes through all layers behind it."""

FREEDOM = 15
"""Degrees of freedom of a standard error before a stopping rule looks at it: a smaller one is too often small by chance
(a nominal 95 % interval by a rule that begins to look at 8 values covers 93, at 16 values 95 %).
"""


@dataclass(frozen=True)
class Probes:
    """How a trace is estimated: Rademacher vectors, other ones for every ``block`` of images.

    ``count`` probes a block; with a ``share`` above 0, more (to ``most``) until the standard error that comes from
    probes is at most ``share`` of the larger of |trace| and ``floor``: near 0, where the network begins, a relative
    error means nothing. One probe a block costs one pass over the images; its blocks must be several.
    """

    count: int = 8
    share: float = 0.0
    floor: float = 1.0
    most: int = 128
    block: int = 8

    def __post_init__(self) -> None:
        checks.whole("count", self.count)
        checks.whole("block", self.block)
        checks.at_least("share", self.share, 0)
        checks.at_least("floor", self.floor, 0)
        checks.whole("most", self.most, self.count)
        if self.share and self.count < 2:
            raise ValueError(f"share is {self.share} and count is {self.count}: a stopping rule needs count >= 2")


@dataclass(frozen=True)
class Trace:
    """An estimate of the trace and its standard error."""

    value: float
    error: float  # for an interval, of few probes in one block, with the t distribution
    probes: int  # a block
    images: int


def trace(
    network: Networks,
    x: Tensor,
    y: Tensor,
    seed: int,
    probes: Probes = Probes(),
    population: int = 0,
    compiled: bool = False,
) -> Trace:
    """The trace of the Hessian (as :func:`hessian_product` has it), by Hutchinson's estimator; unbiased.

    Probe i of block b is one vector for all networks and images of a ``seed``, so that differences between sets and
    neighbouring states have less noise than their values. Where the images are a random sample of ``population`` ones
    (in random order), the standard error is that of the trace over all of these: the part of probes, from their spread
    within blocks, and of the spread between blocks what is left, times 1 - images / population. With one probe a block
    both cannot be told apart, and the error is that of the blocks, too large where all images are used. Raises
    ``ValueError`` where there is nothing to take an error from.
    """
    check(network, x, y)
    population = population or len(x)
    blocks = -(-len(x) // probes.block)
    if len(x) > population:
        raise ValueError(f"{len(x)} images of a population of {population}: there can be at most as many")
    if blocks == 1 and (probes.count == 1 or len(x) < population):
        what = "1 probe" if probes.count == 1 else f"a sample of {population} images"
        raise ValueError(
            f"{what} in one block of {len(x)} images has no error: more probes or smaller blocks are needed"
        )
    found, wanted = torch.zeros(0, blocks, dtype=torch.float64), probes.count
    while len(found) < wanted:
        new = range(len(found), wanted)
        found = torch.cat([found, forms(network, x, y, seed, new, probes.block, compiled)])
        value, within, between = _moments(found, len(x), probes.block)
        wanted = _wanted(probes, len(found), blocks, value, within)
    sampled = len(x) / population
    variance = between if len(found) == 1 else sampled * within + (1 - sampled) * between
    return Trace(value, math.sqrt(max(variance, 0.0)), len(found), len(x))


# ----------------------------------------------------------------------------------------------------------- the forms


def layer_groups(architecture: Architecture, most: int = GROUPS) -> list[list[str]]:
    """The trainable parameters in at most ``most`` groups of consecutive layers: a matrix or the kernels of a
    convolution and what follows them.
    """
    layers: list[list[str]] = []
    for name, weight in architecture.weights().items():
        if weight.role.startswith("running"):
            continue
        if weight.role == "weight" or not layers:
            layers.append([])
        layers[-1].append(name)
    count = min(most, len(layers))
    groups: list[list[str]] = [[] for _ in range(count)]
    for i, names in enumerate(layers):
        groups[i * count // len(layers)] += names
    return groups


def forms(
    network: Networks, x: Tensor, y: Tensor, seed: int, new: range, block: int, compiled: bool, groups: int = GROUPS
) -> Tensor:
    """The forms of every ``new`` probe v and block of images, (probes, blocks) float64: the sum of v_l H v_l over at
    most ``groups`` of layers, H that of the block; v H v with one.
    """
    architecture, columns = network.architecture, []
    soft = y if y.is_floating_point() else F.one_hot(y, architecture.classes).to(x.dtype)
    running = network.running()
    weights, of = unroll.flat(network)[0].detach(), _form(architecture, compiled, groups)
    for b, s in enumerate(slices(len(x), block)):
        v = torch.stack([probe(seed, i, b, len(weights), x.device) for i in new]).to(x.dtype)
        columns.append(in_passes(partial(of, weights, running), architecture, x[s], soft[s], v, VECTORS, compiled))
    return torch.stack(columns, 1).cpu()


@cache
def _form(architecture: Architecture, compiled: bool, most: int) -> Callable[..., Tensor]:
    """``f(weights (P,), running statistics, x, y (n, classes), share of each image (n,), v (V, P))``: the forms (V,),
    float64.
    """
    groups, compute = layer_groups(architecture, most), Compute(compiled=compiled)

    @torch.no_grad()
    def form(weights: Tensor, running: Parameters, x: Tensor, y: Tensor, each: Tensor, v: Tensor) -> Tensor:
        values, moves = (unroll.unflat(architecture, t).state for t in (weights[None], v))
        state: dict[str, Any] = dict(running)
        for group, names in enumerate(groups):
            for name in names:
                along = {(i, group): (move[None], None) for i, move in enumerate(moves[name])}
                state[name] = Jet(values[name], along)
        logits: Any = architecture.logits(state, x)
        bends = {d: _bend(logits.value[:, 0], one, two, y, each) for d, (one, two) in logits.along.items()}
        return torch.stack(
            [torch.stack([bends[i, g] for g in range(len(groups))]).sum() for i in range(len(v))]
        ).double()

    if not compute.compiled:
        return form
    graphs: dict[tuple, Callable[..., Tensor]] = {}

    def fast(*given: Tensor) -> Tensor:
        shapes = tuple((t.shape, t.dtype) for t in given if isinstance(t, Tensor))
        if shapes not in graphs:  # jets are Python objects, which a traced graph is free of
            graphs[shapes] = torch.compile(make_fx(form)(*given), dynamic=False)
        return graphs[shapes](*given)

    return fast


def _bend(logits: Tensor, first: Tensor, second: Tensor | None, y: Tensor, each: Tensor) -> Tensor:
    """The second derivative of the weighted cross-entropy along a direction, from those of the logits (n, classes)."""
    p, total, first = logits.softmax(1), y.sum(1), first[:, 0]
    bent = total * ((p * first**2).sum(1) - (p * first).sum(1) ** 2)
    if second is not None:
        bent = bent + ((p * total[:, None] - y) * second[:, 0]).sum(1)
    return (bent * each).sum()


# ----------------------------------------------------------------------------------------------------------- the error


def _moments(forms: Tensor, images: int, block: int) -> tuple[float, float, float]:
    """The estimate, its variance from the spread of probes within blocks, and from the spread between blocks."""
    count, blocks = forms.shape
    share = torch.full((blocks,), block / images, dtype=torch.float64)
    share[-1] = 1 - block * (blocks - 1) / images
    means = forms.mean(0)
    value = (share * means).sum()
    within = (share**2 * forms.var(0)).sum() / count if count > 1 else torch.tensor(torch.nan)
    between = (share**2 * (means - value) ** 2).sum() * blocks / max(blocks - 1, 1)
    return float(value), float(within), float(between)


def _wanted(probes: Probes, done: int, blocks: int, value: float, within: float) -> int:
    """How many probes a block the stopping rule wants: ``done`` ends it."""
    if not probes.share or done >= probes.most:
        return done
    allowed = (probes.share * max(abs(value), probes.floor)) ** 2
    if within <= allowed:
        needed = max(done, 1 + math.ceil(FREEDOM / blocks))
    else:
        needed = max(math.ceil(done * within / allowed) if allowed else probes.most, done + VECTORS)
    return min(needed, probes.most)
