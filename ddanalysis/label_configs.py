"""The 210 published experiments of label distillation (Bohdal et al. 2020): their names, their configuration files and
their results, read and written.

An :class:`Experiment` says in the package's words what a configuration says in the published code's. Datasets keep the
published names, and :data:`DATASETS` has those of the package. A configuration does not say which of the two methods it
is for (the script that is run decides): its name does.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ddanalysis import checks, distilled, foreign
from ddanalysis.distilled import DistilledSet
from ddanalysis.store import atomic

METHODS = {"or2": "second-order", "rr": "ridge"}
SHORT = {
    "mn": "mnist", "emn": "emnist", "km": "kmnist", "k49": "k49", "c10": "cifar10", "c100": "cifar100", "cub": "cub",
    "svhn": "svhn", "fake": "fake", "imn": "imagenet",
}  # fmt: skip
"""What names call the datasets, and what files call them."""

DATASETS = {
    "mnist": "mnist", "emnist": "emnist_letters", "kmnist": "kmnist", "k49": "kuzushiji49", "cifar10": "cifar10",
    "cifar100": "cifar100", "cub": "cub200", "svhn": "svhn", "fake": "noise",
}  # fmt: skip
"""What the package calls them. The published code turns k49 into outlines by mistake: "kuzushiji49_published" has that.
imagenet is named in the published grammar and has no loader in either."""

TARGET_IMAGES = {"mnist": 50_000, "kmnist": 50_000, "k49": 209_128, "cifar10": 45_000, "cifar100": 45_000}
"""Training images of each target beside its validation images; k49 has them all whatever the target size."""

BASE_EXAMPLES = {10: 10, 20: 10, 50: 25, 100: 50, 200: 50, 500: 50}
"""The published numbers of base examples, and the inner batch of each."""

_NETWORKS = {"alexnet": "AlexCifarNet", "LeNet": "LeNet", "resnet": "ResNet14"}
_GRAMMAR = re.compile(
    r"(?P<learn>ld|dd)_(?P<base_examples>\d+)be_(?P<inner_batch>\d+)ib(_(?P<target_size>\d+)ts)?(?P<baseline>_baseline)?"
    r"_(?P<source>[a-z0-9]+)_to_(?P<target>[a-z0-9]+)_(?P<balanced>u?bl)(?P<smoothing>_ls)?_(?P<resnet>cnn|rn)"
    r"(_(?P<epochs>\d+)e)?(?P<step_study>_nsa)?(?P<network_study>_tvm)?_(?P<method>or2|rr)_(?P<seed>\d+)s_v(?P<version>\d+)"
)


@dataclass(frozen=True)
class Experiment:
    """One experiment; the defaults are those of the published scripts.

    ``method`` is "second-order" or "ridge": of a baseline, the head of its learner. ``learn`` is "labels" or "images".
    ``step_study`` tests after 50 steps fewer to 100 more, ``network_study`` on three architectures. A baseline learns
    nothing, and its ``epochs`` mean nothing. Raises ``ValueError`` for what the published code cannot do.
    """

    method: str = "second-order"
    learn: str = "labels"
    base_examples: int = 100
    inner_batch: int = 50
    target_size: int = 50_000
    baseline: bool = False
    source: str = "emnist"
    target: str = "mnist"
    balanced: bool = False
    smoothing: float = 0.0
    resnet: bool = False
    epochs: int = 10
    step_study: bool = False
    network_study: bool = False
    seed: int = 1234
    version: int = 0
    batch: int = 1024
    inner_rate: float = 0.01

    def __post_init__(self) -> None:
        checks.one_of("method", self.method, METHODS.values())
        checks.one_of("learn", self.learn, ("labels", "images"))
        for what in ("base_examples", "inner_batch", "target_size", "epochs", "batch", "seed", "version"):
            checks.whole(what, getattr(self, what), 0 if what in ("seed", "version") else 1)
        for what in ("baseline", "balanced", "resnet", "step_study", "network_study"):
            if not isinstance(getattr(self, what), bool):
                raise ValueError(f"{what} is {getattr(self, what)!r}: it must be true or false")
        for what in ("source", "target"):
            checks.one_of(what, getattr(self, what), SHORT.values())
        checks.one_of("smoothing", self.smoothing, (0.0, 0.1))
        checks.at_least("inner_rate", self.inner_rate, 0)
        refused = {
            f"inner_batch is {self.inner_batch}: it must be at most base_examples, {self.base_examples}":
                self.inner_batch > self.base_examples,
            f"smoothing is {self.smoothing} and baseline false: only a baseline's labels are smoothed":
                self.smoothing and not self.baseline,
            "learn is 'images' and baseline true: images have no baseline": self.learn == "images" and self.baseline,
            f"network_study is true and target {self.target!r}: it is for cifar10 alone":
                self.network_study and self.target != "cifar10",
        }  # fmt: skip
        for sentence, holds in refused.items():
            if holds:
                raise ValueError(sentence)

    @property
    def name(self) -> str:
        """As the published file is called: ``ld_100be_50ib_mn_to_mn_bl_cnn_400e_or2_1234s_v0``."""
        short = {full: own for own, full in SHORT.items()}
        size = "" if self.target_size in (45_000, 50_000) else f"_{self.target_size}ts"
        first = f"{'ld' if self.learn == 'labels' else 'dd'}_{self.base_examples}be_{self.inner_batch}ib{size}"
        way = f"{short[self.source]}_to_{short[self.target]}_{'bl' if self.balanced else 'ubl'}"
        last = f"{'or2' if self.method == 'second-order' else 'rr'}_{self.seed}s_v{self.version}"
        words = [
            first, "baseline" * self.baseline, way, "ls" * (self.smoothing > 0), "rn" if self.resnet else "cnn",
            f"{self.epochs}e" * (not self.baseline), "nsa" * self.step_study, "tvm" * self.network_study, last,
        ]  # fmt: skip
        return "_".join(filter(None, words))

    @property
    def family(self) -> str:
        """What it is for, one of ten: "within", "cross", "baselines", "networks", ..."""
        asked = {
            "images": self.learn == "images",
            "networks": self.network_study,
            "step counts": self.step_study,
            "target sizes": self.target_size not in (45_000, 50_000),
            "base seeds": self.seed != 1234,
            "cifar100": self.target == "cifar100",
            "smoothed baselines": self.baseline and self.smoothing > 0,
            "baselines": self.baseline,
            "cross": self.source != self.target,
        }
        return next((name for name, holds in asked.items() if holds), "within")

    @property
    def iterations(self) -> int:
        """Updates of the labels in all epochs, one a batch of target images; 0 of a baseline.

        Raises ``ValueError`` for a dataset that is no published target.
        """
        checks.one_of("published target", self.target, TARGET_IMAGES)
        images = TARGET_IMAGES[self.target]
        images = images if self.target == "k49" else min(images, self.target_size)
        return 0 if self.baseline else self.epochs * math.ceil(images / self.batch)


def parse(name: str) -> Experiment:
    """The experiment of a published ``name``; what names do not say is as published.

    Raises ``ValueError`` for a name that the grammar does not write.
    """
    found = _GRAMMAR.fullmatch(name)
    if found is None:
        grammar = (
            "{ld|dd}_{N}be_{n}ib[_{ts}ts][_baseline]_{src}_to_{tgt}_{bl|ubl}[_ls]_{cnn|rn}[_{epochs}e][_nsa][_tvm]"
        )
        raise ValueError(f"{name!r} is no name of an experiment: {grammar}_{{or2|rr}}_{{seed}}s_v{{version}} is needed")
    words = found.groupdict()
    for what in ("source", "target"):
        checks.one_of(f"{what} in the name {name}", words[what], SHORT)
    numbers: dict[str, Any] = {what: int(words[what]) for what in ("base_examples", "inner_batch", "seed", "version")}
    numbers |= {what: int(words[what]) for what in ("target_size", "epochs") if words[what]}
    flags = {what: words[what] is not None for what in ("baseline", "step_study", "network_study")}
    one = Experiment(
        method=METHODS[words["method"]], learn={"ld": "labels", "dd": "images"}[words["learn"]],
        source=SHORT[words["source"]], target=SHORT[words["target"]], balanced=words["balanced"] == "bl",
        resnet=words["resnet"] == "rn", smoothing=0.1 if words["smoothing"] else 0.0, **numbers, **flags,
    )  # fmt: skip
    one = one if words["epochs"] else replace(one, epochs=_epochs(one))
    if one.name != name:
        raise ValueError(f"{name!r} is not as the published grammar writes it: {one.name!r} is")
    return one


def _epochs(one: Experiment) -> int:
    """The published number for an experiment of its size."""
    if one.network_study:
        return 400
    if one.target == "cifar100":
        return 800
    few, many = (100, 200) if one.target == "k49" else (400, 800)
    return many if one.base_examples > 100 else few


def published() -> list[Experiment]:
    """All 210, in the order in which they are published: 105 by ridge regression, then the same by second order."""
    return [one for method in ("ridge", "second-order") for one in _of_one_method(method)]


def _of_one_method(method: str) -> list[Experiment]:
    def one(n: int, source: str, target: str, inner: int = 0, **more: Any) -> Experiment:
        own: dict[str, Any] = {"balanced": source == target, "inner_batch": inner or BASE_EXAMPLES[n]}
        plain = Experiment(method=method, base_examples=n, source=source, target=target, **own, **more)
        return replace(plain, epochs=_epochs(plain))

    labels: list[dict[str, Any]] = [{}, {"baseline": True}, {"baseline": True, "smoothing": 0.1}]
    within, foreign_to = ("mnist", "cifar10"), [("emnist", "mnist"), ("emnist", "kmnist"), ("cub", "cifar10")]
    pair, few = [("mnist", "mnist"), ("emnist", "mnist")], (10, 20, 50, 100)
    sizes = (100, 500, 1000, 5000, 10_000, 20_000)
    asked = [("cifar10", "cifar10", {}), ("cifar10", "cifar10", labels[1]), ("cub", "cifar10", {})]
    return [
        *(one(n, name, name, **more) for more, name, n in product(labels, within, BASE_EXAMPLES)),
        *(one(n, *way) for way, n in product([*foreign_to, ("emnist", "k49")], BASE_EXAMPLES)),
        *(one(100, "cifar100", "cifar100", 100, **more) for more in labels),
        *(one(100, *way, seed=seed) for seed, way in product((0, 465, 5439, 89432), pair)),
        *(one(100, "emnist", "mnist", target_size=size) for size in sizes),
        *(one(100, *way, step_study=True) for way in pair),
        *(one(n, *way, network_study=True, **more) for (*way, more), n in product(asked, BASE_EXAMPLES)),
        *(one(n, name, name, learn="images") for name, n in product(within, few)),
    ]


_KEYS = {
    "balanced_source": "balanced", "baseline": "baseline", "batch_size": "batch", "epochs": "epochs",
    "inner_batch_size": "inner_batch", "inner_lr": "inner_rate", "label_smoothing": "smoothing",
    "num_base_examples": "base_examples", "num_steps_analysis": "step_study", "random_seed": "seed",
    "resnet": "resnet", "source": "source", "target": "target", "target_set_size": "target_size",
    "test_various_models": "network_study",
}  # fmt: skip
_DEAD = ("num_inner_steps", "print_freq", "verbose", "filepath_to_arguments_json_file")


def as_json(one: Experiment) -> dict[str, Any]:
    """The configuration of an experiment, as the published scripts read it."""
    values = {key: getattr(one, own) for key, own in _KEYS.items()} | {"expname": one.name, "num_inner_steps": 10}
    return values | {"label_smoothing": one.smoothing or 0}  # which they wrote as the integer


def write(one: Experiment, path: Path | str) -> None:
    """Write the configuration; of a published experiment, the bytes of its published file."""
    with atomic(Path(path), "w") as file:
        file.write(json.dumps(as_json(one), sort_keys=True))


def read(path: Path | str, method: str | None = None, learn: str = "labels") -> Experiment:
    """The experiment of a configuration file; what the file leaves out is the default of the published scripts.

    The script that is run is that of the name under "expname"; ``method`` and ``learn`` say it for a name outside the
    grammar. Warns of keys without effect. Raises ``ValueError`` for unknown keys, impossible values, and a name that
    says otherwise than the values.
    """
    held = foreign.json_object(path)
    unknown = sorted(set(held) - set(_KEYS) - set(_DEAD) - {"expname"})
    if unknown:
        raise ValueError(f"{path} has unknown keys {', '.join(unknown)}: allowed are {', '.join(_KEYS)} and expname")
    if dead := sorted(set(held) & set(_DEAD)):
        warnings.warn(f"{path}: {', '.join(dead)} changes nothing in the published scripts: left out", stacklevel=2)
    values = {own: held[key] for key, own in _KEYS.items() if key in held}
    name = held.get("expname", "")
    named = _GRAMMAR.fullmatch(name) if isinstance(name, str) else None
    if named is None and method is None:
        raise ValueError(f"{path} is named {name!r}, which does not say its method: method= must be given")
    try:
        said = parse(name) if named else Experiment(learn=learn)
        one = Experiment(**values, method=method or said.method, learn=said.learn, version=said.version)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if named and one.name != name:
        raise ValueError(f"{path} is named {name}, and what it holds {one.name}: they must agree")
    return one


@dataclass(frozen=True)
class Repetitions:
    """Repetitions of a test: accuracies (shares of 1), losses where known; the ``network`` "" is the experiment's."""

    steps: int
    accuracy: tuple[float, ...]
    loss: tuple[float, ...] = ()
    network: str = ""


