"""Two losses on the same parameters: signal, noise and whether their means are the same, against plain sums and truth."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gradoscope.measure.supervision import paired_signals


def draw(k: int, mean: Tensor, noise: float, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return mean + noise * torch.randn(k, len(mean), generator=random, dtype=torch.float64)


MEAN = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)


def test_projection_and_its_error_are_those_of_plain_loops() -> None:
    first, second = draw(6, MEAN, 1.0, 1), draw(6, 2 * MEAN, 0.5, 2)

    def beta(kept: list[int]) -> float:
        above = sum(float(first[i] @ second[j]) for i in kept for j in kept if i != j)
        below = sum(float(second[i] @ second[j]) for i in kept for j in kept if i != j)
        return above / below

    whole = list(range(6))
    without = np.array([beta([i for i in whole if i != left]) for left in whole])
    pair = paired_signals(first, second, 4)
    assert pair.projection == pytest.approx(beta(whole), rel=1e-12)
    assert pair.projection_se == pytest.approx(math.sqrt(5 / 6 * float(((without - without.mean()) ** 2).sum())), rel=1e-9)


def test_estimates_are_right_on_average() -> None:
    """G1 = G2 / 2: a projection of 1/2, and signal over noise from the means and spreads that were drawn."""
    found = [paired_signals(draw(16, MEAN, 2.0, 2 * s), draw(16, 2 * MEAN, 1.0, 2 * s + 1), 4) for s in range(200)]
    assert np.mean([f.projection for f in found]) == pytest.approx(0.5, abs=0.01)
    spread = float(np.std([f.projection for f in found]))
    assert np.mean([f.projection_se for f in found]) == pytest.approx(spread, rel=0.15)
    size, dim = float(MEAN @ MEAN), len(MEAN)
    truth = (size / (dim * 4.0)) / (4 * size / dim)
    assert np.median([f.ratio for f in found]) == pytest.approx(truth, rel=0.15)
    # A bound of 95% by the normal approximation, of a skewed statistic.
    assert np.mean([f.ratio_upper > truth for f in found]) > 0.9


def test_the_test_of_equal_means_keeps_its_level_and_has_power() -> None:
    def rate(factor: float) -> float:
        ps = [paired_signals(draw(16, MEAN, 1.0, 2 * s), draw(16, factor * MEAN, 1.0, 2 * s + 1), 4).difference_p for s in range(200)]
        return float(np.mean(np.array(ps) < 0.05))

    assert rate(1.0) < 0.1  # two and a half standard errors of 200 trials above the level
    assert rate(2.0) > 0.9


def test_no_signal_in_the_first_is_a_ratio_near_zero_with_a_bound() -> None:
    pair = paired_signals(draw(16, 0 * MEAN, 1.0, 3), draw(16, 3 * MEAN, 1.0, 4), 4)
    assert pair.ratio < 0.05
    assert pair.ratio <= pair.ratio_upper < 0.1
    assert abs(pair.projection) < 4 * pair.projection_se


def test_no_signal_in_the_second_has_no_bound() -> None:
    pair = paired_signals(draw(16, MEAN, 1.0, 3), draw(16, 0 * MEAN, 1.0, 9), 4)
    assert pair.ratio_upper == math.inf


def test_gradients_that_are_all_zero_have_no_signal() -> None:
    pair = paired_signals(torch.zeros(8, 6, dtype=torch.float64), draw(8, MEAN, 0.5, 5), 4)
    assert (pair.ratio, pair.ratio_upper, pair.projection) == (0.0, 0.0, 0.0)


def test_too_few_or_unequal_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="3 or more"):
        paired_signals(torch.zeros(2, 4), torch.zeros(2, 4), 1)
    with pytest.raises(ValueError, match="shapes"):
        paired_signals(torch.zeros(4, 4), torch.zeros(4, 5), 1)
