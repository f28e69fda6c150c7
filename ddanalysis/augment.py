"""DSA, differentiable siamese augmentation: one random operation a call, the same for two batches if asked.

Zhao and Bilen, *Dataset condensation with differentiable siamese augmentation* (ICML 2021), their one-operation mode.
Images are in normalised space, where the fill value 0 is the mean of the dataset. Parameters are drawn on the CPU from
an explicit generator and applied later, so that one draw serves a real batch, a synthetic batch and any device alike.

* color: brightness, + U(-0.5, 0.5); then saturation, the distance from the pixel's channel mean times U(0, 2); then
  contrast, the distance from the image's mean times U(0.5, 1.5)
* crop: translation by whole pixels, rows and columns independent, at most an eighth of the side; zeros move in
* cutout: zeros in a rectangle of half the height and half the width, centred anywhere, clipped by the border
* flip: left-right, probability 0.5
* scale: rows and columns independently by U(1/1.2, 1.2), where above 1 zooms out; bilinear, zeros outside
* rotate: by U(-15, 15) degrees; bilinear, zeros outside
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks

DSA = "color_crop_cutout_flip_scale_rotate"
"""The paper's strategy for CIFAR and FashionMNIST."""
DSA_DIGITS = "color_crop_cutout_scale_rotate"
"""The paper's strategy for MNIST and SVHN, where a mirrored digit is another shape."""


@dataclass(frozen=True, eq=False)
class Augmentation:
    """One drawn operation, ready for :func:`apply`.

    ``parameters`` is (m, p) float64 on the CPU, p numbers an image; m is 1 for a siamese draw, which fits a batch of
    any size. ``op`` is "" for the identity.
    """

    op: str
    parameters: Tensor


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """The operations of a strategy such as ``"color_crop_flip"``, in its order; none for ``""``.

    Raises ``ValueError`` for an operation that does not exist or is named twice.
    """
    if not isinstance(strategy, str):
        raise ValueError(f'augmentation strategy is {strategy!r}: it must be text such as {DSA!r}, or "" for none')
    ops = tuple(strategy.split("_")) if strategy else ()
    for op in ops:
        if op not in _OPERATIONS:
            allowed = ", ".join(_OPERATIONS)
            raise ValueError(f"unknown augmentation {op!r} in strategy {strategy!r}: allowed are {allowed}")
        if ops.count(op) > 1:
            raise ValueError(f"strategy {strategy!r} names {op!r} {ops.count(op)} times: once is allowed")
    return ops


def draw(strategy: str, shape: tuple[int, ...], g: torch.Generator, n: int | None = None) -> Augmentation:
    """Draw one operation, each of the strategy equally likely, and its parameters.

    For images of ``shape`` (c, h, w): one parameter set for all of a batch if ``n`` is None (siamese), else one for
    each of ``n`` images. A strategy of one operation always draws that one.
    Raises ``ValueError`` for an unknown strategy, a bad shape or number, or a generator that is not on the CPU.
    """
    ops = parse_strategy(strategy)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image shape is {tuple(shape)}: three positive sizes (c, h, w) are needed")
    if n is not None:
        checks.whole("number of images to augment", n)
    if g.device.type != "cpu":
        raise ValueError(f"the generator is on {g.device}: it must be on the cpu, so that every device draws the same")
    if not ops:
        return Augmentation("", torch.zeros(n or 1, 0, dtype=torch.float64))
    op = ops[int(torch.randint(len(ops), (), generator=g))]
    count, parameters, _ = _OPERATIONS[op]
    u = torch.rand(n or 1, count, generator=g, dtype=torch.float64)
    return Augmentation(op, parameters(u, shape[1], shape[2]))


def apply(augmentation: Augmentation, x: Tensor) -> Tensor:
    """The augmented batch x' (n, c, h, w), differentiable in ``x`` (n, c, h, w), of its type and on its device.

    Raises ``ValueError`` unless ``x`` is float32 or float64 and has as many images as parameter sets were drawn (any
    number after a siamese draw).
    """
    m = len(augmentation.parameters)
    if x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        found = f"shape {tuple(x.shape)} and type {x.dtype}"
        raise ValueError(f"images to augment have {found}: float32 or float64 (n, c, h, w) is needed")
    if m not in (1, len(x)):
        op = augmentation.op or "no augmentation"
        raise ValueError(f"{m} parameter sets were drawn for {op}, {len(x)} images were given")
    if not augmentation.op:
        return x
    _, _, transform = _OPERATIONS[augmentation.op]
    return transform(x, augmentation.parameters.to(x.dtype).to(x.device, non_blocking=True))


def augment(x: Tensor, strategy: str, g: torch.Generator, siamese: bool = False) -> Tensor:
    """Draw once and apply to ``x`` (n, c, h, w): one parameter set an image, or one for all if ``siamese``."""
    return apply(draw(strategy, tuple(x.shape[1:]), g, None if siamese else len(x)), x)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _whole_between(u: Tensor, low: int, high: int) -> Tensor:
    """Uniform whole numbers from ``low`` to ``high``, both included."""
    return low + (u * (high - low + 1)).floor()


