"""What the sources state about flat activations, and what is known to be otherwise."""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from gradoscope.claims import Claim, each, exactly, mean, median, share
from gradoscope.study import Results, Scale, Table

__all__ = ["ABOUT", "claims"]

ABOUT = (
    "The task is to learn y = u(<v*, x> + b*), where u rounds down to one of about fifty known levels. The derivative of u is zero "
    "wherever it exists, so gradient descent on the squared loss through u does nothing at all. The sources compare four ways out: "
    "(a) a smooth u~ with a sigmoid for each step, (b) a deep ReLU network that knows nothing of u, (c) a network that names the "
    "level, and (d) forward-only: the update E[(u(<w, x>) - y) x], in which the identity stands in for u' on the way back.",
    "What one sees: (d) learns in every seed, from every start, with the fewest multiplications; (c) comes within a percent of it, and "
    "errs beside the thresholds; (b) is good but not exact; (a) either lands close to the target or does not move. The sources say that "
    "(a) depends on how the bias is initialised, and so it does: with the inputs of the code (standard deviation 0.01) the sum <w, x> "
    "spans 0.1 while the steps beside most biases are almost 1 apart, so that the start decides on which flat piece the training stays.",
    "Where a smooth training has stopped, there is no minimum and no saddle point. The gradient is a millionth of what the identity "
    "would let through, both ends of the Hessian are as good as zero, a step along the direction of lowest curvature gains nothing, and "
    "the loss falls all along the straight way to the target without ever rising above where it stands. It is a plateau: the loss has "
    "a slope there, too small to move anything, and carries no sign that anything better exists.",
    "Where the sources need care. The text's inputs are N(0, I); the code's are N(0, I)/10,000. With the text's, read literally, the sum "
    "crosses many steps and (a) does not fail. The code has 52 levels where the text has 55 or 56, of which only six ever occur, because "
    "they lie around b* and the sum reaches 0.1; always naming the most frequent one is right in almost half of all cases. The text "
    "has one slope and one centre rule for all sigmoids; the code scales each with its step. Multi-class has 55 outputs in "
    "the text and 100 in the code; here it has one per level.",
    "The bound O(L^2/eps^2) is for an L-Lipschitz u, which the staircase is not. With ramps of slope L in place of the steps it holds "
    "for GLMtron, which knows u, and for Isotron, which does not, with eps the root mean squared error; both need far fewer iterations. "
    "That (d) works on the staircase itself is more than the theorem says.",
)

SECTION = "extended version, section 5"
SLIDES = "slides, part 2"


def _rows(results: Results, approach: str, std: float = 0.01, sharpness: float = 0.0) -> Table:
    return results.rows.where(part="train", approach=approach, std=std, sharpness=sharpness)


def _column(approach: str, name: str, std: float = 0.01) -> Callable[[Results], list[float]]:
    return lambda results: [float(v) for v in _rows(results, approach, std).column(name)]


def _failed(results: Results, name: str) -> list[float]:
    """A number of each smooth training that failed; the source's own word for it is an accuracy below 0.1."""
    return [float(row[name]) for row in _rows(results, "smooth") if row["accuracy"] < 0.1]


def _pairs(results: Results, other: str, std: float = 0.01) -> list[tuple[dict[str, float], dict[str, float]]]:
    """(forward-only, another approach) of each seed that both have."""
    own = {row["seed"]: row for row in _rows(results, "forward-only", std)}
    return [(own[row["seed"]], row) for row in _rows(results, other, std) if row["seed"] in own]


def _others(results: Results) -> list[str]:
    return [a for a in ("smooth", "end-to-end", "multi-class") if len(_rows(results, a))]


def _cost_ratio(results: Results) -> list[float]:
    """Multiplications of forward-only to loss 1e-3 over those of the cheapest other approach; 0 where no other gets there."""
    own = _rows(results, "forward-only")
    found = []
    for row in own:
        rivals = [pair["cost_to_goal"] for a in _others(results) for _, pair in _pairs(results, a) if pair["seed"] == row["seed"]]
        cheapest = min((c for c in rivals if c is not None), default=math.inf)
        found.append(math.inf if row["cost_to_goal"] is None else row["cost_to_goal"] / cheapest)
    return found


def _test_ratio(results: Results) -> float:
    own = _rows(results, "forward-only")[0]["multiplications_predict"]
    return float(own / min(_rows(results, a)[0]["multiplications_predict"] for a in _others(results)))


