"""Do networks trained on distilled data predict like early-stopped networks or like ones trained on a subset?

Yang et al. 2024, Section 4.1 and Fig. 4. A network trained on a distilled set is compared with networks of about its
own accuracy from two pools: trained to the end on a random subset of the real data, or stopped early on all of it.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor

from ddanalysis import checks
from ddanalysis.pools import Pool, check_ids
from ddanalysis.seeding import stream_seed

MATCHING = ("nearest", "published")
SET_COLUMNS = ("dataset", "method", "ipc", "network", "set_seed", "network_seed")
MEASURES = ("agreement", "error_agreement", "kappa")
COLUMNS = (*SET_COLUMNS, "pool", "run", "update", "matching", "pool_accuracy", "set_accuracy", *MEASURES)
"""The columns of an agreement table, one row a matched pair of networks."""

PUBLISHED_INDICES = {"bptt": 130, "dm": 40, "dc": 35, "mtt": 90}
"""The entry of every early-stopped run that the published notebook compares with: k is the state after k + 1 updates.

The entries of dm and dc are probably exchanged: dm's network is the less accurate one (.427, dc's .460), and is
compared with the later state.
"""
PUBLISHED_UPDATES = {method: index + 1 for method, index in PUBLISHED_INDICES.items()}
"""``PUBLISHED_INDICES`` as numbers of updates done."""

_GROUP = ["dataset", "method", "ipc", "network", "matching"]
_NETWORK = ["set_seed", "network_seed"]


# ------------------------------------------------------------------------------------------------------- the pairs


def agreement_table(
    set_predictions: Tensor,
    sets: pd.DataFrame,
    pools: Sequence[Pool],
    y: Tensor,
    matching: str = "nearest",
    tolerance: float = 0.01,
    published_updates: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Agreement of each network trained on a distilled set with the pool networks of its accuracy (``COLUMNS``).

    ``set_predictions`` (S, n) are class ids of the n test images, ``sets`` has a row with ``SET_COLUMNS`` for each of
    the S networks, ``y`` (n,) are the true classes. Accuracies and measures are shares in [0, 1] of the n images
    (kappa in [-1, 1]):

    * ``agreement``: share on which both networks predict the same class;
    * ``error_agreement``: of the images that the set's network gets wrong, the share on which the other makes the same
      mistake (NaN if it gets none wrong);
    * ``kappa``: Cohen's, agreement beyond that of independent predictions with the same class frequencies (NaN if both
      networks predict one and the same class throughout).

    ``matching`` "nearest" takes of each run the recorded update of nearest accuracy (the earliest of equals) if it is
    within ``tolerance``, inclusive. "published" is the rule of the published notebook, ``tolerance`` unused: subset
    runs whose rounded accuracy is in one of two buckets (:func:`published_buckets`), and early runs after
    ``published_updates[method]`` updates (default ``PUBLISHED_UPDATES``) whatever their accuracy; a method or a run
    without that update gives no early rows. Raises ``ValueError`` for inputs that do not fit together; finding no
    match is no error.
    """
    checks.one_of("matching", matching, MATCHING)
    checks.at_least("tolerance", tolerance, 0)
    _check_sets(set_predictions, sets, pools, y)
    set_predictions, y = set_predictions.cpu().long(), y.cpu()
    fixed = PUBLISHED_UPDATES if published_updates is None else published_updates
    set_correct, n = (set_predictions == y).sum(1), len(y)
    parts = []
    for pool in pools:
        predictions = pool.predictions.cpu()
        correct = (predictions == y).sum(2)
        for s, method in enumerate(sets["method"]):
            own = int(set_correct[s])
            if matching == "nearest":
                runs, at = _nearest(correct, own, tolerance * n)
            else:
                runs, at = _published(pool, correct, own, n, fixed.get(method))
            pairs = sets.iloc[[s] * len(runs)][list(SET_COLUMNS)]
            accuracies = {"pool_accuracy": (correct[runs, at].double() / n).numpy(), "set_accuracy": own / n}
            measures = _compare(set_predictions[s], predictions[runs, at].long(), y)
            parts.append(pairs.assign(**_moments(pool, runs, at), matching=matching, **accuracies, **measures))
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def published_buckets(accuracy: float) -> tuple[float, float]:
    """The two rounded accuracies that the published notebook pairs a network of ``accuracy`` with.

    These are a / 100 and (a + 1) / 100 with a = int(100 * accuracy), so pool networks from half a point below a to one
    and a half above. The product is a float that may fall below a whole number: int(100 * .58) is 57. That is kept.
    """
    a = int(100 * accuracy)
    return a / 100, (a + 1) / 100


