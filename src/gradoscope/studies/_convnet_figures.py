"""The figures of the study of the shared filter."""

import math
from typing import TYPE_CHECKING

import numpy as np

from gradoscope.report import plots
from gradoscope.study import Figure, Results, Scale
from gradoscope.theory import convnet as theory

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]


def figures(scale: Scale) -> list[Figure]:
    """What is drawn, the same at both scales."""
    return [
        Figure(
            "surface",
            "The expected loss over the part of w along the teacher and the part across it (k = 5), with descents from ten starts. All of "
            "them turn towards w*, and those that begin near the negative axis first run to -alpha w*, where the surface is flat "
            "across, and take long to leave. At 0 the loss has a peak without a derivative.",
            _surface,
        ),
        Figure(
            "escape",
            "Left: steps from an angle phi beside the saddle to the teacher's half-space; lines are (pi k alpha/lambda)/phi. A strict "
            "saddle would give a logarithm, a nearly flat line. Right: the loss on the way from 500 random starts, the median over them "
            "and the slowest; both fall by a constant factor in the end, far faster than the guarantee of one over the root of the steps.",
            _escape,
        ),
        Figure(
            "overlap",
            "Left: how many random starts find the teacher, by filter size m, stride and patches k; dots are seeds. Without overlap "
            "(hatched) all do. Right: filters of two numbers, by the teacher's direction: only anti-correlated ones are in danger with "
            "two or three patches, most are with twenty.",
            _overlap,
        ),
        Figure(
            "hardness",
            "Left: success of the same model, teacher and optimizer by the inputs: an encoding of set splitting with 24 elements, as many "
            "Gaussian inputs, and ten Gaussian inputs per weight. Right: success on set splitting falls fast with the number of elements.",
            _hardness,
        ),
        Figure(
            "students",
            "Left: fully connected students of k orthogonal teachers: a neuron more than the teacher has removes the bad minima. Right: "
            "filter and output weights trained together. The bad critical point is a minimum left of the dashed line, and takes up to "
            "half of the starts; right of it, it is a saddle and takes none.",
            _students,
        ),
    ]


def _surface(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=7.4, height=5.6)
    ax = axes[0, 0]
    x, y, heights = (results.array(name, part="surface").numpy() for name in ("x", "y", "loss"))
    filled = ax.contourf(x, y, np.sqrt(heights), levels=24, cmap="viridis", alpha=0.85)
    figure.colorbar(filled, ax=ax, label="root of the expected loss")
    paths = results.array("paths", part="surface").numpy()
    for at in range(paths.shape[1]):
        ax.plot(paths[:, at, 0], paths[:, at, 1], color="white", linewidth=0.9, marker=".", markersize=2.5)
    alpha = theory.constants(5)[0]
    for place, name, marker in ((1.0, "w*: minimum", "*"), (-alpha, "-αw*: degenerate saddle", "D"), (0.0, "0: peak", "^")):
        ax.plot([place], [0], linestyle="none", marker=marker, markersize=9, color=plots.PALETTE[1], markeredgecolor="white", label=name)
    ax.set_aspect("equal")
    ax.grid(False)
    plots.label(ax, x="part of w along w*", y="part of w across w*")
    ax.legend(fontsize=8.5, loc="lower left", framealpha=0.9)
    return figure


def _escape(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=3.5)
    left, right = axes[0]
    rows = results.rows.where(part="escape")
    for k, color, marker in zip(rows.values("k"), plots.PALETTE, plots.MARKERS, strict=False):
        chosen = rows.where(k=k)
        angles = np.array(chosen.column("phi"))
        left.plot(angles, chosen.column("predicted"), color=color, linewidth=1.2)
        left.plot(angles, chosen.column("steps"), linestyle="none", marker=marker, color=color, label=f"k = {k}")
    left.set_xscale("log")
    left.set_yscale("log")
    plots.label(left, x="angle φ to -w* at the start", y="steps to the other half-space", legend=True)
    for column, text, color in (("loss", "median of 500 starts", plots.PALETTE[0]), ("worst", "slowest of 500", plots.PALETTE[1])):
        steps, ys = results.curves.where(part="descent").spread("step", column)
        plots.band(right, steps, np.maximum(ys, 1e-17), label=text, color=color)
    right.set_yscale("log")
    plots.label(right, x="step", y="expected loss", legend=True)
    return figure


