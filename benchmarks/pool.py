"""A pool of networks, subset-trained and early-stopped: ours against the published way of making it.

The published way ("What is Dataset Distillation Learning?", 2024) is re-created here plainly: one network at a time,
every image decoded and normalised on its own by eight loader processes that are forked anew for every pass, and test
predictions after every update that also build the graph for a backward pass. ``docs/performance.md`` explains rows,
columns and what is left out.

    python benchmarks/pool.py --root DIR --out benchmarks/results/pool.json [--rounds 5] [--quick]
"""

import argparse
import os
import statistics
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import ALLOCATORS, Job, Task, Worker, environment, interleave, ratio, table, write_json
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from ddanalysis.architectures import build
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData, fraction_rows, load
from ddanalysis.networks import Networks, create
from ddanalysis.training import Recipe, epoch_order, train

PRECISIONS = ("float32", "bfloat16")
FRACTION = 0.01  # of each class: 500 training images, within the published 0.005 to 0.05
BATCH = 256
Batches = Iterable[tuple[Tensor, Tensor]]

# Each row: the unit that is timed, the published way of it (with and without loading), and our precisions.
ROWS = {
    "start": ("before the first update of one network", ("start",), ("",)),
    "epoch": ("one epoch on 500 images", ("epoch", "epoch, in memory"), PRECISIONS),
    "predict": ("one prediction of the test images", ("predict", "predict, in memory"), PRECISIONS),
    "early": ("one update and one prediction of the test images", ("early",), PRECISIONS),
}
# Column: the published way's allocator and ours.
COLUMNS = {"both default": ("default", "default"), "as shipped": ("default", "kept"), "both kept": ("kept", "kept")}
TARGETS = {
    ("epoch", "float32"): {"as shipped": 2.7, "both kept": 1.2},
    ("epoch", "bfloat16"): {"as shipped": 4.0, "both kept": 1.7},
    ("predict", "float32"): {"as shipped": 3.5, "both kept": 1.4},
    ("predict", "bfloat16"): {"as shipped": 6.0, "both kept": 2.4},
}


@dataclass(frozen=True)
class Settings:
    """How much of the real thing is timed."""

    root: str
    rounds: int = 5
    epochs: int = 2  # timed together
    test_images: int = 1000
    updates: int = 2  # of an early-stopped network, timed together
    seeds: int = 3  # of the comparison of accuracies
    accuracy_epochs: int = 25
    accuracy_images: int = 2000
    threads: int = 2


# The published way ----------------------------------------------------------------------------------------------------


class Decoded(Dataset):
    """Images kept as bytes; each becomes a PIL image and a normalised tensor every time it is asked for."""

    def __init__(self, x: Tensor, y: Tensor, data: ImageData) -> None:
        pixels = data.denormalise(x).mul(255).round().byte()
        self.pixels, self.y = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()), y.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[i])), self.y[i]


def loader(images: Dataset, shuffle: bool) -> DataLoader:
    return DataLoader(images, BATCH, shuffle=shuffle, num_workers=8, multiprocessing_context="fork")


