"""The three published ZCA whitenings of images, each with its inverse: sets made under one are invalid under another.

All of them flatten an image to d = c h w numbers, prepare it, and multiply it by M = (C + r I)^(-1/2), where C is the
covariance of the prepared training images. They differ in all the rest:

========= ========================================== ===================== =============================
kind      an image prepared                          C                     r
========= ========================================== ===================== =============================
kornia    less the mean image                        over n - 1            regularisation
per-image less its own mean, over its own length     over n, about 0       regularisation * trace(C) / d
frepo     less the mean image, over the deviation    over n                regularisation * trace(C) / d
          of the channel
========= ========================================== ===================== =============================

``kornia`` is what MTT, TESLA and DD-Ranking use, ``per-image`` what BPTT (Remember the Past), RaT-BPTT and KIP use; the
regularisation is 0.1 everywhere but for SVHN in BPTT, where it is 100. FRePo's block form for images of 128 pixels is
not here. Images are pixels in [0, 1]: of the three only ``kornia`` would notice another scale.

``per-image`` whitening forgets the brightness and contrast of every image. Undone, an image gets those of an average
training image; so the pixels of a distilled image can be shown, but whitening them gives its direction, not its length.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddanalysis import checks

KINDS = ("kornia", "per-image", "frepo")
TOLERANCE = 1e-4
"""How far two fits may be apart, in units of their largest entry: far above rounding, far below another dataset."""
_CHUNK = 2**23  # numbers in float64 at a time
_TENSORS = ("matrix", "mean")
_SINGULAR = 1e-12  # eigenvalues below this share of the largest are rounding


@dataclass(frozen=True, eq=False)
class Whitening:
    """A fitted whitening, as :func:`fit` gives it. Making one checks its fields, with ``ValueError``.

    ``matrix`` (d, d) float32, symmetric. ``mean`` (c, h, w) float32 and ``std``, one number a channel, are those of the
    preparation, 1 for ``kornia``'s std; for ``per-image`` they are brightness and contrast of an average training
    image, used in undoing alone. What is applied and undone is computed in float64, rounded once.
    """

    kind: str
    regularisation: float
    matrix: Tensor
    mean: Tensor
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        checks.one_of("whitening", self.kind, KINDS)
        checks.at_least("regularisation", self.regularisation, 0)
        for name in _TENSORS:
            t = getattr(self, name)
            if not isinstance(t, Tensor) or t.dtype != torch.float32 or not torch.isfinite(t).all():
                raise ValueError(f"the {name} of a whitening must be a finite float32 tensor")
        d = self.mean.numel()
        if self.mean.ndim != 3 or tuple(self.matrix.shape) != (d, d):
            shapes = f"{tuple(self.matrix.shape)} and a mean of shape {tuple(self.mean.shape)}"
            raise ValueError(f"a whitening has a matrix of shape {shapes}: (d, d) and (c, h, w), d = c h w, are needed")
        _check_deviations(self.std, len(self.mean))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        c, h, w = self.mean.shape
        return c, h, w

    @property
    def name(self) -> str:
        """Short, for errors and tables: ``kornia (0.1)``."""
        return f"{self.kind} ({self.regularisation:g})"

    @cached_property
    def inverse(self) -> Tensor:
        """The inverse of ``matrix``, (d, d) float64."""
        return torch.linalg.inv(self.matrix.double())

    def apply(self, pixels: Tensor) -> Tensor:
        """Whitened images (n, c, h, w) of ``pixels`` of the same shape, in the type and on the device of ``pixels``."""
        checks.images("pixels to whiten", pixels, self.shape)
        if self.kind == "per-image":
            _check_varied(pixels)
        matrix = self.matrix.to(pixels.device, torch.float64)
        return _in_chunks(pixels, lambda chunk, _: self._prepared(chunk) @ matrix)

    def invert(self, whitened: Tensor, scales: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The pixels of ``whitened`` images (n, c, h, w); distilled ones may lie outside [0, 1].

        Of ``per-image`` whitening the very pixels come back with their ``scales`` (of :meth:`scales`), without them
        images of average brightness and contrast. The other kinds take no scales.
        """
        checks.images("whitened images", whitened, self.shape)
        if scales is not None:
            self._check_scales(scales, len(whitened))
        inverse, mean = (t.to(whitened.device, torch.float64) for t in (self.inverse, self.mean))
        std = torch.tensor(self.std, dtype=torch.float64, device=whitened.device).view(-1, 1, 1)

        def undone(chunk: Tensor, rows: slice) -> Tensor:
            flat = chunk.double().flatten(1) @ inverse
            if scales is not None:
                means, lengths = (t[rows, None].to(flat) for t in scales)
                return flat * lengths + means
            if self.kind == "per-image":
                flat = _unit(flat) * math.sqrt(flat.shape[1])
            return flat.view_as(chunk) * std + mean

        return _in_chunks(whitened, undone)

    def scales(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What ``per-image`` whitening takes out of each image: its mean and its length without it, (n,) float64."""
        if self.kind != "per-image":
            raise ValueError(f"{self.name} whitening is undone without scales: only per-image whitening has them")
        checks.images("pixels to whiten", pixels, self.shape)
        flat = pixels.double().flatten(1)
        means = flat.mean(1)
        return means, (flat - means[:, None]).norm(dim=1)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a sha256 over everything it is: equal exactly where two are, bit by bit."""
        digest = hashlib.sha256(repr(self.describe()).encode())
        for name in _TENSORS:
            digest.update(getattr(self, name).cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What is not a tensor, for the description of a file."""
        values = {"kind": self.kind, "regularisation": float(self.regularisation)}
        return values | {"shape": list(self.shape), "std": list(self.std)}

    def tensors(self) -> dict[str, Tensor]:
        """What is, by the names they have beside the tensors of a set; the inverse follows from them."""
        return {f"whitening.{name}": getattr(self, name) for name in _TENSORS}

    def to(self, device: torch.device | str) -> "Whitening":
        """The same whitening on ``device``; itself where it is there already."""
        if self.matrix.device == self.mean.device == torch.device(device):
            return self
        return dataclasses.replace(self, matrix=self.matrix.to(device), mean=self.mean.to(device))

    def _prepared(self, pixels: Tensor) -> Tensor:
        return _prepared(self.kind, pixels, self.mean, self.std)

    def _check_scales(self, scales: tuple[Tensor, Tensor], n: int) -> None:
        if self.kind != "per-image":
            raise ValueError(f"{self.name} whitening is undone without scales: only per-image whitening has them")
        if [tuple(t.shape) for t in scales] != [(n,), (n,)]:
            shapes = " and ".join(str(tuple(t.shape)) for t in scales)
            raise ValueError(f"scales of shape {shapes} for {n} images: two tensors of shape ({n},) are needed")


def fit(kind: str, pixels: Tensor, regularisation: float = 0.1, std: Sequence[float] | None = None) -> Whitening:
    """The whitening of the training images ``pixels`` (n, c, h, w), floating point in [0, 1], by a ``kind`` of KINDS.

    ``std``: the deviations of the channels for ``frepo``, by default those of the pixels; its code has them rounded.
    Raises ``ValueError`` for pixels that are none, and where the covariance is singular and not regularised.
    """
    checks.one_of("whitening", kind, KINDS)
    checks.at_least("regularisation", regularisation, 0)
    checks.images("pixels to whiten", pixels)
    low, high = (float(v) for v in torch.aminmax(pixels))
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(f"pixels to whiten go from {low:.3g} to {high:.3g}: pixels in [0, 1] are needed: denormalise")
    if std is not None and kind != "frepo":
        raise ValueError(f"std is {std!r}: {kind} whitening divides by no deviation of a channel")
    if kind == "per-image":
        _check_varied(pixels)
    mean, deviations = _centre(kind, pixels, std)
    covariance = _covariance(kind, pixels, mean, deviations)
    matrix = _inverse_root(kind, covariance, regularisation, len(pixels))
    return Whitening(kind, float(regularisation), matrix.float(), mean, deviations)


def from_tensors(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> Whitening:
    """The whitening of its :meth:`Whitening.tensors` and :meth:`Whitening.describe`; other entries are left out.

    Raises ``ValueError`` if they are not those of a whitening.
    """
    wanted = [*(f"whitening.{name}" for name in _TENSORS), "kind", "regularisation", "shape", "std"]
    if missing := [name for name in wanted if name not in {*tensors, *description}]:
        raise ValueError(f"the whitening lacks {', '.join(missing)}")
    parts = {name: tensors[f"whitening.{name}"] for name in _TENSORS}
    if list(parts["mean"].shape) != list(description["shape"]):
        raise ValueError(f"the whitening is for {description['shape']}, its mean is of {tuple(parts['mean'].shape)}")
    std = tuple(float(v) for v in description["std"])
    return Whitening(description["kind"], description["regularisation"], std=std, **parts)


def alike(ours: Whitening | None, theirs: Whitening | None) -> bool:
    """Whether both are one whitening, or both None, not whitened.

    Fits of the same images on two machines differ by rounding and are alike, those of other images are not.
    """
    if ours is None or theirs is None or ours is theirs:
        return ours is theirs
    if (ours.name, ours.shape) != (theirs.name, theirs.shape):
        return False
    deviations = [torch.tensor(one.std) for one in (ours, theirs)]
    pairs = [(ours.matrix, theirs.matrix.to(ours.matrix.device)), (ours.mean, theirs.mean.to(ours.mean.device))]
    near = [(a - b).abs().max() <= TOLERANCE * a.abs().max() for a, b in (*pairs, (deviations[0], deviations[1]))]
    return all(map(bool, near))


def fits(here: str, ours: Whitening | None, there: str, theirs: Whitening | None) -> None:
    """Refuse two things, named ``here`` and ``there``, that are not whitened :func:`alike`: a ``ValueError``."""
    if alike(ours, theirs):
        return
    names = ["not whitened" if one is None else f"whitened by {one.name}" for one in (ours, theirs)]
    if names[0] != names[1] or ours is None or theirs is None:
        raise ValueError(f"{here} is {names[0]}, {there} is {names[1]}: they must be in one space")
    if ours.shape != theirs.shape:
        raise ValueError(f"{here} is whitened as images of {ours.shape}, {there} of {theirs.shape}")
    raise ValueError(f"{here} and {there} are both {names[0]}, but fitted to other images: they are not alike")


def _centre(kind: str, pixels: Tensor, std: Sequence[float] | None) -> tuple[Tensor, tuple[float, ...]]:
    """Mean (c, h, w), float32, and std of a :class:`Whitening`."""
    c = pixels.shape[1]
    mean = pixels.mean(0, dtype=torch.float64)
    if kind == "per-image":
        variances = [part.double().flatten(1).var(1, correction=0) for part in pixels.split(_rows(pixels))]
        return torch.full_like(mean, float(mean.mean())).float(), (float(torch.cat(variances).mean().sqrt()),) * c
    if kind == "kornia":
        return mean.float(), (1.0,) * c
    if std is not None:
        _check_deviations(std, c)
        return mean.float(), tuple(float(v) for v in std)
    centre = mean.mean((1, 2)).view(-1, 1, 1)
    squares = sum((part.double() - centre).square().sum((0, 2, 3)) for part in pixels.split(_rows(pixels)))
    values = (torch.as_tensor(squares) * c / pixels.numel()).sqrt().tolist()
    if not all(values):
        raise ValueError(
            "a channel of the pixels to whiten is constant: frepo whitening cannot divide by its deviation"
        )
    return mean.float(), tuple(values)


def _covariance(kind: str, pixels: Tensor, mean: Tensor, std: tuple[float, ...]) -> Tensor:
    """Of the prepared images, (d, d) float64."""
    if kind == "kornia" and len(pixels) < 2:
        raise ValueError("1 image to fit a whitening to: kornia whitening needs at least 2")
    total = torch.zeros((mean.numel(),) * 2, dtype=torch.float64, device=pixels.device)
    for part in pixels.split(_rows(pixels)):
        flat = _prepared(kind, part, mean, std)
        total.addmm_(flat.T, flat)
    return total / (len(pixels) - (kind == "kornia"))


def _inverse_root(kind: str, covariance: Tensor, regularisation: float, n: int) -> Tensor:
    """(C + r I)^(-1/2), float64, exactly symmetric."""
    values, vectors = torch.linalg.eigh(covariance)
    added = regularisation if kind == "kornia" else regularisation * covariance.trace() / len(covariance)
    values = values.clamp(min=0) + added
    if not float(values[0]) > _SINGULAR * float(values[-1]):
        size = f"{n} images of {len(values)} numbers"
        raise ValueError(f"the covariance of {size} is singular: a regularisation above {regularisation:g} is needed")
    matrix = (vectors * values.rsqrt()) @ vectors.T
    return (matrix + matrix.T) / 2


def _prepared(kind: str, pixels: Tensor, mean: Tensor, std: tuple[float, ...]) -> Tensor:
    """Flat images (n, d), float64, that the matrix is fitted to and applied to."""
    x = pixels.double()
    if kind == "per-image":
        return _unit(x.flatten(1))
    deviations = torch.tensor(std, dtype=torch.float64, device=x.device).view(-1, 1, 1)
    return ((x - mean.to(x)) / deviations).flatten(1)


def _unit(flat: Tensor) -> Tensor:
    """Every row less its mean, over its length; 0 where it has one value throughout."""
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)


def _check_deviations(std: Sequence[float], channels: int) -> None:
    if len(std) != channels or not all(math.isfinite(v) and v > 0 for v in std):
        raise ValueError(f"std is {tuple(std)}: {channels} finite positive numbers are needed, one for each channel")


def _check_varied(x: Tensor) -> None:
    """No image is of one value throughout: it has no length to be divided by."""
    low, high = torch.aminmax(x.flatten(1), dim=1)
    if (low == high).any():
        image = int((low == high).nonzero()[0])
        raise ValueError(f"image {image} has one value throughout: per-image whitening cannot divide by its length")


def _in_chunks(x: Tensor, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """``function`` of the images and their row numbers, some at a time, in the type and shape of ``x``."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for rows in _slices(len(x), _rows(x)):
        out[rows] = function(x[rows], rows).view(-1, *x.shape[1:]).to(x.dtype)
    return out


def _slices(n: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, n, step))


def _rows(x: Tensor) -> int:
    """How many images of ``x`` are one chunk."""
    return max(1, _CHUNK // x[0].numel())
