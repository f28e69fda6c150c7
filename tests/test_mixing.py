"""Mixing: nested draws, the very images that a plain concatenation has, update counts, and changes against +0."""

from dataclasses import replace

import plain
import pytest
import torch
import torch.nn.functional as F
from test_distill import toy_data
from test_training import difference, one

from ddanalysis import evaluation, networks, training
from ddanalysis.analysis import mixing
from ddanalysis.analysis.mixing import kept_rows, members, mix, real_rows, unseen_rows
from ddanalysis.architectures import build
from ddanalysis.data import balanced_rows
from ddanalysis.distilled import DistilledSet
from ddanalysis.report import Run
from ddanalysis.training import Recipe

DATA = toy_data(per_class=20, dtype=torch.float64)
SMALL = build("ConvNet", (1, 8, 8), 3, width=4)
FEW = Recipe(updates=4, batch_size=None)


def a_set(method="random", ipc=4, seed=0, soft=False):
    """Real images, as the baseline has them, or changed ones."""
    rows = balanced_rows(DATA.train_y, ipc, seed)
    x = DATA.train_x[rows].float() + (0 if method == "random" else 0.1)
    y = torch.eye(3)[DATA.train_y[rows]] * 0.7 + 0.1 if soft else DATA.train_y[rows]
    return DistilledSet(x, y, 3, DATA.mean, DATA.std, method, "toy", ipc, seed=seed)


# ------------------------------------------------------------------------------------------------- draws


