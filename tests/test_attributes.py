"""Descriptors say of hand-made images what was put into them, and no more."""

import numpy as np
import pandas as pd
import pytest
import torch

from ddanalysis import architectures, networks
from ddanalysis.attributes import EDGES, HUES, binary, descriptors, embedding, standardised, varying


def flat(colour, size=8):
    return torch.tensor(colour, dtype=torch.float64).view(-1, 1, 1).expand(-1, size, size)


def described(*images):
    return descriptors(torch.stack(images))


def half(angle, size=16):
    """Dark and bright parted by a line through the middle; ``angle`` in degrees, counted upwards, along the line."""
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, size, dtype=torch.float64)] * 2, indexing="ij")
    turn = np.deg2rad(angle)
    return (u * np.sin(turn) + v * np.cos(turn) > 1e-9).double()[None]


def dot(row, column, size=8):
    image = torch.zeros(1, size, size, dtype=torch.float64)
    image[0, row, column] = 1
    return image


def test_light_and_flat_images():
    table = described(flat([0.9]), flat([0.1]), flat([0.0]))
    assert np.allclose(table["brightness"], [0.9, 0.1, 0]) and np.allclose(table["border"], [0.9, 0.1, 0])
    assert np.allclose(table.drop(columns=["brightness", "border"]), 0, atol=1e-12)  # nothing else is defined
    assert "saturation" not in table and "red" not in table
    checks = torch.tensor([0.2, 0.6], dtype=torch.float64).repeat(32).view(1, 8, 8)
    assert described(checks)["contrast"][0] == pytest.approx(0.2)


@pytest.mark.parametrize(("angle", "name"), [(0, "horizontal"), (45, "rising"), (90, "vertical"), (135, "falling")])
def test_edges(angle, name):
    table = described(half(angle), 1 - half(angle), 0.1 + 0.5 * half(angle))
    assert (table[name] > 0.85).all() and (table["coherence"] > 0.9).all()
    assert np.allclose(table[list(EDGES)].sum(axis=1), 1)
    assert np.allclose(table.loc[0, list(EDGES)], table.loc[2, list(EDGES)])  # whatever the contrast


def test_turning_and_mirroring_an_image_moves_its_descriptors():
    image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = described(image, image.flip(2), image.flip(1), image.rot90(1, (1, 2)), 1 - image)
    plain, mirrored, upside, turned, negative = (row for _, row in table.iterrows())
    assert mirrored["x"] == pytest.approx(-plain["x"]) and mirrored["y"] == pytest.approx(plain["y"])
    assert upside["y"] == pytest.approx(-plain["y"]) and mirrored["rising"] == pytest.approx(plain["falling"])
    assert turned["horizontal"] == pytest.approx(plain["vertical"])
    assert turned["rising"] == pytest.approx(plain["falling"])
    same = ["contrast", "coherence", "spread", "size", "fine", "medium", "coarse"]
    for other in (mirrored, upside, turned, negative):
        assert np.allclose(other[same].astype(float), plain[same].astype(float))
    assert negative["brightness"] == pytest.approx(1 - plain["brightness"])


@pytest.mark.parametrize(
    ("row", "column", "x", "y"), [(0, 0, -1, -1), (0, 7, 1, -1), (7, 0, -1, 1), (3, 4, 0.14, -0.14)]
)
def test_a_dot(row, column, x, y):
    found = described(dot(row, column)).loc[0]
    assert found["x"] == pytest.approx(x * 0.875, abs=0.01) and found["y"] == pytest.approx(y * 0.875, abs=0.01)
    assert found["spread"] == pytest.approx(0, abs=1e-9) and found["size"] == 1 / 64


def test_a_square_by_hand():
    image = torch.ones(1, 8, 8, dtype=torch.float64)  # dark on bright: what differs from the border counts
    image[0, 2:6, 4:8] = 0.2
    found = described(image).loc[0]
    assert found["size"] == 1 / 4 and found["x"] == pytest.approx(0.5) and found["y"] == pytest.approx(0)
    assert found["spread"] == pytest.approx(np.sqrt(2 * np.mean(np.array([0.125, 0.375]) ** 2)))


