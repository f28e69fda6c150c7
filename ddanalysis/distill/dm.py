"""DM, distribution matching (Zhao and Bilen, *Dataset condensation with distribution matching*, WACV 2023).

Each iteration draws a fresh network, and moves the images of every class so that the mean of their penultimate
features, under one shared augmentation a class, approaches that of a batch of real images: L = sum_c || mean
psi(A_c(real_c)) - mean psi(A_c(synthetic_c)) ||^2.
"""

import torch

from ddanalysis import augment, checks, networks
from ddanalysis.augment import Augmentation
from ddanalysis.compute import images_per_pass, slices
from ddanalysis.distill.making import Job, Made, Numbers, match, move, real_batch, rows_by_class
from ddanalysis.evaluation import dsa_strategy
from ddanalysis.networks import Networks
from ddanalysis.seeding import generator, stream_seed


def image_rate(dataset: str, ipc: int) -> float:
    """The published learning rate of the images: 1, but 10 for CIFAR-10 from 100 images a class on."""
    return 10.0 if dataset.startswith("cifar10") and not dataset.startswith("cifar100") and ipc >= 100 else 1.0


def distribution_matching(
    job: Job,
    iterations: int = 20_000,
    rate: float | None = None,
    momentum: float = 0.5,
    batch_real: int = 256,
    strategy: str | None = None,
    initialisation: str = "real",
) -> Made:
    """Distil by matching feature means; the defaults are the published ones.

    ``rate`` None is :func:`image_rate`, ``strategy`` None the dataset's DSA strategy ("" for no augmentation).
    ``history`` has the loss of every iteration. Raises ``ValueError`` if a class has fewer than ``batch_real``
    images.
    """
    rate = image_rate(job.data.name, job.ipc) if rate is None else rate
    strategy = dsa_strategy(job.data.name) if strategy is None else strategy
    checks.whole("iterations of DM", iterations)
    for name, value in (("rate", rate), ("momentum", momentum)):
        checks.at_least(f"{name} of DM", value, 0)
    augment.parse_strategy(strategy)
    by_class = rows_by_class(job, "DM", batch_real)

    def step(iteration: int, x: torch.Tensor, velocity: torch.Tensor) -> Numbers:
        real = torch.stack([real_batch(rows, batch_real, job.seed, iteration, c) for c, rows in enumerate(by_class)])
        loss, gradient = _gradient(job, x, real, strategy, iteration)
        return {"loss": loss} | move(job, x, velocity, gradient, rate, momentum, iteration)

    return match(job, initialisation, iterations, step)


def _gradient(
    job: Job, x: torch.Tensor, real: torch.Tensor, strategy: str, iteration: int
) -> tuple[float, torch.Tensor]:
    """The loss of one iteration and its gradient in the images ``x``; ``real`` (classes, batch) are row numbers."""
    seed = stream_seed(job.seed, "DM network", iteration)
    net = networks.create(job.architecture, [seed], device=x.device, dtype=x.dtype)
    draws = [
        augment.draw(strategy, job.data.shape, generator(job.seed, "DM augmentation", iteration, c))
        for c in range(len(real))
    ]
    with torch.no_grad():
        target = torch.cat([_real_means(job, net, real[g], draws[g]) for g in _groups(job, real.shape[1])])
    total, gradients = 0.0, []
    for g in _groups(job, job.ipc):
        images = x.view(len(real), job.ipc, *x.shape[1:])[g].detach().requires_grad_()
        loss = (target[g] - _means(net, images, draws[g])).square().sum()
        gradients.append(torch.autograd.grad(loss, images)[0].flatten(0, 1))
        total += float(loss.detach())
    return total, torch.cat(gradients)


def _groups(job: Job, per_class: int) -> list[slice]:
    """Classes that go through the network in one pass; all of them if it has batch statistics, as published."""
    if job.architecture.batch_statistics:
        return [slice(0, job.data.n_classes)]
    at_once = max(images_per_pass(job.architecture, 1, job.data.train_x.device) // per_class, 1)
    return list(slices(job.data.n_classes, at_once))


def _real_means(job: Job, net: Networks, rows: torch.Tensor, draws: list[Augmentation]) -> torch.Tensor:
    """Mean features (classes, f) of the real images ``rows`` (classes, n); a class too large for a pass takes more."""
    n = rows.shape[1]
    size = images_per_pass(job.architecture, 1, job.data.train_x.device)
    size = n if job.architecture.batch_statistics or len(rows) > 1 else size
    parts = [_means(net, job.data.train_x[rows[:, s]], draws) * len(range(n)[s]) for s in slices(n, size)]
    return torch.stack(parts).sum(0) / n


def _means(net: Networks, images: torch.Tensor, draws: list[Augmentation]) -> torch.Tensor:
    """Mean penultimate features (classes, f) of images (classes, n, c, h, w), each class under its own augmentation."""
    augmented = torch.cat([augment.apply(draw, own) for draw, own in zip(draws, images, strict=True)])
    return net.features(augmented, training=True)[0].unflatten(0, images.shape[:2]).mean(1)
