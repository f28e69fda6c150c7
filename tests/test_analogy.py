"""Few prototypes in place of 150 flowers: the vote is that of nearest neighbours, and every mode moves what it says."""

import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.neighbors import KNeighborsClassifier

from ddanalysis.analysis import analogy as analogies
from ddanalysis.analysis.analogy import MODES, analogy, iris, probabilities


@pytest.fixture(scope="module")
def found():
    return {mode: analogy(mode, side=20) for mode in MODES}


def test_the_flowers_are_those_of_scikit_learn():
    x, y = iris()
    assert x.shape == (150, 2) and x.dtype == torch.float64
    assert y.bincount().tolist() == [50, 50, 50]
    assert x.tolist() == load_iris().data[:, :2].tolist()


def test_soft_prototypes_are_many_copies_of_hard_ones():
    locations = torch.tensor([[4.8, 3.4], [6.3, 2.8], [5.5, 2.4]]).double()
    labels = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.4, 0.6], [0.1, 0.7, 0.2]]).double()
    copies = [(tuple(p), c) for p, label in zip(locations.tolist(), labels.tolist(), strict=True)
              for c, share in enumerate(label) for _ in range(round(10 * share))]  # fmt: skip
    voters = KNeighborsClassifier(len(copies), weights="distance").fit(*zip(*copies, strict=True))
    x, _ = iris()
    found = probabilities(x, locations, labels)
    torch.testing.assert_close(found, torch.from_numpy(voters.predict_proba(x.numpy())), atol=1e-6, rtol=0)
    assert probabilities(locations, locations, labels) == pytest.approx(labels, abs=1e-6)


@pytest.mark.parametrize("k", [1, 4, 20])
def test_the_nearest_neighbours_are_those_of_scikit_learn(k):
    x, y = iris()
    x = x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()  # no two at one place
    points = 5 + torch.rand(50, 2, generator=torch.Generator().manual_seed(1)).double()
    voters = KNeighborsClassifier(k, weights="distance").fit(x.numpy(), y.numpy())
    found = probabilities(points, x, torch.eye(3).double()[y], k)
    torch.testing.assert_close(found, torch.from_numpy(voters.predict_proba(points.numpy())), atol=1e-8, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_frames_are_what_they_say(mode):
    found = analogy(mode, frames=3, side=12)
    flowers, classes = iris()
    assert found.regions.shape == (3, 12, 12, 3) and len(found.notes) == 3
    torch.testing.assert_close(found.regions.sum(-1), torch.ones(3, 12, 12).double())
    torch.testing.assert_close(found.labels.sum(-1), torch.ones(found.labels.shape[:2]).double())
    k = [round(150**share) for share in (0, 0.4, 0.8)] if mode == "true" else [None] * 3
    for frame in range(3):
        place = torch.stack([found.across[7], found.up[2]])[None]
        own = probabilities(place, found.locations[frame], found.labels[frame], k[frame])
        torch.testing.assert_close(found.regions[frame, 2, 7], own[0])
        guessed = probabilities(flowers, found.locations[frame], found.labels[frame], k[frame]).argmax(1)
        assert float(found.accuracy[frame]) == pytest.approx(float((guessed == classes).double().mean()))
    assert found.across[0] < flowers[:, 0].min() and found.up[-1] > flowers[:, 1].max()


def moves(found):
    return tuple(not torch.equal(part[0], part[-1]) for part in (found.locations, found.labels))


def test_each_mode_moves_its_own_part(found):
    wanted = {
        "selection": (True, False), "location": (True, False), "label": (False, True),
        "location_and_label": (True, True), "2points": (False, True), "true": (False, False),
    }  # fmt: skip
    assert {mode: moves(one) for mode, one in found.items()} == wanted
    assert {mode: one.locations.shape[1] for mode, one in found.items()} == dict.fromkeys(MODES, 3) | {
        "2points": 2, "true": 150,
    }  # fmt: skip
    starts = [found[mode].locations[0] for mode in ("selection", "location", "label", "location_and_label")]
    assert all(torch.equal(one, starts[0]) for one in starts)
    flowers, classes = iris()
    for c, place in enumerate(starts[0]):
        assert (flowers[classes == c] == place).all(1).any()


def test_learning_helps_and_two_points_tell_three_classes_apart(found):
    def loss(one, frame):
        own = probabilities(one.flowers, one.locations[frame], one.labels[frame])
        return float(-own[torch.arange(150), one.classes].log().mean())

    for mode in ("location", "label", "location_and_label"):
        assert loss(found[mode], -1) < loss(found[mode], 0)
        assert found[mode].accuracy[-1] > found[mode].accuracy[0]
    assert loss(found["location_and_label"], -1) < min(loss(found[mode], -1) for mode in ("location", "label"))
    two = found["2points"]
    kinds = [len(region.argmax(-1).unique()) for region in two.regions]
    assert kinds[0] == 2 and kinds[-1] == 3 and two.accuracy[-1] > 0.7 > two.accuracy[0]


def test_one_step_of_learning_is_that_of_the_gradient():
    x, y = iris()
    begin = torch.tensor([[5.0, 3.0], [6.0, 2.5], [6.5, 3.2]]).double()
    (start, _), (after, _) = analogies._learn(begin, torch.eye(3).double(), True, False, [0, 1], x, y)

    def loss(places):
        return -probabilities(x, places, torch.eye(3).double())[torch.arange(150), y].clamp_min(1e-9).log().mean()

    slopes = torch.zeros(3, 2).double()
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(2)).tolist():
        d = torch.zeros(3, 2).double()
        d[i, j] = 1e-6
        slopes[i, j] = (loss(begin + d) - loss(begin - d)) / 2e-6
    assert torch.equal(start, begin)
    torch.testing.assert_close(after, begin - analogies.RATE * slopes.sign(), atol=1e-6, rtol=0)  # Adam's first step


def test_the_same_seed_gives_the_same_and_any_number_of_frames_works(found):
    assert torch.equal(analogy("selection", side=20).regions, found["selection"].regions)
    assert not torch.equal(analogy("selection", 1, 3, 1).locations[0], found["selection"].locations[0])
    assert all(len(analogy(mode, 1, 2).regions) == 1 for mode in MODES)
    assert len(analogy("label", 9, 2).regions) == 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analogy("both"), "unknown mode 'both'"),
        (lambda: analogy("label", 0), "frames is 0"),
        (lambda: analogy("label", 1, 1), "side is 1"),
        (lambda: probabilities(torch.ones(2, 2), torch.ones(1, 2), torch.ones(1, 3)), "no shares"),
        (lambda: probabilities(torch.ones(2, 2), torch.ones(1, 2), torch.tensor([[2.0, -1]])), "no shares"),
        (lambda: probabilities(torch.ones(2, 2), torch.ones(1, 2), torch.ones(2, 3) / 3), "2 labels for 1 images"),
        (lambda: probabilities(torch.ones(2, 2), torch.ones(1, 3), torch.ones(1, 3) / 3), "points and prototypes"),
        (lambda: probabilities(torch.ones(2, 2), torch.ones(1, 2), torch.eye(3)[:1], 2), "2 neighbours of 1"),
        (lambda: probabilities(torch.ones(2, 2), torch.ones(1, 2), torch.eye(3)[:1], 0), "neighbours is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
