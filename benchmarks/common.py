"""What every benchmark shares: worker processes that are timed in turn, the record of where it ran, JSON and tables.

Ours and the published way are never timed in blocks: each round runs every job once, one at a time, so that a machine
that warms up, slows down or is disturbed does so for all of them. A setting that holds for a whole process, such as the
allocator's, has a process of its own.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from ddanalysis.allocator import keep_memory

Task = Callable[[], object]
ALLOCATORS = ("default", "kept")
PAUSE = 0.2  # seconds between two jobs, in which the threads of the last one stop spinning


class Worker:
    """A fresh process with tasks by name, made in it by ``build(*arguments)``; it does one at a time, when asked.

    ``allocator`` "kept" is :func:`ddanalysis.allocator.keep_memory`, after ``build``, so that what loading used and
    freed is not kept.
    """

    def __init__(
        self, build: Callable[..., dict[str, Task]], *arguments: object, allocator: str = "default", threads: int = 1
    ) -> None:
        if allocator not in ALLOCATORS:
            raise ValueError(f"allocator is {allocator!r}: allowed are {', '.join(ALLOCATORS)}")
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, build, arguments, allocator, threads))
        self._process.start()
        other.close()  # so that a process that dies is noticed here
        self._answer("starting")

    def run(self, task: str) -> tuple[float, Any]:
        """Wall seconds of one task, and what it returned (plain Python data)."""
        time.sleep(PAUSE)
        self._pipe.send(task)
        return self._answer(task)

    def _answer(self, task: str) -> tuple[float, Any]:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a worker stopped while {task}; its traceback is above") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()


def _serve(
    pipe: Connection, build: Callable[..., dict[str, Task]], arguments: Sequence[object], allocator: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    tasks = build(*arguments)
    if allocator == "kept" and not keep_memory():
        raise RuntimeError("the allocator setting needs Linux with glibc")
    pipe.send((0.0, None))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        result = tasks[task]()
        pipe.send((time.perf_counter() - start, result))


class Job(NamedTuple):
    """One thing to time: a task of a worker, ``units`` of work long (epochs, predictions, products, ...)."""

    label: str
    worker: Worker
    task: str
    units: int = 1


def interleave(jobs: Sequence[Job], rounds: int, progress: Callable[[str], object] = print) -> dict[str, list[float]]:
    """Seconds a unit of every job, one number a round; every second round goes through the jobs backwards."""
    seconds: dict[str, list[float]] = {job.label: [] for job in jobs}
    for r in range(rounds):
        for job in reversed(jobs) if r % 2 else jobs:
            seconds[job.label].append(job.worker.run(job.task)[0] / job.units)
        progress(f"round {r + 1} of {rounds}: {sum(parts[-1] for parts in seconds.values()):.1f} s")
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times as fast: the ratio of the medians, and the lowest and highest ratio within one round."""
    each = [s / f for s, f in zip(slow, fast, strict=True)]
    return {"ratio": statistics.median(slow) / statistics.median(fast), "lowest": min(each), "highest": max(each)}


def environment(threads: int) -> dict[str, object]:
    """Where a benchmark ran: processor, system, versions and every setting of the process that bears on time."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_PRELOAD", "GLIBC_TUNABLES")
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "memory GiB": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "C library": " ".join(platform.libc_ver()),
        "transparent huge pages": huge.read_text().strip() if huge.exists() else "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": threads,
        "variables": {name: os.environ[name] for name in names if name in os.environ},
        "load average before": round(os.getloadavg()[0], 2),
    }


def device_name(device: str) -> str:
    """What "cuda" is here, or "cpu"."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in fields.items()}
    if "model name" not in found:
        return platform.processor() or platform.machine()
    numbers = (found.get("vendor_id", "?"), found.get("cpu family", "?"), found.get("model", "?"))
    return f"{found['model name']} ({numbers[0]}, family {numbers[1]}, model {numbers[2]})"


def _memory() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def write_json(path: Path, result: dict[str, object]) -> None:
    """The whole result, or nothing, under ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(_rounded(result), indent=1) + "\n")
    os.replace(temporary, path)


def _rounded(value: Any) -> Any:
    """Numbers to five significant digits: more of a time means nothing."""
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def table(rows: Sequence[dict[str, object]]) -> str:
    """Rows that share their keys, as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0])] + [[_cell(v) for v in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
