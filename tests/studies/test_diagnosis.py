"""F8: a diagnosis as a row, the claims about it, and its figures."""

from typing import Any

import pytest

from gradoscope.problems import find
from gradoscope.studies.diagnosis import CASES, STUDY, Case
from gradoscope.study import Context, Results, Table


def row(case: Case, seed: int, **changes: Any) -> dict[str, Any]:
    """What the diagnosis should say of a case."""
    right = {
        "target": case.target,
        "seed": seed,
        "verdict": "obstructed" if case.failing else "healthy",
        "present": case.blamed if case.failing else "",
        "named": case.blamed if case.failing else "",
        "confidence": 0.95,
        "gain": 0.9 if case.mended_by else float("nan"),
        "remedy": f"{case.mended_by[0]}(x)" if case.mended_by else "",
        "undetermined": "",
        "local_minimum": "absent",
        "saddle_point": "absent",
    }
    return {**right, **changes}


def judged(rows: list[dict[str, Any]]) -> dict[str, bool]:
    results = Results(Table(rows), Table([]))
    return {claim.id: claim.judge("diagnosis", results).holds for claim in STUDY.claims("quick")}


def test_every_case_is_in_the_catalogue_with_the_obstacle_that_its_source_blames() -> None:
    from gradoscope.problems import all_problems

    for case in CASES:
        find(case.target, seed=0)
        family, _, options = case.target.partition(":")
        variant = [word for word in options.split(",") if word and "=" not in word]
        assert all_problems()[":".join([family, *variant])].obstacle == case.blamed, case.target


def test_claims_hold_where_all_is_right_and_fail_where_it_is_not() -> None:
    right = [row(case, seed) for case in CASES for seed in range(5)]
    assert all(judged(right).values())
    assert len(judged(right)) == sum(3 if case.failing else 1 for case in CASES)
    first = next(case for case in CASES if case.mended_by)
    others = [r for r in right if r["target"] != first.target]
    wrong = [row(first, seed, named="bayes_floor", present="bayes_floor") for seed in range(2)]
    rest = [row(first, seed) for seed in range(2, 5)]
    assert not judged([*others, *wrong, *rest])[f"{first.target}/verdict"]
    assert judged([*others, *wrong[:1], row(first, 1), *rest])[f"{first.target}/verdict"]  # four of five
    one = [row(first, 0, saddle_point="present"), *(row(first, s) for s in range(1, 5))]
    assert not judged([*others, *one])[f"{first.target}/stationary"]
    other = [row(first, s, remedy="larger_batch(x16)") for s in range(5)]
    assert not judged([*others, *other])[f"{first.target}/remedy"]


def test_figures_draw_right_and_wrong_verdicts() -> None:
    rows = [row(case, seed) for case in CASES for seed in range(2)]
    rows[0] |= {"verdict": "undetermined", "present": "", "named": ""}
    for figure in STUDY.figures("quick"):
        figure.draw(Results(Table(rows), Table([]))).canvas.draw()


@pytest.mark.parametrize("target", ["steps:direct"])
def test_a_diagnosis_repeats_bit_for_bit(target: str) -> None:
    values = {"target": target, "step_seconds": 1e-3}
    once = STUDY.run(values, [0], Context()).rows
    assert once == STUDY.run(values, [0], Context()).rows
    assert (once[0]["named"], once[0]["remedy"]) == ("vanishing_gradient", "unblock")
    assert "relative_gradient = 0" in once[0]["saddle_point_evidence"]
