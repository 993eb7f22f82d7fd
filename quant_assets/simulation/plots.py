"""Figures of the layer `simulation`. Pure matplotlib; what to show, not where.

Simulated days are blue with grey bands, real days of minute bars orange, the posterior green.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quant_assets.presentation import COLORS, new_figure
from quant_assets.simulation.intraday import (
    OPEN_MINUTE_OF_DAY,
    SESSION_MINUTES,
    SESSION_YEARS,
    IntradayDays,
    RealDays,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quant_assets.simulation.transitions import Transitions

SIMULATED, REAL, POSTERIOR, GREY = COLORS[0], COLORS[1], COLORS[2], COLORS[7]
REAL_SHADES = (COLORS[1], COLORS[4], COLORS[3])
BLOCK_MINUTES = 10  # of the profiles: short enough for the open, long enough for a quiet line
PATHS_SHOWN = 12
MOST_POINTS = 3000
BANDS = ((0.05, 0.95), (0.25, 0.75))


def fan_figure(days: IntradayDays) -> Figure:
    """Simulated mids as changes since the open: bands over all days and draws, and some days."""
    figure = new_figure(9, 4.2)
    ax = figure.subplots()
    change = 100 * (days.mid / days.mid[:, :1] - 1)
    x = np.arange(days.minutes + 1)
    _bands(ax, x, change)
    for i, row in enumerate(_spread_out(days.days, PATHS_SHOWN)):
        ax.plot(x, change[row], lw=0.7, color=SIMULATED, alpha=0.75, label="" if i else "some of the days")
    ax.axhline(0, color="black", lw=0.5)
    ax.set_ylabel("mid since the open, %", fontsize=9)
    _clock(ax, days.minutes)
    draws = len(np.unique(days.draw_id))
    ax.set_title(f"{days.days:,} simulated days under {draws:,} posterior draws", fontsize=10, loc="left")
    reach = 1.3 * max(abs(edge) for edge in ax.get_ylim())
    ax.set_ylim(-reach, reach)
    ax.legend(fontsize=8, frameon=False, loc="upper left", ncols=4)
    return figure


def day_figure(days: IntradayDays, day: int = 0, real: RealDays | None = None, real_day: int = 0) -> Figure:
    """Mid, volume and spread of one simulated day, and beside it of a real one.

    Args:
        days: simulated.
        day: row of `days`.
        real: minute bars by `real_days`; without them the simulated day stands alone.
        real_day: row of `real`.
    """
    figure = new_figure(11 if real is not None else 7.5, 6.2)
    axes = figure.subplots(
        3, 2 if real is not None else 1, sharex=True, squeeze=False, height_ratios=[1.4, 1, 1]
    )
    _day(
        axes[:, 0],
        days.mid[day],
        days.spread[day],
        days.volume_shares[day],
        SIMULATED,
        f"simulated, draw {days.draw_id[day]}, volatility {100 * np.sqrt(days.variance[day].mean()):.0f} %",
    )
    axes[1, 0].plot(
        np.arange(days.minutes) + 0.5,
        days.expected_volume_shares[day] / 1e3,
        color="black",
        lw=1,
        label="expected",
    )
    axes[1, 0].legend(fontsize=8, frameon=False, loc="upper center")
    if real is not None:
        returns = np.diff(np.log(real.mid[real_day]))
        volatility = np.sqrt(np.nansum(returns**2) / SESSION_YEARS)
        _day(
            axes[:, 1],
            real.mid[real_day],
            real.spread[real_day],
            real.volume_shares[real_day],
            REAL,
            f"real, {real.sessions[real_day]}, volatility {100 * volatility:.0f} %",
        )
        _same_scale(axes, real.mid[real_day], days.mid[day])
    for ax in axes[-1]:
        _clock(ax, days.minutes)
    return figure


def profile_figure(days: IntradayDays, real: RealDays | None = None) -> Figure:
    """Volume and spread over the session, in blocks of ten minutes: bands over simulated days, real days on top.

    The last block of real volume is without its last minute, which has the closing auction.
    """
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    blocks = days.minutes // BLOCK_MINUTES
    middle = (np.arange(blocks) + 0.5) * BLOCK_MINUTES
    _bands(left, middle, _volume_share(days.volume_shares))
    _bands(right, middle, _blocks(_spread_bps(days)))
    if real is not None:
        volume = real.volume_shares.copy()
        volume[:, -1] = np.nan
        for i, session in enumerate(real.sessions[: len(REAL_SHADES)]):
            style = {
                "color": REAL_SHADES[i],
                "lw": 1.3,
                "marker": "o",
                "ms": 2.5,
                "label": f"real, {session}",
            }
            left.plot(middle, _volume_share(volume[i : i + 1])[0], **style)
            right.plot(middle, _blocks(_spread_bps(real))[i], **style)
    left.set_ylabel("volume, % of the day", fontsize=9)
    right.set_ylabel("spread, bps, mean of the block", fontsize=9)
    for ax in (left, right):
        ax.set_ylim(bottom=0)
        _clock(ax, days.minutes)
    left.set_title(f"volume by {BLOCK_MINUTES} minutes", fontsize=10, loc="left")
    right.set_title(f"spread by {BLOCK_MINUTES} minutes", fontsize=10, loc="left")
    left.legend(fontsize=8, frameon=False, loc="upper center")
    return figure


def volatility_figure(days: IntradayDays) -> Figure:
    """Volatility through the day, and that of each day's returns against where its posterior draw began."""
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    x = np.arange(days.minutes) + 0.5
    volatility = 100 * np.sqrt(days.variance)
    _bands(left, x, volatility)
    for i, row in enumerate(_spread_out(days.days, 5)):
        left.plot(
            x, volatility[row], lw=0.7, color=SIMULATED, alpha=0.75, label="" if i else "some of the days"
        )
    start = 100 * np.sqrt(days.parameters.v0)
    left.axhline(
        float(np.median(start)), color=POSTERIOR, lw=1.5, ls="--", label="$\\sqrt{v_T}$, posterior median"
    )
    left.set_ylim(bottom=0)
    left.set_ylabel("volatility, % per year", fontsize=9)
    left.set_title("instantaneous", fontsize=10, loc="left")
    left.legend(fontsize=8, frameon=False)
    _clock(left, days.minutes)

    shown = _spread_out(days.days, MOST_POINTS)
    returns = np.diff(np.log(days.mid[shown]), axis=1)
    realized = 100 * np.sqrt((returns**2).sum(axis=1) / SESSION_YEARS)
    right.scatter(start[shown], realized, s=5, color=SIMULATED, alpha=0.35, lw=0, label="simulated days")
    limits = [0.95 * min(start.min(), realized.min()), 1.05 * max(start.max(), realized.max())]
    right.plot(limits, limits, color=POSTERIOR, lw=1.2, ls="--", label="equal")
    right.set_xlim(limits)
    right.set_ylim(limits)
    right.set_xlabel("$\\sqrt{v_T}$ of the day's draw, % per year", fontsize=9)
    right.set_ylabel("of the day's returns by the minute, % per year", fontsize=9)
    right.set_title("of whole days", fontsize=10, loc="left")
    right.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def _day(
    axes: np.ndarray, mid: np.ndarray, spread: np.ndarray, volume: np.ndarray, color: str, title: str
) -> None:
    """One day into three panels."""
    minutes = len(volume)
    x = np.arange(minutes + 1)
    axes[0].plot(x, mid, color=color, lw=0.9)
    axes[0].set_ylabel("mid, dollars", fontsize=9)
    axes[0].set_title(title, fontsize=10, loc="left")
    axes[1].bar(x[:-1] + 0.5, volume / 1e3, width=1.0, color=color, lw=0)
    axes[1].set_ylabel("volume, 1,000 shares\nper minute", fontsize=9)
    axes[2].plot(x, spread / mid * 1e4, color=color, lw=0.6)
    axes[2].set_ylabel("spread, bps", fontsize=9)
    axes[2].set_ylim(bottom=0)


