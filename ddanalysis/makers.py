"""Artefacts by name: distilled sets, pools and scores, made where they are missing and read where they are there.

The one place where computations meet files. Every function takes a :class:`ddanalysis.report.Run` (folder, device,
threads) first; an artefact carries its maker, its version, the exact arguments, the fingerprint of the data, and the
device and threads it was made with.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ddanalysis import checks, distilled, evaluation, interchange, pools, store
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData
from ddanalysis.distill import METHODS, Job
from ddanalysis.distilled import DistilledSet
from ddanalysis.evaluation import Scores
from ddanalysis.pools import Pool
from ddanalysis.report import Run
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe

Progress = Callable[[int], object]
Build = Callable[[Checkpoint, Progress], Tensors]


def artefact(
    run: Run,
    kind: str,
    name: str,
    data: ImageData,
    maker: str,
    version: int,
    arguments: Mapping[str, Any],
    build: Build,
) -> Tensors:
    """The tensors of ``<kind>/<name>.safetensors``, made by ``build(checkpoint, progress)`` unless the very same are
    there.
    """
    path = run.artefact(kind, f"{name}.safetensors")
    description = identity(run, data, maker, version, arguments)
    return store.make(path, description, lambda checkpoint: build(checkpoint, run.progress(name)))


def identity(run: Run, data: ImageData, maker: str, version: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of an artefact, and the PyTorch it was made with."""
    return {
        "maker": maker,
        "version": version,
        "arguments": dict(arguments),
        "data": {"name": data.name, "pixel_source": data.pixel_source, "fingerprint": data.fingerprint()},
        "device": run.device.type,
        "threads": run.threads,
        "made_with": {"torch": torch.__version__},
    }


@dataclass(frozen=True)
class Distilled:
    """Sets and the loss curves of those that have one."""

    sets: list[DistilledSet]
    history: pd.DataFrame  # dataset, method, ipc, set_seed, iteration, component, value


def distilled_sets(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    methods: Sequence[str],
    ipc: Sequence[int],
    set_seeds: Sequence[int],
    settings: Mapping[str, Mapping[str, Any]],
) -> Distilled:
    """One set for every method, ipc and seed, in this order; ``settings[method]`` departs from the published constants.

    Raises ``ValueError`` for an unknown method or setting before anything is made.
    """
    for name in (*methods, *settings):
        checks.one_of("method", name, METHODS)
        METHODS[name].settings(dict(settings.get(name, {})))
    made = [
        _distilled_set(run, Job(data, architecture, count, seed), method, settings.get(method, {}))
        for method in methods
        for count in ipc
        for seed in set_seeds
    ]
    return Distilled([one for one, _ in made], pd.concat([history for _, history in made], ignore_index=True))


def _distilled_set(run: Run, job: Job, name: str, given: Mapping[str, Any]) -> tuple[DistilledSet, pd.DataFrame]:
    method, data = METHODS[name], job.data
    settings, network = method.settings(dict(given)), job.architecture.name if method.networked else ""
    fields = distilled.describe(
        n_classes=data.n_classes, mean=data.mean, std=data.std, method=name, dataset=data.name, ipc=job.ipc,
        network=network, seed=job.seed, settings=settings,
    )  # fmt: skip
    own = identity(
        run, data, f"distill.{name}", method.version, settings | {"ipc": job.ipc, "seed": job.seed, "network": network}
    )
    stem = f"{name}_{data.name}_ipc{job.ipc}_s{job.seed}"
    path, curves = (run.artefact(kind, f"{stem}.safetensors") for kind in ("distilled", "histories"))

    def build(checkpoint: Checkpoint) -> Tensors:
        watched = Job(data, job.architecture, job.ipc, job.seed, checkpoint, run.progress(stem))
        made = method.make(watched, **settings)
        store.write(curves, made.history, own)
        rates = {} if made.learning_rates is None else {"learning_rates": made.learning_rates}
        return {"x": made.x, "y": made.y} | rates

    tensors = store.make(path, own | fields, build)
    history = store.expect(curves, own)
    columns = {"dataset": data.name, "method": name, "ipc": job.ipc, "set_seed": job.seed}
    rows = [
        pd.DataFrame(columns | {"iteration": range(len(t)), "component": part, "value": t.numpy()})
        for part, t in history.items()
    ]
    empty = pd.DataFrame(columns=[*columns, "iteration", "component", "value"])
    return distilled.assemble(tensors, fields).to(run.device), pd.concat(rows) if rows else empty


