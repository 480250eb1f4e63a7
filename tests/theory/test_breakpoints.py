"""The detector of breakpoints against slow loops and all matchings."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from gradoscope.theory.breakpoints import read, score


def slow_hits(found: list[int], wanted: list[int], reach: int) -> int:
    """The size of the largest one-to-one matching, by trying all."""
    for size in range(min(len(found), len(wanted)), 0, -1):
        for chosen in combinations(wanted, size):
            for order in permutations(found, size):
                if all(abs(a - b) <= reach for a, b in zip(chosen, order, strict=True)):
                    return size
    return 0


def drawn(count: int, n: int, k: int, seed: int) -> torch.Tensor:
    rng, p = np.random.default_rng(seed), np.zeros((count, n))
    for row in p:
        row[rng.choice(n, k, replace=False)] = rng.uniform(0.1, 1, k) * rng.choice([-1, 1], k)
    return torch.from_numpy(p)


def test_read_against_sorting():
    p = torch.from_numpy(np.random.default_rng(1).normal(size=(50, 9)))
    theta, a = read(p, 4)
    for row, places, changes in zip(p.numpy(), theta.numpy(), a.numpy(), strict=True):
        best = sorted(np.argsort(-np.abs(row))[:4])
        assert places.tolist() == best
        assert changes.tolist() == row[best].tolist()


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_score_against_all_matchings(reach: int):
    estimate, truth = drawn(300, 8, 3, 2), drawn(300, 8, 3, 3)
    found = score(estimate, truth, 3, reach=reach)
    places = [[np.flatnonzero(row).tolist() for row in p.numpy()] for p in (estimate, truth)]
    near = sum(slow_hits(f, w, reach) for f, w in zip(*places, strict=True))
    exact = sum(len(set(f) & set(w)) for f, w in zip(*places, strict=True))
    assert found.recall == found.precision == pytest.approx(exact / 900)
    assert found.recall_near == found.precision_near == pytest.approx(near / 900)


def test_perfect_and_empty_estimates():
    truth = drawn(40, 20, 3, 4)
    perfect = score(truth, truth, 3)
    assert (perfect.precision, perfect.recall, perfect.recall_near, perfect.slope_error) == (1, 1, 1, 0)
    nothing = score(torch.zeros_like(truth), truth, 3)
    assert (nothing.precision, nothing.recall, nothing.recall_near) == (0, 0, 0)
    assert nothing.slope_error == pytest.approx(float(truth.abs().sum()) / 120) == pytest.approx(nothing.slope_size)


def test_fewer_true_breakpoints_than_read():
    truth, estimate = torch.zeros(1, 10), torch.zeros(1, 10)
    truth[0, 4] = 1.0
    estimate[0, [3, 4, 9]] = torch.tensor([0.1, 1.5, 0.2])
    found = score(estimate, truth, 3)
    assert (found.precision, found.recall) == (pytest.approx(1 / 3), 1.0)
    assert score(estimate, truth, 3, reach=0).slope_error == pytest.approx(0.5)
