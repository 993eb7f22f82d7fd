"""The rules for bars, articles and minute bars: what each one catches, what it names, and what it leaves alone."""

import datetime as dt
import json
import math
from collections.abc import Callable

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.market import validation
from quant_assets.market.validation import (
    BAR_RULES,
    MINUTE_BAR_RULES,
    NEWS_RULES,
    missing_sessions,
    price_jumps,
    validate_bars,
    validate_minute_bars,
    validate_news,
)
from quant_resources.calendar import TradingCalendar
from quant_resources.sources import BARS, MINUTE_BARS, NEWS
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION, SampleSource

NAN, INF = float("nan"), float("inf")
WEEK = ["2012-01-03", "2012-01-04", "2012-01-05", "2012-01-06", "2012-01-09"]
# The three splits of the sample, each two new shares for one.
SPLITS = [
    ("AAPL", dt.date(2000, 6, 21)),
    ("AAPL", dt.date(2005, 2, 28)),
    ("MSFT", dt.date(2003, 2, 18)),
]
CRASH = ("AAPL", dt.date(2000, 9, 29))

MakeBar = Callable[..., dict[str, object]]


def table(rows: list[dict[str, object]], schema: pa.Schema = BARS) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def broken(verdict: validation.Validated) -> list[tuple[str, str]]:
    return [(v.rule, v.origin) for v in verdict.violations]


def origins(rows: pa.Table) -> list[str]:
    return rows["origin"].to_pylist()


@pytest.fixture(scope="module")
def raw_bars() -> pa.Table:
    """The sample's bars as the source hands them over."""
    return SampleSource().bars(FIRST_SESSION, LAST_SESSION)


@pytest.fixture(scope="module")
def raw_news() -> pa.Table:
    return SampleSource(seed=20000301).news(FIRST_SESSION, LAST_SESSION)


@pytest.fixture
def week(bar: MakeBar) -> list[dict[str, object]]:
    """Five quiet sessions of two symbols."""
    return [bar(day, symbol, origin=f"{symbol}:{day}") for symbol in ("AAA", "BBB") for day in WEEK]


# ---------------------------------------------------------------------------------------------- bars


def test_every_bar_of_the_sample_passes_every_rule(raw_bars: pa.Table, calendar: TradingCalendar) -> None:
    verdict = validate_bars(raw_bars, calendar)
    assert verdict.violations == []
    assert verdict.rows.equals(raw_bars)
    assert verdict.checked == BAR_RULES


@pytest.mark.parametrize(
    ("rule", "values", "reason"),
    [
        ("numbers", {"close": NAN}, "close = nan"),
        ("numbers", {"volume": INF}, "volume = inf"),
        ("numbers", {"dividend": NAN}, "dividend = nan"),
        ("numbers", {"split_factor": NAN}, "split_factor = nan"),
        ("numbers", {"open": NAN, "high": NAN}, "open = nan, high = nan"),
        ("numbers", {"open": None}, "open = nan"),
        ("positive", {"volume": 0.0}, "volume = 0"),
        ("positive", {"volume": -5.0}, "volume = -5"),
        ("positive", {"dividend": -0.1}, "dividend = -0.1"),
        ("positive", {"split_factor": 0.0}, "split_factor = 0"),
        ("positive", {"low": -1.0}, "low = -1"),
        ("ohlc", {"low": 100.5}, "low 100.5"),
        ("ohlc", {"high": 99.5}, "high 99.5"),
        ("ohlc", {"close": 103.0}, "close 103"),
        ("ohlc", {"open": 98.0}, "open 98"),
        ("calendar", {"session": dt.date(2012, 1, 7)}, "2012-01-07 is a Saturday"),
        ("calendar", {"session": dt.date(2012, 1, 8)}, "2012-01-08 is a Sunday"),
        ("calendar", {"session": dt.date(2012, 7, 4)}, "2012-07-04 is an exchange holiday (July 4th)"),
        ("calendar", {"session": dt.date(2012, 11, 22)}, "exchange holiday (Thanksgiving)"),
        ("calendar", {"session": dt.date(2012, 10, 29)}, "2012-10-29 is an exchange holiday"),  # a hurricane
        (
            "unrecorded_split",
            {"open": 50.5, "high": 51.0, "low": 49.5, "close": 50.0, "volume": 2e6},
            "AAA opens at 50.5: a split ratio away from the previous close",
        ),
    ],
)
def test_a_row_that_breaks_one_rule_is_reported_by_that_rule_alone(
    week: list[dict[str, object]],
    calendar: TradingCalendar,
    rule: str,
    values: dict[str, object],
    reason: str,
) -> None:
    # The last session of AAA, so that no row after it can be affected.
    week[4] |= values
    verdict = validate_bars(table(week), calendar)
    assert broken(verdict) == [(rule, "AAA:2012-01-09")]
    violation = verdict.violations[0]
    assert reason in violation.reason
    assert json.loads(violation.row)["symbol"] == "AAA"
    assert "origin" not in json.loads(violation.row)
    assert origins(verdict.rows) == [row["origin"] for row in week if row["origin"] != "AAA:2012-01-09"]


