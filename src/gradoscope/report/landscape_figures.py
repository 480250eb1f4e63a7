"""The interactive figures of a landscape: the plain data of one section in, a plotly figure out, or None where there is nothing to draw."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gradoscope.report.style import BLUE, GRID, INK, MUTED, SKY, VERMILION, finite, new_figure, styled
from gradoscope.report.words import number

__all__ = ["control", "line", "plane", "projection", "scaled", "ticks", "view"]

WHITE = "#fefefe"  # on the surface, in dark mode as well: the page swaps plain white for the colour of its cards
SCALE = "Viridis"  # even in brightness, and the same to people with colour blindness
WIDE = 30.0  # a loss that varies by more than this factor is drawn on a logarithmic scale
Data = dict[str, Any]


def scaled(loss: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, Callable[[float], float] | None]:
    """The loss as it is coloured, and the way back: its logarithm where it is positive and varies widely, else itself (None).

    Example:
        >>> values, back = scaled([1.0, 100.0])
        >>> values.tolist(), back(2.0)
        ([0.0, 2.0], 100.0)
    """
    values = np.array(loss, dtype=float)
    known = values[np.isfinite(values)]
    if len(known) and known.min() > 0 and known.max() > WIDE * known.min():
        with np.errstate(divide="ignore"):
            return np.log10(values), lambda v: 10.0**v
    return values, None


def ticks(low: float, high: float, logarithmic: bool, most: int = 7) -> tuple[list[float], list[str]]:
    """Round values of the loss between two ends of its colour scale, and how they are written.

    Example:
        >>> ticks(-3.0, 3.0, True)[1]
        ['0.001', '0.01', '0.1', '1', '10', '100', '1000']
    """
    if not logarithmic:
        values = [float(v) for v in np.linspace(low, high, 5)]
        return values, [number(v, 2) for v in values]
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [math.log10(f) + e for e in range(math.floor(low) - 1, math.ceil(high) + 1) for f in factors]
        found = [v for v in found if low - 1e-9 <= v <= high + 1e-9]
        if len(found) <= most:
            break
    found = found[:: max(1, math.ceil(len(found) / most))]
    if len(found) < 2:
        found = [low, high]
    return found, [number(10**v, 2) for v in found]


def line(data: Data, ends: tuple[str, str]) -> go.Figure | None:
    """Loss, and where there is one the metric, on a straight line: training solid, validation dashed, 95% bands over examples."""
    if not any(finite(v) for v in data.get("loss") or ()):
        return None
    metric = any(finite(v) for v in data.get("metric") or ())
    figure = styled(
        make_subplots(rows=2 if metric else 1, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.64, 0.36][: 1 + metric]),
        440 if metric else 340,
    )
    alpha = data["alpha"]
    for key, name, colour, dash in (("loss", "training", BLUE, "solid"), ("validation_loss", "validation", VERMILION, "dash")):
        values = data.get(key)
        if not values:
            continue
        _band(figure, alpha, values, data.get(key.replace("loss", "standard_error")), colour)
        figure.add_scatter(x=alpha, y=values, name=name, line={"color": colour, "width": 2.5, "dash": dash}, row=1, col=1)
        other = data.get(key.replace("loss", "metric"))
        if other and any(finite(v) for v in other):
            figure.add_scatter(
                x=alpha, y=other, name=name, showlegend=False, line={"color": colour, "width": 2, "dash": dash}, row=2, col=1
            )
    figure.update_yaxes(title={"text": "loss", "standoff": 10}, row=1, col=1)
    if metric:
        figure.update_yaxes(title={"text": data.get("metric_name") or "metric", "standoff": 10}, row=2, col=1)
    figure.update_xaxes(title={"text": f"from {ends[0]} (0) to {ends[1]} (1)", "standoff": 10}, row=1 + metric, col=1)
    for x, label in ((0, ends[0]), (1, ends[1])):
        figure.add_vline(x=x, line={"color": MUTED, "width": 1, "dash": "dot"})
        figure.add_annotation(x=x, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False, font={"color": MUTED})
    _axis_choice(figure, [v for key in ("loss", "validation_loss") for v in data.get(key) or () if finite(v)])
    figure.update_layout(hovermode="x unified", margin={"t": 30})
    return figure


def _axis_choice(figure: go.Figure, values: Sequence[float]) -> None:
    """Ranges of a linear and of a logarithmic loss axis, for the page's switch."""
    low, high = min(values), max(values)
    linear = [min(0.0, low), high + 0.05 * (high - min(0.0, low) or 1.0)]
    log = [math.log10(low) - 0.1, math.log10(high) + 0.1] if low > 0 else None
    figure.update_layout(meta={"linear": linear, "log": log})
    figure.update_layout(yaxis={"type": "linear", "range": linear})


