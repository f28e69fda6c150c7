"""Studies of sets made step by step: what is crossed, made, kept and tested, and the rows of the table."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from test_distill import toy_data

from ddanalysis import data, makers
from ddanalysis.analysis import held_out, real_baselines, soft_labels
from ddanalysis.analysis.held_out import Examiner, Replay
from ddanalysis.analysis.soft_label_studies import Variant, variants
from ddanalysis.analysis.soft_labels import ATTACK_COLUMNS, BASELINES, COLUMNS, published_accuracies
from ddanalysis.architectures import build
from ddanalysis.report import Run

DIGITS = data.load("digits")
MLP = build("MLP-small", DIGITS.shape, 10)
BASIC = {
    "iterations": 15, "steps": 2, "passes": 2, "ipc": 2, "step_size": 0.1, "rate": 0.05, "decay_every": 100,
    "batch_real": 256, "initialisation": "real",
}  # fmt: skip
TOY = toy_data(per_class=20)
SMALL = build("MLP", (1, 8, 8), 3, hidden=(16,))
QUICK = BASIC | {"iterations": 2, "batch_real": 30}


@pytest.fixture
def run(tmp_path):
    return Run("01_distill", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))


def toy(run, studies, seeds=(0,), networks=3):
    return soft_labels.soft_labels(run, replace(TOY, root=run.folder), SMALL, studies, list(seeds), networks)


def test_what_varies_is_crossed_the_last_fastest():
    study = {"steps": 1, "vary": {"ipc": [2, 4], "method": ["dd", "sldd"], "label_shift": [0.0, -0.5]}}
    found = variants({"plain": {"ipc": 10}, "grid": study}, 10)
    assert found[0] == Variant("plain", "dd", 10, {})
    assert [(v.ipc, v.method, v.settings["label_shift"]) for v in found[1:]] == [
        (n, method, shift) for n in (2, 4) for method in ("dd", "sldd") for shift in (0.0, -0.5)
    ]
    assert found[2].variation == "ipc=2, method=dd, label_shift=-0.5"
    assert found[2].word == "grid_ipc-2_method-dd_label_shift--0.5" and found[0].word == "plain"
    assert found[2].settings == {"steps": 1, "label_shift": -0.5}
    assert len({v.word for v in found}) == len({v.identity for v in found}) == 9


def test_recipes_hold_where_a_study_says_nothing():
    recipes = {"dd": {"steps": 1, "rate": 0.5, "ipc": [7]}, "sldd": {"passes": 9, "steps": 1}}
    plain, soft = variants({"a": {"ipc": 3, "rate": 0.1}, "b": {"ipc": 3, "method": "sldd"}}, 10, recipes)
    assert plain.ipc == 3 and plain.settings == {"steps": 1, "rate": 0.1}
    assert soft.settings == {"passes": 9, "steps": 1}


def test_words_of_values_name_files():
    lists = {"ipc": 10, "vary": {"label_classes": [[0, 1], [0, 3, 7]], "learn_images": [True, False]}}
    words = [v.word for v in variants({"few": lists}, 10)]
    assert words[0] == "few_label_classes-0-1_learn_images-True"
    assert words[3] == "few_label_classes-0-3-7_learn_images-False"


def test_replays_are_those_of_the_inner_optimiser_and_rates_are_choices():
    study = {"ipc": 10, "inner": "adam", "replays": [{}, {"optimiser": "sgd", "rate": [0.1, 0.2]}, {"order": "steps"}]}
    (found,) = variants({"a": study}, 10)
    assert found.replays == (
        (Replay("adam"),), (Replay("sgd", rate=0.1), Replay("sgd", rate=0.2)), (Replay("adam", order="steps"),),
    )  # fmt: skip


def test_end_to_end_on_digits(run, monkeypatch):
    studies = {
        "basic": BASIC | {"networks": "fixed", "vary": {"method": ["dd", "sldd"]}},
        "random": BASIC | {"at_once": 4},
    }
    found = soft_labels.soft_labels(run, DIGITS, MLP, studies, [0, 3], 5)
    table = found.table
    assert list(table.columns) == COLUMNS and len(table) == 2 * 2 * 1 + 2 * 5
    assert table.groupby(["study", "variation", "set_seed"], sort=False).size().tolist() == [1, 1, 1, 1, 5, 5]
    fixed = table[table["study"] == "basic"]
    assert fixed["labels"].tolist() == ["hard", "hard", "soft", "soft"]
    assert set(fixed["initialisation"]) == {"fixed"} and set(table["initialisation"]) == {"fixed", "random"}
    assert fixed["variation"].tolist() == ["method=dd"] * 2 + ["method=sldd"] * 2
    same = {
        "dataset": "digits", "mode": "basic", "images": 20, "label_init": "one-hot", "steps": 2, "epochs": 2,
        "optimiser": "sgd", "network": MLP.name, "order": "own",
    }  # fmt: skip
    assert all((table[name] == value).all() for name, value in same.items()) and table["rate"].isna().all()
    assert (fixed["accuracy"] > fixed["accuracy_before"] + 0.5).all()  # at the very networks that it was learned for
    assert (table["accuracy"] > table["accuracy_before"] + 0.3).all() and found.attacks.empty
    starts = Examiner(run, DIGITS, 5).starts(MLP, found.sets[-1][1].settings, 3)
    direct = held_out.before_and_after(found.sets[-1][1], starts, DIGITS)
    assert table["accuracy"].iloc[-5:].tolist() == direct.after.accuracy.tolist()
    assert table["accuracy_before"].iloc[-5:].tolist() == direct.before.accuracy.tolist()
    assert table["loss"].iloc[-5:].tolist() == direct.after.loss.tolist()
    losses = found.history[found.history["component"] == "loss"].groupby(["study", "variation", "set_seed"])["value"]
    assert (losses.last() < losses.first()).all() and losses.size().eq(15).all()

    def never(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(held_out, "after", never)
    monkeypatch.setattr(makers._Order, "make", never)
    again = soft_labels.soft_labels(run, DIGITS, MLP, studies, [0, 3], 5)
    pd.testing.assert_frame_equal(again.table, table)


def test_studies_of_the_same_settings_share_their_sets(run):
    studies = {"a": QUICK | {"vary": {"passes": [1, 2]}}, "b": QUICK | {"vary": {"step_size": [0.1, 0.2]}}}
    found = toy(run, studies)
    files = sorted(path.name for path in (run.folder / "distilled").glob("*.safetensors"))
    assert files == [
        "dd_toy_ipc2_s0_a_passes-1.safetensors", "dd_toy_ipc2_s0_a_passes-2.safetensors",
        "dd_toy_ipc2_s0_b_step_size-0.2.safetensors",
    ]  # fmt: skip
    assert found.table["variation"].unique().tolist() == ["passes=1", "passes=2", "step_size=0.1", "step_size=0.2"]
    second, third = (found.table[found.table["variation"] == v] for v in ("passes=2", "step_size=0.1"))
    assert second["accuracy"].tolist() == third["accuracy"].tolist() and set(third["study"]) == {"b"}


def test_a_study_may_have_seeds_of_its_own(run):
    found = toy(run, {"a": QUICK, "b": QUICK | {"passes": 2, "set_seeds": [3, 5]}})
    assert {name: set(rows["set_seed"]) for name, rows in found.table.groupby("study")} == {"a": {0}, "b": {3, 5}}


def test_replays_and_other_architectures_are_further_rows(run):
    replays = [{}, {"order": "images", "passes": 4}, {"optimiser": "adam", "rate": [1e-7, 0.01]}]
    study = QUICK | {"replays": replays, "test_architectures": ["MLP", "MLP-small"]}
    found = toy(run, {"transfer": study})
    rows = found.table.groupby(["network", "optimiser", "order"], sort=False).first()
    assert rows.index.tolist() == [
        (name, *rest)
        for name in ("MLP", "MLP-256-128")
        for rest in [("sgd", "own"), ("sgd", "images"), ("adam", "own")]
    ]
    assert rows["replay"].tolist() == ["", "order images, 4 passes", "adam, rate 0.01"] * 2
    assert rows["epochs"].tolist() == [2, 4, 2] * 2 and len(found.table) == 18
    assert rows["rate"].fillna(0).tolist() == [0, 0, 0.01] * 2  # chosen on training images
    (one,) = {id(s): s for _, s in found.sets}.values()
    own = Examiner(run, replace(TOY, root=run.folder), 3)
    for name, first in (("MLP", 6), ("MLP-small", 15)):
        starts = own.starts(build(name, (1, 8, 8), 3), one.settings, 0)
        direct = held_out.before_and_after(one, starts, TOY, Replay("adam", rate=0.01))
        assert found.table["accuracy"].iloc[first : first + 3].tolist() == direct.after.accuracy.tolist()


def test_sets_made_through_an_adam_of_any_kind_are_walked_by_adam(run):
    adam = QUICK | {"step_size": 0.01}
    found = toy(run, {"a": adam | {"inner": "adam"}, "b": adam | {"inner": "adam-higher"}})
    assert set(found.table["optimiser"]) == {"adam"} and set(found.table["replay"]) == {""}
    (_, one), (_, other) = found.sets
    assert not torch.equal(one.x, other.x)


def test_sets_may_be_tested_on_the_networks_that_they_met(run):
    pool = QUICK | {"networks": "pretrained", "pretrained": 3, "pretrained_epochs": 1}
    found = toy(run, {"others": pool, "met": pool | {"held_out": False}})
    (_, one), _ = found.sets
    examiner = Examiner(run, replace(TOY, root=run.folder), 3)
    rows = dict(list(found.table.groupby("study")))
    for name, met in (("others", False), ("met", True)):
        starts = replace(examiner, met=met).starts(SMALL, one.settings, 0)
        assert rows[name]["loss_before"].tolist() == starts.evaluate(TOY.test_x, TOY.test_y).loss.tolist()
    assert rows["met"]["loss"].tolist() != rows["others"]["loss"].tolist()


def test_networks_that_are_tested_may_begin_otherwise(run):
    found = toy(run, {"a": QUICK, "b": QUICK | {"test_weights": "default"}})
    (_, one), (_, same) = found.sets
    assert torch.equal(one.x, same.x)
    starts = Examiner(run, replace(TOY, root=run.folder), 3).starts(SMALL, one.settings | {"weights": "default"}, 0)
    first, second = (rows["loss"].tolist() for _, rows in found.table.groupby("study"))
    assert second == held_out.before_and_after(one, starts, TOY).after.loss.tolist() != first


def test_an_attack_has_its_own_table(run):
    study = QUICK | {"networks": "fixed", "fixed": 2, "attack": [0, 2], "iterations": 30, "method": "sldd"}
    found = toy(run, {"attack": study})
    assert (found.table["mode"] == "attack").all() and len(found.table) == 2
    attacks = found.attacks
    assert list(attacks.columns) == ATTACK_COLUMNS and len(attacks) == 2 * 6
    measures = ["all classes", "all classes, modified labels", "a", "b", "c", "attacked as target"]
    assert attacks["measure"].unique().tolist() == measures
    assert set(attacks["attacked"]) == {"a"} and set(attacks["target"]) == {"c"}
    ((_, one),) = found.sets
    starts = Examiner(run, replace(TOY, root=run.folder), 3).starts(SMALL, one.settings, 0)
    predictions = held_out.before_and_after(one, starts, TOY).after.predictions
    for k, own in enumerate(predictions):
        rows = attacks[attacks["network_seed"] == k].set_index("measure")["after"]
        attacked = TOY.test_y == 0
        assert rows["attacked as target"] == float((own[attacked] == 2).double().mean())
        assert rows["a"] == float((own[attacked] == 0).double().mean())
        assert rows["all classes"] == pytest.approx(float((own == TOY.test_y).double().mean()))
        changed = TOY.test_y.masked_fill(attacked, 2)
        assert rows["all classes, modified labels"] == pytest.approx(float((own == changed).double().mean()))
        assert rows["attacked as target"] > 0.5


def test_baselines_are_rows_of_the_same_table(run):
    settings = {"steps": 2, "passes": 2, "networks": "random"}
    toys = replace(TOY, root=run.folder)
    table = soft_labels.baselines(
        run, toys, SMALL, [0, 4], 3, 4, settings, rates=[1e-5, 0.1], neighbours=[(1, 2.0)], candidates=3
    )
    assert list(table.columns) == COLUMNS and table["mode"].unique().tolist() == list(BASELINES)
    sizes = table.groupby("mode", sort=False).size()
    assert sizes.tolist() == [6, 6, 6, 6, 2, 2] and set(table["set_seed"]) == {0, 4}
    assert (table["images"] == 12).all() and (table["labels"] == "hard").all() and (table["study"] == "baselines").all()
    plain = table[~table["mode"].str.startswith("nearest")]
    assert plain["rate"].eq(0.1).all() and plain["steps"].eq(2).all() and plain["epochs"].eq(2).all()
    assert (plain.groupby("mode")["accuracy"].mean() > plain.groupby("mode")["accuracy_before"].mean()).all()
    random = plain[plain["mode"] == "random real"]
    one = real_baselines.real_set("random real", Examiner(run, toys, 3).job(SMALL, 4, 4), 2, 2, 0.1)
    starts = Examiner(run, toys, 3).starts(SMALL, {"networks": "random", "weights": "xavier_normal"}, 4)
    assert random["accuracy"].iloc[3:].tolist() == held_out.after(one, starts, TOY.test_x, TOY.test_y).accuracy.tolist()
    nearest = table[table["mode"].str.startswith("nearest")]
    assert nearest["network_seed"].isna().all() and nearest["accuracy_before"].isna().all()
    assert set(nearest["network"]) == {"nearest neighbours"} and set(nearest["variation"]) == {"neighbours=1, norm=2"}
    assert (nearest["accuracy"] > 0.5).all()


@pytest.mark.parametrize(
    ("settings", "mode", "start"),
    [
        ({}, "basic", "one-hot"),
        ({"source": "usps", "label_start": "zeros"}, "adaptation", "zeros"),
        ({"attack": [0, 1], "label_shift": -0.5, "label_scale": 10.0}, "attack", "one-hot, shift -0.5, scale 10"),
        ({"label_start": "normal", "label_softmax": True}, "basic", "normal, softmax"),
    ],
)
def test_modes_and_label_starts_in_words(settings, mode, start):
    assert soft_labels.mode(settings) == mode and soft_labels.label_start(settings) == start


def test_labels_are_hard_where_every_row_is_one_class():
    one = real_baselines.real_set("random real", Examiner(None, TOY, 1).job(SMALL, 0, 2), 1, 1, 0.1)
    rows = torch.nn.functional.one_hot(one.y, 3).float()
    assert soft_labels.hard(one) and soft_labels.hard(replace(one, y=rows))
    assert not soft_labels.hard(replace(one, y=rows * 0.9)) and not soft_labels.hard(replace(one, y=rows * 0 + 1))


ERRORS = {
    "no studies were given": {},
    "a study is called 'a b'": {"a b": {}},
    r"the study a is \[1\]": {"a": [1]},
    "so is its vary": {"a": {"vary": [1]}},
    "vary of the study a has steps = 3": {"a": {"vary": {"steps": 3}}},
    r"vary of the study a has steps = \[\]": {"a": {"vary": {"steps": []}}},
    "vary of the study a has replays": {"a": {"vary": {"replays": [[]]}}},
    "unknown setting of the study a 'speed'": {"a": {"speed": 3}},
    "unknown setting of the study a 'pace'": {"a": {"vary": {"pace": [3]}}},
    "unknown method of the study a 'dm'": {"a": {"method": "dm"}},
    "ipc of the study a is 0": {"a": {"ipc": 0}},
    "the study a is impossible: ipc is 4 and steps of DD 3": {"a": {"ipc": 4, "steps": 3}},
    "the study a is impossible: passes is 0: it must be a whole number": {"a": {"ipc": 10, "vary": {"passes": [3, 0]}}},
    "the study a is impossible: label_start is 'cold': allowed are": {"a": {"ipc": 10, "label_start": "cold"}},
    "the study a is impossible: unknown class in attack 3": {"a": {"ipc": 10, "attack": [0, 3]}},
    "the study a is impossible: unknown class in label_classes 9": {"a": {"ipc": 10, "label_classes": [9]}},
    "the study a is impossible: unknown test_weights 'cold'": {"a": {"ipc": 10, "test_weights": "cold"}},
    "the study a is impossible: test_weights is 'default', for networks that are 'random', not 'fixed'": {
        "a": {"ipc": 10, "networks": "fixed", "test_weights": "default"}
    },
    "the study a is impossible: label_softmax is 'False': it must be true or false": {
        "a": {"ipc": 10, "label_softmax": "False"}
    },
    "the study a is impossible: initialisation is 'foo'": {"a": {"ipc": 10, "initialisation": "foo"}},
    "the study a is impossible: source is 'nonsense'": {
        "a": {"ipc": 10, "networks": "pretrained", "source": "nonsense"}
    },
    "the study a is impossible: held_out is 'no'": {"a": {"ipc": 10, "held_out": "no"}},
    "the study a is impossible: at_once is 4: only 2 networks": {
        "a": {"ipc": 10, "networks": "pretrained", "pretrained": 2, "at_once": 4}
    },
    "the study a is impossible: label_file is '', and no file": {"a": {"ipc": 10, "label_start": "file"}},
    "replays of the study a have 'adam'": {"a": {"ipc": 10, "replays": ["adam"]}},
    "unknown replay setting of the study a 'speed'": {"a": {"ipc": 10, "replays": [{"speed": 3}]}},
    "unknown optimiser of a replay 'lion'": {"a": {"ipc": 10, "replays": [{"optimiser": "lion"}]}},
    "unknown test architecture of the study a 'VGG'": {"a": {"ipc": 10, "test_architectures": ["VGG"]}},
    "set seed of the study a is -1": {"a": {"ipc": 10, "set_seeds": [-1]}},
    "vary of the study a has set_seeds": {"a": {"ipc": 10, "vary": {"set_seeds": [[1]]}}},
    "two studies would keep different sets as a_rate-0.1": {
        "a": {"ipc": 10, "vary": {"rate": [0.1, 0.1000001]}},
    },
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_come_before_any_work(message, run, monkeypatch):
    monkeypatch.setattr(makers, "distilled_sets", None)
    with pytest.raises(ValueError, match=message):
        toy(run, ERRORS[message])


def test_nearest_neighbours_of_every_baseline(run):
    settings, toys = {"steps": 2, "passes": 2, "networks": "random"}, replace(TOY, root=run.folder)
    plain = ["average real", "optimised real"]
    names = [*plain, *(f"nearest neighbours, {name}" for name in plain)]
    given = {"rates": [1e-5, 0.1], "neighbours": [(1, 2.0)], "candidates": 3}
    table = soft_labels.baselines(run, toys, SMALL, [0, 4], 3, 4, settings, names, **given)
    near = table[table["network"] == "nearest neighbours"].groupby("mode")["accuracy"].apply(list)
    means = torch.stack([TOY.train_x[TOY.train_y == c].mean(0) for c in range(3)]).flatten(1)
    right = torch.cdist(TOY.test_x.flatten(1), means).argmin(1) == TOY.test_y
    assert near["nearest neighbours, average real"] == pytest.approx([float(right.double().mean())] * 2)
    assert len(near["nearest neighbours, optimised real"]) == 2
    with pytest.raises(ValueError, match="candidates of the baseline is 1"):
        soft_labels.baseline_settings(run, toys, [0, 4], names=names[3:], candidates=1)


def test_errors_of_what_is_tested(run):
    with pytest.raises(ValueError, match="test_networks is 0"):
        toy(run, {"a": QUICK}, networks=0)
    with pytest.raises(ValueError, match="unknown baseline 'herding'"):
        soft_labels.baselines(run, TOY, SMALL, [0], names=["herding"])
    with pytest.raises(ValueError, match="ipc is 3 and steps of DD 2"):
        soft_labels.baselines(run, TOY, SMALL, [0], ipc=3, settings={"steps": 2})
    with pytest.raises(ValueError, match="unknown setting of dd 'speed'"):
        soft_labels.baselines(run, TOY, SMALL, [0], settings={"speed": 2})


def test_a_baseline_that_is_wrong_is_refused_before_any_work(run):
    check = soft_labels.baseline_settings
    assert check(run, TOY, [0], ipc=4, settings={"steps": 2}, test_networks=3)["steps"] == 2
    for given, message in (
        ({"candidtes": 3}, "unknown setting of the baseline 'candidtes'"),
        ({"ipc": 7, "settings": {"steps": 2}}, "ipc is 7 and steps of DD 2"),
        ({"ipc": "7"}, "ipc of the baseline is '7'"),
        ({"candidates": 1, "set_seeds": [0, 1]}, "candidates of the baseline is 1"),
        ({"settings": {"steps": "5"}}, "steps of the baseline is '5'"),
        ({"settings": {"speed": 5}}, "unknown setting of dd 'speed'"),
        ({"names": ["herding"]}, "unknown baseline 'herding'"),
    ):
        with pytest.raises(ValueError, match=message):
            check(run, TOY, **({"set_seeds": [0]} | given))


def test_replays_in_words():
    words = {
        "": Replay(), "adam, rate 0.01": Replay("adam", rate=0.01), "order steps": Replay(order="steps"),
        "order images, 75 passes, batch 1": Replay(order="images", passes=75, batch=1),
    }  # fmt: skip
    assert [soft_labels.in_words(replay) for replay in words.values()] == list(words)
    assert soft_labels.in_words(Replay("adam"), "adam") == "" and soft_labels.in_words(Replay(), "adam") == "sgd"


def test_published_numbers_are_told_apart_as_ours_are():
    mnist = replace(DIGITS, name="mnist")
    lenet = build("LeNet", mnist.shape, 10)
    found = published_accuracies(mnist, lenet, {"adaptation": {"source": "usps28"}, "fixed": {}})
    keys = ["mode", "initialisation", "images", "labels"]
    assert found.set_index(keys).loc[("basic", "fixed", 10, "soft"), "published"] == 0.96
    assert found.set_index(keys).loc[("adaptation", "pretrained", 100, "hard"), "published"] == 0.927
    assert found.set_index(keys).loc[("k-means", "random", 100, "hard"), "certainty"] == "recalled, unverified"
    neighbours = found[found["mode"] == "nearest neighbours, k-means"]
    assert neighbours["published"].tolist() == [0.922] and neighbours["initialisation"].isna().all()
    assert "adaptation" not in set(published_accuracies(mnist, lenet, {"fixed": {}})["mode"])
    assert set(published_accuracies(mnist, MLP, {"fixed": {}})["network"]) == {"nearest neighbours"}
    none = published_accuracies(DIGITS, lenet, {"fixed": {}})
    assert none.empty and {"mode", "labels", "published"} <= set(none.columns)
    usps = published_accuracies(replace(mnist, name="usps28"), lenet, {"adaptation": {"source": "mnist"}})
    assert set(usps["dataset"]) == {"usps28"} and "adaptation" in set(usps["mode"])


def test_published_numbers_by_passes_are_those_of_the_network():
    mnist = replace(DIGITS, name="mnist")
    found = soft_labels.published_by_passes(mnist, MLP).set_index("epochs")["published"]
    assert found.index.tolist() == [1, 25, 40, 50, 60, 75] and found[75] == 0.375
    assert soft_labels.published_by_passes(mnist, build("LeNet", mnist.shape, 10)).empty
