"""The study of search strategies: what is counted, problems against autograd and by hand, claims and figures on small settings."""

import itertools
import math

import numpy as np
import pytest
import torch

from gradoscope.report import plots
from gradoscope.stacked import numpy_generator
from gradoscope.studies import _strategies as search
from gradoscope.studies._strategies_tasks import Moons, Quadratic, SampledCosine, relaxed_parity
from gradoscope.studies.strategies import STUDY
from gradoscope.study import Context
from tests.studies.information_results import results, same

SEEDS = (0, 1)


def small(scale):
    found = []
    for setting in STUDY.grid(scale):
        values = dict(setting.values)
        if "budget" in values:
            values |= {"budget": 1500 if values.get("d") == 50 else 300, "model_budget": 14}
        elif values["d"] > 8:
            continue
        found.append((values, SEEDS))
    return [*found, ({"part": "parity", "d": STUDY.grid(scale)[-1].values["d"], "rows": 40}, SEEDS)]


@pytest.fixture(scope="module", params=["quick", "paper"])
def found(request):
    return request.param, results(STUDY, small(request.param))


def draw(*keys):
    return numpy_generator(7, *keys)


def test_a_trace_counts_and_refuses_what_it_cannot_pay():
    trace = search.Trace(lambda p: p[:, 0], 5)
    trace(np.array([[3.0], [2.0]]))
    trace.slope(lambda p: (float(p[0]), p), np.array([1.0]))  # one forward pass and two for the backward pass
    assert (trace.used, trace.best, trace.steps) == (5, 1.0, [(1, 3.0), (2, 2.0), (5, 1.0)])
    with pytest.raises(search.Spent):
        trace(np.zeros((1, 1)))
    assert trace.used == 5
    assert trace.at(np.array([1, 2, 4, 5])).tolist() == [3.0, 2.0, 2.0, 1.0]
    assert math.isnan(search.Trace(lambda p: p[:, 0], 5).at(np.array([1]))[0])
    assert trace.reached(2.0) == 2
    assert trace.reached(0.5) == math.inf


@pytest.mark.parametrize(("d", "budget"), [(2, 100), (2, 99), (3, 1000), (5, 31), (20, 10)])
def test_the_grid_is_the_finest_that_can_be_paid(d, budget):
    side = search.grid_side(d, budget)
    assert side**d <= budget < (side + 1) ** d
    points = []
    search.grid(search.Trace(lambda p: points.extend(p.tolist()) or np.zeros(len(p)), budget), d, 2.0, draw(1))
    axis = [2.0 * ((2 * k + 1) / side - 1) for k in range(side)]
    assert sorted(map(tuple, np.round(points, 9))) == sorted(tuple(np.round(p, 9)) for p in itertools.product(axis, repeat=d))


def _autograd(f, point):
    p = torch.tensor(point, requires_grad=True)
    value = f(p)
    (slope,) = torch.autograd.grad(value, p)
    return float(value.detach()), slope.numpy()


def test_losses_and_gradients_are_those_of_autograd():
    cosine, moons, quadratic = SampledCosine(3, 4.0, 50, draw(2)), Moons(5, draw(3)), Quadratic(4, 10.0, draw(4))
    x, h = torch.from_numpy(moons.x), 5

    def network(p):
        hidden = (x @ p[: 2 * h].reshape(2, h) + p[2 * h : 3 * h]).tanh()
        return (hidden @ p[3 * h : 4 * h] + p[-1] - torch.from_numpy(moons.y)).square().mean()

    def wave(p):
        return ((torch.from_numpy(cosine.x) @ p).cos() - torch.from_numpy(cosine.y)).square().mean()

    def bowl(p):
        away = p - torch.from_numpy(quadratic.centre)
        return away @ torch.from_numpy(quadratic.hessian) @ away / (2 * quadratic.mean)

    for problem, f, d in ((moons, network, 21), (cosine, wave, 3), (quadratic, bowl, 4)):
        point = draw(5, d).standard_normal(d)
        value, slope = problem.gradient(point)
        expected, by = _autograd(f, point)
        assert value == pytest.approx(expected, rel=1e-10)
        assert problem.loss(point[None])[0] == pytest.approx(expected, rel=1e-10)
        assert np.allclose(slope, by, atol=1e-10)


