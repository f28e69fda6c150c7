"""Studies of label distillation as parameters of a notebook: what is made, how it is tested, what cannot be."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ddanalysis import artefacts, checks, store
from ddanalysis.architectures import ZOO
from ddanalysis.distill import METHODS

LEARNED = {
    "second-order": ("ld", "linear"),
    "ridge": ("ld_ridge", "ridge"),
    "images": ("ld_images", "linear"),
    "images, ridge": ("ld_images_ridge", "ridge"),
}
"""Algorithms that learn: their method, and the head of the networks that are trained on what they made."""

BASELINES = {
    "true labels": (0.0, "linear"),
    "smoothed labels": (0.1, "linear"),
    "true labels, ridge": (0.0, "ridge"),
    "smoothed labels, ridge": (0.1, "ridge"),
}
"""Baselines: their smoothing and their head."""

RATES = {
    "adam": (0.0003, 0.001, 0.003, 0.01),
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3),
    "momentum": (0.001, 0.003, 0.01, 0.03, 0.1),
}
"""The rates among which the best on validation images is taken, by optimiser; momentum is 0.9."""

_TESTS = ("test_networks", "test_optimisers", "step_offsets", "set_seeds")


@dataclass(frozen=True)
class Case:
    """One algorithm with one number of base examples and one choice of settings, and how it is tested."""

    study: str
    algorithm: str
    base_examples: int
    settings: dict[str, Any] = field(default_factory=dict)  # of the method, as far as the study says them
    variant: str = ""  # what of it is varied, in words, where no column of the table says it
    test_networks: tuple[str, ...] = ()  # () is the network the set was made with
    test_optimisers: tuple[str, ...] = ()  # () is Adam at the rate of the set
    step_offsets: tuple[int, ...] = (0,)
    set_seeds: tuple[int, ...] = ()  # () is those of all studies

    @property
    def method(self) -> str:
        """The method whose settings it has: of a baseline, that of label distillation with the same head."""
        ways = {"linear": "ld", "ridge": "ld_ridge"}
        return LEARNED[self.algorithm][0] if self.algorithm in LEARNED else ways[self.head]

    @property
    def head(self) -> str:
        """Of the networks that are tested."""
        return (LEARNED | BASELINES)[self.algorithm][1]  # type: ignore[operator, return-value]

    @property
    def name(self) -> str:
        """What its figures are called by."""
        words = [self.study, self.algorithm, self.variant, str(self.base_examples)]
        return re.sub("[^A-Za-z0-9._-]+", "_", "_".join(filter(None, words)))

    @property
    def word(self) -> str:
        """Tells files of sets with other settings apart; studies with the same settings share a set."""
        return artefacts.digest({}, store.canonical(self.settings))[:8] if self.settings else ""


def cases(study: str, given: Mapping[str, Any], classes: int) -> list[Case]:
    """The cases of one study: every combination of the settings it varies, the last of them fastest.

    ``given`` has an "algorithm" (:data:`LEARNED` or :data:`BASELINES`), the number of "base_examples", settings of
    label distillation, such as "source", that differ from the profile's, and in "vary" lists of values for any of
    these. A baseline takes of the settings those that decide its base images. It is tested on "test_networks" (names;
    none is its own), by "test_optimisers" (of :data:`RATES`; none is Adam at the rate of the set) and after so many
    more steps than its own, "step_offsets". "set_seeds" may be its own too. Raises ``ValueError`` for anything unknown
    or impossible.
    """
    given = dict(given)
    varied = given.pop("vary", {})
    tests = {key: tuple(_list(study, key, given.pop(key))) for key in _TESTS if key in given}
    for name in tests.get("test_networks", ()):
        checks.one_of(f"test network of {study}", name, ZOO)
    for name in tests.get("test_optimisers", ()):
        checks.one_of(f"test optimiser of {study}", name, RATES)
    for offset in tests.get("step_offsets", ()):
        checks.whole(f"step offset of {study}", offset, -(10**9))
    for seed in tests.get("set_seeds", ()):
        checks.whole(f"set seed of {study}", seed, 0)
    if not isinstance(varied, Mapping) or set(varied) & set(_TESTS):
        raise ValueError(f"vary of {study} is {varied!r}: lists of values for settings, not for tests, are needed")
    values = [_list(study, key, of) for key, of in varied.items()]
    return [_case(study, given, dict(zip(varied, chosen, strict=True)), tests, classes) for chosen in product(*values)]


def _case(study: str, given: Mapping[str, Any], varied: dict[str, Any], tests: dict[str, Any], classes: int) -> Case:
    settings = {**given, **varied}
    for key in ("algorithm", "base_examples"):
        if key not in settings:
            raise ValueError(f"the study {study} has no {key}: it is needed, or values of it in vary")
    algorithm, n = settings.pop("algorithm"), settings.pop("base_examples")
    checks.one_of(f"algorithm of {study}", algorithm, (*LEARNED, *BASELINES))
    checks.whole(f"base_examples of {study}", n)
    if n % classes:
        if "images" in algorithm or settings.get("balanced", True):
            raise ValueError(f"base_examples of {study} is {n}: a multiple of the {classes} classes is needed")
        settings["base_examples"] = n
    if algorithm in BASELINES and settings.get("source") == "noise":
        raise ValueError(f"algorithm of {study} is {algorithm!r} and its source noise, which has no labels")
    said = ["algorithm", "base_examples", "source", "target_size"] + ["iterations"] * (algorithm in LEARNED)
    variant = ", ".join(f"{key} {value}" for key, value in varied.items() if key not in said)
    case = Case(study, algorithm, n, settings, variant, **tests)
    METHODS[case.method].settings(settings)
    return case


def _list(study: str, key: str, values: Any) -> list[Any]:
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{key} of {study} is {values!r}: a list of values is needed")
    return list(values)
