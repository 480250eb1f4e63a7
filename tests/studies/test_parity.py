"""The parity study: its units are what a plain loop gives, deterministic, and every claim can be judged on their rows."""

import math

import numpy as np
import pytest
import torch

from gradoscope.measure.target_variance import hinge as each_hinge
from gradoscope.measure.target_variance import target_variance
from gradoscope.problems.parity import bulk_parity, hidden_subset
from gradoscope.report.plots import render
from gradoscope.stacked import bulk
from gradoscope.studies import _parity_training as training
from gradoscope.studies import _search as search
from gradoscope.studies.parity import STUDY
from gradoscope.study import Context, Results, Setting, Table

BASE = {"part": "curve", "d": 5, "steps": 60, "lr": 0.1, "inputs": "signs", "size": 0, "width": 10, "depth": 1}


def run(values, seeds=(0, 1)):
    return STUDY.run(values, seeds, Context())


def plain(values, seed):
    """The plain PyTorch loop of one seed on the same examples."""
    model = training.start(values, seed)
    batches = bulk([seed], bulk_parity(hidden_subset(values["d"], seed, values["size"]), 128, values["inputs"]), training.DATA, values["d"])
    optimizer = torch.optim.SGD(model.parameters(), lr=values["lr"])
    for _ in range(values["steps"]):
        x, y = (t[0] for t in next(batches))
        optimizer.zero_grad()
        torch.relu(1 - y * model(x)).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("change", [{}, {"inputs": "bits", "d": 10}, {"depth": 2, "width": 4}, {"size": 2, "d": 12}], ids=str)
def test_a_row_is_that_of_a_plain_loop(change):
    values = BASE | change
    found = run(values, (3, 4))
    for row in found.rows:
        model, seed = plain(values, row["seed"]), row["seed"]
        x, y = bulk_parity(hidden_subset(values["d"], seed, values["size"]), training.POINTS, values["inputs"])(
            training.numpy_generator(seed, training.FRESH, values["d"]), 1
        )
        score = model(x[0])
        assert row["loss"] == pytest.approx(float(torch.relu(1 - y[0] * score).mean().detach()), abs=2e-4)
        assert row["accuracy"] == pytest.approx(float((score * y[0] > 0).double().mean()), abs=2e-3)
        assert row["subset"] == int(hidden_subset(values["d"], seed, values["size"]).sum())


TINY = {
    "curve": BASE,
    "end": BASE | {"d": 30, "steps": 4, "width": 2},
    "reader": {"part": "reader", "d": 4, "steps": 6, "lr": 0.01, "hidden": 4, "mixed": True},
    "elimination": {"part": "elimination", "d": 10, "extra": 10},
    "search": {"part": "search", "d": 6, "budget": 500, "method": "genetic, examples"},
    "climbing": {"part": "search", "d": 5, "budget": 30, "method": "climbing", "lr": 0.3},
    "oracle": {"part": "oracle", "d": 4, "tolerance": 0.1, "mask_tolerance": 0.25, "lr": 0.3, "steps": 5},
    "cosine": {"part": "cosine", "centre": 2.0, "bound": 8.0, "budget": 14},
}


@pytest.mark.parametrize("part", TINY)
def test_the_same_unit_twice_is_the_same_bit_for_bit(part):
    first, second = run(TINY[part]), run(TINY[part])
    np.testing.assert_equal(first.rows, second.rows)
    np.testing.assert_equal(first.curves, second.curves)
    assert [row["seed"] for row in first.rows if "method" not in row] in ([0, 1], [])


def test_a_small_parity_is_learnt_and_its_row_says_when():
    row = run(BASE | {"steps": 1200}, (0,)).rows[0]
    assert row["accuracy"] == 1
    assert 0 < row["solved"] <= 1200
    assert math.isnan(run(BASE | {"steps": 2}, (0,)).rows[0]["solved"])


@pytest.mark.parametrize(("depth", "inputs"), [(1, "signs"), (1, "bits"), (3, "signs")])
def test_the_path_down_ends_at_a_network_that_computes_the_parity(depth, inputs):
    model = training.start(BASE | {"d": 10, "depth": depth}, 0)
    subset = hidden_subset(10, 0)
    x, y = (t[0] for t in bulk_parity(subset, 2000, inputs)(np.random.default_rng(0), 1))
    before = [p.clone() for p in model.parameters()]
    rise, bottom = training.path_down(model, subset, inputs, x, y)
    assert bottom < 1e-5
    here = float(torch.relu(1 - y * model(x)).mean().detach())
    assert rise == pytest.approx(max(0.0, 1 - here), abs=1e-5)  # the loss is convex in the score, 1 where that is zero
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("depth", "scale"), [(1, 1.0), (2, 1.0), (1, 6.0)])
def test_variance_over_targets_against_the_transform(depth, scale):
    model = training.start({"d": 8, "width": 3, "depth": depth}, 1).double()
    with torch.no_grad():
        model[-1].weight.mul_(scale)  # scores beyond one, where the hinge loss has a quarter
        model[-1].bias.fill_(0.3)
    x = 1 - 2 * ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).double()
    exact = target_variance(model, 8, loss=each_hinge)
    assert 2.0 ** training.log2_variance(model, x) == pytest.approx(exact.weighted / 2**8 / exact.size, rel=1e-9)
    assert 2.0 ** training.log2_variance(model, x) == pytest.approx(exact.variance / exact.size, rel=0.05)


