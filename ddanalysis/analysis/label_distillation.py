"""How good are labels learned for real images? The test protocol and the studies of Bohdal et al. (2020).

Twenty fresh networks learn the base images with their labels, by the head, inner batch and number of steps of the set,
and are tested on all real test images. Baselines are the true labels of the same images, as they are or smoothed, with
a number of steps found on validation images. A study varies settings and what is tested: other architectures, other
optimisers, other numbers of steps.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ddanalysis import architectures, artefacts, checks, makers, published, store
from ddanalysis.analysis.label_studies import BASELINES, LEARNED, RATES, Case, cases
from ddanalysis.architectures import Architecture
from ddanalysis.data import ImageData, load
from ddanalysis.distill import METHODS, Job
from ddanalysis.distill.base_images import base_images, split, true_labels
from ddanalysis.distill.label_learners import learn
from ddanalysis.distill.label_loop import preset
from ddanalysis.distill.making import Progress
from ddanalysis.distill.ridge import PUBLISHED, Ridge
from ddanalysis.distilled import DistilledSet
from ddanalysis.parameters import profile_methods
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint, Tensors

OFFSETS = (-50, -20, -10, 0, 10, 20, 50, 100)
"""The published departures from the number of steps of a set."""

COLUMNS = [
    "source", "target", "algorithm", "base_examples", "set_seed", "network", "test_network", "optimiser", "steps",
    "epochs", "target_size", "repetition", "accuracy", "study", "variant", "rate", "offset",
]  # fmt: skip
HISTORY = [
    "study", "variant", "base_examples", "dataset", "method", "ipc", "set_seed", "iteration", "component", "value",
]  # fmt: skip


def probes(base_examples: int) -> list[int]:
    """The numbers of steps that a baseline tries, as published: to 1,000 for up to 100 base examples, else to 1,701."""
    if base_examples > 100:
        return [10, 25, 75, 101, 201, 301, 501, 701, 1001, 1201, 1501, 1701]
    return sorted({10, 25, 75, *range(50, 1001, 50)})


def offset_steps(steps: int, offsets: Sequence[int]) -> list[int]:
    """``steps`` and so many more or fewer, at least 1 (the published code asks for 0 and fewer too)."""
    return sorted({steps + offset for offset in offsets if steps + offset > 0})


def smoothed(y: Tensor, smoothing: float) -> Tensor:
    """One-hot rows (n, classes) as 1 - ``smoothing`` of them and a ``smoothing`` shared by all classes alike."""
    return (1 - smoothing) * y + smoothing / y.shape[1]


def published_accuracies(data: ImageData) -> pd.DataFrame:
    """The published accuracies on these data, by the columns source, target, test_network, algorithm and base_examples
    of the table, with published, published_deviation and certainty.
    """
    numbers = published.own_steps(data.name, data.n_classes)
    names = {method: algorithm for algorithm, (method, _) in LEARNED.items()} | {name: name for name in BASELINES}
    numbers = numbers.assign(algorithm=numbers["method"].map(names)).dropna(subset=["algorithm"])
    own = {"base": "source", "dataset": "target", "network": "test_network", "images": "base_examples"}
    return numbers.drop(columns=["method", "initialisation", "pretrained_on"]).rename(columns=own)


@dataclass(frozen=True)
class Studied:
    """Sets and how good they are.

    ``table`` has a row a test of :data:`COLUMNS`; accuracies are shares of 1, on all real test images. ``search`` has
    the mean validation accuracies of baselines by number of steps: study, algorithm, base_examples, set_seed, steps,
    accuracy. ``recorded`` has the history of each learned set, as of :class:`makers.Distilled`, by the set's
    fingerprint. ``sets`` are in the order of the table.
    """

    table: pd.DataFrame
    search: pd.DataFrame
    recorded: dict[str, pd.DataFrame]
    sets: list[tuple[Case, DistilledSet]]

    def learned(self) -> dict[str, tuple[Case, DistilledSet]]:
        """A learned set, the first, of every name that figures may have; one that an earlier case has is left out."""
        found: dict[str, tuple[Case, DistilledSet]] = {}
        met = set()
        for case, one in self.sets:
            own = artefacts.fingerprint(one)
            if case.algorithm in LEARNED and case.name not in found and own not in met:
                found[case.name] = (case, one)
            met.add(own)
        return found

    def history(self) -> pd.DataFrame:
        """What was recorded while the sets of :meth:`learned` were: study, variant, base_examples and the columns of
        :class:`makers.Distilled`.
        """
        parts = []
        for case, one in self.learned().values():
            what = {"study": case.study, "variant": case.variant, "base_examples": case.base_examples}
            parts.append(self.recorded[artefacts.fingerprint(one)].assign(**what))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=HISTORY)


def base_classes(data: ImageData, one: DistilledSet) -> tuple[list[int], list[str]]:
    """The classes of a set's base images in the dataset they are from: ids and names, one an image.

    Nothing for images that were learned and for noise, which have none. ``data`` is the target, as it was for the set.
    """
    own = one.settings
    if own.get("source", "noise") == "noise":
        return [], []
    pool = None if own["overlap"] else split(data, one.seed, own["validation"])[0]
    x, ids = base_images(data, len(one), one.seed, own["source"], own["balanced"], pool)
    if ids is None or not torch.equal(x, one.x.to(x)):
        raise ValueError(f"the base images of {one.name} are not those of seed {one.seed} of these data")
    source = data if own["source"] in ("", data.name) else load(own["source"], root=data.root)
    return ids.tolist(), [source.classes[c] for c in ids.tolist()]


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that differ in algorithm and base examples alone: of sets with nothing else varied, tested on
    the network they were made with, by Adam, after their own steps.

    Of the same algorithm and base examples those with the most target images are kept, of them those that learned the
    longest, and what several studies share once.
    """
    kept = (table["offset"] == 0) & (table["optimiser"] == "adam") & (table["variant"] == "")
    found, keys = table[kept & (table["test_network"] == table["network"])], ["source", "target", "algorithm"]
    for column in ("target_size", "epochs"):
        found = found[found[column] == found.groupby([*keys, "base_examples"])[column].transform("max")]
    return found.drop_duplicates([*keys, "base_examples", "set_seed", "repetition"])


