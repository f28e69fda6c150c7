"""Every further layout, built as its authors write it, and every way in which such a file can be wrong."""

import json
import os
import random

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ddanalysis import foreign, whitening
from ddanalysis.layouts import (
    read_compressor,
    read_image_folder,
    read_label_distillation,
    read_npz,
    read_rat,
    read_steps,
    read_unwhitened,
)
from ddanalysis.seeding import generator

GREY = {"mean": (0.5,), "std": (0.25,)}
RGB = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}
Y = torch.arange(3).repeat_interleave(2)


def random_tensor(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, "numbers"))


SOFT = random_tensor(6, 3)


def keep(path, held):
    torch.save(held, path)
    return path


def holds(s, x, y):
    return s.x.shape == x.shape and torch.allclose(s.x, x, atol=1e-6) and torch.equal(s.y, y)


# ---- Remember the Past


def compressor(path, **state):
    return keep(path, {"compressor": {name.replace("_", "."): t for name, t in state.items()}})


def test_compressor_without_addressing(tmp_path):
    images = random_tensor(6, 3, 4, 4)
    path = compressor(tmp_path / "c.pt", imgs_weight=torch.nn.Parameter(images.flatten(1)))
    s = read_compressor(path, **RGB, n_classes=3, method="bptt")
    assert holds(s, images, Y) and (s.ipc, s.method, s.mean) == (2, "bptt", RGB["mean"])
    small = read_compressor(compressor(tmp_path / "d.pt", imgs_weight=images[:3, :1].flatten(1)), **GREY, n_classes=3)
    assert holds(small, images[:3, :1], torch.arange(3))


@pytest.mark.parametrize("downsample", [1, 2])
def test_compressor_with_addressing(tmp_path, downsample):
    bases, coefficients = random_tensor(5, 3, 4, 4), random_tensor(6, 5, seed=1)
    images = torch.stack([sum(a * b for a, b in zip(row, bases, strict=True)) for row in coefficients])
    if downsample > 1:
        images = F.interpolate(images, size=8, mode="bilinear", align_corners=False)
    path = compressor(tmp_path / "c.pt", imgs_weight=coefficients, basis_weight=bases.flatten(1))
    assert holds(read_compressor(path, downsample, **RGB, n_classes=3), images, Y)


@pytest.mark.parametrize(
    "state, changes, message",
    [
        ({"imgs_weight": random_tensor(6, 48)}, {"n_classes": None}, "n_classes is needed to give it labels"),
        ({"imgs_weight": random_tensor(6, 48)}, {"n_classes": 4}, "6 images and no labels: .* a multiple of 4"),
        ({"imgs_weight": random_tensor(6, 48)}, {"mean": None}, "mean must be given"),
        ({"imgs_weight": random_tensor(6, 48)}, {"mean": 0.5}, "mean is 0.5: one number for each channel"),
        ({"imgs_weight": random_tensor(6, 48)}, {"mean": ()}, r"mean is \(\): one number for each channel"),
        ({"imgs_weight": random_tensor(6, 48)}, {"downsample": 0}, "downsample is 0"),
        ({"imgs_weight": random_tensor(6, 49)}, {}, "rows of 49 numbers: no square image of 3 channels has so many"),
        ({"imgs_weight": random_tensor(6, 3, 16)}, {}, r"'imgs.weight' of shape \(6, 3, 16\): rows"),
        ({"imgs_weight": Y}, {}, "rows of 'imgs.weight' are .* torch.int64.*: a dense floating-point"),
        ({"imgs_weight": random_tensor(6, 48) / 0}, {}, "infinite"),
        ({"imgs_weight": random_tensor(6, 5), "basis_weight": random_tensor(4, 48)}, {}, "4 bases and 5 coefficients"),
        ({"basis_weight": random_tensor(4, 48)}, {}, "inside it a dict with 'basis.weight': a 'compressor' with"),
        (
            {"imgs_weight": random_tensor(6, 48), "net_weight": Y},
            {},
            "inside it a dict with 'imgs.weight', 'net.weight'",
        ),
        ({}, {}, "inside it a dict with nothing"),
    ],
)
def test_compressors_that_are_wrong(tmp_path, state, changes, message):
    path = compressor(tmp_path / "c.pt", **state)
    with pytest.raises(ValueError, match=message) as caught:
        read_compressor(path, **{**RGB, "n_classes": 3, **changes})
    assert str(path) in str(caught.value) or "downsample" in message


