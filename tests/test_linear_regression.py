"""One gradient step of linear regression: enough rows reach the optimum from every start, fewer leave the bound."""

import numpy as np
import pytest
import torch

from ddanalysis.analysis import linear_regression as lr


def problem(n=40, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.arange(1, d + 1)
    return x, x @ torch.randn(d, generator=g, dtype=torch.float64) + torch.randn(n, generator=g, dtype=torch.float64)


def starts(n, d, scale=3.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_the_optimum_is_that_of_numpy():
    x, y = problem()
    np.testing.assert_allclose(lr.optimum(x, y), np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0], atol=1e-12)


def test_a_step_is_that_of_autograd_and_its_map():
    x, y = problem(n=3)
    for w in starts(4, 5):
        leaf = w.clone().requires_grad_()
        loss = ((x @ leaf - y) ** 2).sum() / (2 * len(x))
        (gradient,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(lr.step(w, x, y, 0.3), w - 0.3 * gradient, atol=1e-12, rtol=0)
    matrix, offset = lr.step_map(x, y, 0.3)
    jacobian = torch.autograd.functional.jacobian(lambda w: lr.step(w, x, y, 0.3), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(matrix, jacobian, atol=1e-12, rtol=0)
    torch.testing.assert_close(lr.step(starts(4, 5), x, y, 0.3), starts(4, 5) @ matrix.T + offset, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("rows", "rate"), [(5, 1.0), (5, 0.02), (8, 0.3), (30, 5.0)])
def test_enough_rows_reach_the_optimum_from_any_start(rows, rate):
    best = lr.optimum(*problem())
    x, y = lr.synthetic_rows(best, rows, rate, seed=3)
    torch.testing.assert_close(x.T @ x, rows / rate * torch.eye(5).double(), atol=1e-10 * rows / rate, rtol=0)
    torch.testing.assert_close(lr.step(starts(20, 5), x, y, rate), best.expand(20, 5), atol=1e-10, rtol=0)
    matrix, offset = lr.step_map(x, y, rate)
    assert matrix.abs().max() < 1e-12 and torch.allclose(offset, best)


@pytest.mark.parametrize("spoil", ["row", "rate", "target"])
def test_only_such_rows_do(spoil):
    best, rate = lr.optimum(*problem()), 0.5
    x, y = lr.synthetic_rows(best, 6, rate)
    if spoil == "row":
        x = x.clone()
        x[0, 0] += 0.1
    y = y + 0.1 * x[:, 0] if spoil == "target" else x @ best
    ends = lr.step(starts(20, 5), x, y, 0.6 if spoil == "rate" else rate)
    assert (ends - best).norm(dim=1).min() > 1e-4
    assert (spoil == "target") == torch.allclose(ends, ends[:1].expand(20, 5))


def test_the_mean_excess_is_that_of_many_starts():
    real, targets = problem()
    best, curvature = lr.optimum(real, targets), real.T @ real / len(real)
    x, y = problem(n=3, seed=4)
    off = lr.step(starts(200_000, 5, 0.7), x, y, 0.1)
    losses = ((off @ real.T - targets) ** 2).mean(1) / 2 - ((real @ best - targets) ** 2).mean() / 2
    closed = lr.mean_excess(x, y, 0.1, best, curvature, 0.7)
    assert float(losses.mean()) == pytest.approx(closed, rel=5 * float(losses.std()) / 200_000**0.5 / closed)


@pytest.mark.parametrize("whitened", [True, False])
def test_no_fewer_rows_go_below_the_bound_and_ours_reach_it_on_whitened_data(whitened):
    real, targets = problem()
    real = lr.whiten(real) if whitened else real
    best, curvature, g = lr.optimum(real, targets), real.T @ real / len(real), torch.Generator().manual_seed(1)
    for rows in range(1, 5):
        bound = lr.lower_bound(best, curvature, rows, 0.5)
        x, y = lr.synthetic_rows(best, rows, 0.7)
        reached = lr.mean_excess(x, y, 0.7, best, curvature, 0.5)
        assert reached == pytest.approx(bound) if whitened else reached > bound > 0
        if whitened:
            assert bound == pytest.approx(0.25 * (5 - rows) / 2)
        for _ in range(50):
            near = x + 0.1 * torch.randn(x.shape, generator=g).double(), y + 0.1 * torch.randn(rows, generator=g)
            assert lr.mean_excess(*near, 0.7, best, curvature, 0.5) > bound


def test_learned_rows_stop_at_the_bound():
    best = torch.tensor([0.5, -0.3, 0.8, 0.1, -0.6]).double()
    learned = [torch.randn(2, 5, generator=torch.Generator().manual_seed(2)).double(), torch.zeros(2).double()]
    adam = torch.optim.Adam([t.requires_grad_() for t in learned], lr=0.05)
    for _ in range(300):
        matrix, offset = lr.step_map(*learned, 1.0)
        loss = (matrix.square().sum() + (offset - best).square().sum()) / 2  # of whitened data, from starts N(0, I)
        adam.zero_grad()
        loss.backward()
        adam.step()
    bound = lr.lower_bound(best, torch.eye(5).double(), 2)
    assert bound == pytest.approx(1.5) and bound - 1e-12 <= float(loss.detach()) < bound + 1e-3


def test_enough_rows_have_the_bound_zero():
    best = lr.optimum(*problem())
    assert lr.lower_bound(best, torch.eye(5).double(), 5) == lr.lower_bound(best, torch.eye(5).double(), 9) == 0


def test_the_table_of_the_bundled_data():
    x, y = lr.diabetes()
    assert x.shape == (442, 10) and torch.allclose(x.std(0), torch.ones(10).double())
    white = lr.whiten(x)
    torch.testing.assert_close(white.T @ white, 442 * torch.eye(10).double(), atol=1e-9, rtol=0)
    table = lr.errors_by_rows(white, y, starts=2_000)
    assert list(table.columns) == ["rows", "bound", "mean_excess", "measured", "highest"]
    assert table["rows"].tolist() == list(range(1, 13))
    np.testing.assert_allclose(table["bound"], np.maximum(10 - np.arange(1, 13), 0) / 2, atol=1e-12)
    np.testing.assert_allclose(table["mean_excess"], table["bound"], atol=1e-12)
    np.testing.assert_allclose(table["measured"], table["bound"], rtol=0.1, atol=1e-12)
    assert (table["highest"][:9] > table["measured"][:9]).all() and table["highest"][9:].max() < 1e-20
    assert table.equals(lr.errors_by_rows(white, y, starts=2_000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr.synthetic_rows(torch.ones(3), 0, 1.0), "rows is 0"),
        (lambda: lr.synthetic_rows(torch.zeros(3), 2, 1.0), "vector .D,. not 0"),
        (lambda: lr.synthetic_rows(torch.ones(3, 1), 2, 1.0), "weights of shape"),
        (lambda: lr.synthetic_rows(torch.ones(3), 2, 0.0), "rate is 0.0"),
        (lambda: lr.lower_bound(torch.ones(3), torch.eye(3), 0), "rows is 0"),
        (lambda: lr.optimum(torch.ones(3), torch.ones(3)), "rows of shape"),
        (lambda: lr.optimum(torch.full((3, 2), torch.nan), torch.ones(3)), "finite"),
        (lambda: lr.step(torch.ones(2), torch.ones(3, 2), torch.ones(2), 1.0), "targets of shape"),
        (lambda: lr.whiten(torch.ones(4, 2)), "not independent"),
        (lambda: lr.whiten(torch.eye(4)[:2]), "not independent"),
        (lambda: lr.errors_by_rows(*problem(), starts=0), "starts is 0"),
    ],
)
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
