import math

import pytest
import torch
from torch import nn

from gradoscope.guard import private_random
from gradoscope.measure.gradient import group_norms, layer_norms, missing_gradients, update_ratios


@pytest.fixture
def model():
    with private_random(0):
        net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 2))
        net[0].requires_grad_(False)
        net[2](net[1](net[0](torch.randn(8, 4)))).square().mean().backward()
    return net


def test_norms_per_parameter_and_the_missing_ones_apart(model):
    named = list(model.named_parameters())
    norms = layer_norms(named)
    assert norms == {n: pytest.approx(math.sqrt(float(p.grad.double().square().sum()))) for n, p in named if p.grad is not None}
    assert set(norms) == {"2.weight", "2.bias"}
    assert missing_gradients(named) == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_a_flat_gradient_is_read_in_the_parameters_order_and_unscaled(model):
    named = list(model.named_parameters())
    gradient = torch.arange(sum(p.numel() for _, p in named), dtype=torch.float64)
    norms, start = layer_norms(named, 8 * gradient, scale=8.0), 0
    for name, p in named:
        assert norms[name] == pytest.approx(float(gradient[start : start + p.numel()].norm()))
        start += p.numel()
    with pytest.raises(ValueError, match="the parameters have"):
        layer_norms(named, gradient[:-1])


def test_sparse_gradients_are_summed_before_the_norm():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    assert not embedding.weight.grad.is_coalesced()
    assert layer_norms([("e", embedding.weight)])["e"] == pytest.approx(math.sqrt(2 * 2**2 + 2 * 1))


def test_mixed_types_and_half_precision_without_overflow():
    wide, half = torch.zeros(2, dtype=torch.float64), torch.zeros(4, dtype=torch.float16)
    wide.grad, half.grad = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.full((4,), 60000.0, dtype=torch.float16)
    assert layer_norms([("half", half), ("wide", wide)]) == {"half": pytest.approx(120000.0, rel=1e-2), "wide": 5.0}


def test_norms_per_group_are_unscaled(model):
    optimizer = torch.optim.SGD(
        [{"params": [model[2].weight], "name": "matrix"}, {"params": [model[2].bias]}, {"params": list(model[3].parameters())}], lr=0.1
    )
    norms = group_norms(optimizer)
    assert set(norms) == {"matrix", "1"}
    optimizer.grad_scale = torch.tensor(4.0)
    assert group_norms(optimizer)["matrix"] == pytest.approx(norms["matrix"] / 4)
    assert norms["matrix"] == pytest.approx(float(model[2].weight.grad.norm()))


def test_update_ratios():
    before = [torch.tensor([3.0, 4.0]), torch.zeros(2), torch.zeros(2), torch.ones(1)]
    after = [torch.tensor([3.0, 4.5]), torch.zeros(2), torch.ones(2), torch.tensor([math.nan])]
    ratios = update_ratios(before, after, ["a", "still", "born", "broken"])
    assert ratios["a"] == pytest.approx(0.1)
    assert ratios["still"] == 0.0
    assert ratios["born"] == math.inf
    assert math.isnan(ratios["broken"])
    assert update_ratios([], [], []) == {}
