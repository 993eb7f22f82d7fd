"""Labels: a plain loop that walks through each trade, cases by hand, and one night against thirteen years."""

import datetime as dt
import functools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.features.labels import LOOKBACK_SESSIONS, LabelParameters, labels
from quant_assets.features.tables import LABELS
from quant_assets.market.tables import BARS
from quant_resources.calendar import TradingCalendar
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION

# The ends of the sample, sessions around splits, dividends and the crash of AAPL.
NIGHTS = [
    "2000-03-08",
    "2000-06-20",
    "2000-06-21",
    "2000-06-26",
    "2000-09-29",
    "2000-10-05",
    "2003-02-18",
    "2004-11-15",
    "2005-03-01",
    "2008-10-10",
    "2012-05-25",
    "2013-03-01",
]

Bar = tuple[float, float, float, float]  # open, high, low, close
Trade = Callable[..., dict[str, object]]


def between(table: pa.Table, first: dt.date, last: dt.date, column: str = "session") -> pa.Table:
    day = table[column]
    return table.filter(pc.and_(pc.greater_equal(day, pa.scalar(first)), pc.less_equal(day, pa.scalar(last))))


def only(table: pa.Table, symbol: str) -> pa.Table:
    return table.filter(pc.equal(table["symbol"], symbol))


def build(bars: pa.Table, calendar: TradingCalendar, parameters: LabelParameters | None = None) -> pa.Table:
    return LABELS.conform(labels(bars, calendar, FIRST_SESSION, LAST_SESSION, parameters))


# ----------------------------------------------------------------------------------- an independent loop


@functools.cache
def exact(number: float) -> Fraction:
    """The decimal that was printed, so that a touch to the cent is a touch and no matter of rounding."""
    return Fraction(repr(number))


def first_touch(rows: list[dict], t: int, parameters: LabelParameters) -> tuple[int, int, int]:
    """(long, short, sessions until the slower of the two is decided) of the trade decided at row t's close."""
    target, stop = exact(parameters.profit_target_pct) / 100, exact(parameters.stop_loss_pct) / 100
    entry = exact(rows[t + 1]["open"])
    long = short = long_end = short_end = None
    # What one share that was bought at the entry has become: splits multiply it, dividends are reinvested.
    shares = Fraction(1)
    for j in range(1, parameters.horizon_sessions + 1):
        row = rows[t + j]
        if j > 1 and (row["split_factor"] != 1 or row["dividend"] != 0):
            shares *= exact(row["split_factor"]) * (1 + exact(row["dividend"]) / exact(row["close"]))
        high, low = exact(row["high"]) * shares, exact(row["low"]) * shares
        if long is None:
            if low <= entry * (1 - stop):
                long, long_end = 0, j
            elif high >= entry * (1 + target):
                long, long_end = 1, j
        if short is None:
            if high >= entry * (1 + stop):
                short, short_end = 0, j
            elif low <= entry * (1 - target):
                short, short_end = 1, j
    n = parameters.horizon_sessions
    return long or 0, short or 0, max(long_end or n, short_end or n)


def any_order(rows: list[dict], t: int, parameters: LabelParameters) -> tuple[int, int, int]:
    """The rule of the proof of concept: which closes of the horizon lie beyond the barriers, in whatever order."""
    target, stop = exact(parameters.profit_target_pct) / 100, exact(parameters.stop_loss_pct) / 100
    entry, shares, closes = exact(rows[t]["close"]), Fraction(1), []
    for row in rows[t + 1 : t + parameters.horizon_sessions + 1]:
        if row["split_factor"] != 1 or row["dividend"] != 0:
            shares *= exact(row["split_factor"]) * (1 + exact(row["dividend"]) / exact(row["close"]))
        closes.append(exact(row["close"]) * shares)
    won = any(c >= entry * (1 + target) for c in closes)
    lost = any(c <= entry * (1 - stop) for c in closes)
    fell = any(c <= entry * (1 - target) for c in closes)
    rose = any(c >= entry * (1 + stop) for c in closes)
    return int(won and not lost), int(fell and not rose), parameters.horizon_sessions


