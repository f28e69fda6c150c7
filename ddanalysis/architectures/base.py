"""What every architecture declares, and what follows from it."""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from ddanalysis import checks, layers
from ddanalysis.layers import Parameters, Weights


@dataclass(frozen=True)
class Architecture:
    """A network for ``classes`` classes of square images, ``channels`` x ``size`` x ``size``."""

    channels: int
    size: int
    classes: int

    kind: ClassVar[str] = ""
    initialisation: ClassVar[str] = "default"

    def __post_init__(self) -> None:
        for name in ("channels", "size", "classes"):
            checks.whole(f"{self.kind} {name}", getattr(self, name))

    @property
    def name(self) -> str:
        """As tables print it: the kind, and every option that differs from the published network (``ConvNet-W16``)."""
        options = [f for f in fields(self) if f.name not in ("channels", "size", "classes")]
        changed = [(f.name, getattr(self, f.name)) for f in options if getattr(self, f.name) != f.default]
        return "-".join([self.kind, *(_short(*option) for option in changed)])

    @property
    def batch_statistics(self) -> bool:
        """Whether the images of a batch see each other while training (batch normalisation)."""
        return getattr(self, "norm", "none") == "batch"

    @property
    def widest(self) -> int:
        """Numbers in the largest feature map of one image: what decides how much is computed at once."""
        raise TypeError(f"{type(self).__name__} does not say how wide it is")

    def weights(self) -> Weights:
        """Every parameter by name; the last layer is ``head``."""
        raise TypeError(f"{type(self).__name__} declares no weights")

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        """Penultimate features (n, K, f) of images (n, K * c, h, w); ``updated`` as in :func:`layers.norm`."""
        raise TypeError(f"{type(self).__name__} computes no features")

    def logits(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        """Logits (n, K, classes) of images (n, K * c, h, w)."""
        return layers.linear(p, "head", self.features(p, x, updated))

    def parameter_count(self) -> int:
        """Trainable numbers of one network (running statistics are none)."""
        trainable = [w for w in self.weights().values() if not w.role.startswith("running")]
        return sum(torch.Size(w.shape).numel() for w in trainable)

    @property
    def first_padding(self) -> int:
        """Zeros put around the first 3 x 3 convolution's input: a 28 x 28 image becomes 32 x 32, as published."""
        return 3 if self.size == 28 else 1

    @property
    def padded_size(self) -> int:
        """Side of the first feature map."""
        return self.size + 2 * (self.first_padding - 1)


def _short(option: str, value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return {"width": "W", "depth": "D"}.get(option, "") + str(value)
