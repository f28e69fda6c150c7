"""Operations against counts by hand, against those of real runs and of PyHessian, and against the published ones."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the installed package

from benchmarks import costing, costing_counts, costing_published  # noqa: E402
from ddanalysis import compute, curvature, distilled, evaluation, networks, pools, traces  # noqa: E402
from ddanalysis import data as datasets  # noqa: E402
from ddanalysis.analysis import (  # noqa: E402
    hessian,
    influence,
    influence_estimates,
    mixing,
    pretrained,
    pyhessian_trace,
    recognition,
)
from ddanalysis.architectures import build  # noqa: E402
from ddanalysis.traces import Probes  # noqa: E402
from ddanalysis.training import Recipe  # noqa: E402

ROOT = Path(__file__).parents[1]
TRAIN, TEST = 1437, 360  # of the digits
SETS = {"profile": "tiny", "dataset": "digits", "width": 4, "depth": 2, "methods": ["dm", "random"], "ipc": [2]}
SETS |= {"set_seeds": [0]}  # two sets of 20 images
TINY = {
    "01_distill": {"methods": ["dm", "random"], "protocols": ["full-batch-300"], "network_seeds": 2},
    "02_pretrained_recognition": {"references": ["ConvNet"], "reference_epochs": {"ConvNet": 2}, "reference_seeds": 3},
    "03_mixing": {"mixing_modes": ["fixed updates", "replacement"], "real_per_class": [0, 1], "mixing_updates": 2}
    | {"network_seeds": 3},
    "04_agreement": {"subset_pool": 2, "subset_fractions": [0.0999, 0.1], "subset_epochs": 3, "network_seeds": 1}
    | {"early_stopping_pool": 2, "early_stopping_updates": 7},
    "05_early_recognition": {"recognition_seeds": 2, "recognition_updates": 7},
    "06_hessian": {"hessian_seeds": 2, "hessian_updates": 4, "hessian_every": 4, "hessian_images": 48, "real_probes": 2}
    | {"probe_block": 16, "set_probes": 3, "spectra_at": [4], "top_eigenvalues": 2, "spectrum_images": 50},
    "07_influence": {"influence_seeds": 2, "influence_updates": 3},
    "08_semantics": {"influence_seeds": 2, "influence_updates": 3, "reference_seeds": 1}
    | {"reference_epochs": {"ConvNet": 1}},
}
METHODS_OF_IT = {"dm": {"iterations": 5, "batch_real": 6}}

HEAD = 2 * 16 * 10
FIRST, REST = 2 * 64 * 4 * 9, 2 * 16 * 4 * 4 * 9 + HEAD  # one image's first convolution, all other layers
F, G = FIRST + REST, 2 * FIRST + 3 * REST  # forward; no gradient goes on to the images
SHARE, EACH = 4 * FIRST + 3 * REST, 2 * FIRST + 6 * REST  # of a product, forward over reverse
FORM = FIRST + REST + 2 * REST + 2 * HEAD  # of a probe's forms: every layer once, and all behind it twice
LEFT_OUT = 20 * 19 + 20  # images of one update of every network
EPOCH = 2 * (TRAIN + 256)  # seven updates: one epoch of six, and a batch; of two networks
POOL = 2 * sum(n // 10 for n in (142, 145, 141, 147, 146, 144, 145, 144, 139, 144))  # two subsets


@pytest.fixture
def root(tmp_path):
    """A project with the profiles paper and tiny."""
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "params" / "paper").symlink_to(ROOT / "params" / "paper")
    for notebook, own in TINY.items():
        write(tmp_path, notebook, own)
    (tmp_path / "params" / "tiny" / "methods.yaml").write_text(yaml.safe_dump(METHODS_OF_IT))
    return tmp_path


def write(root, notebook, own):
    path = root / "params" / "tiny" / f"{notebook}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(SETS | own))


def parts(root, notebook, changed=None):
    """Operations of a notebook of the tiny profile, by what they are for."""
    own = costing_counts.NOTEBOOKS[notebook](costing_counts.asked(root, "tiny", notebook, changed))
    return costing.work({notebook: own}, 1.0)[notebook]["parts"]


# --------------------------------------------------------------------------------------------------- one image's pass


@pytest.mark.parametrize(
    ("a", "layers"),
    [
        (build("ConvNet", (1, 8, 8), 10, width=4, depth=2), (FIRST, REST - HEAD, HEAD)),
        (
            build("ConvNet", (3, 32, 32), 10),
            (2 * 1024 * 3 * 128 * 9, 2 * 256 * 128 * 128 * 9, 2 * 64 * 128 * 128 * 9, 2 * 2048 * 10),
        ),
    ],
    ids=["tiny", "published"],
)
def test_an_image_costs_what_its_layers_multiply(a, layers):
    first, rest = layers[0], sum(layers[1:])
    expected = {
        "forward": first + rest,
        "gradient": 2 * first + 3 * rest,
        "double backward": 5 * first + 9 * rest,
        "kept": 3 * first + 6 * rest,
        "share": 4 * first + 3 * rest,
        "each": 2 * first + 6 * rest,
        "forms share": first + rest,
        "forms each": first + rest + 2 * sum(sum(layers[i:]) for i in range(1, len(layers))),
    }
    assert {kind: costing_counts.flops(a, kind) for kind in costing_counts.KINDS} == expected


def test_an_image_costs_what_the_sheet_has():
    net = build("ConvNet", (3, 32, 32), 10)
    found = {kind: round(costing_counts.flops(net, kind) / 1e6, 2) for kind in ("forward", "gradient", "kept")}
    assert found == {"forward": 101.49, "gradient": 297.39, "kept": 587.71}
    assert round(costing_counts.flops(net, "double backward") / 1e6, 2) == 885.10


def counted(run):
    """The operations of a real run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def alone(monkeypatch):
    """One network at a time: of grouped convolutions PyTorch counts too many."""
    monkeypatch.setitem(compute.TOGETHER, "cpu", 0)


