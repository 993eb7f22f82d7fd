"""Source `alpha_vantage` against a server that speaks its wire format: documents, paging, refusals, quota, kills, corrections."""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from quant_resources.settings import load_settings
from quant_resources.sources import (
    BARS,
    MINUTE_BARS,
    NEWS,
    SECURITIES,
    SourceError,
    SourceIncomplete,
    SourceUnavailable,
    open_source,
)
from quant_resources.sources import alpha_vantage_wire as wire
from quant_resources.sources.alpha_vantage import COMPACT_USED_SESSIONS, AlphaVantageSource
from quant_resources.sources.alpha_vantage_client import open_client
from quant_resources.sources.budget import QuotaExhausted
from quant_resources.sources.vendor import ATTEMPTS, Busy, OutOfQuota, Response
from tests.vendors import alpha_vantage as service
from tests.vendors.alpha_vantage import KEY, AlphaVantageStub, Market

FIRST, LAST = dt.date(2022, 6, 1), dt.date(2024, 6, 28)
LIVENESS_SECONDS = 60.0


def day(text: str) -> dt.date:
    return dt.date.fromisoformat(text)


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def market() -> Market:
    """Five symbols, two years; AAA and AAD split, AAA, AAC and AAE pay dividends."""
    return Market(service.tickers(5), FIRST, LAST)


@pytest.fixture
def stub(market: Market) -> Iterator[AlphaVantageStub]:
    """The service as it is an hour after the last session's close, for a premium key."""
    with AlphaVantageStub(market) as running:
        yield running


class Desk:
    """One QUANT_HOME and its clock.

    Attributes:
        now: the time there and at the vendor.
        slept: pauses that were made instead of waiting.
    """

    def __init__(self, stub: AlphaVantageStub, home: Path, now: dt.datetime | None = None) -> None:
        self.stub, self.home = stub, home
        self.now = now or stub.now()
        self.slept: list[float] = []
        stub.now = lambda: self.now

    def source(self, symbols: str = "AAA,AAB,AAC", **settings: Any) -> AlphaVantageSource:
        read_timeout = settings.pop("read_timeout_seconds", 20.0)
        values: dict[str, Any] = {
            "home": self.home,
            "source": "alpha_vantage",
            "symbols": symbols,
            "alpha_vantage_key": KEY,
            "alpha_vantage_plan": "premium",
            "alpha_vantage_url": self.stub.url,
            "alpha_vantage_requests_per_minute": 12_000,
            "alpha_vantage_requests_per_day": 0,
            "first_session": FIRST,
        }
        return AlphaVantageSource.from_settings(
            load_settings(**(values | settings)),
            sleep=self.slept.append,
            now=lambda: self.now,
            read_timeout_seconds=read_timeout,
        )

    def night(self, session: str) -> None:
        """Half an hour after a session's close."""
        self.now = self.stub.market.calendar.close(day(session)) + dt.timedelta(minutes=30)


@pytest.fixture
def desk(stub: AlphaVantageStub, tmp_path: Path) -> Desk:
    return Desk(stub, tmp_path / "home")


def plain(rows: pa.Table, *keys: str) -> pa.Table:
    """What the vendor said, without where it is archived, in one order."""
    return rows.drop_columns(["origin"]).sort_by([(key, "ascending") for key in keys]).combine_chunks()


def incomplete(error: pytest.ExceptionInfo[SourceIncomplete]) -> tuple[set[str], list[str]]:
    """Symbols that came, symbols that wait."""
    return set(error.value.rows["symbol"].to_pylist()), [item.symbol for item in error.value.waiting]


# -- documents ---------------------------------------------------------------------------------------------------------

ADJUSTED = {
    "Meta Data": {
        "1. Information": "Daily Time Series with Splits and Dividend Events",
        "2. Symbol": "IBM",
        "3. Last Refreshed": "2024-06-07",
        "4. Output Size": "Compact",
        "5. Time Zone": "US/Eastern",
    },
    "Time Series (Daily)": {
        "2024-06-07": {
            "1. open": "168.18",
            "2. high": "171.305",
            "3. low": "168.06",
            "4. close": "170.01",
            "5. adjusted close": "170.01",
            "6. volume": "3475495",
            "7. dividend amount": "0.0000",
            "8. split coefficient": "1.0",
        },
        "2024-06-06": {
            "1. open": "672.80",
            "2. high": "675.16",
            "3. low": "667.20",
            "4. close": "672.8",
            "5. adjusted close": "168.2",
            "6. volume": "2207263",
            "7. dividend amount": "0.2400",
            "8. split coefficient": "4.0",
        },
    },
}
DAILY = {
    "Meta Data": {
        "1. Information": "Daily Prices (open, high, low, close) and Volumes",
        "2. Symbol": "IBM",
        "3. Last Refreshed": "2022-07-01",
        "4. Output Size": "Compact",
        "5. Time Zone": "US/Eastern",
    },
    "Time Series (Daily)": {
        "2022-07-01": {
            "1. open": "141.0000",
            "2. high": "141.6700",
            "3. low": "139.2600",
            "4. close": "141.1200",
            "5. volume": "4012106",
        }
    },
}
MINUTES = {
    "Meta Data": {
        "1. Information": "Intraday (1min) open, high, low, close prices and volume",
        "2. Symbol": "IBM",
        "3. Last Refreshed": "2023-03-13 09:30:00",
        "4. Interval": "1min",
        "5. Output Size": "Full size",
        "6. Time Zone": "US/Eastern",
    },
    "Time Series (1min)": {
        "2023-03-13 09:30:00": {
            "1. open": "125.1000",
            "2. high": "125.5000",
            "3. low": "124.9000",
            "4. close": "125.4000",
            "5. volume": "98765",
        },
        "2023-03-10 09:30:00": {
            "1. open": "126.0000",
            "2. high": "126.1000",
            "3. low": "125.9000",
            "4. close": "126.0500",
            "5. volume": "1200",
        },
    },
}
FEED = {
    "items": "2",
    "sentiment_score_definition": service.SENTIMENT,
    "relevance_score_definition": service.RELEVANCE,
    "feed": [
        {
            "title": "Only 8 Of The 30 Dow Jones Stocks Were Positive",
            "url": "https://www.benzinga.com/news/22/07/27934908/only-8",
            "time_published": "20220701T204549",
            "authors": ["Chris Katje"],
            "summary": "The U.S. stock market had a rough start to 2022.",
            "banner_image": None,
            "source": "Benzinga",
            "category_within_source": "Trading",
            "source_domain": "www.benzinga.com",
            "topics": [{"topic": "Technology", "relevance_score": "0.166667"}],
            "overall_sentiment_score": -0.117141,
            "overall_sentiment_label": "Neutral",
            "ticker_sentiment": [
                {
                    "ticker": "CVX",
                    "relevance_score": "0.28597",
                    "ticker_sentiment_score": "0.017381",
                    "ticker_sentiment_label": "Neutral",
                },
                {
                    "ticker": "IBM",
                    "relevance_score": "0.193001",
                    "ticker_sentiment_score": "6.3e-05",
                    "ticker_sentiment_label": "Neutral",
                },
            ],
        },
        {
            "title": "Smart Classrooms",
            "url": "https://www.prnewswire.com/news-releases/301579420.html",
            "time_published": "20220704T110500",
            "overall_sentiment_score": 0.001229,
            "ticker_sentiment": [
                {"ticker": "GOOG", "relevance_score": "0.059005", "ticker_sentiment_score": "0.001229"}
            ],
        },
    ],
}
OVERVIEW = {
    "Symbol": "IBM",
    "AssetType": "Common Stock",
    "Name": "International Business Machines Corporation",
    "Sector": "TECHNOLOGY",
    "Industry": "Information Technology Services",
    "EBITDA": "15776999936",
    "PEGRatio": "None",
}
QUOTE = {
    "Global Quote": {
        "01. symbol": "TSLA",
        "05. price": "670.9700",
        "06. volume": "26309433",
        "07. latest trading day": "2021-04-07",
        "10. change percent": "-2.9857%",
    }
}


