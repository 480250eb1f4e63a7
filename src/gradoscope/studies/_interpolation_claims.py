"""Claims of the study of interpolation: lines, paths beside walks, obstacles, and the factored model beside the LSTM."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from scipy import stats

from gradoscope.claims import Claim, each, mean, median, share
from gradoscope.study import Results, Scale, Table

__all__ = ["CLASSIFIERS", "FACTORED", "NETWORKS", "all_claims", "beside", "fall_in_time", "on_line", "views"]

CLASSIFIERS = ("maxout", "relu", "tanh", "sigmoid", "adversarial", "convnet")
NETWORKS = (*CLASSIFIERS, "lstm", "mp-dbm")
FACTORED = ("factored 5", "factored 10")  # those that start across the saddle
FALLING = tuple(name for name in NETWORKS if name != "sigmoid")
GRID = np.linspace(0, 1, 51)
SLIDES = "Montreal 2015 slides"
EARLIER = "earlier measurement of this project, scikit-learn's digits"
LESSON = f"{SLIDES}, Lessons from visualizations: for most problems there exists a linear subspace of monotonically decreasing values"
TINY = 1e-3  # of the fall: a rise that nobody would see

Measure = Callable[[Results], list[float]]


def all_claims(scale: Scale) -> list[Claim]:
    """Every claim; numbers that were measured on small digits are asked of these alone."""
    digits = _digits() if scale == "quick" else []
    return [*_falling(scale), *digits, *_paths(), *_obstacles(scale), *_alike(), *_different()]


def column(name: str, models: Iterable[str] = NETWORKS) -> Measure:
    """One value of every run of these models."""
    return lambda results: [float(v) for model in models for v in results.rows.where(model=model).column(name)]


def averages(name: str, models: Iterable[str] = NETWORKS) -> Measure:
    """The mean over seeds for each of these models."""
    return lambda results: [float(np.mean(results.rows.where(model=model).column(name))) for model in models]


def worst(name: str, pick: Callable[[Iterable[float]], float]) -> Measure:
    """For each seed the smallest or largest value among the networks."""

    def measure(results: Results) -> list[float]:
        table = results.rows.where(model=NETWORKS)
        return [pick(float(v) for v in rows.column(name)) for _, rows in table.groups("seed")]

    return measure


def _curve(rows: Table, x: str, y: str) -> np.ndarray:
    """A curve at 51 places from 0 to 1; where x goes back, what came first counts."""
    at, value = np.array(rows.column(x), dtype=float), np.array(rows.column(y), dtype=float)
    ahead = np.r_[True, at[1:] > np.maximum.accumulate(at)[:-1]]
    return np.asarray(np.interp(GRID, at[ahead], value[ahead]))


def _each_seed(results: Results, model: str, kind: str, x: str, y: str) -> list[np.ndarray]:
    return [_curve(rows, x, y) for _, rows in results.curves.where(model=model, kind=kind).groups("seed")]


def on_line(results: Results, model: str) -> list[np.ndarray]:
    """The loss on the line from start to end, for each seed; shape (51,)."""
    return _each_seed(results, model, "line", "alpha", "loss")


def beside(results: Results, model: str) -> list[np.ndarray]:
    """How far the path lies beside the line, by the position along it."""
    return _each_seed(results, model, "path", "alpha", "beta")


def fall_in_time(results: Results, model: str) -> list[np.ndarray]:
    """The loss along the path by the share of steps."""
    return _each_seed(results, model, "path", "share", "loss")


def views(results: Results, model: str) -> list[np.ndarray]:
    """The surfaces of projection and residual, for each seed; row and column are relative coordinates."""
    return [np.asarray(view, dtype=float) for unit in results.arrays("view_loss", model=model) for view in unit.numpy()]


def alike(curves: Callable[[Results, str], list[np.ndarray]], model: str, other: str = "lstm") -> Measure:
    """Spearman's correlation of what two models have, seed by seed."""

    def measure(results: Results) -> list[float]:
        pairs = zip(curves(results, model), curves(results, other), strict=False)
        return [float(stats.spearmanr(a.ravel(), b.ravel()).statistic) for a, b in pairs]

    return measure


