"""The three whitenings against their published computations, their inverses, and what keeps them apart."""

import dataclasses

import numpy as np
import pytest
import torch

from ddanalysis import store
from ddanalysis.seeding import generator
from ddanalysis.whitening import KINDS, Whitening, alike, fit, fits, from_tensors

SHAPE = (3, 4, 5)


def pixels(n=400, seed=0, dtype=torch.float64):
    """Smooth images in [0, 1]: neighbours and channels are correlated."""
    x = torch.rand(n, 3, 6, 7, generator=generator(seed, "pixels"), dtype=dtype)
    x = torch.nn.functional.avg_pool2d(x, 3, stride=1)
    return (0.6 * x + 0.4 * x.mean(1, keepdim=True)).clamp(0, 1)


def last(x):
    """As the published code has them: (n, h, w, c), flat."""
    return x.numpy().transpose(0, 2, 3, 1).reshape(len(x), -1)


def first(flat):
    return torch.tensor(flat.reshape(-1, 4, 5, 3).transpose(0, 3, 1, 2).copy())


# ---- the published computations, written again with NumPy


def kornia(train, new, eps):
    mean = train.mean(0)
    u, s, _ = np.linalg.svd(np.cov(train, rowvar=False))
    return (new - mean) @ (u * (s + eps) ** -0.5) @ u.T


def per_image(train, new, regularisation):
    train, new = (x - x.mean(1, keepdims=True) for x in (train, new))
    train, new = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, new))
    values, vectors = np.linalg.eigh(train.T @ train / len(train))
    return new @ vectors @ np.diag((values + regularisation * values.mean()) ** -0.5) @ vectors.T


def frepo(train, new, regularisation, std=None):
    channels = train.reshape(-1, 3)
    m, s = np.tile(channels.mean(0), 20), np.tile(channels.std(0) if std is None else std, 20)
    train, new = (train - m) / s, (new - m) / s
    mean = train.mean(0)
    c = (train - mean).T @ (train - mean) / len(train)
    u, values, _ = np.linalg.svd(c + regularisation * np.trace(c) / len(c) * np.eye(len(c)))
    return (new - mean) @ (u * values**-0.5) @ u.T


@pytest.mark.parametrize("regularisation", [0.1, 1e-3, 100])
@pytest.mark.parametrize("kind, published", [("kornia", kornia), ("per-image", per_image), ("frepo", frepo)])
def test_as_published(kind, published, regularisation):
    train, new = pixels(), pixels(50, seed=1)
    ours = fit(kind, train, regularisation).apply(new)
    theirs = first(published(last(train), last(new), regularisation))
    assert ours.shape == (50, *SHAPE) and (ours - theirs).abs().max() < 2e-6 * theirs.abs().max()


def test_the_kinds_are_three():
    train = pixels()
    made = [fit(kind, train).apply(train) for kind in KINDS]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        scale = (made[a] * made[b]).sum() / made[b].square().sum()  # not even up to a factor
        assert (made[a] - scale * made[b]).norm() > 0.05 * made[a].norm()


def test_frepo_with_the_deviations_of_its_code():
    train, new, std = pixels(), pixels(50, seed=1), (0.1, 0.25, 0.5)
    theirs = first(frepo(last(train), last(new), 0.1, std))
    assert torch.allclose(fit("frepo", train, std=std).apply(new), theirs, atol=1e-5)


def test_per_image_does_not_see_brightness_and_contrast_and_the_others_do():
    x = pixels()
    for kind in KINDS:
        w = fit(kind, x)
        assert torch.allclose(w.apply(x * 0.5 + 0.25), w.apply(x), atol=1e-5) == (kind == "per-image")


@pytest.mark.parametrize("kind", KINDS)
def test_the_whitened_images_have_the_identity_as_covariance(kind):
    x = pixels(2000)
    flat = fit(kind, x, regularisation=1e-7).apply(x).flatten(1)
    covariance = flat.T @ flat / (len(x) - (kind == "kornia"))
    if kind == "per-image":  # the images have lost a direction, that of their mean
        covariance += torch.full((60, 60), 1 / 60, dtype=torch.float64)
    assert (covariance - torch.eye(60)).abs().max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_regularised_covariance(kind):
    """Its eigenvalues are v / (v + r) of the eigenvalues v before."""
    x = pixels()
    w = fit(kind, x, regularisation=0.1)
    sums = torch.linalg.eigvalsh(torch.linalg.inv(w.matrix.double() @ w.matrix.double()))  # v + r
    r = 0.1 if kind == "kornia" else 0.1 * sums.mean() / 1.1
    flat = w.apply(x).flatten(1)
    after = torch.linalg.eigvalsh(flat.T @ flat / (len(x) - (kind == "kornia")))
    assert torch.allclose(after, (sums - r) / sums, atol=1e-5) and after.max() < 1


