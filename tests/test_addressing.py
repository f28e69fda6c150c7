"""Images of shared bases against plain PyTorch: the budget, the images, the gradient through training on them."""

import math
from dataclasses import replace

import pytest
import resuming
import torch
import torch.nn.functional as F
from test_bptt import LARGE, train
from test_distill import job
from torch.func import functional_call

from ddanalysis import augment, layouts
from ddanalysis.architectures import build
from ddanalysis.data import ImageData
from ddanalysis.distill import Job, addressing, bptt, outer
from ddanalysis.distilled import DistilledSet
from ddanalysis.seeding import generator

SMALL = dict(steps=2, batch_real=4, bases=4)


def cifar_job(ipc):
    x, y = torch.zeros(10, 3, 32, 32), torch.arange(10)
    data = ImageData("cifar10", x, y, x, y, tuple("abcdefghij"), (0.0,) * 3, (1.0,) * 3, "made up")
    return Job(data, build("ConvNet", data.shape, 10, width=4), ipc)


def expanded(coefficients, bases, downsample):
    """In other words than the module's."""
    n, (b, *small) = len(coefficients), bases.shape
    x = torch.matmul(coefficients, bases.reshape(b, -1)).reshape(n, *small)
    return torch.nn.Upsample(scale_factor=downsample, mode="bilinear")(x) if downsample > 1 else x


@pytest.mark.parametrize(("ipc", "bases", "downsample"), [(1, 16, 2), (10, 16, 2), (1, 5, 1), (3, 7, 4)])
def test_the_budget_is_that_of_plain_images(ipc, bases, downsample):
    n = addressing.images_per_class(cifar_job(ipc), bases, downsample)
    own = bases * 3072 / downsample**2
    assert own + n * 10 * bases <= ipc * 10 * 3072 < own + (n + 1) * 10 * bases
    if (ipc, bases, downsample) == (1, 16, 2):
        assert n == 115


