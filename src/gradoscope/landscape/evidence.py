"""Conditioning and noise along a run: uphill steps, changing curvature, predicted and actual steps, running and snapshot gradients.

These are the terms in which Goodfellow's slides ask whether a training meets obstacles. Each number is that of `gradoscope.measure`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.measure.noise import NoiseStatistics, expected_step, noise_statistics
from gradoscope.measure.progress import trend
from gradoscope.measure.steps import StepPrediction, predict_step, step_curvature, uphill_share
from gradoscope.measurement import Measurement
from gradoscope.objective import Objective

__all__ = ["GradientNorms", "Terms", "Window", "gradient_norms", "terms", "variation", "window"]


@dataclass(frozen=True)
class Window:
    r"""What W consecutive steps of a training did, step by step.

    Args:
        first: the step that the first one starts from.
        own: the change of the loss of each step's own batch, shape (W,); empty where the batches are not known.
        fixed: the change of the loss on one fixed set of examples, shape (W,).
        predicted: Taylor's prediction of each step on the fixed examples.
        curvature: $g^\top Hg/g^\top g$ on the fixed examples before each step, shape (W,).
        overshoot: $r_t=\tfrac12 s^\top Hs/|g^\top s|$, for plain gradient steps $\eta g^\top Hg/2g^\top g$; above 1 the quadratic
            model says uphill; shape (W,).
        uphill_own: the share of steps on which the own batch's loss rose, with Wilson's interval; None where it is not known.
        uphill_fixed: the same for the fixed examples.
        variation: coefficient of variation of `curvature`, with a jackknife standard error.
        ratio: median of the ratio of neighbours in `curvature`.
    """

    first: int
    own: np.ndarray
    fixed: np.ndarray
    predicted: list[StepPrediction]
    curvature: np.ndarray
    overshoot: np.ndarray
    uphill_own: Measurement | None
    uphill_fixed: Measurement
    variation: Measurement
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values: columns by step, and the summaries with their intervals."""

        def share(m: Measurement | None) -> Any:
            return (
                None
                if m is None
                else {"value": m.value, "interval": list(m.details["interval"]), "effective": m.details["effective_steps"]}
            )

        return {
            "first": self.first,
            "steps": [self.first + i for i in range(len(self.fixed))],
            "own": self.own.tolist(),
            "fixed": self.fixed.tolist(),
            "first_order": [p.first for p in self.predicted],
            "second_order": [p.second for p in self.predicted],
            "rho": [p.rho for p in self.predicted],
            "negligible": [p.negligible for p in self.predicted],
            "curvature": self.curvature.tolist(),
            "overshoot": self.overshoot.tolist(),
            "uphill_own": share(self.uphill_own),
            "uphill_fixed": share(self.uphill_fixed),
            "variation": {"value": self.variation.value, "se": self.variation.se},
            "ratio": self.ratio,
        }