def test_a_relaxed_parity_is_a_parity_at_a_mask_and_its_gradient_is_right():
    x = np.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    y = x[:, 0] * x[:, 2]
    both = relaxed_parity(x, y)
    assert both(np.array([1.0, 0, 1, 0]))[0] == 0
    assert both(np.array([1.0, 1, 1, 0]))[0] == pytest.approx(2.0)  # another parity: no correlation at all
    p = np.array([0.3, 0.6, 0.8, 0.1])

    def f(q):
        return ((1 - q + q * torch.from_numpy(x)).prod(1) - torch.from_numpy(y)).square().mean()

    value, slope = both(p)
    expected, by = _autograd(f, p)
    assert value == pytest.approx(expected)
    assert np.allclose(slope, by)


def test_the_mean_over_the_cube_is_one_and_the_volume_is_that_of_samples():
    problem = Quadratic(3, 10.0, draw(6))
    losses = problem.loss(draw(7).uniform(-1, 1, (200_000, 3)))
    assert losses.mean() == pytest.approx(1.0, abs=0.01)
    assert (losses <= 0.02).mean() == pytest.approx(float(problem.chance(0.02)), rel=0.1)


@pytest.mark.parametrize("d", [1, 2, 6])
def test_a_quadratic_is_solved_from_its_values(d):
    problem = Quadratic(d, 10.0, draw(8, d))
    trace = search.Trace(problem.loss, 1000)
    search.quadratic_fit(trace, d, 1.0, draw(9))
    assert trace.used == (d + 1) * (d + 2) // 2 + 1
    assert np.allclose(trace.point, problem.centre, atol=1e-9)


def test_descent_pays_for_gradients_and_trials_and_ends_at_the_minimum():
    problem = Quadratic(5, 10.0, draw(10))
    calls = {"loss": 0, "gradient": 0}

    def loss(p):
        calls["loss"] += len(p)
        return problem.loss(p)

    def gradient(p):
        calls["gradient"] += 1
        return problem.gradient(p)

    trace = search.Trace(loss, 5000)
    ends = search.descent(trace, gradient, search.starts(5, 1.0, draw(11)))
    assert trace.used == calls["loss"] + 3 * calls["gradient"]
    assert ends[-1] < 1e-14
    assert np.allclose(trace.point, problem.centre, atol=1e-5)


def test_the_model_finds_a_bowl_with_few_points():
    problem = Quadratic(2, 3.0, draw(12))
    trace = search.Trace(problem.loss, 30)
    search.bayesian(trace, 2, 1.0, draw(13))
    assert trace.used == 30
    assert trace.best < 1e-2


def test_every_claim_can_be_measured(found):
    scale, outcome = found
    if scale == "paper":
        outcome.rows.rows += [row | {"d": 10} for row in outcome.rows.where(part="parity", d=8)]
    judged = {c.id: c.judge(STUDY.name, outcome) for c in STUDY.claims(scale)}
    assert len(judged) == len(STUDY.claims(scale))
    assert all(not math.isnan(j.measured) for j in judged.values())
    for name in ("analytical-exact", "analytical-count", "random-hopeless", "parity-elimination"):
        assert judged[name].holds, name


def test_figures_draw(found):
    scale, outcome = found
    for figure in STUDY.figures(scale):
        assert len(plots.render(figure.draw(outcome), "png", dpi=40)) > 1000
        assert len(figure.caption) > 60


@pytest.mark.parametrize("part", ["quadratic", "moons", "parity"])
def test_a_unit_is_the_same_when_it_runs_again_and_alone(part):
    values = next(v for v, _ in small("quick") if v["part"] == part)
    assert same(STUDY, values, SEEDS)
    together, alone = STUDY.run(values, (0, 1), Context()).rows, STUDY.run(values, (1,), Context()).rows
    assert [row for row in together if row["seed"] == 1] == alone


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    assert all(s.seeds >= 5 for s in grid)
    assert len({repr(s.values) for s in grid}) == len(grid)
