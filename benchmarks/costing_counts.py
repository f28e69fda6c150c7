"""What the notebooks of a profile compute: operations of convolutions and linear layers, counted pass by pass."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from ddanalysis import architectures, checks, curvature, makers, pools, traces, unroll
from ddanalysis import data as datasets
from ddanalysis.analysis import hessian, mixing, pretrained
from ddanalysis.analysis import influence_estimates as estimators
from ddanalysis.architectures import Architecture
from ddanalysis.data import ImageData
from ddanalysis.datasets import TORCHVISION
from ddanalysis.distill import METHODS, Job, cost, plans
from ddanalysis.evaluation import PROTOCOLS, protocol_recipe
from ddanalysis.networks import Networks
from ddanalysis.parameters import check_yaml, declared_parameters
from ddanalysis.training import Recipe

MAKER = "01_distill"
TRAINING_IMAGES = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000}
TEST_IMAGES = 10_000  # of each of these
GPU = torch.device("cuda")  # how many vectors share a pass; no such device is needed
EIGENPAIR_PRODUCTS = 41  # for ten eigenvalues, the most that was seen on networks between 20 and 300 updates old
SHARED = "shared"
KINDS = ("forward", "gradient", "double backward", "kept", "share", "each", "forms share", "forms each")

# ---------------------------------------------------------------------------------------------------------- the counts


@dataclass(frozen=True)
class Part:
    """Some of the work of a notebook; equal parts of two notebooks are one piece of work."""

    what: str
    which: str
    flops: int
    beyond: bool = field(default=False, compare=False)  # of what the published figure shows


@dataclass(frozen=True)
class Set:
    """A distilled set, as far as its cost is concerned."""

    method: str
    ipc: int
    seed: int
    images: int

    def __len__(self) -> int:
        return self.images


@dataclass(frozen=True, eq=False)
class Ask:
    """What a notebook of a profile asks for."""

    values: dict[str, Any]
    data: ImageData  # of which only shapes and labels are real
    a: Architecture
    sets: list[Set]
    recipes: list[tuple[str, int, dict[str, Any]]]  # method, ipc, settings

    @property
    def shown(self) -> int:
        """The images of all sets together."""
        return sum(map(len, self.sets))

    @property
    def train(self) -> int:
        return len(self.data.train_y)

    @property
    def test(self) -> int:
        return len(self.data.test_y)


@cache
def flops(a: Architecture, kind: str) -> int:
    """Operations of one image's pass: a kind of ``plans.Work``, a Hessian-vector product by "double backward", or its
    second half alone, with the graph "kept"; in ours, what all vectors of a pass "share" and what "each" adds, and the
    same of the "forms" of a trace.
    """
    if kind in ("share", "each", "forms share", "forms each"):
        count = _forms if kind.startswith("forms") else _forward_over_reverse
        one, two = count(a, 1), count(a, 2)
        return two - one if kind.endswith("each") else 2 * one - two
    if kind not in ("double backward", "kept"):
        return cost.flops_per_image(a, kind)
    p, x, y = cost._inputs(a, 1, 1, "meta")
    weights = [p[name].requires_grad_() for name in Networks(a, p).trainable()]
    with FlopCounterMode(display=False) as counter:
        loss = Networks(a, p).loss(x, y).sum()
        gradient = torch.autograd.grad(loss, weights, create_graph=True)
        torch.autograd.grad(gradient, weights, [t.detach() for t in gradient])
    found = counter.get_total_flops()
    return {"double backward": found, "kept": found - flops(a, "gradient")}[kind]


def _forward_over_reverse(a: Architecture, vectors: int) -> int:
    p, x, y = cost._inputs(a, 1, 1, "meta")
    weights = unroll.flat(Networks(a, p))[0]
    running = {name: t for name, t in p.items() if name not in Networks(a, p).trainable()}
    with FlopCounterMode(display=False) as counter:
        curvature._several(a, False)(weights, running, x, y, x.new_ones(1), weights.expand(vectors, -1))
    return counter.get_total_flops()


def _forms(a: Architecture, vectors: int) -> int:
    p, x, _ = cost._inputs(a, 1, 1, "meta")
    weights = unroll.flat(Networks(a, p))[0]
    running = {name: t for name, t in p.items() if name not in Networks(a, p).trainable()}
    with FlopCounterMode(display=False) as counter:
        labels, each = x.new_ones(1, a.classes), x.new_ones(1)
        traces._form(a, False, traces.GROUPS)(weights, running, x, labels, each, weights.expand(vectors, -1))
    return counter.get_total_flops()


def products(a: Architecture, n: int, vectors: int) -> int:
    """Our products of the Hessian of ``n`` images with ``vectors``."""
    together, _ = curvature.sizes(a, n, vectors, GPU)
    return n * (-(-vectors // together) * flops(a, "share") + vectors * flops(a, "each"))


def forms(a: Architecture, n: int, probes: int) -> int:
    """Our forms of a trace of ``n`` images, ``probes`` of every block of them."""
    chunks = -(-probes // curvature.VECTORS)
    return n * (chunks * flops(a, "forms share") + probes * flops(a, "forms each"))


def seen(recipe: Recipe, n: int) -> int:
    """The images that one network's training on ``n`` sees, each as often as it does."""
    return sum(size * count for size, count in plans.batches(n, recipe.batch_size, recipe.total_updates(n)))