def by_loop(bars: pa.Table, calendar: TradingCalendar, parameters: LabelParameters) -> list[dict]:
    rule = {"first_touch": first_touch, "any_order": any_order}[parameters.rule]
    n = parameters.horizon_sessions
    found = []
    for symbol in sorted(set(bars["symbol"].to_pylist())):
        rows = only(bars, symbol).to_pylist()
        for t in range(len(rows) - n):
            long, short, end = rule(rows, t, parameters)
            known = rows[t + n]["session"]
            found.append(
                {
                    "symbol": symbol,
                    "session": rows[t]["session"],
                    "known_session": known,
                    "available_at": calendar.close(known),
                    "long": long,
                    "short": short,
                    "label_end_session": rows[t + end]["session"],
                    "horizon_sessions": n,
                    "profit_target_pct": parameters.profit_target_pct,
                    "stop_loss_pct": parameters.stop_loss_pct,
                    "rule": parameters.rule,
                }
            )
    return found


def differences(found: pa.Table, expected: list[dict]) -> list[tuple[dict, dict]]:
    rows = found.to_pylist()
    assert [(r["symbol"], r["session"]) for r in rows] == [(r["symbol"], r["session"]) for r in expected]
    return [(a, b) for a, b in zip(rows, expected, strict=True) if a != b]


def test_the_whole_sample_agrees_with_the_loop(
    sample_bars: pa.Table, sample_labels: pa.Table, calendar: TradingCalendar
) -> None:
    expected = by_loop(sample_bars, calendar, LabelParameters())
    assert len(expected) == sample_bars.num_rows - 5 * 5
    assert differences(sample_labels, expected) == []


@pytest.mark.parametrize(
    "parameters",
    [
        LabelParameters(10, 5.0, 3.0),
        LabelParameters(3, 1.0, 4.0),
        LabelParameters(1, 0.7, 0.4),
        LabelParameters(20, 12.5, 7.5),
        LabelParameters(5, 2.0, 1.5, "any_order"),
        LabelParameters(12, 6.0, 3.5, "any_order"),
    ],
    ids=str,
)
def test_other_parameters_agree_with_the_loop(
    sample_bars: pa.Table, calendar: TradingCalendar, parameters: LabelParameters
) -> None:
    # AAPL from 2000 to 2001 has a split and a fall by half in one session.
    aapl = between(only(sample_bars, "AAPL"), dt.date(2000, 3, 1), dt.date(2001, 12, 31))
    expected = by_loop(aapl, calendar, parameters)
    assert 0 < sum(row["long"] for row in expected) < len(expected)
    assert 0 < sum(row["short"] for row in expected) < len(expected)
    assert differences(build(aapl, calendar, parameters), expected) == []


def test_the_two_rules_disagree(
    sample_bars: pa.Table, sample_labels: pa.Table, calendar: TradingCalendar
) -> None:
    # Otherwise the tests above would not tell one rule from the other.
    other = build(sample_bars, calendar, LabelParameters(rule="any_order"))
    different = np.mean(other["long"].to_numpy() != sample_labels["long"].to_numpy())
    assert different > 0.1


# ------------------------------------------------------------------------------------------ cases by hand

QUIET: Bar = (100.0, 100.5, 99.5, 100.0)


@pytest.fixture(scope="module")
def sessions(calendar: TradingCalendar) -> list[dt.date]:
    return calendar.sessions(dt.date(2012, 1, 3), LAST_SESSION)


