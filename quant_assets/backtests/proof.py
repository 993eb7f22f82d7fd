"""Proofs about a finished backtest: it did not look ahead, its accounts balance, its trades are out of sample. Pure.

Belongs here: running again on less data and comparing. Does not belong here: what is done with the verdict (`assets.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_assets.backtests.engine import Account, Costs
from quant_assets.backtests.portfolio import Backtest, Window, run_backtest
from quant_assets.market.series import BarSeries
from quant_assets.strategies.strategy import Strategy


def truncation_problems(
    run: Backtest,
    strategy: Strategy,
    series: Mapping[str, BarSeries],
    probability: Callable[[Mapping[str, BarSeries]], Mapping[str, np.ndarray]] | None,
    costs: Costs,
    account: Account,
    decision_cuts: int = 300,
    account_cuts: int = 6,
) -> list[dict[str, object]]:
    """Cut all inputs at several sessions, run again, and compare everything up to each cut bit for bit.

    Decisions are compared as well as money: a decision of t moves money at t + 1 only, so a strategy that peeks one session
    ahead leaves the accounts up to a cut as they were.

    Args:
        run: the backtest on all data.
        strategy, series, costs, account: what it was run with.
        probability: series -> probabilities, for strategies with a model.
        decision_cuts: at most so many sessions at which the decisions are compared: those on which decisions change and
            those before them, because a decision that peeked is there with the later data and not without; where there
            are more, evenly spread.
        account_cuts: sessions at which the accounts are compared, evenly over the window.

    Returns:
        One row per difference: `cut` and `what`. Empty: no look-ahead was found.
    """
    problems: list[dict[str, object]] = []
    whole = _decisions(strategy, series, probability)
    for cut in _evenly(_telling(run, series, whole), decision_cuts):
        ends = {s: bars.position(cut + dt.timedelta(days=1)) for s, bars in series.items()}
        past = {s: bars.cut(0, ends[s]) for s, bars in series.items() if ends[s]}
        for symbol, decisions in _decisions(strategy, past, probability).items():
            before = whole[symbol][: ends[symbol]]
            if not np.array_equal(decisions, before):
                first = past[symbol].sessions[int(np.argmin(decisions == before))]
                problems.append({"cut": str(cut), "what": f"decisions on {symbol} differ from {first} on"})
    for cut in _evenly(run.sessions, account_cuts):
        ends = {s: bars.position(cut + dt.timedelta(days=1)) for s, bars in series.items()}
        past = {s: bars.cut(0, ends[s]) for s, bars in series.items() if ends[s]}
        again = run_backtest(
            strategy,
            past,
            Window(run.window.first, cut),
            probability(past) if probability else None,
            costs,
            account,
            len(series),
        )
        for name in ("sessions", "equity", "invested", "gross"):
            now, then = getattr(again, name), getattr(run, name)[: len(again.sessions)]
            if not np.array_equal(now, then):
                day = run.sessions[int(np.argmin(now == then))]
                problems.append({"cut": str(cut), "what": f"{name} differs from {day} on"})
        before, after = closed_trades(run.trades, cut), closed_trades(again.trades, cut)
        if not before.equals(after):
            problems.append(
                {
                    "cut": str(cut),
                    "what": f"{before.num_rows} trades closed until then, {after.num_rows} when cut",
                }
            )
    return problems


def _telling(
    run: Backtest, series: Mapping[str, BarSeries], decisions: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Sessions of the window on which decisions change, and the sessions before them."""
    wanted = [run.sessions[:1]]
    for symbol, bars in series.items():
        changes = np.flatnonzero(np.diff(decisions[symbol], prepend=decisions[symbol][:1]))
        wanted.append(bars.sessions[np.concatenate([changes, changes[changes > 0] - 1])])
    sessions = np.unique(np.concatenate(wanted))
    return sessions[(sessions >= run.sessions[0]) & (sessions <= run.sessions[-1])]


def _evenly(sessions: np.ndarray, count: int) -> list[dt.date]:
    picks = np.unique(np.linspace(0, len(sessions), count, endpoint=False).astype(int))
    return sessions[picks].astype(object).tolist()


def _decisions(
    strategy: Strategy,
    series: Mapping[str, BarSeries],
    probability: Callable[[Mapping[str, BarSeries]], Mapping[str, np.ndarray]] | None,
) -> dict[str, np.ndarray]:
    said = probability(series) if probability else {}
    return {symbol: strategy.decide(bars, said.get(symbol)) for symbol, bars in series.items()}


def closed_trades(trades: pa.Table, until: dt.date) -> pa.Table:
    """Trades that ended on or before a session."""
    return trades.filter(
        pc.and_(
            pc.less_equal(trades["exit_session"], pa.scalar(until)), pc.not_equal(trades["reason"], "open")
        )
    )


def balance(run: Backtest) -> dict[str, float]:
    """Initial cash + PnL of all trades + interest against the final equity, dollars; `difference` should be 0."""
    pnl = float(sum(run.trades["pnl"].to_pylist()))
    final = float(run.equity[-1])
    return {
        "initial cash": run.initial_cash,
        "PnL of trades": pnl,
        "interest": run.interest,
        "final equity": final,
        "difference": run.initial_cash + pnl + run.interest - final,
    }


def sessions_between(
    run: Backtest, sessions: Sequence[dt.date], seen_until: dt.date
) -> tuple[dt.date, int] | None:
    """(earliest decision of a trade, sessions strictly between `seen_until` and it); None without a trade.

    A trade is decided at the close before its entry. The count is negative when that close was seen.

    Args:
        run: the backtest.
        sessions: all sessions of the market, in order.
        seen_until: last session that the model, or whoever chose the parameters, has seen.
    """
    entries = run.trades["entry_session"].to_pylist()
    if not entries:
        return None
    ordered = list(sessions)
    decision = ordered[ordered.index(min(entries)) - 1]
    gap = sum(seen_until < day < decision for day in ordered)
    return decision, gap if decision > seen_until else -1