def label_distillation(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    studies: Mapping[str, Mapping[str, Any]],
    set_seeds: Sequence[int],
    repetitions: int = 20,
    searchers: int = 5,
) -> Studied:
    """Make or read the sets of all studies (name -> what :func:`cases` takes), and test them.

    ``data`` are the target. A seed draws base images, validation images and everything random of a set; the
    ``repetitions`` (published 20) are fresh networks, of the same seeds for every set. Every choice, of a baseline's
    steps (:func:`probes`) and of an optimiser's rate (:data:`RATES`), is by the mean accuracy of ``searchers`` other
    networks on the validation images (published: of one network). A number of steps found for the network of the set
    serves the other test networks too, as published. Raises ``ValueError`` before any work.
    """
    if not isinstance(studies, Mapping) or not studies:
        raise ValueError(f"studies are {studies!r}: a dict of at least one study is needed")
    checks.whole("repetitions", repetitions)
    checks.whole("searchers", searchers)
    planned = [case for name, given in studies.items() for case in cases(name, given, data.n_classes)]
    benches = [
        _bench(run, data, architecture, case, seed, searchers)
        for case in planned
        for seed in (case.set_seeds or set_seeds)
    ]
    if not benches:
        raise ValueError("no set seeds were given: at least 1 is needed")
    for bench in benches:
        if bench.case.algorithm in BASELINES:
            _base(bench)  # to refuse one with too many classes before hours of work
    tables, searches, sets = [], [], []
    recorded: dict[str, pd.DataFrame] = {}
    for bench in benches:
        case = bench.case
        if case.algorithm in BASELINES:
            one, search = _baseline(bench)
            searches += search
        else:
            one, history = _learned(bench)
            recorded[artefacts.fingerprint(one)] = history
        tables += _tests(bench, one, repetitions)
        sets.append((case, one))
    columns = ["study", "algorithm", "base_examples", "set_seed", "steps", "accuracy"]
    return Studied(pd.DataFrame(tables, columns=COLUMNS), pd.DataFrame(searches, columns=columns), recorded, sets)


