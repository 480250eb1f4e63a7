"""The figures of the study of wide networks on separable data."""

from typing import TYPE_CHECKING

import numpy as np

from gradoscope.report import plots
from gradoscope.study import Figure, Results, Scale, Table
from gradoscope.theory.separable import relu_success

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

DASH = (0, (4, 3))


def figures(scale: Scale) -> list[Figure]:
    """What is drawn, the same at both scales."""
    return [
        Figure(
            "width",
            "Updates until a whole pass makes none, by the width: flat from ten pairs on. Dashed are the bounds of the same colour, which "
            "hold and are loose; at the bottom the perceptron, which needs least.",
            _width,
        ),
        Figure(
            "proof",
            "The proof, step by step: progress along W* grows at least on the dashed line, and the norm of W at most on the dashed "
            "root. Where the lower line would cross the upper one no further update is possible: that is the bound.",
            _proof,
        ),
        Figure(
            "relu",
            "Left: the share of ReLU networks that learn 64 orthogonal examples; the line is (1 - 2^-k)^64. One pair of leaky units always "
            "does. Right: error on new data and the compression bound from the updates that were made, and from the most there could be: "
            "above the dashed line a bound is vacuous. No error at all among 20,000 new examples is drawn at 2e-5.",
            _relu,
        ),
        Figure(
            "images",
            "Threes against fives (the title of the left panel says which images: MNIST or scikit-learn's digits). Left: the error on "
            "other images against the number of weights, with the perceptron and the hard-margin plane. Middle: updates. Right: how "
            "much of the network's output a linear function of the pixels explains.",
            _images,
        ),
        Figure(
            "baum",
            "Left: Baum's algorithm on two halfspaces; the error falls as 1/n under a symmetric law. Right: random labels on 100 "
            "examples: passes that training took, or its limit for two pairs, beside the error on new ones, which is one half.",
            _baum,
        ),
    ]


def _width(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=7, height=4.2)
    ax = axes[0, 0]
    rows = results.rows.where(part="width")
    for (slope, eta), color, marker in zip(_pairs(rows), plots.PALETTE, plots.MARKERS, strict=False):
        chosen = rows.where(slope=slope, eta=eta)
        ks = sorted(chosen.values("k"))
        plots.points(ax, ks, _table(chosen, ks, "k", "updates"), label=f"a = {slope:g}, η = {eta:g}", color=color, marker=marker)
        ax.plot(ks, [np.median(chosen.where(k=k).column("bound")) for k in ks], color=color, linestyle=DASH, linewidth=1.0)
    plots.reference(ax, float(np.median(rows.column("perceptron"))), "perceptron")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(top=1e6)  # room for the legend
    plots.label(ax, x="pairs of units k", y="updates", legend=True, ncols=2, loc="upper right")
    return figure


def _pairs(rows: Table) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for (a, b), _ in rows.groups("slope", "eta")]


def _table(rows: Table, values: list[int], name: str, column: str) -> np.ndarray:
    return np.array([rows.where(**{name: v}).column(column) for v in values], dtype=float).T


def _ticks(ax: "Axes", values: list[int]) -> None:
    """Ticks where something was measured."""
    ax.set_xticks(values, [str(v) for v in values])
    ax.set_xticks([], minor=True)


def _proof(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6, height=3.8)
    ax = axes[0, 0]
    curves = results.curves.where(part="steps")
    for _, rows in curves.groups("seed"):
        x = rows.column("update")
        for column, color in (("norm", plots.PALETTE[1]), ("progress", plots.PALETTE[0])):
            ax.plot(x, rows.column(column), color=color, linewidth=1.0, alpha=0.7)
    first = curves.groups("seed")[0][1]
    x = first.column("update")
    ax.plot(x, first.column("most"), color=plots.PALETTE[1], linestyle=DASH, label="|W| at most")
    ax.plot([], [], color=plots.PALETTE[1], label="|W|")
    ax.plot([], [], color=plots.PALETTE[0], label="part of W along W*")
    ax.plot(x, first.column("least"), color=plots.PALETTE[0], linestyle=DASH, label="at least")
    plots.label(ax, x="update", y="length", legend=True)
    return figure


