"""The figures of the study of curves."""

from typing import Any

import numpy as np

from gradoscope.report import plots
from gradoscope.study import Figure, Results, Scale
from gradoscope.theory import curves as theory

__all__ = ["figures"]


def figures(scale: Scale) -> list[Figure]:
    """The figures of a scale."""
    return [
        Figure(
            "decoded",
            "Two curves (blue) and what each approach makes of them (red, dashed) on the way, as in figure 5 of the paper: the curve "
            "that belongs to the predicted changes of slope, or the decoded one. The linear map has the long waves at once, which is "
            "where nearly all of a curve's size is, and blunt kinks to the end; the filter's small error, summed twice, carries its "
            "curve away until it is exact; the whitened filter is exact at the first look. The code's law; the autoencoder has the "
            "paper's.",
            _decoded,
        ),
        Figure(
            "condition-numbers",
            "Exact condition numbers against the number of points. The linear map's runs along n^4, steeper than the n^3.5 that was "
            "proven; the filter's along n^3; after whitening it is 1. Dots: after a scaling per coordinate, which is what AdaGrad and Adam "
            "do: it helps neither.",
            _conditions,
        ),
        Figure(
            "filter-error",
            "Left: the largest error of the filter's three taps against steps, all seeds; the whitened one is done before the plain one "
            "has begun. Right: other update rules under the code's law, best step size each: AdaGrad is as slow as gradient descent, "
            "Adam far faster than both, and far slower than whitening.",
            _filter_error,
        ),
        Figure(
            "theorem-3",
            "Left: the distance of the mean of SGD's iterates from the solution, by step size in units of 1/(lambda S^2). Only above 2 "
            "does it grow; the theorem says from 1 on. At the dashed line, where the theorem's lower bound of 1/2 ends, 2 to 3 are left. "
            "Right: the mean of 400 real runs per seed against the closed form, in standard errors of its worst entry and as a share of "
            "its norm.",
            _theorem,
        ),
        Figure(
            "estimated-whitening",
            "Left: the condition number that is left when the whitening is estimated from so many curves: 3x3 numbers are known from 30 "
            "curves, n x n from thousands; below some hundred the n x n matrix is singular (not shown). Right: the loss of the linear "
            "map under the n x n whitening: solved in ten steps from 10,000 curves, exploding from 200.",
            _estimated,
        ),
        Figure(
            "breakpoints",
            "The share of breakpoints that are found at their exact place, read off as the three largest |p|. A loss near zero is no "
            "proof of breakpoints: the autoencoder's curves come within a percent, and its kinks are where chance puts them. Nor is a "
            "filter that is far off a proof against them: the plain one points at nearly all of them long before its taps are right.",
            _breakpoints,
        ),
    ]


def _rows(scale_results: Results) -> list[tuple[str, dict[str, Any]]]:
    """The approaches with their settings; the autoencoder is the narrowest of the undeepened."""
    widths = [row["width"] for row in scale_results.rows.where(part="autoencoder", law="paper", depth=0)]
    return [
        ("(a) linear", {"part": "linear", "law": "code", "lr": 1e-4}),
        ("(b) filter", {"part": "filter", "law": "code", "whitened": False, "optimizer": "adam", "lr": 0.05}),
        ("(c) whitened filter", {"part": "filter", "law": "code", "whitened": True, "optimizer": "adam"}),
        ("(d) autoencoder", {"part": "autoencoder", "law": "paper", "depth": 0, "width": min(widths)}),
    ]


def _decoded(results: Results) -> Any:
    approaches = _rows(results)
    pictures = [(name, results.array("decoded", **v).numpy(), results.array("truth", **v).numpy(), v) for name, v in approaches]
    columns = max(len(decoded) for _, decoded, _, _ in pictures)
    figure, axes = plots.new(len(pictures), columns, width=3.0 * columns, height=7.6)
    for i, (name, decoded, truth, values) in enumerate(pictures):
        looks = [s for s in (500, 10_000, 50_000) if s <= results.rows.where(**values)[0]["steps"]]
        looks = looks if len(looks) == len(decoded) else [*looks, results.rows.where(**values)[0]["steps"]]
        for j in range(columns):
            ax = axes[i, j]
            if j >= len(decoded):
                ax.set_axis_off()
                continue
            for curve, original in zip(decoded[j], truth, strict=True):
                ax.plot(original, color=plots.PALETTE[0], linewidth=2.6, alpha=0.7)
                ax.plot(curve, color=plots.PALETTE[1], linewidth=1.3, linestyle=(0, (4, 2)))
            reach = 1.2 * np.abs(truth).max()
            ax.set_ylim(-reach, reach)
            plots.label(ax, x="point" if i == len(pictures) - 1 else "", title=f"{name}, {looks[j]:,} steps")
    return figure


