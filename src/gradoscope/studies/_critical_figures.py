"""Figures of the critical points."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from gradoscope.report import plots
from gradoscope.studies._critical_claims import NETWORKS, RANDOM
from gradoscope.study import Figure, Results, Scale
from gradoscope.theory.random_landscapes import all_positive, index_at_height, threshold_height

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]


def figures(scale: Scale) -> list[Figure]:
    """The figures of a scale."""
    names = list(NETWORKS) if scale == "paper" else ["random", "digits"]
    return [
        Figure(
            "index-against-loss",
            "Each dot is a distinct critical point: the share of negative eigenvalues and the loss, all seeds together; the "
            "colour is the share of eigenvalues that are zero. The higher a critical point lies, the more directions lead down; the "
            "minima, on the left edge, lie low. Without a ridge (last) most of what is found has flat directions.",
            lambda results: _index(results, names),
        ),
        Figure(
            "spectra",
            "The eigenvalues at critical points of small, middle and large index (thirds of all), tanh network on random data. The peak "
            "next to zero is the ridge, 1e-4, along directions that the loss hardly sees; the higher the index the more of them there are, "
            "and the further negative eigenvalues reach down.",
            _spectra,
        ),
        Figure(
            "sphere",
            "Spherical 3-spin model, n = 24. Left: the index against the height, each dot a critical point; the line is the semicircle's "
            "share below 3u, which has no free parameter. Right: how many points have index 0 on either side of the threshold height, "
            "below which only minima are left when n is large.",
            _sphere,
        ),
        Figure(
            "coins",
            "The probability that all eigenvalues are positive: tosses of independent coins, and matrices of the Gaussian ensemble "
            "(line: exact, dots: five seeds of 200,000 matrices). Repulsion makes a minimum far rarer than coins say.",
            _coins,
        ),
        Figure(
            "where-descents-end",
            "Where descents on the gradient's norm end. With a ridge, most end at minima of |g| that are not zero, which are no critical "
            "points; without, more pass the filter, but most of those have flat directions.",
            _ends,
        ),
    ]


def _index(results: Results, names: list[str]) -> "Drawing":
    panels = [NETWORKS[key] for key in names]
    panels.append(("the same as the first, without ridge", RANDOM | {"ridge": 0.0}))
    figure, axes = plots.new(1, len(panels), width=3.6 * len(panels) + 0.8, height=3.6)
    image = None
    for at, (ax, (name, where)) in enumerate(zip(axes[0], panels, strict=True)):
        points = results.curves.where(**where)
        index, loss = points.column("index"), points.column("loss")
        image = ax.scatter(index, loss, c=points.column("zero"), vmin=0, vmax=0.2, cmap="viridis", s=22, edgecolor="white", linewidth=0.4)
        rows = results.rows.where(**where)
        text = f"rank correlation {float(np.mean(rows.column('spearman'))):.2f} (mean over seeds)"
        plots.label(ax, x="index: share of negative eigenvalues", y="loss J" if at == 0 else "", title=name)
        ax.margins(y=0.15)
        ax.annotate(text, (0.03, 0.96), xycoords="axes fraction", va="top", fontsize=8, color=plots.MUTED)
    if image is not None:
        figure.colorbar(image, ax=list(axes[0]), label="share of zero eigenvalues", shrink=0.8)
    return figure


def _spectra(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=10, height=3.0, sharex=True)
    eigenvalues = torch.cat(results.arrays("eigenvalues", **RANDOM))
    index = (eigenvalues < 0).double().mean(1)
    thirds = torch.tensor_split(index.argsort(stable=True), 3)
    for ax, name, chosen, color in zip(axes[0], ("small", "middle", "large"), thirds, plots.PALETTE, strict=False):
        picked = eigenvalues[chosen].flatten()
        scaled = torch.asinh(picked / 1e-2).numpy()
        ax.hist(scaled, bins=np.linspace(-4.5, 6.5, 45), density=True, color=color, alpha=0.8)
        ax.axvline(0, color=plots.INK, linewidth=0.9)
        ticks = np.array([-0.1, -0.01, 0, 0.01, 0.1, 1.0])
        ax.set_xticks(np.arcsinh(ticks / 1e-2), [f"{t:g}" for t in ticks])
        mean = float(index[chosen].mean())
        plots.label(ax, x="eigenvalue", y="density" if name == "small" else "", title=f"{name} index, mean {mean:.2f}")
    return figure


def _sphere(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.2, height=3.5, gridspec_kw={"width_ratios": [2, 1]})
    left, right = axes[0]
    points = results.curves.where(part="sphere")
    n = results.rows.where(part="sphere")[0]["n"]
    u, index = np.array(points.column("loss")), np.array(points.column("index"))
    left.scatter(u, index, s=9, color=plots.PALETTE[0], alpha=0.6, linewidth=0, label="a critical point")
    grid = torch.linspace(float(u.min()) - 0.05, float(u.max()) + 0.05, 200, dtype=torch.float64)
    left.plot(grid, index_at_height(grid, n), color=plots.PALETTE[1], label="semicircle")
    plots.reference(left, threshold_height(n), "threshold", vertical=True)
    plots.label(left, x="height u = H/n", y="index", legend=True, loc="lower right", title=f"3-spin sphere, n = {n}")
    below = u < threshold_height(n)
    counts = [[int((below & (index == 0)).sum()), int((~below & (index == 0)).sum())], [int((below & (index > 0)).sum())]]
    right.bar(["minima\nbelow", "minima\nabove", "saddles\nbelow"], [*counts[0], *counts[1]], color=plots.PALETTE[:3])
    plots.label(right, y="critical points", title="at the threshold height")
    return figure


def _coins(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=4.8, height=3.4)
    ax = axes[0, 0]
    sizes = np.arange(1, 9)
    ax.plot(sizes, 0.5**sizes, color=plots.MUTED, linestyle=(0, (4, 3)), label="independent coins")
    ax.plot(sizes, [all_positive(int(n)) for n in sizes], color=plots.PALETTE[1], label="Gaussian ensemble, exact")
    found = results.rows.where(part="coin")
    ax.plot(
        found.column("n"), found.column("measured"), linestyle="none", marker="o", markersize=4, color=plots.PALETTE[0], label="measured"
    )
    ax.set_yscale("log")
    plots.label(ax, x="eigenvalues n", y="P(all positive)", legend=True)
    return figure


def _ends(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6.2, height=3.4)
    ax = axes[0, 0]
    for at, ridge in enumerate((1e-4, 0.0)):
        rows = results.rows.where(part="network", data="random", ridge=ridge)
        passed, stuck, flat = (np.array(rows.column(k)) for k in ("passed", "stuck", "flat"))
        parts = [passed * (1 - flat), passed * flat, stuck, 1 - passed - stuck]
        bottom = 0.0
        texts = ("critical", "critical, flat directions", "|g| > 0, g in null(H)", "not at rest yet")
        for part, text, color in zip(parts, texts, plots.PALETTE, strict=False):
            height = float(part.mean())
            ax.bar(at, height, bottom=bottom, width=0.6, color=color, label=text if at == 0 else None)
            bottom += height
    ax.set_xticks([0, 1], ["ridge 1e-4", "no ridge"])
    ax.set_xlim(-0.5, 3.0)
    plots.label(ax, y="share of descents", legend=True, loc="center right", title="tanh network 3-3-1")
    return figure
