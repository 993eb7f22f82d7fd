"""What a backtest earned, what it risked and how far to believe it. Pure numpy; scipy only for normal quantiles.

Belongs here: every number that is computed from an equity curve, from a table of trades or from the block sums of
many trials, and `summary`, which collects them. Does not belong here: how equity and trades come about (the engine),
which trials are run (the sweep), and how numbers are drawn (plots and tear sheets).

Rules that hold for every function:

- **Shapes.** `equity` is (sessions,), money at each close; its first entry is the capital before anything was earned,
  so there is one return less than there are sessions. `returns` is (periods,), simple returns of one period each.
- **Units.** Returns, drawdowns, rates and shares of a whole are fractions (0.05 is five percent) and carry no suffix;
  money carries no suffix; everything else says its unit (`_bps`, `_sessions`). Nothing here is in percent.
  A Sharpe ratio is annual, except in the functions of section "validity", which take and return it *per period*.
- **Undefined is NaN.** A number without a value (one observation, no volatility, no loss, no trade) is NaN, never an
  infinity and never an exception; `summary` writes it as None, so that the result is valid JSON.
- **Misuse raises ValueError**: wrong shape, NaN or infinity in the input, capital that is not positive at the start.
- **Ruin.** In the period in which equity reaches zero or less the return is what it is (-1 or below); from then on the
  account is closed and returns are 0. The annual return of a ruined account is -1.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TAIL = 0.05
COSTS = ("commission", "spread", "impact", "borrow")
_DAYS_PER_YEAR = 365.25
_EULER_MASCHERONI = 0.5772156649015329
_ROUNDING = 1e-14
_CHUNK_CELLS = 2**17
_NAN = float("nan")


@dataclass(frozen=True)
class Conventions:
    """How numbers are annualised. Two Sharpe ratios may be compared only under the same conventions.

    Attributes:
        periods_per_year: P, periods in a year; 252 sessions.
        ddof: delta degrees of freedom of every variance of returns; 1 is the unbiased one.
        rf_annual: simple annual risk-free rate, fraction; per period it is (1 + rf)^(1/P) - 1.
        compounding: `simple` annualises as mean x P and deviation x sqrt(P); `geometric` is the definition of
            backtesting.py 0.6, see `volatility`, `sharpe_ratio` and `sortino_ratio`.
        calendar: exchange whose sessions the periods are; a label, nothing is looked up.

    Raises:
        ValueError: a value out of its range.
    """

    periods_per_year: float = 252
    ddof: int = 1
    rf_annual: float = 0.0
    compounding: Literal["simple", "geometric"] = "simple"
    calendar: str = "XNYS"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not (math.isfinite(self.periods_per_year) and self.periods_per_year > 0):
            raise ValueError(f"periods_per_year must be positive, got {self.periods_per_year}")
        if self.ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 or 1, got {self.ddof}")
        if not (math.isfinite(self.rf_annual) and self.rf_annual > -1):
            raise ValueError(
                f"rf_annual must be above -1 (a fraction, 0.05 is five percent), got {self.rf_annual}"
            )
        if self.compounding not in ("simple", "geometric"):
            raise ValueError(f"compounding must be 'simple' or 'geometric', got {self.compounding!r}")
        if not self.calendar:
            raise ValueError("calendar must name an exchange calendar")

    @property
    def rf_period(self) -> float:
        """Risk-free return of one period, (1 + rf_annual)^(1/P) - 1."""
        return (1 + self.rf_annual) ** (1 / self.periods_per_year) - 1


DEFAULT = Conventions()


# ---------------------------------------------------------------------------------------------------------- returns


def period_returns(equity: np.ndarray) -> np.ndarray:
    """Simple return of each period, r_t = E_t / E_(t-1) - 1, shape (sessions - 1,).

    One session gives an empty array. After ruin (see the module) returns are 0.

    Raises:
        ValueError: not one-dimensional, empty, not finite, or the first value is not positive.
    """
    equity = _equity(equity)
    alive = np.minimum.accumulate(equity)[:-1] > 0
    return np.divide(equity[1:], equity[:-1], out=np.ones(len(equity) - 1), where=alive) - 1


def total_return(equity: np.ndarray) -> float:
    """Return from the first to the last session, E_T / E_0 - 1, fraction; one session gives 0."""
    equity = _equity(equity)
    return float(equity[-1] / equity[0] - 1)


def annual_return(returns: np.ndarray, conventions: Conventions = DEFAULT) -> float:
    """Geometric annual return counted in periods, prod(1 + r_t)^(P/T) - 1, fraction.

    It is the same under both kinds of compounding. No return gives NaN, a return of -1 or below gives -1.
    """
    returns = _series(returns, "returns")
    if len(returns) == 0:
        return _NAN
    if returns.min() <= -1:
        return -1.0
    return _compound(float(np.log1p(returns).mean()) * conventions.periods_per_year)


def cagr(
    equity: np.ndarray,
    conventions: Conventions = DEFAULT,
    sessions: Sequence[dt.date] | np.ndarray | None = None,
) -> float:
    """Compound annual growth rate, (E_T / E_0)^(1/years) - 1, fraction.

    With `sessions`, years = (last - first calendar day) / 365.25, as backtesting.py counts them; without, years = T / P,
    which makes it `annual_return`. One session gives NaN, equity that ever reached zero gives -1.

    Args:
        equity: shape (sessions,), money.
        conventions: periods_per_year is used, and only without `sessions`.
        sessions: shape (sessions,), exchange dates in ascending order.
    """
    equity = _equity(equity)
    if sessions is None:
        return annual_return(period_returns(equity), conventions)
    days = _sessions(sessions, len(equity))
    years = float((days[-1] - days[0]).astype(int)) / _DAYS_PER_YEAR
    if years == 0:
        return _NAN
    if equity.min() <= 0:
        return -1.0
    return _compound(math.log(equity[-1] / equity[0]) / years)


def volatility(returns: np.ndarray, conventions: Conventions = DEFAULT) -> float:
    """Annual volatility, fraction.

    `simple`: s sqrt(P) with s^2 the variance of returns with `ddof`. `geometric`: the deviation of the product of P
    independent growth factors with mean 1 + g and variance s^2, sqrt((s^2 + (1 + g)^2)^P - (1 + g)^(2P)), where
    g = prod(1 + r)^(1/T) - 1 stands in for the arithmetic mean (backtesting.py 0.6, which cites doi 10.2139/ssrn.3054517).

    Fewer than two returns give NaN, equal returns 0. Under `geometric` a return of -1 or below gives NaN.
    """
    returns = _series(returns, "returns")
    deviation = _deviation(returns, conventions.ddof)
    periods = conventions.periods_per_year
    if math.isnan(deviation) or deviation == 0 or conventions.compounding == "simple":
        return _finite(deviation * math.sqrt(periods))
    if returns.min() <= -1:
        return _NAN
    growth = np.exp(np.log1p(returns).mean())
    with np.errstate(over="ignore", invalid="ignore"):
        return _finite(np.sqrt((deviation**2 + growth**2) ** periods - growth ** (2 * periods)))


def sharpe_ratio(returns: np.ndarray, conventions: Conventions = DEFAULT) -> float:
    """Annual Sharpe ratio (Sharpe 1966, 1994).

    `simple`: mean(x) / s(x) sqrt(P) with x = r - rf_period and s with `ddof`; empyrical's definition.
    `geometric`: (`annual_return` - rf_annual) / `volatility`; backtesting.py's definition.

    NaN for fewer than two returns, for returns without volatility and, under `geometric`, after ruin.
    """
    if conventions.compounding == "simple":
        return _finite(_period_sharpe(returns, conventions) * math.sqrt(conventions.periods_per_year))
    annual_volatility = volatility(returns, conventions)
    return _ratio(annual_return(returns, conventions) - conventions.rf_annual, annual_volatility)


@dataclass(frozen=True)
class SharpeInterval:
    """An annual Sharpe ratio with its standard error and the two-sided interval `low` to `high`."""

    value: float
    low: float
    high: float
    standard_error: float


def sharpe_interval(
    returns: np.ndarray, conventions: Conventions = DEFAULT, confidence: float = 0.95
) -> SharpeInterval:
    """Interval of the Sharpe ratio for independent returns that need not be normal, in annual units.

    With S the Sharpe ratio per period, skewness g3 and Pearson kurtosis g4 of T returns, the standard error per period is
    sqrt((1 - g3 S + (g4 - 1)/4 S^2) / (T - 1)) (Mertens 2002, working paper, University of Basel;
    for normal returns it is Lo 2002, The Statistics of Sharpe Ratios, Financial Analysts Journal 58(4); T - 1 as in Bailey
    and López de Prado 2012, so that `probabilistic_sharpe_ratio` is the same test). Times sqrt(P) it is annual; the
    interval is value ± z standard_error.

    It always belongs to the *simple* Sharpe ratio, because the theory does; under `geometric` compounding `value`
    therefore differs from `sharpe_ratio`. Positive autocorrelation makes the true interval wider. All NaN for fewer
    than two returns or no volatility.

    Raises:
        ValueError: confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    returns = _series(returns, "returns")
    sharpe = _period_sharpe(returns, conventions)
    if math.isnan(sharpe):
        return SharpeInterval(_NAN, _NAN, _NAN, _NAN)
    scale = math.sqrt(conventions.periods_per_year)
    error = (
        math.sqrt(_sharpe_variance(sharpe, skewness(returns), kurtosis(returns)) / (len(returns) - 1)) * scale
    )
    reach = -_normal_quantile((1 - confidence) / 2) * error
    value = sharpe * scale
    return SharpeInterval(value, value - reach, value + reach, error)


