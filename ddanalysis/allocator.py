"""One opt-in for long batch runs on a Linux CPU: memory that was freed stays with the process."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameter numbers of mallopt, from glibc's malloc.h


def keep_memory() -> bool:
    """Let glibc reuse freed memory instead of giving it back to the kernel; True if it now does.

    By default every large tensor is mapped afresh and its pages are zeroed again on first touch, which takes about half
    the time of a training step on feature maps of 100 MB. The setting is process-wide, cannot be taken back, and holds
    the largest amount of memory ever in use until the process ends: call it once, at the start of a batch run. Where
    the C library is not glibc it does nothing and returns False; memory on a GPU is not concerned.
    ``docs/performance.md`` has the measurements.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, -1))