def _margin(results: Results, others: tuple[str, ...], std: float = 0.01) -> list[float]:
    """Accuracy of forward-only less the best one of the others, by seed."""
    seeds = [set(_rows(results, a, std).column("seed")) for a in ("forward-only", *others)]
    found = []
    for seed in sorted(set.intersection(*seeds)):
        by = {a: _rows(results, a, std).where(seed=seed)[0]["accuracy"] for a in ("forward-only", *others)}
        found.append(by["forward-only"] - max(by[a] for a in others))
    return found


def _rank_correlation(rows: Table) -> float:
    gaps, errors = np.abs(rows.column("gap")), rows.column("hard")
    return float(stats.spearmanr(gaps, errors).statistic)


def _sweep(results: Results, approach: str) -> Table:
    return results.rows.where(part="bias", approach=approach)


def _extreme(results: Results, approach: str, inside: Callable[[float], bool], which: Callable[[list[float]], float]) -> list[float]:
    """The largest or smallest accuracy over the starts of the bias that count, by seed."""
    table = _sweep(results, approach)
    return [which([row["accuracy"] for row in rows if inside(row["gap"])]) for _, rows in table.groups("seed")]


def _growth(results: Results) -> list[float]:
    """The exponent of L in GLMtron's iterations to a root mean squared error of 0.2, from the smallest L to the largest."""
    table = results.rows.where(part="bound", method="glmtron")
    low, high = min(table.values("lipschitz")), max(table.values("lipschitz"))
    found = []
    for seed in table.values("seed"):
        a, b = (table.where(seed=seed, lipschitz=lip)[0]["steps_to_0.2"] for lip in (low, high))
        found.append(math.inf if a is None or b is None else math.log(b / a) / math.log(high / low))
    return found


def _bound(method: str, name: str) -> Callable[[Results], list[float]]:
    return lambda results: [float(v) for v in results.rows.where(part="bound", method=method).column(name)]


def _forward_only() -> list[Claim]:
    return [
        Claim(
            "forward-only-loss",
            "Forward-only reaches a squared loss of 1e-3 within 5,000 steps.",
            f"{SLIDES}: best results after 5,000 iterations; code: last batch loss 0.00004",
            _column("forward-only", "squared"),
            each(high=1e-3),
        ),
        Claim(
            "forward-only-accuracy",
            "Forward-only names the exact level of at least 98.5% of all inputs.",
            f"{SLIDES}: best results",
            _column("forward-only", "accuracy"),
            each(low=0.985),
        ),
        Claim(
            "forward-only-best",
            "Forward-only is more often exactly right than the best of the other three, seed by seed.",
            f"{SLIDES}: best results",
            lambda r: _margin(r, tuple(_others(r))),
            mean(low=0.0),
            why="The difference in accuracy. Multi-class comes within a percent, so look at the interval.",
        ),
        Claim(
            "forward-only-cheapest-training",
            "Forward-only takes the fewest multiplications until its loss is 1e-3.",
            f"{SLIDES}: smallest train time",
            _cost_ratio,
            each(high=1.0),
            why="The ratio to the cheapest other approach that gets there, 0 where none does. Multi-class needs fewer steps, each of "
            "which costs a few hundred times as much.",
        ),
        Claim(
            "forward-only-cheapest-test",
            "A prediction of forward-only takes the fewest multiplications.",
            f"{SLIDES}: smallest test time",
            _test_ratio,
            exactly(high=1.0),
            why="100 against 253 for (a) with u~; whoever rounds the sum of (a) down instead has a tie.",
        ),
        Claim(
            "text-forward-only",
            "With x ~ N(0, I) forward-only names the exact level of at least 97% of all inputs.",
            f"{SECTION}: the update works; the text's inputs read literally",
            _column("forward-only", "accuracy", 1.0),
            each(low=0.97),
        ),
        Claim(
            "text-forward-only-loss",
            "With x ~ N(0, I) forward-only reaches a squared loss of 1e-3.",
            f"{SLIDES}: best results; the code's loss, asked for at the text's inputs",
            _column("forward-only", "squared", 1.0),
            each(high=1e-3),
            expected_to_fail=True,
            why="Most steps are 5 high there, so that one wrong level in a thousand already costs 0.025; the accuracy is the fair measure.",
        ),
    ]


