"""What an image looks like, in numbers and in words, from its pixels alone: light, colour, edges, place, texture.

A table of descriptors has one image a row and one named number a column; a table of attributes is its yes-or-no form.
A trained network's features are one more descriptor space, without names.
"""

import math

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks
from ddanalysis.networks import Networks

LOW_HIGH = {
    "brightness": ("dark", "bright"),
    "contrast": ("low contrast", "high contrast"),
    "border": ("dark border", "bright border"),
    "saturation": ("pale", "colourful"),
    "coherence": ("edges every way", "edges one way"),
    "x": ("left", "right"),
    "y": ("high up", "low down"),
    "spread": ("compact", "spread out"),
    "size": ("small", "large"),
    "fine": ("smooth", "finely textured"),
}
"""Descriptor -> its attributes: in the bottom and in the top third of all images."""

EDGES = ("vertical", "rising", "horizontal", "falling")
HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
"""Of each of these an image has one attribute, that of its largest: ``mostly vertical``, ``mostly red``."""

OUTSIDE = 1e-3
"""How far beyond [0, 1] rounding may take a pixel."""


def descriptors(pixels: Tensor) -> pd.DataFrame:
    """Named descriptors (N, D) of images (N, c, h, w) of pixels in [0, 1], grey (c = 1) or RGB, at least 4 x 4.

    ``brightness``, ``contrast``: mean and deviation of the luminance (Rec. 601). ``border``: its median on the rim.
    ``vertical``, ``rising``, ``horizontal``, ``falling``: shares of the squared gradient whose edge runs so;
    ``coherence``: how far one direction rules, 0 to 1 (structure tensor; Jähne 2005, chapter 13). ``x``, ``y``,
    ``spread``: centroid, from -1 (left, top) to 1, and root mean square distance from it, of what differs from the
    border; ``size``: the share of pixels that differ by more than half of the most. ``fine``, ``medium``, ``coarse``:
    shares of the variance within squares of 2 x 2 pixels, within those of 4 x 4 between these, and the rest. Of colour
    images besides: ``saturation`` (HSV) and ``red`` ... ``magenta``, the mean chroma of the pixels of that hue. What
    is undefined for a flat image is 0. Raises ``ValueError`` for other images.
    """
    checks.images("pixels", pixels)
    checks.one_of("number of channels", pixels.shape[1], (1, 3))
    if min(pixels.shape[2:]) < 4:
        raise ValueError(f"images are {pixels.shape[2]} x {pixels.shape[3]} pixels: at least 4 x 4 are needed")
    low, high = (float(end) for end in torch.aminmax(pixels))
    if low < -OUTSIDE or high > 1 + OUTSIDE:
        raise ValueError(f"pixels go from {low:.4g} to {high:.4g}: from 0 to 1 is needed, so denormalise and clip them")
    pixels = pixels.clamp(0, 1)
    grey = pixels[:, 0] if pixels.shape[1] == 1 else _luminance(pixels)
    found = _light(grey) | _edges(grey) | _mass(grey) | _texture(grey)
    found |= _colour(pixels) if pixels.shape[1] == 3 else {}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in found.items()})


def binary(table: pd.DataFrame) -> pd.DataFrame:
    """Named attributes (N, A), bool, of a table of :func:`descriptors`: thirds by ``LOW_HIGH``, one of ``EDGES``, one
    of ``HUES``.

    Thirds are those of the images in the table; values that tie with a limit are in neither. An attribute that all
    images have, or none, is left out.
    """
    found = {}
    for name, (low, high) in LOW_HIGH.items():
        if name in table:
            found[low] = table[name] < table[name].quantile(1 / 3)
            found[high] = table[name] > table[name].quantile(2 / 3)
    for names in (EDGES, HUES):
        if set(names) <= set(table):
            own = table[list(names)]
            most = own.idxmax(axis=1).where(own.max(axis=1) > 0)
            found |= {f"mostly {name}": most == name for name in names}
    return varying(pd.DataFrame(found, index=table.index))