def _same_scale(axes: np.ndarray, *mids: np.ndarray) -> None:
    """Both days over the same range in per cent, up to the same volume (the auctions are cut off) and spread."""
    reach = 1.1 * max(float(np.nanmax(np.abs(mid / mid[0] - 1))) for mid in mids)
    for ax, mid in zip(axes[0], mids[::-1], strict=True):
        ax.set_ylim(mid[0] * (1 - reach), mid[0] * (1 + reach))
    heights = [np.sort([bar.get_height() for bar in ax.patches]) for ax in axes[1]]
    top = 1.15 * max(float(height[-4]) for height in heights)
    for ax, height in zip(axes[1], heights, strict=True):
        ax.set_ylim(0, top)
        if (over := int((height > top).sum())) and height[-1] > 1.3 * top:
            ax.annotate(
                f"{over} beyond, up to {height[-1]:,.0f}",
                (0.98, 0.9),
                xycoords="axes fraction",
                ha="right",
                fontsize=8,
            )
    top = max(ax.get_ylim()[1] for ax in axes[2])
    for ax in axes[2]:
        ax.set_ylim(0, top)


def _bands(ax: Axes, x: np.ndarray, values: np.ndarray) -> None:
    """Median and bands over the rows."""
    for (low, high), alpha in zip(BANDS, (0.25, 0.45), strict=True):
        edges = np.nanquantile(values, [low, high], axis=0)
        label = f"simulated, {100 * (high - low):.0f} % of days"
        ax.fill_between(x, *edges, color=GREY, alpha=alpha, lw=0, label=label)
    ax.plot(x, np.nanmedian(values, axis=0), color=SIMULATED, lw=1.5, label="simulated, median")


