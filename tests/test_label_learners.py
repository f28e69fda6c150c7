"""Learners against plain PyTorch and scikit-learn, alone and together, interrupted and observed."""

from dataclasses import replace

import plain
import pytest
import torch
import torch.nn.functional as F
from resuming import Stop
from sklearn.linear_model import Ridge as SklearnRidge
from test_distill import toy_data
from torch import nn

from ddanalysis import networks
from ddanalysis.architectures import build
from ddanalysis.distill import label_learners, ridge
from ddanalysis.distill.label_learners import learn
from ddanalysis.distill.ridge import Ridge
from ddanalysis.evaluation import initial_seed
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint

SGD = {"adam": {}, "sgd": {"lr": 0.05}, "momentum": {"lr": 0.05, "momentum": 0.9}}
RATES = {"adam": 1e-3, "sgd": 0.05, "momentum": 0.05}


def toy(dtype=torch.float64, norm="instance"):
    """A network, 12 images of it, and soft labels."""
    data = toy_data(4, dtype=dtype)
    g = torch.Generator().manual_seed(1)
    return build("ConvNet", data.shape, 3, width=4, norm=norm), data.train_x, torch.rand(12, 3, generator=g).to(dtype)


def module_of(architecture, seed, norm="instance"):
    state = networks.create(architecture, [initial_seed(seed)], dtype=torch.float64).state
    return plain.with_state(plain.convnet(1, 8, 3, 4, norm), {name: t[0] for name, t in state.items()})


def batch(seed, t, size=5):
    return torch.randperm(12, generator=generator(seed, "label learner", t))[:size]


def torch_optimiser(parameters, kind):
    return torch.optim.Adam(parameters, lr=1e-3) if kind == "adam" else torch.optim.SGD(parameters, **SGD[kind])


def soft_loss(logits, y):
    return -(y * F.log_softmax(logits, 1)).sum(1).mean()


def train_ridge(module, seed, x, y, steps, kind, penalty=1.0, share=0.01):
    """The published way: an explicit inverse, and a head outside of the module."""
    phi = nn.Sequential(*[part for name, part in module.named_children() if name != "head"])
    scale = torch.ones((), dtype=x.dtype, requires_grad=True)
    opt, opt_scale = torch_optimiser(phi.parameters(), kind), torch.optim.Adam([scale], lr=1e-2)
    w = torch.zeros(module.head.in_features + 1, 3, dtype=x.dtype)
    phi.train()
    for t in range(steps):
        rows = batch(seed, t)
        z = phi(x[rows])
        z = torch.cat([z, torch.ones(len(z), 1, dtype=x.dtype)], 1)
        local = z.T @ torch.linalg.inv(z @ z.T + penalty * torch.eye(len(z), dtype=x.dtype)) @ y[rows]
        w = (1 - share) * w.detach() + share * local
        opt.zero_grad(), opt_scale.zero_grad()
        soft_loss(z @ (scale * w), y[rows]).backward()
        opt.step(), opt_scale.step()
    return phi, w.detach()


@pytest.mark.parametrize("kind", label_learners.OPTIMISERS)
def test_a_linear_head_learns_as_plain_pytorch(kind):
    a, x, y = toy()
    found = learn(a, x, y, 4, 5, [3, 8], optimiser=kind, rate=RATES[kind])
    for k, seed in enumerate((3, 8)):
        module = module_of(a, seed)
        opt = torch_optimiser(module.parameters(), kind)
        for t in range(4):
            opt.zero_grad()
            soft_loss(module(x[batch(seed, t)]), y[batch(seed, t)]).backward()
            opt.step()
        for name, t in module.state_dict().items():
            assert torch.allclose(found.networks.state[name][k], t, atol=1e-9), name


@pytest.mark.parametrize("kind", label_learners.OPTIMISERS)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_ridge_head_learns_as_plain_pytorch(kind, norm):
    a, x, y = toy(norm=norm)
    found = learn(a, x, y, 4, 5, [3, 8], "ridge", kind, RATES[kind], Ridge(0.5, 0.1))
    outputs = found.evaluate(x, y.argmax(1))
    for k, seed in enumerate((3, 8)):
        phi, w = train_ridge(module_of(a, seed, norm), seed, x, y, 4, kind, 0.5, 0.1)
        phi.eval()  # by the running statistics
        logits = phi(x).detach() @ w[:-1] + w[-1]
        assert torch.equal(outputs.predictions[k], logits.argmax(1))
        assert float(outputs.loss[k]) == pytest.approx(float(F.cross_entropy(logits, y.argmax(1))), abs=1e-9)


def test_the_solution_is_that_of_scikit_learn_and_of_the_normal_equations():
    a, x, y = toy()
    weights = ridge.unroll.flat(networks.create(a, [0, 1], dtype=torch.float64))
    z = ridge.features(a, weights, x, {})
    found = ridge.solution(z, y, 0.7)
    for k in range(2):
        theirs = SklearnRidge(alpha=0.7, fit_intercept=False).fit(z[k].numpy(), y.numpy()).coef_.T
        normal = torch.linalg.solve(z[k].T @ z[k] + 0.7 * torch.eye(z.shape[2]).double(), z[k].T @ y)
        assert torch.allclose(found[k], torch.tensor(theirs), atol=1e-10)
        assert torch.allclose(found[k], normal, atol=1e-10)
    assert torch.equal(z[:, :, -1], torch.ones(2, 12).double())


