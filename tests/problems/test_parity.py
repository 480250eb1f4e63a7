"""Parities: the right function, learnt where it is small, at chance where it is large."""

import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.parity import hidden_subset, hinge
from gradoscope.training import Live


def test_target_is_the_parity_of_the_hidden_bits():
    training = find("parity:d=12", seed=4)
    x, y = training.data(torch.Generator().manual_seed(0), 50)
    subset = hidden_subset(12, 4).tolist()
    assert set(x.unique().tolist()) == {-1.0, 1.0}
    for row, target in zip(x.tolist(), y.tolist(), strict=True):
        assert target == [math.prod(v for v, inside in zip(row, subset, strict=True) if inside)]


def test_large_problems_have_large_subsets_and_other_seeds_other_ones():
    subsets = [hidden_subset(30, seed) for seed in range(20)]
    assert min(int(s.sum()) for s in subsets) >= 8
    assert len({tuple(s.tolist()) for s in subsets}) == 20


def test_start_is_truncated_normal_without_bias():
    first, _, last = Live.of(find("parity:d=30")).model
    assert first.weight.shape == (300, 30)
    assert float(first.weight.detach().abs().max()) <= 2 / math.sqrt(30)
    # a normal distribution cut at two standard deviations has 0.8796 times the standard deviation
    assert float(first.weight.detach().double().std()) == pytest.approx(0.8796 / math.sqrt(30), rel=0.03)
    assert not first.bias.any()
    assert not last.bias.any()


def test_hinge_against_a_loop():
    score, target = torch.tensor([[0.5], [2.0], [-1.0]]), torch.tensor([[1.0], [1.0], [1.0]])
    assert float(hinge(score, target)) == pytest.approx((0.5 + 0 + 2) / 3)


def test_small_parity_is_learnt_and_a_large_one_is_not(train):
    small = find("parity:d=4,lr=0.1,steps=400")
    assert train(small).on(small.data)[1] > 0.95
    large = find("parity:d=30,steps=300")
    assert abs(train(large).on(large.data, 4000)[1] - 0.5) < 0.05


def test_bad_options():
    with pytest.raises(Usage, match="at least 2 bits"):
        find("parity:d=1")
    with pytest.raises(Usage, match="no option 'depth'"):
        find("parity:depth=3")
    with pytest.raises(Usage, match="must be of type int"):
        find("parity:d=many")