@pytest.mark.parametrize("downsample", [1, 2, 4])
def test_images_are_combinations_made_larger(downsample):
    wide = job(20)  # 60 images of 8 x 8
    learned = addressing.start(wide, 5, downsample)
    assert learned["bases"].shape == (5, 1, 8 // downsample, 8 // downsample)
    assert learned["coefficients"].shape == (60, 5)
    x, rows = addressing.images(learned, (1, 8, 8)), torch.tensor([3, 59])
    assert torch.allclose(x, expanded(learned["coefficients"], learned["bases"], downsample), atol=1e-7)
    assert torch.allclose(addressing.images(learned, (1, 8, 8), rows), x[rows], atol=1e-7)
    state = {"imgs.weight": learned["coefficients"], "basis.weight": learned["bases"].flatten(1)}
    provenance = {"mean": (0.0,), "std": (1.0,), "n_classes": 3, "method": "bptt", "dataset": "toy"}
    read = layouts.from_compressor("x.pt", {"compressor": state}, provenance, downsample)  # the published layout
    assert torch.allclose(read.x, x, atol=1e-6) and torch.equal(read.y, wide.labels())


def test_pixels_are_images_already():
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert addressing.images({"x": x}, (1, 8, 8)) is x
    assert torch.equal(addressing.images({"x": x}, (1, 8, 8), torch.tensor([2])), x[2:3])


def test_both_matrices_start_uniform_in_their_xavier_bounds():
    learned = addressing.start(job(200), 6, 2)
    for rows, columns, own in ((6, 16, learned["bases"]), (600, 6, learned["coefficients"])):
        bound = math.sqrt(6 / (rows + columns))
        assert 0.9 * bound < float(own.abs().max()) <= bound
    assert not torch.equal(learned["bases"], addressing.start(job(200, seed=1), 6, 2)["bases"])


@pytest.mark.parametrize(("minibatch", "strategy", "decay"), [(None, "", 0.0), (1, "flip_rotate", 0.3)])
def test_iterations_are_those_of_a_graph_kept_whole(minibatch, strategy, decay):
    the_job = job(dtype=torch.float64)
    made = bptt.bptt(
        the_job, iterations=2, steps=3, inner_rate=0.05, rate=0.3, clip=LARGE, batch_real=4, minibatch=minibatch,
        strategy=strategy, bases=4, coefficient_decay=decay,
    )  # fmt: skip
    wide = replace(the_job, ipc=addressing.images_per_class(the_job, 4, 2))
    assert wide.ipc == 26  # (2 * 3 * 64 - 4 * 16) / (3 * 4)
    learned = addressing.start(wide, 4, 2)
    start, velocity = expanded(learned["coefficients"], learned["bases"], 2), {"bases": 0, "coefficients": 0}
    for iteration in range(2):
        leaves = {name: t.clone().requires_grad_() for name, t in learned.items()}

        def augmented(images, _, iteration=iteration):
            return augment.augment(images, strategy, generator(0, "BPTT augmentation", iteration))

        x = expanded(leaves["coefficients"], leaves["bases"], 2)
        inner = {"kind": "sgd", "momentum": 0.9, "rate": 0.05}
        module, w = train(wide, {"x": x}, iteration, 3, 3, inner, minibatch, augmented)
        rows = outer.real_rows(the_job, 4, iteration)
        real = augmented(the_job.data.train_x[rows], None)
        loss = F.cross_entropy(functional_call(module, w, real), the_job.data.train_y[rows])
        assert float(made.history["loss"][iteration]) == pytest.approx(float(loss.detach()), rel=1e-6)
        (loss + decay / 2 * leaves["coefficients"].square().sum()).backward()
        for name, leaf in leaves.items():
            velocity[name] = 0.5 * velocity[name] + leaf.grad
            learned[name] = learned[name] - 0.3 * velocity[name]
    x = expanded(learned["coefficients"], learned["bases"], 2)
    assert float((x - start).norm()) > 1e-5
    assert float((made.x - x).norm()) < 1e-7 * float((x - start).norm())


def test_the_set_has_the_images_that_its_budget_buys():
    made = bptt.bptt(job(1), iterations=2, **SMALL)
    assert made.x.shape == (3 * 10, 1, 8, 8)
    assert made.y.tolist() == torch.arange(3).repeat_interleave(10).tolist()
    one = DistilledSet(made.x, made.y, 3, (0.0,), (1.0,), "bptt", "toy", ipc=1)
    assert len(one) == 30 and one.ipc == 1
    soft = bptt.bptt(job(1), iterations=2, **SMALL, minibatch=2, rate=0.5, learn_labels=True)
    assert soft.y.shape == (30, 3) and torch.equal(soft.y.argmax(1), made.y)
    assert float(soft.y.min()) >= 0 and not torch.equal(soft.y, F.one_hot(made.y, 3).float())


def test_the_loss_falls():
    made = bptt.bptt(
        job(1, depth=2), iterations=20, steps=8, inner_rate=0.1, rate=2.0, batch_real=12, bases=4, minibatch=4
    )
    assert made.history["loss"][-5:].mean() < 0.9 * made.history["loss"][:3].mean()


def test_resumes_exactly(tmp_path):
    settings = SMALL | dict(minibatch=2, rate=0.5, learn_labels=True)
    whole = bptt.bptt(job(1), iterations=4, **settings)
    resumed = resuming.resumed(job(1), tmp_path, lambda own: bptt.bptt(own, iterations=4, **settings), after=3, left=2)
    assert torch.equal(whole.x, resumed.x) and torch.equal(whole.y, resumed.y)


BAD = [
    (dict(bases=0), "bases is 0"),
    (dict(bases=4, downsample=0), "downsample is 0"),
    (dict(bases=4, downsample=3), "downsample is 3: it must divide the size of images, 8"),
    (dict(bases=30), "bases is 30: at 1 images a class of toy there is room for 10"),
    (dict(bases=4, initialisation="real"), "unknown initialisation of the bases 'real': allowed are xavier"),
    (dict(bases=4, coefficient_decay=-1.0), "coefficient_decay of BPTT is -1"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        bptt.bptt(job(1), batch_real=4, **settings)


def test_as_many_bases_as_there_is_room_for_leave_an_image_a_class():
    assert addressing.images_per_class(job(1), 10, 2) == 1
