"""The figures of the study of information in the gradient."""

from typing import TYPE_CHECKING

import numpy as np

from gradoscope.report import plots
from gradoscope.study import Results, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["BOUND", "ORACLE", "PAIRS", "SPECTRUM", "TRAINING", "bound", "oracle", "pairs", "spectrum", "training"]

BOUND = (
    "Left: the variance of the gradient over all 2^d parities, over G^2, falls by half with each bit and lies on the line 2^-d; a typical "
    "parity (median) has about a hundredth of that. Right: what the bound leaves over, at d = 8, in networks of other widths and depths: "
    "nothing for the squared loss, and a few per cent for the hinge loss, where outputs beyond 1 halve the gradient. No architecture "
    "escapes the factor 2^-d."
)
SPECTRUM = (
    "The signal of parities of k bits over the bound, at the start. The few parities of 0, 1 and 2 bits carry the variance; those of "
    "about d/2 bits, which are nearly all, have a hundredth of the bound. Odd sizes from 3 on have less than even ones: the network's "
    "derivative is nearly even there. Depth flattens the spectrum."
)
TRAINING = (
    "Networks trained on one parity each. Above: the variance over all targets, over its bound, at each look: never above 1, and for the "
    "hinge loss a quarter once the network is sure of every example. Below: the signal of the network's own target, over the bound, "
    "against that of a typical parity. Learning starts when the one stands out from the other."
)
PAIRS = (
    "Left: the share of pairs of targets whose gradients differ by at least m G^2/2^d, with Markov's bound. Right: the share of targets "
    "whose gradient is at least t from the mean, with Chebyshev's bound. Most targets are far closer to the mean than the bounds say."
)
ORACLE = (
    "Gradient descent on an oracle that answers with the mean gradient unless the true one is further than the tolerance: the share of all "
    "targets that has shown itself. It is there from the first step and falls with d; all others share one path."
)


