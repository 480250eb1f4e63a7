"""The study of linear networks: its stacked descent against autograd on single networks, determinism, claims and figures."""

import math

import pytest
import torch
from torch import nn

from gradoscope.studies._linear_networks import _data, _start, train
from gradoscope.studies.linear_networks import STUDY
from gradoscope.study import Context, Results, Table
from gradoscope.theory.linear_minima import component

TINY = {
    "factor": {"steps": 400, "every": 20, "lr": 1e-3},
    "single": {"steps": 5, "rows": 16},
    "modes": {"time": 4.0, "lr": 1e-2, "rows": 16},
    "small": {"steps": 60, "rows": 16},
    "minima": {"points": 4},
}


@pytest.mark.parametrize("tanh", [False, True])
def test_a_stack_is_a_plain_loop_over_each_seed(tanh):
    seeds, ends = [5, 2], []
    gamma, x = _data(seeds, [2.0, 1.0, 0.5], 20)
    q, w = _start(seeds, 4, 0.3)
    train(q, w, gamma, x, 0.02, 15, lambda step, q, w: ends.append((q, w)), tanh=tanh)
    for i in range(2):
        model = nn.Sequential(nn.Linear(10, 4, bias=False), nn.Tanh() if tanh else nn.Identity(), nn.Linear(4, 7, bias=False)).double()
        with torch.no_grad():
            model[0].weight.copy_(w[i])
            model[2].weight.copy_(q[i])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        for _ in range(15):
            optimizer.zero_grad()
            (model(x[i]) - x[i] @ gamma[i].T).square().sum(1).mean().backward()
            optimizer.step()
        torch.testing.assert_close(ends[-1][0][i], model[2].weight.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ends[-1][1][i], model[0].weight.detach(), rtol=1e-10, atol=1e-12)


def test_inputs_are_whitened_exactly_and_do_not_depend_on_their_neighbours():
    gamma, x = _data([5, 2], [2.0, 1.0], 20)
    for one in x:
        torch.testing.assert_close(one.T @ one / 20, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.linalg.svdvals(gamma[0])[:3], torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)
    alone, _ = _data([2], [2.0, 1.0], 20)
    assert torch.equal(alone[0], gamma[1])


def test_pairs_of_minima_lie_in_one_component_for_even_seeds_and_in_two_for_odd_ones():
    found = STUDY.run({"part": "minima", "sigmas": [3.0, 2.0, 1.0], "width": 3, "points": 5}, range(6), Context())
    assert [row["same"] for row in found.rows] == [True, False] * 3
    for row in found.rows:
        assert row["path"] == pytest.approx(0.0 if row["same"] else 1.0, abs=1e-9)
    sigma = torch.eye(1, dtype=torch.float64)
    assert component(sigma, sigma, sigma) == -component(-sigma, -sigma, sigma)


@pytest.fixture(scope="module", params=["quick", "paper"])
def results(request):
    rows, curves, arrays = [], [], []
    for setting in STUDY.grid(request.param):
        values = {**setting.values, **TINY.get(setting.values["part"], {})}
        result = STUDY.run(values, (0, 1) if setting.seeds else (), Context())
        rows += [{**setting.values, **row} for row in result.rows]
        curves += [{**setting.values, **row} for row in result.curves]
        arrays.append((setting.values, (0, 1), lambda found=result.arrays: found))
    return request.param, Results(Table(rows), Table(curves), arrays)


EXACT = (
    "derivative-",
    "taylor-",
    "critical-",
    "one-minimum",
    "connected-4",
    "within-",
    "between-",
    "depth-",
    "finite-delay-order",
    "transformed",
)


def test_every_claim_can_be_measured_and_theorems_hold(results):
    scale, found = results
    claims = STUDY.claims(scale)
    assert len({claim.id for claim in claims}) == len(claims)
    for claim in claims:
        judged = claim.judge(STUDY.name, found)
        assert not math.isnan(judged.measured) or claim.id.startswith("tanh"), claim.id  # too few steps to rise: inf / inf
        if claim.id.startswith(EXACT):
            assert judged.holds, claim.id


def test_every_figure_draws(results):
    scale, found = results
    for figure in STUDY.figures(scale):
        assert figure.draw(found).axes


def test_a_unit_gives_the_same_bits_again_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    for part in ("small", "factor"):
        values = next(s.values for s in STUDY.grid("quick") if s.values["part"] == part) | TINY[part]
        first, second = (STUDY.run(values, (0, 1), Context()) for _ in range(2))
        assert first.rows == second.rows
        assert first.curves == second.curves
        assert all(torch.equal(first.arrays[k], second.arrays[k]) for k in first.arrays)
    assert torch.equal(before, torch.get_rng_state())
