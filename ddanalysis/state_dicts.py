"""Networks that others trained: state dicts under the names of several code bases."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ddanalysis import foreign, store
from ddanalysis.architectures import Architecture, ConvNet
from ddanalysis.architectures.classic import LeNet
from ddanalysis.architectures.resnet import ResNet
from ddanalysis.networks import Networks, stack

SUFFIXES = (".safetensors", ".pth", ".pt")


def files(folder: str | Path) -> list[Path]:
    """The files of a folder that may hold networks, by name; none where it is no folder."""
    found = Path(folder)
    return sorted(path for path in found.iterdir() if path.suffix in SUFFIXES) if found.is_dir() else []


def read_several(folder: str | Path, architecture: Architecture, first: int, count: int) -> Networks:
    """``count`` networks of the :func:`files` of a folder, from number ``first`` on, counted from 0.

    Raises as :func:`read_state`, and ``ValueError`` where there are fewer.
    """
    found = files(folder)
    if len(found) < first + count:
        raise ValueError(
            f"{folder} holds {len(found)} networks: {first + count} are needed, the last {count} of them here"
        )
    return stack([read_state(path, architecture) for path in found[first : first + count]])


def read_state(path: str | Path, architecture: Architecture) -> Networks:
    """The one network (K = 1) in a file of ``torch.save`` or safetensors; half precision becomes float32.

    Its names are those of this package, of torchvision's ResNets (with a 3 x 3 stem and no pooling, as published), of
    the DC code base's ConvNet and ResNets, or a LeNet's as "conv1" to "fc3"; "module." before them and a dict around
    them ("state_dict", ...) do not matter. A file says nothing of the normalisation its network was trained with: that
    of the data must be the same.

    Raises ``FileNotFoundError`` for a missing file and ``ValueError``, naming the parameter, for one that is missing,
    unknown, of another shape, or not finite.
    """
    path = Path(path)
    held = store.read(path)[0] if path.suffix == ".safetensors" else _unwrapped(foreign.unpickle(path))
    if not isinstance(held, Mapping) or not all(isinstance(t, torch.Tensor) for t in held.values()) or not held:
        raise ValueError(f"{path} holds {foreign.in_words(held)}: a state dict, names with tensors, is needed")
    theirs = {str(name).removeprefix("_orig_mod.").removeprefix("module."): t for name, t in held.items()}
    theirs = {name: t for name, t in theirs.items() if not name.endswith("num_batches_tracked")}
    names = max(_layouts(architecture), key=lambda names: len(set(names.values()) & set(theirs)))
    _same_names(path, architecture, names, theirs)
    state = {}
    for ours, weight in architecture.weights().items():
        state[ours] = _checked(f"{path}: {names[ours]}", theirs[names[ours]], weight.shape, architecture)
    return Networks(architecture, state)


def _unwrapped(held: object) -> object:
    """The state dict in what a training script saved."""
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            return held[key]
    return held


def _layouts(a: Architecture) -> list[dict[str, str]]:
    """Our name -> theirs of every parameter, for each naming that is known for an architecture."""
    ways: list[dict[str, str]] = [{}]
    if isinstance(a, ResNet):
        words = {
            "stem": "conv1",
            "stem_norm": "bn1",
            "conv0": "conv1",
            "conv1": "conv2",
            "norm0": "bn1",
            "norm1": "bn2",
        }
        words |= {f"stage{i}": f"layer{i + 1}" for i in range(len(a.blocks))}
        for head, shortcut in (("fc", "downsample"), ("classifier", "shortcut"), ("linear", "shortcut")):
            ways.append(words | {"head": head, "shortcut": f"{shortcut}.0", "shortcut_norm": f"{shortcut}.1"})
    if isinstance(a, LeNet):
        ways.append({"conv0": "conv1", "conv1": "conv2", "fc0": "fc1", "fc1": "fc2", "head": "fc3"})
    if isinstance(a, ConvNet):
        step = 2 + (a.norm != "none") + (a.pooling != "none")
        words = {f"conv{i}": f"features.{step * i}" for i in range(a.depth)}
        ways.append(words | {f"norm{i}": f"features.{step * i + 1}" for i in range(a.depth)} | {"head": "classifier"})
    return [
        {name: ".".join(words.get(part, part) for part in name.split(".")) for name in a.weights()} for words in ways
    ]


def _same_names(path: Path, a: Architecture, names: Mapping[str, str], theirs: Mapping[str, torch.Tensor]) -> None:
    missing = [name for name in names.values() if name not in theirs]
    unknown = sorted(set(theirs) - set(names.values()))
    if len(missing) == len(names):
        raise ValueError(
            f"{path} has no parameter of {a.name} under a known name: it has {', '.join(unknown[:6])}, ..."
        )
    for wrong, found in (("lacks", missing), ("has besides", unknown)):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise ValueError(f"{path} is no state dict of {a.name}: it {wrong} {found[0]}{more}")


def _checked(what: str, t: torch.Tensor, shape: tuple[int, ...], a: Architecture) -> torch.Tensor:
    """One parameter, with a leading K = 1."""
    if tuple(t.shape) != tuple(shape):
        of = f"{a.name} for images {(a.channels, a.size, a.size)} and {a.classes} classes"
        raise ValueError(f"{what} has shape {tuple(t.shape)}: {tuple(shape)} is needed, of {of}")
    if not t.is_floating_point() or not torch.isfinite(t).all():
        raise ValueError(f"{what} is of type {t.dtype} or not finite: finite floating-point numbers are needed")
    return (t if t.dtype in (torch.float32, torch.float64) else t.float())[None].clone()
