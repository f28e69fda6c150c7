"""Label distillation: soft labels for real images that stay as they are, or images for hard labels, learned online.

Bohdal, Yang and Hospedales, *Flexible dataset distillation: learn labels instead of images* (2020). One network trains
on the set while the set learns: every iteration looks how a step of training on a batch of the set changes the loss on
a batch of target images, moves the set against that, and trains the network by one step. When training stalls
(:mod:`ddanalysis.distill.resets`) a new network begins; the set goes on. Every few iterations a fresh network learns
from the set for as many steps as these networks had use for, and the set best on validation images is the one kept.

* :func:`ld`, :func:`ld_images`: the step is one of plain SGD, differentiated (second order).
* :func:`ld_ridge`, :func:`ld_images_ridge`: the step is a share of a ridge regression on the features (first order).

The labels of one step of SGD need no second derivative: d loss / d y_ic = rate / n times the derivative of
log softmax(f(x_i))_c along the gradient of the loss, a gradient and one forward-mode product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import unroll
from ddanalysis.architectures import Architecture
from ddanalysis.compute import images_per_pass, slices
from ddanalysis.distill import ridge as ridges
from ddanalysis.distill.label_loop import Task, distil, task
from ddanalysis.distill.making import Job, Made, Numbers
from ddanalysis.distill.ridge import States, descend
from ddanalysis.networks import cross_entropy
from ddanalysis.optimisers import Optimiser


def ld(
    job: Job,
    iterations: int = 19_600,
    rate: float = 1e-3,
    network_rate: float = 1e-3,
    inner_rate: float = 0.01,
    horizon: int = 1,
    inner_batch: int | None = None,
    batch_real: int = 1024,
    source: str = "",
    balanced: bool = True,
    base_examples: int | None = None,
    overlap: bool = False,
    start: str = "uniform",
    target_size: int | None = None,
    validation: int | None = None,
    validate_every: int | None = None,
    window: int | None = None,
) -> Made:
    """Learn labels by the second-order gradient; the defaults are the published ones for at most 100 images of MNIST.

    N = ipc x classes base images, or ``base_examples`` that are not balanced, come from :mod:`base_images`: with a
    ``source`` from that, else from training images, those for validation among them only with ``overlap`` (published).
    Labels start "uniform" (published) or "true", learn by Adam at ``rate``, and are clamped to [0, 1] and made to sum
    to 1 after each step. The look-ahead is ``horizon`` steps (published 1) of SGD at ``inner_rate``; the network
    trains by Adam at ``network_rate``, with the gradient of the first. None is :func:`label_loop.preset`;
    ``target_size`` limits the target images (None: all). ``history`` has the loss and accuracy of the look-ahead on
    target images, "inner_loss", that on the set, and what :func:`label_loop.distil` adds.
    """
    own = {
        "iterations": iterations, "rate": rate, "network_rate": network_rate, "inner_rate": inner_rate,
        "horizon": horizon, "inner_batch": inner_batch, "batch_real": batch_real, "source": source,
        "balanced": balanced, "base_examples": base_examples, "overlap": overlap, "start": start,
        "target_size": target_size, "validation": validation, "validate_every": validate_every, "window": window,
    }  # fmt: skip
    return distil(task(job, "LD", "labels", own), _second_order)


def ld_ridge(
    job: Job,
    iterations: int = 19_600,
    rate: float = 1e-3,
    network_rate: float = 1e-3,
    penalty: float = 1.0,
    head_rate: float = 0.01,
    scale_rate: float = 0.01,
    inner_batch: int | None = None,
    batch_real: int = 1024,
    source: str = "",
    balanced: bool = True,
    base_examples: int | None = None,
    overlap: bool = False,
    start: str = "uniform",
    target_size: int | None = None,
    validation: int | None = None,
    validate_every: int | None = None,
    window: int | None = None,
) -> Made:
    """Learn labels by ridge regression; ``penalty``, ``head_rate`` and ``scale_rate`` are those of :class:`Ridge`, the
    other settings those of :func:`ld`.

    Features train on the labels after their step. Validation is by learners with the same head.
    """
    own = {
        "iterations": iterations, "rate": rate, "network_rate": network_rate, "penalty": penalty,
        "head_rate": head_rate, "scale_rate": scale_rate, "inner_batch": inner_batch, "batch_real": batch_real,
        "source": source, "balanced": balanced, "base_examples": base_examples, "overlap": overlap, "start": start,
        "target_size": target_size, "validation": validation, "validate_every": validate_every, "window": window,
    }  # fmt: skip
    return distil(task(job, "LD by ridge regression", "labels", own), _first_order)


def ld_images(
    job: Job,
    iterations: int = 19_600,
    rate: float = 1e-3,
    network_rate: float = 1e-3,
    inner_rate: float = 0.01,
    horizon: int = 1,
    inner_batch: int | None = None,
    batch_real: int = 1024,
    target_size: int | None = None,
    validation: int | None = None,
    validate_every: int | None = None,
    window: int | None = None,
) -> Made:
    """Learn the pixels of images with hard labels by the second-order gradient; settings as of :func:`ld`.

    Pixels start uniform in [0, 1] and are clamped to it. The network trains on the images after their step.
    """
    own = {
        "iterations": iterations, "rate": rate, "network_rate": network_rate, "inner_rate": inner_rate,
        "horizon": horizon, "inner_batch": inner_batch, "batch_real": batch_real, "target_size": target_size,
        "validation": validation, "validate_every": validate_every, "window": window,
    }  # fmt: skip
    return distil(task(job, "LD of images", "images", own), _second_order)


def ld_images_ridge(
    job: Job,
    iterations: int = 19_600,
    rate: float = 1e-3,
    network_rate: float = 1e-3,
    penalty: float = 1.0,
    head_rate: float = 0.01,
    scale_rate: float = 0.01,
    inner_batch: int | None = None,
    batch_real: int = 1024,
    target_size: int | None = None,
    validation: int | None = None,
    validate_every: int | None = None,
    window: int | None = None,
) -> Made:
    """Learn the pixels of images with hard labels by ridge regression; settings as of :func:`ld_ridge`.

    Pixels as in :func:`ld_images`, but features train on the images before their step. (In the published code the
    optimiser holds the weights of a network that is thrown away, so features are random until the first reset.)
    """
    own = {
        "iterations": iterations, "rate": rate, "network_rate": network_rate, "penalty": penalty,
        "head_rate": head_rate, "scale_rate": scale_rate, "inner_batch": inner_batch, "batch_real": batch_real,
        "target_size": target_size, "validation": validation, "validate_every": validate_every, "window": window,
    }  # fmt: skip
    return distil(task(job, "LD of images by ridge regression", "images", own), _first_order)


def label_gradient(architecture: Architecture, weights: Tensor, x: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """The derivative (n, classes) of a loss in the soft labels of images x (n, c, h, w), after one step of SGD at
    ``rate`` on them from ``weights`` (1, P), where the loss has ``gradient`` (1, P).
    """

    def log_probabilities(w: Tensor) -> Tensor:
        found = unroll.unflat(architecture, w)
        return F.log_softmax(architecture.logits(found.state, x, {})[:, 0], 1)

    return torch.func.jvp(log_probabilities, (weights,), (gradient,))[1] * (rate / len(x))


def target_gradient(architecture: Architecture, weights: Tensor, x: Tensor, y: Tensor) -> tuple[Numbers, Tensor]:
    """Loss and accuracy of the one network of ``weights`` (1, P) on images and class ids, and the loss's gradient.

    In bounded memory; batch normalisation by the statistics of the batch.
    """
    loss, right, gradient, n = 0.0, 0, torch.zeros_like(weights), len(x)
    size = n if architecture.batch_statistics else images_per_pass(architecture, 1, x.device)
    for s in slices(n, size):
        leaf = weights.detach().requires_grad_()
        with torch.enable_grad():
            logits = architecture.logits(unroll.unflat(architecture, leaf).state, x[s], {}).transpose(0, 1)
            part = cross_entropy(logits, y[s]).sum() / n
        gradient += torch.autograd.grad(part, leaf)[0]
        loss, right = loss + float(part.detach()), right + int((logits[0].argmax(1) == y[s]).sum())
    return {"loss": loss, "accuracy": right / n}, gradient


def _second_order(task: Task, states: States, iteration: int) -> tuple[States, Numbers]:
    a, network, learned = task.job.architecture, states["network"], states["learned"].weights
    rows = task.batch(iteration)
    x, y = task.pair(learned)
    inner, own_gradient = unroll.loss_and_gradient(a, network.weights, x[rows], y[rows])
    if task.learn == "labels" and task.own["horizon"] == 1:
        ahead = network.weights - task.own["inner_rate"] * own_gradient
        numbers, gradient = target_gradient(a, ahead, *task.real(iteration))
        into = torch.zeros_like(learned)
        into[rows] = label_gradient(a, network.weights, x[rows], gradient, task.own["inner_rate"])
    else:
        numbers, into = _through(task, network.weights, learned, iteration)
    states = task.moved(states, into)
    if task.learn == "images":  # as published, the network sees the new images, but the old labels
        x, _ = task.pair(states["learned"].weights)
        _, own_gradient = unroll.loss_and_gradient(a, network.weights, x[rows], y[rows])
    states = states | {"network": descend(network, own_gradient, task.own["network_rate"])}
    return states, numbers | {"inner_loss": float(inner)}


def _through(task: Task, weights: Tensor, learned: Tensor, iteration: int) -> tuple[Numbers, Tensor]:
    """Loss and accuracy after the look-ahead, and the exact derivative of the loss in what is learned."""
    a, sgd, leaf = task.job.architecture, Optimiser(), learned.detach().requires_grad_()

    def batches(t: int) -> tuple[Tensor, Tensor]:
        rows = task.batch(iteration, t)
        x, y = task.pair(leaf)
        return x[rows], y[rows]

    rates = weights.new_full((task.own["horizon"],), task.own["inner_rate"])
    trace = unroll.forward(a, sgd, unroll.State(weights), batches, rates)
    numbers, gradient = target_gradient(a, trace.end.weights, *task.real(iteration))
    return numbers, unroll.adjoint(a, sgd, trace, batches, gradient, [leaf]).inputs[0]


def _first_order(task: Task, states: States, iteration: int) -> tuple[States, Numbers]:
    a, rows, leaf = task.job.architecture, task.batch(iteration), states["learned"].weights.detach()
    leaf.requires_grad_(task.learn == "images")
    with torch.enable_grad():
        x, y = task.pair(leaf)
    batch = ridges.fit(a, states, x[rows], y[rows], task.ridge, {})
    loss, accuracy, gradient = ridges.target(a, batch, *task.real(iteration))
    if task.learn == "images":
        (into,) = torch.autograd.grad(batch.head, leaf, gradient, retain_graph=True)
    else:
        into = torch.zeros_like(leaf)
        into[rows] = ridges.label_gradient(batch, gradient, task.ridge)[0]
    states = task.moved(states, into)
    labels = y.detach() if task.learn == "images" else states["learned"].weights
    states, inner = ridges.learned(states, batch, labels[rows], task.ridge, task.own["network_rate"])
    return states, {"loss": float(loss), "accuracy": float(accuracy), "inner_loss": float(inner)}
