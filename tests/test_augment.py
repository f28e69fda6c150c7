"""The six operations against a plain per-image restatement, and what makes them siamese."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddanalysis.augment import DSA, DSA_DIGITS, Augmentation, apply, augment, draw, parse_strategy
from ddanalysis.seeding import generator

OPS = parse_strategy(DSA)
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 7, 10), (1, 1, 1)]


def batch(n, shape, dtype=torch.float64):
    return torch.randn(n, *shape, generator=generator(7, "images"), dtype=dtype)


def plain_color(x, p):
    x = x + p[0]
    mean = x.mean(0)
    x = torch.stack([(channel - mean) * p[1] + mean for channel in x])
    return (x - x.mean()) * p[2] + x.mean()


def plain_crop(x, p):
    dy, dx = int(p[0]), int(p[1])
    out = torch.zeros_like(x)
    _, h, w = x.shape
    for i in range(h):
        for j in range(w):
            if 0 <= i + dy < h and 0 <= j + dx < w:
                out[:, i, j] = x[:, i + dy, j + dx]
    return out


def plain_cutout(x, p):
    out = x.clone()
    _, h, w = x.shape
    for i in range(int(h * 0.5 + 0.5)):
        for j in range(int(w * 0.5 + 0.5)):
            out[:, min(max(int(p[0]) + i, 0), h - 1), min(max(int(p[1]) + j, 0), w - 1)] = 0
    return out


def plain_flip(x, p):
    return torch.stack([torch.stack([row.flip(0) for row in channel]) for channel in x]) if p[0] else x


def plain_affine(x, matrix):
    """Bilinear sampling written out pixel by pixel; the centre of pixel j of w lies at (2j + 1) / w - 1."""
    _, h, w = x.shape
    out = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            u, v = (2 * j + 1) / w - 1, (2 * i + 1) / h - 1
            column = ((matrix[0][0] * u + matrix[0][1] * v + 1) * w - 1) / 2
            row = ((matrix[1][0] * u + matrix[1][1] * v + 1) * h - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < h and 0 <= c < w:
                        out[:, i, j] += x[:, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return out


def plain_scale(x, p):
    return plain_affine(x, [[float(p[0]), 0.0], [0.0, float(p[1])]])


def plain_rotate(x, p):
    t = float(p[0])
    return plain_affine(x, [[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])


PLAIN = {
    "color": plain_color,
    "crop": plain_crop,
    "cutout": plain_cutout,
    "flip": plain_flip,
    "scale": plain_scale,
    "rotate": plain_rotate,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("siamese", [False, True])
def test_operation_is_its_plain_restatement(op, shape, siamese):
    x = batch(4, shape)
    drawn = draw(op, shape, generator(3, op), None if siamese else 4)
    assert drawn.op == op and len(drawn.parameters) == (1 if siamese else 4)
    parameters = drawn.parameters.expand(4, -1)
    expected = torch.stack([PLAIN[op](image, p) for image, p in zip(x, parameters, strict=True)])
    torch.testing.assert_close(apply(drawn, x), expected, rtol=1e-10, atol=1e-10)


def test_one_image_moves_as_its_parameters_say():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    down_right = apply(Augmentation("crop", torch.tensor([[-1.0, -1.0]], dtype=torch.float64)), x)
    assert down_right[0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 3, 4]]
    cut = apply(Augmentation("cutout", torch.tensor([[-1.0, 2.0]], dtype=torch.float64)), x + 1)
    assert cut[0, 0].tolist() == [[1, 2, 0], [4, 5, 6], [7, 8, 9]]


def test_scale_above_one_zooms_out():
    drawn = Augmentation("scale", torch.tensor([[1.2, 1.2]], dtype=torch.float64))
    border = (apply(drawn, torch.ones(1, 1, 32, 32)) < 1).float().mean()
    assert 0.3 < border < 0.36
    zoomed_in = Augmentation("scale", torch.tensor([[0.9, 0.9]], dtype=torch.float64))
    torch.testing.assert_close(apply(zoomed_in, torch.ones(1, 1, 32, 32)), torch.ones(1, 1, 32, 32))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_siamese_is_the_same_for_every_batch_size(op, shape):
    x = batch(256, shape, torch.float32)
    drawn = draw(op, shape, generator(0, "siamese", op))
    whole = apply(drawn, x)
    rounding = 1e-6 if op == "color" else 0
    for n in (1, 10):
        torch.testing.assert_close(apply(drawn, x[:n]), whole[:n], rtol=0, atol=rounding)
        again = augment(x[:n], op, generator(0, "siamese", op), siamese=True)
        assert torch.equal(again, apply(drawn, x[:n]))


@pytest.mark.parametrize("op", OPS)
def test_images_have_their_own_parameters_unless_siamese(op):
    x = batch(1, (3, 32, 32)).expand(64, -1, -1, -1)
    own = augment(x, op, generator(1, op))
    same = augment(x, op, generator(1, op), siamese=True)
    assert len(own.flatten(1).unique(dim=0)) > (1 if op == "flip" else 20)
    assert torch.equal(same, same[:1].expand_as(same))
    assert torch.equal(own, augment(x, op, generator(1, op)))
    assert not torch.equal(own, augment(x, op, generator(2, op)))


@pytest.mark.parametrize(
    "op, shape, low, high",
    [
        ("color", (3, 32, 32), [-0.5, 0.0, 0.5], [0.5, 2.0, 1.5]),
        ("scale", (3, 32, 32), [1 / 1.2, 1 / 1.2], [1.2, 1.2]),
        ("rotate", (3, 32, 32), [-math.pi / 12], [math.pi / 12]),
    ],
)
def test_continuous_parameters_fill_their_ranges_evenly(op, shape, low, high):
    p = draw(op, shape, generator(0, op), 20000).parameters
    low, high = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    assert (p >= low).all() and (p < high).all()
    unit = (p - low) / (high - low)
    tenths = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert (torch.quantile(unit, tenths, dim=0) - tenths[:, None]).abs().max() < 0.02
    if p.shape[1] > 1:
        assert (torch.corrcoef(p.T) - torch.eye(p.shape[1])).abs().max() < 0.03


@pytest.mark.parametrize(
    "op, shape, rows, columns",
    [
        ("crop", (1, 8, 8), (-1, 1), (-1, 1)),
        ("crop", (1, 28, 28), (-4, 4), (-4, 4)),
        ("crop", (3, 32, 32), (-4, 4), (-4, 4)),
        ("crop", (3, 64, 32), (-8, 8), (-4, 4)),
        ("cutout", (1, 8, 8), (-2, 6), (-2, 6)),
        ("cutout", (1, 28, 28), (-7, 21), (-7, 21)),
        ("cutout", (3, 32, 32), (-8, 24), (-8, 24)),
        ("cutout", (3, 9, 32), (-2, 6), (-8, 24)),
        ("flip", (1, 8, 8), (0, 1), None),
    ],
)
def test_whole_parameters_take_each_value_equally_often(op, shape, rows, columns):
    p = draw(op, shape, generator(0, op), 20000).parameters
    for column, bounds in zip(p.T, (rows, columns), strict=False):
        values, counts = column.unique(return_counts=True)
        assert values.tolist() == list(range(bounds[0], bounds[1] + 1))
        share = 1 / len(values)
        assert (counts / 20000 - share).abs().max() < 5 * math.sqrt(share * (1 - share) / 20000)


@pytest.mark.parametrize("strategy", [DSA, DSA_DIGITS, "flip_crop"])
def test_each_operation_of_the_strategy_is_equally_likely_and_no_other(strategy):
    g, ops, n = generator(0, "ops"), parse_strategy(strategy), 6000
    drawn = [draw(strategy, (1, 8, 8), g).op for _ in range(n)]
    assert set(drawn) == set(ops)
    share = 1 / len(ops)
    for op in ops:
        assert abs(drawn.count(op) / n - share) < 5 * math.sqrt(share * (1 - share) / n)


def test_strategies_are_parsed_in_order():
    assert parse_strategy("") == ()
    assert parse_strategy("flip_color") == ("flip", "color")
    assert set(parse_strategy(DSA)) - set(parse_strategy(DSA_DIGITS)) == {"flip"}


@pytest.mark.parametrize("n", [None, 5])
def test_no_strategy_leaves_images_and_generator_alone(n):
    x, g = batch(5, (1, 8, 8)), generator(0)
    before = g.get_state()
    assert torch.equal(apply(draw("", (1, 8, 8), g, n), x), x)
    assert torch.equal(g.get_state(), before)


def test_global_random_state_is_neither_read_nor_set():
    x = batch(3, (1, 8, 8))
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        g = generator(0, "global")
        results.append(torch.stack([augment(x, DSA, g) for _ in range(30)]))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("siamese", [False, True])
def test_gradient_with_respect_to_the_images(op, siamese):
    shape = (2, 4, 5)
    drawn = draw(op, shape, generator(5, op), None if siamese else 3)
    x = batch(3, shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply(drawn, x), x)


@pytest.mark.parametrize("op", OPS)
def test_type_is_kept_and_input_untouched(op):
    x = batch(3, (3, 8, 8), torch.float32)
    before = x.clone()
    drawn = draw(op, (3, 8, 8), generator(0, op), 3)
    out = apply(drawn, x)
    assert out.dtype == torch.float32 and out.shape == x.shape and torch.equal(x, before)
    torch.testing.assert_close(out, apply(drawn, x.double()).float(), rtol=1e-5, atol=2e-6)


def test_parameters_of_many_networks_may_be_joined():
    shape = (1, 8, 8)
    drawn = [draw("rotate", shape, generator(0, k), 4) for k in range(3)]
    x = batch(12, shape)
    joined = apply(Augmentation("rotate", torch.cat([d.parameters for d in drawn])), x)
    assert torch.equal(joined, torch.cat([apply(d, part) for d, part in zip(drawn, x.split(4), strict=True)]))


def test_rotation_agrees_with_torchs_sampling_of_a_real_grid():
    x = batch(2, (3, 32, 32))
    drawn = draw("rotate", (3, 32, 32), generator(0), 2)
    theta = drawn.parameters[:, 0]
    matrix = torch.zeros(2, 2, 3, dtype=torch.float64)
    matrix[:, 0, 0] = matrix[:, 1, 1] = theta.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -theta.sin(), theta.sin()
    grid = F.affine_grid(matrix, x.shape, align_corners=True)
    torch.testing.assert_close(apply(drawn, x), F.grid_sample(x, grid, align_corners=True), rtol=0, atol=1e-9)


def flip(x, n=None, op="flip"):
    return apply(draw(op, (1, 8, 8), generator(0), n), x)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: parse_strategy("color_blur"), "unknown augmentation 'blur' in strategy .*: allowed are color, crop"),
        (lambda: parse_strategy("None"), "unknown augmentation 'None'"),
        (lambda: parse_strategy(None), "strategy is None: it must be text"),
        (lambda: parse_strategy("flip_flip"), "names 'flip' 2 times"),
        (lambda: draw("flip", (8, 8), generator(0)), r"image shape is \(8, 8\)"),
        (lambda: draw("flip", (1, 0, 8), generator(0)), r"image shape is \(1, 0, 8\)"),
        (lambda: draw("flip", (1, 8, 8), generator(0), 0), "number of images to augment is 0"),
        (lambda: flip(torch.zeros(4, 1, 8, 8), n=3), "3 parameter sets were drawn for flip, 4 images were given"),
        (lambda: flip(torch.zeros(4, 1, 8, 8), n=3, op=""), "3 parameter sets were drawn for no augmentation"),
        (lambda: flip(torch.zeros(1, 8, 8)), r"shape \(1, 8, 8\)"),
        (lambda: flip(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "type torch.uint8"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_generator_of_another_device_is_refused():
    class Elsewhere:
        device = torch.device("cuda")

    with pytest.raises(ValueError, match="the generator is on cuda: it must be on the cpu"):
        draw("flip", (1, 8, 8), Elsewhere())
