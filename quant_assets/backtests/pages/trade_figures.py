"""Interactive figures of the trades of one strategy: on the price, their results, what trading cost. Pure.

Belongs here: figures from the trades and the costs of a tear sheet. Does not belong here: equity over time
(`performance_figures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from quant_assets.backtests import statistics
from quant_assets.backtests.pages.figures import (
    BLUE,
    CONTROL,
    GREEN,
    INK,
    PURPLE,
    STRATEGY_COLORS,
    VERMILLION,
    Absent,
    Plot,
    bar_count,
    bars,
    curve,
    days,
    empty_figure,
    label,
    points,
    small,
)
from quant_assets.backtests.pages.glossary import FORMATS
from quant_assets.backtests.pages.sheet import TearSheet, quoted_exit, thin

MOST_SYMBOLS = 12  # of the price chart: those with the most trades
MOST_TRADES = 3000  # of the excursions

Trades = Sequence[Mapping[str, Any]]
dollars = FORMATS["dollars"]


def price_plot(sheet: TearSheet) -> Plot | Absent:
    """Entries and exits on the quoted close, a symbol at a time."""
    symbols = sheet.trades["symbol"].to_pylist()
    by_count = sorted(set(symbols), key=lambda s: (-symbols.count(s), s))
    charted = [symbol for symbol in by_count if symbol in sheet.bars][:MOST_SYMBOLS]
    if not charted:
        return Absent("Trades on the price", "There are no bars of the symbols that were traded.")
    trades = sheet.trades.append_column("quoted_exit", pa.array(quoted_exit(sheet.trades))).to_pylist()
    figure = empty_figure(height=520)
    owners: list[str] = []
    for symbol in charted:
        own = [trade for trade in trades if trade["symbol"] == symbol]
        for trace in [*_price_traces(sheet, symbol), *_trade_traces(own)]:
            figure.add_trace(trace.update(visible=symbol == charted[0]))
            owners.append(symbol)
    buttons = [
        {
            "label": f"{label(symbol)} ({symbols.count(symbol)})",
            "method": "update",
            # Prices of symbols differ, so the zoom of one is no good for the next.
            "args": [{"visible": [owner == symbol for owner in owners]}, {"yaxis.autorange": True}],
        }
        for symbol in charted
    ]
    figure.update_layout(updatemenus=[{**CONTROL, "type": "dropdown", "buttons": buttons}])
    figure.update_xaxes(range=[str(sheet.sessions[0] - 20), str(sheet.sessions[-1] + 20)])
    figure.update_yaxes(type="log", tickformat="$,.6~g", title_text="dollars, as quoted")
    caption = (
        "Quoted close, log axis; choose the symbol at the right, drag to zoom. Triangles are entries (up long, down short), "
        "circles exits; green won, vermillion lost, net of costs. A dotted line joins entry and exit, except across a split."
    )
    if left_out := len(by_count) - len(charted):
        caption += f" {left_out} symbols with fewer trades are left out."
    return Plot("trades", "Trades on the price", figure, caption)


def _price_traces(sheet: TearSheet, symbol: str) -> list[go.Scatter]:
    """Quoted close and splits of one symbol."""
    bars = sheet.bars[symbol]
    bars = bars.cut(bars.position(sheet.sessions[0]), bars.position(sheet.sessions[-1] + 1))
    splits = np.flatnonzero(bars.split_factor != 1)
    # A gap keeps a split from looking like a crash.
    x = days(np.insert(bars.sessions, splits, bars.sessions[splits]))
    close = np.insert(bars.close, splits, np.nan)
    form = "%{x|%d %b %Y}: $%{y:,.2f}<extra>close</extra>"
    traces = [curve(x, close, f"{symbol} close", "#6f7f8a", form, 1.1)]
    if splits.size:
        style = {
            "mode": "markers+text",
            "marker": {"symbol": "diamond", "size": 9, "color": PURPLE},
            "text": [f"split {factor:g}:1" for factor in bars.split_factor[splits]],
            "textposition": "top right",
        }
        form = "%{x|%d %b %Y}: %{text}<extra></extra>"
        traces.append(points(days(bars.sessions[splits]), small(bars.close[splits]), "split", form, **style))
    return traces


def _trade_traces(trades: Trades) -> list[go.Scatter]:
    """Trades of one symbol, with the quoted exit price as `quoted_exit`: a line from entry to exit, exits, entries."""
    traces = []
    for won, color, outcome in ((True, GREEN, "won"), (False, VERMILLION, "lost")):
        part = [trade for trade in trades if (trade["pnl"] > 0) == won]
        joined = [trade for trade in part if trade["split_factor"] == 1]
        group: dict[str, Any] = {"legendgroup": outcome}
        if joined:
            x = [day for t in joined for day in (str(t["entry_session"]), str(t["exit_session"]), None)]
            y = [price for t in joined for price in (t["entry_price"], t["quoted_exit"], np.nan)]
            traces.append(curve(x, y, outcome, color, None, dash="dot", showlegend=False, **group))
        if part:
            marker = {"symbol": "circle-open", "size": 10, "color": color, "line": {"width": 1.3}}
            where = ("exit_session", "quoted_exit")
            traces.append(_marks(part, where, "exit", outcome, _result, marker=marker, **group))
        for side, shape in (("long", "triangle-up"), ("short", "triangle-down")):
            if entered := [trade for trade in part if trade["side"] == side]:
                marker = {"symbol": shape, "size": 8, "color": color}
                where = ("entry_session", "entry_price")
                traces.append(_marks(entered, where, f"{side} entry", outcome, _size, marker=marker, **group))
    return traces


def _marks(
    trades: Trades,
    where: tuple[str, str],
    what: str,
    outcome: str,
    told: Callable[[Mapping[str, Any]], str],
    **style: Any,
) -> go.Scatter:
    """One end of the trades: `where` are the columns of its session and price, `told` is what the pointer shows."""
    session, price = where
    form = f"{what} %{{x|%d %b %Y}} at $%{{y:,.2f}}<br>%{{text}}<extra></extra>"
    x, y = [str(trade[session]) for trade in trades], small([trade[price] for trade in trades])
    return points(x, y, f"{what}, {outcome}", form, text=[told(trade) for trade in trades], **style)


def _size(trade: Mapping[str, Any]) -> str:
    return f"{trade['shares']:,.6g} shares"


def _result(trade: Mapping[str, Any]) -> str:
    how = f"{label(trade['side'])}, {label(trade['reason'])} after {trade['bars_held']} bars"
    return f"{how}: {dollars(trade['pnl'])} ({100 * trade['trade_return']:+.1f}%)"


def pnl_plot(sheet: TearSheet) -> Plot:
    """Histogram of the trades' PnL, winners and losers apart."""
    pnl = sheet.trades["pnl"].to_numpy()
    low, high = min(float(pnl.min()), 0.0), max(float(pnl.max()), 0.0)
    width = (high - low) / bar_count(pnl) or 1.0
    # An edge at zero, so that no bar mixes winners and losers.
    edges = width * np.arange(math.floor(low / width - 1e-9), math.ceil(high / width + 1e-9) + 1)
    middle = small((edges[1:] + edges[:-1]) / 2)
    figure = empty_figure(height=300)
    for part, name, color in ((pnl[pnl > 0], "won", GREEN), (pnl[pnl <= 0], "lost", VERMILLION)):
        if part.size:
            counts, _ = np.histogram(part, edges)
            form = "about $%{x:,.0f}: %{y} trades"
            figure.add_trace(bars(middle, counts, color, form, width=width, name=f"{name} ({part.size:,})"))
    figure.add_vline(x=float(pnl.mean()), line={"color": INK, "dash": "dash", "width": 1.2})
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(tickformat="$,.6~s", title_text="PnL of a trade, net of costs")
    figure.update_yaxes(title_text="trades")
    caption = f"Dashed: the mean, {dollars(float(pnl.mean()))}."
    return Plot("pnl", "Distribution of the trades' PnL", figure, caption)


