"""The engine: each rule of `_simulate` by hand on a few bars, then what must hold on any bars."""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quant_assets.backtests.engine import (
    REJECTION_SCHEMA,
    TOTALS,
    TOUCH_TOLERANCE,
    TRADE_SCHEMA,
    Account,
    BacktestError,
    Costs,
    Simulation,
    _simulate,
    check_account,
    check_costs,
    market_arrays,
    rule_of,
    simulate,
    trailing_volatility,
)
from quant_assets.market.series import ARRAYS, BarSeries, SeriesError, bar_series
from quant_assets.strategies.strategy import ENTER_LONG, ENTER_SHORT, EXIT_LONG, EXIT_SHORT, Rules

Bar = tuple[float, float, float, float]  # open, high, low, close
QUIET: Bar = (100.0, 100.5, 99.5, 100.0)
TEN = Rules("shares", 10)
DAYS = [dt.date(2012, 1, 2) + dt.timedelta(days=i) for i in range(1000)]


def table(
    rows: Sequence[Bar],
    volume: float | Sequence[float] = 1e6,
    events: Mapping[int, tuple[float, float]] | None = None,
) -> pa.Table:
    """Bars of one symbol; `events` maps a bar to (split_factor, dividend)."""
    n, events = len(rows), events or {}
    prices = np.array(rows, dtype=float).reshape(n, 4)
    return pa.table(
        {
            "symbol": ["TEST"] * n,
            "session": pa.array(DAYS[:n], pa.date32()),
            **dict(zip(("open", "high", "low", "close"), prices.T.copy(), strict=True)),
            "volume": np.broadcast_to(np.asarray(volume, dtype=float), (n,)).copy(),
            "split_factor": [float(events.get(i, (1, 0))[0]) for i in range(n)],
            "dividend": [float(events.get(i, (1, 0))[1]) for i in range(n)],
        }
    )


def market(*args: Any, **kwargs: Any) -> BarSeries:
    return bar_series(table(*args, **kwargs))["TEST"]


def flags(n: int, at: Mapping[int, int]) -> np.ndarray:
    decisions = np.zeros(n, dtype=np.int8)
    for i, flag in at.items():
        decisions[i] = flag
    return decisions


def run(
    rows: Sequence[Bar],
    decisions: Mapping[int, int],
    rules: Rules = TEN,
    costs: Costs | None = None,
    volume: float | Sequence[float] = 1e6,
    events: Mapping[int, tuple[float, float]] | None = None,
    **account: Any,
) -> Simulation:
    """Ten shares with ten thousand dollars unless said otherwise."""
    bars = market(rows, volume, events)
    return simulate(bars, flags(len(rows), decisions), rules, costs, Account(10_000.0)._replace(**account))


def trades(found: Simulation) -> list[dict[str, Any]]:
    """Trades with the index of their bars instead of the sessions."""
    rows = found.trades.to_pylist()
    for row in rows:
        row["entry"], row["exit"] = DAYS.index(row["entry_session"]), DAYS.index(row["exit_session"])
    return rows


def the_trade(found: Simulation) -> dict[str, Any]:
    (row,) = trades(found)
    return row


def story(found: Simulation) -> list[tuple]:
    """What happened, without the money."""
    return [
        (t["side"], t["shares"], t["entry"], t["entry_price"], t["exit"], t["exit_price"], t["reason"])
        for t in trades(found)
    ]


def happened(found: Simulation) -> list[tuple]:
    """When trades began and ended, and why."""
    return [(t["side"], t["entry"], t["exit"], t["reason"]) for t in trades(found)]


def refused(found: Simulation) -> list[tuple]:
    return [
        (DAYS.index(r["session"]), r["side"], r["shares"], r["reason"]) for r in found.rejected.to_pylist()
    ]


# ------------------------------------------------------------------------------------------- orders and opens


def test_a_decision_fills_at_the_next_open() -> None:
    rows = [QUIET, (101.0, 103.0, 100.0, 102.0), (104.0, 106.0, 103.0, 105.0), (107.0, 108.0, 105.0, 106.0)]
    found = run(rows, {0: ENTER_LONG, 2: EXIT_LONG})
    assert story(found) == [("long", 10, 1, 101, 3, 107, "signal")]
    assert found.equity.tolist() == [10_000, 10_010, 10_040, 10_060]
    assert found.cash.tolist() == [10_000, 8_990, 8_990, 10_060]
    assert found.shares.tolist() == [0, 10, 10, 0]
    assert found.symbol == "TEST"
    assert found.sessions.tolist() == DAYS[:4]
    trade = the_trade(found)
    assert trade["symbol"] == "TEST"
    assert trade["pnl"] == 60
    assert trade["trade_return"] == pytest.approx(60 / 1010)
    assert trade["bars_held"] == 2
    assert trade["traded_value"] == 1010 + 1070
    assert [trade[c] for c in ("commission", "spread", "impact", "borrow", "dividends")] == [0] * 5
    assert trade["split_factor"] == 1
    assert found.interest == 0
    assert found.rejected.num_rows == 0
    assert found.trades.schema == TRADE_SCHEMA
    assert found.rejected.schema == REJECTION_SCHEMA


def test_a_short_earns_what_the_price_loses() -> None:
    rows = [QUIET, (101.0, 103.0, 100.0, 102.0), (98.0, 99.0, 97.0, 98.0), (95.0, 96.0, 94.0, 95.0)]
    found = run(rows, {0: ENTER_SHORT, 2: EXIT_SHORT})
    assert story(found) == [("short", 10, 1, 101, 3, 95, "signal")]
    assert found.cash.tolist() == [10_000, 11_010, 11_010, 10_060]
    assert found.equity.tolist() == [10_000, 9_990, 10_030, 10_060]
    assert found.shares.tolist() == [0, -10, -10, 0]
    assert the_trade(found)["pnl"] == 60
    assert the_trade(found)["trade_return"] == pytest.approx(60 / 1010)


def test_a_reversal_is_an_exit_and_an_entry_at_the_same_open() -> None:
    rows = [
        QUIET,
        QUIET,
        (110.0, 110.0, 110.0, 110.0),
        (105.0, 105.0, 105.0, 105.0),
        (90.0, 90.0, 90.0, 90.0),
    ]
    found = run(rows, {0: ENTER_LONG, 1: ENTER_SHORT, 3: ENTER_LONG})
    assert story(found) == [
        ("long", 10, 1, 100, 2, 110, "reversal"),
        ("short", 10, 2, 110, 4, 90, "reversal"),
        ("long", 10, 4, 90, 4, 90, "open"),
    ]
    assert [t["pnl"] for t in trades(found)] == [100, 200, 0]
    assert found.equity.tolist() == [10_000, 10_000, 10_100, 10_150, 10_300]


def test_a_reversal_is_sized_by_the_equity_after_the_exit() -> None:
    rows = [QUIET, QUIET, (120.0, 120.0, 120.0, 120.0)]
    found = run(rows, {0: ENTER_LONG, 1: ENTER_SHORT}, Rules())
    # All of 10,000 bought 100 shares, and 12,000 are left at 120.
    assert story(found)[1][:4] == ("short", 100, 2, 120)


def test_what_does_not_concern_the_position_does_nothing() -> None:
    flat = run([QUIET] * 4, {0: EXIT_LONG, 1: EXIT_SHORT, 2: EXIT_LONG + EXIT_SHORT})
    assert flat.trades.num_rows == flat.rejected.num_rows == 0
    # Held long: the same entry again, the exit of a short, both entries at once.
    held = run([QUIET] * 6, {0: ENTER_LONG, 1: ENTER_LONG, 2: EXIT_SHORT, 3: ENTER_LONG + ENTER_SHORT})
    assert story(held) == [("long", 10, 1, 100, 5, 100, "open")]
    assert held.rejected.num_rows == 0
    short = run([QUIET] * 6, {0: ENTER_SHORT, 1: ENTER_SHORT, 2: EXIT_LONG, 3: ENTER_LONG + ENTER_SHORT})
    assert story(short) == [("short", 10, 1, 100, 5, 100, "open")]


def test_an_exit_and_the_opposite_entry_at_once_are_a_reversal() -> None:
    found = run([QUIET] * 3, {0: ENTER_LONG, 1: EXIT_LONG + ENTER_SHORT})
    assert [t["reason"] for t in trades(found)] == ["reversal", "open"]
    # An exit with the entry of the same side leaves, and does not come back by itself.
    found = run([QUIET] * 4, {0: ENTER_LONG, 1: EXIT_LONG + ENTER_LONG})
    assert story(found) == [("long", 10, 1, 100, 2, 100, "signal")]


def test_an_exit_with_an_entry_while_flat_is_an_entry() -> None:
    assert story(run([QUIET] * 2, {0: ENTER_LONG + EXIT_SHORT}))[0][:4] == ("long", 10, 1, 100)


def test_two_entries_at_once_contradict_each_other() -> None:
    found = run([QUIET] * 3, {1: ENTER_LONG + ENTER_SHORT})
    assert found.trades.num_rows == 0
    assert refused(found) == [(1, "both", None, "conflict")]


def test_decisions_of_the_last_bar_do_nothing() -> None:
    found = run([QUIET] * 3, {0: ENTER_LONG, 2: EXIT_LONG})
    assert story(found) == [("long", 10, 1, 100, 2, 100, "open")]
    for flag in (ENTER_LONG, ENTER_SHORT, EXIT_LONG):
        found = run([QUIET] * 3, {2: flag})
        assert found.trades.num_rows == found.rejected.num_rows == 0
        assert found.equity.tolist() == [10_000] * 3


