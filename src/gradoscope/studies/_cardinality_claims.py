"""What the study of cardinality claims."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from gradoscope.claims import Claim, confidently, each, mean
from gradoscope.study import Results, Scale, Table

__all__ = ["claims", "gain", "trained"]

PAPER = "Brukhim & Globerson 2018"
DERIVED = "derived from the projection's optimality conditions"
PROTOTYPE = "an earlier measurement of ours with one seed"
Measure = Callable[[Results], Sequence[float]]
SMALL = ("scene", "yeast", "emotions")


def claims(scale: Scale) -> list[Claim]:
    """All of them; the real sets at paper scale only."""
    found = [*_projections(), *_derivatives(), *_smoothing(), *_synthetic(), *_saturated()]
    return [*found, *_bibtex(), *_bar(), *_small()] if scale == "paper" else found


def _column(name: str, **where: Any) -> Measure:
    return lambda results: results.rows.where(**where).column(name)


def trained(results: Results, constraint: str, data: str = "synthetic", **where: Any) -> Table:
    """The rows of a kind of end-to-end training; from scratch, with the published sharpness and start unless said otherwise."""
    usual = {"sharp": 1.0, "scale": 1.0, "pretrained": 0, "accumulator": 0.1}
    return results.rows.where(part="end", set=data, constraint=constraint, **{**usual, **where})


def gain(name: str, more: Callable[[Results], Table], less: Callable[[Results], Table]) -> Measure:
    """The difference of a column, seed by seed."""

    def measure(results: Results) -> list[float]:
        other = {row["seed"]: row[name] for row in less(results)}
        return [row[name] - other[row["seed"]] for row in more(results) if row["seed"] in other]

    return measure


def _end(constraint: str, data: str = "synthetic", **where: Any) -> Callable[[Results], Table]:
    return lambda results: trained(results, constraint, data, **where)


def _two(first: str, second: str, data: str) -> Measure:
    """Two ways to choose labels from the same scores, seed by seed."""

    def measure(results: Results) -> list[float]:
        return [row[f"{first}_f1"] - row[f"{second}_f1"] for row in results.rows.where(part="two", set=data)]

    return measure


def _projections() -> list[Claim]:
    known = {1: 0.93, 2: 0.83, 5: 0.31, 10: 0.019}
    found = []
    for r, error in known.items():

        def orders(results: Results, r: int = r, error: float = error) -> list[float]:
            return [math.log10(row["error"] / error) for row in results.rows.where(part="rounds", rounds=r)]

        says = f"After {r} round{'s' * (r > 1)} Dykstra's algorithm is {error} away from the projection, in order of magnitude."
        found.append(Claim(f"rounds-{r}", says, PROTOTYPE, orders, mean(-1, 1, "powers of ten")))
    two, fifty = {"part": "rounds", "rounds": 2}, {"part": "rounds", "rounds": 50}
    more = (
        ("rounds-50", "After 50 rounds half of the points are within 1e-6.", "typical", fifty, each(high=1e-6), PROTOTYPE),
        ("rounds-200", "After 200 rounds all are within 1e-9.", "error", {"part": "rounds", "rounds": 200}, each(high=1e-9), PROTOTYPE),
        (
            "plain-alternation",
            "Projecting in turn without the corrections never gets there, not in 1,000 rounds.",
            "plain",
            {"part": "rounds", "rounds": 1000},
            each(low=1e-2),
            PROTOTYPE,
        ),
        ("two-rounds-sum", "After the published two rounds the sum is right.", "sum_error", two, each(high=1e-10), "published code"),
        ("two-rounds-excess", "And entries exceed 1.", "excess", two, each(low=0.01), f"{PAPER} ask for u <= 1"),
        ("inequality", "No point of the set is on the far side.", "inequality", {"part": "facts"}, each(high=1e-8), DERIVED),
    )
    return [*found, *(Claim(i, says, stated, _column(c, **w), test) for i, says, c, w, test, stated in more)]


def _derivatives() -> list[Claim]:
    far = {"part": "obstruction", "spread": 100.0, "sum": 3.0}

    def fades(results: Results) -> list[float]:
        near = {r["seed"]: r["smooth_slope"] for r in results.rows.where(part="obstruction", spread=0.1, sum=3.0)}
        return [r["smooth_slope"] / near[r["seed"]] for r in results.rows.where(**far)]

    return [
        Claim(
            "jacobian",
            "The derivative of the iteration at its end is the closed form P_F - 11'/|F|.",
            DERIVED,
            _column("jacobian", part="facts"),
            each(high=1e-8),
        ),
        Claim("slope-in-sum", "And that in the sum z is 1_F/|F|.", DERIVED, _column("slope", part="facts"), each(high=1e-8)),
        Claim(
            "nothing-free",
            "Where no label is free, the sum has no gradient at all.",
            DERIVED,
            _column("stuck_slope", part="obstruction"),
            each(0, 0),
        ),
        Claim(
            "far-apart",
            "Where scores are far apart and the sum is whole, nothing is free in most examples.",
            "derived: free labels are those within 1 of the threshold",
            _column("stuck", **far),
            mean(low=0.8),
        ),
        Claim(
            "smooth-slope",
            "The smooth step still hands on a gradient to the sum there, at least half of what it does elsewhere.",
            f"{PAPER}: made smooth so that gradients flow",
            fades,
            each(low=0.5),
        ),
    ]


def _smoothing() -> list[Claim]:
    found = []
    for kappa, bias in {1.0: 0.12, 10.0: 0.015, 100.0: 0.004}.items():

        def orders(results: Results, kappa: float = kappa, bias: float = bias) -> list[float]:
            rows = results.rows.where(part="smoothing", sharpness=kappa)
            return [math.log10(r["bias"] / bias) for r in rows if kappa == 1 or not r["both"]]

        says = f"At sharpness {kappa:g} the smooth step is {bias} from the projection on the simplex, within a factor of three."
        found.append(Claim(f"smooth-{kappa:g}", says, PROTOTYPE, orders, mean(-0.48, 0.48, "powers of ten")))
    last = {"part": "smoothing", "sharpness": 100.0}
    return [
        *found,
        Claim(
            "smooth-stays",
            "Sharpness of the softmax alone leaves a bias: it picks the largest j softsign(gap), which need not be the right j.",
            "derived",
            _column("bias", both=False, **last),
            each(low=5e-4),
        ),
        Claim("smooth-both", "Sharpness inside and outside removes it.", "derived", _column("bias", both=True, **last), each(high=1e-4)),
    ]


def _synthetic() -> list[Claim]:
    fewer = "A threshold of one half names too few labels: at most four fifths of the true number."

    def ratio(results: Results) -> list[float]:
        return [r["threshold_predicted"] / r["true"] for r in results.rows.where(part="two", set="synthetic")]

    def against_reference(results: Results) -> list[float]:
        other = {r["seed"]: r["oracle_f1"] for r in results.rows.where(part="relevance", set="synthetic")}
        return [r["oracle_f1"] - other[r["seed"]] for r in results.rows.where(part="two", set="synthetic")]

    return [
        Claim("few-labels", fewer, PROTOTYPE, ratio, each(high=0.8)),
        Claim(
            "predicted-number",
            "Taking as many labels as are predicted gains .04 of F1 and more over the threshold, on the same scores.",
            PROTOTYPE,
            _two("top", "threshold", "synthetic"),
            each(low=0.04),
        ),
        Claim(
            "reference",
            "Told the true number, the network ranks labels no worse than an independent logistic regression, up to .03.",
            "check of the network",
            against_reference,
            each(low=-0.03),
        ),
        *_sums("synthetic"),
        Claim(
            "constraint-gains",
            "The constraint gains over the same network, inference and loss without it, where AdaGrad's accumulators start at 0.",
            PAPER,
            gain("f1", _end("exact", accumulator=0.0), _end("box", accumulator=0.0)),
            confidently(low=0),
        ),
        Claim(
            "constraint-costs-nothing",
            "Where they start at 0.1 it costs no more than .01.",
            PAPER,
            gain("f1", _end("exact"), _end("box")),
            mean(low=-0.01),
        ),
    ]


def _sums(data: str) -> list[Claim]:
    end = f"-{data}" if data != "synthetic" else ""
    found = [
        Claim(
            f"exact-sum{end}",
            "The exact projection keeps the sum to rounding, on new examples after training.",
            DERIVED,
            lambda results: trained(results, "exact", data).column("gap"),
            each(high=1e-4),
        ),
        Claim(
            f"smooth-enforces{end}",
            "The smooth step keeps the sum to a tenth of a label.",
            f"{PAPER}: the inference keeps to the predicted number",
            lambda results: trained(results, "smooth", data).column("gap"),
            each(high=0.1),
            expected_to_fail=True,
            why="At sharpness 1 the step is no projection: the sum is free, and the head runs to its lower end instead.",
        ),
        Claim(
            f"smooth-misses{end}",
            "It misses the sum by a label and more on some examples.",
            PROTOTYPE,
            lambda results: trained(results, "smooth", data).column("gap"),
            each(low=1.0),
        ),
    ]
    sharper = Claim(
        "sharpened-sum",
        "Sharpness raised from 1 to 100 during training gives back the sum, to a tenth of a label.",
        "derived",
        lambda results: trained(results, "smooth", sharp=100.0).column("gap"),
        each(high=0.1),
    )
    low = Claim(
        f"head-runs-low{end}",
        "Under the smooth step the head that predicts the number ends at its lower bound on nine examples of ten.",
        PROTOTYPE,
        lambda results: trained(results, "smooth", data).column("z_low"),
        mean(low=0.9),
    )
    return [*found, sharper] if data == "synthetic" else [*found, low]


def _saturated() -> list[Claim]:
    return [
        Claim(
            "saturated",
            "Scores thirty times as large at the start leave few labels free: training through the projection loses .1 of F1 and more.",
            DERIVED,
            gain("f1", _end("exact"), _end("exact", scale=30.0)),
            each(low=0.1),
        ),
        Claim(
            "saturated-smooth",
            "From that start the smooth step does better than the exact projection.",
            f"{PAPER}: made smooth so that gradients flow",
            gain("f1", _end("smooth", scale=30.0), _end("exact", scale=30.0)),
            confidently(low=0),
            expected_to_fail=True,
            why="A gradient that reaches every label is no help where the scores are far from right; weights of an ordinary size are.",
        ),
    ]


def _bibtex() -> list[Claim]:
    values = {"threshold": 0.378, "top": 0.436, "oracle": 0.470}
    words = {"threshold": "a threshold of 1/2", "top": "as many labels as predicted", "oracle": "as many labels as there are"}
    found = [
        Claim(
            f"bibtex-{way}",
            f"Bibtex, cross-entropy and {words[way]}: F1 {value}.",
            PROTOTYPE,
            _column(f"{way}_f1", part="two", set="bibtex"),
            mean(value - 0.02, value + 0.02),
        )
        for way, value in values.items()
    ]
    gains = {"exact": "the exact projection", "dykstra": "two rounds with the exact simplex step", "smooth": "the published smooth step"}
    return [
        *found,
        Claim("bibtex-gain", "Bibtex: the predicted number gains .04.", PROTOTYPE, _two("top", "threshold", "bibtex"), each(low=0.04)),
        *(
            Claim(
                f"bibtex-{kind}-gains",
                f"Bibtex, from scratch: {name} gains over the same network and loss without a number of labels.",
                PAPER,
                gain("f1", _end(kind, "bibtex"), _end("box", "bibtex")),
                mean(low=0),
            )
            for kind, name in gains.items()
        ),
        Claim(
            "bibtex-smooth-exact",
            "Bibtex, from scratch: the smooth step does better than the exact simplex step in two rounds of Dykstra's algorithm.",
            PROTOTYPE,
            gain("f1", _end("smooth", "bibtex"), _end("dykstra", "bibtex")),
            mean(low=0),
        ),
        *_sums("bibtex"),
        *_starts(),
    ]


def _starts() -> list[Claim]:
    zero = {"accumulator": 0.0}
    stated = "one run of ours with one seed, before these"
    says = "Bibtex: where AdaGrad's accumulators start at 0 and not at 0.1, the first steps are as long in every weight, and the "
    return [
        Claim(
            "bibtex-start-smooth",
            says + "smooth step ends worse by .1 of F1 and more.",
            stated,
            gain("f1", _end("smooth", "bibtex"), _end("smooth", "bibtex", **zero)),
            each(low=0.1),
        ),
        Claim(
            "bibtex-start-box",
            says + "network without a number of labels ends worse as well, by .03 and more.",
            stated,
            gain("f1", _end("box", "bibtex"), _end("box", "bibtex", **zero)),
            each(low=0.03),
        ),
        Claim(
            "bibtex-start-gains",
            "From that start the gain of two rounds with the exact simplex step over no number of labels is .02 and more.",
            PROTOTYPE,
            gain("f1", _end("dykstra", "bibtex", **zero), _end("box", "bibtex", **zero)),
            mean(low=0.02),
        ),
    ]


def _bar() -> list[Claim]:
    warm = {"pretrained": 15, "accumulator": 0.0}
    return [
        Claim(
            "bibtex-bar",
            "Bibtex: networks pretrained by cross-entropy with dropout, then trained through the exact projection, reach .447.",
            "deep value networks are remembered with 44.7; not looked up again",
            lambda results: trained(results, "exact", "bibtex", **warm).column("f1"),
            mean(low=0.447),
        ),
        Claim(
            "bibtex-warm-gain",
            "From that start as well the constraint gains over the same training without it.",
            PAPER,
            gain("f1", _end("exact", "bibtex", **warm), _end("box", "bibtex", **warm)),
            each(low=0),
        ),
    ]


def _small() -> list[Claim]:
    why = "With few labels, many of them per example, the F1 loss alone finds their number: there is nothing left to gain."
    found = []
    for data in (*SMALL, "enron", "delicious"):
        says = f"{data}: taking as many labels as predicted gains over the threshold on the same scores."
        found.append(Claim(f"{data}-number", says, PROTOTYPE, _two("top", "threshold", data), confidently(low=0)))
    for data in SMALL:
        for kind, name in (("exact", "the exact projection"), ("smooth", "the smooth step")):
            says = f"{data}: {name} gains .01 of F1 over the same network and loss without a number of labels."
            measure = gain("f1", _end(kind, data), _end("box", data))
            found.append(Claim(f"{data}-{kind}-gains", says, PAPER, measure, confidently(low=0.01), expected_to_fail=True, why=why))
    return found
