"""DC and DSA, gradient matching (Zhao et al., *Dataset condensation with gradient matching*, ICLR 2021; Zhao and Bilen,
*Dataset condensation with differentiable siamese augmentation*, ICML 2021).

Each iteration draws a fresh network. Each of its outer steps moves the images so that, class by class, the gradient of
the network's loss on them approaches that on a batch of real images, L = sum_c distance(grad loss(real_c), grad
loss(synthetic_c)); between two outer steps the network is trained on the images as they are now. DSA is DC with one
shared augmentation of the real and synthetic images of a class.

The gradients of G classes are those of G copies of the network, each of which sees one class: one grouped pass where
networks are small, one pass a class where they are wide.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ddanalysis import augment, checks, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.augment import Augmentation
from ddanalysis.compute import Compute, images_per_pass, logits_function, networks_together, slices
from ddanalysis.distill import matching_distance
from ddanalysis.distill.making import Job, Made, Numbers, match, move, real_batch, rows_by_class
from ddanalysis.evaluation import dsa_strategy
from ddanalysis.layers import Parameters
from ddanalysis.networks import Networks
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.training import Recipe

STATISTICS_IMAGES = 16
"""Real images a class that set the running statistics of a network with batch normalisation, as published."""


def image_rate(architecture: Architecture) -> float:
    """The published learning rate of the images: 0.1, but 0.01 for an MLP."""
    return 0.01 if architecture.kind == "MLP" else 0.1


def loops(ipc: int) -> tuple[int, int]:
    """Outer steps an iteration, and epochs of training between two of them.

    One outer step for each of ``ipc`` images a class, at most 50, with about 500 epochs in all between them and at
    most 50 at once: 100 / outer rounded up, times 5. At 1, 10, 20, 30, 40 and 50 these are the published numbers; the
    others have none, and (50, 10) is also what the authors advise above 50.
    """
    outer = min(ipc, 50)
    return outer, 1 if outer == 1 else min(5 * math.ceil(100 / outer), 50)


def dc(
    job: Job,
    iterations: int = 1000,
    rate: float | None = None,
    momentum: float = 0.5,
    network_rate: float = 0.01,
    batch_real: int = 256,
    batch_train: int = 256,
    outer: int | None = None,
    inner: int | None = None,
    initialisation: str = "noise",
    distance: str = "row-cosine",
    precision: str = "float32",
    compiled: bool = False,
) -> Made:
    """Distil by matching gradients; the defaults are the published ones.

    ``rate`` None is :func:`image_rate`, ``outer`` and ``inner`` None are those of :func:`loops`. ``network_rate`` is
    that of the plain SGD which trains the network, on batches of ``batch_train``. ``distance`` is one of
    ``matching_distance.DISTANCES``. ``precision`` and ``compiled`` are the arithmetic of the real images' gradients and
    of the training, as in ``compute.Compute``; the images' own gradients are float32.

    ``history`` has the loss of every iteration: the distance of a class, a mean over classes and outer steps. Raises
    ``ValueError`` for a bad setting or if a class has fewer than ``batch_real`` images, before any work, and
    ``FloatingPointError`` if the images diverge.
    """
    return _distil(job, _Settings(
        "DC", "", iterations, _rate(job, rate), momentum, network_rate, batch_real, batch_train,
        *_loops(job, outer, inner), distance, Compute(precision, compiled),
    ), initialisation)  # fmt: skip


def dsa(
    job: Job,
    iterations: int = 1000,
    rate: float | None = None,
    momentum: float = 0.5,
    network_rate: float = 0.01,
    batch_real: int = 256,
    batch_train: int = 256,
    outer: int | None = None,
    inner: int | None = None,
    initialisation: str = "real",
    distance: str = "row-cosine",
    strategy: str | None = None,
    precision: str = "float32",
    compiled: bool = False,
) -> Made:
    """DC under augmentation; settings as those of :func:`dc`, the defaults are the published ones.

    ``strategy`` None is the dataset's; the network is trained under it too, with parameters of each image's own.
    ``ValueError`` for an empty one, which would be DC.
    """
    strategy = dsa_strategy(job.data.name) if strategy is None else strategy
    if not augment.parse_strategy(strategy):
        raise ValueError("strategy of DSA is '': without augmentation it is DC, which is a method of its own")
    return _distil(job, _Settings(
        "DSA", strategy, iterations, _rate(job, rate), momentum, network_rate, batch_real, batch_train,
        *_loops(job, outer, inner), distance, Compute(precision, compiled),
    ), initialisation)  # fmt: skip


def _rate(job: Job, rate: float | None) -> float:
    return image_rate(job.architecture) if rate is None else rate


def _loops(job: Job, outer: int | None, inner: int | None) -> tuple[int, int]:
    published = loops(job.ipc)
    return published[0] if outer is None else outer, published[1] if inner is None else inner


@dataclass(frozen=True)
class _Settings:
    """What DC and DSA share, every default resolved."""

    method: str
    strategy: str  # "" for DC
    iterations: int
    rate: float
    momentum: float
    network_rate: float
    batch_real: int
    batch_train: int
    outer: int
    inner: int
    distance: str
    compute: Compute  # of the first-order passes: real gradients and training

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_real", "batch_train", "outer"):
            checks.whole(f"{name} of {self.method}", getattr(self, name))
        checks.whole(f"inner of {self.method}", self.inner, 0)
        for name in ("rate", "momentum", "network_rate"):
            checks.at_least(f"{name} of {self.method}", getattr(self, name), 0)
        checks.one_of(f"distance of {self.method}", self.distance, matching_distance.DISTANCES)

    @property
    def recipe(self) -> Recipe:
        """How the network is trained between two outer steps: plain SGD."""
        return Recipe(
            epochs=self.inner,
            batch_size=self.batch_train,
            learning_rate=self.network_rate,
            momentum=0.0,
            augment=self.strategy,
        )


def _distil(job: Job, s: _Settings, initialisation: str) -> Made:
    by_class = rows_by_class(job, s.method, s.batch_real)

    def step(iteration: int, x: torch.Tensor, velocity: torch.Tensor) -> Numbers:
        recorded = _iteration(job, s, by_class, x, velocity, iteration)
        for name, value in recorded.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} of {s.method} is {value} in iteration {iteration}: lower the rate, {s.rate:g}"
                )
        return recorded

    return match(job, initialisation, s.iterations, step)


def _iteration(
    job: Job,
    s: _Settings,
    by_class: list[torch.Tensor],
    x: torch.Tensor,
    velocity: torch.Tensor,
    iteration: int,
) -> Numbers:
    """One fresh network's outer steps, which change ``x`` and ``velocity`` in place: the mean distance of a class, and
    the mean of the regulariser.
    """
    net = networks.create(
        job.architecture, [stream_seed(job.seed, "matched network", iteration)], device=x.device, dtype=x.dtype
    )
    recorded: list[Numbers] = []
    for step in range(s.outer):
        number = iteration * s.outer + step
        net = _with_real_statistics(job, net, by_class, number)
        real = torch.stack([real_batch(rows, s.batch_real, job.seed, number, c) for c, rows in enumerate(by_class)])
        loss, gradient = _gradient(job, s, net, x, real, number)
        own = {"loss": float(loss) / len(by_class)}
        recorded.append(own | move(job, x, velocity, gradient, s.rate, s.momentum, number))
        if step + 1 < s.outer:
            seed = stream_seed(job.seed, "training of the matched network", number)
            net = training.train(net, x, job.labels(), s.recipe, [seed], compute=s.compute).networks
    return {name: sum(one[name] for one in recorded) / s.outer for name in recorded[0]}


@torch.no_grad()
def _with_real_statistics(job: Job, net: Networks, by_class: list[torch.Tensor], number: int) -> Networks:
    """The network after one look at real images of all classes in training mode, as published: batch normalisation
    moves its running statistics, and matching then leaves them alone. Any other network is as it was.
    """
    a = net.architecture
    if not a.batch_statistics:
        return net
    seed = stream_seed(job.seed, "batch statistics")
    updated: Parameters = {}
    rows = [real_batch(own, STATISTICS_IMAGES, seed, number, c) for c, own in enumerate(by_class)]
    a.logits(net.state, job.data.train_x[torch.cat(rows)], updated)
    return Networks(a, net.state | updated)


def _gradient(
    job: Job, s: _Settings, net: Networks, x: torch.Tensor, real: torch.Tensor, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one outer step and its gradient in the images ``x``; ``real`` (classes, batch) are row numbers."""
    classes = torch.arange(len(real), device=x.device)
    names = matching_distance.matched(net.architecture, s.distance)
    total, parts = x.new_zeros(()), []
    for g in slices(len(real), _classes_at_once(net, job.ipc)):
        draws = [
            augment.draw(s.strategy, job.data.shape, generator(job.seed, "matching augmentation", number, c))
            for c in range(len(real))[g]
        ]
        target = _real_gradients(net, names, job.data.train_x, real[g], classes[g], draws, s.compute)
        images = x.view(len(real), job.ipc, *x.shape[1:])[g].detach().requires_grad_()
        given = _loss_gradients(net, names, _augmented(images, draws), classes[g], job.ipc, differentiable=True)
        loss = matching_distance.between(s.distance, target, given).sum()
        parts.append(torch.autograd.grad(loss, images)[0].flatten(0, 1))
        total += loss.detach()
    return total, torch.cat(parts)


