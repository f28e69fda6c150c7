"""MTT against autograd through plain PyTorch, TESLA's error, the expert pool and resumption."""

import plain
import pytest
import torch
import torch.nn.functional as F
from test_distill import job
from torch.func import functional_call

from ddanalysis import augment, networks, training, unroll
from ddanalysis.distill import Job, Method, experts, trajectory
from ddanalysis.distill.experts import train_experts
from ddanalysis.distill.trajectory import preset, trajectory_matching
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

DSA = augment.DSA_DIGITS
SMALL = dict(experts=2, expert_batch=12, expert_rate=0.05, steps=3, expert_epochs=2, latest_start=2, step_size=0.1)
POOL = Recipe(3, None, 12, learning_rate=0.05, momentum=0.0, augment=DSA)


def one_step(the_job, steps=3, step_size=0.1, gradient="exact", minibatch=None, strategy="", at_once=1):
    """Loss and gradients of iteration 0, and the stretch of expert it matches."""
    own = {
        "steps": steps, "expert_epochs": 2, "latest_start": 2, "minibatch": minibatch, "strategy": strategy,
        "gradient": gradient, "at_once": at_once,
    }  # fmt: skip
    pool = train_experts(the_job, 2, Recipe(3, None, 12, learning_rate=0.05, momentum=0.0))
    dtype = the_job.data.train_x.dtype
    learned = {"x": the_job.start("real"), "step_size": torch.tensor(step_size, dtype=dtype)}
    gradients, recorded = trajectory._step(the_job, pool, own, 0, learned)
    return learned, gradients, recorded["loss"], trajectory._stretch(the_job, pool, own, 0), own


@pytest.mark.parametrize(("minibatch", "strategy"), [(None, ""), (4, ""), (None, DSA)])
def test_the_gradient_is_that_of_a_graph_kept_whole(minibatch, strategy):
    the_job = job(dtype=torch.float64)
    learned, gradients, loss, (start, target), own = one_step(the_job, 4, 0.1, "exact", minibatch, strategy)
    x, rate = learned["x"].clone().requires_grad_(), learned["step_size"].clone().requires_grad_()
    batches = trajectory._batches(the_job, x, own, 0)
    nets = unroll.unflat(the_job.architecture, start.double())
    module = plain.with_state(plain.convnet(1, 8, 3, 4), {name: t[0] for name, t in nets.state.items()})
    w = {name: t.detach().clone().requires_grad_() for name, t in module.named_parameters()}
    assert list(w) == nets.trainable()
    for t in range(4):
        images, labels = batches(t)
        assert len(labels) == (minibatch if minibatch and t % 2 == 0 else 2 if minibatch else 6)
        g = torch.autograd.grad(
            F.cross_entropy(functional_call(module, w, images), labels), list(w.values()), create_graph=True
        )
        w = {name: old - rate * own for (name, old), own in zip(w.items(), g, strict=True)}
    end, before, after = torch.cat([t.flatten() for t in w.values()]), start[0].double(), target[0].double()
    expected = (end - after).square().sum() / (before - after).square().sum()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    for ours, theirs in zip(gradients.values(), torch.autograd.grad(expected, [x, rate]), strict=True):
        assert float((ours - theirs).norm()) < 1e-8 * float(theirs.norm())


