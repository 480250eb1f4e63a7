"""Runs the trials as a study: units of one trial and one seed, so that an interrupted run goes on."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradoscope import sweep
from gradoscope.claims import Claim, each
from gradoscope.conduct import Conducted, Folder, Progress, conduct
from gradoscope.loop import advance
from gradoscope.measurement import plain
from gradoscope.report.write import write_bytes
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study
from gradoscope.training import Live
from gradoscope.trials.judges import JUDGES, OURS, gradoscope
from gradoscope.trials.prove import prove
from gradoscope.trials.rules import Answer
from gradoscope.trials.score import Row, report
from gradoscope.trials.split import half_of
from gradoscope.trials.table import markdown
from gradoscope.trials.trial import Trial, all_trials, made, select

__all__ = ["Examination", "Proofs", "examine", "proofs"]

SEEDS = 3


class _Trials(Study):
    """A study whose settings are trials. It is no experiment of a source and is not listed among them."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.names = tuple(trial.name for trial in trials)

    def values(self, trial: Trial) -> dict[str, Any]:
        """What a unit's results are kept under: a family whose source has changed is run again."""
        return {"trial": trial.name, "made": made(trial.family)}

    def figures(self, scale: Scale) -> list[Figure]:
        """None: the table is what counts."""
        return []


class Examination(_Trials):
    """Every judge on every trial."""

    name = "trials"
    title = "Trainings whose obstacle is known"
    source = "built for this project, see docs/trials.md"
    about = ("Each row is what one judge says of one trial with one seed. The figures are in table.md.",)

    def grid(self, scale: Scale) -> list[Setting]:
        """See `Study.grid`."""
        known = all_trials()
        return [
            Setting({**self.values(known[name]), "judge": judge}, seeds=SEEDS, block=1, cost=15.0 if judge == OURS else 0.5)
            for judge in JUDGES
            for name in self.names
        ]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """See `Study.run`."""
        trial = all_trials()[values["trial"]]
        (seed,) = seeds
        training = replace(trial.build(seed), name="training")  # the truth stands in no name that a judge could read
        began = time.process_time()
        with Live.of(training, seed=seed) as live:
            advance(live, 0, training.steps)
        trained = time.process_time()
        answer = gradoscope(training, seed, trial.step_seconds) if values["judge"] == OURS else JUDGES[values["judge"]](training, seed)
        judged = time.process_time()
        return Result([_row(trial, seed, answer)], timings={"training": trained - began, "judging": judged - trained})

    def claims(self, scale: Scale) -> list[Claim]:
        """None: the aims are judged with intervals over trials, in table.md."""
        return []


def _row(trial: Trial, seed: int, answer: Answer) -> dict[str, Any]:
    said = [(name, sure, "present") for name, sure in answer.present] + [(name, sure, "absent") for name, sure in answer.absent]
    return {
        "seed": seed,
        "half": half_of(trial.family),
        "architecture": trial.architecture,
        "difficulty": trial.difficulty,
        "truth": "+".join(trial.truth),
        "accepts": "+".join(trial.accepts),
        "verdict": answer.verdict,
        "named": answer.present[0][0] if answer.present else "",
        "confidence": answer.confidence,
        "findings": ";".join(f"{name}={status}@{sure:.4f}" for name, sure, status in said),
    }


class Proofs(_Trials):
    """Every trial's proof."""

    name = "trials-proofs"
    title = "Proofs of the trials"
    source = "built for this project, see docs/trials.md"
    about = ("A faulty training fails, repaired it succeeds, and rival repairs fail; no alternative betters a healthy one.",)

    def grid(self, scale: Scale) -> list[Setting]:
        """See `Study.grid`."""
        known = all_trials()
        return [Setting(self.values(known[name]), seeds=1, block=1, cost=1.5) for name in self.names]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """See `Study.run`."""
        rows = []
        for seed in seeds:
            proof = prove(all_trials()[values["trial"]], seed)
            others = "; ".join(f"{says}: {end:.4g}" for says, end in proof.others)
            told = {"value": proof.value, "repaired": proof.repaired, "others": others, "why": "; ".join(proof.failures)}
            rows.append({"seed": seed, "holds": proof.holds, **told})
        return Result(rows)

    def claims(self, scale: Scale) -> list[Claim]:
        """See `Study.claims`."""

        def held(results: Results) -> list[float]:
            return [float(row["holds"]) for row in results.rows]

        return [Claim("proofs", "Every trial is what it says it is.", "docs/trials.md", held, each(low=1.0))]


def examine(
    *,
    seeds: int = SEEDS,
    half: str = "all",
    only: str | None = None,
    workers: int | None = None,
    out: str | Path = "studies",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Have every judge judge the trials, and write results.csv, trials.json and table.md into the folder `trials`.

    Args:
        seeds: per trial, from 0 on.
        half: "tune", "report" or "all".
        only: a pattern or part of the trials' names.
        workers: processes; None: one per core.
        out: the folder in which the folder `trials` is made.
        progress: called as units finish.

    Returns:
        What trials.json holds.

    Raises:
        Usage: where no trial is chosen.
    """
    trials = select(only, half)  # type: ignore[arg-type]  # the command line allows no other word
    study = Examination(trials)
    done = conduct(study, seeds=seeds, where=sweep.local(workers), out=out, progress=progress)
    rows = _rows(study, done, seeds)
    chosen = {"half": half, "only": only, "seeds": seeds, "trials": len(trials)}
    told: dict[str, Any] = plain({"chosen": chosen, "judges": {judge: report(rows, judge) for judge in JUDGES}})
    write_bytes(done.folder / "trials.json", (json.dumps(told, indent=2) + "\n").encode())
    write_bytes(done.folder / "table.md", markdown(told).encode())
    return told


def _rows(study: Study, done: Conducted, seeds: int) -> list[Row]:
    """The results with their measured cost, which is kept beside them: everything else is a function of trial and seed alone."""
    folder = Folder(done.folder)
    rows = []
    for setting in study.grid("quick"):
        for unit in setting.units(study, seeds):
            document = json.loads(folder.base(unit).with_name(f"{unit.key}.json").read_text(encoding="utf-8"))
            rows += [Row.of({**unit.values, **row}, document["timings"]) for row in document["rows"]]
    return rows


def proofs(
    *,
    seeds: int = 1,
    half: str = "all",
    only: str | None = None,
    workers: int | None = None,
    out: str | Path = "studies",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run the proofs of the trials and return a row for each; results.csv is in the folder `trials-proofs`.

    Args:
        seeds: as for `examine`, as are the others.
        half: which half.
        only: a pattern or part of the trials' names.
        workers: processes.
        out: where the folder is made.
        progress: called as units finish.
    """
    study = Proofs(select(only, half))  # type: ignore[arg-type]  # the command line allows no other word
    done = conduct(study, seeds=seeds, where=sweep.local(workers), out=out, progress=progress)
    found = Folder(done.folder).results(study, "quick", seeds)
    return [dict(row) | {"value": _finite(row["value"]), "repaired": _finite(row["repaired"])} for row in found.rows]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