# ---- back again


@pytest.mark.parametrize("kind", ["kornia", "frepo"])
def test_round_trip(kind):
    train, new = pixels(), pixels(50, seed=1) * 3 - 1  # a distilled image may lie outside [0, 1]
    w = fit(kind, train)
    assert torch.allclose(w.invert(w.apply(new)), new, atol=1e-12)
    assert torch.allclose(w.apply(w.invert(new)), new, atol=1e-12)
    single = new.float()
    assert w.apply(single).dtype == torch.float32 and torch.allclose(w.invert(w.apply(single)), single, atol=1e-5)


def test_round_trip_of_what_per_image_whitening_keeps():
    train, new = pixels(), pixels(50, seed=1)
    w = fit("per-image", train)
    means, lengths = scales = w.scales(new)
    white = w.apply(new)
    assert means.shape == lengths.shape == (50,)
    assert torch.allclose(w.invert(white, scales), new, atol=1e-12)


def test_per_image_whitening_undone_without_scales_is_of_average_brightness_and_contrast():
    train, new = pixels(), pixels(50, seed=1)
    w = fit("per-image", train)
    brightness, contrast = train.mean(), train.flatten(1).var(1, correction=0).mean().sqrt()
    back = w.invert(w.apply(new))
    centred, theirs = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (back, new))
    assert torch.allclose(back.flatten(1).mean(1), brightness, atol=1e-7)
    assert torch.allclose(centred.square().mean(1).sqrt(), contrast, atol=1e-7)
    assert torch.allclose(torch.cosine_similarity(centred, theirs), torch.ones(50).double())
    assert torch.allclose(w.apply(back), w.apply(new), atol=1e-6)  # of real images nothing is lost
    faint = w.invert(1e-3 * w.apply(new))
    assert torch.allclose(faint, back, atol=1e-6)  # a distilled image of any length can be seen
    grey = w.invert(torch.zeros_like(new))
    assert torch.allclose(grey, brightness, atol=1e-7)


def test_in_chunks_is_as_at_once(monkeypatch):
    x = pixels(101)
    whole = [fit(kind, x) for kind in KINDS]
    scales = whole[1].scales(x)
    monkeypatch.setattr("ddanalysis.whitening._CHUNK", 60 * 7)
    for kind, w in zip(KINDS, whole, strict=True):
        given = scales if kind == "per-image" else None
        assert torch.allclose(fit(kind, x).matrix, w.matrix, rtol=1e-6)
        assert torch.allclose(w.invert(w.apply(x), given), x, atol=1e-12)


def test_images_in_any_memory_layout():
    x = pixels(20)
    w = fit("kornia", x)
    assert torch.equal(w.apply(x.to(memory_format=torch.channels_last)), w.apply(x))


# ---- kept with a set


@pytest.mark.parametrize("kind", KINDS)
def test_through_a_file(tmp_path, kind):
    x = pixels()
    w = fit(kind, x)
    store.write(tmp_path / "w.safetensors", {"x": x.float(), **w.tensors()}, {"method": "mtt", **w.describe()})
    back = from_tensors(*store.read(tmp_path / "w.safetensors"))
    assert (back.fingerprint, back.describe(), back.shape) == (w.fingerprint, w.describe(), SHAPE)
    assert torch.equal(back.apply(x), w.apply(x)) and torch.equal(back.invert(x), w.invert(x))
    fits("the set", back, "the data", w)


def test_one_fingerprint_each():
    x = pixels()
    made = [fit(kind, x, r) for kind in KINDS for r in (0.1, 0.2)] + [fit("kornia", pixels(seed=1))]
    assert len({w.fingerprint for w in made}) == len(made) and fit("kornia", x).fingerprint == made[0].fingerprint


def test_from_tensors_refuses_what_is_not_whole():
    w = fit("kornia", pixels())
    tensors, description = w.tensors(), w.describe()
    with pytest.raises(ValueError, match="lacks whitening.matrix, kind"):
        from_tensors({"whitening.mean": w.mean}, {k: v for k, v in description.items() if k != "kind"})
    with pytest.raises(ValueError, match=r"is for \[3, 5, 4\], its mean is of \(3, 4, 5\)"):
        from_tensors(tensors, {**description, "shape": [3, 5, 4]})
    with pytest.raises(ValueError, match="unknown whitening 'pca': allowed are kornia, per-image, frepo"):
        from_tensors(tensors, {**description, "kind": "pca"})


