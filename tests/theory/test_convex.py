"""Rates of convex losses: every bound against runs, the worst functions against their closed forms, flow against exact solutions."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.errors import CannotRun, Usage
from gradoscope.objective import Objective
from gradoscope.theory import convex

F64 = torch.float64


def quadratic(d: int, kappa: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A dense H with eigenvalues from 1 to kappa, and a start."""
    random = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=random, dtype=F64))
    return (q * torch.logspace(0, math.log10(kappa), d, dtype=F64)) @ q.T, torch.randn(d, generator=random, dtype=F64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kappa", [3.0, 50.0])
def test_every_bound_holds_on_quadratics(seed: int, kappa: float) -> None:
    h, start = quadratic(6, kappa, seed)
    t, distance = torch.arange(301), float(start.norm())

    def gaps(path: torch.Tensor) -> torch.Tensor:
        return torch.stack([0.5 * x @ h @ x for x in path])

    slow = gaps(convex.descend(lambda x: h @ x, start, 1 / kappa, 300))
    for kind in ("lecture", "standard", "tight"):
        assert (slow <= convex.gap_bound(t, kappa, distance, kind) * (1 + 1e-9)).all()
    assert (slow <= convex.linear_bound(t, kappa, 1.0, float(slow[0])) * (1 + 1e-9)).all()
    fast = gaps(convex.accelerate(lambda x: h @ x, start, kappa, 300))
    assert (fast <= convex.accelerated_bound(t, kappa, distance) * (1 + 1e-9)).all()


def test_bounds_are_ordered_and_eight_times_apart_in_the_end() -> None:
    t = torch.tensor([0.0, 1.0, 10.0, 1e6])
    lecture, standard, tight = (convex.gap_bound(t, 2.0, 3.0, kind) for kind in ("lecture", "standard", "tight"))
    assert (tight < standard).all()
    np.testing.assert_allclose((lecture / tight).numpy(), [4, 6, 84 / 11, 8], rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_the_tight_bound_is_attained(steps: int) -> None:
    x = torch.tensor(-1.7, dtype=F64, requires_grad=True)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(convex.hardest_for_descent(x, steps, 3.0, 1.7), x)
        x = (x - slope / 3.0).detach().requires_grad_()
    bound = float(convex.gap_bound(torch.tensor(steps), 3.0, 1.7))
    assert float(convex.hardest_for_descent(x.detach(), steps, 3.0, 1.7)) == pytest.approx(bound, rel=1e-12)


def test_worst_function_against_its_matrix() -> None:
    f = convex.WorstFunction(7, 5.0)
    a = 2 * torch.eye(7, dtype=F64) - torch.diag(torch.ones(6, dtype=F64), 1) - torch.diag(torch.ones(6, dtype=F64), -1)
    x = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    expected = 5 / 4 * (0.5 * x @ a @ x - x[0])
    assert float(f.loss(x.detach())) == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(f.gradient(x.detach()), torch.autograd.grad(expected, x)[0])
    first = torch.zeros(7, dtype=F64)
    first[0] = 1
    torch.testing.assert_close(f.minimizer, torch.linalg.solve(a, first))
    assert float(f.loss(f.minimizer)) == pytest.approx(f.minimum)
    assert float(torch.linalg.eigvalsh(5 / 4 * a)[-1]) <= 5


@pytest.mark.parametrize(("t", "ratio"), [(5, 2.829), (10, 2.955), (20, 3.055), (40, 3.139)])
def test_acceleration_stays_within_a_constant_of_the_lower_bound(t: int, ratio: float) -> None:
    f, start = convex.WorstFunction(2 * t + 1), torch.zeros(2 * t + 1, dtype=F64)
    bound = float(convex.lower_bound(torch.tensor(t), 1.0, float(f.minimizer.norm())))
    gap = float(f.loss(convex.accelerate(f.gradient, start, 1.0, t)[-1])) - f.minimum
    assert gap / bound == pytest.approx(ratio, abs=1e-3)
    best = float(f.loss(convex.conjugate_gradients(f.gradient, f.product, start, t)[-1])) - f.minimum
    assert best >= bound


def test_after_t_steps_only_t_coordinates_are_known() -> None:
    f, start = convex.WorstFunction(20), torch.zeros(20, dtype=F64)
    paths = [convex.descend(f.gradient, start, 1.0, 8), convex.accelerate(f.gradient, start, 1.0, 8)]
    paths.append(convex.conjugate_gradients(f.gradient, f.product, start, 8))
    for path in paths:
        for t, x in enumerate(path):
            assert not x[t:].any()
            assert t == 0 or x[t - 1] != 0


def test_conjugate_gradients_solve_and_stay() -> None:
    h, start = quadratic(5, 40.0, 3)
    path = convex.conjugate_gradients(lambda x: h @ x, lambda v: h @ v, start, 9)
    assert float(path[5].norm()) < 1e-9
    at_rest = convex.conjugate_gradients(lambda x: h @ x, lambda v: h @ v, torch.zeros(5, dtype=F64), 2)
    assert not at_rest.any()


def test_momentum_sequence_solves_its_equation() -> None:
    t = convex.momentum_sequence(50)
    torch.testing.assert_close(t[1:].square() - t[1:], t[:-1].square())
    assert (t >= (torch.arange(50) + 2) / 2).all()


@pytest.mark.parametrize("kappa", [10.0, 100.0])
def test_quadratic_rates_against_long_runs(kappa: float) -> None:
    h = torch.tensor([1.0, 3.0, kappa], dtype=F64)
    for step in (1 / kappa, 2 / (kappa + 1), 0.3 / kappa):
        path = convex.descend(lambda x: h * x, torch.ones(3, dtype=F64), step, int(40 * kappa))
        gap = (h * path.square()).sum(-1)
        rate = float((gap[-1] / gap[len(gap) // 2]) ** (1 / (len(gap) - 1 - len(gap) // 2)))
        assert rate == pytest.approx(convex.quadratic_rate(kappa, 1.0, step), rel=1e-3)


def test_descend_with_schedule_and_clip_by_hand() -> None:
    start = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    path = convex.descend(lambda x: x, start, lambda t: 1 / (t + 1), 2, clip=1.0)
    torch.testing.assert_close(path[1], torch.tensor([[2.4, 3.2], [0.0, 0.0]]))
    torch.testing.assert_close(path[2], torch.tensor([[2.1, 2.8], [0.0, 0.0]]))


def test_a_quadratic_rises_exactly_where_the_ratio_is_above_one() -> None:
    h, x = quadratic(4, 30.0, 1)
    g = h @ x
    limit = 1 / float(convex.curvature_ratio(g, h @ g, 1.0))
    for factor, rises in ((0.999, False), (1.001, True)):
        after = x - factor * limit * g
        assert bool(after @ h @ after > x @ h @ x) == rises


def test_flow_against_the_matrix_exponential() -> None:
    h, start = quadratic(5, 20.0, 2)
    times = [0.0, 0.1, 1.0, 3.0]
    path = convex.flow(lambda x: h @ x, start, times)
    for t, x in zip(times, path, strict=True):
        torch.testing.assert_close(x, torch.linalg.matrix_exp(-t * h) @ start, rtol=1e-8, atol=1e-10)


def test_flow_of_an_objective_leaves_it_as_it_was_and_is_the_limit_of_descent() -> None:
    random = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=random, dtype=F64))
    x = torch.randn(20, 2, generator=random, dtype=F64)
    objective = Objective(model, lambda m, b: (m(b) - b[:, :1]).square().mean(), [x])
    start = objective.theta()
    exact = convex.flow_of(objective, [1.0])[-1]
    assert torch.equal(objective.theta(), start)

    def gradient(theta: torch.Tensor) -> torch.Tensor:
        with objective.moved(theta):
            return objective.gradient()

    errors = [float((convex.descend(gradient, start, 1 / n, n)[-1] - exact).norm()) for n in (50, 100, 200)]
    assert 1.9 < errors[0] / errors[1] < 2.1
    assert 1.9 < errors[1] / errors[2] < 2.1


def test_flow_says_what_is_wrong() -> None:
    one = torch.ones(1, dtype=F64)
    with pytest.raises(Usage, match="increasing"):
        convex.flow(lambda x: x, one, [1.0, 0.5])
    with pytest.raises(CannotRun, match="could not be followed"):
        convex.flow(lambda x: -x.square(), one, [2.0])  # infinite at t = 1