def test_two_bars_of_one_session_are_both_reported_and_both_go(
    week: list[dict[str, object]], calendar: TradingCalendar
) -> None:
    week.append({**week[2], "origin": "again", "close": 100.5})
    verdict = validate_bars(table(week), calendar)
    assert broken(verdict) == [("unique", "AAA:2012-01-05"), ("unique", "again")]
    assert verdict.violations[0].reason == "AAA 2012-01-05 occurs more than once"
    assert set(origins(verdict.rows)) == {r["origin"] for r in week} - {"AAA:2012-01-05", "again"}


def test_the_same_session_of_two_symbols_is_no_duplicate(
    week: list[dict[str, object]], calendar: TradingCalendar
) -> None:
    assert validate_bars(table(week), calendar).violations == []


def test_a_row_that_breaks_two_rules_is_reported_under_both(
    week: list[dict[str, object]], calendar: TradingCalendar
) -> None:
    week[9] |= {"session": dt.date(2012, 1, 7), "volume": -1.0}
    verdict = validate_bars(table(week), calendar)
    assert sorted(v.rule for v in verdict.violations) == ["calendar", "positive"]
    assert verdict.rows.num_rows == 9


def test_the_reported_row_is_json_even_when_a_value_is_not_a_number(
    week: list[dict[str, object]], calendar: TradingCalendar
) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON: other readers of the quarantine table reject it")

    week[4] |= {"close": NAN, "volume": INF}
    row = json.loads(validate_bars(table(week), calendar).violations[0].row, parse_constant=refuse)
    assert row["open"] == 100.0


@pytest.mark.parametrize(
    "values",
    [
        {"close": 200.0},  # a misplaced digit: the next open is then half of it
        {"close": -100.0, "low": -100.0},
        {
            "session": dt.date(2012, 1, 7),
            "open": 50.0,
            "high": 50.0,
            "low": 50.0,
            "close": 50.0,
            "split_factor": 2.0,
        },
    ],
    ids=["ohlc", "positive", "calendar"],
)
def test_a_bad_row_does_not_make_the_good_row_after_it_look_like_a_split(
    week: list[dict[str, object]], calendar: TradingCalendar, values: dict[str, object]
) -> None:
    week[3] |= values
    verdict = validate_bars(table(week), calendar)
    assert {v.origin for v in verdict.violations} == {"AAA:2012-01-06"}
    assert verdict.rows.num_rows == 9


def test_a_split_is_seen_behind_a_bad_row(week: list[dict[str, object]], calendar: TradingCalendar) -> None:
    week[3] |= {"close": NAN}
    week[4] |= {"open": 50.0, "high": 50.5, "low": 49.5, "close": 50.0}
    assert broken(validate_bars(table(week), calendar)) == [
        ("numbers", "AAA:2012-01-06"),
        ("unrecorded_split", "AAA:2012-01-09"),
    ]


def test_a_session_beyond_the_calendar_is_not_called_a_holiday(bar: MakeBar) -> None:
    # 2013-06-03 was an ordinary Monday; this calendar just ends before it.
    calendar = TradingCalendar(dt.date(2012, 1, 3), dt.date(2012, 12, 31))
    verdict = validate_bars(table([bar("2013-06-03")]), calendar)
    assert [v.rule for v in verdict.violations] == ["calendar"]
    assert "holiday" not in verdict.violations[0].reason


