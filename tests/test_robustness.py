"""Robust scores by hand, at their extremes, and what is refused."""

import itertools
import math

import pandas as pd
import pytest

from ddanalysis import intervals
from ddanalysis.analysis.robustness import KEYS, augmentation_robust, label_robust


def rows(method, values, protocol="dc-300", ipc=1):
    """Accuracies of sets (seeds 0, 1, ...), each a list over its networks."""
    what = {"dataset": "toy", "method": method, "ipc": ipc, "network": "ConvNet", "protocol": protocol}
    return pd.DataFrame(
        what | {"set_seed": s, "network_seed": k, "accuracy": value}
        for s, own in enumerate(values)
        for k, value in enumerate(own)
    )


def real(*values):
    return pd.DataFrame({"dataset": "toy", "network": "ConvNet", "accuracy": list(values)})


def scaled(a):
    return (math.exp(a) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def test_label_robust_scores_by_hand():
    table = pd.concat([rows("dm", [[0.5, 0.7], [0.8, 0.8]]), rows("random", [[0.4, 0.2], [0.5, 0.5]])])
    found = label_robust(table, real(0.9, 1.0))
    assert list(found.columns) == [*KEYS, "hard_label_recovery", "improvement_over_random", "label_robust_score"]
    dm = found[found["method"] == "dm"]
    assert dm["hard_label_recovery"].tolist() == pytest.approx([0.35, 0.15])
    assert dm["improvement_over_random"].tolist() == pytest.approx([0.3, 0.3])
    assert dm["label_robust_score"].tolist() == pytest.approx([scaled(-0.025), scaled(0.075)])
    random = found[found["method"] == "random"]
    assert random["improvement_over_random"].tolist() == [0, 0]
    weighted = label_robust(table, real(0.95), weight=0.8)
    assert weighted["label_robust_score"].iloc[0] == pytest.approx(scaled(0.8 * 0.3 - 0.2 * 0.35))
    assert len(intervals.summarise(found, ["method"], "label_robust_score", ["set_seed"])) == 2


def test_hard_labels_decide_the_recovery_of_sets_whose_own_are_soft():
    table = pd.concat([rows("soft", [[0.9]]), rows("dm", [[0.6]]), rows("random", [[0.4]])])
    found = label_robust(table, real(1.0), hard=rows("soft", [[0.3, 0.5]])).set_index("method")
    assert found["hard_label_recovery"].to_dict() == pytest.approx({"soft": 0.6, "dm": 0.4, "random": 0.6})
    assert found["improvement_over_random"].to_dict() == pytest.approx({"soft": 0.5, "dm": 0.2, "random": 0.0})


def test_protocols_and_ipc_have_their_own_baseline():
    cases = list(itertools.product(("dc-300", "dsa-1000"), (1, 10)))
    table = pd.concat(
        [rows("dm", [[0.5]], p, ipc) for p, ipc in cases]
        + [rows("random", [[k / 10]], p, ipc) for k, (p, ipc) in enumerate(cases)]
    )
    found = label_robust(table, real(1.0))
    assert found["improvement_over_random"][:4].tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_augmentation_robust_scores_by_hand():
    table = pd.concat(
        [
            rows("dm", [[0.5, 0.7]], "dsa-1000"), rows("random", [[0.5]], "dsa-1000"),
            rows("dm", [[0.4]], "dc-1000"), rows("random", [[0.6]], "dc-1000"),
        ]
    )  # fmt: skip
    found = augmentation_robust(table, "dsa-1000", "dc-1000").set_index("method")
    assert "protocol" not in found and found.index.tolist() == ["dm", "random"]
    assert found.loc["dm", "improvement_augmented"] == pytest.approx(0.1)
    assert found.loc["dm", "improvement_plain"] == pytest.approx(-0.2)
    assert found.loc["dm", "augmentation_robust_score"] == pytest.approx(scaled(-0.05))
    assert found.loc["random", "augmentation_robust_score"] == pytest.approx(scaled(0))
    one_sided = augmentation_robust(table, "dsa-1000", "dc-1000", weight=1).set_index("method")
    assert one_sided.loc["dm", "augmentation_robust_score"] == pytest.approx(scaled(0.1))


@pytest.mark.parametrize("weight", [0, 0.5, 1])
@pytest.mark.parametrize(("own", "random", "full"), list(itertools.product((0.0, 1.0), repeat=3)))
def test_scores_lie_between_0_and_1(own, random, full, weight):
    table = pd.concat(
        rows(m, [[v]], p) for m, v in (("dm", own), ("random", random)) for p in ("clom-1000", "clom-1000-dsa")
    )
    label = label_robust(table, real(full), weight=weight)["label_robust_score"]
    augmented = augmentation_robust(table, "clom-1000-dsa", "clom-1000", weight=weight)["augmentation_robust_score"]
    for scores in (label, augmented):
        assert scores.between(-1e-12, 1 + 1e-12).all()
    if own != random == full:  # the best and the worst that can be
        assert label.iloc[0] == pytest.approx(own) == augmented.iloc[0]


def test_percent_would_leave_the_range_and_is_refused():
    assert scaled(-5) == pytest.approx(-0.15, abs=0.005) and scaled(5) == pytest.approx(63, abs=0.1)
    table = pd.concat([rows("dm", [[0.5]]), rows("random", [[0.4]])])
    percent = table.assign(accuracy=100 * table["accuracy"])
    for call in (
        lambda: label_robust(percent, real(0.9)),
        lambda: label_robust(table, real(90.0)),
        lambda: label_robust(table, real(0.9), hard=percent),
        lambda: augmentation_robust(percent, "dc-300", "dc-300"),
    ):
        with pytest.raises(ValueError, match="fractions from 0 to 1 are needed, not percent"):
            call()


GOOD = pd.concat([rows("dm", [[0.5]]), rows("random", [[0.4]])])
BAD = [
    (lambda: label_robust(GOOD.drop(columns="ipc"), real(0.9)), "the table lacks ipc"),
    (lambda: label_robust(GOOD, real(0.9).drop(columns="network")), "real data lacks network"),
    (lambda: label_robust(GOOD, real(0.9).assign(network="MLP")), "has no accuracy of networks trained on all real"),
    (lambda: label_robust(rows("dm", [[0.5]]), real(0.9)), "no sets of 'random'"),
    (lambda: label_robust(pd.concat([GOOD, rows("dc", [[0], [1]])]), real(1)), "dc.* set_seed 1 has no set of random"),
    (lambda: label_robust(GOOD, real(0.9), hard=rows("mtt", [[0.4]])), "mtt.* with hard labels and none with its own"),
    (lambda: label_robust(GOOD, real(0.9), weight=1.5), "weight is 1.5"),
    (lambda: label_robust(GOOD, real(0.9), weight=-1), "weight is -1"),
    (lambda: label_robust(GOOD, real(math.nan)), "fractions"),
    (lambda: augmentation_robust(GOOD, "dsa-1000", "dc-300"), "unknown protocol of the table 'dsa-1000'"),
    (
        lambda: augmentation_robust(pd.concat([GOOD, rows("random", [[0.4]], "dsa-1000")]), "dsa-1000", "dc-300"),
        "dm.* has no accuracy under dsa-1000",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
