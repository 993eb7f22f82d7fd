"""Interactive figures that compare strategies: growth, return against drawdown, correlation, Sharpe ratios, rungs of inputs. Pure.

Belongs here: figures of more than one strategy. Does not belong here: what they have in common (`common_sessions.py`) and the
page (`comparison.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quant_assets.backtests import statistics
from quant_assets.backtests.pages.common_sessions import Common, correlations
from quant_assets.backtests.pages.figures import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    STRATEGY_COLORS,
    Absent,
    Plot,
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
from quant_assets.backtests.pages.sheet import TearSheet


def _line_style(common: Common, name: str) -> dict[str, Any]:
    """Colour and dash of a line: strategies in colours, yardsticks in grey."""
    strategies = [line.name for line in common.lines if not line.yardstick]
    if name in strategies:
        at = strategies.index(name)
        dash = ("solid", "dash", "dot")[at // len(STRATEGY_COLORS) % 3]
        return {"color": STRATEGY_COLORS[at % len(STRATEGY_COLORS)], "dash": dash, "width": 1.7}
    return {"color": GREY, "dash": "dot" if name == "flat" else "solid", "width": 1.4}


def growth_plot(common: Common) -> Plot:
    """Growth of one dollar, the distance from its peak below."""
    figure = empty_figure(2, 1, 600, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.05)
    x = days(common.sessions)
    for line in common.lines:
        style = {**_line_style(common, line.name), "legendgroup": line.name}
        name = line.name + (" (yardstick)" if line.yardstick else "")
        path = statistics.drawdown_path(line.growth)
        figure.add_trace(
            curve(x, positive(line.growth), name, form="%{y:.3f}", showlegend=True, **style), 1, 1
        )
        figure.add_trace(curve(x, path, name, form="%{y:.1%}", showlegend=False, **style), 2, 1)
    figure.update_layout(margin_t=48)
    equity_axes(figure, "growth of one dollar", ".2~f")
    title = "Growth of one dollar, and distance from the peak"
    return Plot("equity", title, figure, "Net of costs. Grey: yardsticks.")


def scatter_plot(common: Common) -> Plot:
    """Annual growth against the deepest drawdown."""
    figure = empty_figure(height=380)
    deepest = 0.0
    for line in common.lines:
        down, up = line.summary["drawdown"]["maximum"], line.summary["returns"]["cagr"]
        deepest = min(deepest, down)
        style = {
            "mode": "markers+text",
            "text": [label(line.name)],
            "textposition": "top center",
            "marker": {
                "size": 12,
                "color": _line_style(common, line.name)["color"],
                "symbol": "diamond-open" if line.yardstick else "circle",
                "line": {"width": 2},
            },
        }
        form = "%{text}<br>max drawdown %{x:.1%}, CAGR %{y:.1%}<extra></extra>"
        figure.add_trace(points([down], [up], line.name, form, **style))
    figure.update_xaxes(tickformat=".0%", title_text="maximum drawdown", range=[1.22 * deepest - 0.02, 0.06])
    figure.update_yaxes(tickformat=".0%", title_text="CAGR", showgrid=True)
    figure.update_layout(showlegend=False)
    caption = "Up and to the right is better. Diamonds: yardsticks."
    return Plot("scatter", "Return against drawdown", figure, caption)


def correlation_plot(common: Common) -> Plot | Absent:
    """Correlation of daily returns of every two strategies."""
    title = "Correlation of daily returns"
    names, numbers = correlations(common)
    if len(names) < 2:
        return Absent(title, "Fewer than two of the curves vary.")
    figure = empty_figure(height=380)
    x = [label(name) for name in names]
    form = "%{y}, %{x}: %{z:.3f}"
    figure.add_trace(signed_cells(x, x, np.round(numbers, 4), 1, form, texttemplate="%{z:.2f}"))
    figure.update_xaxes(type="category", showline=False, ticks="", automargin=True)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="")
    caption = "Of simple returns, close to close."
    if still := [line.name for line in common.lines if line.name not in names]:
        caption = f"Without {', '.join(still)}, whose return never changes."
    return Plot("correlation", title, figure, caption)


def sharpe_plot(sheets: Sequence[TearSheet]) -> Plot | Absent:
    """Sharpe ratios with their intervals, in sample and out of sample, each on its own windows."""
    title = "Sharpe ratio in and out of sample"
    shown = [sheet for sheet in sheets if sheet.statistics["returns"]["sharpe"] is not None]
    if not shown:
        return Absent(title, "No strategy has one: nothing was earned or lost.")
    figure = empty_figure(height=100 + 56 * len(shown))
    inside, outside = [sheet.in_sample for sheet in shown], [sheet.statistics for sheet in shown]
    for name, summaries, color, symbol, offset in (
        ("in sample", inside, ORANGE, "circle-open", -0.14),
        ("out of sample", outside, BLUE, "circle", 0.14),
    ):
        found = [(i, summary["returns"]) for i, summary in enumerate(summaries) if summary is not None]
        rows = [(i, returns, returns["sharpe"]) for i, returns in found if returns["sharpe"] is not None]
        if not rows:
            continue
        style = {
            "text": [label(shown[i].strategy) for i, *_ in rows],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [(returns["sharpe_high"] or sharpe) - sharpe for _, returns, sharpe in rows],
                "arrayminus": [sharpe - (returns["sharpe_low"] or sharpe) for _, returns, sharpe in rows],
                "thickness": 1.6,
                "width": 5,
            },
            "marker": {"color": color, "size": 10, "symbol": symbol, "line": {"width": 2, "color": color}},
        }
        form = f"%{{text}}, {name}: %{{x:.2f}}<extra></extra>"
        x, y = small([sharpe for *_, sharpe in rows]), [i + offset for i, *_ in rows]
        figure.add_trace(points(x, y, name, form, **style))
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    figure.update_xaxes(title_text="annual Sharpe ratio, 95% interval", showgrid=True)
    figure.update_yaxes(
        range=[len(shown) - 0.5, -0.5],
        tickvals=list(range(len(shown))),
        ticktext=[label(sheet.strategy) for sheet in shown],
        showgrid=False,
        zeroline=False,
    )
    caption = (
        "Each on its own windows. Where parameters were chosen in sample, the in-sample number flatters."
    )
    return Plot("sharpe", title, figure, caption)


def ablation_plot(rows: Sequence[Mapping[str, Any]]) -> Plot | Absent:
    """AUC of each rung of inputs less that of technical inputs alone and less the rung before, with paired intervals."""
    title = "What each rung adds to the AUC"
    steps = [
        row for row in rows if row["measure"] == "auc" and row["position"] and row["gain_low"] is not None
    ]
    if not steps:
        return Absent(title, "The AUC is undefined: only one class occurs out of sample.")
    rungs = list(dict.fromkeys(row["rung"] for row in steps))
    titles = ("less the rung before", "less technical")
    figure = empty_figure(1, 2, 110 + 70 * len(rungs), shared_yaxes=True, subplot_titles=titles)
    for column, key in enumerate(("step", "gain"), 1):
        for side, color, offset in (("long", BLUE, -0.13), ("short", ORANGE, 0.13)):
            mine = [row for row in steps if row["side"] == side]
            values = [row[key] for row in mine]
            style = {
                "text": [label(row["rung"]) for row in mine],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    # A percentile interval need not hold the estimate; a bar cannot be drawn backwards.
                    "array": [max(row[f"{key}_high"] - row[key], 0.0) for row in mine],
                    "arrayminus": [max(row[key] - row[f"{key}_low"], 0.0) for row in mine],
                    "thickness": 1.6,
                    "width": 5,
                },
                "marker": {"color": color, "size": 9},
                "legendgroup": side,
                "showlegend": column == 1,
            }
            y = [rungs.index(row["rung"]) + offset for row in mine]
            form = f"%{{text}}, {side}: %{{x:+.4f}}<extra></extra>"
            figure.add_trace(points(small(values), y, side, form, **style), 1, column)
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
    figure.update_xaxes(title_text="difference in AUC, paired 95% interval", showgrid=True)
    figure.update_yaxes(
        range=[len(rungs) - 0.5, -0.5],
        tickvals=list(range(len(rungs))),
        ticktext=[label(rung) for rung in rungs],
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(margin_t=70, legend_y=1.12)
    return Plot("ablation", title, figure, "Right of the line: better. Mean over the seeds.")