def test_an_empty_table_of_bars_is_fine(calendar: TradingCalendar, raw_bars: pa.Table) -> None:
    empty = BARS.empty_table()
    for history in (None, empty, raw_bars.slice(0, 30)):
        verdict = validate_bars(empty, calendar, history)
        assert (verdict.rows.num_rows, verdict.violations) == (0, [])
        assert verdict.rows.schema == BARS
        assert price_jumps(empty, history) == []


cell = st.sampled_from([100.0, 100.0, 100.0, 100.4, 99.6, 0.0, -1.0, 250.0, NAN, INF])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["AAA", "BBB"]),
            st.integers(0, 9),
            cell,
            st.sampled_from([101.0, 101.0, 101.0, 99.0, NAN]),
            st.sampled_from([99.0, 99.0, 99.0, 101.0, -3.0]),
            cell,
            st.sampled_from([1e6, 1e6, 1e6, 0.0, NAN]),
        ),
        max_size=8,
    )
)
def test_rows_are_kept_or_reported_and_kept_rows_obey_the_rules(
    calendar: TradingCalendar, bar: MakeBar, rows: list[tuple]
) -> None:
    made = []
    for i, (symbol, day, open_, high, low, close, volume) in enumerate(rows):
        date = dt.date(2012, 1, 3) + dt.timedelta(days=day)
        values = {"open": open_, "high": high, "low": low, "close": close, "volume": volume}
        made.append(bar(str(date), symbol, origin=str(i), **values))
    verdict = validate_bars(table(made), calendar)
    kept, reported = set(origins(verdict.rows)), {v.origin for v in verdict.violations}
    assert kept.isdisjoint(reported)
    assert kept | reported == {row["origin"] for row in made}
    seen = set()
    for row in verdict.rows.to_pylist():
        numbers = [row[c] for c in ("open", "high", "low", "close", "volume")]
        assert all(math.isfinite(x) and x > 0 for x in numbers)
        assert row["low"] <= min(row["open"], row["close"]) <= max(row["open"], row["close"]) <= row["high"]
        assert row["session"].weekday() < 5
        assert (row["symbol"], row["session"]) not in seen
        seen.add((row["symbol"], row["session"]))


# -------------------------------------------------------------------------------- splits nobody recorded


def without_split(rows: pa.Table, symbol: str, session: dt.date) -> pa.Table:
    """The rows with one recorded split forgotten."""
    here = pc.and_(pc.equal(rows["symbol"], symbol), pc.equal(rows["session"], pa.scalar(session)))
    factor = pc.if_else(here, 1.0, rows["split_factor"])
    return rows.set_column(rows.column_names.index("split_factor"), "split_factor", factor)


def night(rows: pa.Table, calendar: TradingCalendar, session: dt.date) -> tuple[pa.Table, pa.Table]:
    """One session's rows, and the history that a nightly run reads: the 25 sessions before it."""
    before = calendar.shift(session, -25)
    day = rows["session"]
    history = rows.filter(pc.and_(pc.greater_equal(day, pa.scalar(before)), pc.less(day, pa.scalar(session))))
    return rows.filter(pc.equal(day, pa.scalar(session))), history


def test_the_sample_has_exactly_the_three_splits_that_these_tests_know(raw_bars: pa.Table) -> None:
    events = raw_bars.filter(pc.not_equal(raw_bars["split_factor"], 1.0)).to_pylist()
    assert sorted((r["symbol"], r["session"]) for r in events) == sorted(SPLITS)
    assert {r["split_factor"] for r in events} == {2.0}


@pytest.mark.parametrize(("symbol", "session"), SPLITS)
def test_a_forgotten_split_of_the_sample_is_caught(
    raw_bars: pa.Table, calendar: TradingCalendar, symbol: str, session: dt.date
) -> None:
    verdict = validate_bars(without_split(raw_bars, symbol, session), calendar)
    assert [v.rule for v in verdict.violations] == ["unrecorded_split"]
    row = json.loads(verdict.violations[0].row)
    assert (row["symbol"], row["session"]) == (symbol, str(session))
    assert verdict.violations[0].origin.startswith("bokeh_sampledata/stocks.csv.gz:")
    assert verdict.rows.num_rows == raw_bars.num_rows - 1


