"""What the study of the shared filter claims of inputs that are hard, and of patches that overlap."""

import math
from collections.abc import Callable, Sequence

from gradoscope.claims import Claim, confidently, each, exactly, mean
from gradoscope.study import Results, Scale

__all__ = ["SLIDES", "Measure", "column", "explicit", "inputs", "overlap"]

SLIDES = "Globerson's slides"
RATIOS = (1.0, 1.5, 2.0)  # sets per element
RATES = {  # success and median loss where it fails, of an independent prototype: 300 pairs each
    (2, 1, 3): (0.863, 9.7e-2),
    (2, 1, 10): (0.71, 9.5e-3),
    (3, 1, 5): (0.90, 2.6e-2),
    (3, 1, 20): (0.70, 2.3e-3),
    (4, 1, 10): (0.797, 6.6e-3),
    (4, 2, 10): (0.767, 1.1e-2),
    (4, 4, 10): (1.0, math.nan),
    (8, 1, 10): (0.867, 6.1e-3),
    (8, 2, 10): (0.863, 7.1e-3),
    (8, 4, 10): (0.880, 1.2e-2),
    (8, 8, 10): (1.0, math.nan),
    (16, 1, 10): (0.877, 5.5e-3),
    (16, 4, 10): (0.910, 8.1e-3),
}
Measure = Callable[[Results], list[float]]


def column(name: str, /, **where: object) -> Measure:
    """One value of each row with these values."""
    return lambda results: results.rows.where(**where).column(name)


def inputs() -> list[Claim]:
    """Arbitrary inputs against Gaussian ones."""
    worst = f"{SLIDES}: learning with arbitrary inputs is hard; reduction of our own"

    def least(results: Results) -> list[float]:
        return [r["least"] for r in results.rows.where(part="reduction") if not r["solvable"]]

    def kinds(results: Results) -> float:
        found = results.rows.where(part="reduction").column("solvable")
        return float(min(sum(found), len(found) - sum(found)))

    def success(law: str, *ratios: float) -> Measure:
        return column("success", part="hardness", elements=24, inputs=law, ratio=list(ratios))

    def contrast(results: Results) -> list[float]:
        return [a - b for a, b in zip(success("many", *RATIOS)(results), success("splitting", *RATIOS)(results), strict=True)]

    def fades(results: Results) -> list[float]:
        small, large = (column("success", part="hardness", elements=d, inputs="splitting", ratio=1.0)(results) for d in (6, 24))
        return [a - b for a, b in zip(small, large, strict=True)]

    few = "With 48 samples for 24 weights descent on Gaussian inputs succeeds from every start too."
    return [
        Claim(
            "reduction",
            "A filter without error exists just where the sets can be split (d = 9).",
            worst,
            column("agree", part="reduction"),
            each(low=1.0),
        ),
        Claim(
            "reduction-kinds",
            "The instances are of both kinds, at least five of each.",
            "premise of the claim above",
            kinds,
            exactly(low=5),
        ),
        Claim("reduction-gap", "Where they cannot be, no descent comes below a sum of squares of 1/4.", "derived", least, each(low=0.25)),
        Claim(
            "hard-inputs",
            "On planted instances with 24 elements at most a fifth of the starts succeed.",
            worst,
            success("splitting", *RATIOS),
            each(high=0.2),
        ),
        Claim(
            "gaussian-inputs",
            "On ten Gaussian samples per weight, of the same teacher, all do.",
            f"{SLIDES}: tractable",
            success("many", *RATIOS),
            each(low=1.0),
        ),
        Claim(
            "gaussian-same-size",
            "On 72 samples, as many as the instance has, all do.",
            "prototype: 100%",
            success("gaussian", 2.0),
            each(low=1.0),
        ),
        Claim(
            "gaussian-few",
            few,
            "prototype: 100% 'for Gaussian inputs of the same size'",
            success("gaussian", 1.0),
            each(low=1.0),
            expected_to_fail=True,
            why="The theorem is about the expected loss. Two samples per weight leave minima of the sample itself, gradient 1e-15.",
        ),
        Claim("inputs-contrast", "The inputs alone make a difference of more than 80 points.", "derived", contrast, confidently(low=0.8)),
        Claim(
            "hard-fades",
            "Success fades with the number of elements: at 6 it is more likely than at 24.",
            "NP-hard",
            fades,
            confidently(low=0.0),
        ),
    ]


