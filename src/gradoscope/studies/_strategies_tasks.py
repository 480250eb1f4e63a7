"""What the search strategies are tried on: quadratics, a cosine of examples, parities of examples, a small network on two moons."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from gradoscope.stacked import numpy_generator
from gradoscope.studies import _search as masks
from gradoscope.studies import _strategies as search
from gradoscope.study import Context, Result, Row
from gradoscope.theory.parity import parity_solution

__all__ = ["KEY", "PARTS", "Moons", "Quadratic", "SampledCosine", "relaxed_parity"]

KEY = 647  # of this study's random streams
MARKS = 40
LEVEL = 0.01  # of the mean loss over the cube: "reached" where nothing else is said
STEPS = 40  # of a descent on a relaxed mask
STUCK = 0.5  # a descent that ends above half the plateau has not found a well


@dataclass(frozen=True)
class Task:
    """A loss on the cube [-bound, bound]^d, and how it is answered without search (None where no formula is known)."""

    d: int
    bound: float
    loss: search.Loss
    gradient: search.Gradient
    analytical: Callable[[search.Trace, np.random.Generator], None] | None


class Quadratic:
    r"""$\frac12(w-c)^\top H(w-c)$ over its mean on the cube $[-1,1]^d$: eigenvalues from 1 to `condition`, H turned, |c_i| within 1/2.

    Args:
        d: dimension.
        condition: the largest eigenvalue.
        draw: what turns and shifts it.
    """

    def __init__(self, d: int, condition: float, draw: np.random.Generator) -> None:
        q, r = np.linalg.qr(draw.standard_normal((d, d)))
        self.eigenvalues = np.geomspace(1.0, condition, d)
        turn = q * np.sign(np.diag(r))
        self.hessian = turn * self.eigenvalues @ turn.T
        self.centre = draw.uniform(-0.5, 0.5, d)
        # E over the cube of w w' is I/3
        self.mean = float(np.trace(self.hessian) / 3 + self.centre @ self.hessian @ self.centre) / 2

    def loss(self, points: np.ndarray) -> np.ndarray:
        """Shape (n, d) to (n,)."""
        away = points - self.centre
        return np.asarray(((away @ self.hessian) * away).sum(1) / (2 * self.mean))

    def gradient(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient of one point."""
        slope = self.hessian @ (point - self.centre)
        return float(slope @ (point - self.centre)) / (2 * self.mean), slope / self.mean

    def chance(self, level: float | np.ndarray) -> np.ndarray:
        r"""The share of the cube with a loss of at most `level`: the volume of an ellipsoid, $V_d(2J)^{d/2}/\sqrt{\det H}\,2^{-d}$.

        Exact as long as the ellipsoid lies within the cube; above that it is too large, and at most 1 is returned.
        """
        d = len(self.eigenvalues)
        log = d / 2 * np.log(math.pi) - gammaln(d / 2 + 1) - d * math.log(2) - np.log(self.eigenvalues).sum() / 2
        return np.asarray(np.minimum(np.exp(log + d / 2 * np.log(2 * self.mean * np.asarray(level))), 1.0))

    def task(self) -> Task:
        """As the strategies see it."""
        d = len(self.eigenvalues)
        return Task(d, 1.0, self.loss, self.gradient, lambda trace, draw: search.quadratic_fit(trace, d, 1.0, draw))


