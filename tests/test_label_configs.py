"""The 210 published experiments: names, configuration files, results."""

import hashlib
import json
import math
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch

from ddanalysis import label_configs, layouts
from ddanalysis.distilled import DistilledSet
from ddanalysis.label_configs import (
    Experiment,
    Repetitions,
    Results,
    parse,
    published,
    read,
    read_results,
    write_results,
)

NAME = "ld_100be_50ib_emn_to_mn_ubl_cnn_400e_or2_1234s_v0"
PLAIN = parse(NAME)
SPACE = {"mean": (0.25,), "std": (0.5,)}


def test_all_names_are_the_published_ones_in_their_order():
    names = [one.name for one in published()]
    assert len(names) == len(set(names)) == 210
    listed = "\n".join(names) + "\n"  # configs.txt of the published repository, to the byte
    assert hashlib.sha256(listed.encode()).hexdigest() == (
        "2d3d599b3ef91a781adbc66ed54d332a86eff76737676babc09f420e71acbf8f"
    )


def test_names_parse_back_to_their_experiments():
    for one in published():
        assert parse(one.name) == one
    odd = "ld_7be_3ib_123ts_baseline_svhn_to_c10_ubl_ls_rn_nsa_tvm_rr_5s_v12"
    one = parse(odd)
    assert one.name == odd
    assert (one.base_examples, one.inner_batch, one.target_size, one.seed, one.version) == (7, 3, 123, 5, 12)
    assert one.baseline and one.resnet and one.step_study and one.network_study and not one.balanced
    assert (one.smoothing, one.source, one.target, one.method) == (0.1, "svhn", "cifar10", "ridge")


def test_families_have_the_published_sizes():
    counted = Counter(one.family for one in published())
    assert counted == {
        "images": 16, "within": 24, "baselines": 24, "smoothed baselines": 24, "cross": 48, "cifar100": 6,
        "base seeds": 16, "target sizes": 12, "step counts": 4, "networks": 36,
    }  # fmt: skip
    assert Counter(one.method for one in published()) == {"ridge": 105, "second-order": 105}


def test_published_experiments_are_balanced_within_a_dataset_and_have_the_published_sizes():
    for one in published():
        assert one.balanced == (one.source == one.target)
        assert one.inner_batch == (100 if one.target == "cifar100" else label_configs.BASE_EXAMPLES[one.base_examples])
        assert (one.batch, one.inner_rate, one.resnet, one.version) == (1024, 0.01, False, 0)


@pytest.mark.parametrize(
    ("name", "iterations"),
    [
        ("ld_100be_50ib_mn_to_mn_bl_cnn_400e_or2_1234s_v0", 19_600),
        ("ld_200be_50ib_mn_to_mn_bl_cnn_800e_or2_1234s_v0", 39_200),
        ("ld_10be_10ib_c10_to_c10_bl_cnn_400e_or2_1234s_v0", 17_600),
        ("ld_10be_10ib_emn_to_k49_ubl_cnn_100e_rr_1234s_v0", 20_500),
        ("ld_100be_50ib_500ts_emn_to_mn_ubl_cnn_400e_rr_1234s_v0", 400),
        ("ld_100be_50ib_10000ts_emn_to_mn_ubl_cnn_400e_rr_1234s_v0", 4000),
        ("ld_100be_50ib_baseline_mn_to_mn_bl_ls_cnn_rr_1234s_v0", 0),
    ],
)
def test_iterations_are_those_of_the_published_epochs(name, iterations):
    assert parse(name).iterations == iterations