@pytest.fixture(scope="module")
def make(calendar: TradingCalendar, sessions: list[dt.date]) -> Callable[..., pa.Table]:
    """Bars of one symbol from (open, high, low, close); `events` maps a row to (split_factor, dividend)."""

    def bars(rows: list[Bar], events: dict[int, tuple[float, float]] | None = None) -> pa.Table:
        events = events or {}
        made = [
            {
                "symbol": "AAA",
                "session": sessions[i],
                "available_at": calendar.close(sessions[i]),
                **dict(zip(("open", "high", "low", "close"), map(float, row), strict=True)),
                "volume": 1e6,
                "split_factor": events.get(i, (1.0, 0.0))[0],
                "dividend": events.get(i, (1.0, 0.0))[1],
                "source": "test",
            }
            for i, row in enumerate(rows)
        ]
        return pa.Table.from_pylist(made, schema=BARS.arrow_schema)

    return bars


@pytest.fixture(scope="module")
def trade(make: Callable[..., pa.Table], calendar: TradingCalendar, sessions: list[dt.date]) -> Trade:
    """The label of a decision at the close of bar 0. The trade lives in bars 1..5; bars not given are quiet."""

    def label(
        *ahead: Bar,
        events: dict[int, tuple[float, float]] | None = None,
        signal: Bar = QUIET,
        parameters: LabelParameters | None = None,
    ) -> dict[str, object]:
        rows = [signal, *ahead, *[QUIET] * (7 - len(ahead))]
        row = build(make(rows, events), calendar, parameters).to_pylist()[0]
        assert row["session"] == sessions[0]
        return {
            "long": row["long"],
            "short": row["short"],
            "end": sessions.index(row["label_end_session"]),
        }

    return label


def test_target_before_stop(trade: Trade) -> None:
    up, down = (100.0, 102.5, 99.5, 102.0), (100.0, 100.5, 98.0, 98.2)
    # Long is decided on bar 2; short is stopped there too (102.5 is above 101.5).
    assert trade(QUIET, up, QUIET, down) == {"long": 1, "short": 0, "end": 2}


def test_stop_before_target(trade: Trade) -> None:
    up, down = (100.0, 102.5, 99.5, 102.0), (100.0, 100.5, 98.4, 98.5)
    # 98.4 stops the long (98.5) and is not yet the short's target (98); that one is stopped on bar 4.
    assert trade(QUIET, down, QUIET, up) == {"long": 0, "short": 0, "end": 4}


def test_a_short_that_reaches_its_target(trade: Trade) -> None:
    down = (100.0, 100.5, 97.9, 98.0)
    assert trade(QUIET, QUIET, down) == {"long": 0, "short": 1, "end": 3}


def test_a_bar_that_touches_both_counts_as_the_stop(trade: Trade) -> None:
    # Nobody knows which came first, so neither side wins.
    both = (100.0, 102.5, 97.5, 100.0)
    assert trade(QUIET, both) == {"long": 0, "short": 0, "end": 2}
    assert trade(both) == {"long": 0, "short": 0, "end": 1}


def test_neither_barrier_within_the_horizon(trade: Trade) -> None:
    assert trade() == {"long": 0, "short": 0, "end": 5}


def test_a_touch_after_the_horizon_is_too_late(trade: Trade) -> None:
    up = (100.0, 110.0, 99.5, 109.0)
    assert trade(*[QUIET] * 4, up) == {"long": 1, "short": 0, "end": 5}
    assert trade(*[QUIET] * 5, up) == {"long": 0, "short": 0, "end": 5}


def test_the_bar_of_the_decision_is_over(trade: Trade) -> None:
    wild = (100.0, 150.0, 50.0, 100.0)
    assert trade(signal=wild) == {"long": 0, "short": 0, "end": 5}


def test_the_entry_bar_counts_from_its_open_on(trade: Trade) -> None:
    up = (100.0, 102.5, 99.5, 102.0)
    assert trade(up) == {"long": 1, "short": 0, "end": 1}


def test_gaps_beyond_a_barrier_touch_it(trade: Trade) -> None:
    above, below = (105.0, 106.0, 104.0, 105.0), (95.0, 96.0, 94.0, 95.0)
    assert trade(QUIET, above) == {"long": 1, "short": 0, "end": 2}
    assert trade(QUIET, below) == {"long": 0, "short": 1, "end": 2}


