"""Depth: what a thousand rectified layers leave of a signal, of a gradient, and of the difference between two images; who learns."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gradoscope.claims import Claim, each, exactly, mean, median
from gradoscope.report import plots
from gradoscope.studies._depth import GAINS, PARTS
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study
from gradoscope.theory.depth import log_growth, random_walk_gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["STUDY", "Depth"]

WIDTH, DEEP = 64, 1000
RATES = {10: 3e-3, 30: 3e-3, 100: 1e-3, 300: 2e-4, 1000: 1e-5}  # Adam's; changes of all layers add up in the output
STATED = "Goodfellow 2015 (Montreal slides), 'The state of modern optimization': even depth does not prevent success, 1,000 layers"
WALK = "Sussillo and Abbott 2014, Random walk initialization"
FLOAT32 = math.log(1.4e-45)  # smaller numbers are zero
CHANCE = math.log(10)
NAMES = {
    "random walk": "random walk, N = width",
    "he": "He",
    "0.9 he": "0.9 He",
    "random walk by layers": "random walk, N = layers",
}
COLORS = dict(zip(GAINS, (plots.PALETTE[0], plots.PALETTE[1], plots.PALETTE[4], plots.PALETTE[3]), strict=True))


class Depth(Study):
    """Signals, gradients and angles by layer at the start, and trainings of 10 to 1,000 layers from three starts."""

    name: ClassVar[str] = "depth"
    title: ClassVar[str] = "Ten to a thousand layers: which start keeps signal and gradient, and what it cannot keep"
    source: ClassVar[str] = (
        "Goodfellow 2015 (Montreal slides), 'The state of modern optimization'; Sussillo and Abbott 2014; He, Zhang, Ren and Sun 2015"
    )
    about: ClassVar[tuple[str, ...]] = (
        "The slides say that depth does not prevent success, and name networks of 1,000 layers with the random walk start. Its idea: "
        "through layers of ReLU with normal weights of standard deviation g/sqrt(n), the logarithm of a signal's length makes a random "
        "walk whose steps are independent and known exactly. He's start, g = sqrt 2, keeps the mean of the square; the mean of the "
        "logarithm still drifts down, by 5/(4n) per layer. At a width of 64 that is nothing for 10 layers, and e^-20 for 1,000. The "
        "formula g = sqrt 2 exp(1.2/(max(N, 6) - 2.4)) takes the drift away. Its N is the width of the layers. Read as their number, it "
        "mends nothing.",
        "The derivative by a layer's weights is the outer product of the signal that enters and the slope that comes back. One shrinks on "
        "the way up and the other on the way down, so that the gradient is of about the same size in all layers, and vanishes in all of "
        "them together: this start does not starve the first layers, it starves the whole network.",
        "What no gain can keep is the difference between two images. Every rectified layer turns two signals towards each other, and at a "
        "width of 64 the angle between two digits after 1,000 layers is far below the rounding of float32. Only their lengths differ "
        "still. So the scale of signal and gradient is necessary for learning, and it is not enough.",
        "Trainings on scikit-learn's digits, width 64, by Adam with a rate that falls to zero and is smaller for more layers. At 10 layers "
        "every start learns. At 100 He's start still does, as a drift of two nats is none; a tenth less on the weights (0.9 He) makes "
        "it much worse. At 300 the random walk start learns and 0.9 He does not learn at all. At 1,000 layers (paper scale, 300 steps) "
        "signal and gradient are as large as theory says, and yet the loss hardly leaves ln 10 within this budget: the source's 1,000 "
        "layers are not reproduced here at this width and this number of steps.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Signals are those of the paper's size at both scales; trainings have fewer layers and steps at the quick one."""
        found = [Setting({"part": "signals", "width": WIDTH, "layers": DEEP, "gain": gain}, 10, 10, 0.15) for gain in GAINS]
        depths, steps = ((10, 100), 150) if scale == "quick" else ((10, 30, 100, 300), 600)
        common = {"part": "training", "width": WIDTH}
        for layers in depths:
            values = {**common, "layers": layers, "steps": steps, "batch": 64, "lr": RATES[layers]}
            found += [Setting({**values, "gain": gain}, 5, 5, layers * steps * 8e-5) for gain in GAINS[:3]]
        if scale == "paper":
            values = {**common, "layers": DEEP, "steps": 300, "batch": 32, "lr": RATES[DEEP]}
            found += [Setting({**values, "gain": gain}, 5, 5, 30.0) for gain in GAINS[:2]]
        return found

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """Signals of one start, or trainings of one start and depth."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """The random walk against its exact law, the formula's two readings, angles, and who learns."""
        return [*_walk(), *_gradients(), *_angles(), *_trainings(scale)]

    def figures(self, scale: Scale) -> list[Figure]:
        """By layer at the start; losses of trainings."""
        return [
            Figure(
                "layers",
                "At the start, by layer, width 64; line: median, shade: ten seeds. Left: length of a digit's signal relative to the digit "
                "(dashed: the exact mean of the logarithm; dotted: below it float32 has only zero). Middle: the gradient by the layer's "
                "weights, alike in all layers. Right: the angle between two digits, which no gain keeps (dotted: the rounding of float32).",
                _draw_layers,
            ),
            Figure(
                "training",
                "Loss of the current batch of digits by depth and start; line: median, shade: five seeds; dashed: ln 10, chance. Ten "
                "layers learn from any start; the deeper, the more the start decides.",
                _draw_training,
            ),
            Figure(
                "depth",
                "Training loss at the end against the number of layers; dots are seeds, lines medians; dashed: ln 10.",
                _draw_depth,
            ),
        ]