def sortino_ratio(returns: np.ndarray, conventions: Conventions = DEFAULT) -> float:
    """Annual Sortino ratio (Sortino and Price 1994): return over downside deviation, the latter over all T periods.

    `simple`: mean(x) P / (d(x) sqrt(P)), x = r - rf_period, d(x) = sqrt(mean(min(x, 0)^2)); empyrical's definition.
    `geometric`: (`annual_return` - rf_annual) / (d(r) sqrt(P)), downside against zero; backtesting.py's definition.

    NaN for fewer than two returns and for returns without a downside.
    """
    returns = _series(returns, "returns")
    if len(returns) < 2:
        return _NAN
    excess = returns - conventions.rf_period
    below = np.minimum(excess if conventions.compounding == "simple" else returns, 0)
    downside = math.sqrt(float(np.mean(below**2)) * conventions.periods_per_year)
    if downside <= _ROUNDING:
        return _NAN
    if conventions.compounding == "simple":
        return _finite(float(excess.mean()) * conventions.periods_per_year / downside)
    return _finite((annual_return(returns, conventions) - conventions.rf_annual) / downside)


def calmar_ratio(equity: np.ndarray, conventions: Conventions = DEFAULT) -> float:
    """`annual_return` over the depth of the worst drawdown (Young 1991, over the whole window); NaN without a drawdown."""
    return _ratio(annual_return(period_returns(equity), conventions), -max_drawdown(equity))


def omega_ratio(returns: np.ndarray, threshold: float = 0.0) -> float:
    """sum(max(r - threshold, 0)) / sum(max(threshold - r, 0)) (Keating and Shadwick 2002).

    NaN for fewer than two returns and when no return lies below the threshold.

    Args:
        returns: shape (periods,).
        threshold: return of *one period* that separates gains from losses.
    """
    excess = _series(returns, "returns") - threshold
    if len(excess) < 2:
        return _NAN
    return _ratio(float(excess[excess > 0].sum()), -float(excess[excess < 0].sum()))


def skewness(returns: np.ndarray) -> float:
    """Skewness m3 / m2^(3/2), m_k the k-th central moment with divisor T; NaN below two returns or without volatility."""
    return _standard_moment(returns, 3)


def kurtosis(returns: np.ndarray) -> float:
    """*Pearson* kurtosis m4 / m2^2 (3 for a normal, not the excess), m_k the k-th central moment with divisor T.

    NaN below two returns or without volatility. It is never below 1 + skewness^2.
    """
    return _standard_moment(returns, 4)


def value_at_risk(returns: np.ndarray, tail: float = TAIL) -> float:
    """Historical value at risk: the `tail` quantile of returns of one period, linear between order statistics.

    It keeps its sign (a loss is negative). No return gives NaN.

    Raises:
        ValueError: tail outside (0, 1).
    """
    returns = _series(returns, "returns")
    _check_tail(tail)
    return float(np.quantile(returns, tail)) if len(returns) else _NAN