def test_chunks_go_through_all_images_in_a_new_order_each_time():
    the_job = job(4)
    own = {"steps": 5, "minibatch": 5, "strategy": ""}
    batches = trajectory._batches(the_job, torch.arange(12.0).view(12, 1, 1, 1), own, 0)
    rows = [batches(t)[0].flatten().tolist() for t in range(6)]
    assert [len(r) for r in rows] == [5, 5, 2, 5, 5, 2]
    assert sorted(sum(rows[:3], [])) == sorted(sum(rows[3:], [])) == list(range(12)) and rows[0] != rows[3]
    assert batches(3)[0].flatten().tolist() == rows[3] and batches(3)[1].tolist() == [int(r) // 4 for r in rows[3]]


def test_students_at_once_are_averaged():
    the_job = job(dtype=torch.float64)
    _, both, loss, (starts, targets), own = one_step(the_job, at_once=2)
    assert starts.shape == targets.shape and len(starts) == 2 and not torch.equal(starts[0], starts[1])
    learned, total, losses = {"x": the_job.start("real"), "step_size": torch.tensor(0.1, dtype=torch.float64)}, {}, 0.0
    for k in range(2):
        lone = experts.Experts([torch.stack([starts[k], targets[k]])])
        alone = own | {"at_once": 1, "expert_epochs": 1, "latest_start": 1}
        gradients, recorded = trajectory._step(the_job, lone, alone, 0, learned)
        losses += recorded["loss"] / 2
        total = {name: total.get(name, 0) + t / 2 for name, t in gradients.items()}
    assert loss == pytest.approx(losses, rel=1e-10)
    for name, t in both.items():
        assert torch.allclose(t, total[name], rtol=1e-8, atol=1e-12)


def test_tesla_is_exact_for_one_step_and_the_further_off_the_longer_the_way():
    the_job = job(dtype=torch.float64, depth=2, norm="none")
    error, cosine = {}, {}
    for steps, size in ((1, 1.0), (20, 0.01), (20, 0.1), (20, 1.0)):
        _, exact, loss, _, _ = one_step(the_job, steps, size)
        _, tesla, same, _, _ = one_step(the_job, steps, size, "tesla")
        assert same == loss and torch.allclose(tesla["step_size"], exact["step_size"]) is (steps == 1)
        error[steps, size] = float((tesla["x"] - exact["x"]).norm() / exact["x"].norm())
        cosine[steps, size] = float(F.cosine_similarity(tesla["x"].flatten(), exact["x"].flatten(), dim=0))
    assert error[1, 1.0] < 1e-12
    assert error[20, 0.01] == pytest.approx(0.04, abs=0.01) and cosine[20, 0.01] > 0.999
    assert error[20, 0.1] == pytest.approx(0.34, abs=0.05) and error[20, 1.0] > 0.7


def test_updates_are_sgd_with_momentum_and_the_step_size_is_recorded():
    settings = SMALL | dict(rate=2.0, rate_of_step_size=1e-3, momentum=0.5, strategy="")
    made = trajectory_matching(job(), iterations=2, **settings)
    own = preset("toy", 2, {k: v for k, v in settings.items()} | {"gradient": "exact", "at_once": 1})
    pool = train_experts(job(), 2, Recipe(3, None, 12, learning_rate=0.05, momentum=0.0))
    x, size = job().start("real").requires_grad_(), torch.tensor(0.1, requires_grad=True)
    opt = torch.optim.SGD([{"params": [x], "lr": 2.0}, {"params": [size], "lr": 1e-3}], momentum=0.5)
    for iteration in range(2):
        found, recorded = trajectory._step(job(), pool, own, iteration, {"x": x.detach(), "step_size": size.detach()})
        x.grad, size.grad = found["x"], found["step_size"]
        opt.step()
        assert float(made.history["loss"][iteration]) == pytest.approx(recorded["loss"], rel=1e-6)
        assert float(made.history["learning_rate"][iteration]) == pytest.approx(float(size.detach()), rel=1e-6)
    assert torch.allclose(made.x, x, atol=1e-6) and made.y.tolist() == [0, 0, 1, 1, 2, 2]


def test_experts_are_networks_trained_for_so_many_epochs():
    the_job = job()
    pool = train_experts(the_job, 2, POOL)
    assert len(pool) == 2 and pool[0].shape == (4, the_job.architecture.parameter_count())
    seed = stream_seed(0, "expert", 1)
    net = networks.create(the_job.architecture, [seed])
    data = the_job.data
    for epochs in (0, 1, 3):
        trained = training.train(
            net, data.train_x, data.train_y, Recipe(epochs, None, 12, "sgd", 0.05, 0.0, augment=DSA), [seed]
        )
        assert torch.allclose(pool[1][epochs], unroll.flat(trained.networks)[0], atol=1e-5)
    assert not torch.equal(pool[0][0], pool[1][0])


def test_an_expert_is_trained_no_further_than_it_is_used(monkeypatch):
    asked = []

    def record(the_job, count, recipe):
        asked.append((count, recipe))
        return train_experts(the_job, 1, recipe)

    monkeypatch.setattr(trajectory, "train_experts", record)
    trajectory_matching(job(), iterations=1, **(SMALL | {"experts": 7, "latest_start": 3}), strategy=DSA)
    assert asked == [(7, Recipe(4, None, 12, learning_rate=0.05, momentum=0.0, augment=DSA))]


@pytest.mark.parametrize("in_memory", [2**31, 0], ids=["in memory", "from files"])
def test_resumes_exactly_wherever_it_stopped(in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "IN_MEMORY", in_memory)
    monkeypatch.setattr(experts, "networks_together", lambda *_: 1)
    whole = trajectory_matching(job(), iterations=5, **SMALL)

    class Stop(Exception):
        pass

    calls = 0

    def stop(n):
        nonlocal calls
        calls += 1
        if calls in (5, 14, 17):  # while the first expert trains, behind the second, in the third iteration
            raise Stop

    data, a = job().data, job().architecture
    checkpoint = Checkpoint(tmp_path / "x.checkpoint", {}, seconds=0)
    for _ in range(3):
        with pytest.raises(Stop):
            trajectory_matching(Job(data, a, 2, 0, checkpoint, stop), iterations=5, **SMALL)
    resumed = trajectory_matching(Job(data, a, 2, 0, checkpoint, stop), iterations=5, **SMALL)
    assert torch.equal(whole.x, resumed.x)
    assert all(torch.equal(t, resumed.history[name]) for name, t in whole.history.items())
    assert calls < 9 * 2 + 5 + 4  # nothing but the interrupted update was done twice
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


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


def test_an_expert_that_has_gone_is_missed(tmp_path):
    gone = experts.Experts([Checkpoint(tmp_path / "x", {})])
    with pytest.raises(RuntimeError, match="expert 0 have gone"):
        gone[0]


def test_augmentation_differs_from_step_to_step():
    the_job = job(dtype=torch.float64)
    x = the_job.start("real")
    batches = trajectory._batches(the_job, x, {"steps": 2, "minibatch": None, "strategy": DSA}, 3)
    expected = augment.augment(x, DSA, generator(0, "MTT augmentation", 3, 1))
    assert torch.equal(batches(1)[0], expected) and not torch.equal(batches(0)[0], expected)
