"""Loading, normalising and dividing datasets: real ones where they are, made-up ones of every layout, bad input."""

import bz2
import dataclasses
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddanalysis import data, datasets, whitening

Arrays = dict[str, np.ndarray]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def small(n_train: int = 6, n_test: int = 4, shape: tuple[int, ...] = (5, 4), classes: int = 2) -> Arrays:
    """The arrays of an npz file of random images, every class present."""
    return {
        "x_train": noise(n_train, *shape),
        "y_train": np.arange(n_train) % classes,
        "x_test": noise(n_test, *shape, seed=1),
        "y_test": np.arange(n_test) % classes,
    }


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def save_images(folder: Path, images: np.ndarray, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}{suffix}")


def image_folder(folder: Path, shape: tuple[int, ...] = (6, 5), classes: tuple[str, ...] = ("cat", "ant")) -> Path:
    """train/ with three and test/ with two images a class."""
    for k, name in enumerate(classes):
        save_images(folder / "train" / name, noise(3, *shape, seed=k))
        save_images(folder / "test" / name, noise(2, *shape, seed=10 + k))
    return folder


def idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def mnist_like(folder: Path, prefix: str, train: str, test: str, labels: np.ndarray) -> np.ndarray:
    """The four idx files of a dataset of the MNIST family, both halves alike; returns the images."""
    x = noise(len(labels), 28, 28)
    for half in (train, test):
        idx(folder / f"{prefix}{half}-images-idx3-ubyte", x)
        idx(folder / f"{prefix}{half}-labels-idx1-ubyte", labels)
    return x


# ---- digits, normalisation, fingerprint


def test_digits_are_all_there_and_stratified():
    digits = data.load("digits")
    assert (digits.name, digits.shape, digits.n_classes, digits.classes) == (
        "digits",
        (1, 8, 8),
        10,
        tuple("0123456789"),
    )
    assert digits.pixel_source == "bundled with scikit-learn"
    assert digits.train_x.shape == (1437, 1, 8, 8) and digits.test_x.shape == (360, 1, 8, 8)
    assert digits.train_x.dtype == torch.float32 and digits.train_y.dtype == torch.int64
    counts = torch.bincount(digits.train_y) + torch.bincount(digits.test_y)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    shares = torch.bincount(digits.test_y) / counts
    assert (shares - 360 / 1797).abs().max() < 1 / 174
    levels = digits.denormalise(digits.train_x) * 16
    assert (levels - levels.round()).abs().max() < 1e-4 and (levels.round().min(), levels.round().max()) == (0, 16)


def test_digits_do_not_depend_on_a_root_or_on_global_random_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("DDANALYSIS_DATA", str(tmp_path / "nowhere"))
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = data.load("digits").fingerprint()
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    np.random.seed(2)
    assert data.load("digits").fingerprint() == first == "44ebdc2fd2103703"


