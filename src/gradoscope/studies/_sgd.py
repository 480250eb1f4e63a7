"""Streams of SGD on least squares, on a line and from afar: many runs of many schedules as one array, on the same draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradoscope.stacked import numpy_generator
from gradoscope.study import Context, Result, Row
from gradoscope.theory import sgd

__all__ = ["BALL", "KEY", "SCHEDULES", "SLOPE_FROM", "Schedule", "afar", "ball", "curvature", "rates", "spectrum", "stall", "transient"]

KEY = 471
CHUNK = 500  # steps drawn at once
SLOPE_FROM = 3000  # where slopes are taken: the transients of most schedules are over
LOOKS = 60
BALL = {"rate": 0.05, "low": 0.2, "high": 1.0}


@dataclass(frozen=True)
class Schedule:
    """A schedule max(C (t + delay)^-alpha, eta_min) under a name; alpha = 0 is a constant."""

    name: str
    c: float
    alpha: float
    least: float = 0.0
    delay: int = 0

    def rates(self, steps: int) -> np.ndarray:
        """The rates of steps 1 to `steps`, shape (steps,)."""
        found: np.ndarray = np.maximum(self.c * (np.arange(1, steps + 1.0) + self.delay) ** -self.alpha, self.least)
        return found

    @property
    def exponent(self) -> float:
        """The exponent of t in the excess that theory gives where mu = 1."""
        return 0.0 if self.least > 0 else sgd.decay_exponent(self.alpha, self.c, 1.0)


SCHEDULES = (
    Schedule("2/t", 2.0, 1.0),
    Schedule("2/(t + 20)", 2.0, 1.0, delay=20),
    Schedule("0.3/t", 0.3, 1.0),
    Schedule("t^-0.6", 0.5, 0.6),
    Schedule("t^-0.5", 0.5, 0.5),
    Schedule("constant", 0.05, 0.0),
    Schedule("levels out", 2.0, 1.0, 0.01),
)


def spectrum(low: float, high: float, d: int = 5) -> np.ndarray:
    """The eigenvalues of the inputs' covariance."""
    return np.linspace(low, high, d)


def looks(steps: int, first: int = 10) -> np.ndarray:
    """Steps to look at, evenly on a log axis, the last one among them."""
    return np.unique(np.geomspace(first, steps, LOOKS).round().astype(int))


class Stream:
    """Draws (x, noise) of many runs of many seeds; what a seed gets does not depend on the others."""

    def __init__(self, seeds: Sequence[int], runs: int, eigenvalues: np.ndarray, *keys: int) -> None:
        self.randoms = [numpy_generator(seed, KEY, *keys) for seed in seeds]
        self.shape = (len(eigenvalues) + 1, runs)
        self.scale = np.append(np.sqrt(eigenvalues), 1.0)[:, None]

    def chunk(self, steps: int) -> np.ndarray:
        """Inputs and, in the last row, the targets' noise: shape (steps, d + 1, seeds * runs)."""
        parts = [random.standard_normal((steps, *self.shape)) * self.scale for random in self.randoms]
        return np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]


def descend(stream: Stream, start: np.ndarray, rates: np.ndarray, look: Any, context: Context) -> None:
    """SGD on least squares, one example at a time; `look(t, displacement)` after each step t.

    Args:
        stream: the draws, the same for every schedule.
        start: displacement at the start, shape (d, schedules, runs); it is changed in place.
        rates: shape (steps, schedules).
        look: sees the displacement, shape (d, schedules, runs).
        context: to be told of the progress.
    """
    steps, d = len(rates), len(start)
    for begin in range(0, steps, CHUNK):
        draws = stream.chunk(min(CHUNK, steps - begin))
        for t, draw in enumerate(draws, begin):
            x = draw[:d, None]
            residual = (x * start).sum(0)
            residual -= draw[d]
            residual *= rates[t][:, None]
            start -= x * residual
            look(t + 1, start)
        context.tick(begin / steps)


