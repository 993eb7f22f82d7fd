"""Statistics against empyrical, against backtesting.py, against known answers and against what their definitions promise."""

import datetime as dt
import itertools
import json
import math
import re
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quant_assets.backtests import statistics as s

PERIODS = 252
SEEDS = range(8)
GEOMETRIC = s.Conventions(compounding="geometric")


def make_returns(seed: int, count: int = 700) -> np.ndarray:
    """Fat-tailed returns with volatility clusters."""
    rng = np.random.default_rng(seed)
    return rng.standard_t(4, count) * 0.01 * np.exp(0.3 * np.sin(np.arange(count) / 40)) + 0.0004


def make_equity(returns: np.ndarray, start: float = 10_000.0) -> np.ndarray:
    return start * np.cumprod(np.r_[1.0, 1 + returns])


def make_sessions(count: int) -> list[dt.date]:
    """Weekdays from 3 January 2005 on."""
    first = dt.date(2005, 1, 3)
    return [first + dt.timedelta(days=7 * (i // 5) + i % 5) for i in range(count)]


def make_trades(pnl: list[float], /, **columns: Any) -> pa.Table:
    """Trades of 100 shares bought at 10 dollars, one cost column each."""
    count = len(pnl)
    exit_price = [10 + value / 100 for value in pnl]
    data: dict[str, Any] = {
        "symbol": pa.array(["TEST"] * count, pa.string()),
        "side": pa.array(["long"] * count, pa.string()),
        "shares": pa.array([100.0] * count, pa.float64()),
        "entry_session": pa.array([dt.date(2012, 1, 3)] * count, pa.date32()),
        "exit_session": pa.array([dt.date(2012, 1, 5)] * count, pa.date32()),
        "entry_price": pa.array([10.0] * count, pa.float64()),
        "exit_price": pa.array(exit_price, pa.float64()),
        "reason": pa.array(["signal"] * count, pa.string()),
        "pnl": pa.array(pnl, pa.float64()),
        "trade_return": pa.array([value / 1000 for value in pnl], pa.float64()),
        "commission": pa.array([1.0] * count, pa.float64()),
        "spread": pa.array([2.0] * count, pa.float64()),
        "impact": pa.array([3.0] * count, pa.float64()),
        "borrow": pa.array([4.0] * count, pa.float64()),
        "dividends": pa.array([-5.0] * count, pa.float64()),
        "bars_held": pa.array([2] * count, pa.int64()),
        "mae": pa.array([-0.02] * count, pa.float64()),
        "mfe": pa.array([0.03] * count, pa.float64()),
    }
    return pa.table(data | columns)


NO_TRADES = make_trades([])


# ------------------------------------------------------------------------------------------------------ conventions


def test_default_conventions_are_the_documented_ones() -> None:
    conventions = s.Conventions()
    assert (conventions.periods_per_year, conventions.ddof, conventions.rf_annual) == (252, 1, 0.0)
    assert (conventions.compounding, conventions.calendar, conventions.rf_period) == ("simple", "XNYS", 0.0)


def test_risk_free_return_of_a_period_compounds_to_the_annual_one() -> None:
    conventions = s.Conventions(rf_annual=0.05)
    assert (1 + conventions.rf_period) ** 252 == pytest.approx(1.05, abs=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("periods_per_year", 0),
        ("periods_per_year", float("nan")),
        ("ddof", 2),
        ("rf_annual", -1.0),
        ("rf_annual", float("inf")),
        ("compounding", "log"),
        ("calendar", ""),
    ],
)
def test_conventions_without_meaning_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        s.Conventions(**{field: value})


# ------------------------------------------------------------------------------------------- against empyrical 0.7


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rf_annual", [0.0, 0.03])
def test_ratios_agree_with_empyrical(seed: int, rf_annual: float) -> None:
    import empyrical

    returns, benchmark = make_returns(seed), make_returns(seed + 1000)
    benchmark = 0.5 * benchmark + 0.5 * returns
    equity = make_equity(returns)
    conventions = s.Conventions(rf_annual=rf_annual)
    rf = conventions.rf_period
    alpha_beta = s.alpha_beta(returns, benchmark, conventions)
    pairs = {
        "total_return": (s.total_return(equity), empyrical.cum_returns_final(returns)),
        "annual_return": (s.annual_return(returns), empyrical.annual_return(returns)),
        "cagr": (s.cagr(equity), empyrical.cagr(returns)),
        "volatility": (s.volatility(returns), empyrical.annual_volatility(returns)),
        "sharpe": (s.sharpe_ratio(returns, conventions), empyrical.sharpe_ratio(returns, risk_free=rf)),
        "sortino": (s.sortino_ratio(returns, conventions), empyrical.sortino_ratio(returns, rf)),
        "calmar": (s.calmar_ratio(equity), empyrical.calmar_ratio(returns)),
        "omega": (s.omega_ratio(returns, rf), empyrical.omega_ratio(returns, risk_free=rf)),
        "value_at_risk": (s.value_at_risk(returns), empyrical.value_at_risk(returns)),
        "shortfall": (s.conditional_value_at_risk(returns), empyrical.conditional_value_at_risk(returns)),
        "tail_ratio": (s.tail_ratio(returns), empyrical.tail_ratio(returns)),
        "max_drawdown": (s.max_drawdown(equity), empyrical.max_drawdown(returns)),
        "alpha": (alpha_beta.alpha, empyrical.alpha(returns, benchmark, risk_free=rf)),
        "beta": (alpha_beta.beta, empyrical.beta(returns, benchmark, risk_free=rf)),
        "information_ratio": (
            s.information_ratio(returns, benchmark, conventions),
            empyrical.excess_sharpe(returns, benchmark) * math.sqrt(PERIODS),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        assert ours == pytest.approx(float(theirs), abs=1e-10), name
    np.testing.assert_allclose(s.period_returns(equity), empyrical.simple_returns(equity), atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_moments_agree_with_scipy_and_correlation_with_numpy(seed: int) -> None:
    from scipy import stats

    returns, benchmark = make_returns(seed), make_returns(seed + 1000)
    assert s.skewness(returns) == pytest.approx(stats.skew(returns), abs=1e-12)
    assert s.kurtosis(returns) == pytest.approx(stats.kurtosis(returns, fisher=False), abs=1e-12)
    expected = np.corrcoef(returns, benchmark)[0, 1]
    assert s.correlation(returns, benchmark) == pytest.approx(expected, abs=1e-12)


# -------------------------------------------------------------------------------------------- against backtesting.py


@pytest.fixture(scope="module")
def google() -> Any:
    """backtesting.py's result of the 10/30 crossover on its own sample."""
    pytest.importorskip("backtesting")
    from backtesting import Backtest, Strategy
    from backtesting.lib import crossover
    from backtesting.test import GOOG, SMA

    class Crossover(Strategy):
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

    return Backtest(GOOG, Crossover, finalize_trades=True).run()


def their_trades(result: Any) -> pa.Table:
    """backtesting.py's trades in our columns; its prices hold no spread, impact, borrow or dividend."""
    frame = result["_trades"]
    return make_trades(
        [0.0] * len(frame),
        side=pa.array(np.where(frame["Size"] > 0, "long", "short").tolist()),
        shares=pa.array(frame["Size"].abs().astype(float)),
        entry_price=pa.array(frame["EntryPrice"]),
        exit_price=pa.array(frame["ExitPrice"]),
        pnl=pa.array(frame["PnL"]),
        trade_return=pa.array(frame["ReturnPct"]),
        commission=pa.array(frame["Commission"].astype(float)),
        bars_held=pa.array(frame["ExitBar"] - frame["EntryBar"]),
    )


def test_equity_statistics_agree_with_backtesting_py(google: Any) -> None:
    equity = google["_equity_curve"]["Equity"].to_numpy()
    sessions = google["_equity_curve"].index.to_numpy()
    returns = s.period_returns(equity)
    pairs = {
        "Return [%]": (100 * s.total_return(equity), 414.2299),
        "Return (Ann.) [%]": (100 * s.annual_return(returns, GEOMETRIC), None),
        "Volatility (Ann.) [%]": (100 * s.volatility(returns, GEOMETRIC), None),
        "CAGR [%]": (100 * s.cagr(equity, GEOMETRIC, sessions), 21.160246),
        "Sharpe Ratio": (s.sharpe_ratio(returns, GEOMETRIC), 0.580623),
        "Sortino Ratio": (s.sortino_ratio(returns, GEOMETRIC), 1.085343),
        "Calmar Ratio": (s.calmar_ratio(equity, GEOMETRIC), None),
        "Max. Drawdown [%]": (100 * s.max_drawdown(equity), -47.980127),
    }
    for name, (ours, printed) in pairs.items():
        assert ours == pytest.approx(google[name], rel=1e-10), name
        assert printed is None or ours == pytest.approx(printed, abs=1e-6), name
    # Under simple compounding, empyrical's, the same equity has another Sharpe ratio: 0.80 where backtesting.py says 0.58.
    import empyrical

    assert s.sharpe_ratio(returns) == pytest.approx(empyrical.sharpe_ratio(returns), abs=1e-10)
    assert s.sharpe_ratio(returns) > google["Sharpe Ratio"] + 0.2


def test_drawdown_durations_agree_with_backtesting_py(google: Any) -> None:
    curve = google["_equity_curve"]
    found = s.drawdowns(curve["Equity"].to_numpy(), curve.index.to_numpy(), top=None)
    # It counts an unrecovered drawdown up to the last bar, and passes over those that last a single bar.
    last = curve.index[-1].date()
    days = [((fall.end or last) - fall.start).days for fall in found if fall.sessions_total > 1]
    assert max(days) == google["Max. Drawdown Duration"].days
    theirs = curve["DrawdownDuration"].dropna().dt.days
    assert sorted(days) == sorted(theirs)


def test_trade_statistics_agree_with_backtesting_py(google: Any) -> None:
    trades = their_trades(google)
    ours = s.trade_statistics(trades)
    assert (ours.count, ours.long_count + ours.short_count) == (66, 66)
    assert ours.sqn == pytest.approx(google["SQN"], rel=1e-12)
    assert ours.sqn == pytest.approx(1.076619, abs=1e-6)
    assert 100 * ours.win_rate == pytest.approx(google["Win Rate [%]"], rel=1e-12)
    assert 100 * ours.best_return == pytest.approx(google["Best Trade [%]"], rel=1e-12)
    assert 100 * ours.worst_return == pytest.approx(google["Worst Trade [%]"], rel=1e-12)
    assert 100 * ours.mean_return == pytest.approx(google["Expectancy [%]"], rel=1e-12)
    # Its profit factor is one of returns, ours one of money: of a thousand dollars lost, not of ten percent.
    assert s.profit_factor(trades["trade_return"].to_numpy()) == pytest.approx(
        google["Profit Factor"], rel=1e-12
    )
    pnl = trades["pnl"].to_numpy()
    assert ours.profit_factor == pytest.approx(pnl[pnl > 0].sum() / -pnl[pnl < 0].sum(), rel=1e-12)
    assert ours.profit_factor != pytest.approx(google["Profit Factor"], rel=1e-3)
    assert ours.pnl == pytest.approx(google["Equity Final [$]"] - 10_000, rel=1e-9)


def test_sqn_agrees_with_backtrader_when_asked_for_its_divisor() -> None:
    mathsupport = pytest.importorskip("backtrader.mathsupport")
    pnl = [120.0, -50.0, 75.0, -20.0, 10.0]
    theirs = math.sqrt(5) * mathsupport.average(pnl) / mathsupport.standarddev(pnl)
    assert s.system_quality_number(np.array(pnl), ddof=0) == pytest.approx(theirs, rel=1e-14)
    assert s.system_quality_number(np.array(pnl)) == pytest.approx(theirs * math.sqrt(4 / 5), rel=1e-14)


# ---------------------------------------------------------------------------------------------------- equity, known


def test_returns_and_growth_of_a_hand_made_curve() -> None:
    equity = np.array([100.0, 110.0, 99.0])
    np.testing.assert_allclose(s.period_returns(equity), [0.1, -0.1], atol=1e-15)
    assert s.total_return(equity) == pytest.approx(-0.01)
    assert s.annual_return(s.period_returns(equity), s.Conventions(periods_per_year=2)) == pytest.approx(
        -0.01
    )
    two_years = [dt.date(2009, 1, 1), dt.date(2010, 1, 1), dt.date(2011, 1, 1)]
    assert s.cagr(equity, sessions=two_years) == pytest.approx(0.99 ** (365.25 / 730) - 1, abs=1e-15)


def test_excess_returns_enter_every_ratio() -> None:
    returns, conventions = make_returns(3), s.Conventions(rf_annual=0.1)
    shifted = returns - conventions.rf_period
    assert s.sharpe_ratio(returns, conventions) == pytest.approx(s.sharpe_ratio(shifted), rel=1e-12)
    assert s.sortino_ratio(returns, conventions) == pytest.approx(s.sortino_ratio(shifted), rel=1e-12)
    geometric = s.Conventions(compounding="geometric", rf_annual=0.1)
    difference = s.sharpe_ratio(returns, GEOMETRIC) - s.sharpe_ratio(returns, geometric)
    assert difference == pytest.approx(0.1 / s.volatility(returns, GEOMETRIC), rel=1e-12)


def test_drawdowns_of_a_hand_made_curve() -> None:
    equity = np.array([100.0, 90, 95, 100, 120, 60, 90, 60, 120, 130, 117, 125])
    days = make_sessions(len(equity))
    found = s.drawdowns(equity, days)
    assert [fall.depth for fall in found] == pytest.approx([-0.5, -0.1, -0.1])
    assert found[0] == s.Drawdown(-0.5, days[4], days[5], days[8], 1, 4)
    assert (found[1].start, found[1].valley, found[1].end) == (days[0], days[1], days[3])
    assert (found[2].start, found[2].valley, found[2].end) == (days[9], days[10], None)
    assert (found[2].sessions_down, found[2].sessions_total) == (1, 2)
    assert s.max_drawdown(equity) == -0.5
    assert s.drawdowns(equity, days, top=1) == found[:1]
    assert s.drawdowns(equity, days, top=0) == []


def test_omega_and_tail_numbers_of_a_hand_made_series() -> None:
    returns = np.array([0.03, -0.01, 0.02, -0.02])
    assert s.omega_ratio(returns) == pytest.approx(0.05 / 0.03)
    assert s.omega_ratio(returns, threshold=0.01) == pytest.approx(0.03 / 0.05)
    hundred = np.arange(-50, 51) / 1000
    assert s.value_at_risk(hundred) == pytest.approx(-0.045)
    assert s.conditional_value_at_risk(hundred) == pytest.approx(-0.0475)
    assert s.tail_ratio(hundred) == pytest.approx(1.0)


def test_sharpe_interval_is_lo_for_normal_moments_and_covers() -> None:
    rng = np.random.default_rng(5)
    true, count = 1.0, 504
    covered, errors = 0, []
    for _ in range(2000):
        interval = s.sharpe_interval(rng.normal(true / PERIODS**0.5, 1.0, count) * 0.01)
        covered += interval.low <= true <= interval.high
        errors.append(interval.standard_error)
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)
    lo = math.sqrt((1 + true**2 / PERIODS / 2) / (count - 1) * PERIODS)
    assert np.mean(errors) == pytest.approx(lo, rel=0.01)


def test_sharpe_interval_is_the_probabilistic_sharpe_ratio_turned_round() -> None:
    returns = make_returns(2)
    interval = s.sharpe_interval(returns, confidence=0.9)
    assert interval.value == pytest.approx(s.sharpe_ratio(returns))
    moments = s.skewness(returns), s.kurtosis(returns)
    period = interval.value / PERIODS**0.5
    for bound, probability in ((interval.low, 0.95), (interval.high, 0.05)):
        psr = s.probabilistic_sharpe_ratio(period, bound / PERIODS**0.5, len(returns), *moments)
        assert psr == pytest.approx(probability, abs=1e-12)


def test_alpha_and_beta_of_a_leveraged_benchmark() -> None:
    benchmark = make_returns(1)
    result = s.alpha_beta(2 * benchmark + 0.0001, benchmark)
    assert result.beta == pytest.approx(2.0, rel=1e-12)
    assert result.alpha == pytest.approx(1.0001**252 - 1, rel=1e-9)
    assert s.correlation(2 * benchmark + 0.0001, benchmark) == pytest.approx(1.0)
    assert s.correlation(-benchmark, benchmark) == pytest.approx(-1.0)


# --------------------------------------------------------------------------------------------------------- trades


def test_trade_statistics_of_three_trades() -> None:
    side = pa.array(["long", "short", "long"])
    result = s.trade_statistics(make_trades([30.0, -10.0, 10.0], side=side))
    assert (result.count, result.long_count, result.short_count, result.pnl) == (3, 2, 1, 30.0)
    assert result.win_rate == pytest.approx(2 / 3)
    assert result.profit_factor == 4.0
    assert (result.mean_pnl, result.mean_return) == (10.0, pytest.approx(0.01))
    assert (result.best_pnl, result.worst_pnl) == (30.0, -10.0)
    assert (result.best_return, result.worst_return) == (0.03, -0.01)
    assert (result.mean_winner_pnl, result.mean_loser_pnl) == (20.0, -10.0)
    assert (result.mean_winner_return, result.mean_loser_return) == (pytest.approx(0.02), -0.01)
    assert (result.mean_bars_held, result.mean_mae, result.mean_mfe) == (
        2.0,
        pytest.approx(-0.02),
        pytest.approx(0.03),
    )
    assert result.sqn == pytest.approx(math.sqrt(3) * 10 / 20)


def test_trades_that_say_nothing_give_nan() -> None:
    empty = s.trade_statistics(NO_TRADES)
    assert (empty.count, empty.long_count, empty.short_count, empty.pnl) == (0, 0, 0, 0.0)
    for name in ("win_rate", "profit_factor", "mean_pnl", "best_return", "mean_bars_held", "mean_mae", "sqn"):
        assert math.isnan(getattr(empty, name)), name
    winners = s.trade_statistics(make_trades([5.0, 7.0]))
    assert math.isnan(winners.profit_factor)
    assert math.isnan(winners.mean_loser_pnl)
    assert winners.win_rate == 1.0
    assert math.isnan(s.trade_statistics(make_trades([5.0])).sqn)
    assert math.isnan(s.trade_statistics(make_trades([0.1, 0.1, 0.1])).sqn)


def test_costs_in_money_and_basis_points() -> None:
    trades = make_trades([100.0, -100.0])
    assert s.traded_value(trades) == pytest.approx(100 * (10 + 11) + 100 * (10 + 9))
    costs = s.cost_breakdown(trades)
    assert costs["traded_value"] == pytest.approx(4000)
    money = [costs[name] for name in ("commission", "spread", "impact", "borrow", "dividends", "total")]
    assert money == [2.0, 4.0, 6.0, 8.0, -10.0, 20.0]
    assert costs["commission_bps"] == pytest.approx(5.0)
    assert costs["total_bps"] == pytest.approx(50.0)
    assert s.cost_breakdown(trades, 8000.0)["total_bps"] == pytest.approx(25.0)
    nothing = s.cost_breakdown(NO_TRADES)
    assert (nothing["total"], nothing["traded_value"]) == (0.0, 0.0)
    assert math.isnan(nothing["total_bps"])


def test_traded_value_comes_from_the_engine_where_it_says_so() -> None:
    trades = make_trades([0.0, 0.0], traded_value=pa.array([2000.0, 1000.0]))
    assert s.traded_value(trades) == 3000.0


def test_turnover_counts_both_sides_in_a_year() -> None:
    equity = np.full(253, 1000.0)
    assert s.turnover(2000.0, equity) == pytest.approx(2.0)
    assert s.turnover(2000.0, equity, s.Conventions(periods_per_year=126)) == pytest.approx(1.0)
    assert math.isnan(s.turnover(2000.0, equity[:1]))


# -------------------------------------------------------------------------------------------------------- validity


def test_deflated_sharpe_ratio_of_the_paper() -> None:
    """Bailey and López de Prado 2014: annual Sharpe 2.5, 1250 returns, 100 trials, Var = 1/2 a year, skew -3, kurtosis 10."""
    sharpe, variance = 2.5 / math.sqrt(250), 0.5 / 250
    benchmark = s.expected_maximum_sharpe(100, variance)
    assert benchmark == pytest.approx(0.1132, abs=5e-5)
    assert s.deflated_sharpe_ratio(sharpe, 1250, 100, variance, -3, 10) == pytest.approx(0.9004, abs=5e-5)
    assert s.probabilistic_sharpe_ratio(sharpe, benchmark, 1250, -3, 10) == pytest.approx(0.9004, abs=5e-5)


def test_deflated_sharpe_ratio_written_out() -> None:
    from statistics import NormalDist

    z, gamma = NormalDist(), 0.5772156649015329
    sharpe, variance, n, t, skew, kurt = 2.5 / math.sqrt(250), 0.5 / 250, 100, 1250, -3.0, 10.0
    best = math.sqrt(variance) * (
        (1 - gamma) * z.inv_cdf(1 - 1 / n) + gamma * z.inv_cdf(1 - 1 / (n * math.e))
    )
    error = math.sqrt((1 - skew * sharpe + (kurt - 1) / 4 * sharpe**2) / (t - 1))
    assert s.expected_maximum_sharpe(n, variance) == pytest.approx(best, rel=1e-12)
    expected = z.cdf((sharpe - best) / error)
    assert s.deflated_sharpe_ratio(sharpe, t, n, variance, skew, kurt) == pytest.approx(expected, rel=1e-12)
    needed = 1 + (error**2 * (t - 1)) * (z.inv_cdf(0.95) / sharpe) ** 2
    assert s.minimum_track_record_length(sharpe, 0, skew, kurt) == pytest.approx(needed, rel=1e-9)


def test_expected_maximum_is_what_worthless_trials_show() -> None:
    best = np.random.default_rng(0).normal(0, 0.3, (20_000, 100)).max(axis=1).mean()
    assert s.expected_maximum_sharpe(100, 0.09) == pytest.approx(best, rel=0.02)
    assert s.expected_maximum_sharpe(1, 0.09) == 0.0
    assert s.expected_maximum_sharpe(1, float("nan")) == 0.0
    assert s.expected_maximum_sharpe(1.01, 0.09) == 0.0
    assert math.isnan(s.expected_maximum_sharpe(2, float("nan")))
    assert s.expected_maximum_sharpe(1e20, 1.0) < 10


sharpes = st.floats(-0.4, 0.4)
skews = st.floats(-1, 1)
kurtoses = st.floats(2.0, 8.0)


@settings(deadline=None, max_examples=200)
@given(a=sharpes, b=sharpes, benchmark=sharpes, observations=st.integers(2, 5000), skew=skews, kurt=kurtoses)
def test_psr_is_a_probability_that_rises_with_the_sharpe_ratio(
    a: float, b: float, benchmark: float, observations: int, skew: float, kurt: float
) -> None:
    low, high = (s.probabilistic_sharpe_ratio(x, benchmark, observations, skew, kurt) for x in sorted((a, b)))
    assert 0 <= low <= high + 1e-12
    assert high <= 1


@settings(deadline=None, max_examples=200)
@given(
    sharpe=sharpes,
    observations=st.integers(2, 5000),
    trials=st.integers(2, 10_000),
    variance=st.floats(0, 0.1),
    skew=skews,
    kurt=kurtoses,
)
def test_deflation_never_raises_the_probability(
    sharpe: float, observations: int, trials: int, variance: float, skew: float, kurt: float
) -> None:
    plain = s.probabilistic_sharpe_ratio(sharpe, 0.0, observations, skew, kurt)
    deflated = s.deflated_sharpe_ratio(sharpe, observations, trials, variance, skew, kurt)
    assert deflated <= plain
    assert s.deflated_sharpe_ratio(sharpe, observations, 1, variance, skew, kurt) == plain


@settings(deadline=None, max_examples=100)
@given(sharpe=st.floats(0.01, 0.4), benchmark=st.floats(-0.4, 0.0), skew=skews, kurt=kurtoses)
def test_after_the_minimum_track_record_the_psr_is_the_confidence(
    sharpe: float, benchmark: float, skew: float, kurt: float
) -> None:
    length = s.minimum_track_record_length(sharpe, benchmark, skew, kurt, confidence=0.9)
    at, after = (
        s.probabilistic_sharpe_ratio(sharpe, benchmark, int(n), skew, kurt)
        for n in (max(math.floor(length), 2), math.ceil(length) + 1)
    )
    assert after >= 0.9
    assert at <= 0.9 or length < 2
    assert math.isnan(s.minimum_track_record_length(benchmark, sharpe, skew, kurt))


def test_impossible_moments_and_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="kurtosis"):
        s.probabilistic_sharpe_ratio(0.1, 0.0, 100, 0.0, 0.0)  # an excess kurtosis
    with pytest.raises(ValueError, match="trials"):
        s.expected_maximum_sharpe(0, 0.1)
    with pytest.raises(ValueError, match="variance"):
        s.expected_maximum_sharpe(10, -0.1)
    with pytest.raises(ValueError, match="confidence"):
        s.minimum_track_record_length(0.1, confidence=1.0)
    assert math.isnan(s.probabilistic_sharpe_ratio(0.1, 0.0, 1))
    assert math.isnan(s.probabilistic_sharpe_ratio(float("nan"), 0.0, 100))


# ---------------------------------------------------------------------------------------------------------- CSCV


def direct_overfitting(returns: np.ndarray, blocks: int, ddof: int = 1) -> dict[str, Any]:
    """CSCV as the paper tells it, on the matrix of returns: join blocks, take Sharpe ratios, rank, logit."""
    from scipy.stats import linregress, rankdata

    parts = np.array_split(returns, blocks)
    rows = []
    for chosen_blocks in itertools.combinations(range(blocks), blocks // 2):
        rest = [b for b in range(blocks) if b not in chosen_blocks]
        inside, outside = (np.vstack([parts[b] for b in some]) for some in (chosen_blocks, rest))
        performance_in = inside.mean(axis=0) / inside.std(axis=0, ddof=ddof)
        performance_out = outside.mean(axis=0) / outside.std(axis=0, ddof=ddof)
        best = int(np.argmax(performance_in))
        relative = rankdata(performance_out)[best] / (returns.shape[1] + 1)
        rows.append((math.log(relative / (1 - relative)), performance_in[best], performance_out[best], best))
    logits, inside, outside, _ = (np.array(column) for column in zip(*rows, strict=True))
    slope = linregress(inside, outside)
    return {
        "pbo": float((logits <= 1e-12).mean()),
        "rows": np.sort(np.array(rows), axis=0),
        "slope": slope.slope,
        "intercept": slope.intercept,
        "loss_share": float((outside < 0).mean()),
    }


@pytest.mark.parametrize(
    ("seed", "sessions", "trials", "blocks"),
    [(0, 120, 10, 4), (1, 240, 7, 6), (2, 203, 25, 8), (3, 61, 2, 6), (4, 200, 13, 10)],
)
@pytest.mark.parametrize("ddof", [0, 1])
def test_overfitting_from_block_sums_is_the_direct_one(
    seed: int, sessions: int, trials: int, blocks: int, ddof: int
) -> None:
    rng = np.random.default_rng(seed)
    returns = rng.standard_t(5, (sessions, trials)) * 0.01 + 0.001 * np.linspace(-1, 1, trials)
    ours = s.backtest_overfitting_probability(*s.block_sums(returns, blocks), ddof=ddof)
    theirs = direct_overfitting(returns, blocks, ddof)
    assert len(ours.logits) == math.comb(blocks, blocks // 2)
    assert ours.pbo == theirs["pbo"]
    assert ours.loss_share == theirs["loss_share"]
    assert ours.slope == pytest.approx(theirs["slope"], abs=1e-9)
    assert ours.intercept == pytest.approx(theirs["intercept"], abs=1e-9)
    rows = np.column_stack([ours.logits, ours.in_sample, ours.out_of_sample, ours.chosen])
    np.testing.assert_allclose(np.sort(rows, axis=0), theirs["rows"], atol=1e-10)


def test_noise_is_overfit_and_a_better_trial_is_not() -> None:
    rng = np.random.default_rng(7)
    noise = [
        s.backtest_overfitting_probability(*s.block_sums(rng.normal(0, 0.01, (960, 40)), 8)).pbo
        for _ in range(40)
    ]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.12)
    # Trials whose returns add up to nothing in the whole window: who was lucky in one half was unlucky in the other.
    tied = rng.normal(0, 0.01, (960, 40))
    tied -= tied.mean(axis=0)
    assert s.backtest_overfitting_probability(*s.block_sums(tied, 8)).pbo > 0.9
    skilled = rng.normal(0, 0.01, (960, 40))
    skilled[:, 17] += 0.003
    result = s.backtest_overfitting_probability(*s.block_sums(skilled, 8))
    assert result.pbo == pytest.approx(0.0, abs=0.01)
    assert (result.chosen == 17).mean() > 0.95
    assert result.loss_share == 0.0


def test_trials_that_are_equal_or_do_not_trade_are_ties() -> None:
    rng = np.random.default_rng(3)
    returns = rng.normal(0, 0.01, (80, 3))
    equal = np.repeat(returns[:, :1], 5, axis=1)
    result = s.backtest_overfitting_probability(*s.block_sums(equal, 8))
    assert (result.logits == 0).all()
    assert (result.chosen == 0).all()
    idle = s.backtest_overfitting_probability(*s.block_sums(np.zeros((80, 4)), 8))
    assert (idle.out_of_sample == 0).all()
    assert (idle.pbo, idle.loss_share) == (1.0, 0.0)
    assert math.isnan(idle.slope)
    # A trial that traded in the first block only is flat wherever that block is not.
    once = np.zeros((80, 2))
    once[:10, 0] = returns[:10, 0] + 0.02
    result = s.backtest_overfitting_probability(*s.block_sums(once, 8))
    splits = len(result.logits) // 2
    assert (result.chosen[:splits] == 0).all()
    assert (result.out_of_sample[:splits] == 0).all()


def test_block_sums_cover_every_session_and_add_up() -> None:
    returns = np.random.default_rng(0).normal(size=(103, 4))
    sums, squares, counts = s.block_sums(returns, 8)
    assert counts.tolist() == [13] * 7 + [12]
    parts = np.array_split(returns, 8)
    np.testing.assert_allclose(sums, [part.sum(axis=0) for part in parts], atol=1e-13)
    np.testing.assert_allclose(squares, [(part**2).sum(axis=0) for part in parts], atol=1e-13)


def test_a_large_sweep_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    sums, squares = rng.normal(0, 0.1, (16, 4950)), rng.random((16, 4950)) * 0.02 + 0.02
    started = time.perf_counter()
    result = s.backtest_overfitting_probability(sums, squares, np.full(16, 200))
    assert time.perf_counter() - started < 15
    assert result.logits.shape == (12_870,)


def test_what_cannot_be_cross_validated_is_refused() -> None:
    def run(shape: tuple[int, int], counts: int = 10) -> None:
        s.backtest_overfitting_probability(np.ones(shape), np.ones(shape), np.full(shape[0], counts))

    with pytest.raises(ValueError, match="2 trials"):
        run((4, 1))
    with pytest.raises(ValueError, match="even"):
        run((5, 3))
    with pytest.raises(ValueError, match="at least 4"):
        run((2, 3))
    with pytest.raises(ValueError, match="period"):
        run((4, 3), counts=0)
    with pytest.raises(ValueError, match="finite"):
        s.backtest_overfitting_probability(np.full((4, 2), np.nan), np.ones((4, 2)), np.full(4, 9))
    with pytest.raises(ValueError, match=r"\(S, N\)"):
        s.backtest_overfitting_probability(np.ones((4, 2)), np.ones((4, 3)), np.full(4, 9))
    with pytest.raises(ValueError, match="blocks"):
        s.block_sums(np.ones((3, 2)), 4)
    with pytest.raises(ValueError, match="shape"):
        s.block_sums(np.ones(3), 2)


# ------------------------------------------------------------------------------------------------------ properties

curves = st.lists(st.floats(-0.2, 0.25), min_size=2, max_size=60).map(np.array)


@settings(deadline=None, max_examples=150)
@given(returns=curves, scale=st.floats(1e-3, 1e6))
def test_ratios_do_not_depend_on_the_size_of_the_account(returns: np.ndarray, scale: float) -> None:
    assume(np.ptp(returns) > 1e-6)
    small, large = make_equity(returns), scale * make_equity(returns)
    for function in (s.sharpe_ratio, s.volatility):
        ours = function(s.period_returns(small))
        assert function(s.period_returns(large)) == pytest.approx(ours, rel=1e-6, abs=1e-9)
    assert s.max_drawdown(large) == pytest.approx(s.max_drawdown(small), abs=1e-12)
    assert s.total_return(large) == pytest.approx(s.total_return(small), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(returns=curves)
def test_drawdowns_are_bounded_and_complete(returns: np.ndarray) -> None:
    equity = make_equity(returns)
    days = make_sessions(len(equity))
    path = s.drawdown_path(equity)
    assert ((path >= -1) & (path <= 0)).all()
    found = s.drawdowns(equity, days, top=None)
    assert min((fall.depth for fall in found), default=0.0) == s.max_drawdown(equity)
    assert [fall.depth for fall in found] == sorted(fall.depth for fall in found)
    under = sum(fall.sessions_total - (fall.end is not None) for fall in found)
    assert under == (path < 0).sum()
    for fall in found:
        assert fall.start < fall.valley
        assert fall.end is None or fall.valley < fall.end


@settings(deadline=None, max_examples=150)
@given(returns=curves)
def test_moments_obey_pearson_and_tails_are_ordered(returns: np.ndarray) -> None:
    skew, kurt = s.skewness(returns), s.kurtosis(returns)
    assert math.isnan(skew) == math.isnan(kurt)
    assert math.isnan(kurt) or kurt >= 1 + skew**2 - 1e-7 * (1 + skew**2)
    assert returns.min() <= s.conditional_value_at_risk(returns) <= returns.max() + 1e-15
    assert returns.min() <= s.value_at_risk(returns) <= returns.max()
    interval = s.sharpe_interval(returns)
    assert math.isnan(interval.value) or interval.low <= interval.value <= interval.high


@settings(deadline=None, max_examples=60)
@given(
    returns=curves, compounding=st.sampled_from(["simple", "geometric"]), pnl=st.lists(st.floats(-999, 1e6))
)
def test_every_summary_is_json(returns: np.ndarray, compounding: Any, pnl: list[float]) -> None:
    equity = make_equity(returns)
    conventions = s.Conventions(compounding=compounding)
    result = s.summary(equity, make_sessions(len(equity)), make_trades(pnl), conventions, equity)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


# ------------------------------------------------------------------------------------------------------ degenerate

RATIOS = [
    s.sharpe_ratio,
    s.sortino_ratio,
    s.omega_ratio,
    s.skewness,
    s.kurtosis,
]


@pytest.mark.parametrize("function", RATIOS)
@pytest.mark.parametrize("returns", [[], [0.01], [0.0, 0.0, 0.0]], ids=["none", "one", "flat"])
def test_ratios_of_too_little_are_nan(function: Any, returns: list[float]) -> None:
    assert math.isnan(function(np.array(returns)))


@pytest.mark.parametrize("conventions", [s.DEFAULT, GEOMETRIC])
def test_steady_growth_has_no_volatility_and_no_sharpe_ratio(conventions: s.Conventions) -> None:
    equity = 100 * 1.001 ** np.arange(300)
    returns = s.period_returns(equity)
    assert s.volatility(returns, conventions) == 0.0
    assert math.isnan(s.sharpe_ratio(returns, conventions))
    assert math.isnan(s.sortino_ratio(returns, conventions))
    assert math.isnan(s.calmar_ratio(equity, conventions))
    assert math.isnan(s.sharpe_interval(returns, conventions).standard_error)
    assert math.isnan(s.kurtosis(returns))
    assert s.max_drawdown(equity) == 0.0
    assert s.drawdowns(equity, make_sessions(300)) == []


def test_a_benchmark_that_stands_still_gives_nan() -> None:
    returns, still = make_returns(1), np.zeros(700)
    assert math.isnan(s.alpha_beta(returns, still).alpha)
    assert math.isnan(s.alpha_beta(returns, still).beta)
    assert math.isnan(s.correlation(returns, still))
    assert math.isnan(s.information_ratio(returns, returns))
    assert s.tracking_error(returns, returns) == 0.0
    assert math.isnan(s.information_ratio(returns[:1], still[:1]))
    assert math.isnan(s.information_ratio(returns[:0], still[:0]))


@pytest.mark.parametrize("equity", [[100.0, 50.0, 0.0, 0.0, 0.0], [100.0, 120.0, -20.0, 30.0, -5.0]])
@pytest.mark.parametrize("conventions", [s.DEFAULT, GEOMETRIC])
def test_a_ruined_account_stays_closed(equity: list[float], conventions: s.Conventions) -> None:
    path = np.array(equity)
    returns = s.period_returns(path)
    assert returns[1] == path[2] / path[1] - 1
    assert (returns[2:] == 0).all()
    assert s.annual_return(returns, conventions) == -1.0
    assert s.cagr(path, conventions) == s.cagr(path, conventions, make_sessions(5)) == -1.0
    assert s.max_drawdown(path) <= -1.0
    result = s.summary(path, make_sessions(5), NO_TRADES, conventions)
    json.dumps(result, allow_nan=False)


def test_numbers_too_large_are_nan_not_infinite() -> None:
    equity = np.array([1.0, 1e6, 1e12])
    assert math.isnan(s.annual_return(s.period_returns(equity)))
    assert math.isnan(s.cagr(equity, sessions=make_sessions(3)))
    assert math.isnan(s.sharpe_ratio(s.period_returns(np.array([1.0, 1e6, 1e13])), GEOMETRIC))


@pytest.mark.parametrize(
    "equity", [[], [0.0, 1.0], [-1.0, 1.0], [1.0, float("nan")], [1.0, float("inf")], [[1.0, 2.0]]]
)
def test_equity_without_meaning_is_refused(equity: Any) -> None:
    for function in (s.period_returns, s.total_return, s.cagr, s.drawdown_path, s.calmar_ratio):
        with pytest.raises(ValueError, match="equity"):
            function(np.array(equity))


def test_misuse_is_refused() -> None:
    returns, equity = make_returns(0), make_equity(make_returns(0))
    days = make_sessions(len(equity))
    with pytest.raises(ValueError, match="finite"):
        s.sharpe_ratio(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="length"):
        s.alpha_beta(returns, returns[1:])
    with pytest.raises(ValueError, match="shape"):
        s.drawdowns(equity, days[1:])
    with pytest.raises(ValueError, match="ascending"):
        s.drawdowns(equity, days[::-1])
    with pytest.raises(ValueError, match="tail"):
        s.value_at_risk(returns, 5)
    with pytest.raises(ValueError, match="confidence"):
        s.sharpe_interval(returns, confidence=95)
    with pytest.raises(ValueError, match="top"):
        s.drawdowns(equity, days, top=-1)
    with pytest.raises(ValueError, match="lacks"):
        s.trade_statistics(NO_TRADES.drop_columns(["pnl"]))
    with pytest.raises(ValueError, match="side"):
        s.trade_statistics(make_trades([1.0], side=pa.array(["buy"])))
    with pytest.raises(ValueError, match="pnl"):
        s.trade_statistics(make_trades([1.0], pnl=pa.array([None], pa.float64())))
    with pytest.raises(ValueError, match="traded value"):
        s.turnover(-1.0, equity)
    with pytest.raises(ValueError, match="benchmark_equity"):
        s.summary(equity, days, NO_TRADES, benchmark_equity=equity[1:])
    with pytest.raises(ValueError, match="trial_sharpe_variance"):
        s.summary(equity, days, NO_TRADES, trials=10)
    with pytest.raises(ValueError, match="embargo"):
        s.summary(equity, days, NO_TRADES, embargo_sessions=-1)


# --------------------------------------------------------------------------------------------------------- summary


def test_summary_holds_what_it_promises() -> None:
    returns = make_returns(4)
    equity, benchmark = make_equity(returns), make_equity(make_returns(5), 1.0)
    days = make_sessions(len(equity))
    result = s.summary(
        equity,
        np.array(days, dtype="datetime64[ns]"),
        make_trades([30.0, -10.0, 10.0]),
        benchmark_equity=benchmark,
        trials=50,
        trial_sharpe_variance=0.25,
        purge_sessions=5,
        embargo_sessions=2,
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == [
        "conventions",
        "window",
        "returns",
        "drawdown",
        "benchmark",
        "trades",
        "costs",
        "validity",
    ]
    assert result["conventions"] == {
        "periods_per_year": 252,
        "ddof": 1,
        "rf_annual": 0.0,
        "compounding": "simple",
        "calendar": "XNYS",
    }
    assert result["window"] == {"first": "2005-01-03", "last": days[-1].isoformat(), "sessions": 701}
    numbers = result["returns"]
    assert numbers["final_equity"] == equity[-1]
    assert numbers["total_pnl"] == equity[-1] - equity[0]
    assert numbers["sharpe"] == numbers["sharpe_simple"] == s.sharpe_ratio(s.period_returns(equity))
    assert result["drawdown"]["maximum"] == result["drawdown"]["top"][0]["depth"] == s.max_drawdown(equity)
    assert len(result["drawdown"]["top"]) == 5
    dt.date.fromisoformat(result["drawdown"]["top"][0]["valley"])
    assert result["benchmark"]["beta"] is not None
    assert result["trades"]["sqn"] == pytest.approx(math.sqrt(3) * 10 / 20)
    assert result["costs"]["total"] == 30.0
    validity = result["validity"]
    assert validity["sr0"] == pytest.approx(s.expected_maximum_sharpe(50, 0.25), rel=1e-12)
    assert validity["dsr"] < validity["psr"]
    assert (validity["trials"], validity["purge_sessions"], validity["embargo_sessions"]) == (50, 5, 2)
    assert validity["observations"] == 700


def test_summary_of_one_session_without_trades_is_mostly_none() -> None:
    result = s.summary(np.array([100.0]), [dt.date(2012, 1, 3)], NO_TRADES)
    json.dumps(result, allow_nan=False)
    assert result["returns"]["sharpe"] is None
    assert result["returns"]["total_return"] == 0.0
    assert result["benchmark"] is None
    assert result["validity"]["psr"] is None
    assert result["validity"]["sr0"] == 0.0
    assert result["drawdown"] == {"maximum": 0.0, "longest_sessions": 0, "top": []}
    assert s.log_line(result) == "[SQN:nan, Sharpe Ratio:nan, Final Portfolio:100.00, Total PnL:0.00]"


def test_summary_does_not_know_what_unknown_trials_do() -> None:
    equity = make_equity(make_returns(0))
    result = s.summary(
        equity, make_sessions(len(equity)), NO_TRADES, trials=9, trial_sharpe_variance=float("nan")
    )
    assert result["validity"]["dsr"] is None
    assert result["validity"]["sr0"] is None
    assert 0 < result["validity"]["psr"] < 1


def test_log_line_is_what_sagemaker_reads() -> None:
    equity = make_equity(make_returns(4))
    result = s.summary(equity, make_sessions(len(equity)), make_trades([30.0, -10.0, 10.0]))
    line = s.log_line(result)
    numbers = result["returns"]
    assert line == (
        f"[SQN:0.87, Sharpe Ratio:{numbers['sharpe']:.2f}, "
        f"Final Portfolio:{numbers['final_equity']:.2f}, Total PnL:{numbers['total_pnl']:.2f}]"
    )
    for pattern, value in (
        (r"Total PnL:(.*?)]", numbers["total_pnl"]),
        (r"Sharpe Ratio:(.*?),", numbers["sharpe"]),
    ):
        found = re.search(pattern, line)
        assert found is not None
        assert float(found.group(1)) == pytest.approx(value, abs=0.005)


def test_trials_that_were_run_later_are_counted_as_if_they_had_been_known() -> None:
    rng = np.random.default_rng(5)
    equity = 1e5 * np.cumprod(np.r_[1.0, 1 + rng.normal(5e-4, 0.01, 600)])
    days = np.arange(601).astype("datetime64[D]")
    trades = make_trades([])
    alone = s.summary(equity, days, trades)
    for trials, variance in ((1, None), (40, 0.3), (40, math.nan)):
        at_once = s.summary(equity, days, trades, trials=trials, trial_sharpe_variance=variance)
        later = s.recounted(
            alone, trials, None if variance is not None and math.isnan(variance) else variance
        )
        assert later["validity"].keys() == at_once["validity"].keys()
        for key, value in at_once["validity"].items():
            assert later["validity"][key] == (None if value is None else pytest.approx(value, rel=1e-12)), key
    assert alone["validity"]["trials"] == 1
