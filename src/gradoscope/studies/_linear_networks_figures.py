"""Figures of the study of linear networks."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from gradoscope.report import plots
from gradoscope.study import Figure, Results
from gradoscope.theory.linear_networks import factor_gradient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

BLUE, RED, GREEN, PURPLE, ORANGE, SKY = plots.PALETTE
DASH = (0, (4, 3))
TANH = [0.75, 0.5, 0.3]
SIGMAS = [3.0, 2.0, 1.2, 0.6]


def figures() -> list[Figure]:
    """In the order of the page."""
    return [
        Figure(
            "taylor",
            "A product of five equal weights. Left: its derivative by one of them, which vanishes and explodes as the fourth power. "
            "Right: what Taylor's orders predict of a joint gradient step from 1.5 (step size 0.05), and what it does: each order but the "
            "last is wrong.",
            _taylor,
        ),
        Figure(
            "phase",
            "The landscape of (1 - ab)^2. Arrows: the flow. The minima are the two branches of ab = 1 (green); the axis a = -b (dashed) "
            "leads into the saddle at 0, and is the only way there. Paths of gradient descent bend round the saddle along a^2 - b^2 = "
            "const, straight lines from start to solution (dotted) do not.",
            _phase,
        ),
        Figure(
            "modes",
            "Strength of three modes over their singular values, targets of 0.75, 0.5 and 0.3, five to ten small random starts (shade). "
            "The lecture's red, blue and green: closed form (vermilion, dashed), linear network (blue), tanh network (green, "
            "dash-dotted). Strong modes are learnt first; the tanh network is a little later.",
            _modes,
        ),
        Figure(
            "competition",
            "Modes from random starts of three sizes: the strength over sigma of each mode of one start (solid) beside the closed form "
            "through its half-rise (dashed), and below the largest entry off the diagonal, relative to the largest singular value. The "
            "larger the start, the more modes still compete when they are learnt.",
            _competition,
        ),
        Figure(
            "critical",
            "All critical points of |QW - diag(3, 2, 1)|^2 with a hidden layer of two. Left: loss against the number of negative "
            "eigenvalues; labels are the modes that were learnt. The higher the loss, the more ways down. Right: their spectra.",
            _critical,
        ),
        Figure(
            "minima",
            "Loss along the way between two random minima, rank 3: on the straight line (orange) and on the explicit path (blue). Wider "
            "than the rank (left) and within a component (middle) the path stays at zero; between the two components of width = rank "
            "(right) no path stays below 1, the smallest singular value squared.",
            _minima,
        ),
        Figure(
            "depth",
            "Left: stable steps until nine tenths are learnt, against the number of layers, from a strength of 0.1 (bounded delay), from "
            "1e-3 (bounded, but a hundred times) and from weights of 0.5 (no bound). Right: the same as times of gradient flow.",
            _depth,
        ),
    ]


def _taylor(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=8.8, height=3.3)
    left, right = axes[0]
    rows = [row for row in results.rows.where(part="taylor") if "slope" in row]
    w = np.linspace(0.08, 2.1, 100)
    left.plot(w, w**4, color=plots.MUTED, linewidth=1.0, label="w^4")
    left.plot([r["w"] for r in rows], [r["slope"] for r in rows], color=BLUE, marker="o", linestyle="none", label="measured")
    left.set_yscale("log")
    plots.label(left, x="all weights", y="dy / dw1", title="vanishes, explodes", legend=True)
    told = [row for row in results.rows.where(part="taylor") if "told" in row]
    right.plot([r["order"] for r in told], [r["told"] for r in told], color=RED, marker="s")
    plots.reference(right, told[0]["truth"], f"truth, {told[0]['truth']:.4f}")
    plots.label(right, x="order of the prediction", y="y after the step", title="Taylor's orders")
    return figure


def _phase(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=5.8, height=5.4)
    ax = axes[0, 0]
    grid = torch.linspace(-2, 2, 23, dtype=torch.float64)
    b, a = torch.meshgrid(grid, grid, indexing="ij")
    slope = -factor_gradient(torch.stack([a, b], -1), 1.0)
    size = slope.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    arrow = (slope / size * size.clamp(max=6) ** 0.3).numpy()  # lengths compressed: directions are what is to be seen
    fine = np.linspace(-2, 2, 201)
    levels = np.array([0, 0.05, 0.25, 1, 2.25, 4, 9, 16, 25.0])
    ax.contourf(fine, fine, (1 - fine[:, None] * fine) ** 2, levels=levels, cmap="Greys", alpha=0.35, norm=_power(levels))
    ax.quiver(a.numpy(), b.numpy(), arrow[..., 0], arrow[..., 1], color=plots.MUTED, alpha=0.7, width=0.0028, scale=42)
    for sign in (1, -1):
        x = sign * np.linspace(0.5, 2, 80)
        ax.plot(x, 1 / x, color=GREEN, linewidth=2.2, label="minima, ab = 1" if sign > 0 else None)
    ax.plot([-2, 2], [2, -2], color=plots.INK, linestyle=DASH, linewidth=1.2, label="a = -b")
    for i, seed in enumerate(results.rows.where(part="factor").column("seed")[:4]):
        path = results.array(f"path_{seed}", part="factor").numpy()
        ax.plot(path[:, 0], path[:, 1], color=BLUE, label="gradient descent" if i == 0 else None)
        ax.plot(path[[0, -1], 0], path[[0, -1], 1], color=RED, linestyle=":", label="start to solution" if i == 0 else None)
        ax.plot(*path[0], color=BLUE, marker="o", markersize=4)
    ax.plot(0, 0, color=plots.INK, marker="X", markersize=8, linestyle="none", label="saddle")
    ax.set_xlim(-2, 2)
    ax.set_ylim(-2, 2)
    ax.set_aspect("equal")
    plots.label(ax, x="a", y="b")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _power(levels: np.ndarray) -> object:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.4, levels[0], levels[-1])


def _small(results: Results, sigmas: list[float], variance: float) -> list[dict[str, float]]:
    return [row for row in results.curves.where(part="small", variance=variance) if list(row["sigmas"]) == sigmas]


def _curve(rows: list[dict[str, float]], mode: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times (T,) and one line per seed (S, T)."""
    mine = [row for row in rows if row["mode"] == mode]
    seeds = list(dict.fromkeys(row["seed"] for row in mine))
    times = np.array([row["time"] for row in mine if row["seed"] == seeds[0]])
    return times, np.array([[row[name] for row in mine if row["seed"] == seed] for seed in seeds])


