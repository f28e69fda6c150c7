"""Every notebook in the smoke profile: as a graph that is killed and resumes, by papermill and by hand, equal bytes."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "params" / "smoke"
COLUMNS = {
    "accuracy": ["dataset", "method", "ipc", "network", "protocol", "set_seed", "network_seed", "accuracy"],
    "agreement": [
        "dataset", "method", "ipc", "network", "set_seed", "network_seed", "pool", "run", "update", "matching",
        "pool_accuracy", "set_accuracy", "agreement", "error_agreement", "kappa",
    ],
    "early_recognition": [
        "dataset", "method", "ipc", "network", "set_seed", "network_seed", "update", "target", "accuracy", "loss",
    ],
    "recognition_pretrained": [
        "dataset", "method", "ipc", "network", "set_seed", "network_seed", "accuracy", "images",
    ],
    "embedding": ["dataset", "network", "what", "ipc", "set_seed", "class", "x", "y"],
    "separability": [
        "dataset", "method", "ipc", "network", "set_seed", "network_seed", "measure", "classifier", "accuracy",
        "chance",
    ],
    "pixel_densities": ["dataset", "method", "ipc", "set_seed", "channel", "low", "high", "density"],
    "mixing": [
        "dataset", "method", "ipc", "network", "mode", "real_per_class", "set_seed", "network_seed", "accuracy",
    ],
    "hessian": [
        "dataset", "target", "ipc", "network", "network_seed", "update", "trace", "trace_se", "set_seed", "probes",
        "images",
    ],
    "eigenvalues": [
        "dataset", "target", "ipc", "network", "network_seed", "update", "rank", "eigenvalue", "residual", "set_seed",
        "which", "images", "products",
    ],
    "spectral_density": [
        "dataset", "target", "ipc", "network", "network_seed", "update", "vector", "node", "weight", "set_seed",
        "images",
    ],
    "eigenspace_overlap": [
        "dataset", "target", "ipc", "network", "network_seed", "update", "overlap", "chance", "set_seed", "vectors",
    ],
    "top_influences": [
        "dataset", "method", "ipc", "network", "set_seed", "image", "image_class", "direction", "rank", "test_image",
        "test_class", "influence", "influence_se",
    ],
    "influence_estimates": [
        "dataset", "method", "ipc", "estimator", "image", "spearman", "pearson", "n", "network", "set_seed",
        "network_seed",
    ],
    "semantics": [
        "dataset", "method", "ipc", "image", "attribute", "enrichment", "p_value", "set_seed", "network", "image_class",
        "null", "k", "p_adjusted", "effect",
    ],
    "benchmark": ["dataset", "method", "ipc", "network", "protocol", "set_seed", "network_seed", "accuracy"],
}  # fmt: skip


def graph(outputs: Path) -> subprocess.Popen:
    """The whole profile, in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "-s", "notebooks/Snakefile"]
    command += ["--workflow-profile", "params/snakemake/local", "--config", "profile=smoke", f"outputs={outputs}"]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a graph that was killed after its first job, and started again."""
    outputs = tmp_path_factory.mktemp("graph") / "smoke"
    first = graph(outputs)
    deadline = time.monotonic() + 200
    while not list(outputs.glob("manifests/*.json")) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.2)
    done = {
        path: path.stat().st_mtime_ns
        for kind in ("distilled", "trained")
        for path in outputs.glob(f"{kind}/*.safetensors")
    }
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert done and not (outputs / "index.html").exists()
    second = graph(outputs)
    log = second.communicate(timeout=400)[0].decode()
    assert second.returncode == 0, log[-3000:]
    assert {path: path.stat().st_mtime_ns for path in done} == done  # what was done was not done again
    return outputs


def test_the_graph_leaves_every_table_figure_and_page(finished: Path) -> None:
    for name, columns in COLUMNS.items():
        assert list(pd.read_csv(finished / "tables" / f"{name}.csv").columns) == columns
    figures = ("distilled_sets", "starts", "distillation_loss", "accuracy", "accuracy_along", "agreement")
    figures += ("agreement_kappa", "early_recognition", "benchmark", "benchmark_gains", "recognition_pretrained")
    figures += ("embedding", "pixel_densities", "mixing_fixed_updates", "mixing_fixed_epochs", "mixing_replacement")
    figures += ("hessian_trace", "hessian_trace_smoothed", "eigenvalues", "spectral_density", "eigenspace_overlap")
    figures += ("influence_noise", "influence_estimates", "semantics", "alikeness", "hypotheses")
    figures += ("before_after", "one_step", "analogy", "study_passes", "accuracy_by_base", "offsets_steps")
    figures += ("epochs_walked", "replays_replays", "networks_transfer", "soft_labels_fixed")
    figures += ("learning_within", "target_size_targets", "set_seed_seeds", "variant_seeds", "test_network_transfer")
    for figure in figures:
        assert (finished / "figures" / f"{figure}.png").stat().st_size > 5000
        assert (finished / "figures" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    page = (finished / "index.html").read_text()
    manifest = json.loads((finished / "manifest.json").read_text())
    assert "agreement.png" in page and "early_recognition.png" in page and "ConvNet-W4" in page
    assert "44ebdc2fd2103703" in json.dumps(manifest)  # the fingerprint of the digits


def test_the_graph_has_nothing_left_to_do(finished: Path) -> None:
    again = graph(finished)
    log = again.communicate(timeout=120)[0].decode()
    assert again.returncode == 0 and "Nothing to be done" in log, log[-2000:]


def test_nothing_half_written_is_left(finished: Path) -> None:
    assert not [path for path in finished.rglob("*") if path.suffix in (".part", ".checkpoint")]


@pytest.mark.parametrize(
    ("notebook", "table"),
    [
        ("03_mixing", "mixing"),
        ("04_agreement", "agreement"),
        ("05_early_recognition", "early_recognition"),
        ("06_hessian", "hessian"),
        ("07_influence", "top_influences"),
        ("11_benchmark", "benchmark"),
    ],
)
def test_papermill_alone_gives_the_same_bytes(notebook: str, table: str, finished: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "alone"
    command = [
        sys.executable,
        "-m",
        "papermill",
        f"notebooks/{notebook}.ipynb",
        str(tmp_path / "out.ipynb"),
        "-k",
        "python3",
    ]
    command += ["-f", str(SMOKE / f"{notebook}.yaml"), "-r", "outputs", str(outputs), "--no-progress-bar"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert (outputs / f"tables/{table}.csv").read_bytes() == (finished / f"tables/{table}.csv").read_bytes()
    for path in (outputs / "distilled").iterdir():
        assert path.read_bytes() == (finished / "distilled" / path.name).read_bytes()
    for path in (outputs / "pools").glob("*") if (outputs / "pools").is_dir() else ():
        assert path.read_bytes() == (finished / "pools" / path.name).read_bytes()


def test_run_all_in_jupyter_twice_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    """As a person does it: edit the parameters cell, run all cells, and run all of them again in the same kernel."""
    notebook = nbformat.read(ROOT / "notebooks/04_agreement.ipynb", as_version=4)
    values = yaml.safe_load((SMOKE / "04_agreement.yaml").read_text()) | {"outputs": str(tmp_path / "lab")}
    cell = ast.parse(notebook.cells[1].source)
    for line in cell.body:
        if line.target.id in values:
            line.value = ast.Constant(values[line.target.id])
    notebook.cells[1].source = ast.unparse(cell)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT / "notebooks"}}
    )
    with client.setup_kernel():
        for _ in range(2):
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
    assert (tmp_path / "lab/tables/agreement.csv").read_bytes() == (finished / "tables/agreement.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sed_seeds", "[0]", "sed_seeds"),
        ("learning_rate", "1e-3x", "learning_rate"),
        ("subset_pool", "0", "subset_pool is 0"),
    ],
)
def test_a_bad_parameter_ends_a_notebook_before_any_work(name: str, value: str, message: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "papermill",
        "notebooks/04_agreement.ipynb",
        str(tmp_path / "out.ipynb"),
        "-k",
        "python3",
    ]
    command += ["-y", f"{name}: {value}", "-r", "outputs", str(tmp_path / "bad"), "--no-progress-bar"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode != 0 and "ParameterError" in found.stderr and message in found.stderr
    assert not (tmp_path / "bad").exists()
    check = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    failed = next(cell for cell in check if cell.get("metadata", {}).get("papermill", {}).get("exception"))
    assert failed["metadata"]["papermill"]["duration"] < 1
