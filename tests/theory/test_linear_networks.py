"""Linear networks: closed forms against automatic differentiation, simulated flow and dense spectra; paths between minima."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.theory import linear_networks as theory
from gradoscope.theory.convex import descend
from gradoscope.theory.linear_minima import component, connecting_path

F64 = torch.float64


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_product_gradient_against_loops_with_zeros() -> None:
    weights = torch.tensor([[1.5, -0.3, 0.0, 2.0], [0.0, 0.0, 1.0, 2.0], [0.1, 0.2, 0.3, 0.4]], dtype=F64)
    for row, found in zip(weights, theory.product_gradient(weights), strict=True):
        for i in range(4):
            assert float(found[i]) == pytest.approx(math.prod(float(w) for j, w in enumerate(row) if j != i))


def test_derivatives_of_the_slide() -> None:
    for w, slope in ((0.1, 1e-4), (0.5, 0.0625), (1.5, 5.0625), (2.0, 16.0)):
        assert float(theory.product_gradient(torch.full((5,), w, dtype=F64))[2]) == pytest.approx(slope, rel=1e-12)


def test_taylor_orders_against_elementary_symmetric_polynomials() -> None:
    w, s = torch.randn(5, generator=random(0), dtype=F64), torch.randn(5, generator=random(1), dtype=F64)
    total, found = 0.0, theory.taylor_product(w, s)
    for order in range(6):
        for chosen in combinations(range(5), order):
            total += math.prod(float(s[i] if i in chosen else w[i]) for i in range(5))
        assert float(found[order]) == pytest.approx(total, rel=1e-12)
    assert float(found[-1]) == pytest.approx(float((w + s).prod()), rel=1e-12)


def test_factors_against_automatic_differentiation() -> None:
    points = torch.randn(6, 2, generator=random(2), dtype=F64)
    for p in points:
        loss = lambda q: (1.3 - q.prod()) ** 2  # noqa: E731
        torch.testing.assert_close(theory.factor_gradient(p, 1.3), torch.autograd.functional.jacobian(loss, p))
        torch.testing.assert_close(theory.factor_hessian(p, 1.3), torch.autograd.functional.hessian(loss, p))
    torch.testing.assert_close(theory.factor_gradient(points, 1.3)[3], theory.factor_gradient(points[3], 1.3))


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.9), (0.7, -0.5), (-1.2, 0.3), (0.05, 0.05)])
def test_product_flow_against_small_steps(a: float, b: float) -> None:
    lr, steps, every = 1e-4, 20_000, 1000
    path = descend(lambda p: theory.factor_gradient(p, 2.0), torch.tensor([a, b], dtype=F64), lr, steps)[::every]
    exact = theory.product_flow([lr * every * k for k in range(len(path))], 2.0, a, b)
    assert float((path.prod(-1) - exact).abs().max()) / 2 <= 5e-4
    conserved = path[:, 0].square() - path[:, 1].square()
    assert float((conserved - conserved[0]).abs().max()) <= 5e-4
    if a == b:
        times = torch.arange(len(path), dtype=F64) * lr * every
        torch.testing.assert_close(exact, theory.mode(times, 2.0, a * b), rtol=1e-6, atol=1e-9)


def test_the_stable_manifold_leads_into_the_saddle() -> None:
    end = descend(lambda p: theory.factor_gradient(p, 1.0), torch.tensor([0.9, -0.9], dtype=F64), 0.01, 2000)[-1]
    assert float(end.abs().max()) < 1e-12
    off = descend(lambda p: theory.factor_gradient(p, 1.0), torch.tensor([0.9, -0.9 + 1e-6], dtype=F64), 0.01, 4000)[-1]
    assert float(off.prod()) == pytest.approx(1, abs=1e-6)


def test_mode_solves_its_equation_and_passes_half_on_time() -> None:
    t = torch.linspace(0, 3, 31, dtype=F64, requires_grad=True)
    u = theory.mode(t, 1.7, 0.01)
    (speed,) = torch.autograd.grad(u.sum(), t)
    torch.testing.assert_close(speed, theory.mode_speed(u, 1.7).detach())
    half = torch.tensor(theory.half_rise(1.7, 0.01), dtype=F64)
    assert float(theory.mode(half, 1.7, 0.01)) == pytest.approx(0.85)
    for sigma, expected in ((3.0, 0.667), (2.0, 0.950), (1.2, 1.477), (0.6, 2.665)):
        assert theory.half_rise(sigma, 1e-3) == pytest.approx(expected, abs=6e-4)


def test_single_layer_against_a_loop() -> None:
    a = start = torch.randn(3, 4, generator=random(3), dtype=F64)
    gamma = torch.randn(3, 4, generator=random(4), dtype=F64)
    for step in range(1, 30):
        a = a - 0.07 * 2 * (a - gamma)
        torch.testing.assert_close(theory.single_layer(start, gamma, 0.07, step), a, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("m", "n"), [(5, 7), (7, 5)])
def test_decoupled_modes_follow_their_curves(m: int, n: int) -> None:
    gamma = torch.randn(m, n, generator=random(5), dtype=F64)
    gamma = 3 * gamma / torch.linalg.matrix_norm(gamma, 2)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=random(6), dtype=F64))
    u, s, v = torch.linalg.svd(gamma)
    strengths = torch.tensor([1e-3, 2e-3, 3e-3, 4e-3], dtype=F64)
    q, w = theory.decoupled_start(gamma, strengths, rotation)
    for step in range(2001):
        modes = u.T @ q @ w @ v.T
        if step % 200 == 0:
            exact = torch.stack([theory.mode(torch.tensor(5e-4 * step), float(s[r]), float(strengths[r])) for r in range(4)])
            assert float(((modes.diagonal()[:4] - exact) / s[:4]).abs().max()) <= 5 * 5e-4
            left = modes.clone()
            left.diagonal()[:4] = 0
            assert float(left.abs().max()) <= 1e-12
        error = q @ w - gamma
        q, w = q - 5e-4 * 2 * error @ w.T, w - 5e-4 * 2 * q.T @ error


def test_energy_is_the_loss() -> None:
    q, w = torch.randn(2, 4, 3, generator=random(7), dtype=F64), torch.randn(2, 3, 6, generator=random(8), dtype=F64)
    sigmas = torch.tensor([2.0, 1.0, 0.5, 0.1], dtype=F64)
    own, others = theory.energy(q, w, sigmas)
    target = torch.zeros(4, 6, dtype=F64)
    target.diagonal()[:] = sigmas
    torch.testing.assert_close(own + others, (q @ w - target).square().sum((1, 2)))
    slow = sum((float(q[0, s] @ w[0, :, r])) ** 2 for s in range(4) for r in range(6) if s != r)
    assert float(others[0]) == pytest.approx(slow)


@pytest.mark.parametrize(("depth", "expected"), [(2, 2.276), (3, 4.981), (5, 10.745), (10, 15.915)])
def test_depth_time_against_steps(depth: int, expected: float) -> None:
    time = theory.depth_time(depth, 1.0, 1e-3, 0.9)
    assert time == pytest.approx(expected, abs=6e-4)
    w, lr = 1e-3 ** (1 / depth), time / 100_000
    for _ in range(100_000):
        w += lr * 2 * w ** (depth - 1) * (1 - w**depth)
    assert w**depth == pytest.approx(0.9, rel=1e-3)
    with pytest.raises(Usage, match="start < end"):
        theory.depth_time(depth, 1.0, 0.5, 1.5)


def test_depth_two_is_the_mode() -> None:
    time = theory.depth_time(2, 2.0, 0.01, 1.0)
    assert time == pytest.approx(theory.half_rise(2.0, 0.01), rel=1e-9)


@pytest.mark.parametrize(("sigmas", "width"), [((3.0, 2.0, 1.0), 2), ((3.0, 2.0, 1.0), 4), ((2.5, 1.5, 0.7, 0.2), 3), ((1.0,), 2)])
def test_critical_points_against_dense_hessians(sigmas: tuple[float, ...], width: int) -> None:
    target, p = torch.tensor(sigmas, dtype=F64).diag(), len(sigmas)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return (theta[: p * width].reshape(p, width) @ theta[p * width :].reshape(width, p) - target).square().sum()

    found = theory.critical_points(sigmas, width)
    assert len(found) == sum(math.comb(p, k) for k in range(min(p, width) + 1))
    for point in found:
        theta = torch.cat([point.q.flatten(), point.w.flatten()])
        assert float(loss(theta)) == pytest.approx(point.loss, abs=1e-12)
        assert float(torch.autograd.functional.jacobian(loss, theta).norm()) < 1e-12
        dense = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta)).numpy()
        np.testing.assert_allclose(point.eigenvalues, dense, atol=1e-10)
    assert [point.modes for point in found if point.index()[0] == 0] == [tuple(range(min(p, width)))]
    assert found[0].index()[1] >= min(p, width) ** 2


def test_the_table_of_critical_points() -> None:
    found = {point.modes: (point.loss, *point.index()[:2], point.eigenvalues[0]) for point in theory.critical_points([3.0, 2.0, 1.0], 2)}
    assert found[0, 1] == (1, 0, 4, 0)
    assert found[0, 2] == (4, 1, 4, -2)
    assert found[1, 2] == (9, 2, 4, -4)
    assert found[0,] == (5, 2, 3, -4)
    assert found[()] == (14, 6, 0, -6)


def test_autoencoder_losses_against_projections() -> None:
    x = torch.randn(200, 5, generator=random(9), dtype=F64) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2], dtype=F64)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / 200)
    values, vectors = values.flip(0), vectors.flip(1)
    for modes, loss in theory.autoencoder_losses(values.tolist(), 2, 4):
        v = vectors[:, list(modes)]
        assert float((x - x @ v @ v.T).square().sum(1).mean()) == pytest.approx(loss)
    assert theory.autoencoder_losses(values.tolist(), 2, 4)[0][0] == (0, 1)


def minimum(m: int, n: int, sigma: torch.Tensor, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A solution of QW = sigma of full width: Q is drawn, W solves for it, and gets a part that Q does not see."""
    generator = random(seed)
    u, s, v = torch.linalg.svd(sigma, full_matrices=False)
    rank = int((s > 1e-9).sum())
    g = torch.randn(width, width, generator=generator, dtype=F64)
    q = torch.cat([u[:, :rank] * s[:rank], torch.zeros(m, width - rank, dtype=F64)], 1) @ torch.linalg.inv(g)
    w = g @ torch.cat([v[:rank], torch.randn(width - rank, n, generator=generator, dtype=F64)])
    return q, w


