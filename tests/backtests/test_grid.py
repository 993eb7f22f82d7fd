"""Many sets at once: each is bit for bit the portfolio's backtest, and its statistics are those of the tear sheet."""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.backtests import statistics
from quant_assets.backtests.engine import Account, BacktestError, Costs
from quant_assets.backtests.grid import (
    STATISTICS,
    GridResult,
    block_edges,
    join_results,
    rule_array,
    run_grid,
    simulate_sets,
)
from quant_assets.backtests.portfolio import Backtest, Window, run_backtest
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.strategies import make_strategy, strategy_class
from quant_assets.strategies.strategy import ENTER_LONG, ENTER_SHORT, EXIT_SHORT, Rules, Strategy

EVERYTHING = Costs(0.005, 1, 1, 2, 10, 0.01, 1, 3)
# Facebook has its first bar in the middle of it.
WINDOW = Window(dt.date(2011, 9, 1), dt.date(2013, 3, 1))
DAYS = [dt.date(2012, 1, 2) + dt.timedelta(days=i) for i in range(400)]

SETS: dict[str, list[dict[str, Any]]] = {
    "sma_crossover": [
        {"fast_period": fast, "slow_period": slow, "enter_on_first_bar": fast == 5}
        for fast in (2, 5, 20)
        for slow in (21, 50, 300)
    ],
    "daily_breakout": [
        {"period": period, "exit_level": level, "go_short": short}
        for period in (5, 40)
        for level in ("look_back", "previous_bar")
        for short in (True, False)
    ],
    "mlp_long_short": [
        {"long_threshold": p, "profit_target_pct": target, "max_bars": most}
        for p in (0.5, 0.9)
        for target in (1.0, 6.0)
        for most in (None, 3)
    ],
    "buy_and_hold": [{}],
    "flat": [{}],
}
SIZINGS: dict[str, dict[str, Any]] = {
    "all of it": {},
    "shares": {"sizing": "shares", "size": 150.0},
    "volatility": {"sizing": "volatility", "size": 0.25},
}


@pytest.fixture(scope="module")
def series(sample_bars: pa.Table) -> dict[str, BarSeries]:
    return bar_series(sample_bars)


@pytest.fixture(scope="module")
def probability(series: dict[str, BarSeries]) -> dict[str, np.ndarray]:
    """Noise; a third of the bars have none."""
    rng = np.random.default_rng(11)
    drawn = {symbol: rng.random((len(bars), 2)) for symbol, bars in series.items()}
    for values in drawn.values():
        values[rng.random(len(values)) < 1 / 3] = np.nan
    return drawn


def market(closes: Sequence[float], opens: Sequence[float] | None = None) -> dict[str, BarSeries]:
    """One symbol; every bar opens at the close before it unless said otherwise."""
    close = np.asarray(closes, dtype=float)
    open_ = np.r_[close[0], close[:-1]] if opens is None else np.asarray(opens, dtype=float)
    bars = pa.table(
        {
            "symbol": ["TEST"] * close.size,
            "session": pa.array(DAYS[: close.size], pa.date32()),
            "open": open_,
            "high": np.maximum(open_, close),
            "low": np.minimum(open_, close),
            "close": close,
            "volume": np.full(close.size, 1e6),
        }
    )
    return bar_series(bars)


def all_days(count: int) -> Window:
    return Window(DAYS[0], DAYS[count - 1])


@dataclass(frozen=True, kw_only=True)
class Given(Strategy):
    """Decisions and rules as they are handed over."""

    name: ClassVar[str] = "given"

    flags: tuple[int, ...] = ()
    given_rules: Rules = Rules()  # noqa: RUF009

    @property
    def rules(self) -> Rules:
        return self.given_rules

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        return np.resize(np.array(self.flags, dtype=np.int8), len(bars))


def grid_of(
    strategies: Sequence[Strategy],
    series: Mapping[str, BarSeries],
    window: Window,
    probability: Mapping[str, np.ndarray] | None = None,
    *args: Any,
    **kwargs: Any,
) -> GridResult:
    decisions = {
        symbol: np.stack([s.decide(bars, (probability or {}).get(symbol)) for s in strategies])
        for symbol, bars in series.items()
    }
    return simulate_sets(
        series, decisions, rule_array([s.rules for s in strategies]), window, *args, **kwargs
    )