def test_endings_tell_a_bowl_from_a_plateau():
    row = run(BASE | {"d": 30, "steps": 4, "width": 2}, (0,)).rows[0]
    assert row["smallest"] < 0 < row["largest"]
    assert -32 <= row["log2_variance"] <= -30
    assert row["bottom"] < 1e-4
    assert row["noise"] > 0


def test_searches():
    def target(masks):
        return np.where((masks == [1, 0, 1, 1]).all(1), 1.0, 0.5)

    random = np.random.default_rng(0)
    used = [search.exhaustive(target, 4, 16, random) for _ in range(400)]
    assert sorted(set(used)) == list(range(1, 17))
    assert np.mean(used) == pytest.approx(8.5, abs=1)
    assert np.mean([search.random_search(target, 4, 10_000, random) for _ in range(600)]) == pytest.approx(16, rel=0.2)
    assert search.exhaustive(lambda m: np.full(len(m), 0.5), 4, 16, random) == -1
    assert search.random_search(lambda m: np.full(len(m), 0.5), 4, 50, random) == -1
    assert search.genetic(lambda m: np.full(len(m), 0.5), 4, 60, random) == -1
    assert max(search.genetic(lambda m: m.mean(1), 12, 5000, random) for _ in range(20)) < 1000


def test_bayesian_optimisation_finds_the_bottom_of_a_bowl():
    best = search.bayesian(lambda p: float(1 - np.exp(-((p - 1) ** 2).sum() / 8)), 4.0, 35, np.random.default_rng(0))
    assert len(best) == 35
    assert (np.diff(best) <= 0).all()
    assert best[-1] < 0.01


def test_the_oracle_without_tolerance_is_gradient_descent():
    values = {"part": "oracle", "d": 4, "tolerance": 0.0, "mask_tolerance": 0.25, "lr": 0.3, "steps": 12}
    row = run(values, (2,)).rows[0]
    subset = hidden_subset(4, 2, 2)
    model = training.start({"d": 4, "width": 10, "depth": 1}, 2).double()
    x = 1 - 2 * ((torch.arange(16)[:, None] >> torch.arange(4)) & 1).double()
    y = x[:, subset].prod(1, keepdim=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(12):
        optimizer.zero_grad()
        torch.relu(1 - y * model(x)).mean().backward()
        optimizer.step()
    assert row["accuracy"] == pytest.approx(float((model(x) * y > 0).double().mean()))
    assert row["first"] == 0


def shrunk(setting):
    """A setting of the grid at a size that takes no time, under the values that claims ask for."""
    small = dict(setting.values)
    for name, most in (("steps", 2), ("budget", 12)):
        if name in small:
            small[name] = min(small[name], most)
    if "width" in small:
        small |= {"width": 2}
    return small


@pytest.fixture(scope="module", params=["quick", "paper"])
def judged(request):
    rows, curves = [], []
    for setting in STUDY.grid(request.param):
        if setting.values["part"] == "oracle" and setting.values["d"] > 8:
            continue
        seeds = () if setting.seeds == 0 else (0, 1)
        small = shrunk(setting)
        if small["part"] == "search" and "lr" in small:
            small["budget"] = 3
        found = STUDY.run(small, seeds, Context())
        rows += [dict(setting.values) | row for row in found.rows]
        curves += [dict(setting.values) | row for row in found.curves]
    return request.param, Results(Table(rows), Table(curves))


def test_every_claim_can_be_judged(judged):
    scale, results = judged
    claims = STUDY.claims(scale)
    assert len({claim.id for claim in claims}) == len(claims)
    for claim in claims:
        outcome = claim.judge("parity", results)
        assert outcome.seeds > 0, claim.id
        assert math.isfinite(outcome.measured), claim.id
    exact = {claim.id: claim.judge("parity", results) for claim in claims if claim.id.startswith("lemma")}
    assert all(outcome.as_expected for outcome in exact.values())


def test_every_figure_draws(judged):
    scale, results = judged
    for figure in STUDY.figures(scale):
        assert render(figure.draw(results), "png", dpi=40)[:4] == b"\x89PNG"


def test_settings_are_distinct_and_enough_seeds_stand_behind_each():
    for scale in ("quick", "paper"):
        settings = STUDY.grid(scale)
        assert all(isinstance(s, Setting) for s in settings)
        assert len({str(sorted(s.values.items())) for s in settings}) == len(settings)
        assert all(s.seeds == 0 or s.seeds >= 5 for s in settings)
