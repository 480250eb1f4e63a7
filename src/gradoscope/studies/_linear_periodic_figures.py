"""The figures of the study of the linear-periodic landscape."""

import math
from typing import TYPE_CHECKING

import numpy as np

from gradoscope.report import plots
from gradoscope.study import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = [
    "DENSITIES",
    "DESCENT",
    "ORACLE",
    "SURFACE",
    "VARIANCE",
    "densities",
    "descent",
    "oracle",
    "surface",
    "variance",
]

SURFACE = (
    "The expected loss of learning cos(w*.x) by cos(w.x), for w* = (2, 2) as on the slide and for faster ones, and below it the size of "
    "its gradient. Wells at +-w*, a bump at 0, and a plateau everywhere else. Marked: minima (dots), the maximum (triangle), and the two "
    "saddle points (crosses) that the slide denies. None of them is where descent gets stuck: the plateau is."
)
VARIANCE = (
    "How much the gradient varies with the direction of w*, exactly. Left: at |w| = 1 in 10 dimensions, against r = |w*|, with drawn "
    "targets as dots. Middle: at |w| = r = 6 against d; 20,000 draws (dots) fall below the line, because few directions carry the "
    "variance. Right: at the worst |w|: it takes both a large r and a large d."
)
DENSITIES = (
    "Left: the variance against r for five densities of x in the plane, at |w| = 1. Right: theorem 2's tail of the Fourier transform of "
    "the square root of each. Where the tail is thin the gradient forgets the target; edges (uniform) or a width that shrinks with r "
    "(narrow) leave a thick tail, and a gradient that knows the target."
)
DESCENT = (
    "The share of 100 random starts at |w| = r from which exact gradient descent finds w*, and how flat the ball |w| <= 2r is. "
    "Between r = 3 and r = 6 the plateau takes over, the sooner the more dimensions there are."
)
ORACLE = (
    "Descent on the mean gradient over all targets, each true gradient being hidden while it is within the tolerance: the share of targets "
    "that ever shows itself (2e-5 stands for none of 20,000). A tolerance of 1e-6 is about what single precision resolves."
)


def surface(results: Results) -> "Drawing":
    """Contours of the loss and of the gradient's size for three targets."""
    radii = [math.sqrt(8), 5.0, 8.0]
    figure, axes = plots.new(2, len(radii), width=10.5, height=7.0, sharex=True, sharey=True)
    points = results.curves.where(part="critical")
    for column, r in enumerate(radii):
        axis = results.array("axis", part="landscape", r=r).numpy()
        value = results.array("loss", part="landscape", r=r).numpy().T
        slope = results.array("gradient", part="landscape", r=r).numpy().T
        top = axes[0, column].contourf(axis, axis, value, levels=np.arange(-0.05, 1.6, 0.1), cmap="cividis")
        low = axes[1, column].contourf(axis, axis, np.log10(np.maximum(slope, 1e-16)), levels=np.arange(-16, 1.1, 1), cmap="cividis")
        known = points.where(r=r, seed=0)
        for kind, marker in (("minimum", "o"), ("maximum", "^"), ("saddle", "x")):
            found = known.where(kind=kind)
            if len(found):
                axes[0, column].plot(found.column("w1"), found.column("w2"), marker, color=plots.PALETTE[1], markersize=6, linestyle="none")
        plots.label(axes[0, column], title=f"|w*| = {r:.3g}")
        plots.label(axes[1, column], x="$w_1$")
        for ax in axes[:, column]:
            ax.set_aspect("equal")
            ax.grid(False)
    figure.colorbar(top, ax=axes[0, :].tolist(), label="loss")
    figure.colorbar(low, ax=axes[1, :].tolist(), label="$\\log_{10}|\\nabla F|$")
    plots.label(axes[0, 0], y="$w_2$")
    plots.label(axes[1, 0], y="$w_2$")
    return figure


