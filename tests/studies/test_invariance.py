"""The study of permutation-invariant labelling, on small settings."""

import math

import pytest
import torch
from torch.nn import functional as F

from gradoscope.problems.set_labels import draw
from gradoscope.report import plots
from gradoscope.stacked import generator
from gradoscope.studies._invariance import KEY, MODELS, OTHERS, POOL, ceiling, made
from gradoscope.studies.invariance import STUDY
from gradoscope.study import Context
from tests.studies.information_results import results, same

SEEDS = (0, 1)
RUN = {"part": "train", "n": 6, "sets": 3, "test": 60, "batch": 16, "steps": 24, "lr": 0.01}
SMALL = [
    ({"part": "defect", "n": 6, "sets": 3, "graphs": 10, "samples": 3}, SEEDS),
    *(({**RUN, "model": m, "graphs": g}, SEEDS) for m in ("gpi", *OTHERS) for g in (10, 30)),
    *(({**RUN, "model": m, "graphs": 30}, SEEDS) for m in ("gpi-neighbour", "gpi-feature", "gpi-printed")),
    ({"part": "theorem", "letters": 3, "largest": 3}, SEEDS),
    ({"part": "seen"}, ()),
    ({"part": "special", "states": 2, "sizes": (1, 3, 4)}, SEEDS),
]
LEARNT = ("few-graphs", "many-graphs", "attention-", "others-", "lead", "fewer-weights", "printed-behind", "training-")


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_every_claim_can_be_measured(found, scale):
    judged = [c.judge(STUDY.name, found) for c in STUDY.claims(scale)]
    assert len({j.id for j in judged}) == len(judged) > 15
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged)
    # what is learnt needs the study's own sizes; everything else is exact
    assert [j.id for j in judged if not j.id.startswith(LEARNT) and not j.as_expected] == []


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("index", [0, 1, 10, 11, 12])
def test_a_unit_is_the_same_when_it_runs_again(index):
    values, seeds = SMALL[index]
    assert same(STUDY, values, seeds)


def test_a_seed_does_not_depend_on_the_others_of_its_unit(found):
    values = {**RUN, "model": "gpi", "graphs": 10}
    alone = STUDY.run(values, (1,), Context()).rows[0]
    together = found.rows.where(part="train", model="gpi", graphs=10, seed=1)[0]
    assert all(together[key] == value for key, value in alone.items())


def test_training_is_the_plain_loop():
    values, seed = {**RUN, "model": "gpi-feature", "graphs": 30}, 3
    nodes, edges, labels = (t[:30] for t in draw(generator(seed, KEY, 1), POOL, n=6, sets=3))
    model, order = made("gpi-feature", 6, 3, seed), generator(seed, KEY, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(24):
        optimizer.param_groups[0]["lr"] = 0.005 * (1 + math.cos(math.pi * step / 24))
        index = torch.randperm(30, generator=order)[:16]
        optimizer.zero_grad()
        F.cross_entropy(model(nodes[index], edges[index]).transpose(1, 2).reshape(-1, 6), labels[index].reshape(-1)).backward()
        optimizer.step()
    nodes, edges, labels = draw(generator(seed, KEY, 3), 60, n=6, sets=3)
    right = float((model(nodes, edges).argmax(1) == labels).double().mean())
    row = STUDY.run(values, (seed,), Context()).rows[0]
    assert row["accuracy"] == pytest.approx(right, abs=2 / 360)  # the rates differ by rounding
    assert row["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_ceiling_is_the_best_label_of_each_set():
    nodes, _, labels = draw(generator(0, KEY, 9), 40, n=6, sets=3)
    right = 0
    for c, y in zip(nodes.argmax(-1), labels, strict=True):
        for kind in range(3):
            of = y[c == kind].tolist()
            right += max((of.count(v) for v in of), default=0)
    assert ceiling(nodes, labels) == pytest.approx(right / 240)


def test_training_leaves_the_global_streams_alone():
    before = torch.get_rng_state()
    for name in MODELS:
        STUDY.run({**RUN, "model": name, "graphs": 10, "steps": 2}, (0,), Context())
    assert torch.equal(before, torch.get_rng_state())


def test_the_grids_have_every_model_and_five_seeds():
    for scale, most in (("quick", 300), ("paper", 1000)):
        grid = STUDY.grid(scale)
        trains = [s.values for s in grid if s.values["part"] == "train"]
        assert {v["model"] for v in trains if v["graphs"] == most} == set(MODELS)
        assert all(s.seeds == 5 for s in grid if s.values["part"] != "seen")
    paper = [s.values for s in STUDY.grid("paper") if s.values["part"] == "train"]
    assert {(v["steps"], v["lr"], v["batch"], v["n"], v["sets"], v["test"]) for v in paper} == {(1200, 3e-3, 64, 10, 3, 1000)}
