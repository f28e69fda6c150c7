"""Every published layout, built as its authors write it, and every way in which such a file can be wrong."""

import errno
import json
import os
import pickle
import random

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from ddanalysis import store, whitening
from ddanalysis.distilled import DistilledSet, load, renormalise, save
from ddanalysis.interchange import read, read_data_label, read_dc, read_ddranking, read_mtt, write_ddranking
from ddanalysis.seeding import generator

SPACE = {"mean": (0.5,), "std": (0.25,)}
Y = torch.arange(3).repeat_interleave(2)
SOFT = torch.randn(6, 3, generator=generator(0, "soft"))


def pixels(seed=0, n=6):
    return torch.randn(n, 1, 4, 4, generator=generator(seed, "pixels"))


def keep(path, held, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(held, path, **options)
    return path


def holds(s, x, y, rates=None):
    same = torch.equal(s.x, x) and torch.equal(s.y, y)
    return same and (s.learning_rates is None if rates is None else s.learning_rates.tolist() == pytest.approx(rates))


# ---- the layouts


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_data_label(tmp_path, legacy):
    path = keep(tmp_path / "0.pt", {"data": pixels(), "label": Y}, _use_new_zipfile_serialization=not legacy)
    provenance = {"method": "bptt", "dataset": "cifar10", "network": "ConvNet", "seed": 3, "settings": {"a": 1}}
    for reader in (read, read_data_label):
        s = reader(path, **SPACE, **provenance)
        assert holds(s, pixels(), Y)
        assert (s.name, s.n_classes, s.network) == ("bptt_cifar10_ipc2_s3", 3, "ConvNet")
        assert (s.mean, s.std, s.settings) == ((0.5,), (0.25,), {"a": 1})


def test_none_means_not_given(tmp_path):
    path = keep(tmp_path / "0.pt", {"data": pixels(), "label": SOFT})
    s = read(path, **SPACE, n_classes=None, ipc=None, method=None, settings=None)
    assert holds(s, pixels(), SOFT) and (s.n_classes, s.ipc, s.method) == (3, 2, "")


def test_tensors_of_other_widths_and_learned_ones(tmp_path):
    held = {"data": torch.nn.Parameter(pixels().double()), "label": Y.to(torch.uint8)}
    s = read(keep(tmp_path / "0.pt", held), **SPACE)
    assert holds(s, pixels(), Y) and s.x.dtype == torch.float32 and s.y.dtype == torch.int64 and not s.x.requires_grad
    halves = read(keep(tmp_path / "1.pt", {"data": pixels().half(), "label": SOFT.double()}), **SPACE)
    assert holds(halves, pixels().half().float(), SOFT)


def test_tensors_saved_on_a_gpu_come_to_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path = keep(tmp_path / "0.pt", {"data": pixels(), "label": Y})
    monkeypatch.undo()
    assert b"cuda:0" in path.read_bytes()
    s = read(path, **SPACE)
    assert s.x.device.type == s.y.device.type == "cpu" and holds(s, pixels(), Y)


def dc_file(path):
    accuracies = {"ConvNet": [np.float64(0.5), np.float32(0.25), 0.125], "MLP": [np.int64(1), np.int32(2)]}
    return keep(path, {"data": [[pixels(0), Y], [pixels(1), Y.flip(0)]], "accs_all_exps": accuracies})


def test_dc_gives_the_last_experiment_unless_told(tmp_path):
    path = dc_file(tmp_path / "res_DM_CIFAR10_ConvNet_2ipc.pt")
    assert holds(read(path, **SPACE), pixels(1), Y.flip(0))
    for experiment, seed in ((-1, 1), (-2, 0), (0, 0), (1, 1)):
        assert torch.equal(read_dc(path, experiment, **SPACE).x, pixels(seed))


def test_dc_with_the_names_of_numpy_1(tmp_path):
    path = dc_file(tmp_path / "new.pt")
    old = tmp_path / "old.pt"
    whole = torch.load(path, weights_only=False)
    module = np._core.multiarray.scalar.__module__
    text = pickle.dumps(whole["accs_all_exps"], protocol=2)
    assert module.encode() in text

    class OldPickler:
        """Pickles as ``pickle`` does, under the module names that NumPy 1 had."""

        class Pickler(pickle._Pickler):
            def save_global(self, obj, name=None):
                if getattr(obj, "__name__", "") == "scalar":
                    self.write(b"cnumpy.core.multiarray\nscalar\n")
                    self.memoize(obj)
                else:
                    super().save_global(obj, name)

            dispatch = {**pickle._Pickler.dispatch, type(len): save_global, type: save_global}

        dump, dumps, load, loads = pickle.dump, pickle.dumps, pickle.load, pickle.loads

    torch.save(whole, old, pickle_module=OldPickler)
    assert b"numpy.core.multiarray" in old.read_bytes() and b"numpy._core" not in old.read_bytes()
    assert holds(read(old, **SPACE), pixels(1), Y.flip(0))


RATES = [(Y, None), (SOFT, torch.tensor(0.03)), (Y, torch.tensor([0.1, 0.2])), (Y, 0.5)]


@pytest.mark.parametrize("labels, rate", RATES)
def test_mtt(tmp_path, labels, rate):
    images = keep(tmp_path / "images_best.pt", pixels())
    keep(tmp_path / "labels_best.pt", labels)
    rates = None if rate is None else torch.as_tensor(rate).reshape(-1).tolist()
    if rate is not None:
        keep(tmp_path / "lr_best.pt", rate)
    for path in (tmp_path, images, str(images)):
        assert holds(read(path, **SPACE), pixels(), labels, rates)
    assert holds(read_mtt(images, tmp_path / "labels_best.pt", **SPACE), pixels(), labels)


def test_mtt_of_one_iteration(tmp_path):
    for it in (0, 500):
        keep(tmp_path / f"images_{it}.pt", pixels(it))
        keep(tmp_path / f"labels_{it}.pt", Y)
    assert holds(read(tmp_path / "images_500.pt", **SPACE), pixels(500), Y)


def test_ddranking_with_and_without_labels(tmp_path):
    keep(tmp_path / "images.pt", pixels())
    for s in (read(tmp_path, **SPACE, n_classes=3), read_ddranking(tmp_path / "images.pt", **SPACE, n_classes=3)):
        assert holds(s, pixels(), Y)
    keep(tmp_path / "labels.pt", SOFT)
    keep(tmp_path / "lr.pt", torch.tensor(0.125))
    for path in (tmp_path, tmp_path / "images.pt"):
        assert holds(read(path, **SPACE), pixels(), SOFT, [0.125])
    paths = [keep(tmp_path / "elsewhere" / name, t) for name, t in (("a.pt", pixels(1)), ("b.pt", Y), ("c.pt", 0.5))]
    assert holds(read_ddranking(*paths, **SPACE), pixels(1), Y, [0.5])


def test_mtt_below_normal_and_unwhitened(tmp_path):
    keep(tmp_path / "Normal" / "images_best.pt", pixels())
    keep(tmp_path / "Normal" / "labels_best.pt", SOFT)
    keep(tmp_path / "Normal" / "lr_best.pt", torch.tensor(0.5))
    assert holds(read(tmp_path, **SPACE), pixels(), SOFT, [0.5])
    keep(tmp_path / "labels_500.pt", Y)
    s = read(keep(tmp_path / "images_zca_500.pt", pixels()), **SPACE)  # pixels, not normalised
    assert torch.allclose(s.x, (pixels() - 0.5) / 0.25, atol=1e-6) and torch.equal(s.y, Y)
    keep(tmp_path / "lr_500.pt", torch.tensor(0.5))
    assert read(tmp_path / "images_zca_500.pt", **SPACE).learning_rates.tolist() == [0.5]


def test_every_other_layout_is_told_by_what_it_holds(tmp_path):
    rows, space = pixels().flatten(1), {**SPACE, "n_classes": 3}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = rows.numpy()
    np.savez(tmp_path / "a.npz", image=pixels().permute(0, 2, 3, 1).numpy(), label=Y.numpy())
    keep(tmp_path / "c.pt", {"compressor": {"imgs.weight": rows}})
    keep(tmp_path / "a.pth", {"epoch": 1, "model_state_dict": {"module.data.weight": rows}})
    keep(tmp_path / "results.pth", [(pixels(), Y, torch.tensor([0.5]))])
    for name in ("a.h5", "a.npz", "c.pt", "a.pth"):
        assert holds(read(tmp_path / name, **space), pixels(), Y), name
    steps = read(tmp_path / "results.pth", **space)
    assert holds(steps, pixels(), Y, [0.5]) and steps.order.tolist() == [[0, 1, 2, 3, 4, 5]]
    (tmp_path / "r.json").write_text(json.dumps({"labels": [SOFT.tolist()]}))
    with pytest.raises(ValueError, match="holds labels alone: images="):
        read(tmp_path / "r.json", **space)
    for c in range(3):
        (tmp_path / "folders" / f"{c:05d}").mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 51 * c, np.uint8)).save(tmp_path / "folders" / f"{c:05d}" / "class0_id0.png")
    s = read(tmp_path / "folders", **space)
    assert s.y.tolist() == [0, 1, 2] and s.x[:, 0, 0, 0].tolist() == pytest.approx([-2.0, -1.2, -0.4])