@dataclass(frozen=True)
class Results:
    """What one experiment found; accuracies are shares of 1 (the file has errors in %).

    ``curves``: a value an epoch, by name, such as ``train_accuracy``, ``val_loss``. ``search``: of a baseline, the
    validation accuracy after so many steps. ``more``: whatever the published layout has no place for, as JSON.
    """

    tests: tuple[Repetitions, ...] = ()
    curves: dict[str, list[float]] = field(default_factory=dict)
    search: dict[int, float] = field(default_factory=dict)
    train_seconds: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


_CURVES = {
    "epoch": "epoch", "train_top_1_error": "train_accuracy", "train_loss": "train_loss", "val_loss": "val_loss",
    "val_top_1_error": "val_accuracy", "num_val_steps": "num_val_steps", "model_loss": "model_loss",
    "feat_loss": "feat_loss", "meta_loss": "meta_loss",
}  # fmt: skip
_ERRORS = ("train_top_1_error", "val_top_1_error")
_TESTS = ("test_top_1_error", "test_loss", "num_test_steps", "total_test_time")
_TEST = re.compile(rf"({'|'.join(_TESTS)})(_\w+)?")
_OTHERS = {"labels", "data", "base_example_labels", "total_train_time", "num_baseline_steps", "errors_list",
           "num_steps_used", "ddanalysis"}  # fmt: skip


