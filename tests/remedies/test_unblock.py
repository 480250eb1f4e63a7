"""Forward-only: the forward pass is the same, and the derivative of what is flat is one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradoscope.guard import private_random
from gradoscope.loop import advance
from gradoscope.remedies.unblock import Unblock, blocking_modules
from gradoscope.training import Live
from tests.reference.training import data, everything, same
from tests.remedies.nets import prepared, training

VALUES = torch.tensor([-3.7, -1.5, -0.5, 0.0, 0.4, 2.5, 6.5, float("inf"), -float("inf")])
FLAT = {
    "torch.sign": torch.sign,
    "Tensor.sign": lambda x: x.sign(),
    "torch.floor": torch.floor,
    "torch.ceil": torch.ceil,
    "torch.round": torch.round,
    "round to decimals": lambda x: torch.round(x, decimals=1),
    "torch.trunc": torch.trunc,
    "Tensor.floor": lambda x: x.floor(),
    "in place": lambda x: x.clone().sign_(),
    "torch.floor_": lambda x: torch.floor_(x * 1),
}
SATURATING = {
    "sigmoid": torch.sigmoid,
    "F.sigmoid": F.sigmoid,
    "nn.Sigmoid": nn.Sigmoid(),
    "tanh": torch.tanh,
    "nn.Tanh": nn.Tanh(),
    "relu": F.relu,
    "nn.ReLU": nn.ReLU(),
    "relu in place": lambda x: nn.ReLU(inplace=True)(x * 1),
    "relu_": lambda x: (x * 1).relu_(),
    "F.relu_": lambda x: F.relu_(x * 1),
    "nn.Hardtanh": nn.Hardtanh(),
    "hardtanh in place": lambda x: nn.Hardtanh(inplace=True)(x * 1),
    "nn.ReLU6": nn.ReLU6(),
    "nn.Hardsigmoid": nn.Hardsigmoid(),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp by name": lambda x: torch.clamp(x, min=-1, max=1),
}


def value_and_slope(function, remedy=None):
    x = VALUES.clone().requires_grad_()
    if remedy is None:
        out = function(x)
    else:
        with remedy.forward_context():
            out = function(x)
    slope = torch.autograd.grad(out.sum(), x)[0] if out.requires_grad else torch.zeros_like(x)
    return out.detach(), slope


@pytest.mark.parametrize("name", [*FLAT, *SATURATING])
def test_the_value_is_the_same_and_the_slope_is_one(name):
    function = FLAT.get(name) or SATURATING[name]
    value, slope = value_and_slope(function)
    for saturating in (False, True):
        same_value, new = value_and_slope(function, Unblock(saturating=saturating))
        assert torch.equal(same_value, value)
        finite = VALUES.isfinite()
        if name in FLAT or saturating:
            assert torch.equal(new[finite], torch.ones(int(finite.sum())))
        else:
            assert torch.equal(new[finite], slope[finite])
    if name in FLAT:
        assert not slope[VALUES.isfinite()].any()


def test_what_an_in_place_function_writes_is_seen_by_others():
    def residual(x):
        h = x * 2
        y = nn.ReLU(inplace=True)(h)
        return y + h  # h was written to

    assert torch.equal(value_and_slope(residual)[0], value_and_slope(residual, Unblock(saturating=True))[0])
    assert torch.equal(value_and_slope(residual, Unblock(saturating=True))[1][:7], torch.full((7,), 4.0))


def test_smooth_functions_and_constants_are_left_alone():
    for function in (torch.exp, torch.sin, F.softplus, F.gelu, lambda x: x**2, lambda x: x.max(0).values.reshape(1)):
        for a, b in zip(value_and_slope(function), value_and_slope(function, Unblock(saturating=True)), strict=True):
            assert torch.equal(a, b) or torch.equal(a.isnan(), b.isnan())
    with Unblock().forward_context():
        assert not torch.sign(torch.ones(2)).requires_grad
    x = torch.ones(2, requires_grad=True)
    assert not torch.sign(x).sum().grad_fn.next_functions[0][0].name().startswith("Add")  # afterwards all is as before


class Staircase(nn.Module):
    """Flat steps of the user's own making, by comparisons, through which no gradient passes."""

    def forward(self, x):
        return (x > 0).float() + (x > 1).float()


class Detaching(nn.Module):
    def forward(self, x):
        return x.detach() * 2


def net():
    with private_random(3):
        inner = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.0), Detaching(), nn.ReLU(), nn.Identity(), nn.Linear(6, 3))
        return nn.Sequential(nn.Linear(4, 6), Staircase(), *inner)


def test_modules_that_pass_no_gradient_are_found_and_passed():
    recipe = training(model=net)
    plain = prepared(recipe)
    assert [type(m) for m in blocking_modules(plain)] == [Staircase, Detaching]
    x, y = data()
    loss = F.cross_entropy(plain.model(x), y)
    loss.backward()
    assert plain.model[0].weight.grad is None
    live = prepared(recipe, Unblock())
    with live.training.changes[0].forward_context():
        through = F.cross_entropy(live.model(x), y)
    assert through.item() == loss.item()
    through.backward()
    # The same net with the identity on the way back, by hand.
    hidden = x @ live.model[0].weight.T + live.model[0].bias
    steps = Staircase()(hidden).detach() + hidden - hidden.detach()
    inner = live.model[2](steps)
    output = live.model[7]((2 * inner.detach() + inner - inner.detach()).relu())
    expected = torch.autograd.grad(F.cross_entropy(output, y), live.model[0].weight)[0]
    assert torch.allclose(live.model[0].weight.grad, expected, atol=1e-7)
    assert expected.norm() > 1e-3


def test_finding_them_changes_nothing():
    live = prepared(training(model=lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), Staircase(), nn.Linear(6, 3))))
    before = everything(live.model)
    blocking_modules(live)
    same(before, everything(live.model))


def test_hooks_go_away_from_a_model_that_was_handed_in():
    model = net()
    model.cache = model[0](data()[0])  # so it cannot be copied
    before = everything(model)
    recipe = Unblock()(training(model=model))
    with Live.of(recipe) as live:
        assert live.model is model
        recipe.changes[0].prepare(live)
        advance(live, 0, 2)
        assert everything(model)["hooks"] != before["hooks"]
    same(before, everything(model))


def test_a_training_through_steps_comes_down():
    x = torch.linspace(-1, 1, 64).reshape(-1, 1)
    y = (4 * x).floor() / 4

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x):
            return torch.floor(4 * self.layer(x)) / 4

    recipe = training(model=Steps, data=(x, y), loss_fn=F.mse_loss, batch_size=None, optimizer=lambda p: torch.optim.SGD(p, 0.05))
    losses = {}
    for remedies in ((), (Unblock(),)):
        live = prepared(recipe, *remedies)
        seen = losses.setdefault(len(remedies), [])
        advance(live, 0, 200, [lambda _l, _i, loss, seen=seen: seen.append(loss)])
    assert losses[0][-1] == losses[0][0] == losses[1][0]  # the gradient is zero
    assert losses[1][-1] < 0.05 * losses[1][0]