@pytest.mark.parametrize("head", label_learners.HEADS)
def test_learners_are_the_same_alone_and_ids_are_one_hot_rows(head):
    a, x, y = toy()
    ids = y.argmax(1)
    together = learn(a, x, ids, 3, 5, range(3), head).networks
    alone = learn(a, x, F.one_hot(ids, 3).double(), 3, 5, [2], head).networks
    for name, t in alone.state.items():
        assert torch.allclose(together.state[name][2], t[0], atol=1e-10), name


@pytest.mark.parametrize("head", label_learners.HEADS)
def test_accuracies_on_the_way_are_those_of_fewer_steps(head):
    data = toy_data(20)
    a, real = build("MLP", data.shape, 3, hidden=(4,)), (data.train_x, data.train_y)
    x, y = data.train_x[:12], data.train_y[:12]
    found = learn(a, x, y, 9, 5, [0, 1, 2], head, real=real, at=(4, 0, 9), rate=0.01)
    assert found.accuracy.shape == (3, 3) and found.accuracy.dtype == torch.float64
    assert torch.equal(found.accuracy[:, 2], found.evaluate(*real).accuracy)
    fewer = learn(a, x, y, 4, 5, [0, 1, 2], head, rate=0.01)
    assert torch.equal(found.accuracy[:, 1], fewer.evaluate(*real).accuracy) and fewer.accuracy.shape == (3, 0)
    assert len({tuple(column) for column in found.accuracy.T.tolist()}) == 3


@pytest.mark.parametrize("head", label_learners.HEADS)
def test_an_interrupted_training_goes_on_to_the_same(head, tmp_path):
    a, x, y = toy(torch.float32, "batch")
    given = dict(head=head, real=(x, y.argmax(1)), at=(2, 5, 6), rate=0.02)
    whole = learn(a, x, y, 6, 5, [0, 1], **given)
    checkpoint, done = Checkpoint(tmp_path / "learners", {}, seconds=0), []

    def stop(n):
        done.append(n)
        if len(done) == 5:
            raise Stop

    with pytest.raises(Stop):
        learn(a, x, y, 6, 5, [0, 1], checkpoint=checkpoint, progress=stop, **given)
    done.clear()
    again = learn(a, x, y, 6, 5, [0, 1], checkpoint=checkpoint, progress=done.append, **given)
    assert done == [2, 2] and torch.equal(again.accuracy, whole.accuracy)
    for name, t in whole.networks.state.items():
        assert torch.equal(again.networks.state[name], t), name
    finished = learn(a, x, y, 6, 5, [0, 1], checkpoint=checkpoint, progress=done.append, **given)
    assert done == [2, 2] and torch.equal(finished.accuracy, whole.accuracy)


@pytest.mark.parametrize("head", label_learners.HEADS)
def test_both_heads_learn_from_a_few_images(head):
    data = toy_data(30)
    a = build("MLP", data.shape, 3, hidden=(16,))
    found = learn(a, data.train_x[:30], data.train_y[:30], 30, 10, range(3), head, rate=0.01)
    assert float(found.evaluate(data.train_x, data.train_y).accuracy.min()) > 0.9


def bad(**given):
    a, x, y = toy(torch.float32)
    return learn(**(dict(architecture=a, x=x, y=y, steps=2, batch=5, seeds=[0]) | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head": "square"}, "unknown head 'square'"),
        ({"optimiser": "lbfgs"}, "unknown optimiser of the learners 'lbfgs'"),
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 13}, "batch is 13: there are 12 images to learn from"),
        ({"rate": -1.0}, "rate of the learners is -1"),
        ({"x": torch.zeros(12, 3, 8, 8)}, "images to learn from are of shape"),
        ({"y": torch.zeros(12, 4)}, "labels to learn from: soft labels of shape"),
        ({"seeds": []}, "no seeds were given"),
        ({"at": (1,)}, "real images and labels are needed"),
        (
            {"at": (3,), "real": (torch.zeros(1, 1, 8, 8), torch.zeros(1).long())},
            r"after \[3\] steps: allowed are 0 to 2",
        ),
    ],
)
def test_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        bad(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"penalty": -1.0}, "penalty of the ridge head is -1"),
        ({"penalty": 0.0}, "penalty of the ridge head is 0: it must be above"),
        ({"head_rate": 2.0}, "head_rate of the ridge head is 2.0: it must be at most 1"),
        ({"scale_rate": "fast"}, "scale_rate of the ridge head is 'fast'"),
    ],
)
def test_refuses_constants_of_a_ridge_head(given, message):
    with pytest.raises(ValueError, match=message):
        replace(ridge.PUBLISHED, **given)


def test_published_constants_of_the_ridge_head():
    assert ridge.PUBLISHED == Ridge(penalty=1.0, head_rate=0.01, scale_rate=0.01)
