"""Many parameter sets at once: the engine's kernel over sets x symbols, with a few statistics of each. Pure.

Belongs here: the compiled loop over sets and the statistics that a sweep ranks by. Does not belong here: which sets are
tried (`sweep.py`), tear-sheet statistics (`statistics.py`, whose definitions these repeat; a test holds them together).

Memory is bounded: sets are worked off in chunks, each with one equity path per set, and only the statistics stay.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit

from quant_assets.backtests import engine
from quant_assets.backtests.engine import Account, BacktestError, Costs
from quant_assets.backtests.portfolio import Window, session_axis, share_count
from quant_assets.market.series import BarSeries
from quant_assets.strategies.strategy import Rules

CHUNK_SETS = 256
# Returns that differ by less do not vary; see `statistics.py`.
ROUNDING = 1e-14
STATISTICS = (
    "total_return",
    "sharpe",
    "volatility",
    "max_drawdown",
    "final_equity",
    "trades",
    "win_rate",
    "profit_factor",
    "sqn",
    "turnover",
    "costs",
    "rejected",
)


@dataclass(frozen=True)
class GridResult:
    """Statistics of each set, and what CSCV needs of its returns.

    Attributes:
        values: shape (sets, statistics), columns as `STATISTICS`: total return (fraction), annual Sharpe ratio and
            volatility (252 sessions, ddof 1, no risk-free rate), largest drawdown (fraction, at most 0), final equity
            (dollars), trades, win rate, profit factor (NaN without a loss), SQN, annual turnover (traded value over
            mean equity), costs (dollars), rejected orders.
        block_sums, block_squares: shape (sets, blocks): sums of the returns and of their squares in equal blocks of
            sessions.
        block_counts: shape (blocks,): returns per block.
    """

    values: np.ndarray
    block_sums: np.ndarray
    block_squares: np.ndarray
    block_counts: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """One statistic of all sets."""
        return self.values[:, STATISTICS.index(name)]


def rule_array(rules: Iterable[Rules]) -> np.ndarray:
    """`Rules` of all sets as the kernel takes them, with the look-back of volatility sizing; shape (sets, 6)."""
    rows = [(*engine.rule_of(r), r.volatility_sessions) for r in rules]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def simulate_sets(
    series: Mapping[str, BarSeries],
    decisions: Mapping[str, np.ndarray],
    rules: np.ndarray,
    window: Window,
    costs: Costs | None = None,
    account: Account | None = None,
    blocks: int = 16,
    accounts: int | None = None,
) -> GridResult:
    """Simulate a handful of sets (one chunk) on all symbols.

    Args:
        series: bars by symbol.
        decisions: by symbol, int8 of shape (sets, bars).
        rules: shape (sets, 6), see `rule_array`.
        window: sessions to trade.
        costs, account, accounts: as in `run_backtest`.
        blocks: for the overfitting statistics; 0 for none.

    Raises:
        BacktestError: no session in the window, or arrays that do not fit each other.
    """
    costs = engine.check_costs(costs or Costs())
    account = engine.check_account(account or Account())
    axis = session_axis(series, window)
    shares = share_count(series, accounts)
    share = account._replace(initial_cash=account.initial_cash / shares)
    sets = len(rules)
    if blocks and axis.size - 1 < 2 * blocks:
        blocks = 0
    # Accounts are added as gains, as in `run_backtest`.
    total = np.full((sets, axis.size), account.initial_cash) if shares > 1 else np.empty((0, 0))
    counts = np.zeros((sets, len(engine.TOTALS)))
    lookbacks = np.unique(rules[rules[:, 0] == 2, 5])
    lookback_of = np.minimum(np.searchsorted(lookbacks, rules[:, 5]), max(lookbacks.size - 1, 0))
    for symbol, bars in series.items():
        first, last = bars.position(window.first), bars.position(window.last + dt.timedelta(days=1))
        rows = decisions[symbol]
        if rows.shape != (sets, len(bars)):
            raise BacktestError(
                f"{symbol}: decisions of shape {rows.shape} for {sets} sets and {len(bars)} bars"
            )
        if first == last:
            continue
        volatility = (
            np.stack([engine.trailing_volatility(bars, int(k)) for k in lookbacks])
            if lookbacks.size
            else np.empty((1, len(bars)))
        )
        part = bars.cut(first, last)
        equity = np.empty((sets, len(part)))
        _simulate_rows(  # type: ignore[call-arg]
            *engine.market_arrays(part),
            np.ascontiguousarray(volatility[:, first:last]),
            lookback_of,
            np.ascontiguousarray(rows[:, first:last]),
            rules,
            costs,
            share,
            equity,
            counts,
        )
        if shares == 1:  # the axis is its own
            total = equity
        else:
            at = np.searchsorted(part.sessions, axis, side="right") - 1
            _add_gains(total, equity, at, share.initial_cash)
    values = np.empty((sets, len(STATISTICS)))
    edges = block_edges(axis.size - 1, blocks)
    sums, squares = np.zeros((sets, max(blocks, 0))), np.zeros((sets, max(blocks, 0)))
    _statistics(total, counts, account.initial_cash, edges, values, sums, squares)
    return GridResult(values, sums, squares, np.diff(edges))


def block_edges(returns: int, blocks: int) -> np.ndarray:
    """Bounds of `blocks` runs of returns, the first ones longer by one where they do not divide, shape (blocks + 1,)."""
    if not blocks:
        return np.zeros(1, dtype=np.int64)
    length, longer = divmod(returns, blocks)
    at = np.arange(blocks + 1, dtype=np.int64)
    return at * length + np.minimum(at, longer)


def run_grid(
    series: Mapping[str, BarSeries],
    decide: Callable[[BarSeries, slice], np.ndarray],
    rules: np.ndarray,
    window: Window,
    costs: Costs | None = None,
    account: Account | None = None,
    blocks: int = 16,
    jobs: int = 1,
    chunk_sets: int = CHUNK_SETS,
) -> Iterator[tuple[slice, GridResult]]:
    """Simulate any number of sets, chunk by chunk, on `jobs` threads; the kernel runs without Python's lock.

    Args:
        series: bars by symbol.
        decide: (bars, slice of the sets) -> int8 of shape (sets of the slice, bars).
        rules: shape (sets, 6).
        window, costs, account, blocks: see `simulate_sets`.
        jobs: threads.
        chunk_sets: sets per chunk; a chunk takes 8 bytes x sets x sessions.

    Yields:
        (sets, result), in order.
    """
    chunks = [slice(i, min(i + chunk_sets, len(rules))) for i in range(0, len(rules), chunk_sets)]

    def work(chunk: slice) -> tuple[slice, GridResult]:
        decisions = {symbol: decide(bars, chunk) for symbol, bars in series.items()}
        return chunk, simulate_sets(series, decisions, rules[chunk], window, costs, account, blocks)

    if jobs == 1:
        yield from map(work, chunks)
    else:
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(work, chunks)


def join_results(parts: Sequence[GridResult]) -> GridResult:
    """Chunks below each other."""
    if not parts:
        raise BacktestError("no parameter set at all")
    return GridResult(
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.block_sums for p in parts]),
        np.concatenate([p.block_squares for p in parts]),
        parts[0].block_counts,
    )


@njit(cache=True, nogil=True)
def _simulate_rows(  # type: ignore[no-untyped-def]
    open_,
    high,
    low,
    close,
    volume,
    dividend,
    split_factor,
    event,
    volatility,
    lookback_of,
    decisions,
    rules,
    costs,
    account,
    equity,
    counts,
):
    for s in range(rules.shape[0]):
        rule = engine._Rule(int(rules[s, 0]), rules[s, 1], rules[s, 2], rules[s, 3], int(rules[s, 4]))
        counts[s] += engine._simulate(
            open_,
            high,
            low,
            close,
            volume,
            dividend,
            split_factor,
            event,
            volatility[lookback_of[s]],
            decisions[s],
            rule,
            costs,
            account,
            equity[s],
            None,
            None,
            None,
            None,
        )


@njit(cache=True, nogil=True)
def _add_gains(total, equity, at, share):  # type: ignore[no-untyped-def]
    for s in range(total.shape[0]):
        for t in range(at.size):
            if at[t] >= 0:
                total[s, t] += equity[s, at[t]] - share


@njit(cache=True, nogil=True, error_model="numpy")
def _statistics(total, counts, initial, edges, values, sums, squares):  # type: ignore[no-untyped-def]
    """The definitions of `statistics.py`, ruin and rounding included; sums run in order, several in one loop.

    The returns may be far from 0 on average, so the variance is taken about the mean.
    """
    n = total.shape[1]
    returns = np.empty(n - 1)
    for s in range(total.shape[0]):
        path = total[s]
        peak, depth, level, alive = path[0], 0.0, path[0], True
        mean, lowest, highest = 0.0, np.inf, -np.inf
        for t in range(1, n):
            level += path[t]
            if path[t] > peak:
                peak = path[t]
            elif path[t] - peak < depth * peak:
                depth = path[t] / peak - 1.0
            gain = path[t] / path[t - 1] - 1.0 if alive else 0.0
            alive = alive and path[t] > 0.0
            mean += gain
            lowest, highest = min(lowest, gain), max(highest, gain)
            returns[t - 1] = gain
        mean /= n - 1
        squared = 0.0
        for b in range(edges.size - 1):
            total_b = square_b = 0.0
            for t in range(edges[b], edges[b + 1]):
                total_b += returns[t]
                square_b += returns[t] * returns[t]
                squared += (returns[t] - mean) * (returns[t] - mean)
            sums[s, b], squares[s, b] = total_b, square_b
        for t in range(edges[-1], n - 1):
            squared += (returns[t] - mean) * (returns[t] - mean)
        deviation = np.nan
        if n > 2:
            constant = highest - lowest <= ROUNDING * (1.0 + max(-lowest, highest))
            deviation = 0.0 if constant else math.sqrt(squared / (n - 2))
        trades, losses = counts[s, engine._N_TRADES], counts[s, engine._GROSS_LOSS]
        pnl = counts[s, engine._GROSS_PROFIT] - losses
        sqn = np.nan
        if trades > 1.0:
            # Below this the difference of the two sums is their rounding: the trades earned the same.
            spread = counts[s, engine._PNL_SQUARED] - pnl * pnl / trades
            if spread > 1e-12 * counts[s, engine._PNL_SQUARED]:
                sqn = math.sqrt(trades) * (pnl / trades) / math.sqrt(spread / (trades - 1.0))
        base = level / n * (n - 1) / 252.0
        values[s, 0] = path[n - 1] / initial - 1.0
        values[s, 1] = mean / deviation * math.sqrt(252.0) if deviation > 0.0 else np.nan
        values[s, 2] = deviation * math.sqrt(252.0)
        values[s, 3] = depth
        values[s, 4] = path[n - 1]
        values[s, 5] = trades
        values[s, 6] = counts[s, engine._N_WINS] / trades if trades > 0.0 else np.nan
        values[s, 7] = counts[s, engine._GROSS_PROFIT] / losses if losses > 0.0 else np.nan
        values[s, 8] = sqn
        values[s, 9] = counts[s, engine._TRADED_VALUE] / base if base > 0.0 else np.nan
        values[s, 10] = counts[s, engine._COSTS]
        values[s, 11] = counts[s, engine._N_REJECTED]