def _smooth(paper: bool) -> list[Claim]:
    found = [
        Claim(
            "smooth-fails",
            "The smooth approximation fails (accuracy below 0.1) in at least a quarter of the seeds.",
            f"{SLIDES}: often completely fails; {SECTION}: sensitive to the initialisation of the bias",
            _column("smooth", "accuracy"),
            share(low=0.25, among=(-math.inf, 0.1)),
        ),
        Claim(
            "smooth-text-fails",
            "With x ~ N(0, I), as the text has it, the smooth approximation fails in at least a quarter of the seeds.",
            f"{SLIDES}: often completely fails; the text's inputs read literally",
            _column("smooth", "accuracy", 1.0),
            share(low=0.25, among=(-math.inf, 0.1)),
            expected_to_fail=True,
            why="The sum has a standard deviation of 10 and crosses dozens of steps, so the average gradient has a direction.",
        ),
        Claim(
            "smooth-text-learns",
            "With x ~ N(0, I) the smooth approximation learns, with an accuracy of 0.80 to 0.93.",
            f"corrects {SLIDES}: often completely fails",
            _column("smooth", "accuracy", 1.0),
            each(low=0.80, high=0.93),
            why="Only approximate, as the sources say: it lies between the levels near the thresholds.",
        ),
        Claim(
            "bias-explains",
            "Over the seeds, the final error rises with |b_0 - b*| (rank correlation).",
            f"{SECTION}: sensitive to the initialisation of the bias",
            lambda r: _rank_correlation(_rows(r, "smooth")),
            exactly(low=0.5),
        ),
        Claim(
            "bias-decides",
            "From the same weights and batches, the error rises with |b_0 - b*| over ten starts of the bias (rank correlation by seed).",
            f"{SECTION}: sensitive to the initialisation of the bias",
            lambda r: [_rank_correlation(rows) for _, rows in _sweep(r, "smooth").groups("seed")],
            each(low=0.5),
        ),
        Claim(
            "bias-above-stuck",
            "Every start 0.3 or more above b* stays on its flat piece: the best accuracy among them is below 0.1.",
            f"{SECTION}: sensitive to the initialisation of the bias",
            lambda r: _extreme(r, "smooth", lambda gap: gap >= 0.3, max),
            each(high=0.1),
            why="The next steps below are the low ones at 0.1 to 0.175, whose sigmoids are 0.0005 wide in the code.",
        ),
        Claim(
            "bias-near-learns",
            "Every start within 0.1 of b* learns, to an accuracy of at least 0.8.",
            f"{SLIDES}: sometimes works",
            lambda r: _extreme(r, "smooth", lambda gap: abs(gap) <= 0.1, min),
            each(low=0.8),
        ),
        Claim(
            "bias-forward-only",
            "Forward-only learns from each of these starts, to an accuracy of at least 0.9.",
            f"{SLIDES}: local search works, but not with the gradient",
            lambda r: _extreme(r, "forward-only", lambda gap: True, min),
            each(low=0.9),
        ),
    ]
    if paper:
        found.append(
            Claim(
                "smooth-one-slope-fails",
                "With the text's sigmoids (one slope, here 50, centred at the thresholds) it fails in at least a quarter of the seeds too.",
                f"{SECTION}: the definition of u~, whose constant is not given",
                lambda r: [float(v) for v in _rows(r, "smooth", 0.01, 50.0).column("accuracy")],
                share(low=0.25, among=(-math.inf, 0.1)),
            )
        )
    return found


def _plateau() -> list[Claim]:
    flat = "paper, figure 6d: completely flat activation, no information in the gradient"
    thesis = "paper, summary: not stationary point issues such as local minima or saddle points"
    return [
        Claim(
            "hard-gradient-zero",
            "Through the staircase itself autograd's gradient is exactly zero.",
            f"{SLIDES}: u' = 0 almost everywhere",
            _column("smooth", "hard_gradient"),
            each(high=0.0),
        ),
        Claim(
            "plateau-gradient",
            "Where (a) failed, the gradient is at most a thousandth of what the identity in place of u~' would let through.",
            flat,
            lambda r: _failed(r, "passed"),
            each(high=1e-3),
        ),
        Claim(
            "plateau-no-saddle",
            "Where (a) failed, no step of up to 0.1 along the direction of lowest curvature takes off 1% of the loss.",
            thesis,
            lambda r: _failed(r, "saddle_gain"),
            each(high=0.01),
        ),
        Claim(
            "plateau-curvature",
            "Where (a) failed, the largest curvature in size is at most a thousandth of the median one where it learnt.",
            flat,
            _curvature_ratio,
            each(high=1e-3),
            why="A Hessian this small cannot tell a minimum from a saddle point: the plateau is neither.",
        ),
        Claim(
            "plateau-no-barrier",
            "Where (a) failed, the loss never rises above where it stands on the straight way to b = b* and then to w = v*.",
            thesis,
            lambda r: _failed(r, "barrier"),
            each(high=1e-6),
        ),
        Claim(
            "plateau-way-out",
            "At the end of that way at most a tenth of the loss is left.",
            thesis,
            lambda r: _failed(r, "path_end"),
            each(high=0.1),
        ),
    ]


