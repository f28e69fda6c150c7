"""One step of each distillation method as its published code takes it, written again in plain PyTorch.

One ``nn.Module``, Python loops over classes, and the graph of everything that is differentiated kept until one backward
pass. Only the arithmetic of the step is here: random draws are the caller's, so that ours can be given the same ones.
Every function returns the gradient of the method's loss in the images ``x``.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from ddanalysis import augment, networks, unroll
from ddanalysis.architectures import build
from ddanalysis.data import ImageData, class_rows
from ddanalysis.distill import Job, bptt, outer, trajectory
from ddanalysis.distill.making import real_batch
from ddanalysis.evaluation import dsa_strategy
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.training import Recipe, epoch_order

MATCHING = ("dc", "dsa", "dm")
INNER_RATE = {"bptt": 0.01, "rat": 1e-3}
UNROLL_AUGMENTATION = "rotate"  # of MTT, TESLA and RaT: one operation of the published ones, so that steps are alike
Batches = Callable[[int, Tensor], tuple[Tensor, Tensor]]  # of step t and all images: what the step trains on
Labelled = tuple[Tensor, Tensor]
Weights = Sequence[Tensor]
Update = Callable[[int, Weights, list[Weights], Weights], tuple[Weights, list[Weights]]]


class ConvNet(nn.Module):
    """The published network of three blocks; parameters are named as the package names them."""

    def __init__(self, channels: int, size: int, classes: int, width: int) -> None:
        super().__init__()
        for i in range(3):
            setattr(self, f"conv{i}", nn.Conv2d(width if i else channels, width, 3, padding=1))
            setattr(self, f"norm{i}", nn.GroupNorm(width, width))
        self.head = nn.Linear(width * (size // 8) ** 2, classes)

    def features(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x))
            x = F.avg_pool2d(F.relu(x, inplace=True), 2)
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


# DC and DSA -----------------------------------------------------------------------------------------------------------


def gradient_matching(
    net: ConvNet, x: Tensor, ipc: int, real: Callable[[int], Tensor], augmented: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Class by class a real and a differentiable gradient; one backward pass through the graphs of all classes."""
    parameters, leaf, loss = list(net.parameters()), x.clone().requires_grad_(), x.new_zeros(())
    for c, own in enumerate(leaf.split(ipc)):
        target = torch.autograd.grad(_class_loss(net, augmented(c, real(c)), c), parameters)
        given = torch.autograd.grad(_class_loss(net, augmented(c, own), c), parameters, create_graph=True)
        for r, g in zip(target, given, strict=True):
            if r.ndim > 1:
                loss = loss + _rows_apart(r.detach().clone().flatten(1), g.flatten(1))
    loss.backward()
    return leaf.grad


def _class_loss(net: ConvNet, images: Tensor, c: int) -> Tensor:
    return F.cross_entropy(net(images), torch.full((len(images),), c, device=images.device))


def _rows_apart(a: Tensor, b: Tensor) -> Tensor:
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()


def train(net: ConvNet, x: Tensor, y: Tensor, epochs: int, rate: float, augmented: Callable[[Tensor], Tensor]) -> None:
    """The network's training between two updates of the images, in place: a loader that collates image by image."""
    loader = DataLoader(TensorDataset(x.clone(), y.clone()), 256, shuffle=True)
    optimiser = torch.optim.SGD(net.parameters(), lr=rate)
    for _ in range(epochs):
        right = 0
        for images, labels in loader:
            logits = net(augmented(images))
            loss = F.cross_entropy(logits, labels)
            right += int((logits.argmax(1) == labels).sum())  # every batch's accuracy is counted
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


# DM -------------------------------------------------------------------------------------------------------------------


