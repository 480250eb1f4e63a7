"""The picture of the four limitations, on small settings."""

import math

import pytest

from gradoscope.report import plots
from gradoscope.studies.limitations import STUDY
from gradoscope.study import Context
from gradoscope.theory.curves import integrator_condition
from tests.studies.information_results import results, same

SMALL = [
    ({"part": "targets", "d": 10, "points": 3}, (0, 1)),
    ({"part": "noise", "d": 10}, (0, 1)),
    ({"part": "conditioning", "n": 4}, ()),
    ({"part": "conditioning", "n": 100}, ()),
    ({"part": "activation"}, (0, 1)),
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


def test_every_claim_holds_here_as_well(found):
    judged = [c.judge(STUDY.name, found) for c in STUDY.claims("quick")]
    assert [j.id for j in judged if not j.as_expected] == []


def test_the_picture_draws(found):
    assert len(plots.render(STUDY.figures("quick")[0].draw(found), "png", dpi=40)) > 1000


@pytest.mark.parametrize("setting", SMALL, ids=lambda s: s[0]["part"])
def test_a_unit_is_the_same_when_it_runs_again(setting):
    assert same(STUDY, *setting)


def test_numbers_against_slow_ones():
    row = STUDY.run({"part": "conditioning", "n": 100}, (), Context()).rows[0]
    assert math.isclose(row["kappa"], integrator_condition(100), rel_tol=1e-6)
    small = STUDY.run({"part": "conditioning", "n": 4}, (), Context()).rows[0]
    flat = 1.0
    for _ in range(small["steps"]):
        flat *= 1 - 1 / small["kappa"]
    assert flat <= 0.01 < flat / (1 - 1 / small["kappa"])
