"""Distilled sets, pools and scores by name: made where they are missing, read where they are there.

The one place where computations meet files. Every function takes a :class:`ddanalysis.report.Run` (folder, device,
threads) first.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ddanalysis import checks, distilled, evaluation, interchange, pools, store
from ddanalysis.architectures import Architecture
from ddanalysis.artefacts import artefact, fingerprint, identity, shared
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData
from ddanalysis.distill import METHODS, Job, Made
from ddanalysis.distill.cost import estimate
from ddanalysis.distill.making import Progress
from ddanalysis.distilled import DistilledSet
from ddanalysis.evaluation import Scores
from ddanalysis.parameters import profile_methods
from ddanalysis.pools import Pool
from ddanalysis.report import Run
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe


@dataclass(frozen=True)
class Distilled:
    """Sets, the loss curves of those that have one, and each set as it was on the way, after so many iterations."""

    sets: list[DistilledSet]
    history: pd.DataFrame  # dataset, method, ipc, set_seed, iteration, component, value
    along: list[tuple[int, DistilledSet]]  # from iteration 0 on, the start; none for methods without iterations


def distilled_sets(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    methods: Sequence[str],
    ipc: Sequence[int],
    set_seeds: Sequence[int],
    distill: Mapping[str, Mapping[str, Any]],
    keep_every: int = 0,
    study: str = "",
) -> Distilled:
    """One set for every method, ipc and seed, in this order, by the profile's recipes and ``distill`` over them.

    Sets are kept every ``keep_every`` iterations, 0 for the start alone. ``study`` goes into the names of files: a word
    that tells sets of one method and ipc apart whose settings differ. Raises ``ValueError`` for an unknown method or
    setting before anything is made.
    """
    made = [
        _distilled_set(run, Job(data, architecture, n, seed), method, settings, keep_every, study)
        for method, n, settings in _recipes(run, methods, ipc, distill)
        for seed in set_seeds
    ]
    history = pd.concat([one.history for one in made], ignore_index=True)
    return Distilled([s for one in made for s in one.sets], history, [s for one in made for s in one.along])


def _recipes(
    run: Run, methods: Sequence[str], ipc: Sequence[int], distill: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, int, dict[str, Any]]]:
    """Every method and ipc, with the settings that depart from the published: the profile's, ``distill`` over them.

    "ipc" among these is no setting but the numbers of images a class, in place of the notebook's. ``ValueError`` for an
    unknown method or setting.
    """
    profile = profile_methods(run.root / "params", run.profile)
    found = {name: {**profile.get(name, {}), **distill.get(name, {})} for name in (*methods, *distill)}
    counts = {name: settings.pop("ipc", ipc) for name, settings in found.items()}
    for name, settings in found.items():
        checks.one_of("method", name, METHODS)
        METHODS[name].settings(settings)
    return [(name, n, found[name]) for name in methods for n in counts[name]]


def estimates(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    methods: Sequence[str],
    ipc: Sequence[int],
    set_seeds: Sequence[int],
    distill: Mapping[str, Mapping[str, Any]],
) -> pd.DataFrame:
    """What :func:`distilled_sets` would cost, a row a method and ipc, its ``sets`` together."""
    rows = [
        asdict(estimate(Job(data, architecture, n), method, settings)) | {"sets": len(set_seeds)}
        for method, n, settings in _recipes(run, methods, ipc, distill)
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Order:
    """One set to be made and kept."""

    run: Run
    job: Job
    method: str
    settings: dict[str, Any]
    study: str = ""

    @property
    def stem(self) -> str:
        """What its files are called."""
        words = [self.method, self.job.data.name, f"ipc{self.job.ipc}", f"s{self.job.seed}", self.study]
        return "_".join(word for word in words if word)

    def path(self, kind: str, iterations: int | None = None) -> Path:
        """One of its files, or that of the set as it was after so many iterations."""
        return self.run.artefact(kind, f"{self.stem}{'' if iterations is None else f'_{iterations}'}.safetensors")

    def identity(self, iterations: int | None = None) -> dict[str, Any]:
        """All that decides the set, of so many iterations instead of its own."""
        method, job = METHODS[self.method], self.job
        own = {"ipc": job.ipc, "seed": job.seed, "network": job.architecture.name if method.networked else ""}
        own |= {"given": fingerprint(job.given)} if job.given else {}
        settings = self._settings(iterations)
        return identity(self.run, job.data, f"distill.{self.method}", method.version, settings | own)

    def fields(self, iterations: int | None = None) -> dict[str, Any]:
        """What the set says of itself."""
        job, networked = self.job, METHODS[self.method].networked
        return distilled.describe(
            n_classes=job.data.n_classes, mean=job.data.mean, std=job.data.std, method=self.method,
            dataset=job.data.name, ipc=job.ipc, network=job.architecture.name if networked else "", seed=job.seed,
            settings=self._settings(iterations), whitening=job.data.whitening,
        )  # fmt: skip

    def make(self, checkpoint: Checkpoint, moments: Sequence[int], iterations: int | None = None) -> Made:
        """The set, of so many iterations instead of its own; as it is at each of the ``moments`` it is kept."""

        def keep(iteration: int, tensors: Callable[[], Tensors]) -> None:
            if iteration in moments:
                described = self.identity(iteration) | self.fields(iteration)
                store.write(self.path("along", iteration), self.complete(tensors()), described)

        settings = self._settings(iterations)
        progress = self.run.progress(self.stem, settings.get("iterations"))
        share = functools.partial(shared, self.run, self.job.data)
        job = dataclasses.replace(self.job, checkpoint=checkpoint, progress=progress, keep=keep, share=share)
        return METHODS[self.method].make(job, **(settings | ({"initialisation": "given"} if job.given else {})))

    def complete(self, tensors: Tensors) -> Tensors:
        """The tensors of a set, with those of the whitening it lives in."""
        white = self.job.data.whitening
        return tensors | (white.tensors() if white else {})

    def read(self, iterations: int | None = None) -> DistilledSet:
        """The set from its file, or as it was after so many iterations."""
        path = self.path("distilled" if iterations is None else "along", iterations)
        one = distilled.assemble(store.read(path)[0], self.fields(iterations)).to(self.run.device)
        return dataclasses.replace(one, whitening=self.job.data.whitening)  # one for all sets: it is large

    def _settings(self, iterations: int | None) -> dict[str, Any]:
        return self.settings if iterations is None else self.settings | {"iterations": iterations}


def _distilled_set(run: Run, job: Job, name: str, given: Mapping[str, Any], keep_every: int, study: str) -> Distilled:
    settings = METHODS[name].settings(dict(given))
    order = _Order(run, dataclasses.replace(job, given=_given(settings, job)), name, settings, study)
    moments = _moments(settings, keep_every)

    def build(checkpoint: Checkpoint) -> Tensors:
        made = order.make(checkpoint, moments)
        store.write(order.path("histories"), made.history, order.identity())
        more = {name: t for name in ("learning_rates", "order") if (t := getattr(made, name)) is not None}
        return order.complete({"x": made.x, "y": made.y} | more)

    store.make(order.path("distilled"), order.identity() | order.fields(), build)
    missing = [n for n in moments if not store.matches(order.path("along", n), order.identity(n) | order.fields(n))]
    if missing:  # the set is there, and only the way to the last moment that is missing has to be gone again
        checkpoint = Checkpoint(order.path("along").with_suffix(".checkpoint"), order.identity())
        order.make(checkpoint, missing, max(missing) + 1)
        checkpoint.remove()
    columns = {"dataset": job.data.name, "method": name, "ipc": job.ipc, "set_seed": job.seed}
    history = _curves(columns, store.expect(order.path("histories"), order.identity()))
    return Distilled([order.read()], history, [(n, order.read(n)) for n in moments])


def _moments(settings: Mapping[str, Any], every: int) -> list[int]:
    """The numbers of iterations after which a set is kept."""
    if "iterations" not in settings:
        return []
    return [0, *(range(every, settings["iterations"], every) if every else ())]


def _given(settings: Mapping[str, Any], job: Job) -> DistilledSet | None:
    """The set to continue from, where the initialisation is the path of one; {ipc} and {seed} in it are the job's."""
    path = str(settings.get("initialisation", ""))
    if "/" not in path:
        return None
    return read_sets([path.format(ipc=job.ipc, seed=job.seed)], job.data)[0]


