"""One step of every distillation method: seconds and memory of ours, against the published way of taking it.

    python -m benchmarks.distill --width 128 --ipc 1 10 50 --threads 1 --out benchmarks/results/distill.json [--quick]

The published way is in ``published_steps.py``: one network, Python loops over classes, graphs kept whole. Both ways get
the same real batches, augmentations and batches of the set, and give the same gradient in the images
(``tests/test_benchmark_distill.py``), so only the way of computing differs. Ours are the methods of the package with
their defaults, one iteration; the published network is there already when its clock starts. Images are random numbers
of CIFAR-10's shape. The published way takes its augmentations from the package and has its real images in memory.

* **Matching** (DC, DSA, DM): one update of the images, and apart from it the epochs of training between two updates.
* **Unrolled** (MTT, TESLA, BPTT, RaT): published unrolls of 30 to 200 steps are too long for a CPU. Timed is an
  iteration of few steps, divided by their number, with 1 real image a class in the loss at its end; the loss on many
  real images, and RaT's steps before its window, are rows of their own. BPTT is published with a recomputing backward
  pass and compared with a retained graph as well; MTT and RaT are published with a retained graph. RaT's batches have
  10 images a class at most. Steps are augmented by one of the published operations, so that all are alike.

"Iterations of published length" are put together from these parts, so often as the published settings have them.

Memory is the peak of bytes in living tensors above those at the start of a step. On a CPU it comes from PyTorch's
profiler, which sees every allocation and release: the same number on every run and on a busy machine, whatever the
allocator keeps, and what ``torch.cuda.max_memory_allocated`` counts on a GPU. The resident size of a process also has
freed memory in it, and one step of ours costs only 2.5 MB. What a step costs is the difference of two unrolls.
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
from torch.profiler import ProfilerActivity, profile

from benchmarks import published_steps as plain
from benchmarks.common import ALLOCATORS, Task, Worker, device_name, environment, interleave, ratio, table, write_json
from benchmarks.common import Job as Timing
from benchmarks.published_steps import INNER_RATE, MATCHING, UNROLL_AUGMENTATION
from ddanalysis import networks, training, unroll
from ddanalysis.distill import METHODS, Job, Made, bptt, gradient_matching, trajectory
from ddanalysis.distill.experts import Experts
from ddanalysis.evaluation import dsa_strategy
from ddanalysis.optimisers import Optimiser
from ddanalysis.training import Recipe

RETAINED = "retained graph"
UNROLLED = ("mtt", "tesla", "bptt", "rat")
RETAINING = ("mtt", "bptt", "rat")
WAYS = dict.fromkeys(MATCHING, ("class by class",)) | {
    "mtt": (RETAINED,),
    "tesla": ("recompute",),
    "bptt": ("recompute", RETAINED),
    "rat": (RETAINED,),
}
LIGHT = 10  # images a class up to which everything is timed in every round; above, in all rounds but the first
REAL = 640  # real images in the loss of BPTT
REAL_OF_RAT = 5000
STEPS_OF_BPTT = 150
RATE_OF_STEP_SIZE = 1e-6
TIME_BAR, MEMORY_BAR = 1.0, 10.0


@dataclass(frozen=True)
class Settings:
    """How much of the real thing is measured."""

    width: int = 128
    ipc: tuple[int, ...] = (1, 10, 50)
    rounds: int = 3
    threads: int = 1
    allocator: str = "default"
    device: str = "cpu"
    batch_real: int = 256
    compiled: bool = False  # the unrolled methods of ours


def timed(ipc: int) -> int:
    """Steps of the unroll that is timed."""
    return max(1, 10 // ipc)


def lengths(ipc: int) -> tuple[int, int]:
    """Steps of the two unrolls whose memory is compared; a single step has less beside it than later ones."""
    return max(2, 10 // ipc), max(3, 20 // ipc)


def epochs_timed(ipc: int) -> int:
    """Epochs of training in one timing: at least 200 images."""
    return max(1, 20 // ipc)


# Ours -----------------------------------------------------------------------------------------------------------------


def our_step(
    job: Job, method: str, steps: int = 0, before: int = 0, batch_real: int = 256, compiled: bool = False
) -> Made:
    """One iteration of a method of the package, of learning rate 1, from real images."""
    unrolled = {"strategy": UNROLL_AUGMENTATION, "compiled": compiled}
    student = {"latest_start": 1, "expert_epochs": 1, "rate_of_step_size": RATE_OF_STEP_SIZE}
    settings = {
        "dc": {"outer": 1, "batch_real": batch_real},
        "dsa": {"outer": 1, "batch_real": batch_real},
        "dm": {"batch_real": batch_real},
        "mtt": unrolled | student | {"steps": steps},
        "bptt": {
            "steps": steps, "inner_rate": INNER_RATE["bptt"], "batch_real": 1, "clip": 1e9, "compiled": compiled,
        },
        "rat": unrolled | {
            "window": steps, "horizon": before + steps, "window_start": "fixed", "inner_rate": INNER_RATE["rat"],
            "batch_real": 10,
        },
    }  # fmt: skip
    settings["tesla"] = settings["mtt"] | {"gradient": "tesla"}
    make = METHODS["mtt" if method == "tesla" else method].make
    pool = Experts([plain.expert(job)])
    with mock.patch.object(trajectory, "train_experts", lambda *_: pool):
        return make(job, iterations=1, rate=1.0, initialisation="real", **settings[method])


def our_training(job: Job, method: str, epochs: int) -> networks.Networks:
    """The training between two updates of DC's or DSA's images."""
    recipe = Recipe(epochs=epochs, momentum=0.0, augment="" if method == "dc" else dsa_strategy(job.data.name))
    return training.train(plain.first_network(job, method), job.real_images(), job.labels(), recipe, [0]).networks


def our_advance(job: Job, steps: int, compiled: bool = False) -> dict[str, torch.Tensor]:
    """The network after RaT's steps before its window."""
    x, inner = job.real_images(), Optimiser("adam")
    state = unroll.begin(plain.first_network(job, "rat"), inner)
    rates = [INNER_RATE["rat"]] * steps
    batches = partial(plain.unrolled_batch, job, "rat", x=x)
    end = unroll.advance(job.architecture, inner, state, batches, rates, compiled)
    return unroll.unflat(job.architecture, end.weights).state


