"""Saddle points: who is drawn to them, who flees, and how fast (1.6, 1.7, 1.9, 2.4, 4.6)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gradoscope.claims import Claim, confidently, each, exactly, mean
from gradoscope.studies import _saddles as parts
from gradoscope.studies._saddles_figures import figures
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

__all__ = ["STUDY", "Saddles"]

PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "surface": parts.surfaces,
    "network": parts.small_network,
    "flow": parts.flows,
    "halving": parts.halving,
    "escape": parts.escape,
    "flatness": parts.flatness,
    "no-minimum": parts.no_minimum,
    "diagnosed": parts.diagnosed,
    "noise": parts.noise,
}
NOISE = {1e-6: 898, 1e-4: 666, 1e-2: 433}  # the spec's steps
NEWTON = "Goodfellow 2015, slide 'Newton's method's failure mode'; Dauphin et al. 2014, figure 2"
FLEES = "Goodfellow 2015, slide 'Gradient descent flees saddle points'"
LACK = "Goodfellow 2015, slide 'Some functions lack critical points'"


class Saddles(Study):
    """Newton's method against its relatives and the gradient, the flow in closed form, noise, and functions that have no minimum."""

    name = "saddles"
    title = "Saddle points attract Newton's method and repel the gradient"
    source = "Goodfellow 2015 (Montreal slides); Dauphin et al. 2014"
    about = (
        "Newton's method solves for a zero gradient, and takes what it gets: on a surface with one saddle and two minima it walks "
        "from next to the saddle into it and stays there. Its relatives that shift the Hessian or take the absolute value of its "
        "eigenvalues go to a minimum. The same holds for a small network, from many starts near the saddle at the origin.",
        "The gradient flow is known in closed form near any point: along each eigenvector it has gone (1 - exp(-lambda t))/lambda per unit "
        "of gradient. Along positive curvature that becomes Newton's step; along negative curvature it grows exponentially. So the "
        "gradient flees saddle points, and the time it needs is a logarithm of how near to the stable manifold it began. Descent "
        "with a finite step has a closed form as well, which is the exact one for what a training does.",
        "That it flees does not mean that it flees soon. Where the curvature itself vanishes, on a plateau, the logarithm turns into a "
        "power: a start ten times nearer takes a hundred times as long. This is the worldview of the source's cartoon.",
        "Noise on the gradient is a way out of a saddle, for it leaves the stable manifold, and the time falls with the "
        "logarithm of the noise. On a flat activation it is none: there is nothing to amplify.",
        "Some functions have no critical point at all: on exp(-x), on separable logistic data, on sums of softplus the loss, the gradient "
        "and the curvature fall together for ever, and the parameters grow like log t. A vanishing gradient norm there is no "
        "sign of a minimum, and nothing is wrong.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Exact parts are the same at both scales; the paper's has more starts, more runs and longer ones."""
        paper = scale == "paper"
        found = [
            Setting({"part": "surface", "surface": name, "steps": 60, "radius": 0.5, "eta": 0.05, "damping": 0.1}, 0, cost=0.2)
            for name in parts.SURFACES
        ]
        starts = {"starts": 100, "steps": 300, "every": 5} if paper else {"starts": 12, "steps": 150, "every": 5}
        found.append(Setting({"part": "network", **starts}, 5, 1, cost=40 if paper else 3))
        found.append(Setting({"part": "flow", "d": 10, "t": 6.0, "eta": 0.01}, 5, cost=0.1))
        found.append(Setting({"part": "halving", "t": 6.0}, 0, cost=0.1))
        escape = {"curvatures": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0), "slopes": (1e-2, 1e-6), "rate": 1e-3}
        found.append(Setting({"part": "escape", **escape}, 0, cost=0.5))
        found.append(Setting({"part": "flatness", "eta": 0.05, "starts": (0.1, 0.03, 0.01)}, 0, cost=0.1))
        steps = 100_000 if paper else 10_000
        found.append(Setting({"part": "no-minimum", "kind": "exp", "eta": 1.0, "steps": steps}, 0, cost=steps * 3e-5))
        found += [Setting({"part": "no-minimum", "kind": kind, "eta": 1.0, "steps": steps}, 5, 1, cost=steps * 3e-5) for kind in KINDS]
        found.append(Setting({"part": "diagnosed", "eta": 2.0, "steps": 400}, 5, 1, cost=4))
        base = {"part": "noise", "surface": "factored", "start": 0.1, "eta": 0.01, "runs": 400 if paper else 100}
        found += [Setting({**base, "noise": s, "steps": 5000}, 5, cost=0.15) for s in NOISE]
        found.append(Setting({**base, "noise": 0.0, "steps": 10_000}, 0, cost=1))
        found.append(
            Setting({**base, "surface": "flat", "start": -5.0, "noise": 1e-2, "steps": 20_000 if paper else 4000}, 5, cost=steps * 5e-5)
        )
        return found

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One setting."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of the source and of the spec."""
        return [*_newton(), *_networks(), *_flow(), *_escape(), *_noise(), *_no_minimum()]

    def figures(self, scale: Scale) -> list[Figure]:
        """Paths, the slide, escape, noise, functions without a minimum."""
        return figures(scale)


