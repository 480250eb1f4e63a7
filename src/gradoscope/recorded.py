"""A diagnosis of what was recorded, where the training itself cannot be made again: symptoms, and what is missing."""

import math
from typing import Any

import numpy as np

from gradoscope.diagnosis import Diagnosis, Evidence, Finding, Health
from gradoscope.measure.progress import trend
from gradoscope.measurement import Measurement
from gradoscope.obstacles import all_obstacles, evidence

__all__ = ["diagnose_records"]


def diagnose_records(run: Any, why: str, provenance: dict[str, Any]) -> Diagnosis:
    """Tell what the records of a run show. No finding can be present: nothing can be tried out.

    Args:
        run: a `gradoscope.store.Run`.
        why: why the training cannot be run again, for the notes.
        provenance: what the report tells of the run.
    """
    records = run.records()
    losses = [float(r["loss"]) for r in records if r.get("loss") is not None]
    steps = [int(r["step"]) for r in records if r.get("loss") is not None]
    symptoms: dict[str, list[Evidence]] = {}
    broke = next((s for s, v in zip(steps, losses, strict=True) if not math.isfinite(v)), None)
    if broke is not None:
        told = evidence("first_non_finite_step", broke, f"the loss is not finite at step {broke}", supports=True)
        symptoms["step_too_large"] = symptoms["exploding_gradient"] = [told]
    norms = np.array([float(r["grad_norm"]) for r in records if r.get("grad_norm") is not None])
    norms = norms[np.isfinite(norms)]
    if len(norms) > 1 and np.median(norms) > 0:
        tail = float(norms.max() / np.median(norms))
        told = evidence("gradient_norm_tail", tail, f"the longest recorded gradient is {tail:.3g} times the median one")
        symptoms.setdefault("exploding_gradient", []).append(told)
    found: list[Evidence] = []
    finite = [v for v in losses if math.isfinite(v)]
    if len(finite) > 3:
        measured: Measurement = trend(finite)
        found.append(Evidence(measured, f"the recorded loss went from {finite[0]:.4g} to {finite[-1]:.4g}"))
    findings = tuple(
        Finding(
            o.name,
            "undetermined",
            0.5,
            "only symptoms were recorded",
            evidence=tuple(symptoms.get(o.name, ())),
            missing=("counterfactual",),
        )
        for o in all_obstacles()
    )
    missing = ("the training's recipe: record it with its target, a catalogue name or file.py:function",)
    return Diagnosis(
        name=str(run.provenance.get("name") or run.path.name),
        verdict="undetermined",
        findings=findings,
        healthy=Health(None, 0.5, "Only what was recorded could be read; nothing could be tried out.", tuple(found), missing),
        notes=(f"Findings rest on what was recorded: {why}.",),
        cost={"training_seconds": None, "total_seconds": 0.0, "forks": 0},
        provenance=provenance | {"recorded": run.provenance},
        series={"loss": {"steps": steps, "train": losses, "validation": None, "batch_steps": steps, "batch": losses}},
    )