def _monotone(scale: Scale, model: str) -> Claim:
    """That a line falls all the way: to a thousandth on the digits, within the error of the examples on large data.

    A solution that noise still moves does not lie at the lowest point of its line to a thousandth.
    """
    if scale == "quick":
        says = f"{model}: on the line from start to solution the loss never rises by more than {TINY} of its fall."
        return Claim(f"monotone-{model}", says, LESSON, column("rise_relative", (model,)), each(high=TINY))
    says = f"{model}: on the line from start to solution no rise is above zero on examples that did not choose it: share of seeds."
    return Claim(f"monotone-{model}", says, LESSON, column("rise_low", (model,)), share(low=0.8, among=(-np.inf, 0.0)))


def _falling(scale: Scale) -> list[Claim]:
    stated = LESSON
    return [
        *(_monotone(scale, model) for model in FALLING),
        Claim(
            "monotone-sigmoid",
            f"sigmoid: the same, a rise of at most {TINY} of the fall.",
            stated,
            column("rise_relative", ("sigmoid",)),
            each(high=TINY),
            expected_to_fail=True,
            why="The exception among the eight. Sigmoid units answer 1/2 to everything at first, so that small steps along the line act as "
            "steps of the next layer's biases, and these are right for the end of the line only.",
        ),
        Claim(
            "sigmoid-rises",
            "sigmoid: the rise is above zero on examples that did not choose it (lower end of a 95% bootstrap interval): share of seeds.",
            f"{EARLIER}: a rise of 2.7% of the fall, significant",
            column("rise_low", ("sigmoid",)),
            share(low=0.4, among=(1e-12, np.inf)),
            why="On a line without a rise one seed in forty would show one; two of five by chance have a probability of 0.6%.",
        ),
        Claim(
            "sigmoid-rises-at-start",
            f"sigmoid: the rise ends in the first {'quarter' if scale == 'quick' else 'half'} of the line: its position, or 0.",
            f"{EARLIER}: from 0 to 0.10",
            column("rise_to", ("sigmoid",)),
            each(high=0.25 if scale == "quick" else 0.5),
        ),
        Claim(
            "no-early-bump",
            "The other seven have no bump close to the start either: rise within the first twentieth of the line, of the fall.",
            "Goodfellow, Vinyals and Saxe 2015: a finer look at the start of the line",
            column("early", FALLING),
            each(high=TINY),
        ),
        Claim(
            "between-solutions",
            "Between two solutions there always is a barrier: the smallest of the eight networks, in nats above the higher end.",
            f"{EARLIER}: 0.19 to 2.39",
            worst("between", min),
            each(low=0.1),
        ),
        Claim(
            "not-convex",
            "No line is convex: the largest share of second differences that are not negative, over the eight networks.",
            "the lines look approximately convex",
            worst("convex", max),
            each(high=0.99),
        ),
    ]


def _digits() -> list[Claim]:
    """The shape of the lines, as it is on the digits from PyTorch's own start."""
    return [
        Claim(
            "convex-share",
            "That share lies between 55% and 97% for all networks but the MP-DBM: mean over seeds of each.",
            f"{EARLIER}: 67 to 94%",
            averages("convex", tuple(n for n in NETWORKS if n != "mp-dbm")),
            each(0.55, 0.97),
        ),
        Claim(
            "convex-share-mp-dbm",
            "The MP-DBM's line is an S: it bends down on the first half and up on the second, so that about half of the differences "
            "remain.",
            f"{EARLIER}: losses of 13.75, 12.94, 11.16, 9.08, 8.17 at the quarters",
            column("convex", ("mp-dbm",)),
            each(0.25, 0.75),
        ),
        Claim(
            "half-way",
            "Classifiers have lost most of it half way: the share of the fall that is left there, mean over seeds of each.",
            f"{EARLIER}: 0.06 to 0.23",
            averages("left_half_way", CLASSIFIERS),
            each(high=0.4),
        ),
        Claim(
            "half-way-mp-dbm",
            "The MP-DBM has about half left half way.",
            f"{EARLIER}: 0.54",
            column("left_half_way", ("mp-dbm",)),
            each(0.35, 0.75),
        ),
    ]