def conditional_value_at_risk(returns: np.ndarray, tail: float = TAIL) -> float:
    """Historical expected shortfall: mean of the floor((T - 1) tail) + 1 worst returns of one period; a loss is negative.

    No return gives NaN (Rockafellar and Uryasev 2000; the number of returns as empyrical counts it).

    Raises:
        ValueError: tail outside (0, 1).
    """
    returns = _series(returns, "returns")
    _check_tail(tail)
    return float(np.sort(returns)[: int((len(returns) - 1) * tail) + 1].mean()) if len(returns) else _NAN


def tail_ratio(returns: np.ndarray, tail: float = TAIL) -> float:
    """|quantile(1 - tail)| / |quantile(tail)| of returns of one period; NaN for no return or when the latter is zero.

    Raises:
        ValueError: tail outside (0, 1).
    """
    returns = _series(returns, "returns")
    _check_tail(tail)
    if len(returns) == 0:
        return _NAN
    low, high = np.quantile(returns, [tail, 1 - tail])
    return _ratio(abs(float(high)), abs(float(low)))


# --------------------------------------------------------------------------------------------------------- drawdown


@dataclass(frozen=True)
class Drawdown:
    """One fall below a peak.

    Attributes:
        depth: equity at the valley over equity at the peak - 1, fraction, negative.
        start: session of the peak, the last one before the fall.
        valley: session of the lowest equity; the first one where it is reached twice.
        end: first session at or above the peak again; None if there is none.
        sessions_down: sessions from start to valley.
        sessions_total: sessions from start to end, or to the last session if not recovered.
    """

    depth: float
    start: dt.date
    valley: dt.date
    end: dt.date | None
    sessions_down: int
    sessions_total: int


def drawdown_path(equity: np.ndarray) -> np.ndarray:
    """Distance from the running peak, E_t / max_(s<=t) E_s - 1, shape (sessions,), fraction in [-1, 0].

    Below -1 only where equity is negative, that is in debt. One session gives [0].
    """
    equity = _equity(equity)
    return equity / np.maximum.accumulate(equity) - 1


def max_drawdown(equity: np.ndarray) -> float:
    """Worst drawdown, min_t of `drawdown_path`, fraction, negative; 0 if equity never fell."""
    return float(drawdown_path(equity).min())


def drawdowns(
    equity: np.ndarray, sessions: Sequence[dt.date] | np.ndarray, top: int | None = 5
) -> list[Drawdown]:
    """The deepest drawdowns, deepest first, the earlier one first among equals; empty if equity never fell.

    A drawdown lasts from a peak until equity is at or above that peak again, so drawdowns do not overlap.

    Args:
        equity: shape (sessions,), money.
        sessions: shape (sessions,), exchange dates in ascending order.
        top: how many at most; None for all.

    Raises:
        ValueError: lengths differ, sessions are not ascending, or top is negative.
    """
    path = drawdown_path(equity)
    days = _sessions(sessions, len(path)).astype(object)
    if top is not None and top < 0:
        raise ValueError(f"top must not be negative, got {top}")
    under = np.r_[False, path < 0, False]
    first = np.flatnonzero(under[1:] & ~under[:-1])
    after = np.flatnonzero(~under[1:] & under[:-1])
    found = []
    for begin, stop in zip(first, after, strict=True):
        start, valley = begin - 1, begin + int(np.argmin(path[begin:stop]))
        recovered = stop < len(path)
        found.append(
            Drawdown(
                depth=float(path[valley]),
                start=days[start],
                valley=days[valley],
                end=days[stop] if recovered else None,
                sessions_down=int(valley - start),
                sessions_total=int((stop if recovered else stop - 1) - start),
            )
        )
    return sorted(found, key=lambda drawdown: (drawdown.depth, drawdown.start))[:top]


# -------------------------------------------------------------------------------------------------------- benchmark


@dataclass(frozen=True)
class AlphaBeta:
    """Annual alpha (fraction) and beta of a regression on a benchmark."""

    alpha: float
    beta: float


def alpha_beta(
    returns: np.ndarray, benchmark_returns: np.ndarray, conventions: Conventions = DEFAULT
) -> AlphaBeta:
    """Alpha and beta of the capital asset pricing model (Jensen 1968), empyrical's definition.

    beta = cov(x, b) / var(b), alpha = (1 + mean(x - beta b))^P - 1, with x and b the returns in excess of rf_period.
    The same under both kinds of compounding. (backtesting.py differs: beta of log returns, and an alpha of the total
    returns of the whole window.) Both NaN for fewer than two returns or a benchmark without volatility.

    Raises:
        ValueError: lengths differ.
    """
    excess, benchmark = _pair(returns, benchmark_returns)
    excess, benchmark = excess - conventions.rf_period, benchmark - conventions.rf_period
    if not _deviation(benchmark, 0) > 0:
        return AlphaBeta(_NAN, _NAN)
    centred = benchmark - benchmark.mean()
    beta = float(centred @ excess / (centred @ centred))
    alpha = float(np.mean(excess - beta * benchmark))
    return AlphaBeta(
        _compound(math.log1p(alpha) * conventions.periods_per_year) if alpha > -1 else -1.0, beta
    )


def correlation(returns: np.ndarray, benchmark_returns: np.ndarray) -> float:
    """Pearson correlation in [-1, 1]; NaN for fewer than two returns or where either side has no volatility.

    Raises:
        ValueError: lengths differ.
    """
    x, y = _pair(returns, benchmark_returns)
    if not (_deviation(x, 0) > 0 and _deviation(y, 0) > 0):
        return _NAN
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def tracking_error(
    returns: np.ndarray, benchmark_returns: np.ndarray, conventions: Conventions = DEFAULT
) -> float:
    """Annual deviation of the active return a = r - b, s(a) sqrt(P), fraction; NaN for fewer than two returns.

    Raises:
        ValueError: lengths differ.
    """
    x, y = _pair(returns, benchmark_returns)
    return _finite(_deviation(x - y, conventions.ddof) * math.sqrt(conventions.periods_per_year))


def information_ratio(
    returns: np.ndarray, benchmark_returns: np.ndarray, conventions: Conventions = DEFAULT
) -> float:
    """Annual information ratio, mean(a) / s(a) sqrt(P) with a = r - b (Grinold and Kahn 1999).

    It is empyrical's `excess_sharpe` times sqrt(P), under both kinds of compounding. NaN for fewer than two returns or
    without tracking error.

    Raises:
        ValueError: lengths differ.
    """
    x, y = _pair(returns, benchmark_returns)
    active = x - y
    if not len(active):
        return _NAN
    error = tracking_error(x, y, conventions)
    return _ratio(float(active.mean()) * conventions.periods_per_year, error)


