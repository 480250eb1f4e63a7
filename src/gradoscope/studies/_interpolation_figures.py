"""Figures of the study of interpolation."""

from typing import TYPE_CHECKING, Any

import numpy as np

from gradoscope.report import plots
from gradoscope.report.landscape_figures import scaled, ticks
from gradoscope.studies._interpolation_claims import FACTORED, GRID, NETWORKS, beside, fall_in_time, on_line
from gradoscope.study import Figure, Results, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["all_figures"]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = plots.PALETTE
TITLES = {"relu": "ReLU", "lstm": "LSTM", "mp-dbm": "MP-DBM", "convnet": "ConvNet", "adversarial": "adversarial maxout"}
VIEWS = ("adversarial", "mp-dbm", "lstm", "factored 5")
PLANES = ("relu", "adversarial", "lstm", "mp-dbm")


def all_figures() -> list[Figure]:
    """The figures; both scales have the same."""
    return [
        Figure(
            "lines",
            "The loss on the straight line from start (0) to solution (1), and beyond both ends; line: median over seeds, shade: all of "
            "them. The data are named in each panel. It falls all the way in seven of eight; the sigmoid network's rises a little at "
            "first.",
            _lines,
        ),
        Figure(
            "between",
            "The loss on the straight line between two solutions of the same data from different starts: there always is a barrier. The "
            "two solutions lie further apart than either from its start.",
            _between,
        ),
        Figure(
            "paths",
            "The paths beside the line from start to solution: how far along (horizontal) and how far beside it (vertical), in lengths of "
            "the line; one curve per seed. Dotted: the semicircle on which random walks lie, whatever the lengths of their steps; grey: "
            "one such walk; purple: one whose steps resemble the ones before as much as the path's do. A bow alone shows nothing.",
            _paths,
        ),
        Figure(
            "views",
            "Projection, residual and loss, seed 0, with the path on the surface. The residual's direction is that of the nearest recorded "
            "point and changes along the path: the surface is not one plane, and the fins near the end, where the direction turns, are "
            "made by that. Where the path runs no ridge parts it from the line in the middle.",
            _views,
        ),
        Figure(
            "planes",
            "The plane through a start and two solutions, with the paths of both runs projected on it; the other run begins beside the "
            "plane. Two valleys with a ridge between them, and a start from which both are in sight.",
            _planes,
        ),
        Figure(
            "components",
            "Left: the variance of paths that their first two principal components explain, beside random walks with the same steps; one "
            "dot per seed. Right: the ReLU network's path in the plane of these components, and walks in theirs, all scaled to the same "
            "size: random walks are parabolas, too.",
            _components,
        ),
        Figure(
            "factored",
            "Products of five and ten weights beside the LSTM and, for comparison, a ReLU network; losses scaled to fall from 1 to 0. "
            "Left: on the line. Middle: over the run. Right: the distance from the line. In rank order the falling curves are all the "
            "same; in shape the factored models wait and fall late, while networks fall early.",
            _factored,
        ),
    ]


def _grid_of_eight(results: Results, height: float) -> "tuple[Drawing, list[tuple[Any, str, Table]]]":
    figure, axes = plots.new(2, 4, width=12.0, height=height)
    rows = [(ax, model, results.rows.where(model=model)) for ax, model in zip(axes.flat, NETWORKS, strict=True)]
    return figure, rows


def _title(model: str, rows: Table) -> str:
    data = rows.values("data") if len(rows) else []
    return f"{TITLES.get(model, model)}{f' ({data[0]})' if data else ''}"


def _lines(results: Results) -> "Drawing":
    figure, panels = _grid_of_eight(results, 5.4)
    for k, (ax, model, rows) in enumerate(panels):
        table = results.curves.where(model=model, kind="line")
        if len(table):
            x, ys = table.spread("alpha", "loss")
            plots.band(ax, x, ys, color=VERMILION if model == "sigmoid" else BLUE)
            top = float(np.nanmax(ys[:, (x >= 0) & (x <= 1)]))
            ax.set_ylim(min(0.0, float(np.nanmin(ys))), 1.25 * top)
        for end in (0, 1):
            plots.reference(ax, end, "", vertical=True)
        plots.label(ax, x="position on the line" if k >= 4 else "", y="loss (nats)" if k % 4 == 0 else "", title=_title(model, rows))
    return figure


