"""What the lecture states about stochastic gradient descent, with the criteria that theory gives."""

import math
from collections.abc import Callable

import numpy as np

from gradoscope.claims import Claim, each, exactly, mean
from gradoscope.studies._sgd_claims_data import SLIDE, column, data_claims, one, part, ratio
from gradoscope.study import Results, Scale

__all__ = ["ABOUT", "claims"]

ABOUT = (
    "The lecture's section on SGD is a list of statements: when it converges and how fast, what a constant step does, why to average "
    "iterates, why to permute the examples, which batch to take, why to favour many cheap steps over few dear ones, when to stop. Each "
    "is put to the test on the smallest problem that shows it, mostly least squares with Gaussian inputs, because there the expected "
    "excess loss of SGD is known exactly, step by step, and the simulation (200 runs at once) can be held against it.",
    "Rates: with C/t and C large enough the excess falls as 1/t; with C too small it falls as t^(-2 mu C), slower than with the "
    "slower-looking t^-0.6, which is what the lecture means by fast decay being super-slow. The average of the iterates comes close to the "
    "best that any method can do with so many examples, for every schedule that leaves enough noise in. One caveat: read literally, "
    "2/t starts with a step of 2, which first throws the iterate far away. The iterate forgets that, its average never does.",
    "With alpha > 1 the sum of the rates is finite, and SGD stops on its way. With a constant step it ends in a ball whose size has a "
    "closed form; the formula with the noise at the optimum alone is 9% too small here, as the noise grows with the distance.",
    "Order: shuffling beats drawing with replacement by far more than ten times at the same number of steps. One fixed order does too, as "
    "long as it is a random one. Sorted by class it is another matter: each class unlearns the one before within the epoch.",
    "Batches: up to a critical size, twice the batch halves the steps and the count of gradients stays; beyond it the steps stay. The law "
    "S = S_min (1 + B_c/B) fits within a few percent on a problem on which even the full gradient needs 50 steps. B_c lies between the "
    "simple noise scale at the start and that at the target, which differ by a factor of fifty: an order of magnitude, and no more.",
    "Budget: for a fixed number of gradients, GD should use a part of the data only, more with a larger budget; one pass of SGD with "
    "averaged iterates beats the best such choice every time. The budget is counted in gradients; seconds are shown and decide nothing.",
    "Nesterov's rule in Sutskever's reading is clearly better than SGD and than momentum on all three networks, each at its best rate: it "
    "stands larger steps. Plain momentum gains little. The literal reading gains on two networks and loses on the third: with the bias "
    "corrected, its first steps and its look ahead are ten times as long. The rate of a seed is chosen on the other seeds, so that no "
    "rule profits from having its luck picked.",
    "Goodfellow's remark that g'Hg can fluctuate rapidly if H has many distinct eigenvalues holds where noise dominates the gradient. "
    "Without noise it is the other way round: the gradient turns into the flat directions once, and few eigenvalues make that a jump.",
)


def _slopes(quick: bool) -> list[Claim]:
    def slope(schedule: str) -> Callable[[Results], list[float]]:
        return column("rates", "slope", schedule=schedule)

    def close(schedule: str) -> Callable[[Results], list[float]]:
        return column("rates", "average", schedule=schedule)

    rates, practice = f"{SLIDE}, rates", f"{SLIDE}, practicalities"
    tolerance = "The slope over t >= 3000 within 0.12 of theory's."
    found = [
        Claim(
            "rate-1-t",
            "With 2/(t + 20), mu = 1, the excess falls as 1/t.",
            f"{rates}: strongly convex, O(1/t)",
            slope("2/(t + 20)"),
            each(-1.12, -0.88),
            why=tolerance,
        ),
        Claim("rate-literal", "With 2/t, literally, the last iterate falls as 1/t too.", rates, slope("2/t"), mean(-1.12, -0.88)),
        Claim(
            "rate-small-c",
            "With 0.3/t it falls as t^-0.6 only: the exponent is 2 mu C.",
            f"{practice}: fast decay schedules may lead to super-slow convergence",
            slope("0.3/t"),
            each(-0.72, -0.48),
            why=tolerance,
        ),
        Claim(
            "small-c-is-slow",
            "At the end 0.3/t is at least five times as far away as 2/(t + 20).",
            practice,
            ratio("rates", "excess", {"schedule": "0.3/t"}, {"schedule": "2/(t + 20)"}),
            each(low=5),
        ),
        Claim("rate-0.6", "With t^-0.6 / 2 the excess falls as t^-0.6.", f"{rates}: eta = C t^-alpha", slope("t^-0.6"), each(-0.72, -0.48)),
        Claim("rate-0.5", "With t^-0.5 / 2 the excess falls as t^-0.5.", f"{rates}: eta = C t^-alpha", slope("t^-0.5"), each(-0.62, -0.38)),
        Claim(
            "rate-constant",
            "With a constant step it does not fall at all.",
            f"{practice}: converges to a ball",
            slope("constant"),
            each(-0.12, 0.12),
        ),
        Claim(
            "rate-levels-out",
            "max(2/t, 0.01) levels out.",
            f"{practice}: level out at a minimal step size",
            slope("levels out"),
            each(-0.12, 0.12),
        ),
        Claim(
            "exact",
            "The simulated excess of five schedules is the exact one within 3%.",
            "the recursion of second moments",
            _off,
            mean(-0.03, 0.03),
        ),
        Claim(
            "transient-0.75",
            "Long before eta mu t is large, C t^-0.75 falls faster than its rate: slope -1.18 at mu = 0.2, C = 0.25.",
            "the slope may be taken only when eta mu t > 3; it is 0.9 here after 100,000 steps",
            one("transient", "slope"),
            exactly(-1.30, -1.06),
        ),
        Claim(
            "transient-is-rate",
            "C t^-0.75 with C = 0.25 at mu = 0.2 falls as t^-0.75 by step 100,000.",
            rates,
            one("transient", "slope"),
            exactly(-0.87, -0.63),
            expected_to_fail=True,
            why="It is still in its transient.",
        ),
    ]
    high = 1.5 if quick else 1.35
    for schedule in ("2/(t + 20)", "t^-0.6", "t^-0.5", "constant"):
        says = f"With {schedule} the average of the iterates is at most {high:g} times the optimum d/(2t)."
        word = schedule.replace("/(t + 20)", "-t")
        found.append(Claim(f"average-{word}", says, f"{rates}: iterate (Polyak) averaging", close(schedule), mean(0.85, high)))
    why = "The first steps of 2/t throw the iterate far away, and the average keeps that. A delay, or a tail average, mends it."
    says = f"With 2/t, literally, the average of all iterates is at most {high:g} times the optimum."
    return [*found, Claim("average-literal", says, rates, close("2/t"), mean(high=high), expected_to_fail=True, why=why)]


