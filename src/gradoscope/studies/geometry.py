"""Local geometry: curvature along a direction, what a step will do, the best step, what kind of critical point (1.1 to 1.5)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradoscope.claims import Claim, each, exactly, mean
from gradoscope.studies import _geometry as parts
from gradoscope.studies._geometry_figures import figures
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

__all__ = ["STUDY", "Geometry"]

PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "curvature": parts.curvature,
    "quadratic": parts.quadratic,
    "steps": parts.steps,
    "converged": parts.converged,
    "optimal-step": parts.optimal_step,
    "efficiency": parts.efficiency,
    "classification": parts.classification,
    "flat-minima": parts.flat_minima,
}
SLIDES = "Goodfellow 2015 (Montreal slides)"


class Geometry(Study):
    """The source's formulas of local geometry on quadratics, on a small network along its training, and on functions known by hand."""

    name = "geometry"
    title = "What gradient and Hessian say of the next step"
    source = "Goodfellow 2015 (Montreal slides, directional curvature to critical points); ETH Deep Learning 2018, lecture 6 (curvature)"
    about = (
        "The second derivative along a direction is the mean of the eigenvalues, weighted by the squared cosines of the angles "
        "between the direction and the eigenvectors. The slide writes d'Hd for it, which is right for a direction of length 1 only.",
        "Taylor's second order predicts what a step does, for any optimizer. On a quadratic it is exact, and on a small network along "
        "its training it is nearly so; how far from it is measured by rho. Where a training has converged, the change of the loss is "
        "rounding, and rho is large for no reason: a guard leaves such steps out.",
        "The best step along the gradient, g'g/g'Hg, lies between the inverses of the largest and the smallest eigenvalue. A step of more "
        "than twice the best goes uphill in the quadratic model, and where the curvature along g is not positive every step improves.",
        "How much the best step gains compared with Newton's is bounded by the condition number (Kantorovich). As a verdict on a "
        "trajectory that ratio fails: descent removes the steep part of the gradient first, and the ratio goes to 1 although "
        "the problem is as badly conditioned as before.",
        "A critical point is classified by how many eigenvalues are negative, zero and positive. The zeros must always be told: at the "
        "global minima of a two-layer linear network with k hidden units there are k^2 of them, since a change of basis of the hidden "
        "units changes nothing. And a descent on the norm of the gradient may end where there is no critical point at all.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """The paper's scale has longer trainings and more draws."""
        paper = scale == "paper"
        found = [Setting({"part": "curvature", "steps": 200 if paper else 60}, 5, 1, cost=2)]
        found.append(Setting({"part": "quadratic", "d": 20, "condition": 100.0, "draws": 100 if paper else 20}, 5, cost=0.3))
        found.append(Setting({"part": "steps", "steps": 300 if paper else 30}, 5, 1, cost=3 if paper else 0.8))
        found.append(Setting({"part": "converged", "d": 5, "steps": 200}, 5, cost=0.8))
        settings = {"steps": 400, "every": 5} if paper else {"steps": 60, "every": 5}
        found.append(Setting({"part": "optimal-step", "eta": 4.0, **settings}, 5, 1, cost=8 if paper else 1.5))
        base = {"part": "efficiency", "d": 20, "draws": 100_000 if paper else 10_000, "every": 10}
        found += [Setting({**base, "condition": k, "steps": 20 * k if k < 1000 else 3000}, 5, cost=0.2) for k in (10, 43, 10_000)]
        found.append(Setting({"part": "classification", "iterations": 200}, 0, cost=2))
        found += [Setting({"part": "flat-minima", "k": k}, 5, cost=0.1) for k in (1, 2, 3)]
        return found

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One setting."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of the source and of the spec."""
        return [*_curvature(), *_taylor(), *_step(), *_efficiency(), *_points()]

    def figures(self, scale: Scale) -> list[Figure]:
        """Shares, predictions, the best step, efficiency."""
        return figures(scale)


def _column(name: str, /, **where: Any) -> Callable[[Results], list[float]]:
    return lambda results: results.rows.where(**where).column(name)


def _worst(name: str, group: str, /, **where: Any) -> Callable[[Results], list[float]]:
    """The largest value of each seed over the rows of a group."""
    return lambda results: [max(rows.column(name)) for _, rows in results.rows.where(**where).groups("seed")]


def _curvature() -> list[Claim]:
    where = {"part": "curvature"}
    literal = {"part": "curvature", "direction": "random"}
    why = "It holds for |d| = 1; for any other length the left side has to be divided by d'd."
    place = f"{SLIDES}, 'Directional Curvature'"
    return [
        Claim(
            "shares",
            "d'Hd/d'd by one product equals the sum of lambda_i cos^2 over all eigenvectors, to 1e-10 lambda_max.",
            place,
            _worst("error", "direction", **where),
            each(high=1e-10),
        ),
        Claim(
            "any-length",
            "d'Hd itself equals that sum, for a direction of any length (to 1%).",
            place,
            _column("literal", **literal),
            each(high=0.01),
            expected_to_fail=True,
            why=why,
        ),
    ]


def _taylor() -> list[Claim]:
    def of(name: str, optimizer: str) -> Callable[[Results], list[float]]:
        return _column(name, part="steps", optimizer=optimizer)

    place = f"{SLIDES}, 'How much does a gradient step improve?'"
    found = [
        Claim(
            "taylor-exact",
            "On a quadratic the second order is exact: |rho| <= 1e-12.",
            place,
            _column("rho", part="quadratic"),
            each(high=1e-12),
        )
    ]
    for name in parts.OPTIMIZERS:
        says = f"Along a training by {name}, the third order and beyond is at most a tenth of the first two in the median step."
        found.append(Claim(f"taylor-{name.replace(' ', '-')}", says, "spec 1.2: any optimizer", of("rho", name), each(high=0.1)))

    def alarms(results: Results) -> list[float]:
        return [r["alarms"] / max(r["late"], 1e-9) for r in results.rows.where(part="converged")]

    says = "At a minimum, at least a fifth of the steps that change nothing but rounding look far from quadratic (|rho| > 0.1)."
    found.append(Claim("alarms", says, "spec 1.2: our first false positive", alarms, mean(low=0.2)))
    says = "With the guard |dJ| <= 1e-10 |J| none is left."
    found.append(Claim("guard", says, "spec 1.2", _column("guarded", part="converged"), each(high=0.0)))
    return found


def _step() -> list[Claim]:
    place = f"{SLIDES}, 'How much does a gradient step improve?'"
    inf = float("inf")
    unbounded: Callable[[Results], list[float]] = lambda results: [float(r["concave"] == inf) for r in results.rows.where(part="quadratic")]  # noqa: E731
    return [
        Claim("best-step", "eps* lies between 1/lambda_max and 1/lambda_min.", place, _column("inside", part="quadratic"), each(low=1.0)),
        Claim(
            "worst-case",
            "With g along v_max the gain is (eps - eps^2 lambda_max/2) g'g, to 1e-14 g'g.",
            place,
            _column("worst", part="quadratic"),
            each(high=1e-14),
        ),
        Claim("no-bound", "Where g'Hg is not positive, no step is best: all improve.", place, unbounded, each(low=1.0)),
        Claim(
            "twice-the-best",
            "On a network, the quadratic model says uphill for the steps of 2.1 and 4 eps*, and for none of .5, 1, 1.9 eps*.",
            "spec 1.3",
            _column("model", part="optimal-step"),
            each(low=1.0),
        ),
    ]


def _efficiency() -> list[Claim]:
    where = {"part": "efficiency"}
    place = "Kantorovich 1948; spec 1.4"

    def least(results: Results) -> list[float]:
        return [min(rows.column("over")) for _, rows in results.rows.where(**where).groups("seed")]

    why = "Descent removes the steep part of the gradient first; what is left is an eigenvector of the flat part, whose efficiency is 1."
    last = _column("last", part="efficiency", condition=10_000)
    return [
        Claim("efficiency-bound", "The efficiency is never below 4k/(1+k)^2.", place, least, each(low=-1e-12)),
        Claim("efficiency-most", "Nor is it above 1.", place, _worst("most", "condition", **where), each(high=1 + 1e-12)),
        Claim(
            "efficiency-tight",
            "The bound is met by a gradient with as much along the largest as along the smallest eigenvalue.",
            place,
            _worst("worst", "condition", **where),
            each(high=1e-10),
        ),
        Claim(
            "efficiency-near",
            "At k = 43, whose bound is .0889, the least of many random gradients lies within a factor of four of it.",
            "spec: from .117, bound .0886",
            _column("least", part="efficiency", condition=43),
            each(0.0886, 4 * 0.0886),
        ),
        Claim(
            "efficiency-verdict",
            "A training at condition number 1e4 shows it by an efficiency near the bound of 4e-4, below 0.01, late in descent.",
            "what one would expect of a verdict",
            last,
            mean(high=0.01),
            expected_to_fail=True,
            why=why,
        ),
        Claim("efficiency-misleads", "It is above 0.1 there, 250 times the bound.", "spec: .32", last, mean(low=0.1)),
    ]


def _points() -> list[Claim]:
    right: Callable[[Results], float] = lambda results: float(min(results.rows.where(part="classification").column("right")))  # noqa: E731
    found = [
        Claim(
            "kinds",
            "Eight functions known by hand get their label: minima, a maximum, saddle, degenerate ones, two without a critical point.",
            f"{SLIDES}, 'Critical points'",
            right,
            exactly(low=1.0),
        )
    ]
    for k in (1, 2, 3):
        says = f"At global minima of a two-layer linear network with a hidden width of {k}, n0 is exactly {k * k}, and n- is 0."

        def zeros(results: Results, k: int = k) -> list[float]:
            return [float(r["zero"] + 1000 * r["negative"]) for r in results.rows.where(part="flat-minima", k=k)]

        found.append(Claim(f"flat-{k}", says, "theory: GL(k); spec 1.5: exactly 4 for k = 2", zeros, each(k * k, k * k)))
    return found


STUDY = Geometry()
