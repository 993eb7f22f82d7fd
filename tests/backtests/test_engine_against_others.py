"""The engine beside backtrader and backtesting.py: the same bars, the same rules, each trade compared.

Prices are the adjusted ones of the sample, taken as plain prices, so that everybody sees the same numbers and nobody has to
know what a split is. A hundred shares and a million dollars: no order is too large.

What differs, and is shown here to be all that differs:

- A position that is held at the end is a trade of ours with reason `open`, and no trade of theirs.
- An open beyond the target fills there, before anything can touch the stop. Both others look at the stop first (backtrader
  at whichever order was placed first) and at the whole bar.
- A touch that rounding hides is one for us, and none for them.
- backtrader's brackets work from the bar after the entry, which `Account.bracket_on_entry_bar` turns off here too.
- Of the strategy, not of the engine: backtesting.py's `crossover` does not see a cross that pauses on a tie.

Fills otherwise follow the same rules in all three: market orders at the next open, a stop or target at its level or, where
the bar opened beyond it, at the open; commission on both sides.
"""

import datetime as dt
import functools
import warnings
from collections.abc import Callable
from typing import Any

import backtrader
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from backtesting import Backtest
from backtesting import Strategy as BacktestingStrategy
from backtesting.backtesting import _Broker
from backtesting.lib import crossover
from backtesting.test import SMA

from quant_assets.backtests.engine import Account, Costs, Simulation, simulate
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.strategies import make_strategy
from quant_assets.strategies.indicators import simple_moving_average
from quant_assets.strategies.strategy import ENTER_LONG, ENTER_SHORT, Rules, Strategy

SYMBOLS = ["AAPL", "GOOG", "IBM", "MSFT"]
PERIODS = [(10, 30), (20, 50)]
COMMISSIONS_BPS = [0.0, 10.0]
SHARES = 100
CASH = 1e6
TARGET_PCT, STOP_PCT = 2.0, 1.5
BRACKET = Rules("shares", SHARES, TARGET_PCT, STOP_PCT)

COLUMNS = ["side", "entry", "entry_price", "exit", "exit_price", "pnl"]


@pytest.fixture(scope="module")
def prices(sample_bars: pa.Table) -> dict[str, BarSeries]:
    """The adjusted prices of the sample as if they had been quoted."""
    quoted = bar_series(sample_bars, SYMBOLS)
    plain = {
        symbol: pa.table(
            {
                "symbol": [symbol] * len(bars),
                "session": pa.array(bars.sessions),
                **{name: getattr(bars, f"adj_{name}") for name in ("open", "high", "low", "close")},
                "volume": bars.volume,
            }
        )
        for symbol, bars in quoted.items()
    }
    return bar_series(pa.concat_tables(plain.values()))


def frame(bars: BarSeries) -> pd.DataFrame:
    """As both others take it."""
    return pd.DataFrame(
        {name.capitalize(): getattr(bars, name) for name in ("open", "high", "low", "close", "volume")},
        index=pd.DatetimeIndex(bars.sessions.astype("datetime64[ns]")),
    )


def tabulate(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS).astype(float)


def reversal_signal(bars: BarSeries) -> np.ndarray:
    """1 after a fall of more than a percent from close to close, -1 after such a rise."""
    move = np.r_[0.0, bars.close[1:] / bars.close[:-1] - 1]
    return np.where(move < -0.01, 1, np.where(move > 0.01, -1, 0))


# -------------------------------------------------------------------------------------------------------- ours


def ours(
    bars: BarSeries,
    decisions: np.ndarray,
    rules: Rules,
    commission_bps: float,
    bracket_on_entry_bar: bool = True,
) -> Simulation:
    account = Account(CASH, bracket_on_entry_bar=bracket_on_entry_bar)
    return simulate(bars, decisions, rules, Costs(commission_bps=commission_bps), account)


def as_trades(bars: BarSeries, found: Simulation) -> pd.DataFrame:
    rows = found.trades
    return pd.DataFrame(
        {
            "side": np.where(np.array(rows["side"].to_pylist()) == "long", 1, -1),
            "entry": np.searchsorted(bars.sessions, rows["entry_session"].to_numpy().astype("datetime64[D]")),
            "entry_price": rows["entry_price"].to_numpy(),
            "exit": np.searchsorted(bars.sessions, rows["exit_session"].to_numpy().astype("datetime64[D]")),
            "exit_price": rows["exit_price"].to_numpy(),
            "pnl": rows["pnl"].to_numpy(),
            "reason": rows["reason"].to_pylist(),
            "shares": rows["shares"].to_numpy(),
        }
    )


