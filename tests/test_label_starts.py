"""Label starts against their formulae, a plain loop, and scikit-image where it is installed."""

from dataclasses import replace

import pytest
import torch
from test_distill import toy_data

from ddanalysis.distill import label_starts
from ddanalysis.distill.label_starts import start

EYE = torch.eye(3)


def labels(name, classes=(0, 1, 2), per_class=2, seed=0, file="", data=None):
    return start(name, data or toy_data(), classes, per_class, seed, file)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("one-hot", EYE),
        ("smoothed", 0.9 * EYE + 0.1 / 3),
        ("zeros", torch.zeros(3, 3)),
        ("ones", torch.ones(3, 3)),
    ],
)
def test_rows_of_a_class(name, rows):
    assert torch.equal(labels(name), rows[[0, 0, 1, 1, 2, 2]])
    assert torch.equal(labels(name, [2, 0], 3), rows[[2, 2, 2, 0, 0, 0]])


def test_random_rows_have_their_law_and_are_of_each_image():
    many = {name: labels(name, per_class=2000) for name in ("normal", "uniform", "binary")}
    for name, mean, std in (("normal", 0, 1), ("uniform", 0.5, 12**-0.5), ("binary", 0.5, 0.5)):
        found = many[name]
        assert found.shape == (6000, 3) and float(found.mean()) == pytest.approx(mean, abs=0.02)
        assert float(found.std()) == pytest.approx(std, abs=0.02) and len(found[:20].unique(dim=0)) > 5
        assert torch.equal(labels(name), labels(name)) and not torch.equal(labels(name), labels(name, seed=1))
    assert many["uniform"].min() >= 0 and many["uniform"].max() < 1 and many["normal"].min() < -1
    assert many["binary"].unique().tolist() == [0, 1]


def test_orthogonal_rows_are_those_of_one_rotation_for_any_number_of_images():
    q = label_starts.rotation(5, 3)
    assert torch.allclose(q @ q.T, torch.eye(5, dtype=torch.float64), atol=1e-12)
    three = label_starts.rotation(3, 0).float()
    assert torch.equal(labels("orthogonal", [2, 1], 3), three[[2, 2, 2, 1, 1, 1]])
    assert not torch.equal(labels("orthogonal"), labels("orthogonal", seed=1))
    first = torch.stack([label_starts.rotation(3, seed)[0] for seed in range(400)])  # uniform: every entry has mean 0
    assert first.mean(0).abs().max() < 0.1 and float(first.square().mean()) == pytest.approx(1 / 3)


def test_distances_are_shared_out():
    d = torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]])
    near = torch.tensor([[1.0, 0.75, 0.0], [0.75, 1.0, 0.5], [0.0, 0.5, 1.0]])
    far = torch.tensor([[1.0, 0.25, 1.0], [0.25, 1.0, 0.5], [1.0, 0.5, 1.0]])
    assert torch.equal(label_starts.shared_out(d), near)
    assert torch.equal(label_starts.shared_out(d, inverted=True), far)


def plain_ssim(a, b, window=7):
    """One channel, window by window, with the constants of the paper."""
    values = []
    for i in range(a.shape[0] - window + 1):
        for j in range(a.shape[1] - window + 1):
            p, q = (x[i : i + window, j : j + window].flatten() for x in (a, b))
            both = ((p - p.mean()) * (q - q.mean())).sum() / (len(p) - 1)
            top = (2 * p.mean() * q.mean() + 1e-4) * (2 * both + 9e-4)
            values.append(top / ((p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var() + q.var() + 9e-4)))
    return torch.stack(values).mean()


