"""What a distillation costs, said before it starts: passes through networks, arithmetic, time and memory.

Passes are counted from the settings, as the methods make them. The arithmetic and the memory of a pass come from one
on meta tensors, which have shapes and no numbers; its time from a few real ones of its size, kept for the process. What
happens outside the networks (augmentation, drawing fresh weights, k-means, files) counts as nothing.
"""

import math
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from ddanalysis.distill import METHODS, addressing, bptt, clom, experts, gradient_matching, trajectory
from ddanalysis.distill.making import Job
from ddanalysis.evaluation import PROTOCOLS, protocol_recipe
from ddanalysis.layers import Parameters
from ddanalysis.networks import cross_entropy
from ddanalysis.seeding import generator
from ddanalysis.training import Recipe

NUMBER = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Work:
    """``times`` passes of ``batch`` images of each of ``together`` networks.

    A pass is "forward" alone, or with the derivative of a loss in the "images" or in the weights ("gradient"), or with
    that of a function of the gradient, in the images ("matching") or in images and weights ("adjoint").
    """

    architecture: Architecture
    kind: str
    together: int
    batch: int
    times: int
    precision: str = "float32"

    @property
    def passes(self) -> int:
        """Images, each counted for every network that it goes through."""
        return self.together * self.batch * self.times


@dataclass(frozen=True)
class Plan:
    """What a run does, how often it changes the images, and the bytes it keeps in memory and on disk meanwhile."""

    iterations: int
    work: list[Work]
    updates: int = 0
    kept: int = 0
    disk: int = 0


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
    work = _training(architecture, networks, n, recipe, device, compute.precision)
    for k, count in _parts(networks, networks_together(architecture, 64, device)):
        size = images_per_pass(architecture, k, device)
        work += _cut(architecture, "forward", k, len(data.test_y), size, count, compute.precision)
    kept = 2 * NUMBER * networks * architecture.parameter_count()
    return _cost(protocol, ipc, device, Plan(recipe.total_updates(n), work, kept=kept))


def plan(job: Job, method: str, settings: Mapping[str, Any]) -> Plan:
    """The passes of one set by ``method``, and what it keeps."""
    checks.one_of("method", method, METHODS)
    own = METHODS[method].settings(dict(settings))
    base = _PLANS.get(method.removeprefix("clom_"), lambda *_: Plan(0, []))(job, own)
    return _regularised(job, own, base) if method.startswith("clom_") else base


# ------------------------------------------------------------------------------------------------------- the methods


def _set_bytes(job: Job) -> int:
    return NUMBER * job.ipc * job.data.n_classes * math.prod(job.data.shape)