def test_a_source_is_no_target():
    with pytest.raises(ValueError, match="unknown published target 'cub'"):
        _ = replace(PLAIN, target="cub").iterations


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", "is no name of an experiment"),
        (NAME + "x", "is no name of an experiment"),
        (NAME.replace("or2", "or3"), "is no name of an experiment"),
        (NAME.replace("emn", "xyz"), "unknown source in the name .* 'xyz'"),
        (NAME.replace("_mn_", "_abc_"), "unknown target in the name .* 'abc'"),
        (NAME.replace("_400e", ""), f"is not as the published grammar writes it: '{NAME}' is"),
        (NAME.replace("100be", "0100be"), "is not as the published grammar writes it"),
        (NAME.replace("50ib", "50ib_50000ts"), "is not as the published grammar writes it"),
        (NAME.replace("50ib", "50ib_baseline"), "is not as the published grammar writes it"),
        (NAME.replace("50ib", "150ib"), "inner_batch is 150: it must be at most base_examples, 100"),
        (NAME.replace("ubl", "ubl_ls"), "smoothing is 0.1 and baseline false"),
        (NAME.replace("400e", "400e_tvm"), "network_study is true and target 'mnist'"),
        (NAME.replace("ld_", "dd_").replace("50ib", "50ib_baseline").replace("_400e", ""), "images have no baseline"),
        (NAME.replace("100be", "0be"), "base_examples is 0"),
    ],
)
def test_bad_names_are_refused(name, error):
    with pytest.raises(ValueError, match=error):
        parse(name)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("method", "rr", "unknown method 'rr'"),
        ("learn", "both", "unknown learn 'both'"),
        ("source", "emn", "unknown source 'emn'"),
        ("target", "imdb", "unknown target 'imdb'"),
        ("baseline", 1, "baseline is 1: it must be true or false"),
        ("smoothing", 0.2, "unknown smoothing 0.2"),
        ("epochs", 0, "epochs is 0"),
        ("seed", -1, "seed is -1"),
        ("inner_rate", "fast", "inner_rate is 'fast'"),
        ("base_examples", 10.0, "base_examples is 10.0"),
    ],
)
def test_bad_experiments_are_refused(field, value, error):
    with pytest.raises(ValueError, match=error):
        replace(PLAIN, **{field: value})


def test_a_written_configuration_is_the_published_file(tmp_path):
    name = "ld_500be_50ib_baseline_mn_to_mn_bl_ls_cnn_or2_1234s_v0"
    label_configs.write(parse(name), tmp_path / "a.json")
    held = {
        "balanced_source": True, "baseline": True, "batch_size": 1024, "epochs": 800, "expname": name,
        "inner_batch_size": 50, "inner_lr": 0.01, "label_smoothing": 0.1, "num_base_examples": 500,
        "num_inner_steps": 10, "num_steps_analysis": False, "random_seed": 1234, "resnet": False, "source": "mnist",
        "target": "mnist", "target_set_size": 50000, "test_various_models": False,
    }  # fmt: skip
    assert (tmp_path / "a.json").read_text() == json.dumps(held)
    label_configs.write(PLAIN, tmp_path / "b.json")
    assert '"label_smoothing": 0, ' in (tmp_path / "b.json").read_text()


def test_every_configuration_reads_back_and_names_its_dead_key(tmp_path):
    for one in published():
        label_configs.write(one, tmp_path / "a.json")
        with pytest.warns(UserWarning, match="num_inner_steps changes nothing"):
            assert read(tmp_path / "a.json") == one


def held_in(tmp_path, **changed):
    held = label_configs.as_json(PLAIN) | changed
    held = {key: value for key, value in held.items() if value is not None and key != "num_inner_steps"}
    (tmp_path / "a.json").write_text(json.dumps(held))
    return tmp_path / "a.json"


