"""Sentiment features: the mean of a session by hand, its moving means, and which session an article counts for."""

import datetime as dt

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.features.plots import sentiment_correlations
from quant_assets.features.sentiment import LOOKBACK_SESSIONS, sentiment_features
from quant_assets.features.tables import SENTIMENT, SENTIMENT_INPUTS, SENTIMENT_PERIODS
from quant_assets.market.tables import NEWS
from quant_assets.market.validation import validate_news
from quant_resources.calendar import TradingCalendar
from quant_resources.sources import NEWS as SOURCE_NEWS
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION

NIGHTS = ["2000-03-22", "2000-09-29", "2004-09-13", "2005-02-28", "2008-10-10", "2012-06-11", "2013-03-01"]


def bits(table: pa.Table) -> dict[str, bytes | list[object]]:
    """Every column down to the bits: -0.0 is not 0.0 here."""
    return {
        name: table[name].to_numpy().tobytes()
        if pa.types.is_floating(table.schema.field(name).type)
        else table[name].to_pylist()
        for name in table.column_names
    }


def between(table: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    day = table["session"]
    return table.filter(pc.and_(pc.greater_equal(day, pa.scalar(first)), pc.less_equal(day, pa.scalar(last))))


@pytest.fixture(scope="module")
def sessions(calendar: TradingCalendar) -> list[dt.date]:
    """Twenty consecutive sessions."""
    return calendar.sessions(dt.date(2012, 1, 3), LAST_SESSION)[:20]


def bars_of(sessions: list[dt.date], calendar: TradingCalendar, *symbols: str) -> pa.Table:
    """The columns of bars that sentiment reads: who traded when."""
    rows = [
        {"symbol": symbol, "session": s, "available_at": calendar.close(s)}
        for symbol in symbols or ("AAA",)
        for s in sessions
    ]
    schema = pa.schema(
        [("symbol", pa.string()), ("session", pa.date32()), ("available_at", pa.timestamp("us", "UTC"))]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def articles(*rows: tuple[object, ...]) -> pa.Table:
    """(article_id, symbol, session, sentiment_score, relevance_score) as `market.news`."""
    names = ("article_id", "symbol", "session", "sentiment_score", "relevance_score")
    made = [
        {
            **dict(zip(names, row, strict=True)),
            "available_at": dt.datetime.combine(row[2], dt.time(15), dt.UTC),
            "source": "simulated",
        }
        for row in rows
    ]
    return pa.Table.from_pylist(made, schema=NEWS.arrow_schema)


def build(news: pa.Table, bars: pa.Table, calendar: TradingCalendar) -> list[dict[str, object]]:
    return sentiment_features(news, bars, calendar, FIRST_SESSION, LAST_SESSION, "vendor").to_pylist()


# ------------------------------------------------------------------------------------------------- a session


def test_a_session_is_the_mean_of_its_articles_weighted_by_relevance(
    sessions: list[dt.date], calendar: TradingCalendar
) -> None:
    day = sessions[-1]
    news = articles(("a", "AAA", day, 0.5, 0.8), ("b", "AAA", day, -0.2, 0.2), ("c", "AAA", day, 1.0, 0.0))
    row = build(news, bars_of(sessions, calendar), calendar)[-1]
    assert row["session"] == day
    assert row["sentiment_sma_1"] == pytest.approx((0.5 * 0.8 - 0.2 * 0.2) / 1.0, rel=1e-15)
    assert row["article_count"] == 3
    assert row["source"] == "simulated"
    assert row["available_at"] == calendar.close(day)


def test_each_ticker_of_an_article_has_its_own_score(
    sessions: list[dt.date], calendar: TradingCalendar
) -> None:
    # "AAA gains ground on BBB" is good for one and bad for the other; the article's mean, 0.05, is neither's.
    day = sessions[-1]
    news = articles(("a", "AAA", day, 0.7, 0.9), ("a", "BBB", day, -0.6, 0.3))
    rows = build(news, bars_of(sessions, calendar, "AAA", "BBB", "CCC"), calendar)
    found = {r["symbol"]: (r["sentiment_sma_1"], r["article_count"]) for r in rows if r["session"] == day}
    assert found == {
        "AAA": (pytest.approx(0.7, rel=1e-15), 1),
        "BBB": (pytest.approx(-0.6, rel=1e-15), 1),
        "CCC": (0.0, 0),
    }


def test_without_articles_sentiment_is_zero_and_the_count_says_why(
    sessions: list[dt.date], calendar: TradingCalendar
) -> None:
    rows = build(NEWS.arrow_schema.empty_table(), bars_of(sessions, calendar), calendar)
    assert len(rows) == 5
    for row in rows:
        assert {row[name] for name in SENTIMENT_INPUTS} == {0.0}
        assert row["article_count"] == 0
        assert row["source"] == "vendor"


def test_articles_that_are_not_about_the_ticker_count_but_weigh_nothing(
    sessions: list[dt.date], calendar: TradingCalendar
) -> None:
    news = articles(("a", "AAA", sessions[-1], 0.9, 0.0))
    row = build(news, bars_of(sessions, calendar), calendar)[-1]
    assert (row["sentiment_sma_1"], row["article_count"]) == (0.0, 1)


def test_an_article_about_a_ticker_that_did_not_trade_makes_no_row(
    sessions: list[dt.date], calendar: TradingCalendar
) -> None:
    news = articles(("a", "ZZZ", sessions[-1], 0.9, 1.0))
    assert {row["symbol"] for row in build(news, bars_of(sessions, calendar), calendar)} == {"AAA"}


# ---------------------------------------------------------------------------------------------- moving means


def test_the_mean_of_k_sessions_by_hand(sessions: list[dt.date], calendar: TradingCalendar) -> None:
    # One article on every second session; the others count as 0.
    score = [0.05 * i - 0.4 if i % 2 == 0 else 0.0 for i in range(20)]
    news = articles(*((f"{i}", "AAA", sessions[i], score[i], 0.5) for i in range(0, 20, 2)))
    rows = build(news, bars_of(sessions, calendar), calendar)
    assert [row["session"] for row in rows] == sessions[15:]
    for t, row in enumerate(rows, start=15):
        for k in SENTIMENT_PERIODS:
            assert row[f"sentiment_sma_{k}"] == pytest.approx(sum(score[t - k + 1 : t + 1]) / k, abs=1e-15)
        assert row["article_count"] == (1 if t % 2 == 0 else 0)


def test_sixteen_periods() -> None:
    assert [f"sentiment_sma_{k}" for k in range(1, 17)] == list(SENTIMENT_INPUTS)


@pytest.mark.parametrize(("bars", "rows"), [(0, 0), (15, 0), (16, 1), (20, 5)])
def test_the_first_fifteen_bars_have_no_row(
    sessions: list[dt.date], calendar: TradingCalendar, bars: int, rows: int
) -> None:
    found = build(NEWS.arrow_schema.empty_table(), bars_of(sessions[:bars], calendar), calendar)
    assert len(found) == rows


@pytest.mark.parametrize(("missing", "expected"), [(15, 1), (16, 0)])
def test_a_symbol_with_gaps_has_a_row_while_its_16_bars_fit_31_sessions(
    calendar: TradingCalendar, missing: int, expected: int
) -> None:
    days = calendar.sessions(dt.date(2012, 1, 3), LAST_SESSION)[: 16 + missing]
    kept = [*days[:8], *days[8 + missing :]]
    rows = build(NEWS.arrow_schema.empty_table(), bars_of(kept, calendar), calendar)
    assert [row["session"] for row in rows] == [days[-1]] * expected


# ------------------------------------------------------------------------------------------- the whole sample


def test_the_sample_agrees_with_pandas(
    sample_bars: pa.Table, sample_news: pa.Table, sample_sentiment: pa.Table
) -> None:
    news = sample_news.select(["symbol", "session", "sentiment_score", "relevance_score"]).to_pandas()
    news["weighted"] = news["sentiment_score"] * news["relevance_score"]
    sums = news.groupby(["symbol", "session"])[["weighted", "relevance_score"]].sum()
    counts = news.groupby(["symbol", "session"]).size()
    parts = []
    for _, bars in sample_bars.select(["symbol", "session"]).to_pandas().groupby("symbol"):
        index = pd.MultiIndex.from_frame(bars)
        score = (sums["weighted"] / sums["relevance_score"]).reindex(index).fillna(0.0)
        part = pd.DataFrame({f"sentiment_sma_{k}": score.rolling(k).mean() for k in SENTIMENT_PERIODS})
        parts.append(part.assign(article_count=counts.reindex(index).fillna(0)).iloc[15:])
    expected = pd.concat(parts)
    for name, key in (("symbol", 0), ("session", 1)):
        assert sample_sentiment[name].to_pylist() == expected.index.get_level_values(key).to_list()
    for name in (*SENTIMENT_INPUTS, "article_count"):
        np.testing.assert_allclose(
            sample_sentiment[name].to_numpy(), expected[name].to_numpy(), rtol=0, atol=1e-12
        )


def test_sentiment_lies_between_minus_one_and_one(sample_sentiment: pa.Table) -> None:
    for name in SENTIMENT_INPUTS:
        assert np.abs(sample_sentiment[name].to_numpy()).max() <= 1


def test_sentiment_moves_with_the_session_and_says_nothing_about_the_next(
    sample_sentiment: pa.Table, sample_technical: pa.Table
) -> None:
    found = sentiment_correlations(sample_sentiment, sample_technical)
    assert found["pairs"] > 8_000
    assert found["same_session"] == pytest.approx(0.24, abs=0.02)
    # Two standard errors of a correlation of nothing.
    assert abs(found["next_session"]) < 2 / np.sqrt(found["pairs"])


def test_the_correlation_with_the_next_session_would_show_alpha(
    sample_sentiment: pa.Table, sample_technical: pa.Table
) -> None:
    # Positive control: give every session the sentiment of the next one, as a feed with look-ahead would.
    frame = sample_sentiment.select(["symbol", "session", "article_count", "sentiment_sma_1"]).to_pandas()
    columns = ["article_count", "sentiment_sma_1"]
    frame[columns] = frame.groupby("symbol")[columns].shift(-1)
    peeking = pa.Table.from_pandas(frame.dropna(), preserve_index=False)
    assert sentiment_correlations(peeking, sample_technical)["next_session"] == pytest.approx(0.24, abs=0.02)


def test_a_correlation_of_a_handful_of_sessions_is_not_a_number(
    sample_sentiment: pa.Table, sample_technical: pa.Table
) -> None:
    few = between(sample_sentiment, dt.date(2005, 3, 1), dt.date(2005, 3, 4))
    found = sentiment_correlations(few, sample_technical)
    assert 0 < found["pairs"] < 30
    assert np.isnan([found["same_session"], found["next_session"]]).all()


# ------------------------------------------------------------------------------------------------ invariance


@pytest.mark.parametrize("session", NIGHTS)
def test_one_night_and_thirteen_years_give_the_same_bits(
    sample_bars: pa.Table,
    sample_news: pa.Table,
    sample_sentiment: pa.Table,
    calendar: TradingCalendar,
    session: str,
) -> None:
    day = dt.date.fromisoformat(session)
    before = calendar.shift(day, -LOOKBACK_SESSIONS)
    one = sentiment_features(
        between(sample_news, before, day), between(sample_bars, before, day), calendar, day, day, "simulated"
    )
    assert one.num_rows >= 3
    assert bits(SENTIMENT.conform(one)) == bits(between(sample_sentiment, day, day))


def test_row_order_and_other_symbols_change_nothing(
    sample_bars: pa.Table, sample_news: pa.Table, sample_sentiment: pa.Table, calendar: TradingCalendar
) -> None:
    def whole(news: pa.Table, bars: pa.Table) -> pa.Table:
        return SENTIMENT.conform(
            sentiment_features(news, bars, calendar, FIRST_SESSION, LAST_SESSION, "simulated")
        )

    rng = np.random.default_rng(11)
    news = sample_news.take(pa.array(rng.permutation(sample_news.num_rows)))
    bars = sample_bars.take(pa.array(rng.permutation(sample_bars.num_rows)))
    assert bits(whole(news, bars)) == bits(sample_sentiment)

    def only(table: pa.Table) -> pa.Table:
        return table.filter(pc.equal(table["symbol"], "GOOG"))

    assert bits(whole(news, only(bars))) == bits(only(sample_sentiment))


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=2, max_size=12),
    seed=st.integers(0, 1000),
)
def test_the_order_of_articles_is_not_seen_in_the_last_digit(
    calendar: TradingCalendar, rows: list[tuple[float, float]], seed: int
) -> None:
    sessions = calendar.sessions(dt.date(2012, 1, 3), LAST_SESSION)[:16]
    news = articles(*((f"{i:02}", "AAA", sessions[-1], *row) for i, row in enumerate(rows)))
    other = news.take(pa.array(np.random.default_rng(seed).permutation(len(rows))))
    bars = bars_of(sessions, calendar)
    one, two = (
        sentiment_features(n, bars, calendar, sessions[0], sessions[-1], "vendor") for n in (news, other)
    )
    assert bits(one) == bits(two)
    expected = np.average([r[0] for r in rows], weights=[r[1] for r in rows])
    assert one["sentiment_sma_1"][0].as_py() == pytest.approx(expected, abs=1e-12)


