"""MTT against autograd through plain PyTorch, TESLA's error, soft labels, what it starts from and resumption."""

from dataclasses import replace

import plain
import pytest
import resuming
import torch
import torch.nn.functional as F
from test_distill import job
from test_experts import keeper
from torch.func import functional_call

from ddanalysis import augment, training, unroll
from ddanalysis.distill import Method, experts, trajectory
from ddanalysis.distill.experts import train_experts
from ddanalysis.distill.trajectory import preset, trajectory_matching
from ddanalysis.distilled import DistilledSet
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

DSA = augment.DSA_DIGITS
SMALL = dict(experts=2, expert_batch=12, expert_rate=0.05, steps=3, expert_epochs=2, latest_start=2, step_size=0.1)


def one_step(the_job, steps=3, step_size=0.1, gradient="exact", minibatch=None, strategy="", at_once=1, labels="hard"):
    """Loss and gradients of iteration 0, and the stretch of expert it matches."""
    own = {
        "steps": steps, "expert_epochs": 2, "latest_start": 2, "minibatch": minibatch, "strategy": strategy,
        "gradient": gradient, "at_once": at_once, "labels": labels, "compiled": False,
    }  # fmt: skip
    pool = train_experts(the_job, 2, Recipe(3, None, 12, learning_rate=0.05, momentum=0.0))
    dtype = the_job.data.train_x.dtype
    learned = {"x": the_job.start("real"), "learning_rates": torch.tensor([step_size], dtype=dtype)}
    gradients, recorded = trajectory._step(the_job, pool, own, 0, learned)
    return learned, gradients, recorded["loss"], trajectory._stretch(the_job, pool, own, 0), own


def as_module(the_job, weights):
    """A plain module with the first of some flat weights."""
    state = unroll.unflat(the_job.architecture, weights).state
    return plain.with_state(plain.convnet(1, 8, 3, 4), {name: t[0] for name, t in state.items()})


@pytest.mark.parametrize("labels", ["hard", "teacher"])
@pytest.mark.parametrize(("minibatch", "strategy"), [(None, ""), (4, ""), (None, DSA)])
def test_the_gradient_is_that_of_a_graph_kept_whole(minibatch, strategy, labels):
    the_job = job(dtype=torch.float64)
    learned, gradients, loss, (start, target), own = one_step(
        the_job, 4, 0.1, "exact", minibatch, strategy, labels=labels
    )
    x, rate = learned["x"].clone().requires_grad_(), learned["learning_rates"].clone().requires_grad_()
    y = the_job.labels()
    if labels == "teacher":
        y = as_module(the_job, target)(learned["x"]).softmax(1).detach()[None]
        assert torch.allclose(learned["y"], y[0]) and float(y.max()) < 1
    batches = trajectory._batches(the_job, x, y, own, 0)
    nets, module = unroll.unflat(the_job.architecture, start), as_module(the_job, start)
    w = {name: t.detach().clone().requires_grad_() for name, t in module.named_parameters()}
    assert list(w) == nets.trainable()
    for t in range(4):
        images, labels = batches(t)
        labels = labels if labels.ndim == 1 else labels[0]
        assert len(labels) == (minibatch if minibatch and t % 2 == 0 else 2 if minibatch else 6)
        g = torch.autograd.grad(
            F.cross_entropy(functional_call(module, w, images), labels), list(w.values()), create_graph=True
        )
        w = {name: old - rate * own for (name, old), own in zip(w.items(), g, strict=True)}
    end, before, after = torch.cat([t.flatten() for t in w.values()]), start[0], target[0]
    expected = (end - after).square().sum() / (before - after).square().sum()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    for ours, theirs in zip(gradients.values(), torch.autograd.grad(expected, [x, rate]), strict=True):
        assert float((ours - theirs).norm()) < 1e-8 * float(theirs.norm())


