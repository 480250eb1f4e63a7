"""What all plotly figures share: colours, axes, and reading a series in which numbers may be missing.

Colours are those of Okabe and Ito, which people with colour blindness can tell apart; what was not changed is grey everywhere, what a
remedy did is in colour. INK, MUTED, GRID and CARD are swapped by the page in dark mode.
"""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from gradoscope.diagnosis import Diagnosis
from gradoscope.measurement import plain

__all__ = [
    "BLUE",
    "CARD",
    "GREEN",
    "GRID",
    "INK",
    "MUTED",
    "ORANGE",
    "PALETTE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "column",
    "corner",
    "finite",
    "finite_or",
    "new_figure",
    "safe",
    "series",
    "steps_of",
    "styled",
    "values_of",
]

INK, MUTED, GRID, CARD = "#343a46", "#6d7583", "#e3e6ea", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0f7bbf", "#d55e00", "#009e73", "#c071a0", "#dd9500", "#4aa8dc"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def new_figure(x: str, y: str, height: int = 340) -> go.Figure:
    figure = styled(go.Figure(), height)
    figure.update_xaxes(title={"text": x, "standoff": 10})
    figure.update_yaxes(title={"text": y, "standoff": 10})
    return figure


def styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        font={"family": _FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 16, "t": 16, "b": 48},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "font": {"size": 13}},
    )
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "zerolinecolor": MUTED,
        "zerolinewidth": 1,
        "ticks": "",
        "ticklabelstandoff": 4,
        "automargin": True,
        "exponentformat": "power",
        "tickfont": {"size": 12},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def corner(figure: go.Figure, text: str, y: float = 1.0) -> None:
    figure.add_annotation(
        x=1,
        y=y,
        xref="paper",
        yref="paper",
        xanchor="right",
        yanchor="top" if y > 0.5 else "bottom",
        align="right",
        text=text,
        showarrow=False,
        font={"color": MUTED},
    )


def series(diagnosis: Diagnosis, name: str) -> dict[str, Any]:
    found = plain(diagnosis.series.get(name))
    return found if isinstance(found, dict) else {}


def column(data: dict[str, Any], key: str) -> list[Any]:
    """A column of a series; numbers that are not finite are None already."""
    found = data.get(key)
    return found if isinstance(found, list) else []


def steps_of(curve: Sequence[tuple[int, float]]) -> list[int]:
    return [int(s) for s, _ in curve]


def values_of(curve: Sequence[tuple[int, float]]) -> list[float | None]:
    return [float(v) if finite(v) else None for _, v in curve]


def finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def finite_or(value: Any, default: float) -> float:
    return float(value) if finite(value) else default


def safe(text: str) -> str:
    """Plotly reads a few HTML tags in its texts: a user's are shown, not read."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
