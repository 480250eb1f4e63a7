"""One still picture of a diagnosis for a README or a paper: the loss with what it would have been, and what each change was worth."""

import io
import math
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from gradoscope.diagnosis import Counterfactual, Diagnosis
from gradoscope.errors import Usage
from gradoscope.measurement import plain
from gradoscope.report.words import best_counterfactuals, clip, confirming, phrase
from gradoscope.report.words import percent as as_percent
from gradoscope.report.write import write_bytes

__all__ = ["save_figure"]

_INK, _MUTED, _GRID = "#343a46", "#6d7583", "#e3e6ea"
_PALETTE = ("#0f7bbf", "#d55e00", "#009e73", "#c071a0", "#dd9500")  # Okabe and Ito
_FORMATS = (".svg", ".png", ".pdf")
_STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "text.parse_math": False,  # a "$" in a user's name is a dollar sign
    "svg.hashsalt": "gradoscope",  # the same diagnosis gives the same file
}


def save_figure(diagnosis: Diagnosis, path: str | Path, *, width: float = 11.0, height: float = 4.4) -> None:
    """Draw loss and gains side by side and write them whole or not at all.

    Args:
        diagnosis: what to draw.
        path: a file that ends in .svg, .png or .pdf.
        width: inches.
        height: inches.

    Raises:
        Usage: where the ending is another one.
        CannotWrite: where the path cannot be written.
    """
    ending = Path(path).suffix.lower()
    if ending not in _FORMATS:
        raise Usage(f"a figure is written as {', '.join(_FORMATS)}; {str(path)!r} ends in {ending or 'nothing'}.")
    out = io.BytesIO()
    with matplotlib.rc_context(_STYLE):  # a context and no pyplot: the user's own figures and settings stay as they are
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08, wspace=0.06))
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
        _title(figure, diagnosis)
        tried = [c for c in best_counterfactuals(diagnosis, 99) if not c.failed and math.isfinite(c.gain)]
        _loss(left, diagnosis, [c for c in tried if c.curve][:4])
        _gains(right, tried[:7])
        options: dict[str, Any] = {"metadata": {"Date": None}} if ending == ".svg" else {"dpi": 160} if ending == ".png" else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks is drawn as boxes
            figure.savefig(out, format=ending[1:], facecolor="white", **options)
    write_bytes(path, out.getvalue())


def _title(figure: Figure, diagnosis: Diagnosis) -> None:
    by = f" by {' and '.join(phrase(f.obstacle) for f in diagnosis.present)}" if diagnosis.present else ""
    figure.suptitle(f"{clip(diagnosis.name, 40)}: {diagnosis.verdict}{by}", x=0.012, ha="left", fontsize=14, fontweight="bold")


def _loss(axes: Any, diagnosis: Diagnosis, tried: list[Counterfactual]) -> None:
    data = plain(diagnosis.series.get("loss")) or {}
    named = {c.remedy for f in diagnosis.present if (c := confirming(diagnosis, f)) is not None}
    for index, c in enumerate(tried):
        label = clip(c.remedy, 26) + ("" if c.on == "training" else f" ({c.on})")
        axes.plot(*_points(c.curve), color=_PALETTE[index % len(_PALETTE)], lw=2.6 if c.remedy in named else 1.6, label=label)
    if not data.get("train") and tried:
        axes.plot(*_points(tried[0].baseline_curve), color=_INK, lw=2.2, label="unchanged")
    for name, dash in (("train", "-"), ("validation", "--")):
        values = [math.nan if v is None else v for v in data.get(name) or ()]
        if any(math.isfinite(v) for v in values):
            axes.plot(
                data["steps"][: len(values)], values, dash, color=_INK, lw=2.2, label={"train": "training, as it ran"}.get(name, name)
            )
    axes.set_xlabel("optimizer step")
    axes.set_title("Loss, and what it would have been", loc="left", fontsize=11, color=_MUTED)
    low, high = _robust(axes)
    if low > 0 and high / low > 1e3:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")  # no formulas: they are not parsed, as a "$" in a name is a dollar sign
    elif high > low:
        axes.set_ylim(min(0.0, low), high + 0.06 * (high - min(0.0, low)))
    if axes.lines:
        axes.legend(frameon=False, fontsize=9.5)
    else:
        axes.text(0.5, 0.5, "no loss was recorded", ha="center", va="center", transform=axes.transAxes, color=_MUTED)
    _bare(axes)


def _gains(axes: Any, tried: list[Counterfactual]) -> None:
    axes.set_title("Share of the remaining excess loss removed", loc="left", fontsize=11, color=_MUTED)
    if not tried:
        axes.text(0.5, 0.5, "no counterfactual was run", ha="center", va="center", transform=axes.transAxes, color=_MUTED)
        axes.set_axis_off()
        return
    rows = sorted(tried, key=lambda c: c.gain)
    for y, c in enumerate(rows):
        low, high = (b if math.isfinite(b) else c.gain for b in c.interval)
        colour = "#009e73" if low > 0 else "#d55e00" if high < 0 else "#a3aab5"
        axes.barh(y, c.gain, height=0.36, color=colour)
        axes.plot([low, high], [y, y], color=_INK, lw=1.4, marker="|", ms=6)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.text(0.0, y + 0.27, clip(c.remedy, 30), fontsize=9.5, transform=axes.get_yaxis_transform(), va="bottom", bbox=box)
        axes.text(
            1.0, y + 0.27, as_percent(c.gain), fontsize=9.5, transform=axes.get_yaxis_transform(), va="bottom", ha="right", color=_MUTED
        )
    axes.axvline(0.0, color=_INK, lw=1.2, zorder=0)
    axes.set_xlim(max(min(-0.06, *(c.gain * 1.1 for c in rows)), -1.0), max(1.0, *(min(c.gain * 1.05, 1.5) for c in rows)))
    axes.set_ylim(-0.5, len(rows) - 0.2)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda x, _: as_percent(x))
    axes.set_xlabel("0%: unchanged. 100%: all that was left.\nLines: 95% intervals.")
    _bare(axes)


def _points(curve: tuple[tuple[int, float], ...]) -> tuple[list[int], list[float]]:
    return [s for s, _ in curve], [v if math.isfinite(v) else math.nan for _, v in curve]


def _robust(axes: Any) -> tuple[float, float]:
    """The range of the curves, cut at three times the highest start, so that one that blew up does not flatten the rest."""
    values = [[float(v) for v in line.get_ydata() if math.isfinite(v)] for line in axes.lines]
    known = [v for v in values if v]
    if not known:
        return 0.0, 0.0
    return min(map(min, known)), min(max(map(max, known)), 3.0 * max(abs(v[0]) for v in known) or math.inf)


def _bare(axes: Any) -> None:
    axes.grid(axis="both", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
