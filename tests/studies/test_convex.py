"""The study of convex rates: its losses against plain code, determinism, every claim and figure on small runs."""

import math

import numpy as np
import pytest
import torch

from gradoscope.studies._convex import Logistic
from gradoscope.studies.convex import STUDY
from gradoscope.study import Context, Results, Table

TINY = {"logistic": {"rows": 40, "d": 3, "steps": 120}, "worst": {"long": 70}, "cliff": {}, "quadratic": {}, "flow": {"time": 0.5}}


def tiny(values):
    small = {**values, **TINY[values["part"]]}
    if values["part"] == "quadratic":
        small["d"] = 4
        small["kappa"] = min(values["kappa"], 30.0)
    if values["part"] == "flow":
        small["steps"] = [25, 50, 100]
    return small


def test_stacked_logistic_losses_against_autograd_on_each_seed():
    problem = Logistic([3, 8], rows=30, d=4, ridge=0.02)
    theta = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(2):
        alone = Logistic([[3, 8][i]], rows=30, d=4, ridge=0.02)
        assert torch.equal(alone.z[0], problem.z[i])
        mine = theta[i].clone().requires_grad_()
        loss = torch.log1p(torch.exp(-problem.z[i] @ mine)).mean() + 0.01 * mine @ mine
        assert float(problem.losses(theta)[i]) == pytest.approx(float(loss.detach()))
        torch.testing.assert_close(problem.gradient(theta)[i], torch.autograd.grad(loss, mine)[0])
        hessian = torch.autograd.functional.hessian(
            lambda t, i=i: torch.log1p(torch.exp(-problem.z[i] @ t)).mean() + 0.01 * t @ t, theta[i]
        )
        assert float(torch.linalg.eigvalsh(hessian)[-1]) <= float(problem.smoothness[i])
    assert float(problem.gradient(problem.minimizer()).norm()) < 1e-14


def test_losses_of_a_path_are_those_of_its_points():
    problem = Logistic([1, 2], rows=20, d=3, ridge=0.0)
    path = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(problem.losses(path), torch.stack([problem.losses(point) for point in path]))


def test_cliff_by_hand():
    result = STUDY.run({"part": "cliff", "lr": 0.02, "clip": 1.0, "steps": 3}, (), Context())
    w = 2.0
    for _ in range(3):
        g = 5 * w**4 * (w**5 - 1)
        w -= 0.02 * g / max(1.0, abs(g))
    (row,) = [r for r in result.rows if r["clipped"] and r["schedule"] == "constant" and r["bits"] == 64]
    assert row["w"] == pytest.approx(w, rel=1e-12)


@pytest.fixture(scope="module", params=["quick", "paper"])
def results(request):
    rows, curves, arrays = [], [], []
    for setting in STUDY.grid(request.param):
        result = STUDY.run(tiny(setting.values), (0, 1) if setting.seeds else (), Context())
        rows += [{**setting.values, **row} for row in result.rows]
        curves += [{**setting.values, **row} for row in result.curves]
        arrays.append((setting.values, (0, 1), lambda found=result.arrays: found))
    return request.param, Results(Table(rows), Table(curves), arrays)


def test_every_claim_can_be_measured_and_theorems_hold(results):
    scale, found = results
    claims = STUDY.claims(scale)
    assert len({claim.id for claim in claims}) == len(claims)
    for claim in claims:
        judged = claim.judge(STUDY.name, found)
        assert not math.isnan(judged.measured), claim.id
        if claim.id.endswith("-bound") or claim.id in ("tight-is-attained", "lower-bound", "inequality-is-uphill", "clipping-mends"):
            assert judged.holds, claim.id


def test_every_figure_draws(results):
    scale, found = results
    for figure in STUDY.figures(scale):
        assert figure.draw(found).axes


def test_a_unit_gives_the_same_bits_again_and_leaves_the_random_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    logistic = {"part": "logistic", "mu": 0.01, "rows": 30, "d": 3, "steps": 50}
    for values in (logistic, {"part": "flow", "kind": "tanh", "time": 0.2, "steps": [5, 10]}):
        first, second = (STUDY.run(values, (0, 1), Context()) for _ in range(2))
        assert first.rows == second.rows
        assert first.curves == second.curves
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
