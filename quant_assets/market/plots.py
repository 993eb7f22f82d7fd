"""Figures of the layer `market`. Pure matplotlib; what to show, not where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from quant_assets.market.adjustment import adjust_bars
from quant_assets.presentation import COLORS, date_axis, first_symbols, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SYMBOLS = 6
MOST_ROWS = 30


def price_figure(bars: pa.Table) -> Figure:
    """Raw and adjusted close of the first symbols, with splits and dividends marked; log scale."""
    adjusted = adjust_bars(first_symbols(bars, MOST_SYMBOLS)).to_pandas()
    symbols = sorted(adjusted["symbol"].unique())[:MOST_SYMBOLS]
    columns = 2 if len(symbols) > 1 else 1
    rows = -(-len(symbols) // columns)
    figure = new_figure(11, 2.4 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for ax, symbol in zip(axes, symbols, strict=False):
        part = adjusted[adjusted["symbol"] == symbol]
        day = part["session"].to_numpy(dtype="datetime64[D]")
        ax.plot(day, part["close"], color=COLORS[7], lw=0.8, label="raw close")
        ax.plot(day, part["adj_close"], color=COLORS[0], lw=1.0, label="adjusted from the first session")
        splits = part[part["split_factor"] != 1]
        for split_day, factor in zip(splits["session"], splits["split_factor"], strict=True):
            ax.axvline(np.datetime64(split_day), color=COLORS[1], lw=0.8, ls="--")
            ax.annotate(f"{factor:g}:1", (np.datetime64(split_day), 0.97), xycoords=("data", "axes fraction"),
                        fontsize=8, color=COLORS[1], va="top")  # fmt: skip
        paid = part[part["dividend"] > 0]
        ax.plot(paid["session"].to_numpy(dtype="datetime64[D]"), paid["close"], "|", color=COLORS[2], ms=5,
                label="dividend")  # fmt: skip
        ax.set_yscale("log")
        ax.set_title(f"{symbol}: {len(part):,} sessions", fontsize=10, loc="left")
        ax.set_ylabel("dollars", fontsize=8)
        ax.tick_params(labelsize=8)
        date_axis(ax)
        ax.minorticks_off()
        ticks = [
            t
            for t in (5, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 1000, 2000)
            if ax.get_ylim()[0] <= t <= ax.get_ylim()[1]
        ]
        if len(ticks) > 1:
            ax.set_yticks(ticks, [str(t) for t in ticks])
    for ax in axes[len(symbols) :]:
        ax.set_axis_off()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower right", fontsize=8, frameon=False)
    return figure


def coverage_figure(bars: pa.Table, expected: dict[str, int]) -> Figure:
    """Share of the sessions of each month (or year, for long ranges) on which each symbol has a bar.

    Args:
        bars: columns symbol, session.
        expected: sessions of the exchange by month, `YYYY-MM`.
    """
    frame = first_symbols(bars.select(["symbol", "session"]), MOST_ROWS).to_pandas()
    by_year = len(expected) > 36
    frame["period"] = frame["session"].astype(str).str.slice(0, 4 if by_year else 7)
    periods: dict[str, int] = {}
    for month, count in expected.items():
        periods[month[:4] if by_year else month] = periods.get(month[:4] if by_year else month, 0) + count
    counts = frame.pivot_table(
        index="symbol", columns="period", values="session", aggfunc="count", fill_value=0
    )
    counts = counts.reindex(columns=list(periods), fill_value=0)
    share = 100 * counts.to_numpy() / np.array(list(periods.values()))
    figure = new_figure(max(6, 0.55 * len(periods) + 2), 0.38 * len(counts) + 1.6)
    ax = figure.subplots()
    image = ax.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share):
        ax.text(
            j,
            i,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value < 60 else "black",
        )
    ax.set_yticks(range(len(counts)), counts.index, fontsize=8)
    ax.set_xticks(range(len(periods)), list(periods), fontsize=8, rotation=0 if by_year else 60)
    figure.colorbar(image, ax=ax, label="% of sessions with a bar")
    ax.set_title("Coverage", fontsize=10, loc="left")
    return figure


def news_figure(news: pa.Table) -> Figure:
    """Articles per month (or session) and the distribution of scores, by symbol."""
    frame = first_symbols(news.select(["symbol", "session", "sentiment_score"]), MOST_SYMBOLS).to_pandas()
    figure = new_figure(11, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    sessions = frame["session"].nunique()
    frame["period"] = frame["session"].astype(str).str.slice(0, 7 if sessions > 60 else 10)
    symbols = sorted(frame["symbol"].unique())[:MOST_SYMBOLS]
    for color, symbol in zip(COLORS, symbols, strict=False):
        part = frame[frame["symbol"] == symbol]
        counts = part.groupby("period").size()
        left.plot(np.array(list(counts.index), dtype="datetime64"), counts.to_numpy(), color=color, lw=1, label=symbol,
                  marker="o" if len(counts) < 3 else None)  # fmt: skip
        right.hist(
            part["sentiment_score"], bins=np.linspace(-1, 1, 41), histtype="step", color=color, density=True
        )
    left.set_ylabel("articles per " + ("month" if sessions > 60 else "session"), fontsize=9)
    left.legend(fontsize=8, ncols=3, frameon=False)
    date_axis(left)
    if sessions <= 5:
        left.set_xticks(np.array(sorted(frame["period"].unique()), dtype="datetime64[D]"))
    right.set_xlabel("entity sentiment score", fontsize=9)
    right.set_ylabel("density", fontsize=9)
    return figure


def spread_figure(minute_bars: pa.Table) -> Figure:
    """Quoted spread in basis points and volume over the trading day, averaged over sessions."""
    frame = minute_bars.to_pandas()
    local = frame["ts"].dt.tz_convert("America/New_York")
    frame["minute"] = local.dt.hour * 60 + local.dt.minute
    frame["spread_bps"] = 1e4 * (frame["ask"] - frame["bid"]) / ((frame["ask"] + frame["bid"]) / 2)
    by_minute = frame.groupby("minute")[["spread_bps", "volume"]].mean()
    figure = new_figure(11, 3.4)
    left, right = figure.subplots(1, 2)
    hours = by_minute.index.to_numpy() / 60
    left.plot(hours, by_minute["spread_bps"], color=COLORS[0], lw=1)
    left.set_ylabel("quoted spread, bps", fontsize=9)
    right.bar(hours, by_minute["volume"], width=1 / 60, color=COLORS[2])
    right.set_ylabel("volume, shares per minute", fontsize=9)
    for ax in (left, right):
        ax.set_xlabel("hour, New York", fontsize=9)
    return figure
