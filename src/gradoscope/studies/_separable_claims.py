"""What the study of wide networks on separable data claims."""

import math
from collections.abc import Callable

from gradoscope.claims import Claim, Criterion, confidently, each, exactly, mean
from gradoscope.study import Results, Scale

__all__ = ["claims"]

SLIDES = "Globerson's slides"
RELU = {4: 0.010, 6: 0.375, 8: 0.7575, 10: 0.950, 12: 0.9925}  # an independent prototype's shares of 400 runs
ERRORS = {200: 0.08, 800: 0.03, 3200: 0.01}
Measure = Callable[[Results], list[float]]


def claims(scale: Scale) -> list[Claim]:
    """All of them, in the order of the parts."""
    return [*_width(), *_compression(), *_relu(), *_images(scale), *_labels(scale), *_baum()]


def _column(name: str, /, **where: object) -> Measure:
    return lambda results: [float(v) for v in results.rows.where(**where).column(name)]


def _width() -> list[Claim]:
    bound = f"{SLIDES}, 'Optimization': O(|w*|^2/a^2) non-zero updates, independent of k; constants derived"

    def quotient(results: Results) -> list[float]:
        return [r["updates"] / r["bound"] for r in results.rows.where(part="width")]

    def spread(results: Results) -> list[float]:
        found = []
        for _, rows in results.rows.where(part="width").groups("slope", "eta", "seed"):
            counts = [r["updates"] for r in rows if r["k"] > 1]
            found.append(max(counts) / min(counts))
        return found

    def rosenblatt(results: Results) -> list[float]:
        return [r["perceptron"] / r["perceptron_bound"] for r in results.rows.where(part="width")]

    def excess(results: Results) -> list[float]:
        return [r["each"] - r["predicted"] for r in results.rows.where(part="orthonormal")]

    def per_step(results: Results) -> float:
        counts = {r["eta"]: r["each"] for r in results.rows.where(part="orthonormal", slope=0.3)}
        return float(counts[0.01] / counts[0.1])

    return [
        Claim(
            "converges", "Every leaky network ends without an error on its examples.", bound, _column("error", part="width"), each(high=0.0)
        ),
        Claim("bound", "No run makes more updates than the bound, at k = 1 to 10,000.", bound, quotient, each(high=1.0)),
        Claim("width-free", "From k = 10 on the most and the least updates differ by less than a half.", bound, spread, each(high=1.5)),
        Claim("perceptron", "The perceptron stays below |w*|^2 R^2.", "Novikoff 1962", rosenblatt, each(high=1.0)),
        Claim(
            "replay",
            "The recorded examples alone give the same network, bit for bit.",
            f"{SLIDES}, 'Generalization'",
            _column("replayed", part="width"),
            each(low=1.0),
        ),
        Claim(
            "steps", "Every update keeps both inequalities of the proof.", "derived", _column("violations", part="steps"), each(high=0.0)
        ),
        Claim("lower", "On (e_j, +1) each example needs 2/(eta(1+a^2)) updates, up to 3 more.", "derived", excess, exactly(-1e-9, 3.0)),
        Claim(
            "step-size",
            "A tenth of the step size takes about ten times the updates.",
            "derived: 1/eta is real",
            per_step,
            exactly(8.0, 11.0),
        ),
    ]


def _compression() -> list[Claim]:
    stated = f"{SLIDES}, 'Generalization': O((|w*|^2/n) log(n/delta)), independent of k"
    where = {"part": "compression"}
    many = _column("bound", part="compression", n=6400)
    says = "With the most updates that there could be the bound is vacuous at n = 400, 1600 and 6400."
    return [
        Claim("compression", "No error on new data is above the compression bound.", stated, _column("broken", **where), each(high=0.0)),
        Claim("compression-tells", "At n = 6400 the bound is below one half.", stated, many, each(high=0.5)),
        Claim("compression-few", "At n = 400 it is vacuous.", "derived", _column("vacuous", part="compression", n=400), each(low=1.0)),
        Claim("compression-worst", says, "derived: 18.95, 5.45, 1.55", _column("worst_vacuous", **where), each(low=1.0)),
    ]


