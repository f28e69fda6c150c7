"""The augmentation that DC's networks learn under when its MNIST sets are evaluated: one random operation an *image*.

Zhao, Mopuri and Bilen, *Dataset condensation with gradient matching* (ICLR 2021), their code. It is not DSA
(:mod:`ddanalysis.augment`). Images are in normalised space. What moves in is the mean of the batch unless said
otherwise: of each channel, for a rotation of all channels.

* crop: translation by whole pixels, rows and columns independent, from -4 to 3, uneven as published
* scale: rows and columns independently to int(side * U(0.8, 1.2)) pixels, each the nearest one; zeros around
* rotate: by a whole number of degrees from -45 to 44; cubic spline, scipy's to float64 rounding. The rotated image is
  cut from the middle of the larger one that holds all of it, half a pixel off where their sides differ by an odd number
* noise: + N(0, 0.001^2)
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

PREFIX = "dc:"
"""How a strategy says that its operations are DC's."""
DC_DIGITS = "dc:crop_scale_rotate"
"""The published strategy for MNIST."""
DC_BATCH_NORM = "dc:crop_noise"
"""The published strategy for the ConvNet with batch normalisation."""

Operation = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""Of images (m, c, h, w), two uniform numbers an image (m, 2), channel means (c,) and where to draw more."""


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """The operations of a strategy such as ``"dc:crop_scale_rotate"``; ``ValueError`` unless all exist, named once."""
    ops = tuple(strategy.removeprefix(PREFIX).split("_"))
    if not strategy.startswith(PREFIX) or not set(ops) <= set(_OPERATIONS) or len(set(ops)) < len(ops):
        allowed = ", ".join(_OPERATIONS)
        raise ValueError(
            f"augmentation strategy is {strategy!r}: {PREFIX} and some of {allowed}, joined by _, is needed"
        )
    return ops


def augment(x: Tensor, strategy: str, g: torch.Generator) -> Tensor:
    """The batch x (n, c, h, w) with one operation drawn for each image, each of the strategy equally likely.

    Draws are made on the CPU and depend on ``n`` alone. Raises ``ValueError`` for an unknown strategy.
    """
    ops = parse_strategy(strategy)
    u = torch.rand(len(x), 3, generator=g, dtype=torch.float64)
    chosen, means, out = (u[:, 0] * len(ops)).long(), x.mean((0, 2, 3)), x.clone()
    for i, op in enumerate(ops):
        own = (chosen == i).nonzero()[:, 0]
        if len(own):
            images = own.to(x.device)
            out[images] = _OPERATIONS[op](x[images], u[own, 1:].to(x.device), means, g)
    return out


def _crop(x: Tensor, u: Tensor, means: Tensor, g: torch.Generator) -> Tensor:
    offset = (8 * u).long() - 4
    rows, columns = (torch.arange(side, device=x.device) + offset[:, i, None] for i, side in enumerate(x.shape[2:]))
    return _picked(x, rows, columns, means)


def _scale(x: Tensor, u: Tensor, means: Tensor, g: torch.Generator) -> Tensor:
    sides = x.shape[2:]
    scaled = ((0.8 + 0.4 * u) * torch.tensor(sides, device=x.device)).long()  # (m, 2)
    canvas = scaled.amax(1, keepdim=True).clamp_min(max(sides))
    rows, columns = (_nearest(side, scaled[:, i, None], canvas) for i, side in enumerate(sides))
    return _picked(x, rows, columns, torch.zeros_like(means))


def _nearest(side: int, scaled: Tensor, canvas: Tensor) -> Tensor:
    """Which pixel of ``side`` each pixel shows (m, side) when it has become ``scaled`` (m, 1) pixels; -1 for none."""
    position = torch.arange(side, device=scaled.device) + (canvas - side) // 2 - (canvas - scaled) // 2
    source = (position.float() * (side / scaled.float())).floor().long()  # in float32, as F.interpolate
    return source.where((position >= 0) & (position < scaled), -1)


def _picked(x: Tensor, rows: Tensor, columns: Tensor, fill: Tensor) -> Tensor:
    """The pixels of x (m, c, h, w) at rows (m, h) and columns (m, w), and ``fill`` (c,) where there is none."""
    inside, indices = [], []
    for positions, side in zip((rows, columns), x.shape[2:], strict=True):
        inside.append((positions >= 0) & (positions < side))
        indices.append(positions.clamp(0, side - 1))
    image = torch.arange(len(x), device=x.device)[:, None, None]
    pixels = x.permute(0, 2, 3, 1)[image, indices[0][:, :, None], indices[1][:, None]]
    there = inside[0][:, :, None] & inside[1][:, None]
    return pixels.where(there[..., None], fill).permute(0, 3, 1, 2)


def _rotate(x: Tensor, u: Tensor, means: Tensor, g: torch.Generator) -> Tensor:
    angle = ((90 * u[:, 0]).floor() - 45).deg2rad()[:, None, None]
    rows, columns = _rotated(angle.cos(), angle.sin(), *x.shape[2:])
    inside = (rows >= 0) & (rows <= x.shape[2] - 1) & (columns >= 0) & (columns <= x.shape[3] - 1)
    pixels = _spline(x.double(), rows, columns).to(x.dtype)
    return pixels.where(inside[:, None], means.mean())


def _rotated(cos: Tensor, sin: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The row and column (m, h, w) that each pixel shows, where cos and sin of the angle are (m, 1, 1)."""
    from_middle = []
    for i, (side, other) in enumerate(((h, w), (w, h))):
        grown = (cos * side + sin.abs() * other + 0.5).floor()
        along = torch.arange(side, device=cos.device, dtype=cos.dtype) - (side - 1) / 2
        from_middle.append((along[:, None] if i == 0 else along) - (grown - side) % 2 / 2)
    r, c = from_middle
    return cos * r + sin * c + (h - 1) / 2, cos * c - sin * r + (w - 1) / 2