@pytest.mark.parametrize(("symbol", "session"), SPLITS)
def test_a_forgotten_split_is_caught_in_a_single_night(
    raw_bars: pa.Table, calendar: TradingCalendar, symbol: str, session: dt.date
) -> None:
    forgotten = without_split(raw_bars, symbol, session)
    rows, history = night(forgotten, calendar, session)
    assert [v.rule for v in validate_bars(rows, calendar, history).violations] == ["unrecorded_split"]
    # It is the history that shows it: one bar alone has nothing to compare with.
    assert validate_bars(rows, calendar).violations == []
    # And the recorded split passes.
    rows, history = night(raw_bars, calendar, session)
    assert validate_bars(rows, calendar, history).violations == []


def test_the_crash_of_aapl_is_no_split(raw_bars: pa.Table, calendar: TradingCalendar) -> None:
    rows, history = night(raw_bars, calendar, CRASH[1])
    verdict = validate_bars(rows, calendar, history)
    assert "AAPL" in verdict.rows["symbol"].to_pylist()
    assert verdict.violations == []


@pytest.mark.parametrize(
    ("volume", "expected"),
    # At half the price, 2 million shares are the usual dollars; 2.2 million at ten times that are a panic.
    [(2e6, ["unrecorded_split"]), (20e6, [])],
)
def test_half_the_price_is_a_split_on_ordinary_dollar_volume_and_a_crash_on_ten_times_that(
    week: list[dict[str, object]], calendar: TradingCalendar, volume: float, expected: list[str]
) -> None:
    week[4] |= {"open": 50.0, "high": 50.5, "low": 49.5, "close": 50.0, "volume": volume}
    assert [v.rule for v in validate_bars(table(week), calendar).violations] == expected


@pytest.mark.parametrize(
    ("recorded", "price"), [(3.0, 50.0), (2.0, 100.0), (0.5, 400.0)], ids=["wrong", "phantom", "reverse"]
)
def test_a_split_recorded_with_the_wrong_ratio_is_caught(
    week: list[dict[str, object]], calendar: TradingCalendar, recorded: float, price: float
) -> None:
    week[4] |= {
        "open": price,
        "high": price,
        "low": price,
        "close": price,
        "split_factor": recorded,
        "volume": 1e8 / price,  # the usual dollars
    }
    assert [v.rule for v in validate_bars(table(week), calendar).violations] == ["unrecorded_split"]


def test_a_reverse_split_that_is_recorded_passes(
    week: list[dict[str, object]], calendar: TradingCalendar
) -> None:
    values = dict.fromkeys(("open", "high", "low", "close"), 1000.0)
    week[4] |= {**values, "split_factor": 0.1, "volume": 1e5}
    assert validate_bars(table(week), calendar).violations == []


def test_the_figures_that_justify_the_thresholds(raw_bars: pa.Table) -> None:
    # Recomputed from the definition in the comment above SPLIT_RATIOS: open over the previous close, and dollar
    # volume over the median of the 20 sessions before.
    frame = raw_bars.to_pandas().sort_values(["symbol", "session"])
    groups = frame.groupby("symbol")
    frame["ratio"] = frame["open"] / groups["close"].shift(1)
    frame["dollars"] = frame["close"] * frame["volume"]
    usual = frame.groupby("symbol")["dollars"].transform(lambda x: x.shift(1).rolling(20).median())
    frame["multiple"] = frame["dollars"] / usual
    at = frame.set_index(["symbol", "session"])
    assert at.loc[CRASH, "ratio"] == pytest.approx(0.527, abs=5e-4)
    assert at.loc[CRASH, "multiple"] == pytest.approx(9.97, abs=5e-3)
    for split in SPLITS:
        assert abs(2 * at.loc[split, "ratio"] - 1) < 0.02
        assert at.loc[split, "multiple"] < 0.8
    # So both thresholds separate the crash from the splits.
    assert 0.8 < validation.SPLIT_DOLLAR_VOLUME_MULTIPLE < at.loc[CRASH, "multiple"]
    assert 0.02 < validation.SPLIT_RATIO_TOLERANCE < 2 * at.loc[CRASH, "ratio"] - 1


# ----------------------------------------------------------------------------------------- jumps and gaps


def test_the_only_jump_of_the_sample_is_the_crash_of_aapl(raw_bars: pa.Table) -> None:
    assert price_jumps(raw_bars) == [{"symbol": "AAPL", "session": "2000-09-29", "return_pct": -51.87}]


