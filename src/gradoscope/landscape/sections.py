"""The parts of a landscape: lines, planes, the view of the residual, evidence, questions; each computed from one recorded run."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope import thresholds as T
from gradoscope.landscape import directions, lines, planes, questions, trajectory
from gradoscope.landscape import evidence as along
from gradoscope.landscape.answers import answers
from gradoscope.landscape.points import evaluate
from gradoscope.landscape.record import Stretch
from gradoscope.landscape.scene import WALKS, Scene
from gradoscope.measure.curvature import density
from gradoscope.objective import Objective
from gradoscope.stacked import generator
from gradoscope.training import Live

__all__ = [
    "PLANES",
    "evidence_part",
    "line_part",
    "plane_part",
    "question_part",
    "run_part",
    "solutions_part",
    "view_part",
]

PLANES = ("pca", "random", "hessian", "three")
NORMS = 25  # points at which the snapshot gradient is taken
SEGMENTS = 32
PLACES = 3  # points at which the spectrum is taken
MARGIN = 0.2

Tell = Callable[[float], None]


def run_part(scene: Scene) -> dict[str, Any]:
    """The loss over the run, and the path beside the line from start to end with its controls."""
    kept, straight = scene.recorded, scene.straight
    seen = trajectory.project(scene.path)
    controls = [trajectory.project(w.path) for w in scene.walks]
    every = max(1, len(kept.batch_loss) // 400)
    return {
        "steps": kept.steps,
        "loss": scene.losses,
        "batch_steps": np.arange(0, len(kept.batch_loss), every),
        "batch_loss": kept.batch_loss[::every],
        "alpha": seen.alpha,
        "beta": seen.beta,
        "distance": seen.length,
        "length": float(scene.path.norms.sum()),
        "walks": [{"alpha": c.alpha, "beta": c.beta} for c in controls],
        "straightness": {
            "residual": straight.residual,
            "detour": straight.detour,
            "plain": np.quantile(straight.plain, (0.025, 0.5, 0.975)),
            "matched": np.quantile(straight.matched, (0.025, 0.5, 0.975)),
            "lags": straight.lags,
            "walks": len(straight.plain),
            "p_straighter": straight.p_straighter,
            "p_detour": straight.p_detour,
            "verdict": straight.verdict,
        },
    }


def line_part(scene: Scene, tell: Tell | None = None) -> dict[str, Any]:
    """The straight line from the start of the run to its end."""
    return _line(scene, scene.start, scene.end, tell)


def solutions_part(scene: Scene, tell: Tell | None = None) -> dict[str, Any] | None:
    """The straight line from the end of the run to the end of the run from another start."""
    if scene.again is None:
        return None
    return _line(scene, scene.end, scene.to_live(scene.again.points[-1]), tell)


def _line(scene: Scene, start: Tensor, end: Tensor, tell: Tell | None) -> dict[str, Any]:
    found = lines.line(
        scene.subject.train,
        start,
        end,
        metric=scene.subject.metric,
        validation_objective=scene.subject.validation,
        batch_norm=scene.batch_norm,
        seed=scene.seed,
        progress=tell,
    )
    keys = ("loss", "standard_error", "metric", "validation_loss", "validation_standard_error", "validation_metric")
    return {
        "alpha": found.alphas,
        **{key: getattr(found, key) for key in keys},
        "barrier": found.barrier,
        "barrier_at": found.barrier_at,
        "height": found.height,
        "rise": dict(vars(found.rise)),
        "convex_share": found.convex_share,
        "length": found.length,
        "metric_name": _metric_name(scene),
        "method": found.method,
    }


def _metric_name(scene: Scene) -> str:
    name = str(getattr(scene.subject.metric, "__name__", "metric"))
    return name if name.isidentifier() else "metric"


def plane_part(scene: Scene, kind: str, tell: Tell | None = None) -> dict[str, Any] | None:
    """The loss over one plane with the path on it, and random walks of the same steps in a plane of the same kind."""
    axes = _PLANES[kind](scene)
    if axes is None:
        return None
    path = _coordinates(scene.recorded.points, axes.origin, axes.directions)
    other = None if kind != "three" or scene.again is None else _coordinates(scene.again.points, axes.origin, axes.directions)
    shown = [path, axes.shown] + ([other] if other is not None else [])
    x, y = (_range(np.concatenate([s[:, k] for s in shown]), axes.least[k], scene.side) for k in (0, 1))
    surface = planes.surface(
        scene.subject.train,
        axes.origin,
        axes.directions,
        x=x,
        y=y,
        coarse=scene.coarse,
        batch_norm=scene.batch_norm,
        progress=tell,
    )
    within = axes.explained if axes.explained is not None else _explained(scene, path, axes.directions)
    return {
        "kind": kind,
        "x": surface.x,
        "y": surface.y,
        "loss": surface.loss,
        "path": path,
        "other": other,
        "marks": axes.marks,
        "labels": axes.labels,
        "explained": within,
        "controls": axes.controls,
        "control_explained": axes.control_explained,
        "exact": surface.exact,
        "error": surface.error,
        "method": surface.method,
        "facts": axes.facts,
    }


@dataclass
class _Axes:
    """A plane to draw: where it is, what it must show, and the same for random walks."""

    origin: Tensor
    directions: Tensor
    labels: tuple[str, str]
    controls: list[np.ndarray]
    shown: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    least: tuple[float, float] = (0.0, 0.0)
    explained: list[float] | None = None
    control_explained: list[float] | None = None
    marks: list[tuple[str, float, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def _pca(scene: Scene) -> _Axes:
    found = trajectory.principal(scene.path)
    points = scene.recorded.points
    moved = (points - points[0]).double()
    rows = torch.as_tensor(found.weights) @ moved
    if len(rows) < 2 or not bool((rows.norm(dim=1) > 0).all()):
        raise ValueError("the path is a straight line: it spans no plane")
    walks = [trajectory.principal(w.path) for w in scene.walks]
    for walk in walks:  # the sign of a component means nothing: all bend to the same side
        walk.scores[:, 1] *= -1.0 if float(walk.scores[:, 1] @ found.scores[:, 1]) < 0 else 1.0
    labels = tuple(f"component {k + 1}: {share:.0%} of the path's variance" for k, share in enumerate(found.share))
    return _Axes(
        scene.to_live(points[0] + moved.mean(0).float()),
        scene.to_live(rows.float()),
        (labels[0], labels[1]),
        [w.scores for w in walks],
        explained=[float(s) for s in found.share],
        control_explained=[float(s) for s in np.mean([w.share for w in walks], axis=0)],
    )


def _random(scene: Scene) -> _Axes:
    with scene.subject.train.moved(scene.end):
        rows = directions.random(scene.subject.train, generator(scene.seed, 451), k=2)
    labels = ("random direction 1, in lengths of the filters", "random direction 2, in lengths of the filters")
    return _Axes(scene.end, rows, labels, _fixed(scene, rows), least=(1.0, 1.0), shown=np.array([[-1.0, -1.0], [1.0, 1.0]]))


def _hessian(scene: Scene) -> _Axes:
    first = scene.halves[0]
    with first.moved(scene.end):
        found = directions.hessian(first, 2, "both", tolerance=0.02, seed=scene.seed)
        first.release()
    least = 0.05 * scene.path.distance
    labels = (f"steepest direction, eigenvalue {found.values[0]:.3g}", f"lowest direction, eigenvalue {found.values[1]:.2g}")
    facts = {"values": found.values, "residuals": found.residuals}
    return _Axes(scene.end, found.directions, labels, _fixed(scene, found.directions), least=(least, least), facts=facts)


def _three(scene: Scene) -> _Axes | None:
    if scene.again is None:
        return None
    found = directions.plane(scene.start, scene.end, scene.to_live(scene.again.points[-1]))
    names = ("start", "end", "end of the other run")
    marks = [(name, float(x), float(y)) for name, (x, y) in zip(names, found.coordinates, strict=True)]
    controls = [w.own_plane * w.path.distance for w in scene.walks]
    labels = ("from start to end, distance", "towards the end of another run, distance")
    return _Axes(found.origin, found.directions, labels, controls, shown=found.coordinates, marks=marks)


_PLANES: dict[str, Callable[[Scene], _Axes | None]] = {"pca": _pca, "random": _random, "hessian": _hessian, "three": _three}


def _fixed(scene: Scene, rows: Tensor) -> list[np.ndarray]:
    """Random walks in a plane that does not depend on them, ending at its origin, in the coordinates of `rows`."""
    triangle = np.linalg.qr(rows.double().cpu().numpy().T, mode="r")
    places = [w.fixed_plane for w in scene.walks]
    return [np.linalg.solve(triangle, (p - p[-1]).T).T for p in places]


def _coordinates(points: Tensor, origin: Tensor, rows: Tensor) -> np.ndarray:
    """The points' projections on the plane, in its coordinates, shape (n, 2); column by column of the parameters in float64."""
    base, basis = origin.float().cpu(), rows.cpu()
    gram = (basis.double() @ basis.double().T).numpy()
    inner = torch.zeros(len(points), 2, dtype=torch.float64)
    parts = (torch.split(t, trajectory.CHUNK, dim=-1) for t in (points, base, basis))
    for p, b, d in zip(*parts, strict=True):
        inner += (p.double() - b.double()) @ d.double().T
    return np.linalg.solve(gram, inner.numpy().T).T