def _distribution_matching(job: Job, own: dict[str, Any]) -> Plan:
    a, classes, iterations = job.architecture, job.data.n_classes, own["iterations"]
    work, limit = [], images_per_pass(a, 1, job.data.train_x.device)
    for kind, n in (("forward", own["batch_real"]), ("images", job.ipc)):
        cut = kind == "forward" and n > limit and not a.batch_statistics  # one class takes several passes
        groups = _parts(n, limit) if cut else _parts(classes, classes if a.batch_statistics else max(limit // n, 1))
        for size, count in groups:
            images, times = (size, classes * count) if cut else (size * n, count)
            work.append(Work(a, kind, 1, images, times * iterations))
    return Plan(iterations, work, iterations, 3 * _set_bytes(job))


def _gradient_matching(job: Job, own: dict[str, Any]) -> Plan:
    a, classes, device, precision = job.architecture, job.data.n_classes, job.data.train_x.device, own["precision"]
    published, batch_real = gradient_matching.loops(job.ipc), own["batch_real"]
    outer = published[0] if own["outer"] is None else own["outer"]
    inner = published[1] if own["inner"] is None else own["inner"]
    steps, work = own["iterations"] * outer, []
    if a.batch_statistics:
        work.append(Work(a, "forward", 1, gradient_matching.STATISTICS_IMAGES * classes, steps))
    together = networks_together(a, batch_real, device)
    size = batch_real if together > 1 else images_per_pass(a, 1, device)
    for k, count in _parts(classes, together):
        work += _cut(a, "gradient", k, batch_real, size, count * steps, precision)
    groups = _parts(classes, networks_together(a, job.ipc, device))
    work += [Work(a, "matching", k, job.ipc, count * steps) for k, count in groups]
    recipe = Recipe(epochs=inner, batch_size=own["batch_train"])
    work += _training(a, 1, job.ipc * classes, recipe, device, precision, steps - own["iterations"])
    targets = 2 * NUMBER * groups[0][0] * a.parameter_count()
    return Plan(own["iterations"], work, steps, 3 * _set_bytes(job) + targets)


def _trajectory_matching(job: Job, own: dict[str, Any]) -> Plan:
    own = trajectory.preset(job.data.name, job.ipc, own)
    a, device, n, k = job.architecture, job.data.train_x.device, job.ipc * job.data.n_classes, own["at_once"]
    iterations, steps, real, count = own["iterations"], own["steps"], len(job.data.train_y), own["experts"]
    epochs, batch = own["latest_start"] - 1 + own["expert_epochs"], own["expert_batch"]
    work = _training(a, count, real, Recipe(epochs=epochs, batch_size=batch), device)
    for size, times in _batches(n, own["minibatch"], steps):
        adjoint = "adjoint" if own["gradient"] == "exact" else "matching"
        work += _unrolled(job, k, size, times * iterations, "gradient", adjoint)
    if own["labels"] == "teacher":
        work += _unrolled(job, k, n, iterations, "forward")
    pool, weights = experts.pool_bytes(a, count, epochs), NUMBER * a.parameter_count()
    in_training = 2 * min(count, networks_together(a, min(batch, real), device)) * pool // count
    kept = (pool if pool <= experts.IN_MEMORY else 0) + max(in_training, k * weights * (2 * steps + 6))
    return Plan(iterations, work, iterations, kept + 4 * _set_bytes(job), pool)


def _bptt(job: Job, own: dict[str, Any]) -> Plan:
    if own["bases"] is not None:
        job = replace(job, ipc=addressing.images_per_class(job, own["bases"], own["downsample"]))
    classes, k, iterations, steps = job.data.n_classes, own["at_once"], own["iterations"], own["steps"]
    n = classes * min(own["minibatch"] or job.ipc, job.ipc)
    work = _unrolled(job, k, n, iterations * steps, "gradient", "adjoint")
    work += _unrolled(job, k, classes * own["batch_real"], iterations, "gradient")
    kept = NUMBER * k * job.architecture.parameter_count() * (steps + 6)
    return Plan(iterations, work, iterations, kept + 4 * _set_bytes(job))


def _rat_bptt(job: Job, own: dict[str, Any]) -> Plan:
    own = bptt.preset(job.data.name, job.ipc, own)
    k, iterations, window, real = own["at_once"], own["iterations"], own["window"], len(job.data.train_y)
    n, latest = job.data.n_classes * min(own["minibatch"] or job.ipc, job.ipc), own["horizon"] - window
    before = latest if own["window_start"] == "fixed" else (own["earliest"] + latest) / 2
    work = _unrolled(job, k, n, round(iterations * before), "gradient")
    work += _unrolled(job, k, n, iterations * window, "gradient", "adjoint")
    for size, times in _batches(real, own["batch_real"], iterations):
        work += _unrolled(job, k, size, times, "gradient")
    weights = NUMBER * k * job.architecture.parameter_count()
    batch = 3 * NUMBER * min(own["batch_real"], real) * math.prod(job.data.shape)
    kept = weights * (5 * window // 2 + 16)
    return Plan(iterations, work, iterations, kept + batch + 5 * _set_bytes(job))


def _herding(job: Job, own: dict[str, Any]) -> Plan:
    a, device = job.architecture, job.data.train_x.device
    work = _training(a, 1, len(job.data.train_y), Recipe(epochs=own["epochs"]), device)
    for size in job.data.train_y.bincount().tolist():
        work += _cut(a, "forward", 1, size, images_per_pass(a, 1, device), 1)
    return Plan(own["epochs"], work)


def _regularised(job: Job, own: dict[str, Any], base: Plan) -> Plan:
    """A method with CLOM: its models, and their passes behind every update of the images."""
    real = clom._source(own["source"], job.data) if own["source"] else job.data
    pool = [clom._architecture(name, job, real) for name in own["pool"] or [job.architecture.kind]]
    count, epochs, n = own["models"], own["model_epochs"], len(real.train_y)
    k, times = (1, round(base.updates / len(pool))) if own["draw"] == "one" else (count, base.updates)
    work, size = list(base.work), 0
    for a in pool:
        work += _training(a, count, n, replace(clom.ORIGINAL, epochs=epochs), job.data.train_x.device)
        work.append(Work(a, "images", k, job.ipc * job.data.n_classes, times))
        if own["source"]:
            work.append(Work(a, "forward", k, min(clom.Clom.batch, n), times))
        size += NUMBER * count * a.parameter_count() * (1 if own["model_epoch"] is None else epochs + 1)
    return replace(base, work=work, kept=base.kept + 2 * size, disk=base.disk + size)


_PLANS: dict[str, Callable[[Job, dict[str, Any]], Plan]] = {
    "dc": _gradient_matching,
    "dsa": _gradient_matching,
    "dm": _distribution_matching,
    "mtt": _trajectory_matching,
    "bptt": _bptt,
    "rat": _rat_bptt,
    "herding": _herding,
}
"""Methods that use networks; the others cost next to nothing."""


# ------------------------------------------------------------------------------------------------------------ passes


def _parts(n: int, size: int) -> list[tuple[int, int]]:
    """The slices of ``n`` things, of at most ``size``: how long, and how many of that length."""
    whole, rest = divmod(n, size)
    return [(length, count) for length, count in ((size, whole), (rest, 1)) if length and count]


def _batches(n: int, batch: int | None, updates: int) -> list[tuple[int, int]]:
    """The batches of ``updates`` updates on ``n`` images, epoch by epoch: how large, and how many of that size."""
    per_epoch, batch = Recipe(updates=updates, batch_size=batch).batches_per_epoch(n), min(batch or n, n)
    last = updates // per_epoch
    sizes = ((batch, updates - last), (n - batch * (per_epoch - 1), last))
    return [(size, count) for size, count in sizes if count]


def _cut(a: Architecture, kind: str, k: int, n: int, size: int, times: int, precision: str = "float32") -> list[Work]:
    """``times`` batches of ``n`` images, each in slices of at most ``size``."""
    return [Work(a, kind, k, length, count * times, precision) for length, count in _parts(n, size) if times]


def _training(
    a: Architecture,
    count: int,
    n: int,
    recipe: Recipe,
    device: torch.device,
    precision: str = "float32",
    times: int = 1,
) -> list[Work]:
    """``training.train`` of ``count`` networks on ``n`` images each, ``times`` over."""
    work = []
    for k, groups in _parts(count, networks_together(a, min(recipe.batch_size or n, n), device)):
        for batch, updates in _batches(n, recipe.batch_size, recipe.total_updates(n)):
            size = images_per_pass(a, 1, device) if k == 1 and not a.batch_statistics else batch
            work += _cut(a, "gradient", k, batch, size, groups * updates * times, precision)
    return work


def _unrolled(job: Job, k: int, n: int, times: int, *kinds: str) -> list[Work]:
    """``times`` batches of ``n`` images through ``k`` networks, in slices as :mod:`ddanalysis.unroll` makes them."""
    a = job.architecture
    size = n if a.batch_statistics else images_per_pass(a, k, job.data.train_x.device)
    return [one for kind in kinds for one in _cut(a, kind, k, n, size, times)]


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
