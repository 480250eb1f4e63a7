"""Convex losses: what gradient descent and Nesterov's acceleration are promised, and what they do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from gradoscope.claims import Claim, each, exactly
from gradoscope.studies import _convex_figures
from gradoscope.studies._convex import PARTS
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

__all__ = ["STUDY", "ConvexRates"]

LECTURE = "ETH lecture 6"
MUS, KAPPAS, TIMES = (0.0, 0.01), (10.0, 100.0, 1000.0), (5, 10, 20, 40, 80)
EXACT = 1 + 1e-9  # a bound that is a theorem, up to rounding


class ConvexRates(Study):
    """Five small experiments: logistic losses, quadratics, worst functions, a cliff, gradient flow."""

    name: ClassVar[str] = "convex"
    title: ClassVar[str] = "Convex rates: what is promised, what is attained, and what a cliff does to it"
    source: ClassVar[str] = "Perraudin and Hofmann 2018, Deep Learning lecture 6 (ETH), section 1; Nesterov 2004; Drori and Teboulle 2014"
    about: ClassVar[tuple[str, ...]] = (
        "The lecture gives gradient descent 2L/(t+1) times the squared distance on a convex loss, does not say at which step size, and "
        "(1 - mu/L)^t on a strongly convex one. Both hold at 1/L, and are checked there at every step of logistic losses; at 2.2/L the "
        "first is wrong by many powers of ten. The best constant is L/(4t+2), which one function attains exactly at every t: the "
        "lecture's bound is four to eight times as large as it need be. On quadratics the loss falls by (1 - mu/L)^2 per step, so the "
        "second bound promises half of the truth on a logarithmic scale.",
        "The lower bound of order 1/t^2 is stated for the general case. It is a statement about methods in the span of the gradients, and "
        "for t up to (d - 1)/2 steps only: in few dimensions conjugate gradients end. On Nesterov's worst function the accelerated method "
        "stays within a constant of it, gradient descent falls behind as the square root of t. A slope on a log-log plot of this one "
        "function is not the rate of the class: bounds are tested, slopes are only shown.",
        "The curvature inequality of the lecture, (eta/2) g'Hg >= |g|^2, is exactly when a quadratic rises. A product of five equal "
        "weights makes a wall on which plain descent overflows within two steps. Clipping the gradient's norm mends it. A decaying step "
        "size alone does not, as the first step is too large already; with clipping it takes out the cycle that a large step leaves "
        "around the minimum, and where it decays too fast it never arrives.",
        "Gradient flow is integrated for any objective with scipy's solve_ivp. Gradient descent is Euler's method for it, and its error "
        "halves with the step. Everything is in float64; logistic data are drawn anew for each seed.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """The sources' own sizes at both scales, as they take seconds; more seeds at the paper's."""
        seeds = 5 if scale == "quick" else 10
        found = [Setting({"part": "logistic", "mu": mu, "rows": 200, "d": 10, "steps": 3000}, seeds, 5, 0.2) for mu in MUS]
        found += [
            Setting({"part": "quadratic", "kappa": kappa, "d": 20, "steps_per_kappa": 40}, seeds, 5, 3e-4 * kappa) for kappa in KAPPAS
        ]
        found += [Setting({"part": "worst", "times": list(TIMES), "long": 100}, 0, 1, 0.2)]
        found += [Setting({"part": "cliff", "lr": lr, "clip": 1.0, "steps": 400}, 0, 1, 0.4) for lr in (0.02, 0.1)]
        steps = [100, 200, 400]
        return found + [
            Setting({"part": "flow", "kind": kind, "time": 2.0, "steps": steps}, seeds, 5, 0.8) for kind in ("logistic", "tanh")
        ]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One of the five experiments."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Bounds as bounds, and beside each wrong or vague statement the right one."""
        return [*_bounds(), *_quadratics(), *_worst(), *_cliff(), *_flow()]

    def figures(self, scale: Scale) -> list[Figure]:
        """Gaps and bounds, worst functions, rates, the cliff, the flow."""
        return _convex_figures.figures()


def _column(name: str, **values: Any) -> Callable[[Results], list[float]]:
    return lambda results: results.rows.where(**values).column(name)


def _largest(name: str, part: str) -> Callable[[Results], list[float]]:
    """The worst over the settings of a part, for each seed."""

    def measure(results: Results) -> list[float]:
        return [max(rows.column(name)) for _, rows in results.rows.where(part=part).groups("seed")]

    return measure


