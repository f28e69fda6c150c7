"""Every method on real digits: its loss falls, and networks learn more from its set than from what it started as."""

import pytest
import torch

from ddanalysis import data, evaluation
from ddanalysis.architectures import build
from ddanalysis.distill import METHODS, Job
from ddanalysis.distilled import DistilledSet

MATCHING = {"iterations": 40, "batch_real": 32, "initialisation": "real"}
SETTINGS = {
    "dc": MATCHING,
    "dsa": MATCHING,
    "dm": MATCHING | {"rate": 2.0},
    "mtt": {
        "iterations": 40, "experts": 2, "expert_rate": 0.1, "expert_batch": 64, "expert_epochs": 1, "latest_start": 2,
        "steps": 10, "step_size": 0.1, "strategy": "", "rate": 30.0, "rate_of_step_size": 1e-5,
    },
    "bptt": {"iterations": 25, "initialisation": "real", "steps": 15, "inner_rate": 0.1, "rate": 10.0},
    "rat": {
        "iterations": 30, "initialisation": "real", "window": 10, "horizon": 40, "inner_rate": 0.01, "rate": 0.1,
        "batch_real": 256,
    },
    "clom_dc": MATCHING | {"alpha": 3.0, "models": 2, "model_epochs": 5},
}  # fmt: skip


@pytest.mark.parametrize("method", SETTINGS)
def test_a_set_beats_its_own_start(method):
    images = data.load("digits")
    network = build("ConvNet", images.shape, images.n_classes, width=8, depth=2)
    kept = {}
    job = Job(images, network, 1, keep=lambda n, tensors: kept.setdefault(n, tensors()["x"].clone()))
    made = METHODS[method].make(job, **SETTINGS[method])
    loss = made.history["loss"]
    assert loss[-8:].mean() < loss[:8].mean()
    assert torch.equal(kept[0], job.real_images())
    sets = [
        DistilledSet(x, made.y, 10, images.mean, images.std, name, "digits", 1)
        for name, x in (("start", kept[0]), (method, made.x))
    ]
    found = evaluation.predict(sets, images, network, "full-batch-300", range(5))
    start, end = (found == images.test_y).double().mean(1).view(2, 5).mean(1).tolist()
    assert end > start + 0.08  # 29 of 360 test images
