"""Studies of sets made step by step as parameters of a notebook: what is made, how it is tested, what cannot be.

A study is a dict: the "method" ("dd" or "sldd"), "ipc", any settings of the method, and "vary", {setting: values}, all
combinations of which are made; "set_seeds", in place of those of all studies.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ddanalysis import architectures, checks, rules, store
from ddanalysis.analysis.held_out import Replay
from ddanalysis.distill import METHODS, label_starts
from ddanalysis.distill.dataset_distillation import step_order
from ddanalysis.distill.dd_settings import Settings
from ddanalysis.method_settings import SETTINGS

METHOD_NAMES = ("dd", "sldd")
PLACES = ("method", "ipc", "set_seeds", "test_architectures", "test_weights", "held_out", "replays")
"""What a study says beside the settings of its method, and "vary"."""


@dataclass(frozen=True)
class Variant:
    """One set to be made for each seed, and how it is tested; ``varied`` is what a study varies, as it is here.

    Each of ``replays`` is a choice among one or more, on training images; none is the way the set was learned.
    ``test_architectures`` are names of the zoo, none for the set's own; ``test_weights`` is the law by which networks
    that are tested begin, "" for the set's own; ``held_out`` is whether they are networks that the set never met (fixed
    ones are met always); ``set_seeds`` none for those of all studies.
    """

    study: str
    method: str
    ipc: int
    settings: dict[str, Any]
    varied: dict[str, Any] = field(default_factory=dict)
    replays: tuple[tuple[Replay, ...], ...] = ()
    test_architectures: tuple[str, ...] = ()
    test_weights: str = ""
    held_out: bool = True
    set_seeds: tuple[int, ...] = ()

    @property
    def variation(self) -> str:
        """What is varied, in words."""
        return ", ".join(f"{name}={value}" for name, value in self.varied.items())

    @property
    def word(self) -> str:
        """What the files of its sets are called by."""
        return "_".join([self.study, *(f"{name}-{_as_word(value)}" for name, value in self.varied.items())])

    @property
    def identity(self) -> str:
        """What decides its sets."""
        return store.canonical({"": [self.method, self.ipc, METHODS[self.method].settings(dict(self.settings))]})


def _as_word(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", str(value)).strip("-") if not isinstance(value, float) else f"{value:g}"


def variants(
    studies: Mapping[str, Mapping[str, Any]], n_classes: int, recipes: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Variant]:
    """Every variant of every study, the last of what is varied fastest.

    ``recipes`` are settings of each method that hold where a study says nothing. Raises ``ValueError`` that names the
    study for anything unknown or impossible that can be seen before any work.
    """
    if not studies:
        raise ValueError("no studies were given: at least 1 is needed")
    found = [variant for name, study in studies.items() for variant in _crossed(name, study, recipes or {})]
    for one in found:
        _check(one, n_classes)
    for name, study in itertools.groupby(sorted(found, key=lambda v: v.word), key=lambda v: v.word):
        if len({v.identity for v in study}) > 1:
            raise ValueError(f"two studies would keep different sets as {name}: rename one of them")
    return found


def _crossed(name: str, study: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise ValueError(f"a study is called {name!r}: letters, digits and - alone are allowed, since it names files")
    if not isinstance(study, Mapping) or not isinstance(study.get("vary", {}), Mapping):
        raise ValueError(f"the study {name} is {study!r}: a dict is needed, and so is its vary")
    vary = dict(study.get("vary", {}))
    for key, values in vary.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"vary of the study {name} has {key} = {values!r}: a list of values is needed")
        if key in ("set_seeds", "test_architectures", "replays"):
            raise ValueError(f"vary of the study {name} has {key}: all that are listed in the study itself are tested")
    plain = {key: value for key, value in study.items() if key != "vary"}
    chosen = (dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values()))
    return [_variant(name, plain | one, one, recipes) for one in chosen]


def _variant(
    name: str, own: Mapping[str, Any], varied: dict[str, Any], recipes: Mapping[str, Mapping[str, Any]]
) -> Variant:
    method, ipc = own.get("method", "dd"), own.get("ipc", 1)
    checks.one_of(f"method of the study {name}", method, METHOD_NAMES)
    checks.whole(f"ipc of the study {name}", ipc)
    for key in own:
        checks.one_of(f"setting of the study {name}", key, [*PLACES, "vary", *METHODS[method].settings({})])
    settings = {key: value for key, value in own.items() if key not in PLACES}
    settings = {key: value for key, value in recipes.get(method, {}).items() if key != "ipc"} | settings
    inner = replayed_by(METHODS[method].settings(dict(settings))["inner"])
    replays = tuple(_choice(name, inner, one) for one in own.get("replays", ()))
    networks = tuple(own.get("test_architectures", ()))
    for network in networks:
        checks.one_of(f"test architecture of the study {name}", network, architectures.ZOO)
    seeds = tuple(own.get("set_seeds", ()))
    for seed in seeds:
        checks.whole(f"set seed of the study {name}", seed, 0)
    weights, held_out = own.get("test_weights", ""), own.get("held_out", True)
    return Variant(name, method, ipc, settings, varied, replays, networks, weights, held_out, seeds)


def replayed_by(inner: str) -> str:
    """The optimiser of a replay that is nearest to that of distillation: its forward step is the same Adam's."""
    return "adam" if inner.startswith("adam") else inner


def _check(one: Variant, n_classes: int) -> None:
    """Refuse settings that could only fail hours later, when the sets before these are made."""
    try:
        for name, value in one.settings.items():
            SETTINGS[one.method][name](name, value)
        rules.flag("held_out", one.held_out)
        own = Settings(**METHODS[one.method].settings(dict(one.settings)))
        if own.networks == "pretrained" and own.at_once > own.pretrained:
            raise ValueError(f"at_once is {own.at_once}: only {own.pretrained} networks are pretrained")
        if own.label_start == "file" and not Path(own.label_file).is_file():
            raise ValueError(f"label_file is {own.label_file!r}, and no file is there")
        step_order(n_classes, one.ipc, own.steps, own.passes)
        checks.one_of("label_start", own.label_start, [*label_starts.STARTS, "given"])
        if one.test_weights:
            checks.one_of("test_weights", one.test_weights, rules.WEIGHTS)
            if own.networks != "random":
                raise ValueError(
                    f"test_weights is {one.test_weights!r}, for networks that are 'random', not {own.networks!r}"
                )
        for what, classes in (("label_classes", own.label_classes), ("attack", own.attack)):
            for c in classes or ():
                checks.one_of(f"class in {what}", c, range(n_classes))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the study {one.study} is impossible: {error}") from error


def _choice(name: str, inner: str, given: Mapping[str, Any]) -> tuple[Replay, ...]:
    """The replays that a dict stands for: one for each of its rates."""
    if not isinstance(given, Mapping):
        raise ValueError(f"replays of the study {name} have {given!r}: a dict is needed")
    for key in given:
        checks.one_of(f"replay setting of the study {name}", key, [f.name for f in fields(Replay)])
    rates = given.get("rate", 0.0)
    rates = rates if isinstance(rates, (list, tuple)) and rates else [rates]
    return tuple(Replay(**({"optimiser": inner} | dict(given) | {"rate": rate})) for rate in rates)