def expected(done: Backtest) -> dict[str, float]:
    """The statistics of a backtest as the tear sheet defines them."""
    returns, trades = statistics.period_returns(done.equity), statistics.trade_statistics(done.trades)
    value = statistics.traded_value(done.trades)
    return {
        "total_return": statistics.total_return(done.equity),
        "sharpe": statistics.sharpe_ratio(returns),
        "volatility": statistics.volatility(returns),
        "max_drawdown": statistics.max_drawdown(done.equity),
        "final_equity": float(done.equity[-1]),
        "trades": trades.count,
        "win_rate": trades.win_rate,
        "profit_factor": trades.profit_factor,
        "sqn": trades.sqn,
        "turnover": statistics.turnover(value, done.equity),
        "costs": statistics.cost_breakdown(done.trades)["total"],
        "rejected": done.rejected.num_rows,
    }


def agrees(found: GridResult, backtests: Sequence[Backtest]) -> None:
    """Every statistic of every set, and its block sums."""
    assert found.values.shape == (len(backtests), len(STATISTICS))
    assert found.column("final_equity").tolist() == [float(b.equity[-1]) for b in backtests]
    for at, done in enumerate(backtests):
        for name, value in expected(done).items():
            assert found.column(name)[at] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), (
                name,
                at,
            )
        returns = statistics.period_returns(done.equity)
        if found.block_counts.size:
            sums, squares, counts = statistics.block_sums(returns[:, None], found.block_counts.size)
            np.testing.assert_allclose(found.block_sums[at], sums[:, 0], rtol=1e-9, atol=1e-14)
            np.testing.assert_allclose(found.block_squares[at], squares[:, 0], rtol=1e-9, atol=1e-16)
            assert found.block_counts.tolist() == counts.tolist()
            assert found.block_sums[at].sum() == pytest.approx(returns.sum(), rel=1e-9, abs=1e-13)
            assert found.block_counts.sum() == returns.size


# ------------------------------------------------------------------------------------------ against the portfolio


@pytest.mark.parametrize("sizing", SIZINGS)
@pytest.mark.parametrize("name", SETS)
def test_each_set_is_its_backtest(
    name: str, sizing: str, series: dict[str, BarSeries], probability: dict[str, np.ndarray]
) -> None:
    cls = strategy_class(name)
    sets = [{**given, **SIZINGS[sizing]} for given in SETS[name]]
    strategies = [cls.create(**given) for given in sets]
    decisions = {s: cls.decide_grid(bars, sets, probability[s]) for s, bars in series.items()}
    rules = rule_array([s.rules for s in strategies])
    for costs, account in (
        (Costs(), Account()),
        (EVERYTHING, Account(1e5, 2.0, whole_shares=False, bracket_on_entry_bar=False)),
    ):
        backtests = [run_backtest(s, series, WINDOW, probability, costs, account) for s in strategies]
        agrees(simulate_sets(series, decisions, rules, WINDOW, costs, account), backtests)
        parts = run_grid(
            series,
            lambda bars, chunk: decisions[bars.symbol][chunk],
            rules,
            WINDOW,
            costs,
            account,
            blocks=0,
            chunk_sets=3,
        )
        agrees(join_results([part for _, part in parts]), backtests)


def test_the_sample_trades_and_refuses(
    series: dict[str, BarSeries], probability: dict[str, np.ndarray]
) -> None:
    """What the comparison above compares is not empty."""
    strategies = [make_strategy("sma_crossover", **SETS["sma_crossover"][0], sizing="shares", size=150.0)]
    found = grid_of(strategies, series, WINDOW, None, EVERYTHING)
    assert found.column("trades")[0] > 20
    assert found.column("rejected")[0] > 10
    assert found.column("costs")[0] > 100
    assert set(found.block_counts.tolist()) == {23, 24}


def test_symbols_without_a_bar_and_with_holes(series: dict[str, BarSeries]) -> None:
    whole = series["IBM"]
    keep = np.delete(np.arange(len(whole)), np.arange(2900, 3100, 7))
    ended = series["MSFT"].cut(0, 3000)
    holes = BarSeries("IBM", **{k: v[keep] for k, v in vars(whole).items() if k != "symbol"})
    some = {"GOOG": series["GOOG"].cut(0, 500), "IBM": holes, "MSFT": ended, "FB": series["FB"]}
    strategies = [make_strategy("sma_crossover", fast_period=3, slow_period=n) for n in (10, 20)]
    backtests = [run_backtest(s, some, WINDOW, costs=EVERYTHING) for s in strategies]
    assert sorted(backtests[0].simulations) == ["FB", "IBM", "MSFT"]
    agrees(grid_of(strategies, some, WINDOW, None, EVERYTHING), backtests)