def _bounds() -> list[Claim]:
    stated = f"{LECTURE}, Gradient Descent: Classic analysis"
    says = {
        "lecture": "2L/(t+1) |theta_0 - theta*|^2 holds at every step at 1/L: the largest gap over bound.",
        "standard": "So does L/(2t) |theta_0 - theta*|^2.",
        "tight": "So does the tight L/(4t+2) |theta_0 - theta*|^2.",
        "linear": "So does (1 - mu/L)^t times the first gap.",
        "accelerated": "Nesterov's method stays below 2L/(t+1)^2 |theta_0 - theta*|^2.",
    }
    found = [
        Claim(
            f"{kind}-bound",
            f"Logistic losses, mu = 0 and 0.01: {text}",
            stated if kind in ("lecture", "linear") else "theorem",
            _largest(f"over_{kind}", "logistic"),
            each(high=EXACT),
        )
        for kind, text in says.items()
    ]
    found.append(
        Claim(
            "lecture-bound-is-loose",
            "The lecture's bound is never nearer than a factor of 4 to any convex function.",
            stated,
            _largest("over_lecture", "logistic"),
            each(high=0.25 * EXACT),
            why="(L/(4t+2)) / (2L/(t+1)) is 1/4 at t = 0 and falls to 1/8.",
        )
    )
    found.append(
        Claim(
            "tight-is-attained",
            "The tight bound is attained, by a function that is quadratic near 0 and straight further out: gap over bound for each t.",
            "Drori and Teboulle 2014",
            lambda results: [row["attained"] for row in results.rows.where(part="worst") if "attained" in row],
            exactly(1 - 1e-9, EXACT),
        )
    )
    found.append(
        Claim(
            "any-step-size",
            "The lecture's bound holds at a step size of 2.2/L as well: the largest gap over bound in 60 steps.",
            f"{stated}: no step size is given",
            _largest("over_lecture_large_step", "quadratic"),
            each(high=1.0),
            expected_to_fail=True,
            why="Above 2/L the steepest direction of a quadratic grows without end; the bound is proved at 1/L.",
        )
    )
    return found


def _quadratics() -> list[Claim]:
    stated = f"{LECTURE}, Gradient Descent: Classic analysis"
    found = []
    for kappa in KAPPAS:
        values = {"part": "quadratic", "kappa": kappa}
        for name, step, truth in (("at_L", "1/L", "(1 - mu/L)^2"), ("best", "2/(L + mu)", "((k - 1)/(k + 1))^2")):
            found.append(
                Claim(
                    f"rate-{name.replace('_', '-')}-{kappa:g}",
                    f"Quadratic, condition number k = {kappa:g}, step {step}: the loss falls by {truth} per step, relative error.",
                    "theorem",
                    _column(f"off_{name}", **values),
                    each(high=0.01),
                    why="Taken over the last quarter of 40 k steps, where little but the slowest direction is left.",
                )
            )
    found.append(
        Claim(
            "lecture-rate-is-the-rate",
            "On a quadratic (k = 10) the loss falls as slowly as the lecture's bound: measured factor over 1 - mu/L.",
            stated,
            _column("lecture_at_L", part="quadratic", kappa=10.0),
            each(0.99, 1.01),
            expected_to_fail=True,
            why="The bound is that of the class; on quadratics the factor is its square, (1 - mu/L)^2 = 0.81 against 0.9.",
        )
    )
    uphill = f"{LECTURE}, Challenges: Curvature (DL, section 8.2.1)"
    found += [
        Claim(
            "inequality-is-uphill",
            "On a quadratic (eta/2) g'Hg > |g|^2 holds at exactly the steps at which the loss rises: share of steps that agree.",
            uphill,
            lambda results: [min(rows.column("agree")) for _, rows in results.rows.where(part="quadratic").groups("seed")],
            each(low=1.0),
        ),
        Claim(
            "inequality-both-ways",
            "And both kinds of steps occurred in that test: share of uphill steps.",
            uphill,
            _column("uphill", part="quadratic"),
            each(0.05, 0.95),
        ),
    ]
    return found


