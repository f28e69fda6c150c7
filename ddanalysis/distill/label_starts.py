"""What the labels of a set are before they are learned (Sucholutsky and Schonlau 2019, and their code).

A start is a row of C numbers an image. Rows that belong to a class (one-hot, smoothed, orthogonal, distances) are the
same for all of its images; random ones are drawn for each. Rows of distances give another class j, beside the 1 of the
image's own class i, the weight 1 - d_ij / max d, so that classes that are alike share; "inverted", it is d_ij / max d.
Distances are those between the classes' names as word vectors (Euclidean), or between the mean images of the training
classes, in pixels: mean squared error, that over the power of the first image (NRMSE, which is not symmetric), or 1
minus the structural similarity.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks
from ddanalysis.data import ImageData, class_rows
from ddanalysis.seeding import generator

OF_A_CLASS = ("one-hot", "smoothed", "orthogonal", "zeros", "ones")
RANDOM = ("normal", "uniform", "binary")
OF_DISTANCES = ("names", "means-mse", "means-nrmse", "means-ssim")
INVERTED = "-inverted"
STARTS = (*OF_A_CLASS, *RANDOM, "file", *OF_DISTANCES, *(name + INVERTED for name in OF_DISTANCES))
"""Every start by name."""

FROM_FILES = ("file", "names", "names" + INVERTED)
"""Those that read a file."""

SMOOTHING = 0.1
"""What a smoothed label gives to all classes together."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def start(name: str, data: ImageData, classes: Sequence[int], per_class: int, seed: int, file: str = "") -> Tensor:
    """Labels (n, C) of ``per_class`` images of each of ``classes``, class by class, of the data's type and device.

    "normal", "uniform" (0 to 1) and "binary" (0 or 1) are drawn by ``seed``, as is the rotation that "orthogonal" takes
    its rows from. "file" reads a text file of C numbers a line, a line for each of the ``classes`` or for each image;
    "names" reads word vectors, a word and its numbers a line, as GloVe's. Raises ``ValueError`` for an unknown name, a
    file that is missing where one is needed, given where none is, or does not fit.
    """
    checks.one_of("label_start", name, STARTS)
    if (name in FROM_FILES) != bool(file):
        need = "a file is needed" if name in FROM_FILES else "it reads none"
        raise ValueError(f"label_start is {name!r} and label_file {file!r}: {need}")
    if name in RANDOM:
        rows = _random(name, len(classes) * per_class, data.n_classes, seed)
    elif name == "file":
        rows = _lines(Path(file), len(classes), per_class, data.n_classes)
    else:
        rows = _of_every_class(name, data, seed, file)[list(classes)].repeat_interleave(per_class, 0)
    return rows.to(data.train_x.device, data.train_x.dtype)


def _random(name: str, n: int, c: int, seed: int) -> Tensor:
    g = generator(seed, "labels", name)
    if name == "normal":
        return torch.randn(n, c, generator=g)
    drawn = torch.rand(n, c, generator=g)
    return drawn if name == "uniform" else (drawn < 0.5).float()


def _of_every_class(name: str, data: ImageData, seed: int, file: str) -> Tensor:
    """The row (C, C) of each class."""
    c, plain = data.n_classes, name.removesuffix(INVERTED)
    if plain in OF_DISTANCES:
        d = _name_distances(data.classes, Path(file)) if plain == "names" else _mean_distances(plain, data)
        return shared_out(d, inverted=plain != name)
    if name == "orthogonal":
        return rotation(c, seed)
    if name in ("zeros", "ones"):
        return torch.full((c, c), float(name == "ones"))
    share = SMOOTHING if name == "smoothed" else 0.0
    return (1 - share) * torch.eye(c) + share / c


