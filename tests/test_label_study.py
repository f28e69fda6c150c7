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
from ddanalysis.analysis import label_experiments
from ddanalysis.analysis.label_distillation import base_classes, comparable, label_distillation
from ddanalysis.analysis.label_experiments import published_studies, published_study
from ddanalysis.analysis.label_studies import BASELINES, LEARNED, cases
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
    assert (case.algorithm in BASELINES) == one.baseline and ("images" in case.algorithm) == (one.learn == "images")
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
    assert [(case.study, case.algorithm) for case, _ in got.sets] == [("a", name) for name in LEARNED]
    assert (table["target"] == "toy").all() and (table["source"] == "toy").all() and (table["target_size"] == 45).all()
    assert (table["epochs"] == 2).all() and (table["rate"] == 0.001).all() and (table["optimiser"] == "adam").all()
    assert set(table["test_network"]) == {"MLP-16", "MLP-256-128"} and (table["network"] == "MLP-16").all()
    seeds = [stream_seed(k, "network that learns labels", "test") for k in range(3)]
    for case, one in got.sets:
        steps, algorithm = len(one.learning_rates), case.algorithm
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
    both = {"vary": {"algorithm": list(BASELINES)}} | {k: v for k, v in TRUE.items() if k != "algorithm"}
    got = found(run, {"a": both}, seeds=(0, 1))
    assert [(case.algorithm, one.seed) for case, one in got.sets] == [(a, s) for a in BASELINES for s in (0, 1)]
    for case, one in got.sets:
        algorithm = case.algorithm
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
    assert torch.equal(ours.sets[0][1].learning_rates, theirs.sets[0][1].learning_rates)
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
    one, (x, y) = got.sets[0][1], base_images(DATA, 6, 0, source, True)
    kinds = list(dict.fromkeys(y.tolist()))
    assert len(kinds) == 3 and max(kinds) > 2
    assert torch.equal(one.x, x) and one.labels().tolist() == [kinds.index(int(c)) for c in y]
    assert (got.table["source"] == source).all() and one.settings["source"] == source
    monkeypatch.setattr(study, "learn", None)  # it is refused before any work
    with pytest.raises(ValueError, match="at most 3 are allowed"):
        found(run, {"a": TRUE, "b": TRUE | {"source": source, "balanced": False, "base_examples": 15}})


def test_results_of_a_study_are_those_of_the_published_layout(run, tmp_path):
    got = found(run, {"a": TRUE | {"step_offsets": [0, 2]}})
    one, table = got.sets[0][1], got.table
    results = label_experiments.results(table, got.search)
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
    several = label_experiments.results(pd.concat([table, other])[lambda t: t["offset"] == 0])
    assert [t.network for t in several.tests] == ["MLP-16", "LeNet"]
    with pytest.raises(ValueError, match="several sets or optimisers"):
        label_experiments.results(pd.concat([table, table.assign(optimiser="sgd")]))


def test_base_classes_are_those_of_the_datasets_that_images_are_from(run, tmp_path):
    source = archive(tmp_path / "other.npz", 7)
    given = SHORT | {"algorithm": "ridge", "base_examples": 6}
    of = {"own": {}, "all": {"overlap": True}, "other": {"source": source}, "noise": {"source": "noise"}}
    got = found(
        run, {name: given | own for name, own in of.items()} | {"true": TRUE, "images": given | {"algorithm": "images"}}
    )
    sets = {case.study: one for case, one in got.sets}
    taught = split(DATA, 0, 15)[0]
    for name, ids in {
        "own": base_images(DATA, 6, 0, rows=taught)[1], "all": base_images(DATA, 6, 0)[1],
        "other": base_images(DATA, 6, 0, source)[1], "true": sets["true"].labels(),
    }.items():  # fmt: skip
        names = "0123456" if name == "other" else DATA.classes
        assert base_classes(DATA, sets[name]) == (ids.tolist(), [names[c] for c in ids.tolist()]), name
    assert max(base_classes(DATA, sets["other"])[0]) > 2
    assert base_classes(DATA, sets["noise"]) == base_classes(DATA, sets["images"]) == ([], [])
    with pytest.raises(ValueError, match="the base images of .* are not those of seed 1 of these data"):
        base_classes(DATA, dataclasses.replace(sets["own"], seed=1))


