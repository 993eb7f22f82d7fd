"""Interactive figures of what one strategy earned: equity, returns by month, year and session, rolling values, exposure. Pure.

Belongs here: figures from the equity and the positions of a tear sheet. Does not belong here: trades and costs
(`trade_figures.py`) and comparing strategies (`comparison_figures.py`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quant_assets.backtests import statistics
from quant_assets.backtests.pages.figures import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    Absent,
    Plot,
    bar_count,
    bars,
    curve,
    days,
    empty_figure,
    equity_axes,
    label,
    points,
    positive,
    signed_cells,
    small,
)
from quant_assets.backtests.pages.sheet import MONTHS, TearSheet, monthly_returns

ROLLING_SESSIONS = 126
YARDSTICK_STYLES = ((GREY, "solid"), ("#bbbbbb", "dot"))


def equity_plot(sheet: TearSheet) -> Plot:
    """Equity beside the yardsticks, the distance from its peak below; the deepest drawdowns are shaded."""
    figure = empty_figure(2, 1, 560, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.05)
    x = days(sheet.sessions)
    figure.add_trace(curve(x, positive(sheet.equity), sheet.strategy, BLUE, "$%{y:,.0f}", 1.9), 1, 1)
    path = statistics.drawdown_path(sheet.equity)
    fill: dict[str, Any] = {"fill": "tozeroy", "fillcolor": "rgba(213,94,0,0.18)", "showlegend": False}
    figure.add_trace(curve(x, path, sheet.strategy, VERMILLION, "%{y:.1%}", 1.1, **fill), 2, 1)
    yardsticks = [item for item in sheet.yardsticks.items() if item[0] != sheet.strategy]
    for (name, values), (color, dash) in zip(yardsticks, YARDSTICK_STYLES, strict=False):
        figure.add_trace(curve(x, positive(values), name, color, "$%{y:,.0f}", dash=dash), 1, 1)
        if np.ptp(values) > 0:
            path = statistics.drawdown_path(values)
            figure.add_trace(curve(x, path, name, color, "%{y:.1%}", 1.0, showlegend=False), 2, 1)
    caption = "Dollars at each close."
    if falls := statistics.drawdowns(sheet.equity, sheet.sessions, top=5):
        at = [int(np.searchsorted(sheet.sessions, np.datetime64(fall.valley))) for fall in falls]
        numbers = {
            "mode": "markers+text",
            "marker": {"color": VERMILLION, "size": 7, "symbol": "circle-open", "line": {"width": 1.6}},
            "text": [f"<b>{i}</b>" for i in range(1, len(at) + 1)],
            "textposition": "bottom center",
            "textfont": {"color": VERMILLION, "size": 13},
            "customdata": small([fall.depth for fall in falls]),
        }
        valleys = small(positive(sheet.equity)[at])
        form = "valley %{text}, %{customdata:.1%}"
        figure.add_trace(points([x[i] for i in at], valleys, "deepest drawdowns", form, **numbers), 1, 1)
        for fall in falls:
            shade = {"fillcolor": VERMILLION, "opacity": 0.07, "line_width": 0, "layer": "below"}
            end = str(fall.end or sheet.sessions[-1])
            figure.add_vrect(x0=str(fall.start), x1=end, row="all", col=1, **shade)
        caption += " Shaded and numbered: the deepest drawdowns, from peak to recovery."
    equity_axes(figure, "equity", "$,.0f")
    figure.update_xaxes(range=[x[0], x[-1]])
    return Plot("equity", "Equity and distance from its peak", figure, caption)


def monthly_plot(sheet: TearSheet) -> Plot:
    """Return of each month and year."""
    years, months, totals = monthly_returns(sheet.sessions, sheet.equity)
    height = max(150, 70 + 27 * len(years))
    figure = empty_figure(
        1, 2, height, shared_yaxes=True, column_widths=[0.91, 0.09], horizontal_spacing=0.015
    )
    y = [str(year) for year in years]
    for column, x, z in ((1, list(MONTHS), months), (2, ["Year"], totals[:, None])):
        reach = float(np.nanmax(np.abs(z), initial=0.0)) or 0.01
        numbers = {
            # Adding zero takes the sign off a negative zero.
            "text": [["" if np.isnan(v) else f"{round(100 * v, 1) + 0.0:.1f}" for v in row] for row in z],
            "texttemplate": "%{text}",
            "textfont": {"size": 11},
            "hoverongaps": False,
        }
        cells = signed_cells(x, y, np.round(z, 5), reach, "%{x} %{y}: %{z:.2%}", **numbers)
        figure.add_trace(cells, 1, column)
    figure.update_xaxes(type="category", showline=False, ticks="", side="top")
    figure.update_yaxes(type="category", autorange="reversed", ticks="", showgrid=False)
    figure.update_layout(margin={"l": 62, "r": 18, "t": 26, "b": 6})
    caption = "The first and the last month and year may be partial."
    return Plot("monthly", "Monthly returns, percent", figure, caption)


def annual_plot(sheet: TearSheet) -> Plot:
    """Return of each year beside that of buy_and_hold."""
    curves = {sheet.strategy: (sheet.equity, BLUE)}
    if (held := sheet.yardsticks.get("buy_and_hold")) is not None and sheet.strategy != "buy_and_hold":
        curves["buy_and_hold"] = (held, "#c4c4c4")
    figure = empty_figure(height=300)
    for name, (equity, color) in curves.items():
        years, _, totals = monthly_returns(sheet.sessions, equity)
        form = f"{label(name)}, %{{x}}: %{{y:.1%}}"
        figure.add_trace(bars([str(year) for year in years], small(totals), color, form, name=label(name)))
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickformat=".0%")
    return Plot("annual", "Annual returns", figure)


def distribution_plot(sheet: TearSheet) -> Plot | Absent:
    """Histogram of the returns of sessions beside a normal distribution, with the tail that they lost most in."""
    title = "Distribution of returns"
    returns = statistics.period_returns(sheet.equity)
    if not (np.ptp(returns) > 1e-12 and returns.size >= 10):
        return Absent(title, f"{returns.size} returns that hardly differ are no distribution to draw.")
    deviation = float(returns.std(ddof=1))
    counts, edges = np.histogram(returns, bar_count(returns))
    width = float(edges[1] - edges[0])
    figure = empty_figure(height=300)
    middle = small((edges[1:] + edges[:-1]) / 2)
    figure.add_trace(bars(middle, counts, SKY, "%{x:.2%}: %{y} sessions", width=width, name="sessions"))
    grid = np.linspace(edges[0], edges[-1], 201)
    normal = np.exp(-0.5 * ((grid - returns.mean()) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    expected = normal * returns.size * width
    figure.add_trace(curve(small(grid), expected, "normal, same mean and deviation", INK))
    for key, name, color, dash in (
        ("value_at_risk", "VaR 95%", ORANGE, "dash"),
        ("conditional_value_at_risk", "CVaR 95%", VERMILLION, "solid"),
    ):
        if (value := sheet.statistics["returns"][key]) is not None:
            ends = [0, int(counts.max())]
            figure.add_trace(curve([value] * 2, ends, f"{name}: {100 * value:.2f}%", color, None, 1.8, dash))
    figure.update_xaxes(tickformat=".1%", title_text="return of a session")
    figure.update_yaxes(title_text="sessions")
    figure.update_layout(bargap=0, margin_t=48)
    return Plot("distribution", title, figure)


def rolling_plot(sheet: TearSheet) -> Plot | Absent:
    """Sharpe ratio and volatility of the last 126 returns, by the definitions of `statistics`."""
    title = f"Rolling {ROLLING_SESSIONS} sessions, annual"
    returns = statistics.period_returns(sheet.equity)
    if returns.size <= ROLLING_SESSIONS:
        why = f"The window has {returns.size} returns; a rolling value needs more than {ROLLING_SESSIONS}."
        return Absent(title, why)
    windows = np.lib.stride_tricks.sliding_window_view(returns, ROLLING_SESSIONS)
    sharpe = [statistics.sharpe_ratio(window, sheet.conventions) for window in windows]
    volatility = [statistics.volatility(window, sheet.conventions) for window in windows]
    if not np.isfinite(sharpe).any():
        return Absent(title, "Returns never vary, so there is no Sharpe ratio.")
    x = days(sheet.sessions[ROLLING_SESSIONS:])
    figure = empty_figure(2, 1, 300, shared_xaxes=True, vertical_spacing=0.08)
    figure.add_trace(curve(x, sharpe, "Sharpe ratio", BLUE, "%{y:.2f}"), 1, 1)
    figure.add_trace(curve(x, volatility, "volatility", VERMILLION, "%{y:.1%}"), 2, 1)
    figure.update_yaxes(title_text="Sharpe ratio", row=1, col=1)
    figure.update_yaxes(title_text="volatility", tickformat=".0%", rangemode="tozero", row=2, col=1)
    figure.update_layout(showlegend=False, hovermode="x unified", margin_t=10)
    return Plot("rolling", title, figure)


def exposure_plot(sheet: TearSheet) -> Plot | Absent:
    """Value of the positions over equity, gross and net."""
    if not np.any(sheet.gross > 0):
        return Absent("Exposure", "The strategy never held a position at a close.")
    alive = np.where(sheet.equity > 0, sheet.equity, np.nan)
    x = days(sheet.sessions)
    figure = empty_figure(height=250)
    fill = {"fill": "tozeroy", "fillcolor": "rgba(159,184,200,0.35)"}
    figure.add_trace(curve(x, sheet.gross / alive, "gross", "#9fb8c8", "%{y:.0%}", 0.6, **fill))
    figure.add_trace(curve(x, sheet.invested / alive, "net", BLUE, "%{y:.0%}", 1.2))
    figure.update_yaxes(tickformat=".0%", title_text="of equity")
    figure.update_layout(hovermode="x unified")
    caption = (
        f"Market value of the positions over equity at each close; invested on {100 * float(np.mean(sheet.gross > 0)):.0f}% "
        "of the sessions. Net counts shorts negative, gross counts them positive."
    )
    return Plot("exposure", "Exposure", figure, caption)