# ----------------------------------------------------------------------------------------------------------- trades


@dataclass(frozen=True)
class TradeStatistics:
    """What trades earned, net of all costs. Without a trade the counts and `pnl` are 0, all else is NaN.

    Every row of the trades table counts, a position still open at the end too, at the price with which it is marked.

    Attributes:
        count: trades.
        long_count: long trades.
        short_count: short trades.
        pnl: sum of pnl, money.
        win_rate: share of trades with pnl > 0.
        profit_factor: `profit_factor` of pnl.
        mean_pnl: expectancy, money a trade.
        mean_return: expectancy, fraction of the entry value a trade.
        best_pnl: largest pnl, money.
        worst_pnl: smallest pnl, money.
        best_return: largest return.
        worst_return: smallest return.
        mean_winner_pnl: mean pnl of trades with pnl > 0, money.
        mean_loser_pnl: mean pnl of trades with pnl < 0, money, negative.
        mean_winner_return: mean return of trades with pnl > 0.
        mean_loser_return: mean return of trades with pnl < 0.
        mean_bars_held: mean bars from entry to exit.
        mean_mae: mean maximum adverse excursion, fraction, not positive.
        mean_mfe: mean maximum favourable excursion, fraction, not negative.
        sqn: `system_quality_number` of pnl.
    """

    count: int
    long_count: int
    short_count: int
    pnl: float
    win_rate: float
    profit_factor: float
    mean_pnl: float
    mean_return: float
    best_pnl: float
    worst_pnl: float
    best_return: float
    worst_return: float
    mean_winner_pnl: float
    mean_loser_pnl: float
    mean_winner_return: float
    mean_loser_return: float
    mean_bars_held: float
    mean_mae: float
    mean_mfe: float
    sqn: float


def system_quality_number(pnl: np.ndarray, ddof: int = 1) -> float:
    """SQN = sqrt(N) mean(pnl) / s(pnl) over N trades (Tharp 1998), s with `ddof`.

    `ddof=1` is backtesting.py's number and ours; `ddof=0` is backtrader's analyzer, larger by sqrt(N / (N - 1)).
    NaN for fewer than two trades (backtrader: 0) and for equal results.
    """
    pnl = _series(pnl, "pnl")
    deviation = _deviation(pnl, ddof, offset=0.0)
    return _ratio(math.sqrt(len(pnl)) * float(pnl.mean()), deviation) if len(pnl) else _NAN


def profit_factor(outcomes: np.ndarray) -> float:
    """Sum of gains over the size of the sum of losses; NaN without a loss or without a trade.

    Of pnl (money) it is the usual one and the one in `TradeStatistics`; of `trade_return` it is backtesting.py's.
    """
    outcomes = _series(outcomes, "outcomes")
    return _ratio(float(outcomes[outcomes > 0].sum()), -float(outcomes[outcomes < 0].sum()))


def trade_statistics(trades: pa.Table, ddof: int = 1) -> TradeStatistics:
    """Statistics of a table of trades; the definitions stand in `TradeStatistics`.

    Args:
        trades: columns side ("long" or "short"), pnl (money, net of all costs), trade_return (fraction of the entry
            value, net), bars_held, mae, mfe (fractions); further columns are not read.
        ddof: of the SQN.

    Raises:
        ValueError: a column is missing, a side is neither long nor short, pnl or trade_return is null or not finite.
    """
    _require(trades, ("side", "pnl", "trade_return", "bars_held", "mae", "mfe"))
    side = trades["side"].to_pylist()
    if set(side) - {"long", "short"}:
        raise ValueError(f"side must be 'long' or 'short', got {sorted(map(str, set(side)))}")
    pnl, outcome = _column(trades, "pnl"), _column(trades, "trade_return")
    winners, losers = pnl > 0, pnl < 0
    return TradeStatistics(
        count=len(pnl),
        long_count=side.count("long"),
        short_count=side.count("short"),
        pnl=float(pnl.sum()),
        win_rate=_mean(winners.astype(float)),
        profit_factor=profit_factor(pnl),
        mean_pnl=_mean(pnl),
        mean_return=_mean(outcome),
        best_pnl=float(pnl.max()) if len(pnl) else _NAN,
        worst_pnl=float(pnl.min()) if len(pnl) else _NAN,
        best_return=float(outcome.max()) if len(pnl) else _NAN,
        worst_return=float(outcome.min()) if len(pnl) else _NAN,
        mean_winner_pnl=_mean(pnl[winners]),
        mean_loser_pnl=_mean(pnl[losers]),
        mean_winner_return=_mean(outcome[winners]),
        mean_loser_return=_mean(outcome[losers]),
        mean_bars_held=_mean(_column(trades, "bars_held")),
        mean_mae=_mean(_column(trades, "mae", finite=False)),
        mean_mfe=_mean(_column(trades, "mfe", finite=False)),
        sqn=system_quality_number(pnl, ddof),
    )


def traded_value(trades: pa.Table) -> float:
    """Money that changed hands in entries and exits; 0 without a trade.

    The sum of the column `traded_value` where the table has one (the engine's has: it leaves out the exit that a position
    still open has not had), else the sum of shares (entry_price + exit_price).

    Raises:
        ValueError: a column is missing, null or not finite.
    """
    if "traded_value" in trades.column_names:
        return float(_column(trades, "traded_value").sum())
    _require(trades, ("shares", "entry_price", "exit_price"))
    prices = _column(trades, "entry_price") + _column(trades, "exit_price")
    return float(_column(trades, "shares") @ prices)


def cost_breakdown(trades: pa.Table, value: float | None = None) -> dict[str, float]:
    """What trading cost, in money and in basis points of the traded value, 1e4 cost / value.

    Returns `traded_value` and, for each of commission, spread, impact, borrow, dividends and `total`, the money under the
    name itself and the rate under the name with `_bps`. Costs are positive; dividends keep the sign of the table, in which
    the engine writes them positive where received (long) and negative where owed (short). `total` adds commission, spread,
    impact and borrow; dividends are a flow of the position, not a cost of trading, and stay outside. The rates are NaN when nothing was traded.

    Args:
        trades: columns commission, spread, impact, borrow, dividends (money), and those that `traded_value` reads.
        value: traded value, money, where the trades table does not know all of it.

    Raises:
        ValueError: a column is missing, null or not finite, or value is negative.
    """
    value = traded_value(trades) if value is None else _traded(value)
    _require(trades, (*COSTS, "dividends"))
    money = {name: float(_column(trades, name).sum()) for name in (*COSTS, "dividends")}
    money["total"] = sum(money[name] for name in COSTS)
    result = {"traded_value": value}
    for name, amount in money.items():
        result[name] = amount
        result[f"{name}_bps"] = _ratio(1e4 * amount, value)
    return result


