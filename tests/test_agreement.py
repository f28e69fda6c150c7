"""Matched pairs and their measures against plain loops and scikit-learn; intervals and p values against simulations."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from ddanalysis.analysis import agreement
from ddanalysis.analysis.agreement import COLUMNS, MEASURES, agreement_table, gain, summarise
from ddanalysis.pools import Pool


def networks_of(accuracies, n, seed, classes=10):
    """Predictions (..., n) with exactly the given accuracies on labels that are themselves random, and the labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    accuracies = np.asarray(accuracies)
    predictions = np.empty((*accuracies.shape, n), dtype=np.int64)
    for index, accuracy in np.ndenumerate(accuracies):
        wrong = rng.permutation(n)[round(accuracy * n) :]
        predictions[index] = y
        predictions[index][wrong] = (y[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return torch.from_numpy(predictions), torch.from_numpy(y)


def sets_of(n, methods=("dm",)):
    rows = [(f"{methods[s % len(methods)]}", s // len(methods)) for s in range(n)]
    table = pd.DataFrame(rows, columns=["method", "network_seed"])
    return table.assign(dataset="cifar10", ipc=10, network="ConvNet", set_seed=0)


def split(predictions, sets, runs):
    """The first predictions are the sets', the rest one subset pool of ``runs`` runs and an early pool of as many."""
    subset = predictions[sets : sets + runs, None]
    early = predictions[sets + runs :].reshape(runs, -1, predictions.shape[1])
    moments = torch.arange(1, early.shape[1] + 1).expand(runs, -1)
    return predictions[:sets], Pool("subset", subset, torch.full((runs, 1), 100)), Pool("early", early, moments)


def plain_nearest(set_predictions, pool, y, tolerance):
    """Matched (set network, run, update) by loops over everything."""
    found = []
    y = y.tolist()
    for s, own in enumerate(set_predictions.tolist()):
        goal = sum(a == b for a, b in zip(own, y, strict=True))
        for run, states in enumerate(pool.predictions.tolist()):
            gaps = [abs(sum(a == b for a, b in zip(state, y, strict=True)) - goal) for state in states]
            best = min(gaps)
            if best <= tolerance * len(y):
                found.append((s, run, int(pool.updates[run, gaps.index(best)])))
    return found


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(3)
    accuracies = np.concatenate([rng.uniform(0.4, 0.6, 4), rng.uniform(0.35, 0.65, 12 + 12 * 20)])
    predictions, y = networks_of(accuracies, 200, seed=4)
    set_predictions, subset, early = split(predictions, 4, 12)
    sets = sets_of(4, ("dm", "bptt"))
    return set_predictions, sets, [subset, early], y, agreement_table(set_predictions, sets, [subset, early], y)


# ------------------------------------------------------------------------------------------------------- the pairs


def test_nearest_matches_are_those_of_plain_loops(example):
    set_predictions, sets, pools, y, table = example
    for pool in pools:
        ours = table[table["pool"] == pool.name]
        found = list(zip(ours["method"], ours["network_seed"], ours["run"], ours["update"], strict=True))
        plain = plain_nearest(set_predictions, pool, y, 0.01)
        assert found == [(sets["method"][s], sets["network_seed"][s], run, update) for s, run, update in plain]
        assert 0 < len(found)
    assert (ours["pool_accuracy"] - ours["set_accuracy"]).abs().max() <= 0.01 + 1e-12


def test_measures_are_those_of_plain_loops_and_of_scikit_learn(example):
    set_predictions, sets, pools, y, table = example
    for row in table.itertuples():
        pool = next(p for p in pools if p.name == row.pool)
        at = pool.updates[row.run].tolist().index(row.update)
        other = pool.predictions[row.run, at].tolist()
        s = sets.index[(sets["method"] == row.method) & (sets["network_seed"] == row.network_seed)][0]
        own = set_predictions[s].tolist()
        same_mistake = [a == b for a, b, c in zip(own, other, y.tolist(), strict=True) if a != c]
        assert row.agreement == sum(a == b for a, b in zip(own, other, strict=True)) / len(own)
        assert row.error_agreement == pytest.approx(sum(same_mistake) / len(same_mistake), abs=1e-15)
        assert row.kappa == pytest.approx(cohen_kappa_score(own, other), abs=1e-14)
        assert row.pool_accuracy == sum(a == b for a, b in zip(other, y.tolist(), strict=True)) / len(y)


def test_the_table_has_its_columns_and_types(example):
    *_, table = example
    assert tuple(table.columns) == COLUMNS
    assert table["run"].dtype == table["update"].dtype == "int64"
    assert pd.api.types.is_string_dtype(table["pool"]) and pd.api.types.is_string_dtype(table["matching"])
    assert table[["pool_accuracy", "set_accuracy", *MEASURES]].dtypes.eq("float64").all()
    assert set(table["matching"]) == {"nearest"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_small_integer_types_give_the_same_table(example, dtype):
    set_predictions, sets, pools, y, table = example
    small = [Pool(pool.name, pool.predictions.to(dtype), pool.updates) for pool in pools]
    pd.testing.assert_frame_equal(agreement_table(set_predictions.to(dtype), sets, small, y.to(dtype)), table)


def test_of_equally_near_updates_the_earliest_is_taken():
    predictions, y = networks_of([0.50, 0.48, 0.52, 0.48, 0.52], 100, seed=0)
    early = Pool("early", predictions[None, 1:], torch.tensor([[3, 5, 7, 9]]))
    table = agreement_table(predictions[:1], sets_of(1), [early], y, tolerance=0.02)
    assert table["update"].tolist() == [3]


@pytest.mark.parametrize(
    ("other", "tolerance", "matched"),
    [(0.59, 0.01, 1), (0.57, 0.01, 1), (0.60, 0.01, 0), (0.29, 0.29, 1), (0.58, 0, 1), (0.59, 0, 0), (0.30, 0.2799, 0)],
)
def test_the_tolerance_is_inclusive_whatever_floats_do(other, tolerance, matched):
    predictions, y = networks_of([0.58, other], 100, seed=0)
    pool = Pool("subset", predictions[1:, None], torch.tensor([[100]]))
    assert len(agreement_table(predictions[:1], sets_of(1), [pool], y, tolerance=tolerance)) == matched


def test_networks_without_mistakes_or_without_variety_have_no_such_measure():
    y = torch.zeros(10, dtype=torch.int64)
    perfect = Pool("subset", y[None, None], torch.tensor([[1]]))
    row = agreement_table(y[None], sets_of(1), [perfect], y).iloc[0]
    assert (row["agreement"], row["pool_accuracy"]) == (1, 1)
    assert math.isnan(row["error_agreement"]) and math.isnan(row["kappa"])


# ------------------------------------------------------------------------------------------- the published matching


def test_the_float_floor_of_the_published_buckets_is_kept():
    assert int(100 * 0.58) == 57
    assert agreement.published_buckets(0.58) == (0.57, 0.58)
    assert agreement.published_buckets(0.589) == (0.58, 0.59)
    assert agreement.published_buckets(0.4266) == (0.42, 0.43)


@pytest.mark.parametrize(
    ("own", "matched"),
    [(0.589, [0.576, 0.584, 0.586, 0.594]), (0.58, [0.566, 0.574, 0.576, 0.584]), (0.30, [])],
)
def test_published_subset_matches_are_the_two_buckets(own, matched):
    others = [0.561, 0.566, 0.574, 0.576, 0.584, 0.586, 0.594, 0.596]
    predictions, y = networks_of([own, *others], 1000, seed=1)
    pool = Pool("subset", predictions[1:, None], torch.full((8, 1), 100))
    table = agreement_table(predictions[:1], sets_of(1), [pool], y, matching="published")
    assert table["pool_accuracy"].tolist() == matched
    assert tuple(table.columns) == COLUMNS


def test_published_early_matches_are_fixed_updates_of_every_run():
    methods = ("bptt", "dm", "dc", "mtt", "herding")
    predictions, y = networks_of(np.full(5 + 3 * 140, 0.5), 20, seed=2)
    moments = torch.arange(1, 141).expand(3, -1)
    pool = Pool("early", predictions[5:].reshape(3, 140, 20), moments)
    table = agreement_table(predictions[:5], sets_of(5, methods), [pool], y, matching="published")
    found = table.groupby("method")["update"].agg(list).to_dict()
    assert found == {"bptt": [131] * 3, "dm": [41] * 3, "dc": [36] * 3, "mtt": [91] * 3}
    entry_40 = (predictions[5:].reshape(3, 140, 20)[:, 40] == predictions[1]).double().mean(1)
    assert table.loc[table["method"] == "dm", "agreement"].tolist() == entry_40.tolist()

    chosen = agreement_table(
        predictions[:5],
        sets_of(5, methods),
        [pool],
        y,
        matching="published",
        published_updates={"herding": 7, "dm": 900},
    )
    assert chosen[["method", "update"]].values.tolist() == [["herding", 7]] * 3


@pytest.mark.parametrize("matching", ["nearest", "published"])
def test_no_match_is_an_empty_table_that_the_summaries_take(matching):
    predictions, y = networks_of([0.9, *np.full(2, 0.1), *np.full(6, 0.2)], 100, seed=0)
    own, subset, early = split(predictions, 1, 2)
    table = agreement_table(own, sets_of(1), [subset, early], y, matching=matching)
    assert len(table) == 0 and tuple(table.columns) == COLUMNS
    assert len(summarise(table, 0)) == 0 and {"mean", "low", "high"} <= set(summarise(table, 0).columns)
    assert len(gain(table, 0)) == 0 and {"difference", "p"} <= set(gain(table, 0).columns)


# ---------------------------------------------------------------------------------------------------- the summaries


def table_of(values, pool="subset", method="dm"):
    """An agreement table of set networks (A) by runs (B); NaN is no pair. All measures hold the same number."""
    a, b = np.nonzero(~np.isnan(values))
    columns = {"dataset": "d", "method": method, "ipc": 1, "network": "n", "set_seed": a // 2, "network_seed": a % 2}
    moments = {"pool": pool, "run": b, "update": 1, "matching": "nearest", "pool_accuracy": 0.5, "set_accuracy": 0.25}
    return pd.DataFrame({**columns, **moments, **dict.fromkeys(MEASURES, values[a, b])})[list(COLUMNS)]


def crossed(rng, networks, runs, mean=0.5):
    """Measures (A, B) with an effect of the set network, one of the run, and one of the pair."""
    shapes = ((networks, 1), (1, runs), (networks, runs))
    return mean + sum(size * rng.normal(size=shape) for size, shape in zip((0.1, 0.1, 0.05), shapes, strict=True))


def test_a_summary_counts_and_averages_runs():
    values = np.array([[0.2, 0.4, np.nan], [0.6, np.nan, np.nan], [np.nan, np.nan, 0.1]])
    table = pd.concat(
        [table_of(values), table_of(values + 0.1, "early"), table_of(values, method="dc")], ignore_index=True
    )
    found = summarise(table, 0, resamples=50)
    assert found[["method", "pool", "measure"]].values.tolist() == [
        [method, pool, measure]
        for method, pool in (("dm", "subset"), ("dm", "early"), ("dc", "subset"))
        for measure in MEASURES
    ]
    first = found.iloc[0]
    assert (first["n_pairs"], first["n_runs"], first["n_set_networks"]) == (4, 3, 3)
    assert (first["pool_accuracy"], first["set_accuracy"]) == (0.5, 0.25)
    assert first["mean"] == pytest.approx((0.4 + 0.4 + 0.1) / 3, abs=1e-15)  # of run means, not of pairs


def test_the_bootstrap_is_that_of_plain_loops():
    values = crossed(np.random.default_rng(0), 3, 4)
    values[0, 1] = values[2, 3] = np.nan
    networks, runs = np.array([[2, 0, 1], [0, 3, 0], [1, 1, 1]]), np.array([[1, 2, 0, 1], [0, 0, 4, 0], [1, 1, 1, 1]])
    found = agreement._mean_over_runs(values, networks.astype(float), runs.astype(float))
    for r in range(3):
        run_means = []
        for b in range(4):
            seen = [values[a, b] for a in range(3) for _ in range(networks[r, a]) if not np.isnan(values[a, b])]
            run_means += [np.mean(seen)] * runs[r, b] if seen else []
        assert found[r] == pytest.approx(np.mean(run_means), abs=1e-14)


def test_a_measure_that_is_nowhere_defined_has_no_mean():
    table = table_of(crossed(np.random.default_rng(0), 2, 3)).assign(error_agreement=np.nan)
    found = summarise(table, 0, resamples=20).set_index("measure")
    assert found.loc["error_agreement", ["mean", "low", "high"]].isna().all()
    assert found.loc["agreement", ["mean", "low", "high"]].notna().all()


def test_one_pair_has_no_interval_and_one_set_network_has_one():
    rng = np.random.default_rng(1)
    alone = summarise(table_of(crossed(rng, 1, 1)), 0).iloc[0]
    assert np.isnan(alone["low"]) and np.isnan(alone["high"]) and alone["n_pairs"] == 1
    one = summarise(table_of(crossed(rng, 1, 30)), 0).iloc[0]
    assert one["low"] < one["mean"] < one["high"]


def test_summaries_repeat_and_do_not_depend_on_other_methods():
    rng = np.random.default_rng(2)
    dm = pd.concat([table_of(crossed(rng, 3, 8)), table_of(crossed(rng, 3, 8), "early")])
    both = pd.concat([table_of(crossed(rng, 2, 5), method="dc"), dm], ignore_index=True)
    for function in (summarise, gain):
        alone, beside = function(dm, 7, 200), function(both, 7, 200)
        pd.testing.assert_frame_equal(alone, beside[beside["method"] == "dm"].reset_index(drop=True))
        assert not function(dm, 8, 200).equals(alone)


def test_the_interval_covers_the_mean_at_about_its_rate():
    """Taking the pairs for independent would cover it in less than half of the trials."""
    rng, covered = np.random.default_rng(5), 0
    for trial in range(150):
        found = summarise(table_of(crossed(rng, 14, 18)), trial, 300).iloc[0]
        covered += found["low"] <= 0.5 <= found["high"]
    assert 0.86 * 150 <= covered <= 150 * 0.995


def test_gain_is_the_difference_of_the_summaries_where_all_are_matched():
    rng = np.random.default_rng(3)
    table = pd.concat([table_of(crossed(rng, 4, 9)), table_of(crossed(rng, 4, 6, mean=0.9), "early")])
    found, means = (
        gain(table, 0, 500).iloc[0],
        summarise(table, 0, 10).query("measure == 'agreement'").set_index("pool"),
    )
    assert found["difference"] == pytest.approx(means.loc["early", "mean"] - means.loc["subset", "mean"], abs=1e-14)
    assert found["low"] < found["difference"] < found["high"]
    assert (found["n_set_networks"], found["n_early_runs"], found["n_subset_runs"]) == (4, 6, 9)
    assert found["p"] < 0.01


def test_gain_compares_only_set_networks_that_both_pools_match():
    subset = np.array([[0.2, 0.3, np.nan], [np.nan, np.nan, 0.9]])
    early = np.array([[0.5, 0.7], [np.nan, np.nan]])
    found = gain(pd.concat([table_of(subset), table_of(early, "early")]), 0, 50).iloc[0]
    assert found["difference"] == pytest.approx(0.6 - 0.25, abs=1e-15)
    assert (found["n_set_networks"], found["n_early_runs"], found["n_subset_runs"]) == (1, 2, 2)
    assert len(gain(table_of(early, "early"), 0, 50)) == 0


@pytest.mark.parametrize(("subset", "early"), [(1, 1), (3, 1), (1, 3)])
def test_a_pool_of_one_run_has_a_gain_without_p(subset, early):
    table = pd.concat([table_of(0.1 * np.arange(1.0, subset + 1)[None]), table_of(np.full((1, early), 0.7), "early")])
    found = gain(table, 0, 100).iloc[0]
    assert found["difference"] == pytest.approx(0.7 - 0.1 * (subset + 1) / 2) and np.isnan(found["p"])
    assert np.isnan(found["low"]) == np.isnan(found["high"]) == (subset == early == 1)


def test_p_of_few_runs_is_exact():
    """Of the 20 ways to split 6 runs in halves, 2 are as extreme as the largest against the smallest."""
    table = pd.concat([table_of(np.array([[0.1, 0.2, 0.3]])), table_of(np.array([[0.5, 0.7, 0.8]]), "early")])
    assert gain(table, 0, 1000).iloc[0]["p"] == pytest.approx(0.1)


def test_the_gain_interval_pairs_the_set_networks():
    """A large effect of the set network is in both pools, and so not in their difference."""
    effect = np.array([[-0.3], [0.0], [0.3]])
    rng = np.random.default_rng(6)
    noise = [0.5 + 0.01 * rng.normal(size=(3, 20)) for _ in range(2)]
    found = gain(pd.concat([table_of(effect + noise[0]), table_of(effect + noise[1], "early")]), 0, 500).iloc[0]
    assert found["high"] - found["low"] < 0.03


def test_p_is_uniform_where_there_is_nothing():
    rng, p = np.random.default_rng(8), []
    for trial in range(60):
        subset, early = (
            table_of(0.5 + 0.1 * rng.normal(size=(2, n)), pool) for n, pool in ((12, "subset"), (8, "early"))
        )
        table = pd.concat([subset, early])
        p.append(gain(table, trial, 200).iloc[0]["p"])
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) < 0.05) < 0.16
    assert min(p) < 0.2 and max(p) > 0.8


# ------------------------------------------------------------------------------------------------------- the errors

Y = torch.tensor([0, 1, 2, 1])
OWN = torch.tensor([[0, 1, 2, 2]])
POOL = Pool("subset", OWN[None], torch.tensor([[5]]))
OTHER = Pool("subset", torch.zeros(1, 1, 5, dtype=torch.int64), torch.tensor([[5]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matching": "closest"}, "unknown matching 'closest'"),
        ({"tolerance": -0.01}, "tolerance is -0.01"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"set_predictions": OWN[0]}, "2 dimensions"),
        ({"set_predictions": OWN.double()}, "integer class ids"),
        ({"set_predictions": -OWN}, "class id -2"),
        ({"set_predictions": OWN[:, :3]}, "set networks are of 3 images and there are 4"),
        ({"pools": [OTHER]}, "subset pool are of 5 images and there are 4"),
        ({"pools": []}, "at least one"),
        ({"pools": [POOL, POOL]}, "each name once"),
        ({"y": Y[None]}, "1 dimensions"),
        ({"y": Y - 1}, "class id -1"),
        ({"y": Y.bool()}, "integer class ids"),
        ({"sets": sets_of(2)}, "2 rows for 1 set networks"),
        ({"sets": sets_of(1).drop(columns="ipc")}, "no column ipc"),
        ({"set_predictions": OWN.repeat(2, 1), "sets": pd.concat([sets_of(1)] * 2)}, "twice"),
        ({"set_predictions": OWN.repeat(2, 1), "sets": sets_of(2).assign(dataset=["a", "b"])}, "2 datasets"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    given = {"set_predictions": OWN, "sets": sets_of(1), "pools": [POOL], "y": Y}
    assert len(agreement_table(**given)) == 1
    with pytest.raises(ValueError, match=message):
        agreement_table(**(given | change))


@pytest.mark.parametrize(
    ("name", "predictions", "updates", "message"),
    [
        ("late", torch.zeros(2, 1, 4, dtype=torch.int64), torch.ones(2, 1, dtype=torch.int64), "unknown pool 'late'"),
        ("subset", torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 1, dtype=torch.int64), "3 dimensions"),
        ("subset", torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.int64), "integer class ids"),
        ("subset", torch.zeros(0, 1, 4, dtype=torch.int64), torch.ones(0, 1, dtype=torch.int64), "none of length 0"),
        ("subset", torch.zeros(2, 2, 4, dtype=torch.int64), torch.tensor([[1, 2], [1, 2]]), "2 recorded updates"),
        ("early", torch.zeros(2, 2, 4, dtype=torch.int64), torch.tensor([[1, 2]]), r"int64 \(1, 2\): int64 \(2, 2\)"),
        ("early", torch.zeros(1, 2, 4, dtype=torch.int64), torch.tensor([[1.0, 2.0]]), "float32"),
        ("early", torch.zeros(1, 2, 4, dtype=torch.int64), torch.tensor([[2, 2]]), "rise"),
        ("early", torch.zeros(1, 2, 4, dtype=torch.int64), torch.tensor([[-1, 2]]), "at least 0"),
    ],
)
def test_a_pool_that_is_none_is_refused(name, predictions, updates, message):
    with pytest.raises(ValueError, match=message):
        Pool(name, predictions, updates)


@pytest.mark.parametrize("function", [summarise, gain])
def test_summaries_refuse_what_is_no_agreement_table(function):
    table = table_of(np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="no column kappa"):
        function(table.drop(columns="kappa"), 0)
    with pytest.raises(ValueError, match="twice"):
        function(pd.concat([table, table]), 0)
    with pytest.raises(ValueError, match="resamples is 0"):
        function(table, 0, 0)
    with pytest.raises(ValueError, match="seed is -1"):
        function(table, -1)
