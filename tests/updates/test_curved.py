"""Newton, damped and saddle-free Newton, line search, preconditioned and forward-only steps."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.loop import advance
from gradoscope.training import Live, Training
from gradoscope.updates import (
    DampedNewton,
    ForwardOnlySGD,
    LineSearch,
    Newton,
    Preconditioned,
    SaddleFreeNewton,
    lecture,
    whitened_groups,
)
from gradoscope.updates.searched import backtrack
from tests.updates.cases import MONKEY_MINIMUM, monkey, saddle


def travel(make, function, *, steps=60, backward=False, start=(0.4, 1e-3)):
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = make([x])

    def closure():
        optimizer.zero_grad()
        loss = function(x)
        if backward:
            loss.backward()
        return loss

    losses = [float(torch.as_tensor(optimizer.step(closure)).detach()) for _ in range(steps)]
    return x.detach(), losses


def slope_norm(function, x):
    x = x.clone().requires_grad_()
    return float(torch.autograd.grad(function(x), x)[0].norm())


@pytest.mark.parametrize("backward", [False, True])
def test_newton_goes_to_the_saddle_and_saddle_free_newton_to_the_minimum(backward):
    x, _ = travel(lambda p: Newton(p, radius=0.5), saddle, backward=backward)
    assert abs(float(saddle(x))) < 1e-15
    assert slope_norm(saddle, x) < 1e-8
    for make in (
        lambda p: SaddleFreeNewton(p, radius=0.5),
        lambda p: SaddleFreeNewton(p, radius=0.5, dampings=(0.0,)),
        lambda p: DampedNewton(p, radius=0.5),
    ):
        x, _ = travel(make, saddle, backward=backward)
        assert abs(float(saddle(x)) + 1) < 1e-4
        assert abs(abs(float(x[1])) - math.sqrt(2)) < 1e-4
    x, _ = travel(lambda p: lecture.GD(p, lr=0.05), saddle, backward=True)
    assert abs(float(x[1]) - 0.30) < 0.01  # on its way, and slow


def test_the_monkey_saddle():
    x, _ = travel(lambda p: Newton(p, radius=0.5), monkey)
    assert abs(float(monkey(x))) < 1e-12
    x, losses = travel(lambda p: SaddleFreeNewton(p, radius=0.5), monkey)
    assert abs(float(monkey(x)) - MONKEY_MINIMUM) < 1e-3
    assert all(a >= b for a, b in pairwise(losses))


def quadratic(seed=0, dim=12):
    random = np.random.default_rng(seed)
    q, _ = np.linalg.qr(random.normal(size=(dim, dim)))
    values = np.array([-2.0, -0.5, *np.linspace(0.2, 5, dim - 2)])
    h = torch.from_numpy(q @ np.diag(values) @ q.T)
    return h, q, values, torch.from_numpy(random.normal(size=dim))


@pytest.mark.parametrize("exact", [100, 0], ids=["whole Hessian", "Krylov space"])
def test_each_step_is_its_formula(exact):
    h, q, values, start = quadratic()
    g = h @ start
    for make, curvature in (
        (lambda p: Newton(p, exact=exact), values),
        (lambda p: DampedNewton(p, damping=0.3, exact=exact), values + 2.0 + 0.3),
        (lambda p: SaddleFreeNewton(p, dampings=(0.0,), exact=exact), np.abs(values)),
        (lambda p: SaddleFreeNewton(p, dampings=(0.25,), lr=0.5, exact=exact), 2 * (np.abs(values) + 0.25)),
    ):
        x = start.clone().requires_grad_()
        make([x]).step(lambda x=x: 0.5 * x @ h @ x)
        expected = start - torch.from_numpy(q @ np.diag(1 / curvature) @ q.T) @ g
        assert torch.allclose(x.detach(), expected, rtol=0, atol=1e-9)


def test_a_small_krylov_space_stays_inside_and_falls():
    h, _, _, start = quadratic(dim=40)
    x = start.clone().requires_grad_()
    optimizer = SaddleFreeNewton([x], exact=0, products=3)
    before = float(0.5 * start @ h @ start)
    optimizer.step(lambda: 0.5 * x @ h @ x)
    assert float(0.5 * x @ h @ x) < before
    g = h @ start
    space = torch.stack([g, h @ g, h @ h @ g], 1)
    step = x.detach() - start
    inside = space @ torch.linalg.lstsq(space, step[:, None]).solution[:, 0]
    assert torch.allclose(inside, step, atol=1e-8)


def test_the_damping_is_the_one_that_lowers_the_loss_most():
    x = torch.tensor([3.0, 0.02], dtype=torch.float64, requires_grad=True)
    rosenbrock = lambda v: (1 - v[0]) ** 2 + 100 * (v[1] - v[0] ** 2) ** 2  # noqa: E731
    start, tried = x.detach().clone(), {}
    for damping in (100.0, 1.0, 1e-3):
        with torch.no_grad():
            x.copy_(start)
        SaddleFreeNewton([x], dampings=(damping,)).step(lambda: rosenbrock(x))
        tried[damping] = float(rosenbrock(x))
    with torch.no_grad():
        x.copy_(start)
    optimizer = SaddleFreeNewton([x], dampings=tuple(tried))
    optimizer.step(lambda: rosenbrock(x))
    assert math.isclose(float(rosenbrock(x)), min(tried.values()))
    assert optimizer.state[x]["damping"] == min(tried, key=tried.get)


@pytest.mark.parametrize("rule", [Newton, DampedNewton, SaddleFreeNewton, LineSearch])
def test_networks_closures_states_and_gradients_that_are_none(rule):
    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1)).double()
        model.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
        return model, rule([*model.parameters()])

    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    losses = []

    def steps(model, optimizer, n, backward=False):
        def closure():
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            if backward:
                optimizer.zero_grad()
                loss.backward()
            return loss

        losses.extend(optimizer.step(closure) for _ in range(n))

    stream = torch.random.get_rng_state()
    (one, first), (two, second) = made(), made()
    steps(one, first, 3)
    with torch.no_grad():
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            b.copy_(a)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(one, first, 3)
    steps(two, second, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.idle.tolist() == [1.0, 1.0]
    torch.random.set_rng_state(stream)
    assert all(math.isfinite(loss) for loss in losses)
    steps(one, first, 1, backward=True)
    assert all(bool(p.isfinite().all()) for p in one.parameters())


@pytest.mark.parametrize("rule", [DampedNewton, SaddleFreeNewton, LineSearch])
def test_in_a_training_of_gradoscope(rule):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    training = Training(
        model=lambda: nn.Linear(3, 1).double(),
        optimizer=lambda p: rule(p),
        loss_fn=nn.functional.mse_loss,
        data=(x, x.sum(1, keepdim=True)),
        batch_size=40,
        steps=20,
    )
    with Live.of(training) as live:
        losses = []
        for i in range(15):
            advance(live, i, 1)
            with torch.no_grad():
                losses.append(float((live.model(x) - x.sum(1, keepdim=True)).square().mean()))
        assert losses[-1] < 0.1 * losses[0]


BAD = [
    (Newton, {"lr": -1.0}, "lr"),
    (Newton, {"radius": 0.0}, "radius"),
    (Newton, {"products": 0}, "products"),
    (DampedNewton, {"damping": 0.0}, "damping"),
    (SaddleFreeNewton, {"dampings": ()}, "dampings"),
    (SaddleFreeNewton, {"dampings": (1.0, -1.0)}, "damping"),
    (LineSearch, {"lr": 0.0}, "lr"),
    (LineSearch, {"growth": 0.5}, "growth"),
    (Preconditioned, {"lr": -1.0}, "lr"),
    (ForwardOnlySGD, {"lr": math.nan}, "lr"),
]


@pytest.mark.parametrize(("rule", "h", "name"), BAD, ids=str)
def test_bad_hyperparameters(rule, h, name):
    with pytest.raises(ValueError, match=f"{name} must"):
        rule([torch.zeros(1, requires_grad=True)], **h)


@pytest.mark.parametrize("rule", [Newton, DampedNewton, SaddleFreeNewton, LineSearch])
def test_what_moves_as_one_takes_one_group_of_real_parameters(rule):
    x, y = (torch.zeros(1, requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError, match="one group"):
        rule([{"params": [x]}, {"params": [y]}])
    with pytest.raises(ValueError, match="real parameters"):
        rule([torch.zeros(1, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(TypeError, match="closure"):
        rule([x]).step()
    with pytest.raises(TypeError, match="must return the loss"):
        rule([x]).step(lambda: None)


def test_a_line_search_never_climbs_and_needs_no_rate():
    x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = LineSearch([x], lr=1e6)
    losses = [float(optimizer.step(lambda: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)) for _ in range(200)]
    assert all(a >= b for a, b in pairwise(losses))
    assert losses[-1] < 2 < losses[0]
    before = x.detach().clone()
    optimizer.step(lambda: x.sum() * float("nan"))
    assert torch.equal(x.detach(), before)
    assert backtrack(lambda t: math.nan, before, before, 1.0, -1.0, 1.0) == 0.0
    assert backtrack(lambda t: 0.0, before, before, 1.0, 0.5, 1.0) == 0.0  # uphill


# --- Preconditioned --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
def test_whitened_groups_step_as_gradient_descent_on_whitened_inputs(bias, convolution):
    """Against `remedies.whiten`, which trains the whitened weights themselves."""
    from gradoscope.remedies.whiten import whiten_inputs

    def made():
        torch.manual_seed(0)
        first = nn.Conv1d(1, 3, 4, bias=bias) if convolution else nn.Linear(8, 3, bias=bias)
        return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(15 if convolution else 3, 1)).double()

    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)).double().cumsum(1) + 0.5
    y = x[:, :1] - x[:, 3:4] + 0.1
    x = x[:, None] if convolution else x
    one, two = made(), made()
    optimizer = Preconditioned(whitened_groups(one, x), lr=0.05)
    assert len(optimizer.param_groups) == 2
    whitened = whiten_inputs(two, x)
    plain = torch.optim.SGD(two.parameters(), lr=0.05)
    for model, stepper in ((one, optimizer), (two, plain)):
        for _ in range(20):
            stepper.zero_grad()
            (model(x) - y).square().mean().backward()
            stepper.step()
    whitened.fold()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_preconditioned_by_the_inverse_hessian_is_newton():
    h, _, _, start = quadratic()
    h = h @ h
    x = start[None].clone().requires_grad_()
    optimizer = Preconditioned([{"params": [x], "preconditioner": torch.linalg.inv(h)}], lr=1.0)
    (0.5 * x @ h @ x.T).sum().backward()
    twin = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    assert float(x.abs().max()) < 1e-9
    assert torch.equal(twin["param_groups"][0]["preconditioner"], torch.linalg.inv(h))


def test_a_preconditioner_must_fit():
    w, b = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    Preconditioned([{"params": [w, b], "preconditioner": torch.eye(4)}], lr=0.1)
    for params, m in (([w, b], 3), ([w, torch.zeros(3, requires_grad=True)], 4), ([torch.zeros((), requires_grad=True)], 1)):
        with pytest.raises(ValueError, match="Preconditioned:"):
            Preconditioned([{"params": params, "preconditioner": torch.eye(m)}], lr=0.1)
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match="no linear or convolutional layer sees the data"):
        whitened_groups(model, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="called"):
        whitened_groups(model, torch.tensor([0, 1]), layers=["2"])
    assert len(whitened_groups(model, torch.tensor([0, 1, 2]), layers=["1"])) == 2  # a deeper layer, when it is named


def test_parts_without_a_gradient_stay():
    w, b, idle = torch.ones(2, 3, requires_grad=True), torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = Preconditioned([{"params": [w, b], "preconditioner": torch.eye(4)}, {"params": [idle]}], lr=0.5)
    w.sum().backward()
    assert optimizer.step(lambda: 3.0) == 3.0
    assert (w == 0.5).all()
    assert b.tolist() == idle.tolist() == [1.0, 1.0]


# --- Forward-only ----------------------------------------------------------------------------------------------------------


def test_forward_only_learns_a_staircase_on_which_the_gradient_is_zero():
    random = torch.Generator().manual_seed(0)
    x, target = torch.randn(400, 5, generator=random), torch.randn(5, generator=random)
    y = torch.floor(3 * x @ target)

    def error(rule):
        w = torch.zeros(5, requires_grad=True)
        optimizer = rule([w])

        def closure():
            optimizer.zero_grad()
            loss = (torch.floor(3 * x @ w) - y).square().mean() / 2
            if loss.requires_grad:
                loss.backward()
            return loss

        found = [float(optimizer.step(closure).detach()) for _ in range(300)]
        # the update E[(u(w'x) - y) x u'] with u' = 1, written out, for the first step from zero
        return found, w.detach()

    found, w = error(lambda p: ForwardOnlySGD(p, lr=0.02))
    assert found[-1] < 0.1 * found[0]
    assert torch.nn.functional.cosine_similarity(w, target, dim=0) > 0.99
    found, w = error(lambda p: lecture.SGD(p, lr=0.02))
    assert found[-1] == found[0]
    assert not w.any()
    w = torch.zeros(5, requires_grad=True)
    optimizer = ForwardOnlySGD([w], lr=0.02)

    def closure():
        loss = (torch.floor(x @ w) - y).square().mean() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(w.detach(), -0.02 * ((torch.floor(0 * y) - y)[:, None] * x).mean(0), atol=1e-6)