def excursion_plot(sheet: TearSheet) -> Plot:
    """Result of each trade against the worst and the best price while it was held."""
    shown = thin(sheet.trades, MOST_TRADES)
    won, outcome = shown["pnl"].to_numpy() > 0, small(shown["trade_return"].to_numpy())
    columns = (shown[name].to_pylist() for name in ("symbol", "side", "entry_session"))
    text = np.array([f"{label(symbol)} {side}, {day}" for symbol, side, day in zip(*columns, strict=True)])
    figure = empty_figure(1, 2, 300, shared_yaxes=True, horizontal_spacing=0.05)
    form = "%{text}<br>excursion %{x:.1%}, return %{y:.1%}<extra></extra>"
    for column, name in ((1, "mae"), (2, "mfe")):
        values = small(shown[name].to_numpy())
        for mask, color, result in ((won, GREEN, "won"), (~won, VERMILLION, "lost")):
            if mask.any():
                style = {
                    "marker": {"color": color, "size": 5, "opacity": 0.65},
                    "legendgroup": result,
                    "showlegend": column == 1,
                    "text": text[mask].tolist(),
                }
                figure.add_trace(points(values[mask], outcome[mask], result, form, **style), 1, column)
    figure.update_xaxes(tickformat=".0%", nticks=6)
    figure.update_xaxes(title_text="worst price while held (MAE)", col=1)
    figure.update_xaxes(title_text="best price while held (MFE)", col=2)
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="return of the trade, net", col=1)
    caption = "Excursions against the entry price, in the trade's direction."
    if shown.num_rows < sheet.trades.num_rows:
        caption += f" {shown.num_rows:,} of {sheet.trades.num_rows:,} trades, evenly spaced."
    return Plot("excursions", "Excursions against results", figure, caption)


