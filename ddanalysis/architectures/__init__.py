"""The published zoo: each architecture a frozen value that declares its parameters and computes its features."""

from dataclasses import fields

from ddanalysis import checks
from ddanalysis.architectures.base import Architecture
from ddanalysis.architectures.classic import MLP, VGG11, AlexCifarNet, AlexNet, LeNet
from ddanalysis.architectures.convnet import ConvNet
from ddanalysis.architectures.imagenet import ImageNetAlexNet
from ddanalysis.architectures.resnet import ResNet, ResNet14

__all__ = ["ZOO", "Architecture", "ConvNet", "build"]

ZOO: dict[str, tuple[type[Architecture], dict[str, object]]] = {
    "ConvNet": (ConvNet, {}),
    "ConvNet-Tiny": (ConvNet, {"width": 16}),
    "LeNet": (LeNet, {}),
    "AlexCifarNet": (AlexCifarNet, {}),
    "MLP": (MLP, {}),
    "MLP-small": (MLP, {"hidden": (256, 128)}),
    "AlexNet": (AlexNet, {}),
    "AlexNet-ImageNet": (ImageNetAlexNet, {}),
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

    ``options`` change the published network, ``build("ConvNet", (3, 32, 32), 10, width=16)``; a width or depth of 0 is
    the published one. ``ValueError`` for an unknown name or option.
    """
    options = {option: value for option, value in options.items() if option not in ("width", "depth") or value != 0}
    checks.one_of("network", name, ZOO)
    channels, height, width = shape
    if height != width:
        raise ValueError(f"images are {height} x {width}: the networks take square ones")
    architecture, own = ZOO[name]
    for option in options:
        checks.one_of(f"option of {name}", option, [f.name for f in fields(architecture)][3:])
    return architecture(channels, height, classes, **(own | options))  # type: ignore[arg-type]