def distribution_matching(
    net: ConvNet, x: Tensor, ipc: int, real: Callable[[int], Tensor], augmented: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Class by class a real and a differentiable mean of features; one backward pass."""
    net.requires_grad_(False)
    leaf, loss = x.clone().requires_grad_(), x.new_zeros(())
    for c, own in enumerate(leaf.split(ipc)):
        target = net.features(augmented(c, real(c))).detach()
        loss = loss + (target.mean(0) - net.features(augmented(c, own)).mean(0)).square().sum()
    loss.backward()
    return leaf.grad


# MTT and TESLA --------------------------------------------------------------------------------------------------------


def trajectory_matching(
    net: ConvNet, start: Tensor, target: Tensor, x: Tensor, step_size: float, batches: Batches, steps: int
) -> tuple[Tensor, Tensor]:
    """The weights are one vector, and the graph of all ``steps`` is kept; with the gradient in the step size."""
    leaf, rate = x.clone().requires_grad_(), x.new_tensor(step_size).requires_grad_()
    weights = start.clone().requires_grad_()
    for t in range(steps):
        loss = _flat_loss(net, weights, *batches(t, leaf))
        weights = weights - rate * torch.autograd.grad(loss, weights, create_graph=True)[0]
    loss = (weights - target).square().sum() / (start - target).square().sum()
    loss.backward()
    return leaf.grad, rate.grad


def tesla(
    net: ConvNet, start: Tensor, target: Tensor, x: Tensor, step_size: float, batches: Batches, steps: int
) -> tuple[Tensor, Tensor]:
    """The path is walked without a graph and kept; then one step's graph at a time, the path held fixed."""
    weights, path, total = start, [], torch.zeros_like(start)
    for t in range(steps):
        path.append(weights.detach().requires_grad_())
        (gradient,) = torch.autograd.grad(_flat_loss(net, path[t], *batches(t, x)), path[t])
        weights, total = weights - step_size * gradient, total + gradient
    into_end = 2 * (weights - target) / (start - target).square().sum()
    found = torch.zeros_like(x)
    for t in range(steps):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_flat_loss(net, path[t], *batches(t, leaf)), path[t], create_graph=True)
        found += torch.autograd.grad(-step_size * (gradient @ into_end), leaf)[0]
    return found, -(total @ into_end)