def rates(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Every schedule on the same stream: excess of the iterate and of the average, beside what theory says."""
    steps, runs = values["steps"], values["runs"]
    eigenvalues = spectrum(1.0, 2.0)
    table = np.stack([s.rates(steps) for s in SCHEDULES], 1)
    start = np.ones((5, len(SCHEDULES), len(seeds) * runs))
    total = np.zeros_like(start)
    marks = looks(steps)
    wanted, seen = set(marks.tolist()), []

    def look(t: int, displacement: np.ndarray) -> None:
        nonlocal total
        total += displacement
        if t in wanted:
            both = np.stack([displacement, total / t])
            excess = 0.5 * (eigenvalues[:, None, None] * both**2).sum(1)
            seen.append(excess.reshape(2, len(SCHEDULES), len(seeds), runs).mean(-1))

    with np.errstate(over="ignore", invalid="ignore"):
        descend(Stream(seeds, runs, eigenvalues, 1), start, table, look, context)
    path = np.stack(seen, -1)  # (iterate or average, schedule, seed, look)
    exact = sgd.excess_path(np.ones((len(SCHEDULES), 5)), table, eigenvalues)[marks].T
    rows: list[Row] = []
    curves: list[Row] = []
    late = marks >= min(SLOPE_FROM, steps // 10)
    for s, seed in enumerate(seeds):
        for k, schedule in enumerate(SCHEDULES):
            iterate, average = path[:, k, s]
            row = {"seed": seed, "schedule": schedule.name, "theory": schedule.exponent}
            row |= {"slope": float(sgd.slope(marks[late], iterate[late])), "exact_slope": float(sgd.slope(marks[late], exact[k][late]))}
            row |= {"excess": iterate[-1], "exact": exact[k][-1], "average": average[-1] / sgd.averaged_optimum(5, steps)}
            row |= {
                "average_slope": float(sgd.slope(marks[late], average[late])),
                "off": float((iterate[late] / exact[k][late]).mean() - 1),
            }
            rows.append(row)
            columns = zip(marks.tolist(), iterate.tolist(), average.tolist(), exact[k].tolist(), strict=True)
            curves += [
                {"seed": seed, "schedule": schedule.name, "step": t, "iterate": i, "average": a, "exact": e} for t, i, a, e in columns
            ]
    return Result(rows, curves)


def transient(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """C t^-0.75 with C = 0.25 at mu = 0.2, by theory alone: the slope long before eta_t mu t is large."""
    eigenvalues, schedule = spectrum(0.2, 1.0), Schedule("t^-0.75", 0.25, 0.75)
    marks = looks(values["steps"])
    path = sgd.excess_path(np.ones(5), schedule.rates(values["steps"]), eigenvalues)[marks]
    late = marks >= SLOPE_FROM
    progress = 0.25 * 0.2 * values["steps"] ** 0.25
    return Result([{"slope": float(sgd.slope(marks[late], path[late])), "progress": progress}])


def ball(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """A constant step until it is stationary, then the mean excess over runs and steps."""
    eigenvalues, runs, steps = spectrum(BALL["low"], BALL["high"]), values["runs"], values["steps"]
    burn = steps // 4
    total = np.zeros((1, len(seeds) * runs))
    count = 0

    def look(t: int, displacement: np.ndarray) -> None:
        nonlocal total, count
        if t > burn and t % 5 == 0:
            total += 0.5 * (eigenvalues[:, None, None] * displacement**2).sum(0)
            count += 1

    start = np.zeros((5, 1, len(seeds) * runs))
    descend(Stream(seeds, runs, eigenvalues, 2), start, np.full((steps, 1), BALL["rate"]), look, context)
    found = (total / count).reshape(len(seeds), runs).mean(1)
    exact = sgd.stationary_excess(eigenvalues, BALL["rate"])
    first = sgd.stationary_excess_additive(eigenvalues, BALL["rate"])
    rows = [
        {"seed": seed, "excess": e, "exact": exact, "first_order": first, "to_exact": e / exact, "to_first_order": e / first}
        for seed, e in zip(seeds, found.tolist(), strict=True)
    ]
    return Result(rows)


def _line(slope: Any, x: np.ndarray, table: np.ndarray, seeds: Sequence[int], runs: int, key: int, look: Any) -> None:
    """x - eta (slope(x) + N(0, 1)) for every schedule on the same noise; x of shape (schedules, seeds * runs), in place."""
    randoms = [numpy_generator(seed, KEY, key) for seed in seeds]
    for begin in range(0, len(table), CHUNK):
        count = min(CHUNK, len(table) - begin)
        noise = np.concatenate([r.standard_normal((count, runs)) for r in randoms], 1)
        for t in range(count):
            x -= table[begin + t][:, None] * (slope(x) + noise[t])
            look(begin + t + 1, x)


AFAR = (
    ("1/sqrt t", 10.0, 0.5),
    ("1/t from afar", 10.0, 1.0),
    ("1/t from near", 1.0, 1.0),
)  # name, distance at the start, alpha; C = 1


def afar(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """|x|/2, convex and neither smooth nor strongly convex, with noisy subgradients sign(x)/2 + N(0, 1)."""
    steps, runs = values["steps"], values["runs"]
    table = np.arange(1, steps + 1.0)[:, None] ** -np.array([alpha for _, _, alpha in AFAR])
    x = np.repeat(np.array([[start] for _, start, _ in AFAR]), len(seeds) * runs, axis=1)
    weighted, before, marks = np.zeros_like(x), x.copy(), looks(steps)
    wanted, seen = set(marks.tolist()), []

    def look(t: int, x: np.ndarray) -> None:
        nonlocal weighted
        weighted += table[t - 1][:, None] * before  # the bound is about the points where the subgradients were taken
        before[:] = x
        if t in wanted:
            average = np.abs(weighted / table[:t].sum(0)[:, None]) / 2
            each = np.stack([np.abs(x) / 2, average]).reshape(2, len(AFAR), len(seeds), runs)
            # the bound is one of an expectation: what 200 runs show may lie three standard errors above
            error = each[1:].std(-1) / math.sqrt(runs)
            seen.append(np.concatenate([each.mean(-1), each[1:].mean(-1) - 3 * error]))
            context.tick(t / steps)

    _line(lambda x: np.sign(x) / 2, x, table, seeds, runs, 3, look)
    path, late = np.stack(seen, -1), marks >= min(SLOPE_FROM, steps // 10)
    rows: list[Row] = []
    curves: list[Row] = []
    for k, (name, start, _) in enumerate(AFAR):
        # E x_T >= x_0 - sum eta / 2, as no subgradient's mean exceeds 1/2
        least = max(0.0, (start - table[:, k].sum() / 2) / 2)
        bound = sgd.subgradient_bound(start, table[:, k], 1.25)[marks - 1]
        for s, seed in enumerate(seeds):
            gap, _, average = path[:, k, s]
            row = {"seed": seed, "schedule": name, "gap": gap[-1], "slope": float(sgd.slope(marks[late], gap[late])), "least": least}
            rows.append(row | {"to_bound": float((average / bound).max())})
            curves += [{"seed": seed, "schedule": name, "step": int(t), "gap": g} for t, g in zip(marks, gap.tolist(), strict=True)]
    return Result(rows, curves)


ALPHAS = (1.0, 1.5, 2.0)


def stall(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """x^2/2 from x = 10 with rates t^-alpha / 2 and noisy gradients: with alpha > 1 the rates end before the way does."""
    steps, runs = values["steps"], values["runs"]
    table = 0.5 * np.arange(1, steps + 1.0)[:, None] ** -np.array(ALPHAS)
    x = np.full((len(ALPHAS), len(seeds) * runs), 10.0)
    marks = looks(steps, 1)
    wanted, seen = set(marks.tolist()), []

    def look(t: int, x: np.ndarray) -> None:
        if t in wanted:
            seen.append((x**2 / 2).reshape(len(ALPHAS), len(seeds), runs).mean(-1))

    _line(lambda x: x, x, table, seeds, runs, 4, look)
    path = np.stack(seen, -1)
    rows: list[Row] = []
    curves: list[Row] = []
    for k, alpha in enumerate(ALPHAS):
        left = sgd.travel(table[:, k], 1.0)
        for s, seed in enumerate(seeds):
            excess = path[k, s]
            rows.append({"seed": seed, "alpha": alpha, "excess": excess[-1], "noiseless": 50 * left**2})
            curves += [{"seed": seed, "alpha": alpha, "step": int(t), "excess": e} for t, e in zip(marks, excess.tolist(), strict=True)]
    return Result(rows, curves)


NOISES = (0.0, 0.1, 5.0)
DISTINCT = (2, 10, 100)


def curvature(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """How much g'Hg/g'g changes along 200 steps on quadratics with the same condition number and few or many distinct eigenvalues."""
    draws, steps, kappa = values["draws"], values["steps"], 100.0
    rows: list[Row] = []
    curves: list[Row] = []
    for k in DISTINCT:
        eigenvalues = np.repeat(np.geomspace(1, kappa, k), 100 // k)
        for noise in NOISES:
            for seed in seeds:
                random = numpy_generator(seed, KEY, 5)
                x = random.standard_normal((draws, 100))
                ratios = np.empty((steps, draws))
                for t in range(steps):
                    g = eigenvalues * x + (noise * random.standard_normal((draws, 100)) if noise else 0.0)
                    squares = g**2
                    ratios[t] = squares @ eigenvalues / squares.sum(1)
                    x -= 0.9 / kappa * g
                cv = float((ratios.std(0) / ratios.mean(0)).mean())
                rows.append({"seed": seed, "distinct": k, "noise": noise, "cv": cv})
                if seed == seeds[0]:
                    curves += [{"seed": seed, "distinct": k, "noise": noise, "step": t, "ratio": ratios[t, 0]} for t in range(steps)]
    return Result(rows, curves)


def batch_sizes(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The fewest steps to one percent of the first excess at every batch, exactly, on a problem that takes even the full gradient 50."""
    d, kappa = values["d"], values["kappa"]
    eigenvalues = np.geomspace(1, 1 / kappa, d)
    start = 1 / eigenvalues  # every direction holds the same share of the loss
    batches = 2.0 ** np.arange(0, values["largest"] + 1)
    target = 0.01 * 0.5 * d
    steps, best = sgd.steps_to_target(start, np.geomspace(1e-2, 1.95, 80), batches, eigenvalues, target)
    least, critical, off = sgd.critical_batch(batches, steps)
    # the noise scale at the start, and where the full gradient at its best rate has reached the target
    end = np.sqrt(start) * (1 - best[-1] * eigenvalues) ** steps[-1]
    scales = [sgd.noise_scale(at, eigenvalues) for at in (np.sqrt(start), end)]
    row = {"least": least, "critical": critical, "off": off, "scale_start": scales[0], "scale_end": scales[1], "smallest": steps[-1]}
    row |= {"examples_4": 4 * steps[2] / steps[0], "examples_largest": batches[-1] * steps[-1] / steps[0]}
    row |= {"halving": steps[-2] / steps[-1]}
    curves = [
        {"batch": b, "steps": s, "rate": r, "fit": least * (1 + critical / b)}
        for b, s, r in zip(batches.tolist(), steps.tolist(), best.tolist(), strict=True)
    ]
    return Result([{k: (float(v) if math.isfinite(v) else None) for k, v in row.items()}], curves)
