"""What the studies' figures share: panels on one style, spread over seeds, colours that everybody can tell apart."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = ["GRID", "INK", "MARKERS", "MUTED", "PALETTE", "band", "label", "new", "points", "reference", "render"]

INK, MUTED, GRID = "#1f242d", "#59616f", "#e3e6ea"
# Okabe and Ito: blue, vermilion, green, purple, orange, sky
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")  # a second cue beside colour
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa1ac",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "gradoscope",  # the same results give the same file
    "svg.fonttype": "path",
}


def new(rows: int = 1, columns: int = 1, *, width: float = 9.0, height: float = 3.4, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure with panels in the house style; the user's matplotlib settings and pyplot's state stay as they are.

    Args:
        rows: of panels.
        columns: of panels.
        width: inches.
        height: inches.
        options: of `Figure.subplots`, e.g. sharey=True, subplot_kw={"projection": "3d"}.

    Returns:
        The figure and a 2-D array of its axes.

    Example:
        >>> figure, axes = new(1, 2)
        >>> axes.shape
        (1, 2)
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.04))
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def label(ax: Axes, *, x: str = "", y: str = "", title: str = "", legend: bool = False, **legend_options: Any) -> None:
    """Name the axes (with units), the panel, and what its lines are."""
    if x:
        ax.set_xlabel(x, color=INK)
    if y:
        ax.set_ylabel(y, color=INK)
    if title:
        ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    if legend:
        ax.legend(frameon=False, fontsize=8.5, **legend_options)


def band(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    ys: np.ndarray,
    *,
    label: str = "",
    color: str = PALETTE[0],
    each: bool = False,
    **line: Any,
) -> None:
    """The median over seeds as a line and, shaded, all seeds (light) and the middle half of them (darker).

    Args:
        ax: where.
        x: shape (T,).
        ys: shape (seeds, T).
        label: for the legend.
        color: of the line.
        each: draw one thin line per seed instead of the shading, where seeds split into kinds.
        line: options of `Axes.plot`.
    """
    ys = np.atleast_2d(np.asarray(ys, dtype=float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN alone
        middle = np.nanmedian(ys, axis=0)
        ax.plot(x, middle, color=color, label=label or None, **{"linewidth": 1.7, **line})
        if len(ys) < 2:
            return
        if each:
            ax.plot(x, ys.T, color=color, linewidth=0.6, alpha=0.45)
            return
        ax.fill_between(x, np.nanmin(ys, axis=0), np.nanmax(ys, axis=0), color=color, alpha=0.13, linewidth=0)
        low, high = np.nanquantile(ys, (0.25, 0.75), axis=0)
        ax.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0)


def points(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    ys: np.ndarray,
    *,
    label: str = "",
    color: str = PALETTE[0],
    marker: str = "o",
    line: bool = True,
) -> None:
    """One small dot per seed at each x, and a marker with a line at their medians.

    Args:
        ax: where.
        x: shape (K,).
        ys: shape (seeds, K).
        label: for the legend.
        color: of both.
        marker: of the medians.
        line: whether the medians are joined.
    """
    ys = np.atleast_2d(np.asarray(ys, dtype=float))
    for row in ys if len(ys) > 1 else []:
        ax.plot(x, row, linestyle="none", marker=".", markersize=4, color=color, alpha=0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN alone
        middle = np.nanmedian(ys, axis=0)
    ax.plot(x, middle, linestyle="-" if line else "none", marker=marker, markersize=5.5, color=color, label=label or None)


def reference(ax: Axes, value: float, text: str, *, vertical: bool = False, color: str = MUTED) -> None:
    """A dashed line at a value that theory or chance gives, with its name beside it."""
    if vertical:
        ax.axvline(value, color=color, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(
            text,
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=color,
        )
    else:
        ax.axhline(value, color=color, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(
            text,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=color,
        )


def render(figure: Figure, kind: str, *, dpi: int = 160) -> bytes:
    """The figure as "svg" or "png" bytes, the same for the same results."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=dpi, metadata=metadata)
    return out.getvalue()
