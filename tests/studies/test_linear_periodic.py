"""The study of the linear-periodic landscape, on small settings."""

import math

import pytest
import torch

from gradoscope.report import plots
from gradoscope.stacked import generator
from gradoscope.studies._linear_periodic import KEY, LAWS, law_at
from gradoscope.studies.linear_periodic import RADII, STUDY
from gradoscope.study import Context
from gradoscope.theory.linear_periodic import gradient, on_sphere
from tests.studies.information_results import results, same

SEEDS = (0, 1)
TABLE = {"dimensions": (2, 4, 16, 24), "radii": (1, 4, 16)}
SMALL = [
    *(({"part": "landscape", "r": r, "points": 41}, ()) for r in RADII),
    *(({"part": "critical", "r": r, "starts": 400}, SEEDS) for r in RADII[2:5]),
    ({"part": "montecarlo", "draws": 20_000}, SEEDS),
    *(({"part": "targets", "d": 10, "r": r, "size": 1.0, "draws": 4000}, SEEDS) for r in (1.0, 2.0, 4.0, 6.0, 8.0)),
    *(({"part": "targets", "d": d, "r": 6.0, "size": 6.0, "draws": 4000}, SEEDS) for d in (2, 5, 10, 20, 50)),
    ({"part": "worst", **TABLE}, ()),
    *(({"part": "laws", "law": law, "d": d, "radii": (4, 8, 12), "draws": 500}, SEEDS) for law in LAWS for d in (2, 10)),
    *(({"part": "descent", "d": d, "r": r, "starts": 20, "steps": 200}, SEEDS) for d in (2, 5, 10) for r in (1.0, 3.0, 6.0)),
    *(({"part": "flat", "d": d, "r": r}, SEEDS) for d in (2, 5, 10) for r in (1.0, 3.0, 6.0)),
    *(({"part": "oracle", "d": d, "r": r, "steps": 5, "draws": 2000}, SEEDS) for d in (2, 10, 20) for r in (2.0, 4.0, 6.0, 8.0)),
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


def test_every_claim_can_be_measured(found):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims("quick")}
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged.values())
    undecided = {"finds-slow-targets", "misses-at-six-2d", "misses-at-six-5d", "misses-at-six-10d"}  # these need their 3,000 steps
    assert [j.id for j in judged.values() if j.id not in undecided and not j.as_expected] == []
    assert [j.id for j in judged.values() if j.expected_to_fail] == ["no-saddles"]


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("part", ["critical", "montecarlo", "laws", "descent", "oracle", "flat"])
def test_a_unit_is_the_same_when_it_runs_again(part):
    values, seeds = next(s for s in SMALL if s[0]["part"] == part)
    assert same(STUDY, values, seeds)


def test_descents_side_by_side_are_those_of_a_plain_loop():
    values = {"part": "descent", "d": 3, "r": 4.0, "starts": 10, "steps": 100}
    rows = STUDY.run(values, SEEDS, Context()).rows
    points = on_sphere(20, 3, 4.0, generator(1, KEY, 6))
    hits = 0
    for w, target in zip(points[:10], points[10:], strict=True):
        for _ in range(100):
            w = w - 0.5 * gradient(w, target, half=True)
        hits += min(float((w - target).norm()), float((w + target).norm())) < 0.14  # loss below 0.01 in the well
    assert rows[1]["success"] == hits / 10


def test_laws_have_their_draws_variance():
    for name in LAWS:
        law, tail = law_at(name, 3, 2.0)
        x = law.sample(50_000, torch.Generator().manual_seed(0))
        u = torch.tensor([0.7, -0.2, 0.4], dtype=torch.float64)
        each = torch.cos(x @ u)
        assert abs(float(each.mean() - law.cosine(u))) < 4 * float(each.std()) / math.sqrt(len(each)) + 1e-9
        assert 0 < tail < 1


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    assert all(s.seeds in (0, 5, 10) for s in grid)
    assert len({repr(s.values) for s in grid}) == len(grid)
    montecarlo = next(s for s in grid if s.values["part"] == "montecarlo")
    assert montecarlo.values["draws"] == (200_000 if scale == "quick" else 4_000_000)
