"""Protocols update by update, scores against separate trainings, pools and recognition against their definitions."""

import numpy as np
import pytest
import torch
from test_distill import toy_data

from ddanalysis import evaluation, networks, parameters, pools, training
from ddanalysis.analysis import recognition
from ddanalysis.architectures import build
from ddanalysis.distilled import DistilledSet
from ddanalysis.evaluation import PROTOCOLS, protocol_recipe
from ddanalysis.training import Recipe

ARCHITECTURE = build("ConvNet", (1, 8, 8), 3, width=4)


def a_set(data, n=2, seed=0, soft=False):
    rows = torch.cat([(data.train_y == c).nonzero()[seed : seed + n, 0] for c in range(3)])
    y = torch.eye(3)[data.train_y[rows]] * 0.8 if soft else data.train_y[rows]
    return DistilledSet(data.train_x[rows], y, 3, data.mean, data.std, "random", data.name, n, seed=seed)


def test_the_vocabulary_names_the_protocols():
    assert tuple(PROTOCOLS) == tuple(parameters.PROTOCOLS)


def test_protocols_step_counts_and_rates():
    paper, dc, dsa = (protocol_recipe(p, "cifar10") for p in PROTOCOLS)
    assert paper.total_updates(100) == 300 == paper.total_updates(2600) and paper.batch_size is None
    assert (paper.learning_rate, paper.momentum, paper.weight_decay, paper.augment) == (0.01, 0.9, 0.0, "")
    for recipe, first, second in ((dc, 152, 149), (dsa, 502, 499)):
        rates = [recipe.rate(epoch) for epoch in range(recipe.epochs)]
        assert rates == pytest.approx([0.01] * first + [0.001] * second)
        assert recipe.batch_size == 256 and recipe.weight_decay == 5e-4 and recipe.restart
        assert recipe.total_updates(500) == 2 * recipe.epochs
    assert dsa.augment.count("_") == 5 and protocol_recipe("dsa-1000", "mnist").augment.count("_") == 4
    assert "flip" not in protocol_recipe("dsa-1000", "digits").augment and dc.augment == ""


@pytest.mark.parametrize("soft", [False, True])
def test_scores_equal_separate_trainings(soft, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "dc-300", evaluation.Protocol(Recipe(updates=30), False, "short"))
    data = toy_data()
    sets = [a_set(data), a_set(data, 3, 1, soft)]
    predictions = evaluation.predict(sets, data, ARCHITECTURE, "dc-300", [0, 5])
    scores = evaluation.scores(predictions, sets, data, ARCHITECTURE, "dc-300", [0, 5])
    assert list(scores.table.columns) == [
        "dataset", "method", "ipc", "network", "protocol", "set_seed", "network_seed", "accuracy",
    ]  # fmt: skip
    assert scores.table["network"].unique().tolist() == ["ConvNet-W4"]
    row = 0
    for one in sets:
        for seed in (0, 5):
            net = networks.create(ARCHITECTURE, [evaluation.initial_seed(seed)])
            net = training.train(net, one.x, one.y, Recipe(updates=30), [seed]).networks
            found = net.evaluate(data.test_x, data.test_y)
            assert (found.predictions[0] == predictions[row]).all()
            record = scores.table.iloc[row]
            assert record["accuracy"] == pytest.approx(float(found.accuracy[0]))
            assert (record["ipc"], record["set_seed"], record["network_seed"]) == (one.ipc, one.seed, seed)
            row += 1


def test_network_seeds_are_common_to_all_sets():
    data = toy_data()
    twice = evaluation.predict([a_set(data), a_set(data)], data, ARCHITECTURE, "full-batch-300", [3])
    assert torch.equal(twice[0], twice[1])


def test_subset_pool_draws_balanced_shares():
    data = toy_data(per_class=20)
    rows = pools.subset_rows(data, 40, (0.1, 0.6), seed=0)
    sizes = np.array([len(r) / 3 for r in rows])
    for own in rows:
        counts = torch.bincount(data.train_y[own], minlength=3)
        assert (counts == counts[0]).all() and len(own.unique()) == len(own)
    assert sizes.min() >= 2 and sizes.max() <= 12 and len(set(sizes)) > 5