@pytest.mark.parametrize("flag", [0, ENTER_LONG, ENTER_SHORT])
def test_one_bar_of_data_trades_nothing(flag: int) -> None:
    found = run([QUIET], {0: flag}, costs=Costs(commission_bps=10, interest_annual_pct=5))
    assert found.equity.tolist() == found.cash.tolist() == [10_000]
    assert found.shares.tolist() == [0]
    assert found.trades.num_rows == found.rejected.num_rows == 0
    assert found.trades.schema == TRADE_SCHEMA
    assert found.rejected.schema == REJECTION_SCHEMA


def test_a_position_that_is_held_at_the_end_is_marked_at_the_last_close() -> None:
    rows = [QUIET, QUIET, (104.0, 106.0, 103.0, 105.0)]
    found = run(rows, {0: ENTER_LONG}, costs=Costs(commission_per_share=1))
    trade = the_trade(found)
    # The entry has paid its commission, the exit has not taken place.
    assert story(found) == [("long", 10, 1, 100, 2, 105, "open")]
    assert trade["commission"] == 10
    assert trade["pnl"] == 40
    assert trade["traded_value"] == 1000
    assert trade["bars_held"] == 2  # closes
    assert found.shares[-1] == 10
    assert found.equity[-1] == 10_040


def test_a_window_trades_its_own_bars_alone() -> None:
    bars = market([QUIET, QUIET, (102.0, 103.0, 101.0, 102.0), (104.0, 105.0, 103.0, 104.0), QUIET])
    decisions = flags(5, {0: ENTER_LONG, 1: ENTER_LONG, 2: ENTER_LONG, 3: EXIT_LONG})
    found = simulate(bars, decisions, TEN, account=Account(10_000.0), first=2, last=4)
    assert found.sessions.tolist() == DAYS[2:4]
    # The decision of bar 1 lies before the window, so the first fill is the open of bar 3.
    assert story(found) == [("long", 10, 3, 104, 3, 104, "open")]
    assert found.equity.tolist() == [10_000, 10_000]


# ----------------------------------------------------------------------------------------------------- brackets

BRACKET = Rules("shares", 10, profit_target_pct=2.0, stop_loss_pct=1.5)


@pytest.mark.parametrize(
    ("flag", "bar", "price", "reason"),
    [
        (ENTER_LONG, (100.0, 102.5, 99.0, 101.0), 102.0, "target"),
        (ENTER_LONG, (100.0, 101.9, 98.0, 99.0), 98.5, "stop"),
        (ENTER_SHORT, (100.0, 101.0, 97.0, 99.0), 98.0, "target"),
        (ENTER_SHORT, (100.0, 102.5, 98.1, 101.0), 101.5, "stop"),
        # The open is already beyond the level: nobody gets the level's price.
        (ENTER_LONG, (97.0, 97.5, 96.0, 97.0), 97.0, "stop"),
        (ENTER_LONG, (104.0, 105.0, 103.0, 104.0), 104.0, "target"),
        (ENTER_SHORT, (103.0, 104.0, 102.0, 103.0), 103.0, "stop"),
        (ENTER_SHORT, (96.0, 97.0, 95.0, 96.0), 96.0, "target"),
        # The range holds both levels: nobody knows which came first.
        (ENTER_LONG, (100.0, 103.0, 98.0, 102.5), 98.5, "stop"),
        (ENTER_SHORT, (100.0, 103.0, 97.0, 97.5), 101.5, "stop"),
        # The open beyond one level came before the other level was touched.
        (ENTER_LONG, (104.0, 105.0, 98.0, 99.0), 104.0, "target"),
        (ENTER_LONG, (97.0, 103.0, 96.0, 102.5), 97.0, "stop"),
        (ENTER_SHORT, (96.0, 102.0, 95.0, 101.0), 96.0, "target"),
        (ENTER_SHORT, (103.0, 104.0, 97.0, 98.0), 103.0, "stop"),
        # To the cent.
        (ENTER_LONG, (100.0, 102.0, 99.0, 101.0), 102.0, "target"),
        (ENTER_LONG, (100.0, 101.0, 98.5, 99.0), 98.5, "stop"),
        (ENTER_SHORT, (100.0, 101.0, 98.0, 99.0), 98.0, "target"),
        (ENTER_SHORT, (100.0, 101.5, 99.0, 101.0), 101.5, "stop"),
    ],
)
def test_a_bracket_ends_the_trade(flag: int, bar: Bar, price: float, reason: str) -> None:
    found = run([QUIET, QUIET, bar, QUIET], {0: flag}, BRACKET)
    side = "long" if flag == ENTER_LONG else "short"
    assert story(found) == [(side, 10, 1, 100, 2, pytest.approx(price), reason)]
    sign = 1 if side == "long" else -1
    assert the_trade(found)["pnl"] == pytest.approx(sign * 10 * (price - 100))
    assert found.equity[-1] == pytest.approx(10_000 + sign * 10 * (price - 100))
    assert the_trade(found)["bars_held"] == 1


@pytest.mark.parametrize("flag", [ENTER_LONG, ENTER_SHORT])
@pytest.mark.parametrize("bar", [(100.0, 101.49, 98.51, 100.0), (98.6, 101.4, 98.51, 101.4)])
def test_a_range_within_the_levels_touches_neither(flag: int, bar: Bar) -> None:
    assert the_trade(run([QUIET, QUIET, bar], {0: flag}, BRACKET))["reason"] == "open"


def test_one_level_may_stand_alone() -> None:
    wild = (100.0, 120.0, 80.0, 100.0)
    target, stop = Rules("shares", 10, profit_target_pct=2.0), Rules("shares", 10, stop_loss_pct=1.5)
    assert story(run([QUIET, QUIET, wild], {0: ENTER_LONG}, target))[0][5:] == (102, "target")
    assert story(run([QUIET, QUIET, wild], {0: ENTER_LONG}, stop))[0][5:] == (98.5, "stop")


@pytest.mark.parametrize(
    ("flag", "entry", "touch", "reason"),
    # Each price lies exactly on the level to the cent, and the level computed in binary lies a hair beyond it.
    [
        (ENTER_LONG, 29.0, 29.58, "target"),
        (ENTER_LONG, 78.5, 80.07, "target"),
        (ENTER_LONG, 22.0, 21.67, "stop"),
        (ENTER_LONG, 114.0, 112.29, "stop"),
        (ENTER_SHORT, 29.0, 28.42, "target"),
    ],
)
def test_a_price_on_the_level_touches_it(flag: int, entry: float, touch: float, reason: str) -> None:
    side, pct = 1 if flag == ENTER_LONG else -1, 0.02 if reason == "target" else 0.015
    level = entry * (1 + side * pct) if reason == "target" else entry * (1 - side * pct)
    beyond = 1 if touch > entry else -1
    assert beyond * (level - touch) > 0  # rounding hides the touch
    flat = (entry, entry, entry, entry)

    def after(price: float) -> dict[str, Any]:
        bar = (entry, max(entry, price), min(entry, price), entry)
        return the_trade(run([flat, flat, bar], {0: flag}, BRACKET))

    assert after(touch)["reason"] == reason
    assert after(touch)["exit_price"] == pytest.approx(level, rel=1e-15)
    assert after(touch - beyond * 0.01)["reason"] == "open"
    # An open on the level is a gap by the same measure.
    opened = (touch, max(touch, entry), min(touch, entry), touch)
    gap = the_trade(run([flat, flat, opened], {0: flag}, BRACKET))
    assert (gap["reason"], gap["exit_price"]) == (reason, pytest.approx(touch, rel=1e-15))


@pytest.mark.parametrize(
    ("bar", "price", "reason"),
    [
        ((100.0, 102.5, 99.0, 101.0), 102.0, "target"),
        ((100.0, 101.9, 98.0, 101.0), 98.5, "stop"),
        ((100.0, 102.5, 98.0, 101.0), 98.5, "stop"),
    ],
)
def test_the_bracket_works_on_the_bar_of_the_entry_unless_told_otherwise(
    bar: Bar, price: float, reason: str
) -> None:
    after = (101.0, 101.0, 101.0, 101.0)
    found = run([QUIET, bar, after], {0: ENTER_LONG}, BRACKET)
    assert story(found) == [("long", 10, 1, 100, 1, price, reason)]
    assert the_trade(found)["bars_held"] == 0
    assert found.shares.tolist() == [0, 0, 0]
    later = run([QUIET, bar, after], {0: ENTER_LONG}, BRACKET, bracket_on_entry_bar=False)
    assert story(later) == [("long", 10, 1, 100, 2, 101, "open")]
    # From the next bar on it works there too.
    later = run([QUIET, bar, (97.0, 97.0, 97.0, 97.0)], {0: ENTER_LONG}, BRACKET, bracket_on_entry_bar=False)
    assert story(later) == [("long", 10, 1, 100, 2, 97, "stop")]


def test_the_decision_of_the_bar_that_stopped_the_trade_is_taken() -> None:
    down = (100.0, 100.5, 98.0, 99.0)
    found = run([QUIET, QUIET, down, QUIET, QUIET], {0: ENTER_LONG, 2: ENTER_LONG}, BRACKET)
    assert [row[2:5] for row in story(found)] == [(1, 100, 2), (3, 100, 4)]


def test_an_exit_at_the_open_comes_before_the_bracket() -> None:
    found = run([QUIET, QUIET, (99.0, 99.0, 90.0, 91.0)], {0: ENTER_LONG, 1: EXIT_LONG}, BRACKET)
    assert story(found) == [("long", 10, 1, 100, 2, 99, "signal")]


