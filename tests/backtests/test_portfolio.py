"""Several symbols and windows: the money is split, the accounts add up, and nothing sees what comes later."""

import datetime as dt
import itertools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_assets.backtests.engine import (
    REJECTION_SCHEMA,
    TRADE_SCHEMA,
    Account,
    BacktestError,
    Costs,
    simulate,
)
from quant_assets.backtests.portfolio import (
    Backtest,
    Window,
    on_axis,
    run_backtest,
    session_axis,
    split_windows,
    walk_forward,
)
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.strategies import make_strategy
from quant_assets.strategies.strategy import ENTER_LONG, ENTER_SHORT, Strategy

EVERYTHING = Costs(0.005, 1, 1, 2, 10, 0.1, 1, 3)
FACEBOOK_YEAR = Window(dt.date(2012, 3, 1), dt.date(2013, 3, 1))
SMA = make_strategy("sma_crossover", fast_period=5, slow_period=20)


@pytest.fixture(scope="module")
def series(sample_bars: pa.Table) -> dict[str, BarSeries]:
    return bar_series(sample_bars)


def pick(series: dict[str, BarSeries], *symbols: str) -> dict[str, BarSeries]:
    return {symbol: series[symbol] for symbol in symbols}


def until(bars: BarSeries, last: dt.date) -> BarSeries:
    return bars.cut(0, bars.position(last + dt.timedelta(days=1)))


def days(count: int) -> list[dt.date]:
    return [dt.date(2012, 1, 2) + dt.timedelta(days=i) for i in range(count)]


# ------------------------------------------------------------------------------------------------- the accounts


def test_every_symbol_gets_the_same_cash(series: dict[str, BarSeries]) -> None:
    window = Window(dt.date(2006, 1, 3), dt.date(2006, 12, 29))
    found = run_backtest(SMA, pick(series, "AAPL", "IBM", "MSFT"), window, account=Account(90_000))
    assert [s.cash[0] for s in found.simulations.values()] == [30_000] * 3
    assert found.equity[0] == found.initial_cash == 90_000
    assert (found.strategy, found.parameters, found.window) == ("sma_crossover", SMA.parameters, window)


def test_the_accounts_add_up(series: dict[str, BarSeries]) -> None:
    found = run_backtest(SMA, series, FACEBOOK_YEAR, costs=EVERYTHING)
    assert list(found.simulations) == list(series)
    equity, invested, gross = (np.zeros(found.sessions.size) for _ in range(3))
    for simulation in found.simulations.values():
        at = np.searchsorted(found.sessions, simulation.sessions)
        equity += 20_000
        equity[at] += simulation.equity - 20_000
        invested[at] += simulation.shares * simulation.close
        gross[at] += np.abs(simulation.shares * simulation.close)
    np.testing.assert_allclose(found.equity, equity, rtol=1e-14)
    np.testing.assert_allclose(found.invested, invested, atol=1e-9)
    np.testing.assert_allclose(found.gross, gross, rtol=1e-14)
    assert (found.invested < 0).any()
    assert (found.gross > np.abs(found.invested) + 1).any()
    assert found.interest == sum(s.interest for s in found.simulations.values()) > 0
    gained = sum(found.trades["pnl"].to_pylist()) + found.interest
    assert found.equity[-1] == pytest.approx(found.initial_cash + gained, abs=1e-6)


def test_trades_and_rejections_of_all_symbols_are_in_order(series: dict[str, BarSeries]) -> None:
    tight = replace(SMA, sizing="shares", size=400.0)
    found = run_backtest(tight, series, FACEBOOK_YEAR)
    assert found.trades.schema == TRADE_SCHEMA
    assert found.rejected.schema == REJECTION_SCHEMA
    assert found.rejected.num_rows
    exits = list(
        zip(found.trades["exit_session"].to_pylist(), found.trades["symbol"].to_pylist(), strict=True)
    )
    assert exits == sorted(exits)
    assert {symbol for _, symbol in exits} == {
        s for s, done in found.simulations.items() if done.trades.num_rows
    }
    assert found.trades.num_rows == sum(s.trades.num_rows for s in found.simulations.values())
    refused = found.rejected["session"].to_pylist()
    assert refused == sorted(refused)


