"""Claims of the study of linear networks."""

import math
from collections.abc import Callable
from typing import Any

from gradoscope.claims import Claim, each, exactly
from gradoscope.study import Results

__all__ = ["claims"]

SLIDES, LECTURE, OWN = "Montreal 2015 slides", "ETH lecture 6", "earlier measurement of this project"
SIGMAS, TANH, SATURATED, CRITICAL = [3.0, 2.0, 1.2, 0.6], [0.75, 0.5, 0.3], [7.5, 5.0, 3.0], [3.0, 2.0, 1.0]
Measure = Callable[[Results], list[float]]


def claims() -> list[Claim]:
    """All of them, in the order of the page."""
    return [*_products(), *_factors(), *_layers(), *_modes(), *_starts(), *_critical(), *_minima(), *_depth()]


def _column(name: str, **values: Any) -> Measure:
    return lambda results: [row[name] for row in results.rows.where(**values) if name in row]


def _products() -> list[Claim]:
    stated = f"{SLIDES}, Linear view of the difficulty"
    found = [
        Claim(
            f"derivative-{w:g}",
            f"y = w1 w2 w3 w4 w5 x with all weights at {w:g}: dy/dw1 = {w**4:g}.",
            f"{stated}: vanishes if all weights are small, explodes if all are large",
            _column("slope", part="taylor", w=w),
            exactly(w**4 * (1 - 1e-12), w**4 * (1 + 1e-12)),
        )
        for w in (0.1, 0.5, 1.5, 2.0)
    ]
    for order, value in enumerate((7.594, 1.187, 3.349, 2.984, 3.015, 3.0138)):
        found.append(
            Claim(
                f"taylor-{order}",
                f"A joint gradient step of 0.05 at w = 1.5: Taylor's order {order} predicts y = {value}.",
                OWN,
                _column("told", part="taylor", order=order),
                exactly(value - 1e-3, value + 1e-3),
            )
        )
    found.append(
        Claim(
            "taylor-exact",
            "The truth is 3.0138, and it takes the fifth order to see it: distance of that prediction.",
            f"{stated}: It requires an n-th order method to see the real effect of an update",
            _column("off", part="taylor", order=5),
            exactly(high=1e-12),
        )
    )
    return found


def _factors() -> list[Claim]:
    stated = f"{LECTURE}: l(a, b) = (sigma - ab)^2, which can be fully analysed (in the continuous time limit)"
    says = {
        "origin_off": ("origin-is-a-saddle", "At the origin the Hessian has the eigenvalues -2 sigma and 2 sigma: their error.", 1e-12),
        "solution_off": ("solutions-are-flat", "On ab = sigma it has 0 and 2(a^2 + b^2): their error.", 1e-12),
        "manifold": ("stable-manifold", "Started on a = -b gradient descent ends in the saddle: the larger of |a|, |b|.", 1e-12),
        "drift": ("conserved", "The flow conserves a^2 - b^2; descent lets it drift by at most 5 steps of 1e-4.", 5e-4),
        "error": ("product-flow", "u = ab follows du/dt = 2(sigma - u) sqrt(c^2 + 4u^2), from ab < 0 too: largest error over sigma.", 5e-4),
    }
    return [Claim(name, text, stated, _column(key, part="factor"), each(high=high)) for key, (name, text, high) in says.items()]


def _layers() -> list[Claim]:
    return [
        Claim(
            "single-layer",
            "A single layer on whitened inputs: A_t - Gamma = (1 - 2 eta)^t (A_0 - Gamma), largest error over 60 steps.",
            f"{LECTURE}, Single Layer Linear Network: the gradient is 2(A - Gamma)",
            _column("error", part="single"),
            each(high=1e-14),
        ),
        Claim(
            "lecture-transformed-gradient",
            "The gradient by U'Q is twice U' times the gradient by Q: their ratio.",
            f"{LECTURE}, Two-Layer Linear Network: 1/2 grad_Q~ R = U' grad_Q R",
            _column("ratio", part="single"),
            each(2 - 1e-9, 2 + 1e-9),
            expected_to_fail=True,
            why="A 1/2 is missing on the right of that line.",
        ),
        Claim(
            "transformed-gradient",
            "The gradient by U'Q is U' times the gradient by Q: their ratio.",
            f"correction of {LECTURE}",
            _column("ratio", part="single"),
            each(1 - 1e-9, 1 + 1e-9),
        ),
    ]


