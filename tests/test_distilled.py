"""The distilled set: what it accepts, its file, the space it lives in."""

import errno
import math
import os
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from ddanalysis import store, whitening
from ddanalysis.distilled import DistilledSet, assemble, describe, fits, load, pixels, renormalise, save, tensors
from ddanalysis.seeding import generator

FIELDS = {"n_classes": 3, "mean": (0.1, 0.2), "std": (0.3, 0.4), "method": "dm", "dataset": "digits", "ipc": 2}


def images(n=6, shape=(2, 4, 5)):
    return torch.randn(n, *shape, generator=generator(0, "pixels"))


def real(seed=0):
    return torch.rand(80, 2, 4, 5, generator=generator(seed, "real"))


WHITENINGS = {kind: whitening.fit(kind, real()) for kind in whitening.KINDS}
PLAIN = {"mean": (0.0, 0.0), "std": (1.0, 1.0)}


def make(**changes):
    values = {"x": images(), "y": torch.arange(3).repeat_interleave(2), **FIELDS, **changes}
    return DistilledSet(**values)


def full():
    soft = torch.randn(6, 3, generator=generator(0, "soft"))
    order = torch.tensor([[0, 1], [2, 3], [4, 5], [0, 5]])
    rates = torch.tensor([0.1, 0.2, 0.3, 0.4])
    settings = {"iterations": 100, "lr": 1e-3, "sizes": (1, 2), "nested": {"a": None, "b": [True, "é"]}}
    return make(y=soft, order=order, learning_rates=rates, network="ConvNet", seed=7, settings=settings)


def white(kind="kornia", **changes):
    return make(whitening=WHITENINGS[kind], **{**PLAIN, **changes})


def same(a, b):
    plain = all(getattr(a, name) == getattr(b, name) for name in (*FIELDS, "network", "seed", "settings"))
    left, right = tensors(a), tensors(b)
    prints = {one.whitening and one.whitening.fingerprint for one in (a, b)}
    return (
        len(prints) == 1 and plain and left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    )


def test_basic_properties():
    s = make()
    assert (len(s), s.name) == (6, "dm_digits_ipc2_s0")
    assert s.labels().tolist() == [0, 0, 1, 1, 2, 2]
    assert make(method="", dataset="", seed=3).name == "unknown_unknown_ipc2_s3"
    assert make(mean=[0.1, 0.2], std=torch.tensor([0.5, 0.25])).std == (0.5, 0.25)


def test_soft_labels_give_the_class_they_favour():
    y = torch.tensor([[0.1, 0.9, 0.0], [5.0, -1.0, 2.0], [0.0, 0.1, 0.2]]).repeat(2, 1)
    assert make(y=y).labels().tolist() == [1, 0, 2, 1, 0, 2]


def test_fewer_images_than_classes_are_a_set():
    y = torch.rand(2, 5, generator=generator(0))
    assert len(make(x=images(2), y=y, n_classes=5, ipc=1)) == 2


def test_tensors_that_are_still_learned_are_detached():
    s = make(x=images().requires_grad_(), learning_rates=torch.ones(1, requires_grad=True))
    assert not s.x.requires_grad and not s.learning_rates.requires_grad


def test_settings_are_as_json_gives_them_and_no_longer_the_callers():
    mine = {"sizes": (1, 2), "deep": {"a": [1]}}
    s = make(settings=mine)
    mine["deep"]["a"].append(2)
    assert s.settings == {"sizes": [1, 2], "deep": {"a": [1]}}


def test_moving_keeps_every_field():
    assert same(full().to("cpu"), full()) and same(white().to("cpu"), white())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_to_a_gpu_and_back():
    for here in (full(), white()):
        there = here.to("cuda")
        assert all(t.is_cuda for t in tensors(there).values()) and same(there.to("cpu"), here)
        torch.testing.assert_close(pixels(there).cpu(), pixels(here), atol=1e-5, rtol=0)


