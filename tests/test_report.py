"""A run's tables, figures and manifest, and the page that shows them."""

import csv
import io
import json
import os
import platform
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import threadpoolctl
import torch
from matplotlib.figure import Figure

from ddanalysis import report
from ddanalysis.index import build_index, main, read_manifests
from ddanalysis.report import Run

PARAMETERS = {
    "dataset": "digits",
    "network": "ConvNet",
    "width": 16,
    "protocol": "dc-300",
    "set_seeds": [0, 1],
    "seed": 3,
}
TIDY = pd.DataFrame(
    {
        "method": ["class_mean", "dm", "a & b <i>"],
        "ipc": [1, 10, 10],
        "accuracy": [0.1, 1 / 3, float("nan")],
        "loss": np.array([0.1, 2 / 3, 1e-9], dtype=np.float32),
    }
)
DATA = SimpleNamespace(
    name="cifar10-jpeg",
    pixel_source="lossy jpeg copy",
    fingerprint=lambda: "0123456789abcdef",
    train_y=torch.zeros(50),
    test_y=torch.zeros(10),
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, and the process as it was afterwards."""
    for folder in ("params", "notebooks"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    with matplotlib.rc_context(), threadpoolctl.threadpool_limits():
        yield tmp_path
    torch.set_num_threads(1)


def open_run(notebook: str = "04_agreement", **changes: Any) -> Run:
    return Run(notebook, **{"profile": "quick", "parameters": PARAMETERS, "device": "cpu"} | changes)


def drawing() -> Figure:
    figure = Figure(figsize=(2, 1.5))
    figure.add_subplot().plot([1, 2, 3], label="agreement")
    return figure


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --------------------------------------------------------------------------------------------------------------- run


def test_the_folder_is_the_projects_wherever_the_kernel_started(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_run().folder == project / "outputs" / "quick"
    monkeypatch.chdir(project)
    assert open_run(profile="smoke").folder == project / "outputs" / "smoke"
    assert open_run(outputs="elsewhere/a").folder == project / "elsewhere" / "a"
    assert open_run(outputs=str(project / "b")).folder == project / "b"


def test_opening_a_run_writes_nothing(project: Path) -> None:
    open_run().artefact("distilled", "dm_digits_ipc10_s0.safetensors")
    assert files(project) == []


def test_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    with pytest.raises(ValueError, match=r"lies in no project: a parent with params/ and notebooks/ is needed"):
        report.project_root(tmp_path)


def test_artefacts_are_shared_between_parts(project: Path) -> None:
    path = open_run(part="dm").artefact("distilled", "dm_digits_ipc10_s0.safetensors")
    assert path == project / "outputs/quick/distilled/dm_digits_ipc10_s0.safetensors"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("tables", "a", "kind is 'tables': artefacts lie in any folder but tables, figures"),
        ("../distilled", "a", "kind is '../distilled': it names a file"),
        ("distilled", "a/b", "name is 'a/b': it names a file"),
        ("distilled", "", "name is ''"),
        ("distilled", ".a", "name is '.a'"),
    ],
)
def test_artefacts_that_are_refused(project: Path, kind: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_run().artefact(kind, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu': allowed are auto, cpu, cuda"),
        ({"threads": 0}, "threads is 0: it must be a whole number of at least 1"),
        ({"threads": True}, "threads is True"),
        ({"part": "a/b"}, "part is 'a/b': it names a file"),
        ({"profile": ""}, "profile is ''"),
        ({"notebook": "../04"}, "notebook is '../04'"),
    ],
)
def test_runs_that_are_refused(project: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_run(**change)


def test_devices(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [report.resolve_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(ValueError, match="device is 'cuda' and PyTorch finds no CUDA device here"):
        report.resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [report.resolve_device(name).type for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


def test_threads_hold_for_torch_for_loaded_libraries_and_for_later_ones(project: Path) -> None:
    open_run(threads=2)
    assert torch.get_num_threads() == 2 and os.environ["OMP_NUM_THREADS"] == "2"
    open_run(threads=1)
    assert torch.get_num_threads() == 1 and os.environ["OMP_NUM_THREADS"] == "1"
    assert {library["num_threads"] for library in threadpoolctl.threadpool_info()} == {1}


def test_progress_shows_a_bar_for_what_is_at_work(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run()
    idle, first, second = (run.progress(name) for name in ("idle", "first", "second"))
    assert capsys.readouterr().err == "" and callable(idle)
    first(3)
    bar = run._bar
    first(4)
    assert bar is run._bar and bar.n == 7 and bar.desc == "first"
    second(1)
    assert bar.disable and run._bar.desc == "second"  # tqdm disables a bar that is closed
    run.finish()
    assert run._bar.disable
    assert "first" in (shown := capsys.readouterr().err) and "idle" not in shown


# ------------------------------------------------------------------------------------------------------------ tables


def test_tables_keep_every_digit(project: Path) -> None:
    run = open_run()
    assert run.table(TIDY, "agreement") is TIDY
    assert files(run.folder) == ["tables/agreement.csv"]
    text = (run.folder / "tables/agreement.csv").read_bytes().decode()
    assert "\r" not in text and text.splitlines()[0] == "method,ipc,accuracy,loss"
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["accuracy"] for row in rows] == ["0.1", repr(1 / 3), ""]
    assert [np.float32(row["loss"]) for row in rows] == list(TIDY["loss"])


def test_a_data_frame_becomes_a_latex_table(project: Path) -> None:
    run = open_run()
    means = pd.DataFrame({"mean_accuracy": [0.97233, 0.5]}, index=pd.Index(["class_mean", "k & m"], name="the_method"))
    run.table(TIDY, "agreement", latex=means)
    text = (run.folder / "tables/agreement.tex").read_text()
    for part in (
        r"\toprule",
        r"\bottomrule",
        r"mean\_accuracy",
        r"the\_method",
        r"class\_mean & 0.972 \\",
        r"k \& m & 0.5",
    ):
        assert part in text
    assert "<" not in text


def test_an_unnamed_index_stays_out_of_latex(project: Path) -> None:
    assert report.latex_table(TIDY).splitlines()[2] == r"method & ipc & accuracy & loss \\"


def test_recalled_numbers_are_grey_in_latex() -> None:
    table = pd.DataFrame({"published": [0.5, 0.25], "certainty": ["printed", "recalled, unverified"]})
    printed, recalled = report.latex_table(table).splitlines()[4:6]
    assert "color" not in printed and "0.500" in printed
    assert r"\color{gray} 0.250" in recalled


def test_a_named_index_would_be_lost(project: Path) -> None:
    run = open_run()
    with pytest.raises(ValueError, match=r"table 'agreement' has the index \['method'\]: reset_index"):
        run.table(TIDY.set_index("method"), "agreement")
    with pytest.raises(ValueError, match="name is 'a b.csv': it names a file"):
        run.table(TIDY, "a b")
    assert files(project) == []


def test_figures_are_drawn_twice_and_stay_open(project: Path) -> None:
    run, figure = open_run(), drawing()
    assert run.figure(figure, "agreement") is figure
    assert files(run.folder) == ["figures/agreement.pdf", "figures/agreement.png"]
    png, pdf = ((run.folder / f"figures/agreement.{kind}").read_bytes() for kind in ("png", "pdf"))
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf  # fonts that journals accept, and that a reader can select
    assert len(figure.axes) == 1


def test_two_runs_write_the_same_bytes(project: Path) -> None:
    for outputs in ("a", "b"):
        run = open_run(outputs=outputs)
        run.table(TIDY, "agreement", latex=TIDY)
        run.figure(drawing(), "agreement")
    names = files(project / "a")
    assert names == files(project / "b") and len(names) == 4
    for name in names:
        assert (project / "a" / name).read_bytes() == (project / "b" / name).read_bytes(), name


def test_parts_write_beside_the_whole(project: Path) -> None:
    run = open_run("01_distill", part="dm")
    run.table(TIDY, "accuracy")
    run.figure(drawing(), "sets")
    run.finish()
    assert files(run.folder) == [
        "manifests/01_distill.dm.json",
        "parts/dm/figures/sets.pdf",
        "parts/dm/figures/sets.png",
        "parts/dm/tables/accuracy.csv",
    ]


def test_a_failed_write_leaves_the_old_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run()
    run.table(TIDY, "agreement")
    before = (run.folder / "tables/agreement.csv").read_bytes()

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="could not write .*agreement.csv: No space left on device"):
        run.table(TIDY.head(1), "agreement")
    assert files(run.folder) == ["tables/agreement.csv"]
    assert (run.folder / "tables/agreement.csv").read_bytes() == before


# ---------------------------------------------------------------------------------------------------------- manifest


def finished(**changes: Any) -> dict[str, Any]:
    run = open_run(**changes)
    run.table(TIDY, "agreement", latex=TIDY, caption="Raw <rates> & more")
    run.figure(drawing(), "agreement", caption="Agreement")
    return json.loads(run.finish(DATA, {"sets": 3}).read_text())


def test_a_manifest_says_what_was_done(project: Path) -> None:
    found = finished()
    assert found["notebook"] == "04_agreement" and found["profile"] == "quick" and found["part"] == ""
    assert found["parameters"] == PARAMETERS and found["seeds"] == {"set_seeds": [0, 1], "seed": 3}
    assert found["data"] == {
        "name": "cifar10-jpeg",
        "pixel_source": "lossy jpeg copy",
        "fingerprint": "0123456789abcdef",
        "n_train": 50,
        "n_test": 10,
    }
    assert found["tables"] == [
        {
            "name": "agreement",
            "caption": "Raw <rates> & more",
            "rows": 3,
            "files": ["tables/agreement.csv", "tables/agreement.tex"],
        }
    ]
    assert found["figures"][0]["files"] == ["figures/agreement.png", "figures/agreement.pdf"]
    assert found["machine"]["device"] == "cpu" and found["machine"]["threads"] == 1 and found["machine"]["processor"]
    assert found["versions"]["python"] == platform.python_version() and found["versions"]["pandas"] == pd.__version__
    assert 0 <= found["wall_seconds"] < 60 and found["extra"] == {"sets": 3} and found["commit"] == ""


def test_a_table_written_twice_is_listed_once(project: Path) -> None:
    run = open_run()
    run.table(TIDY, "agreement", latex=TIDY)
    run.table(TIDY.head(2), "agreement")
    assert [(t["rows"], t["files"]) for t in json.loads(run.finish().read_text())["tables"]] == [
        (2, ["tables/agreement.csv"])
    ]


def test_the_commit_is_recorded_and_marked_if_files_differ(project: Path) -> None:
    import subprocess

    def git(*words: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", str(project), *name, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    (project / "a").write_text("1")
    git("add", ".")
    git("commit", "-m", "a")
    commit = git("rev-parse", "HEAD")
    assert report._commit(project) == commit
    (project / "a").write_text("2")
    assert report._commit(project) == f"{commit}-dirty"


# -------------------------------------------------------------------------------------------------------------- page


class Page(HTMLParser):
    """The links, pictures and text of a page; fails on tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [found["href"] or ""] if "href" in found else []
        self.sources += [found["src"] or ""] if "src" in found else []
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_table_and_figure_with_its_provenance(project: Path) -> None:
    for notebook in ("04_agreement", "05_early_recognition"):
        run = open_run(notebook)
        run.table(TIDY, f"{notebook}_table", latex=TIDY)
        run.figure(drawing(), f"{notebook}_figure")
        run.finish(DATA)
    part = open_run("01_distill", part="dm")
    part.table(TIDY, "accuracy")
    part.finish(DATA)
    folder = project / "outputs/quick"
    (folder / "executed").mkdir()
    for name in ("04_agreement", "01_distill.dm", "06_hessian"):
        (folder / f"executed/{name}.ipynb").write_text("{}")

    page = Page(build_index(folder))
    shown = {link for link in page.links + page.sources if not link.startswith("#")}
    written = set(files(folder)) - {"index.html"}
    assert {name for name in written if name.split("/")[0] != "manifests"} == shown  # every file, and no dead link
    assert page.sources == ["figures/04_agreement_figure.png", "figures/05_early_recognition_figure.png"]
    assert (
        {link[1:] for link in page.links if link.startswith("#")}
        == set(page.ids)
        == {
            "04_agreement",
            "05_early_recognition",
        }
    )
    provenance = (
        "04_agreement.ipynb · cifar10-jpeg (lossy jpeg copy; 50 train, 10 test) · ConvNet 16 · dc-300 · "
        "set_seeds [0, 1], seed 3 · cpu, 1 thread · "
    )
    assert page.text.count(provenance) == 3  # section, figure, table
    assert page.text.index("Not finished") < page.text.index("06_hessian.ipynb")
    assert "0.3333" in page.text and "http" not in (folder / "index.html").read_text()


def test_the_merged_manifest_holds_every_run(project: Path) -> None:
    for notebook, part in (("04_agreement", ""), ("01_distill", "dm"), ("01_distill", "")):
        open_run(notebook, part=part).finish()
    folder = project / "outputs/quick"
    build_index(folder)
    merged = json.loads((folder / "manifest.json").read_text())
    assert merged["profile"] == "quick" and merged["runs"] == read_manifests(folder)
    assert [(run["notebook"], run["part"]) for run in merged["runs"]] == [
        ("01_distill", ""),
        ("01_distill", "dm"),
        ("04_agreement", ""),
    ]


def test_the_page_escapes_what_it_is_given(project: Path) -> None:
    found = finished(parameters=PARAMETERS | {"dataset": "<script>alert(1)</script>"})
    folder = project / "outputs/quick"
    text = build_index(folder).read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert "a &amp; b &lt;i&gt;" in text and "Raw &lt;rates&gt; &amp; more" in text
    assert found["tables"][0]["caption"] in Page(folder / "index.html").text


def test_long_tables_are_folded_and_cut(project: Path) -> None:
    run = open_run()
    run.table(pd.DataFrame({"row": range(1000, 1100)}), "long")
    run.finish()
    path = build_index(run.folder)
    assert "first 30 of 100 rows" in path.read_text() and "<details open>" not in path.read_text()
    page = Page(path)
    assert "1029" in page.text and "1030" not in page.text


def test_a_file_that_was_deleted_is_named(project: Path) -> None:
    finished()
    folder = project / "outputs/quick"
    (folder / "figures/agreement.png").unlink()
    (folder / "tables/agreement.csv").unlink()
    page = Page(build_index(folder))
    assert page.sources == []
    assert "figures/agreement.png is missing" in page.text and "tables/agreement.csv is missing" in page.text


def test_an_empty_table_is_shown(project: Path) -> None:
    run = open_run()
    run.table(TIDY.head(0), "empty")
    run.finish()
    assert "0 rows" in Page(build_index(run.folder)).text


def test_folders_without_manifests_are_refused(project: Path) -> None:
    with pytest.raises(ValueError, match="nowhere holds no manifests: run a notebook"):
        build_index(project / "nowhere")
    run = open_run()
    run.finish().write_text("{")
    with pytest.raises(ValueError, match=r"04_agreement\.json is damaged"):
        build_index(run.folder)
    assert files(run.folder) == ["manifests/04_agreement.json"]


def test_the_command(project: Path) -> None:
    run = open_run()
    run.finish()
    main([str(run.folder)])
    assert (run.folder / "index.html").is_file() and (run.folder / "manifest.json").is_file()
