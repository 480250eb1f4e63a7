"""The table of the trials, in Markdown and on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gradoscope.trials.score import AIMS
from gradoscope.trials.trial import Trial

__all__ = ["listing", "markdown", "print_proofs", "print_table", "proved"]

SHOWN = ("report", "tune", "all")


def _share(told: Mapping[str, Any] | None) -> str:
    if not told or told["value"] is None or not told["trials"]:
        return "-"
    return f"{told['value']:.1%} ({told['low']:.0%}-{told['high']:.0%})"


def _rows(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = [f"| {' | '.join(header)} |", f"|{'|'.join('---' for _ in header)}|"]
    return "\n".join([*out, *(f"| {' | '.join(line)} |" for line in lines)])


def _half(told: Mapping[str, Any]) -> str:
    """The half whose figures count: the reporting one, where it was run."""
    judges = list(told["judges"].values())
    return next(half for half in SHOWN if all(half in judge for judge in judges))


def _summary(told: Mapping[str, Any]) -> str:
    columns = [(judge, half) for judge, found in told["judges"].items() for half in SHOWN if half in found]
    names = list(told["judges"][columns[0][0]][columns[0][1]]["summary"])
    lines = [[name, *(_share(told["judges"][judge][half]["summary"].get(name)) for judge, half in columns)] for name in names]
    brier, ratio, within, longest = (
        ["Brier score"],
        ["cost, median of times the training"],
        ["cost within the training's own or 60 s"],
        ["longest, s"],
    )
    for judge, half in columns:
        part = told["judges"][judge][half]
        found, spent = part["calibration"], part["cost"]
        brier.append("-" if not found["n"] else f"{found['brier']:.3f} ({found['low']:.3f}-{found['high']:.3f})")
        ratio.append(f"{spent['median ratio']:.1f} ({spent['low']:.1f}-{spent['high']:.1f})" if spent else "-")
        within.append(f"{spent['within']:.1%}" if spent else "-")
        longest.append(f"{spent['longest seconds']:.0f}" if spent else "-")
    size = ["trials (faulty + healthy)", *(_size(told["judges"][judge][half]) for judge, half in columns)]
    return _rows(["", *(f"{judge}, {half}" for judge, half in columns)], [size, *lines, brier, ratio, within, longest])


def _size(part: Mapping[str, Any]) -> str:
    return f"{part['trials']} ({part['faulty']} + {part['healthy']})"


def _obstacles(part: Mapping[str, Any]) -> str:
    lines = []
    for name, found in part["obstacles"].items():
        instead = ", ".join(f"{other} {count}" for other, count in found["named instead"].items()) or "-"
        lines.append(
            [f"`{name}`", str(found["recall"]["trials"]), *(_share(found[k]) for k in ("recall", "recall at first", "precision")), instead]
        )
    return _rows(["obstacle", "trials", "recall", "recall at first", "precision", "said instead"], lines)


def _calibration(found: Mapping[str, Any]) -> str:
    lines = [[f"{b['from']:.2f} to {b['to']:.2f}", str(b["n"]), f"{b['confidence']:.3f}", f"{b['true']:.3f}"] for b in found["table"]]
    return _rows(["confidence", "claims", "mean confidence", "share true"], lines)


def aims(part: Mapping[str, Any]) -> list[tuple[str, float, float, bool]]:
    """(what, measured, aim, met) of the aims; the recall is that of the obstacle with the lowest."""
    found = part["summary"]
    recalls = [o["recall"]["value"] for o in part["obstacles"].values() if o["recall"]["trials"]]
    measured = {name: found[name]["value"] if name in found else min(recalls, default=None) for name in AIMS}
    told = []
    for name, (aim, above) in AIMS.items():
        value = measured[name]
        if value is not None:
            told.append((name, value, aim, value >= aim if above else value <= aim))
    return told


def markdown(told: Mapping[str, Any]) -> str:
    """Everything that trials.json holds, as tables."""
    half = _half(told)
    chosen = told["chosen"]
    parts = [
        f"Seeds per trial: {chosen['seeds']}. Shares with 95% intervals over trials. Tables by obstacle are of: {half}.",
        _summary(told),
    ]
    for judge, found in told["judges"].items():
        part = found[half]
        parts += [f"**{judge}, by obstacle**", _obstacles(part)]
        if part["calibration"]["n"]:
            parts += [f"**{judge}, confidence of what it claims**", _calibration(part["calibration"])]
        if part["calibration of absent"]["n"]:
            parts += [f"**{judge}, confidence of what it rules out**", _calibration(part["calibration of absent"])]
    first = next(iter(told["judges"].values()))[half]
    lines = [[name, f"{value:.1%}", f"{aim:.0%}", "met" if met else "not met"] for name, value, aim, met in aims(first)]
    parts += ["**Aims**", _rows(["aim", "measured", "wanted", ""], lines)]
    return "\n\n".join(parts) + "\n"


def print_table(told: Mapping[str, Any], folder: str) -> None:
    """Print the table, and where the rest is."""
    out = sys.stdout
    out.write(markdown(told))
    for judge, found in told["judges"].items():
        if found["wrong"]:
            out.write(f"\n{judge}: wrong at first, or a false alarm\n")
            for row in found["wrong"]:
                out.write(f"  {row['trial']} (seed {row['seed']}, {row['half']}): {row['said']} instead of {row['truth']}\n")
    out.write(f"\nresults.csv, trials.json and table.md are in {folder}\n")


def listing(trials: Sequence[Trial]) -> str:
    """The trials, one a line, and how many there are of what."""
    from gradoscope.trials.split import half_of

    wide = max(len(trial.name) for trial in trials)
    lines = [
        f"{trial.name:{wide}}  {half_of(trial.family):6}  {trial.architecture:11}  {trial.difficulty:6}  {' + '.join(trial.truth)}"
        for trial in trials
    ]
    healthy = sum(trial.healthy for trial in trials)
    return (
        "\n".join(
            [
                *lines,
                "",
                f"{len(trials)} trials in {len({t.family for t in trials})} families: {len(trials) - healthy} faulty, {healthy} healthy",
            ]
        )
        + "\n"
    )


def proved(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every proof holds."""
    return all(row["holds"] for row in rows)


def print_proofs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per proof."""
    for row in rows:
        value, repaired = ("inf" if v is None else f"{v:.4g}" for v in (row["value"], row["repaired"]))
        why = f"  {row['why']}" if row["why"] else ""
        sys.stdout.write(f"{'holds' if row['holds'] else 'FAILS'}  {row['trial']} (seed {row['seed']}): {value} -> {repaired}{why}\n")
    sys.stdout.write(f"\n{sum(bool(row['holds']) for row in rows)} of {len(rows)} proofs hold\n")