def test_an_account_waits_for_its_first_bar(series: dict[str, BarSeries]) -> None:
    found = run_backtest(make_strategy("buy_and_hold"), pick(series, "AAPL", "FB"), FACEBOOK_YEAR)
    born = int(np.searchsorted(found.sessions, series["FB"].sessions[0]))
    assert 50 < born < found.sessions.size
    apple = found.simulations["AAPL"].equity
    assert apple.size == found.sessions.size
    np.testing.assert_allclose(found.equity[:born], apple[:born] + 50_000, rtol=1e-14)
    np.testing.assert_allclose(found.equity[born:], apple[born:] + found.simulations["FB"].equity, rtol=1e-14)
    # Bought at the open of its second bar, like everybody.
    assert found.simulations["FB"].trades["entry_session"][0].as_py() == series["FB"].sessions[1].item()


def test_an_account_stands_at_its_last_value_when_its_symbol_ends(series: dict[str, BarSeries]) -> None:
    last = dt.date(2012, 9, 28)
    both = {"AAPL": series["AAPL"], "MSFT": until(series["MSFT"], last)}
    found = run_backtest(make_strategy("buy_and_hold"), both, FACEBOOK_YEAR)
    end = int(np.searchsorted(found.sessions, np.datetime64(last)))
    gone = found.simulations["MSFT"]
    assert gone.sessions[-1] == found.sessions[end]
    np.testing.assert_allclose(
        found.equity[end:], found.simulations["AAPL"].equity[end:] + gone.equity[-1], rtol=1e-14
    )
    # Marked, not sold: there is no bar at which it could be.
    assert found.trades.filter(pa.compute.equal(found.trades["symbol"], "MSFT"))["reason"].to_pylist() == [
        "open"
    ]


def test_a_symbol_without_a_bar_in_the_window_keeps_its_cash(series: dict[str, BarSeries]) -> None:
    window = Window(dt.date(2005, 1, 3), dt.date(2005, 12, 30))
    found = run_backtest(SMA, pick(series, "FB", "AAPL"), window, costs=EVERYTHING)
    alone = run_backtest(SMA, pick(series, "AAPL"), window, costs=EVERYTHING, account=Account(50_000))
    assert list(found.simulations) == ["AAPL"]
    np.testing.assert_array_equal(found.sessions, alone.sessions)
    np.testing.assert_allclose(found.equity, 50_000 + alone.equity, rtol=1e-14)
    assert found.trades == alone.trades


def test_a_skipped_session_carries_the_last_value(series: dict[str, BarSeries]) -> None:
    whole = series["IBM"]
    keep = np.delete(np.arange(len(whole)), [100, 101])
    holes = BarSeries("IBM", **{k: v[keep] for k, v in vars(whole).items() if k != "symbol"})
    window = Window(whole.sessions[90].item(), whole.sessions[120].item())
    found = run_backtest(make_strategy("buy_and_hold"), {"AAPL": series["AAPL"], "IBM": holes}, window)
    assert found.sessions.size == 31
    apple, ibm = found.simulations["AAPL"], found.simulations["IBM"]
    assert ibm.sessions.size == 29
    np.testing.assert_allclose(found.equity[9:12], apple.equity[9:12] + ibm.equity[9], rtol=1e-14)


def test_values_are_carried_onto_the_axis() -> None:
    axis = np.array(days(6), dtype="datetime64[D]")
    np.testing.assert_array_equal(
        on_axis(axis, axis[[1, 3]], np.array([5.0, 7.0]), 1.0), [1.0, 5.0, 5.0, 7.0, 7.0, 7.0]
    )


# --------------------------------------------------------------------------------------------------- the window