def test_the_entry_is_the_next_open_and_not_the_close_of_the_decision(trade: Trade) -> None:
    # It opens 10 % up and stays: whoever bought at the open has gained nothing.
    higher = (110.0, 110.5, 109.5, 110.0)
    assert trade(*[higher] * 5) == {"long": 0, "short": 0, "end": 5}
    # The rule of the proof of concept counts the gap as a gain that nobody could have had.
    poc = LabelParameters(rule="any_order")
    assert trade(*[higher] * 5, parameters=poc) == {"long": 1, "short": 0, "end": 5}


@pytest.mark.parametrize(
    ("entry", "high"),
    # Each high is exactly 2 % above its entry. The last two are trades of the sample (AAPL after 2004-04-14, IBM after
    # 2003-04-11) where the product of the binary fractions comes out one digit too high.
    [(100.0, 102.0), (50.0, 51.0), (29.0, 29.58), (78.5, 80.07)],
)
def test_a_price_on_the_target_touches_it(trade: Trade, entry: float, high: float) -> None:
    flat, touch = (entry, entry, entry, entry), (entry, high, entry, entry)
    below = (entry, high - 0.01, entry, entry)
    assert trade(flat, touch, *[flat] * 4, signal=flat)["long"] == 1
    assert trade(flat, below, *[flat] * 4, signal=flat)["long"] == 0


def test_a_price_on_the_stop_touches_it(trade: Trade) -> None:
    stopped, up = (100.0, 100.5, 98.5, 99.0), (100.0, 103.0, 99.5, 102.5)
    spared = (100.0, 100.5, 98.51, 99.0)
    assert trade(QUIET, stopped, up)["long"] == 0
    assert trade(QUIET, spared, up)["long"] == 1


def test_the_end_is_the_session_that_decided_the_slower_label(trade: Trade) -> None:
    stops_long, target_of_short = (100.0, 100.5, 98.4, 98.6), (98.6, 99.0, 97.0, 97.5)
    assert trade(stops_long, QUIET, target_of_short) == {"long": 0, "short": 1, "end": 3}
    # A label that nothing decided is decided by the end of the horizon.
    assert trade(stops_long) == {"long": 0, "short": 0, "end": 5}


# --------------------------------------------------------------------------------------- splits and dividends

HALF: Bar = (50.0, 50.25, 49.75, 50.0)


@pytest.mark.parametrize("rule", ["first_touch", "any_order"])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_split_within_the_horizon_does_not_make_a_label(trade: Trade, rule: str, at: int) -> None:
    parameters = LabelParameters(rule=rule)
    rows = [QUIET] * (at - 1) + [HALF] * (8 - at)
    assert trade(*rows, events={at: (2.0, 0.0)}, parameters=parameters) == {"long": 0, "short": 0, "end": 5}
    # Unrecorded, the same prices are a fall by half: the short wins, except on the bar of its own entry.
    entered_before = at > 1 or rule == "any_order"
    assert trade(*rows, parameters=parameters)["short"] == int(entered_before)


@pytest.mark.parametrize("rule", ["first_touch", "any_order"])
def test_a_dividend_within_the_horizon_is_no_loss(trade: Trade, rule: str) -> None:
    # Three dollars are paid, and the price falls by three dollars: beyond the long's stop and the short's target.
    ex = (97.0, 97.4, 96.6, 97.0)
    parameters = LabelParameters(rule=rule)
    rows = [QUIET, *[ex] * 6]
    assert trade(*rows, events={2: (1.0, 3.0)}, parameters=parameters) == {"long": 0, "short": 0, "end": 5}
    assert trade(*rows, parameters=parameters)["short"] == 1


