"""Claims: what a source states, what was measured, and whether a criterion that was fixed beforehand holds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from gradoscope.measurement import plain

if TYPE_CHECKING:
    from gradoscope.study import Results

__all__ = ["Claim", "Criterion", "Judged", "confidently", "each", "exactly", "mean", "median", "share"]

LEVEL = 0.95  # of every confidence interval


@dataclass(frozen=True)
class Criterion:
    """When a claim holds: a statistic of the values over seeds lies within [low, high].

    Args:
        statistic: "each" (every single value), "mean", "median", "share" (of the values within `among`), "interval" (the whole
            confidence interval of the mean), or "exact" (one number that has no seeds).
        low: the lower bound, -inf for none.
        high: the upper bound, inf for none.
        among: for "share": the interval whose share is meant.
        unit: of the value, for words.

    Example:
        >>> print(each(low=0.995))
        every seed at least 0.995
        >>> print(share(low=0.3, high=0.9, among=(0.9, math.inf)))
        share of seeds with at least 0.9: from 0.3 to 0.9
    """

    statistic: Literal["each", "mean", "median", "share", "interval", "exact"]
    low: float = -math.inf
    high: float = math.inf
    among: tuple[float, float] = (-math.inf, math.inf)
    unit: str = ""

    def __str__(self) -> str:
        bounds = _bounds(self.low, self.high)
        unit = f" {self.unit}" if self.unit else ""
        lead = {
            "each": "every seed",
            "mean": "mean over seeds",
            "median": "median over seeds",
            "share": f"share of seeds with {_bounds(*self.among)}{unit}:",
            "interval": "95% interval of the mean over seeds",
            "exact": "",
        }[self.statistic]
        return f"{lead} {bounds}{'' if self.statistic == 'share' else unit}".strip()

    def judge(self, values: Sequence[float]) -> tuple[float, tuple[float, float] | None, bool]:
        """(the statistic, its 95% interval over seeds or None, whether the criterion holds) of one value per seed.

        "each" reports the mean. Means have Student's interval, medians the one of order statistics, shares Wilson's. A value that
        is not finite fails "each", "mean", "median" and "interval", and is no member of a share.
        """
        x = np.asarray(values, dtype=float)
        if x.size == 0:
            return math.nan, None, False
        inside = (x >= self.low) & (x <= self.high)
        if self.statistic == "exact":
            return float(x[0]), None, bool(inside.all())
        if self.statistic == "share":
            hits = int(((x >= self.among[0]) & (x <= self.among[1])).sum())
            found = stats.binomtest(hits, x.size).proportion_ci(LEVEL, method="wilson")
            value = hits / x.size
            return value, (float(found.low), float(found.high)), self.low <= value <= self.high
        if self.statistic == "median":
            value = float(np.median(x))
            return value, _median_interval(x), self.low <= value <= self.high
        value = float(x.mean())
        interval = _mean_interval(x)
        if self.statistic == "each":
            return value, interval, bool(inside.all())
        if self.statistic == "mean":
            return value, interval, self.low <= value <= self.high
        return value, interval, interval is not None and self.low <= interval[0] and interval[1] <= self.high


def each(low: float = -math.inf, high: float = math.inf, unit: str = "") -> Criterion:
    """Every seed's value lies within [low, high]."""
    return Criterion("each", low, high, unit=unit)


def mean(low: float = -math.inf, high: float = math.inf, unit: str = "") -> Criterion:
    """The mean over seeds lies within [low, high]."""
    return Criterion("mean", low, high, unit=unit)


def median(low: float = -math.inf, high: float = math.inf, unit: str = "") -> Criterion:
    """The median over seeds lies within [low, high]."""
    return Criterion("median", low, high, unit=unit)


def share(low: float = -math.inf, high: float = math.inf, *, among: tuple[float, float], unit: str = "") -> Criterion:
    """The share of the seeds whose value lies within `among` is within [low, high]."""
    return Criterion("share", low, high, among, unit)


def confidently(low: float = -math.inf, high: float = math.inf, unit: str = "") -> Criterion:
    """The whole 95% interval of the mean over seeds lies within [low, high]; it needs at least two seeds."""
    return Criterion("interval", low, high, unit=unit)


def exactly(low: float = -math.inf, high: float = math.inf, unit: str = "") -> Criterion:
    """One number, computed and not sampled, lies within [low, high]."""
    return Criterion("exact", low, high, unit=unit)


@dataclass(frozen=True)
class Claim:
    """One statement, put to the test.

    Criterion and `expected_to_fail` are written down before anything runs, and come from theory or from earlier, independent
    measurements. Where a source is wrong, its statement is a claim that is expected to fail, beside one with the correction.

    Args:
        id: short name, unique in its study, e.g. "small-d-learns".
        says: the statement that is tested, in one sentence.
        stated: what the source says, and where, e.g. "paper, figure 1: d = 5 and d = 10 reach accuracy 1".
        measure: the values over seeds (or one number, for "exact") out of the study's results.
        criterion: when it holds.
        expected_to_fail: whether it is known not to hold.
        why: why it is expected to fail, or what the reader has to know.
    """

    id: str
    says: str
    stated: str
    measure: Callable[["Results"], Sequence[float] | float]
    criterion: Criterion
    expected_to_fail: bool = False
    why: str = ""

    def judge(self, study: str, results: "Results") -> "Judged":
        """This claim, measured on the results of its study."""
        values = self.measure(results)
        row = [float(values)] if isinstance(values, (int, float)) else [float(v) for v in values]
        measured, ci, holds = self.criterion.judge(row)
        return Judged(
            study, self.id, self.says, self.stated, measured, ci, str(self.criterion), len(row), holds, self.expected_to_fail, self.why
        )


@dataclass(frozen=True)
class Judged:
    """A claim with its outcome; `as_expected` is false where something has to be looked at."""

    study: str
    id: str
    says: str
    stated: str
    measured: float
    ci: tuple[float, float] | None
    criterion: str
    seeds: int
    holds: bool
    expected_to_fail: bool
    why: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether it holds, or fails as it was expected to."""
        return self.holds != self.expected_to_fail

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are null."""
        return {key: plain(value) for key, value in asdict(self).items()}


def _bounds(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "any"
    if math.isinf(high):
        return f"at least {low:.6g}"
    if math.isinf(low):
        return f"at most {high:.6g}"
    return f"exactly {low:.6g}" if low == high else f"from {low:.6g} to {high:.6g}"


def _mean_interval(x: np.ndarray) -> tuple[float, float] | None:
    if x.size < 2 or not np.isfinite(x).all():
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, x.size - 1)) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return float(x.mean()) - half, float(x.mean()) + half


def _median_interval(x: np.ndarray) -> tuple[float, float] | None:
    """The narrowest pair of order statistics that covers the median with at least LEVEL; None where the sample is too small."""
    rank = int(stats.binom.ppf((1 - LEVEL) / 2, x.size, 0.5))
    if rank < 1 or not np.isfinite(x).all():
        return None
    ordered = np.sort(x)
    return float(ordered[rank - 1]), float(ordered[x.size - rank])