def _off(results: Results) -> list[float]:
    kept = ("2/(t + 20)", "t^-0.6", "t^-0.5", "constant", "levels out")
    return [float(np.mean(rows.column("off"))) for _, rows in part(results, "rates", schedule=kept).groups("seed")]


def _places() -> list[Claim]:
    practice, rates = f"{SLIDE}, practicalities", f"{SLIDE}, rates"
    far, root, near = ({"schedule": s} for s in ("1/t from afar", "1/sqrt t", "1/t from near"))
    return [
        Claim(
            "ball",
            "The ball around the optimum has the size of the exact formula, 0.0422, within 4%.",
            f"{practice}: known to converge to a ball (strongly convex case)",
            column("ball", "to_exact"),
            each(0.96, 1.04),
        ),
        Claim(
            "ball-first-order",
            "The formula with the noise at the optimum alone gives its size within 4%.",
            "the usual first-order formula",
            column("ball", "to_first_order"),
            each(0.96, 1.04),
            expected_to_fail=True,
            why="It is 9% too small: the gradient's noise grows with the distance.",
        ),
        Claim(
            "non-smooth-rate",
            "For |x|/2 with noise the gap falls as t^-1/2 with eta = t^-1/2.",
            f"{rates}: non-strongly convex O(1/sqrt t)",
            column("afar", "slope", **root),
            mean(-0.62, -0.38),
        ),
        Claim(
            "non-smooth-bound",
            "The weighted average is nowhere above (D^2 + G^2 sum eta^2) / (2 sum eta) by more than three standard errors.",
            "the theorem of the subgradient method",
            _to_bound,
            each(high=1.0),
        ),
        Claim(
            "afar-fails",
            "From afar, eta = 1/t ends with at least ten times the gap of t^-1/2.",
            "the sum of 1/t grows too slowly",
            ratio("afar", "gap", far, root),
            each(low=10),
        ),
        Claim(
            "afar-theorem",
            "Its gap is the one that the sum of the rates alone leaves, within 10%.",
            "E x_T >= x_0 - sum eta / 2",
            lambda r: [row["gap"] / row["least"] for row in part(r, "afar", **far)],
            each(0.9, 1.1),
        ),
        Claim(
            "near-works",
            "From near, 1/t is better than t^-1/2.",
            "so it is the way that is missing and not the rate",
            ratio("afar", "gap", root, near),
            each(low=1.0),
        ),
        Claim(
            "stall-1.5",
            "With alpha = 1.5 SGD stops on its way: excess 2.4 within 10% after 20,000 steps from x = 10.",
            f"{rates}: sum eta = infinity is needed",
            column("stall", "excess", alpha=1.5),
            each(2.16, 2.64),
        ),
        Claim("stall-2", "With alpha = 2 it stops at 6.5 within 10%.", rates, column("stall", "excess", alpha=2.0), each(5.85, 7.15)),
        Claim(
            "stall-1", "With alpha = 1 it arrives: 9e-4 within a third.", rates, column("stall", "excess", alpha=1.0), each(6e-4, 1.2e-3)
        ),
    ]


