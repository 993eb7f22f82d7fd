"""Point-in-time price adjustment: the only place that knows how splits and dividends change a price.

Belongs here: the step of one session and the two views built on it. Does not belong here: recovering events from a
vendor's adjusted close (`quant_resources/sources/sample.py`).

The step of session t is  g_t = split_factor_t * (1 + dividend_t / close_t),  so that close_t * g_t / close_{t-1} is
the total return of t (CRSP's definition). Two prices of sessions s < t become comparable by the product of the steps
*between* them, g_{s+1} * ... * g_t. Nothing depends on events after t, so history never changes when a new split
arrives; a series adjusted backwards from today, as vendors deliver it, has every row rewritten by each new event.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

STEP_SQL = "split_factor * (1 + dividend / close)"


def adjust_bars(bars: pa.Table) -> pa.Table:
    """Adjust open, high, low and close forward from each symbol's first row.

    The adjusted close is the value of one share bought at the first row's close with dividends reinvested. Volume is
    divided by the splits alone, so that it counts first-row shares.

    Args:
        bars: columns symbol, session, open, high, low, close, volume, dividend, split_factor, sorted by symbol and
            session.

    Returns:
        The same table with `adj_open`, `adj_high`, `adj_low`, `adj_close` (dollars of the first row), `adj_volume`
        (first-row shares) appended.
    """
    symbol = np.asarray(bars["symbol"].to_pylist(), dtype=object)
    close = bars["close"].to_numpy()
    split = bars["split_factor"].to_numpy()
    step = split * (1 + bars["dividend"].to_numpy() / close)
    cumulative, splits = np.empty(len(close)), np.empty(len(close))
    starts = (
        np.flatnonzero(np.r_[True, symbol[1:] != symbol[:-1]]) if len(symbol) else np.array([], dtype=int)
    )
    for start, end in zip(starts, np.r_[starts[1:], len(symbol)][: len(starts)], strict=True):
        steps, ratios = step[start:end].copy(), split[start:end].copy()
        # The first row is the anchor: its own event happened before its prices.
        steps[0] = ratios[0] = 1.0
        cumulative[start:end], splits[start:end] = np.cumprod(steps), np.cumprod(ratios)
    for name in ("open", "high", "low", "close"):
        bars = bars.append_column(f"adj_{name}", pa.array(bars[name].to_numpy() * cumulative))
    return bars.append_column("adj_volume", pa.array(bars["volume"].to_numpy() / splits))


def past_factor_sql(sessions: int, step: str = "g") -> list[str]:
    """SQL for the divisors that bring prices of earlier rows into the current row's units.

    Args:
        sessions: how many rows back.
        step: column prefix: `g0` is the current row's step, `g1` the previous row's, and so on.

    Returns:
        `sessions` select items `p1`, `p2`, ...: p_j = g0 * ... * g_{j-1}. The price of j rows ago in today's units is
        price / p_j. Products run in a fixed order, so one night and thirteen years agree bit for bit.
    """
    return [" * ".join(f"{step}{i}" for i in range(j)) + f" AS p{j}" for j in range(1, sessions + 1)]


def future_factor_sql(sessions: int, step: str = "g") -> list[str]:
    """SQL for the factors that bring prices of later rows into the units of the next row (where a trade enters).

    Args:
        sessions: how many rows ahead.
        step: column prefix: `g2` is the step of two rows ahead, and so on.

    Returns:
        Select items `f1`, `f2`, ...: f_1 = 1, f_j = g2 * ... * g_j. The price of j rows ahead is price * f_j.
    """
    return ["CAST(1 AS DOUBLE) AS f1"] + [
        " * ".join(f"{step}{i}" for i in range(2, j + 1)) + f" AS f{j}" for j in range(2, sessions + 1)
    ]
