"""Learning images through training on them: BPTT with momentum, and RaT-BPTT.

Both train fresh networks on the images, take the loss of the trained networks on a batch of real images, and follow
its exact gradient in the images, back through the training (:mod:`ddanalysis.unroll`).

* :func:`bptt`: Deng and Russakovsky, *Remember the past: distilling datasets into addressable memories for neural
  networks* (NeurIPS 2022), without the memory: SGD with momentum inside, differentiated over all of its steps.
* :func:`rat_bptt`: Feng, Vedantam and Kempe, *Embarrassingly simple dataset distillation* (ICLR 2024): Adam inside,
  differentiated over a window of its steps alone, which starts anywhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import augment, checks, networks, unroll
from ddanalysis.compute import Compute
from ddanalysis.distill import addressing, outer
from ddanalysis.distill.making import Job, Made, rows_by_class
from ddanalysis.evaluation import rat_strategy
from ddanalysis.optimisers import Optimiser
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Tensors
from ddanalysis.training import Recipe, epoch_order
from ddanalysis.unroll import State

Augment = Callable[[Tensor, object], Tensor]
"""Augments a batch of the images of one step, or of real ones."""

PRESETS = {
    ("cifar10", 10): {"window": 60, "horizon": 200, "minibatch": 10, "window_start": "random"},
    ("cifar100", 1): {"window": 90, "horizon": 130, "minibatch": 1, "window_start": "fixed", "rate": 3e-4},
    ("cifar100", 10): {"window": 100, "horizon": 300, "minibatch": 1, "window_start": "random", "learn_labels": True},
    ("tiny_imagenet", 1): {"window": 60, "horizon": 200, "minibatch": 10, "window_start": "random", "rate": 3e-4},
}
"""What the authors of RaT-BPTT state by dataset and images a class; their rate is 1e-3 and their labels hard elsewhere.