def test_figures_have_every_learned_set_once(run):
    given = SHORT | {"base_examples": 6, "vary": {"algorithm": ["ridge", "true labels"], "target_size": [30, 45]}}
    again = SHORT | {"base_examples": 6, "algorithm": "ridge", "target_size": 45}
    starts = SHORT | {"base_examples": 6, "algorithm": "ridge", "vary": {"start": ["true", "uniform"]}}
    got = found(run, {"a": given, "b": again, "c": starts}, seeds=(0, 1))
    assert list(got.learned()) == ["a_ridge_6", "c_ridge_start_true_6"]  # uniform labels on 45 images are in a
    assert all(one.seed == 0 for _, one in got.learned().values())
    history = got.history()
    keys = ["study", "variant", "iteration", "component"]
    assert not history.duplicated(keys).any() and list(history["study"].unique()) == ["a", "c"]
    assert set(history["component"]) >= {"accuracy", "validation_accuracy", "validation_steps", "reset"}


def test_rows_that_are_compared_differ_in_algorithm_and_base_examples_alone(run):
    given = SHORT | {"vary": {"algorithm": ["ridge", "true labels"], "base_examples": [3, 6], "target_size": [30, 45]}}
    longer = SHORT | {"base_examples": 6, "algorithm": "ridge", "iterations": 9}
    tests = {"test_networks": ["MLP", "MLP-small"], "test_optimisers": ["sgd", "adam"], "step_offsets": [0, 2]}
    other = SHORT | {"base_examples": 3, "algorithm": "ridge", "vary": {"start": ["true"]}}
    table = found(run, {"a": given, "b": longer | tests, "c": other}).table
    kept = comparable(table)
    assert kept.groupby(["algorithm", "base_examples"]).size().tolist() == [3] * 4
    assert (kept["target_size"] == 45).all() and (kept["optimiser"] == "adam").all() and (kept["offset"] == 0).all()
    ridge = kept[kept["algorithm"] == "ridge"].set_index("base_examples")
    assert set(ridge.loc[6, "study"]) == {"b"} and set(ridge.loc[3, "study"]) == {"a"}


EXPERIMENTS = [
    "ld_100be_50ib_mn_to_mn_bl_cnn_400e_or2_1234s_v0",
    "ld_10be_10ib_baseline_mn_to_mn_bl_ls_cnn_rr_1234s_v0",
]


def test_published_experiments_are_studies_of_their_dataset_and_network():
    mnist = dataclasses.replace(data.load("digits"), name="mnist")
    lenet = build("LeNet", mnist.shape, 10)
    assert label_configs.parse(EXPERIMENTS[0]) in label_configs.published()
    studies = published_studies(EXPERIMENTS, mnist, lenet)
    assert list(studies) == EXPERIMENTS and studies[EXPERIMENTS[0]]["iterations"] == 19_600
    assert studies[EXPERIMENTS[1]]["algorithm"] == "smoothed labels, ridge"
    assert published_studies([], DATA, NETWORK) == {}
    with pytest.raises(ValueError, match="has the dataset mnist, and dataset is digits"):
        published_studies(EXPERIMENTS, data.load("digits"), lenet)
    with pytest.raises(ValueError, match="has the learner LeNet, and learner is MLP"):
        published_studies(EXPERIMENTS, mnist, NETWORK)
    with pytest.raises(ValueError, match="is no name of an experiment"):
        published_studies(["mnist"], mnist, lenet)
    assert {label_experiments.network_of(one) for one in published()} <= {"LeNet", "AlexCifarNet", "ResNet14"}


def test_results_of_experiments_are_written_in_the_published_layout(run, tmp_path):
    got = found(run, {"learned": SHORT | {"base_examples": 6, "algorithm": "ridge"}, "plain": TRUE})
    files = label_experiments.write_experiments(got, ["learned", "plain"], DATA, tmp_path / "new")
    assert [path.name for path in files] == ["learned.json", "plain.json"]
    learned, plain = (label_configs.read_results(path) for path in files)
    history = got.history().pivot(index="iteration", columns="component", values="value")
    assert (
        learned.curves["epoch"] == [2, 5]
        and learned.curves["num_val_steps"] == history["validation_steps"][[2, 5]].tolist()
    )
    assert np.allclose(learned.curves["val_accuracy"], history["validation_accuracy"][[2, 5]])
    assert np.allclose(learned.curves["train_loss"], [history["loss"][:3].mean(), history["loss"][3:].mean()])
    (test,) = learned.tests
    assert np.allclose(test.accuracy, got.table[got.table["study"] == "learned"]["accuracy"])
    assert list(plain.search) == [4, 8, 30, 40] and plain.curves == {}


def test_an_unbalanced_set_may_have_any_number_of_images(run):
    given = SHORT | {"base_examples": 4, "balanced": False, "vary": {"algorithm": ["ridge", "second-order"]}}
    studied = found(run, {"odd": given})
    assert {len(one) for _, one in studied.sets} == {4} and set(studied.table["base_examples"]) == {4}
    baseline = found(
        run, {"odd": {"algorithm": "true labels", "base_examples": 4, "balanced": False, "validation": 15}}
    )
    assert [len(one) for _, one in baseline.sets] == [4]
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
