"""Search strategies side by side: grid, random, genetic, model-based, analytical and gradient search, counted in evaluations."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gradoscope.claims import Claim, each, exactly, mean, median
from gradoscope.report import plots
from gradoscope.studies._strategies import METHODS
from gradoscope.studies._strategies_tasks import PARTS
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["STUDY", "Strategies"]

SLIDE = "Goodfellow 2015 (Montreal slides), 'Optimization'"
DIMENSIONS: dict[Scale, tuple[int, ...]] = {"quick": (2, 5, 20, 50), "paper": (2, 5, 10, 20, 50)}
COSINES, HIDDEN = (2, 5, 10), (8, 32)
BITS: dict[Scale, tuple[int, ...]] = {"quick": (6, 8, 10, 12), "paper": (6, 8, 10, 12, 14)}
COLORS = dict(zip(METHODS, plots.PALETTE, strict=True))
MARKS = dict(zip(METHODS, plots.MARKERS, strict=True))


class Strategies(Study):
    """The slide's list of ways to find the smallest J, on four kinds of problems."""

    name: ClassVar[str] = "strategies"
    title: ClassVar[str] = "Six ways to search: which of them pays for the dimension, and which for the landscape"
    source: ClassVar[str] = "Goodfellow 2015 (Montreal slides), slide 'Optimization'"
    about: ClassVar[tuple[str, ...]] = (
        "The slide lists exhaustive search, random search (genetic algorithms), an analytical solution, model-based search (Bayesian "
        "optimisation) and, as what neural networks usually use, gradient-based search. Here all of them get the same problems and "
        "the same count: evaluations of J. A gradient costs three, one forward pass and the two of a backward pass; each trial of a "
        "line search costs one. The model-based search gets a few dozen evaluations only, since its own work grows with their cube.",
        "On quadratics of equal condition number the gradient needs some tens of evaluations in any dimension. A formula needs "
        "(d + 1)(d + 2)/2 values, and is exact. Grids and random points pay exponentially: the share of a cube in which J is small is "
        "the volume of an ellipsoid, known in closed form, and at d = 50 it is less than 1e-30. A genetic algorithm, which "
        "learns where to look, pays for the dimension polynomially. The model-based search is the best of all at d = 2 with few "
        "evaluations, and has nothing to say at d = 20.",
        "A cosine learnt from examples turns that round: its loss has two narrow wells on a plateau, and a gradient knows nothing of "
        "them unless it starts inside. At d = 2 every strategy that looks everywhere finds a well; at d = 10 none does. So the strength "
        "of the gradient is not the gradient alone but a landscape that leads somewhere.",
        "A parity of d bits has no landscape at all, and a formula all the same: Gaussian elimination on the examples finds it at once. "
        "Masks tried in turn need (2^d + 1)/2, at random about twice as many, and crossing them gains nothing. Descent on a mask of real "
        "numbers between 0 and 1 sees masks in the neighbourhood as well, which is worth a factor, but its cost grows exponentially too.",
        "On a small tanh network on two moons the gradient is far ahead of points at random, of grids and of the Gaussian process. The "
        "genetic algorithm comes near it with 33 numbers, and falls behind with 129. Drawing the first layer at random and solving for "
        "the last one, the part that has a formula, is as good as training here.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """The same problems at both scales; more evaluations, dimensions and seeds at the paper's."""
        quick = scale == "quick"
        seeds, budget, model = (5, 2000, 60) if quick else (10, 10_000, 120)
        common = {"budget": budget, "model_budget": model}
        unit = 1.0 if quick else 4.0
        found = [
            Setting({"part": "quadratic", "d": d, "condition": 10.0, **common}, seeds, 5, unit * (0.2 + 0.01 * d))
            for d in DIMENSIONS[scale]
        ]
        found += [Setting({"part": "cosine", "d": d, "r": 4.0, "rows": 500, **common}, seeds, 5, 0.5 * unit) for d in COSINES]
        found += [Setting({"part": "moons", "hidden": h, **common}, seeds, 5, unit * h / 10) for h in HIDDEN]
        return [*found, *(Setting({"part": "parity", "d": d, "rows": 200}, seeds, 5, 2e-5 * 2**d) for d in BITS[scale])]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """All strategies on one problem."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """By theory where there is one: volumes of ellipsoids, spacings of grids, expected trials."""
        return [*_quadratics(), *_cosines(), *_moons(), *_parities(scale)]

    def figures(self, scale: Scale) -> list[Figure]:
        """The lowest loss against evaluations, against the dimension, and parities."""
        return [
            Figure(
                "evaluations",
                "The lowest loss found so far against evaluations (a gradient costs three), on quadratics of condition number 10 (top), "
                "the cosine of examples (middle) and networks on two moons (bottom); line: median, shade: all seeds. The gradient's "
                "curve on quadratics does not care for the dimension; on the cosine it depends on luck, and at d = 10 all fail.",
                _draw_evaluations,
            ),
            Figure(
                "dimension",
                "Quadratics: the lowest loss at the end of the budget (left), and evaluations until the loss is a hundredth of the mean "
                "over the cube (right; dots only where every seed got there), against the dimension. Dashed: what random points need on "
                "average, from the volume of the ellipsoid.",
                _draw_dimension,
            ),
            Figure(
                "parity",
                "Evaluations until the parity of d/2 of d bits is found, from 200 examples; dots are seeds, lines medians. Dashed: "
                "(2^d + 1)/2, the mean of masks tried in turn. Elimination needs no search at all.",
                _draw_parity,
            ),
        ]


def _table(results: Results, method: str, **where: Any) -> list[Any]:
    return list(results.rows.where(method=method, **where))


def _column(name: str, method: str, **where: Any) -> Callable[[Results], list[float]]:
    return lambda results: [row[name] for row in _table(results, method, **where)]


def _over(name: str, above: str, below: str, **where: Any) -> Callable[[Results], list[float]]:
    """The ratio of two methods' values, seed by seed."""

    def measure(results: Results) -> list[float]:
        pairs = zip(_table(results, above, **where), _table(results, below, **where), strict=True)
        return [a[name] / max(b[name], 1e-300) for a, b in pairs]

    return measure


def _quadratics() -> list[Claim]:
    where = {"part": "quadratic"}

    def independent(results: Results) -> list[float]:
        return [a / b for a, b in zip(*(_column("reached", "gradient", d=d, **where)(results) for d in (50, 2)), strict=True)]

    def counted(results: Results) -> float:
        rows = _table(results, "analytical", **where)
        return float(max(abs(row["used"] - (row["d"] + 1) * (row["d"] + 2) / 2 - 1) for row in rows))

    def luck(results: Results) -> list[float]:
        rows = results.rows.where(method="random", part="quadratic", d=[2, 5])
        return [float(np.mean(one.column("luck"))) for _, one in rows.groups("seed")]

    says_one = "At d = 20 and 50 a grid of so many points is one point, its centre: J there over the mean over the cube."
    return [
        Claim(
            "analytical-exact",
            "A quadratic's minimum is exact from its values by one linear system.",
            f"{SLIDE}: analytical solution",
            _column("best", "analytical", **where),
            each(high=1e-20),
        ),
        Claim(
            "analytical-count",
            "It takes (d + 1)(d + 2)/2 values, and one to look at the result: the largest deviation from that.",
            "theory",
            counted,
            exactly(0, 0),
        ),
        Claim(
            "gradient-any-dimension",
            "To a hundredth of the mean loss the gradient takes at most four times the evaluations at d = 50 that it takes at d = 2.",
            "theory: its rate depends on the condition number and not on d",
            independent,
            mean(high=4.0),
        ),
        Claim(
            "grid-one-point", says_one, "theory: (1/12) / (1/12 + 1/3) = 0.2", _column("best", "grid", d=[20, 50], **where), mean(0.1, 0.3)
        ),
        Claim(
            "random-luck",
            "The best of n random points is where n times the volume with lower J is of order one (exponential, mean one), d = 2 and 5.",
            "theory: the volume of an ellipsoid",
            luck,
            mean(0.3, 2.2),
        ),
        Claim(
            "random-hopeless",
            "At d = 50 less than 1e-30 of the cube has a hundredth of the mean loss.",
            "the same volume",
            _column("blind", "random", d=50, **where),
            each(high=1e-30),
        ),
        Claim(
            "genetic-before-random",
            "At d = 20 a genetic algorithm ends at half the loss of random points or less.",
            f"{SLIDE}: random search (genetic algorithms)",
            _over("best", "random", "genetic", d=20, **where),
            each(low=2.0),
        ),
        Claim(
            "gradient-before-genetic",
            "And the gradient at a tenth of the genetic algorithm's or less, d = 20 and 50.",
            f"{SLIDE}: neural nets usually use gradient-based search",
            _over("best", "genetic", "gradient", d=[20, 50], **where),
            each(low=10.0),
        ),
        Claim(
            "model-few-dimensions",
            "At d = 2, after the few evaluations that model-based search gets, it is at least ten times lower than random points.",
            f"{SLIDE}: model-based search (e.g. Bayesian optimization)",
            _over("at_model", "random", "model-based", d=2, **where),
            each(low=10.0),
        ),
        Claim(
            "model-many-dimensions",
            "At d = 20 the gradient is at least ten times lower than it, after as many evaluations.",
            SLIDE,
            _over("at_model", "model-based", "gradient", d=20, **where),
            each(low=10.0),
        ),
    ]


def _cosines() -> list[Claim]:
    def nobody(results: Results) -> list[float]:
        return [min(one.column("best")) for _, one in results.rows.where(part="cosine", d=10).groups("seed")]

    stated = f"{SLIDE}; Shalev-Shwartz, Shamir and Shammah 2017, linear-periodic functions"
    return [
        Claim(
            "cosine-grid",
            "The cosine at d = 2: a grid finds a well, J <= 0.05 on the plateau's scale of 1.",
            "theory: 44 points a side leave at most 0.16 to the nearest, and J is below 0.03 there",
            _column("best", "grid", part="cosine", d=2),
            each(high=0.05),
        ),
        Claim(
            "cosine-stuck",
            "At d = 5 and 10 at least four in five descents end above half the plateau.",
            stated,
            _column("stuck", "gradient", part="cosine", d=[5, 10]),
            mean(low=0.8),
        ),
        Claim("cosine-nobody", "At d = 10 no strategy gets below half the plateau.", stated, nobody, each(low=0.5)),
    ]


def _moons() -> list[Claim]:
    small, large = ({"part": "moons", "hidden": h} for h in HIDDEN)
    stated = f"{SLIDE}: neural nets usually use gradient-based search"

    def logarithms(results: Results) -> list[float]:
        return [math.log(v) for v in _over("best", "genetic", "gradient", **small)(results)]

    return [
        Claim(
            "network-gradient-random",
            "A network on two moons, 33 numbers: random points end at five times the gradient's loss or more.",
            stated,
            _over("best", "random", "gradient", **small),
            each(low=5.0),
        ),
        Claim(
            "network-gradient-genetic",
            "With 129 numbers the genetic algorithm ends at twice the gradient's loss or more.",
            stated,
            _over("best", "genetic", "gradient", **large),
            each(low=2.0),
        ),
        Claim(
            "network-formula",
            "Random first layers with the last one by least squares end at a fifth of the loss of random points or less (33 numbers).",
            f"{SLIDE}: analytical solution",
            _over("best", "random", "analytical", **small),
            each(low=5.0),
        ),
        Claim(
            "network-genetic-small",
            "With 33 numbers the gradient is ahead of the genetic algorithm on average: mean log ratio of losses.",
            stated,
            logarithms,
            mean(low=0.0),
        ),
    ]


def _parities(scale: Scale) -> list[Claim]:
    low, high = BITS[scale][0], BITS[scale][-1]
    stated = "Shalev-Shwartz, Shamir and Shammah 2017: parities have no useful gradient"

    def growth(results: Results) -> float:
        first, last = (np.median(_column("reached", "gradient", part="parity", d=d)(results)) for d in (low, high))
        return float(math.log2(last / first) / (high - low)) if np.isfinite(last) else 1.0

    return [
        Claim(
            "parity-elimination",
            "Elimination on 200 examples finds every parity at once.",
            f"{SLIDE}: analytical solution",
            _column("reached", "analytical", part="parity"),
            each(high=1.0),
        ),
        Claim(
            "parity-exhaustive",
            "Masks tried in turn need (2^d + 1)/2 on average: their number over that.",
            f"{SLIDE}: exhaustive search",
            _column("of_expected", "grid", part="parity"),
            mean(0.5, 1.5),
        ),
        Claim(
            "parity-genetic",
            "Crossing masks gains nothing: at least 0.3 of that.",
            f"{SLIDE}: genetic algorithms",
            _column("of_expected", "genetic", part="parity"),
            median(low=0.3),
        ),
        Claim(
            "parity-gradient",
            f"Descent on relaxed masks pays exponentially as well: bits that its cost grows by per bit of d, from {low} to {high}.",
            stated,
            growth,
            exactly(low=0.5),
            why="It sees masks in the neighbourhood of its own, which is a factor; where half of the seeds fail the value is set to 1.",
        ),
    ]


def _draw_evaluations(results: Results) -> "Drawing":
    columns = (
        [("quadratic", "d", d) for d in (2, 20, 50)] + [("cosine", "d", d) for d in COSINES] + [("moons", "hidden", h) for h in HIDDEN]
    )
    figure, axes = plots.new(3, 3, width=11, height=8.4)
    for ax, (part, key, value) in zip(axes.flat, columns, strict=False):
        for method in METHODS:
            chosen = results.curves.where(part=part, method=method, **{key: value})
            curves = [one for _, one in chosen.groups("seed")]
            if not curves:
                continue
            marks = sorted({m for one in curves for m in one.column("evaluations")})
            known = [dict(zip(one.column("evaluations"), one.column("best"), strict=True)) for one in curves]
            ys = np.array([[k.get(m, np.nan) for m in marks] for k in known])
            plots.band(ax, marks, np.maximum(ys, 1e-12), label=method, color=COLORS[method])
        ax.set_xscale("log")
        ax.set_yscale("log")
        if part == "quadratic":
            ax.set_ylim(1e-8, 10)
        text = {"quadratic": f"quadratic, d = {value}", "cosine": f"cosine, d = {value}"}.get(part, f"two moons, {4 * value + 1} numbers")
        plots.label(ax, x="evaluations" if part == "moons" else "", y="lowest loss" if key == "hidden" or value == 2 else "", title=text)
    axes[2, 2].axis("off")
    handles, names = axes[0, 0].get_legend_handles_labels()
    axes[2, 2].legend(handles, names, loc="center", frameon=False)
    return figure


def _draw_dimension(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.4, height=3.6)
    left, right = axes[0]
    table = results.rows.where(part="quadratic")
    dimensions = sorted(table.values("d"))
    for method in METHODS:
        chosen = [table.where(method=method, d=d) for d in dimensions]
        best = np.maximum(np.array([one.column("best") for one in chosen]).T, 1e-12)
        plots.points(left, dimensions, best, label=method, color=COLORS[method], marker=MARKS[method])
        reached = np.array([one.column("reached") for one in chosen]).T
        reached = np.where(np.isfinite(reached).all(0), reached, np.nan)
        if np.isfinite(reached).any():
            plots.points(right, dimensions, reached, color=COLORS[method], marker=MARKS[method])
    blind = [1 / float(np.median(table.where(method="random", d=d).column("blind"))) for d in dimensions]
    right.plot(dimensions, blind, color=plots.MUTED, linestyle=(0, (4, 3)), label="random points, by volume")
    right.set_ylim(1, 1e8)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(dimensions, [str(d) for d in dimensions])
        ax.minorticks_off()
    plots.label(left, x="dimension d", y="lowest loss at the end", legend=True, ncols=2)
    plots.label(right, x="dimension d", y="evaluations to 1% of the mean", legend=True)
    return figure


def _draw_parity(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.6, height=3.8)
    ax, table = axes[0, 0], results.rows.where(part="parity")
    bits = sorted(table.values("d"))
    for method in table.values("method"):
        ys = np.array([table.where(method=method, d=d).column("reached") for d in bits]).T
        name = {"grid": "masks in turn", "random": "at random", "analytical": "elimination", "gradient": "gradient on relaxed masks"}
        text = name.get(method, method)
        plots.points(ax, bits, np.where(np.isfinite(ys), ys, np.nan), label=text, color=COLORS[method], marker=MARKS[method])
    ax.plot(bits, [(2**d + 1) / 2 for d in bits], color=plots.MUTED, linestyle=(0, (4, 3)))
    ax.set_yscale("log")
    plots.label(ax, x="bits d", y="evaluations", legend=True)
    return figure


STUDY = Strategies()
