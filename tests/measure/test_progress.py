import math

import numpy as np
import pytest
from scipy import stats

from gradoscope.measure.progress import trend
from tests.reference import statistics as reference


def test_tau_equals_the_count_of_pairs_of_block_means():
    values = np.random.default_rng(0).normal(size=203).cumsum()
    measured = trend(values, blocks=20)
    means = np.array([part.mean() for part in np.array_split(values, 20)])
    assert measured.value == pytest.approx(reference.kendall(means), abs=1e-12)
    assert measured.n == 20


def test_ties_are_taken_out():
    values = [3.0, 3.0, 2.0, 1.0, 1.0, 0.0]
    assert trend(values).value == pytest.approx(reference.kendall(np.array(values)), abs=1e-12)


def test_p_is_uniform_where_nothing_changes_and_small_where_the_loss_falls():
    rng = np.random.default_rng(1)
    ps = [trend(rng.normal(size=200)).p for _ in range(300)]
    assert stats.kstest(ps, "uniform").pvalue > 1e-3
    assert np.mean(np.array(ps) < 0.05) < 0.09
    falling = trend(rng.normal(size=200) - 0.05 * np.arange(200))
    assert falling.value < -0.9
    assert falling.p < 1e-6


def test_standard_error_is_the_spread_under_no_trend():
    rng = np.random.default_rng(2)
    taus = [trend(rng.normal(size=60)) for _ in range(400)]
    assert np.std([t.value for t in taus]) == pytest.approx(taus[0].se, rel=0.15)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 1.0], [1.0, math.nan, math.nan], [math.nan] * 50, [4.0] * 100, [3.0, 2.0, 1.0]])
def test_series_that_say_nothing(values):
    measured = trend(values)
    assert (measured.value, measured.p) == (0.0, 1.0)


def test_nan_are_left_out_and_infinities_ranked():
    values = np.linspace(5, 1, 40)
    values[7] = math.nan
    assert trend(values).value == -1.0
    assert trend(values).details["not_finite"] == 1
    exploding = np.concatenate([np.linspace(1, 5, 30), [math.inf, math.nan]])
    assert trend(exploding).value == pytest.approx(1.0)
    assert trend(exploding).details["not_finite"] == 2


def test_an_outlier_does_not_decide():
    values = np.linspace(2, 1, 100)
    values[50] = 1e6
    assert trend(values).p < 1e-4
