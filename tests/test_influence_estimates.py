"""Estimates of influence against closed forms, dense matrices, plain loops, another library, and exact retraining."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hessians import Linear
from plain import convnet, optimiser, train, with_state

from ddanalysis import networks, training, unroll
from ddanalysis.analysis import influence
from ddanalysis.analysis import influence_estimates as estimates
from ddanalysis.architectures import build
from ddanalysis.data import load
from ddanalysis.distilled import DistilledSet
from ddanalysis.figures import influence as drawing
from ddanalysis.report import Run
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

CONVNET = build("ConvNet", (1, 8, 8), 3, width=4)
RECIPE = Recipe(updates=6, batch_size=None, learning_rate=0.05)
DECAY = 0.1
CONVEX = Recipe(updates=300, batch_size=None, learning_rate=0.3, weight_decay=DECAY)
DATA = load("digits")
LINEAR = Linear(1, 3, 3)


def toy(n, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 1, size, size, generator=g, dtype=torch.float64) + 0.5 * y[:, None, None, None], y


def soft(y):
    return 0.7 * F.one_hot(y, 3).double() + 0.2  # rows sum to 1.3


def fresh(architecture=CONVNET, seeds=(1, 2)):
    return networks.create(architecture, seeds, dtype=torch.float64)


def close(a, b, tolerance=1e-9):
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def mean_loss(network, x, y):
    """The mean loss as a function of flat weights (P,)."""
    return lambda w: unroll.unflat(network.architecture, w[None]).loss(x, y)[0]


# ----------------------------------------------------------------------------------------------------- a convex model


@pytest.fixture(scope="module")
def convex():
    """A linear network trained to the minimum: exact leave-one-out, estimates, and what both are of."""
    (x, y), (test_x, test_y) = toy(45, 3), toy(30, 3, 1)
    start = fresh(LINEAR, (1,))
    exact = influence.leave_one_out(start, x, y, test_x, test_y, CONVEX)
    found = estimates.estimate(start, x, y, test_x, test_y, CONVEX, [0], damping=DECAY)
    trained = training.train(start, x, y, CONVEX, [0]).networks
    return trained, (x, y), (test_x, test_y), exact[0], {name: t[0] for name, t in found.items()}


def test_influence_function_is_the_closed_form(convex):
    trained, (x, y), test, _, found = convex
    w = unroll.flat(trained)[0]
    hessian = torch.autograd.functional.hessian(mean_loss(trained, x, y), w) + DECAY * torch.eye(len(w)).double()
    each = torch.stack([estimates.each_gradient(trained, x[[j]], y[[j]], estimates.loss)[0] for j in range(len(x))])
    regularised = each + DECAY * w  # the published form: the loss of an image has its share of the weight decay
    shift = torch.linalg.solve(hessian, regularised.T) / (len(x) - 1)
    expected = (estimates.each_gradient(trained, *test, estimates.loss) @ shift).T
    assert close(found["influence function"], expected, 1e-6)


def test_influence_function_is_near_exact_leave_one_out(convex):
    *_, exact, found = convex
    estimate = found["influence function"]
    slope = float((estimate * exact).sum() / estimate.square().sum())
    assert 0.8 < slope < 1.5  # what a first-order estimate of 45 images misses
    spearman, pearson = influence.correlations(estimate, exact)
    assert spearman.min() > 0.95 and pearson.min() > 0.95
    for name in ("gradient dot product", "TracIn", "TRAK"):
        assert influence.correlations(found[name], exact)[1].mean() < pearson.mean()
        assert influence.correlations(found[name], exact)[0].mean() > 0.3  # of the right sign


def test_influence_function_is_the_derivative_of_leaving_out_a_little(convex):
    trained, (x, y), test, _, found = convex
    n, j, share = len(x), 5, 1e-4
    less = torch.full((n,), 1 / n).double()
    less[j] -= share
    w = unroll.flat(trained)[0].requires_grad_()
    least = torch.optim.LBFGS([w], lr=1, max_iter=200, tolerance_grad=1e-13, tolerance_change=1e-16)

    def closure():
        least.zero_grad()
        logits = unroll.unflat(LINEAR, w[None]).logits(x)[0]
        total = (F.cross_entropy(logits, y, reduction="none") * less / less.sum()).sum() + DECAY / 2 * w.square().sum()
        total.backward()
        return total

    before = influence.each_loss(trained, *test)[0]
    least.step(closure)
    after = influence.each_loss(unroll.unflat(LINEAR, w.detach()[None]), *test)[0]
    scale = (n - 1) / n / share  # leaving all of j out would take n - 1 times what is scaled to weights of sum 1
    assert close((after - before) * scale, found["influence function"][j] * (n - 1) ** 2 / n, 0.02)


# --------------------------------------------------------------------------------------------------------- the matrices


@pytest.mark.parametrize("labels", [lambda y: y, soft], ids=["hard", "soft"])
def test_gauss_newton_is_dense_and_the_hessian_of_a_linear_network(labels):
    x, y = toy(5)
    net, y = fresh(seeds=(1,)), labels(y)
    w = unroll.flat(net)[0]
    jacobian = torch.autograd.functional.jacobian(lambda w: unroll.unflat(CONVNET, w[None]).logits(x)[0], w)
    p = net.logits(x)[0].softmax(1)
    middle = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) * (1.3 if y.is_floating_point() else 1.0)
    dense = torch.einsum("icp,icd,idq->pq", jacobian, middle, jacobian) / 5
    rows = estimates.gauss_newton_rows(net, x, y)
    assert close(rows.T @ rows, dense)
    (x, y), net = toy(5, 3), fresh(LINEAR, (1,))
    rows = estimates.gauss_newton_rows(net, x, labels(y))
    hessian = torch.autograd.functional.hessian(mean_loss(net, x, labels(y)), unroll.flat(net)[0])
    assert close(rows.T @ rows, hessian)


def test_gauss_newton_is_that_of_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    (x, y), net = toy(5), fresh(seeds=(1,))
    plain = with_state(convnet(1, 8, 3, 4), {name: t[0] for name, t in net.state.items()})
    parameters = dict(plain.named_parameters())
    theirs = curvlinops.GGNLinearOperator(plain, torch.nn.CrossEntropyLoss(), list(parameters.values()), [(x, y)])
    v = torch.randn(CONVNET.parameter_count(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, start = theirs @ v, 0
    rows = estimates.gauss_newton_rows(net, x, y)
    found, by_name = rows.T @ (rows @ v), {}
    for name in net.trainable():
        size = net.state[name].numel()
        by_name[name] = found[start : start + size]
        start += size
    assert close(torch.cat([by_name[name] for name in parameters]), torch.as_tensor(expected))


@pytest.mark.parametrize("rows", [3, 40])
def test_woodbury_is_a_dense_inverse(rows, monkeypatch):
    g = torch.Generator().manual_seed(0)
    r, v = (torch.randn(n, 30, generator=g, dtype=torch.float64) for n in (rows, 4))
    expected = torch.linalg.solve(r.T @ r + 0.01 * torch.eye(30).double(), v.T).T
    assert close(estimates.solve(r, 0.01, v), expected, 1e-10)
    assert close(estimates.solve(r.float(), 0.01, v.float()), expected, 1e-3)  # rounded rows, solved in float64
    assert estimates.solve(r.float(), 0.01, v.float()).dtype == torch.float32
    monkeypatch.setattr(estimates, "COLUMNS", 100)
    assert close(estimates.solve(r, 0.01, v), expected, 1e-10)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_gradients_are_those_of_a_plain_loop(norm, monkeypatch):
    a, (x, y) = build("ConvNet", (1, 8, 8), 3, width=4, norm=norm), toy(7)
    net = networks.create(a, [1], dtype=torch.float64)
    if norm == "batch":  # with statistics of its own
        net = training.train(net, x, y, RECIPE, [0]).networks
    plain = with_state(convnet(1, 8, 3, 4, norm), {name: t[0] for name, t in net.state.items()}).eval()
    expected = []
    for j in range(7):
        plain.zero_grad()
        F.cross_entropy(plain(x[[j]]), y[[j]]).backward()
        own = dict(plain.named_parameters())
        expected.append(torch.cat([own[name].grad.flatten() for name in net.trainable()]))
    expected = torch.stack(expected)
    assert close(estimates.each_gradient(net, x, y, estimates.loss), expected)
    directions = torch.randn(2, expected.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert close(estimates.products(net, x, y, directions), directions @ expected.T)
    monkeypatch.setitem(estimates.AT_ONCE, "cpu", 3 * a.parameter_count())
    assert close(estimates.each_gradient(net, x, y, estimates.loss), expected)
    assert close(estimates.products(net, x, y, directions), directions @ expected.T)


def test_log_odds_and_the_loss_have_one_gradient():
    (x, y), net = toy(7), fresh(seeds=(1,))
    logits, p = net.logits(x)[0], net.logits(x)[0].softmax(1)[torch.arange(7), y]
    odds = torch.stack([estimates.log_odds(*pair) for pair in zip(logits, y, strict=True)])
    assert torch.allclose(odds, (p / (1 - p)).log())
    of_odds, of_loss = (estimates.each_gradient(net, x, y, f) for f in (estimates.log_odds, estimates.loss))
    assert close(-(1 - p.detach())[:, None] * of_odds, of_loss)


# -------------------------------------------------------------------------------------------------- TracIn and TRAK


def test_tracin_is_a_plain_loop():
    (x, y), test = toy(5), toy(7, seed=1)
    recipe = Recipe(updates=6, batch_size=None, learning_rate=0.05, milestones=(4,))
    found = estimates.estimate(fresh(), x, y, *test, recipe, [0, 0], checkpoints=3)["TracIn"]
    for k, seed in enumerate((1, 2)):
        net = with_state(convnet(1, 8, 3, 4), {name: t[0] for name, t in fresh(seeds=(seed,)).state.items()})
        opt, total = optimiser(net, "sgd", 0.05, 0.9, 0), torch.zeros(5, 7, dtype=torch.float64)
        for update in range(1, 7):
            if update == 5:
                opt.param_groups[0]["lr"] = 0.005
            train(net, opt, [torch.arange(5)], x, y)
            if update % 2 == 0:
                rate = 2 * (0.005 if update == 6 else 0.05) / 0.1 / 5
                total += rate * torch.stack(
                    [plain_gradients(net, x, y)[j] @ plain_gradients(net, *test).T for j in range(5)]
                )
        assert close(found[k], total, 1e-8)


def plain_gradients(net, x, y):
    found = []
    for j in range(len(x)):
        parts = torch.autograd.grad(F.cross_entropy(net(x[[j]]), y[[j]]), list(net.parameters()))
        found.append(torch.cat([t.flatten() for t in parts]))
    return torch.stack(found)


def test_the_projection_is_unbiased_and_its_transpose():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 50, generator=g, dtype=torch.float64)
    both = []
    for seed in range(2000):
        s = estimates.Projection(50, 8, generator(seed, "projection"), a)
        both.append(float(s(a)[0] @ s(b)[0]))
    error = np.std(both) / 2000**0.5
    assert abs(np.mean(both) - float(a[0] @ b[0])) < 4 * error
    bound = float(a.square().sum() * b.square().sum() + (a @ b.T).square()) / 8
    assert 0.5 * bound < np.var(both) < 1.2 * bound  # as that of random signs for all
    u = torch.randn(1, 8, generator=g, dtype=torch.float64)
    assert float(s(a)[0] @ u[0]) == pytest.approx(float(a[0] @ s.back(u)[0]))


def test_trak_without_a_projection_is_dense(monkeypatch):
    class Whole:
        def __init__(self, *_):
            pass

        def __call__(self, vectors):
            return vectors

        back = __call__

    monkeypatch.setattr(estimates, "Projection", Whole)
    (x, y), net = toy(5, 3), fresh(LINEAR, (1,))
    of_odds, of_loss = (estimates.each_gradient(net, x, y, f) for f in (estimates.log_odds, estimates.loss))
    kernel = of_odds.T @ of_odds
    ridge = estimates.RIDGE * float(kernel.trace()) / 5
    expected = torch.linalg.solve(kernel + ridge * torch.eye(len(kernel)).double(), of_loss.T).T
    assert close(estimates.trak_directions(net, x, y, of_loss, generator(0, "unused")), expected)


# -------------------------------------------------------------------------------------------------------- all together


def found(seeds=(1, 2), projections=(5, 6), **options):
    return estimates.estimate(fresh(seeds=seeds), *toy(5), *toy(7, seed=1), RECIPE, projections, **options)


def test_initialisations_together_are_those_alone():
    whole, alone = found(), [found((1,), (5,)), found((2,), (6,))]
    for name in estimates.ESTIMATORS:
        parts = torch.cat([own[name] for own in alone])
        if name == "TRAK":  # the mean over networks, for each of them
            parts = parts.mean(0).expand(2, -1, -1)
        assert whole[name].shape == (2, 5, 7) and whole[name].dtype == torch.float64
        assert close(whole[name], parts), name


def test_labels_may_be_soft():
    (x, y), test = toy(5), toy(7, seed=1)
    hard = estimates.estimate(fresh(), x, F.one_hot(y, 3).double(), *test, RECIPE, [5, 6])
    assert all(close(hard[name], own, 1e-8) for name, own in found().items())


class Interrupted(Exception):
    pass


def test_resumes_exactly(tmp_path, monkeypatch):
    whole, done, own = found(), [], estimates._of_one_network

    def counted(*given):
        if len(done) == 1:
            raise Interrupted
        done.append(1)
        return own(*given)

    checkpoint = Checkpoint(tmp_path / "estimates.checkpoint", {}, seconds=0)
    monkeypatch.setattr(estimates, "_of_one_network", counted)
    with pytest.raises(Interrupted):
        found(checkpoint=checkpoint)
    done.clear()
    updates = []
    resumed = found(checkpoint=checkpoint, progress=updates.append)
    assert done == [1] and not updates  # the second network's gradients alone
    assert all(torch.equal(resumed[name], t) for name, t in whole.items())


def test_default_damping_by_hand():
    assert estimates.default_damping(Recipe(updates=300, batch_size=None), 100) == pytest.approx(1 / 30)
    recipe = Recipe(epochs=20, batch_size=None, milestones=(10,), momentum=0.5, weight_decay=0.2)
    assert estimates.default_damping(recipe, 100) == pytest.approx(0.2 + 0.5 / (10 * 0.01 + 10 * 0.001))


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (Recipe(updates=6), {}, "batch_size = 256"),
        (Recipe(updates=6, batch_size=None, optimiser="adam"), {}, "not adam, momentum 0.9, 6 updates"),
        (Recipe(updates=0, batch_size=None), {}, "0 updates"),
        (Recipe(updates=6, batch_size=None, momentum=1.0), {}, "momentum 1.0"),
        (RECIPE, {"damping": 0.0}, "damping is 0.0"),
        (RECIPE, {"checkpoints": 0}, "checkpoints is 0"),
        (RECIPE, {"y": -soft(torch.arange(5) % 3)}, "soft labels sum to -1.2999"),
    ],
)
def test_refuses_what_cannot_be_estimated(recipe, options, message):
    (x, y), test = toy(5), toy(7, seed=1)
    y = options.pop("y", y) if "y" in options else y
    with pytest.raises(ValueError, match=message):
        estimates.estimate(fresh(), x, y, *test, recipe, [0, 0], **options)


# -------------------------------------------------------------------------------------------------------------- scores


def digits_set():
    rows = torch.cat([(DATA.train_y == c).nonzero()[:1, 0] for c in range(10)])
    return DistilledSet(DATA.train_x[rows], DATA.train_y[rows], 10, DATA.mean, DATA.std, "random", "digits", 1, seed=3)


def made_up(seed, tests=30):
    return torch.randn(3, 10, tests, generator=torch.Generator().manual_seed(seed))


def test_scores_are_scipys():
    exact, own = made_up(0), {"TRAK": made_up(1)}
    table = estimates.scored(own, exact, digits_set(), DATA, "ConvNet", [4, 5, 6])
    assert list(table.columns[:8]) == ["dataset", "method", "ipc", "estimator", "image", "spearman", "pearson", "n"]
    assert len(table) == 2 * 3 * 10 and set(table["n"]) == {30} and set(table["set_seed"]) == {3}
    row = table[(table["estimator"] == "TRAK") & (table["image"] == 7) & (table["network_seed"] == 5)].iloc[0]
    a, b = own["TRAK"][1, 7].numpy(), exact[1, 7].numpy()
    assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert row["pearson"] == pytest.approx(scipy.stats.pearsonr(a, b).statistic, rel=1e-5)
    top = table[(table["estimator"] == estimates.CEILING) & (table["network_seed"] == 6)]
    assert top["spearman"].tolist() == pytest.approx(influence.ceiling(exact)[0][2].tolist())


@pytest.mark.parametrize(
    ("own", "seeds", "message"),
    [
        ({"TRAK": made_up(1, 31)}, [0, 1, 2], r"'TRAK' has shape \(3, 10, 31\), the influence \(3, 10, 30\)"),
        ({"TRAK": made_up(1)}, [0, 1], "2 network seeds for 3 initialisations"),
    ],
)
def test_scores_are_checked(own, seeds, message):
    with pytest.raises(ValueError, match=message):
        estimates.scored(own, made_up(0), digits_set(), DATA, "ConvNet", seeds)


def test_estimates_are_kept_and_scored(tmp_path, monkeypatch):
    run = Run("07_influence", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))
    a, recipe = build("ConvNet", DATA.shape, 10, width=4, depth=2), Recipe(updates=5, batch_size=None)
    given = (run, DATA, a, [digits_set()], [made_up(0, len(DATA.test_y))], recipe, [0, 1, 2])
    first = estimates.estimated(*given)
    assert set(first["estimator"]) == {*estimates.ESTIMATORS, estimates.CEILING} and len(first) == 5 * 3 * 10
    monkeypatch.setattr(training, "train", None)
    assert first.equals(estimates.estimated(*given))
    with pytest.raises(ValueError, match="0 influences for 1 sets"):
        estimates.estimated(run, DATA, a, [digits_set()], [], recipe, [0, 1, 2])


def test_estimators_are_drawn_beside_the_ceiling():
    table = estimates.scored({"TRAK": made_up(1)}, made_up(0), digits_set(), DATA, "ConvNet", [4, 5, 6])
    figure = drawing.estimator_points(pd.concat([table, table.assign(ipc=10)]), "pearson")
    ax, means = figure.axes[0], table.groupby("estimator")["pearson"].mean()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["TRAK", estimates.CEILING]
    diamonds = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"]
    assert diamonds == pytest.approx([means["TRAK"], means[estimates.CEILING]])
    lines = [line.get_xdata() for line in ax.lines if line.get_linestyle() == "--"]
    assert any(np.allclose(line, means[estimates.CEILING]) for line in lines)
    with pytest.raises(ValueError, match="unknown value 'kendall'"):
        drawing.estimator_points(table, "kendall")
    plt.close("all")