class PlainConvNet(nn.Module):
    """The published ConvNet 3 x 128; parameters are named as the package names them."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(3):
            setattr(self, f"conv{i}", nn.Conv2d(128 if i else 3, 128, 3, padding=1))
            setattr(self, f"norm{i}", nn.GroupNorm(128, 128))
        self.head = nn.Linear(128 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x))
            x = F.avg_pool2d(F.relu(x, inplace=True), 2)
        return self.head(x.flatten(1))


class Plain:
    """One network and its optimiser."""

    def __init__(self) -> None:
        self.net = PlainConvNet()
        self.optimiser = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)

    def update(self, x: Tensor, y: Tensor) -> None:
        self.optimiser.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        self.optimiser.step()

    def epochs(self, batches: Batches, n: int) -> None:
        for _ in range(n):
            for x, y in batches:
                self.update(x, y)

    def predict(self, batches: Batches) -> list[int]:
        classes: list[int] = []
        for x, _ in batches:
            classes.extend(self.net(x).argmax(1).tolist())
        return classes

    def early(self, training: Batches, test: Batches) -> None:
        for x, y in training:
            self.update(x, y)
            self.predict(test)


def published(settings: Settings) -> dict[str, Task]:
    """Tasks of a process that works the published way."""
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    data = load("cifar10", root=settings.root)
    everything = Decoded(data.train_x, data.train_y, data)
    subset = Subset(everything, fraction_rows(data.train_y, FRACTION, 0).tolist())
    early = Subset(everything, range(settings.updates * BATCH))
    test = Decoded(data.test_x[: settings.test_images], data.test_y[: settings.test_images], data)
    training_loader, early_loader, test_loader = loader(subset, True), loader(early, True), loader(test, False)
    training_batches, test_batches = list(training_loader), list(test_loader)
    plain = Plain()
    return {
        "start": lambda: sum(label == 0 for _, label in everything),  # rows by class: decodes each image for its label
        "epoch": lambda: plain.epochs(training_loader, settings.epochs),
        "epoch, in memory": lambda: plain.epochs(training_batches, settings.epochs),
        "predict": lambda: plain.predict(test_loader),
        "predict, in memory": lambda: plain.predict(test_batches),
        "early": lambda: plain.early(early_loader, test_loader),
    }


# Ours -----------------------------------------------------------------------------------------------------------------


def ours(settings: Settings) -> dict[str, Task]:
    """Tasks of a process that uses the package, by row and precision."""
    data = load("cifar10", root=settings.root)
    networks = create(build("ConvNet", data.shape, data.n_classes), [0])
    rows = fraction_rows(data.train_y, FRACTION, 0)
    subset, early = (data.train_x[rows], data.train_y[rows]), settings.updates * BATCH
    test = (data.test_x[: settings.test_images], data.test_y[: settings.test_images])

    def start() -> None:
        train(networks, data.train_x, data.train_y, Recipe(epochs=0), [0], [rows])

    def epoch(compute: Compute) -> None:
        train(networks, *subset, Recipe(epochs=settings.epochs), [0], compute=compute)

    def predict(compute: Compute) -> list[int]:
        return networks.evaluate(*test, compute).predictions[0].tolist()

    def early_stopped(compute: Compute) -> None:
        train(
            networks,
            data.train_x[:early],
            data.train_y[:early],
            Recipe(epochs=1),
            [0],
            observe=lambda now: {"predictions": now.evaluate(*test, compute).predictions},
            at=range(1, settings.updates + 1),
            compute=compute,
        )

    tasks: dict[str, Task] = {"start": start, "equality": partial(equality, settings, data)}
    for precision in PRECISIONS:
        compute = Compute(precision, compiled=True)
        tasks[f"epoch {precision}"] = partial(epoch, compute)
        tasks[f"predict {precision}"] = partial(predict, compute)
        tasks[f"early {precision}"] = partial(early_stopped, compute)
    return tasks


def equality(settings: Settings, data: ImageData) -> dict[str, object]:
    """Accuracies after training, and predictions of the same weights, of three ways of computing; nothing is timed.

    All three ways train from equal weights on equal batches; predictions are compared on the weights of our float32
    training at its start, after 10 updates and at its end. Untrained networks have many near ties.
    """
    n = settings.accuracy_images
    rows, test = fraction_rows(data.train_y, FRACTION, 0), (data.test_x[:n], data.test_y[:n])
    x, y, recipe = data.train_x[rows], data.train_y[rows], Recipe(epochs=settings.accuracy_epochs)
    updates = recipe.total_updates(len(x))
    moments = sorted({0, min(10, updates), updates})
    eager = "float32, plain PyTorch"
    accuracy: dict[str, list[float]] = {name: [] for name in (eager, *PRECISIONS)}
    flips: list[dict[str, object]] = []
    for seed in range(settings.seeds):
        start = create(build("ConvNet", data.shape, data.n_classes), [seed])
        accuracy[eager].append(_plain_training(start, x, y, recipe, seed, test))
        for precision in PRECISIONS:
            compute = Compute(precision, compiled=True)
            done = train(start, x, y, recipe, [seed], observe=lambda now: now.state, at=moments, compute=compute)
            accuracy[precision].append(float(done.networks.evaluate(*test, compute).accuracy))
            if precision == "float32":
                flips += [{"seed": seed} | flip for flip in _flips(start, done.observed, moments, test)]
    return {"data": f"{data.name}, {data.pixel_source}", "accuracy": accuracy, "flipped predictions": flips}


def _plain_training(
    start: Networks, x: Tensor, y: Tensor, recipe: Recipe, seed: int, test: tuple[Tensor, Tensor]
) -> float:
    plain = _plain(start.state)
    for epoch in range(recipe.epochs or 0):
        order = epoch_order(recipe, torch.arange(len(x)), seed, epoch)
        plain.epochs([(x[part], y[part]) for part in order.split(BATCH)], 1)
    return float((_classes(plain, test) == test[1]).double().mean())


def _plain(state: dict[str, Tensor]) -> Plain:
    plain = Plain()
    plain.net.load_state_dict({name: t[0] for name, t in state.items()})
    return plain


def _classes(plain: Plain, test: tuple[Tensor, Tensor]) -> Tensor:
    return torch.tensor(plain.predict(zip(*(t.split(BATCH) for t in test), strict=True)))


def _flips(
    start: Networks, states: dict[str, Tensor], moments: list[int], test: tuple[Tensor, Tensor]
) -> list[dict[str, object]]:
    """Test images whose predicted class is not that of plain PyTorch with the same weights."""
    flips = []
    for i, update in enumerate(moments):
        state = {name: t[:, i] for name, t in states.items()}
        classes = _classes(_plain(state), test)
        for precision in PRECISIONS:
            found = Networks(start.architecture, state).evaluate(*test, Compute(precision, compiled=True)).predictions
            flips.append({"update": update, "precision": precision, "flipped": int((found[0] != classes).sum())})
    return flips


# One run --------------------------------------------------------------------------------------------------------------


def jobs(workers: dict[tuple[str, str], Worker], settings: Settings) -> list[Job]:
    """Every timing of one round, the two ways alternating."""
    units = {"start": 1, "epoch": settings.epochs, "predict": 1, "early": settings.updates}
    found = []
    for row, (_, variants, precisions) in ROWS.items():
        tasks = [("published", v) for v in variants] + [("ours", f"{row} {p}".strip()) for p in precisions]
        tasks = tasks[::2] + tasks[1::2] if len(tasks) == 4 else tasks
        for way, task in tasks:
            for allocator in ALLOCATORS:
                found.append(Job(f"{way}/{task}/{allocator}", workers[way, allocator], task, units[row]))
    return found


def ratios(seconds: dict[str, list[float]]) -> list[dict[str, object]]:
    """One entry for every row, variant of the published way, precision and column, with its target if there is one."""
    found = []
    for row, (_, variants, precisions) in ROWS.items():
        for variant in variants:
            for precision in precisions:
                for column, (theirs, mine) in COLUMNS.items():
                    slow = seconds[f"published/{variant}/{theirs}"]
                    fast = seconds[f"ours/{f'{row} {precision}'.strip()}/{mine}"]
                    entry = {"row": row, "published": variant, "ours": precision or "-", "column": column}
                    target = TARGETS.get((row, precision), {}).get(column)
                    entry |= ratio(slow, fast) | {"target": target}
                    entry["reached"] = None if target is None else entry["ratio"] >= target
                    found.append(entry)
    return found


def summary(accuracy: dict[str, list[float]]) -> list[dict[str, object]]:
    """Mean accuracy of each way, its spread over seeds, and its paired difference to plain PyTorch."""
    eager, *_ = accuracy.values()
    rows = []
    for name, values in accuracy.items():
        differences = [a - b for a, b in zip(values, eager, strict=True)]
        rows.append(
            {
                "trained in": name,
                "mean accuracy": statistics.mean(values),
                "sd over seeds": _sd(values),
                "mean difference": statistics.mean(differences),
                "sd of difference": _sd(differences),
                "seeds": len(values),
            }
        )
    return rows


def _sd(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def first_calls(work: list[Job]) -> dict[str, float]:
    """Seconds of the first call of every job, in order: those of ours compile.

    The process with the default allocator compiles anew; the other one finds the kernels in the cache folder, as every
    later process on a machine does.
    """
    seconds = {}
    for job in sorted(work, key=lambda job: job.label.endswith("kept")):
        seconds[job.label] = job.worker.run(job.task)[0]
        print(f"first call of {job.label}: {seconds[job.label]:.1f} s", flush=True)
    return seconds


def measure(settings: Settings) -> dict[str, object]:
    where = environment(settings.threads)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        with ExitStack() as stack:
            workers = {
                (way.__name__, allocator): stack.enter_context(
                    Worker(way, settings, allocator=allocator, threads=settings.threads)
                )
                for way in (published, ours)
                for allocator in ALLOCATORS
            }
            work = jobs(workers, settings)
            first = first_calls(work)
            seconds = interleave(work, settings.rounds)
            equal = workers["ours", "kept"].run("equality")[1]
    return {
        "environment": where,
        "data": equal["data"],
        "settings": {name: value for name, value in asdict(settings).items() if name != "root"},
        "unit of each row": {row: unit for row, (unit, _, _) in ROWS.items()},
        "first call seconds": first,
        "seconds": seconds,
        "medians": {label: statistics.median(values) for label, values in seconds.items()},
        "ratios": ratios(seconds),
        "accuracy": summary(equal["accuracy"]),
        "accuracy of each seed": equal["accuracy"],
        "flipped predictions": equal["flipped predictions"],
    }


def show(result: dict) -> str:
    """The tables of a result in Markdown: times, ratios, accuracies and flipped predictions."""
    medians, seconds = result["medians"], []
    for label in medians:
        if label.endswith("/default"):
            name = label.removesuffix("/default")
            kept = medians[f"{name}/kept"]
            seconds.append({"seconds a unit": name, "default allocator": medians[label], "kept memory": kept})
    shown = [
        {key: entry[key] for key in ("row", "published", "ours", "column", "ratio", "lowest", "highest")}
        | {"target": entry["target"], "reached": {None: None, True: "yes", False: "NO"}[entry["reached"]]}
        for entry in result["ratios"]
    ]
    parts = [seconds, shown, result["accuracy"], result["flipped predictions"]]
    return "\n\n".join(table(part) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="time the making of a pool, ours against the published way")
    parser.add_argument("--root", required=True, help="folder that holds CIFAR-10")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two small rounds: shows that it runs, measures nothing")
    given = parser.parse_args()
    if given.rounds < 1 or given.threads < 1:
        parser.error(f"rounds {given.rounds} and threads {given.threads} must be at least 1")
    settings = Settings(given.root, rounds=given.rounds, threads=given.threads)
    if given.quick:
        small = {
            "epochs": 1,
            "test_images": 300,
            "updates": 1,
            "seeds": 2,
            "accuracy_epochs": 2,
            "accuracy_images": 300,
        }
        settings = Settings(given.root, rounds=2, threads=given.threads, **small)
    result = measure(settings)
    write_json(given.out, result)
    print(show(result))


if __name__ == "__main__":
    main()
