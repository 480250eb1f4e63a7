"""What the parity study draws."""

from typing import TYPE_CHECKING, Any

import numpy as np

from gradoscope.report import plots
from gradoscope.study import Figure, Results, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]


def figures(scale: Scale) -> list[Figure]:
    """The figures of both scales; a panel is drawn for each setting that was run."""
    return [
        Figure(
            "accuracy",
            "Figure 1 of the paper: accuracy against step, one thin line per seed and their median. Small d is learnt, d = 30 never"
            " leaves one half. In between, runs split into those that learn and those that do not, and the median is no typical run.",
            _accuracy,
        ),
        Figure(
            "step-size",
            "Final accuracy against step size, a dot per subset. The paper's 0.01 is too small: what looks like a limit of d is in"
            " part one of the step size. At d = 30 no step size helps.",
            _rate,
        ),
        Figure(
            "subset-size",
            "Of 30 bits, the number of bits in the subset decides: few are found, eight are not. There are only about 30^k / k! subsets"
            " of k bits, fewer targets for the gradient to tell apart.",
            _sparse,
        ),
        Figure(
            "plateau",
            "The end of the runs at d = 30. Left: extreme curvatures found on some examples, and the curvature along the most negative"
            " of them on others: much of it was the examples' noise. Right: the loss at the end, how far it rises on a path to a network"
            " that computes the parity, the end of that path, and how far below 1 a step along the negative curvature leads. Neither a"
            " minimum nor a saddle holds these runs.",
            _plateau,
        ),
        Figure(
            "without-gradients",
            "Left: evaluations until the hidden mask of 10 bits is found, a dot per seed, with the median; at 20,000 the search gave up."
            " Right: the lowest loss so far on the cosine in the plane, where Bayesian optimisation sees what lies near, and gradient"
            " descent from a random point sees a plateau.",
            _search,
        ),
        Figure(
            "oracle",
            "Left: how far the answers to the first gradient's queries are from their mean over all targets. It falls like 2^(-d/2),"
            " and below its tolerance the oracle need not tell. Right: the accuracy of gradient descent from its answers.",
            _oracle,
        ),
        Figure(
            "lstm",
            "The full parity of d bits read by an LSTM: learnt from words of all lengths up to d, at chance from words of d bits alone.",
            _lstm,
        ),
    ]


def _grid(count: int, **options: Any) -> tuple["Drawing", list[Any]]:
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = plots.new(rows, columns, width=3.2 * columns, height=2.7 * rows, **options)
    cells = list(axes.flat)
    for ax in cells[count:]:
        ax.set_visible(False)
    return figure, cells[:count]


def _accuracy(results: Results) -> "Drawing":
    groups = results.curves.where(part="curve").groups("d")
    figure, cells = _grid(len(groups), sharey=True)
    for ax, ((d,), rows), color in zip(cells, groups, plots.PALETTE, strict=False):
        x, ys = rows.spread("step", "accuracy")
        plots.band(ax, x, ys, each=True, color=color)
        plots.reference(ax, 0.5, "chance")
        plots.label(ax, x="step", y="accuracy", title=f"d = {d}, {len(ys)} seeds")
        ax.set_ylim(0.4, 1.03)
    return figure


def _rate(results: Results) -> "Drawing":
    groups = [(d, rows.where(lr=sorted(rows.values("lr")))) for (d,), rows in results.rows.where(part="rate").groups("d")]
    figure, cells = _grid(len(groups), sharey=True)
    for ax, (d, rows), color in zip(cells, groups, plots.PALETTE, strict=False):
        rates = sorted(rows.values("lr"))
        plots.points(ax, rates, np.array([rows.where(lr=lr).column("accuracy") for lr in rates]).T, color=color)
        ax.set_xscale("log")
        plots.reference(ax, 0.5, "chance")
        plots.label(ax, x="step size", y="final accuracy", title=f"d = {d}")
    return figure


def _sparse(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=4.6, height=3.2)
    for ((lr,), rows), color, marker in zip(results.rows.where(part="sparse").groups("lr"), plots.PALETTE, plots.MARKERS, strict=False):
        sizes = sorted(rows.values("size"))
        ys = np.array([rows.where(size=k).column("accuracy") for k in sizes]).T
        plots.points(axes[0, 0], sizes, ys, color=color, marker=marker, label=f"step size {lr:g}")
    plots.reference(axes[0, 0], 0.5, "chance")
    plots.label(axes[0, 0], x="bits in the subset, of 30", y="final accuracy", title="Sparse parities", legend=True)
    return figure


