"""Lines: barriers, rises and convexity of known curves, and the test of a rise against many draws."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.errors import Usage
from gradoscope.landscape import lines
from gradoscope.landscape.lines import default_alphas, line, rise
from gradoscope.landscape.points import evaluate
from gradoscope.objective import Objective
from tests.landscape.nets import objective, plain


def curve(function) -> Objective:  # type: ignore[no-untyped-def]
    """A loss that is a function of one parameter."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    return Objective(nn.ParameterList([weight]), lambda m, _: function(m[0][0]), [None])


def unit(loss: Objective, **options) -> lines.Line:  # type: ignore[no-untyped-def]
    return line(loss, torch.zeros(1).double(), torch.ones(1).double(), **options)


def test_default_points() -> None:
    a = default_alphas()
    assert np.isin(np.round(np.linspace(0, 1, 51), 12), a).all()
    assert np.isin(np.round(np.arange(11) * 0.005, 12), a).all()
    assert (a[0], a[-1]) == (-0.25, 1.25)
    assert (np.diff(a) > 0).all()
    assert len(default_alphas(False)) == 51


def test_a_barrier_of_known_height() -> None:
    found = unit(curve(lambda t: 3 * torch.sin(math.pi * t) + 2 * t + 1))
    top = found.alphas[found.main][np.argmax(3 * np.sin(math.pi * found.alphas[found.main]))]
    assert (found.barrier, found.barrier_at) == (pytest.approx(3), top)
    values = 3 * np.sin(math.pi * found.alphas) + 2 * found.alphas + 1
    np.testing.assert_allclose(found.loss, values, rtol=1e-12)
    assert found.height == pytest.approx(values[found.main].max() - 3)
    assert found.convex_share == 0.0
    a = found.alphas[found.main]
    v = values[found.main]
    assert found.rise.rise == pytest.approx(v.max() - v[0])
    assert found.rise.between == (0.0, a[v.argmax()])
    assert found.rise.relative == math.inf  # the start is the lowest point
    assert found.rise.monotone is None  # a single batch: nothing to resample


def test_a_bowl_has_no_barrier() -> None:
    found = unit(curve(lambda t: (t - 1) ** 2))
    assert (found.barrier, found.height, found.rise.rise, found.rise.relative, found.convex_share) == (0, 0, 0, 0, 1)
    assert found.rise.monotone is True
    assert found.length == 1.0
    assert found.loss[0] == pytest.approx(1.25**2)  # beyond the ends, which nothing is read from


def test_a_rise_at_the_start_is_found_in_the_fine_grid() -> None:
    found = unit(curve(lambda t: 5 - t + 0.1 * torch.sin(math.pi * (t / 0.02).clamp(0, 1))))
    assert found.rise.between[1] == 0.01
    assert found.rise.rise == pytest.approx(0.09, abs=1e-12)
    assert found.rise.relative == pytest.approx(0.09, abs=1e-12)


def test_a_line_along_a_direction() -> None:
    loss = objective("tanh")
    d = torch.randn(loss.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = line(loss, loss.theta(), direction=d, alphas=[2.0, -1.0, 0.5])
    assert found.alphas.tolist() == [-1.0, 0.5, 2.0]
    assert found.main.all()
    np.testing.assert_allclose(found.loss, plain(loss, loss.theta(), d[None], found.alphas[:, None]).mean(1), rtol=1e-12)


def test_validation_and_metric_are_those_of_the_points() -> None:
    loss = objective("relu")
    held = Objective(loss.model, loss._loss, [(x + 1, y) for x, y in loss.batches[:1]], mode="eval")
    end = loss.theta() + 1
    metric = lambda output, target: (output.argmax(1) == target).double().mean()  # noqa: E731
    told: list[float] = []
    found = line(loss, loss.theta(), end, metric=metric, validation_objective=held, progress=told.append)
    again = evaluate(held, loss.theta(), (end - loss.theta())[None], found.alphas[:, None], metric=metric)
    np.testing.assert_allclose(found.validation_loss, again.loss)
    np.testing.assert_allclose(found.validation_metric, again.metric)
    np.testing.assert_allclose(found.validation_standard_error, again.standard_error)
    assert found.cost.forward == 79 * 3
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert found.rise.unit == "examples"


def test_an_overflowing_line_is_drawn() -> None:
    weight = nn.Parameter(torch.zeros(1))
    loss = Objective(nn.ParameterList([weight]), lambda m, _: torch.exp(m[0].sum()), [None])
    found = line(loss, torch.zeros(1), torch.tensor([1000.0]))
    assert not np.isfinite(found.loss[-1])
    assert math.isnan(found.barrier)
    assert found.rise.rise == math.inf
    middle = line(loss, torch.zeros(1), direction=torch.ones(1), alphas=[0.0, 200.0, 400.0])
    assert math.isnan(middle.barrier)
    assert math.isnan(middle.convex_share)


def test_wrong_requests() -> None:
    loss, a = objective("tanh"), objective("tanh").theta()
    for options in ({}, {"end": a, "direction": a}, {"end": a, "alphas": [1.0]}, {"end": a, "alphas": [0.0, math.nan]}):
        with pytest.raises(Usage):
            line(loss, a, **options)  # type: ignore[arg-type]


# ---- the test of a rise -----------------------------------------------------------------------------------------------


def test_largest_rise_is_that_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        values = random.normal(size=9)
        pairs = [(values[j] - values[i], i, j) for i in range(9) for j in range(i + 1, 9)]
        best, i, j = max(pairs)
        found = lines._largest_rise(values)
        assert found == ((i, j, best) if best > 0 else (0, 0, 0.0))
    assert lines._largest_rise(np.array([3.0, 2.0, 1.0])) == (0, 0, 0.0)


def test_chance_alone_is_monotone_and_a_real_rise_is_not() -> None:
    """Curves that fall or lie flat in truth: at most one in forty is to be called a rise (the interval is two-sided at 95%)."""
    a = np.linspace(0, 1, 21)
    wrong = right = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        noise = random.normal(size=(21, 200)) * 0.5
        wrong += rise(a, 1 + noise, seed=seed).monotone is False
        right += rise(a, 1 + 0.3 * np.sin(math.pi * a)[:, None] + noise, seed=seed).monotone is False
    assert wrong <= 6  # the chance of more is 0.1% at 2.5%
    assert right >= 55


def test_the_pair_is_tested_on_the_other_half() -> None:
    """Examples whose losses are drawn anew at every point: the half that chooses sees a rise that the other half does not."""
    random = np.random.default_rng(3)
    losses = random.normal(size=(51, 40))
    found = rise(np.linspace(0, 1, 51), losses)
    assert found.rise > 0.5
    assert abs(found.tested) < 0.5 * found.rise
    assert found.monotone
    assert found.n == 20


def test_the_test_repeats_and_respects_weights() -> None:
    random = np.random.default_rng(3)
    losses, a = random.normal(size=(11, 60)), np.linspace(0, 1, 11)
    assert rise(a, losses, seed=5) == rise(a, losses, seed=5)
    w = np.r_[np.full(30, 1 / 30), np.zeros(30)]
    half = rise(a, losses[:, :30])
    assert rise(a, losses, w).rise == pytest.approx(half.rise)


def test_few_examples_are_not_tested() -> None:
    found = rise(np.linspace(0, 1, 3), np.array([[1.0], [2.0], [0.0]]) + np.zeros((3, 10)))
    assert found.monotone is None
    assert math.isnan(found.tested)
