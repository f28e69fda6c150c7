"""The ConvNet that nearly all of the field distils with (DC/DSA/DM code base), with its published variants."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ddanalysis import checks, layers
from ddanalysis.architectures.base import Architecture
from ddanalysis.layers import Parameters, Weights


@dataclass(frozen=True)
class ConvNet(Architecture):
    """``depth`` blocks of 3x3 convolution, normalisation, activation and 2x2 pooling, then one linear layer.

    A block whose maps are already 1 x 1 does not pool, so 8 x 8 digits pass three blocks.
    """

    width: int = 128
    depth: int = 3
    activation: str = "relu"
    norm: str = "instance"
    pooling: str = "avg"

    kind: ClassVar[str] = "ConvNet"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole("ConvNet width", self.width)
        checks.whole("ConvNet depth", self.depth)
        checks.one_of("ConvNet activation", self.activation, layers.ACTIVATIONS)
        checks.one_of("ConvNet norm", self.norm, layers.NORMS)
        checks.one_of("ConvNet pooling", self.pooling, layers.POOLINGS)
        if self.norm == "group" and self.width % 4:
            raise ValueError(
                f"ConvNet width is {self.width}: group normalisation has 4 groups and needs a multiple of 4"
            )

    def _sizes(self) -> list[int]:
        """Side of the maps before each block's pooling, then of the last maps."""
        sizes = [self.padded_size]
        for _ in range(self.depth):
            sizes.append(sizes[-1] // 2 if self.pooling != "none" and sizes[-1] > 1 else sizes[-1])
        return sizes

    @property
    def widest(self) -> int:
        return self.width * self.padded_size**2

    def weights(self) -> Weights:
        sizes = self._sizes()
        weights: Weights = {}
        for i in range(self.depth):
            weights |= layers.conv_weights(f"conv{i}", self.width, self.width if i else self.channels, 3)
            weights |= layers.norm_weights(f"norm{i}", self.norm, self.width, sizes[i])
        return weights | layers.linear_weights("head", self.classes, self.width * sizes[-1] ** 2)

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        sizes = self._sizes()
        for i in range(self.depth):
            x = layers.conv(p, f"conv{i}", x, padding=1 if i else self.first_padding)
            x = layers.ACTIVATIONS[self.activation](layers.norm(p, f"norm{i}", self.norm, x, updated))
            x = layers.pool(self.pooling, x) if sizes[i + 1] < sizes[i] else x
        return layers.flatten(p, x)
