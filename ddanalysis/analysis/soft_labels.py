"""Studies of sets made step by step, with hard and with soft labels: how well networks do before and after them.

Studies are those of :mod:`soft_label_studies`. Sets and what networks learn of them are kept as artefacts, so that a
study that is changed costs what is new in it. The baselines of real images give rows of the same table.

Sources: Wang et al. 2018, *Dataset distillation*; Sucholutsky and Schonlau 2019, *Soft-label dataset distillation*.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from torch import Tensor

from ddanalysis import architectures, checks, imagenet, makers, published
from ddanalysis.analysis import held_out, real_baselines
from ddanalysis.analysis.held_out import Examiner, Replay
from ddanalysis.analysis.soft_label_studies import METHOD_NAMES, Variant, replayed_by, variants
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData
from ddanalysis.distill import METHODS
from ddanalysis.distill.dataset_distillation import step_order
from ddanalysis.distilled import DistilledSet
from ddanalysis.method_settings import SETTINGS
from ddanalysis.parameters import profile_methods
from ddanalysis.report import Run
from ddanalysis.store import Tensors

COLUMNS = [
    "dataset", "mode", "initialisation", "images", "labels", "label_init", "steps", "epochs", "optimiser", "set_seed",
    "network", "network_seed", "accuracy_before", "accuracy", "study", "variation", "replay", "order", "rate",
    "loss_before", "loss",
]  # fmt: skip
"""Of the table: accuracies are shares of 1 on all test images, ``epochs`` are passes, ``variation`` says what is varied
within a study, ``replay`` what is otherwise than while the set was learned, blank for nothing, ``rate`` is missing for
the set's own, ``network_seed`` is the network's number among those tested.
"""

ATTACK_COLUMNS = [
    "study", "dataset", "images", "steps", "set_seed", "network", "network_seed", "attacked", "target", "measure",
    "before", "after", "variation",
]  # fmt: skip

BASELINES = (*real_baselines.REAL, "optimised real", "nearest neighbours, random real", "nearest neighbours, k-means")
"""The published ones; nearest neighbours may be asked for among the images of every other one."""


@dataclass(frozen=True)
class Found:
    """What studies found: the sets that were made, their losses, and the tables (``COLUMNS``, ``ATTACK_COLUMNS``)."""

    sets: list[tuple[Variant, DistilledSet]]
    history: pd.DataFrame  # study, variation, dataset, method, ipc, set_seed, iteration, component, value
    table: pd.DataFrame
    attacks: pd.DataFrame


def soft_labels(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    studies: Mapping[str, Mapping[str, Any]],
    set_seeds: Sequence[int],
    test_networks: int = 200,
    compute: Compute = Compute(),
) -> Found:
    """Sets of every variant of every ``studies`` and seed, and ``test_networks`` networks before and after each.

    Networks are those that a set is for: the fixed ones themselves, else random or pretrained ones that it never met.
    Variants of the same settings share their sets. Raises ``ValueError`` before any work for a study that is wrong.
    """
    found = variants(studies, data.n_classes, profile_methods(run.root / "params", run.profile))
    checks.whole("test_networks", test_networks)
    if any(one.settings.get("networks") == "imagenet" for one in found):
        imagenet.check(architecture, data.root)
    examiner = Examiner(run, data, test_networks, compute)
    words = {variant.identity: variant.word for variant in reversed(found)}
    sets, histories, tables, attacks = [], [], [], []
    for variant in found:
        settings = {variant.method: variant.settings | {"ipc": [variant.ipc]}}
        made = makers.distilled_sets(
            run, data, architecture, [variant.method], [variant.ipc], variant.set_seeds or set_seeds, settings,
            study=words[variant.identity],
        )  # fmt: skip
        histories.append(made.history.assign(study=variant.study, variation=variant.variation))
        for one in made.sets:
            sets.append((variant, one))
            for rows, misled in _test(examiner, variant, one, architecture):
                tables.append(rows)
                attacks += [misled] if misled is not None else []
    history = pd.concat(histories, ignore_index=True)
    empty = pd.DataFrame(columns=ATTACK_COLUMNS)
    return Found(sets, history, _joined(tables), pd.concat(attacks, ignore_index=True) if attacks else empty)


def _test(
    examiner: Examiner, variant: Variant, one: DistilledSet, own: Architecture
) -> list[tuple[pd.DataFrame, pd.DataFrame | None]]:
    """The rows of a set under every replay on every architecture, and those of its attack if it is one."""
    data, tables, examiner = examiner.data, [], replace(examiner, met=not variant.held_out)
    settings = one.settings | ({"weights": variant.test_weights} if variant.test_weights else {})
    inner = replayed_by(one.settings.get("inner", "sgd"))
    built = [architectures.build(name, data.shape, data.n_classes) for name in variant.test_architectures]
    for a in built or [own]:
        for replays in variant.replays or ((Replay(optimiser=inner),),):
            replay = examiner.chosen([one], a, settings, one.seed, replays)
            found = examiner.outcome(one, a, settings, one.seed, replay)
            columns = {"study": variant.study, "variation": variant.variation, "mode": mode(one.settings)}
            columns |= {"network": a.name, "label_init": label_start(one.settings), "replay": in_words(replay, inner)}
            rows, attack = _rows(columns, one, one.settings, replay, found), one.settings.get("attack")
            tables.append((rows, _attack_rows(rows, data.classes, found, attack) if attack else None))
    return tables


def in_words(replay: Replay, inner: str = "sgd") -> str:
    """What a replay does otherwise than a set that is learned by ``inner``; blank for nothing."""
    words = [replay.optimiser] * (replay.optimiser != inner) + [f"order {replay.order}"] * (replay.order != "own")
    words += [f"{replay.passes} passes"] * (replay.passes > 0) + [f"rate {replay.rate:.6g}"] * (replay.rate > 0)
    return ", ".join(words + [f"batch {replay.batch}"] * (replay.batch > 0))


def mode(settings: Mapping[str, Any]) -> str:
    """What a set is for, by the settings that it was made with: "basic", "adaptation" or "attack"."""
    learned_else = bool(settings.get("source")) or settings.get("networks") == "imagenet"
    return "attack" if settings.get("attack") else "adaptation" if learned_else else "basic"


def published_accuracies(
    data: ImageData, architecture: Architecture, studies: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """The published accuracies on these data by ``architecture``, and by nearest neighbours, by the columns dataset,
    mode, initialisation, images and labels of the table, with published, published_deviation and certainty; of
    adaptation those from the ``studies``' sources.
    """
    known = published_name(data)
    near = [_learned_before(study, known) for study in studies.values()]  # "usps28" is a form of "usps"
    numbers = published.own_steps(known, data.n_classes).assign(dataset=data.name)
    ours = numbers["network"].map(lambda name: _is_network(name, data, architecture)).astype(bool)
    ours |= numbers["network"] == "nearest neighbours"
    numbers = numbers[ours & numbers["method"].isin([*METHOD_NAMES, *BASELINES])]
    numbers = numbers[numbers["pretrained_on"].map(lambda on: any(own.startswith(on) for own in near)).astype(bool)]
    kinds = numbers["pretrained_on"].map(lambda on: "attack" if on == known else "adaptation" if on else "basic")
    modes = kinds.where(numbers["method"].isin(METHOD_NAMES), numbers["method"])
    starts = numbers["initialisation"].mask(numbers["pretrained_on"] == "imagenet", "imagenet")
    starts = starts.mask(numbers["network"] == "nearest neighbours")
    return numbers.assign(
        mode=modes, initialisation=starts, labels=numbers["method"].map({"sldd": "soft"}).fillna("hard")
    )


def published_by_passes(data: ImageData, architecture: Architecture) -> pd.DataFrame:
    """The published accuracies on these data by ``architecture`` after so many passes: epochs, published,
    published_deviation and certainty.
    """
    numbers = published.load()
    numbers = numbers[(numbers["dataset"] == published_name(data)) & numbers["method"].isin(METHOD_NAMES)]
    numbers = numbers[numbers["network"].map(lambda name: _is_network(name, data, architecture)).astype(bool)]
    passes = numbers["quantity"].str.extract(r"^accuracy@(\d+)$")[0]
    numbers = numbers.assign(epochs=pd.to_numeric(passes)).dropna(subset="epochs").astype({"epochs": "int64"})
    return numbers.rename(columns={"value": "published", "deviation": "published_deviation"})[
        ["epochs", "published", "published_deviation", "certainty"]
    ]


def published_name(data: ImageData) -> str:
    """What published numbers call these data: USPS at the size of MNIST is USPS."""
    return data.name.removesuffix("28")


def _is_network(name: str, data: ImageData, architecture: Architecture) -> bool:
    return name in architectures.ZOO and architectures.build(name, data.shape, data.n_classes) == architecture


def _learned_before(study: Mapping[str, Any], dataset: str) -> str:
    """What networks of a study learned before, where they learned something."""
    return "imagenet" if study.get("networks") == "imagenet" else str(study.get("source", dataset))


def label_start(settings: Mapping[str, Any]) -> str:
    """How the labels of a set began, in words."""
    own = {"label_start": "one-hot", "label_shift": 0.0, "label_scale": 1.0, "label_softmax": False} | dict(settings)
    words = [str(own["label_start"])]
    words += [f"shift {own['label_shift']:g}"] if own["label_shift"] != 0 else []
    words += [f"scale {own['label_scale']:g}"] if own["label_scale"] != 1 else []
    return ", ".join(words + (["softmax"] if own["label_softmax"] else []))


def hard(one: DistilledSet) -> bool:
    """Whether the labels of a set are hard: class ids, or rows that are all one-hot."""
    if not one.y.is_floating_point():
        return True
    return bool(((one.y == 0) | (one.y == 1)).all() and (one.y.sum(1) == 1).all())


def _rows(
    columns: Mapping[str, Any], one: DistilledSet, settings: Mapping[str, Any], replay: Replay, found: Tensors
) -> pd.DataFrame:
    """The rows of a set that was tested: one for each network."""
    what = {
        "variation": "", "replay": "", "label_init": "one-hot", "dataset": one.dataset, "images": len(one),
        "set_seed": one.seed, "labels": "hard" if hard(one) else "soft", "initialisation": settings["networks"],
        "steps": settings["steps"], "epochs": replay.passes or settings["passes"], "optimiser": replay.optimiser,
        "order": replay.order, "rate": float(f"{replay.rate:.6g}") or float("nan"),
        "network_seed": range(len(found["accuracy"])),
    }  # fmt: skip
    measured = {name: found[name].double().numpy() for name in ("accuracy_before", "accuracy", "loss_before", "loss")}
    return pd.DataFrame(what | dict(columns) | measured)[COLUMNS].astype({"steps": "Int64", "epochs": "Int64"})


def _attack_rows(rows: pd.DataFrame, classes: Sequence[str], found: Tensors, attack: Sequence[int]) -> pd.DataFrame:
    """What an attack did to every network of ``rows``, a row a measure."""
    pair = (attack[0], attack[1])
    both = [held_out.attack_measures(found[name], pair) for name in ("counts_before", "counts")]
    keys = rows[[name for name in ATTACK_COLUMNS if name in rows]]
    tables = []
    for measure in ("all classes", "all classes, modified labels", *classes, "attacked as target"):
        before, after = (_measure(one, measure, classes) for one in both)
        tables.append(keys.assign(measure=measure, before=before.numpy(), after=after.numpy()))
    names = {"attacked": classes[pair[0]], "target": classes[pair[1]]}
    return pd.concat(tables, ignore_index=True).assign(**names)[ATTACK_COLUMNS]


def _measure(found: held_out.Attack, measure: str, classes: Sequence[str]) -> Tensor:
    if measure in classes:
        return found.by_class[:, classes.index(measure)]
    named = {"all classes": found.accuracy, "all classes, modified labels": found.modified}
    return named.get(measure, found.as_target)


def baselines(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    set_seeds: Sequence[int],
    test_networks: int = 200,
    ipc: int = 10,
    settings: Mapping[str, Any] | None = None,
    names: Sequence[str] = BASELINES,
    rates: Sequence[float] = real_baselines.RATES,
    neighbours: Sequence[tuple[int, float]] = real_baselines.NEIGHBOURS,
    candidates: int = 50,
    study: str = "baselines",
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Real images in place of distilled ones: rows as of :func:`soft_labels`, the baseline's name as their mode.

    ``settings`` are those of dataset distillation that it stands beside: they say the networks, and the steps and
    passes in which ``ipc`` images a class are walked. Nearest neighbours have no networks. Raises ``ValueError`` for
    unknown names and settings before any work.
    """
    known = baseline_settings(run, data, set_seeds, ipc, settings, names, candidates)
    examiner, tables = Examiner(run, data, test_networks, compute), []
    for name in names:
        plain = name.removeprefix("nearest neighbours, ")
        tried = rates if plain in (name, "optimised real") else rates[:1]
        sets = real_baselines.chosen_sets(examiner, plain, architecture, known, ipc, set_seeds, tried, candidates)
        if name != plain:
            tables.append(_neighbour_rows(examiner, study, name, sets, neighbours))
            continue
        for one in sets:
            replay = Replay(rate=float(one.learning_rates[0]))  # type: ignore[index]
            found, columns = examiner.outcome(one, architecture, known, one.seed, Replay()), {"mode": name}
            columns |= {"study": study, "network": architecture.name}
            tables.append(_rows(columns, one, known, replay, found))
    return _joined(tables)


