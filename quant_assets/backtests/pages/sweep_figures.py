"""Interactive figures of what a sweep of parameters found: heat map, all trials, walk-forward. Pure.

Belongs here: figures from a `SweepView`. Does not belong here: the tables behind them (`sheet.py`) and searching (`sweep.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from quant_assets.backtests.pages.figures import (
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    Absent,
    Plot,
    curve,
    days,
    empty_figure,
    equity_axes,
    label,
    points,
    positive,
    small,
)
from quant_assets.backtests.pages.sheet import (
    HeatMap,
    SweepView,
    TearSheet,
    axis_numbers,
    completed,
    floats,
    heat_map_of,
    parallel_columns,
    thin,
    value_order,
)

MOST_TRIALS = 5000  # of the parallel coordinates
RING = {"symbol": "circle-open", "size": 17, "color": VERMILLION, "line": {"width": 3}}  # the chosen set


def heat_map_plot(sweep: SweepView) -> Plot | Absent:
    """The objective over one or two parameters, the best over all others: a line, cells, or points where few are known."""
    title = "Heat map of the sweep"
    if not sweep.heat_map:
        return Absent(title, "The search space names no parameter for it.")
    trials = completed(sweep)
    if not trials.num_rows:
        return Absent(title, "No trial ended with a number.")
    others = [name for name in sweep.names if name not in sweep.heat_map]
    caption = f"In sample; the best over {', '.join(others)}." if others else "In sample, one trial each."
    if len(sweep.heat_map) == 1:
        figure = _best_by_value(sweep, trials)
    else:
        grid = heat_map_of(sweep)
        figure = _trial_points(sweep, trials, grid) if grid.sparse else _cells(sweep, grid)
        across, up = sweep.heat_map
        figure.update_xaxes(title_text=label(across), showgrid=False)
        figure.update_yaxes(title_text=label(up), showgrid=False)
        marked = " Marked in vermillion: the chosen set."
        caption += marked if grid.chosen else " The chosen set is not among the trials."
    return Plot("heat-map", f"{sweep.objective} by {' and '.join(sweep.heat_map)}", figure, caption)


def _best_by_value(sweep: SweepView, trials: pa.Table) -> go.Figure:
    """The best objective for each value of the only parameter."""
    (name,) = sweep.heat_map
    best: dict[Any, float] = {}
    for value, number in zip(trials[name].to_pylist(), floats(trials, sweep.objective).tolist(), strict=True):
        best.setdefault(value, number)
    values = sorted(best, key=value_order)
    figure = empty_figure(height=320)
    form = f"{label(name)} %{{x}}: %{{y:.3f}}<extra></extra>"
    style = {"mode": "lines+markers", "line": {"color": BLUE, "width": 1.3}, "marker": {"color": BLUE}}
    figure.add_trace(points(_ticks(values), small([best[v] for v in values]), "best", form, **style))
    if (picked := sweep.chosen.get(name)) in best:
        figure.add_trace(points(_ticks([picked]), small([best[picked]]), "chosen", form, marker=RING))
    figure.update_xaxes(title_text=label(name))
    figure.update_yaxes(title_text=label(sweep.objective))
    return figure


def _trial_points(sweep: SweepView, trials: pa.Table, grid: HeatMap) -> go.Figure:
    """Every trial as a point between two parameters."""
    figure = empty_figure(height=420)
    color = small(floats(trials, sweep.objective))
    marker = {**_color_bar(sweep), "color": color, "size": 8, "showscale": True}
    x, y = (_ticks(trials[name].to_pylist()) for name in sweep.heat_map)
    form = _pointed_at(sweep, "%{marker.color:.3f}")
    figure.add_trace(points(x, y, None, form, marker=marker, showlegend=False))
    if grid.chosen:
        x, y = (_ticks([sweep.chosen[name]]) for name in sweep.heat_map)
        figure.add_trace(points(x, y, "chosen", None, marker=RING))
    return figure


def _cells(sweep: SweepView, grid: HeatMap) -> go.Figure:
    """The objective over two parameters as coloured cells, the chosen one framed."""
    figure = empty_figure(height=int(np.clip(110 + 30 * len(grid.y), 240, 560)))
    figure.add_trace(
        go.Heatmap(
            x=[label(v) for v in grid.x],
            y=[label(v) for v in grid.y],
            z=np.round(grid.z, 4),
            xgap=1,
            ygap=1,
            hoverongaps=False,
            texttemplate="%{z:.2f}" if len(grid.x) <= 20 and len(grid.y) <= 25 else None,
            textfont={"size": 11},
            hovertemplate=_pointed_at(sweep, "%{z:.3f}"),
            **_color_bar(sweep),
        )
    )
    figure.update_xaxes(type="category", ticks="")
    figure.update_yaxes(type="category", ticks="")
    if grid.chosen:
        x, y = grid.chosen
        box = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
        figure.add_shape(type="rect", **box, line={"color": VERMILLION, "width": 3.5})
    return figure


def _color_bar(sweep: SweepView) -> dict[str, Any]:
    """Colours of the objective, explained at the right."""
    title = {"text": label(sweep.objective), "side": "right"}
    return {"colorscale": "Cividis", "colorbar": {"title": title, "thickness": 14, "outlinewidth": 0}}


def _pointed_at(sweep: SweepView, value: str) -> str:
    """What the pointer shows of a set of parameters."""
    across, up = map(label, sweep.heat_map)
    return f"{across} %{{x}}, {up} %{{y}}: {value}<extra></extra>"


def _ticks(values: Sequence[Any]) -> list[Any]:
    """Values of a parameter as an axis takes them: numbers as they are, all else as text."""
    return [v if isinstance(v, int | float) and not isinstance(v, bool) else label(v) for v in values]


def parallel_plot(sweep: SweepView) -> Plot | Absent:
    """Every trial as a line through its parameters and statistics."""
    every = completed(sweep)
    if every.num_rows < 2:
        return Absent("All trials", f"{every.num_rows} complete trial: nothing to compare it with.")
    trials = thin(every, MOST_TRIALS)
    names = [name for name in parallel_columns(sweep) if name in trials.column_names]
    figure = empty_figure(height=400)
    figure.add_trace(
        go.Parcoords(
            dimensions=[_dimension(trials, name) for name in names],
            line={
                "color": small(floats(trials, sweep.objective)),
                "colorscale": "Cividis",
                "showscale": True,
                "colorbar": {"title": {"text": label(sweep.objective), "side": "right"}, "thickness": 14},
            },
            labelfont={"size": 12},
            tickfont={"size": 11},
            # The ends of an axis, which its ticks show already.
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
        )
    )
    figure.update_layout(margin={"l": 70, "r": 40, "t": 50, "b": 20})
    caption = f"{every.num_rows:,} complete trials, in sample. Drag along an axis to keep a range; drag a name to move its axis."
    if trials.num_rows < every.num_rows:
        caption += f" {trials.num_rows:,} of them are drawn, evenly spaced by {sweep.objective}."
    if failed := sweep.trials.num_rows - every.num_rows:
        caption += f" {failed:,} trials failed or have no {sweep.objective} and are not shown."
    return Plot("parallel", "All trials", figure, caption)


def _dimension(trials: pa.Table, name: str) -> dict[str, Any]:
    """One axis of the parallel coordinates."""
    numbers = axis_numbers(trials, name)
    dimension = {"label": label(name), "values": small(numbers.values)}
    if numbers.names:
        words = [label(word) for word in numbers.names]
        return {**dimension, "tickvals": list(range(len(words))), "ticktext": words}
    percent = name in ("volatility", "max_drawdown", "total_return")
    return {**dimension, "tickformat": ".0%" if percent else ""}


def walk_forward_plot(sheet: TearSheet, sweep: SweepView) -> Plot | Absent:
    """Growth over the test windows of all folds, beside the strategy as on its page and buy_and_hold."""
    if not sweep.walk_forward or sweep.walk_forward_equity is None or sweep.walk_forward_sessions is None:
        return Absent("Walk-forward", "No walk-forward was run with this sweep.")
    sessions = sweep.walk_forward_sessions
    growth = sweep.walk_forward_equity / sweep.walk_forward_equity[0]
    figure = empty_figure(height=340)
    figure.add_trace(curve(days(sessions), positive(growth), "walk-forward", GREEN, "%{y:.3f}", 1.9))
    inside = np.isin(sheet.sessions, sessions)
    for name, values, color in (
        (f"{sheet.strategy} as on this page", sheet.equity, BLUE),
        ("buy_and_hold", sheet.yardsticks.get("buy_and_hold"), GREY),
    ):
        if values is not None and inside.sum() > 1:
            part = values[inside]
            # Joined to the walk-forward on the first session that both have.
            level = growth[np.searchsorted(sessions, sheet.sessions[inside][0])] / part[0]
            x = days(sheet.sessions[inside])
            figure.add_trace(curve(x, positive(part * level), name, color, "%{y:.3f}", 1.1))
    for fold in sweep.walk_forward:
        line = {"color": "#cccccc", "width": 1, "dash": "dot"}
        figure.add_vline(x=str(fold["test_first"]), line=line, layer="below")
    equity_axes(figure, "growth of one dollar", ".2~f", below=False)
    caption = (
        "Only test windows; dotted lines start a fold. Parameters of a fold were chosen on its training window alone. The other "
        "curves start where the page's window does."
    )
    return Plot("walk-forward", "Walk-forward: chosen again before every fold", figure, caption)
