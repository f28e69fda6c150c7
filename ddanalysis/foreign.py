"""Files of other programs: opened without running anything in them, and what they hold made a :class:`DistilledSet`.

Whatever the format, only numbers, text and containers are read; what is missing comes from :class:`Provenance`; every
refusal is a ``ValueError`` that names the file.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

import h5py
import numpy as np
import torch
from torch import Tensor

from ddanalysis import checks
from ddanalysis.distilled import DistilledSet, renormalise
from ddanalysis.whitening import Whitening


class Provenance(TypedDict, total=False):
    """What a published file leaves out, by the fields of :class:`DistilledSet`.

    ``mean`` and ``std``, the normalisation the set was distilled under, must be given, or the ``whitening``, beside
    which they are 0 and 1. No layout says whether its images are whitened: without one they are taken as not.
    ``n_classes`` is taken from the labels if it is not given, ``ipc`` from the number of images. None is the same as
    not given.
    """

    mean: Sequence[float] | None
    std: Sequence[float] | None
    whitening: Whitening | None
    n_classes: int | None
    method: str | None
    dataset: str | None
    ipc: int | None
    network: str | None
    seed: int | None
    order: Tensor | None
    settings: dict[str, Any] | None


# NumPy moved its core between versions 1 and 2, and a pickle holds the name of its writer's.
_NUMBERS: list[Any] = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")),
]
_NO_LABELS = (torch.bool, torch.complex64, torch.complex128)


# ---- opening a file


def unpickle(path: Path | str) -> Any:
    """What ``torch.save`` wrote, on the CPU; a ``ValueError`` if it is damaged or asks for more than data."""
    path = _file(path)
    whole = io.BytesIO(path.read_bytes())  # so that what damage makes of it cannot look like an error of the disk
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(whole, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path} holds {found[1]}, which would have to be unpickled; refused") from None
        raise ValueError(f"{path} is damaged or was not written by torch.save") from error


def npz(path: Path | str) -> dict[str, Tensor]:
    """Every array of a file that ``np.savez`` wrote; arrays of Python objects, which are pickles, are refused."""
    path = _file(path)
    whole = io.BytesIO(path.read_bytes())
    try:
        with np.load(whole, allow_pickle=False) as file:
            return {name: _tensor(file[name]) for name in file.files}
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(f"{path} is damaged or no .npz file of plain numbers: {error}") from error


def hdf5(path: Path | str, names: Sequence[str]) -> dict[str, Tensor]:
    """Those datasets of an HDF5 file that are among ``names``; none that lies in another file is followed."""
    path = _file(path)
    whole = io.BytesIO(path.read_bytes())
    try:
        with h5py.File(whole, "r") as file:
            return {name: _tensor(_dataset(file, name)[()]) for name in names if name in file}
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is damaged or no HDF5 file of plain numbers: {error}") from error


def json_object(path: Path | str) -> dict[str, Any]:
    """The object that a JSON file holds."""
    path = _file(path)
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no JSON file: {error}") from error
    if not isinstance(held, dict):
        raise ValueError(f"{path} holds {in_words(held)}: a JSON object is needed")
    return held


def _file(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return path


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    held = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(held, h5py.Dataset) or held.external or held.is_virtual:
        raise ValueError(f"{name!r} is no dataset of the file itself")
    return held


def _tensor(array: Any) -> Tensor:
    """A NumPy array or number of either byte order as a tensor."""
    array = np.asarray(array)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


# ---- what it holds as a set


def assemble(path: Path | str, x: object, y: object, lr: object, provenance: Provenance) -> DistilledSet:
    """A :class:`DistilledSet` of what a file held, every refusal naming the file."""
    given: dict[str, Any] = {name: value for name, value in provenance.items() if value is not None}
    given["mean"], given["std"] = _normalisation(path, provenance)
    try:
        x, y = floats("images", x), _labels(y)
        if "n_classes" not in given:
            given["n_classes"] = y.shape[1] if y.ndim == 2 else int(y.max()) + 1
        checks.whole("n_classes", given["n_classes"], 2)
        if "ipc" not in given:
            given["ipc"] = _images_per_class(x, given["n_classes"])
        rates = None if lr is None else floats("learning rates", lr).reshape(-1)
        return DistilledSet(x=x, y=y, learning_rates=rates, **{"method": "", "dataset": "", **given})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def assemble_pixels(path: Path | str, x: object, y: object, lr: object, provenance: Provenance) -> DistilledSet:
    """:func:`assemble` for a file of pixels, 1 = white: they are whitened and normalised as ``provenance`` has it."""
    mean, std = _normalisation(path, provenance)
    c = x.shape[1] if isinstance(x, Tensor) and x.ndim == 4 else 1
    s = assemble(path, x, y, lr, {**provenance, "mean": (0.0,) * c, "std": (1.0,) * c, "whitening": None})
    try:
        return renormalise(s, mean, std, provenance.get("whitening"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def channels(path: Path | str, provenance: Provenance) -> int:
    """How many channels the normalisation is for, which tells rows of numbers how to be images."""
    mean, _ = _normalisation(path, provenance)
    if not isinstance(mean, Sized) or len(mean) == 0:
        raise ValueError(f"{path}: mean is {mean!r}: one number for each channel is needed")
    return len(mean)


def _normalisation(path: Path | str, provenance: Provenance) -> tuple[Sequence[float], Sequence[float]]:
    mean, std = provenance.get("mean"), provenance.get("std")
    if (whitening := provenance.get("whitening")) is not None and mean is None and std is None:
        return (0.0,) * whitening.shape[0], (1.0,) * whitening.shape[0]
    if mean is None or std is None:
        missing = " and ".join(name for name, value in (("mean", mean), ("std", std)) if value is None)
        raise ValueError(f"{path} does not say how its images are normalised: {missing} must be given")
    return mean, std


def class_order(path: Path | str, x: object, n_classes: int | None) -> Tensor:
    """Ids for images in class order, the same number of each class."""
    if n_classes is None:
        raise ValueError(f"{path} has no labels beside it: n_classes is needed to give it labels in class order")
    checks.whole("n_classes", n_classes, 2)
    n = len(x) if isinstance(x, Tensor) and x.ndim else 0
    if n == 0 or n % n_classes:
        raise ValueError(f"{path} has {n} images and no labels: for class order a multiple of {n_classes} is needed")
    return torch.arange(n_classes).repeat_interleave(n // n_classes)


def floats(what: str, value: object) -> Tensor:
    """A number or a floating-point tensor of any width, as float32."""
    if isinstance(value, (float, np.floating)):
        value = torch.tensor(float(value))
    if not _is_data(value) or not value.is_floating_point():
        raise ValueError(f"the {what} are {in_words(value)}: a dense floating-point tensor is needed")
    return value.float()


def in_words(held: object) -> str:
    """What an object is, in a few words for an error."""
    if isinstance(held, Tensor):
        return f"a tensor of shape {tuple(held.shape)}, {held.dtype} and {held.layout} on {held.device}"
    if isinstance(held, Mapping):
        return f"a dict with {', '.join(map(repr, list(held)[:6])) or 'nothing'}"
    return f"a {type(held).__name__}"


def _labels(value: object) -> Tensor:
    """Ids of any integer type as int64, soft rows of any floating type as float32."""
    if not _is_data(value) or value.ndim not in (1, 2) or value.numel() == 0 or value.dtype in _NO_LABELS:
        raise ValueError(f"the labels are {in_words(value)}: ids (n,) or soft rows (n, C) are needed")
    return value.float() if value.is_floating_point() else value.long()


def _is_data(value: object) -> TypeGuard[Tensor]:
    """Whether it is a dense tensor whose numbers are there."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _images_per_class(x: Tensor, n_classes: int) -> int:
    checks.images("images", x)
    if len(x) % n_classes:
        raise ValueError(f"{len(x)} images for {n_classes} classes: ipc must be given")
    return len(x) // n_classes