NAN = images()
NAN[4, 0, 0, 0] = math.nan


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": images().double()}, "x is torch.strided of torch.float64: a dense tensor of torch.float32"),
        ({"x": images().numpy()}, "x is a ndarray"),
        ({"x": None}, "x is a NoneType"),
        ({"x": images().to_sparse()}, "x is torch.sparse_coo"),
        ({"x": torch.tensor(1.0)}, "x is a single number"),
        ({"x": images()[0]}, r"distilled images have shape \(2, 4, 5\)"),
        ({"x": images()[:0], "y": torch.zeros(0, dtype=torch.int64)}, "n >= 1"),
        ({"x": NAN}, "distilled images hold NaN or infinite pixels, first in image 4"),
        ({"y": torch.arange(6, dtype=torch.int32)}, "y is torch.strided of torch.int32"),
        ({"y": torch.tensor(1)}, "y is a single number"),
        ({"y": torch.arange(5) % 3}, "5 labels for 6 images"),
        ({"y": torch.arange(6)}, "labels from 0 to 5: allowed are 0 to 2"),
        ({"y": torch.arange(6) - 1}, "labels from -1 to 4"),
        ({"y": torch.zeros(6, 1, dtype=torch.int64)}, r"shape \(6, 1\)"),
        ({"y": torch.zeros(6, 4)}, r"soft labels of shape \(6, 4\): finite \(6, 3\) is needed"),
        ({"y": torch.full((6, 3), math.inf)}, "soft labels"),
        ({"n_classes": 1}, "n_classes is 1: it must be a whole number of at least 2"),
        ({"n_classes": 3.0}, "n_classes is 3.0"),
        ({"ipc": 0}, "ipc is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"method": None}, "method is None: it must be text"),
        ({"dataset": "a/b"}, "dataset is 'a/b': it must be text without slashes"),
        ({"network": "Conv\nNet"}, "network is 'Conv"),
        ({"mean": (0.1,)}, r"mean is \(0.1,\): 2 finite numbers are needed"),
        ({"mean": (0.1, math.nan)}, "mean is"),
        ({"mean": 0.1}, "mean is 0.1: 2 finite numbers"),
        ({"std": (0.1, 0.0)}, "2 finite positive numbers are needed, one for each channel"),
        ({"std": (0.1, "a")}, "std is"),
        ({"learning_rates": torch.ones(1, 1)}, r"learning rates have shape \(1, 1\)"),
        ({"learning_rates": torch.ones(0)}, r"learning rates have shape \(0,\)"),
        ({"learning_rates": torch.tensor(0.1)}, "learning_rates is a single number"),
        ({"learning_rates": torch.ones(2).double()}, "learning_rates is torch.strided of torch.float64"),
        ({"learning_rates": torch.tensor([0.5, -0.25])}, "the learning rate of step 1 is -0.25"),
        ({"learning_rates": torch.tensor([math.inf])}, "the learning rate of step 0 is inf"),
        ({"learning_rates": torch.tensor([math.nan])}, "the learning rate of step 0 is nan"),
        ({"order": torch.zeros(3, dtype=torch.int64)}, r"the order has shape \(3,\)"),
        ({"order": torch.zeros(2, 0, dtype=torch.int64)}, r"the order has shape \(2, 0\)"),
        ({"order": torch.tensor([[0, 6]])}, "the order names rows from 0 to 6: allowed are 0 to 5"),
        ({"order": torch.tensor([[-1, 5]])}, "the order names rows from -1 to 5"),
        (
            {"order": torch.zeros(3, 2).long(), "learning_rates": torch.ones(2)},
            "2 learning rates for an order of 3 steps",
        ),
        ({"settings": {"a": math.nan}}, "cannot be written as JSON"),
        ({"settings": {"a": torch.ones(1)}}, "cannot be written as JSON"),
        ({"settings": [1]}, "settings are a list"),
        ({"whitening": "kornia"}, "whitening is 'kornia': a fitted Whitening or None is needed"),
        (
            {"whitening": whitening.fit("kornia", real().mT.contiguous())},
            r"the whitening is for images of \(2, 5, 4\): the set has \(2, 4, 5\)",
        ),
    ],
)
def test_a_wrong_field_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


EVERY = {"plain": make(), "full": full(), "rate": make(learning_rates=torch.tensor([0.5])), "white": white()}