def test_what_happened_on_the_day_of_the_entry_came_before_the_entry(trade: Trade) -> None:
    # Bought at the open of the ex-session: the dividend is the seller's, the split is in the price.
    ex, up = (97.0, 97.4, 96.6, 97.0), (97.0, 99.0, 96.9, 98.5)
    assert trade(ex, up, events={1: (1.0, 3.0)}) == {"long": 1, "short": 0, "end": 2}


# --------------------------------------------------------------------------------------- the published rule


@pytest.mark.parametrize(
    ("closes", "long", "short"),
    [
        ([100, 102, 100, 100, 100], 1, 0),
        ([100, 100, 100, 100, 102], 1, 0),
        ([102, 98.5, 100, 100, 100], 0, 0),  # the target came first, and still it is no success
        ([98.5, 102, 100, 100, 100], 0, 0),
        ([100, 98, 100, 100, 100], 0, 1),
        ([98, 101.5, 100, 100, 100], 0, 0),
        ([101.9, 98.6, 100, 100, 100], 0, 0),
    ],
)
def test_any_order_looks_at_closes_and_not_at_their_order(
    trade: Trade, closes: list[float], long: int, short: int
) -> None:
    # Highs and lows go beyond every barrier: they do not count.
    rows = [(100.0, 120.0, 80.0, float(close)) for close in closes]
    found = trade(*rows, parameters=LabelParameters(rule="any_order"))
    assert found == {"long": long, "short": short, "end": 5}


# ------------------------------------------------------------------------------------------- time in the table


@pytest.mark.parametrize("horizon", [1, 5, 20])
def test_a_label_is_known_n_sessions_later_at_the_close(
    sample_bars: pa.Table, calendar: TradingCalendar, horizon: int
) -> None:
    bars = between(sample_bars, dt.date(2011, 6, 1), dt.date(2012, 12, 31))
    rows = build(bars, calendar, LabelParameters(horizon_sessions=horizon)).to_pylist()
    for row in rows:
        assert row["known_session"] == calendar.shift(row["session"], horizon)
        assert row["available_at"] == calendar.close(row["known_session"])
        assert row["session"] < row["label_end_session"] <= row["known_session"]
    # The last sessions have no label yet.
    assert max(row["known_session"] for row in rows) == dt.date(2012, 12, 31)
    symbols = set(bars["symbol"].to_pylist())
    assert len(rows) == bars.num_rows - horizon * len(symbols)


@pytest.mark.parametrize("session", NIGHTS)
def test_one_night_and_thirteen_years_give_the_same_labels(
    sample_bars: pa.Table, sample_labels: pa.Table, calendar: TradingCalendar, session: str
) -> None:
    day = dt.date.fromisoformat(session)
    window = between(sample_bars, calendar.shift(day, -LOOKBACK_SESSIONS), day)
    one = LABELS.conform(labels(window, calendar, day, day))
    assert one.num_rows >= 3
    assert one.equals(between(sample_labels, day, day, "known_session"))


def test_row_order_and_later_bars_change_nothing(
    sample_bars: pa.Table, sample_labels: pa.Table, calendar: TradingCalendar
) -> None:
    order = np.random.default_rng(5).permutation(sample_bars.num_rows)
    assert build(sample_bars.take(pa.array(order)), calendar).equals(sample_labels)
    last = dt.date(2005, 3, 1)
    known = between(sample_bars, FIRST_SESSION, last)
    assert build(known, calendar).equals(between(sample_labels, FIRST_SESSION, last, "known_session"))


@pytest.mark.parametrize(("sessions_ahead", "labelled"), [(5, True), (30, True), (31, False)])
def test_a_trade_over_a_gap_has_a_label_while_it_fits_30_sessions(
    sample_bars: pa.Table, calendar: TradingCalendar, sessions_ahead: int, labelled: bool
) -> None:
    # Six bars: the decision, four sessions, and the fifth after a gap. The night loads no more than 30 sessions back.
    days = calendar.sessions(dt.date(2006, 3, 1), LAST_SESSION)
    six = [*days[:5], days[sessions_ahead]]
    kept = between(only(sample_bars, "IBM"), six[0], six[-1])
    kept = kept.filter(pc.is_in(kept["session"], pa.array(six, pa.date32())))
    rows = build(kept, calendar).to_pylist()
    assert [(r["session"], r["known_session"]) for r in rows] == ([(six[0], six[-1])] if labelled else [])


