"""The proof of a trial: the faulty run fails, the repaired one succeeds, rival repairs fail; no alternative betters a healthy run."""

import math
from dataclasses import dataclass

import torch

from gradoscope import tree
from gradoscope.guard import untouched
from gradoscope.levels import constant_loss, levels
from gradoscope.loop import advance
from gradoscope.training import Live, Training
from gradoscope.trials.changes import larger_batch, restarted, step_times
from gradoscope.trials.trial import Change, Success, Trial

__all__ = ["End", "Proof", "alternatives", "ended", "prove"]

ROWS = 2000  # fresh examples on which a run without a finite data set is judged
LOOKS = 10  # points at which validation is looked at, for the best that early stopping could have had
MATERIAL = 0.25
"""What a repair gains at least, as a share of what there was to remove: the same quarter that a verdict calls material."""
GAP = 0.15
"""How far above the training loss a healthy training's validation loss may end, as a share of what training removed."""


@dataclass(frozen=True)
class End:
    """How a run ended, in evaluation mode.

    Attributes:
        start: training loss before the first step, or the best constant answer's, if that is lower.
        training: training loss at the end, infinite where it broke.
        validation: validation loss at the end, NaN without validation data.
        metric: metric at the end, NaN without one.
        validation_start: validation loss before the first step, or the constant answer's.
        validation_best: lowest validation loss at any of the looks.
    """

    start: float
    training: float
    validation: float
    metric: float
    validation_start: float
    validation_best: float

    def value(self, success: Success) -> float:
        """What a criterion is judged on."""
        return {"training": self.training, "validation": self.validation, "metric": self.metric}[success.on]


@dataclass(frozen=True)
class Proof:
    """What came of a proof.

    Attributes:
        trial: its name.
        seed: of data and start.
        holds: whether all that it demands was seen.
        failures: what was not, in words.
        value: where the run as given ended, by the trial's criterion.
        repaired: where the repaired run ended (healthy: the best of the alternatives).
        others: where the rivals or alternatives ended, with their sentences.
    """

    trial: str
    seed: int
    holds: bool
    failures: tuple[str, ...]
    value: float
    repaired: float
    others: tuple[tuple[str, float], ...]


def ended(training: Training, seed: int, *, whole: bool = False) -> End:
    """Run a training to its end and measure where it is; `whole` looks at validation on the way too.

    Cost: the training, and two to twelve forward passes over its data.
    """
    with Live.of(training, seed=seed) as live:
        examples = live.batches.sample(ROWS, "fresh")
        other = None if training.validation is None else [_whole(training.validation)]
        first, first_other = _loss(live, examples), math.nan if other is None else _loss(live, other)
        constant = levels(live)[0]
        held = math.inf if other is None else _constant(live, other[0])
        best, at = first_other, 0
        for k in range(1, LOOKS + 1) if whole and other is not None else (LOOKS,):
            until = training.steps * k // LOOKS
            reached = advance(live, at, until - at)
            broke, at = reached < until, until
            if broke:
                break
            if other is not None:
                best = min(best, _loss(live, other))
        last = math.inf if broke else _loss(live, examples)
        last_other = math.nan if other is None else math.inf if broke else _loss(live, other)
        metric = math.nan if other is None or broke else _metric(live, other)
    level = first if constant is None else min(first, constant)
    return End(level, last, last_other, metric, math.nan if other is None else min(first_other, held), best)


def _whole(data: object) -> object:
    return data(torch.Generator().manual_seed(1), ROWS) if callable(data) else data


def _loss(live: Live, batches: list[object]) -> float:
    total, rows = 0.0, 0
    for batch in batches:
        n = tree.rows(batch) or 1
        with untouched(live.model, seed=0), torch.no_grad():
            live.model.eval()
            total += n * float(live.loss(batch))
        rows += n
    value = total / rows
    return value if math.isfinite(value) else math.inf