def test_a_jump_is_seen_in_a_single_night_and_history_is_not_reported_again(
    raw_bars: pa.Table, calendar: TradingCalendar
) -> None:
    rows, history = night(raw_bars, calendar, CRASH[1])
    assert [j["symbol"] for j in price_jumps(rows, history)] == ["AAPL"]
    after, history = night(raw_bars, calendar, calendar.shift(CRASH[1], 1))
    assert price_jumps(after, history) == []


def test_splits_and_dividends_are_no_jumps(bar: MakeBar) -> None:
    split = [bar("2012-01-03"), bar("2012-01-04", close=50.0, split_factor=2.0)]
    paid = [bar("2012-01-03", "PAID"), bar("2012-01-04", "PAID", close=45.0, dividend=55.0)]
    fell = [bar("2012-01-03", "FELL"), bar("2012-01-04", "FELL", close=59.9)]
    rose = [bar("2012-01-03", "ROSE"), bar("2012-01-04", "ROSE", close=140.0)]
    found = price_jumps(table(split + paid + fell + rose))
    # Exactly 40 % does not exceed 40 %.
    assert found == [{"symbol": "FELL", "session": "2012-01-04", "return_pct": -40.1}]


def test_the_sample_has_no_missing_session_although_symbols_were_listed_later(
    raw_bars: pa.Table, calendar: TradingCalendar
) -> None:
    first_of_fb = min(r["session"] for r in raw_bars.to_pylist() if r["symbol"] == "FB")
    assert first_of_fb == dt.date(
        2012, 5, 18
    )  # far inside the range, and not one session before it is expected
    assert missing_sessions(raw_bars, calendar, FIRST_SESSION, LAST_SESSION) == []


def days(bar: MakeBar, symbol: str, sessions: list[str]) -> list[dict[str, object]]:
    return [bar(day, symbol) for day in sessions]


FIRST, LAST = dt.date(2012, 1, 3), dt.date(2012, 1, 9)


def test_gaps_are_listed_in_order_and_weekends_are_none(bar: MakeBar, calendar: TradingCalendar) -> None:
    rows = table(days(bar, "BBB", [WEEK[0], WEEK[2], WEEK[4]]) + days(bar, "AAA", [WEEK[0], *WEEK[2:]]))
    assert missing_sessions(rows, calendar, FIRST, LAST) == [
        ("AAA", dt.date(2012, 1, 4)),
        ("BBB", dt.date(2012, 1, 4)),
        ("BBB", dt.date(2012, 1, 6)),
    ]


def test_a_symbol_that_stops_is_missing_to_the_end_of_the_range(
    bar: MakeBar, calendar: TradingCalendar
) -> None:
    rows = table(days(bar, "AAA", WEEK) + days(bar, "GONE", WEEK[:3]))
    expected = [("GONE", dt.date(2012, 1, 6)), ("GONE", dt.date(2012, 1, 9))]
    assert missing_sessions(rows, calendar, FIRST, LAST) == expected


def test_a_symbol_of_the_history_is_expected_from_the_first_session_on(
    bar: MakeBar, calendar: TradingCalendar
) -> None:
    rows = table(days(bar, "AAA", WEEK) + days(bar, "LATE", WEEK[2:]))
    history = table([bar("2011-12-30", symbol) for symbol in ("AAA", "LATE", "GONE")])
    gone = [("GONE", dt.date.fromisoformat(day)) for day in WEEK]
    late = [("LATE", dt.date(2012, 1, 3)), ("LATE", dt.date(2012, 1, 4))]
    assert missing_sessions(rows, calendar, FIRST, LAST, history) == gone + late
    # Without history GONE is unknown and LATE was listed on its first bar.
    assert missing_sessions(rows, calendar, FIRST, LAST) == []
    assert missing_sessions(rows, calendar, FIRST, LAST, BARS.empty_table()) == []


def test_a_night_without_any_bar_misses_every_known_symbol(bar: MakeBar, calendar: TradingCalendar) -> None:
    empty, history = BARS.empty_table(), table([bar("2012-01-03", "AAA"), bar("2012-01-03", "BBB")])
    one = dt.date(2012, 1, 4)
    assert missing_sessions(empty, calendar, one, one, history) == [("AAA", one), ("BBB", one)]
    assert missing_sessions(empty, calendar, one, one) == []


# ---------------------------------------------------------------------------------------------- news


