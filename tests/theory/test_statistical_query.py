"""The oracle answers within its tolerance, with the mean whenever it may; the learner on it does what gradient descent does."""

import itertools

import numpy as np
import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.theory.statistical_query import Oracle, descend, least_queries, tell_apart

D = 4
MASKS = np.array(list(itertools.product((0, 1), repeat=D)))
TARGETS = torch.tensor((-1.0) ** (MASKS @ MASKS.T), dtype=torch.float64)


def queries(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    c, s = torch.rand(2, count, 16, generator=random, dtype=torch.float64) - 0.5
    return c, s


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.1, 1.0])
def test_answers_against_sums_by_hand(tolerance):
    c, s = queries(30)
    answers = Oracle(TARGETS, 5, tolerance).ask(c, s)
    for k in range(30):
        each = [sum(float(c[k, x] + TARGETS[h, x] * s[k, x]) for x in range(16)) / 16 for h in range(16)]
        mean = sum(each) / 16
        assert float(answers[k]) == pytest.approx(mean if abs(each[5] - mean) <= tolerance else each[5], abs=1e-12)
        assert abs(float(answers[k]) - each[5]) <= tolerance + 1e-12


@pytest.mark.parametrize("tolerance", [0.02, 0.1])
def test_alive_are_those_whose_own_oracle_answers_the_same(tolerance):
    c, s = queries(6, seed=1)
    oracle = Oracle(TARGETS, 3, tolerance)
    answers = oracle.ask(c, s)
    for h in range(16):
        same = torch.allclose(Oracle(TARGETS, h, tolerance).ask(c, s), answers, atol=1e-12)
        assert bool(oracle.alive[h]) == same
    assert oracle.alive[3]
    assert oracle.queries == 6


def test_one_mask_after_the_other_rules_out_one_target_each():
    for true, position in ((3, 4), (9, 10)):
        one_by_one = ((torch.zeros(1, 16), row[None]) for row in TARGETS)
        # the last but one mask leaves a single target, so the last one never has to be asked for
        assert tell_apart(Oracle(TARGETS, true, 0.25), one_by_one, 16) == position
    last = ((torch.zeros(1, 16), row[None]) for row in TARGETS)
    assert tell_apart(Oracle(TARGETS, 15, 0.25), last, 16) == 15
    blind = ((torch.zeros(1, 16), row[None]) for row in TARGETS)
    assert tell_apart(Oracle(TARGETS, 15, 1.0), blind, 16) == -1


@pytest.mark.parametrize("tolerance", [0.2, 0.3, 0.5])
def test_no_query_rules_out_more_than_bessel_allows(tolerance):
    s = torch.cat([queries(40, seed=2)[1].sign(), TARGETS[1:3]])
    for row in s:
        oracle = Oracle(TARGETS - TARGETS.mean(0), 0, tolerance)  # centred, so that the mean answer is that of no target
        oracle.ask(torch.zeros(1, 16), row[None])
        told = 16 - int(oracle.alive.sum())
        assert min(told, 16 - told) <= 1 / tolerance**2
    assert least_queries(16, tolerance) == 16 * tolerance**2


def test_without_tolerance_it_is_gradient_descent():
    features = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = TARGETS[6]

    def gradients(w):  # of (w f(x) - y)^2 / 2
        return (w @ features) * features, -features

    start = torch.zeros(3, dtype=torch.float64)
    found, first = descend(Oracle(TARGETS, 6, 0.0), start, gradients, 0.1, 20)
    w = start
    for _ in range(20):
        w = w - 0.1 * ((w @ features - y) * features).mean(1)
    torch.testing.assert_close(found, w)
    assert first == 0


def test_a_silent_oracle_gives_the_same_path_for_every_target():
    features = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [
        descend(Oracle(TARGETS, h, 2.0), torch.ones(3).double(), lambda w: ((w @ features) * features, -features), 0.1, 10)
        for h in range(16)
    ]
    assert all(torch.equal(w, ends[0][0]) and first == -1 for w, first in ends)


def test_bad_input():
    with pytest.raises(Usage, match="one of them"):
        Oracle(TARGETS, 16, 0.1)
    with pytest.raises(Usage, match="values in"):
        Oracle(TARGETS, 0, 0.1).ask(torch.ones(1, 16), torch.ones(1, 16))