def test_chunks_go_through_all_images_in_a_new_order_each_time():
    the_job = job(4)
    own = {"steps": 5, "minibatch": 5, "strategy": ""}
    batches = trajectory._batches(the_job, torch.arange(12.0).view(12, 1, 1, 1), the_job.labels(), own, 0)
    rows = [batches(t)[0].flatten().tolist() for t in range(6)]
    assert [len(r) for r in rows] == [5, 5, 2, 5, 5, 2]
    assert sorted(sum(rows[:3], [])) == sorted(sum(rows[3:], [])) == list(range(12)) and rows[0] != rows[3]
    assert batches(3)[0].flatten().tolist() == rows[3] and batches(3)[1].tolist() == [int(r) // 4 for r in rows[3]]


@pytest.mark.parametrize("labels", ["hard", "teacher"])
def test_students_at_once_are_averaged(labels):
    the_job = job(dtype=torch.float64)
    together, both, loss, (starts, targets), own = one_step(the_job, at_once=2, labels=labels, minibatch=4)
    assert starts.shape == targets.shape and len(starts) == 2 and not torch.equal(starts[0], starts[1])
    total, losses, soft = {}, 0.0, 0.0
    for k in range(2):
        learned = {"x": the_job.start("real"), "learning_rates": torch.tensor([0.1], dtype=torch.float64)}
        lone = experts.Experts([torch.stack([starts[k], targets[k]])])
        alone = own | {"at_once": 1, "expert_epochs": 1, "latest_start": 1}
        gradients, recorded = trajectory._step(the_job, lone, alone, 0, learned)
        losses, soft = losses + recorded["loss"] / 2, soft + learned.get("y", torch.zeros(1)) / 2
        total = {name: total.get(name, 0) + t / 2 for name, t in gradients.items()}
    assert loss == pytest.approx(losses, rel=1e-10)
    assert labels == "hard" or torch.allclose(together["y"], soft)  # the mean over their experts
    for name, t in both.items():
        assert torch.allclose(t, total[name], rtol=1e-8, atol=1e-12)


def test_tesla_is_exact_for_one_step_and_the_further_off_the_longer_the_way():
    the_job = job(dtype=torch.float64, depth=2, norm="none")
    error, cosine = {}, {}
    for steps, size in ((1, 1.0), (20, 0.01), (20, 0.1), (20, 1.0)):
        _, exact, loss, _, _ = one_step(the_job, steps, size)
        _, tesla, same, _, _ = one_step(the_job, steps, size, "tesla")
        name = "learning_rates"
        assert same == loss and torch.allclose(tesla[name], exact[name]) is (steps == 1)
        error[steps, size] = float((tesla["x"] - exact["x"]).norm() / exact["x"].norm())
        cosine[steps, size] = float(F.cosine_similarity(tesla["x"].flatten(), exact["x"].flatten(), dim=0))
    assert error[1, 1.0] < 1e-12
    assert error[20, 0.01] == pytest.approx(0.04, abs=0.01) and cosine[20, 0.01] > 0.999
    assert error[20, 0.1] == pytest.approx(0.34, abs=0.05) and error[20, 1.0] > 0.7
    assert cosine[20, 0.01] > cosine[20, 0.1] > 0.9 > cosine[20, 1.0]


def test_tesla_is_much_further_off_where_there_is_normalisation():
    the_job = job(dtype=torch.float64)
    exact, tesla = (one_step(the_job, 20, 0.01, gradient)[1]["x"] for gradient in ("exact", "tesla"))
    assert float((tesla - exact).norm()) > 0.3 * float(exact.norm())


def test_updates_are_sgd_with_momentum_and_the_step_size_is_recorded():
    settings = SMALL | dict(rate=2.0, rate_of_step_size=1e-3, momentum=0.5, strategy="")
    made = trajectory_matching(job(), iterations=2, **settings)
    own = preset("toy", 2, settings | {"gradient": "exact", "at_once": 1, "labels": "hard", "compiled": False})
    pool = train_experts(job(), 2, Recipe(3, None, 12, learning_rate=0.05, momentum=0.0))
    x, size = job().start("real").requires_grad_(), torch.tensor([0.1], requires_grad=True)
    opt = torch.optim.SGD([{"params": [x], "lr": 2.0}, {"params": [size], "lr": 1e-3}], momentum=0.5)
    for iteration in range(2):
        learned = {"x": x.detach(), "learning_rates": size.detach()}
        found, recorded = trajectory._step(job(), pool, own, iteration, learned)
        x.grad, size.grad = found["x"], found["learning_rates"]
        opt.step()
        assert float(made.history["loss"][iteration]) == pytest.approx(recorded["loss"], rel=1e-6)
        assert float(made.history["learning_rate"][iteration]) == pytest.approx(float(size.detach()), rel=1e-6)
    assert torch.allclose(made.x, x, atol=1e-6) and made.y.tolist() == [0, 0, 1, 1, 2, 2]


def test_an_expert_is_trained_no_further_than_it_is_used(monkeypatch):
    asked = []

    def record(the_job, count, recipe, seed):
        asked.append((count, recipe, seed))
        return train_experts(the_job, 1, recipe, seed)

    monkeypatch.setattr(trajectory, "train_experts", record)
    settings = SMALL | {"experts": 7, "latest_start": 3, "expert_seed": 5}
    trajectory_matching(job(seed=1), iterations=1, **settings, strategy=DSA)
    assert asked == [(7, Recipe(4, None, 12, learning_rate=0.05, momentum=0.0, augment=DSA), 5)]


def test_sets_of_other_seeds_match_the_same_experts(tmp_path, monkeypatch):
    shared = replace(job(), share=keeper(tmp_path))
    first = trajectory_matching(shared, iterations=2, **SMALL)
    assert torch.equal(first.x, trajectory_matching(job(), iterations=2, **SMALL).x)  # as if nothing were kept
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("an expert was trained"))
    second = trajectory_matching(replace(shared, seed=1), iterations=2, **SMALL)
    assert not torch.equal(first.x, second.x)


