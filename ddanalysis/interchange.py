"""Distilled sets as other people publish them: their layouts read into a :class:`DistilledSet`, one of them written.

The layouts say little of where a set came from, so every reader takes what is missing as keywords
(:class:`Provenance`), and refuses a file that does not hold what its layout promises. The files are pickles: nothing
but tensors, numbers, text and containers is ever unpickled (:mod:`ddanalysis.foreign`). Layouts other than plain pairs
of tensors are in :mod:`ddanalysis.layouts`; :func:`read` knows them all.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from ddanalysis import distilled, foreign, layouts, store
from ddanalysis.distilled import DistilledSet
from ddanalysis.foreign import Provenance

_BY_SUFFIX: dict[str, Callable[..., DistilledSet]] = {
    ".npz": layouts.read_npz,
    ".h5": layouts.read_rat,
    ".json": layouts.read_label_distillation,
}


def read(path: Path | str, **provenance: Unpack[Provenance]) -> DistilledSet:
    """Read a distilled set of any known layout, told by what it holds.

    A safetensors file is this package's own and says everything itself, so that ``provenance`` is not used. A folder
    holds ``images.pt`` (DD-Ranking), ``images_best.pt`` (trajectory matching) or one folder of images a class. A file
    holds {"data", "label"}, the {"data": [[images, labels], ...]} of DC, DSA and DM, or bare images, beside which
    ``labels*.pt`` and perhaps ``lr*.pt`` lie, or one of :mod:`ddanalysis.layouts`, whose readers take further options.

    No layout says whether its images are whitened. Trajectory matching with ``--zca`` is so by ``kornia``, BPTT, RaT
    and KIP by ``per-image``, FRePo by ``frepo`` (not on MNIST and Fashion-MNIST): give ``whitening=images.whitening``
    of ``images = data.load(dataset, whitening=kind)``. Without it they are taken as normalised, and networks trained on
    them see another space than that of the test images.

    Raises ``FileNotFoundError`` for a missing file and ``ValueError`` for any that cannot be trusted or understood.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, provenance)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    if reader := _BY_SUFFIX.get(path.suffix):
        return reader(path, **provenance)
    if _is_safetensors(path):
        return distilled.load(path)
    held = foreign.unpickle(path)
    if isinstance(held, Tensor):
        return _from_images(path, held, provenance)
    if isinstance(held, list):
        return layouts.from_steps(path, held, provenance)
    if isinstance(held, Mapping) and "compressor" in held:
        return layouts.from_compressor(path, held, provenance)
    if isinstance(held, Mapping) and layouts.is_rat(held):
        return layouts.from_rat(path, held, provenance)
    if isinstance(held, Mapping) and isinstance(held.get("data"), list):
        return _from_dc(path, held, -1, provenance)
    return _from_data_label(path, held, provenance)


def _read_folder(folder: Path, provenance: Provenance) -> DistilledSet:
    if (folder / "images.pt").exists():
        return read_ddranking(folder, **provenance)
    for images in (folder / "images_best.pt", folder / "Normal" / "images_best.pt"):
        if images.exists():
            return read(images, **provenance)
    if any(child.is_dir() for child in folder.iterdir()):
        return layouts.read_image_folder(folder, **provenance)
    known = "neither images.pt nor images_best.pt nor folders of images"
    raise ValueError(f"the folder {folder} holds {known}: no known layout")


def _from_images(path: Path, held: Tensor, provenance: Provenance) -> DistilledSet:
    unwhitened = path.name.startswith("images_zca_")
    own = "images_zca" if unwhitened else "images"
    labels, rate = (path.with_name(path.name.replace(own, word, 1)) for word in ("labels", "lr"))
    if labels == path:
        raise ValueError(f"{path} holds one tensor but is not named images*.pt: use read_mtt or read_ddranking")
    if unwhitened:
        return layouts.read_unwhitened(path, labels, rate if rate.exists() else None, **provenance)
    y, lr = foreign.unpickle(labels), foreign.unpickle(rate) if rate.exists() else None
    return foreign.assemble(path, held, y, lr, provenance)


def read_data_label(path: Path | str, **provenance: Unpack[Provenance]) -> DistilledSet:
    """The {"data": (n, c, h, w), "label": (n,) or (n, C)} of *What is dataset distillation learning?* (ICML 2024)."""
    return _from_data_label(path, foreign.unpickle(path), provenance)


def _from_data_label(path: Path | str, held: object, provenance: Provenance) -> DistilledSet:
    if not isinstance(held, Mapping) or not {"data", "label"} <= set(held):
        raise ValueError(f"{path} holds {foreign.in_words(held)}: a dict with 'data' and 'label' is needed")
    return foreign.assemble(path, held["data"], held["label"], None, provenance)


def read_dc(path: Path | str, experiment: int = -1, **provenance: Unpack[Provenance]) -> DistilledSet:
    """One experiment of a ``res_*.pt`` of DC, DSA, DM or CLOM: {"data": [[images, labels], ...], "accs_all_exps": ...}.

    ``experiment`` counts from 0, or from the end if negative. The accuracies in the file are not used.
    """
    return _from_dc(path, foreign.unpickle(path), experiment, provenance)


def _from_dc(path: Path | str, held: object, experiment: int, provenance: Provenance) -> DistilledSet:
    pairs = held.get("data") if isinstance(held, Mapping) else None
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            f"{path} holds {foreign.in_words(held)}: a dict with 'data', a list of [images, labels], is needed"
        )
    if isinstance(experiment, bool) or not isinstance(experiment, int) or not -len(pairs) <= experiment < len(pairs):
        raise ValueError(f"experiment is {experiment!r}: {path} holds {len(pairs)}, counted from 0 or from the end")
    x, y = pairs[experiment]
    return foreign.assemble(path, x, y, None, provenance)


def read_mtt(
    images: Path | str, labels: Path | str, lr: Path | str | None = None, **provenance: Unpack[Provenance]
) -> DistilledSet:
    """The ``images_*.pt`` and ``labels_*.pt`` of MTT and TESLA, and DATM's ``lr_*.pt``: one bare tensor a file."""
    rate = None if lr is None else foreign.unpickle(lr)
    return foreign.assemble(images, foreign.unpickle(images), foreign.unpickle(labels), rate, provenance)


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
    x = foreign.unpickle(images)
    y = foreign.class_order(images, x, provenance.get("n_classes")) if labels is None else foreign.unpickle(labels)
    return foreign.assemble(images, x, y, None if lr is None else foreign.unpickle(lr), provenance)


def write_ddranking(s: DistilledSet, folder: Path | str) -> None:
    """Write ``images.pt``, ``labels.pt`` and, if the set has a learning rate, ``lr.pt`` to ``folder``, for DD-Ranking.

    Its option ``use_zca``, needed for a whitened set, is ``kornia`` whitening of regularisation 0.1. Raises
    ``ValueError`` for what it cannot be told: another whitening, an order of batches, or a learning rate for each step.
    """
    if s.order is not None or (s.learning_rates is not None and len(s.learning_rates) > 1):
        raise ValueError(f"{s.name} has an order or a learning rate for each step: these files cannot say so")
    if s.whitening is not None and (s.whitening.kind, s.whitening.regularisation) != ("kornia", 0.1):
        raise ValueError(f"{s.name} is whitened by {s.whitening.name}: DD-Ranking knows kornia (0.1); renormalise it")
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


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts as such a file does: eight bytes of length, then the brace of its header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
