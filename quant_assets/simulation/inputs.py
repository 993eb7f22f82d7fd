"""What markets are made of, as it is stored: simulated days of all symbols, real sessions of minute bars.

Belongs here: reading both, alike for training and for backtests, and which of them are left out and why. Does not belong here:
Dagster, the step to an environment's arrays (`markets.py`), the format of the files (`transitions.py`).

`market/minute_bars` is no upstream asset of those that read it here: it is in the graph only where the source has minute bars, and
where it has none an edge to it would put an asset into the graph that nothing describes or makes. Who used its rows records the snapshot.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quant_assets.market.tables import MINUTE_BARS
from quant_assets.partitions import CALENDAR
from quant_assets.posterior.tables import HESTON, HESTON_FITS
from quant_assets.simulation.intraday import IntradayModel, real_days
from quant_assets.simulation.markets import MarketError, quoted_sessions, real_sessions
from quant_assets.simulation.transitions import path_info
from quant_resources.iceberg import Warehouse, WarehouseError

if TYPE_CHECKING:
    import pyarrow as pa

    from quant_assets.environments.execution import ExecutionMarket

MINUTE_COLUMNS = ["symbol", "session", "ts", "open", "high", "low", "close", "volume", "bid", "ask"]
# Sessions that are read before the first one that is wanted: its profile rests on a quarter where that is stored.
EARLIER_READ = 63
SHOWN = 5  # sessions that a line of the log names


# -- simulated days ----------------------------------------------------------------------------------------------------


def day_files(warehouse: Warehouse, log: logging.Logger) -> dict[str, Path]:
    """Files of simulated days by symbol, in order, of the symbols that still have a stored posterior fit.

    What is left out, and days that rest on an earlier posterior than the stored one, are said in the log.

    Raises:
        MarketError: there is none.
        BufferFileError: a file is not what it says.
    """
    folder = warehouse.home / "simulation" / "intraday_paths"
    files = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    stored = warehouse.read(HESTON_FITS, columns=["symbol", "session"]).to_pylist() if files else []
    fits = {row["symbol"]: row["session"] for row in stored}
    if left_out := [symbol for symbol in files if symbol not in fits]:
        log.warning(
            "simulated days of %s are left out: %s holds no fit of them any more (%s; posterior_job makes both)",
            ", ".join(left_out),
            HESTON_FITS.name,
            ", ".join(files[symbol].name for symbol in left_out),
        )
    kept = {symbol: path for symbol, path in files.items() if symbol in fits}
    if not kept:
        others = f" of a symbol with a stored posterior (left out: {', '.join(left_out)})" if left_out else ""
        raise MarketError(
            f"{folder} holds no simulated days{others}: run posterior_job for at least one symbol first. A posterior that fails its "
            "checks stores no draws, and then there are no days."
        )
    for symbol, path in kept.items():
        if reason := _outdated(warehouse, symbol, path_info(path).posterior, fits[symbol]):
            log.warning(
                "%s: its simulated days rest on an earlier posterior, %s: run posterior_job for %s",
                symbol,
                reason,
                symbol,
            )
    return kept


def _outdated(warehouse: Warehouse, symbol: str, of: Mapping[str, object], session: dt.date) -> str | None:
    """Why the days do not come from the stored draws; None where they do, or where nobody can tell any more."""
    if str(of["session"]) != str(session):
        return f"of session {of['session']}, and the stored fit is of {session}"
    newest = warehouse.snapshot_id(HESTON)
    if str(newest) == of["snapshot"]:
        return None
    try:  # a newer snapshot may be another symbol's
        then = warehouse.read(HESTON, only=symbol, snapshot_id=int(str(of["snapshot"])))
    except WarehouseError:  # expired
        return None
    now = warehouse.read(HESTON, only=symbol, snapshot_id=newest)
    return None if then.equals(now) else f"of snapshot {of['snapshot']}, and the draws were made again since"


# -- real sessions -----------------------------------------------------------------------------------------------------


class RealMarkets(NamedTuple):
    """Real sessions as markets.

    Attributes:
        markets: symbol -> its sessions, `datetime64[D]`, shape (n,), and their market; symbols without any are absent.
        snapshot: Iceberg snapshot of `market.minute_bars` that was read; None where the table is empty or missing.
    """

    markets: dict[str, tuple[np.ndarray, ExecutionMarket]]
    snapshot: int | None


def read_real_markets(
    warehouse: Warehouse,
    models: Mapping[str, IntradayModel],
    newest: int,
    log: logging.Logger,
    until: Mapping[str, dt.date] | None = None,
) -> RealMarkets:
    """The newest real sessions of each symbol, each known up to the session before it; see `markets.real_sessions`.

    Sessions without any quote or price are left out, which the log says. The table is read once, and no more of it than
    `newest` sessions and those before them can come from.

    Args:
        warehouse: holds `market.minute_bars`.
        models: symbol -> shapes of its day.
        newest: most sessions of each symbol, out of the last ones on the calendar; 0 for none.
        log: told what is left out.
        until: symbol -> last session that may be read; None: the newest stored one.
    """
    snapshot = warehouse.snapshot_id(MINUTE_BARS) if newest > 0 and models else None
    if snapshot is None:
        return RealMarkets({}, None)
    if until is None:
        last = _newest_session(warehouse, snapshot)
        until = dict.fromkeys(models, last) if last else {}
    if not until:
        return RealMarkets({}, snapshot)
    import pyarrow.compute as pc

    first = CALENDAR.shift(min(until.values()), 1 - newest - EARLIER_READ)
    stored = warehouse.read(MINUTE_BARS, first, max(until.values()), MINUTE_COLUMNS, snapshot)
    markets = {}
    for symbol, model in models.items():
        known = pc.and_(pc.equal(stored["symbol"], symbol), pc.less_equal(stored["session"], until[symbol]))
        bars = stored.filter(known)
        if bars.num_rows and (found := _real_market(symbol, bars, model.minutes, newest, log)) is not None:
            markets[symbol] = found
    return RealMarkets(markets, snapshot)


def _newest_session(warehouse: Warehouse, snapshot: int) -> dt.date | None:
    """The newest session with minute bars, found a quarter at a time."""
    sessions = CALENDAR.sessions(CALENDAR.first, CALENDAR.last)
    for end in range(len(sessions), 0, -EARLIER_READ):
        part = sessions[max(end - EARLIER_READ, 0) : end]
        found = warehouse.read(MINUTE_BARS, part[0], part[-1], ["session"], snapshot)["session"]
        if len(found):
            return max(found.unique().to_pylist())
    return None


def _real_market(
    symbol: str, bars: pa.Table, minutes: int, newest: int, log: logging.Logger
) -> tuple[np.ndarray, ExecutionMarket] | None:
    try:
        days, left_out = quoted_sessions(real_days(bars, minutes))
        if len(left_out):
            log.warning(
                "%s: %d of %d real sessions are left out, they have no quote (bid and ask) or no price at all: %s",
                symbol,
                len(left_out),
                len(left_out) + len(days.sessions),
                ", ".join(map(str, left_out[:SHOWN])) + (", ..." if len(left_out) > SHOWN else ""),
            )
        found = real_sessions(days, newest)
    except ValueError as error:  # half days alone, bars twice, no volume: their own checks say more
        log.warning("%s: no real session can be sold on: %s", symbol, error)
        return None
    if found is None:
        log.warning("%s: too few whole sessions of minute bars to know a profile before them", symbol)
    return found