def test_what_is_no_compressor(tmp_path):
    for held, message in [({"data": SOFT}, "a dict with 'data': a 'compressor'"), (SOFT, "holds a tensor")]:
        with pytest.raises(ValueError, match=message):
            read_compressor(keep(tmp_path / "c.pt", held), **RGB, n_classes=3)


# ---- RaT-BPTT


def hdf5(path, **held):
    with h5py.File(path, "w") as file:
        for name, value in held.items():
            file.create_dataset(name, data=value)
    return path


def test_rat_hdf5(tmp_path):
    images = random_tensor(6, 3, 4, 4)
    rows = images.flatten(1).numpy()
    s = read_rat(hdf5(tmp_path / "a.h5", data=rows, epoch=7, grad=np.zeros(9)), **RGB, n_classes=3, settings={"a": 1})
    assert holds(s, images, Y) and s.settings == {"a": 1, "epoch": 7}
    soft = read_rat(hdf5(tmp_path / "b.h5", data=rows.astype(">f8"), label=SOFT.numpy()), **RGB)
    assert holds(soft, images, SOFT) and (soft.n_classes, soft.settings) == (3, {})


def rat_state(images, labels=None, epoch=3):
    held = {"epoch": epoch, "model_state_dict": {"module.data.weight": images.flatten(1)}, "optimizer_state_dict": {}}
    return held if labels is None else {**held, "label_state_dict": {"module.label.weight": labels}}


def test_rat_pth(tmp_path):
    images = random_tensor(6, 3, 4, 4)
    s = read_rat(keep(tmp_path / "a.pth", rat_state(images)), **RGB, n_classes=3)
    assert holds(s, images, Y) and s.settings == {"epoch": 3}
    s = read_rat(keep(tmp_path / "a.pth", rat_state(images, SOFT)), **RGB)
    assert holds(s, images, SOFT)
    s = read_rat(keep(tmp_path / "a.pth", {"module.data.weight": images.flatten(1)}), **RGB, n_classes=3)
    assert holds(s, images, Y) and s.settings == {}


@pytest.mark.parametrize(
    "held, message",
    [
        ({"label": SOFT.numpy()}, "holds no 'data'"),
        ({"data": np.zeros((6, 47))}, "rows of 47 numbers"),
        ({"data": np.zeros((6, 48)), "label": np.zeros((5, 3))}, "5 labels for 6 images"),
        ({"data": np.full((6, 48), np.nan)}, "NaN"),
        ({"data": np.zeros((6, 48), int)}, "rows of 'data' are .* torch.int64"),
        ({"data": "text"}, "no HDF5 file of plain numbers"),
        ({"data": np.zeros((6, 48)), "epoch": [1, 2]}, r"has the epoch a tensor of shape \(2,\)"),
        ({"data": np.zeros((6, 48)), "epoch": np.nan}, "has the epoch a tensor"),
    ],
)
def test_hdf5_files_that_are_wrong(tmp_path, held, message):
    path = hdf5(tmp_path / "a.h5", **held)
    with pytest.raises(ValueError, match=message) as caught:
        read_rat(path, **RGB, n_classes=3)
    assert str(path) in str(caught.value)


def test_an_hdf5_file_that_points_elsewhere_is_not_followed(tmp_path):
    other = hdf5(tmp_path / "other.h5", data=np.zeros((6, 48), np.float32))
    layout = h5py.VirtualLayout(shape=(6, 48), dtype="f4")
    layout[:] = h5py.VirtualSource(str(other), "data", shape=(6, 48))
    for link in (h5py.ExternalLink(str(other), "data"), layout):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            if isinstance(link, h5py.ExternalLink):
                file["data"] = link
            else:
                file.create_virtual_dataset("data", link)
        with h5py.File(path) as file:
            assert file["data"].shape == (6, 48), "it must point somewhere"
        with pytest.raises(ValueError, match="'data' is no dataset of the file itself"):
            read_rat(path, **RGB, n_classes=3)


