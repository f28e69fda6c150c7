"""What a distillation costs, said before it starts: passes through networks, arithmetic, time and memory.

Passes are counted from the settings, as the methods make them. The arithmetic and the memory of a pass come from one
on meta tensors, which have shapes and no numbers; its time from a few real ones of its size, kept for the process. What
happens outside the networks (augmentation, drawing fresh weights, k-means, files) counts as nothing.
"""

import statistics
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ddanalysis import checks, networks
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute, images_per_pass, logits_function, networks_together
from ddanalysis.data import ImageData
from ddanalysis.distill.making import Job
from ddanalysis.distill.plans import NUMBER, Plan, cut, parts, plan, training_passes
from ddanalysis.evaluation import PROTOCOLS, protocol_recipe
from ddanalysis.layers import Parameters
from ddanalysis.networks import cross_entropy
from ddanalysis.seeding import generator


@dataclass(frozen=True)
class Cost:
    """One row of a table: ``pandas.DataFrame([cost, ...])``."""

    method: str
    ipc: int
    iterations: int
    passes: int  # images x networks, of every kind of pass
    flops: int  # of convolutions and linear layers; a multiplication and an addition are two
    seconds: float
    memory_bytes: int  # of tensors alive at once, beside the data, PyTorch and the workspace of its kernels
    disk_bytes: int  # of experts and original models


def estimate(job: Job, method: str, settings: Mapping[str, Any]) -> Cost:
    """The cost of one set by ``method``, with its experts or original models, which later sets may share.

    Uncompiled. A pool of experts too large for memory is taken to lie on disk, the window of RaT-BPTT to start half-way
    on average, and CLOM to draw its architectures equally often. ``ValueError`` for an unknown method or setting.
    """
    return _cost(method, job.ipc, job.data.train_x.device, plan(job, method, settings))


def evaluation(
    data: ImageData, architecture: Architecture, ipc: int, protocol: str, networks: int, compute: Compute = Compute()
) -> Cost:
    """The cost of scoring one set of ``ipc`` images a class: ``networks`` trained on it and tested.

    Its method is the protocol, its iterations are the updates of a network. Raises ``ValueError`` for an unknown
    protocol, and for one whose updates are a set's own.
    """
    checks.whole("ipc", ipc)
    checks.whole("networks of an evaluation", networks)
    recipe, n, device = protocol_recipe(protocol, data.name, architecture), ipc * data.n_classes, data.train_x.device
    if PROTOCOLS[protocol].batches == "own":
        raise ValueError(f"protocol {protocol} takes the steps of a set: how many is not known before there is one")
    if PROTOCOLS[protocol].batches == "balanced":
        n = data.n_classes * min(max(100 // data.n_classes, 1), ipc)  # one batch
    work = training_passes(architecture, networks, n, recipe, device, compute.precision)
    for k, count in parts(networks, networks_together(architecture, 64, device)):
        size = images_per_pass(architecture, k, device)
        work += cut(architecture, "forward", k, len(data.test_y), size, count, compute.precision)
    kept = 2 * NUMBER * networks * architecture.parameter_count()
    return _cost(protocol, ipc, device, Plan(recipe.total_updates(n), work, kept=kept))


# --------------------------------------------------------------------------------------------------- what passes cost


def _cost(method: str, ipc: int, device: torch.device, what: Plan) -> Cost:
    shapes = [(one.architecture, one.kind, one.together, one.batch) for one in what.work]
    flops = [one.passes * flops_per_image(one.architecture, one.kind) for one in what.work]
    seconds = [
        one.times * _seconds(*shape, one.precision, device, torch.get_num_threads())
        for one, shape in zip(what.work, shapes, strict=True)
    ]
    memory = what.kept + max((_peak(*shape) for shape in shapes), default=0)
    passes = sum(one.passes for one in what.work)
    return Cost(method, ipc, what.iterations, passes, sum(flops), sum(seconds), memory, what.disk)


def _inputs(a: Architecture, k: int, n: int, device: torch.device | str) -> tuple[Parameters, Tensor, Tensor]:
    """Weights of ``k`` networks, ``n`` images of noise for each, and labels."""
    x = torch.randn(n, k * a.channels, a.size, a.size, generator=generator(0, "probe"))
    return networks.create(a, range(k), device=device).state, x.to(device), torch.zeros(n, dtype=torch.long).to(device)


def _pass(a: Architecture, kind: str, p: Parameters, x: Tensor, y: Tensor, precision: str = "float32") -> None:
    """One pass."""
    second, names = kind in ("matching", "adjoint"), networks.Networks(a, p).trainable()
    p = {name: t.detach().requires_grad_((second or kind == "gradient") and name in names) for name, t in p.items()}
    weights, x = [p[name] for name in names], x.detach().requires_grad_(second or kind == "images")
    with torch.set_grad_enabled(kind != "forward"):
        logits = logits_function(a, Compute(precision))(p, x)
        if kind == "forward":
            return
        loss = cross_entropy(logits.transpose(0, 1), y).sum()
        found = torch.autograd.grad(loss, [x] if kind == "images" else weights, create_graph=second)
    if second:
        torch.autograd.grad(found, [x] if kind == "matching" else [x, *weights], [t.detach() for t in found])


@cache
def flops_per_image(a: Architecture, kind: str) -> int:
    """Floating-point operations of a pass for each image and network."""
    with FlopCounterMode(display=False) as counter:  # of one network: in grouped convolutions it counts too many
        _pass(a, kind, *_inputs(a, 1, 1, "meta"))
    return counter.get_total_flops()


@cache
def _peak(a: Architecture, kind: str, k: int, n: int, device: str = "meta") -> int:
    """Bytes alive at once in one pass, its weights and images included."""
    p, x, y = _inputs(a, k, n, device)
    with _Alive([*p.values(), x, y]) as alive:
        _pass(a, kind, p, x, y)
    return alive.most


class _Alive(TorchDispatchMode):
    """Counts the bytes of ``given`` tensors and of those made under it that are alive at once."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.now, self.most, self.known = 0, 0, set[int]()
        self._count(given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._count(made)
        return made

    def _count(self, made: Any) -> None:
        for storage in (t.untyped_storage() for t in tree_leaves(made) if isinstance(t, Tensor)):
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


PROBE = 0.1
"""Seconds that the real passes of one kind and size are to take in all."""


@cache
def _seconds(a: Architecture, kind: str, k: int, n: int, precision: str, device: torch.device, threads: int) -> float:
    """Seconds of one pass: measured, on fewer images in proportion where ``n`` would take longer than the probe."""
    p, x, y = _inputs(a, k, n, device)

    def timed(images: int) -> float:
        start = time.perf_counter()
        _pass(a, kind, p, x[:images], y[:images], precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed(1)  # libraries get ready
    images, last = 1, timed(1)
    while images < n and last < PROBE / 4:
        images = min(4 * images, n)
        last = timed(images)
    times = [timed(images)]
    while len(times) < 3 or sum(times) < PROBE:
        times.append(timed(images))
    return statistics.median(times) * n / images
