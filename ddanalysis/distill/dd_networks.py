"""The networks that dataset distillation is for: fresh, fixed, loaded, or trained on a dataset before."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
import torch.nn.functional as F

from ddanalysis import checks, data, imagenet, networks, state_dicts, training
from ddanalysis.architectures import Architecture
from ddanalysis.data import ImageData
from ddanalysis.distill.dd_settings import Settings
from ddanalysis.distill.making import Job, Progress
from ddanalysis.networks import Networks
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe

PRETRAINING = {"mnist": (40, 20, 2e-4), "usps": (130, 40, 2e-4), "svhn": (65, 20, 2e-4), "cifar10": (50, 7, 1e-3)}
"""How pretrained networks learn: epochs, epochs from one halving of the rate to the next, rate; as MNIST elsewhere.

On CIFAR-10 images are shifted by up to 4 pixels (of zeros; published: of their reflection) and mirrored. Adam's first
decay is PyTorch's .9; the published code has .5.
"""


def starts(job: Job, settings: Mapping[str, Any], count: int, held_out: bool) -> Networks:
    """The networks that a set of ``settings`` is for, as they are before its first step.

    Fixed ones, or ImageNet's, are these themselves, however many are asked for. Of random or pretrained ones ``count``
    are given: those that were met first in distillation, or the first of the pool, and all where there are fewer; if
    ``held_out``, as many that never were. Pretrained ones are trained where nobody has kept them. ``ValueError`` for
    unknown settings.
    """
    for name in settings:
        checks.one_of("setting of dd", name, [f.name for f in fields(Settings)])
    checks.whole("count of networks", count)
    own = Settings(**settings)
    if own.networks in ("fixed", "imagenet"):
        return _always(job, own)
    if own.networks == "pretrained":
        return pretrained(job, own, count, True) if held_out else pretrained(job, own, own.pretrained)[:count]
    return _fresh(job, own, "held out" if held_out else "random", range(count))


def _fresh(job: Job, own: Settings, kind: str, numbers: Sequence[int]) -> Networks:
    seeds, x = [stream_seed(job.seed, "DD network", kind, k) for k in numbers], job.data.train_x
    return networks.create(job.architecture, seeds, own.weights, x.device, x.dtype)


def _always(job: Job, own: Settings) -> Networks:
    """The networks of every iteration, where they are always the same."""
    if own.networks == "fixed":
        return _fresh(job, own, "fixed", range(own.fixed))
    return _there(job, imagenet.network(job.architecture, job.data.root))


def sampler(job: Job, own: Settings) -> Callable[[int], Networks]:
    """What gives the networks of an iteration."""
    if own.networks == "random":
        return lambda i: _fresh(job, own, "random", range(i * own.at_once, (i + 1) * own.at_once))
    if own.networks in ("fixed", "imagenet"):
        always = _always(job, own)
        return lambda _: always
    if own.at_once > own.pretrained:
        raise ValueError(f"at_once of DD is {own.at_once}: only {own.pretrained} networks are pretrained")
    pool = pretrained(job, own, own.pretrained)

    def drawn(iteration: int) -> Networks:
        order = torch.randperm(len(pool), generator=generator(job.seed, "DD pretrained", iteration))
        return pool[order[: own.at_once].tolist()]

    return drawn


def pretrained(job: Job, own: Settings, count: int, held_out: bool = False) -> Networks:
    """``count`` networks that learned the source, kept for all sets that use them; others if they are ``held_out``."""
    if is_zoo(own.source):
        first = own.pretrained if held_out else 0
        return _there(job, state_dicts.read_several(own.source, job.architecture, first, count))
    real, a = source_of(job, own.source)
    recipe = pretraining(real.name, own.pretrained_epochs)
    arguments = {"network": a.name, "trained_on": real.fingerprint(), "count": count, "weights": own.weights}
    arguments |= {"recipe": asdict(recipe), "held_out": held_out}

    def build(checkpoint: Checkpoint | None, progress: Progress | None) -> Tensors:
        seeds = [stream_seed(0, "held-out" if held_out else "pretrained", k) for k in range(count)]
        x, y = real.train_x, real.train_y
        fresh = networks.create(a, seeds, own.weights, x.device, x.dtype)
        trained = training.train(fresh, x, y, recipe, seeds, checkpoint=checkpoint, progress=progress)
        return dict(trained.networks.state)

    name = f"pretrained_{real.name}_{a.name}{'_held_out' if held_out else ''}"
    return _there(job, Networks(job.architecture, job.shared("models", name, 1, arguments, build)))


def is_zoo(source: str) -> bool:
    """Whether a source is a folder of networks, and no dataset."""
    return source != "" and bool(state_dicts.files(source))


def _there(job: Job, nets: Networks) -> Networks:
    """Networks on the device of the job's images, in their type."""
    return nets.to(job.data.train_x.device).to(job.data.train_x.dtype)


def pretraining(dataset: str, epochs: int | None = None) -> Recipe:
    """How pretrained networks learn a dataset, by ``PRETRAINING`` but for the ``epochs``."""
    name = dataset.removesuffix("-jpeg").removesuffix("28")
    published, halving, rate = PRETRAINING.get(name, PRETRAINING["mnist"])
    halvings = tuple(range(halving, epochs or published, halving))
    augmentation = "crop_flip" if name == "cifar10" else ""
    return Recipe(epochs or published, None, 1024, "adam", rate, milestones=halvings, decay=0.5, augment=augmentation)


def source_of(job: Job, name: str) -> tuple[ImageData, Architecture]:
    """The dataset that pretrained networks learned, in its own normalisation as published, and their architecture.

    Where images of its own size make other weights, they are scaled to the size of the job's (bilinearly).
    """
    target, a = job.data, job.architecture
    if not name:
        return target, a
    if target.whitening is not None:
        raise ValueError(f"source of DD is {name} and {target.name} is whitened, which networks of a source are not")
    found, channels = data.load(name, root=target.root, device=target.train_x.device), target.shape[0]
    c, h, _ = found.shape
    if (c, found.n_classes) != (channels, target.n_classes):
        what = f"{name} has {c} channels and {found.n_classes} classes, {target.name} {channels} and {target.n_classes}"
        raise ValueError(f"source of DD: {what}, and the same are needed")
    own = replace(a, size=h)
    if own.weights() != a.weights():
        scaled = F.interpolate(found.train_x, target.shape[1:], mode="bilinear", antialias=True)
        found, own = replace(found, train_x=scaled), a
    return found, own
