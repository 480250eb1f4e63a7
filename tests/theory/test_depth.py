"""The random walk of a signal through rectified layers: its exact law against samples, and what its limits must be."""

import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.stacked import generator
from gradoscope.theory.depth import HE, balanced_gain, log_growth, random_walk_gain


@pytest.mark.parametrize(("width", "gain"), [(8, HE), (16, 1.0), (64, 1.5)])
def test_drift_and_spread_are_those_of_samples(width, gain):
    count = 40_000
    z = gain / width**0.5 * torch.randn(count, width, generator=generator(0, 5, width), dtype=torch.float64)  # of a signal of length 1
    steps = z.relu().norm(dim=1).log()
    steps = steps[steps.isfinite()]  # 2^-8 of the narrowest have no active unit
    mean, std = log_growth(width, gain)
    assert float(steps.mean()) == pytest.approx(mean, abs=4 * std / count**0.5)
    assert float(steps.std()) == pytest.approx(std, rel=0.03)


def test_steps_do_not_depend_on_the_signal():
    width, random = 12, generator(1, 5)
    h = torch.randn(width, generator=random, dtype=torch.float64)
    w = torch.randn(20_000, width, width, generator=random, dtype=torch.float64) * (HE / width**0.5)
    steps = (w @ h).relu().norm(dim=1).log() - h.norm().log()
    steps = steps[steps.isfinite()]
    mean, std = log_growth(width, HE)
    assert float(steps.mean()) == pytest.approx(mean, abs=4 * std / 20_000**0.5)


@pytest.mark.parametrize("width", [50, 400, 3000])
def test_wide_layers_drift_by_five_quarters_over_the_width(width):
    mean, std = log_growth(width, HE)
    assert mean * width == pytest.approx(-1.25, abs=3 / width)
    assert std**2 * width == pytest.approx(1.25, abs=10 / width)


def test_two_units_by_hand():
    # K = 1 with probability 2/3, else 2; E ln chi2_1 = psi(1/2) + ln 2, E ln chi2_2 = psi(1) + ln 2
    euler = 0.5772156649015329
    expected = (2 / 3 * (-euler - 2 * math.log(2)) + 1 / 3 * -euler + math.log(2)) / 2  # ln(2 g^2/n) is ln 2
    assert log_growth(2, HE)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("width", [10, 64, 200, 1000])
def test_the_formula_is_the_balanced_gain(width):
    assert abs(log_growth(width, balanced_gain(width))[0]) < 1e-12
    assert random_walk_gain(width) == pytest.approx(balanced_gain(width), rel=5e-3 if width < 20 else 1e-3)


@pytest.mark.parametrize(("width", "gain"), [(1, 1.0), (8, 0.0), (8, -1.0)])
def test_what_makes_no_sense_is_refused(width, gain):
    with pytest.raises(Usage):
        log_growth(width, gain)
