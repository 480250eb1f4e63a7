"""The interactive figures of the evidence along a run, and of what the five questions rest on."""

import math
from types import SimpleNamespace
from typing import Any, cast

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gradoscope.diagnosis import Diagnosis
from gradoscope.report import figures
from gradoscope.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, VERMILION, corner, finite, new_figure, styled

__all__ = ["bumps", "canyon", "curvature", "norms", "spectrum", "split", "taylor"]

Data = dict[str, Any]


def norms(evidence: Data) -> go.Figure | None:
    """The running and the snapshot gradient norm, beside the loss."""
    data = evidence["norms"]
    figure = new_figure("optimizer step", "norm; loss")
    rows = (
        ("running", "running: mean norm of the steps' own gradients", ORANGE, "solid"),
        ("snapshot", "snapshot: norm on fixed examples", BLUE, "solid"),
        ("loss", "loss", INK, "dot"),
    )
    for key, name, colour, dash in rows:
        values = [v if finite(v) and v > 0 else None for v in data[key]]
        if any(v is not None for v in values):
            figure.add_scatter(x=data["steps"], y=values, name=name, line={"color": colour, "width": 2.2, "dash": dash})
    signals = [
        (t["step"], math.sqrt(t["noise"]["signal"])) for t in evidence["terms"] if finite(t["noise"]["signal"]) and t["noise"]["signal"] > 0
    ]
    if signals:
        figure.add_scatter(
            x=[s for s, _ in signals],
            y=[v for _, v in signals],
            mode="markers",
            name="signal in a batch's gradient, noise taken out",
            marker={"color": GREEN, "size": 9, "symbol": "diamond"},
        )
    figure.update_yaxes(type="log", dtick="D2")
    figure.update_layout(hovermode="x unified")
    return figure


def taylor(evidence: Data) -> go.Figure | None:
    """The change of the loss that first and second order predict for each step, against the change that came, on the same examples."""
    joined: dict[str, list[Any]] = {"steps": [], "actual": [], "first": [], "second": []}
    for w in evidence["windows"]:
        keep = [i for i, tiny in enumerate(w["negligible"]) if not tiny]
        for key, column in (("steps", "steps"), ("actual", "fixed"), ("first", "first_order"), ("second", "second_order")):
            joined[key] += [w[column][i] for i in keep]
    return figures.taylor(_series(taylor=joined))


def spectrum(data: Data) -> go.Figure | None:
    """The Hessian's spectral density at the end, and its outermost eigenvalues with residuals."""
    return figures.spectrum(_series(spectrum=data))


def _series(**series: Any) -> Diagnosis:
    """What the figures of a diagnosis read of one."""
    return cast(Diagnosis, SimpleNamespace(series=series))


def curvature(evidence: Data) -> go.Figure | None:
    """Curvature along the gradient step by step, and how far the quadratic model says that each step overshoots."""
    windows = [w for w in evidence["windows"] if any(finite(v) for v in w["curvature"])]
    if not windows:
        return None
    figure = styled(
        make_subplots(
            rows=2,
            cols=1,
            vertical_spacing=0.2,
            subplot_titles=("curvature along the gradient, g'Hg / g'g", "overshoot r: above 1 the model says uphill"),
        ),
        430,
    )
    colours = (BLUE, GREEN, PURPLE, ORANGE)
    for k, w in enumerate(windows):
        place = list(range(len(w["curvature"])))
        for row, key in ((1, "curvature"), (2, "overshoot")):
            figure.add_scatter(
                x=place,
                y=w[key],
                name=f"from step {w['first']}",
                showlegend=row == 1,
                mode="lines+markers",
                line={"color": colours[k % 4], "width": 2},
                marker={"size": 4, "color": colours[k % 4]},
                row=row,
                col=1,
            )
    figure.add_hline(y=1, line={"color": MUTED, "width": 1, "dash": "dash"}, row=2, col=1)
    figure.update_xaxes(title={"text": "steps since then", "standoff": 8}, row=2, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": MUTED})
    figure.update_layout(hovermode="x unified", margin={"t": 30})
    return figure


def split(evidence: Data) -> go.Figure | None:
    """What one step is expected to do: descent, curvature, noise, with 95% intervals."""
    rows = [t for t in evidence["terms"] if t["change"]]
    if not rows:
        return None
    figure = new_figure("optimizer step", "share of the descent D")
    names = (("C", "curvature C / D", BLUE), ("M", "noise M / D", ORANGE))
    for key, name, colour in names:
        size = [abs(t["change"]["D"]["value"]) or 1.0 for t in rows]
        figure.add_bar(
            x=[str(t["step"]) for t in rows],
            y=[t["change"][key]["value"] / s for t, s in zip(rows, size, strict=True)],
            name=name,
            marker={"color": colour},
            error_y={
                "type": "data",
                "array": [1.96 * (t["change"][key]["se"] or 0.0) / s for t, s in zip(rows, size, strict=True)],
                "color": INK,
                "thickness": 1.2,
                "width": 4,
            },
        )
    figure.add_hline(y=1, line={"color": MUTED, "width": 1, "dash": "dash"})
    corner(figure, "together above 1: the expected loss rises")
    figure.update_xaxes(type="category")
    figure.update_layout(barmode="group", bargap=0.4, hovermode="closest")
    return figure


def bumps(data: Data) -> go.Figure | None:
    """The barrier on each segment between recorded points, on examples that did not choose it."""
    known = [
        (s, t, e, hit) for s, t, e, hit in zip(data["steps"], data["tested"], data["se"], data["significant"], strict=True) if finite(t)
    ]
    if not known:
        return None
    figure = new_figure("optimizer step", "barrier between recorded points")
    for hit, name, colour in ((False, "within the error of zero", MUTED), (True, "a barrier", VERMILION)):
        rows = [r for r in known if bool(r[3]) is hit]
        if rows:
            figure.add_scatter(
                x=[(r[0][0] + r[0][1]) / 2 for r in rows],
                y=[r[1] for r in rows],
                mode="markers",
                name=name,
                marker={"color": colour, "size": 7},
                error_y={"type": "data", "array": [1.96 * (r[2] or 0) for r in rows], "color": colour, "thickness": 1.2, "width": 0},
                hovertemplate="step %{x:.0f}<br>%{y:.3g}<extra></extra>",
            )
    figure.update_yaxes(zeroline=True)
    figure.update_layout(hovermode="closest")
    return figure


def canyon(data: Data) -> go.Figure | None:
    """The cosine of displacements by how far apart they are, with the band that random walks give."""
    if not data or not any(finite(v) for v in data["cosine"]):
        return None
    figure = new_figure("recorded displacements apart", "mean cosine")
    lags = data["lags"]
    figure.add_scatter(
        x=[*lags, *reversed(lags)],
        y=[*data["high"], *reversed(data["low"])],
        mode="lines",
        fill="toself",
        fillcolor="rgba(109,117,131,0.22)",
        line={"width": 1, "color": MUTED},
        name="random walks, 95%",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=lags,
        y=data["cosine"],
        name="the run",
        mode="lines+markers",
        line={"color": VERMILION, "width": 2.5},
        marker={"size": 6, "color": VERMILION},
    )
    figure.update_xaxes(type="log", tickvals=lags, ticktext=[str(lag) for lag in lags], tickangle=0)
    figure.update_yaxes(zeroline=True, range=[min(-0.1, *(v for v in data["cosine"] if finite(v))) - 0.05, 1.05])
    figure.update_layout(hovermode="closest")
    return figure