def scores(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    sets: Sequence[DistilledSet],
    protocol: str,
    network_seeds: Sequence[int],
    compute: Compute = Compute(),
) -> Scores:
    """Networks trained on every set under ``protocol``; kept set by set, so that a new set costs its own networks
    alone.
    """
    predictions = [_predictions(run, data, architecture, one, protocol, network_seeds, compute) for one in sets]
    return evaluation.scores(torch.cat(predictions), sets, data, architecture, protocol, network_seeds)


def _predictions(
    run: Run, data: ImageData, a: Architecture, one: DistilledSet, protocol: str, seeds: Sequence[int], compute: Compute
) -> torch.Tensor:
    arguments = {
        "set": fingerprint(one),
        "network": a.name,
        "protocol": protocol,
        "network_seeds": list(seeds),
        "compute": asdict(compute),
    }

    def build(checkpoint: Checkpoint, progress: Progress) -> Tensors:
        return {"predictions": evaluation.predict([one], data, a, protocol, seeds, compute, checkpoint, progress)}

    name = f"{one.name}_{a.name}_{protocol}"
    return artefact(run, "trained", name, data, "evaluation.predict", 1, arguments, build)["predictions"]


def fingerprint(one: DistilledSet) -> str:
    """16 hex digits of a sha256 over a set's tensors."""
    digest = hashlib.sha256()
    for name, t in sorted(distilled.tensors(one).items()):
        digest.update(repr((name, tuple(t.shape), t.dtype)).encode())
        digest.update(t.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def subset_pool(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    count: int,
    fractions: tuple[float, float],
    recipe: Recipe,
    seed: int,
    compute: Compute = Compute(),
) -> Pool:
    """:func:`pools.subset_networks`, kept."""
    arguments = _pool_arguments(architecture, count, recipe, seed, compute) | {"fractions": list(fractions)}

    def build(checkpoint: Checkpoint, progress: Progress) -> Tensors:
        pool = pools.subset_networks(data, architecture, count, fractions, recipe, seed, compute, checkpoint, progress)
        return {"predictions": pool.predictions, "updates": pool.updates}

    name = f"subset_{data.name}_{architecture.name}_s{seed}"
    return Pool("subset", **artefact(run, "pools", name, data, "pools.subset_networks", 1, arguments, build))


def early_pool(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    count: int,
    recipe: Recipe,
    seed: int,
    compute: Compute = Compute(),
) -> Pool:
    """:func:`pools.early_networks`, kept."""
    arguments = _pool_arguments(architecture, count, recipe, seed, compute)

    def build(checkpoint: Checkpoint, progress: Progress) -> Tensors:
        pool = pools.early_networks(data, architecture, count, recipe, seed, compute, checkpoint, progress)
        return {"predictions": pool.predictions, "updates": pool.updates}

    name = f"early_{data.name}_{architecture.name}_s{seed}"
    return Pool("early", **artefact(run, "pools", name, data, "pools.early_networks", 1, arguments, build))


def _pool_arguments(a: Architecture, count: int, recipe: Recipe, seed: int, compute: Compute) -> dict[str, Any]:
    return {"network": a.name, "count": count, "recipe": asdict(recipe), "seed": seed, "compute": asdict(compute)}


def read_sets(paths: Sequence[str], data: ImageData) -> list[DistilledSet]:
    """Sets that others made, in any layout of :mod:`ddanalysis.interchange`, named after their files.

    What a layout does not say is taken from the data, the normalisation above all. Raises ``FileNotFoundError`` for a
    missing file and ``ValueError`` for an unknown or damaged one and for a set that does not fit the data.
    """
    sets = []
    for path in map(Path, paths):
        space: interchange.Provenance = {"mean": data.mean, "std": data.std, "n_classes": data.n_classes}
        one = interchange.read(path, **(space | {"method": path.stem, "dataset": data.name}))
        distilled.fits(one, data)
        sets.append(one.to(data.train_x.device))
    return sets
