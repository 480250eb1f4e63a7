"""Figures of local geometry."""

from typing import TYPE_CHECKING

import numpy as np

from gradoscope.measure.geometry import kantorovich_bound
from gradoscope.report import plots
from gradoscope.study import Figure, Results, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]


def figures(scale: Scale) -> list[Figure]:
    """The figures of a scale."""
    return [
        Figure(
            "shares",
            "Which share of a direction's length lies along which eigenvalue of the Hessian, on a tanh network on digits (one seed): the "
            "gradient, the next step of Adam, and a random direction. The mean of the eigenvalues under these shares is the curvature that "
            "the direction sees. The gradient has next to nothing along the eigenvalues near zero; a random direction spreads evenly.",
            _shares,
        ),
        Figure(
            "taylor",
            "Predicted against actual change of the loss, for each step of three optimizers (one seed). Left: the first order (grey) "
            "promises too much, the second order (colour) lies near the diagonal. Right: the same over the steps of gradient descent.",
            _taylor,
        ),
        Figure(
            "best-step",
            "The best step eps* along the gradient while a tanh network is trained by gradient descent with a step that is large for it; "
            "line: median, shade: all seeds. Where the step is above 2 eps* (shaded) the quadratic model says uphill. eps* lies well above "
            "1/lambda_max as long as the gradient is not along the largest eigenvalue.",
            _best_step,
        ),
        Figure(
            "efficiency",
            "Kantorovich's efficiency of the gradient along gradient descent on quadratics of three condition numbers; dashed, the bounds. "
            "It stays far above them and comes to 1, although the problem is as badly conditioned as before: no verdict can rest on it.",
            _efficiency,
        ),
    ]


def _shares(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6.6, height=3.6)
    ax = axes[0, 0]
    curves = results.curves.where(part="curvature", seed=0)
    edges = np.r_[-np.logspace(0, -4, 9), 0.0, np.logspace(-4, 1, 11)]
    places = np.arange(len(edges) - 1)
    for at, (name, color) in enumerate(zip(("gradient", "step", "random"), plots.PALETTE, strict=False)):
        chosen = curves.where(direction=name)
        height, _ = np.histogram(chosen.column("eigenvalue"), bins=edges, weights=chosen.column("share"))
        kappa = results.rows.where(part="curvature", seed=0, direction=name).column("curvature")[0]
        ax.bar(places + (at - 1) * 0.27, height, width=0.26, color=color, label=f"{name} (curvature {kappa:.2g})")
    ticks = [0, 4, 8, 9, 13, 17, len(edges) - 1]
    ax.set_xticks([t - 0.5 for t in ticks], [f"{edges[t]:.1g}" for t in ticks], rotation=30)
    plots.label(ax, x="eigenvalue (bins even in the logarithm on either side of 0)", y="share, sum of cos²", legend=True, loc="upper left")
    return figure


def _taylor(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.4, height=3.6)
    left, right = axes[0]
    curves = results.curves.where(part="steps", seed=0)
    for at, (name, color) in enumerate(zip(curves.values("optimizer"), plots.PALETTE, strict=False)):
        chosen = curves.where(optimizer=name)
        actual = chosen.column("actual")
        left.plot(chosen.column("first"), actual, linestyle="none", marker=".", color="#b9bec7", label="first order" if at == 0 else None)
        left.plot(
            chosen.column("second"),
            actual,
            linestyle="none",
            marker=plots.MARKERS[at],
            markersize=3.5,
            color=color,
            label=f"second, {name}",
        )
    ends = [min(curves.column("actual")), max(curves.column("actual"))]
    left.plot(ends, ends, color=plots.MUTED, linestyle=(0, (4, 3)))
    left.set_xlim(1.6 * ends[0], max(ends[1], 0) * 1.3 + 0.1 * abs(ends[0]))
    plots.label(left, x="predicted change", y="actual change", legend=True)
    descent = curves.where(optimizer="gradient descent")
    for column, color in (("first", "#9aa1ac"), ("second", plots.PALETTE[0]), ("actual", plots.INK)):
        right.plot(descent.column("step"), descent.column(column), color=color, label=column, linestyle="--" if column == "actual" else "-")
    right.set_yscale("symlog", linthresh=1e-3)
    plots.label(right, x="step", y="change of the loss", legend=True)
    return figure


def _best_step(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6, height=3.6)
    ax = axes[0, 0]
    curves = results.curves.where(part="optimal-step")
    x, best = curves.spread("step", "optimal")
    _, top = curves.spread("step", "top")
    eta = results.rows.where(part="optimal-step")[0]["eta"]
    plots.band(ax, x, best, label="eps*", color=plots.PALETTE[0])
    plots.band(ax, x, 2 * best, label="2 eps*", color=plots.PALETTE[5])
    plots.band(ax, x, 1 / top, label="1/λmax", color=plots.PALETTE[4], linestyle="--")
    plots.band(ax, x, 2 / top, label="2/λmax", color=plots.PALETTE[1], linestyle="--")
    plots.reference(ax, eta, "step size", color=plots.INK)
    ax.set_yscale("log")
    low, high = np.nanmin(1 / top) / 2, max(np.nanmax(2 * best), eta) * 2
    ax.fill_between(x, np.nanmedian(2 * best, axis=0), high, color=plots.PALETTE[1], alpha=0.06, linewidth=0)
    ax.set_ylim(low, high)
    plots.label(ax, x="step", y="step size", legend=True, ncols=2)
    return figure


def _efficiency(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6, height=3.6)
    ax = axes[0, 0]
    for condition, color in zip(sorted(results.rows.where(part="efficiency").values("condition")), plots.PALETTE, strict=False):
        x, ys = results.curves.where(part="efficiency", condition=condition).spread("step", "efficiency")
        plots.band(ax, np.asarray(x) + 1, ys, label=f"k = {condition:,}", color=color)
        ax.axhline(kantorovich_bound(float(condition)), color=color, linestyle=(0, (4, 3)), linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    plots.label(ax, x="step + 1", y="efficiency", legend=True, loc="lower right")
    return figure
