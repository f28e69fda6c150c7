"""Images as combinations of a few shared ones, the memory addressing of BPTT.

Deng and Russakovsky, *Remember the past* (NeurIPS 2022): image i is the sum over b of coefficient (i, b) times base b,
made larger bilinearly where the bases are small. Bases are shared by all classes and each image has its own
coefficients, so a class has many more images than the same count of numbers buys as pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from ddanalysis import checks
from ddanalysis.distill.making import Job
from ddanalysis.seeding import generator
from ddanalysis.store import Tensors


def images_per_class(job: Job, bases: int, downsample: int) -> int:
    """The images a class whose coefficients and bases together are no more numbers than ``ipc`` plain images a class.

    For CIFAR-10 at one image a class and 16 bases of half the size, 115. Raises ``ValueError`` if not even one fits or
    the size of images is no multiple of ``downsample``.
    """
    checks.whole("bases", bases)
    checks.whole("downsample", downsample)
    size, classes, pixels = job.data.shape[-1], job.data.n_classes, math.prod(job.data.shape)
    if size % downsample:
        raise ValueError(f"downsample is {downsample}: it must divide the size of images, {size}")
    count = (job.ipc * pixels * classes - bases * pixels // downsample**2) // (classes * bases)
    if count < 1:
        most = job.ipc * pixels * classes // (classes + pixels // downsample**2)
        raise ValueError(f"bases is {bases}: at {job.ipc} images a class of {job.data.name} there is room for {most}")
    return count


def start(job: Job, bases: int, downsample: int) -> Tensors:
    """Bases (b, c, h / d, w / d) and coefficients (images, b), each matrix Xavier-uniform as published.

    ``job.ipc`` counts the images a class of these, not the budget.
    """
    (c, h, w), x = job.data.shape, job.data.train_x
    small = (c, h // downsample, w // downsample)
    shapes = {"bases": (bases, math.prod(small)), "coefficients": (job.ipc * job.data.n_classes, bases)}
    made = {
        name: init.xavier_uniform_(torch.empty(shape, dtype=x.dtype), generator=generator(job.seed, "xavier", name))
        for name, shape in shapes.items()
    }
    made["bases"] = made["bases"].view(bases, *small)
    return {name: t.to(x.device) for name, t in made.items()}


def images(learned: Tensors, shape: tuple[int, ...], rows: Tensor | None = None) -> Tensor:
    """Images (n, c, h, w) of ``shape`` (c, h, w), differentiable; ``rows`` of them, or all.

    They are ``learned`` as pixels "x", or as "bases" with "coefficients".
    """
    name = "x" if "x" in learned else "coefficients"
    own = learned[name] if rows is None else learned[name][rows]
    if name == "x":
        return own
    small = torch.einsum("nb,bchw->nchw", own, learned["bases"])
    return small if small.shape[1:] == shape else F.interpolate(small, shape[1:], mode="bilinear", align_corners=False)
