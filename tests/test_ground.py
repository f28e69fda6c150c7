"""Seeds, checks, intervals, and how much is computed at once."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from ddanalysis import checks, compute, intervals, seeding
from ddanalysis.architectures import build


def test_streams_are_named_and_apart():
    assert seeding.stream_seed(0, "a", 1) == seeding.stream_seed(0, "a", 1)
    seeds = {seeding.stream_seed(s, n, k) for s in range(20) for n in ("a", "b") for k in range(20)}
    assert len(seeds) == 800 and max(seeds) < 2**63
    draws = torch.stack([torch.rand(500, generator=seeding.generator(0, "x", k)) for k in range(8)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    assert np.abs(np.corrcoef(draws) - np.eye(8)).max() < 0.2


@pytest.mark.parametrize("seed", [-1, 1.0, True, "0"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="seed is"):
        seeding.generator(seed)


GOOD = torch.zeros(2, 1, 4, 4)
NAN = torch.zeros(3, 1, 4, 4).index_put(
    (torch.tensor(2), torch.tensor(0), torch.tensor(1), torch.tensor(1)), torch.tensor(torch.nan)
)
BAD = [
    (lambda: checks.one_of("thing", "c", ["a", "b"]), "unknown thing 'c': allowed are a, b"),
    (lambda: checks.at_least("rate", -0.1, 0), "rate is -0.1"),
    (lambda: checks.at_least("rate", float("nan"), 0), "rate is nan"),
    (lambda: checks.whole("n", 1.0), "n is 1.0: it must be a whole number of at least 1"),
    (lambda: checks.whole("n", True), "n is True"),
    (lambda: checks.images("x", GOOD[0]), r"shape \(1, 4, 4\)"),
    (lambda: checks.images("x", GOOD[:0]), "n >= 1"),
    (lambda: checks.images("x", GOOD.long()), "torch.int64"),
    (lambda: checks.images("x", GOOD, (3, 4, 4)), r"\(3, 4, 4\) is needed"),
    (lambda: checks.images("x", NAN), "NaN or infinite pixels, first in image 2"),
    (lambda: checks.images("x", GOOD + torch.inf), "first in image 0"),
    (lambda: checks.labels("y", torch.zeros(3).long(), 2, 5), "3 labels for 2 images"),
    (lambda: checks.labels("y", torch.tensor([0, 5]), 2, 5), "allowed are 0 to 4"),
    (lambda: checks.labels("y", torch.tensor([0, -1]), 2, 5), "labels from -1 to 0"),
    (lambda: checks.labels("y", torch.zeros(2, dtype=torch.int32), 2, 5), "torch.int32"),
    (lambda: checks.labels("y", torch.zeros(2, 4), 2, 5), r"finite \(2, 5\) is needed"),
    (lambda: checks.labels("y", torch.full((2, 5), torch.nan), 2, 5), r"finite \(2, 5\) is needed"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_checks_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_checks_pass_what_is_right():
    checks.images("x", GOOD, (1, 4, 4))
    checks.labels("y", torch.tensor([0, 4]), 2, 5)
    checks.labels("y", torch.ones(2, 5), 2, 5)
    checks.whole("n", 0, 0)


def test_summaries_are_t_intervals_over_the_first_unit_that_varies():
    table = pd.DataFrame(
        {"method": "dm", "set": [0, 0, 1, 1, 2, 2], "net": [0, 1] * 3, "accuracy": [0.1, 0.3, 0.2, 0.4, 0.6, 0.8]}
    )
    row = intervals.summarise(table, ["method"], "accuracy", ["set", "net"]).iloc[0]
    low, high = scipy.stats.t.interval(0.95, 2, 0.4, np.std([0.2, 0.3, 0.7], ddof=1) / 3**0.5)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.4, low, high))
    assert (row["units"], row["n"], row["n_units"]) == ("set", 6, 3)
    one_set = intervals.summarise(table[table["set"] == 1], ["method"], "accuracy", ["set", "net"]).iloc[0]
    assert one_set["units"] == "net" and one_set["n_units"] == 2
    same = table.assign(accuracy=[0.1, 0.3] * 3)  # a method without randomness: every seed gives one set
    assert intervals.summarise(same, ["method"], "accuracy", ["set", "net"])["units"].item() == "net"
    alone = intervals.summarise(table[:1], ["method"], "accuracy", ["set", "net"]).iloc[0]
    assert alone["mean"] == 0.1 and np.isnan(alone["low"])


def test_intervals_cover_the_truth_at_their_rate():
    rng = np.random.default_rng(0)
    middle, half = intervals.mean_and_half_width(rng.normal(3.0, 2.0, size=(4000, 5)))
    assert np.mean(np.abs(middle - 3.0) <= half) == pytest.approx(0.95, abs=0.012)


def test_sizes_decide_what_runs_together():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    tiny, wide = build("ConvNet", (1, 8, 8), 10, width=16), build("ConvNet", (3, 32, 32), 10)
    assert compute.networks_together(tiny, 10, cpu) == 102 and compute.networks_together(tiny, 256, cpu) == 1
    assert compute.networks_together(wide, 256, cpu) == 1 and compute.networks_together(wide, 256, cuda) == 8
    assert compute.images_per_pass(wide, 1, cpu) == 16 and compute.images_per_pass(wide, 10**6, cpu) == 1
    assert [(s.start, s.stop) for s in compute.slices(7, 3)] == [(0, 3), (3, 6), (6, 7)]