def test_subset_pool_predictions_are_those_of_its_networks():
    data, recipe = toy_data(per_class=20), Recipe(epochs=3, batch_size=16)
    pool = pools.subset_networks(data, ARCHITECTURE, 5, (0.1, 0.9), recipe, seed=2)
    rows = pools.subset_rows(data, 5, (0.1, 0.9), 2)
    assert pool.predictions.shape == (5, 1, 9)
    assert pool.updates[:, 0].tolist() == [3 * -(-len(r) // 16) for r in rows]
    k = 3
    seed = pools.stream_seed(2, "subset pool", k)
    alone = training.train(networks.create(ARCHITECTURE, [seed]), data.train_x, data.train_y, recipe, [seed], [rows[k]])
    assert torch.equal(alone.networks.evaluate(data.test_x, data.test_y).predictions[0], pool.predictions[k, 0].long())


def test_early_pool_entry_k_is_the_state_after_k_plus_1_updates():
    data = toy_data(per_class=20)
    pool = pools.early_networks(data, ARCHITECTURE, 2, Recipe(updates=6, batch_size=16), seed=0)
    assert pool.predictions.shape == (2, 6, 9) and pool.updates.tolist() == [[1, 2, 3, 4, 5, 6]] * 2
    seed = pools.stream_seed(0, "early pool", 1)
    net = networks.create(ARCHITECTURE, [seed])
    net = training.train(net, data.train_x, data.train_y, Recipe(updates=4, batch_size=16), [seed]).networks
    assert torch.equal(net.evaluate(data.test_x, data.test_y).predictions[0], pool.predictions[1, 3].long())


def test_recognition_scores_test_and_sets_after_every_update():
    data, recipe, at = toy_data(per_class=20), Recipe(updates=4, batch_size=16), [0, 2, 4]
    sets = [a_set(data), a_set(data, 3, 1)]
    found = recognition.follow(sets, data, ARCHITECTURE, recipe, [0, 7], at)
    assert found["accuracy"].shape == (2, 3, 3)
    table = recognition.recognition_table(found, sets, "toy", ARCHITECTURE.name, [0, 7], at)
    assert list(table.columns) == [
        "dataset", "method", "ipc", "network", "set_seed", "network_seed", "update", "target", "accuracy", "loss",
    ]  # fmt: skip
    assert len(table) == 2 * 3 * 3
    seed = recognition.stream_seed(7, "early recognition")
    net = training.train(
        networks.create(ARCHITECTURE, [seed]), data.train_x, data.train_y, Recipe(updates=2, batch_size=16), [seed]
    )
    for target, x, y, own in (
        ("test", data.test_x, data.test_y, {"method": "real"}),
        ("set", sets[1].x, sets[1].y, {"set_seed": 1}),
    ):
        column, value = next(iter(own.items()))
        row = table[
            (table["network_seed"] == 7)
            & (table["update"] == 2)
            & (table["target"] == target)
            & (table[column] == value)
        ]
        outputs = net.networks.evaluate(x, y)
        assert row["accuracy"].item() == pytest.approx(float(outputs.accuracy[0]))
        assert row["loss"].item() == pytest.approx(float(outputs.loss[0]))


def test_recognised_first_counts_the_lead_over_the_test_images():
    data = toy_data()
    found = {
        "accuracy": torch.tensor(
            [[[0.1, 0.2], [0.3, 0.9], [0.6, 1.0]], [[0.1, 0.0], [0.2, 0.1], [0.7, 0.4]]], dtype=torch.float64
        ),
        "loss": torch.zeros(2, 3, 2, dtype=torch.float64),
    }
    table = recognition.recognition_table(found, [a_set(data)], "toy", "net", [0, 1], [0, 10, 20])
    first = recognition.recognised_first(table, 0.5)
    assert first["update"].iloc[0] == 10 and first["test_update"].tolist() == [20, 20]
    assert first["lead"].iloc[0] == 10 and np.isnan(first["lead"].iloc[1])


BAD = [
    (lambda d: evaluation.predict([a_set(d)], d, ARCHITECTURE, "dc300", [0]), "unknown protocol 'dc300'"),
    (lambda d: pools.subset_rows(d, 0, (0.1, 0.5), 0), "count of the subset pool is 0"),
    (lambda d: pools.subset_rows(d, 3, (0.5, 0.1), 0), "0 < low < high <= 1"),
    (lambda d: pools.subset_rows(d, 3, (0.001, 0.002), 0), "less than one"),
    (lambda d: pools.early_networks(d, ARCHITECTURE, 0, Recipe(updates=1), 0), "early-stopping pool is 0"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(toy_data())


def test_a_set_of_another_normalisation_is_refused():
    data = toy_data()
    other = DistilledSet(data.train_x[:3], data.train_y[:3], 3, (0.5,), (0.5,), "random", "toy", 1)
    for call in (
        lambda: evaluation.predict([other], data, ARCHITECTURE, "full-batch-300", [0]),
        lambda: recognition.follow([other], data, ARCHITECTURE, Recipe(updates=1), [0], [0]),
    ):
        with pytest.raises(ValueError, match="normalis|mean"):
            call()
