"""Figures of the layer `backtests`. Pure matplotlib; what to show, not where.

The same things, interactive: `pages/*_figures.py`. The tables behind both: `pages/sheet.py`, `pages/common_sessions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_assets.backtests import statistics
from quant_assets.backtests.pages.common_sessions import common_growth
from quant_assets.backtests.pages.sheet import (
    MONTHS,
    SweepView,
    TearSheet,
    axis_numbers,
    completed,
    heat_map_of,
    monthly_returns,
    parallel_columns,
    quoted_exit,
    thin,
)
from quant_assets.market.series import BarSeries
from quant_assets.presentation import COLORS, date_axis, new_figure
from quant_assets.strategies import YARDSTICKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WON, LOST, GREY = COLORS[2], COLORS[1], COLORS[7]
MOST_LINES = 60  # of the parallel coordinates, evenly spaced by the objective; more is only a blot
ROLLING_SESSIONS = 126
AROUND_SESSIONS = 20  # drawn before the first trade and after the last


def equity_figure(sessions: np.ndarray, curves: Mapping[str, np.ndarray]) -> Figure:
    """Equity on a logarithmic axis, and the distance from its peak below.

    Args:
        sessions: `datetime64[D]`, shape (n,).
        curves: name -> dollars (or growth of one), shape (n,); yardsticks are drawn in grey.
    """
    figure = new_figure(9, 4.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.3, 1])
    colors = iter(COLORS[:6] * (1 + len(curves) // 6))
    for name, equity in curves.items():
        yardstick = name in YARDSTICKS and len(curves) > 1
        style: dict[str, Any] = {
            "color": GREY if yardstick else next(colors),
            "lw": 1.0 if yardstick else 1.3,
        }
        if name == "flat":
            style["ls"] = ":"
        alive = np.minimum.accumulate(equity) > 0  # from ruin on there is no logarithm
        top.plot(sessions, np.where(alive, equity, np.nan), label=name, **style)
        bottom.plot(sessions, 100 * statistics.drawdown_path(equity), **{**style, "lw": 0.8})
    top.set_yscale("log")
    _plain_ticks(top)
    top.set_ylabel("equity", fontsize=9)
    bottom.set_ylabel("% below the peak", fontsize=9)
    bottom.axhline(0, color="black", lw=0.5)
    top.legend(fontsize=8, frameon=False, loc="upper left", ncols=3)
    for ax in (top, bottom):
        ax.tick_params(labelsize=8)
        ax.grid(axis="y", color="#e6e6e6", lw=0.6)
    date_axis(bottom)
    return figure


def risk_figure(sessions: np.ndarray, equity: np.ndarray, invested: np.ndarray, gross: np.ndarray) -> Figure:
    """What the returns are like: by year, their distribution, rolling Sharpe ratio and volatility, exposure, drawdowns.

    Args:
        sessions: `datetime64[D]`, shape (n,).
        equity, invested, gross: dollars, shape (n,), see `portfolio.Backtest`.
    """
    figure = new_figure(9, 6.6)
    (by_year, spread), (ratio, swing), (held, falls) = figure.subplots(3, 2)
    years, _, totals = monthly_returns(sessions, equity)
    by_year.bar([str(year) for year in years], 100 * totals, color=np.where(totals < 0, LOST, COLORS[0]))
    by_year.tick_params(axis="x", rotation=45 if len(years) > 8 else 0)
    returns = statistics.period_returns(equity)
    spread.hist(100 * returns, bins=60, color=COLORS[5])
    for value, style in (
        (statistics.value_at_risk(returns), "--"),
        (statistics.conditional_value_at_risk(returns), "-"),
    ):
        if np.isfinite(value):
            spread.axvline(100 * value, color=LOST, lw=1, ls=style)
    if returns.size > ROLLING_SESSIONS:
        windows = np.lib.stride_tricks.sliding_window_view(returns, ROLLING_SESSIONS)
        days = sessions[ROLLING_SESSIONS:]
        ratio.plot(days, [statistics.sharpe_ratio(window) for window in windows], color=COLORS[0], lw=0.9)
        swing.plot(days, [100 * statistics.volatility(window) for window in windows], color=COLORS[1], lw=0.9)
    else:
        for ax in (ratio, swing):
            ax.text(
                0.5, 0.5, f"{returns.size} returns: too few", ha="center", transform=ax.transAxes, fontsize=8
            )
    alive = np.where(equity > 0, equity, np.nan)
    held.fill_between(sessions, 100 * gross / alive, color="#9fb8c8", alpha=0.5, lw=0, label="gross")
    held.plot(sessions, 100 * invested / alive, color=COLORS[0], lw=0.7, label="net")
    held.legend(fontsize=7, frameon=False, ncols=2, loc="upper left")
    falls.plot(sessions, 100 * statistics.drawdown_path(equity), color=GREY, lw=0.7)
    for rank, fall in enumerate(statistics.drawdowns(equity, sessions), start=1):
        ends = np.datetime64(fall.end) if fall.end else sessions[-1]
        falls.axvspan(np.datetime64(fall.start), ends, color=LOST, alpha=0.10, lw=0)
        falls.annotate(
            str(rank),
            (np.datetime64(fall.valley), 100 * fall.depth),
            fontsize=8,
            ha="center",
            va="top",
            color=LOST,
        )
    for ax, title in (
        (by_year, "return of the year, %"),
        (spread, "returns of a session, %; dashed VaR, solid CVaR (95 %)"),
        (ratio, f"Sharpe ratio of {ROLLING_SESSIONS} sessions, annual"),
        (swing, f"volatility of {ROLLING_SESSIONS} sessions, annual %"),
        (held, "positions, % of equity"),
        (falls, "below the peak, %; the five deepest drawdowns"),
    ):
        ax.set_title(title, fontsize=8, loc="left")
        ax.tick_params(labelsize=7)
        ax.grid(axis="y", color="#e6e6e6", lw=0.6)
        if ax not in (by_year, spread):
            ax.axhline(0, color="black", lw=0.5)
            date_axis(ax)
    return figure


def _plain_ticks(ax: Axes) -> None:
    """Numbers as people write them on a logarithmic axis, even where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = ax.get_ylim()
    subs = {True: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), False: (1.0, 2.0, 5.0)}[high < 12 * low]
    ticks = [t for t in LogLocator(subs=subs).tick_values(low, high) if low <= t <= high]
    if len(ticks) < 3:
        ticks = np.linspace(low, high, 7)[1:-1].tolist()
    ax.set_yticks(ticks)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}")
    )


