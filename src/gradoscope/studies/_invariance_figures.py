"""The figures of the study of permutation-invariant labelling."""

import math
from typing import TYPE_CHECKING

import numpy as np

from gradoscope.report import plots
from gradoscope.study import Figure, Results, Scale, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

NAMES = {
    "gpi": "GPI",
    "gpi-neighbour": "GPI, one weight per neighbour",
    "gpi-feature": "GPI, one weight per feature",
    "gpi-printed": "GPI as printed",
    "lstm": "LSTM",
    "fully-connected": "fully connected",
}
COLOURS = dict(zip(NAMES, plots.PALETTE, strict=False))
FLOOR = 1e-17  # of a logarithmic axis: a difference of exactly zero is drawn here


def figures(scale: Scale) -> list[Figure]:
    """What is drawn, the same at both scales."""
    return [
        Figure(
            "accuracy",
            "Accuracy per node on 1,000 new graphs against the number of graphs to learn from. The form needs thirty. LSTM and fully "
            "connected network have more weights and stay near the commonest label; without a node's own sum the form cannot pass "
            "the upper dashed line.",
            _accuracy,
        ),
        Figure(
            "learning",
            "The smallest training set, step by step: on its own graphs every network gets everything right, on new ones only the "
            "form does.",
            _learning,
        ),
        Figure(
            "defect",
            "The largest change of an output when the nodes are renamed, less the change that there should be; before training and after. "
            "The form is at rounding and stays there. A difference of exactly zero is drawn at the left edge.",
            _defect,
        ),
        Figure(
            "example",
            "A new graph with the three sets as colours. The numbers are the labels that three networks give, which learnt from the same "
            "graphs; a ring marks a wrong one. The right label counts the neighbours of the node's own colour.",
            _example,
        ),
        Figure(
            "seen",
            "Nodes of all small graphs without features, up to renaming, and how many of them the form can tell apart. As printed it gives "
            "one label to a whole graph; with its own sum a node is seen with its neighbours and no further.",
            _seen,
        ),
    ]


def _accuracy(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=7, height=4.2)
    ax = axes[0, 0]
    rows = results.rows.where(part="train")
    for (name, words), marker in zip(NAMES.items(), plots.MARKERS, strict=False):
        chosen = rows.where(model=name)
        sizes = sorted(chosen.values("graphs"))
        ys = np.array([chosen.where(graphs=g).column("accuracy") for g in sizes], dtype=float).T
        if sizes:
            plots.points(ax, sizes, ys, label=words, color=COLOURS[name], marker=marker, line=len(sizes) > 1)
    plots.reference(ax, float(np.mean(rows.column("ceiling"))), "one label per set and graph")
    plots.reference(ax, float(np.mean(rows.column("majority"))), "commonest label")
    ax.set_xscale("log")
    sizes = sorted(rows.values("graphs"))
    ax.set_xticks(sizes, [str(g) for g in sizes])
    ax.set_xticks([], minor=True)
    ax.set_ylim(0.2, 1.02)
    plots.label(ax, x="training graphs", y="accuracy on new graphs", legend=True, loc="center left", bbox_to_anchor=(0.02, 0.745))
    return figure


def _learning(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=3.4, sharey=True)
    curves = results.curves.where(part="train", graphs=min(results.rows.where(part="train").values("graphs")))
    for ax, column, title in zip(axes[0], ("train", "test"), ("on its own graphs", "on new graphs"), strict=True):
        for name in curves.values("model"):
            x, ys = curves.where(model=name).spread("step", column)
            plots.band(ax, x, ys, label=NAMES[name], color=COLOURS[name])
        plots.label(ax, x="step", y="accuracy" if column == "train" else "", title=title, legend=column == "train")
    return figure


def _defect(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=8, height=3.2)
    ax = axes[0, 0]
    for place, (name, _) in enumerate(reversed(NAMES.items())):
        for shift, part, marker, filled in ((0.12, "defect", "o", False), (-0.12, "train", "s", True)):
            found = np.maximum(results.rows.where(part=part, model=name).column("absolute"), FLOOR)
            face = COLOURS[name] if filled else "none"
            ax.plot(found, np.full(len(found), place + shift), marker, color=COLOURS[name], markerfacecolor=face, markersize=5)
    for marker, filled, words in (("o", False, "at the start"), ("s", True, "after training")):
        ax.plot([], [], marker, color=plots.INK, markerfacecolor=plots.INK if filled else "none", label=words)
    plots.reference(ax, 1e-10, "claimed", vertical=True)
    ax.set_yticks(range(len(NAMES)), list(reversed(NAMES.values())))
    ax.set_xscale("log")
    plots.label(ax, x="largest |F(σz) − σF(z)|", legend=True, loc="center left", bbox_to_anchor=(0.55, 0.6))
    return figure


def _example(results: Results) -> "Drawing":
    models = [m for m in ("gpi", "gpi-printed", "fully-connected") if results.rows.where(part="train", model=m)]
    figure, axes = plots.new(1, len(models), width=3.2 * len(models), height=3.5)
    for ax, model in zip(axes[0], models, strict=True):
        most = max(results.rows.where(part="train", model=model).values("graphs"))
        sets, edges, labels, predicted = (
            results.array(name, part="train", model=model, graphs=most).numpy() for name in ("sets", "edges", "labels", "predicted")
        )
        _graph(ax, sets, edges, labels, predicted)
        right = int((labels == predicted).sum())
        plots.label(ax, title=f"{NAMES[model]}: {right} of {len(labels)} right")
    return figure


def _graph(ax: "Axes", sets: np.ndarray, edges: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> None:
    """Nodes on a circle; edges within a set are drawn in its colour, as they are the ones that count."""
    n = len(sets)
    x, y = (np.array([f(2 * math.pi * i / n) for i in range(n)]) for f in (math.cos, math.sin))
    for i in range(n):
        for j in range(i):
            if edges[i, j]:
                same = sets[i] == sets[j]
                colour = plots.PALETTE[int(sets[i])] if same else plots.MUTED
                ax.plot(x[[i, j]], y[[i, j]], color=colour, linewidth=1.8 if same else 0.5, alpha=1.0 if same else 0.4, zorder=1)
    for i in range(n):
        ax.plot(x[i], y[i], "o", markersize=17, color=plots.PALETTE[int(sets[i])], zorder=2)
        if predicted[i] != labels[i]:
            ax.plot(x[i], y[i], "o", markersize=22, markerfacecolor="none", markeredgecolor=plots.INK, markeredgewidth=1.6, zorder=2)
        ax.annotate(str(int(predicted[i])), (x[i], y[i]), ha="center", va="center", color="white", fontweight="bold", zorder=3)
    ax.set_xlim(-1.3, 1.3)
    ax.set_ylim(-1.3, 1.3)
    ax.set_aspect("equal")
    ax.axis("off")


def _seen(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=3.3)
    for ax, kind in zip(axes[0], ("undirected", "directed"), strict=True):
        rows: Table = results.rows.where(part="seen", kind=kind)
        for column, words, colour, marker in (
            ("classes", "all nodes", plots.INK, "o"),
            ("with_row", "with the node's own sum", plots.PALETTE[0], "s"),
            ("printed", "as printed", plots.PALETTE[1], "^"),
        ):
            ax.plot(rows.column("n"), rows.column(column), color=colour, marker=marker, label=words)
        ax.set_yscale("log")
        ax.set_xticks(rows.column("n"))
        plots.label(ax, x="nodes of the graph", y="nodes up to renaming", title=kind, legend=kind == "undirected")
    return figure