def varying(table: pd.DataFrame) -> pd.DataFrame:
    """The attributes that some images of a bool table have and some do not; ``ValueError`` where there are none."""
    kept = table.loc[:, table.any() & ~table.all()]
    if not len(kept.columns):
        raise ValueError(f"none of {len(table.columns)} attributes tells the {len(table)} images apart: one is needed")
    return kept


def embedding(networks: Networks, x: Tensor) -> Tensor:
    """Standardised penultimate features (N, K * f) of images (N, c, h, w), those of K networks side by side."""
    return torch.cat([standardised(one.all_features(x)) for one in networks], 1)


def standardised(values: Tensor) -> Tensor:
    """Columns of values (N, D) with mean 0 and deviation 1; a constant column is 0."""
    centred = values - values.mean(0)
    deviation = centred.square().mean(0).sqrt()
    varies = deviation > 1e-6 * values.abs().amax(0)  # rounding leaves a constant column some deviation
    return torch.where(varies, centred / torch.where(varies, deviation, 1.0), 0.0)


def _luminance(pixels: Tensor) -> Tensor:
    return (pixels * pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)


def _border(grey: Tensor) -> Tensor:
    """The median (N,) of the outermost pixels."""
    rim = torch.cat([grey[:, 0], grey[:, -1], grey[:, 1:-1, 0], grey[:, 1:-1, -1]], 1)
    return rim.quantile(0.5, dim=1)


def _light(grey: Tensor) -> dict[str, Tensor]:
    return {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.var((1, 2), correction=0).sqrt(),
        "border": _border(grey),
    }


def _edges(grey: Tensor) -> dict[str, Tensor]:
    """Edges run across the gradient; y points down, so that a gradient to the lower right belongs to a rising edge."""
    along_x = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    along_y = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    energy = along_x.square() + along_y.square()
    sector = (torch.atan2(along_y, along_x) / (math.pi / 4)).round().remainder(4)
    total = energy.sum((1, 2))
    shares = {name: _share((energy * (sector == i)).sum((1, 2)), total) for i, name in enumerate(EDGES)}
    difference = (along_x.square() - along_y.square()).sum((1, 2))
    mixed = 2 * (along_x * along_y).sum((1, 2))
    return shares | {"coherence": _share(torch.hypot(difference, mixed), total)}


def _mass(grey: Tensor) -> dict[str, Tensor]:
    """Where what differs from the border lies."""
    mass = (grey - _border(grey)[:, None, None]).abs()
    down, across = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n).to(grey) for n in grey.shape[1:])
    total = mass.sum((1, 2))
    x, y = _share((mass * across).sum((1, 2)), total), _share((mass * down[:, None]).sum((1, 2)), total)
    distance = (across - x[:, None, None]).square() + (down[:, None] - y[:, None, None]).square()
    most = mass.amax((1, 2), keepdim=True)
    size = (mass > most / 2).to(grey.dtype).mean((1, 2))
    return {"x": x, "y": y, "spread": _share((mass * distance).sum((1, 2)), total).sqrt(), "size": size}


def _texture(grey: Tensor) -> dict[str, Tensor]:
    """The variance by the scale at which it arises: the parts add up (law of total variance)."""
    height, width = (n // 4 * 4 for n in grey.shape[1:])
    pixels = grey[:, None, :height, :width]
    twos, fours = F.avg_pool2d(pixels, 2), F.avg_pool2d(pixels, 4)
    whole, two, four = (t.var((1, 2, 3), correction=0) for t in (pixels, twos, fours))
    whole = torch.where(whole > 1e-12, whole, 0)  # of a flat image, rounding
    parts = {"fine": whole - two, "medium": two - four, "coarse": four}
    return {name: _share(part.clamp(min=0), whole) for name, part in parts.items()}


def _colour(pixels: Tensor) -> dict[str, Tensor]:
    red, green, blue = pixels.unbind(1)
    most, least = pixels.amax(1), pixels.amin(1)
    chroma = most - least
    angle = torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)
    sector = (angle / (math.pi / 3)).round().remainder(6)
    hues = {name: (chroma * (sector == i)).mean((1, 2)) for i, name in enumerate(HUES)}
    return {"saturation": _share(chroma, most).mean((1, 2))} | hues


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part`` / ``whole``, 0 where the whole is 0."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 0.0)