def _series(rows: Table, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """x sorted, and y of shape (seeds, len(x)); the first row of each cell."""
    xs = sorted(set(rows.column(x)))
    seeds = sorted(set(rows.column("seed")))
    table = {(r["seed"], r[x]): r[y] for r in reversed(rows.rows)}
    kept = [s for s in seeds if all((s, v) in table for v in xs)]
    return np.array(xs), np.array([[table[s, v] for v in xs] for s in kept], dtype=float)


def bound(results: Results) -> "Drawing":
    """Var/G^2 against d, and the ratio over architectures."""
    figure, axes = plots.new(1, 2, width=10, height=3.8)
    left, right = axes[0]
    rows = results.rows.where(part="start", coding="signs", width_factor=10, depth=1)
    for k, loss in enumerate(("squared", "hinge")):
        d, over = _series(rows.where(loss=loss), "d", "over_size")
        plots.points(left, d, over, label=f"all parities, {loss}", color=plots.PALETTE[k], marker=plots.MARKERS[k], line=False)
        _, typical = _series(rows.where(loss=loss), "d", "typical")
        plots.points(left, d, typical / 2.0**d, label=f"a typical one, {loss}", color=plots.PALETTE[k + 2], marker=plots.MARKERS[k + 2])
    left.plot(d, 2.0**-d, color=plots.MUTED, linestyle="--", linewidth=1, label="bound, $2^{-d}$")
    left.set_yscale("log")
    plots.label(left, x="bits d", y="variance of the gradient / $G^2$", title="Exponentially little of the target", legend=True)
    kinds = [(10, 1, "1 layer"), (40, 1, "width x4"), (160, 1, "width x16"), (10, 2, "2 layers"), (10, 4, "4 layers")]
    at = results.rows.where(part="start", coding="signs", d=8)
    for k, loss in enumerate(("squared", "hinge")):
        cells = [at.where(width_factor=w, depth=n, loss=loss).column("ratio")[:5] for w, n, _ in kinds]
        x = np.arange(len(kinds)) + 0.16 * (2 * k - 1)
        plots.points(right, x, np.array(cells).T, label=loss, color=plots.PALETTE[k], marker=plots.MARKERS[k], line=False)
    plots.reference(right, 1.0, "bound")
    right.set_xticks(range(len(kinds)), [name for *_, name in kinds])
    right.set_ylim(0, 1.12)
    plots.label(right, y="variance / bound", title="Widths and depths, d = 8", legend=True, loc="lower left")
    return figure


def spectrum(results: Results) -> "Drawing":
    """The spectrum by size for several d, and for several depths."""
    figure, axes = plots.new(1, 2, width=10, height=3.8, sharey=True)
    curves = results.curves.where(part="start", coding="signs", loss="squared")
    plain = curves.where(width_factor=10, depth=1)
    for k, d in enumerate(sorted(set(plain.column("d")))[::2][:5]):
        x, y = _series(plain.where(d=d), "size", "over_bound")
        plots.band(axes[0, 0], x, y, label=f"d = {d}", color=plots.PALETTE[k], marker=plots.MARKERS[k], markersize=4)
    for k, depth in enumerate((1, 2, 4)):
        x, y = _series(curves.where(d=8, width_factor=10, depth=depth), "size", "over_bound")
        plots.band(axes[0, 1], x, y, label=f"{depth} hidden", color=plots.PALETTE[k], marker=plots.MARKERS[k], markersize=4)
    for ax, title in zip(axes[0], ("By size of the parity", "By depth, d = 8"), strict=True):
        ax.set_yscale("log")
        plots.reference(ax, 1.0, "mean over all parities")
        plots.label(ax, x="bits in the parity", title=title, legend=True)
    plots.label(axes[0, 0], y="signal / bound")
    return figure


def training(results: Results) -> "Drawing":
    """Ratio, own signal and accuracy along training."""
    curves = results.curves.where(part="training")
    sizes = curves.values("d")
    figure, axes = plots.new(2, len(sizes), width=4.8 * len(sizes), height=6.2, sharex="col", sharey="row")
    for column, d in enumerate(sizes):
        mine = curves.where(d=d)
        top, below = axes[:, column]
        for k, (name, label) in enumerate((("ratio_squared", "variance, squared"), ("ratio_hinge", "variance, hinge"))):
            x, y = _series(mine, "step", name)
            plots.band(top, x + 1, y, label=label, color=plots.PALETTE[k])
        x, accuracy = _series(mine, "step", "accuracy")
        plots.band(top, x + 1, accuracy, label="accuracy", color=plots.PALETTE[2], linestyle=":")
        plots.reference(top, 1.0, "bound")
        top.set_ylim(0, 1.15)
        for k, (name, label) in enumerate((("own", "its own target"), ("typical", "a typical parity"))):
            x, y = _series(mine, "step", name)
            plots.band(below, x + 1, y, label=label, color=plots.PALETTE[3 + k])
        below.set_yscale("log")
        below.set_xscale("log")
        plots.label(top, title=f"d = {d}", legend=True, loc="lower left")
        plots.label(below, x="step + 1", legend=True, loc="upper left")
    plots.label(axes[0, 0], y="over the bound; accuracy")
    plots.label(axes[1, 0], y="signal / bound (hinge)")
    return figure


def pairs(results: Results) -> "Drawing":
    """Shares of pairs and of targets against Markov's and Chebyshev's bounds."""
    figure, axes = plots.new(1, 2, width=10, height=3.6)
    curves = results.curves.where(part="pairs")
    for k, d in enumerate(curves.values("d")):
        for ax, name in zip(axes[0], ("share", "tail"), strict=True):
            x, y = _series(curves.where(d=d), "multiple", name)
            plots.band(ax, x, np.where(y > 0, y, np.nan), label=f"d = {d}", color=plots.PALETTE[k])
    x = np.geomspace(0.01, 1000, 200)
    axes[0, 0].plot(x, np.minimum(1, 2 / x), color=plots.MUTED, linestyle="--", linewidth=1, label="Markov")
    axes[0, 1].plot(x, np.minimum(1, 1 / x), color=plots.MUTED, linestyle="--", linewidth=1, label="Chebyshev")
    for ax in axes[0]:
        ax.set_xscale("log")
        ax.set_yscale("log")
    squared = r"$|\nabla F_h-\nabla F_{h'}|^2$ in units of $G^2/2^d$"
    plots.label(axes[0, 0], x=squared, y="share of pairs above", title="Pairs of targets", legend=True)
    plots.label(axes[0, 1], x="$t^2$ in units of the variance", y="share of targets beyond t", title="Around the mean", legend=True)
    return figure


def oracle(results: Results) -> "Drawing":
    """The share of targets that has shown itself against the step."""
    curves = results.curves.where(part="oracle")
    tolerances = curves.values("tolerance")
    figure, axes = plots.new(1, len(tolerances), width=10, height=3.4, sharey=True)
    for ax, tolerance in zip(axes[0], tolerances, strict=True):
        for k, d in enumerate(curves.values("d")):
            x, y = _series(curves.where(tolerance=tolerance, d=d), "step", "departed")
            plots.band(ax, x, y, label=f"d = {d}", color=plots.PALETTE[k])
        ax.set_yscale("log")
        plots.label(ax, x="step", title=f"Tolerance {tolerance:g} G", legend=True)
    plots.label(axes[0, 0], y="share of targets that showed")
    return figure