def _modes(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=9.6, height=3.2, sharey=True)
    rows = _small(results, TANH, 1e-4)
    for mode, ax in enumerate(axes[0]):
        for name, text, color, style in (
            ("linear", "linear", BLUE, "-"),
            ("tanh", "tanh", GREEN, "-."),
            ("exact", "closed form", RED, "--"),
        ):
            times, ys = _curve(rows, mode, name)
            if name == "exact":
                ax.plot(times, np.median(ys, axis=0), color=color, linestyle=style, label=text)
            else:
                plots.band(ax, times, ys, label=text, color=color, linestyle=style)
        plots.label(ax, x="time", y="" if mode else "strength / sigma", title=f"sigma = {TANH[mode]:g}", legend=mode == 0)
    return figure


def _competition(results: Results) -> "Drawing":
    figure, axes = plots.new(2, 3, width=9.6, height=5.0, sharey="row", sharex="col")
    for column, variance in enumerate((1e-6, 1e-4, 1e-2)):
        rows = _small(results, SIGMAS, variance)
        top, bottom = axes[0, column], axes[1, column]
        for mode, color in enumerate((BLUE, RED, GREEN, PURPLE)):
            times, ys = _curve(rows, mode, "linear")
            top.plot(times, ys[0], color=color, label=f"sigma = {SIGMAS[mode]:g}")
            top.plot(times, _curve(rows, mode, "exact")[1][0], color=color, linestyle=DASH, linewidth=1.0)
        times, off = _curve(rows, 0, "off")
        plots.band(bottom, times, off / SIGMAS[0], color=ORANGE)
        plots.label(top, y="" if column else "strength / sigma", title=f"variance {variance:g}", legend=column == 0)
        plots.label(bottom, x="time", y="" if column else "largest off-diagonal / sigma_1")
    return figure