def rotation(c: int, seed: int) -> Tensor:
    """A random orthogonal matrix (c, c) float64, uniform over all (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(c, c, generator=generator(seed, "labels", "orthogonal"), dtype=torch.float64))
    return q * r.diagonal().sign()


def shared_out(d: Tensor, inverted: bool = False) -> Tensor:
    """Rows of labels from distances (C, C) of classes, not all 0: 1 on the diagonal, 1 - d / max d elsewhere."""
    if not float(d.max()) > 0:
        raise ValueError("all classes are at distance 0 of each other: labels cannot tell them apart")
    far = d / d.max()
    return (far if inverted else 1 - far).fill_diagonal_(1.0)


def _lines(path: Path, classes: int, per_class: int, c: int) -> Tensor:
    """The labels in a text file."""
    rows = [[_number(word, path) for word in re.split(r"[\s,]+", line.strip())] for line in _text(path) if line.strip()]
    wrong = next((len(row) for row in rows if len(row) != c), None)
    if wrong is not None:
        raise ValueError(f"{path} has a line of {wrong} numbers: {c}, one a class, are needed")
    if len(rows) not in (classes, classes * per_class):
        need = f"{classes}, one a labelled class, or {classes * per_class}, one an image, are needed"
        raise ValueError(f"{path} has {len(rows)} lines of labels: {need}")
    table = torch.tensor(rows, dtype=torch.float64)
    return table if len(rows) == classes * per_class else table.repeat_interleave(per_class, 0)


def _text(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"label_file is {str(path)!r}: there is no such file")
    return path.read_text(encoding="utf-8").splitlines()


def _number(word: str, path: Path) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"{path} holds {word!r} where a number is needed") from error


def _name_distances(names: Sequence[str], path: Path) -> Tensor:
    """Euclidean distances (C, C) float64 of the names' vectors; that of several words is their mean.

    A digit that has no vector is looked up by its English name.
    """
    words = [re.findall(r"[a-z]+|\d", name.lower()) for name in names]
    wanted = {word for own in words for word in own} | set(DIGITS)
    lines = (line.split() for line in _text(path))
    found = {first: [_number(w, path) for w in rest] for first, *rest in filter(None, lines) if first in wanted}
    vectors = []
    for name, own in zip(names, words, strict=True):
        known = [found.get(word) or found.get(_spelt(word)) for word in own]
        if not known or None in known:
            raise ValueError(f"{path} has no vector for the class {name!r}: every word of it is needed")
        vectors.append(torch.tensor(known, dtype=torch.float64).mean(0))
    return torch.cdist(torch.stack(vectors)[None], torch.stack(vectors)[None], compute_mode=_EXACT)[0]


_EXACT = "donot_use_mm_for_euclid_dist"


def _spelt(word: str) -> str:
    return DIGITS[int(word)] if word.isdigit() else word


def _mean_distances(name: str, data: ImageData) -> Tensor:
    """Distances (C, C) float64 of the classes' mean training images, in pixels."""
    means = [data.train_x[class_rows(data.train_y, c)].double().mean(0) for c in range(data.n_classes)]
    pixels = data.denormalise(torch.stack(means))
    of = MEASURES[name]
    return torch.stack([torch.stack([of(a, b) for b in pixels]) for a in pixels])


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of two images (c, h, w)."""
    return (a - b).square().mean()


def nrmse(a: Tensor, b: Tensor) -> Tensor:
    """The norm of the difference of two images over the norm of the first."""
    return (a - b).norm() / a.norm()


def ssim(a: Tensor, b: Tensor, window: int = 7, scale: float = 1.0) -> Tensor:
    """The structural similarity (Wang et al. 2004) of two images (c, h, w) with pixels from 0 to ``scale``.

    The mean over channels and all whole windows of equal weights, with unbiased variances. Raises ``ValueError`` for
    images smaller than a window.
    """
    if min(a.shape[-2:]) < window:
        raise ValueError(f"images are {a.shape[-2]} x {a.shape[-1]}: structural similarity needs {window} x {window}")

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1)

    unbiased, c1, c2 = window**2 / (window**2 - 1), (0.01 * scale) ** 2, (0.03 * scale) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, both = (
        unbiased * (mean(x * y) - mx * my) for x, y, mx, my in ((a, a, ma, ma), (b, b, mb, mb), (a, b, ma, mb))
    )
    each = (2 * ma * mb + c1) * (2 * both + c2) / ((ma.square() + mb.square() + c1) * (va + vb + c2))
    return each.mean()


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "means-mse": mse,
    "means-nrmse": nrmse,
    "means-ssim": lambda a, b: 1 - ssim(a, b),
}
"""How far apart two mean images are."""
