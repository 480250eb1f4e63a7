"""Does the loss go down? A rank-based trend test that no single outlier decides."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from gradoscope.measurement import Measurement

__all__ = ["trend"]

FEWEST = 4  # block means below which a rank correlation says nothing: with 3 the smallest p-value is 1/3


def trend(values: Sequence[float] | np.ndarray, blocks: int = 20) -> Measurement:
    r"""Kendall's rank correlation of block means with time, a Mann-Kendall test of a trend.

    $$\tau = \frac{\#\{i<j: m_i<m_j\} - \#\{i<j: m_i>m_j\}}{\sqrt{(n_0-n_1)(n_0-n_2)}},\qquad n_0=\tfrac{n(n-1)}2$$
    with ties $n_1,n_2$ taken out (tau-b). Blocks average the correlation of neighbouring steps away: the p-value treats
    block means, not steps, as independent. NaN are left out; infinities keep their rank.

    Args:
        values: the series, shape (W,), in order of time.
        blocks: how many blocks to average over; a series shorter than that is ranked value by value.

    Returns:
        tau in [-1, 1] (negative: the values fall), its standard error under no trend, and the two-sided p-value.
        A series that is constant or has fewer than 4 usable block means gives tau = 0, p = 1. `details` has the block
        means, the relative drop from the first to the last, and how many values were not finite.

    Example:
        >>> trend([1.0 / (1 + i) for i in range(100)]).value
        -1.0

    Source: Kendall (1938), A new measure of rank correlation; Mann (1945), Nonparametric tests against trend.
    """
    series = np.asarray(values, dtype=np.float64).reshape(-1)
    known = series[~np.isnan(series)]
    count = max(1, min(blocks, len(known)))
    with np.errstate(invalid="ignore", over="ignore"):
        means = np.array([part.mean() for part in np.array_split(known, count) if len(part)])
    means = means[~np.isnan(means)]
    n = len(means)
    tau, p, se = 0.0, 1.0, math.nan
    if n >= FEWEST:
        se = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
        if not np.all(means == means[0]):
            result = stats.kendalltau(np.arange(n), means)
            tau, p = float(result.statistic), float(result.pvalue)
    details = {
        "blocks": means,
        "drop": float(means[0] - means[-1]) if n and np.isfinite(means[[0, -1]]).all() else math.nan,
        "not_finite": int((~np.isfinite(series)).sum()),
    }
    return Measurement("trend", tau, se=se, n=n, p=p, method=f"Kendall's tau of {n} block means", details=details)
