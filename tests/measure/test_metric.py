"""The metric of optimizers, against what they do: each step as predicted, each stability limit by running them."""

import math

import pytest
import torch
from torch import nn

from gradoscope.measure.metric import preconditioner, relative_stability, stability_limit
from gradoscope.objective import Objective

D = torch.float64


def parameters(n=5):
    p = nn.Parameter(torch.linspace(-1, 2, n, dtype=D))
    return p, [("p", p)]


MEMORYLESS = {
    "sgd": lambda p: torch.optim.SGD([p], lr=0.3),
    "asgd": lambda p: torch.optim.ASGD([p], lr=0.3, lambd=0.0),
    "adam": lambda p: torch.optim.Adam([p], lr=0.01, betas=(0.0, 0.95), eps=1e-3),
    "amsgrad": lambda p: torch.optim.Adam([p], lr=0.01, betas=(0.0, 0.95), eps=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW([p], lr=0.01, betas=(0.0, 0.95), weight_decay=0.0),
    "radam": lambda p: torch.optim.RAdam([p], lr=0.01, betas=(0.0, 0.95)),
    "adamax": lambda p: torch.optim.Adamax([p], lr=0.01, betas=(0.0, 0.95)),
    "rmsprop": lambda p: torch.optim.RMSprop([p], lr=0.01, alpha=0.9),
    "centered": lambda p: torch.optim.RMSprop([p], lr=0.01, alpha=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad([p], lr=0.1, lr_decay=0.1, initial_accumulator_value=0.2),
    "adadelta": lambda p: torch.optim.Adadelta([p], lr=1.0, eps=1e-3),
}


@pytest.mark.parametrize("name", MEMORYLESS)
def test_every_step_is_minus_s_times_g(name):
    p, named = parameters()
    optimizer = MEMORYLESS[name](p)
    g = torch.Generator().manual_seed(0)
    for step in range(12):
        gradient = torch.randn(5, generator=g, dtype=D)
        first = preconditioner(optimizer, named, gradient=gradient) if step == 0 else None
        before, p.grad = p.detach().clone(), gradient.clone()
        old = {k: v.clone() for k, v in optimizer.state[p].items() if k == "acc_delta"}
        optimizer.step()
        moved = p.detach() - before
        if first is not None:
            torch.testing.assert_close(moved, -first * gradient, rtol=1e-7, atol=1e-12, msg=f"first step of {name}")
        if name == "adadelta":  # its step used the average before the step
            if step == 0:
                continue
            optimizer.state[p]["acc_delta"], new = old["acc_delta"], optimizer.state[p]["acc_delta"]
        scale = preconditioner(optimizer, named)
        assert scale is not None
        torch.testing.assert_close(moved, -scale * gradient, rtol=1e-7, atol=1e-12)
        if name == "adadelta":
            optimizer.state[p]["acc_delta"] = new


FROZEN = 1 - 1e-10  # an average that does not move within a test


def frozen_state(optimizer, p):
    """As after very many steps with the same squared gradients, so that the metric stays what it is."""
    c = torch.tensor([0.5, 2.0], dtype=D)
    step = torch.tensor(1e12, dtype=D)
    zero = torch.zeros(2, dtype=D)
    kind = type(optimizer).__name__
    state = {
        "Adam": {"step": step, "exp_avg": zero, "exp_avg_sq": c},
        "AdamW": {"step": step, "exp_avg": zero, "exp_avg_sq": c},
        "NAdam": {"step": step, "exp_avg": zero, "exp_avg_sq": c, "mu_product": torch.zeros((), dtype=D)},
        "RAdam": {"step": step, "exp_avg": zero, "exp_avg_sq": c},
        "Adamax": {"step": step, "exp_avg": zero, "exp_inf": c},
        "RMSprop": {"step": step, "square_avg": c, "momentum_buffer": zero, "grad_avg": zero},
        "Adagrad": {"step": torch.tensor(5.0), "sum": c},
        "Adadelta": {"step": step, "square_avg": c, "acc_delta": 0.1 * c},
        "SGD": {},
    }[kind]
    if state:
        optimizer.state[p] = {k: v.clone() for k, v in state.items()}


OPTIMIZERS = {
    "gd": lambda p: torch.optim.SGD([p], lr=0.2),
    "heavy ball": lambda p: torch.optim.SGD([p], lr=0.2, momentum=0.9),
    "dampened": lambda p: torch.optim.SGD([p], lr=0.2, momentum=0.7, dampening=0.4),
    "nesterov": lambda p: torch.optim.SGD([p], lr=0.2, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam([p], lr=0.01, betas=(0.9, FROZEN)),
    "adam .5": lambda p: torch.optim.Adam([p], lr=0.01, betas=(0.5, FROZEN)),
    "adamw": lambda p: torch.optim.AdamW([p], lr=0.01, betas=(0.9, FROZEN), weight_decay=0.0),
    "nadam": lambda p: torch.optim.NAdam([p], lr=0.01, betas=(0.9, FROZEN)),
    "radam": lambda p: torch.optim.RAdam([p], lr=0.01, betas=(0.9, FROZEN)),
    "adamax": lambda p: torch.optim.Adamax([p], lr=0.01, betas=(0.9, FROZEN)),
    "rmsprop": lambda p: torch.optim.RMSprop([p], lr=0.01, alpha=FROZEN),
    "rmsprop momentum": lambda p: torch.optim.RMSprop([p], lr=0.01, alpha=FROZEN, momentum=0.8),
    "adagrad": lambda p: torch.optim.Adagrad([p], lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta([p], lr=1.0, rho=FROZEN),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stability_limit_is_where_the_iteration_really_diverges(name):
    q, _ = torch.linalg.qr(torch.tensor([[1.0, 2.0], [-1.0, 1.0]], dtype=D))
    shape = q @ torch.diag(torch.tensor([1.0, 0.3], dtype=D)) @ q.T

    def growth(factor):
        """|x| after 1500 steps over |x| at the start, or where it exceeds 20, with the curvature at `factor` times the limit."""
        p = nn.Parameter(1e-9 * torch.tensor([1.0, -0.7], dtype=D))
        optimizer = OPTIMIZERS[name](p)
        frozen_state(optimizer, p)
        scale = preconditioner(optimizer, [("p", p)])
        root = torch.diag(scale.sqrt())
        top = torch.linalg.eigvalsh(root @ shape @ root)[-1]
        hessian = shape * (factor * stability_limit(optimizer) / top)
        start = p.detach().norm()
        for _ in range(1500):
            p.grad = hessian @ p.detach()
            optimizer.step()
            if (ratio := float(p.detach().norm() / start)) > 20:  # far beyond, the averages would move
                break
        return ratio

    assert growth(0.98) < 0.05
    assert growth(1.02) > 20


def test_relative_stability_is_two_at_the_limit():
    p, _ = parameters(3)
    hessian = torch.diag(torch.tensor([4.0, 1.0, -2.0], dtype=D))
    objective = Objective(nn.ParameterList([p]), lambda m, _: 0.5 * m[0] @ hessian @ m[0], [None])
    optimizer = torch.optim.SGD(objective.parameters, lr=3.8 / 4, momentum=0.9)
    measured = relative_stability(objective, optimizer)
    assert measured.value == pytest.approx(2.0)
    assert measured.details["limit"] == pytest.approx(3.8)
    adam = torch.optim.Adam(objective.parameters, lr=0.1)
    assert relative_stability(objective, adam) is None
    gradient = objective.gradient()
    root = torch.diag(0.1 / (gradient.abs() + 1e-8)).sqrt()
    expected = torch.linalg.eigvalsh(root @ hessian @ root)
    assert relative_stability(objective, adam, gradient=gradient).value == pytest.approx(2 * float(expected[-1]) / 38)


def test_groups_strangers_and_parameters_that_never_moved():
    a, b, outside = (nn.Parameter(torch.ones(2)) for _ in range(3))
    named = [("a", a), ("outside", outside), ("b", b)]
    sgd = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.2, "momentum": 0.5}], lr=1.0)
    torch.testing.assert_close(preconditioner(sgd, named), torch.tensor([0.1, 0.1, 0.0, 0.0, 0.2, 0.2]))
    assert stability_limit(sgd) == 2.0  # the first group's

    for kind in (torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop):
        optimizer = kind([a, b], lr=0.1)
        assert preconditioner(optimizer, named) is None
        a.grad, b.grad = torch.ones(2), None
        optimizer.step()
        scale = preconditioner(optimizer, named)
        assert (scale[:2] > 0).all()
        assert (scale[2:] == 0).all()


def test_unknown_optimizers_have_no_metric():
    p, named = parameters()

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            return None

    class Renamed(torch.optim.SGD):
        pass

    for optimizer in (torch.optim.LBFGS([p]), torch.optim.Rprop([p]), Own([p], lr=0.1)):
        assert preconditioner(optimizer, named) is None
        assert math.isnan(stability_limit(optimizer))
    assert preconditioner(Renamed([p], lr=0.1), named) is not None
    assert preconditioner(torch.optim.SGD([p], lr=0.1, maximize=True), named) is None


def test_nothing_is_changed_and_the_type_is_wide_enough():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.Adam([p], lr=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[p].items()}
    scale = preconditioner(optimizer, [("p", p)])
    assert scale.dtype == torch.float32
    assert all(torch.equal(before[k], v) for k, v in optimizer.state[p].items())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps optimizer.step
    assert preconditioner(optimizer, [("p", p)]) is not None
    assert scheduler is not None
