"""The figures, against small tables that were worked out by hand."""

import math

import numpy as np
import pytest

from gradoscope.trials.score import Row, calibration, cost, per_obstacle, report, ruled_out, share, stated, summary
from gradoscope.trials.table import aims, markdown


def row(trial: str, truth: str, said: str, seed: int = 0, **more: object) -> Row:
    """A row from words: what is there and what was named, joined by +, each named one with a confidence of 0.9."""
    words = said.split("+")
    verdict = said if said in ("healthy", "undetermined") else "obstructed"
    present = () if verdict != "obstructed" else tuple((w, 0.9) for w in words)
    options: dict[str, object] = {"judge": "j", "half": "tune", "accepts": (), "confidence": 0.8} | more
    return Row(trial=trial, seed=seed, truth=tuple(truth.split("+")), verdict=verdict, present=present, **options)  # type: ignore[arg-type]  # words above


TABLE = [
    row("a", "saddle_point", "saddle_point"),
    row("b", "saddle_point", "local_minimum"),
    row("c", "overfitting", "undetermined"),
    row("d", "step_too_small+saddle_point", "saddle_point+step_too_small"),
    row("e", "healthy", "healthy"),
    row("f", "healthy", "overfitting"),
    row("g", "overfitting", "healthy"),
    row("h", "bayes_floor", "healthy", accepts=("healthy",)),
]


def test_shares_of_a_small_table() -> None:
    found = {name: value.value for name, value in summary(TABLE).items()}
    assert found == {
        "right at first": 4 / 8,  # a, d, e, h
        "right on faulty": 3 / 6,
        "right on healthy": 1 / 2,
        "right to the last": 3 / 8,  # a, d, e: h does not name the floor
        "both of two": 1.0,
        "primary first": 0.0,
        "false alarms": 1 / 2,
        "missed": 1 / 6,  # g; h accepts healthy
        "undetermined": 1 / 8,
    }


def test_per_obstacle() -> None:
    found = per_obstacle(TABLE)
    saddle = found["saddle_point"]
    assert saddle["recall"].value == pytest.approx(2 / 3)  # a and d of a, b, d
    assert saddle["recall at first"].value == pytest.approx(2 / 3)
    assert saddle["precision"].value == 1.0
    assert saddle["named instead"] == {"local_minimum": 1}
    assert found["step_too_small"]["recall"].value == 1.0
    assert found["step_too_small"]["recall at first"].value == 0.0
    assert found["overfitting"]["precision"].value == 0.0
    assert math.isnan(found["local_minimum"]["recall"].value)
    assert found["local_minimum"]["precision"].value == 0.0
    assert "healthy" not in found


def test_a_share_counts_trials_and_not_seeds() -> None:
    rows = [row("a", "healthy", said, seed) for seed, said in enumerate(["healthy", "healthy", "undetermined", "undetermined"])]
    rows += [row("b", "healthy", "healthy", seed) for seed in range(2)]
    found = share(rows, lambda r: r.right)
    assert (found.value, found.trials) == (0.75, 2)
    # Wilson's interval for 0.75 of 2 by its formula
    z2 = 1.959964**2
    centre = (0.75 + z2 / 4) / (1 + z2 / 2)
    half = 1.959964 * math.sqrt(0.75 * 0.25 / 2 + z2 / 16) / (1 + z2 / 2)
    assert found.low == pytest.approx(centre - half, abs=1e-5)
    assert found.high == pytest.approx(min(1.0, centre + half), abs=1e-5)


def test_the_interval_of_a_perfect_share_is_not_empty() -> None:
    found = share([row(str(i), "healthy", "healthy") for i in range(20)], lambda r: r.right)
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-5)


def test_named_obstacles_of_an_undetermined_verdict_do_not_count_as_named() -> None:
    r = Row("a", 0, "j", "tune", ("healthy",), (), "undetermined", (("overfitting", 0.9),))
    assert r.names == ()
    assert not r.alarm
    assert r.first == "undetermined"