def _paths() -> list[Claim]:
    def over(low: str) -> Measure:
        def measure(results: Results) -> list[float]:
            return [row["residual"] / row[low] for row in results.rows.where(model=NETWORKS)]

        return measure

    def by_model(results: Results) -> list[float]:
        ratios = [results.rows.where(model=m) for m in NETWORKS]
        return [float(np.mean([row["residual"] / row["matched_median"] for row in rows])) for rows in ratios]

    walk = "random walk control: independent steps are orthogonal in many dimensions"
    return [
        Claim(
            "not-straight",
            "Paths are far from straight: the largest distance from the line, in its lengths; mean over seeds of each network.",
            f"{EARLIER}: 0.26 to 0.33",
            averages("residual"),
            each(0.18, 0.45),
        ),
        Claim(
            "semicircle",
            "Random walks with the same lengths of steps lie on the semicircle: mean over walks of the largest |beta^2 - alpha(1 - "
            "alpha)|.",
            f"theorem, in many dimensions; {EARLIER}: at most 0.01 in 3,700 to 31,000",
            averages("from_semicircle"),
            each(high=0.02),
        ),
        Claim(
            "walks-half",
            "Their largest distance from the line is half its length: median over walks, mean over seeds of each network.",
            f"theorem; {EARLIER}: 0.47 to 0.51",
            averages("plain_median"),
            each(0.46, 0.52),
        ),
        Claim(
            "inside-semicircle",
            "Every path lies inside: its largest distance over the 2.5% quantile of 200 such walks.",
            f"{SLIDES}, Random walk control experiment",
            over("plain_low"),
            each(high=1.0),
        ),
        Claim(
            "momentum-explains",
            "A walk whose steps are as alike as the path's own strays about as far: the path's distance over the walks' median, by "
            "network.",
            f"{walk}; settled here",
            by_model,
            each(0.6, 1.4),
            why="So most of what looks straight comes from steps that resemble the ones before, which momentum alone brings about.",
        ),
        Claim(
            "straighter-than-momentum",
            "Most paths are a little straighter even than that: below the 2.5% quantile of both controls; share of runs.",
            "settled here",
            over("matched_low"),
            share(low=0.5, among=(0.0, 1.0)),
        ),
        Claim(
            "walk-components",
            "The first principal component of a walk of equal steps takes 6/pi^2 = 61% of its variance.",
            "Antognini and Sohl-Dickstein 2018",
            averages("equal_pca1"),
            each(0.58, 0.64),
        ),
        Claim(
            "path-components",
            "Two components take more of every path than of walks with its steps: the difference.",
            "2-D subspace visualization",
            lambda results: [row["pca2"] - row["walk_pca2"] for row in results.rows.where(model=NETWORKS)],
            each(low=0.0),
        ),
    ]


def _obstacles(scale: Scale) -> list[Claim]:
    stated = f"{SLIDES}, Lessons from visualizations: for some problems, there are obstacles between this subspace and the SGD path"
    why = (
        "On the straight way from a point of the path to its foot on the line there would have to be something higher than both. At these "
        "sizes there is not: the line is a slope above the path, and not beyond a ridge."
    )

    def ridge(model: str, fails: bool) -> Claim:
        says = f"{model}: a ridge of at least 1% of the fall stands between the line and the path: its height, the largest of eight ways."
        measure = column("obstacle", (model,))
        return Claim(f"obstacle-{model}", says, stated, measure, mean(low=0.01), expected_to_fail=fails, why=why if fails else "")

    few = (
        "Ridges between line and path are rare in the seven networks whose lines fall: share of runs with one that other examples confirm."
    )
    return [
        ridge("mp-dbm", True),
        ridge("adversarial", True),
        *([] if scale == "quick" else [ridge("sigmoid", False)]),
        Claim("few-obstacles", few, "settled here", column("obstacle_significant", FALLING), share(high=0.2, among=(0.5, 1.0))),
    ]


