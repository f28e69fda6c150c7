"""DC's operations against plain restatements image by image, the rotation against scipy's own."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from ddanalysis import augment_dc
from ddanalysis.augment_dc import DC_BATCH_NORM, DC_DIGITS, augment, parse_strategy
from ddanalysis.seeding import generator

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 7, 10)]
MEANS = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)


def batch(n, shape, dtype=torch.float64):
    return torch.randn(n, *shape, generator=generator(7, "images"), dtype=dtype)


def applied(op, x, u):
    """An operation on its own, its two uniform numbers an image given."""
    return augment_dc._OPERATIONS[op](x, u, MEANS[: x.shape[1]].to(x), generator(0))


def plain_rotation(image, angle, fill):
    large = scipy.ndimage.rotate(image, angle, axes=(-2, -1), cval=fill)
    r, c = ((large.shape[i] - image.shape[i]) // 2 for i in (1, 2))
    return large[:, r : r + image.shape[1], c : c + image.shape[2]]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_is_scipys_at_every_angle(shape, dtype, near):
    x = batch(1, shape, dtype).expand(90, -1, -1, -1)
    angles = torch.arange(-45, 45)
    u = torch.stack([(angles + 45.5) / 90, torch.zeros(90)], 1).double()
    fill = float(MEANS[: shape[0]].mean())
    expected = np.stack([plain_rotation(x[0].numpy(), int(a), fill) for a in angles])
    torch.testing.assert_close(applied("rotate", x, u), torch.from_numpy(expected), rtol=0, atol=near)


def plain_scale(x, h, w):
    """Nearest pixels on a canvas that holds both sizes, both centred, and the middle of it."""
    side = max(h, w, *x.shape[1:])
    canvas = torch.zeros(len(x), side, side, dtype=x.dtype)
    top, left = (side - h) // 2, (side - w) // 2
    canvas[:, top : top + h, left : left + w] = F.interpolate(x[None], [h, w])[0]
    top, left = (side - x.shape[1]) // 2, (side - x.shape[2]) // 2
    return canvas[:, top : top + x.shape[1], left : left + x.shape[2]]


@pytest.mark.parametrize("shape", SHAPES)
def test_scaling_is_a_nearest_interpolation_at_every_size(shape):
    u = torch.cartesian_prod(*(torch.linspace(0, 0.999, 12, dtype=torch.float64),) * 2)
    x = batch(len(u), shape)
    sizes = [[int((0.8 + 0.4 * float(v)) * side) for v, side in zip(row, shape[1:], strict=True)] for row in u]
    assert len({size for size, _ in sizes}) >= min(4, shape[1] // 3)
    expected = torch.stack([plain_scale(image, *size) for image, size in zip(x, sizes, strict=True)])
    assert torch.equal(applied("scale", x, u), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_moves_in_the_channel_means(shape):
    u = torch.cartesian_prod(*((torch.arange(8) + 0.5) / 8,) * 2).double()
    x = batch(64, shape)
    found = applied("crop", x, u)
    for k, image in enumerate(x):
        padded = MEANS[: shape[0], None, None].expand(-1, shape[1] + 8, shape[2] + 8).clone()
        padded[:, 4 : 4 + shape[1], 4 : 4 + shape[2]] = image
        r, c = divmod(k, 8)
        assert torch.equal(found[k], padded[:, r : r + shape[1], c : c + shape[2]])


def test_noise_is_a_thousandth():
    x = batch(8, (3, 32, 32))
    change = applied("noise", x, torch.zeros(8, 2, dtype=torch.float64)) - x
    assert float(change.std()) == pytest.approx(1e-3, rel=0.02) and abs(float(change.mean())) < 3e-5


def test_every_image_has_its_own_operation_and_the_batch_means_fill():
    n, shape = 3000, (1, 8, 8)
    x = torch.full((n, *shape), 5.0, dtype=torch.float64)
    x[::2] = 1.0  # so that the batch has the mean 3, which no image has
    out = augment(x, DC_DIGITS, generator(0))
    zeros, threes = ((out == value).flatten(1).any(1) for value in (0.0, 3.0))
    same = (out == x).flatten(1).all(1)
    assert not (zeros & threes).any() and (zeros | threes | same).float().mean() > 0.97
    assert 0.1 < float(zeros.float().mean()) < 1 / 3 and 0.5 < float(threes.float().mean()) < 2 / 3


@pytest.mark.parametrize("strategy", [DC_DIGITS, DC_BATCH_NORM, "dc:rotate"])
def test_operations_are_equally_likely_and_parameters_fill_their_ranges(strategy, monkeypatch):
    seen = {}

    def record(op):
        def recorded(x, u, means, g):
            seen.setdefault(op, []).append(u)
            return x

        return recorded

    ops = parse_strategy(strategy)
    for op in augment_dc._OPERATIONS:
        monkeypatch.setitem(augment_dc._OPERATIONS, op, record(op))
    n = 12000
    augment(torch.zeros(n, 1, 1, 1), strategy, generator(1))
    assert set(seen) == set(ops)
    for draws in seen.values():
        u = torch.cat(draws)
        assert len(u) / n == pytest.approx(1 / len(ops), abs=0.02)
        tenths = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        assert (torch.quantile(u, tenths, dim=0) - tenths[:, None]).abs().max() < 0.03
        assert float(torch.corrcoef(u.T)[0, 1]) == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("strategy", [DC_DIGITS, DC_BATCH_NORM])
def test_the_generator_alone_decides_and_the_input_is_left(strategy):
    x = batch(20, (1, 28, 28), torch.float32)
    before, state = x.clone(), torch.get_rng_state()
    out = augment(x, strategy, generator(3))
    assert out.dtype == torch.float32 and out.shape == x.shape and not torch.equal(out, x)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(out, augment(x, strategy, generator(3)))
    assert not torch.equal(out, augment(x, strategy, generator(4)))


@pytest.mark.parametrize("strategy", ["dc:", "dc:blur", "dc:crop_crop", "crop", "dc:crop_flip", ""])
def test_refusals(strategy):
    with pytest.raises(ValueError, match="dc: and some of crop, scale, rotate, noise"):
        augment(batch(2, (1, 8, 8)), strategy, generator(0))
