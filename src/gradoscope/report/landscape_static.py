"""The still pictures of a landscape, for a README or a paper: the same data as the page's figures, drawn with matplotlib."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from gradoscope.report import plots
from gradoscope.report.landscape_figures import scaled, ticks
from gradoscope.report.words import percent

__all__ = ["pictures"]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = plots.PALETTE
LEVELS = 24
Data = Mapping[str, Any]


def pictures(data: Data) -> Iterator[tuple[str, Figure]]:
    """Every picture that the sections of a landscape allow, with its name.

    Args:
        data: the sections of `Landscape.to_dict`.

    Returns:
        (name, figure) pairs: "line", "solutions", "plane-pca" and so on, "view", "evidence", "spectrum".

    Example:
        >>> [name for name, _ in pictures({"line": {"alpha": [0, 1], "loss": [2.0, 1.0]}})]
        ['line']
    """
    for name, ends in (("line", ("start", "end")), ("solutions", ("this end", "other end"))):
        if data.get(name):
            yield name, _line(data[name], ends)
    run = data.get("run")
    for plane in data.get("planes") or ():
        yield f"plane-{plane['kind']}", _plane(plane)
    if run and data.get("view"):
        yield "view", _view(data["view"], run)
    if data.get("evidence"):
        yield "evidence", _evidence(data["evidence"])
    if data.get("questions"):
        yield "spectrum", _spectrum(data["questions"]["spectrum"])


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values], dtype=float)


def _line(data: Data, ends: tuple[str, str]) -> Figure:
    metric = data.get("metric") and np.isfinite(_numbers(data["metric"])).any()
    figure, axes = plots.new(1, 2 if metric else 1, width=9 if metric else 5)
    for key, name, colour, dash in (("loss", "training", BLUE, "-"), ("validation_loss", "validation", VERMILION, "--")):
        if not data.get(key):
            continue
        loss = _numbers(data[key])
        axes[0, 0].plot(data["alpha"], loss, dash, color=colour, label=name)
        errors = data.get(key.replace("loss", "standard_error"))
        if errors:
            error = 1.96 * _numbers(errors)
            axes[0, 0].fill_between(data["alpha"], loss - error, loss + error, color=colour, alpha=0.15, linewidth=0)
        if metric and data.get(key.replace("loss", "metric")):
            axes[0, 1].plot(data["alpha"], _numbers(data[key.replace("loss", "metric")]), dash, color=colour, label=name)
    where = f"position between {ends[0]} (0) and {ends[1]} (1)"
    plots.label(axes[0, 0], x=where, y="loss", title=f"Loss from {ends[0]} to {ends[1]}", legend=True)
    if metric:
        plots.label(axes[0, 1], x=where, y=data.get("metric_name") or "metric", title="What counts in the end")
    for ax in axes.flat:
        for x in (0, 1):
            plots.reference(ax, x, "", vertical=True)
    return figure


def _contours(ax: Axes, figure: Figure, x: Sequence[float], y: Sequence[float], loss: Sequence[Any]) -> None:
    z, back = scaled(loss)
    known = z[np.isfinite(z)]
    if not len(known):
        return
    low, high = float(known.min()), float(known.max())
    if high <= low:
        high = low + (abs(low) or 1.0) * 1e-9
    levels = np.linspace(low, high, LEVELS)
    z = np.ma.masked_invalid(z)
    filled = ax.contourf(x, y, z, levels=levels, cmap="viridis")
    filled.set_edgecolor("face")  # else hairlines show between the levels of an SVG
    ax.contour(x, y, z, levels=levels[::2], colors="white", linewidths=0.4, alpha=0.5)
    values, texts = ticks(low, high, back is not None)
    bar = figure.colorbar(filled, ax=ax, ticks=values, label="loss", shrink=0.9)
    bar.ax.set_yticklabels(texts)


def _path(ax: Axes, path: Sequence[Sequence[float]], colour: str, label: str) -> None:
    points = np.array(path)
    ax.plot(
        points[:, 0],
        points[:, 1],
        color=colour,
        label=label,
        linewidth=1.6,
        path_effects=[Stroke(linewidth=3.2, foreground="white"), Normal()],
    )


def _plane(data: Data) -> Figure:
    figure, axes = plots.new(1, 2, width=10, height=4.2, width_ratios=(1.2, 1))
    left, right = axes[0]
    _contours(left, figure, data["x"], data["y"], data["loss"])
    if data.get("other"):
        _path(left, data["other"], SKY, "the run from another start")
    _path(left, data["path"], VERMILION, "the run")
    for index, marker, size in ((0, "o", 7), (-1, "*", 12)):
        left.plot(*data["path"][index], marker, color="white", markeredgecolor=plots.INK, markersize=size, linestyle="none")
    left.set_xlim(data["x"][0], data["x"][-1])
    left.set_ylim(data["y"][0], data["y"][-1])
    share = sum(v or 0.0 for v in data["explained"])
    plots.label(left, x=data["labels"][0], y=data["labels"][1], title=f"The loss, and the run ({percent(share)} of its variance)")
    for k, walk in enumerate(data["controls"]):
        points = np.array(walk)
        right.plot(
            points[:, 0],
            points[:, 1],
            color=plots.MUTED,
            linewidth=1.6 if k == 0 else 0.9,
            alpha=1 if k == 0 else 0.6,
            label=None if k else "random walks of the same steps",
        )
    _path(right, data["path"], VERMILION, "the run")
    plots.label(
        right, x=data["labels"][0].partition(":")[0], y=data["labels"][1].partition(":")[0], title="Beside random walks", legend=True
    )
    return figure


def _view(data: Data, run: Data) -> Figure:
    figure, axes = plots.new(1, 2, width=10, height=4.2)
    left, right = axes[0]
    grid = left.get_subplotspec()
    left.remove()
    surface: Any = figure.add_subplot(grid, projection="3d")
    z, back = scaled(data["loss"])
    alpha, beta = np.meshgrid(data["alpha"], data["beta"])
    surface.plot_surface(
        alpha, beta, z, cmap="viridis", linewidth=0.15, edgecolor="white", alpha=0.85, rstride=1, cstride=1, antialiased=True
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        height = np.log10(_numbers(run["loss"])) if back is not None else _numbers(run["loss"])
    known = z[np.isfinite(z)]
    lift = 0.02 * (known.max() - known.min()) if len(known) else 0.0
    surface.plot(run["alpha"], run["beta"], height + lift, color=VERMILION, linewidth=2.2, zorder=10)
    if len(known):
        values, texts = ticks(float(known.min()), float(known.max()), back is not None)
        surface.set_zticks(values, texts)
    surface.set_xlabel("along the line", fontsize=9)
    surface.set_ylabel("beside it, along the current residual", fontsize=9)
    surface.set_zlabel("loss", fontsize=9)
    surface.view_init(28, 58)
    around = np.linspace(0, 1, 101)
    right.plot(around, np.sqrt(around * (1 - around)), ":", color=plots.INK, label="random walks in many dimensions")
    for k, walk in enumerate(run["walks"]):
        right.plot(
            walk["alpha"], walk["beta"], color=plots.MUTED, linewidth=0.9, alpha=0.7, label=None if k else "random walks of the same steps"
        )
    right.plot(run["alpha"], run["beta"], ".-", color=VERMILION, markersize=4, label="the run")
    plots.label(right, x="along the line from start (0) to end (1)", y="beside it, in its length", title="Beside random walks", legend=True)
    return figure


def _evidence(data: Data) -> Figure:
    figure, axes = plots.new(1, 3, width=12, height=3.6)
    norms, taylor, terms = axes[0]
    seen = data["norms"]
    for key, name, colour, dash in (
        ("running", "running norm", ORANGE, "-"),
        ("snapshot", "snapshot norm", BLUE, "-"),
        ("loss", "loss", plots.INK, ":"),
    ):
        norms.plot(seen["steps"], _numbers(seen[key]), dash, color=colour, label=name)
    norms.set_yscale("log")
    plots.label(norms, x="optimizer step", y="norm; loss", title="Near a critical point?", legend=True)
    for order, name, colour, marker in (("first_order", "first order", ORANGE, "o"), ("second_order", "second order", BLUE, ".")):
        pairs = [(p, a) for w in data["windows"] for p, a in zip(w[order], w["fixed"], strict=True) if p is not None and a is not None]
        if pairs:
            taylor.plot(
                *zip(*pairs, strict=True),
                marker,
                color=colour,
                label=name,
                markerfacecolor="none" if marker == "o" else colour,
                markersize=5 if marker == "o" else 8,
            )
    if taylor.lines:
        low, high = taylor.get_ylim()
        taylor.plot([low, high], [low, high], ":", color=plots.MUTED, linewidth=1)
    plots.label(taylor, x="predicted change of the loss", y="actual change", title="Steps as predicted?", legend=bool(taylor.lines))
    rows = [t for t in data["terms"] if t["change"]]
    for offset, key, name, colour in ((-0.18, "C", "curvature C / D", BLUE), (0.18, "M", "noise M / D", ORANGE)):
        descent = np.array([abs(t["change"]["D"]["value"] or 1.0) or 1.0 for t in rows])
        if rows:
            value, error = (_numbers([t["change"][key][k] for t in rows]) / descent for k in ("value", "se"))
            terms.bar(np.arange(len(rows)) + offset, value, 0.34, yerr=1.96 * error, color=colour, ecolor=plots.INK, capsize=2, label=name)
    terms.set_xticks(range(len(rows)), [str(t["step"]) for t in rows])
    plots.reference(terms, 1.0, "")
    plots.label(terms, x="optimizer step", y="share of the descent; above 1: uphill", title="By curvature, or by noise?", legend=bool(rows))
    return figure


def _spectrum(data: Data) -> Figure:
    figure, axes = plots.new(1, 1, width=6)
    ax = axes[0, 0]
    density = _numbers(data["density"])
    floor = 1e-6 * np.nanmax(density)
    ax.semilogy(data["grid"], np.maximum(density, floor), color=BLUE, linewidth=1.2)
    ax.fill_between(data["grid"], floor, np.maximum(density, floor), color=SKY, alpha=0.25)
    values, errors = _numbers(data["eigenvalues"]), _numbers(data["residuals"])
    ax.errorbar(
        values,
        np.full(len(values), 3 * floor),
        xerr=errors,
        fmt="|",
        color=VERMILION,
        markersize=9,
        markeredgewidth=1.6,
        label="extreme eigenvalues",
    )
    ax.set_ylim(bottom=floor)
    plots.label(ax, x="eigenvalue of the Hessian", y="density", title=f"Curvature at step {data['step']}", legend=True)
    return figure