def turnover(value: float, equity: np.ndarray, conventions: Conventions = DEFAULT) -> float:
    """Annual turnover, traded value / mean(equity) / years with years = (sessions - 1) / P; buys and sells both count.

    2.0 means that equity was bought and sold once a year. NaN for one session or where mean equity is not positive.

    Args:
        value: money that changed hands in the whole window, see `traded_value`.
        equity: shape (sessions,), money.
        conventions: periods_per_year is used.

    Raises:
        ValueError: value is negative or not finite.
    """
    equity = _equity(equity)
    years = (len(equity) - 1) / conventions.periods_per_year
    return _ratio(_traded(value), float(equity.mean()) * years)


# --------------------------------------------------------------------------------------------------------- validity


def probabilistic_sharpe_ratio(
    sharpe: float, benchmark_sharpe: float, observations: int, skew: float = 0.0, kurtosis: float = 3.0
) -> float:
    """Probability that the true Sharpe ratio exceeds a benchmark.

    Bailey and López de Prado 2012, The Sharpe Ratio Efficient Frontier, Journal of Risk 15(2).
    PSR = Phi((S - S*) sqrt(T - 1) / sqrt(1 - g3 S + (g4 - 1)/4 S^2)), all Sharpe ratios *per period*. It rises with S as
    long as 1 - g3 (S + S*)/2 + (g4 - 1)/4 S S* > 0, which holds for any realistic Sharpe ratio of a session.
    NaN for fewer than two observations or where an input is NaN.

    Args:
        sharpe: S, observed, per period (annual / sqrt(P)).
        benchmark_sharpe: S*, per period.
        observations: T, returns observed.
        skew: g3 of the returns.
        kurtosis: g4, Pearson (3 for a normal).

    Raises:
        ValueError: kurtosis below 1 + skew^2, which no distribution has (an excess kurtosis was passed).
    """
    variance = _sharpe_variance(sharpe, skew, kurtosis)
    if observations < 2 or not variance > 0:
        return _NAN
    return _normal_probability((sharpe - benchmark_sharpe) * math.sqrt((observations - 1) / variance))


def expected_maximum_sharpe(trials: float, variance_of_trial_sharpes: float) -> float:
    """Sharpe ratio that the best of N worthless trials is expected to show (Bailey and López de Prado 2014).

    SR0 = sqrt(V) ((1 - g) Z(1 - 1/N) + g Z(1 - 1/(N e))), g the Euler-Mascheroni constant, Z the normal quantile.
    In the unit of the variance: per period if V is of Sharpe ratios per period. One trial gives 0 (nothing was chosen),
    and it is never negative. NaN where V is NaN and N > 1.

    Args:
        trials: N, number of *independent* trials; need not be whole.
        variance_of_trial_sharpes: V, variance of the trials' Sharpe ratios.

    Raises:
        ValueError: fewer than one trial or a negative variance.
    """
    if not trials >= 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if variance_of_trial_sharpes < 0:
        raise ValueError(f"a variance must not be negative, got {variance_of_trial_sharpes}")
    if trials == 1:
        return 0.0
    quantile = (1 - _EULER_MASCHERONI) * -_normal_quantile(1 / trials)
    quantile += _EULER_MASCHERONI * -_normal_quantile(1 / (trials * math.e))
    return math.sqrt(variance_of_trial_sharpes) * max(quantile, 0.0)


def deflated_sharpe_ratio(
    sharpe: float,
    observations: int,
    trials: float,
    variance_of_trial_sharpes: float,
    skew: float = 0.0,
    kurtosis: float = 3.0,
) -> float:
    """Probability that the Sharpe ratio chosen as the best of N trials is not luck (Bailey and López de Prado 2014).

    DSR = PSR with the benchmark SR0 = `expected_maximum_sharpe`, all Sharpe ratios and V *per period* (annual V / P).
    One trial gives PSR against 0. NaN and errors as in those two functions.
    """
    benchmark = expected_maximum_sharpe(trials, variance_of_trial_sharpes)
    return probabilistic_sharpe_ratio(sharpe, benchmark, observations, skew, kurtosis)


def minimum_track_record_length(
    sharpe: float,
    benchmark_sharpe: float = 0.0,
    skew: float = 0.0,
    kurtosis: float = 3.0,
    confidence: float = 0.95,
) -> float:
    """Observations after which the PSR reaches `confidence` (Bailey and López de Prado 2012), not rounded.

    MinTRL = 1 + (1 - g3 S + (g4 - 1)/4 S^2) (Z(confidence) / (S - S*))^2, Sharpe ratios per period. NaN when S does
    not exceed S*: no length is enough.

    Raises:
        ValueError: kurtosis below 1 + skew^2, or confidence outside [0.5, 1).
    """
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), got {confidence}")
    variance = _sharpe_variance(sharpe, skew, kurtosis)
    if not sharpe > benchmark_sharpe:
        return _NAN
    with np.errstate(over="ignore", divide="ignore"):
        z = np.float64(_normal_quantile(1 - confidence)) / (sharpe - benchmark_sharpe)
        return _finite(1 + variance * z**2)


