"""Six ways to search for the smallest J, each counted in evaluations: grid, random, genetic, model-based, analytical, gradient."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.stats import norm

__all__ = [
    "BACKWARD",
    "METHODS",
    "Gradient",
    "Loss",
    "Spent",
    "Trace",
    "bayesian",
    "descent",
    "genetic",
    "grid",
    "grid_side",
    "quadratic_fit",
    "random",
    "starts",
]

Loss = Callable[[np.ndarray], np.ndarray]
"""Points (n, d) to losses (n,)."""
Gradient = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""A point (d,) to its loss and gradient."""
METHODS = ("grid", "random", "genetic", "model-based", "analytical", "gradient")
BACKWARD = 2  # evaluations that a backward pass costs: it has two products for each one of the forward pass
CHUNK = 2048


class Spent(Exception):
    """The budget is used up."""


@dataclass
class Trace:
    """The lowest loss so far after each evaluation; what a method may ask, and what it has cost.

    Args:
        loss: what is minimised.
        budget: evaluations.
    """

    loss: Loss
    budget: int
    used: int = 0
    best: float = math.inf
    point: np.ndarray | None = None
    steps: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The losses of some points, shape (n,), as long as there is budget for all of them.

        Raises:
            Spent: where there is not; nothing is evaluated then.
        """
        if self.used + len(points) > self.budget:
            raise Spent
        values = self.loss(points)
        lowest = np.minimum.accumulate(values)
        for i in np.flatnonzero(np.diff(np.concatenate([[self.best], np.minimum(lowest, self.best)])) < 0):
            self.best, self.point = float(values[i]), points[i].copy()
            self.steps.append((self.used + int(i) + 1, self.best))
        self.used += len(points)
        return values

    def slope(self, gradient: Gradient, point: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and the gradient of one point, for 1 + `BACKWARD` evaluations."""
        if self.used + 1 + BACKWARD > self.budget:
            raise Spent
        self.used += BACKWARD
        value, slope = gradient(point)
        self.used += 1
        if value < self.best:
            self.best, self.point = value, point.copy()
            self.steps.append((self.used, value))
        return value, slope

    def at(self, marks: np.ndarray) -> np.ndarray:
        """The lowest loss after so many evaluations, NaN before the first, shape of `marks`."""
        when, values = (np.array(column) for column in zip(*self.steps, strict=True)) if self.steps else (np.zeros(0), np.zeros(0))
        place = np.searchsorted(when, marks, side="right") - 1
        return np.where(place >= 0, values[np.maximum(place, 0)], math.nan) if len(values) else np.full(len(marks), math.nan)

    def reached(self, level: float) -> float:
        """Evaluations until the loss was at most `level`; infinite where it never was."""
        return next((float(used) for used, value in self.steps if value <= level), math.inf)


def grid_side(d: int, budget: int) -> int:
    """The most points along each side of a cube whose grid fits into the budget.

    Example:
        >>> grid_side(2, 1000), grid_side(5, 1000), grid_side(20, 1000), grid_side(3, 1000)
        (31, 3, 1, 10)
    """
    side = int(budget ** (1 / d)) + 1
    while side > 1 and side**d > budget:
        side -= 1
    return side


def grid(trace: Trace, d: int, bound: float, draw: np.random.Generator) -> None:
    """Every point of the finest grid that the budget allows, cell centres, in a random order."""
    side = grid_side(d, trace.budget)
    axis = bound * ((2 * np.arange(side) + 1) / side - 1)
    order = draw.permutation(side**d)
    for at in range(0, len(order), CHUNK):
        digits = order[at : at + CHUNK, None] // side ** np.arange(d) % side if side > 1 else np.zeros((1, d), dtype=int)
        trace(axis[digits])


def random(trace: Trace, d: int, bound: float, draw: np.random.Generator) -> None:
    """Points drawn uniformly from the cube."""
    while trace.used < trace.budget:
        trace(draw.uniform(-bound, bound, (min(CHUNK, trace.budget - trace.used), d)))


def genetic(trace: Trace, d: int, bound: float, draw: np.random.Generator, parents: int = 20) -> None:
    """A genetic algorithm on real numbers, 20 + 20: each coordinate from either of two parents, then Gaussian mutation.

    The mutation's standard deviation follows the one-fifth rule: it grows by e^0.2 with a generation of which more than a fifth
    replaces a parent, and falls by e^-0.05 with another.
    """
    population = draw.uniform(-bound, bound, (parents, d))
    values, size = trace(population), 0.3 * bound
    while True:
        pair = population[draw.integers(0, parents, (2, parents))]
        born = np.where(draw.random((parents, d)) < 0.5, pair[0], pair[1]) + size * draw.standard_normal((parents, d))
        born = np.clip(born, -bound, bound)
        found = trace(born)
        both = np.concatenate([found, values])
        best = np.argsort(both, kind="stable")[:parents]
        size *= math.exp(0.2 if (best < parents).mean() > 0.2 else -0.05)
        values, population = both[best], np.concatenate([born, population])[best]