def test_adjusted_daily_bars_are_as_traded_with_dividend_and_split() -> None:
    rows = wire.daily_bars(json.dumps(ADJUSTED).encode(), "IBM", True, "here")
    assert rows.schema == BARS
    assert rows.to_pylist() == [
        {
            "symbol": "IBM",
            "session": day("2024-06-07"),
            "open": 168.18,
            "high": 171.305,
            "low": 168.06,
            "close": 170.01,
            "volume": 3475495.0,
            "dividend": 0.0,
            "split_factor": 1.0,
            "origin": "here",
        },
        {
            "symbol": "IBM",
            "session": day("2024-06-06"),
            "open": 672.8,
            "high": 675.16,
            "low": 667.2,
            "close": 672.8,
            "volume": 2207263.0,
            "dividend": 0.24,
            "split_factor": 4.0,
            "origin": "here",
        },
    ]


def test_unadjusted_daily_bars_do_not_know_dividends_and_splits() -> None:
    (row,) = wire.daily_bars(json.dumps(DAILY).encode(), "IBM", False, "here").to_pylist()
    assert (row["session"], row["open"], row["close"]) == (day("2022-07-01"), 141.0, 141.12)
    assert (row["dividend"], row["split_factor"]) == (None, None)


def test_minutes_are_new_york_time_on_both_sides_of_the_change_of_clocks() -> None:
    rows = wire.minute_bars(json.dumps(MINUTES).encode(), "IBM", "here")
    assert rows.schema == MINUTE_BARS
    assert rows["ts"].to_pylist() == [at("2023-03-13T13:30:00"), at("2023-03-10T14:30:00")]
    first = rows.to_pylist()[0]
    assert [first[k] for k in ("open", "high", "low", "close", "volume")] == [
        125.1,
        125.5,
        124.9,
        125.4,
        98765.0,
    ]
    assert [first[k] for k in ("bid", "ask", "bid_size", "ask_size")] == [None] * 4


def test_an_article_carries_the_asked_tickers_own_scores_and_counts_only_if_it_names_it() -> None:
    page = wire.news_page(json.dumps(FEED).encode(), "IBM", "here")
    assert page.rows.schema == NEWS
    assert page.rows.to_pylist() == [
        {
            "article_id": "https://www.benzinga.com/news/22/07/27934908/only-8",
            "symbol": "IBM",
            "published_at": at("2022-07-01T20:45:49"),
            "dated_session": None,
            "title": "Only 8 Of The 30 Dow Jones Stocks Were Positive",
            "url": "https://www.benzinga.com/news/22/07/27934908/only-8",
            "sentiment_score": 6.3e-05,
            "relevance_score": 0.193001,
            "scorer": "alpha_vantage",
            "origin": "here",
        }
    ]
    assert (page.articles, page.newest) == (2, at("2022-07-04T11:05:00"))


def test_an_article_twice_on_a_page_is_one_row_the_later_entry() -> None:
    twice = json.loads(json.dumps(FEED))
    again = json.loads(json.dumps(twice["feed"][0]))
    again["ticker_sentiment"][1]["ticker_sentiment_score"] = "0.5"
    twice["feed"].append(again)
    rows = wire.news_page(json.dumps(twice).encode(), "IBM", "here").rows
    assert rows["sentiment_score"].to_pylist() == [0.5]


def test_a_share_class_may_be_written_with_a_dot_or_a_dash() -> None:
    feed = json.loads(json.dumps(FEED).replace('"IBM"', '"BRK-B"'))
    assert wire.news_page(json.dumps(feed).encode(), "BRK.B", "here").rows["symbol"].to_pylist() == ["BRK.B"]


def test_a_missing_score_is_left_to_the_rules_of_the_table() -> None:
    feed = json.loads(json.dumps(FEED))
    del feed["feed"][0]["ticker_sentiment"][1]["ticker_sentiment_score"]
    assert wire.news_page(json.dumps(feed).encode(), "IBM", "here").rows["sentiment_score"].to_pylist() == [
        None
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"Information": service.NO_ARTICLES},
        {"items": "0", "sentiment_score_definition": "", "feed": []},
        {"items": "0"},
    ],
)
def test_no_articles_are_no_error(body: dict[str, object]) -> None:
    page = wire.news_page(json.dumps(body).encode(), "IBM", "here")
    assert (page.rows.num_rows, page.articles, page.newest) == (0, 0, None)


def test_an_overview_is_name_sector_and_industry() -> None:
    assert wire.overview(json.dumps(OVERVIEW).encode(), "IBM", "here") == {
        "name": "International Business Machines Corporation",
        "sector": "Technology",
        "industry": "Information Technology Services",
    }
    assert wire.overview(b"{}", "NOPE", "here") == {"name": "", "sector": "", "industry": ""}
    absent = {"Symbol": "SPY", "Name": "SPDR", "Sector": "None", "Industry": "-"}
    assert wire.overview(json.dumps(absent).encode(), "SPY", "here") == {
        "name": "SPDR",
        "sector": "",
        "industry": "",
    }


@pytest.mark.parametrize(
    ("one", "other", "spelling"),
    [
        ("TECHNOLOGY", "Technology", "Technology"),
        ("ENERGY & TRANSPORTATION", "Energy & Transportation", "Energy & Transportation"),
        ("SOFTWARE - INFRASTRUCTURE", "Software—Infrastructure", "Software - Infrastructure"),
        ("REIT - OFFICE", "REIT – Office", "REIT - Office"),  # noqa: RUF001
        (
            "SERVICES-PREPACKAGED SOFTWARE",
            "Services-Prepackaged  Software",
            "Services-Prepackaged Software",
        ),
        ("WHOLESALE OF FOOD", "Wholesale of Food", "Wholesale of Food"),
    ],
)
def test_a_segment_has_one_spelling_however_the_vendor_writes_it(one: str, other: str, spelling: str) -> None:
    assert wire.segment(one) == wire.segment(other) == spelling
    assert wire.segment(spelling) == spelling


def test_a_quote_is_price_and_session() -> None:
    assert wire.quote(json.dumps(QUOTE).encode(), "TSLA", "here") == (670.97, "2021-04-07")
    with pytest.raises(SourceError, match="no quote of NOPE"):
        wire.quote(b'{"Global Quote": {}}', "NOPE", "here")


