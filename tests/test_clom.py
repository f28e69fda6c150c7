"""CLOM's term against plain autograd, its weights, its draws, and original models."""

import pytest
import torch
import torch.nn.functional as F
from test_distill import toy_data

from ddanalysis import networks
from ddanalysis.architectures import build
from ddanalysis.distill import clom
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


def test_one_weight_for_all_or_one_each():
    assert clom.weights(100, ["A", "B"]) == {"A": 100, "B": 100} == clom.weights([100], ["A", "B"])
    assert clom.weights([1, 2.5], ["A", "B"]) == {"A": 1, "B": 2.5}
    assert (
        clom.published_weight("dm", 10, "fashion_mnist") == 100 and clom.published_weight("dc", 50, "cifar10") == 5000
    )
    assert clom.published_weight("dsa", 10, "cifar10-jpeg") == 5000


BAD = [
    (lambda: clom.weights([1, 2, 3], ["A", "B"]), "3 weights for 2 architectures"),
    (lambda: clom.weights(-1, ["A"]), "alpha of CLOM is -1"),
    (lambda: clom.published_weight("dm", 1, "mnist"), "no weight of CLOM is published for dm 1 mnist"),
    (lambda: Clom(POOL, {"MLP": 1.0}, 0), "one each"),
    (lambda: Clom({}, {}, 0), "one each"),
    (lambda: Clom(POOL, {"ConvNet": 1, "MLP": 1}, 0, draw="all"), "unknown draw of original models 'all'"),
    (lambda: clom.train_models(toy_data(), build("MLP", (1, 8, 8), 3), 0, 1, 0), "models of CLOM is 0"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_original_models_learn_the_real_data():
    data = toy_data(per_class=20)
    models = clom.train_models(data, build("MLP", (1, 8, 8), 3), 2, 40, seed=0)
    assert len(models) == 2 and models.evaluate(data.train_x, data.train_y).accuracy.min() > 0.9
    assert clom.ORIGINAL.weight_decay == 5e-3 and clom.ORIGINAL.milestones == (50, 100)