def _band(figure: go.Figure, x: Sequence[float], values: Sequence[Any], errors: Sequence[Any] | None, colour: str) -> None:
    if not errors or not all(finite(e) for e in errors) or not all(finite(v) for v in values):
        return
    upper = [v + 1.96 * e for v, e in zip(values, errors, strict=True)]
    lower = [max(v - 1.96 * e, 1e-12 if v > 0 else -math.inf) for v, e in zip(values, errors, strict=True)]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*upper, *reversed(lower)],
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.14)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )


def _path(figure: go.Figure, path: Sequence[Sequence[float]], name: str, colour: str, width: float = 2.5) -> None:
    x, y = [p[0] for p in path], [p[1] for p in path]
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": WHITE, "width": width + 2.5}, opacity=0.85, hoverinfo="skip", showlegend=False
    )
    figure.add_scatter(x=x, y=y, mode="lines", name=name, line={"color": colour, "width": width}, hoverinfo="skip")


def _ends(figure: go.Figure, path: Sequence[Sequence[float]], steps: Sequence[int]) -> None:
    for index, symbol, name in ((0, "circle", "start"), (-1, "star", "end")):
        figure.add_scatter(
            x=[path[index][0]],
            y=[path[index][1]],
            mode="markers",
            showlegend=False,
            marker={"symbol": symbol, "size": 11 if index == 0 else 15, "color": WHITE, "line": {"color": "#1c2028", "width": 1.5}},
            hovertemplate=f"{name}, step {steps[index]}<extra></extra>",
        )


def _square(figure: go.Figure, data: Data) -> None:
    figure.update_xaxes(
        title={"text": data["labels"][0], "standoff": 8, "font": {"size": 12}}, range=[data["x"][0], data["x"][-1]], showgrid=False
    )
    figure.update_yaxes(
        title={"text": data["labels"][1], "standoff": 4, "font": {"size": 12}}, range=[data["y"][0], data["y"][-1]], showgrid=False
    )
    figure.update_layout(hovermode="closest", margin={"t": 12, "r": 12})


def plane(data: Data, steps: Sequence[int]) -> go.Figure | None:
    """Contours of the loss over a plane, with the run's path on top."""
    z, back = scaled(data["loss"])
    known = z[np.isfinite(z)]
    if not len(known):
        return None
    low, high = float(known.min()), float(known.max())
    values, texts = ticks(low, high, back is not None)
    figure = styled(go.Figure(), 460)
    figure.add_contour(
        x=data["x"],
        y=data["y"],
        z=np.where(np.isfinite(z), z, np.nan),
        colorscale=SCALE,
        zmin=low,
        zmax=high,
        ncontours=24,
        contours={"coloring": "fill"},
        line={"color": "rgba(255,255,255,0.45)", "width": 0.8},
        showlegend=False,
        colorbar={
            "title": {"text": "loss", "side": "right"},
            "tickvals": values,
            "ticktext": texts,
            "thickness": 12,
            "outlinewidth": 0,
            "len": 0.9,
        },
        customdata=np.array(data["loss"], dtype=float),
        hovertemplate="loss %{customdata:.4g}<extra></extra>",
    )
    if data.get("other"):
        _path(figure, data["other"], "the run from another start", SKY, 2)
    _path(figure, data["path"], "the run", VERMILION)
    _ends(figure, data["path"], steps)
    for name, x, y in data.get("marks") or ():
        if name not in ("start", "end"):
            figure.add_annotation(
                x=x,
                y=y,
                text=name,
                showarrow=True,
                arrowhead=0,
                ax=0,
                ay=-24,
                arrowcolor=WHITE,
                font={"color": WHITE},
                bgcolor="rgba(28,32,40,0.65)",
            )
    _square(figure, data)
    return figure


