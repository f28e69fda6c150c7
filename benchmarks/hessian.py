"""The Hessian of a network in training: ours against PyHessian 0.1, the library behind the published figure.

    python -m benchmarks.hessian --root DIR --out benchmarks/results/hessian.json [--threads 2] [--rounds 5] [--quick]

The published ConvNet after some updates of batches of 256 on CIFAR-10, with the same weights and images in every
process. PyHessian gets a plain module and batches of 256 that are in memory already: loading is not timed.

* **Product**: one product with the Hessian, and each of four products at once; ours compiled, in float32.
* **Trace at equal standard error**: a product of two factors, both printed. Time: one pass over the same images, of one
  probe for all of them (PyHessian) or of an independent probe for every 8 images, layers apart (ours). Variance: that
  of such an estimate, from at least 30 probes on more images. Variance falls with the number of passes.
* **Top eigenvalues**, of largest magnitude: ours, timed once, at the loosest tolerance whose largest residual is at
  most the one that PyHessian's power iteration really reaches with its defaults. That iteration would take an hour and
  more: it runs with our products, which equal its own, to count them; its time is computed from the time of its own.

"As shipped" is PyHessian with the default allocator and ours with ``keep_memory()``; "both kept" is both with it.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import published_steps as plain
from benchmarks.common import Job, Task, Worker, environment, interleave, ratio, table, write_json
from ddanalysis import curvature, networks, store, traces, training
from ddanalysis.analysis.hessian import sample_rows
from ddanalysis.architectures import build
from ddanalysis.data import load
from ddanalysis.networks import Networks
from ddanalysis.traces import Probes
from ddanalysis.training import Recipe

BATCH = 256
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
COLUMNS = {"as shipped": "default", "both kept": "kept"}  # PyHessian's allocator; ours is kept
BARS = {
    "one product": {"as shipped": 3.0, "both kept": 1.2},
    "a product of four": {"as shipped": 4.5, "both kept": 1.6},
    "trace at equal standard error": {"as shipped": 60.0, "both kept": 25.0},
    "top eigenvalues": {"as shipped": 10.0, "both kept": 4.0},
}


@dataclass(frozen=True)
class Settings:
    """How much of the real thing is measured."""

    root: str = ""  # "" is made-up images
    width: int = 128
    updates: int = 100  # that the network has had
    images: int = 512  # of a timed pass
    spread_images: int = 5000  # of the variances
    probes: int = 30
    top: int = 10
    top_images: int = 1000
    rounds: int = 5
    threads: int = 2
    compiled: bool = True


def prepare(settings: Settings, path: Path) -> str:
    """Write a trained network and its images, stratified; returns the name of the data."""
    data = load("cifar10", root=settings.root) if settings.root else plain.made_up(30)
    rows = sample_rows(data.train_y, max(settings.spread_images, settings.top_images, settings.images), 0)
    architecture = build("ConvNet", data.shape, data.n_classes, width=settings.width)
    fresh, recipe = networks.create(architecture, [0]), Recipe(updates=settings.updates, batch_size=BATCH)
    trained = training.train(fresh, data.train_x, data.train_y, recipe, [0]).networks
    store.write(path, trained.state | {"x": data.train_x[rows], "y": data.train_y[rows]}, {})
    return f"{data.name}, {data.pixel_source}"


def material(settings: Settings, path: Path) -> tuple[Networks, torch.Tensor, torch.Tensor]:
    """The network, images and labels that :func:`prepare` wrote."""
    tensors = store.read(path)[0]
    x, y = tensors.pop("x"), tensors.pop("y")
    architecture = build("ConvNet", x.shape[1:], int(y.max()) + 1, width=settings.width)
    return Networks(architecture, tensors), x, y


# Tasks of the two ways ------------------------------------------------------------------------------------------------


def published(settings: Settings, path: Path) -> dict[str, Task]:
    """Tasks of a process that uses PyHessian."""
    import pyhessian

    network, x, y = material(settings, path)
    a = network.architecture
    module = plain.ConvNet(a.channels, a.size, a.classes, settings.width)
    module.load_state_dict({name: t[0] for name, t in network.state.items()})

    def library(n: int) -> pyhessian.hessian:
        batches = list(zip(x[:n].split(BATCH), y[:n].split(BATCH), strict=True))
        return pyhessian.hessian(module, F.cross_entropy, dataloader=batches, cuda=False)

    v, found = [torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for p in module.parameters()], []
    product = curvature.hessian_product(network, x[: settings.top_images], y[: settings.top_images], settings.compiled)

    def as_ours(u: list[Tensor]) -> tuple[float, list[Tensor]]:
        """What its product gives, by our product, which is the same and several times as fast."""
        found = product(torch.cat([t.flatten() for t in u])[None])[0].split([t.numel() for t in u])
        own = [h.view_as(t) for h, t in zip(found, u, strict=True)]
        return sum(float((h * t).sum()) for h, t in zip(own, u, strict=True)), own

    def top() -> dict[str, object]:
        torch.manual_seed(0)
        of, counted = library(settings.top_images), []
        theirs, same = (torch.cat([t.flatten() for t in f(v)[1]]) for f in (of.dataloader_hv_product, as_ours))
        far = float((same - theirs).norm() / theirs.norm())
        of.dataloader_hv_product = lambda u: counted.append(1) or as_ours(u)
        found[:] = of.eigenvalues(top_n=settings.top)
        return {"products": len(counted), "values": found[0], "difference of a product": far}

    def residuals() -> list[float]:
        values, vectors = found
        rests = [zip(as_ours(u)[1], u, strict=True) for u in vectors]
        squares = [sum(float((h - e * t).square().sum()) for h, t in r) for e, r in zip(values, rests, strict=True)]
        return [math.sqrt(s) for s in squares]

    return {
        "product": lambda: library(settings.images).dataloader_hv_product(v)[0],
        "top": top,
        "residuals": residuals,
    }


def ours(settings: Settings, path: Path) -> dict[str, Task]:
    """Tasks of a process that uses the package."""
    network, x, y = material(settings, path)
    size = network.architecture.parameter_count()
    v = torch.randn(curvature.VECTORS, size, generator=torch.Generator().manual_seed(0))
    images = (x[: settings.images], y[: settings.images])
    product = curvature.hessian_product(network, *images, settings.compiled)

    def top(tolerance: float) -> dict[str, object]:
        few = (x[: settings.top_images], y[: settings.top_images])
        pairs = curvature.eigenpairs(
            network, *few, settings.top, 0, "LM", tolerance=tolerance, compiled=settings.compiled
        )
        return {"products": pairs.products, "values": pairs.values.tolist(), "residuals": pairs.residuals.tolist()}

    def one_pass() -> float:
        return traces.trace(network, *images, 0, Probes(1), compiled=settings.compiled).value

    def spread() -> dict[str, float]:
        """The variance of an estimate of one pass, both ways, and the trace."""
        many = (x[: settings.spread_images], y[: settings.spread_images])
        own = traces.trace(network, *many, 0, Probes(settings.probes), compiled=settings.compiled)
        common = traces.forms(network, *many, 0, range(settings.probes), len(many[0]), settings.compiled, groups=1)
        return {"trace": own.value, "common": float(common.var()), "independent": own.error**2 * own.probes}

    tops: dict[str, Task] = {f"top {t}": lambda t=t: top(t) for t in TOLERANCES}
    tasks: dict[str, Task] = {"product": lambda: bool(product(v[:1]).sum()), "four": lambda: bool(product(v).sum())}
    return tasks | {"pass": one_pass, "spread": spread} | tops


# Results --------------------------------------------------------------------------------------------------------------


def timings(workers: dict[str, Worker], settings: Settings) -> dict[str, list[float]]:
    """Seconds a product or pass, everything warm."""
    work = [Job(f"published/{name}", workers[name], "product") for name in COLUMNS.values()]
    units = {"product": 1, "four": curvature.VECTORS, "pass": 1}
    work += [Job(f"ours/{task}", workers["ours"], task, n) for task, n in units.items()]
    for job in work:
        print(f"first call of {job.label}: {job.worker.run(job.task)[0]:.1f} s", flush=True)
    return interleave(work, settings.rounds)


def top_eigenvalues(
    workers: dict[str, Worker], seconds: dict[str, list[float]], settings: Settings
) -> list[dict[str, object]]:
    """Seconds, products and largest residual of each way, PyHessian's first.

    PyHessian's iteration runs for the number of its products and what they reach; its time is computed from theirs.
    """
    found = workers["kept"].run("top")[1]
    own = {"products": found["products"], "worst": max(workers["kept"].run("residuals")[1])}
    share = found["products"] * settings.top_images / settings.images
    rows: list[dict[str, object]] = [
        {"way": f"PyHessian, {name}, computed", "seconds": share * statistics.median(seconds[f"published/{name}"])}
        | own
        for name in COLUMNS.values()
    ]
    print(
        f"products of PyHessian: {found['products']}, ours differ by {found['difference of a product']:.1g}", flush=True
    )
    for tolerance in TOLERANCES:
        took, found = workers["ours"].run(f"top {tolerance}")
        worst = max(found["residuals"])
        rows.append({"way": f"ours, tolerance {tolerance}", "seconds": took, "products": found["products"]})
        rows[-1]["worst"] = worst
        if worst <= rows[0]["worst"]:
            break
    return rows


def ratios(
    seconds: dict[str, list[float]], spread: dict[str, float], tops: Sequence[dict[str, object]]
) -> list[dict[str, object]]:
    """What is reached of every bar; the trace is the product of its two factors."""
    rows = []
    variance = spread["common"] / spread["independent"]
    last = tops[-1] if tops[-1]["worst"] <= tops[0]["worst"] else None
    for column, allocator in COLUMNS.items():
        slow = seconds[f"published/{allocator}"]
        single = ratio(slow, seconds["ours/pass"])
        theirs = next(row["seconds"] for row in tops if row["way"] == f"PyHessian, {allocator}, computed")
        reached = {
            "one product": ratio(slow, seconds["ours/product"]),
            "a product of four": ratio(slow, seconds["ours/four"]),
            "trace at equal standard error": {key: value * variance for key, value in single.items()},
            "top eigenvalues": dict.fromkeys(single, theirs / last["seconds"] if last else math.nan),
        }
        for what, found in reached.items():
            row = {"what": what, "column": column} | found | {"bar": BARS[what][column]}
            factors = f"{single['ratio']:.3g} in time, {variance:.3g} in variance" if what.startswith("trace") else ""
            rows.append(row | {"reached": found["ratio"] >= row["bar"], "factors": factors})
    return rows


def measure(settings: Settings) -> dict[str, object]:
    where = environment(settings.threads)
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder, "material.safetensors")
        name = prepare(settings, path)
        ways = {"default": (published, "default"), "kept": (published, "kept"), "ours": (ours, "kept")}
        workers = {
            way: stack.enter_context(Worker(build_, settings, path, allocator=allocator, threads=settings.threads))
            for way, (build_, allocator) in ways.items()
        }
        seconds = timings(workers, settings)
        tops = top_eigenvalues(workers, seconds, settings)
        print("what is timed is done: the variances", flush=True)
        spread = workers["ours"].run("spread")[1]
    return {
        "environment": where,
        "data": name,
        "settings": {key: value for key, value in asdict(settings).items() if key != "root"},
        "seconds": seconds,
        "medians": {label: statistics.median(values) for label, values in seconds.items()},
        "variance of one pass": spread,
        "top eigenvalues": tops,
        "ratios": ratios(seconds, spread, tops),
    }


def show(result: dict) -> str:
    """The tables of a result in Markdown."""
    names = {True: "yes", False: "NO"}
    reached = [row | {"reached": names[row["reached"]]} for row in result["ratios"]]
    medians = [{"what": label, "seconds": value} for label, value in result["medians"].items()]
    return "\n\n".join(table(rows) for rows in (medians, result["top eigenvalues"], reached))


def main() -> None:
    parser = argparse.ArgumentParser(description="the Hessian of a network, ours against PyHessian")
    parser.add_argument("--root", default="", help="folder that holds CIFAR-10; made-up images without")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--updates", type=int, default=100, help="that the network has had")
    parser.add_argument("--quick", action="store_true", help="one small round: shows that it runs, measures nothing")
    given = parser.parse_args()
    if min(given.rounds, given.threads, given.updates) < 1:
        parser.error("rounds, threads and updates must be at least 1")
    settings = Settings(given.root, updates=given.updates, rounds=given.rounds, threads=given.threads)
    if given.quick:
        small = {"width": 4, "updates": 2, "images": 64, "spread_images": 96, "probes": 4, "top": 2, "top_images": 64}
        settings = replace(settings, rounds=1, compiled=False, **small)
    result = measure(settings)
    write_json(given.out, result)
    print(show(result))


if __name__ == "__main__":
    main()
