"""A distilled set: images and labels, the pixel space they live in, how they must be used, where they came from."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ddanalysis import checks, store
from ddanalysis import whitening as zca
from ddanalysis.whitening import Whitening

KIND = "distilled set, layout 1"
SPACE_TOLERANCE = 1e-4
"""How far apart the means or deviations of a set and of the data may be, in units of the pixel range [0, 1]."""
_TYPES = {
    "x": (torch.float32,),
    "y": (torch.int64, torch.float32),
    "learning_rates": (torch.float32,),
    "order": (torch.int64,),
}


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A distilled set. Making one checks every field, with a ``ValueError`` that names what is wrong.

    ``x`` (n, c, h, w) float32, normalised: a pixel in [0, 1] is ``x * std + mean``; a distilled one may lie outside.
    ``whitening``: what the set is whitened by; then ``x * std + mean`` are whitened images (published ones are not
    normalised besides: mean 0, std 1), and :func:`pixels` undoes it. None for a set that is not.
    ``y`` (n,) int64 class ids or (n, n_classes) float32 soft rows, which need not be probabilities.
    ``mean``, ``std``: one number a channel. ``network``: the architecture it was distilled with, "" if unknown.
    ``learning_rates`` (steps,) float32, one to train with at each step, or (1,) for all steps; None if it came without.
    ``order`` (steps, batch) int64: the rows to train on at each step; None if any order will do.
    ``settings``: how it was made, as JSON has it (a tuple becomes a list).
    The tensors are detached, not copied: clone first what will be changed in place.
    """

    x: Tensor
    y: Tensor
    n_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str
    dataset: str
    ipc: int
    network: str = ""
    seed: int = 0
    learning_rates: Tensor | None = None
    order: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    whitening: Whitening | None = None

    def __post_init__(self) -> None:
        """Check every field and put it into its one form."""
        for name, types in _TYPES.items():
            tensor = getattr(self, name)
            if tensor is not None or name in ("x", "y"):
                _check_tensor(name, tensor, types)
                object.__setattr__(self, name, tensor.detach())
        checks.whole("n_classes", self.n_classes, 2)
        checks.whole("ipc", self.ipc)
        checks.whole("seed", self.seed, 0)
        for name in ("method", "dataset", "network"):
            _check_word(name, getattr(self, name))
        checks.images("distilled images", self.x)
        checks.labels("distilled set", self.y, len(self.x), self.n_classes)
        _check_schedule(self.learning_rates, self.order, len(self.x))
        _check_whitening(self.whitening, self.x)
        mean, std = _space(self.mean, self.std, self.x.shape[1])
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        object.__setattr__(self, "settings", _json(self.settings))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.x)

    @property
    def name(self) -> str:
        """Short, for tables and file names: ``dm_digits_ipc10_s0``."""
        return f"{self.method or 'unknown'}_{self.dataset or 'unknown'}_ipc{self.ipc}_s{self.seed}"

    def labels(self) -> Tensor:
        """Class ids (n,) int64; of a soft row, the class it gives most to."""
        return self.y.argmax(1) if self.y.ndim == 2 else self.y

    def to(self, device: torch.device | str) -> "DistilledSet":
        """The set with all its tensors on ``device``."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in _own_tensors(self).items()}
        return replace(self, **moved, whitening=self.whitening and self.whitening.to(device))


def tensors(s: DistilledSet) -> dict[str, Tensor]:
    """The tensors of a set by field name, those of its whitening among them, absent ones left out."""
    return _own_tensors(s) | (s.whitening.tensors() if s.whitening else {})


def _own_tensors(s: DistilledSet) -> dict[str, Tensor]:
    return {name: getattr(s, name) for name in _TYPES if getattr(s, name) is not None}


def describe(
    *,
    n_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    method: str,
    dataset: str,
    ipc: int,
    network: str = "",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    whitening: Whitening | None = None,
) -> dict[str, Any]:
    """What the file of a set says beside its tensors, with the fields of :class:`DistilledSet`.

    A maker knows all of it before it starts, and so can ask ``store`` for the very file it would write. The tensors of
    a ``whitening`` go into the file beside those of the set; without one nothing is said of it.
    """
    what = {"kind": KIND, "dataset": dataset, "n_classes": n_classes, "ipc": ipc}
    space: dict[str, Any] = {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
    if whitening is not None:
        space["whitening"] = whitening.describe()
    return what | space | {"method": method, "network": network, "seed": seed, "settings": _json(settings or {})}


def assemble(parts: Mapping[str, Tensor], description: Mapping[str, Any]) -> DistilledSet:
    """The set of the named tensors ``parts`` and a :func:`describe` description, whose other entries are left out.

    Raises ``ValueError`` if they are not those of a distilled set.
    """
    if description.get("kind") != KIND:
        raise ValueError(f"the description is of kind {description.get('kind')!r}: {KIND!r} is needed")
    plain = {f.name for f in fields(DistilledSet)} - set(_TYPES) - {"whitening"}
    missing = sorted((plain - set(description)) | ({"x", "y"} - set(parts)))
    if missing:
        raise ValueError(f"the distilled set lacks {', '.join(missing)}")
    said = description.get("whitening")
    whitening = None if said is None else zca.from_tensors(parts, said)
    whitenings = {} if whitening is None else whitening.tensors()
    if unknown := sorted(set(parts) - set(_TYPES) - set(whitenings)):
        raise ValueError(f"unknown tensors {', '.join(unknown)}: a distilled set has {', '.join(_TYPES)}")
    own: dict[str, Any] = {name: parts[name] for name in _TYPES if name in parts}
    return DistilledSet(**own, **{name: description[name] for name in plain}, whitening=whitening)


def save(s: DistilledSet, path: Path | str, description: Mapping[str, Any] | None = None) -> None:
    """Write the set to one safetensors file; the same set gives the same bytes.

    ``description``: what the file shall say besides, such as its maker's version; it cannot overrule a field.
    Raises ``ValueError`` for one that would, and ``OSError`` if the disk is full; then nothing is left behind.
    """
    own = describe(**{f.name: getattr(s, f.name) for f in fields(s) if f.name not in _TYPES})
    more = dict(description or {})
    for key in own:
        if key in more and store.canonical({key: more[key]}) != store.canonical({key: own[key]}):
            raise ValueError(f"the description says {key} = {more[key]!r}, the distilled set has {own[key]!r}")
    store.write(Path(path), tensors(s), more | own)


def load(path: Path | str) -> DistilledSet:
    """The set that :func:`save` wrote.

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` for a damaged one or one that is no distilled set.
    """
    parts, description = store.read(Path(path))
    try:
        return assemble(parts, description)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no distilled set: {error}") from error


class Space(Protocol):
    """What of a dataset decides whether a set fits it: ``ImageData`` has these."""

    @property
    def name(self) -> str:
        """The dataset's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, (c, h, w)."""

    @property
    def n_classes(self) -> int:
        """How many classes it has."""

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of the normalisation, one a channel."""

    @property
    def std(self) -> tuple[float, ...]:
        """The deviation of the normalisation, one a channel."""

    @property
    def whitening(self) -> Whitening | None:
        """What it is whitened by."""


def fits(s: DistilledSet, data: Space) -> None:
    """Refuse a set whose image shape, class count, whitening or normalisation is not that of ``data``.

    The ``ValueError`` names the set, the dataset and both values.
    """
    here, there = f"the distilled set {s.name}", f"the dataset {data.name}"
    if tuple(s.x.shape[1:]) != tuple(data.shape):
        raise ValueError(f"{here} has images of shape {tuple(s.x.shape[1:])}, {there} of {tuple(data.shape)}")
    if s.n_classes != data.n_classes:
        raise ValueError(f"{here} has {s.n_classes} classes, {there} has {data.n_classes}")
    zca.fits(here, s.whitening, there, data.whitening)
    for what, ours, theirs in (("mean", s.mean, data.mean), ("std", s.std, data.std)):
        if len(ours) != len(theirs) or max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > SPACE_TOLERANCE:
            raise ValueError(f"{here} is normalised with {what} {ours}, {there} with {tuple(theirs)}: renormalise it")


def pixels(s: DistilledSet) -> Tensor:
    """The images as pixels (n, c, h, w) float32 to look at: 0 is black and 1 white, distilled ones may lie outside.

    Of a ``per-image`` whitened set they have the brightness and contrast of an average training image.
    """
    values = _denormalised(s)
    return (values if s.whitening is None else s.whitening.invert(values)).float()


def renormalise(
    s: DistilledSet, mean: Sequence[float], std: Sequence[float], whitening: Whitening | None = None
) -> DistilledSet:
    """The same pixels in the space of another ``mean`` and ``std`` and, given one, another ``whitening``.

    Computed in float64 and rounded once. There and back is the same set, but for ``per-image`` whitening, whose images
    have no brightness and contrast to give and of new ones take the direction alone.
    """
    mean, std = _space(mean, std, s.x.shape[1])
    values = _denormalised(s)
    if not zca.alike(s.whitening, whitening):
        values = values if s.whitening is None else s.whitening.invert(values)
        values = values if whitening is None else whitening.apply(values)
    x = (values - _per_channel(mean, values)) / _per_channel(std, values)
    return replace(s, x=x.float(), mean=mean, std=std, whitening=whitening)


def _denormalised(s: DistilledSet) -> Tensor:
    """Pixels, or of a whitened set the whitened images, float64."""
    x = s.x.double()
    return x * _per_channel(s.std, x) + _per_channel(s.mean, x)


def _per_channel(values: Sequence[float], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1)


def _check_whitening(whitening: object, x: Tensor) -> None:
    if whitening is not None and not isinstance(whitening, Whitening):
        raise ValueError(f"whitening is {whitening!r}: a fitted Whitening or None is needed")
    if whitening is not None and whitening.shape != tuple(x.shape[1:]):
        raise ValueError(f"the whitening is for images of {whitening.shape}: the set has {tuple(x.shape[1:])}")


def _check_tensor(name: str, tensor: object, types: tuple[torch.dtype, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in types:
        found = f"{tensor.layout} of {tensor.dtype}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise ValueError(f"{name} is {found}: a dense tensor of {' or '.join(map(str, types))} is needed")
    if tensor.ndim == 0:
        raise ValueError(f"{name} is a single number: a tensor with a leading dimension is needed")


def _check_word(name: str, value: object) -> None:
    """Names become parts of file names."""
    if not isinstance(value, str) or any(c in "/\\" or not c.isprintable() for c in value):
        raise ValueError(f"{name} is {value!r}: it must be text without slashes or control characters")


def _space(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``mean`` and ``std`` as tuples of floats, one for each of ``channels``."""
    both = []
    for name, values, lowest in (("mean", mean, -math.inf), ("std", std, 0.0)):
        try:
            numbers = tuple(float(v) for v in values)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != channels or not all(math.isfinite(v) and v > lowest for v in numbers):
            kind = "positive numbers" if name == "std" else "numbers"
            raise ValueError(f"{name} is {values!r}: {channels} finite {kind} are needed, one for each channel")
        both.append(numbers)
    return both[0], both[1]


def _check_schedule(learning_rates: Tensor | None, order: Tensor | None, n: int) -> None:
    """``learning_rates`` and ``order`` fit each other and a set of ``n`` images."""
    if learning_rates is not None:
        if learning_rates.ndim != 1 or len(learning_rates) == 0:
            raise ValueError(f"learning rates have shape {tuple(learning_rates.shape)}: (steps,) or (1,) is needed")
        wrong = ~(torch.isfinite(learning_rates) & (learning_rates > 0))
        if wrong.any():
            step = int(wrong.nonzero()[0])
            value = float(learning_rates[step])
            raise ValueError(f"the learning rate of step {step} is {value}: it must be positive and finite")
    if order is not None:
        if order.ndim != 2 or order.numel() == 0:
            raise ValueError(f"the order has shape {tuple(order.shape)}: (steps, batch) is needed")
        if int(order.min()) < 0 or int(order.max()) >= n:
            low, high = int(order.min()), int(order.max())
            raise ValueError(f"the order names rows from {low} to {high}: allowed are 0 to {n - 1}")
        if learning_rates is not None and len(learning_rates) not in (1, len(order)):
            count, steps = len(learning_rates), len(order)
            raise ValueError(f"{count} learning rates for an order of {steps} steps: one, or one a step, is needed")


def _json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` as JSON gives them back, so that a set is the same before and after a file."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings are a {type(settings).__name__}: a dict is needed")
    try:
        return json.loads(store.canonical(dict(settings)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings {settings!r} cannot be written as JSON: {error}") from error