@pytest.mark.parametrize(
    "held, message",
    [
        ({"model_state_dict": {}}, "holds a dict with 'model_state_dict': a model state with 'module.data.weight'"),
        (SOFT, "holds a tensor of shape"),
        (rat_state(random_tensor(6, 47)), "rows of 47 numbers"),
        (rat_state(random_tensor(6, 48), epoch="last"), "has the epoch a str"),
        (rat_state(random_tensor(6, 48), labels=[1]), "the labels are a list"),
    ],
)
def test_pth_files_that_are_wrong(tmp_path, held, message):
    with pytest.raises(ValueError, match=message):
        read_rat(keep(tmp_path / "a.pth", held), **RGB, n_classes=3)


# ---- FRePo and KIP


@pytest.mark.parametrize("names", [("image", "label"), ("images", "labels")])
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4"])
def test_npz(tmp_path, names, dtype):
    images = random_tensor(6, 3, 4, 5)
    path = tmp_path / "step001000.npz"
    last = images.permute(0, 2, 3, 1).numpy().astype(dtype)
    np.savez(path, **{names[0]: last, names[1]: SOFT.numpy().astype(dtype)})
    s = read_npz(path, **RGB, method="frepo")
    assert holds(s, images, SOFT) and (s.n_classes, s.ipc, s.x.is_contiguous()) == (3, 2, True)
    np.savez_compressed(path, **{names[0]: last[..., :1], names[1]: Y.numpy().astype("i4")})
    assert holds(read_npz(path, **GREY), images[:, :1], Y)


@pytest.mark.parametrize(
    "held, message",
    [
        ({"x_train": np.zeros(3)}, "holds a dict with 'x_train': 'image' and 'label', or"),
        ({"image": np.zeros((6, 4, 4, 3))}, "'image' and 'label', or 'images' and 'labels', are needed"),
        ({"image": np.zeros((6, 4, 4)), "label": SOFT.numpy()}, r"images of shape \(6, 4, 4\): \(n, h, w, c\)"),
        ({"image": np.zeros((6, 4, 4, 1)), "label": SOFT.numpy()}, r"mean is .*: 1 finite numbers are needed"),
        ({"image": np.zeros((6, 4, 4, 3), "u1"), "label": SOFT.numpy()}, "torch.uint8.*a dense floating-point"),
        ({"image": np.zeros((6, 4, 4, 3)), "label": SOFT.numpy()[:4]}, "4 labels for 6 images"),
        ({"image": np.zeros((6, 4, 4, 3)), "label": np.array([{}] * 6)}, "no .npz file of plain numbers"),
        ({"image": np.zeros((6, 4, 4, 3)), "label": np.array(["a"] * 6)}, "no .npz file of plain numbers"),
        ({"image": np.zeros((6, 4, 4, 3)), "label": np.zeros(6, "V2")}, "no .npz file of plain numbers"),
    ],
)
def test_npz_files_that_are_wrong(tmp_path, held, message):
    path = tmp_path / "a.npz"
    np.savez(path, **held)
    with pytest.raises(ValueError, match=message) as caught:
        read_npz(path, **RGB)
    assert str(path) in str(caught.value)


