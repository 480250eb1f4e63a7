"""The four limitations in one picture, each panel computed from a real problem (paper, figure 6)."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gradoscope.claims import Claim, each, exactly, mean
from gradoscope.report import plots
from gradoscope.studies._limitations import PARTS
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["STUDY", "Limitations"]

CAPTION = (
    "(a) Contours of the loss of a parity network over a random plane through its start, for three parities that agree on half of all "
    "inputs: they lie on top of each other, and so do the gradients, though the optima have nothing in common. (b) Along the one "
    "direction in which the mean loss knows its parity, the losses of single examples (dashed) go up about as often as down, and far "
    "more steeply than the mean (solid). (c) The bowl of reading breakpoints off curves of 4 points, in its steepest and flattest "
    "direction: arrows along minus the gradient point across the valley, not along it. (d) The loss of a staircase by the scale of "
    "its weights: it is flat between jumps, its derivative is exactly zero everywhere, while the forward-only update points at the optimum."
)
FIGURE = "paper, figure 6"


class Limitations(Study):
    """Information, noise, conditioning, flatness: one panel and one number for each."""

    name: ClassVar[str] = "limitations"
    title: ClassVar[str] = "Four ways in which a gradient fails, in one picture"
    source: ClassVar[str] = "Shalev-Shwartz, Shamir and Shammah 2017, figure 6"
    about: ClassVar[tuple[str, ...]] = (
        "The paper closes with four sketches: gradients that are the same for different targets, gradient estimates that are mostly "
        "noise, bad conditioning, flat activations. Here each panel is drawn from a problem of the paper, and comes with a number.",
        "None of the four is a bad minimum or a saddle point, and each has another remedy: (a) has none among gradient methods; "
        "(b) wants supervision of the parts, (c) another parametrisation or a preconditioner, (d) another update rule.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """One setting per panel."""
        d = 10 if scale == "quick" else 12
        return [
            Setting({"part": "targets", "d": d, "points": 15}, cost=1.0 if d == 10 else 5.0),
            Setting({"part": "noise", "d": d}, cost=0.1),
            Setting({"part": "conditioning", "n": 4}, seeds=0, cost=0.01),
            Setting({"part": "conditioning", "n": 100}, seeds=0, cost=0.01),
            Setting({"part": "activation"}, cost=0.5),
        ]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """The numbers of one panel; the first seed's arrays for the picture."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """One number or two per panel."""
        return [
            Claim("a-same-gradient", "At the median point of the plane the gradients of three parities differ by less than 5 %.",
                  f"{FIGURE} (a): extremely small variance in the loss surface's gradient w.r.t. different targets",
                  _column("relative", part="targets"), each(high=0.05)),
            Claim("a-other-optimum", "The parities agree on exactly half of all inputs: their optima have nothing in common.",
                  f"{FIGURE} (a): each with a very different optimum", _column("labels_agree", part="targets"), each(0.5, 0.5)),
            Claim("b-low-snr", "The signal-to-noise ratio of one example's gradient, |E g|^2 / E|g - E g|^2, is below 2^-d, "
                  "the mean over parities (ratio to it).",
                  f"{FIGURE} (b): low SNR of gradient estimates; theorem 1 for the mean", _column("of_mean", part="noise"), each(high=1.0)),
            Claim("b-wrong-way", "Between 40 % and 50 % of the examples pull the other way.",
                  f"{FIGURE} (b): each sample implies a very different estimate", _column("wrong_way", part="noise"), mean(0.4, 0.5)),
            Claim("c-angle", "In the bowl of 4 points the gradient is off the way to the minimum by about 45 degrees at the median.",
                  f"{FIGURE} (c): following the gradient is far from being the best direction to go",
                  _number("median_angle", n=4), exactly(40, 46)),
            Claim("c-sideways", "And almost across it, by more than 80 degrees, at worst.", f"{FIGURE} (c)",
                  _number("largest_angle", n=4), exactly(80, 90)),
            Claim("c-steps", "At 100 points, the paper's size, the flat direction takes over 10^8 steps to get to 1 %; Newton takes one.",
                  "paper, section 4: condition number", _number("steps", n=100), exactly(low=1e8)),
            Claim("d-zero-gradient", "The derivative through the staircase is exactly zero at every one of 401 weights, "
                  "though the loss varies.",
                  f"{FIGURE} (d): completely flat activation, no information in the gradient", _column("zero", part="activation"),
                  each(1.0, 1.0)),
            Claim("d-loss-varies", "Over the same weights the loss does vary, by more than 1.", f"{FIGURE} (d)",
                  _column("range", part="activation"), each(low=1.0)),
            Claim("d-forward-only", "The forward-only update points towards the optimum wherever the loss is not zero.",
                  "extended version, section 5", _column("towards", part="activation"), each(1.0, 1.0)),
        ]  # fmt: skip

    def figures(self, scale: Scale) -> list[Figure]:
        """The four panels."""
        return [Figure("four_limitations", CAPTION, four_panels)]


