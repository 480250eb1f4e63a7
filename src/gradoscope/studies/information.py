"""Information in the gradient: how little it depends on which parity is the target (F2, theorem 1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gradoscope.claims import Claim, each, mean, median
from gradoscope.studies._information import PARTS
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

__all__ = ["STUDY", "Information"]

THEOREM = "paper, theorem 1: Var(H, F, w) <= G(w)^2/|H| for the half squared loss and for r(yhat y) with r 1-Lipschitz"
Measure = Callable[[Results], Sequence[float]]


class Information(Study):
    """The variance of the gradient over all 2^d parities, exactly, wherever a network stands."""

    name: ClassVar[str] = "information"
    title: ClassVar[str] = "How much of the target is in the gradient: every parity of d bits at once"
    source: ClassVar[str] = "Shalev-Shwartz, Shamir and Shammah 2017, section 2.2, theorem 1 and appendix B.1; slides, part 4"
    about: ClassVar[tuple[str, ...]] = (
        "Take one network at one point, and every parity of d bits as a target. How much do the 2^d gradients differ? Theorem 1 "
        "bounds their variance by G(w)^2/2^d. The part of the gradient that depends on the target is, for all parities at once, the "
        "Walsh-Hadamard transform of the network's own derivative over the cube, so nothing is sampled here: the variance is exact.",
        "The bound is right, and for all parities it is nearly an equality: by Parseval the variance is "
        "(E|g|^2 - |g(1)|^2/2^d)/2^d, where g(1) is one example's gradient. For the squared loss only about one part in 2^d is "
        "missing. For the hinge loss g is half as large where |p| > 1, and the ratio drops towards 1/4 as a network gets sure.",
        "The mean hides the structure. Nearly all of the variance of a network with one layer is that of parities of 0, 1 and 2 bits, "
        "of which there are few. A typical parity has about 1 % of the bound. Depth moves some of it to larger parities, but 2^-d it "
        "stays, whatever the width, the depth or the point: at d = 30 the small parities, measured one by one on drawn examples, "
        "account for the whole variance of about 1e-9 G^2.",
        "A network that learns its parity obeys the bound at each step on the way: what grows is the signal of its own target "
        "alone. The bound is on the mean over targets, and says that a target drawn at random has no such signal to begin with.",
        "The oracle answers with the mean gradient wherever the true one is within a tolerance. Gradient descent on it moves the same "
        "way for each target until that target shows itself. What shows itself does so at the first step, or not at all, and its "
        "share of all targets falls with d.",
        "The proof in the appendix drops the factor h(x) of the chain rule for losses r(yhat y): its g is 0 where |p| < 1 for the "
        "hinge loss, although the gradient does depend on the target there. With the factor the bound is the same.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Start, widths and depths, d = 30, trainings, pairs, the oracle, the proof."""
        quick = scale == "quick"
        settings = []
        sizes = (4, 6, 8, 10, 12) if quick else (4, 6, 8, 10, 12, 14, 16)
        nets = [(d, "signs", 10, 1) for d in sizes] + [(d, "bits", 10, 1) for d in ((4, 8, 10) if quick else (4, 6, 8, 10, 12))]
        for d in (8,) if quick else (8, 10):
            nets += [(d, "signs", 40, 1), (d, "signs", 160, 1), (d, "signs", 10, 2), (d, "signs", 10, 4)]
        for d, coding, factor, depth in nets:
            cost = 6e-8 * 2**d * d * factor * max(d, factor * d * (depth - 1)) * 2
            values = {"part": "start", "d": d, "coding": coding, "width_factor": factor, "depth": depth}
            settings.append(Setting(values, seeds=5 if quick or d > 12 else 10, block=5 if d <= 12 else 1, cost=max(0.01, cost)))
        wide = [(30, 10, 1, 512, 0.9), (20, 10, 2, 256, 1.5)] if quick else []
        if not quick:
            wide = [(30, 10, 1, 1024, 2.0), (30, 40, 1, 1024, 6.0), (30, 160, 1, 1024, 30.0), (30, 10, 2, 1024, 30.0)]
            wide += [(30, 10, 4, 1024, 90.0)]
        for d, factor, depth, examples, cost in wide:
            both = "squared+hinge" if depth == 1 else "squared"
            values = {"part": "large", "d": d, "width_factor": factor, "depth": depth, "examples": examples, "loss": both}
            settings.append(Setting(values, seeds=5, block=5 if quick else 1, cost=cost))
        runs = [(8, 0.1, 3000, 16, 0.8), (10, 0.1, 3000, 10, 2.0)] if quick else [(d, 0.01, 50_000, 20, 2.0**d / 100) for d in (8, 10, 12)]
        for d, lr, steps, looks, cost in runs:
            settings.append(Setting({"part": "training", "d": d, "lr": lr, "steps": steps, "looks": looks}, seeds=5, cost=cost))
        for d in (4, 6, 8, 10):
            settings.append(Setting({"part": "pairs", "d": d}, seeds=5 if quick else 10, cost=0.3))
            steps = 20 if quick else 200
            values = {"part": "oracle", "d": d, "steps": steps, "lr": 0.1}
            settings.append(Setting(values, seeds=5, cost=0.05 * steps * 2.0 ** (d - 10)))
        return [*settings, Setting({"part": "proof", "d": 6}, seeds=5, cost=0.02)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One part with one setting."""
        result = PARTS[values["part"]](values, seeds, context)
        return result

    def claims(self, scale: Scale) -> list[Claim]:
        """Theorem 1 and its corrections, along training and over architectures, pairs, oracle, proof."""
        return [*_bound_claims(), *_structure_claims(), *_elsewhere_claims(scale), *_concentration_claims(), *_proof_claims()]

    def figures(self, scale: Scale) -> list[Figure]:
        """The bound, the spectrum, training, pairs, the oracle."""
        from gradoscope.studies import _information_figures as drawn

        return [
            Figure("bound", drawn.BOUND, drawn.bound),
            Figure("spectrum", drawn.SPECTRUM, drawn.spectrum),
            Figure("training", drawn.TRAINING, drawn.training),
            Figure("pairs", drawn.PAIRS, drawn.pairs),
            Figure("oracle", drawn.ORACLE, drawn.oracle),
        ]


def per_seed(of: Callable[[Sequence[float]], float], name: str, **where: Any) -> Measure:
    """One value per seed: `of` the column over all of the seed's rows with these values."""

    def measure(results: Results) -> list[float]:
        return [float(of(rows.column(name))) for _, rows in results.rows.where(**where).groups("seed")]

    return measure


def _ratio(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Measure:
    """Per seed, a column in one setting over the same in another."""

    def measure(results: Results) -> list[float]:
        top, below = results.rows.where(**first), results.rows.where(**second)
        seeds = [s for s in top.values("seed") if s in below.values("seed")]
        return [top.where(seed=s)[0][name] / below.where(seed=s)[0][name] for s in seeds]

    return measure


def _slope(results: Results) -> list[float]:
    """Per seed, the slope of log2(Var/G^2) against d."""
    found = []
    for _, rows in results.rows.where(part="start", coding="signs", width_factor=10, depth=1, loss="squared").groups("seed"):
        kept = rows.where(d={4, 6, 8, 10, 12})
        found.append(float(np.polyfit(kept.column("d"), [math.log2(v) for v in kept.column("over_size")], 1)[0]))
    return found


PLAIN = {"part": "start", "coding": "signs", "width_factor": 10, "depth": 1}


def _bound_claims() -> list[Claim]:
    start = {"part": "start"}
    return [
        Claim("closed-form", "The variance over all 2^d targets is (E|g|^2 - |g(1)|^2/2^d)/2^d, in every network and for both losses.",
              THEOREM, per_seed(max, "closed_error", **start), each(high=1e-6)),
        Claim("parseval", "The targets' signals add up to E|g|^2 (Parseval).",
              "paper, appendix B.1: g is expanded in the targets", per_seed(max, "parseval", **start), each(high=1e-12)),
        Claim("bound-squared", "The variance is at most G^2/2^d for the half squared loss.", THEOREM,
              per_seed(max, "ratio", loss="squared", **start), each(high=1.0)),
        Claim("bound-hinge", "The variance is at most G^2/2^d for the hinge loss.", THEOREM,
              per_seed(max, "ratio", loss="hinge", **start), each(high=1.0)),
        Claim("nearly-equal", "The bound is an equality up to O(2^-d): 2^d (1 - ratio) stays below 3 (squared loss, signs as inputs).",
              f"{THEOREM}; that it is nearly attained is not said", per_seed(max, "missing", loss="squared", **PLAIN), each(0.0, 3.0)),
        Claim("nearly-equal-bits", "With bits as inputs still less is missing: 2^d (1 - ratio) below 0.5.",
              "paper, section 2.1: x in {0,1}^d", per_seed(max, "missing", part="start", coding="bits", loss="squared"), each(0.0, 0.5)),
        Claim("halves-per-bit", "Var/G^2 halves with every bit: the slope of its log2 against d is -1.",
              "paper, section 2.2: exponentially small in the dimension d", _slope, each(-1.02, -0.98)),
    ]  # fmt: skip


def _structure_claims() -> list[Claim]:
    squared = {**PLAIN, "loss": "squared"}
    return [
        Claim("typical-is-small", "A typical parity of 12 bits has about 1 % of the bound (median over the parities).",
              "paper, section 2.2: the gradient is concentrated around a fixed point independent of h",
              per_seed(max, "typical", d=12, **squared), each(0.004, 0.03)),
        Claim("typical-falls", "The median over the bound falls with d: at d = 12 it is less than a fifth of what it is at d = 4.",
              "not in the source", _ratio("typical", {**squared, "d": 12}, {**squared, "d": 4}), each(high=0.2)),
        Claim("small-sizes-carry", "Parities of 0, 1 and 2 bits carry more than 90 % of the variance of one hidden layer, at every d.",
              "not in the source", per_seed(min, "carried", **squared), each(low=0.9)),
        Claim("odd-below-even", "At d = 12, parities of 3 bits have less than a fifth of the signal of those of 4 bits (signs as inputs).",
              "not in the source", per_seed(max, "even_over_odd", d=12, **squared), mean(low=5.0)),
    ]  # fmt: skip


def _elsewhere_claims(scale: Scale) -> list[Claim]:
    run: dict[str, Any] = {"part": "training"}
    learns = "paper, figure 1: small d learns" + ("" if scale == "paper" else " (here at a step size ten times as large, as d is 8 and 10)")
    deep = {"part": "large", "depth": [2, 4]}
    one = {"part": "large", "depth": 1}
    return [
        Claim("learns", "The networks that are followed do learn their parity: accuracy over the whole cube at the end.",
              learns, per_seed(min, "accuracy", part="training", d=[8, 10]), median(low=0.99)),
        Claim("bound-along-training", "The bound holds at every point looked at along training, for both losses.", THEOREM,
              _largest_ratio, each(high=1.0)),
        Claim("closed-form-along-training", "So does the closed form.", THEOREM,
              per_seed(max, "largest_closed_error", **run), each(high=1e-6)),
        Claim("own-signal-grows", "Along training the signal of the network's own target grows at least fivefold over the bound.",
              "not in the source: the theorem is on the mean over targets", _own_growth, median(low=5.0)),
        Claim("hinge-quarter", "Once |p| > 1 everywhere, the hinge loss leaves a quarter of the bound (d = 8, at the end).",
              "appendix B.1 bounds |g| by |dp|; where |p| > 1 it is |dp|/2", per_seed(max, "last_hinge", part="training", d=8),
              median(0.2, 0.3)),
        Claim("any-architecture", "At 4 and 16 times the width and at 2 and 4 layers Var/G^2 is 2^-d as well, to 2 % (squared loss).",
              "paper, section 2: independently of the architecture; a deeper or wider network will not help",
              per_seed(min, "ratio", part="start", d=[8, 10], loss="squared"), each(0.98, 1.0)),
        Claim("depth-spreads", "Depth moves signal to larger parities: at 4 layers (d = 8) the typical one has over 4 times the share.",
              "not in the source", _ratio("typical", {"part": "start", "d": 8, "depth": 4, "loss": "squared"},
              {**PLAIN, "d": 8, "loss": "squared"}), each(low=4.0)),
        Claim("thirty-bits", "At d = 30 the parities of 0, 1 and 2 bits, measured on drawn examples, make up the bound of G^2/2^30.",
              "paper, section 2.2: at d = 30 the variance is exponentially small", per_seed(min, "small", loss="squared", **one),
              mean(0.9, 1.05)),
        Claim("many-bits-deep", "With more layers they make up most of it.", "not in the source",
              per_seed(min, "small", loss="squared", **deep), mean(0.6, 1.05)),
    ]  # fmt: skip


def _largest_ratio(results: Results) -> list[float]:
    groups = results.rows.where(part="training").groups("seed")
    return [max(rows.column("largest_ratio_hinge") + rows.column("largest_ratio_squared")) for _, rows in groups]


def _own_growth(results: Results) -> list[float]:
    rows = results.rows.where(part="training")
    return [min(r["largest_own"] / r["own_start"] for r in mine) for _, mine in rows.groups("seed")]


def _concentration_claims() -> list[Claim]:
    where = {"part": "oracle", "tolerance": 0.03}
    late = lambda results: [  # noqa: E731
        max(r["departed"] - r["at_once"] for r in rows) for _, rows in results.rows.where(**where).groups("seed")
    ]
    return [
        Claim("pairs-mean", "The mean of |grad F_h - grad F_h'|^2 over all pairs is twice the variance (relative error).",
              "slides, part 4", per_seed(max, "mean_error", part="pairs"), each(high=1e-9)),
        Claim("pairs-markov", "The share of pairs with at least c/2^d is at most 2 G^2/c, for every c (share over its bound).",
              "slides, part 4, by Markov's inequality", per_seed(max, "markov", part="pairs"), each(high=1.0)),
        Claim("many-close-pairs", "More than half of all pairs are orthogonal targets with |grad F_h - grad F_h'|^2 below 4 G^2/2^d.",
              "slides, part 4: many pairs h, h' with E[h h'] = 0 while the difference of the gradients is O(2^-d)",
              per_seed(min, "close", part="pairs"), each(low=0.5)),
        Claim("chebyshev", "The share of targets at least t from the mean gradient is at most Var/t^2, for every t (share over its bound).",
              "paper, section 2.2: by Chebyshev's inequality", per_seed(max, "chebyshev", part="pairs"), each(high=1.0)),
        Claim("oracle-bound", "On the oracle the share of targets that has shown itself by step t is at most the sum of Var/eps^2.",
              "paper, section 2.2: a gradient-based method, under a reasonable model, will fail",
              per_seed(max, "excess", part="oracle"), each(high=1e-12)),
        Claim("oracle-falls", "With eps = 0.03 G, the share that shows itself at d = 10 is less than a fifth of that at d = 4.",
              "paper, section 2.2", _ratio("departed", {**where, "d": 10}, {**where, "d": 4}), each(high=0.2)),
        Claim("oracle-at-once", "What shows itself does so at once: later steps of the mean path add less than 5 % of the targets.",
              "not in the source", late, each(high=0.05)),
    ]  # fmt: skip


def _proof_claims() -> list[Claim]:
    return [
        Claim("proof-as-printed", "Two targets' hinge gradients differ by E[(h - h') g] with the printed g, (r'(p) - r'(-p))/2 dp.",
              "paper, appendix B.1, the classification case", per_seed(max, "printed", part="proof"), each(high=1e-6), True,
              "the factor h(x) of the chain rule is missing; the printed g is 0 wherever |p| < 1."),
        Claim("proof-corrected", "They are so with g = (r'(p) + r'(-p))/2 dp, which is at most |dp| as well: the bound stands.",
              "the correction", per_seed(max, "derived", part="proof"), each(high=1e-10)),
    ]  # fmt: skip


STUDY = Information()