def _curves(columns: Mapping[str, Any], history: Tensors) -> pd.DataFrame:
    rows = [
        pd.DataFrame(dict(columns) | {"iteration": range(len(t)), "component": part, "value": t.numpy()})
        for part, t in history.items()
    ]
    return pd.concat(rows) if rows else pd.DataFrame(columns=[*columns, "iteration", "component", "value"])


def scores(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    sets: Sequence[DistilledSet],
    protocol: str,
    network_seeds: Sequence[int],
    compute: Compute = Compute(),
) -> Scores:
    """Networks trained on every set under ``protocol``; kept by what a set holds, so that a new set costs its own
    networks alone, and a start of real images those that random images have already.
    """
    predictions = [_predictions(run, data, architecture, one, protocol, network_seeds, compute) for one in sets]
    return evaluation.scores(torch.cat(predictions), sets, data, architecture, protocol, network_seeds)


def scores_along(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    made: Distilled,
    protocol: str,
    network_seeds: Sequence[int],
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """The accuracies of sets as they were on the way and are at the end, as :func:`scores` has them, and the
    ``iteration``.
    """
    ends = {one.name: one.settings["iterations"] for one in made.sets if "iterations" in one.settings}
    tables = []
    for iteration, one in [*made.along, *((ends[one.name], one) for one in made.sets if one.name in ends)]:
        found = _predictions(run, data, architecture, one, protocol, network_seeds, compute)
        table = evaluation.scores(found, [one], data, architecture, protocol, network_seeds).table
        tables.append(table.assign(iteration=iteration))
    columns = ["dataset", "method", "ipc", "network", "protocol", "set_seed", "network_seed", "accuracy", "iteration"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _predictions(
    run: Run,
    data: ImageData,
    a: Architecture,
    one: DistilledSet,
    protocol: str,
    seeds: Sequence[int],
    compute: Compute,
) -> torch.Tensor:
    arguments = {
        "set": fingerprint(one),
        "network": a.name,
        "protocol": protocol,
        "network_seeds": list(seeds),
        "compute": asdict(compute),
    }

    def build(checkpoint: Checkpoint | None, progress: Progress | None) -> Tensors:
        return {"predictions": evaluation.predict([one], data, a, protocol, seeds, compute, checkpoint, progress)}

    name = f"{data.name}_ipc{one.ipc}_{arguments['set']}_{a.name}_{protocol}_{len(seeds)}"
    return artefact(run, "trained", name, data, "evaluation.predict", 1, arguments, build)["predictions"]


def real_accuracy(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    recipe: Recipe,
    network_seeds: Sequence[int],
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Networks trained on all real training images: dataset, network, network_seed, accuracy (share of 1)."""
    arguments = {
        "network": architecture.name,
        "recipe": asdict(recipe),
        "seeds": list(network_seeds),
        "compute": asdict(compute),
    }

    def build(checkpoint: Checkpoint | None, progress: Progress | None) -> Tensors:
        return {
            "accuracy": pools.real_accuracy(data, architecture, recipe, network_seeds, compute, checkpoint, progress)
        }

    name = f"real_{data.name}_{architecture.name}_{len(network_seeds)}"
    accuracy = artefact(run, "real", name, data, "pools.real_accuracy", 1, arguments, build)["accuracy"]
    columns = {"dataset": data.name, "network": architecture.name, "network_seed": list(network_seeds)}
    return pd.DataFrame(columns | {"accuracy": accuracy.double().numpy()})


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

    def build(checkpoint: Checkpoint | None, progress: Progress | None) -> Tensors:
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

    def build(checkpoint: Checkpoint | None, progress: Progress | None) -> Tensors:
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
        space: interchange.Provenance = {
            "mean": data.mean,
            "std": data.std,
            "n_classes": data.n_classes,
            "whitening": data.whitening,
        }
        one = interchange.read(path, **(space | {"method": path.stem, "dataset": data.name}))
        distilled.fits(one, data)
        sets.append(one.to(data.train_x.device))
    return sets
