"""Artefacts: whole or absent, the same bytes twice, refused or rebuilt when made otherwise."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddanalysis import store
from ddanalysis.seeding import generator

DESCRIPTION = {
    "method": "dm",
    "ipc": 10,
    "seed": 0,
    "settings": {"rate": 0.1, "steps": [1, 2]},
    "made_with": {"torch": "2"},
}


def tensors(seed: int = 0) -> store.Tensors:
    g = generator(seed, "store")
    return {
        "x": torch.randn(3, 1, 4, 4, generator=g),
        "y": torch.arange(3),
        "wide": torch.randn(2, 2, generator=g, dtype=torch.float64),
        "half": torch.randn(5, generator=g).bfloat16(),
        "one": torch.tensor(1.5),
        "none": torch.empty(0, 7),
    }


def same(a: store.Tensors, b: store.Tensors) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------- write and read


def test_round_trip_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "distilled" / "set.safetensors"
    store.write(path, tensors(), DESCRIPTION)
    found, description = store.read(path)
    assert same(found, tensors()) and description == DESCRIPTION
    assert files(tmp_path) == ["set.safetensors"]


def test_transposed_and_differentiable_tensors_are_written_densely(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    store.write(tmp_path / "a", {"t": x.T, "row": x[1]}, {})
    found, _ = store.read(tmp_path / "a")
    assert torch.equal(found["t"], x.detach().T) and torch.equal(found["row"], x.detach()[1])


def test_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    store.write(tmp_path / "a", tensors(), DESCRIPTION)
    turned = dict(reversed(tensors().items()))
    store.write(tmp_path / "b", turned, dict(reversed(DESCRIPTION.items())))
    store.write(tmp_path / "c", tensors(), DESCRIPTION | {"ipc": 1})
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_a_description_that_is_no_json_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        store.write(tmp_path / "a", tensors(), {"rate": float("nan")})
    assert files(tmp_path) == []


def test_a_missing_file(tmp_path: Path) -> None:
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no file {missing}"):
            store.read(missing)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a"
    store.write(path, tensors(), DESCRIPTION)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="a is damaged or no safetensors file"):
        store.read(path)
    assert not store.matches(path, DESCRIPTION)


def test_a_pickle_is_no_artefact(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        store.read(tmp_path / "a.pt")


def test_a_file_of_another_program_has_no_description(tmp_path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "a")
    found, description = store.read(tmp_path / "a")
    assert same(found, {"x": torch.ones(2)}) and description == {}


# ---------------------------------------------------------------------------------------------------------- identity


def test_expect_gives_the_tensors(tmp_path: Path) -> None:
    store.write(tmp_path / "a", tensors(), DESCRIPTION)
    assert same(store.expect(tmp_path / "a", DESCRIPTION), tensors())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ipc": 1}, r"made with ipc = 10: 1 is asked for"),
        ({"ipc": 10.0}, r"made with ipc = 10: 10\.0 is asked for"),
        ({"settings": {"rate": 0.2, "steps": [1, 2]}}, r"made with settings = .*0\.1.*: .*0\.2.* is asked for"),
        ({"seed": 1, "method": "random"}, r"made with method = 'dm': 'random' is asked for"),  # the first by name
        ({"width": 16}, r"made with width = None: 16 is asked for"),
    ],
)
def test_expect_names_the_first_difference(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store.write(tmp_path / "a", tensors(), DESCRIPTION)
    with pytest.raises(ValueError, match=message):
        store.expect(tmp_path / "a", DESCRIPTION | change)
    assert not store.matches(tmp_path / "a", DESCRIPTION | change)


def test_made_with_is_for_the_reader_only(tmp_path: Path) -> None:
    store.write(tmp_path / "a", tensors(), DESCRIPTION)
    newer = DESCRIPTION | {"made_with": {"torch": "3"}}
    assert store.matches(tmp_path / "a", newer)
    assert same(store.expect(tmp_path / "a", newer), tensors())


def test_tuples_and_lists_are_one(tmp_path: Path) -> None:
    store.write(tmp_path / "a", tensors(), {"mean": (0.5, 0.5)})
    assert store.matches(tmp_path / "a", {"mean": [0.5, 0.5]})
    assert same(store.expect(tmp_path / "a", {"mean": (0.5, 0.5)}), tensors())


# -------------------------------------------------------------------------------------------------------------- make


def builder(made: store.Tensors) -> tuple[Callable[[store.Checkpoint], store.Tensors], list[int]]:
    calls: list[int] = []

    def build(checkpoint: store.Checkpoint) -> store.Tensors:
        calls.append(1)
        return made

    return build, calls


def test_make_builds_once_and_reuses(tmp_path: Path) -> None:
    build, calls = builder(tensors())
    first = store.make(tmp_path / "a.safetensors", DESCRIPTION, build)
    second = store.make(tmp_path / "a.safetensors", DESCRIPTION | {"made_with": {}}, build)
    assert same(first, tensors()) and same(second, tensors()) and len(calls) == 1


@pytest.mark.parametrize("spoil", ["description", "truncation"])
def test_make_builds_anew_what_does_not_match(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "a.safetensors"
    store.write(path, tensors(1), DESCRIPTION | ({"seed": 1} if spoil == "description" else {}))
    if spoil == "truncation":
        path.write_bytes(path.read_bytes()[:-1])
    build, calls = builder(tensors(0))
    assert same(store.make(path, DESCRIPTION, build), tensors(0)) and len(calls) == 1
    assert store.matches(path, DESCRIPTION)


def count_to_ten(stop_after: int, steps: list[int]) -> Callable[[store.Checkpoint], store.Tensors]:
    """A computation of ten steps, each of them saved, that is interrupted after some of them."""

    def build(checkpoint: store.Checkpoint) -> store.Tensors:
        state = checkpoint.load() or {"total": torch.tensor(0)}
        for step in range(int(state["total"]), 10):
            if len(steps) == stop_after:
                raise KeyboardInterrupt
            steps.append(step)
            state = {"total": state["total"] + 1}
            checkpoint.save(state)
        return state

    return build


def test_make_resumes_from_its_checkpoint_and_removes_it(tmp_path: Path) -> None:
    path, steps = tmp_path / "a.safetensors", []
    with pytest.raises(KeyboardInterrupt):
        store.make(path, DESCRIPTION, count_to_ten(6, steps))
    assert files(tmp_path) == ["a.checkpoint"] and steps == list(range(6))
    assert store.make(path, DESCRIPTION, count_to_ten(99, steps))["total"] == 10
    assert steps == list(range(10)) and files(tmp_path) == ["a.safetensors"]


def test_make_ignores_the_checkpoint_of_another_description(tmp_path: Path) -> None:
    path, steps = tmp_path / "a.safetensors", []
    with pytest.raises(KeyboardInterrupt):
        store.make(path, DESCRIPTION | {"seed": 1}, count_to_ten(6, steps))
    steps.clear()
    assert store.make(path, DESCRIPTION, count_to_ten(99, steps))["total"] == 10
    assert steps == list(range(10))


def test_children_of_a_checkpoint_are_separate(tmp_path: Path) -> None:
    parent = store.Checkpoint(tmp_path / "a.checkpoint", DESCRIPTION)
    first, second = parent.child(0), parent.child(1)
    first.save(tensors(0))
    second.save(tensors(1))
    assert same(first.load() or {}, tensors(0)) and same(second.load() or {}, tensors(1)) and parent.load() is None
    first.remove()
    first.remove()
    assert first.load() is None and same(second.load() or {}, tensors(1))


# --------------------------------------------------------------------------------------------------------- full disk


class FullDisk:
    """Stands in for ``os.fdopen``: a file that takes a few bytes and then has no room."""

    def __init__(self, handle: int, mode: str) -> None:
        self.file = os.fdopen(os.dup(handle), mode)
        os.close(handle)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[:10])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class System:
    """``os`` with a full disk."""

    fdopen = staticmethod(FullDisk)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    if before:
        store.write(path, tensors(1), DESCRIPTION)
    monkeypatch.setattr(store, "os", System())
    with pytest.raises(OSError, match=f"could not write {path}: No space left on device") as error:
        store.write(path, tensors(0), DESCRIPTION)
    assert error.value.errno == errno.ENOSPC
    assert files(tmp_path) == (["a.safetensors"] if before else [])
    assert not before or same(store.read(path)[0], tensors(1))


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), store.atomic(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert files(tmp_path) == []


def test_atomic_replaces_and_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a"
    for content in (b"one", b"two"):
        with store.atomic(path) as file:
            file.write(content)
    assert path.read_bytes() == b"two" and files(tmp_path) == ["a"]
    assert path.stat().st_mode & 0o777 == 0o644