def test_soft_labels_of_the_last_iteration_are_those_of_the_set():
    settings = SMALL | dict(rate=2.0, labels="teacher", strategy="")
    made, shorter = (trajectory_matching(job(dtype=torch.float64), iterations=n, **settings) for n in (3, 2))
    own = preset("toy", 2, settings | {"at_once": 1})
    pool = train_experts(job(dtype=torch.float64), 2, Recipe(3, None, 12, learning_rate=0.05, momentum=0.0))
    _, target = trajectory._stretch(job(dtype=torch.float64), pool, own, 2)
    expected = as_module(job(), target)(shorter.x).softmax(1)
    assert torch.allclose(made.y, expected, atol=1e-6) and not torch.allclose(made.y, shorter.y)
    hard = trajectory_matching(job(dtype=torch.float64), iterations=3, **(settings | {"labels": "hard"}))
    assert torch.equal(hard.y, job().labels()) and not torch.allclose(hard.x, made.x)


def given(**tensors):
    start = job().start("noise")
    return DistilledSet(start, job().labels(), 3, (0.0,), (1.0,), "mtt", "toy", 2, **tensors)


@pytest.mark.parametrize(
    ("rates", "asked", "first"), [([0.3], None, 0.3), (None, None, 0.01), ([0.3], 0.2, 0.2), ([0.3, 0.4], None, 0.01)]
)
def test_a_given_set_is_continued_with_its_step_size(rates, asked, first):
    one = given(learning_rates=None if rates is None else torch.tensor(rates))
    settings = SMALL | dict(step_size=asked, rate=1e-9, rate_of_step_size=1e-12)
    made = trajectory_matching(replace(job(), given=one), iterations=1, initialisation="given", **settings)
    assert torch.allclose(made.x, one.x, atol=1e-5) and float(made.learning_rates) == pytest.approx(first)
    fresh = trajectory_matching(replace(job(), given=one), iterations=1, **settings)
    assert not torch.allclose(fresh.x, one.x) and float(fresh.learning_rates) == pytest.approx(asked or 0.01)


@pytest.mark.parametrize("labels", ["hard", "teacher"])
@pytest.mark.parametrize("kept", [False, True], ids=["experts beside the checkpoint", "experts read from files"])
def test_resumes_exactly_wherever_it_stopped(kept, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "IN_MEMORY", 0)
    monkeypatch.setattr(experts, "networks_together", lambda *_: 1)
    whole = trajectory_matching(job(), iterations=5, **SMALL, labels=labels)

    calls = 0

    def stop(n):
        nonlocal calls
        calls += 1
        if calls in (5, 14, 23):  # while the first expert trains, the second, in the third iteration
            raise resuming.Stop

    checkpoint = Checkpoint(tmp_path / "x.checkpoint", {}, seconds=0)
    share = keeper(tmp_path, progress=stop) if kept else None
    the_job = replace(job(), checkpoint=checkpoint, progress=stop, share=share)
    for _ in range(3):
        with pytest.raises(resuming.Stop):
            trajectory_matching(the_job, iterations=5, **SMALL, labels=labels)
    resumed = trajectory_matching(the_job, iterations=5, **SMALL, labels=labels)
    assert torch.equal(whole.x, resumed.x) and torch.equal(whole.y, resumed.y)
    assert all(torch.equal(t, resumed.history[name]) for name, t in whole.history.items())
    assert calls == 9 * 2 + 5 + 3  # nothing but the interrupted updates was done twice
    checkpoint.remove()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == (2 if kept else 0)


