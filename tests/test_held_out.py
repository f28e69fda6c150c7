"""Replays against plain loops of torch.optim, orders, choices by training images, attack measures by hand."""

from dataclasses import replace

import plain
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from test_distill import toy_data

from ddanalysis import networks
from ddanalysis.analysis import held_out
from ddanalysis.analysis.held_out import Examiner, Replay
from ddanalysis.architectures import build
from ddanalysis.distill import METHODS
from ddanalysis.distilled import DistilledSet
from ddanalysis.report import Run

DATA = toy_data(dtype=torch.float64)
MLP = build("MLP", (1, 8, 8), 3)
ORDER = torch.tensor([[0, 2, 4], [1, 3, 5]])


def a_set(passes=2, rates=(0.1, 0.4, 0.2, 0.3), **changes):
    """Two steps of three soft-labelled images."""
    g = torch.Generator().manual_seed(3)
    y = F.one_hot(DATA.train_y[:6], 3) + 0.1 * torch.randn(6, 3, generator=g)
    fields = dict(x=DATA.train_x[:6].float(), y=y, n_classes=3, mean=(0.0,), std=(1.0,), ipc=2)
    fields |= dict(method="dd", dataset="toy", learning_rates=torch.tensor(rates, dtype=torch.float32))
    fields["order"] = ORDER.repeat(passes, 1)
    return DistilledSet(**(fields | changes))


def starts(count=2, dtype=torch.float64):
    return networks.create(MLP, range(count), "xavier_normal", dtype=dtype)


def walked(net, one, batches, rates, optimiser):
    """A plain module trained step by step: its logits on the test images."""
    module = plain.with_state(plain.mlp(1, 8, 3), {name: t[0] for name, t in net.state.items()})
    opt = plain.optimiser(module, "adam" if optimiser == "adam" else "sgd", 1.0, 0.9 * (optimiser == "momentum"), 0.0)
    for rows, rate in zip(batches, rates, strict=True):
        opt.param_groups[0]["lr"] = float(rate)
        plain.train(module, opt, [rows], one.x.double(), one.y.double() if one.y.is_floating_point() else one.y)
    return module(DATA.test_x).detach()


A, B = ORDER
REPLAYS = [
    (Replay(), [A, B, A, B], [0.1, 0.4, 0.2, 0.3]),
    (Replay(passes=1), [A, B], [0.1, 0.4]),
    (Replay(passes=4), [A, B] * 4, [0.1, 0.4, 0.2, 0.3, 0.2, 0.3, 0.2, 0.3]),
    (Replay("momentum"), [A, B, A, B], [0.1, 0.4, 0.2, 0.3]),
    (Replay("adam", rate=0.01, passes=3), [A, B] * 3, [0.01] * 6),
    (Replay(rate=0.2, batch=2), [*ORDER.view(3, 2), *ORDER.view(3, 2)], [0.2] * 6),
    (Replay(rate=0.2, batch=6, passes=1), [ORDER.flatten()], [0.2]),
]


@pytest.mark.parametrize(("replay", "batches", "rates"), REPLAYS, ids=str)
@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_a_replay_is_a_plain_loop_of_pytorch(replay, batches, rates, labels):
    one = a_set()
    one = one if labels == "soft" else replace(one, y=one.labels())
    found = held_out.before_and_after(one, starts(), DATA, replay)
    for k, net in enumerate(starts()):
        own = torch.tensor(rates).double() if replay.rate == 0 else rates  # a set's rates are float32
        logits = walked(net, one, batches, own, replay.optimiser)
        assert torch.equal(found.after.predictions[k], logits.argmax(1))
        assert float(found.after.loss[k]) == pytest.approx(float(F.cross_entropy(logits, DATA.test_y)), rel=1e-9)
        assert float(found.after.accuracy[k]) == float((logits.argmax(1) == DATA.test_y).double().mean())
        assert float(found.before.loss[k]) == pytest.approx(float(net.loss(DATA.test_x, DATA.test_y)), rel=1e-9)
    assert (found.before.loss - found.after.loss).abs().min() > 1e-3


@pytest.mark.parametrize("order", ["steps", "images"])
def test_a_shuffled_replay_is_a_plain_loop_over_its_own_batches(order):
    one, replay = a_set(), Replay(order=order, passes=3)
    found = held_out.after(one, starts(3), DATA.test_x, DATA.test_y, replay, seed=5)
    for k, net in enumerate(starts(3)):
        batches, rates = held_out._updates(one, replay, held_out.stream_seed(5, "replay", k))
        logits = walked(net, one, batches, rates, "sgd")
        assert float(found.loss[k]) == pytest.approx(float(F.cross_entropy(logits, DATA.test_y)), rel=1e-9)


