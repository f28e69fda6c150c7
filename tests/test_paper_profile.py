"""The first steps of every method of the paper profile, by its own recipes, with small networks and made-up images."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.published_steps import job_of, made_up
from ddanalysis.distill import METHODS
from ddanalysis.parameters import profile_methods

PARAMS = Path(__file__).parents[1] / "params"
METHODS_OF_IT = yaml.safe_load((PARAMS / "paper" / "01_distill.yaml").read_text(encoding="utf-8"))["methods"]
FIRST_STEPS: dict[str, dict[str, Any]] = {
    "dc": {"iterations": 1, "outer": 2},
    "dsa": {"iterations": 1, "outer": 2},
    "dm": {"iterations": 2},
    "mtt": {"iterations": 1, "experts": 1, "latest_start": 1},
    "bptt": {"iterations": 1},
    "rat": {"iterations": 1},
}
FEW_MODELS = {"models": 1, "model_epochs": 1}


@pytest.mark.parametrize("method", METHODS_OF_IT)
def test_first_steps(method: str) -> None:
    recipe = {name: value for name, value in profile_methods(PARAMS, "paper").get(method, {}).items() if name != "ipc"}
    fewer = FIRST_STEPS.get(method.removeprefix("clom_"), {}) | (FEW_MODELS if method.startswith("clom_") else {})
    job = job_of(made_up(256), width=4, ipc=10)
    made = METHODS[method].make(job, **recipe | fewer)
    assert made.x.shape == (100, 3, 32, 32) and torch.isfinite(made.x).all()
    assert torch.equal(made.y, job.labels())