def test_decisions_use_the_bars_before_the_window(series: dict[str, BarSeries]) -> None:
    """Two hundred bars of the slow average lie before the window, and the very first close may decide."""
    strategy = make_strategy("sma_crossover", fast_period=20, slow_period=200, sizing="shares", size=10.0)
    bars = series["AAPL"]
    decided = np.flatnonzero(strategy.decide(bars))
    first = int(decided[decided > 1600][0])
    window = Window(bars.sessions[first].item(), dt.date(2012, 12, 31))
    found = run_backtest(strategy, pick(series, "AAPL"), window)
    shares = found.simulations["AAPL"].shares
    assert shares[0] == 0
    assert abs(shares[1]) == 10
    # No split falls into these years, so from the first order on it is the tail of the whole history's run.
    whole = run_backtest(
        strategy, pick(series, "AAPL"), Window(bars.sessions[0].item(), window.last)
    ).simulations["AAPL"]
    np.testing.assert_array_equal(shares[1:], np.sign(whole.shares[first + 1 :]) * 10)
    # A run that knows nothing from before has to wait two hundred bars.
    late = run_backtest(strategy, {"AAPL": bars.cut(first, len(bars))}, window).simulations["AAPL"]
    assert not late.shares[:200].any()


def test_it_is_the_engine_on_the_bars_of_the_window(series: dict[str, BarSeries]) -> None:
    strategy = make_strategy("daily_breakout", sizing="volatility", size=0.2)
    bars, window = series["MSFT"], Window(dt.date(2008, 9, 1), dt.date(2009, 3, 31))
    found = run_backtest(strategy, {"MSFT": bars}, window, costs=EVERYTHING)
    first, last = bars.position(window.first), bars.position(dt.date(2009, 4, 1))
    direct = simulate(bars, strategy.decide(bars), strategy.rules, EVERYTHING, None, first, last)
    np.testing.assert_array_equal(found.equity, direct.equity)
    np.testing.assert_array_equal(found.sessions, direct.sessions)
    assert found.trades == direct.trades.sort_by("exit_session")
    # Both ends count, and a holiday at either end does no harm.
    assert found.sessions[[0, -1]].tolist() == [dt.date(2008, 9, 2), dt.date(2009, 3, 31)]


def test_a_window_of_one_bar(series: dict[str, BarSeries]) -> None:
    day = dt.date(2012, 6, 1)
    found = run_backtest(make_strategy("buy_and_hold"), series, Window(day, day), costs=EVERYTHING)
    assert found.sessions.tolist() == [day]
    assert found.equity.tolist() == [100_000]
    assert found.trades.num_rows == found.rejected.num_rows == found.interest == 0


def test_a_window_without_a_session_says_where_there_are_bars(series: dict[str, BarSeries]) -> None:
    saturday = dt.date(2012, 6, 2)
    message = "2012-06-02 to 2012-06-03 holds no session; there are bars of AAPL 2000-03-01 to 2013-03-01"
    for window, pattern in (
        (Window(saturday, saturday + dt.timedelta(days=1)), message),
        (Window(dt.date(1999, 1, 1), dt.date(1999, 12, 31)), "holds no session"),
        (Window(dt.date(2014, 1, 1), dt.date(2014, 12, 31)), "holds no session"),
    ):
        with pytest.raises(BacktestError, match=pattern):
            run_backtest(SMA, pick(series, "AAPL"), window)
    with pytest.raises(BacktestError, match="there are bars of nothing"):
        session_axis({}, FACEBOOK_YEAR)
    with pytest.raises(BacktestError, match="there are bars of nothing"):
        run_backtest(SMA, {}, FACEBOOK_YEAR)
    with pytest.raises(BacktestError, match="ends before it begins"):
        Window(dt.date(2012, 6, 2), dt.date(2012, 6, 1))


# --------------------------------------------------------------------------------------------- what comes later


@dataclass(frozen=True, kw_only=True)
class Peeking(Strategy):
    """Knows the close of five bars later."""

    name: ClassVar[str] = "peeking"

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        later = np.append(bars.adj_close[5:], np.full(5, bars.adj_close[-1]))
        return np.where(later > bars.adj_close, ENTER_LONG, ENTER_SHORT).astype(np.int8)


