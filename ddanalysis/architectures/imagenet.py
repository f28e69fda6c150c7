"""The AlexNet of ImageNet, as torchvision has it: the network that images of VOC and CUB-200 are learned for."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ddanalysis import checks, layers
from ddanalysis.architectures.base import Architecture
from ddanalysis.layers import Parameters, Weights

CONVOLUTIONS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Channels, kernel, stride, padding."""

POOLED = (0, 1, 4)
"""After which of them a 3 x 3 maximum with stride 2 follows."""

SIDE = 6
"""Of the feature map that the linear layers see, whatever the size of the images."""


@dataclass(frozen=True)
class ImageNetAlexNet(Architecture):
    """Five convolutions and three linear layers, two of ``hidden`` units, without dropout (published: off by default).

    Made for 224 x 224. A map smaller than a pooling window is not pooled, so that small images pass as well.
    """

    hidden: int = 4096

    kind: ClassVar[str] = "AlexNet-ImageNet"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(f"{self.kind} hidden", self.hidden)

    @property
    def widest(self) -> int:
        channels, kernel, stride, padding = CONVOLUTIONS[0]
        return channels * ((self.size + 2 * padding - kernel) // stride + 1) ** 2

    def weights(self) -> Weights:
        weights: Weights = {}
        c_in = self.channels
        for i, (c_out, kernel, _, _) in enumerate(CONVOLUTIONS):
            weights |= layers.conv_weights(f"conv{i}", c_out, c_in, kernel)
            c_in = c_out
        widths = (c_in * SIDE**2, self.hidden, self.hidden)
        for i, (f_in, f_out) in enumerate(zip(widths, widths[1:], strict=False)):
            weights |= layers.linear_weights(f"fc{i}", f_out, f_in)
        return weights | layers.linear_weights("head", self.classes, self.hidden)

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        for i, (_, _, stride, padding) in enumerate(CONVOLUTIONS):
            x = F.relu(layers.conv(p, f"conv{i}", x, stride, padding))
            x = F.max_pool2d(x, 3, 2) if i in POOLED and x.shape[-1] >= 3 else x
        x = layers.flatten(p, F.adaptive_avg_pool2d(x, SIDE))
        return F.relu(layers.linear(p, "fc1", F.relu(layers.linear(p, "fc0", x))))
