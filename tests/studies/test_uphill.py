"""The study of uphill steps: one chain by hand, closed forms, claims and figures on small runs."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.problems import find
from gradoscope.report import plots
from gradoscope.stacked import numpy_generator
from gradoscope.studies._uphill import KEY, curvature_share, spectrum
from gradoscope.studies.uphill import LARGE, NETWORKS, SMALL, STUDY
from gradoscope.study import Context
from tests.studies.information_results import results, same

SEEDS = (0, 1)
TINY = {"chains": {"runs": 60, "steps": 150}, "estimates": {"repeats": 12, "flips": 49}, "null": {"repeats": 30, "flips": 49}, "parts": {}}
NORMS = {"part": "norms", "problem": "factored:healthy", "steps": 12, "looks": 5, "rows": 40}
SMALLER = [(dict(s.values) | TINY[s.values["part"]], SEEDS) for s in STUDY.grid("quick") if s.values["part"] != "norms"] + [(NORMS, SEEDS)]


@pytest.fixture(scope="module")
def found():
    """Every part; a training of seconds stands in for the networks, under their names."""
    outcome = results(STUDY, SMALLER)
    for table in (outcome.rows, outcome.curves):
        table.rows += [row | {"problem": name} for name in NETWORKS for row in table.where(part="norms")]
        table.rows[:] = [row for row in table.rows if row.get("problem") != NORMS["problem"]]
    return outcome


def test_a_single_chain_by_hand():
    values = {"part": "chains", "d": 3, "condition": 4.0, "start": 2.0, "steps": 6, "runs": 1, "eta": 0.1}
    with np.errstate(invalid="ignore", divide="ignore"):  # one chain has no standard error
        curves = STUDY.run(values, (5,), Context()).curves
    h, draw, theta = np.diag([1.0, 2.0, 4.0]), numpy_generator(5, KEY, 1), np.full(3, 2.0)
    loss = lambda p: p @ h @ p / 2  # noqa: E731  # the formula as it is written
    for t in range(6):
        noise = draw.standard_normal((1, 3))[0]
        new = theta - 0.1 * (h @ theta + noise)
        assert curves[t]["change"] == pytest.approx(loss(new) - loss(theta))
        g = h @ theta
        assert curves[t]["D"] == pytest.approx(0.1 * g @ g)
        assert curves[t]["C"] == pytest.approx(0.005 * g @ h @ g)
        assert curves[t]["M"] == pytest.approx(0.005 * np.trace(h))
        theta = new


def test_the_share_at_rest_is_that_of_the_stationary_covariance():
    lam, eta = spectrum(4, 10.0), 0.15
    h, cov = np.diag(lam), np.zeros((4, 4))
    step = np.eye(4) - eta * h
    for _ in range(3000):  # the recursion of second moments
        cov = step @ cov @ step + eta**2 * np.eye(4)
    d, c, m = eta * np.trace(h @ h @ cov), eta**2 / 2 * np.trace(h @ h @ h @ cov), eta**2 / 2 * np.trace(h)
    assert d == pytest.approx(c + m, rel=1e-9)
    assert curvature_share(lam, eta) == pytest.approx(c / (c + m), rel=1e-9)


def test_every_claim_can_be_measured(found):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims("quick")}
    assert len(judged) == len(STUDY.claims("quick")) == len(STUDY.claims("paper")) - 2  # the LSTM
    assert all(math.isfinite(j.measured) for j in judged.values())
    for name in ("two-batch-sizes", "parts-sum-to-zero", "downhill-from-afar", "downhill-at-rest"):
        assert judged[name].as_expected, name


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 60


@pytest.mark.parametrize("at", range(len(SMALLER)))
def test_a_unit_is_the_same_when_it_runs_again_and_alone(at):
    values, seeds = SMALLER[at]
    assert same(STUDY, values, seeds)
    together, alone = STUDY.run(values, (0, 1), Context()).rows, STUDY.run(values, (1,), Context()).rows
    assert [row for row in together if row["seed"] == 1] == alone


def test_snapshots_are_gradients_along_a_plain_training():
    values = {"part": "norms", "problem": "factored:healthy", "steps": 4, "looks": 10, "rows": 64}
    curves = STUDY.run(values, (3,), Context()).curves
    training = find("factored:healthy", seed=3)
    x, y = training.data
    model = training.model()
    optimizer = training.optimizer(model.parameters())
    norms = []
    for at in range(5):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()))
        assert curves[at]["snapshot"] == pytest.approx(norms[-1], rel=1e-4)
        assert curves[at]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
        optimizer.step()
    assert [c["running"] for c in curves[1:]] == pytest.approx(norms[:4], rel=1e-4)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    assert all(s.seeds >= 5 for s in grid)
    assert {s.values["eta"] for s in grid if s.values["part"] == "chains"} == {SMALL, LARGE}
    assert SMALL < LARGE < 2 / 10.0