def network_and_digits(n):
    data = datasets.load("digits")
    net = networks.create(build("ConvNet", data.shape, 10, width=4, depth=2), [0])
    return net, data.train_x[:n], data.train_y[:n]


@pytest.mark.parametrize("vectors", [1, 3])
def test_products_cost_what_they_take(vectors):
    net, x, y = network_and_digits(6)
    v = torch.ones(vectors, net.architecture.parameter_count())
    found = counted(lambda: curvature.hessian_product(net, x, y)(v))
    assert found == costing_counts.products(net.architecture, 6, vectors) == 6 * (SHARE + vectors * EACH)


@pytest.mark.parametrize("probes", [1, 5])
def test_forms_cost_what_they_take(probes):
    net, x, y = network_and_digits(6)
    found = counted(lambda: traces.trace(net, x, y, 0, Probes(probes, block=3)))
    assert found == costing_counts.forms(net.architecture, 6, probes)


def test_passes_share_less():
    wide = build("ConvNet", (3, 32, 32), 10)  # 2^28 numbers a pass: 20 vectors on 100 images
    several = -(-64 // 20)
    expected = 100 * (several * costing_counts.flops(wide, "share") + 64 * costing_counts.flops(wide, "each"))
    assert costing_counts.products(wide, 100, 64) == expected


def test_published_products_cost_what_pyhessian_takes():
    net, x, y = network_and_digits(7)
    found = counted(lambda: pyhessian_trace.pyhessian_trace(net, x, y, 0, probes=3, batch_size=4, early_stop=False))
    assert found == 3 * 7 * costing_counts.flops(net.architecture, "double backward")


# ------------------------------------------------------------------------------------------------------- by hand


def test_pretrained_recognition_by_hand(root):
    found = parts(root, "02_pretrained_recognition")
    f, g = (costing_counts.flops(build("ConvNet", (1, 8, 8), 10, depth=2), kind) for kind in ("forward", "gradient"))
    assert found == {
        "training ConvNet": 3 * 2 * TRAIN * g,
        "predictions": 3 * (TEST + 40) * f,
        "features": (TEST + 40) * f + 3 * (TEST + 40) * f,  # the map, separability
    }


def test_networks_that_stop_early_are_counted_to_the_end(root):
    limit = {"references": ["ConvNet", "ResNet18"], "reference_accuracy": {"ConvNet": 0.9}, "resnet_width": 2}
    limit |= {"reference_files": {"ResNet18": "some.pt"}}
    found = parts(root, "02_pretrained_recognition", limit)
    a, resnet = build("ConvNet", (1, 8, 8), 10, depth=2), build("ResNet18", (1, 8, 8), 10, widths=(2, 4, 8, 16))
    kept = sum(n // 10 for n in (142, 145, 141, 147, 146, 144, 145, 144, 139, 144))
    epoch = (TRAIN - kept) * costing_counts.flops(a, "gradient") + kept * costing_counts.flops(a, "forward")
    assert found["training ConvNet"] == 3 * 2 * epoch and "training ResNet18" not in found
    assert found["features"] == 2 * (TEST + 40) * costing_counts.flops(
        resnet, "forward"
    )  # of one network, that of the file


def test_mixing_by_hand(root):
    assert parts(root, "03_mixing") == {
        "training, fixed updates": 2 * 3 * 2 * (20 + 30) * G,  # sets, networks, updates
        "training, replacement": 2 * 3 * 2 * (20 + 20) * G,
        "test predictions": 2 * (2 * 2 * 3) * TEST * F,
    }


def test_agreement_by_hand(root):
    assert parts(root, "04_agreement") == {
        "training on sets": 2 * 300 * 20 * G,
        "test predictions": 2 * TEST * F,
        "training of the subset pool": 3 * POOL * G,
        "predictions of the subset pool": 2 * TEST * F,
        "training of the early pool": EPOCH * G,
        "predictions of the early pool": 2 * 7 * TEST * F,
    }


def test_early_recognition_by_hand(root):
    assert parts(root, "05_early_recognition") == {
        "training": EPOCH * G,
        "test predictions": 2 * 8 * TEST * F,
        "predictions of sets": 2 * 8 * 40 * F,
    }


def test_hessian_by_hand(root):
    found = parts(root, "06_hessian", {"spectra_at": [0, 4, 4]})
    real, few = (len(hessian.sample_rows(datasets.load("digits").train_y, n, 0)) for n in (48, 50))
    one = costing_counts.EIGENPAIR_PRODUCTS * (SHARE + EACH) + (SHARE + 2 * EACH) + 40 * (SHARE + 4 * EACH)
    assert found == {
        "training": 2 * 4 * 256 * G,
        "trace, real images": 2 * 2 * real * (FIRST + REST + 2 * FORM),
        "trace, sets": 2 * 2 * 40 * (FIRST + REST + 3 * FORM),
        "spectra": 2 * 2 * (few + 40) * one,
    }
    every = parts(root, "06_hessian", {"hessian_images": 0, "hessian_every": 1})
    assert every["trace, real images"] == 2 * 5 * TRAIN * (FIRST + REST + 2 * FORM)


def test_influence_by_hand(root):
    found = parts(root, "07_influence")
    assert found.pop("leave-one-out training") == 2 * 2 * 3 * LEFT_OUT * G
    assert found.pop("leave-one-out test losses") == 2 * 2 * 21 * TEST * F
    p, states = build("ConvNet", (1, 8, 8), 10, width=4, depth=2).parameter_count(), 3
    gradients = 3 * 20 + states * (20 + TEST) + 200 + 20
    matrices = 2 * TEST * p * 20 * (states + 3) + 2 * 200 * p * (200 + 2 * 20) + 6 * 20 * 20 * 2048
    assert found == {"estimates of influence": 2 * 2 * (gradients * G + 20 * F + matrices)}


def test_semantics_shares_its_influences(root):
    asks = {name: costing_counts.asked(root, "tiny", name) for name in ("07_influence", "08_semantics")}
    found = costing.work({name: costing_counts.NOTEBOOKS[name](ask) for name, ask in asks.items()}, 1.0)["08_semantics"]
    assert found["shared with those before"] == 2 * 2 * (3 * LEFT_OUT * G + 21 * TEST * F)
    assert found["parts"] == {"training ConvNet": TRAIN * G, "features": TEST * F}
    other = {"influence_seeds": 3}
    alone = costing_counts.NOTEBOOKS["08_semantics"](costing_counts.asked(root, "tiny", "08_semantics", other))
    both = {"07_influence": costing_counts.NOTEBOOKS["07_influence"](asks["07_influence"]), "08_semantics": alone}
    assert costing.work(both, 1.0)["08_semantics"]["shared with those before"] == 0


def test_equal_work_of_other_networks_is_not_shared():
    same = [costing_counts.Part("training", "", 5)]
    assert costing.work({"05": same, "06": same}, 1.0)["06"]["operations"] == 5


def test_distillation_by_hand(root):
    found = costing.work(
        {"": costing_counts.distillation(costing_counts.asked(root, "tiny", costing_counts.MAKER))}, 1.0
    )[""]["parts"]
    job = costing_counts.cost.flops_per_image(build("ConvNet", (1, 8, 8), 10, width=4, depth=2), "images")
    assert found == {
        "training on sets": 2 * 2 * 300 * 20 * G,
        "test predictions": 2 * 2 * TEST * F,
        "distillation by dm": 5 * 10 * (6 * F + 2 * job),
    }


def test_experts_and_models_count_once(root):
    experts = {"iterations": 2, "experts": 3, "expert_epochs": 1, "latest_start": 1, "steps": 2}
    clom = {"iterations": 2, "batch_real": 6, "models": 2, "model_epochs": 4, "alpha": 1.0}
    changed = {"methods": ["mtt", "clom_dm", "clom_dc"], "set_seeds": [0, 1], "protocols": []}
    changed |= {"distill": {"mtt": experts, "clom_dm": clom, "clom_dc": clom | {"outer": 1}}}
    own = costing_counts.distillation(costing_counts.asked(root, "tiny", costing_counts.MAKER, changed))
    found = costing.work({"": own}, 1.0)[""]["parts"]
    assert found["experts"] == 3 * TRAIN * G
    assert found["models of CLOM"] == 2 * 4 * TRAIN * G
    assert found["distillation by clom_dm"] == 2 * 2 * (10 * (6 * F + 2 * (2 * F)) + 20 * 2 * F)


# ------------------------------------------------------------------------------------------------------- real runs


def real_sets():
    data, sets = datasets.load("digits"), []
    for seed, method in enumerate(("dm", "random")):
        rows = datasets.balanced_rows(data.train_y, 2, seed)
        what = {"n_classes": 10, "mean": data.mean, "std": data.std, "method": method, "dataset": data.name, "ipc": 2}
        sets.append(distilled.assemble({"x": data.train_x[rows], "y": data.train_y[rows]}, distilled.describe(**what)))
    return data, build("ConvNet", data.shape, 10, width=4, depth=2), sets


def sum_of(found, *names):
    return sum(found[name] for name in names)


def test_pools_and_scores_take_what_is_counted(root, alone, monkeypatch):
    short = replace(evaluation.PROTOCOLS["full-batch-300"], recipe=Recipe(updates=3, batch_size=None))
    monkeypatch.setitem(evaluation.PROTOCOLS, "full-batch-300", short)
    data, a, sets = real_sets()
    found = parts(root, "04_agreement")
    own = counted(lambda: pools.subset_networks(data, a, 2, (0.0999, 0.1), Recipe(epochs=3), 0))
    assert own == sum_of(found, "training of the subset pool", "predictions of the subset pool")
    own = counted(lambda: pools.early_networks(data, a, 2, Recipe(updates=7), 0))
    assert own == sum_of(found, "training of the early pool", "predictions of the early pool")
    own = counted(lambda: evaluation.predict(sets, data, a, "full-batch-300", range(1)))
    assert own == sum_of(found, "training on sets", "test predictions")


def test_recognition_takes_what_is_counted(root, alone):
    data, a, sets = real_sets()
    own = counted(lambda: recognition.follow(sets, data, a, Recipe(updates=7), range(2), range(8)))
    assert own == sum(parts(root, "05_early_recognition").values())
    found = parts(root, "02_pretrained_recognition")
    one = pretrained.reference("ConvNet", data, epochs=1, depth=2)
    nets = networks.create(one.architecture, range(3))
    assert 6 * counted(lambda: pretrained.train(one, data, 0)) == found["training ConvNet"]
    assert counted(lambda: pretrained.recognise(nets, sets, data)) == found["predictions"]


def test_a_network_that_stops_early_takes_what_is_counted(root):
    limit = {"reference_accuracy": {"ConvNet": 1.0}, "reference_seeds": 1, "reference_epochs": {"ConvNet": 1}}
    data = datasets.load("digits")
    one = pretrained.reference("ConvNet", data, 1.0, 1, depth=2)
    found = parts(root, "02_pretrained_recognition", limit)
    assert counted(lambda: pretrained.train(one, data, 0)) == found["training ConvNet"]


@pytest.mark.parametrize("mode", mixing.MODES)
def test_mixing_takes_what_is_counted(root, alone, mode):
    data, a, sets = real_sets()
    recipe = Recipe(updates=2, batch_size=None)
    own = counted(lambda: mixing.mix(sets, data, a, mode, (0, 1), range(3), recipe))
    assert own == sum(parts(root, "03_mixing", {"mixing_modes": [mode]}).values())


def test_the_trace_takes_what_is_counted(root):
    data, a, sets = real_sets()
    effort = hessian.Effort(images=48, real=Probes(count=2, block=16), sets=Probes(count=3, block=16))
    recipe, at, found = Recipe(updates=4), [0, 4], parts(root, "06_hessian")
    states = hessian.trajectory(data, a, recipe, 0, at)
    assert 2 * counted(lambda: hessian.trajectory(data, a, recipe, 0, at)) == found["training"]
    real = counted(lambda: hessian.measure(states, at, hessian.real_target(data, effort), effort, 0))
    assert 2 * real == found["trace, real images"]
    own = [hessian.set_target(one, data, effort) for one in sets]
    assert 2 * counted(lambda: [hessian.measure(states, at, t, effort, 0) for t in own]) == found["trace, sets"]


def test_a_spectrum_takes_the_products_that_are_counted(root, monkeypatch):
    data, a, sets = real_sets()
    calls, known = [], torch.linspace(-1, 3, a.parameter_count())

    def diagonal(network, x, y, compiled):
        return lambda v: (calls.append((len(x), len(v))), v * known)[1]

    monkeypatch.setattr(curvature, "_product", diagonal)
    effort = hessian.Effort(top=2)
    target = hessian.set_target(sets[0], data, effort)
    found = hessian._spectrum(networks.create(a, [0]), target, effort, 0, False)
    monkeypatch.setattr(costing_counts, "EIGENPAIR_PRODUCTS", int(found["products"]))
    expected = sum(costing_counts.products(a, *call) for call in calls)
    assert costing_counts._spectrum(costing_counts.asked(root, "tiny", "06_hessian"), 20) == expected


def test_leave_one_out_takes_what_is_counted(root, alone):
    data, a, sets = real_sets()
    fresh, recipe = influence.initialised(a, [0], data), Recipe(updates=3, batch_size=None)
    own = counted(lambda: influence.leave_one_out(fresh, sets[0].x, sets[0].y, data.test_x, data.test_y, recipe))
    found = parts(root, "07_influence", {"influence_seeds": 1, "methods": ["dm"]})
    assert own == sum_of(found, "leave-one-out training", "leave-one-out test losses")


def test_estimates_take_what_is_counted(root, monkeypatch):
    monkeypatch.setattr(influence_estimates, "_images_at_once", lambda network: 1)  # see ``alone``
    data, a, sets = real_sets()
    fresh, recipe = influence.initialised(a, [0], data), Recipe(updates=3, batch_size=None)
    x, y, test = sets[0].x[:4], sets[0].y[:4], (data.test_x[:9], data.test_y[:9])
    own = counted(lambda: influence_estimates.estimate(fresh, x, y, *test, recipe, [0]))
    few = costing_counts.asked(root, "tiny", "07_influence", {"influence_seeds": 1})
    few = replace(few, data=replace(data, test_y=test[1]))
    assert own == costing_counts._estimates(few, costing_counts.Set("dm", 2, 0, 4))[0].flops


# ------------------------------------------------------------------------------------------------------- published


@pytest.mark.parametrize(
    ("notebook", "what", "operations"),
    [
        ("02_pretrained_recognition", "training ConvNet", 0.59e15),
        ("03_mixing", "training, fixed updates", 1.61e15),
        ("04_agreement", "training of the subset pool", 21.2e15),
        ("04_agreement", "predictions of the subset pool", 0.53e15),
        ("04_agreement", "training of the early pool", 0.45e15),
        ("04_agreement", "predictions of the early pool", 5.97e15),
        ("04_agreement", "training on sets", 0.04e15),
        ("05_early_recognition", "", 0.46e15),
        ("07_influence", "leave-one-out training", 0.89e15),
        ("07_influence", "leave-one-out test losses", 0.10e15),
    ],
)
def test_published_counts_are_those_of_the_sheet(notebook, what, operations):
    found = costing.work({notebook: costing_published.published()[notebook]}, 1.0)[notebook]
    own = found["parts"][what] if what else found["operations"]
    assert abs(own - operations) <= (0.05e15 if operations > 1e16 else 0.005e15)


def test_the_published_hessian_is_that_of_the_sheet():
    one, cap = (costing.work(costing_published.published(n), 1.0)["06_hessian"]["parts"] for n in (1, 100))
    assert one["trace, real images"] / 301 == pytest.approx(44.3e12, rel=2e-3)
    assert one["trace, real images"] == pytest.approx(13.3e15, rel=3e-3)
    assert cap["trace, real images"] == pytest.approx(1332e15, rel=1e-3)
    sets = costing.work(costing_published.published(28), 1.0)["06_hessian"]["parts"]["trace, sets"]
    assert sets == pytest.approx(2e15, rel=0.02)
    low, high = (
        costing_published.published(costing_published.PROBES[name])["06_hessian"][1].flops for name in ("low", "high")
    )
    assert 260e15 < low < 270e15 and 475e15 < high < 485e15


def test_our_subsets_have_the_published_size():
    same = costing_counts.asked(ROOT, "paper", "04_agreement", costing_published.PUBLISHED_COUNTS["04_agreement"])
    ours, theirs = (
        costing.work({"": parts}, 1.0)[""]["parts"]
        for parts in (costing_counts.agreement(same), costing_published.published()["04_agreement"])
    )
    assert set(ours) == set(theirs)
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=0.05 if name == "training of the subset pool" else 1e-9)


def test_where_the_arithmetic_is_the_same_so_is_the_count():
    for name in ("03_mixing", "07_influence"):
        ask = costing_counts.asked(ROOT, "paper", name, costing_published.PUBLISHED_COUNTS[name])
        ours = [part for part in costing_counts.NOTEBOOKS[name](ask) if not part.beyond]
        assert {p.what: p.flops for p in ours} == {p.what: p.flops for p in costing_published.published()[name]}


# ------------------------------------------------------------------------------------------------------- wall clock


def manifest(root, notebook, part="", seconds=3.0, **changed):
    now = costing_counts.parameters(root, "tiny", notebook) | changed
    folder = root / "outputs" / "tiny" / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"processor": "some", "device": "cpu", "threads": 1}
    run = {"notebook": notebook, "part": part, "parameters": now, "machine": machine, "wall_seconds": seconds}
    (folder / f"{notebook}{'.' if part else ''}{part}.json").write_text(json.dumps(run))