def _modes() -> list[Claim]:
    stated = f"{LECTURE}: modes decouple, simulation experiments; Saxe et al. 2014"
    found = [
        Claim(
            f"modes-error-{lr:g}",
            f"Decoupled start, step {lr:g}: every mode follows its closed form to 5 steps: largest error over sigma.",
            stated,
            _column("error", part="modes", lr=lr),
            each(high=5 * lr),
        )
        for lr in (1e-2, 3e-3, 1e-3, 3e-4)
    ]
    found += [
        Claim(
            f"modes-error-is-{value:g}",
            f"At a step of {lr:g} that error is {value:g}.",
            OWN,
            _column("error", part="modes", lr=lr),
            each(0.9 * value, 1.1 * value),
        )
        for lr, value in ((1e-2, 0.0447), (3e-3, 0.0134), (1e-3, 0.0045), (3e-4, 0.0013))
    ]
    found.append(
        Claim(
            "modes-stay-apart",
            "Decoupled modes never meet: the largest entry off the diagonal.",
            stated,
            lambda results: [max(rows.column("off")) for _, rows in results.rows.where(part="modes").groups("seed")],
            each(high=1e-12),
        )
    )
    for r, value in enumerate((0.667, 0.950, 1.477, 2.665)):
        found.append(
            Claim(
                f"half-rise-{SIGMAS[r]:g}",
                f"The mode of sigma = {SIGMAS[r]:g} is half learnt at ln(sigma/u0 - 1)/(4 sigma) = {value}, at a step of 1e-3.",
                "Saxe et al. 2014, time halved",
                _column(f"half_{r}", part="modes", lr=1e-3),
                each(value - 0.003, value + 0.003),
            )
        )
    growth = _column("growth", part="modes", lr=3e-4)
    return [
        *found,
        Claim("growth", "While it is small a mode grows as e^(4 sigma t): its rate over sigma.", LECTURE, growth, each(3.9, 4.1)),
        Claim(
            "growth-of-saxe",
            "It grows as e^(2 sigma t), as in Saxe's form.",
            "Saxe et al. 2014, u(t) with e^(2 s t / tau)",
            growth,
            each(1.9, 2.1),
            expected_to_fail=True,
            why="The lecture's R = E|y - Ax|^2 has no 1/2, so time runs twice as fast as in Saxe's loss.",
        ),
    ]


def _starts() -> list[Claim]:
    stated = f"{LECTURE}: as learning advances modes decouple = independent learning dynamics for each mode"

    def values(name: str, variance: float, sigmas: list[float] = SIGMAS) -> Measure:
        return lambda results: [
            float(row[name]) for row in results.rows.where(part="small", variance=variance) if list(row["sigmas"]) == sigmas
        ]

    def both_ordered(results: Results) -> list[float]:
        rows = [row for row in results.rows.where(part="small") if list(row["sigmas"]) == TANH]
        return [float(row["tanh_ordered"] and row["linear_ordered"]) for row in rows]

    return [
        Claim(
            "small-start-1e-6",
            "Random start of variance 1e-6, width 8: with u0 from the half-rise every mode follows its curve: largest error over sigma.",
            stated,
            values("error", 1e-6),
            each(high=5e-3),
        ),
        Claim(
            "small-start-1e-4",
            "So it does at a variance of 1e-4: largest error over sigma.",
            OWN,
            values("error", 1e-4),
            each(high=5e-3),
            expected_to_fail=True,
            why="That was one draw of the start, and draws differ by ten times: some are off by more than a percent.",
        ),
        Claim(
            "competition-1e-2",
            "At a variance of 0.01 modes are not decoupled when they are learnt: largest error over sigma.",
            f"{LECTURE}: competition",
            values("error", 1e-2),
            each(low=0.01),
        ),
        Claim(
            "competition-1e-2-off-diagonal",
            "And entries off the diagonal reach several percent of the largest singular value.",
            f"{LECTURE}: competition",
            values("off", 1e-2),
            each(0.02, 0.3),
        ),
        Claim(
            "order",
            "Modes are learnt in the order of their singular values, at variances of 1e-6.",
            stated,
            values("linear_ordered", 1e-6),
            each(low=1),
        ),
        Claim("order-1e-4", "And of 1e-4.", stated, values("linear_ordered", 1e-4), each(low=1)),
        Claim(
            "tanh-order",
            "A tanh network and a linear one learn modes of 0.75, 0.5, 0.3 in that order.",
            f"{LECTURE}, simulation experiments: red analytic, blue linear, green tanh",
            both_ordered,
            each(low=1),
        ),
        Claim(
            "tanh-times",
            "And its half-rises are within 35% of the linear network's: the largest |ln ratio|.",
            f"{LECTURE}, simulation experiments",
            values("worst_ratio", 1e-4, TANH),
            each(high=math.log(1.35)),
        ),
        Claim(
            "tanh-saturated",
            "Where targets are ten times as large units saturate, and some mode is later by more: the largest |ln ratio|.",
            OWN,
            values("worst_ratio", 1e-4, SATURATED),
            each(low=math.log(1.35)),
        ),
    ]


