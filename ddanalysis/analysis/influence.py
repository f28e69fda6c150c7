"""What does one distilled image teach? Exact leave-one-out influence by retraining (Yang et al. 2024, section 5.2).

Of a set of n images, n + 1 networks are trained from one initialisation: network j without image j, the last on all.
The influence of image j on a test image z is::

    I(j, z) = loss of z without j - loss of z with all

in nats of cross-entropy: positive where j helps z, negative where it hurts. The published analysis has one
initialisation; here are several, so that every influence has a standard error, and how well the influences of two
initialisations agree bounds what an estimate that does not know the initialisation can do.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor

from ddanalysis import artefacts, checks, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute, images_per_pass, networks_together, slices
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.evaluation import initial_seed
from ddanalysis.networks import Networks, cross_entropy
from ddanalysis.report import Run
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe

DIRECTIONS = ("helped", "hurt")
STATES = 2**27
"""Weights of all networks that are trained in one call; training holds about four times as many numbers."""


def leave_one_out(
    fresh: Networks,
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    recipe: Recipe,
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """The influence (initialisations, n, N) of n images x (n, c, h, w), y (n,) ids or (n, classes) soft, on N test
    images.

    Each of the ``fresh`` networks is an initialisation; the result is of their type. Published: 300 full-batch updates,
    SGD 0.01, momentum 0.9. Raises ``ValueError`` for fewer than 2 images, and for a recipe with batches or
    augmentations, whose draws would differ between networks by more than the image that is left out.
    """
    check_recipe(recipe)
    n = len(x)
    if n < 2:
        raise ValueError(f"the set has {n} image: to leave one out, at least 2 are needed")
    rows = [*~torch.eye(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)]
    together = max(STATES // ((n + 1) * fresh.architecture.parameter_count()), 1)
    parts = []
    for part, chosen in enumerate(slices(len(fresh), together)):
        seen = range(chosen.start, chosen.stop)
        members = fresh[[k for k in seen for _ in range(n + 1)]]
        trained = training.train(
            members, x, y, recipe, [0] * len(members), rows * len(seen), compute=compute,
            checkpoint=checkpoint.child(part) if checkpoint else None, progress=progress,
        ).networks  # fmt: skip
        losses = each_loss(trained, test_x, test_y).unflatten(0, (len(seen), n + 1))
        parts.append(losses[:, :n] - losses[:, n:])
    return torch.cat(parts)


def check_recipe(recipe: Recipe) -> None:
    """Refuse, with a ``ValueError``, a recipe under which leaving out an image changes more than that."""
    if recipe.batch_size is not None or recipe.augment:
        given = f"batch_size = {recipe.batch_size} and augment = {recipe.augment!r}"
        raise ValueError(f"{given}: an image is left out of full batches (None) without augmentation ('')")


@torch.no_grad()
def each_loss(nets: Networks, x: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy (K, N) of every network on every image, in bounded memory."""
    together = min(networks_together(nets.architecture, 64, x.device), len(nets))
    per_pass = images_per_pass(nets.architecture, together, x.device)
    parts = [nets[s] for s in slices(len(nets), together)]
    return torch.cat(
        [torch.cat([cross_entropy(p.logits(x[s]), y[s]) for s in slices(len(x), per_pass)], 1) for p in parts]
    )


# ------------------------------------------------------------------------------------------ what it says, and how sure


def by_class(influence: Tensor, test_y: Tensor, classes: int) -> Tensor:
    """Sums (..., n, classes) of influences (..., n, N) over the test images of each class."""
    sums = influence.new_zeros(*influence.shape[:-1], classes)
    return sums.index_add_(-1, test_y.to(influence.device), influence)


def standard_error(influence: Tensor) -> Tensor:
    """Of the mean over initialisations of (initialisations, ...): NaN for a single one."""
    if len(influence) < 2:
        return torch.full_like(influence[0], torch.nan)
    return influence.std(0) / len(influence) ** 0.5


