"""The study of SGD: vectorised runs against plain loops, determinism, and every claim and figure on small runs."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.problems._data import digits
from gradoscope.stacked import generator, numpy_generator, start_like_source
from gradoscope.studies import _sgd, _sgd_data, _sgd_nets
from gradoscope.studies._sgd_claims_data import best_rate, gains
from gradoscope.studies.sgd import STUDY
from gradoscope.study import Context, Results, Setting, Table
from gradoscope.theory import sgd

SMALL = {
    "rates": {"steps": 300, "runs": 4},
    "transient": {"steps": 6000},
    "ball": {"steps": 60, "runs": 4},
    "afar": {"steps": 200, "runs": 4},
    "stall": {"steps": 100, "runs": 4},
    "curvature": {"draws": 2, "steps": 20},
    "batches": {"d": 4, "kappa": 5, "largest": 6},
    "orders": {"n": 20, "runs": 3, "epochs": 2},
    "classes": {"batch": 64, "epochs": 1},
    "budget": {"runs": 2},
    "early": {"epochs": 2},
    "adagrad": {"d": 6, "runs": 3, "steps": 60},
    "network batches": {"most": 12},
    "methods": {"steps": 3},
}


@pytest.fixture(autouse=True, scope="module")
def small_budgets():
    """Budgets and samples of a hundredth, in every module that reads them."""
    from gradoscope.studies import _sgd_claims_data, _sgd_figures

    patch = pytest.MonkeyPatch()
    for module in (_sgd_data, _sgd_claims_data, _sgd_figures):
        patch.setattr(module, "BUDGETS", (100, 400, 1000))
        patch.setattr(module, "SIZES", (30, 60, 200))
    yield
    patch.undo()


def small(scale):
    for setting in STUDY.grid(scale):
        yield Setting({**setting.values, **SMALL[setting.values["part"]]}, 2 if setting.seeds else 0, 2)


def gathered(settings):
    rows, curves = [], []
    for setting in settings:
        result = STUDY.run(setting.values, (0, 1) if setting.seeds else (), Context())
        json.dumps([result.rows, result.curves], default=lambda v: v.tolist())
        rows += [{**setting.values, **row} for row in result.rows]
        curves += [{**setting.values, **row} for row in result.curves]
    return Results(Table(rows), Table(curves))


@pytest.fixture(scope="module")
def results():
    return gathered(small("quick"))


def test_the_grid_has_every_part_at_both_scales_with_five_seeds_at_least():
    for scale in ("quick", "paper"):
        grid = STUDY.grid(scale)
        assert {s.values["part"] for s in grid} == set(SMALL)
        assert all(s.seeds == 0 or s.seeds >= 5 for s in grid)
        assert len({json.dumps(dict(s.values), sort_keys=True) for s in grid}) == len(grid)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_every_claim_can_be_measured(results, scale):
    claims = STUDY.claims(scale)
    assert len({c.id for c in claims}) == len(claims)
    for claim in claims:
        judged = claim.judge(STUDY.name, results)
        assert judged.seeds >= 1, claim.id
        # on twelve steps no network gets to its target, and ratios of "never" are none
        assert not math.isnan(judged.measured) or claim.id.startswith("network"), claim.id
    theorems = ("adagrad-regret", "adagrad-bound-smaller", "non-smooth-bound")
    assert all(c.judge(STUDY.name, results).holds for c in claims if c.id in theorems)


def test_every_figure_draws(results):
    for figure in STUDY.figures("quick"):
        drawing = figure.draw(results)
        assert any(ax.lines for ax in drawing.axes), figure.name
        assert len(figure.caption) > 80


def test_the_same_unit_twice_is_the_same_to_the_bit_and_a_seed_does_not_see_the_others():
    seen = set()
    for setting in small("quick"):
        name = setting.values["part"]
        if name in seen:
            continue
        seen.add(name)
        seeds = (3, 4) if setting.seeds else ()
        a, b = (STUDY.run(setting.values, seeds, Context()) for _ in range(2))
        assert json.dumps([a.rows, a.curves], default=float) == json.dumps([b.rows, b.curves], default=float), name
        if seeds and name not in ("early", "methods", "network batches"):  # products of stacks round otherwise
            alone = STUDY.run(setting.values, (4,), Context())
            assert [r for r in a.rows if r["seed"] == 4] == alone.rows, name


def test_a_stream_of_many_runs_is_a_plain_loop():
    values, seeds = {"steps": 120, "runs": 2}, (7, 8)
    result = _sgd.rates(values, seeds, Context())
    eigenvalues = np.linspace(1, 2, 5)
    draws = numpy_generator(8, _sgd.KEY, 1).standard_normal((120, 6, 2))
    for schedule in _sgd.SCHEDULES:
        excess, averaged = [], []
        for run in range(2):
            theta, total = np.ones(5), np.zeros(5)
            for t in range(120):
                rate = max(schedule.c * (t + 1 + schedule.delay) ** -schedule.alpha, schedule.least)
                x = draws[t, :5, run] * np.sqrt(eigenvalues)
                theta = theta - rate * (x @ theta - draws[t, 5, run]) * x
                total += theta
            excess.append(0.5 * eigenvalues @ theta**2)
            averaged.append(0.5 * eigenvalues @ (total / 120) ** 2)
        row = next(r for r in result.rows if r["seed"] == 8 and r["schedule"] == schedule.name)
        assert math.isclose(row["excess"], np.mean(excess), rel_tol=1e-6)
        assert math.isclose(row["average"] * sgd.averaged_optimum(5, 120), np.mean(averaged), rel_tol=1e-6)


def test_orders_are_a_plain_loop():
    n, runs = 15, 2
    result = _sgd_data.orders({"n": n, "runs": runs, "epochs": 2}, (5,), Context())
    random = numpy_generator(5, _sgd.KEY, 11)
    x = random.standard_normal((runs, n, 10))
    y = x.sum(2) + random.standard_normal((runs, n))
    gaps = np.zeros((3, runs))
    orders = [(random.permuted(np.tile(np.arange(n), (runs, 1)), axis=1), random.integers(0, n, (runs, n))) for _ in range(2)]
    for run in range(runs):
        loss = lambda w, r=run: 0.5 * np.mean((x[r] @ w - y[r]) ** 2)  # noqa: E731
        best = loss(np.linalg.lstsq(x[run], y[run], rcond=None)[0])
        for k in range(3):
            w, t = np.zeros(10), 0
            for shuffled, drawn in orders:
                for i in (shuffled[run], np.arange(n), drawn[run])[k]:
                    t += 1
                    w = w - 2 / (t + 100) * (x[run, i] @ w - y[run, i]) * x[run, i]
            gaps[k, run] = loss(w) - best
    assert np.allclose([result.rows[0][f"gap_{k}"] for k in range(3)], gaps.mean(1), rtol=1e-9)


def test_gradient_descent_under_a_budget_is_a_plain_loop():
    """The closed form of its steps, on the study's own draws."""
    result = _sgd_data.budget({"runs": 1}, (6,), Context())
    random, eigenvalues = numpy_generator(6, _sgd.KEY, 13), np.geomspace(1, 0.05, 20)
    target = 2 * random.standard_normal((1, 20))[0]
    for n in _sgd_data.SIZES:
        x = random.standard_normal((1, n, 20))[0]
        error = _sgd_data.BEND * (x[:, 0] ** 2 - 1) / math.sqrt(2) + random.standard_normal((1, n))[0]
        x = x * np.sqrt(eigenvalues)
        y, w = x @ target + error, np.zeros(20)
        rate = 1 / np.linalg.eigvalsh(x.T @ x / n)[-1]
        for _ in range(_sgd_data.BUDGETS[-1] // n):
            w -= rate * x.T @ (x @ w - y) / n
        row = next(r for r in result.rows if r["method"] == "GD" and r["n"] == n and r["budget"] == _sgd_data.BUDGETS[-1])
        assert math.isclose(row["excess"], 0.5 * eigenvalues @ (w - target) ** 2, rel_tol=1e-6)
        own = np.linalg.lstsq(x, y, rcond=None)[0]
        assert math.isclose(row["estimation"], 0.5 * eigenvalues @ (own - target) ** 2, rel_tol=1e-6)


def test_a_stack_under_each_rule_is_a_network_alone():
    """Losses scaled by the rates at rate one are the rates themselves; the batches are those of the seed."""
    net = "tanh 64-32-32-10"
    for method in _sgd_nets.METHODS:
        result = _sgd_nets.methods({"net": net, "method": method, "steps": 4}, (2, 9), Context())
        rate = _sgd_nets.RATES[1]
        model = start_like_source(_sgd_nets.network(net), generator(9, _sgd.KEY, 21))
        (x, y), _ = digits(9)
        random = numpy_generator(9, _sgd.KEY, 22)
        rule = getattr(_sgd_nets.lecture, method)
        more = {} if method == "SGD" else {"alpha": _sgd_nets.ALPHA}
        optimizer = rule(model.parameters(), lr=rate * (0.1 if method == "NesterovA" else 1.0), **more)
        for _ in range(4):
            chosen = torch.from_numpy(random.permutation(len(x))[:64])

            def closure(model=model, optimizer=optimizer, part=(x[chosen], y[chosen])):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(part[0]), part[1])
                loss.backward()
                return loss

            optimizer.step(closure)
        own = nn.functional.cross_entropy(model(x), y).item()
        row = next(r for r in result.rows if r["seed"] == 9 and r["rate"] == rate)
        assert math.isclose(row["loss"], own, rel_tol=1e-4), method


