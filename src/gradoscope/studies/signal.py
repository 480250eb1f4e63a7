"""F4: the signal of the composition's gradient, what an estimate of it can resolve, and theorem 3."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing

from gradoscope.claims import Claim, each, exactly, mean, median, share
from gradoscope.report import plots
from gradoscope.stacked import generator
from gradoscope.studies._signal import KEY, authors_ratio, direct, pool_of, population, second_network, theorem
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study
from gradoscope.theory.products import product_bound, product_model_variance

__all__ = ["STUDY", "SignalStudy"]

KS = (1, 2, 3, 4)
FLOAT32 = 2.0**-23  # relative spacing of float32
POSITIVE = (0.0, math.inf)


class SignalStudy(Study):
    """Signal-to-noise of the last layer of the image network, and the variance over directions of theorem 3."""

    name = "signal"
    title = "How little the gradient of a composition says about its parts"
    source = "Shalev-Shwartz, Shamir and Shammah 2017, section 3.2, figure 4 and theorem 3"
    about = (
        "A network reads k images of lines and is told only the product of their labels. How much of its gradient is about the label of "
        "a single image? The paper answers with a ratio: the squared norm of the mean of h(x) g(x), g the gradient of the prediction by "
        "the last layer of the image network, over its variance. At random starts it shows this ratio to collapse from k = 3 on.",
        "The direct estimate cannot show that. The squared norm of a sample mean is too large by the variance over n, so that a signal of "
        "zero is drawn at 1/n, whatever the precision. From k = 2 on, the published estimator returns just that floor. The unbiased "
        "estimate scatters around zero below the same floor: it says no more than that the signal is smaller than what n samples resolve.",
        "The population's value can be computed without drawing tuples, because the images of a tuple are independent: the law of a "
        "single image's score and label is enough. That computation shows what the paper meant: the ratio falls by four to five powers "
        "of ten with each further image, and is below float32's relative precision from k = 2 on, not only for k > 3.",
        "For k = 1 the two approaches have the same ratio by construction: the end-to-end gradient is the decomposed one times an almost "
        "constant factor. The decomposed ratio does not depend on k at all.",
        "Theorem 3 bounds the variance of the gradient over unit vectors u when the target is a product of k signs along u. A predictor "
        "whose variance has a closed form shows how loose the bound is: it falls like the k-th power of 1/d, the bound like the k/2-th.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        images, seeds, cost = (48_000, 5, 6.0) if scale == "quick" else (240_000, 20, 31.0)
        lines = Setting({"part": "lines", "images": images, "bins": 40}, seeds=seeds, block=1, cost=cost)
        dimensions, samples = ((8, 16, 32, 64), 20_480) if scale == "quick" else ((8, 16, 32, 64, 128), 102_400)
        theorem = [
            Setting({"part": "theorem", "k": k, "d": d, "samples": samples}, seeds=5, block=5, cost=samples * (d + 8) * k / 3e6)
            for k in (1, 2, 3)
            for d in dimensions
        ]
        return [lines, *theorem]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """See `Study.run`."""
        make = _lines if values["part"] == "lines" else theorem
        rows = []
        for i, seed in enumerate(seeds):
            rows += make(values, seed, context.device)
            context.tick((i + 1) / len(seeds))
        return Result(rows)

    def claims(self, scale: Scale) -> list[Claim]:
        """See `Study.claims`."""
        return [*_claims_of_lines(), *_claims_of_theorem(scale)]

    def figures(self, scale: Scale) -> list[Figure]:
        """See `Study.figures`."""
        return [
            Figure(
                "signal-to-noise",
                "Signal-to-noise ratio of the last layer's gradient at random starts; each dot is a start, markers are medians. Left: "
                "what the published estimator returns (squares) lies on its own floor of 1/n from k = 2 on; the unbiased estimate is drawn "
                "where it is positive, and the shaded region is what so many tuples cannot tell from zero. Right: the population's ratio. "
                "It falls by powers of ten with each image, while that of the decomposed gradient (line) stays.",
                _draw_ratio,
            ),
            Figure(
                "tuples-needed",
                "How many tuples a direct estimate would need to show the signal at three standard errors: a thousand for one image, more "
                "than all the training ever sees (20,000 steps of 200 tuples, dashed) from two on.",
                _draw_needed,
            ),
            Figure(
                "theorem-3",
                "Variance of the gradient over directions u, in units of G squared, against the dimension. Lines: closed form for the "
                "product predictor. Markers: a network of one hidden layer shared by the k inputs, measured (only where it exceeds three "
                "standard errors over seeds). Dashed: the theorem's bound with its constant set to 1.",
                _draw_theorem,
            ),
        ]


def _lines(values: Mapping[str, Any], seed: int, device: str) -> list[dict[str, Any]]:
    """One random start: every estimate for every k."""
    pool = pool_of(seed, values["images"], 28, device)
    alone = direct(pool, None)
    rows = [{"seed": seed, "approach": "decomposed", "k": 1, **_numbers(alone), "population": alone.snr}]
    for k in KS:
        net = second_network(seed, k, 28)
        found, single = direct(pool, net), direct(pool, net, torch.float32)
        bins = values["bins"] if k < 4 else values["bins"] // 2  # the grid has bins^k points
        random = generator(seed, KEY, 4, k)
        signal = population(pool, net, bins, 12, random)
        scatter = float(np.sqrt(np.mean([population(pool, net, bins, 4, random, shuffled=True) ** 2 for _ in range(4)])))
        rows.append(
            {
                "seed": seed,
                "approach": "end-to-end",
                "k": k,
                **_numbers(found),
                "float32": single.plain,
                "authors": authors_ratio(pool, net),
                "population": signal / found.noise,
                "population_null": scatter / found.noise,
                "ratio": found.snr / alone.snr,
                "needed": found.resolution * found.n * found.noise / max(signal, 3 * scatter),
            }
        )
    return rows


def _numbers(found: Any) -> dict[str, Any]:
    return {"n": found.n, "plain": found.plain, "unbiased": found.snr, "se": found.se, "resolution": found.resolution}


def _claims_of_lines() -> list[Claim]:
    def of(k: int, column: str, times: str | None = None) -> Any:
        def measure(results: Results) -> list[float]:
            rows = results.rows.where(part="lines", approach="end-to-end", k=k)
            return [row[column] * (row[times] if times else 1) for row in rows]

        return measure

    def unresolved(results: Results) -> list[float]:
        rows = results.rows.where(part="lines", approach="end-to-end", k=(2, 3, 4))
        return [abs(row["unbiased"]) / row["resolution"] for row in rows]

    def floor(results: Results) -> list[float]:
        rows = results.rows.where(part="lines", approach="end-to-end", k=(2, 3, 4))
        return [row["plain"] * row["n"] for row in rows]

    def rounding(results: Results) -> list[float]:
        rows = results.rows.where(part="lines", approach="end-to-end", k=(2, 3, 4))
        return [abs(row["float32"] / row["plain"] - 1) for row in rows]

    def fall(results: Results) -> list[float]:
        one, four = (of(k, "plain")(results) for k in (2, 4))
        return [b / a for a, b in zip(one, four, strict=True)]

    def resolved(results: Results) -> list[float]:
        rows = results.rows.where(part="lines", approach="end-to-end")
        return [abs(row["population"]) / (3 * row["population_null"]) for row in rows]

    paper, slides = "paper, figure 4 and its text", "slides, part 1"
    falls = [
        Claim(
            f"population-k{k}",
            f"With k = {k} images the population's signal-to-noise ratio is {text}.",
            f"{paper}: 'extremely small values' for k >= 3",
            of(k, "population"),
            median(high=high),
        )
        for k, high, text in ((2, 1e-6, "below one in a million"), (3, 1e-9, "below 1e-9"), (4, 1e-11, "below 1e-11"))
    ]
    return [
        Claim(
            "one-image-same",
            "For k = 1 end-to-end and decomposed gradients have the same ratio.",
            f"{paper}: the curves meet at k = 1",
            of(1, "ratio"),
            each(0.9, 1.1),
        ),
        Claim(
            "published-shows-fall",
            "The published (plain) estimator shows the ratio fall at least tenfold from k = 2 to k = 4.",
            f"{paper}: SNR against k falls",
            fall,
            median(high=0.1),
            expected_to_fail=True,
            why="It returns its own floor of 1/n for every k >= 2: a zero signal is drawn at 1/n.",
        ),
        Claim(
            "published-is-floor",
            "From k = 2 on the plain estimator, times n, is 0.3 to 2.5 on average: it is the floor 1/n.",
            f"{paper}: read as signal",
            floor,
            mean(0.3, 2.5),
            why="Its expectation is 1 where there is no signal; single values scatter, as the gradient's noise has few dimensions.",
        ),
        Claim(
            "unbiased-unresolved",
            "From k = 2 on, the unbiased estimate lies below what so many tuples resolve (three standard errors).",
            f"{paper}: 'the estimator's noise can completely mask the signal'",
            unresolved,
            share(low=0.9, among=(0.0, 1.0)),
        ),
        Claim(
            "precision-is-not-it",
            "Sums in float32 give the same estimate as sums in float64, within 1%: what masks the signal is sampling noise.",
            f"{paper}: 'and the additional noise introduced by a finite floating point representation'",
            rounding,
            each(high=0.01),
        ),
        Claim(
            "population-resolved",
            "The population's value exceeds three times what permuted labels give, for every k.",
            "not in the source: how the corrected figure is known to show signal",
            resolved,
            share(low=0.9, among=(1.0, math.inf)),
        ),
        *falls,
        Claim(
            "below-float32",
            "The ratio is below float32's relative precision (1.2e-7) at k = 3 already.",
            f"{slides}: 'SNR of end-to-end for k > 3 is below the precision of float32'",
            of(3, "population"),
            each(high=FLOAT32),
            why="True, and for k = 3 too; the source says k > 3.",
        ),
        Claim(
            "tuples-needed",
            "With k = 3, showing the signal directly takes more than a thousand times the tuples of the whole training.",
            "not in the source: 20,000 steps of 200 tuples are 4 million",
            of(3, "needed"),
            median(low=4e9),
        ),
        Claim(
            "decomposed-has-signal",
            "The decomposed gradient has a ratio above 1e-4 at every start.",
            f"{paper}: the decomposition curve stays",
            lambda results: results.rows.where(part="lines", approach="decomposed").column("unbiased"),
            each(low=1e-4),
        ),
    ]


def _claims_of_theorem(scale: Scale) -> list[Claim]:
    stated = "paper, theorem 3"
    dimensions = (8, 64) if scale == "quick" else (8, 128)

    def under(results: Results) -> list[float]:
        return [row["variance"] / row["bound"] for row in results.rows.where(part="theorem")]

    def slope(k: int) -> Any:
        def measure(results: Results) -> float:
            low, high = (results.rows.where(part="theorem", k=k, d=d).column("closed_form")[0] for d in dimensions)
            return math.log(high / low) / math.log(dimensions[1] / dimensions[0])

        return measure

    def network_slope(results: Results) -> list[float]:
        low, high = (results.rows.where(part="theorem", k=1, d=d).column("variance") for d in dimensions)
        return [math.log(b / a) / math.log(dimensions[1] / dimensions[0]) for a, b in zip(low, high, strict=True)]

    return [
        Claim("theorem-3", "The variance over directions is below the bound with constant 1.", stated, under, each(high=1.0)),
        *(
            Claim(
                f"theorem-3-rate-k{k}",
                f"For the product predictor with k = {k} the variance falls with d like d^-{k}, not like the bound's d^-{k / 2:g}.",
                f"{stated}: O(sqrt(k log d / d))^k",
                slope(k),
                exactly(-1.06 * k, -0.75 * k),
                why="Over the study's dimensions; the exponent approaches -k from above as d grows. The bound is right and loose.",
            )
            for k in (1, 2, 3)
        ),
        Claim(
            "theorem-3-network",
            "For a network with one input (k = 1) the variance falls about like 1/d.",
            stated,
            network_slope,
            median(-1.5, -0.5),
        ),
        Claim(
            "theorem-3-base",
            "At k = 4 and d = 784 the base of the bound is 0.95.",
            "paper, below theorem 3: 'the much smaller quantity k log(d)/sqrt(d)'",
            lambda results: product_bound(784, 4) ** 0.25,
            exactly(0.94, 0.96),
            expected_to_fail=True,
            why="The comment quotes k log(d) / sqrt(d) = 0.95; the theorem's own base is sqrt(k log(d) / d) = 0.18.",
        ),
    ]


def _by_k(results: Results, column: str) -> np.ndarray:
    return np.array([results.rows.where(part="lines", approach="end-to-end", k=k).column(column) for k in KS]).T


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _draw_ratio(results: Results) -> Drawing:
    figure, axes = plots.new(1, 2, width=9.5, height=4.0)
    left, right = axes[0]
    alone = np.array(results.rows.where(part="lines", approach="decomposed").column("unbiased"))
    limits = np.median(_by_k(results, "resolution"), axis=0)
    left.fill_between(KS, limits, 1e-9, color=plots.GRID, alpha=0.8, linewidth=0, label="not resolved")
    plots.points(left, KS, _by_k(results, "plain"), label="published estimator", color=plots.PALETTE[1], marker="s")
    plots.points(left, KS, _positive(_by_k(results, "unbiased")), label="unbiased, where > 0", color=plots.PALETTE[0], line=False)
    left.plot(KS, 1 / np.median(_by_k(results, "n"), axis=0), color=plots.MUTED, linestyle=":", label="1 / n")
    plots.points(right, KS, _positive(_by_k(results, "population")), label="end-to-end, population", color=plots.PALETTE[1], marker="s")
    right.plot(
        KS,
        3 * np.median(_by_k(results, "population_null"), axis=0),
        color=plots.MUTED,
        linestyle=":",
        label="resolution of the computation",
    )
    plots.reference(right, FLOAT32, "float32's precision")
    for ax in (left, right):
        ax.axhline(float(np.median(alone)), color=plots.PALETTE[2], label="decomposed")
        ax.set_yscale("log")
        ax.set_xticks(KS)
    left.set_ylim(bottom=min(1e-7, float(limits.min()) / 30))
    plots.label(left, x="images per tuple k", y="signal / noise", title="Direct estimates", legend=True)
    plots.label(right, x="images per tuple k", y="signal / noise", title="The population's value", legend=True)
    return figure


def _draw_needed(results: Results) -> Drawing:
    figure, axes = plots.new(1, 1, width=5.5, height=3.6)
    ax = axes[0, 0]
    plots.points(ax, KS, _by_k(results, "needed"), color=plots.PALETTE[1], marker="s")
    plots.reference(ax, 4e6, "tuples seen in training")
    ax.set_yscale("log")
    ax.set_xticks(KS)
    plots.label(ax, x="images per tuple k", y="tuples for three standard errors")
    return figure


def _draw_theorem(results: Results) -> Drawing:
    figure, axes = plots.new(1, 1, width=8.0, height=3.8)
    ax = axes[0, 0]
    for k, color, marker in zip((1, 2, 3), plots.PALETTE, plots.MARKERS, strict=False):
        rows = results.rows.where(part="theorem", k=k)
        dimensions = rows.values("d")
        measured = np.array([rows.where(d=d).column("variance") for d in dimensions])
        clear = (
            measured.mean(1) > 3 * measured.std(1, ddof=1) / math.sqrt(measured.shape[1]) if measured.shape[1] > 1 else measured.mean(1) > 0
        )
        ax.plot(dimensions, [product_model_variance(d, k) for d in dimensions], color=color, label=f"k = {k}, product predictor")
        ax.plot(dimensions, [product_bound(d, k) for d in dimensions], color=color, linestyle=(0, (4, 3)), linewidth=1)
        ax.plot(
            np.array(dimensions)[clear], measured.mean(1)[clear], linestyle="none", marker=marker, color=color, label=f"k = {k}, network"
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(dimensions, [str(d) for d in dimensions])
    beside = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    plots.label(ax, x="dimension d", y="variance over directions / G²", title="Theorem 3 (dashed: the bound)", legend=True, **beside)
    return figure


STUDY = SignalStudy()
