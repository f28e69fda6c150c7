"""Curvature along a training: what is measured, kept, resumed and drawn, and PyHessian's values of the same."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hessians import LINEAR, closed_form, exact, fresh, toy
from test_distill import toy_data

from ddanalysis import curvature, traces, training, unroll
from ddanalysis.analysis import hessian
from ddanalysis.analysis.hessian import Effort
from ddanalysis.analysis.pyhessian_trace import PlainModule, pyhessian_trace, stopped_early, stops_after
from ddanalysis.architectures import build
from ddanalysis.distilled import DistilledSet
from ddanalysis.figures import hessian as figures
from ddanalysis.report import Run
from ddanalysis.store import Checkpoint
from ddanalysis.traces import Probes
from ddanalysis.training import Recipe

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the installed package

from benchmarks import hessian as benchmark  # noqa: E402

DATA = toy_data(per_class=20)
NETWORK = build("MLP", (1, 8, 8), 3, hidden=(4,))
WITH_STATISTICS = build("ConvNet", (1, 8, 8), 3, width=3, depth=1, norm="batch")
RECIPE = Recipe(updates=6, batch_size=16)
EFFORT = Effort(
    images=30,
    spectrum_images=15,
    real=Probes(2, block=10),
    sets=Probes(3),
    spectra_at=(0, 6),
    top=2,
    vectors=2,
    steps=4,
)
AT = (0, 3, 6)


def a_set(method="dm", ipc=1, seed=0, soft=False):
    g = torch.Generator().manual_seed(ipc + 10 * seed)
    y = torch.arange(3).repeat_interleave(ipc)
    labels = torch.rand(len(y), 3, generator=g).softmax(1) if soft else y
    x = torch.randn(len(y), 1, 8, 8, generator=g)
    own = {"mean": DATA.mean, "std": DATA.std, "dataset": DATA.name}
    return DistilledSet(x, labels, 3, method=method, ipc=ipc, seed=seed, **own)


SETS = [a_set(), a_set("bptt", 2, soft=True)]


@pytest.fixture
def run(tmp_path):
    return Run("06_hessian", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("hessian"))
    run = Run("06_hessian", profile="smoke", parameters={}, device="cpu", outputs=folder)
    return hessian.followed(run, DATA, NETWORK, SETS, RECIPE, [0, 1], AT, EFFORT)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# ------------------------------------------------------------------------------------------------------------ measured


@pytest.mark.parametrize("architecture", [NETWORK, WITH_STATISTICS])
def test_states_are_those_after_so_many_updates(architecture):
    states = hessian.trajectory(DATA, architecture, RECIPE, 3, AT)
    assert len(states) == 3
    seed = hessian.stream_seed(3, "hessian trajectory")
    first = hessian.networks.create(architecture, [seed])
    for i, updates in enumerate(AT):
        recipe = Recipe(updates=updates, batch_size=16)
        expected = training.train(first, DATA.train_x, DATA.train_y, recipe, [seed]).networks
        assert all(torch.equal(t, expected.state[name]) for name, t in states[i].state.items())


def test_a_sample_has_the_same_share_of_every_class_in_every_block():
    y = torch.cat([torch.zeros(100), torch.ones(60), torch.full((40,), 2.0)]).long()
    rows = hessian.sample_rows(y, 100, seed=0)
    assert len(rows) == 100 == len(set(rows.tolist()))
    for block in y[rows].split(20):
        assert block.bincount().sub(torch.tensor([10, 6, 4])).abs().max() <= 1
    assert sorted(hessian.sample_rows(y, 0, seed=0).tolist()) == list(range(200))
    assert torch.equal(rows, hessian.sample_rows(y, 100, seed=0))
    assert not torch.equal(rows, hessian.sample_rows(y, 100, seed=1))


def test_measures_are_those_of_the_curvature():
    states, target = hessian.trajectory(DATA, NETWORK, RECIPE, 0, AT), hessian.set_target(SETS[1], DATA, EFFORT)
    measured = hessian.measure(states, AT, target, EFFORT, seed=5)
    for i in range(3):
        t = traces.trace(states[i], SETS[1].x, SETS[1].y, 5, EFFORT.sets)
        assert (float(measured["trace"][i]), float(measured["trace_se"][i])) == (t.value, t.error)
    top = curvature.eigenpairs(states[2], SETS[1].x, SETS[1].y, 2, 5)
    assert torch.equal(measured["eigenvalues"][1], top.values) and torch.equal(measured["eigenvectors"][1], top.vectors)
    nodes, weights = curvature.spectral_density(states[2], SETS[1].x, SETS[1].y, 2, 4, 5)
    assert torch.equal(measured["nodes"][1], nodes) and torch.equal(measured["weights"][1], weights)
    assert measured["products"].shape == (2,)


def test_the_real_error_is_that_of_a_sample(monkeypatch):
    target, given = hessian.real_target(DATA, EFFORT), []
    assert (len(target.x), target.population, len(target.few[0])) == (30, 60, 15)
    monkeypatch.setattr(traces, "trace", lambda *a: given.append(a[5]) or traces.Trace(1.0, 1.0, 2, 30))
    hessian._trace(fresh(NETWORK), target, 0, False)
    assert given == [60]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_resumes_at_every_state(tmp_path, monkeypatch, after):
    effort = replace(EFFORT, spectra_at=(3,))
    states, target = hessian.trajectory(DATA, NETWORK, RECIPE, 0, AT), hessian.set_target(SETS[0], DATA, effort)
    whole = hessian.measure(states, AT, target, effort, seed=5)
    measured, plain, done = [], hessian._trace, []

    def noted(network, *arguments):
        measured.append(network)
        return plain(network, *arguments)

    def stop(n):
        done.append(n)
        if len(done) == after:
            raise Interrupted

    monkeypatch.setattr(hessian, "_trace", noted)
    checkpoint = Checkpoint(tmp_path / "measured.checkpoint", {"what": "test"})
    with pytest.raises(Interrupted):
        hessian.measure(states, AT, target, effort, 5, checkpoint=checkpoint, progress=stop)
    assert len(measured) == after
    resumed = hessian.measure(states, AT, target, effort, 5, checkpoint=checkpoint)
    assert len(measured) == 3  # none twice
    assert set(resumed) == set(whole) and all(torch.equal(whole[name], resumed[name]) for name in whole)
    checkpoint.remove()
    assert not list(tmp_path.iterdir())


def test_a_new_set_costs_its_own_products_alone(run, monkeypatch):
    effort = Effort(images=30, real=Probes(2, block=10), sets=Probes(3))
    first = hessian.followed(run, DATA, NETWORK, SETS[:1], RECIPE, [0], AT, effort)
    measured, plain = [], hessian._trace
    monkeypatch.setattr(hessian, "_trace", lambda n, target, *a: measured.append(len(target.x)) or plain(n, target, *a))
    both = hessian.followed(run, DATA, NETWORK, SETS, RECIPE, [0], AT, effort)
    assert measured == [len(SETS[1])] * 3
    pd.testing.assert_frame_equal(both.traces[: len(first.traces)], first.traces)
    assert [len(t) for t in (both.eigenvalues, both.densities, both.overlaps)] == [0, 0, 0]
    assert list(both.overlaps.columns) == hessian.OVERLAP_COLUMNS


def test_probes_are_common_to_targets_and_states_but_not_to_networks(run, monkeypatch):
    seeds = {}

    def noted(network, x, y, seed, *arguments):
        seeds.setdefault(seed, []).append(len(x))
        return traces.Trace(1.0, 0.1, 2, len(x))

    monkeypatch.setattr(traces, "trace", noted)
    effort = Effort(images=30, real=Probes(2, block=10))
    hessian.followed(run, DATA, NETWORK, SETS, RECIPE, [0, 1], AT, effort)
    assert sorted(seeds.values()) == [[30] * 3 + [3] * 3 + [6] * 3] * 2


def test_overlap_is_the_share_of_a_space():
    q, _ = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    real, turn = q[:4][None], torch.linalg.qr(q[:4, :4])[0]
    assert float(hessian.overlap(real, turn @ real)) == pytest.approx(1)
    assert float(hessian.overlap(real, q[4:8][None])) == pytest.approx(0, abs=1e-12)
    assert float(hessian.overlap(real, q[2:6][None])) == pytest.approx(0.5)
    assert hessian.overlap(real, torch.full_like(real, torch.nan)).isnan()
    vectors = torch.linalg.qr(torch.randn(400, 50, 4, generator=torch.Generator().manual_seed(1)))[0].transpose(1, 2)
    assert float(hessian.overlap(real.expand(400, -1, -1), vectors).mean()) == pytest.approx(4 / 50, rel=0.1)


# -------------------------------------------------------------------------------------------------------------- tables


def test_tables_have_a_row_an_observation(found):
    assert list(found.traces.columns[:8]) == [*hessian.KEYS, "trace", "trace_se"]
    assert list(found.eigenvalues.columns[:9]) == [*hessian.KEYS, "rank", "eigenvalue", "residual"]
    assert len(found.traces) == 2 * 3 * 3  # networks, targets, states
    assert len(found.eigenvalues) == 2 * 3 * 2 * 2 and len(found.densities) == 2 * 3 * 2 * 2 * 4
    assert len(found.overlaps) == 2 * 2 * 2 and set(found.overlaps["target"]) == {"dm", "bptt"}
    real = found.traces[found.traces["target"] == "real"]
    assert real["ipc"].isna().all() and real["set_seed"].isna().all() and (real["images"] == 30).all()
    assert (real["probes"] == 2).all() and (found.traces["trace_se"] > 0).all()
    assert (found.eigenvalues.loc[found.eigenvalues["target"] == "real", "images"] == 15).all()
    first = found.eigenvalues.pivot(index=[*hessian.KEYS[1:], "set_seed"], columns="rank", values="eigenvalue")
    assert (first[1] >= first[2]).all()
    weights = found.densities.groupby([*hessian.KEYS, "vector"], dropna=False)["weight"].sum()
    assert np.allclose(weights, 1)
    assert found.overlaps["overlap"].between(0, 1 + 1e-6).all()
    assert np.allclose(found.overlaps["chance"], 2 / NETWORK.parameter_count())
    assert not found.traces.isna().drop(columns=["ipc", "set_seed"]).any().any()


def test_smoothing_is_the_published_recursion(found):
    smooth, y = hessian.smoothed(found.traces), []
    line = found.traces[(found.traces["target"] == "dm") & (found.traces["network_seed"] == 1)]
    for x in line["trace"]:
        y.append(0.9 * y[-1] + 0.1 * x if y else x)
    own = smooth[(smooth["target"] == "dm") & (smooth["network_seed"] == 1)]
    assert np.allclose(own["trace"], y) and list(own["update"]) == list(AT)
    assert list(smooth.columns) == list(found.traces.columns) and len(smooth) == len(found.traces)
    shuffled = hessian.smoothed(found.traces.sample(frac=1, random_state=0))
    keys = ["target", "network_seed", "update"]
    pd.testing.assert_frame_equal(
        *(t.sort_values(keys).reset_index(drop=True) for t in (smooth, shuffled)), check_like=True
    )
    assert np.allclose(hessian.smoothed(found.traces, 0)["trace"], found.traces["trace"])


def test_densities_are_curves_of_area_one(found):
    curves = hessian.density_curves(found.densities, points=300, width=0.02)
    areas = curves.groupby(["target", "network_seed", "update"])[["value", "density"]].apply(
        lambda c: np.trapezoid(c["density"], c["value"])
    )
    assert len(areas) == 12 and np.allclose(areas, 1, atol=5e-3)
    assert curves.groupby("update")["value"].nunique().eq(300).all()  # one scale for all targets


# ----------------------------------------------------------------------------------------------------------- PyHessian


def test_pyhessian_estimates_the_same_trace():
    net, (x, y) = fresh(LINEAR), toy(LINEAR)
    values = pyhessian_trace(net, x, y, 0, probes=60, batch_size=5, early_stop=False)
    assert values.shape == (60,) and values.dtype == torch.float64
    assert float(values.mean()) == pytest.approx(
        float(closed_form(net, x).trace()), abs=4 * float(values.std()) / 60**0.5
    )
    assert torch.equal(values, pyhessian_trace(net, x, y, 0, probes=60, batch_size=5, early_stop=False))
    assert not torch.equal(values[:5], pyhessian_trace(net, x, y, 1, probes=5, batch_size=5, early_stop=False))


@pytest.mark.parametrize("soft", [False, True])
def test_pyhessian_multiplies_by_the_same_matrix(soft):
    import pyhessian

    a = build("ConvNet", (1, 8, 8), 3, width=3, depth=2, norm="batch")
    net, (x, y) = fresh(a), toy(a, 7)
    labels = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) if soft else y
    module, size = PlainModule(net), a.parameter_count()
    v = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [
        t.view_as(p)
        for t, p in zip(v.split([p.numel() for p in module.parameters()]), module.parameters(), strict=True)
    ]
    batches = [(x[:4], labels[:4]), (x[4:], labels[4:])]
    library = pyhessian.hessian(module, torch.nn.functional.cross_entropy, dataloader=batches, cuda=False)
    _, theirs = library.dataloader_hv_product(parts)
    ours = curvature.hessian_product(net, x, labels)(v[None])[0]
    assert torch.allclose(torch.cat([t.flatten() for t in theirs]), ours, atol=1e-11)


def test_pyhessian_stops_at_once_where_the_mean_is_negative():
    a = build("ConvNet", (1, 8, 8), 3, width=4)
    net, (x, y) = fresh(a, seed=8), toy(a)
    assert float(exact(net, x, y).trace()) < 0
    stopped = [len(pyhessian_trace(net, x, y, seed, probes=40)) for seed in range(5)]
    assert min(stopped) == 2
    assert len(pyhessian_trace(net, x, y, 0, probes=40, early_stop=False)) == 40


def test_its_rule_is_known_without_it():
    a = build("ConvNet", (1, 8, 8), 3, width=4)
    net, (x, y) = fresh(a, seed=8), toy(a)
    for seed in range(5):
        values = pyhessian_trace(net, x, y, seed, probes=40, early_stop=False)
        assert torch.equal(values[: stops_after(values)], pyhessian_trace(net, x, y, seed, probes=40))
    assert stops_after(torch.tensor([1.0, 1.0, 5.0])) == 2 and stops_after(torch.tensor([1.0, 9.0, 1.0])) == 3


def test_what_stopping_early_does_is_a_table(run):
    states = hessian.kept_states(run, DATA, NETWORK, RECIPE, 0, [0, 6])
    table = stopped_early(run, DATA, states, [0, 6], SETS, 0, probes=10)
    assert len(table) == 2 * len(SETS) and table["shipped_probes"].between(2, 10).all()
    values = pyhessian_trace(states[1], SETS[0].x, SETS[0].y, 0, 10, early_stop=False)
    row = table.iloc[1]
    assert row["trace"] == float(values.mean()) and row["shipped"] == float(values[: row["shipped_probes"]].mean())
    assert len(figures.stopped_traces(table).axes) == len(table[["target", "ipc"]].drop_duplicates())


def test_pyhessian_leaves_nothing_changed(monkeypatch):
    import pyhessian

    made, plain = [], pyhessian.hessian
    monkeypatch.setattr(pyhessian, "hessian", lambda module, *a, **k: made.append(module) or plain(module, *a, **k))
    net, (x, y) = fresh(LINEAR), toy(LINEAR)
    before, state = unroll.flat(net).clone(), torch.random.get_rng_state()
    pyhessian_trace(net, x, y, 0, probes=3)
    assert torch.equal(before, unroll.flat(net)) and torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in made[0].parameters())


# ----------------------------------------------------------------------------------------------------------- benchmark


def test_the_benchmark_compares_the_same_products(tmp_path, monkeypatch):
    settings = benchmark.Settings(
        width=3, updates=1, images=40, spread_images=40, probes=3, top=1, top_images=40, compiled=False
    )
    monkeypatch.setattr(benchmark, "BATCH", 25)
    assert "random numbers" in benchmark.prepare(settings, tmp_path / "material")
    theirs = benchmark.published(settings, tmp_path / "material")
    ours = benchmark.ours(settings, tmp_path / "material")
    found, expected = ours["top 0.0001"](), theirs["top"]()
    assert found["values"][0] == pytest.approx(expected["values"][0], rel=0.02) and found["products"] > 1
    residuals = theirs["residuals"]()
    assert len(residuals) == 1 and max(found["residuals"]) < max(residuals) < abs(expected["values"][0])
    spread = ours["spread"]()
    assert spread["common"] > 0 and spread["independent"] > 0 and np.isfinite(ours["pass"]())
    assert np.isfinite(theirs["product"]()) and ours["product"]() is not None


def test_the_ratio_of_a_trace_is_the_product_of_its_factors():
    seconds = {"published/default": [9.0], "published/kept": [6.0]}
    seconds |= {"ours/product": [3.0], "ours/four": [2.0], "ours/pass": [3.0]}
    theirs = (("default", 50.0), ("kept", 20.0))
    tops = [{"way": f"PyHessian, {a}, computed", "seconds": s, "worst": 0.1} for a, s in theirs]
    tops.append({"way": "ours, tolerance 0.1", "seconds": 5.0, "worst": 0.05})
    rows = benchmark.ratios(seconds, {"common": 40.0, "independent": 2.0}, tops)
    found = {(row["what"], row["column"]): (row["ratio"], row["reached"]) for row in rows}
    assert found["one product", "as shipped"] == (3.0, True) and found["one product", "both kept"] == (2.0, True)
    assert found["a product of four", "as shipped"] == (4.5, True)
    assert found["trace at equal standard error", "as shipped"] == (60.0, True)
    assert found["top eigenvalues", "both kept"] == (4.0, True)
    rows = benchmark.ratios(seconds, {"common": 39.0, "independent": 2.0}, [*tops[:2], tops[2] | {"worst": 0.2}])
    assert [row["reached"] for row in rows if row["what"].startswith(("trace", "top"))] == [False, False, True, False]


# ------------------------------------------------------------------------------------------------------------- figures


def drawn(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


def test_trace_curves_show_every_target_and_the_mark(found):
    figure = figures.trace_curves(found.traces, mark=4)
    assert drawn(figure) and len(figure.axes) == 2  # ipc 1 and 2
    for ax in figure.axes:
        assert len(ax.collections) == 2  # bands of the real data and of one set
        assert [list(line.get_xdata()) for line in ax.lines[2:]] == [[4, 4]]
    real = found.traces[found.traces["target"] == "real"].groupby("update")["trace"].mean()
    assert np.allclose(figure.axes[0].lines[1].get_ydata(), real)
    assert len(figures.trace_curves(found.traces).axes[0].lines) == 2


def test_a_single_line_has_the_band_of_its_errors(found):
    one = found.traces[(found.traces["network_seed"] == 0) & (found.traces["target"] == "dm")]
    figure = figures.trace_curves(one)
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx((one["trace"] + 1.96 * one["trace_se"]).max())


def test_the_real_data_alone_can_be_drawn(found):
    figure = figures.trace_curves(found.traces[found.traces["target"] == "real"])
    assert drawn(figure) and len(figure.axes[0].lines) == 1


def test_spectra_are_drawn_a_column_an_update(found):
    for figure in (
        figures.eigenvalue_points(found.eigenvalues),
        figures.eigenvalue_points(found.eigenvalues[found.eigenvalues["network_seed"] == 0]),
        figures.spectral_curves(hessian.density_curves(found.densities)),
    ):
        assert drawn(figure) and len(figure.axes) == 4
        assert [ax.get_title().split("\n")[1] for ax in figure.axes[:2]] == ["0 updates", "6 updates"]


def test_overlaps_are_drawn_beside_chance(found):
    figure = figures.overlap_curves(found.overlaps)
    assert drawn(figure) and len(figure.axes) == 2
    chance = figure.axes[0].lines[-1]
    assert np.allclose(chance.get_ydata(), 2 / NETWORK.parameter_count())
    assert drawn(figures.overlap_curves(found.overlaps[found.overlaps["network_seed"] == 0]))


# -------------------------------------------------------------------------------------------------------------- errors

NET, (X, Y) = fresh(LINEAR), toy(LINEAR)
TWO = hessian.networks.create(LINEAR, [0, 1], dtype=torch.float64)
STATES = hessian.networks.create(NETWORK, [0, 1])
TARGET = hessian.set_target(SETS[0], DATA, EFFORT)
TABLE = pd.DataFrame({"dataset": ["digits"]})
BAD = {
    "states": (lambda: hessian.measure(STATES, AT, TARGET, EFFORT, 0), "3 updates are named of 2 states"),
    "spectra": (lambda: hessian.measure(STATES, (0, 1), TARGET, EFFORT, 0), "update 6 is in spectra_at"),
    "spectra, all": (lambda: hessian.followed(None, DATA, NETWORK, [], RECIPE, [0], (0, 1), EFFORT), "update 6 is in"),
    "count": (lambda: hessian.sample_rows(Y, -1, 0), "count of real images is -1"),
    "few": (lambda: hessian.sample_rows(Y, 1, 0), "less than one"),
    "overlap": (lambda: hessian.overlap(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3)), r"the same \(S, k, P\) is needed"),
    "fade": (lambda: hessian.smoothed(TABLE, 1), "fade is 1"),
    "fits": (lambda: hessian.set_target(SETS[0], toy_data(size=6), EFFORT), "has images of shape"),
    "module": (lambda: PlainModule(TWO), "2 networks cannot be one module"),
    "pyhessian": (lambda: pyhessian_trace(TWO, X, Y, 0), "2 networks cannot be one module"),
    "probes": (lambda: pyhessian_trace(NET, X, Y, 0, probes=0), "probes is 0"),
    "batch": (lambda: pyhessian_trace(NET, X, Y, 0, batch_size=0), "batch_size is 0"),
    "labels": (lambda: pyhessian_trace(NET, X, Y[:3], 0), "3 labels for 14 images"),
    "traces": (lambda: figures.trace_curves(TABLE), "no column target"),
    "eigenvalues": (lambda: figures.eigenvalue_points(TABLE), "no column target"),
    "stopped": (lambda: figures.stopped_traces(TABLE), "no column target"),
    "densities": (lambda: figures.spectral_curves(TABLE), "no column target"),
    "overlaps": (lambda: figures.overlap_curves(TABLE), "no column target"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
