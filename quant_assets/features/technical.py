"""Technical indicators in DuckDB SQL. Pure: bars in, feature rows out.

Belongs here: the definitions of the indicators. Does not belong here: sentiment, labels, storage, Dagster.

Every value is a closed expression of the row's last 21 bars, summed in a fixed order, instead of a running window sum.
So the same function gives the same bits for one session and for thirteen years, whatever else is in the table.
Prices of earlier bars are brought into the units of the row's own session (`market/adjustment.py`).
"""

from __future__ import annotations

import datetime as dt
from typing import Protocol

import numpy as np
import pyarrow as pa

from quant_assets.features.tables import ROC_PERIODS, SMA_PERIODS
from quant_assets.market.adjustment import STEP_SQL, past_factor_sql
from quant_resources.duckdb import query

BARS_BACK = 20
# A symbol with gaps still has features as long as its 21 bars lie within 31 sessions. Both the night and the full
# build load this much, so both see the same bars.
LOOKBACK_SESSIONS = 30
ATR_BARS = 14
RSI_BARS = 14
VOLATILITY_BARS = 20
# Prices whose relative difference is below this are equal: means of one constant price differ by rounding alone.
EQUAL_WITHIN = 1e-12


class Sessions(Protocol):
    """What features need to know of the exchange: `TradingCalendar`, or the hours that an endpoint has."""

    def sessions(self, first: dt.date, last: dt.date) -> list[dt.date]:
        """Sessions of a range, both ends included, in order."""
        ...

    def ordinal(self, session: dt.date) -> int:
        """Position of a session; differences count sessions."""
        ...


def calendar_table(calendar: Sessions, first: dt.date, last: dt.date) -> pa.Table:
    """Sessions of a range with their position on the calendar, for counting sessions in SQL."""
    sessions = calendar.sessions(first, last)
    days = np.array(sessions, "datetime64[D]").astype(np.int32)
    positions = np.array([calendar.ordinal(s) for s in sessions], np.int64)
    # By buffers: pa.array would load pandas, which an endpoint does without.
    return pa.table(
        {
            "session": pa.Array.from_buffers(pa.date32(), len(days), [None, pa.py_buffer(days)]),
            "position": pa.Array.from_buffers(pa.int64(), len(days), [None, pa.py_buffer(positions)]),
        }
    )


def _sum(terms: list[str]) -> str:
    return "(" + " + ".join(terms) + ")"


def _sql() -> str:
    n = BARS_BACK
    lags = ["close AS c0", "step AS g0"]
    lags += [f"lag(close, {j}) OVER w AS c{j}" for j in range(1, n + 1)]
    lags += [f"lag(step, {j}) OVER w AS g{j}" for j in range(1, n)]
    # The true range of a bar, in that bar's own units.
    ranges = ["greatest(high - low, abs(high - c1 / g0), abs(low - c1 / g0)) AS tr"]
    tr_lags = ["tr AS tr0"] + [f"lag(tr, {j}) OVER w AS tr{j}" for j in range(1, ATR_BARS)]
    adjusted = ["c0 AS b0"] + [f"c{j} / p{j} AS b{j}" for j in range(1, n + 1)]
    adjusted += ["tr0 AS a0"] + [f"tr{j} / p{j} AS a{j}" for j in range(1, ATR_BARS)]
    # S_k = b_0 + ... + b_{k-1}, each from the one before: the order of the additions is part of the definition.
    # The means live in an array each row, so that the extremes are taken over sixteen numbers and not over text.
    means = ["b0 AS m1"] + [f"{_sum([f'b{j}' for j in range(k)])} / {k} AS m{k}" for k in SMA_PERIODS]
    extremes = ", ".join(f"m{k}" for k in (1, *SMA_PERIODS))
    scaled = [
        f"CASE WHEN hi - lo > {EQUAL_WITHIN} * hi THEN (m{k} - lo) / (hi - lo) ELSE 0.5 END AS {name}"
        for k, name in ((1, "scaled_close"), *((k, f"scaled_sma_{k}") for k in SMA_PERIODS))
    ]
    roc = [f"100 * (b0 / b{k} - 1) AS roc_{k}_pct" for k in ROC_PERIODS]
    squares = [f"ln(b{j} / b{j + 1}) * ln(b{j} / b{j + 1})" for j in range(VOLATILITY_BARS)]
    gains = [f"greatest(b{j} - b{j + 1}, 0)" for j in range(RSI_BARS)]
    losses = [f"greatest(b{j + 1} - b{j}, 0)" for j in range(RSI_BARS)]
    atr = f"{_sum([f'a{j}' for j in range(ATR_BARS)])} / {ATR_BARS}"
    join = ",\n    ".join
    return f"""
WITH bars_ AS (
  SELECT bars.*, {STEP_SQL} AS step, position
  FROM bars JOIN calendar USING (session)
), lagged AS (
  SELECT symbol, session, available_at, high, low, volume, split_factor, position,
    lag(position, {n}) OVER w AS oldest_position, lag(volume) OVER w AS previous_volume,
    {join(lags)}
  FROM bars_ WINDOW w AS (PARTITION BY symbol ORDER BY session)
), ranged AS (
  SELECT *, {join(ranges)} FROM lagged
), ranged_lagged AS (
  SELECT *, {join(tr_lags)} FROM ranged WINDOW w AS (PARTITION BY symbol ORDER BY session)
), complete AS (
  SELECT * FROM ranged_lagged
  WHERE session BETWEEN $first AND $last AND position - oldest_position <= {LOOKBACK_SESSIONS}
), factors AS (
  SELECT *, {join(past_factor_sql(n))} FROM complete
), adjusted AS (
  SELECT *, {join(adjusted)} FROM factors
), means AS (
  SELECT *, {join(means)} FROM adjusted
), extremes AS (
  SELECT *, least({extremes}) AS lo, greatest({extremes}) AS hi FROM means
), moves AS (
  SELECT *, {_sum(gains)} AS gain, {_sum(losses)} AS loss, {atr} AS atr_14 FROM extremes
)
SELECT symbol, session, available_at, c0 AS close,
    {join(scaled)},
    {join(roc)},
    ln(b0 / b1) AS log_return,
    ln(volume / (previous_volume * split_factor)) AS log_volume_change,
    sqrt(252 * {_sum(squares)} / {VOLATILITY_BARS}) AS realized_volatility_20,
    atr_14,
    100 * atr_14 / c0 AS atr_14_pct,
    CASE WHEN gain + loss > {EQUAL_WITHIN} * b0 THEN 100 * gain / (gain + loss) ELSE 50 END AS rsi_14
FROM moves
ORDER BY symbol, session
"""


SQL = _sql()


def technical_features(bars: pa.Table, calendar: Sessions, first: dt.date, last: dt.date) -> pa.Table:
    """Indicators of every symbol and session in `first`..`last`, known at that session's close.

    Args:
        bars: `market.bars` rows of the range and at least the 30 sessions before it; more changes nothing.
        calendar: covers the bars.
        first, last: sessions to return, both included.

    Returns:
        Columns as `features.tables.TECHNICAL`. A symbol's first 20 bars have no row, nor has a session whose 21 bars
        span more than 31 sessions.
    """
    days = bars["session"]
    if not bars.num_rows:
        span = calendar_table(calendar, first, last)
    else:
        import pyarrow.compute as pc

        bounds = pc.min_max(days).as_py()
        span = calendar_table(calendar, bounds["min"], bounds["max"])
    return query(SQL, {"bars": bars, "calendar": span}, {"first": first, "last": last})