def _column(name: str, **where: Any) -> Callable[[Results], list[float]]:
    return lambda results: [float(v) for v in results.rows.where(**where).column(name)]


def _number(name: str, n: int) -> Callable[[Results], float]:
    return lambda results: float(results.rows.where(part="conditioning", n=n)[0][name])


def four_panels(results: Results) -> "Drawing":
    """One panel for each limitation."""
    figure, axes = plots.new(2, 2, width=10, height=8.4)
    _targets(axes[0, 0], results)
    _noise(axes[0, 1], results)
    _conditioning(axes[1, 0], results)
    _activation(axes[1, 1], results)
    return figure


def _targets(ax: "Axes", results: Results) -> None:
    surface = results.array("surface", part="targets").numpy()
    axis = results.array("axis", part="targets").numpy()
    levels = np.linspace(float(surface.min()), float(surface.max()), 12)
    for k, style in enumerate(("solid", "dashed", "dotted")):
        ax.contour(
            axis,
            axis,
            surface[:, :, k].T,
            levels=levels,
            colors=plots.PALETTE[(5, 1, 2)[k]],
            linestyles=style,
            linewidths=(3.0, 1.6, 1.2)[k],
        )
        ax.plot([], [], color=plots.PALETTE[(5, 1, 2)[k]], linestyle=style, linewidth=(3.0, 1.6, 1.2)[k], label=f"target {k + 1}")
    plots.label(ax, x="weights, direction 1", y="direction 2", title="(a) Three targets, one gradient", legend=True, loc="lower left")


def _noise(ax: "Axes", results: Results) -> None:
    steps, single, average = (results.array(name, part="noise").numpy() for name in ("steps", "single", "mean"))
    centre = len(steps) // 2
    for k, line in enumerate(single):
        label = "single examples" if k == 0 else None
        ax.plot(steps, line - line[centre], color=plots.PALETTE[5], linestyle="--", linewidth=0.8, label=label)
    ax.plot(steps, average - average[centre], color=plots.PALETTE[1], linewidth=2.2, label="their mean")
    title = "(b) Noise far above the signal"
    plots.label(ax, x="weights, along the signal of the target", y="loss - loss at the start", title=title, legend=True)


def _conditioning(ax: "Axes", results: Results) -> None:
    kappa = float(results.rows.where(part="conditioning", n=4)[0]["kappa"])
    grid = np.linspace(-1, 1, 15)
    flat, steep = np.meshgrid(grid, grid)
    pull = np.stack([-flat / kappa, -steep])
    size = np.maximum(np.linalg.norm(pull, axis=0), 1e-12)
    ax.contour(flat, steep, flat**2 / kappa + steep**2, levels=[0.02, 0.1, 0.3, 0.6, 1.0], colors=plots.GRID, linewidths=1.0)
    ax.quiver(flat, steep, pull[0] / size, pull[1] / size, color=plots.PALETTE[0], width=0.004, scale=26)
    ax.plot(0, 0, "o", color=plots.PALETTE[1], label="minimum")
    plots.label(ax, x="flattest direction", y="steepest direction", title=f"(c) Condition number {kappa:.0f}", legend=True)


def _activation(ax: "Axes", results: Results) -> None:
    scales, loss, slope, update = (results.array(name, part="activation").numpy() for name in ("scales", "loss", "slope", "update"))
    ax.plot(scales, loss, drawstyle="steps-mid", color=plots.PALETTE[0], label="loss")
    ax.plot(scales, slope, color=plots.PALETTE[1], label="its derivative")
    ax.plot(scales, update, color=plots.PALETTE[2], linestyle="--", label="forward-only update")
    plots.reference(ax, 1.0, "optimum", vertical=True)
    plots.label(ax, x="scale of the weights", y="loss, slope", title="(d) A flat activation", legend=True)


STUDY = Limitations()