def test_what_a_file_leaves_out_is_the_default_of_the_scripts_and_its_script_may_be_given(tmp_path):
    path = held_in(tmp_path, expname="short_experiment", epochs=None, target_set_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = read(path, method="ridge")
    assert one == replace(PLAIN, method="ridge", epochs=10)
    assert read(path, method="ridge", learn="images").learn == "images"
    (tmp_path / "b.json").write_text("{}")
    assert read(tmp_path / "b.json", method="second-order") == Experiment()


@pytest.mark.parametrize(
    ("changed", "method", "error"),
    [
        ({"num_inner_step": 3}, None, "unknown keys num_inner_step: allowed are"),
        ({"expname": "short"}, None, "is named 'short', which does not say its method"),
        ({"expname": None}, None, "which does not say its method"),
        ({"epochs": 5}, None, "and what it holds .*_5e_.*: they must agree"),
        ({}, "ridge", "and what it holds .*_rr_.*: they must agree"),
        ({"epochs": "5"}, None, "a.json: epochs is '5'"),
        ({"baseline": "yes"}, None, "a.json: baseline is 'yes'"),
        ({"source": "emn"}, None, "a.json: unknown source 'emn'"),
        ({"label_smoothing": 0.1}, None, "a.json: smoothing is 0.1 and baseline false"),
        ({"inner_batch_size": 101}, None, "a.json: inner_batch is 101"),
        ({"expname": "short"}, "or2", "a.json: unknown method 'or2'"),
        ({"expname": NAME.replace("400e", "400e_tvm")}, None, "a.json: network_study is true"),
    ],
)
def test_bad_files_are_refused(tmp_path, changed, method, error):
    with pytest.raises(ValueError, match=error):
        read(held_in(tmp_path, **changed), method=method)


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_files_that_hold_no_object_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    for reader in (read, read_results):
        with pytest.raises(ValueError, match="a.json"):
            reader(tmp_path / "a.json")


def ld_set():
    y = torch.softmax(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), 1)
    return DistilledSet(torch.randn(6, 1, 2, 2), y, 3, **SPACE, method="ld", dataset="mnist", ipc=2)


FULL = Results(
    tests=(Repetitions(245, (0.5, 0.75), (1.5, 1.25)),),
    curves={"epoch": [0, 1], "train_accuracy": [0.25, 0.5], "val_accuracy": [0.0, 0.125], "train_loss": [2.5, 2.0],
            "num_val_steps": [0, 245]},
    train_seconds=12.5,
    more={"resets": [227, 194], "experiment": NAME},
)  # fmt: skip


@pytest.mark.parametrize(
    "results",
    [
        Results(),
        FULL,
        Results(tests=(Repetitions(195, (0.5, 0.75), (1.5, 1.25)), Repetitions(245, (0.25, 1.0), (1.0, 0.5)))),
        Results(
            tests=tuple(Repetitions(700, (0.5,), (2.0,), name) for name in ("LeNet", "AlexCifarNet", "ResNet14", "MLP"))
        ),
        Results(tests=(Repetitions(150, (0.5, 0.25)),), search={10: 0.125, 25: 0.5, 50: 0.25}),
    ],
)
def test_results_are_read_as_they_were_written(tmp_path, results):
    write_results(results, tmp_path / "r.json", ld_set(), range(6))
    found = read_results(tmp_path / "r.json")
    assert sorted(found.tests, key=repr) == sorted(results.tests, key=repr)
    assert replace(found, tests=()) == replace(results, tests=())


def test_results_have_the_published_layout(tmp_path):
    write_results(FULL, tmp_path / "r.json", ld_set(), [4, 4, 1, 1, 0, 2])
    held = json.loads((tmp_path / "r.json").read_text())
    assert held["test_top_1_error"] == [50.0, 25.0] and held["test_loss"] == [1.5, 1.25]
    assert held["num_test_steps"] == [245, 245]
    assert held["train_top_1_error"] == [75.0, 50.0] and held["val_top_1_error"] == [100.0, 87.5]
    assert held["total_train_time"] == [12.5] and held["base_example_labels"] == [4.0, 4.0, 1.0, 1.0, 0.0, 2.0]
    assert held["labels"] == [ld_set().y.tolist()]
    assert held["ddanalysis"] == FULL.more
    steps = Results(tests=(Repetitions(5, (0.5, 0.75), (1.0, 2.0)), Repetitions(9, (0.25, 1.0), (3.0, 4.0))))
    write_results(steps, tmp_path / "s.json")
    held = json.loads((tmp_path / "s.json").read_text())
    assert held["test_top_1_error"] == [[50.0, 25.0], [75.0, 0.0]] and held["num_test_steps"] == [5, 9]
    networks = Results(
        tests=(Repetitions(5, (0.5,), (1.0,), "AlexCifarNet"), Repetitions(5, (0.75,), (1.0,), "ResNet14"))
    )
    write_results(replace(networks, search={10: 0.5, 25: 0.75, 50: 0.75}), tmp_path / "t.json")
    held = json.loads((tmp_path / "t.json").read_text())
    assert held["test_top_1_error_alexnet"] == [50.0] and held["num_test_steps_resnet"] == [5]
    assert held["num_baseline_steps"] == [25]  # the first of the best
    assert held["errors_list"] == [[50.0, 25.0, 25.0]] and held["num_steps_used"] == [[10, 25, 50]]
    assert "ddanalysis" not in held


