"""Days as the environments take them, and which of them an agent may see. Pure.

Belongs here: the step from simulated and real days to the arrays of `quant_assets/environments`, and the split of days. Does
not belong here: how a day is simulated (`intraday.py`), and what an agent does on it.

The split is by position: days of one draw stand together and draws are spread evenly over the chains, so every tenth draw is a
sample of the posterior. Of every ten, one stands for reality where there is none (`real`), four are imagination's
(`imagined`), one judges policies while they train (`validation`), one compares challenger and champion (`gate`), and three
are seen by backtests alone (`unseen`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from quant_assets.environments.execution import ExecutionMarket
from quant_assets.environments.market_making import MarketMakingMarket
from quant_assets.posterior.priors import DT_YEARS, HestonParameters
from quant_assets.simulation.intraday import IntradayDays, IntradayModel, RealDays, expected_variance
from quant_assets.simulation.transitions import PathInfo

SPLIT: Mapping[str, tuple[int, ...]] = {
    "real": (0,),
    "imagined": (1, 2, 3, 4),
    "validation": (5,),
    "gate": (6,),
    "unseen": (7, 8, 9),
}
PARTS = 10
MARKET_MAKING_MID0 = 100.0  # dollars; depths and penalties of one agent mean the same for every share
EARLIER_SESSIONS = 5  # real sessions that a profile and a volatility need before the first order
LEAST_PROFILE = 0.01  # of the mean minute: what a minute without any trade so far is expected to have


class MarketError(ValueError):
    """Days that no market can be made of. Names the thing and the way out."""


def part_of(days: IntradayDays, part: str) -> IntradayDays:
    """The days of one part of the split, in order.

    Raises:
        MarketError: there is no such part, or too few draws to fill it.
    """
    if part not in SPLIT:
        raise MarketError(f"part = {part!r}: it is one of {', '.join(SPLIT)}")
    # Position of each day's draw among the draws; several days of a draw stay on one side.
    draw = np.cumsum(np.concatenate([[0], np.diff(days.draw_id) != 0]))
    rows = np.flatnonzero(np.isin(draw % PARTS, SPLIT[part]))
    if not len(rows):
        raise MarketError(
            f"{days.days} days under {int(draw[-1]) + 1} draws leave none for {part}: simulate at least {PARTS} draws "
            "(draws of simulation/intraday_paths)"
        )
    return take_days(days, rows)


def take_days(days: IntradayDays, rows: np.ndarray) -> IntradayDays:
    """Some days."""
    *columns, parameters = days
    some = HestonParameters(*(value[rows] for value in parameters))
    return IntradayDays._make([*(column[rows] for column in columns), some])


def days_identity(days: IntradayDays, about: PathInfo) -> str:
    """What makes these days these days, for lineage: posterior, seed, and a digest of their draws and prices."""
    digest = hashlib.blake2b(np.ascontiguousarray(days.draw_id).tobytes(), digest_size=12)
    digest.update(np.ascontiguousarray(days.mid).tobytes())
    of = about.posterior
    return f"posterior snapshot {of['snapshot']} of {of['session']}, seed {about.seed}, days {digest.hexdigest()}"


def execution_market(days: IntradayDays, model: IntradayModel) -> ExecutionMarket:
    """Simulated days as a market to sell an order in.

    The volatility known before the day is that of the day's own draw at the open: an agent knows today's variance, as
    filtered from the past, and not what the day makes of it.
    """
    return ExecutionMarket(
        mid=days.mid,
        spread=days.spread,
        volume_shares=days.volume_shares.astype(np.float64),
        expected_volume_shares=days.expected_volume_shares,
        daily_volatility=np.sqrt(np.maximum(expected_variance(model, days.parameters), 1e-6) * DT_YEARS),
        draw_id=days.draw_id.astype(np.int64),
    )


def real_execution_market(
    days: RealDays, profile: Sequence[float] | np.ndarray, volatility: float
) -> ExecutionMarket:
    """Real sessions as a market to sell an order in. Instants without a quote have the last one's, minutes without a price too.

    Args:
        days: sessions of minute bars.
        profile: shares expected in each minute, known before the sessions, shape (minutes,).
        volatility: per year, known before the sessions.

    Raises:
        MarketError: a session has no quote at all.
    """
    mid, spread = _carried(days.mid), _carried(days.spread)
    # The open has no quote: the first one stands in; it is the spread alone that this lets know a minute early.
    spread = np.where(np.isnan(spread), _first(spread), spread)
    if np.isnan(mid).any() or np.isnan(spread).any():
        at = int(np.argmax(np.isnan(spread).any(axis=1) | np.isnan(mid).any(axis=1)))
        raise MarketError(
            f"session {days.sessions[at]} has no price or no quote at all: minute bars need bid and ask for a spread"
        )
    sessions, minutes = days.volume_shares.shape
    return ExecutionMarket(
        mid=mid,
        spread=np.maximum(spread, 0),
        volume_shares=days.volume_shares,
        expected_volume_shares=np.broadcast_to(np.asarray(profile, np.float64), (sessions, minutes)),
        daily_volatility=np.full(sessions, volatility * np.sqrt(DT_YEARS)),
        draw_id=np.arange(sessions),
    )


def quoted_sessions(days: RealDays) -> tuple[RealDays, np.ndarray]:
    """Real sessions that an order can be sold in, and those that have no quote or no price at all.

    Returns:
        The days that are left, and the sessions that are not, `datetime64[D]`.
    """
    quoted = ~np.isnan(days.spread).all(axis=1) & ~np.isnan(days.mid).all(axis=1)
    return RealDays(*(values[quoted] for values in days)), days.sessions[~quoted]


def real_sessions(
    days: RealDays, newest: int | None = None, earlier: int = EARLIER_SESSIONS
) -> tuple[np.ndarray, ExecutionMarket] | None:
    """Real sessions as a market in which each knows no more than the sessions before it.

    The profile of a session is the mean volume by minute of all earlier sessions, its volatility the root of their mean realized
    variance from the open to the close.

    Args:
        days: sessions of one symbol, in order.
        newest: most sessions that are traded, the last ones; None: all.
        earlier: sessions that are needed before the first one that is traded.

    Returns:
        Sessions that can be traded, `datetime64[D]`, shape (n,), and their market; None where there are no more than `earlier`.

    Raises:
        MarketError: a session has no quote at all, see `quoted_sessions`.
    """
    count = len(days.sessions)
    if count <= earlier:
        return None
    variance = np.empty(count)
    for row, mid in enumerate(days.mid):
        variance[row] = (np.diff(np.log(mid[np.isfinite(mid)])) ** 2).sum()
    first = earlier if newest is None else max(earlier, count - newest)
    markets = []
    for row in range(first, count):
        profile = days.volume_shares[:row].mean(axis=0)
        markets.append(
            real_execution_market(
                RealDays(*(values[row : row + 1] for values in days)),
                np.maximum(profile, LEAST_PROFILE * profile.mean()),
                float(np.sqrt(variance[:row].mean() / DT_YEARS)),
            )
        )
    return days.sessions[first:], join_execution_markets(markets)


def _carried(values: np.ndarray) -> np.ndarray:
    """Each NaN replaced by the last number before it in its row."""
    at = np.where(np.isnan(values), 0, np.arange(values.shape[1]))
    return np.take_along_axis(values, np.maximum.accumulate(at, axis=1), axis=1)


def _first(values: np.ndarray) -> np.ndarray:
    """The first number of each row, shape (rows, 1)."""
    return np.take_along_axis(values, np.argmax(~np.isnan(values), axis=1)[:, None], axis=1)


def market_making_market(days: IntradayDays, minutes_per_step: int = 2) -> MarketMakingMarket:
    """Simulated days as a market to quote in: mids start at 100 dollars, time is in days.

    The variance known at an instant is that of the minute before it; at the open, the draw's variance.

    Raises:
        MarketError: the session is no whole number of steps.
    """
    if minutes_per_step < 1 or days.minutes % minutes_per_step:
        raise MarketError(
            f"minutes_per_step = {minutes_per_step}: a session of {days.minutes} minutes is no multiple of it"
        )
    known = np.column_stack([days.parameters.v0, days.variance])
    mid = MARKET_MAKING_MID0 * days.mid / days.mid[:, :1]
    return MarketMakingMarket.from_returns_variance(
        mid=np.ascontiguousarray(mid[:, ::minutes_per_step]),
        returns_variance=known[:, ::minutes_per_step] * DT_YEARS,
        dt=minutes_per_step / days.minutes,
        draw_id=days.draw_id.astype(np.int64),
        time_unit="day",
    )


def join_execution_markets(markets: Sequence[ExecutionMarket]) -> ExecutionMarket:
    """Several symbols' days in one market; draw ids are no longer unique."""
    names = ("mid", "spread", "volume_shares", "expected_volume_shares", "daily_volatility", "draw_id")
    return ExecutionMarket(*(np.concatenate([getattr(m, name) for m in markets]) for name in names))


def join_market_making_markets(markets: Sequence[MarketMakingMarket]) -> MarketMakingMarket:
    """Several symbols' days in one market."""
    if len({(m.dt, m.time_unit) for m in markets}) != 1:
        raise MarketError("markets of different steps cannot be joined")
    return MarketMakingMarket(
        np.concatenate([m.mid for m in markets]),
        np.concatenate([m.variance for m in markets]),
        markets[0].dt,
        np.concatenate([m.draw_id for m in markets]),
        markets[0].time_unit,
    )
