"""What is claimed of critical points."""

import math
from collections.abc import Callable
from typing import Any

from gradoscope.claims import Claim, confidently, each, exactly, mean
from gradoscope.study import Results, Scale
from gradoscope.theory.random_landscapes import all_positive

__all__ = ["NETWORKS", "claims"]

SLIDE = "Goodfellow 2015, slide 'Are saddle points or local minima more common?'"
RANDOM: dict[str, Any] = {"part": "network", "data": "random", "ridge": 1e-4}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("a tanh network 3-3-1 on random data", RANDOM),
    "digits": ("a tanh network 4-2-1 on digits", {"part": "network", "data": "digits", "inputs": 4}),
    "digits-wide": ("a tanh network 8-4-1 on digits", {"part": "network", "data": "digits", "inputs": 8}),
}

Measure = Callable[[Results], list[float]]


def _column(name: str, /, **where: Any) -> Measure:
    """One value per seed; seeds that have no such points are left out."""
    return lambda results: [v for v in results.rows.where(**where).column(name) if not math.isnan(v)]


def _ratio(above: str, below: str, /, **where: Any) -> Measure:
    return lambda results: [r[above] / r[below] for r in results.rows.where(**where)]


def _rise(**where: Any) -> Measure:
    return lambda results: [r["index_highest"] - r["index_lowest"] for r in results.rows.where(**where)]


def claims(scale: Scale) -> list[Claim]:
    """Coins, the sphere, networks, checkpoints."""
    found = [*_coins(), *_sphere()]
    for key in NETWORKS if scale == "paper" else ("random", "digits"):
        found += _network(key, scale)
    return [*found, *_traps(), *_checkpoints()]


def _coins() -> list[Claim]:
    closed = {1: 0.5, 2: (2 - math.sqrt(2)) / 4, 3: (math.pi - 2 * math.sqrt(2)) / (4 * math.pi)}
    says = "De Bruijn's formula gives 1/2, (2 - sqrt 2)/4, (pi - 2 sqrt 2)/(4 pi) for 1, 2 and 3 eigenvalues of a Gaussian matrix."
    gap: Callable[[Results], float] = lambda _: max(abs(all_positive(n) - p) for n, p in closed.items())  # noqa: E731
    found = [Claim("goe-closed-form", says, "theorem; prototype, to 10%", gap, exactly(high=1e-9))]
    for n in (2, 3, 4, 5):
        # a million matrices: the standard error of the ratio is 0.2%, 0.6%, 2% and 8%
        width = 0.1 if n < 5 else 0.3
        says = f"All {n} eigenvalues of a Gaussian matrix are positive with probability {all_positive(n):.3g}."
        stated = "spec: .147, .0255, .0025, .00013 for n = 2 to 5, to 10% up to n = 4"
        found.append(Claim(f"goe-{n}", says, stated, _ratio("measured", "exact", part="coin", n=n), mean(1 - width, 1 + width)))
    says = "All {n} eigenvalues are positive with probability 2^-{n}."
    why = "Eigenvalues are no independent coins: they repel each other, so that all of one sign are far rarer."
    for n in (2, 4):
        measure = _ratio("measured", "coins", part="coin", n=n)
        found.append(Claim(f"independent-coins-{n}", says.format(n=n), SLIDE, measure, mean(0.9, 1.1), expected_to_fail=True, why=why))
    return found


def _sphere() -> list[Claim]:
    where = {"part": "sphere"}
    far = "Choromanska et al. 2015, through the reduction to a spherical spin glass; spec, n = 24"
    why = "Below the threshold only minima survive as n grows without bound; at n = 24 minima lie on both sides, mostly above."
    return [
        Claim("sphere-rank", "The index rises with the height on the 3-spin sphere.", far, _column("spearman", **where), confidently(0.7)),
        Claim(
            "sphere-semicircle",
            "The index is the semicircle's share below 3u: the mean distance is at most 0.04.",
            far,
            _column("error", **where),
            each(high=0.04),
        ),
        Claim(
            "sphere-minima-above",
            "At n = 24 most minima lie above the threshold height -R/3.",
            "spec: 85% of the points of index 0",
            _column("minima_above", **where),
            mean(low=0.5),
        ),
        Claim(
            "sphere-threshold",
            "Minima are found below the threshold height only.",
            "Choromanska et al. 2015, read for a finite dimension",
            _column("minima_above", **where),
            each(high=0.0),
            expected_to_fail=True,
            why=why,
        ),
    ]