def _constant(live: Live, batch: object) -> float:
    """The loss of the best constant answer on these examples, infinite where it cannot be told."""
    if live.training.loss_fn is None or not isinstance(batch, (tuple, list)):
        return math.inf
    with untouched(live.model, seed=0), torch.no_grad():
        live.model.eval()
        output = live.model(*batch[:-1])
    found = constant_loss(live.training.loss_fn, output, batch[-1])
    return math.inf if found is None else found


def _metric(live: Live, batches: list[object]) -> float:
    metric = live.training.metric
    if metric is None:
        return math.nan
    (batch,) = batches
    assert isinstance(batch, (tuple, list))
    with untouched(live.model, seed=0), torch.no_grad():
        live.model.eval()
        return float(metric(live.model(*batch[:-1]), batch[-1]))


def alternatives(trial: Trial) -> tuple[Change, ...]:
    """What a healthy training is compared with: its own alternatives, or three standard ones."""
    if trial.rivals:
        return trial.rivals

    def third(seed: int) -> Training:
        training = trial.build(seed)
        larger = larger_batch(training, 4)
        return restarted(training, 1) if larger is None else larger

    return (
        Change("steps three times as large", lambda seed: step_times(trial.build(seed), 3.0)),
        Change("steps a third as large", lambda seed: step_times(trial.build(seed), 1 / 3)),
        Change("batches four times as large, or another start where all data are seen at once", third),
    )


def prove(trial: Trial, seed: int = 0) -> Proof:
    """Run the training, its repair and its rivals (or alternatives) to the end, and see whether the trial is what it says it is.

    Cost: the training two to five times, more where the repair is larger.
    """
    return _healthy(trial, seed) if trial.healthy else _faulty(trial, seed)


def _faulty(trial: Trial, seed: int) -> Proof:
    assert trial.repair is not None
    run, mended = ended(trial.build(seed), seed), ended(trial.repair.make(seed), seed)
    value, repaired = run.value(trial.success), mended.value(trial.success)
    others = tuple((rival.says, ended(rival.make(seed), seed).value(trial.success)) for rival in trial.rivals)
    failures = []
    if trial.success.reached(value):
        failures.append(f"it reaches {trial.success} as it is: {value:.4g}")
    if not trial.success.reached(repaired):
        failures.append(f"repaired ({trial.repair.says}) it does not reach {trial.success}: {repaired:.4g}")
    if trial.success.on != "metric":
        top = run.start if trial.success.on == "training" else run.validation_start
        gain = (min(value, top) - repaired) / max(top - repaired, 1e-12)
        if gain < MATERIAL:
            failures.append(f"the repair gains only {gain:.0%} of all there was to remove")
    failures += [f"{says} reaches {trial.success} too: {end:.4g}" for says, end in others if trial.success.reached(end)]
    return Proof(trial.name, seed, not failures, tuple(failures), value, repaired, others)


def _healthy(trial: Trial, seed: int) -> Proof:
    training = trial.build(seed)
    run = ended(training, seed, whole=True)
    ends = [(change.says, ended(change.make(seed), seed)) for change in alternatives(trial)]
    value = run.value(trial.success)
    best = min([e.training for _, e in ends])
    failures = []
    if not trial.success.reached(value):
        failures.append(f"it does not reach {trial.success}: {value:.4g}")
    whole = max(run.start - min(run.training, best), 1e-12)
    for says, end in ends:
        gain = (run.training - end.training) / whole
        if gain > trial.margin:
            failures.append(f"with {says} the training loss ends {gain:.0%} lower: {end.training:.4g} instead of {run.training:.4g}")
    if math.isfinite(run.validation):
        whole = max(run.validation_start - run.validation_best, 1e-12)
        lost = (run.validation - run.validation_best) / whole
        if lost > trial.margin:
            failures.append(f"early stopping gains {lost:.0%}: {run.validation_best:.4g} instead of {run.validation:.4g}")
        gap = (run.validation - run.training) / max(run.start - run.training, 1e-12)
        if gap > GAP:
            failures.append(f"validation ends {gap:.0%} of what was removed above training: {run.validation:.4g} and {run.training:.4g}")
    return Proof(trial.name, seed, not failures, tuple(failures), value, best, tuple((says, e.value(trial.success)) for says, e in ends))