def _conditions(results: Results) -> Any:
    figure, axes = plots.new(1, 1, width=6.4, height=4.2)
    ax, table = axes[0, 0], results.rows.where(part="spectra")
    names = ("linear", "filter, paper law", "filter, code law")
    for problem, color, marker in zip(names, plots.PALETTE, plots.MARKERS, strict=False):
        rows = table.where(problem=problem)
        n = np.array(rows.column("n"), dtype=float)
        ax.loglog(n, rows.column("condition"), marker=marker, color=color, label=problem)
        ax.loglog(n, rows.column("jacobi"), linestyle="none", marker=".", color=plots.INK, zorder=4)
    n = np.array(table.where(problem="linear").column("n"), dtype=float)
    whitened = table.where(problem="filter, paper law").column("whitened")
    ax.loglog(n, whitened, marker="D", color=plots.PALETTE[3], label="filter, whitened")
    for power, factor in ((4.0, theory.integrator_limit()), (3.0, 1.5)):
        ax.loglog(n, factor * n**power, color=plots.MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(f"{factor:.4g} n^{power:g}", (n[-1], factor * n[-1] ** power), xytext=(-48, 4), textcoords="offset points", fontsize=8)
    first = table.where(problem="linear").column("condition")[0]
    ax.loglog(n, first * (n / n[0]) ** 3.5, color=plots.MUTED, linewidth=1.0, linestyle=":", zorder=1, label="slope 3.5")
    ax.set_xticks(n, [f"{v:.0f}" for v in n])
    ax.minorticks_off()
    plots.label(ax, x="points per curve n", y="condition number", legend=True)
    return figure


def _filter_error(results: Results) -> Any:
    figure, axes = plots.new(1, 2, width=9.4, height=3.7, sharey=True)
    kinds = [(law, w) for law in ("code", "paper") for w in (False, True)]
    for (law, whitened), color in zip(kinds, plots.PALETTE, strict=False):
        rows = results.curves.where(part="filter", law=law, whitened=whitened, optimizer="adam", lr=0.99 if whitened else 0.05)
        x, y = rows.spread("step", "error")
        plots.band(axes[0, 0], x + 1, y, label=f"{'whitened' if whitened else 'plain'}, {law}'s law", color=color)
    rules = [("sgd", "gradient descent"), ("adagrad", "AdaGrad"), ("adam", "Adam")]
    for (rule, name), color in zip(rules, plots.PALETTE, strict=False):
        table = results.curves.where(part="filter", law="code", whitened=False, optimizer=rule)
        runs = [rows.spread("step", "error") for _, rows in table.groups("lr")]
        shortest = min(float(x[-1]) for x, _ in runs)
        x, y = min(runs, key=lambda run: float(np.median(run[1][:, np.searchsorted(run[0], shortest)])))
        plots.band(axes[0, 1], x + 1, y, label=name, color=color)
    x, y = results.curves.where(part="filter", law="code", whitened=True).spread("step", "error")
    plots.band(axes[0, 1], x + 1, y, label="whitened, Adam", color=plots.PALETTE[3])
    for ax in axes[0]:
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(1e-6, 5)
        plots.reference(ax, 0.01, "0.01")
    plots.label(axes[0, 0], x="step + 1", y="largest error of a tap", title="the sources' settings", legend=True, loc="lower left")
    plots.label(axes[0, 1], x="step + 1", title="other update rules", legend=True, loc="lower left")
    return figure


def _theorem(results: Results) -> Any:
    figure, axes = plots.new(1, 2, width=9.4, height=3.7)
    left, right = axes[0]
    table = results.curves.where(part="theorem", loss="half")
    for ((scaled,), rows), color in zip(table.groups("scaled"), plots.PALETTE, strict=False):
        left.loglog(rows.column("t"), np.clip(rows.column("distance"), 1e-8, 1e4), color=color, label=f"step size {scaled:g}")
    left.set_ylim(1e-6, 1e3)
    plots.reference(left, 0.5, "bound 1/2")
    plots.reference(left, table[0]["horizon"], "", vertical=True)
    plots.label(left, x="step t", y="|E U_t - U|", title="closed form, n = 30", legend=True, loc="lower left")
    runs = results.rows.where(part="runs")
    x, z = runs.spread("t", "z")
    _, error = runs.spread("t", "error")
    plots.points(right, x, z, label="worst entry, standard errors", color=plots.PALETTE[0])
    plots.points(right, x, error, label="|mean - E U_t| / |E U_t|", color=plots.PALETTE[1], marker="s")
    plots.points(right, x, runs.spread("t", "norm")[1], label="|E U_t|", color=plots.PALETTE[2], marker="^")
    right.set_xscale("log")
    right.set_yscale("log")
    plots.label(right, x="step t", title="400 runs of SGD per seed, n = 6", legend=True)
    return figure


def _estimated(results: Results) -> Any:
    figure, axes = plots.new(1, 2, width=9.4, height=3.6)
    left, right = axes[0]
    table = results.rows.where(part="estimates")
    for name, label, color, marker in (("map", "n x n", plots.PALETTE[1], "s"), ("filter", "3 x 3", plots.PALETTE[0], "o")):
        x, y = table.spread("curves", name)
        plots.points(left, x, np.where(np.isfinite(y), y, np.nan), label=label, color=color, marker=marker)
    left.set_xscale("log")
    left.set_yscale("log")
    plots.label(left, x="curves for the estimate", y="condition number left", legend=True)
    for ((count,), rows), color in zip(results.curves.where(part="whole").groups("used"), plots.PALETTE[1:], strict=False):
        x, y = rows.spread("step", "relative")
        plots.band(right, x, y, label=f"from {count:,} curves", color=color)
    right.set_yscale("log")
    right.set_ylim(1e-12, 1e4)
    plots.label(right, x="step", y="loss / loss of predicting 0", title="linear map, n x n whitening", legend=True)
    return figure


def _breakpoints(results: Results) -> Any:
    figure, axes = plots.new(1, 1, width=6.4, height=3.8)
    ax = axes[0, 0]
    for (name, values), color in zip(_rows(results), plots.PALETTE, strict=False):
        x, y = results.curves.where(**values).spread("step", "recall")
        plots.band(ax, x + 1, y, label=name, color=color)
    x, y = results.curves.where(part="filter", law="paper", whitened=False, optimizer="adam", lr=0.05).spread("step", "recall")
    plots.band(ax, x + 1, y, label="(b) filter, paper's law", color=plots.PALETTE[4])
    ax.set_xscale("log")
    plots.reference(ax, 0.03, "three places at random")
    plots.label(ax, x="step + 1", y="breakpoints found", legend=True)
    return figure
