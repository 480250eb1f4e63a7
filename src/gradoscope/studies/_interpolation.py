"""What the study of interpolation computes: trainings, and what lies along, beside and between their paths."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gradoscope.landscape import sections
from gradoscope.landscape.lines import Line, line
from gradoscope.landscape.points import Subject, evaluate, subject
from gradoscope.landscape.questions import bumps
from gradoscope.landscape.record import Recorded, record
from gradoscope.landscape.scene import Scene
from gradoscope.landscape.trajectory import Path, Projection, path_of, principal, project, semicircle
from gradoscope.landscape.walks import straightness, walks
from gradoscope.problems import find
from gradoscope.study import Context, Result, Row
from gradoscope.training import Live, Training

__all__ = ["BETWEEN", "EXTRA", "Run", "measure", "obstacle", "plateau", "run_unit"]

BETWEEN = 26  # points on the line between two solutions
ASIDE = 8  # points of a path from which the way to the line is tested
WALKS = 20  # of which the distance from the semicircle is taken
EXTRA = 10_000  # added to the seed of a start that serves as a second solution only
MEMORY = 200 << 20  # bytes that the points of a path may take


@dataclass
class Run:
    """A training that was run: a live copy at its end, and its path."""

    seed: int
    live: Live
    recorded: Recorded

    @property
    def start(self) -> Tensor:
        """Shape (dim,)."""
        return self.recorded.points[0]

    @property
    def end(self) -> Tensor:
        """Shape (dim,)."""
        return self.recorded.points[-1]


def _train(training: Training, seed: int, points: int) -> Run:
    live = Live.of(training, seed=seed)
    return Run(seed, live, record(live, training.steps, most=points, memory=MEMORY))


def run_unit(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Train every seed on the same data, and measure each beside the next one as the second solution.

    The last seed's second solution is the first one's; one seed alone gets a start of its own for that.
    """
    began, busy = time.perf_counter(), 0.0
    training = find(values["target"])
    result = Result()
    views: list[dict[str, Any]] = []

    def trained(seed: int) -> Run:
        nonlocal busy
        started = time.perf_counter()
        run = _train(training, seed, values["points"])
        busy += time.perf_counter() - started
        return run

    first = current = trained(seeds[0])
    for i, seed in enumerate(seeds):
        other = first if i == len(seeds) - 1 and i > 0 else trained(seeds[i + 1] if i + 1 < len(seeds) else seed + EXTRA)
        measure(result, values, current, other)
        if i == 0 or values["views"]:
            views.append(_view(values, current))
        if i == 0:
            result.arrays |= _planes(values, current, other)
        current = other
        context.tick((i + 1) / len(seeds))
    views = [view for view in views if view]
    if views:
        result.arrays |= {f"view_{key}": torch.stack([torch.as_tensor(view[key]) for view in views]) for key in views[0]}
    result.timings = {"train_seconds": busy, "measure_seconds": time.perf_counter() - began - busy}
    return result


def _subject(run: Run, rows: int) -> Subject:
    return subject(run.live, rows=rows, seed=run.seed)


def measure(result: Result, values: Mapping[str, Any], run: Run, other: Run) -> None:
    """Add the row and the curves of one run: its line, its path beside the line, and the line to another solution."""
    objective = _subject(run, values["rows"]).train
    path = path_of(run.recorded.points)
    seen = project(path)
    along = line(objective, run.start, run.end, seed=run.seed)
    between = line(objective, run.end, other.end, alphas=np.linspace(0, 1, BETWEEN), seed=run.seed)
    moved = run.recorded.points - run.start
    losses = evaluate(objective, run.start, moved, np.eye(len(moved)), method="loop").loss
    row: Row = {"seed": run.seed, "steps": run.recorded.done, "dim": path.dim, "points": len(moved), "length": seen.length}
    row["plateau"] = plateau(run.recorded.steps, losses)
    row |= (
        _line_row(along) | _straight_row(path, seen, values["walks"], run.seed) | obstacle(objective, run.recorded.points, seen, run.seed)
    )
    row |= {"between": between.height, "between_chord": between.barrier, "apart": between.length / seen.length}
    result.rows.append(row)
    add = result.curves.append
    for kind, found in (("line", along), ("between", between)):
        for a, loss in zip(found.alphas, found.loss, strict=True):
            add({"seed": run.seed, "kind": kind, "alpha": float(a), "loss": float(loss)})
    for t in range(len(moved)):
        place = {"alpha": float(seen.alpha[t]), "beta": float(seen.beta[t]), "loss": float(losses[t])}
        add({"seed": run.seed, "kind": "path", "share": float(run.recorded.steps[t] / run.recorded.done), **place})
    for kind, lags in (("walk", 0), ("matched", row["lags"])):
        walk = project(next(iter(walks(path, 1, lags=lags, seed=run.seed))).path)
        for a, b in zip(walk.alpha, walk.beta, strict=True):
            add({"seed": run.seed, "kind": kind, "alpha": float(a), "beta": float(b)})


def _line_row(found: Line) -> Row:
    """The line from start to end in numbers; the quarters lie between two of its points, and are interpolated."""

    def at(a: float) -> float:
        return float(np.interp(a, found.alphas, found.loss))

    inside, fine = found.loss[found.main], found.loss[(found.alphas >= 0) & (found.alphas <= 0.05)]
    fall = float(inside[0] - inside.min())
    rise = found.rise
    return {
        **{f"J{a:g}": at(a) for a in (-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25)},
        "rise": float(rise.rise),
        "rise_relative": float(rise.relative),
        "rise_from": rise.between[0],
        "rise_to": rise.between[1],
        "rise_tested": rise.tested,
        "rise_low": rise.interval[0],
        "monotone": rise.monotone,
        "early": float(fine.max() - fine[0]) / fall if fall > 0 else 0.0,
        "convex": found.convex_share,
        "left_half_way": (at(0.5) - at(1.0)) / (at(0.0) - at(1.0)),
        "half_at": float(found.alphas[found.main][np.flatnonzero(inside <= inside[0] - fall / 2)[0]]),
        "lowest_at": float(found.alphas[int(np.nanargmin(found.loss))]),
    }