def a_set(**changes):
    values = {"x": pixels(), "y": Y, "n_classes": 3, **SPACE, "method": "dm", "dataset": "digits", "ipc": 2, **changes}
    return DistilledSet(**values)


@pytest.mark.parametrize("s", [a_set(), a_set(y=SOFT, learning_rates=torch.tensor([0.5]))], ids=["hard", "soft"])
def test_ddranking_is_written_and_read_back(tmp_path, s):
    for folder in ("a", "b"):
        write_ddranking(s, tmp_path / folder)
    back = read(tmp_path / "a", **SPACE, method="dm", dataset="digits")
    assert holds(back, s.x, s.y, None if s.learning_rates is None else [0.5]) and back.name == s.name
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["images.pt", "labels.pt"] + ["lr.pt"] * (s.learning_rates is not None)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        torch.load(tmp_path / "a" / name, weights_only=True)


def test_writing_over_another_set_leaves_nothing_of_it(tmp_path):
    write_ddranking(a_set(x=pixels(1), learning_rates=torch.tensor([0.5])), tmp_path)
    write_ddranking(a_set(), tmp_path)
    assert holds(read(tmp_path, **SPACE), pixels(), Y)


def test_a_view_is_written_without_what_it_is_a_view_of(tmp_path):
    write_ddranking(a_set(x=pixels(n=6000)[:6]), tmp_path)
    assert (tmp_path / "images.pt").stat().st_size < 10_000


