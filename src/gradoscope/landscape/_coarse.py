"""A surface from few points: a spline on a nested grid, refined until the error that is seen between its nodes is small enough."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RectBivariateSpline

__all__ = ["FEWEST", "Coarse", "coarse"]

FIRST = 12  # nodes along each side at first; then 23, 45, ...
FEWEST = 600  # points of a surface, below which nothing is gained
LATTICE = (FIRST - 1) << 12
LOOKS = (FIRST - 1) ** 2  # cells in whose middle the error is looked at: all of the first grid
SAFETY = 2.0  # on the networks of the tests and benchmarks the largest error was up to 1.5 times the largest that was looked at
WORTH = 0.7  # the share of the surface's points that may be spent at most

Evaluate = Callable[[np.ndarray], np.ndarray]  # coordinates (n, 2) -> values (n, q)


@dataclass(frozen=True)
class Coarse:
    """An interpolated surface.

    Attributes:
        values: q surfaces, shape (q, ny, nx); None where every point has to be evaluated.
        error: an estimate of the largest |error| / range over the q surfaces, including the safety factor.
        met: whether it is within the tolerance.
        evaluated: the coordinates that were evaluated, shape (n, 2).
        why: why not.
    """

    values: np.ndarray | None
    error: float
    met: bool
    evaluated: np.ndarray
    why: str = ""


class _Grid:
    """Values on Chebyshev-Lobatto nodes of both axes, which lie densest at the edges, where a spline is worst.

    With 11 * 2^l + 1 nodes every second node is one of the next coarser grid. Nodes are kept by their place in a lattice that has all of
    them, so that none is evaluated twice.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, evaluate: Evaluate) -> None:
        self._sides = ((float(x[0]), float(x[-1])), (float(y[0]), float(y[-1])))
        self._evaluate = evaluate
        self._known: dict[tuple[int, int], np.ndarray] = {}
        self._points: list[np.ndarray] = []
        self.counts = [FIRST, FIRST]
        self.values = self._fill()

    @property
    def evaluated(self) -> np.ndarray:
        """The coordinates of all points that were evaluated, shape (n, 2)."""
        return np.concatenate(self._points)

    def places(self, axis: int, times: int = 1) -> np.ndarray:
        """Where the nodes of the x axis (0) or the y axis (1) are in the lattice, for a grid that is so many times as fine."""
        count = times * (self.counts[axis] - 1)
        return np.arange(count + 1) * (LATTICE // count)

    def nodes(self, axis: int, places: np.ndarray | None = None) -> np.ndarray:
        """The coordinates of places in the lattice, by default of the grid's own nodes."""
        low, high = self._sides[axis]
        at = self.places(axis) if places is None else places
        inner = low + (high - low) * (1 - np.cos(math.pi * at / LATTICE)) / 2
        return np.where(at == 0, low, np.where(at == LATTICE, high, inner))

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The values at places (y, x), shape (q, n)."""
        wanted = list(zip(rows.tolist(), columns.tolist(), strict=True))
        new = [key for key in wanted if key not in self._known]
        if new:
            where = np.array(new)
            points = np.stack([self.nodes(0, where[:, 1]), self.nodes(1, where[:, 0])], 1)
            self._points.append(points)
            self._known.update(zip(new, self._evaluate(points), strict=True))
        return np.stack([self._known[key] for key in wanted], 1)

    def _fill(self) -> np.ndarray:
        columns, rows = np.meshgrid(self.places(0), self.places(1))
        return self.at(rows.ravel(), columns.ravel()).reshape(-1, *self.counts[::-1])

    def splines(self) -> list[RectBivariateSpline]:
        """Cubic in both directions, one per surface; they take y first."""
        return [RectBivariateSpline(self.nodes(1), self.nodes(0), v) for v in self.values]

    def finer(self, axes: tuple[bool, bool]) -> int:
        """How many nodes the grid would have with half the spacing along the chosen axes."""
        nx, ny = (2 * n - 1 if fine else n for n, fine in zip(self.counts, axes, strict=True))
        return nx * ny

    def refine(self, axes: tuple[bool, bool]) -> None:
        """Halve the spacing along the chosen axes."""
        self.counts = [2 * n - 1 if fine else n for n, fine in zip(self.counts, axes, strict=True)]
        self.values = self._fill()

    def residuals(self, drop_x: bool, drop_y: bool) -> np.ndarray:
        """|error| of the spline through every second node, at all nodes, shape (q, ny, nx): known without evaluating anything."""
        x, y = self.nodes(0), self.nodes(1)
        i, j = (slice(None, None, 2 if drop else 1) for drop in (drop_y, drop_x))
        return np.stack([np.abs(RectBivariateSpline(y[i], x[j], v[i, j])(y, x) - v) for v in self.values])

    def between(self, worst: np.ndarray, count: int) -> np.ndarray:
        """|error| in the middle of some cells, shape (q, count): the half where `worst` (ny, nx) is largest, and others spread evenly."""
        cells = np.maximum.reduce([worst[:-1, :-1], worst[1:, :-1], worst[:-1, 1:], worst[1:, 1:]])
        order = np.argsort(-cells, axis=None, kind="stable")
        count = min(count, len(order))
        rest = np.sort(order[count // 2 :])
        spread = rest[np.linspace(0, len(rest) - 1, count - count // 2).round().astype(int)]
        chosen = np.sort(np.r_[order[: count // 2], spread])
        i, j = np.unravel_index(chosen, cells.shape)
        rows, columns = self.places(1, 2)[2 * i + 1], self.places(0, 2)[2 * j + 1]
        x, y = self.nodes(0, columns), self.nodes(1, rows)
        return np.stack([np.abs(f(y, x, grid=False) - v) for f, v in zip(self.splines(), self.at(rows, columns), strict=True)])


def coarse(x: np.ndarray, y: np.ndarray, evaluate: Evaluate, tolerance: float) -> Coarse:
    """Interpolate q surfaces over the points of x and y from as few evaluations as the tolerance allows.

    The error is that of the spline at nodes of the next finer grid, in the cells where the next coarser grid was worst and in cells that
    are spread over the whole. `SAFETY` stands for the cells that are not looked at.

    Args:
        x: ascending, shape (nx,).
        y: ascending, shape (ny,).
        evaluate: coordinates (n, 2) -> values (n, q).
        tolerance: the largest |error| / range to accept.
    """
    total = len(x) * len(y)
    if total < FEWEST:
        return Coarse(None, 0.0, False, np.zeros((0, 2)), f"fewer than {FEWEST} points: interpolating would not save any")
    grid = _Grid(x, y, evaluate)
    while True:
        if not np.isfinite(grid.values).all():
            return Coarse(None, math.inf, False, grid.evaluated, "the loss is not finite everywhere, and no spline goes through that")
        span = np.ptp(grid.values, axis=(1, 2))
        span = np.where(span > 0, span, 1.0)[:, None]
        worst = (grid.residuals(True, True) / span[:, :, None]).max(0)
        looked = grid.between(worst, LOOKS) / span
        error = SAFETY * float(looked.max()) if np.isfinite(looked).all() else math.inf
        along = [float((grid.residuals(d, not d) / span[:, :, None]).max()) for d in (True, False)]
        # Half the distance is a sixteenth of a cubic spline's error: an axis that is better than the other will be then can wait.
        axes = (along[0] >= along[1] / 16, along[1] >= along[0] / 16)
        if error <= tolerance or grid.finer(axes) + LOOKS > WORTH * total:
            break
        grid.refine(axes)
    met, spent = error <= tolerance, len(grid.evaluated)
    why = "" if met else f"the error is still {error:.1e} with {spent} points, and more would take as long as all {total}"
    return Coarse(np.stack([f(y, x) for f in grid.splines()]), error, met, grid.evaluated, why)
