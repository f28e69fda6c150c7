"""Planned passes against those that a spy counts in real runs, arithmetic and memory against counts by hand."""

import math
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch

from ddanalysis import compute, evaluation
from ddanalysis.architectures import ConvNet, build
from ddanalysis.data import ImageData
from ddanalysis.distill import METHODS, Job, cost, plans
from ddanalysis.distilled import DistilledSet
from ddanalysis.evaluation import PROTOCOLS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch):
    """One second a pass: no test takes a time."""
    monkeypatch.setattr(cost, "_seconds", lambda *shape: 1.0)


@pytest.fixture
def spy(monkeypatch):
    """Counts the passes of real runs by (kind, networks, images of each): as ``Work`` does, but that both second-order
    kinds are "second".
    """
    seen = []
    features, grad = ConvNet.features, torch.autograd.grad

    def spied(self, p, x, updated=None):
        k, trained = len(p["head.weight"]), any(t.requires_grad for t in p.values())
        kind = "gradient" if trained else "images" if x.requires_grad else "forward"
        seen.append([kind if torch.is_grad_enabled() else "forward", k, len(x)])
        return features(self, p, x, updated)

    def spied_grad(*args, create_graph=False, **options):
        if create_graph:
            seen[-1][0] = "second"
        return grad(*args, create_graph=create_graph, **options)

    monkeypatch.setattr(ConvNet, "features", spied)
    monkeypatch.setattr(torch.autograd, "grad", spied_grad)
    return seen


def counted(seen):
    return Counter(map(tuple, seen))


def planned(work):
    found = Counter()
    for one in work:
        kind = "second" if one.kind in ("matching", "adjoint") else one.kind
        found[kind, one.together, one.batch] += one.times
    return found