def test_shuffled_orders_are_permutations_of_every_pass():
    images = dict(x=DATA.train_x[:30].float(), y=DATA.train_y[:30], ipc=10)
    order, rates = torch.arange(30).view(5, 6).repeat(4, 1), torch.linspace(0.1, 2, 20).tolist()
    one = a_set(order=order, rates=rates, **images)
    rates = one.learning_rates.double().view(4, 5)
    seen = {"steps": set(), "images": set()}
    for order, seed in ((order, seed) for order in seen for seed in range(3)):
        batches, own = held_out._updates(one, Replay(order=order), seed)
        batches, own = batches.view(4, 5, 6), torch.tensor(own, dtype=torch.float64).view(4, 5)
        assert torch.equal(batches.flatten(1).sort(1).values, torch.arange(30).expand(4, 30))
        assert len({tuple(pass_.flatten().tolist()) for pass_ in batches}) == 4  # each pass is drawn anew
        seen[order].add(tuple(batches.flatten().tolist()))
        if order == "steps":  # a step keeps its images and its rate
            step = batches[:, :, 0] // 6
            assert torch.equal(batches, step[:, :, None] * 6 + torch.arange(6))
            assert torch.equal(own, rates.gather(1, step))
        else:
            assert torch.equal(own, rates)
    assert [len(found) for found in seen.values()] == [3, 3]


def test_the_steps_of_a_set_are_what_its_order_repeats():
    assert held_out.steps_of(a_set()) == (2, 2)
    assert held_out.steps_of(a_set(order=torch.tensor([[0], [1], [0], [2]]))) == (4, 1)
    assert held_out.steps_of(a_set(order=torch.zeros(4, 1, dtype=torch.int64))) == (1, 4)


def test_accuracy_by_pass_is_that_of_shorter_replays():
    one, replay = a_set(), Replay(rate=0.5, batch=2, passes=6)
    found = held_out.accuracy_by_pass(one, starts(3), DATA, [0, 2, 6], replay)
    assert torch.equal(found[:, 0], starts(3).evaluate(DATA.test_x, DATA.test_y).accuracy)
    for column, passes in ((1, 2), (2, 6)):
        shorter = held_out.before_and_after(one, starts(3), DATA, replace(replay, passes=passes))
        assert torch.equal(found[:, column], shorter.after.accuracy)


@pytest.mark.parametrize("order", ["own", "steps"])
def test_bounded_memory_changes_no_result(order, monkeypatch):
    together = held_out.before_and_after(a_set(), starts(3), DATA, Replay(order=order), seed=1)
    monkeypatch.setattr(held_out, "NUMBERS", 1)
    apart = held_out.before_and_after(a_set(), starts(3), DATA, Replay(order=order), seed=1)
    assert torch.equal(apart.after.predictions, together.after.predictions)
    assert torch.allclose(apart.after.loss, together.after.loss, rtol=1e-12)


def test_the_best_replay_is_that_of_the_highest_mean_accuracy_and_the_first_of_equal_ones():
    x, y = held_out.training_images(DATA, 20, 0)
    replays = [Replay(rate=rate) for rate in (1e-6, 0.3, 0.3, 1e4)]
    assert held_out.best([a_set(), a_set(passes=3, rates=[1.0] * 6)], starts(), replays, x, y) is replays[1]


def test_training_images_are_different_ones_of_the_training_images():
    x, y = held_out.training_images(DATA, 20, 0)
    rows = [int((DATA.train_x == image).flatten(1).all(1).nonzero()) for image in x]
    assert len(set(rows)) == 20 and torch.equal(DATA.train_y[rows], y)
    assert not torch.equal(x, held_out.training_images(DATA, 20, 1)[0])
    assert len(held_out.training_images(DATA, 1000, 0)[0]) == len(DATA.train_y)


def test_confusion_is_scikit_learns():
    g = torch.Generator().manual_seed(0)
    y, predictions = torch.randint(4, (50,), generator=g), torch.randint(4, (3, 50), generator=g)
    found = held_out.confusion(predictions, y, 5)
    for own, counts in zip(predictions, found, strict=True):
        assert (counts.numpy() == sklearn.metrics.confusion_matrix(y, own, labels=range(5))).all()


def test_attack_measures_by_hand():
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([[1, 1, 0, 1, 0, 2], [0, 0, 0, 1, 1, 2], [2, 1, 1, 1, 1, 0]])
    found = held_out.attack_measures(held_out.confusion(predictions, y, 4), (0, 1))
    assert found.accuracy.tolist() == [3 / 6, 1, 2 / 6]
    assert found.modified.tolist() == [4 / 6, 3 / 6, 4 / 6]  # the three zeros are to be read as ones
    assert found.as_target.tolist() == [2 / 3, 0, 2 / 3]
    assert found.by_class[:, :3].tolist() == [[1 / 3, 1 / 2, 1], [1, 1, 1], [0, 1, 0]]
    assert found.by_class[:, 3].isnan().all()


