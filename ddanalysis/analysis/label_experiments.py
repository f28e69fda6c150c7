"""The published experiments of label distillation, by name, as studies, and their results in the published layout.

The names, their grammar and the files are those of :mod:`ddanalysis.label_configs` (Bohdal et al. 2020, code).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ddanalysis import artefacts
from ddanalysis.analysis.label_distillation import OFFSETS, Studied, base_classes
from ddanalysis.architectures import Architecture
from ddanalysis.data import ImageData
from ddanalysis.label_configs import DATASETS, Experiment, Repetitions, Results, parse, write_results


def network_of(one: Experiment) -> str:
    """The network of an experiment: ResNet14 where its name says so, else AlexCifarNet for CIFAR and LeNet."""
    return "ResNet14" if one.resnet else "AlexCifarNet" if one.target.startswith("cifar") else "LeNet"


def published_study(one: Experiment) -> dict[str, Any]:
    """A published experiment as a study; its target and its network are not of a study."""
    algorithm = one.method if one.learn == "labels" else "images" if one.method == "second-order" else "images, ridge"
    if one.baseline:
        algorithm = ("smoothed labels" if one.smoothing else "true labels") + ", ridge" * (one.method == "ridge")
    found: dict[str, Any] = {"algorithm": algorithm, "base_examples": one.base_examples, "inner_batch": one.inner_batch}
    found |= {"batch_real": one.batch, "set_seeds": [one.seed]}
    found |= {} if one.baseline else {"iterations": one.iterations}
    if one.learn == "labels":
        own = {} if one.source == one.target else {"source": DATASETS[one.source]}
        found |= own | {"balanced": one.balanced, "overlap": True}
    if one.method == "second-order":
        found["inner_rate"] = one.inner_rate
    if one.family == "target sizes":
        found["target_size"] = one.target_size
    if one.step_study:
        found["step_offsets"] = list(OFFSETS)
    return found | ({"test_networks": ["AlexCifarNet", "LeNet", "ResNet14"]} if one.network_study else {})


def published_studies(names: Sequence[str], data: ImageData, architecture: Architecture) -> dict[str, dict[str, Any]]:
    """The studies of published experiments, by their ``names``.

    Raises ``ValueError`` for a name outside the grammar, and for an experiment of another target or network.
    """
    found = {}
    for name in names:
        one = parse(name)
        for what, asked, given in (
            ("dataset", DATASETS.get(one.target, one.target), data.name),
            ("learner", network_of(one), architecture.kind),
        ):
            if asked != given:
                raise ValueError(f"the experiment {name} has the {what} {asked}, and {what} is {given}")
        found[name] = published_study(one)
    return found


def results(table: pd.DataFrame, search: pd.DataFrame | None = None, history: pd.DataFrame | None = None) -> Results:
    """The rows of one set as :func:`label_configs.write_results` takes them, with those of its search, and of its
    ``history`` a value a validation.

    Raises ``ValueError`` for tests by several optimisers or of several sets, of which that layout knows nothing.
    """
    keys = ["test_network", "steps"]
    if table.duplicated([*keys, "repetition"]).any():
        raise ValueError("the table has several sets or optimisers: the published layout is for one set, and for Adam")
    several = table["test_network"].nunique() > 1
    tests = [
        Repetitions(int(steps), tuple(rows["accuracy"]), network=network if several else "")
        for (network, steps), rows in table.groupby(keys, sort=False)
    ]
    probed = {} if search is None else dict(zip(search["steps"], search["accuracy"], strict=True))
    curves = {} if history is None or history.empty else _curves(history)
    return Results(tuple(tests), curves, {int(steps): float(value) for steps, value in probed.items()})


def _curves(history: pd.DataFrame) -> dict[str, list[float]]:
    """The curves of the published layout at every validation: its iteration as the epoch, accuracies, losses, steps."""
    wide = history.pivot(index="iteration", columns="component", values="value")
    told = wide[["validation_accuracy", "validation_steps"]].diff().abs().sum(axis=1) > 0
    told |= wide.index == wide.index[-1]
    since = told[::-1].cumsum()[::-1]  # what a validation ends
    means = wide.groupby(since, sort=False)[["accuracy", "loss"]].mean()
    at = wide[told]
    return {
        "epoch": [float(iteration) for iteration in at.index],
        "train_accuracy": means["accuracy"].tolist(), "train_loss": means["loss"].tolist(),
        "val_accuracy": at["validation_accuracy"].tolist(), "num_val_steps": at["validation_steps"].tolist(),
    }  # fmt: skip


def write_experiments(found: Studied, names: Sequence[str], data: ImageData, folder: Path) -> list[Path]:
    """The results of the experiments among the studies of ``found``, each as ``<name>.json`` in ``folder``.

    Errors are in % there, as published; of what a published file has, test losses and times are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        one = next(one for case, one in found.sets if case.study == name)
        table, search = (rows[rows["study"] == name] for rows in (found.table, found.search))
        own = results(table, search, found.recorded.get(artefacts.fingerprint(one)))
        write_results(own, folder / f"{name}.json", one, base_classes(data, one)[0])
    return [folder / f"{name}.json" for name in names]
