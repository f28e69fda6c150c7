"""Artefacts: what was computed is kept in files, and made anew only when anything that decides its bytes has changed.

An artefact carries its maker, its version, the exact arguments, the fingerprint of the data, and the device and threads
it was made with.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from ddanalysis import distilled, store
from ddanalysis.data import ImageData
from ddanalysis.distill.making import Build
from ddanalysis.distilled import DistilledSet
from ddanalysis.report import Run
from ddanalysis.store import Tensors


def artefact(
    run: Run,
    kind: str,
    name: str,
    data: ImageData,
    maker: str,
    version: int,
    arguments: Mapping[str, Any],
    build: Build,
) -> Tensors:
    """The tensors of ``<kind>/<name>.safetensors``, made by ``build(checkpoint, progress)`` unless the very same are
    there.
    """
    path = run.artefact(kind, f"{name}.safetensors")
    description = identity(run, data, maker, version, arguments)
    return store.make(path, description, lambda checkpoint: build(checkpoint, run.progress(name)))


def identity(run: Run, data: ImageData, maker: str, version: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of an artefact, and the PyTorch it was made with."""
    return {
        "maker": maker,
        "version": version,
        "arguments": dict(arguments),
        "data": {"name": data.name, "pixel_source": data.pixel_source, "fingerprint": data.fingerprint()},
        "device": run.device.type,
        "threads": run.threads,
        "made_with": {"torch": torch.__version__},
    }


def shared(
    run: Run, data: ImageData, kind: str, name: str, version: int, arguments: Mapping[str, Any], build: Build
) -> Tensors:
    """An artefact that several sets use, told from others of its name by its arguments."""
    digest = hashlib.sha256(store.canonical(dict(arguments)).encode()).hexdigest()[:8]
    return artefact(run, kind, f"{name}_{digest}", data, f"distill.{kind}", version, arguments, build)


def fingerprint(one: DistilledSet) -> str:
    """16 hex digits of a sha256 over a set's tensors."""
    return digest(distilled.tensors(one))


def digest(tensors: Tensors, what: str = "") -> str:
    """16 hex digits of a sha256 over named tensors and, in words, ``what`` they are."""
    found = hashlib.sha256(what.encode())
    for name, t in sorted(tensors.items()):
        found.update(repr((name, tuple(t.shape), t.dtype)).encode())
        found.update(t.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]
