"""How much of an accuracy is the images' own? The label- and augmentation-robust scores of DD-Ranking (2025).

Soft labels and augmentation raise the accuracy of random real images too, so a set is scored by what it adds to them::

    HLR = acc(all real data, hard labels) - acc(set, hard labels)          hard-label recovery: the lower the better
    IOR = acc(set, own labels) - acc(random images, own labels)            improvement over random
    LRS = scaled(w IOR - (1 - w) HLR)                                      label-robust score
    ARS = scaled(g IOR under augmentation + (1 - g) IOR without)           augmentation-robust score
    scaled(a) = (exp(a) - exp(-1)) / (exp(1) - exp(-1))

Accuracies are fractions in [0, 1]; then a lies in [-1, 1] and a score in [0, 1]. The published code puts in percent: 5
points below random and real data become a score of -0.15, 5 points above 63. It also takes learning rate and epoch that
are best on the test images, and enters every hard-label score twice; here accuracies are taken as they are given.

A set is compared with the random images of its seed, so that an interval over sets (:mod:`ddanalysis.intervals`) counts
the variation of both.
"""

import numpy as np
import pandas as pd

from ddanalysis import checks

KEYS = ["dataset", "method", "ipc", "network", "protocol", "set_seed"]
"""What tells one set under one protocol from another in the tidy table of accuracies."""


def label_robust(
    table: pd.DataFrame,
    real: pd.DataFrame,
    hard: pd.DataFrame | None = None,
    baseline: str = "random",
    weight: float = 0.5,
) -> pd.DataFrame:
    """Label-robust scores: a row for every set and protocol of ``table``, of ``KEYS``, ``hard_label_recovery``,
    ``improvement_over_random`` and ``label_robust_score``.

    ``table`` is the tidy one (``KEYS``, accuracy), with a set of the method ``baseline`` for every dataset, ipc,
    network, protocol and set_seed in it. ``real`` (dataset, network, accuracy) is of networks trained on all real data.
    ``hard`` is as ``table``, of the same sets under hard labels, for those whose own are soft. Several rows of one set,
    its networks, are averaged. Raises ``ValueError`` for a missing partner and for accuracies that are no fractions.
    """
    _weight(weight)
    own = _over_baseline(_means(table, KEYS, "the table"), baseline)
    full = _means(real, ["dataset", "network"], "the table of real data")
    full = own.merge(full, on=["dataset", "network"], how="left", suffixes=("", "_real"))
    _complete(full, "accuracy_real", "no accuracy of networks trained on all real data")
    accuracy = own["accuracy"]
    if hard is not None:
        theirs = _means(hard, KEYS, "the table of hard labels")
        both = theirs.merge(own[[*KEYS, "accuracy"]], on=KEYS, how="left", suffixes=("", "_own"))
        _complete(both, "accuracy_own", "an accuracy with hard labels and none with its own")
        found = own[KEYS].merge(theirs, on=KEYS, how="left")["accuracy"]
        accuracy = found.fillna(accuracy)
    recovery, improvement = full["accuracy_real"] - accuracy, own["improvement_over_random"]
    return own[KEYS].assign(
        hard_label_recovery=recovery,
        improvement_over_random=improvement,
        label_robust_score=_scaled(weight * improvement - (1 - weight) * recovery),
    )


def augmentation_robust(
    table: pd.DataFrame, augmented: str, plain: str, baseline: str = "random", weight: float = 0.5
) -> pd.DataFrame:
    """Augmentation-robust scores: a row for every set of ``table``, of ``KEYS`` without the protocol,
    ``improvement_augmented``, ``improvement_plain`` and ``augmentation_robust_score``.

    ``augmented`` and ``plain`` are protocols that differ in augmentation alone, such as "clom-1000-dsa" and
    "clom-1000"; ``table`` as in :func:`label_robust`. Raises ``ValueError`` where a set lacks one of them, a partner
    is missing, or accuracies are no fractions.
    """
    _weight(weight)
    found = _over_baseline(_means(table, KEYS, "the table"), baseline)
    for protocol in (augmented, plain):
        checks.one_of("protocol of the table", protocol, found["protocol"].unique())
    keys, value = [key for key in KEYS if key != "protocol"], "improvement_over_random"
    sides = [found.loc[found["protocol"] == p, [*keys, value]] for p in (augmented, plain)]
    both = sides[0].merge(sides[1], on=keys, how="outer", suffixes=("_a", "_p"))
    for suffix, protocol in (("_a", augmented), ("_p", plain)):
        _complete(both, value + suffix, f"no accuracy under {protocol}")
    a, p = both[f"{value}_a"], both[f"{value}_p"]
    return both[keys].assign(
        improvement_augmented=a,
        improvement_plain=p,
        augmentation_robust_score=_scaled(weight * a + (1 - weight) * p),
    )


def _scaled(values: pd.Series) -> pd.Series:
    """Numbers from -1 to 1 as scores from 0 to 1."""
    return (np.exp(values) - np.exp(-1)) / (np.exp(1) - np.exp(-1))


def _weight(weight: float) -> None:
    checks.at_least("weight", weight, 0)
    if weight > 1:
        raise ValueError(f"weight is {weight}: it must be a number from 0 to 1")


def _means(table: pd.DataFrame, keys: list[str], what: str) -> pd.DataFrame:
    """Mean accuracy of every level of ``keys``; ``ValueError`` unless all accuracies are fractions."""
    if missing := [column for column in (*keys, "accuracy") if column not in table]:
        raise ValueError(f"{what} lacks {', '.join(missing)}: its columns are {', '.join(map(str, table.columns))}")
    wrong = table.loc[~table["accuracy"].between(0, 1), "accuracy"]
    if len(wrong):
        raise ValueError(f"{what} has the accuracy {wrong.iloc[0]}: fractions from 0 to 1 are needed, not percent")
    return table.groupby(keys, sort=False, dropna=False)["accuracy"].mean().reset_index()


def _over_baseline(means: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Accuracies and ``improvement_over_random``, over the set of the method ``baseline`` of the same seed."""
    if baseline not in set(means["method"]):
        raise ValueError(f"the table has no sets of {baseline!r}, the baseline that improvement is over")
    partner = [key for key in KEYS if key != "method"]
    theirs = means.loc[means["method"] == baseline, [*partner, "accuracy"]]
    both = means.merge(theirs, on=partner, how="left", suffixes=("", "_baseline"))
    _complete(both, "accuracy_baseline", f"no set of {baseline} beside it")
    return means.assign(improvement_over_random=both["accuracy"] - both["accuracy_baseline"])


def _complete(table: pd.DataFrame, column: str, lack: str) -> None:
    """``ValueError`` that names the first row without a value."""
    missing = table[table[column].isna()]
    if len(missing):
        row = missing.iloc[0]
        named = ", ".join(f"{key} {row[key]}" for key in KEYS if key in row)
        raise ValueError(f"{named} has {lack}")
