"""The backtest that backtesting.py prints in its documentation, run by the engine.

Their sample of GOOG, averages of 10 and 30 closes, all of the equity in whole shares, 10,000 dollars, no costs. Their
`finalize_trades` closes the last trade at the *open* of the last bar; here that is an exit decided on the bar before it.
"""

import warnings

import numpy as np
import pyarrow as pa
import pytest
from backtesting import Backtest
from backtesting import Strategy as BacktestingStrategy
from backtesting.lib import crossover
from backtesting.test import GOOG, SMA

from quant_assets.backtests.engine import Account, Simulation, simulate
from quant_assets.backtests.statistics import (
    Conventions,
    cagr,
    max_drawdown,
    period_returns,
    sharpe_ratio,
    sortino_ratio,
    trade_statistics,
)
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.strategies import make_strategy
from quant_assets.strategies.strategy import EXIT_LONG, EXIT_SHORT

CASH = 10_000.0


@pytest.fixture(scope="module")
def bars() -> BarSeries:
    columns = {name.lower(): GOOG[name].to_numpy(dtype=float) for name in GOOG.columns}
    rows = pa.table({"symbol": ["GOOG"] * len(GOOG), "session": pa.array(GOOG.index.date), **columns})
    return bar_series(rows)["GOOG"]


@pytest.fixture(scope="module")
def found(bars: BarSeries) -> Simulation:
    strategy = make_strategy("sma_crossover", fast_period=10, slow_period=30)
    decisions = strategy.decide(bars)
    decisions[-2] |= EXIT_LONG | EXIT_SHORT
    return simulate(bars, decisions, strategy.rules, account=Account(CASH))


def test_trades_and_return_are_the_printed_ones(found: Simulation) -> None:
    assert found.trades.num_rows == 66
    assert found.rejected.num_rows == 0
    assert 100 * (found.equity[-1] / CASH - 1) == pytest.approx(414.2299, abs=5e-5)
    assert found.shares[-1] == 0


class SmaCross(BacktestingStrategy):
    """As in their documentation."""

    def init(self) -> None:
        self.fast = self.I(SMA, self.data.Close, 10)
        self.slow = self.I(SMA, self.data.Close, 30)

    def next(self) -> None:
        if crossover(self.fast, self.slow):
            self.position.close()
            self.buy()
        elif crossover(self.slow, self.fast):
            self.position.close()
            self.sell()


def test_each_trade_and_each_close_is_the_same_as_theirs(bars: BarSeries, found: Simulation) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stats = Backtest(GOOG, SmaCross, cash=CASH, finalize_trades=True).run()
    assert stats["Return [%]"] == pytest.approx(414.2299, abs=5e-5)
    # Theirs stand in the order in which they ended, which for one position at a time is the order of ours.
    theirs, mine = stats["_trades"], found.trades
    side = np.where(np.array(mine["side"].to_pylist()) == "long", 1, -1)
    assert (side * mine["shares"].to_numpy()).tolist() == theirs["Size"].tolist()
    for name, other in (("entry_session", "EntryBar"), ("exit_session", "ExitBar")):
        at = np.searchsorted(bars.sessions, mine[name].to_numpy().astype("datetime64[D]"))
        assert at.tolist() == theirs[other].tolist()
    for name, other in (("entry_price", "EntryPrice"), ("exit_price", "ExitPrice")):
        assert mine[name].to_numpy() == pytest.approx(theirs[other].to_numpy(), rel=1e-12)
    for name, other in (("pnl", "PnL"), ("trade_return", "ReturnPct")):
        scale = mine["shares"].to_numpy() * mine["entry_price"].to_numpy() if name == "pnl" else 1.0
        difference = np.abs(mine[name].to_numpy() - theirs[other].to_numpy())
        assert (difference <= np.maximum(1e-9 * np.abs(theirs[other].to_numpy()), 1e-12 * scale)).all()
    assert found.equity == pytest.approx(stats["_equity_curve"]["Equity"].to_numpy(), rel=1e-12)


def test_our_statistics_of_it_are_the_printed_ones(found: Simulation) -> None:
    conventions = Conventions(compounding="geometric")
    returns = period_returns(found.equity)
    assert sharpe_ratio(returns, conventions) == pytest.approx(0.580623, abs=5e-7)
    assert sortino_ratio(returns, conventions) == pytest.approx(1.085343, abs=5e-7)
    assert 100 * max_drawdown(found.equity) == pytest.approx(-47.980127, abs=5e-7)
    assert trade_statistics(found.trades).sqn == pytest.approx(1.076619, abs=5e-7)
    assert 100 * cagr(found.equity, conventions, found.sessions) == pytest.approx(21.160246, abs=5e-7)
