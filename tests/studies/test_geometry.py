"""The study of local geometry, on small settings."""

import math

import numpy as np
import pytest
import torch

from gradoscope.measure.geometry import kantorovich_bound
from gradoscope.report import plots
from gradoscope.studies._geometry import FUNCTIONS, OPTIMIZERS
from gradoscope.studies.geometry import STUDY
from gradoscope.study import Context
from tests.studies.information_results import results, same

SEEDS = (0, 1)
SMALL = [
    ({"part": "curvature", "steps": 5}, (0,)),
    ({"part": "quadratic", "d": 8, "condition": 100.0, "draws": 5}, SEEDS),
    ({"part": "steps", "steps": 8}, (0,)),
    ({"part": "converged", "d": 3, "steps": 300}, (0,)),
    ({"part": "optimal-step", "eta": 4.0, "steps": 6, "every": 3}, (0,)),
    *(({"part": "efficiency", "d": 20, "draws": 2000, "every": 50, "condition": k, "steps": 3000}, SEEDS) for k in (10, 43, 10_000)),
    ({"part": "classification", "iterations": 100}, ()),
    *(({"part": "flat-minima", "k": k}, SEEDS) for k in (1, 2, 3)),
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


def test_every_claim_can_be_measured(found):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims("quick")}
    assert len(judged) == len(STUDY.claims("quick"))
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged.values())
    assert [j.id for j in judged.values() if j.expected_to_fail] == ["any-length", "efficiency-verdict"]
    statistical = {"efficiency-near", *(f"taylor-{name.replace(' ', '-')}" for name in OPTIMIZERS)}
    assert [j.id for j in judged.values() if j.id not in statistical and not j.as_expected] == []


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("at", [1, 3, 5, 9])
def test_a_unit_is_the_same_when_it_runs_again(at):
    values, seeds = SMALL[at]
    assert same(STUDY, values | ({"steps": 20} if values["part"] == "converged" else {}), seeds)


def test_efficiency_by_inverting_matrices():
    values = {"part": "efficiency", "d": 5, "draws": 50, "every": 1, "condition": 10, "steps": 0}
    row = STUDY.run(values, (4,), Context()).rows[0]
    assert row["least"] >= kantorovich_bound(10.0) == row["bound"]
    lam = np.logspace(0, 1, 5)
    last = STUDY.run(values, (4,), Context()).curves[-1]["efficiency"]
    # the trajectory's first point is the last draw of the generator; any gradient of this spectrum obeys both bounds
    assert row["bound"] <= last <= 1
    g = np.ones(5)
    whole = (g @ g) ** 2 / ((g * lam @ g) * (g / lam @ g))
    assert row["least"] <= whole <= 1


def test_functions_known_by_hand_have_the_critical_points_that_they_are_said_to_have():
    rows = {r["function"]: r for r in STUDY.run({"part": "classification", "iterations": 100}, (), Context()).rows}
    assert set(rows) == set(FUNCTIONS)
    for name, row in rows.items():
        assert row["found"] == row["expected"], name
        assert (row["gradient"] < 1e-8) == (name != "bump")
    assert "null" in rows["bump"]["reason"]
    assert "infinity" in rows["tail"]["reason"]  # its gradient is small as well: that alone would not do


def test_the_training_is_that_of_torch():
    from gradoscope.studies._geometry import _objective, _train

    ours, theirs = _objective(0), _objective(0)
    mine, its = (torch.optim.Adam(o.parameters, lr=0.01) for o in (ours, theirs))
    for _ in range(3):
        _train(ours, mine)
        its.zero_grad()
        theirs.batch_loss(0).backward()
        its.step()
    assert torch.allclose(ours.theta(), theirs.theta(), atol=1e-12)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    assert all(s.seeds in (0, 5) for s in grid)
    assert len({repr(s.values) for s in grid}) == len(grid)
    assert {s.values["part"] for s in grid} == {v["part"] for v, _ in SMALL}
