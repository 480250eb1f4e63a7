"""What the obstacles about the parts of a model share: the primary gradient beside that of the intermediate loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradoscope import thresholds as T
from gradoscope import tree
from gradoscope.case import Case
from gradoscope.errors import GradoscopeError
from gradoscope.measure.supervision import PairedSignals, paired_signals
from gradoscope.objective import Objective
from gradoscope.readings import live_full_batch
from gradoscope.training import Live

__all__ = ["PartSignals", "part_signals", "same_gradient", "why_not"]

BATCHES = 16  # whose gradients are compared; four times as many where these leave it open, and sixteen times in one case
KEPT = 1 << 26  # numbers of gradients that are kept at once


@dataclass(frozen=True)
class PartSignals:
    """The primary gradient on the parts beside that of the intermediate loss, at one checkpoint.

    Attributes:
        step: of the checkpoint.
        signals: the primary loss first, the intermediate one second.
        reach: the share of all trained numbers that the intermediate loss depends on: the parts.
        batch: examples behind one gradient.
    """

    step: int
    signals: PairedSignals
    reach: float
    batch: int

    @property
    def resolved(self) -> bool:
        """Whether the intermediate loss tells the parts where to go: its mean gradient is not zero."""
        return self.signals.second.signal > 0 and self.signals.second.p_value < T.ALPHA

    @property
    def silent(self) -> bool | None:
        """Whether the primary gradient on the parts has far less signal; None where these batches leave it open."""
        if not self.resolved:
            return False
        if self.signals.ratio_upper < T.SNR_GAP:
            return True
        return False if self.signals.ratio >= T.SNR_GAP else None

    @property
    def same(self) -> bool | None:
        """Whether both losses have the same mean gradient; None where these batches leave it open."""
        if self.signals.difference_p < T.ALPHA:
            return False
        # No test can tell them apart, and one is found in the other beyond doubt: not for want of batches, then.
        low, high = (self.signals.projection + 1.96 * sign * self.signals.projection_se for sign in (-1, 1))
        return True if self.reach == 1 and low > T.SAME_GRADIENT and high < 1 / T.SAME_GRADIENT else None


def part_signals(case: Case, step: int) -> PartSignals | None:
    """Both gradients by the parameters that the intermediate loss depends on; None where that is none of them.

    Cost: 2 K gradients, K = 16, and 64 where these leave anything open; 256 where those still do, and the training itself takes as
    many steps.
    """
    try:
        reading: PartSignals | None = case.measure("part_signals", step, lambda live: _read(case, live, step))
    except (GradoscopeError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError) as error:
        # Only what rests on these targets must suffer from a function of the user's that fails.
        case.remember("part_signals", step, None)
        case.remember("part_signals_failed", case.first, f"{type(error).__name__}: {error}".splitlines()[0])
        return None
    return reading


def why_not(case: Case) -> str:
    """Why `part_signals` gives nothing."""
    failed = case.recall("part_signals_failed", case.first)
    told = f"one that runs; it failed with {failed}" if failed else "one that depends on the model's parameters, on three batches or more"
    return f"the intermediate loss: {told}"


def _read(case: Case, live: Live, step: int) -> PartSignals | None:
    reading = _compare(case, live, step, BATCHES)
    if reading is None or (reading.silent is not None and _told(reading)):
        return reading
    reading = _compare(case, live, step, 4 * BATCHES)
    numbers = 2 * 16 * BATCHES * sum(p.numel() for _, p in live.trainable())
    if reading is None or (reading.silent is not None and _told(reading)) or numbers > KEPT or case.steps < 32 * BATCHES:
        return reading
    # A verdict, or which of two obstacles it is, may rest on this: for no more passes than the training itself takes.
    return _compare(case, live, step, 16 * BATCHES)


def _told(reading: PartSignals) -> bool:
    """Whether it is known if the means are the same; of losses that reach different parameters they are not."""
    return reading.same is not None or reading.reach < 1


def _compare(case: Case, live: Live, step: int, count: int) -> PartSignals | None:
    parts = live.training.intermediate
    assert parts is not None
    batches, rows = _batches(case, live, count)
    primary = Objective.of(live, batches, seed=5)
    ours = primary.batch_gradients()
    added = Objective(
        live.model, lambda model, batch: parts(model, tree.copied(batch)), primary.batches, parameters=live.trainable(), seed=5
    )
    theirs = added.batch_gradients()
    reached = torch.cat(
        [torch.full((t[0].numel(),), bool(t.any())) for t in torch.split(theirs, [p.numel() for p in primary.parameters], 1)]
    )
    if len(batches) < 3 or not bool(reached.any()):
        return None
    reached = reached.to(theirs.device)
    signals = paired_signals(_columns(ours, reached), _columns(theirs, reached), rows, seed=case.seed)
    return PartSignals(step, signals, float(reached.double().mean()), rows)


def _columns(gradients: Tensor, reached: Tensor) -> Tensor:
    return gradients if bool(reached.all()) else gradients[:, reached]


def _batches(case: Case, live: Live, count: int) -> tuple[list[object], int]:
    """Batches of the training's own size that it has not seen at this point, or parts of the data where a step sees them all."""
    size = live.batches.batch_size or 1
    if live_full_batch(case):
        sample = tree.to_device(live.batches.sample(size, "fresh")[0], live.device)
        n = tree.rows(sample) or 1
        each = max(1, n // min(count, n))
        return [tree.take(sample, slice(k, k + each)) for k in range(0, n - each + 1, each)], each
    per_epoch = live.batches.per_epoch or 10**9
    first = -(-(case.first + case.steps) // per_epoch) * per_epoch if live.batches.per_epoch else case.first + case.steps + 10**6
    return [live.batches.batch(first + j) for j in range(min(count, per_epoch))], size


def same_gradient(case: Case) -> PartSignals | None:
    """The reading by which the intermediate loss has the primary one's mean gradient, and only another estimate of it; or None."""
    if case.training.intermediate is None:
        return None
    taken = [part_signals(case, step) for step in dict.fromkeys((case.checkpoint(0.0), case.checkpoint(0.5)))]
    found = [reading for reading in taken if reading is not None]
    if any(reading.same is False for reading in found):
        return None
    return next((reading for reading in found if reading.same), None)
