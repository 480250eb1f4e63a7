"""The study of cardinality, on small settings."""

import math

import pytest
import torch

from gradoscope.guard import private_random
from gradoscope.problems.multilabel import parts
from gradoscope.report import plots
from gradoscope.structured.cardinality import PredictAndConstrain, soft_f1_loss
from gradoscope.studies._cardinality_train import _Data, _models, _numbers
from gradoscope.studies.cardinality import END, STUDY, TWO
from gradoscope.study import Context, Results, Table
from tests.studies.information_results import results, same

SEEDS = (0, 1)
SIZES = {"set": "synthetic", "hidden": 20, "most": 0, "epochs": 3}
ENDS = {**END, **SIZES, "inner": 3}
SMALL = [
    ({"part": "rounds", "rows": 10, "labels": 40, "spread": 1.5, "most": 20.0, "rounds": (1, 2, 5, 10, 50, 200, 1000)}, SEEDS),
    ({"part": "facts", "rows": 50, "labels": 30, "rounds": 100}, SEEDS),
    ({"part": "smoothing", "rows": 100, "labels": 40, "spread": 1.0, "sharpness": (1.0, 10.0, 100.0)}, SEEDS),
    ({"part": "obstruction", "rows": 60, "labels": 40, "spreads": (0.1, 10.0, 100.0), "sums": (2.5, 3.0)}, SEEDS),
    ({**TWO, **SIZES, "epochs": 15}, SEEDS),
    ({"part": "relevance", "set": "synthetic", "c": 1.0}, SEEDS),
    *(({**ENDS, "constraint": kind}, SEEDS) for kind in ("box", "exact", "dykstra", "smooth")),
    *(({**ENDS, "constraint": kind, "accumulator": 0.0}, SEEDS) for kind in ("box", "exact")),
    ({**ENDS, "constraint": "smooth", "sharp": 100.0}, SEEDS),
    *(({**ENDS, "constraint": kind, "scale": 30.0}, SEEDS) for kind in ("exact", "smooth")),
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


def test_every_claim_can_be_measured(found):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims("quick")}
    assert len(judged) == len(STUDY.claims("quick"))
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged.values())
    # gains need the study's own lengths of training
    loose = {
        "reference",
        "constraint-gains",
        "constraint-costs-nothing",
        "saturated",
        "saturated-smooth",
        "smooth-10",
        "smooth-100",
        "predicted-number",
        "smooth-misses",
    }
    assert [j.id for j in judged.values() if j.id not in loose and not j.as_expected] == []


def test_the_larger_scale_is_judged_and_drawn_on_rows_of_real_sets(found):
    """With the synthetic rows under the names of the real sets: claims and figures find what they need."""
    rows = []
    for data in ("synthetic", "bibtex", "scene", "yeast", "emotions", "enron", "delicious"):
        for row in found.rows:
            if row.get("accumulator") == 0.0:
                continue
            rows.append({**row, "set": data} if row.get("set") else row)
            if row.get("part") == "end" and row["scale"] == 1:
                rows.append({**row, "set": data, "accumulator": 0.0})
                rows.append({**row, "set": data, "pretrained": 15, "accumulator": 0.0})
    kept = [({**values, "set": "bibtex"}, seeds, load) for values, seeds, load in found._arrays if "set" in values]
    named = Results(Table(rows), found.curves, kept)
    claims = STUDY.claims("paper")
    assert len({c.id for c in claims}) == len(claims)
    for claim in claims:
        assert claim.judge(STUDY.name, named).seeds >= 1, claim.id
    for figure in (f for f in STUDY.figures("paper") if f.name in ("f1", "numbers", "sums")):
        assert len(plots.render(figure.draw(named), "png", dpi=40)) > 1000


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("place", [0, 4, 7])
def test_a_unit_is_the_same_when_it_runs_again(place):
    values, seeds = SMALL[place]
    assert same(STUDY, {**values, "epochs": 1} if "epochs" in values else values, seeds)
    assert same(STUDY, {**ENDS, "constraint": "exact", "pretrained": 1, "epochs": 1}, (3,))  # with dropout


def test_a_stack_is_its_seeds_alone():
    values = {**ENDS, "constraint": "exact", "epochs": 2}
    both = STUDY.run(values, (0, 1), Context())
    alone = STUDY.run(values, (1,), Context())
    assert both.curves[1]["loss"] == pytest.approx(alone.curves[0]["loss"], rel=1e-4)
    assert both.rows[1]["f1"] == pytest.approx(alone.rows[0]["f1"], abs=0.02)  # labels near one half may turn by rounding


def test_training_is_the_plain_loop():
    values = {**ENDS, "constraint": "exact", "epochs": 1}
    row = STUDY.run(values, (2,), Context()).curves[0]
    data = _Data("synthetic", (2,))
    start = _models(values, data, (2,))
    model = PredictAndConstrain(60, 40, most=data.most(0), hidden=20, steps=3)
    with torch.no_grad(), private_random(0):
        for name in ("score", "head"):
            for layer, source in zip(getattr(model, name), getattr(start, name), strict=True):
                if hasattr(layer, "weight"):
                    layer.weight.copy_(source.weight[0].T)
                    layer.bias.copy_(source.bias[0, 0])
        model.words.copy_(start.words[0])
        model.weights.copy_(start.weights[0, 0])
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, weight_decay=1e-3, initial_accumulator_value=0.1)
    losses = []
    for x, y in data.batches(50, 1, 2):
        optimizer.zero_grad()
        loss = 50 * soft_f1_loss(model(x[0]), y[0])
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / 50)
    assert sum(losses) / 12 == pytest.approx(row["loss"], rel=1e-4)


def test_tables_count_numbers_of_labels():
    train, _ = parts("synthetic", 0)
    table = _numbers(train.y, train.y)
    assert int(table.sum()) == len(train)
    assert torch.equal(table, torch.diag(table.diagonal()))
    assert int(_numbers(torch.ones(2, 40), torch.zeros(2, 40))[0, 11]) == 2  # eleven stands for more as well


def test_the_grids_differ_by_the_real_sets():
    quick, paper = STUDY.grid("quick"), STUDY.grid("paper")
    assert [s.values for s in paper[: len(quick)]] == [s.values for s in quick]
    assert {s.values.get("set") for s in quick} == {None, "synthetic"}
    assert {"bibtex", "scene", "yeast", "emotions", "enron", "delicious"} < {s.values.get("set") for s in paper}
    assert len({repr(sorted(s.values.items())) for s in paper}) == len(paper)