@pytest.mark.parametrize("max_bars", [1, 2, 3])
def test_a_trade_that_was_held_long_enough_leaves_at_the_next_open(max_bars: int) -> None:
    rules = Rules("shares", 10, max_bars=max_bars)
    rows = [(100.0 + i, 100.0 + i, 100.0 + i, 100.0 + i) for i in range(6)]
    found = run(rows, {0: ENTER_LONG}, rules)
    assert story(found) == [("long", 10, 1, 101, 1 + max_bars, 101 + max_bars, "time")]
    assert the_trade(found)["bars_held"] == max_bars


def test_a_signal_counts_before_the_time_limit_and_a_reversal_before_both() -> None:
    rules = Rules("shares", 10, max_bars=2)
    assert the_trade(run([QUIET] * 5, {0: ENTER_LONG, 2: EXIT_LONG}, rules))["reason"] == "signal"
    found = run([QUIET] * 6, {0: ENTER_LONG, 2: EXIT_LONG + ENTER_SHORT}, rules)
    assert [t["reason"] for t in trades(found)] == ["reversal", "time"]
    # Wanting the same side again does not renew the clock.
    found = run([QUIET] * 5, dict.fromkeys(range(4), ENTER_LONG), rules)
    assert [row[2:5] for row in story(found)] == [(1, 100, 3), (4, 100, 4)]


def test_the_worst_and_the_best_price_while_the_trade_lived() -> None:
    rows = [
        (100.0, 200.0, 50.0, 100.0),
        (100.0, 104.0, 98.0, 101.0),
        (101.0, 110.0, 95.0, 96.0),
        (97.0, 150.0, 60.0, 100.0),
    ]
    # Bars 1 and 2 count whole; on bar 3 it is gone after the open. Bar 0 was before it.
    long = the_trade(run(rows, {0: ENTER_LONG, 2: EXIT_LONG}))
    assert (long["mae"], long["mfe"]) == (pytest.approx(-0.05), pytest.approx(0.10))
    short = the_trade(run(rows, {0: ENTER_SHORT, 2: EXIT_SHORT}))
    assert (short["mae"], short["mfe"]) == (pytest.approx(-0.10), pytest.approx(0.05))
    # The exit itself may be the worst price.
    worst = the_trade(run([*rows[:3], (90.0, 90.0, 90.0, 90.0)], {0: ENTER_LONG, 2: EXIT_LONG}))
    assert worst["mae"] == pytest.approx(-0.10)
    # Stopped within a bar: what the bar did beyond the stop happened to others.
    stopped = the_trade(run(rows, {0: ENTER_LONG}, Rules("shares", 10, stop_loss_pct=4.0)))
    assert (stopped["mae"], stopped["mfe"]) == (pytest.approx(-0.04), pytest.approx(0.04))
    # A trade that only ever gained has lost nothing.
    up = the_trade(run([QUIET, (100.0, 101.0, 100.0, 101.0)], {0: ENTER_LONG}))
    assert (up["mae"], up["mfe"]) == (0, pytest.approx(0.01))


# -------------------------------------------------------------------------------------------- splits and dividends


@pytest.mark.parametrize(("flag", "sign"), [(ENTER_LONG, 1), (ENTER_SHORT, -1)])
def test_a_dividend_is_paid_on_longs_and_owed_on_shorts(flag: int, sign: int) -> None:
    ex = (97.0, 97.5, 96.5, 97.0)
    found = run([QUIET, QUIET, ex, ex], {0: flag}, events={2: (1, 3.0)})
    trade = the_trade(found)
    assert trade["dividends"] == sign * 30
    assert trade["pnl"] == 0  # three dollars of dividend, three dollars of price
    assert trade["exit_price"] == 97
    assert found.cash.tolist() == [10_000, 10_000 - sign * 1000, 10_000 - sign * 970, 10_000 - sign * 970]
    assert found.equity.tolist() == [10_000] * 4


def test_a_dividend_belongs_to_who_held_over_the_night() -> None:
    events = {2: (1.0, 3.0)}
    bought = run([QUIET] * 4, {1: ENTER_LONG}, events=events)
    assert the_trade(bought)["dividends"] == 0
    sold = run([QUIET] * 4, {0: ENTER_LONG, 1: EXIT_LONG}, events=events)
    assert story(sold)[0][4:] == (2, 100, "signal")
    assert the_trade(sold)["dividends"] == 30
    turned = trades(run([QUIET] * 4, {0: ENTER_LONG, 1: ENTER_SHORT}, events=events))
    assert [t["dividends"] for t in turned] == [30, 0]


def test_a_dividend_leaves_the_bracket_where_it_is() -> None:
    # Levels are prices. The ex-session opens below the stop, so it stops.
    ex = (97.0, 97.5, 96.5, 97.0)
    found = run([QUIET, QUIET, ex], {0: ENTER_LONG}, BRACKET, events={2: (1, 3.0)})
    assert story(found)[0][4:] == (2, 97, "stop")
    assert the_trade(found)["pnl"] == 0


def test_a_split_multiplies_the_shares_and_divides_the_prices() -> None:
    half, up = (50.0, 50.25, 49.75, 50.0), (55.0, 55.0, 55.0, 55.0)
    found = run([QUIET, QUIET, half, half, up], {0: ENTER_LONG, 3: EXIT_LONG}, events={2: (2, 0)})
    trade = the_trade(found)
    assert found.shares.tolist() == [0, 10, 20, 20, 0]
    assert found.equity.tolist() == [10_000, 10_000, 10_000, 10_000, 10_100]
    # Counted in shares of the entry: ten, bought at 100 and sold at 110.
    assert (trade["shares"], trade["entry_price"], trade["exit_price"]) == (10, 100, 110)
    assert trade["split_factor"] == 2
    assert trade["pnl"] == 100
    assert trade["trade_return"] == pytest.approx(0.1)
    assert (trade["mae"], trade["mfe"]) == (pytest.approx(-0.005), pytest.approx(0.1))


@pytest.mark.parametrize(("split", "shares"), [(1.5, 7.5), (0.1, 0.5), (3.0, 15.0)])
def test_fractions_of_a_split_stay(split: float, shares: float) -> None:
    price = 100 / split
    after = (price, price, price, price)
    five = Rules("shares", 5)
    found = run([QUIET, QUIET, after, after], {0: ENTER_SHORT, 2: EXIT_SHORT}, five, events={2: (split, 0)})
    assert found.shares.tolist() == [0, -5, pytest.approx(-shares), 0]
    assert the_trade(found)["exit_price"] == pytest.approx(100)
    assert the_trade(found)["pnl"] == pytest.approx(0)
    assert found.equity.tolist() == [pytest.approx(10_000)] * 4


@pytest.mark.parametrize(
    ("bar", "price", "reason"),
    [
        ((50.0, 51.2, 49.5, 50.0), 51.0, "target"),
        ((50.0, 50.5, 49.0, 50.0), 49.25, "stop"),
        ((49.0, 49.5, 48.0, 49.0), 49.0, "stop"),
        ((50.0, 50.9, 49.3, 50.0), 50.0, "open"),
    ],
)
def test_a_split_moves_the_bracket_along(bar: Bar, price: float, reason: str) -> None:
    found = run([QUIET, QUIET, bar], {0: ENTER_LONG}, BRACKET, events={2: (2, 0)})
    assert story(found) == [("long", 10, 1, 100, 2, 2 * price, reason)]
    assert the_trade(found)["pnl"] == pytest.approx(20 * price - 1000)


def test_a_dividend_on_the_day_of_a_split_is_paid_on_the_new_shares() -> None:
    half = (49.0, 49.5, 48.5, 49.0)
    found = run([QUIET, QUIET, half], {0: ENTER_LONG}, events={2: (2, 1.0)})
    assert the_trade(found)["dividends"] == 20
    assert found.equity.tolist() == [10_000] * 3


def test_a_split_or_a_dividend_on_the_day_of_the_entry_is_over() -> None:
    half = (50.0, 50.0, 50.0, 50.0)
    found = run([QUIET, half, half], {0: ENTER_LONG}, events={1: (2, 3.0)})
    assert found.shares.tolist() == [0, 10, 10]
    assert the_trade(found)["split_factor"] == 1
    assert the_trade(found)["dividends"] == 0


# -------------------------------------------------------------------------------------------------------- costs

UP: Bar = (110.0, 110.0, 110.0, 110.0)


@pytest.mark.parametrize(
    ("costs", "commission", "spread", "impact"),
    [
        # Ten shares, bought at 100 and sold at 110, in bars of 1,000 shares.
        (Costs(commission_per_share=0.02), 0.2 + 0.2, 0, 0),
        (Costs(commission_bps=10), 1.0 + 1.1, 0, 0),
        (Costs(commission_per_share=0.02, commission_bps=10), 1.2 + 1.3, 0, 0),
        (Costs(commission_per_share=0.02, commission_minimum=1.0), 1.0 + 1.0, 0, 0),
        (Costs(commission_bps=10, commission_minimum=1.05), 1.05 + 1.1, 0, 0),
        (Costs(commission_minimum=7.0), 7.0 + 7.0, 0, 0),
        (Costs(half_spread_bps=5), 0, 0.5 + 0.55, 0),
        # A hundredth of the volume: a tenth of the cost of all of it.
        (Costs(impact_bps=100), 0, 0, 1000 * 0.01 * 0.1 + 1100 * 0.01 * 0.1),
        (Costs(commission_bps=10, half_spread_bps=5, impact_bps=100), 2.1, 1.05, 2.1),
    ],
)
@pytest.mark.parametrize(("flag", "sign"), [(ENTER_LONG, 1), (ENTER_SHORT, -1)])
def test_what_trading_costs(
    costs: Costs, commission: float, spread: float, impact: float, flag: int, sign: int
) -> None:
    found = run([QUIET, QUIET, UP], {0: flag, 1: EXIT_LONG + EXIT_SHORT}, costs=costs, volume=1000)
    trade = the_trade(found)
    assert trade["commission"] == pytest.approx(commission)
    assert trade["spread"] == pytest.approx(spread)
    assert trade["impact"] == pytest.approx(impact)
    paid = commission + spread + impact
    assert trade["pnl"] == pytest.approx(sign * 100 - paid)
    assert found.equity[-1] == pytest.approx(10_000 + sign * 100 - paid)
    # Costs are paid in cash and leave the prices alone.
    assert (trade["entry_price"], trade["exit_price"]) == (100, 110)
    assert trade["trade_return"] == pytest.approx(trade["pnl"] / 1000)


