"""Gains over partners against a plain loop, on a table made by hand."""

import numpy as np
import pandas as pd
import pytest

from ddanalysis.analysis import benchmark


def table(methods=("dm", "clom_dm", "random"), ipcs=(1, 10), sets=3, nets=4, seed=0):
    """The tidy table of accuracies, a random number each."""
    g = np.random.default_rng(seed)
    rows = [
        {"dataset": "toy", "method": m, "ipc": n, "network": a, "protocol": p, "set_seed": s, "network_seed": k}
        for m in methods for n in ipcs for a in ("A", "B") for p in ("short", "long") for s in range(sets)
        for k in range(nets)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(accuracy=g.random(len(rows)))


def test_every_gain_is_over_the_partner_of_the_same_seeds():
    ours, starts = table(), table(("dm", "clom_dm"), seed=1)
    starts = starts[(starts["network"] == "A") & (starts["protocol"] == "short")]
    found = benchmark.gains(ours, starts)
    keys = [*benchmark.PAIR, "method"]
    value = ours.set_index(keys)["accuracy"]
    begun = starts.set_index(keys)["accuracy"]
    assert found.groupby("over").size().to_dict() == {
        "random images": 2 * 2 * 2 * 2 * 12,
        "own start": 2 * 2 * 12,
        "the same without CLOM": 2 * 2 * 2 * 12,
    }  # fmt: skip
    for row in found.itertuples():
        pair = tuple(getattr(row, key) for key in benchmark.PAIR)
        partner = {"random images": "random", "the same without CLOM": "dm"}.get(row.over)
        theirs = begun[(*pair, row.method)] if partner is None else value[(*pair, partner)]
        assert row.gain == value[(*pair, row.method)] - theirs
    assert not (found["method"] == "random").any()


def test_what_has_no_partner_has_no_row():
    ours = table(("dm",))
    assert benchmark.gains(ours, ours.head(0)).empty
    assert list(benchmark.gains(table(("clom_dm", "random")), ours.head(0))["over"].unique()) == ["random images"]


def test_the_summary_is_over_sets_and_says_what_is_sure():
    ours = table(sets=3)
    ours.loc[ours["method"] == "dm", "accuracy"] += 5
    found = benchmark.summary(benchmark.gains(ours, ours.head(0)))
    dm = found[(found["method"] == "dm") & (found["over"] == "random images")]
    assert (dm["n"] == 12).all() and (dm["n_units"] == 3).all() and dm["sure"].all()
    assert not found.loc[found["over"] == "the same without CLOM", "sure"].any()
    assert dm["mean"].iloc[0] == pytest.approx(5, abs=0.5)