def on_sets(ask: Ask, protocol: str) -> list[Part]:
    """Networks trained on every set under a protocol, and their test predictions."""
    recipe, how = protocol_recipe(protocol, ask.data.name, ask.a), PROTOCOLS[protocol].batches
    if how == "own":
        raise ValueError(f"protocol {protocol} takes the steps of a set: how many is not known before there is one")
    count, classes, parts = ask.values["network_seeds"], ask.data.n_classes, []
    for one in ask.sets:
        n = classes * min(max(100 // classes, 1), one.ipc) if how == "balanced" else len(one)
        which = f"{one} {protocol} {count} {ask.a}"
        parts.append(Part("training on sets", which, count * seen(recipe, n) * flops(ask.a, "gradient")))
        parts.append(Part("test predictions", which, count * ask.test * flops(ask.a, "forward")))
    return parts


# ------------------------------------------------------------------------------------------------------- the notebooks


def recognition_by_pretrained(ask: Ask) -> list[Part]:
    """02_pretrained_recognition."""
    v, kinds = ask.values, dict[str, pretrained.Reference]()
    parts: list[Part] = []
    for name in v["references"]:
        options: dict[str, Any] = {"depth": v["depth"]} if name.startswith("ConvNet") else {}
        if v["resnet_width"] and name.startswith("ResNet"):
            options = {"widths": tuple(v["resnet_width"] * 2**stage for stage in range(4))}
        limit, epochs = v["reference_accuracy"].get(name), v["reference_epochs"].get(name, 0)
        kinds[name] = one = pretrained.reference(name, ask.data, limit, epochs, **options)
        count = 1 if name in v["reference_files"] else v["reference_seeds"]
        if name not in v["reference_files"]:
            parts += reference_training(ask, one, name, beyond=name not in pretrained.PUBLISHED_EPOCHS)
        shown = count * (ask.test + ask.shown) * flops(one.architecture, "forward")
        parts.append(Part("predictions", f"{name} {ask.sets}", shown))
    drawn = next((name for name in kinds if name.startswith("ResNet18")), list(kinds)[-1])
    once = flops(kinds[drawn].architecture, "forward")
    mapped = sum(len(s) for s in ask.sets if s.seed == v["set_seeds"][0] and s.ipc == max(v["ipc"]))
    told = sum(len(s) for s in ask.sets if len(s) >= 2 * ask.data.n_classes)
    count = 1 if drawn in v["reference_files"] else v["reference_seeds"]
    parts.append(Part("features", f"map {drawn}", (ask.test + mapped) * once))
    return [*parts, Part("features", f"separability {drawn}", count * (ask.test + told) * once, beyond=True)]


def reference_training(ask: Ask, one: pretrained.Reference, name: str, beyond: bool = False) -> Iterator[Part]:
    """Every network of a kind, to the end of its recipe, with a look at held-out images after each epoch."""
    counts = ask.data.train_y.bincount().tolist()
    kept = sum(int(n * pretrained.HELD_OUT) for n in counts) if one.stop_at else 0
    work = seen(one.recipe, ask.train - kept) * flops(one.architecture, "gradient")
    work += (one.recipe.epochs or 0) * kept * flops(one.architecture, "forward")
    for seed in range(ask.values["reference_seeds"]):
        yield Part(f"training {name}", f"{one} s{seed}", work, beyond)


def mixed(ask: Ask) -> list[Part]:
    """03_mixing."""
    v, parts = ask.values, []
    recipe = Recipe(updates=v["mixing_updates"], batch_size=None)
    for mode in v["mixing_modes"]:
        who = mixing.members(ask.sets, mode, v["real_per_class"], range(v["network_seeds"]))  # type: ignore[arg-type]
        images = 0
        for i, k, _ in who:
            n = len(ask.sets[i]) + (k * ask.data.n_classes if mode != "replacement" else 0)
            images += seen(mixing._recipe(recipe, mode, ask.sets[i]), n)  # type: ignore[arg-type]
        beyond = mode != "fixed updates"
        parts.append(Part(f"training, {mode}", "", images * flops(ask.a, "gradient"), beyond))
        parts.append(Part("test predictions", mode, len(who) * ask.test * flops(ask.a, "forward"), beyond))
    return parts


def agreement(ask: Ask) -> list[Part]:
    """04_agreement."""
    v, f, g = ask.values, flops(ask.a, "forward"), flops(ask.a, "gradient")
    count, early = v["subset_pool"], Recipe(updates=v["early_stopping_updates"], batch_size=v["batch_size"])
    rows = pools.subset_rows(ask.data, count, tuple(v["subset_fractions"]), v["seed"])
    runs = v["early_stopping_pool"]
    return [
        *on_sets(ask, v["protocol"]),
        Part("training of the subset pool", "", v["subset_epochs"] * sum(map(len, rows)) * g),
        Part("predictions of the subset pool", "", count * ask.test * f),
        Part("training of the early pool", "", runs * seen(early, ask.train) * g),
        Part("predictions of the early pool", "", runs * v["early_stopping_updates"] * ask.test * f),
    ]


def early_recognition(ask: Ask) -> list[Part]:
    """05_early_recognition."""
    v, count = ask.values, ask.values["recognition_seeds"]
    recipe = Recipe(updates=v["recognition_updates"], batch_size=v["batch_size"])
    looks = count * (v["recognition_updates"] + 1) * flops(ask.a, "forward")
    return [
        Part("training", "", count * seen(recipe, ask.train) * flops(ask.a, "gradient")),
        Part("test predictions", "", looks * ask.test),
        Part("predictions of sets", "", looks * ask.shown),
    ]


def trace(ask: Ask) -> list[Part]:
    """06_hessian."""
    v, a, n = ask.values, ask.a, ask.train
    recipe = Recipe(updates=v["hessian_updates"], batch_size=v["batch_size"])
    count, states = v["hessian_seeds"], len(range(0, v["hessian_updates"] + 1, v["hessian_every"]))
    real, few = (
        len(hessian.sample_rows(ask.data.train_y, v[name], 0)) for name in ("hessian_images", "spectrum_images")
    )
    own = sum(forms(a, len(one), v["set_probes"]) for one in ask.sets)
    spectra = [few, *map(len, ask.sets)]
    return [
        Part("training", "", count * seen(recipe, n) * flops(a, "gradient")),
        Part("trace, real images", "", count * states * forms(a, real, v["real_probes"])),
        Part("trace, sets", "", count * states * own),
        Part("spectra", "", count * len(set(v["spectra_at"])) * sum(_spectrum(ask, m) for m in spectra), beyond=True),
    ]


def passes(ask: Ask) -> str:
    """How the trace on real images is cut into passes."""
    v = ask.values
    states = v["hessian_seeds"] * len(range(0, v["hessian_updates"] + 1, v["hessian_every"]))
    count = states * -(-(v["hessian_images"] or ask.train) // v["probe_block"])
    return f"The trace on real images is {count:,} passes of {v['probe_block']} images and {v['real_probes']} vectors."


def _spectrum(ask: Ask, n: int) -> int:
    """Eigenvalues, vector by vector, their residuals, and the density, of one state on ``n`` images."""
    effort = hessian.Effort(top=ask.values["top_eigenvalues"])
    found = EIGENPAIR_PRODUCTS * products(ask.a, n, 1) + products(ask.a, n, effort.top)
    return found + effort.steps * products(ask.a, n, effort.vectors)


def influence(ask: Ask) -> list[Part]:
    """07_influence."""
    return [part for one in ask.sets for part in (*leave_one_out(ask, one), *_estimates(ask, one))]


def leave_one_out(ask: Ask, one: Set) -> list[Part]:
    """A network without each image of a set, and one with all, from every initialisation."""
    count, updates, n = ask.values["influence_seeds"], ask.values["influence_updates"], len(one)
    which = f"{one} {count} {updates} {ask.a}"
    images = count * updates * (n * (n - 1) + n)
    return [
        Part("leave-one-out training", which, images * flops(ask.a, "gradient")),
        Part("leave-one-out test losses", which, count * (n + 1) * ask.test * flops(ask.a, "forward")),
    ]


def _estimates(ask: Ask, one: Set) -> list[Part]:
    """All estimates of influence from gradients; with the matrix products, which are a good part of them."""
    count, updates, n = ask.values["influence_seeds"], ask.values["influence_updates"], len(one)
    p, rows = ask.a.parameter_count(), n * ask.data.n_classes
    states = len(estimators._schedule(Recipe(updates=updates, batch_size=None), n, estimators.CHECKPOINTS)[0])
    gradients = updates * n + states * (n + ask.test) + rows + n  # training, TracIn, Gauss-Newton, TRAK
    matrices = 2 * ask.test * p * n * (states + 3) + 2 * rows * p * (rows + 2 * n)
    matrices += 6 * n**2 * estimators.PROJECTION
    work = gradients * flops(ask.a, "gradient") + n * flops(ask.a, "forward") + matrices
    return [Part("estimates of influence", str(one), count * work, beyond=True)]


def semantics(ask: Ask) -> list[Part]:
    """08_semantics."""
    v, name = ask.values, ask.values["network"]
    options = {"width": v["width"], "depth": v["depth"]}
    chosen = pretrained.reference(name, ask.data, 0.0, v["reference_epochs"].get(name, 0), **options)
    looks = v["reference_seeds"] * ask.test * flops(ask.a, "forward")
    return [
        *(part for one in ask.sets for part in leave_one_out(ask, one)),
        *reference_training(ask, chosen, name, beyond=True),
        Part("features", "08", looks, beyond=True),
    ]


def distillation(ask: Ask) -> list[Part]:
    """01_distill, with its scores."""
    parts = [part for protocol in ask.values["protocols"] for part in on_sets(ask, protocol)]
    for method, ipc, settings in ask.recipes:
        job, sets = Job(ask.data, ask.a, ipc), len(ask.values["set_seeds"])
        own = METHODS[method].settings(settings)
        whole = _planned(job, method, own)
        once = _planned(job, method, own | {"iterations": 0}) if "iterations" in own else 0
        parts.append(Part(f"distillation by {method}", f"ipc {ipc}", sets * (whole - once)))
        if once:  # which other methods may have made
            parts.append(Part(f"{'models of CLOM' if method.startswith('clom_') else 'experts'}", f"{once}", once))
    return parts


def _planned(job: Job, method: str, settings: dict[str, Any]) -> int:
    work = plans.plan(job, method, settings).work
    return sum(one.passes * flops(one.architecture, one.kind) for one in work)


NOTEBOOKS: dict[str, Callable[[Ask], list[Part]]] = {
    "02_pretrained_recognition": recognition_by_pretrained,
    "03_mixing": mixed,
    "04_agreement": agreement,
    "05_early_recognition": early_recognition,
    "06_hessian": trace,
    "07_influence": influence,
    "08_semantics": semantics,
}


# --------------------------------------------------------------------------------------------------- what is asked for


def asked(root: Path, profile: str, notebook: str, changed: dict[str, Any] | None = None) -> Ask:
    """What a notebook asks for with the parameters of a profile, some of them ``changed``."""
    v = parameters(root, profile, notebook) | (changed or {})
    if v["extra_sets"]:
        raise ValueError(f"extra_sets of {notebook} names files: the cost of sets that are not made here is not known")
    data = stand_in(v["dataset"])
    a = architectures.build(v["network"], data.shape, data.n_classes, width=v["width"], depth=v["depth"])
    where: Any = SimpleNamespace(root=root, profile=profile)
    recipes = makers._recipes(where, v["methods"], v["ipc"], v["distill"])
    sets = [Set(m, ipc, seed, ipc * data.n_classes) for m, ipc, _ in recipes for seed in v["set_seeds"]]
    return Ask(v, data, a, sets, recipes)


def parameters(root: Path, profile: str, notebook: str) -> dict[str, Any]:
    """The parameters of a notebook in a profile, its defaults among them; ``ValueError`` for what it would refuse."""
    checks.one_of(
        "profile", profile, sorted(path.name for path in (root / "params").glob("*") if any(path.glob("*.yaml")))
    )
    path, own = root / "params" / profile / f"{notebook}.yaml", root / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        raise ValueError(f"profile {profile} has no {path.name}: costing needs one for every notebook from 01 to 08")
    given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    problems = check_yaml(own, given)
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    declared = declared_parameters(json.loads(own.read_text(encoding="utf-8")))
    return {name: default for name, (_, default) in declared.items()} | given


@cache
def stand_in(dataset: str) -> ImageData:
    """A dataset by its shapes alone, classes of equal size; digits are bundled, and real."""
    if dataset == "digits":
        return datasets.load(dataset)
    checks.one_of("dataset to be costed", dataset, ["digits", *TRAINING_IMAGES])
    _, _, shape, classes = TORCHVISION[dataset]
    x, y = torch.zeros(1), torch.arange(len(classes))
    n = TRAINING_IMAGES[dataset]
    train, test = x.expand(n, *shape), x.expand(TEST_IMAGES, *shape)
    labels = (y.repeat_interleave(count // len(y)) for count in (n, TEST_IMAGES))
    train_y, test_y = labels
    zeros, ones = (0.0,) * shape[0], (1.0,) * shape[0]
    return ImageData(dataset, train, train_y, test, test_y, classes, zeros, ones, "none: shapes alone")
