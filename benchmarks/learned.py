"""One outer step of learning images and of learning labels: seconds and memory of ours, against the published way.

    python -m benchmarks.learned --threads 1 --out benchmarks/results/learned.json [--device cuda] [--quick]

The published ways are in ``published_learned.py``: one network, loops, double back-propagation through graphs that are
kept. Both ways give the same gradients (``tests/test_benchmark_learned.py``), so only the way of computing differs. The
network is LeNet; images are random numbers of MNIST's shape and number.

* **Dataset distillation.** One iteration of ``dd``, 10 steps in 3 passes, fresh networks, 1,024 real images in memory.
  Both ways draw their networks on the clock; ours also its batch of real images and its first images.
* **Label distillation**, second order. An iteration of ``ld``, 50 of 100 base images and 1,024 target images. The
  published way decodes, converts and normalises target images one by one in the same process; "from tensors" spares it
  that, and has its batches there, where ours takes its own from all images. Neither validates or has a reset clock.

Memory is the peak of bytes in living tensors, as ``benchmarks/distill.py`` counts it; what one more inner step costs is
the difference of two unrolls. The published code of dataset distillation frees the graphs of a network before the next,
and keeps every step's gradient in the images; the code of soft labels that builds on it keeps the graphs of all
networks. Both are rows of memory. Ours keeps the weights before a step, of as many networks as it takes at once.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import torch

from benchmarks import published_learned as plain
from benchmarks.common import ALLOCATORS, Task, Worker, device_name, environment, interleave, ratio, table, write_json
from benchmarks.common import Job as Timing
from benchmarks.distill import measured
from ddanalysis.architectures import build
from ddanalysis.data import ImageData
from ddanalysis.distill import METHODS, Job, Made, label_distillation
from ddanalysis.distill import ridge as ridges
from ddanalysis.distill.label_loop import Task as LabelTask
from ddanalysis.distill.label_loop import Teach
from ddanalysis.distill.ridge import States
from ddanalysis.seeding import generator

MANY = 16  # networks that the bars are for
TIME_BAR = 1.0
MEMORY_BAR = {10: 3.0, 100: 10.0}  # by images a step
LOADING_BAR = 2.0
FREED, ALIVE = "graphs of one network", "graphs of all networks"
LOADED, TENSORS = "with loading", "from tensors"
IPC_OF_LABELS = 10


@dataclass(frozen=True)
class Settings:
    """How much of the real thing is measured."""

    images: tuple[int, ...] = (10, 100)  # a step
    networks: tuple[int, ...] = (1, 4, MANY)
    steps: int = 10
    passes: int = 3
    real_images: int = 60_000
    batch_real: int = 1024
    iterations: int = 10  # of label distillation, timed together
    rounds: int = 5
    threads: int = 1
    allocator: str = "default"
    device: str = "cpu"

    @property
    def lengths(self) -> tuple[int, int]:
        """Passes of the two unrolls whose memory is compared."""
        return self.passes - 1, self.passes


def made_up(n: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> ImageData:
    """``n`` images of random bytes under MNIST's name, whose published settings they get."""
    y, mean, std = torch.arange(n, device=device) % 10, (0.1307,), (0.3081,)
    pixels = torch.randint(256, (n, 1, 28, 28), generator=generator(0, "made-up digits"), dtype=torch.uint8)
    x = pixels.to(device, dtype).div_(255).sub_(mean[0]).div_(std[0])
    return ImageData("mnist", x, y, x[:10], y[:10], tuple(map(str, range(10))), mean, std, "random numbers")


def job_of(data: ImageData, ipc: int) -> Job:
    return Job(data, build("LeNet", data.shape, data.n_classes), ipc)


# Ours -----------------------------------------------------------------------------------------------------------------


def our_images(job: Job, settings: Settings, networks: int, passes: int) -> Made:
    """One iteration of dataset distillation."""
    return METHODS["dd"].make(
        job, iterations=1, steps=settings.steps, passes=passes, batch_real=settings.batch_real, at_once=networks
    )


