"""What a GPU gains from many networks at once, bfloat16 and compilation, against the published way on the same GPU.

    python -m benchmarks.gpu --root DIR --out benchmarks/results/gpu.json [--rounds 5] [--quick]

The published ConvNet on CIFAR-10, images in memory for both ways, so that no loading is timed: on a GPU that is kept
busy by loaders this is the harder comparison. The published way is one ``nn.Module`` after the other in float32; with
PyTorch's defaults its convolutions run in TF32, and so do ours, but for those of the Hessian. Seconds are for one
network, the device idle before and after.

* **Update** of a batch of 256, and of the 100 images of a distilled set (full batch).
* **Prediction** of 10,000 images; the published one builds the graph of a backward pass, as its notebook does.
* **Hessian**: a product over 512 images (PyHessian), ours alone and each of four; a pass of the trace.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import published_steps as plain
from benchmarks.common import Job, Task, device_name, environment, interleave, ratio, table, write_json
from ddanalysis import curvature, networks, traces, training
from ddanalysis.architectures import build
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData, load
from ddanalysis.networks import Networks
from ddanalysis.traces import Probes
from ddanalysis.training import Recipe

BATCH = 256
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """How much of the real thing is timed."""

    root: str = ""  # "" is made-up images
    device: str = "cuda"
    width: int = 128
    per_class: int = 1000  # of made-up images
    updates: int = 20  # timed together
    together: tuple[int, ...] = (1, 8)  # networks in a call, batches of 256
    small: tuple[int, ...] = (1, 20, 101)  # the same with full batches of 100
    predictions: int = 10_000
    images: int = 512  # of a product and a pass
    rounds: int = 5
    compiled: tuple[bool, ...] = (False, True)


@dataclass(frozen=True)
class Timed:
    """A task, and the network updates, predictions or products that it does."""

    task: Task
    units: int = 1


def published(settings: Settings, images: ImageData) -> dict[str, Timed]:
    """One network after the other, as an ``nn.Module``."""
    import pyhessian

    x, y = images.train_x, images.train_y
    module = plain.ConvNet(images.shape[0], images.shape[1], images.n_classes, settings.width).to(settings.device)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def learn(size: int) -> None:
        for u in range(settings.updates):
            rows = torch.arange(u * size, (u + 1) * size) % len(x)
            optimiser.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimiser.step()

    def predict() -> None:
        torch.cat([module(part).argmax(1) for part in x[: settings.predictions].split(BATCH)]).cpu()

    first = list(zip(x[: settings.images].split(BATCH), y[: settings.images].split(BATCH), strict=True))
    v = [torch.randn_like(p) for p in module.parameters()]

    def hessian_product() -> None:
        of = pyhessian.hessian(module, F.cross_entropy, dataloader=first, cuda=settings.device == "cuda")
        of.dataloader_hv_product(v)

    return {
        "update": Timed(lambda: learn(BATCH), settings.updates),
        "small update": Timed(lambda: learn(100), settings.updates),
        "prediction": Timed(predict),
        "product": Timed(hessian_product),
    }


def ours(settings: Settings, images: ImageData) -> dict[str, dict[str, Timed]]:
    """Row -> label -> what is timed, the package's way."""
    architecture = build("ConvNet", images.shape, images.n_classes, width=settings.width)
    x, y, rows = images.train_x, images.train_y, {}

    def learn(pool: Networks, n: int, batch: int | None, compute: Compute) -> Callable[[], None]:
        recipe, seeds = Recipe(updates=settings.updates, batch_size=batch), range(len(pool))
        return lambda: training.train(pool, x[:n], y[:n], recipe, seeds, compute=compute) and None

    def predict(pool: Networks, compute: Compute) -> Callable[[], None]:
        few = (x[: settings.predictions], y[: settings.predictions])
        return lambda: pool.evaluate(*few, compute) and None

    def add(row: str, k: int, compute: Compute, task: Task, units: int) -> None:
        how = f"{compute.precision}{', compiled' if compute.compiled else ''}"
        rows.setdefault(row, {})[f"{k} at once, {how}"] = Timed(task, units)

    for compiled, precision in product(settings.compiled, PRECISIONS):
        compute = Compute(precision, compiled)
        for row, counts, n, batch in (
            ("update", settings.together, len(x), BATCH),
            ("small update", settings.small, 100, None),
        ):
            for k in counts:
                pool = networks.create(architecture, range(k), device=settings.device)
                add(row, k, compute, learn(pool, n, batch, compute), k * settings.updates)
        for k in settings.together:
            pool = networks.create(architecture, range(k), device=settings.device)
            add("prediction", k, compute, predict(pool, compute), k)
    for compiled in settings.compiled:
        hessian(settings, networks.create(architecture, [0], device=settings.device), x, y, compiled, add)
    return rows


