"""Products, traces, eigenvalues and densities equal those of the exact Hessian, and errors are what they say."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import scipy.stats
import torch

from ddanalysis import curvature, layers, networks, unroll
from ddanalysis.analysis.pyhessian_trace import PlainModule
from ddanalysis.architectures import Architecture, build
from ddanalysis.curvature import Probes
from ddanalysis.networks import Networks
from ddanalysis.seeding import generator


@dataclass(frozen=True)
class Linear(Architecture):
    """A linear softmax model, whose loss is convex."""

    kind: ClassVar[str] = "Linear"

    @property
    def widest(self):
        return self.channels * self.size**2

    def weights(self):
        return layers.linear_weights("head", self.classes, self.widest)

    def features(self, p, x, updated=None):
        return layers.flatten(p, x)


LINEAR = Linear(1, 2, 3)  # 15 parameters
SMALL = build("ConvNet", (1, 4, 4), 3, width=3, depth=2)

ZOO = {
    "convnet": ("ConvNet", (1, 8, 8), {"width": 4}),
    "batch": ("ConvNet", (3, 8, 8), {"width": 4, "norm": "batch"}),
    "layer, max": ("ConvNet", (1, 8, 8), {"width": 4, "norm": "layer", "pooling": "max"}),
    "lenet": ("LeNet", (1, 28, 28), {}),
    "resnet": ("ResNet18-IN", (3, 8, 8), {"widths": (4, 8), "blocks": (1, 1)}),
}


def toy(a, n=14, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, a.channels, a.size, a.size, generator=g, dtype=torch.float64)
    return x, torch.arange(n) % a.classes


def fresh(a, seed=1):
    """A network whose running statistics are not those of a new one."""
    net = networks.create(a, [seed], dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    moved = {
        name: t + torch.rand(t.shape, generator=g, dtype=t.dtype) if "running" in name else t
        for name, t in net.state.items()
    }
    return Networks(a, moved)


def exact(net, x, y):
    """The Hessian (P, P) by reverse over reverse mode."""
    running = {name: t for name, t in net.state.items() if name not in net.trainable()}

    def loss(weights):
        state = unroll.unflat(net.architecture, weights[None]).state | running
        return Networks(net.architecture, state).loss(x, y)[0]

    return torch.autograd.functional.hessian(loss, unroll.flat(net)[0])


def closed_form(net, x, y=None):
    """The Hessian of a linear softmax model: the mean of (diag(p) - p p') x (features, 1) (features, 1)'."""
    p = net.logits(x)[0].softmax(1)
    features = torch.cat([x.flatten(1), torch.ones(len(x), 1, dtype=x.dtype)], 1)
    within = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    full = torch.einsum("icd,if,ig->cfdg", within, features, features) / len(x)
    f, c = features.shape[1], p.shape[1]
    order = [k * f + j for k in range(c) for j in range(f - 1)] + [k * f + f - 1 for k in range(c)]  # weights, biases
    return full.reshape(c * f, c * f)[order][:, order]


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
    assert curvature._sizes(SMALL, 14, 9, x.device) == (4, 5)
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


# ---------------------------------------------------------------------------------------------------------- the trace


def test_a_trace_is_the_mean_over_its_probes_and_blocks():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    found = curvature.trace(net, x, y, 5, Probes(count=3, block=4))
    size, values = SMALL.parameter_count(), []
    for b, rows in enumerate(torch.arange(14).split(4)):
        h = exact(net, x[rows], y[rows])
        v = torch.stack([curvature.probe(5, i, b, size) for i in range(3)]).double()
        values.append(torch.einsum("vp,pq,vq->v", v, h, v) * len(rows) / 14)
    values = torch.stack(values)
    assert found.value == pytest.approx(float(values.sum() / 3), rel=1e-10)
    assert found.error == pytest.approx(float((values.var(1).sum() / 3).sqrt()), rel=1e-10)
    assert (found.probes, found.images) == (3, 14)


def test_probes_are_signs_and_common():
    v = torch.stack([curvature.probe(s, i, b, 4003) for s in (0, 1) for i in (0, 1) for b in (0, 1)]).double()
    assert set(v.unique().tolist()) == {-1, 1}
    assert torch.equal(curvature.probe(0, 1, 0, 100).double(), v[2, :100])  # of one name, whatever is asked besides
    correlation = v @ v.T / 4003
    assert (correlation - torch.eye(8)).abs().max() < 5 / math.sqrt(4003)


def test_common_probes_make_differences_less_noisy():
    x, y = toy(LINEAR)
    first, second = fresh(LINEAR), fresh(LINEAR)
    second.state["head.bias"][...] += 0.05
    pairs = [[curvature.trace(net, x, y, s, Probes(2)).value for net in (first, second)] for s in range(20)]
    a, b = np.array(pairs).T
    assert (a - b).std() < 0.2 * math.hypot(a.std(), b.std())


def planted(monkeypatch, n):
    """Images that are their own number, and the Hessian of each, of differing traces; their probes cost nothing."""
    g = torch.Generator().manual_seed(7)
    each = torch.randn(n, 6, 6, generator=g, dtype=torch.float64)
    each = each + each.transpose(1, 2) + torch.diag_embed(2 + torch.randn(n, 1, generator=g).expand(n, 6).double())

    def forms(net, x, y, seed, new, block, compiled):
        hessians = torch.stack([part.mean(0) for part in each[x[:, 0, 0, 0].long()].split(block)])
        streams = [generator(seed, "planted", i) for i in new]
        v = torch.stack([torch.randint(2, (len(hessians), 6), generator=s) for s in streams]).double() * 2 - 1
        return torch.einsum("ibp,bpq,ibq->ib", v, hessians, v)

    monkeypatch.setattr(curvature, "_forms", forms)
    x = torch.arange(n, dtype=torch.float64)[:, None, None, None].expand(n, 1, 2, 2)
    return x, torch.zeros(n, dtype=torch.int64), float(each.diagonal(dim1=1, dim2=2).sum(1).mean())


def estimates(x, y, probes, seeds, images=0):
    """Estimates, errors and probes taken (seeds,), from all images or from a random sample each."""
    found = []
    for seed in range(seeds):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: images or len(x)]
        found.append(curvature.trace(NET, x[rows], y[rows], seed, probes, population=len(x)))
    return tuple(np.array(t) for t in zip(*((t.value, t.error, t.probes) for t in found), strict=True))


@pytest.mark.parametrize("block", [7, 12])
def test_the_standard_error_covers_the_truth_at_its_rate(monkeypatch, block):
    x, y, truth = planted(monkeypatch, 12)
    values, errors, _ = estimates(x, y, Probes(count=8, block=block), 1000)
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(1000)  # unbiased
    assert (errors**2).mean() == pytest.approx(values.var(), rel=0.2)
    covered = (np.abs(values - truth) < scipy.stats.t.ppf(0.975, 7 * (12 // block)) * errors).mean()
    assert 0.92 < covered < 0.98


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("images", [32, 64, 128])
def test_the_error_of_a_sample_is_that_of_all_images(monkeypatch, images, count):
    x, y, truth = planted(monkeypatch, 128)
    values, errors, _ = estimates(x, y, Probes(count=count, block=4), 1000, images)
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(1000)
    variance, blocks = (errors**2).mean(), images // 4
    if count == 1:  # blocks differ in their images as well, and how much of these is known is not seen
        assert variance > {32: 0.9, 64: 1.1, 128: 1.3}[images] * values.var()
    else:
        assert variance == pytest.approx(values.var(), rel=0.2)
        covered = (np.abs(values - truth) < scipy.stats.t.ppf(0.975, blocks - 1) * errors).mean()
        assert 0.92 < covered < 0.98


def test_the_stopping_rule_bounds_the_error(monkeypatch):
    x, y, truth = planted(monkeypatch, 12)
    probes = Probes(count=8, block=12, share=0.05, floor=0, most=10_000)
    values, errors, taken = estimates(x, y, probes, 1000)
    assert (errors <= 0.05 * np.abs(values)).all() and taken.min() >= 16 < taken.max()
    covered = (np.abs(values - truth) < scipy.stats.t.ppf(0.975, taken - 1) * errors).mean()
    assert 0.92 < covered < 0.98


def test_the_stopping_rule_has_a_floor_and_an_end():
    net, (x, y) = fresh(LINEAR), toy(LINEAR, 12)
    assert curvature.trace(net, x, y, 0, Probes(count=4, share=0.1, floor=1e6)).probes == 16
    assert curvature.trace(net, x, y, 0, Probes(count=4, share=0.1, floor=1e6, block=1)).probes == 4
    assert curvature.trace(net, x, y, 0, Probes(count=4, share=1e-9, most=30)).probes == 30
    assert curvature.trace(net, x, y, 0, Probes(count=4, share=1e-9, floor=0, most=5)).probes == 5


def test_a_mean_that_stands_still_ends_nothing(monkeypatch):
    net, (x, y) = fresh(LINEAR), toy(LINEAR, 12)
    sequence = torch.tensor([-100.0, 100.0, 0.0, 0.0] * 50, dtype=torch.float64)[:, None]
    monkeypatch.setattr(curvature, "_forms", lambda net, x, y, seed, new, *_: sequence[new.start : new.stop])
    found = curvature.trace(net, x, y, 0, Probes(count=4, share=1, floor=10, most=200))
    assert found.probes > 40 and found.error <= 10


# -------------------------------------------------------------------------------------------------------- the spectrum


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
    "images": (lambda: curvature.trace(NET, torch.zeros(3, 1, 3, 3), Y[:3], 0), r"\(1, 2, 2\) is needed"),
    "labels": (lambda: curvature.trace(NET, X, Y[:3], 0), "3 labels for 14 images"),
    "vectors": (lambda: curvature.hessian_product(NET, X, Y)(torch.zeros(2, 9)), r"shape \(2, 9\): \(V, 15\)"),
    "no vectors": (lambda: curvature.hessian_product(NET, X, Y)(torch.zeros(0, 15)), "V >= 1, is needed"),
    "count": (lambda: Probes(count=0), "count is 0"),
    "block": (lambda: Probes(block=0), "block is 0"),
    "share": (lambda: Probes(share=-0.1), "share is -0.1"),
    "floor": (lambda: Probes(floor=-1), "floor is -1"),
    "most": (lambda: Probes(count=8, most=7), "most is 7"),
    "rule": (lambda: Probes(count=1, share=0.1), "a stopping rule needs count >= 2"),
    "population": (lambda: curvature.trace(NET, X, Y, 0, population=13), "14 images of a population of 13"),
    "one probe": (lambda: curvature.trace(NET, X, Y, 0, Probes(1)), "1 probe in one block of 14 images has no error"),
    "one block": (lambda: curvature.trace(NET, X, Y, 0, population=20), "a sample of 20 images in one block of 14"),
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