@pytest.mark.parametrize(("m", "n", "rank", "width"), [(3, 3, 3, 4), (3, 3, 3, 7), (4, 6, 2, 3), (5, 3, 1, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_wide_minima_are_connected(m: int, n: int, rank: int, width: int, seed: int) -> None:
    generator = random(100 + seed)
    sigma = torch.randn(m, rank, generator=generator, dtype=F64) @ torch.randn(rank, n, generator=generator, dtype=F64)
    first, second = minimum(m, n, sigma, width, 2 * seed), minimum(m, n, sigma, width, 2 * seed + 1)
    assert component(*first, sigma) == 0
    q, w = connecting_path(first, second, sigma, 40)
    assert float((q @ w - sigma).abs().max()) < 1e-9
    for a, b in zip((q[0], w[0], q[-1], w[-1]), (*first, *second), strict=True):
        torch.testing.assert_close(a, b)
    longest = []
    for points in (40, 160):  # a path, and not jumps: its steps shrink as it is drawn more finely
        q, w = connecting_path(first, second, sigma, points)
        longest.append(float(((q[1:] - q[:-1]).square().sum((1, 2)) + (w[1:] - w[:-1]).square().sum((1, 2))).sqrt().max()))
    assert longest[1] < 0.5 * longest[0]


@pytest.mark.parametrize("seed", range(6))
def test_minima_as_wide_as_the_rank_have_two_components(seed: int) -> None:
    sigma = torch.tensor([3.0, 2.0, 0.5], dtype=F64).diag()
    first, second = minimum(3, 3, sigma, 3, 2 * seed), minimum(3, 3, sigma, 3, 2 * seed + 1)
    flip = torch.tensor([1.0, -1.0, 1.0], dtype=F64).diag()
    for other in (second, (second[0] @ flip, flip @ second[1])):
        q, w = connecting_path(first, other, sigma, 41)
        losses = (q @ w - sigma).square().sum((1, 2))
        same = component(*first, sigma) == component(*other, sigma)
        assert float(losses.max()) == pytest.approx(0.0 if same else 0.25, abs=1e-12)
        signs = torch.linalg.det(q).sign()
        assert bool((signs == signs[0]).all()) == same
        assert component(q[-1], w[-1], sigma) == component(*other, sigma)


def test_what_is_no_minimum_is_refused() -> None:
    one = torch.eye(2, dtype=F64)
    with pytest.raises(Usage, match="expected minima"):
        connecting_path((one, one), (one, 2 * one), one)
