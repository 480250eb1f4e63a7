"""What the study of the shared filter claims."""

import math
from collections.abc import Sequence

from gradoscope.claims import Claim, Criterion, each, exactly, mean
from gradoscope.studies._convnet_claims_hard import SLIDES, Measure, column, explicit, inputs, overlap
from gradoscope.study import Results, Scale

__all__ = ["claims"]

STUDENTS = {(6, 6): 1.0, (8, 8): 0.86, (10, 10): 0.58, (10, 11): 1.0, (10, 12): 1.0}


def claims(
    scale: Scale, overlaps: Sequence[tuple[int, int, int]], connected: Sequence[tuple[int, int]], shares: Sequence[float]
) -> list[Claim]:
    """All of them, in the order of the parts."""
    return [
        *_formula(),
        *_critical(),
        *_descent(),
        *_escape(),
        *inputs(),
        *overlap(scale, overlaps),
        *explicit(),
        *_connected(connected),
        *_two_layers(shares),
        *_diagnosed(),
    ]


def _of(name: str, part: str, text: str, stated: str, measure: Measure, criterion: Criterion) -> Claim:
    return Claim(f"{part}-{name}", text, stated, measure, criterion)


def _formula() -> list[Claim]:
    says = "The closed form is the mean over samples: no mean is four standard errors away, for k from 1 to 16."
    slope = "Its gradient is that of central differences, to 1e-6."
    stated = f"{SLIDES}, 'Gaussian inputs' (there without the constant gamma |w*|^2)"
    return [
        Claim("formula-samples", says, stated, column("z", part="formula"), each(high=4.0)),
        Claim("formula-gradient", slope, "derived", column("gradient_error", part="formula"), each(high=1e-6)),
    ]


def _critical() -> list[Claim]:
    many = {"part": "critical", "k": [2, 5, 6, 20, 30]}
    points = f"{SLIDES}, 'Convergence of GD': maximum at 0, global minimum at w*, degenerate saddle at -alpha w*"

    def alphas(results: Results) -> list[float]:
        known = {2: 0.24145, 5: 0.56010, 30: 0.90226}
        return [abs(r["alpha"] - known[r["k"]]) for r in results.rows.where(part="critical", k=list(known))]

    def gradients(results: Results) -> list[float]:
        return [max(r["gradient_target"], r.get("gradient_saddle", 0.0)) for r in results.rows.where(part="critical")]

    def eigenvalues(results: Results) -> list[float]:
        return [max(r["radial_error"], r["transverse_error"]) for r in results.rows.where(part="critical")]

    def conditions(results: Results) -> list[float]:
        return [abs(r["condition"] - 1 - (r["k"] - 1) / math.pi) for r in results.rows.where(part="critical")]

    def seconds(results: Results) -> list[float]:
        rows = results.rows.where(**many)
        return [max(abs(r[f"second_{h:g}"]) / h for h in (1e-3, 1e-4, 1e-5)) for r in rows]

    back = column("slope_back", part="critical", k=1)
    return [
        _of("points", "critical", "The gradient vanishes at w* and at -alpha w*.", points, gradients, each(high=1e-7)),
        _of("alpha", "critical", "alpha = (k-1)/(k-1+pi): .24145, .56010, .90226 at k = 2, 5, 30.", "derived", alphas, each(high=6e-6)),
        _of(
            "loss",
            "critical",
            "At the saddle the loss is s^2 (gamma^2-beta^2)/(gamma k^2).",
            "derived",
            column("loss_error", **many),
            each(high=1e-10),
        ),
        _of(
            "zero",
            "critical",
            "At 0 the loss falls along every direction (k >= 2).",
            points,
            column("slope_max", **many),
            each(high=-1e-12),
        ),
        _of("kink", "critical", "It falls at different rates: no derivative at 0.", points, column("slope_spread", **many), each(low=1e-3)),
        _of("single", "critical", "With one patch the slope at 0 towards -w* is 0: no maximum.", "derived", back, each(-1e-12, 1e-12)),
        _of("minimum", "critical", "At w* the eigenvalues are 2 gamma/k^2 once and 1/k else.", "derived", eigenvalues, each(high=1e-6)),
        _of("condition", "critical", "Their quotient is 1 + (k-1)/pi.", "derived", conditions, each(high=1e-4)),
        _of("flat", "critical", "At -alpha w* all eigenvalues but one are 0.", points, column("flat", **many), each(high=1e-7)),
        _of("second", "critical", "Second differences there vanish with h: below 3h.", "derived: |v|^3", seconds, each(high=3.0)),
        _of(
            "cubic",
            "critical",
            "On the sphere the loss falls with the third power of the angle.",
            "derived",
            column("exponent", **many),
            each(2.99, 3.01),
        ),
        _of(
            "coefficient",
            "critical",
            "That power has the factor alpha s^2/(3 pi k).",
            "derived",
            column("coefficient", **many),
            each(0.99, 1.01),
        ),
    ]


