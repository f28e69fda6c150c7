"""When, while a network learns real data, does it learn to recognise a distilled set? (Yang et al. 2024, section
4.2)
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict

import pandas as pd
import torch

from ddanalysis import artefacts, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.networks import Networks
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe


def follow(
    sets: Sequence[DistilledSet],
    data: ImageData,
    architecture: Architecture,
    recipe: Recipe,
    network_seeds: Sequence[int],
    at: Collection[int],
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensors:
    """Train one network a seed on the real training images and score the test images and every set after each update
    in ``at``.

    Returns ``accuracy`` (shares of 1) and ``loss`` (mean cross-entropy), each (networks, updates, 1 + sets) float64;
    column 0 is the test images. Published: 1 network, 300 updates of batches of 256, SGD 0.01, momentum 0.9.
    """
    for one in sets:
        fits(one, data)
    device = data.train_x.device
    targets = [(data.test_x, data.test_y)] + [(s.x.to(device), s.y.to(device)) for s in sets]
    seeds = [stream_seed(seed, "early recognition") for seed in network_seeds]

    def score(now: Networks) -> Tensors:
        found = [now.evaluate(x, y, compute) for x, y in targets]
        return {
            "accuracy": torch.stack([f.accuracy for f in found], 1),
            "loss": torch.stack([f.loss for f in found], 1),
        }

    fresh = networks.create(architecture, seeds, device=device)
    trained = training.train(
        fresh, data.train_x, data.train_y, recipe, seeds, None, score, at, compute, checkpoint, progress
    )
    return {name: t.cpu() for name, t in trained.observed.items()}


def recognition_table(
    followed: Tensors,
    sets: Sequence[DistilledSet],
    dataset: str,
    network: str,
    network_seeds: Sequence[int],
    at: Collection[int],
) -> pd.DataFrame:
    """What :func:`follow` found, one row a network, update and target.

    Columns dataset, method, ipc, network, set_seed, network_seed, update, target, accuracy, loss; ``target`` is
    "test" or "set", and the test rows have method "real" with no ipc and no set_seed.
    """
    what: list[dict[str, object]] = [{"method": "real", "ipc": None, "set_seed": None, "target": "test"}]
    what += [{"method": s.method, "ipc": s.ipc, "set_seed": s.seed, "target": "set"} for s in sets]
    moments = sorted(set(at))
    index = pd.MultiIndex.from_product(
        [network_seeds, moments, range(len(what))], names=["network_seed", "update", "column"]
    )
    values = {name: followed[name].flatten().numpy() for name in ("accuracy", "loss")}
    table = pd.DataFrame(values, index=index).reset_index().join(pd.DataFrame(what), on="column")
    table = table.astype({"ipc": "Int64", "set_seed": "Int64"}).assign(dataset=dataset, network=network)
    columns = [
        "dataset",
        "method",
        "ipc",
        "network",
        "set_seed",
        "network_seed",
        "update",
        "target",
        "accuracy",
        "loss",
    ]
    return table[columns]


def recognised_first(table: pd.DataFrame, level: float) -> pd.DataFrame:
    """First update at which each network scores at least ``level`` on a target, and how much earlier that is than on
    the test images.

    One row a set and network: columns dataset, method, ipc, network, set_seed, network_seed, level, update,
    test_update, lead (updates; missing where the level was never reached).
    """
    reached = table[table["accuracy"] >= level]
    test = reached[reached["target"] == "test"].groupby("network_seed")["update"].min()
    keys = ["dataset", "method", "ipc", "network", "set_seed", "network_seed"]
    every = table.loc[table["target"] == "set", keys].drop_duplicates()
    first = reached[reached["target"] == "set"].groupby(keys)["update"].min().reset_index()
    found = every.merge(first, how="left", on=keys).assign(level=level)
    found["test_update"] = found["network_seed"].map(test)
    return found.assign(lead=found["test_update"] - found["update"])[[*keys, "level", "update", "test_update", "lead"]]


def followed(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    sets: Sequence[DistilledSet],
    recipe: Recipe,
    network_seeds: Sequence[int],
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """:func:`follow` after every update of ``recipe``, the state before the first included, kept as an artefact; its
    table.
    """
    moments = range(recipe.total_updates(len(data.train_y)) + 1)
    arguments = {
        "sets": [artefacts.fingerprint(one) for one in sets],
        "network": architecture.name,
        "recipe": asdict(recipe),
        "network_seeds": list(network_seeds),
        "compute": asdict(compute),
    }

    def build(checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Tensors:
        return follow(sets, data, architecture, recipe, network_seeds, moments, compute, checkpoint, progress)

    name = f"recognition_{data.name}_{architecture.name}"
    found = artefacts.artefact(run, "recognition", name, data, "recognition.follow", 1, arguments, build)
    return recognition_table(found, sets, data.name, architecture.name, network_seeds, moments)
