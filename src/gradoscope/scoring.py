"""The metric that counts in the end: where a run ends by it, where a run under another loss does, and what is left to gain."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradoscope import thresholds as T
from gradoscope import tree
from gradoscope.diagnosis import Counterfactual
from gradoscope.errors import GradoscopeError
from gradoscope.guard import untouched
from gradoscope.loop import prepare
from gradoscope.measure.surrogates import Surrogate, perfect_output, shifts_of_scores, surrogates
from gradoscope.remedies import Remedy
from gradoscope.trace import run
from gradoscope.training import Live, split

if TYPE_CHECKING:
    from gradoscope.case import Case

__all__ = ["Comparison", "Score", "alternatives", "compare", "score"]

RESAMPLES = 100  # bootstrap samples of a difference of two metrics: its standard error to 7%
ROWS = 4096
FAILURES = (GradoscopeError, RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError)


@dataclass(frozen=True)
class Score:
    """The metric of the unchanged run on training examples, in the direction in which more is better.

    Attributes:
        start: before the first step.
        end: after the last one.
        perfect: of outputs that are right on every example.
    """

    start: float
    end: float
    perfect: float

    @property
    def scale(self) -> float:
        """All that there was to gain."""
        return max(self.perfect - self.start, 0.0)

    @property
    def left(self) -> float:
        """The share of it that the run left."""
        return (self.perfect - self.end) / self.scale if self.scale > 0 else 0.0


@dataclass(frozen=True)
class Comparison:
    """A run under another loss against the unchanged one.

    Attributes:
        counterfactual: by the metric on training examples.
        price: how much higher the given loss ended, as a share of all of it there was to remove; negative where it ended lower.
        new: by how much the metric is better on validation examples, and its standard error; None without them.
    """

    counterfactual: Counterfactual
    price: float
    new: tuple[float, float] | None


def score(case: Case) -> Score | None:
    """Where the unchanged run starts and ends by its metric, or None where there is none that can be asked.

    Cost: two forward passes over at most 4,096 examples.
    """
    training = case.training
    if training.metric is None or training.loss_fn is None or case.baseline.broke is not None:
        return None
    if ("score", case.first) not in case.taken:
        try:
            found = _score(case)
        except FAILURES:
            found = None
        case.remember("score", case.first, found)
    known: Score | None = case.recall("score", case.first)
    return known


def _score(case: Case) -> Score | None:
    assert case.training.loss_fn is not None
    with case.live(case.first) as live:
        before, target = _answers(live, "train", case)
    with case.live(max(case.baseline.states)) as live:
        after, target = _answers(live, "train", case)
    if not isinstance(after, Tensor) or tree.rows((after, target)) is None:
        return None
    perfect = perfect_output(case.training.loss_fn, after, target)
    if perfect is None:
        return None
    values = [_metric(case, z, target) for z in (before, after, perfect)]
    return Score(*values) if all(math.isfinite(v) for v in values) else None


def alternatives(case: Case) -> list[Surrogate]:
    """The other losses that fit the training's outputs and targets, see `measure.surrogates`."""

    def read(live: Live) -> list[Surrogate]:
        output, target = _answers(live, "train", case)
        assert live.training.loss_fn is not None
        return surrogates(live.training.loss_fn, output, target) if isinstance(output, Tensor) else []

    try:
        found: list[Surrogate] = case.measure("surrogates", case.first, read)
    except FAILURES:
        found = []
    return found


def compare(case: Case, remedies: list[Remedy]) -> list[Comparison]:
    """Train from the start under each of some other losses, and compare the ends by the metric and by the given loss.

    What is gained is a share of all that any of the runs gained by the metric from its start, or of a fifth of what a perfect answer
    would: metrics of noisy targets never get there. The standard error is from a bootstrap over examples that draws the same ones for
    both runs.

    Cost: one run of the training for each, and some forward passes.
    """
    known: list[Comparison] | None = case.recall("compare", case.first)
    if known is not None:
        return known
    was = score(case)
    assert was is not None
    with case.live(max(case.baseline.states)) as live:
        ours = {mode: _answers(live, mode, case) for mode in _modes(case)}
    runs = [(remedy, _run(case, remedy, ours)) for remedy in remedies]
    shifted = _shifted(case, ours)
    if shifted is not None:
        runs.append((_Shift(), shifted))
    most = max([was.end, *(was.end + r.better for _, r in runs if not r.failed)])
    scale = max(most - was.start, T.SCALE_FLOOR * was.scale)
    found = [Comparison(case.judged(_told(case, remedy, r, was, scale)), r.price, r.new) for remedy, r in runs]
    case.remember("compare", case.first, found)
    return found


@dataclass(frozen=True)
class _Run:
    """By how much a run under another loss ended better by the metric, what it cost by the given loss, and what new examples say."""

    better: float = 0.0
    se: float = math.nan
    price: float = 0.0
    new: tuple[float, float] | None = None
    failed: str = ""


class _Shift(Remedy):
    """The same outputs and another decision: what is added to them was chosen on one half of the training examples."""

    name = "threshold"
    explanation = "A number is added to the outputs, one for each class where there are several: the decision moves, and no weight does."
    code = "# choose the threshold (or the classes' offsets) by the metric, on examples that it is not judged on"


