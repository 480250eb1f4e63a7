"""A training under a change of its loss, judged by the loss that fits its outputs and targets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradoscope.comparison import Fork, compared
from gradoscope.diagnosis import Counterfactual
from gradoscope.errors import GradoscopeError
from gradoscope.loop import prepare
from gradoscope.probe import Probe
from gradoscope.remedies import Remedy
from gradoscope.trace import Trace, run
from gradoscope.training import Live

if TYPE_CHECKING:
    from gradoscope.case import Case

__all__ = ["outcome"]


def outcome(case: Case, remedy: Remedy, fitting: Callable[[Any, Any], Any]) -> Counterfactual:
    """Train from the start under a remedy that changes the loss, and compare the ends by the loss that fits.

    Args:
        remedy: the change; its fork is judged by its own loss.
        fitting: the same loss of the unchanged model's output, by which the unchanged run's end is judged.
    """
    judged: Counterfactual | None = case.judged_as(remedy.name)
    if judged is not None:
        return judged
    case.tell(f"trying {remedy.name}", 0.35 + 0.6 * min(1.0, case.seconds_forks / max(1e-9, case.limit)))
    began, states = time.perf_counter(), case.baseline.states
    trace = Trace(case.first)
    try:
        with Live.of(replace(case.training, loss_fn=fitting), seed=case.seed, device=case.device, batches=case.batches) as live:
            states[max(states)].restore(live)
            unchanged = Probe(live, case.probes[0].batches, "train").losses(live)
        with Live.of(remedy(case.training), seed=case.seed, device=case.device, batches=case.batches) as live:
            prepare(live, states[case.first])
            trace = run(live, (Probe(live, case.probes[0].batches, "train"), None), case.first, case.steps)
    except (GradoscopeError, RuntimeError, ValueError, AssertionError) as error:
        trace.failed = f"{type(error).__name__}: {error}"
        trace.probe = trace.probe or [case.baseline.probe[0]]
        unchanged = case.capped(case.baseline.result())
    case.charge(time.perf_counter() - began, remedy, case.steps)
    first, changed = trace.probe[0][1], trace.result()
    best = min(float(np.mean(unchanged)), float(np.mean(changed)))
    scale = max(float(np.mean(first)) - best, 1e-12)
    # How far above its start a run ends says nothing.
    unchanged, changed = (np.minimum(np.nan_to_num(v, nan=math.inf), first + scale) for v in (unchanged, changed))
    excess = max(float(np.mean(unchanged)) - best, 1e-12)
    fork = Fork(case.first, case.steps, float(np.mean(first)), changed, trace.curve(), trace.failed)
    judged = compared(remedy, fork, unchanged, (), excess=excess, scale=scale, on="fitting")
    return case.judged(judged)
