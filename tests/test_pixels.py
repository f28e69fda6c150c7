"""Densities of pixel values on their fixed grid, and shares outside black and white by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_distill import toy_data

from ddanalysis.analysis.pixels import BINS, edges, histogram, outside, pixel_densities, pixel_ranges
from ddanalysis.distilled import DistilledSet


def data_of(pixels, mean=(0.5,), std=(0.25,)):
    """Data whose test images have these pixels (n, c, h, w)."""
    m, s = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
    x = (pixels - m) / s
    y = torch.arange(len(x)) % 3
    return replace(toy_data(), mean=mean, std=std, train_x=x, train_y=y, test_x=x, test_y=y)


def set_of(pixels, data, method="dm", ipc=1, seed=0):
    m, s = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    y = torch.arange(len(pixels)) % 3
    return DistilledSet((pixels - m) / s, y, 3, data.mean, data.std, method, data.name, ipc, seed=seed)


def test_every_bin_inside_has_as_many_grey_levels_and_none_lies_on_an_edge():
    levels = torch.arange(256) / 255
    assert histogram(levels)[1:-1].view(3, -1).sum(1).tolist() == [0, 256, 0]
    assert set(histogram(levels)[1 + BINS // 3 : 1 + 2 * BINS // 3].tolist()) == {4}
    assert edges()[BINS // 3] == pytest.approx(-0.5 / 255) and edges()[2 * BINS // 3] == pytest.approx(255.5 / 255)
    mean, std = 0.4914, 0.2023  # and rounding on the way through normalised space moves none
    assert torch.equal(histogram((levels - mean) / std * std + mean), histogram(levels))


def test_the_histogram_is_that_of_numpy():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = histogram(values)
    assert found[1:-1].tolist() == np.histogram(values.numpy(), edges().numpy())[0].tolist()
    assert found[0] == (values < edges()[0]).sum() and found[-1] == (values >= edges()[-1]).sum() and found[0] > 0


def test_shares_outside_by_hand():
    values = torch.tensor([-0.5, -0.003, -0.001, 0.0, 0.5, 1.0, 1.001, 1.003, 1.5, 2.5])  # half a level is .00196
    assert outside(values) == (pytest.approx(0.2), pytest.approx(0.3))


@pytest.mark.parametrize("channels", [1, 3, 2])
def test_densities_integrate_to_one_less_what_lies_beyond(channels):
    g = torch.Generator().manual_seed(1)
    data = data_of(torch.rand(12, channels, 8, 8, generator=g), (0.5,) * channels, (0.25,) * channels)
    wild = set_of(0.5 + 0.8 * torch.randn(6, channels, 8, 8, generator=g), data, ipc=2, seed=3)
    table, ranges = pixel_densities([wild], data), pixel_ranges([wild], data)
    keys = ["dataset", "method", "ipc", "set_seed", "channel"]
    mass = (
        table.assign(mass=table["density"] * (table["high"] - table["low"])).groupby(keys, dropna=False)["mass"].sum()
    )
    both = mass.reset_index().merge(ranges, on=keys)
    assert len(both) == len(mass) == 2 * {1: 1, 3: 4, 2: 3}[channels]
    assert (both["mass"] + both["share_beyond"]).tolist() == pytest.approx([1.0] * len(both))
    assert (both.loc[both["method"] == "dm", "share_beyond"] > 0).any()
    real = ranges[ranges["method"] == "real"]
    assert real["share_outside"].eq(0).all() and real["ipc"].isna().all()
    names = {1: ["all"], 3: ["all", "red", "green", "blue"], 2: ["all", "channel 0", "channel 1"]}[channels]
    assert ranges.loc[ranges["method"] == "dm", "channel"].tolist() == names
    assert ranges.loc[ranges["method"] == "dm", "set_seed"].eq(3).all()


def test_all_images_count_channel_by_channel_and_nothing_is_clipped():
    data = data_of(torch.full((3, 3, 2, 2), 0.5), (0.5,) * 3, (0.25,) * 3)
    x = torch.zeros(3, 3, 2, 2)
    x[0, 0], x[1, 2], x[2, 1] = 1.5, -0.75, 1.0
    ranges = pixel_ranges([set_of(x, data)], data)
    own = ranges[ranges["method"] == "dm"].set_index("channel")
    assert own["share_above"].to_dict() == pytest.approx({"all": 1 / 9, "red": 1 / 3, "green": 0, "blue": 0})
    assert own["share_below"].to_dict() == pytest.approx({"all": 1 / 9, "red": 0, "green": 0, "blue": 1 / 3})
    assert own["highest"].to_dict() == pytest.approx({"all": 1.5, "red": 1.5, "green": 1, "blue": 0})
    assert own.loc["all", "lowest"] == pytest.approx(-0.75) and own.loc["all", "mean"] == pytest.approx(1.75 / 9)


def test_a_set_of_another_space_is_refused():
    data = data_of(torch.rand(3, 1, 8, 8))
    with pytest.raises(ValueError, match="normalised with mean"):
        pixel_densities([replace(set_of(torch.rand(3, 1, 8, 8), data), mean=(0.1,))], data)
