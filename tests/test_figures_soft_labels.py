"""Figures of soft labels and of label distillation show what their tables and sets hold, where it belongs."""

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle, Wedge

from ddanalysis.analysis import linear_regression
from ddanalysis.analysis.analogy import analogy
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet
from ddanalysis.figures import label_distillation as learned
from ddanalysis.figures import soft_labels as figures
from ddanalysis.intervals import mean_and_half_width

DATA = ImageData(
    "toy", torch.zeros(4, 1, 4, 4), torch.arange(4), torch.zeros(4, 1, 4, 4), torch.arange(4),
    ("a", "b", "c", "wheelbarrow"), (0.5,), (2.0,), "made up",
)  # fmt: skip


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(figure):
    """The bytes of a figure; drawing it runs its layout."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


def steps(n_steps=2, batch=3, passes=2, soft=True, **changes):
    """A set of ``n_steps`` steps whose image i has the value i / 100 and whose rows come in reverse."""
    n = n_steps * batch
    x = (torch.arange(n).view(n, 1, 1, 1).expand(-1, 1, 4, 4) / 100 - 0.5) / 2
    y = torch.eye(4).repeat(n, 1)[:n] * 2 - 0.25 + torch.arange(4) / 100 if soft else torch.arange(n) % 4
    order = torch.arange(n).flip(0).view(n_steps, batch).repeat(passes, 1)
    rates = torch.arange(1, n_steps * passes + 1) / 1000
    own = {"x": x, "y": y, "order": order, "learning_rates": rates} | changes
    return DistilledSet(n_classes=4, mean=(0.5,), std=(2.0,), method="sldd", dataset="toy", ipc=1, **own)


def words(texts):
    return [text.get_text() for text in texts]


# --------------------------------------------------------------------------------------------------------- step grids


def test_a_step_grid_has_a_row_a_step_in_the_order_of_training():
    ax = figures.step_grid(steps(), DATA).axes[0]
    shown = [float(np.asarray(image.get_array())[0, 0, 0]) for image in ax.images]
    assert shown == pytest.approx([0.05, 0.04, 0.03, 0.02, 0.01, 0.0], abs=1e-6)
    extents = np.array([image.get_extent() for image in ax.images])
    assert len(set(extents[:3, 3])) == len(set(extents[3:, 3])) == 1 and extents[0, 3] < extents[3, 3]
    assert (extents[:3, 0] == extents[3:, 0]).all() and (np.diff(extents[:3, 0]) > 1).all()
    assert words(ax.get_yticklabels()) == ["Step 1\n0.001\n0.003", "Step 2\n0.002\n0.004"]
    middles = (extents[[0, 3], 2] + extents[[0, 3], 3]) / 2
    np.testing.assert_allclose(ax.get_yticks(), middles)
    assert drawn(ax.figure)


def test_soft_labels_are_their_three_highest_weights_and_hard_ones_their_class():
    texts = words(figures.step_grid(steps(), DATA).axes[0].texts)
    assert texts[0] == "b 1.76\nwheelbar -0.22\nc -0.23"  # row 5
    assert texts[2] == "wheelbar 1.78\nc -0.23\nb -0.24"  # row 3
    assert words(figures.step_grid(steps(soft=False), DATA).axes[0].texts)[:3] == ["b", "a", "wheelbarr"]


def test_long_steps_go_on_below_and_long_lists_of_rates_end():
    ax = figures.step_grid(steps(2, 12, 4), DATA).axes[0]
    tops = [image.get_extent()[3] for image in ax.images]
    assert [tops.count(top) for top in sorted(set(tops))] == [10, 2, 10, 2]
    assert words(ax.get_yticklabels())[0] == "Step 1\n0.001\n0.003\n0.005\n…"
    assert ax.get_yticks()[1] > sorted(set(tops))[2]
    one_rate = figures.step_grid(steps(learning_rates=torch.tensor([0.5])), DATA).axes[0]
    assert words(one_rate.get_yticklabels())[1] == "Step 2\n0.5\n0.5"
    assert words(figures.step_grid(steps(learning_rates=None), DATA).axes[0].get_yticklabels()) == ["Step 1", "Step 2"]


def test_binary_labels_have_two_lines():
    two = ImageData(**{**DATA.__dict__, "classes": ("no", "yes"), "train_y": torch.tensor([0, 1, 0, 1]),
                       "test_y": torch.tensor([0, 1, 0, 1])})  # fmt: skip
    one = DistilledSet(
        torch.zeros(1, 1, 4, 4), torch.tensor([[-0.5, 2.0]]), 2, (0.5,), (2.0,), "sldd", "toy", 1,
        order=torch.tensor([[0]]),
    )  # fmt: skip
    assert words(figures.step_grid(one, two).axes[0].texts) == ["yes 2.00\nno -0.50"]


# ---------------------------------------------------------------------------------------------------------- label maps


def test_a_label_map_has_the_labels_by_step():
    one = steps()
    ax = learned.label_map(one, DATA).axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), one.y.flip(0))
    assert words(ax.get_yticklabels()) == ["Step 1", "Step 2"] and list(ax.get_yticks()) == [1, 4]
    low, high = ax.images[0].get_clim()
    assert low == -high == pytest.approx(-1.78)
    assert words(ax.texts)[:2] == ["-0.25", "1.76"]
    assert words(ax.get_xticklabels()) == list(DATA.classes) and drawn(ax.figure)


def test_a_label_map_is_sorted_by_true_class_whose_column_is_framed():
    y = torch.full((5, 4), 0.1) + torch.eye(4)[[2, 0, 2, 1, 3]] * 0.6
    true = ["c", "a", "c", "zebra", "wheelbarrow"]
    ax = learned.label_map(steps(1, 5, y=y, order=None), DATA, true).axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), y[[1, 0, 2, 4, 3]], atol=1e-6)
    assert words(ax.get_yticklabels()) == ["a", "c", "wheelbarrow", "zebra"]
    frames = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert [(p.get_x(), p.get_y(), p.get_height()) for p in frames] == [(-0.5, -0.5, 1), (1.5, 0.5, 2), (2.5, 2.5, 1)]
    assert ax.images[0].get_clim()[0] == 0


def test_hard_and_many_labels_can_be_mapped():
    ax = learned.label_map(steps(soft=False, order=None), DATA).axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), torch.eye(4)[torch.arange(6) % 4])
    many = learned.label_map(steps(10, 10, order=None), DATA).axes[0]
    assert not many.texts and drawn(many.figure)


def test_base_images_stand_over_the_bars_of_their_labels():
    y = torch.tensor([[0.1, 0.2, 0.7, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    one = steps(1, 3, y=y, order=None, learning_rates=None)
    ax = learned.base_images(one, DATA, ["c", "a", "zebra"]).axes[0]
    bars = [(p.get_height(), to_hex(p.get_facecolor())) for p in ax.patches]
    np.testing.assert_allclose([-height for height, _ in bars], 0.48 * y.flatten(), atol=1e-7)
    assert [i for i, (_, colour) in enumerate(bars) if colour == "#e69f00"] == [2, 4]
    assert words(ax.texts) == ["c 0.70", "a 0.25", "b 1.00"]
    some = learned.base_images(one, DATA, count=2).axes[0]
    assert words(some.texts) == ["c 0.70", "b 1.00"] and drawn(ax.figure)


# ------------------------------------------------------------------------------------------------------------ accuracy


def accuracies(sets=3, networks=4):
    rng = np.random.default_rng(0)
    rows = [
        ("toy", "basic", start, images, labels, s, "LeNet", k, 0.1 + 0.01 * rng.uniform(), rng.uniform())
        for start in ("fixed", "random") for images in (100, 5) for labels in ("hard", "soft")
        for s in range(sets) for k in range(networks)
    ]  # fmt: skip
    columns = "dataset mode initialisation images labels set_seed network network_seed accuracy_before accuracy"
    return pd.DataFrame(rows, columns=columns.split())


def published(**columns):
    n = len(next(iter(columns.values())))
    plain = {"published_deviation": [np.nan] * n, "certainty": ["printed"] * n}
    return pd.DataFrame({"dataset": "toy"} | plain | columns)


def stars(ax):
    return [line for line in ax.lines if line.get_marker() == "*"]


def test_accuracy_has_a_dot_a_network_and_a_diamond_at_each_mean():
    table = accuracies()
    figure = figures.accuracy_against(table, "images")
    assert [ax.get_title() for ax in figure.axes] == ["toy · LeNet · fixed", "toy · LeNet · random"]
    ax, fixed = figure.axes[0], table[table["initialisation"] == "fixed"]
    assert words(ax.get_xticklabels()) == ["5", "100"] and ax.get_xlabel() == "Images"
    diamonds = {(round(float(line.get_xdata()[0])), to_hex(line.get_color()).upper()): line.get_ydata()[0]
                for line in ax.lines if line.get_marker() == "D"}  # fmt: skip
    means = fixed.groupby(["images", "labels"])["accuracy"].mean()
    assert diamonds == pytest.approx({
        (x, figures.KIND_COLOURS[kind]): means[images, kind]
        for x, images in enumerate((5, 100)) for kind in ("hard", "soft")
    })  # fmt: skip
    dots = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 12])
    np.testing.assert_allclose(np.sort(dots[:, 1]), np.sort(fixed["accuracy"]))
    assert drawn(figure)


def test_intervals_are_over_sets_else_over_networks():
    for sets, unit in ((3, "set_seed"), (1, "network_seed")):
        table = accuracies(sets).query("initialisation == 'fixed' and images == 5 and labels == 'hard'")
        ax = figures.accuracy_against(table, "images").axes[0]
        middle, half = mean_and_half_width(table.groupby(unit)["accuracy"].mean().to_numpy()[None])
        ends = ax.containers[0].lines[2][0].get_segments()[0][:, 1]
        np.testing.assert_allclose(ends, [middle[0] - half[0], middle[0] + half[0]])


def test_words_keep_their_order_and_long_ones_are_turned():
    table = accuracies().assign(
        label_init=lambda t: t["images"].map({5: "zeros", 100: "normal, shift -0.5, scale 10, softmax"})
    )
    ax = figures.accuracy_against(table, "label_init").axes[0]
    assert words(ax.get_xticklabels()) == ["normal, shift -0.5, scale 10, softmax", "zeros"]
    assert ax.get_xticklabels()[0].get_rotation() == 40 and drawn(ax.figure)


def test_published_numbers_are_stars_where_ours_are_and_grey_if_recalled():
    theirs = published(
        initialisation=["fixed", "random", "random", "random"], images=[5, 100, 100, 7],
        labels=["hard", "hard", "soft", "hard"],
        published=[0.9, 0.8, 0.7, 0.6], published_deviation=[np.nan, 0.05, np.nan, np.nan],
        certainty=["printed", "printed", "recalled, unverified", "printed"],
    )  # fmt: skip
    fixed, random = figures.accuracy_against(accuracies(), "images", published=theirs).axes
    assert [(round(s.get_xdata()[0]), s.get_ydata()[0], s.get_color()) for s in stars(fixed)] == [(0, 0.9, "black")]
    found = [(round(float(s.get_xdata()[0])), s.get_ydata()[0], s.get_color()) for s in stars(random)]
    assert found == [(1, 0.8, "black"), (1, 0.7, figures.RECALLED)]
    assert words(fixed.figure.legends[0].get_texts()) == ["hard", "soft", "Published", "Recalled, unverified"]
    for nothing in (theirs.assign(published=np.nan), theirs[:0]):
        none = figures.accuracy_against(accuracies(), "images", published=nothing)
        assert words(none.legends[0].get_texts()) == ["hard", "soft"]


def test_bars_are_means_before_and_after_and_a_group_without_networks_has_one():
    near = {"mode": "nearest neighbours", "initialisation": None, "network": "none", "accuracy_before": np.nan}
    table = pd.concat([accuracies(), accuracies(networks=1)[:3].assign(**near)], ignore_index=True)
    theirs = published(mode=["basic", "nearest neighbours"], initialisation=["random", None], labels=["soft", "hard"],
                       published=[0.8, 0.7], certainty=["printed", "recalled, unverified"])  # fmt: skip
    ax = figures.before_after(table, published=theirs).axes[0]
    groups = ["basic, fixed, hard", "basic, fixed, soft", "basic, random, hard", "basic, random, soft"]
    assert words(ax.get_yticklabels()) == [*groups, "nearest neighbours, hard"]
    bars = {round(p.get_y() + p.get_height() / 2, 2): p.get_width() for p in ax.patches}
    means = accuracies().groupby(["initialisation", "labels"])[["accuracy_before", "accuracy"]].mean().to_numpy()
    wanted = {
        round(i + side, 2): m for i, pair in enumerate(means) for side, m in zip((-0.19, 0.19), pair, strict=True)
    }
    wanted[4.19] = accuracies(networks=1)["accuracy"][:3].mean()
    assert bars == pytest.approx(wanted)
    found = [(s.get_xdata()[0], s.get_ydata()[0], s.get_color()) for s in stars(ax)]
    assert found == [(0.8, 3.19, "black"), (0.7, 4.19, figures.RECALLED)]
    assert drawn(ax.figure)


def test_datasets_are_panels_and_architectures_are_not_mixed():
    both = pd.concat([accuracies(), accuracies().assign(dataset="other")])
    assert [ax.get_title() for ax in figures.before_after(both).axes] == ["toy", "other"]
    mixed = pd.concat([accuracies(), accuracies().assign(network="MLP")])
    by = ["mode", "initialisation", "labels"]
    assert len(figures.before_after(mixed, [*by, "network"]).axes[0].get_yticks()) == 8
    plt.close("all")
    with pytest.raises(ValueError, match="several architectures: add network to by"):
        figures.before_after(mixed)


# --------------------------------------------------------------------------------------------------- label distillation


def studies(algorithms=("ridge", "true labels", "second-order"), sets=1, sources=("toy", "other")):
    rng = np.random.default_rng(1)
    rows = [
        (source, "toy", "LeNet", tested, algorithm, n, s, r, "adam", offset, rng.uniform())
        for source in sources for tested in ("LeNet", "MLP") for algorithm in algorithms for n in (10, 100)
        for offset in (-10, 0, 50) for s in range(sets) for r in range(4)
    ]  # fmt: skip
    columns = "source target network test_network algorithm base_examples set_seed repetition optimiser offset accuracy"
    return pd.DataFrame(rows, columns=columns.split())


@pytest.mark.parametrize(
    ("draw", "across"), [(learned.accuracy_by_base, "base_examples"), (learned.step_curve, "offset")]
)
def test_curves_are_means_of_every_algorithm(draw, across):
    table = studies()
    figure = draw(table)
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == [
        "toy · LeNet", "toy · MLP", "other → toy · LeNet", "other → toy · MLP",
    ]  # fmt: skip
    here = table[(table["source"] == "other") & (table["test_network"] == "LeNet")]
    for algorithm, colour in learned.ALGORITHM_COLOURS.items():
        lines = [line for line in figure.axes[2].lines if line.get_color() == colour and len(line.get_xdata()) > 1
                 and line.get_marker() == "o"]  # fmt: skip
        means = here[here["algorithm"] == algorithm].groupby(across)["accuracy"].mean()
        assert len(lines) == bool(len(means))
        for line in lines:
            np.testing.assert_allclose(line.get_xdata().astype(float), means.index)
            np.testing.assert_allclose(line.get_ydata().astype(float), means)
            assert (line.get_linestyle() == "--") == (algorithm == "true labels")
    assert words(figure.legends[0].get_texts()) == ["second-order", "ridge", "true labels"]
    assert figure.axes[0].get_xscale() == ("log" if across == "base_examples" else "linear")
    assert drawn(figure)


def test_stars_of_curves_have_the_edge_of_their_algorithm():
    theirs = published(
        target=["toy"] * 2, source=["toy"] * 2, algorithm=["ridge", "second-order"], base_examples=[100, 10],
        published=[0.9, 0.8], certainty=["recalled, unverified", "quoted by others"],
    )  # fmt: skip
    first, _, other = learned.accuracy_by_base(studies(), theirs.drop(columns="dataset")).axes[:3]
    found = {(s.get_xdata()[0], s.get_ydata()[0], s.get_color(), s.get_markeredgecolor()) for s in stars(first)}
    ours = learned.ALGORITHM_COLOURS
    assert found == {(100, 0.9, figures.RECALLED, ours["ridge"]), (10, 0.8, "black", ours["second-order"])}
    assert not stars(other)


def test_unknown_algorithms_come_last_in_spare_colours():
    found = learned.algorithm_colours(pd.Series(["zeta", "ridge", "alpha", "true labels"]))
    assert list(found) == ["ridge", "true labels", "alpha", "zeta"] and len(set(found.values())) == 4


def test_a_transfer_matrix_has_means_and_intervals():
    table = studies(sets=2).query("offset == 0")
    figure = learned.transfer_matrix(table)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels][:2] == ["toy\nLeNet, N = 10", "toy\nLeNet, N = 100"] and len(panels) == 4
    ax, here = panels[1], table[(table["source"] == "toy") & (table["base_examples"] == 100)]
    means = here.groupby(["algorithm", "test_network"])["accuracy"].mean()
    algorithms, networks = words(panels[0].get_yticklabels()), words(ax.get_xticklabels())
    assert algorithms == ["second-order", "ridge", "true labels"] and networks == ["LeNet", "MLP"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[means[a, n] for n in networks] for a in algorithms])
    own = here.query("algorithm == 'ridge' and test_network == 'MLP'").groupby("set_seed")["accuracy"].mean()
    middle, half = mean_and_half_width(own.to_numpy()[None])
    assert f"{middle[0]:.3f}\n± {half[0]:.3f}" in [t.get_text() for t in ax.texts if t.get_position() == (1, 1)]
    lone = learned.transfer_matrix(table[table["set_seed"] == 0].query("repetition == 0"), "optimiser")
    assert words(lone.axes[0].get_xticklabels()) == ["adam"] and drawn(figure)


def made(methods=("ld", "ld_ridge"), n=20):
    validated = np.repeat([0.0, 0.5, 0.6, 0.6], 5)
    steps = np.repeat([0.0, 7.0, 8.0, 9.0], 5)
    parts = {"accuracy": np.linspace(0, 1, n), "validation_accuracy": validated, "validation_steps": steps,
             "reset": np.where(np.isin(np.arange(n), (4, 11)), 6.0, 0.0), "loss": np.ones(n)}  # fmt: skip
    rows = [pd.DataFrame({"method": m, "set_seed": s, "iteration": range(n), "component": part, "value": value + s})
            for m in methods for s in (0, 1) for part, value in parts.items()]  # fmt: skip
    return pd.concat(rows).assign(dataset="toy", ipc=10)


def test_a_time_line_has_the_mean_the_validations_and_the_resets():
    theirs = published(iteration=[4, 9], published=[0.4, 0.5], method=["ld", "ld"])
    figure = learned.time_line(made(), window=4, published=theirs)
    first, second = figure.axes
    faint, smooth, dots, ticks = [line for line in first.lines if line.get_marker() != "*"]
    np.testing.assert_allclose(faint.get_ydata(), np.linspace(0, 1, 20))
    assert smooth.get_ydata()[10] == pytest.approx(np.linspace(0, 1, 20)[7:11].mean())
    assert list(dots.get_xdata()) == [5, 10, 15] and list(dots.get_ydata()) == [0.5, 0.6, 0.6]
    assert list(ticks.get_xdata()) == [4, 11]
    assert [(s.get_xdata()[0], s.get_ydata()[0]) for s in stars(first)] == [(4, 0.4), (9, 0.5)] and not stars(second)
    assert drawn(figure)


# ------------------------------------------------------------------------------------------------------------ analogies


def test_analogies_have_a_row_a_mode_and_a_pie_a_prototype():
    found = [analogy("selection", 2, 10), analogy("2points", 2, 10), analogy("true", 2, 10)]
    figure = figures.analogy_panels(found)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_ylabel() for ax in panels[::2]] == ["Selection", "Two points", "All flowers"]
    assert [len(ax.child_axes) for ax in panels] == [3, 3, 2, 2, 0, 0]
    assert panels[3].get_title() == f"40% to the third: {found[1].accuracy[1]:.0%}"
    slices = [p for p in panels[3].child_axes[0].patches if isinstance(p, Wedge)]
    assert [round(p.theta2 - p.theta1) for p in slices] == [216, 144, 0]
    shown, share = np.asarray(panels[0].images[0].get_array()), found[0].regions[0].numpy()
    palette = np.array([matplotlib.colors.to_rgb(colour) for colour in figures.CLASS_COLOURS])
    nearest = np.abs((1 - shown[..., None, :]) / (1 - shown).max(-1)[..., None, None] -
                     ((1 - palette) / (1 - palette).max(1)[:, None])).sum(-1).argmin(-1)  # fmt: skip
    np.testing.assert_array_equal(nearest, share.argmax(-1))
    assert drawn(figure)


def test_what_a_step_leaves_is_drawn_by_rows():
    x, y = linear_regression.diabetes()
    table = linear_regression.errors_by_rows(linear_regression.whiten(x), y, starts=10)
    ax = figures.one_step_curves(table).axes[0]
    for line, column in zip(ax.lines, ["bound", "mean_excess", "measured", "highest"], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), table[column])
    assert drawn(ax.figure)


# --------------------------------------------------------------------------------------------------------------- errors

OTHER = ImageData(**{**DATA.__dict__, "classes": ("a", "b", "c")})


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.step_grid(steps(order=None), DATA), "has no order"),
        (lambda: figures.step_grid(steps(), OTHER), "has 4 classes"),
        (lambda: learned.label_map(steps(), OTHER), "has 4 classes"),
        (lambda: learned.label_map(steps(), DATA, ["a"]), "1 groups for 6 images"),
        (lambda: learned.base_images(steps(soft=False), DATA), "no soft labels"),
        (lambda: learned.base_images(steps(), DATA), "no soft labels of at least 0"),
        (lambda: learned.base_images(steps(y=torch.ones(6, 4)), DATA, ["a"]), "1 true classes for 6"),
        (lambda: learned.base_images(steps(y=torch.ones(6, 4)), DATA, count=0), "count is 0"),
        (lambda: figures.accuracy_against(accuracies(), "passes"), "no column passes"),
        (lambda: figures.accuracy_against(accuracies()[:0], "images"), "no rows"),
        (lambda: figures.before_after(accuracies().drop(columns="accuracy_before")), "no column accuracy_before"),
        (lambda: learned.accuracy_by_base(studies().drop(columns="algorithm")), "no column algorithm"),
        (lambda: learned.step_curve(studies().drop(columns="offset")), "no column offset"),
        (lambda: learned.transfer_matrix(studies(), "network"), "unknown across 'network'"),
        (lambda: learned.time_line(made(), 0), "window is 0"),
        (lambda: learned.time_line(made().query("component == 'loss'")), "no component 'validation_accuracy'"),
        (lambda: figures.analogy_panels([]), "0 analogies"),
        (lambda: figures.analogy_panels([analogy("true", 1, 2), analogy("true", 2, 2)]), "all of as many frames"),
        (lambda: figures.one_step_curves(pd.DataFrame({"rows": [1]})), "no column bound"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_and_leaves_no_figure(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()


def test_published_tables_need_their_columns():
    theirs = published(images=[5], published=[0.5]).drop(columns="certainty")
    with pytest.raises(ValueError, match="no column certainty"):
        figures.accuracy_against(accuracies(), "images", published=theirs)