def test_each_set_has_its_own_look_back_of_volatility(series: dict[str, BarSeries]) -> None:
    flags = tuple([ENTER_LONG] + [0] * 8 + [ENTER_SHORT] + [0] * 8)
    rules = [
        Rules("volatility", 0.2, volatility_sessions=20),
        Rules("fraction", 0.5),
        Rules("volatility", 0.2, volatility_sessions=5),
        Rules("volatility", 0.2, volatility_sessions=60),
        Rules("shares", 7, volatility_sessions=3),
    ]
    strategies = [Given(flags=flags, given_rules=r) for r in rules]
    found = grid_of(strategies, series, WINDOW)
    agrees(found, [run_backtest(s, series, WINDOW) for s in strategies])
    assert len(set(found.column("final_equity").tolist())) == len(rules)


@settings(max_examples=60, deadline=None)
@given(
    closes=st.lists(st.floats(1, 200), min_size=3, max_size=40),
    flags=st.lists(st.integers(0, 15), min_size=1, max_size=12),
    rules=st.sampled_from(
        [Rules("shares", 30), Rules(), Rules("fraction", 3, 2.0, 1.5), Rules("fraction", 0.7, max_bars=2)]
    ),
    leverage=st.sampled_from([1.0, 8.0]),
    costs=st.sampled_from([Costs(), EVERYTHING, Costs(interest_annual_pct=252.0)]),
)
def test_any_path_agrees_ruin_included(
    closes: list[float], flags: list[int], rules: Rules, leverage: float, costs: Costs
) -> None:
    bars, strategy, account = (
        market(closes),
        Given(flags=tuple(flags), given_rules=rules),
        Account(3_000, leverage),
    )
    window = all_days(len(closes))
    agrees(
        grid_of([strategy], bars, window, None, costs, account, 3),
        [run_backtest(strategy, bars, window, costs=costs, account=account)],
    )


# ---------------------------------------------------------------------------------------------------- the edges


@pytest.mark.parametrize(
    ("last", "interest"), [(200.0, 0.0), (250.0, 5.0)], ids=["exactly nothing", "in debt"]
)
def test_ruin(last: float, interest: float) -> None:
    """Ten shares short at 100 with a thousand dollars; debt grows by its interest, and that is no return."""
    closes = [100.0, 100.0, last, last, 50.0, 50.0]
    short = Given(flags=(ENTER_SHORT, 0, 0, EXIT_SHORT, ENTER_LONG, 0), given_rules=Rules("shares", 10))
    args = (None, Costs(interest_annual_pct=interest), Account(1_000.0))
    bars, window = market(closes), all_days(6)
    found = grid_of([short], bars, window, *args)
    done = run_backtest(short, bars, window, *args)
    assert done.trades["reason"].to_pylist() == ["ruin"]
    agrees(found, [done])
    assert np.isfinite(found.column("sharpe")[0])
    assert found.column("max_drawdown")[0] <= -1


def test_a_portfolio_that_was_ruined_earns_nothing_even_if_it_comes_back() -> None:
    """The short's debt outweighs the long's gain at first; what comes after that is no return of anybody's money."""
    fall = market([100.0, 100.0, 400.0, 400.0, 400.0, 400.0])["TEST"]
    rise = market([100.0, 100.0, 150.0, 200.0, 900.0, 950.0])["TEST"]
    series = {"A": fall, "B": rise}
    window, account = all_days(6), Account(2_000.0)

    @dataclass(frozen=True, kw_only=True)
    class Both(Given):
        def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
            return np.full(len(bars), ENTER_SHORT if bars is fall else ENTER_LONG, dtype=np.int8)

    strategy = Both(given_rules=Rules("shares", 10))
    done = run_backtest(strategy, series, window, account=account)
    assert done.equity.tolist() == [2_000, 2_000, -500, 0, 7_000, 7_500]
    found = grid_of([strategy], series, window, None, None, account)
    agrees(found, [done])
    assert found.column("volatility")[0] == pytest.approx(
        np.std([0, -1.25, 0, 0, 0], ddof=1) * math.sqrt(252)
    )


def test_windows_of_one_and_two_bars(series: dict[str, BarSeries]) -> None:
    strategies = [make_strategy("buy_and_hold"), make_strategy("flat")]
    day = dt.date(2012, 6, 1)
    one = grid_of(strategies, series, Window(day, day))
    assert one.column("total_return").tolist() == [0, 0]
    assert one.column("max_drawdown").tolist() == [0, 0]
    assert one.column("final_equity").tolist() == [100_000] * 2
    for name in ("sharpe", "volatility", "win_rate", "profit_factor", "sqn", "turnover"):
        assert np.isnan(one.column(name)).all(), name
    assert one.block_sums.shape == one.block_squares.shape == (2, 0)
    assert one.block_counts.size == 0
    agrees(one, [run_backtest(s, series, Window(day, day)) for s in strategies])
    two = Window(day, dt.date(2012, 6, 4))
    agrees(grid_of(strategies, series, two), [run_backtest(s, series, two) for s in strategies])


