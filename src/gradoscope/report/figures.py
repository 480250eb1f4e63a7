"""The figures of a report, one function each: a diagnosis in, a plotly figure out, or None where nothing was recorded for it.

They only draw what a diagnosis holds.
"""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gradoscope.diagnosis import Counterfactual, Diagnosis
from gradoscope.report.style import (
    BLUE,
    CARD,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PALETTE,
    PURPLE,
    SKY,
    VERMILION,
    column,
    corner,
    finite,
    finite_or,
    new_figure,
    safe,
    series,
    steps_of,
    styled,
    values_of,
)
from gradoscope.report.words import best_counterfactuals, clip, interval, judged_by, number, percent

__all__ = ["gains", "layers", "line", "loss", "permutation", "spectrum", "taylor"]

_MAX_CURVES = 5
_MAX_BARS = 14


def loss(diagnosis: Diagnosis) -> go.Figure | None:
    """Loss over optimizer steps, with what the remedies did from where they set in.

    `layout.meta` holds a range for a linear and for a logarithmic axis, so that a run that blew up does not flatten the others.
    """
    data = series(diagnosis, "loss")
    tried = [c for c in best_counterfactuals(diagnosis, 99) if any(finite(v) for _, v in c.curve)][:_MAX_CURVES]
    steps, train, validation = column(data, "steps"), column(data, "train"), column(data, "validation")
    batch_steps, batch = column(data, "batch_steps"), column(data, "batch")
    if not tried and not any(finite(v) for v in [*train, *validation, *batch]):
        return None
    figure = new_figure("optimizer step", "loss", height=430)
    if any(finite(v) for v in batch):
        figure.add_scatter(x=batch_steps, y=batch, name="batch", line={"color": MUTED, "width": 1}, opacity=0.35, hoverinfo="skip")
    for c, key in _baselines(tried, has_training=any(finite(v) for v in train)):
        figure.add_scatter(
            x=steps_of(c.baseline_curve),
            y=values_of(c.baseline_curve),
            name=f"unchanged{key}",
            line={"color": INK, "width": 2, "dash": "dot"},
        )
    for index, c in enumerate(tried):
        label = safe(clip(c.remedy, 34)) + ("" if c.on == "training" else f" ({c.on})")
        figure.add_scatter(
            x=steps_of(c.curve), y=values_of(c.curve), name=label, line={"color": PALETTE[index % len(PALETTE)], "width": 2.5}
        )
    if any(finite(v) for v in validation):
        figure.add_scatter(x=steps, y=validation, name="validation", line={"color": INK, "width": 2, "dash": "dash"}, legendrank=2)
    if any(finite(v) for v in train):
        figure.add_scatter(x=steps, y=train, name="training", line={"color": INK, "width": 3}, legendrank=1)
    kept = [*train, *validation, *(v for c in tried for v in (*values_of(c.curve), *values_of(c.baseline_curve)))]
    linear, log = _loss_ranges([v for v in kept if finite(v)] or [v for v in batch if finite(v)], [*train, *(c.loss_before for c in tried)])
    steep = log is not None and (log[1] - log[0] > 3 or 10 ** log[1] > 10 * linear[1])
    figure.update_layout(meta={"linear": linear, "log": log}, hovermode="x unified")
    figure.update_yaxes(type="log" if steep else "linear", range=log if steep else linear)
    return figure


