"""Sets made step by step: gradients against autograd and finite differences, modes, networks, schedules, resumption."""

import inspect
from dataclasses import replace

import plain
import pytest
import resuming
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_distill import job, toy_data
from torch.func import functional_call

from ddanalysis import data, networks, training
from ddanalysis.architectures import build
from ddanalysis.distill import Method, dd_networks, label_starts
from ddanalysis.distill import dataset_distillation as distillation
from ddanalysis.distill.cost import estimate
from ddanalysis.distill.dataset_distillation import dd, sldd, step_order
from ddanalysis.distill.dd_networks import starts
from ddanalysis.distill.dd_settings import BETAS, Settings
from ddanalysis.distilled import DistilledSet
from ddanalysis.seeding import stream_seed
from ddanalysis.training import Recipe, epoch_order
from ddanalysis.whitening import fit

SMALL = dict(iterations=2, steps=2, passes=2, batch_real=9, step_size=0.1)


def small(ipc=2, seed=0, dtype=torch.float64, **options):
    return job(ipc, seed, dtype, **options)


def mlp(images=None, ipc=2):
    """A job of float32 with a network that learns the toy data in a few steps."""
    images = images or toy_data()
    return distillation.Job(images, build("MLP-small", images.shape, images.n_classes), ipc)


def taught(the_job, settings, made):
    """The first network that a set is for, trained on it as it says of itself."""
    steps, batch = made.order.shape
    recipe, net = Recipe(updates=steps, batch_size=batch, momentum=0.0), starts(the_job, settings, 1, False)
    rates = made.learning_rates.tolist()
    return training.train(net, made.x, made.y, recipe, [0], [made.order], rates=rates).networks


def plan_of(the_job, **settings):
    return distillation._Plan.of(the_job, Settings(**(SMALL | settings)))


def leaves_of(plan):
    return {name: plan.start[name].clone().requires_grad_() for name in plan.learns}


def trained(plan, learned, net):
    """Plain PyTorch: a module and its weights after the steps, with a graph."""
    own, now = plan.own, plan.start | learned
    module = plain.with_state(plain.convnet(1, 8, 3, 4), {name: t[0] for name, t in net.state.items()})
    w = {name: t.detach().clone().requires_grad_() for name, t in module.named_parameters()}
    sizes = F.softplus(now["rates"]) if own.positive_rates else now["rates"]
    labels = now["y"].softmax(1) if own.label_softmax else now["y"]
    mean, square = ({name: torch.zeros_like(t) for name, t in w.items()} for _ in range(2))
    for t in range(own.steps * own.passes):
        rows, rate = plan.order[t], sizes[0 if own.shared_rate else t]
        loss = F.cross_entropy(functional_call(module, w, now["x"][rows]), labels[rows])
        g = dict(zip(w, torch.autograd.grad(loss, list(w.values()), create_graph=True), strict=True))
        if own.inner != "sgd":
            mean = {name: 0.9 * mean[name] + 0.1 * g[name] for name in w}
            square = {name: 0.999 * square[name] + 0.001 * g[name] ** 2 for name in w}
            unbiased = 1 - 0.999 ** (t + 1)
            epsilon = 1e-8 / unbiased**0.5 if own.inner == "adam-higher" else 1e-8
            roots = {name: (s.clamp(min=1e-60) / unbiased).sqrt() + epsilon for name, s in square.items()}
            g = {name: mean[name] / (1 - 0.9 ** (t + 1)) / roots[name] for name in w}
        w = {name: w[name] - rate * g[name] for name in w}
    return module, w


def plain_loss(plan, learned, nets, x, y):
    """The mean loss of networks on real images, with a graph."""
    losses = [F.cross_entropy(functional_call(*trained(plan, learned, net), x), y) for net in nets]
    return torch.stack(losses).mean()


def close(found, expected, tolerance=1e-10):
    return float((found - expected).norm()) <= tolerance * float(expected.norm()) and float(expected.norm()) > 0