@settings(max_examples=12, deadline=None)
@given(
    gone=st.sets(st.integers(0, 44), max_size=38),
    nights=st.sets(st.integers(5, 44), min_size=1, max_size=4),
    horizon=st.sampled_from([1, 5, 20]),
)
def test_with_any_gaps_one_night_and_the_full_build_agree(
    sample_bars: pa.Table, calendar: TradingCalendar, gone: set[int], nights: set[int], horizon: int
) -> None:
    # Around the split of AAPL in 2005.
    parameters = LabelParameters(horizon_sessions=horizon)
    sessions = calendar.sessions(dt.date(2005, 1, 20), LAST_SESSION)[:45]
    aapl = between(only(sample_bars, "AAPL"), sessions[0], sessions[-1])
    have = sorted(set(range(45)) - gone)
    kept = aapl.take(pa.array(have, pa.int64()))
    full = build(kept, calendar, parameters)
    # N bars later, and only while those fit into what the night loads.
    assert [
        (r["session"], r["known_session"]) for r in full.select(["session", "known_session"]).to_pylist()
    ] == [
        (sessions[a], sessions[b])
        for a, b in zip(have, have[horizon:], strict=False)
        if b - a <= LOOKBACK_SESSIONS
    ]
    for i in nights:
        day = sessions[i]
        window = between(kept, calendar.shift(day, -LOOKBACK_SESSIONS), day)
        one = LABELS.conform(labels(window, calendar, day, day, parameters))
        assert one.equals(between(full, day, day, "known_session"))


def test_an_empty_table_has_no_labels_and_all_columns(calendar: TradingCalendar) -> None:
    assert build(BARS.arrow_schema.empty_table(), calendar).schema == LABELS.arrow_schema


# -------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"horizon_sessions": 0}, r"horizon_sessions = 0 is not in 1\.\.20"),
        ({"horizon_sessions": 21}, r"horizon_sessions = 21 is not in 1\.\.20"),
        ({"profit_target_pct": 0.0}, r"profit_target_pct = 0\.0 is not in \(0, 100\)"),
        ({"profit_target_pct": -2.0}, r"profit_target_pct = -2\.0"),
        ({"profit_target_pct": float("nan")}, r"profit_target_pct = nan"),
        ({"stop_loss_pct": 100.0}, r"stop_loss_pct = 100\.0"),
        ({"stop_loss_pct": 0.0}, r"stop_loss_pct = 0\.0"),
        ({"rule": "last_touch"}, r"rule = 'last_touch' is neither 'first_touch' nor 'any_order'"),
    ],
)
def test_invalid_parameters_are_refused_by_name_and_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelParameters(**values)


def test_the_published_parameters_are_the_default(sample_labels: pa.Table) -> None:
    first = sample_labels.slice(0, 1).to_pylist()[0]
    assert (first["horizon_sessions"], first["profit_target_pct"], first["stop_loss_pct"], first["rule"]) == (
        5,
        2.0,
        1.5,
        "first_touch",
    )


def test_whole_numbers_are_percent_too(sample_bars: pa.Table, calendar: TradingCalendar) -> None:
    # SQL divides whole numbers differently from others; a percent must stay one.
    bars = between(sample_bars, dt.date(2005, 1, 3), dt.date(2005, 6, 30))
    whole, fractions = LabelParameters(5, 2, 3), LabelParameters(5, 2.0, 3.0)
    assert build(bars, calendar, whole).equals(build(bars, calendar, fractions))
    assert sum(build(bars, calendar, whole)["long"].to_pylist()) > 0
