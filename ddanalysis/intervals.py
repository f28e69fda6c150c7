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


def summarise(table: pd.DataFrame, by: Sequence[str], value: str, units: Sequence[str]) -> pd.DataFrame:
    """Mean of ``value`` and its 95 % t interval for every group ``by``, the groups in the order they first appear.

    The interval is over the first of ``units`` that has more than one level in the group, each level the mean of its
    rows: networks trained on one set are no independent sample of sets. Columns: ``by``, ``mean``, ``deviation``
    (standard deviation over all rows), ``low``, ``high`` (NaN where no unit has two levels), ``n`` (rows with a
    value), ``units``, ``n_units``.
    """
    rows = []
    for key, group in table.groupby(list(by), sort=False, dropna=False):
        values = group.dropna(subset=[value])
        unit = next((u for u in units if values[u].nunique() > 1), units[0])
        means = values.groupby(unit)[value].mean().to_numpy(dtype=float)
        middle, half = mean_and_half_width(means[None])
        spread = {
            "mean": middle[0],
            "deviation": values[value].std(),
            "low": middle[0] - half[0],
            "high": middle[0] + half[0],
        }
        rows.append(dict(zip(by, key, strict=True)) | spread | {"n": len(values), "units": unit, "n_units": len(means)})
    return pd.DataFrame(rows)
