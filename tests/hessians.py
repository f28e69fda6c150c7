"""Small networks in float64 and their exact Hessians: what products, traces and spectra are compared with."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ddanalysis import layers, networks, unroll
from ddanalysis.architectures import Architecture, build
from ddanalysis.networks import Networks


@dataclass(frozen=True)
class Linear(Architecture):
    """A linear softmax model, whose loss is convex."""

    kind: ClassVar[str] = "Linear"

    @property
    def widest(self):
        return self.channels * self.size**2

    def weights(self):
        return layers.linear_weights("head", self.classes, self.widest)

    def features(self, p, x, updated=None):
        return layers.flatten(p, x)


LINEAR = Linear(1, 2, 3)  # 15 parameters
SMALL = build("ConvNet", (1, 4, 4), 3, width=3, depth=2)

ZOO = {
    "convnet": ("ConvNet", (1, 8, 8), {"width": 4}),
    "batch": ("ConvNet", (3, 8, 8), {"width": 4, "norm": "batch"}),
    "layer, max": ("ConvNet", (1, 8, 8), {"width": 4, "norm": "layer", "pooling": "max"}),
    "lenet": ("LeNet", (1, 28, 28), {}),
    "resnet": ("ResNet18-IN", (3, 8, 8), {"widths": (4, 8), "blocks": (1, 1)}),
}


def toy(a, n=14, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, a.channels, a.size, a.size, generator=g, dtype=torch.float64)
    return x, torch.arange(n) % a.classes


def fresh(a, seed=1):
    """A network whose running statistics are not those of a new one."""
    net = networks.create(a, [seed], dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    moved = {
        name: t + torch.rand(t.shape, generator=g, dtype=t.dtype) if "running" in name else t
        for name, t in net.state.items()
    }
    return Networks(a, moved)


def exact(net, x, y):
    """The Hessian (P, P) by reverse over reverse mode."""
    running = {name: t for name, t in net.state.items() if name not in net.trainable()}

    def loss(weights):
        state = unroll.unflat(net.architecture, weights[None]).state | running
        return Networks(net.architecture, state).loss(x, y)[0]

    return torch.autograd.functional.hessian(loss, unroll.flat(net)[0])


def closed_form(net, x, y=None):
    """The Hessian of a linear softmax model: the mean of (diag(p) - p p') x (features, 1) (features, 1)'."""
    p = net.logits(x)[0].softmax(1)
    features = torch.cat([x.flatten(1), torch.ones(len(x), 1, dtype=x.dtype)], 1)
    within = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    full = torch.einsum("icd,if,ig->cfdg", within, features, features) / len(x)
    f, c = features.shape[1], p.shape[1]
    order = [k * f + j for k in range(c) for j in range(f - 1)] + [k * f + f - 1 for k in range(c)]  # weights, biases
    return full.reshape(c * f, c * f)[order][:, order]