@pytest.fixture
def examiner(tmp_path):
    data = replace(toy_data(), root=tmp_path)
    return Examiner(Run("01_distill", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path)), data, 3)


def test_outcomes_and_choices_are_kept(examiner, monkeypatch):
    settings, one = METHODS["dd"].settings({"networks": "random"}), a_set()
    found = examiner.outcome(one, MLP, settings, 0, Replay())
    plain_one = held_out.before_and_after(one, examiner.starts(MLP, settings, 0), examiner.data, Replay(), 0)
    assert torch.equal(found["accuracy"], plain_one.after.accuracy)
    assert torch.equal(found["accuracy_before"], plain_one.before.accuracy)
    assert torch.equal(found["loss"], plain_one.after.loss) and found["counts"].shape == (3, 3, 3)
    assert len(examiner.known) == 1  # the networks before any set, for the next one
    choice = examiner.chosen([one], MLP, settings, 0, [Replay(rate=1e-6), Replay(rate=0.3)])

    def never(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(held_out, "after", never)
    monkeypatch.setattr(held_out, "best", never)
    again = examiner.outcome(one, MLP, settings, 0, Replay())
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert examiner.chosen([one], MLP, settings, 0, [Replay(rate=1e-6), Replay(rate=0.3)]) == choice
    with pytest.raises(AssertionError, match="made again"):
        examiner.outcome(one, MLP, settings, 0, Replay(passes=3))


def test_networks_to_test_with_were_never_chosen_with(examiner):
    settings = METHODS["dd"].settings({"networks": "random"})
    tested, choosing = examiner.starts(MLP, settings, 0), examiner.choosers(MLP, settings, 0)
    assert len(tested) == 3 and len(choosing) == held_out.CHOOSERS
    assert not any(torch.equal(a, b) for a in tested.state["fc0.weight"] for b in choosing.state["fc0.weight"])
    fixed = METHODS["dd"].settings({"networks": "fixed", "fixed": 2})
    both = examiner.starts(MLP, fixed, 0), examiner.choosers(MLP, fixed, 0)
    assert len(both[0]) == 2 and torch.equal(both[0].state["fc0.weight"], both[1].state["fc0.weight"])


ERRORS = {
    "unknown optimiser": lambda: Replay("rmsprop"),
    "unknown order": lambda: Replay(order="reversed"),
    "passes of a replay is -1": lambda: Replay(passes=-1),
    "rate of a replay is -0.1": lambda: Replay(rate=-0.1),
    "batch of a replay is -2": lambda: Replay(batch=-2),
    "keeps the set's own": lambda: Replay(order="steps", batch=2),
    "has no order": lambda: held_out.before_and_after(a_set(order=None, learning_rates=None), starts(), DATA),
    "has no learning rates": lambda: held_out.before_and_after(a_set(learning_rates=None), starts(), DATA),
    "must divide the 6 of a pass": lambda: held_out.before_and_after(a_set(), starts(), DATA, Replay(batch=4)),
    "has several rates": lambda: held_out.before_and_after(a_set(), starts(), DATA, Replay(batch=2)),
    "has 4 classes": lambda: held_out.before_and_after(
        a_set(n_classes=4, y=torch.zeros(6, dtype=torch.int64)), starts(), DATA
    ),
    "rising numbers from 0": lambda: held_out.accuracy_by_pass(a_set(), starts(), DATA, [2, 1]),
    "at least 1, are needed": lambda: held_out.accuracy_by_pass(a_set(), starts(), DATA, []),
    "ends after 2": lambda: held_out.accuracy_by_pass(a_set(), starts(), DATA, [3]),
    "0 replays and 1 sets": lambda: held_out.best([a_set()], starts(), [], DATA.test_x, DATA.test_y),
    "1 replays and 0 sets": lambda: held_out.best([], starts(), [Replay()], DATA.test_x, DATA.test_y),
    "count of training images": lambda: held_out.training_images(DATA, 0, 0),
    r"the attack is \(1, 1\)": lambda: held_out.attack_measures(torch.ones(1, 3, 3), (1, 1)),
    r"the attack is \(0, 3\)": lambda: held_out.attack_measures(torch.ones(1, 3, 3), (0, 3)),
    "class 2 is attacked and has no": lambda: held_out.attack_measures(torch.eye(3)[None] * 0, (2, 1)),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        ERRORS[message]()


def test_classes_in_turn_take_one_image_of_each():
    y, rates = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), torch.ones(2)
    batches = torch.arange(8).view(2, 4)

    def turned(batches, y):
        found, own = held_out.ORDERS["classes in turn"](batches, rates, y, torch.Generator())
        assert found.shape == batches.shape and own is rates
        return found.flatten().tolist()

    assert turned(batches, y) == [0, 3, 5, 1, 4, 6, 2, 7]
    assert turned(batches.flatten().flip(0).view(2, 4), torch.eye(3)[y]) == [2, 4, 7, 1, 3, 6, 0, 5]
