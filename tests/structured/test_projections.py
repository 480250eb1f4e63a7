"""Projections on sets of labels: against general solvers, the variational inequality, and finite differences."""

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gradoscope.structured.projections import (
    alternating,
    dykstra,
    dykstra_sets,
    free_coordinates,
    jacobian,
    project_between,
    project_groups,
    project_simplex,
    project_sum,
    slope_in_sum,
    smooth_simplex,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bisected(y: Tensor, z: float) -> Tensor:
    """One row of `project_sum`, the slow and obvious way."""
    low, high = float(y.min()) - 1, float(y.max())
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if float((y - t).clamp(0, 1).sum()) > z else (low, t)
    return (y - (low + high) / 2).clamp(0, 1)


def solved(y: Tensor, groups: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The projection on groups by a general solver (SLSQP)."""
    m, target = groups.double().numpy(), y.numpy()
    limits = [
        {"type": "ineq", "fun": lambda u: upper.numpy() - m @ u, "jac": lambda u: -m},
        {"type": "ineq", "fun": lambda u: m @ u - lower.numpy(), "jac": lambda u: m},
    ]
    found = minimize(
        lambda u: ((u - target) ** 2).sum() / 2,
        y.clamp(0, 1).numpy(),
        jac=lambda u: u - target,
        bounds=[(0, 1)] * len(target),
        constraints=limits,
        options={"maxiter": 500, "ftol": 1e-15},
    )
    return torch.from_numpy(found.x)


def test_sum_is_that_of_bisection_on_rows_of_every_kind() -> None:
    y = 1.5 * randn(60, 12)
    y[50:] = y[50:].round()  # ties: many corners at one place
    z = 12 * rand(60)
    z[:12] = torch.arange(1, 13)  # whole numbers, where nothing need be free
    u = project_sum(y, z)
    for row, target, found in zip(y, z, u, strict=True):
        assert (found - bisected(row, float(target))).abs().max() < 1e-12
    assert (u.sum(-1) - z).abs().max() < 1e-13
    assert bool(((u >= 0) & (u <= 1)).all())


def test_variational_inequality_on_two_hundred_problems() -> None:
    y, z = 2 * randn(200, 30, seed=1), 30 * rand(200, seed=2)
    u = project_sum(y, z)
    others = project_sum(3 * randn(50, 200, 30, seed=3), z.expand(50, 200))  # points of the same sets
    assert float(((y - u) * (others - u)).sum(-1).max()) < 1e-10
    assert float(((others.sum(-1) - z).abs()).max()) < 1e-12


def test_whole_sums_with_nothing_free_and_the_ends() -> None:
    y = torch.tensor([5.0, 3.0, -3.0, -5.0], dtype=torch.float64, requires_grad=True)
    z = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    u = project_sum(y, z)
    assert u.tolist() == [1, 1, 0, 0]
    by_y, by_z = torch.autograd.grad((u * torch.arange(4)).sum(), (y, z), allow_unused=True)
    assert float(by_y.abs().max()) == 0
    assert float(by_z) == 0
    assert project_sum(y, 0.0).tolist() == [0] * 4 == project_sum(y, -1.0).tolist()
    assert project_sum(y, 4.0).tolist() == [1] * 4 == project_sum(y, 9.0).tolist()
    assert project_sum(torch.zeros(0, 4), 1.0).shape == (0, 4)
    assert project_sum(torch.tensor([7.0]), 0.25).tolist() == [0.25]


@pytest.mark.parametrize("spread", [10, 100])
def test_no_row_with_nothing_free_has_a_slope(spread: float) -> None:
    y = (spread * randn(500, 20, seed=11)).requires_grad_()
    z = torch.full((500,), 3.0, dtype=torch.float64, requires_grad=True)
    u = project_sum(y, z)
    stuck = ~free_coordinates(u.detach()).any(1)
    by_y, by_z = torch.autograd.grad((u * randn(500, 20, seed=12)).sum(), (y, z))
    assert 100 < int(stuck.sum()) < 500
    assert float(by_y[stuck].abs().max()) == float(by_z[stuck].abs().max()) == 0
    assert bool((by_z[~stuck] != 0).all())


def test_gradients_of_first_and_second_order() -> None:
    y, z = (1.5 * randn(6, 9, seed=4)).requires_grad_(), (1 + 6 * rand(6, seed=5)).requires_grad_()
    assert gradcheck(project_sum, (y, z))
    assert gradgradcheck(project_sum, (y, z))
    assert gradcheck(project_simplex, (y, z))
    assert gradcheck(smooth_simplex, (y, z))
    assert gradcheck(lambda y, z: dykstra(y, z, 4), (y, z))
    assert gradcheck(lambda y, z: dykstra(y, z, 3, smooth=True), (y, z))


def test_closed_jacobian_is_that_of_autograd_of_the_iteration_and_of_vmap() -> None:
    y, z = 1.5 * randn(20, seed=6), torch.tensor(6.3, dtype=torch.float64)
    u = project_sum(y, z)
    unrolled = torch.autograd.functional.jacobian(lambda v: dykstra(v, z, 80), y)
    exact = torch.autograd.functional.jacobian(lambda v: project_sum(v, z), y)
    assert (jacobian(u) - unrolled).abs().max() < 1e-12
    assert (jacobian(u) - exact).abs().max() < 1e-15
    by_sum = torch.autograd.functional.jacobian(lambda s: dykstra(y, s, 80), z)
    assert (slope_in_sum(u) - by_sum).abs().max() < 1e-12
    rows = torch.func.vmap(torch.func.jacrev(project_sum), in_dims=(0, None))(y[None], z)
    assert (rows[0] - jacobian(u)).abs().max() < 1e-15
    count = int(free_coordinates(u).sum())
    assert int(torch.linalg.matrix_rank(jacobian(u))) == count - 1


def test_memory_of_the_exact_projection_does_not_hold_an_iteration() -> None:
    def kept(function: object) -> int:
        total = 0

        def keep(t: Tensor) -> Tensor:
            nonlocal total
            total += t.numel() * t.element_size()
            return t

        y = randn(8, 30, seed=7).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            function(y)  # type: ignore[operator]  # any function of one tensor
        return total

    few, many, exact = (kept(f) for f in (lambda y: dykstra(y, 3.0, 5), lambda y: dykstra(y, 3.0, 50), lambda y: project_sum(y, 3.0)))
    assert many > 8 * few
    assert exact < few / 3


def test_dykstra_converges_and_plain_alternation_does_not() -> None:
    y, z = 1.5 * randn(5, 40, seed=8), torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    exact = project_sum(y, z)
    errors = [float((dykstra(y, z, r) - exact).abs().max()) for r in (1, 2, 5, 10, 50, 200)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] > 0.1
    assert errors[4] < 1e-6
    plain = alternating(y, z, 1000)
    assert (plain - exact).abs().max() > 0.01
    assert (plain.sum(-1) - z).abs().max() < 1e-9
    two = dykstra(y, z + 14, 2)
    assert (two.sum(-1) - z - 14).abs().max() < 1e-12
    assert float(two.max()) > 1


def test_simplex_against_its_conditions_and_the_smooth_step_against_it() -> None:
    y, z = randn(30, 15, seed=9), 0.1 + 5 * rand(30, seed=10)
    u = project_simplex(y, z)
    shift = (y - u).masked_fill(u == 0, float("nan"))
    theta = shift.nanmean(-1, keepdim=True)
    assert (u.sum(-1) - z).abs().max() < 1e-12
    assert bool((u >= 0).all())
    assert bool((((y - u) - theta).abs() < 1e-12)[u > 0].all())
    assert bool((y <= theta + 1e-12)[u == 0].all())
    gaps = [float((smooth_simplex(y, z, k, k) - u).abs().mean()) for k in (1.0, 10.0, 100.0, 1e6)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.01
    assert gaps[-1] < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_bounds_against_a_general_solver(seed: int) -> None:
    y = 1.5 * randn(7, seed=20 + seed)
    whole = torch.ones(1, 7, dtype=torch.bool)
    for low, high in ((0.0, 1.5), (4.5, 7.0), (2.0, 2.5)):
        expected = solved(y, whole, torch.tensor([low]).double(), torch.tensor([high]).double())
        assert (project_between(y, lower=low, upper=high) - expected).abs().max() < 1e-6
    inside = 0.2 * rand(4, 7)
    assert torch.equal(project_between(inside, upper=2.0), inside)


def test_disjoint_groups_are_the_projections_of_their_parts() -> None:
    y = 1.5 * randn(6, 10, seed=30)
    groups = torch.zeros(2, 10, dtype=torch.bool)
    groups[0, :4], groups[1, 6:] = True, True
    upper = torch.tensor([1.2, 2.5], dtype=torch.float64)  # at whole numbers there are kinks
    u = project_groups(y, groups, upper=upper)
    assert torch.allclose(u[:, :4], project_between(y[:, :4], upper=1.2), atol=1e-14)
    assert torch.allclose(u[:, 6:], project_between(y[:, 6:], upper=2.5), atol=1e-14)
    assert torch.equal(u[:, 4:6], y[:, 4:6].clamp(0, 1))
    assert gradcheck(lambda y, c: project_groups(y, groups, upper=c), (y.requires_grad_(), upper.requires_grad_()))


@pytest.mark.parametrize("seed", range(3))
def test_overlapping_groups_against_a_general_solver_and_dykstra(seed: int) -> None:
    y = 1.5 * randn(3, 8, seed=40 + seed)
    groups = rand(3, 8, seed=50 + seed) < 0.6
    groups[:, 0] = True  # all overlap
    lower, upper = torch.tensor([0.0, 0.5, 0.0]).double(), torch.tensor([1.0, 1.5, 0.7]).double()
    u = project_groups(y, groups, lower=lower, upper=upper)
    sets = [lambda v, g=g: project_groups(v, groups[g : g + 1], lower=lower[g : g + 1], upper=upper[g : g + 1]) for g in range(3)]
    by_dykstra, rounds = dykstra_sets(y, sets, tolerance=1e-13)
    assert (u - by_dykstra).abs().max() < 1e-8
    assert rounds > 1
    for row, found in zip(y, u, strict=True):
        assert (found - solved(row, groups, lower, upper)).abs().max() < 1e-5
    sums = u @ groups.double().T
    assert bool(((sums >= lower - 1e-8) & (sums <= upper + 1e-8)).all())


def test_gradient_of_overlapping_groups() -> None:
    y = 1.5 * randn(2, 8, seed=60)
    groups = rand(3, 8, seed=61) < 0.6
    groups[:, 0] = True
    upper = torch.tensor([1.1, 1.3, 0.7], dtype=torch.float64)
    assert gradcheck(lambda y, c: project_groups(y, groups, upper=c), (y.requires_grad_(), upper.requires_grad_()), atol=1e-5)


def test_rows_may_have_groups_of_their_own_and_bounds_that_contradict_are_told() -> None:
    y = randn(2, 4, seed=70)
    groups = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 1]]]).bool()
    u = project_groups(y, groups, upper=0.5)
    for row in range(2):
        assert torch.equal(u[row], project_groups(y[row], groups[row], upper=0.5))
    both = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    with pytest.raises(ValueError, match="contradict"):
        project_groups(y, both, lower=torch.tensor([1.8, 0.0]), upper=torch.tensor([2.0, 0.5]), rounds=50)


def test_single_precision() -> None:
    y, z = 1.5 * randn(50, 159, seed=80).float(), 1 + 4 * rand(50, seed=81).float()
    u = project_sum(y, z)
    assert u.dtype == torch.float32
    assert (u.sum(-1) - z).abs().max() < 1e-5
    assert (u - project_sum(y.double(), z.double())).abs().max() < 1e-6