def _spread_bps(days: IntradayDays | RealDays) -> np.ndarray:
    """At the end of each minute, shape (days, minutes)."""
    return days.spread[:, 1:] / days.mid[:, 1:] * 1e4


def _blocks(values: np.ndarray) -> np.ndarray:
    """Means of blocks of minutes, shape (days, blocks); minutes beyond the last whole block are left out."""
    blocks = values.shape[1] // BLOCK_MINUTES
    return np.nanmean(values[:, : blocks * BLOCK_MINUTES].reshape(len(values), blocks, BLOCK_MINUTES), axis=2)


def _volume_share(volume: np.ndarray) -> np.ndarray:
    """Per cent of the day's volume in each block, shape (days, blocks)."""
    mean = _blocks(volume)
    return 100 * mean / mean.sum(axis=1, keepdims=True)


def _spread_out(days: int, most: int) -> np.ndarray:
    """At most so many rows, evenly apart, so that they come from different draws."""
    return np.unique(np.linspace(0, days - 1, min(most, days)).astype(int))


def _clock(ax: Axes, minutes: int) -> None:
    """Hours of New York on an axis of minutes since the open."""
    if minutes == SESSION_MINUTES:
        at = np.array([0, 30, 90, 150, 210, 270, 330, 390])
        ax.set_xticks(
            at, [f"{(m + OPEN_MINUTE_OF_DAY) // 60}:{(m + OPEN_MINUTE_OF_DAY) % 60:02d}" for m in at]
        )
    ax.set_xlim(0, minutes)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel("New York" if minutes == SESSION_MINUTES else "minutes since the open", fontsize=9)


def transitions_figure(transitions: Transitions) -> Figure:
    """Histograms of every observation, every action and the reward of a transition buffer."""
    names = [*transitions.info.observation_names, *transitions.info.action_names, "reward"]
    columns = [
        *transitions.observations[:, 0].T,
        *transitions.actions[:, 0].T,
        transitions.rewards[:, 0],
    ]
    across = 3
    down = -(-len(names) // across)
    figure = new_figure(9, 1.7 * down)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for i, (ax, name, values) in enumerate(zip(axes, names, columns, strict=False)):
        low, high = np.quantile(values, [0.001, 0.999])
        if low == high:
            low, high = low - 0.5, high + 0.5
        kind = (
            POSTERIOR
            if i == len(names) - 1
            else SIMULATED
            if i < len(transitions.info.observation_names)
            else REAL
        )
        ax.hist(values, bins=60, range=(low, high), color=kind)
        ax.set_title(name, fontsize=8, loc="left")
        ax.set_yticks([])
        ax.tick_params(labelsize=7)
    for ax in axes[len(names) :]:
        ax.axis("off")
    return figure
