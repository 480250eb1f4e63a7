"""The staircase: its values, its gradient of exactly zero, and the forward-only update."""

import pytest
import torch

from gradoscope.problems import find
from gradoscope.problems.steps import ForwardOnly, Staircase, thresholds
from gradoscope.training import Live


@pytest.mark.parametrize("module", [Staircase, ForwardOnly])
def test_rounds_down_to_a_known_level(module):
    levels = thresholds().tolist()
    r = torch.cat([torch.linspace(-99, 120, 400), thresholds()])
    expected = [max(z for z in levels if z <= v) for v in r.tolist()]
    torch.testing.assert_close(module()(r), torch.tensor(expected), rtol=0, atol=1e-4)


def test_direct_has_a_gradient_that_is_exactly_zero(train):
    training = find("steps:direct", seed=1)
    live = Live.of(training, seed=1)
    loss = live.loss(training.data(torch.Generator().manual_seed(0), 256))
    assert loss.requires_grad
    loss.backward()
    assert loss.item() > 0.1
    assert all(p.grad is not None and not p.grad.any() for p in live.model.parameters())
    start = [p.clone() for p in live.model.parameters()]
    after = train(training, seed=1, steps=50).live.model.parameters()
    assert all(torch.equal(p, q) for p, q in zip(start, after, strict=True))


def test_several_levels_occur():
    _, y = find("steps:direct").data(torch.Generator().manual_seed(0), 1000)
    assert len(y.unique()) >= 6


def test_forward_only_update_against_its_formula():
    training = find("steps:forward-only", seed=2)
    live = Live.of(training, seed=2)
    x, y = training.data(torch.Generator().manual_seed(0), 64)
    live.loss((x, y)).backward()
    weight, bias = live.model[0].weight.detach(), live.model[0].bias.detach()
    slow = sum(2 * (Staircase()(weight @ a + bias) - b) * a for a, b in zip(x, y, strict=True)) / 64
    torch.testing.assert_close(live.model[0].weight.grad[0], slow)


@pytest.mark.parametrize("seed", [0, 3])
def test_forward_only_learns(train, seed):
    training = find("steps:forward-only", seed=seed)
    assert train(training, seed=seed).on(training.validation)[0] < 0.02
