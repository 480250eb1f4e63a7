"""The network of lemma 3, and elimination over GF(2)."""

import itertools

import numpy as np
import pytest
import torch

from gradoscope.theory.parity import agreement, full_rank_probability, lemma3_network, parity_solution


def points(d):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=d)), dtype=torch.float64)


@pytest.mark.parametrize("d", [4, 5, 6, 7, 8, 10])
@pytest.mark.parametrize("inputs", ["bits", "signs"])
def test_lemma_3_errs_where_no_bit_of_the_subset_is_set(d, inputs):
    bits = points(d)
    x = bits if inputs == "bits" else 1 - 2 * bits
    random = np.random.default_rng(d)
    for size in range(d + 1):
        subset = torch.zeros(d, dtype=torch.bool)
        subset[random.permutation(d)[:size]] = True
        count = bits[:, subset].sum(1)
        y = (-1) ** count
        literal = lemma3_network(subset, corrected=False, inputs=inputs)(x)[:, 0]
        assert torch.equal(literal != y, count == 0)
        assert int((literal != y).sum()) == 2 ** (d - size)
        assert torch.equal(lemma3_network(subset, inputs=inputs)(x)[:, 0], y)


def test_width():
    subset = torch.ones(7, dtype=torch.bool)
    assert lemma3_network(subset, corrected=False)[0].out_features == 9
    assert lemma3_network(subset)[0].out_features == 12


def test_two_parities_agree_on_half_of_the_cube():
    x = points(5).numpy()
    masks = np.array(list(itertools.product((0, 1), repeat=5)))
    labels = x @ masks.T % 2
    for i, j in itertools.product(range(0, 32, 3), range(32)):
        assert agreement(masks[i], masks[j]) == (labels[:, i] == labels[:, j]).mean()


def test_solution_names_the_subset():
    random = np.random.default_rng(3)
    for _ in range(20):
        mask, constant = random.integers(0, 2, 30), int(random.integers(0, 2))
        x = random.choice([-3.0, 5.0], (60, 30))
        solution = parity_solution(x, ((x > 0) @ mask + constant) % 2)
        assert np.array_equal(solution.mask, mask)
        assert solution.constant == constant
        new = random.choice([-3.0, 5.0], (50, 30))
        assert np.array_equal(solution(new), ((new > 0) @ mask + constant) % 2)


def test_too_few_examples_do_not_determine_it():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        mask, x = random.integers(0, 2, 20), random.integers(0, 2, (12, 20))
        solution = parity_solution(x, x @ mask % 2)
        hits += solution is not None and np.array_equal(solution.mask, mask)
    assert hits <= 5


def test_probability_of_full_rank_against_counting():
    def rank(rows):
        basis = 0
        rows = [int(sum(b << j for j, b in enumerate(r))) for r in rows]
        for j in range(3):
            pivot = next((r for r in rows if r >> j & 1), None)
            if pivot is None:
                continue
            basis += 1
            rows = [r ^ pivot if r >> j & 1 else r for r in rows]
        return basis

    every = list(itertools.product(itertools.product((0, 1), repeat=3), repeat=4))
    assert full_rank_probability(4, 3) == pytest.approx(sum(rank(list(m)) == 3 for m in every) / len(every))
    assert full_rank_probability(2, 3) == 0