def baseline_settings(
    run: Run,
    data: ImageData,
    set_seeds: Sequence[int],
    ipc: int = 10,
    settings: Mapping[str, Any] | None = None,
    names: Sequence[str] = BASELINES,
    candidates: int = 50,
    **others: Any,
) -> dict[str, Any]:
    """All settings of dataset distillation that :func:`baselines`, given the same, stand beside.

    Raises ``ValueError`` for what :func:`baselines` would refuse, before any work.
    """
    for name in others:
        checks.one_of("setting of the baseline", name, list(inspect.signature(baselines).parameters)[3:])
    recipe = profile_methods(run.root / "params", run.profile).get("dd", {})
    known = METHODS["dd"].settings({key: value for key, value in recipe.items() if key != "ipc"} | dict(settings or {}))
    for name, value in dict(settings or {}).items():
        SETTINGS["dd"][name](f"{name} of the baseline", value)
    near = [f"nearest neighbours, {name}" for name in (*real_baselines.REAL, "optimised real")]
    for name in names:
        checks.one_of("baseline", name, dict.fromkeys([*BASELINES, *near]))
    checks.whole("ipc of the baseline", ipc)
    optimised = any(name.endswith("optimised real") for name in names)
    checks.whole("candidates of the baseline", candidates, len(set_seeds) if optimised else 1)
    step_order(data.n_classes, ipc, known["steps"], known["passes"])
    return known


def _neighbour_rows(
    examiner: Examiner, study: str, name: str, sets: Sequence[DistilledSet], grid: Sequence[tuple[int, float]]
) -> pd.DataFrame:
    """A row for each set by whose images test images are classified."""
    neighbours, norm, accuracy = real_baselines.neighbour_accuracy(examiner, sets, grid)
    what = {
        "study": study, "dataset": examiner.data.name, "mode": name, "replay": "", "images": [len(one) for one in sets],
        "labels": "hard", "label_init": "one-hot", "set_seed": [one.seed for one in sets],
        "network": "nearest neighbours", "accuracy": accuracy.numpy(),
        "variation": f"neighbours={neighbours}, norm={norm:g}",
    }  # fmt: skip
    return pd.DataFrame(what)


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(tables, ignore_index=True).reindex(columns=COLUMNS)
    return table.astype({name: "Int64" for name in ("steps", "epochs", "network_seed")})
