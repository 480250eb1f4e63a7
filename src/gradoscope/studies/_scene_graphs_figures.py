"""The figures of the study of scene graphs."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from gradoscope.report import plots
from gradoscope.study import Figure, Results, Scale, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

ORDER = (
    "detector",
    "no context",
    "no context, faint",
    "mean, linear",
    "mean",
    "sum",
    "neighbour attention",
    "feature attention",
    "linguistic",
)
DRAWN = ("detector", "no context", "mean", "feature attention")
RIGHT, WRONG = plots.PALETTE[2], plots.PALETTE[1]


def figures(scale: Scale) -> list[Figure]:
    """What is drawn, the same at both scales."""
    return [
        Figure(
            "models",
            "Left: the share of boxes whose class is right on other images; each dot is a seed. Right: recall of triplets at 50, with "
            "classes predicted (SGCls) and given (PredCls). Context corrects classes, and triplets with them; where the classes are "
            "given there is little left for it to add. The title says which scenes these are.",
            _models,
        ),
        Figure(
            "recall",
            "Recall of true triplets among the K likeliest of an image, classes predicted; solid with one predicate per pair, dashed "
            "with any number. One predicate per pair ends below one even for perfect answers, as some pairs have several.",
            _recall,
        ),
        Figure(
            "scene",
            "A typical image of the test set (of those with up to seven boxes and five to ten relations the one whose share of right "
            "triplets is nearest to their mean), as the model with attention sees it: boxes with the right class are green, others "
            "vermilion with the true class in brackets. Right: its likeliest triplets, as many as there are true ones, coloured alike; "
            "the numbers are those of the boxes.",
            _scene,
        ),
        Figure(
            "steps",
            "The same step applied once, twice or three times, with shared weights: the share of boxes named right after each of them. "
            "At the same number of optimizer steps, repeating the step brings little or nothing: one can express all.",
            _steps,
        ),
        Figure(
            "bounds",
            "What bounds on the number of boxes of a class change, in share of boxes named right (left), and in images with too many boxes "
            "of the bounded class (right). Bounds on every class tell much; one on one class tells next to nothing, given or predicted, "
            "though it is kept exactly when it is given.",
            _bounds,
        ),
    ]


def _rows(results: Results, model: str) -> Table:
    rows = results.rows.where(model=model)
    return rows.where(recurrent=2) if model == "feature attention" else rows


def _there(results: Results) -> list[str]:
    return [m for m in ORDER if len(_rows(results, m))]


def _source(results: Results) -> str:
    row = results.rows[0]
    return f"{'VRD' if row['data'] == 'vrd' else 'synthetic scenes'}: {row['images']} images, {row['tested']} others"


def _dots(ax: "Axes", results: Results, models: list[str], name: str, color: str, label: str = "", shift: float = 0.0) -> None:
    """A horizontal bar for the median of each model and a dot for each seed."""
    for k, model in enumerate(models):
        values = _rows(results, model).column(name)
        ax.barh(
            k + shift,
            float(np.median(values)),
            height=0.34,
            color=color,
            alpha=0.55,
            label=label if k == 0 and label else None,
            linewidth=0,
        )
        ax.plot(values, [k + shift] * len(values), linestyle="none", marker=".", markersize=5, color=plots.INK, alpha=0.7)
    ax.set_yticks(range(len(models)), models)
    ax.set_ylim(len(models) - 0.4, -0.6)


def _models(results: Results) -> "Drawing":
    models = _there(results)
    figure, axes = plots.new(1, 2, width=10, height=0.9 + 0.42 * len(models))
    _dots(axes[0, 0], results, models, "accuracy", plots.PALETTE[0])
    plots.label(axes[0, 0], x="share of boxes named right", title=_source(results))
    _dots(axes[0, 1], results, models, "sgcls_50", plots.PALETTE[0], "SGCls", -0.19)
    _dots(axes[0, 1], results, models, "predcls_50", plots.PALETTE[4], "PredCls", 0.19)
    axes[0, 1].set_yticklabels([])
    axes[0, 1].set_xlim(0, 1)
    plots.label(axes[0, 1], x="R@50, one predicate per pair", legend=True, loc="lower right")
    return figure


def _recall(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6.5, height=4)
    ax = axes[0, 0]
    for model, color in zip(DRAWN, plots.PALETTE, strict=False):
        curves = results.curves.where(model=model, score=["sgcls", "sgcls_free"])
        curves = curves.where(recurrent=2) if model == "feature attention" else curves
        for score, style in (("sgcls", "-"), ("sgcls_free", "--")):
            chosen = curves.where(score=score)
            if len(chosen):
                ks, values = chosen.spread("k", "recall")
                plots.band(ax, ks, values, label=model if score == "sgcls" else "", color=color, linestyle=style)
    ax.set_xscale("log")
    ax.set_xticks([10, 20, 50, 100], ["10", "20", "50", "100"])
    ax.minorticks_off()
    plots.label(ax, x="K", y="recall of triplets (SGCls)", title=_source(results), legend=True, loc="lower right")
    return figure


def _scene(results: Results) -> "Drawing":
    where = {"model": "feature attention", "recurrent": 2}
    boxes, truth, labels, ends, words, right = (
        results.array(name, **where) for name in ("boxes", "truth", "labels", "ends", "words", "right")
    )
    objects, predicates = _names(results, where)
    figure, axes = plots.new(1, 2, width=10, height=4.4, gridspec_kw={"width_ratios": [1.25, 1]})
    ax, beside = axes[0]
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        good = bool(labels[k] == truth[k])
        color = RIGHT if good else WRONG
        ax.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, linewidth=1.6)
        said = objects[int(labels[k])] + ("" if good else f" ({objects[int(truth[k])]})")
        ax.annotate(
            f"{k + 1}: {said}",
            (x1, y1),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=color,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )
    _arrows(ax, boxes, ends, right)
    low, high = boxes[:, :2].amin(0).tolist(), boxes[:, 2:].amax(0).tolist()
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])
    ax.set_aspect("equal")
    ax.grid(False)
    plots.label(ax, x="pixels", title=_source(results).split(":")[0])
    beside.axis("off")
    for k in range(len(words)):
        s, p, o = words[k].tolist()
        a, b = (int(e) + 1 for e in ends[k])
        text = f"{'✓' if right[k] else '✗'}  {objects[s]} [{a}]  {predicates[p]}  {objects[o]} [{b}]"
        beside.text(0.0, 0.98 - k / max(12, len(words)), text, fontsize=8.5, va="top", color=RIGHT if right[k] else WRONG)
    plots.label(beside, title="likeliest triplets")
    return figure


def _arrows(ax: "Axes", boxes: torch.Tensor, ends: torch.Tensor, right: torch.Tensor) -> None:
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    for (s, o), good in zip(ends.tolist(), right.tolist(), strict=True):
        options = {"arrowstyle": "->", "color": RIGHT if good else WRONG, "alpha": 0.75, "shrinkA": 2, "shrinkB": 2}
        ax.annotate("", tuple(centre[o].tolist()), tuple(centre[s].tolist()), arrowprops={**options, "connectionstyle": "arc3,rad=0.15"})


def _names(results: Results, where: dict[str, object]) -> tuple[list[str], list[str]]:
    """The words of the example's scenes, which are kept as bytes beside the numbers."""
    found = []
    for name in ("objects", "predicates"):
        raw = bytes(results.array(name, **where).tolist())
        found.append(raw.decode().split("\n"))
    return found[0], found[1]


