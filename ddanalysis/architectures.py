"""The published zoo: each architecture a frozen value that declares its parameters and computes its penultimate
features.

Sources: DC/DSA/DM code base (ConvNet, LeNet, MLP, AlexNet, VGG11, ResNet18), Wang et al. 2018 (LeNet, AlexCifarNet),
Bohdal et al. 2020 (the 14-layer CIFAR ResNet), "What is Dataset Distillation Learning?" 2024 (ConvNet-Tiny, ResNet18
and 34 with a CIFAR stem).
"""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F

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
        x = F.max_pool2d(F.relu(layers.conv(p, "conv0", x, padding=2 if self.size <= 28 else 0)), 2)
        x = F.max_pool2d(F.relu(layers.conv(p, "conv1", x, padding=2 if self.size < 28 else 0)), 2)
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
            x = F.max_pool2d(x, 2) if pooled and x.shape[-1] > 1 else x
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
            x = F.max_pool2d(x, 2) if pooled and x.shape[-1] > 1 else x
        return layers.flatten(p, x)


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
    """The 14-layer CIFAR ResNet that the label-distillation code calls ResNet-18 (Bohdal et al. 2020)."""

    blocks: tuple[int, ...] = (2, 2, 2)
    widths: tuple[int, ...] = (16, 32, 64)

    initialisation: ClassVar[str] = "kaiming_normal"


ZOO: dict[str, tuple[type[Architecture], dict[str, object]]] = {
    "ConvNet": (ConvNet, {}),
    "ConvNet-Tiny": (ConvNet, {"width": 16}),
    "LeNet": (LeNet, {}),
    "AlexCifarNet": (AlexCifarNet, {}),
    "MLP": (MLP, {}),
    "MLP-small": (MLP, {"hidden": (256, 128)}),
    "AlexNet": (AlexNet, {}),
    "VGG11": (VGG11, {}),
    "ResNet14": (ResNet14, {}),
    "ResNet18": (ResNet, {}),
    "ResNet34": (ResNet, {"blocks": (3, 4, 6, 3)}),
    "ResNet18-IN": (ResNet, {"norm": "instance"}),
    "ResNet34-IN": (ResNet, {"norm": "instance", "blocks": (3, 4, 6, 3)}),
}
"""Every network by name: its architecture, and the options that make it."""


def build(name: str, shape: tuple[int, int, int], classes: int, **options: object) -> Architecture:
    """The architecture ``name`` for images of ``shape`` (channels, height, width), which must be square.

    ``options`` change the published network, ``build("ConvNet", (3, 32, 32), 10, width=16)``; a width of 0 is the
    published one. ``ValueError`` for an unknown name or option.
    """
    options = {option: value for option, value in options.items() if (option, value) != ("width", 0)}
    checks.one_of("network", name, ZOO)
    channels, height, width = shape
    if height != width:
        raise ValueError(f"images are {height} x {width}: the networks take square ones")
    architecture, own = ZOO[name]
    for option in options:
        checks.one_of(f"option of {name}", option, [f.name for f in fields(architecture)][3:])
    return architecture(channels, height, classes, **(own | options))  # type: ignore[arg-type]