Of Tiny ImageNet they state the rate alone.
"""


def bptt(
    job: Job,
    iterations: int = 500_000,
    steps: int = 150,
    inner_rate: float = 0.01,
    inner_momentum: float = 0.9,
    rate: float = 0.1,
    momentum: float = 0.5,
    clip: float = 2.0,
    batch_real: int = 64,
    minibatch: int | None = None,
    strategy: str = "",
    learn_labels: bool = False,
    bases: int | None = None,
    downsample: int = 2,
    coefficient_decay: float = 1e-4,
    initialisation: str = "xavier",
    at_once: int = 1,
    compiled: bool = False,
) -> Made:
    """Distil through ``steps`` updates of SGD with momentum; the defaults are the published ones.

    An update sees ``minibatch`` images a class (None: all), the loss ``batch_real`` real ones a class. Under a
    ``strategy`` ("flip_rotate" is published beside none) every step and the real batch of an iteration draw alike. The
    norm of the gradient is clipped to ``clip``, and ``at_once`` fresh networks, published 1, are averaged over. Soft
    labels that are learned stay at or above 0. Images start as "xavier", "noise", "real" or "given". ``compiled`` is
    that of :mod:`ddanalysis.unroll`.

    With ``bases`` (published 16, and minibatch 32) images share that many, ``downsample`` times smaller, and ``ipc`` is
    a budget: the set has as many images as :func:`addressing.images_per_class` says, made and kept at full size. Half
    of ``coefficient_decay`` times the squared coefficients is added to the loss that is differentiated. (The published
    1e-4 has no effect: it weighs a term of the updates' loss that their weights are not in.) ``history`` has the loss
    of every iteration.
    """
    own = {
        "iterations": iterations, "steps": steps, "at_once": at_once, "inner_rate": inner_rate, "rate": rate,
        "inner_momentum": inner_momentum, "momentum": momentum, "clip": clip, "batch_real": batch_real,
        "minibatch": minibatch, "strategy": strategy, "learn_labels": learn_labels, "bases": bases,
        "downsample": downsample, "coefficient_decay": coefficient_decay, "initialisation": initialisation,
        "compiled": compiled,
    }  # fmt: skip
    _check_bptt(job, own)
    if bases is not None:
        job = replace(job, ipc=addressing.images_per_class(job, bases, downsample))
    return outer.optimise(
        job, "BPTT", lambda: _bptt_start(job, own), lambda *given: _bptt_step(job, own, *given),
        Optimiser("sgd", momentum), dict.fromkeys(("x", "y", "bases", "coefficients"), rate), iterations,
        _labels_at_least_0, lambda learned: _as_set(job, learned),
    )  # fmt: skip


def rat_bptt(
    job: Job,
    iterations: int = 600_000,
    window: int | None = None,
    horizon: int | None = None,
    window_start: str | None = None,
    earliest: int = 0,
    every_iteration: bool = False,
    inner_rate: float = 1e-3,
    rate: float | None = None,
    clip: float = 2.0,
    batch_real: int = 5000,
    minibatch: int | None = None,
    learn_labels: bool | None = None,
    strategy: str | None = None,
    initialisation: str = "unit_noise",
    at_once: int = 1,
    compiled: bool = False,
) -> Made:
    """Distil through a ``window`` of the ``horizon`` updates of Adam; the defaults are the published ones.

    Fresh networks train up to the window without and through it with a derivative. It starts, by ``window_start``,
    "random" at or after update ``earliest`` (drawn once an epoch of real batches, or ``every_iteration``), "fixed" so
    that it ends with the horizon, or "sliding", a window on whenever 60 epochs brought no lower loss (cctype 2, 0 and
    1). None is :func:`preset`. The gradient is clipped to ``clip`` times the running mean (0.9) of its clipped norms.
    ``strategy`` None is "flip_rotate", without the flip for characters and digits. Labels that are learned stay at or
    above 0. Images start as "unit_noise" (each of norm 1), "noise", "real" or "given". ``compiled`` is that of
    :mod:`ddanalysis.unroll`. ``history`` has the loss of every iteration.
    """
    own = preset(
        job.data.name, job.ipc,
        {
            "iterations": iterations, "window": window, "horizon": horizon, "window_start": window_start,
            "earliest": earliest, "every_iteration": every_iteration, "inner_rate": inner_rate, "rate": rate,
            "clip": clip, "batch_real": batch_real, "minibatch": minibatch, "learn_labels": learn_labels,
            "strategy": strategy, "at_once": at_once, "compiled": compiled,
        },
    )  # fmt: skip
    _check_rat(job, own)
    checks.one_of("initialisation of the images", initialisation, ("unit_noise", "noise", "real", "given"))

    def start() -> Tensors:
        x = {"x": _start(job, initialisation)}
        return x | ({"y": _soft_labels(job, initialisation)} if own["learn_labels"] else {})

    return outer.optimise(
        job, "RaT", start, lambda *given: _rat_step(job, own, *given), Optimiser("adam"),
        dict.fromkeys(("x", "y"), own["rate"]), iterations, _labels_at_least_0,
    )  # fmt: skip


def preset(dataset: str, ipc: int, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of RaT-BPTT that are ``given``, those that are None as published.

    That is for the dataset and the nearest number of images a class at or below ``ipc``, else above; CIFAR-10's else.
    """
    name = dataset.split("-")[0]
    rows = {count: row for (of, count), row in PRESETS.items() if of == name} or {10: PRESETS["cifar10", 10]}
    nearest = max((count for count in rows if count <= ipc), default=min(rows))
    published = {"rate": 1e-3, "learn_labels": False, "strategy": rat_strategy(dataset)} | rows[nearest]
    return published | {key: value for key, value in given.items() if value is not None}


def _labels_at_least_0(learned: Tensors) -> outer.Numbers:
    if "y" in learned:
        learned["y"].clamp_(min=0)
    return {}


def _check_bptt(job: Job, own: dict[str, Any]) -> None:
    numbers = ("inner_rate", "inner_momentum", "rate", "momentum", "clip", "coefficient_decay")
    _check(
        job, "BPTT", {name: own[name] for name in ("iterations", "steps", "at_once")},
        {name: own[name] for name in numbers}, own["minibatch"], own["strategy"], own["compiled"],
    )  # fmt: skip
    rows_by_class(job, "BPTT", own["batch_real"])
    if own["bases"] is None:
        starts = ("xavier", "noise", "real", "given")
        checks.one_of("initialisation of the images", own["initialisation"], starts)
    else:
        checks.one_of("initialisation of the bases", own["initialisation"], ("xavier",))
        addressing.images_per_class(job, own["bases"], own["downsample"])


def _bptt_start(job: Job, own: dict[str, Any]) -> Tensors:
    if own["bases"] is None:
        learned = {"x": _start(job, own["initialisation"])}
    else:
        learned = addressing.start(job, own["bases"], own["downsample"])
    return learned | ({"y": _soft_labels(job, own["initialisation"])} if own["learn_labels"] else {})


def _as_set(job: Job, learned: Tensors) -> Tensors:
    """What is learned, by the names of a set."""
    return {"x": addressing.images(learned, job.data.shape)} | ({"y": learned["y"]} if "y" in learned else {})


def _bptt_step(
    job: Job, own: dict[str, Any], iteration: int, learned: Tensors, _: outer.Numbers
) -> tuple[Tensors, outer.Numbers]:
    """The gradients of one iteration, clipped, and its loss."""

    def augmented(x: Tensor, _: object) -> Tensor:
        return augment.augment(x, own["strategy"], generator(job.seed, "BPTT augmentation", iteration))

    inner = Optimiser("sgd", own["inner_momentum"])
    rows = outer.real_rows(job, own["batch_real"], iteration)
    state = unroll.begin(_fresh(job, iteration, own["at_once"]), inner)
    window = _Window(inner, state, 0, own["steps"], own["inner_rate"], own["compiled"])
    loss, gradients = _through(job, window, learned, rows, iteration, own["minibatch"], augmented)
    if "coefficients" in gradients:
        gradients["coefficients"].add_(learned["coefficients"], alpha=own["coefficient_decay"])
    return outer.clipped(gradients, own["clip"])[0], {"loss": loss}


def _check_rat(job: Job, own: dict[str, Any]) -> None:
    names = ("iterations", "window", "horizon", "at_once", "batch_real", "minibatch")
    numbers = {name: own[name] for name in ("inner_rate", "rate", "clip")}
    _check(job, "RaT", {name: own[name] for name in names}, numbers, None, own["strategy"], own["compiled"])
    checks.one_of("window_start of RaT", own["window_start"], ("random", "fixed", "sliding"))
    checks.whole("earliest of RaT", own["earliest"], 0)
    if own["earliest"] + own["window"] > own["horizon"]:
        raise ValueError(
            f"earliest is {own['earliest']} and window {own['window']}: together they exceed horizon, {own['horizon']}"
        )


def _rat_step(
    job: Job, own: dict[str, Any], iteration: int, learned: Tensors, carried: outer.Numbers
) -> tuple[Tensors, outer.Numbers]:
    """The gradients of one iteration, clipped, and its loss."""

    def augmented(x: Tensor, what: object) -> Tensor:
        return augment.augment(x, own["strategy"], generator(job.seed, "RaT augmentation", iteration, what))

    inner, n, compiled = Optimiser("adam"), len(job.data.train_y), own["compiled"]
    order = Recipe(updates=own["iterations"], batch_size=own["batch_real"])
    epoch, batch = divmod(iteration, order.batches_per_epoch(n))
    rows = epoch_order(order, torch.arange(n), stream_seed(job.seed, "RaT real batches"), epoch)
    rows = rows.split(own["batch_real"])[batch].to(job.data.train_x.device)
    first = _window_start(job, own, iteration if own["every_iteration"] else epoch, carried)
    before = _batches(job, learned, iteration, own["minibatch"], augmented, 0)
    state = unroll.begin(_fresh(job, iteration, own["at_once"]), inner)
    state = unroll.advance(job.architecture, inner, state, before, [own["inner_rate"]] * first, compiled)
    window = _Window(inner, state, first, own["window"], own["inner_rate"], compiled)
    loss, gradients = _through(job, window, learned, rows, iteration, own["minibatch"], augmented)
    if own["window_start"] == "sliding":
        _slide(carried, loss, own["window"], own["horizon"], order.batches_per_epoch(n))
    return _steadied(gradients, own["clip"], carried), {"loss": loss}


@dataclass(frozen=True)
class _Window:
    """Updates that are differentiated: ``steps`` of them, after the ``first`` that led to ``state``."""

    inner: Optimiser
    state: State
    first: int
    steps: int
    rate: float
    compiled: bool


def _through(
    job: Job,
    window: _Window,
    learned: Tensors,
    rows: Tensor,
    iteration: int,
    minibatch: int | None,
    augmented: Augment,
) -> tuple[float, Tensors]:
    """The loss on the real ``rows`` of networks trained through a window, and its gradients in what is ``learned``."""
    a, inner, state = job.architecture, window.inner, window.state
    leaves = {name: t.detach().requires_grad_() for name, t in learned.items()}
    batches = _batches(job, leaves, iteration, minibatch, augmented, window.first)
    rates = state.weights.new_full((window.steps,), window.rate)
    trace = unroll.forward(a, inner, state, batches, rates, compiled=window.compiled)
    x, y = augmented(job.data.train_x[rows], "real"), job.data.train_y[rows]
    losses, gradient = unroll.loss_and_gradient(a, trace.end.weights, x, y)
    found = unroll.adjoint(
        a, inner, trace, batches, gradient / len(losses), list(leaves.values()), compiled=window.compiled
    )
    return float(losses.mean()), dict(zip(leaves, found.inputs, strict=True))


def _batches(
    job: Job, learned: Tensors, iteration: int, minibatch: int | None, augmented: Augment, first: int
) -> unroll.Batches:
    """The batches of training on what is ``learned``, from update ``first`` of an iteration on."""
    labels = learned.get("y", job.labels())

    def batch(t: int) -> tuple[Tensor, Tensor]:
        rows = outer.some_rows(job, minibatch, "inner batch", iteration, first + t)
        x = addressing.images(learned, job.data.shape, rows)
        return augmented(x, first + t), labels if rows is None else labels[rows]

    return batch


def _fresh(job: Job, iteration: int, count: int) -> networks.Networks:
    """The networks that an iteration starts from."""
    seeds = [stream_seed(job.seed, "network to train on the images", iteration, k) for k in range(count)]
    x = job.data.train_x
    return networks.create(job.architecture, seeds, device=x.device, dtype=x.dtype)


def _start(job: Job, initialisation: str) -> Tensor:
    """The images an unrolled method starts from; those of "xavier" are uniform, as of a matrix with an image a row."""
    if initialisation == "unit_noise":
        noise = job.noise().to(job.data.train_x.dtype)
        return noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    if initialisation != "xavier":
        return job.start(initialisation)
    x = job.data.train_x
    shape = (job.ipc * job.data.n_classes, *job.data.shape)
    bound = math.sqrt(6 / (shape[0] + math.prod(job.data.shape)))
    u = torch.rand(shape, generator=generator(job.seed, "xavier images"), dtype=x.dtype)
    return (bound * (2 * u - 1)).to(x.device)


def _soft_labels(job: Job, initialisation: str) -> Tensor:
    """Labels (n, classes) to learn from: those of the given set, or hard ones."""
    y = job.given.y if initialisation == "given" and job.given else job.labels()
    soft = y if y.is_floating_point() else F.one_hot(y, job.data.n_classes)
    return soft.to(job.data.train_x.device, job.data.train_x.dtype)


def _window_start(job: Job, own: dict[str, Any], draw: int, carried: outer.Numbers) -> int:
    """The first update of the window."""
    earliest, latest = own["earliest"], own["horizon"] - own["window"]
    if own["window_start"] == "fixed":
        return latest
    if own["window_start"] == "sliding":
        return int(carried.setdefault("start", float(earliest)))
    return int(torch.randint(earliest, latest + 1, (), generator=generator(job.seed, "RaT window", draw)))


def _slide(carried: outer.Numbers, loss: float, window: int, horizon: int, per_epoch: int, patience: int = 60) -> None:
    """Count epochs without a lower mean loss, and move the window on after ``patience`` of them."""
    for name, value in (("sum", 0.0), ("count", 0.0), ("best", math.inf), ("stale", 0.0)):
        carried.setdefault(name, value)
    carried["sum"] += loss
    carried["count"] += 1
    if carried["count"] < per_epoch:
        return
    mean = carried["sum"] / per_epoch
    better = mean < carried["best"]
    carried |= {"sum": 0.0, "count": 0.0, "best": min(mean, carried["best"])}
    carried["stale"] = 0.0 if better else carried["stale"] + 1
    if carried["stale"] >= patience:
        start = min(carried["start"] + window, horizon - window)
        carried |= {"start": start, "best": math.inf, "stale": 0.0}


def _steadied(gradients: Tensors, ratio: float, carried: outer.Numbers, fade: float = 0.9) -> Tensors:
    """Gradients clipped to ``ratio`` times the running mean of their clipped norms, which starts with the first."""
    limit = ratio * carried.get("norm", math.inf)
    cut, norm = outer.clipped(gradients, limit)
    norm = min(norm, limit)
    carried["norm"] = fade * carried.get("norm", norm) + (1 - fade) * norm
    return cut


def _check(
    job: Job,
    what: str,
    whole: dict[str, int],
    numbers: dict[str, float],
    minibatch: int | None,
    strategy: str,
    compiled: bool,
) -> None:
    """Refuse settings before any work."""
    Compute(compiled=compiled)
    for name, count in whole.items():
        checks.whole(f"{name} of {what}", count)
    for name, value in numbers.items():
        checks.at_least(f"{name} of {what}", value, 0)
    if minibatch is not None:
        checks.whole(f"minibatch of {what}", minibatch)
    augment.parse_strategy(strategy)