READERS = {
    "daily adjusted": (ADJUSTED, lambda body: wire.daily_bars(body, "IBM", True, "vendor/daily/IBM")),
    "daily": (DAILY, lambda body: wire.daily_bars(body, "IBM", False, "vendor/daily/IBM")),
    "minutes": (MINUTES, lambda body: wire.minute_bars(body, "IBM", "vendor/minutes/IBM")),
    "news": (FEED, lambda body: wire.news_page(body, "IBM", "vendor/news/IBM")),
    "overview": (OVERVIEW, lambda body: wire.overview(body, "IBM", "vendor/overview/IBM")),
    "quote": (QUOTE, lambda body: wire.quote(body, "TSLA", "vendor/probe/TSLA")),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def refused(read: Callable[[], object]) -> str | None:
    """Why, or None; any other exception than a SourceError fails the test."""
    try:
        read()
    except SourceError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
@effort(max_examples=60, deadline=None)
def test_a_document_with_one_place_broken_is_read_or_refused_with_its_origin(
    kind: str, data: st.DataObject
) -> None:
    document, read = READERS[kind]
    broken: Any = json.loads(json.dumps(document))
    path = data.draw(st.sampled_from(list(places(broken))))
    drop = bool(path) and data.draw(st.booleans())
    value = None if drop else data.draw(JSON)
    if not path:
        broken = value
    else:
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        if drop:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
    refusal = refused(lambda: read(json.dumps(broken).encode()))
    if refusal is not None:
        assert refusal.startswith("vendor/")
        assert refusal.split(":")[0].endswith(("IBM", "TSLA"))


@pytest.mark.parametrize(
    ("key", "text", "what"),
    [
        ("2024-06-07", "2024-06-31", "a session cannot be read"),
        ('"168.18"', '"about 168"', "documented shape"),
        ('"2. Symbol": "IBM"', '"2. Symbol": "MSFT"', "IBM was asked for, 'MSFT' came"),
        ("Time Series (Daily)", "Time Series (Weekly)", "Time Series"),
    ],
)
def test_what_is_wrong_with_a_document_is_said(key: str, text: str, what: str) -> None:
    with pytest.raises(SourceError) as error:
        wire.daily_bars(
            json.dumps(ADJUSTED).replace(key, text).encode(), "IBM", True, "alpha_vantage/daily/IBM"
        )
    assert str(error.value).startswith("alpha_vantage/daily/IBM: ")
    assert what in str(error.value)


# -- refusals ----------------------------------------------------------------------------------------------------------


def judged(body: object, status: int = 200, **headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    wire.judge(Response(status, headers, content), "daily IBM", at("2024-06-28T20:00:00"))


@pytest.mark.parametrize("field", ["Information", "Note", "Error Message"])
@pytest.mark.parametrize(
    ("text", "after"),
    [
        (service.TOO_FAST, None),
        (service.BURST, None),
        (service.PER_MINUTE, 60.0),
        (service.FREQUENCY, 60.0),
        (
            "Thank you for using Alpha Vantage! Please kindly contact support@alphavantage.co if you would like to have a higher API call volume",
            60.0,
        ),
    ],
)
def test_too_fast_is_asked_again_although_days_and_premium_plans_are_named(
    field: str, text: str, after: float | None
) -> None:
    with pytest.raises(Busy) as busy:
        judged({field: text})
    assert busy.value.after_seconds == after


@pytest.mark.parametrize("number", ["25", "500", "1,000"])
def test_a_daily_limit_is_the_end_of_the_day(number: str) -> None:
    with pytest.raises(OutOfQuota):
        judged(
            {
                "Information": f"We have detected your API key as X and our standard API rate limit is {number} requests per day. Please "
                "subscribe to any of the premium plans at https://www.alphavantage.co/premium/ to instantly remove all daily rate limits."
            }
        )


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        (service.PREMIUM_ENDPOINT, "QUANT_ALPHA_VANTAGE_PLAN=free"),
        (service.PREMIUM_FULL, "QUANT_ALPHA_VANTAGE_PLAN=free"),
        (service.NO_KEY, "QUANT_ALPHA_VANTAGE_KEY"),
        (service.DEMO, "QUANT_ALPHA_VANTAGE_KEY"),
        (
            "Invalid API call. Please retry or visit the documentation (https://www.alphavantage.co/documentation/) for TIME_SERIES_DAILY.",
            "(IBM)",
        ),
        (service.INVALID_INPUTS, "QUANT_NEWS_SYMBOLS"),
        ("The moon is full.", "not known here"),
    ],
)
def test_a_refusal_for_good_is_the_vendors_words_and_the_way_out(text: str, way_out: str) -> None:
    with pytest.raises(SourceError) as error:
        judged({"Information": text})
    assert str(error.value).startswith("alpha_vantage: daily IBM: " + text[:100])
    assert way_out in str(error.value)


def test_an_answer_and_an_empty_search_are_no_refusal() -> None:
    for body in (ADJUSTED, MINUTES, FEED, OVERVIEW, QUOTE, {}, {"Information": service.NO_ARTICLES}):
        judged(body)