def _explained(scene: Scene, coordinates: np.ndarray, rows: Tensor) -> list[float]:
    """The share of the path's variance that lies in the plane, shape (1,)."""
    gram = (rows.double() @ rows.double().T).cpu().numpy()
    centred = coordinates - coordinates.mean(0)
    inside = float(np.einsum("ti,ij,tj->", centred, gram, centred))
    positions = scene.path.positions
    whole = float(np.trace(positions) - positions.sum() / len(positions))
    return [inside / whole if whole > 0 else math.nan]


def _range(values: np.ndarray, least: float, side: int) -> np.ndarray:
    """A grid over the values and a margin, at least `least` to both sides of 0 where that is given."""
    low, high = float(min(values.min(), -least if least else values.min())), float(max(values.max(), least if least else values.max()))
    width = high - low or 1.0
    return np.linspace(low - MARGIN * width, high + MARGIN * width, side)


def view_part(scene: Scene, tell: Tell | None = None) -> dict[str, Any]:
    """The surface of projection against residual, with the path on it."""
    seen = trajectory.project(scene.path)
    view = trajectory.residual_view(seen, scene.side, scene.side | 1)
    line = scene.end - scene.start
    loss = np.full((len(view.beta), len(view.alpha)), math.nan)
    for k, nearest in enumerate(view.nearest):
        aside = scene.to_live(scene.recorded.points[nearest]) - scene.start - float(seen.alpha[nearest]) * line
        rows = torch.stack([line, aside / float(seen.beta[nearest])])
        at = np.stack([np.full(len(view.beta), view.alpha[k]), view.beta], axis=1)
        loss[:, k] = evaluate(scene.subject.train, scene.start, rows, at, batch_norm=scene.batch_norm).loss
        if tell is not None:
            tell((k + 1) / len(view.nearest))
    return {"alpha": view.alpha, "beta": view.beta, "nearest": scene.recorded.steps[view.nearest], "loss": loss}


