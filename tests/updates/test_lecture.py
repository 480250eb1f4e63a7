"""The lecture's rules against its formulas written out, against PyTorch's, and as optimizers that a training can use."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.loop import advance
from gradoscope.state import State
from gradoscope.training import Live, Training
from gradoscope.updates import lecture
from tests.updates.cases import START, STEPS, by_hand, loss_of, trajectory

TOLERANCE = 1e-14
RULES = {
    "sgd": (lecture.SGD, {"lr": 0.1}),
    "momentum": (lecture.Momentum, {"lr": 0.1, "alpha": 0.9}),
    "nesterov-a": (lecture.NesterovA, {"lr": 0.03, "alpha": 0.9}),
    "nesterov-b": (lecture.NesterovB, {"lr": 0.2, "alpha": 0.9}),
    "adagrad": (lecture.AdaGrad, {"lr": 0.5, "delta": 1e-3}),
    "rmsprop": (lecture.RMSProp, {"lr": 0.01, "rho": 0.9, "delta": 1e-3}),
    "adam": (lecture.Adam, {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}),
}


def worst(a, b):
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("name", RULES)
def test_sixty_steps_are_those_of_the_formula(name):
    rule, h = RULES[name]
    found = trajectory(lambda p: rule(p, **h))
    assert worst(found, by_hand(name, **h)) <= TOLERANCE
    assert np.abs(found[-1] - found[0]).max() > 0.1


def test_gd_and_sgd_are_one_rule():
    assert np.array_equal(trajectory(lambda p: lecture.GD(p, lr=0.1)), trajectory(lambda p: lecture.SGD(p, lr=0.1)))
    assert worst(trajectory(lambda p: torch.optim.SGD(p, lr=0.1)), by_hand("sgd", lr=0.1)) <= TOLERANCE


def test_momentum_is_torchs_with_a_rate_that_changes():
    eta, alpha = 0.1, 0.9

    def rate(optimizer, t):
        optimizer.param_groups[0]["lr"] = eta * (1 - alpha) / (1 - alpha**t)

    own = by_hand("momentum", lr=eta, alpha=alpha)
    assert worst(trajectory(lambda p: torch.optim.SGD(p, lr=eta, momentum=alpha), before_step=rate), own) <= TOLERANCE
    constant = trajectory(lambda p: torch.optim.SGD(p, lr=eta * (1 - alpha), momentum=alpha))
    assert np.allclose((own[1] - own[0]) / (constant[1] - constant[0]), 10, rtol=1e-12)  # its first step is ten times as long
    assert worst(constant, own) > 0.05


def test_momentum_agrees_with_a_constant_rate_only_after_many_steps():
    """On a constant gradient the steps themselves are compared: 1 - alpha^t apart."""
    x, y = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    own, theirs = lecture.Momentum([x], lr=0.1), torch.optim.SGD([y], lr=0.1 * 0.1, momentum=0.9)
    for t in range(1, 200):
        a, b = x.item(), y.item()
        x.grad = y.grad = torch.ones(1, dtype=torch.float64)
        own.step()
        theirs.step()
        assert math.isclose((y.item() - b) / (x.item() - a), 1 - 0.9**t, rel_tol=1e-9)


def test_torchs_nesterov_holds_the_point_of_the_look_ahead():
    x = START.clone().requires_grad_()
    optimizer = lecture.NesterovA([x], lr=0.03, alpha=0.9)
    theirs = trajectory(lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True))
    logged = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        return loss

    for t in range(STEPS):
        logged.append(float(optimizer.step(closure).detach()))
        ahead = (x + 0.9 * optimizer.state[x]["v"]).detach().numpy()
        assert worst(theirs[t + 1], ahead) <= TOLERANCE
        # and so the loss that torch logs is the one there
        assert math.isclose(logged[t], float(loss_of(torch.from_numpy(theirs[t]))), abs_tol=1e-13)


def test_the_two_readings_of_nesterov_differ_and_meet():
    eta, alpha = 0.2, 0.9
    a, b = by_hand("nesterov-a", lr=eta * (1 - alpha), alpha=alpha), by_hand("nesterov-b", lr=eta, alpha=alpha)
    assert worst(a, b) > 0.1
    # without a bias to correct they are one rule
    m_only = by_hand("nesterov-a", lr=eta, alpha=0.0), by_hand("nesterov-b", lr=eta, alpha=0.0), by_hand("sgd", lr=eta)
    assert worst(m_only[0], m_only[2]) <= TOLERANCE
    assert worst(m_only[1], m_only[2]) <= TOLERANCE


def test_adagrad_has_the_square_root_as_torchs_has():
    h = {"lr": 0.5, "delta": 1e-3}
    theirs = trajectory(lambda p: torch.optim.Adagrad(p, lr=0.5, lr_decay=0, initial_accumulator_value=0, eps=1e-3))
    assert worst(theirs, by_hand("adagrad", **h)) <= TOLERANCE


def test_rmsprop_is_torchs_at_another_rate():
    eta, rho, delta = 0.01, 0.9, 1e-3  # at larger rates it jumps about the minimum, and rounding grows
    own = by_hand("rmsprop", lr=eta, rho=rho, delta=delta)
    factor = math.sqrt(1 - rho)
    assert worst(trajectory(lambda p: torch.optim.RMSprop(p, lr=eta * factor, alpha=rho, eps=delta * factor)), own) <= TOLERANCE
    assert worst(trajectory(lambda p: torch.optim.RMSprop(p, lr=eta, alpha=rho, eps=delta)), own) > 0.1


def test_adam_with_minus_is_torchs_and_with_plus_climbs():
    own = by_hand("adam", lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8)
    assert worst(trajectory(lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.999), eps=1e-8)), own) <= TOLERANCE
    plus = by_hand("adam", lr=-0.1, beta1=0.9, beta2=0.999, eps=1e-8)
    assert loss_of(torch.from_numpy(plus[-1])) > loss_of(torch.from_numpy(plus[0])) > loss_of(torch.from_numpy(own[-1]))
    assert np.linalg.norm(plus[-1]) > 3 * np.linalg.norm(plus[0])


# --- As optimizers ---------------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def make(name, model, **more):
    rule, h = RULES[name]
    own = {**h, "lr": h["lr"] / 2}
    return rule([{"params": model[0].parameters()}, {"params": model[2].parameters(), **own}], **h, **more)


def run(model, optimizer, steps):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("more", [{}, {"max_norm": 0.5}])
def test_a_saved_state_goes_on_to_the_bit(name, more):
    model = network()
    optimizer = make(name, model, **more)
    run(model, optimizer, 5)
    twin = copy.deepcopy(model)
    other = make(name, twin, **more)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for a, b in zip(run(model, optimizer, 5), run(twin, other, 5), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", RULES)
def test_in_a_training_that_is_captured_and_restored(name):
    """Gradoscope's own loop, which looks for closures and restores states, and a learning rate per group."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    training = Training(
        model=lambda: nn.Linear(3, 1),
        optimizer=lambda p: RULES[name][0](p, **RULES[name][1]),
        loss_fn=nn.functional.mse_loss,
        data=(x, x.sum(1, keepdim=True)),
        batch_size=8,
        steps=20,
    )
    with Live.of(training) as live:
        advance(live, 0, 10)
        kept = State.capture(live, 10)
        advance(live, 10, 10)
        first = [p.detach().clone() for p in live.model.parameters()]
        kept.restore(live)
        advance(live, 10, 10)
        assert all(torch.equal(a, b) for a, b in zip(first, live.model.parameters(), strict=True))