def _network(key: str, scale: Scale) -> list[Claim]:
    name, where = NETWORKS[key]
    prototype = " (prototype: Spearman .59, interval .16 to .86)" if key == "random" else ""
    found = [
        Claim(
            f"{key}-rank",
            f"The index of critical points of {name} rises with the loss{prototype}.",
            f"{SLIDE}: the coin is weighted; Dauphin et al. 2014",
            _column("spearman", **where),
            confidently(low=0.0),
        ),
        Claim(
            f"{key}-terciles",
            "The third of the critical points with the highest loss has a larger mean index than the third with the lowest.",
            "spec: .16, .24, .26 by thirds of the loss",
            _rise(**where),
            confidently(low=0.0),
        ),
        Claim(
            f"{key}-high-saddles",
            "Most critical points with high loss are saddle points: of the highest third, at least 80%.",
            f"{SLIDE}: most critical points with high J are saddle points",
            _column("saddles_highest", **where),
            mean(low=0.8),
        ),
    ]
    if key != "digits-wide":  # whose minima the search seldom reaches
        says = "Most local minima have low loss: their mean rank among all critical points is below the middle."
        found.append(
            Claim(f"{key}-low-minima", says, f"{SLIDE}: most local minima have low J", _column("minima_rank", **where), mean(high=0.5))
        )
    if scale == "paper" and key == "random":
        says = "Within a seed, the lower end of the bootstrap interval of the rank correlation is above 0."
        found.append(
            Claim("random-bootstrap", says, "spec: at least 400 starts; interval .16 to .86", _column("low", **where), mean(low=0.0))
        )
    return found


def _traps() -> list[Claim]:
    says = "Descents on |g|^2 end at critical points: nine out of ten of those that have come to a stop."
    why = "|g| has minima above zero, where g lies in the null space of H. Only the filter on |g| tells them from critical points."

    def share(results: Results) -> list[float]:
        return [r["passed"] / (r["passed"] + r["stuck"]) for r in results.rows.where(**RANDOM)]

    bare = RANDOM | {"ridge": 0.0}
    return [
        Claim(
            "yield", "From 10% to 60% of the descents end at a critical point.", "spec: 26%", _column("passed", **RANDOM), mean(0.1, 0.6)
        ),
        Claim(
            "stops-elsewhere",
            "At least a fifth of the descents end where |g| has a minimum that is not zero.",
            "spec: minimising |g|^2 also stops at points with g in null(H)",
            _column("stuck", **RANDOM),
            mean(low=0.2),
        ),
        Claim("no-filter", says, "implicit where no filter is named", share, mean(low=0.9), expected_to_fail=True, why=why),
        Claim(
            "flat-tails",
            "Without a ridge most distinct points that pass the filter have flat directions.",
            "spec: without it |g| -> 0 at infinity, and flat tails dominate",
            _column("flat", **bare),
            mean(low=0.5),
        ),
        Claim("ridge-mends", "With a ridge of 1e-4 none has.", "spec: add a ridge of 1e-4", _column("flat", **RANDOM), each(high=0.05)),
    ]


def _checkpoints() -> list[Claim]:
    saddle = {"part": "checkpoint", "problem": "linear-network:saddle"}
    healthy = {"part": "checkpoint", "problem": "linear-network:healthy"}

    def right(results: Results) -> list[float]:
        rows = results.rows.where(**saddle)
        wanted = [(3 * r["d"], 2 * r["d"] ** 2 - 6 * r["d"], 3 * r["d"]) for r in rows]
        return [float((r["negative"], r["zero"], r["positive"]) == w) for r, w in zip(rows, wanted, strict=True)]

    def spare(results: Results) -> list[float]:
        return [float(r["zero"] - r["d"] ** 2 if r["negative"] == 0 else -1) for r in results.rows.where(**healthy)]

    def untouched(results: Results) -> list[float]:
        return results.rows.where(part="checkpoint").column("untouched")

    return [
        Claim(
            "checkpoint-saddle",
            "From the end of a training that is stuck at the origin of two linear layers, the search finds that saddle, with 3d negative, "
            "3d positive and 2d^2 - 6d zero eigenvalues (d units, three singular values).",
            "theory: the Hessian at the origin has the eigenvalues +-sigma_i for each hidden unit, and zeros",
            right,
            each(low=1.0),
        ),
        Claim(
            "checkpoint-curvature",
            "Its most negative eigenvalue is the largest singular value, with the sign turned: -3.",
            "theory",
            _column("smallest", **saddle),
            each(-3 - 1e-4, -3 + 1e-4),
        ),
        Claim(
            "checkpoint-minimum",
            "From the end of one that learns, it finds a minimum with at least d^2 flat directions: (A, B) and (MA, BM^-1) are one map.",
            "spec, 1.5: n0 >= k^2 at the global minima of a k-wide two-layer linear network",
            spare,
            each(low=0.0),
        ),
        Claim("checkpoint-untouched", "The training's parameters stay as they were, bit for bit.", "ours", untouched, each(low=1.0)),
    ]
