"""DM against a plain restatement and finite differences; baselines against their definitions."""

import pytest
import resuming
import torch

from ddanalysis import augment, networks, parameters
from ddanalysis.architectures import build
from ddanalysis.data import ImageData
from ddanalysis.distill import METHODS, Job, dm, making
from ddanalysis.distill.baselines import herd
from ddanalysis.seeding import generator, stream_seed


def toy_data(per_class=12, classes=3, dtype=torch.float32, size=8):
    """Noise about a class pattern, in normalised space."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat(per_class)
    x = torch.randn(classes, 1, size, size, generator=g)[y] + 0.5 * torch.randn(len(y), 1, size, size, generator=g)
    x = x.to(dtype)
    return ImageData("toy", x, y, x[:9], y[:9], tuple("abc"[:classes]), (0.0,), (1.0,), "made up")


def job(ipc=2, seed=0, dtype=torch.float32, **options):
    data = toy_data(dtype=dtype)
    return Job(data, build("ConvNet", data.shape, 3, width=4, **options), ipc, seed)


def test_the_vocabulary_names_the_methods():
    assert tuple(METHODS) == tuple(parameters.METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_ipc_images_a_class_and_the_seed_decides(method):
    few = {"iterations": 2, "batch_real": 5}
    mtt = {
        "experts": 1,
        "latest_start": 1,
        "expert_epochs": 1,
        "steps": 2,
        "step_size": 0.1,
        "rate": 1.0,
        "strategy": "",
    }
    online = few | {"validation": 6, "inner_batch": 4, "window": 1}
    own = {
        "dc": few,
        "dsa": few,
        "dm": few,
        "mtt": mtt | {"iterations": 2, "rate_of_step_size": 1e-9},
        "bptt": few | {"steps": 2},
        "rat": few | {"window": 2, "horizon": 3},
        "dd": few | {"steps": 2, "passes": 1},
        "sldd": few | {"steps": 2, "passes": 1},
        **dict.fromkeys(("ld", "ld_ridge", "ld_images", "ld_images_ridge"), online),
        "herding": {"epochs": 1},
    }
    settings = own.get(method.removeprefix("clom_"), {})
    if method.startswith("clom_"):
        settings = settings | {"alpha": 1.0, "models": 1, "model_epochs": 1}
    made = METHODS[method].make(job(), **settings)
    assert made.x.shape == (6, 1, 8, 8)
    soft = method in ("sldd", "ld", "ld_ridge")
    assert made.y.shape == (6, 3) if soft else made.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(made.x, METHODS[method].make(job(), **settings).x)
    if method != "herding":  # whose choice may be the same with another network
        assert not torch.equal(made.x, METHODS[method].make(job(seed=1), **settings).x)


def test_random_images_are_real_ones_and_nested():
    small, large = METHODS["random"].make(job(2)), METHODS["random"].make(job(5))
    assert torch.equal(small.x.view(3, 2, -1), large.x.view(3, 5, -1)[:, :2])
    data = toy_data()
    for image, label in zip(large.x, large.y, strict=True):
        match = (data.train_x == image).flatten(1).all(1)
        assert match.any() and (data.train_y[match] == label).all()


def test_class_mean_is_the_mean_and_shares_partition_the_class():
    data = toy_data()
    assert torch.equal(METHODS["class_mean"].make(job(1)).x, METHODS["class_mean"].make(job(1, seed=1)).x)
    means = torch.stack([data.train_x[data.train_y == c].mean(0) for c in range(3)])
    assert torch.allclose(METHODS["class_mean"].make(job(1)).x, means, atol=1e-6)
    halves = METHODS["class_mean"].make(job(2)).x.view(3, 2, 1, 8, 8)  # of 12 images: two shares of 6
    assert torch.allclose(halves.mean(1), means, atol=1e-6)


def test_k_means_of_one_is_the_class_mean_and_of_more_is_nearer():
    one, four = METHODS["k_means"].make(job(1)).x, METHODS["k_means"].make(job(4)).x
    data = toy_data()
    assert torch.allclose(one, METHODS["class_mean"].make(job(1)).x, atol=1e-5)

    def spread(centres, n):
        own = [
            torch.cdist(data.train_x[data.train_y == c].flatten(1), centres.view(3, n, -1)[c]).amin(1) for c in range(3)
        ]
        return torch.cat(own).square().mean()

    assert spread(four, 4) < spread(one, 1)


def test_herding_is_greedy():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(3))
    picked = herd(features, 4).tolist()
    for count in range(4):  # brute force over every next choice
        errors = {
            j: float((features[[*picked[:count], j]].mean(0) - features.mean(0)).norm())
            for j in range(9)
            if j not in picked[:count]
        }
        assert min(errors, key=errors.get) == picked[count]
    assert len(set(herd(features, 9).tolist())) == 9


def plain_loss(the_job, x, real, strategy, iteration):
    """The DM loss of one iteration, class by class, as the paper writes it."""
    data, seed = the_job.data, the_job.seed
    net = networks.create(the_job.architecture, [stream_seed(seed, "DM network", iteration)], dtype=x.dtype)
    loss = 0
    for c in range(data.n_classes):
        draw = augment.draw(strategy, data.shape, generator(seed, "DM augmentation", iteration, c))
        psi = [
            net.features(augment.apply(draw, images))[0].mean(0)
            for images in (data.train_x[real[c]], x[c * 2 : c * 2 + 2])
        ]
        loss = loss + ((psi[0] - psi[1]) ** 2).sum()
    return loss


@pytest.mark.parametrize("limit", [10_000, 2], ids=["all classes at once", "class by class"])
@pytest.mark.parametrize("strategy", ["", "color_crop_cutout_scale_rotate"])
def test_dm_gradient_is_that_of_the_loss(strategy, limit, monkeypatch):
    monkeypatch.setattr(dm, "images_per_pass", lambda *_: limit)
    the_job = job(dtype=torch.float64, activation="gelu")
    x = the_job.start("real")
    real = torch.stack([(the_job.data.train_y == c).nonzero()[:5, 0] for c in range(3)])
    for iteration in range(3):
        loss, gradient = dm._gradient(the_job, x, real, strategy, iteration)
        leaf = x.clone().requires_grad_()
        expected = plain_loss(the_job, leaf, real, strategy, iteration)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-10)
        assert torch.allclose(torch.autograd.grad(expected, leaf)[0], gradient, rtol=1e-8, atol=1e-12)
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(iteration), dtype=torch.float64)
        up, down = (float(plain_loss(the_job, x + s * 1e-6 * direction, real, strategy, iteration)) for s in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_dm_updates_are_pytorch_sgd_with_momentum():
    the_job = job()
    made = METHODS["dm"].make(the_job, iterations=4, batch_real=5, rate=0.7, momentum=0.5, strategy="")
    x = the_job.start("real").requires_grad_()
    opt = torch.optim.SGD([x], lr=0.7, momentum=0.5)
    for iteration in range(4):
        real = torch.stack(
            [making.real_batch((the_job.data.train_y == c).nonzero()[:, 0], 5, 0, iteration, c) for c in range(3)]
        )
        opt.zero_grad()
        loss = plain_loss(the_job, x, real, "", iteration)
        loss.backward()
        opt.step()
        assert float(made.history["loss"][iteration]) == pytest.approx(float(loss.detach()), rel=1e-4)
    assert torch.allclose(made.x, x, atol=1e-5)


def test_dm_lowers_its_loss_and_starts_where_told():
    made = METHODS["dm"].make(job(pooling="none"), iterations=60, batch_real=12, strategy="", initialisation="noise")
    assert made.history["loss"][-10:].mean() < 0.5 * made.history["loss"][:10].mean()
    first = METHODS["dm"].make(job(), iterations=1, batch_real=12, rate=0.0, initialisation="noise").x
    assert float(first.mean()) == pytest.approx(0, abs=0.15) and float(first.std()) == pytest.approx(1, abs=0.15)


def test_dm_published_constants():
    settings = METHODS["dm"].settings({})
    assert settings == {
        "iterations": 20_000, "rate": None, "momentum": 0.5, "batch_real": 256, "strategy": None,
        "initialisation": "real",
    }  # fmt: skip
    assert [dm.image_rate("cifar10", n) for n in (1, 10, 50, 100)] == [1, 1, 1, 10]
    assert dm.image_rate("cifar10-jpeg", 200) == 10 and dm.image_rate("cifar100", 100) == 1
    assert dm.dsa_strategy("cifar10-jpeg") == augment.DSA and dm.dsa_strategy("mnist") == augment.DSA_DIGITS


def test_dm_with_batch_normalisation_uses_the_batch():
    made = METHODS["dm"].make(job(norm="batch"), iterations=3, batch_real=5)
    assert torch.isfinite(made.x).all() and (made.history["loss"] > 0).all()


def test_dm_resumes_exactly(tmp_path):
    whole = METHODS["dm"].make(job(), iterations=5, batch_real=5)
    resumed = resuming.resumed(
        job(), tmp_path, lambda own: METHODS["dm"].make(own, iterations=5, batch_real=5), after=3, left=3
    )
    assert torch.equal(whole.x, resumed.x) and torch.equal(whole.history["loss"], resumed.history["loss"])


BAD = [
    (lambda: job(0), "ipc is 0"),
    (lambda: METHODS["dm"].make(job(), iterations=0), "iterations of DM is 0"),
    (lambda: METHODS["dm"].make(job(), iterations=1, batch_real=13), "smallest class of toy has 12 images"),
    (
        lambda: METHODS["dm"].make(job(), iterations=1, batch_real=5, initialisation="zeros"),
        "unknown initialisation of the images 'zeros'",
    ),
    (lambda: METHODS["dm"].make(job(), iterations=1, batch_real=5, strategy="swirl"), "swirl"),
    (lambda: METHODS["dm"].make(job(), iterations=1, batch_real=5, rate=-1), "rate of DM is -1"),
    (lambda: METHODS["dm"].settings({"lr": 1}), "unknown setting of distribution_matching 'lr'"),
    (lambda: METHODS["random"].make(job(13)), "13 .*cannot be drawn|13"),
    (lambda: METHODS["k_means"].make(job(13)), "has 12 images"),
    (lambda: METHODS["herding"].make(job(13), epochs=0), "has 12 images"),
    (lambda: Job(toy_data(), build("ConvNet", (3, 8, 8), 3), 1), "not those of toy"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
