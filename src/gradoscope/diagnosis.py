"""What a diagnosis is: findings, counterfactuals, the verdict. Plain data; nothing is computed or drawn here."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gradoscope.measurement import Measurement, plain

__all__ = ["SCHEMA_VERSION", "Counterfactual", "Diagnosis", "Evidence", "Finding", "Health"]

SCHEMA_VERSION = "1.1"
Status = Literal["present", "absent", "undetermined"]
Verdict = Literal["healthy", "obstructed", "undetermined"]


@dataclass(frozen=True)
class Evidence:
    """One measured quantity and what it says about an obstacle.

    Args:
        measurement: the quantity with its standard error.
        says: one sentence, with the number in it.
        supports: True where it speaks for the obstacle, False against it, None where it is only told.
        rules_out: names of other obstacles that it speaks against.
    """

    measurement: Measurement
    says: str
    supports: bool | None = None
    rules_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return self.measurement.to_dict() | {"says": self.says, "supports": self.supports, "rules_out": list(self.rules_out)}


@dataclass(frozen=True)
class Counterfactual:
    """What a training did under a remedy, against the unchanged one, from the same state and data order.

    Args:
        remedy: its name, with the parameter that was used, e.g. "step_size(x100)".
        explanation: one sentence: what was changed.
        start: the step at which the two part.
        steps: optimizer steps from there on, in both.
        gain: share of the unchanged training's remaining excess loss that the remedy removed: (J - J') / (J - J_ref).
        interval: 95% confidence interval of the gain.
        difference: J - J' in the loss's unit, with its standard error over paired examples.
        shortfall: share of all the loss that was there to remove (from the start) that the unchanged training left and
            the remedy removed; this is what is called material.
        shortfall_interval: its 95% confidence interval.
        examples_ratio: examples that went through the remedy's run, per example of the unchanged one.
        curve: (step, loss) points of the remedy's run on the probe.
        baseline_curve: the same of the unchanged run, from the same start.
        on: what was compared: the "training" or "validation" loss, the "fitting" one where the given one does not fit the output, or the
            user's "metric".
        failed: why the remedy could not be run to the end, else "".
        code: how to make the change, as Python to paste.
    """

    remedy: str
    explanation: str
    start: int
    steps: int
    gain: float
    interval: tuple[float, float]
    difference: float
    difference_se: float
    shortfall: float
    shortfall_interval: tuple[float, float]
    loss_before: float
    loss_unchanged: float
    loss_remedy: float
    examples_ratio: float
    curve: tuple[tuple[int, float], ...] = field(repr=False)
    baseline_curve: tuple[tuple[int, float], ...] = field(repr=False)
    on: Literal["training", "validation", "fitting", "metric"] = "training"
    failed: str = ""
    code: str = ""

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = plain({k: v for k, v in vars(self).items() if k not in ("interval", "shortfall_interval")})
        out["gain_interval"] = plain(list(self.interval))
        out["shortfall_interval"] = plain(list(self.shortfall_interval))
        return out


@dataclass(frozen=True)
class Finding:
    """The verdict on one obstacle.

    Args:
        obstacle: its fixed name.
        status: present, absent or undetermined.
        confidence: the probability that the status is right.
        gain: share of the excess loss that the confirming remedy removed; None where none was tried.
        evidence: the measurements for and against.
        missing: what would settle an undetermined finding.
        remedy: what to do, one sentence; "" where nothing is advised.
        counterfactual: the name of the counterfactual that confirmed or refuted it.
        summary: one sentence for the table.
        behind: the obstacle that hides this one: it was found in the training once that one's remedy was applied.
    """

    obstacle: str
    status: Status
    confidence: float
    summary: str
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None
    evidence: tuple[Evidence, ...] = ()
    missing: tuple[str, ...] = ()
    remedy: str = ""
    code: str = ""
    counterfactual: str | None = None
    behind: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "obstacle": self.obstacle,
            "status": self.status,
            "confidence": plain(self.confidence),
            "gain": plain(self.gain),
            "gain_interval": plain(self.gain_interval),
            "summary": self.summary,
            "evidence": [e.to_dict() for e in self.evidence],
            "missing": list(self.missing),
            "remedy": self.remedy,
            "code": self.code,
            "counterfactual": self.counterfactual,
            "behind": self.behind,
        }


@dataclass(frozen=True)
class Health:
    """The evidence for the verdict `healthy`, which is more than the absence of alarms.

    Args:
        holds: True, False, or None where it cannot be told.
        evidence: progress, and what the alternatives could not better.
        missing: what would settle it.
    """

    holds: bool | None
    confidence: float
    summary: str
    evidence: tuple[Evidence, ...] = ()
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "holds": self.holds,
            "confidence": plain(self.confidence),
            "summary": self.summary,
            "evidence": [e.to_dict() for e in self.evidence],
            "missing": list(self.missing),
        }


@dataclass(frozen=True)
class Diagnosis:
    """Ranked findings, the experiments behind them, and what to do next.

    Args:
        verdict: healthy, obstructed or undetermined.
        findings: present first (by gain, those behind others last), then undetermined, then absent.
        healthy: the evidence for health.
        counterfactuals: everything that was tried.
        cost: seconds and passes, of the training and of the diagnosis.
        provenance: versions, device, seed, settings, and how the training is made.
        series: what the report draws, by name (see `gradoscope.report.html`).
    """

    name: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    healthy: Health
    counterfactuals: tuple[Counterfactual, ...] = ()
    notes: tuple[str, ...] = ()
    cost: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def present(self) -> tuple[Finding, ...]:
        """The obstacles that hold the training back, largest gain first."""
        return tuple(f for f in self.findings if f.status == "present")

    def __getitem__(self, obstacle: str) -> Finding:
        """The finding on one obstacle by its name."""
        for finding in self.findings:
            if finding.obstacle == obstacle:
                return finding
        raise KeyError(f"no finding on {obstacle!r}; there are {', '.join(f.obstacle for f in self.findings)}")

    def headline(self) -> str:
        """The verdict in one line."""
        if self.verdict == "healthy":
            return f"{self.name}: healthy. {self.healthy.summary}"
        if self.verdict == "obstructed":
            return f"{self.name}: obstructed by {self.obstructed_by()}. {self.present[0].summary}"
        return f"{self.name}: undetermined. {self.healthy.summary}"

    def obstructed_by(self) -> str:
        """The obstacles that are present, those behind others after them."""
        first = " and ".join(f.obstacle for f in self.present if f.behind is None)
        hidden = " and ".join(f.obstacle for f in self.present if f.behind is not None)
        return f"{first}, and behind that by {hidden}" if hidden else first

    def __str__(self) -> str:
        from gradoscope.report.terminal import render_text

        return render_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the published schema (`gradoscope.report.schema`)."""
        return {
            "schema": SCHEMA_VERSION,
            "name": self.name,
            "verdict": self.verdict,
            "headline": self.headline(),
            "findings": [f.to_dict() for f in self.findings],
            "healthy": self.healthy.to_dict(),
            "counterfactuals": [c.to_dict() for c in self.counterfactuals],
            "notes": list(self.notes),
            "cost": plain(self.cost),
            "provenance": plain(self.provenance),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The same as strict JSON (no NaN or Infinity)."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def save_html(self, path: str | Path) -> None:
        """Write one self-contained page that works offline.

        Raises:
            CannotWrite: where the path cannot be written.
        """
        from gradoscope.report.html import save_html

        save_html(self, path)
