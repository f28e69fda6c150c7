"""A whole image dataset as plain tensors, with the normalisation that made them, and subsets of it as row numbers.

``load("digits")`` needs no files. Other named datasets lie under ``root`` (or the folder DDANALYSIS_DATA names, or
``data``). A dataset of your own is one path: an ``.npz`` file with x_train, y_train, x_test and y_test (images uint8 or
in [0, 1]), or a folder with train/ and test/, each with one folder of images a class.
"""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddanalysis import checks, datasets
from ddanalysis import whitening as zca
from ddanalysis.seeding import generator
from ddanalysis.whitening import Whitening

Channels = tuple[float, ...]
Normalisation = tuple[Channels, Channels]

_MNIST: Normalisation = ((0.1307,), (0.3081,))
_CIFAR10: Normalisation = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR10_LABELS: Normalisation = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
_IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Mean and standard deviation in each paper's code, a dataset's default first: "dc" is Zhao et al. (DC, DSA, DM), "wang"
# Wang et al. 2018, "label-distillation" Bohdal et al. 2020 (where a source dataset takes the normalisation of its
# target), "mtt" Cazenavette et al. 2022. Every dataset also has "exact", computed where it is asked for, and "none".
NORMALISATIONS: dict[str, dict[str, Normalisation | None]] = {
    "mnist": {"dc": _MNIST, "wang": _MNIST, "label-distillation": _MNIST},
    "mnist_rgb": {"wang": ((0.1307,) * 3, (0.3081,) * 3)},
    "fashion_mnist": {"dc": ((0.2861,), (0.3530,))},
    "kmnist": {"label-distillation": _MNIST},
    "kuzushiji49": {"label-distillation": _MNIST},
    "kuzushiji49_published": {"label-distillation": _MNIST},
    "emnist_letters": {"label-distillation": _MNIST},
    "svhn": {
        "dc": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        "wang": ((0.4379, 0.4440, 0.4729), (0.1980, 0.2010, 0.1970)),
    },
    "cifar10": {
        "dc": _CIFAR10,
        "wang": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
        "label-distillation": _CIFAR10_LABELS,
    },
    "cifar100": {
        "dc": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        "what-is-dd-learning": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        "label-distillation": _CIFAR10_LABELS,
        "mtt": _CIFAR10,
    },
    "tiny_imagenet": {"dc": _IMAGENET},
    "cub200": {"label-distillation": _CIFAR10_LABELS, "imagenet": _IMAGENET},
    "voc": {"exact": None, "imagenet": _IMAGENET},
    "usps": {"exact": None, "wang": ((0.1597,), (0.2573,))},  # theirs is a copy of 28 x 28, with other statistics
    "usps28": {"wang": ((0.1597,), (0.2573,))},
}


@dataclass(frozen=True, eq=False)
class ImageData:
    """One dataset, normalised: x = (pixel - mean) / std in each channel, where pixels go from 0, black, to 1, white.

    With a ``whitening``, x * std + mean are not the pixels but the whitened images of them: :func:`whitened`.
    """

    name: str  # as every table prints it; a lossy copy says so
    train_x: Tensor  # (n, c, h, w) float32
    train_y: Tensor  # (n,) int64
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # one a channel
    std: tuple[float, ...]
    pixel_source: str  # where the pixels come from: "official pixels", "lossy jpeg copy", ...
    whitening: Whitening | None = None  # of both halves, fitted to the training images
    root: Path | None = None  # the folder it was looked for in

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        c, h, w = self.train_x.shape[1:]
        return c, h, w

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> "ImageData":
        """The same dataset with all its tensors on ``device``."""
        moved = {key: getattr(self, key).to(device) for key in ("train_x", "train_y", "test_x", "test_y")}
        return dataclasses.replace(self, **moved, whitening=self.whitening and self.whitening.to(device))

    def denormalise(self, x: Tensor) -> Tensor:
        """Pixels of normalised images (..., c, h, w), 1 = white; not clipped: a distilled image may exceed [0, 1].

        Where they are whitened that is undone too, by :meth:`Whitening.invert`.
        """
        if x.ndim < 3 or x.shape[-3] != len(self.mean):
            need = f"(..., {len(self.mean)}, h, w) is needed"
            raise ValueError(f"images to denormalise as {self.name} are of shape {tuple(x.shape)}: {need}")
        x = x * _per_channel(self.std, x) + _per_channel(self.mean, x)
        return x if self.whitening is None else self.whitening.invert(x.reshape(-1, *x.shape[-3:])).view(x.shape)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (n, c, h, w), 1 = white, in the space of these images: what :meth:`denormalise` undoes."""
        white = pixels if self.whitening is None else self.whitening.apply(pixels)
        return (white - _per_channel(self.mean, white)) / _per_channel(self.std, white)

    def fingerprint(self) -> str:
        """16 hex digits of a sha256 over images, labels, normalisation and whitening: equal exactly where the data
        are.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.mean, self.std)).encode())
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        if self.whitening is not None:
            digest.update(self.whitening.fingerprint.encode())
        return digest.hexdigest()[:16]