def entries(signal: np.ndarray) -> np.ndarray:
    """Decisions that enter by the signal, and reverse by it."""
    return np.where(signal > 0, ENTER_LONG, np.where(signal < 0, ENTER_SHORT, 0)).astype(np.int8)


def only_when_flat(signal: np.ndarray, run: Callable[[np.ndarray], Simulation]) -> np.ndarray:
    """Decisions that enter by the signal and never reverse, as the others' strategies do who look at their position.

    The engine's strategies do not know the position. So the signals of bars on which one is held are taken out until
    nothing is left to take out. Since no bar depends on later ones, each round settles at least one more trade.
    """
    decisions = wanted = entries(signal)
    for _ in wanted:
        settled = np.where(run(decisions).shares != 0, 0, wanted).astype(np.int8)
        if np.array_equal(settled, decisions):
            return decisions
        decisions = settled
    raise AssertionError("does not settle")


# ------------------------------------------------------------------------------------------------- backtesting.py


class BracketBroker(_Broker):
    """Places stop and target at percents of the price at which an order filled.

    backtesting.py wants their prices when the order is placed, when the next open is not known yet.
    """

    def _open_trade(self, price: float, size: int, sl: Any, tp: Any, *rest: Any) -> None:
        side = 1 if size > 0 else -1
        stop, target = price * (1 - side * STOP_PCT / 100), price * (1 + side * TARGET_PCT / 100)
        super()._open_trade(price, size, stop, target, *rest)


class Crossover(BacktestingStrategy):
    """Their own average and their own cross."""

    fast, slow = 10, 30

    def init(self) -> None:
        self.fast_average = self.I(SMA, self.data.Close, self.fast)
        self.slow_average = self.I(SMA, self.data.Close, self.slow)

    def next(self) -> None:
        # Exclusive orders close what is held first. Of the same side it would be closed and opened again.
        if crossover(self.fast_average, self.slow_average) and not self.position.is_long:
            self.buy(size=SHARES)
        elif crossover(self.slow_average, self.fast_average) and not self.position.is_short:
            self.sell(size=SHARES)


class BracketFromTheFill(BacktestingStrategy):
    """The far stop and target make the broker look at the bar of the entry; `BracketBroker` puts them in place."""

    reversing = False

    def init(self) -> None:
        pass

    def next(self) -> None:
        if len(self.data) < 2 or (self.position and not self.reversing):
            return
        move = self.data.Close[-1] / self.data.Close[-2] - 1
        close = self.data.Close[-1]
        if move < -0.01 and not self.position.is_long:
            self.position.close()
            self.buy(size=SHARES, sl=close / 100, tp=close * 100)
        elif move > 0.01 and not self.position.is_short:
            self.position.close()
            self.sell(size=SHARES, sl=close * 100, tp=close / 100)


class BracketFromTheNextBar(BacktestingStrategy):
    """Nothing but the public interface: the levels are set at the close of the entry's bar."""

    def init(self) -> None:
        pass

    def next(self) -> None:
        for trade in self.trades:
            if trade.sl is None:
                side = 1 if trade.is_long else -1
                trade.sl = trade.entry_price * (1 - side * STOP_PCT / 100)
                trade.tp = trade.entry_price * (1 + side * TARGET_PCT / 100)
        if len(self.data) < 2 or self.position:
            return
        move = self.data.Close[-1] / self.data.Close[-2] - 1
        if move < -0.01:
            self.buy(size=SHARES)
        elif move > 0.01:
            self.sell(size=SHARES)


def in_backtesting(
    bars: BarSeries,
    strategy: type[BacktestingStrategy],
    commission_bps: float,
    broker: type[_Broker] = _Broker,
    exclusive: bool = False,
    **parameters: Any,
) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Closed trades, equity, and the position that is still open, marked at the last close (one row or none)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an open position at the end
        test = Backtest(
            frame(bars), strategy, cash=CASH, commission=commission_bps / 1e4, exclusive_orders=exclusive
        )
        test._broker = functools.partial(broker, **test._broker.keywords)
        stats = test.run(**parameters)
    done = stats["_trades"]
    assert (done["Size"].abs() == SHARES).all()
    rows = [
        (int(np.sign(t.Size)), t.EntryBar, t.EntryPrice, t.ExitBar, t.ExitPrice, t.PnL)
        for t in done.itertuples()
    ]
    # An open trade's `pl` leaves out the commission that its entry has paid.
    held = [
        (
            int(np.sign(t.size)),
            t.entry_bar,
            t.entry_price,
            len(bars) - 1,
            bars.close[-1],
            t.pl - SHARES * t.entry_price * commission_bps / 1e4,
        )
        for t in stats["_strategy"].trades
    ]
    equity = stats["_equity_curve"]["Equity"].to_numpy()
    return tabulate(rows), equity, tabulate(held)


