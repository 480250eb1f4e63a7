"""The figures of the study of cardinality."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from gradoscope.report import plots
from gradoscope.studies._cardinality_claims import trained
from gradoscope.study import Figure, Results, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

BLUE, RED, GREEN, PURPLE, ORANGE, SKY = plots.PALETTE
USUAL = {"sharp": 1.0, "scale": 1.0, "pretrained": 0, "accumulator": 0.1}


def figures(scale: Scale) -> list[Figure]:
    """What is drawn; the real sets are in it at paper scale."""
    main = "bibtex" if scale == "paper" else "synthetic"
    return [
        Figure(
            "rounds",
            "Left: the largest distance of an entry from the projection, by rounds. Dykstra's algorithm comes to it at a steady factor per "
            "round; the published two rounds (dashed) are at its beginning. The same projections in turn without the corrections stop at "
            "another point of the set. Right: the bias of the smooth simplex step, which stays where only the softmax is sharpened.",
            _rounds,
        ),
        Figure(
            "gradient",
            "The farther apart the scores, the fewer labels are free (left), and with a whole sum nothing is free in more and more "
            "examples (middle): these give no gradient to the predicted number, and none to a score. Right: the mean slope in the sum; "
            "the smooth step keeps its own at any spread, as it is no projection.",
            _gradient,
        ),
        Figure(
            "f1",
            "F1 averaged over examples, each dot a seed. From one set of scores, taking as many labels as predicted is better than a "
            "threshold of one half wherever labels are many and rare. Trained end to end on a soft F1, the constraint adds to that where "
            "the number of labels is hard to see in single scores, and little on small dense sets.",
            _f1,
        ),
        Figure(
            "numbers",
            f"Predicted against true numbers of labels on {main} (darker is more frequent in the row; on the line is right). The threshold "
            "names too few; a predicted number and the constrained networks follow the truth roughly.",
            lambda results: _numbers(results, main),
        ),
        Figure(
            "sums",
            f"The sum of the labels after inference minus the predicted number, on new examples of {main}. The exact step keeps it to "
            "rounding, as do two rounds with the exact simplex step; the published smooth step does not keep it at all.",
            lambda results: _sums(results, main),
        ),
    ]


def _rounds(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.4, height=3.5)
    rows = results.rows.where(part="rounds")
    for name, text, color in (("error", "Dykstra", BLUE), ("plain", "in turn, no corrections", RED)):
        x, ys = rows.spread("rounds", name)
        plots.band(axes[0, 0], x, np.maximum(ys, 1e-16), label=text, color=color)
    plots.reference(axes[0, 0], 2, "as published", vertical=True)
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylim(top=1e3)
    plots.label(axes[0, 0], x="rounds", y="largest error of an entry", title="distance from the projection", legend=True, loc="lower left")
    rows = results.rows.where(part="smoothing")
    for both, text, color in ((False, "softmax alone", ORANGE), (True, "inside as well", GREEN)):
        picked = [r for r in rows if r["both"] == both or r["sharpness"] == 1]
        kappas = sorted({r["sharpness"] for r in picked})
        ys = np.array([[r["bias"] for r in picked if r["sharpness"] == k] for k in kappas]).T
        plots.points(axes[0, 1], kappas, ys, label=text, color=color)
    axes[0, 1].set_xscale("log")
    axes[0, 1].set_yscale("log")
    plots.label(axes[0, 1], x="sharpness", y="mean error of an entry", title="bias of the smooth step", legend=True)
    return figure


def _gradient(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=10.5, height=3.3)
    rows = results.rows.where(part="obstruction")
    for total, color in zip(rows.values("sum"), (BLUE, RED), strict=False):
        picked = rows.where(sum=total)
        for ax, name in zip(axes[0], ("free", "stuck", "slope"), strict=True):
            x, ys = picked.spread("spread", name)
            plots.band(ax, x, ys, label=f"exact, sum {total:g}", color=color)
    x, ys = rows.where(sum=rows.values("sum")[-1]).spread("spread", "smooth_slope")
    plots.band(axes[0, 2], x, ys, label="smooth step", color=GREEN)
    names = (("free labels per example", ""), ("share of examples", "nothing is free"), ("mean |slope|", "gradient of the sum"))
    for ax, (y, title) in zip(axes[0], names, strict=True):
        ax.set_xscale("log")
        plots.label(ax, x="standard deviation of the scores", y=y, title=title or "labels that can move")
    axes[0, 0].set_yscale("log")
    axes[0, 2].legend(frameon=False, fontsize=8)
    return figure


def _methods(results: Results, data: str) -> list[tuple[str, str, list[float]]]:
    """What was measured on a set: names, colours, F1 over seeds."""
    two = results.rows.where(part="two", set=data)
    found = [("logistic regression, 1/2", plots.MUTED, results.rows.where(part="relevance", set=data).column("threshold_f1"))]
    words = (("threshold", "cross-entropy, 1/2", SKY), ("top", "... predicted number", BLUE), ("oracle", "... true number", plots.INK))
    found += [(text, color, two.column(f"{way}_f1")) for way, text, color in words]
    for kind, text, color in (
        ("box", "soft F1, no number", ORANGE),
        ("exact", "exact projection", GREEN),
        ("dykstra", "two rounds", PURPLE),
        ("smooth", "smooth step", RED),
    ):
        found.append((text, color, trained(results, kind, data).column("f1")))
    found.append(("exact, pretrained", GREEN, trained(results, "exact", data, pretrained=15, accumulator=0.0).column("f1")))
    return [f for f in found if f[2]]


def _f1(results: Results) -> "Drawing":
    sets = [s for s in results.rows.where(part="two").values("set")]
    columns = min(3, len(sets))
    rows = -(-len(sets) // columns)
    figure, axes = plots.new(rows, columns, width=max(3.9 * columns, 6.0), height=2.9 * rows)
    for ax, data in zip(axes.flat, sets, strict=False):
        found = _methods(results, data)
        for place, (_, color, values) in enumerate(found):
            ax.plot(values, [-place] * len(values), ".", color=color, alpha=0.6)
            ax.plot([np.median(values)], [-place], "D", color=color, markersize=5)
        ax.set_yticks([-p for p in range(len(found))], [f[0] for f in found])
        if data == "bibtex":
            plots.reference(ax, 0.447, ".447", vertical=True)
        plots.label(ax, x="F1 averaged over examples", title=data)
    for ax in list(axes.flat)[len(sets) :]:
        ax.set_visible(False)
    return figure


def _numbers(results: Results, data: str) -> "Drawing":
    two = results.array("numbers", part="two", set=data).sum(0)
    tables: list[tuple[str, Any]] = [("threshold 1/2", two[0]), ("predicted number", two[1])]
    for kind, text in (("exact", "exact projection"), ("smooth", "smooth step")):
        tables.append((text, results.array("numbers", part="end", set=data, constraint=kind, **USUAL).sum(0)))
    figure, axes = plots.new(1, len(tables), width=11.0, height=3.2, sharey=True)
    for ax, (title, table) in zip(axes[0], tables, strict=True):
        counts = table.double().numpy()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(shares, origin="lower", cmap="Blues", vmin=0, vmax=0.8, aspect="auto")
        ax.plot([0, len(counts) - 1], [0, len(counts) - 1], color=RED, linewidth=0.9)
        ax.grid(False)
        ax.set_xticks([0, 2, 4, 6, 8, 11], ["0", "2", "4", "6", "8", "> 10"])
        ax.set_yticks([0, 2, 4, 6, 8, 11], ["0", "2", "4", "6", "8", "> 10"])
        plots.label(ax, x="predicted number", title=title)
    axes[0, 0].set_ylabel("true number of labels")
    return figure


def _sums(results: Results, data: str) -> "Drawing":
    kinds = [
        ("exact", 1.0, "exact projection", GREEN),
        ("dykstra", 1.0, "two rounds, exact step", PURPLE),
        ("smooth", 1.0, "smooth step", RED),
    ]
    if results.rows.where(part="end", set=data, constraint="smooth", sharp=100.0):
        kinds.append(("smooth", 100.0, "smooth, sharpened", ORANGE))
    figure, axes = plots.new(1, len(kinds), width=11.0, height=3.0)
    for ax, (kind, sharp, title, color) in zip(axes[0], kinds, strict=True):
        found = results.arrays("gaps", part="end", set=data, constraint=kind, **{**USUAL, "sharp": sharp})
        _histogram(ax, np.concatenate([g.flatten().numpy() for g in found]), color)
        plots.label(ax, x="sum of labels - z", title=title)
    axes[0, 0].set_ylabel("share of examples")
    return figure


def _histogram(ax: "Axes", gaps: np.ndarray, color: str) -> None:
    top = float(np.abs(gaps).max()) or 1.0
    counts, edges = np.histogram(gaps, bins=41, range=(-top, top))
    ax.stairs(counts / len(gaps), edges, fill=True, color=color)
    ax.annotate(f"largest {top:.1e}", (0.98, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=8.5)
    ax.xaxis.set_major_locator(MaxNLocator(3))
