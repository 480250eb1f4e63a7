"""A diagnosis is plain data: strict JSON, findings by name, a headline."""

import json
import math

import numpy as np
import pytest
import torch

from gradoscope.diagnosis import SCHEMA_VERSION, Counterfactual, Diagnosis, Evidence, Finding, Health
from gradoscope.measurement import Cost, Measurement, plain

NOT_FINITE = float("nan")


def finding(name, status, gain=None):
    measured = Measurement("norm", np.float32(2.5), se=torch.tensor(0.5), n=7, step=3)
    told = Evidence(measured, f"the norm is <b>{name}</b>", supports=True, rules_out=("bayes_floor",))
    return Finding(name, status, 0.9, f"{name} is {status}.", gain=gain, gain_interval=(0.1, math.inf), evidence=(told,), missing=("time",))


def counterfactual():
    return Counterfactual(
        remedy="step_size(x10)",
        explanation="Larger.",
        start=0,
        steps=5,
        gain=0.5,
        interval=(0.4, NOT_FINITE),
        difference=1.0,
        difference_se=NOT_FINITE,
        shortfall=0.3,
        shortfall_interval=(0.2, 0.4),
        loss_before=2.0,
        loss_unchanged=math.inf,
        loss_remedy=1.0,
        examples_ratio=1.0,
        curve=((0, 2.0), (5, 1.0)),
        baseline_curve=((0, 2.0), (5, NOT_FINITE)),
    )


def diagnosis(verdict="obstructed", findings=(("step_too_small", "present", 0.5), ("saddle_point", "absent", None))):
    return Diagnosis(
        name="mine",
        verdict=verdict,
        findings=tuple(finding(*f) for f in findings),
        healthy=Health(False, 0.8, "It is not.", missing=("counterfactual",)),
        counterfactuals=(counterfactual(),),
        notes=("a note",),
        cost={"seconds": np.float64(2.0), "forks": np.int64(3), "share": NOT_FINITE},
        provenance={"seed": 0, "versions": {"torch": "2"}, "rates": torch.ones(2)},
    )


def refuse(word):
    raise AssertionError(f"{word} is no strict JSON")


def test_json_is_strict_and_complete():
    text = diagnosis().to_json()
    document = json.loads(text, parse_constant=refuse)
    assert document["schema"] == SCHEMA_VERSION
    assert document["verdict"] == "obstructed"
    assert document["headline"] == "mine: obstructed by step_too_small. step_too_small is present."
    assert [f["obstacle"] for f in document["findings"]] == ["step_too_small", "saddle_point"]
    first = document["findings"][0]
    assert first["gain_interval"] == [0.1, None]
    assert first["evidence"][0] == {
        "measurement": "norm",
        "value": 2.5,
        "se": 0.5,
        "n": 7,
        "step": 3,
        "unit": "1",
        "p": None,
        "method": "",
        "says": "the norm is <b>step_too_small</b>",
        "supports": True,
        "rules_out": ["bayes_floor"],
    }
    fork = document["counterfactuals"][0]
    assert fork["gain_interval"] == [0.4, None]
    assert fork["loss_unchanged"] is None
    assert fork["curve"] == [[0, 2.0], [5, 1.0]]
    assert "interval" not in fork
    assert document["healthy"]["holds"] is False
    assert document["cost"] == {"seconds": 2.0, "forks": 3, "share": None}
    assert document["provenance"]["rates"] == [1.0, 1.0]
    assert document == json.loads(diagnosis().to_json(indent=None))


def test_findings_by_name():
    found = diagnosis()
    assert found["saddle_point"].status == "absent"
    assert [f.obstacle for f in found.present] == ["step_too_small"]
    with pytest.raises(KeyError, match="step_too_small, saddle_point"):
        found["nothing"]


def test_headlines():
    assert diagnosis("healthy", ()).headline() == "mine: healthy. It is not."
    assert diagnosis("undetermined", ()).headline() == "mine: undetermined. It is not."
    two = (("saddle_point", "present", 0.5), ("overfitting", "present", 0.2))
    assert diagnosis("obstructed", two).headline() == "mine: obstructed by saddle_point and overfitting. saddle_point is present."


def test_a_diagnosis_cannot_be_changed():
    with pytest.raises(AttributeError):
        diagnosis().verdict = "healthy"


def test_a_diagnosis_is_shown_and_saved(tmp_path):
    found = diagnosis()
    assert "step_too_small" in str(found)
    found.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "step_too_small" in page
    assert "<b>step_too_small</b>" not in page


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([[1.0, math.inf]]), [[1.0, None]]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(True), True),
        (np.bool_(False), False),
        (np.int32(4), 4),
        ({1: (2.0, None)}, {"1": [2.0, None]}),
        ("text", "text"),
        (-math.inf, None),
    ],
)
def test_plain_values(value, expected):
    got = plain(value)
    assert got == expected
    assert type(got) is type(expected)


def test_measurements_and_costs():
    measured = Measurement("gap", 2.0, se=0.5)
    assert measured.interval() == pytest.approx((1.02, 2.98))
    assert measured.interval(2) == pytest.approx((1, 3))
    assert Measurement("gap", 2.0).interval() == (2, 2)
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