def _signal(name: str, gain: str) -> Callable[[Results], list[float]]:
    return lambda results: results.rows.where(part="signals", gain=gain).column(name)


def _walk() -> list[Claim]:
    formula = f"{WALK}: g = sqrt 2 exp(1.2/(max(N, 6) - 2.4))"
    return [
        Claim(
            "walk-drift",
            "After 1,000 layers the logarithm of the signal is where a walk with the exact drift and spread ends: standard deviations.",
            "theorem: steps are independent with the law of chi^2 of a binomial",
            _signal("z", "random walk"),
            mean(-1.0, 1.0),
            why="The mean of ten standard normal numbers; 0.95 is three of its standard deviations. All gains have the same draws.",
        ),
        Claim(
            "walk-spread",
            "And its steps have the exact standard deviation, 0.144: their ratio.",
            "the same theorem",
            _signal("step_std", "random walk"),
            each(0.9, 1.1),
        ),
        Claim(
            "formula-has-no-drift",
            "With N the width the formula takes the drift away: nats over 1,000 layers of width 64, exactly.",
            formula,
            lambda results: 1000 * log_growth(WIDTH, random_walk_gain(WIDTH))[0],
            exactly(-1.0, 1.0),
        ),
        Claim(
            "signal-random-walk",
            "So the signal after 1,000 layers is neither gone nor huge: mean logarithm.",
            formula,
            _signal("signal", "random walk"),
            mean(-5.0, 5.0),
            why="One network's logarithm has a standard deviation of 4.6, its mean over ten one of 1.4.",
        ),
        Claim(
            "signal-he",
            "With He's gain it is e^-20: mean logarithm.",
            "theory: -5/(4n) per layer",
            _signal("signal", "he"),
            mean(-25.0, -15.0),
        ),
        Claim(
            "signal-0.9-he",
            "With nine tenths of it nothing is left that float32 can hold: every logarithm is below -103.",
            "theory: ln 0.9 per layer beside",
            _signal("signal", "0.9 he"),
            each(high=FLOAT32),
        ),
        Claim(
            "formula-by-layers",
            "With N the number of layers the formula keeps the signal as well: mean logarithm after 1,000 layers.",
            f"{formula}, N read as the number of layers",
            _signal("signal", "random walk by layers"),
            mean(-5.0, 5.0),
            expected_to_fail=True,
            why="Its exponent is then 1.2/998 instead of 1.2/62: the drift of He's gain remains but for one nat in twenty.",
        ),
    ]


