"""The parts of the study of the linear-periodic landscape: what one unit of each measures."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradoscope.stacked import generator
from gradoscope.study import Context, Result, Row
from gradoscope.theory.information import (
    gaussian_fourier_tail,
    mixture_fourier_tail,
    oracle_departures,
    uniform_fourier_tail,
)
from gradoscope.theory.laws import GaussianMixture, Law, UniformCube, standard
from gradoscope.theory.linear_periodic import (
    critical_points,
    descend,
    find_critical_points,
    gradient,
    loss,
    mean_gradient,
    on_sphere,
    sphere_variance,
    target_distances,
    variance_over_targets,
)

__all__ = ["LAWS", "PARTS", "TOLERANCES", "law_at"]

KEY = 741
TOLERANCES = (1e-2, 1e-4, 1e-6)  # of the oracle; the gradient is at most about 1
LAWS = ("standard", "anisotropic", "mixture", "uniform", "narrow")


def _diagonal(r: float) -> Tensor:
    """The target of norm r on the diagonal of the plane; (2, 2) for r = sqrt 8."""
    return torch.full((2,), r / math.sqrt(2), dtype=torch.float64)


def landscape(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The loss and the size of its gradient on a grid over [-10, 10]^2 (without 1/2, as on the slide)."""
    r, n = float(values["r"]), int(values["points"])
    axis = torch.linspace(-10, 10, n, dtype=torch.float64)
    w = torch.cartesian_prod(axis, axis)
    value, slope = loss(w, _diagonal(r)), gradient(w, _diagonal(r)).norm(dim=1)
    flat = float(((value - 1).abs() < 0.02).double().mean())
    row = {"flat": flat, "median_gradient": float(slope.median()), "largest": float(value.max()), "least": float(value.min())}
    return Result([row], arrays={"loss": value.reshape(n, n), "gradient": slope.reshape(n, n), "axis": axis})


def critical(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Every critical point that descents on the gradient's size reach, against those of the closed form."""
    r, d, result = float(values["r"]), 2, Result()
    target = _diagonal(r)
    known = torch.stack([p.w for p in critical_points(target)])
    for seed in seeds:
        starts = (torch.rand((int(values["starts"]), d), generator=generator(seed, KEY, 1), dtype=torch.float64) * 2 - 1) * 1.5 * r
        points, reached = find_critical_points(target, starts)
        kinds = [p.kind for p in points]
        row: Row = {f"{kind}s": kinds.count(kind) for kind in ("minimum", "maximum", "saddle", "degenerate")}
        spurious = sum(p.kind == "minimum" and p.loss > 1e-6 for p in points)
        far = max(float((known - p.w).norm(dim=1).min()) for p in points)
        missed = max(float((torch.stack([p.w for p in points]) - k).norm(dim=1).min()) for k in known)
        saddles = [p for p in points if p.kind == "saddle"]
        where = max((abs(float(p.w.norm()) * math.sqrt(3) / r - 1) for p in saddles), default=math.nan)
        result.rows.append({"seed": seed, **row, "spurious": spurious, "reached": reached, "off": max(far, missed), "saddle_radius": where})
        for p in points:
            low, high = p.eigenvalues.tolist()
            result.curves.append(
                {"seed": seed, "kind": p.kind, "w1": float(p.w[0]), "w2": float(p.w[1]), "loss": p.loss, "low": low, "high": high}
            )
    return result


def montecarlo(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The closed form of the loss and of its slope along a direction against drawn x, in standard errors."""
    draws, result = int(values["draws"]), Result()
    chunk = min(draws, 100_000)
    for i, seed in enumerate(seeds):
        random = generator(seed, KEY, 2)
        for pair in range(5):
            d = int(torch.randint(2, 11, (1,), generator=random))
            r, size = (torch.rand(2, generator=random, dtype=torch.float64) * 3).tolist()
            w, target, way = (on_sphere(1, d, s, random)[0] for s in (size, r, 1.0))
            sums = torch.zeros(2, 2, dtype=torch.float64)
            for _ in range(draws // chunk):
                x = torch.randn((chunk, d), generator=random, dtype=torch.float64)
                gap = torch.cos(x @ w) - torch.cos(x @ target)
                each = torch.stack([gap.square(), -2 * gap * torch.sin(x @ w) * (x @ way)])
                sums += torch.stack([each.sum(1), each.square().sum(1)])
            n = draws // chunk * chunk
            means = sums[0] / n
            error = ((sums[1] / n - means.square()) / (n - 1)).sqrt()
            exact = torch.stack([loss(w, target), gradient(w, target) @ way])
            off = ((means - exact) / error).abs()
            result.rows.append({"seed": seed, "pair": pair, "dimension": d, "loss_off": float(off[0]), "slope_off": float(off[1])})
            context.tick((i + (pair + 1) / 5) / len(seeds))
    return result


def targets(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The variance over all targets with |w*| = r: exactly, and from drawn ones."""
    d, r, size, result = int(values["d"]), float(values["r"]), float(values["size"]), Result()
    w = torch.zeros(d, dtype=torch.float64)
    w[0] = size
    exact = sphere_variance(size, r, d)
    for seed in seeds:
        drawn, error = variance_over_targets(w, on_sphere(int(values["draws"]), d, r, generator(seed, KEY, 3)))
        off = abs(drawn - exact) / error if error > 0 else math.inf
        result.rows.append({"seed": seed, "exact": exact, "drawn": drawn, "error": error, "off": off, "share": drawn / exact})
    return result


def worst(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The largest variance over all |w| up to 2r, exactly, for each d and r."""
    result = Result()
    for d in values["dimensions"]:
        for r in values["radii"]:
            sizes = torch.linspace(0.02, 2.0, 100, dtype=torch.float64) * r
            found = [sphere_variance(float(a), float(r), int(d)) for a in sizes]
            best = max(range(len(found)), key=found.__getitem__)
            result.rows.append({"dimension": d, "radius": r, "largest": found[best], "size": float(sizes[best])})
    return result


def law_at(name: str, d: int, r: float) -> tuple[Law, float]:
    """A law of x and theorem 2's ratio at radius r: at most that of its worst component, or of one axis for the uniform cube."""
    if name == "standard":
        return standard(d), gaussian_fourier_tail(r, [1.0] * d)
    if name == "anisotropic":
        s = torch.linspace(0.5, 4, d, dtype=torch.float64).tolist()
        return standard(d, s), gaussian_fourier_tail(r, s)
    if name == "mixture":
        spread = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64).expand(3, d)
        places = on_sphere(3, d, 2.0, generator(0, KEY, 4))
        law = GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), places, spread)
        return law, mixture_fourier_tail(r, spread.tolist())
    if name == "uniform":
        return UniformCube(d), uniform_fourier_tail(r)
    s = [1 / r**2] * d  # "narrow": as narrow as the target is fast, below the 1/r that theorem 2 asks for
    return standard(d, s), gaussian_fourier_tail(r, s)