def evidence_part(scene: Scene, tell: Tell | None = None) -> dict[str, Any]:
    """Uphill steps, curvature along the gradient, predicted steps, gradient norms, and what noise does to a step."""
    first, _ = scene.halves
    kept = scene.recorded
    shown = np.unique(np.linspace(0, len(kept.steps) - 1, min(NORMS, len(kept.steps))).round().astype(int))
    norms = along.gradient_norms(first, kept.points[shown], kept.steps[shown], kept.gradient_norm)
    out: dict[str, Any] = {"norms": norms.to_dict(), "windows": [], "terms": []}
    for k, stretch in enumerate(kept.stretches):
        if tell is not None:
            tell(k / max(1, len(kept.stretches)))
        seen = along.window(first, stretch.points, lambda i: _step_objective(scene.live, i), first=stretch.first)
        out["windows"].append(seen.to_dict())
        terms = _terms(scene, stretch)
        if terms is not None:
            out["terms"].append(terms.to_dict())
    return out


def _step_objective(live: Live, i: int) -> Objective:
    many = live.training.accumulate
    return Objective.of(live, [live.batches.batch(i * many + j) for j in range(many)], seed=i)


def _terms(scene: Scene, stretch: Stretch) -> along.Terms | None:
    """The split of a step at the end of a stretch, from batches that the run has not seen in this order; None for the full gradient."""
    live, per_epoch = scene.live, scene.live.batches.per_epoch
    if per_epoch is not None and per_epoch <= live.training.accumulate:
        return None
    ahead = -(-scene.recorded.done * live.training.accumulate // (per_epoch or 1)) * (per_epoch or 1) + (0 if per_epoch else 10**6)
    count = min(16, per_epoch or 16)
    if count < 3:
        return None
    batches = Objective.of(live, [live.batches.batch(ahead + j) for j in range(count)], seed=5)
    step = stretch.first + len(stretch.points) - 1
    rates = None if stretch.rates is None else scene.to_live(stretch.rates)
    size = (live.batches.batch_size or 1) * live.training.accumulate
    return along.terms(scene.halves[0], batches, stretch.points[-1], rates, batch=size, step=step, seed=scene.seed)


def question_part(scene: Scene, tell: Tell | None = None) -> dict[str, Any]:
    """The five questions, and the spectra that some of the answers rest on."""
    say = tell or (lambda _: None)
    losses, kept = scene.losses, scene.recorded
    best = float(np.nanmin(losses))
    left = math.nan
    if scene.again is not None:
        best = min(best, scene.loss_at(scene.again.points[-1]))
        left = (losses[-1] - best) / (losses[0] - best) if losses[0] > best else math.nan
    scale = max(losses[0] - best, T.SCALE_FLOOR * abs(losses[0]))
    for k, index in enumerate(_looked_at(scene)):
        point = kept.points[index]
        seen = questions.place(*scene.halves, point, step=int(kept.steps[index]), reference=best, scale=scale, seed=scene.seed)
        scene.places.append(seen)
        say(0.5 * (k + 1) / PLACES)
    chosen = np.unique(np.linspace(0, len(kept.steps) - 1, min(SEGMENTS + 1, len(kept.steps))).round().astype(int))
    bumps = questions.bumps(
        scene.subject.train,
        kept.points[chosen],
        [int(s) for s in kept.steps[chosen]],
        batch_norm=scene.batch_norm,
        progress=lambda done: say(0.5 + 0.4 * done),
    )
    turns = questions.canyon(scene.path, count=WALKS, seed=scene.seed) if len(scene.path.gram) >= 3 else None
    straight = scene.straight if len(scene.path.gram) >= 3 else None
    end = scene.places[-1]
    told = answers(end, scene.places, straight, bumps, turns, left=left, fallen=float(losses[0] - losses[-1]))
    grid, values = density(end.spectrum)
    return {
        "answers": [a.to_dict() for a in told],
        "places": [p.to_dict() for p in scene.places],
        "bumps": {"steps": bumps.steps, "barrier": bumps.barrier, "tested": bumps.tested, "se": bumps.se, "significant": bumps.significant},
        "canyon": dict(vars(turns)) if turns is not None else None,
        "spectrum": {
            "step": end.step,
            "eigenvalues": [*end.spectrum.top, *end.spectrum.bottom],
            "residuals": [*end.spectrum.top_residuals, *end.spectrum.bottom_residuals],
            "grid": grid,
            "density": values,
        },
    }


def _looked_at(scene: Scene) -> list[int]:
    """The end, the recorded point with the smallest gradient before the last tenth, and one at a tenth of the run."""
    kept = scene.recorded
    last = len(kept.steps) - 1
    candidates = np.unique(np.linspace(0, 0.9 * last, min(12, last + 1)).astype(int))
    norms = []
    for index in candidates:
        with scene.halves[0].moved(scene.to_live(kept.points[index])):
            norms.append(float(scene.halves[0].gradient().norm()))
    smallest = int(candidates[int(np.argmin(norms))])
    return sorted({smallest, round(0.1 * last), last})
