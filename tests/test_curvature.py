"""Products, traces, eigenvalues and densities equal those of the exact Hessian, and errors are what they say."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hessians import LINEAR, SMALL, ZOO, closed_form, exact, fresh, toy

from ddanalysis import curvature, networks
from ddanalysis.analysis.pyhessian_trace import PlainModule
from ddanalysis.architectures import build
from ddanalysis.networks import Networks

# ------------------------------------------------------------------------------------------------------- the products


def test_products_of_a_linear_model_are_the_closed_form():
    net, (x, y) = fresh(LINEAR), toy(LINEAR)
    found = curvature.hessian_product(net, x, y)(torch.eye(15, dtype=torch.float64))
    assert torch.allclose(found, closed_form(net, x), atol=1e-14)


@pytest.mark.parametrize("case", ZOO.values(), ids=ZOO)
def test_products_are_those_of_double_backward(case):
    name, shape, options = case
    a = build(name, shape, 3, **options)
    net, (x, y) = fresh(a), toy(a, 5)
    v = torch.randn(3, a.parameter_count(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaves = {n: t.clone().requires_grad_(n in net.trainable()) for n, t in net.state.items()}
    own = [leaves[n] for n in net.trainable()]
    gradient = torch.autograd.grad(Networks(a, leaves).loss(x, y)[0], own, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    expected = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(flat, own, u, retain_graph=True)]) for u in v]
    )
    assert torch.allclose(curvature.hessian_product(net, x, y)(v), expected, rtol=1e-9, atol=1e-11)


def test_products_are_those_of_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    a = build("ConvNet", (1, 4, 4), 3, width=3, depth=2, norm="none", activation="gelu")
    net, (x, y) = fresh(a), toy(a)
    module = PlainModule(net)
    parameters, batches = list(module.parameters()), [(x[:9], y[:9]), (x[9:], y[9:])]
    theirs = curvlinops.HessianLinearOperator(
        module, torch.nn.CrossEntropyLoss(), parameters, batches, check_deterministic=False
    )
    v = torch.randn(a.parameter_count(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(curvature.hessian_product(net, x, y)(v[None])[0], theirs @ v, atol=1e-12)


def test_products_do_not_depend_on_what_is_computed_together(monkeypatch):
    net, (x, y) = fresh(SMALL), toy(SMALL)
    v = torch.randn(9, SMALL.parameter_count(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = curvature.hessian_product(net, x, y)(v)
    monkeypatch.setitem(curvature.PASS, "cpu", 5 * curvature.VECTORS * SMALL.widest)  # 4 vectors, 5 images
    assert curvature.sizes(SMALL, 14, 9, x.device) == (4, 5)
    assert torch.allclose(curvature.hessian_product(net, x, y)(v), together, rtol=1e-9, atol=1e-12)
    alone = torch.cat([curvature.hessian_product(net, x, y)(u[None]) for u in v])
    assert torch.allclose(alone, together, rtol=1e-9, atol=1e-12)


def test_soft_labels_are_a_mixture_of_hard_ones():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    v = torch.randn(2, SMALL.parameter_count(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other, one_hot = (y + 1) % 3, torch.eye(3, dtype=torch.float64)
    mixed = curvature.hessian_product(net, x, 0.7 * one_hot[y] + 0.3 * one_hot[other])(v)
    hard = [curvature.hessian_product(net, x, labels)(v) for labels in (y, other)]
    assert torch.allclose(mixed, 0.7 * hard[0] + 0.3 * hard[1], atol=1e-13)


def test_compiled_products_are_the_same(monkeypatch):
    net, (x, y) = fresh(LINEAR), toy(LINEAR, 7)
    monkeypatch.setitem(curvature.PASS, "cpu", 4 * curvature.VECTORS * LINEAR.widest)  # a padded second slice and chunk
    v = torch.randn(6, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = curvature.hessian_product(net, x, y, compiled=True)(v)
    assert torch.allclose(found, curvature.hessian_product(net, x, y)(v), atol=1e-13)


# -------------------------------------------------------------------------------------------------------- the spectrum


def test_probes_are_signs_and_common():
    v = torch.stack([curvature.probe(s, i, b, 4003) for s in (0, 1) for i in (0, 1) for b in (0, 1)]).double()
    assert set(v.unique().tolist()) == {-1, 1}
    assert torch.equal(curvature.probe(0, 1, 0, 100).double(), v[2, :100])  # of one name, whatever is asked besides
    correlation = v @ v.T / 4003
    assert (correlation - torch.eye(8)).abs().max() < 5 / math.sqrt(4003)


@pytest.mark.parametrize("which", ["LA", "LM"])
def test_top_eigenvalues_are_those_of_the_exact_hessian(which):
    net, (x, y) = fresh(SMALL), toy(SMALL)
    h = exact(net, x, y)
    found = curvature.eigenpairs(net, x, y, 4, seed=0, which=which, tolerance=1e-8)
    values = torch.linalg.eigvalsh(h)
    key = values.abs() if which == "LM" else values
    assert torch.allclose(found.values, values[key.argsort(descending=True)[:4]], atol=1e-9)
    rest = found.vectors @ h - found.values[:, None] * found.vectors
    assert torch.allclose(found.residuals, rest.norm(dim=1), atol=1e-12) and found.residuals.max() < 1e-6
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(4, dtype=torch.float64), atol=1e-9)
    again = curvature.eigenpairs(net, x, y, 4, seed=0, which=which, tolerance=1e-8)
    assert torch.equal(found.vectors, again.vectors) and found.products == again.products


def test_products_are_counted(monkeypatch):
    net, (x, y), calls = fresh(SMALL), toy(SMALL), []
    plain = curvature._product

    def counted(*arguments):
        product = plain(*arguments)
        return lambda v: calls.append(len(v)) or product(v)

    monkeypatch.setattr(curvature, "_product", counted)
    found = curvature.eigenpairs(net, x, y, 3, seed=0)
    assert calls == [1] * found.products + [3]


def test_what_does_not_converge_is_missing():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    found = curvature.eigenpairs(net, x, y, 9, seed=0, tolerance=1e-14, restarts=1)
    missing = found.values.isnan()
    assert missing.any() and torch.equal(missing, found.residuals.isnan())
    assert torch.equal(missing, found.vectors.isnan().any(1)) and found.vectors.shape == (9, SMALL.parameter_count())


def test_a_density_of_all_steps_is_the_spectrum():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    size, h = SMALL.parameter_count(), exact(net, x, y)
    nodes, weights = curvature.spectral_density(net, x, y, vectors=2, steps=size, seed=3)
    assert torch.allclose(nodes, torch.linalg.eigvalsh(h).expand(2, -1), atol=1e-9)
    v = torch.stack([curvature.probe(3, i, "density", size) for i in range(2)]).double() / math.sqrt(size)
    exponential = torch.einsum("vp,pq,vq->v", v, torch.linalg.matrix_exp(h), v)
    assert torch.allclose((weights * nodes.exp()).sum(1), exponential, rtol=1e-10)


def test_moments_of_few_steps_are_exact():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    size, h = SMALL.parameter_count(), exact(net, x, y)
    nodes, weights = curvature.spectral_density(net, x, y, vectors=3, steps=4, seed=3)
    v = torch.stack([curvature.probe(3, i, "density", size) for i in range(3)]).double() / math.sqrt(size)
    for degree in range(8):
        moment = torch.einsum("vp,pq,vq->v", v, torch.linalg.matrix_power(h, degree), v)
        assert torch.allclose((weights * nodes**degree).sum(1), moment, rtol=1e-8)


def test_an_exhausted_space_has_weight_nowhere_else():
    net, (x, y) = fresh(LINEAR), toy(LINEAR, 2)  # rank 4 at most
    nodes, weights = curvature.spectral_density(net, x, y, vectors=2, steps=15, seed=0)
    assert torch.allclose(weights.sum(1), torch.ones(2, dtype=torch.float64))
    h = closed_form(net, x)
    v = curvature.probe(0, 0, "density", 15).double() / math.sqrt(15)
    assert float((weights * nodes.exp()).sum(1)[0]) == pytest.approx(float(v @ torch.linalg.matrix_exp(h) @ v))


def test_a_smooth_density_integrates_to_one():
    nodes = torch.tensor([[0.0, 1.0], [0.5, 2.0]], dtype=torch.float64)
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    at = torch.linspace(-3, 5, 2001, dtype=torch.float64)
    density = curvature.smooth_density(nodes, weights, at, 0.1)
    assert float(torch.trapezoid(density, at)) == pytest.approx(1, abs=1e-9)
    expected = 0.5 * 0.75 * scipy.stats.norm.pdf(at, 1, 0.1) + 0.5 * 0.25 * scipy.stats.norm.pdf(at, 0, 0.1)
    expected += 0.25 * scipy.stats.norm.pdf(at, 0.5, 0.1) + 0.25 * scipy.stats.norm.pdf(at, 2, 0.1)
    assert np.allclose(density, expected)


# ---------------------------------------------------------------------------------------------------------- the errors

NET, (X, Y) = fresh(LINEAR), toy(LINEAR)
TWO = networks.create(LINEAR, [0, 1], dtype=torch.float64)
BAD = {
    "networks": (lambda: curvature.hessian_product(TWO, X, Y), "curvature of 2 networks"),
    "images": (lambda: curvature.hessian_product(NET, torch.zeros(3, 1, 3, 3), Y[:3]), r"\(1, 2, 2\) is needed"),
    "labels": (lambda: curvature.hessian_product(NET, X, Y[:3]), "3 labels for 14 images"),
    "vectors": (lambda: curvature.hessian_product(NET, X, Y)(torch.zeros(2, 9)), r"shape \(2, 9\): \(V, 15\)"),
    "no vectors": (lambda: curvature.hessian_product(NET, X, Y)(torch.zeros(0, 15)), "V >= 1, is needed"),
    "k": (lambda: curvature.eigenpairs(NET, X, Y, 0, 0), "k is 0"),
    "large k": (lambda: curvature.eigenpairs(NET, X, Y, 15, 0), "at most 14 eigenvalues"),
    "which": (lambda: curvature.eigenpairs(NET, X, Y, 2, 0, "SA"), "unknown which 'SA': allowed are LA, LM"),
    "steps": (lambda: curvature.spectral_density(NET, X, Y, 1, 16, 0), "takes at most 15"),
    "density": (lambda: curvature.spectral_density(NET, X, Y, 0, 3, 0), "vectors is 0"),
    "width": (lambda: curvature.smooth_density(X, X, X[0, 0, 0], 0.0), "width is 0.0"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