def test_the_rate_of_a_seed_is_chosen_on_the_others():
    rates = _sgd_nets.RATES
    rows = [{"seed": s, "rate": r, "loss": 1.0 + (r != rates[0])} for s in range(3) for r in rates]
    for row in rows:
        if row["seed"] == 2 and row["rate"] == rates[3]:
            row["loss"] = 1e-9  # one seed's luck
        if row["rate"] == rates[4]:
            row["loss"] = math.nan
    table = Table(rows)
    assert best_rate(table, 2) == rates[0]
    assert best_rate(table, 0) == rates[3]
    both = [
        {"part": "methods", "net": "a", "method": m, **row, "loss": row["loss"] * k} for m, k in (("SGD", 2.0), ("M", 1.0)) for row in rows
    ]
    assert np.allclose(gains(Results(Table(both), Table([])), "a", "M"), math.log(2))


def test_the_slope_of_the_cross_entropy_is_autograds():
    scores = torch.randn(3, 5, 10, generator=generator(0, 1), dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 10, (3, 5), generator=generator(0, 2))
    losses, slope = _sgd_data.cross_entropy.slope(scores.detach(), y)
    own = _sgd_data.cross_entropy(lambda x: x, scores, y)
    assert torch.allclose(losses, own.detach(), atol=1e-14)
    assert torch.allclose(slope, torch.autograd.grad(own.sum(), scores)[0], atol=1e-14)


def test_early_stopping_sees_noisy_labels_and_clean_images():
    result = _sgd_data.early({"epochs": 3, "rate": 0.2}, (0,), Context())
    losses = [c["loss"] for c in result.curves]
    assert len(losses) == 4
    assert result.rows[0]["loss_best"] == min(losses)
    assert abs(losses[0] - math.log(10)) < 0.8