def label_task(job: Job, settings: Settings) -> tuple[LabelTask, Teach, States]:
    """Label distillation as the package sets it up: its task, its iteration, and what that starts from."""
    validation = len(job.data.train_y) // 6  # of MNIST's images the published 10,000
    with mock.patch.object(label_distillation, "distil", lambda *given: given):
        task, teach = METHODS["ld"].make(job, batch_real=settings.batch_real, validation=validation)
    return task, teach, {"learned": ridges.start(task.begin)} | task.network(0)


def our_labels(task: LabelTask, teach: Teach, states: States, iterations: int) -> None:
    for iteration in range(iterations):
        states, _ = teach(task, states, iteration)


# Tasks and their measurement ------------------------------------------------------------------------------------------


def dd_name(images: int, networks: int, passes: int) -> str:
    return f"dd/{images}/{networks} networks/{passes} passes"


def ours(settings: Settings) -> dict[str, Task]:
    """Tasks of a process that uses the package."""
    data, tasks = made_up(settings.real_images, device=settings.device), {}
    for images, networks, passes in product(settings.images, settings.networks, settings.lengths):
        job = job_of(data, settings.steps * images // 10)
        tasks[dd_name(images, networks, passes)] = partial(our_images, job, settings, networks, passes)
    tasks["ld"] = partial(our_labels, *label_task(job_of(data, IPC_OF_LABELS), settings), settings.iterations)
    return measured(tasks, settings.device)


def published(settings: Settings) -> dict[str, Task]:
    """Tasks of a process that works the published way."""
    data, tasks = made_up(settings.real_images, device=settings.device), {}
    real = data.train_x[: settings.batch_real], data.train_y[: settings.batch_real]
    for images, networks, passes in product(settings.images, settings.networks, settings.lengths):
        own = plain.begin_distillation(job_of(data, settings.steps * images // 10), settings.steps, passes)
        for way in (FREED, ALIVE):
            step = partial(plain.distillation_step, own, networks, plain.drawn(settings.device), real, way == ALIVE)
            tasks[f"{dd_name(images, networks, passes)}/{way}"] = step
    task, *_ = label_task(job_of(data, IPC_OF_LABELS), settings)
    batches = {LOADED: plain.loader(task), TENSORS: [task.real(i) for i in range(settings.iterations)]}
    for way, loaded in batches.items():
        tasks[f"ld/{way}"] = partial(plain.label_steps, plain.begin_labels(task), loaded, settings.iterations)
    return measured(tasks, settings.device)


def timings(workers: dict[str, Worker], settings: Settings) -> list[Timing]:
    """Every timing of one round: the published ways of a step and ours one after the other."""
    found = []
    for images, networks in product(settings.images, settings.networks):
        name = dd_name(images, networks, settings.passes)
        found.append(Timing(f"{name}/{FREED}", workers["published"], f"{name}/{FREED}"))
        found.append(Timing(name, workers["ours"], name))
    n = settings.iterations
    found += [Timing(f"ld/{way}", workers["published"], f"ld/{way}", n) for way in (LOADED, TENSORS)]
    return [*found, Timing("ld", workers["ours"], "ld", n)]


def memory(workers: dict[str, Worker], work: list[Timing], settings: Settings) -> dict[str, int]:
    """Peak bytes of everything, the two processes side by side: what is counted does not depend on the load."""
    tasks = {way: [timing.task for timing in work if timing.worker is worker] for way, worker in workers.items()}
    for images, networks, passes in product(settings.images, settings.networks, settings.lengths):
        name = dd_name(images, networks, passes)
        tasks["ours"].append(name)
        tasks["published"] += [f"{name}/{way}" for way in (FREED, ALIVE)]

    def all_of(way: str) -> dict[str, int]:
        return {task: workers[way].run(f"memory of {task}")[1] for task in dict.fromkeys(tasks[way])}

    with ThreadPoolExecutor(len(workers)) as pool:
        first, second = pool.map(all_of, workers)
    return first | second


# Results --------------------------------------------------------------------------------------------------------------

Seconds = dict[str, list[float]]
Rows = list[dict[str, object]]


def cost(
    seconds: Seconds, peak: dict[str, int], theirs: str, mine: str, bar: float | None, **what: object
) -> dict[str, object]:
    """Seconds of both ways, their ratio (above 1: ours is faster), and the peak memory of what was timed."""
    row = what | {"published s": statistics.median(seconds[theirs]), "ours s": statistics.median(seconds[mine])}
    row |= ratio(seconds[theirs], seconds[mine])
    row |= {"published MB": peak[theirs] / 1e6, "ours MB": peak[mine] / 1e6}
    return row | {"bar": bar, "reached": None if bar is None else row["ratio"] >= bar}


def images_cost(seconds: Seconds, peak: dict[str, int], settings: Settings) -> Rows:
    rows = []
    for images, networks in product(settings.images, settings.networks):
        name, bar = dd_name(images, networks, settings.passes), TIME_BAR if networks == MANY else None
        rows.append(cost(seconds, peak, f"{name}/{FREED}", name, bar, images=images, networks=networks))
    return rows


def labels_cost(seconds: Seconds, peak: dict[str, int]) -> Rows:
    bars = {LOADED: LOADING_BAR, TENSORS: None}
    return [cost(seconds, peak, f"ld/{way}", "ld", bar, published=way) for way, bar in bars.items()]


def memory_of_a_step(peak: dict[str, int], settings: Settings) -> Rows:
    """MB that one more inner step costs, of both codes that keep graphs and of ours (above 1: ours is less)."""
    rows = []
    for images, networks, way in product(settings.images, settings.networks, (FREED, ALIVE)):
        short, long = (dd_name(images, networks, passes) for passes in settings.lengths)
        their = (peak[f"{long}/{way}"] - peak[f"{short}/{way}"]) / settings.steps / 1e6
        mine = (peak[long] - peak[short]) / settings.steps / 1e6
        bar = MEMORY_BAR.get(images) if networks == MANY else None
        row: dict[str, object] = {"images": images, "networks": networks, "published": way}
        row |= {"published MB": their, "ours MB": mine, "ratio": their / mine}
        rows.append(row | {"bar": bar, "reached": None if bar is None else their >= bar * mine})
    return rows


def measure(settings: Settings, progress: Callable[[str], object] = print) -> dict[str, object]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
    where = environment(settings.threads) | {"device": device_name(settings.device)}
    with ExitStack() as stack:
        workers = {
            way.__name__: stack.enter_context(
                Worker(way, settings, allocator=settings.allocator, threads=settings.threads)
            )
            for way in (published, ours)
        }
        work = timings(workers, settings)
        peak = memory(workers, work, settings)  # which runs everything once
        seconds = interleave(work, settings.rounds, progress)
    return {
        "environment": where,
        "settings": asdict(settings),
        "dataset distillation": images_cost(seconds, peak, settings),
        "memory of one more inner step": memory_of_a_step(peak, settings),
        "label distillation": labels_cost(seconds, peak),
        "seconds": seconds,
        "peak bytes": peak,
    }


def show(result: dict) -> str:
    """The tables of a result in Markdown."""
    names = {None: None, True: "yes", False: "NO"}
    parts = [result[k] for k in ("dataset distillation", "memory of one more inner step", "label distillation")]
    return "\n\n".join(table([row | {"reached": names[row["reached"]]} for row in rows]) for rows in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of learning images and labels, ours against the published way")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--allocator", choices=ALLOCATORS, default="default", help="of both ways")
    parser.add_argument("--quick", action="store_true", help="two small rounds: shows that it runs, measures nothing")
    given = parser.parse_args()
    if min(given.rounds, given.threads) < 1:
        parser.error("rounds and threads must be at least 1")
    settings = Settings(rounds=given.rounds, threads=given.threads, allocator=given.allocator, device=given.device)
    if given.quick:
        settings = replace(
            settings, images=(10,), networks=(1, MANY), steps=2, passes=2, real_images=600, batch_real=32,
            iterations=2, rounds=2,
        )  # fmt: skip
    result = measure(settings)
    write_json(given.out, result)
    print(show(result))


if __name__ == "__main__":
    main()