def _shifted(case: Case, ours: dict[str, tuple[Any, Any]]) -> _Run | None:
    """The best of some shifts of the unchanged run's outputs, chosen by the metric on every other example and judged on the rest."""
    assert case.training.loss_fn is not None
    output, target = ours["train"]
    if not isinstance(output, Tensor):
        return None
    choose, judge = slice(0, None, 2), slice(1, None, 2)
    moved = shifts_of_scores(output[choose], target[choose])
    if not moved:
        return None
    try:
        best = max(moved, key=lambda c: _metric(case, output[choose] + c, target[choose]))
        kept = output[judge], target[judge]
        better, se = _difference(case, kept, (kept[0] + best, kept[1]))
        new = _difference(case, ours["eval"], (ours["eval"][0] + best, ours["eval"][1])) if "eval" in ours else None
        price = float(case.training.loss_fn(kept[0] + best, kept[1]) - case.training.loss_fn(*kept)) / case.scale
    except FAILURES:
        return None
    return _Run(better, se, price, new) if math.isfinite(better) else None


def _run(case: Case, remedy: Remedy, ours: dict[str, tuple[Any, Any]]) -> _Run:
    case.tell(f"trying {remedy.name}", 0.9)
    began, states = time.perf_counter(), case.baseline.states
    try:
        with Live.of(remedy(case.training), seed=case.seed, device=case.device, batches=case.batches) as live:
            prepare(live, states[case.first])
            trace = run(live, case.probes, case.first, case.steps)
            if trace.broke is not None:
                raise GradoscopeError(f"it broke at step {trace.broke}")
            theirs = {mode: _answers(live, mode, case) for mode in ours}
        better, se = _difference(case, ours["train"], theirs["train"])
        new = _difference(case, ours["eval"], theirs["eval"]) if "eval" in ours else None
        price = (float(np.mean(case.capped(trace.result()))) - case.final) / case.scale
        done = _Run(better, se, price, new) if math.isfinite(better) else _Run(failed="the metric is not finite")
    except FAILURES as error:
        done = _Run(failed=f"{type(error).__name__}: {error}")
    case.charge(time.perf_counter() - began, remedy, case.steps)
    return done


def _told(case: Case, remedy: Remedy, r: _Run, was: Score, scale: float) -> Counterfactual:
    """A run as a counterfactual whose losses are values of the metric, as the user's metric gives them."""
    sign = 1 if case.training.metric_mode == "max" else -1
    left = max(was.perfect - was.end, 1e-12 * max(1.0, was.scale))
    low, high = (0.0, 0.0) if r.failed else (r.better - 1.96 * r.se, r.better + 1.96 * r.se)
    return Counterfactual(
        remedy=remedy.name,
        explanation=remedy.explanation,
        start=case.first,
        steps=case.steps,
        gain=r.better / left,
        interval=(low / left, high / left),
        difference=r.better,
        difference_se=r.se,
        shortfall=r.better / scale,
        shortfall_interval=(low / scale, high / scale),
        loss_before=sign * was.start,
        loss_unchanged=sign * was.end,
        loss_remedy=sign * (was.end + r.better),
        examples_ratio=1.0,
        curve=(),
        baseline_curve=(),
        on="metric",
        failed=r.failed,
        code=remedy.code,
    )


def _modes(case: Case) -> tuple[str, ...]:
    return ("train",) if case.validation is None else ("train", "eval")


def _answers(live: Live, which: str, case: Case) -> tuple[Any, Any]:
    """Outputs and targets on training or validation examples, in evaluation mode."""
    source = case.batches if which == "train" else case.validation
    assert source is not None
    outputs, targets = [], []
    with untouched(live.model, seed=0), torch.no_grad():
        live.model.eval()
        for batch in source.sample(ROWS, "probe"):
            inputs, target = split(tree.to_device(batch, live.device))
            outputs.append(live.model(*inputs))
            targets.append(target)
    return tree.concatenate(outputs), tree.concatenate(targets)


def _metric(case: Case, output: Any, target: Any) -> float:
    """The metric, turned so that more is better."""
    assert case.training.metric is not None
    with torch.no_grad():
        return float(case.training.metric(output, target)) * (1 if case.training.metric_mode == "max" else -1)


def _difference(case: Case, ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> tuple[float, float]:
    """How much better the second answers are than the first by the metric, and the bootstrap's standard error."""
    target = ours[1]
    difference = _metric(case, theirs[0], target) - _metric(case, ours[0], target)
    random, n, draws = torch.Generator().manual_seed(case.seed), tree.rows(target) or 0, []
    for _ in range(RESAMPLES):
        rows = torch.randint(n, (n,), generator=random)
        a, b, y = (tree.take(part, rows) for part in (ours[0], theirs[0], target))
        draws.append(_metric(case, b, y) - _metric(case, a, y))
    finite = [d for d in draws if math.isfinite(d)]
    return difference, float(np.std(finite, ddof=1)) if len(finite) > RESAMPLES / 2 else math.inf
