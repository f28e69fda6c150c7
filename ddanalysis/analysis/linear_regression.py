"""How many synthetic rows does one gradient step of linear regression need? (Wang et al. 2018, end of section 3.2)

On M rows X (M, D) with targets y the loss is |X w - y|^2 / 2M. A step of rate r from weights w ends at A w + b, where
A = I - r X'X / M and b = r X'y / M. It ends at the optimum w* of the real data from *every* start exactly when A = 0
and b = w*, that is X'X = (M / r) I and X'y = (M / r) w*: the D columns of X are orthogonal, so there are at least D
rows.

With fewer the excess of the real loss remains. Over starts w ~ N(0, s^2 I) its mean is that of a quadratic form in
H = real'real / N, |H^(1/2) [s A, b - w*]|^2 / 2. The D x (D + 1) matrix in it is [s I, -w*] up to one whose columns lie
in the M rows' span, so by Eckart and Young it is no less than half the sum of the D - M smallest eigenvalues of
H^(1/2) (s^2 I + w* w*') H^(1/2), whatever rows, targets and rate are. On whitened data (H = I) that is s^2 (D - M) / 2,
and :func:`synthetic_rows` reaches it.
"""

import pandas as pd
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from ddanalysis import checks
from ddanalysis.seeding import generator


def diabetes() -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled diabetes data: (442, 10) and (442,) float64, each column of mean 0 and deviation 1."""
    x, y = (torch.from_numpy(part) for part in load_diabetes(return_X_y=True))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def whiten(x: Tensor) -> Tensor:
    """Data (N, D) of the same span with x'x = N I; ``ValueError`` unless their D columns are independent."""
    _check_rows(x)
    if torch.linalg.matrix_rank(x) < x.shape[1]:
        raise ValueError(f"the {x.shape[1]} columns of x {tuple(x.shape)} are not independent: they cannot be whitened")
    return torch.linalg.svd(x, full_matrices=False).U * len(x) ** 0.5


def optimum(x: Tensor, y: Tensor) -> Tensor:
    """The weights (D,) of least loss on rows x (N, D) with targets y (N,)."""
    _check_rows(x, y)
    return torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]


def step(weights: Tensor, x: Tensor, y: Tensor, rate: float) -> Tensor:
    """Weights (..., D) after one gradient step of ``rate`` on |x w - y|^2 / 2M."""
    _check_rows(x, y)
    return weights - rate / len(x) * (weights @ x.T - y) @ x


def step_map(x: Tensor, y: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """A (D, D) and b (D,): a step takes every w to A w + b."""
    _check_rows(x, y)
    return torch.eye(x.shape[1]).to(x) - rate / len(x) * x.T @ x, rate / len(x) * x.T @ y


def synthetic_rows(weights: Tensor, rows: int, rate: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``rows`` synthetic rows (M, D) and targets (M,) of which one step of ``rate`` leads to ``weights`` (D,).

    With M >= D it does from every start. With fewer it is right in M orthogonal directions, ``weights`` itself the
    first, and leaves the others where they were, which is the best there is on whitened data. Else they are random.
    """
    checks.whole("rows", rows)
    if weights.ndim != 1 or not weights.is_floating_point() or not weights.norm() > 0:
        raise ValueError(f"weights of shape {tuple(weights.shape)}: a floating-point vector (D,) not 0 is needed")
    if not 0 < rate < float("inf"):
        raise ValueError(f"rate is {rate}: it must be positive and finite")
    noise = torch.randn(max(rows, len(weights)), len(weights), generator=generator(seed, "synthetic rows"))
    noise = noise.to(weights)
    if rows < len(weights):
        noise = torch.cat([weights[:, None], noise], 1)[:, :rows]
    directions = torch.linalg.qr(noise).Q
    x = (directions if rows >= len(weights) else directions.T) * (rows / rate) ** 0.5
    return x, x @ weights


def lower_bound(weights: Tensor, curvature: Tensor, rows: int, scale: float = 1.0) -> float:
    """The mean excess of the real loss that ``rows`` rows cannot undercut, from starts N(0, ``scale``^2 I).

    ``curvature`` is H (D, D); on whitened data it is scale^2 (D - M) / 2.
    """
    checks.whole("rows", rows)
    values, vectors = torch.linalg.eigh(curvature)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    spread = scale**2 * torch.eye(len(weights)).to(weights) + weights[:, None] * weights
    left = torch.linalg.eigvalsh(root @ spread @ root)[: max(len(weights) - rows, 0)]
    return float(left.clamp_min(0).sum() / 2)


def mean_excess(x: Tensor, y: Tensor, rate: float, weights: Tensor, curvature: Tensor, scale: float = 1.0) -> float:
    """The mean excess of the real loss after one step on rows x (M, D), y (M,), from starts N(0, ``scale``^2 I)."""
    matrix, offset = step_map(x, y, rate)
    left = torch.cat([scale * matrix, (offset - weights)[:, None]], 1)
    return float((left * (curvature @ left)).sum() / 2)


def errors_by_rows(
    x: Tensor, y: Tensor, rate: float = 1.0, scale: float = 1.0, starts: int = 1_000, seed: int = 0
) -> pd.DataFrame:
    """What one step on 1, 2, ... D + 2 rows of :func:`synthetic_rows` leaves of the loss on real data (N, D), (N,).

    Columns: rows; bound; mean_excess, in closed form; measured and highest, the mean and the highest excess of
    ``starts`` starts N(0, ``scale``^2 I); all in units of |x w - y|^2 / 2N.
    """
    checks.whole("starts", starts)
    best, curvature = optimum(x, y), x.T @ x / len(x)
    w = scale * torch.randn(starts, len(best), generator=generator(seed, "starts")).to(x)
    table = []
    for rows in range(1, len(best) + 3):
        own_x, own_y = synthetic_rows(best, rows, rate, seed)
        off = step(w, own_x, own_y, rate) - best
        excess = (off * (off @ curvature)).sum(1) / 2
        closed = mean_excess(own_x, own_y, rate, best, curvature, scale)
        row = {"rows": rows, "bound": lower_bound(best, curvature, rows, scale), "mean_excess": closed}
        table.append(row | {"measured": float(excess.mean()), "highest": float(excess.max())})
    return pd.DataFrame(table)


def _check_rows(x: Tensor, y: Tensor | None = None) -> None:
    """Finite rows (n, D), and a target each."""
    if x.ndim != 2 or not x.numel() or not x.is_floating_point() or not torch.isfinite(x).all():
        raise ValueError(f"rows of shape {tuple(x.shape)} and type {x.dtype}: finite floating-point (n, D) is needed")
    if y is not None and (y.shape != x.shape[:1] or not torch.isfinite(y).all()):
        raise ValueError(f"targets of shape {tuple(y.shape)} for {len(x)} rows: one finite number a row is needed")
