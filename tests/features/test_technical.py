"""Technical indicators: an independent implementation, known answers, and one night against thirteen years."""

import datetime as dt
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.features.tables import ROC_PERIODS, SMA_PERIODS, TECHNICAL, TECHNICAL_INPUTS
from quant_assets.features.technical import LOOKBACK_SESSIONS, technical_features
from quant_assets.market.adjustment import adjust_bars
from quant_assets.market.tables import BARS
from quant_resources.calendar import TradingCalendar
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION

SCALED = ["scaled_close", *(f"scaled_sma_{k}" for k in SMA_PERIODS)]
ROC = [f"roc_{k}_pct" for k in ROC_PERIODS]
VALUES = [c.name for c in TECHNICAL.columns if c.type == "double"]
# In dollars of the session; everything else is a ratio and does not know the unit of the price.
IN_DOLLARS = ["close", "atr_14"]

# Spread over the sample: its ends, both sides of each split and of the 20 sessions after it, the crash of AAPL, the
# special dividend of MSFT, the first session of FB's features and of GOOG's.
NIGHTS = [
    "2000-03-29",
    "2000-06-20",
    "2000-06-21",
    "2000-07-20",
    "2000-09-28",
    "2000-09-29",
    "2000-10-02",
    "2003-02-18",
    "2003-03-18",
    "2004-09-17",
    "2004-11-15",
    "2005-02-28",
    "2005-03-29",
    "2008-10-10",
    "2012-06-18",
    "2013-03-01",
]

HandMade = Callable[..., pa.Table]


def bits(table: pa.Table) -> dict[str, bytes | list[object]]:
    """Every column down to the bits: -0.0 is not 0.0 here, and NaN is NaN."""
    return {
        name: table[name].to_numpy().tobytes()
        if pa.types.is_floating(table.schema.field(name).type) and not table[name].null_count
        else table[name].to_pylist()
        for name in table.column_names
    }