class Trap:
    """Pickles into a call that leaves a trace where it is run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_call_hidden_in_an_npz_file_is_not_made(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.array([Trap(tmp_path / "trace")], dtype=object), label=np.zeros(1))
    with pytest.raises(ValueError, match="no .npz file of plain numbers"):
        read_npz(tmp_path / "a.npz", **RGB)
    assert not (tmp_path / "trace").exists()
    with np.load(tmp_path / "a.npz", allow_pickle=True) as file:
        file["image"]
    assert (tmp_path / "trace").exists(), "the trap must be one"


# ---- lists of steps


def steps(count=4, batch=3, seed=0):
    return [
        (random_tensor(batch, 1, 4, 4, seed=seed + t), torch.arange(batch), torch.tensor([0.1 + t]))
        for t in range(count)
    ]


def test_steps_in_their_order(tmp_path):
    held = steps()
    s = read_steps(keep(tmp_path / "results.pth", held), **GREY, method="dd")
    assert torch.equal(s.x, torch.cat([x for x, _, _ in held])) and s.y.tolist() == [0, 1, 2] * 4
    assert s.order.tolist() == [[3 * t, 3 * t + 1, 3 * t + 2] for t in range(4)] and (s.n_classes, s.ipc) == (3, 4)
    assert s.learning_rates.tolist() == pytest.approx([0.1, 1.1, 2.1, 3.1])


def test_steps_of_several_epochs_are_kept_once(tmp_path):
    epochs = [(x.clone(), y, torch.tensor(0.5 + t)) for t, (x, y, _) in enumerate(steps(2) * 3)]
    s = read_steps(keep(tmp_path / "results.pth", epochs), **GREY)
    assert len(s) == 6 and s.order.tolist() == [[0, 1, 2], [3, 4, 5]] * 3
    assert s.learning_rates.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    for t, (x, y, _) in enumerate(epochs):
        assert torch.equal(s.x[s.order[t]], x) and torch.equal(s.y[s.order[t]], y)
    epochs[5] = (epochs[5][0] + 1e-6, *epochs[5][1:])
    assert len(read_steps(keep(tmp_path / "results.pth", epochs), **GREY)) == 18


def test_the_same_images_with_other_labels_are_another_step(tmp_path):
    (x, y, lr), *_ = steps()
    s = read_steps(keep(tmp_path / "results.pth", [(x, y, lr), (x, y.flip(0), lr)]), **GREY)
    assert len(s) == 6 and s.y.tolist() == [0, 1, 2, 2, 1, 0]


def test_steps_with_soft_labels_and_fewer_images_than_classes(tmp_path):
    held = [(x[:2], SOFT[:2] + t, lr) for t, (x, _, lr) in enumerate(steps())]
    path = keep(tmp_path / "results.pth", held)
    s = read_steps(path, **GREY, ipc=1)
    assert torch.equal(s.y, torch.cat([y for _, y, _ in held])) and s.n_classes == 3
    with pytest.raises(ValueError, match="8 images for 3 classes: ipc must be given"):
        read_steps(path, **GREY)


def test_steps_without_learning_rates_or_with_numbers(tmp_path):
    held = steps()
    s = read_steps(keep(tmp_path / "a.pth", [(x, y, None) for x, y, _ in held]), **GREY)
    assert s.learning_rates is None and s.order.shape == (4, 3)
    s = read_steps(keep(tmp_path / "a.pth", [[x, y, 0.25] for x, y, _ in held]), **GREY)
    assert s.learning_rates.tolist() == [0.25] * 4


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h: [], "holds a list: a list of steps"),
        (lambda h: {"steps": h}, "holds a dict with 'steps': a list of steps"),
        (lambda h: [step[:2] for step in h], r"a list of steps \(images, labels, learning rate\) is needed"),
        (lambda h: [*h, (h[0][0], h[0][1][:2], h[0][2])], "step 4, is .*: as many images as labels are needed"),
        (lambda h: [*h, (h[0][0], [0, 1, 2], h[0][2])], "step 4, is .* and a list: as many"),
        (lambda h: [*h, (h[0][0][:2], h[0][1][:2], h[0][2])], "steps of different shapes"),
        (lambda h: [*h, (h[0][0], SOFT[:3], h[0][2])], "steps of different shapes"),
        (lambda h: [*h, (*h[0][:2], None)], "step 4, has the learning rate a NoneType: one number is needed"),
        (lambda h: [*h, (*h[0][:2], torch.ones(2))], r"step 4, has the learning rate a tensor of shape \(2,\)"),
        (lambda h: [*h, (*h[0][:2], "0.1")], "learning rates of .*, step 4, are a str"),
        (lambda h: [*h, (*h[0][:2], torch.tensor([-1.0]))], "the learning rate of step 4 is -1"),
        (lambda h: [(x[0], y[0], lr) for x, y, lr in h], "step 0, is"),
        (lambda h: [(x[:, 0], y, lr) for x, y, lr in h], "images have shape"),
    ],
)
def test_steps_that_are_wrong(tmp_path, change, message):
    path = keep(tmp_path / "results.pth", change(steps()))
    with pytest.raises(ValueError, match=message) as caught:
        read_steps(path, **GREY)
    assert str(path) in str(caught.value)


def test_steps_take_no_other_order(tmp_path):
    path = keep(tmp_path / "results.pth", steps())
    with pytest.raises(ValueError, match="is a list of steps, which is its order: no other may be given"):
        read_steps(path, **GREY, order=torch.tensor([[0]]))


# ---- label distillation


def result(path, **changes):
    empty = {
        "train_loss": [0.5],
        "epoch": [0],
        "labels": [SOFT.tolist()],
        "base_example_labels": [16.0, 3, 8, 24, 6, 11],
    }
    path.write_text(json.dumps({**empty, **changes}))
    return path


def test_labels_for_base_images(tmp_path):
    images = random_tensor(6, 1, 4, 4).double()
    path = result(tmp_path / "r.json")
    s = read_label_distillation(path, images, **GREY, method="ld", dataset="mnist", settings={"a": 1})
    assert holds(s, images.float(), SOFT) and s.name == "ld_mnist_ipc2_s0"
    assert s.settings == {"a": 1, "base_labels": [16, 3, 8, 24, 6, 11]}
    two = read_label_distillation(result(path, labels=[SOFT.tolist(), (SOFT + 1).tolist()]), images, **GREY)
    assert torch.allclose(two.y, SOFT + 1)


def test_images_distilled_by_the_same_code(tmp_path):
    pixels = torch.rand(6, 1, 4, 4, generator=generator(0))
    path = result(tmp_path / "r.json", labels=[], data=[pixels.tolist()])
    s = read_label_distillation(path, **GREY, n_classes=3)
    assert holds(s, (pixels - 0.5) / 0.25, torch.tensor([0, 1, 2, 0, 1, 2]))


IMAGES = random_tensor(6, 1, 4, 4)


@pytest.mark.parametrize(
    "changes, images, message",
    [
        ({"labels": []}, IMAGES, "holds no labels: they are written after the last epoch"),
        ({}, None, "holds labels alone: images=, the base images in their order, must be given"),
        ({}, IMAGES[:3], "6 labels for 3 images"),
        ({}, IMAGES[0], "images have shape"),
        ({"labels": [[[0.1, 0.9], [0.5]]]}, IMAGES, "has 'labels' that are no array of numbers"),
        ({"labels": [["a"]]}, IMAGES, "has 'labels' that are no array of numbers"),
        ({"labels": 3}, IMAGES, "has 'labels' that are a int: a list is needed"),
        ({"labels": [(SOFT / 0).tolist()]}, IMAGES, "soft labels"),
        ({"base_example_labels": ["a"]}, IMAGES, "has 'base_example_labels' that are no array"),
        ({"data": [IMAGES.tolist()]}, IMAGES, "holds images of its own"),
        ({"data": [IMAGES.tolist()]}, None, "n_classes is needed"),
        ({"data": [{}]}, None, "has 'data' that are no array"),
    ],
)
def test_results_that_are_wrong(tmp_path, changes, images, message):
    path = result(tmp_path / "r.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_label_distillation(path, images, **GREY)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"labels": [[', "\udcff", "[" * 100_000])
def test_what_is_no_json_object(tmp_path, text):
    (tmp_path / "r.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="r.json (is damaged or no JSON file|holds a list: a JSON object)"):
        read_label_distillation(tmp_path / "r.json", **GREY)


# ---- folders of images


def folder(root, shape=(4, 5, 3), names=("new000", "new001", "new002"), suffix="png", each=2):
    """Writes them last first, so that only sorting can bring them into order."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(names) * each, *shape), dtype=np.uint8)
    for i in reversed(range(len(pixels))):
        path = root / names[i // each] / f"class{i // each:03d}_id{i % each:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path)
    return torch.from_numpy(pixels)


def test_image_folder(tmp_path):
    pixels = folder(tmp_path).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(RGB[k]).view(3, 1, 1) for k in ("mean", "std"))
    s = read_image_folder(tmp_path, **RGB, method="sre2l")
    assert holds(s, (pixels - mean) / std, Y) and (s.mean, s.n_classes, s.ipc) == (RGB["mean"], 3, 2)
    assert holds(read_image_folder(str(tmp_path), **RGB, n_classes=3), s.x, Y)