def test_fits():
    x = pixels()
    w = fit("kornia", x)
    noise = w.matrix * (1 + 1e-6 * torch.randn(60, 60, generator=generator(0)))
    fits("a", w, "b", dataclasses.replace(w, matrix=noise))  # another machine's rounding
    fits("a", None, "b", None)
    assert alike(None, None) and alike(w, dataclasses.replace(w, matrix=noise)) and not alike(None, w)
    for theirs, message in [
        (None, r"the set a is whitened by kornia \(0.1\), the data b is not whitened: they must be in one space"),
        (fit("per-image", x), r"by kornia \(0.1\), the data b is whitened by per-image \(0.1\)"),
        (fit("kornia", x, 0.2), r"by kornia \(0.1\), the data b is whitened by kornia \(0.2\)"),
        (fit("kornia", pixels(seed=1)), "are both whitened by kornia .* fitted to other images"),
        (fit("kornia", x.transpose(2, 3)), r"as images of \(3, 4, 5\), the data b of \(3, 5, 4\)"),
        (dataclasses.replace(w, mean=w.mean + 1e-3), "fitted to other images"),
    ]:
        assert not alike(w, theirs) and not alike(theirs, w)
        with pytest.raises(ValueError, match=message):
            fits("the set a", w, "the data b", theirs)
        with pytest.raises(ValueError, match="whitened"):
            fits("the data b", theirs, "the set a", w)
    with pytest.raises(ValueError, match="fitted to other images"):
        fits("a", fit("frepo", x), "b", fit("frepo", x, std=(0.1, 0.1, 0.1)))


def test_on_a_device_it_is_on_it_is_itself():
    w = fit("kornia", pixels())
    assert w.to("cpu") is w


# ---- what is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("zca", pixels(9)), "unknown whitening 'zca': allowed are kornia, per-image, frepo"),
        (("kornia", pixels(9), -1), "regularisation is -1: it must be a number of at least 0"),
        (("kornia", pixels(9)[0]), r"pixels to whiten have shape \(3, 4, 5\)"),
        (("kornia", (pixels(9) * 255).byte()), "torch.uint8"),
        (("kornia", pixels(9) * 255), r"go from .* to .*: pixels in \[0, 1\] are needed: denormalise"),
        (("kornia", pixels(9) - 0.9), r"go from -0.*: pixels in \[0, 1\] are needed"),
        (("kornia", pixels(9) * float("nan")), "NaN"),
        (("kornia", pixels(1)), "1 image to fit a whitening to: kornia whitening needs at least 2"),
        (
            ("kornia", pixels(9), 0),
            "covariance of 9 images of 60 numbers is singular: a regularisation above 0 is needed",
        ),
        (("kornia", pixels(9), 0.1, (1, 1, 1)), r"std is \(1, 1, 1\): kornia whitening divides by no deviation"),
        (("frepo", pixels(9), 0.1, (1, 1)), r"std is \(1, 1\): 3 finite positive numbers"),
        (("frepo", pixels(9) * torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)), "a channel of the pixels .* is constant"),
        (("per-image", pixels(9) * (torch.arange(9) != 4).view(9, 1, 1, 1)), "image 4 has one value throughout"),
    ],
)
def test_what_cannot_be_fitted(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(*arguments)


def test_what_cannot_be_whitened():
    x = pixels(90)
    w, per = fit("kornia", x), fit("per-image", x)
    with pytest.raises(ValueError, match=r"pixels to whiten are of shape \(3, 5, 4\): \(3, 4, 5\) is needed"):
        w.apply(x.transpose(2, 3))
    with pytest.raises(ValueError, match=r"whitened images are of shape \(3, 5, 4\)"):
        w.invert(x.transpose(2, 3))
    with pytest.raises(ValueError, match="image 0 has one value throughout"):
        per.apply(torch.full_like(x, 0.5))
    for call in (lambda: w.scales(x), lambda: w.invert(x, per.scales(x))):
        with pytest.raises(ValueError, match=r"kornia \(0.1\) whitening is undone without scales"):
            call()
    with pytest.raises(ValueError, match=r"scales of shape \(4,\) and \(4,\) for 90 images"):
        per.invert(x, per.scales(x[:4]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "pca"}, "unknown whitening 'pca'"),
        ({"regularisation": float("nan")}, "regularisation is nan"),
        ({"matrix": torch.eye(60).double()}, "the matrix of a whitening must be a finite float32 tensor"),
        ({"mean": torch.full(SHAPE, float("inf"))}, "the mean of a whitening must be a finite"),
        ({"matrix": torch.eye(59)}, r"a matrix of shape \(59, 59\) and a mean of shape \(3, 4, 5\)"),
        ({"std": (1.0, 0.0, 1.0)}, r"std is \(1.0, 0.0, 1.0\): 3 finite positive numbers"),
    ],
)
def test_a_wrong_field_is_refused(changes, message):
    fields = {"kind": "kornia", "regularisation": 0.1, "matrix": torch.eye(60), "mean": torch.zeros(SHAPE)}
    with pytest.raises(ValueError, match=message):
        Whitening(**{**fields, "std": (1.0,) * 3, **changes})