@pytest.mark.parametrize("shape", [(9, 7), (3, 9, 7)])
@pytest.mark.parametrize("floats", [False, True])
def test_exact_normalisation_is_numpys(tmp_path, shape, floats):
    arrays = small(n_train=600, shape=shape)
    pixels = arrays["x_train"].reshape(600, -1, 9, 7) / 255
    if floats:
        arrays["x_train"], arrays["x_test"] = arrays["x_train"] / 255, arrays["x_test"] / 255
        pixels = pixels.astype(np.float32).astype(np.float64)
    own = data.load(npz(tmp_path / "own.npz", **arrays))
    np.testing.assert_allclose(own.mean, pixels.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(own.std, pixels.std((0, 2, 3)), rtol=1e-12)
    assert own.train_x.double().mean((0, 2, 3)).abs().max() < 1e-6
    assert (own.train_x.double().std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_none_leaves_pixels_and_denormalise_restores_them(tmp_path):
    arrays = small(shape=(5, 4, 3))
    path = npz(tmp_path / "own.npz", **arrays)
    pixels = torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2) / 255
    plain, exact = data.load(path, normalisation="none"), data.load(path)
    assert torch.equal(plain.test_x, pixels) and plain.mean == (0, 0, 0) and plain.std == (1, 1, 1)
    torch.testing.assert_close(exact.denormalise(exact.test_x), pixels, atol=1e-6, rtol=0)
    torch.testing.assert_close(exact.denormalise(exact.test_x[0]), pixels[0], atol=1e-6, rtol=0)
    far = torch.full((3, 5, 4), 1000.0)
    assert exact.denormalise(far).min() > 1 and exact.denormalise(-far).max() < 0
    with pytest.raises(ValueError, match=r"to denormalise as own are of shape \(2, 1, 5, 4\)"):
        exact.denormalise(torch.zeros(2, 1, 5, 4))


def test_normalisation_is_torchvisions_bit_by_bit(tmp_path):
    from torchvision.transforms import v2

    arrays = small(n_train=20, shape=(32, 32, 3), classes=10)
    npz(tmp_path / "cifar10.npz", **arrays)
    ours = data.load("cifar10", root=tmp_path)
    theirs = v2.Normalize([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    pixels = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2).float().div(255)
    assert torch.equal(ours.train_x, theirs(pixels)) and ours.train_x.is_contiguous()


def test_fingerprint_is_of_pixels_labels_and_normalisation(tmp_path):
    arrays = small()
    path = npz(tmp_path / "own.npz", **arrays)
    original = data.load(path)
    assert re.fullmatch("[0-9a-f]{16}", original.fingerprint())
    floats = {key: value / 255 if key[0] == "x" else value for key, value in arrays.items()}
    same = [data.load(path), original.to("cpu"), data.load(npz(tmp_path / "other.npz", **arrays))]
    assert {each.fingerprint() for each in same} == {original.fingerprint()}
    seen = [original.fingerprint(), data.load(path, normalisation="none").fingerprint()]
    for key in datasets.KEYS:
        changed = {**arrays, key: arrays[key].copy()}
        changed[key].flat[:2] = arrays[key].flat[:2][::-1] if key[0] == "y" else changed[key].flat[:2] ^ 1
        seen.append(data.load(npz(tmp_path / "changed.npz", **changed)).fingerprint())
    assert len(set(seen)) == 6
    close = data.load(npz(tmp_path / "floats.npz", **floats))
    torch.testing.assert_close(close.train_x, original.train_x)


def test_to_moves_every_tensor():
    moved = data.load("digits").to("meta")
    tensors = (moved.train_x, moved.train_y, moved.test_x, moved.test_y)
    assert {t.device.type for t in tensors} == {"meta"} and moved.shape == (1, 8, 8)


# ---- whitening


@pytest.mark.parametrize("kind", whitening.KINDS)
def test_whitened_data_carry_what_was_fitted_to_their_training_pixels(kind):
    plain, white = data.load("digits", normalisation="none"), data.load("digits", whitening=kind)
    w = whitening.fit(kind, plain.train_x, 0.1)
    assert white.whitening.fingerprint == w.fingerprint
    assert (white.name, white.mean, white.std) == (f"digits-zca-{kind}", (0.0,), (1.0,))
    assert torch.equal(white.train_x, w.apply(plain.train_x)) and torch.equal(white.test_x, w.apply(plain.test_x))
    assert torch.equal(white.train_y, plain.train_y) and white.train_x.dtype is torch.float32
    by_hand = data.whitened(data.load("digits"), w)  # whatever normalisation it had
    torch.testing.assert_close(by_hand.test_x, white.test_x, atol=1e-4, rtol=0)


def test_whitened_data_have_fingerprints_of_their_own():
    whites = [data.load("digits", whitening=kind) for kind in whitening.KINDS]
    prints = [d.fingerprint() for d in whites]
    assert (
        len({*prints, data.load("digits").fingerprint(), data.load("digits", normalisation="none").fingerprint()}) == 5
    )
    assert data.load("digits", whitening="kornia", normalisation="none").fingerprint() == prints[0]
    other = dataclasses.replace(whites[0].whitening, regularisation=0.2)
    assert dataclasses.replace(whites[0], whitening=other).fingerprint() != prints[0]


@pytest.mark.parametrize("kind", ["kornia", "frepo"])
def test_denormalising_undoes_a_whitening(kind):
    plain, white = data.load("digits", normalisation="none"), data.load("digits", whitening=kind)
    for x, pixels in [(white.test_x, plain.test_x), (white.test_x[0], plain.test_x[0])]:
        torch.testing.assert_close(white.denormalise(x), pixels, atol=1e-5, rtol=0)
    grid = white.denormalise(white.test_x[:6].view(2, 3, 1, 8, 8))
    torch.testing.assert_close(grid, plain.test_x[:6].view(2, 3, 1, 8, 8), atol=1e-5, rtol=0)
    halves = dataclasses.replace(white, mean=(1.0,), std=(2.0,))  # whitened and then normalised
    torch.testing.assert_close(halves.denormalise((white.test_x - 1) / 2), plain.test_x, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"of shape \(1, 8, 4\)"):
        white.denormalise(white.test_x[:, :, :, :4])


def test_denormalised_per_image_whitening_is_seen_as_pixels():
    plain, white = data.load("digits", normalisation="none"), data.load("digits", whitening="per-image")
    pixels = white.denormalise(white.test_x)
    assert float(pixels.mean()) == pytest.approx(float(plain.train_x.mean()), abs=1e-5)
    inside = (pixels > -0.2) & (pixels < 1.2)
    assert inside.float().mean() > 0.999
    seen = [x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (pixels, plain.test_x)]
    torch.testing.assert_close(torch.cosine_similarity(*seen), torch.ones(360), atol=1e-5, rtol=0)


def test_whitening_stays_with_the_data():
    white = data.load("digits", whitening="kornia")
    rest, _ = data.hold_out(white, 0.1, seed=0)
    assert rest.whitening is white.whitening and white.to("cpu").whitening is white.whitening
    assert white.to("cpu").fingerprint() == white.fingerprint()


@pytest.mark.parametrize(
    "dataset, kind, regularisation",
    [("svhn", "per-image", 100.0), ("svhn", "kornia", 0.1), ("cifar10", "per-image", 0.1)],
)
def test_bptt_regularises_svhn_as_published(tmp_path, monkeypatch, dataset, kind, regularisation):
    stand_in = datasets.read("digits", tmp_path)
    monkeypatch.setattr(datasets, "read", lambda *_, **__: stand_in)
    assert data.load(dataset, whitening=kind).whitening.regularisation == regularisation


def test_whitenings_that_are_refused():
    with pytest.raises(ValueError, match="unknown whitening 'zca': allowed are kornia, per-image, frepo"):
        data.load("digits", whitening="zca")
    with pytest.raises(ValueError, match="unknown normalisation of whitened digits 'exact': allowed are none"):
        data.load("digits", whitening="kornia", normalisation="exact")
    white = data.load("digits", whitening="kornia")
    with pytest.raises(ValueError, match="dataset digits-zca-kornia is whitened already"):
        data.whitened(white, white.whitening)
    with pytest.raises(ValueError, match=r"of shape \(1, 8, 8\): \(3, 4, 5\) is needed"):
        data.whitened(data.load("digits"), whitening.fit("kornia", torch.linspace(0, 1, 300).view(5, 3, 4, 5)))


# ---- npz files


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((5, 4), (1, 5, 4)),
        ((5, 4, 1), (1, 5, 4)),
        ((1, 5, 4), (1, 5, 4)),
        ((5, 4, 3), (3, 5, 4)),
        ((3, 5, 4), (3, 5, 4)),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64, ">f4"])
