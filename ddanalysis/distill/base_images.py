"""The base images of label distillation, which images of the target it learns from, and on which it is validated."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks, data
from ddanalysis.data import ImageData, class_rows
from ddanalysis.seeding import generator

HELD_OUT = {"mnist": 10_000, "kmnist": 10_000, "cifar10": 5_000, "cifar100": 5_000}
"""Published numbers of validation images; a tenth, rounded up, elsewhere (as for Kuzushiji-49)."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def split(
    target: ImageData, seed: int, validation: int | None = None, target_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Training rows of ``target`` (int64, at random): to learn from, then ``validation`` others (None: published).

    ``target_size`` keeps that many of the first, or all where there are fewer. ``ValueError`` if none are left.
    """
    n = len(target.train_y)
    held_out = HELD_OUT.get(target.name.split("-")[0], n - n * 9 // 10) if validation is None else validation
    checks.whole("validation images", held_out)
    if held_out >= n:
        raise ValueError(f"validation takes {held_out} images: {target.name} has {n}, and some are to learn from")
    if target_size is not None:
        checks.whole("target_size", target_size)
    order = torch.randperm(n, generator=generator(seed, "validation split")).to(target.train_y.device)
    return order[held_out:][:target_size], order[:held_out]


def base_images(
    target: ImageData, n: int, seed: int, source: str = "", balanced: bool = True, rows: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """``n`` images in the space and shape of ``target``, and their class ids (n,) in their own dataset.

    ``source`` is "" for the target itself, of which ``rows`` (None: all) are the training images to choose from, a
    dataset, all of whose training images are (published: of CUB-200 the test images too), or "noise", pixels uniform in
    [0, 1], which has no classes. ``balanced``
    takes as many of each of as many classes as the target has, drawn where there are more, class by class. Images of a
    source are greyed, given three equal channels or resized where they differ. ``ValueError`` for too few images.
    """
    checks.whole("base images", n)
    g = generator(seed, "base images")
    if source == "noise":
        pixels = torch.rand(n, *target.shape, generator=g).to(target.train_x)
        return target.normalise(pixels.to(target.train_x)), None
    own = source in ("", target.name)
    found = target if own else data.load(source, root=target.root, device=target.train_x.device)
    pool = torch.arange(len(found.train_y)) if rows is None or not own else rows.cpu()
    labels = found.train_y.cpu()[pool]
    chosen = _balanced(labels, n, target.n_classes, found.name, g) if balanced else _any(labels, n, found.name, g)
    chosen = pool[chosen].to(found.train_y.device)
    x = found.train_x[chosen]
    if not own:
        x = target.normalise(_shaped(found.denormalise(x), target).to(target.train_x))
    return x.clone(), found.train_y[chosen]


def _any(y: Tensor, n: int, name: str, g: torch.Generator) -> Tensor:
    if len(y) < n:
        raise ValueError(f"{n} base images are asked for: {name} has {len(y)}")
    return torch.randperm(len(y), generator=g)[:n]


def _balanced(y: Tensor, n: int, classes: int, name: str, g: torch.Generator) -> Tensor:
    each, rest = divmod(n, classes)
    if rest:
        raise ValueError(f"{n} base images are asked for: {classes} classes of as many each need a multiple")
    rich = (torch.bincount(y) >= each).nonzero()[:, 0]
    if len(rich) < classes:
        raise ValueError(f"{len(rich)} classes of {name} have {each} images: {classes} are needed for balanced ones")
    drawn = rich[torch.randperm(len(rich), generator=g)[:classes]].sort().values
    parts = [class_rows(y, int(c)) for c in drawn]
    return torch.cat([own[torch.randperm(len(own), generator=g)[:each]] for own in parts])


def _shaped(pixels: Tensor, like: ImageData) -> Tensor:
    """Pixels with the channels and the size of ``like``."""
    c, h, w = like.shape
    if c == 1 and pixels.shape[1] == 3:
        pixels = (pixels * torch.tensor(GREY).to(pixels).view(-1, 1, 1)).sum(1, keepdim=True)
    pixels = pixels.expand(-1, c, -1, -1)
    if tuple(pixels.shape[2:]) != (h, w):
        pixels = F.interpolate(pixels, (h, w), mode="bilinear", antialias=True)
    return pixels


def true_labels(y: Tensor | None, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Class ids (n,) as one-hot rows (n, classes), numbered anew by first appearance if one is not below ``classes``.

    ``ValueError`` for None, which noise has, and for more different ones than ``classes``.
    """
    if y is None:
        raise ValueError("noise has no true labels: start from uniform ones")
    if int(y.max()) >= classes:
        order = list(dict.fromkeys(y.tolist()))
        if len(order) > classes:
            raise ValueError(
                f"the base images are of {len(order)} classes: at most {classes} are allowed, the target's"
            )
        y = torch.tensor([order.index(c) for c in y.tolist()], device=y.device)
    return F.one_hot(y, classes).to(dtype)