def bayesian(trace: Trace, d: int, bound: float, draw: np.random.Generator, first: int = 10) -> None:
    r"""Model-based search: a Gaussian process with kernel $e^{-|a-b|^2/2\ell^2}$, and the point of largest expected improvement.

    `first` points at random; then the best of 500 random candidates and 100 around the best point so far. Every tenth time the
    length is chosen anew among eight, by the marginal likelihood; the height has its maximum likelihood value in closed form.
    """
    points = draw.uniform(-bound, bound, (first, d))
    values, length = trace(points), bound
    lengths = bound * math.sqrt(d) * np.geomspace(0.05, 4.0, 8)
    while trace.used < trace.budget:
        scaled = (values - values.mean()) / max(float(values.std()), 1e-300)
        if len(values) % 10 == 0:
            length = max(lengths, key=lambda one: _likelihood(points, scaled, one))
        spread = np.repeat([0.03, 0.1], 50)[:, None] * bound
        near = np.clip(points[values.argmin()] + spread * draw.standard_normal((100, d)), -bound, bound)
        candidates = np.concatenate([draw.uniform(-bound, bound, (500, d)), near])
        factor, weights, height = _process(points, scaled, length)
        cross = _kernel(candidates, points, length)
        mean = cross @ weights
        deviation = np.sqrt(np.maximum(height * (1 - np.square(solve_triangular(factor[0], cross.T, lower=True)).sum(0)), 1e-18))
        z = (scaled.min() - mean) / deviation
        chosen = candidates[int((deviation * (z * norm.cdf(z) + norm.pdf(z))).argmax())]
        points, values = np.vstack([points, chosen]), np.append(values, trace(chosen[None]))


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    square = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)
    return np.asarray(np.exp(-square / (2 * length**2)))


def _process(points: np.ndarray, values: np.ndarray, length: float) -> tuple[tuple[np.ndarray, bool], np.ndarray, float]:
    factor = cho_factor(_kernel(points, points, length) + 1e-6 * np.eye(len(points)), lower=True)
    weights = cho_solve(factor, values)
    return factor, weights, float(values @ weights) / len(values)


def _likelihood(points: np.ndarray, values: np.ndarray, length: float) -> float:
    factor, _, height = _process(points, values, length)
    return -len(values) / 2 * math.log(max(height, 1e-300)) - float(np.log(np.diag(factor[0])).sum())


def quadratic_fit(trace: Trace, d: int, bound: float, draw: np.random.Generator) -> None:
    r"""The analytical answer where J is a quadratic: $(d+1)(d+2)/2$ values determine it, and one linear system gives its minimum.

    The values are taken at 0, $\pm b e_i$ and $b(e_i+e_j)$ with b half the bound, so that gradient and Hessian are differences of them.
    """
    b, eye = bound / 2, np.eye(d)
    rows, columns = np.triu_indices(d, 1)
    centre = trace(np.zeros((1, d)))[0]
    plus, minus = trace(b * eye), trace(-b * eye)
    gradient = (plus - minus) / (2 * b)
    hessian = np.diag((plus + minus - 2 * centre) / b**2)
    if len(rows):
        mixed = trace(b * (eye[rows] + eye[columns]))
        hessian[rows, columns] = hessian[columns, rows] = (mixed - plus[rows] - plus[columns] + centre) / b**2
    trace(np.linalg.solve(hessian, -gradient)[None])


def starts(d: int, bound: float, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Starts at random, without end."""
    while True:
        yield draw.uniform(-bound, bound, d)


def descent(trace: Trace, gradient: Gradient, begin: Iterator[np.ndarray], least: float = 1e-6) -> list[float]:
    r"""Gradient descent with Armijo's line search, from a new start where it stands still, until the budget is spent.

    The step doubles after each one that is taken, and is halved until $J(w-\eta g)\le J(w)-\frac12\eta|g|^2\cdot0.2$. A gradient costs
    1 + `BACKWARD` evaluations, each trial of the line search one.

    Args:
        trace: what counts.
        gradient: loss and gradient of a point.
        begin: starts.
        least: it stands still where fifty steps have lowered J by less than this share of it.

    Returns:
        Where each descent ended, the last one cut off by the budget.
    """
    ends: list[float] = []
    value = math.inf
    try:
        for w in begin:
            value, g = trace.slope(gradient, w)
            eta, history = 0.1 / max(float(np.linalg.norm(g)), 1e-12), [value]
            while len(history) <= 50 or history[-51] - value > least * abs(history[-51]):
                square = float(g @ g)
                if square == 0 or value < 1e-14:
                    break
                while trace(w[None] - eta * g)[0] > value - 0.1 * eta * square and eta > 1e-15:
                    eta /= 2
                w = w - eta * g
                value, g = trace.slope(gradient, w)
                history.append(value)
                eta *= 2
            ends.append(value)
            if value < 1e-14:
                return ends
    except Spent:
        ends.append(value)
    return ends