def overlap(scale: Scale, overlaps: Sequence[tuple[int, int, int]]) -> list[Claim]:
    """Success where patches overlap, and what the failures are."""
    found, near = [], 0.1 if scale == "paper" else 0.13  # four standard errors of 300 and of 200 pairs
    emerge = f"{SLIDES}, 'Networks with overlap': local minima emerge, random starts succeed with high probability"
    for m, stride, k in overlaps:
        where = {"part": "overlap", "m": m, "stride": stride, "k": k}
        rate, _ = RATES[m, stride, k]
        name = f"m = {m}, stride {stride}, k = {k}"
        if stride == m:
            says = f"Without overlap every start succeeds ({name})."
            found.append(Claim(f"apart-{m}", says, "Brutzkus & Globerson 2017", column("success", **where), each(low=1.0)))
            continue
        says = f"With overlap {rate:.0%} of the starts succeed ({name})."
        criterion = mean(rate - near, min(rate + near, 0.995))
        found.append(Claim(f"overlap-{m}-{stride}-{k}", says, f"{emerge}; prototype: {rate:.3f}", column("success", **where), criterion))

    def strict(results: Results) -> float:
        rows = [r for r in results.rows.where(part="overlap") if r["stride"] < r["m"]]
        return float(sum(r["strict"] for r in rows) / max(sum(r["bad"] for r in rows), 1))

    def unfinished(results: Results) -> float:
        rows = results.rows.where(part="overlap")
        return float(sum(r["unfinished"] for r in rows) / sum(r["pairs"] for r in rows))

    def depth(results: Results) -> list[float]:
        pairs = [(r["loss"], RATES[r["m"], r["stride"], r["k"]][1]) for r in results.rows.where(part="overlap")]
        return [a / b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]

    says = "Where it fails it ends in a strict local minimum, nine times in ten at least: no gradient, all curvature positive."
    found.append(Claim("overlap-strict", says, emerge, strict, exactly(low=0.9)))
    says = "All but one run in fifty are at rest at the end: failures are minima, not slow runs."
    found.append(Claim("overlap-finished", says, "premise of the claims above", unfinished, exactly(high=0.02)))
    says = "Their median loss is that of the prototype, to a factor of two in the mean over seeds and sizes."
    return [*found, Claim("overlap-depth", says, "prototype, table", depth, mean(0.5, 2.0))]


def explicit() -> list[Claim]:
    """The smallest bad minimum, and which teachers have some."""
    found = []
    values = {
        "w": (0.3883, "w = (.3883, -.3883)"),
        "loss": (0.19364, "the loss .19364"),
        "low": (0.3865, "the curvature .3865"),
        "high": (0.5545, "the curvature .5545"),
    }
    for name, (number, words) in values.items():
        says = f"For w* = (-1, 1)/sqrt 2, m = k = 2, stride 1, the bad minimum has {words}."
        criterion = exactly(number - 1e-3, number + 1e-3)
        found.append(Claim(f"bad-{name}", says, "derived, to 1e-3", column(name, part="bad-minimum"), criterion))
    says = "39% of the directions of a start end there."
    found.append(Claim("bad-share", says, "prototype: about 39%", column("share", part="bad-minimum"), exactly(0.36, 0.42)))
    for m, rate in ((2, 0.66), (4, 0.87)):
        where = {"part": "teachers", "m": m}
        says = f"Over random teachers {rate:.0%} of the starts succeed (m = {m}, stride 1, k = 10)."
        found.append(Claim(f"teachers-{m}", says, f"prototype: {rate}", column("mean", **where), mean(rate - 0.13, rate + 0.13)))
    worst = column("worst", part="teachers")
    says = "The least lucky teacher is found from a fifth of the starts or more, so that 21 restarts fail in less than 1%."
    found.append(Claim("teachers-worst", says, "prototype: .36 and .50 at 50 starts each", worst, mean(low=0.2)))

    def affected(results: Results, k: int, low: float, high: float) -> list[float]:
        return [r["success"] for r in results.rows.where(part="directions", k=k) if low <= r["degrees"] <= high]

    def spread(results: Results) -> float:
        bad = [abs(r["degrees"] - 135) for r in results.rows.where(part="directions", k=2) if r["success"] < 1]
        return float(max(bad, default=math.inf))

    says = "With two patches only teachers within 20 degrees of (-1, 1) have bad minima."
    found.append(Claim("directions-2", says, "prototype: only those close to (-1, 1)", spread, exactly(high=20)))
    says = "With three, all from 120 to 150 degrees have."
    found.append(Claim("directions-3", says, "prototype", lambda results: max(affected(results, 3, 120, 150)), exactly(high=0.99)))
    says = "With twenty, the axes have as well."
    return [
        *found,
        Claim(
            "directions-20",
            says,
            "prototype",
            lambda results: max(affected(results, 20, 0, 0) + affected(results, 20, 90, 90)),
            exactly(high=0.99),
        ),
    ]