def gains(diagnosis: Diagnosis) -> go.Figure | None:
    """The gain of every remedy with its 95% interval; 0 is the unchanged training, 1 all that was left to gain."""
    tried = [c for c in best_counterfactuals(diagnosis, _MAX_BARS) if not c.failed and finite(c.gain)]
    if not tried:
        return None
    tried.sort(key=lambda c: c.gain)
    bounds = [b for c in tried for b in (c.gain, *c.interval) if finite(b)]
    low, high = max(min(bounds), -1.0), min(max(bounds), 1.25)
    left, right = min(low - 0.06, -0.08), max(high + 0.06, 0.3)
    figure = new_figure("gain", "", height=80 + 50 * len(tried))
    shown = [min(max(c.gain, left), right) for c in tried]
    figure.add_bar(
        x=shown,
        y=list(range(len(tried))),
        orientation="h",
        width=0.36,
        marker={"color": [_gain_colour(c) for c in tried]},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(min(finite_or(c.interval[1], c.gain), right) - s, 0.0) for c, s in zip(tried, shown, strict=True)],
            "arrayminus": [max(s - max(finite_or(c.interval[0], c.gain), left), 0.0) for c, s in zip(tried, shown, strict=True)],
            "color": INK,
            "thickness": 1.5,
            "width": 5,
        },
        text=[
            f"{safe(clip(c.remedy, 60))}<br>{percent(c.gain)} [{interval(c.interval) or 'no interval'}]<br>{safe(clip(c.explanation, 80))}"
            for c in tried
        ],
        hovertemplate="%{text}<extra></extra>",
        textposition="none",
        showlegend=False,
    )
    for index, c in enumerate(tried):
        note = f" <span style='color:{MUTED}'>{percent(c.gain)}{f' ({interval(c.interval)})' if interval(c.interval) else ''}</span>"
        where = "" if c.on == "training" else f" on the {judged_by(c)}"
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=index,
            yshift=18,
            showarrow=False,
            align="left",
            text=f"{safe(clip(c.remedy, 26))}{where}{note}",
            bgcolor=CARD,
            borderpad=1,
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1.5})
    figure.add_annotation(x=0, y=1, yref="paper", yanchor="bottom", text="unchanged", showarrow=False, font={"color": MUTED})
    figure.update_xaxes(range=[left, right], tickformat=".0%")
    figure.update_yaxes(range=[-0.6, len(tried) - 0.3], visible=False)
    figure.update_layout(margin={"l": 12, "r": 12, "t": 30, "b": 48}, hovermode="closest")
    return figure


def spectrum(diagnosis: Diagnosis) -> go.Figure | None:
    """The Hessian's spectral density, its extreme eigenvalues with residuals, and where the step size would become unstable."""
    data = series(diagnosis, "spectrum")
    values, residuals = column(data, "eigenvalues"), column(data, "residuals")
    grid, density = column(data, "grid"), column(data, "density")
    has_density = any(finite(d) and d > 0 for d in density)
    if not has_density and not any(finite(v) for v in values):
        return None
    figure = new_figure("eigenvalue of the Hessian", "density" if has_density else "")
    top = max((d for d in density if finite(d)), default=1.0) if has_density else 1.0
    floor = top * 1e-6
    if has_density:
        pairs = [(g, max(d, floor)) for g, d in zip(grid, density, strict=False) if finite(g) and finite(d)]
        figure.add_scatter(
            x=[g for g, _ in pairs],
            y=[d for _, d in pairs],
            name="density",
            fill="tozeroy",
            line={"color": SKY, "width": 1.5},
            fillcolor="rgba(74,168,220,0.22)",
            hovertemplate="eigenvalue %{x:.3g}<br>density %{y:.2g}<extra></extra>",
        )
    known = [(v, finite_or(r, 0.0)) for v, r in zip(values, [*residuals, *[None] * len(values)], strict=False) if finite(v)]
    figure.add_scatter(
        x=[v for v, _ in known],
        y=[floor * 3 if has_density else 1.0] * len(known),
        mode="markers",
        name="extreme eigenvalues",
        marker={"color": [VERMILION if v + r < 0 else BLUE for v, r in known], "size": 9, "symbol": "line-ns-open", "line": {"width": 2.5}},
        error_x={"type": "data", "array": [r for _, r in known], "color": INK, "thickness": 1.2, "width": 4},
        hovertemplate="%{x:.4g} ± %{error_x.array:.2g}<extra></extra>",
    )
    ends = [*(v for v, _ in known), *(g for g, d in zip(grid, density, strict=False) if finite(g) and finite(d) and d > floor)]
    _stability_line(figure, data.get("learning_rate_limit"), min([*ends, 0.0]), max([*ends, 0.0]))
    figure.update_yaxes(type="log", range=[math.log10(floor), math.log10(top) + 0.5]) if has_density else figure.update_yaxes(visible=False)
    return figure