def before(found: Backtest, last: dt.date) -> tuple[list[Any], ...]:
    """Everything of a backtest up to a session; trades as far as they had ended."""
    inside = found.sessions <= np.datetime64(last)
    trades = [t for t in found.trades.to_pylist() if t["exit_session"] <= last and t["reason"] != "open"]
    rejected = [r for r in found.rejected.to_pylist() if r["session"] <= last]
    arrays = [getattr(found, name)[inside].tolist() for name in ("sessions", "equity", "invested", "gross")]
    return (*arrays, trades, rejected)


STRATEGIES = {
    "crossover": SMA,
    "breakout": make_strategy("daily_breakout", period=10, sizing="volatility", size=0.3),
    "shares": make_strategy("daily_breakout", period=5, sizing="shares", size=60.0),
    "bracket": make_strategy("mlp_long_short", long_threshold=0.5, short_threshold=0.5, max_bars=4),
    "buy_and_hold": make_strategy("buy_and_hold"),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_cutting_the_data_changes_nothing_before_the_cut(name: str, series: dict[str, BarSeries]) -> None:
    strategy, rng = STRATEGIES[name], np.random.default_rng(3)
    probability = {symbol: rng.random((len(bars), 2)) for symbol, bars in series.items()}
    window = Window(dt.date(2011, 11, 1), dt.date(2013, 3, 1))
    whole = run_backtest(strategy, series, window, probability, EVERYTHING)
    assert whole.trades.num_rows
    # Before Facebook's first bar, on it, after it, on the last one.
    for last in (dt.date(2012, 2, 14), dt.date(2012, 5, 18), dt.date(2012, 11, 21), dt.date(2013, 3, 1)):
        known = {
            s: until(bars, last) for s, bars in series.items() if bars.position(last + dt.timedelta(days=1))
        }
        cut = run_backtest(
            strategy,
            known,
            window,
            {s: p[: len(known[s])] for s, p in probability.items() if s in known},
            EVERYTHING,
            Account(
                100_000 * len(known) / len(series)
            ),  # the share of a symbol that has no bar yet lies idle
        )
        (sessions, equity, *rest), (sessions_cut, equity_cut, *rest_cut) = (
            before(whole, last),
            before(cut, last),
        )
        assert sessions_cut == sessions
        assert rest_cut == rest
        if len(known) == len(series):
            assert equity_cut == equity
        else:
            np.testing.assert_allclose(np.add(equity_cut, 20_000), equity, rtol=1e-15)


def test_a_strategy_that_peeks_is_caught(series: dict[str, BarSeries]) -> None:
    last = dt.date(2012, 11, 21)
    whole = run_backtest(Peeking(), series, FACEBOOK_YEAR)
    cut = run_backtest(Peeking(), {s: until(bars, last) for s, bars in series.items()}, FACEBOOK_YEAR)
    (sessions, equity, *_), (sessions_cut, equity_cut, *_) = before(whole, last), before(cut, last)
    assert sessions_cut == sessions
    assert equity_cut[:-6] == equity[:-6]
    assert equity_cut != equity


# ---------------------------------------------------------------------------------------------- windows of time


def test_split_by_fraction_and_by_date() -> None:
    sessions = days(100)
    assert split_windows(sessions) == (Window(sessions[0], sessions[39]), Window(sessions[45], sessions[99]))
    assert split_windows(sessions, 0.5, purge_sessions=0) == (
        Window(sessions[0], sessions[49]),
        Window(sessions[50], sessions[99]),
    )
    assert split_windows(sessions, in_sample_last=sessions[9], purge_sessions=1) == (
        Window(sessions[0], sessions[9]),
        Window(sessions[11], sessions[99]),
    )
    # A date between two sessions: the last one at or before it.
    gappy = [d for d in sessions if d != sessions[9]]
    assert split_windows(gappy, in_sample_last=sessions[9])[0].last == sessions[8]
    assert split_windows(days(2), 0.5, purge_sessions=0) == (Window(*days(1) * 2), Window(*days(2)[1:] * 2))


@given(count=st.integers(2, 300), fraction=st.floats(0.01, 0.99, exclude_min=True), purge=st.integers(0, 20))
def test_the_purge_lies_between_the_two_windows(count: int, fraction: float, purge: int) -> None:
    sessions = days(count)
    inside = int(count * fraction)
    if inside < 1 or inside + purge >= count:
        with pytest.raises(BacktestError, match="both windows need at least one"):
            split_windows(sessions, fraction, purge_sessions=purge)
        return
    first, second = split_windows(sessions, fraction, purge_sessions=purge)
    assert (first.first, second.last) == (sessions[0], sessions[-1])
    assert sessions.index(first.last) + 1 == inside
    assert sessions.index(second.first) - sessions.index(first.last) - 1 == purge


def test_a_split_that_leaves_nothing_is_an_error() -> None:
    with pytest.raises(
        BacktestError, match="10 sessions, of which 4 are in sample and 6 purged, leave 0 out"
    ):
        split_windows(days(10), purge_sessions=6)
    with pytest.raises(BacktestError, match="of which 0 are in sample"):
        split_windows(days(10), in_sample_last=dt.date(2000, 1, 1))
    with pytest.raises(BacktestError, match="leave 0 out of sample"):
        split_windows(days(10), in_sample_last=dt.date(2020, 1, 1))
    for fraction in (0.0, 1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(BacktestError, match="in_sample_fraction"):
            split_windows(days(10), fraction)
    with pytest.raises(BacktestError, match="purge_sessions = -1"):
        split_windows(days(10), purge_sessions=-1)


def test_walk_forward_by_hand() -> None:
    d = days(12)
    folds = walk_forward(d, 4, 3, purge_sessions=1)
    assert [(f.train, f.test) for f in folds] == [
        (Window(d[0], d[3]), Window(d[5], d[7])),
        (Window(d[3], d[6]), Window(d[8], d[10])),
        (Window(d[6], d[9]), Window(d[11], d[11])),
    ]


@given(count=st.integers(1, 200), train=st.integers(1, 60), test=st.integers(1, 40), purge=st.integers(0, 10))
def test_test_windows_follow_each_other_and_their_training(
    count: int, train: int, test: int, purge: int
) -> None:
    sessions = days(count)
    if train + purge >= count:
        with pytest.raises(BacktestError, match=f"{count} sessions are too few"):
            walk_forward(sessions, train, test, purge)
        return
    folds = walk_forward(sessions, train, test, purge)
    at = {day: i for i, day in enumerate(sessions)}
    assert at[folds[0].train.first] == 0
    assert folds[-1].test.last == sessions[-1]
    for fold in folds:
        assert at[fold.train.last] - at[fold.train.first] + 1 == train
        assert at[fold.test.first] - at[fold.train.last] - 1 == purge
        assert 1 <= at[fold.test.last] - at[fold.test.first] + 1 <= test
    for one, other in itertools.pairwise(folds):
        assert at[other.test.first] == at[one.test.last] + 1
        assert at[one.test.last] - at[one.test.first] + 1 == test


def test_walk_forward_refuses_windows_of_nothing() -> None:
    for train, test, purge in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(BacktestError, match="must be at least 1"):
            walk_forward(days(10), train, test, purge)
    with pytest.raises(BacktestError, match="0 sessions are too few"):
        walk_forward([], 4, 2)


def test_a_declared_symbol_that_is_not_listed_yet_changes_no_bit(series: dict[str, BarSeries]) -> None:
    """Its share stays in cash, whether its later bars are there or not."""
    window = Window(dt.date(2005, 1, 3), dt.date(2005, 12, 30))
    with_future = run_backtest(SMA, pick(series, "FB", "AAPL", "IBM"), window, costs=EVERYTHING)
    without = run_backtest(SMA, pick(series, "AAPL", "IBM"), window, costs=EVERYTHING, accounts=3)
    np.testing.assert_array_equal(with_future.equity, without.equity)
    assert with_future.trades == without.trades
    with pytest.raises(BacktestError, match="accounts = 1 is less than the 2 symbols"):
        run_backtest(SMA, pick(series, "AAPL", "IBM"), window, accounts=1)