def _between(results: Results) -> "Drawing":
    figure, panels = _grid_of_eight(results, 5.0)
    for k, (ax, model, rows) in enumerate(panels):
        table = results.curves.where(model=model, kind="between")
        if len(table):
            plots.band(ax, *table.spread("alpha", "loss"), color=GREEN)
        x = "between two solutions" if k >= 4 else ""
        plots.label(ax, x=x, y="loss (nats)" if k % 4 == 0 else "", title=_title(model, rows))
    return figure


def _paths(results: Results) -> "Drawing":
    figure, panels = _grid_of_eight(results, 5.2)
    around = np.linspace(0, 1, 201)
    for k, (ax, model, rows) in enumerate(panels):
        ax.plot(around, np.sqrt(around * (1 - around)), ":", color=plots.INK, linewidth=1.2, label="semicircle")
        for kind, colour, text in (("walk", plots.MUTED, "random walk"), ("matched", PURPLE, "walk with the path's momentum")):
            drawn = results.curves.where(model=model, kind=kind).groups("seed")[:1]
            for _, walk in drawn:
                ax.plot(walk.column("alpha"), walk.column("beta"), color=colour, linewidth=1.1, label=text)
        for n, (_, path) in enumerate(results.curves.where(model=model, kind="path").groups("seed")):
            text = "" if n else "trainings"
            ax.plot(path.column("alpha"), path.column("beta"), color=VERMILION, linewidth=0.9, alpha=0.85, label=text)
        ax.set_ylim(0, 0.58)
        plots.label(ax, x="along the line" if k >= 4 else "", y="beside it" if k % 4 == 0 else "", title=_title(model, rows))
    figure.legend(*panels[0][0].get_legend_handles_labels(), frameon=False, fontsize=8.5, loc="outside lower center", ncols=4)
    return figure


def _views(results: Results) -> "Drawing":
    figure, axes = plots.new(2, 2, width=10.0, height=8.4, subplot_kw={"projection": "3d"})
    for ax, model in zip(axes.flat, VIEWS, strict=True):
        rows = results.rows.where(model=model)
        surfaces = results.arrays("view_loss", model=model)
        paths = results.curves.where(model=model, kind="path").groups("seed")
        if not surfaces or not paths:
            continue
        alpha, beta = (results.array(f"view_{key}", model=model)[0].numpy() for key in ("alpha", "beta"))
        z, back = scaled(surfaces[0][0].numpy())
        ax.plot_surface(*np.meshgrid(alpha, beta), z, cmap="viridis", linewidth=0.15, edgecolor="white", alpha=0.85, rstride=1, cstride=1)
        path = paths[0][1]
        loss = np.array(path.column("loss"))
        height = np.log10(np.maximum(loss, 10 ** float(np.nanmin(z)))) if back is not None else loss
        lift = 0.02 * float(np.ptp(z[np.isfinite(z)]))
        ax.plot(path.column("alpha"), path.column("beta"), height + lift, color=VERMILION, linewidth=2.0, zorder=10)
        values, texts = ticks(float(np.nanmin(z)), float(np.nanmax(z)), back is not None)
        ax.set_zticks(values, texts)
        ax.set_xlabel("along the line", fontsize=8.5)
        ax.set_ylabel("beside it, along the current residual", fontsize=8.5)
        ax.set_zlabel("loss", fontsize=8.5)
        ax.tick_params(labelsize=7.5)
        ax.set_box_aspect(None, zoom=0.88)
        ax.view_init(28, 58)
        ax.set_title(_title(model, rows).replace(" (none)", ""), loc="left", fontsize=10, fontweight="bold", color=plots.INK)
    return figure