KINDS = ("logistic", "softplus")


def _column(name: str, /, **where: Any) -> Callable[[Results], list[float]]:
    return lambda results: results.rows.where(**where).column(name)


def _newton() -> list[Claim]:
    def end(surface: str, rule: str, *of: str) -> Callable[[Results], list[float]]:
        return lambda results: [max(abs(r[k]) for k in of) for r in results.rows.where(part="surface", surface=surface, rule=rule)]

    def missed(surface: str, rule: str, level: float) -> Callable[[Results], list[float]]:
        return lambda results: [abs(r["loss"] - level) for r in results.rows.where(part="surface", surface=surface, rule=rule)]

    depth = {"saddle": -1.0, "monkey": -105.46875, "plateau": -1.0}
    found = []
    for name in ("saddle", "monkey"):
        says = (
            f"Newton's method goes to the {name if name == 'saddle' else 'monkey saddle'} at 0 and stays: distance and gradient below 1e-8."
        )
        found.append(Claim(f"newton-{name}", says, NEWTON, end(name, "newton", "x", "y", "gradient"), exactly(high=1e-8)))
        for rule in ("saddle-free", "damped"):
            says = f"The {rule} step reaches the minimum, J = {depth[name]:.6g}."
            found.append(Claim(f"{rule}-{name}", says, NEWTON, missed(name, rule, depth[name]), exactly(high=1e-4)))
    says = "Gradient descent at eta = 0.05 is at y = 0.30 after 60 steps: on its way, slowly."
    found.append(Claim("gradient-saddle", says, "spec: y = .30", _column("y", surface="saddle", rule="gradient"), exactly(0.295, 0.305)))
    says = "On the flattened saddle Newton's method goes to 0 as well, to within 1e-8."
    found.append(Claim("newton-plateau", says, "spec 4.6", end("plateau", "newton", "x", "y"), exactly(high=1e-8)))
    says = "The saddle-free step leaves the plateau and reaches the minimum, where the gradient has not moved by a hundredth of a percent."
    found.append(Claim("saddle-free-plateau", says, "spec 4.6", missed("plateau", "saddle-free", -1.0), exactly(high=1e-4)))
    moved = lambda results: [abs(r["y"] / 1e-3 - 1) for r in results.rows.where(surface="plateau", rule="gradient")]  # noqa: E731
    found.append(
        Claim("gradient-plateau", "Gradient descent is held by the plateau for these 60 steps.", "spec 4.6", moved, exactly(high=1e-4))
    )
    return found


def _networks() -> list[Claim]:
    def of(rule: str, name: str) -> Callable[[Results], list[float]]:
        return _column(name, part="network", rule=rule)

    def gain(results: Results) -> list[float]:
        return [a / b for a, b in zip(of("newton", "loss")(results), of("saddle-free", "loss")(results), strict=True)]

    return [
        Claim(
            "network-newton",
            "From near the origin, Newton's method on a tanh network ends at a saddle point in most runs.",
            f"{NEWTON}; slide 'Do neural nets have saddle points?', minor implication",
            of("newton", "saddle"),
            mean(low=0.5),
        ),
        Claim(
            "network-saddle-free", "The saddle-free step ends at none.", "Dauphin et al. 2014", of("saddle-free", "saddle"), each(high=0.0)
        ),
        Claim("network-damped", "Nor does the damped step.", "spec 1.6", of("damped", "saddle"), each(high=0.0)),
        Claim("network-gradient", "Nor does gradient descent.", f"{FLEES}", of("gradient", "saddle"), each(high=0.0)),
        Claim(
            "network-loss", "Newton's median loss is at least five times that of the saddle-free step.", NEWTON, gain, confidently(low=5.0)
        ),
    ]


def _flow() -> list[Claim]:
    def ratios(results: Results) -> list[float]:
        errors = [r["error"] for r in results.rows.where(part="halving")]
        return [a / b for a, b in pairwise(errors)]

    def distance(results: Results) -> float:
        errors = [r["error"] for r in results.rows.where(part="halving")]
        return float(max(abs(a - b) for a, b in zip(errors, (0.246, 0.135, 0.071), strict=False)))

    where = {"part": "flow"}
    return [
        Claim("flow-ode", "The closed form of the flow is an integrator's solution.", FLEES, _column("ode", **where), each(high=1e-9)),
        Claim("flow-descent", "Its discrete form is gradient descent.", "spec 1.7", _column("descent", **where), each(high=1e-10)),
        Claim(
            "flow-newton",
            "At t = 60 the flow has made Newton's step where lambda > 0.5.",
            FLEES,
            _column("newton", **where),
            each(high=1e-10),
        ),
        Claim(
            "flow-repels",
            "Along lambda < 0 it goes the other way than Newton's step.",
            FLEES,
            _column("repelled", **where),
            each(high=-1.0),
        ),
        Claim(
            "flow-lag", "Descent lags behind the flow by .246, .135, .071 at eta = .1, .05, .025.", "spec 1.7", distance, exactly(high=6e-4)
        ),
        Claim("flow-order", "Halving the step size divides the lag by 1.7 to 2.1.", "spec 1.7: O(eta)", ratios, exactly(1.7, 2.1)),
    ]


