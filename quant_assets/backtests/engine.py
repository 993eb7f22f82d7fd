"""The backtest engine: one strategy on one symbol, bar by bar, compiled. Pure.

Belongs here: orders, fills, costs, money. Does not belong here: what is decided (`quant_assets/strategies`), many symbols
or parameter sets (`portfolio.py`, `grid.py`), what the result is worth (`statistics.py`).

What happens inside a bar is written in the docstring of `_simulate`, and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from quant_assets.market.series import BarSeries
from quant_assets.strategies.strategy import (
    ENTER_LONG,
    ENTER_SHORT,
    EXIT_LONG,
    EXIT_SHORT,
    Rules,
)

# A level that the range misses by a rounding error counts as touched: 29 x 1.02 > 29.58 in floating point. The labels
# (`quant_assets/features/labels.py`) give way by the same.
TOUCH_TOLERANCE = 1e-12
# Orders or remainders below this part of a position are differences of floats: they neither trade nor stay.
CRUMB = 1e-9

REASONS = ("open", "signal", "reversal", "target", "stop", "time", "ruin")
_OPEN, _SIGNAL, _REVERSAL, _TARGET, _STOP, _TIME, _RUIN = range(len(REASONS))
REJECTIONS = ("cash", "participation", "size", "volatility", "conflict")
_CASH, _PARTICIPATION, _SIZE, _VOLATILITY, _CONFLICT = range(len(REJECTIONS))
_SIZINGS = {"shares": 0, "fraction": 1, "volatility": 2}


class BacktestError(ValueError):
    """A backtest cannot be run as asked. The message names the thing, its value and what is allowed."""


class Costs(NamedTuple):
    """What trading costs. All zero: frictionless.

    Attributes:
        commission_per_share: dollars.
        commission_bps: of the traded value.
        commission_minimum: dollars per order, when there is a commission at all or this is above 0.
        half_spread_bps: of the traded value; what crossing from mid to bid or ask costs.
        impact_bps: cost of trading a bar's whole volume; trading q of V shares costs `impact_bps * sqrt(q / V)` of the
            traded value (square-root law).
        participation_cap: largest share of a bar's volume that may be traded, 0 for no cap.
        borrow_annual_pct: fee on the market value of a short position, per 252 sessions.
        interest_annual_pct: on cash less the proceeds of shorts, per 252 sessions; a negative balance pays it.
    """

    commission_per_share: float = 0.0
    commission_bps: float = 0.0
    commission_minimum: float = 0.0
    half_spread_bps: float = 0.0
    impact_bps: float = 0.0
    participation_cap: float = 0.0
    borrow_annual_pct: float = 0.0
    interest_annual_pct: float = 0.0

    def times(self, factor: float) -> Costs:
        """All costs of trading and borrowing multiplied; cap and interest stay."""
        return self._replace(
            **{
                name: getattr(self, name) * factor
                for name in (
                    "commission_per_share",
                    "commission_bps",
                    "commission_minimum",
                    "half_spread_bps",
                    "impact_bps",
                    "borrow_annual_pct",
                )
            }
        )


class Account(NamedTuple):
    """Money and the rules of the broker.

    Attributes:
        initial_cash: dollars.
        leverage: buying power as a multiple of the equity, for long and short positions alike; 1 is a cash account
            whose shorts are covered in full.
        whole_shares: entries are cut to whole shares.
        bracket_on_entry_bar: stop and target work from the fill on. Off: from the next bar, as in backtrader.
    """

    initial_cash: float = 100_000.0
    leverage: float = 1.0
    whole_shares: bool = True
    bracket_on_entry_bar: bool = True


class _Rule(NamedTuple):
    """`Rules` as numbers; 0 stands for "none"."""

    sizing: int
    size: float
    target: float
    stop: float
    max_bars: int


def check_costs(costs: Costs) -> Costs:
    """Raise a `BacktestError` for a cost that is negative (interest may be) or not a number."""
    for name, value in costs._asdict().items():
        if not math.isfinite(value) or (value < 0 and name != "interest_annual_pct"):
            raise BacktestError(f"{name} = {value} must be a number of at least 0")
    if costs.participation_cap > 1:
        raise BacktestError(
            f"participation_cap = {costs.participation_cap} must lie in 0..1 (share of the bar's volume)"
        )
    return Costs(*map(float, costs))


def check_account(account: Account) -> Account:
    """Raise a `BacktestError` for an account without money or buying power."""
    for name in ("initial_cash", "leverage"):
        value = getattr(account, name)
        if not (math.isfinite(value) and value > 0):
            raise BacktestError(f"{name} = {value} must be a number above 0")
    return Account(
        float(account.initial_cash),
        float(account.leverage),
        bool(account.whole_shares),
        bool(account.bracket_on_entry_bar),
    )


def rule_of(rules: Rules) -> _Rule:
    """`Rules` as the kernel takes them."""
    return _Rule(
        _SIZINGS[rules.sizing],
        float(rules.size),
        (rules.profit_target_pct or 0.0) / 100,
        (rules.stop_loss_pct or 0.0) / 100,
        int(rules.max_bars or 0),
    )


TRADE_SCHEMA = pa.schema(
    [
        ("symbol", pa.string()),
        ("side", pa.string()),
        ("shares", pa.float64()),
        ("entry_session", pa.date32()),
        ("exit_session", pa.date32()),
        ("entry_price", pa.float64()),
        ("exit_price", pa.float64()),
        ("reason", pa.string()),
        ("pnl", pa.float64()),
        ("trade_return", pa.float64()),
        ("commission", pa.float64()),
        ("spread", pa.float64()),
        ("impact", pa.float64()),
        ("borrow", pa.float64()),
        ("dividends", pa.float64()),
        ("bars_held", pa.int64()),
        ("mae", pa.float64()),
        ("mfe", pa.float64()),
        ("split_factor", pa.float64()),
        ("traded_value", pa.float64()),
    ]
)
REJECTION_SCHEMA = pa.schema(
    [
        ("symbol", pa.string()),
        ("session", pa.date32()),
        ("side", pa.string()),
        ("shares", pa.float64()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Simulation:
    """What one strategy did on one symbol.

    Attributes:
        symbol: its name.
        sessions: `datetime64[D]`, shape (bars,).
        equity: dollars at each close, shape (bars,): cash + shares x close.
        cash: dollars at each close, shape (bars,).
        shares: position at each close, shape (bars,), negative when short.
        close: dollars per share, as quoted, shape (bars,).
        trades: one row per position from its opening to its end, columns as `TRADE_SCHEMA`. `entry_price` and
            `exit_price` are the market's (the mean over partial exits, in shares of the entry's session), costs stand in
            columns of their own, `pnl` is net of them. A position that is still held at the end has reason `open`, the last
            close as its exit price and no exit costs. `mae` and `mfe` are the worst and best price against the entry
            price while the trade lived, as fractions (on the bar of the exit only the exit price counts).
            `traded_value` is what its orders traded, dollars.
        rejected: orders, or parts of them, that were not filled, columns as `REJECTION_SCHEMA`.
        interest: dollars earned on cash (negative: paid); the only money that is no trade's.
    """

    symbol: str
    sessions: np.ndarray
    equity: np.ndarray
    cash: np.ndarray
    shares: np.ndarray
    close: np.ndarray
    trades: pa.Table
    rejected: pa.Table
    interest: float


def trailing_volatility(bars: BarSeries, sessions: int) -> np.ndarray:
    """Annual volatility of the last `sessions` log total returns up to each close, shape (bars,), NaN before."""
    log_returns = np.diff(np.log(bars.adj_close))
    out = np.full(len(bars), np.nan)
    if log_returns.size >= sessions:
        windows = np.lib.stride_tricks.sliding_window_view(log_returns, sessions)
        out[sessions:] = windows.std(axis=1, ddof=1) * math.sqrt(252)
    return out


def simulate(
    bars: BarSeries,
    decisions: np.ndarray,
    rules: Rules,
    costs: Costs | None = None,
    account: Account | None = None,
    first: int = 0,
    last: int | None = None,
) -> Simulation:
    """Run one strategy's decisions on one symbol; what happens inside a bar: `_simulate`.

    Args:
        bars: the whole history.
        decisions: int8 of shape (bars,), as `Strategy.decide` returns them.
        rules: size and exits.
        costs: costs.
        account: money.
        first, last: bars `first <= i < last` are traded; decisions may have used bars before.

    Raises:
        BacktestError: an empty window, decisions of another length, impossible costs or account.
    """
    last = len(bars) if last is None else last
    if decisions.shape != (len(bars),):
        raise BacktestError(f"{bars.symbol}: decisions have shape {decisions.shape} for {len(bars)} bars")
    if not 0 <= first < last <= len(bars):
        raise BacktestError(
            f"{bars.symbol}: the window holds no bar (bars {first} to {last} of {len(bars)}, "
            f"{bars.sessions[0]} to {bars.sessions[-1]}). Choose a window inside these sessions."
        )
    costs, account = check_costs(costs or Costs()), check_account(account or Account())
    volatility = (
        trailing_volatility(bars, rules.volatility_sessions)
        if rules.sizing == "volatility"
        else np.empty(len(bars))
    )
    window = bars.cut(first, last)
    n = len(window)
    equity, cash, shares = np.empty(n), np.empty(n), np.empty(n)
    trades, rejected = np.zeros((n, _TRADE_COLUMNS)), np.zeros((2 * n, 4))
    totals = _simulate(  # type: ignore[call-arg]
        *market_arrays(window),
        volatility[first:last],
        np.ascontiguousarray(decisions[first:last], dtype=np.int8),
        rule_of(rules),
        costs,
        account,
        equity,
        cash,
        shares,
        trades,
        rejected,
    )
    return Simulation(
        bars.symbol,
        window.sessions,
        equity,
        cash,
        shares,
        window.close,
        _trade_table(window, trades[: int(totals[_N_TRADES])]),
        _rejection_table(window, rejected[: int(totals[_N_REJECTED])]),
        float(totals[_INTEREST]),
    )


def market_arrays(bars: BarSeries) -> tuple[np.ndarray, ...]:
    """The arrays that the kernel reads, in its order; the last marks bars with a split or a dividend."""
    event = ((bars.dividend != 0) | (bars.split_factor != 1)).astype(np.uint8)
    return (
        bars.open,
        bars.high,
        bars.low,
        bars.close,
        bars.volume,
        bars.dividend,
        bars.split_factor,
        event,
    )


# What the kernel keeps of the trade that lives, and writes to a row of `trades` when it ends. `_BASIS` is the entry price
# in shares of today, `_SPLIT` the product of the splits since the entry, `_EXIT_SHARES` counts shares of the entry.
(
    _SIDE,
    _ENTRY,
    _EXIT,
    _REASON,
    _BASIS,
    _SPLIT,
    _ENTRY_SHARES,
    _ENTRY_VALUE,
    _EXIT_SHARES,
    _EXIT_VALUE,
    _PNL,
    _COMMISSION,
    _SPREAD,
    _IMPACT,
    _BORROW,
    _DIVIDENDS,
    _TRADED,
    _HELD,
    _WORST,
    _BEST,
) = range(20)
_TRADE_COLUMNS = 20

# What the kernel counts over all trades, in dollars or numbers.
TOTALS = (
    "trades",
    "wins",
    "gross_profit",
    "gross_loss",
    "pnl_squared",
    "traded_value",
    "costs",
    "rejected",
    "interest",
)
(
    _N_TRADES,
    _N_WINS,
    _GROSS_PROFIT,
    _GROSS_LOSS,
    _PNL_SQUARED,
    _TRADED_VALUE,
    _COSTS,
    _N_REJECTED,
    _INTEREST,
) = range(len(TOTALS))


@njit(cache=True, nogil=True)
def _trading_costs(shares, price, volume, costs):  # type: ignore[no-untyped-def]
    """Commission, spread and impact in dollars of trading `shares` > 0 at `price`."""
    value = shares * price
    commission = costs.commission_per_share * shares + costs.commission_bps * 1e-4 * value
    if commission < costs.commission_minimum:
        commission = costs.commission_minimum
    impact = 0.0
    if costs.impact_bps > 0.0:
        # A bar without volume that is traded all the same counts as traded whole.
        participation = shares / volume if volume > shares else 1.0
        impact = costs.impact_bps * 1e-4 * math.sqrt(participation) * value
    return commission, costs.half_spread_bps * 1e-4 * value, impact


@njit(cache=True, nogil=True)
def _affordable(budget, price, volume, costs):  # type: ignore[no-untyped-def]
    """Most shares whose value and costs together stay within `budget` dollars."""
    rate = 1.0 + (costs.commission_bps + costs.half_spread_bps) * 1e-4
    shares = budget / (price * rate + costs.commission_per_share)
    if costs.commission_minimum > 0.0:
        with_minimum = (budget - costs.commission_minimum) / (price * (1.0 + costs.half_spread_bps * 1e-4))
        shares = max(0.0, min(shares, with_minimum))
    if costs.impact_bps > 0.0:
        # Impact grows faster than the order, so the answer is found from above.
        low, high = 0.0, shares
        for _ in range(60):
            middle = 0.5 * (low + high)
            commission, spread, impact = _trading_costs(middle, price, volume, costs)
            if middle * price + commission + spread + impact <= budget:
                low = middle
            else:
                high = middle
        shares = low
    return shares


@njit(cache=True, nogil=True)
def _fill(trade, direction, quantity, price, volume, costs):  # type: ignore[no-untyped-def]
    """Trade `quantity` > 0 shares, bought (direction 1) or sold (-1); the change of cash, costs paid."""
    commission, spread, impact = _trading_costs(quantity, price, volume, costs)
    trade[_COMMISSION] += commission
    trade[_SPREAD] += spread
    trade[_IMPACT] += impact
    trade[_TRADED] += quantity * price
    change = -direction * quantity * price - commission - spread - impact
    trade[_PNL] += change
    return change


@njit(cache=True, nogil=True)
def _leave(trade, shares, price, volume, capacity, costs):  # type: ignore[no-untyped-def]
    """Exit as much of the position as the capacity allows; (change of cash, shares left)."""
    held = abs(shares)
    quantity = held if capacity >= held * (1.0 - CRUMB) else capacity
    if quantity <= held * CRUMB:
        return 0.0, shares
    side = trade[_SIDE]
    change = _fill(trade, -side, quantity, price, volume, costs)
    trade[_EXIT_VALUE] += quantity * price
    trade[_EXIT_SHARES] += quantity / trade[_SPLIT]
    excursion = side * (price / trade[_BASIS] - 1.0)
    trade[_WORST] = min(trade[_WORST], excursion)
    trade[_BEST] = max(trade[_BEST], excursion)
    return change, 0.0 if quantity == held else shares - side * quantity


@njit(cache=True, nogil=True)
def _book(trade, totals, trades, t, reason, held):  # type: ignore[no-untyped-def]
    """The trade has ended at bar t."""
    if trades is not None:
        trade[_EXIT], trade[_REASON], trade[_HELD] = t, reason, held
        trades[int(totals[_N_TRADES])] = trade
    pnl = trade[_PNL]
    totals[_N_TRADES] += 1.0
    if pnl > 0.0:
        totals[_N_WINS] += 1.0
        totals[_GROSS_PROFIT] += pnl
    else:
        totals[_GROSS_LOSS] -= pnl
    totals[_PNL_SQUARED] += pnl * pnl
    totals[_TRADED_VALUE] += trade[_TRADED]
    totals[_COSTS] += trade[_COMMISSION] + trade[_SPREAD] + trade[_IMPACT] + trade[_BORROW]


@njit(cache=True, nogil=True)
def _reject(totals, rejected, t, side, shares, reason):  # type: ignore[no-untyped-def]
    if rejected is not None:
        row = int(totals[_N_REJECTED])
        rejected[row, 0], rejected[row, 1], rejected[row, 2], rejected[row, 3] = t, side, shares, reason
    totals[_N_REJECTED] += 1.0


@njit(cache=True, nogil=True)
def _order(rule, costs, account, cash, price, volume, volatility):  # type: ignore[no-untyped-def]
    """Shares of an entry at `price`, and why it is rejected (-1: it is not)."""
    power = cash * account.leverage
    why = -1
    if rule.sizing == 2 and not volatility > 0.0:
        return np.nan, _VOLATILITY
    if rule.sizing == 0:
        wanted = math.floor(rule.size) if account.whole_shares else rule.size
        commission, spread, impact = _trading_costs(wanted, price, volume, costs)
        if wanted * price + commission + spread + impact > power * (1.0 + 1e-12):
            why = _CASH
    else:
        fraction = rule.size / volatility if rule.sizing == 2 else rule.size
        # After an exit that ended in debt there is nothing to order.
        wanted = max(0.0, _affordable(min(fraction * cash, power), price, volume, costs))
        if account.whole_shares:
            # The hair gives back a whole share that rounding took.
            wanted = math.floor(wanted + 1e-9)
    if why < 0 and wanted <= 0.0:
        why = _SIZE
    return wanted, why


@njit(cache=True, nogil=True)
def _touched(trade, rule, open_, high, low, gap):  # type: ignore[no-untyped-def]
    """(reason, fill price) of the bracket in this bar's range; reason 0 when neither level is touched."""
    side, basis = trade[_SIDE], trade[_BASIS]
    stop, target = basis * (1.0 - side * rule.stop), basis * (1.0 + side * rule.target)
    slack = TOUCH_TOLERANCE * basis
    # Multiplying by the side mirrors a short trade, so that "beyond" is one comparison.
    against, towards = (low, high) if side > 0.0 else (high, low)
    if gap and rule.stop > 0.0 and side * (open_ - stop) <= slack:
        return _STOP, open_
    if gap and rule.target > 0.0 and side * (open_ - target) >= -slack:
        return _TARGET, open_
    if rule.stop > 0.0 and side * (against - stop) <= slack:
        return _STOP, stop
    if rule.target > 0.0 and side * (towards - target) >= -slack:
        return _TARGET, target
    return 0, 0.0


