"""Networks without shortcuts: LeNet, MLP, AlexNet and VGG11 (DC/DSA/DM code base), AlexCifarNet (Wang et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ddanalysis import checks, layers
from ddanalysis.architectures.base import Architecture
from ddanalysis.layers import Parameters, Weights


@dataclass(frozen=True)
class LeNet(Architecture):
    """Two 5x5 convolutions and three linear layers; inputs of 28 or less are padded by 2, and so is the second layer
    below 28.
    """

    kind: ClassVar[str] = "LeNet"

    def _side(self) -> int:
        first = (self.size + 4 if self.size <= 28 else self.size) - 4
        second = first // 2 if self.size < 28 else first // 2 - 4
        return second // 2

    @property
    def widest(self) -> int:
        return 6 * self.size**2

    def weights(self) -> Weights:
        return (
            layers.conv_weights("conv0", 6, self.channels, 5)
            | layers.conv_weights("conv1", 16, 6, 5)
            | layers.linear_weights("fc0", 120, 16 * self._side() ** 2)
            | layers.linear_weights("fc1", 84, 120)
            | layers.linear_weights("head", self.classes, 84)
        )

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        x = layers.max_pool(F.relu(layers.conv(p, "conv0", x, padding=2 if self.size <= 28 else 0)))
        x = layers.max_pool(F.relu(layers.conv(p, "conv1", x, padding=2 if self.size < 28 else 0)))
        x = F.relu(layers.linear(p, "fc0", layers.flatten(p, x)))
        return F.relu(layers.linear(p, "fc1", x))


@dataclass(frozen=True)
class MLP(Architecture):
    """Linear layers of ``hidden`` units with ReLU."""

    hidden: tuple[int, ...] = (128, 128)

    kind: ClassVar[str] = "MLP"

    @property
    def widest(self) -> int:
        return max(self.channels * self.size**2, *self.hidden)

    def weights(self) -> Weights:
        widths = (self.channels * self.size**2, *self.hidden)
        weights: Weights = {}
        for i, (f_in, f_out) in enumerate(zip(widths, widths[1:], strict=False)):
            weights |= layers.linear_weights(f"fc{i}", f_out, f_in)
        return weights | layers.linear_weights("head", self.classes, widths[-1])

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        x = layers.flatten(p, x)
        for i in range(len(self.hidden)):
            x = F.relu(layers.linear(p, f"fc{i}", x))
        return x


@dataclass(frozen=True)
class AlexCifarNet(Architecture):
    """Two 5x5 convolutions with local response normalisation and three linear layers (Wang et al. 2018)."""

    kind: ClassVar[str] = "AlexCifarNet"

    def _side(self) -> int:
        return ((self.size + 1) // 2 + 1) // 2

    @property
    def widest(self) -> int:
        return 64 * self.size**2

    def weights(self) -> Weights:
        return (
            layers.conv_weights("conv0", 64, self.channels, 5)
            | layers.conv_weights("conv1", 64, 64, 5)
            | layers.linear_weights("fc0", 384, 64 * self._side() ** 2)
            | layers.linear_weights("fc1", 192, 384)
            | layers.linear_weights("head", self.classes, 192)
        )

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        x = F.relu(layers.conv(p, "conv0", x, padding=2))
        x = _response_norm(F.max_pool2d(x, 3, 2, 1))
        x = _response_norm(F.relu(layers.conv(p, "conv1", x, padding=2)))
        x = layers.flatten(p, F.max_pool2d(x, 3, 2, 1))
        return F.relu(layers.linear(p, "fc1", F.relu(layers.linear(p, "fc0", x))))


def _response_norm(x: torch.Tensor, channels: int = 64) -> torch.Tensor:
    """Local response normalisation over 4 channels, within each network's own."""
    own = x.reshape(-1, channels, *x.shape[2:])
    return F.local_response_norm(own, 4, alpha=0.001 / 9.0, beta=0.75, k=1.0).reshape(x.shape)


ALEXNET = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))  # channels, kernel, pool


@dataclass(frozen=True)
class AlexNet(Architecture):
    """The five-convolution AlexNet of the DC code base, one linear layer."""

    kind: ClassVar[str] = "AlexNet"

    def _padding(self, i: int) -> int:
        return ALEXNET[i][1] // 2 + (2 if i == 0 and self.size == 28 else 0)

    def _side(self) -> int:
        return max(self.padded_size // 8, 1)

    @property
    def widest(self) -> int:
        return 128 * self.padded_size**2

    def weights(self) -> Weights:
        weights: Weights = {}
        c_in = self.channels
        for i, (c_out, kernel, _) in enumerate(ALEXNET):
            weights |= layers.conv_weights(f"conv{i}", c_out, c_in, kernel)
            c_in = c_out
        return weights | layers.linear_weights("head", self.classes, c_in * self._side() ** 2)

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        for i, (_, _, pooled) in enumerate(ALEXNET):
            x = F.relu(layers.conv(p, f"conv{i}", x, padding=self._padding(i)))
            x = layers.max_pool(x) if pooled and x.shape[-1] > 1 else x
        return layers.flatten(p, x)


VGG11_CONVS = (
    (64, True),
    (128, True),
    (256, False),
    (256, True),
    (512, False),
    (512, True),
    (512, False),
    (512, True),
)  # channels, pool


@dataclass(frozen=True)
class VGG11(Architecture):
    """Eight 3x3 convolutions with normalisation, five poolings (fewer for images under 32), one linear layer."""

    norm: str = "instance"

    kind: ClassVar[str] = "VGG11"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("VGG11 norm", self.norm, ("instance", "batch"))

    @property
    def widest(self) -> int:
        return 64 * self.padded_size**2

    def weights(self) -> Weights:
        weights: Weights = {}
        c_in, side = self.channels, self.padded_size
        for i, (c_out, pooled) in enumerate(VGG11_CONVS):
            weights |= layers.conv_weights(f"conv{i}", c_out, c_in, 3)
            weights |= layers.norm_weights(f"norm{i}", self.norm, c_out, side)
            c_in, side = c_out, max(side // 2, 1) if pooled else side
        return weights | layers.linear_weights("head", self.classes, c_in * side**2)

    def features(self, p: Parameters, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
        for i, (_, pooled) in enumerate(VGG11_CONVS):
            x = layers.conv(p, f"conv{i}", x, padding=1 if i else self.first_padding)
            x = F.relu(layers.norm(p, f"norm{i}", self.norm, x, updated))
            x = layers.max_pool(x) if pooled and x.shape[-1] > 1 else x
        return layers.flatten(p, x)
