"""A small run of ``benchmarks/gpu.py`` on the CPU: every row is there, with its ratio to the published way."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the installed package

from benchmarks import gpu  # noqa: E402

SMALL = gpu.Settings(
    device="cpu", width=4, per_class=8, updates=2, together=(1, 2), small=(1,), predictions=20, images=16, rounds=1,
    compiled=(False,),
)  # fmt: skip


def test_every_row_is_timed_beside_the_published_way():
    found = gpu.measure(SMALL)
    rows = {(row["row"], row["way"]): row for row in found["rows"]}
    for row in ("update", "small update", "prediction", "product"):
        slow = rows[row, "published"]["milliseconds"]
        own = rows[row, "1 at once, float32"]
        assert own["ratio"] == pytest.approx(slow / own["milliseconds"]) and own["lowest"] == own["highest"]
    assert rows["pass of the trace", "1 at once, float32"]["ratio"] is None  # there is no published one
    assert ("update", "2 at once, bfloat16") in rows and ("product", "4 at once, float32") in rows
    assert found["environment"]["device"] == "cpu" and "random numbers" in found["data"]


def test_a_unit_is_one_network_and_update():
    timed = gpu.ours(SMALL, gpu.plain.made_up(SMALL.per_class))
    assert timed["update"]["2 at once, float32"].units == 2 * SMALL.updates
    assert timed["prediction"]["2 at once, float32"].units == 2
    assert timed["product"]["4 at once, float32"].units == 4