@pytest.mark.parametrize("length", [0, 1, 40, 400, -1])
def test_a_torn_answer_is_asked_for_again(length: int) -> None:
    with pytest.raises(Busy, match="no whole JSON"):
        judged(json.dumps(ADJUSTED).encode()[:length])


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"7"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(SourceError, match="no JSON object"):
        judged(body)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("Fri, 28 Jun 2024 20:00:30 GMT", 30.0),
        ("Fri, 28 Jun 2024 19:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_retry_after_is_seconds_or_a_date(status: int, header: str, seconds: float | None) -> None:
    with pytest.raises(Busy, match=f"HTTP {status}") as busy:
        judged(b"", status, **{"Retry-After": header})
    assert busy.value.after_seconds == seconds


# -- daily bars --------------------------------------------------------------------------------------------------------


def expected_bars(market: Market, symbols: list[str], first: dt.date, last: dt.date) -> pa.Table:
    """What the market has, by itself."""
    rows = []
    for symbol in symbols:
        values = market.path(market.path_of(symbol))
        for i, session in enumerate(market.sessions):
            if first <= session <= last:
                names = ("open", "high", "low", "close", "volume", "dividend", "split_factor")
                rows.append(
                    {"symbol": symbol, "session": session} | {name: float(values[name][i]) for name in names}
                )
    return pa.Table.from_pylist(rows, schema=BARS.remove(BARS.get_field_index("origin")))


def test_a_backfill_is_one_request_a_symbol_and_every_bar_of_the_range(desk: Desk, market: Market) -> None:
    first, last = day("2022-09-01"), day("2024-06-26")
    rows = desk.source().bars(first, last)
    assert rows.schema == BARS
    assert plain(rows, "symbol", "session").equals(
        expected_bars(market, ["AAA", "AAB", "AAC"], first, last).combine_chunks()
    )
    assert desk.stub.count() == desk.stub.count("TIME_SERIES_DAILY_ADJUSTED", outputsize="full") == 3
    assert set(pc.unique(rows["split_factor"]).to_pylist()) == {1.0, 4.0}
    assert set(pc.unique(rows["dividend"]).to_pylist()) == {0.0, 0.24}


def test_the_source_that_the_settings_name_is_this_one(desk: Desk) -> None:
    settings = load_settings(
        home=desk.home, source="alpha_vantage", symbols="AAA", alpha_vantage_key=KEY, last_session=LAST
    )
    source = open_source(settings)
    assert isinstance(source, AlphaVantageSource)
    assert (source.name, source.news_is_simulated, source.has_minute_bars) == ("alpha_vantage", False, False)
    assert source.span() == (day("2000-01-03"), LAST)
    assert source.overlap_sessions == 5


def test_what_is_archived_is_not_asked_for_again(desk: Desk) -> None:
    whole = desk.source().bars(FIRST, LAST)
    assert desk.source().bars(FIRST, LAST).equals(whole)
    part = desk.source().bars(day("2024-06-20"), LAST)
    assert part.num_rows == 3 * 7
    assert desk.stub.count() == 3


def test_recent_sessions_are_asked_for_compactly(desk: Desk) -> None:
    sessions = desk.stub.market.sessions
    desk.source("AAA").bars(sessions[-COMPACT_USED_SESSIONS], LAST)
    desk.source("AAB").bars(sessions[-COMPACT_USED_SESSIONS - 1], LAST)
    assert desk.stub.count(symbol="AAA", outputsize="compact") == 1
    assert desk.stub.count(symbol="AAB", outputsize="full") == 1
    assert desk.stub.count() == 2


def test_a_range_without_a_session_asks_for_nothing(desk: Desk) -> None:
    source = desk.source(minute_bars=True)
    saturday, sunday = day("2024-06-22"), day("2024-06-23")
    assert source.bars(saturday, sunday).equals(BARS.empty_table())
    assert source.news(saturday, sunday).equals(NEWS.empty_table())
    assert source.minute_bars(saturday, sunday).equals(MINUTE_BARS.empty_table())
    assert desk.stub.count() == 0


def test_a_bar_that_is_still_traded_is_left_out(desk: Desk) -> None:
    desk.stub.trading_bar = True
    desk.now = at("2024-06-26T17:00:00")
    rows = desk.source("AAA").bars(day("2024-06-24"), day("2024-06-26"))
    assert rows["session"].to_pylist() == [day("2024-06-24"), day("2024-06-25")]
    body = gzip.decompress(next(desk.home.rglob("*.json.gz")).read_bytes())
    assert b"2024-06-26" in body
    desk.now = at("2024-06-26T21:00:00")
    assert desk.source("AAA").bars(day("2024-06-26"), day("2024-06-26")).num_rows == 1


def test_a_late_bar_is_asked_for_until_it_is_there(desk: Desk) -> None:
    desk.stub.late = {"AAB"}
    for requests in (2, 3):
        rows = desk.source("AAA,AAB").bars(LAST, LAST)
        assert rows["symbol"].to_pylist() == ["AAA"]
        assert desk.stub.count() == requests
        desk.now += dt.timedelta(minutes=30)
    desk.stub.late = set()
    assert desk.source("AAA,AAB").bars(LAST, LAST).num_rows == 2
    desk.source("AAA,AAB").bars(LAST, LAST)
    assert desk.stub.count() == 4


def merged(nights: list[pa.Table]) -> pa.Table:
    """What a table holds after these were written over one another."""
    rows = {}
    for night in nights:
        for row in night.drop_columns(["origin"]).to_pylist():
            rows[row["symbol"], row["session"]] = row
    return pa.Table.from_pylist(
        list(rows.values()), schema=BARS.remove(BARS.get_field_index("origin"))
    ).sort_by([("symbol", "ascending"), ("session", "ascending")])


@pytest.mark.parametrize("plan", ["premium", "free"])
def test_a_table_rebuilt_from_the_archive_is_the_one_that_live_calls_gave(
    desk: Desk, market: Market, plan: str
) -> None:
    desk.stub.plan = plan
    first = FIRST if plan == "premium" else day("2024-03-01")
    nights = ["2024-06-25", "2024-06-26", "2024-06-27", "2024-06-28"]
    live = []
    for i, session in enumerate(nights):
        desk.night(session)
        if session == "2024-06-27":
            desk.stub.corrected["AAB", day("2024-06-26")] = {"close": 99.99, "high": 100.5}
        source = desk.source(alpha_vantage_plan=plan)
        begin = first if i == 0 else source.calendar.shift(day(session), -source.overlap_sessions)
        live.append(source.bars(begin, day(session)))
    before = live[1].filter(pc.equal(live[1]["session"], pa.scalar(day("2024-06-26"))))
    assert 99.99 not in before["close"].to_pylist()
    asked = desk.stub.count()
    offline = desk.source(alpha_vantage_plan=plan, alpha_vantage_key=None, archive_only=True)
    rebuilt = plain(offline.bars(first, LAST), "symbol", "session")
    assert rebuilt.equals(merged(live).combine_chunks())
    assert 99.99 in rebuilt["close"].to_pylist()
    assert desk.stub.count() == asked == 4 * 3


def test_the_archive_alone_says_what_it_lacks(desk: Desk) -> None:
    with pytest.raises(SourceError, match="QUANT_ARCHIVE_ONLY") as error:
        desk.source(archive_only=True, alpha_vantage_key=None).bars(FIRST, LAST)
    assert "AAA, AAB, AAC" in str(error.value)
    desk.source("AAA").bars(FIRST, LAST)
    with pytest.raises(SourceIncomplete) as part:
        desk.source(archive_only=True, alpha_vantage_key=None).bars(FIRST, LAST)
    assert incomplete(part) == ({"AAA"}, ["AAB", "AAC"])
    assert desk.stub.count() == 1


def test_archived_nights_reach_over_a_longer_range_together_and_a_gap_waits(desk: Desk) -> None:
    for session in (
        "2023-12-15",
        "2024-03-15",
        "2024-06-28",
    ):  # a hundred sessions each, without the whole history
        desk.night(session)
        desk.source("AAA").bars(day(session) - dt.timedelta(days=7), day(session))
    asked = [one["outputsize"] for one in desk.stub.asked]
    assert asked == ["compact"] * 3
    offline = desk.source("AAA", archive_only=True, alpha_vantage_key=None)
    rows = offline.bars(day("2023-09-01"), LAST)
    assert rows["session"].to_pylist() == offline.calendar.sessions(day("2023-09-01"), LAST)
    for path in sorted((desk.home / "archive").rglob("daily/AAA/20240315*")):
        path.unlink()
    with pytest.raises(
        SourceIncomplete, match=r"no answer for bars of 2023-12-18\.\.2024-02-0\d .*QUANT_ARCHIVE_ONLY"
    ):
        offline.bars(day("2023-09-01"), LAST)
    assert offline.bars(day("2024-03-01"), LAST).num_rows > 0


def test_an_answer_from_before_a_close_does_not_hold_that_session(desk: Desk) -> None:
    desk.night("2024-06-27")
    desk.source("AAA").bars(FIRST, day("2024-06-27"))
    desk.night("2024-06-28")
    offline = desk.source("AAA", archive_only=True, alpha_vantage_key=None)
    assert offline.bars(FIRST, day("2024-06-27")).num_rows > 0
    with pytest.raises(SourceIncomplete, match=r"bars of 2024-06-28\.\.2024-06-28 \(1 session"):
        offline.bars(FIRST, LAST)


def test_a_free_key_has_the_newest_hundred_sessions_and_what_it_archived_before(
    desk: Desk, market: Market
) -> None:
    desk.stub.plan = "free"
    sessions = market.sessions
    desk.now = market.calendar.close(sessions[300]) + dt.timedelta(hours=1)
    early = desk.source("AAA", alpha_vantage_plan="free").bars(sessions[201], sessions[300])
    assert early["session"].to_pylist() == sessions[201:301]
    assert set(early["split_factor"].to_pylist()) == {1.0}
    assert set(early["dividend"].to_pylist()) == {0.0}
    desk.now = market.calendar.close(sessions[380]) + dt.timedelta(hours=1)
    whole = desk.source("AAA", alpha_vantage_plan="free").bars(sessions[201], sessions[380])
    assert whole["session"].to_pylist() == sessions[201:381]
    assert desk.stub.count("TIME_SERIES_DAILY", outputsize="compact") == desk.stub.count() == 2


def test_a_free_key_is_told_what_it_cannot_have_without_a_request(desk: Desk) -> None:
    desk.stub.plan = "free"
    with pytest.raises(SourceError, match="newest 100 sessions") as error:
        desk.source("AAA", alpha_vantage_plan="free").bars(day("2022-07-01"), day("2022-07-29"))
    assert "QUANT_FIRST_SESSION to 2024-02-" in str(error.value)
    assert desk.stub.count() == 0


def test_a_plan_that_ends_takes_no_dividend_back(desk: Desk, market: Market) -> None:
    values = market.path(0)
    paid = market.sessions[max(i for i, amount in enumerate(values["dividend"]) if amount)]
    desk.night(str(paid))
    assert desk.source("AAA").bars(paid, paid)["dividend"].to_pylist() == [0.24]
    desk.stub.plan = "free"
    following = market.calendar.shift(paid, 1)
    desk.night(str(following))
    rows = desk.source("AAA", alpha_vantage_plan="free").bars(paid, following)
    assert rows["dividend"].to_pylist() == [0.24, 0.0]


# -- minute bars -------------------------------------------------------------------------------------------------------


def test_minutes_are_those_of_the_trading_hours_month_by_month(desk: Desk, market: Market) -> None:
    first, last = day("2023-11-22"), day("2023-12-01")
    rows = desk.source("AAA,AAB", minute_bars=True).minute_bars(first, last)
    assert rows.schema == MINUTE_BARS
    sessions = market.calendar.sessions(first, last)
    assert day("2023-11-24") in sessions  # closes at 13:00
    assert rows.num_rows == 2 * (390 * (len(sessions) - 1) + 210)
    one = rows.filter(pc.equal(rows["symbol"], "AAB")).to_pylist()
    expected = [(session, *minute) for session in sessions for minute in market.minutes("AAB", session)]
    assert [row["open"] for row in one] == pytest.approx([minute[2] for minute in expected])
    assert [row["volume"] for row in one] == [float(minute[6]) for minute in expected]
    assert one[0]["ts"] == at("2023-11-22T14:30:00")
    assert one[-1]["ts"] == at("2023-12-01T20:59:00")
    assert desk.stub.count("TIME_SERIES_INTRADAY", adjusted="false", extended_hours="false") == 4
    assert desk.stub.count(month="2023-11") == desk.stub.count(month="2023-12") == 2


def test_a_finished_month_needs_no_second_request_and_the_open_one_a_request_a_night(desk: Desk) -> None:
    source = desk.source("AAA", minute_bars=True)
    source.minute_bars(day("2024-05-06"), day("2024-05-07"))
    source.minute_bars(day("2024-05-20"), day("2024-05-31"))
    assert desk.stub.count() == 1
    desk.night("2024-06-04")
    assert source.minute_bars(day("2024-05-31"), day("2024-06-04")).num_rows == 3 * 390
    desk.night("2024-06-05")
    assert source.minute_bars(day("2024-06-03"), day("2024-06-05")).num_rows == 3 * 390
    assert desk.stub.count(month="2024-05") == 1
    assert desk.stub.count(month="2024-06") == 2
    offline = desk.source("AAA", minute_bars=True, archive_only=True, alpha_vantage_key=None)
    assert offline.minute_bars(day("2024-05-31"), day("2024-06-05")).num_rows == 4 * 390


def test_the_archive_alone_has_no_month_that_was_not_asked_for(desk: Desk) -> None:
    desk.night("2024-06-04")
    desk.source("AAA", minute_bars=True).minute_bars(day("2024-05-31"), day("2024-06-04"))
    offline = desk.source("AAA", minute_bars=True, archive_only=True, alpha_vantage_key=None)
    for first, last, lacks in (
        ("2024-04-30", "2024-06-04", "2024-04"),
        ("2024-06-03", "2024-06-05", "2024-06"),
    ):
        with pytest.raises(SourceIncomplete, match=f"minutes of {lacks} .*QUANT_ARCHIVE_ONLY") as error:
            offline.minute_bars(day(first), day(last))
        assert incomplete(error) == (set(), ["AAA"])


def test_a_session_that_is_still_traded_has_no_minutes_yet(desk: Desk) -> None:
    desk.stub.trading_bar = True
    desk.now = at("2024-06-26T17:00:00")
    rows = desk.source("AAA", minute_bars=True).minute_bars(day("2024-06-25"), day("2024-06-26"))
    assert rows.num_rows == 390


def test_a_free_key_has_no_minutes(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    source = desk.source("AAA", minute_bars=True, alpha_vantage_plan="free")
    assert source.has_minute_bars is False
    assert source.minute_bars(LAST, LAST).num_rows == 0
    assert "QUANT_ALPHA_VANTAGE_PLAN=premium" in caplog.text
    assert desk.stub.count() == 0


# -- news --------------------------------------------------------------------------------------------------------------


def expected_urls(stub: AlphaVantageStub, symbol: str, after: dt.datetime, until: dt.datetime) -> list[str]:
    articles = [*stub.market.articles(symbol), *stub.extra_articles.get(symbol, ())]
    return sorted(url for published, url, *_ in articles if after < published <= until)


def test_news_are_those_between_the_closes_one_ticker_a_request(desk: Desk) -> None:
    rows = desk.source("AAA,AAB", news_symbols="AAC,AAA").news(day("2024-06-24"), day("2024-06-28"))
    assert rows.schema == NEWS
    assert set(rows["symbol"].to_pylist()) == {"AAA", "AAB", "AAC"}
    for symbol in ("AAA", "AAB", "AAC"):
        urls = rows.filter(pc.equal(rows["symbol"], symbol))["url"].to_pylist()
        assert sorted(urls) == expected_urls(
            desk.stub, symbol, at("2024-06-21T20:00:00"), at("2024-06-28T20:00:00")
        )
    assert desk.stub.count("NEWS_SENTIMENT", sort="EARLIEST", limit="1000") == desk.stub.count() == 3
    assert desk.stub.asked[0]["time_from"] == "20240621T2000"
    assert desk.stub.asked[0]["time_to"] == "20240628T2001"


def test_an_article_of_the_closing_second_belongs_to_the_session_and_a_later_one_does_not(desk: Desk) -> None:
    close = at("2024-06-26T20:00:00")
    desk.stub.market.articles_per_session = 1.0
    desk.stub.extra_articles["AAE"] = [
        (close + dt.timedelta(seconds=s), f"https://x/{s}", 0.1, 0.5) for s in (-1, 0, 1, 59)
    ]
    source = desk.source("AAE", overlap_sessions=0)

    def found(session: str) -> set[str]:
        urls = source.news(day(session), day(session))["url"].to_pylist()
        return {url for url in urls if url.startswith("https://x/")}

    assert found("2024-06-26") == {"https://x/-1", "https://x/0"}
    assert found("2024-06-27") == {"https://x/1", "https://x/59"}


def test_a_full_page_is_followed_and_no_article_is_lost_or_doubled(desk: Desk) -> None:
    begin = at("2024-06-24T12:00:00")
    # A third of them share their minute with others, so that pages break within minutes.
    desk.stub.extra_articles["AAA"] = [
        (begin + dt.timedelta(seconds=20 * i), f"https://x/{i}", 0.2, 0.5) for i in range(2500)
    ]
    rows = desk.source("AAA").news(day("2024-06-24"), day("2024-06-28"))
    urls = rows["url"].to_pylist()
    assert len(urls) == len(set(urls))
    assert sorted(urls) == expected_urls(
        desk.stub, "AAA", at("2024-06-21T20:00:00"), at("2024-06-28T20:00:00")
    )
    assert desk.stub.count() == 3
    desk.source("AAA").news(day("2024-06-24"), day("2024-06-28"))
    assert desk.stub.count() == 3


@pytest.mark.parametrize("limit", [50, 200])
def test_a_page_that_was_cut_shorter_than_asked_is_followed_as_well(desk: Desk, limit: int) -> None:
    desk.stub.news_limit = limit
    begin = at("2024-06-24T12:00:00")
    desk.stub.extra_articles["AAA"] = [
        (begin + dt.timedelta(minutes=i), f"https://x/{i}", 0.2, 0.5) for i in range(3 * limit)
    ]
    urls = desk.source("AAA").news(day("2024-06-24"), day("2024-06-28"))["url"].to_pylist()
    assert sorted(urls) == expected_urls(
        desk.stub, "AAA", at("2024-06-21T20:00:00"), at("2024-06-28T20:00:00")
    )


def test_a_thousand_articles_within_a_minute_are_an_error_that_says_so(desk: Desk) -> None:
    minute = at("2024-06-26T12:30:00")
    desk.stub.extra_articles["AAA"] = [
        (minute + dt.timedelta(milliseconds=50 * i), f"https://x/{i}", 0.2, 0.5) for i in range(1100)
    ]
    with pytest.raises(SourceError, match="1000 articles within the minute 2024-06-26 12:30 UTC"):
        desk.source("AAA").news(day("2024-06-26"), day("2024-06-26"))


def test_a_long_range_of_news_is_asked_for_by_year(desk: Desk) -> None:
    source = desk.source("AAA")
    first, last = day("2022-06-02"), LAST
    urls = source.news(first, last)["url"].to_pylist()
    assert sorted(urls) == expected_urls(
        desk.stub, "AAA", at("2022-06-01T20:00:00"), at("2024-06-28T20:00:00")
    )
    assert [one["time_from"] for one in desk.stub.asked] == [
        "20220601T2000",
        "20221230T2100",
        "20231229T2100",
    ]
    source.news(first, day("2024-06-20"))  # the finished years are archived
    assert desk.stub.count() == 4


def test_a_new_score_of_an_article_replaces_the_old_one_also_in_a_rebuilt_table(desk: Desk) -> None:
    published = at("2024-06-26T15:00:00")
    desk.night("2024-06-26")
    desk.stub.extra_articles["AAE"] = [(published, "https://x/1", 0.1, 0.5)]
    before = desk.source("AAE").news(day("2024-06-26"), day("2024-06-26"))
    desk.night("2024-06-27")
    desk.stub.extra_articles["AAE"] = [(published, "https://x/1", -0.3, 0.5)]
    after = desk.source("AAE").news(day("2024-06-21"), day("2024-06-27"))
    offline = desk.source("AAE", archive_only=True, alpha_vantage_key=None)
    rebuilt = offline.news(day("2024-06-21"), day("2024-06-27"))

    def score(rows: pa.Table) -> list[float]:
        return rows.filter(pc.equal(rows["url"], "https://x/1"))["sentiment_score"].to_pylist()

    assert (score(before), score(after)) == ([0.1], [-0.3])
    assert rebuilt.equals(after)


def test_years_of_news_that_never_came_are_waited_for_by_the_archive_alone(desk: Desk) -> None:
    with pytest.raises(SourceIncomplete):
        desk.source("AAA", alpha_vantage_requests_per_day=1).news(FIRST, LAST)
    offline = desk.source("AAA", archive_only=True, alpha_vantage_key=None)
    with pytest.raises(
        SourceIncomplete, match=r"news published between 2022-12-30 21:00 and 2024-06-28 20:00 UTC"
    ) as error:
        offline.news(FIRST, LAST)
    assert incomplete(error) == (set(), ["AAA"])
    assert "QUANT_ARCHIVE_ONLY" in error.value.waiting[0].reason
    assert offline.news(FIRST, day("2022-12-30")).num_rows > 0
    live = desk.source("AAA").news(FIRST, LAST)
    assert offline.news(FIRST, LAST).equals(live)


def test_nights_of_news_reach_over_a_longer_range_together_and_full_pages_only_to_their_end(
    desk: Desk,
) -> None:
    parts = []
    for night in ("2024-06-25", "2024-06-26", "2024-06-27", "2024-06-28"):
        desk.night(night)
        parts.append(desk.source("AAA").news(day(night), day(night)))
    offline = desk.source("AAA", archive_only=True, alpha_vantage_key=None)
    rebuilt = offline.news(day("2024-06-25"), LAST)
    assert rebuilt.num_rows == sum(part.num_rows for part in parts)
    with pytest.raises(SourceIncomplete, match="between 2024-06-21 20:00 and 2024-06-28 20:00"):
        offline.news(day("2024-06-24"), LAST)
    begin = at("2024-06-24T12:00:00")
    desk.stub.extra_articles["AAB"] = [
        (begin + dt.timedelta(seconds=10 * k), f"https://full/{k}", 0.1, 0.5) for k in range(1500)
    ]
    with pytest.raises(SourceIncomplete):
        desk.source("AAB", alpha_vantage_requests_per_day=2).news(day("2024-06-24"), LAST)
    with pytest.raises(SourceIncomplete, match="between 2024-06-24 14:4"):
        desk.source("AAB", archive_only=True, alpha_vantage_key=None).news(day("2024-06-24"), LAST)


# -- securities --------------------------------------------------------------------------------------------------------


def test_the_security_master_has_every_symbol_and_one_spelling_of_segments(desk: Desk) -> None:
    rows = desk.source("AAA,AAB", news_symbols="AAC,NOPE").securities()
    assert rows.schema == SECURITIES
    assert rows.select(["symbol", "sector", "industry"]).to_pylist() == [
        {"symbol": "AAA", "sector": "Technology", "industry": "Services-Prepackaged Software"},
        {"symbol": "AAB", "sector": "Technology", "industry": "Software - Infrastructure"},
        {"symbol": "AAC", "sector": "Life Sciences", "industry": "Pharmaceutical Preparations"},
        {"symbol": "NOPE", "sector": "", "industry": ""},
    ]
    assert rows["peers"].to_pylist() == [""] * 4


def test_an_overview_is_good_for_thirty_days(desk: Desk) -> None:
    source = desk.source("AAA")
    source.securities()
    desk.now += dt.timedelta(days=29)
    source.securities()
    assert desk.stub.count("OVERVIEW") == 1
    desk.now += dt.timedelta(days=2)
    source.securities()
    assert desk.stub.count("OVERVIEW") == 2


def test_without_quota_every_symbol_still_has_a_row(desk: Desk) -> None:
    with pytest.raises(SourceIncomplete) as error:
        desk.source(news_symbols="AAD", alpha_vantage_requests_per_day=2).securities()
    assert error.value.rows["symbol"].to_pylist() == ["AAA", "AAB", "AAC", "AAD"]
    assert error.value.rows["sector"].to_pylist() == ["Technology", "Technology", "", ""]
    assert [item.symbol for item in error.value.waiting] == ["AAC", "AAD"]
    offline = desk.source(news_symbols="AAD", archive_only=True, alpha_vantage_key=None)
    assert offline.securities().equals(error.value.rows)


# -- quota -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["the settings", "the vendor"])
def test_a_used_up_day_keeps_what_came_and_the_next_day_continues(
    desk: Desk, market: Market, who: str
) -> None:
    if who == "the vendor":
        desk.stub.per_day = 3
    limit = 3 if who == "the settings" else 25
    symbols = "AAA,AAB,AAC,AAD,AAE"

    def source() -> AlphaVantageSource:
        return desk.source(symbols, alpha_vantage_requests_per_day=limit)

    first_day = desk.now
    midnight = at("2024-06-29T04:00:00")
    with pytest.raises(SourceIncomplete) as error:
        source().bars(FIRST, LAST)
    assert incomplete(error) == ({"AAA", "AAB", "AAC"}, ["AAD", "AAE"])
    # Our own count begins anew at midnight; when the vendor's does nobody knows, so it is asked again earlier.
    again_at = midnight if who == "the settings" else first_day + dt.timedelta(hours=4)
    assert {item.retry_at for item in error.value.waiting} == {again_at}
    assert "3" in error.value.waiting[0].reason
    expected = expected_bars(market, ["AAA", "AAB", "AAC"], FIRST, LAST).combine_chunks()
    assert plain(error.value.rows, "symbol", "session").equals(expected)
    asked = desk.stub.count()
    assert asked == (3 if who == "the settings" else 4)

    desk.now = first_day + dt.timedelta(hours=1)
    with pytest.raises(SourceIncomplete) as again:
        source().bars(FIRST, LAST)
    assert incomplete(again) == incomplete(error)
    assert desk.stub.count() == asked

    desk.now = midnight + dt.timedelta(minutes=1)
    assert set(source().bars(FIRST, LAST)["symbol"].to_pylist()) == set(symbols.split(","))
    assert desk.stub.count() == asked + 2


def test_a_symbol_whose_pages_came_in_part_waits_whole(desk: Desk) -> None:
    begin = at("2024-06-24T12:00:00")
    desk.stub.extra_articles["AAB"] = [
        (begin + dt.timedelta(minutes=i), f"https://x/{i}", 0.2, 0.5) for i in range(2400)
    ]
    first, last = day("2024-06-24"), day("2024-06-28")
    with pytest.raises(SourceIncomplete) as error:
        desk.source("AAA,AAB,AAC", alpha_vantage_requests_per_day=3).news(first, last)
    assert incomplete(error) == ({"AAA"}, ["AAB", "AAC"])
    desk.now += dt.timedelta(days=1)
    rows = desk.source("AAA,AAB,AAC", alpha_vantage_requests_per_day=3).news(first, last)
    assert set(rows["symbol"].to_pylist()) == {"AAA", "AAB", "AAC"}
    # AAA; AAB in three pages, two of them on the first day; AAC.
    assert desk.stub.count() == 5


def test_nothing_at_all_is_still_said_symbol_by_symbol(desk: Desk) -> None:
    desk.stub.per_day = 0
    with pytest.raises(SourceIncomplete) as error:
        desk.source().bars(FIRST, LAST)
    assert error.value.rows.equals(BARS.empty_table())
    assert incomplete(error) == (set(), ["AAA", "AAB", "AAC"])
    assert desk.stub.count() == 1


def test_a_new_key_does_not_inherit_a_used_up_day(desk: Desk) -> None:
    desk.stub.per_day = 0
    with pytest.raises(SourceIncomplete):
        desk.source("AAA").bars(LAST, LAST)
    desk.stub.per_day, desk.stub.key = None, "ANOTHERKEY"
    assert desk.source("AAA", alpha_vantage_key="ANOTHERKEY").bars(LAST, LAST).num_rows == 1


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "too fast",
        "burst",
        "per minute",
        "frequency",
        "500",
        "503 after 7",
        "429",
        "reset",
        "cut",
        "torn",
        "page",
    ],
)
def test_a_passing_failure_is_asked_again(desk: Desk, fault: str) -> None:
    desk.stub.faults.extend([fault, fault])
    assert desk.source("AAA").bars(LAST, LAST).num_rows == 1
    assert desk.stub.count() == 3
    assert len(desk.slept) == 2
    if fault == "503 after 7":
        assert desk.slept == [7.0, 7.0]
    if fault in ("per minute", "frequency"):
        assert desk.slept == [60.0, 60.0]


