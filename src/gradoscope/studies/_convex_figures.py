"""Figures of the study of convex rates."""

from typing import TYPE_CHECKING

import numpy as np

from gradoscope.report import plots
from gradoscope.study import Figure, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

BLUE, RED, GREEN, PURPLE, ORANGE, SKY = plots.PALETTE
DASH = (0, (4, 3))
METHODS = {"descent": ("gradient descent", BLUE, "-"), "nesterov": ("Nesterov", RED, "-"), "conjugate": ("conjugate gradients", GREEN, "-")}


def figures() -> list[Figure]:
    """Gaps and bounds, worst functions, rates, the cliff, the flow."""
    return [
        Figure(
            "gaps",
            "What is left of logistic losses at step 1/L (line: median, shade: seeds) under the bounds for them (dashed, medians): on a "
            "plain logistic loss every bound holds and none is near. With a ridge the linear rate takes over.",
            _gaps,
        ),
        Figure(
            "worst",
            "Nesterov's worst function. Left: the one of d = 201, which is worst for t = 100 only, hence one mark; the slopes of its "
            "curves are those of one function, and not the rates of the class. Right: for each t the function that is worst for it. No "
            "method of first order gets below 1; the accelerated one stays within a constant, gradient descent loses as the square root "
            "of t.",
            _worst,
        ),
        Figure(
            "rates",
            "How much of the loss a step takes off a quadratic, against the condition number: measured (dots: seeds) and by theory "
            "(lines), at 1/L and at the best step. The lecture's bound (dashed) promises half of what happens.",
            _rates,
        ),
        Figure(
            "cliff",
            "(w^5 - 1)^2/2 from w = 2. Left, step size 0.02: one plain step overshoots to -47.6 and overflow follows; clipped steps walk "
            "down the wall; a decay that is too fast stops half way. Right, 0.1: clipped, but in a cycle around w = 1 until the step "
            "decays.",
            _cliff,
        ),
        Figure(
            "flow",
            "Distance between gradient descent and gradient flow at time 2, against the step size; dots are seeds. Both "
            "fall as the step, the order of Euler's method.",
            _flow,
        ),
    ]


def _gaps(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.2, height=3.7, sharey=True)
    for ax, mu in zip(axes[0], (0.0, 0.01), strict=True):
        table = results.curves.where(part="logistic", mu=mu)
        for name, color in (("descent", BLUE), ("nesterov", RED)):
            x, ys = table.spread("step", name)
            plots.band(ax, x, np.maximum(ys, 1e-16), label=METHODS[name][0], color=color)
        kinds = [("lecture", "2L/(t+1)", ORANGE), ("tight", "L/(4t+2)", GREEN), ("accelerated", "2L/(t+1)^2", RED)]
        if mu:
            kinds.append(("linear", "(1 - mu/L)^t", PURPLE))
        for name, text, color in kinds:
            x, ys = table.spread("step", name)
            ax.plot(x, np.median(ys, axis=0), color=color, linestyle=DASH, linewidth=1.1, label=text)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(1e-14, 1e2)
        plots.label(
            ax, x="step t", y="" if mu else "loss above the minimum", title=f"logistic loss, mu = {mu:g}", legend=True, loc="lower left"
        )
    return figure


def _worst(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.2, height=3.5)
    left, right = axes[0]
    curves = results.curves.where(part="worst")
    steps = np.array(curves.column("step"))
    for name, (text, color, style) in METHODS.items():
        left.plot(steps, curves.column(name), color=color, linestyle=style, label=text)
    left.plot(
        steps[-1], curves.column("lower")[-1], color=plots.INK, marker="_", markersize=14, linestyle="none", label="lower bound, t = 100"
    )
    rows = [row for row in results.rows.where(part="worst") if "attained" in row]
    for (name, (text, color, _)), marker in zip(METHODS.items(), plots.MARKERS, strict=False):
        right.plot([r["t"] for r in rows], [r[name] for r in rows], color=color, marker=marker, markersize=5, label=text)
    times = np.array([r["t"] for r in rows], dtype=float)
    right.plot(times, rows[0]["descent"] * np.sqrt(times / times[0]), color=plots.MUTED, linestyle=DASH, linewidth=1.0, label="sqrt t")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_yscale("log")
    left.set_xticks([1, 10, 100], ["1", "10", "100"])
    right.set_xticks(times, [f"{t:g}" for t in times])
    right.set_yticks([1, 2, 3, 5, 10], ["1", "2", "3", "5", "10"])
    right.minorticks_off()
    plots.label(left, x="step t", y="loss above the minimum", title="d = 201", legend=True)
    plots.label(right, x="step t", y="gap / lower bound", title="d = 2t + 1", legend=True)
    return figure


def _rates(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.4, height=3.6)
    ax = axes[0, 0]
    table = results.rows.where(part="quadratic")
    kappas = np.array(sorted(table.values("kappa")))
    for name, text, color, marker, truth in (
        ("rate_at_L", "step 1/L", BLUE, "o", (1 - 1 / kappas) ** 2),
        ("rate_best", "step 2/(L + mu)", RED, "s", ((kappas - 1) / (kappas + 1)) ** 2),
    ):
        ys = np.array([table.where(kappa=k).column(name) for k in kappas]).T
        plots.points(ax, kappas, 1 - ys, label=text, color=color, marker=marker, line=False)
        ax.plot(kappas, 1 - truth, color=color, linewidth=1.0)
    ax.plot(kappas, 1 / kappas, color=plots.MUTED, linestyle=DASH, linewidth=1.1, label="lecture's bound")
    ax.set_xscale("log")
    ax.set_yscale("log")
    plots.label(ax, x="condition number L/mu", y="share of the loss lost per step", legend=True)
    return figure


def _cliff(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.2, height=3.4, sharey=True)
    looks = {
        (False, "constant"): ("plain", plots.INK, ":"),
        (True, "constant"): ("clipped", BLUE, "-"),
        (True, "sqrt"): ("clipped, decay 1/sqrt t", GREEN, "--"),
        (True, "inverse"): ("clipped, decay 1/t", RED, "-."),
    }
    for ax, lr in zip(axes[0], (0.02, 0.1), strict=True):
        for (clipped, schedule), (text, color, style) in looks.items():
            rows = results.curves.where(part="cliff", lr=lr, clipped=clipped, schedule=schedule)
            ax.plot(rows.column("step"), rows.column("w"), color=color, linestyle=style, label=text)
        ax.set_ylim(0.4, 2.15)
        ax.set_xlim(-2, 160)
        plots.reference(ax, 1.0, "minimum")
        plots.label(ax, x="step", y="w" if lr == 0.02 else "", title=f"step size {lr:g}", legend=lr == 0.02)
    return figure


def _flow(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.2, height=3.5)
    ax = axes[0, 0]
    for kind, color, marker in (("logistic", BLUE, "o"), ("tanh", RED, "s")):
        table = results.curves.where(part="flow", kind=kind)
        etas = np.array(table.values("eta"))
        ys = np.array([table.where(eta=eta).column("error") for eta in etas]).T
        plots.points(ax, etas, ys, label="logistic loss" if kind == "logistic" else "tanh network", color=color, marker=marker)
    ax.plot(etas, 1e-4 * etas / etas.min(), color=plots.MUTED, linestyle=DASH, linewidth=1.1, label="proportional to the step")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(etas, [f"{eta:g}" for eta in etas])
    ax.minorticks_off()
    plots.label(ax, x="step size", y="distance to gradient flow", legend=True)
    return figure
