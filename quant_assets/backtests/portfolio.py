"""One strategy over several symbols and a window of sessions. Pure.

Belongs here: splitting the money, running the engine per symbol, adding the accounts up, windows of time. Does not belong
here: what happens inside a bar (`engine.py`) and thousands of parameter sets (`grid.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from quant_assets.backtests.engine import (
    REJECTION_SCHEMA,
    TRADE_SCHEMA,
    Account,
    BacktestError,
    Costs,
    Simulation,
    simulate,
)
from quant_assets.market.series import BarSeries
from quant_assets.strategies.strategy import Strategy


@dataclass(frozen=True)
class Window:
    """Sessions `first` to `last`, both included; the first decision is made at the close of `first`."""

    first: dt.date
    last: dt.date

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise BacktestError(f"the window {self.first} to {self.last} is empty: it ends before it begins")


@dataclass(frozen=True)
class Backtest:
    """What one strategy did with all its symbols. Each symbol has an account of its own with an equal share of the cash.

    Attributes:
        strategy: name.
        parameters: field -> value.
        window: what was asked for.
        sessions: `datetime64[D]`, shape (sessions,): every session of the window on which any symbol has a bar.
        equity: dollars at each close, shape (sessions,), all accounts together. An account whose symbol has no bar
            (yet, or any more) stands still at its last value and earns no interest.
        invested: market value of all positions at each close, dollars, shape (sessions,); shorts count negative.
        gross: the same with shorts counted positive.
        simulations: by symbol; symbols without a bar in the window have none.
        trades, rejected: of all symbols, in order of their exit.
        interest: dollars.
    """

    strategy: str
    parameters: dict[str, Any]
    window: Window
    sessions: np.ndarray
    equity: np.ndarray
    invested: np.ndarray
    gross: np.ndarray
    simulations: dict[str, Simulation]
    trades: pa.Table
    rejected: pa.Table
    interest: float
    initial_cash: float


def session_axis(series: Mapping[str, BarSeries], window: Window) -> np.ndarray:
    """Sessions of the window on which any symbol has a bar, `datetime64[D]`.

    Raises:
        BacktestError: none has.
    """
    inside = [
        bars.sessions[bars.position(window.first) : bars.position(window.last + dt.timedelta(days=1))]
        for bars in series.values()
    ]
    if len(inside) == 1:
        axis = inside[0]
    else:
        axis = np.unique(np.concatenate(inside)) if inside else np.array([], dtype="datetime64[D]")
    if not axis.size:
        spans = ", ".join(f"{s} {b.sessions[0]} to {b.sessions[-1]}" for s, b in series.items())
        raise BacktestError(
            f"the window {window.first} to {window.last} holds no session; there are bars of {spans or 'nothing'}"
        )
    return axis


def run_backtest(
    strategy: Strategy,
    series: Mapping[str, BarSeries],
    window: Window,
    probability: Mapping[str, np.ndarray] | None = None,
    costs: Costs | None = None,
    account: Account | None = None,
    accounts: int | None = None,
) -> Backtest:
    """Run a strategy on every symbol.

    Args:
        strategy: rules and parameters.
        series: bars by symbol; bars before the window only feed the indicators.
        window: sessions to trade.
        probability: by symbol, shape (bars, 2); needed by strategies with a `model`.
        costs: costs.
        account: money of the whole; every symbol gets an equal share.
        accounts: into how many shares the money is split, when more symbols were declared than have bars by now; the
            shares of the others stay in cash. Who is listed later must not change what is bet today.

    Raises:
        BacktestError: no session in the window.
        StrategyError: probabilities are missing.
    """
    account = account or Account()
    axis = session_axis(series, window)
    shares = share_count(series, accounts)
    share = account._replace(initial_cash=account.initial_cash / shares)
    # Accounts are added as gains on their share, in which an idle one is exactly 0: the sum has the same bits whether a
    # symbol is not listed yet or not there at all.
    equity = np.full(axis.size, float(account.initial_cash))
    invested, gross = np.zeros(axis.size), np.zeros(axis.size)
    simulations = {}
    for symbol, bars in series.items():
        first = bars.position(window.first)
        last = bars.position(window.last + dt.timedelta(days=1))
        if first == last:
            continue
        decisions = strategy.decide(bars, (probability or {}).get(symbol))
        done = simulate(bars, decisions, strategy.rules, costs, share, first, last)
        simulations[symbol] = done
        if shares == 1:
            equity = on_axis(axis, done.sessions, done.equity, share.initial_cash)
        else:
            equity += on_axis(axis, done.sessions, done.equity - share.initial_cash, 0.0)
        value = on_axis(axis, done.sessions, done.shares * bars.close[first:last], 0.0)
        invested += value
        gross += np.abs(value)
    trades = pa.concat_tables([TRADE_SCHEMA.empty_table(), *(s.trades for s in simulations.values())])
    rejected = pa.concat_tables([REJECTION_SCHEMA.empty_table(), *(s.rejected for s in simulations.values())])
    return Backtest(
        strategy.name,
        strategy.parameters,
        window,
        axis,
        equity,
        invested,
        gross,
        simulations,
        trades.sort_by([("exit_session", "ascending"), ("symbol", "ascending")]),
        rejected.sort_by([("session", "ascending"), ("symbol", "ascending")]),
        sum(s.interest for s in simulations.values()),
        account.initial_cash,
    )


def share_count(series: Mapping[str, BarSeries], accounts: int | None) -> int:
    """Into how many equal shares the money is split."""
    if accounts is not None and accounts < len(series):
        raise BacktestError(f"accounts = {accounts} is less than the {len(series)} symbols with bars")
    return accounts or len(series)


def on_axis(axis: np.ndarray, sessions: np.ndarray, values: np.ndarray, before: float) -> np.ndarray:
    """Carry `values` of `sessions` forward onto `axis`; `before` stands before the first."""
    at = np.searchsorted(sessions, axis, side="right") - 1
    return np.where(at < 0, before, values[np.maximum(at, 0)])


def split_windows(
    sessions: Sequence[dt.date],
    in_sample_fraction: float = 0.4,
    in_sample_last: dt.date | None = None,
    purge_sessions: int = 5,
) -> tuple[Window, Window]:
    """In-sample and out-of-sample: parameters and models may be chosen on the first, the second judges.

    Args:
        sessions: in order.
        in_sample_fraction: share of the sessions that is in sample.
        in_sample_last: last in-sample session, instead of the fraction.
        purge_sessions: left out in between, so that no label or position reaches from one into the other.

    Raises:
        BacktestError: a window would be empty.
    """
    if not 0 < in_sample_fraction < 1:
        raise BacktestError(f"in_sample_fraction = {in_sample_fraction} must lie in (0, 1)")
    if purge_sessions < 0:
        raise BacktestError(f"purge_sessions = {purge_sessions} must be at least 0")
    cut = (
        int(len(sessions) * in_sample_fraction)
        if in_sample_last is None
        else sum(s <= in_sample_last for s in sessions)
    )
    if cut < 1 or cut + purge_sessions >= len(sessions):
        raise BacktestError(
            f"{len(sessions)} sessions, of which {cut} are in sample and {purge_sessions} purged, leave "
            f"{max(len(sessions) - cut - purge_sessions, 0)} out of sample; both windows need at least one"
        )
    return (
        Window(sessions[0], sessions[cut - 1]),
        Window(sessions[cut + purge_sessions], sessions[-1]),
    )


@dataclass(frozen=True)
class Fold:
    """One step of a walk-forward: parameters are chosen on `train` alone and traded on `test`."""

    train: Window
    test: Window


def walk_forward(
    sessions: Sequence[dt.date], train_sessions: int, test_sessions: int, purge_sessions: int = 0
) -> list[Fold]:
    """Folds whose test windows follow each other without a gap, each after its own training window and the purge.

    Raises:
        BacktestError: not even one fold fits.
    """
    if min(train_sessions, test_sessions) < 1 or purge_sessions < 0:
        raise BacktestError(
            f"train_sessions = {train_sessions} and test_sessions = {test_sessions} must be at least 1, "
            f"purge_sessions = {purge_sessions} at least 0"
        )
    folds = []
    start = 0
    while start + train_sessions + purge_sessions < len(sessions):
        test = start + train_sessions + purge_sessions
        end = min(test + test_sessions, len(sessions))
        folds.append(
            Fold(
                Window(sessions[start], sessions[start + train_sessions - 1]),
                Window(sessions[test], sessions[end - 1]),
            )
        )
        start += test_sessions
    if not folds:
        raise BacktestError(
            f"{len(sessions)} sessions are too few for a walk-forward that trains on {train_sessions}, purges "
            f"{purge_sessions} and tests on {test_sessions}"
        )
    return folds
