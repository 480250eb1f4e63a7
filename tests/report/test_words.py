"""How numbers are written, where doctests do not reach."""

import math

import numpy as np
import pytest

from gradoscope.measurement import Measurement
from gradoscope.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-2.5, "−2.5"),
        (1437, "1437"),
        (99999.4, "99999"),
        (1e300, "1e300"),
        (-1e-9, "−1e-9"),
        (0.05, "0.05"),
        (True, "yes"),
        (None, "–"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize("value", 10.0 ** np.arange(-12, 13, 1.7))
def test_number_reads_back_to_three_digits(value):
    assert float(words.number(value)) == pytest.approx(value, rel=6e-3)


def test_percent_never_rounds_an_effect_to_all_or_nothing():
    assert words.percent(0.9999) == ">99.9%"
    assert words.percent(0.0004) == "0.04%"
    assert words.percent(1.0) == "100%"
    assert words.percent(-1e9) == "<−1000-fold"


def test_arrays_are_told_by_their_range():
    assert words.measured(Measurement("m", np.array([3.0, math.nan, 1.0]))) == "1 to 3 (2 values)"
    assert words.measured(Measurement("m", [])) == "– (0 values)"
    assert words.measured(Measurement("m", 2.0, se=0.5, unit="loss")) == "2 ± 0.5 loss"


def test_the_experiment_of_a_finding_is_the_one_with_its_gain(make):
    d = make("obstructed")
    assert words.confirming(d, d["step_too_small"]) is d.counterfactuals[0]
    assert words.confirming(d, d["saddle_point"]) is None
    assert [c.remedy for c in words.best_counterfactuals(d, 3)] == ["step_size(x1000)", "newton_krylov", "step_size(x10)"]
