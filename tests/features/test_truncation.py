"""The truncation proof: honest tables pass, and every kind of look-ahead that we could think of is caught."""

import datetime as dt
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from quant_assets.features.labels import LabelParameters, labels
from quant_assets.features.sentiment import sentiment_features
from quant_assets.features.tables import LABELS
from quant_assets.features.technical import technical_features
from quant_assets.features.truncation import Build, cut, truncation_violations
from quant_resources.calendar import TradingCalendar
from quant_resources.duckdb import query
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION

# Around splits, dividends and the crash; the last one has nothing behind it that could be cut away.
SESSIONS = [
    dt.date.fromisoformat(day)
    for day in (
        "2000-03-30",
        "2000-06-20",
        "2000-06-21",
        "2000-09-28",
        "2000-09-29",
        "2003-02-14",
        "2004-11-15",
        "2005-02-25",
        "2005-02-28",
        "2012-06-18",
        "2013-03-01",
    )
]

Inputs = Mapping[str, pa.Table]
Prove = Callable[..., list[dict[str, object]]]


def between(table: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    day = table["session"]
    return table.filter(pc.and_(pc.greater_equal(day, pa.scalar(first)), pc.less_equal(day, pa.scalar(last))))


# ------------------------------------------------------------------------------------------- honest tables


def test_technical_features_need_nothing_from_later(
    sample_bars: pa.Table, sample_technical: pa.Table, calendar: TradingCalendar
) -> None:
    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        return technical_features(inputs["bars"], calendar, first, last)

    assert truncation_violations(build, {"bars": sample_bars}, sample_technical, SESSIONS, calendar) == []


def test_sentiment_features_need_nothing_from_later(
    sample_bars: pa.Table, sample_news: pa.Table, sample_sentiment: pa.Table, calendar: TradingCalendar
) -> None:
    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        return sentiment_features(inputs["news"], inputs["bars"], calendar, first, last, "simulated")

    inputs = {"bars": sample_bars, "news": sample_news}
    assert truncation_violations(build, inputs, sample_sentiment, SESSIONS, calendar) == []


@pytest.mark.parametrize("rule", ["first_touch", "any_order"])
def test_labels_are_complete_at_the_close_of_their_known_session(
    sample_bars: pa.Table, calendar: TradingCalendar, rule: str
) -> None:
    parameters = LabelParameters(rule=rule)

    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        return labels(inputs["bars"], calendar, first, last, parameters)

    stored = LABELS.conform(build({"bars": sample_bars}, FIRST_SESSION, LAST_SESSION))
    found = truncation_violations(
        build, {"bars": sample_bars}, stored, SESSIONS, calendar, slice_column="known_session"
    )
    assert found == []


# ---------------------------------------------------------------------------------- features that look ahead


@pytest.fixture(scope="module")
def two_years(sample_bars: pa.Table) -> pa.Table:
    """Bars of 2004 and 2005: a split of AAPL, the special dividend of MSFT, the listing of GOOG."""
    return between(sample_bars, dt.date(2004, 1, 2), dt.date(2005, 12, 30))


@pytest.fixture(scope="module")
def prove(two_years: pa.Table, sample_news: pa.Table, calendar: TradingCalendar) -> Prove:
    """Store what a build makes of everything, then prove a few sessions, like the check does."""
    news = between(sample_news, dt.date(2004, 1, 2), dt.date(2005, 12, 30))
    sessions = [dt.date(2004, 3, 1), dt.date(2004, 11, 12), dt.date(2005, 2, 25), dt.date(2005, 6, 1)]

    def run(build: Build, slice_column: str = "session") -> list[dict[str, object]]:
        inputs = {"bars": two_years, "news": news}
        stored = build(inputs, dt.date(2004, 1, 2), dt.date(2005, 12, 30))
        assert stored.num_rows > 1000
        return truncation_violations(build, inputs, stored, sessions, calendar, slice_column)

    return run


def feature(expression: str) -> Build:
    """A feature `value` in SQL over bars; `w` is the symbol's bars in order."""

    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        sql = f"""
        WITH steps AS (SELECT *, split_factor * (1 + dividend / close) AS step FROM bars),
        all_ AS (
          SELECT symbol, session, available_at, {expression} AS value FROM steps
          WINDOW w AS (PARTITION BY symbol ORDER BY session)
        )
        SELECT * FROM all_ WHERE session BETWEEN $first AND $last ORDER BY symbol, session"""
        return query(sql, {"bars": inputs["bars"]}, {"first": first, "last": last})

    return build


FROM_HERE = "PARTITION BY symbol ORDER BY session"


# The honest ones are exact whatever the order of their rows: a running sum of DuckDB may differ in its last bit.
@pytest.mark.parametrize(
    ("peeking", "honest"),
    [
        ("lead(close) OVER w", "lag(close) OVER w"),
        ("lead(close) OVER w / close - 1", "close / lag(close) OVER w - 1"),
        (
            "(lag(close) OVER w + close + lead(close) OVER w) / 3",
            "(lag(close, 2) OVER w + lag(close) OVER w + close) / 3",
        ),
        (
            "(close - avg(close) OVER (PARTITION BY symbol)) / stddev(close) OVER (PARTITION BY symbol)",
            "close / min(close) OVER w",
        ),
        ("close / max(close) OVER (PARTITION BY symbol)", "close / max(close) OVER w"),
        ("percent_rank() OVER (PARTITION BY symbol ORDER BY close)", "close"),
        (
            # As vendors deliver it: adjusted backwards from the last row, so that each event rewrites history.
            f"close / coalesce(product(step) OVER ({FROM_HERE} ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 1)",
            "close * product(split_factor) OVER w",
        ),
        ("last_value(close) OVER (PARTITION BY symbol)", "first_value(close) OVER w"),
        ("count(*) OVER (PARTITION BY symbol)", "count(*) OVER w"),
        # Through the rows of other symbols: their later days.
        ("avg(close) OVER ()", "max(close) OVER (PARTITION BY session)"),
    ],
    ids=[
        "tomorrow's close",
        "tomorrow's return",
        "centred window",
        "normalised by the whole sample",
        "distance to the all-time high",
        "rank within the whole sample",
        "adjusted backwards from today",
        "the last price",
        "the length of the series",
        "the market's mean of all days",
    ],
)
def test_a_feature_that_peeks_is_caught_and_its_honest_sister_is_not(
    prove: Prove, peeking: str, honest: str
) -> None:
    caught = prove(feature(peeking))
    assert {row["column"] for row in caught} == {"value"}
    # A year before the split of AAPL and its highest prices, every one of them differs.
    assert ("2004-03-01", "AAPL") in {(row["session"], row["symbol"]) for row in caught}
    assert all(row["stored"] != row["rebuilt"] for row in caught)
    assert prove(feature(honest)) == []


def test_backward_adjustment_is_caught_only_where_an_event_follows(prove: Prove) -> None:
    # GOOG never paid a dividend nor split in these years, so its history is not rewritten.
    build = feature(
        f"close / coalesce(product(step) OVER ({FROM_HERE} ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 1)"
    )
    symbols = {row["symbol"] for row in prove(build)}
    assert symbols == {"AAPL", "IBM", "MSFT"}


def test_sentiment_from_tomorrows_news_is_caught(prove: Prove, calendar: TradingCalendar) -> None:
    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        # Articles are moved to the session before their own, which had closed when they were published.
        news = inputs["news"]
        early = [calendar.shift(day, -1) for day in news["session"].to_pylist()]
        at = news.column_names.index("session")
        news = news.set_column(at, "session", pa.array(early, pa.date32()))
        return sentiment_features(news, inputs["bars"], calendar, first, last, "simulated")

    caught = prove(build)
    assert {row["session"] for row in caught} == {"2004-03-01", "2004-11-12", "2005-02-25", "2005-06-01"}
    assert {"sentiment_sma_1", "sentiment_sma_16", "article_count"} <= {row["column"] for row in caught}


def test_articles_counted_by_date_instead_of_by_the_clock_are_caught(
    prove: Prove, calendar: TradingCalendar
) -> None:
    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        # The day in New York: what was published in the evening counts for the session that has closed.
        sql = """
        SELECT bars.symbol, bars.session, any_value(bars.available_at) AS available_at, count(article_id) AS value
        FROM bars LEFT JOIN news ON bars.symbol = news.symbol
          AND bars.session = CAST(news.available_at AT TIME ZONE 'America/New_York' AS DATE)
        WHERE bars.session BETWEEN $first AND $last GROUP BY ALL ORDER BY ALL"""
        return query(sql, dict(inputs), {"first": first, "last": last})

    caught = prove(build)
    assert {row["column"] for row in caught} == {"value"}


def test_the_label_itself_is_no_feature(prove: Prove, calendar: TradingCalendar) -> None:
    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        rows = labels(inputs["bars"], calendar, FIRST_SESSION, LAST_SESSION)
        return between(rows, first, last)

    # Stored under the session of the decision, it is not there yet when that session closes.
    caught = prove(build)
    assert {row["column"] for row in caught} == {"(row)"}
    assert {(row["stored"], row["rebuilt"]) for row in caught} == {("present", "absent")}
    assert len(caught) == 3 + 3 * 4  # GOOG was listed in August 2004


def test_labels_that_claim_to_be_known_a_session_too_early_are_caught(
    prove: Prove, calendar: TradingCalendar
) -> None:
    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        rows = labels(inputs["bars"], calendar, FIRST_SESSION, LAST_SESSION)
        early = [calendar.shift(day, -1) for day in rows["known_session"].to_pylist()]
        at = rows.column_names.index("known_session")
        rows = rows.set_column(at, "known_session", pa.array(early, pa.date32()))
        day = rows["known_session"]
        return rows.filter(
            pc.and_(pc.greater_equal(day, pa.scalar(first)), pc.less_equal(day, pa.scalar(last)))
        )

    caught = prove(build, slice_column="known_session")
    assert {row["column"] for row in caught} == {"(row)"}
    assert {row["session"] for row in caught} == {"2004-03-01", "2004-11-12", "2005-02-25", "2005-06-01"}


# ----------------------------------------------------------------------------------- stored rows that differ

DAY = dt.date(2005, 2, 28)


@pytest.fixture(scope="module")
def compare(sample_bars: pa.Table, calendar: TradingCalendar) -> Callable[[pa.Table], list[dict]]:
    """Prove one session of a stored table of closes."""
    bars = between(sample_bars, dt.date(2005, 2, 1), dt.date(2005, 3, 31))

    def run(stored: pa.Table) -> list[dict]:
        return truncation_violations(feature("close"), {"bars": bars}, stored, [DAY], calendar)

    return run


@pytest.fixture
def stored(sample_bars: pa.Table) -> pa.Table:
    rows = between(sample_bars, dt.date(2005, 2, 25), dt.date(2005, 3, 1))
    return rows.select(["symbol", "session", "available_at"]).append_column("value", rows["close"])


def position(table: pa.Table, symbol: str, session: dt.date) -> int:
    rows = zip(table["symbol"].to_pylist(), table["session"].to_pylist(), strict=True)
    return list(rows).index((symbol, session))


def put(table: pa.Table, symbol: str, session: dt.date, value: float) -> pa.Table:
    values = table["value"].to_pylist()
    values[position(table, symbol, session)] = value
    return table.set_column(3, "value", pa.array(values, pa.float64()))


def test_what_is_stored_and_what_is_rebuilt_agree(
    compare: Callable[..., list[dict]], stored: pa.Table
) -> None:
    assert compare(stored) == []


def test_a_changed_value_is_named_with_its_column_and_both_values(
    compare: Callable[..., list[dict]], stored: pa.Table
) -> None:
    assert compare(put(stored, "IBM", DAY, 93.0)) == [
        {"session": "2005-02-28", "symbol": "IBM", "column": "value", "stored": "93.0", "rebuilt": "92.58"}
    ]


def test_a_change_of_the_last_bit_is_caught(compare: Callable[..., list[dict]], stored: pa.Table) -> None:
    found = compare(put(stored, "AAPL", DAY, float(np.nextafter(44.86, 45))))
    assert [(row["symbol"], row["rebuilt"]) for row in found] == [("AAPL", "44.86")]


def test_a_change_on_another_session_is_not_this_sessions(
    compare: Callable[..., list[dict]], stored: pa.Table
) -> None:
    assert compare(put(stored, "IBM", dt.date(2005, 2, 25), 1.0)) == []


def test_a_value_that_is_missing_is_caught(compare: Callable[..., list[dict]], stored: pa.Table) -> None:
    for value, shown in ((float("nan"), "nan"), (None, "None")):
        found = compare(put(stored, "MSFT", DAY, value))
        assert [(row["symbol"], row["column"], row["stored"]) for row in found] == [("MSFT", "value", shown)]


def test_a_wrong_instant_is_caught(compare: Callable[..., list[dict]], stored: pa.Table) -> None:
    instants = stored["available_at"].to_pylist()
    instants[position(stored, "GOOG", DAY)] -= dt.timedelta(seconds=1)
    changed = stored.set_column(2, "available_at", pa.array(instants, pa.timestamp("us", "UTC")))
    assert [(row["symbol"], row["column"]) for row in compare(changed)] == [("GOOG", "available_at")]


def test_a_row_that_is_missing_is_caught(compare: Callable[..., list[dict]], stored: pa.Table) -> None:
    at = position(stored, "GOOG", DAY)
    found = compare(pa.concat_tables([stored.slice(0, at), stored.slice(at + 1)]))
    assert found == [
        {
            "session": "2005-02-28",
            "symbol": "GOOG",
            "column": "(row)",
            "stored": "absent",
            "rebuilt": "present",
        }
    ]


def test_a_row_that_nothing_explains_is_caught(compare: Callable[..., list[dict]], stored: pa.Table) -> None:
    at = position(stored, "GOOG", DAY)
    extra = stored.slice(at, 1).set_column(0, "symbol", pa.array(["ZZZ"]))
    found = compare(pa.concat_tables([stored, extra.cast(stored.schema)]))
    assert [(row["symbol"], row["stored"], row["rebuilt"]) for row in found] == [("ZZZ", "present", "absent")]


@pytest.mark.parametrize("value", [44.86, 1.0])
def test_a_row_that_is_stored_twice_is_caught(
    compare: Callable[..., list[dict]], stored: pa.Table, value: float
) -> None:
    # Whether the second one repeats the first or, as here with 1.0 in front, hides behind it.
    row = put(stored, "AAPL", DAY, value).slice(position(stored, "AAPL", DAY), 1)
    found = compare(pa.concat_tables([row, stored]))
    assert {row["symbol"] for row in found} == {"AAPL"}


def test_values_that_are_not_a_number_on_both_sides_agree(
    sample_bars: pa.Table, calendar: TradingCalendar
) -> None:
    build, bars = feature("CAST('nan' AS DOUBLE)"), between(sample_bars, DAY, DAY)
    stored = build({"bars": bars}, DAY, DAY)
    assert np.isnan(stored["value"].to_numpy()).all()
    assert truncation_violations(build, {"bars": bars}, stored, [DAY], calendar) == []


def test_the_order_of_rows_and_columns_is_no_difference(
    sample_bars: pa.Table, stored: pa.Table, calendar: TradingCalendar
) -> None:
    def build(inputs: Inputs, first: dt.date, last: dt.date) -> pa.Table:
        rows = feature("close")(inputs, first, last)
        return rows.sort_by([("symbol", "descending")]).select(["value", "available_at", "session", "symbol"])

    assert truncation_violations(build, {"bars": sample_bars}, stored, [DAY], calendar) == []


def test_every_session_is_proved_and_reported_by_itself(
    sample_bars: pa.Table, stored: pa.Table, calendar: TradingCalendar
) -> None:
    days = [dt.date(2005, 2, 25), DAY, dt.date(2005, 3, 1)]
    for day in days:
        stored = put(stored, "IBM", day, 0.5)
    found = truncation_violations(feature("close"), {"bars": sample_bars}, stored, days, calendar)
    assert [row["session"] for row in found] == ["2005-02-25", "2005-02-28", "2005-03-01"]


# ------------------------------------------------------------------------------------------------------ cut


def test_what_was_known_at_an_instant_includes_the_instant_itself(
    sample_bars: pa.Table, calendar: TradingCalendar
) -> None:
    close = calendar.close(DAY)
    at = cut({"bars": sample_bars}, close)["bars"]
    assert max(at["session"].to_pylist()) == DAY
    before = cut({"bars": sample_bars}, close - dt.timedelta(microseconds=1))["bars"]
    assert max(before["session"].to_pylist()) == dt.date(2005, 2, 25)


def test_every_input_is_cut_by_its_own_clock(
    sample_bars: pa.Table, sample_news: pa.Table, calendar: TradingCalendar
) -> None:
    close = calendar.close(DAY)
    known = cut({"bars": sample_bars, "news": sample_news}, close)
    for table in known.values():
        assert max(table["available_at"].to_pylist()) <= close
    # Nothing that was known is lost.
    for name, table in (("bars", sample_bars), ("news", sample_news)):
        later = sum(instant > close for instant in table["available_at"].to_pylist())
        assert known[name].num_rows + later == table.num_rows
        assert later > 0