VARIANTS = {
    "hard labels": {},
    "soft labels": {"learn_labels": True},
    "every option": {"learn_labels": True, "label_softmax": True, "label_scale": 3.0, "shared_rate": True},
    "raw rates": {"positive_rates": False, "learn_labels": True, "label_start": "normal"},
    "labels alone": {"learn_images": False, "learn_labels": True, "label_classes": [2, 0]},
    "rates alone": {"learn_images": False},
    "images alone": {"learn_rates": False},
    "adam inside": {"inner": "adam", "learn_labels": True, "step_size": 0.01},
    "adam of higher inside": {"inner": "adam-higher", "learn_labels": True, "step_size": 0.01},
    "three networks": {"at_once": 3, "learn_labels": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_autograd_through_training(variant):
    the_job = small()
    plan = plan_of(the_job, **VARIANTS[variant])
    leaves, nets = leaves_of(plan), plan.pool(1)
    x, y = distillation._real_batch(the_job, plan.own, 1)
    gradients, recorded = distillation._step(plan, 1, {name: t.detach() for name, t in leaves.items()}, {})
    loss = plain_loss(plan, leaves, nets, x, y)
    assert recorded["loss"] == pytest.approx(float(loss.detach()), rel=1e-10)
    expected = torch.autograd.grad(loss, list(leaves.values()))
    assert list(gradients) == list(leaves)
    for name, own in zip(leaves, expected, strict=True):
        assert close(gradients[name], own, 1e-8 if "adam" in variant else 1e-10), name


def test_gradients_are_those_of_finite_differences():
    plan = plan_of(small(), learn_labels=True)
    learned = {name: t.detach() for name, t in leaves_of(plan).items()}
    gradients, _ = distillation._step(plan, 0, dict(learned), {})
    for name, gradient in gradients.items():
        along = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ends = [
            distillation._step(plan, 0, learned | {name: learned[name] + e * along}, {})[1]["loss"]
            for e in (1e-6, -1e-6)
        ]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * along).sum()), rel=1e-5)