# Tasks and their measurement ------------------------------------------------------------------------------------------


def ours(settings: Settings) -> dict[str, Task]:
    """Tasks of a process that uses the package."""
    data, tasks = plain.made_up(device=settings.device), {}
    for ipc in settings.ipc:
        job = plain.job_of(data, settings.width, ipc)
        for method in MATCHING:
            tasks[f"{method}/{ipc}/update"] = partial(our_step, job, method, batch_real=settings.batch_real)
        for method, steps in product(UNROLLED, sorted({timed(ipc), *lengths(ipc)})):
            tasks[f"{method}/{ipc}/{steps} steps"] = partial(our_step, job, method, steps, compiled=settings.compiled)
        for method in ("dc", "dsa") if ipc > 1 else ():
            tasks[f"{method}/{ipc}/training"] = partial(our_training, job, method, epochs_timed(ipc))
        tasks[f"rat/{ipc}/advance"] = partial(our_advance, job, timed(ipc), settings.compiled)
    weights, real = unroll.flat(plain.first_network(job, "bptt")), (data.train_x[:REAL], data.train_y[:REAL])
    tasks["real"] = partial(unroll.loss_and_gradient, job.architecture, weights, *real)
    return measured(tasks, settings.device)


def published(settings: Settings) -> dict[str, Task]:
    """Tasks of a process that works the published way."""
    data, tasks = plain.made_up(device=settings.device), {}
    for ipc in settings.ipc:
        job = plain.job_of(data, settings.width, ipc)
        nets = {method: plain.plain_network(job, method) for method in WAYS}
        for method in MATCHING:
            step = partial(plain.published_step, job, nets[method], method, "", batch_real=settings.batch_real)
            tasks[f"{method}/{ipc}/update/class by class"] = step
        for method, steps in product(UNROLLED, sorted({timed(ipc), *lengths(ipc)})):
            for way in WAYS[method]:
                step = partial(plain.published_step, job, nets[method], method, way, steps)
                tasks[f"{method}/{ipc}/{steps} steps/{way}"] = step
        for method in ("dc", "dsa") if ipc > 1 else ():
            net = plain.plain_network(job, method)  # which this changes
            step = partial(plain.published_training, job, net, method, epochs_timed(ipc))
            tasks[f"{method}/{ipc}/training/class by class"] = step
        tasks[f"rat/{ipc}/advance/retained graph"] = partial(plain.published_advance, job, nets["rat"], timed(ipc))
    tasks["real/one pass"] = partial(plain.real_gradient, nets["bptt"], data.train_x[:REAL], data.train_y[:REAL])
    return measured(tasks, settings.device)


