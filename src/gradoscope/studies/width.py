"""Width and the quality of minima: many starts, linear auto-encoders, and patterns that a plane separates."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gradoscope.claims import Claim, each, exactly
from gradoscope.report import plots
from gradoscope.studies._width import PARTS
from gradoscope.study import Context, Figure, Result, Results, Row, Scale, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["STUDY", "Width"]

WIDTHS: dict[Scale, tuple[int, ...]] = {"quick": (2, 4, 8, 16, 32), "paper": (2, 4, 8, 16, 32, 64)}
HIGH = 0.05  # a training loss above it is high: ln 10 is chance, wide networks end a hundred times lower
LECTURE, SLIDES = "ETH lecture 6, Challenges: Local Minima", "Montreal 2015 slides"


class Width(Study):
    """Final losses over many starts for each width; Baldi and Hornik's auto-encoder; Gori and Tesi's separable patterns."""

    name: ClassVar[str] = "width"
    title: ClassVar[str] = "Big models, good minima"
    source: ClassVar[str] = (
        "Goodfellow 2015, Montreal deep learning summer school; Perraudin and Hofmann 2018, Deep Learning lecture 6 (ETH); Choromanska et "
        "al. 2015; Baldi and Hornik 1989; Gori and Tesi 1992"
    )
    about: ClassVar[tuple[str, ...]] = (
        "The old myth: gradient descent ends in a local minimum, and its loss is high. What the slides set against it is that most minima "
        "are good, the more so for big models. Tanh networks with one hidden layer are trained on scikit-learn's digits from many starts, "
        "by full-batch gradient descent with momentum 0.9 at a step size of 0.5 for 500 steps. Mean and spread of the training loss fall "
        "with the width, and so does the spread of the validation loss. Runs that end high occur with two and, on all images, four hidden "
        "units only.",
        "Where a narrow run ends high it need not be a minimum: the gradient against what the curvature could supply, and the smallest "
        "eigenvalue of the Hessian, are measured for the first twenty runs of each narrow width, and drawn.",
        "Local minima do not always exist. A linear auto-encoder has a critical point for each set of principal components, with the "
        "loss that the others leave, and only the leading set is a minimum (Baldi and Hornik): on the digits all four sets of three out of "
        "the first four are computed, with the smallest eigenvalue of the Hessian there, and trainings from random starts end at the "
        "best. On patterns that a plane separates no network with sigmoid units gets stuck (Gori and Tesi), shown on the digits 0 and 1.",
        "Quick scale has fewer images and starts than the paper's.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Widths; the auto-encoder; the separable pair."""
        quick = scale == "quick"
        images, seeds, block = (400, 10, 10) if quick else (1347, 60, 20)
        common = {"part": "starts", "images": images, "lr": 0.5, "steps": 500, "classify": 4}
        found = [Setting({**common, "width": w}, seeds, block, (0.1 + 0.012 * w) * images / 1000) for w in WIDTHS[scale]]
        found.append(
            Setting({"part": "autoencoder", "width": 3, "lr": 0.02, "steps": 1500 if quick else 4000}, 5 if quick else 10, 10, 0.4)
        )
        pair = {"part": "separable", "width": 4, "images": 150 if quick else 270, "lr": 0.5, "steps": 1000}
        return [*found, Setting(pair, 20 if quick else 100, 20, 0.1)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One width, the auto-encoder, or the separable pair."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of widths, of the auto-encoder, of separable patterns."""
        return [*_widths(scale), *_autoencoder(), *_separable()]

    def figures(self, scale: Scale) -> list[Figure]:
        """Losses against the width, and where narrow runs end."""
        return [
            Figure(
                "width",
                "Training and validation loss after 500 full-batch steps, one dot per start, against the number of hidden units; digits of "
                "scikit-learn. The wider, the lower and the more alike: only narrow networks end high (dashed).",
                _draw_widths,
            ),
            Figure(
                "points",
                "Where narrow networks end: the gradient relative to what the curvature could supply (0 is a critical point) against "
                "the smallest eigenvalue of the Hessian over the largest. Dots on the far left would be minima or saddles; high losses "
                "without are runs that are still under way.",
                _draw_points,
            ),
            Figure(
                "autoencoder",
                "The linear auto-encoder of the digits with three units. Left: losses of its critical points, by the principal "
                "components that they use. Right: the smallest eigenvalue of the Hessian there; only the leading three are a minimum.",
                _draw_autoencoder,
            ),
        ]


def _summary(results: Results, scale: Scale, column: str, statistic: Callable[[list[float]], float]) -> list[float]:
    return [statistic(results.rows.where(part="starts", width=w).column(column)) for w in WIDTHS[scale]]


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1))


