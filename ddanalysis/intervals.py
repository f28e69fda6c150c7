"""Means and their intervals, computed when a table is read or drawn, from all its rows."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats


def mean_and_half_width(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (m,) and half the width (m,) of its 95 % t interval over the units of values (m, units); NaN is no value.

    The half width is NaN where there are fewer than 2 values.
    """
    n = (~np.isnan(values)).sum(1)
    middle = np.nansum(values, axis=1) / np.where(n, n, np.nan)
    squares = np.nansum((values - middle[:, None]) ** 2, axis=1)
    spread = np.sqrt(squares / np.where(n > 1, n - 1, np.nan) / np.where(n, n, np.nan))
    return middle, scipy.stats.t.ppf(0.975, np.where(n > 1, n - 1, np.nan)) * spread


def unit_means(rows: pd.DataFrame, value: str, units: Sequence[str]) -> tuple[str, np.ndarray]:
    """The first of ``units`` along which ``value`` varies, and the mean of the rows of each of its levels.

    Networks trained on one set are no independent sample of sets, so sets come first in ``units``; but a method without
    randomness makes one set whatever the seed, and then only the networks vary.
    """
    for unit in units:
        means = rows.groupby(unit)[value].mean().to_numpy(dtype=float)
        if len(np.unique(means)) > 1:
            return unit, means
    return units[0], rows.groupby(units[0])[value].mean().to_numpy(dtype=float)[:1]


def summarise(table: pd.DataFrame, by: Sequence[str], value: str, units: Sequence[str]) -> pd.DataFrame:
    """Mean of ``value`` and its 95 % t interval for every group ``by``, the groups in the order they first appear.

    The interval is over the levels that :func:`unit_means` finds. Columns: ``by``, ``mean``, ``deviation`` (standard
    deviation over all rows), ``low``, ``high`` (NaN where nothing varies), ``n`` (rows with a value), ``units``,
    ``n_units``.
    """
    rows = []
    for key, group in table.groupby(list(by), sort=False, dropna=False):
        values = group.dropna(subset=[value])
        unit, means = unit_means(values, value, units)
        middle, half = mean_and_half_width(means[None])
        found = {"mean": middle[0], "deviation": values[value].std()}
        found |= {"low": middle[0] - half[0], "high": middle[0] + half[0], "n": len(values)}
        rows.append(dict(zip(by, key, strict=True)) | found | {"units": unit, "n_units": len(means)})
    return pd.DataFrame(rows)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a ``share`` of ``n`` trials."""
    z = 1.959963984540054
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)