def _nearest(correct: Tensor, own: int, slack: float) -> tuple[Tensor, Tensor]:
    """Runs (m,) and positions (m,): in each run the moment nearest to ``own`` correct images, if within ``slack``."""
    distance = (correct - own).abs()
    at = distance.argmin(1)  # the first of equals
    # as a float, a tolerance of .07 is 7.000000000000001 images of 100, and one of .29 is 28.999999999999996
    runs = (distance.gather(1, at[:, None])[:, 0] <= slack + 1e-6).nonzero()[:, 0]
    return runs, at[runs]


def _published(pool: Pool, correct: Tensor, own: int, n: int, update: int | None) -> tuple[Tensor, Tensor]:
    """Runs (m,) and positions (m,) by the rule of the published notebook."""
    if pool.name == "subset":
        buckets = published_buckets(own / n)
        kept = [run for run, c in enumerate(correct[:, 0].tolist()) if round(c / n, 2) in buckets]
        return torch.tensor(kept, dtype=torch.int64), torch.zeros(len(kept), dtype=torch.int64)
    found = (pool.updates.cpu() == (-1 if update is None else update)).nonzero()
    return found[:, 0], found[:, 1]


def _moments(pool: Pool, runs: Tensor, at: Tensor) -> dict[str, str | np.ndarray]:
    """Which states of the pool are meant by runs (m,) and positions (m,)."""
    return {"pool": pool.name, "run": runs.numpy(), "update": pool.updates.cpu()[runs, at].numpy()}


