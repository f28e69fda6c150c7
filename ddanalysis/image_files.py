"""Image files, one folder a class, decoded into arrays."""

from pathlib import Path

import numpy as np
from PIL import Image

from ddanalysis import checks

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
Files = list[tuple[Path, int]]  # images and their class ids


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of the class folders in ``folder``, sorted: their order is that of the class ids."""
    paths = folder.iterdir() if folder.is_dir() else ()
    names = sorted(path.name for path in paths if path.is_dir() and not path.name.startswith("."))
    if not names:
        need = "train/ and test/ must each hold one folder of images a class"
        raise FileNotFoundError(f"no class folders in {folder}: {need}")
    return tuple(names)


def by_class(folder: Path, classes: tuple[str, ...]) -> Files:
    """Every image in or below the folder of its class, class-major and sorted by path."""
    for name in class_names(folder):
        checks.one_of(f"class folder in {folder}", name, classes)
    found = ((path, c) for c, name in enumerate(classes) for path in sorted((folder / name).rglob("*")))
    return [(path, c) for path, c in found if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]


def decode(folder: Path, train: Files, test: Files, size: int | None, mode: str | None = None) -> dict[str, np.ndarray]:
    """x_train and x_test, uint8 (n, h, w) or (n, h, w, 3), and y_train and y_test, of the files of one dataset.

    ``size`` squashes every image to size x size (bilinear); without it they must all have one size. ``mode`` is "L"
    (grey) or "RGB"; without it, grey if all images are. Raises ``ValueError`` for a file that is no 8-bit image.
    """
    for half, files in (("training", train), ("test", test)):
        if not files:
            raise ValueError(f"{folder} holds no {half} images")
    if size is None or mode is None:
        sizes, modes = _headers([path for path, _ in train + test])
        if size is None and len(sizes) > 1:
            seen = ", ".join(f"{w} x {h}" for w, h in sorted(sizes)[:4]) + (", ..." if len(sizes) > 4 else "")
            raise ValueError(f"{folder} holds images of {len(sizes)} sizes ({seen}): one size, or size=, is needed")
        mode = mode or ("L" if modes <= {"1", "L"} else "RGB")
    arrays = {}
    for split, files in (("train", train), ("test", test)):
        arrays[f"x_{split}"] = np.stack([_image(path, size, mode) for path, _ in files])
        arrays[f"y_{split}"] = np.array([c for _, c in files])
    return arrays


def _headers(paths: list[Path]) -> tuple[set[tuple[int, int]], set[str]]:
    """The sizes (width, height) and colour modes that occur."""
    sizes, modes = set(), set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
                modes.add(image.mode)
        except OSError as error:
            raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return sizes, modes


def _image(path: Path, size: int | None, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{path} has more than 8 bits a pixel and channel (mode {image.mode}): 8 are needed")
            picture = image.convert(mode)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return np.asarray(picture if size is None else picture.resize((size, size), Image.Resampling.BILINEAR))