def _critical() -> list[Claim]:
    stated = f"{SLIDES}: neural nets without nonlinearities have many saddle points, all the minima are global (Saxe et al. 2013)"
    found = []
    for modes, loss, negative, zero, smallest in (
        ("12", 1, 0, 4, 0),
        ("13", 4, 1, 4, -2),
        ("23", 9, 2, 4, -4),
        ("1", 5, 2, 3, -4),
        ("", 14, 6, 0, -6),
    ):
        label, name = "{" + ",".join(modes) + "}", modes or "none"
        columns = (("loss", loss), ("negative", negative), ("zero", zero), ("smallest", smallest))
        text = f"{loss} of loss, {negative} negative and {zero} zero eigenvalues, the smallest {smallest}"

        def off(results: Results, modes: str = modes, columns: tuple[tuple[str, int], ...] = columns) -> list[float]:
            (row,) = results.rows.where(part="critical", modes=modes)
            return [max(abs(row[column] - value) for column, value in columns)]

        found.append(
            Claim(
                f"critical-{name}",
                f"|QW - diag(3, 2, 1)|^2, width 2: the critical point that learnt {label} has {text}: the largest deviation.",
                stated,
                off,
                exactly(high=1e-10),
            )
        )
    found += [
        Claim(
            "critical-points",
            "Every set of modes is critical: the largest gradient norm.",
            stated,
            lambda results: [max(_column("gradient", part="critical")(results))],
            exactly(high=1e-12),
        ),
        Claim(
            "critical-spectra",
            "All eigenvalues are those of the closed form: the largest error.",
            "closed form at balanced points, derived here",
            lambda results: [max(_column("off", part="critical")(results))],
            exactly(high=1e-10),
        ),
        Claim(
            "one-minimum",
            "Only the strongest modes make a minimum: critical points without a negative eigenvalue.",
            stated,
            lambda results: [float(sum(v == 0 for v in _column("negative", part="critical")(results)))],
            exactly(1, 1),
        ),
    ]
    return found


def _minima() -> list[Claim]:
    stated = f"{SLIDES}: all the minima form a connected manifold"
    square = {"part": "minima", "width": 3}
    return [
        *(
            Claim(
                f"connected-{width}",
                f"Rank 3, width {width}: an explicit path joins two random minima: the largest loss along it.",
                stated,
                _column("path", part="minima", width=width),
                each(high=1e-20),
            )
            for width in (4, 6)
        ),
        Claim(
            "not-straight",
            "The path has to bend: the largest loss on the straight line between the same minima, widths 4 and 6.",
            "own",
            lambda results: [row["straight"] for row in results.rows.where(part="minima") if row["width"] > 3],
            each(low=0.1),
        ),
        Claim(
            "connected-at-the-rank",
            "So it does at a width of 3: the largest loss along the best path between two random minima.",
            stated,
            _column("path", **square),
            each(high=1e-20),
            expected_to_fail=True,
            why="At width = rank the minima are two copies of GL+(3), told apart by the sign of a determinant.",
        ),
        Claim(
            "within-a-component",
            "At width 3 a path of zero loss exists within a component: the largest loss along it.",
            f"correction of: {stated}",
            _column("path", **square, same=True),
            each(high=1e-20),
        ),
        Claim(
            "between-components",
            "Between components the lowest barrier is the smallest singular value squared, 1: the largest loss along the path.",
            f"correction of: {stated}",
            _column("path", **square, same=False),
            each(1 - 1e-9, 1 + 1e-9),
            why="On the way Q is singular once, and no matrix of rank 2 is nearer than 1 to diag(3, 2, 1) (Eckart and Young).",
        ),
    ]


def _depth() -> list[Claim]:
    def ratio(start: str, depth: int, name: str = "steps") -> Measure:
        def measure(results: Results) -> list[float]:
            rows = {row["depth"]: row[name] for row in results.rows.where(part="depth", start=start)}
            return [rows[depth] / rows[2]]

        return measure

    saxe = "Saxe et al. 2014: very deep networks incur only a finite delay"
    found = [
        Claim(
            f"depth-{layers}",
            f"{layers} equal weights take u from 1e-3 to 0.9 in a time of {value}.",
            OWN,
            _column("time", part="depth", start="small", depth=layers),
            exactly(value * (1 - 1e-3), value * (1 + 1e-3)),
        )
        for layers, value in ((2, 2.276), (3, 4.981), (5, 10.745), (10, 15.915))
    ]
    return [
        *found,
        Claim(
            "depth-flow",
            "Quadrature and the integrated flow agree: the largest relative error of the strength at that time.",
            "theorem",
            lambda results: [max(_column("off", part="depth", start="small")(results))],
            exactly(high=1e-4),
        ),
        Claim(
            "finite-delay-order-one",
            "From u0 = 0.1 a hundred layers take at most 3.03 times as many stable steps as two, as any number of layers does.",
            saxe,
            ratio("order one", 100),
            exactly(high=3.03),
            why="In the limit of depth the integral is that of du/(u^2 (1 - u)): 13.28 against 4.39.",
        ),
        Claim(
            "finite-delay-small",
            "From u0 = 1e-3 they take at most 10 times as many.",
            saxe,
            ratio("small", 100),
            exactly(high=10.0),
            expected_to_fail=True,
            why="The delay tends to a limit, but the limit is of the order 1/u0: some hundred times.",
        ),
        Claim(
            "delay-fixed-weight",
            "From weights of 0.5 the delay grows without end: twenty layers over two, in stable steps.",
            f"{SLIDES}: if all weights are small, this exponentially vanishes",
            ratio("fixed weight", 20),
            exactly(low=1e4),
            why="u0 = 0.5^20 is 1e-6, and the time goes as 1/u0.",
        ),
    ]