def _spline(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The cubic spline through the pixels of x (m, c, h, w), mirrored at its border, at rows and columns (m, h, w)."""
    h, w = x.shape[2:]
    coefficients = (_inverse_basis(h).to(x.device) @ x @ _inverse_basis(w).T.to(x.device)).flatten(2)
    pixels, along_columns = torch.zeros_like(coefficients), _taps(columns, w)
    for row, row_weight in _taps(rows, h):
        part = torch.zeros_like(pixels)
        for column, weight in along_columns:
            index = (row * w + column).flatten(1)[:, None].expand_as(pixels)
            part.addcmul_(coefficients.gather(2, index), weight.flatten(1)[:, None])
        pixels.addcmul_(part, row_weight.flatten(1)[:, None])
    return pixels.unflatten(2, (h, w))


def _taps(position: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """The four coefficients along a side that each position lies between: where, and how much each counts."""
    first = position.floor()
    t = position - first
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    return [(_mirrored(first.long() + step, side), weight / 6) for step, weight in enumerate(weights, -1)]


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Indices beyond the border as those of their mirror images; any from 0 on where that is not enough."""
    return (side - 1 - (side - 1 - index.abs()).abs()).clamp_min(0)


@cache
def _inverse_basis(side: int) -> Tensor:
    """The matrix that turns the pixels along a side into coefficients of the cubic spline through them."""
    pixels, basis = torch.arange(side), torch.zeros(side, side, dtype=torch.float64)
    for step, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        basis[pixels, _mirrored(pixels + step, side)] += weight
    return torch.linalg.inv(basis)


def _noise(x: Tensor, u: Tensor, means: Tensor, g: torch.Generator) -> Tensor:
    return x + 0.001 * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x)


_OPERATIONS: dict[str, Operation] = {"crop": _crop, "scale": _scale, "rotate": _rotate, "noise": _noise}