def load(
    dataset: str | Path,
    *,
    root: str | Path | None = None,
    normalisation: str | None = None,
    whitening: str | None = None,
    size: int | None = None,
    device: torch.device | str = "cpu",
    download: bool = False,
) -> ImageData:
    """A named dataset, or your own at the path ``dataset``, as tensors on ``device``.

    ``root`` defaults to the folder that DDANALYSIS_DATA names, else ``data``. ``normalisation`` is one of
    :func:`normalisations`, by default the first: "exact" takes the mean and standard deviation of the training pixels,
    "none" leaves pixels in [0, 1]. ``whitening``, one of :data:`ddanalysis.whitening.KINDS`, is fitted to the training
    pixels with the published regularisation, and takes the place of a normalisation: none but "none" may be given with
    it. ``size`` is the side, in pixels, to which datasets kept as image folders are squashed (cub200 and voc: 32 unless
    given). Datasets that torchvision can fetch are fetched only with ``download``.

    Raises ``FileNotFoundError`` where the data are not, saying where they were looked for and how to get them, and
    ``ValueError`` for anything unknown, damaged or unsuitable.
    """
    dataset, device = str(dataset), torch.device(device)
    datasets.check_request(dataset, size)
    if whitening is not None:
        checks.one_of("whitening", whitening, zca.KINDS)
    allowed = normalisations(dataset) if whitening is None else ["none"]
    normalisation = allowed[0] if normalisation is None else normalisation
    checks.one_of(f"normalisation of {'whitened ' if whitening else ''}{dataset}", normalisation, allowed)
    folder = Path(root or os.environ.get("DDANALYSIS_DATA") or "data").expanduser()
    pixels = datasets.read(dataset, folder, size=size, download=download)
    mean, std = _statistics(pixels, dataset, normalisation)
    images = ImageData(
        name=pixels.name,
        train_x=_normalise(pixels.train_x, mean, std).to(device),
        train_y=pixels.train_y.to(device),
        test_x=_normalise(pixels.test_x, mean, std).to(device),
        test_y=pixels.test_y.to(device),
        classes=pixels.classes,
        mean=mean,
        std=std,
        pixel_source=pixels.source,
        root=folder,
    )
    if whitening is None:
        return images
    regularisation = 100.0 if (dataset, whitening) == ("svhn", "per-image") else 0.1  # as published
    return whitened(images, zca.fit(whitening, images.train_x, regularisation))


def whitened(data: ImageData, whitening: Whitening) -> ImageData:
    """``data`` whitened and not normalised besides (mean 0, std 1), under a name that says so.

    Raises ``ValueError`` for data that are whitened already or of another shape.
    """
    if data.whitening is not None:
        raise ValueError(f"the dataset {data.name} is whitened already: load it without whitening")
    train_x, test_x = (whitening.apply(data.denormalise(x)) for x in (data.train_x, data.test_x))
    own: dict[str, Any] = {"name": f"{data.name}-zca-{whitening.kind}", "whitening": whitening}
    mean, std = (0.0,) * len(data.mean), (1.0,) * len(data.std)
    return dataclasses.replace(data, **own, train_x=train_x, test_x=test_x, mean=mean, std=std)


def normalisations(dataset: str) -> list[str]:
    """The names :func:`load` accepts as the normalisation of ``dataset``, its default first."""
    return list(dict.fromkeys([*NORMALISATIONS.get(dataset, {}), "exact", "none"]))


