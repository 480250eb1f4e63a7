"""What the study of scene graphs claims."""

from collections.abc import Callable

from gradoscope.claims import Claim, confidently, each, exactly, mean
from gradoscope.study import Results, Scale

__all__ = ["claims"]

PAPER = "Herzig et al. 2018"
PROTOTYPE = "an independent prototype on VRD, one seed: .652 without context, .728 with pooling, .753 with attention"
BOUNDS = "bounds as the image case of Brukhim & Globerson 2018"
Measure = Callable[[Results], list[float]]
GAP = 0.04  # that the prototype's order of models allows for


def claims(scale: Scale) -> list[Claim]:
    """All of them, in the order of the parts."""
    return [*_context(scale), *_recall(), *_steps(scale), *_bounds()]


def _column(name: str, model: str, recurrent: int | None = None) -> Measure:
    def values(results: Results) -> list[float]:
        rows = results.rows.where(model=model)
        if recurrent is None and model == "feature attention":
            rows = rows.where(recurrent=2)
        elif recurrent is not None:
            rows = rows.where(recurrent=recurrent)
        return [float(r[name]) for r in sorted(rows, key=lambda r: int(r["seed"]))]

    return values


def _gain(name: str, less: str, more: str, before: int | None = None, after: int | None = None) -> Measure:
    """By how much the second model is above the first, seed by seed."""

    def values(results: Results) -> list[float]:
        low, high = _column(name, less, before)(results), _column(name, more, after)(results)
        return [b - a for a, b in zip(low, high, strict=True)]

    return values


def _over_best(results: Results) -> list[float]:
    alone = zip(*(_column("accuracy", m)(results) for m in ("no context", "no context, faint")), strict=True)
    return [after - max(pair) for after, pair in zip(_column("accuracy", "feature attention")(results), alone, strict=True)]


def _every(name: str) -> Measure:
    return lambda results: [float(r[name]) for r in results.rows if name in r]


def _context(scale: Scale) -> list[Claim]:
    def real(results: Results) -> float:
        return float(all(r["data"] == "vrd" for r in results.rows))

    # at quick scale the synthetic scenes hold no more than a bag of classes, and attention has nothing to add
    least = 0.0 if scale == "paper" else -0.03
    slack = "at least as many" if scale == "paper" else "no fewer (up to .03)"
    found = [
        Claim(
            "invariant",
            "Renaming the boxes renames the outputs, to rounding.",
            f"{PAPER}: graph-permutation invariance",
            _every("defect"),
            each(high=1e-10),
        ),
        Claim(
            "detector",
            "Without context more boxes are named right than by the detector itself.",
            PROTOTYPE,
            _gain("accuracy", "detector", "no context"),
            confidently(low=0.0),
        ),
        Claim(
            "context",
            f"With pooled context {GAP} more of the boxes are named right than without.",
            PROTOTYPE,
            _gain("accuracy", "no context", "mean"),
            mean(low=GAP),
        ),
        Claim(
            "context-attention",
            f"With attention it is at least {GAP} more than without context.",
            PROTOTYPE,
            _gain("accuracy", "no context", "feature attention"),
            mean(low=GAP),
        ),
        Claim(
            "context-best",
            "It is also more than the better of two models without context (the other one gets fainter features, and overfits less).",
            "a baseline that is not the prototype's",
            _over_best,
            confidently(low=0.0),
        ),
        Claim(
            "attention",
            f"Attention by feature names {slack} boxes right than the mean.",
            PROTOTYPE,
            _gain("accuracy", "mean", "feature attention"),
            mean(low=least),
        ),
    ]
    if scale == "paper":
        found.append(Claim("data", "The scenes are those of VRD.", "the source uses real images", real, exactly(1.0)))
    return found


def _recall() -> list[Claim]:
    return [
        Claim(
            "triplets",
            "With attention R@50 of triplets (SGCls, one predicate per pair) is higher than without context.",
            f"{PAPER}, table of results; {PROTOTYPE.split(':')[0]}: .178 and .274",
            _gain("sgcls_50", "no context", "feature attention"),
            confidently(low=0.0),
        ),
        Claim(
            "known-classes",
            "With the classes given (PredCls) R@50 changes by less than .05: context corrects classes rather than predicates.",
            f"{PAPER}: 63.7% without and 64.6 to 65.1% with context (recalled)",
            _gain("predcls_50", "no context", "feature attention"),
            mean(-0.05, 0.05),
        ),
    ]


def _steps(scale: Scale) -> list[Claim]:
    stated = f"{PAPER}: any such function is one step with two sums (theorem); the model takes two or three, what they add is not stated"
    return [
        Claim(
            f"steps-{t}",
            f"One step names as many boxes right as {t} steps with shared weights, up to .02.",
            stated,
            _gain("accuracy", "feature attention", "feature attention", t, 1),
            mean(low=-0.02),
        )
        for t in ((2, 3) if scale == "paper" else (2,))
    ]


def _bounds() -> list[Claim]:
    def kept(results: Results) -> list[float]:
        return [float(r["bounds_given_violations"] + r["bounds_every_violations"]) for r in results.rows]

    def fewer(results: Results) -> list[float]:
        rows = results.rows.where(model="detector")
        return [float(r["bounds_free_violations"] - r["bounds_predicted_violations"]) for r in rows]

    def never_more(results: Results) -> list[float]:
        return [float(r["bounds_free_violations"] - r["bounds_projected_violations"]) for r in results.rows]

    return [
        Claim("bound-kept", "Decoded within a given bound no image violates it.", BOUNDS, kept, each(high=0.0)),
        Claim(
            "bound-projected",
            "The projection of the class's probabilities never makes another image violate the bound.",
            "derived: u = clip(y - t) with t >= 0 lowers them",
            never_more,
            each(low=0.0),
        ),
        Claim(
            "bound-every",
            "With the true number of boxes of every class as bounds at least .05 more boxes are named right, by the detector too.",
            BOUNDS,
            _every("bounds_every_gain"),
            mean(low=0.05),
        ),
        Claim(
            "bound-given",
            "A given bound on one class costs no accuracy on average.",
            BOUNDS,
            _every("bounds_given_gain"),
            mean(low=0.0),
        ),
        Claim(
            "bound-given-null",
            "It gains next to nothing either: at most .02 of all boxes.",
            BOUNDS,
            _every("bounds_given_gain"),
            each(high=0.02),
            why="only images with too many boxes of the class can change, and few of their boxes do: a null that is reported",
        ),
        Claim(
            "bound-predicted",
            "With a bound that is predicted from the detector's scores its labels violate the true bound in fewer images.",
            BOUNDS,
            fewer,
            confidently(low=0.0),
        ),
        Claim(
            "bound-predicted-null",
            "A predicted bound does not change the share of boxes named right by more than .01.",
            BOUNDS,
            _every("bounds_predicted_gain"),
            mean(-0.01, 0.01),
        ),
    ]