def control(data: Data) -> go.Figure | None:
    """Random walks with the run's own step lengths in a plane of the same kind, on the same axes, with the run beside them."""
    if not data.get("controls"):
        return None
    figure = styled(go.Figure(), 460)
    for k, walk in enumerate(data["controls"]):
        figure.add_scatter(
            x=[p[0] for p in walk],
            y=[p[1] for p in walk],
            mode="lines",
            name="random walks of the same steps",
            showlegend=k == 0,
            line={"color": MUTED, "width": 2 if k == 0 else 1.2},
            opacity=1.0 if k == 0 else 0.6,
            hoverinfo="skip",
        )
    path = data["path"]
    figure.add_scatter(
        x=[p[0] for p in path],
        y=[p[1] for p in path],
        mode="lines",
        name="the run",
        line={"color": VERMILION, "width": 2.5},
        hoverinfo="skip",
    )
    _square(figure, {**data, "labels": [label.partition(":")[0] for label in data["labels"]]})
    figure.update_xaxes(showgrid=True)
    figure.update_yaxes(showgrid=True)
    shown = [p for walk in [*data["controls"], path] for p in walk]
    for axis, k in ((figure.update_xaxes, 0), (figure.update_yaxes, 1)):
        low, high = min(p[k] for p in shown), max(p[k] for p in shown)
        margin = 0.08 * (high - low) or 1.0
        axis(range=[low - margin, high + margin])
    return figure


def view(data: Data, run: Data) -> go.Figure | None:
    """The loss over projection and residual as a surface, with the run on it."""
    z, back = scaled(data["loss"])
    known = z[np.isfinite(z)]
    if not len(known):
        return None
    low, high = float(known.min()), float(known.max())
    loss = np.array(run["loss"], dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        height = np.log10(loss) if back is not None else loss
    values, texts = ticks(low, high, back is not None)
    figure = styled(go.Figure(), 520)
    figure.add_surface(
        x=data["alpha"],
        y=data["beta"],
        z=np.where(np.isfinite(z), z, np.nan),
        colorscale=SCALE,
        cmin=low,
        cmax=high,
        showscale=False,
        opacity=0.92,
        contours={
            "z": {"show": True, "color": "rgba(255,255,255,0.35)", "width": 1, "start": low, "end": high, "size": (high - low or 1) / 14}
        },
        lighting={"ambient": 0.75, "diffuse": 0.5, "specular": 0.06, "roughness": 0.9},
        customdata=np.array(data["loss"], dtype=float),
        hovertemplate="along %{x:.2f}, beside %{y:.2f}<br>loss %{customdata:.4g}<extra></extra>",
    )
    lift = 0.03 * (high - low)  # else the surface, which is flat between its points, hides it
    figure.add_scatter3d(
        x=run["alpha"],
        y=run["beta"],
        z=[None if not math.isfinite(h) else h + lift for h in height],
        mode="lines+markers",
        name="the run",
        line={"color": VERMILION, "width": 6},
        marker={"size": 2.2, "color": VERMILION},
        customdata=run["steps"],
        hovertemplate="step %{customdata}<extra></extra>",
    )
    axis = {"gridcolor": GRID, "zerolinecolor": MUTED, "backgroundcolor": "rgba(0,0,0,0)", "showspikes": False, "tickfont": {"size": 11}}
    figure.update_layout(
        scene={
            "xaxis": axis | {"title": {"text": "along the line"}},
            "yaxis": axis | {"title": {"text": "beside it"}},
            "zaxis": axis | {"title": {"text": "loss"}, "tickvals": values, "ticktext": texts},
            "camera": {"eye": {"x": -1.2, "y": 2.0, "z": 1.1}, "center": {"x": 0, "y": 0, "z": -0.14}},
            "aspectratio": {"x": 1.15, "y": 1, "z": 0.75},
        },
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
    )
    return figure


def projection(run: Data) -> go.Figure | None:
    """How far the run is along the line from start to end, and how far beside it, with random walks and their semicircle."""
    figure = new_figure("along the line from start (0) to end (1)", "beside it, in its length", 520)
    around = np.linspace(0, 1, 101)
    figure.add_scatter(
        x=around,
        y=np.sqrt(around * (1 - around)),
        mode="lines",
        name="random walks in many dimensions",
        line={"color": INK, "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )
    for k, walk in enumerate(run["walks"]):
        figure.add_scatter(
            x=walk["alpha"],
            y=walk["beta"],
            mode="lines",
            name="random walks of the same steps",
            showlegend=k == 0,
            line={"color": MUTED, "width": 1.2},
            opacity=0.7,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=run["alpha"],
        y=run["beta"],
        mode="lines+markers",
        name="the run",
        line={"color": VERMILION, "width": 2.5},
        marker={"size": 4, "color": VERMILION},
        customdata=run["steps"],
        hovertemplate="step %{customdata}<br>along %{x:.2f}, beside %{y:.2f}<extra></extra>",
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(hovermode="closest")
    return figure