def hold_out(data: ImageData, fraction: float, seed: int) -> tuple[ImageData, tuple[Tensor, Tensor]]:
    """Set ``fraction`` of the training images of each class aside for validation.

    Returns the dataset without them (training images in their old order, normalisation and whitening as they were) and
    the held-out (x, y), class-major. Raises ``ValueError`` unless 0 < fraction < 1 and every class gives at least one
    image.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction!r}: a hold-out needs one between 0 and 1, both excluded")
    rows = _share_rows(data.train_y, fraction, seed, "hold out")
    keep = torch.ones(len(data.train_y), dtype=torch.bool, device=rows.device)
    keep[rows] = False
    rest = dataclasses.replace(data, train_x=data.train_x[keep], train_y=data.train_y[keep])
    return rest, (data.train_x[rows], data.train_y[rows])


def class_rows(y: Tensor, c: int) -> Tensor:
    """The rows (int64, ascending) of ``y`` (n,) that are of class ``c``; ``ValueError`` if there is none."""
    rows = (y == c).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError(f"class {c} has no images among these {len(y)}")
    return rows


def balanced_rows(y: Tensor, per_class: int, seed: int) -> Tensor:
    """``per_class`` rows of each class of ``y`` (n,), drawn without replacement, class-major: (C * per_class,) int64.

    They are the first of a permutation of each class that depends on ``seed`` alone, so that of two draws with one seed
    the smaller lies within the larger. Raises ``ValueError`` for a class with too few images.
    """
    checks.whole("per_class", per_class)
    counts = _class_counts(y)
    for c, count in enumerate(counts):
        if count < per_class:
            raise ValueError(f"class {c} has {count} images: per_class={per_class} cannot be drawn")
    return _first_rows(y, [per_class] * len(counts), seed, "balanced rows")


def fraction_rows(y: Tensor, fraction: float, seed: int) -> Tensor:
    """int(n_c * ``fraction``) of the n_c rows of each class, class-major, int64: a subset of the published model pool.

    Nested as those of :func:`balanced_rows`. Raises ``ValueError`` unless 0 < fraction <= 1 and each class gives one.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}: it must be above 0 and at most 1")
    return _share_rows(y, fraction, seed, "fraction rows")


def _share_rows(y: Tensor, fraction: float, seed: int, purpose: str) -> Tensor:
    counts = _class_counts(y)
    for c, count in enumerate(counts):
        if int(count * fraction) < 1:
            raise ValueError(f"class {c} has {count} images: fraction {fraction:g} of them is less than one")
    return _first_rows(y, [int(count * fraction) for count in counts], seed, purpose)


def _class_counts(y: Tensor) -> list[int]:
    if y.ndim != 1 or y.dtype != torch.int64 or len(y) == 0 or int(y.min()) < 0:
        need = "int64 class ids from 0, (n,) with n >= 1, are needed"
        raise ValueError(f"labels of shape {tuple(y.shape)} and type {y.dtype}: {need}")
    return torch.bincount(y.cpu()).tolist()


def _first_rows(y: Tensor, take: list[int], seed: int, purpose: str) -> Tensor:
    """The first ``take[c]`` of a seeded permutation of each class c; drawn on the CPU, for the same on every device."""
    labels, parts = y.cpu(), []
    for c, k in enumerate(take):
        rows = class_rows(labels, c)
        parts.append(rows[torch.randperm(len(rows), generator=generator(seed, purpose, c))[:k]])
    return torch.cat(parts).to(y.device)


def _statistics(pixels: datasets.Pixels, dataset: str, normalisation: str) -> Normalisation:
    """The mean and standard deviation of each channel that ``normalisation`` stands for."""
    if normalisation == "none":
        channels = pixels.train_x.shape[1]
        return (0.0,) * channels, (1.0,) * channels
    return NORMALISATIONS.get(dataset, {}).get(normalisation) or _moments(pixels.name, pixels.train_x)


def _moments(name: str, pixels: Tensor) -> Normalisation:
    """Mean and (population) standard deviation of each channel, scale [0, 1]; sums in float64, exact for uint8."""
    if (pixels.amin((0, 2, 3)) == pixels.amax((0, 2, 3))).any():
        raise ValueError(f'{name}: a channel of the training pixels is constant: only normalisation="none" suits it')
    scale = 255 if pixels.dtype == torch.uint8 else 1
    total = torch.zeros(pixels.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in pixels.split(256):  # small enough to stay in the cache
        chunk = chunk.double()
        total += chunk.sum((0, 2, 3))
        squares += chunk.square().sum((0, 2, 3))
    n = pixels.numel() // pixels.shape[1]
    mean = total / n
    std = (squares / n - mean.square()).sqrt()
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())


def _normalise(pixels: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Float32 (x - mean) / std, by the operations of torchvision's ToTensor and Normalize: bit by bit as theirs."""
    x = pixels.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if pixels.dtype == torch.uint8:
        x.div_(255)
    return x.sub_(_per_channel(mean, x)).div_(_per_channel(std, x))


def _per_channel(values: Channels, x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1)
