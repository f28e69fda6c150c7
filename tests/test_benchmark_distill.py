"""The two ways that ``benchmarks/distill.py`` compares compute the same thing, and memory is counted to the byte."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the installed package

from benchmarks import distill, published_steps  # noqa: E402

WAYS = [(method, way) for method, ways in distill.WAYS.items() for way in ways]


def tiny(ipc, dtype=torch.float64):
    return published_steps.job_of(published_steps.made_up(12, 8, dtype=dtype), 4, ipc)


def gradient(job, method, made):
    """From a first update of learning rate 1: the step of SGD is the gradient, that of Adam can be solved for it."""
    step = job.real_images() - made.x
    return 1e-8 * step / (1 - step.abs()) if method == "rat" else step


@pytest.mark.parametrize("ipc", [1, 2])
@pytest.mark.parametrize(("method", "way"), WAYS)
def test_both_ways_have_the_same_gradient(method, way, ipc):
    job = tiny(ipc, torch.float32 if method == "dm" else torch.float64)  # DM draws float32 networks
    before = 2 if method == "rat" else 0
    made = distill.our_step(job, method, 3, before, batch_real=6)
    net = published_steps.plain_network(job, method)
    expected, *others = published_steps.published_step(job, net, method, way, 3, before, batch_real=6)
    found = gradient(job, method, made)
    tolerance = 3e-4 if method == "dm" else 1e-7  # of images of size 1 in float32 a gradient of 1e-4 is subtracted
    assert float((found - expected).norm()) < tolerance * float(expected.norm())
    if method in ("mtt", "tesla"):
        moved = (published_steps.step_size(job) - float(made.learning_rates)) / distill.RATE_OF_STEP_SIZE
        assert moved == pytest.approx(float(others[0]), rel=1e-6)


@pytest.mark.parametrize("method", ["dc", "rat"])
def test_training_is_the_same(method):
    job = tiny(2)
    net = published_steps.plain_network(job, method)
    if method == "dc":
        published_steps.published_training(job, net, method, 3)
        ours = distill.our_training(job, method, 3).state
    else:
        net, _ = published_steps.published_advance(job, net, 3)
        ours = distill.our_advance(job, 3)
    for name, own in net.state_dict().items():
        if not name.startswith("conv") or name.endswith("weight"):  # the bias before a normalisation has no slope
            assert torch.allclose(ours[name][0], own, rtol=1e-9, atol=1e-11), name


def test_a_loss_of_real_images_is_the_same():
    job = tiny(1)
    real = (job.data.train_x[:7], job.data.train_y[:7])
    expected = published_steps.real_gradient(published_steps.plain_network(job, "bptt"), *real)
    weights = distill.unroll.flat(published_steps.first_network(job, "bptt"))
    _, found = distill.unroll.loss_and_gradient(job.architecture, weights, *real)
    assert torch.allclose(found[0], torch.cat([t.flatten() for t in expected]), atol=1e-12)


def test_peak_memory_is_that_of_living_tensors():
    kept = torch.zeros(1000)

    def task():
        a = kept + 1  # 4,000 bytes
        b = a.repeat(2)  # and 8,000
        del a
        return b.sum()

    assert 12_000 <= distill.peak_memory(task) <= 12_100


def test_parts_of_an_iteration():
    assert distill.parts("dc", 1) == {"dc/1/update": 1}
    assert distill.parts("dsa", 10) == {"dsa/10/update": 1, "dsa/10/training": 45}  # 50 epochs 9 times in 10 updates
    assert distill.parts("mtt", 50) == {"mtt/50/1 steps": 30}
    assert distill.parts("bptt", 1) == {"bptt/1/10 steps": 150, "real": 1}
    assert distill.parts("rat", 10) == {"rat/10/1 steps": 60, "rat/10/advance": 70, "real": 5000 / 640}
