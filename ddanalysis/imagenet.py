"""The network that torchvision trained on ImageNet, with a last layer that knows nothing yet.

What Wang et al. 2018 (section 4.3, code) learn images of VOC and CUB-200 for: AlexNet's published weights, but for the
last layer's, which are 0, and its biases, which are 1.
"""

import hashlib
import pickle
from pathlib import Path

import torch

from ddanalysis.architectures import Architecture
from ddanalysis.architectures.imagenet import ImageNetAlexNet
from ddanalysis.networks import Networks

FILE = "alexnet-owt-7be5be79.pth"
"""As torchvision keeps it; the digits are the first of its sha256."""

THEIRS = {
    **{f"conv{i}": f"features.{n}" for i, n in enumerate((0, 3, 6, 8, 10))},
    **{f"fc{i}": f"classifier.{n}" for i, n in enumerate((1, 4))},
}
"""Our names of the layers that are kept, and torchvision's."""


def find(root: Path | None) -> Path:
    """The file of weights, in the data folder ``root`` or in PyTorch's own; ``FileNotFoundError`` if in neither."""
    places = [folder / FILE for folder in (root, Path(torch.hub.get_dir()) / "checkpoints") if folder is not None]
    for path in places:
        if path.is_file():
            return path
    what = f"no weights of ImageNet: looked for {' and '.join(map(str, places))}"
    raise FileNotFoundError(f"{what}; torchvision.models.AlexNet_Weights.IMAGENET1K_V1.get_state_dict() fetches them")


def check(architecture: Architecture, root: Path | None) -> Path:
    """``ValueError`` for an architecture other than :class:`ImageNetAlexNet`; else as :func:`find`."""
    if not isinstance(architecture, ImageNetAlexNet):
        raise ValueError(
            f"networks are 'imagenet': AlexNet-ImageNet is needed, and the architecture is {architecture.name}"
        )
    return find(root)


def network(architecture: Architecture, root: Path | None) -> Networks:
    """One network with the weights of :func:`find`, 0 and 1 in its last layer, on the CPU.

    Raises as :func:`check`, and ``ValueError`` for a damaged file or one that does not fit.
    """
    path = check(architecture, root)
    digits = FILE.removesuffix(".pth").rpartition("-")[2]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digits):
        raise ValueError(f"{path} is damaged: its sha256 begins with {found[: len(digits)]}, not {digits}")
    try:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} holds no weights: {error}") from error
    parts = ("weight", "bias")
    state = {f"{own}.{part}": theirs[f"{its}.{part}"][None] for own, its in THEIRS.items() for part in parts}
    head = architecture.weights()["head.weight"].shape
    state |= {"head.weight": torch.zeros(1, *head), "head.bias": torch.ones(1, head[0])}
    return Networks(architecture, state)