def _compare(own: Tensor, others: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """The measures (m,) of one network's predictions (n,) against those of others (m, n)."""
    n = len(y)
    same = own == others
    wrong = own != y
    frequency = own.bincount(minlength=int(others.max()) + 1 if len(others) else 0)
    # the sum over classes of the product of both frequencies, taken image by image; in whole numbers it is exact
    by_chance = frequency[others].sum(1).double() / n**2
    agreement = same.sum(1).double() / n
    return {
        "agreement": agreement.numpy(),
        "error_agreement": (same[:, wrong].sum(1).double() / wrong.sum()).numpy(),
        "kappa": ((agreement - by_chance) / (1 - by_chance)).numpy(),
    }


# ----------------------------------------------------------------------------------------------------- what they say


def summarise(table: pd.DataFrame, seed: int, resamples: int = 2000) -> pd.DataFrame:
    """Mean and 95 % interval of each measure, one row a (dataset, method, ipc, network, matching, pool, measure).

    Columns: those, ``n_pairs``, ``n_runs``, ``n_set_networks``, mean ``pool_accuracy`` and ``set_accuracy`` over
    pairs, ``mean``, ``low``, ``high``. ``mean`` is over pool runs, of each run's mean over the set networks it is
    matched with. The interval is the percentile interval of a pigeonhole bootstrap (Owen 2007): pairs share networks,
    so set networks and pool runs are resampled, each as a whole. One set network or one run alone adds no width; with
    one of both the interval is NaN.
    """
    _check_table(table, seed, resamples)
    rows = []
    for key, pairs in table.groupby([*_GROUP, "pool"], sort=False, dropna=False):
        facts = dict(zip([*_GROUP, "pool"], key, strict=True))
        n_networks = len(pairs[_NETWORK].drop_duplicates())
        facts |= {"n_pairs": len(pairs), "n_runs": pairs["run"].nunique(), "n_set_networks": n_networks}
        facts |= {column: pairs[column].mean() for column in ("pool_accuracy", "set_accuracy")}
        for measure in MEASURES:
            values = _crossed(pairs, measure).to_numpy()
            draws = _resampled([values], _rng(seed, "interval", key), resamples)[0]
            low, high = _interval(draws, values.shape)
            rows.append({**facts, "measure": measure, "mean": _estimate(values), "low": low, "high": high})
    columns = [*_GROUP, "pool", "measure", "n_pairs", "n_runs", "n_set_networks", "pool_accuracy", "set_accuracy"]
    return pd.DataFrame(rows, columns=[*columns, "mean", "low", "high"])


def gain(table: pd.DataFrame, seed: int, resamples: int = 2000) -> pd.DataFrame:
    """How much more a network trained on distilled data agrees with early-stopped than with subset-trained networks.

    One row a (dataset, method, ipc, network, matching, measure), where both pools were matched: ``difference`` early
    minus subset of the means of :func:`summarise`, ``low`` and ``high`` of its 95 % interval (set networks are
    resampled once for both pools), and ``p``, two-sided, of a permutation test whose units are pool runs (each the
    mean over its set networks) that says whether the pool they come from matters; NaN if a pool has a single run. Set
    networks matched in one pool only are left out. Counts: ``n_set_networks``, ``n_early_runs``, ``n_subset_runs``.
    """
    _check_table(table, seed, resamples)
    rows = []
    for key, pairs in table.groupby(_GROUP, sort=False, dropna=False):
        facts = dict(zip(_GROUP, key, strict=True))
        for measure in MEASURES:
            both = [_crossed(pairs[pairs["pool"] == pool], measure).dropna(how="all") for pool in ("early", "subset")]
            shared = both[0].index.intersection(both[1].index)
            if len(shared):
                both = [values.loc[shared].dropna(axis=1, how="all").to_numpy() for values in both]
                rows.append({**facts, "measure": measure, **_difference(both, seed, key, resamples)})
    columns = [*_GROUP, "measure", "n_set_networks", "n_early_runs", "n_subset_runs", "difference", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns)


def _difference(both: list[np.ndarray], seed: int, key: tuple[Hashable, ...], resamples: int) -> dict[str, float]:
    """Early minus subset of two crossings (A, B) of the same A set networks, with its interval and p value."""
    early, subset = both
    draws = _resampled(both, _rng(seed, "gain", key), resamples)
    low, high = _interval(draws[0] - draws[1], (*early.shape, subset.shape[1]))
    p = _permutation_p(both, _rng(seed, "permutation", key), resamples)
    counts = {"n_set_networks": len(early), "n_early_runs": early.shape[1], "n_subset_runs": subset.shape[1]}
    difference = _estimate(early) - _estimate(subset)
    return {**counts, "difference": difference, "low": low, "high": high, "p": p}


def _permutation_p(both: list[np.ndarray], rng: np.random.Generator, resamples: int) -> float:
    """Two-sided p of the difference between the run means of two crossings (A, B); NaN if either has a single run."""
    if min(values.shape[1] for values in both) < 2:
        return np.nan
    test = scipy.stats.permutation_test(
        [np.nanmean(values, axis=0) for values in both],
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=rng,
    )
    return float(test.pvalue)


def _crossed(pairs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure as set networks (A) by pool runs (B), NaN where they are not matched."""
    return pairs.pivot(index=_NETWORK, columns="run", values=measure)


def _rng(seed: int, purpose: str, key: tuple[Hashable, ...]) -> np.random.Generator:
    """Numbers that depend on the group alone, so that another method in the table changes none of them."""
    return np.random.default_rng(stream_seed(seed, "agreement", purpose, *key))


def _resampled(crossings: list[np.ndarray], rng: np.random.Generator, resamples: int) -> list[np.ndarray]:
    """The mean (resamples,) of each crossing (A, B), its A networks drawn together and its B runs drawn apart."""
    by_network = _counts(rng, len(crossings[0]), resamples)
    return [_mean_over_runs(values, by_network, _counts(rng, values.shape[1], resamples)) for values in crossings]


def _counts(rng: np.random.Generator, units: int, resamples: int) -> np.ndarray:
    """How often each unit is in each resample (resamples, units)."""
    return rng.multinomial(units, np.full(units, 1 / max(units, 1)), size=resamples).astype(float)


def _estimate(values: np.ndarray) -> float:
    """The mean over runs of each run's mean over set networks."""
    rows, columns = values.shape
    return float(_mean_over_runs(values, np.ones((1, rows)), np.ones((1, columns)))[0])


def _mean_over_runs(values: np.ndarray, by_network: np.ndarray, by_run: np.ndarray) -> np.ndarray:
    """Means (r,) of values (A, B), networks weighted by (r, A) and runs by (r, B); NaN where no pair has weight."""
    seen = ~np.isnan(values)
    weight = by_network @ seen
    run_means = np.divide(by_network @ np.where(seen, values, 0.0), weight, out=np.zeros_like(weight), where=weight > 0)
    kept = by_run * (weight > 0)
    total = kept.sum(1)
    return np.divide((run_means * kept).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)


def _interval(draws: np.ndarray, units: tuple[int, ...]) -> tuple[float, float]:
    """The central 95 % of bootstrap draws; NaN where nothing was resampled."""
    draws = draws[~np.isnan(draws)]
    if not len(draws) or max(units) < 2:
        return np.nan, np.nan
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


# --------------------------------------------------------------------------------------------------------- the checks


def _check_sets(set_predictions: Tensor, sets: pd.DataFrame, pools: Sequence[Pool], y: Tensor) -> None:
    check_ids("test labels", y, 1)
    check_ids("predictions of the set networks", set_predictions, 2)
    for what, n in _image_counts(set_predictions, pools):
        if n != len(y):
            raise ValueError(f"{what} are of {n} images and there are {len(y)} test labels: the numbers must be equal")
    _check_columns("sets", sets, SET_COLUMNS)
    if len(sets) != len(set_predictions):
        raise ValueError(f"sets has {len(sets)} rows for {len(set_predictions)} set networks: one each is needed")
    if sets.duplicated(list(SET_COLUMNS)).any():
        twice = sets.loc[sets.duplicated(list(SET_COLUMNS)), list(SET_COLUMNS)].iloc[0].tolist()
        raise ValueError(f"sets names the network {twice} twice: a row for each network is needed")
    if sets["dataset"].nunique() != 1:
        raise ValueError(f"sets are of {sets['dataset'].nunique()} datasets: the test labels belong to 1")
    names = [pool.name for pool in pools]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"pools are {names}: at least one is needed, and each name once")


def _image_counts(set_predictions: Tensor, pools: Sequence[Pool]) -> Iterator[tuple[str, int]]:
    yield "predictions of the set networks", set_predictions.shape[1]
    for pool in pools:
        yield f"predictions of the {pool.name} pool", pool.predictions.shape[2]


def _check_table(table: pd.DataFrame, seed: int, resamples: int) -> None:
    checks.whole("seed", seed, 0)
    checks.whole("resamples", resamples)
    _check_columns("agreement table", table, COLUMNS)
    twice = table.duplicated([*SET_COLUMNS, "pool", "run", "matching"])
    if twice.any():
        row = table.loc[twice, [*SET_COLUMNS, "pool", "run"]].iloc[0].tolist()
        raise ValueError(f"agreement table holds the pair {row} twice: each pair once is needed")


def _check_columns(what: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{what} has no column {', '.join(missing)}: needed are {', '.join(columns)}")