def test_every_npz_layout(tmp_path, stored, expected, kind):
    arrays = small(shape=stored)
    x = torch.from_numpy(arrays["x_train"])
    x = x[:, None] if x.ndim == 3 else x if stored == expected else x.permute(0, 3, 1, 2)
    if kind != np.uint8:
        arrays |= {key: (arrays[key] / 255).astype(kind) for key in ("x_train", "x_test")}
    arrays |= {"y_train": arrays["y_train"].astype(np.uint8), "y_test": arrays["y_test"].astype(">i4")}
    own = data.load(str(npz(tmp_path / "shapes.npz", **arrays)), normalisation="none")
    assert (own.name, own.shape, own.classes, own.pixel_source) == ("shapes", expected, ("0", "1"), "user's file")
    torch.testing.assert_close(own.train_x, x / 255, atol=1e-7, rtol=0)
    assert own.train_y.tolist() == [0, 1, 0, 1, 0, 1] and own.test_y.dtype == torch.int64


def test_npz_may_name_its_classes_and_source(tmp_path):
    path = npz(tmp_path / "own.npz", **small(), classes=np.array(["left", "right"]), source=np.array("a scanner"))
    own = data.load(path)
    assert (own.classes, own.pixel_source) == (("left", "right"), "a scanner")


@pytest.mark.parametrize(
    ("source", "name", "stated"),
    [
        ("official pixels", "cifar10", "official pixels"),
        ("lossy jpeg copy", "cifar10-jpeg", "lossy jpeg copy"),
        (None, "cifar10", "cifar10.npz, source not stated"),
    ],
)
def test_cifar_npz_says_what_its_pixels_are(tmp_path, source, name, stated):
    extra = {} if source is None else {"source": np.array(source)}
    npz(tmp_path / "cifar10.npz", **small(n_train=20, shape=(32, 32, 3), classes=10), **extra)
    cifar = data.load("cifar10", root=tmp_path)
    assert (cifar.name, cifar.pixel_source, cifar.classes[6]) == (name, stated, "frog")


def test_cifar100_has_the_official_classes_in_order(tmp_path):
    npz(tmp_path / "cifar100.npz", **small(n_train=100, shape=(32, 32, 3), classes=100))
    classes = data.load("cifar100", root=tmp_path, normalisation="mtt").classes
    assert (
        len(set(classes)) == 100 and list(classes) == sorted(classes) and (classes[0], classes[99]) == ("apple", "worm")
    )


def bad(change: Arrays) -> Arrays:
    return {**small(), **change}


