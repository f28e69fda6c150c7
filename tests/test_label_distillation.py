"""Label distillation against double back-propagation in plain PyTorch, its resets, validations and base images."""

import math
from dataclasses import replace

import plain
import pytest
import resuming
import torch
import torch.nn.functional as F
from test_distill import job, toy_data
from torch import nn
from torch.func import functional_call

from ddanalysis import data, networks, unroll
from ddanalysis.architectures import build
from ddanalysis.distill import Job, Method, base_images, label_distillation, label_loop, ridge
from ddanalysis.distill.label_distillation import label_gradient, ld, ld_images, ld_images_ridge, ld_ridge
from ddanalysis.distill.label_learners import learn
from ddanalysis.seeding import generator
from ddanalysis.whitening import fit

METHODS = {"ld": ld, "ld_ridge": ld_ridge, "ld_images": ld_images, "ld_images_ridge": ld_images_ridge}
TOY = dict(inner_batch=4, batch_real=10, validation=6, window=2, validate_every=3, rate=0.02, network_rate=0.01)


def soft_loss(logits, y):
    return -(y * F.log_softmax(logits, 1)).sum(1).mean()


# --------------------------------------------------------------------------------------------------- one step exactly


@pytest.mark.parametrize(("name", "shape"), [("LeNet", (1, 28)), ("AlexCifarNet", (3, 32)), ("ResNet14", (3, 32))])
def test_the_gradient_of_labels_is_that_of_double_back_propagation(name, shape):
    channels, size = shape
    a, g = build(name, (channels, size, size), 10), torch.Generator().manual_seed(0)
    x, real = (torch.randn(n, channels, size, size, generator=g, dtype=torch.float64) for n in (4, 6))
    y, real_y = torch.rand(4, 10, generator=g).double(), torch.randint(10, (6,), generator=g)
    weights, rate = unroll.flat(networks.create(a, [0], dtype=torch.float64)), 0.01

    def logits(w, images):
        return a.logits(unroll.unflat(a, w).state, images, {})[:, 0]

    leaf, start = y.clone().requires_grad_(), weights.clone().requires_grad_()
    (step,) = torch.autograd.grad(soft_loss(logits(start, x), leaf), start, create_graph=True)
    expected = torch.autograd.grad(F.cross_entropy(logits(start - rate * step, real), real_y), leaf)[0]
    ahead = (start - rate * step).detach()
    numbers, gradient = label_distillation.target_gradient(a, ahead, real, real_y)
    found = label_gradient(a, weights, x, gradient, rate)
    assert float(expected.abs().max()) > 1e-8
    assert float((found - expected).abs().max()) < 1e-10
    assert float((found - expected).norm() / expected.norm()) < 1e-9
    assert numbers["accuracy"] == float((logits(ahead, real).argmax(1) == real_y).double().mean())
    if name == "LeNet":  # and that of finite differences
        for i, c in ((0, 3), (2, 7)):
            losses = []
            for sign in (1, -1):
                near = y.clone()
                near[i, c] += sign * 1e-3
                step = unroll.loss_and_gradient(a, weights, x, near)[1]
                losses.append(label_distillation.target_gradient(a, weights - rate * step, real, real_y)[0]["loss"])
            assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(float(found[i, c]), rel=1e-5)


def task_of(method, the_job, **settings):
    """The task and the step of a method, as it sets them up."""
    found = {}

    def catch(task, teach):
        found.update(task=task, teach=teach)

    held = label_distillation.distil
    label_distillation.distil = catch
    try:
        METHODS[method](the_job, **(TOY | settings))
    finally:
        label_distillation.distil = held
    task = found["task"]
    return task, found["teach"], {"learned": ridge.start(task.begin)} | task.network(0)


def lenet_job():
    """No network with biases before a normalisation: Adam blows up the rounding of their gradients, which are 0."""
    images = toy_data(dtype=torch.float64, size=28)
    return Job(images, build("LeNet", images.shape, 3), 2)


def plain_network(task):
    """The first network as a module."""
    state = unroll.unflat(task.job.architecture, task.network(0)["network"].weights).state
    return plain.with_state(plain.lenet(1, 28, 3), {name: t[0] for name, t in state.items()})


def rows(task, iteration, t=0):
    g = generator(task.job.seed, "inner batch", iteration, t)
    return torch.randperm(len(task.begin), generator=g)[: task.own["inner_batch"]]


