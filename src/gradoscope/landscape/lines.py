"""The loss along a line through parameter space: barrier, monotone or not, convex or not."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.landscape.points import Metric, Values, evaluate
from gradoscope.measurement import Cost
from gradoscope.objective import Objective
from gradoscope.stacked import numpy_generator

__all__ = ["GRID", "Line", "Rise", "default_alphas", "line", "rise"]

GRID = 51  # points from start to end, as the source has them
FEWEST = 8  # examples or batches in each half, below which nothing is tested
RESAMPLES = 2000


@dataclass(frozen=True)
class Rise:
    r"""The largest rise along a line, $\Delta=\max_{a_1<a_2}J(a_2)-J(a_1)$, and whether it is more than chance.

    Attributes:
        rise: Delta, in the loss's unit; 0 where the loss never rises.
        relative: Delta / (J(0) - min J); 0 where there is no rise, infinite where the start is the lowest point.
        between: a_1 and a_2.
        tested: the mean rise in the half of the examples that did not choose the pair; NaN where nothing was tested.
        interval: the 95% bootstrap interval of that mean.
        monotone: whether the interval reaches down to zero (or there is no rise), None where nothing was tested.
        unit: what was resampled: "examples" or "batches".
        n: how many of them the test rests on.
    """

    rise: float
    relative: float
    between: tuple[float, float]
    tested: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    monotone: bool | None = None
    unit: str = "batches"
    n: int = 0


@dataclass(frozen=True, eq=False)
class Line:
    r"""The loss J(start + a direction) and what it looks like.

    Attributes:
        alphas: a, ascending, shape (points,).
        main: which of them barrier, rise and convexity are read from: those of [0, 1] on a line to an end, else all; shape (points,).
        loss: J(a), shape (points,); infinite or NaN where it is.
        standard_error: of the loss, over examples or batches, NaN where there is only one batch.
        metric: the training's metric, or None.
        validation_loss: the loss on validation data, or None; `validation_standard_error` and `validation_metric` likewise.
        barrier: the largest height above the straight line from J(first) to J(last main point), 0 where there is none.
        barrier_at: its a.
        height: the largest loss minus the larger one of the two ends, 0 where no point is higher.
        rise: the largest rise, and its test.
        convex_share: the share of inner points of the regular grid that lie on or below the chord of their neighbours (up to rounding).
        length: |direction|.
        start: shape (dim,).
        direction: shape (dim,).
        method: how the points were evaluated.
        why: why not faster.
        batch_norm: which statistics batch normalisation used, "" where the model has none.
        cost: the passes spent, validation included.
    """

    alphas: np.ndarray
    main: np.ndarray
    loss: np.ndarray
    standard_error: np.ndarray
    metric: np.ndarray | None
    validation_loss: np.ndarray | None
    validation_standard_error: np.ndarray | None
    validation_metric: np.ndarray | None
    barrier: float
    barrier_at: float
    height: float
    rise: Rise
    convex_share: float
    length: float
    start: Tensor = field(repr=False)
    direction: Tensor = field(repr=False)
    method: str = ""
    why: str = ""
    batch_norm: str = ""
    cost: Cost = field(default_factory=Cost)


def default_alphas(to_end: bool = True) -> np.ndarray:
    """51 points from 0 to 1, the start more finely ([0, 0.05] by 0.005), and beyond both ends to -0.25 and 1.25; else 51 from -1 to 1.

    Example:
        >>> a = default_alphas()
        >>> len(a), float(a[0]), float(a[-1])
        (79, -0.25, 1.25)
    """
    if not to_end:
        return np.linspace(-1, 1, GRID)
    fine, beyond = np.arange(1, 11) * 0.005, np.arange(1, 11) * 0.025
    return np.unique(np.round(np.r_[np.linspace(0, 1, GRID), fine, -beyond, 1 + beyond], 12))


def line(
    objective: Objective,
    start: Tensor,
    end: Tensor | None = None,
    direction: Tensor | None = None,
    *,
    alphas: np.ndarray | Sequence[float] | None = None,
    metric: Metric | None = None,
    validation_objective: Objective | None = None,
    batch_norm: Literal["stored", "recomputed"] = "stored",
    seed: int = 0,
    chunk: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Line:
    r"""The loss along $\theta(a)=\theta_0+a\,(\theta_1-\theta_0)$, or along $\theta_0+a\,d$: same examples, same masks at every a.

    Args:
        objective: the loss on the training examples; a mode of "eval" switches dropout off.
        start: shape (dim,), over `objective.named`.
        end: shape (dim,); or else
        direction: shape (dim,).
        alphas: where to evaluate; `default_alphas` if None.
        metric: `metric(output, target)`, evaluated at the same points.
        validation_objective: the loss on other examples, of the same model.
        batch_norm: as in `points.evaluate`; "recomputed" uses the training batches for the validation loss too.
        seed: what halves and resamples are drawn from.
        chunk: as in `points.evaluate`.
        progress: called with the share that is done.

    Raises:
        Usage: unless exactly one of `end` and `direction` is given, or with fewer than two points.

    Cost: a forward pass over all batches per point, and as many over the validation batches; less where points can be factored.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: (m(b) - 1).square().mean(), [torch.eye(2)])
        >>> bowl = line(objective, torch.zeros(2), torch.ones(2))
        >>> bowl.barrier, bowl.rise.rise, bowl.convex_share
        (0.0, 0.0, 1.0)

    Source: Goodfellow, Vinyals and Saxe 2015; Lucas et al. 2021 for the test of monotone decrease; Entezari et al. 2021 for the barrier.
    """
    if (end is None) == (direction is None):
        raise Usage("a line needs exactly one of `end` and `direction`.")
    d = end - start if end is not None else direction
    assert d is not None
    at = default_alphas(end is not None) if alphas is None else np.unique(np.asarray(alphas, dtype=np.float64))
    if at.ndim != 1 or len(at) < 2 or not np.isfinite(at).all():
        raise Usage("a line needs at least two different finite `alphas`.")
    main = (at >= 0) & (at <= 1) if end is not None else np.ones(len(at), dtype=bool)
    if main.sum() < 2:
        main = np.ones(len(at), dtype=bool)
    regular = main & np.isin(at, np.round(np.linspace(0, 1, GRID), 12)) if alphas is None and end is not None else main
    share = 1.0 if validation_objective is None else 0.5
    tell = progress or (lambda _: None)
    values = evaluate(
        objective,
        start,
        d[None],
        at[:, None],
        metric=metric,
        per_example=True,
        batch_norm=batch_norm,
        chunk=chunk,
        progress=lambda done: tell(share * done),
    )
    held: Values | None = None
    if validation_objective is not None:
        held = evaluate(
            validation_objective,
            start,
            d[None],
            at[:, None],
            metric=metric,
            batch_norm=batch_norm,
            statistics=objective,
            chunk=chunk,
            progress=lambda done: tell(share + (1 - share) * done),
        )
    barrier, barrier_at, height = _barrier(at[main], values.loss[main])
    assert values.per_example is not None
    return Line(
        alphas=at,
        main=main,
        loss=values.loss,
        standard_error=values.standard_error,
        metric=values.metric,
        validation_loss=None if held is None else held.loss,
        validation_standard_error=None if held is None else held.standard_error,
        validation_metric=None if held is None else held.metric,
        barrier=barrier,
        barrier_at=barrier_at,
        height=height,
        rise=rise(at[main], values.per_example[main], values.weights, unit=values.unit, seed=seed),
        convex_share=_convex_share(at[regular], values.loss[regular], values.rounding),
        length=float(d.detach().double().norm()),
        start=start,
        direction=d,
        method=values.method,
        why=values.why,
        batch_norm=values.batch_norm,
        cost=values.cost if held is None else values.cost + held.cost,
    )


def _barrier(a: np.ndarray, loss: np.ndarray) -> tuple[float, float, float]:
    """The largest height above the chord of the two ends, where it is, and the height above the higher end."""
    if not (math.isfinite(loss[0]) and math.isfinite(loss[-1])):
        return math.nan, math.nan, math.nan
    above = loss - (loss[0] + (a - a[0]) / (a[-1] - a[0]) * (loss[-1] - loss[0]))
    above[[0, -1]] = 0.0
    above = np.where(np.isnan(above), np.inf, above)  # NaN is what an overflowing loss ends in
    top = int(above.argmax())
    highest = np.where(np.isnan(loss), np.inf, loss).max()
    return float(max(above[top], 0.0)), float(a[top]), float(max(highest - max(loss[0], loss[-1]), 0.0))


def _convex_share(a: np.ndarray, loss: np.ndarray, rounding: float) -> float:
    finite = np.isfinite(loss)
    a, loss = a[finite], loss[finite]
    if len(a) < 3:
        return math.nan
    t = (a[1:-1] - a[:-2]) / (a[2:] - a[:-2])
    chord = (1 - t) * loss[:-2] + t * loss[2:]
    return float(np.mean(chord - loss[1:-1] >= -rounding * np.maximum(np.abs(loss[:-2]), np.abs(loss[2:]))))


def rise(
    alphas: np.ndarray,
    losses: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    unit: str = "examples",
    seed: int = 0,
) -> Rise:
    r"""The largest rise $\max_{a_1<a_2}J(a_2)-J(a_1)$, and a paired bootstrap of it with the examples split in halves.

    The largest of many differences is positive by chance alone. So one half of the examples chooses the pair, and the other half is
    asked whether its mean rise over that pair, resampled with each example's two losses together, stays above zero.

    Args:
        alphas: ascending, shape (points,).
        losses: of each example, shape (points, n); points with a loss that is not finite are left out of the test.
        weights: of the examples, which sum to 1, shape (n,); equal if None.
        unit: what the n columns are.
        seed: what halves and resamples are drawn from.

    Example:
        >>> a = np.linspace(0, 1, 5)
        >>> up = rise(a, np.array([3.0, 2.0, 2.5, 1.0, 0.0])[:, None] + np.linspace(0, 0.1, 40))
        >>> round(up.rise, 6), up.between, up.monotone
        (0.5, (0.25, 0.5), False)

    Source: Lucas et al. 2021, Analyzing monotonic linear interpolation in neural network loss landscapes, section 3.
    """
    losses = np.asarray(losses, dtype=np.float64)
    n = losses.shape[1]
    weights = np.full(n, 1 / n) if weights is None else weights
    with np.errstate(invalid="ignore", over="ignore"):
        loss = losses @ weights
    first, last, height = _largest_rise(loss)
    fall = loss[0] - np.nanmin(loss)
    relative = 0.0 if height == 0 else height / fall if fall > 0 else math.inf
    told = Rise(height, relative, (float(alphas[first]), float(alphas[last])), monotone=True if height == 0 else None, unit=unit, n=n)
    if n < 2 * FEWEST:
        return told
    random = numpy_generator(seed, 631)
    order = random.permutation(n)
    choose, ask = order[: n // 2], order[n // 2 :]
    finite = np.isfinite(losses).all(1)
    if finite.sum() < 2:
        return told
    w = weights[choose] / weights[choose].sum()
    i, j, found = _largest_rise(losses[finite][:, choose] @ w)
    if found == 0:  # half of the examples see no rise at all
        return Rise(height, relative, told.between, 0.0, (0.0, 0.0), True, unit, len(ask))
    v = weights[ask]
    each = losses[finite][j, ask] - losses[finite][i, ask]
    at_once = max(1, 2**20 // len(ask))
    resampled = []
    for k in range(0, RESAMPLES, at_once):
        pick = random.integers(0, len(ask), (min(at_once, RESAMPLES - k), len(ask)))
        resampled.append((each * v)[pick].sum(1) / v[pick].sum(1))
    low, high = (float(q) for q in np.quantile(np.concatenate(resampled), [0.025, 0.975]))
    return Rise(height, relative, told.between, float(each @ v / v.sum()), (low, high), low <= 0, unit, len(ask))


def _largest_rise(loss: np.ndarray) -> tuple[int, int, float]:
    """The pair of indices i < j of the largest loss[j] - loss[i], and that rise; (0, 0, 0.0) where there is none."""
    loss = np.where(np.isnan(loss), np.inf, loss)
    best, pair, low = 0.0, (0, 0), 0
    for j in range(1, len(loss)):
        if math.isfinite(loss[low]) and loss[j] - loss[low] > best:
            best, pair = float(loss[j] - loss[low]), (low, j)
        if loss[j] < loss[low]:
            low = j
    return (*pair, best)