BAD_NPZ = {
    "missing": ({"x_train": noise(6, 5, 4)}, "lacks y_train, x_test, y_test"),
    "two axes": (bad({"x_train": noise(6, 20)}), r"x_train of .* has shape \(6, 20\)"),
    "no images": (bad({"x_test": noise(0, 5, 4)}), r"x_test of .* has shape \(0, 5, 4\)"),
    "four channels": (bad({"x_train": noise(6, 5, 4, 4)}), "neither axis 1 nor axis 3"),
    "two readings": (bad({"x_train": noise(6, 3, 4, 3)}), "could be axis 1 or axis 3"),
    "integers": (bad({"x_train": noise(6, 5, 4).astype(np.int64)}), "x_train of .* is of type int64: uint8"),
    "0 to 255 floats": (bad({"x_train": noise(6, 5, 4) * 1.0}), r"outside \[0, 1\] \(lowest 0?.*, highest 2"),
    "negative floats": (bad({"x_test": noise(4, 5, 4) / 255 - 0.5}), r"x_test of .* outside \[0, 1\]"),
    "NaN": (bad({"x_train": np.full((6, 5, 4), np.nan)}), "x_train of .* holds NaN"),
    "halves differ": (bad({"x_test": noise(4, 5, 5)}), r"training images are \(1, 5, 4\), test images \(1, 5, 5\)"),
    "float labels": (
        bad({"y_train": np.arange(6) / 2}),
        "y_train of .* is of type float64: class ids must be integers",
    ),
    "one-hot labels": (bad({"y_train": np.eye(6, dtype=int)}), r"y_train of .* has shape \(6, 6\)"),
    "too few labels": (bad({"y_test": np.array([0, 1, 0])}), "one class id for each of the 4 images"),
    "negative label": (bad({"y_train": np.array([0, 1, 0, 1, -1, 0])}), "holds -1: class ids start at 0"),
    "a class too high": (bad({"y_test": np.array([0, 1, 10**12, 0])}), "class id 1000000000000 with 6 training images"),
    "more than named": (bad({"y_test": np.array([0, 1, 2, 0]), "classes": np.array(["a", "b"])}), "allowed are 0 to 1"),
    "empty class": (bad({"y_train": np.array([0, 2, 0, 2, 0, 2])}), r"class 1 \(1\) of 3 has no training images"),
    "constant": (
        bad({"x_train": np.full((6, 5, 4), 7, np.uint8)}),
        "own: a channel of the training pixels is constant",
    ),
    "pickled": (bad({"y_train": np.array([0, 1, 0, 1, "x", None], dtype=object)}), "holds pickled Python objects"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_npz_is_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        data.load(npz(tmp_path / "own.npz", **arrays))


@pytest.mark.parametrize("harm", ["empty", "cut", "flipped", "npy", "text"])
def test_damaged_npz_is_refused(tmp_path, harm):
    path = npz(tmp_path / "own.npz", **small(n_train=60))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[400] ^= 255  # among the pixels of x_train
    np.save(tmp_path / "one.npy", noise(3))
    one = (tmp_path / "one.npy").read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": whole[:-200], "flipped": bytes(flipped), "npy": one, "text": b"x_train"}[harm]
    )
    with pytest.raises(ValueError, match=r"own\.npz is damaged or no npz file"):
        data.load(path)


def test_named_npz_must_hold_images_of_that_dataset(tmp_path):
    npz(tmp_path / "usps.npz", **small(n_train=10, shape=(28, 28), classes=10))
    with pytest.raises(ValueError, match=r"images are \(1, 28, 28\) \(c, h, w\): those of usps are \(1, 16, 16\)"):
        data.load("usps", root=tmp_path)
    npz(tmp_path / "cifar10.npz", **small(n_train=11, shape=(32, 32, 3), classes=11))
    with pytest.raises(ValueError, match="labels from 0 to 10: allowed are 0 to 9"):
        data.load("cifar10", root=tmp_path)


# ---- what is asked for


def test_unknown_dataset_lists_the_names():
    with pytest.raises(
        ValueError, match="unknown dataset 'minst': allowed are digits, .*cifar10, .* or the path of an .npz"
    ):
        data.load("minst", normalisation="no such")


@pytest.mark.parametrize("path", ["nowhere.npz", "no/where", "./nowhere"])
def test_missing_path(path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*where"):
        data.load(path)


@pytest.mark.parametrize(
    ("dataset", "allowed"), [("cifar10", "dc, wang, label-distillation, exact, none"), ("digits", "exact, none")]
)
def test_unknown_normalisation_lists_those_of_the_dataset(dataset, allowed):
    with pytest.raises(ValueError, match=f"unknown normalisation of {dataset} 'imagenet': allowed are {allowed}$"):
        data.load(dataset, root="nowhere", normalisation="imagenet")


def test_defaults_are_the_papers():
    expected = {
        "cifar10": "dc",
        "kmnist": "label-distillation",
        "mnist_rgb": "wang",
        "usps": "exact",
        "usps28": "wang",
        "digits": "exact",
    }
    assert {name: data.normalisations(name)[0] for name in expected} == expected
    assert set(data.NORMALISATIONS) <= set(datasets.NAMES)
    for name, (_, _, shape, classes) in datasets.TORCHVISION.items():
        presets = [preset for preset in data.NORMALISATIONS[name].values() if preset]
        assert all(len(mean) == len(std) == shape[0] for mean, std in presets) and len(set(classes)) == len(classes)


def test_missing_root_and_missing_dataset_say_where_they_looked(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to load cifar10 from: give root="):
        data.load("cifar10", root=tmp_path / "nowhere")
    monkeypatch.setenv("DDANALYSIS_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"looked for .*cifar-10-batches-py and .*cifar10\.npz; .*download=True"
    ):
        data.load("cifar10")
    for name in set(datasets.NAMES) - {"digits"}:
        with pytest.raises(FileNotFoundError, match=f"in {tmp_path}: looked for"):
            data.load(name)


@pytest.mark.parametrize(
    ("dataset", "size", "message"),
    [("digits", 16, "only image folders are resized"), ("voc", 0, "size is 0"), ("cub200", 32.0, "size is 32.0")],
)
def test_size_is_for_image_folders(dataset, size, message):
    with pytest.raises(ValueError, match=message):
        data.load(dataset, size=size)


# ---- torchvision's files, made up


@pytest.mark.parametrize(
    ("dataset", "folder", "n_classes"),
    [("mnist", "MNIST", 10), ("fashion_mnist", "FashionMNIST", 10), ("kmnist", "KMNIST", 10)],
)
def test_mnist_family_from_idx_files(tmp_path, dataset, folder, n_classes):
    y = np.arange(20) % n_classes
    x = mnist_like(tmp_path / folder / "raw", "", "train", "t10k", y)
    ours = data.load(dataset, root=tmp_path, normalisation="none")
    assert torch.equal(ours.train_x[:, 0], torch.from_numpy(x) / 255) and ours.test_y.tolist() == y.tolist()
    assert ours.pixel_source == "official pixels"


def test_official_files_go_before_npz(tmp_path):
    npz(tmp_path / "fashion_mnist.npz", **small(n_train=10, shape=(28, 28), classes=10))
    assert len(data.load("fashion_mnist", root=tmp_path).train_y) == 10
    mnist_like(tmp_path / "FashionMNIST" / "raw", "", "train", "t10k", np.arange(30) % 10)
    assert len(data.load("fashion_mnist", root=tmp_path).train_y) == 30


def test_emnist_letters_count_from_zero_and_stay_transposed(tmp_path):
    x = mnist_like(tmp_path / "EMNIST" / "raw", "emnist-letters-", "train", "test", 1 + np.arange(52) % 26)
    letters = data.load("emnist_letters", root=tmp_path, normalisation="none")
    assert letters.train_y.tolist() == [*range(26)] * 2 and (letters.classes[0], letters.n_classes) == ("a", 26)
    assert torch.equal(letters.train_x[:, 0], torch.from_numpy(x) / 255)


def test_mnist_rgb_repeats_the_grey_value(tmp_path):
    mnist_like(tmp_path / "MNIST" / "raw", "", "train", "t10k", np.arange(20) % 10)
    grey, colour = data.load("mnist", root=tmp_path), data.load("mnist_rgb", root=tmp_path)
    assert (colour.name, colour.shape, colour.mean) == ("mnist_rgb", (3, 28, 28), (0.1307,) * 3)
    assert torch.equal(colour.train_x, grey.train_x.repeat(1, 3, 1, 1)) and colour.train_x.is_contiguous()


def test_usps_from_torchvisions_files(tmp_path):
    values = np.linspace(-1, 1, 256)
    line = " ".join(f"{i + 1}:{v:.6f}" for i, v in enumerate(values))
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress("".join(f"{d} {line}\n" for d in range(1, 11)).encode()))
    usps = data.load("usps", root=tmp_path, normalisation="none")
    assert usps.train_y.tolist() == [*range(10)] and usps.shape == (1, 16, 16)
    expected = torch.from_numpy((values + 1) / 2).float().view(16, 16)
    assert (usps.train_x[3, 0] - expected).abs().max() < 1.01 / 255  # cut, not rounded
    framed = data.load("usps28", root=tmp_path, normalisation="none").train_x
    assert framed.shape[2:] == (28, 28) and framed[..., :3].eq(0).all() and framed[..., 25:, :].eq(0).all()
    assert torch.allclose(framed.mean((2, 3)) * 28**2 / 22**2, usps.train_x.mean((2, 3)), atol=0.02)


@pytest.mark.parametrize(
    ("dataset", "file"),
    [("mnist", "MNIST/raw/note"), ("cifar10", "cifar-10-batches-py/data_batch_1"), ("svhn", "train_32x32.mat")],
)
def test_incomplete_official_files_are_refused_even_beside_an_npz(tmp_path, dataset, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"cut short")
    npz(tmp_path / f"{dataset}.npz", **small(n_train=10, shape=(32, 32, 3), classes=10))
    with pytest.raises(ValueError, match=f"{dataset} in .* is incomplete or damaged"):
        data.load(dataset, root=tmp_path)


def test_cut_idx_file_is_refused(tmp_path):
    mnist_like(tmp_path / "MNIST" / "raw", "", "train", "t10k", np.arange(20) % 10)
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(ValueError, match="mnist in .* is incomplete or damaged"):
        data.load("mnist", root=tmp_path)


# ---- Kuzushiji-49


def kuzushiji(root: Path, x: np.ndarray) -> None:
    for split in ("train", "test"):
        npz(root / f"k49-{split}-imgs.npz", arr_0=x)
        npz(root / f"k49-{split}-labels.npz", arr_0=np.arange(len(x)).astype(np.uint8) % 49)


def test_kuzushiji49_and_its_published_corruption(tmp_path):
    x = noise(98, 28, 28)
    x[0, 0, :4] = [0, 255, 10, 1]
    kuzushiji(tmp_path, x)
    right = data.load("kuzushiji49", root=tmp_path, normalisation="none")
    wrong = data.load("kuzushiji49_published", root=tmp_path, normalisation="none")
    assert torch.equal(right.train_x[:, 0], torch.from_numpy(x) / 255)
    assert (wrong.train_x[0, 0, 0, :4] * 255).tolist() == [0, 1, 246, 255]
    for images in (wrong.train_x, wrong.test_x):
        assert torch.equal(images[:, 0], torch.from_numpy((256 - x.astype(int)) % 256).float() / 255)
    assert (wrong.name, wrong.n_classes, wrong.classes[48]) == ("kuzushiji49_published", 49, "iteration mark")
    assert "(256 - v) mod 256" in wrong.pixel_source and right.pixel_source == "official pixels"
    assert right.fingerprint() != wrong.fingerprint()


def test_kuzushiji49_refuses_a_missing_class_and_corrupted_floats(tmp_path):
    kuzushiji(tmp_path, noise(98, 28, 28) / 255)
    assert data.load("kuzushiji49", root=tmp_path).shape == (1, 28, 28)
    with pytest.raises(ValueError, match="kuzushiji49_published must be uint8"):
        data.load("kuzushiji49_published", root=tmp_path)
    kuzushiji(tmp_path, noise(48, 28, 28))
    with pytest.raises(ValueError, match=r"class 48 \(iteration mark\) of 49 has no training images"):
        data.load("kuzushiji49", root=tmp_path)


# ---- folders of images


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_own_folder(tmp_path, shape):
    folder = image_folder(tmp_path / "pets", shape)
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    pets = data.load(folder, normalisation="none")
    assert (pets.name, pets.classes, pets.pixel_source) == ("pets", ("ant", "cat"), "user's folder")
    assert pets.train_y.tolist() == [0, 0, 0, 1, 1, 1] and pets.test_y.tolist() == [0, 0, 1, 1]
    ants = torch.from_numpy(noise(3, *shape, seed=1))
    assert torch.equal(pets.train_x[:3] * 255, (ants[:, None] if ants.ndim == 3 else ants.permute(0, 3, 1, 2)).float())


def test_own_folder_is_in_colour_if_one_image_is(tmp_path):
    folder = image_folder(tmp_path / "pets")
    save_images(folder / "test" / "cat", noise(1, 6, 5, 3))
    pets = data.load(folder)
    assert pets.shape == (3, 6, 5) and torch.equal(
        pets.denormalise(pets.train_x)[:, 0], pets.denormalise(pets.train_x)[:, 2]
    )


def test_images_of_several_sizes_need_a_size(tmp_path):
    folder = image_folder(tmp_path / "pets")
    save_images(folder / "test" / "ant", noise(1, 9, 8))
    with pytest.raises(ValueError, match=r"images of 2 sizes \(5 x 6, 8 x 9\): one size, or size=, is needed"):
        data.load(folder)
    pets = data.load(folder, size=4, normalisation="none")
    assert pets.shape == (1, 4, 4) and pets.pixel_source == "user's folder, resized to 4 x 4"
    picture = Image.open(folder / "test" / "ant" / "000.png").resize((4, 4), Image.Resampling.BILINEAR)
    assert torch.equal(pets.test_x[0, 0] * 255, torch.from_numpy(np.array(picture)).float())


def test_bad_image_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no class folders in .*train: train/ and test/ must each hold"):
        data.load(tmp_path)
    folder = image_folder(tmp_path / "unknown")
    save_images(folder / "test" / "dog", noise(1, 6, 5))
    with pytest.raises(ValueError, match="unknown class folder in .*test 'dog': allowed are ant, cat"):
        data.load(folder)
    folder = image_folder(tmp_path / "damaged")
    (folder / "test" / "ant" / "000.png").write_bytes(b"no png")
    for size in (None, 8):
        with pytest.raises(ValueError, match=r"ant/000\.png cannot be read as an image"):
            data.load(folder, size=size)
    folder = image_folder(tmp_path / "cut")
    picture = folder / "test" / "ant" / "000.png"
    picture.write_bytes(picture.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"ant/000\.png cannot be read as an image"):
        data.load(folder)
    folder = image_folder(tmp_path / "deep")
    Image.fromarray(np.ones((6, 5), np.uint16)).save(folder / "train" / "ant" / "000.png")
    with pytest.raises(ValueError, match=r"ant/000\.png has more than 8 bits"):
        data.load(folder)
    folder = image_folder(tmp_path / "gap")
    (folder / "train" / "bee").mkdir()
    with pytest.raises(ValueError, match=r"class 1 \(bee\) of 3 has no training images"):
        data.load(folder)
    (tmp_path / "bare" / "train" / "ant").mkdir(parents=True)
    (tmp_path / "bare" / "test" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match="bare holds no training images"):
        data.load(tmp_path / "bare")


def test_voc_is_one_folder_a_class(tmp_path):
    image_folder(tmp_path / "voc", (40, 50))
    voc = data.load("voc", root=tmp_path)
    assert (voc.shape, voc.classes, voc.test_x.shape[0]) == ((3, 32, 32), ("ant", "cat"), 4)
    assert data.load("voc", root=tmp_path, size=24, normalisation="imagenet").shape == (3, 24, 24)


@pytest.mark.parametrize("layout", ["annotated", "val sorted", "test sorted"])
def test_tiny_imagenet_in_its_layouts(tmp_path, layout):
    root = tmp_path / "tiny-imagenet-200"
    for k, name in enumerate(("n01", "n02")):
        save_images(root / "train" / name / "images", noise(3, 64, 64, 3, seed=k), ".JPEG")
    x = noise(4, 64, 64, 3, seed=9)
    if layout == "annotated":
        save_images(root / "val" / "images", x, ".png")
        lines = [f"{i:03d}.png\t{name}\t0\t0\t62\t62" for i, name in enumerate(("n02", "n01", "n01", "n02"))]
        (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
        save_images(root / "test" / "images", x)
    else:
        for name, images in (("n01", x[1:3]), ("n02", x[[0, 3]])):
            save_images(root / layout.split()[0] / name, images)
    tiny = data.load("tiny_imagenet", root=tmp_path)
    assert (tiny.shape, tiny.classes, tiny.mean) == ((3, 64, 64), ("n01", "n02"), (0.485, 0.456, 0.406))
    assert tiny.train_y.tolist() == [0, 0, 0, 1, 1, 1]
    first_of_n02 = tiny.denormalise(tiny.test_x[tiny.test_y == 1])[0] * 255
    torch.testing.assert_close(first_of_n02, torch.from_numpy(x[0]).permute(2, 0, 1).float(), atol=1e-3, rtol=0)
    if layout == "annotated":
        assert tiny.test_y.tolist() == [1, 0, 0, 1]
        (root / "val" / "val_annotations.txt").write_text("000.png\tn99\t0\t0\t62\t62\n")
        with pytest.raises(ValueError, match="unknown class of 000.png in .* 'n99'"):
            data.load("tiny_imagenet", root=tmp_path)


def test_cub200_by_its_own_tables(tmp_path):
    root = tmp_path / "CUB_200_2011"
    names = ("001.Albatross", "002.Finch")
    for k, name in enumerate(names):
        save_images(root / "images" / name, noise(3, 40 + k, 50, 3, seed=k))
    paths = [f"{name}/{i:03d}.png" for name in names for i in range(3)]
    tables = {
        "images": paths,
        "image_class_labels": [1, 1, 1, 2, 2, 2],
        "train_test_split": [1, 0, 1, 0, 0, 1],
        "classes": names,
    }
    for table, values in tables.items():
        (root / f"{table}.txt").write_text("".join(f"{i + 1} {value}\n" for i, value in enumerate(values)))
    birds = data.load("cub200", root=tmp_path, normalisation="none")
    assert (birds.shape, birds.classes) == ((3, 32, 32), names)
    assert birds.train_y.tolist() == [0, 0, 1] and birds.test_y.tolist() == [0, 1, 1]
    squashed = Image.open(root / "images" / paths[5]).resize((32, 32), Image.Resampling.BILINEAR)
    assert torch.equal(birds.train_x[2] * 255, torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float())
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n4 0\n5 0\n6 2\n")
    with pytest.raises(ValueError, match=r"image 6 \(002.Finch/002.png\) has no class, or is neither"):
        data.load("cub200", root=tmp_path)


# ---- subsets


def uneven() -> torch.Tensor:
    """Labels of 40, 25 and 31 images of three classes, mixed."""
    y = torch.repeat_interleave(torch.arange(3), torch.tensor([40, 25, 31]))
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(3))]


def test_balanced_rows_are_class_major_distinct_and_nested():
    y = uneven()
    sets = [data.balanced_rows(y, k, seed=5).view(3, k) for k in (1, 2, 10, 25)]
    for rows in sets:
        assert rows.dtype == torch.int64 and torch.equal(y[rows], torch.arange(3)[:, None].expand_as(rows))
        assert len(set(rows.flatten().tolist())) == rows.numel()
        assert torch.equal(sets[-1][:, : rows.shape[1]], rows)
    assert torch.equal(data.balanced_rows(y, 10, seed=5), sets[2].flatten())
    assert not torch.equal(data.balanced_rows(y, 10, seed=6), sets[2].flatten())


def test_classes_and_purposes_draw_independently():
    y = torch.arange(2).repeat_interleave(50)
    first, second = data.balanced_rows(y, 50, seed=0).view(2, 50)
    assert not torch.equal(first, second - 50)
    digits = data.load("digits", normalisation="none")
    _, (x, _) = data.hold_out(digits, 0.1, seed=0)
    assert not torch.equal(x, digits.train_x[data.fraction_rows(digits.train_y, 0.1, seed=0)])


def test_balanced_rows_are_uniform():
    y = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    drawn = torch.stack([data.balanced_rows(y, 1, seed) for seed in range(2000)])
    counts = torch.bincount(drawn.flatten(), minlength=7).double()
    expected = torch.tensor([500, 2000 / 3, 500, 2000 / 3, 500, 2000 / 3, 500], dtype=torch.float64)
    assert ((counts - expected).square() / expected).sum() < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_fraction_rows_take_the_whole_part_of_each_class():
    y = uneven()
    rows = data.fraction_rows(y, 0.13, seed=0)
    assert torch.bincount(y[rows]).tolist() == [int(40 * 0.13), int(25 * 0.13), int(31 * 0.13)] == [5, 3, 4]
    assert torch.equal(y[rows], y[rows].sort().values) and len(set(rows.tolist())) == 12
    assert set(rows.tolist()) < set(data.fraction_rows(y, 0.5, seed=0).tolist())
    assert data.fraction_rows(y, 1, seed=0).sort().values.tolist() == [*range(96)]


def test_class_rows():
    y = torch.tensor([2, 0, 2, 1])
    assert data.class_rows(y, 2).tolist() == [0, 2]
    with pytest.raises(ValueError, match="class 3 has no images among these 4"):
        data.class_rows(y, 3)


def test_hold_out_divides_the_training_images():
    digits = data.load("digits", normalisation="none")
    rest, (x, y) = data.hold_out(digits, 0.1, seed=0)
    counts = torch.bincount(digits.train_y)
    assert torch.bincount(y).tolist() == [int(n * 0.1) for n in counts.tolist()]
    assert torch.equal(torch.bincount(y) + torch.bincount(rest.train_y), counts)

    def words(images: torch.Tensor) -> list[bytes]:
        return sorted(image.numpy().tobytes() for image in images)

    assert words(torch.cat([rest.train_x, x])) == words(digits.train_x)
    assert rest.test_x is digits.test_x and rest.fingerprint() != digits.fingerprint()
    again, (x_again, _) = data.hold_out(digits, 0.1, seed=0)
    assert torch.equal(x, x_again) and again.fingerprint() == rest.fingerprint()
    assert data.hold_out(digits, 0.1, seed=1)[0].fingerprint() != rest.fingerprint()


Y = torch.tensor([0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.balanced_rows(Y, 3, 0), "class 1 has 2 images: per_class=3 cannot be drawn"),
        (lambda: data.balanced_rows(Y, 0, 0), "per_class is 0"),
        (lambda: data.balanced_rows(torch.tensor([0, 2]), 1, 0), "class 1 has 0 images"),
        (lambda: data.balanced_rows(Y.float(), 1, 0), r"labels of shape \(5,\) and type torch.float32"),
        (lambda: data.balanced_rows(Y[:0], 1, 0), r"labels of shape \(0,\)"),
        (lambda: data.balanced_rows(Y - 1, 1, 0), "int64 class ids from 0"),
        (lambda: data.balanced_rows(Y, 1, -1), "seed is -1"),
        (lambda: data.fraction_rows(Y, 0.4, 0), "class 1 has 2 images: fraction 0.4 of them is less than one"),
        (lambda: data.fraction_rows(Y, 0, 0), "fraction is 0: it must be above 0"),
        (lambda: data.fraction_rows(Y, 1.5, 0), "fraction is 1.5"),
        (lambda: data.hold_out(data.load("digits"), 1.0, 0), "fraction is 1.0: a hold-out needs one between 0 and 1"),
        (lambda: data.hold_out(data.load("digits"), 0.001, 0), "fraction 0.001 of them is less than one"),
    ],
)
def test_bad_subsets_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- real data


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [
        ("mnist", (0.1307,), (0.3081,)),
        ("fashion_mnist", (0.2860,), (0.3530,)),
        ("cifar10", (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    ],
)
def test_real_datasets_have_their_published_statistics(data_root, dataset, mean, std):
    place = datasets.TORCHVISION[dataset][1]
    if not (data_root / place).exists():
        pytest.skip(f"no {place} in DDANALYSIS_DATA")
    real = data.load(dataset, root=data_root, normalisation="exact")
    assert (real.name, real.pixel_source) == (dataset, "official pixels")
    np.testing.assert_allclose(real.mean, mean, atol=5.1e-5)
    np.testing.assert_allclose(real.std, std, atol=5.1e-5)
    assert torch.bincount(real.test_y).tolist() == [1000] * 10 or dataset == "mnist"
    if dataset == "mnist":
        assert real.train_y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_both_packings_of_cifar10_are_the_same_data(data_root):
    if not (data_root / "cifar-10-batches-py").exists() or not (data_root / "cifar10.npz").exists():
        pytest.skip("needs cifar-10-batches-py and cifar10.npz in DDANALYSIS_DATA")
    official = datasets.read("cifar10", data_root)
    packed = datasets.read(str(data_root / "cifar10.npz"), data_root)
    if packed.source != "official pixels":
        pytest.skip("cifar10.npz is a lossy copy")
    for half in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(official, half), getattr(packed, half))


def test_usps_as_packed(data_root):
    if not (data_root / "usps.npz").exists():
        pytest.skip("no usps.npz in DDANALYSIS_DATA")
    usps = data.load("usps", root=data_root)
    assert (len(usps.train_y), len(usps.test_y), usps.shape) == (7291, 2007, (1, 16, 16))
    framed = data.load("usps28", root=data_root, normalisation="none")
    assert framed.shape == (1, 28, 28) and torch.equal(framed.train_y, usps.train_y)
    assert abs(float(framed.train_x.mean()) - 0.1597) < 0.01  # that of the published copy
    assert "scaled" in framed.pixel_source


@pytest.mark.parametrize("space", [{}, {"whitening": "per-image"}, {"whitening": "kornia"}])
def test_normalise_undoes_denormalise(space):
    digits = data.load("digits", **space)
    assert (digits.normalise(digits.denormalise(digits.train_x[:20])) - digits.train_x[:20]).abs().max() < 1e-2