def _alike() -> list[Claim]:
    stated = f"{SLIDES}, 3-D visualization, lstm and factored linear; factored linear models capture many qualitative aspects"
    found = []
    for model in FACTORED:
        tag = model.replace(" ", "-")
        found += [
            Claim(
                f"{tag}-like-lstm-line",
                f"{model} and LSTM fall alike on the line: rank correlation of the losses.",
                stated,
                alike(on_line, model),
                median(low=0.9),
            ),
            Claim(
                f"{tag}-like-lstm-residual",
                f"{model} and LSTM make the same detour: rank correlation of the distance from the line, by the position along it.",
                stated,
                alike(beside, model),
                median(low=0.9),
                expected_to_fail=True,
                why="The factored model turns at the saddle, a quarter of the way along. The LSTM's path bows evenly, as random walks do.",
            ),
            Claim(
                f"{tag}-like-lstm-view",
                f"{model} and LSTM have surfaces of projection and residual that bend alike: their rank correlation.",
                stated,
                alike(views, model),
                median(low=0.5),
                why="Alike in outline: both fall along the line and rise beside it, as those of the other networks do even more.",
            ),
            Claim(
                f"{tag}-plateau",
                f"{model} waits longer than the LSTM: the longest stretch with less than 5% of the fall, as a share of the steps to 90% of "
                "it; ratio of the two, by seed.",
                f"{SLIDES}, factored linear loss function: a plateau and a fall",
                partial(_over_lstm, column="plateau", models=(model,)),
                each(low=1.0),
            ),
        ]
    return [
        *found,
        Claim(
            "factored-detour",
            "Factored models that start across the saddle stray as far as the LSTM: their largest distance over its own, by seed.",
            stated,
            partial(_over_lstm, column="residual", models=FACTORED),
            each(0.5, 2.5),
        ),
        Claim(
            "walk-more-alike",
            "A random walk's bow resembles the LSTM's more than the factored models' do: difference of rank correlations, by seed.",
            "settled here; random walk control experiment",
            _walk_more_alike,
            each(low=0.0),
            why="So a bow beside the line says nothing of saddle points.",
        ),
    ]


def _walk_more_alike(results: Results) -> list[float]:
    walks = [_curve(rows, "alpha", "beta") for _, rows in results.curves.where(model="lstm", kind="walk").groups("seed")]
    lstm = beside(results, "lstm")
    own = [float(stats.spearmanr(a, b).statistic) for a, b in zip(walks, lstm, strict=True)]
    return [w - f for model in FACTORED for w, f in zip(own, alike(beside, model)(results), strict=False)]


def _over_lstm(results: Results, column: str, models: tuple[str, ...]) -> list[float]:
    """What runs of these models have over what the LSTM's run of the same seed has."""
    lstm = results.rows.where(model="lstm").column(column)
    return [a / b for model in models for a, b in zip(results.rows.where(model=model).column(column), lstm, strict=False)]


def _different() -> list[Claim]:
    def later(results: Results) -> list[float]:
        lstm = results.rows.where(model="lstm").column("half_at")
        return [a - b for m in FACTORED for a, b in zip(results.rows.where(model=m).column("half_at"), lstm, strict=False)]

    return [
        Claim(
            "ranks-tell-little",
            "The rank correlation of two falling curves is 1 whatever they are: ReLU and LSTM on the line.",
            "settled here",
            alike(on_line, "relu"),
            each(low=0.99),
            why="It cannot tell a plateau from a steep start. The next claim can.",
        ),
        Claim(
            "factored-falls-later",
            "On the line factored models wait: they have half of their fall behind them later than the LSTM; difference of positions.",
            "settled here: a plateau and a fall in the one, a fall and a plateau in the other",
            later,
            each(low=0.05),
        ),
        Claim(
            "same-side-straight",
            "Factored models that start on the solution's side of the saddle make no detour: largest distance from the line.",
            "settled here",
            column("residual", tuple(f"{m}, same side" for m in FACTORED)),
            each(high=0.15),
            why="From equal weights the path would be exactly straight.",
        ),
    ]