def _planes(results: Results) -> "Drawing":
    figure, axes = plots.new(1, len(PLANES), width=13.0, height=3.5)
    for k, (ax, model) in enumerate(zip(axes[0], PLANES, strict=True)):
        rows = results.rows.where(model=model)
        if not results.arrays("three_loss", model=model):
            continue
        x, y, loss, path, other = (results.array(f"three_{key}", model=model).numpy() for key in ("x", "y", "loss", "path", "other"))
        z, back = scaled(loss)
        levels = np.linspace(float(np.nanmin(z)), float(np.nanmax(z)), 22)
        filled = ax.contourf(x, y, np.ma.masked_invalid(z), levels=levels, cmap="viridis")
        filled.set_edgecolor("face")  # else hairlines show between the levels of an SVG
        values, texts = ticks(levels[0], levels[-1], back is not None, most=5)
        figure.colorbar(filled, ax=ax, ticks=values, shrink=0.9, label="loss" if k == len(PLANES) - 1 else "").ax.set_yticklabels(texts)
        for run, colour, text in ((other, SKY, "another start"), (path, VERMILION, "the run")):
            ax.plot(run[:, 0], run[:, 1], color="white", linewidth=3.0)
            ax.plot(run[:, 0], run[:, 1], color=colour, linewidth=1.6, label=text)
            ax.plot(*run[-1], "*", color="white", markeredgecolor=plots.INK, markersize=11)
        ax.plot(*path[0], "o", color="white", markeredgecolor=plots.INK, markersize=6)
        ax.grid(visible=False)
        plots.label(ax, x="towards the solution", y="towards the other one" if k == 0 else "", title=_title(model, rows))
    return figure


def _components(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=11.0, height=3.8, width_ratios=(1.7, 1))
    left, right = axes[0]
    for k, model in enumerate(NETWORKS):
        rows = results.rows.where(model=model)
        for offset, name, colour in ((-0.14, "pca2", VERMILION), (0.14, "walk_pca2", plots.MUTED)):
            values = rows.column(name)
            text = {"pca2": "trainings", "walk_pca2": "random walks of the same steps"}[name] if k == 0 else ""
            left.plot(np.full(len(values), k + offset), values, "o", markersize=4, color=colour, alpha=0.7, label=text)
    left.set_xticks(range(len(NETWORKS)), [TITLES.get(m, m).replace("adversarial maxout", "adversarial") for m in NETWORKS], rotation=20)
    left.set_ylim(0.5, 1.02)
    plots.label(left, y="share of two components", title="Explained variance", legend=True, loc="lower left")
    if results.arrays("pca_path", model="relu"):
        path, walks = results.array("pca_path", model="relu").numpy(), results.array("pca_walks", model="relu").numpy()
        for n, walk in enumerate(walks):
            scores = walk / np.ptp(walk[:, 0])
            right.plot(scores[:, 0], scores[:, 1], color=plots.MUTED, linewidth=0.9, label="" if n else "random walks")
        scores = path / np.ptp(path[:, 0])
        right.plot(scores[:, 0], scores[:, 1], color=VERMILION, label="the run")
    plots.label(right, x="first component", y="second component", title="ReLU, beside walks", legend=True)
    return figure


def _factored(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 3, width=12.0, height=3.5)
    colours = {"lstm": BLUE, "relu": plots.MUTED, FACTORED[0]: VERMILION, FACTORED[1]: ORANGE}
    for model, colour in colours.items():
        text = TITLES.get(model, model)
        for ax, curves in zip(axes[0], (on_line, fall_in_time, beside), strict=True):
            found = curves(results, model)
            if not found:
                continue
            ys = np.array(found)
            if curves is not beside:
                ys = (ys - ys[:, -1:]) / (ys[:, :1] - ys[:, -1:])
            plots.band(ax, GRID, ys, color=colour, label=text)
    plots.label(axes[0, 0], x="position on the line", y="share of the fall that is left", title="The line", legend=True)
    plots.label(axes[0, 1], x="share of the steps", y="share of the fall that is left", title="The run")
    plots.label(axes[0, 2], x="position along the line", y="beside it, in lengths of the line", title="The detour")
    return figure
