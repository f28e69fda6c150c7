"""CLOM: the classification loss of original models as a regulariser of any matching method (Lu et al. 2023).

L(S) = L_matching(S) + alpha_a * mean_i CE(f_{a,k}(x_i), y_i), where f_{a,k} is one of a pool of networks trained on the
real data, drawn anew for every update of the images; it sees them without augmentation. The later, contrastive form
takes networks trained on another dataset: sum(M * D) / sum(D), with cosine distances D between the features of the
images and of real ones, and M = 1 where their labels are the same.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ddanalysis import architectures, checks, data, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.data import ImageData
from ddanalysis.distill.making import Job, Made, Progress
from ddanalysis.networks import Networks
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Checkpoint, Tensors
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


def regularised(method: Callable[..., Made], name: str) -> Callable[..., Made]:
    """The method called ``name`` with CLOM: it takes the method's settings, and those of :func:`regulariser`."""
    own = list(inspect.signature(regulariser).parameters.values())[2:]

    def make(job: Job, **settings: Any) -> Made:
        chosen = {p.name: settings.pop(p.name) for p in own if p.name in settings}
        return method(replace(job, regulariser=regulariser(job, name, **chosen)), **settings)

    make.__name__ = f"clom_{name}"
    parameters = [*inspect.signature(method).parameters.values(), *own]
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return make


def regulariser(
    job: Job,
    method: str,
    alpha: float | Sequence[float] | None = None,
    pool: Sequence[str] = (),
    models: int = 5,
    model_epochs: int = 150,
    model_epoch: int | None = None,
    model_seed: int = 0,
    draw: str = "one",
    source: str = "",
    shuffled: bool = False,
) -> Callable[[torch.Tensor, torch.Tensor, int], tuple[float, torch.Tensor]]:
    """What CLOM adds to the loss of ``method``, as :class:`making.Job` takes it; the defaults are the published ones.

    ``pool`` names architectures, each of its published size but for the job's own kind, which is the job's; none is the
    job's own alone. Of each, ``models`` networks are trained for ``model_epochs``; ``model_epoch`` takes them as they
    were then. ``alpha`` is one weight for all or one each, None :func:`published_weight`. ``draw`` is "one" or "mean".
    ``source`` names another dataset, on which the models are trained, and makes it the contrastive form; its pixels are
    normalised as the job's, so that the models see the images as they saw their own. ``shuffled`` is a control: models
    trained on labels shuffled among all real images, which know nothing of the classes.
    """
    names = list(pool) or [job.architecture.kind]
    weight = weights(published_weight(method, job.ipc, job.data.name, names) if alpha is None else alpha, names)
    real = _source(source, job.data) if source else job.data
    if shuffled:
        order = torch.randperm(len(real.train_y), generator=generator(model_seed, "shuffled labels"))
        real = replace(real, name=f"{real.name}-shuffled", train_y=real.train_y[order.to(real.train_y.device)])
    found = {
        name: original_models(job, real, _architecture(name, job, real), models, model_epochs, model_epoch, model_seed)
        for name in names
    }
    return Clom(found, weight, job.seed, draw, (real.train_x, real.train_y) if source else None).gradient


def _architecture(name: str, job: Job, real: ImageData) -> Architecture:
    own = job.architecture
    if name == own.kind:
        return replace(own, classes=real.n_classes)
    return architectures.build(name, real.shape, real.n_classes)


def _source(name: str, like: ImageData) -> ImageData:
    """Another dataset, of images of the same shape, in the space of ``like``."""
    found = data.load(name, root=like.root, device=like.train_x.device)
    if found.shape != like.shape:
        raise ValueError(f"source of CLOM is {name}, of images {found.shape}: those of {like.name} are {like.shape}")
    own: dict[str, Any] = {name: getattr(like, name) for name in ("mean", "std", "whitening")}
    train_x, test_x = (like.normalise(found.denormalise(x)) for x in (found.train_x, found.test_x))
    return replace(found, train_x=train_x, test_x=test_x, **own)


def original_models(
    job: Job, real: ImageData, a: Architecture, count: int, epochs: int, epoch: int | None, seed: int
) -> Networks:
    """The original models of one architecture, kept for all sets that use them.

    With an ``epoch``, the weights after every epoch are kept, so that another epoch costs nothing; None is the last.
    """
    checks.whole("models of CLOM", count)
    checks.whole("model_epochs of CLOM", epochs)
    if epoch is not None and not 0 <= epoch <= epochs:
        raise ValueError(f"model_epoch of CLOM is {epoch}: allowed are 0 to model_epochs, {epochs}")
    every = epoch is not None
    arguments = {"network": a.name, "trained_on": real.fingerprint(), "count": count, "epochs": epochs, "seed": seed}
    arguments |= {"recipe": asdict(ORIGINAL), "every_epoch": every}

    def build(checkpoint: Checkpoint | None, progress: Progress | None) -> Tensors:
        return train_models(real, a, count, epochs, seed, every, checkpoint, progress)

    state = job.shared("models", f"original_{real.name}_{a.name}", 1, arguments, build)
    device = job.data.train_x.device
    return Networks(a, {name: (t[:, epoch] if every else t).to(device) for name, t in state.items()})


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


def published_weight(method: str, ipc: int, dataset: str, names: Sequence[str]) -> float | list[float]:
    """The published weight of a pool of ConvNets, or the weights of the architectures ``names``; ``ValueError`` where
    there is none.
    """
    dataset = dataset.removesuffix("-jpeg")
    several = POOL_ALPHAS.get(method, {}) if (dataset, ipc) == ("cifar10", 50) else {}
    if len(names) > 1 and all(name in several for name in names):
        return [several[name] for name in names]
    if list(names) == ["ConvNet"] and (method, ipc, dataset) in ALPHAS:
        return ALPHAS[method, ipc, dataset]
    have = ", ".join(f"{m} {i} {d}" for m, i, d in ALPHAS)
    raise ValueError(
        f"no weight of CLOM is published for {method} {ipc} {dataset} with {', '.join(names)}: give alpha; for a pool "
        f"of ConvNets there are {have}"
    )


def train_models(
    real: ImageData,
    architecture: Architecture,
    count: int,
    epochs: int,
    seed: int,
    every_epoch: bool = False,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Tensors:
    """The state of ``count`` models trained on all real images by ``ORIGINAL``, cut to ``epochs``.

    Tensors are (count, ...), or (count, epochs + 1, ...) if ``every_epoch`` is kept.
    """
    seeds = [stream_seed(seed, "original model", k) for k in range(count)]
    fresh = networks.create(architecture, seeds, device=real.train_x.device)
    recipe = replace(ORIGINAL, epochs=epochs)
    at = range(0, recipe.total_updates(len(real.train_y)) + 1, recipe.batches_per_epoch(len(real.train_y)))
    state, moments = (lambda nets: dict(nets.state), at) if every_epoch else (None, ())
    trained = training.train(
        fresh, real.train_x, real.train_y, recipe, seeds, None, state, moments, checkpoint=checkpoint, progress=progress
    )
    return trained.observed if every_epoch else dict(trained.networks.state)