# ---------------------------------------------------------------------------------------------------- backtrader


class Recorder(backtrader.Strategy):
    """What every strategy of these tests notes down: fills, results of trades, equity at each close."""

    def __init__(self) -> None:
        self.fills: list[tuple[int, int, float]] = []  # bar, side, price
        self.results: list[tuple[int, int, float]] = []  # bar of the entry, bar of the exit, pnl
        self.equity: list[float] = []

    def notify_order(self, order: Any) -> None:
        assert order.status not in (order.Margin, order.Rejected)
        if order.status == order.Completed:
            side = 1 if order.isbuy() else -1
            assert order.executed.size == side * SHARES
            self.fills.append((len(self) - 1, side, order.executed.price))
            self.filled(order)

    def filled(self, order: Any) -> None:
        pass

    def notify_trade(self, trade: Any) -> None:
        if trade.isclosed:
            self.results.append((trade.baropen - 1, trade.barclose - 1, trade.pnlcomm))

    def prenext(self) -> None:
        self.equity.append(self.broker.getvalue())

    def next(self) -> None:
        self.equity.append(self.broker.getvalue())
        self.decide()

    def decide(self) -> None:
        raise NotImplementedError


class BacktraderCrossover(Recorder):
    """Their own average and their own cross."""

    params = (("fast", 10), ("slow", 30))

    def __init__(self) -> None:
        super().__init__()
        average = backtrader.indicators.SimpleMovingAverage
        self.cross = backtrader.indicators.CrossOver(
            average(self.data.close, period=self.p.fast), average(self.data.close, period=self.p.slow)
        )

    def decide(self) -> None:
        if self.cross[0]:
            if self.position:
                self.close()
            (self.buy if self.cross[0] > 0 else self.sell)(size=SHARES)


class BacktraderBracket(Recorder):
    """Stop and target are placed when the entry has filled, so they work from the next bar. One cancels the other."""

    params = (("stop_first", True),)

    def filled(self, order: Any) -> None:
        if order.exectype != order.Market:
            return
        side = 1 if order.isbuy() else -1
        price, leave = order.executed.price, self.sell if order.isbuy() else self.buy
        stop = {"exectype": order.Stop, "price": price * (1 - side * STOP_PCT / 100), "size": SHARES}
        target = {"exectype": order.Limit, "price": price * (1 + side * TARGET_PCT / 100), "size": SHARES}
        first, second = (stop, target) if self.p.stop_first else (target, stop)
        leave(**second, oco=leave(**first))

    def decide(self) -> None:
        if self.position or len(self) < 2:
            return
        move = self.data.close[0] / self.data.close[-1] - 1
        if move < -0.01:
            self.buy(size=SHARES)
        elif move > 0.01:
            self.sell(size=SHARES)


def in_backtrader(
    bars: BarSeries, strategy: type[Recorder], commission_bps: float, **parameters: Any
) -> tuple[pd.DataFrame, np.ndarray, list[tuple[int, int, float]]]:
    """Closed trades, equity, and the fill of the entry that is still open (one or none)."""
    cerebro = backtrader.Cerebro(stdstats=False)
    cerebro.adddata(backtrader.feeds.PandasData(dataname=frame(bars)))
    cerebro.addstrategy(strategy, **parameters)
    cerebro.broker.setcash(CASH)
    cerebro.broker.setcommission(commission=commission_bps / 1e4)
    (ran,) = cerebro.run()
    # Entries and exits alternate, since a reversal is an order that closes and one that opens.
    pairs = list(zip(ran.fills[::2], ran.fills[1::2], strict=False))
    rows = []
    for ((bar, side, price), (end, _, exit_price)), (opened, closed, pnl) in zip(
        pairs, ran.results, strict=True
    ):
        assert (bar, end) == (opened, closed)
        rows.append((side, bar, price, end, exit_price, pnl))
    return tabulate(rows), np.array(ran.equity), ran.fills[2 * len(pairs) :]


# ------------------------------------------------------------------------------------------------------ comparing