def write_results(
    results: Results, path: Path | str, one: DistilledSet | None = None, base_labels: Sequence[int] = ()
) -> None:
    """Write results in the published layout, with the labels, or where it is a set of images with hard labels the
    pixels, of ``one``; ``base_labels`` are the classes of the base images in their own dataset.

    The published layout keeps no base images: the set's own file does. Raises ``ValueError`` for numbers that are not
    finite, tests of one network after several counts of steps on several networks, and images that are not as many of
    each class.
    """
    held: dict[str, list[Any]] = {key: [] for key in (*_CURVES, *_TESTS, "labels", "total_train_time")}
    for key, own in _CURVES.items():
        held[key] = [100 * (1 - v) if key in _ERRORS else v for v in results.curves.get(own, [])]
    for name in results.curves:
        checks.one_of("curve", name, _CURVES.values())
    held |= _tests(results.tests)
    if results.search:
        held["num_baseline_steps"] = [max(results.search, key=lambda steps: results.search[steps])]
        held["errors_list"] = [[100 * (1 - v) for v in results.search.values()]]
        held["num_steps_used"] = [list(results.search)]
    held["total_train_time"] = [] if results.train_seconds is None else [results.train_seconds]
    held["base_example_labels"] = [float(c) for c in base_labels]
    if one is not None:
        held |= {"labels": [one.y.tolist()]} if one.y.ndim == 2 else {"data": [_in_turn(one)]}
    try:
        text = json.dumps(held | ({"ddanalysis": results.more} if results.more else {}), allow_nan=False)
    except ValueError as error:
        raise ValueError(f"results for {path} cannot be written as JSON: {error}") from error
    with atomic(Path(path), "w") as file:
        file.write(text)


