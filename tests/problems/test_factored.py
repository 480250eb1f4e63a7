"""Products of weights: their gradient and curvature in closed form, who leaves the plateau; and a loss without a minimum."""

import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.training import Live


@pytest.mark.parametrize("target", ["factored:plateau", "factored:deep", "factored:healthy"])
def test_gradient_and_hessian_at_the_start_are_those_of_the_closed_form(target):
    training = find(target, seed=3)
    live = Live.of(training)
    x, y = (t.double() for t in training.data)
    theta = torch.cat([p.detach().double().reshape(-1) for p in live.model.parameters()])
    layers, w = len(theta), float(theta[0])

    def loss(t):
        return (t.prod() * x - y).square().mean()

    gradient = torch.autograd.functional.jacobian(loss, theta)
    torch.testing.assert_close(gradient, torch.full_like(theta, -2 * w ** (layers - 1) * (1 - w**layers)), rtol=1e-5, atol=0)
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta))
    slope, bend = 2 * w ** (2 * layers - 2), -2 * (1 - w**layers) * w ** (layers - 2)
    along, across = layers * slope + (layers - 1) * bend, -bend
    expected = torch.tensor(sorted([along] + [across] * (layers - 1)), dtype=torch.float64)
    torch.testing.assert_close(eigenvalues, expected, rtol=1e-4, atol=1e-9)
    assert along < 0


@pytest.mark.parametrize("target", ["factored:plateau", "factored:deep"])
def test_the_plateau_is_not_left_in_time_but_after_the_time_that_theory_gives(target):
    training = find(target)
    live = Live.of(training)
    weights = [float(p.detach()) for p in live.model.parameters()]
    layers, w, lr = len(weights), weights[0], live.optimizer.param_groups[0]["lr"]
    losses = []
    while w**layers < 0.3:
        losses.append((1 - w**layers) ** 2)
        w += lr * 2 * w ** (layers - 1) * (1 - w**layers)
    assert losses[training.steps] > 0.99
    assert len(losses) > training.steps
    if layers == 5:  # dw/dt = 2 w^4 from 0.1
        assert len(losses) == pytest.approx(0.1**-3 / 6 / lr, rel=0.1)


def test_the_runs_do_as_the_closed_form(train):
    found = train(find("factored:plateau"), steps=20)
    w = 0.1
    for loss in found.losses:
        assert loss == pytest.approx((1 - w**5) ** 2, rel=1e-4)
        w += 0.05 * 2 * w**4 * (1 - w**5)


def test_mixed_signs_run_into_the_saddle(train):
    found = train(find("factored:mixed-signs"))
    weights = [float(p.detach()) for p in found.live.model.parameters()]
    assert max(map(abs, weights)) < 0.01
    assert found.losses[0] == pytest.approx((1 + 0.8**2) ** 2, rel=1e-4)
    assert found.losses[-1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_learns(train, seed):
    training = find("factored:healthy", seed=seed)
    assert train(training, seed=seed).on(training.validation)[0] < 1e-6


def test_separable_has_no_minimum(train):
    training = find("factored:separable", seed=1)
    x, y = training.data
    found = train(training, seed=1, steps=800)
    weight, bias = found.live.model.weight, found.live.model.bias
    margins = (2 * y - 1) * (x @ weight.detach().T + bias.detach())
    assert float(margins.min()) > 0  # separated: a longer weight vector is better still
    here = torch.nn.functional.softplus(-margins).mean()
    assert float(torch.nn.functional.softplus(-2 * margins).mean()) < 0.5 * float(here)
    falls = found.losses[199] / found.losses[799]
    assert 2.5 < falls < 6  # as 1/t: four times


def test_bad_options():
    with pytest.raises(Usage, match="at least 2 layers"):
        find("factored:plateau,layers=1")
    assert math.isfinite(find("factored:deep,layers=12").steps)
