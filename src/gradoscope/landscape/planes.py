"""The loss over a plane of parameter space: exact, or from few points with an estimate of the error."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.landscape._coarse import WORTH, Coarse
from gradoscope.landscape._coarse import coarse as interpolate
from gradoscope.landscape.points import Metric, Values, evaluate, evaluator
from gradoscope.measurement import Cost
from gradoscope.objective import Objective

__all__ = ["POINTS", "Surface", "surface"]

POINTS = 51  # in each direction, as the source has them
Extent = float | tuple[float, float] | tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Surface:
    r"""The loss over a plane: `loss[i, j]` is $J(\theta_0+x_j d_0+y_i d_1)$.

    Attributes:
        x: coordinates along `directions[0]`, ascending, shape (nx,).
        y: coordinates along `directions[1]`, ascending, shape (ny,).
        loss: shape (ny, nx); infinite or NaN where it is.
        standard_error: of the loss over examples or batches, shape (ny, nx); None on an interpolated surface.
        metric: the training's metric, shape (ny, nx), or None.
        validation_loss: shape (ny, nx), or None; `validation_metric` likewise.
        origin: shape (dim,).
        directions: shape (2, dim).
        exact: whether every point was evaluated; else the values are interpolated.
        error: an estimate from above of the largest |error| of the loss, as a share of its range over the surface; 0 where exact.
        tolerance: what was asked for, None where every point was.
        met: whether the error is within the tolerance.
        evaluated: the coordinates (x, y) at which the loss was evaluated, shape (n, 2).
        method: how the points were evaluated.
        why: why not faster, or why a coarse surface became an exact one.
        batch_norm: which statistics batch normalisation used, "" where the model has none.
        cost: the passes spent, validation included.
    """

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    standard_error: np.ndarray | None
    metric: np.ndarray | None
    validation_loss: np.ndarray | None
    validation_metric: np.ndarray | None
    origin: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    exact: bool = True
    error: float = 0.0
    tolerance: float | None = None
    met: bool = True
    evaluated: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    method: str = ""
    why: str = ""
    batch_norm: str = ""
    cost: Cost = field(default_factory=Cost)


def surface(
    objective: Objective,
    origin: Tensor,
    directions: Tensor,
    *,
    extent: Extent = 1.0,
    points: int | tuple[int, int] = POINTS,
    x: np.ndarray | Sequence[float] | None = None,
    y: np.ndarray | Sequence[float] | None = None,
    metric: Metric | None = None,
    validation_objective: Objective | None = None,
    coarse: bool = False,
    tolerance: float = 1e-3,
    batch_norm: Literal["stored", "recomputed"] = "stored",
    chunk: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Surface:
    r"""The loss over $\theta_0+x\,d_0+y\,d_1$: same examples, same masks at every point.

    Args:
        objective: the loss on the training examples.
        origin: shape (dim,), over `objective.named`.
        directions: shape (2, dim); see `directions`. They need not be orthonormal.
        extent: half width in both directions, or (low, high) for both, or (x low, x high, y low, y high).
        points: along each side, or (along x, along y).
        x: coordinates along the first direction, instead of extent and points; `y` likewise.
        metric: `metric(output, target)`, evaluated at the same points; on exact surfaces only, as it may jump.
        validation_objective: the loss on other examples, of the same model.
        coarse: interpolate from as few points as the tolerance allows, and say how large the error is.
        tolerance: the largest |error| / (largest - smallest loss) that a coarse surface may have.
        batch_norm: as in `points.evaluate`; "recomputed" uses the training batches for the validation loss too.
        chunk: as in `points.evaluate`.
        progress: called with the share that is done.

    Returns:
        The surface. A coarse one that would have needed almost as many points as the exact one is not refined further, and `met` is
        False; one with few points, or with values that are not finite, is evaluated exactly.

    Raises:
        Usage: where sides do not make sense.

    Cost: nx * ny passes over all batches, and as many over the validation batches; coarse 313, 785 or more instead. Fewer operations
        where points can be factored or stacked.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: m(b).square().mean(), [torch.eye(2)])
        >>> surface(objective, torch.zeros(2), torch.eye(2), x=[0, 1, 2], y=[0, 4]).loss.tolist()
        [[0.0, 0.5, 2.0], [8.0, 8.5, 10.0]]

    Source: Goodfellow, Vinyals and Saxe 2015; Li, Xu, Taylor, Studer and Goldstein 2018.
    """
    across, up = _axes(extent, points, x, y)
    if directions.dim() != 2 or len(directions) != 2:
        raise Usage(f"a surface needs `directions` of shape (2, dim), got {tuple(directions.shape)}.")
    if not tolerance > 0:
        raise Usage(f"`tolerance` must be positive, got {tolerance}.")
    tell = progress or (lambda _: None)
    over = _Over(objective, validation_objective, origin, directions, metric, batch_norm, chunk)
    found = None
    if coarse:
        done, most = 0, WORTH * len(across) * len(up)

        def counted(at: np.ndarray) -> np.ndarray:
            nonlocal done
            done += len(at)
            values = losses(at)
            tell(min(0.95, done / most))
            return values

        with over.lots(across, up) as losses:
            found = interpolate(across, up, counted, tolerance)
        if found.values is not None:
            tell(1.0)
            return over.surface(across, up, found, tolerance)
    grid = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    return over.exact(across, up, grid, tolerance if coarse else None, "" if found is None else found.why, tell)


class _Over:
    """One plane with everything that is evaluated over it."""

    def __init__(
        self,
        objective: Objective,
        validation: Objective | None,
        origin: Tensor,
        directions: Tensor,
        metric: Metric | None,
        batch_norm: Literal["stored", "recomputed"],
        chunk: int | None,
    ) -> None:
        self.objective, self.validation, self.origin, self.directions = objective, validation, origin, directions
        self.metric, self.batch_norm, self.chunk = metric, batch_norm, chunk
        self.cost = Cost()
        self.last: Values | None = None

    def _values(self, objective: Objective, at: np.ndarray, metric: Metric | None, tell: Callable[[float], None]) -> Values:
        values = evaluate(
            objective,
            self.origin,
            self.directions,
            at,
            metric=metric,
            batch_norm=self.batch_norm,
            statistics=self.objective,
            chunk=self.chunk,
            progress=tell,
        )
        self.cost = self.cost + values.cost
        return values

    def both(self, at: np.ndarray, metric: Metric | None, tell: Callable[[float], None]) -> tuple[Values, Values | None]:
        """Training and validation values."""
        share = 1.0 if self.validation is None else 0.5
        self.last = self._values(self.objective, at, metric, lambda done: tell(share * done))
        if self.validation is None:
            return self.last, None
        return self.last, self._values(self.validation, at, metric, lambda done: tell(share + (1 - share) * done))

    @contextmanager
    def lots(self, x: np.ndarray, y: np.ndarray) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
        """Training and validation loss of points that come in lots: a function (n, 2) -> (n, 1 or 2)."""
        if self.validation is not None:
            yield lambda at: np.stack([v.loss for v in self.both(at, None, lambda _: None) if v is not None], 1)
            return
        corners = np.array([(a, b) for a in (x[0], 0.0, x[-1]) for b in (y[0], 0.0, y[-1])])
        with evaluator(self.objective, self.origin, self.directions, corners, chunk=self.chunk, batch_norm=self.batch_norm) as values:

            def losses(at: np.ndarray) -> np.ndarray:
                self.last = values(at)
                self.cost = self.cost + self.last.cost
                return self.last.loss[:, None]

            yield losses

    def surface(self, x: np.ndarray, y: np.ndarray, found: Coarse, tolerance: float) -> Surface:
        """From what was interpolated."""
        assert found.values is not None
        assert self.last is not None
        return Surface(
            x=x,
            y=y,
            loss=found.values[0],
            standard_error=None,
            metric=None,
            validation_loss=found.values[1] if self.validation is not None else None,
            validation_metric=None,
            origin=self.origin,
            directions=self.directions,
            exact=False,
            error=found.error,
            tolerance=tolerance,
            met=found.met,
            evaluated=found.evaluated,
            method=self.last.method,
            why=found.why or self.last.why,
            batch_norm=self.last.batch_norm,
            cost=self.cost,
        )

    def exact(
        self, x: np.ndarray, y: np.ndarray, grid: np.ndarray, tolerance: float | None, why: str, tell: Callable[[float], None]
    ) -> Surface:
        """Every point."""
        train, held = self.both(grid, self.metric, tell)
        shape = (len(y), len(x))
        return Surface(
            x=x,
            y=y,
            loss=train.loss.reshape(shape),
            standard_error=train.standard_error.reshape(shape),
            metric=None if train.metric is None else train.metric.reshape(shape),
            validation_loss=None if held is None else held.loss.reshape(shape),
            validation_metric=None if held is None or held.metric is None else held.metric.reshape(shape),
            origin=self.origin,
            directions=self.directions,
            tolerance=tolerance,
            evaluated=grid,
            method=train.method,
            why="; ".join(w for w in (why, train.why) if w),
            batch_norm=train.batch_norm,
            cost=self.cost,
        )


def _axes(extent: Extent, points: int | tuple[int, int], x: object, y: object) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates along both directions."""
    sides = (extent,) if isinstance(extent, (int, float)) else tuple(extent)
    if len(sides) == 1:
        sides = (-sides[0], sides[0], -sides[0], sides[0])
    elif len(sides) == 2:
        sides = (*sides, *sides)
    if len(sides) != 4 or not sides[0] < sides[1] or not sides[2] < sides[3] or not np.isfinite(sides).all():
        raise Usage(f"`extent` must be a half width, (low, high) or (x low, x high, y low, y high), got {extent!r}.")
    counts = (points, points) if isinstance(points, int) else points
    if min(counts) < 2:
        raise Usage(f"a surface needs at least 2 points in each direction, got {counts}.")
    made = []
    for given, low, high, count in ((x, *sides[:2], counts[0]), (y, *sides[2:], counts[1])):
        axis = np.linspace(low, high, count) if given is None else np.unique(np.asarray(given, dtype=np.float64))
        if axis.ndim != 1 or len(axis) < 2 or not np.isfinite(axis).all():
            raise Usage("`x` and `y` must be at least two different finite numbers each.")
        made.append(axis)
    return made[0], made[1]
