"""Artefacts are made once, read afterwards, and made anew when anything that decides their bytes changes."""

import dataclasses

import pytest
import torch
from test_distill import toy_data

from ddanalysis import distilled, makers, store
from ddanalysis.analysis import recognition
from ddanalysis.architectures import build
from ddanalysis.distill import METHODS
from ddanalysis.report import Run
from ddanalysis.training import Recipe

DATA = toy_data(per_class=20)
NETWORK = build("ConvNet", (1, 8, 8), 3, width=4)
SETTINGS = {"dm": {"iterations": 3, "batch_real": 5}}


@pytest.fixture
def run(tmp_path):
    return Run("01_distill", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))


@pytest.fixture
def idle(monkeypatch):
    """Every method refuses to work from now on."""

    def refuse():
        def never(*_, **__):
            raise AssertionError("made again")

        for name, method in METHODS.items():
            stand_in = dataclasses.replace(method, make=never)
            object.__setattr__(stand_in, "settings", method.settings)
            monkeypatch.setitem(METHODS, name, stand_in)

    return refuse


def all_sets(run, **changes):
    arguments = {"data": DATA, "architecture": NETWORK, "methods": ["dm", "random"], "ipc": [1, 2], "set_seeds": [0, 3]}
    return makers.distilled_sets(run, **(arguments | {"settings": SETTINGS} | changes))


def test_sets_are_made_in_order_and_read_afterwards(run, idle):
    made = all_sets(run)
    assert [s.name for s in made.sets] == [
        f"{m}_toy_ipc{i}_s{s}" for m in ("dm", "random") for i in (1, 2) for s in (0, 3)
    ]
    assert made.sets[0].network == "ConvNet-W4" and made.sets[-1].network == ""
    assert made.sets[0].settings["iterations"] == 3 and made.sets[0].settings["momentum"] == 0.5
    assert made.history.groupby(["method", "ipc", "set_seed"]).size().tolist() == [3] * 4
    bytes_before = {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
    idle()
    again = all_sets(run)
    assert all(torch.equal(a.x, b.x) for a, b in zip(made.sets, again.sets, strict=True))
    assert made.history.equals(again.history)
    assert {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")} == bytes_before
    on_disk = distilled.load(run.artefact("distilled", "dm_toy_ipc2_s3.safetensors"))
    assert torch.equal(on_disk.x, made.sets[3].x) and on_disk.settings == made.sets[3].settings


CHANGES = {
    "a setting": {"settings": {"dm": {"iterations": 3, "batch_real": 6}}},
    "the network": {"architecture": build("ConvNet", (1, 8, 8), 3, width=5)},
    "the data": {"data": dataclasses.replace(DATA, train_x=DATA.train_x + 1e-6)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_makes_them_anew(run, idle, change):
    all_sets(run)
    idle()
    with pytest.raises(AssertionError, match="made again"):
        all_sets(run, **change)


def test_other_threads_make_them_anew(run, idle):
    all_sets(run, methods=["random"])
    idle()
    run.threads = 2
    with pytest.raises(AssertionError, match="made again"):
        all_sets(run, methods=["random"])


def test_real_images_do_not_depend_on_the_network(run, idle):
    all_sets(run, methods=["random"])
    idle()
    all_sets(run, methods=["random"], architecture=build("LeNet", (1, 8, 8), 3))


def test_a_damaged_file_is_made_anew(run):
    before = all_sets(run).sets[0].x
    path = run.artefact("distilled", "dm_toy_ipc1_s0.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    assert torch.equal(all_sets(run).sets[0].x, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["random", "dmm"]}, "unknown method 'dmm'"),
        ({"settings": {"dm": {"lr": 1}}}, "unknown setting of distribution_matching 'lr'"),
        ({"settings": {"dcc": {}}}, "unknown method 'dcc'"),
    ],
)
def test_bad_requests_end_before_anything_is_made(run, changes, message):
    with pytest.raises(ValueError, match=message):
        all_sets(run, **changes)
    assert not list(run.folder.rglob("*.safetensors"))


def test_scores_pools_and_recognition_are_kept(run, monkeypatch):
    sets = all_sets(run, methods=["random"], set_seeds=[0]).sets
    recipe = Recipe(updates=3, batch_size=16)

    def everything():
        return (
            makers.scores(run, DATA, NETWORK, sets, "full-batch-300", [0, 1]).table,
            makers.subset_pool(run, DATA, NETWORK, 4, (0.1, 0.5), recipe, 0).predictions,
            makers.early_pool(run, DATA, NETWORK, 2, recipe, 0).predictions,
            recognition.followed(run, DATA, NETWORK, sets, recipe, [0, 1]),
        )

    first = everything()
    assert first[0].shape == (4, 8) and first[1].shape == (4, 1, 9) and first[2].shape == (2, 3, 9)
    monkeypatch.setattr(store, "write", None)  # whatever is made again would fail
    second = everything()
    assert first[0].equals(second[0]) and first[3].equals(second[3])
    assert torch.equal(first[1], second[1]) and torch.equal(first[2], second[2])


def test_sets_of_others_are_read_by_path(run, tmp_path):
    own = all_sets(run, methods=["random"], ipc=[2], set_seeds=[0]).sets[0]
    path = tmp_path / "theirs.pt"
    torch.save({"data": own.x, "label": own.y}, path)
    theirs, ours = makers.read_sets([str(path), str(run.artefact("distilled", f"{own.name}.safetensors"))], DATA)
    assert (theirs.method, theirs.dataset, theirs.ipc) == ("theirs", "toy", 2) and torch.equal(theirs.x, own.x)
    assert ours.method == "random" and torch.equal(ours.y, own.y)
    torch.save({"data": own.x[:, :, :7], "label": own.y}, path)
    with pytest.raises(ValueError, match="toy"):
        makers.read_sets([str(path)], DATA)
    with pytest.raises(FileNotFoundError):
        makers.read_sets([str(tmp_path / "none.pt")], DATA)
