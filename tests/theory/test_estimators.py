"""Moments of the two estimators, against every vector of returns."""

import itertools

import pytest
import torch

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.theory.estimators import model_moments, moments, softmax_moments


def enumerated(output, parameters, target, k):
    """Second moments and the mean's squared norm by autograd, one input and one vector of returns at a time."""
    whole = own = 0.0
    mean = 0.0
    for i, y in enumerate(target.tolist()):

        def gradient(z, i=i):
            found = torch.autograd.grad(-(output()[i] * z).sum(), parameters, allow_unused=True)
            return torch.cat(
                [torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for g, p in zip(found, parameters, strict=True)]
            )

        days = [torch.tensor(z, dtype=torch.float64) for z in itertools.product((-1.0, 1.0), repeat=k) if z[y] == 1]
        gradients = torch.stack([gradient(z) for z in days])
        decomposed = gradient(torch.eye(k, dtype=torch.float64)[y])
        torch.testing.assert_close(gradients.mean(0), decomposed, rtol=1e-12, atol=1e-14)
        whole += float(gradients.square().sum(1).mean()) / len(target)
        own += float(decomposed.square().sum()) / len(target)
        mean = mean + decomposed / len(target)
    return whole, own, float(mean.square().sum())


@pytest.mark.parametrize("bias", [True, False])
def test_softmax_against_every_vector_of_returns(bias):
    k, target = 4, torch.tensor([2, 0, 2, 1, 3])
    random = torch.Generator().manual_seed(0)
    table = torch.randn(5, k, generator=random, dtype=torch.float64, requires_grad=True)
    shared = torch.randn(k, generator=random, dtype=torch.float64, requires_grad=True)
    parameters = [table, shared] if bias else [table]
    slow = enumerated(lambda: torch.softmax(table + shared, 1), parameters, target, k)
    fast = softmax_moments((table + shared).detach(), target, bias=bias)
    assert (fast.end_to_end, fast.decomposed, fast.mean_square) == pytest.approx(slow, rel=1e-12)
    assert fast.variance_ratio == pytest.approx((slow[0] - slow[2]) / (slow[1] - slow[2]))


@private_random(0)
def test_any_model_against_every_vector_of_returns():
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    x, target = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 1, 2])
    slow = enumerated(lambda: model(x), list(model.parameters()), target, 3)
    for chunk in (2, 100):
        fast = model_moments(model, x, target, chunk=chunk)
        assert (fast.end_to_end, fast.decomposed, fast.mean_square) == pytest.approx(slow, rel=1e-12)


def test_equal_holdings_give_exactly_k():
    both = softmax_moments(torch.zeros(50, 30, dtype=torch.float64), torch.arange(50) % 30)
    assert both.second_moment_ratio == pytest.approx(30, rel=1e-12)
    # with equal holdings each state's own part is the same, and the mean is small beside it
    assert both.variance_ratio > 30


def test_one_part_has_nothing_to_decompose():
    one = moments(torch.randn(6, 1, 4), torch.zeros(6, dtype=torch.long))
    assert one.second_moment_ratio == pytest.approx(1.0)


def test_wrong_shapes_are_said():
    with pytest.raises(CannotRun, match="3 targets for 4 rows"):
        model_moments(torch.nn.Linear(2, 3), torch.zeros(4, 2), torch.zeros(3, dtype=torch.long))