def test_the_loss_falls_and_the_step_size_learns():
    shallow = job(1, depth=2)
    settings = dict(experts=3, expert_batch=6, expert_rate=0.1, expert_epochs=1, latest_start=2, strategy="")
    learn = dict(steps=6, step_size=0.1, rate=50.0, rate_of_step_size=1e-4, initialisation="noise")
    for gradient in ("exact", "tesla"):
        made = trajectory_matching(shallow, iterations=30, **settings, **learn, gradient=gradient)
        assert made.history["loss"][-5:].mean() < 0.9 * made.history["loss"][:5].mean()
        assert float(made.history["learning_rate"][-1]) != 0.1


def test_published_constants():
    settings = Method(trajectory_matching, 1).settings({})
    assert settings["iterations"] == 5000 and settings["momentum"] == 0.5 and settings["experts"] == 100
    assert settings["expert_rate"] == 0.01 and settings["expert_batch"] == 256 and settings["initialisation"] == "real"
    ten = preset("cifar10-jpeg", 10, {})
    assert ten == {
        "steps": 30, "expert_epochs": 2, "latest_start": 20, "minibatch": None, "rate": 100.0,
        "rate_of_step_size": 1e-5, "step_size": 0.001, "strategy": augment.DSA,
    }  # fmt: skip
    assert preset("mnist", 25, {"steps": None, "rate": 5.0}) == ten | {"rate": 5.0, "strategy": augment.DSA_DIGITS}
    assert preset("cifar100", 100, {})["minibatch"] == 125 and preset("cifar10", 1, {})["rate_of_step_size"] == 1e-7
    assert [preset("tiny_imagenet", n, {})["minibatch"] for n in (1, 10, 50)] == [None, 200, 300]
    assert preset("cifar10", 50, {})["latest_start"] == 40 and preset("cifar100", 1, {})["expert_epochs"] == 3


BAD = [
    (dict(iterations=0), "iterations of MTT is 0"),
    (dict(steps=0), "steps of MTT is 0"),
    (dict(expert_epochs=0), "expert_epochs of MTT is 0"),
    (dict(latest_start=0), "latest_start of MTT is 0"),
    (dict(minibatch=0), "minibatch of MTT is 0"),
    (dict(experts=0), "experts of MTT is 0"),
    (dict(at_once=0), "at_once of MTT is 0"),
    (dict(rate=-1.0), "rate of MTT is -1"),
    (dict(step_size=0.0), "step_size of MTT is 0"),
    (dict(gradient="fast"), "unknown gradient of MTT 'fast'"),
    (dict(labels="soft"), "unknown labels of MTT 'soft'"),
    (dict(expert_seed=-1), "expert_seed of MTT is -1"),
    (dict(initialisation="given"), "'given' and no set is"),
    (dict(strategy="swirl"), "swirl"),
    (dict(initialisation="zeros"), "unknown initialisation of the images 'zeros'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_refuses_before_it_trains_experts(settings, message, monkeypatch):
    monkeypatch.setattr(trajectory, "train_experts", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        trajectory_matching(job(), **settings)


def test_a_step_size_below_0_stops_the_work():
    with pytest.raises(FloatingPointError, match="step size of MTT became .*lower rate_of_step_size"):
        trajectory_matching(job(), iterations=20, **SMALL, rate_of_step_size=1e6)


def test_augmentation_differs_from_step_to_step():
    the_job = job(dtype=torch.float64)
    x = the_job.start("real")
    batches = trajectory._batches(the_job, x, the_job.labels(), {"steps": 2, "minibatch": None, "strategy": DSA}, 3)
    expected = augment.augment(x, DSA, generator(0, "MTT augmentation", 3, 1))
    assert torch.equal(batches(1)[0], expected) and not torch.equal(batches(0)[0], expected)