def _steps(results: Results) -> "Drawing":
    figure, axes = plots.new(1, 1, width=6, height=3.6)
    ax = axes[0, 0]
    for (t,), rows in sorted(results.rows.where(model="feature attention").groups("recurrent")):
        values = np.array([[r[f"accuracy_{k}"] for k in range(1, t + 1)] for r in rows])
        plots.points(ax, list(range(1, t + 1)), values, label=f"trained with {t}", color=plots.PALETTE[t - 1], marker=plots.MARKERS[t - 1])
    ax.set_xticks([1, 2, 3])
    plots.label(ax, x="steps taken", y="share of boxes named right", title=_source(results), legend=True)
    return figure


def _bounds(results: Results) -> "Drawing":
    models = [m for m in DRAWN if len(_rows(results, m))]
    kinds = ("given", "predicted", "every", "projected")
    figure, axes = plots.new(1, 2, width=10, height=3.6)
    for m, (model, color) in enumerate(zip(models, plots.PALETTE, strict=False)):
        rows = _rows(results, model)
        place = np.arange(len(kinds)) + 0.18 * (m - 1.5)
        gains = np.array([[r[f"bounds_{k}_gain"] for k in kinds] for r in rows])
        plots.points(axes[0, 0], place, gains, label=model, color=color, marker=plots.MARKERS[m], line=False)
        all_kinds = ("free", *kinds)
        counts = np.array([[r[f"bounds_{k}_violations"] for k in all_kinds] for r in rows])
        plots.points(
            axes[0, 1], np.arange(len(all_kinds)) + 0.18 * (m - 1.5), counts, label=model, color=color, marker=plots.MARKERS[m], line=False
        )
    words = {"free": "none", "given": "given,\none class", "predicted": "predicted,\none class", "every": "given,\nevery class"}
    words["projected"] = "projected\nonly"
    axes[0, 0].set_xticks(range(len(kinds)), [words[k] for k in kinds])
    axes[0, 0].set_yscale("symlog", linthresh=0.01)
    axes[0, 0].axhline(0, color=plots.MUTED, linewidth=0.8)
    axes[0, 1].set_xticks(range(len(kinds) + 1), [words[k] for k in ("free", *kinds)])
    plots.label(axes[0, 0], y="change in share named right", title=_source(results), legend=True)
    plots.label(axes[0, 1], y="images with too many")
    return figure
