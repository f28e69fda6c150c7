"""Plain PyTorch counterparts of the zoo, written without the package, and one plain training: what the engine is
compared with.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

NORMS = {"instance": lambda c: nn.GroupNorm(c, c), "batch": nn.BatchNorm2d}


def convnet(channels: int, size: int, classes: int, width: int, norm: str = "instance") -> nn.Module:
    """Three blocks and a linear layer; parameter names are those of the package."""
    blocks, side, c_in = OrderedDict(), size + (4 if size == 28 else 0), channels
    for i in range(3):
        blocks[f"conv{i}"] = nn.Conv2d(c_in, width, 3, padding=3 if i == 0 and size == 28 else 1)
        blocks[f"norm{i}"] = NORMS[norm](width)
        blocks[f"act{i}"] = nn.ReLU()
        if side > 1:
            blocks[f"pool{i}"] = nn.AvgPool2d(2)
        c_in, side = width, max(side // 2, 1)
    blocks["flatten"] = nn.Flatten()
    blocks["head"] = nn.Linear(width * side**2, classes)
    return nn.Sequential(blocks)


def lenet(channels: int, size: int, classes: int) -> nn.Module:
    """LeNet for 28 x 28 or 32 x 32 images."""
    return nn.Sequential(
        OrderedDict(
            conv0=nn.Conv2d(channels, 6, 5, padding=2 if size == 28 else 0), a0=nn.ReLU(), p0=nn.MaxPool2d(2),
            conv1=nn.Conv2d(6, 16, 5), a1=nn.ReLU(), p1=nn.MaxPool2d(2), flatten=nn.Flatten(),
            fc0=nn.Linear(400, 120), a2=nn.ReLU(), fc1=nn.Linear(120, 84), a3=nn.ReLU(), head=nn.Linear(84, classes),
        )
    )  # fmt: skip


def mlp(channels: int, size: int, classes: int) -> nn.Module:
    """Two hidden layers of 128."""
    n = channels * size**2
    layers = OrderedDict(
        flatten=nn.Flatten(), fc0=nn.Linear(n, 128), a0=nn.ReLU(), fc1=nn.Linear(128, 128), a1=nn.ReLU()
    )
    return nn.Sequential(layers | OrderedDict(head=nn.Linear(128, classes)))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), NORMS[norm](c_out)
        self.conv1, self.norm1 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), NORMS[norm](c_out)
        if stride > 1 or c_in != c_out:
            self.shortcut, self.shortcut_norm = nn.Conv2d(c_in, c_out, 1, stride, bias=False), NORMS[norm](c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm1(self.conv1(F.relu(self.norm0(self.conv0(x)))))
        return F.relu(out + (self.shortcut_norm(self.shortcut(x)) if hasattr(self, "shortcut") else x))


class ResNet(nn.Module):
    """CIFAR stem, stages of basic blocks, global average."""

    def __init__(self, channels: int, classes: int, blocks: tuple, widths: tuple, norm: str) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), NORMS[norm](widths[0])
        c_in = widths[0]
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = [Block(width if j else c_in, width, 2 if i and not j else 1, norm) for j in range(count)]
            self.add_module(f"stage{i}", nn.Sequential(*stage))
            c_in = width
        self.stages, self.head = len(blocks), nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        for i in range(self.stages):
            x = getattr(self, f"stage{i}")(x)
        return self.head(x.mean((2, 3)))


def with_state(module: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """The module in float64 with the parameters of one network (no leading K)."""
    own = {name: t for name, t in module.double().state_dict().items() if "num_batches" not in name}
    assert set(own) == set(state), set(own) ^ set(state)
    module.load_state_dict({name: t.clone() for name, t in state.items()}, strict=False)
    return module


def optimiser(module: nn.Module, kind: str, rate: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    """PyTorch's own."""
    if kind == "adam":
        return torch.optim.Adam(module.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(module.parameters(), lr=rate, momentum=momentum, weight_decay=decay)


def train(module: nn.Module, opt: torch.optim.Optimizer, batches: list, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """One update a batch of row numbers, mean cross-entropy."""
    module.train()
    for rows in batches:
        opt.zero_grad()
        F.cross_entropy(module(x[rows]), y[rows]).backward()
        opt.step()
    return module
