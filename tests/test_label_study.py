"""Studies of label distillation: what they cross, what they choose and on which images, and what they measure."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from test_distill import toy_data

from ddanalysis import data, label_configs
from ddanalysis.analysis import label_distillation as study
from ddanalysis.analysis.label_distillation import cases, label_distillation, published_study
from ddanalysis.architectures import build
from ddanalysis.distill import METHODS, Job
from ddanalysis.distill.base_images import base_images, split
from ddanalysis.distill.label_learners import learn
from ddanalysis.label_configs import Repetitions, published
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed

DATA = toy_data(per_class=20)
NETWORK = build("MLP", DATA.shape, 3, hidden=(16,))
SHORT = {"iterations": 6, "batch_real": 20, "validate_every": 3, "window": 2, "validation": 15}
TRUE = {"algorithm": "true labels", "base_examples": 6, "validation": 15}


@pytest.fixture
def run(tmp_path):
    return Run("10_label_distillation", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    monkeypatch.setattr(study, "probes", lambda n: [4, 8, 30, 40])


PROBES = study.probes


def found(run, studies, seeds=(0,), of=DATA, network=NETWORK):
    return label_distillation(run, of, network, studies, seeds, repetitions=3, searchers=2)


# -------------------------------------------------------------------------------------------------------------- rules


def test_probes_are_the_published_ones():
    few = [step + 1 for step in range(1000) if step % 50 == 49 or step in (9, 24, 74)]
    assert PROBES(10) == PROBES(100) == few and len(few) == 23
    assert PROBES(101) == PROBES(500) == [10, 25, 75, 101, 201, 301, 501, 701, 1001, 1201, 1501, 1701]


@pytest.mark.parametrize(
    ("steps", "counts"),
    [(245, [195, 225, 235, 245, 255, 265, 295, 345]), (50, [30, 40, 50, 60, 70, 100, 150]), (1, [1, 11, 21, 51, 101])],
)
def test_offsets_never_ask_for_no_steps(steps, counts):
    assert study.offset_steps(steps, study.OFFSETS) == counts


def test_smoothed_labels_are_probabilities():
    y = F.one_hot(torch.tensor([0, 2, 2, 1]), 4).float()
    smooth = study.smoothed(y, 0.1)
    assert torch.allclose(smooth.sum(1), torch.ones(4))
    assert torch.allclose(smooth[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))
    assert torch.equal(study.smoothed(y, 0.0), y)


def test_a_study_crosses_what_it_varies():
    given = {"vary": {"algorithm": ["ridge", "true labels"], "base_examples": [3, 6], "start": ["uniform", "true"]}}
    made = cases("a", given | {"iterations": 6, "step_offsets": [0, 10], "test_networks": ["MLP"]}, 3)
    assert [(c.algorithm, c.base_examples, c.settings["start"]) for c in made] == [
        (a, n, s) for a in ("ridge", "true labels") for n in (3, 6) for s in ("uniform", "true")
    ]
    assert {c.method for c in made} == {"ld_ridge", "ld"} and [c.head for c in made] == ["ridge"] * 4 + ["linear"] * 4
    assert all(c.settings["iterations"] == 6 and set(c.settings) == {"iterations", "start"} for c in made)
    assert {c.variant for c in made} == {"start uniform", "start true"}
    assert all(c.step_offsets == (0, 10) and c.test_networks == ("MLP",) and c.test_optimisers == () for c in made)
    assert len({c.word for c in made}) == 2 and made[0].word == made[2].word  # one word a choice of settings
    assert cases("b", TRUE | {"validation": None}, 3)[0].word != cases("b", {**TRUE}, 3)[0].word
    assert cases("b", {"algorithm": "images", "base_examples": 3}, 3)[0].word == ""


@pytest.mark.parametrize("one", published(), ids=lambda one: one.name)
def test_every_published_experiment_is_a_study(one):
    given, classes = published_study(one), {"cifar100": 100, "k49": 49}.get(one.target, 10)
    (case,) = cases("x", given, classes)
    assert case.base_examples == one.base_examples
    assert case.settings.get("base_examples") == (one.base_examples if one.base_examples % classes else None)
    assert case.head == ("ridge" if one.method == "ridge" else "linear")
    assert (case.algorithm in study.BASELINES) == one.baseline and ("images" in case.algorithm) == (
        one.learn == "images"
    )
    assert case.set_seeds == (one.seed,) and case.settings["inner_batch"] == one.inner_batch
    assert case.settings.get("iterations") == (None if one.baseline else one.iterations)
    assert len(case.step_offsets) == (8 if one.step_study else 1)
    assert case.settings.get("source") == (None if one.source == one.target else label_configs.DATASETS[one.source])


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"algorithm": "third-order"}, "unknown algorithm of a 'third-order'"),
        ({"algorithm": None}, "the study a has no algorithm"),
        ({"base_examples": None}, "the study a has no base_examples"),
        ({"base_examples": 0}, "base_examples of a is 0"),
        ({"base_examples": 7}, "base_examples of a is 7: a multiple of the 3 classes"),
        ({"iteration": 5}, "unknown setting of ld 'iteration'"),
        ({"vary": {"starts": ["true"]}}, "unknown setting of ld 'starts'"),
        ({"vary": {"start": "true"}}, "start of a is 'true': a list of values"),
        ({"vary": {"start": []}}, r"start of a is \[\]: a list of values"),
        ({"vary": ["start"]}, r"vary of a is \['start'\]"),
        ({"vary": {"step_offsets": [[0], [1]]}}, "for settings, not for tests"),
        ({"test_networks": ["Lenet"]}, "unknown test network of a 'Lenet'"),
        ({"test_networks": "LeNet"}, "test_networks of a is 'LeNet': a list"),
        ({"test_optimisers": ["rmsprop"]}, "unknown test optimiser of a 'rmsprop'"),
        ({"step_offsets": [0.5]}, "step offset of a is 0.5"),
        ({"step_offsets": []}, r"step_offsets of a is \[\]"),
        ({"set_seeds": [-1]}, "set seed of a is -1"),
        ({"source": "noise"}, "algorithm of a is 'true labels' and its source noise"),
    ],
)
def test_bad_studies_are_refused_before_any_work(run, monkeypatch, changed, error):
    monkeypatch.setattr(study, "learn", None)
    given = {key: value for key, value in {**TRUE, **changed}.items() if value is not None}
    with pytest.raises(ValueError, match=error):
        found(run, {"first": TRUE, "a": given})


def test_bad_calls_are_refused(run):
    for studies in ({}, [TRUE]):
        with pytest.raises(ValueError, match="a dict of at least one study is needed"):
            found(run, studies)
    with pytest.raises(ValueError, match="no set seeds"):
        found(run, {"a": TRUE}, seeds=())
    for number in ("repetitions", "searchers"):
        with pytest.raises(ValueError, match=f"{number} is 0"):
            label_distillation(run, DATA, NETWORK, {"a": TRUE}, [0], **{number: 0})


# -------------------------------------------------------------------------------------------------------- measurements


def test_the_table_is_what_learners_reach_on_the_test_images(run, monkeypatch):
    given = SHORT | {"base_examples": 6, "vary": {"algorithm": ["second-order", "ridge", "images", "images, ridge"]}}
    got = found(run, {"a": given | {"step_offsets": [0, 3], "test_networks": ["MLP", "MLP-small"]}})
    table = got.table
    assert list(table) == study.COLUMNS and len(table) == 4 * 2 * 2 * 3 and got.search.empty
    assert [(s, a) for s, a, _ in got.sets] == [("a", name) for name in study.LEARNED]
    assert (table["target"] == "toy").all() and (table["source"] == "toy").all() and (table["target_size"] == 45).all()
    assert (table["epochs"] == 2).all() and (table["rate"] == 0.001).all() and (table["optimiser"] == "adam").all()
    assert set(table["test_network"]) == {"MLP-16", "MLP-256-128"} and (table["network"] == "MLP-16").all()
    seeds = [stream_seed(k, "network that learns labels", "test") for k in range(3)]
    for _, algorithm, one in got.sets:
        steps = len(one.learning_rates)
        for network in (NETWORK, build("MLP-small", DATA.shape, 3)):
            own = table[(table["algorithm"] == algorithm) & (table["test_network"] == network.name)]
            assert own["steps"].tolist() == [steps] * 3 + [steps + 3] * 3
            assert own["offset"].tolist() == [0] * 3 + [3] * 3
            for n in (steps, steps + 3):
                alone = learn(network, one.x, one.y, n, 6, seeds, head="ridge" if "ridge" in algorithm else "linear")
                accuracy = alone.evaluate(DATA.test_x, DATA.test_y).accuracy.tolist()
                assert own.loc[own["steps"] == n, "accuracy"].tolist() == accuracy
    monkeypatch.setattr(study, "learn", None)
    again = found(run, {"b": given | {"step_offsets": [0, 3], "test_networks": ["MLP", "MLP-small"]}})
    assert again.table.drop(columns="study").equals(table.drop(columns="study"))  # another study shares sets and tests


def test_baselines_take_the_first_of_the_best_steps_on_validation_images(run):
    both = {"vary": {"algorithm": list(study.BASELINES)}} | {k: v for k, v in TRUE.items() if k != "algorithm"}
    got = found(run, {"a": both}, seeds=(0, 1))
    assert [(a, one.seed) for _, a, one in got.sets] == [(a, s) for a in study.BASELINES for s in (0, 1)]
    for _, algorithm, one in got.sets:
        own = got.search[(got.search["algorithm"] == algorithm) & (got.search["set_seed"] == one.seed)]
        assert own["steps"].tolist() == [4, 8, 30, 40]
        best = own.loc[own["accuracy"] == own["accuracy"].max(), "steps"].min()
        assert len(one.learning_rates) == best
        rows = got.table[(got.table["algorithm"] == algorithm) & (got.table["set_seed"] == one.seed)]
        assert (rows["steps"] == best).all() and (rows["epochs"] == 0).all()
        learned_from, held_out = split(DATA, one.seed, 15)
        x, y = base_images(DATA, 6, one.seed, rows=learned_from)
        smoothing = 0.1 if "smoothed" in algorithm else 0.0
        assert torch.equal(one.x, x) and torch.allclose(one.y, study.smoothed(F.one_hot(y, 3).float(), smoothing))
        head = "ridge" if "ridge" in algorithm else "linear"
        seeds = [stream_seed(k, "network that learns labels", "search") for k in range(2)]
        real = DATA.train_x[held_out], DATA.train_y[held_out]
        alone = learn(NETWORK, x, one.y, 40, 6, seeds, head=head, real=real, at=[4, 8, 30, 40])
        assert own["accuracy"].tolist() == alone.accuracy.mean(0).tolist()


def test_no_choice_depends_on_the_test_images(run, tmp_path):
    other = dataclasses.replace(DATA, test_x=-DATA.test_x, test_y=DATA.test_y.flip(0))
    given = {"a": TRUE | {"test_optimisers": ["sgd"]}}
    ours = found(run, given)
    theirs = found(run, given, of=other)
    assert ours.search.equals(theirs.search) and (ours.table["rate"] == theirs.table["rate"]).all()
    assert torch.equal(ours.sets[0][2].learning_rates, theirs.sets[0][2].learning_rates)
    assert (ours.table["accuracy"] != theirs.table["accuracy"]).any()


def test_an_optimiser_has_the_best_of_its_rates(run, monkeypatch):
    monkeypatch.setattr(study, "RATES", {"adam": (1e-9, 0.003), "sgd": (1e-9, 0.1, 1e-8), "momentum": (1e-9, 0.02)})
    monkeypatch.setattr(study, "probes", lambda n: [60])
    got = found(run, {"a": TRUE | {"test_optimisers": ["adam", "sgd", "momentum"]}})
    rates = got.table.groupby("optimiser", sort=False)["rate"].unique().map(list).to_dict()
    assert rates == {"adam": [0.003], "sgd": [0.1], "momentum": [0.02]}
    assert got.table["accuracy"].min() > 0.5


def archive(path, classes):
    g = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), 8)
    x = g.integers(0, 255, (len(y), 8, 8), dtype=np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return str(path)


def test_labels_of_another_dataset_are_renumbered_by_first_appearance(run, tmp_path, monkeypatch):
    source = archive(tmp_path / "other.npz", 7)
    got = found(run, {"a": TRUE | {"source": source, "balanced": True}})
    one, (x, y) = got.sets[0][2], base_images(DATA, 6, 0, source, True)
    kinds = list(dict.fromkeys(y.tolist()))
    assert len(kinds) == 3 and max(kinds) > 2
    assert torch.equal(one.x, x) and one.labels().tolist() == [kinds.index(int(c)) for c in y]
    assert (got.table["source"] == source).all() and one.settings["source"] == source
    monkeypatch.setattr(study, "learn", None)  # it is refused before any work
    with pytest.raises(ValueError, match="at most 3 are allowed"):
        found(run, {"a": TRUE, "b": TRUE | {"source": source, "balanced": False, "base_examples": 15}})


def test_results_of_a_study_are_those_of_the_published_layout(run, tmp_path):
    got = found(run, {"a": TRUE | {"step_offsets": [0, 2]}})
    one, table = got.sets[0][2], got.table
    results = study.results(table, got.search)
    steps = len(one.learning_rates)
    assert results.tests == tuple(
        Repetitions(n, tuple(table.loc[table["steps"] == n, "accuracy"])) for n in (steps, steps + 2)
    )
    assert list(results.search) == [4, 8, 30, 40]
    label_configs.write_results(results, tmp_path / "r.json", one, [0, 1, 2])
    back = label_configs.read_results(tmp_path / "r.json")
    assert [t.steps for t in back.tests] == [steps, steps + 2]
    assert np.allclose([t.accuracy for t in back.tests], [t.accuracy for t in results.tests])
    other = table.assign(test_network="LeNet")
    several = study.results(pd.concat([table, other])[lambda t: t["offset"] == 0])
    assert [t.network for t in several.tests] == ["MLP-16", "LeNet"]
    with pytest.raises(ValueError, match="several sets or optimisers"):
        study.results(pd.concat([table, table.assign(optimiser="sgd")]))


def test_an_unbalanced_set_may_have_any_number_of_images(run):
    given = SHORT | {"base_examples": 4, "balanced": False, "vary": {"algorithm": ["ridge", "second-order"]}}
    studied = found(run, {"odd": given})
    assert {len(one) for _, _, one in studied.sets} == {4} and set(studied.table["base_examples"]) == {4}
    baseline = found(
        run, {"odd": {"algorithm": "true labels", "base_examples": 4, "balanced": False, "validation": 15}}
    )
    assert [len(one) for *_, one in baseline.sets] == [4]
    with pytest.raises(ValueError, match="base_examples is 4 and balanced True"):
        METHODS["ld"].make(Job(DATA, NETWORK, 1), **SHORT, base_examples=4)


def test_on_digits_learned_labels_and_baselines_stand_side_by_side(run):
    digits = data.load("digits")
    network = build("MLP-small", digits.shape, 10, hidden=(32,))
    given = {"base_examples": 20, "iterations": 60, "batch_real": 128, "validate_every": 30, "rate": 0.02}
    given |= {"vary": {"algorithm": ["ridge", "true labels, ridge"], "start": ["true"]}}
    table = found(run, {"digits": given}, of=digits, network=network).table
    means = table.groupby("algorithm")["accuracy"].mean()
    assert (means > 0.45).all(), means
    assert (table["variant"] == "start true").all() and (table["source"] == "digits").all()


def test_published_numbers_are_told_apart_as_ours_are():
    mnist = dataclasses.replace(data.load("digits"), name="mnist")
    numbers = study.published_accuracies(mnist)
    keys = ["source", "algorithm", "base_examples"]
    assert set(numbers["target"]) == {"mnist"} and set(numbers["test_network"]) == {"LeNet"}
    assert numbers.set_index(keys).loc[("mnist", "second-order", 100), "published"] == 0.873
    smoothed = numbers.set_index(keys).loc[("mnist", "smoothed labels", 100)].set_index("published")
    assert smoothed.loc[0.861, "certainty"] == "measured from the published scripts"
    assert ("emnist_letters", "ridge", 100) in numbers.set_index(keys).index
    none = study.published_accuracies(data.load("digits"))
    assert none.empty and {"algorithm", "base_examples", "published"} <= set(none.columns)
