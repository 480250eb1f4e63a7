"""The figures of the study of stochastic gradient descent."""

from typing import TYPE_CHECKING

import numpy as np

from gradoscope.report import plots
from gradoscope.studies._sgd import AFAR, ALPHAS, BALL, DISTINCT, SCHEDULES, spectrum
from gradoscope.studies._sgd_claims_data import best_rate, gains, part
from gradoscope.studies._sgd_data import BUDGETS, ORDERS, SIZES
from gradoscope.studies._sgd_nets import METHODS, NETS
from gradoscope.study import Figure, Results, Scale
from gradoscope.theory import sgd

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

COLOURS = (*plots.PALETTE, plots.MUTED)


def _rates(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=11, height=4.0, sharey=True)
    for ax, what, title in ((axes[0, 0], "iterate", "the iterate"), (axes[0, 1], "average", "the average of all iterates")):
        for schedule, colour in zip(SCHEDULES, COLOURS, strict=True):
            table = results.curves.where(part="rates", schedule=schedule.name)
            x, ys = table.spread("step", what)
            plots.band(ax, x, ys, label=schedule.name if what == "average" else "", color=colour)
            if what == "iterate":
                ax.plot(x, table.spread("step", "exact")[1][0], linestyle=":", color=plots.INK, linewidth=0.9)
        ax.plot(x, [sgd.averaged_optimum(5, t) for t in x], linestyle="--", color=plots.INK, linewidth=1, label="the best possible, d/(2t)")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(1e-5, 1e2)
        plots.label(ax, x="step t", y="expected excess loss" if what == "iterate" else "", title=title)
    axes[0, 1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _places(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=12, height=3.6)
    for (name, _, _), colour in zip(AFAR, plots.PALETTE, strict=False):
        plots.band(axes[0, 0], *results.curves.where(part="afar", schedule=name).spread("step", "gap"), label=name, color=colour)
    plots.label(axes[0, 0], x="step t", y="gap of |x|/2", title="neither smooth nor strongly convex", legend=True)
    for alpha, colour in zip(ALPHAS, plots.PALETTE, strict=False):
        curves = results.curves.where(part="stall", alpha=alpha)
        plots.band(axes[0, 1], *curves.spread("step", "excess"), label=f"$\\alpha$ = {alpha:g}", color=colour)
    plots.label(axes[0, 1], x="step t", y="excess of x²/2", title="rates with a finite sum", legend=True)
    for ax in axes[0, :2]:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax, rates = axes[0, 2], np.geomspace(0.01, 0.5, 60)
    ax.plot(rates, [sgd.stationary_excess(spectrum(BALL["low"], BALL["high"]), r) for r in rates], label="exact")
    first = [sgd.stationary_excess_additive(spectrum(BALL["low"], BALL["high"]), r) for r in rates]
    ax.plot(rates, first, linestyle="--", color=plots.MUTED, label="noise as at the optimum")
    found = part(results, "ball").column("excess")
    ax.plot([BALL["rate"]] * len(found), found, ".", color=plots.PALETTE[1], label="simulated")
    ax.set_xscale("log")
    ax.set_yscale("log")
    plots.label(ax, x="constant step", y="stationary excess", title="the ball around the optimum", legend=True)
    return figure


def _orders(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=12, height=3.6)
    for name, colour in zip(ORDERS, plots.PALETTE, strict=False):
        plots.band(axes[0, 0], *results.curves.where(part="orders", order=name).spread("epoch", "gap"), label=name, color=colour)
    axes[0, 0].set_yscale("log")
    plots.label(axes[0, 0], x="epoch", y="gap to the minimum", title="least squares, 256 examples", legend=True)
    for ax, what, title in ((axes[0, 1], "loss", "all digits"), (axes[0, 2], "zero", "even digits, whose turn comes first")):
        for name, colour in (("sorted", plots.PALETTE[1]), ("shuffled", plots.PALETTE[0])):
            plots.band(ax, *results.curves.where(part="classes", order=name).spread("step", what), label=name, color=colour)
        plots.label(ax, x="step of the last epoch", y="loss", title=title, legend=True)
    return figure


def _batches(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=12, height=3.6)
    curves = results.curves.where(part="batches")
    b, steps, fit = (np.array(curves.column(k)) for k in ("batch", "steps", "fit"))
    axes[0, 0].plot(b, steps, "o", markersize=4, label="exact")
    axes[0, 0].plot(b, fit, color=plots.PALETTE[1], label="S = S_min (1 + B_c/B)")
    row = part(results, "batches")[0]
    if row["critical"] is not None:
        plots.reference(axes[0, 0], row["critical"], "B_c", vertical=True)
    axes[0, 0].axvspan(row["scale_start"], row["scale_end"], color=plots.PALETTE[2], alpha=0.12, linewidth=0)
    plots.label(axes[0, 0], x="batch B", y="fewest steps to 1%", title="least squares, by theory", legend=True)
    axes[0, 1].plot(b, b * steps, "o-", markersize=4)
    plots.label(axes[0, 1], x="batch B", y="examples to 1%", title="the same in gradients")
    table = part(results, "network batches")
    sizes = table.values("batch")
    taken = np.array([table.where(batch=size).column("steps") for size in sizes], dtype=float).T
    plots.points(axes[0, 2], sizes, np.where(np.isfinite(taken), taken, np.nan), label="steps")
    examples = np.where(np.isfinite(taken), taken * np.array(sizes), np.nan)
    plots.points(axes[0, 2], sizes, examples, label="examples", color=plots.PALETTE[1], marker="s")
    plots.label(axes[0, 2], x="batch B", y="to training loss 0.3", title="ReLU network on digits", legend=True)
    for ax in axes[0]:
        ax.set_xscale("log")
        ax.set_yscale("log")
    return figure


def _budget(results: Results) -> "Drawing":
    figure, axes = plots.new(1, len(BUDGETS), width=12, height=3.8, sharey=True)
    for ax, total in zip(axes[0], BUDGETS, strict=True):
        sizes = [n for n in SIZES if n <= total]
        rows = [part(results, "budget", method="GD", budget=total, n=n) for n in sizes]
        parts = {name: np.array([np.mean(r.column(name)) for r in rows]) for name in ("approximation", "estimation", "excess")}
        x = np.arange(len(sizes))
        ax.bar(x, parts["approximation"], color=plots.MUTED, label="approximation")
        ax.bar(x, parts["estimation"], bottom=parts["approximation"], color=plots.PALETTE[0], label="estimation")
        rest = np.maximum(parts["excess"] - parts["estimation"], 0)
        ax.bar(x, rest, bottom=parts["approximation"] + parts["estimation"], color=plots.PALETTE[1], label="optimisation")
        sgd_rows = part(results, "budget", method="SGD, tail average", budget=total)
        ax.axhline(np.mean(sgd_rows.column("excess")) + parts["approximation"][0], color=plots.PALETTE[2], label="SGD, one pass, averaged")
        ax.set_xticks(x, [f"{n:,}" for n in sizes], rotation=45)
        ax.set_yscale("log")
        ax.set_ylim(0.03, 10)
        plots.label(ax, x="examples n that GD uses", y="loss above the noise" if ax is axes[0, 0] else "", title=f"{total:,} gradients")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _early(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=10, height=3.6)
    curves = results.curves.where(part="early")
    for what, name, colour in (("train", "training (noisy labels)", plots.PALETTE[0]), ("loss", "held out (clean)", plots.PALETTE[1])):
        plots.band(axes[0, 0], *curves.spread("epoch", what), label=name, color=colour)
    plots.label(axes[0, 0], x="epoch", y="negative log-likelihood", title="the surrogate", legend=True)
    plots.band(axes[0, 1], *curves.spread("epoch", "error"), label="held out", color=plots.PALETTE[1])
    plots.label(axes[0, 1], x="epoch", y="share of errors", title="what counts", legend=True)
    rows = part(results, "early")
    for ax in axes[0]:
        plots.reference(ax, float(np.median(rows.column("loss_epoch"))), "likelihood best", vertical=True, color=plots.PALETTE[1])
        plots.reference(ax, float(np.median(rows.column("error_epoch"))), "\n\nerror best", vertical=True, color=plots.PALETTE[2])
    return figure


def _methods(results: Results) -> "Drawing":
    figure, axes = plots.new(2, len(NETS), width=12, height=6.6)
    for column, net in enumerate(NETS):
        for method, colour, marker in zip(METHODS, plots.PALETTE, plots.MARKERS, strict=False):
            rows = part(results, "methods", net=net, method=method)
            rates = rows.values("rate")
            losses = np.array([rows.where(rate=r).column("loss") for r in rates], dtype=float).T
            losses = np.where(np.isfinite(losses), losses, np.nan)
            plots.points(axes[0, column], rates, losses, label=method, color=colour, marker=marker)
            curves = results.curves.where(part="methods", net=net, method=method, rate=best_rate(rows, None))
            plots.band(axes[1, column], *curves.spread("step", "loss"), label=method, color=colour)
        axes[0, column].set_xscale("log")
        for ax in axes[:, column]:
            ax.set_yscale("log")
        axes[0, column].set_ylim(top=3.0)  # above it nothing was learnt
        plots.label(
            axes[0, column], x="rate, as a step along a constant gradient", y="training loss at the end", title=net, legend=column == 0
        )
        plots.label(axes[1, column], x="step", y="training loss", title="each at its best rate", legend=column == 0)
    return figure


def _gains(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6.5, height=3.6)
    ax = axes[0, 0]
    for k, (method, colour) in enumerate(zip(METHODS[1:], plots.PALETTE[1:], strict=False)):
        for j, net in enumerate(NETS):
            values = np.exp(gains(results, net, method))
            ax.plot(j + 0.22 * (k - 1) + np.zeros(len(values)), values, ".", color=colour, alpha=0.6)
            ax.plot([j + 0.22 * (k - 1)], [np.median(values)], "_", markersize=16, color=colour, label=method if j == 0 else None)
    ax.set_xticks(range(len(NETS)), list(NETS))
    ax.set_yscale("log")
    plots.reference(ax, 1.0, "as good as SGD")
    plots.label(ax, y="loss of SGD / loss of the rule", legend=True)
    return figure


def _others(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=12, height=3.6)
    for ax, noise, title in ((axes[0, 0], 5.0, "SGD: noise dominates"), (axes[0, 1], 0.0, "gradient descent")):
        for k, colour in zip(DISTINCT, plots.PALETTE, strict=False):
            curves = results.curves.where(part="curvature", distinct=k, noise=noise, seed=0)
            ax.plot(curves.column("step"), curves.column("ratio"), color=colour, linewidth=1, label=f"{k} distinct eigenvalues")
        plots.label(ax, x="step", y="$g^\\top Hg/g^\\top g$", title=title, legend=True)
    axes[0, 1].set_xlim(0, 40)
    curves = results.curves.where(part="adagrad")
    plots.band(axes[0, 2], *curves.spread("step", "regret"), label="regret")
    plots.band(axes[0, 2], *curves.spread("step", "bound"), label="bound", color=plots.PALETTE[1], linestyle="--")
    axes[0, 2].set_xscale("log")
    axes[0, 2].set_yscale("log")
    plots.label(axes[0, 2], x="step", y="regret", title="AdaGrad on sparse inputs", legend=True)
    return figure


def figures(scale: Scale) -> list[Figure]:
    """All figures, in the order of the lecture."""
    steps = f"{30_000 if scale == 'quick' else 100_000:,}"
    return [
        Figure(
            "rates",
            f"Excess loss of SGD on streaming least squares over {steps} steps, the mean of 200 runs, and its spread over seeds. "
            "Left: the iterate; dotted, what theory gives, step by step. 0.3/t looks like the fastest schedule and ends far behind. Right: "
            "the average of the same iterates; almost all come down to the dashed line, the best that any method can do. 2/t, read "
            "literally, throws the iterate away at its first steps, and its average never forgets that.",
            _rates,
        ),
        Figure(
            "places",
            "Where SGD ends. Left: from afar the rates 1/t run out before the way does, while from near they are better than "
            "t^-1/2. Middle: rates with a finite sum stop for good. Right: with a constant step SGD ends in a ball; the formula that takes "
            "the gradient's noise as it is at the optimum (dashed) is too small.",
            _places,
        ),
        Figure(
            "orders",
            "Left: the same number of steps at the same rates, with the examples shuffled in each epoch, in one fixed random "
            "order, or drawn with replacement. Middle and right: even digits first, then odd ones, within each epoch: the second half of "
            "the epoch unlearns what the first half taught.",
            _orders,
        ),
        Figure(
            "batches",
            "The fewest steps to a target, at the best rate for each batch. Up to the critical batch (dashed) twice the batch "
            "halves the steps at the same count of gradients; beyond it gradients are wasted. The green range is that of the simple noise "
            "scale from the start to the target.",
            _batches,
        ),
        Figure(
            "budget",
            "For a fixed number of gradients of single examples: gradient descent on n examples. With few examples the "
            "estimation error (blue) stays, with many there are too few steps (red); the best n grows with the budget. The green line is "
            "one pass of SGD over as many fresh examples, with averaged iterates.",
            _budget,
        ),
        Figure(
            "early",
            "A network on 200 digits, a fifth of them with random labels. The held-out likelihood is best early, and gets worse "
            "while the training loss falls to zero; the held-out error is best at another epoch. Stopping by one is not stopping by "
            "the other.",
            _early,
        ),
        Figure(
            "methods",
            "Plain SGD, momentum and both readings of Nesterov's on three networks. Above: the training loss at the end "
            "against the rate, all rules on one scale (the length of a step along a constant gradient). Momentum stands larger "
            "steps. Below: the way there, each at its best rate.",
            _methods,
        ),
        Figure(
            "gains",
            "How many times lower than SGD's the training loss ends, by seed; the rate of each seed is the one that is best on "
            "the other seeds.",
            _gains,
        ),
        Figure(
            "others",
            "Left and middle: the curvature along the gradient on quadratics of one condition number. Under noise it varies more "
            "where there are more distinct eigenvalues; without, it falls once, and most abruptly where there are two. Right: AdaGrad's "
            "regret on a stream of sparse examples stays below its bound.",
            _others,
        ),
    ]