def test_calibration_by_hand() -> None:
    rows = [row("a", "saddle_point", "saddle_point"), row("b", "saddle_point", "local_minimum"), row("c", "healthy", "healthy")]
    assert stated(rows[0]) == [(0.9, True)]
    assert stated(rows[2]) == [(0.8, True)]
    found = calibration(rows)
    assert found["brier"] == pytest.approx((0.01 + 0.81 + 0.04) / 3)
    assert found["low"] <= found["brier"] <= found["high"]
    lines = {(line["from"], line["to"]): (line["n"], line["confidence"], line["true"]) for line in found["table"]}
    assert lines == {(0.8, 0.9): (1, pytest.approx(0.8), 1.0), (0.9, 0.95): (2, pytest.approx(0.9), 0.5)}


def test_what_is_ruled_out_is_calibrated_too() -> None:
    r = Row("a", 0, "j", "tune", ("saddle_point",), (), "undetermined", (), (("saddle_point", 0.95), ("overfitting", 0.9)))
    assert ruled_out(r) == [(0.95, False), (0.9, True)]
    assert calibration([r], ruled_out)["brier"] == pytest.approx((0.95**2 + 0.01) / 2)


def test_judges_without_confidence_have_no_calibration() -> None:
    r = Row("a", 0, "j", "tune", ("saddle_point",), (), "obstructed", (("saddle_point", math.nan),))
    found = calibration([r])
    assert found["n"] == 0
    assert math.isnan(found["brier"])


def test_cost() -> None:
    rows = [row("a", "healthy", "healthy", training=1.0, judging=4.0), row("b", "healthy", "healthy", training=100.0, judging=90.0)]
    rows.append(row("c", "healthy", "healthy", training=1.0, judging=61.0))
    found = cost(rows)
    assert found["median ratio"] == 4.0
    assert found["median seconds"] == 61.0
    assert found["longest seconds"] == 90.0
    assert found["within"] == pytest.approx(2 / 3)  # 90 s is within that training's own 100, 61 s is over the 60 that are free
    assert cost([row("a", "healthy", "healthy")]) == {}


def test_a_better_judge_scores_better() -> None:
    """The figures follow the answers: each wrong one that is put right raises the share."""
    rows, before = list(TABLE), -1.0
    for i, wrong in enumerate(r for r in TABLE if not r.right):
        value = summary(rows)["right at first"].value
        assert value > before
        before = value
        rows[TABLE.index(wrong)] = row(wrong.trial, "+".join(wrong.truth), "+".join(wrong.truth), i)
    assert summary(rows)["right at first"].value == 1.0


def test_report_by_halves_and_its_table() -> None:
    rows = [*TABLE, row("z", "healthy", "healthy", half="report", training=1.0, judging=2.0, words=(("architecture", "mlp"),))]
    told = report(rows, "j")
    assert told["tune"]["summary"]["right at first"]["value"] == 0.5
    assert told["report"]["summary"]["right at first"]["value"] == 1.0
    assert told["all"]["trials"] == 9
    assert told["report"]["by"]["architecture"]["mlp"]["value"] == 1.0
    assert {r["trial"] for r in told["wrong"]} == {"b", "c", "f", "g"}
    text = markdown({"chosen": {"seeds": 1}, "judges": {"j": _plain(told)}})
    assert "| right at first | 100.0% (21%-100%) | 50.0%" in text
    assert report(rows, "nobody") == {"wrong": []}


def test_aims_are_judged() -> None:
    told = _plain(report(TABLE, "j"))["all"]
    assert [(name, met) for name, _, _, met in aims(told)] == [
        ("right at first", False),
        ("false alarms", False),
        ("recall of each obstacle", False),
    ]
    perfect = [row(r.trial, "+".join(r.truth), "+".join(r.truth)) for r in TABLE]
    assert all(met for *_, met in aims(_plain(report(perfect, "j"))["all"]))


def _plain(told: dict[str, object]) -> dict[str, object]:
    from gradoscope.measurement import plain

    found = plain(told)
    assert isinstance(found, dict)
    return found


def test_the_bootstrap_draws_whole_trials() -> None:
    from gradoscope.trials.score import bootstrap

    low, high = bootstrap([[0.0] * 50, [1.0] * 50], lambda values: float(np.mean(values)))
    assert (low, high) == (0.0, 1.0)  # two trials, however many seeds
