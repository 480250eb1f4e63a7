"""Every diagnosis meets the published schema, and what is not one does not."""

import dataclasses
import json
import math

import jsonschema
import pytest

from gradoscope.diagnosis import SCHEMA_VERSION
from gradoscope.report.schema import load_schema


def validator():
    schema = load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_real_output_is_valid_strict_json(diagnosis):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    data = json.loads(diagnosis.to_json(), parse_constant=refuse)
    validator().validate(data)
    assert data == json.loads(json.dumps(diagnosis.to_dict()))


def test_version_is_the_schemas():
    assert load_schema()["properties"]["schema"]["const"] == SCHEMA_VERSION
    assert load_schema()["$id"].endswith(SCHEMA_VERSION)


def test_numbers_that_are_not_finite_are_null(make):
    data = make("nasty").to_dict()
    finding = data["findings"][0]
    assert finding["gain"] is None
    assert finding["confidence"] is None
    assert finding["gain_interval"] == [None, None]
    assert [e["value"] for e in finding["evidence"]][2] is None
    assert data["counterfactuals"][0]["curve"] == [[0, 1.0], [1, None], [2, None]]


def test_every_field_of_the_types_is_described(make):
    data = make("obstructed").to_dict()
    definitions = load_schema()["$defs"]
    for key, value in [
        ("finding", data["findings"][0]),
        ("evidence", data["findings"][0]["evidence"][0]),
        ("health", data["healthy"]),
        ("counterfactual", data["counterfactuals"][0]),
    ]:
        assert set(definitions[key]["properties"]) == set(definitions[key]["required"]) == set(value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d.update(verdict="ill"), "an unknown verdict"),
        (lambda d: d.pop("findings"), "no findings"),
        (lambda d: d.update(extra=1), "a field that is not described"),
        (lambda d: d["findings"][0].update(status="maybe"), "an unknown status"),
        (lambda d: d["findings"][0].update(confidence=1.2), "a confidence above 1"),
        (lambda d: d["findings"][0].update(gain_interval=[0.1]), "half an interval"),
        (lambda d: d["findings"][0]["evidence"][0].pop("says"), "evidence that says nothing"),
        (lambda d: d["counterfactuals"][0].update(curve=[[0.5, 1.0]]), "half a step"),
        (lambda d: d.update(verdict="healthy"), "healthy with a finding that is present"),
        (lambda d: [f.update(status="absent") for f in d["findings"]], "obstructed by nothing"),
        (lambda d: d.update(schema="2.0"), "another version"),
    ],
)
def test_what_is_wrong_is_refused(make, change, why):
    data = json.loads(make("obstructed").to_json())
    validator().validate(data)
    change(data)
    assert list(validator().iter_errors(data)), why


def test_a_nan_gain_of_a_finding_is_valid(make):
    d = make("obstructed")
    findings = (dataclasses.replace(d.findings[0], gain=math.nan, gain_interval=None), *d.findings[1:])
    validator().validate(dataclasses.replace(d, findings=findings).to_dict())