def _tests(tests: Sequence[Repetitions]) -> dict[str, list[Any]]:
    """The keys of the tests: numbers of one, a list for each count of steps, or keys for each network."""
    names = [t.network for t in tests]
    if 1 < len(set(names)) < len(names):
        raise ValueError("the tests have several networks and one of them twice: counts of steps or networks may vary")
    held: dict[str, list[Any]] = {}
    nested = len(tests) > 1 and len(set(names)) == 1
    theirs = {own: name for name, own in _NETWORKS.items()}
    for t in tests:
        end = f"_{theirs.get(t.network, t.network)}" if t.network else ""
        values: list[list[Any]] = [[100 * (1 - v) for v in t.accuracy], list(t.loss), [t.steps] * len(t.accuracy)]
        values = [[values[0]], [values[1]], [t.steps]] if nested else values
        for key, new in zip(_TESTS, values, strict=False):
            held.setdefault(key + end, []).extend(new)
    return held


def _in_turn(one: DistilledSet) -> list[Any]:
    """The pixels of a set with the classes 0, 1, ... in turn, as the published image distillation has them."""
    counts = torch.bincount(one.y, minlength=one.n_classes)
    if int(counts.min()) != int(counts.max()):
        raise ValueError(f"{one.name} has {counts.tolist()} images of its classes: as many of each are needed")
    rows = one.y.cpu().argsort(stable=True).view(one.n_classes, -1).T.flatten()
    return distilled.pixels(one)[rows.to(one.x.device)].tolist()


