"""Figures of networks that know real data, mixing and pixel values show every row of their tables where it belongs."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from test_figures import drawn

from ddanalysis.analysis.pretrained import PUBLISHED_LEGEND
from ddanalysis.figures import real_data
from ddanalysis.figures.style import METHOD_COLOURS


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def recognition(networks=("ResNet34", "ConvNet-Tiny", "ConvNet", "ResNet18"), methods=("mtt", "dm"), ipcs=(10,)):
    rng = np.random.default_rng(0)
    rows = [
        ("cifar10", method, ipc, network, seed, k, rng.integers(0, 101) / 100, 100)
        for method in methods
        for ipc in ipcs
        for network in networks
        for seed in (0, 1)
        for k in (0, 1, 2)
    ]
    rows += [
        ("cifar10", "real", pd.NA, network, pd.NA, k, rng.uniform(), 10000) for network in networks for k in range(3)
    ]
    columns = ["dataset", "method", "ipc", "network", "set_seed", "network_seed", "accuracy", "images"]
    return pd.DataFrame(rows, columns=columns).astype({"ipc": "Int64", "set_seed": "Int64"})


def test_bars_have_the_right_names_and_heights():
    table = recognition()
    figure = real_data.pretrained_bars(table)
    ax, bars = figure.axes[0], figure.axes[0].patches
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["ConvNet-Tiny", "ConvNet", "ResNet18", "ResNet34"]
    colour_of = {
        to_hex(p.get_facecolor()): name for p, name in zip(figure.legends[0].get_patches(), names, strict=True)
    }
    ticks = [text.get_text() for text in ax.get_xticklabels()]
    assert ticks == ["Distribution matching", "Trajectory matching", "Real test images"] and len(bars) == 12
    for bar in bars:
        method = ("dm", "mtt", "real")[round(bar.get_x() + bar.get_width() / 2)]
        own = table[(table["method"] == method) & (table["network"] == colour_of[to_hex(bar.get_facecolor())])]
        assert bar.get_height() == pytest.approx(own["accuracy"].mean())
    dots = [offset for c in ax.collections if isinstance(c, PathCollection) for offset in c.get_offsets()[:, 1]]
    assert sorted(dots) == pytest.approx(sorted(table["accuracy"]))
    assert len(drawn(figure)) > 1000


@pytest.mark.parametrize(("correct", "n"), [(0, 100), (93, 100), (100, 100), (7, 10)])
def test_intervals_of_shares_are_those_of_scipy(correct, n):
    expected = scipy.stats.binomtest(correct, n).proportion_ci(0.95, "wilson")
    assert real_data.wilson(correct / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_published_legend_is_drawn_on_request_and_other_networks_have_colours():
    table = recognition()
    figure = real_data.pretrained_bars(table.assign(network=table["network"].map(PUBLISHED_LEGEND)))
    assert [t.get_text() for t in figure.legends[0].get_texts()][:2] == ["ConvNet-Tiny", "ConvNet"]
    assert len(figure.axes[0].patches) == 12
    names = ("VGG11", "ConvNet-W32", "ConvNet-Tiny-D2")
    figure = real_data.pretrained_bars(recognition(networks=names, ipcs=(10, 1)))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ConvNet-Tiny-D2", "ConvNet-W32", "VGG11"]
    assert [ax.get_title() for ax in figure.axes] == ["cifar10 · IPC 1", "cifar10 · IPC 10"]
    found = [to_hex(patch.get_facecolor()).upper() for patch in figure.legends[0].get_patches()]
    assert found[:2] == [real_data.NETWORK_COLOURS["ConvNet-Tiny"], real_data.NETWORK_COLOURS["ConvNet"]]


def embedding():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"what": ["test"] * 60 + ["dm"] * 20 + ["mine"] * 20, "class": ["cat", "ape"] * 50})
    return table.assign(dataset="toy", network="ConvNet", x=rng.normal(size=100), y=rng.normal(size=100))


def test_a_map_shows_every_image_in_the_colour_of_its_class():
    table = embedding()
    figure = real_data.embedding_scatter(table)
    parts = figure.axes[0].collections
    assert [len(p.get_offsets()) for p in parts] == [60, 20, 20]
    for part, what in zip(parts, ("test", "dm", "mine"), strict=True):
        own = table[table["what"] == what]
        assert np.allclose(part.get_offsets(), own[["x", "y"]])
        colours = {name: {tuple(c) for c in part.get_facecolors()[own["class"] == name]} for name in ("cat", "ape")}
        assert all(len(c) == 1 for c in colours.values()) and colours["cat"] != colours["ape"]
    assert parts[0].get_sizes()[0] < parts[1].get_sizes()[0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["ape", "cat", "Distribution matching", "mine"]
    two = pd.concat([table, table.assign(network="ResNet18"), table.assign(network="ResNet34")])
    assert [ax.get_title() for ax in real_data.embedding_scatter(two).axes][:3] == [
        "toy · ConvNet", "toy · ResNet18", "toy · ResNet34",
    ]  # fmt: skip


def mixing(modes=("fixed updates", "replacement"), sets=(0, 1, 2)):
    rng = np.random.default_rng(0)
    rows = [
        ("toy", method, 10, "ConvNet", mode, k, s, n, rng.uniform())
        for method in ("bptt", "random")
        for mode in modes
        for k in (0, 2, 10, 250)
        for s in sets
        for n in (0, 1)
    ]
    columns = ["dataset", "method", "ipc", "network", "mode", "real_per_class", "set_seed", "network_seed", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def test_mixing_curves_are_means_with_intervals_over_sets_in_published_colours():
    table = mixing()
    figure = real_data.mixing_curves(table)
    assert [ax.get_title() for ax in figure.axes] == [
        "toy · IPC 10\nConvNet, fixed updates", "toy · IPC 10\nConvNet, replacement",
    ]  # fmt: skip
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["+0", "+2", "+10", "+250"]
    assert ax.get_xscale() == "symlog"
    lines = {to_hex(c.lines[0].get_color()): c for c in ax.containers}
    line = lines[METHOD_COLOURS["bptt"].lower()]
    own = table[(table["mode"] == "fixed updates") & (table["method"] == "bptt")]
    by_set = own.groupby(["real_per_class", "set_seed"])["accuracy"].mean().unstack()
    assert np.allclose(line.lines[0].get_xydata(), np.stack([by_set.index, by_set.mean(axis=1)], 1))
    half = scipy.stats.t.ppf(0.975, 2) * by_set.std(axis=1) / 3**0.5
    ends = np.array([segment[:, 1] for segment in line.lines[2][0].get_segments()])
    assert np.allclose(ends, np.stack([by_set.mean(axis=1) - half, by_set.mean(axis=1) + half], 1))
    assert lines[METHOD_COLOURS["random"].lower()].lines[0].get_linestyle() == "--"
    assert line.lines[0].get_marker() == "s"


def test_a_panel_of_plus_nothing_is_left_out():
    table = mixing()
    some = table[(table["mode"] != "replacement") | (table["real_per_class"] == 0)]
    assert len(real_data.mixing_curves(some).axes) == 1
    with pytest.raises(ValueError, match="no row with real_per_class above 0"):
        real_data.mixing_curves(table[table["real_per_class"] == 0])


def densities():
    low = np.arange(-1, 2, 0.125)
    rows = []
    for method, ipc, seed, height in (
        ("real", pd.NA, pd.NA, 1.0),
        ("dm", 10, 0, 2.0),
        ("dm", 10, 1, 4.0),
        ("dc", 1, 0, 1.0),
    ):
        inside = (low >= -0.5) & (low < 1.5)
        rows.append(pd.DataFrame({"low": low, "high": low + 0.125, "density": np.where(inside, height, 0)}).assign(
            dataset="toy", method=method, ipc=ipc, set_seed=seed, channel="all"))  # fmt: skip
    return pd.concat(rows).astype({"ipc": "Int64", "set_seed": "Int64"})


def test_densities_are_means_over_sets_beside_real_ones():
    figure = real_data.pixel_density_curves(densities())
    assert [ax.get_title() for ax in figure.axes] == ["toy · IPC 1", "toy · IPC 10"]
    lines = {to_hex(line.get_color()): line for line in figure.axes[1].lines}
    dm = lines[METHOD_COLOURS["dm"].lower()]
    assert dm.get_ydata().max() == pytest.approx(3.0) and lines["#000000"].get_ydata().max() == pytest.approx(1.0)
    assert METHOD_COLOURS["dc"].lower() not in lines
    width = 0.125 * real_data.TOGETHER
    assert dm.get_ydata().sum() * width == pytest.approx(6.0)  # the bins drawn together keep the mass
    with pytest.raises(ValueError, match="the table has no channel 'red': it has all"):
        real_data.pixel_density_curves(densities(), "red")


def test_strangers_have_markers_of_their_own():
    found = real_data.markers(["dm", "a", "b"])
    assert found["dm"] == "o" and len(set(found.values())) == 3


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (real_data.pretrained_bars, recognition(), "images"),
        (real_data.embedding_scatter, embedding(), "class"),
        (real_data.mixing_curves, mixing(), "mode"),
        (real_data.pixel_density_curves, densities(), "density"),
    ],
)
def test_tables_without_what_is_needed_are_refused(draw, table, column):
    with pytest.raises(ValueError, match=f"the table has no column {column}: needed are"):
        draw(table.drop(columns=column))
    with pytest.raises(ValueError, match="the table has no rows"):
        draw(table.iloc[:0])