@pytest.mark.parametrize("name", RULES)
def test_parameters_without_a_gradient_stay(name):
    rule, h = RULES[name]
    x, idle = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = rule([x, idle], **h)

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert idle.tolist() == [1.0, 1.0]
    assert x.tolist() != [1.0, 1.0]
    assert not optimizer.state.get(idle)


@pytest.mark.parametrize("name", RULES)
def test_sparse_gradients_count_as_the_dense_ones_they_stand_for(name):
    rule, h = RULES[name]
    found = []
    for sparse in (False, True):
        torch.manual_seed(1)
        table = nn.Embedding(6, 2, sparse=sparse).double()
        optimizer = rule(table.parameters(), **h)

        def closure(table=table, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (table(torch.tensor([1, 4, 1])) - 1).square().sum()  # a row twice: its gradients add up
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        found.append(table.weight.detach())
    assert torch.allclose(*found, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", RULES)
def test_a_complex_parameter_is_a_pair_of_real_ones(name):
    rule, h = RULES[name]
    z = torch.tensor([1 + 2j, -0.5 + 0.3j], dtype=torch.complex128, requires_grad=True)
    pair = torch.view_as_real(z.detach()).clone().requires_grad_()
    for p, whole in ((z, lambda: (z * (2 - 1j)).abs().square().sum()), (pair, lambda: 5 * pair.square().sum())):
        optimizer = rule([p], **h)

        def closure(optimizer=optimizer, whole=whole):
            optimizer.zero_grad()
            loss = whole()
            loss.backward()
            return loss

        for _ in range(8):
            optimizer.step(closure)
    assert torch.allclose(torch.view_as_real(z.detach()), pair.detach(), rtol=0, atol=1e-13)


BAD = [
    *(("sgd", {"lr": lr}) for lr in (-0.1, math.nan, math.inf, "1", None, True)),
    *((n, {"lr": 0.1, "alpha": a}) for n in ("momentum", "nesterov-a", "nesterov-b") for a in (-0.1, 1.0, 2, None)),
    *(("adagrad", {"lr": 0.1, "delta": d}) for d in (0.0, -1e-3)),
    *(("rmsprop", {"lr": 0.1, "rho": r}) for r in (1.0, -0.5)),
    *(("adam", {"lr": 0.1, k: v}) for k, v in (("beta1", 1.0), ("beta2", -0.1), ("eps", 0.0))),
    *(("sgd", {"lr": 0.1, "max_norm": c}) for c in (0.0, -1.0, math.inf)),
]


@pytest.mark.parametrize(("name", "h"), BAD, ids=str)
def test_bad_hyperparameters_are_refused_by_name(name, h):
    wrong = [k for k in h if k != "lr"] or ["lr"]
    with pytest.raises(ValueError, match=rf"{RULES[name][0].__name__}: {wrong[0]} must be "):
        RULES[name][0]([torch.zeros(1, requires_grad=True)], **h)
    good = {k: v for k, v in RULES[name][1].items() if k in h or k == "lr"}
    with pytest.raises(ValueError, match=f"{wrong[0]} must be "):  # in a group of its own as well
        RULES[name][0]([{"params": [torch.zeros(1, requires_grad=True)], **h}], **good)


def test_a_look_ahead_without_a_closure_is_an_error():
    with pytest.raises(TypeError, match="closure"):
        lecture.NesterovA([torch.zeros(1, requires_grad=True)], lr=0.1).step()


def test_a_closure_that_fails_leaves_the_parameters_where_they_stood():
    x = START.clone().requires_grad_()
    optimizer = lecture.NesterovB([x], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    before = x.detach().clone()
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert torch.equal(x.detach(), before)


# --- Clipping --------------------------------------------------------------------------------------------------------------


def deep(clip, steps):
    """Half (w^5 - 1)^2 from w = 2 at rate 0.02, section 6.4."""
    w = torch.tensor([2.0], requires_grad=True)
    optimizer = lecture.GD([w], lr=0.02, max_norm=clip)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = 0.5 * (w**5 - 1).square().sum()
        loss.backward()
        optimizer.step()
        found.append(w.item())
    return found


def test_clipping_saves_the_product_of_five_weights():
    assert not math.isfinite(deep(None, 4)[3])
    assert abs(deep(None, 2)[1]) > 1e10
    found = deep(1.0, 400)
    assert abs(found[-1] - 1) < 1e-6
    assert max(abs(a - b) for a, b in pairwise(found)) <= 0.02 * (1 + 1e-6)


def test_clipping_bounds_the_norm_over_all_groups():
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(2, 2, requires_grad=True)]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 3.0), torch.full((2, 2), -4.0)
    norm = math.sqrt(27 + 64)
    optimizer = lecture.SGD([{"params": [p]} for p in parameters], lr=1.0, max_norm=2.0)
    optimizer.step()
    assert torch.allclose(parameters[0], torch.full((3,), -3.0 * 2 / norm))
    assert torch.allclose(parameters[1], torch.full((2, 2), 4.0 * 2 / norm))
    assert parameters[0].grad.tolist() == [3.0, 3.0, 3.0]  # the gradients themselves are left
    with pytest.raises(ValueError, match="must be the same in each"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "max_norm": 1.0})