@njit(cache=True, nogil=True)
def _simulate(  # type: ignore[no-untyped-def]
    open_,
    high,
    low,
    close,
    volume,
    dividend,
    split_factor,
    event,
    volatility,
    decisions,
    rule,
    costs,
    account,
    equity,
    cash_path,
    shares_path,
    trades,
    rejected,
):
    """Simulate one strategy on one symbol. The only place that knows what happens inside a bar.

    In bar t, in this order:

    1. **Night.** For the night from t-1: interest on cash less the market value of shorts at the close of t-1, and the
       borrow fee on that market value, each a 252nd of the annual rate. Then a split multiplies the shares held (fractions
       stay) and divides entry price and levels. Then the dividend of t is paid on longs and owed on shorts.
    2. **Open.** Orders decided at the close of t-1 fill at the open of t, exits first. A reversal is an exit and an entry.
       - The bar's volume times the participation cap limits what all orders of a bar trade together. Of an *exit*, what
         is left over is tried again at the next open, until done; of an *entry* it stays unfilled and is reported. While
         an exit is unfinished there is no entry.
       - An entry is sized by the equity at the open (after the exit): as many shares as a `fraction` of it pays for, costs
         included, or the fraction that brings the volatility known at t-1 to its target; never more than the buying power
         (equity x leverage) pays for. A number of `shares` whose value and costs exceed the buying power is rejected and
         reported.
       - Commission, half spread and impact are paid in cash; fill prices are the market's.
    3. **Range.** Stop and target stand at entry price x (1 -+ pct). An open beyond a level (a gap) fills at the open;
       otherwise a touched level fills at the level; if the range touches both, the stop counts. Levels work from the fill
       on, also on the bar of the entry (`Account.bracket_on_entry_bar`). What the cap leaves over goes to the next open.
    4. **Close.** Equity = cash + shares x close. At 0 or below the account is ruined: the position ends at this close
       without costs, and nothing is traded, earned or paid any more.
    5. **Decision.** The decisions of t become orders for the open of t+1, given the position after step 4: flat takes an
       entry (two at once contradict each other: neither is taken, and it is reported); a position takes its exit, or the
       opposite entry as a reversal, or leaves because it was held for `max_bars` closes. Entries on the side that is
       already held do nothing.

    After the last bar a position stays open and is marked at the last close.

    Every number of bar t is made of bars up to t, so cutting the data after t changes nothing up to t.

    Args:
        open_, high, low, close, volume, dividend, split_factor: shape (bars,).
        event: uint8 of shape (bars,), 1 where there is a dividend or a split.
        volatility: annual, shape (bars,); read for sizing by volatility alone.
        decisions: int8 of shape (bars,).
        rule, costs, account: `_Rule`, `Costs`, `Account`.
        equity: filled, shape (bars,).
        cash_path, shares_path: filled, or None.
        trades: filled, shape (at least bars, 20), or None. rejected: shape (at least 2 x bars, 4), or None.

    Returns:
        float64 of shape (9,), named in `TOTALS`. A position that is still open counts as a trade.
    """
    n = open_.size
    cash, shares = account.initial_cash, 0.0
    pending_exit, pending_entry = 0, 0  # a reason; a side
    ruined = False
    trade, totals = np.zeros(_TRADE_COLUMNS), np.zeros(len(TOTALS))
    night_rate = costs.interest_annual_pct / 100.0 / 252.0
    borrow_rate = costs.borrow_annual_pct / 100.0 / 252.0
    accrues = night_rate != 0.0 or borrow_rate > 0.0
    bracket = rule.target > 0.0 or rule.stop > 0.0
    watched = bracket or trades is not None
    timed = rule.max_bars > 0
    capped = costs.participation_cap > 0.0
    capacity = np.inf

    for t in range(n):
        # Most bars have nothing to do before their close, and this one question is cheaper than all those below.
        if accrues or pending_exit != 0 or pending_entry != 0 or (shares != 0.0 and (watched or event[t])):
            # 1. Night
            if accrues and t > 0 and not ruined:
                short_value = -shares * close[t - 1] if shares < 0.0 else 0.0
                interest, fee = (cash - short_value) * night_rate, short_value * borrow_rate
                cash += interest - fee
                totals[_INTEREST] += interest
                trade[_BORROW] += fee
                trade[_PNL] -= fee
            if event[t] and shares != 0.0:
                shares *= split_factor[t]
                trade[_BASIS] /= split_factor[t]
                trade[_SPLIT] *= split_factor[t]
                paid = shares * dividend[t]
                cash += paid
                trade[_PNL] += paid
                trade[_DIVIDENDS] += paid

            # 2. Open
            if capped:
                capacity = costs.participation_cap * volume[t]
            if pending_exit != 0:
                held = abs(shares)
                change, shares = _leave(trade, shares, open_[t], volume[t], capacity, costs)
                cash += change
                capacity -= held - abs(shares)
                if shares == 0.0:
                    _book(trade, totals, trades, t, pending_exit, t - trade[_ENTRY])
                    pending_exit = 0
            if pending_entry != 0:
                if shares != 0.0:
                    _reject(totals, rejected, t, pending_entry, np.nan, _PARTICIPATION)
                else:
                    wanted, why = _order(rule, costs, account, cash, open_[t], volume[t], volatility[t - 1])
                    quantity = 0.0 if why >= 0 else min(wanted, capacity)
                    if account.whole_shares:
                        quantity = math.floor(quantity + 1e-9)
                    elif quantity <= wanted * CRUMB:
                        quantity = 0.0
                    if quantity < wanted or why >= 0:
                        _reject(
                            totals,
                            rejected,
                            t,
                            pending_entry,
                            wanted - quantity,
                            why if why >= 0 else _PARTICIPATION,
                        )
                    if quantity > 0.0:
                        trade[:] = 0.0
                        trade[_SIDE], trade[_ENTRY], trade[_BASIS], trade[_SPLIT] = (
                            pending_entry,
                            t,
                            open_[t],
                            1.0,
                        )
                        trade[_ENTRY_SHARES], trade[_ENTRY_VALUE] = quantity, quantity * open_[t]
                        cash += _fill(trade, pending_entry, quantity, open_[t], volume[t], costs)
                        shares = pending_entry * quantity
                        capacity -= quantity
                pending_entry = 0

            # 3. Range
            if watched and shares != 0.0:
                entered_now = trade[_ENTRY] == t
                # An exit that is unfinished has used up the bar's volume, and keeps its reason.
                if bracket and pending_exit == 0 and (not entered_now or account.bracket_on_entry_bar):
                    reason, price = _touched(trade, rule, open_[t], high[t], low[t], not entered_now)
                    if reason != 0:
                        change, shares = _leave(trade, shares, price, volume[t], capacity, costs)
                        cash += change
                        pending_exit = reason
                        if shares == 0.0:
                            _book(trade, totals, trades, t, reason, t - trade[_ENTRY])
                            pending_exit = 0
                if trades is not None and shares != 0.0:
                    up, down = high[t] / trade[_BASIS] - 1.0, low[t] / trade[_BASIS] - 1.0
                    trade[_WORST] = min(trade[_WORST], down if shares > 0.0 else -up)
                    trade[_BEST] = max(trade[_BEST], up if shares > 0.0 else -down)

        # 4. Close
        worth = cash + shares * close[t]
        if worth <= 0.0 and not ruined:
            ruined = True
            pending_exit = 0
            if shares != 0.0:
                trade[_PNL] += shares * close[t]
                trade[_EXIT_VALUE] += abs(shares) * close[t]
                trade[_EXIT_SHARES] += abs(shares) / trade[_SPLIT]
                trade[_TRADED] += abs(shares) * close[t]
                _book(trade, totals, trades, t, _RUIN, t - trade[_ENTRY] + 1)
                cash, shares = worth, 0.0
        equity[t] = worth
        if cash_path is not None:
            cash_path[t] = cash
        if shares_path is not None:
            shares_path[t] = shares

        # 5. Decision
        decision = decisions[t]
        if ruined or (decision == 0 and not timed):
            continue
        if shares == 0.0:
            if decision & (ENTER_LONG | ENTER_SHORT):
                if decision & ENTER_LONG and decision & ENTER_SHORT:
                    _reject(totals, rejected, t, 0, np.nan, _CONFLICT)
                else:
                    pending_entry = 1 if decision & ENTER_LONG else -1
        else:
            opposite, same, leave = (
                (ENTER_SHORT, ENTER_LONG, EXIT_LONG)
                if shares > 0.0
                else (ENTER_LONG, ENTER_SHORT, EXIT_SHORT)
            )
            if decision & opposite and not decision & same:
                pending_exit, pending_entry = _REVERSAL, -1 if shares > 0.0 else 1
            elif pending_exit == 0:
                if decision & leave:
                    pending_exit = _SIGNAL
                elif timed and t - trade[_ENTRY] + 1 >= rule.max_bars:
                    pending_exit = _TIME

    if shares != 0.0:
        trade[_PNL] += shares * close[n - 1]
        trade[_EXIT_VALUE] += abs(shares) * close[n - 1]
        trade[_EXIT_SHARES] += abs(shares) / trade[_SPLIT]
        _book(trade, totals, trades, n - 1, _OPEN, n - trade[_ENTRY])
    return totals