def _classes_at_once(net: Networks, per_class: int) -> int:
    """Classes that go through copies of the network in one pass over ``per_class`` images of each."""
    return networks_together(net.architecture, per_class, net.device)


def _real_gradients(
    net: Networks,
    names: list[str],
    train_x: torch.Tensor,
    rows: torch.Tensor,
    classes: torch.Tensor,
    draws: list[Augmentation],
    compute: Compute,
) -> list[torch.Tensor]:
    """The gradients (G, ...) of the mean loss on the real images ``rows`` (G, n) of G classes, in bounded memory."""
    n, together = rows.shape[1], _classes_at_once(net, rows.shape[1])
    size = n if together > 1 else images_per_pass(net.architecture, 1, net.device)
    groups = []
    for g in slices(len(rows), together):
        images = _augmented(train_x[rows[g]], draws[g])
        total: list[torch.Tensor] = []
        for s in slices(n, size):
            part = _loss_gradients(net, names, images[:, s], classes[g], n, compute)
            if total:
                torch._foreach_add_(total, part)
            else:
                total = part
        groups.append(total)
    return [torch.cat(own) for own in zip(*groups, strict=True)]


def _augmented(images: torch.Tensor, draws: list[Augmentation]) -> torch.Tensor:
    """Images (G, n, c, h, w), each class under its own draw."""
    return torch.stack([augment.apply(draw, own) for draw, own in zip(draws, images, strict=True)])


def _loss_gradients(
    net: Networks,
    names: list[str],
    images: torch.Tensor,
    classes: torch.Tensor,
    total: int,
    compute: Compute = Compute(),
    differentiable: bool = False,
) -> list[torch.Tensor]:
    """The gradient of each class's cross-entropy, summed over its images (G, n, c, h, w) and divided by ``total``.

    One gradient (G, ...) a parameter of ``names``, ``differentiable`` in the images if asked. Statistics are running.
    """
    g, n = images.shape[:2]
    copies = {name: t.detach().expand(g, *t.shape[1:]) for name, t in net.state.items()}
    copies |= {name: copies[name].requires_grad_() for name in names}
    logits = logits_function(net.architecture, compute)(copies, images.transpose(0, 1).flatten(1, 2))
    loss = F.cross_entropy(logits.flatten(0, 1), classes.repeat(n), reduction="sum") / total
    return list(torch.autograd.grad(loss, [copies[name] for name in names], create_graph=differentiable))
