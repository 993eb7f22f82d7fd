"""What is read for markets: days of symbols with a fit, real sessions with quotes, no more of a table than is needed."""

import datetime as dt
import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quant_assets.market.tables import MINUTE_BARS
from quant_assets.partitions import CALENDAR
from quant_assets.posterior.priors import HestonParameters
from quant_assets.posterior.tables import HESTON_FITS
from quant_assets.simulation import inputs
from quant_assets.simulation.inputs import day_files, read_real_markets
from quant_assets.simulation.intraday import IntradayModel, simulate_days
from quant_assets.simulation.markets import MarketError
from quant_assets.simulation.transitions import PathInfo, write_paths
from quant_resources.iceberg import Warehouse

MODEL = IntradayModel()
LOG = logging.getLogger("test")
SESSIONS = CALENDAR.sessions(dt.date(2012, 1, 3), dt.date(2012, 2, 1))[:12]
ONES = np.ones(12)
DAYS = simulate_days(
    HestonParameters(0.1 * ONES, 5.0 * ONES, 0.03 * ONES, 0.5 * ONES, -0.6 * ONES, 0.03 * ONES),
    days_per_draw=1,
    seed=3,
    mid0=50.0,
)


def fit(warehouse: Warehouse, symbol: str, session: dt.date) -> None:
    values: dict[str, Any] = {
        "symbol": symbol,
        "session": session,
        "available_at": CALENDAR.close(session),
        "first_session": session,
        "returns": 1,
        "seconds": 1.0,
    }
    row = {column.name: values.get(column.name, "") for column in HESTON_FITS.columns}
    warehouse.write(HESTON_FITS, pa.Table.from_pylist([row], schema=HESTON_FITS.arrow_schema), only=symbol)


def simulated(warehouse: Warehouse, symbol: str, session: dt.date) -> None:
    path = warehouse.home / "simulation" / "intraday_paths" / f"{symbol}.parquet"
    of = {"table": "posterior.heston", "snapshot": "1", "symbol": symbol, "session": str(session)}
    write_paths(path, [DAYS], PathInfo(MODEL, of, 3))


def minute_bars(warehouse: Warehouse, symbols: tuple[str, ...], unquoted: tuple[dt.date, ...] = ()) -> None:
    rows = []
    for symbol in symbols:
        for row, session in enumerate(SESSIONS):
            for k in range(DAYS.minutes):
                before, mid, half = DAYS.mid[row, k], DAYS.mid[row, k + 1], DAYS.spread[row, k + 1] / 2
                quoted = session not in unquoted
                rows.append(
                    {
                        "symbol": symbol,
                        "session": session,
                        "ts": CALENDAR.opens(session) + dt.timedelta(minutes=k),
                        "available_at": CALENDAR.close(session),
                        "open": before,
                        "high": max(before, mid),
                        "low": min(before, mid),
                        "close": mid,
                        "volume": float(DAYS.volume_shares[row, k]),
                        "bid": mid - half if quoted else None,
                        "ask": mid + half if quoted else None,
                        "bid_size": None,
                        "ask_size": None,
                        "source": "test",
                    }
                )
    warehouse.write(MINUTE_BARS, pa.Table.from_pylist(rows, schema=MINUTE_BARS.arrow_schema))


def test_days_without_a_fit_are_left_out_and_old_ones_named(
    warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(MarketError, match="holds no simulated days: run posterior_job"):
        day_files(warehouse, LOG)
    for symbol in ("GONE", "NEW", "OLD"):
        simulated(warehouse, symbol, SESSIONS[3])
    with pytest.raises(MarketError, match=r"a stored posterior \(left out: GONE, NEW, OLD\)"):
        day_files(warehouse, LOG)
    fit(warehouse, "NEW", SESSIONS[3])
    fit(warehouse, "OLD", SESSIONS[4])
    caplog.clear()
    assert list(day_files(warehouse, LOG)) == ["NEW", "OLD"]
    left_out, outdated = caplog.messages
    assert left_out.startswith("simulated days of GONE are left out: posterior.heston_fits holds no fit")
    assert outdated.startswith(
        f"OLD: its simulated days rest on an earlier posterior, of session {SESSIONS[3]}"
    )
    assert "run posterior_job for OLD" in outdated


def test_a_session_without_quotes_costs_itself_alone_and_is_named(
    warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    minute_bars(warehouse, ("ONE", "TWO"), unquoted=(SESSIONS[8],))
    snapshot = warehouse.snapshot_id(MINUTE_BARS)
    found = read_real_markets(warehouse, {"ONE": MODEL, "NONE": MODEL}, 3, LOG)
    assert found.snapshot == snapshot
    assert list(found.markets) == ["ONE"]
    sessions, market = found.markets["ONE"]
    assert sessions.astype(object).tolist() == list(SESSIONS[9:])
    assert market.paths == 3
    earlier = [row for row in range(9) if row != 8]
    np.testing.assert_allclose(
        market.expected_volume_shares[0], DAYS.volume_shares[earlier].mean(axis=0), rtol=1e-12
    )
    assert (
        f"ONE: 1 of 12 real sessions are left out, they have no quote (bid and ask) or no price at all: {SESSIONS[8]}"
        in caplog.text
    )


def test_each_symbol_is_read_up_to_its_own_session(warehouse: Warehouse) -> None:
    minute_bars(warehouse, ("ONE", "TWO"))
    until = {"ONE": SESSIONS[6], "TWO": SESSIONS[9]}
    found = read_real_markets(warehouse, dict.fromkeys(until, MODEL), 250, LOG, until)
    for symbol, last in until.items():
        sessions, _ = found.markets[symbol]
        assert (sessions[0].item(), sessions[-1].item()) == (SESSIONS[5], last)
    few = read_real_markets(warehouse, {"ONE": MODEL}, 250, LOG, {"ONE": SESSIONS[4]})
    assert few.markets == {}


def test_no_more_is_read_than_is_needed(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_real_markets(warehouse, {"ONE": MODEL}, 3, LOG) == ({}, None)
    minute_bars(warehouse, ("ONE", "TWO"))
    monkeypatch.setattr(inputs, "EARLIER_READ", 6)
    reads: list[tuple[Any, ...]] = []
    read = Warehouse.read

    def counted(self: Warehouse, *given: Any, **named: Any) -> pa.Table:
        reads.append(given)
        return read(self, *given, **named)

    monkeypatch.setattr(Warehouse, "read", counted)
    assert read_real_markets(warehouse, {"ONE": MODEL}, 0, LOG).markets == {}
    assert not reads
    until = dict.fromkeys(("ONE", "TWO"), SESSIONS[11])
    found = read_real_markets(warehouse, dict.fromkeys(until, MODEL), 2, LOG, until)
    assert [len(sessions) for sessions, _ in found.markets.values()] == [2, 2]
    ((_, first, last, columns, snapshot),) = reads
    assert (first, last, snapshot) == (SESSIONS[4], SESSIONS[11], found.snapshot)
    assert "bid_size" not in columns
