"""Distilled sets as other people publish them: their layouts read into a :class:`DistilledSet`, one of them written.

The layouts say little of where a set came from, so every reader takes what is missing as keywords
(:class:`Provenance`), and refuses a file that does not hold what its layout promises. The files are pickles: nothing
but tensors, numbers, text and containers is ever unpickled.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeGuard, Unpack

import numpy as np
import torch
from torch import Tensor

from ddanalysis import checks, distilled, store
from ddanalysis.distilled import DistilledSet


class Provenance(TypedDict, total=False):
    """What a published file leaves out, by the fields of :class:`DistilledSet`.

    ``mean`` and ``std``, the normalisation the set was distilled under, must be given. ``n_classes`` is taken from the
    labels if it is not, ``ipc`` from the number of images. None is the same as not given.
    """

    mean: Sequence[float] | None
    std: Sequence[float] | None
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


def read(path: Path | str, **provenance: Unpack[Provenance]) -> DistilledSet:
    """Read a distilled set of any known layout, told by what it holds.

    A safetensors file is this package's own and says everything itself, so that ``provenance`` is not used. A folder
    holds ``images.pt`` (DD-Ranking) or ``images_best.pt`` (trajectory matching). A file holds {"data", "label"}, the
    {"data": [[images, labels], ...]} of DC, DSA and DM, or bare images, beside which ``labels*.pt`` and perhaps
    ``lr*.pt`` lie.
    Raises ``FileNotFoundError`` for a missing file and ``ValueError`` for any that cannot be trusted or understood.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, provenance)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    if _is_safetensors(path):
        return distilled.load(path)
    held = _unpickle(path)
    if isinstance(held, Tensor):
        labels, rate = (path.with_name(path.name.replace("images", word, 1)) for word in ("labels", "lr"))
        if labels == path:
            raise ValueError(f"{path} holds one tensor but is not named images*.pt: use read_mtt or read_ddranking")
        return _assemble(path, held, _unpickle(labels), _unpickle(rate) if rate.exists() else None, provenance)
    if isinstance(held, Mapping) and isinstance(held.get("data"), list):
        return _from_dc(path, held, -1, provenance)
    return _from_data_label(path, held, provenance)


def _read_folder(folder: Path, provenance: Provenance) -> DistilledSet:
    if (folder / "images.pt").exists():
        return read_ddranking(folder, **provenance)
    if (folder / "images_best.pt").exists():
        return read(folder / "images_best.pt", **provenance)
    raise ValueError(f"the folder {folder} holds neither images.pt nor images_best.pt: no known layout")


def read_data_label(path: Path | str, **provenance: Unpack[Provenance]) -> DistilledSet:
    """The {"data": (n, c, h, w), "label": (n,) or (n, C)} of *What is dataset distillation learning?* (ICML 2024)."""
    return _from_data_label(path, _unpickle(path), provenance)


def _from_data_label(path: Path | str, held: object, provenance: Provenance) -> DistilledSet:
    if not isinstance(held, Mapping) or not {"data", "label"} <= set(held):
        raise ValueError(f"{path} holds {_in_words(held)}: a dict with 'data' and 'label' is needed")
    return _assemble(path, held["data"], held["label"], None, provenance)


def read_dc(path: Path | str, experiment: int = -1, **provenance: Unpack[Provenance]) -> DistilledSet:
    """One experiment of a ``res_*.pt`` of DC, DSA, DM or CLOM: {"data": [[images, labels], ...], "accs_all_exps": ...}.

    ``experiment`` counts from 0, or from the end if negative. The accuracies in the file are not used.
    """
    return _from_dc(path, _unpickle(path), experiment, provenance)


def _from_dc(path: Path | str, held: object, experiment: int, provenance: Provenance) -> DistilledSet:
    pairs = held.get("data") if isinstance(held, Mapping) else None
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{path} holds {_in_words(held)}: a dict with 'data', a list of [images, labels], is needed")
    if isinstance(experiment, bool) or not isinstance(experiment, int) or not -len(pairs) <= experiment < len(pairs):
        raise ValueError(f"experiment is {experiment!r}: {path} holds {len(pairs)}, counted from 0 or from the end")
    x, y = pairs[experiment]
    return _assemble(path, x, y, None, provenance)


def read_mtt(
    images: Path | str, labels: Path | str, lr: Path | str | None = None, **provenance: Unpack[Provenance]
) -> DistilledSet:
    """The ``images_*.pt`` and ``labels_*.pt`` of MTT and TESLA, and DATM's ``lr_*.pt``: one bare tensor a file."""
    rate = None if lr is None else _unpickle(lr)
    return _assemble(images, _unpickle(images), _unpickle(labels), rate, provenance)