@pytest.mark.parametrize("s", EVERY.values(), ids=EVERY)
def test_a_file_gives_back_the_set_and_the_same_bytes(s, tmp_path):
    save(s, tmp_path / "a.safetensors")
    back = load(tmp_path / "a.safetensors")
    assert same(back, s)
    save(back, str(tmp_path / "b.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_says_all_that_is_known_of_the_set_and_what_its_maker_adds(tmp_path):
    path = tmp_path / "s.safetensors"
    extra = {"maker": {"name": "dm", "version": 2}, "made_with": {"torch": "2"}, "ipc": 2}
    save(make(), path, extra)
    parts, said = store.read(path)
    assert set(parts) == {"x", "y"}
    assert said == {**describe(**FIELDS), **extra}
    assert store.matches(path, {**describe(**FIELDS), "maker": {"name": "dm", "version": 2}})
    assert not store.matches(path, {**describe(**{**FIELDS, "ipc": 3}), "maker": {"name": "dm", "version": 2}})
    assert same(load(path), make())


def test_a_set_that_is_not_whitened_is_described_as_ever():
    assert store.canonical(describe(**FIELDS)) == (
        '{"dataset":"digits","ipc":2,"kind":"distilled set, layout 1","mean":[0.1,0.2],"method":"dm","n_classes":3,'
        '"network":"","seed":0,"settings":{},"std":[0.3,0.4]}'
    )
    assert describe(**FIELDS, whitening=None) == describe(**FIELDS) and tensors(make()).keys() == {"x", "y"}


@pytest.mark.parametrize("kind", whitening.KINDS)
def test_the_whitening_is_in_the_file_of_its_set(kind, tmp_path):
    path, s, w = tmp_path / "s.safetensors", white(kind), WHITENINGS[kind]
    save(s, path)
    parts, said = store.read(path)
    assert said == describe(**FIELDS | PLAIN, whitening=w) and said["whitening"] == w.describe()
    assert parts.keys() == {"x", "y", "whitening.matrix", "whitening.mean"}
    back = load(path)
    assert back.whitening.fingerprint == w.fingerprint and torch.equal(pixels(back), pixels(s))
    made = assemble({"x": s.x, "y": s.y, **w.tensors()}, {**said, "maker": 1})  # as a maker does
    assert same(made, s)
    save(made, tmp_path / "made.safetensors")
    assert (tmp_path / "made.safetensors").read_bytes() == path.read_bytes()


def test_an_added_description_cannot_contradict_the_set(tmp_path):
    with pytest.raises(ValueError, match="the description says ipc = 5, the distilled set has 2"):
        save(make(), tmp_path / "s.safetensors", {"ipc": 5})
    assert not list(tmp_path.iterdir())


def test_a_makers_parts_assemble_without_a_file():
    s = full()
    said = describe(**{name: getattr(s, name) for name in (*FIELDS, "network", "seed", "settings")})
    assert same(assemble(tensors(s), {**said, "maker": 1}), s)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load(tmp_path / "none.safetensors")


def test_files_of_others_and_broken_ones_are_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    said = describe(**FIELDS)

    def refused(match):
        with pytest.raises(ValueError, match=match) as caught:
            load(path)
        assert str(path) in str(caught.value)

    path.write_bytes(safetensors.torch.save({"x": images()}))
    refused("holds no distilled set: the description is of kind None")
    store.write(path, {"x": images()}, said)
    refused("lacks y")
    store.write(path, tensors(make()), {k: v for k, v in said.items() if k not in ("ipc", "std")})
    refused("lacks ipc, std")
    store.write(path, {**tensors(make()), "z": torch.ones(1)}, said)
    refused("unknown tensors z")
    store.write(path, tensors(white()), said)
    refused("unknown tensors whitening.matrix, whitening.mean")
    store.write(path, tensors(make()), describe(**FIELDS, whitening=WHITENINGS["kornia"]))
    refused("the whitening lacks whitening.matrix, whitening.mean")
    store.write(path, tensors(white()), {**said, "whitening": 1})
    refused("holds no distilled set")
    store.write(path, {"x": NAN, "y": make().y}, said)
    refused("NaN")
    store.write(path, tensors(make()), {**said, "mean": None})
    refused("mean is None")
    save(make(), path)
    whole = path.read_bytes()
    for kept in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="damaged"):
            load(path)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    real = os.fdopen

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:50])
            raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "s.safetensors"
    monkeypatch.setattr(os, "fdopen", lambda *a, **k: Full(real(*a, **k)))
    with pytest.raises(OSError, match=r"could not write .*s\.safetensors: No space left"):
        save(make(), path)
    assert not list(tmp_path.iterdir())


def data(**changes):
    values = {"name": "digits", "shape": (2, 4, 5), "n_classes": 3, "mean": (0.1, 0.2), "std": (0.3, 0.4)}
    return SimpleNamespace(**{**values, "whitening": None, **changes})


def test_a_set_fits_its_data_within_the_tolerance():
    assert fits(make(), data()) is None
    assert fits(make(), data(mean=(0.10009, 0.2), std=(0.3, 0.39995))) is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shape": (2, 5, 4)}, r"shape \(2, 4, 5\), .* of \(2, 5, 4\)"),
        ({"n_classes": 10}, "has 3 classes, the dataset digits has 10"),
        ({"mean": (0.1002, 0.2)}, r"normalised with mean \(0.1, 0.2\), the dataset digits with \(0.1002, 0.2\)"),
        ({"std": (0.3, 0.3998)}, "normalised with std"),
        ({"std": (0.3,)}, "normalised with std"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_with_both_names(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        fits(make(), data(**changes))
    assert "dm_digits_ipc2_s0" in str(caught.value) and "digits" in str(caught.value)


def test_renormalising_keeps_the_images():
    s = full()
    other = renormalise(s, (0.4914, 0.0), (0.2023, 1.0))
    assert (other.mean, other.std) == ((0.4914, 0.0), (0.2023, 1.0))
    for c in range(2):
        pixel = s.x[:, c].double() * s.std[c] + s.mean[c]
        assert torch.equal(other.x[:, c], ((pixel - other.mean[c]) / other.std[c]).float())
        torch.testing.assert_close(other.x[:, c].double() * other.std[c] + other.mean[c], pixel, rtol=0, atol=1e-6)
    fits(other, data(mean=(0.4914, 0.0), std=(0.2023, 1.0)))
    torch.testing.assert_close(renormalise(other, s.mean, s.std).x, s.x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mean, std", [((0.1,), (0.2, 0.2)), ((0.1, 0.1), (0.2, -0.2)), ((0.1, math.inf), (0.2, 0.2))])
def test_renormalising_to_a_wrong_space_is_refused(mean, std):
    with pytest.raises(ValueError, match="one for each channel"):
        renormalise(make(), mean, std)