def monthly_figure(sessions: np.ndarray, equity: np.ndarray) -> Figure:
    """Return of each month and year, percent.

    Args:
        sessions: `datetime64[D]`, shape (n,).
        equity: dollars, shape (n,).
    """
    years, months, totals = monthly_returns(sessions, equity)
    figure = new_figure(9, 0.9 + 0.3 * len(years))
    left, right = figure.subplots(1, 2, width_ratios=[12, 1.2])
    for ax, table, names in ((left, 100 * months, MONTHS), (right, 100 * totals[:, None], ("year",))):
        reach = float(np.nanmax(np.abs(table), initial=0.0)) or 1.0
        _cells(ax, table, "RdBu", -reach, reach, "{:.1f}")
        ax.set_xticks(range(len(names)), names, fontsize=8)
        ax.set_yticks(
            range(len(years)), [str(year) for year in years] if ax is left else [""] * len(years), fontsize=8
        )
        ax.tick_params(length=0)
    return figure


def _cells(ax: Axes, table: np.ndarray, colors: str, low: float, high: float, form: str) -> Any:
    """A table as coloured cells with their numbers."""
    image = ax.imshow(table, aspect="auto", cmap=colors, vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            text = form.format(value)
            text = text.lstrip("-") if float(text) == 0 else text
            color = "white" if dark else "black"
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    for side in ax.spines.values():
        side.set_visible(False)
    return image


def trades_figure(bars: BarSeries, trades: pa.Table, symbol: str) -> Figure:
    """Quoted close with the entries and exits of one symbol: triangles point the way, circles are exits.

    Args:
        bars: the whole history; drawn is the part around the trades.
        trades: columns as `engine.TRADE_SCHEMA`, of any symbols.
        symbol: whose.
    """
    trades = trades.filter(pc.equal(trades["symbol"], symbol))
    entry, leave = (trades[f"{end}_session"].to_numpy().astype("datetime64[D]") for end in ("entry", "exit"))
    if trades.num_rows:
        first, last = (
            bars.position(entry.min()) - AROUND_SESSIONS,
            bars.position(leave.max()) + AROUND_SESSIONS,
        )
        bars = bars.cut(max(first, 0), min(last, len(bars)))
    splits = np.flatnonzero(bars.split_factor != 1)
    figure = new_figure(9, 4.2)
    ax = figure.subplots()
    # A gap keeps a split from looking like a crash.
    days = np.insert(bars.sessions, splits, bars.sessions[splits])
    ax.plot(
        days,
        np.insert(bars.close, splits, np.nan),
        color="#6f7f8a",
        lw=0.9,
        label=f"{symbol} close, as quoted",
    )
    for split in splits:
        ax.axvline(bars.sessions[split], color=COLORS[3], lw=0.8, ls="--")
        ax.annotate(f"{bars.split_factor[split]:g}:1", (bars.sessions[split], 0.97), xycoords=("data", "axes fraction"),
                    fontsize=8, color=COLORS[3], va="top")  # fmt: skip
    won = trades["pnl"].to_numpy() > 0
    long = np.array([side == "long" for side in trades["side"].to_pylist()], dtype=bool)
    price, out = trades["entry_price"].to_numpy(), quoted_exit(trades)
    for outcome, color, label in ((won, WON, "won"), (~won, LOST, "lost")):
        ax.plot(leave[outcome], out[outcome], "o", color=color, mfc="none", ms=5, mew=0.9)
        for side, marker in ((long, "^"), (~long, "v")):
            mask = outcome & side
            if mask.any():
                name = f"{'long' if marker == '^' else 'short'}, {label} ({mask.sum()})"
                ax.plot(entry[mask], price[mask], marker, color=color, ms=4, label=name)
    ax.set_yscale("log")
    _plain_ticks(ax)
    ax.set_ylabel("dollars", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.legend(fontsize=8, frameon=False, ncols=3)
    if not trades.num_rows:
        ax.set_title("no trade", fontsize=10, loc="left")
    date_axis(ax)
    return figure


def cost_figure(sensitivity: Sequence[Mapping[str, float | None]]) -> Figure:
    """Total return and Sharpe ratio by multiple of the assumed costs.

    Args:
        sensitivity: one per multiple: `cost_factor`, `total_return` (fraction), `sharpe` (annual; None where undefined).
    """
    rows = sorted(sensitivity, key=lambda row: row["cost_factor"] or 0.0)
    names = [f"{row['cost_factor']:g}x" for row in rows]
    colors = [COLORS[0] if row["cost_factor"] == 1 else "#a9c7da" for row in rows]
    figure = new_figure(9, 2.8)
    for ax, key, scale, form, label in zip(
        figure.subplots(1, 2),
        ("total_return", "sharpe"),
        (100, 1),
        ("%.1f", "%.2f"),
        ("total return, %", "Sharpe ratio"),
        strict=True,
    ):
        values = [np.nan if row[key] is None else scale * float(row[key] or 0.0) for row in rows]
        bars = ax.bar(names, values, color=colors)
        ax.bar_label(bars, labels=["" if np.isnan(v) else form % v for v in values], fontsize=8, padding=2)
        ax.axhline(0, color="black", lw=0.5)
        ax.margins(y=0.15)
        ax.set_ylabel(label, fontsize=9)
        ax.set_xlabel("costs, multiple of what was assumed", fontsize=9)
        ax.tick_params(labelsize=8)
    return figure


def heat_map_figure(sweep: SweepView) -> Figure:
    """The objective over the two parameters in `heat_map`, the best over all others; the chosen cell is framed.

    Few points among many possible values (a random search) are drawn as points.

    Raises:
        ValueError: `heat_map` does not name two parameters.
    """
    from matplotlib.patches import Rectangle

    if len(sweep.heat_map) != 2:
        raise ValueError(f"a heat map needs two parameters, got {', '.join(sweep.heat_map) or 'none'}")
    trials = completed(sweep)
    if not trials.num_rows:
        figure = new_figure(8, 2)
        _nothing(figure.subplots(), "no trial ended with a number")
        return figure
    grid = heat_map_of(sweep)
    figure = new_figure(9, float(np.clip(1.4 + 0.32 * len(grid.y), 2.6, 6)))
    ax = figure.subplots()
    if grid.sparse:
        x, y = (axis_numbers(trials, name) for name in sweep.heat_map)
        color = np.array(trials[sweep.objective].to_pylist(), dtype=float)
        image: Any = ax.scatter(x.values, y.values, c=color, cmap="cividis", s=22)
        if grid.chosen:
            ax.plot(
                x.values[_row(trials, sweep)],
                y.values[_row(trials, sweep)],
                "o",
                mfc="none",
                mec=LOST,
                ms=12,
                mew=2.2,
            )
        for axis, numbers in ((ax.xaxis, x), (ax.yaxis, y)):
            if numbers.names:
                axis.set_ticks(range(len(numbers.names)), numbers.names)
    else:
        written = len(grid.x) <= 20 and len(grid.y) <= 25
        low, high = float(np.nanmin(grid.z)), float(np.nanmax(grid.z))
        if written:
            image = _cells(ax, grid.z, "cividis", low, high, "{:.2f}")
        else:
            image = ax.imshow(grid.z, aspect="auto", cmap="cividis", vmin=low, vmax=high)
        ax.invert_yaxis()
        for axis, values in ((ax.xaxis, grid.x), (ax.yaxis, grid.y)):
            step = -(-len(values) // 25)
            axis.set_ticks(range(0, len(values), step), [_short(v) for v in values[::step]])
        if grid.chosen:
            column, row = grid.chosen
            frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=LOST, lw=2.6, clip_on=False)
            ax.add_patch(frame)
    ax.set_xlabel(sweep.heat_map[0], fontsize=9)
    ax.set_ylabel(sweep.heat_map[1], fontsize=9)
    ax.tick_params(labelsize=8)
    figure.colorbar(image, ax=ax, label=sweep.objective)
    return figure


def _row(trials: pa.Table, sweep: SweepView) -> int:
    """The best trial that has the chosen values of the heat map's parameters."""
    columns = [trials[name].to_pylist() for name in sweep.heat_map]
    return list(zip(*columns, strict=True)).index(tuple(sweep.chosen[name] for name in sweep.heat_map))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _nothing(ax: Axes, why: str) -> None:
    """Say why there is no plot."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, why, ha="center", va="center", fontsize=10, color="#555555")


def parallel_figure(sweep: SweepView) -> Figure:
    """Every trial as a line through its parameters and statistics, coloured by the objective; the chosen one is thick."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    every = completed(sweep)
    figure = new_figure(9, 3.2)
    ax = figure.subplots()
    if every.num_rows < 2:
        _nothing(ax, f"{every.num_rows} complete trial: nothing to compare it with")
        return figure
    trials = thin(every, MOST_LINES)
    names = [name for name in parallel_columns(sweep) if name in trials.column_names]
    axes = [axis_numbers(trials, name) for name in names]
    low = np.array([np.nanmin(a.values) for a in axes])
    span = np.array([np.ptp(a.values) for a in axes])
    heights = np.stack([a.values for a in axes], axis=1) - low
    heights = np.divide(heights, span, out=np.full_like(heights, 0.5), where=span > 0)
    objective = np.array(trials[sweep.objective].to_pylist(), dtype=float)
    norm = Normalize(float(objective.min()), float(objective.max()))
    across = np.arange(len(names))
    lines = np.stack([np.broadcast_to(across, heights.shape), heights], axis=2)[::-1]  # the best on top
    # Few colours and no smoothing: a third of the bytes, and thin lines stay apart.
    colors = colormaps["cividis"].resampled(8)
    shades = colors(norm(objective[::-1]))
    ax.add_collection(LineCollection(list(lines), colors=shades, lw=0.4, antialiaseds=False))
    chosen = [
        i
        for i, row in enumerate(trials.select(list(sweep.names)).to_pylist())
        if all(row[name] == sweep.chosen.get(name) for name in sweep.names)
    ]
    if chosen:
        ax.plot(across, heights[chosen[0]], color=LOST, lw=2, label="chosen")
        ax.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    for i, (numbers, least, width) in enumerate(zip(axes, low, span, strict=True)):
        ax.axvline(i, color="#888888", lw=0.7)
        ends = ((0.0, least), (1.0, least + width))
        marks = (
            [((k - least) / (width or 1), text) for k, text in enumerate(numbers.names)]
            if numbers.names
            else [(at, f"{value:.3g}") for at, value in ends]
        )
        for at, text in marks:
            ax.annotate(text, (i, at), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center",
                        bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5})  # fmt: skip
    ax.set_xlim(-0.1, len(names) - 0.6)
    ax.set_ylim(-0.05, 1.05)
    ax.set_xticks(across, names, fontsize=8)
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    figure.colorbar(ScalarMappable(norm, colors), ax=ax, label=sweep.objective)
    return figure


def comparison_figure(sheets: Sequence[TearSheet]) -> Figure:
    """Growth of one dollar of all strategies and yardsticks on the sessions that all of them have."""
    sessions, growth = common_growth(sheets)
    if sessions.size < 2:
        figure = new_figure(9, 2)
        _nothing(figure.subplots(), f"the strategies have {sessions.size} sessions in common")
        return figure
    figure = equity_figure(sessions, growth)
    figure.axes[0].set_ylabel("growth of one dollar", fontsize=9)
    return figure


def ablation_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """AUC of each rung of inputs, and what it adds to the rung before, with 95 % intervals.

    Args:
        rows: columns as `backtests.tables.SENTIMENT_ABLATION`.
    """
    auc = [row for row in rows if row["measure"] == "auc"]
    rungs = list(dict.fromkeys(row["rung"] for row in auc))
    figure = new_figure(9.6, 1.4 + 0.55 * len(rungs))
    panels = figure.subplots(1, 2, sharey=True)
    for ax, key, prefix, middle, title in (
        (panels[0], "value", "", 0.5, "AUC"),
        (panels[1], "step", "step_", 0.0, "AUC less that of the rung before"),
    ):
        for color, side, offset in ((COLORS[0], "long", -0.13), (COLORS[1], "short", 0.13)):
            shown = [row for row in auc if row["side"] == side and row[f"{prefix}low"] is not None]
            values = np.array([row[key] for row in shown], dtype=float)
            reach = [
                values - np.array([row[f"{prefix}low"] for row in shown], dtype=float),
                np.array([row[f"{prefix}high"] for row in shown], dtype=float) - values,
            ]
            at = [rungs.index(row["rung"]) + offset for row in shown]
            # A percentile interval need not hold the estimate; a bar cannot be drawn backwards.
            ax.errorbar(
                values,
                at,
                xerr=np.maximum(reach, 0.0),
                color=color,
                fmt="o",
                ms=5,
                lw=1.2,
                capsize=3,
                label=side,
            )
        ax.axvline(middle, color="black", lw=0.6)
        ax.set_title(title, fontsize=10, loc="left")
        ax.tick_params(labelsize=8)
    panels[0].set_yticks(range(len(rungs)), rungs)
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0.0, -0.12))
    return figure