def layers(diagnosis: Diagnosis) -> go.Figure | None:
    """What reaches each layer, from input to output: sensitivity, gradient norm, signal, step relative to the weights, dead units."""
    data = series(diagnosis, "layers")
    names = [str(n) for n in data.get("names") or ()]
    ending = {n.rpartition(".")[2] for n in names}
    labels = [n.rpartition(".")[0] or n for n in names] if len(ending) == 1 else names  # ".weight" on every layer tells nothing
    panels = [
        ("sensitivity of the loss", [("sensitivity", "sensitivity", BLUE)], True),
        ("gradient norm", [("gradient_norm", "gradient norm", GREEN)], True),
        ("signal", [("signal", "signal", PURPLE)], True),
        ("step relative to the weights", [("update_ratio", "step / weight", ORANGE)], True),
        ("share of units", [("dead", "dead", VERMILION), ("saturated", "saturated", SKY)], False),
    ]
    drawn = [(t, kept, log) for t, lines, log in panels if (kept := [x for x in lines if any(finite(v) for v in column(data, x[0]))])]
    if not names or not drawn:
        return None
    figure = make_subplots(
        rows=len(drawn), cols=1, shared_xaxes=True, vertical_spacing=0.28 / len(drawn), subplot_titles=[t for t, _, _ in drawn]
    )
    styled(figure, height=120 + 115 * len(drawn))
    if not drawn[-1][2]:
        figure.layout.annotations[-1].text = f"share of units: {', '.join(label for _, label, _ in drawn[-1][1])}"
    hover = [safe(clip(n, 60)) for n in names]
    for row, (_, lines, log) in enumerate(drawn, start=1):
        table = {label: [*column(data, key), *[None] * len(names)][: len(names)] for key, label, _ in lines}
        colours = [colour for _, _, colour in lines]
        _log_panel(figure, row, table, colours, hover) if log else _share_panel(figure, row, table, colours, hover)
    shown = range(0, len(names), max(1, math.ceil(len(names) / 24)))
    ticks = [safe(clip(labels[i], 18)) for i in shown]
    figure.update_xaxes(tickvals=list(shown), ticktext=ticks, tickangle=-40, row=len(drawn), col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": MUTED})
    figure.update_layout(
        barmode="group", bargap=0.35, hovermode="closest", margin={"t": 28, "b": 34 + 5 * min(max(map(len, labels)), 18), "l": 64}
    )
    figure.update_xaxes(automargin=False)
    figure.update_yaxes(automargin=False)
    return figure


def taylor(diagnosis: Diagnosis) -> go.Figure | None:
    """The change of the loss that the first- and second-order models predict for each step, against the change that came."""
    data = series(diagnosis, "taylor")
    actual, steps = column(data, "actual"), column(data, "steps")
    orders = [("first order", column(data, "first"), ORANGE, "circle-open"), ("second order", column(data, "second"), BLUE, "circle")]
    pairs = {name: [(p, a, s) for p, a, s in zip(v, actual, steps, strict=False) if finite(p) and finite(a)] for name, v, _, _ in orders}
    everything = [v for points in pairs.values() for p, a, _ in points for v in (p, a)]
    if not everything:
        return None
    figure = new_figure("predicted change of the loss", "actual change")
    low, high = _robust_range([*everything, 0.0])
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", name="exact", line={"color": MUTED, "width": 1.2, "dash": "dot"}, hoverinfo="skip"
    )
    for name, _, colour, symbol in orders:
        points = pairs[name]
        if points:
            figure.add_scatter(
                x=[p for p, _, _ in points],
                y=[a for _, a, _ in points],
                customdata=[s for _, _, s in points],
                mode="markers",
                name=name,
                marker={"color": colour, "symbol": symbol, "size": 8, "line": {"width": 1.5, "color": colour}, "opacity": 0.85},
                hovertemplate="step %{customdata}<br>predicted %{x:.3g}<br>actual %{y:.3g}<extra>" + name + "</extra>",
            )
    figure.update_xaxes(range=[low, high], zeroline=True)
    figure.update_yaxes(range=[low, high], zeroline=True)
    figure.update_layout(hovermode="closest")
    outside = sum(1 for points in pairs.values() for p, a, _ in points if not (low <= p <= high and low <= a <= high))
    if outside:
        corner(figure, f"{outside} points lie outside", y=0.02)
    return figure


