"""What a method computes, counted from its settings before it starts: passes of images through networks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddanalysis import checks
from ddanalysis.architectures import Architecture
from ddanalysis.compute import images_per_pass, networks_together
from ddanalysis.distill import (
    METHODS,
    addressing,
    base_images,
    bptt,
    clom,
    dd_networks,
    experts,
    gradient_matching,
    label_loop,
    trajectory,
)
from ddanalysis.distill.dd_settings import Settings
from ddanalysis.distill.making import Job
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
        groups = parts(n, limit) if cut else parts(classes, classes if a.batch_statistics else max(limit // n, 1))
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
    for k, count in parts(classes, together):
        work += cut(a, "gradient", k, batch_real, size, count * steps, precision)
    groups = parts(classes, networks_together(a, job.ipc, device))
    work += [Work(a, "matching", k, job.ipc, count * steps) for k, count in groups]
    recipe = Recipe(epochs=inner, batch_size=own["batch_train"])
    work += training_passes(a, 1, job.ipc * classes, recipe, device, precision, steps - own["iterations"])
    targets = 2 * NUMBER * groups[0][0] * a.parameter_count()
    return Plan(own["iterations"], work, steps, 3 * _set_bytes(job) + targets)


def _trajectory_matching(job: Job, own: dict[str, Any]) -> Plan:
    own = trajectory.preset(job.data.name, job.ipc, own)
    a, device, n, k = job.architecture, job.data.train_x.device, job.ipc * job.data.n_classes, own["at_once"]
    iterations, steps, real, count = own["iterations"], own["steps"], len(job.data.train_y), own["experts"]
    epochs, batch = own["latest_start"] - 1 + own["expert_epochs"], own["expert_batch"]
    work = training_passes(a, count, real, Recipe(epochs=epochs, batch_size=batch), device)
    for size, times in batches(n, own["minibatch"], steps):
        adjoint = "adjoint" if own["gradient"] == "exact" else "matching"
        work += unrolled(job, k, size, times * iterations, "gradient", adjoint)
    if own["labels"] == "teacher":
        work += unrolled(job, k, n, iterations, "forward")
    pool, weights = experts.pool_bytes(a, count, epochs), NUMBER * a.parameter_count()
    in_training = 2 * min(count, networks_together(a, min(batch, real), device)) * pool // count
    kept = (pool if pool <= experts.IN_MEMORY else 0) + max(in_training, k * weights * (2 * steps + 6))
    return Plan(iterations, work, iterations, kept + 4 * _set_bytes(job), pool)


def _bptt(job: Job, own: dict[str, Any]) -> Plan:
    if own["bases"] is not None:
        job = replace(job, ipc=addressing.images_per_class(job, own["bases"], own["downsample"]))
    classes, k, iterations, steps = job.data.n_classes, own["at_once"], own["iterations"], own["steps"]
    n = classes * min(own["minibatch"] or job.ipc, job.ipc)
    work = unrolled(job, k, n, iterations * steps, "gradient", "adjoint")
    work += unrolled(job, k, classes * own["batch_real"], iterations, "gradient")
    kept = NUMBER * k * job.architecture.parameter_count() * (steps + 6)
    return Plan(iterations, work, iterations, kept + 4 * _set_bytes(job))


def _rat_bptt(job: Job, own: dict[str, Any]) -> Plan:
    own = bptt.preset(job.data.name, job.ipc, own)
    k, iterations, window, real = own["at_once"], own["iterations"], own["window"], len(job.data.train_y)
    n, latest = job.data.n_classes * min(own["minibatch"] or job.ipc, job.ipc), own["horizon"] - window
    before = latest if own["window_start"] == "fixed" else (own["earliest"] + latest) / 2
    work = unrolled(job, k, n, round(iterations * before), "gradient")
    work += unrolled(job, k, n, iterations * window, "gradient", "adjoint")
    for size, times in batches(real, own["batch_real"], iterations):
        work += unrolled(job, k, size, times, "gradient")
    weights = NUMBER * k * job.architecture.parameter_count()
    batch = 3 * NUMBER * min(own["batch_real"], real) * math.prod(job.data.shape)
    kept = weights * (5 * window // 2 + 16)
    return Plan(iterations, work, iterations, kept + batch + 5 * _set_bytes(job))


def _dataset_distillation(job: Job, own: dict[str, Any]) -> Plan:
    s = Settings(**own)
    a, device, real, updates = job.architecture, job.data.train_x.device, len(job.data.train_y), s.steps * s.passes
    classes = job.data.n_classes if s.label_classes is None else len(s.label_classes)
    n, together = classes * job.ipc // s.steps, {"fixed": s.fixed, "imagenet": 1}.get(s.networks, s.at_once)
    work, pool = [], 0
    for k, count in parts(together, networks_together(a, n, device)):
        work += unrolled(job, k, n, count * updates * s.iterations, "gradient", "adjoint")
        for batch, times in batches(real, s.batch_real, s.iterations):
            for own_k, several in parts(k, networks_together(a, batch, device)):
                work += unrolled(job, own_k, batch, several * count * times, "gradient")
    if s.networks == "pretrained" and not dd_networks.is_zoo(s.source):
        source, its = dd_networks.source_of(job, s.source)
        recipe = dd_networks.pretraining(source.name, s.pretrained_epochs)
        work += training_passes(its, s.pretrained, len(source.train_y), recipe, device)
        pool = NUMBER * s.pretrained * a.parameter_count()
    weights = NUMBER * min(together, networks_together(a, n, device)) * a.parameter_count()
    kept = weights * ((updates if s.inner == "sgd" else 5 * updates // 2 + 16) + 6)
    batch_bytes = 2 * NUMBER * min(s.batch_real, real) * math.prod(job.data.shape)
    return Plan(s.iterations, work, s.iterations, kept + batch_bytes + 2 * pool + 4 * _set_bytes(job), pool)


def _label_distillation(job: Job, own: dict[str, Any]) -> Plan:
    """How long a validation trains is not known before; taken are four windows of the reset clock."""
    learn, horizon = "labels" if "start" in own else "images", own.get("horizon")
    own = label_loop.preset(job, learn, own)
    a, device, iterations, n = job.architecture, job.data.train_x.device, own["iterations"], own["inner_batch"]
    rows, held_out = base_images.split(job.data, job.seed, own["validation"], own["target_size"])
    through = horizon is not None and (learn == "images" or horizon > 1)
    twice = horizon is not None and (learn == "images" or horizon == 1)  # the look-ahead; a product or the new images
    work = unrolled(job, 1, n, iterations * (1 + twice), "gradient")
    if through:
        work += unrolled(job, 1, n, iterations * horizon, "gradient", "adjoint")
    for size, times in batches(len(rows), own["batch_real"], iterations):
        work += unrolled(job, 1, size, times, "gradient" if horizon else "forward")
    validations = math.ceil(iterations / own["validate_every"])
    work += unrolled(job, 1, n, 4 * own["window"] * validations, "gradient")
    work += cut(a, "forward", 1, len(held_out), images_per_pass(a, 1, device), validations)
    return Plan(iterations, work, iterations, 6 * NUMBER * a.parameter_count() + 4 * _set_bytes(job))


def _herding(job: Job, own: dict[str, Any]) -> Plan:
    a, device = job.architecture, job.data.train_x.device
    work = training_passes(a, 1, len(job.data.train_y), Recipe(epochs=own["epochs"]), device)
    for size in job.data.train_y.bincount().tolist():
        work += cut(a, "forward", 1, size, images_per_pass(a, 1, device), 1)
    return Plan(own["epochs"], work)


def _regularised(job: Job, own: dict[str, Any], base: Plan) -> Plan:
    """A method with CLOM: its models, and their passes behind every update of the images."""
    real = clom._source(own["source"], job.data) if own["source"] else job.data
    pool = [clom._architecture(name, job, real) for name in own["pool"] or [job.architecture.kind]]
    count, epochs, n = own["models"], own["model_epochs"], len(real.train_y)
    k, times = (1, round(base.updates / len(pool))) if own["draw"] == "one" else (count, base.updates)
    work, size = list(base.work), 0
    for a in pool:
        work += training_passes(a, count, n, replace(clom.ORIGINAL, epochs=epochs), job.data.train_x.device)
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
    "dd": _dataset_distillation,
    "sldd": _dataset_distillation,
    **dict.fromkeys(("ld", "ld_ridge", "ld_images", "ld_images_ridge"), _label_distillation),
    "herding": _herding,
}
"""Methods that use networks; the others cost next to nothing."""


# ------------------------------------------------------------------------------------------------------------ passes


def parts(n: int, size: int) -> list[tuple[int, int]]:
    """The slices of ``n`` things, of at most ``size``: how long, and how many of that length."""
    whole, rest = divmod(n, size)
    return [(length, count) for length, count in ((size, whole), (rest, 1)) if length and count]


def batches(n: int, batch: int | None, updates: int) -> list[tuple[int, int]]:
    """The batches of ``updates`` updates on ``n`` images, epoch by epoch: how large, and how many of that size."""
    per_epoch, batch = Recipe(updates=updates, batch_size=batch).batches_per_epoch(n), min(batch or n, n)
    last = updates // per_epoch
    sizes = ((batch, updates - last), (n - batch * (per_epoch - 1), last))
    return [(size, count) for size, count in sizes if count]


def cut(a: Architecture, kind: str, k: int, n: int, size: int, times: int, precision: str = "float32") -> list[Work]:
    """``times`` batches of ``n`` images, each in slices of at most ``size``."""
    return [Work(a, kind, k, length, count * times, precision) for length, count in parts(n, size) if times]


def training_passes(
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
    for k, groups in parts(count, networks_together(a, min(recipe.batch_size or n, n), device)):
        for batch, updates in batches(n, recipe.batch_size, recipe.total_updates(n)):
            size = images_per_pass(a, 1, device) if k == 1 and not a.batch_statistics else batch
            work += cut(a, "gradient", k, batch, size, groups * updates * times, precision)
    return work


def unrolled(job: Job, k: int, n: int, times: int, *kinds: str) -> list[Work]:
    """``times`` batches of ``n`` images through ``k`` networks, in slices as :mod:`ddanalysis.unroll` makes them."""
    a = job.architecture
    size = n if a.batch_statistics else images_per_pass(a, k, job.data.train_x.device)
    return [one for kind in kinds for one in cut(a, kind, k, n, size, times)]
