"""Strategies: each beside a slow pandas version of its docstring, and what must hold for every registered one."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.backtests.engine import Account, simulate
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.strategies import (
    STRATEGIES,
    YARDSTICKS,
    make_strategy,
    space_path,
    strategy_class,
)
from quant_assets.strategies.indicators import highest, lowest, simple_moving_average
from quant_assets.strategies.mlp_long_short import choose_side
from quant_assets.strategies.strategy import (
    ENTER_LONG,
    ENTER_SHORT,
    EXIT_LONG,
    EXIT_SHORT,
    Rules,
    Strategy,
    StrategyError,
)

SYMBOLS = ["AAPL", "GOOG", "IBM", "MSFT"]


@pytest.fixture(scope="module")
def sample(sample_bars: pa.Table) -> dict[str, BarSeries]:
    return bar_series(sample_bars, SYMBOLS)


def of_closes(closes: list[float]) -> BarSeries:
    """Bars that open, trade and close at one price."""
    n, prices = len(closes), np.array(closes, dtype=float)
    days = np.datetime64("2012-01-02") + np.arange(n)
    rows = {"symbol": ["TEST"] * n, "session": pa.array(days), "volume": np.full(n, 1e6)}
    return bar_series(pa.table(rows | dict.fromkeys(("open", "high", "low", "close"), prices)))["TEST"]


def probabilities(bars: BarSeries, seed: int = 7) -> np.ndarray:
    """Random ones, a tenth of them missing."""
    rng = np.random.default_rng(seed)
    values = rng.random((len(bars), 2))
    values[rng.random(values.shape) < 0.1] = np.nan
    return values


def decide(strategy: Strategy, bars: BarSeries, probability: np.ndarray) -> np.ndarray:
    return strategy.decide(bars, probability if strategy.model else None)


# ---------------------------------------------------------------------------------------------------- indicators


@pytest.mark.parametrize("period", [1, 2, 20, 200])
def test_indicators_agree_with_pandas(sample: dict[str, BarSeries], period: int) -> None:
    bars = sample["IBM"]
    close, high, low = (pd.Series(getattr(bars, f"adj_{name}")) for name in ("close", "high", "low"))
    mean = close.rolling(period).apply(lambda window: math.fsum(window) / period, raw=True)
    assert simple_moving_average(bars.adj_close, period) == pytest.approx(
        mean.to_numpy(), rel=1e-13, nan_ok=True
    )
    for mine, theirs in (
        (highest(bars.adj_high, period), high.rolling(period).max()),
        (lowest(bars.adj_low, period), low.rolling(period).min()),
    ):
        assert np.array_equal(mine, theirs.to_numpy(), equal_nan=True)


def test_an_indicator_without_a_full_window_is_unknown() -> None:
    values = np.array([3.0, 1.0, 2.0])
    for indicator in (simple_moving_average, highest, lowest):
        assert np.isnan(indicator(values, 4)).all()
        assert np.isfinite(indicator(values, 3)).tolist() == [False, False, True]


def test_an_average_does_not_depend_on_where_the_history_starts(sample: dict[str, BarSeries]) -> None:
    close = sample["AAPL"].adj_close
    for start in (1, 777, 3000):
        tail = np.ascontiguousarray(close[start:])
        whole, later = simple_moving_average(close, 30), simple_moving_average(tail, 30)
        assert np.array_equal(whole[start + 29 :], later[29:])


# -------------------------------------------------------------------------------------------------- sma_crossover


def slow_crossover(bars: BarSeries, fast: int, slow: int, first_too: bool) -> np.ndarray:
    close = pd.Series(bars.adj_close)
    averages = [
        close.rolling(p).apply(lambda window: math.fsum(window) / len(window), raw=True) for p in (fast, slow)
    ]
    gap = averages[0] - averages[1]
    side = np.sign(gap).mask(gap.abs() < 1e-12 * averages[1], 0.0)
    # The side at the last bar on which they differed.
    last = side.replace(0.0, np.nan).ffill()
    before = last.shift()
    crossed = last.notna() & (last != before) & (before.notna() | first_too)
    return np.where(crossed, np.where(last > 0, ENTER_LONG, ENTER_SHORT), 0)


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize(("fast", "slow"), [(10, 30), (20, 50), (1, 2), (5, 200)])
@pytest.mark.parametrize("first_too", [False, True])
def test_crosses_agree_with_pandas(
    sample: dict[str, BarSeries], symbol: str, fast: int, slow: int, first_too: bool
) -> None:
    strategy = make_strategy(
        "sma_crossover", fast_period=fast, slow_period=slow, enter_on_first_bar=first_too
    )
    decisions = strategy.decide(sample[symbol])
    assert decisions.dtype == np.int8
    assert decisions.tolist() == slow_crossover(sample[symbol], fast, slow, first_too).tolist()
    assert np.count_nonzero(decisions) > 10
    # Always reversing: each cross is the opposite of the one before.
    sides = decisions[decisions != 0]
    assert (sides[1:] != sides[:-1]).all()
    assert (decisions[: slow - 1] == 0).all()
    assert (decisions[slow - 1] != 0) == first_too


def crosses(closes: list[float], **parameters: Any) -> dict[int, int]:
    """Averages of one and two closes: the fast one lies above when the close rose."""
    strategy = make_strategy("sma_crossover", fast_period=1, slow_period=2, **parameters)
    decisions = strategy.decide(of_closes(closes))
    return {int(t): int(decisions[t]) for t in np.flatnonzero(decisions)}


def test_a_cross_by_hand() -> None:
    assert crosses([1, 2, 3, 2, 1, 2]) == {3: ENTER_SHORT, 5: ENTER_LONG}
    assert crosses([1, 2, 3, 2, 1, 2], enter_on_first_bar=True) == {
        1: ENTER_LONG,
        3: ENTER_SHORT,
        5: ENTER_LONG,
    }


def test_averages_that_touch_and_part_on_the_same_side_have_not_crossed() -> None:
    assert crosses([1, 2, 2, 3, 3, 3, 4]) == {}
    # They pass through a tie to the other side.
    assert crosses([1, 2, 2, 1, 1, 2]) == {3: ENTER_SHORT, 5: ENTER_LONG}
    # A tie on the first bar is no side; the first side after it is the first.
    assert crosses([2, 2, 2, 3]) == {}
    assert crosses([2, 2, 2, 3], enter_on_first_bar=True) == {3: ENTER_LONG}


def test_a_tie_that_rounding_hides_is_a_tie(sample: dict[str, BarSeries]) -> None:
    # IBM on 2005-06-27: the averages of 10 and 30 closes are equal to the cent, after and before the fast one was above.
    # Summed in binary, they differ.
    bars = sample["IBM"]
    t = bars.position(np.datetime64("2005-06-27"))
    fast, slow = (simple_moving_average(bars.adj_close, period) for period in (10, 30))
    assert fast[t - 1] > slow[t - 1]
    assert fast[t] < slow[t]
    assert fast[t] == pytest.approx(slow[t], rel=1e-15)
    assert fast[t + 1] > slow[t + 1]
    assert not make_strategy("sma_crossover").decide(bars)[t - 1 : t + 2].any()


def test_a_history_shorter_than_the_average_decides_nothing() -> None:
    assert not make_strategy("sma_crossover", enter_on_first_bar=True).decide(of_closes([1.0] * 29)).any()
    assert crosses([1.0]) == {}


def test_the_averages_are_of_total_returns() -> None:
    # Halved by a split, and lower by a dividend of the same size: nothing has moved.
    rows = pa.table(
        {
            "symbol": ["TEST"] * 5,
            "session": pa.array(np.datetime64("2012-01-02") + np.arange(5)),
            **dict.fromkeys(("open", "high", "low", "close"), np.array([100.0, 101.0, 51.0, 50.0, 51.0])),
            "volume": np.full(5, 1e6),
            "split_factor": [1.0, 1.0, 2.0, 1.0, 1.0],
            "dividend": [0.0, 0.0, 0.0, 1.5, 0.0],
        }
    )
    strategy = make_strategy("sma_crossover", fast_period=1, slow_period=2)
    assert not strategy.decide(bar_series(rows)["TEST"]).any()


# -------------------------------------------------------------------------------------------------- daily_breakout


def slow_breakout(bars: BarSeries, period: int, go_long: bool, go_short: bool, exit_level: str) -> np.ndarray:
    frame = pd.DataFrame({name: getattr(bars, f"adj_{name}") for name in ("high", "low", "close")})
    top = frame["high"].shift(1).rolling(period).max()
    bottom = frame["low"].shift(1).rolling(period).min()
    known = top.notna()
    exit_top, exit_bottom = (
        (top, bottom) if exit_level == "look_back" else (frame["high"].shift(1), frame["low"].shift(1))
    )
    return (
        (known & (frame["close"] < exit_top)) * EXIT_LONG
        + (known & (frame["close"] > exit_bottom)) * EXIT_SHORT
        + (known & (frame["close"] > top) & go_long) * ENTER_LONG
        + (known & (frame["close"] < bottom) & go_short) * ENTER_SHORT
    ).to_numpy()


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("period", [1, 20, 60])
@pytest.mark.parametrize(("go_long", "go_short"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("exit_level", ["look_back", "previous_bar"])
def test_breakouts_agree_with_pandas(
    sample: dict[str, BarSeries], symbol: str, period: int, go_long: bool, go_short: bool, exit_level: str
) -> None:
    bars = sample[symbol]
    strategy = make_strategy(
        "daily_breakout", period=period, go_long=go_long, go_short=go_short, exit_level=exit_level
    )
    decisions = strategy.decide(bars)
    assert decisions.dtype == np.int8
    assert decisions.tolist() == slow_breakout(bars, period, go_long, go_short, exit_level).tolist()
    assert not decisions[:period].any()
    assert (np.count_nonzero(decisions & ENTER_LONG) > 20) == go_long
    assert (np.count_nonzero(decisions & ENTER_SHORT) > 20) == go_short
    assert np.count_nonzero(decisions & EXIT_LONG) > 20
    assert np.count_nonzero(decisions & EXIT_SHORT) > 20
    # Nothing is entered and left for the same reason.
    assert not ((decisions & ENTER_LONG > 0) & (decisions & EXIT_LONG > 0)).any()
    assert not ((decisions & ENTER_SHORT > 0) & (decisions & EXIT_SHORT > 0)).any()


def test_a_breakout_by_hand() -> None:
    #           0  1  2  3   4   5  6  7  8
    closes = [5, 6, 4, 7, 8, 7.5, 6, 3, 3]
    look_back = make_strategy("daily_breakout", period=3).decide(of_closes(closes)).tolist()
    # Bar 3 breaks 6; 8 breaks 7; 7.5 and 6 lie within 4..8 and 7..8: below the high, and above, then below the low.
    long_, short = ENTER_LONG | EXIT_SHORT, ENTER_SHORT | EXIT_LONG
    within = EXIT_LONG | EXIT_SHORT
    assert look_back == [0, 0, 0, long_, long_, within, short, short, EXIT_LONG]
    previous = make_strategy("daily_breakout", period=3, exit_level="previous_bar").decide(of_closes(closes))
    # Above the bar before, a short leaves; below it, a long. On bar 8 the price stands still and nobody does.
    assert previous.tolist() == [0, 0, 0, long_, long_, EXIT_LONG, short, short, 0]


def test_the_bar_itself_is_not_in_its_look_back() -> None:
    # With period + 1 bars, the last one is the first that has a look-back.
    assert make_strategy("daily_breakout", period=2).decide(of_closes([1, 2, 3])).tolist() == [
        0,
        0,
        ENTER_LONG | EXIT_SHORT,
    ]
    assert not make_strategy("daily_breakout", period=2).decide(of_closes([1, 2])).any()


# -------------------------------------------------------------------------------------------------- mlp_long_short


def test_the_break_even_is_where_target_and_stop_cancel_out() -> None:
    strategy = make_strategy("mlp_long_short")
    p = strategy.break_even
    assert p == pytest.approx(1.5 / 3.5)
    assert p * strategy.profit_target_pct == pytest.approx((1 - p) * strategy.stop_loss_pct)
    assert strategy.thresholds == (p, p)
    assert make_strategy("mlp_long_short", profit_target_pct=3.0, stop_loss_pct=1.0).thresholds == (
        0.25,
        0.25,
    )


def test_a_threshold_that_is_set_replaces_the_break_even() -> None:
    strategy = make_strategy("mlp_long_short", long_threshold=0.6)
    assert strategy.thresholds == (0.6, strategy.break_even)
    # Zero is a threshold, and not the absence of one.
    assert make_strategy("mlp_long_short", short_threshold=0.0).thresholds == (strategy.break_even, 0.0)


def test_the_rules_are_the_bracket() -> None:
    strategy = make_strategy("mlp_long_short", size=0.5, stop_loss_pct=1.0, max_bars=5)
    assert strategy.rules == Rules("fraction", 0.5, 2.0, 1.0, 5)
    assert make_strategy("mlp_long_short").rules == Rules("fraction", 1.0, 2.0, 1.5)


NAN = math.nan


@pytest.mark.parametrize(
    ("long", "short", "side"),
    # Thresholds 0.5 and 0.4.
    [
        (0.6, 0.3, 1),
        (0.4, 0.5, -1),
        (0.6, 0.45, 1),  # by 0.1 and by 0.05
        (0.55, 0.5, -1),  # by 0.05 and by 0.1
        (0.5, 0.4, 0),  # meets, does not exceed
        (0.1, 0.1, 0),
        (0.75, 0.65, 1),  # by the same: long
        (NAN, NAN, 0),
        (NAN, 0.41, -1),
        (0.51, NAN, 1),
        (NAN, 0.4, 0),
        (0.5, NAN, 0),
        (1.0, 0.0, 1),
        (0.0, 1.0, -1),
    ],
)
def test_the_side_is_the_one_that_exceeds_its_threshold_by_more(long: float, short: float, side: int) -> None:
    probability = np.array([[long, short]])
    found = choose_side(probability, (0.5, 0.4))
    assert found.dtype == np.int8
    assert found.tolist() == [side]
    strategy = make_strategy("mlp_long_short", long_threshold=0.5, short_threshold=0.4)
    flag = {1: ENTER_LONG, -1: ENTER_SHORT, 0: 0}[side]
    assert strategy.decide(of_closes([1.0]), probability).tolist() == [flag]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.one_of(st.just(NAN), st.floats(0, 1))] * 2), min_size=1, max_size=30),
    long=st.floats(0, 1),
    short=st.floats(0, 1),
)
def test_the_side_agrees_with_a_loop(rows: list[tuple[float, float]], long: float, short: float) -> None:
    expected = []
    for p, q in rows:
        over = {1: p - long, -1: q - short}
        over = {side: excess for side, excess in over.items() if excess > 0}  # NaN exceeds nothing
        expected.append(max(over, key=lambda side: over[side]) if over else 0)
    assert choose_side(np.array(rows), (long, short)).tolist() == expected


@pytest.mark.parametrize("name", ["mlp_long_short", "mlp_sentiment_long_short", "mlp_enhanced_long_short"])
def test_probabilities_must_be_there_and_fit(name: str) -> None:
    bars, strategy = of_closes([1.0, 2.0, 3.0]), make_strategy(name)
    wanted = rf"{name} on TEST needs probabilities of shape \(3, 2\) from {strategy.model}; got "
    with pytest.raises(StrategyError, match=wanted + "none"):
        strategy.decide(bars)
    for shape in ((2, 2), (3,), (3, 1), (2, 3)):
        with pytest.raises(StrategyError, match=wanted + r"shape \("):
            strategy.decide(bars, np.zeros(shape))


@pytest.mark.parametrize("model", ["mlp_sentiment", "mlp_enhanced"])
def test_the_news_strategies_are_the_same_rule_on_another_model(
    sample: dict[str, BarSeries], model: str
) -> None:
    one, other = make_strategy("mlp_long_short"), make_strategy(f"{model}_long_short")
    assert (one.model, other.model) == ("mlp_technical", model)
    known = probabilities(sample["IBM"])
    assert np.array_equal(one.decide(sample["IBM"], known), other.decide(sample["IBM"], known))
    assert one.parameters == other.parameters


# --------------------------------------------------------------------------------------------------- yardsticks


def test_the_yardsticks_hold_and_do_nothing(sample: dict[str, BarSeries]) -> None:
    bars, account = sample["MSFT"], Account(10_000.0, whole_shares=False)
    assert set(YARDSTICKS) <= set(STRATEGIES)
    hold, flat = (make_strategy(name) for name in ("buy_and_hold", "flat"))
    held = simulate(bars, hold.decide(bars), hold.rules, account=account)
    assert held.trades["reason"].to_pylist() == ["open"]
    # Everything is bought at the second open, dividends are kept as cash.
    shares = 10_000 / bars.open[1]
    growth = np.cumprod(np.r_[1.0, bars.split_factor[2:]])
    kept = np.cumsum(growth * np.r_[0.0, bars.dividend[2:]])
    assert held.equity[1:] == pytest.approx(shares * (growth * bars.close[1:] + kept), rel=1e-12)
    # A window that starts anywhere buys at once.
    later = simulate(bars, hold.decide(bars), hold.rules, account=account, first=1000, last=1100)
    assert later.trades["entry_session"].to_pylist() == [bars.sessions[1001].item()]
    idle = simulate(bars, flat.decide(bars), flat.rules, account=account)
    assert (idle.equity == 10_000).all()


# ------------------------------------------------------------------------------------------ what holds for all of them

every_strategy = pytest.mark.parametrize("name", STRATEGIES)

# Beside the defaults.
SETS: dict[str, list[dict[str, Any]]] = {
    "sma_crossover": [
        {},
        {"fast_period": 5, "slow_period": 200},
        {"fast_period": 1, "slow_period": 2, "enter_on_first_bar": True},
        {"slow_period": 11, "size": 0.5},
    ],
    "daily_breakout": [
        {},
        {"period": 1},
        {"period": 60, "go_long": False},
        {"go_short": False, "exit_level": "previous_bar"},
    ],
    "mlp_long_short": [{}, {"long_threshold": 0.6}, {"short_threshold": 0.0}, {"stop_loss_pct": 4.0}],
    "mlp_sentiment_long_short": [{}, {"long_threshold": 0.9, "short_threshold": 0.9}],
    "mlp_enhanced_long_short": [{}, {"short_threshold": 0.45, "max_bars": 5}],
    "buy_and_hold": [{}, {"size": 0.5}],
    "flat": [{}],
}


def sets_of(name: str) -> list[dict[str, Any]]:
    """A strategy that is not listed is tested with its defaults."""
    return SETS.get(name, [{}])


@every_strategy
def test_the_registry_names_what_it_holds(name: str) -> None:
    kind = strategy_class(name)
    assert issubclass(kind, Strategy)
    assert kind.name == name
    strategy = make_strategy(name)
    assert type(strategy) is kind
    assert strategy.parameters["size"] == 1.0
    assert make_strategy(name, **strategy.parameters) == strategy
    with pytest.raises(AttributeError):
        strategy.size = 2.0  # frozen: a set of parameters is a value


@every_strategy
@pytest.mark.parametrize("symbol", ["AAPL", "GOOG"])
def test_decisions_are_one_small_integer_a_bar(sample: dict[str, BarSeries], name: str, symbol: str) -> None:
    bars = sample[symbol]
    for parameters in sets_of(name):
        decisions = decide(make_strategy(name, **parameters), bars, probabilities(bars))
        assert decisions.shape == (len(bars),)
        assert decisions.dtype == np.int8
        assert decisions.min() >= 0
        assert decisions.max() < 16
        # Nobody contradicts himself.
        assert not (decisions & 3 == 3).any()


@every_strategy
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_later_bars_change_no_decision(sample: dict[str, BarSeries], name: str, data: st.DataObject) -> None:
    bars = sample[data.draw(st.sampled_from(SYMBOLS))]
    # Mostly around the first bars that decide, where an off-by-one would show.
    t = data.draw(st.one_of(st.integers(1, 80), st.integers(1, len(bars))))
    strategy = make_strategy(name, **data.draw(st.sampled_from(sets_of(name))))
    known = probabilities(bars)
    whole = decide(strategy, bars, known)
    assert np.array_equal(decide(strategy, bars.cut(0, t), known[:t]), whole[:t])


@every_strategy
def test_a_grid_is_its_sets_one_by_one(sample: dict[str, BarSeries], name: str) -> None:
    bars, known = sample["AAPL"], probabilities(sample["AAPL"])
    kind = strategy_class(name)
    grid = kind.decide_grid(bars, sets_of(name), known if kind.model else None)
    single = [decide(kind.create(**parameters), bars, known) for parameters in sets_of(name)]
    assert grid.dtype == np.int8
    assert np.array_equal(grid, np.stack(single))


def test_a_grid_of_crossovers_may_repeat_and_share_averages(sample: dict[str, BarSeries]) -> None:
    bars, kind = sample["IBM"], strategy_class("sma_crossover")
    sets = [
        {"fast_period": fast, "slow_period": slow, "enter_on_first_bar": first}
        for fast, slow in ((30, 60), (10, 30), (30, 60), (60, 61), (10, 60))
        for first in (False, True)
    ]
    single = [kind.create(**parameters).decide(bars) for parameters in sets]
    assert np.array_equal(kind.decide_grid(bars, sets), np.stack(single))


@every_strategy
def test_an_unknown_parameter_is_answered_with_the_known_ones(name: str) -> None:
    known = ", ".join(sorted(make_strategy(name).parameters))
    with pytest.raises(StrategyError, match=rf"^{name} has no parameter fats, speed; it has {known}$"):
        make_strategy(name, fats=1, speed=2)
    with pytest.raises(StrategyError, match="has no parameter fats"):
        strategy_class(name).decide_grid(of_closes([1.0]), [{"fats": 1}], np.zeros((1, 2)))


@every_strategy
@pytest.mark.parametrize("size", [0, -1.0, math.nan, math.inf])
def test_a_size_is_positive(name: str, size: float) -> None:
    with pytest.raises(StrategyError, match=rf"size = {size} must be a number above 0"):
        make_strategy(name, size=size)


@every_strategy
def test_a_sizing_is_one_of_three(name: str) -> None:
    with pytest.raises(StrategyError, match="sizing = 'kelly' is not one of shares, fraction, volatility"):
        make_strategy(name, sizing="kelly")


def test_an_unknown_strategy_is_answered_with_the_registered_ones() -> None:
    with pytest.raises(StrategyError, match=f"no strategy 'sma'; registered are {', '.join(STRATEGIES)}"):
        make_strategy("sma")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("sma_crossover", {"fast_period": 30, "slow_period": 30}, "slow_period = 30 must be above fast_period = 30"),
        ("sma_crossover", {"fast_period": 50}, "slow_period = 30 must be above fast_period = 50"),
        ("sma_crossover", {"fast_period": 0}, "fast_period = 0 must be a whole number of at least 1 bars"),
        ("sma_crossover", {"fast_period": -5}, "fast_period = -5 must be a whole number of at least 1 bars"),
        ("sma_crossover", {"slow_period": 30.5}, r"slow_period = 30\.5 must be a whole number"),
        # Whole as it is, it is no index; a truth value is no number.
        ("sma_crossover", {"fast_period": 10.0}, r"fast_period = 10\.0 must be a whole number"),
        ("sma_crossover", {"fast_period": True}, "fast_period = True must be a whole number"),
        ("sma_crossover", {"fast_period": math.nan}, "fast_period = nan must be a whole number"),
        ("sma_crossover", {"slow_period": math.inf}, "slow_period = inf must be a whole number"),
        ("sma_crossover", {"fast_period": "10"}, "fast_period = 10 must be a whole number"),
        ("daily_breakout", {"period": 0}, "period = 0 must be a whole number of at least 1 bars"),
        ("daily_breakout", {"period": 2.5}, r"period = 2\.5 must be a whole number"),
        ("daily_breakout", {"go_long": False, "go_short": False}, "go_long and go_short are both off"),
        ("daily_breakout", {"exit_level": "high"}, "exit_level = 'high' is not one of look_back, previous_bar"),
        ("mlp_long_short", {"long_threshold": 1.01}, r"long_threshold = 1\.01 is not a probability"),
        ("mlp_long_short", {"short_threshold": -0.1}, r"short_threshold = -0\.1 is not a probability"),
        ("mlp_long_short", {"long_threshold": math.nan}, "long_threshold = nan is not a probability"),
        ("mlp_long_short", {"profit_target_pct": 0.0}, r"profit_target_pct = 0\.0 must be a number above 0"),
        ("mlp_long_short", {"stop_loss_pct": -1.5}, r"stop_loss_pct = -1\.5 must be a number above 0"),
        ("mlp_long_short", {"stop_loss_pct": 100.0}, r"stop_loss_pct = 100\.0 must be below 100"),
        ("mlp_long_short", {"max_bars": 0}, "max_bars = 0 must be a number above 0"),
        # Cut to whole bars these would be two, and none at all: no limit.
        ("mlp_long_short", {"max_bars": 2.5}, r"max_bars = 2\.5 must be a whole number of at least 1 bars"),
        ("mlp_long_short", {"max_bars": 0.5}, r"max_bars = 0\.5 must be a whole number of at least 1 bars"),
        ("mlp_sentiment_long_short", {"long_threshold": 2}, "long_threshold = 2 is not a probability"),
    ],
)  # fmt: skip
def test_impossible_parameters_are_named(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        make_strategy(name, **parameters)
    with pytest.raises(StrategyError, match=message):
        strategy_class(name).decide_grid(of_closes([1.0]), [parameters], np.zeros((1, 2)))


@pytest.mark.parametrize("sessions", [1, 0, 2.5])
def test_a_volatility_needs_two_returns(sessions: float) -> None:
    with pytest.raises(StrategyError, match=rf"volatility_sessions = {sessions} must be .* at least 2"):
        Rules(volatility_sessions=sessions)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    strategy = make_strategy("sma_crossover", fast_period=np.int64(5), size=np.float64(0.5))
    assert np.array_equal(
        strategy.decide(of_closes([1.0, 2.0] * 30)),
        make_strategy("sma_crossover", fast_period=5).decide(of_closes([1.0, 2.0] * 30)),
    )


# -------------------------------------------------------------------------------------------------- a new strategy

NEW_STRATEGY = '''
"""Buy after a fall, sell after a rise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quant_assets.market.series import BarSeries
from quant_assets.strategies.strategy import ENTER_LONG, EXIT_LONG, Strategy, require_period