def _escape() -> list[Claim]:
    def worst(results: Results) -> float:
        return float(max(results.rows.where(part="escape").column("error")))

    def growth(surface: str) -> Callable[[Results], float]:
        def measure(results: Results) -> float:
            steps = {r["start"]: r["steps"] for r in results.rows.where(part="flatness", surface=surface)}
            return float(steps[0.01] / steps[0.1])

        return measure

    return [
        Claim("escape-time", "The escape takes ln(1 + R|lambda|/|g|)/|lambda|, to 1e-3.", "spec 1.7", worst, exactly(high=1e-3)),
        Claim(
            "saddle-logarithm",
            "From ten times nearer, leaving a saddle takes less than three times as long.",
            "theory",
            growth("saddle"),
            exactly(high=3.0),
        ),
        Claim(
            "plateau-power",
            "Leaving a plateau then takes about a hundred times as long.",
            "theory: 1/(6 eta y0^2) steps",
            growth("plateau"),
            exactly(85, 115),
        ),
    ]


def _noise() -> list[Claim]:
    def after(s: float) -> Callable[[Results], list[float]]:
        return _column("steps", part="noise", surface="factored", noise=s)

    found = []
    for s, steps in NOISE.items():
        says = f"Gradient noise of {s:g} takes it from the stable manifold to u = 0.5 in about {steps} steps."
        found.append(Claim(f"noise-{s:g}", says, "spec 2.4, to 10%", after(s), mean(0.9 * steps, 1.1 * steps)))

    def spacing(results: Results) -> list[float]:
        return [a - b for a, b in zip(after(1e-6)(results), after(1e-4)(results), strict=True)]

    still, flat = {"part": "noise", "noise": 0.0}, {"part": "noise", "surface": "flat"}
    says = "A hundred times less noise costs ln 100/ln 1.02 = 232.6 further steps."
    return [
        *found,
        Claim("noise-logarithm", says, "theory: the factor per step is 1 + 2 eta", spacing, mean(232.6 - 12, 232.6 + 12)),
        Claim(
            "no-noise", "Without noise it never leaves the manifold: a + b stays 0.", "spec 2.4", _column("away", **still), each(high=0.0)
        ),
        Claim(
            "flat-noise",
            "On a unit that is off, noise of 0.01 sets none free, in steps ten times as many.",
            "spec 2.4",
            _column("escaped", **flat),
            each(high=0.0),
        ),
    ]


def _no_minimum() -> list[Claim]:
    def free(results: Results) -> list[float]:
        rows = results.rows.where(part="diagnosed")
        return [float(r["verdict"] == "healthy" and r["local_minimum"] == r["saddle_point"] == "absent") for r in rows]

    says = "The diagnosis calls separable logistic regression healthy, and finds neither a minimum nor a saddle point that would hold it."
    found = [Claim("diagnosed", says, "spec 1.9: healthy, no minimum", free, each(low=1.0))]
    for kind in ("exp", *KINDS):
        where = {"part": "no-minimum", "kind": kind}
        says = f"On {WORDS[kind]} loss, gradient and curvature fall at every look (Kendall's tau -1)."

        def trend(results: Results, where: dict[str, Any] = where) -> list[float]:
            return [max(r["trend_loss"], r["trend_gradient"], r["trend_curvature"]) for r in results.rows.where(**where)]

        found.append(Claim(f"{kind}-falls", says, LACK, trend, each(high=-0.999)))
        says = "Curvature falls in proportion to the loss: the logarithms of both falls agree within 50%."
        found.append(Claim(f"{kind}-together", says, "obstacles.md, no critical point", _column("together", **where), each(0.5, 1.5)))
        says = "|theta| grows like log t: a straight line explains 99% of its variance."
        found.append(Claim(f"{kind}-logarithm", says, "spec 1.9", _column("straight", **where), each(low=0.99)))
        says = "Its slope against ln t is the one of the largest margin, to 15%."
        late = kind == "logistic"
        stated = "Soudry et al. 2018, read for a finite time" if late else "theory: exp(-c theta) falls as 1/t"
        why = (
            "It is so in the limit, which corrections of the order 1/log t keep far away: points beyond the nearest still pull."
            if late
            else ""
        )
        slope = _column("relative_slope", **where)
        found.append(Claim(f"{kind}-slope", says, stated, slope, each(0.85, 1.15), expected_to_fail=late, why=why))
    return found


WORDS = {"exp": "exp(-x)", "logistic": "separable logistic data", "softplus": "a sum of softplus"}

STUDY = Saddles()