def test_real_images_are_nested_and_the_same_for_every_set():
    unseen = unseen_rows(DATA, [a_set("dm")])
    assert unseen.tolist() == list(range(60))
    for seed in (0, 5):
        drawn = [set(real_rows(DATA, unseen, k, seed).tolist()) for k in (0, 1, 3, 7, 20)]
        assert [len(rows) for rows in drawn] == [0, 3, 9, 21, 60]
        assert all(small < large for small, large in zip(drawn, drawn[1:], strict=False))
        assert all((DATA.train_y[sorted(rows)].bincount() == len(rows) // 3).all() for rows in drawn[1:])
    assert real_rows(DATA, unseen, 3, 0).tolist() != real_rows(DATA, unseen, 3, 5).tolist()


def test_images_of_the_random_baseline_are_not_drawn_again():
    baseline, other = a_set("random", seed=0), a_set("random", seed=1)
    held = {int(r) for s in (0, 1) for r in balanced_rows(DATA.train_y, 4, s)}
    unseen = unseen_rows(DATA, [baseline, a_set("dm"), other])
    assert set(unseen.tolist()) == set(range(60)) - held
    most = int(DATA.train_y[unseen].bincount().min())
    assert not set(real_rows(DATA, unseen, most, 3).tolist()) & held
    with pytest.raises(ValueError, match=f"per_class={most + 1} cannot be drawn"):
        real_rows(DATA, unseen, most + 1, 3)


def test_replaced_images_are_nested_and_as_many_of_each_class():
    own = a_set("dm")
    kept = [set(kept_rows(own, k, 2).tolist()) for k in (0, 1, 3, 4)]
    assert [len(rows) for rows in kept] == [12, 9, 3, 0]
    assert all(small < large for large, small in zip(kept, kept[1:], strict=False))
    assert own.y[sorted(kept[1])].bincount().tolist() == [3, 3, 3]


def test_replacement_needs_as_many_images_as_it_replaces():
    sets = [a_set(ipc=4), a_set(ipc=1)]
    assert members(sets, "replacement", (0, 2, 5), [7]) == [(0, 0, 7), (0, 2, 7), (1, 0, 7)]
    assert len(members(sets, "fixed updates", (0, 2, 5), [7, 8])) == 12
    assert mix(sets, DATA, SMALL, "replacement", (5,), [0]).shape == (0,)


# ------------------------------------------------------------------------------------------------- training


def caught(monkeypatch, *arguments, **named):
    """The calls of training that a mix makes: networks before, images, labels, recipe, seeds, rows, networks after."""
    calls, train = [], training.train

    def record(nets, x, y, recipe, seeds, rows, **options):
        trained = train(nets, x, y, recipe, seeds, rows, **options)
        calls.append((nets, x, y, recipe, seeds, rows, trained.networks))
        return trained

    monkeypatch.setattr(training, "train", record)
    return mix(*arguments, **named), calls


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mode", mixing.MODES)
def test_equals_plain_training_on_a_plain_concatenation(monkeypatch, mode, soft):
    sets, counts, seeds = [a_set(), a_set("dm", ipc=2, soft=soft)], (0, 2, 3), [1, 9]
    accuracy, calls = caught(monkeypatch, sets, DATA, SMALL, mode, counts, seeds, FEW)
    who, unseen = members(sets, mode, counts, seeds), unseen_rows(DATA, sets)
    assert sum(len(call[5]) for call in calls) == len(who)
    for m, (i, k, seed) in enumerate(who):
        real = real_rows(DATA, unseen, k, seed)
        kept = kept_rows(sets[i], k, seed) if mode == "replacement" else torch.arange(len(sets[i]))
        x = torch.cat([sets[i].x[kept].double(), DATA.train_x[real]])
        y = torch.cat([_rows(sets[i].y)[kept], _rows(DATA.train_y)[real]])
        net = plain.with_state(
            plain.convnet(1, 8, 3, 4), one(networks.create(SMALL, [evaluation.initial_seed(seed)]), 0)
        )
        recipe = FEW if mode != "fixed epochs" else Recipe(epochs=4, batch_size=len(sets[i]))
        opt = plain.optimiser(net, "sgd", 0.01, 0.9, 0)
        for batch in _batches(recipe, len(x), seed):
            opt.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            opt.step()
        ours = [
            nets[j]
            for _, images, _, _, own, rows, nets in calls
            for j in range(len(own))
            if own[j] == seed and len(rows[j]) == len(x) and torch.equal(images[rows[j]], x)
        ]
        assert len(ours) == 1 and difference(net, one(ours[0], 0)) < 1e-9
        assert accuracy[m] == (net.eval()(DATA.test_x).argmax(1) == DATA.test_y).double().mean()


def _rows(y):
    return y.double() if y.ndim == 2 else F.one_hot(y, 3).double()


def _batches(recipe, n, seed):
    """Row numbers of a plain concatenation, update by update."""
    if recipe.batch_size is None:
        return [torch.arange(n)] * recipe.updates
    orders = [training.epoch_order(recipe, torch.arange(n), seed, epoch) for epoch in range(recipe.epochs)]
    return [batch for order in orders for batch in order.split(recipe.batch_size)]


def test_updates_stay_or_grow_with_the_size(monkeypatch):
    sets = [a_set()]  # 12 images
    for mode, expected in (
        ("fixed updates", {12: 4, 18: 4, 36: 4}),
        ("fixed epochs", {12: 4, 18: 8, 36: 12}),
        ("replacement", {12: 4}),
    ):
        with monkeypatch.context() as patch:
            _, calls = caught(patch, sets, DATA, SMALL, mode, (0, 2, 8), [0], FEW)
        found = {len(rows): call[3].total_updates(len(rows)) for call in calls for rows in call[5]}
        assert found == expected
        assert mode != "fixed epochs" or all(call[3].batch_size == 12 for call in calls)


def test_without_real_images_the_modes_are_one_and_the_protocol():
    sets = [a_set(), a_set("dm", ipc=2)]
    found = [mix(sets, DATA, SMALL, mode, (0,), [3, 4], FEW) for mode in mixing.MODES]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    data = replace(DATA, train_x=DATA.train_x.float(), test_x=DATA.test_x.float())
    ours = mix(sets, data, SMALL, "fixed updates", (0,), [3, 4])
    predictions = evaluation.predict(sets, data, SMALL, "full-batch-300", [3, 4])
    assert ours.tolist() == (predictions == data.test_y).double().mean(1).tolist()


REFUSED = {
    "mode": ({"mode": "mixed"}, "unknown mode 'mixed': allowed are fixed updates, fixed epochs, replacement"),
    "count": ({"real_per_class": (0, -1)}, "real_per_class is -1"),
    "too many": ({"real_per_class": (21,)}, "per_class=21 cannot be drawn"),
    "batches": ({"recipe": Recipe(updates=3, batch_size=5)}, "mixing takes a recipe of full batches"),
    "epochs": ({"recipe": Recipe(epochs=3, batch_size=None)}, "and a number of updates"),
    "no sets": ({"sets": []}, "no distilled sets were given"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_mixed_is_refused(monkeypatch, change, message):
    monkeypatch.setattr(training, "train", None)
    given = {"sets": [a_set("dm")], "data": DATA, "architecture": SMALL, "mode": "fixed updates", "recipe": FEW}
    with pytest.raises(ValueError, match=message):
        mix(**given | change)


def test_a_set_of_another_space_is_refused():
    with pytest.raises(ValueError, match="normalised with mean"):
        mix([replace(a_set(), mean=(0.5,))], DATA, SMALL, "replacement", (0,), [0], FEW)


# ------------------------------------------------------------------------------------------------- tables


def test_the_table_is_kept_by_set_and_its_changes_are_against_the_same_network(tmp_path, monkeypatch):
    data = replace(DATA, train_x=DATA.train_x.float(), test_x=DATA.test_x.float())
    run = Run("03_mixing", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))
    sets = [a_set("dm"), a_set("random", seed=1)]
    given = {"real_per_class": (0, 2, 8), "network_seeds": [0, 1], "recipe": FEW}
    table = mixing.mixed(run, data, SMALL, sets, **given)
    assert table.columns.tolist() == [
        "dataset", "method", "ipc", "network", "mode", "real_per_class", "set_seed", "network_seed", "accuracy",
    ]  # fmt: skip
    assert len(table) == 2 * 2 * (3 + 3 + 2) and table["accuracy"].between(0, 1).all()
    together = torch.cat([mix(sets, data, SMALL, mode, **given) for mode in mixing.MODES])
    assert sorted(table["accuracy"]) == pytest.approx(sorted(together.tolist()))
    monkeypatch.setattr(training, "train", None)
    assert mixing.mixed(run, data, SMALL, sets, **given).equals(table)
    found = mixing.changes(table)
    assert len(found) == 20 and (found["real_per_class"] > 0).all()
    keys = ["method", "mode", "set_seed", "network_seed"]
    before = table[table["real_per_class"] == 0].set_index(keys)["accuracy"]
    by_hand = [row.accuracy - before[tuple(getattr(row, key) for key in keys)] for row in found.itertuples()]
    assert found["change"].tolist() == pytest.approx(by_hand)


def test_the_summary_says_whether_little_real_data_hurts():
    rows = [
        {"dataset": "toy", "method": "dm", "ipc": 4, "network": "a", "mode": "fixed updates", "set_seed": 0}
        | {"real_per_class": k, "network_seed": seed, "accuracy": value + 0.01 * seed}
        for k, values in {0: (0.5, 0.5, 0.5), 2: (0.4, 0.41, 0.42), 10: (0.4, 0.5, 0.6)}.items()
        for seed, value in enumerate(values)
    ]
    table = mixing.pd.DataFrame(rows)
    found = mixing.summary(table).set_index("real_per_class")
    assert found["mean"].tolist() == pytest.approx([-0.09, 0.0]) and found["n_units"].tolist() == [3, 3]
    half = 4.302652729749464 * 0.01 / 3**0.5  # Student's t with 2 degrees of freedom
    assert found.loc[2, ["low", "high"]].tolist() == pytest.approx([-0.09 - half, -0.09 + half])
    assert found["hurts"].tolist() == [True, False]
    with pytest.raises(ValueError, match="network_seed 0 has no accuracy with real_per_class 0"):
        mixing.changes(table[table["real_per_class"] > 0])
