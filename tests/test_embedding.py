"""Features, their map, and numbers of separability: by hand, at chance, and where all is told apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from test_distill import toy_data

from ddanalysis import intervals, networks
from ddanalysis.analysis import embedding
from ddanalysis.analysis.pretrained import Pretrained
from ddanalysis.architectures import build
from ddanalysis.distilled import DistilledSet
from ddanalysis.report import Run

SMALL = build("ConvNet", (1, 8, 8), 3, width=4, depth=1)


def big_test(per_class=30):
    """Toy data with test images of their own."""
    data = toy_data(per_class=2 * per_class)
    half = 3 * per_class
    return replace(
        data, train_x=data.train_x[half:], train_y=data.train_y[half:], test_x=data.train_x[:half],
        test_y=data.train_y[:half],
    )  # fmt: skip


DATA = big_test()


def set_of(x, y, method="dm", ipc=5, seed=0):
    return DistilledSet(x, y, 3, DATA.mean, DATA.std, method, "toy", ipc, seed=seed)


REAL = set_of(DATA.train_x[:15], DATA.train_y[:15], "random")
FAR = set_of(DATA.train_x[:15] + 5, DATA.train_y[:15], seed=2)
NET = networks.create(SMALL, [3])


def test_nearest_neighbours_by_hand():
    found = embedding.separability(NET, [REAL, FAR], DATA)
    x, own = (NET.features(t)[0] for t in (DATA.test_x, REAL.x))
    for learn, labels, ask, truth, measure in (
        (x, DATA.test_y, own, REAL.y, 0),
        (own, REAL.y, x, DATA.test_y, 1),
    ):
        nearest = torch.cdist(ask.double(), learn.double()).argsort(1)[:, :5]
        votes = torch.nn.functional.one_hot(labels[nearest], 3).sum(1)
        assert found[0, measure, 0] == (votes.argmax(1) == truth).double().mean()


def test_classifiers_are_those_of_scikit_learn():
    found = embedding.separability(NET, [FAR], DATA)
    x, y = NET.features(DATA.test_x)[0].numpy(), DATA.test_y.numpy()
    own, labels = NET.features(FAR.x)[0].numpy(), FAR.y.numpy()
    for measure, (learn, to, ask, truth) in enumerate([(x, y, own, labels), (own, labels, x, y)]):
        mean, std = learn.mean(0), learn.std(0) + (learn.std(0) == 0)
        linear = LogisticRegression(max_iter=1000).fit((learn - mean) / std, to)
        assert found[0, measure, 1] == pytest.approx(linear.score((ask - mean) / std, truth), abs=0.02)
        assert found[0, measure, 0] == KNeighborsClassifier(5).fit(learn, to).score(ask, truth)


def test_distilled_or_real_is_sure_for_far_images():
    assert (embedding.separability(NET, [FAR], DATA)[0, 2] > 0.95).all()


@pytest.mark.parametrize("ipc", [1, 5])
def test_images_of_one_distribution_are_told_apart_by_chance(ipc):
    """Classes far apart, images of a class alike: with folds that know no classes chance would lie far below 1 / 2."""
    rng, classes, found = np.random.default_rng(0), 8, []
    centres = 10 * rng.normal(size=(classes, 4))
    for draw in range(25):
        labels, y = np.arange(classes).repeat(ipc), np.arange(classes).repeat(ipc + 2)
        own, x = (centres[c] + rng.normal(size=(len(c), 4)) for c in (labels, y))
        found.append(embedding._told(own, labels, x, y, 0, draw, 5))
    error = np.std(found, 0) / len(found) ** 0.5
    assert (np.abs(np.mean(found, 0) - 0.5) < 4 * error).all() and (error < 0.05).all()


def test_as_many_images_of_each_class_are_told_apart():
    g = torch.Generator().manual_seed(0)
    theirs, ours = embedding._paired(np.array([0, 0, 0, 2, 2, 1]), np.array([0, 1, 1, 1, 2, 2, 2, 0]), g)
    assert np.array([0, 1, 1, 1, 2, 2, 2, 0])[theirs].tolist() == [0, 0, 1, 2, 2]
    assert np.array([0, 0, 0, 2, 2, 1])[ours].tolist() == [0, 0, 1, 2, 2]
    assert len(set(theirs)) == 5 and len(set(ours)) == 5


@pytest.mark.parametrize("soft", [False, True])
def test_one_image_a_class_and_soft_labels_do(soft):
    y = torch.eye(3) * 0.4 + 0.2 if soft else torch.arange(3)
    tiny = set_of(DATA.train_x[:3], y, ipc=1)
    found = embedding.separability(NET, [tiny], DATA)
    assert found.shape == (1, 3, 2) and found.min() >= 0 and found.max() <= 1


def test_a_lone_image_cannot_be_told_apart():
    lone = set_of(DATA.train_x[:1], DATA.train_y[:1], ipc=1)
    with pytest.raises(ValueError, match="1 images of the set share a class with the test images: 2 are needed"):
        embedding._told(*_parts(lone), 0, 0, 5)


def _parts(one):
    return (
        embedding.features(NET, one.x), one.labels().numpy(), embedding.features(NET, DATA.test_x), DATA.test_y.numpy()
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return Run("02_pretrained_recognition", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))


def test_the_table_has_every_network_and_states_chance(run, monkeypatch):
    nets = networks.create(SMALL, [3, 4])
    one = Pretrained("small", nets, [7, 8], None)
    table = embedding.separated(run, DATA, [one], [REAL, FAR])
    assert table.columns.tolist() == [
        "dataset", "method", "ipc", "network", "set_seed", "network_seed", "measure", "classifier", "accuracy",
        "chance",
    ]  # fmt: skip
    assert len(table) == 2 * 2 * 3 * 2
    assert table.groupby("measure")["chance"].agg(["min", "max"]).to_dict("index") == {
        measure: {"min": chance, "max": chance}
        for measure, chance in (("set by test", 1 / 3), ("test by set", 1 / 3), ("distilled or real", 1 / 2))
    }
    far = table[(table["method"] == "dm") & (table["network_seed"] == 8)]
    assert far["accuracy"].tolist() == embedding.separability(nets[1], [REAL, FAR], DATA)[1].flatten().tolist()
    summary = intervals.summarise(table, ["method", "measure", "classifier"], "accuracy", ["network_seed"])
    assert len(summary) == 12 and set(summary["units"]) == {"network_seed"}
    monkeypatch.setattr(embedding, "separability", None)
    assert embedding.separated(run, DATA, [one], [REAL, FAR]).equals(table)


def test_the_map_is_one_umap_of_all_features(run, monkeypatch):
    seen = {}

    class Mapper:
        def __init__(self, **options):
            seen.update(options)

        def fit_transform(self, points):
            seen["points"] = points
            return points[:, :2]

    umap = pytest.importorskip("umap")
    monkeypatch.setattr(umap, "UMAP", Mapper)
    one = Pretrained("small", networks.create(SMALL, [3, 4]), [7, 8], None)
    table = embedding.mapped(run, DATA, one, [REAL, FAR])
    assert seen["n_neighbors"] == 5 and seen["random_state"] == 42
    expected = torch.cat([one.networks[0].features(x)[0] for x in (DATA.test_x, REAL.x, FAR.x)])
    assert torch.allclose(torch.from_numpy(seen["points"]), expected, atol=1e-6)
    assert table.columns.tolist() == ["dataset", "network", "what", "ipc", "set_seed", "class", "x", "y"]
    assert table["what"].value_counts().to_dict() == {"test": 90, "random": 15, "dm": 15}
    assert table["class"].tolist() == ["abc"[c] for c in torch.cat([DATA.test_y, REAL.y, FAR.y])]
    assert np.allclose(table[["x", "y"]], expected[:, :2], atol=1e-6)
    assert table["set_seed"].isna().sum() == 90


def test_the_map_keeps_groups_apart_and_is_the_same_again():
    g = np.random.default_rng(0)
    groups = [g.normal(size=(20, 4)).astype(np.float32), g.normal(size=(20, 4)).astype(np.float32) + 30]
    points = embedding.joint_map(groups)
    assert points.shape == (40, 2) and points.dtype == torch.float32
    apart = torch.cdist(points[:20], points[20:]).min()
    assert apart > 2 * torch.cdist(points[:20], points[:20]).max() or apart > 5
    assert torch.equal(points, embedding.joint_map(groups))


def test_too_few_images_have_no_map():
    with pytest.raises(ValueError, match="5 images cannot have 5 neighbours each"):
        embedding.joint_map([np.zeros((5, 2), dtype=np.float32)])
    with pytest.raises(ValueError, match="neighbours is 1"):
        embedding.joint_map([np.zeros((9, 2), dtype=np.float32)], neighbours=1)