def window(
    objective: Objective,
    points: Tensor,
    own: Callable[[int], Objective] | None = None,
    *,
    first: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Window:
    r"""Predicted against actual change, curvature along the gradient, and uphill steps, over consecutive points of a run.

    The loss of a step's own batch and that of the fixed examples are two series, and never mixed: the first falls by more, as the
    step was made for it.

    Args:
        objective: the loss on fixed examples; its parameters are afterwards where they were.
        points: the parameters before the first step, and after each, shape (W + 1, dim).
        own: gives the loss of the batch of step i; None where the batches are not known.
        first: the step that `points[0]` stands before.
        progress: called with the share done.

    Returns:
        The window.

    Raises:
        Usage: where there are fewer than two points.

    Cost: per step 1 gradient, 2 Hessian-vector products and 2 forward passes on the fixed examples, 2 forward passes on its batch.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> objective = Objective(model, lambda m, b: m(b).square().sum(), [torch.ones(1, 1).double()])
        >>> seen = window(objective, torch.tensor([[1.0], [0.5], [-0.6]]).double())
        >>> seen.curvature.tolist(), seen.overshoot.round(3).tolist(), seen.uphill_fixed.value
        ([2.0, 2.0], [0.25, 1.1], 0.5)

    Source: Goodfellow 2015, slides on conditioning; Goodfellow, Bengio and Courville 2016, section 4.3.
    """
    if points.dim() != 2 or len(points) < 2:
        raise Usage(f"a window needs at least two points of shape (points, dim), got {tuple(points.shape)}.")
    like = objective.theta()
    predicted: list[StepPrediction] = []
    curvature: list[float] = []
    changes: list[float] = []
    count = len(points) - 1
    for i in range(count):
        here, there = points[i].to(like), points[i + 1].to(like)
        with objective.moved(here):
            gradient = objective.gradient()
            predicted.append(predict_step(objective, there - here, gradient=gradient))
            curvature.append(float(step_curvature(objective, gradient).value))
            objective.release()  # its graphs belong to this point, which their stamp cannot tell from the next one
        if own is not None:
            batch = own(first + i)
            changes.append(float((batch.at(there) - batch.at(here)).mean()))
        if progress is not None:
            progress((i + 1) / count)
    fixed = np.array([p.actual for p in predicted])
    with np.errstate(invalid="ignore", divide="ignore"):
        overshoot = np.array([0.5 * p.curvature for p in predicted]) / np.abs([p.first for p in predicted])
    return Window(
        first=first,
        own=np.array(changes),
        fixed=fixed,
        predicted=predicted,
        curvature=np.array(curvature),
        overshoot=overshoot,
        uphill_own=_uphill(np.array(changes)) if changes else None,
        uphill_fixed=_uphill(fixed),
        variation=variation(np.array(curvature)),
        ratio=_ratio(np.array(curvature)),
    )


def _uphill(changes: np.ndarray) -> Measurement:
    """The share of positive changes: `uphill_share` wants the series whose differences they are."""
    return uphill_share(np.r_[0.0, np.cumsum(np.sign(changes))])


def _ratio(series: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = series[1:] / series[:-1]
    ratios = ratios[np.isfinite(ratios)]
    return float(np.median(ratios)) if len(ratios) else math.nan


def variation(series: np.ndarray) -> Measurement:
    r"""The coefficient of variation $s/|\bar x|$ of a series, with its jackknife standard error.

    Args:
        series: shape (W,); values that are not finite are left out.

    Returns:
        The coefficient; NaN where fewer than three values are finite.

    Example:
        >>> round(variation(np.array([1.0, 2.0, 3.0])).value, 3)
        0.5
    """
    known = series[np.isfinite(series)]
    n = len(known)
    if n < 3:
        return Measurement("coefficient_of_variation", math.nan, se=math.nan, n=n)

    def of(x: np.ndarray) -> float:
        return float(x.std(ddof=1) / abs(x.mean())) if x.mean() != 0 else math.inf

    without = np.array([of(np.delete(known, i)) for i in range(n)])
    with np.errstate(invalid="ignore"):
        se = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return Measurement("coefficient_of_variation", of(known), se=se, n=n, method="jackknife")


@dataclass(frozen=True)
class Terms:
    """Signal, noise and what they do to the next step, at one point of a run.

    Args:
        step: where.
        noise: signal and noise of the batch gradient.
        change: "D", "C", "M" and "change" of `expected_step`; empty where the optimizer's metric is not known.
    """

    step: int
    noise: NoiseStatistics
    change: dict[str, Measurement]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "step": self.step,
            "noise": dict(vars(self.noise)),
            "change": {name: {"value": m.value, "se": m.se} for name, m in self.change.items()},
        }


def terms(
    objective: Objective, batches: Objective, point: Tensor, rates: Tensor | None, *, batch: int, step: int = 0, seed: int = 0
) -> Terms:
    r"""Split the expected change of the next step into descent D, curvature C and noise M, in the optimizer's metric.

    Args:
        objective: the loss on fixed examples, for products with the Hessian.
        batches: K independent batches of the training's own size, K >= 3.
        point: the parameters, shape (dim,).
        rates: the optimizer's step per unit of gradient, shape (dim,) (`measure.metric.preconditioner`), or None.
        batch: rows per batch.
        step: where the point lies.
        seed: of the sign-flip test.

    Returns:
        The terms.

    Cost: K gradients and K Hessian-vector products.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> loss = lambda m, b: m(b).square().sum()
        >>> objective = Objective(model, loss, [torch.ones(1, 1)] * 3)
        >>> found = terms(objective, objective, torch.ones(1), torch.full((1,), 0.5), batch=1)
        >>> round(found.change["D"].value, 6), round(found.change["C"].value, 6)
        (2.0, 1.0)
    """
    like = objective.theta()
    with objective.moved(point.to(like)):
        gradients = batches.batch_gradients()
        statistics = noise_statistics(gradients, batch, seed=seed)
        change: dict[str, Measurement] = {}
        if rates is not None and len(gradients) >= 3:
            root = rates.to(gradients).clamp_min(0).sqrt()
            change = expected_step(gradients * root, lambda v: root * objective.hvp(root * v), 1.0)
        objective.release()
    return Terms(step, statistics, change)


@dataclass(frozen=True)
class GradientNorms:
    r"""The gradient's norm as the training sees it, and at the parameters where it stands.

    Args:
        steps: the steps at which both were taken, shape (n,).
        running: mean over the steps since the last one of the norm of the step's own batch gradient. Its square holds the noise
            $\mathrm{tr}\,\Sigma_B$; shape (n,), NaN at the start.
        snapshot: the norm of the gradient on the fixed examples, shape (n,).
        loss: the loss on the fixed examples, shape (n,).
        running_trend: Kendall's tau of block means of the running norm, with its p-value.
        snapshot_trend: the same for the snapshot norm.
    """

    steps: np.ndarray
    running: np.ndarray
    snapshot: np.ndarray
    loss: np.ndarray
    running_trend: Measurement
    snapshot_trend: Measurement

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""

        def told(m: Measurement) -> dict[str, Any]:
            return {"value": m.value, "p": m.p}

        return {
            "steps": self.steps.tolist(),
            "running": self.running.tolist(),
            "snapshot": self.snapshot.tolist(),
            "loss": self.loss.tolist(),
            "running_trend": told(self.running_trend),
            "snapshot_trend": told(self.snapshot_trend),
        }


def gradient_norms(objective: Objective, points: Tensor, steps: np.ndarray, per_step: np.ndarray) -> GradientNorms:
    """Running and snapshot gradient norms at recorded points.

    A training whose loss falls while the snapshot norm does not is not on its way into a critical point.

    Args:
        objective: the loss on fixed examples.
        points: recorded parameters, shape (n, dim).
        steps: the steps they stand at, ascending, shape (n,).
        per_step: the norm of every step's own gradient, shape (steps,); NaN where it is not known.

    Returns:
        Both series and their trends.

    Cost: n gradients.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: m(b).square().sum() / 2, [torch.ones(1, 1)])
        >>> gradient_norms(objective, torch.tensor([[2.0], [1.0]]), np.array([0, 2]), np.array([2.0, 1.5])).snapshot.tolist()
        [2.0, 1.0]

    Source: Goodfellow 2015, the slide "SGD may not encounter critical points".
    """
    like = objective.theta()
    snapshot, loss = [], []
    for point in points:
        with objective.moved(point.to(like)):
            snapshot.append(float(torch.linalg.vector_norm(objective.gradient(), dtype=torch.float64)))
            loss.append(objective.loss())
    running = np.full(len(steps), math.nan)
    for k in range(1, len(steps)):
        part = per_step[steps[k - 1] : steps[k]]
        part = part[np.isfinite(part)]
        running[k] = part.mean() if len(part) else math.nan
    return GradientNorms(np.asarray(steps), running, np.array(snapshot), np.array(loss), trend(per_step), trend(snapshot))