def test_measures_of_images():
    a, b = torch.rand(2, 2, 11, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(label_starts.mse(a, b)) == pytest.approx(float(((a - b) ** 2).sum() / a.numel()))
    assert float(label_starts.nrmse(a, b)) == pytest.approx(float((((a - b) ** 2).mean() / (a**2).mean()).sqrt()))
    assert float(label_starts.nrmse(a, b)) != pytest.approx(float(label_starts.nrmse(b, a)))
    expected = (plain_ssim(a[0], b[0]) + plain_ssim(a[1], b[1])) / 2
    assert float(label_starts.ssim(a, b)) == pytest.approx(float(expected), rel=1e-10)
    assert float(label_starts.ssim(a, a)) == pytest.approx(1)


def test_measures_are_those_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = torch.rand(2, 2, 11, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = a.numpy(), b.numpy()
    assert float(label_starts.mse(a, b)) == pytest.approx(metrics.mean_squared_error(x, y))
    assert float(label_starts.nrmse(a, b)) == pytest.approx(metrics.normalized_root_mse(x, y))
    expected = metrics.structural_similarity(x, y, channel_axis=0, data_range=1.0)
    assert float(label_starts.ssim(a, b)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", label_starts.MEASURES)
def test_distances_of_mean_images_are_in_pixels(name):
    plain = toy_data()
    scaled = replace(plain, train_x=(plain.train_x - 0.3) / 2, mean=(0.3,), std=(2.0,))  # the same pixels
    means = torch.stack([plain.train_x[plain.train_y == c].double().mean(0) for c in range(3)])
    d = torch.stack([torch.stack([label_starts.MEASURES[name](a, b) for b in means]) for a in means])
    assert d.diagonal().abs().max() < 1e-12 and d.max() > 0.01
    rows = 1 - d / d.max()
    rows.fill_diagonal_(1)
    for data in (plain, scaled):
        assert torch.allclose(labels(name, [1, 2], 1, data=data), rows[[1, 2]].float(), atol=1e-5)
        inverted = labels(f"{name}-inverted", [1, 2], 1, data=data)
        assert torch.allclose(inverted + rows[[1, 2]].float(), 1 + EYE[[1, 2]], atol=1e-5)


def test_distances_of_names(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("3 2\nfire 0 0\ntruck 2 0\ncat 0 3\nseven 1 4\nunused x\n")
    data = replace(toy_data(), classes=("Fire truck", "cat", "7"))
    vectors = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 4.0]])
    d = (vectors[:, None] - vectors).norm(dim=2)
    found = labels("names", file=str(file), per_class=1, data=data)
    assert torch.allclose(found, (1 - d / 4).fill_diagonal_(1))
    assert torch.allclose(labels("names-inverted", file=str(file), per_class=1, data=data), (d / 4).fill_diagonal_(1))


def test_labels_from_a_file(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("1 0.5 -2\n\n0, 1, 0\n")
    rows = torch.tensor([[1, 0.5, -2], [0, 1, 0]])
    assert torch.equal(labels("file", [2, 0], 1, file=str(file)), rows)
    assert torch.equal(labels("file", [2, 0], 2, file=str(file)), rows[[0, 0, 1, 1]])
    assert torch.equal(labels("file", [1], 2, file=str(file)), rows)


def test_labels_are_of_the_type_of_the_images():
    assert labels("orthogonal", data=toy_data(dtype=torch.float64)).dtype == torch.float64
    assert labels("means-mse").dtype == torch.float32


def flat():
    data = toy_data()
    return replace(data, train_x=torch.ones_like(data.train_x))


FILES = {"words": "1 2 three\n4 5 6\n7 8 9\n", "short": "1 2\n", "long": "1 2 3\n" * 4, "names": "a 1 2\nb 2 1\n"}
BAD = [
    (lambda f: labels("random"), "unknown label_start 'random'"),
    (lambda f: labels("file"), "label_start is 'file' and label_file '': a file is needed"),
    (lambda f: labels("names-inverted"), "label_start is 'names-inverted' and label_file '': a file is needed"),
    (lambda f: labels("ones", file="a.txt"), "label_start is 'ones' and label_file 'a.txt': it reads none"),
    (lambda f: labels("file", file="nowhere.txt"), "label_file is 'nowhere.txt': there is no such file"),
    (lambda f: labels("file", file=f("words")), "words.txt holds 'three' where a number is needed"),
    (lambda f: labels("file", file=f("short")), "short.txt has a line of 2 numbers: 3, one a class"),
    (lambda f: labels("file", file=f("long")), "long.txt has 4 lines of labels: 3, one a labelled class, or 6"),
    (lambda f: labels("names", file=f("names")), "names.txt has no vector for the class 'c'"),
    (lambda f: labels("means-mse", data=flat()), "all classes are at distance 0 of each other"),
    (lambda f: label_starts.ssim(torch.ones(1, 6, 9), torch.ones(1, 6, 9)), "images are 6 x 9: .* needs 7 x 7"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message, tmp_path):
    def file(name):
        (tmp_path / f"{name}.txt").write_text(FILES[name])
        return str(tmp_path / f"{name}.txt")

    with pytest.raises(ValueError, match=message):
        call(file)