def _flat_loss(net: ConvNet, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    own = dict(net.named_parameters())
    parts = weights.split([p.numel() for p in own.values()])
    views = {name: part.view(p.shape) for (name, p), part in zip(own.items(), parts, strict=True)}
    return F.cross_entropy(functional_call(net, views, images), labels)


# BPTT and RaT-BPTT ----------------------------------------------------------------------------------------------------


def momentum_update(rate: float, momentum: float) -> Update:
    """SGD with momentum that can be differentiated."""

    def update(_: int, weights: Weights, averages: list[Weights], gradients: Weights) -> tuple[Weights, list[Weights]]:
        (velocity,) = averages
        velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
        return [w - rate * v for w, v in zip(weights, velocity, strict=True)], [velocity]

    return update


def adam_update(rate: float) -> Update:
    """Adam that can be differentiated; where the square is 0 its root has no slope."""

    def update(t: int, weights: Weights, averages: list[Weights], gradients: Weights) -> tuple[Weights, list[Weights]]:
        mean = [0.9 * m + 0.1 * g for m, g in zip(averages[0], gradients, strict=True)]
        square = [0.999 * s + 0.001 * g * g for s, g in zip(averages[1], gradients, strict=True)]
        roots = [(s.clamp(min=1e-60) / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8 for s in square]
        directions = [m / (1 - 0.9 ** (t + 1)) / root for m, root in zip(mean, roots, strict=True)]
        return [w - rate * d for w, d in zip(weights, directions, strict=True)], [mean, square]

    return update


def retained(
    net: ConvNet, x: Tensor, averages: list[Weights], update: Update, batches: Batches, window: range, real: Labelled
) -> Tensor:
    """Back through the steps of ``window`` by one graph of all of them, as ``higher`` does it."""
    leaf, weights = x.clone().requires_grad_(), [p.detach().clone().requires_grad_() for p in net.parameters()]
    for t in window:
        gradients = torch.autograd.grad(_loss(net, weights, *batches(t, leaf)), weights, create_graph=True)
        weights, averages = update(t, weights, averages, gradients)
    _loss(net, weights, *real).backward()
    return leaf.grad


def recompute(
    net: ConvNet, x: Tensor, rate: float, momentum: float, batches: Batches, steps: int, real: Labelled
) -> Tensor:
    """Back through SGD with momentum from copies of the weights in main memory, one step's graph at a time."""
    weights, kept = [p.detach().clone().requires_grad_() for p in net.parameters()], []
    update, averages = momentum_update(rate, momentum), [[torch.zeros_like(w) for w in weights]]
    for t in range(steps):
        kept.append([w.detach().to("cpu", copy=True) for w in weights])
        gradients = torch.autograd.grad(_loss(net, weights, *batches(t, x)), weights)
        with torch.no_grad():
            weights, averages = update(t, weights, averages, gradients)
        weights = [w.requires_grad_() for w in weights]
    into_weights = torch.autograd.grad(_loss(net, weights, *real), weights)
    into_velocity, found = [torch.zeros_like(w) for w in weights], torch.zeros_like(x)
    for t in reversed(range(steps)):
        into_velocity = [v - rate * w for v, w in zip(into_velocity, into_weights, strict=True)]
        leaf, before = x.clone().requires_grad_(), [w.to(x.device).requires_grad_() for w in kept[t]]
        gradients = torch.autograd.grad(_loss(net, before, *batches(t, leaf)), before, create_graph=True)
        into_x, *products = torch.autograd.grad(gradients, [leaf, *before], into_velocity)
        found += into_x
        into_weights = [w + h for w, h in zip(into_weights, products, strict=True)]
        into_velocity = [momentum * v for v in into_velocity]
    return found


def rat(net: ConvNet, x: Tensor, rate: float, batches: Batches, before: int, steps: int, real: Labelled) -> Tensor:
    """``before`` plain steps of Adam, then ``steps`` more with their graph."""
    net, averages = advance(net, x, rate, batches, before)
    return retained(net, x, averages, adam_update(rate), batches, range(before, before + steps), real)


def advance(net: ConvNet, x: Tensor, rate: float, batches: Batches, steps: int) -> tuple[ConvNet, list[Weights]]:
    """A copy of the network after so many steps of PyTorch's Adam, and Adam's averages."""
    net = copy.deepcopy(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    for t in range(steps):
        images, labels = batches(t, x)
        optimiser.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()
    states = [optimiser.state.get(p, {}) for p in net.parameters()]
    names = ("exp_avg", "exp_avg_sq")
    return net, [
        [s.get(name, torch.zeros_like(p)) for s, p in zip(states, net.parameters(), strict=True)] for name in names
    ]


def real_gradient(net: ConvNet, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The gradient in the weights of the loss on real images, in one pass."""
    return list(torch.autograd.grad(F.cross_entropy(net(images), labels), list(net.parameters())))


def _loss(net: ConvNet, weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    named = dict(zip((name for name, _ in net.named_parameters()), weights, strict=True))
    return F.cross_entropy(functional_call(net, named, images), labels)


# Data and draws that both ways share ----------------------------------------------------------------------------------


def made_up(per_class: int = 512, size: int = 32, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ImageData:
    """Random images of ten classes under CIFAR-10's name, whose published settings they get."""
    y = torch.arange(10).repeat_interleave(per_class)
    x = torch.randn(len(y), 3, size, size, generator=generator(0, "made-up images")).to(device, dtype)
    y = y.to(device)
    classes = tuple(map(str, range(10)))
    return ImageData("cifar10", x, y, x[:10], y[:10], classes, (0.0,) * 3, (1.0,) * 3, "random numbers")


def job_of(data: ImageData, width: int, ipc: int) -> Job:
    return Job(data, build("ConvNet", data.shape, data.n_classes, width=width), ipc)


def first_network(job: Job, method: str) -> networks.Networks:
    """The network of a method's first iteration, or where MTT's students start."""
    stream = {"dc": ("matched network", 0), "dsa": ("matched network", 0), "dm": ("DM network", 0)}.get(
        method, ("network to train on the images", 0, 0)
    )
    x = job.data.train_x
    return networks.create(job.architecture, [stream_seed(job.seed, *stream)], device=x.device, dtype=x.dtype)


def expert(job: Job) -> Tensor:
    """Made-up weights (2, P) of an expert before and after an epoch."""
    x = job.data.train_x
    return unroll.flat(networks.create(job.architecture, [1, 2], device=x.device, dtype=x.dtype))


def real_images(job: Job, n: int, c: int) -> Tensor:
    return job.data.train_x[real_batch(class_rows(job.data.train_y, c), n, job.seed, 0, c)]


def matched_augmentation(job: Job, method: str, c: int, x: Tensor) -> Tensor:
    strategy = "" if method == "dc" else dsa_strategy(job.data.name)
    stream = "DM augmentation" if method == "dm" else "matching augmentation"
    return augment.apply(augment.draw(strategy, job.data.shape, generator(job.seed, stream, 0, c)), x)


def unrolled_batch(job: Job, method: str, t: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """What step ``t`` of an unrolled method trains on: MTT and BPTT on all images, RaT on at most 10 a class."""
    if method == "bptt":
        return x, job.labels()
    if method == "rat":
        minibatch = bptt.preset(job.data.name, job.ipc, {})["minibatch"]
        rows = outer.some_rows(job, minibatch, "inner batch", 0, t)
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        g = generator(job.seed, "RaT augmentation", 0, t)
        return augment.augment(x[rows], UNROLL_AUGMENTATION, g), job.labels()[rows]
    return augment.augment(x, UNROLL_AUGMENTATION, generator(job.seed, "MTT augmentation", 0, t)), job.labels()


def end_images(job: Job, method: str) -> tuple[Tensor, Tensor]:
    """The real images in the loss at the end of an unroll: ten, for RaT augmented."""
    x, y = job.data.train_x, job.data.train_y
    if method == "bptt":
        rows = outer.real_rows(job, 1, 0)
        return x[rows], y[rows]
    order = Recipe(updates=1, batch_size=10)
    rows = epoch_order(order, torch.arange(len(x)), stream_seed(job.seed, "RaT real batches"), 0)[:10].to(x.device)
    g = generator(job.seed, "RaT augmentation", 0, "real")
    return augment.augment(x[rows], UNROLL_AUGMENTATION, g), y[rows]


# The published way ----------------------------------------------------------------------------------------------------


def plain_network(job: Job, method: str) -> ConvNet:
    """The network of a method's first iteration as a module."""
    a, own = job.architecture, first_network(job, method).state
    net = ConvNet(a.channels, a.size, a.classes, getattr(a, "width", 0)).to(job.data.train_x)
    net.load_state_dict({name: t[0] for name, t in own.items()})
    return net


def published_step(
    job: Job,
    net: ConvNet,
    method: str,
    way: str,
    steps: int = 0,
    before: int = 0,
    batch_real: int = 256,
) -> tuple[Tensor, ...]:
    """The gradient in the images, and for MTT and TESLA in the step size."""
    x = job.real_images()
    if method in MATCHING:
        compute = distribution_matching if method == "dm" else gradient_matching
        real, augmented = partial(real_images, job, batch_real), partial(matched_augmentation, job, method)
        return (compute(net, x, job.ipc, real, augmented),)
    batches = partial(unrolled_batch, job, method)
    if method in ("mtt", "tesla"):
        step = tesla if method == "tesla" else trajectory_matching
        return step(net, *expert(job), x, step_size(job), batches, steps)
    rate, end = INNER_RATE[method], end_images(job, method)
    if method == "rat":
        return (rat(net, x, rate, batches, before, steps, end),)
    if way == "recompute":
        return (recompute(net, x, rate, 0.9, batches, steps, end),)
    update, averages = momentum_update(rate, 0.9), [[torch.zeros_like(p) for p in net.parameters()]]
    return (retained(net, x, averages, update, batches, range(steps), end),)


def step_size(job: Job) -> float:
    return trajectory.preset(job.data.name, job.ipc, {})["step_size"]


def published_training(job: Job, net: ConvNet, method: str, epochs: int) -> None:
    strategy = "" if method == "dc" else dsa_strategy(job.data.name)
    g = generator(job.seed, "augmentation of the training")
    train(net, job.real_images(), job.labels(), epochs, 0.01, lambda x: augment.augment(x, strategy, g))


def published_advance(job: Job, net: ConvNet, steps: int) -> tuple[ConvNet, list[Weights]]:
    return advance(net, job.real_images(), INNER_RATE["rat"], partial(unrolled_batch, job, "rat"), steps)
