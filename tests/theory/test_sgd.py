"""Exact second moments of SGD against enumeration and simulation, closed forms against their recursions, bounds against their proofs."""

import itertools
import math

import numpy as np
import pytest

from gradoscope.theory import sgd


def test_a_step_of_the_second_moments_is_that_of_the_definition():
    """Gauss-Hermite nodes stand for the Gaussian inputs of a batch: with enough of them the fourth moments are exact."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    eigenvalues, delta, rate, noise = np.array([1.0, 0.4]), np.array([0.7, -1.3]), 0.2, 0.8
    for batch in (1, 2):
        found = np.zeros(2)
        for parts in itertools.product(range(5), repeat=2 * batch):
            x = np.sqrt(eigenvalues) * nodes[list(parts)].reshape(batch, 2)
            weight = weights[list(parts)].prod()
            after = delta - rate * (x * (x @ delta)[:, None]).mean(0)
            # the targets' noise is independent: it adds its variance
            found += weight * (after**2 + rate**2 * noise * (x**2).mean(0) / batch)
        own = sgd.next_moments(delta**2, rate, eigenvalues, noise, batch)
        assert np.allclose(own, found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_path_is_the_mean_of_simulations(batch):
    random = np.random.default_rng(0)
    eigenvalues, steps, runs = np.linspace(0.2, 1, 3), 40, 10_000
    delta = np.tile([1.0, -2.0, 0.5], (runs, 1))
    rates = 0.3 / np.sqrt(np.arange(1, steps + 1))
    exact = sgd.excess_path(np.array([1.0, 4.0, 0.25]), rates, eigenvalues, noise=0.5, batch=batch)
    for t, rate in enumerate(rates):
        x = random.standard_normal((runs, batch, 3)) * np.sqrt(eigenvalues)
        residual = (x * delta[:, None]).sum(2) - math.sqrt(0.5) * random.standard_normal((runs, batch))
        delta = delta - rate * (residual[..., None] * x).mean(1)
        excess = 0.5 * (eigenvalues * delta**2).sum(1)
        assert abs(excess.mean() - exact[t + 1]) < 5 * excess.std() / math.sqrt(runs)


@pytest.mark.parametrize("batch", [1, 3, math.inf])
def test_the_ball_is_the_fixed_point_of_the_recursion(batch):
    eigenvalues, rate = np.array([0.2, 0.4, 1.0]), 0.1
    path = sgd.excess_path(np.ones(3), itertools.repeat(rate, 2000), eigenvalues, batch=batch)
    assert math.isclose(path[-1], sgd.stationary_excess(eigenvalues, rate, batch=batch), rel_tol=1e-12, abs_tol=1e-15)


def test_the_ball_in_numbers_and_where_it_diverges():
    eigenvalues = np.linspace(0.2, 1, 5)
    assert round(sgd.stationary_excess(eigenvalues, 0.05), 4) == 0.0422
    assert round(sgd.stationary_excess_additive(eigenvalues, 0.05), 4) == 0.0382
    assert math.isinf(sgd.stationary_excess(eigenvalues, 0.9))
    assert math.isinf(sgd.stationary_excess(eigenvalues, 2.5))
    low, high = (sgd.stationary_excess(eigenvalues, r) for r in (0.43, 0.44))
    path = sgd.excess_path(np.ones(5), itertools.repeat(0.44, 4000), eigenvalues)
    assert (path[-1] > 1e6) == math.isinf(high)
    assert low > 10
    tiny = sgd.stationary_excess(eigenvalues, 1e-4) / sgd.stationary_excess_additive(eigenvalues, 1e-4)
    assert abs(tiny - 1) < 1e-3


def test_the_exponents_are_those_of_long_paths():
    """Far out, where the transient is over."""
    eigenvalues, t = np.array([1.0, 2.0]), np.arange(1, 30_001.0)
    marks = np.unique(np.geomspace(10_000, 30_000, 20).astype(int))
    kinds = ((1.0, 2.0), (1.0, 0.2), (0.7, 0.3), (0.5, 0.3), (0.0, 0.05))  # alpha, C
    start = np.full((len(kinds), 2), 0.01)
    start[1] = 10.0  # where the way is what is slow, and not the noise
    rates = np.stack([c * t**-alpha for alpha, c in kinds], 1)
    path = sgd.excess_path(start, rates, eigenvalues)
    for k, (alpha, c) in enumerate(kinds):
        assert abs(float(sgd.slope(marks.astype(float), path[marks, k])) - sgd.decay_exponent(alpha, c, 1.0)) < 0.03


def test_with_a_finite_sum_something_is_left():
    rates = 0.5 * np.arange(1, 20_001.0) ** -1.5
    left = sgd.travel(rates, 1.0)
    assert math.isclose(50 * left**2, float(sgd.excess_path(np.array([100.0]), rates, np.ones(1), 0.0, math.inf)[-1]), rel_tol=1e-9)
    assert abs(50 * left**2 - 2.4) < 0.05
    assert [sgd.rate_sums(a) for a in (0.5, 0.51, 1.0, 1.01)] == [(True, False), (True, True), (True, True), (False, True)]


def test_the_noise_scale_is_the_ratio_of_its_definition():
    random = np.random.default_rng(1)
    eigenvalues, delta = np.array([1.0, 0.5]), np.array([0.8, -0.4])
    x = random.standard_normal((200_000, 2)) * np.sqrt(eigenvalues)
    g = (x @ delta - 2 * random.standard_normal(len(x)))[:, None] * x
    measured = g.var(0).sum() / (g.mean(0) ** 2).sum()
    assert abs(measured / sgd.noise_scale(delta, eigenvalues, noise=4.0) - 1) < 0.03


def test_steps_to_a_target_are_those_of_a_plain_search():
    eigenvalues, start, target = np.geomspace(1, 0.1, 4), np.ones(4), 0.05
    rates, batches = np.array([0.05, 0.2, 0.8]), np.array([1.0, 8.0, math.inf])
    steps, best = sgd.steps_to_target(start, rates, batches, eigenvalues, target, noise=0.3)
    for b, s, r in zip(batches, steps, best, strict=True):
        taken = []
        for rate in rates:
            path = sgd.excess_path(start, itertools.repeat(rate, 600), eigenvalues, noise=0.3, batch=b)
            below = np.flatnonzero(path <= target)
            taken.append(below[0] if len(below) else math.inf)
        assert s == min(taken)
        assert taken[int(np.flatnonzero(rates == r)[0])] == s
    never, rate = sgd.steps_to_target(start, np.array([3.0]), np.array([1.0]), eigenvalues, target)
    assert math.isinf(never[0])
    assert math.isnan(rate[0])


def test_the_fit_finds_what_is_there_and_says_how_badly_it_fits():
    b = np.array([1.0, 4.0, 16.0, 64.0])
    low, critical, off = sgd.critical_batch(b, 50 * (1 + 7 / b))
    assert np.allclose([low, critical, off], [50, 7, 0], atol=1e-9)
    assert sgd.critical_batch(b, np.array([100.0, 30, 30, 5]))[2] > 0.2


def test_bounds_are_kept_by_what_they_bound():
    rates = np.arange(1, 200.0) ** -0.5
    x, weighted = 3.0, 0.0
    for t, rate in enumerate(rates):  # |x| by the plain subgradient method
        weighted += rate * abs(x)
        x -= rate * np.sign(x)
        assert weighted / rates[: t + 1].sum() <= sgd.subgradient_bound(3.0, rates[: t + 1], 1.0)[-1] + 1e-12
    random = np.random.default_rng(2)
    theta, squares, paid, total = np.zeros(4), np.zeros(4), 0.0, np.zeros(4)
    for _ in range(300):  # AdaGrad against gradients that push it back and forth
        g = np.sign(theta + 0.3 * random.standard_normal(4)) * np.array([1.0, 0.1, 3.0, 0.0])
        paid, total, squares = paid + g @ theta, total + g, squares + g**2
        theta = np.clip(theta - math.sqrt(2) * g / np.sqrt(np.maximum(squares, 1e-30)), -1, 1)
        assert paid + np.abs(total).sum() <= sgd.adagrad_bound(2.0, squares) + 1e-12
    assert sgd.averaged_optimum(5, 1000, noise=2.0) == 0.005
