"""Artefacts are made once, read afterwards, and made anew when anything that decides their bytes changes."""

import dataclasses

import pytest
import torch
from test_distill import toy_data

from ddanalysis import data, distilled, makers, store, whitening
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
    return makers.distilled_sets(run, **(arguments | {"distill": SETTINGS} | changes))


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
    "a setting": {"distill": {"dm": {"iterations": 3, "batch_real": 6}}},
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
        ({"distill": {"dm": {"lr": 1}}}, "unknown setting of distribution_matching 'lr'"),
        ({"distill": {"dcc": {}}}, "unknown method 'dcc'"),
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


# ------------------------------------------------------------------------------------------- on the way, and from there


def test_sets_on_the_way_are_those_of_fewer_iterations(run):
    made = all_sets(run, methods=["dm"], ipc=[2], set_seeds=[0], keep_every=1)
    assert [n for n, _ in made.along] == [0, 1, 2]
    shorter = all_sets(run, methods=["dm"], ipc=[2], set_seeds=[0], distill={"dm": {"iterations": 2, "batch_real": 5}})
    assert torch.equal(made.along[2][1].x, shorter.sets[0].x)
    assert torch.equal(made.along[0][1].x, all_sets(run, methods=["random"], ipc=[2], set_seeds=[0]).sets[0].x)
    assert made.along[1][1].settings["iterations"] == 1


def test_a_finished_set_is_not_made_again_for_those_on_its_way(run, monkeypatch):
    all_sets(run, methods=["dm"], ipc=[2], set_seeds=[0])
    path, asked = run.artefact("distilled", "dm_toy_ipc2_s0.safetensors"), []
    before, make = path.stat().st_mtime_ns, METHODS["dm"].make
    watched = dataclasses.replace(
        METHODS["dm"], make=lambda job, **own: asked.append(own["iterations"]) or make(job, **own)
    )
    object.__setattr__(watched, "settings", METHODS["dm"].settings)
    monkeypatch.setitem(METHODS, "dm", watched)
    made = all_sets(run, methods=["dm"], ipc=[2], set_seeds=[0], keep_every=1)
    assert asked == [3] and path.stat().st_mtime_ns == before and len(made.along) == 3
    all_sets(run, methods=["dm"], ipc=[2], set_seeds=[0], keep_every=1)
    assert asked == [3]
    assert not list(run.folder.rglob("*.checkpoint"))


def test_accuracies_on_the_way_end_with_those_of_the_set(run):
    made = all_sets(run, ipc=[1], keep_every=2)
    table = makers.scores_along(run, DATA, NETWORK, made, "full-batch-300", range(2))
    assert table.groupby(["method", "set_seed"])["iteration"].unique().map(list).tolist() == [[0, 2, 3]] * 2
    final = makers.scores(run, DATA, NETWORK, made.sets, "full-batch-300", range(2)).table
    own = table[table["iteration"] == 3].drop(columns="iteration").reset_index(drop=True)
    assert own.equals(final[final["method"] == "dm"].reset_index(drop=True))
    assert makers.scores_along(run, DATA, NETWORK, all_sets(run, methods=["random"]), "dc-300", range(2)).empty


def test_a_set_is_continued_from_a_file_and_its_content_counts(run):
    first = all_sets(run, methods=["dm"], ipc=[2])
    from_it = {
        "dm": SETTINGS["dm"] | {"initialisation": f"{run.folder}/distilled/dm_toy_ipc{{ipc}}_s{{seed}}.safetensors"}
    }
    other = Run("01_distill", profile="smoke", parameters={}, device="cpu", outputs=str(run.folder / "second"))
    second = all_sets(other, methods=["dm"], ipc=[2], distill=from_it)
    for seed in (0, 1):
        assert torch.equal(second.along[seed][1].x, first.sets[seed].x)
        assert not torch.equal(second.sets[seed].x, first.sets[seed].x)
    changed = all_sets(run, methods=["dm"], ipc=[2], distill={"dm": {"iterations": 4, "batch_real": 5}})
    third = all_sets(other, methods=["dm"], ipc=[2], distill=from_it)
    assert torch.equal(third.along[0][1].x, changed.sets[0].x) and not torch.equal(third.sets[0].x, second.sets[0].x)
    with pytest.raises(ValueError, match="has not 1 images a class"):
        all_sets(other, methods=["dm"], ipc=[1], set_seeds=[0], distill={
            "dm": SETTINGS["dm"] | {"initialisation": f"{run.folder}/distilled/dm_toy_ipc2_s0.safetensors"}
        })  # fmt: skip


def test_original_models_are_trained_once_for_all_sets(run):
    distill = {"clom_dm": SETTINGS["dm"] | {"alpha": 1.0, "models": 2, "model_epochs": 2}}
    made = all_sets(run, methods=["clom_dm"], distill=distill)
    assert len(made.sets) == 4 and len(list((run.folder / "models").iterdir())) == 1
    assert sorted(made.history["component"].unique()) == ["loss", "regulariser"]


def test_a_method_may_have_its_own_ipc(run):
    made = all_sets(run, distill={"dm": SETTINGS["dm"] | {"ipc": [3]}}, set_seeds=[0])
    assert [(s.method, s.ipc) for s in made.sets] == [("dm", 3), ("random", 1), ("random", 2)]
    assert "ipc" not in made.sets[0].settings


def test_whitened_data_make_whitened_sets(run):
    white, network = data.load("digits", whitening="kornia"), build("ConvNet", (1, 8, 8), 10, width=4)
    made = all_sets(run, data=white, architecture=network, methods=["dm"], ipc=[1], set_seeds=[0])
    assert made.sets[0].whitening is white.whitening and made.sets[0].dataset == "digits-zca-kornia"
    on_disk = distilled.load(run.artefact("distilled", "dm_digits-zca-kornia_ipc1_s0.safetensors"))
    assert whitening.alike(on_disk.whitening, white.whitening)
    with pytest.raises(ValueError, match="whiten"):
        distilled.fits(on_disk, data.load("digits", normalisation="none"))


def test_an_estimate_has_a_row_a_method_and_ipc(run):
    table = makers.estimates(run, DATA, NETWORK, ["dm", "random"], [1, 2], [0, 3], SETTINGS)
    assert table[["method", "ipc", "sets"]].values.tolist() == [
        ["dm", 1, 2], ["dm", 2, 2], ["random", 1, 2], ["random", 2, 2],
    ]  # fmt: skip
    assert (table.loc[table["method"] == "dm", "seconds"] > 0).all() and (table["iterations"] >= 0).all()


def test_networks_on_all_real_data_are_kept_and_learn(run):
    def table():
        return makers.real_accuracy(run, DATA, NETWORK, Recipe(epochs=60, batch_size=20, learning_rate=0.05), range(2))

    found = table()
    assert found["accuracy"].min() > 0.6 and list(found.columns) == ["dataset", "network", "network_seed", "accuracy"]
    path = next((run.folder / "real").iterdir())
    before = path.stat().st_mtime_ns
    assert table().equals(found) and path.stat().st_mtime_ns == before
