"""What a run leaves for its readers: tables, figures and a manifest that says where they came from.

Every notebook opens one :class:`Run`, which knows the output folder, and hands it what is to be kept.
:mod:`ddanalysis.index` turns the manifests of a folder into one page.
"""

import io
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ddanalysis import checks
from ddanalysis.store import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

VERSIONS_OF = (
    "ddanalysis",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "seaborn",
)
"""Distributions whose versions a manifest records."""

KEPT = ("tables", "figures", "manifests", "executed", "parts")
"""Folders that are no place for artefacts."""

DPI = 150


def project_root(start: Path | None = None) -> Path:
    """The nearest folder with ``params/`` and ``notebooks/``, up from ``start`` (the working folder) or from here."""
    for begin in ((start or Path.cwd()).resolve(), Path(__file__).resolve().parent):
        for folder in (begin, *begin.parents):
            if (folder / "params").is_dir() and (folder / "notebooks").is_dir():
                return folder
    raise ValueError(
        f"{(start or Path.cwd()).resolve()} lies in no project: a parent with params/ and notebooks/ is needed"
    )


def resolve_device(device: str) -> torch.device:
    """The device meant by "auto" (CUDA where there is one), "cpu" or "cuda"; ``ValueError`` for CUDA without one."""
    checks.one_of("device", device, ("auto", "cpu", "cuda"))
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("device is 'cuda' and PyTorch finds no CUDA device here: allowed are auto, cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def limit_threads(threads: int) -> None:
    """Hold PyTorch, BLAS and OpenMP to ``threads`` threads: how a sum is split changes its last digits."""
    import threadpoolctl

    checks.whole("threads", threads)
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(limits=threads)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)  # for the libraries that are loaded later


def set_theme() -> None:
    """Figures as a paper prints them: small type, open axes, colours that everyone can tell apart, real fonts."""
    import seaborn

    rc = {"pdf.fonttype": 42, "ps.fonttype": 42, "axes.spines.top": False, "axes.spines.right": False}
    seaborn.set_theme(context="paper", style="ticks", palette="colorblind", rc=rc | {"legend.frameon": False})


def latex_table(table: "DataFrame") -> str:
    """A booktabs ``tabular``: 3 decimals, escaped, without an unnamed index; published numbers that are only recalled
    are in grey, for which LaTeX needs the package xcolor.
    """
    from ddanalysis import published

    style = (published.greyed(table) if "certainty" in table.columns else table.style).format(
        precision=3, na_rep="--", escape="latex"
    )
    for axis in (0, 1):
        style = style.format_index(escape="latex", axis=axis).format_index_names(escape="latex", axis=axis)
    return (style if any(table.index.names) else style.hide(axis="index")).to_latex(hrules=True, convert_css=True)