@dataclass(frozen=True, kw_only=True)
class DipBuyer(Strategy):
    """Long after a close below the one `lag` bars before, out after a close above it."""

    name: ClassVar[str] = "dip_buyer_of_this_test"

    lag: int = 1

    def __post_init__(self) -> None:
        require_period("lag", self.lag)
        super().__post_init__()

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        decisions = np.zeros(len(bars), dtype=np.int8)
        now, before = bars.adj_close[self.lag :], bars.adj_close[: -self.lag]
        decisions[self.lag :] = ENTER_LONG * (now < before) + EXIT_LONG * (now > before)
        return decisions
'''


def test_one_file_and_one_line_make_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "dip_buyer_of_this_test"
    (tmp_path / f"{name}.py").write_text(NEW_STRATEGY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STRATEGIES, name, f"{name}:DipBuyer")
    try:
        strategy = make_strategy(name, lag=1, size=10, sizing="shares")
        bars = of_closes([100, 98, 97, 99, 101, 100])
        found = simulate(bars, strategy.decide(bars), strategy.rules, account=Account(10_000.0))
        (trade,) = found.trades.to_pylist()
        assert (trade["entry_price"], trade["exit_price"], trade["pnl"]) == (97, 101, 40)
        assert (trade["side"], trade["reason"]) == ("long", "signal")
        # What every strategy has, it has.
        grid = strategy_class(name).decide_grid(bars, [{"lag": 1}, {"lag": 2}])
        assert np.array_equal(grid[0], strategy.decide(bars))
        assert space_path(name) == tmp_path / f"{name}.yaml"
        with pytest.raises(StrategyError, match=rf"{name} has no parameter leg; it has lag, size, sizing"):
            make_strategy(name, leg=1)
        with pytest.raises(StrategyError, match="lag = 0 must be a whole number"):
            make_strategy(name, lag=0)
        with pytest.raises(StrategyError, match=f"registered are .*, {name}"):
            make_strategy("nobody")
    finally:
        sys.modules.pop(name, None)