def _descent() -> list[Claim]:
    run = {"part": "descent"}
    every = f"{SLIDES}, 'Convergence of GD'; Brutzkus & Globerson 2017"

    def factor(results: Results) -> list[float]:
        return [abs(r["factor"] - r["predicted"]) for r in results.rows.where(**run)]

    def broken(name: str) -> Measure:
        return column(name, part="guarantees")

    return [
        _of(
            "arrives",
            "descent",
            "From 500 random unit vectors descent always comes within 1e-6 of w*.",
            every,
            column("share", **run),
            each(low=1.0),
        ),
        _of(
            "median",
            "descent",
            "It takes a median of 63 steps (k = 5, m = 8, half the limit).",
            "prototype",
            column("median", **run),
            each(58, 68),
        ),
        _of("factor", "descent", "At the end each step shrinks the distance by 1 - lambda/k.", "derived", factor, each(high=0.02)),
        _of("angle", "descent", "The angle to w* never grows.", "derived", broken("angle"), each(high=1e-9)),
        _of("norm", "descent", "|w| stays at least min(|w0|, alpha |w*|).", "derived", broken("norm"), each(high=1e-9)),
        _of(
            "lemma",
            "descent",
            "min |grad|^2 <= 2 l(w0)/(lambda T) for every T.",
            f"{SLIDES}: O(eps^-2)",
            broken("descent"),
            each(high=1e-9),
        ),
        _of("drop", "descent", "Each step removes lambda/2 |grad|^2 at least.", "descent lemma", broken("loss"), each(high=1e-12)),
    ]


def _escape() -> list[Claim]:
    def ratio(k: int, most: float) -> Measure:
        return lambda results: [
            r["product"] / (r["predicted"] * r["phi"]) for r in results.rows.where(part="escape", k=k) if r["phi"] <= most
        ]

    def power(results: Results) -> float:
        steps = {r["phi"]: r["steps"] for r in results.rows.where(part="escape", k=5)}
        return float(steps[0.01] / steps[0.1])

    says = "Leaving the saddle's side from the angle phi takes (pi k alpha/lambda)/phi steps, to 5%: 8.00/phi at k = 5."
    found = [Claim("escape-5", says, "derived", ratio(5, 1.0), exactly(0.95, 1.05))]
    for k in (2, 20):
        says = f"The same at k = {k}, for phi of 0.01 and less."
        found.append(Claim(f"escape-{k}", says, "derived: 1 + o(1)", ratio(k, 0.0101), exactly(0.95, 1.05)))
    says = "Ten times nearer takes ten times as long, not a logarithm: the saddle is not strict."
    found.append(Claim("escape-power", says, "derived", power, exactly(9.0, 11.0)))
    says = "From the ray opposite w* descent ends at the saddle."
    return [*found, Claim("escape-ray", says, "derived", column("distance", part="ray"), exactly(high=1e-9))]


def _connected(sizes: Sequence[tuple[int, int]]) -> list[Claim]:
    found = []
    stated = "Safran & Shamir 2018: spurious minima are common, and one more neuron removes them; prototype"
    for k, n in sizes:
        rate = STUDENTS[k, n]
        criterion = mean(low=0.97) if rate == 1 else mean(rate - 0.15, rate + 0.15)
        says = f"{n} fully connected neurons learn {k} orthogonal ones from {rate:.0%} of the starts."
        found.append(Claim(f"connected-{k}-{n}", says, stated, column("success", part="connected", k=k, n=n), criterion))
    says = "Where they fail the gradient is 0 to rounding."
    found.append(Claim("connected-rest", says, stated, column("gradient", part="connected"), each(high=1e-12)))

    def depth(results: Results) -> list[float]:
        return [r["loss"] for r in results.rows.where(part="connected") if r["bad"]]

    return [*found, Claim("connected-depth", "The loss there is about .02.", stated, depth, mean(0.015, 0.03))]


def _two_layers(shares: Sequence[float]) -> list[Claim]:
    du = "Du et al. 2018: a spurious local minimum, found with positive probability"
    mixed = [q for q in shares if q < 0.4]  # below: the inner product of the bad minimum is negative, for k = 8

    def both(results: Results) -> list[float]:
        return [r["success"] + r["bad"] for r in results.rows.where(part="two-layers", mean_share=list(shares))]

    def signs(results: Results) -> list[float]:
        rows = results.rows.where(part="two-layers")
        return [float((r["correlation"] < 0) == (r["mean_share"] in mixed)) for r in rows]

    even = {"part": "two-layers", "mean_share": 0.0}
    one_sided = {"part": "two-layers", "mean_share": [q for q in shares if q > 0.5]}
    return [
        Claim("two-layers-ends", "Nearly every run ends at the teacher or at the bad point in closed form.", du, both, each(low=0.95)),
        Claim("two-layers-sign", "a.a* < 0 there just where (sum a*)^2 < 0.404 k |a*|^2 (k = 8).", "derived", signs, each(low=1.0)),
        Claim(
            "two-layers-even",
            "With output weights of mean zero half of the starts end badly.",
            "derived: a sign is a coin",
            column("bad", **even),
            mean(0.35, 0.65),
        ),
        Claim(
            "two-layers-saddle",
            "Where a.a* > 0 the point is a saddle, and none does.",
            "derived",
            column("bad", **one_sided),
            each(high=0.0),
        ),
    ]


def _diagnosed() -> list[Claim]:
    def named(target: str, obstacle: str) -> Measure:
        def measure(results: Results) -> list[float]:
            rows = results.rows.where(part="diagnosed", target=target)
            return [float(r["named"] == obstacle if obstacle else r["verdict"] == "healthy") for r in rows]

        return measure

    blamed = {"convnet:saddle": "saddle_point", "convnet:overlap": "local_minimum"}
    found = [
        Claim(f"diagnosed-{t.split(':')[1]}", f"The diagnosis names {o} on {t}.", "the construction", named(t, o), each(low=1.0))
        for t, o in blamed.items()
    ]
    says = "It calls convnet:gaussian healthy."
    return [*found, Claim("diagnosed-gaussian", says, "the construction", named("convnet:gaussian", ""), each(low=1.0))]
