import math

import numpy as np
import pytest
from scipy import stats

from gradoscope.measure.generalization import gap


def test_equals_welch_by_scipy():
    rng = np.random.default_rng(0)
    train, held = rng.normal(1, 1, 12), rng.normal(2, 3, 30)
    measured, expected = gap(train, held), stats.ttest_ind(held, train, equal_var=False)
    assert measured.value == pytest.approx(held.mean() - train.mean())
    assert measured.value / measured.se == pytest.approx(expected.statistic)
    assert measured.p == pytest.approx(expected.pvalue)
    assert measured.details["interval"] == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_the_interval_covers_the_true_gap():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        low, high = gap(rng.normal(0, 1, 6), rng.normal(0.5, 2, 9)).details["interval"]
        covered.append(low <= 0.5 <= high)
    assert 0.92 < np.mean(covered) < 0.98


def test_without_spread_or_samples():
    assert gap([1.0, 1.0], [2.0, 2.0]).p == 0.0
    assert gap([1.0, 1.0], [1.0, 1.0]).p == 1.0
    single = gap([1.0], [2.0, 3.0])
    assert single.value == 1.5
    assert math.isnan(single.se)
    assert math.isnan(single.p)
    assert math.isnan(gap([1.0, math.nan], [2.0, 3.0]).value)
    with pytest.raises(ValueError, match="at least one loss on each side"):
        gap([], [1.0])