def laws(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The variance over drawn targets at |w| = 1 for a law of x, beside the tail of its Fourier transform."""
    d, result = int(values["d"]), Result()
    for seed in seeds:
        # the same point and directions for every r and law
        random = generator(seed, KEY, 5, d)
        w, ways = on_sphere(1, d, 1.0, random)[0], on_sphere(int(values["draws"]), d, 1.0, random)
        for r in values["radii"]:
            law, tail = law_at(str(values["law"]), d, float(r))
            found, error = variance_over_targets(w, ways * r, law)
            row: Row = {"seed": seed, "radius": r, "variance": found, "error": error, "tail": tail}
            if isinstance(law, GaussianMixture) and len(law.weights) > 1:
                parts = [
                    GaussianMixture(torch.ones_like(law.weights[:1]), m[None], s[None])
                    for m, s in zip(law.means, law.variances, strict=True)
                ]
                each = [variance_over_targets(w, ways * r, part)[0] for part in parts]
                row["of_parts"] = sum(p * v for p, v in zip(law.weights.tolist(), each, strict=True))
            result.rows.append(row)
    return result


def descent(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Exact gradient descent from 100 starts with |w| = r, each with a target of its own."""
    d, r, result = int(values["d"]), float(values["r"]), Result()
    n = int(values["starts"])
    every = [torch.split(on_sphere(2 * n, d, r, generator(seed, KEY, 6)), n) for seed in seeds]
    goals = torch.cat([goal for _, goal in every])
    ends = descend(torch.cat([start for start, _ in every]), goals, step=0.5, steps=int(values["steps"]))
    found = (loss(ends, goals, half=True) < 0.01).double().reshape(len(seeds), n)
    for seed, share in zip(seeds, found.mean(1).tolist(), strict=True):
        result.rows.append({"seed": seed, "success": share})
    return result


def oracle(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Descent on the mean gradient from |w| = r: which share of the targets shows itself by which step?"""
    d, r, steps, result = int(values["d"]), float(values["r"]), int(values["steps"]), Result()
    # the path is radial, and the same for all seeds: it is walked once
    path = [r]
    for _ in range(steps - 1):
        path.append(abs(path[-1] - 0.5 * mean_gradient(path[-1], r, d)))
    for i, seed in enumerate(seeds):
        cosines = on_sphere(int(values["draws"]), d, 1.0, generator(seed, KEY, 7))[:, 0]

        def advance(step: int, drawn: Tensor) -> tuple[int, Tensor]:
            return step + 1, target_distances(path[step], r, d, drawn)

        first, _ = oracle_departures(0, partial(advance, drawn=cosines), TOLERANCES, steps)
        for tolerance, when in zip(TOLERANCES, first, strict=True):
            row = {"tolerance": tolerance, "departed": float((when < steps).double().mean()), "at_once": float((when == 0).double().mean())}
            result.rows.append({"seed": seed, **row, "path_moved": abs(path[-1] - r)})
        context.tick((i + 1) / len(seeds))
    return result


def flat(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The share of the ball |w| <= 2r on which the loss is within 2 % of its plateau, from drawn points."""
    d, r, result = int(values["d"]), float(values["r"]), Result()
    goal = torch.zeros(d, dtype=torch.float64)
    goal[0] = r
    plateau = 1 + math.exp(-2 * r * r) / 2
    for seed in seeds:
        random = generator(seed, KEY, 8)
        radius = torch.rand((10_000, 1), generator=random, dtype=torch.float64) ** (1 / d) * 2 * r
        w = on_sphere(10_000, d, 1.0, random) * radius
        slope = gradient(w, goal).norm(dim=1)
        flat_share = float(((loss(w, goal) - plateau).abs() < 0.02).double().mean())
        result.rows.append({"seed": seed, "flat": flat_share, "median_gradient": float(slope.median())})
    return result


PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    f.__name__: f for f in (landscape, critical, montecarlo, targets, worst, laws, descent, oracle, flat)
}
