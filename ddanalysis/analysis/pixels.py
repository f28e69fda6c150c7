"""Which pixel values do distilled images have? (Yang et al. 2024, section 3, Fig. 3 left)

The published figure has the density of one hand-picked image of two methods. These are of all images of each set.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet, fits, pixels

LEVELS = 4
"""Grey levels (of 256) in a bin: a bin never has more levels of an 8-bit image than its neighbour."""
BINS = 3 * 256 // LEVELS
"""Bins of the fixed grid, one pixel range below [0, 1] to one above: from -256.5 / 255 to 511.5 / 255."""
CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}

_SET = ["dataset", "method", "ipc", "set_seed", "channel"]


def edges() -> torch.Tensor:
    """The edges of the bins (BINS + 1,) float64, half a grey level beside those of 8-bit images."""
    return (torch.arange(BINS + 1, dtype=torch.float64) * LEVELS - 256.5) / 255


def histogram(values: torch.Tensor) -> torch.Tensor:
    """How many pixel values lie in each bin, (BINS + 2,) int64: the first and last are those below and above the
    grid.
    """
    levels = (values.flatten().double() * 255 + 256.5).div(LEVELS).floor().clamp(-1, BINS) + 1
    return torch.bincount(levels.long(), minlength=BINS + 2).cpu()


def outside(values: torch.Tensor) -> tuple[float, float]:
    """The shares of pixel values that would be no grey level from 0 to 255: below 0 and above 1 by more than half of
    one.
    """
    half = 0.5 / 255
    return float((values < -half).double().mean()), float((values > 1 + half).double().mean())


def _images(sets: Sequence[DistilledSet], data: ImageData) -> list[tuple[dict[str, object], torch.Tensor]]:
    """What it is, and its pixels (n, c, h, w), unclipped, of the real test images and of every set."""
    for one in sets:
        fits(one, data)
    real: dict[str, object] = {"dataset": data.name, "method": "real", "ipc": None, "set_seed": None}
    found = [(real, data.denormalise(data.test_x))]
    for one in sets:
        found.append(({"dataset": data.name, "method": one.method, "ipc": one.ipc, "set_seed": one.seed}, pixels(one)))
    return found


def _channels(images: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """All pixel values, and those of each channel where there are several."""
    c = images.shape[1]
    names = CHANNELS.get(c, tuple(f"channel {i}" for i in range(c)))
    return [("all", images)] + [(name, images[:, i]) for i, name in enumerate(names) if c > 1]


def pixel_densities(sets: Sequence[DistilledSet], data: ImageData) -> pd.DataFrame:
    """The density of the pixel values of all images of every set, and of the real test images (method "real").

    Columns dataset, method, ipc, set_seed, channel ("all", "red", ...), low, high (edges of a bin, 0 is black and 1
    white) and density: its sum times the width of a bin is 1, less the share beyond the grid.
    """
    grid = edges().numpy()
    tables = []
    for what, images in _images(sets, data):
        for channel, values in _channels(images):
            density = histogram(values)[1:-1].double() / values.numel() * 255 / LEVELS
            bins = {"low": grid[:-1], "high": grid[1:], "density": density.numpy()}
            tables.append(pd.DataFrame(bins).assign(**what, channel=channel))
    return _typed(tables, [*_SET, "low", "high", "density"])


def pixel_ranges(sets: Sequence[DistilledSet], data: ImageData) -> pd.DataFrame:
    """How far the pixel values of every set, and of the real test images, reach.

    Columns dataset, method, ipc, set_seed, channel, mean, std, lowest, highest, share_below, share_above (those of
    :func:`outside`), share_outside (their sum) and share_beyond (of the grid of :func:`pixel_densities`).
    """
    tables = []
    for what, images in _images(sets, data):
        for channel, values in _channels(images):
            counts, (below, above), v = histogram(values), outside(values), values.double()
            facts = {"mean": v.mean(), "std": v.std(correction=0), "lowest": v.min(), "highest": v.max()}
            row = what | {"channel": channel} | {name: float(value) for name, value in facts.items()}
            row |= {"share_below": below, "share_above": above, "share_outside": below + above}
            tables.append(pd.DataFrame([row | {"share_beyond": float(counts[[0, -1]].sum()) / values.numel()}]))
    return _typed(tables, list(tables[0].columns))


def _typed(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    kinds = {"ipc": "Int64", "set_seed": "Int64"}
    return pd.concat([table.astype(kinds) for table in tables], ignore_index=True)[columns]