def _relu(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.5, height=3.6)
    left, right = axes[0]
    rows = results.rows.where(part="relu", slope=0.0)
    ks = sorted(rows.values("k"))
    plots.points(left, ks, _table(rows, ks, "k", "success"), label="ReLU", color=plots.PALETTE[0], line=False)
    grid = np.linspace(1, max(ks), 100)
    left.plot(grid, [relu_success(k, 64) for k in grid], color=plots.PALETTE[0], linewidth=1.0)
    leaky = results.rows.where(part="relu", k=1)
    plots.points(left, [1], _table(leaky, [1], "k", "success"), label="leaky", color=plots.PALETTE[1], marker="s")
    plots.label(left, x="pairs of units k", y="share of networks that learn", legend=True, loc="lower right")
    rows = results.rows.where(part="compression")
    ns = sorted(rows.values("n"))
    lines = (("bound", "bound, updates made", plots.PALETTE[0], "o"), ("worst_bound", "bound, most updates", plots.PALETTE[1], "s"))
    for column, name, color, marker in lines:
        plots.points(right, ns, _table(rows, ns, "n", column), label=name, color=color, marker=marker)
    plots.points(right, ns, np.maximum(_table(rows, ns, "n", "test"), 2e-5), label="error on new data", color=plots.PALETTE[2], marker="^")
    plots.reference(right, 1.0, "vacuous above")
    right.set_xscale("log")
    right.set_yscale("log")
    _ticks(right, ns)
    plots.label(right, x="examples n", y="error", legend=True)
    return figure


def _images(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=11, height=3.5)
    left, middle, right = axes[0]
    rows = results.rows.where(part="images")
    widths = sorted(rows.values("hidden"))
    sizes = [rows.where(hidden=h).column("parameters")[0] for h in widths]
    plots.points(left, sizes, 100 * _table(rows, widths, "hidden", "test_error"), color=plots.PALETTE[0], label="network")
    for column, name, color in (("perceptron_error", "perceptron", plots.PALETTE[1]), ("svm_error", "hard-margin plane", plots.PALETTE[2])):
        plots.reference(left, 100 * float(np.nanmean(rows.column(column))), name, color=color)
    left.axvline(rows.column("rows")[0], color=plots.MUTED, linewidth=0.8)
    left.set_xscale("log")
    plots.label(left, x="weights (line: images)", y="error on other images (%)", title=str(rows.column("data")[0]))
    plots.points(middle, sizes, _table(rows, widths, "hidden", "updates"), color=plots.PALETTE[0])
    middle.set_xscale("log")
    middle.set_ylim(bottom=0)
    plots.label(middle, x="weights", y="updates")
    plots.points(right, sizes, _table(rows, widths, "hidden", "linear_r2"), color=plots.PALETTE[0])
    right.set_xscale("log")
    plots.label(right, x="weights", y="R² of a linear function")
    return figure


def _baum(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=3.5)
    left, right = axes[0]
    rows = results.rows.where(part="baum", shift=0.0)
    ns = sorted(rows.values("n"))
    plots.points(left, ns, 100 * _table(rows, ns, "n", "error"), label="symmetric", color=plots.PALETTE[0])
    shifted = results.rows.where(part="baum", shift=1.5)
    plots.points(
        left, [800], 100 * _table(shifted, [800], "n", "relative"), label="shifted, of the rarer class", color=plots.PALETTE[1], marker="s"
    )
    plots.points(
        left, ns, 100 * _table(rows, ns, "n", "relative"), label="symmetric, of the rarer class", color=plots.PALETTE[2], marker="^"
    )
    left.set_xscale("log")
    left.set_yscale("log")
    _ticks(left, ns)
    plots.label(left, x="examples n", y="error on others (%)", legend=True)
    rows = results.rows.where(part="labels")
    ks = sorted(rows.values("k"))
    plots.points(right, ks, _table(rows, ks, "k", "epochs"), color=plots.PALETTE[0])
    right.set_xscale("log")
    right.set_yscale("log")
    _ticks(right, ks)
    for k in ks:
        error = float(np.mean(rows.where(k=k).column("test_error")))
        right.annotate(f"{error:.0%}", (k, max(rows.where(k=k).column("epochs"))), xytext=(4, 4), textcoords="offset points", fontsize=8)
    plots.label(right, x="pairs of units k", y="passes (labels: error on new examples)")
    return figure