def read_results(path: Path | str) -> Results:
    """The numbers of a results file, the package's or a published one.

    Its labels or images are a distilled set: :func:`ddanalysis.layouts.read_label_distillation` reads it. Warns of
    unknown keys. Raises ``ValueError`` for a file in which numbers are no lists of numbers, or do not belong together.
    """
    held = foreign.json_object(path)
    tests = {found[0]: found[2] or "" for found in map(_TEST.fullmatch, sorted(held)) if found}
    if unknown := sorted(set(held) - set(_CURVES) - set(tests) - _OTHERS):
        warnings.warn(f"{path} has keys of no published layout, left out: {', '.join(unknown)}", stacklevel=2)
    try:
        curves = {own: _numbers(held[key], key in _ERRORS) for key, own in _CURVES.items() if held.get(key)}
        found = [t for end in dict.fromkeys(tests.values()) for t in _tested(held, end)]
        steps, errors = (held.get(key) or [[]] for key in ("num_steps_used", "errors_list"))
        search = dict(zip(map(int, _numbers(steps[-1])), _numbers(errors[-1], True), strict=True))
        seconds = _numbers(held.get("total_train_time", []))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no file of results: {error}") from error
    return Results(tuple(found), curves, search, seconds[-1] if seconds else None, held.get("ddanalysis", {}))


def _tested(held: Mapping[str, Any], end: str) -> list[Repetitions]:
    errors, losses, steps = (held.get(key + end, []) for key in _TESTS[:3])
    network = _NETWORKS.get(end[1:], end[1:])
    if errors and not isinstance(errors[0], list):
        if len(set(steps)) != 1:
            raise ValueError(f"the tests were after {steps} steps: one count is needed")
        errors, losses, steps = [errors], [losses], steps[:1]
    return [
        Repetitions(int(n), tuple(_numbers(e, True)), tuple(_numbers(v)), network)
        for n, e, v in zip(steps, errors, losses, strict=True)
    ]


def _numbers(values: Any, errors: bool = False) -> list[float]:
    """A list of numbers; of errors in % the accuracies."""
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"a list of numbers is needed, not {foreign.in_words(values)}")
    return [1 - v / 100 for v in values] if errors else values
