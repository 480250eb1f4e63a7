"""Two runs over the same examples: what a change gains, with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from gradoscope.diagnosis import Counterfactual
from gradoscope.remedies import Remedy

__all__ = ["Fork", "compared", "paired"]

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Fork:
    """A run under a remedy, as far as a comparison needs it.

    Attributes:
        start: the step at which it left the unchanged run.
        steps: how many it took.
        before: mean loss at its start.
        losses: part losses at its end.
        curve: (step, loss) on its way.
        failed: why it came to nothing, or empty.
        examples_ratio: examples it used per example of the unchanged run.
    """

    start: int
    steps: int
    before: float
    losses: np.ndarray
    curve: Curve
    failed: str = ""
    examples_ratio: float = 1.0


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and standard error of a - b over pairs."""
    with np.errstate(invalid="ignore"):  # both may be infinite
        d = np.asarray(a) - np.asarray(b)
    if not np.isfinite(d).all():
        return float(d.mean()), math.nan
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else 0.0


def compared(
    remedy: Remedy,
    fork: Fork,
    unchanged: np.ndarray,
    curve: Curve,
    *,
    excess: float,
    scale: float,
    on: Literal["training", "validation", "fitting", "metric"],
) -> Counterfactual:
    """A fork against the unchanged run, part by part.

    Args:
        remedy: what the fork changed.
        fork: how it went.
        unchanged: part losses of the unchanged run.
        curve: (step, loss) of the unchanged run.
        excess: what the gain is a share of: the loss that the unchanged run left.
        scale: what the shortfall is a share of: all the loss that there was to remove.
        on: "training", "validation", "fitting" for the loss that fits the output where the given one does not, or "metric".
    """
    difference, se = paired(unchanged, fork.losses)
    t = float(stats.t.ppf(0.975, max(1, len(unchanged) - 1)))
    low, high = difference - t * se, difference + t * se
    if fork.failed:
        difference, se, low, high = 0.0, math.nan, 0.0, 0.0
    return Counterfactual(
        remedy=remedy.name,
        explanation=remedy.explanation,
        start=fork.start,
        steps=fork.steps,
        gain=difference / excess,
        interval=(low / excess, high / excess),
        difference=difference,
        difference_se=se,
        shortfall=difference / scale,
        shortfall_interval=(low / scale, high / scale),
        loss_before=fork.before,
        loss_unchanged=float(np.mean(unchanged)),
        loss_remedy=float(np.mean(fork.losses)),
        examples_ratio=fork.examples_ratio,
        curve=fork.curve,
        baseline_curve=curve,
        on=on,
        failed=fork.failed,
        code=remedy.code,
    )