def _dates(sessions: np.ndarray) -> pa.Array:
    return pa.array(sessions.astype("datetime64[D]"), pa.date32())


def _trade_table(bars: BarSeries, rows: np.ndarray) -> pa.Table:
    entry, exit_ = rows[:, _ENTRY].astype(int), rows[:, _EXIT].astype(int)
    entry_value = rows[:, _ENTRY_VALUE]
    columns: dict[str, Any] = {
        "symbol": pa.repeat(bars.symbol, len(rows)),
        "side": pa.array(["short", "long"]).take(pa.array((rows[:, _SIDE] > 0).astype(int))),
        "shares": rows[:, _ENTRY_SHARES],
        "entry_session": _dates(bars.sessions[entry]),
        "exit_session": _dates(bars.sessions[exit_]),
        "entry_price": entry_value / rows[:, _ENTRY_SHARES],
        "exit_price": rows[:, _EXIT_VALUE] / rows[:, _EXIT_SHARES],
        "reason": pa.array(REASONS).take(pa.array(rows[:, _REASON].astype(int))),
        "pnl": rows[:, _PNL],
        "trade_return": rows[:, _PNL] / entry_value,
        "commission": rows[:, _COMMISSION],
        "spread": rows[:, _SPREAD],
        "impact": rows[:, _IMPACT],
        "borrow": rows[:, _BORROW],
        "dividends": rows[:, _DIVIDENDS],
        "bars_held": rows[:, _HELD].astype(int),
        "mae": rows[:, _WORST],
        "mfe": rows[:, _BEST],
        "split_factor": rows[:, _SPLIT],
        "traded_value": rows[:, _TRADED],
    }
    return pa.table(columns, schema=TRADE_SCHEMA)


def _rejection_table(bars: BarSeries, rows: np.ndarray) -> pa.Table:
    sides = {1: "long", -1: "short", 0: "both"}
    return pa.table(
        {
            "symbol": pa.array([bars.symbol] * len(rows), pa.string()),
            "session": _dates(bars.sessions[rows[:, 0].astype(int)]),
            "side": pa.array([sides[int(side)] for side in rows[:, 1]], pa.string()),
            "shares": pa.array(rows[:, 2], pa.float64(), from_pandas=True),
            "reason": pa.array([REJECTIONS[int(code)] for code in rows[:, 3]], pa.string()),
        },
        schema=REJECTION_SCHEMA,
    )
