"""Criteria against closed forms and known intervals."""

import math

import numpy as np
import pytest
from scipy import stats

from gradoscope.claims import Claim, confidently, each, exactly, mean, median, share
from gradoscope.study import Results, Table

ALL = (-math.inf, math.inf)


def test_mean_has_students_interval() -> None:
    values = [0.1, 0.4, 0.35, 0.8, 0.5]
    measured, ci, holds = mean(0.4, 0.5).judge(values)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert measured == pytest.approx(np.mean(values))
    assert ci == pytest.approx((reference.low, reference.high))
    assert holds


def test_every_seed_counts() -> None:
    assert each(low=0.9).judge([0.9, 1.0, 0.95])[2]
    assert not each(low=0.9).judge([0.89, 1.0, 1.0])[2]
    assert not each(low=0.9).judge([math.nan, 1.0, 1.0])[2]


def test_shares_have_wilsons_interval_and_ignore_what_is_not_finite() -> None:
    measured, ci, holds = share(0.3, 0.7, among=(0.9, math.inf)).judge([1.0, 0.95, 0.5, math.nan])
    reference = stats.binomtest(2, 4).proportion_ci(0.95, method="wilson")
    assert measured == 0.5
    assert ci == pytest.approx((reference.low, reference.high))
    assert holds


def test_medians_have_an_interval_of_order_statistics_that_covers() -> None:
    _, ci, _ = median().judge(list(range(10)))
    assert ci == (1.0, 8.0)  # ranks 2 and 9 of 10 cover the median with 97.9%
    assert 1 - 2 * stats.binom.cdf(1, 10, 0.5) >= 0.95
    assert median().judge([1.0, 2.0, 3.0])[1] is None  # three values cannot cover it with 95%


@pytest.mark.parametrize("n", [6, 9, 17, 30])
def test_median_interval_covers_in_simulation(n: int) -> None:
    random = np.random.default_rng(n)
    hits = 0
    for sample in random.normal(size=(2000, n)):
        ci = median().judge(list(sample))[1]
        assert ci is not None
        hits += ci[0] <= 0 <= ci[1]
    assert hits / 2000 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_whole_interval_has_to_lie_inside() -> None:
    values = [0.9, 1.0, 1.1, 1.0]
    assert mean(0.95, 1.05).judge(values)[2]
    assert not confidently(0.95, 1.05).judge(values)[2]
    assert confidently(0.8, 1.2).judge(values)[2]
    assert not confidently(0.0, 2.0).judge([1.0])[2]  # one value has no interval


def test_nothing_measured_never_holds() -> None:
    for criterion in (each(), mean(), median(), share(among=ALL), confidently(), exactly()):
        measured, ci, holds = criterion.judge([])
        assert math.isnan(measured)
        assert ci is None
        assert not holds


@pytest.mark.parametrize(
    ("criterion", "text"),
    [
        (exactly(1.3459, 1.3461), "from 1.3459 to 1.3461"),
        (each(high=1e-3, unit="squared error"), "every seed at most 0.001 squared error"),
        (exactly(2, 2), "exactly 2"),
        (confidently(low=0), "95% interval of the mean over seeds at least 0"),
    ],
)
def test_criteria_read_as_sentences(criterion: object, text: str) -> None:
    assert str(criterion) == text


@pytest.mark.parametrize(
    ("value", "expected_to_fail", "surprise"), [(1.0, False, False), (0.0, False, True), (0.0, True, False), (1.0, True, True)]
)
def test_a_claim_that_fails_stays_visible(value: float, expected_to_fail: bool, surprise: bool) -> None:
    results = Results(Table([{"seed": s, "acc": value} for s in range(5)]), Table([]))
    claim = Claim("id", "says", "stated", lambda r: r.rows.column("acc"), each(low=0.5), expected_to_fail, "why")
    judged = claim.judge("study", results)
    assert judged.as_expected is not surprise
    assert judged.to_dict() == {
        "study": "study", "id": "id", "says": "says", "stated": "stated", "measured": value, "ci": [value, value],
        "criterion": "every seed at least 0.5", "seeds": 5, "holds": value >= 0.5, "expected_to_fail": expected_to_fail, "why": "why",
    }  # fmt: skip
