"""Bars as arrays, one symbol at a time: what strategies read and the backtest engine trades. Pure.

Belongs here: the step from a table of bars to contiguous arrays, and its validation. Does not belong here: how prices
are adjusted (`adjustment.py`) and what is traded.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_assets.market.adjustment import adjust_bars


class SeriesError(ValueError):
    """Bars that nothing can be computed from. The message names the symbol, the session and the value."""


@dataclass(frozen=True)
class BarSeries:
    """The bars of one symbol, oldest first; only sessions on which it traded.

    All arrays have shape (bars,). A symbol that starts late, ends early or skips a session simply has fewer bars.

    Attributes:
        symbol: its name.
        sessions: `datetime64[D]`, strictly increasing.
        open, high, low, close: dollars per share, as they were quoted on that session.
        volume: shares of that session.
        dividend: dollars per share of that session, owned by who held over the night before.
        split_factor: new shares per old share, effective before the open.
        adj_open, adj_high, adj_low, adj_close: dollars of the first bar (total return, see `adjust_bars`). Indicators
            are computed on these, because a split is no price move; orders are filled at the quoted prices.
    """

    symbol: str
    sessions: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    dividend: np.ndarray
    split_factor: np.ndarray
    adj_open: np.ndarray
    adj_high: np.ndarray
    adj_low: np.ndarray
    adj_close: np.ndarray

    def __post_init__(self) -> None:
        for name in ARRAYS:
            values = getattr(self, name)
            if values.shape != self.sessions.shape:
                raise SeriesError(
                    f"{self.symbol}: {name} has {values.size} values for {self.sessions.size} sessions"
                )
        if not self.sessions.size:
            raise SeriesError(f"{self.symbol}: no bar at all")
        if np.any(np.diff(self.sessions) <= np.timedelta64(0, "D")):
            at = int(np.argmax(np.diff(self.sessions) <= np.timedelta64(0, "D"))) + 1
            raise SeriesError(
                f"{self.symbol}: session {self.sessions[at]} does not come after {self.sessions[at - 1]}"
            )
        for name in ("open", "high", "low", "close", "split_factor"):
            self._require(name, getattr(self, name) > 0, "a number above 0")
        for name in ("volume", "dividend"):
            self._require(name, getattr(self, name) >= 0, "a number of at least 0")
        # A vendor's rounding may put a bar's close a hair outside its range.
        slack = 1e-9 * self.close
        inside = (self.low <= np.minimum(self.open, self.close) + slack) & (
            self.high >= np.maximum(self.open, self.close) - slack
        )
        self._require("low", inside, "a range of low to high that holds open and close")

    def _require(self, name: str, good: np.ndarray, what: str) -> None:
        good = good & np.isfinite(getattr(self, name))
        if not good.all():
            at = int(np.argmin(good))
            raise SeriesError(
                f"{self.symbol}, session {self.sessions[at]}: {name} = {getattr(self, name)[at]} is not {what} "
                f"({int((~good).sum())} such bars). Correct the bars at their source; nothing is filled in here."
            )

    def __len__(self) -> int:
        return int(self.sessions.size)

    def cut(self, first: int, last: int) -> BarSeries:
        """The bars `first <= i < last`. Adjusted prices keep their anchor."""
        return BarSeries(
            self.symbol,
            self.sessions[first:last],
            **{name: getattr(self, name)[first:last] for name in ARRAYS},
        )

    def position(self, session: dt.date) -> int:
        """How many bars lie before `session`: the index of its bar, or of the next one."""
        return int(np.searchsorted(self.sessions, np.datetime64(session, "D")))


ARRAYS = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "dividend",
    "split_factor",
    "adj_open",
    "adj_high",
    "adj_low",
    "adj_close",
)


def bar_series(bars: pa.Table, symbols: Iterable[str] | None = None) -> dict[str, BarSeries]:
    """Split a table of bars by symbol.

    Args:
        bars: columns symbol, session, open, high, low, close, volume, and optionally dividend (0) and
            split_factor (1).
        symbols: only these; an unknown one is an error.

    Raises:
        SeriesError: no bar of a wanted symbol, a NaN, a price of zero, sessions twice or out of order.
    """
    for name, neutral in (("dividend", 0.0), ("split_factor", 1.0)):
        if name not in bars.column_names:
            bars = bars.append_column(name, pa.array(np.full(bars.num_rows, neutral)))
    bars = bars.sort_by([("symbol", "ascending"), ("session", "ascending")])
    known = sorted(set(bars["symbol"].to_pylist()))
    wanted = known if symbols is None else list(symbols)
    if not wanted:
        raise SeriesError("the table of bars is empty")
    if unknown := [symbol for symbol in wanted if symbol not in known]:
        raise SeriesError(
            f"no bars of {', '.join(unknown)}; there are bars of {', '.join(known) or 'nothing'}"
        )
    series = {}
    for symbol in wanted:
        rows = adjust_bars(bars.filter(pc.equal(bars["symbol"], symbol)))
        series[symbol] = BarSeries(
            symbol,
            rows["session"].to_numpy().astype("datetime64[D]"),
            **{name: np.ascontiguousarray(rows[name].to_numpy(), dtype=np.float64) for name in ARRAYS},
        )
    return series
