"""Steps that know curvature, on functions whose minima are known."""

import math

import pytest
import torch
from torch import nn

from gradoscope.errors import GradoscopeError
from gradoscope.guard import private_random
from gradoscope.loop import advance
from gradoscope.remedies.line_search import LineSearch
from gradoscope.remedies.newton import KrylovNewton
from gradoscope.training import Training
from tests.remedies.nets import prepared


class Point(nn.Module):
    """The parameters are the point at which a function is evaluated."""

    def __init__(self, start):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))


def on(function, start, lr=0.01) -> Training:
    return Training(
        model=lambda: Point(start),
        optimizer=lambda p: torch.optim.SGD(p, lr=lr),
        data=torch.zeros(8, 1),
        batch_loss=lambda m, b: function(m.theta) + 0 * b.sum(),
    )


def saddle(theta):
    """Minima of value 0 at (0, +1) and (0, -1); at the origin curvature 1 and -1, value 1/4."""
    x, y = theta[0], theta[1]
    return x**2 / 2 + (y**2 - 1) ** 2 / 4


@pytest.mark.parametrize("start", [[0.0, 0.0], [0.0, 1e-9], [0.0, -1e-9]])
def test_negative_curvature_leaves_a_saddle(start):
    recipe = on(saddle, start)
    plain = prepared(recipe)
    advance(plain, 0, 50)
    assert float(saddle(plain.model.theta.detach())) == pytest.approx(0.25, abs=1e-6)
    live = prepared(recipe, LineSearch("negative_curvature"))
    theta = live.model.theta.detach()
    assert abs(float(theta[0])) < 0.02
    # Lengths are sqrt(2 J / |lambda|) = sqrt(1/2) times powers of two: the best is the first itself, at height 1/16.
    assert abs(float(theta[1])) == pytest.approx(math.sqrt(0.5), rel=0.02)
    assert float(saddle(theta)) == pytest.approx(1 / 16, rel=0.1)
    advance(live, 0, 400)
    assert float(saddle(live.model.theta.detach())) < 1e-3


def test_the_gradient_descends_and_where_nothing_helps_nothing_moves():
    def bowl(theta):
        return (theta - 3).square().sum() / 2

    moved = prepared(on(bowl, [0.0, 0.0]), LineSearch("gradient")).model.theta.detach()
    assert float(bowl(moved)) < 0.2 * 9
    assert moved[0].item() == pytest.approx(moved[1].item())
    for direction in ("gradient", "negative_curvature"):
        still = prepared(on(bowl, [3.0, 3.0]), LineSearch(direction)).model.theta
        assert still.tolist() == pytest.approx([3, 3], abs=1e-6)
    linear = prepared(on(lambda theta: theta.sum() * 0 + 1, [1.0, 2.0]), LineSearch("gradient")).model.theta
    assert linear.tolist() == [1.0, 2.0]


def quadratic(condition, dim=20, seed=0):
    """Half theta' A theta with eigenvalues from 1 to `condition`."""
    with private_random(seed):
        q, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
    a = q @ torch.diag(torch.logspace(0, math.log10(condition), dim, dtype=torch.float64)) @ q.T
    return lambda theta: theta @ a @ theta / 2


def test_newton_steps_solve_what_gradient_descent_cannot():
    condition = 1e5
    function, start = quadratic(condition), [1.0] * 20
    recipe = on(function, start, lr=1 / condition)
    first = float(function(torch.ones(20, dtype=torch.float64)))
    plain, newton = prepared(recipe), prepared(recipe, KrylovNewton(40))
    losses = []
    advance(plain, 0, 40)
    advance(newton, 0, 3, [lambda _l, _i, loss: losses.append(loss)])
    assert losses[0] == pytest.approx(first)
    assert float(function(newton.model.theta.detach())) < 1e-8 * first
    assert float(function(plain.model.theta.detach())) > 1e-6 * first


def test_newton_steps_never_go_up_and_leave_negative_curvature_alone():
    live = prepared(on(saddle, [1.0, 1e-3]), KrylovNewton(10))
    heights = [float(saddle(live.model.theta.detach()))]
    for i in range(3):
        advance(live, i, 1)
        heights.append(float(saddle(live.model.theta.detach())))
    assert heights == sorted(heights, reverse=True)
    assert abs(float(live.model.theta.detach()[0])) < 1e-3  # the positive part is solved
    assert abs(float(live.model.theta.detach()[1])) < 0.1  # and the other is left for the line search


def test_a_start_that_is_not_finite_is_told():
    live = prepared(on(lambda theta: theta.log().sum(), [-1.0, 1.0]), KrylovNewton())
    with pytest.raises(GradoscopeError, match="not finite"):
        advance(live, 0, 1)