def test_image_folder_in_grey_and_in_another_size(tmp_path):
    pixels = folder(tmp_path / "a", (4, 5)) / 255
    assert holds(read_image_folder(tmp_path / "a", **GREY), ((pixels - 0.5) / 0.25)[:, None], Y)
    assert read_image_folder(tmp_path / "a", **RGB).x.shape == (6, 3, 4, 5)
    folder(tmp_path / "b", suffix="jpg")
    assert read_image_folder(tmp_path / "b", **RGB, size=8).x.shape == (6, 3, 8, 8)
    assert read_image_folder(tmp_path / "b", **GREY).x.shape == (6, 1, 4, 5)


def test_image_folder_with_soft_labels(tmp_path):
    folder(tmp_path)
    keep(tmp_path / "labels.pt", SOFT)
    assert torch.equal(read_image_folder(tmp_path, **RGB).y, SOFT)
    elsewhere = keep(tmp_path / "soft.pt", (SOFT + 1).half())
    assert torch.equal(read_image_folder(tmp_path, elsewhere, **RGB).y, (SOFT + 1).half().float())
    keep(elsewhere, [torch.zeros(4), SOFT])  # a batch of FKD
    with pytest.raises(ValueError, match="the labels are a list"):
        read_image_folder(tmp_path, elsewhere, **RGB)
    with pytest.raises(ValueError, match="5 labels for 6 images"):
        read_image_folder(tmp_path, keep(elsewhere, SOFT[:5]), **RGB)


