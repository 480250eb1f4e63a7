"""Taylor's prediction of steps, the optimal step, and the share of uphill steps."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.errors import Usage
from gradoscope.measure.steps import effective_size, predict_step, step_curvature, uphill_share, wilson
from gradoscope.objective import Objective
from tests.measure import nets
from tests.reference import curvature as reference


def function(f, *start, dtype=torch.float64):
    x = nn.Parameter(torch.tensor(start, dtype=dtype))
    return Objective(nn.ParameterList([x]), lambda m, _: f(m[0]), [None])


@pytest.mark.parametrize("seed", range(5))
def test_exact_on_a_quadratic(seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(6, 6, generator=g, dtype=torch.float64)
    a = a + a.T
    start, step = (torch.randn(6, generator=g, dtype=torch.float64) for _ in range(2))
    predicted = predict_step(function(lambda x: 0.5 * x @ a @ x, *start.tolist()), step)
    assert predicted.first == pytest.approx(float(start @ a @ step))
    assert predicted.curvature == pytest.approx(float(step @ a @ step))
    assert abs(predicted.rho) < 1e-12
    assert predicted.actual == pytest.approx(predicted.second)
    assert not predicted.negligible


def test_equals_the_terms_of_a_network():
    model, loss, batches = nets.make("mlp")
    objective = Objective(model, loss, batches)
    gradient = objective.gradient()
    predicted = predict_step(objective, -0.5 * gradient)
    dense = reference.dense_hessian(model, loss, batches)
    assert predicted.first == pytest.approx(-0.5 * float(gradient @ gradient))
    assert predicted.second == pytest.approx(predicted.first + 0.125 * float(gradient @ dense @ gradient))
    # The remainder is of third order: it falls 8 times when the step halves, and rho 4 times or twice.
    half = predict_step(objective, -0.25 * gradient, gradient=gradient)
    ratio = (predicted.actual - predicted.second) / (half.actual - half.second)
    assert 5 < ratio < 12
    assert abs(half.rho) < abs(predicted.rho)
    assert predicted.to_measurement(step=3).details["actual"] == predicted.actual


def test_the_cubic_term_is_what_rho_sees():
    predicted = predict_step(function(lambda x: x[0] ** 3, 1.0), torch.tensor([0.1], dtype=torch.float64))
    # 1.1^3 - 1 = .331; first .3, second .33; rho = .001 / (.3 + .03)
    assert predicted.rho == pytest.approx(0.001 / 0.33)


def test_uphill_by_curvature():
    objective = function(lambda x: 5 * x[0] ** 2, 1.0)
    predicted = predict_step(objective, -0.25 * objective.gradient())
    assert predicted.uphill_by_curvature
    assert predicted.actual > 0
    assert not predict_step(objective, -0.05 * objective.gradient()).uphill_by_curvature


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_changes_within_rounding_are_negligible(dtype):
    objective = function(lambda x: 1 + x[0] ** 2, 1e-3, dtype=dtype)
    size = 1e-8 if dtype == torch.float64 else 1e-5
    assert predict_step(objective, torch.tensor([-size], dtype=dtype)).negligible
    assert not predict_step(objective, torch.tensor([0.1], dtype=dtype)).negligible
    still = predict_step(objective, torch.zeros(1, dtype=dtype))
    assert still.negligible
    assert math.isnan(still.rho)


def test_a_step_into_infinity_is_not_negligible():
    predicted = predict_step(function(lambda x: torch.exp(x[0]), 1.0), torch.tensor([1e4], dtype=torch.float64))
    assert predicted.actual == math.inf
    assert not predicted.negligible


def test_optimal_step_is_the_best_on_the_line():
    a = torch.diag(torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64))
    objective = function(lambda x: 0.5 * x @ a @ x, 1.0, -2.0, 3.0)
    measured = step_curvature(objective)
    best = measured.details["optimal_step"]
    gradient = objective.gradient()
    losses = {f: objective.at(objective.theta() - f * best * gradient)[0] for f in (0.99, 1.0, 1.01)}
    assert min(losses, key=losses.get) == 1.0
    assert measured.value == pytest.approx(float(gradient @ a @ gradient / (gradient @ gradient)))
    assert measured.details["gHg"] == pytest.approx(float(gradient @ a @ gradient))
    assert 0.1 <= best <= 10


def test_optimal_step_without_positive_curvature_and_without_gradient():
    assert step_curvature(function(lambda x: -(x[0] ** 2), 1.0)).details["optimal_step"] == math.inf
    assert math.isnan(step_curvature(function(lambda x: x[0] ** 2, 0.0)).value)
    tiny = step_curvature(function(lambda x: 1e-30 * x[0] ** 2, 1.0, dtype=torch.float32))
    assert tiny.value == pytest.approx(2e-30)


def test_uphill_share_on_known_series():
    assert uphill_share([3.0, 2.0, 1.0]).value == 0
    assert uphill_share([1.0, 2.0, 3.0]).value == 1
    share = uphill_share([5.0, 4.0, math.nan, 3.0, 2.0, 2.5])
    assert share.value == pytest.approx(1 / 3)  # of 5 to 4, 3 to 2, 2 to 2.5
    assert share.details["steps"] == 3
    assert uphill_share([1.0, 1.0]).value == 0
    with pytest.raises(Usage):
        uphill_share([1.0])
    with pytest.raises(Usage):
        uphill_share([1.0, math.nan])


def test_dependent_steps_count_for_less():
    rng = np.random.default_rng(0)
    independent = rng.random(400) < 0.3
    blocks = np.repeat(rng.random(40) < 0.3, 10)
    assert effective_size(independent.astype(float)) > 200
    assert 20 < effective_size(blocks.astype(float)) < 90
    alternating = np.arange(400) % 2
    assert effective_size(alternating.astype(float)) == 400


def test_interval_covers_for_dependent_steps():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        # A Markov chain of ups (1) and downs (0) with stationary share 1/3 and autocorrelation .7^k.
        chain, state = [], int(rng.random() < 1 / 3)
        for _ in range(300):
            chain.append(state)
            state = int(rng.random() < (0.7 * state + 0.3 / 3))
        losses = np.concatenate([[0.0], np.cumsum(np.where(np.array(chain) == 1, 1.0, -1.0))])
        low, high = uphill_share(losses).details["interval"]
        hits += low <= 1 / 3 <= high
    assert hits / 300 > 0.88
    low, high = wilson(1 / 3, 300)  # with the number of steps in place of the effective one it is far too narrow
    assert high - low < 0.11


def test_wilson_against_its_defining_equation():
    for share, n in ((0.2, 10), (0.0, 7), (1.0, 30.5)):
        for end in wilson(share, n):
            assert (share - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / n, abs=1e-12)
