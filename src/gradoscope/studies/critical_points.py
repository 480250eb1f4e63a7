"""Critical points: how many of their eigenvalues are negative, against how high they lie (3.1, 3.2)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradoscope.claims import Claim
from gradoscope.loop import advance
from gradoscope.measure.critical import critical_point, levenberg_marquardt
from gradoscope.objective import Objective
from gradoscope.problems import find
from gradoscope.stacked import generator
from gradoscope.studies._critical import KEY, LIMIT, distinct, network, rank_correlation, search, starts_along
from gradoscope.studies._critical_claims import claims
from gradoscope.studies._critical_figures import figures
from gradoscope.study import Context, Figure, Result, Row, Scale, Setting, Study
from gradoscope.theory.random_landscapes import SphericalSpin, all_positive, goe, index_at_height, threshold_height
from gradoscope.training import Live

__all__ = ["STUDY", "CriticalPoints"]


class CriticalPoints(Study):
    """Random matrices, a random function on a sphere, small tanh networks, and the checkpoints of a training."""

    name = "critical_points"
    title = "Critical points: the lower they lie, the fewer directions lead down"
    source = "Goodfellow 2015 (Montreal slides, saddle points or local minima); Dauphin et al. 2014; Choromanska et al. 2015"
    about = (
        "Are saddle points or local minima more common? The source tosses a coin for each eigenvalue of the Hessian: all heads "
        "is a minimum, and that becomes exponentially unlikely with the dimension. Random matrix theory weights the coin: the "
        "lower the loss, the more likely heads. So most minima lie low, and what lies high is a saddle.",
        "The eigenvalues of a random matrix are no independent coins. They repel each other, and all of one sign are far "
        "rarer: for five eigenvalues 0.00014 where coins say 0.031. The exact probabilities are computed here by de Bruijn's theorem.",
        "The weighted coin can be checked exactly where random matrix theory holds: on the spherical 3-spin model, to which "
        "Choromanska et al. reduce the loss of networks. The share of negative eigenvalues of a critical point (its index) is the "
        "semicircle's below 3u, u being the height. That below a threshold height only minima are left is a statement about large "
        "dimensions: at n = 24 nearly all minima lie above it.",
        "For networks no theorem says so. Critical points of one-hidden-layer tanh networks are searched by descending on the norm of the "
        "gradient, from points on and around trainings that are stopped at random; they are counted once, whatever the order and the "
        "signs of the hidden units. The index rises with the loss.",
        "Two traps. Most such descents end where the norm of the gradient has a minimum that is not zero, since g lies in the null "
        "space of H: without a filter on |g| one would count points that are not critical. And without a ridge the gradient also vanishes "
        "at infinity: most of what passes the filter then has flat directions, and lies nowhere near a training.",
        "The same search works at the checkpoints of any training: `gradoscope.measure.critical`.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Random matrices, the sphere, networks with and without ridge, checkpoints."""
        paper = scale == "paper"
        found = [Setting({"part": "coin", "n": n, "draws": 200_000}, 5, 1, cost=0.5) for n in (2, 3, 4, 5)]
        sphere = {"part": "sphere", "n": 24, "starts": 600 if paper else 150, "steps": 200, "iterations": 200 if paper else 120}
        found.append(Setting(sphere, 5, 1, cost=10 if paper else 2.5))
        found.append(_network("random", 400 if paper else 100, 3000 if paper else 1500))
        found.append(_network("random", 400 if paper else 60, 3000 if paper else 1000, ridge=0.0))
        found.append(_network("digits", 400 if paper else 50, 3000 if paper else 1500, hidden=2, inputs=4, ridge=1e-3))
        if paper:
            found.append(_network("digits", 200, 3000, hidden=4, inputs=8, ridge=1e-3))
        found += [Setting({"part": "checkpoint", "problem": f"linear-network:{name}", "d": 5}, 5, 5, cost=1.0) for name in TRAININGS]
        return found

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One setting: matrices, the sphere, a network, or a training's checkpoint."""
        part = {"coin": _coin, "sphere": _sphere, "network": _network_points, "checkpoint": _checkpoint}[values["part"]]
        return part(values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of the source, with corrections."""
        return claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """Index against loss, spectra, coins."""
        return figures(scale)


TRAININGS = ("saddle", "healthy")


def _network(data: str, starts: int, steps: int, *, hidden: int = 3, inputs: int = 3, ridge: float = 1e-4) -> Setting:
    values: dict[str, Any] = {"part": "network", "data": data, "hidden": hidden, "inputs": inputs, "ridge": ridge}
    rows = 60 if data == "random" else 200
    values |= {"rows": rows, "starts": starts, "steps": steps, "iterations": 300}
    dim = (inputs + 2) * hidden + 1
    return Setting(values, 5, 1, cost=starts * (steps * rows * dim * 2e-9 + 300 * dim**2 * 6e-7))


def _coin(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """How often all eigenvalues are positive: exactly when a Cholesky decomposition exists."""
    n, draws = values["n"], values["draws"]
    rows: list[Row] = []
    for seed in seeds:
        random = generator(seed, KEY, 4, n)
        hits = 0
        for start in range(0, draws, 50_000):
            matrices = goe(n, min(50_000, draws - start), random)
            hits += int((torch.linalg.cholesky_ex(matrices).info == 0).sum())
        rows.append({"seed": seed, "measured": hits / draws, "exact": all_positive(n), "coins": 0.5**n})
    return Result(rows)


def _sphere(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The spherical 3-spin model: critical points from gradient paths that are stopped at random."""
    n, result = values["n"], Result()
    spectra = []
    for seed in seeds:
        random = generator(seed, KEY, 3, n)
        spin = SphericalSpin(n, random)
        x = spin.points(values["starts"], random)
        stop = (torch.rand(len(x), generator=random, dtype=torch.float64) * math.log(values["steps"])).exp().long()
        starts = x.clone()
        for k in range(values["steps"]):
            starts = torch.where((stop == k)[:, None], x, starts)
            x = spin.onto(x - 0.03 * spin.gradient(x))
        ended = levenberg_marquardt(
            spin.gradient,
            spin.hessian,
            starts,
            limit=LIMIT,
            iterations=values["iterations"],
            retract=_retract(spin),
        )
        good = ended.gradient_norms < LIMIT
        points = ended.points[good]
        heights, eigenvalues = spin.height(points), spin.tangent_eigenvalues(points)
        first, copies = distinct(heights, eigenvalues)
        heights, eigenvalues = heights[first], eigenvalues[first]
        index = (eigenvalues < 0).double().mean(1)
        expected = index_at_height(heights, n)
        rho, low, high = rank_correlation(heights, index, seed)
        minima = heights[index == 0]
        row = {"seed": seed, "passed": float(good.double().mean()), "distinct": len(first), "spearman": rho, "low": low, "high": high}
        row |= {"error": float((index - expected).abs().mean()), "minima": len(minima), "lowest": float(heights.min())}
        row["minima_above"] = float((minima > threshold_height(n)).double().mean()) if len(minima) else math.nan
        result.rows.append(row)
        for u, a, e, c in zip(heights.tolist(), index.tolist(), expected.tolist(), copies.tolist(), strict=True):
            result.curves.append({"seed": seed, "loss": u, "index": a, "expected": e, "copies": c})
        spectra.append(eigenvalues)
        context.tick(len(result.rows) / len(seeds))
    result.arrays["eigenvalues"] = torch.cat(spectra)
    return result


def _retract(spin: SphericalSpin) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda points, steps: spin.onto(points + steps)


def _network_points(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Critical points of a network from points on and around trainings."""
    result, spectra = Result(), []
    for seed in seeds:
        net = network(values["data"], seed, values["ridge"], values["hidden"], values["rows"], values["inputs"])
        starts = starts_along(net, values["starts"], values["steps"], seed)
        context.tick(0.2)
        found = search(net, starts, values["iterations"])
        rho, low, high = rank_correlation(found.losses, found.index, seed)
        rank = torch.arange(len(found.losses)).double() / max(len(found.losses) - 1, 1)
        third = max(len(found.losses) // 3, 1)
        flat = found.zero > 0
        row = {"seed": seed, "passed": found.passed, "stuck": found.stuck, "distinct": len(found.losses), "dim": net.dim}
        row |= {"spearman": rho, "low": low, "high": high, "flat": float(flat.double().mean())}
        row |= {"index_lowest": float(found.index[:third].mean()), "index_highest": float(found.index[-third:].mean())}
        row["saddles_highest"] = float((found.negative[-third:] > 0).double().mean())
        row["minima"] = int((found.negative == 0).sum())
        row["minima_rank"] = float(rank[found.negative == 0].mean()) if row["minima"] else math.nan
        row["typical_norm"] = float(found.points.norm(dim=1).median())
        result.rows.append(row)
        columns = (found.losses, found.index, found.zero.double() / net.dim, found.copies)
        for j, a, z, c in zip(*(column.tolist() for column in columns), strict=True):
            result.curves.append({"seed": seed, "loss": j, "index": a, "zero": z, "copies": c})
        spectra.append(found.eigenvalues)
    result.arrays["eigenvalues"] = torch.cat(spectra)
    return result


def _checkpoint(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """A training of the catalogue, run to its end; from there the nearest critical point, as for any user's training."""
    result = Result()
    for seed in seeds:
        training = find(f"{values['problem']},d={values['d']},rows=50", seed=seed)
        with Live.of(training, seed=seed) as live:
            advance(live, 0, training.steps)
            objective = Objective.of(live, live.batches.sample(50, "fresh"), seed=seed)
            before = objective.theta()
            found = critical_point(objective, sampled=False)
            same = bool(torch.equal(before, objective.theta()))
        row = {"seed": seed, "label": found.label, "loss": found.loss, "gradient": found.gradient_norm, "moved": found.moved}
        row |= {"negative": found.negative, "zero": found.zero, "positive": found.positive, "untouched": float(same)}
        row |= {"smallest": found.smallest, "largest": found.largest, "residual": float(found.residuals.max())}
        result.rows.append(row)
    return result


STUDY = CriticalPoints()
