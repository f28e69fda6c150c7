"""Forms are those of the exact Hessian's diagonal blocks, traces their means, and errors are what they say."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hessians import LINEAR, SMALL, ZOO, exact, fresh, toy

from ddanalysis import curvature, networks, traces
from ddanalysis.architectures import build
from ddanalysis.curvature import hessian_product, probe
from ddanalysis.seeding import generator
from ddanalysis.traces import Probes

# ----------------------------------------------------------------------------------------------------------- the forms


@pytest.mark.parametrize("case", ZOO.values(), ids=ZOO)
def test_groups_are_all_parameters_in_order(case):
    name, shape, options = case
    a = build(name, shape, 3, **options)
    groups = traces.layer_groups(a)
    assert [n for names in groups for n in names] == networks.create(a, [0]).trainable()
    assert len(groups) == min(traces.GROUPS, sum(w.role == "weight" for w in a.weights().values()))
    assert all(groups) and all(a.weights()[names[0]].role == "weight" for names in groups)


@pytest.mark.parametrize("case", ZOO.values(), ids=ZOO)
def test_forms_are_those_of_the_diagonal_blocks(case):
    name, shape, options = case
    a = build(name, shape, 3, **options)
    net, (x, y) = fresh(a), toy(a, 5)
    found = traces.forms(net, x, y, 3, range(2), 3, False)
    assert found.shape == (2, 2)
    sizes = {n: net.state[n].numel() for n in net.trainable()}
    for b, rows in enumerate(torch.arange(5).split(3)):
        product = hessian_product(net, x[rows], y[rows])
        for i in range(2):
            v, start, expected = probe(3, i, b, a.parameter_count()).double(), 0, 0.0
            for names in traces.layer_groups(a):
                own, size = torch.zeros_like(v), sum(sizes[n] for n in names)
                own[start : start + size] = v[start : start + size]
                expected, start = expected + float(product(own[None])[0] @ own), start + size
            assert float(found[i, b]) == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_forms_do_not_depend_on_what_is_computed_together(monkeypatch):
    net, (x, y) = fresh(SMALL), toy(SMALL)
    together = traces.forms(net, x, y, 0, range(7), 14, False)
    monkeypatch.setitem(curvature.PASS, "cpu", 5 * 4 * SMALL.widest)  # 4 probes, 5 images
    assert torch.allclose(traces.forms(net, x, y, 0, range(7), 14, False), together, rtol=1e-10, atol=1e-13)


def test_soft_labels_are_a_mixture_of_hard_ones():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    other, one_hot = (y + 1) % 3, torch.eye(3, dtype=torch.float64)
    mixed = traces.forms(net, x, 0.7 * one_hot[y] + 0.6 * one_hot[other], 0, range(2), 14, False)  # no distribution
    hard = [traces.forms(net, x, labels, 0, range(2), 14, False) for labels in (y, other)]
    assert torch.allclose(mixed, 0.7 * hard[0] + 0.6 * hard[1], atol=1e-12)


def test_compiled_forms_are_the_same(monkeypatch):
    net, (x, y) = fresh(SMALL), toy(SMALL, 7)
    monkeypatch.setitem(curvature.PASS, "cpu", 4 * 4 * SMALL.widest)  # a padded second slice and chunk
    found = traces.forms(net, x, y, 0, range(6), 7, True)
    assert torch.allclose(found, traces.forms(net, x, y, 0, range(6), 7, False), atol=1e-12)


def test_groups_of_layers_make_a_trace_less_noisy():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    v = torch.stack([probe(0, i, 0, SMALL.parameter_count()) for i in range(200)]).double()
    whole = traces.forms(net, x, y, 0, range(200), 14, False, groups=1)[:, 0]
    assert torch.allclose(whole, (hessian_product(net, x, y)(v) * v).sum(1), rtol=1e-9, atol=1e-11)
    assert traces.forms(net, x, y, 0, range(200), 14, False).std() < 0.8 * whole.std()


# ---------------------------------------------------------------------------------------------------------- the trace


def of_layers(a):
    """1 where two parameters are of one group of layers, (P, P)."""
    counts = {name: torch.Size(w.shape).numel() for name, w in a.weights().items()}
    sizes = [sum(counts[name] for name in names) for names in traces.layer_groups(a)]
    return torch.block_diag(*(torch.ones(n, n, dtype=torch.float64) for n in sizes))


def test_a_trace_is_the_mean_over_its_probes_and_blocks():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    found = traces.trace(net, x, y, 5, Probes(count=3, block=4))
    size, values = SMALL.parameter_count(), []
    for b, rows in enumerate(torch.arange(14).split(4)):
        h = exact(net, x[rows], y[rows]) * of_layers(SMALL)
        v = torch.stack([probe(5, i, b, size) for i in range(3)]).double()
        values.append(torch.einsum("vp,pq,vq->v", v, h, v) * len(rows) / 14)
    values = torch.stack(values)
    assert found.value == pytest.approx(float(values.sum() / 3), rel=1e-10)
    assert found.error == pytest.approx(float((values.var(1).sum() / 3).sqrt()), rel=1e-10)
    assert (found.probes, found.images) == (3, 14)


def test_many_probes_come_near_the_exact_trace():
    net, (x, y) = fresh(SMALL), toy(SMALL)
    found = traces.trace(net, x, y, 0, Probes(count=400, most=400))
    assert abs(found.value - float(exact(net, x, y).trace())) < 4 * found.error < 0.2 * abs(found.value)


def test_common_probes_make_differences_less_noisy():
    x, y = toy(LINEAR)
    first, second = fresh(LINEAR), fresh(LINEAR)
    second.state["head.bias"][...] += 0.05
    pairs = [[traces.trace(net, x, y, s, Probes(2)).value for net in (first, second)] for s in range(20)]
    a, b = np.array(pairs).T
    assert (a - b).std() < 0.2 * math.hypot(a.std(), b.std())


def planted(monkeypatch, n):
    """Images that are their own number, and the Hessian of each, of differing traces; their probes cost nothing."""
    g = torch.Generator().manual_seed(7)
    each = torch.randn(n, 6, 6, generator=g, dtype=torch.float64)
    each = each + each.transpose(1, 2) + torch.diag_embed(2 + torch.randn(n, 1, generator=g).expand(n, 6).double())

    def planted_forms(net, x, y, seed, new, block, compiled):
        hessians = torch.stack([part.mean(0) for part in each[x[:, 0, 0, 0].long()].split(block)])
        streams = [generator(seed, "planted", i) for i in new]
        v = torch.stack([torch.randint(2, (len(hessians), 6), generator=s) for s in streams]).double() * 2 - 1
        return torch.einsum("ibp,bpq,ibq->ib", v, hessians, v)

    monkeypatch.setattr(traces, "forms", planted_forms)
    x = torch.arange(n, dtype=torch.float64)[:, None, None, None].expand(n, 1, 2, 2)
    return x, torch.zeros(n, dtype=torch.int64), float(each.diagonal(dim1=1, dim2=2).sum(1).mean())


def estimates(x, y, probes, seeds, images=0):
    """Estimates, errors and probes taken (seeds,), from all images or from a random sample each."""
    found = []
    for seed in range(seeds):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: images or len(x)]
        found.append(traces.trace(NET, x[rows], y[rows], seed, probes, population=len(x)))
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
    assert traces.trace(net, x, y, 0, Probes(count=4, share=0.1, floor=1e6, block=12)).probes == 16
    assert traces.trace(net, x, y, 0, Probes(count=4, share=0.1, floor=1e6, block=1)).probes == 4
    assert traces.trace(net, x, y, 0, Probes(count=4, share=1e-9, most=30, block=12)).probes == 30
    assert traces.trace(net, x, y, 0, Probes(count=4, share=1e-9, floor=0, most=5, block=12)).probes == 5


def test_a_mean_that_stands_still_ends_nothing(monkeypatch):
    net, (x, y) = fresh(LINEAR), toy(LINEAR, 12)
    sequence = torch.tensor([-100.0, 100.0, 0.0, 0.0] * 50, dtype=torch.float64)[:, None]
    monkeypatch.setattr(traces, "forms", lambda net, x, y, seed, new, *_: sequence[new.start : new.stop])
    found = traces.trace(net, x, y, 0, Probes(count=4, share=1, floor=10, most=200, block=12))
    assert found.probes > 40 and found.error <= 10


# ---------------------------------------------------------------------------------------------------------- the errors

NET, (X, Y) = fresh(LINEAR), toy(LINEAR)
TWO = networks.create(LINEAR, [0, 1], dtype=torch.float64)
BAD = {
    "networks": (lambda: traces.trace(TWO, X, Y, 0), "curvature of 2 networks"),
    "images": (lambda: traces.trace(NET, torch.zeros(3, 1, 3, 3), Y[:3], 0), r"\(1, 2, 2\) is needed"),
    "labels": (lambda: traces.trace(NET, X, Y[:3], 0), "3 labels for 14 images"),
    "count": (lambda: Probes(count=0), "count is 0"),
    "block": (lambda: Probes(block=0), "block is 0"),
    "share": (lambda: Probes(share=-0.1), "share is -0.1"),
    "floor": (lambda: Probes(floor=-1), "floor is -1"),
    "most": (lambda: Probes(count=8, most=7), "most is 7"),
    "rule": (lambda: Probes(count=1, share=0.1), "a stopping rule needs count >= 2"),
    "population": (lambda: traces.trace(NET, X, Y, 0, population=13), "14 images of a population of 13"),
    "one probe": (lambda: traces.trace(NET, X, Y, 0, Probes(1, block=14)), "1 probe in one block of 14 images has no"),
    "one block": (lambda: traces.trace(NET, X, Y, 0, Probes(block=14), 20), "a sample of 20 images in one block of 14"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
