"""The figures of the study of flat activations."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gradoscope.report import plots
from gradoscope.studies._flat import BINS
from gradoscope.study import Figure, Results, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

NAMES = {
    "smooth": "(a) smooth approximation",
    "end-to-end": "(b) end-to-end",
    "multi-class": "(c) multi-class",
    "forward-only": "(d) forward-only",
}
COLOURS = dict(zip(NAMES, plots.PALETTE, strict=False))


def _train(approach: str, std: float) -> dict[str, Any]:
    return {"part": "train", "approach": approach, "std": std, "sharpness": 0.0}


def _losses(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.5, height=3.6)
    for ax, std, title in ((axes[0, 0], 0.01, "x ~ N(0, 0.01² I), the code's"), (axes[0, 1], 1.0, "x ~ N(0, I), the text's")):
        for approach, name in NAMES.items():
            table = results.curves.where(**_train(approach, std))
            if len(table):
                x, ys = table.spread("step", "squared")
                plots.band(ax, x, ys, label=name, color=COLOURS[approach], each=approach == "smooth" and std < 1)
        ax.set_yscale("log")
        plots.reference(ax, 1e-3, "goal 1e-3")
        plots.label(ax, x="step", y="squared error of the prediction", title=title, legend=True)
    return figure


def _curves(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 4, width=12, height=3.5, sharey=True)
    for ax, (approach, name) in zip(axes[0], NAMES.items(), strict=True):
        rows = results.rows.where(**_train(approach, 0.01))
        pictures = results.arrays("picture", **_train(approach, 0.01))
        if not pictures:
            continue
        accuracy, units = rows.column("accuracy"), np.concatenate([p.double().numpy() for p in pictures])
        # A smooth training is shown twice where seeds part: the first that failed, and the first that learnt.
        failed = [i for i, a in enumerate(accuracy) if a < 0.1]
        learnt = [i for i, a in enumerate(accuracy) if a >= 0.1]
        shown = [chosen[0] for chosen in (learnt, failed) if chosen]
        for slot, colour in zip(shown, (COLOURS[approach], plots.PALETTE[5]), strict=False):
            r, said, _ = units[slot]
            text = f"seed {rows[slot]['seed']}, accuracy {accuracy[slot]:.2f}"
            ax.plot(r, said, ".", markersize=2.5, color=colour, label=text)
        r, _, y = units[shown[0]]
        order = np.argsort(r)
        ax.plot(r[order], y[order], color=plots.INK, linewidth=1.0)
        ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.1), markerscale=3)
        plots.label(ax, x="⟨v*, x⟩", y="y − b*" if approach == "smooth" else "", title=name)
    return figure


def _boundaries(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6.5, height=3.6)
    ax, places = axes[0, 0], np.arange(len(BINS) - 1)
    for (approach, name), marker in zip(NAMES.items(), plots.MARKERS, strict=False):
        rates = [a.numpy() for a in results.arrays("rates", **_train(approach, 0.01))]
        if rates:
            plots.points(ax, places, np.concatenate(rates), label=name, color=COLOURS[approach], marker=marker)
    ax.set_xticks(places, [f"{a:g}–{b:g}" if b < 1 else f"> {a:g}" for a, b in pairwise(BINS)])
    plots.label(ax, x="distance of ⟨v*, x⟩ + b* to the nearest threshold", y="share of wrong levels", legend=True)
    return figure


def _bias(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.5, height=3.4)
    for approach in ("smooth", "forward-only"):
        table = results.rows.where(part="bias", approach=approach)
        if len(table):
            x, ys = table.spread("gap", "hard")
            marker = "o" if approach == "smooth" else "s"
            plots.points(axes[0, 0], x, ys, label=NAMES[approach], color=COLOURS[approach], marker=marker)
    axes[0, 0].set_yscale("log")
    plots.label(axes[0, 0], x="start of the bias, b₀ − b*", y="squared error of the level", title="ten starts, same batches", legend=True)
    for approach in ("smooth", "forward-only"):
        rows = results.rows.where(**_train(approach, 0.01))
        if len(rows):
            axes[0, 1].plot(rows.column("gap"), rows.column("hard"), "o", markersize=4.5, color=COLOURS[approach], label=NAMES[approach])
    axes[0, 1].set_yscale("log")
    plots.label(axes[0, 1], x="|b₀ − b*|", y="squared error of the level", title="the seeds of the source's setting", legend=True)
    return figure


def _bounds(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.5, height=3.6, sharey=True)
    for ax, (method, name) in zip(axes[0], (("glmtron", "GLMtron, u known"), ("isotron", "Isotron, u unknown")), strict=True):
        table = results.curves.where(part="bound", method=method)
        for lip, colour in zip(table.values("lipschitz"), plots.PALETTE, strict=False):
            x, best = table.where(lipschitz=lip).spread("step", "best")
            _, bound = table.where(lipschitz=lip).spread("step", "bound")
            plots.band(ax, x, np.maximum(best, 1e-12), label=f"L = {lip:g}", color=colour)
            ax.plot(x, np.median(bound, axis=0), color=colour, linestyle="--", linewidth=1.0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        plots.label(ax, x="iteration", y="smallest mean squared error so far" if method == "glmtron" else "", title=name, legend=True)
    return figure


def figures(scale: Scale) -> list[Figure]:
    """What is drawn, at either scale."""
    return [
        Figure(
            "losses",
            "Squared error of what is predicted, against the step; line: median, shading: all seeds and their middle half, thin lines: one "
            "seed each. With the code's inputs some smooth trainings (a) stay where they are from the first step on, and forward-only (d) "
            "comes down in every seed. With the text's inputs (a) comes down as well: what fails is the combination of a flat curve with "
            "sums that do not leave one of its pieces.",
            _losses,
        ),
        Figure(
            "predictions",
            "What each approach says of new inputs (dots), over the true steps (line). (a) is shown for a seed that learnt and for one "
            "whose bias started on another flat piece: it answers one constant. (b) rounds the edges; (c) and (d) give levels, and (d) "
            "puts the edges where they are.",
            _curves,
        ),
        Figure(
            "boundaries",
            "Share of wrong levels by distance to the nearest threshold; dots: seeds, markers: medians. Multi-class errs only beside the "
            "thresholds, as the sources say, and so does forward-only, with fewer errors; a failed (a) is wrong everywhere.",
            _boundaries,
        ),
        Figure(
            "bias",
            "Left: the final error for ten starts of the bias, from the same weights and with the same batches: (a) learns only from "
            "starts near b* or from the flat piece just below, (d) from all. Right: the seeds of the source's own setting, in which the "
            "bias starts at 0 and b* is drawn: the same dependence.",
            _bias,
        ),
        Figure(
            "bound",
            "Smallest error so far of GLMtron and Isotron for a staircase with ramps of slope L, and the bound L²B²|w*|²/t (dashed). The "
            "bound holds throughout and is far from tight; Isotron, which fits u as well, hardly feels L. Errors are cut at 1e-12.",
            _bounds,
        ),
    ]