def article(name: str = "a", **values: object) -> dict[str, object]:
    """An article of Tuesday morning, 10:00 in New York, unless said otherwise."""
    return {
        "article_id": name,
        "symbol": "AAA",
        "published_at": utc("2012-01-03T15:00:00"),
        "dated_session": None,
        "title": "title",
        "url": "https://example.com",
        "sentiment_score": 0.2,
        "relevance_score": 0.5,
        "origin": f"news:{name}",
        **values,
    }


def test_every_article_of_the_sample_passes_every_rule(raw_news: pa.Table, calendar: TradingCalendar) -> None:
    verdict = validate_news(raw_news, calendar)
    assert verdict.violations == []
    assert verdict.rows.num_rows == raw_news.num_rows > 20_000
    assert verdict.checked == NEWS_RULES
    # Known when published, and never after the close of the session that it belongs to.
    assert verdict.rows["available_at"].equals(raw_news["published_at"])
    closes = {day: calendar.close(day) for day in set(verdict.rows["session"].to_pylist())}
    late = [
        r
        for r in verdict.rows.select(["session", "available_at"]).to_pylist()
        if r["available_at"] > closes[r["session"]]
    ]
    assert late == []


@pytest.mark.parametrize(
    ("rule", "values", "reason"),
    [
        ("score", {"sentiment_score": 1.01}, "sentiment_score = 1.01"),
        ("score", {"sentiment_score": -1.5}, "sentiment_score = -1.5"),
        ("score", {"sentiment_score": NAN}, "sentiment_score = nan"),
        ("score", {"sentiment_score": None}, "sentiment_score = nan"),
        ("score", {"relevance_score": 1.1}, "relevance_score = 1.1"),
        ("score", {"relevance_score": -0.1}, "relevance_score = -0.1"),
        ("score", {"relevance_score": NAN}, "relevance_score = nan"),
        ("calendar", {"published_at": None}, "session = None"),
        (
            "calendar",
            {"published_at": None, "dated_session": dt.date(2012, 1, 7)},
            "session = 2012-01-07",  # a Saturday
        ),
        ("calendar", {"published_at": utc("1999-12-01T15:00:00")}, "published_at = 1999-12-01"),
        ("calendar", {"published_at": utc("2030-01-02T15:00:00")}, "published_at = 2030-01-02"),
    ],
)
def test_an_article_that_breaks_one_rule_is_reported_by_that_rule_alone(
    calendar: TradingCalendar, rule: str, values: dict[str, object], reason: str
) -> None:
    rows = [article("good"), article("bad", **values), article("fine")]
    verdict = validate_news(table(rows, NEWS), calendar)
    assert broken(verdict) == [(rule, "news:bad")]
    assert reason in verdict.violations[0].reason
    assert json.loads(verdict.violations[0].row)["article_id"] == "bad"
    assert verdict.rows["article_id"].to_pylist() == ["good", "fine"]