def _average(values: list[float]) -> float:
    return float(np.mean(values))


def _widths(scale: Scale) -> list[Claim]:
    stated = f"{SLIDES}, Do neural nets have saddle points?: most minima are good, and this is more true for big models"

    def falling(column: str, statistic: Callable[[list[float]], float]) -> Callable[[Results], float]:
        def measure(results: Results) -> float:
            found = _summary(results, scale, column, statistic)
            return max(b / a for a, b in pairwise(found))

        return measure

    def high(fits: Callable[[int], bool]) -> Callable[[Results], float]:
        def measure(results: Results) -> float:
            return float(np.mean([row["train"] > HIGH for row in results.rows.where(part="starts") if fits(row["width"])]))

        return measure

    def spread_ratio(results: Results) -> float:
        found = _summary(results, scale, "valid", _spread)
        return found[0] / found[-1]

    widths = ", ".join(map(str, WIDTHS[scale]))
    return [
        Claim(
            "mean-falls",
            f"The mean training loss falls with the width ({widths}): the largest ratio of neighbours.",
            stated,
            falling("train", _average),
            exactly(high=1.0),
        ),
        Claim("spread-falls", "So does its standard deviation over starts.", stated, falling("train", _spread), exactly(high=1.0)),
        Claim(
            "validation-spread-falls",
            "The validation loss of the narrowest network varies at least three times as much from start to start as that of the widest.",
            stated,
            spread_ratio,
            exactly(low=3.0),
            why="An earlier measurement of this project had a factor of 17 between widths of 2 and 64 over 60 starts.",
        ),
        Claim(
            "myth-wide",
            f"With 8 hidden units or more no start ends above {HIGH}: share of runs.",
            f"{SLIDES}, The old myth of SGD convergence: it is a local minimum, and J has a high value at this point",
            high(lambda width: width >= 8),
            exactly(high=0.0),
        ),
        Claim(
            "myth-narrow",
            f"With 2 hidden units nearly every start ends above {HIGH}: share of runs.",
            f"{SLIDES}, The old myth of SGD convergence",
            high(lambda width: width == 2),
            exactly(low=0.9),
        ),
    ]


def _autoencoder() -> list[Claim]:
    stated = f"{LECTURE}: do local minima even exist? Sometimes not (auto-encoder): Baldi and Hornik, 1989"

    def value(modes: str, name: str) -> Callable[[Results], float]:
        return lambda results: next(row[name] for row in results.rows.where(part="autoencoder", modes=modes))

    found = [
        Claim(
            f"autoencoder-{modes}",
            f"The critical point of the components {', '.join(modes)} has a loss of {loss}.",
            "earlier measurement of this project, scikit-learn's digits",
            value(modes, "loss"),
            exactly(loss - 1e-3, loss + 1e-3),
        )
        for modes, loss in (("123", 2.802), ("124", 2.961), ("134", 3.046), ("234", 3.106))
    ]

    def rows(results: Results) -> list[Row]:
        return [row for row in results.rows.where(part="autoencoder") if "modes" in row]

    return [
        *found,
        Claim(
            "autoencoder-critical",
            "All four are critical: the largest gradient norm.",
            stated,
            lambda results: max(row["gradient"] for row in rows(results)),
            exactly(high=1e-10),
        ),
        Claim(
            "autoencoder-minimum",
            "The first is a minimum: its smallest eigenvalue with the residual's margin.",
            stated,
            lambda results: [row["lowest"] + row["residual"] for row in rows(results) if row["modes"] == "123"],
            exactly(low=-1e-6),
        ),
        Claim(
            "autoencoder-saddles",
            "The others are strict saddles: the largest of their smallest eigenvalues, residual added.",
            stated,
            lambda results: max(row["lowest"] + row["residual"] for row in rows(results) if row["modes"] != "123"),
            exactly(high=-1e-3),
        ),
        Claim(
            "autoencoder-trained",
            "Trainings from random starts all end at the global minimum: relative distance of their loss.",
            stated,
            lambda results: [row["over_best"] for row in results.rows.where(part="autoencoder") if "over_best" in row],
            each(high=1e-3),
        ),
    ]


