"""Random numbers from named streams: every draw has its own seed, none touches a global generator."""

import hashlib

import torch


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed that is a function of ``seed`` and the words and numbers in ``names`` alone.

    Two different streams are as good as independent, so a computation can be split over networks, epochs or updates,
    stopped, and resumed in any order with the same numbers.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}: it must be an integer of at least 0")
    words = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A ``torch.Generator`` for the stream ``names`` of ``seed``; on the CPU unless told otherwise, so that a GPU
    draws the same.
    """
    return torch.Generator(device).manual_seed(stream_seed(seed, *names))