def measured(tasks: dict[str, Callable[[], object]], device: str) -> dict[str, Task]:
    """Every task as it is timed, and with the memory of it under a name of its own."""
    timed: dict[str, Task] = {name: partial(_done, task, device) for name, task in tasks.items()}
    return timed | {f"memory of {name}": partial(peak_memory, task, device) for name, task in tasks.items()}


def _done(task: Callable[[], object], device: str) -> None:
    task()
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(task: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes in living tensors at any moment of a task, above those at its start."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        _done(task, device)
        return torch.cuda.max_memory_allocated() - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        task()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def parts(method: str, ipc: int) -> dict[str, float]:
    """How often an iteration of published length takes each timed part: for DC and DSA, a mean update of the images."""
    if method == "dm":
        return {f"dm/{ipc}/update": 1}
    if method in MATCHING:
        updates, epochs = gradient_matching.loops(ipc)
        training_between = {f"{method}/{ipc}/training": epochs * (updates - 1) / updates}
        return {f"{method}/{ipc}/update": 1} | (training_between if updates > 1 else {})
    step = f"{method}/{ipc}/{timed(ipc)} steps"
    if method == "rat":
        own = bptt.preset("cifar10", ipc, {})
        before = (own["horizon"] - own["window"]) / 2  # the mean of a random window's start
        return {step: own["window"], f"rat/{ipc}/advance": before, "real": REAL_OF_RAT / REAL}
    if method == "bptt":
        return {step: STEPS_OF_BPTT, "real": 1}
    return {step: trajectory.preset("cifar10", ipc, {})["steps"]}


def theirs(name: str, way: str) -> str:
    """The published counterpart of one of our tasks."""
    return "real/one pass" if name == "real" else f"{name}/{way}"


def timings(workers: dict[str, Worker], settings: Settings) -> list[Timing]:
    """Every timing of one round: the published ways of a part and ours one after the other."""
    found = []
    for ipc, method in product(settings.ipc, WAYS):
        for name in parts(method, ipc):
            steps = timed(ipc)
            units = {"training": epochs_timed(ipc), "advance": steps, f"{steps} steps": steps}
            own = units.get(name.rpartition("/")[2], 1)
            found += [Timing(theirs(name, way), workers["published"], theirs(name, way), own) for way in WAYS[method]]
            found.append(Timing(name, workers["ours"], name, own))
    return list(dict.fromkeys(found))  # "real" is a part of many


def memory(workers: dict[str, Worker], work: list[Timing], settings: Settings) -> dict[str, int]:
    """Peak bytes of everything, the two processes side by side: what is counted does not depend on the load."""
    tasks = {way: [timing.task for timing in work if timing.worker is workers[way]] for way in workers}
    for ipc, method in product(settings.ipc, RETAINING):
        names = [f"{method}/{ipc}/{steps} steps" for steps in lengths(ipc)]
        tasks["ours"] += names
        tasks["published"] += [theirs(name, RETAINED) for name in names]

    def all_of(way: str) -> dict[str, int]:
        return {task: workers[way].run(f"memory of {task}")[1] for task in dict.fromkeys(tasks[way])}

    with ThreadPoolExecutor(len(workers)) as pool:
        first, second = pool.map(all_of, workers)
    return first | second


# Results --------------------------------------------------------------------------------------------------------------

UNITS = {"update": "an update of the images", "training": "an epoch of training", "advance": "a step before the window"}


def cost(seconds: dict[str, list[float]], peak: dict[str, int], settings: Settings) -> list[dict[str, object]]:
    """Seconds a unit of both ways, their ratio (above 1: ours is faster), and the peak memory of what was timed."""
    rows = {}
    for ipc, method in product(settings.ipc, WAYS):
        for name, way in product(parts(method, ipc), WAYS[method]):
            slow, fast = seconds[theirs(name, way)], seconds[name]
            unit = UNITS.get(name.rpartition("/")[2], "a step")
            row = {"method": method, "ipc": ipc, "published way": way, "unit": unit}
            if name == "real":
                row = {"method": "-", "ipc": "-", "published way": "one pass", "unit": f"a loss of {REAL} real images"}
            row |= {"published s": statistics.median(slow), "ours s": statistics.median(fast)} | ratio(slow, fast)
            row |= {"published MB": peak[theirs(name, way)] / 1e6, "ours MB": peak[name] / 1e6}
            rows[theirs(name, way)] = row | {"bar": TIME_BAR, "reached": row["ratio"] >= TIME_BAR}
    return list(rows.values())


def memory_of_a_step(peak: dict[str, int], settings: Settings) -> list[dict[str, object]]:
    """MB that one more step of an unroll costs, of a retained graph and of ours."""
    rows = []
    for ipc, method in product(settings.ipc, RETAINING):
        short, long = (f"{method}/{ipc}/{steps} steps" for steps in lengths(ipc))
        more = 1e6 * (lengths(ipc)[1] - lengths(ipc)[0])
        their = (peak[theirs(long, RETAINED)] - peak[theirs(short, RETAINED)]) / more
        mine = (peak[long] - peak[short]) / more
        row = {"method": method, "ipc": ipc, "retained graph MB": their, "ours MB": mine}
        row["ratio"] = their / mine if mine else None  # of a tiny network the unroll is not what takes the most
        rows.append(row | {"bar": MEMORY_BAR, "reached": their >= MEMORY_BAR * mine})
    return rows


def iterations(seconds: dict[str, list[float]], settings: Settings) -> list[dict[str, object]]:
    """What an iteration of published length takes: the medians of its parts, so often as it has them."""
    middle = {label: statistics.median(values) for label, values in seconds.items()}
    rows = []
    for ipc, method in product(settings.ipc, WAYS):
        counts = parts(method, ipc)
        mine = sum(count * middle[name] for name, count in counts.items())
        for way in WAYS[method]:
            their = sum(count * middle[theirs(name, way)] for name, count in counts.items())
            row = {"method": method, "ipc": ipc, "published way": way, "published s": their, "ours s": mine}
            rows.append(row | {"ratio": their / mine})
    return rows


def measure(settings: Settings) -> dict[str, object]:
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
        peak = memory(workers, work, settings)
        heavy = [f"/{ipc}/" for ipc in settings.ipc if ipc > LIGHT]
        first = interleave([timing for timing in work if not any(part in timing.label for part in heavy)], 1)
        later = interleave(work, settings.rounds - 1)
    seconds = {label: first.get(label, []) + values for label, values in later.items()}
    return {
        "environment": where,
        "settings": asdict(settings),
        "steps of the unrolls": {ipc: {"timed": timed(ipc), "memory": lengths(ipc)} for ipc in settings.ipc},
        "parts of an iteration": {f"{m}/{ipc}": parts(m, ipc) for ipc, m in product(settings.ipc, WAYS)},
        "cost": cost(seconds, peak, settings),
        "memory of one more step": memory_of_a_step(peak, settings),
        "iterations of published length": iterations(seconds, settings),
        "seconds": seconds,
        "peak bytes": peak,
    }


def show(result: dict) -> str:
    """The tables of a result in Markdown."""
    names = {None: None, True: "yes", False: "NO"}
    parts = [result[name] for name in ("cost", "memory of one more step", "iterations of published length")]
    shown = [[row | ({"reached": names[row["reached"]]} if "reached" in row else {}) for row in rows] for rows in parts]
    return "\n\n".join(table(rows) for rows in shown)


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of a distillation step, ours against the published way")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--allocator", choices=ALLOCATORS, default="default", help="of both ways")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compiled", action="store_true", help="the unrolled methods of ours")
    parser.add_argument("--quick", action="store_true", help="two small rounds: shows that it runs, measures nothing")
    given = parser.parse_args()
    if min(given.width, given.rounds - 1, given.threads, *given.ipc) < 1 or max(given.ipc) > 512:
        parser.error("width, threads and ipc must be at least 1, rounds at least 2, and ipc at most 512")
    settings = Settings(
        given.width, tuple(given.ipc), given.rounds, given.threads, given.allocator, given.device,
        compiled=given.compiled,
    )  # fmt: skip
    if given.quick:
        settings = replace(settings, width=4, ipc=(1, 10), rounds=2, batch_real=16)
    result = measure(settings)
    write_json(given.out, result)
    print(show(result))


if __name__ == "__main__":
    main()