def test_labels_and_images_of_results_are_read_by_the_layouts(tmp_path):
    one = ld_set()
    write_results(FULL, tmp_path / "r.json", one, [4, 4, 1, 1, 0, 2])
    found = layouts.read_label_distillation(tmp_path / "r.json", one.x, **SPACE)
    assert torch.equal(found.y, one.y) and found.settings["base_labels"] == [4, 4, 1, 1, 0, 2]
    y = torch.arange(3).repeat_interleave(2)
    images = replace(one, y=y)
    write_results(FULL, tmp_path / "i.json", images)
    found = layouts.read_label_distillation(tmp_path / "i.json", **SPACE, n_classes=3)
    assert found.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.allclose(found.x, one.x[[0, 2, 4, 1, 3, 5]], atol=1e-6)


def test_the_published_skeleton_is_read(tmp_path):
    keys = "train_top_1_error train_loss val_top_1_error val_loss test_top_1_error test_loss epoch labels model_loss"
    keys = [*keys.split(), "total_train_time", "total_test_time", "num_val_steps", "num_test_steps"]
    (tmp_path / "r.json").write_text(json.dumps({key: [] for key in keys} | {"base_example_labels": [16.0, 23.0]}))
    assert read_results(tmp_path / "r.json") == Results()


@pytest.mark.parametrize(
    ("held", "error"),
    [
        ({"test_top_1_error": [1.0, 2.0], "num_test_steps": [5, 6]}, r"after \[5, 6\] steps: one count is needed"),
        ({"test_top_1_error": [1.0], "num_test_steps": 5}, "is no file of results"),
        ({"test_top_1_error": ["x"], "num_test_steps": [5]}, "a list of numbers is needed"),
        ({"test_top_1_error": [[1.0], [2.0]], "test_loss": [[1.0]], "num_test_steps": [5, 6]}, "no file of results"),
        ({"train_loss": 3}, "a list of numbers is needed"),
        ({"num_steps_used": [[10, 25]], "errors_list": [[1.0]]}, "is no file of results"),
    ],
)
def test_damaged_results_are_refused(tmp_path, held, error):
    (tmp_path / "r.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=error):
        read_results(tmp_path / "r.json")


def test_unknown_keys_of_results_are_named(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"acc": [1], "epoch": [0]}))
    with pytest.warns(UserWarning, match="no published layout, left out: acc"):
        assert read_results(tmp_path / "r.json").curves == {"epoch": [0]}


def test_results_that_no_layout_holds_are_refused(tmp_path):
    path, both = tmp_path / "r.json", (Repetitions(5, (0.5,), (), "LeNet"), Repetitions(5, (0.5,), (), "MLP"))
    for results, error in [
        (Results(curves={"accuracy": [1.0]}), "unknown curve 'accuracy'"),
        (Results(tests=(*both, Repetitions(9, (0.5,), (), "MLP"))), "counts of steps or networks may vary"),
        (Results(tests=(Repetitions(5, (0.5,), (math.nan,)),)), "cannot be written as JSON"),
    ]:
        with pytest.raises(ValueError, match=error):
            write_results(results, path)
    with pytest.raises(ValueError, match=r"has \[3, 2, 1\] images of its classes: as many of each"):
        write_results(Results(), path, replace(ld_set(), y=torch.tensor([0, 0, 0, 1, 1, 2])))
    assert not path.exists()