def _columns(*columns: Tensor) -> Tensor:
    return torch.stack(columns, 1)


def _per_image(p: Tensor) -> list[Tensor]:
    """The columns of ``p`` (m, k), each as (m, 1, 1, 1)."""
    return [column.view(-1, 1, 1, 1) for column in p.unbind(1)]


def _draw_color(u: Tensor, h: int, w: int) -> Tensor:
    return _columns(_between(u[:, 0], -0.5, 0.5), _between(u[:, 1], 0.0, 2.0), _between(u[:, 2], 0.5, 1.5))


def _color(x: Tensor, p: Tensor) -> Tensor:
    """Brightness b, saturation s and contrast c in one pass: the last two leave the means they are taken about."""
    b, s, c = _per_image(p)
    pixel = x.mean(1, keepdim=True)
    whole = pixel.mean((2, 3), keepdim=True)
    return x * (s * c) + (pixel * (c - s * c) + whole * (1 - c) + b)


def _draw_crop(u: Tensor, h: int, w: int) -> Tensor:
    rows, columns = int(h * 0.125 + 0.5), int(w * 0.125 + 0.5)
    return _columns(_whole_between(u[:, 0], -rows, rows), _whole_between(u[:, 1], -columns, columns))


def _crop(x: Tensor, p: Tensor) -> Tensor:
    rows, columns = _per_image(p.long())
    return _shift(_shift(x, rows, 2), columns, 3)


def _shift(x: Tensor, offset: Tensor, dim: int) -> Tensor:
    """x'[i] = x[i + offset] along ``dim``, 0 where there is no such pixel; ``offset`` (m, 1, 1, 1)."""
    source = offset + _positions(x, dim)
    inside = (source >= 0) & (source < x.shape[dim])
    return x.gather(dim, source.clamp(0, x.shape[dim] - 1).expand_as(x)).where(inside, 0)


def _positions(x: Tensor, dim: int) -> Tensor:
    shape = [1, 1, 1, 1]
    shape[dim] = x.shape[dim]
    return torch.arange(x.shape[dim], device=x.device).view(shape)


def _side(size: int) -> int:
    return int(size * 0.5 + 0.5)


def _draw_cutout(u: Tensor, h: int, w: int) -> Tensor:
    """The first row and column of the square, which may lie outside the image."""
    starts = []
    for i, size in enumerate((h, w)):
        side = _side(size)
        starts.append(_whole_between(u[:, i], 0, size - side % 2) - side // 2)
    return _columns(*starts)


def _cutout(x: Tensor, p: Tensor) -> Tensor:
    cut = torch.ones((), dtype=torch.bool, device=x.device)
    for dim, start in zip((2, 3), _per_image(p), strict=True):
        position = _positions(x, dim)
        cut = cut & (position >= start) & (position < start + _side(x.shape[dim]))
    return x.where(~cut, 0)


def _draw_flip(u: Tensor, h: int, w: int) -> Tensor:
    return (u < 0.5).to(u.dtype)


def _flip(x: Tensor, p: Tensor) -> Tensor:
    return torch.where(_per_image(p)[0].bool(), x.flip(3), x)


def _draw_scale(u: Tensor, h: int, w: int) -> Tensor:
    return _between(u, 1 / 1.2, 1.2)


def _scale(x: Tensor, p: Tensor) -> Tensor:
    return _affine(x, torch.diag_embed(p))


def _draw_rotate(u: Tensor, h: int, w: int) -> Tensor:
    return _between(u, -math.radians(15), math.radians(15))


def _rotate(x: Tensor, p: Tensor) -> Tensor:
    cos, sin = p[:, 0].cos(), p[:, 0].sin()
    return _affine(x, torch.stack((_columns(cos, -sin), _columns(sin, cos)), 1))


def _affine(x: Tensor, matrix: Tensor) -> Tensor:
    """Sample ``x`` where ``matrix`` (m, 2, 2) sends each pixel; (column, row) go from -1 to 1 over the image."""
    matrix = F.pad(matrix, (0, 1))
    grid = F.affine_grid(matrix, [len(matrix), *x.shape[1:]], align_corners=False)
    grid = grid.expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


_OPERATIONS: dict[str, tuple[int, Callable[[Tensor, int, int], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "color": (3, _draw_color, _color),
    "crop": (2, _draw_crop, _crop),
    "cutout": (2, _draw_cutout, _cutout),
    "flip": (1, _draw_flip, _flip),
    "scale": (2, _draw_scale, _scale),
    "rotate": (1, _draw_rotate, _rotate),
}
"""For each operation: how many uniform numbers an image needs, its parameters from them, and the transform."""
