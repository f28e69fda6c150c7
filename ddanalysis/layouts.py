"""More layouts of distilled sets as other people publish them, each read into a :class:`DistilledSet`.

They are the rows, archives, schedules, folders and label lists; the plain pairs of tensors are in
:mod:`ddanalysis.interchange`, which also tells every layout by what it holds. Every reader takes as keywords what its
layout leaves out (:class:`Provenance`) and raises ``FileNotFoundError`` for a missing file, ``ValueError`` for one that
is damaged or does not hold what its layout promises.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks, foreign, image_files
from ddanalysis.distilled import DistilledSet
from ddanalysis.foreign import Provenance

_MODES = {1: "L", 3: "RGB"}
_RAT = "module.data.weight", "module.label.weight"


def read_compressor(path: Path | str, downsample: int = 1, **provenance: Unpack[Provenance]) -> DistilledSet:
    """The {"compressor": state} of *Remember the Past* (NeurIPS 2022): images as rows, or coefficients of shared bases.

    Each row of ``imgs.weight`` is a square image, class-major; with a ``basis.weight`` it is the coefficients of an
    image in these bases. Neither labels nor the factor by which images are enlarged (bilinearly) when they are used are
    in the file: ``n_classes`` must be given, and ``downsample`` where it was not 1.
    """
    return from_compressor(path, foreign.unpickle(path), provenance, downsample)


def from_compressor(path: Path | str, held: object, provenance: Provenance, downsample: int = 1) -> DistilledSet:
    """:func:`read_compressor` of a file already opened."""
    checks.whole("downsample", downsample)
    state = held.get("compressor") if isinstance(held, Mapping) else None
    if not isinstance(state, Mapping) or set(state) not in ({"imgs.weight"}, {"imgs.weight", "basis.weight"}):
        inside = f", inside it {foreign.in_words(state)}" if isinstance(state, Mapping) else ""
        need = "a 'compressor' with 'imgs.weight' and perhaps 'basis.weight' is needed"
        raise ValueError(f"{path} holds {foreign.in_words(held)}{inside}: {need}")
    rows = _rows(path, "imgs.weight", state["imgs.weight"])
    if "basis.weight" in state:
        basis = _rows(path, "basis.weight", state["basis.weight"])
        if len(basis) != rows.shape[1]:
            raise ValueError(
                f"{path} has {len(basis)} bases and {rows.shape[1]} coefficients an image: they must agree"
            )
        rows = (rows.double() @ basis.double()).float()
    x = _squares(path, rows, provenance)
    if downsample > 1:
        x = F.interpolate(x, scale_factor=downsample, mode="bilinear", align_corners=False)
    return foreign.assemble(path, x, foreign.class_order(path, x, provenance.get("n_classes")), None, provenance)


def read_rat(path: Path | str, **provenance: Unpack[Provenance]) -> DistilledSet:
    """The ``.h5`` or ``.pth`` of RaT-BPTT (ICLR 2024): square images as rows and, where they were learned, soft labels.

    Without labels the rows are class-major, and ``n_classes`` must be given. The epoch, where there is one, becomes a
    setting. The last ``.h5`` of a run has lost its labels; its ``.pth`` has them.
    """
    if Path(path).suffix == ".pth":
        return from_rat(path, foreign.unpickle(path), provenance)
    held = foreign.hdf5(path, ("data", "label", "epoch"))
    if "data" not in held:
        raise ValueError(f"{path} holds no 'data': rows of images are needed")
    return _from_rows(path, held["data"], held.get("label"), held.get("epoch"), provenance)


def is_rat(held: Mapping[str, object]) -> bool:
    """Whether a file already opened is a ``.pth`` for :func:`read_rat`."""
    state = held.get("model_state_dict", held)
    return isinstance(state, Mapping) and _RAT[0] in state


def from_rat(path: Path | str, held: object, provenance: Provenance) -> DistilledSet:
    """:func:`read_rat` of a ``.pth`` file already opened."""
    whole = held if isinstance(held, Mapping) else {}
    parts = [whole.get(part, whole) for part in ("model_state_dict", "label_state_dict")]
    rows, labels = (
        part.get(name) if isinstance(part, Mapping) else None for part, name in zip(parts, _RAT, strict=True)
    )
    if rows is None:
        raise ValueError(f"{path} holds {foreign.in_words(held)}: a model state with {_RAT[0]!r} is needed")
    return _from_rows(path, rows, labels, whole.get("epoch"), provenance)


def _from_rows(path: Path | str, rows: object, labels: object, epoch: Any, provenance: Provenance) -> DistilledSet:
    x = _squares(path, _rows(path, "data", rows), provenance)
    y = foreign.class_order(path, x, provenance.get("n_classes")) if labels is None else labels
    if epoch is not None:
        try:
            own = {"epoch": int(epoch)}
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} has the epoch {foreign.in_words(epoch)}: a whole number is needed") from error
        provenance = {**provenance, "settings": {**own, **(provenance.get("settings") or {})}}
    return foreign.assemble(path, x, y, None, provenance)


def read_npz(path: Path | str, **provenance: Unpack[Provenance]) -> DistilledSet:
    """The ``.npz`` of FRePo ("image", "label") or KIP ("images", "labels"): channels last, soft labels (n, C).

    The labels are kept as they are, centred ones too; benchmarks that take them as classes take the largest of a row.
    """
    held = foreign.npz(path)
    for image, label in (("image", "label"), ("images", "labels")):
        if {image, label} <= set(held):
            if held[image].ndim != 4:
                raise ValueError(f"{path} has images of shape {tuple(held[image].shape)}: (n, h, w, c) is needed")
            x = held[image].permute(0, 3, 1, 2).contiguous()
            return foreign.assemble(path, x, held[label], None, provenance)
    raise ValueError(
        f"{path} holds {foreign.in_words(held)}: 'image' and 'label', or 'images' and 'labels', are needed"
    )


def read_steps(path: Path | str, **provenance: Unpack[Provenance]) -> DistilledSet:
    """The ``results.pth`` of *Dataset Distillation* (2018) and *Soft-Label Dataset Distillation*: a list of steps.

    A step is (images, labels, learning rate), and the list is the order in which they must be trained on. Where it goes
    through the same steps again (several epochs), their images are in the set once; ``order`` and ``learning_rates``
    have all steps. Every step must have the same number of images.
    """
    return from_steps(path, foreign.unpickle(path), provenance)


def from_steps(path: Path | str, held: object, provenance: Provenance) -> DistilledSet:
    """:func:`read_steps` of a file already opened."""
    if not isinstance(held, list) or not held or not all(isinstance(s, (list, tuple)) and len(s) == 3 for s in held):
        need = "a list of steps (images, labels, learning rate) is needed"
        raise ValueError(f"{path} holds {foreign.in_words(held)}: {need}")
    if provenance.get("order") is not None:
        raise ValueError(f"{path} is a list of steps, which is its order: no other may be given")
    pairs = [_step(path, t, *step[:2]) for t, step in enumerate(held)]
    if len({(x.shape, y.shape, y.dtype) for x, y in pairs}) > 1:
        raise ValueError(f"{path} has steps of different shapes: all must have the same number of images")
    distinct, batch = _period(pairs), len(pairs[0][0])
    order = (torch.arange(len(pairs)) % distinct)[:, None] * batch + torch.arange(batch)
    x, y = (torch.cat([pair[i] for pair in pairs[:distinct]]) for i in (0, 1))
    return foreign.assemble(path, x, y, _rates(path, [s[2] for s in held]), {**provenance, "order": order})


def _step(path: Path | str, t: int, x: object, y: object) -> tuple[Tensor, Tensor]:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not x.ndim or not y.ndim or not len(x) == len(y) > 0:
        found = f"{foreign.in_words(x)} and {foreign.in_words(y)}"
        raise ValueError(f"{path}, step {t}, is {found}: as many images as labels are needed")
    return x, y


def _period(pairs: list[tuple[Tensor, Tensor]]) -> int:
    """After how many steps they come again, the same to the bit; all of them if they never do."""
    n = len(pairs)

    def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
        return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

    return next(p for p in range(1, n + 1) if n % p == 0 and all(same(pairs[t], pairs[t % p]) for t in range(p, n)))


def _rates(path: Path | str, rates: list[object]) -> Tensor | None:
    if all(rate is None for rate in rates):
        return None
    numbers = []
    for t, rate in enumerate(rates):
        one = None if rate is None else foreign.floats(f"learning rates of {path}, step {t},", rate)
        if one is None or one.numel() != 1:
            raise ValueError(f"{path}, step {t}, has the learning rate {foreign.in_words(rate)}: one number is needed")
        numbers.append(one.reshape(()))
    return torch.stack(numbers)


def read_label_distillation(
    path: Path | str, images: Tensor | None = None, **provenance: Unpack[Provenance]
) -> DistilledSet:
    """A result JSON of *Flexible Dataset Distillation* (2020): soft labels for base images that are not in it.

    ``images`` (N, c, h, w), normalised with ``mean`` and ``std``, are the base images in their order. The classes they
    have in their own dataset become the setting ``base_labels``. A result of that code's image distillation has pixels
    instead, is whole without ``images``, and has the classes 0 to ``n_classes`` - 1 in turn.
    """
    held = foreign.json_object(path)
    if held.get("data"):
        if images is not None:
            raise ValueError(f"{path} holds images of its own: no base images may be given")
        x = _last(path, "data", held)
        ids = foreign.class_order(path, x, provenance.get("n_classes"))
        in_turn = torch.arange(len(ids)) % (int(ids[-1]) + 1)
        return foreign.assemble_pixels(path, x, in_turn, None, provenance)
    if not held.get("labels"):
        raise ValueError(f"{path} holds no labels: they are written after the last epoch of a label distillation")
    if images is None:
        raise ValueError(f"{path} holds labels alone: images=, the base images in their order, must be given")
    if base := held.get("base_example_labels"):
        own = {"base_labels": _array(path, "base_example_labels", base).long().tolist()}
        provenance["settings"] = {**own, **(provenance.get("settings") or {})}
    return foreign.assemble(path, images.cpu(), _last(path, "labels", held), None, provenance)


def _last(path: Path | str, name: str, held: Mapping[str, Any]) -> Tensor:
    """The last entry of a list that is appended to, as float32."""
    entries = held[name]
    if not isinstance(entries, list):
        raise ValueError(f"{path} has {name!r} that are {foreign.in_words(entries)}: a list is needed")
    return _array(path, name, entries[-1])


def _array(path: Path | str, name: str, numbers: object) -> Tensor:
    try:
        return torch.tensor(numbers, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} has {name!r} that are no array of numbers: {error}") from error


def read_image_folder(
    folder: Path | str, labels: Path | str | None = None, size: int | None = None, **provenance: Unpack[Provenance]
) -> DistilledSet:
    """The images of SRe2L, CDA and RDED: one folder of JPEG or PNG files a class, read as pixels and normalised.

    Classes are the folders in the order of their names. ``labels``: a tensor file of soft rows (n, C), class-major and
    by file name as the images are; by default the ``labels.pt`` in the folder, if there is one. Soft labels kept batch
    by batch with their augmentation (FKD) are none of the images' own, and are not read. ``size`` squashes every image
    to size x size; without it they must all have one size.
    """
    folder = Path(folder)
    c = foreign.channels(folder, provenance)
    mode = _MODES.get(c)
    if mode is None:
        raise ValueError(f"a normalisation of {c} channels: image files in {folder} have 1 or 3 channels")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if not any(child.is_dir() and not child.name.startswith(".") for child in folder.iterdir()):
        raise ValueError(f"{folder} holds no folders of images, one a class")
    classes = image_files.class_names(folder)
    if provenance.get("n_classes") not in (None, len(classes)):
        raise ValueError(f"{folder} has {len(classes)} class folders: {provenance['n_classes']} classes were asked for")
    files = image_files.by_class(folder, classes)
    if empty := [name for c, name in enumerate(classes) if c not in {c for _, c in files}]:
        raise ValueError(f"{folder} holds no images of {', '.join(empty[:4])}{', ...' if len(empty) > 4 else ''}")
    arrays = image_files.decode(folder, files, files[:1], size, mode)  # it wants a test half
    x = torch.from_numpy(arrays["x_train"]).float() / 255
    if labels is None and (folder / "labels.pt").exists():
        labels = folder / "labels.pt"
    y = torch.from_numpy(arrays["y_train"]) if labels is None else foreign.unpickle(labels)
    x = x[:, None] if mode == "L" else x.permute(0, 3, 1, 2).contiguous()
    return foreign.assemble_pixels(folder, x, y, None, {**provenance, "n_classes": len(classes)})


def read_unwhitened(
    images: Path | str, labels: Path | str, lr: Path | str | None = None, **provenance: Unpack[Provenance]
) -> DistilledSet:
    """The ``images_zca_*.pt`` of MTT, TESLA and DATM: pixels, the whitening of ``images_*.pt`` undone, normalised here.

    A set distilled under whitening belongs into that space: given a ``whitening``, they are whitened anew, and without
    one they are for looking at.
    """
    rate = None if lr is None else foreign.unpickle(lr)
    return foreign.assemble_pixels(images, foreign.unpickle(images), foreign.unpickle(labels), rate, provenance)


def _rows(path: Path | str, name: str, value: object) -> Tensor:
    try:
        rows = foreign.floats(f"rows of {name!r}", value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if rows.ndim != 2 or rows.numel() == 0:
        raise ValueError(f"{path} has {name!r} of shape {tuple(rows.shape)}: rows (n, numbers) are needed")
    return rows


def _squares(path: Path | str, rows: Tensor, provenance: Provenance) -> Tensor:
    """Rows (n, c s s) as images (n, c, s, s), with as many channels as the normalisation has."""
    c = foreign.channels(path, provenance)
    side = math.isqrt(rows.shape[1] // c)
    if c * side * side != rows.shape[1]:
        raise ValueError(f"{path} has rows of {rows.shape[1]} numbers: no square image of {c} channels has so many")
    return rows.reshape(len(rows), c, side, side)
