"""Dataset distillation, and the same with soft labels: images, labels and step sizes learned through training on them.

Wang, Zhu, Torralba and Efros, *Dataset distillation* (2018): S steps, each with k images of every class, are walked in
order, E times over, by plain gradient descent on whole batches, with a learned step size for each of the T = S E
updates. What is learned follows the exact gradient of the trained networks' loss on real images
(:mod:`ddanalysis.unroll`). Sucholutsky and Schonlau, *Soft-label dataset distillation* (2019), learn the labels too,
rows of any real numbers, so that a set may have fewer images than classes.

A step of size r on labels y is one of size 1 on labels r y: so the step sizes learn as labels do, and nothing is kept
of a step but the weights before it.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import augment, checks, unroll
from ddanalysis.compute import networks_together, slices
from ddanalysis.distill import label_starts, outer
from ddanalysis.distill.dd_networks import sampler
from ddanalysis.distill.dd_settings import BETAS, INNER, Settings
from ddanalysis.distill.making import Job, Made
from ddanalysis.distilled import DistilledSet
from ddanalysis.networks import Networks
from ddanalysis.optimisers import Optimiser
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Tensors
from ddanalysis.training import Recipe, epoch_order

KEPT = {"cpu": 2**22, "cuda": 2**30}
"""Numbers in the weights before each step, of networks that walk the steps together, by device type: where there would
be more, those of one pass at a time are kept.
"""


def _distil(job: Job, own: Settings) -> Made:
    """A set that is walked in ``steps`` steps, ``passes`` times, with ``job.ipc`` images a class in all of them.

    The defaults are the published ones. Each of the steps times passes updates has a step size of its own, at first
    ``step_size`` (one for all, ``shared_rate``), kept above 0 by a softplus unless ``positive_rates`` is False: then
    they may fall below on the way, not in the end, where a set could not be trained on. The
    loss on ``batch_real`` real images, a permutation of them each epoch, under the DSA ``strategy`` (published: none
    for digits, "crop_flip" comes near that for CIFAR-10), is that of ``networks``: "random", ``at_once`` fresh ones of
    the law ``weights`` each iteration; "fixed", the same ``fixed`` ones; "pretrained", ``at_once`` of ``pretrained``
    ones that learned the dataset ``source`` ("": the job's), by ``PRETRAINING`` but for ``pretrained_epochs``, or the
    first ones in ``source``, a folder of files of networks (those after them are to test with);
    "imagenet", the one of :mod:`ddanalysis.imagenet`.
    ``attack`` [a, b] has that loss call class a b. All learn by Adam at ``rate``, times ``decay`` after every
    ``decay_every`` iterations (the published code decays an epoch early); ``outer`` may be "adamw", with
    ``weight_decay``, and ``inner`` "adam" in place of "sgd", or "adam-higher", by which images learn from many times as
    many of a network's weights.

    Images start as "noise", "real", "uniform" pixels or "given", class by class of ``label_classes`` (None: all).
    Labels are hard unless they are learned or start otherwise than "one-hot": as :func:`label_starts.start` has it from
    ``label_file``, or the "given" set's; plus ``label_shift``, times ``label_scale``; under ``label_softmax`` networks
    learn the softmax of these rows, and the set has that. ``history`` has every loss, and the mean step size after it.
    """
    plan = _Plan.of(job, own)
    return outer.optimise(
        job, "DD", lambda: {name: plan.start[name].clone() for name in plan.learns}, lambda *given: _step(plan, *given),
        Optimiser("adam", betas=BETAS[own.outer]), lambda iteration: dict.fromkeys(plan.start, own.rate_in(iteration)),
        own.iterations, partial(_rate_now, plan), plan.as_set,
    )  # fmt: skip


def _method(name: str, defaults: Settings) -> Callable[..., Made]:
    """:func:`_distil` as a method of ``METHODS``, its settings in its signature."""

    def make(job: Job, **settings: Any) -> Made:
        return _distil(job, replace(defaults, **settings))

    first = [inspect.Parameter("job", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    own = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=v) for key, v in asdict(defaults).items()]
    make.__name__, make.__doc__ = name, _distil.__doc__
    make.__signature__ = inspect.Signature(first + own)  # type: ignore[attr-defined]
    return make


dd = _method("dd", Settings())
sldd = _method("sldd", Settings(learn_labels=True))


def step_order(n_classes: int, ipc: int, steps: int, passes: int) -> Tensor:
    """Rows (steps * passes, batch) of a class-major set of ``ipc`` images a class that is walked step by step.

    Step s has images s * k to (s + 1) * k - 1 of every class, class by class, where k = ipc / steps.
    """
    if ipc % steps:
        raise ValueError(f"ipc is {ipc} and steps of DD {steps}: every step needs as many images of a class")
    rows = torch.arange(n_classes * ipc).view(n_classes, steps, ipc // steps)
    return rows.transpose(0, 1).flatten(1).repeat(passes, 1)


@dataclass(frozen=True)
class _Plan:
    """A job with what its settings amount to: the tensors at the start, learned or not, by name, and the networks."""

    job: Job
    own: Settings
    order: Tensor  # (T, B) rows
    start: Tensors  # "x" (n, c, h, w), "y" (n, C) real or (n,) ids, "rates" (T,) or (1,), before the softplus
    pool: Callable[[int], Networks]  # of an iteration

    @staticmethod
    def of(job: Job, own: Settings) -> "_Plan":
        n = job.data.n_classes
        classes = _class_ids("label_classes", range(n) if own.label_classes is None else own.label_classes, n)
        if own.attack is not None:
            _class_ids("attack", own.attack, n, 2)
        order = step_order(len(classes), job.ipc, own.steps, own.passes).to(job.data.train_x.device)
        size = torch.full((1 if own.shared_rate else len(order),), own.step_size, dtype=torch.float64)
        raw = size + torch.log(-torch.expm1(-size)) if own.positive_rates else size
        start = {"x": _images(job, own, classes), "y": _labels(job, own, classes), "rates": raw.to(job.data.train_x)}
        return _Plan(job, own, order, start, sampler(job, own))

    @property
    def learns(self) -> list[str]:
        chosen = {"x": self.own.learn_images, "y": self.own.learn_labels, "rates": self.own.learn_rates}
        return [name for name, asked in chosen.items() if asked]

    def rates(self, now: Tensors) -> Tensor:
        """The step sizes (T,)."""
        return (F.softplus(now["rates"]) if self.own.positive_rates else now["rates"]).expand(len(self.order))

    def labels(self, now: Tensors) -> Tensor:
        """The labels as they are trained with: (n, C), or (n,) ids."""
        return now["y"].softmax(1) if self.own.label_softmax else now["y"]

    def as_set(self, learned: Tensors) -> Tensors:
        now = self.start | learned
        rates = self.rates(now).detach()
        lowest = float(rates.min())
        if not lowest > 0:
            raise FloatingPointError(f"a step size of DD is {lowest} in the end: lower rate, or keep positive_rates")
        own = {"y": self.labels(now).detach(), "learning_rates": rates.clone()}
        return own | {"x": now["x"], "order": self.order}

    def batches(self, now: Tensors) -> tuple[unroll.Batches, Tensor]:
        """The batches of the steps, and their rates: 1, where the labels have the step sizes in them."""
        sizes, scaled = self.rates(now), self.own.inner == "sgd"

        def batch(t: int) -> tuple[Tensor, Tensor]:
            x, y = (tensor.index_select(0, self.order[t]) for tensor in (now["x"], self.labels(now)))
            if not scaled:
                return x, y
            soft = y if y.is_floating_point() else F.one_hot(y, self.job.data.n_classes).to(x.dtype)
            return x, self.rates(now)[t] * soft

        return batch, torch.ones_like(sizes) if scaled else sizes


def _class_ids(what: str, given: Sequence[int], n: int, count: int | None = None) -> list[int]:
    wanted = len(given) if count is None else count
    if not given or not len(set(given)) == len(given) == wanted or not set(given) <= set(range(n)):
        raise ValueError(f"{what} of DD is {list(given)}: {wanted or 1} different classes, 0 to {n - 1}, are needed")
    return list(given)


def _images(job: Job, own: Settings, classes: list[int]) -> Tensor:
    """The images (n, c, h, w) to begin with, those of a class the same whatever other classes there are."""
    x = job.data.train_x
    checks.one_of("initialisation of the images", own.initialisation, ("noise", "real", "uniform", "given"))
    if own.initialisation == "given":
        return _given(job, len(classes)).x.to(x)
    if own.initialisation == "uniform":
        shape = (job.ipc * job.data.n_classes, *job.data.shape)
        pixels = torch.rand(shape, generator=generator(job.seed, "uniform images"), dtype=x.dtype)
        mean, std = (torch.tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (job.data.mean, job.data.std))
        every = (pixels - mean) / std
    else:
        every = job.start(own.initialisation)
    return every.view(job.data.n_classes, job.ipc, *job.data.shape)[classes].flatten(0, 1).to(x)


def _given(job: Job, classes: int) -> DistilledSet:
    """The given set, if it has the images that are to be made."""
    if job.given is None:
        raise ValueError("images or labels of DD are to start as 'given' and no set is: name its file")
    shape = (classes * job.ipc, *job.data.shape)
    if tuple(job.given.x.shape) != shape:
        raise ValueError(f"the given set {job.given.name} has images {tuple(job.given.x.shape)}: {shape} are needed")
    return job.given


def _labels(job: Job, own: Settings, classes: list[int]) -> Tensor:
    """The labels to begin with: rows of numbers, or ids where these are all there is to them."""
    checks.one_of("label_start of DD", own.label_start, (*label_starts.STARTS, "given"))
    plain = (own.label_scale, own.label_shift, own.label_softmax) == (1.0, 0.0, False)
    if own.label_start == "one-hot" and plain and not own.learn_labels:
        return torch.tensor(classes, device=job.data.train_x.device).repeat_interleave(job.ipc)
    if own.label_start == "given":
        y = _given(job, len(classes)).y
        rows = (y if y.is_floating_point() else F.one_hot(y, job.data.n_classes)).to(job.data.train_x)
    else:
        rows = label_starts.start(own.label_start, job.data, classes, job.ipc, job.seed, own.label_file)
    return (rows + own.label_shift) * own.label_scale


def _step(plan: _Plan, iteration: int, learned: Tensors, _: outer.Numbers) -> tuple[Tensors, outer.Numbers]:
    """The gradients of one iteration, the mean over its networks, and their mean loss; AdamW's decay is done here."""
    own, nets = plan.own, plan.pool(iteration)
    x, y = _real_batch(plan.job, own, iteration)
    together = networks_together(nets.architecture, plan.order.shape[1], x.device)
    total = {name: torch.zeros_like(t) for name, t in learned.items()}
    every: list[Tensor] = []
    for part in slices(len(nets), together):
        own_gradients, losses = _through(plan, nets[part], learned, x, y)
        total = {name: t + own_gradients[name] for name, t in total.items()}
        every.append(losses)
    if own.weight_decay:
        learned.update({name: t * (1 - own.rate_in(iteration) * own.weight_decay) for name, t in learned.items()})
    gradients = {name: t / len(nets) for name, t in total.items()}
    return gradients, {"loss": float(torch.cat(every).mean())}


def _through(plan: _Plan, nets: Networks, learned: Tensors, x: Tensor, y: Tensor) -> tuple[Tensors, Tensor]:
    """The gradients of the losses on real images, summed over the networks, in what is learned; the losses (K,)."""
    a, inner, compiled = nets.architecture, INNER[plan.own.inner], plan.own.compiled
    leaves = {name: t.detach().requires_grad_() for name, t in learned.items()}
    batches, rates = plan.batches(plan.start | leaves)
    steps = len(plan.order)
    whole = steps * a.parameter_count() * len(nets) <= KEPT[x.device.type]

    def end(weights: Tensor) -> tuple[Tensor, Tensor]:
        parts = slices(len(nets), networks_together(a, len(x), x.device))
        ends = [unroll.loss_and_gradient(a, weights[part], x, y) for part in parts]
        losses, gradient = (torch.cat(found) for found in zip(*ends, strict=True))
        return losses, gradient

    losses, found = unroll.through(
        a, inner, unroll.begin(nets, inner), batches, rates, list(leaves.values()), end,
        steps if whole else plan.own.steps, compiled,
    )  # fmt: skip
    gradients = dict(zip(leaves, found.inputs, strict=True))
    if "rates" in leaves and found.rates is not None:  # the inner optimiser has them, not the labels
        gradients["rates"] = torch.autograd.grad(rates, leaves["rates"], found.rates)[0]
    return gradients, losses


def _real_batch(job: Job, own: Settings, iteration: int) -> tuple[Tensor, Tensor]:
    """The real images of an iteration, and what the loss calls them."""
    n = len(job.data.train_y)
    recipe = Recipe(updates=own.iterations, batch_size=own.batch_real)
    epoch, batch = divmod(iteration, recipe.batches_per_epoch(n))
    rows = epoch_order(recipe, torch.arange(n), stream_seed(job.seed, "DD real batches"), epoch)
    rows = rows.split(own.batch_real)[batch].to(job.data.train_x.device, non_blocking=True)
    x, y = job.data.train_x[rows], job.data.train_y[rows]
    if own.attack is not None:
        y = y.masked_fill(y == own.attack[0], own.attack[1])
    return augment.augment(x, own.strategy, generator(job.seed, "DD augmentation", iteration)), y


def _rate_now(plan: _Plan, learned: Tensors) -> outer.Numbers:
    """The mean step size, to be recorded."""
    return {"learning_rate": float(plan.rates(plan.start | learned).mean())}
