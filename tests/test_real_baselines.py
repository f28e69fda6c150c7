"""Baselines of real images: whose labels they have, their steps, k-means and neighbours against scikit-learn."""

from dataclasses import replace

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier
from test_distill import toy_data

from ddanalysis import networks
from ddanalysis.analysis import held_out, real_baselines
from ddanalysis.analysis.held_out import Examiner, Replay
from ddanalysis.analysis.real_baselines import real_set
from ddanalysis.architectures import build
from ddanalysis.distill import METHODS, Job
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed

DATA = toy_data(per_class=40)
NOISE = torch.randn(DATA.train_x.shape, generator=torch.Generator().manual_seed(1))
NOISY = replace(DATA, train_x=DATA.train_x + 3 * NOISE, test_x=DATA.test_x + 3 * NOISE[:9])  # hard to learn
MLP = build("MLP", (1, 8, 8), 3)
BASELINES = ["random real", "k-means", "average real"]


def job(ipc=4, seed=0, data=DATA):
    return Job(data, MLP, ipc, seed)


def true_class(image, data=DATA):
    """The class of the real image that is the nearest."""
    return int(data.train_y[(data.train_x - image).flatten(1).norm(dim=1).argmin()])


@pytest.mark.parametrize(("ipc", "steps"), [(1, 1), (4, 2), (6, 2), (6, 6), (6, 1)])
@pytest.mark.parametrize("baseline", BASELINES)
def test_every_row_has_the_class_of_its_image_and_every_step_as_many_of_each(baseline, ipc, steps):
    one = real_set(baseline, job(ipc), steps, 3, 0.1)
    assert len(one) == 3 * ipc and one.learning_rates.tolist() == [pytest.approx(0.1)]
    assert [true_class(image) for image in one.x] == one.y.tolist()
    assert one.order.shape == (3 * steps, 3 * ipc // steps)
    for step, rows in enumerate(one.order):  # as published: a step is class-major
        assert one.y[rows].tolist() == [c for c in range(3) for _ in range(ipc // steps)]
        assert torch.equal(rows, one.order[step % steps])
    assert one.order[:steps].flatten().sort().values.tolist() == list(range(3 * ipc))
    assert held_out.steps_of(one) == (steps, 3)


def test_random_real_images_are_training_images_and_the_seed_decides():
    one, other = real_set("random real", job(), 2, 1, 0.1), real_set("random real", job(seed=1), 2, 1, 0.1)
    for image in one.x:
        assert int((DATA.train_x == image).flatten(1).all(1).sum()) == 1
    assert not torch.equal(one.x, other.x)


def test_average_images_are_class_means():
    one = real_set("average real", job(4), 2, 1, 0.1)
    for image, c in zip(one.x, one.y, strict=True):
        assert torch.allclose(image, DATA.train_x[DATA.train_y == c].mean(0), atol=1e-6)


def test_k_means_are_the_centres_of_scikit_learn():
    one = real_set("k-means", job(4), 2, 1, 0.1)
    for c in range(3):
        own = DATA.train_x[DATA.train_y == c].flatten(1).double().numpy()
        model = KMeans(4, n_init=3, random_state=stream_seed(0, "k-means", c) % 2**32).fit(own)
        assert torch.allclose(one.x[4 * c : 4 * c + 4].flatten(1).double(), torch.from_numpy(model.cluster_centers_))
        clusters = (torch.from_numpy(own)[:, None] - one.x[4 * c : 4 * c + 4].flatten(1)).norm(dim=2).argmin(1)
        for k in range(4):  # each centre is the mean of the images that are nearest to it
            centre = torch.from_numpy(own)[clusters == k].mean(0).float()
            assert torch.allclose(one.x[4 * c + k].flatten(), centre, atol=1e-5)


def test_optimised_real_are_the_best_candidates():
    starts = networks.create(MLP, range(3), "xavier_normal")
    x, y = held_out.training_images(NOISY, 60, 0)
    kept = real_baselines.optimised_real(job(data=NOISY), 2, 2, 0.05, starts, x, y, candidates=6, keep=2)
    accuracy = []
    for number in range(6):
        images = real_set("random real", job(seed=stream_seed(0, "candidate", number), data=NOISY), 2, 2, 0.05)
        accuracy.append(float(held_out.after(images, starts, x, y).accuracy.mean()))
        for place, one in enumerate(kept):
            assert (one.seed == number) == torch.equal(one.x, images.x), place
    ranks = sorted(range(6), key=lambda i: -accuracy[i])
    assert len(set(accuracy)) > 2 and [one.seed for one in kept] == ranks[:2]
    assert (
        kept[0].method == "optimised_real" and [true_class(image, NOISY) for image in kept[0].x] == kept[0].y.tolist()
    )


@pytest.mark.parametrize(("neighbours", "norm"), [(1, 1.0), (3, 2.0), (5, 3.0)])
def test_neighbours_are_those_of_scikit_learn_and_of_plain_distances(neighbours, norm):
    one = real_set("random real", job(data=NOISY), 2, 1, 0.1)
    found = real_baselines.nearest_neighbours(one, NOISY.test_x, neighbours, norm)
    model = KNeighborsClassifier(neighbours, p=norm).fit(one.x.flatten(1).double().numpy(), one.y.numpy())
    assert found.tolist() == model.predict(NOISY.test_x.flatten(1).double().numpy()).tolist()
    distances = torch.cdist(NOISY.test_x.flatten(1).double(), one.x.flatten(1).double(), p=norm)
    nearest = one.y[distances.topk(neighbours, largest=False).indices]
    assert torch.equal(found, torch.stack([row.bincount(minlength=3) for row in nearest]).argmax(1))


def test_the_best_neighbours_do_not_count_images_of_the_set_itself():
    x, y = NOISY.train_x, NOISY.train_y.clone()
    one = real_set("random real", job(2, data=NOISY), 1, 1, 0.1)
    inside = torch.tensor([bool((one.x == image).flatten(1).all(1).any()) for image in x])
    assert int(inside.sum()) == 6 and torch.equal(real_baselines._strange(one, x), ~inside)
    grid = [(1, 2.0), (3, 2.0)]
    predictions = [real_baselines.nearest_neighbours(one, x, *pair) for pair in grid]
    y[~inside] = predictions[1][~inside]  # outside, three neighbours are always right; inside, one is
    assert not torch.equal(predictions[0][~inside], y[~inside])
    assert real_baselines.best_neighbours([one], x, y, grid) == grid[1]
    y[~inside] = predictions[0][~inside]
    assert real_baselines.best_neighbours([one], x, y, grid) == grid[0]


@pytest.fixture
def examiner(tmp_path):
    run = Run("01_distill", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))
    return Examiner(run, replace(NOISY, root=tmp_path), 3)


@pytest.mark.parametrize("baseline", [*BASELINES, "optimised real"])
def test_chosen_sets_have_the_best_rate_of_the_grid_and_are_kept(examiner, baseline, monkeypatch):
    settings = METHODS["dd"].settings({"steps": 2, "passes": 2})
    arguments = (examiner, baseline, MLP, settings, 4, [0, 7], [1e-5, 0.1, 1e3], 4)
    sets = real_baselines.chosen_sets(*arguments)
    assert [one.seed for one in sets] == [0, 7] and len({float(one.learning_rates[0]) for one in sets}) == 1
    assert all(one.y.tolist() == [c for c in range(3) for _ in range(4)] for one in sets)
    if baseline in ("random real", "optimised real"):
        assert all([true_class(image, NOISY) for image in one.x] == one.y.tolist() for one in sets)
    assert all(held_out.steps_of(one) == (2, 2) for one in sets)
    x, y = held_out.training_images(NOISY, held_out.CHOOSING_IMAGES, 0)
    starts = examiner.choosers(MLP, settings, 0)
    if baseline != "optimised real":
        replays = [Replay(rate=rate) for rate in (1e-5, 0.1, 1e3)]
        best = held_out.best(sets, starts, replays, x, y)
        assert float(sets[0].learning_rates[0]) == pytest.approx(best.rate)
    else:
        accuracy = [float(held_out.after(one, starts, x, y).accuracy.mean()) for one in sets]
        others = [
            real_baselines.candidate(job(data=NOISY), i, 2, 2, float(sets[0].learning_rates[0])) for i in range(4)
        ]
        everyone = sorted((float(held_out.after(one, starts, x, y).accuracy.mean()) for one in others), reverse=True)
        assert accuracy == everyone[:2]

    def never(*_, **__):
        raise AssertionError("made again")

    for name in ("best", "after"):
        monkeypatch.setattr(held_out, name, never)
    again = real_baselines.chosen_sets(*arguments)
    for one, other in zip(sets, again, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.learning_rates, other.learning_rates)


def test_the_accuracy_of_neighbours_is_on_the_test_images(examiner, monkeypatch):
    sets = [real_set("random real", job(seed=seed, data=NOISY), 2, 1, 0.1) for seed in (0, 1)]
    neighbours, norm, accuracy = real_baselines.neighbour_accuracy(examiner, sets)
    x, y = held_out.training_images(NOISY, held_out.CHOOSING_IMAGES, 0)
    assert (neighbours, norm) == real_baselines.best_neighbours(sets, x, y)
    for one, found in zip(sets, accuracy, strict=True):
        predictions = real_baselines.nearest_neighbours(one, NOISY.test_x, neighbours, norm)
        assert float(found) == float((predictions == NOISY.test_y).double().mean())
    monkeypatch.setattr(real_baselines, "nearest_neighbours", None)
    assert torch.equal(real_baselines.neighbour_accuracy(examiner, sets)[2], accuracy)


def test_two_classes_are_not_exchanged():
    data = toy_data(per_class=40, classes=2)
    binary = Job(data, build("MLP", (1, 8, 8), 2), 4, 0)
    for baseline in BASELINES:
        one = real_set(baseline, binary, 2, 3, 0.1)
        assert one.y.tolist() == [0] * 4 + [1] * 4 and [true_class(image, data) for image in one.x] == one.y.tolist()
        fresh = networks.create(binary.architecture, range(3), "xavier_normal")
        assert float(held_out.after(one, fresh, data.test_x, data.test_y).accuracy.mean()) > 0.8
        assert float((real_baselines.nearest_neighbours(one, data.test_x, 1, 2.0) == data.test_y).double().mean()) > 0.8


def chosen(**changes):
    given = {"baseline": "random real", "settings": {"steps": 2, "passes": 1}, "rates": [0.1]} | changes
    return real_baselines.chosen_sets(
        Examiner(None, DATA, 1), given["baseline"], MLP, given["settings"], 4, [0], given["rates"]
    )


def soft():
    one = real_set("random real", job(), 2, 1, 0.1)
    return replace(one, y=torch.nn.functional.one_hot(one.y, 3).float())


def neighbours(count, norm):
    return real_baselines.nearest_neighbours(real_set("random real", job(), 1, 1, 0.1), DATA.test_x, count, norm)


def optimised(candidates, keep):
    starts = networks.create(MLP, range(1))
    return real_baselines.optimised_real(job(), 2, 1, 0.1, starts, DATA.test_x, DATA.test_y, candidates, keep)


ERRORS = {
    "unknown baseline 'herding'": lambda: real_set("herding", job(), 2, 1, 0.1),
    "unknown baseline 'average'": lambda: chosen(baseline="average"),
    "ipc is 4 and steps of DD 3": lambda: real_set("random real", job(), 3, 1, 0.1),
    "steps is 0": lambda: real_set("random real", job(), 0, 1, 0.1),
    "passes is 0": lambda: real_set("random real", job(), 2, 0, 0.1),
    "the learning rate of step 0": lambda: real_set("random real", job(), 2, 1, -0.1),
    "has not 4 images a class": lambda: real_baselines.scheduled(soft(), 2, 1, 0.1),
    "has not 2 images a class": lambda: real_baselines.scheduled(
        replace(real_set("random real", job(), 2, 1, 0.1), ipc=2), 2, 1, 0.1
    ),
    "rates are": lambda: chosen(rates=[]),
    "numbers above 0": lambda: chosen(rates=[0.1, 0.0]),
    "candidates of optimised": lambda: optimised(0, 1),
    "sets kept of optimised": lambda: optimised(1, 0),
    "are to be kept of 2 candidates": lambda: optimised(2, 3),
    "neighbours is 0": lambda: neighbours(0, 1.0),
    "13 neighbours of 12 images": lambda: neighbours(13, 1.0),
    "norm of the neighbours is 0": lambda: neighbours(1, 0),
    "no neighbours and norms": lambda: real_baselines.best_neighbours([soft()], DATA.test_x, DATA.test_y, []),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        ERRORS[message]()