@pytest.mark.parametrize("volume", [0.0, 5.0, 10.0])
def test_trading_more_than_the_volume_impacts_like_all_of_it(volume: float) -> None:
    found = run([QUIET, QUIET], {0: ENTER_LONG}, costs=Costs(impact_bps=100), volume=volume)
    assert the_trade(found)["impact"] == pytest.approx(10.0)


def test_costs_times() -> None:
    costs = Costs(0.01, 2.0, 1.0, 3.0, 40.0, 0.1, 0.5, 4.0)
    assert costs.times(2) == Costs(0.02, 4.0, 2.0, 6.0, 80.0, 0.1, 1.0, 4.0)
    assert costs.times(0) == Costs(participation_cap=0.1, interest_annual_pct=4.0)


def test_a_short_pays_for_the_shares_it_borrows() -> None:
    rows = [QUIET, QUIET, UP, UP]
    found = run(rows, {0: ENTER_SHORT, 2: EXIT_SHORT}, costs=Costs(borrow_annual_pct=25.2))
    # A thousandth of the value at the close before, each night: of 1,000 and of 1,100 dollars.
    assert the_trade(found)["borrow"] == pytest.approx(1.0 + 1.1)
    assert the_trade(found)["pnl"] == pytest.approx(-100 - 2.1)
    assert found.equity.tolist() == pytest.approx([10_000, 10_000, 10_000 - 101, 10_000 - 102.1])
    long = run(rows, {0: ENTER_LONG, 2: EXIT_LONG}, costs=Costs(borrow_annual_pct=25.2))
    assert the_trade(long)["borrow"] == 0


def test_cash_earns_interest_every_night() -> None:
    costs = Costs(interest_annual_pct=25.2)
    idle = run([QUIET] * 3, {}, costs=costs)
    assert idle.equity.tolist() == pytest.approx([10_000, 10_010, 10_020.01])
    assert idle.interest == pytest.approx(20.01)
    # What is invested earns none.
    held = run([QUIET] * 3, {0: ENTER_LONG}, Rules("shares", 50), costs)
    assert held.cash.tolist() == pytest.approx([10_000, 5_010, 5_015.01])
    assert held.interest == pytest.approx(15.01)
    assert the_trade(held)["pnl"] == 0


def test_the_proceeds_of_a_short_earn_no_interest() -> None:
    rows = [QUIET, QUIET, UP, UP]
    found = run(rows, {0: ENTER_SHORT}, costs=Costs(interest_annual_pct=25.2))
    # 10,000 before it; 11,010 less 1,000 of shares at 100; 11,020.01 less 1,100 of shares at 110.
    assert found.interest == pytest.approx(10 + 10.01 + 9.92001)
    assert found.cash[-1] == pytest.approx(11_000 + 29.93001)
    assert the_trade(found)["pnl"] == -100


def test_a_negative_balance_pays_interest() -> None:
    found = run([QUIET] * 3, {0: ENTER_LONG}, Rules(size=2.0), Costs(interest_annual_pct=25.2), leverage=2.0)
    # 10,010 dollars buy 200 shares; the balance of -9,990 pays 9.99.
    assert found.shares.tolist() == [0, 200, 200]
    assert found.cash.tolist() == pytest.approx([10_000, -9_990, -9_999.99])
    assert found.interest == pytest.approx(10 - 9.99)


def test_a_negative_rate_costs() -> None:
    assert run([QUIET] * 2, {}, costs=Costs(interest_annual_pct=-25.2)).equity[-1] == pytest.approx(9_990)


# ------------------------------------------------------------------------------------------ what a bar's volume allows

TENTH = Costs(participation_cap=0.1)


def test_what_the_cap_leaves_of_an_entry_is_reported_and_not_tried_again() -> None:
    found = run([QUIET] * 5, {0: ENTER_LONG}, Rules("shares", 25), TENTH, volume=100)
    assert found.shares.tolist() == [0, 10, 10, 10, 10]
    assert the_trade(found)["shares"] == 10
    assert refused(found) == [(1, "long", 15, "participation")]


def test_an_entry_without_volume_is_not_filled_at_all() -> None:
    found = run([QUIET] * 3, {0: ENTER_SHORT}, TEN, TENTH, volume=0)
    assert found.trades.num_rows == 0
    assert refused(found) == [(1, "short", 10, "participation")]


def test_entries_are_cut_to_whole_shares_below_the_cap() -> None:
    found = run([QUIET] * 3, {0: ENTER_LONG}, Rules("shares", 25), TENTH, volume=107)
    assert found.shares[-1] == 10
    assert refused(found) == [(1, "long", 15, "participation")]
    found = run([QUIET] * 3, {0: ENTER_LONG}, Rules("shares", 25), TENTH, volume=107, whole_shares=False)
    assert found.shares[-1] == pytest.approx(10.7)
    assert refused(found) == [(1, "long", pytest.approx(14.3), "participation")]


def test_a_cap_that_is_a_whole_number_but_for_rounding_allows_that_number() -> None:
    assert 0.29 * 100 < 29
    found = run([QUIET] * 3, {0: ENTER_LONG}, Rules("shares", 40), Costs(participation_cap=0.29), volume=100)
    assert found.shares[-1] == 29


def test_what_the_cap_leaves_of_an_exit_goes_to_the_next_opens() -> None:
    rows = [QUIET, QUIET, *[(100.0 + i, 100.0 + i, 100.0 + i, 100.0 + i) for i in (1, 2, 3, 4)]]
    volume = [1000, 1000, 100, 100, 100, 100]
    found = run(rows, {0: ENTER_LONG, 1: EXIT_LONG, 3: ENTER_SHORT}, Rules("shares", 25), TENTH, volume)
    # 10 at 101, 10 at 102, 5 at 103; the entry of bar 3 turns it into a reversal, which finds 5 shares left at 103.
    assert found.shares.tolist() == [0, 25, 15, 5, -5, -5]
    first, second = trades(found)
    assert first["exit_price"] == pytest.approx((10 * 101 + 10 * 102 + 5 * 103) / 25)
    assert (first["entry"], first["exit"], first["reason"]) == (1, 4, "reversal")
    assert first["pnl"] == pytest.approx(10 + 20 + 15)
    assert (second["entry"], second["shares"]) == (4, 5)
    assert refused(found) == [(4, "short", 20, "participation")]


def test_there_is_no_entry_while_an_exit_is_unfinished() -> None:
    volume = [1000, 1000, 100, 100, 100, 100, 100]
    found = run([QUIET] * 7, {0: ENTER_LONG, 1: ENTER_SHORT}, Rules("shares", 25), TENTH, volume)
    assert found.shares.tolist() == [0, 25, 15, 5, 0, 0, 0]
    assert story(found) == [("long", 25, 1, 100, 4, 100, "reversal")]
    assert refused(found) == [(2, "short", None, "participation")]
    # The same side again while the exit is on its way does not call it off.
    again = run([QUIET] * 7, {0: ENTER_LONG, 1: EXIT_LONG, 2: ENTER_LONG}, Rules("shares", 25), TENTH, volume)
    assert again.shares.tolist() == [0, 25, 15, 5, 0, 0, 0]
    assert refused(again) == []


def test_an_exit_waits_for_a_bar_with_volume() -> None:
    volume = [1000, 1000, 0, 0, 1000]
    found = run([QUIET] * 5, {0: ENTER_LONG, 1: EXIT_LONG}, TEN, TENTH, volume)
    assert found.shares.tolist() == [0, 10, 10, 10, 0]
    assert story(found) == [("long", 10, 1, 100, 4, 100, "signal")]


def test_exit_and_entry_of_a_reversal_share_the_bar() -> None:
    found = run([QUIET] * 3, {0: ENTER_LONG, 1: ENTER_SHORT}, TEN, TENTH, volume=[100, 100, 160])
    assert found.shares.tolist() == [0, 10, -6]
    assert refused(found) == [(2, "short", 4, "participation")]


def test_entry_and_stop_share_the_bar() -> None:
    down, next_ = (100.0, 100.0, 98.0, 99.0), (97.0, 97.0, 97.0, 97.0)
    found = run([QUIET, down, next_], {0: ENTER_LONG}, BRACKET, TENTH, volume=[100, 140, 1000])
    # Ten of fourteen are bought, so four can be sold at the stop, and the rest at the next open.
    assert found.shares.tolist() == [0, 6, 0]
    trade = the_trade(found)
    assert trade["exit_price"] == pytest.approx((4 * 98.5 + 6 * 97) / 10)
    assert (trade["exit"], trade["reason"]) == (2, "stop")
    assert trade["pnl"] == pytest.approx(-4 * 1.5 - 6 * 3)


