"""The study of information in the gradient, on small settings."""

import math

import pytest
import torch

from gradoscope.measure.target_variance import cube, hinge, target_variance
from gradoscope.problems.parity import hidden_subset
from gradoscope.report import plots
from gradoscope.studies._information import network, trained_index
from gradoscope.studies.information import STUDY
from gradoscope.study import Context
from tests.studies.information_results import results, same

SEEDS = (0, 1)
NET = {"width_factor": 10, "depth": 1}
SMALL = [
    *({"part": "start", "d": d, "coding": "signs", **NET} for d in (4, 6, 8, 10, 12)),
    {"part": "start", "d": 4, "coding": "bits", **NET},
    *({"part": "start", "d": 8, "coding": "signs", "width_factor": w, "depth": k} for w, k in ((40, 1), (160, 1), (10, 2), (10, 4))),
    {"part": "large", "d": 30, **NET, "examples": 128, "loss": "squared+hinge"},
    {"part": "large", "d": 14, "width_factor": 10, "depth": 2, "examples": 64, "loss": "squared"},
    *({"part": "training", "d": d, "lr": 0.1, "steps": 60, "looks": 4} for d in (8, 10)),
    *({"part": "pairs", "d": d} for d in (4, 6)),
    *({"part": "oracle", "d": d, "steps": 3, "lr": 0.1} for d in (4, 10)),
    {"part": "proof", "d": 5},
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, [(values, SEEDS[:1] if values.get("d") == 12 else SEEDS) for values in SMALL])


def test_every_claim_can_be_measured(found):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims("quick")}
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged.values())
    undecided = {"learns", "own-signal-grows", "hinge-quarter", "many-bits-deep", "thirty-bits"}  # these need their real sizes
    assert [j.id for j in judged.values() if j.id not in undecided and not j.as_expected] == []
    assert [c.id for c in STUDY.claims("paper")] == list(judged)


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("values", [SMALL[0], SMALL[10], SMALL[12], SMALL[14], SMALL[16]], ids=lambda v: v["part"])
def test_a_unit_is_the_same_when_it_runs_again(values):
    assert same(STUDY, values, SEEDS)


def test_stacked_training_is_that_of_a_plain_loop():
    values = {"part": "training", "d": 8, "lr": 0.1, "steps": 40, "looks": 3}
    together = STUDY.run(values, SEEDS, Context())
    alone = STUDY.run(values, (1,), Context())
    mine = [c for c in together.curves if c["seed"] == 1]
    for one, other in zip(mine, alone.curves, strict=True):
        assert one["step"] == other["step"]
        for name in ("accuracy", "ratio_hinge", "ratio_squared", "own"):
            assert math.isclose(one[name], other[name], rel_tol=1e-3)


def test_one_network_by_plain_pytorch():
    from gradoscope.stacked import numpy_generator
    from gradoscope.studies._information import KEY

    d, seed, steps = 8, 1, 40
    model, subset = network(d, seed), hidden_subset(d, seed)
    bits = torch.from_numpy(numpy_generator(seed, KEY, 1, d).integers(0, 2, (100, 128, d), dtype="int8")).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for b in bits[:steps]:
        x = 1 - 2 * b
        y = x[:, subset].prod(1, keepdim=True)
        optimizer.zero_grad()
        torch.relu(1 - y * model(x)).mean().backward()
        optimizer.step()
    last = STUDY.run({"part": "training", "d": d, "lr": 0.1, "steps": steps, "looks": 3}, SEEDS, Context())
    row = next(c for c in last.curves if c["seed"] == seed and c["step"] == steps)
    slow = target_variance(model, d, loss=hinge)
    assert math.isclose(row["ratio_hinge"], slow.ratio, rel_tol=1e-4)
    assert math.isclose(row["own"], float(slow.distances[trained_index(d, seed)]) / slow.bound, rel_tol=1e-3)
    y = cube(d)[:, subset].prod(1)
    with torch.no_grad():
        assert math.isclose(row["accuracy"], float((model(cube(d).float())[:, 0] * y > 0).double().mean()), abs_tol=0.01)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    assert all(s.seeds >= 5 for s in grid)
    largest = max(s.values["d"] for s in grid if s.values["part"] == "start")
    assert largest == (12 if scale == "quick" else 16)
    assert len({repr(s.values) for s in grid}) == len(grid)