@dataclass(frozen=True)
class _Bench:
    """What all tests of one case and seed share."""

    job: Job
    run: Run
    case: Case
    settings: dict[str, Any]  # all of the method's, those that were None as published
    searchers: int

    @property
    def ridge(self) -> Ridge:
        """The constants of the head, where it is one of ridge regression."""
        own = [self.settings[name] for name in ("penalty", "head_rate", "scale_rate") if name in self.settings]
        return Ridge(*own) if own else PUBLISHED

    def split(self) -> tuple[Tensor, Tensor]:
        """Rows of the training images: those labels are learned from, and those for validation."""
        return split(self.job.data, self.job.seed, self.settings["validation"], self.settings["target_size"])

    def accuracies(
        self, one: DistilledSet, a: Architecture, optimiser: str, rate: float, steps: Sequence[int], test: int = 0
    ) -> Tensor:
        """Accuracies (K, counts), kept, of K networks after each of ``steps``: of ``test`` ones on the test images, or
        of the searchers on the validation images.
        """
        data, purpose = self.job.data, "test" if test else "search"
        seeds = [stream_seed(k, "network that learns labels", purpose) for k in range(test or self.searchers)]
        held_out = self.split()[1]
        real = (data.test_x, data.test_y) if test else (data.train_x[held_out], data.train_y[held_out])
        way = {"head": self.case.head, "optimiser": optimiser, "rate": rate, "batch": self.settings["inner_batch"]}
        arguments = way | {"set": artefacts.fingerprint(one), "network": a.name, "steps": list(steps), "seeds": seeds}
        arguments |= {"ridge": asdict(self.ridge)} if self.case.head == "ridge" else {}
        arguments |= {} if test else {"validation": artefacts.digest({"x": real[0], "y": real[1]})}

        def build(checkpoint: Checkpoint | None, progress: Progress | None) -> Tensors:
            found = learn(
                a, one.x, one.y, max(steps), seeds=seeds, ridge=self.ridge, real=real, at=steps, checkpoint=checkpoint,
                progress=progress, **way,
            )  # fmt: skip
            return {"accuracy": found.accuracy}

        name = f"{one.name}_{a.name}_{purpose}_{artefacts.digest({}, store.canonical(arguments))[:12]}"
        return artefacts.artefact(self.run, "trained", name, data, "label learners", 1, arguments, build)["accuracy"]


