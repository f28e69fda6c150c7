"""CLOM's term against plain autograd, its weights, its draws, and original models."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_distill import toy_data

from ddanalysis import data, networks
from ddanalysis.architectures import build
from ddanalysis.data import class_rows
from ddanalysis.distill import METHODS, Job, clom, dm, making
from ddanalysis.distill.clom import Clom

DATA = toy_data(dtype=torch.float64)
POOL = {
    "ConvNet": networks.create(build("ConvNet", (1, 8, 8), 3, width=4), [0, 1], dtype=torch.float64),
    "MLP": networks.create(build("MLP", (1, 8, 8), 3), [2, 3, 4], dtype=torch.float64),
}
X, Y = DATA.train_x[:6], DATA.train_y[:6]


def plain(weight, models):
    """The regulariser and its gradient by autograd, one model after the other."""
    leaf = X.clone().requires_grad_()
    loss = weight * torch.stack([F.cross_entropy(model.logits(leaf)[0], Y) for model in models]).mean()
    return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]


def test_one_model_is_drawn_a_step_and_all_are_in_turn():
    term, seen = Clom(POOL, {"ConvNet": 2.0, "MLP": 3.0}, seed=0), set()
    expected = {
        (name, k): plain({"ConvNet": 2.0, "MLP": 3.0}[name], [model])
        for name, nets in POOL.items()
        for k, model in enumerate(nets)
    }
    for step in range(40):
        value, gradient = term.gradient(X, Y, step)
        match = [key for key, (loss, _) in expected.items() if abs(loss - value) < 1e-12]
        assert len(match) == 1 and torch.allclose(gradient, expected[match[0]][1], atol=1e-12)
        seen.add(match[0])
    assert seen == set(expected)
    assert term.gradient(X, Y, 7)[0] == term.gradient(X, Y, 7)[0]


def test_the_mean_is_over_architectures_of_the_mean_over_models():
    value, gradient = Clom(POOL, {"ConvNet": 2.0, "MLP": 3.0}, seed=0, draw="mean").gradient(X, Y, 0)
    parts = [plain(2.0, list(POOL["ConvNet"])), plain(3.0, list(POOL["MLP"]))]
    assert value == pytest.approx((parts[0][0] + parts[1][0]) / 2)
    assert torch.allclose(gradient, (parts[0][1] + parts[1][1]) / 2, atol=1e-12)


def test_the_contrastive_form_against_a_double_loop():
    real = (DATA.train_x, DATA.train_y)
    term = Clom({"MLP": POOL["MLP"][0]}, {"MLP": 5.0}, seed=1, real=real, batch=7)
    value, gradient = term.gradient(X, Y, 3)
    g = clom.generator(1, "CLOM", 3)
    torch.randint(1, (), generator=g), torch.randint(1, (), generator=g)
    rows = torch.randint(len(real[1]), (7,), generator=g)
    leaf = X.clone().requires_grad_()
    own, theirs = POOL["MLP"][0].features(leaf)[0], POOL["MLP"][0].features(real[0][rows])[0]
    top = bottom = 0
    for i in range(6):
        for j in range(7):
            distance = 1 - F.cosine_similarity(own[i], theirs[j], dim=0)
            top, bottom = top + distance * (Y[i] == real[1][rows[j]]), bottom + distance
    assert value == pytest.approx(float((5 * top / bottom).detach()))
    assert torch.allclose(gradient, torch.autograd.grad(5 * top / bottom, leaf)[0], atol=1e-10)


FOUR = ["ConvNet", "VGG11", "ResNet18-IN", "AlexNet"]


def test_one_weight_for_all_or_one_each():
    assert clom.weights(100, ["A", "B"]) == {"A": 100, "B": 100} == clom.weights([100], ["A", "B"])
    assert clom.weights([1, 2.5], ["A", "B"]) == {"A": 1, "B": 2.5}
    published = clom.published_weight
    assert published("dm", 10, "fashion_mnist", ["ConvNet"]) == 100
    assert published("dc", 50, "cifar10", ["ConvNet"]) == 5000
    assert published("dsa", 10, "cifar10-jpeg", ["ConvNet"]) == 5000
    assert published("dc", 50, "cifar10", FOUR) == [5000, 5000, 5000, 100]
    assert published("dsa", 50, "cifar10-jpeg", FOUR[::-1]) == [2000, 1000, 1000, 1000]


SMALL = {"models": 2, "model_epochs": 6, "alpha": 5.0}
DM = {"iterations": 4, "batch_real": 5, "strategy": "", "rate": 0.7}


def small_job(**more):
    data = toy_data(per_class=20)
    return Job(data, build("ConvNet", data.shape, 3, width=4, depth=2), 2, **more)


def test_dm_with_clom_is_pytorch_sgd_on_both_terms():
    the_job = small_job()
    made = METHODS["clom_dm"].make(the_job, **DM, **SMALL)
    term = clom.regulariser(the_job, "dm", **SMALL)
    x = the_job.start("real")
    velocity = torch.zeros_like(x)
    for iteration in range(4):
        rows = [making.real_batch(class_rows(the_job.data.train_y, c), 5, 0, iteration, c) for c in range(3)]
        _, gradient = dm._gradient(the_job, x, torch.stack(rows), "", iteration)
        value, extra = term(x, the_job.labels(), iteration)
        assert float(made.history["regulariser"][iteration]) == pytest.approx(value)
        velocity = 0.5 * velocity + gradient + extra
        x = x - 0.7 * velocity
    assert torch.allclose(made.x, x, atol=1e-5)


def test_without_weight_it_is_the_method_and_with_weight_models_like_the_images_better():
    bare = METHODS["dm"].make(small_job(), **DM)
    zero = METHODS["clom_dm"].make(small_job(), **DM, **(SMALL | {"alpha": 0}))
    assert torch.equal(bare.x, zero.x) and torch.equal(bare.history["loss"], zero.history["loss"])
    long = DM | {"iterations": 60, "rate": 0.2, "initialisation": "noise"}
    losses = []
    for alpha in (0, 20.0):
        made = METHODS["clom_dm"].make(small_job(), **long, **(SMALL | {"alpha": alpha, "model_epochs": 30}))
        state = clom.train_models(small_job().data, small_job().architecture, 2, 30, 0)
        losses.append(float(networks.Networks(small_job().architecture, state).loss(made.x, made.y).mean()))
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize("method", ["clom_dc", "clom_dsa", "clom_mtt", "clom_bptt"])
def test_every_method_takes_it(method):
    few: dict = {"iterations": 2, "batch_real": 5, "outer": 2, "inner": 1}
    if method == "clom_mtt":
        few = {"iterations": 2, "experts": 1, "latest_start": 1, "expert_epochs": 1, "steps": 2, "step_size": 0.1}
        few |= {"rate": 1.0, "strategy": "", "rate_of_step_size": 1e-9}
    if method == "clom_bptt":
        few = {"iterations": 2, "batch_real": 5, "steps": 2}
    made, bare = (METHODS[name].make(small_job(), **few, **own) for name, own in ((method, SMALL), (method[5:], {})))
    assert set(made.history) == set(bare.history) | {"regulariser"}
    assert torch.isfinite(made.history["regulariser"]).all() and not torch.equal(made.x, bare.x)


def test_models_are_kept_and_an_earlier_epoch_costs_nothing():
    kept, built = {}, []

    def share(kind, name, version, arguments, build):
        key = (kind, name, version, repr(sorted(arguments.items(), key=str)))
        if key not in kept:
            built.append(kind)
            kept[key] = build(None, None)
        return kept[key]

    the_job = small_job(share=share)
    models = [
        clom.original_models(the_job, the_job.data, the_job.architecture, 2, 6, epoch, 0) for epoch in (0, 3, 6, None)
    ]
    assert built == ["models"] * 2  # one with every epoch, one without
    fresh = networks.create(the_job.architecture, [clom.stream_seed(0, "original model", k) for k in range(2)])
    assert all(torch.equal(models[0].state[name], t) for name, t in fresh.state.items())
    assert all(torch.equal(models[2].state[name], t) for name, t in models[3].state.items())
    losses = [float(m.loss(the_job.data.train_x, the_job.data.train_y).mean()) for m in models]
    assert losses[0] > losses[1] > losses[2]


def test_a_pool_of_architectures_has_the_jobs_own_and_published_ones(monkeypatch):
    seen = []
    monkeypatch.setattr(clom, "train_models", lambda real, a, *_: seen.append(a.name) or dict(
        networks.create(a, [0, 1]).state))  # fmt: skip
    term = clom.regulariser(small_job(), "dm", alpha=[1.0, 2.0], pool=["ConvNet", "MLP"], models=2, model_epochs=1)
    assert seen == ["ConvNet-W4-D2", "MLP"]
    assert term.__self__.alphas == {"ConvNet": 1.0, "MLP": 2.0}


def test_a_source_makes_it_contrastive_and_its_pixels_are_normalised_as_the_sets():
    digits = data.load("digits", normalisation="none")
    own = data.load("digits")
    the_job = Job(own, build("ConvNet", own.shape, 10, width=4, depth=2), 1)
    moved = clom._source("digits", digits)
    assert torch.allclose(moved.train_x, digits.train_x, atol=1e-6) and moved.mean == (0.0,)
    made = METHODS["clom_dm"].make(
        the_job, iterations=2, batch_real=5, alpha=1.0, source="digits", models=1, model_epochs=1
    )
    value = float(made.history["regulariser"][0])
    assert 0 < value < 0.2  # same-class pairs hold about a tenth of all distances, and are the nearer ones


def test_models_of_shuffled_labels_know_nothing_of_the_classes():
    the_job, seen = small_job(), []

    def share(kind, name, version, arguments, build):
        seen.append((name, arguments["trained_on"]))
        return build(None, None)

    for shuffled in (False, True):
        clom.regulariser(dataclasses.replace(the_job, share=share), "dm", shuffled=shuffled, **SMALL)
    assert [name for name, _ in seen] == ["original_toy_ConvNet-W4-D2", "original_toy-shuffled_ConvNet-W4-D2"]
    assert seen[0][1] != seen[1][1]
    own = SMALL | {"model_epochs": 30}
    values = [
        clom.regulariser(the_job, "dm", shuffled=shuffled, **own)(DATA.train_x.float(), DATA.train_y, 0)[0]
        for shuffled in (False, True)
    ]
    assert values[0] < 0.8 * values[1]


def test_a_source_of_another_shape_is_refused(tmp_path):
    x, y = np.zeros((10, 6, 6), np.uint8), np.arange(10) % 2
    x[:, 1] = np.arange(10)[:, None] * 20
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(ValueError, match="of images .1, 6, 6.: those of toy are .1, 8, 8."):
        clom.regulariser(small_job(), "dm", alpha=1.0, source=str(tmp_path / "other.npz"))


def test_a_source_is_looked_for_where_the_data_were(tmp_path):
    the_job = replace(small_job(), data=replace(DATA, root=tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere to load mnist from"):
        clom.regulariser(the_job, "dm", alpha=1.0, source="mnist")


BAD = [
    (lambda: clom.weights([1, 2, 3], ["A", "B"]), "3 weights for 2 architectures"),
    (lambda: clom.weights(-1, ["A"]), "alpha of CLOM is -1"),
    (lambda: clom.published_weight("dm", 1, "mnist", ["ConvNet"]), "no weight of CLOM is published for dm 1 mnist"),
    (lambda: clom.published_weight("dm", 10, "cifar10", FOUR), "no weight of CLOM is published for dm 10 cifar10"),
    (lambda: METHODS["clom_dc"].make(small_job(), iterations=1), "no weight of CLOM is published for dc 2 toy"),
    (lambda: Clom(POOL, {"MLP": 1.0}, 0), "one each"),
    (lambda: Clom({}, {}, 0), "one each"),
    (lambda: Clom(POOL, {"ConvNet": 1, "MLP": 1}, 0, draw="all"), "unknown draw of original models 'all'"),
    (lambda: clom.regulariser(small_job(), "dm", alpha=1, models=0), "models of CLOM is 0"),
    (lambda: clom.regulariser(small_job(), "dm", alpha=1, model_epochs=5, model_epoch=6), "allowed are 0 to .* 5"),
    (lambda: clom.regulariser(small_job(), "dm", alpha=1, pool=["Net"]), "unknown network 'Net'"),
    (lambda: METHODS["clom_dm"].settings({"alphas": 1}), "unknown setting of clom_dm 'alphas'"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_original_models_learn_the_real_data():
    data = toy_data(per_class=20)
    a = build("MLP", (1, 8, 8), 3)
    models = networks.Networks(a, clom.train_models(data, a, 2, 40, seed=0))
    assert len(models) == 2 and models.evaluate(data.train_x, data.train_y).accuracy.min() > 0.9
    assert clom.ORIGINAL.weight_decay == 5e-3 and clom.ORIGINAL.milestones == (50, 100)


def test_it_reaches_bases_and_coefficients_too():
    few = {"iterations": 2, "batch_real": 5, "steps": 2, "bases": 2, "downsample": 1}
    made, bare = (METHODS[name].make(small_job(), **few, **own) for name, own in (("clom_bptt", SMALL), ("bptt", {})))
    assert len(made.x) == len(bare.x) and not torch.equal(made.x, bare.x)
    assert torch.isfinite(made.history["regulariser"]).all()