def between(bars: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    day = bars["session"]
    return bars.filter(pc.and_(pc.greater_equal(day, pa.scalar(first)), pc.less_equal(day, pa.scalar(last))))


def only(table: pa.Table, symbol: str) -> pa.Table:
    return table.filter(pc.equal(table["symbol"], symbol))


def replace(table: pa.Table, **columns: object) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


def night(bars: pa.Table, calendar: TradingCalendar, session: dt.date) -> pa.Table:
    """One session computed from what a nightly run loads: that session and the 30 before it."""
    window = between(bars, calendar.shift(session, -LOOKBACK_SESSIONS), session)
    return technical_features(window, calendar, session, session)


@pytest.fixture(scope="module")
def hand_made(calendar: TradingCalendar) -> HandMade:
    """A function that makes the bars of one symbol from its closes, on consecutive sessions from 2012-01-03 on."""

    def make(closes: object, symbol: str = "AAA", **columns: object) -> pa.Table:
        close = np.array(closes, dtype=float)
        sessions = calendar.sessions(dt.date(2012, 1, 3), LAST_SESSION)[: len(close)]
        values = {
            "open": close,
            "high": close,
            "low": close,
            "close": close,
            "volume": np.full(len(close), 1e6),
            "dividend": np.zeros(len(close)),
            "split_factor": np.ones(len(close)),
        }
        return pa.table(
            {
                "symbol": [symbol] * len(close),
                "session": pa.array(sessions, pa.date32()),
                "available_at": pa.array([calendar.close(s) for s in sessions], pa.timestamp("us", "UTC")),
                **{name: np.asarray(columns.get(name, value), dtype=float) for name, value in values.items()},
            }
        )

    return make


def features(bars: pa.Table, calendar: TradingCalendar) -> pa.Table:
    return technical_features(bars, calendar, FIRST_SESSION, LAST_SESSION)


def last_row(bars: pa.Table, calendar: TradingCalendar) -> dict[str, float]:
    return features(bars, calendar).to_pylist()[-1]


# ---------------------------------------------------------------------------- an independent implementation


def with_pandas(bars: pa.Table) -> pd.DataFrame:
    """The same indicators, written on the adjusted series with rolling windows."""
    parts = []
    for _, bar in adjust_bars(bars).to_pandas().groupby("symbol"):
        close = bar["adj_close"]
        out = bar[["symbol", "session", "available_at", "close"]].copy()
        means = pd.DataFrame({k: close.rolling(k).mean() for k in SMA_PERIODS})
        means.insert(0, 1, close)
        scaled = means.sub(means.min(axis=1), axis=0).div(means.max(axis=1) - means.min(axis=1), axis=0)
        out[SCALED] = scaled.to_numpy()
        for k in ROC_PERIODS:
            out[f"roc_{k}_pct"] = 100 * close.pct_change(k)
        returns = np.log(close).diff()
        out["log_return"] = returns
        out["log_volume_change"] = np.log(bar["adj_volume"]).diff()
        out["realized_volatility_20"] = np.sqrt(252 * (returns**2).rolling(20).mean())
        before = close.shift(1)
        true_range = pd.concat(
            [
                bar["adj_high"] - bar["adj_low"],
                (bar["adj_high"] - before).abs(),
                (bar["adj_low"] - before).abs(),
            ],
            axis=1,
        ).max(axis=1, skipna=False)
        # Back from dollars of the first row to dollars of the session.
        out["atr_14"] = true_range.rolling(14).mean() * bar["close"] / close
        out["atr_14_pct"] = 100 * out["atr_14"] / bar["close"]
        up, down = (
            close.diff().clip(lower=0).rolling(14).sum(),
            (-close.diff()).clip(lower=0).rolling(14).sum(),
        )
        out["rsi_14"] = 100 * up / (up + down)
        parts.append(out.iloc[20:])
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("name", VALUES)
def test_every_column_agrees_with_pandas_on_the_whole_sample(
    reference: pd.DataFrame, sample_technical: pa.Table, name: str
) -> None:
    # Rolling sums of pandas carry rounding from row to row, so values that should be 0 are only almost that.
    np.testing.assert_allclose(
        sample_technical[name].to_numpy(), reference[name].to_numpy(), rtol=1e-9, atol=1e-11
    )


@pytest.fixture(scope="module")
def reference(sample_bars: pa.Table) -> pd.DataFrame:
    return with_pandas(sample_bars)


def test_the_rows_are_those_of_the_sample_after_each_symbols_first_twenty(
    reference: pd.DataFrame, sample_technical: pa.Table, sample_bars: pa.Table
) -> None:
    for name in ("symbol", "session"):
        assert sample_technical[name].to_pylist() == reference[name].to_list()
    assert sample_technical.num_rows == sample_bars.num_rows - 5 * 20
    for symbol in sample_bars["symbol"].unique().to_pylist():
        assert only(sample_technical, symbol)["session"][0] == only(sample_bars, symbol)["session"][20]


def test_a_row_is_known_at_the_close_of_its_session(
    sample_technical: pa.Table, calendar: TradingCalendar
) -> None:
    rows = sample_technical.select(["session", "available_at"]).to_pylist()
    assert all(row["available_at"] == calendar.close(row["session"]) for row in rows)


# ------------------------------------------------------------------------------------------ known answers


@pytest.mark.parametrize("price", [100.0, 0.5, 33.3, 0.07, 101.37])
def test_a_constant_price(hand_made: HandMade, calendar: TradingCalendar, price: float) -> None:
    # Prices that binary fractions cannot hold have means that differ by rounding only: still no move at all.
    row = last_row(hand_made([price] * 25), calendar)
    assert {row[name] for name in SCALED} == {0.5}
    assert {row[name] for name in ROC} == {0.0}
    assert row["rsi_14"] == 50
    assert row["realized_volatility_20"] == row["atr_14"] == row["log_return"] == 0
    assert row["log_volume_change"] == 0


def test_a_linear_rise(hand_made: HandMade, calendar: TradingCalendar) -> None:
    close = 100.0 + np.arange(30)
    row = last_row(hand_made(close, high=close + 1, low=close - 1), calendar)
    # SMA k lags (k - 1) / 2 dollars behind, so the scaled means are evenly spaced.
    assert row["scaled_close"] == 1
    assert row["scaled_sma_16"] == 0
    for k in SMA_PERIODS:
        assert row[f"scaled_sma_{k}"] == pytest.approx(1 - (k - 1) / 15, abs=1e-12)
    for k in ROC_PERIODS:
        assert row[f"roc_{k}_pct"] == pytest.approx(100 * k / (129 - k), rel=1e-12)
    assert row["rsi_14"] == 100
    assert row["atr_14"] == 2  # high - low, and as much from the previous close to the high
    assert row["atr_14_pct"] == pytest.approx(200 / 129)
    assert row["log_return"] == pytest.approx(np.log(129 / 128), rel=1e-12)


def test_a_linear_fall(hand_made: HandMade, calendar: TradingCalendar) -> None:
    row = last_row(hand_made(130.0 - np.arange(30)), calendar)
    assert (row["scaled_close"], row["scaled_sma_16"], row["rsi_14"]) == (0, 1, 0)


def test_a_steady_growth(hand_made: HandMade, calendar: TradingCalendar) -> None:
    row = last_row(hand_made(50 * 1.01 ** np.arange(30)), calendar)
    assert row["realized_volatility_20"] == pytest.approx(np.sqrt(252) * np.log(1.01), rel=1e-9)
    for k in ROC_PERIODS:
        assert row[f"roc_{k}_pct"] == pytest.approx(100 * (1.01**k - 1), rel=1e-9)


def test_rsi_weighs_every_session_alike(hand_made: HandMade, calendar: TradingCalendar) -> None:
    # Seven gains of 3 and seven losses of 1, in any order, make 75 (Wilder's smoothing would prefer late ones).
    moves = np.array([3.0, -1.0] * 7)
    for order in (moves, np.sort(moves), np.sort(moves)[::-1]):
        close = np.r_[np.full(10, 100.0), 100 + np.cumsum(order)]
        assert last_row(hand_made(close), calendar)["rsi_14"] == 75


def test_rsi_forgets_the_fifteenth_move_back(hand_made: HandMade, calendar: TradingCalendar) -> None:
    close = np.r_[np.full(20, 200.0), 100.0 + np.arange(14), 114.0]
    assert last_row(hand_made(close), calendar)["rsi_14"] == 100
    assert last_row(hand_made(close[:-1]), calendar)["rsi_14"] < 15


def test_true_range_reaches_to_the_previous_close(hand_made: HandMade, calendar: TradingCalendar) -> None:
    up, down = [100.0] * 24 + [114.0], [100.0] * 24 + [86.0]
    for close in (up, down):
        assert last_row(hand_made(close), calendar)["atr_14"] == 1  # one range of 14 among 14
    assert last_row(hand_made([100.0] * 25, high=[100.0] * 24 + [128.0]), calendar)["atr_14"] == 2


def test_volume_is_a_change_of_shares(hand_made: HandMade, calendar: TradingCalendar) -> None:
    doubled = hand_made([100.0] * 25, volume=[1e6] * 24 + [2e6])
    assert last_row(doubled, calendar)["log_volume_change"] == pytest.approx(np.log(2))


def test_a_dividend_is_no_loss(hand_made: HandMade, calendar: TradingCalendar) -> None:
    # The price falls by the dividend on the ex-session, two sessions ago.
    close, dividend = [100.0] * 23 + [98.0] * 2, [0.0] * 23 + [2.0, 0.0]
    rows = features(hand_made(close, dividend=dividend), calendar).to_pylist()
    ex = rows[-2]
    assert ex["log_return"] == pytest.approx(0, abs=1e-15)
    assert ex["atr_14"] == pytest.approx(0, abs=1e-12)
    assert rows[-1]["roc_16_pct"] == pytest.approx(0, abs=1e-12)
    assert rows[-1]["realized_volatility_20"] == pytest.approx(0, abs=1e-12)


# ---------------------------------------------------------------------------------------------- the inputs


def test_the_published_classifier_has_31_inputs() -> None:
    assert len(TECHNICAL_INPUTS) == len(set(TECHNICAL_INPUTS)) == 31
    assert list(TECHNICAL_INPUTS) == [
        "scaled_close",
        *(f"scaled_sma_{k}" for k in range(2, 17)),
        *(f"roc_{k}_pct" for k in range(2, 17)),
    ]
    assert set(TECHNICAL_INPUTS) <= {column.name for column in TECHNICAL.columns}


def test_scaled_inputs_span_zero_to_one_in_every_row(sample_technical: pa.Table) -> None:
    scaled = np.column_stack([sample_technical[name].to_numpy() for name in SCALED])
    assert scaled.shape == (12_054, 16)
    assert (scaled.min(axis=1) == 0).all()
    assert (scaled.max(axis=1) == 1).all()


def test_every_value_of_the_sample_is_a_finite_number(sample_technical: pa.Table) -> None:
    for name in VALUES:
        assert sample_technical[name].null_count == 0
        assert np.isfinite(sample_technical[name].to_numpy()).all(), name


# ----------------------------------------------------------------------------------------------- invariance


def test_the_unit_of_the_price_does_not_matter(
    sample_bars: pa.Table, sample_technical: pa.Table, calendar: TradingCalendar
) -> None:
    # 8 is a power of two, so that the products are exact and nothing may change, not even a last digit.
    factor = np.where(np.array(sample_bars["symbol"].to_pylist()) == "AAPL", 8.0, 1.0)
    in_other_units = replace(
        sample_bars,
        **{
            name: sample_bars[name].to_numpy() * factor
            for name in ("open", "high", "low", "close", "dividend")
        },
    )
    after = features(in_other_units, calendar)
    ratios = [name for name in VALUES if name not in IN_DOLLARS]
    assert bits(after.select(ratios)) == bits(sample_technical.select(ratios))
    factor = np.where(np.array(sample_technical["symbol"].to_pylist()) == "AAPL", 8.0, 1.0)
    for name in IN_DOLLARS:
        np.testing.assert_array_equal(after[name].to_numpy(), sample_technical[name].to_numpy() * factor)


def test_a_split_changes_nothing_but_the_dollars(
    sample_bars: pa.Table, sample_technical: pa.Table, calendar: TradingCalendar
) -> None:
    # IBM never split in these years but paid 52 dividends: split it 2:1 in the middle, as the exchange would show it.
    ibm, before = only(sample_bars, "IBM"), only(sample_technical, "IBM")
    session = dt.date(2006, 5, 1)
    new = np.array(ibm["session"].to_pylist()) >= session
    half = np.where(new, 0.5, 1.0)
    split = replace(
        ibm,
        **{name: ibm[name].to_numpy() * half for name in ("open", "high", "low", "close", "dividend")},
        volume=ibm["volume"].to_numpy() / half,
        split_factor=np.where(np.array(ibm["session"].to_pylist()) == session, 2.0, 1.0),
    )
    after = features(split, calendar)
    for name in VALUES:
        if name not in IN_DOLLARS:
            np.testing.assert_allclose(
                after[name].to_numpy(), before[name].to_numpy(), rtol=1e-12, atol=1e-12, err_msg=name
            )
    half = np.where(np.array(before["session"].to_pylist()) >= session, 0.5, 1.0)
    for name in IN_DOLLARS:
        np.testing.assert_allclose(after[name].to_numpy(), before[name].to_numpy() * half, rtol=1e-12)


def test_an_unrecorded_split_would_show(sample_bars: pa.Table, calendar: TradingCalendar) -> None:
    # The test above could pass on features that ignore prices; these do not.
    aapl = only(sample_bars, "AAPL")
    forgotten = replace(aapl, split_factor=np.ones(aapl.num_rows))
    day = dt.date(2005, 2, 28)
    row = technical_features(forgotten, calendar, day, day).to_pylist()[0]
    true = technical_features(aapl, calendar, day, day).to_pylist()[0]
    assert row["log_return"] == pytest.approx(true["log_return"] - np.log(2))
    assert row["log_volume_change"] == pytest.approx(true["log_volume_change"] + np.log(2))
    assert row["roc_2_pct"] < -45 < true["roc_2_pct"]


@pytest.mark.parametrize("session", NIGHTS)
def test_one_night_and_thirteen_years_give_the_same_bits(
    sample_bars: pa.Table, sample_technical: pa.Table, calendar: TradingCalendar, session: str
) -> None:
    day = dt.date.fromisoformat(session)
    one = TECHNICAL.conform(night(sample_bars, calendar, day))
    whole = between(sample_technical, day, day)
    assert one.num_rows == (3 if day < dt.date(2004, 9, 17) else 4 if day < dt.date(2012, 6, 18) else 5)
    assert bits(one) == bits(whole)


def test_row_order_and_other_symbols_change_nothing(
    sample_bars: pa.Table, sample_technical: pa.Table, calendar: TradingCalendar
) -> None:
    order = np.random.default_rng(7).permutation(sample_bars.num_rows)
    shuffled = TECHNICAL.conform(features(sample_bars.take(pa.array(order)), calendar))
    assert bits(shuffled) == bits(sample_technical)
    for symbol in ("FB", "MSFT"):
        alone = TECHNICAL.conform(features(only(sample_bars, symbol), calendar))
        assert bits(alone) == bits(only(sample_technical, symbol))


def test_a_range_returns_its_sessions_and_no_others(
    sample_bars: pa.Table, sample_technical: pa.Table, calendar: TradingCalendar
) -> None:
    first, last = dt.date(2005, 2, 1), dt.date(2005, 3, 31)
    part = TECHNICAL.conform(technical_features(sample_bars, calendar, first, last))
    assert bits(part) == bits(between(sample_technical, first, last))


# ------------------------------------------------------------------------------------- warm-up and gaps


@pytest.mark.parametrize(("bars", "rows"), [(0, 0), (1, 0), (20, 0), (21, 1), (24, 4)])
def test_the_first_twenty_bars_have_no_row(
    hand_made: HandMade, calendar: TradingCalendar, bars: int, rows: int
) -> None:
    made = hand_made(100.0 + np.arange(bars))
    assert features(made, calendar).num_rows == rows


def test_an_empty_table_has_no_rows_and_all_columns(calendar: TradingCalendar) -> None:
    empty = features(BARS.arrow_schema.empty_table(), calendar)
    assert empty.num_rows == 0
    assert TECHNICAL.conform(empty).schema == TECHNICAL.arrow_schema


@pytest.mark.parametrize(
    ("missing", "expected"), [(0, True), (1, True), (10, True), (11, False), (40, False)]
)
def test_a_symbol_with_gaps_has_a_row_while_its_21_bars_fit_31_sessions(
    hand_made: HandMade, calendar: TradingCalendar, missing: int, expected: bool
) -> None:
    # 21 bars with `missing` sessions cut out behind the tenth: the row of the last bar.
    made = hand_made(100.0 + np.arange(21 + missing))
    kept = made.take(pa.array([i for i in range(made.num_rows) if not 10 <= i < 10 + missing]))
    rows = features(kept, calendar)
    assert rows["session"].to_pylist() == ([made["session"][-1].as_py()] if expected else [])
    last = made["session"][-1].as_py()
    assert bits(night(kept, calendar, last)) == bits(rows)


def test_with_a_gap_windows_count_bars(hand_made: HandMade, calendar: TradingCalendar) -> None:
    made = hand_made(100.0 + np.arange(25))
    kept = made.take(pa.array([i for i in range(25) if i not in (22, 23)]))
    row = last_row(kept, calendar)
    assert row["roc_2_pct"] == pytest.approx(100 * (124 / 120 - 1))  # over 121, to 120
    assert row["log_return"] == pytest.approx(np.log(124 / 121))


@settings(max_examples=8, deadline=None)
@given(
    gone=st.sets(st.integers(0, 59), max_size=28),
    nights=st.sets(st.integers(21, 59), min_size=1, max_size=4),
)
def test_with_any_gaps_one_night_and_the_full_build_agree(
    sample_bars: pa.Table, calendar: TradingCalendar, gone: set[int], nights: set[int]
) -> None:
    # Around the split of AAPL in 2005, which so falls into and next to gaps. MSFT has none, and is not disturbed.
    first = dt.date(2005, 1, 10)
    sessions = calendar.sessions(first, LAST_SESSION)[:60]
    bars = between(sample_bars, first, sessions[-1])
    rows = bars.select(["symbol", "session"]).to_pylist()
    lost = {sessions[i] for i in gone}
    kept = bars.filter(pa.array([r["symbol"] != "AAPL" or r["session"] not in lost for r in rows]))
    full = technical_features(kept, calendar, first, sessions[-1])
    assert bits(only(full, "MSFT")) == bits(only(features(bars, calendar), "MSFT"))
    # The rule in words, counted by hand.
    have = sorted(set(range(60)) - gone)
    expected = [sessions[i] for n, i in enumerate(have) if n >= 20 and i - have[n - 20] <= 30]
    assert only(full, "AAPL")["session"].to_pylist() == expected
    for i in nights:
        assert bits(night(kept, calendar, sessions[i])) == bits(between(full, sessions[i], sessions[i]))
