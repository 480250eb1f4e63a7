"""What is drawn of the line tuples."""

from typing import TYPE_CHECKING

import numpy as np

from gradoscope.report import plots
from gradoscope.studies._lines_claims import ceiling, curve, trainings
from gradoscope.study import Figure, Results, Scale, Table
from gradoscope.theory.tuples import parity_accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

COLORS = {"end-to-end": plots.PALETTE[1], "decomposed": plots.PALETTE[0], "released": plots.PALETTE[2]}
NAMES = {"end-to-end": "end-to-end", "decomposed": "decomposition", "released": "decomposition, then the tuple's loss alone"}
LENGTHS = (1, 2, 3, 4)


def figures(scale: Scale) -> list[Figure]:
    """The figures of a scale."""
    return [
        Figure(
            "samples",
            "Eight images, as figure 2 of the source: lines that slope upwards (label +1) above, downwards (-1) below. The target of "
            "a tuple of k such images is the product of their labels.",
            samples,
        ),
        Figure(
            "accuracy",
            "Figure 3 of the source: accuracy on held-out tuples against training steps (median over seeds; shaded, all seeds and "
            "their middle half). Decomposition learns for every k. End-to-end training learns for k = 1 and, after a while at chance, "
            "for k = 2; for k = 3 and 4 it stays at chance. Dashed, the best possible accuracy, which falls with k because some "
            "images do not show their label.",
            lambda results: by_step(results, "accuracy"),
        ),
        Figure(
            "single",
            "The same runs' accuracy on single images, up to the sign, which the tuple's label leaves open. For k = 2 tuples and "
            "single images are learnt at the same moment; for k = 3 and 4 end to end nothing is learnt about single images.",
            lambda results: by_step(results, "single_up_to_sign"),
        ),
        Figure(
            "errors",
            "Where the decomposed networks err on single images, by the angle and the length of the line (all k and seeds). All the "
            "errors lie at lines along an axis, more of them the shorter the line: such an image is one row or column of pixels, "
            "equal to its mirror image, and its label is a coin flip. Length by itself, and being cut by the frame, do no harm.",
            errors,
        ),
        Figure(
            "plateau",
            "k = 3. Left: curvature of the tuple's loss along the lowest and the highest eigenvector of the Hessian, on fresh tuples, "
            "on the plateau and at the decomposition's solution (one point per seed). Middle: the share of the loss that the best "
            "step along the lowest eigenvector gains on the plateau: on the tuples that it was chosen on, and on fresh ones. Right: "
            "how far the first network's answers differ between images (standard deviation); where they are equal, no gradient is left.",
            plateau,
        ),
    ]


def samples(results: Results) -> "Drawing":
    """Four images of either label."""
    images = results.array("samples", law="text")
    figure, axes = plots.new(2, 4, width=6.4, height=3.4)
    for i, ax in enumerate(axes.flat):
        ax.imshow(images[i].numpy(), origin="lower", cmap="gray_r", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(True)
        if i % 4 == 0:
            ax.set_ylabel("y = +1" if i == 0 else "y = -1", color=plots.INK)
    return figure


def by_step(results: Results, column: str) -> "Drawing":
    """One panel per k, both approaches."""
    figure, axes = plots.new(1, 4, width=11.5, height=3.2, sharey=True)
    best = ceiling(results)
    for ax, k in zip(axes.flat, LENGTHS, strict=True):
        for approach, color in COLORS.items():
            if approach != "released":
                x, y = curve(results, approach, k).where(phase=approach).spread("step", column)
                plots.band(ax, x, y, label=NAMES[approach], color=color)
        plots.reference(ax, parity_accuracy(best, k) if column == "accuracy" else best, "best possible")
        plots.reference(ax, 0.5, "chance")
        ax.set_ylim(0.42, 1.02)
        what = "accuracy on tuples" if column == "accuracy" else "accuracy on single images"
        plots.label(ax, x="step", y=what if k == 1 else "", title=f"k = {k}", legend=k == 1, loc="center right")
    return figure


def _shares(table: Table) -> tuple[np.ndarray, np.ndarray]:
    places = sorted(table.values("place"))
    groups = [table.where(place=place) for place in places]
    return np.array(places), np.array([sum(g.column("wrong")) / sum(g.column("images")) for g in groups])


def errors(results: Results) -> "Drawing":
    """Shares of wrong answers by angle and length, with the shares that the mirror images explain."""
    figure, axes = plots.new(1, 3, width=11.5, height=3.2)
    table = results.curves.where(kind="errors", law="text", approach="decomposed")
    for ax, by in zip(axes.flat, ("angle", "length"), strict=False):
        x, y = _shares(table.where(by=by))
        ax.bar(x, y, width=5 if by == "angle" else 1, color=plots.PALETTE[0], edgecolor="white", linewidth=0.5)
        plots.label(ax, x="angle (degrees)" if by == "angle" else "length (pixels)", y="share of errors" if by == "angle" else "")
    x, y = _shares(table.where(by="symmetric"))
    axes[0, 2].bar(["slope visible", "one row or column"], y, color=plots.PALETTE[1], width=0.5)
    plots.reference(axes[0, 2], 0.5, "a guess")
    for ax, title in zip(axes.flat, ("by angle", "by length", "by symmetry"), strict=True):
        plots.label(ax, title=title)
    return figure


def plateau(results: Results) -> "Drawing":
    """Curvature, gains and the spread of the first network's answers."""
    figure, axes = plots.new(1, 3, width=11.5, height=3.3)
    flat, solved = trainings(results, "end-to-end", 3, short=True), trainings(results, "decomposed", 3)
    ax = axes[0, 0]
    for column, color, name in (
        ("smallest_elsewhere", plots.PALETTE[1], "lowest"),
        ("largest_elsewhere", plots.PALETTE[0], "highest"),
    ):
        for place, rows in enumerate((flat, solved)):
            ax.plot([place] * len(rows), rows.column(column), "o", color=color, label=None if place else name, alpha=0.8)
    ax.set(xticks=[0, 1], xlim=(-0.5, 1.5))
    ax.set_xticklabels(["plateau", "solution"])
    ax.set_yscale("symlog", linthresh=0.1)
    plots.label(ax, y="curvature", title="Curvature on fresh tuples", legend=True)
    ax = axes[0, 1]
    for place, column in enumerate(("gain_seen", "gain")):
        ax.plot([place] * len(flat), flat.column(column), "o", color=plots.PALETTE[3], alpha=0.8)
    ax.set(xticks=[0, 1], xlim=(-0.5, 1.5))
    ax.set_xticklabels(["seen", "fresh"])
    plots.reference(ax, 0.0, "no gain")
    plots.label(ax, y="share of the loss", title="Gain of a step along the lowest")
    for approach in ("end-to-end", "decomposed"):
        x, y = curve(results, approach, 3).where(phase=approach).spread("step", "spread")
        plots.band(axes[0, 2], x, np.maximum(y, 1e-8), label=NAMES[approach], color=COLORS[approach])
    axes[0, 2].set_yscale("log")
    plots.label(axes[0, 2], x="step", y="standard deviation", title="Spread of the parts' answers", legend=True, loc="best")
    return figure
