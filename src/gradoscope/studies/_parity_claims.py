"""What is claimed of parities, fixed before anything runs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradoscope.claims import Claim, Criterion, confidently, each, exactly, mean, median, share
from gradoscope.study import Results, Scale

__all__ = ["claims"]

CHANCE = each(0.47, 0.53)
AT_CHANCE = 0.53  # the upper end of it: a run that ends above has begun to learn
ABOVE = (0.9, math.inf)
FIGURE = "paper, figure 1"
REMARK = "paper, end of section 2"
SEARCH = "slides: without information, no local search"


def _column(name: str, **where: Any) -> Callable[[Results], list[float]]:
    return lambda results: results.rows.where(**where).column(name)


def claims(scale: Scale) -> list[Claim]:
    """Every claim of a scale."""
    trained = _quick_training() if scale == "quick" else _paper_training()
    return [*trained, *_plateau(scale), *_lemma(), *_others(), *_masks(), *_weights(), *_oracle()]


def _accuracy(name: str, says: str, stated: str, where: dict[str, Any], criterion: Criterion, why: str = "") -> Claim:
    return Claim(name, says, stated, _column("accuracy", **where), criterion, why=why)


def _curve(scale: Scale) -> list[Claim]:
    at = {"part": "curve"}
    return [
        _accuracy("d5-learns", "d = 5 is learnt with every subset", f"{FIGURE}: d = 5 reaches 1", at | {"d": 5}, each(low=0.995)),
        _accuracy(
            "d10-learns",
            "d = 10 is learnt by nine runs of ten at least",
            f"{FIGURE}: d = 10 reaches 1",
            at | {"d": 10},
            share(low=0.9, among=(0.995, math.inf)),
        ),
        _accuracy("d30-chance", "no run at d = 30 leaves chance", f"{FIGURE}: d = 30 stays at 0.5", at | {"d": 30}, CHANCE),
        _accuracy(
            "d30-mean",
            "the mean accuracy at d = 30 is that of guessing",
            f"{FIGURE}: d = 30 stays at 0.5",
            at | {"d": 30},
            mean(0.49, 0.51),
        ),
    ]


def _quick_training() -> list[Claim]:
    rate, sparse = {"part": "rate", "d": 15}, {"part": "sparse", "lr": 0.1}
    known = "not in the source, which has one step size, 0.01"
    return [
        *_curve("quick"),
        _accuracy(
            "small-step", "at step size 0.01, d = 15 is not learnt in 4,000 steps", known, rate | {"lr": 0.01}, share(high=0.2, among=ABOVE)
        ),
        _accuracy("right-step", "at step size 0.3 it is", known, rate | {"lr": 0.3}, share(low=0.8, among=ABOVE)),
        _accuracy(
            "pair", "the parity of 2 of 30 bits is learnt", "not in the source: d alone is varied", sparse | {"size": 2}, each(low=0.99)
        ),
        _accuracy("eight-bits", "that of 8 of 30 bits is not", "not in the source: d alone is varied", sparse | {"size": 8}, CHANCE),
        _accuracy(
            "bits-learn",
            "with inputs 0 and 1, as in the text, d = 5 is learnt too",
            f"{FIGURE}, text: x in {{0, 1}}^d",
            {"part": "coding", "d": 5},
            each(low=0.99),
        ),
    ]


def _paper_training() -> list[Claim]:
    rate, sparse = {"part": "rate"}, {"part": "sparse"}
    size = "not in the source: d alone is varied"
    known = "not in the source, which has one step size, 0.01"
    found = [
        *_curve("paper"),
        _accuracy(
            "d20-bimodal",
            "at d = 20 some runs learn and others do not, so that a mean says nothing",
            "not shown in figure 1",
            {"part": "curve", "d": 20},
            share(0.3, 0.9, among=ABOVE),
        ),
        _accuracy("d20-right-step", "at step size 1 every run learns d = 20", known, rate | {"d": 20, "lr": 1.0}, each(low=0.97)),
        _accuracy("d30-any-step", "at no step size from 0.03 to 1 is d = 30 learnt", known, rate | {"d": 30}, CHANCE),
        _accuracy(
            "six-bits", "the parity of 6 of 30 bits is learnt at step size 0.1", size, sparse | {"size": 6, "lr": 0.1}, each(low=0.99)
        ),
        _accuracy("few-bits", "those of 2, 3 and 4 bits are", size, sparse | {"size": [2, 3, 4], "lr": 0.1}, each(low=0.99)),
        _accuracy("eight-bits", "that of 8 bits is not", size, sparse | {"size": 8}, CHANCE),
        _accuracy("six-bits-small-step", "at step size 0.01 that of 6 bits is not", size, sparse | {"size": 6, "lr": 0.01}, CHANCE),
    ]
    coding, text = {"part": "coding"}, f"{FIGURE}, text: x in {{0, 1}}^d"
    return [
        *found,
        _accuracy("bits-learn", "with inputs 0 and 1, as in the text, d = 5 is learnt too", text, coding | {"d": 5}, each(low=0.99)),
        _accuracy("bits-d30", "and d = 30 is not", text, coding | {"d": 30}, CHANCE),
    ]


def _failing(results: Results, name: str) -> list[float]:
    """A column of every run at d = 30 that ended at chance, where its end was looked at: one that found the parity has no plateau."""
    looked_at = [row for row in results.rows if "rise" in row and row["part"] in ("curve", "rate")]
    return [row[name] for row in looked_at if row["accuracy"] <= AT_CHANCE]


def _plateau(scale: Scale) -> list[Claim]:
    thesis = "slides, part 1: bad local minima and saddles are not the obstacle"
    theorem = "paper, theorem 1 and equation 2: Var <= G^2 / |H|, whatever the architecture"
    return [
        Claim(
            "plateau",
            "no failing run ends more than 3% below the loss of a constant answer, 1, wherever it started",
            thesis,
            lambda r: _failing(r, "loss"),
            each(low=0.97),
            why="above 1 it can be: a large step size keeps the scores moving, and the hinge loss is convex in them",
        ),
        Claim(
            "no-minimum",
            "from where it ends a path leads down in the same weights, on which the loss never rises by more than 3%",
            thesis,
            lambda r: _failing(r, "rise"),
            each(high=0.03),
            why="the score's weights go to zero, the layers below to lemma 3's network, the score's weights to its own",
        ),
        Claim("no-minimum-end", "and at the end of the path the loss is 0", thesis, lambda r: _failing(r, "bottom"), each(high=1e-4)),
        Claim(
            "no-saddle",
            "nor does a step along the most negative curvature, the best of ten lengths, lead more than 3% below it on fresh examples",
            thesis,
            lambda r: _failing(r, "below"),
            each(high=0.03),
        ),
        Claim(
            "any-shape",
            "wider and deeper networks stay at chance too",
            "paper, section 2.2: regardless of the class of predictors",
            _column("accuracy", part="shape"),
            CHANCE,
        ),
        Claim(
            "any-shape-information",
            "log2 of Var / G^2 at d = 30 is from -32 to -30 for every width and depth",
            theorem,
            lambda r: [row["log2_variance"] for row in r.rows if "log2_variance" in row],
            each(-32 - 1e-6, -30),
            why="-30 is the theorem's bound; where |score| > 1 the hinge loss has a quarter of it",
        ),
    ]


def _lemma() -> list[Claim]:
    stated = "paper, lemma 3: a layer of width > 3d/2 realises any parity"

    def total(name: str) -> Callable[[Results], float]:
        return lambda results: float(sum(results.rows.where(part="lemma").column(name)))

    def away(results: Results) -> float:
        rows = results.rows.where(part="lemma")
        return float(max(abs(row["literal"] - row["predicted"]) for row in rows))

    return [
        Claim(
            "lemma-3",
            "the network with the lemma's weights makes no error",
            stated,
            total("literal"),
            exactly(high=0),
            True,
            "no unit answers where none of the subset's bits is set: the groups start at <x, v> = 2",
        ),
        Claim("lemma-3-errors", "it errs on exactly 2^(d - |v|) points, for every size of v and both codings", stated, away, exactly(0, 0)),
        Claim("lemma-3-mended", "with a group of three units for <x, v> = 0 it makes none", stated, total("corrected"), exactly(0, 0)),
        Claim("lemma-3-loss", "and its hinge loss is 0", stated, total("loss"), exactly(high=1e-9)),
    ]


def _others() -> list[Claim]:
    lstm = f"{REMARK}: for a full parity, solvable with an appropriate LSTM network"
    claims = [
        _accuracy(
            "lstm",
            "an LSTM learns the full parity of d bits from words of all lengths up to d",
            lstm,
            {"part": "reader", "mixed": True},
            each(low=0.99),
        ),
        _accuracy(
            "lstm-long-words",
            "from words of d bits alone the same training stays at chance",
            lstm,
            {"part": "reader", "mixed": False},
            CHANCE,
            "what makes it learnable is the short words, not the cells alone: knowing the target in advance allows them",
        ),
    ]
    claims += [
        Claim(
            f"elimination-d{d}",
            f"elimination over GF(2) finds the subset from {d + 10} examples",
            "slides: parities are easy by elimination",
            _column("found", part="elimination", d=d),
            mean(low=0.98),
            why="d + 10 random equations fail with probability 2^-9",
        )
        for d in (10, 30, 100)
    ]
    return claims


def _masks() -> list[Claim]:
    stated = SEARCH

    def used(method: str) -> Callable[[Results], list[float]]:
        return lambda r: [v / 1024 for v in r.rows.where(part="search", method=method).column("evaluations")]

    return [
        Claim("exhaustive", "all masks in a random order take half of the 2^10 on average", stated, used("exhaustive"), mean(0.4, 0.6)),
        Claim("random-search", "masks drawn at random take 2^10 on average", stated, used("random"), mean(0.65, 1.35)),
        Claim(
            "genetic",
            "a genetic algorithm given exact scores takes no fewer than drawing at random, within a third",
            stated,
            used("genetic"),
            mean(low=0.67),
            why="every wrong mask scores 1/2, so there is nothing to select by",
        ),
        Claim(
            "genetic-stuck",
            "given 128 examples, at least three runs of ten follow the scores' noise and are stuck after 20,000 evaluations",
            stated,
            lambda r: [1 - v for v in r.rows.where(part="search", method="genetic, examples").column("found")],
            mean(low=0.3),
        ),
        Claim(
            "genetic-works",
            "where every right bit counts, the same algorithm takes less than 0.3 times 2^10",
            stated,
            used("genetic, bits right"),
            median(high=0.3),
        ),
    ]


def _weights() -> list[Claim]:
    stated = SEARCH

    def best(method: str) -> Callable[[Results], list[float]]:
        return _column("best", part="cosine", method=method)

    def ahead(results: Results) -> list[float]:
        pairs = zip(best("random")(results), best("Bayesian")(results), strict=True)
        return [math.log10(max(r, 1e-12) / max(b, 1e-12)) for r, b in pairs]

    return [
        Claim(
            "climbing-d30",
            "hill climbing on the weights stays at chance at d = 30",
            stated,
            _column("accuracy", part="search", method="climbing", d=30),
            CHANCE,
        ),
        Claim("climbing-d10", "at d = 10 it is behind gradient descent on the same budget of evaluations", stated, _behind, mean(low=0.0)),
        Claim(
            "cosine-bayesian",
            "on the cosine in the plane Bayesian optimisation reaches a loss of 0.1 in 60 evaluations",
            stated,
            best("Bayesian"),
            each(high=0.1),
        ),
        Claim("cosine-random", "and is ahead of random points by a factor of ten at least, in the median", stated, ahead, median(low=1.0)),
        Claim(
            "cosine-gradient",
            "gradient descent from a random point stays on the plateau, in the median",
            "slides, part 4: linear-periodic functions",
            best("gradient"),
            median(low=0.9),
        ),
    ]


def _behind(results: Results) -> list[float]:
    rows = results.rows.where(part="search", d=10)
    gradient, climbing = (rows.where(method=m).column("accuracy") for m in ("gradient", "climbing"))
    return [g - c for g, c in zip(gradient, climbing, strict=True)]


def _oracle() -> list[Claim]:
    stated = f"{REMARK}: parities cannot be learned by statistical queries (Kearns 1998; Feldman et al. 2015)"

    def decay(results: Results) -> list[float]:
        """Per seed, the slope of log2 of the typical distance from the mean answer against d."""
        slopes = []
        for _, rows in results.rows.where(part="oracle").groups("seed"):
            points = {row["d"]: row["typical"] for row in rows}
            slopes.append(float(np.polyfit(list(points), np.log2(list(points.values())), 1)[0]))
        return slopes

    def asked(results: Results) -> list[float]:
        rows = results.rows.where(part="oracle", d=8, tolerance=0.3)
        return [row["masks_asked"] / 2**8 for row in rows]

    return [
        Claim(
            "oracle-exact",
            "from exact answers gradient descent learns d = 4",
            stated,
            _column("accuracy", part="oracle", d=4, tolerance=0.0),
            median(low=0.95),
        ),
        Claim(
            "oracle-d4",
            "at tolerance 0.3 and d = 4 the first answers must already give the target away",
            stated,
            _column("first", part="oracle", d=4, tolerance=0.3),
            each(0, 0),
        ),
        Claim(
            "oracle-silent",
            "at the same tolerance and d = 8 no answer ever has to",
            stated,
            _column("silent", part="oracle", d=8, tolerance=0.3),
            each(low=1),
        ),
        Claim(
            "oracle-same",
            "and two targets end with the same weights, bit for bit",
            stated,
            _column("same", part="oracle", d=8, tolerance=0.3),
            each(low=1),
        ),
        Claim(
            "oracle-decay",
            "the distance of an answer from the mean over all targets falls like 2^(-d/2)",
            "paper, theorem 1: the variance falls like 2^-d",
            decay,
            confidently(-0.6, -0.4),
        ),
        Claim(
            "oracle-masks",
            "asking for one mask after the other takes about half of the 2^d queries",
            stated,
            asked,
            mean(0.1, 0.9),
            why="at tolerance 1/4 no query can rule out more than 16 targets, and a mask rules out one",
        ),
    ]