def _gradients() -> list[Claim]:
    def apart(gain: str) -> Callable[[Results], list[float]]:
        def measure(results: Results) -> list[float]:
            rows = results.rows.where(part="signals", gain=gain)
            return [row["gradient_first"] - row["gradient_last"] for row in rows]

        return measure

    return [
        Claim(
            "gradient-random-walk",
            "With the random walk gain the gradient by the first layer's weights is of order one: mean logarithm, slope 1 at the top.",
            WALK,
            _signal("gradient_first", "random walk"),
            mean(-5.0, 8.0),
            why="The image has a length of about 8, e^2.",
        ),
        Claim(
            "gradient-he",
            "With He's it is as small as the signal: mean logarithm.",
            "theory",
            _signal("gradient_first", "he"),
            mean(-23.0, -12.0),
        ),
        Claim(
            "gradient-vanishes-towards-the-start",
            "With He's gain it is the first layer's gradient that vanishes: mean logarithm of the first over the last layer's below -10.",
            "the usual picture of vanishing gradients",
            apart("he"),
            mean(high=-10.0),
            expected_to_fail=True,
            why="It is a product of the signal from below and the slope from above: e^-20 in every layer.",
        ),
        Claim("gradient-alike", "It is alike in the first and the last layer.", "theory", apart("he"), mean(-5.0, 5.0)),
    ]


def _angles() -> list[Claim]:
    return [
        Claim(
            "angles-collapse",
            "Whatever the gain, 1,000 layers of width 64 turn two digits onto each other: median angle below 1e-5.",
            "ours",
            _signal("angle", "random walk"),
            median(high=1e-5),
        ),
        Claim(
            "angles-whatever-gain",
            "The angle does not know the gain: the largest distance between the logarithms of three gains.",
            "theory: ReLU commutes with positive factors",
            _gain_matters,
            each(high=0.5),
            why="Up to rounding, which is all that is left of some angles.",
        ),
    ]


def _gain_matters(results: Results) -> list[float]:
    """Of the mean over the looks at layers up to a hundred, where angles are far above rounding."""
    found = []
    for _, rows in results.curves.where(part="signals").groups("seed"):
        early = [[p["angle"] for p in rows.where(gain=gain) if p["layer"] <= 100] for gain in GAINS[:3]]
        logs = np.log(np.maximum(np.array(early), 1e-300))
        found.append(float(np.ptp(logs, axis=0).max()))
    return found


def _trainings(scale: Scale) -> list[Claim]:
    def value(name: str, layers: int, gain: str) -> Callable[[Results], list[float]]:
        return lambda results: results.rows.where(part="training", layers=layers, gain=gain).column(name)

    def worse(layers: int) -> Callable[[Results], list[float]]:
        return lambda results: [
            a / b for a, b in zip(*(value("loss", layers, gain)(results) for gain in ("0.9 he", "random walk")), strict=True)
        ]

    found = [
        Claim(
            f"ten-layers-{gain.replace(' ', '-')}",
            f"Ten layers learn the digits with the {NAMES[gain]} start: share of training images that are right.",
            STATED,
            value("right", 10, gain),
            each(low=0.9),
        )
        for gain in GAINS[:3]
    ]
    found += [
        Claim(
            "hundred-layers",
            "A hundred layers learn with the random walk start: mean training loss (ln 10 = 2.30 is chance).",
            STATED,
            value("loss", 100, "random walk"),
            mean(high=2.0 if scale == "quick" else 1.5),
        ),
        Claim(
            "hundred-layers-he",
            "With He's start as well: a drift of two nats is none.",
            "theory: 100 x 0.02",
            value("loss", 100, "he"),
            mean(high=2.1 if scale == "quick" else 1.7),
        ),
        Claim(
            "hundred-layers-0.9-he",
            "With a tenth less on every weight the loss ends above that of the random walk start: mean ratio.",
            "theory: 0.9^100 = 3e-5",
            worse(100),
            mean(low=1.05),
        ),
    ]
    if scale == "quick":
        return found
    return [
        *found,
        Claim("three-hundred-layers", "Three hundred layers learn with it.", STATED, value("loss", 300, "random walk"), mean(high=2.2)),
        Claim(
            "three-hundred-layers-0.9-he",
            "With 0.9 He they learn nothing.",
            "theory: 0.9^300 = 2e-14",
            value("loss", 300, "0.9 he"),
            each(low=CHANCE - 0.02),
        ),
        Claim(
            "thousand-layers",
            "A thousand layers learn with the random walk start: the loss of every seed is at most 2.2 after 300 steps.",
            STATED,
            value("loss", 1000, "random walk"),
            each(high=2.2),
            expected_to_fail=True,
            why="At a width of 64 images differ by their lengths only; in trials one of three seeds began to learn within 400 steps.",
        ),
        Claim(
            "thousand-layers-he",
            "With He's start they learn nothing.",
            "theory: e^-20",
            value("loss", 1000, "he"),
            each(low=CHANCE - 0.02),
        ),
    ]


