"""Leave-one-out influence is real deletion in plain PyTorch, its tables are those counted by hand, and it resumes."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the installed package

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from plain import convnet, optimiser, train, with_state

from benchmarks import influence as benchmark
from ddanalysis import networks, training
from ddanalysis.analysis import influence
from ddanalysis.architectures import build
from ddanalysis.data import load
from ddanalysis.distilled import DistilledSet
from ddanalysis.figures import influence as drawing
from ddanalysis.report import Run
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

ARCHITECTURE = build("ConvNet", (1, 8, 8), 3, width=4)
RECIPE = Recipe(updates=6, batch_size=None, learning_rate=0.05)
DATA = load("digits")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def toy(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=g, dtype=torch.float64), torch.arange(n) % 3


def soft(y):
    return 0.7 * F.one_hot(y, 3).double() + 0.1


def found(n=5, seeds=(1, 2), labels=lambda y: y, **options):
    (x, y), test = toy(n), toy(7, 1)
    fresh = networks.create(ARCHITECTURE, seeds, dtype=torch.float64)
    return influence.leave_one_out(fresh, x, labels(y), *test, RECIPE, **options)


def digits_set(ipc=1):
    x, y = DATA.train_x, DATA.train_y
    rows = torch.cat([(y == c).nonzero()[:ipc, 0] for c in range(10)])
    return DistilledSet(x[rows], y[rows], 10, DATA.mean, DATA.std, "random", "digits", ipc, seed=3)


def made_up(count=3, n=10, tests=360):
    return torch.randn(count, n, tests, generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------------------------------------------------- retraining


@pytest.mark.parametrize("labels", [lambda y: y, soft], ids=["hard", "soft"])
def test_is_real_deletion_in_plain_pytorch(labels):
    (x, y), (test_x, test_y) = toy(5), toy(7, 1)
    y, ours = labels(y), found(labels=labels)
    assert ours.shape == (2, 5, 7) and ours.dtype == torch.float64
    for k, seed in enumerate((1, 2)):
        state = {name: t[0] for name, t in networks.create(ARCHITECTURE, [seed], dtype=torch.float64).state.items()}
        losses = []
        for kept in [*(torch.arange(5) != j for j in range(5)), torch.ones(5, dtype=torch.bool)]:
            net = with_state(convnet(1, 8, 3, 4), state)
            own = (x[kept], y[kept])
            train(net, optimiser(net, "sgd", 0.05, 0.9, 0), [torch.arange(len(own[0]))] * 6, *own)
            losses.append(F.cross_entropy(net(test_x), test_y, reduction="none").detach())
        expected = torch.stack(losses[:-1]) - losses[-1]
        assert float(expected.abs().max()) > 1e-3  # it did train
        assert torch.allclose(ours[k], expected, rtol=0, atol=1e-10)


def test_does_not_depend_on_what_is_trained_together(monkeypatch):
    whole = found()
    assert torch.allclose(whole[1:], found(seeds=(2,)), rtol=0, atol=1e-12)
    monkeypatch.setattr(influence, "STATES", 1)
    assert torch.allclose(whole, found(), rtol=0, atol=1e-12)


def test_the_only_image_of_a_class_helps_it():
    fresh = networks.create(build("ConvNet", DATA.shape, 10, width=8, depth=2), [0])
    one = digits_set()
    own = influence.leave_one_out(fresh, one.x, one.y, DATA.test_x, DATA.test_y, Recipe(updates=60, batch_size=None))
    sums = influence.by_class(own[0], DATA.test_y, 10)
    assert bool((sums.diagonal() > 0).all()) and bool((sums.argmax(1) == torch.arange(10)).all())


def test_the_benchmark_compares_equal_work():
    (x, y), test = toy(5), toy(7, 1)
    start = networks.create(ARCHITECTURE, [1], dtype=torch.float64)
    nets = [benchmark.published_network(benchmark.plain(start), x, y, j, 6) for j in (3, 5)]
    losses = [benchmark.published_losses(net, *test) for net in nets]
    ours = influence.leave_one_out(start, x, y, *test, benchmark.recipe(6))
    assert torch.allclose(ours[0, 3], losses[0] - losses[1], rtol=0, atol=1e-10)


class Interrupted(Exception):
    pass


def test_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(influence, "STATES", 1)  # one initialisation after the other
    whole, done = found(), []

    def stop(n):
        done.append(n)
        if len(done) == 9:  # in the second initialisation
            raise Interrupted

    checkpoint = Checkpoint(tmp_path / "influence.checkpoint", {}, seconds=0)
    with pytest.raises(Interrupted):
        found(checkpoint=checkpoint, progress=stop)
    done.clear()
    resumed = found(checkpoint=checkpoint, progress=done.append)
    assert sum(done) == 4 * 6  # updates 3 to 6 of six networks
    assert torch.equal(whole, resumed)


def test_each_loss_is_that_of_each_image(monkeypatch):
    nets, (x, y) = networks.create(ARCHITECTURE, range(3), dtype=torch.float64), toy(7, 1)
    expected = torch.stack([F.cross_entropy(net.logits(x)[0], y, reduction="none") for net in nets])
    monkeypatch.setattr(influence, "networks_together", lambda *_: 2)
    monkeypatch.setattr(influence, "images_per_pass", lambda *_: 3)
    assert torch.allclose(influence.each_loss(nets, x, y), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "recipe", "message"),
    [
        (1, RECIPE, "the set has 1 image"),
        (5, Recipe(updates=6, batch_size=4), "batch_size = 4 and augment = ''"),
        (5, Recipe(updates=6, batch_size=None, augment="scale"), "augment = 'scale'"),
    ],
)
def test_refuses_what_cannot_be_left_out(n, recipe, message):
    fresh = networks.create(ARCHITECTURE, [1], dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        influence.leave_one_out(fresh, *toy(n), *toy(7, 1), recipe)


# -------------------------------------------------------------------------------------------------------------- tables


def test_correlations_are_scipys():
    own = made_up(2, 3, 50)
    own[0, 0] = 1.0  # constant
    for what, values in zip(("spearmanr", "pearsonr"), influence.correlations(own[0], own[1]), strict=True):
        assert np.isnan(values[0])
        expected = [getattr(scipy.stats, what)(own[0, j].numpy(), own[1, j].numpy()).statistic for j in (1, 2)]
        assert values[1:] == pytest.approx(expected, abs=1e-6)


def test_the_ceiling_is_a_mean_over_the_other_initialisations():
    own = made_up(3, 2, 40)
    spearman, pearson = influence.ceiling(own)
    assert spearman.shape == pearson.shape == (3, 2)
    pairs = [scipy.stats.spearmanr(own[1, 0].numpy(), own[k, 0].numpy()).statistic for k in (0, 2)]
    assert spearman[1, 0] == pytest.approx(np.mean(pairs))
    assert np.isnan(influence.ceiling(own[:1])[0]).all()


def test_sums_and_errors_by_hand():
    own = torch.tensor([[[1.0, 2.0, 4.0]], [[3.0, 2.0, 0.0]]])
    assert influence.by_class(own, torch.tensor([1, 1, 0]), 3).tolist() == [[[4, 3, 0]], [[0, 5, 0]]]
    assert influence.standard_error(own).tolist() == [[pytest.approx(1.0), 0, pytest.approx(2.0)]]
    assert influence.standard_error(own[:1]).isnan().all()


def test_top_influences_by_hand():
    own, one = made_up(), digits_set()
    table = influence.top_influences(own, one, DATA, "ConvNet", k=4)
    assert len(table) == 2 * 10 * 4 and set(table["set_seed"]) == {3}
    mean = own.double().mean(0).numpy()
    for direction, sign in (("helped", -1), ("hurt", 1)):
        here = table[(table["direction"] == direction) & (table["image"] == 7)]
        order = np.argsort(sign * mean[7], kind="stable")[:4]
        assert here["test_image"].tolist() == order.tolist() and here["rank"].tolist() == [1, 2, 3, 4]
        assert here["test_class"].tolist() == [DATA.classes[int(DATA.test_y[i])] for i in order]
        assert here["influence"].tolist() == pytest.approx(mean[7, order].tolist())
        error = own.double().std(0)[7, torch.from_numpy(order)] / 3**0.5
        assert here["influence_se"].tolist() == pytest.approx(error.tolist())
        assert set(here["image_class"]) == {DATA.classes[7]}
    hurt = influence.top_influences(own, one, DATA, "ConvNet", k=4, directions=["hurt"])
    assert hurt.equals(table[table["direction"] == "hurt"].reset_index(drop=True))


def test_class_influences_and_noise_by_hand():
    own, one = made_up(), digits_set()
    table = influence.class_influences(own, one, DATA, "ConvNet").set_index(["image", "test_class"])
    sums = own[:, 4, DATA.test_y == 6].double().sum(1)
    assert table.loc[(4, DATA.classes[6]), "influence"] == pytest.approx(float(sums.mean()))
    assert table.loc[(4, DATA.classes[6]), "influence_se"] == pytest.approx(float(sums.std()) / 3**0.5)
    found = influence.noise(own, one, DATA, "ConvNet")
    mean, error = own[:, 4].mean(0), own[:, 4].std(0) / 3**0.5
    assert found.loc[4, "spread"] == pytest.approx(float((mean**2).mean() ** 0.5), rel=1e-5)
    assert found.loc[4, "influence_se"] == pytest.approx(float((error**2).mean() ** 0.5), rel=1e-5)
    assert found.loc[4, "share_sure"] == pytest.approx(float((mean.abs() > 2 * error).double().mean()))
    alone = influence.noise(own[:1], one, DATA, "ConvNet")
    assert alone[["influence_se", "share_sure", "spearman", "pearson"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 1000}, "k is 1000: there are 360 test images"),
        ({"directions": ["sideways"]}, "unknown direction 'sideways'"),
    ],
)
def test_top_influences_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        influence.top_influences(made_up(), digits_set(), DATA, "ConvNet", **options)


def test_influences_are_kept(tmp_path, monkeypatch):
    run = Run("07_influence", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))
    a, recipe = build("ConvNet", DATA.shape, 10, width=4, depth=2), Recipe(updates=3, batch_size=None)
    (first,) = influence.influences(run, DATA, a, [digits_set()], recipe, [0, 1])
    assert first.shape == (2, 10, 360) and first.dtype == torch.float32
    monkeypatch.setattr(training, "train", None)
    (again,) = influence.influences(run, DATA, a, [digits_set()], recipe, [0, 1])
    assert torch.equal(first, again)
    other = DistilledSet(torch.zeros(10, 1, 9, 9), torch.arange(10), 10, DATA.mean, DATA.std, "odd", "digits", 1)
    with pytest.raises(ValueError, match="odd_digits_ipc1_s0"):
        influence.influences(run, DATA, a, [other], recipe, [0, 1])


# ------------------------------------------------------------------------------------------------------------- figures


def top(k=3):
    return influence.top_influences(made_up(), digits_set(), DATA, "ConvNet", k=k)


def test_the_grid_shows_each_image_and_its_test_images():
    table, one = top(), digits_set()
    figure = drawing.influence_grid(table[table["image"].isin([2, 5])], one, DATA, "hurt")
    (ax,) = figure.axes
    shown = [image.get_array() for image in ax.images]
    assert len(shown) == 2 * 4
    rows = table[(table["direction"] == "hurt") & (table["image"] == 5)]
    for own, normalised in ((shown[4], one.x[5]), (shown[6], DATA.test_x[rows["test_image"].iloc[1]])):
        pixels = DATA.denormalise(normalised).clamp(0, 1)[0].numpy()
        assert np.allclose(own[..., 0], pixels)
    assert [t.get_text() for t in ax.texts][4:] == [DATA.classes[5], *rows["test_class"]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["2", "5"]


@pytest.mark.parametrize(
    ("change", "direction", "message"),
    [
        (lambda t: t, "sideways", "unknown direction"),
        (lambda t: t.drop(columns="rank"), "helped", "no column rank"),
        (lambda t: t[t["direction"] == "hurt"], "helped", "no helped images of random_digits_ipc1_s3"),
        (lambda t: t[(t["image"] != 1) | (t["rank"] > 1)], "helped", "from 2 to 3 rows"),
    ],
)
def test_the_grid_is_checked(change, direction, message):
    with pytest.raises(ValueError, match=message):
        drawing.influence_grid(change(top()), digits_set(), DATA, direction)


def test_noise_is_drawn_for_every_image():
    table = influence.noise(made_up(), digits_set(), DATA, "ConvNet")
    figure = drawing.influence_noise(table)
    assert np.allclose(figure.axes[0].collections[0].get_offsets(), table[["influence_se", "spread"]])
    with pytest.raises(ValueError, match="at least 2 initialisations"):
        drawing.influence_noise(influence.noise(made_up(1), digits_set(), DATA, "ConvNet"))


def test_the_explorer_shows_what_is_chosen(monkeypatch):
    asked = []
    monkeypatch.setattr(drawing, "influence_grid", lambda *given: asked.append(given) or plt.figure())
    box = drawing.influence_explorer(top(), [digits_set()], DATA)
    menus = {menu.description: menu for menu in box.children[0].children}
    menus["class"].value = DATA.classes[4]
    assert menus["image"].options == (4,)
    menus["shown"].value = "hurt"
    rows, one, _, direction = asked[-1]
    assert set(rows["image"]) == {4} and set(rows["direction"]) == {"hurt"} == {direction}
    assert one.name == menus["set"].value and not plt.get_fignums()


def test_the_explorer_is_checked():
    with pytest.raises(ValueError, match="at least 1"):
        drawing.influence_explorer(top(), [], DATA)
    with pytest.raises(ValueError, match="no rows of random_digits_ipc2_s3"):
        drawing.influence_explorer(top(), [digits_set(2)], DATA)
