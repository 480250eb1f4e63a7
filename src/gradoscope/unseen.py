"""Whether what a change gains shows on examples that were not trained on, or was learnt by heart."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from gradoscope import thresholds as T
from gradoscope import tree
from gradoscope.batches import TensorBatches
from gradoscope.comparison import paired
from gradoscope.diagnosis import Counterfactual
from gradoscope.errors import GradoscopeError
from gradoscope.guard import derive_seed
from gradoscope.loop import prepare
from gradoscope.probe import Probe
from gradoscope.references import nothing_general
from gradoscope.remedies import Remedy
from gradoscope.state import State
from gradoscope.trace import Trace, run
from gradoscope.training import Live, Training

if TYPE_CHECKING:
    from gradoscope.case import Case

__all__ = ["by_heart", "learnt_by_heart", "run_held_out"]

HELD_OUT = 4  # one example in four: enough to judge by, and the rest is still nearly the same training


def learnt_by_heart(unchanged: Trace, changed: Trace, gain: float, since: int = 0) -> bool:
    """Whether a gain on the training examples is none on new ones.

    With d the paired difference of the validation losses, unchanged minus changed, the gain is by heart if

        d - 3 se <= 0 where each run's validation loss is lowest   and   d + 2 se < BY_HEART gain at the end:

    even stopped at its best the changed run may be no better on new examples, and what it gained is surely not half there. A run that
    learns more and then overfits has learnt more; the best of many is better by chance, hence three standard errors.

    Args:
        unchanged: the run as given.
        changed: the run under the change.
        gain: how much lower the changed run's training loss ended.
        since: the step from which the unchanged run counts, where the other left it later than at the start.

    Cost: no pass.
    """
    if not (unchanged.validation and changed.validation):
        return False
    later = replace(unchanged, validation=[p for p in unchanged.validation if p[0] >= since])
    ours, theirs = later.lowest()[0], changed.lowest()[0]
    end = changed.validation[-1][0]
    ours_end, theirs_end = unchanged.result("validation", until=end), changed.result("validation")
    if len(ours) < 2 or not all(np.isfinite(v).all() for v in (ours, theirs, ours_end, theirs_end)):
        return False
    best, best_se = paired(ours, theirs)
    last, last_se = paired(ours_end, theirs_end)
    return best - T.SIGMAS * best_se <= 0 and last + 2 * last_se < T.BY_HEART * gain


def run_held_out(training: Training, remedy: Remedy, state: State, *, steps: int, seed: int, device: str | torch.device | None) -> Trace:
    """Train under a change on three quarters of the examples, and look at the last quarter on the way.

    Args:
        training: one whose examples are kept as tensors; it has no validation data of its own.
        remedy: the change.
        state: where to start.
        steps: how many steps to take.
        seed: chooses the quarter: the same for every change.
        device: where to run.

    Cost: the steps, and 21 forward passes over the quarter.
    """
    changed = remedy(training)
    with Live.of(changed, seed=seed, device=device) as live:
        prepare(live, state)
        whole = live.batches
        assert isinstance(whole, TensorBatches)
        rows = tree.rows(whole.data) or 0
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(derive_seed(seed, 107)))
        held, rest = tree.take(whole.data, order[: rows // HELD_OUT]), tree.take(whole.data, order[rows // HELD_OUT :])
        size = rows - rows // HELD_OUT if whole.batch_size == whole.size else whole.batch_size
        live.batches = TensorBatches(rest, size, whole.seed, shuffle=whole.shuffle)
        probe = Probe(live, [held], "eval")
        return run(live, (probe, probe), state.step, steps)


def by_heart(case: Case, c: Counterfactual) -> bool:
    """Whether all that a counterfactual gains is examples learnt by heart, see `learnt_by_heart`.

    On the validation data where there are any. On a quarter of the examples, held out from two more runs, where independent learners
    find nothing in the examples that would hold for new ones: only then has a gain that shows nowhere else to be feared.

    Cost: no pass with validation data; without, and where no learner finds anything, two runs of the training.
    """
    tried = case.tried(c)
    if tried is None or c.on != "training" or case.batches.size is None or not c.difference > 0:
        return False
    remedy, changed = tried
    if case.validation is not None:
        return learnt_by_heart(case.baseline, changed, c.difference, since=c.start)
    if not isinstance(case.batches, TensorBatches) or not nothing_general(case):
        return False
    unchanged, changed = _held_out(case, Remedy()), _held_out(case, remedy)
    return not (unchanged.failed or changed.failed) and learnt_by_heart(unchanged, changed, c.difference)


def _held_out(case: Case, remedy: Remedy) -> Trace:
    name = f"held out {remedy.name}"
    known: Trace | None = case.recall(name, case.first)
    if known is not None:
        return known
    case.tell(f"trying {remedy.name} on part of the examples", 0.9)
    began, trace = time.perf_counter(), Trace(case.first)
    try:
        state = case.baseline.states[case.first]
        trace = run_held_out(case.training, remedy, state, steps=case.steps, seed=case.seed, device=case.device)
    except (GradoscopeError, RuntimeError, ValueError, AssertionError) as error:
        trace.failed = f"{type(error).__name__}: {error}"
    case.charge(time.perf_counter() - began, remedy, case.steps)
    case.remember(name, case.first, trace)
    return trace