def agree(mine: pd.DataFrame, theirs: pd.DataFrame) -> np.ndarray:
    """Which trades are the same in side, bars, prices and pnl, shape (trades,).

    Prices to 1e-12 of themselves; pnl, a difference of large numbers, to 1e-9 of itself or 1e-12 of what the trade bought.
    """
    assert len(mine) == len(theirs)
    assert (mine["shares"] == SHARES).all()
    same = np.ones(len(mine), dtype=bool)
    for name in ("side", "entry", "exit"):
        same &= mine[name].to_numpy() == theirs[name].to_numpy()
    for name in ("entry_price", "exit_price"):
        same &= np.isclose(mine[name].to_numpy(), theirs[name].to_numpy(), rtol=1e-12, atol=0)
    slack = 1e-12 * SHARES * mine["entry_price"].to_numpy()
    difference = np.abs(mine["pnl"].to_numpy() - theirs["pnl"].to_numpy())
    return same & (difference <= np.maximum(1e-9 * np.abs(theirs["pnl"].to_numpy()), slack))


def split_open(mine: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trades that have ended, and the one that has not (one row or none): the last, and no trade of theirs."""
    ended = mine[mine["reason"] != "open"]
    assert ended.index.equals(mine.index[: len(ended)])
    assert len(mine) - len(ended) <= 1
    return ended, mine[len(ended) :]


each_symbol = pytest.mark.parametrize("symbol", SYMBOLS)
each_commission = pytest.mark.parametrize("commission_bps", COMMISSIONS_BPS)


# ------------------------------------------------------------------------------------------------------ crossovers


def crossover_of(fast: int, slow: int) -> Strategy:
    return make_strategy("sma_crossover", fast_period=fast, slow_period=slow, size=SHARES, sizing="shares")


@each_symbol
@each_commission
@pytest.mark.parametrize(("fast", "slow"), PERIODS)
def test_a_crossover_in_backtrader_is_the_same_trade_by_trade(
    prices: dict[str, BarSeries], symbol: str, fast: int, slow: int, commission_bps: float
) -> None:
    bars, strategy = prices[symbol], crossover_of(fast, slow)
    found = ours(bars, strategy.decide(bars), strategy.rules, commission_bps)
    ended, held = split_open(as_trades(bars, found))
    theirs, equity, fills = in_backtrader(bars, BacktraderCrossover, commission_bps, fast=fast, slow=slow)
    assert len(theirs) > 30
    assert agree(ended, theirs).all()
    assert found.equity == pytest.approx(equity, rel=1e-12)
    # A crossover is always in the market, so one position is left.
    assert [(t.entry, t.side, pytest.approx(t.entry_price, rel=1e-12)) for t in held.itertuples()] == fills
    assert len(fills) == 1


# Of all crosses here, the one that their rule does not see.
UNSEEN = {("AAPL", 10, 30): [738]}


@each_symbol
@each_commission
@pytest.mark.parametrize(("fast", "slow"), PERIODS)
def test_a_crossover_in_backtesting_is_the_same_but_for_one_that_pauses_on_a_tie(
    prices: dict[str, BarSeries], symbol: str, fast: int, slow: int, commission_bps: float
) -> None:
    """Their `crossover` wants the averages on different sides on two bars in a row; ours remembers the side before a tie.

    AAPL's averages of 10 and 30 closes tie on 2003-02-07 (bar 737), after the fast one was below and before it is above.
    Without this one decision all is the same, so nothing else differs.
    """
    bars, strategy = prices[symbol], crossover_of(fast, slow)
    decisions = strategy.decide(bars)
    averages = [pd.Series(bars.close).rolling(period).mean().to_numpy() for period in (fast, slow)]
    tie = np.isclose(*averages, rtol=1e-12, atol=0)
    unseen = np.flatnonzero((decisions != 0) & np.r_[False, tie[:-1]])
    assert unseen.tolist() == UNSEEN.get((symbol, fast, slow), [])
    decisions[unseen] = 0
    found = ours(bars, decisions, strategy.rules, commission_bps)
    ended, held = split_open(as_trades(bars, found))
    theirs, equity, still_open = in_backtesting(
        bars, Crossover, commission_bps, exclusive=True, fast=fast, slow=slow
    )
    assert len(theirs) > 30
    assert agree(ended, theirs).all()
    assert found.equity == pytest.approx(equity, rel=1e-12)
    assert len(held) == 1
    assert agree(held, still_open).all()


def test_averages_that_touch_and_part_again_have_crossed_for_nobody(prices: dict[str, BarSeries]) -> None:
    # IBM's averages of 10 and 30 closes tie on 2005-06-27 (bar 1337), with the fast one above before and after. Added up
    # from the oldest value on they differ in the last bit, which must not be a cross.
    bars = prices["IBM"]
    averages = [simple_moving_average(bars.close, period) for period in (10, 30)]
    assert 0 < abs(averages[0][1337] - averages[1][1337]) < 1e-12
    assert not crossover_of(10, 30).decide(bars)[1335:1339].any()
    trades = in_backtrader(bars, BacktraderCrossover, 0.0, fast=10, slow=30)[0]
    assert not trades["entry"].between(1336, 1339).any()


# --------------------------------------------------------------------------------------------------------- brackets


def at_the_exit(bars: BarSeries, trades: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the bar of each exit did, shape (trades,): opened beyond a level, or touched it at any time."""
    side, entry = trades["side"].to_numpy(), trades["entry_price"].to_numpy()
    at = trades["exit"].to_numpy()
    target, stop = entry * (1 + side * TARGET_PCT / 100), entry * (1 - side * STOP_PCT / 100)
    best, worst = (
        np.where(side > 0, bars.high[at], bars.low[at]),
        np.where(side > 0, bars.low[at], bars.high[at]),
    )
    return {
        "target": target,
        "stop": stop,
        "opened_beyond_target": side * (bars.open[at] - target) >= 0,
        "opened_beyond_stop": side * (bars.open[at] - stop) <= 0,
        "touched_target": side * (best - target) >= 0,
        "touched_stop": side * (worst - stop) <= 0,
    }


def with_exit_price(trades: pd.DataFrame, price: np.ndarray, commission_bps: float) -> pd.DataFrame:
    """The same trades with another price of the exit."""
    moved = trades["side"] * SHARES * (price - trades["entry_price"])
    paid = SHARES * (price + trades["entry_price"]) * commission_bps / 1e4
    return trades.assign(exit_price=price, pnl=moved - paid)


def same_but_stopped_after_a_gap(
    bars: BarSeries, mine: pd.DataFrame, theirs: pd.DataFrame, commission_bps: float
) -> list[int]:
    """Assert that what differs is one thing alone; the bars on which it differs.

    The bar of the exit opened beyond the target and touched the stop later. Ours leaves at the open, theirs at the stop's
    price. All such trades differ and no others; side, bars and entry are the same, and with the stop's price so is the pnl.
    """
    bar = at_the_exit(bars, mine)
    gaps = (mine["reason"] == "target").to_numpy() & bar["opened_beyond_target"] & bar["touched_stop"]
    # On the bar of the entry the open is the entry.
    assert (mine["exit"] > mine["entry"])[gaps].all()
    assert agree(mine, theirs).tolist() == (~gaps).tolist()
    assert mine["exit_price"][gaps].to_numpy() == pytest.approx(bars.open[mine["exit"]][gaps], rel=1e-12)
    theirs_would_be = with_exit_price(mine[gaps], bar["stop"][gaps], commission_bps)
    assert agree(theirs_would_be, theirs[gaps]).all()
    return mine["exit"][gaps].tolist()


# Bars that open beyond the target of a trade and touch its stop later, where levels stand from the fill on.
GAPS = {("AAPL", False): [859, 2019], ("GOOG", False): [483], ("GOOG", True): [483]}


@each_symbol
@each_commission
@pytest.mark.parametrize("reversing", [False, True])
def test_a_bracket_in_backtesting_is_the_same_but_for_gaps_beyond_the_target(
    prices: dict[str, BarSeries], symbol: str, reversing: bool, commission_bps: float
) -> None:
    bars, signal = prices[symbol], reversal_signal(prices[symbol])
    run = functools.partial(ours, bars, rules=BRACKET, commission_bps=commission_bps)
    found = run(entries(signal) if reversing else only_when_flat(signal, run))
    ended, held = split_open(as_trades(bars, found))
    theirs, equity, still_open = in_backtesting(
        bars, BracketFromTheFill, commission_bps, BracketBroker, reversing=reversing
    )
    assert len(theirs) > 800
    assert set(ended["reason"]) == {"stop", "target"} | ({"reversal"} if reversing else set())
    assert (ended["entry"] == ended["exit"]).mean() > 0.1
    gaps = same_but_stopped_after_a_gap(bars, ended, theirs, commission_bps)
    assert gaps == GAPS.get((symbol, reversing), [])
    until = gaps[0] if gaps else len(bars)
    assert found.equity[:until] == pytest.approx(equity[:until], rel=1e-12)
    assert agree(held, still_open).all()


# How often that happens where levels stand from the bar after the entry on: more trades live to see another open.
GAPS_FROM_THE_NEXT_BAR = {"AAPL": 22, "GOOG": 5, "IBM": 6, "MSFT": 7}


@each_symbol
@each_commission
@pytest.mark.parametrize("engine", ["backtesting", "backtrader"])
def test_a_bracket_from_the_next_bar_is_the_same_but_for_gaps_beyond_the_target(
    prices: dict[str, BarSeries], symbol: str, engine: str, commission_bps: float
) -> None:
    bars, signal = prices[symbol], reversal_signal(prices[symbol])
    run = functools.partial(
        ours, bars, rules=BRACKET, commission_bps=commission_bps, bracket_on_entry_bar=False
    )
    found = run(only_when_flat(signal, run))
    ended, held = split_open(as_trades(bars, found))
    if engine == "backtesting":
        theirs, equity, still_open = in_backtesting(bars, BracketFromTheNextBar, commission_bps)
        assert agree(held, still_open).all()
    else:
        theirs, equity, fills = in_backtrader(bars, BacktraderBracket, commission_bps)
        assert [(t.entry, t.side, t.entry_price) for t in held.itertuples()] == fills
    assert len(theirs) > 600
    assert set(ended["reason"]) == {"stop", "target"}
    assert (ended["entry"] < ended["exit"]).all()
    gaps = same_but_stopped_after_a_gap(bars, ended, theirs, commission_bps)
    assert len(gaps) == GAPS_FROM_THE_NEXT_BAR[symbol]
    assert found.equity[: gaps[0]] == pytest.approx(equity[: gaps[0]], rel=1e-12)


@each_symbol
def test_backtrader_with_the_target_placed_first_differs_where_the_stop_was_touched_too(
    prices: dict[str, BarSeries], symbol: str
) -> None:
    """It looks at whichever order was placed first. With the target first, gaps beyond the target agree with ours, and what
    differs is every trade that is stopped here in a bar that also touched the target: nobody knows which came first, and
    here the stop counts.
    """
    bars, signal = prices[symbol], reversal_signal(prices[symbol])
    run = functools.partial(ours, bars, rules=BRACKET, commission_bps=10.0, bracket_on_entry_bar=False)
    ended, _ = split_open(as_trades(bars, run(only_when_flat(signal, run))))
    theirs, _, _ = in_backtrader(bars, BacktraderBracket, 10.0, stop_first=False)
    bar = at_the_exit(bars, ended)
    both = (ended["reason"] == "stop").to_numpy() & bar["touched_target"]
    assert agree(ended, theirs).tolist() == (~both).tolist()
    assert both.sum() > 10
    ours_with_the_target = with_exit_price(ended[both], bar["target"][both], 10.0)
    assert agree(ours_with_the_target, theirs[both]).all()
    # Some of these bars even opened beyond the stop.
    assert (both & bar["opened_beyond_stop"]).any()


@pytest.mark.parametrize(
    ("high", "here", "there"),
    # 29.58 is two percent above 29, and 29 x 1.02 is 29.580000000000002.
    [(29.57, None, None), (29.58, 3, None), (29.59, 3, 3)],
)
def test_a_touch_that_rounding_hides_is_one_here_alone(
    high: float, here: int | None, there: int | None
) -> None:
    closes = np.array([30.0, 29.0, 29.0, 29.0, 29.0, 29.0])
    tops = closes.copy()
    tops[3] = high
    rows = {"open": np.r_[30.0, closes[1:]], "high": tops, "low": closes, "close": closes}
    days = [dt.date(2012, 1, 2) + dt.timedelta(days=i) for i in range(6)]
    bars = bar_series(
        pa.table({"symbol": ["TEST"] * 6, "session": pa.array(days), **rows, "volume": np.full(6, 1e6)})
    )["TEST"]
    found = as_trades(bars, ours(bars, entries(reversal_signal(bars)), BRACKET, 0.0))
    assert found["entry"].tolist() == [2]
    assert found["exit"].tolist() == [here or 5]
    assert found["reason"].tolist() == ["target" if here else "open"]
    backtesting = in_backtesting(bars, BracketFromTheFill, 0.0, BracketBroker)[0]
    assert backtesting["exit"].tolist() == ([there] if there else [])
    trader = in_backtrader(bars, BacktraderBracket, 0.0)[0]
    assert trader["exit"].tolist() == ([there] if there else [])
