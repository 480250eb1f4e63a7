"""What a record alone can tell: symptoms, and what would settle them; nothing is called present."""

import json
import math

import pytest

from gradoscope.obstacles import all_obstacles
from gradoscope.recorded import diagnose_records
from gradoscope.store import Run


def diagnose(tmp_path, records, name=""):
    run = Run.create(tmp_path / "run", name=name)
    for record in records:
        run.append(record)
    return diagnose_records(Run.open(run.path), "its file is gone", {"seed": 4})


def falling(steps=40, **more):
    return [{"step": i, "loss": 2.0 * 0.9**i, "grad_norm": 1.0 + 0.01 * (i % 3)} | more for i in range(steps)]


def test_every_obstacle_is_undetermined_and_says_what_is_missing(tmp_path):
    found = diagnose(tmp_path, falling())
    assert found.verdict == "undetermined"
    assert [f.obstacle for f in found.findings] == [o.name for o in all_obstacles()]
    assert {f.status for f in found.findings} == {"undetermined"}
    assert {f.missing for f in found.findings} == {("counterfactual",)}
    assert found.healthy.holds is None
    assert "its file is gone" in found.notes[0]
    assert found.name == "run"
    assert found.provenance["seed"] == 4
    assert found.provenance["recorded"]["schema"]


def test_the_trend_of_the_loss_is_told(tmp_path):
    (told,) = diagnose(tmp_path, falling()).healthy.evidence
    assert told.measurement.value == pytest.approx(-1)  # Kendall's tau of a loss that always falls
    assert "2 to 0.03" in told.says
    assert diagnose(tmp_path, falling(3)).healthy.evidence == ()


def test_the_first_step_that_is_not_finite_is_a_symptom(tmp_path):
    records = falling()
    records[7]["loss"], records[9]["loss"] = math.inf, math.nan
    found = diagnose(tmp_path, records)
    for name in ("step_too_large", "exploding_gradient"):
        told = found[name].evidence[0]
        assert told.measurement.value == 7
        assert told.supports is True
    assert found["saddle_point"].evidence == ()
    assert found.verdict == "undetermined"
    json.loads(found.to_json(), parse_constant=lambda word: pytest.fail(word))


def test_the_tail_of_the_gradient_norm_is_told(tmp_path):
    records = falling()
    records[5]["grad_norm"], records[6]["grad_norm"] = 50.5, math.inf
    (told,) = diagnose(tmp_path, records)["exploding_gradient"].evidence
    assert told.measurement.value == pytest.approx(50, rel=0.01)
    assert told.supports is None


def test_records_without_losses_and_no_records(tmp_path):
    for records in ([], [{"step": 0}, {"step": 1, "loss": None, "grad_norm": None}], [{"step": 0, "loss": 1.0}]):
        found = diagnose(tmp_path, records, name="mine")
        assert found.verdict == "undetermined"
        assert found.name == "mine"
        assert "mine" in found.headline()
        assert str(found)


def test_the_curve_is_there_to_be_drawn(tmp_path):
    loss = diagnose(tmp_path, falling(5)).series["loss"]
    assert loss["steps"] == [0, 1, 2, 3, 4]
    assert loss["train"] == pytest.approx([2.0 * 0.9**i for i in range(5)])
