"""Landscapes and claims meet their published schemas, whatever was asked for, and what is none does not."""

import copy
import json
import math
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

from gradoscope import cli
from gradoscope.claims import Claim, each, exactly
from gradoscope.conduct import document
from gradoscope.errors import Usage
from gradoscope.guard import private_random
from gradoscope.landscape.result import SCHEMA
from gradoscope.landscape.run import explore
from gradoscope.report.schema import SCHEMAS, load_schema
from gradoscope.stacked import generator
from gradoscope.study import Results, Table
from gradoscope.training import Training


def validator(name):
    schema = load_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def small(**changes):
    x = torch.randn(64, 3, generator=generator(1, 1))
    y = (x[:, :1] * x[:, 1:2] > 0).float()
    training = Training(
        model=lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.3),
        loss_fn=nn.functional.binary_cross_entropy_with_logits,
        data=(x, y),
        validation=(x, y),
        metric=lambda output, target: float(((output > 0) == (target > 0)).double().mean()),
        batch_size=16,
        steps=24,
    )
    return replace(training, **changes)


@pytest.fixture(scope="module")
def whole():
    with private_random(3):
        return json.loads(explore(small(), points=5).to_json(), parse_constant=_refuse)


def _refuse(name):
    raise AssertionError(f"{name} is no JSON")


def test_a_whole_landscape_meets_the_schema(whole):
    validator("landscape").validate(whole)
    assert set(whole["sections"]) == set(load_schema("landscape")["properties"]["sections"]["properties"])


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"parts": ("pca", "random"), "points": 9, "coarse": True}),
        ({"validation": None, "metric": None}, {"parts": ("line", "questions")}),
        ({"steps": 3}, {"parts": ("evidence", "view", "questions"), "points": 5}),
        ({"optimizer": lambda params: torch.optim.Adam(params, lr=0.1)}, {"parts": ("evidence",)}),
    ],
)
def test_so_does_a_part_of_one(changes, options):
    with private_random(4):
        found = explore(small(**changes), **options)
    validator("landscape").validate(json.loads(found.to_json(), parse_constant=_refuse))


def test_every_field_is_described(whole):
    definitions = load_schema("landscape")["$defs"]
    sections = whole["sections"]
    places = [("run", sections["run"]), ("line", sections["line"]), ("plane", sections["planes"][0]), ("view", sections["view"])]
    places += [("window", sections["evidence"]["windows"][0]), ("terms", sections["evidence"]["terms"][0])]
    places += [("answer", sections["questions"]["answers"][0]), ("place", sections["questions"]["places"][0])]
    for name, value in places:
        assert set(definitions[name]["properties"]) == set(definitions[name]["required"]) == set(value), name


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d.update(schema="2.0"), "another version"),
        (lambda d: d.pop("sections"), "no sections"),
        (lambda d: d.update(extra=1), "a field that is not described"),
        (lambda d: d["sections"].update(volume={}), "a section that is not described"),
        (lambda d: d["sections"]["planes"][0].update(kind="sphere"), "a plane of an unknown kind"),
        (lambda d: d["sections"]["planes"][0].update(loss=[1.0]), "a surface without rows"),
        (lambda d: d["sections"]["line"].update(alpha="0..1"), "words for numbers"),
        (lambda d: d["sections"]["line"]["rise"].update(interval=[0.0]), "half an interval"),
        (lambda d: d["sections"]["questions"]["answers"][0].update(key="valley"), "an unknown question"),
        (lambda d: d["sections"]["run"]["steps"].append(0.5), "half a step"),
    ],
)
def test_what_is_no_landscape_is_refused(whole, change, why):
    data = copy.deepcopy(whole)
    change(data)
    assert list(validator("landscape").iter_errors(data)), why


def judged(values, criterion, **options):
    claim = Claim("one", "It is so.", "the paper, p. 1", lambda results: values, criterion, **options)
    return claim.judge("study", Results(Table([]), Table([])))


CLAIMS = [
    judged([1.0, 2.0, 3.0], each(low=0.5)),
    judged([1.0, math.nan], each(low=0.5), expected_to_fail=True, why="It is not."),
    judged(np.float64(math.inf), exactly(high=1.0)),
]


def test_claims_meet_their_schema():
    data = json.loads(json.dumps(document(CLAIMS), allow_nan=False))
    validator("claims").validate(data)
    schema = load_schema("claims")["$defs"]["claim"]
    assert set(schema["properties"]) == set(schema["required"]) == set(data["claims"][0])
    assert data["claims"][1]["measured"] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("says"),
        lambda c: c.update(extra=1),
        lambda c: c.update(id="two words"),
        lambda c: c.update(ci=[0.1]),
        lambda c: c.update(holds="yes"),
        lambda c: c.update(seeds=1.5),
    ],
)
def test_what_is_no_claim_is_refused(change):
    data = document(CLAIMS[:1])
    change(data["claims"][0])
    assert list(validator("claims").iter_errors(data))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_command_prints_each_schema(name, capsys):
    assert cli.main(["schema", name]) == 0
    assert json.loads(capsys.readouterr().out) == load_schema(name)
    assert re.search(rf"urn:gradoscope:{name}:\d+\.\d+", load_schema(name)["$id"])


def test_the_version_is_the_one_that_is_written():
    assert load_schema("landscape")["properties"]["schema"]["const"] == SCHEMA


def test_there_is_no_other_schema():
    with pytest.raises(Usage, match="there are: diagnosis, landscape, claims"):
        load_schema("verdict")
