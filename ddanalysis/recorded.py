"""Small work on a GPU: hundreds of kernels of a few microseconds each, recorded once and launched together.

A lone network with a small batch spends its time waiting for launches. The kernels of a function are recorded as a
CUDA graph at its first call with tensors of some shapes; later calls launch the graph on their own numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

RECORDINGS = 16
"""How many are kept, the last used ones; each keeps the memory that its function works in."""

WARM_UP = 3
"""Calls before a recording, in which libraries choose their kernels and take their memory."""


class _Kind(NamedTuple):
    """What a recording depends on in a tensor."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    given: list[Tensor]
    found: tuple[Tensor, ...]


def recorded(function: Callable[..., tuple[Tensor, ...]], *arguments: Any) -> tuple[Tensor, ...]:
    """``function(*arguments)`` by its recording.

    Arguments are tensors on one CUDA device, and hashable constants. The function is one of their values alone, waits
    for no result (no ``item()``, no mask as an index), draws nothing and leaves no graph of derivatives.
    """
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    kinds = tuple(_Kind(a.shape, a.dtype, a.device) if isinstance(a, Tensor) else a for a in arguments)
    recording = _recording(function, kinds)
    for own, new in zip(recording.given, tensors, strict=True):
        own.copy_(new)
    recording.graph.replay()
    return tuple(t.clone() for t in recording.found)


@lru_cache(RECORDINGS)
def _recording(function: Callable[..., tuple[Tensor, ...]], kinds: tuple[Any, ...]) -> _Recording:
    """The recording of a function for arguments of these kinds, made with zeros in their place."""
    arguments = [
        torch.zeros(kind.shape, dtype=kind.dtype, device=kind.device) if isinstance(kind, _Kind) else kind
        for kind in kinds
    ]
    given = [a for a in arguments if isinstance(a, Tensor)]
    with torch.cuda.device(given[0].device):
        before, apart = torch.cuda.current_stream(), torch.cuda.Stream()
        apart.wait_stream(before)
        with torch.cuda.stream(apart):
            for _ in range(WARM_UP):
                function(*arguments)
        before.wait_stream(apart)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = function(*arguments)
    return _Recording(graph, given, found)
