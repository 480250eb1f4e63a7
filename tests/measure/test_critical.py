"""Critical points: found, refused, classified; small and large models; nothing of the user's is touched. And shares of curvature."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from gradoscope.errors import CannotRun
from gradoscope.loop import advance
from gradoscope.measure.critical import classify, critical_point, in_double, label_of, levenberg_marquardt, objective_at, relative_gradient
from gradoscope.measure.curvature import curvature_along
from gradoscope.measure.geometry import batch_hessians, curvature_shares, hessian, kantorovich_bound
from gradoscope.objective import Objective
from gradoscope.problems import find
from gradoscope.training import Live

SIGMA = (3.0, 2.0, 1.0)


def point(*values):
    return torch.tensor(values, dtype=torch.float64)


def saxe(p, k=2):
    """|QW - diag(3, 2, 1)|^2 with k hidden units."""
    return (p[: 3 * k].view(3, k) @ p[3 * k :].view(k, 3) - torch.diag(point(*SIGMA))).square().sum()


def subset(*modes):
    q, w = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    for unit, mode in enumerate(modes):
        q[mode - 1, unit] = w[unit, mode - 1] = math.sqrt(SIGMA[mode - 1])
    return torch.cat([q.flatten(), w.flatten()])


def a_network(dtype=torch.float64, batches=1, rows=30):
    random = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64))
    data = [(torch.randn(rows, 3, generator=random).to(dtype), torch.randn(rows, 1, generator=random).to(dtype)) for _ in range(batches)]

    def loss(m, b):
        return (m(b[0]) - b[1]).square().mean() / 2 + 0.5e-3 * sum(p.square().sum() for p in m.parameters())

    return Objective(model, loss, data)


@pytest.mark.parametrize(
    ("modes", "loss", "negative", "smallest", "zero"),
    [((1, 2), 1, 0, 0, 4), ((1, 3), 4, 1, -2, 4), ((2, 3), 9, 2, -4, 4), ((1,), 5, 2, -4, 3), ((), 14, 6, -6, 0)],
)
def test_every_critical_point_of_two_linear_layers(modes, loss, negative, smallest, zero):
    found = classify(objective_at(saxe, subset(*modes)))
    assert (found.negative, found.zero, found.exact) == (negative, zero, True)
    assert found.loss == pytest.approx(loss, abs=1e-12)
    assert found.smallest == pytest.approx(smallest, abs=1e-12)
    assert found.gradient_norm < 1e-12
    assert found.label == label_of(negative, zero, 12 - negative - zero)
    assert found.index == negative / 12
    assert float(found.residuals.max()) < 1e-12


def test_a_descent_finds_the_saddle_that_it_starts_next_to():
    away = subset(2, 3) + 0.02 * torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = critical_point(objective_at(saxe, away))
    assert found.loss == pytest.approx(9, abs=1e-9)
    assert (found.negative, found.zero, found.label) == (2, 4, "degenerate saddle")
    assert 0 < found.moved < 0.2


def test_points_that_are_not_critical_are_refused():
    bump = critical_point(objective_at(lambda p: p[0] + 0.5 * p[0] ** 3 + p[1] ** 2, point(0.4, 0.3)))
    assert (bump.label, bump.critical) == ("not critical", False)
    assert "g in null(H)" in bump.reason
    assert bump.gradient_norm == pytest.approx(1.0, abs=1e-6)
    tail = critical_point(objective_at(lambda p: torch.exp(-p[0]), point(0.0)), iterations=5)
    assert tail.label == "not critical"
    assert "after 5 iterations" in tail.reason
    assert classify(objective_at(lambda p: p.square().sum(), point(1.0, 1.0))).label == "not critical"
    for dense in (256, 0):
        gone = critical_point(objective_at(lambda p: torch.exp(-p[0]) + p[1] ** 2, point(0.0, 0.5)), dense=dense)
        assert gone.gradient_norm < 1e-8
        assert (gone.label, "infinity" in gone.reason) == ("not critical", True)


def test_large_models_go_the_same_way_as_small_ones():
    objective = a_network()
    small = critical_point(objective)
    large = critical_point(objective, dense=0, krylov=objective.dim)
    assert small.critical
    assert large.critical
    assert torch.allclose(large.theta, small.theta, atol=1e-6)
    assert large.label == small.label
    assert not large.exact
    assert large.largest == pytest.approx(small.largest, rel=1e-6)
    assert large.smallest == pytest.approx(small.smallest, abs=1e-6)
    refused = critical_point(objective_at(lambda p: p[0] + 0.5 * p[0] ** 3 + p[1] ** 2, point(0.4, 0.3)), dense=0)
    assert "g in null(H)" in refused.reason


def test_the_index_of_a_large_model_is_estimated_with_its_error():
    d = 400
    values = torch.cat([-torch.linspace(0.5, 1, 100), torch.linspace(0.5, 3, 300)]).double()
    found = classify(objective_at(lambda p: (values * p.square()).sum() / 2, torch.zeros(d, dtype=torch.float64)))
    assert (found.label, found.exact, found.zero) == ("saddle", False, 0.0)
    assert abs(found.index - 0.25) < max(5 * found.index_se, 0.05)
    assert found.negative + found.zero + found.positive == pytest.approx(d)
    flat = classify(objective_at(lambda p: p[:200].square().sum(), torch.zeros(d, dtype=torch.float64)))
    assert flat.label == "degenerate"


def test_nothing_of_the_user_is_touched():
    objective = a_network(torch.float32)
    before = [p.detach().clone() for p in objective.parameters]
    versions = [p._version for p in objective.parameters]
    objective.parameters[0].grad = torch.ones_like(objective.parameters[0])
    state = torch.get_rng_state()
    twin = in_double(objective)
    for one in (objective, twin):
        found = critical_point(one, iterations=30)
        critical_point(one, iterations=3, dense=0)
        assert found.theta.dtype == one.parameters[0].dtype
    assert all(torch.equal(p, b) and p._version == v for p, b, v in zip(objective.parameters, before, versions, strict=True))
    assert torch.equal(objective.parameters[0].grad, torch.ones_like(objective.parameters[0]))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(twin.theta(), torch.cat([b.double().flatten() for b in before]))
    assert float(critical_point(twin).gradient_norm) < 1e-8


def test_in_double_says_what_is_wrong():
    model = nn.Linear(2, 1)
    closed = Objective(model, lambda m, b: model(b).square().sum(), [torch.eye(2)])
    with pytest.raises(CannotRun, match=r"float64|copy"):
        in_double(closed)


def test_any_checkpoint_of_any_training():
    training = find("linear-network:saddle,d=3,rows=20", seed=0)
    with Live.of(training, seed=0) as live:
        advance(live, 0, 50)
        found = critical_point(Objective.of(live, live.batches.sample(20, "fresh")))
    assert found.label == "saddle"  # 3 hidden units times +-sigma
    assert (found.negative, found.positive) == (9, 9)
    assert np.allclose(np.sort(np.abs(found.eigenvalues)), np.repeat([1, 2, 3], 6), atol=1e-4)


def test_the_spread_over_batches_decides_which_eigenvalues_are_zero():
    # the curvature along the second coordinate is 1 on one batch and -0.9 on the other
    objective = Objective(
        nn.ParameterList([nn.Parameter(point(0.0, 0.0))]), lambda m, b: m[0][0] ** 2 + b * m[0][1] ** 2 / 2, [point(1.0)[0], point(-0.9)[0]]
    )
    sampled, whole = classify(objective), classify(objective, sampled=False)
    assert (sampled.label, sampled.zero) == ("degenerate", 1)
    assert sampled.tolerance[0] == pytest.approx(1.96 * np.std([1.0, -0.9], ddof=1) / math.sqrt(2))
    assert (whole.label, whole.zero) == ("minimum", 0)
    large = classify(objective, dense=0)
    assert large.label == "degenerate"


def test_many_starts_against_scipy():
    objective = a_network()

    def slope(v):
        with objective.moved(torch.from_numpy(v)):
            return objective.gradient().numpy()

    def bend(v):
        with objective.moved(torch.from_numpy(v)):
            objective.release()
            found = hessian(objective).numpy()
            objective.release()
            return found

    start = critical_point(objective).theta + 0.01 * torch.randn(
        objective.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    scipys = optimize.least_squares(slope, start.numpy(), jac=bend, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    ours = levenberg_marquardt(
        lambda x: torch.from_numpy(np.stack([slope(v) for v in x.numpy()])),
        lambda x: torch.from_numpy(np.stack([bend(v) for v in x.numpy()])),
        start[None],
    )
    assert float(ours.gradient_norms[0]) < 1e-8
    assert np.linalg.norm(slope(scipys.x)) < 1e-8
    assert np.allclose(ours.points[0].numpy(), scipys.x, atol=1e-6)


def test_relative_gradient_is_one_on_a_quadratic():
    objective = objective_at(lambda p: 3 * p[0] ** 2 + 1, point(0.7))
    found = classify(objective, reference=1.0)
    assert found.gamma == pytest.approx(1.0)
    assert math.isnan(relative_gradient(1.0, -1.0, 2.0))
    assert relative_gradient(0.0, 0.0, 0.0) == 0.0
    told = found.to_measurement(7)
    assert (told.step, told.value, told.details["label"]) == (7, 0.0, "not critical")


def test_shares_add_up_to_the_curvature_in_small_and_large_models():
    objective = a_network()
    g = objective.gradient()
    small, large = curvature_shares(objective, g), curvature_shares(objective, g, dense=0, products=8)
    direct = float(curvature_along(objective, g).value)
    assert small.shares.sum() == pytest.approx(1)
    assert abs(small.curvature - direct) <= 1e-10 * abs(small.eigenvalues).max()
    assert abs(large.curvature - direct) <= 1e-10 * abs(small.eigenvalues).max()
    assert (small.exact, large.exact) == (True, False)
    cosines = torch.linalg.eigh(hessian(objective)).eigenvectors.T @ g / g.norm()
    assert np.allclose(small.shares, cosines.square().numpy())
    assert small.optimal_step == pytest.approx(1 / direct if direct > 0 else math.inf)
    with pytest.raises(CannotRun, match="length"):
        curvature_shares(objective, torch.zeros(objective.dim))


def test_efficiency_is_kantorovichs():
    values = point(1.0, 4.0, 20.0)
    objective = objective_at(lambda p: (values * p.square()).sum() / 2, point(1.0, -2.0, 0.3))
    g = objective.gradient()
    h = torch.diag(values)
    expected = float((g @ g) ** 2 / ((g @ h @ g) * (g @ torch.linalg.inv(h) @ g)))
    assert curvature_shares(objective, g).efficiency == pytest.approx(expected, rel=1e-12)
    assert curvature_shares(objective, g, dense=0).efficiency == pytest.approx(expected, rel=1e-9)
    assert curvature_shares(objective, point(1.0, 0.0, 1.0)).efficiency == pytest.approx(kantorovich_bound(20.0), rel=1e-12)
    saddle = objective_at(lambda p: p[0] ** 2 - p[1] ** 2, point(1.0, 1.0))
    assert math.isnan(curvature_shares(saddle, saddle.gradient()).efficiency)


def test_hessians_of_batches():
    objective = a_network(batches=3)
    parts = batch_hessians(objective)
    reference = torch.func.hessian(lambda p: saxe(p))(subset(1))
    assert parts.shape == (3, objective.dim, objective.dim)
    assert torch.allclose(parts.mean(0), hessian(objective))
    assert torch.allclose(hessian(objective_at(saxe, subset(1))), reference, atol=1e-12)
    parts_by_products = torch.stack([objective.batch_hvps(e) for e in torch.eye(objective.dim, dtype=torch.float64)], dim=2)
    assert torch.allclose(parts, parts_by_products, atol=1e-12)
    objective.distrust("a test")
    assert torch.allclose(batch_hessians(objective), parts, atol=1e-5)
    assert torch.equal(hessian(objective_at(lambda p: 2 * p.sum(), point(1.0, 2.0))), torch.zeros(2, 2, dtype=torch.float64))
    big = objective_at(lambda p: p.square().sum(), torch.zeros(20_000))
    with pytest.raises(CannotRun, match="2 GB"):
        hessian(big)