def _worst() -> list[Claim]:
    def ratio(method: str, t: int) -> Callable[[Results], float]:
        return lambda results: next(row[method] for row in results.rows.where(part="worst", t=t) if method in row)

    lower = f"{LECTURE}: lower bound (general case) O(t^-2), achieved by Nesterov acceleration"
    pairs = {"nesterov": (2.83, 2.96, 3.06, 3.14, 3.20), "descent": (3.5, 4.7, 6.6, 9.4, 13.5)}
    found = [
        Claim(
            f"{method}-over-lower-bound-{t}",
            f"Worst function, d = {2 * t + 1}, t = {t}: gap over the lower bound is {value}.",
            "earlier measurement of this project",
            ratio(method, t),
            exactly(0.99 * value, 1.01 * value) if method == "nesterov" else exactly(0.98 * value, 1.02 * value),
        )
        for method, expected in pairs.items()
        for t, value in zip(TIMES, expected, strict=True)
    ]
    found += [
        Claim(
            "lower-bound",
            "No method beats the lower bound for t <= (d - 1)/2: the smallest gap over bound of three methods.",
            lower,
            lambda results: min(row[m] for row in results.rows.where(part="worst") for m in (*pairs, "conjugate") if m in row),
            exactly(low=1 - 1e-9),
        ),
        Claim(
            "lower-bound-in-few-dimensions",
            "Nor beyond, in the general case: conjugate gradients on the worst function of d = 11 after t = 11 steps, gap over bound.",
            lower,
            lambda results: next(row["few"] for row in results.rows.where(part="worst") if "few" in row),
            exactly(low=1.0),
            expected_to_fail=True,
            why="After d steps they are exact. The bound needs t <= (d - 1)/2.",
        ),
    ]
    for method, name, rate, place in (("descent", "gradient descent", -1, "O(1/t)"), ("nesterov", "Nesterov", -2, "O(1/t^2)")):
        found.append(
            Claim(
                f"slope-{method}",
                f"The slope of the gap of {name} on a log-log plot of the worst function, d = 201, t from 10 to 60, is {rate}.",
                f"{LECTURE}: {place}",
                lambda results, method=method: results.rows.where(part="worst", method=method).column("slope"),  # type: ignore[misc]
                exactly(rate - 0.1, rate + 0.1),
                expected_to_fail=True,
                why="A rate is a bound over all functions of the class. One function has a slope of its own: here about half of it.",
            )
        )
    return found


def _cliff() -> list[Claim]:
    stated = f"{LECTURE}, Challenge: curvature: motivates gradient clipping heuristics and learning rate decay"

    def value(name: str, lr: float, clipped: bool, schedule: str, bits: int = 64) -> Callable[[Results], list[float]]:
        return _column(name, part="cliff", lr=lr, clipped=clipped, schedule=schedule, bits=bits)

    return [
        Claim(
            "cliff-overflows",
            "(w^5 - 1)^2/2 from w = 2 at 0.02, not clipped, in float32: steps with a finite loss.",
            stated,
            value("finite_steps", 0.02, False, "constant", 32),
            exactly(1, 1),
            why="The second step overflows. In float64 the third does.",
        ),
        Claim(
            "clipping-mends",
            "Clipped at norm 1 it ends at J = 0 within 400 steps.",
            stated,
            value("final", 0.02, True, "constant"),
            exactly(0, 0),
        ),
        Claim(
            "decay-alone-mends",
            "A step size that decays as 1/sqrt(1 + t/10) mends it without clipping: the final loss.",
            stated,
            value("final", 0.02, False, "sqrt"),
            exactly(high=1.0),
            expected_to_fail=True,
            why="The first step is as large as before, and already lands where the next one overflows.",
        ),
        Claim(
            "clipped-cycle",
            "At 0.1 clipping alone leaves a cycle around the minimum: the final loss.",
            stated,
            value("final", 0.1, True, "constant"),
            exactly(low=1e-3),
            why="At w = 1 the curvature is 25 and a step of 0.1 is above 2/25; the clipped gradient cannot grow, so it cycles.",
        ),
        Claim(
            "decay-ends-the-cycle",
            "With the decay as well it ends at J = 0.",
            stated,
            value("final", 0.1, True, "sqrt"),
            exactly(high=1e-12),
        ),
        Claim(
            "decay-too-fast",
            "At 0.02 a decay as 1/(1 + t/10) is too fast: the final loss after 400 clipped steps.",
            f"{LECTURE}: fast decay schedules may lead to super-slow convergence",
            value("final", 0.02, True, "inverse"),
            exactly(low=0.1),
            why="Clipped steps cover at most the sum of the step sizes, 0.02 x 10 ln 41 = 0.74 < 1.",
        ),
    ]


def _flow() -> list[Claim]:
    stated = f"{LECTURE}, Gradient Descent: gradient flow (Euler's method)"
    found = []
    for kind in ("logistic", "tanh"):
        values = {"part": "flow", "kind": kind}
        for name, text in (("least", "smallest"), ("most", "largest")):
            found.append(
                Claim(
                    f"euler-{kind}-{name}",
                    f"Halving the step halves the distance to gradient flow at time 2 ({kind}): the {text} ratio of errors.",
                    stated,
                    _column(name, **values),
                    each(1.7, 2.1),
                )
            )
    return found


STUDY = ConvexRates()
