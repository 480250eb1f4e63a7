"""Figures of the stocks."""

from typing import TYPE_CHECKING, Any

import numpy as np

from gradoscope.report import plots
from gradoscope.studies._stocks_claims import corrected_steps
from gradoscope.study import Figure, Results, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

SOURCE = {"part": "train", "lr": 0.1, "steps": 2500, "eps": 1e-5, "bias": True}
COLORS = {"end-to-end": plots.PALETTE[1], "decomposed": plots.PALETTE[0]}


def figures(scale: Scale) -> list[Figure]:
    """The figures of a scale."""
    return [
        Figure(
            "learning",
            "Exact expected loss against the step at the source's step size of 0.1; line: median, shade: all seeds. -1 is the optimum. The "
            "two estimators are level at first; with many stocks the end-to-end one then stops, and does not slow down.",
            _learning,
        ),
        Figure(
            "variance",
            "Variance of the end-to-end estimator relative to the decomposed one at the start, exact over states and returns, "
            "5 seeds for each k (they lie on one another). The line is k.",
            _variance,
        ),
        Figure(
            "mechanism",
            "End-to-end, k = 1,000, step size 0.1. Left: each state ends up right (its largest holding is the best stock), or it "
            "has lost the best stock (less than a tenth of the start's holding), and then its gradient is gone. Right: what is "
            "gained is the share of states that are right, seed by seed.",
            _mechanism,
        ),
        Figure(
            "corrections",
            "End-to-end training with k = 1,000. Red: as in the source, it stops. One change alone lets it come to the "
            "optimum: no bias, an epsilon of 1e-8, or a fifth of the step size (and more steps).",
            lambda results: _corrections(results, corrected_steps(scale)),
        ),
        *(
            [
                Figure(
                    "step-size",
                    "Loss after 2,500 steps against the step size, k = 1,000, one dot per seed. Each estimator has its own best "
                    "step size, and at small ones the noisy estimator is not behind.",
                    _step_size,
                )
            ]
            if scale == "paper"
            else []
        ),
    ]


def _learning(results: Results) -> "Drawing":
    runs = results.curves.where(**SOURCE)
    sizes = sorted(runs.values("k"))
    figure, axes = plots.new(1, len(sizes), width=3.2 * len(sizes) + 0.8, height=3.2, sharey=True)
    for ax, k in zip(axes[0], sizes, strict=True):
        for estimator, color in COLORS.items():
            x, ys = runs.where(k=k, estimator=estimator).spread("step", "loss")
            plots.band(ax, x, ys, label=estimator, color=color)
        plots.label(ax, x="step", y="expected loss" if k == sizes[0] else "", title=f"k = {k:,}", legend=k == sizes[0])
    return figure


def _variance(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=4.6, height=3.4)
    ax = axes[0, 0]
    rows = results.rows.where(part="moments")
    sizes = np.array(sorted(rows.values("k")), dtype=float)
    ax.plot(sizes, sizes, color=plots.MUTED, linestyle=(0, (4, 3)), label="k")
    ys = np.array([[v * k for v in rows.where(k=int(k)).column("variance_ratio")] for k in sizes]).T
    plots.points(ax, sizes, ys, label="variance ratio", color=COLORS["end-to-end"], line=False)
    ax.set_xscale("log")
    ax.set_yscale("log")
    plots.label(ax, x="number of stocks k", y="variance, end-to-end / decomposed", legend=True)
    return figure


def _mechanism(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=8.6, height=3.3)
    left, right = axes[0]
    runs = results.curves.where(**SOURCE, estimator="end-to-end", k=1000)
    for name, text, color in (("right", "right", plots.PALETTE[2]), ("lost", "best stock lost", plots.PALETTE[1])):
        x, ys = runs.spread("step", name)
        plots.band(left, x, ys, label=text, color=color)
    plots.label(left, x="step", y="share of states", legend=True)
    rows = results.rows.where(**SOURCE, estimator="end-to-end", k=1000)
    share, gain = rows.column("right"), [-v for v in rows.column("loss")]
    ends = [min(share + gain) - 0.01, max(share + gain) + 0.01]
    right.plot(ends, ends, color=plots.MUTED, linestyle=(0, (4, 3)), label="equal")
    right.plot(share, gain, linestyle="none", marker="o", color=COLORS["end-to-end"], label="a seed, after 2,500 steps")
    plots.label(right, x="share of states that are right", y="expected return", legend=True)
    return figure


def _corrections(results: Results, steps: int) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6.0, height=3.6)
    ax = axes[0, 0]
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("as in the source", {}, COLORS["end-to-end"]),
        ("no bias", {"bias": False, "steps": steps}, plots.PALETTE[0]),
        ("epsilon 1e-8", {"eps": 1e-8, "steps": steps}, plots.PALETTE[2]),
        ("step size 0.02", {"lr": 0.02, "steps": 6000}, plots.PALETTE[3]),
    ]
    for text, change, color in changes:
        x, ys = results.curves.where(**(SOURCE | {"estimator": "end-to-end", "k": 1000} | change)).spread("step", "loss")
        plots.band(ax, x, ys, label=text, color=color)
    plots.label(ax, x="step", y="expected loss", legend=True)
    return figure


def _step_size(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.2, height=3.4)
    ax = axes[0, 0]
    rates = (0.01, 0.02, 0.03, 0.1, 0.3)
    for (estimator, color), marker in zip(COLORS.items(), plots.MARKERS, strict=False):
        ys = np.array([results.rows.where(**(SOURCE | {"lr": lr}), estimator=estimator, k=1000).column("loss") for lr in rates]).T
        plots.points(ax, rates, ys, label=estimator, color=color, marker=marker)
    ax.set_xscale("log")
    plots.reference(ax, 0.1, "the source's", vertical=True)
    plots.label(ax, x="step size", y="loss after 2,500 steps", legend=True)
    return figure
