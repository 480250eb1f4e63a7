"""The study of wide networks on separable data, on small settings."""

import math

import pytest

from gradoscope.problems.separable import separated
from gradoscope.report import plots
from gradoscope.studies._separable import _plane, _start
from gradoscope.studies.separable import PARTS, PLANE, RATES, STUDY
from gradoscope.study import Context
from tests.studies.information_results import results, same

SEEDS = (0, 1)
SMALL = [
    *(({"part": "width", "k": k, "slope": a, "eta": eta, **PLANE, "n": 40}, SEEDS) for a, eta in RATES for k in (1, 10, 50)),
    ({"part": "steps", "k": 10, "slope": 0.2, "eta": 0.3, **PLANE, "n": 40}, SEEDS),
    ({"part": "orthonormal", "d": 5, "k": 2, "slopes": (0.3, 0.8), "etas": (0.01, 0.1, 1.0)}, ()),
    *(({"part": "compression", "d": 10, "margin": 0.35, "k": 5, "slope": 0.5, "eta": 1.0, "n": n}, SEEDS) for n in (400, 1600, 6400)),
    ({"part": "dead", "k": 4, "kicks": 5, **PLANE, "n": 60}, SEEDS),
    *(({"part": "relu", "d": 64, "runs": 60, "eta": 0.5, "k": k, "slope": 0.0}, SEEDS) for k in (4, 6, 8, 10, 12)),
    ({"part": "relu", "d": 64, "runs": 20, "eta": 0.5, "k": 1, "slope": 0.1}, SEEDS),
    *(
        (
            {
                **{"part": "images", "data": "digits", "slope": 0.2, "eta": 10.0, "train": 3000, "test": 1000, "epochs": 300},
                "hidden": h,
            },
            SEEDS,
        )
        for h in (10, 100, 1000)
    ),
    *(({"part": "labels", "d": 20, "n": 40, "slope": 0.1, "eta": 1.0, "k": k, "epochs": 60}, SEEDS) for k in (2, 10, 100)),
    *(({"part": "baum", "d": 5, "n": n, "shift": 0.0}, SEEDS) for n in (200, 800, 3200)),
    ({"part": "baum", "d": 5, "n": 800, "shift": 1.5}, SEEDS),
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


def test_every_claim_can_be_measured(found):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims("quick")}
    assert len(judged) == len(STUDY.claims("quick"))
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged.values())
    # statistics over few seeds, and few labels with few passes, need the study's own sizes
    loose = ("baum-", "labels-", "images-", "relu-")
    assert [j.id for j in judged.values() if not j.id.startswith(loose) and not j.as_expected] == []


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("part", ["width", "steps", "compression", "relu", "labels", "baum"])
def test_a_unit_is_the_same_when_it_runs_again(part):
    values, seeds = next(s for s in SMALL if s[0]["part"] == part)
    assert same(STUDY, values, seeds)


def test_the_bound_of_a_row_is_the_formula():
    values = {"part": "width", "k": 10, "slope": 0.5, "eta": 1.0, **PLANE}
    row = STUDY.run(values, (4,), Context()).rows[0]
    norm = row["norm"]
    assert row["bound"] == pytest.approx(norm**2 / 0.25 * 3 + 2 * norm / 0.5)
    w, random = _plane(4, 20)
    x, y = separated(100, 20, 0.15, w, random)
    assert norm <= 1 / float((y * (x @ w)).min()) + 1e-9  # no longer than the plane that made the data
    assert float(_start(4, 10, 20).norm()) == pytest.approx(1)


def test_the_linear_share_of_a_linear_network_is_one():
    values = dict(SMALL[-9][0]) | {"slope": 1.0, "hidden": 10, "epochs": 50}
    assert values["part"] == "images"
    row = STUDY.run(values, (0,), Context()).rows[0]
    assert row["linear_r2"] == pytest.approx(1, abs=1e-9)
    assert row["stable_rank"] == pytest.approx(1, abs=1e-9)  # every unit moves along the same sums of images


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    assert {s.values["part"] for s in grid} == set(PARTS)
    keys = [unit.key for s in grid for unit in s.units(STUDY, None)]
    assert len(keys) == len(set(keys))
    assert len({c.id for c in STUDY.claims(scale)}) == len(STUDY.claims(scale))