class Run:
    """One execution of one notebook: its output folder, its device, and the record of what it wrote.

    Opening it limits the threads and sets the look of figures, both for the whole process. Files appear whole or not at
    all. ``part`` names the share of one job of a fanned-out notebook: its tables and figures lie under
    ``parts/<part>/``, while artefacts are shared.

    Attributes:
        folder: where everything goes, ``outputs/<profile>`` of the project unless ``outputs`` names another (relative
            to the project).
        device: the ``torch.device`` to compute on.
    """

    def __init__(
        self,
        notebook: str,
        *,
        profile: str,
        parameters: dict[str, Any],
        device: str = "auto",
        threads: int = 1,
        outputs: str = "",
        part: str = "",
    ) -> None:
        self.notebook = _word("notebook", notebook)
        self.profile = _word("profile", profile)
        self.part = _word("part", part) if part else ""
        self.parameters, self.threads = parameters, threads
        self.device = resolve_device(device)
        self.root = project_root()
        self.folder = self.root / (outputs or Path("outputs", profile))
        self._tables: dict[str, dict[str, Any]] = {}
        self._figures: dict[str, dict[str, Any]] = {}
        self._bar: tqdm | None = None
        self._started = time.perf_counter()
        limit_threads(threads)
        set_theme()

    def artefact(self, kind: str, name: str) -> Path:
        """The path of an artefact, such as ``distilled/dm_digits_ipc10_s0.safetensors``; nothing is made there yet."""
        if _word("kind", kind) in KEPT:
            raise ValueError(f"kind is {kind!r}: artefacts lie in any folder but {', '.join(KEPT)}")
        return self.folder / kind / _word("name", name)

    def progress(self, name: str, total: int | None = None) -> Callable[[int], None]:
        """A function to call with the number of updates just done, of a known ``total`` or not.

        The first call opens a bar of that name and closes the one before it, so that what needs no work shows none.
        """
        bar: tqdm | None = None

        def advance(updates: int) -> None:
            nonlocal bar
            if bar is None:
                self._close_bar()
                bar = self._bar = tqdm(desc=name, total=total, unit=" updates", leave=False)
            bar.update(updates)

        return advance

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def table(self, table: "DataFrame", name: str, latex: "DataFrame | None" = None, caption: str = "") -> "DataFrame":
        """Write ``tables/<name>.csv``, every number exact, and ``tables/<name>.tex`` if ``latex`` gives what to print.

        Returns ``table``. Its index is not written, so a named one is refused with a ``ValueError``.
        """
        if any(table.index.names):
            raise ValueError(f"table {name!r} has the index {table.index.names}: reset_index() makes columns of it")
        files = {"csv": table.to_csv(index=False, lineterminator="\n")}
        if latex is not None:
            files["tex"] = latex_table(latex)
        paths = [self._write("tables", f"{name}.{kind}", content.encode()) for kind, content in files.items()]
        self._tables[name] = {"name": name, "caption": caption, "rows": len(table), "files": paths}
        return table

    def figure(self, figure: "Figure", name: str, caption: str = "") -> "Figure":
        """Write ``figures/<name>.png`` and ``.pdf``, without dates; the figure stays open for the notebook to show."""
        paths = []
        for kind, undated in (("png", "Software"), ("pdf", "CreationDate")):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, dpi=DPI, bbox_inches="tight", metadata={undated: None})
            paths.append(self._write("figures", f"{name}.{kind}", drawn.getvalue()))
        self._figures[name] = {"name": name, "caption": caption, "files": paths}
        return figure

    def finish(self, data: Any = None, extra: dict[str, Any] | None = None) -> Path:
        """Write ``manifests/<notebook>[.<part>].json`` and return its path.

        ``data`` is the ``ImageData`` that was analysed, ``extra`` whatever else a reader should know (JSON values).
        """
        self._close_bar()
        manifest = {
            "notebook": self.notebook,
            "part": self.part,
            "profile": self.profile,
            "parameters": self.parameters,
            "seeds": {k: v for k, v in self.parameters.items() if k == "seed" or k.endswith(("_seed", "_seeds"))},
            "data": _describe(data),
            "machine": self._machine(),
            "versions": _versions(),
            "commit": _commit(self.root),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - self._started, 2),
            "tables": list(self._tables.values()),
            "figures": list(self._figures.values()),
            "extra": extra or {},
        }
        path = (
            self.folder / "manifests" / (f"{self.notebook}.{self.part}.json" if self.part else f"{self.notebook}.json")
        )
        with atomic(path) as file:
            file.write((json.dumps(manifest, indent=1) + "\n").encode())
        return path

    def _write(self, kind: str, name: str, content: bytes) -> str:
        """Write one file and return its path in the output folder, as a link needs it."""
        place = Path("parts", self.part, kind) if self.part else Path(kind)
        relative = place / _word("name", name)
        with atomic(self.folder / relative) as file:
            file.write(content)
        return relative.as_posix()

    def _machine(self) -> dict[str, Any]:
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return {"processor": _processor(), "device": gpu or self.device.type, "threads": self.threads}


def _word(what: str, value: str) -> str:
    """``value`` if it can safely name a file."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", value):
        raise ValueError(f"{what} is {value!r}: it names a file, so only letters, digits, _, - and . are allowed")
    return value


def _describe(data: Any) -> dict[str, Any] | None:
    if data is None:
        return None
    return {
        "name": data.name,
        "pixel_source": data.pixel_source,
        "fingerprint": data.fingerprint(),
        "n_train": len(data.train_y),
        "n_test": len(data.test_y),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _processor() -> str:
    """The model name of the processor, as Linux gives it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit(root: Path) -> str:
    """The commit of the project, with ``-dirty`` behind it if files differ from it; "" where there is none."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