def test_an_answer_that_does_not_come_is_asked_for_again(desk: Desk) -> None:
    desk.stub.faults.append("slow")
    assert desk.source("AAA", read_timeout_seconds=0.2).bars(LAST, LAST).num_rows == 1
    assert desk.stub.count() == 2


def test_a_service_that_stays_away_is_unavailable_and_what_came_is_kept(desk: Desk) -> None:
    source = desk.source("AAA,AAB")
    source.bars(FIRST, LAST)
    desk.now = desk.now + dt.timedelta(days=3)
    desk.stub.faults.extend(["reset"] * ATTEMPTS)
    with pytest.raises(SourceUnavailable, match=f"news AAA did not come after {ATTEMPTS} attempt"):
        source.news(day("2024-06-24"), LAST)
    asked = desk.stub.count()
    source.bars(FIRST, LAST)
    assert desk.stub.count() == asked


def test_nobody_at_the_address_is_unavailable(desk: Desk) -> None:
    desk.stub.stop()
    with pytest.raises(SourceUnavailable, match="ConnectError"):
        desk.source("AAA").bars(LAST, LAST)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("premium", "QUANT_ALPHA_VANTAGE_PLAN=free"),
        ("demo", "QUANT_ALPHA_VANTAGE_KEY"),
        ("no key", "QUANT_ALPHA_VANTAGE_KEY"),
        ("strange", "The moon is full"),
        ("404", "QUANT_ALPHA_VANTAGE_URL"),
        ("forbidden", "QUANT_ALPHA_VANTAGE_KEY"),
        ("redirect", "QUANT_ALPHA_VANTAGE_URL"),
        (b"{}", "documented shape"),
        (b"[1]", "no JSON object"),
        (json.dumps(ADJUSTED).encode(), "AAA was asked for, 'IBM' came"),
    ],
)
def test_a_refusal_is_asked_once_says_what_to_do_and_is_not_archived(
    desk: Desk, fault: str | bytes, says: str
) -> None:
    desk.stub.faults.append(fault)
    with pytest.raises(SourceError) as error:
        desk.source("AAA").bars(LAST, LAST)
    assert says in str(error.value)
    assert "daily" in str(error.value)
    assert "AAA" in str(error.value)
    assert desk.stub.count() == 1
    assert desk.source("AAA").bars(LAST, LAST).num_rows == 1