def line(diagnosis: Diagnosis) -> go.Figure | None:
    """The loss along the straight line from the first parameters (0) to the last (1) and beyond."""
    data = series(diagnosis, "line")
    alpha, train, validation = column(data, "alpha"), column(data, "train"), column(data, "validation")
    if not any(finite(v) for v in [*train, *validation]):
        return None
    figure = new_figure("position between start (0) and end (1)", "loss")
    for name, values, dash in (("training", train, "solid"), ("validation", validation, "dash")):
        if any(finite(v) for v in values):
            figure.add_scatter(
                x=alpha, y=values, name=name, line={"color": BLUE if name == "training" else VERMILION, "width": 2.5, "dash": dash}
            )
    for x, label in ((0, "start"), (1, "end")):
        figure.add_vline(x=x, line={"color": MUTED, "width": 1, "dash": "dot"})
        figure.add_annotation(x=x, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False, font={"color": MUTED})
    figure.update_layout(hovermode="x unified", margin={"t": 30})
    return figure


def permutation(diagnosis: Diagnosis) -> go.Figure | None:
    """How much the gradient depends on the true targets, against how much it depends on permuted ones."""
    data = series(diagnosis, "permutation")
    null, observed = [v for v in column(data, "null") if finite(v)], data.get("observed")
    if not null:
        return None
    figure = new_figure("distance from the permuted mean", "permutations")
    figure.add_histogram(x=null, nbinsx=20, name="permuted targets", marker={"color": MUTED, "opacity": 0.6})
    if finite(observed):
        figure.add_vline(x=observed, line={"color": VERMILION, "width": 2.5})
        centre = (min([*null, observed]) + max([*null, observed])) / 2
        figure.add_annotation(
            x=observed,
            y=1,
            yref="paper",
            yanchor="bottom",
            xanchor="right" if observed > centre else "left",
            text="true targets",
            showarrow=False,
            font={"color": VERMILION},
        )
    figure.update_layout(showlegend=False, hovermode="closest", bargap=0.05, margin={"t": 30})
    return figure


