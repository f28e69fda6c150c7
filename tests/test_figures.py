"""Figures show every row of their tables, where it belongs, and refuse tables that they cannot draw."""

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from matplotlib.colors import to_hex

from ddanalysis import figures, parameters
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet
from ddanalysis.intervals import mean_and_half_width


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(figure):
    """The bytes of a figure; drawing it runs its layout."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


def agreement(methods=("dm", "bptt"), counts=(5, 8), matching="nearest"):
    rng = np.random.default_rng(0)
    rows = [
        ("cifar10", method, 10, "ConvNet", pool, matching, 0.5 + 0.02 * rng.normal())
        for method in methods
        for pool, count in zip(("subset", "early"), counts, strict=True)
        for _ in range(count)
    ]
    return pd.DataFrame(rows, columns=["dataset", "method", "ipc", "network", "pool", "matching", "agreement"])


def recognition(methods=("dm", "random"), networks=3, sets=2, ipcs=(10,), updates=range(0, 9, 2)):
    rng = np.random.default_rng(1)
    columns = ["method", "ipc", "set_seed", "network_seed", "update", "target", "accuracy"]
    rows = [("real", pd.NA, pd.NA, k, u, "test", rng.uniform()) for k in range(networks) for u in updates]
    rows += [
        (method, ipc, s, k, u, "set", rng.uniform())
        for method in methods
        for ipc in ipcs
        for s in range(sets)
        for k in range(networks)
        for u in updates
    ]
    table = pd.DataFrame(rows, columns=columns).assign(dataset="cifar10", network="ConvNet")
    return table.astype({"ipc": "Int64", "set_seed": "Int64"}).assign(loss=lambda t: 3 * t["accuracy"])


def accuracies(methods=("dm", "random"), ipcs=(1, 10), sets=2, networks=3):
    rng = np.random.default_rng(2)
    rows = [
        ("digits", m, i, "ConvNet", s, k, rng.uniform())
        for m in methods
        for i in ipcs
        for s in range(sets)
        for k in range(networks)
    ]
    return pd.DataFrame(rows, columns=["dataset", "method", "ipc", "network", "set_seed", "network_seed", "accuracy"])


# -------------------------------------------------------------------------------------------------------------- colours


def test_every_method_has_a_name_and_a_colour_of_its_own():
    assert set(figures.METHOD_COLOURS) == set(figures.METHOD_NAMES) >= set(parameters.METHODS)
    own = {name: colour for name, colour in figures.METHOD_COLOURS.items() if name != "test"}
    assert len(set(own.values())) == len(own)
    assert not set(own.values()) & set(figures.SPARE_COLOURS)
    assert figures.METHOD_COLOURS["dm"] == "#0072B2" and figures.METHOD_COLOURS["mtt"] == "#CC79A7"


def test_a_method_unheard_of_gets_a_spare_colour():
    found = figures.colours(["zebra", "dm", "ant"])
    assert found == {"dm": "#0072B2", "ant": figures.SPARE_COLOURS[0], "zebra": figures.SPARE_COLOURS[1]}


# ------------------------------------------------------------------------------------------------------------ agreement


def test_agreement_has_a_panel_a_method_with_two_densities_and_n():
    figure = figures.agreement_panels(agreement())
    assert [ax.get_title() for ax in figure.axes] == ["BPTT", "Distribution matching"]
    for ax in figure.axes:
        assert len(ax.collections) == 2
        assert [text.get_text() for text in ax.texts] == ["n = 5 subset, 8 early"]
        assert ax.get_xlabel() == "Agreement"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Trained on a subset", "Stopped early"]
    assert figure.get_suptitle() == "cifar10 · IPC 10 · ConvNet · nearest"
    assert drawn(figure)


def test_agreement_means_are_where_the_pairs_are():
    table = agreement(("dm",))
    lines = {to_hex(line.get_color()): line.get_xdata()[0] for line in figures.agreement_panels(table).axes[0].lines}
    means = table.groupby("pool")["agreement"].mean()
    assert lines == pytest.approx({"#ffc20a": means["subset"], "#0c7bdc": means["early"]})


@pytest.mark.parametrize("counts", [(0, 8), (1, 2), (2, 0)])
def test_too_few_pairs_for_a_density_are_ticks(counts):
    ax = figures.agreement_panels(agreement(("dm",), counts)).axes[0]
    ticks = [line for line in ax.lines if line.get_marker() == "|"]
    assert [len(line.get_xdata()) for line in ticks] == [n for n in counts if 0 < n < 3]
    assert len(ax.collections) == sum(n >= 3 for n in counts)
    assert drawn(ax.figure)


def test_equal_values_are_no_density():
    ax = figures.agreement_panels(agreement(("dm",)).assign(agreement=0.5)).axes[0]
    assert not ax.collections


def test_settings_are_rows_of_panels():
    table = pd.concat([agreement(), agreement(("dm",), matching="published")])
    figure = figures.agreement_panels(table)
    assert [ax.get_ylabel() for ax in figure.axes] == ["nearest", "", "published", ""]
    assert figure.get_suptitle() == "cifar10 · IPC 10 · ConvNet"
    assert figure.axes[2].texts[0].get_text() == "n = 0 subset, 0 early"
    assert drawn(figure)


def test_other_measures_are_drawn_without_their_gaps():
    table = agreement(("dm",)).assign(kappa=lambda t: t["agreement"].where(t.index > 0))
    ax = figures.agreement_panels(table, "kappa").axes[0]
    assert ax.texts[0].get_text() == "n = 4 subset, 8 early"
    assert ax.get_xlabel() == "Cohen's kappa"


# ---------------------------------------------------------------------------------------------------------- recognition


def test_curves_are_means_over_sets_and_networks_and_the_test_images_are_black():
    table = recognition()
    ax = figures.recognition_curves(table).axes[0]
    lines = {to_hex(line.get_color()).upper(): line for line in ax.lines}
    assert set(lines) == {"#0072B2", figures.METHOD_COLOURS["random"], "#000000"}
    for method, colour in (("dm", "#0072B2"), ("real", "#000000")):
        means = table[table["method"] == method].groupby("update")["accuracy"].mean()
        np.testing.assert_allclose(lines[colour].get_xdata(), means.index)
        np.testing.assert_allclose(lines[colour].get_ydata(), means)
    assert ax.get_ylim()[0] == 0 and drawn(ax.figure)


@pytest.mark.parametrize(("networks", "sets", "unit"), [(3, 2, "network_seed"), (1, 3, "set_seed")])
def test_bands_are_t_intervals_over_networks_else_over_sets(networks, sets, unit):
    table = recognition(("dm",), networks, sets)
    units = table[table["target"] == "set"].groupby(["update", unit])["accuracy"].mean().unstack().to_numpy()
    middle, half = mean_and_half_width(units)
    for row, m, h in zip(units, middle, half, strict=True):
        low, high = scipy.stats.t.interval(0.95, len(row) - 1, loc=row.mean(), scale=scipy.stats.sem(row))
        assert (m - h, m + h) == pytest.approx((low, high))
    ax = figures.recognition_curves(table).axes[0]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx((middle + half).max()) and band.min() == pytest.approx((middle - half).min())


def test_one_network_and_one_set_have_no_band():
    ax = figures.recognition_curves(recognition(("dm",), networks=1, sets=1)).axes[0]
    assert len(ax.lines) == 2
    assert all(not len(c.get_paths()) or np.isnan(c.get_paths()[0].vertices).all() for c in ax.collections)
    assert drawn(ax.figure)


def test_each_ipc_is_a_panel_with_the_same_test_curve_and_the_loss_can_be_drawn():
    figure = figures.recognition_curves(recognition(ipcs=(1, 10)), "loss")
    assert [ax.get_title() for ax in figure.axes] == ["cifar10 · IPC 1 · ConvNet", "cifar10 · IPC 10 · ConvNet"]
    black = [[line for line in ax.lines if line.get_color() == "#000000"][0] for ax in figure.axes]
    np.testing.assert_array_equal(black[0].get_ydata(), black[1].get_ydata())
    assert figure.axes[0].get_ylabel() == "Loss" and black[0].get_ydata().max() > 1.2
    assert drawn(figure)


def test_means_and_half_widths_leave_gaps_out():
    middle, half = mean_and_half_width(np.array([[1.0, np.nan, 3.0], [np.nan, 5.0, np.nan], [np.nan] * 3]))
    np.testing.assert_allclose(middle, [2, 5, np.nan])
    np.testing.assert_allclose(half, [scipy.stats.t.ppf(0.975, 1), np.nan, np.nan])


# ------------------------------------------------------------------------------------------------------------- accuracy


def test_every_network_is_a_dot_and_every_mean_a_diamond():
    table = accuracies()
    ax = figures.accuracy_points(table).axes[0]
    dots = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 6])
    np.testing.assert_allclose(np.sort(dots[:, 1]), np.sort(table["accuracy"]))
    diamonds = sorted(line.get_ydata()[0] for line in ax.lines if line.get_marker() == "D")
    np.testing.assert_allclose(diamonds, np.sort(table.groupby(["method", "ipc"])["accuracy"].mean()))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "10"]
    assert drawn(ax.figure)


def test_dots_stand_at_their_ipc_and_methods_do_not_overlap():
    ax = figures.accuracy_points(accuracies(("dm", "random", "herding"))).axes[0]
    places = sorted(
        (c.get_offsets()[:, 0].min(), c.get_offsets()[:, 0].max()) for c in ax.collections if len(c.get_offsets()) == 6
    )
    assert len(places) == 6
    assert all(left[1] < right[0] for left, right in zip(places, places[1:], strict=False))
    assert places[2][1] < 0.5 < places[3][0]


def test_protocols_are_panels_and_lone_networks_are_drawn():
    table = accuracies(sets=1, networks=1)
    figure = figures.accuracy_points(pd.concat([table.assign(protocol=p) for p in ("dc-300", "dsa-1000")]))
    assert [ax.get_title() for ax in figure.axes] == ["digits · ConvNet · dc-300", "digits · ConvNet · dsa-1000"]
    assert sum(line.get_marker() == "D" for line in figure.axes[1].lines) == 4
    assert drawn(figure)


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_clipped_and_in_their_places(channels):
    pixels = torch.linspace(-1, 2, 5 * channels * 6 * 4).view(5, channels, 6, 4)
    ax = figures.image_grid(pixels, columns=3, row_labels=["a", "b"]).axes[0]
    assert len(ax.images) == 5
    for i, image in enumerate(ax.images):
        shown = np.broadcast_to(pixels[i].clamp(0, 1).permute(1, 2, 0).numpy(), (6, 4, 3))
        np.testing.assert_array_equal(image.get_array(), shown)
    left, top = np.array([image.get_extent() for image in ax.images])[:, [0, 3]].T
    assert left[0] == left[3] < left[1] == left[4] < left[2]
    assert top[0] == top[1] == top[2] < top[3] == top[4]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert drawn(ax.figure)


def test_titles_stand_above_columns_or_images():
    pixels = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    by_column = figures.image_grid(pixels, 3, titles=["x", "y", "z"]).axes[0]
    assert [tick.get_text() for tick in by_column.get_xticklabels()] == ["x", "y", "z"] and not by_column.texts
    by_image = figures.image_grid(pixels, 3, titles=list("abcdef")).axes[0]
    assert [text.get_text() for text in by_image.texts] == list("abcdef")
    assert drawn(by_image.figure)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.agreement_panels(agreement(), "accuracy"), "unknown measure 'accuracy'"),
        (lambda: figures.agreement_panels(agreement(), "kappa"), "no column kappa"),
        (lambda: figures.agreement_panels(agreement()[:0]), "no rows"),
        (lambda: figures.recognition_curves(recognition(), "error"), "unknown value 'error'"),
        (lambda: figures.recognition_curves(recognition().drop(columns="update")), "no column update"),
        (lambda: figures.recognition_curves(recognition().query("target == 'test'")), "no row with target 'set'"),
        (lambda: figures.accuracy_points(accuracies().drop(columns=["ipc", "method"])), "no column method, ipc"),
        (lambda: figures.accuracy_points(accuracies()[:0]), "no rows"),
        (lambda: figures.image_grid(torch.zeros(4, 8, 8)), "pixels have shape"),
        (lambda: figures.image_grid(torch.zeros(4, 2, 8, 8)), "unknown number of channels 2"),
        (lambda: figures.image_grid(torch.full((4, 1, 8, 8), torch.nan)), "NaN"),
        (lambda: figures.image_grid(torch.zeros(4, 1, 8, 8), 0), "columns is 0"),
        (lambda: figures.image_grid(torch.zeros(4, 1, 8, 8), 2, titles=["a"]), "1 titles for 4 images"),
        (lambda: figures.image_grid(torch.zeros(4, 1, 8, 8), 2, row_labels=["a"]), "1 row labels for 2 rows"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_no_figure(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()


def test_loss_curves_smooth_and_keep_every_iteration():
    rows = {"dataset": "toy", "method": "dm", "ipc": 1, "set_seed": 0, "iteration": range(100), "component": "loss"}
    figure = figures.loss_curves(pd.DataFrame(rows | {"value": np.linspace(2.0, 1.0, 100)}), window=10)
    faint, smooth = figure.axes[0].lines
    assert len(faint.get_xdata()) == 100 and figure.axes[0].get_yscale() == "log"
    assert smooth.get_ydata()[50] == pytest.approx(np.linspace(2.0, 1.0, 100)[41:51].mean())
    with pytest.raises(ValueError, match="component"):
        figures.loss_curves(pd.DataFrame(rows | {"value": 1.0}).drop(columns="component"))


def test_set_grid_shows_a_row_a_set_and_a_column_a_class():
    data = ImageData(
        "toy", torch.zeros(3, 1, 4, 4), torch.arange(3), torch.zeros(3, 1, 4, 4), torch.arange(3), ("a", "b", "c"),
        (0.5,), (2.0,), "made up",
    )  # fmt: skip
    x = torch.arange(6).view(6, 1, 1, 1).expand(-1, 1, 4, 4) / 10.0
    one = DistilledSet(x, torch.arange(3).repeat_interleave(2), 3, (0.5,), (2.0,), "dm", "toy", 2)
    figure = figures.set_grid([one, one], data)
    shown = [image.get_array()[0, 0, 0] for image in figure.axes[0].images]
    assert shown == pytest.approx([0.5, 0.9, 1.0] * 2)  # images 0, 2 and 4, de-normalised and clipped
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]
    assert len(figures.set_grid([one], data, per_class=2).axes[0].images) == 6
    with pytest.raises(ValueError, match="each needs as many"):
        figures.set_grid([one], data, per_class=3)


def test_loss_curves_have_a_panel_a_method_and_a_line_a_component():
    rows = [
        {"dataset": "toy", "method": m, "ipc": n, "set_seed": 0, "iteration": i, "component": c, "value": 1.0 + i}
        for m, parts in (("dm", ["loss"]), ("clom_dm", ["loss", "regulariser"]))
        for n in (1, 10) for c in parts for i in range(5)
    ]  # fmt: skip
    figure = figures.loss_curves(pd.DataFrame(rows))
    assert [ax.get_title() for ax in figure.axes] == ["Distribution matching", "Distribution matching, CLOM"]
    assert [len(ax.lines) for ax in figure.axes] == [4, 8]  # a faint and a smooth one each
    names = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert names == ["loss, IPC 1", "regulariser, IPC 1", "loss, IPC 10", "regulariser, IPC 10"] or sorted(names) == [
        "loss, IPC 1", "loss, IPC 10", "regulariser, IPC 1", "regulariser, IPC 10",
    ]  # fmt: skip


def along():
    return pd.DataFrame([
        {"dataset": "toy", "method": m, "ipc": n, "network": "A", "protocol": "short", "set_seed": s, "network_seed": k,
         "accuracy": 0.5 + 0.01 * i + 0.02 * s, "iteration": i}
        for m, last in (("dm", 20), ("dc", 10)) for n in (1, 10) for s in range(3) for k in range(2)
        for i in (0, last // 2, last)
    ])  # fmt: skip


def test_accuracy_along_goes_from_the_start_to_the_end_of_every_method():
    figure = figures.accuracy_along(along())
    assert len(figure.axes) == 2
    for ax in figure.axes:
        lines = {to_hex(line.get_color()): line for line in ax.lines}
        dm, dc = (lines[figures.METHOD_COLOURS[m].lower()] for m in ("dm", "dc"))
        assert dm.get_xdata() == pytest.approx([0, 0.5, 1]) and dm.get_ydata() == pytest.approx([0.52, 0.62, 0.72])
        assert dc.get_ydata() == pytest.approx([0.52, 0.57, 0.62])
    assert drawn(figure)


def test_gain_intervals_have_a_row_a_method_and_ipc_and_a_panel_a_comparison():
    rows = [
        {"method": m, "ipc": n, "over": over, "mean": 0.1, "low": 0.05, "high": 0.15}
        for m in ("dm", "clom_dm") for n in (1, 10) for over in ("random images", "own start")
    ]  # fmt: skip
    rows += [{"method": "clom_dm", "ipc": 1, "over": "the same without CLOM", "mean": 0.0, "low": -0.1, "high": 0.1}]
    figure = figures.gain_intervals(pd.DataFrame(rows))
    assert [len(ax.containers) for ax in figure.axes] == [4, 4, 1]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()][0] == "Distribution matching, IPC 1"
    bar = figure.axes[0].containers[0].lines[2][0].get_segments()[0]
    assert bar[:, 0] == pytest.approx([0.05, 0.15])
    with pytest.raises(ValueError, match="no column over"):
        figures.gain_intervals(pd.DataFrame(rows).drop(columns="over"))