def plateau(steps: np.ndarray, losses: np.ndarray, share: float = 0.05) -> float:
    """The longest stretch in which the loss falls by less than a share of its fall, over the steps to 90% of the fall.

    Args:
        steps: ascending from 0, shape (n,); the loss is interpolated between them.
        losses: shape (n,).
        share: of the fall.

    Example:
        >>> round(plateau(np.array([0.0, 60.0, 100.0]), np.array([1.0, 1.0, 0.0])), 1)
        0.6
    """
    left = np.minimum.accumulate((losses - losses.min()) / (losses[0] - losses.min()))
    over = float(np.interp(-0.1, -left, steps))
    at = np.linspace(0, over, 400)
    value = np.interp(at, steps, left)
    ends = [np.flatnonzero(value > v - share)[-1] for v in value]
    return float(max(at[end] - at[start] for start, end in enumerate(ends))) / over


def _straight_row(path: Path, seen: Projection, count: int, seed: int) -> Row:
    """The path beside its line, against random walks with its steps, and with its steps' likeness too."""
    straight = straightness(path, count=count, seed=seed)
    drawn = [walk.path for walk in walks(path, min(count, WALKS), seed=seed)]
    away = [float(np.abs(c.beta**2 - semicircle(c.alpha) ** 2).max()) for c in map(project, drawn)]
    equal = Path(np.eye(len(path.gram)), path.dim)
    shares, walking = principal(path), np.mean([principal(w).share for w in drawn], axis=0)
    even = np.mean([principal(w.path).share for w in walks(equal, min(count, WALKS), seed=seed)], axis=0)
    return {
        "residual": float(seen.beta.max()),
        "detour": straight.detour,
        "plain_low": float(np.quantile(straight.plain, 0.025)),
        "plain_median": float(np.median(straight.plain)),
        "matched_low": float(np.quantile(straight.matched, 0.025)),
        "matched_median": float(np.median(straight.matched)),
        "lags": straight.lags,
        "verdict": straight.verdict,
        "from_semicircle": float(np.mean(away)),
        "pca1": float(shares.share[0]),
        "pca2": float(shares.share[:2].sum()),
        "walk_pca1": float(walking[0]),
        "walk_pca2": float(walking[:2].sum()),
        "equal_pca1": float(even[0]),
    }


def obstacle(objective: Any, points: Tensor, seen: Projection, seed: int) -> Row:
    r"""What stands between the line and the path: barriers on the straight way from the path's points to their feet on the line.

    Half of the examples choose the highest point of a way and the other half are asked, as `landscape.questions.bumps` does.

    Returns:
        "obstacle": the highest barrier in units of the loss at the start minus that at the end; "obstacle_at": the foot's position;
        "obstacle_significant": whether any barrier is above zero at 5% for all ways together.
    """
    aside = np.flatnonzero(seen.beta > 0.02)
    if not len(aside):
        return {"obstacle": 0.0, "obstacle_at": 0.0, "obstacle_significant": False}
    chosen = aside[np.unique(np.linspace(0, len(aside) - 1, ASIDE).round().astype(int))]
    direction = points[-1] - points[0]
    found = []
    for t in chosen:
        way = torch.stack([points[0] + float(seen.alpha[t]) * direction, points[t]])
        found.append(bumps(objective, way, [int(t), int(t)]))
    barrier = np.array([float(b.barrier[0]) for b in found])
    with np.errstate(invalid="ignore", divide="ignore"):
        sure = [float(b.tested[0] / b.se[0]) > stats.norm.isf(0.05 / len(found)) for b in found]
    ends = evaluate(objective, points[0], direction[None], [[0.0], [1.0]]).loss
    top = int(barrier.argmax())
    return {
        "obstacle": float(barrier[top] / (ends[0] - ends[1])),
        "obstacle_at": float(seen.alpha[chosen[top]]),
        "obstacle_significant": bool(any(sure)),
    }


def _scene(values: Mapping[str, Any], run: Run, other: Run | None) -> Scene:
    chosen = _subject(run, values["view_rows"])
    return Scene(
        live=run.live,
        recorded=run.recorded,
        again=None if other is None else other.recorded,
        subject=chosen,
        halves=(chosen.train, None),
        side=values["side"],
        coarse=False,
        batch_norm="stored",
        seed=run.seed,
    )


def _view(values: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The loss over projection and residual."""
    if not values["side"]:
        return {}
    view = sections.view_part(_scene(values, run, None))
    return {key: view[key] for key in ("alpha", "beta", "loss")}


def _planes(values: Mapping[str, Any], run: Run, other: Run) -> dict[str, Tensor]:
    """The plane through the start and two solutions, and that of the path's principal components, with walks."""
    if not values["side"]:
        return {}
    found: dict[str, Tensor] = {}
    scene = _scene(values, run, other)
    for kind in ("three", "pca"):
        plane = sections.plane_part(scene, kind)
        assert plane is not None
        keys = ["x", "y", "loss", "path"] + (["other"] if kind == "three" else [])
        found |= {f"{kind}_{key}": torch.as_tensor(np.asarray(plane[key])) for key in keys}
        found[f"{kind}_walks"] = torch.as_tensor(np.stack(plane["controls"]))
        found[f"{kind}_explained"] = torch.tensor(plane["explained"])
    return found