def hessian(
    settings: Settings, network: Networks, x: torch.Tensor, y: torch.Tensor, compiled: bool, add: Callable[..., None]
) -> None:
    """Products with the Hessian and a pass of its trace."""
    compute, few = Compute(compiled=compiled), (x[: settings.images], y[: settings.images])
    multiply = curvature.hessian_product(network, *few, compiled)
    v = torch.randn(curvature.VECTORS, network.architecture.parameter_count(), device=settings.device)
    for k in (1, curvature.VECTORS):
        add("product", k, compute, lambda k=k: multiply(v[:k]) is None, k)
    probes = Probes(1, block=settings.images // 2)
    add("pass of the trace", 1, compute, lambda: traces.trace(network, *few, 0, probes, compiled=compiled) is None, 1)


class Here:
    """Tasks by name in this process, in place of a worker's: one device has room for both ways."""

    def __init__(self, tasks: dict[str, Task], device: str) -> None:
        self.tasks, self.wait = tasks, torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def run(self, task: str) -> tuple[float, object]:
        """Seconds of one task, with the device idle before and after, and what it returned."""
        self.wait()
        start = time.perf_counter()
        result = self.tasks[task]()
        self.wait()
        return time.perf_counter() - start, result


def measure(settings: Settings) -> dict[str, object]:
    """Every task once to warm up, then all in turn."""
    images = (
        load("cifar10", root=settings.root, device=settings.device)
        if settings.root
        else plain.made_up(settings.per_class, device=settings.device)
    )
    where = environment(torch.get_num_threads()) | {"device": device_name(settings.device)}
    work = {("published", row): timed for row, timed in published(settings, images).items()}
    work |= {(label, row): timed for row, labels in ours(settings, images).items() for label, timed in labels.items()}
    names = {(label, row): f"{row}: {label}" for label, row in work}
    here = Here({names[key]: timed.task for key, timed in work.items()}, settings.device)
    jobs = [Job(names[key], here, names[key], timed.units) for key, timed in work.items()]
    first = {job.label: here.run(job.task)[0] for job in jobs}
    found = interleave(jobs, settings.rounds)
    return {
        "environment": where,
        "data": f"{images.name}, {images.pixel_source}",
        "settings": {key: value for key, value in asdict(settings).items() if key != "root"},
        "first calls": first,
        "rows": [
            result(row, label, found[name], found.get(f"{row}: published")) for (label, row), name in names.items()
        ],
    }


def result(row: str, label: str, times: list[float], slow: list[float] | None) -> dict[str, object]:
    """A row of the table: milliseconds, and how many times as fast as the published way."""
    gain = ratio(slow, times) if slow else {"ratio": None, "lowest": None, "highest": None}
    return {"row": row, "way": label, "milliseconds": 1000 * statistics.median(times)} | gain | {"times": times}


def show(found: dict) -> str:
    """The table of a result in Markdown."""
    return table([{key: value for key, value in row.items() if key != "times"} for row in found["rows"]])


def main() -> None:
    parser = argparse.ArgumentParser(description="networks and the Hessian on a GPU, ours against the published way")
    parser.add_argument("--root", default="", help="folder that holds CIFAR-10; made-up images without")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="nothing compiled, which takes minutes")
    parser.add_argument("--quick", action="store_true", help="one small round on a CPU: shows that it runs")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("rounds must be at least 1")
    settings = Settings(given.root, rounds=given.rounds, compiled=(False,) if given.eager else (False, True))
    if given.quick:
        settings = replace(
            settings, device="cpu", width=4, per_class=30, updates=2, together=(1, 2), small=(1, 3), images=64,
            compiled=(False,), rounds=1,
        )  # fmt: skip
    elif not torch.cuda.is_available():
        parser.error("there is no GPU: use --quick to see that it runs")
    found = measure(settings)
    write_json(given.out, found)
    print(show(found))


if __name__ == "__main__":
    main()