def test_a_position_still_being_sold_at_the_end_is_marked_at_the_last_close() -> None:
    rows = [QUIET, QUIET, (101.0, 101.0, 101.0, 101.0), (102.0, 104.0, 102.0, 104.0)]
    found = run(rows, {0: ENTER_LONG, 1: EXIT_LONG}, Rules("shares", 25), TENTH, [1000, 1000, 100, 100])
    trade = the_trade(found)
    assert found.shares.tolist() == [0, 25, 15, 5]
    assert trade["reason"] == "open"
    assert trade["exit_price"] == pytest.approx((10 * 101 + 10 * 102 + 5 * 104) / 25)
    assert trade["pnl"] == pytest.approx(10 + 20 + 20)
    assert trade["traded_value"] == 2500 + 1010 + 1020


def test_an_exit_keeps_its_reason_until_it_is_done() -> None:
    # On bar 3 the time would be up as well.
    volume, rules = [1000, 1000, 100, 100, 100], Rules("shares", 25, max_bars=3)
    found = run([QUIET] * 5, {0: ENTER_LONG, 1: EXIT_LONG}, rules, TENTH, volume)
    assert found.shares.tolist() == [0, 25, 15, 5, 0]
    assert the_trade(found)["reason"] == "signal"
    # Nor do levels that are touched while nothing more can be traded.
    stop, target = (100.0, 100.0, 98.0, 100.0), (100.0, 103.0, 100.0, 100.0)
    rows = [QUIET, QUIET, stop, target, QUIET]
    found = run(rows, {0: ENTER_LONG, 1: EXIT_LONG}, replace(BRACKET, size=25), TENTH, volume)
    assert found.shares.tolist() == [0, 25, 15, 5, 0]
    assert story(found) == [("long", 25, 1, 100, 4, 100, "signal")]


def test_a_bar_whose_volume_is_used_up_trades_no_crumbs() -> None:
    # In binary 100.7 - 90.4 is not 10.3. What the open leaves of the cap must be nothing, or the stop below it sends an
    # order of 1e-15 shares that pays the minimum commission.
    volume, rules = [10_000, 10_000, 103, 103], Rules("shares", 100.7, stop_loss_pct=1.5)
    rows = [QUIET, QUIET, (100.0, 100.0, 98.0, 98.0), (98.0, 98.0, 98.0, 98.0)]
    costs = Costs(commission_minimum=1.0, participation_cap=0.1)
    found = run(
        rows, {0: ENTER_LONG, 1: EXIT_LONG}, rules, costs, volume, whole_shares=False, initial_cash=1e6
    )
    assert the_trade(found)["commission"] == 3.0  # the entry, and one order at each of two opens


def test_a_position_that_is_sold_leaves_no_crumbs() -> None:
    # Three times 0.3 is not 0.9 in binary. After three bars nothing is left, and not 1e-16 of a share.
    assert 0.9 - 0.3 - 0.3 > 0.3
    found = run(
        [QUIET] * 6,
        {0: ENTER_LONG, 1: EXIT_LONG},
        Rules("shares", 0.9),
        Costs(participation_cap=0.3, commission_minimum=1.0),
        [10, 10, 1, 1, 1, 1],
        whole_shares=False,
    )
    assert found.shares.tolist() == [0, 0.9, pytest.approx(0.6), pytest.approx(0.3), 0, 0]
    assert the_trade(found)["commission"] == 4.0
    # A reversal finds nothing left of the volume either.
    found = run(
        [QUIET] * 4,
        {0: ENTER_LONG, 1: ENTER_SHORT},
        Rules("shares", 0.3),
        Costs(participation_cap=0.1),
        [10, 10, 3, 3],
        whole_shares=False,
    )
    assert 3 * 0.1 > 0.3
    assert found.shares.tolist() == [0, 0.3, 0, 0]
    assert refused(found) == [(2, "short", 0.3, "participation")]


def test_a_split_in_an_unfinished_exit_keeps_its_price_in_shares_of_the_entry() -> None:
    half = (50.0, 50.0, 50.0, 50.0)
    found = run(
        [QUIET, QUIET, QUIET, half, half, half],
        {0: ENTER_LONG, 1: EXIT_LONG},
        Rules("shares", 25),
        TENTH,
        [1000, 1000, 100, 100, 100, 1000],
        {3: (2, 0)},
    )
    assert found.shares.tolist() == [0, 25, 15, 20, 10, 0]
    assert the_trade(found)["exit_price"] == pytest.approx(100)
    assert the_trade(found)["pnl"] == pytest.approx(0)


# ------------------------------------------------------------------------------------------------ size and buying power


def test_a_fraction_of_the_equity_at_the_open() -> None:
    rows = [QUIET, (99.0, 99.0, 99.0, 99.0)]
    assert the_trade(run(rows, {0: ENTER_LONG}, Rules(size=0.5)))["shares"] == 50  # 5,000 / 99 is 50.5
    assert the_trade(run(rows, {0: ENTER_SHORT}))["shares"] == 10
    whole = run(rows, {0: ENTER_LONG}, Rules(size=0.5), whole_shares=False)
    assert the_trade(whole)["shares"] == pytest.approx(5000 / 99)


def test_all_of_the_equity_pays_its_own_costs() -> None:
    costs = Costs(commission_bps=100, half_spread_bps=100)
    found = run([QUIET, QUIET], {0: ENTER_LONG}, Rules(), costs, whole_shares=False)
    assert the_trade(found)["shares"] == pytest.approx(10_000 / 102)
    assert found.cash[-1] == pytest.approx(0, abs=1e-8)
    assert run([QUIET, QUIET], {0: ENTER_LONG}, Rules(), costs).shares[-1] == 98
    # Per share, with a minimum, and with an impact that grows with the order.
    for costs in (
        Costs(commission_per_share=0.5),
        Costs(commission_per_share=0.5, commission_minimum=200),
        Costs(commission_per_share=0.5, commission_minimum=1),
        Costs(commission_minimum=30, half_spread_bps=20),
        Costs(commission_per_share=0.1, commission_bps=10, half_spread_bps=5, impact_bps=300),
    ):
        found = run([QUIET, QUIET], {0: ENTER_LONG}, Rules(), costs, volume=200, whole_shares=False)
        assert found.cash[-1] == pytest.approx(0, abs=1e-6)
        assert found.cash[-1] > -1e-9
        assert 90 < found.shares[-1] < 100


def test_a_whole_share_that_rounding_took_is_given_back() -> None:
    # 0.57 of 10,000 is 5,700 but for rounding, and buys 57 shares.
    assert 0.57 * 10_000 / 100 < 57
    assert the_trade(run([QUIET, QUIET], {0: ENTER_LONG}, Rules(size=0.57)))["shares"] == 57


@pytest.mark.parametrize("flag", [ENTER_LONG, ENTER_SHORT])
def test_leverage_is_buying_power_for_both_sides(flag: int) -> None:
    def shares(size: float, leverage: float) -> float:
        return abs(run([QUIET, QUIET], {0: flag}, Rules(size=size), leverage=leverage).shares[-1])

    assert shares(1.0, 1.0) == 100
    assert shares(1.0, 2.0) == 100  # asked for one, gets one
    assert shares(2.0, 2.0) == 200
    assert shares(3.0, 2.0) == 200  # cut to what the power pays for
    assert shares(2.0, 1.0) == 100
    assert shares(1.0, 0.5) == 50


def test_fixed_shares_beyond_the_buying_power_are_rejected() -> None:
    for size, costs, leverage, filled in (
        (100, Costs(), 1.0, True),
        (101, Costs(), 1.0, False),
        (100, Costs(commission_minimum=1.0), 1.0, False),
        (99, Costs(commission_minimum=1.0), 1.0, True),
        (200, Costs(), 2.0, True),
        (201, Costs(), 2.0, False),
    ):
        for flag, side in ((ENTER_LONG, "long"), (ENTER_SHORT, "short")):
            found = run([QUIET, QUIET], {0: flag}, Rules("shares", size), costs, leverage=leverage)
            assert abs(found.shares[-1]) == (size if filled else 0)
            assert refused(found) == ([] if filled else [(1, side, size, "cash")])


def test_an_order_that_rejected_is_not_tried_again() -> None:
    cheap = (50.0, 50.0, 50.0, 50.0)
    found = run([QUIET, QUIET, cheap, cheap], {0: ENTER_LONG}, Rules("shares", 150))
    assert found.trades.num_rows == 0
    found = run([QUIET, QUIET, cheap, cheap], {0: ENTER_LONG, 1: ENTER_LONG}, Rules("shares", 150))
    assert story(found)[0][:4] == ("long", 150, 2, 50)
    assert refused(found) == [(1, "long", 150, "cash")]


def test_less_than_a_share_is_no_order() -> None:
    dear = (20_000.0, 20_000.0, 20_000.0, 20_000.0)
    found = run([dear, dear], {0: ENTER_LONG}, Rules())
    assert found.trades.num_rows == 0
    assert refused(found) == [(1, "long", 0, "size")]
    assert run([dear, dear], {0: ENTER_LONG}, Rules(), whole_shares=False).shares[-1] == 0.5
    # Costs that no money is left for.
    found = run([QUIET, QUIET], {0: ENTER_LONG}, Rules(), Costs(commission_minimum=20_000))
    assert refused(found) == [(1, "long", 0, "size")]