def correlations(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's and Pearson's correlation (...) of two (..., N) along their last dimension; NaN of a constant."""
    both = [t.double().cpu().numpy() for t in (a, b)]
    return _pearson(*(scipy.stats.rankdata(values, axis=-1) for values in both)), _pearson(*both)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (values - values.mean(-1, keepdims=True) for values in (a, b))
    norm = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), norm, out=np.full(norm.shape, np.nan), where=norm > 0)


def ceiling(influence: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How well an image's influences under another initialisation tell those under this one.

    Spearman's and Pearson's correlation (initialisations, n) over the test images, mean over the other initialisations
    of influences (initialisations, n, N); NaN for a single one.
    """
    count, n, _ = influence.shape
    total = np.zeros((2, count, n))
    for k in range(count):
        for other in range(k):
            total[:, [k, other]] += np.stack(correlations(influence[k], influence[other]))[:, None]
    total = total / (count - 1) if count > 1 else np.full_like(total, np.nan)
    return total[0], total[1]


# ------------------------------------------------------------------------------------------------------------- tables


def top_influences(
    influence: Tensor,
    one: DistilledSet,
    data: ImageData,
    network: str,
    k: int = 9,
    directions: Sequence[str] = DIRECTIONS,
) -> pd.DataFrame:
    """The k test images that each distilled image helps or hurts most, of all classes; published: 9, helped.

    ``influence`` (initialisations, n, N), whose mean is ranked. Columns dataset, method, ipc, network, set_seed, image
    (row of the set), image_class, direction, rank (from 1), test_image (row of the test images), test_class, influence,
    influence_se (over initialisations).
    """
    checks.whole("k", k)
    for direction in directions:
        checks.one_of("direction", direction, DIRECTIONS)
    if k > influence.shape[2]:
        raise ValueError(f"k is {k}: there are {influence.shape[2]} test images")
    mean, error = influence.double().mean(0).cpu(), standard_error(influence.double()).cpu()
    test_y, tables = data.test_y.cpu(), []
    for direction in directions:
        found = mean.argsort(dim=1, descending=direction == "helped", stable=True)[:, :k]
        table = _images(one, data, network).loc[lambda t: t.index.repeat(k)].reset_index(drop=True)
        own = found.flatten().numpy()
        tables.append(
            table.assign(
                direction=direction,
                rank=np.tile(np.arange(1, k + 1), len(found)),
                test_image=own,
                test_class=np.array(data.classes)[test_y[found].flatten().numpy()],
                influence=mean.gather(1, found).flatten().numpy(),
                influence_se=error.gather(1, found).flatten().numpy(),
            )
        )
    return pd.concat(tables, ignore_index=True)


def class_influences(influence: Tensor, one: DistilledSet, data: ImageData, network: str) -> pd.DataFrame:
    """How much each distilled image helps the test images of each class together.

    ``influence`` (initialisations, n, N). Columns dataset, method, ipc, network, set_seed, image, image_class,
    test_class, influence (a sum, mean over initialisations), influence_se.
    """
    sums = by_class(influence.double(), data.test_y, data.n_classes).cpu()
    table = _images(one, data, network).loc[lambda t: t.index.repeat(data.n_classes)].reset_index(drop=True)
    return table.assign(
        test_class=list(data.classes) * sums.shape[1],
        influence=sums.mean(0).flatten().numpy(),
        influence_se=standard_error(sums).flatten().numpy(),
    )


def noise(influence: Tensor, one: DistilledSet, data: ImageData, network: str) -> pd.DataFrame:
    """How large each image's influences are, and how sure.

    ``influence`` (initialisations, n, N). Columns dataset, method, ipc, network, set_seed, image, image_class,
    ``spread`` (root mean square over test images of the mean influence), ``influence_se`` (that of its standard
    error), ``share_sure`` (of test images with an influence of more than 2 standard errors), spearman and pearson
    (:func:`ceiling`, mean over initialisations), initialisations, n (test images).
    """
    mean, error = influence.double().mean(0).cpu(), standard_error(influence.double()).cpu()
    spearman, pearson = (values.mean(0) for values in ceiling(influence))
    alone = len(influence) < 2
    return _images(one, data, network).assign(
        spread=mean.square().mean(1).sqrt().numpy(),
        influence_se=error.square().mean(1).sqrt().numpy(),
        share_sure=np.nan if alone else (mean.abs() > 2 * error).double().mean(1).numpy(),
        spearman=spearman,
        pearson=pearson,
        initialisations=len(influence),
        n=influence.shape[2],
    )


def _images(one: DistilledSet, data: ImageData, network: str) -> pd.DataFrame:
    """A row an image of a set, with the columns that all tables begin with."""
    classes = np.array(data.classes)[one.labels().cpu().numpy()]
    what = {"dataset": data.name, "method": one.method, "ipc": one.ipc, "network": network, "set_seed": one.seed}
    return pd.DataFrame(what | {"image": range(len(one)), "image_class": classes})


# --------------------------------------------------------------------------------------------------------------- kept


def influences(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    sets: Sequence[DistilledSet],
    recipe: Recipe,
    network_seeds: Sequence[int],
    compute: Compute = Compute(),
) -> list[Tensor]:
    """:func:`leave_one_out` of every set, (initialisations, n, N) float32 on the CPU, each kept as an artefact.

    Network seed s is initialised as in :mod:`ddanalysis.evaluation`, whatever the set.
    """
    for one in sets:
        fits(one, data)
    return [_influence(run, data, architecture, one, recipe, network_seeds, compute) for one in sets]


def _influence(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    one: DistilledSet,
    recipe: Recipe,
    network_seeds: Sequence[int],
    compute: Compute,
) -> Tensor:
    def build(checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Tensors:
        fresh, on = initialised(architecture, network_seeds, data), one.to(data.train_x.device)
        found = leave_one_out(fresh, on.x, on.y, data.test_x, data.test_y, recipe, compute, checkpoint, progress)
        return {"influence": found}

    name, arguments = identity(data, architecture, one, recipe, network_seeds, compute)
    return artefacts.artefact(run, "influence", name, data, "influence.leave_one_out", 1, arguments, build)["influence"]


def initialised(architecture: Architecture, network_seeds: Sequence[int], data: ImageData) -> Networks:
    """The networks that are trained on a set, before training."""
    return networks.create(architecture, [initial_seed(seed) for seed in network_seeds], device=data.train_x.device)


def identity(
    data: ImageData,
    architecture: Architecture,
    one: DistilledSet,
    recipe: Recipe,
    network_seeds: Sequence[int],
    compute: Compute,
) -> tuple[str, dict[str, Any]]:
    """The name of an artefact about one set, and the arguments that decide it."""
    arguments: dict[str, Any] = {"set": artefacts.fingerprint(one), "network": architecture.name}
    arguments |= {"recipe": asdict(recipe), "network_seeds": list(network_seeds), "compute": asdict(compute)}
    return f"{data.name}_ipc{one.ipc}_{arguments['set']}_{architecture.name}_{len(network_seeds)}", arguments
