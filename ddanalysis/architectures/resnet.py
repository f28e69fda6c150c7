"""Residual networks for small images.

ResNet18 and 34 with a CIFAR stem (Yang et al. 2024; with instance norm, the DC/DSA/DM code base), and the 14-layer one
of Bohdal et al. 2020.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ddanalysis import checks, layers
from ddanalysis.architectures.base import Architecture
from ddanalysis.layers import Parameters, Weights


@dataclass(frozen=True)
class ResNet(Architecture):
    """Basic-block residual network with a CIFAR stem (one 3x3 convolution, no pooling) and global average pooling."""

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    norm: str = "batch"

    kind: ClassVar[str] = "ResNet"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("ResNet norm", self.norm, ("batch", "instance"))
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"ResNet has {len(self.blocks)} block counts for {len(self.widths)} widths: give one each")

    @property
    def name(self) -> str:
        return f"ResNet{2 * sum(self.blocks) + 2}" + ("" if self.norm == "batch" else "-IN")

    @property
    def widest(self) -> int:
        return self.widths[0] * self.padded_size**2

    def _plan(self) -> list[tuple[str, int, int, int, int]]:
        """(name, channels in, channels out, stride, side of its output) of every block."""
        plan, c_in, side = [], self.widths[0], self.padded_size
        for stage, (count, c_out) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for block in range(count):
                stride = 2 if stage and block == 0 else 1
                side = (side + stride - 1) // stride
                plan.append((f"stage{stage}.{block}", c_in, c_out, stride, side))
                c_in = c_out
        return plan

    def weights(self) -> Weights:
        weights = layers.conv_weights("stem", self.widths[0], self.channels, 3, bias=False)
        weights |= layers.norm_weights("stem_norm", self.norm, self.widths[0], self.padded_size)
        for name, c_in, c_out, stride, side in self._plan():
            weights |= layers.conv_weights(f"{name}.conv0", c_out, c_in, 3, bias=False)
            weights |= layers.norm_weights(f"{name}.norm0", self.norm, c_out, side)
            weights |= layers.conv_weights(f"{name}.conv1", c_out, c_out, 3, bias=False)
            weights |= layers.norm_weights(f"{name}.norm1", self.norm, c_out, side)
            if stride > 1 or c_in != c_out:
                weights |= layers.conv_weights(f"{name}.shortcut", c_out, c_in, 1, bias=False)
                weights |= layers.norm_weights(f"{name}.shortcut_norm", self.norm, c_out, side)
        return weights | layers.linear_weights("head", self.classes, self.widths[-1])

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        x = layers.conv(p, "stem", x, padding=self.first_padding)
        x = F.relu(layers.norm(p, "stem_norm", self.norm, x, updated))
        for name, _, _, stride, _ in self._plan():
            x = self._block(p, name, stride, x, updated)
        return layers.flatten(p, x.mean((2, 3), keepdim=True))

    def _block(
        self, p: Parameters, name: str, stride: int, x: torch.Tensor, updated: Parameters | None
    ) -> torch.Tensor:
        out = layers.conv(p, f"{name}.conv0", x, stride, 1)
        out = F.relu(layers.norm(p, f"{name}.norm0", self.norm, out, updated))
        out = layers.norm(p, f"{name}.norm1", self.norm, layers.conv(p, f"{name}.conv1", out, 1, 1), updated)
        if f"{name}.shortcut.weight" in p:
            x = layers.norm(
                p, f"{name}.shortcut_norm", self.norm, layers.conv(p, f"{name}.shortcut", x, stride), updated
            )
        return F.relu(out + x)


@dataclass(frozen=True)
class ResNet14(ResNet):
    """The 14-layer CIFAR ResNet that the label-distillation code calls ResNet-18 (Bohdal et al. 2020).

    It is evaluated with running statistics; the published second-order code tests it with those of each test batch.
    """

    blocks: tuple[int, ...] = (2, 2, 2)
    widths: tuple[int, ...] = (16, 32, 64)

    initialisation: ClassVar[str] = "kaiming_convolutions"
