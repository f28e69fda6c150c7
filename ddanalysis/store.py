"""Artefacts on disk: safetensors files that carry what they were made with, written whole or not at all.

An artefact is a dict of named tensors and one description (a JSON object). A maker reuses a file whose description is
the one it would write and rebuilds any other; a reader refuses it. Only this module decides where artefacts and
checkpoints lie.
"""

import glob
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch

Tensors = dict[str, torch.Tensor]
KEY = "ddanalysis"


def canonical(description: dict[str, Any]) -> str:
    """The one JSON text of a description: sorted keys, no spaces, no NaN."""
    return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)


@contextmanager
def atomic(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears at ``path`` only when the block ends without an error (a full disk leaves nothing behind)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def write(path: Path, tensors: Tensors, description: dict[str, Any]) -> None:
    """Write ``tensors`` and their ``description`` to one safetensors file; the same input gives the same bytes."""
    dense = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    data = safetensors.torch.save(dense, metadata={KEY: canonical(description)})
    with atomic(path) as file:
        file.write(data)


def read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a safetensors file and its description (empty if another program wrote it).

    Raises ``FileNotFoundError`` for a missing file and ``ValueError`` for one that is cut short or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {
                name: file.get_tensor(name).clone() for name in sorted(file.keys())
            }  # apart from the mapped file
            description = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    return tensors, description


def identity(description: dict[str, Any]) -> dict[str, Any]:
    """What must agree for an artefact to be the one asked for: all but ``made_with`` (versions, kept for the
    reader).
    """
    return {key: value for key, value in description.items() if key != "made_with"}


def matches(path: Path, description: dict[str, Any]) -> bool:
    """Whether ``path`` holds a whole artefact made with exactly ``description``; its tensors are not read."""
    if not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, framework="pt") as file:  # which refuses a file that was cut short
            found = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError):
        return False
    return canonical(identity(found)) == canonical(identity(description))


def expect(path: Path, description: dict[str, Any]) -> Tensors:
    """The tensors of an artefact, refused with a ``ValueError`` that names the first difference if it was made
    otherwise.
    """
    tensors, found = read(path)
    for key in sorted(set(identity(found)) | set(identity(description))):
        here, asked = found.get(key), description.get(key)
        if canonical({"": here}) != canonical({"": asked}):
            raise ValueError(f"{path} was made with {key} = {here!r}: {asked!r} is asked for; make it anew")
    return tensors


class Checkpoint:
    """The state of an unfinished computation, saved beside its result and removed with the last step.

    ``load`` gives the tensors of the last ``save`` if they belong to ``description``, else None.
    """

    def __init__(self, path: Path, description: dict[str, Any], seconds: float = 60.0) -> None:
        self.path, self.description, self.seconds = Path(path), description, seconds
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether ``seconds`` have passed since the last save."""
        return time.monotonic() - self.last >= self.seconds

    def load(self) -> Tensors | None:
        """The saved tensors, or None where there are none for this description."""
        return read(self.path)[0] if matches(self.path, self.description) else None

    def save(self, tensors: Tensors) -> None:
        """Replace what was saved."""
        write(self.path, tensors, self.description)
        self.last = time.monotonic()

    def child(self, name: object) -> "Checkpoint":
        """A checkpoint for one part of the computation."""
        path = self.path.with_name(f"{self.path.stem}.{name}{self.path.suffix}")
        return Checkpoint(path, {**self.description, "part": str(name)}, self.seconds)

    def remove(self) -> None:
        """Forget what was saved, parts included."""
        for path in self.path.parent.glob(f"{glob.escape(self.path.stem)}*{self.path.suffix}"):
            if path.name == self.path.name or path.name.startswith(f"{self.path.stem}."):
                path.unlink(missing_ok=True)


def make(path: Path, description: dict[str, Any], build: Callable[[Checkpoint], Tensors]) -> Tensors:
    """The artefact at ``path``, built if it is missing, damaged or made otherwise.

    ``build`` gets a :class:`Checkpoint` that it may use to resume after an interruption.
    """
    if matches(path, description):
        return read(path)[0]
    checkpoint = Checkpoint(path.with_suffix(".checkpoint"), description)
    write(path, build(checkpoint), description)
    checkpoint.remove()
    return read(path)[0]