def test_wrong_key_wrong_plan_and_unknown_symbol_are_told_apart(desk: Desk) -> None:
    with pytest.raises(SourceError, match=r"apikey is invalid or missing.*QUANT_ALPHA_VANTAGE_KEY"):
        desk.source("AAA", alpha_vantage_key="WRONGKEY").bars(LAST, LAST)
    with pytest.raises(SourceError, match=r"demo.*QUANT_ALPHA_VANTAGE_KEY"):
        desk.source("AAA", alpha_vantage_key="demo").bars(LAST, LAST)
    with pytest.raises(SourceError, match=r"Invalid API call.*NOPE.*QUANT_SYMBOLS"):
        desk.source("NOPE").bars(LAST, LAST)
    with pytest.raises(SourceError, match=r"Invalid inputs.*NOPE.*QUANT_NEWS_SYMBOLS"):
        desk.source("NOPE").news(LAST, LAST)
    desk.stub.plan = "free"
    with pytest.raises(SourceError, match=r"premium endpoint.*QUANT_ALPHA_VANTAGE_PLAN=free"):
        desk.source("AAA").bars(LAST, LAST)


def test_a_probe_is_one_request_and_one_sentence(desk: Desk) -> None:
    text = desk.source(alpha_vantage_requests_per_day=25).probe()
    close = desk.stub.market.path(0)["close"][-1]
    assert text == (
        f"Alpha Vantage answers: AAA stood at {close:g} on 2024-06-28; plan premium, 24 request(s) left today"
    )
    assert "no daily limit" in desk.source().probe()
    assert desk.stub.count("GLOBAL_QUOTE") == desk.stub.count() == 2
    with pytest.raises(SourceError, match="no quote of NOPE"):
        desk.source("NOPE").probe()
    desk.stub.per_day = 0
    with pytest.raises(QuotaExhausted, match="rate limit is 0 requests per day"):
        desk.source().probe()