def _log_panel(figure: go.Figure, row: int, table: dict[str, list[Any]], colours: Sequence[str], hover: Sequence[str]) -> None:
    """Positive quantities by layer on a logarithmic axis; an exact zero is a cross on its lower edge."""
    positive = [math.log10(v) for values in table.values() for v in values if finite(v) and v > 0] or [0.0]
    middle = (max(positive) + min(positive)) / 2
    half = max(0.58 * (max(positive) - min(positive)) + 0.2, 1.0)  # at least two decades, so that layers that are alike look alike
    floor = 10 ** (middle - half)
    for (label, values), colour in zip(table.items(), colours, strict=True):
        shown = [v if finite(v) and v > 0 else floor * 10 ** (0.1 * half) if finite(v) else None for v in values]
        figure.add_scatter(
            x=list(range(len(values))),
            y=shown,
            name=label,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={
                "opacity": 1,
                "size": [11 if finite(v) and v <= 0 else 8 for v in values],
                "symbol": ["x" if finite(v) and v <= 0 else "circle" for v in values],
                "color": [VERMILION if finite(v) and v <= 0 else colour for v in values],
            },
            showlegend=len(table) > 1,
            customdata=[number(v) for v in values],
            hovertext=hover,
            hovertemplate="%{hovertext}<br>%{customdata}<extra>" + label + "</extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(type="log", range=[middle - half, middle + half], dtick=max(1, round(half / 2)), row=row, col=1)


def _share_panel(figure: go.Figure, row: int, table: dict[str, list[Any]], colours: Sequence[str], hover: Sequence[str]) -> None:
    """Shares of units by layer as bars from 0 to 100%."""
    for (label, values), colour in zip(table.items(), colours, strict=True):
        figure.add_bar(
            x=list(range(len(values))),
            y=values,
            name=label,
            marker={"color": colour},
            hovertext=hover,
            hovertemplate="%{hovertext}<br>%{y:.3g}<extra>" + label + "</extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%", row=row, col=1)


def _stability_line(figure: go.Figure, limit: Any, low: float, high: float) -> None:
    """Mark 2 / learning rate; where it lies far beyond the spectrum, say so instead of squeezing the spectrum."""
    width = max(high - low, 1e-300)
    right = high + 0.08 * width
    if finite(limit) and limit > 0:
        if limit <= high + 1.5 * width:
            right = max(right, limit + 0.08 * width)
            figure.add_vline(x=limit, line={"color": VERMILION, "width": 2, "dash": "dash"})
            near = limit > (low + right) / 2
            figure.add_annotation(
                x=limit,
                y=1,
                yref="paper",
                yanchor="top",
                xanchor="right" if near else "left",
                text=" 2 / learning rate ",
                showarrow=False,
                font={"color": VERMILION},
            )
        else:
            corner(figure, f"2 / learning rate = {number(limit)},<br>far to the right →")
    figure.update_xaxes(range=[low - 0.08 * width, right], zeroline=True)


def _baselines(tried: Sequence[Counterfactual], has_training: bool) -> list[tuple[Counterfactual, str]]:
    """One unchanged run per loss compared, the one that goes furthest; none for training where its own curve is drawn."""
    out: dict[str, Counterfactual] = {}
    for c in tried:
        if c.baseline_curve and not (has_training and c.on == "training") and c.steps > getattr(out.get(c.on), "steps", -1):
            out[c.on] = c
    return [(c, "" if on == "training" else f" ({on})") for on, c in out.items()]


def _loss_ranges(values: Sequence[float], reference: Sequence[Any]) -> tuple[list[float], list[float] | None]:
    """An axis range for a linear and a logarithmic loss axis (None: nothing is positive)."""
    highest_wanted = 3.0 * max((abs(v) for v in reference if finite(v)), default=math.inf)
    top = min(max(values), max(highest_wanted, min(values) + 1e-12))
    bottom = min(0.0, *values) if min(values) > -abs(top) else min(values)
    positive = [v for v in values if v > 0]
    log = [math.log10(min(positive)) - 0.1, math.log10(max(positive)) + 0.1] if positive else None
    if log is not None and log[1] - log[0] > 12:  # a run that overflowed: twelve decades upwards are enough to see it leave
        log[1] = log[0] + 12
    return [bottom, top + 0.05 * (top - bottom)], log


def _robust_range(values: Sequence[float]) -> tuple[float, float]:
    """The range with a margin; the outermost 2% on each side are left out where they would squeeze the rest to a third."""
    ordered = sorted(values)
    cut = int(0.02 * len(ordered))
    low, high = ordered[cut], ordered[len(ordered) - 1 - cut]
    if ordered[-1] - ordered[0] < 3 * (high - low):
        low, high = ordered[0], ordered[-1]
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _gain_colour(c: Counterfactual) -> str:
    low, high = finite_or(c.interval[0], c.gain), finite_or(c.interval[1], c.gain)
    return GREEN if low > 0 else VERMILION if high < 0 else "#a3aab5"