def _separable() -> list[Claim]:
    stated = f"{LECTURE}: are local minima a practical issue? Sometimes not: Gori and Tesi, 1992"
    return [
        Claim(
            "separable",
            "A plane separates these images of 0 and 1: answer of a linear programme.",
            "premise of Gori and Tesi",
            lambda results: [float(row["separable"]) for row in results.rows.where(part="separable")],
            each(low=1.0),
        ),
        Claim(
            "none-stuck",
            "No start gets stuck: the final loss (0.16 is that of always answering one half).",
            stated,
            lambda results: results.rows.where(part="separable").column("loss"),
            each(high=1e-3),
        ),
        Claim(
            "none-wrong",
            "And every image is classified correctly: share that is right.",
            stated,
            lambda results: results.rows.where(part="separable").column("right"),
            each(low=1.0),
        ),
    ]


def _draw_widths(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.0, height=3.5)
    table = results.rows.where(part="starts")
    widths = sorted(table.values("width"))
    for ax, column, text, color in (
        (axes[0, 0], "train", "training loss", plots.PALETTE[0]),
        (axes[0, 1], "valid", "validation loss", plots.PALETTE[1]),
    ):
        for w in widths:
            ys = np.array(table.where(width=w).column(column))
            ax.plot(np.full(len(ys), w), ys, linestyle="none", marker=".", markersize=5, color=color, alpha=0.45)
        ax.plot(widths, [float(np.median(table.where(width=w).column(column))) for w in widths], color=color, marker="o", markersize=5)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(widths, [str(w) for w in widths])
        plots.label(ax, x="hidden units", y=text)
    plots.reference(axes[0, 0], HIGH, "high")
    return figure


def _draw_points(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.4, height=3.6)
    ax = axes[0, 0]
    rows = [row for row in results.rows.where(part="starts") if "gamma" in row]
    for width, marker, color in zip(sorted({row["width"] for row in rows}), plots.MARKERS, plots.PALETTE, strict=False):
        mine = [row for row in rows if row["width"] == width]
        ax.plot(
            [r["gamma"] for r in mine],
            [r["lowest"] for r in mine],
            linestyle="none",
            marker=marker,
            color=color,
            alpha=0.7,
            label=f"{width} hidden units",
        )
    ax.set_xscale("log")
    plots.reference(ax, 0.0, "")
    plots.label(ax, x="relative gradient", y="smallest / largest eigenvalue", legend=True)
    return figure


def _draw_autoencoder(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=8.0, height=3.2)
    rows = [row for row in results.rows.where(part="autoencoder") if "modes" in row]
    names = [", ".join(row["modes"]) for row in rows]
    colors = [plots.PALETTE[2] if row["modes"] == "123" else plots.PALETTE[1] for row in rows]
    for ax, column, text in zip(axes[0], ("loss", "lowest"), ("loss", "smallest eigenvalue"), strict=True):
        ax.bar(names, [row[column] for row in rows], color=colors, width=0.6)
        plots.label(ax, x="principal components used", y=text)
    axes[0, 0].set_ylim(2.7, None)
    return figure


STUDY = Width()