def _plateau(results: Results) -> "Drawing":
    rows = [row for row in results.rows if "rise" in row and row["part"] in ("curve", "rate")]
    figure, axes = plots.new(1, 2, width=8.6, height=3.3)
    for ax, names, title in (
        (axes[0, 0], {"largest": "largest", "smallest": "smallest", "fresh_curvature": "smallest,\nfresh examples"}, "Curvature"),
        (
            axes[0, 1],
            {
                "loss": "loss at\nthe end",
                "rise": "rise on the\npath down",
                "bottom": "end of\nthe path",
                "below": "a step along\ncurvature,\nbelow 1",
            },
            "Loss",
        ),
    ):
        ys = np.array([[row[name] for name in names] for row in rows])
        plots.points(ax, np.arange(len(names)), ys, line=False, color=plots.PALETTE[0])
        ax.set_xticks(range(len(names)), names.values())
        ax.axhline(0, color=plots.MUTED, linewidth=0.8)
        plots.label(ax, y="eigenvalue" if title == "Curvature" else "hinge loss", title=title)
    return figure


def _search(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=9.6, height=3.4)
    left, right = axes[0]
    found = results.rows.where(part="search").groups("method")
    groups = [(str(method), rows.column("evaluations")) for (method,), rows in found if "evaluations" in rows[0]]
    for k, (_, used) in enumerate(groups):
        plots.points(left, [k], np.array(used, dtype=float)[:, None], line=False, color=plots.PALETTE[k])
    left.set_xticks(range(len(groups)), [method.replace(", ", ",\n") for method, _ in groups])
    left.set_yscale("log")
    plots.reference(left, 1024, "2^10 masks")
    plots.label(left, y="evaluations", title="A mask of 10 bits")
    for ((method,), rows), color in zip(results.curves.where(part="cosine").groups("method"), plots.PALETTE, strict=False):
        x, ys = rows.spread("evaluations", "best")
        plots.band(right, x, np.maximum(ys, 1e-8), color=color, label=method)
    right.set_yscale("log")
    plots.label(right, x="evaluations", y="lowest loss so far", title="The cosine in the plane", legend=True)
    return figure


def _oracle(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 2, width=8.6, height=3.3)
    rows = results.rows.where(part="oracle")
    ds = sorted(rows.values("d"))
    first = [rows.where(d=d).groups("tolerance")[0][1] for d in ds]
    for name, label, color in (
        ("typical", "root mean square", plots.PALETTE[0]),
        ("threshold", "largest, hidden target", plots.PALETTE[1]),
    ):
        plots.points(axes[0, 0], ds, np.array([r.column(name) for r in first]).T, label=label, color=color)
    scale = float(np.median(first[0].column("typical"))) * 2 ** (ds[0] / 2)
    axes[0, 0].plot(ds, [scale * 2 ** (-d / 2) for d in ds], color=plots.MUTED, linestyle=":", label="2^(-d/2)")
    axes[0, 0].set_yscale("log", base=2)
    for ax in axes[0]:
        ax.set_xticks(ds)
    plots.label(axes[0, 0], x="d", y="distance from the mean answer", title="What an answer can tell", legend=True)
    for ((tolerance,), group), color, marker in zip(rows.groups("tolerance"), plots.PALETTE, plots.MARKERS, strict=False):
        own = sorted(group.values("d"))
        ys = np.array([group.where(d=d).column("accuracy") for d in own]).T
        plots.points(axes[0, 1], own, ys, color=color, marker=marker, label=f"tolerance {tolerance:g}")
    plots.reference(axes[0, 1], 0.5, "chance")
    plots.label(axes[0, 1], x="d", y="accuracy", title="Gradient descent on the oracle", legend=True)
    return figure


def _lstm(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=4.6, height=3.2)
    for ((mixed,), rows), color in zip(results.curves.where(part="reader").groups("mixed"), plots.PALETTE, strict=False):
        x, ys = rows.spread("step", "accuracy")
        plots.band(axes[0, 0], x, ys, color=color, label="words of all lengths" if mixed else f"words of {rows[0]['d']} bits")
    plots.reference(axes[0, 0], 0.5, "chance")
    plots.label(axes[0, 0], x="step", y="accuracy on d bits", title="The full parity", legend=True)
    return figure
