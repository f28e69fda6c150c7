"""keep_memory, seen from outside: fresh pages handed to a process that takes and frees one large block."""

import platform
import subprocess
import sys

import pytest

from ddanalysis import allocator

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")

PROBE = """
import resource, sys
{before}
def fill():
    block = b"x" * (64 << 20)
fill()
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""
IMPORT = "from ddanalysis.allocator import keep_memory"
CALL = f"{IMPORT}\nassert keep_memory() is True"


def page_faults(before: str) -> int:
    program = PROBE.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc
def test_freed_memory_is_used_again():
    assert page_faults(CALL) < 32  # one huge page of 2 MB is the largest unit: five fresh blocks are at least 160


@glibc
def test_importing_changes_nothing():
    assert page_faults(IMPORT) >= 160


@glibc
def test_calling_twice_is_allowed():
    assert page_faults(f"{CALL}\nassert keep_memory() is True") < 32


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("the C library was opened"))
    assert allocator.keep_memory() is False


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_memory() is False


@pytest.mark.parametrize("answers", [(0, 1), (1, 0)])
def test_a_refused_setting_is_reported(monkeypatch, answers):
    class Library:
        gnu_get_libc_version = None

        def mallopt(self, parameter: int, value: int) -> int:
            return {-4: answers[0], -1: answers[1]}[parameter]

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library())
    assert allocator.keep_memory() is False