def test_returns_that_differ_by_rounding_alone_have_no_sharpe_ratio() -> None:
    """An account that only earns interest would otherwise win every sweep, with a ratio of 1e15."""
    flat = make_strategy("flat")
    bars, costs = market([100.0] * 300), Costs(interest_annual_pct=3.0)
    found = grid_of([flat], bars, all_days(300), None, costs)
    assert found.column("total_return")[0] > 0.03
    assert math.isnan(found.column("sharpe")[0])
    assert found.column("volatility")[0] == 0
    agrees(found, [run_backtest(flat, bars, all_days(300), costs=costs)])


def test_trades_that_earn_the_same_have_no_sqn() -> None:
    closes = [100.0, 100.0, 100.1] * 30
    opens = [100.0, 100.0, 100.1] * 30
    flags = (ENTER_LONG, 4, 0)
    same = Given(flags=flags, given_rules=Rules("shares", 3))
    bars = market(closes, opens)
    found, done = grid_of([same], bars, all_days(90)), run_backtest(same, bars, all_days(90))
    assert np.ptp(done.trades["pnl"].to_numpy()) < 1e-9
    assert done.trades.num_rows == 30
    assert math.isnan(found.column("sqn")[0])
    agrees(found, [done])


def test_blocks() -> None:
    assert block_edges(10, 4).tolist() == [0, 3, 6, 8, 10]
    assert block_edges(8, 4).tolist() == [0, 2, 4, 6, 8]
    assert block_edges(8, 0).tolist() == [0]
    strategy, bars = Given(flags=(ENTER_LONG, 0, ENTER_SHORT)), market(np.linspace(100, 120, 40))
    # Fewer than two returns to a block say nothing: no blocks then.
    assert grid_of([strategy], bars, all_days(32)).block_counts.size == 0
    assert grid_of([strategy], bars, all_days(33)).block_counts.tolist() == [2] * 16
    assert grid_of([strategy], bars, all_days(33), blocks=0).block_sums.shape == (1, 0)


def test_chunks_and_threads_change_nothing(series: dict[str, BarSeries]) -> None:
    some = {s: series[s] for s in ("AAPL", "FB", "IBM")}
    cls = strategy_class("sma_crossover")
    sets = [{"fast_period": f, "slow_period": s} for f in range(2, 12) for s in range(12, 30)]
    rules = rule_array([cls.create(**given).rules for given in sets])
    decisions = {s: cls.decide_grid(bars, sets) for s, bars in some.items()}
    reference = simulate_sets(some, decisions, rules, WINDOW, EVERYTHING)
    for jobs in (1, 2):
        for chunk_sets in (1, 7, 64, 1000):
            parts = list(
                run_grid(
                    some,
                    lambda bars, chunk: decisions[bars.symbol][chunk],
                    rules,
                    WINDOW,
                    EVERYTHING,
                    jobs=jobs,
                    chunk_sets=chunk_sets,
                )
            )
            assert [i for chunk, _ in parts for i in range(len(sets))[chunk]] == list(range(len(sets)))
            joined = join_results([part for _, part in parts])
            for name in ("values", "block_sums", "block_squares", "block_counts"):
                np.testing.assert_array_equal(getattr(joined, name), getattr(reference, name))


def test_misuse(series: dict[str, BarSeries]) -> None:
    bars, rules = {"AAPL": series["AAPL"]}, rule_array([Rules()])
    with pytest.raises(BacktestError, match=r"AAPL: decisions of shape \(2, 3270\) for 1 sets and 3270 bars"):
        simulate_sets(bars, {"AAPL": np.zeros((2, 3270), np.int8)}, rules, WINDOW)
    with pytest.raises(BacktestError, match="no parameter set at all"):
        join_results([])
    with pytest.raises(BacktestError, match="holds no session"):
        grid_of([make_strategy("flat")], bars, Window(dt.date(2012, 6, 2), dt.date(2012, 6, 3)))
    with pytest.raises(BacktestError, match="bars of nothing"):
        simulate_sets({}, {}, rules, WINDOW)
    with pytest.raises(BacktestError, match="commission_bps = -1"):
        grid_of([make_strategy("flat")], bars, WINDOW, None, Costs(commission_bps=-1))
    assert rule_array([]).shape == (0, 6)