@pytest.mark.parametrize("changes", [{"order": torch.tensor([[0, 1]])}, {"learning_rates": torch.ones(2)}])
def test_a_schedule_is_not_dropped_silently(tmp_path, changes):
    with pytest.raises(ValueError, match="dm_digits_ipc2_s0 has an order or a learning rate for each step"):
        write_ddranking(a_set(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "replace", full)
    with pytest.raises(OSError, match="could not write"):
        write_ddranking(a_set(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_this_package_needs_no_provenance(tmp_path):
    save(a_set(settings={"a": 1}), tmp_path / "s.safetensors")
    s = read(tmp_path / "s.safetensors")
    assert holds(s, pixels(), Y) and (s.name, s.mean, s.settings) == ("dm_digits_ipc2_s0", (0.5,), {"a": 1})


# ---- whitened sets, which no layout but our own can tell


W = {kind: whitening.fit(kind, torch.rand(60, 1, 4, 4, generator=generator(0, "real"))) for kind in whitening.KINDS}


def layouts_of_whitened_sets(folder):
    keep(folder / "mtt" / "labels_best.pt", Y)
    np.savez(folder / "frepo.npz", image=pixels().permute(0, 2, 3, 1).numpy(), label=Y.numpy())
    with h5py.File(folder / "rat.h5", "w") as file:
        file["data"] = pixels().flatten(1).numpy()
    return {
        keep(folder / "mtt" / "images_best.pt", pixels()).parent: "kornia",
        keep(folder / "datadam.pt", {"data": [[pixels(), Y]]}): "kornia",
        keep(folder / "dd" / "images.pt", pixels()).parent: "kornia",
        keep(folder / "bptt.pt", {"compressor": {"imgs.weight": pixels().flatten(1)}}): "per-image",
        folder / "rat.h5": "per-image",
        folder / "frepo.npz": "frepo",
    }


def test_a_whitening_is_given_and_kept_in_our_own_layout(tmp_path):
    for path, kind in layouts_of_whitened_sets(tmp_path).items():
        s = read(path, whitening=W[kind], n_classes=3)
        assert holds(s, pixels(), Y) and s.whitening is W[kind] and (s.mean, s.std) == ((0.0,), (1.0,)), path
        save(s, tmp_path / "own.safetensors")
        for back in (read(tmp_path / "own.safetensors"), load(tmp_path / "own.safetensors")):
            assert holds(back, pixels(), Y) and back.whitening.fingerprint == W[kind].fingerprint
        also = read(path, whitening=W[kind], n_classes=3, **SPACE)  # normalised besides, if somebody did
        assert holds(also, pixels(), Y) and (also.mean, also.std) == ((0.5,), (0.25,))
        assert read(path, n_classes=3, whitening=None, **SPACE).whitening is None


def test_pixels_are_whitened_anew(tmp_path):
    keep(tmp_path / "labels_500.pt", Y)
    path = keep(tmp_path / "images_zca_500.pt", pixels())
    for w in W.values():
        s = read(path, whitening=w)
        assert torch.equal(s.x, w.apply(pixels().double()).float()) and s.whitening is w
    s = read(path, whitening=W["kornia"], **SPACE)
    torch.testing.assert_close(s.x, (W["kornia"].apply(pixels()) - 0.5) / 0.25, atol=1e-4, rtol=0)


def test_a_whitening_of_other_images_is_refused_with_the_file_named(tmp_path):
    wide = whitening.fit("kornia", torch.rand(60, 1, 4, 5, generator=generator(0)))
    keep(tmp_path / "labels_500.pt", Y)
    for path in (
        keep(tmp_path / "0.pt", {"data": pixels(), "label": Y}),
        keep(tmp_path / "images_zca_500.pt", pixels()),
    ):
        with pytest.raises(ValueError, match=r"of (shape )?\(1, 4, 4\)|has \(1, 4, 4\)") as caught:
            read(path, whitening=wide)
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="whitening is 'kornia'|std must be given"):
        read(tmp_path / "0.pt", whitening=W["kornia"], mean=(0.5,))


def test_ddranking_takes_the_one_whitening_it_knows(tmp_path):
    s = a_set(mean=(0.0,), std=(1.0,), whitening=W["kornia"])
    write_ddranking(s, tmp_path / "kornia")
    back = read(tmp_path / "kornia", whitening=W["kornia"])
    assert holds(back, s.x, s.y) and back.whitening is W["kornia"]
    stronger = whitening.fit("kornia", torch.rand(60, 1, 4, 4, generator=generator(0)), 0.2)
    for w in (W["per-image"], W["frepo"], stronger):
        other = a_set(mean=(0.0,), std=(1.0,), whitening=w)
        with pytest.raises(ValueError, match=r"dm_digits_ipc2_s0 is whitened by .*: DD-Ranking knows kornia \(0.1\)"):
            write_ddranking(other, tmp_path / "other")
        assert not (tmp_path / "other").exists()
        write_ddranking(renormalise(other, **SPACE), tmp_path / "plain")


# ---- what is refused


@pytest.mark.parametrize(
    "held, message",
    [
        ({"data": pixels()}, "a dict with 'data' and 'label' is needed"),
        ({"compressor": {}}, "holds a dict with 'compressor'"),
        ({}, "holds a dict with nothing"),
        ([pixels(), Y], "holds a list"),
        ({"data": pixels()[0], "label": Y}, r"images have shape \(1, 4, 4\)"),
        ({"data": torch.tensor(1.0), "label": Y}, r"images have shape \(\)"),
        ({"data": pixels() * float("nan"), "label": Y}, "NaN"),
        ({"data": pixels().double() * 1e300, "label": Y}, "infinite"),
        ({"data": pixels().byte(), "label": Y}, "the images are a tensor of .* torch.uint8.*: a dense floating-point"),
        ({"data": pixels().to_sparse(), "label": Y}, "torch.sparse_coo"),
        ({"data": pixels().to("meta"), "label": Y}, "on meta"),
        ({"data": "pixels", "label": Y}, "the images are a str"),
        ({"data": pixels(), "label": Y[:5]}, "5 labels for 6 images"),
        ({"data": pixels(), "label": Y - 1}, "labels from -1 to 1"),
        ({"data": pixels(), "label": Y.float()}, "soft labels of shape"),
        ({"data": pixels(), "label": Y > 0}, "the labels are .* torch.bool"),
        ({"data": pixels(), "label": Y[:0]}, "the labels are"),
        ({"data": pixels(), "label": [0, 0, 1, 1, 2, 2]}, "the labels are a list"),
        ({"data": pixels(), "label": torch.zeros(6, dtype=torch.int64)}, "n_classes is 1"),
        ({"data": pixels(), "label": SOFT / 0}, "soft labels"),
        ({"data": pixels(n=5), "label": Y[:5]}, "5 images for 3 classes: ipc must be given"),
        ({"data": []}, "holds 0, counted from 0"),
        ({"data": [[pixels()]]}, r"a list of \[images, labels\], is needed"),
        ({"data": [[pixels(), Y[:4]]]}, "4 labels for 6 images"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_wrong_content_is_refused_with_the_file_named(tmp_path, held, message):
    path = keep(tmp_path / "wrong.pt", held)
    with pytest.raises(ValueError, match=message) as caught:
        read(path, **SPACE)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mean": None}, "does not say how its images are normalised: mean must be given"),
        ({"mean": None, "std": None}, "mean and std must be given"),
        ({"mean": (0.5, 0.5)}, r"mean is \(0.5, 0.5\): 1 finite numbers"),
        ({"n_classes": 0}, "n_classes is 0"),
        ({"n_classes": 2}, "labels from 0 to 2: allowed are 0 to 1"),
        ({"n_classes": 4}, "6 images for 4 classes: ipc must be given"),
        ({"ipc": 0}, "ipc is 0"),
        ({"method": "a/b"}, "method is 'a/b'"),
    ],
)
def test_a_wrong_provenance_is_refused(tmp_path, changes, message):
    path = keep(tmp_path / "0.pt", {"data": pixels(), "label": Y})
    with pytest.raises(ValueError, match=message):
        read(path, **{**SPACE, **changes})


def test_a_misspelt_provenance_is_refused(tmp_path):
    with pytest.raises(TypeError, match="normalization"):
        read(keep(tmp_path / "0.pt", {"data": pixels(), "label": Y}), **SPACE, normalization="dc")


@pytest.mark.parametrize("reader", [read_data_label, read_dc])
def test_a_named_reader_refuses_another_layout(tmp_path, reader):
    with pytest.raises(ValueError, match="holds a tensor of shape"):
        reader(keep(tmp_path / "images.pt", pixels()), **SPACE)


@pytest.mark.parametrize("experiment", [2, -3, True, "0", 1.0])
def test_an_experiment_that_is_not_there_is_refused(tmp_path, experiment):
    with pytest.raises(ValueError, match="holds 2, counted from 0"):
        read_dc(dc_file(tmp_path / "res.pt"), experiment, **SPACE)


@pytest.mark.parametrize(
    "rate, message",
    [
        (torch.tensor(-0.1), "the learning rate of step 0 is -0.1"),
        (torch.tensor(float("nan")), "the learning rate of step 0 is nan"),
        (torch.tensor([]), "learning rates have shape"),
        (torch.tensor(1), "the learning rates are a tensor"),
        ("0.1", "the learning rates are a str"),
    ],
)
def test_a_wrong_learning_rate_is_refused(tmp_path, rate, message):
    paths = [keep(tmp_path / name, t) for name, t in (("a.pt", pixels()), ("b.pt", Y), ("c.pt", rate))]
    with pytest.raises(ValueError, match=message):
        read_mtt(*paths, **SPACE)


def test_what_is_missing_is_named(tmp_path):
    keep(tmp_path / "run" / "images_best.pt", pixels())
    lone = keep(tmp_path / "syn.pt", pixels())
    (tmp_path / "empty").mkdir()
    for path, error, message in [
        (tmp_path / "none.pt", FileNotFoundError, "no file or folder .*none.pt"),
        (tmp_path / "run", FileNotFoundError, "no file .*labels_best.pt"),
        (tmp_path / "empty", ValueError, "holds neither images.pt nor images_best.pt nor folders"),
        (lone, ValueError, r"is not named images\*.pt: use read_mtt or read_ddranking"),
    ]:
        with pytest.raises(error, match=message):
            read(path, **SPACE)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        read_dc(tmp_path / "none.pt", **SPACE)


def test_class_order_needs_the_number_of_classes(tmp_path):
    keep(tmp_path / "images.pt", pixels())
    for n_classes, message in [(None, "n_classes is needed"), (0, "n_classes is 0"), (4, "has 6 images and no labels")]:
        with pytest.raises(ValueError, match=message):
            read(tmp_path, **SPACE, n_classes=n_classes)
    with pytest.raises(ValueError, match="is a folder"):
        read_ddranking(tmp_path, labels=tmp_path / "labels.pt", **SPACE)


# ---- files that are broken, or not data


class Trap:
    """Pickles into a call that leaves a trace where it is run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"data": pixels(), "label": Y, "more": t}], ids=["bare", "in"])
@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (os.mkdir, ("{}",), "posix.mkdir|nt.mkdir"),
        (exec, ("open({!r}, 'w')",), "exec"),
        (np.load, ("{}",), "numpy.load"),
    ],
)
def test_a_call_hidden_in_a_file_is_refused_and_not_made(tmp_path, legacy, wrap, function, arguments, name):
    trace = tmp_path / "trace"
    trap = Trap(function, *(a.format(str(trace)) for a in arguments))
    path = keep(tmp_path / "trap.pt", wrap(trap), _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=f"holds ({name}), which would have to be unpickled; refused") as caught:
        read(path, **SPACE)
    assert str(path) in str(caught.value) and not trace.exists()
    if function is os.mkdir:
        torch.load(path, weights_only=False)
        assert trace.exists(), "the trap must be one"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_cut_short_or_damaged_is_refused_with_its_name(tmp_path, legacy):
    path = keep(tmp_path / "0.pt", {"data": pixels(), "label": Y}, _use_new_zipfile_serialization=not legacy)
    whole, rng = path.read_bytes(), random.Random(0)
    cut = [whole[:n] for n in (*range(0, len(whole) - 1, 31), len(whole) - 1)]
    for broken in (*cut, rng.randbytes(500), b"\x80\x04" + rng.randbytes(100), b"not a tensor"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged or was not written by torch.save|refused") as caught:
            read(path, **SPACE)
        assert str(path) in str(caught.value)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.randrange(min(len(whole), 800))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path, **SPACE)
        except ValueError as error:
            assert str(path) in str(error)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    store.write(tmp_path / "s.safetensors", {"images": pixels()}, {})
    with pytest.raises(ValueError, match="holds no distilled set"):
        read(tmp_path / "s.safetensors", **SPACE)