def test_an_exit_that_ends_in_debt_leaves_nothing_to_order() -> None:
    # The short is bought back at 250, beyond the account, and there is no long to follow it.
    gap = (250.0, 250.0, 250.0, 250.0)
    found = run([QUIET, QUIET, gap, gap], {0: ENTER_SHORT, 1: ENTER_LONG}, Rules())
    assert found.equity.tolist() == [10_000, 10_000, -5_000, -5_000]
    assert story(found) == [("short", 100, 1, 100, 2, 250, "reversal")]
    assert refused(found) == [(2, "long", 0, "size")]


def test_sizing_by_volatility() -> None:
    closes = [100.0, 110.0, 104.5, 104.5, 104.5]
    rows = [(c, c, c, c) for c in closes]
    rules = Rules("volatility", 0.15, volatility_sessions=2)
    # Two returns known at bar 2: their standard deviation is half their difference times the root of two.
    annual = (math.log(1.1) - math.log(0.95)) / math.sqrt(2) * math.sqrt(252)
    found = run(rows, {2: ENTER_LONG}, rules, whole_shares=False)
    assert the_trade(found)["shares"] == pytest.approx(0.15 / annual * 10_000 / 104.5)
    # A target above the volatility is cut to the buying power.
    large = Rules("volatility", 100.0, volatility_sessions=2)
    found = run(rows, {2: ENTER_LONG}, large, whole_shares=False, leverage=2.0)
    assert the_trade(found)["shares"] == pytest.approx(20_000 / 104.5)


def test_an_unknown_volatility_rejects_the_entry() -> None:
    closes = [100.0, 110.0, 104.5, 104.5, 104.5, 104.5]
    rows = [(c, c, c, c) for c in closes]
    rules = Rules("volatility", 0.15, volatility_sessions=2)
    # Too few returns at bar 1; none that differ at bar 4.
    found = run(rows, {1: ENTER_LONG, 4: ENTER_SHORT}, rules)
    assert found.trades.num_rows == 0
    assert [(r[0], r[1], r[3]) for r in refused(found)] == [
        (2, "long", "volatility"),
        (5, "short", "volatility"),
    ]


def test_a_window_knows_the_volatility_before_it() -> None:
    closes = [100.0, 110.0, 104.5, 104.5, 104.5]
    bars = market([(c, c, c, c) for c in closes])
    rules = Rules("volatility", 0.15, volatility_sessions=2)
    found = simulate(bars, flags(5, {2: ENTER_LONG}), rules, account=Account(10_000.0), first=2)
    whole = simulate(bars, flags(5, {2: ENTER_LONG}), rules, account=Account(10_000.0))
    assert found.trades.num_rows == 1
    assert found.trades.equals(whole.trades)


def test_trailing_volatility_is_of_total_returns() -> None:
    # Neither the split of bar 2 nor the dividend of bar 3 is a price move.
    rows = [(c, c, c, c) for c in (100.0, 101.0, 50.5, 48.5, 49.0)]
    bars = market(rows, events={2: (2, 0), 3: (1, 2.0)})
    found = trailing_volatility(bars, 2)
    total = np.log([101 / 100, 50.5 * 2 / 101, (48.5 + 2) / 50.5, 49 / 48.5])
    assert np.isnan(found[:2]).all()
    for t in (2, 3, 4):
        assert found[t] == pytest.approx(np.std(total[t - 2 : t], ddof=1) * math.sqrt(252))
    assert np.isnan(trailing_volatility(bars, 5)).all()


# --------------------------------------------------------------------------------------------------------- ruin


def test_a_short_that_costs_more_than_the_account_is_its_ruin() -> None:
    up = (210.0, 210.0, 210.0, 210.0)
    costs = Costs(commission_bps=10)
    found = run([QUIET, QUIET, up, QUIET, QUIET], {0: ENTER_SHORT, 3: ENTER_LONG}, Rules("shares", 95), costs)
    # 95 shares short at 100 for 9.5 of commission, marked at 210: 10,000 - 9.5 - 10,450, without costs of the exit.
    assert story(found) == [("short", 95, 1, 100, 2, 210, "ruin")]
    trade = the_trade(found)
    assert trade["pnl"] == pytest.approx(-10_459.5)
    assert trade["commission"] == pytest.approx(9.5)
    assert trade["bars_held"] == 2
    assert trade["mae"] == pytest.approx(-1.1)
    assert found.equity.tolist() == pytest.approx([10_000, 9_990.5, -459.5, -459.5, -459.5])
    assert found.shares.tolist() == [0, -95, 0, 0, 0]
    assert found.rejected.num_rows == 0


def test_nothing_left_is_ruin_too_and_a_cent_is_not() -> None:
    for price, reason in ((200.0, "ruin"), (199.99, "open")):
        bar = (price, price, price, price)
        assert the_trade(run([QUIET, QUIET, bar, bar], {0: ENTER_SHORT}, Rules()))["reason"] == reason


def test_ruin_ends_what_was_still_being_sold() -> None:
    up, down = (210.0, 210.0, 210.0, 210.0), (90.0, 90.0, 90.0, 90.0)
    volume = [1000, 1000, 100, 1000, 1000]
    found = run([QUIET, QUIET, up, down, down], {0: ENTER_SHORT, 1: EXIT_SHORT}, Rules(), TENTH, volume)
    # Ten of a hundred are bought back at 210, the rest is marked there.
    assert story(found) == [("short", 100, 1, 100, 2, 210, "ruin")]
    assert found.equity.tolist() == [10_000, 10_000, -1_000, -1_000, -1_000]
    assert found.shares.tolist() == [0, -100, 0, 0, 0]
    assert the_trade(found)["traded_value"] == 10_000 + 21_000


def test_a_long_on_credit_can_be_ruined() -> None:
    down = (49.0, 49.0, 49.0, 49.0)
    found = run([QUIET, QUIET, down, down], {0: ENTER_LONG}, Rules(size=2.0), leverage=2.0)
    assert story(found) == [("long", 200, 1, 100, 2, 49, "ruin")]
    assert found.equity.tolist() == [10_000, 10_000, -200, -200]


# ------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def bars() -> BarSeries:
    return market([QUIET] * 4)


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), ()])
def test_decisions_must_be_one_per_bar(bars: BarSeries, shape: tuple[int, ...]) -> None:
    with pytest.raises(BacktestError, match=r"TEST: decisions have shape \(.*\) for 4 bars"):
        simulate(bars, np.zeros(shape, np.int8), TEN)


@pytest.mark.parametrize(("first", "last"), [(2, 2), (3, 1), (4, None), (0, 5), (-1, 3), (0, 0)])
def test_a_window_must_hold_a_bar(bars: BarSeries, first: int, last: int | None) -> None:
    with pytest.raises(
        BacktestError, match=r"TEST: the window holds no bar .*of 4, 2012-01-02 to 2012-01-05"
    ):
        simulate(bars, np.zeros(4, np.int8), TEN, first=first, last=last)


@pytest.mark.parametrize("name", Costs._fields)
@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf])
def test_costs_are_not_negative(bars: BarSeries, name: str, value: float) -> None:
    costs = Costs()._replace(**{name: value})
    if name == "interest_annual_pct" and value == -0.01:
        assert check_costs(costs) == costs
        return
    with pytest.raises(BacktestError, match=rf"{name} = {value} must be a number of at least 0"):
        simulate(bars, np.zeros(4, np.int8), TEN, costs)


def test_a_cap_is_a_share_of_the_volume(bars: BarSeries) -> None:
    assert check_costs(Costs(participation_cap=1)).participation_cap == 1.0
    with pytest.raises(BacktestError, match=r"participation_cap = 1\.5 must lie in 0\.\.1"):
        simulate(bars, np.zeros(4, np.int8), TEN, Costs(participation_cap=1.5))