def block_sums(returns: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of returns, sum of squared returns and number of periods of consecutive blocks.

    Blocks are as equal as possible: where `blocks` does not divide the periods, the first ones are a period longer.
    Sums of finer blocks add up, so trials can be handed over one at a time without keeping their returns.

    Args:
        returns: shape (periods, trials).
        blocks: S, at least 1 and at most the number of periods.

    Returns:
        sums (S, trials), squares (S, trials), counts (S,).

    Raises:
        ValueError: not two-dimensional, not finite, or fewer periods than blocks.
    """
    returns = np.asarray(returns, dtype=float)
    if returns.ndim != 2 or not np.isfinite(returns).all():
        raise ValueError("returns must be a finite array of shape (periods, trials)")
    if not 1 <= blocks <= len(returns):
        raise ValueError(f"cannot cut {len(returns)} periods into {blocks} blocks")
    counts = np.full(blocks, len(returns) // blocks)
    counts[: len(returns) % blocks] += 1
    starts = np.cumsum(counts) - counts
    return np.add.reduceat(returns, starts), np.add.reduceat(returns**2, starts), counts


@dataclass(frozen=True)
class BacktestOverfitting:
    """How the trial that was best in sample did out of sample, over all splits.

    Attributes:
        pbo: probability of backtest overfitting, share of splits with logit <= 0.
        logits: shape (splits,), ln(w / (1 - w)) with w the relative rank of the chosen trial out of sample.
        chosen: shape (splits,), index of the trial that was best in sample.
        in_sample: shape (splits,), Sharpe ratio of the chosen trial in sample, per period.
        out_of_sample: shape (splits,), its Sharpe ratio out of sample, per period.
        slope: of the regression of `out_of_sample` on `in_sample` (performance degradation); NaN if the latter is constant.
        intercept: of the same regression.
        loss_share: share of splits in which the chosen trial had a negative Sharpe ratio out of sample.
    """

    pbo: float
    logits: np.ndarray
    chosen: np.ndarray
    in_sample: np.ndarray
    out_of_sample: np.ndarray
    slope: float
    intercept: float
    loss_share: float


def backtest_overfitting_probability(
    sums: np.ndarray, squares: np.ndarray, counts: np.ndarray, ddof: int = 1
) -> BacktestOverfitting:
    """Probability of backtest overfitting by combinatorially symmetric cross-validation (CSCV).

    Bailey, Borwein, López de Prado and Zhu 2017, The Probability of Backtest Overfitting, Journal of Computational
    Finance 20(4). For each of the C(S, S/2) choices of S/2 blocks as sample: the trial n* with the largest
    Sharpe ratio in sample is chosen; w = rank(n*) / (N + 1) is its relative rank among the N trials in the other blocks
    (1 the worst, N the best, ties share the mean rank); its logit is ln(w / (1 - w)); PBO is the share of logits <= 0.
    An odd N therefore counts a chosen trial that is the median out of sample as overfit.

    A Sharpe ratio of n periods is m / s, m = sum / n, s^2 = (squares - n m^2) / (n - ddof): block sums are all that is
    needed. A trial whose returns do not vary in a half (it did not trade) has Sharpe ratio 0 there. Of equal trials the
    first is chosen. Splits come in the order: those whose sample holds block 0, then their complements.

    Work is C(S, S/2) x N; memory is 32 N 2^(S/2) bytes plus a chunk. S = 16 with N = 4,950 takes about a second and 50 MB.

    Args:
        sums: shape (S, N), sum of returns of each trial in each block.
        squares: shape (S, N), sum of squared returns.
        counts: shape (S,), periods in each block.
        ddof: of the variance.

    Raises:
        ValueError: fewer than two trials, an odd number of blocks, fewer than four blocks, shapes that do not fit,
            values that are not finite, or too few periods for a variance.
    """
    sums, squares = np.asarray(sums, dtype=float), np.asarray(squares, dtype=float)
    counts = np.asarray(counts, dtype=float)
    if sums.ndim != 2 or squares.shape != sums.shape or counts.shape != sums.shape[:1]:
        raise ValueError(
            f"sums and squares must be (S, N) and counts (S,), got {sums.shape}, {squares.shape}, {counts.shape}"
        )
    blocks, trials = sums.shape
    if blocks < 4 or blocks % 2:
        raise ValueError(f"the number of blocks must be even and at least 4, got {blocks}")
    if trials < 2:
        raise ValueError(f"at least 2 trials are needed, got {trials}")
    if not (np.isfinite(sums).all() and np.isfinite(squares).all() and np.isfinite(counts).all()):
        raise ValueError("block sums must be finite")
    if counts.min() < 1 or np.sort(counts)[: blocks // 2].sum() <= ddof:
        raise ValueError("each block needs a period, and half of the blocks more periods than ddof")

    # A split is a number whose bit k says whether block k is in sample. Sums over the lower and the upper half of the bits
    # are tabulated, so that a split costs one addition, and a trial that is flat in a half has exactly zero there.
    half = blocks // 2
    every = np.arange(2**blocks, dtype=np.int64)
    codes = every[(np.bitwise_count(every) == half) & (every & 1 == 1)]
    flip = 2**blocks - 1
    lower = [_subset_sums(values[:half]) for values in (sums, squares, counts[:, None])]
    upper = [_subset_sums(values[half:]) for values in (sums, squares, counts[:, None])]

    def sharpe(subset: np.ndarray) -> np.ndarray:
        low, high = subset & (2**half - 1), subset >> half
        total, square, n = (a[low] + b[high] for a, b in zip(lower, upper, strict=True))
        mean, mean_square = total / n, square / n
        variance = mean_square - mean**2
        flat = variance <= 1e-12 * mean_square
        variance *= n / (n - ddof)
        return np.divide(
            mean, np.sqrt(variance, where=~flat, out=variance), where=~flat, out=np.zeros_like(mean)
        )

    splits = len(codes)
    chosen = np.empty(2 * splits, dtype=np.int64)
    rank, inside, outside = (np.empty(2 * splits) for _ in range(3))
    step = max(1, _CHUNK_CELLS // trials)
    for begin in range(0, splits, step):
        rows = codes[begin : begin + step]
        one, other = sharpe(rows), sharpe(flip - rows)
        for offset, here, there in ((begin, one, other), (splits + begin, other, one)):
            place = slice(offset, offset + len(rows))
            best = here.argmax(axis=1)[:, None]
            value = np.take_along_axis(there, best, axis=1)
            ties = (there == value).sum(axis=1)
            rank[place] = (there < value).sum(axis=1) + (ties + 1) / 2
            chosen[place], outside[place] = best[:, 0], value[:, 0]
            inside[place] = np.take_along_axis(here, best, axis=1)[:, 0]

    relative = rank / (trials + 1)
    logits = np.log(relative / (1 - relative))
    logits[2 * rank == trials + 1] = 0.0
    slope = _slope(inside, outside)
    return BacktestOverfitting(
        pbo=float((logits <= 0).mean()),
        logits=logits,
        chosen=chosen,
        in_sample=inside,
        out_of_sample=outside,
        slope=slope,
        intercept=float(outside.mean() - slope * inside.mean()),
        loss_share=float((outside < 0).mean()),
    )


# ---------------------------------------------------------------------------------------------------------- summary


def summary(
    equity: np.ndarray,
    sessions: Sequence[dt.date] | np.ndarray,
    trades: pa.Table,
    conventions: Conventions = DEFAULT,
    benchmark_equity: np.ndarray | None = None,
    trials: float = 1,
    trial_sharpe_variance: float | None = None,
    purge_sessions: int = 0,
    embargo_sessions: int = 0,
    traded_value: float | None = None,
    top: int = 5,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """All statistics of one backtest as a nested dict that `json.dumps(..., allow_nan=False)` takes as it is.

    Undefined numbers are None, dates ISO strings, fractions without suffix, nothing in percent. Sharpe ratios are
    annual, `sr0` too. The keys:

    - `conventions`: periods_per_year, ddof, rf_annual, compounding, calendar.
    - `window`: first, last, sessions.
    - `returns`: initial_equity, final_equity, total_pnl (final - initial equity), total_return, annual_return
      (counted in periods), cagr (counted in calendar days), volatility, sharpe, sharpe_simple, sharpe_low, sharpe_high,
      sharpe_standard_error (the last four from `sharpe_interval`), sortino, calmar, omega, skewness, kurtosis (Pearson),
      value_at_risk, conditional_value_at_risk, tail_ratio, best, worst (returns of a period), positive_share.
    - `drawdown`: maximum, longest_sessions, top (list of `Drawdown`).
    - `benchmark`: None, or total_return, cagr, volatility, sharpe, max_drawdown, alpha, beta, correlation,
      tracking_error, information_ratio.
    - `trades`: `TradeStatistics`.
    - `costs`: `cost_breakdown` and turnover.
    - `validity`: observations, psr (against 0), dsr, sr0, trials, trial_sharpe_variance,
      min_track_record_sessions (against 0, at `confidence`), confidence, purge_sessions, embargo_sessions.

    Args:
        equity: shape (sessions,), money at each close; the first entry is the initial capital.
        sessions: shape (sessions,), exchange dates in ascending order.
        trades: one row a trade, see `trade_statistics`, `traded_value` and `cost_breakdown`; may be empty.
        conventions: how numbers are annualised; its ddof is the SQN's too.
        benchmark_equity: shape (sessions,), value of the benchmark at the same closes.
        trials: how many independent trials this one was chosen from.
        trial_sharpe_variance: variance of the trials' *annual* simple Sharpe ratios; required when trials > 1, NaN where
            it is not known.
        purge_sessions: sessions cut between training and test, reported.
        embargo_sessions: sessions cut after a test, reported.
        traded_value: money that changed hands; from the trades table when None.
        top: how many drawdowns are listed.
        confidence: of the interval and of the minimum track record.

    Raises:
        ValueError: lengths differ, more than one trial without their variance, negative purge or embargo, and
            everything that the functions above refuse.
    """
    equity = _equity(equity)
    days = _sessions(sessions, len(equity))
    if trials > 1 and trial_sharpe_variance is None:
        raise ValueError("the best of several trials needs trial_sharpe_variance")
    if purge_sessions < 0 or embargo_sessions < 0:
        raise ValueError("purge_sessions and embargo_sessions must not be negative")
    periods = conventions.periods_per_year
    returns = period_returns(equity)
    interval = sharpe_interval(returns, conventions, confidence)
    falls = drawdowns(equity, days, top=None)
    costs = cost_breakdown(trades, traded_value)

    variance = (0.0 if trial_sharpe_variance is None else float(trial_sharpe_variance)) / periods
    sharpe, skew, kurt = interval.value / math.sqrt(periods), skewness(returns), kurtosis(returns)
    track_record = minimum_track_record_length(sharpe, 0.0, skew, kurt, confidence)

    benchmark: dict[str, float] | None = None
    if benchmark_equity is not None:
        other = _equity(benchmark_equity)
        if len(other) != len(equity):
            raise ValueError(f"benchmark_equity has {len(other)} sessions, equity {len(equity)}")
        other_returns = period_returns(other)
        benchmark = {
            "total_return": total_return(other),
            "cagr": cagr(other, conventions, days),
            "volatility": volatility(other_returns, conventions),
            "sharpe": sharpe_ratio(other_returns, conventions),
            "max_drawdown": max_drawdown(other),
            **asdict(alpha_beta(returns, other_returns, conventions)),
            "correlation": correlation(returns, other_returns),
            "tracking_error": tracking_error(returns, other_returns, conventions),
            "information_ratio": information_ratio(returns, other_returns, conventions),
        }

    result: dict[str, Any] = _plain(
        {
            "conventions": asdict(conventions),
            "window": {"first": days[0].item(), "last": days[-1].item(), "sessions": len(days)},
            "returns": {
                "initial_equity": equity[0],
                "final_equity": equity[-1],
                "total_pnl": equity[-1] - equity[0],
                "total_return": total_return(equity),
                "annual_return": annual_return(returns, conventions),
                "cagr": cagr(equity, conventions, days),
                "volatility": volatility(returns, conventions),
                "sharpe": sharpe_ratio(returns, conventions),
                "sharpe_simple": interval.value,
                "sharpe_low": interval.low,
                "sharpe_high": interval.high,
                "sharpe_standard_error": interval.standard_error,
                "sortino": sortino_ratio(returns, conventions),
                "calmar": calmar_ratio(equity, conventions),
                "omega": omega_ratio(returns),
                "skewness": skew,
                "kurtosis": kurt,
                "value_at_risk": value_at_risk(returns),
                "conditional_value_at_risk": conditional_value_at_risk(returns),
                "tail_ratio": tail_ratio(returns),
                "best": returns.max() if len(returns) else _NAN,
                "worst": returns.min() if len(returns) else _NAN,
                "positive_share": _mean((returns > 0).astype(float)),
            },
            "drawdown": {
                "maximum": max_drawdown(equity),
                "longest_sessions": max((fall.sessions_total for fall in falls), default=0),
                "top": [asdict(fall) for fall in falls[:top]],
            },
            "benchmark": benchmark,
            "trades": asdict(trade_statistics(trades, conventions.ddof)),
            "costs": {**costs, "turnover": turnover(costs["traded_value"], equity, conventions)},
            "validity": {
                "observations": len(returns),
                "psr": probabilistic_sharpe_ratio(sharpe, 0.0, len(returns), skew, kurt),
                "dsr": deflated_sharpe_ratio(sharpe, len(returns), trials, variance, skew, kurt),
                "sr0": expected_maximum_sharpe(trials, variance) * math.sqrt(periods),
                "trials": trials,
                "trial_sharpe_variance": trial_sharpe_variance,
                "min_track_record_sessions": track_record,
                "confidence": confidence,
                "purge_sessions": purge_sessions,
                "embargo_sessions": embargo_sessions,
            },
        }
    )
    return result


def recounted(
    result: Mapping[str, Any], trials: float, trial_sharpe_variance: float | None
) -> dict[str, Any]:
    """A `summary` whose `validity` counts other trials: more may have been run since the backtest.

    Args:
        result: of `summary`.
        trials: how many independent trials there were in the end.
        trial_sharpe_variance: variance of their annual simple Sharpe ratios; None where it is not known.
    """
    returns, validity, periods = (
        result["returns"],
        result["validity"],
        result["conventions"]["periods_per_year"],
    )
    numbers = [
        _NAN if value is None else float(value)
        for value in (returns["sharpe_simple"], returns["skewness"], returns["kurtosis"])
    ]
    sharpe, skew, kurt = numbers[0] / math.sqrt(periods), numbers[1], numbers[2]
    variance = _NAN if trial_sharpe_variance is None and trials > 1 else (trial_sharpe_variance or 0.0)
    changed = {
        "dsr": deflated_sharpe_ratio(
            sharpe, validity["observations"], trials, variance / periods, skew, kurt
        ),
        "sr0": expected_maximum_sharpe(trials, variance / periods) * math.sqrt(periods),
        "trials": trials,
        "trial_sharpe_variance": trial_sharpe_variance,
    }
    plain: dict[str, Any] = _plain({**result, "validity": {**validity, **changed}})
    return plain


def log_line(result: Mapping[str, Any]) -> str:
    """One line of a `summary` for logs, `[SQN:%.2f, Sharpe Ratio:%.2f, Final Portfolio:%.2f, Total PnL:%.2f]`.

    SageMaker's metric definitions `Sharpe Ratio:(.*?),` and `Total PnL:(.*?)]` read it. An undefined number prints `nan`.
    """
    numbers = (
        result["trades"]["sqn"],
        result["returns"]["sharpe"],
        result["returns"]["final_equity"],
        result["returns"]["total_pnl"],
    )
    form = "[SQN:%.2f, Sharpe Ratio:%.2f, Final Portfolio:%.2f, Total PnL:%.2f]"
    return form % tuple(_NAN if number is None else number for number in numbers)


# --------------------------------------------------------------------------------------------------------- internals


def _series(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite")
    return values


def _equity(values: np.ndarray) -> np.ndarray:
    values = _series(values, "equity")
    if len(values) == 0 or values[0] <= 0:
        raise ValueError("equity needs at least one session and must start above zero")
    return values


def _pair(returns: np.ndarray, benchmark_returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = _series(returns, "returns"), _series(benchmark_returns, "benchmark_returns")
    if len(x) != len(y):
        raise ValueError(f"returns and benchmark_returns differ in length: {len(x)} and {len(y)}")
    return x, y


def _sessions(sessions: Sequence[dt.date] | np.ndarray, count: int) -> np.ndarray:
    days = np.asarray(sessions, dtype="datetime64[D]")
    if days.shape != (count,):
        raise ValueError(f"sessions must have shape ({count},), got {days.shape}")
    if not (days[1:] > days[:-1]).all():
        raise ValueError("sessions must be ascending, each of them once")
    return days


def _check_tail(tail: float) -> None:
    if not 0 < tail < 1:
        raise ValueError(f"tail must lie between 0 and 1, got {tail}")


def _traded(value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"traded value must be finite and not negative, got {value}")
    return float(value)


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else _NAN


def _compound(log_growth: float) -> float:
    """exp(log_growth) - 1, NaN where that is too large a number."""
    with np.errstate(over="ignore"):
        return _finite(np.expm1(log_growth))


def _ratio(numerator: float, denominator: float) -> float:
    """Quotient, NaN unless the denominator is positive."""
    with np.errstate(over="ignore"):
        return _finite(np.float64(numerator) / denominator) if denominator > 0 else _NAN


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else _NAN


def _deviation(values: np.ndarray, ddof: int, offset: float = 1.0) -> float:
    """Standard deviation; NaN below two values, exactly 0 where values differ by no more than rounding.

    Returns are differences of numbers near 1, so their rounding is relative to 1 + |r|; money's (`offset=0`) to itself.
    """
    if len(values) < 2:
        return _NAN
    if np.ptp(values) <= _ROUNDING * (offset + np.abs(values).max()):
        return 0.0
    return float(values.std(ddof=ddof))


def _period_sharpe(returns: np.ndarray, conventions: Conventions) -> float:
    excess = _series(returns, "returns") - conventions.rf_period
    return _ratio(float(excess.mean()), _deviation(excess, conventions.ddof)) if len(excess) else _NAN


def _standard_moment(returns: np.ndarray, order: int) -> float:
    returns = _series(returns, "returns")
    if not _deviation(returns, 0) > 0:
        return _NAN
    centred = returns - returns.mean()
    centred -= centred.mean()  # the first mean is rounded, which matters where returns hardly vary
    return float(np.mean((centred / math.sqrt(float(np.mean(centred**2)))) ** order))


def _sharpe_variance(sharpe: float, skew: float, kurtosis: float) -> float:
    """Variance of a Sharpe ratio per period, times the number of observations - 1."""
    if kurtosis < (1 + skew**2) * (1 - 1e-9):
        raise ValueError(
            f"kurtosis must be at least 1 + skew^2 (Pearson, 3 for a normal), got {kurtosis} and skew {skew}"
        )
    return max(1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2, 0.0) if math.isfinite(sharpe) else _NAN


def _normal_probability(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def _normal_quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def _subset_sums(values: np.ndarray) -> np.ndarray:
    """Sum of every subset of rows, shape (2^rows, columns); bit k of the index says whether row k is in."""
    table = np.zeros((1, values.shape[1]))
    for row in values:
        table = np.concatenate([table, table + row])
    return table


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return _ratio(float(centred @ y), float(centred @ centred)) if _deviation(x, 0) > 0 else _NAN


def _require(trades: pa.Table, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in trades.column_names]
    if missing:
        raise ValueError(f"trades lacks the columns {missing}")


def _column(trades: pa.Table, name: str, finite: bool = True) -> np.ndarray:
    values = pc.cast(trades[name], pa.float64()).to_numpy()
    if finite and not np.isfinite(values).all():
        raise ValueError(f"trades column {name} must be finite and without nulls")
    return values


def _plain(value: Any) -> Any:
    """The same thing in JSON's types: NaN and infinity become None, dates ISO strings, numpy scalars Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.isoformat() if isinstance(value, dt.date) else value
