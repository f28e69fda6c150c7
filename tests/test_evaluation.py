"""Protocols update by update, scores against separate trainings, pools and recognition against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_distill import toy_data

from ddanalysis import evaluation, networks, parameters, pools, training, unroll
from ddanalysis.analysis import recognition
from ddanalysis.architectures import build
from ddanalysis.augment import DSA, DSA_DIGITS
from ddanalysis.distilled import DistilledSet
from ddanalysis.evaluation import PROTOCOLS, protocol_recipe
from ddanalysis.optimisers import Optimiser
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

ARCHITECTURE = build("ConvNet", (1, 8, 8), 3, width=4)


def a_set(data, n=2, seed=0, soft=False):
    rows = torch.cat([(data.train_y == c).nonzero()[seed : seed + n, 0] for c in range(3)])
    y = torch.eye(3)[data.train_y[rows]] * 0.8 if soft else data.train_y[rows]
    return DistilledSet(data.train_x[rows], y, 3, data.mean, data.std, "random", data.name, n, seed=seed)


def test_the_vocabulary_names_the_protocols():
    assert tuple(PROTOCOLS) == tuple(parameters.PROTOCOLS)


def epochs(*parts):
    """Learning rates of (rate, epochs) parts at two batches an epoch."""
    return [rate for rate, n in parts for _ in range(2 * n)]


# Of 300 images: learning rates update by update; batch sizes of an epoch; optimiser, momentum, decay; where it restarts
PUBLISHED = {
    "full-batch-300": ([0.01] * 300, [300], ("sgd", 0.9, 0.0), None),
    "dc-300": (epochs((0.01, 152), (0.001, 149)), [256, 44], ("sgd", 0.9, 5e-4), 304),
    "dsa-1000": (epochs((0.01, 502), (0.001, 499)), [256, 44], ("sgd", 0.9, 5e-4), 1004),
    "dc-1000": (epochs((0.01, 502), (0.001, 499)), [256, 44], ("sgd", 0.9, 5e-4), 1004),
    "mtt-1000": (epochs((0.03, 502), (0.003, 499)), [256, 44], ("sgd", 0.9, 5e-4), 1004),
    "bptt-300": ([0.01] * 300, [300], ("sgd", 0.9, 0.0), None),
    "rat-1000": ([0.001] * 1000, [99], ("adam", 0.9, 0.0), None),  # 100 // 3 of each of three classes
    "clom-1000": (epochs((0.01, 1000)), [256, 44], ("sgd", 0.9, 5e-4), None),
    "clom-1000-dsa": (epochs((0.01, 1000)), [256, 44], ("sgd", 0.9, 5e-4), None),
    "own-steps": ([0.5, 0.25, 0.125], [4], ("sgd", 0.0, 0.0), None),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_update_by_update(protocol, monkeypatch):
    seen = []

    def batch(job):
        return tuple(job._rows()), None, None

    def gradients(job, rows, y, w):
        momentum = job.averages.get("momentum")
        fresh = momentum is not None and not float(momentum[0].abs().max())
        seen.append({"size": len(rows[0]), "recipe": job.recipe, "fresh": fresh, "rows": rows[0]})
        return [torch.full_like(job.state[name], 1e-9) for name in job.names]

    def descend(job, parameters, gradients, rate):
        seen[-1]["rate"] = rate
        original(job, parameters, gradients, rate)

    original = training._Job._descend
    for name, spy in (("_batch", batch), ("_gradients", gradients), ("_descend", descend)):
        monkeypatch.setattr(training._Job, name, spy)
    data, rates = toy_data(per_class=100), {"mtt-1000": [0.03], "own-steps": [0.5, 0.25, 0.125]}.get(protocol)
    order = torch.tensor([[5, 1, 9, 2], [5, 5, 5, 5], [299, 0, 1, 2]])
    given = {"learning_rates": torch.tensor(rates)} if rates else {}
    one = replace(a_set(data, 100), **given | ({"order": order} if protocol == "own-steps" else {}))
    evaluation.predict([one], data, build("MLP", (1, 8, 8), 3), protocol, [0])
    expected, sizes, optimiser, restart = PUBLISHED[protocol]
    assert [update["rate"] for update in seen] == pytest.approx(expected)
    assert [update["size"] for update in seen] == [sizes[k % len(sizes)] for k in range(len(seen))]
    recipe = seen[0]["recipe"]
    assert (recipe.optimiser, recipe.momentum, recipe.weight_decay) == optimiser
    begins = [] if optimiser[:2] != ("sgd", 0.9) else [0] if restart is None else [0, restart]
    assert [k for k, update in enumerate(seen) if update["fresh"]] == begins
    if protocol == "own-steps":
        assert [update["rows"].tolist() for update in seen] == order.tolist()


def test_augmentation_is_that_of_the_dataset_and_network():
    strategies = {
        "full-batch-300": ("", ""), "dc-300": ("", ""), "dc-1000": ("", "dc:crop_scale_rotate"),
        "dsa-1000": (DSA, DSA_DIGITS), "mtt-1000": (DSA, DSA_DIGITS), "bptt-300": ("", ""),
        "rat-1000": ("flip_rotate", "rotate"), "clom-1000": ("", ""), "clom-1000-dsa": (DSA, DSA_DIGITS),
        "own-steps": ("", ""),
    }  # fmt: skip
    assert set(strategies) == set(PROTOCOLS)
    for protocol, expected in strategies.items():
        found = tuple(protocol_recipe(protocol, dataset).augment for dataset in ("cifar10", "mnist-jpeg"))
        assert found == expected
    assert protocol_recipe("dsa-1000", "digits").augment == DSA_DIGITS
    batch_norm, resnet = build("ConvNet", (3, 32, 32), 10, norm="batch"), build("ResNet18", (3, 32, 32), 10)
    assert protocol_recipe("dc-1000", "cifar10", batch_norm).augment == "dc:crop_noise"
    assert protocol_recipe("dc-1000", "cifar10", resnet).augment == ""
    assert protocol_recipe("dc-300", "cifar10", batch_norm).augment == ""


def test_balanced_batches_are_drawn_by_class_and_by_seed():
    data = toy_data(per_class=100)
    one, several = a_set(data, 40), evaluation._balanced
    batches = several(one, 50, 3)
    assert batches.shape == (50, 99)
    for batch in batches:
        assert torch.bincount(one.y[batch]).tolist() == [33] * 3 and len(batch.unique()) == 99
    assert len(batches.unique()) == 120 and not torch.equal(batches, several(one, 50, 4))
    assert torch.equal(several(a_set(data, 5), 2, 0), torch.arange(15).expand(2, -1))


def short(monkeypatch, updates=4):
    """Every protocol with ``updates`` updates at a rate that shows, but its own steps."""
    for name, p in PROTOCOLS.items():
        recipe = replace(p.recipe, epochs=None, updates=updates, learning_rate=0.2)
        monkeypatch.setitem(PROTOCOLS, name, replace(p, recipe=recipe))


def with_steps(one, rate=0.2):
    """The set with a rate for itself and three steps of its own."""
    order = torch.arange(6).view(3, 2).flip(0)
    return replace(one, learning_rates=torch.tensor([rate]), order=order)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_soft_labels_train_by_soft_cross_entropy_under_every_protocol(protocol, monkeypatch):
    short(monkeypatch)
    trained, train = [], training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: trained.append(train(*a, **k)) or trained[-1])
    data = toy_data()
    hard = with_steps(a_set(data))
    one_hot, doubled = (replace(hard, y=weight * torch.eye(3)[hard.y]) for weight in (1.0, 2.0))
    for one in (hard, one_hot, doubled):
        evaluation.predict([one], data, ARCHITECTURE, protocol, [0])
    ids, same, twice = (t.networks.state["conv0.weight"] for t in trained)
    torch.testing.assert_close(same, ids, rtol=1e-4, atol=1e-5)
    assert (twice - ids).abs().max() > 1e-3


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predictions_do_not_depend_on_what_is_evaluated_together(protocol, monkeypatch, tmp_path):
    short(monkeypatch)
    data = replace(toy_data(), name="mnist")
    sets = [
        with_steps(a_set(data)), with_steps(a_set(data, 3, 1, soft=True)), with_steps(a_set(data, 2, 2), 0.05),
        with_steps(a_set(data, 2, 4)),
    ]  # fmt: skip
    if protocol == "mtt-1000":
        sets[3] = replace(sets[3], learning_rates=None)  # 0.2, as the first has
    updates, checkpoint = [], Checkpoint(tmp_path / "x.checkpoint", {}, seconds=0)
    arguments = (data, ARCHITECTURE, protocol, [0, 7])
    together = evaluation.predict(sets, *arguments, checkpoint=checkpoint, progress=updates.append)
    alone = torch.cat([evaluation.predict([one], *arguments) for one in sets])
    assert torch.equal(together, alone) and together.shape == (8, 9)
    assert sum(updates) == 8 * (3 if protocol == "own-steps" else 4)
    assert torch.equal(together, evaluation.predict(sets, *arguments, checkpoint=checkpoint))


def test_a_learned_rate_is_used_and_is_0_01_where_there_is_none():
    plain = a_set(toy_data())
    learned = replace(plain, learning_rates=torch.tensor([0.25]))
    rates = [protocol_recipe("mtt-1000", "cifar10", None, one).learning_rate for one in (None, plain, learned)]
    assert rates == [0.01, 0.01, 0.25]
    assert protocol_recipe("dsa-1000", "cifar10", None, learned).learning_rate == 0.01


def test_own_steps_are_gradient_descent_through_the_steps():
    data = toy_data()
    order, rates = torch.tensor([[0, 4], [5, 5], [2, 1], [0, 4]]), torch.tensor([0.5, 0.1, 2.0, 0.3])
    one = replace(a_set(data, soft=True), learning_rates=rates, order=order)
    fresh, plain = networks.create(ARCHITECTURE, [evaluation.initial_seed(3)]), Optimiser()
    batches = lambda t: (one.x[order[t]], one.y[order[t]])  # noqa: E731
    end = unroll.advance(ARCHITECTURE, plain, unroll.begin(fresh, plain), batches, rates)
    expected = unroll.unflat(ARCHITECTURE, end.weights).evaluate(data.test_x, data.test_y).predictions
    found = evaluation.predict([one], data, ARCHITECTURE, "own-steps", [3])
    assert torch.equal(found.long(), expected)
    assert not torch.equal(fresh.evaluate(data.test_x, data.test_y).predictions, expected)


@pytest.mark.parametrize("soft", [False, True])
def test_scores_equal_separate_trainings(soft, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "dc-300", evaluation.Protocol(Recipe(updates=30), "short"))
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


def scored(d, protocol, **change):
    return evaluation.predict([replace(a_set(d), **change)], d, ARCHITECTURE, protocol, [0])


ORDER, RATES = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0.1, 0.2])
BAD = [
    (lambda d: scored(d, "dc300"), "unknown protocol 'dc300'"),
    (lambda d: scored(d, "mtt-1000", learning_rates=RATES, order=ORDER), "has 2 learning rates: mtt-1000 is for sets"),
    (lambda d: scored(d, "own-steps"), "random_toy_ipc2_s0 has no order: own-steps is for sets with an order"),
    (lambda d: scored(d, "own-steps", learning_rates=RATES), "has no order: own-steps"),
    (lambda d: scored(d, "own-steps", order=ORDER), "has no learning rates: own-steps"),
    (lambda d: evaluation.predict([], d, ARCHITECTURE, "dc-300", [0]), "no distilled sets were given"),
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