# --------------------------------------------------------------------------------------- from clock to feature


@pytest.mark.parametrize(
    ("published", "session"),
    [
        ("2012-01-20T20:59:00", "2012-01-20"),  # Friday, a minute before the close
        ("2012-01-20T21:00:00", "2012-01-20"),  # with the close
        ("2012-01-20T21:00:01", "2012-01-23"),  # after it
        ("2012-01-21T12:00:00", "2012-01-23"),  # Saturday: nobody can act before Monday
        ("2012-01-22T23:00:00", "2012-01-23"),  # Sunday
        ("2012-01-23T09:00:00", "2012-01-23"),  # Monday before the open
    ],
)
def test_news_of_the_weekend_count_for_monday(
    calendar: TradingCalendar, published: str, session: str
) -> None:
    raw = {
        "article_id": "a",
        "symbol": "AAA",
        "published_at": dt.datetime.fromisoformat(published).replace(tzinfo=dt.UTC),
        "dated_session": None,
        "title": "",
        "url": "",
        "sentiment_score": 0.5,
        "relevance_score": 1.0,
        "origin": "test",
    }
    accepted = validate_news(pa.Table.from_pylist([raw], schema=SOURCE_NEWS), calendar).rows
    news = accepted.append_column("source", pa.array(["vendor"]))
    bars = bars_of(calendar.sessions(dt.date(2011, 12, 20), dt.date(2012, 1, 25)), calendar)
    rows = {str(row["session"]): row for row in build(news, bars, calendar)}
    assert {day for day, row in rows.items() if row["article_count"]} == {session}
    assert rows[session]["sentiment_sma_1"] == 0.5
    # From there on it is in the means, and not one session before.
    assert {day for day, row in rows.items() if row["sentiment_sma_16"] > 0} == {
        d for d in rows if d >= session
    }
    # What a session uses was published by its close.
    assert news["available_at"][0].as_py() <= calendar.close(dt.date.fromisoformat(session))