def test_image_folders_that_are_wrong(tmp_path):
    for kwargs, message in [
        ({"n_classes": 4}, "has 3 class folders: 4 classes were asked for"),
        ({"mean": None}, "mean must be given"),
        ({"mean": (0.5, 0.5), "std": (1, 1)}, "have 1 or 3 channels"),
        ({"std": (1, 1)}, r"std is \(1, 1\): 3 finite positive numbers"),
    ]:
        folder(tmp_path / "a")
        with pytest.raises(ValueError, match=message) as caught:
            read_image_folder(tmp_path / "a", **{**RGB, **kwargs})
        assert str(tmp_path / "a") in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no folder .*none"):
        read_image_folder(tmp_path / "none", **RGB)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no folders of images, one a class"):
        read_image_folder(tmp_path / "empty", **RGB)
    (tmp_path / "a" / "new005").mkdir()
    with pytest.raises(ValueError, match="holds no images of new005"):
        read_image_folder(tmp_path / "a", **RGB)
    folder(tmp_path / "a", (6, 6, 3), names=("new005",))
    with pytest.raises(ValueError, match="images of 2 sizes"):
        read_image_folder(tmp_path / "a", **RGB)
    (tmp_path / "a" / "new005" / "class000_id000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image_folder(tmp_path / "a", **RGB, size=4)


def test_an_unbalanced_image_folder_needs_its_ipc(tmp_path):
    folder(tmp_path)
    (tmp_path / "new001" / "class001_id001.png").unlink()
    with pytest.raises(ValueError, match="5 images for 3 classes: ipc must be given"):
        read_image_folder(tmp_path, **RGB)
    assert read_image_folder(tmp_path, **RGB, ipc=2).y.tolist() == [0, 0, 1, 2, 2]


# ---- trajectory matching, its whitening undone


def test_unwhitened_pixels_are_normalised(tmp_path):
    pixels = random_tensor(6, 1, 4, 4) + 0.5  # they need not lie in [0, 1]
    paths = [keep(tmp_path / name, t) for name, t in (("images_zca_5.pt", pixels), ("labels_5.pt", Y), ("lr.pt", 0.5))]
    s = read_unwhitened(*paths, **GREY)
    assert holds(s, (pixels - 0.5) / 0.25, Y) and s.learning_rates.tolist() == [0.5]
    assert read_unwhitened(*paths[:2], **GREY).learning_rates is None
    with pytest.raises(ValueError, match="images have shape"):
        read_unwhitened(keep(paths[0], pixels[0]), paths[1], **GREY)
    with pytest.raises(ValueError, match=r"mean is \(0.5, 0.4, 0.3\): 1 finite numbers"):
        read_unwhitened(keep(paths[0], pixels), paths[1], **RGB)


# ---- whitened


def test_pixels_of_every_layout_are_whitened_where_a_whitening_is_given(tmp_path):
    colours = whitening.fit("kornia", torch.rand(50, 3, 5, 4, generator=generator(0, "real")))
    pixels = torch.rand(6, 3, 5, 4, generator=generator(1, "real"))
    keep(tmp_path / "labels.pt", Y)
    s = read_unwhitened(keep(tmp_path / "images_zca.pt", pixels), tmp_path / "labels.pt", whitening=colours)
    assert holds(s, colours.apply(pixels), Y) and s.whitening is colours and s.std == (1.0,) * 3
    plain = read_unwhitened(tmp_path / "images_zca.pt", tmp_path / "labels.pt", **RGB)
    assert plain.whitening is None and holds(plain, (pixels - channelwise(RGB["mean"])) / channelwise(RGB["std"]), Y)
    folder(tmp_path / "folders", (5, 4, 3))
    files = read_image_folder(tmp_path / "folders", **{"mean": (0.0,) * 3, "std": (1.0,) * 3})
    s = read_image_folder(tmp_path / "folders", whitening=colours)
    assert holds(s, colours.apply(files.x), files.y) and s.whitening is colours


def channelwise(values):
    return torch.tensor(values).view(-1, 1, 1)


def test_a_whitening_of_two_channels_has_no_image_files(tmp_path):
    folder(tmp_path)
    two = whitening.fit("kornia", torch.rand(50, 2, 5, 4, generator=generator(0, "real")))
    with pytest.raises(ValueError, match="a normalisation of 2 channels: image files in .* have 1 or 3 channels"):
        read_image_folder(tmp_path, whitening=two)


# ---- files that are broken or not there


def a_file_of_each(folder):
    np.savez(folder / "a.npz", image=np.zeros((6, 4, 4, 3), "f4"), label=SOFT.numpy())
    hdf5(folder / "a.h5", data=np.zeros((6, 48), "f4"), label=SOFT.numpy(), epoch=3)
    keep(folder / "a.pth", rat_state(random_tensor(6, 48), SOFT))
    keep(folder / "results.pth", [(x.expand(3, 3, 4, 4).clone(), *rest) for x, *rest in steps()])
    compressor(folder / "c.pt", imgs_weight=random_tensor(6, 48))
    readers = [read_npz, read_rat, read_rat, read_steps, read_compressor]
    return zip((folder / name for name in ("a.npz", "a.h5", "a.pth", "results.pth", "c.pt")), readers, strict=True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_cut_short_or_damaged_are_refused_with_their_names(tmp_path):
    rng = random.Random(0)
    for path, reader in a_file_of_each(tmp_path):
        reader(path, **RGB, n_classes=3)
        whole = path.read_bytes()
        for broken in (b"", b"x", rng.randbytes(300), *(whole[: len(whole) * i // 9] for i in range(1, 9))):
            path.write_bytes(broken)
            with pytest.raises(ValueError, match="is damaged or|refused") as caught:
                reader(path, **RGB, n_classes=3)
            assert str(path) in str(caught.value)
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[rng.randrange(min(len(whole), 900))] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                reader(path, **RGB, n_classes=3)
            except ValueError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize("reader", [read_npz, read_rat, read_steps, read_compressor, read_label_distillation])
def test_what_is_missing_is_named(tmp_path, reader):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.h5"):
        reader(tmp_path / "none.h5", **RGB)


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="no .npz file"):
        foreign.npz(tmp_path / "a.npy")
