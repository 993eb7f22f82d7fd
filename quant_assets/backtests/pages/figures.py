"""What all interactive figures share: colours, style, traces, axes. Pure plotly.

Belongs here: anything that two figures would otherwise both spell out. Does not belong here: what a figure shows
(`performance_figures.py`, `trade_figures.py`, `sweep_figures.py`, `comparison_figures.py`), the HTML around it (`page.py`) and the
pictures of the Dagster UI (`plots.py`).
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe & Ito's palette: distinguishable for colour-blind readers.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
INK, GREY, RULE = "#222222", "#8a8a8a", "#e3e3e3"
STRATEGY_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
LOSS_TO_GAIN = [[0.0, VERMILLION], [0.5, "#ffffff"], [1.0, BLUE]]
# Where buttons and menus stand: above the plot at its right end.
CONTROL = {
    "x": 1,
    "xanchor": "right",
    "y": 1.0,
    "yanchor": "bottom",
    "font": {"size": 11},
    "bgcolor": "#ffffff",
    "bordercolor": "#cccccc",
}

Numbers = Sequence[Any] | np.ndarray


class Plot(NamedTuple):
    """A figure for a page.

    Attributes:
        name: unique on its page.
        title: stands above.
        figure: plotly's.
        caption: stands below; text.
    """

    name: str
    title: str
    figure: go.Figure
    caption: str = ""


class Absent(NamedTuple):
    """What stands where a figure would be empty: its title, and why there is none."""

    title: str
    why: str


# --------------------------------------------------------------------------------------------------- figures and axes


@cache
def _template() -> go.layout.Template:
    """The style of all figures, as plotly applies it."""
    axis = {
        "gridcolor": RULE,
        "zerolinecolor": "#b5b5b5",
        "ticks": "outside",
        "tickcolor": RULE,
        "ticklen": 4,
        "automargin": True,
        "title": {"font": {"size": 12, "color": "#555555"}, "standoff": 8},
    }
    family = "system-ui,-apple-system,Segoe UI,Roboto,Arial,sans-serif"
    layout = {
        "font": {"family": family, "size": 12, "color": INK},
        "margin": {"l": 62, "r": 18, "t": 34, "b": 42},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": GREY},
        "hovermode": "closest",
        "bargap": 0.15,
        "xaxis": {**axis, "showgrid": False, "linecolor": "#b5b5b5", "showline": True},
        "yaxis": axis,
    }
    return go.layout.Template(layout=layout)


def empty_figure(rows: int = 1, columns: int = 1, height: int = 320, **subplots: Any) -> go.Figure:
    """A plotly figure in the style of the pages; `height` in pixels."""
    figure = make_subplots(rows=rows, cols=columns, **subplots)
    return figure.update_layout(template=_template(), height=height)


def equity_axes(figure: go.Figure, title: str, form: str, below: bool = True) -> None:
    """Axes of equity over time, logarithmic or at a click linear; `below`: with the distance from the peak underneath."""
    figure.update_yaxes(type="log", tickformat=form, title_text=title, row=1, col=1)
    if below:
        figure.update_yaxes(tickformat=".0%", title_text="below the peak", row=2, col=1)
        figure.update_xaxes(hoverformat="%a %d %b %Y")
    kinds = [
        {"label": kind, "method": "relayout", "args": [{"yaxis.type": kind}]} for kind in ("log", "linear")
    ]
    switch = {**CONTROL, "type": "buttons", "direction": "right", "buttons": kinds}
    figure.update_layout(hovermode="x unified", updatemenus=[switch])


# ------------------------------------------------------------------------------------------------------------- traces


def points(x: Numbers, y: Numbers, name: str | None, form: str | None, **more: Any) -> go.Scatter:
    """Points, or whatever `mode` says; `form` is plotly's template of what the pointer shows, None for nothing."""
    hover = {"hoverinfo": "skip"} if form is None else {"hovertemplate": form}
    return go.Scatter(x=x, y=y, name=name and label(name), **{"mode": "markers", **hover, **more})


def curve(
    x: Numbers,
    y: Numbers,
    name: str,
    color: str,
    form: str | None = None,
    width: float = 1.3,
    dash: str = "solid",
    **more: Any,
) -> go.Scatter:
    """A line."""
    line = {"color": color, "width": width, "dash": dash}
    return points(x, small(y), name, form, mode="lines", line=line, **more)


def bars(x: Numbers, y: Numbers, color: Any, form: str, **more: Any) -> go.Bar:
    """Bars."""
    marker = {"color": color, "line": {"width": 0.5, "color": "#ffffff"}}
    return go.Bar(x=x, y=y, marker=marker, hovertemplate=form + "<extra></extra>", **more)


def signed_cells(x: Numbers, y: Numbers, z: np.ndarray, reach: float, form: str, **more: Any) -> go.Heatmap:
    """A table of numbers from -reach to reach as coloured cells."""
    style = {"colorscale": LOSS_TO_GAIN, "showscale": False, "xgap": 2, "ygap": 2}
    return go.Heatmap(
        x=x, y=y, z=z, zmin=-reach, zmax=reach, hovertemplate=form + "<extra></extra>", **style, **more
    )


# ------------------------------------------------------------------------------------------------------------- values


def small(values: Numbers) -> np.ndarray:
    """Seven digits are more than a screen shows, and half the bytes."""
    return np.asarray(values, dtype=np.float32)


def days(sessions: np.ndarray) -> list[str]:
    """Sessions as an axis takes them."""
    return sessions.astype("datetime64[D]").astype(str).tolist()


def label(value: object) -> str:
    """Text inside a figure, where plotly reads a subset of HTML."""
    return html.escape(str(value), quote=False)


def positive(equity: np.ndarray) -> np.ndarray:
    """Equity for a logarithmic axis: NaN from ruin on."""
    return np.where(np.minimum.accumulate(equity) > 0, equity, np.nan)


def bar_count(values: np.ndarray) -> int:
    """How many bars a histogram needs: Freedman and Diaconis' rule, between 15 and 100."""
    spread = float(np.subtract(*np.percentile(values, [75, 25])))
    if spread <= 0:
        return 15
    return int(np.clip(np.ptp(values) / (2 * spread / values.size ** (1 / 3)), 15, 100))