@pytest.mark.parametrize("name", ["initial_cash", "leverage"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_an_account_has_money_and_buying_power(bars: BarSeries, name: str, value: float) -> None:
    with pytest.raises(BacktestError, match=rf"{name} = {value} must be a number above 0"):
        simulate(bars, np.zeros(4, np.int8), TEN, account=Account()._replace(**{name: value}))


def test_whole_numbers_are_taken_as_numbers() -> None:
    # One type for the kernel, or it would be compiled again for each mixture.
    assert all(type(value) is float for value in check_costs(Costs(1, 2, 3, 4, 5, 0, 6, 7)))
    account = check_account(Account(1000, 2, 1, 0))
    assert [type(value) for value in account] == [float, float, bool, bool]
    assert [type(value) for value in rule_of(Rules("shares", 10, 2, 1, 5))] == [int, float, float, float, int]


@pytest.mark.parametrize("name", ["open", "high", "low", "close", "volume", "dividend", "split_factor"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bars_that_nothing_can_be_computed_from_are_named(name: str, value: float) -> None:
    rows = table([QUIET] * 4)
    values = rows[name].to_pylist()
    values[2] = value
    broken = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    if value == 0.0 and name in ("volume", "dividend"):
        assert len(bar_series(broken)["TEST"]) == 4
        return
    with pytest.raises(SeriesError, match=rf"TEST, session 2012-01-04: {name} = {value} is not a number"):
        bar_series(broken)


@pytest.mark.parametrize(
    "row", [(100.0, 99.0, 98.0, 98.5), (100.0, 101.0, 100.5, 101.0), (100.0, 101.0, 99.0, 102.0)]
)
def test_a_range_holds_its_open_and_close(row: Bar) -> None:
    with pytest.raises(
        SeriesError, match=r"TEST, session 2012-01-03: low = .* range of low to high that holds"
    ):
        market([QUIET, row])


def test_sessions_come_once_and_in_order(bars: BarSeries) -> None:
    twice = pa.concat_tables([table([QUIET] * 3), table([QUIET] * 2)])
    with pytest.raises(SeriesError, match="TEST: session 2012-01-02 does not come after 2012-01-02"):
        bar_series(twice)
    with pytest.raises(SeriesError, match="TEST: session 2012-01-04 does not come after 2012-01-05"):
        replace(bars, sessions=bars.sessions[::-1])
    # A table is sorted; its order says nothing.
    shuffled = table([QUIET, (101.0, 102.0, 100.0, 101.0), QUIET]).take([2, 0, 1])
    assert bar_series(shuffled)["TEST"].close.tolist() == [100, 101, 100]


def test_a_series_has_bars_and_one_length(bars: BarSeries) -> None:
    with pytest.raises(SeriesError, match="the table of bars is empty"):
        bar_series(table([]))
    with pytest.raises(SeriesError, match="no bars of ZZZ; there are bars of TEST"):
        bar_series(table([QUIET]), ["TEST", "ZZZ"])
    with pytest.raises(SeriesError, match="TEST: no bar at all"):
        bars.cut(2, 2)
    with pytest.raises(SeriesError, match="TEST: volume has 3 values for 4 sessions"):
        replace(bars, volume=bars.volume[:3])


# ------------------------------------------------------------------------------------------- what holds on any bars


@st.composite
def markets(draw: st.DrawFn, events: bool = True, bars: int = 24) -> BarSeries:
    """Bars of up to 6 % a day in steps of half a percent, so that levels of whole percents are met exactly."""
    steps = st.tuples(
        st.integers(-12, 12),  # open against the close before
        st.integers(0, 12),  # high above the higher, and
        st.integers(0, 12),  # low below the lower of open and close
        st.integers(-12, 12),  # close against the open
        st.sampled_from([1e6, 1e4, 731.0, 60.0, 7.0, 0.0]),
        st.sampled_from([(1.0, 0.0)] * 6 + [(1.0, 0.7), (2.0, 0.0), (0.5, 0.0), (1.5, 0.4)]),
    )
    n = draw(st.integers(1, bars))
    rows, volume, special, last = [], [], {}, 100.0
    for i, (gap, up, down, move, traded, event) in enumerate(draw(st.lists(steps, min_size=n, max_size=n))):
        if events and event != (1.0, 0.0):
            special[i] = event
            last /= event[0]
        open_ = last * (1 + gap / 200)
        close = open_ * (1 + move / 200)
        rows.append((open_, max(open_, close) * (1 + up / 200), min(open_, close) * (1 - down / 200), close))
        volume.append(traded)
        last = close
    return market(rows, volume, special)


def decided(bars: BarSeries) -> st.SearchStrategy[np.ndarray]:
    flag = st.sampled_from([0, 0, 0, 1, 1, 2, 2, 4, 8, 3, 5, 6, 9, 10, 12, 15])
    return st.lists(flag, min_size=len(bars), max_size=len(bars)).map(lambda f: np.array(f, dtype=np.int8))


SIZES = st.sampled_from(
    [
        ("shares", 10),
        ("shares", 7.5),
        ("fraction", 1.0),
        ("fraction", 0.3),
        ("fraction", 1.8),
        ("volatility", 0.2),
    ]
)
RULES = st.builds(
    lambda size, target, stop, max_bars: Rules(*size, target, stop, max_bars, volatility_sessions=2),
    SIZES,
    st.sampled_from([None, 1.0, 2.0, 5.0]),
    st.sampled_from([None, 1.0, 1.5, 4.0]),
    st.sampled_from([None, 1, 3]),
)
COSTS = st.builds(
    Costs,
    st.sampled_from([0.0, 0.01]),
    st.sampled_from([0.0, 10.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([0.0, 50.0]),
    st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from([0.0, 4.0, -1.0]),
)
ACCOUNTS = st.builds(
    Account, st.sampled_from([10_000.0, 1_500.0]), st.sampled_from([1.0, 2.0]), st.booleans(), st.booleans()
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[BarSeries, np.ndarray, Rules, Costs, Account]:
    bars = draw(markets())
    return bars, draw(decided(bars)), draw(RULES), draw(COSTS), draw(ACCOUNTS)


Case = tuple[BarSeries, np.ndarray, Rules, Costs, Account]


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_money_is_neither_made_nor_lost_on_the_way(case: Case) -> None:
    """At each close equity is cash plus shares at their price, and what it gained is the trades' pnl and the interest."""
    bars, _, _, _, account = case
    found = simulate(*case)
    assert np.array_equal(found.equity, found.cash + found.shares * bars.close)
    gained = math.fsum([*found.trades["pnl"].to_pylist(), found.interest])
    assert account.initial_cash + gained == pytest.approx(found.equity[-1], rel=1e-9, abs=1e-9)
    # A trade's pnl is what its prices say, less its costs, plus its dividends.
    for trade in trades(found):
        side = 1 if trade["side"] == "long" else -1
        moved = side * trade["shares"] * (trade["exit_price"] - trade["entry_price"])
        paid = trade["commission"] + trade["spread"] + trade["impact"] + trade["borrow"]
        value = trade["shares"] * trade["entry_price"]
        assert trade["pnl"] == pytest.approx(moved - paid + trade["dividends"], rel=1e-9, abs=1e-9 * value)
        assert trade["trade_return"] == pytest.approx(trade["pnl"] / value)


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_no_trade_without_a_decision_and_no_price_that_was_not_there(case: Case) -> None:
    """Whatever happens has its reason in the decisions and the bar; with no cap, a trade ends in one fill."""
    bars, decisions, rules, costs, account = case
    costs = costs._replace(participation_cap=0.0)
    found = simulate(bars, decisions, rules, costs, account)
    splits = np.cumprod(bars.split_factor)
    target, stop = (rules.profit_target_pct or 0) / 100, (rules.stop_loss_pct or 0) / 100
    held = np.zeros(len(bars))
    for trade in trades(found):
        side = 1 if trade["side"] == "long" else -1
        entry, exit_, reason = trade["entry"], trade["exit"], trade["reason"]
        enter, opposite, leave = (
            (ENTER_LONG, ENTER_SHORT, EXIT_LONG) if side > 0 else (ENTER_SHORT, ENTER_LONG, EXIT_SHORT)
        )
        assert decisions[entry - 1] & enter
        assert not decisions[entry - 1] & opposite
        assert trade["entry_price"] == pytest.approx(bars.open[entry], rel=1e-14)
        if account.whole_shares:
            assert trade["shares"] == int(trade["shares"])
        assert trade["mae"] <= 0 <= trade["mfe"]
        # Prices of bar t in shares of the entry.
        since = splits / splits[entry]
        price, level = trade["exit_price"], trade["entry_price"] * (1 + side * np.array([target, -stop]))
        slack = 1e-9 * trade["entry_price"]
        if reason in ("signal", "reversal", "time"):
            assert price == pytest.approx(bars.open[exit_] * since[exit_])
            wanted = {"signal": leave, "reversal": opposite, "time": None}[reason]
            assert wanted is None or decisions[exit_ - 1] & wanted
            assert reason != "time" or exit_ - entry == rules.max_bars
        elif reason in ("open", "ruin"):
            assert price == pytest.approx(bars.close[exit_] * since[exit_])
            assert reason == "ruin" or exit_ == len(bars) - 1
        else:
            open_ = bars.open[exit_] * since[exit_]
            mine = level[0] if reason == "target" else level[1]
            toward = side if reason == "target" else -side
            gapped = exit_ > entry and toward * (open_ - mine) >= 0
            assert price == pytest.approx(open_ if gapped else mine)
            assert bars.low[exit_] * since[exit_] - slack <= price <= bars.high[exit_] * since[exit_] + slack
        held[entry : exit_ + (reason == "open")] += (
            side * trade["shares"] * since[entry : exit_ + (reason == "open")]
        )
        # No bar before the exit touched a level, and a target is not taken where the stop was touched first.
        first = entry if account.bracket_on_entry_bar else entry + 1
        last = exit_ + (reason == "open")
        for t in range(first, last):
            high, low = bars.high[t] * since[t], bars.low[t] * since[t]
            best, worst = (high, low) if side > 0 else (low, high)
            assert not target or side * (best - level[0]) < slack
            assert not stop or side * (worst - level[1]) > -slack
        if reason == "target" and stop and not gapped:
            worst = (bars.low if side > 0 else bars.high)[exit_] * since[exit_]
            assert side * (worst - level[1]) > -slack
    if "ruin" not in found.trades["reason"].to_pylist():
        assert np.allclose(found.shares, held, rtol=1e-12)


@settings(max_examples=200, deadline=None)
@given(case=cases(), data=st.data())
def test_what_comes_later_changes_nothing_before(case: Case, data: st.DataObject) -> None:
    """Cut after t: what the kernel made of the bars up to t is the same to the last bit."""
    bars, decisions, *rest = case
    t = data.draw(st.integers(1, len(bars)))
    whole, cut = simulate(bars, decisions, *rest), simulate(bars.cut(0, t), decisions[:t], *rest)
    for name in ("equity", "cash", "shares"):
        assert np.array_equal(getattr(whole, name)[:t], getattr(cut, name))
    ended = [
        row for row in whole.trades.to_pylist() if row["exit_session"] < DAYS[t] and row["reason"] != "open"
    ]
    assert [row for row in cut.trades.to_pylist() if row["reason"] != "open"] == ended
    assert cut.trades.num_rows - len(ended) == int(cut.shares[-1] != 0)
    known = [repr(row) for row in whole.rejected.to_pylist() if row["session"] < DAYS[t]]
    assert [repr(row) for row in cut.rejected.to_pylist()] == known


@settings(max_examples=100, deadline=None)
@given(case=cases(), data=st.data())
def test_a_window_is_the_same_as_a_series_that_begins_there(case: Case, data: st.DataObject) -> None:
    """Only the volatility, which is handed over, reaches back behind the window."""
    bars, decisions, rules, costs, account = case
    assume(rules.sizing != "volatility")
    first = data.draw(st.integers(0, len(bars) - 1))
    last = data.draw(st.integers(first + 1, len(bars)))
    window = simulate(bars, decisions, rules, costs, account, first, last)
    alone = simulate(bars.cut(first, last), decisions[first:last], rules, costs, account)
    for name in ("sessions", "equity", "cash", "shares"):
        assert np.array_equal(getattr(window, name), getattr(alone, name))
    assert window.trades.equals(alone.trades)
    assert window.rejected.equals(alone.rejected)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rules=RULES, costs=COSTS, on_entry_bar=st.booleans())
def test_dearer_trading_never_helps_a_fixed_number_of_shares(
    data: st.DataObject, rules: Rules, costs: Costs, on_entry_bar: bool
) -> None:
    """All costs doubled, final equity is not higher.

    Conditions: a fixed number of shares, and so much cash that no order is rejected for it and nobody is ruined. Then
    nothing but money depends on costs: both runs have the same fills, whatever the bracket, the time limit, the cap and
    the events, and cash of the dearer run is never higher. Interest keeps the order, since it is paid on a smaller sum.
    """
    bars = data.draw(markets())
    decisions = data.draw(decided(bars))
    rules = replace(rules, sizing="shares", size=10)
    account = Account(1e6, bracket_on_entry_bar=on_entry_bar)
    cheap, dear = (simulate(bars, decisions, rules, c, account) for c in (costs, costs.times(2)))
    assert story(cheap) == story(dear)
    assert "cash" not in cheap.rejected["reason"].to_pylist()
    assert (dear.equity <= cheap.equity + 1e-6).all()
    paid = sum(cheap.trades[name].to_numpy().sum() for name in ("commission", "spread", "impact", "borrow"))
    if costs.interest_annual_pct == 0:
        assert cheap.equity[-1] - dear.equity[-1] == pytest.approx(paid, abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    rules=RULES,
    size=st.sampled_from([0.3, 1.0]),
    bps=st.sampled_from([1.0, 25.0]),
    spread=st.sampled_from([0.0, 10.0]),
)
def test_dearer_trading_never_helps_a_fraction_of_the_equity(
    data: st.DataObject, rules: Rules, size: float, bps: float, spread: float
) -> None:
    """Commission and spread in basis points doubled, final equity is not higher.

    Conditions: fractions of shares, so that no rounding interferes; sizes up to all of the equity; no cap, so that the
    fills are the same, and no ruin. Then each trade multiplies equity by a number that falls with the cost c: with r the
    ratio of exit to entry price, 1 - f + f r (1 - c) / (1 + c) for a long, 1 + f ((1 - c) / (1 + c) - r) for a short, which
    is positive as long as there is no ruin. Costs *per share* may help: a smaller short loses less when the price more
    than triples. So may a minimum, which keeps a losing order from being placed, and impact, which falls with the size.
    """
    bars = data.draw(markets())
    decisions = data.draw(decided(bars))
    rules = replace(rules, sizing="fraction", size=size)
    costs, account = Costs(commission_bps=bps, half_spread_bps=spread), Account(whole_shares=False)
    cheap, dear = (simulate(bars, decisions, rules, c, account) for c in (costs, costs.times(2)))
    assume(min(cheap.equity.min(), dear.equity.min()) > 0)
    assert happened(cheap) == happened(dear)
    assert cheap.rejected.num_rows == dear.rejected.num_rows
    assert dear.equity[-1] <= cheap.equity[-1] * (1 + 1e-12)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), per_share=st.sampled_from([0.0, 0.02]), max_bars=st.sampled_from([None, 2]))
def test_a_short_is_a_long_in_the_mirror(data: st.DataObject, per_share: float, max_bars: int | None) -> None:
    """Prices mirrored at a level and sides exchanged: the same money.

    A mirror maps p to 2 a - p, so a fixed number of shares gains what it gained. Conditions: costs that do not depend on the
    price (per share), no bracket (its levels are percents of the entry price, which the mirror changes), no splits or
    dividends (a mirrored dividend would be negative), ample cash.
    """
    bars = data.draw(markets(events=False))
    decisions = data.draw(decided(bars))
    at = float(2 * bars.high.max())
    mirrored = market(
        list(zip(at - bars.open, at - bars.low, at - bars.high, at - bars.close, strict=True)), bars.volume
    )
    exchanged = ((decisions & 5) << 1) | ((decisions & 10) >> 1)
    rules, account = Rules("shares", 10, max_bars=max_bars), Account(1e6)
    costs = Costs(commission_per_share=per_share, participation_cap=data.draw(st.sampled_from([0.0, 0.1])))
    one = simulate(bars, decisions, rules, costs, account)
    other = simulate(mirrored, exchanged.astype(np.int8), rules, costs, account)
    assert np.array_equal(one.shares, -other.shares)
    assert one.equity == pytest.approx(other.equity, rel=1e-12)
    turned = {"long": "short", "short": "long"}
    for mine, theirs in zip(trades(one), trades(other), strict=True):
        assert mine["side"] == turned[theirs["side"]]
        assert mine["pnl"] == pytest.approx(theirs["pnl"], abs=1e-8)
        assert [mine[c] for c in ("entry", "exit", "reason", "shares", "bars_held")] == [
            theirs[c] for c in ("entry", "exit", "reason", "shares", "bars_held")
        ]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), rules=RULES, costs=COSTS, power=st.sampled_from([-3, 1, 6]))
def test_the_unit_of_a_share_is_of_no_consequence(
    data: st.DataObject, rules: Rules, costs: Costs, power: int
) -> None:
    """All prices times a power of two, volumes divided by it: the same equity to the last bit.

    Conditions: fractions of shares, sizing by a fraction of the equity, no commission per share.
    """
    bars = data.draw(markets())
    decisions = data.draw(decided(bars))
    rules = replace(rules, sizing="fraction", size=0.7)
    costs, account, unit = costs._replace(commission_per_share=0.0), Account(whole_shares=False), 2.0**power
    scale = dict.fromkeys(ARRAYS, unit) | {"volume": 1 / unit, "split_factor": 1.0}
    other = replace(bars, **{name: getattr(bars, name) * scale[name] for name in ARRAYS})
    one, two = (
        simulate(bars, decisions, rules, costs, account),
        simulate(other, decisions, rules, costs, account),
    )
    assert np.array_equal(one.equity, two.equity)
    assert np.array_equal(one.shares, two.shares * unit)
    assert one.trades["pnl"].equals(two.trades["pnl"])


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_a_split_is_no_event_for_the_money(case: Case) -> None:
    """The same history quoted in shares of the first bar has the same equity.

    Conditions: fractions of shares, sizing by money, no commission per share.
    """
    bars, decisions, rules, costs, account = case
    rules = rules if rules.sizing != "shares" else replace(rules, sizing="fraction", size=0.7)
    costs, account = costs._replace(commission_per_share=0.0), account._replace(whole_shares=False)
    splits = np.cumprod(np.r_[1.0, bars.split_factor[1:]])
    unsplit = replace(
        bars,
        **{name: getattr(bars, name) * splits for name in ("open", "high", "low", "close", "dividend")},
        volume=bars.volume / splits,
        split_factor=np.ones(len(bars)),
    )
    one = simulate(bars, decisions, rules, costs, account)
    two = simulate(unsplit, decisions, rules, costs, account)
    assert happened(one) == happened(two)
    assert one.equity == pytest.approx(two.equity, rel=1e-9, abs=1e-6)
    for mine, theirs in zip(trades(one), trades(two), strict=True):
        # Both in shares of the entry, which were as many of the first bar.
        for price in ("entry_price", "exit_price"):
            assert mine[price] == pytest.approx(theirs[price] / splits[mine["entry"]])


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_a_summary_tells_the_same_as_a_record(case: Case) -> None:
    """The kernel without paths and tables, as a sweep calls it: the same equity to the last bit, and the same totals."""
    bars, decisions, rules, costs, account = case
    found = simulate(*case)
    known = (
        trailing_volatility(bars, rules.volatility_sessions)
        if rules.sizing == "volatility"
        else np.empty(len(bars))
    )
    equity = np.empty(len(bars))
    arguments = (
        *market_arrays(bars),
        known,
        decisions,
        rule_of(rules),
        check_costs(costs),
        check_account(account),
    )
    totals = dict(zip(TOTALS, _simulate(*arguments, equity, None, None, None, None), strict=True))
    assert np.array_equal(equity, found.equity)
    column = {name: found.trades[name].to_numpy() for name in TRADE_SCHEMA.names}
    pnl = column["pnl"]
    assert totals == pytest.approx(
        {
            "trades": len(pnl),
            "wins": (pnl > 0).sum(),
            "gross_profit": pnl[pnl > 0].sum(),
            "gross_loss": -pnl[pnl < 0].sum(),
            "pnl_squared": (pnl**2).sum(),
            "traded_value": column["traded_value"].sum(),
            "costs": sum(column[name].sum() for name in ("commission", "spread", "impact", "borrow")),
            "rejected": found.rejected.num_rows,
            "interest": found.interest,
        },
        rel=1e-12,
    )


def test_the_tolerance_is_a_rounding_error_and_no_more() -> None:
    assert 1e-15 < TOUCH_TOLERANCE <= 1e-9