def _critical(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.0, height=3.6)
    left, right = axes[0]
    rows = list(results.rows.where(part="critical"))
    for k, row in enumerate(rows):
        color = GREEN if row["negative"] == 0 else RED
        label = "{" + ",".join(row["modes"]) + "}"
        left.plot(row["negative"], row["loss"], color=color, marker="o" if row["negative"] == 0 else "X", markersize=7, linestyle="none")
        left.annotate(label, (row["negative"], row["loss"]), xytext=(6, 3), textcoords="offset points", fontsize=8.5)
        values = results.curves.where(part="critical", modes=row["modes"]).column("eigenvalue")
        right.plot(values, np.full(len(values), k), color=color, marker="|", markersize=11, linestyle="none")
    right.set_yticks(range(len(rows)), ["{" + ",".join(row["modes"]) + "}" for row in rows])
    plots.reference(right, 0.0, "", vertical=True)
    plots.label(left, x="negative eigenvalues", y="loss", title="index and loss")
    plots.label(right, x="eigenvalue of the Hessian", y="modes learnt", title="spectra")
    return figure


def _minima(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=9.6, height=3.2)
    panels = (
        ("width 4 > rank 3", {"width": 4}),
        ("width = rank, one component", {"width": 3, "same": True}),
        ("width = rank, two components", {"width": 3, "same": False}),
    )
    for ax, (title, values) in zip(axes[0], panels, strict=True):
        table = results.curves.where(part="minima", **values)
        for index, (_, rows) in enumerate(table.groups("seed")):
            for name, text, color in (("straight", "straight line", ORANGE), ("path", "explicit path", BLUE)):
                ax.plot(
                    rows.column("share"), np.maximum(rows.column(name), 1e-31), color=color, linewidth=1.1, label=None if index else text
                )
        _loglike(ax)
        plots.label(
            ax, x="share of the way", y="loss" if ax is axes[0, 0] else "", title=title, legend=ax is axes[0, 0], loc="center right"
        )
    plots.reference(axes[0, 2], 1.0, "sigma_3^2 = 1")
    return figure


def _loglike(ax: "Axes") -> None:
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_ylim(-0.02, 300)
    ax.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])


def _depth(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.0, height=3.6)
    looks = {"order one": ("from 0.1", GREEN, "o"), "small": ("from 0.001", BLUE, "s"), "fixed weight": ("weights of 0.5", RED, "^")}
    for ax, name, text in zip(axes[0], ("steps", "time"), ("stable steps to 0.9", "time to 0.9"), strict=True):
        for start, (label, color, marker) in looks.items():
            rows = [row for row in results.rows.where(part="depth", start=start) if row["steps"] < 1e7]
            ax.plot([r["depth"] for r in rows], [r[name] for r in rows], color=color, marker=marker, markersize=5, label=label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks([2, 3, 5, 10, 20, 50, 100], ["2", "3", "5", "10", "20", "50", "100"])
        ax.minorticks_off()
        plots.label(ax, x="layers", y=text, legend=name == "steps")
    table = [row for row in results.rows.where(part="depth", start="small") if row["depth"] <= 10]
    cells = [[f"{row['depth']}", f"{row['time']:.3f}", f"{row['steps']:.1f}"] for row in table]
    inset = axes[0, 1].table(cells, colLabels=["layers", "time", "steps"], bbox=[0.66, 0.6, 0.34, 0.4], cellLoc="right")
    inset.auto_set_font_size(False)
    inset.set_fontsize(7.5)
    for cell in inset.get_celld().values():
        cell.set_edgecolor(plots.GRID)
        cell.set_facecolor("white")
    return figure