def read_ddranking(
    images: Path | str,
    labels: Path | str | None = None,
    lr: Path | str | None = None,
    **provenance: Unpack[Provenance],
) -> DistilledSet:
    """What DD-Ranking takes: a folder with ``images.pt`` and perhaps ``labels.pt`` and ``lr.pt``, or their three paths.

    Without labels the images are in class order, the same number of each, and ``n_classes`` must be given.
    """
    images = Path(images)
    if images.is_dir():
        if labels is not None or lr is not None:
            raise ValueError(f"{images} is a folder: its own labels.pt and lr.pt are read, no others may be named")
        folder = images
        images = folder / "images.pt"
        labels, lr = (file if file.exists() else None for file in (folder / "labels.pt", folder / "lr.pt"))
    x = _unpickle(images)
    y = _class_order(images, x, provenance.get("n_classes")) if labels is None else _unpickle(labels)
    return _assemble(images, x, y, None if lr is None else _unpickle(lr), provenance)


def write_ddranking(s: DistilledSet, folder: Path | str) -> None:
    """Write ``images.pt``, ``labels.pt`` and, if the set has a learning rate, ``lr.pt`` to ``folder``, for DD-Ranking.

    Raises ``ValueError`` for what these files cannot say: an order of batches, or a learning rate for each step.
    """
    if s.order is not None or (s.learning_rates is not None and len(s.learning_rates) > 1):
        raise ValueError(f"{s.name} has an order or a learning rate for each step: these files cannot say so")
    folder = Path(folder)
    if s.learning_rates is None:
        (folder / "lr.pt").unlink(missing_ok=True)
    else:
        _write_tensor(folder / "lr.pt", s.learning_rates[0])
    _write_tensor(folder / "labels.pt", s.y)
    _write_tensor(folder / "images.pt", s.x)


def _write_tensor(path: Path, tensor: Tensor) -> None:
    whole = io.BytesIO()
    torch.save(tensor.cpu().clone(), whole)
    with store.atomic(path) as file:
        file.write(whole.getvalue())


def _class_order(path: Path, x: object, n_classes: int | None) -> Tensor:
    if n_classes is None:
        raise ValueError(f"{path} has no labels beside it: n_classes is needed to give it labels in class order")
    checks.whole("n_classes", n_classes, 2)
    n = len(x) if isinstance(x, Tensor) and x.ndim else 0
    if n == 0 or n % n_classes:
        raise ValueError(f"{path} has {n} images and no labels: for class order a multiple of {n_classes} is needed")
    return torch.arange(n_classes).repeat_interleave(n // n_classes)


def _assemble(path: Path | str, x: object, y: object, lr: object, provenance: Provenance) -> DistilledSet:
    """A :class:`DistilledSet` of what a file held, every refusal naming the file."""
    given: dict[str, Any] = {name: value for name, value in provenance.items() if value is not None}
    if missing := [name for name in ("mean", "std") if name not in given]:
        raise ValueError(f"{path} does not say how its images are normalised: {' and '.join(missing)} must be given")
    try:
        x, y = _floats("images", x), _labels(y)
        if "n_classes" not in given:
            given["n_classes"] = y.shape[1] if y.ndim == 2 else int(y.max()) + 1
        checks.whole("n_classes", given["n_classes"], 2)
        if "ipc" not in given:
            given["ipc"] = _images_per_class(x, given["n_classes"])
        rates = None if lr is None else _floats("learning rates", lr).reshape(-1)
        return DistilledSet(x=x, y=y, learning_rates=rates, **{"method": "", "dataset": "", **given})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _floats(what: str, value: object) -> Tensor:
    """A number or a floating-point tensor of any width, as float32."""
    if isinstance(value, (float, np.floating)):
        value = torch.tensor(float(value))
    if not _is_data(value) or not value.is_floating_point():
        raise ValueError(f"the {what} are {_in_words(value)}: a dense floating-point tensor is needed")
    return value.float()


def _labels(value: object) -> Tensor:
    """Ids of any integer type as int64, soft rows of any floating type as float32."""
    if not _is_data(value) or value.ndim not in (1, 2) or value.numel() == 0 or value.dtype in _NO_LABELS:
        raise ValueError(f"the labels are {_in_words(value)}: ids (n,) or soft rows (n, C) are needed")
    return value.float() if value.is_floating_point() else value.long()


def _is_data(value: object) -> TypeGuard[Tensor]:
    """Whether it is a dense tensor whose numbers are there."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _images_per_class(x: Tensor, n_classes: int) -> int:
    checks.images("images", x)
    if len(x) % n_classes:
        raise ValueError(f"{len(x)} images for {n_classes} classes: ipc must be given")
    return len(x) // n_classes


def _in_words(held: object) -> str:
    """What an object is, in a few words for an error."""
    if isinstance(held, Tensor):
        return f"a tensor of shape {tuple(held.shape)}, {held.dtype} and {held.layout} on {held.device}"
    if isinstance(held, Mapping):
        return f"a dict with {', '.join(map(repr, list(held)[:6])) or 'nothing'}"
    return f"a {type(held).__name__}"


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts as such a file does: eight bytes of length, then the brace of its header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unpickle(path: Path | str) -> Any:
    """What ``torch.save`` wrote, on the CPU; a ``ValueError`` if it is damaged or asks for more than data."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path} holds {found[1]}, which would have to be unpickled; refused") from None
        raise ValueError(f"{path} is damaged or was not written by torch.save") from error