def test_wall_clock_comes_from_manifests(root):
    assert costing.measured(root, "tiny", "05_early_recognition") is None
    manifest(root, "05_early_recognition", recognition_seeds=9, outputs="elsewhere")
    assert costing.measured(root, "tiny", "04_agreement") is None
    found = costing.measured(root, "tiny", "05_early_recognition")
    assert found["seconds"] == 3 and found["machine"] == "some, cpu, threads 1"
    assert found["parameters changed since"] == ["recognition_seeds"]


def test_parts_of_a_run_add_up(root):
    for part, seconds in (("dm", 2.0), ("random", 5.0)):
        manifest(root, costing_counts.MAKER, part, seconds, methods=[part])
    found = costing.measured(root, "tiny", costing_counts.MAKER)
    assert found["seconds"] == 7 and found["parameters changed since"] == []


# ----------------------------------------------------------------------------------------------------- whole, errors


def test_the_command_writes_and_prints(root, monkeypatch, capsys):
    manifest(root, "05_early_recognition", seconds=30.0)
    monkeypatch.setattr(costing.report, "project_root", lambda: root)
    out = root / "costing.json"
    monkeypatch.setattr(sys, "argv", ["costing", "--profile", "tiny", "--out", str(out), "--tflops", "2"])
    costing.main()
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    rows = {row["notebook"]: row for row in result["notebooks"]}
    assert list(rows) == list(costing_counts.NOTEBOOKS) and result["tflops, assumed"] == 2
    early = rows["05_early_recognition"]["ours"]
    assert early["operations"] == pytest.approx(EPOCH * G + 2 * 8 * (TEST + 40) * F, rel=1e-4)
    assert early["minutes"] == pytest.approx(early["operations"] / 2e12 / 60, rel=1e-4)
    assert early["dominated by"].startswith("training, ") or early["dominated by"].startswith("test predictions, ")
    for way, total in result["total"].items():
        assert total["operations"] == pytest.approx(sum(row[way]["operations"] for row in rows.values()), rel=1e-4)
    published, same = (rows["06_hessian"][way]["operations"] for way in ("published", "ours, same counts"))
    assert rows["06_hessian"]["published / ours, same counts"] == pytest.approx(published / same, rel=1e-3)
    assert rows["06_hessian"]["published / ours, same counts"] > 8
    assert rows["08_semantics"]["published / ours, same counts"] is None
    assert rows["08_semantics"]["published"]["shared with those before"] == pytest.approx(0.995e15, rel=1e-3)
    assert set(result["distillation"]) >= {"published", "ours"} and "distillation" not in result["total"]
    assert (
        "tiny 30 s" in printed and "which is assumed" in printed and "10 h 35 min" in printed and "12 passes" in printed
    )


