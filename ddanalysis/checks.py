"""Tiny named checks: each raises a ``ValueError`` that says what was wrong and what is allowed."""

from collections.abc import Iterable

import torch


def one_of(what: str, value: object, allowed: Iterable[object]) -> None:
    """``value`` is among ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}: allowed are {', '.join(map(str, allowed))}")


def at_least(what: str, value: float, lowest: float) -> None:
    """``value`` is a number no smaller than ``lowest``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= lowest:
        raise ValueError(f"{what} is {value!r}: it must be a number of at least {lowest}")


def whole(what: str, value: int, lowest: int = 1) -> None:
    """``value`` is an integer no smaller than ``lowest``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{what} is {value!r}: it must be a whole number of at least {lowest}")


def images(what: str, x: torch.Tensor, shape: tuple[int, ...] | None = None) -> None:
    """``x`` is a finite float batch of images (n, c, h, w), n >= 1, each of ``shape`` (c, h, w) if given."""
    if x.ndim != 4 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            f"{what} have shape {tuple(x.shape)} and type {x.dtype}: floating-point (n, c, h, w), n >= 1, is needed"
        )
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"{what} are of shape {tuple(x.shape[1:])}: {tuple(shape)} is needed")
    if not torch.isfinite(torch.stack(torch.aminmax(x.detach()))).all():  # NaN passes through both ends
        bad = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"{what} hold NaN or infinite pixels, first in image {bad}")


def labels(what: str, y: torch.Tensor, n: int, n_classes: int) -> None:
    """``y`` holds n class ids (int64, in [0, n_classes)) or n soft rows (floating point, (n, n_classes), finite)."""
    if len(y) != n:
        raise ValueError(f"{what}: {len(y)} labels for {n} images")
    if y.is_floating_point():
        if tuple(y.shape) != (n, n_classes) or not torch.isfinite(y).all():
            raise ValueError(f"{what}: soft labels of shape {tuple(y.shape)}: finite ({n}, {n_classes}) is needed")
    elif y.dtype != torch.int64 or y.ndim != 1:
        raise ValueError(f"{what}: labels of type {y.dtype} and shape {tuple(y.shape)}: int64 ({n},) is needed")
    elif int(y.min()) < 0 or int(y.max()) >= n_classes:
        raise ValueError(f"{what}: labels from {int(y.min())} to {int(y.max())}: allowed are 0 to {n_classes - 1}")
