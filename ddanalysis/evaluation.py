"""How good is a distilled set? Networks trained on it under a named protocol, and their accuracy on real test
images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
import torch.nn.functional as F

from ddanalysis import checks, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.augment import DSA, DSA_DIGITS
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

NO_FLIP = ("digits", "mnist", "mnist_rgb", "svhn", "usps", "kmnist", "emnist_letters")
"""Datasets whose mirrored images are something else; the DSA strategy leaves the flip out."""


@dataclass(frozen=True)
class Protocol:
    """A published way to train a network on a distilled set; the accuracy is that after the last update, never the
    best.
    """

    recipe: Recipe
    augmented: bool
    source: str


PROTOCOLS = {
    "full-batch-300": Protocol(
        Recipe(updates=300, batch_size=None, learning_rate=0.01, momentum=0.9),
        augmented=False,
        source="Yang et al. 2024: 300 full-batch updates, as Deng and Russakovsky 2022 evaluate",
    ),
    "dc-300": Protocol(
        Recipe(epochs=301, milestones=(152,), restart=True, weight_decay=5e-4),
        augmented=False,
        source="Zhao et al. 2021, code: one epoch more than 300, a new optimiser at a tenth of the rate after 152",
    ),
    "dsa-1000": Protocol(
        Recipe(epochs=1001, milestones=(502,), restart=True, weight_decay=5e-4),
        augmented=True,
        source="Zhao and Bilen 2021, code: as DC with 1000 epochs and DSA, the new optimiser after 502",
    ),
}


def dsa_strategy(dataset: str) -> str:
    """The published DSA strategy for a dataset: with a flip unless its images are characters or digits."""
    return DSA_DIGITS if dataset.split("-")[0] in NO_FLIP else DSA


def protocol_recipe(protocol: str, dataset: str) -> Recipe:
    """The recipe of a named protocol on a named dataset; ``ValueError`` for an unknown protocol."""
    checks.one_of("protocol", protocol, PROTOCOLS)
    found = PROTOCOLS[protocol]
    return replace(found.recipe, augment=dsa_strategy(dataset)) if found.augmented else found.recipe


@dataclass(frozen=True)
class Scores:
    """Networks trained on distilled sets: S = sets x network seeds of them, set by set."""

    table: pd.DataFrame  # S rows: dataset, method, ipc, network, protocol, set_seed, network_seed, accuracy in [0, 1]
    predictions: torch.Tensor  # (S, n) class ids of the test images


def predict(
    sets: Sequence[DistilledSet],
    data: ImageData,
    architecture: Architecture,
    protocol: str,
    network_seeds: Sequence[int],
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """Train a fresh network for every set and network seed, all at once, and predict the test images: (S, n) class ids.

    Network seed s has the same initialisation whatever the set, so sets are compared on common networks. Raises
    ``ValueError`` for an unknown protocol or a set that does not fit the data.
    """
    recipe = protocol_recipe(protocol, data.name)
    for one in sets:
        fits(one, data)
    pairs = [(i, seed) for i in range(len(sets)) for seed in network_seeds]
    starts = torch.tensor([0, *(len(s) for s in sets)]).cumsum(0)
    rows = [torch.arange(int(starts[i]), int(starts[i + 1])) for i, _ in pairs]
    x, y = torch.cat([s.x for s in sets]).to(data.train_x.device), _joint_labels(sets).to(data.train_x.device)
    fresh = networks.create(architecture, [initial_seed(seed) for _, seed in pairs], device=x.device)
    seeds = [seed for _, seed in pairs]
    trained = training.train(
        fresh, x, y, recipe, seeds, rows, compute=compute, checkpoint=checkpoint, progress=progress
    )
    return small(trained.networks.evaluate(data.test_x, data.test_y, compute).predictions, data.n_classes)


def scores(
    predictions: torch.Tensor,
    sets: Sequence[DistilledSet],
    data: ImageData,
    architecture: Architecture,
    protocol: str,
    network_seeds: Sequence[int],
) -> Scores:
    """The accuracies of what :func:`predict` found, as a tidy table."""
    what = {"dataset": data.name, "network": architecture.name, "protocol": protocol}
    records = [
        what | {"method": s.method, "ipc": s.ipc, "set_seed": s.seed, "network_seed": seed}
        for s in sets
        for seed in network_seeds
    ]
    accuracy = (predictions == data.test_y.cpu()).double().mean(1).numpy()
    columns = ["dataset", "method", "ipc", "network", "protocol", "set_seed", "network_seed", "accuracy"]
    return Scores(pd.DataFrame(records).assign(accuracy=accuracy)[columns], predictions)


def initial_seed(network_seed: int) -> int:
    """The seed of the initial weights of network ``network_seed`` trained on a distilled set."""
    return stream_seed(network_seed, "network trained on a distilled set")


def small(predictions: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Class ids in the smallest integer type that holds them, on the CPU."""
    return predictions.to("cpu", torch.uint8 if n_classes <= 256 else torch.int16)


def _joint_labels(sets: Sequence[DistilledSet]) -> torch.Tensor:
    """Labels of all sets one after the other, as soft rows if any set has those."""
    if all(s.y.ndim == 1 for s in sets):
        return torch.cat([s.y for s in sets])
    return torch.cat([s.y if s.y.ndim == 2 else F.one_hot(s.y, s.n_classes).float() for s in sets])
