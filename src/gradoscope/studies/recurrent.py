"""Recurrent networks: flat activations in time, and gates that are smooth steps (F7)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gradoscope.claims import Claim, each
from gradoscope.report import plots
from gradoscope.studies._recurrent import flat_share, jacobian_norms, networks, plateau, single, train
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["STUDY", "Recurrences"]

CELLS = {"sigmoid": plots.PALETTE[1], "tanh": plots.PALETTE[4], "lstm": plots.PALETTE[0]}
SHARP = {"quick": (1.0, 8.0, 64.0), "paper": (1.0, 4.0, 8.0, 16.0, 64.0, 256.0)}
LENGTHS: dict[Scale, dict[str, tuple[int, ...]]] = {
    "quick": {"sigmoid": (10, 20, 50), "tanh": (10, 20, 50, 100), "lstm": (10, 20, 50)},
    "paper": dict.fromkeys(CELLS, (10, 20, 50, 100, 200)),
}
RATES = {"sigmoid": (0.01, 0.1), "tanh": (0.001, 0.01), "lstm": (0.01,)}  # Adam's step sizes that each is tried with
STEPS = {"quick": 1000, "paper": 1500}
SHARP_LENGTH = 20
LEARNT = 0.1  # of the chance loss


def _setting(scale: Scale, cell: str, length: int, lr: float, sharpness: float = 1.0) -> Setting:
    values = {"cell": cell, "T": length, "lr": lr, "sharpness": sharpness, "steps": STEPS[scale], "hidden": 32, "batch": 32}
    return Setting(values, 5, 5, cost=STEPS[scale] * length * (3e-5 if cell == "lstm" else 1.2e-5))


class Recurrences(Study):
    """The norm of the state's Jacobian against the lag, the share of flat units, and what is learnt, for three cells."""

    name = "recurrent"
    title = "Flat activations in time: recurrent networks and gates"
    source = "Shalev-Shwartz, Shamir and Shammah 2017, section 5, and its slides, part 2; Hochreiter and Schmidhuber 1997"
    about = (
        "The adding problem: a network reads T numbers, two of which are marked, one in each half, and answers their sum. What it has to "
        "learn about the first mark must come back through up to T steps, so the derivative of the last state by an earlier one decides.",
        "That derivative is a product of one matrix per step. The slope of a sigmoid is at most 1/4, so with an orthogonal recurrent "
        "matrix the product is at most 4 to the power of minus the lag: nothing saturates, and yet after 50 steps less than 1e-29 is "
        "left. The slope of tanh is at most 1; what is lost adds up more slowly, and the failure comes at longer sequences. An LSTM "
        "passes its state through a gate instead.",
        "The source's slides liken its smooth approximation of a step function u to the gates of an LSTM. That can be measured: a gate "
        "sigma(kappa a) becomes u as kappa grows. Open gates then hand the state's gradient on with even less loss, but they are flat "
        "themselves, so nothing tells the network when to open and when to close them: with sharp gates the LSTM no longer learns.",
        "A failure is one of the gradient only if no step size mends it: the tanh network at T = 50 stays at chance with a step size of "
        "0.01 and learns with 0.001. The two that can fail are therefore tried with two step sizes each.",
        "Where a network fails there is neither a minimum nor a saddle that holds it: the Hessian has a negative eigenvalue, and yet "
        "no step along its eigenvector gains anything worth having.",
        "Norms are exact spectral norms in float64, the root mean square over sequences. For an LSTM the state is hidden and cell state "
        "together.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Three cells over lengths and step sizes, and the LSTM over the sharpness of its gates."""
        found = [_setting(scale, cell, length, lr) for cell in CELLS for length in LENGTHS[scale][cell] for lr in RATES[cell]]
        return found + [_setting(scale, "lstm", SHARP_LENGTH, 0.01, kappa) for kappa in SHARP[scale] if kappa != 1]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """A training of the seeds, side by side, measured before and after."""
        before = networks(values, seeds)
        stack, losses, seconds = train(values, seeds, context.tick)
        result = Result(timings={"ms_per_step_and_seed": 1e3 * seconds / values["steps"] / len(seeds)})
        for i, seed in enumerate(seeds):
            row: dict[str, Any] = {"seed": seed, "loss": float(losses[-1][1][i])}
            result.curves += [{"seed": seed, "kind": "loss", "step": step, "loss": float(loss[i])} for step, loss in losses]
            for when, networks_then in (("start", before), ("end", stack)):
                network = single(networks_then, i)
                norms, singly = jacobian_norms(network, values["T"], seed)
                result.curves += [{"seed": seed, "kind": when, "lag": lag, "norm": float(norm)} for lag, norm in enumerate(norms)]
                row |= {f"norm_{when}": float(norms[-1]), f"flat_{when}": flat_share(network, values["T"], seed)}
                row[f"half_{when}"] = float(norms[values["T"] // 2])
                row[f"over_bound_{when}"] = float((singly * 4.0 ** np.arange(len(singly))[:, None]).max())
            if row["loss"] > LEARNT and values["cell"] != "lstm":
                row |= plateau(single(stack, i), values["T"], seed)
            result.rows.append(row)
        return result

    def claims(self, scale: Scale) -> list[Claim]:
        """Of the Jacobians, of what is learnt, of gates as smooth steps, and of the surface."""
        return [*_jacobians(scale), *_learning(scale), *_gates(), *_surface(scale)]

    def figures(self, scale: Scale) -> list[Figure]:
        """Norms against the lag, losses against the length, and the sharpness of gates."""
        return [
            Figure(
                "jacobians",
                "Norm of the derivative of the last state by an earlier one against the lag, at the start and after training with a step "
                "size of 0.01, T = 50. Line: median, shade: all seeds. A straight line on this scale is exponential decay; grey: what "
                "the slope of the sigmoid allows, 4 to the power of minus the lag.",
                _draw_jacobians,
            ),
            Figure(
                "learning",
                "Loss on fresh sequences after training, relative to always answering the mean, against the length: for each seed "
                "that of the better step size.",
                lambda results: _draw_learning(results, scale),
            ),
            Figure(
                "gates",
                f"LSTM, T = {SHARP_LENGTH}, against the sharpness of its gates, one dot per seed. The sharper the gates, the more of them "
                "are flat (left). The state's gradient is not lost for that, a few switching gates even blow it up (middle); but "
                "with sharp gates nothing is learnt any more (right).",
                _draw_gates,
            ),
        ]


def _column(name: str, cell: str, length: int, sharpness: float = 1.0, lr: float = 0.01) -> Callable[[Results], list[float]]:
    return lambda results: results.rows.where(cell=cell, T=length, sharpness=sharpness, lr=lr).column(name)


def _best(results: Results, cell: str, length: int) -> list[float]:
    """Each seed's loss at the better of the step sizes."""
    table = results.rows.where(cell=cell, T=length, sharpness=1.0)
    return [min(rows.column("loss")) for _, rows in table.groups("seed")]


def _jacobians(scale: Scale) -> list[Claim]:
    source = "slides, part 2: flat activations; the chain rule"
    longest = max(LENGTHS[scale]["sigmoid"])
    return [
        Claim(
            "sigmoid-bound",
            f"With an orthogonal recurrent matrix the sigmoid network's Jacobian is at most 4^-lag, T = {longest}: the largest ratio.",
            source,
            _column("over_bound_start", "sigmoid", longest),
            each(high=1 + 1e-5),
            why="Each sequence, each lag, exact; the recurrent matrix is orthogonal up to float32.",
        ),
        Claim(
            "not-saturation",
            "The sigmoid network's gradient vanishes without saturation: the share of units with less than a tenth of the largest slope.",
            source,
            _column("flat_start", "sigmoid", longest),
            each(high=0.05),
        ),
        Claim(
            "tanh-decays",
            "At lag 50 less than a tenth is left in the tanh network.",
            source,
            _column("norm_start", "tanh", 50),
            each(high=0.1),
        ),
        Claim(
            "lstm-keeps",
            "At lag 50 the LSTM (forget bias 1) has kept more than a hundredth.",
            "slides, part 2: gates",
            _column("norm_start", "lstm", 50),
            each(low=0.01),
        ),
    ]


def _learning(scale: Scale) -> list[Claim]:
    steps = f"{STEPS[scale]:,} steps"
    learnt = [("lstm", length) for length in LENGTHS[scale]["lstm"] if length <= 100] + [("tanh", 10), ("tanh", 20), ("sigmoid", 10)]
    failed = [("sigmoid", 50), ("tanh", 100)] if scale == "quick" else [("sigmoid", 100), ("sigmoid", 200), ("tanh", 200)]
    found = [
        Claim(
            f"{cell}-learns-{length}",
            f"The {cell} network learns T = {length} in {steps}, at the better step size: loss relative to chance.",
            "the adding problem",
            partial(_best, cell=cell, length=length),
            each(high=LEARNT),
        )
        for cell, length in learnt
    ]
    found += [
        Claim(
            f"{cell}-fails-{length}",
            f"The {cell} network stays at chance for T = {length} after {steps}, at every step size: loss relative to chance.",
            "the adding problem; slides, part 2: flat activations",
            partial(_best, cell=cell, length=length),
            each(low=0.8),
        )
        for cell, length in failed
    ]
    found += [
        Claim(
            f"tanh-50-{word}",
            f"At T = 50 the tanh network {says} with a step size of {lr:g}: loss relative to chance after {steps}.",
            "own finding",
            _column("loss", "tanh", 50, lr=lr),
            each(low, high),
            why="Not every failure of a recurrent network is one of its gradient's path: this one is a step size that is too large.",
        )
        for word, says, lr, low, high in (
            ("large-step", "stays near chance", 0.01, 0.8, math.inf),
            ("small-step", "learns", 0.001, -math.inf, 0.5),
        )
    ]
    return found


def _gates() -> list[Claim]:
    slides = "slides, part 2: replace u by a smooth approximation, similar to sigmoids as gates in LSTMs"
    return [
        Claim(
            "sharp-gates-are-flat",
            "Gates of sharpness 64 are nearly steps: the share that is flat at the start.",
            slides,
            _column("flat_start", "lstm", SHARP_LENGTH, 64.0),
            each(low=0.8),
        ),
        Claim(
            "sharp-gates-hand-on",
            f"And they lose nothing of the state's gradient over {SHARP_LENGTH} steps.",
            slides,
            _column("norm_start", "lstm", SHARP_LENGTH, 64.0),
            each(low=0.5),
            why="An open gate hands on all of it. The few gates that are just switching have slope kappa / 4, and blow it up.",
        ),
        Claim(
            "sharp-gates-fail",
            "But the LSTM stays near chance with them: loss relative to chance.",
            slides,
            _column("loss", "lstm", SHARP_LENGTH, 64.0),
            each(low=0.5),
            why="The gradient of the gates' own parameters is in proportion to their slope; the state's gradient is not what is missing.",
        ),
        Claim(
            "smooth-gates-learn",
            "With gates of sharpness 1 it learns.",
            slides,
            _column("loss", "lstm", SHARP_LENGTH, 1.0),
            each(high=LEARNT),
        ),
    ]


def _surface(scale: Scale) -> list[Claim]:
    lengths = {"sigmoid": 50, "tanh": 100} if scale == "quick" else {"sigmoid": 200, "tanh": 200}
    thesis = "main thesis of the source: neither local minima nor saddle points make training fail"
    found = []
    for cell, length in lengths.items():

        def failing(results: Results, cell: str = cell, length: int = length) -> list[dict[str, Any]]:
            return [row for row in results.rows.where(cell=cell, T=length, lr=RATES[cell][0]) if "smallest" in row]

        def negative(results: Results, failing: Callable[[Results], list[dict[str, Any]]] = failing) -> list[float]:
            return [row["smallest"] + row["residual"] for row in failing(results)]

        def escape(results: Results, failing: Callable[[Results], list[dict[str, Any]]] = failing) -> list[float]:
            return [row["escape"] for row in failing(results)]

        found += [
            Claim(
                f"{cell}-no-minimum",
                f"Where the {cell} network fails (T = {length}) the Hessian has a negative eigenvalue, beyond its residual.",
                thesis,
                negative,
                each(high=0.0),
            ),
            Claim(
                f"{cell}-no-saddle",
                "And a step along its eigenvector takes off less than a tenth of the chance loss, whatever its length and sign.",
                thesis,
                escape,
                each(high=0.1),
            ),
        ]
    return found


def _draw_jacobians(results: Results) -> "Drawing":
    length = 50
    figure, axes = plots.new(1, 2, width=8.8, height=3.4, sharey=True)
    for ax, when, title in zip(axes[0], ("start", "end"), ("at the start", "after training"), strict=True):
        for cell, color in CELLS.items():
            x, ys = results.curves.where(cell=cell, T=length, sharpness=1.0, lr=0.01, kind=when).spread("lag", "norm")
            plots.band(ax, x, np.maximum(ys, 1e-300), label=cell, color=color)
        ax.plot(x, 4.0**-x, color=plots.MUTED, linestyle=(0, (4, 3)), linewidth=1.0)
        ax.set_yscale("log")
        ax.set_ylim(1e-32, 1e3)
        label = "norm of the Jacobian of the state" if when == "start" else ""
        plots.label(ax, x="lag T - t", y=label, title=f"{title}, T = {length}", legend=when == "start")
    return figure


def _draw_learning(results: Results, scale: Scale) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.2, height=3.4)
    ax = axes[0, 0]
    for (cell, color), marker in zip(CELLS.items(), plots.MARKERS, strict=False):
        lengths = LENGTHS[scale][cell]
        plots.points(ax, lengths, np.array([_best(results, cell, length) for length in lengths]).T, label=cell, color=color, marker=marker)
    ax.set_xscale("log")
    ax.set_yscale("log")
    shown = sorted(set().union(*LENGTHS[scale].values()))
    ax.set_xticks(shown, [str(length) for length in shown])
    ax.minorticks_off()
    plots.reference(ax, 1.0, "chance")
    plots.label(ax, x="length T", y="loss / chance", legend=True)
    return figure


def _draw_gates(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=9.6, height=3.2)
    rows = results.rows.where(cell="lstm", T=SHARP_LENGTH)
    kappas = sorted(rows.values("sharpness"))
    wanted = (
        ("flat_start", "share of flat gates, at the start"),
        ("norm_start", f"norm of the Jacobian at lag {SHARP_LENGTH}"),
        ("loss", "loss / chance, after training"),
    )
    for ax, (name, text) in zip(axes[0], wanted, strict=True):
        ys = np.array([rows.where(sharpness=kappa).column(name) for kappa in kappas]).T
        plots.points(ax, kappas, ys, color=CELLS["lstm"])
        ax.set_xscale("log", base=2)
        if name != "flat_start":
            ax.set_yscale("log")
        plots.label(ax, x="sharpness of the gates", y=text)
    plots.reference(axes[0, 2], 1.0, "chance")
    return figure


STUDY = Recurrences()
