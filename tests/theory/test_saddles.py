"""Closed forms near critical points against integrators, loops, autograd and draws."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate
from torch.func import grad, hessian, vmap

from gradoscope.errors import Usage
from gradoscope.theory.random_landscapes import SphericalSpin, all_positive, goe, index_at_height, semicircle_cdf, threshold_height
from gradoscope.theory.saddles import (
    MONKEY,
    PLATEAU,
    SADDLE,
    descend,
    discrete_slide,
    escape_steps,
    escape_time,
    flow,
    second_order_step,
    slide,
)

RULES = ("gradient", "newton", "damped", "saddle-free")


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_quadratic(seed: int, d: int = 8):
    a = torch.randn(d, d, generator=gen(seed), dtype=torch.float64)
    return (a + a.T) / 4, torch.randn(d, generator=gen(seed + 1), dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flow_is_the_integrators_solution(seed):
    h, g = a_quadratic(seed)
    solved = integrate.solve_ivp(lambda _, x: -g.numpy() - h.numpy() @ x, (0, 4), np.zeros(8), method="DOP853", rtol=1e-11, atol=1e-13).y[
        :, -1
    ]
    exact = flow(h, g, 4.0).numpy()
    assert np.linalg.norm(solved - exact) <= 1e-9 * np.linalg.norm(exact)


@pytest.mark.parametrize("eta", [0.01, 0.3, 1.4])
def test_discrete_slide_is_gradient_descent(eta):
    h, g = a_quadratic(3)
    lam, v = torch.linalg.eigh(h)
    x = torch.zeros_like(g)
    for _ in range(40):
        x = x - eta * (g + h @ x)
    closed = -v @ (discrete_slide(lam, eta, 40) * (v.T @ g))
    assert float((x - closed).norm() / closed.norm()) <= 1e-10


def test_slides_at_zero_and_small_eigenvalues():
    lam = torch.tensor([0.0, 1e-12, -1e-12], dtype=torch.float64)
    assert torch.allclose(slide(lam, 7.0), torch.full((3,), 7.0, dtype=torch.float64), rtol=1e-10)
    assert torch.allclose(discrete_slide(lam, 0.1, 70), torch.full((3,), 7.0, dtype=torch.float64), rtol=1e-10)
    assert float(slide(torch.tensor([3.0], dtype=torch.float64), 50.0)) == pytest.approx(1 / 3, rel=1e-15)


def test_descent_lags_behind_the_flow_by_the_specs_numbers():
    one = torch.tensor([-1.0], dtype=torch.float64)
    errors = [1 - float(discrete_slide(one, eta, round(6 / eta))) / math.expm1(6) for eta in (0.1, 0.05, 0.025)]
    assert errors == pytest.approx([0.246, 0.135, 0.071], abs=6e-4)
    assert all(1.7 <= a / b <= 2.1 for a, b in pairwise(errors))


@pytest.mark.parametrize("curvature", [0.05, 2.0])
@pytest.mark.parametrize("slope", [1e-2, 1e-6])
def test_escape(curvature, slope):
    eta, x, k = 1e-3 / curvature, 0.0, 0
    while x < 1:
        before, x, k = x, x + eta * (slope + curvature * x), k + 1
    measured = k - 1 + (1 - before) / (x - before)
    assert measured * eta == pytest.approx(escape_time(-curvature, slope), rel=1e-3)
    assert measured == pytest.approx(escape_steps(-curvature, -slope, eta), abs=1e-3)
    with pytest.raises(Usage, match="negative"):
        escape_time(0.1, 1.0)


@pytest.mark.parametrize("surface", [SADDLE, MONKEY, PLATEAU], ids=lambda s: s.name)
def test_surfaces_have_their_derivatives(surface):
    p = 2 * torch.randn(5, 2, generator=gen(0), dtype=torch.float64)
    assert torch.allclose(surface.gradient(p), vmap(grad(surface.value))(p), atol=1e-12)
    assert torch.allclose(surface.hessian(p), vmap(hessian(surface.value))(p), atol=1e-12)


def test_second_order_steps_against_inverses():
    h, g = a_quadratic(5, 4)
    size = torch.linalg.eigh(h).eigenvectors @ torch.diag(torch.linalg.eigvalsh(h).abs()) @ torch.linalg.eigh(h).eigenvectors.T
    shift = -float(torch.linalg.eigvalsh(h)[0]) + 0.3
    assert torch.allclose(second_order_step(g, h, "newton"), -torch.linalg.solve(h, g))
    assert torch.allclose(second_order_step(g, h, "saddle-free"), -torch.linalg.solve(size, g))
    assert torch.allclose(second_order_step(g, h, "damped", damping=0.3), -torch.linalg.solve(h + shift * torch.eye(4, dtype=h.dtype), g))
    assert float(second_order_step(g, h, "newton", radius=1e-3).norm()) == pytest.approx(1e-3)
    assert torch.equal(second_order_step(g, h, "gradient", eta=0.1), -0.1 * g)
    assert float(second_order_step(g, torch.zeros_like(h), "newton").norm()) == 0
    together = second_order_step(torch.stack([g, 2 * g]), torch.stack([h, h]), "saddle-free")
    assert torch.allclose(together[1], 2 * together[0])
    with pytest.raises(Usage, match="rule"):
        second_order_step(g, h, "sideways")  # type: ignore[arg-type]


def test_where_the_rules_end():
    start = torch.tensor([0.4, 1e-3], dtype=torch.float64)
    ends = {
        (s.name, rule): descend(s, start, rule, damping=0.1 if rule == "damped" else 0.0)[-1]
        for s in (SADDLE, MONKEY, PLATEAU)
        for rule in RULES
    }
    assert float(ends["saddle", "newton"].abs().max()) < 1e-8
    assert float(SADDLE.gradient(ends["saddle", "newton"]).norm()) < 1e-8
    assert float(ends["monkey", "newton"].norm()) < 1e-8
    for rule in ("damped", "saddle-free"):
        assert float(ends["saddle", rule][1]) == pytest.approx(math.sqrt(2), abs=1e-6)
        assert float(SADDLE.value(ends["saddle", rule])) == pytest.approx(-1, abs=1e-4)
    assert float(MONKEY.value(ends["monkey", "saddle-free"])) == pytest.approx(-105.46875, abs=1e-4)
    assert float(ends["saddle", "gradient"][1]) == pytest.approx(0.30, abs=5e-3)


def test_probabilities_of_all_positive():
    assert all_positive(1) == pytest.approx(1 / 2, abs=1e-12)
    assert all_positive(2) == pytest.approx((2 - math.sqrt(2)) / 4, abs=1e-10)
    assert all_positive(3) == pytest.approx((math.pi - 2 * math.sqrt(2)) / (4 * math.pi), abs=1e-10)
    for n in (2, 3, 4):
        draws = 40_000
        hits = (torch.linalg.eigvalsh(goe(n, draws, gen(n)))[:, 0] > 0).double().mean()
        assert abs(float(hits) - all_positive(n)) < 4 * math.sqrt(all_positive(n) / draws)
    with pytest.raises(Usage):
        all_positive(9)


def test_gaussian_matrices_fill_the_semicircle():
    matrices = goe(200, 4, gen(1))
    assert float(matrices[:, 0, 1].var()) < 20
    assert torch.equal(matrices, matrices.transpose(1, 2))
    values = torch.linalg.eigvalsh(matrices).flatten().sort().values
    empirical = (torch.arange(len(values), dtype=torch.float64) + 0.5) / len(values)
    assert float((semicircle_cdf(values, 2 * math.sqrt(200)) - empirical).abs().max()) < 0.02


def test_semicircle_is_the_integral_of_its_density():
    for x in (-1.5, -0.2, 0.9):
        area = integrate.quad(lambda v: 2 / (math.pi * 4) * math.sqrt(4 - v * v), -2, x)[0]
        assert float(semicircle_cdf(torch.tensor(x, dtype=torch.float64), 2.0)) == pytest.approx(area, abs=1e-9)


def test_spherical_spin_against_differences_and_its_definition():
    n = 6
    spin = SphericalSpin(n, gen(0))
    x = spin.points(2, gen(1))
    assert torch.allclose(x.square().sum(1), torch.full((2,), float(n), dtype=torch.float64))
    j = torch.randn((n, n, n), generator=gen(0), dtype=torch.float64)
    assert torch.allclose(spin.height(x), torch.einsum("ijk,ai,aj,ak->a", j, x, x, x) / n**2)
    # along great circles x cos t + v sin t of a tangent v with |v|^2 = n
    v = torch.randn(2, n, generator=gen(2), dtype=torch.float64)
    v = v - x * (v * x).sum(1, keepdim=True) / n
    v = v / v.norm(dim=1, keepdim=True) * math.sqrt(n)

    def along(t):
        return n * spin.height(x * math.cos(t) + v * math.sin(t))

    h = 1e-4
    assert torch.allclose((spin.gradient(x) * v).sum(1), (along(h) - along(-h)) / (2 * h), atol=1e-6)
    second = (along(h) - 2 * along(0.0) + along(-h)) / h**2
    assert torch.allclose((v[:, None] @ spin.hessian(x) @ v[:, :, None]).flatten(), second, atol=1e-5)
    assert torch.allclose((spin.hessian(x) @ x[:, :, None]).abs().max(), torch.zeros((), dtype=torch.float64), atol=1e-12)
    full = torch.linalg.eigvalsh(spin.hessian(x))
    tangent = spin.tangent_eigenvalues(x)
    assert tangent.shape == (2, n - 1)
    for row, part in zip(full, tangent, strict=True):
        rest = torch.cat([part, torch.zeros(1, dtype=torch.float64)]).sort().values
        assert torch.allclose(rest, row, atol=1e-9)


def test_index_at_height():
    assert float(index_at_height(torch.tensor(0.0, dtype=torch.float64), 24)) == 0.5
    assert float(index_at_height(torch.tensor(threshold_height(24) - 1e-9, dtype=torch.float64), 24)) == 0.0
    assert threshold_height(24) == pytest.approx(-1.60, abs=5e-3)