def _draw_layers(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=11, height=3.6)
    curves, rows = results.curves.where(part="signals"), results.rows.where(part="signals")
    for gain in GAINS:
        for ax, column in zip(axes[0, :2], ("signal", "gradient"), strict=True):
            x, ys = curves.where(gain=gain).spread("layer", column)
            plots.band(ax, x, ys / math.log(10), label=NAMES[gain], color=COLORS[gain])
        axes[0, 0].plot(x, x * rows.where(gain=gain)[0]["drift"] / math.log(10), color=COLORS[gain], linestyle=(0, (4, 3)), linewidth=1)
    x, ys = curves.where(gain="random walk").spread("layer", "angle")
    plots.band(axes[0, 2], x[1:], np.maximum(ys[:, 1:], 1e-17), color=plots.PALETTE[2])
    axes[0, 2].set_xscale("log")
    axes[0, 2].set_yscale("log")
    axes[0, 2].axhline(6e-8, color=plots.MUTED, linestyle=":")
    for ax in axes[0, :2]:
        ax.axhline(FLOAT32 / math.log(10), color=plots.MUTED, linestyle=":")
    plots.label(axes[0, 0], x="layer", y="log10 of the signal's length", legend=True, loc="lower left")
    plots.label(axes[0, 1], x="layer", y="log10 of the gradient's norm")
    plots.label(axes[0, 2], x="layer", y="angle between two images")
    return figure


def _draw_training(results: Results) -> "Drawing":
    depths = sorted(results.rows.where(part="training").values("layers"))
    figure, axes = plots.new(1, len(depths), width=3.2 * len(depths) + 1, height=3.3, sharey=True)
    for ax, layers in zip(axes[0], depths, strict=True):
        for gain in GAINS[:3]:
            chosen = results.curves.where(part="training", layers=layers, gain=gain)
            if len(chosen):
                x, ys = chosen.spread("step", "loss")
                plots.band(ax, x, ys, label=NAMES[gain], color=COLORS[gain])
        plots.reference(ax, CHANCE, "")
        ax.set_ylim(0, 3)
        plots.label(ax, x="step", y="loss" if layers == depths[0] else "", title=f"{layers} layers", legend=layers == depths[0])
    return figure


def _draw_depth(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5, height=3.5)
    ax, table = axes[0, 0], results.rows.where(part="training")
    for gain, marker in zip(GAINS[:3], plots.MARKERS, strict=False):
        depths = sorted(table.where(gain=gain).values("layers"))
        ys = np.array([table.where(gain=gain, layers=layers).column("loss") for layers in depths]).T
        plots.points(ax, depths, ys, label=NAMES[gain], color=COLORS[gain], marker=marker)
    ax.set_xscale("log")
    plots.reference(ax, CHANCE, "chance")
    plots.label(ax, x="layers", y="training loss at the end", legend=True)
    return figure


STUDY = Depth()
