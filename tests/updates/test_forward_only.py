"""Forward-only: values are those of the activation, the derivative is a constant; whole models are wrapped and unwrapped."""

import copy

import pytest
import torch
from torch import nn

from gradoscope.errors import Usage
from gradoscope.updates.forward_only import MONOTONE, ForwardOnly, ForwardOnlyPass, straight_through, unwrap_activations, wrap_activations

X = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([0.0, float("inf"), -float("inf")])])


@pytest.mark.parametrize("kind", MONOTONE, ids=lambda k: k.__name__)
def test_values_stay_and_the_derivative_is_one(kind):
    plain, x = kind(), X.clone().requires_grad_()
    y = ForwardOnly(kind())(x)
    assert torch.equal(y, plain(X)) or torch.equal(y.isnan(), plain(X).isnan())  # tanhshrink of infinity is none
    assert torch.equal(torch.autograd.grad(y[:-2].sum(), x)[0][:-2], torch.ones(len(X) - 2))


@pytest.mark.parametrize("kind", MONOTONE, ids=lambda k: k.__name__)
def test_what_is_called_monotone_never_falls(kind):
    y = kind()(torch.linspace(-9, 9, 20001, dtype=torch.float64))
    assert bool((y.diff() >= -1e-12).all())


def test_a_falling_function_gets_a_slope_of_minus_one():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = ForwardOnly(lambda r: -torch.sign(r), slope=-1.0)(x)
    assert torch.equal(y.detach(), -torch.sign(x.detach()))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], -torch.ones(50))


def test_in_place_activations_do_not_write_into_their_input():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    hidden = x * 1
    ForwardOnly(nn.ReLU(inplace=True))(hidden)
    assert hidden.tolist() == [-1.0, 2.0]


def test_an_activation_that_changes_the_shape_is_refused():
    with pytest.raises(Usage, match="keep the shape"):
        ForwardOnly(lambda r: r.sum())(X)


def test_the_update_of_one_layer_against_its_formula():
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 3, generator=random, dtype=torch.float64), torch.randn(40, 1, generator=random, dtype=torch.float64)
    layer = nn.Linear(3, 1).double()
    loss = (ForwardOnly(torch.floor)(layer(x)) - y).square().mean() / 2
    found = torch.autograd.grad(loss, layer.weight)[0][0]
    slow = sum((torch.floor(layer.weight[0] @ a + layer.bias) - b) * a for a, b in zip(x, y, strict=True)) / 40
    torch.testing.assert_close(found, slow.detach())


def net():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.GELU())
    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), inner, nn.Linear(4, 1), nn.Tanh())


def test_a_whole_model_is_wrapped_and_unwrapped():
    model, x = net(), torch.randn(5, 3)
    before, names = model(x).detach(), [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    assert wrap_activations(model) == ["1", "4", "2.1"]
    assert torch.equal(model(x).detach(), before)
    assert list(model.state_dict()) == keys
    assert wrap_activations(model) == []
    # By hand: through the Sigmoid, the ReLU and the Tanh the gradient passes unchanged; GELU is not monotone and keeps its own.
    parts = copy.deepcopy(model)
    hidden = torch.sigmoid(parts[0](x))
    straight = straight_through(hidden, parts[0](x))
    middle = parts[2][0](straight)
    out = parts[3](nn.functional.gelu(straight_through(middle.relu(), middle)))
    expected = torch.autograd.grad(out.sum(), parts[0].weight)[0]
    torch.testing.assert_close(torch.autograd.grad(model(x).sum(), model[0].weight)[0], expected)
    assert unwrap_activations(model) == ["1", "4", "2.1"]
    assert [type(m) for m in model.modules()] == names


def test_a_shared_activation_is_wrapped_everywhere():
    shared = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared)
    wrap_activations(model)
    x = torch.full((1, 2), 50.0)  # far into saturation
    model(x).sum().backward()
    assert model[0].weight.grad.norm() > 1
    assert isinstance(model[1], ForwardOnly)
    assert isinstance(model[3], ForwardOnly)


def test_a_model_that_is_itself_an_activation_cannot_be_wrapped_inside():
    with pytest.raises(Usage, match="ForwardOnly"):
        wrap_activations(nn.Sigmoid())


def test_the_context_agrees_with_the_wrapper():
    for function in (torch.floor, torch.sign, torch.round):
        x = X[:-2].clone().requires_grad_()
        with ForwardOnlyPass():
            inside = function(x)
        wrapped = ForwardOnly(function)(x)
        assert torch.equal(inside, wrapped)
        assert torch.equal(torch.autograd.grad(inside.sum(), x)[0], torch.autograd.grad(wrapped.sum(), x)[0])