def test_networks_at_once_are_the_mean_of_single_ones_however_they_are_split(monkeypatch):
    plan = plan_of(small(), at_once=3)
    learned = {name: t.detach() for name, t in leaves_of(plan).items()}
    together, recorded = distillation._step(plan, 2, dict(learned), {})
    nets = plan.pool(2)
    singles = [distillation._step(replace(plan, pool=lambda _, k=k: nets[k]), 2, dict(learned), {}) for k in range(3)]
    for name, gradient in together.items():
        assert close(torch.stack([g[name] for g, _ in singles]).mean(0), gradient, 1e-12)
    assert recorded["loss"] == pytest.approx(sum(r["loss"] for _, r in singles) / 3)
    for what, value in (("networks_together", lambda *_: 2), ("KEPT", {"cpu": 0})):
        monkeypatch.setattr(distillation, what, value)
        for name, gradient in distillation._step(plan, 2, dict(learned), {})[0].items():
            assert close(gradient, together[name], 1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_order_and_rates_of_the_set_are_the_training_inside(soft):
    """Networks trained on the set as it says of itself have the loss that its next iteration records."""
    the_job, settings = small(), SMALL | {"learn_labels": soft, "label_softmax": soft, "label_scale": 2.0}
    made = dd(the_job, **settings | {"iterations": 3})
    after = dd(the_job, **settings | {"iterations": 4})
    own = Settings(**settings | {"iterations": 4})
    net = starts(the_job, settings, 4, held_out=False)[3]
    assert made.order.shape == (4, 3) and made.learning_rates.shape == (4,) and made.y.dtype == torch.float64
    recipe, rates = Recipe(updates=4, batch_size=3, momentum=0.0), made.learning_rates.tolist()
    ended = training.train(net, made.x, made.y, recipe, [0], [made.order], rates=rates).networks
    x, y = distillation._real_batch(the_job, own, 3)
    assert float(ended.loss(x, y)) == pytest.approx(float(after.history["loss"][3]), rel=1e-6)
    assert torch.equal(made.history["loss"], after.history["loss"][:3])


@pytest.mark.parametrize("outer", ["adam", "adamw"])
def test_what_is_learned_moves_by_pytorchs_optimisers_and_rates_decay_when_they_should(outer):
    the_job = small()
    settings = dict(iterations=5, learn_labels=True, rate=0.05, decay=0.5, decay_every=2, outer=outer)
    settings |= {"weight_decay": 0.3} if outer == "adamw" else {}
    made = dd(the_job, **SMALL | settings)
    plan = plan_of(the_job, **settings)
    learned = {name: t.detach() for name, t in leaves_of(plan).items()}
    parameters = {name: t.clone().requires_grad_() for name, t in learned.items()}
    if outer == "adam":
        optimiser = torch.optim.Adam(parameters.values(), betas=(0.5, 0.999))
    else:
        optimiser = torch.optim.AdamW(parameters.values(), weight_decay=0.3)
    for iteration, rate in enumerate((0.05, 0.05, 0.025, 0.025, 0.0125)):
        optimiser.param_groups[0]["lr"] = rate
        now = {name: t.detach().clone() for name, t in parameters.items()}
        gradients, _ = distillation._step(plan, iteration, now, {})
        for name, t in parameters.items():
            t.grad = gradients[name]
        optimiser.step()
        sizes = F.softplus(parameters["rates"].detach())
        assert float(made.history["learning_rate"][iteration]) == pytest.approx(float(sizes.mean()), rel=1e-5)
    for found, expected in ((made.x, parameters["x"]), (made.y, parameters["y"]), (made.learning_rates, sizes)):
        assert torch.allclose(found, expected.detach(), atol=1e-9)


def test_networks_are_random_fixed_or_drawn_from_a_pool():
    the_job, every = small(), SMALL | {"at_once": 2}
    random, fixed = plan_of(the_job, at_once=2).pool, plan_of(the_job, networks="fixed", fixed=3).pool
    heads = [random(i).state["head.weight"] for i in range(2)]
    assert heads[0].shape[0] == 2 and not torch.equal(heads[0], heads[1])
    assert torch.equal(torch.cat(heads), starts(the_job, every, 4, False).state["head.weight"])
    held_out = starts(the_job, every, 4, True).state["head.weight"]
    assert len(held_out) == 4 and not torch.isin(held_out, torch.cat(heads)).any()
    assert fixed(0) is fixed(7) and len(fixed(0)) == 3
    for own in (starts(the_job, {"networks": "fixed", "fixed": 3}, n, h) for n, h in ((1, True), (9, False))):
        assert torch.equal(own.state["head.weight"], fixed(0).state["head.weight"])
    settings = SMALL | {"networks": "pretrained", "pretrained": 3, "pretrained_epochs": 2, "at_once": 2}
    sample = plan_of(the_job, **settings).pool
    drawn = [sample(i).state["head.weight"] for i in range(60)]
    pool = starts(the_job, settings, 5, False).state["head.weight"]
    assert len(pool) == 3 and all(torch.isin(one, pool).all() for one in drawn)
    assert len({tuple(one[:, 0, 0].tolist()) for one in drawn}) == 6  # ordered pairs of 3
    assert not torch.isin(starts(the_job, settings, 3, True).state["head.weight"], pool).any()


def test_networks_start_by_the_law_of_their_weights():
    for law in ("xavier_normal", "orthogonal"):
        seeds = [stream_seed(4, "DD network", "held out", k) for k in range(2)]
        found = starts(small(seed=4), {"weights": law}, 2, True)
        expected = networks.create(small().architecture, seeds, law, dtype=torch.float64)
        assert all(torch.equal(found.state[name], t) for name, t in expected.state.items())


def test_pretrained_networks_have_learned_and_are_kept(monkeypatch):
    monkeypatch.setitem(dd_networks.PRETRAINING, "mnist", (20, 30, 0.01))
    asked = []

    def share(kind, name, version, arguments, build):
        asked.append((kind, name, arguments["count"], arguments["held_out"]))
        return build(None, None)

    settings = {"networks": "pretrained", "pretrained": 2, "step_size": 1e-6}
    the_job = replace(mlp(), share=share)
    untrained = float(dd(the_job, **SMALL | {"step_size": 1e-6}).history["loss"][0])
    assert float(dd(the_job, **SMALL | settings).history["loss"][0]) < 0.1 < 0.8 < untrained
    starts(the_job, settings, 4, True)
    name = "pretrained_toy_MLP-256-128"
    assert asked == [("models", name, 2, False), ("models", f"{name}_held_out", 4, True)]


@pytest.mark.parametrize(
    ("dataset", "recipe"),
    [("mnist", (40, (20,), 2e-4)), ("usps", (130, (40, 80, 120), 2e-4)), ("svhn", (65, (20, 40, 60), 2e-4)),
     ("cifar10-jpeg", (50, tuple(range(7, 50, 7)), 1e-3)), ("digits", (40, (20,), 2e-4))],
)  # fmt: skip
def test_pretraining_is_as_published(dataset, recipe):
    found = dd_networks.pretraining(dataset)
    assert (found.epochs, found.milestones, found.learning_rate) == recipe
    assert (found.optimiser, found.batch_size, found.decay) == ("adam", 1024, 0.5)
    assert dd_networks.pretraining(dataset, 3).epochs == 3 and dd_networks.pretraining(dataset, 3).milestones == ()


def source(monkeypatch, size=8, classes=3, channels=1):
    """Another toy dataset under the name of one."""
    other = replace(toy_data(classes=classes, size=size), name="other")
    other = replace(other, train_x=-2 * other.train_x.expand(-1, channels, -1, -1), mean=(0.0,) * channels)
    monkeypatch.setattr(data, "load", lambda name, root, device: other)
    return other


ADAPT = {"networks": "pretrained", "source": "usps", "pretrained": 2, "pretrained_epochs": 20}


def test_adaptation_starts_from_networks_of_the_source(monkeypatch):
    monkeypatch.setitem(dd_networks.PRETRAINING, "mnist", (9, 30, 0.01))
    other = source(monkeypatch)
    nets = starts(mlp(), ADAPT, 2, False)
    assert nets.evaluate(other.train_x, other.train_y).accuracy.min() > 0.9
    assert nets.evaluate(toy_data().train_x, toy_data().train_y).accuracy.max() < 0.5
    gentle = {"iterations": 60, "rate": 0.1, "step_size": 0.01, "at_once": 2}
    loss = dd(mlp(), **SMALL | ADAPT | gentle).history["loss"]
    assert loss[-5:].max() < 0.3 < 3 < loss[0]


def test_a_source_of_another_size_is_scaled_unless_its_networks_are_the_same(monkeypatch):
    other = source(monkeypatch, size=16)
    found, a = dd_networks.source_of(small(), "usps")
    assert a == small().architecture and found.train_x.shape[1:] == (1, 8, 8)
    assert float(found.train_x.mean()) == pytest.approx(float(other.train_x.mean()), abs=0.05)
    source(monkeypatch, size=32)
    toy = toy_data(size=28)
    lenet = distillation.Job(toy, build("LeNet", toy.shape, 3), 1)
    found, a = dd_networks.source_of(lenet, "svhn")
    assert a.size == 32 and found.train_x.shape[1:] == (1, 32, 32) and a.weights() == lenet.architecture.weights()


def zoo(folder, count):
    """Files of LeNets under the names of a plain module, half of them in safetensors."""
    folder.mkdir()
    toy = toy_data(size=28)
    a = build("LeNet", toy.shape, 3)
    nets = networks.create(a, list(range(count)))
    theirs = {"conv0": "conv1", "conv1": "conv2", "fc0": "fc1", "fc1": "fc2", "head": "fc3"}
    for k, one in enumerate(nets):
        state = {f"{theirs[name.split('.')[0]]}.{name.split('.')[1]}": t[0].clone() for name, t in one.state.items()}
        if k % 2:
            save_file(state, folder / f"net_{k:04d}.safetensors")
        else:
            torch.save({"state_dict": state}, folder / f"net_{k:04d}.pth")
    return distillation.Job(toy, a, 1), nets


def test_networks_may_be_a_users_own(tmp_path):
    the_job, nets = zoo(tmp_path / "zoo", 5)
    own = {"networks": "pretrained", "source": str(tmp_path / "zoo"), "pretrained": 3, "at_once": 2}
    for held_out, count, expected in ((False, 9, nets[:3]), (True, 2, nets[3:])):
        found = starts(the_job, own, count, held_out)
        assert len(found) == len(expected)
        assert all(torch.equal(t, expected.state[name]) for name, t in found.state.items())
    made = dd(the_job, **SMALL | own | {"steps": 1, "iterations": 2, "step_size": 0.01})
    assert torch.isfinite(made.x).all() and len(made.history["loss"]) == 2
    with pytest.raises(ValueError, match="zoo holds 5 networks: 6 are needed"):
        starts(the_job, own, 3, True)
    with pytest.raises(ValueError, match="zoo holds 5 networks: 7 are needed"):
        starts(the_job, own | {"pretrained": 7}, 3, False)
    with pytest.raises(ValueError, match="is no state dict of MLP-256-128: it lacks fc0.weight"):
        starts(mlp(), own, 2, True)
    assert estimate(the_job, "dd", SMALL | own | {"steps": 1}).flops > 0


@pytest.mark.parametrize("soft", [False, True])
def test_an_attack_relabels_the_outer_loss_alone(soft):
    the_job = mlp()
    settings = SMALL | {"learn_labels": soft, "attack": [0, 2], "batch_real": 36, "networks": "fixed"}
    x, y = distillation._real_batch(the_job, Settings(**settings), 0)
    true = the_job.data.train_y
    assert torch.equal(x, the_job.data.train_x) and torch.equal(y, torch.where(true == 0, 2, true))
    assert torch.equal(true, toy_data().train_y)
    start = plan_of(the_job, **settings).start
    assert torch.equal(start["y"], plan_of(the_job, learn_labels=soft).start["y"])
    made = dd(the_job, **settings | {"iterations": 25, "rate": 0.05})
    said = taught(the_job, settings, made).evaluate(the_job.data.train_x, true).predictions[0]
    for own, called in ((0, 2), (1, 1), (2, 2)):
        assert (said[true == own] == called).double().mean() > 0.9


def test_real_batches_are_permutations_of_epochs():
    own = Settings(batch_real=10)
    whole = [torch.cat([distillation._real_batch(small(), own, 4 * e + i)[1] for i in range(4)]) for e in range(2)]
    seed = stream_seed(0, "DD real batches")
    for epoch, found in enumerate(whole):
        rows = epoch_order(Recipe(updates=1, batch_size=10), torch.arange(36), seed, epoch)
        assert torch.equal(found, small().data.train_y[rows]) and sorted(rows.tolist()) == list(range(36))
    augmented = distillation._real_batch(small(), replace(own, strategy="crop_flip"), 1)[0]
    assert augmented.shape == (10, 1, 8, 8) and not torch.equal(augmented, distillation._real_batch(small(), own, 1)[0])


def test_steps_are_walked_in_order():
    assert step_order(2, 4, 2, 3).tolist() == 3 * [[0, 1, 4, 5], [2, 3, 6, 7]]
    made = sldd(small(ipc=4), **SMALL | {"label_classes": [2, 0], "iterations": 1, "learn_labels": False})
    assert made.y.tolist() == [2] * 4 + [0] * 4 and made.order.tolist() == step_order(2, 4, 2, 2).tolist()


def test_fewer_images_than_classes():
    one = sldd(small(1), **SMALL | {"steps": 1, "label_classes": [1]})
    assert one.x.shape == (1, 1, 8, 8) and one.y.shape == (1, 3) and one.order.tolist() == [[0], [0]]
    every = plan_of(small(2)).start["x"].view(3, 2, 1, 8, 8)
    some = plan_of(small(2), label_classes=[2, 1]).start["x"]
    assert torch.equal(some, every[[2, 1]].flatten(0, 1))


def test_images_start_as_they_should():
    the_job = replace(small(), data=replace(toy_data(dtype=torch.float64), mean=(0.3,), std=(2.0,)))
    uniform = plan_of(the_job, initialisation="uniform").start["x"]
    pixels = the_job.data.denormalise(uniform)
    assert 0 <= pixels.min() < 0.05 and 0.95 < pixels.max() < 1 and pixels.dtype == torch.float64
    assert torch.equal(plan_of(the_job, initialisation="noise").start["x"], the_job.noise().double())
    real = plan_of(the_job, initialisation="real", learn_images=False)
    assert torch.equal(real.start["x"], the_job.real_images()) and "x" not in real.learns
    made = dd(the_job, **SMALL | {"initialisation": "real", "learn_images": False, "learn_labels": True})
    assert torch.equal(made.x, the_job.real_images())


def test_a_given_set_is_begun_with():
    y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    one = DistilledSet(toy_data().train_x[:6], y, 3, (0.0,), (1.0,), "dd", "toy", 2)
    plan = plan_of(replace(small(), given=one), initialisation="given", label_start="given", learn_labels=True)
    assert torch.equal(plan.start["x"], one.x.double()) and torch.equal(plan.start["y"], y.double())
    hard = replace(one, y=torch.tensor([0, 0, 1, 1, 2, 2]))
    plan = plan_of(replace(small(), given=hard), label_start="given", label_scale=2.0, label_shift=-0.5)
    assert torch.equal(plan.start["y"], 2 * (torch.eye(3)[[0, 0, 1, 1, 2, 2]].double() - 0.5))
    assert torch.equal(plan.start["x"], small().noise().double())


def test_labels_start_as_asked_and_are_kept_where_they_are_not_learned():
    the_job, y = small(), torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.equal(plan_of(the_job).start["y"], y)
    for name in ("smoothed", "normal", "orthogonal", "means-mse"):
        expected = (label_starts.start(name, the_job.data, [0, 1, 2], 2, 0) - 0.5) * 10
        settings = SMALL | {"label_start": name, "label_shift": -0.5, "label_scale": 10.0}
        assert torch.equal(dd(the_job, **settings).y, expected)
        assert torch.equal(dd(the_job, **settings | {"label_softmax": True}).y, expected.softmax(1))
        assert not torch.equal(sldd(the_job, **settings).y, expected)


def test_step_sizes_start_at_the_step_size():
    for size in (0.001, 0.02, 17.5):
        plan = plan_of(small(), step_size=size)
        assert torch.allclose(plan.rates(plan.start), torch.full((4,), size, dtype=torch.float64), rtol=1e-9)
    shared = plan_of(small(), shared_rate=True, positive_rates=False)
    assert torch.equal(shared.start["rates"], torch.tensor([0.1], dtype=torch.float64))
    assert torch.equal(shared.as_set({})["learning_rates"], torch.full((4,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("settings", [{}, {"label_softmax": True, "shared_rate": True, "outer": "adamw"}])
def test_resumes_exactly(settings, tmp_path):
    settings = SMALL | {"iterations": 5, "at_once": 2, "decay_every": 2} | settings
    the_job = small(dtype=torch.float32)
    whole = sldd(the_job, **settings)
    resumed = resuming.resumed(the_job, tmp_path, lambda own: sldd(own, **settings), after=3, left=3)
    for name in ("x", "y", "learning_rates", "order"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name))
    assert all(torch.equal(resumed.history[name], t) and len(t) == 5 for name, t in whole.history.items())


def test_the_set_is_kept_on_the_way():
    kept = {}
    the_job = replace(small(dtype=torch.float32), keep=lambda n, tensors: kept.update({n: tensors()}))
    made = sldd(the_job, **SMALL)
    assert set(kept) == {0, 1} and set(kept[0]) == {"x", "y", "learning_rates", "order"}
    assert torch.equal(kept[0]["y"], torch.eye(3)[[0, 0, 1, 1, 2, 2]]) and torch.equal(kept[1]["order"], made.order)


def test_the_small_notebook_is_a_matter_of_settings():
    """An Adam step inside, many fresh networks, one raw step size, AdamW outside (its README's departures)."""
    settings = dict(
        iterations=3, steps=1, passes=1, batch_real=9, networks="random", at_once=12, weights="xavier_uniform",
        step_size=0.01, positive_rates=False, shared_rate=True, inner="adam-higher", outer="adamw", rate=1e-3,
        decay=1.0, weight_decay=0.01, initialisation="uniform",
    )  # fmt: skip
    the_job = mlp()
    made = dd(the_job, **settings)
    start = plan_of(the_job, **settings).start["x"]
    assert made.y.tolist() == [0, 0, 1, 1, 2, 2] and made.learning_rates.shape == (1,)
    assert 0 < float((made.x - start).abs().max()) < 3 * 1.1e-3 and made.learning_rates != 0.01


def test_published_constants_and_the_settings_of_the_methods():
    published = {
        "iterations": 23_600, "steps": 10, "passes": 3, "step_size": 0.02, "rate": 0.01, "decay": 0.5,
        "decay_every": 2360, "batch_real": 1024, "networks": "random", "weights": "xavier_normal",
        "learn_images": True, "learn_labels": False, "label_start": "one-hot", "positive_rates": True,
    }  # fmt: skip
    assert published.items() <= Method(dd, 1).settings({}).items()
    assert Method(sldd, 1).settings({}) == Method(dd, 1).settings({"learn_labels": True})
    assert dd.__name__ == "dd" and list(inspect.signature(dd).parameters)[0] == "job"
    assert {"usps", "mnist"} <= set(dd_networks.PRETRAINING) and BETAS["adam"] == (0.5, 0.999)


def test_a_fixed_network_learns_the_digits():
    digits = data.load("digits")
    the_job = mlp(digits, 1)
    settings = dict(iterations=40, steps=1, passes=3, networks="fixed", batch_real=256, rate=0.05, step_size=0.1)
    made = dd(the_job, **settings)
    net, ended = starts(the_job, settings, 1, True), taught(the_job, settings, made)
    before, after = (float(n.evaluate(digits.test_x, digits.test_y).accuracy) for n in (net, ended))
    assert before < 0.3 and after > before + 0.4
    assert made.history["loss"][-10:].mean() < 0.5 * made.history["loss"][0]


def bad(the_job=None, **settings):
    return lambda: dd(the_job or small(), **SMALL | settings)


def given(n, **settings):
    one = DistilledSet(toy_data().train_x[:n], torch.arange(n), 3, (0.0,), (1.0,), "dd", "toy", 1)
    return bad(replace(small(), given=one), **settings)


def whitened():
    toy = toy_data()
    return replace(small(), data=replace(toy, whitening=fit("kornia", toy.train_x.sigmoid(), 0.1)))


NOT_0 = ("iterations", "steps", "passes", "decay_every", "batch_real", "at_once", "fixed", "pretrained",
         "pretrained_epochs", "step_size", "decay")  # fmt: skip
BAD = [
    *((bad(**{name: 0}), f"{name} of DD is 0") for name in NOT_0),
    (bad(rate=-1.0), "rate of DD is -1"),
    (bad(weight_decay=-1.0, outer="adamw"), "weight_decay of DD is -1"),
    (bad(weight_decay=0.1), "weight_decay of DD is 0.1: it is for outer 'adamw'"),
    (bad(decay=1.5), "decay of DD is 1.5: it must be above 0, and at most 1"),
    (bad(networks="new"), "unknown networks of DD 'new'"),
    (bad(weights="ones"), "unknown weights of DD 'ones'"),
    (bad(inner="adamw"), "unknown inner optimiser of DD 'adamw'"),
    (bad(outer="sgd"), "unknown outer optimiser of DD 'sgd'"),
    (bad(source="usps"), "source of DD is 'usps': networks are 'random'"),
    (bad(learn_images=False, learn_rates=False), "neither images nor labels nor rates"),
    (bad(strategy="swirl"), "swirl"),
    (bad(initialisation="mean"), "unknown initialisation of the images 'mean'"),
    (bad(label_start="hot"), "unknown label_start of DD 'hot'"),
    (bad(label_start="file"), "label_start is 'file' and label_file ''"),
    (bad(steps=3), "ipc is 2 and steps of DD 3"),
    (bad(label_classes=[]), r"label_classes of DD is \[\]: 1 different classes, 0 to 2"),
    (bad(label_classes=[0, 0]), r"label_classes of DD is \[0, 0\]: 2 different classes"),
    (bad(label_classes=[3]), r"label_classes of DD is \[3\]"),
    (bad(attack=[1]), r"attack of DD is \[1\]: 2 different classes, 0 to 2"),
    (bad(attack=[1, 1]), r"attack of DD is \[1, 1\]"),
    (bad(attack=[0, 3]), r"attack of DD is \[0, 3\]"),
    (bad(initialisation="given"), "to start as 'given' and no set is"),
    (bad(label_start="given"), "to start as 'given' and no set is"),
    (given(3, initialisation="given"), r"dd_toy_ipc1_s0 has images \(3, 1, 8, 8\): \(6, 1, 8, 8\) are needed"),
    (bad(networks="pretrained", pretrained=2, at_once=3), "at_once of DD is 3: only 2 networks are pretrained"),
    (bad(whitened(), **ADAPT), "source of DD is usps and toy is whitened"),
    (lambda: starts(small(), {"lr": 1}, 1, True), "unknown setting of dd 'lr'"),
    (lambda: starts(small(), {}, 0, True), "count of networks is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("channels", "classes"), [(3, 3), (1, 2)])
def test_refuses_a_source_of_other_channels_or_classes(channels, classes, monkeypatch):
    source(monkeypatch, channels=channels, classes=classes)
    with pytest.raises(ValueError, match=f"usps has {channels} channels and {classes} classes, toy 1 and 3"):
        dd(small(), **SMALL | ADAPT)


def test_what_is_no_number_stops_the_work():
    with pytest.raises(FloatingPointError, match="loss of DD is nan in iteration 0: lower a learning rate"):
        dd(small(dtype=torch.float32), **SMALL | {"step_size": 1e38})
    plan = plan_of(small(), positive_rates=False)
    with pytest.raises(FloatingPointError, match=r"a step size of DD is -0\.5 in the end"):
        plan.as_set({"rates": torch.tensor([0.1, -0.5, 0.1, 0.1], dtype=torch.float64)})


def test_only_networks_of_cifar10_learn_augmented_images():
    found = {name: dd_networks.pretraining(name).augment for name in ("cifar10", "cifar10-jpeg", "cifar100", "usps28")}
    assert found == {"cifar10": "crop_flip", "cifar10-jpeg": "crop_flip", "cifar100": "", "usps28": ""}
