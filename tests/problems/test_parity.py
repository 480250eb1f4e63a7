"""Parities: the right function, learnt where it is small, at chance where it is large."""

import math

import numpy as np
import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.parity import bulk_parity, hidden_subset, hinge
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
    with pytest.raises(Usage, match="no option 'bits'"):
        find("parity:bits=3")
    with pytest.raises(Usage, match="cannot have 9"):
        find("parity:d=5,size=9")
    with pytest.raises(Usage, match="signs"):
        find("parity:inputs=letters")
    with pytest.raises(Usage, match="at least one bit"):
        find("parity:full-lstm,d=0")
    with pytest.raises(Usage, match="must be of type int"):
        find("parity:d=many")


@pytest.mark.parametrize("d", [1, 5, 8, 9, 16, 30, 65])
@pytest.mark.parametrize("inputs", ["signs", "bits"])
def test_bulk_data_against_a_loop(d, inputs):
    subset = torch.from_numpy(np.random.default_rng(d).random(d) < 0.5)
    x, y = bulk_parity(subset, 7, inputs)(np.random.default_rng(0), 40)
    assert x.shape == (40, 7, d)
    assert x.dtype == y.dtype == torch.float32
    assert set(x.unique().tolist()) == ({0.0, 1.0} if inputs == "bits" else {-1.0, 1.0})
    for row, target in zip(x.reshape(-1, d).tolist(), y.flatten().tolist(), strict=True):
        signs = row if inputs == "signs" else [1 - 2 * v for v in row]
        assert target == math.prod(v for v, inside in zip(signs, subset.tolist(), strict=True) if inside)


def test_bulk_bits_are_uniform_and_independent():
    x = bulk_parity(torch.ones(20, dtype=torch.bool), 100)(np.random.default_rng(1), 200)[0].reshape(-1, 20).double()
    assert float(x.mean(0).abs().max()) < 5 / math.sqrt(len(x))
    products = x.T @ x / len(x) - torch.eye(20)
    assert float(products.abs().max()) < 5 / math.sqrt(len(x))


def test_subsets_of_a_given_size():
    assert [int(hidden_subset(30, seed, size=3).sum()) for seed in range(10)] == [3] * 10
    assert len({tuple(hidden_subset(30, seed, size=3).tolist()) for seed in range(10)}) > 8


def test_inputs_as_bits_are_the_same_function():
    signs, bits = (find(f"parity:d=9,inputs={inputs}").data(torch.Generator().manual_seed(0), 50) for inputs in ("signs", "bits"))
    assert torch.equal((1 - signs[0]) / 2, bits[0])
    assert torch.equal(signs[1], bits[1])


def test_shape_of_deeper_networks():
    widths = [m.out_features for m in Live.of(find("parity:d=6,depth=3,width_factor=2")).model if hasattr(m, "out_features")]
    assert widths == [12, 12, 12, 1]


def test_few_bits_are_learnt(train):
    few = find("parity:sparse,d=12,steps=600")
    assert train(few).on(few.data)[1] > 0.95


def test_the_full_parity_is_learnt_from_words_of_all_lengths(train):
    known = find("parity:full-lstm,d=8,steps=300,lr=0.02")
    x, y = known.validation(torch.Generator().manual_seed(1), 500)
    assert torch.equal(y[:, 0], x.prod(1))
    assert train(known).on(known.validation)[1] > 0.95
    lengths = {known.data(torch.Generator().manual_seed(s), 2)[0].shape[1] for s in range(200)}
    assert lengths == set(range(1, 9))
    assert find("parity:full-lstm,d=8,mixed=no").data(torch.Generator().manual_seed(0), 2)[0].shape == (2, 8)
