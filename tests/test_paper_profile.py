"""The first steps of every method of the paper profile, by its own recipes, with small networks and made-up images."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.published_steps import job_of, made_up
from ddanalysis import data
from ddanalysis.analysis.label_studies import LEARNED, Case, cases
from ddanalysis.analysis.soft_label_studies import Variant, variants
from ddanalysis.architectures import build
from ddanalysis.distill import METHODS, Job
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


def studies_of(notebook: str) -> dict[str, Any]:
    return yaml.safe_load((PARAMS / "paper" / f"{notebook}.yaml").read_text(encoding="utf-8"))["studies"]


VARIANTS = variants(studies_of("09_soft_labels"), 10, profile_methods(PARAMS, "paper"))
CASES = [case for name, own in studies_of("10_label_distillation").items() for case in cases(name, own, 10)]
LEARNING = [
    case for case in CASES if case.algorithm in LEARNED and case.base_examples == 10 and case.test_networks == ()
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.word)
def test_first_steps_of_learned_images(variant: Variant) -> None:
    few = {"iterations": 1, "batch_real": 20, "at_once": 1} | (
        {"pretrained": 4, "pretrained_epochs": 1} if "attack" in variant.settings else {}
    )
    cifar = made_up(100)
    job = Job(cifar, build("LeNet", cifar.shape, 10), variant.ipc)
    made = METHODS[variant.method].make(job, **variant.settings | few)
    images = variant.ipc * len(variant.settings.get("label_classes", range(10)))
    assert made.x.shape == (images, 3, 32, 32) and torch.isfinite(made.x).all() and torch.isfinite(made.y).all()
    learns = variant.settings.get("learn_images", True) and variant.settings.get("label_start") != "zeros"
    if learns and images == 10 * variant.ipc:  # labels of zeros teach images from the second iteration on
        assert not torch.equal(made.x, job.start("noise"))


@pytest.mark.parametrize("case", LEARNING, ids=lambda one: f"{one.study} {one.algorithm} {one.base_examples}")
def test_first_steps_of_learned_labels(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = made_up(200)
    monkeypatch.setattr(data, "load", lambda name, **_: {"cub200": cifar}[name])
    few = {"iterations": 2, "batch_real": 20, "validate_every": 2, "validation": 20, "window": 1}
    job = Job(cifar, build("LeNet", cifar.shape, 10), case.base_examples // 10)
    made = METHODS[case.method].make(job, **case.settings | few)
    assert made.x.shape == (case.base_examples, 3, 32, 32) and torch.isfinite(made.x).all()
    assert len(made.y) == case.base_examples and (
        "images" in case.algorithm or torch.allclose(made.y.sum(1), torch.ones(10))
    )
