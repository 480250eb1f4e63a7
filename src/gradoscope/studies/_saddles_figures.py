"""Figures of the saddle points."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradoscope.report import plots
from gradoscope.studies._saddles import RULES, START, SURFACES
from gradoscope.study import Figure, Results, Scale
from gradoscope.theory.saddles import escape_time, slide

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

COLORS = dict(zip(RULES, (plots.PALETTE[0], plots.PALETTE[1], plots.PALETTE[4], plots.PALETTE[2]), strict=True))
WINDOWS = {"saddle": ((-0.75, 0.75), (-0.3, 1.7)), "monkey": ((-1.5, 5.0), (-2.0, 7.5)), "plateau": ((-0.75, 0.75), (-0.3, 1.7))}


def figures(scale: Scale) -> list[Figure]:
    """The figures of a scale."""
    return [
        Figure(
            "paths",
            "Four rules from the same start, a cross at (0.4, 0.001), for 60 steps on three surfaces. Markers show where they end, the "
            "lower panels how far from the saddle at 0 they are. Newton's method walks into the saddle each time. The saddle-free step "
            "turns its sign where the curvature is negative and ends at a minimum. The gradient falls into the valley and has "
            "hardly begun to leave it. On the plateau, right, only the saddle-free step gets away.",
            _paths,
        ),
        Figure(
            "cartoon",
            "The source's worldview: a saddle and its flattened version, with the paths of the gradient (blue) and of Newton's method "
            "(red) from the same start. Both end near the middle, for opposite reasons: Newton's method since it is attracted, the "
            "gradient since the way out is nearly flat.",
            _cartoon,
        ),
        Figure(
            "network",
            "A tanh network 3-3-1, started near the saddle at the origin: median loss over starts, line and shade over seeds (left), and "
            "where the runs end (right). Newton's method is the only one that ends at saddle points.",
            _network,
        ),
        Figure(
            "slide",
            "How far the flow has gone along an eigenvector after time t, per unit of gradient, against the eigenvalue. For positive "
            "ones it comes to Newton's 1/lambda (dashed) and stays; for negative ones it leaves exponentially, away from where "
            "Newton's step goes.",
            _slide,
        ),
        Figure(
            "escape",
            "Left: the time to go a distance of 1 along negative curvature, predicted (lines) and measured with small steps (dots). Right: "
            "steps from y0 to 1: from a saddle they grow with the logarithm of 1/y0, from a plateau with its square.",
            _escape,
        ),
        Figure(
            "no-minimum",
            "Three functions whose infimum is at infinity. Loss, gradient and largest curvature fall together (left three), and the "
            "parameters grow like log t (right). A small gradient says nothing of a minimum here.",
            _no_minimum,
        ),
        Figure(
            "noise",
            "Steps that (1 - ab)^2 takes from its stable manifold to ab = 0.5, against the noise on the gradient; a dot is a seed, the "
            "line has the slope that theory gives. Without noise it never gets away.",
            _noise,
        ),
    ]


def _contours(ax: Any, name: str) -> None:
    (x0, x1), (y0, y1) = WINDOWS[name]
    x, y = torch.linspace(x0, x1, 120, dtype=torch.float64), torch.linspace(y0, y1, 120, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    value = SURFACES[name].value(grid).numpy()
    low = value.min()
    levels = low + (value.max() - low) * np.linspace(0, 1, 24) ** 2
    ax.contour(x.numpy(), y.numpy(), value, levels=levels, cmap="Greys", linewidths=0.6)
    ax.set_xlim(x0, x1)
    ax.set_ylim(y0, y1)


def _paths(results: Results) -> "Drawing":
    figure, axes = plots.new(2, 3, width=10.5, height=6.2, gridspec_kw={"height_ratios": [3, 2]})
    for at, name in enumerate(WINDOWS):
        top, bottom = axes[0, at], axes[1, at]
        _contours(top, name)
        for rule, marker in zip(RULES, plots.MARKERS, strict=False):
            path = results.array(rule, part="surface", surface=name).numpy()
            top.plot(path[:, 0], path[:, 1], color=COLORS[rule], linewidth=1.2, alpha=0.8)
            top.plot(*path[-1], color=COLORS[rule], marker=marker, markersize=7, markeredgecolor="white", linestyle="none", label=rule)
            away = np.maximum(np.hypot(path[:, 0], path[:, 1]), 1e-9)
            bottom.plot(np.arange(len(path)), away, color=COLORS[rule], label=rule)
        top.plot(*START, marker="x", color=plots.INK, linestyle="none", zorder=5)
        plots.label(top, x="x", y="y" if at == 0 else "", title=SURFACES[name].formula, legend=at == 0, loc="upper left")
        bottom.set_yscale("log")
        plots.label(bottom, x="step", y="distance from 0" if at == 0 else "")
    return figure


def _cartoon(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=4, subplot_kw={"projection": "3d"})
    for ax, name in zip(axes[0], ("saddle", "plateau"), strict=True):
        x, y = torch.linspace(-0.6, 0.6, 50, dtype=torch.float64), torch.linspace(-1.75, 1.75, 70, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        surface = SURFACES[name]
        ax.plot_surface(*(grid[..., i].numpy() for i in (0, 1)), surface.value(grid).numpy(), cmap="viridis", alpha=0.55, linewidth=0)
        for rule, color in (("gradient", plots.PALETTE[0]), ("newton", plots.PALETTE[1])):
            path = results.array(rule, part="surface", surface=name)
            height = surface.value(path).numpy() + 0.05
            ax.plot(path[:, 0].numpy(), path[:, 1].numpy(), height, color=color, marker="o", markersize=2.5, label=rule, zorder=10)
        ax.view_init(elev=32, azim=-60)
        ax.set_title(surface.formula, fontsize=10)
        ax.set_xlabel("x")
        ax.set_ylabel("y")
    axes[0, 0].legend(frameon=False, fontsize=8.5)
    return figure


def _network(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=3.4)
    left, right = axes[0]
    for at, rule in enumerate(RULES):
        x, ys = results.curves.where(part="network", rule=rule).spread("step", "loss")
        plots.band(left, x, ys, label=rule, color=COLORS[rule])
        rows = results.rows.where(part="network", rule=rule)
        saddle, critical = np.mean(rows.column("saddle")), np.mean(rows.column("critical"))
        right.bar(at, saddle, color=plots.PALETTE[1], label="saddle point" if at == 0 else None)
        right.bar(at, critical - saddle, bottom=saddle, color=plots.PALETTE[2], label="minimum" if at == 0 else None)
        right.bar(at, 1 - critical, bottom=critical, color=plots.GRID, label="not at rest" if at == 0 else None)
    left.set_yscale("log")
    plots.label(left, x="step", y="loss", legend=True, loc="upper right")
    right.set_xticks(range(len(RULES)), RULES)
    right.set_ylim(0, 1.3)
    plots.label(right, y="share of runs", legend=True, loc="upper right", ncols=3)
    return figure


def _slide(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.4, height=3.6)
    ax = axes[0, 0]
    lam = torch.linspace(-2, 4, 301, dtype=torch.float64)
    for t, color in zip((0.5, 1.0, 2.0, 4.0), plots.PALETTE, strict=False):
        ax.plot(lam, slide(lam, t), color=color, label=f"t = {t:g}")
    for part in (lam[lam > 0.05], lam[lam < -0.05]):
        ax.plot(part, 1 / part, color=plots.MUTED, linestyle=(0, (4, 3)), label="Newton's 1/λ" if float(part[-1]) > 0 else None)
    ax.set_ylim(-4, 14)
    plots.label(ax, x="eigenvalue λ", y="(1 - exp(-λt)) / λ", legend=True)
    return figure


def _escape(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=3.4)
    left, right = axes[0]
    rows = results.rows.where(part="escape")
    for slope, color in zip(rows.values("slope"), plots.PALETTE, strict=False):
        grid = np.geomspace(0.04, 2.5, 60)
        left.plot(grid, [escape_time(-float(v), slope) for v in grid], color=color)
        chosen = rows.where(slope=slope)
        left.plot(
            chosen.column("curvature"), chosen.column("measured"), linestyle="none", marker="o", color=color, label=f"|g| = {slope:g}"
        )
    left.set_xscale("log")
    left.set_yscale("log")
    plots.label(left, x="|λ|", y="time to go 1", legend=True)
    for name, color in (("saddle", plots.PALETTE[0]), ("plateau", plots.PALETTE[1])):
        chosen = results.rows.where(part="flatness", surface=name)
        right.plot(chosen.column("start"), chosen.column("steps"), marker="o", color=color, label=name)
    right.set_xscale("log")
    right.set_yscale("log")
    plots.label(right, x="start y0", y="steps to y = 1", legend=True)
    return figure


def _no_minimum(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 4, width=11, height=3.0)
    series = (("loss", "loss J"), ("gradient", "gradient norm"), ("curvature", "largest curvature"), ("norm", "|θ|"))
    for ax, (column, text) in zip(axes[0], series, strict=True):
        for kind, color in zip(("exp", "logistic", "softplus"), plots.PALETTE, strict=False):
            x, ys = results.curves.where(part="no-minimum", kind=kind).spread("step", column)
            plots.band(ax, x, ys, label=kind, color=color)
        ax.set_xscale("log")
        if column != "norm":
            ax.set_yscale("log")
        plots.label(ax, x="step", title=text, legend=column == "loss")
    return figure


def _noise(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=4.8, height=3.4)
    ax = axes[0, 0]
    rows = results.rows.where(part="noise", surface="factored")
    levels = sorted(s for s in rows.values("noise") if s > 0)
    ys = np.array([rows.where(noise=s).column("steps") for s in levels]).T
    plots.points(ax, levels, ys, label="measured", color=plots.PALETTE[0], line=False)
    middle = float(np.median(ys[:, 1]))
    ax.plot(levels, [middle - np.log(s / levels[1]) / np.log1p(0.02) for s in levels], color=plots.PALETTE[1], label="- ln s / ln 1.02")
    ax.set_xscale("log")
    plots.label(ax, x="noise s on each part of the gradient", y="steps to ab = 0.5", legend=True)
    return figure
