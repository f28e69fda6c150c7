"""CLOM: the classification loss of original models as a regulariser of any matching method (Lu et al. 2023).

L(S) = L_matching(S) + alpha_a * mean_i CE(f_{a,k}(x_i), y_i), where f_{a,k} is one of a pool of networks trained on the
real data, drawn anew for every update of the images; it sees them without augmentation. The later, contrastive form
takes networks trained on another dataset: sum(M * D) / sum(D), with cosine distances D between the features of the
images and of real ones, and M = 1 where their labels are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ddanalysis import checks, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.data import ImageData
from ddanalysis.networks import Networks
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

ORIGINAL = Recipe(epochs=150, milestones=(50, 100), weight_decay=5e-3)
"""How original models are trained: SGD 0.01, momentum 0.9, batch 256, no augmentation; the published weight decay."""

ALPHAS = {
    ("dc", 10, "fashion_mnist"): 100, ("dc", 10, "cifar10"): 1000, ("dc", 10, "cifar100"): 10000,
    ("dc", 50, "fashion_mnist"): 100, ("dc", 50, "cifar10"): 5000, ("dc", 50, "cifar100"): 1000,
    ("dsa", 10, "fashion_mnist"): 100, ("dsa", 10, "cifar10"): 5000, ("dsa", 10, "cifar100"): 10000,
    ("dsa", 50, "fashion_mnist"): 100, ("dsa", 50, "cifar10"): 1000, ("dsa", 50, "cifar100"): 10,
    ("dm", 10, "fashion_mnist"): 100, ("dm", 10, "cifar10"): 2000, ("dm", 10, "cifar100"): 500,
    ("dm", 50, "fashion_mnist"): 100, ("dm", 50, "cifar10"): 1000, ("dm", 50, "cifar100"): 1,
}  # fmt: skip
"""The published weight of a pool of ConvNets, by method, ipc and dataset."""

POOL_ALPHAS = {
    "dc": {"ConvNet": 5000, "VGG11": 5000, "ResNet18-IN": 5000, "AlexNet": 100},
    "dsa": {"ConvNet": 1000, "VGG11": 1000, "ResNet18-IN": 1000, "AlexNet": 2000},
    "dm": {"ConvNet": 1000, "VGG11": 1000, "ResNet18-IN": 1000, "AlexNet": 1000},
}
"""The published weights of a pool of four architectures, CIFAR-10, 50 images a class."""


@dataclass(frozen=True)
class Clom:
    """The regulariser: original models by architecture name, and a weight for each."""

    pool: Mapping[str, Networks]
    alphas: Mapping[str, float]
    seed: int
    draw: str = "one"  # a model drawn for every update, as published, or the "mean" of all
    real: tuple[torch.Tensor, torch.Tensor] | None = None  # images and labels: makes it the contrastive form
    batch: int = 8196

    def __post_init__(self) -> None:
        checks.one_of("draw of original models", self.draw, ("one", "mean"))
        if set(self.pool) != set(self.alphas) or not self.pool:
            have, given = ", ".join(self.pool), ", ".join(self.alphas)
            raise ValueError(f"CLOM has weights for {given or 'nothing'} and models of {have or 'nothing'}: one each")

    def gradient(self, x: torch.Tensor, y: torch.Tensor, step: int) -> tuple[float, torch.Tensor]:
        """The regulariser at images x (n, c, h, w) with labels y (n,), and its gradient; ``step`` names the draw."""
        images = x.detach().requires_grad_()
        g = generator(self.seed, "CLOM", step)
        names = sorted(self.pool)
        if self.draw == "one":
            name = names[int(torch.randint(len(names), (), generator=g))]
            k = int(torch.randint(len(self.pool[name]), (), generator=g))
            loss = self.alphas[name] * self._loss(self.pool[name][k], images, y, g)
        else:
            each = [self.alphas[name] * self._loss(self.pool[name], images, y, g) for name in names]
            loss = torch.stack(each).mean()
        return float(loss.detach()), torch.autograd.grad(loss, images)[0]

    def _loss(self, models: Networks, x: torch.Tensor, y: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        if self.real is None:
            return models.loss(x, y).mean()
        images, labels = self.real
        rows = torch.randint(len(labels), (min(self.batch, len(labels)),), generator=g).to(x.device)
        theirs = F.normalize(models.features(images[rows]).detach(), dim=2)
        distance = 1 - F.normalize(models.features(x), dim=2) @ theirs.mT  # (models, n, batch)
        same = (y[:, None] == labels[rows]).to(distance.dtype)
        return ((same * distance).sum((1, 2)) / distance.sum((1, 2))).mean()


def weights(alpha: float | Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """A weight for each architecture: one number for all, or one each in their order.

    The published code takes one number for several architectures as well, and then fails.
    """
    given = [alpha] * len(names) if isinstance(alpha, (int, float)) else list(alpha)
    if len(given) == 1:
        given = given * len(names)
    if len(given) != len(names):
        raise ValueError(f"alpha has {len(given)} weights for {len(names)} architectures: give one, or one each")
    for value in given:
        checks.at_least("alpha of CLOM", value, 0)
    return dict(zip(names, given, strict=True))


def published_weight(method: str, ipc: int, dataset: str) -> float:
    """The published weight for a pool of ConvNets; ``ValueError`` where none is."""
    key = (method, ipc, dataset.removesuffix("-jpeg"))
    if key not in ALPHAS:
        have = ", ".join(f"{m} {i} {d}" for m, i, d in ALPHAS)
        raise ValueError(f"no weight of CLOM is published for {' '.join(map(str, key))}: give alpha; there are {have}")
    return ALPHAS[key]


def train_models(
    data: ImageData,
    architecture: Architecture,
    count: int,
    epochs: int,
    seed: int,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Networks:
    """``count`` original models of one architecture, trained on all real images by ``ORIGINAL``, cut to ``epochs``."""
    checks.whole("models of CLOM", count)
    checks.whole("model_epochs of CLOM", epochs)
    seeds = [stream_seed(seed, "original model", k) for k in range(count)]
    fresh = networks.create(architecture, seeds, device=data.train_x.device)
    recipe = replace(ORIGINAL, epochs=epochs)
    return training.train(
        fresh, data.train_x, data.train_y, recipe, seeds, checkpoint=checkpoint, progress=progress
    ).networks