class SampledCosine:
    r"""$\frac1m\sum_i(\cos w\cdot x_i-\cos w^*\cdot x_i)^2$ on m examples $x_i\sim N(0,I)$: wells at $\pm w^*$ on the plateau at 1.

    Args:
        d: dimension.
        r: |w*|.
        rows: m.
        draw: of examples and target.
    """

    def __init__(self, d: int, r: float, rows: int, draw: np.random.Generator) -> None:
        self.x = draw.standard_normal((rows, d))
        direction = draw.standard_normal(d)
        self.target = r * direction / np.linalg.norm(direction)
        self.y = np.cos(self.x @ self.target)
        self.bound = 1.25 * r

    def loss(self, points: np.ndarray) -> np.ndarray:
        """Shape (n, d) to (n,)."""
        out = np.empty(len(points))
        for at in range(0, len(points), 512):
            out[at : at + 512] = np.square(np.cos(points[at : at + 512] @ self.x.T) - self.y).mean(1)
        return out

    def gradient(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient of one point."""
        inner = self.x @ point
        error = np.cos(inner) - self.y
        return float(np.square(error).mean()), -2 * (error * np.sin(inner)) @ self.x / len(self.x)

    def task(self) -> Task:
        """As the strategies see it; no formula is known."""
        return Task(self.x.shape[1], self.bound, self.loss, self.gradient, None)


class Moons:
    """A tanh network 2-h-1 on two moons of 100 points each, squared error to -1 and 1; its 4h + 1 numbers within [-4, 4].

    Args:
        hidden: h.
        draw: of the points, a radius of 1 with noise of 0.1.
        rows: points.
    """

    def __init__(self, hidden: int, draw: np.random.Generator, rows: int = 200) -> None:
        angle = math.pi * draw.random(rows)
        side = np.arange(rows) % 2
        x = np.where(side == 0, np.cos(angle), 1 - np.cos(angle))
        y = np.where(side == 0, np.sin(angle), 0.5 - np.sin(angle))
        self.x = np.stack([x - 0.5, y - 0.25], 1) + 0.1 * draw.standard_normal((rows, 2))
        self.y = 2.0 * side - 1
        self.hidden, self.d = hidden, 4 * hidden + 1

    def _forward(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = self.hidden
        first = points[:, : 2 * h].reshape(-1, 2, h)
        hidden = np.tanh(self.x @ first + points[:, None, 2 * h : 3 * h])
        out = (hidden @ points[:, 3 * h : 4 * h, None])[..., 0] + points[:, -1:]
        return hidden, out

    def loss(self, points: np.ndarray) -> np.ndarray:
        """Shape (n, d) to (n,)."""
        chunk = max(1, 2048 // self.hidden)
        parts = [np.square(self._forward(points[at : at + chunk])[1] - self.y).mean(1) for at in range(0, len(points), chunk)]
        return np.concatenate(parts)

    def gradient(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient of one point."""
        hidden, out = self._forward(point[None])
        error = out[0] - self.y
        slope = 2 * error / len(error)
        back = (slope[:, None] * point[3 * self.hidden : 4 * self.hidden]) * (1 - hidden[0] ** 2)
        parts = [(self.x.T @ back).ravel(), back.sum(0), hidden[0].T @ slope, [slope.sum()]]
        return float(np.square(error).mean()), np.concatenate(parts)

    def answer(self, trace: search.Trace, draw: np.random.Generator) -> None:
        """First layers drawn at random, and for each the last layer by least squares: the part of the problem that has a formula."""
        while True:
            point = draw.uniform(-4.0, 4.0, self.d)
            hidden, _ = self._forward(point[None])
            columns = np.column_stack([hidden[0], np.ones(len(self.y))])
            point[3 * self.hidden :] = np.linalg.lstsq(columns, self.y, rcond=None)[0]
            trace(point[None])

    def task(self) -> Task:
        """As the strategies see it."""
        return Task(self.d, 4.0, self.loss, self.gradient, self.answer)


def _make(values: Mapping[str, Any], seed: int) -> tuple[Task, Any]:
    draw = numpy_generator(seed, KEY, 1)
    kind = values["part"]
    problem: Any
    if kind == "quadratic":
        problem = Quadratic(values["d"], values["condition"], draw)
    elif kind == "cosine":
        problem = SampledCosine(values["d"], values["r"], values["rows"], draw)
    else:
        problem = Moons(values["hidden"], draw)
    return problem.task(), problem


def continuous(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """All strategies on one problem of real numbers, the same problem for each of them."""
    result, budget = Result(), values["budget"]
    for at, seed in enumerate(seeds):
        task, problem = _make(values, seed)
        for k, method in enumerate(search.METHODS):
            if method == "analytical" and task.analytical is None:
                continue
            trace = search.Trace(task.loss, values["model_budget"] if method == "model-based" else budget)
            ends = _search(method, task, trace, numpy_generator(seed, KEY, 2, k))
            row: Row = {"seed": seed, "method": method, "best": trace.best, "used": trace.used, "reached": trace.reached(LEVEL)}
            row["at_model"] = float(trace.at(np.array([values["model_budget"]]))[0])
            if ends:
                done = ends[:-1] or ends  # the last one is cut off by the budget
                row |= {"starts": len(done), "stuck": float(np.mean([end > STUCK for end in done]))}
            if isinstance(problem, Quadratic):
                row |= {"luck": float(problem.chance(trace.best)) * trace.used, "blind": float(problem.chance(LEVEL))}
            result.rows.append(row)
            marks = np.unique(np.geomspace(1, trace.budget, MARKS).round().astype(int))
            found = trace.at(marks)
            result.curves += [
                {"seed": seed, "method": method, "evaluations": int(m), "best": float(v)}
                for m, v in zip(marks, found, strict=True)
                if v == v
            ]
        context.tick((at + 1) / len(seeds))
    return result


def _search(method: str, task: Task, trace: search.Trace, draw: np.random.Generator) -> list[float]:
    """Run one strategy until it is done or its budget is; where each descent ended, empty for the others."""
    if method == "gradient":
        return search.descent(trace, task.gradient, search.starts(task.d, task.bound, draw))
    blind: dict[str, Callable[[search.Trace, int, float, np.random.Generator], None]] = {
        "grid": search.grid,
        "random": search.random,
        "genetic": search.genetic,
        "model-based": search.bayesian,
    }
    try:
        if method == "analytical" and task.analytical is not None:
            task.analytical(trace, draw)
        else:
            blind[method](trace, task.d, task.bound, draw)
    except search.Spent:
        pass
    return []


TRIED: dict[str, Callable[[masks.Score, int, int, np.random.Generator], int]] = {
    "grid": masks.exhaustive,
    "random": masks.random_search,
    "genetic": masks.genetic,
}


def relaxed_parity(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    r"""The squared loss of $h_p(x)=\prod_j(1-p_j+p_jx_j)$ on examples, and its gradient: a parity where p is a mask, smooth in between.

    Args:
        x: -1 or +1, shape (m, d).
        y: -1 or +1, shape (m,).

    Example:
        >>> x = np.array([[1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
        >>> loss, slope = relaxed_parity(x, x[:, 0])(np.array([0.9, 0.0]))
        >>> round(loss, 3), slope.round(3).tolist()
        (0.02, [-0.4, 0.16])
    """

    def both(p: np.ndarray) -> tuple[float, np.ndarray]:
        factors = 1 - p + p * x
        ones = np.ones((len(x), 1))
        left = np.concatenate([ones, np.cumprod(factors, 1)[:, :-1]], 1)
        right = np.concatenate([np.cumprod(factors[:, ::-1], 1)[:, -2::-1], ones], 1) if x.shape[1] > 1 else ones
        error = left[:, -1] * factors[:, -1] - y
        return float(np.square(error).mean()), 2 * (error[:, None] * (x - 1) * left * right).mean(0)

    return both


def parity(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """A parity of d bits from examples: masks tried in turn, at random, by crossing; elimination; descent on the relaxed mask."""
    d, rows, budget, result = values["d"], values["rows"], 4 * 2 ** values["d"], Result()
    for at, seed in enumerate(seeds):
        draw = numpy_generator(seed, KEY, 3, d)
        bits = draw.integers(0, 2, (rows, d))
        subset = (draw.permutation(d) < d // 2).astype(int)
        labels = bits @ subset % 2

        def score(tried: np.ndarray, bits: np.ndarray = bits, labels: np.ndarray = labels) -> np.ndarray:
            return np.asarray((bits @ tried.T % 2 == labels[:, None]).mean(0))

        found: dict[str, float] = {}
        for k, (name, tried_by) in enumerate(TRIED.items()):
            used = tried_by(score, d, budget, numpy_generator(seed, KEY, 4, d, k))
            found[name] = float(used) if used > 0 else math.inf
        solution = parity_solution(bits, labels)
        found["analytical"] = 1.0 if solution is not None and bool((solution.mask == subset).all()) else math.inf
        found["gradient"] = _descend_mask(bits, labels, score, budget, numpy_generator(seed, KEY, 5, d))
        for name, count in found.items():
            row: Row = {"seed": seed, "method": name, "reached": count, "of_expected": count / ((2**d + 1) / 2)}
            result.rows.append(row)
        context.tick((at + 1) / len(seeds))
    return result


def _descend_mask(bits: np.ndarray, labels: np.ndarray, score: masks.Score, budget: int, draw: np.random.Generator) -> float:
    """Evaluations of projected descent on the relaxed mask, from new starts, until the rounded mask is right; infinite where none was."""
    d, used = bits.shape[1], 0
    both, price = relaxed_parity(1.0 - 2 * bits, 1.0 - 2 * labels), 2 + search.BACKWARD  # of the gradient, and of the rounded mask's score
    while used + price <= budget:
        p = np.asarray(draw.uniform(0.3, 0.7, d))
        for _ in range(min(STEPS, (budget - used) // price)):
            used += price
            _, slope = both(p)
            size = float(np.abs(slope).max())
            p = np.clip(p - 0.05 * slope / max(size, 1e-300), 0.0, 1.0)  # the largest coordinate goes 0.05: no gradient is too small
            if score((p > 0.5).astype(int)[None])[0] >= 1:
                return float(used)
            if ((p == 0) | (p == 1)).all():
                break
    return math.inf


PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "quadratic": continuous,
    "cosine": continuous,
    "moons": continuous,
    "parity": parity,
}