@pytest.mark.parametrize(("block", "name"), [(1, "fine"), (2, "medium"), (4, "coarse")])
def test_texture(block, name):
    checkers = torch.arange(16 // block).add(torch.arange(16 // block)[:, None]).remainder(2).double()
    image = checkers.repeat_interleave(block, 0).repeat_interleave(block, 1)[None]
    table = described(image, image[:, :14, :14].repeat_interleave(1, 0).contiguous().new_zeros(1, 16, 16))
    assert table.loc[0, name] == pytest.approx(1)
    noise = torch.rand(3, 1, 14, 18, generator=torch.Generator().manual_seed(1))  # sides that 4 does not divide
    assert np.allclose(descriptors(noise)[["fine", "medium", "coarse"]].sum(axis=1), 1, atol=1e-5)


COLOURS = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]


def test_colours():
    table = described(*[flat([0.8 * c for c in colour]) for colour in COLOURS], flat([0.5, 0.5, 0.5]))
    assert np.allclose(table.loc[:5, list(HUES)], 0.8 * np.eye(6)) and np.allclose(table.loc[6, list(HUES)], 0)
    assert np.allclose(table["saturation"], [1] * 6 + [0])
    assert table.loc[2, "brightness"] == pytest.approx(0.8 * 0.587)
    named = binary(table)
    assert named[[f"mostly {hue}" for hue in HUES]].to_numpy().tolist() == [
        *np.eye(6, dtype=bool).tolist(),
        [False] * 6,
    ]
    grey = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = descriptors(grey.expand(-1, 3, -1, -1))
    assert np.allclose(both[descriptors(grey).columns], descriptors(grey))


def test_binary_attributes():
    bright = [flat([0.1 * i]) for i in range(9)]
    table = binary(described(*bright, half(0, 8), half(90, 8)))
    assert list(table.index[table["mostly horizontal"]]) == [9] and list(table.index[table["mostly vertical"]]) == [10]
    assert set(table.index[table["dark"]]) == {0, 1, 2, 3} and not (table["dark"] & table["bright"]).any()
    assert set(table.dtypes) == {np.dtype(bool)} and table.any().all() and not table.all().any()
    assert "mostly rising" not in table  # none has it, and it could tell nothing


def test_types_and_devices():
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (descriptors(x).dtypes == "float32").all() and (descriptors(x.double()).dtypes == "float64").all()
    assert np.allclose(descriptors(x), descriptors(x.double()), atol=1e-5)
    assert np.allclose(descriptors(x), pd.concat([descriptors(one[None]) for one in x]), atol=1e-6)  # each by itself


def test_embedding_and_standardised():
    a = architectures.build("ConvNet", (1, 8, 8), 3, width=4, depth=1)
    nets = networks.create(a, [0, 1]).to(torch.float64)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = embedding(nets, x)
    assert found.dtype == torch.float64 and found.shape == (6, 2 * nets[0].all_features(x).shape[1])
    own = nets[1].all_features(x)
    expected = (own - own.mean(0)) / own.std(0, correction=0)
    alive = own.std(0) > 1e-9
    assert torch.allclose(found[:, own.shape[1] :][:, alive], expected[:, alive])
    assert torch.equal(standardised(torch.tensor([[1.0, 7.3], [3.0, 7.3]])), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


X = torch.rand(2, 1, 8, 8)
BAD = [
    (lambda: descriptors(X[0]), "pixels have shape"),
    (lambda: descriptors(X.expand(-1, 2, -1, -1)), "unknown number of channels 2"),
    (lambda: descriptors(X[:, :, :3]), "images are 3 x 8 pixels: at least 4 x 4"),
    (lambda: descriptors(2 * X + 0.5), "pixels go from .* denormalise and clip"),
    (lambda: varying(pd.DataFrame({"a": [True, True]})), "none of 1 attributes tells the 2 images apart"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