def _to_bound(results: Results) -> list[float]:
    return [float(np.max(rows.column("to_bound"))) for _, rows in part(results, "afar").groups("seed")]


def _curvature() -> list[Claim]:
    slide = "Goodfellow, slide on step sizes: g'Hg can fluctuate rapidly, especially if H has many distinct eigenvalues"

    def cv(distinct: int, noise: float) -> Callable[[Results], list[float]]:
        return column("curvature", "cv", distinct=distinct, noise=noise)

    def more(noise: float) -> Callable[[Results], list[float]]:
        return ratio("curvature", "cv", {"distinct": 10, "noise": noise}, {"distinct": 2, "noise": noise})

    numbers = [(5.0, 2, 0.11), (5.0, 10, 0.22), (5.0, 100, 0.21), (0.0, 2, 4.6), (0.0, 10, 2.1), (0.0, 100, 1.9)]
    found = [
        Claim(
            "curvature-noise",
            "Where noise dominates, g'Hg/g'g varies at least 1.5 times as much with 10 eigenvalues as with 2.",
            slide,
            more(5.0),
            each(low=1.5),
        ),
        Claim(
            "curvature-gd",
            "Without noise it varies more with 10 distinct eigenvalues than with 2.",
            slide,
            more(0.0),
            each(low=1.0),
            expected_to_fail=True,
            why="Few eigenvalues make the one turn into the flat directions a jump.",
        ),
        Claim(
            "curvature-weak-noise",
            "With little noise it varies more with 10 distinct eigenvalues than with 2.",
            slide,
            more(0.1),
            each(low=1.0),
            expected_to_fail=True,
            why="The turn from the start still dominates.",
        ),
    ]
    for noise, k, value in numbers:
        says = f"{'GD' if noise == 0 else 'SGD'} with {k} distinct eigenvalues: coefficient of variation {value:g} within 15%."
        name = f"curvature-{'gd' if noise == 0 else 'sgd'}-{k}"
        found.append(Claim(name, says, slide, cv(k, noise), each(0.85 * value, 1.15 * value)))
    return found


def _batches() -> list[Claim]:
    slide = f"{SLIDE}, mini-batch size"

    def examples(large: int, small: int) -> Callable[[Results], list[float]]:
        return ratio("network batches", "examples", {"batch": large}, {"batch": small})

    def scale(results: Results) -> float:
        """Where B_c lies between the noise scales at the start (0) and at the target (1), on a log axis."""
        row = part(results, "batches")[0]
        low, high, value = (math.log(row[k]) for k in ("scale_start", "scale_end", "critical"))
        return (value - low) / (high - low)

    return [
        Claim(
            "batch-long-enough",
            "On the problem for the law even the largest batch needs at least 50 steps.",
            "so that S_min is no rounding",
            one("batches", "smallest"),
            exactly(low=50),
        ),
        Claim(
            "batch-law",
            "S = S_min (1 + B_c/B) fits the fewest steps at every batch from 1 to 16,384 within 15%.",
            "McCandlish et al. 2018, and the trade of steps against examples",
            one("batches", "off"),
            exactly(high=0.15),
        ),
        Claim(
            "batch-scale",
            "B_c lies between the simple noise scale at the start and at the target.",
            "B_c is about the noise scale",
            scale,
            exactly(0.0, 1.0),
            why="The two ends are far apart: the noise scale grows as the gradient shrinks.",
        ),
        Claim(
            "batch-small-free",
            "Four examples at a time cost at most a quarter more examples than one at a time.",
            slide,
            one("batches", "examples_4"),
            exactly(high=1.25),
        ),
        Claim(
            "batch-large-wasted",
            "Beyond the critical batch the steps stay: twice the batch saves at most a tenth of them.",
            slide,
            one("batches", "halving"),
            exactly(high=1.1),
        ),
        Claim(
            "network-one-is-cheapest",
            "On a network, no batch of 16 or more takes fewer gradients than one at a time.",
            f"{slide}: k = 1 often most efficient in terms of backprop steps",
            _cheapest,
            mean(low=1.0),
        ),
        Claim(
            "network-steps-fall",
            "Sixteen at a time take at most a quarter of the steps of one at a time.",
            slide,
            ratio("network batches", "steps", {"batch": 16}, {"batch": 1}),
            mean(high=0.25),
        ),
        Claim(
            "network-saturates",
            "1,024 at a time take at least ten times the examples of one at a time.",
            slide,
            examples(1024, 1),
            each(low=10),
        ),
    ]


def _cheapest(results: Results) -> list[float]:
    table = part(results, "network batches")
    sizes = [b for b in table.values("batch") if b >= 16]
    return [
        min(table.where(seed=s, batch=b)[0]["examples"] for b in sizes) / table.where(seed=s, batch=1)[0]["examples"]
        for s in table.values("seed")
    ]


def claims(scale: Scale) -> list[Claim]:
    """All claims; the criteria of the two scales differ where longer runs come closer to the limit."""
    return [*_slopes(scale == "quick"), *_places(), *_curvature(), *_batches(), *data_claims()]