def toy_data():
    """Noise, 12, 13 and 14 images a class."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(torch.tensor([12, 13, 14]))
    x = torch.randn(len(y), 1, 8, 8, generator=g)
    return ImageData("toy", x, y, x[:7], y[:7], ("a", "b", "c"), (0.0,), (1.0,), "made up")


def job(ipc=2, **options):
    data = toy_data()
    return Job(data, build("ConvNet", data.shape, 3, **{"width": 4, **options}), ipc)


MATCHING = {"iterations": 2, "batch_real": 5}
MTT = {
    "iterations": 2, "steps": 5, "expert_epochs": 1, "latest_start": 2, "rate": 1.0, "rate_of_step_size": 1e-9,
    "step_size": 0.1, "experts": 3, "expert_batch": 16,
}  # fmt: skip
BPTT = {"iterations": 2, "steps": 3, "batch_real": 5}
RAT = {"iterations": 5, "window": 2, "horizon": 5, "window_start": "fixed", "batch_real": 15, "minibatch": 1}
CLOM = {"alpha": 1.0, "models": 2, "model_epochs": 2}
DD = {"iterations": 3, "steps": 2, "passes": 2, "batch_real": 15}
LD = {"iterations": 5, "batch_real": 9, "validation": 6, "validate_every": 2, "inner_batch": 4, "window": 1}
CASES = [
    ("dc", MATCHING),
    ("dc", MATCHING | {"outer": 3, "inner": 2, "batch_train": 4}),
    ("dc", MATCHING | {"outer": 2, "inner": 0}),
    ("dsa", MATCHING | {"outer": 2, "inner": 3}),
    ("dm", MATCHING),
    ("mtt", MTT),
    ("mtt", MTT | {"gradient": "tesla", "minibatch": 4, "at_once": 2}),
    ("mtt", MTT | {"labels": "teacher"}),
    ("bptt", BPTT),
    ("bptt", BPTT | {"minibatch": 1, "at_once": 2, "learn_labels": True}),
    ("bptt", BPTT | {"bases": 4, "downsample": 1}),
    ("rat", RAT),
    ("rat", RAT | {"window_start": "random", "earliest": 3, "at_once": 2}),
    ("clom_dc", MATCHING | CLOM | {"outer": 2, "inner": 1}),
    ("clom_dm", MATCHING | CLOM | {"draw": "mean", "model_epoch": 1}),
    ("clom_dm", MATCHING | CLOM | {"source": "digits"}),
    ("clom_mtt", MTT | CLOM),
    ("clom_bptt", BPTT | CLOM),
    ("dd", DD),
    ("dd", DD | {"at_once": 3, "inner": "adam", "label_classes": [0, 2]}),
    ("sldd", DD | {"networks": "fixed", "fixed": 2}),
    ("sldd", DD | {"networks": "pretrained", "pretrained": 3, "pretrained_epochs": 2, "at_once": 2}),
    ("random", {}),
    ("class_mean", {}),
    ("k_means", {}),
    ("herding", {"epochs": 2}),
    ("herding", {"epochs": 0}),
]
ONLINE = [
    ("ld", LD),
    ("ld", LD | {"horizon": 2}),
    ("ld_ridge", LD),
    ("ld_images", LD),
    ("ld_images_ridge", LD),
]


def test_every_method_has_a_case():
    assert {method for method, _ in CASES + ONLINE} | {"clom_dsa"} == set(METHODS)


@pytest.mark.parametrize(("method", "settings"), ONLINE)
def test_label_distillation_has_as_many_passes_as_planned(method, settings, spy, monkeypatch):
    monkeypatch.setattr(plans.label_loop.resets, "steps_to_train", lambda recorded, steps: 4)  # not known before
    the_job = job()
    estimate = cost.estimate(the_job, method, settings)
    spy.clear()
    METHODS[method].make(the_job, **settings)
    assert estimate.passes == sum(k * n for _, k, n in spy)
    assert estimate.seconds == len(spy)


@pytest.mark.parametrize("limits", [None, (300, 1500, 1100)], ids=["as shipped", "in small pieces"])
@pytest.mark.parametrize(("method", "settings"), CASES)
def test_the_passes_are_those_of_the_run(method, settings, limits, spy, monkeypatch):
    if limits is not None:  # a feature map has 256 numbers an image
        for name, limit in zip(("TOGETHER", "PASS", "SLICE"), limits, strict=True):
            monkeypatch.setitem(getattr(compute, name), "cpu", limit)
    monkeypatch.setattr(plans.clom, "_source", lambda *_: toy_data())
    the_job = job()
    plan = plans.plan(the_job, method, settings)
    estimate = cost.estimate(the_job, method, settings)
    spy.clear()
    METHODS[method].make(the_job, **settings)
    assert counted(spy) == planned(plan.work)
    assert estimate.passes == sum(k * n for _, k, n in spy)
    assert estimate.seconds == len(spy)


@pytest.mark.parametrize("method", ["dc", "dm", "mtt", "bptt"])
def test_batch_statistics_are_of_whole_batches(method, spy, monkeypatch):
    monkeypatch.setitem(compute.SLICE, "cpu", 1100)
    settings = {"dc": MATCHING, "dm": MATCHING, "mtt": MTT, "bptt": BPTT}[method]
    monkeypatch.setattr(plans.gradient_matching, "STATISTICS_IMAGES", 4)
    the_job = job(norm="batch")
    METHODS[method].make(the_job, **settings)
    assert counted(spy) == planned(plans.plan(the_job, method, settings).work)


def test_a_window_that_starts_anywhere_starts_half_way():
    def passes(**settings):
        return cost.estimate(job(), "rat", RAT | settings).passes

    starts = [passes(horizon=start + 2) for start in range(1, 6)]
    assert passes(horizon=7, earliest=1, window_start="random") == sum(starts) / len(starts)


@pytest.mark.parametrize("protocol", [name for name, p in PROTOCOLS.items() if p.batches != "own"])
def test_the_passes_of_an_evaluation(protocol, spy, monkeypatch):
    monkeypatch.setitem(compute.PASS, "cpu", 2**13)
    found = PROTOCOLS[protocol]
    steps = {"epochs": 3} if found.recipe.epochs else {"updates": 3}
    short = replace(found.recipe, **steps, milestones=(2,))
    monkeypatch.setitem(PROTOCOLS, protocol, replace(found, recipe=short))
    data, a = toy_data(), job().architecture
    y = torch.arange(3).repeat_interleave(2)
    one = DistilledSet(data.train_x[:6], y, 3, data.mean, data.std, "dm", "toy", 2)
    estimate = cost.evaluation(data, a, 2, protocol, 5)
    spy.clear()
    evaluation.predict([one], data, a, protocol, range(5))
    assert estimate.passes == sum(k * n for _, k, n in spy) and estimate.seconds == len(spy)
    assert (estimate.method, estimate.ipc, estimate.iterations) == (protocol, 2, 3)


def test_arithmetic_by_hand():
    a = ConvNet(1, 8, 10, width=16)
    layers = [16 * 1 * 9 * 8**2, 16 * 16 * 9 * 4**2, 16 * 16 * 9 * 2**2, 16 * 10]  # multiplications
    assert cost.flops_per_image(a, "forward") == 2 * sum(layers)
    assert cost.flops_per_image(a, "images") == 2 * 2 * sum(layers)
    assert cost.flops_per_image(a, "gradient") == 2 * (3 * sum(layers) - layers[0])  # but for that of the images
    second = [cost.flops_per_image(a, kind) for kind in ("gradient", "matching", "adjoint")]
    assert 2 * second[0] < second[1] < second[2] <= 2 * 9 * sum(layers)
    grouped = plans.Plan(1, [plans.Work(a, "gradient", 7, 3, 2)])
    assert cost._cost("", 1, CPU, grouped).flops == 7 * 3 * 2 * second[0]


@pytest.mark.parametrize("kind", ["forward", "images", "gradient", "matching", "adjoint"])
def test_memory_of_a_pass_on_meta_tensors_is_that_of_a_real_one(kind):
    a = ConvNet(1, 8, 10, width=16)
    assert cost._peak(a, kind, 3, 5) == cost._peak(a, kind, 3, 5, "cpu")
    weights, images, maps = 4 * 3 * a.parameter_count(), 4 * 3 * 5 * 64, 4 * 3 * 5 * a.widest
    least = {"forward": 2, "images": 3, "gradient": 3, "matching": 6, "adjoint": 6}[kind]
    assert weights + images + least * maps <= cost._peak(a, kind, 3, 5) <= 2 * (3 * weights + images + 2 * least * maps)


def test_memory_grows_by_what_a_step_keeps():
    weights = 4 * job().architecture.parameter_count()

    def grown(method, settings, **more):
        before, after = (cost.estimate(job(), method, s).memory_bytes for s in (settings, settings | more))
        return after - before

    assert grown("bptt", BPTT, steps=13) == 10 * weights
    assert grown("bptt", BPTT | {"at_once": 2}, steps=13) == 10 * 2 * weights
    assert grown("mtt", MTT | {"steps": 50}, steps=60) == 10 * 2 * weights  # and the direction, for the step size
    assert grown("rat", RAT, window=4) == 2 * 2.5 * weights  # and the gradient, and every fourth of Adam's averages


def test_experts_lie_on_disk_and_few_in_memory(monkeypatch):
    one = 4 * job().architecture.parameter_count() * (2 - 1 + 1 + 1)
    pool = cost.estimate(job(), "mtt", MTT | {"experts": 200})
    assert pool.disk_bytes == 200 * one
    monkeypatch.setattr(plans.experts, "IN_MEMORY", 200 * one - 1)
    assert pool.memory_bytes - cost.estimate(job(), "mtt", MTT | {"experts": 200}).memory_bytes == 200 * one
    assert cost.estimate(job(), "dm", MATCHING).disk_bytes == 0


def test_published_settings_are_a_table_at_once():
    data = toy_data()
    big = ImageData(
        "cifar10",
        data.train_x.new_zeros(5000, 3, 32, 32),
        torch.arange(10).repeat(500),
        data.test_x.new_zeros(5, 3, 32, 32),
        data.test_y,
        tuple("abcdefghij"),
        (0.0,) * 3,
        (1.0,) * 3,
        "none",
    )
    the_job = Job(big, build("ConvNet", big.shape, 10), 10)
    few = {"validation": 500}  # of the published 5,000, since the data are few
    table = pd.DataFrame([cost.estimate(the_job, m, few if m.startswith("ld") else {}) for m in METHODS])
    assert list(table) == [
        "method", "ipc", "iterations", "passes", "flops", "seconds", "memory_bytes", "disk_bytes"
    ]  # fmt: skip
    rows = table.set_index("method")
    assert rows.loc["dc", "passes"] == 1000 * (10 * (2560 + 100) + 9 * 50 * 100)
    assert rows.loc["dm", "passes"] == 20_000 * (2560 + 100)
    assert rows.loc["mtt", "passes"] == 100 * 21 * 5000 + 5000 * 30 * 100 * 2
    assert rows.loc["mtt", "disk_bytes"] == 100 * 22 * 320_010 * 4
    assert rows.loc["bptt", "passes"] == 500_000 * (150 * 100 * 2 + 640)
    assert rows.loc["rat", "passes"] == 600_000 * (70 * 100 + 60 * 100 * 2 + 5000)
    assert rows.loc["random", ["passes", "flops", "memory_bytes"]].eq(0).all()
    assert math.isfinite(table["seconds"].sum()) and (table["memory_bytes"] < 2**34).all()


def test_a_probe_gives_a_time(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(cost, "PROBE", 1e-6)
    assert 0 < cost._seconds(ConvNet(1, 8, 3, width=5), "adjoint", 1, 9, "float32", CPU, 1) < 60


BAD = [
    (lambda: cost.estimate(job(), "magic", {}), "unknown method 'magic'"),
    (lambda: cost.estimate(job(), "dm", {"lr": 1}), "unknown setting of distribution_matching 'lr'"),
    (lambda: cost.evaluation(toy_data(), job().architecture, 1, "dc-3", 1), "unknown protocol 'dc-3'"),
    (lambda: cost.evaluation(toy_data(), job().architecture, 1, "dc-300", 0), "networks of an evaluation is 0"),
    (lambda: cost.evaluation(toy_data(), job().architecture, 0, "dc-300", 1), "ipc is 0"),
    (lambda: cost.evaluation(toy_data(), job().architecture, 1, "own-steps", 1), "takes the steps of a set"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