def _overlap(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=10.5, height=3.9, gridspec_kw={"width_ratios": [1.35, 1]})
    left, right = axes[0]
    groups = results.rows.where(part="overlap").groups("m", "stride", "k")
    for at, ((m, stride, _), rows) in enumerate(groups):
        shares = rows.column("success")
        apart = stride == m
        left.bar(at, np.mean(shares), color=plots.PALETTE[2] if apart else plots.PALETTE[0], alpha=0.75, hatch="//" if apart else None)
        left.plot([at] * len(shares), shares, linestyle="none", marker=".", color=plots.INK, markersize=4)
    left.set_xticks(range(len(groups)), [f"{m}\n{stride}\n{k}" for (m, stride, k), _ in groups])
    left.set_ylim(0, 1.08)
    plots.label(left, x="m, stride, k", y="share of starts that succeed")
    rows = results.rows.where(part="directions")
    for k, color, marker in zip(rows.values("k"), plots.PALETTE, plots.MARKERS, strict=False):
        chosen = rows.where(k=k)
        right.plot(chosen.column("degrees"), chosen.column("success"), color=color, marker=marker, markersize=3.5, label=f"k = {k}")
    plots.reference(right, 135, "(-1, 1)", vertical=True)
    right.set_ylim(0, 1.08)
    plots.label(right, x="direction of the teacher (degrees)", y="share of starts that succeed", legend=True, loc="lower right")
    return figure


def _hardness(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=3.5)
    left, right = axes[0]
    rows = results.rows.where(part="hardness", elements=24)
    laws = {"splitting": "set splitting", "gaussian": "Gaussian, same size", "many": "Gaussian, 240 samples"}
    ratios = sorted(rows.values("ratio"))
    for (law, name), color, marker in zip(
        laws.items(), (plots.PALETTE[1], plots.PALETTE[0], plots.PALETTE[2]), plots.MARKERS, strict=False
    ):
        ys = np.array([rows.where(inputs=law, ratio=r).column("success") for r in ratios]).T
        plots.points(left, ratios, ys, label=name, color=color, marker=marker)
    left.set_ylim(-0.04, 1.3)
    plots.label(left, x="sets per element", y="share of starts that succeed", legend=True, loc="upper right")
    rows = results.rows.where(part="hardness", inputs="splitting", ratio=1.0)
    sizes = sorted(rows.values("elements"))
    plots.points(right, sizes, np.array([rows.where(elements=d).column("success") for d in sizes]).T, color=plots.PALETTE[1])
    right.set_yscale("symlog", linthresh=1e-2)
    plots.label(right, x="elements (one set per element)", y="share of starts that succeed")
    return figure


def _students(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9, height=3.5)
    left, right = axes[0]
    groups = results.rows.where(part="connected").groups("k", "n")
    for at, ((k, n), rows) in enumerate(groups):
        shares = rows.column("success")
        left.bar(at, np.mean(shares), color=plots.PALETTE[2] if n > k else plots.PALETTE[0], alpha=0.75)
        left.plot([at] * len(shares), shares, linestyle="none", marker=".", color=plots.INK, markersize=4)
    left.set_xticks(range(len(groups)), [f"k = {k}\nn = {n}" for (k, n), _ in groups])
    left.set_ylim(0, 1.08)
    plots.label(left, x="teacher's and student's neurons", y="share of starts that succeed")
    rows = results.rows.where(part="two-layers")
    shares = sorted(rows.values("mean_share"))
    for column, name, color, marker in (("success", "teacher", plots.PALETTE[0], "o"), ("bad", "bad point", plots.PALETTE[1], "s")):
        ys = np.array([rows.where(mean_share=q).column(column) for q in shares]).T
        plots.points(right, shares, ys, label=name, color=color, marker=marker)
    k = rows.column("k")[0]
    plots.reference(right, (k - 1 + math.pi) / (k - 1 + math.pi + (k - 1) * (math.pi - 1)), "", vertical=True)
    plots.label(right, x="(Σa*)² / (k |a*|²)", y="share of starts that end there", legend=True)
    return figure