def _curvature_ratio(results: Results) -> list[float]:
    size = {row["seed"]: max(abs(row["lambda_min"]), abs(row["lambda_max"])) for row in _rows(results, "smooth")}
    learnt = [size[row["seed"]] for row in _rows(results, "smooth") if row["accuracy"] >= 0.1]
    return [size[row["seed"]] / float(np.median(learnt)) for row in _rows(results, "smooth") if row["accuracy"] < 0.1] if learnt else []


def _networks(paper: bool) -> list[Claim]:
    short = "" if paper else " (1,500 of the source's 10,000 steps)"
    return [
        Claim(
            "multi-class-accuracy",
            f"Multi-class names the exact level of about 99% of all inputs{short}.",
            f"{SECTION}: blurry at the boundaries",
            _column("multi-class", "accuracy"),
            each(low=0.98, high=1.0) if paper else each(low=0.95),
            why="The blur costs about a percent.",
        ),
        Claim(
            "multi-class-boundaries",
            "At least 80% of its errors lie in the tenth of the inputs that is nearest to a threshold.",
            f"{SLIDES}: problem capturing boundaries",
            _column("multi-class", "errors_near"),
            each(low=0.8) if paper else median(low=0.8),
        ),
        Claim(
            "end-to-end-reasonable",
            f"The deep network is right more often than the most frequent level, but not exact{short}.",
            f"{SECTION}: reasonable; {SLIDES}: curve not captured well",
            _column("end-to-end", "accuracy"),
            mean(low=0.93, high=0.985) if paper else each(low=0.6, high=0.97),
        ),
        Claim(
            "end-to-end-below",
            "It is less often exactly right than forward-only.",
            f"{SLIDES}: curve not captured well",
            lambda r: [own["accuracy"] - other["accuracy"] for own, other in _pairs(r, "end-to-end")],
            each(low=0.0),
        ),
        Claim(
            "six-levels",
            "Only six of the 52 levels occur.",
            "code: inputs of standard deviation 0.01 and levels around b*",
            _column("forward-only", "levels"),
            each(low=6, high=6),
        ),
        Claim(
            "most-frequent-level",
            "Always naming the most frequent level is right in 46% to 49% of all cases.",
            "code: the same; with s = |v*|/100 the share is Phi(0.2/s) - 1/2",
            _column("forward-only", "most_frequent"),
            mean(low=0.46, high=0.49),
        ),
    ]


def _bounds() -> list[Claim]:
    found = []
    for method, name in (("glmtron", "GLMtron"), ("isotron", "Isotron")):
        found.append(
            Claim(
                f"{method}-bound",
                f"{name}'s best error so far never exceeds L^2 B^2 |w*|^2 / t, for L = 1, 4 and 16.",
                f"{SLIDES}: needs O(L^2/eps^2) iterations if u is L-Lipschitz (Kalai and Sastry 2009; Kakade et al. 2011)",
                _bound(method, "worst_ratio"),
                each(high=1.0),
            )
        )
        found.append(
            Claim(
                f"{method}-falls",
                f"In every iteration of {name}, |w_t - w*|^2 falls by at least error/(L^2 B^2).",
                "Kakade et al. 2011, proof of theorem 1",
                _bound(method, "least_fall"),
                each(low=-1e-9),
                why="Relative to the distance at the start; the tolerance is for rounding.",
            )
        )
    found.append(
        Claim(
            "glmtron-growth",
            "GLMtron's iterations to a fixed error grow no faster than L^2.",
            f"{SLIDES}: O(L^2/eps^2)",
            _growth,
            each(high=2.0),
            why="The exponent of L that was measured: the bound is an upper one.",
        )
    )
    return found


def claims(scale: Scale) -> list[Claim]:
    """All claims of the study at a scale."""
    paper = scale == "paper"
    return [*_forward_only(), *_smooth(paper), *_plateau(), *_networks(paper), *_bounds()]