def cost_sensitivity_plot(sheet: TearSheet) -> Plot | Absent:
    """Total return and Sharpe ratio by multiple of the assumed costs."""
    title = "If trading cost more or less"
    rows = sorted(sheet.cost_sensitivity, key=lambda row: row["cost_factor"] or 0.0)
    if not rows:
        return Absent(title, "It was not computed for this strategy.")
    if len({row["final_equity"] for row in rows}) == 1:
        return Absent(title, "The result is the same at every level of costs.")
    factors = [f"{row['cost_factor']:g}x" for row in rows]
    colors = [BLUE if row["cost_factor"] == 1 else "#a9c7da" for row in rows]
    panels = [
        panel
        for panel in (
            ("total_return", "total return", ".1%", ".0%"),
            ("sharpe", "Sharpe ratio", ".2f", ".2~f"),
        )
        if any(row[panel[0]] is not None for row in rows)
    ]
    figure = empty_figure(1, len(panels), 280, horizontal_spacing=0.16)
    for column, (key, name, form, ticks) in enumerate(panels, 1):
        text = {"texttemplate": f"%{{y:{form}}}", "textposition": "outside", "cliponaxis": False,
                "constraintext": "none", "textfont": {"size": 10}, "textangle": 0}  # fmt: skip
        values = [row[key] for row in rows]
        figure.add_trace(bars(factors, values, colors, f"costs %{{x}}: %{{y:{form}}}", **text), 1, column)
        figure.update_yaxes(title_text=name, tickformat=ticks, row=1, col=column)
    figure.update_xaxes(type="category")
    figure.update_layout(showlegend=False)
    caption = "By multiple of the assumed costs of trading and borrowing; dark: as assumed."
    return Plot("cost-sensitivity", title, figure, caption)


def cost_breakdown_plot(sheet: TearSheet) -> Plot | Absent:
    """What was paid, by kind."""
    costs, net = sheet.statistics["costs"], sheet.statistics["trades"]["pnl"]
    if not costs["total"]:
        return Absent("What trading cost", "All costs were assumed to be zero.")
    names = [name for name in statistics.COSTS if costs[name]]
    figure = empty_figure(height=280)
    text = [f" {dollars(costs[name])}, {costs[f'{name}_bps'] or 0:.1f} bps" for name in names]
    colors = [STRATEGY_COLORS[statistics.COSTS.index(name)] for name in names]
    style = {"orientation": "h", "text": text, "textposition": "outside", "cliponaxis": False}
    figure.add_trace(bars([costs[name] for name in names], names, colors, "%{y}: $%{x:,.0f}", **style))
    most = max(costs[name] for name in names)
    figure.update_xaxes(tickformat="$,.6~s", range=[0, 1.35 * most], title_text="paid over the window")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    caption = (
        f"{dollars(costs['total'])} in all, on {dollars(costs['traded_value'])} traded. The trades earned "
        f"{dollars(net + costs['total'])} before and {dollars(net)} after costs. bps are of the traded value."
    )
    return Plot("cost-breakdown", "What trading cost", figure, caption)