def variance(results: Results) -> "Drawing":
    """The variance over targets against r, against d, and at the worst point."""
    figure, axes = plots.new(1, 3, width=11, height=3.6)
    rows = results.rows.where(part="targets")
    for ax, where, name in ((axes[0, 0], {"size": 1.0}, "r"), (axes[0, 1], {"size": 6.0}, "d")):
        mine = rows.where(**where)
        xs = sorted(set(mine.column(name)))
        ax.plot(xs, [mine.where(**{name: x})[0]["exact"] for x in xs], color=plots.PALETTE[0], label="exact")
        for x in xs:
            drawn = mine.where(**{name: x}).column("drawn")
            ax.plot([x] * len(drawn), drawn, ".", color=plots.PALETTE[1], label="20,000 draws" if x == xs[0] else None)
        ax.set_yscale("log")
    plots.label(axes[0, 0], x="r = |w*|", y="variance over targets", title="|w| = 1, d = 10", legend=True)
    plots.label(axes[0, 1], x="d", title="|w| = r = 6", legend=True)
    table = results.rows.where(part="worst")
    for k, d in enumerate(table.values("dimension")):
        mine = table.where(dimension=d)
        axes[0, 2].plot(
            mine.column("radius"), mine.column("largest"), marker=plots.MARKERS[k], color=plots.PALETTE[k], label=f"d = {d}", ms=4
        )
    axes[0, 2].set_yscale("log")
    axes[0, 2].set_ylim(bottom=1e-20)
    plots.label(axes[0, 2], x="r = |w*|", title="At the worst |w|", legend=True, ncols=2)
    return figure


def densities(results: Results) -> "Drawing":
    """Variance and Fourier tail against r for each law of x."""
    figure, axes = plots.new(1, 2, width=10, height=3.8)
    rows = results.rows.where(part="laws", d=2)
    for k, law in enumerate(rows.values("law")):
        mine = rows.where(law=law)
        radii = mine.values("radius")
        ys = np.array([[mine.where(seed=s, radius=r)[0]["variance"] for r in radii] for s in mine.values("seed")])
        plots.points(axes[0, 0], radii, ys, label=law, color=plots.PALETTE[k], marker=plots.MARKERS[k])
        tails = [mine.where(radius=r)[0]["tail"] for r in radii]
        axes[0, 1].plot(radii, tails, marker=plots.MARKERS[k], markersize=4, color=plots.PALETTE[k], label=law)
    for ax, low, title in ((axes[0, 0], 1e-30, "Variance over targets, d = 2"), (axes[0, 1], 1e-30, "Tail of the Fourier transform")):
        ax.set_yscale("log")
        ax.set_ylim(low, 10)
        plots.label(ax, x="r = |w*|", title=title, legend=True)
    return figure


def descent(results: Results) -> "Drawing":
    """Success of exact descent and flatness, against r."""
    figure, axes = plots.new(1, 2, width=10, height=3.6)
    for ax, part, name in ((axes[0, 0], "descent", "success"), (axes[0, 1], "flat", "flat")):
        rows = results.rows.where(part=part)
        radii = sorted(set(rows.column("r")))
        for k, d in enumerate(sorted(set(rows.column("d")))):
            mine = rows.where(d=d)
            ys = np.array([[mine.where(seed=s, r=r)[0][name] for r in radii] for s in mine.values("seed")])
            plots.points(ax, radii, ys, label=f"d = {d}", color=plots.PALETTE[k], marker=plots.MARKERS[k])
        ax.set_ylim(-0.03, 1.05)
    plots.label(axes[0, 0], x="r = |w*|", y="share of starts that find w*", title="Exact gradient descent", legend=True)
    plots.label(axes[0, 1], x="r = |w*|", y="flat share of |w| <= 2r", title="The plateau", legend=True)
    return figure


def oracle(results: Results) -> "Drawing":
    """The share of targets that shows itself, against r, for each d and tolerance."""
    rows = results.rows.where(part="oracle")
    tolerances = rows.values("tolerance")
    figure, axes = plots.new(1, len(tolerances), width=11, height=3.4, sharey=True)
    for ax, tolerance in zip(axes[0], tolerances, strict=True):
        for k, d in enumerate(rows.values("d")):
            mine = rows.where(d=d, tolerance=tolerance)
            radii = mine.values("r")
            ys = np.array([[max(mine.where(seed=s, r=r)[0]["departed"], 2e-5) for r in radii] for s in mine.values("seed")])
            plots.points(ax, radii, ys, label=f"d = {d}", color=plots.PALETTE[k], marker=plots.MARKERS[k])
        ax.set_yscale("log")
        plots.label(ax, x="r = |w*|", title=f"Tolerance {tolerance:g}", legend=ax is axes[0, 0], loc="lower left")
    plots.label(axes[0, 0], y="share of targets that showed")
    return figure