def project(y):
    with torch.no_grad():
        y.clamp_(0, 1)
        y /= y.sum(1, keepdim=True)


def weights_of(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("method", ["ld", "ld_images"])
def test_iterations_of_second_order_are_those_of_plain_pytorch(method, horizon):
    task, teach, states = task_of(method, lenet_job(), horizon=horizon, inner_rate=0.3)
    module, learned = plain_network(task), task.begin.clone().requires_grad_()
    opt, outer = torch.optim.Adam(module.parameters(), lr=0.01), torch.optim.Adam([learned], lr=0.02)
    one_hot = F.one_hot(task.job.labels(), 3).double()
    for iteration in range(5):
        states, numbers = teach(task, states, iteration)
        x, y = (task.x, learned) if method == "ld" else (learned, one_hot)  # the toy's pixels are as they are
        w, first = dict(module.named_parameters()), None
        for t in range(horizon):
            own = rows(task, iteration, t)
            g = torch.autograd.grad(
                soft_loss(functional_call(module, w, x[own]), y[own]), list(w.values()), create_graph=True
            )
            first = first or g
            w = {name: old - 0.3 * new for (name, old), new in zip(w.items(), g, strict=True)}
        real_x, real_y = task.real(iteration)
        loss = F.cross_entropy(functional_call(module, w, real_x), real_y)
        (learned.grad,) = torch.autograd.grad(loss, learned, retain_graph=True)
        outer.step()
        own = rows(task, iteration)
        if method == "ld":
            project(learned)
        else:
            with torch.no_grad():
                learned.clamp_(0, 1)
            first = torch.autograd.grad(soft_loss(module(learned.detach()[own]), one_hot[own]), module.parameters())
        for p, g in zip(module.parameters(), first, strict=True):
            p.grad = g.detach()
        opt.step()
        assert numbers["loss"] == pytest.approx(float(loss.detach()), abs=1e-9)
    assert float((learned.detach() - task.begin).abs().max()) > 0.01
    assert torch.allclose(states["learned"].weights, learned.detach(), atol=1e-9, rtol=0)
    assert torch.allclose(states["network"].weights[0], weights_of(module), atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", ["ld_ridge", "ld_images_ridge"])
def test_iterations_of_ridge_regression_are_those_of_plain_pytorch(method):
    settings = dict(penalty=0.5, head_rate=0.1, scale_rate=0.02)
    task, teach, states = task_of(method, lenet_job(), **settings)
    module, learned = plain_network(task), task.begin.clone().requires_grad_()
    phi = nn.Sequential(*[part for name, part in module.named_children() if name != "head"])
    w, scale = torch.zeros(85, 3).double(), torch.ones(()).double().requires_grad_()
    opt, outer = torch.optim.Adam(phi.parameters(), lr=0.01), torch.optim.Adam([learned], lr=0.02)
    calibration = torch.optim.Adam([scale], lr=0.02)
    one_hot = F.one_hot(task.job.labels(), 3).double()

    def z_of(images):
        found = phi(images)
        return torch.cat([found, torch.ones(len(found), 1).double()], 1)

    for iteration in range(5):
        states, numbers = teach(task, states, iteration)
        own = rows(task, iteration)
        x, y = (task.x, learned) if method == "ld_ridge" else (learned, one_hot)
        z = z_of(x[own])
        w = 0.9 * w.detach() + 0.1 * z.T @ torch.linalg.inv(z @ z.T + 0.5 * torch.eye(4).double()) @ y[own]
        real_x, real_y = task.real(iteration)
        loss = F.cross_entropy(z_of(real_x) @ (scale * w), real_y)
        (learned.grad,) = torch.autograd.grad(loss, learned, retain_graph=True)
        outer.step()
        if method == "ld_ridge":
            project(learned)
        else:
            with torch.no_grad():
                learned.clamp_(0, 1)
        labels = learned.detach() if method == "ld_ridge" else one_hot
        inner = soft_loss(z @ (scale * w), labels[own])
        for p, g in zip(
            [*phi.parameters(), scale], torch.autograd.grad(inner, [*phi.parameters(), scale]), strict=True
        ):
            p.grad = g
        opt.step(), calibration.step()
        assert numbers["loss"] == pytest.approx(float(loss.detach()), abs=1e-9)
        assert numbers["inner_loss"] == pytest.approx(float(inner.detach()), abs=1e-9)
    assert float((learned.detach() - task.begin).abs().max()) > 0.01
    assert torch.allclose(states["learned"].weights, learned.detach(), atol=1e-9, rtol=0)
    assert torch.allclose(states["network"].weights[0], weights_of(module), atol=1e-9, rtol=0)
    assert torch.allclose(states["head"].weights[0], w.detach(), atol=1e-9, rtol=0)
    assert float(states["scale"].weights) == pytest.approx(float(scale.detach()), abs=1e-10)


def test_the_first_order_gradient_of_labels_is_that_of_autograd():
    the_job, constants = job(dtype=torch.float64), ridge.Ridge(0.3, 0.2)
    x, y = the_job.real_images(), torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).double()
    states = ridge.begin(networks.create(the_job.architecture, [0], dtype=torch.float64))
    g = torch.Generator().manual_seed(1)
    states["head"] = unroll.State(torch.randn(1, 5, 3, generator=g).double())
    states["scale"] = ridge.start(torch.full((1, 1, 1), 1.7, dtype=torch.float64))
    leaf = y.clone().requires_grad_()
    batch = ridge.fit(the_job.architecture, states, x, leaf, constants, {})
    real_x, real_y = the_job.data.train_x, the_job.data.train_y
    z = ridge.features(the_job.architecture, batch.weights.detach(), real_x, {})[0]
    loss = F.cross_entropy(z @ (1.7 * batch.head[0]), real_y)
    found, accuracy, gradient = ridge.target(the_job.architecture, batch, real_x, real_y)
    expected = torch.autograd.grad(loss, leaf)[0]
    assert torch.allclose(ridge.label_gradient(batch, gradient, constants)[0], expected, atol=1e-14, rtol=1e-10)
    assert float(found) == pytest.approx(float(loss.detach()), abs=1e-10)
    assert float(accuracy) == float(((z @ batch.head[0]).argmax(1) == real_y).double().mean())


def test_target_images_in_slices_are_one_batch(monkeypatch):
    the_job = job(dtype=torch.float64)
    a, x, y = the_job.architecture, the_job.data.train_x, the_job.data.train_y
    w = unroll.flat(networks.create(a, [0], dtype=torch.float64))
    batch = ridge.fit(a, ridge.begin(networks.create(a, [0], dtype=torch.float64)), x[:5], F.one_hot(y[:5], 3).double(),
                      ridge.PUBLISHED, {})  # fmt: skip
    whole = label_distillation.target_gradient(a, w, x, y), ridge.target(a, batch, x, y)
    for module in (label_distillation, ridge):
        monkeypatch.setattr(module, "images_per_pass", lambda *_: 7)
    cut = label_distillation.target_gradient(a, w, x, y), ridge.target(a, batch, x, y)
    assert cut[0][0] == pytest.approx(whole[0][0]) and torch.allclose(cut[0][1], whole[0][1], atol=1e-12)
    assert all(torch.allclose(new, old, atol=1e-12) for new, old in zip(cut[1], whole[1], strict=True))


def test_labels_stay_probabilities():
    y = torch.tensor([[0.5, 0.7, -0.2], [2.0, 1.0, 0.0], [-0.1, -0.3, 0.0]])
    expected = torch.tensor([[5 / 12, 7 / 12, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert torch.allclose(label_loop.simplex(y), expected)


# ------------------------------------------------------------------------------------------------------------ the loop


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_the_same(method, tmp_path):
    settings = TOY | {"iterations": 14}
    whole = METHODS[method](job(), **settings)
    assert int((whole.history["reset"] > 0).sum()) >= 1
    again = resuming.resumed(job(), tmp_path, lambda the_job: METHODS[method](the_job, **settings), 9, 6)
    for name in ("x", "y", "learning_rates"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert whole.history.keys() == again.history.keys()
    for name, t in whole.history.items():
        assert torch.equal(again.history[name], t) and len(t) == 14, name


def test_a_new_network_begins_where_the_clock_says_and_the_labels_go_on(monkeypatch):
    made, seen = [], []
    inside = label_distillation._second_order
    monkeypatch.setattr(
        label_loop.Task, "network", lambda self, n, old=label_loop.Task.network: made.append(n) or old(self, n)
    )

    def teach(task, states, iteration):
        seen.append((states["network"].step, states["learned"].step))
        states, numbers = inside(task, states, iteration)
        return states, numbers | {"accuracy": 0.5}  # no step is better than another

    monkeypatch.setattr(label_distillation, "_second_order", teach)
    history = ld(job(), **(TOY | {"iterations": 13, "validate_every": 100})).history
    assert made == [0, 1, 2]  # 2K + 1 = 5 steps a network
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4] * 2 + [0, 1, 2] and [n for _, n in seen] == list(range(13))
    assert history["reset"].nonzero()[:, 0].tolist() == [4, 9] and history["reset"].max() == 2
    assert history["validation_steps"].tolist() == [0] * 12 + [2]  # the mean of 2 and 2


def test_the_best_validated_labels_are_kept_and_of_equals_the_later(monkeypatch):
    accuracies, asked = iter([0.3, 0.7, 0.5, 0.7, 0.6]), []

    class Fake:
        def evaluate(self, x, y):
            assert len(x) == 6
            return type("Outputs", (), {"accuracy": torch.tensor([next(accuracies)])})

    def learn(architecture, x, y, steps, batch, seeds, head, **given):
        asked.append((steps, batch, seeds, head, given["rate"], y.clone()))
        return Fake()

    monkeypatch.setattr(label_loop, "learn", learn)
    made = ld(job(), **(TOY | {"iterations": 14, "window": 50}))
    assert [own[0] for own in asked] == [3, 6, 9, 12, 14]  # no reset yet: the steps so far; and the end, always
    assert {own[1:2] + own[3:5] for own in asked} == {(4, "linear", 0.01)} and len({own[2][0] for own in asked}) == 5
    assert torch.equal(made.y, asked[3][-1]) and not torch.equal(made.y, asked[1][-1])
    assert made.learning_rates.tolist() == pytest.approx([0.01] * 12) and made.order is None
    expected = [0, 0, 0.3, 0.3, 0.3, 0.7, 0.7, 0.7, 0.5, 0.5, 0.5, 0.7, 0.7, 0.6]
    assert made.history["validation_accuracy"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_sets_on_the_way_are_kept(method):
    kept = {}
    made = METHODS[method](replace(job(), keep=lambda n, get: kept.setdefault(n, get())), **(TOY | {"iterations": 3}))
    assert list(kept) == [0, 1, 2] and set(kept[0]) == {"x", "y", "learning_rates"}
    assert [len(one["learning_rates"]) for one in kept.values()] == [1, 1, 2]
    part = "x" if "images" in method else "y"
    assert not torch.equal(kept[0][part], kept[2][part])
    if part == "y":
        assert torch.equal(kept[0]["y"], torch.full((6, 3), 1 / 3)) and torch.equal(kept[0]["x"], made.x)
    else:
        assert made.y.tolist() == [0, 0, 1, 1, 2, 2] and 0 <= float(kept[2]["x"].min()) < float(kept[2]["x"].max()) <= 1


def test_target_images_come_in_epochs_whose_last_batch_is_short():
    task, *_ = task_of("ld", job(), batch_real=12)
    batches = [task.real(i) for i in range(6)]
    assert [len(x) for x, _ in batches] == [12, 12, 6] * 2  # 36 images, 6 of them for validation
    for epoch in (batches[:3], batches[3:]):
        seen = torch.cat([x for x, _ in epoch])
        assert len(seen.flatten(1).unique(dim=0)) == 30
        assert not (seen[:, None] == job().data.train_x[task.held_out]).flatten(2).all(2).any()
    assert not torch.equal(batches[0][0], batches[3][0])


def test_a_loss_that_is_no_number_stops_the_work():
    with pytest.raises(FloatingPointError, match="loss of LD is nan in iteration [0-9]: lower a learning rate"):
        ld(job(), **(TOY | {"iterations": 9, "inner_rate": 1e30}))


@pytest.mark.parametrize(("method", "head", "floor"), [(ld, "linear", 0.5), (ld_ridge, "ridge", 0.6)])
def test_learned_labels_beat_uniform_ones_on_digits(method, head, floor):
    images = data.load("digits")
    network = build("MLP", images.shape, images.n_classes, hidden=(64,))
    given = {"inner_rate": 0.1} if method is ld else {}
    made = method(Job(images, network, 2), 200, 0.02, 0.01, **given, batch_real=256, validate_every=100)
    found = learn(network, made.x, made.y, len(made.learning_rates), 10, range(3), head, rate=0.01)
    accuracy = found.evaluate(images.test_x, images.test_y).accuracy
    assert float(accuracy.min()) > floor  # uniform labels teach nothing: 0.1


# -------------------------------------------------------------------------------------------------------- base images


def test_published_defaults():
    settings = Method(ld, 1).settings({})
    assert (settings["iterations"], settings["rate"], settings["network_rate"]) == (19_600, 1e-3, 1e-3)
    assert (settings["inner_rate"], settings["horizon"], settings["batch_real"]) == (0.01, 1, 1024)
    assert (
        Method(ld_ridge, 1).settings({})["penalty"] == 1.0 and Method(ld_images_ridge, 1).settings({})["rate"] == 1e-3
    )


def many(name, n, classes=10):
    """A dataset of this name with n training images of one pixel."""
    y = torch.arange(n) % classes
    x = torch.arange(n, dtype=torch.float32).view(-1, 1, 1, 1)
    words = tuple(map(str, range(classes)))
    return data.ImageData(name, x, y, x[:1], y[:1], words, (0.0,), (1.0,), "made up")


@pytest.mark.parametrize(
    ("name", "n", "held_out"),
    [
        ("mnist", 60_000, 10_000), ("kmnist", 60_000, 10_000), ("cifar10", 50_000, 5_000),
        ("cifar100-jpeg", 50_000, 5_000), ("kuzushiji49", 232_365, 23_237), ("digits", 1437, 144),
    ],
)  # fmt: skip
def test_validation_images_are_as_many_as_published(name, n, held_out):
    rows, others = base_images.split(many(name, n), 0)
    assert (len(rows), len(others)) == (n - held_out, held_out)
    assert torch.equal(torch.cat([rows, others]).sort().values, torch.arange(n))
    assert torch.equal(base_images.split(many(name, n), 0, target_size=50)[0], rows[:50])
    assert not torch.equal(base_images.split(many(name, n), 1)[1], others)


@pytest.mark.parametrize(
    ("name", "classes", "ipc", "batch"),
    [("mnist", 10, 1, 10), ("mnist", 10, 2, 10), ("mnist", 10, 5, 25), ("mnist", 10, 10, 50), ("mnist", 10, 20, 50),
     ("mnist", 10, 50, 50), ("mnist", 10, 3, 30), ("cifar100", 100, 1, 100)],
)  # fmt: skip
def test_batches_and_validations_are_as_published(name, classes, ipc, batch):
    target = many(name, 60_000 if name == "mnist" else 50_000, classes)
    the_job = Job(target, build("MLP", (1, 1, 1), classes), ipc)
    given = dict.fromkeys(("inner_batch", "window", "validation", "target_size", "validate_every"), None)
    own = label_loop.preset(the_job, "labels", given | {"batch_real": 1024})
    assert own["inner_batch"] == batch and own["validate_every"] == (245 if name == "mnist" else 220)
    assert label_loop.preset(the_job, "labels", given | {"batch_real": 1024, "window": 7})["window"] == 7


def test_base_images_are_training_images_of_the_target():
    target = toy_data(12)
    rows, held_out = base_images.split(target, 0, 12)
    for balanced in (True, False):
        x, y = base_images.base_images(target, 9, 0, "", balanced, rows)
        where = (x[:, None] == target.train_x).flatten(2).all(2)
        assert where.sum(1).tolist() == [1] * 9 and torch.equal(
            where.nonzero()[:, 1].unique(), where.nonzero()[:, 1].sort()[0]
        )
        assert torch.equal(target.train_y[where.nonzero()[:, 1]], y) and not where[:, held_out].any()
        if balanced:
            assert y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        others = base_images.base_images(target, 9, 1, "toy", balanced, rows)[0]
        assert not torch.equal(others, x)
    everything = base_images.base_images(target, 36, 0)[0]
    assert len(everything.flatten(1).unique(dim=0)) == 36


def test_overlap_lets_base_images_be_validation_images():
    settings = dict(validation=30, target_size=4, balanced=False)
    for overlap in (False, True):
        task, *_ = task_of("ld", job(2), **settings, overlap=overlap)
        where = (task.x[:, None] == task.job.data.train_x[task.held_out]).flatten(2).all(2)
        assert bool(where.any()) is overlap and len(task.rows) == 4


def other(channels=3, size=10, classes=5, per_class=8):
    g = torch.Generator().manual_seed(3)
    y = torch.arange(classes).repeat(per_class)
    x = (torch.rand(len(y), channels, size, size, generator=g) - 0.5) / 0.25
    words = tuple(map(str, range(classes)))
    return data.ImageData("other", x, y, x[:2], y[:2], words, (0.5,) * channels, (0.25,) * channels, "made up")


def target_of(channels, mean=0.3, std=0.2):
    like = toy_data()
    x = like.train_x.expand(-1, channels, -1, -1)
    return replace(like, train_x=x, test_x=x[:9], mean=(mean,) * channels, std=(std,) * channels)


def test_a_source_is_brought_to_the_shape_and_space_of_the_target(monkeypatch):
    source = other()
    monkeypatch.setattr(base_images.data, "load", lambda name, **_: {"other": source}[name])
    x, y = base_images.base_images(target_of(1), 6, 0, "other")
    assert x.shape == (6, 1, 8, 8) and len(y.unique()) == 3 and y.bincount().max() == 2
    pixels = x * 0.2 + 0.3
    grey = (source.denormalise(source.train_x) * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    small = F.interpolate(grey, (8, 8), mode="bilinear", antialias=True)
    where = ((pixels[:, None] - small).abs() < 1e-5).flatten(2).all(2)
    assert where.sum(1).tolist() == [1] * 6 and torch.equal(source.train_y[where.nonzero()[:, 1]], y)


def test_grey_sources_get_three_channels_and_may_be_any_images(monkeypatch):
    source = other(1, 8)
    monkeypatch.setattr(base_images.data, "load", lambda name, **_: source)
    x, y = base_images.base_images(target_of(3), 30, 0, "other", balanced=False)
    assert x.shape == (30, 3, 8, 8) and torch.equal(x[:, 0], x[:, 2]) and len(y.unique()) == 5
    assert len(x.flatten(1).unique(dim=0)) == 30


def test_noise_has_no_classes():
    x, y = base_images.base_images(target_of(1), 40, 0, "noise")
    pixels = x * 0.2 + 0.3
    assert y is None and float(pixels.min()) >= -1e-6 and float(pixels.max()) <= 1 + 1e-6
    assert float(pixels.std()) == pytest.approx(1 / math.sqrt(12), rel=0.05)


def test_true_labels_are_numbered_anew_where_the_source_has_more_classes():
    assert base_images.true_labels(torch.tensor([2, 0, 2]), 3).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert base_images.true_labels(torch.tensor([7, 0, 7]), 3).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    made = ld(job(), **(TOY | {"iterations": 1, "start": "true", "rate": 0.0}))
    assert torch.equal(made.y, F.one_hot(job().labels(), 3).float())


BAD = [
    ({"iterations": 0}, "iterations of LD is 0"),
    ({"inner_batch": 0}, "inner_batch of LD is 0"),
    ({"inner_batch": 7}, "inner_batch of LD is 7: the set has 6 images"),
    ({"batch_real": 0}, "batch_real of label distillation is 0"),
    ({"validate_every": 0}, "validate_every of LD is 0"),
    ({"horizon": 0}, "horizon of LD is 0"),
    ({"window": 0}, "window of LD is 0"),
    ({"rate": -1.0}, "rate of LD is -1"),
    ({"network_rate": -1.0}, "network_rate of LD is -1"),
    ({"inner_rate": -1.0}, "inner_rate of LD is -1"),
    ({"start": "warm"}, "unknown start of LD 'warm': allowed are uniform, true"),
    ({"start": "true", "source": "noise"}, "noise has no true labels"),
    ({"validation": 36}, "validation takes 36 images: toy has 36"),
    ({"validation": 0}, "validation images is 0"),
    ({"target_size": 0}, "target_size is 0"),
    ({"validation": 33}, "classes of toy have 2 images: 3 are needed"),
    ({"validation": 33, "balanced": False}, "6 base images are asked for: toy has 3"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), BAD)
def test_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        ld(job(), **(TOY | given))


def test_refuses_more():
    with pytest.raises(ValueError, match="penalty of the ridge head is 0"):
        ld_ridge(job(), **TOY, penalty=0.0)
    with pytest.raises(ValueError, match="7 base images are asked for: 3 classes of as many each need a multiple"):
        base_images.base_images(toy_data(), 7, 0)
    with pytest.raises(ValueError, match="base images is 0"):
        base_images.base_images(toy_data(), 0, 0)
    with pytest.raises(ValueError, match="the base images are of 4 classes: at most 3"):
        base_images.true_labels(torch.arange(4), 3)
    the_job = job()
    white = data.whitened(the_job.data, fit("kornia", the_job.data.train_x.sigmoid(), 0.1))
    with pytest.raises(ValueError, match="LD of images learns pixels between 0 and 1: toy-zca-kornia is whitened"):
        ld_images(replace(the_job, data=white), **TOY)