def test_unknown_profile(root):
    with pytest.raises(ValueError, match="unknown profile 'huge': allowed are paper, tiny"):
        costing.costing(root, "huge", 1.0)


def test_missing_yaml(root):
    (root / "params" / "tiny" / "03_mixing.yaml").unlink()
    with pytest.raises(ValueError, match="profile tiny has no 03_mixing.yaml: costing needs one for every notebook"):
        costing.costing(root, "tiny", 1.0)


def test_refused_parameters(root):
    write(root, "03_mixing", TINY["03_mixing"] | {"network_seeds": 0})
    with pytest.raises(ValueError, match="03_mixing.yaml: network_seeds"):
        costing_counts.asked(root, "tiny", "03_mixing")


def test_sets_that_are_files(root):
    with pytest.raises(ValueError, match="extra_sets of 03_mixing names files"):
        costing_counts.asked(root, "tiny", "03_mixing", {"extra_sets": ["their.pt"]})


def test_unknown_dataset(root):
    with pytest.raises(ValueError, match="unknown dataset to be costed 'svhn': allowed are digits, mnist"):
        costing_counts.asked(root, "tiny", "03_mixing", {"dataset": "svhn"})


def test_a_protocol_of_a_sets_own_steps(root):
    with pytest.raises(ValueError, match="protocol own-steps takes the steps of a set"):
        parts(root, "04_agreement", {"protocol": "own-steps"})


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_an_impossible_rate(root, rate):
    with pytest.raises(ValueError, match="tflops is .*: it must be above 0"):
        costing.costing(root, "tiny", rate)