def _relu() -> list[Claim]:
    bad, fails = f"{SLIDES}, 'ReLU': there always exist bad local minima", f"{SLIDES}, 'ReLU': large networks overcome dead ReLUs"

    def off(results: Results) -> list[float]:
        return [abs(r["loss"] - r["positive"]) for r in results.rows.where(part="dead")]

    found = [
        Claim("dead-loss", "At the explicit bad minimum the loss is the share of positives.", bad, off, each(high=1e-12)),
        Claim("dead-flat", "200 random changes leave it as it is.", bad, _column("spread", part="dead"), each(high=1e-12)),
        Claim("dead-still", "The gradient is 0, and SGD makes no move.", bad, _moved, each(high=0.0)),
    ]
    for k, rate in RELU.items():
        says = f"Of networks with {k} pairs of ReLUs (1 - 2^-{k})^64 learn 64 orthogonal examples."
        exact = (1 - 2.0**-k) ** 64
        claim = Claim(
            f"relu-{k}", says, f"derived; prototype: {rate}", _column("success", part="relu", k=k), mean(exact - 0.1, exact + 0.1)
        )
        found.append(claim)
    says = "A single pair of leaky units always does."
    return [*found, Claim("leaky-1", says, fails, _column("success", part="relu", k=1), each(low=1.0))]


def _moved(results: Results) -> list[float]:
    return [max(r["moved"], r["gradient"]) for r in results.rows.where(part="dead")]


def _images(scale: Scale) -> list[Claim]:
    stated = f"{SLIDES}, 'Experiments': binary MNIST with 4,000 images, no over-fitting when over-parameterised"
    wide = {"part": "images", "hidden": [10, 100, 1000]}
    test: Criterion = mean(high=0.035)

    def growth(results: Results) -> list[float]:
        few, many = (_column("test_error", part="images", hidden=h)(results) for h in (10, 1000))
        return [b - a for a, b in zip(few, many, strict=True)]

    def data(results: Results) -> list[float]:
        return [float(r["data"] == "mnist") for r in results.rows.where(part="images")]

    found = [
        Claim(
            "images-train",
            "Threes against fives: no error on the examples at any width.",
            stated,
            _column("train_error", part="images"),
            each(high=0.0),
        ),
        Claim("images-test", "From 10 hidden units on the error on others is at most 3.5%.", stated, _column("test_error", **wide), test),
        Claim(
            "images-growth",
            "With 100 times the weights the error on others grows by no more than a point.",
            stated,
            growth,
            mean(high=0.01),
        ),
        Claim("images-bound", "The updates stay below the bound.", "derived", _column("within", part="images"), each(low=1.0)),
        Claim("images-vacuous", "The compression bound says nothing there.", "derived", _column("vacuous", part="images"), each(low=1.0)),
    ]
    if scale == "paper":
        says = "These are images of MNIST, from the folder that GRADOSCOPE_DATA names."
        found.append(Claim("images-mnist", says, "premise: scikit-learn's digits stand in where it is missing", data, each(low=1.0)))
    return found


def _labels(scale: Scale) -> list[Claim]:
    stated = f"{SLIDES}, 'Expressivity': zero training error is almost always possible for kd > n"
    wide = {"part": "labels", "k": [10, 100]}
    return [
        Claim(
            "labels-fit",
            "Random labels of 100 examples are learnt without error by 10 and by 100 pairs.",
            stated,
            _column("train_error", **wide),
            each(high=0.0),
        ),
        Claim(
            "labels-narrow",
            f"Two pairs do not learn them in {3000 if scale == 'paper' else 300} passes.",
            "prototype",
            _column("converged", part="labels", k=2),
            each(high=0.0),
        ),
        Claim("labels-chance", "On new examples the error is one half.", stated, _column("test_error", **wide), each(0.45, 0.55)),
    ]


def _baum() -> list[Claim]:
    stated = f"{SLIDES}, 'The optimization challenge': Baum's algorithm works for symmetric distributions"
    even = {"part": "baum", "shift": 0.0}
    found = [
        Claim(
            "baum-fits",
            "Both linear programs can be solved: no error on the examples.",
            stated,
            _column("train_error", **even),
            each(high=0.0),
        )
    ]
    for n, most in ERRORS.items():
        says = f"With {n} examples the error on others is below {most:.0%}."
        found.append(Claim(f"baum-{n}", says, stated, _column("error", n=n, **even), mean(high=most)))

    def slope(results: Results) -> list[float]:
        few, many = (_column("error", n=n, **even)(results) for n in (200, 3200))
        return [math.log(max(b, 1e-5) / a) / math.log(16) for a, b in zip(few, many, strict=True)]

    def relative(results: Results) -> list[float]:
        even_part, odd = (_column("relative", part="baum", n=800, shift=s)(results) for s in (0.0, 1.5))
        return [b / a for a, b in zip(even_part, odd, strict=True)]

    says = "It falls about as 1/n: the exponent is between -1.4 and -0.6."
    found.append(Claim("baum-rate", says, "prototype: error ~ 1/n", slope, mean(-1.4, -0.6)))
    says = "Under a shifted law the error is larger in units of the rarer class."
    return [*found, Claim("baum-shifted", says, f"{stated}; prototype: 54% against 5.5%", relative, confidently(low=1.0))]
