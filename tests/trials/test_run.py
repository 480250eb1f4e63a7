"""The command from end to end on small trials, and that an interrupted run goes on."""

import csv
import json
from pathlib import Path

import pytest

from gradoscope import cli
from gradoscope.trials import judges, run
from gradoscope.trials.rules import Answer
from gradoscope.trials.score import Row

TWO = "logistic-blobs/[pt]*"  # plain, tiny-step and two-rows-a-step


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Stands in for the diagnosis, which takes seconds: it notes what it is asked, and finds everything healthy."""
    asked: list[tuple[str, int]] = []

    def judge(training: object, seed: int, step_seconds: float | None = None) -> Answer:
        asked.append((training.name, seed))  # type: ignore[attr-defined]  # a Training
        return Answer("healthy", (), (("saddle_point", 0.9),), 0.8)

    monkeypatch.setattr(run, "gradoscope", judge)
    return asked


def test_end_to_end(quick: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["trials", "--only", TWO, "--seeds", "2", "--workers", "1", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "logistic-blobs/tiny-step (seed 0, report): healthy instead of step_too_small" in printed
    assert quick == [("training", seed) for seed in (0, 1)] * 3  # the truth stands in no name
    folder = tmp_path / "trials"
    told = json.loads((folder / "trials.json").read_text())
    ours = told["judges"]["gradoscope"]["report"]
    assert (ours["trials"], ours["faulty"], ours["healthy"], ours["rows"]) == (3, 2, 1, 6)
    assert ours["summary"]["right at first"]["value"] == pytest.approx(1 / 3)
    assert ours["summary"]["missed"]["value"] == 1.0
    assert ours["cost"]["median seconds"] >= 0
    assert "| right at first |" in (folder / "table.md").read_text()
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * len(judges.JUDGES)
    assert Row.of(rows[0], {}).absent == (("saddle_point", 0.9),)


def test_an_interrupted_run_goes_on(
    quick: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["trials", "--only", "logistic-blobs/[pt]*", "--seeds", "1", "--workers", "1", "--out", str(tmp_path), "--json"]
    kept = run.gradoscope

    def stopping(training: object, seed: int, step_seconds: float | None = None) -> Answer:
        if len(quick) == 2:
            raise KeyboardInterrupt
        return kept(training, seed, step_seconds)  # type: ignore[arg-type]  # a Training

    monkeypatch.setattr(run, "gradoscope", stopping)
    assert cli.main(arguments) == cli.INTERRUPTED
    capsys.readouterr()
    monkeypatch.setattr(run, "gradoscope", kept)
    assert cli.main(arguments) == 0
    assert len(quick) == 3  # the two that had been judged were not judged again
    interrupted = json.loads(capsys.readouterr().out)
    assert interrupted["chosen"]["trials"] == 3
    assert cli.main(arguments) == 0
    assert len(quick) == 3
    assert json.loads(capsys.readouterr().out) == interrupted


def test_the_diagnosis_itself_is_asked(tmp_path: Path) -> None:
    """One real unit: the answer, as a row."""
    study = run.Examination(run.select("logistic-blobs/plain"))
    setting = next(s for s in study.grid("quick") if s.values["judge"] == judges.OURS)
    from gradoscope.study import Context

    one, two = (study.run(setting.values, (0,), Context()) for _ in range(2))
    assert one.rows == two.rows  # a function of trial and seed
    assert one.rows[0]["verdict"] in ("healthy", "obstructed", "undetermined")
    assert one.timings["judging"] > 0


def test_prove_writes_rows_and_chooses_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["trials", "--prove", "--only", "least-squares/tiny-step", "--workers", "1", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "1 of 1 proofs hold" in capsys.readouterr().out
    assert (tmp_path / "trials-proofs" / "results.csv").is_file()
    from gradoscope.trials.prove import Proof

    failed = Proof("least-squares/tiny-step", 0, False, ("it reaches success as it is",), float("inf"), 0.1, ())
    monkeypatch.setattr(run, "prove", lambda trial, seed: failed)
    assert cli.main([*arguments[:-1], str(tmp_path / "other")]) == 1
    assert "FAILS  least-squares/tiny-step (seed 0): inf -> 0.1  it reaches success as it is" in capsys.readouterr().out


def test_list_and_wrong_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trials", "--list", "--half", "tune"]) == 0
    out = capsys.readouterr().out
    assert "digits-mlp/plain" in out
    assert "teacher-mlp/plain" not in out
    assert cli.main(["trials", "--list", "--only", "no-such-trial"]) == 2


def test_it_is_no_study_of_the_list() -> None:
    from gradoscope.study import all_studies

    assert not {"trials", "trials-proofs"} & set(all_studies())