# -- the key -----------------------------------------------------------------------------------------------------------


def shown(error: BaseException) -> str:
    """All that anybody could see of an exception: its chain, suppressed or not."""
    text, queue, seen = "", [error], set()
    while queue:
        one = queue.pop()
        if id(one) not in seen:
            seen.add(id(one))
            text += repr(one) + "".join(traceback.format_exception(one))
            queue += [other for other in (one.__cause__, one.__context__) if other is not None]
    return text


def test_the_key_is_nowhere_but_on_the_wire(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    secret = "S3CRET+KEY/0815"
    desk.stub.key = secret
    errors: list[BaseException] = []

    def run(read_timeout_seconds: float = 20.0) -> None:
        source = desk.source(
            "AAA", alpha_vantage_key=secret, minute_bars=True, read_timeout_seconds=read_timeout_seconds
        )
        desk.now += dt.timedelta(days=40)  # nothing archived will do
        calls = (
            lambda: source.bars(day("2024-06-24"), LAST),
            lambda: source.news(day("2024-06-24"), LAST),
            lambda: source.minute_bars(LAST, LAST),
            source.securities,
            source.probe,
        )
        for call in calls:
            try:
                call()
            except (SourceError, SourceIncomplete, SourceUnavailable, QuotaExhausted) as error:
                errors.append(error)
        assert secret not in repr(source) + repr(vars(source))

    with caplog.at_level(logging.DEBUG):
        run()
        assert errors == []
        once = ["premium", "no key", "demo", "strange", "redirect", "forbidden", "404", b"{}"]
        passing = ["too fast", "503", "reset", "cut", "torn", "page"]
        for fault in (*once, *passing):
            desk.stub.faults.extend([fault] * (1 if fault in once else ATTEMPTS))
            run()
            desk.stub.faults.clear()
        desk.stub.faults.extend(["slow"] * ATTEMPTS)
        run(read_timeout_seconds=0.05)
        desk.stub.faults.clear()
        desk.stub.per_day = 0
        run()
        desk.stub.stop()
        desk.now += dt.timedelta(days=2)
        run()
    assert desk.stub.seen_keys == {secret}
    assert len(errors) >= len(once) + len(passing) + 4
    assert caplog.text.count("GET") > 50  # httpx did log addresses
    quoted = ("S3CRET", "KEY/0815", "KEY%2F0815")
    everything = caplog.text + "".join(shown(error) for error in errors)
    everything += "".join(repr(vars(record)) for record in caplog.records)
    for path in desk.home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            everything += str(path)
            everything += (gzip.decompress(content) if path.suffix == ".gz" else content).decode(
                errors="replace"
            )
    for part in quoted:
        assert part not in everything


def test_the_client_itself_never_knows_the_address_with_the_key(stub: AlphaVantageStub) -> None:
    with open_client(stub.url, KEY, (), 5.0) as client:
        response = client.get(f"{stub.url}/query", params={"function": "OVERVIEW", "symbol": "AAA"})
        assert stub.seen_keys == {KEY}
        assert KEY not in f"{response.url} {response.request.url} {client!r}"
        stub.faults.append("reset")
        with pytest.raises(httpx.TransportError) as error:
            client.get(f"{stub.url}/query", params={"function": "OVERVIEW", "symbol": "AAA"})
        assert KEY not in f"{error.value.request.url} {shown(error.value)}"


# -- kills -------------------------------------------------------------------------------------------------------------

CLIENT = """
import datetime as dt, sys
from quant_resources.settings import load_settings
from quant_resources.sources import open_source
print(open_source(load_settings()).bars(dt.date(2022, 6, 1), dt.date(2024, 6, 28)).num_rows)
"""


def test_a_killed_run_goes_on_with_what_is_missing(desk: Desk, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QUANT_")} | {
        "QUANT_HOME": str(desk.home),
        "QUANT_SOURCE": "alpha_vantage",
        "QUANT_SYMBOLS": "AAA,AAB,AAC,AAD,AAE",
        "QUANT_ALPHA_VANTAGE_KEY": KEY,
        "QUANT_ALPHA_VANTAGE_PLAN": "premium",
        "QUANT_ALPHA_VANTAGE_URL": desk.stub.url,
        "QUANT_ALPHA_VANTAGE_REQUESTS_PER_MINUTE": "12000",
        "QUANT_ALPHA_VANTAGE_REQUESTS_PER_DAY": "0",
        "QUANT_FIRST_SESSION": str(FIRST),
    }

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )

    desk.stub.hold_from = 3
    desk.stub.hold.clear()
    client = start()
    try:
        end = time.monotonic() + LIVENESS_SECONDS
        while desk.stub.count() < 3:
            assert time.monotonic() < end, "the third request did not come"
            time.sleep(0.01)
        assert len(list(desk.home.rglob("*.json.gz"))) == 2
        os.kill(client.pid, signal.SIGKILL)
        client.communicate(timeout=LIVENESS_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            client.kill()
        desk.stub.hold.set()
    output, _ = start().communicate(timeout=LIVENESS_SECONDS)
    assert int(output) == 5 * len(desk.stub.market.sessions)
    assert [one["symbol"] for one in desk.stub.asked] == ["AAA", "AAB", "AAC", "AAC", "AAD", "AAE"]