def _bench(run: Run, data: ImageData, architecture: Architecture, case: Case, seed: int, searchers: int) -> _Bench:
    job = Job(data, architecture, max(case.base_examples // data.n_classes, 1), seed)
    profile = profile_methods(run.root / "params", run.profile).get(case.method, {})
    own = {key: value for key, value in profile.items() if key != "ipc"} | case.settings
    settings = METHODS[case.method].settings(own)
    return _Bench(job, run, case, preset(job, "labels" if "source" in settings else "images", settings), searchers)


def _learned(bench: _Bench) -> tuple[DistilledSet, pd.DataFrame]:
    """The set of a method that learns, with its number of steps in its learning rates, and its history."""
    job, case = bench.job, bench.case
    own = {case.method: case.settings | {"ipc": [job.ipc]}}
    found = makers.distilled_sets(
        bench.run, job.data, job.architecture, [case.method], [job.ipc], [job.seed], own, study=case.word
    )
    return found.sets[0], found.history


def _baseline(bench: _Bench) -> tuple[DistilledSet, list[dict[str, Any]]]:
    """The base images with their own labels and the steps that are best on validation images, and the search."""
    job, case, own = bench.job, bench.case, bench.settings
    data, grid, (x, y) = job.data, probes(case.base_examples), _base(bench)
    kept = ("source", "balanced", "overlap", "validation", "inner_batch", "network_rate")
    one = DistilledSet(
        x, y, data.n_classes, data.mean, data.std, re.sub("[ ,]+", "_", case.algorithm), data.name, job.ipc,
        job.architecture.name, job.seed, whitening=data.whitening,
        settings={key: own[key] for key in kept},
    )  # fmt: skip
    found = bench.accuracies(one, job.architecture, "adam", own["network_rate"], grid).mean(0).tolist()
    rates = torch.full((grid[_first_best(found)],), own["network_rate"], device=x.device)
    what = {"study": case.study, "algorithm": case.algorithm, "base_examples": case.base_examples, "set_seed": job.seed}
    rows = [what | {"steps": steps, "accuracy": value} for steps, value in zip(grid, found, strict=True)]
    return replace(one, learning_rates=rates), rows


def _base(bench: _Bench) -> tuple[Tensor, Tensor]:
    """The base images of a baseline and their labels."""
    own, data, seed = bench.settings, bench.job.data, bench.job.seed
    pool = None if own["overlap"] else split(data, seed, own["validation"])[0]
    x, classes = base_images(data, bench.case.base_examples, seed, own["source"], own["balanced"], pool)
    return x, smoothed(true_labels(classes, data.n_classes), BASELINES[bench.case.algorithm][0])


def _tests(bench: _Bench, one: DistilledSet, repetitions: int) -> list[dict[str, Any]]:
    """The rows of one set: by test network, optimiser, number of steps and repetition."""
    job, case, own = bench.job, bench.case, bench.settings
    rows: list[dict[str, Any]] = []
    taught = len(bench.split()[0])
    epochs = 0.0 if case.algorithm in BASELINES else own["iterations"] / math.ceil(taught / own["batch_real"])
    what = {
        "study": case.study, "variant": case.variant,
        "source": own.get("source", "") or job.data.name, "target": job.data.name,
        "algorithm": case.algorithm, "base_examples": case.base_examples, "set_seed": job.seed,
        "network": job.architecture.name, "epochs": epochs, "target_size": taught,
    }  # fmt: skip
    counts = offset_steps(_steps(one), case.step_offsets)
    for name, optimiser in product(case.test_networks or ("",), case.test_optimisers or ("",)) if counts else ():
        a = _network(job, name)
        rate = _rate(bench, one, a, optimiser) if optimiser else own["network_rate"]
        found = bench.accuracies(one, a, optimiser or "adam", rate, counts, repetitions)
        tested = what | {"test_network": a.name, "optimiser": optimiser or "adam", "rate": rate}
        rows += [
            tested | {"steps": steps, "offset": steps - _steps(one), "repetition": k, "accuracy": float(found[k, i])}
            for i, steps in enumerate(counts)
            for k in range(repetitions)
        ]
    return rows


def _steps(one: DistilledSet) -> int:
    """How long to train on a set."""
    if one.learning_rates is None:
        raise ValueError(f"{one.name} has no learning rates: one a step is needed, to say how long to train")
    return len(one.learning_rates)


def _network(job: Job, name: str) -> Architecture:
    """A test network; of the kind the set was made with, it is the very same."""
    if name in ("", job.architecture.kind):
        return job.architecture
    return architectures.build(name, job.data.shape, job.data.n_classes)


def _rate(bench: _Bench, one: DistilledSet, a: Architecture, optimiser: str) -> float:
    """The rate of an optimiser with which the searchers do best after the steps of the set."""
    rates, steps = RATES[optimiser], [_steps(one)]
    return rates[_first_best([float(bench.accuracies(one, a, optimiser, r, steps).mean()) for r in rates])]


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