def test_scores_at_the_ends_of_their_ranges_are_allowed(calendar: TradingCalendar) -> None:
    ends = [(-1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    rows = [
        article(str(i), sentiment_score=score, relevance_score=relevance)
        for i, (score, relevance) in enumerate(ends)
    ]
    assert validate_news(table(rows, NEWS), calendar).violations == []


def test_an_article_twice_for_one_ticker_is_reported_and_for_two_tickers_is_not(
    calendar: TradingCalendar,
) -> None:
    rows = [
        article("a"),
        article("a", symbol="BBB", origin="other ticker"),
        article("b", origin="one"),
        article("b", origin="two", sentiment_score=0.3),
    ]
    verdict = validate_news(table(rows, NEWS), calendar)
    assert broken(verdict) == [("unique", "one"), ("unique", "two")]
    assert verdict.violations[0].reason == "article b has AAA more than once"
    assert origins(verdict.rows) == ["news:a", "other ticker"]


@pytest.mark.parametrize(
    ("published", "session"),
    [
        ("2012-01-03T15:00:00", "2012-01-03"),  # in trading hours
        ("2012-01-03T03:00:00", "2012-01-03"),  # the night before
        ("2012-01-03T21:00:00", "2012-01-03"),  # with the close itself
        ("2012-01-03T21:00:01", "2012-01-04"),  # a second after it
        ("2012-01-06T22:00:00", "2012-01-09"),  # Friday evening
        ("2012-01-07T12:00:00", "2012-01-09"),  # Saturday
        ("2012-01-14T12:00:00", "2012-01-17"),  # before a Monday that is a holiday
        ("2012-11-23T18:00:00", "2012-11-23"),  # 13:00 of a half day
        ("2012-11-23T18:30:00", "2012-11-26"),  # after it
        ("2012-07-02T20:00:00", "2012-07-02"),  # 16:00 in summer
        ("2012-07-02T20:30:00", "2012-07-03"),
        # News of the evening before the first session belong to it: it is the first session that they can move.
        ("2000-02-29T22:00:00", "2000-03-01"),
    ],
)
def test_an_article_belongs_to_the_first_session_that_closes_after_it(
    calendar: TradingCalendar, published: str, session: str
) -> None:
    verdict = validate_news(table([article(published_at=utc(published))], NEWS), calendar)
    assert verdict.violations == []
    row = verdict.rows.to_pylist()[0]
    assert row["session"] == dt.date.fromisoformat(session)
    assert row["available_at"] == utc(published)


def test_an_article_that_names_only_its_session_is_known_after_the_close_and_counts_for_the_next(
    calendar: TradingCalendar,
) -> None:
    rows = [
        article("a", published_at=None, dated_session=dt.date(2012, 1, 6)),
        article("b", published_at=None, dated_session=dt.date(2012, 11, 23)),
    ]
    first, half_day = validate_news(table(rows, NEWS), calendar).rows.to_pylist()
    assert (first["session"], first["available_at"]) == (dt.date(2012, 1, 9), utc("2012-01-06T21:00:01"))
    assert (half_day["session"], half_day["available_at"]) == (
        dt.date(2012, 11, 26),
        utc("2012-11-23T18:00:01"),
    )


@pytest.mark.parametrize("seed", [7, 17, 26])
def test_the_first_night_of_the_simulated_news_passes_with_any_seed(
    calendar: TradingCalendar, seed: int
) -> None:
    # These seeds draw an article for the evening before the first session.
    rows = SampleSource(seed=seed).news(FIRST_SESSION, FIRST_SESSION)
    assert validate_news(rows, calendar).violations == []


def test_an_empty_table_of_news_is_fine(calendar: TradingCalendar) -> None:
    verdict = validate_news(NEWS.empty_table(), calendar)
    assert (verdict.rows.num_rows, verdict.violations) == (0, [])
    assert {"session", "available_at"} <= set(verdict.rows.column_names)


# --------------------------------------------------------------------------------------- minute bars


def minute(start: str = "2012-01-03T15:00:00", **values: object) -> dict[str, object]:
    return {
        "symbol": "AAA",
        "ts": utc(start),
        "open": 100.0,
        "high": 100.2,
        "low": 99.8,
        "close": 100.1,
        "volume": 500.0,
        "bid": 100.05,
        "ask": 100.15,
        "bid_size": 300.0,
        "ask_size": 200.0,
        "origin": f"minute:{start}",
        **values,
    }


@pytest.mark.parametrize(
    ("rule", "values", "reason"),
    [
        ("numbers", {"close": NAN}, "close = nan"),
        ("numbers", {"volume": INF}, "volume = inf"),
        ("positive", {"volume": -1.0}, "volume = -1"),
        ("positive", {"low": 0.0}, "low = 0"),
        ("ohlc", {"high": 99.9}, "high 99.9"),
        ("ohlc", {"low": 100.05}, "low 100.05"),
        ("calendar", {"ts": utc("2012-01-03T14:29:00")}, "outside trading hours"),  # 09:29 in New York
        ("calendar", {"ts": utc("2012-01-03T21:00:00")}, "outside trading hours"),  # 16:00
        ("calendar", {"ts": utc("2012-07-02T20:00:00")}, "outside trading hours"),  # 16:00 in summer
        ("calendar", {"ts": utc("2012-11-23T18:00:00")}, "outside trading hours"),  # 13:00 of a half day
        ("calendar", {"ts": utc("2012-11-23T20:00:00")}, "outside trading hours"),
        ("calendar", {"ts": utc("2012-01-07T15:00:00")}, "outside trading hours"),  # Saturday
        ("calendar", {"ts": utc("2012-07-04T15:00:00")}, "outside trading hours"),  # a holiday
        ("calendar", {"ts": utc("2030-01-02T15:00:00")}, "outside trading hours"),  # beyond the calendar
        ("quotes", {"bid": 100.2}, "bid 100.2 x 300.0, ask 100.15"),  # crossed
        ("quotes", {"bid": -1.0}, "bid -1.0"),
        ("quotes", {"bid": 0.0}, "bid 0.0"),
        ("quotes", {"bid": NAN, "ask": 0.0}, "ask 0.0"),
        ("quotes", {"bid_size": -1.0}, "x -1.0"),
        ("quotes", {"ask_size": -1.0}, "x -1.0"),
    ],
)
def test_a_minute_that_breaks_one_rule_is_reported_by_that_rule_alone(
    calendar: TradingCalendar, rule: str, values: dict[str, object], reason: str
) -> None:
    rows = [
        minute("2012-01-03T15:01:00"),
        minute(**{"origin": "bad", **values}),
        minute("2012-01-03T15:02:00"),
    ]
    verdict = validate_minute_bars(table(rows, MINUTE_BARS), calendar)
    assert broken(verdict) == [(rule, "bad")]
    assert reason in verdict.violations[0].reason
    assert origins(verdict.rows) == ["minute:2012-01-03T15:01:00", "minute:2012-01-03T15:02:00"]
    assert verdict.checked == MINUTE_BAR_RULES


@pytest.mark.parametrize(
    ("ts", "session"),
    [
        ("2012-01-03T14:30:00", "2012-01-03"),  # the first minute
        ("2012-01-03T20:59:00", "2012-01-03"),  # the last
        ("2012-07-02T13:30:00", "2012-07-02"),  # summer time
        ("2012-07-02T19:59:00", "2012-07-02"),
        ("2012-11-23T17:59:00", "2012-11-23"),  # the last minute of a half day
    ],
)
def test_a_minute_within_trading_hours_is_known_at_its_end(
    calendar: TradingCalendar, ts: str, session: str
) -> None:
    verdict = validate_minute_bars(table([minute(ts)], MINUTE_BARS), calendar)
    assert verdict.violations == []
    row = verdict.rows.to_pylist()[0]
    assert row["session"] == dt.date.fromisoformat(session)
    assert row["available_at"] == utc(ts) + dt.timedelta(minutes=1)


@pytest.mark.parametrize(
    "values",
    [
        {"volume": 0.0},  # nobody traded in that minute
        {"bid": None, "ask": None, "bid_size": None, "ask_size": None},  # bars without quotes
        {"bid": 100.1, "ask": 100.1},  # locked, not crossed
        {"bid_size": 0.0},
    ],
    ids=["no trade", "no quote", "locked", "no size"],
)
def test_quiet_minutes_are_fine(calendar: TradingCalendar, values: dict[str, object]) -> None:
    assert validate_minute_bars(table([minute(**values)], MINUTE_BARS), calendar).violations == []


def test_a_minute_twice_is_reported_and_two_symbols_in_one_minute_are_not(calendar: TradingCalendar) -> None:
    rows = [minute(origin="one"), minute(origin="two"), minute(symbol="BBB", origin="other")]
    verdict = validate_minute_bars(table(rows, MINUTE_BARS), calendar)
    assert broken(verdict) == [("unique", "one"), ("unique", "two")]
    assert origins(verdict.rows) == ["other"]


def test_an_empty_table_of_minute_bars_is_fine(calendar: TradingCalendar) -> None:
    verdict = validate_minute_bars(MINUTE_BARS.empty_table(), calendar)
    assert (verdict.rows.num_rows, verdict.violations) == (0, [])
    assert {"session", "available_at"} <= set(verdict.rows.column_names)


def test_every_minute_of_a_session_is_accepted_and_no_other_of_the_day(calendar: TradingCalendar) -> None:
    # All 1,440 minutes of a UTC day, against the clock of New York.
    instants = pd.date_range("2012-11-23", periods=1440, freq="min", tz="UTC")
    rows = [minute(t.strftime("%Y-%m-%dT%H:%M:%S")) for t in instants]
    kept = validate_minute_bars(table(rows, MINUTE_BARS), calendar).rows["ts"].to_pylist()
    local = instants.tz_convert("America/New_York")
    open_ = (local.hour * 60 + local.minute >= 570) & (
        local.hour < 13
    )  # 09:30 to 13:00: the day after Thanksgiving
    assert kept == list(instants[open_].to_pydatetime())
    assert len(kept) == 210
