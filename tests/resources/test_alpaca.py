"""Source `alpaca` against a stand-in on the loopback interface: rows, pages, refusals, resumption, corrections, and keys that stay secret."""

import datetime as dt
import gzip
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_assets.market.tables import BARS as STORED_BARS
from quant_assets.market.tables import MINUTE_BARS as STORED_MINUTES
from quant_assets.market.tables import NEWS as STORED_NEWS
from quant_assets.market.validation import validate_bars, validate_minute_bars, validate_news
from quant_assets.partitions import CALENDAR
from quant_assets.simulation.inputs import read_real_markets
from quant_assets.simulation.intraday import IntradayModel
from quant_resources.iceberg import Warehouse
from quant_resources.settings import load_settings
from quant_resources.sources import (
    BARS,
    MINUTE_BARS,
    NEWS,
    SECURITIES,
    SourceError,
    SourceIncomplete,
    SourceUnavailable,
    alpaca_documents,
    open_source,
)
from quant_resources.sources.alpaca import AlpacaSource
from quant_resources.sources.alpaca_documents import ACTIONS, DAY_BARS, NoJSON
from quant_resources.sources.alpaca_rows import quote_instants, with_actions
from quant_resources.sources.alpaca_wire import Wire, after_seconds
from quant_resources.sources.scoring import Text
from quant_resources.sources.vendor import ATTEMPTS
from tests.vendors.alpaca import KEY_ID, SECRET_KEY, AlpacaStub, Fault, article

DAY = dt.date
NIGHT = dt.datetime(2024, 6, 28, 21, 0, tzinfo=dt.UTC)  # an hour after the close of Friday, 2024-06-28
LAST = DAY(2024, 6, 28)
LIVENESS_SECONDS = 30.0


class Clock:
    """A clock that a test sets; every look moves it on by a millisecond, so that archived answers have an order."""

    def __init__(self, at: dt.datetime = NIGHT) -> None:
        self.at = at
        self.slept: list[float] = []

    def now(self) -> dt.datetime:
        self.at += dt.timedelta(milliseconds=1)
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += dt.timedelta(seconds=seconds)


@pytest.fixture
def stub() -> Iterator[AlpacaStub]:
    """A service with five symbols, without any fault."""
    with AlpacaStub() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    """An hour after a close."""
    return Clock()


@pytest.fixture
def source(stub: AlpacaStub, tmp_path: Path, clock: Clock) -> Callable[..., AlpacaSource]:
    """A function that makes the source with settings."""

    def make(**settings: Any) -> AlpacaSource:
        chosen = {
            "home": tmp_path / "home",
            "source": "alpaca",
            "symbols": "AAPL,IBM,MSFT",
            "alpaca_key_id": KEY_ID,
            "alpaca_secret_key": SECRET_KEY,
            "alpaca_url": stub.url,
            "alpaca_requests_per_minute": 12_000,
            "first_session": "2020-01-02",
            **settings,
        }
        return AlpacaSource(load_settings(**chosen), sleep=clock.sleep, now=clock.now)

    return make


def by_key(rows: pa.Table) -> dict[tuple[str, Any], dict[str, Any]]:
    when = "ts" if "ts" in rows.column_names else "session"
    return {(row["symbol"], row[when]): row for row in rows.to_pylist()}


# -- daily bars --------------------------------------------------------------------------------------------------------


def test_days_are_the_vendors_numbers_on_new_yorks_dates(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    # Clocks changed on 2024-03-10: midnight in New York is 05:00Z before and 04:00Z after.
    rows = source().bars(DAY(2024, 3, 7), DAY(2024, 3, 12))
    assert rows.schema == BARS
    sessions = [DAY(2024, 3, 7), DAY(2024, 3, 8), DAY(2024, 3, 11), DAY(2024, 3, 12)]
    assert list(by_key(rows)) == [(s, d) for s in ("AAPL", "IBM", "MSFT") for d in sessions]
    for (symbol, session), row in by_key(rows).items():
        stated = stub.day(symbol, session)
        assert [row[n] for n in ("open", "high", "low", "close", "volume")] == [stated[n] for n in "ohlcv"]
        assert (row["dividend"], row["split_factor"]) == (0.0, 1.0)
        assert re.fullmatch(
            r"alpaca/bars/2024-03-07_2024-03-12_AAPL_MSFT/\d{8}T\d{12}-[0-9a-f]{12}", row["origin"]
        )
    asked = dict(stub.requests)["/v2/stocks/bars"]
    assert asked == {
        "symbols": "AAPL,IBM,MSFT",
        "timeframe": "1Day",
        "adjustment": "raw",
        "feed": "iex",
        "start": "2024-03-07T05:00:00+00:00",
        "end": "2024-03-12T20:00:00+00:00",  # not later than the close: the rest of the day lies ahead tonight
        "limit": "10000",
    }
    assert not validate_bars(rows, source().calendar).violations


def test_pages_break_within_a_symbol_and_leave_symbols_out(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    whole = source().bars(DAY(2024, 1, 2), DAY(2024, 2, 29))
    stub.requests.clear()
    stub.page_rows = 7
    stub.listed["IBM"] = DAY(2024, 2, 20)
    pages = source(symbols="AAPL,IBM,MSFT,NONE").bars(DAY(2024, 1, 2), DAY(2024, 2, 29))
    listed = pc.or_(
        pc.not_equal(whole["symbol"], "IBM"), pc.greater_equal(whole["session"], DAY(2024, 2, 20))
    )
    assert pages.drop_columns("origin").equals(whole.filter(listed).drop_columns("origin"))
    # 41 + 8 + 41 bars in pages of seven
    assert stub.asked("bars") == 13
    assert len({asked.get("page_token") for path, asked in stub.requests if "bars" in path}) == 13


def test_a_symbol_without_bars_is_said(
    source: Callable[..., AlpacaSource], caplog: pytest.LogCaptureFixture
) -> None:
    rows = source(symbols="AAPL,NONE").bars(DAY(2024, 6, 27), LAST)
    assert set(rows["symbol"].to_pylist()) == {"AAPL"}
    assert "alpaca: no bar of NONE in 2024-06-27..2024-06-28" in caplog.text
    assert source(symbols="NONE").bars(DAY(2024, 6, 27), LAST).equals(BARS.empty_table())
    assert source().bars(DAY(2024, 6, 29), DAY(2024, 6, 30)).num_rows == 0  # a weekend


def test_years_and_batches_are_asked_apart_and_not_twice(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant_resources.sources.alpaca.BATCH_SYMBOLS", 2)
    first = source().bars(DAY(2022, 6, 1), LAST)
    assert (stub.asked("bars"), stub.asked("corporate-actions")) == (6, 2)
    assert source().bars(DAY(2022, 6, 1), LAST).equals(first)
    assert len(stub.requests) == 8
    # A day later only what ends with the new session is new.
    source().bars(DAY(2022, 6, 1), DAY(2024, 7, 1))
    assert (stub.asked("bars"), stub.asked("corporate-actions")) == (8, 4)


# -- corporate actions -------------------------------------------------------------------------------------------------


def days_of(symbol: str, *sessions: str) -> pa.Table:
    rows = [
        {
            "symbol": symbol,
            "session": DAY.fromisoformat(s),
            "open": 10.0,
            "high": 10.0,
            "low": 10.0,
            "close": 10.0,
        }
        for s in sessions
    ]
    return pa.Table.from_pylist([{**row, "volume": 1.0, "origin": ""} for row in rows], schema=DAY_BARS)


def action(symbol: str, ex: str, factor: float = 1.0, cash: float = 0.0, name: str = "") -> dict[str, Any]:
    date = DAY.fromisoformat(ex)
    return {
        "id": name or f"{symbol}{ex}{factor}{cash}",
        "symbol": symbol,
        "ex_date": date,
        "process_date": date,
        "factor": factor,
        "cash": cash,
    }


@pytest.mark.parametrize(
    ("actions", "dividends", "factors"),
    [
        ([action("X", "2024-01-04", cash=0.25)], [0, 0.25, 0], [1, 1, 1]),
        # On a day without a bar: the next bar has it.
        ([action("X", "2024-01-05", cash=0.25)], [0, 0, 0.25], [1, 1, 1]),
        ([action("X", "2024-01-06", factor=0.02)], [0, 0, 0], [1, 1, 0.02]),
        # Two on one day add up and multiply; cash is stated in the shares of its own ex-date.
        ([action("X", "2024-01-04", cash=0.5), action("X", "2024-01-04", cash=1.5)], [0, 2.0, 0], [1, 1, 1]),
        ([action("X", "2024-01-04", 4, 0), action("X", "2024-01-04", 1.05, 0)], [0, 0, 0], [1, 4.2, 1]),
        ([action("X", "2024-01-04", 4), action("X", "2024-01-04", cash=0.4)], [0, 0.4, 0], [1, 4, 1]),
        # A dividend of the old shares whose first bar is after the split is worth less for each new one.
        ([action("X", "2024-01-05", cash=1), action("X", "2024-01-08", 4)], [0, 0, 0.25], [1, 1, 4]),
        ([action("X", "2024-01-05", 4), action("X", "2024-01-08", cash=1)], [0, 0, 1.0], [1, 1, 4]),
        # Of earlier bars, of other symbols, and of days after the last bar.
        ([action("X", "2024-01-02", cash=1), action("Y", "2024-01-03", cash=1)], [0, 0, 0], [1, 1, 1]),
        ([action("X", "2024-01-09", cash=1)], [0, 0, 0], [1, 1, 1]),
    ],
)
def test_an_action_takes_effect_on_the_first_bar_from_its_ex_date_on(
    actions: list[dict[str, Any]], dividends: list[float], factors: list[float]
) -> None:
    bars = pa.concat_tables(
        [days_of("X", "2024-01-08", "2024-01-03", "2024-01-04"), days_of("Z", "2024-01-03")]
    )
    rows = with_actions(bars, pa.Table.from_pylist(actions, schema=ACTIONS), DAY(2024, 1, 2))
    assert rows.schema == BARS
    assert rows["symbol"].to_pylist() == ["X", "X", "X", "Z"]
    np.testing.assert_allclose(rows["dividend"], [*dividends, 0])
    np.testing.assert_allclose(rows["split_factor"], [*factors, 1])


def test_dividends_are_found_though_they_are_paid_later(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    stub.page_rows = 2
    stub.splits[("AAPL", DAY(2024, 6, 10))] = 4.0
    stub.actions = [
        # paid six weeks after the ex-date: the service lists it under that day
        {"kind": "cash_dividend", "symbol": "IBM", "rate": 1.67, "ex_date": "2024-06-11", "process_date": "2024-07-25"}
        | {"foreign": False, "special": False, "record_date": "2024-06-11", "id": "d1", "cusip": "459200101"},
        {"kind": "cash_dividend", "symbol": "MSFT", "rate": 9.9, "ex_date": "2024-05-15", "process_date": "2024-06-13"},
        {"kind": "forward_split", "symbol": "AAPL", "new_rate": 4, "old_rate": 1, "ex_date": "2024-06-10"}
        | {"process_date": "2024-06-10", "due_bill_redemption_date": "2024-06-11"},
        {"kind": "reverse_split", "symbol": "MSFT", "new_rate": 1, "old_rate": 50, "ex_date": "2024-06-12"}
        | {"process_date": "2024-06-12", "old_cusip": "1", "new_cusip": "2"},
        {"kind": "stock_dividend", "symbol": "IBM", "rate": 0.05, "ex_date": "2024-06-18", "process_date": "2024-06-18"},
        {"kind": "unit_split", "old_symbol": "OLDU", "new_symbol": "MSFT", "new_rate": 2, "old_rate": 1}
        | {"effective_date": "2024-06-20", "process_date": "2024-06-20", "alternate_symbol": "W", "alternate_rate": 0.3},
        {"kind": "spin_off", "symbol": "MSFT", "process_date": "2024-06-20", "ex_date": "2024-06-20"},
    ]  # fmt: skip
    rows = by_key(source().bars(DAY(2024, 6, 3), LAST))
    events = {
        (symbol, session): (row["dividend"], row["split_factor"])
        for (symbol, session), row in rows.items()
        if (row["dividend"], row["split_factor"]) != (0, 1)
    }
    assert events == {
        ("AAPL", DAY(2024, 6, 10)): (0, 4.0),
        ("IBM", DAY(2024, 6, 11)): (1.67, 1.0),
        ("IBM", DAY(2024, 6, 18)): (0, 1.05),
        ("MSFT", DAY(2024, 6, 12)): (0, 0.02),
        ("MSFT", DAY(2024, 6, 20)): (0, 2.0),
    }
    # Raw prices: the split is in them, and no rule takes it for one that nobody recorded.
    before, after = rows["AAPL", DAY(2024, 6, 7)]["close"], rows["AAPL", DAY(2024, 6, 10)]["open"]
    assert after * 4 == pytest.approx(before, rel=0.05)
    assert stub.asked("corporate-actions") == 3  # six in pages of two
    asked = next(asked for path, asked in stub.requests if "actions" in path)
    assert (asked["start"], asked["end"], asked["limit"]) == ("2024-05-04", "2024-12-25", "1000")


# -- late, corrected, resumed ------------------------------------------------------------------------------------------


def test_a_session_that_comes_late_is_asked_for_again(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock
) -> None:
    stub.published_until = DAY(2024, 6, 27)
    early = source().bars(DAY(2024, 6, 24), LAST)
    assert pc.max(early["session"]).as_py() == DAY(2024, 6, 27)
    stub.published_until = None
    assert pc.max(source().bars(DAY(2024, 6, 24), LAST)["session"]).as_py() == LAST
    assert (stub.asked("bars"), stub.asked("corporate-actions")) == (2, 1)
    source().bars(DAY(2024, 6, 24), LAST)
    assert stub.asked("bars") == 2
    # A day later what is missing is taken for missing.
    stub.published_until = DAY(2024, 6, 27)
    source().bars(DAY(2024, 6, 25), LAST)
    clock.at += dt.timedelta(days=1)
    asked = stub.asked("bars")
    source().bars(DAY(2024, 6, 25), LAST)
    assert (
        stub.asked("bars") == asked + 1
    )  # the first answer came on the night itself, before that day was over
    source().bars(DAY(2024, 6, 25), LAST)
    assert stub.asked("bars") == asked + 1


def test_a_symbol_that_is_absent_is_asked_for_again_without_any_overlap(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock
) -> None:
    everything = stub.symbols
    stub.symbols = ("AAPL", "MSFT")
    alone = {"overlap_sessions": 0}
    assert set(source(**alone).bars(LAST, LAST)["symbol"].to_pylist()) == {"AAPL", "MSFT"}
    stub.symbols = everything
    assert set(source(**alone).bars(LAST, LAST)["symbol"].to_pylist()) == {"AAPL", "IBM", "MSFT"}
    assert stub.asked("bars") == 2
    source(**alone).bars(LAST, LAST)
    assert stub.asked("bars") == 2


def merged(parts: list[pa.Table], keys: list[str]) -> pa.Table:
    """What a table holds after these slices were written one after another."""
    rows = {tuple(row[k] for k in keys): row for part in parts for row in part.to_pylist()}
    return pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=parts[0].schema)


def test_tables_are_rebuilt_from_the_archive_bit_for_bit(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock
) -> None:
    first, nights = DAY(2024, 5, 1), [DAY(2024, 6, 26), DAY(2024, 6, 27), DAY(2024, 6, 28)]
    stub.actions = [
        {"kind": "cash_dividend", "symbol": "IBM", "rate": 1.67, "ex_date": "2024-06-27", "process_date": "2024-07-25"}
    ]  # fmt: skip
    stub.articles = [
        article(k, f"2024-06-{d:02d}T15:00:00Z", ["AAPL", "ZZZ"], f"Apple gains, part {k}")
        for k, d in enumerate((3, 10, 24, 25, 26, 27), start=1)
    ]
    minutes = {"minute_bars": True, "symbols": "AAPL,IBM,MSFT"}

    def arrive(begin: dt.date, end: dt.date) -> tuple[pa.Table, pa.Table, pa.Table]:
        clock.at = dt.datetime.combine(end, dt.time(21), dt.UTC)
        made = source(**minutes)
        return (
            made.bars(begin, end),
            made.news(begin, end),
            made.minute_bars(max(begin, DAY(2024, 6, 25)), end),
        )

    before = DAY(2024, 6, 25)
    stub.published_until = before
    parts = [arrive(first, before)]
    for night in nights:
        stub.published_until = night
        overlap = source().calendar.shift(night, -5)
        if night == nights[1]:  # a bar of the night before is corrected, an article is rewritten
            stub.corrections[("MSFT", nights[0])] = 77.25
            stub.articles[4] |= {"updated_at": "2024-06-27T13:00:00Z", "headline": "Apple loses after all"}
        parts.append(arrive(overlap, night))
    stored = [
        merged([part[0] for part in parts], ["symbol", "session"]),
        merged([part[1] for part in parts], ["published_at", "article_id", "symbol"]),
        merged([part[2] for part in parts], ["symbol", "ts"]),
    ]
    assert by_key(stored[0])["MSFT", nights[0]]["close"] == 77.25
    assert by_key(parts[1][0])["MSFT", nights[0]]["close"] != 77.25
    assert by_key(stored[0])["IBM", nights[1]]["dividend"] == 1.67
    # The first version of the article counts, also after a later one came.
    titles = {row["article_id"]: row["title"] for row in stored[1].to_pylist()}
    assert titles == {str(k): f"Apple gains, part {k}" for k in range(1, 7)}
    asked = len(stub.requests)
    again = source(archive_only=True, alpaca_key_id=None, alpaca_secret_key=None, **minutes)
    assert again.bars(first, LAST).equals(stored[0])
    assert again.news(first, LAST).equals(stored[1])
    assert again.minute_bars(before, LAST).equals(stored[2])
    assert len(stub.requests) == asked
    assert "QUANT_ARCHIVE_ONLY" in again.probe()


def test_an_archive_without_answers_says_so(source: Callable[..., AlpacaSource]) -> None:
    made = source(archive_only=True)
    for ask in (made.bars, made.news):
        with pytest.raises(SourceError, match=r"has no answer of alpaca for \w+, and QUANT_ARCHIVE_ONLY"):
            ask(DAY(2024, 6, 3), LAST)


def waits(ask: Callable[[dt.date, dt.date], pa.Table], *sessions: dt.date) -> tuple[set[str], dict[str, str]]:
    """Symbols that came, and why the others wait."""
    with pytest.raises(SourceIncomplete) as error:
        ask(*sessions)
    return set(error.value.rows["symbol"].to_pylist()), {w.symbol: w.reason for w in error.value.waiting}


def test_the_archive_alone_takes_no_part_for_the_whole(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock
) -> None:
    stub.articles = [article(1, "2024-06-25T15:00:00Z", ["AAPL", "IBM"], "Both gain")]
    first, middle = DAY(2024, 6, 20), DAY(2024, 6, 26)
    quotes = {"minute_bars": True, "alpaca_quote_minutes": 195}
    clock.at = dt.datetime(
        2024, 6, 26, 21, tzinfo=dt.UTC
    )  # asked later, the news request would reach further
    made = source(symbols="AAPL", **quotes)
    for ask in (made.bars, made.news, made.minute_bars):
        ask(first, middle)
    offline = source(symbols="AAPL", archive_only=True, **quotes)
    for ask in (offline.bars, offline.news, offline.minute_bars):
        assert set(ask(first, middle)["symbol"].to_pylist()) == {"AAPL"}
        for begin, end, lacks in (
            (DAY(2024, 6, 18), middle, "2024-06-18..2024-06-18 (1 session(s))"),
            (first, LAST, "2024-06-27..2024-06-28 (2 session(s))"),
        ):
            came, why = waits(ask, begin, end)
            assert came == set()
            assert lacks in why["AAPL"]
            assert "QUANT_ARCHIVE_ONLY" in why["AAPL"]
    both = source(symbols="AAPL,IBM", archive_only=True, **quotes)
    for ask in (both.bars, both.news, both.minute_bars):
        came, why = waits(ask, first, middle)
        assert (came, set(why)) == ({"AAPL"}, {"IBM"})


def test_an_answer_from_before_the_close_or_without_its_last_page_does_not_do(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock
) -> None:
    clock.at = dt.datetime(2024, 6, 28, 15, tzinfo=dt.UTC)
    source().bars(DAY(2024, 6, 20), LAST)
    clock.at = NIGHT
    came, why = waits(source(archive_only=True).bars, DAY(2024, 6, 20), LAST)
    assert came == set()
    assert "2024-06-28..2024-06-28" in why["IBM"]
    stub.page_rows = 5
    source().bars(DAY(2024, 6, 20), LAST)
    whole = source(archive_only=True)
    assert set(whole.bars(DAY(2024, 6, 20), LAST)["symbol"].to_pylist()) == {"AAPL", "IBM", "MSFT"}
    pages = sorted((whole.vendor.archive.folder / "bars").rglob("*.json.gz"))
    pages[-1].unlink()
    assert waits(whole.bars, DAY(2024, 6, 20), LAST)[0] == set()


def test_quotes_that_were_walked_until_each_symbol_had_one_are_whole(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    settings = {"minute_bars": True, "alpaca_quote_minutes": 195, "symbols": "AAPL,IBM"}
    stub.page_rows = 4
    live = source(**settings).minute_bars(LAST, LAST)
    rebuilt = source(archive_only=True, **settings)
    assert rebuilt.minute_bars(LAST, LAST).equals(live)
    tokens = [page.next_page_token for _, page in rebuilt._archived("quotes", alpaca_documents.quotes)]
    assert tokens[-1] is not None  # the vendor had more, nobody wanted it
    next(iter((rebuilt.vendor.archive.folder / "quotes").rglob("*.json.gz"))).unlink()
    came, why = waits(rebuilt.minute_bars, LAST, LAST)
    assert came == set()
    assert "for quotes of IBM" in why["IBM"]


class Undecided:
    """A scorer that has nothing to say about one symbol."""

    name = "undecided"

    def score(self, texts: Sequence[Text]) -> list[float | None]:
        return [None if text.ticker == "IBM" else 0.5 for text in texts]


def test_what_nobody_can_score_is_left_out_and_the_rest_is_kept(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    stub.articles = [
        article(1, "2024-06-27T15:00:00Z", ["AAPL", "IBM"], "Both gain"),
        article(2, "2024-06-28T15:00:00Z", ["MSFT"], "One gains"),
    ]
    made = source()
    made.scorer = Undecided()
    rows = made.news(DAY(2024, 6, 26), LAST)
    found = [(row["symbol"], row["article_id"], row["relevance_score"]) for row in rows.to_pylist()]
    assert found == [("AAPL", "1", 0.5), ("MSFT", "2", 1.0)]


def test_an_action_that_was_called_off_leaves_the_rebuilt_table(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    stub.actions = [
        {"kind": "cash_dividend", "symbol": "IBM", "rate": 1.0, "ex_date": "2024-06-26", "process_date": "2024-07-25"}
    ]  # fmt: skip
    source().bars(DAY(2024, 6, 20), DAY(2024, 6, 27))
    stub.actions = [{**stub.actions[0], "ex_date": "2024-06-27"}]
    source().bars(DAY(2024, 6, 21), LAST)
    rows = by_key(source(archive_only=True).bars(DAY(2024, 6, 20), LAST))
    assert [day.day for (_, day), row in rows.items() if row["dividend"]] == [27]


def test_a_killed_backfill_goes_on_where_it_was(stub: AlpacaStub, tmp_path: Path) -> None:
    stub.page_rows = 40
    script = textwrap.dedent(
        f"""
        import datetime as dt
        from quant_resources.settings import load_settings
        from quant_resources.sources import open_source
        settings = load_settings(home={str(tmp_path)!r}, source="alpaca", symbols="AAPL,IBM,MSFT", alpaca_url={stub.url!r},
            alpaca_key_id={KEY_ID!r}, alpaca_secret_key={SECRET_KEY!r}, alpaca_requests_per_minute=12000,
            first_session="2023-01-03")
        rows = open_source(settings).bars(dt.date(2023, 1, 3), dt.date(2023, 12, 29))
        print(rows.num_rows, flush=True)
        """
    )  # fmt: skip
    pages = -(-3 * 250 // 40)
    stub.faults = [Fault("slow", path="bars", times=10_000, seconds=0.02)]
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + LIVENESS_SECONDS
        while stub.asked("bars") < 8 and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=LIVENESS_SECONDS)
    assert run.returncode == -signal.SIGKILL
    stored = len(list((tmp_path / "archive").rglob("bars/**/*.json.gz")))
    assert 0 < stored < pages
    stub.requests.clear()
    stub.faults.clear()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIVENESS_SECONDS
    )
    assert done.stdout.strip() == "750", done.stderr
    assert stub.asked("bars") == pages - stored


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (403, '{"message":"forbidden."}', r"HTTP 403: forbidden\..*check QUANT_ALPACA_KEY_ID and QUANT_ALPACA_SECRET"),
        (401, '{"message":"unauthorized."}', r"HTTP 401: unauthorized\..*check QUANT_ALPACA_KEY_ID"),
        (401, "", r"HTTP 401: \(nothing\).*check QUANT_ALPACA_KEY_ID"),
        (
            403,
            '{"message":"subscription does not permit querying recent SIP data"}',
            r"15 minutes old.*QUANT_NIGHT_DELAY_MINUTES.*QUANT_ALPACA_FEED=iex.*Algo Trader Plus",
        ),
        (403, '{"code":40310000,"message":"subscription does not permit this feed"}', r"The key is right.*plan"),
        (400, '{"message":"code=400, message=invalid symbol: BRK-B"}', r"knows no symbol BRK-B: take it out of QUANT_SYMB"),
        (422, '{"code":40010001,"message":"invalid symbol"}', r"knows no symbol one of those asked for"),
        (400, '{"message":"invalid feed: otc"}', r"Set QUANT_ALPACA_FEED to iex or sip"),
        (422, '{"message":"end should be after start"}', r"end should be after start\. The request itself is refused"),
        (404, "<html><h1>404</h1> not here</html>", r"404 not here\. Is QUANT_ALPACA_URL the address"),
        (302, "", r"HTTP 302.*Is QUANT_ALPACA_URL"),
    ],
)  # fmt: skip
def test_a_refusal_is_shown_with_the_way_out_and_not_repeated(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock, status: int, body: str, says: str
) -> None:
    stub.faults = [Fault("status", status, body, {"Location": "http://127.0.0.1:1/"})]
    with pytest.raises(SourceError, match=says) as caught:
        source().bars(DAY(2024, 6, 27), LAST)
    assert "alpaca: bars 2024-06-27_2024-06-28_AAPL_MSFT" in str(caught.value)
    assert len(stub.requests) == 1
    assert not clock.slept
    assert source().bars(DAY(2024, 6, 27), LAST).num_rows == 6  # nothing of it was archived


def test_the_service_itself_refuses_so(stub: AlpacaStub, source: Callable[..., AlpacaSource]) -> None:
    with pytest.raises(SourceError, match="knows no symbol ABC1"):
        source(symbols="AAPL,ABC1").bars(DAY(2024, 6, 27), LAST)
    with pytest.raises(SourceError, match="Set QUANT_ALPACA_FEED to iex or sip"):
        source(alpaca_feed="otc").bars(DAY(2024, 6, 27), LAST)
    with pytest.raises(SourceError, match="check QUANT_ALPACA_KEY_ID"):
        source(alpaca_key_id="PKWRONG").news(DAY(2024, 6, 27), LAST)
    # The basic plan has the night's SIP bars when the close is more than 15 minutes ago.
    stub.basic_plan, stub.now = True, dt.datetime(2024, 6, 28, 20, 14, tzinfo=dt.UTC)
    with pytest.raises(SourceError, match="run at least 16 minutes after the close"):
        source(alpaca_feed="sip").bars(DAY(2024, 6, 27), LAST)
    stub.now = dt.datetime(2024, 6, 28, 20, 16, tzinfo=dt.UTC)
    assert source(alpaca_feed="sip").bars(DAY(2024, 6, 27), LAST).num_rows == 6


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 500),
        Fault("status", 504, "<html>Gateway Time-out</html>"),
        Fault("reset"),
        Fault("truncate"),
        Fault("garbage"),
        Fault("slow", seconds=0.8),
    ],
    ids=lambda fault: f"{fault.kind}{fault.status if fault.kind == 'status' else ''}",
)
def test_a_passing_failure_is_asked_again_and_then_forgotten(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock, fault: Fault
) -> None:
    made = source()
    made._requests._wire = Wire(made.vendor, read_seconds=0.4)
    fault.times = 2
    stub.faults = [fault]
    rows = made.bars(DAY(2024, 6, 27), LAST)
    assert by_key(rows)["IBM", LAST]["close"] == stub.day("IBM", LAST)["c"]
    assert (stub.asked("bars"), stub.asked("corporate-actions")) == (3, 1)
    assert [0.5 <= clock.slept[0] <= 1, 1 <= clock.slept[1] <= 2, len(clock.slept)] == [True, True, 2]


def test_a_vendor_that_stays_away_is_unavailable_and_what_came_is_kept(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    stub.faults = [Fault("status", 503, '{"message":"maintenance"}', path="corporate", times=99)]
    with pytest.raises(SourceUnavailable, match=rf"after {ATTEMPTS} attempt.*HTTP 503: maintenance"):
        source().bars(DAY(2024, 6, 27), LAST)
    assert (stub.asked("bars"), stub.asked("corporate-actions")) == (1, ATTEMPTS)
    stub.faults.clear()
    assert source().bars(DAY(2024, 6, 27), LAST).num_rows == 6
    assert (stub.asked("bars"), stub.asked("corporate-actions")) == (1, ATTEMPTS + 1)
    with pytest.raises(SourceUnavailable, match="did not come after 6 attempt"):
        source(alpaca_url="http://127.0.0.1:9").bars(DAY(2024, 6, 26), LAST)


def test_a_limit_says_when_to_come_back(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock
) -> None:
    said = '{"message":"too many requests."}'
    reset = str(int(clock.at.timestamp()) + 30)
    stub.faults = [
        Fault("status", 429, said, {"Retry-After": "7"}),
        Fault("status", 429, said, {"Retry-After": "Fri, 28 Jun 2024 21:01:00 GMT"}),
        Fault("status", 429, said, {"X-RateLimit-Reset": str(int(reset) + 60)}),
    ]
    assert source().bars(DAY(2024, 6, 27), LAST).num_rows == 6
    assert [round(seconds) for seconds in clock.slept] == [7, 53, 30]
    stub.faults = [Fault("status", 429, said, {"Retry-After": "3600"})]
    with pytest.raises(SourceUnavailable, match="wants to be asked in 3600 s"):
        source().bars(DAY(2024, 6, 26), LAST)


def test_waiting_times_that_make_no_sense_are_none() -> None:
    at = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    assert after_seconds({"retry-after": "soon"}, at) is None
    assert after_seconds({}, at) is None
    assert after_seconds({"X-RateLimit-Reset": "1704067230", "X-RateLimit-Remaining": "12"}, at) is None
    assert after_seconds({"RETRY-AFTER": "Mon, 01 Jan 2024 00:00:05 GMT"}, at) == 5
    assert after_seconds({"Retry-After": "Sun, 31 Dec 2023 00:00:05 GMT"}, at) == 0


def test_a_page_that_names_itself_ends_the_walk(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    stub.faults = [Fault("body", body='{"bars":{},"next_page_token":"x"}', path="bars", times=9)]
    with pytest.raises(SourceError, match=r"the page names itself as the next one \(x\)"):
        source().bars(DAY(2024, 6, 27), LAST)
    assert stub.asked("bars") == 2


# -- keys --------------------------------------------------------------------------------------------------------------


def test_no_key_is_written_anywhere(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], tmp_path: Path
) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    told: list[str] = []

    def ask(fault: Fault | None = None, **settings: Any) -> None:
        stub.faults = [fault] if fault else []
        made = source(minute_bars=True, **settings)
        for call in (made.bars, made.news, made.minute_bars, lambda *_: made.probe()):
            try:
                call(DAY(2024, 6, 27), LAST)
            except (SourceError, SourceUnavailable) as error:
                told.append(
                    "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__)
                )

    both = f'{{"message":"no {KEY_ID} or {SECRET_KEY}"}}'
    try:
        for status in (400, 401, 403, 404, 422):
            ask(Fault("status", status, both, times=99), home=tmp_path / "refused")
        for kind in ("reset", "truncate", "garbage"):
            ask(Fault(kind, times=99), home=tmp_path / "refused")
        ask(Fault("status", 500, both, times=99), home=tmp_path / "refused")
        ask(Fault("status", 429, both, times=99), home=tmp_path / "refused")
        stub.articles = [article(1, "2024-06-28T15:00:00Z", ["AAPL"], f"The key {SECRET_KEY} leaks")]
        ask()
        stub.key_id, stub.key_status = "another", 401
        ask(home=tmp_path / "refused")
        ask(alpaca_url="http://127.0.0.1:9", home=tmp_path / "refused")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    archived = [gzip.decompress(p.read_bytes()) for p in files if p.suffix == ".gz"]
    assert len(told) >= 40
    assert len(archived) > 20
    assert "(key)" in "".join(told)
    assert any(b"The key (key) leaks" in body for body in archived)
    everything = [written.getvalue().encode(), *(text.encode() for text in told), *archived]
    everything += [path.read_bytes() for path in files] + [str(path).encode() for path in files]
    for secret in (KEY_ID, SECRET_KEY):
        assert not [text[:300] for text in everything if secret.encode() in text]


@pytest.mark.parametrize("secret", ["two words", "line\nbreak", "schlüssel", " lead"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(
    source: Callable[..., AlpacaSource], secret: str
) -> None:
    with pytest.raises(SourceError, match="QUANT_ALPACA_SECRET_KEY holds a space") as caught:
        source(alpaca_secret_key=secret)
    assert secret.strip() not in str(caught.value)


# -- minute bars and quotes --------------------------------------------------------------------------------------------


def test_minutes_are_those_of_regular_hours_with_quotes_now_and_then(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], clock: Clock
) -> None:
    clock.at = dt.datetime(2024, 7, 3, 18, tzinfo=dt.UTC)
    made = source(minute_bars=True, symbols="AAPL,MSFT")
    half = DAY(2024, 7, 3)  # closes at 13:00
    rows = made.minute_bars(DAY(2024, 7, 2), half)
    assert rows.schema == MINUTE_BARS
    assert not validate_minute_bars(rows, made.calendar).violations
    found = by_key(rows)
    for session in (DAY(2024, 7, 2), half):
        opens, close = made.calendar.opens(session), made.calendar.close(session)
        inside = [ts for symbol, ts in found if symbol == "AAPL" and ts.date() == session]
        stated = [
            dt.datetime.fromisoformat(t)
            for t, _ in stub._minute_texts("AAPL", session)
            if opens <= dt.datetime.fromisoformat(t) < close
        ]
        assert inside == stated
        quoted = [ts for ts in inside if found["AAPL", ts]["bid"] is not None]
        wanted = [opens + dt.timedelta(minutes=30 * k + 29) for k in range(len(stated) // 30 + 1)]
        assert quoted == [ts for ts in wanted if ts in inside]
    # The last of ten quotes in the five seconds before 10:00 New York; two and three round lots.
    row = found["MSFT", dt.datetime(2024, 7, 2, 13, 59, tzinfo=dt.UTC)]
    assert row["bid"] == 100.09
    assert 0.01 <= round(row["ask"] - row["bid"], 2) <= 0.04
    assert (row["bid_size"], row["ask_size"]) == (200, 300)
    # one of bars and 13 of quotes on the first day, 7 on the half day
    assert (stub.asked("bars"), stub.asked("quotes")) == (2, 20)
    asked = next(asked for path, asked in stub.requests if "quotes" in path)
    assert asked["start"] == "2024-07-02T13:59:55+00:00"
    assert asked["end"] == "2024-07-02T13:59:59.999999+00:00"
    assert asked["sort"] == "desc"
    again = made.minute_bars(DAY(2024, 7, 2), half)
    assert again.equals(rows)
    assert len(stub.requests) == 22


def test_sizes_are_shares_since_the_feeds_went_over(
    source: Callable[..., AlpacaSource], clock: Clock
) -> None:
    clock.at = dt.datetime(2025, 11, 4, tzinfo=dt.UTC)
    made = source(minute_bars=True, symbols="AAPL", alpaca_quote_minutes=390)
    sizes = {
        row["ts"].date(): row["bid_size"]
        for row in made.minute_bars(DAY(2025, 10, 31), DAY(2025, 11, 3)).to_pylist()
        if row["bid"] is not None
    }
    assert sizes == {DAY(2025, 10, 31): 200, DAY(2025, 11, 3): 2}


def test_quotes_without_a_side_are_passed_over_and_pages_walked_until_each_symbol_has_one(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    stub.bad_quotes, stub.unquoted = {"AAPL"}, {"IBM"}
    settings = {"minute_bars": True, "alpaca_quote_minutes": 390}
    found = source(**settings).minute_bars(LAST, LAST)
    close = dt.datetime(2024, 6, 28, 19, 59, tzinfo=dt.UTC)
    bids = {symbol: by_key(found)[symbol, close]["bid"] for symbol in ("AAPL", "IBM", "MSFT")}
    assert bids == {"AAPL": 100.08, "IBM": None, "MSFT": 100.09}
    # AAPL's ten quotes fill five pages, MSFT's first one is on the sixth: the rest is not asked for.
    stub.page_rows, stub.unquoted, stub.requests = 2, set(), []
    pages = source(home=source()._settings.home / "other", symbols="AAPL,MSFT", **settings)
    minutes = pages._requests.quotes(LAST, ("AAPL", "MSFT"))
    assert stub.asked("quotes") == 6
    assert {row["symbol"]: row["bid"] for row in pa.concat_tables(minutes[::-1]).to_pylist()} == {
        "AAPL": 100.08,
        "MSFT": 100.09,
    }


def test_quotes_are_wanted_every_so_often_and_at_the_close() -> None:
    opens = dt.datetime(2024, 7, 3, 13, 30, tzinfo=dt.UTC)
    close = opens + dt.timedelta(minutes=210)

    def minutes(every: int) -> list[int]:
        return [int((end - opens).total_seconds() // 60) for end in quote_instants(opens, close, every)]

    assert minutes(30) == [30, 60, 90, 120, 150, 180, 210]
    assert minutes(100) == [100, 200, 210]
    assert minutes(390) == [210]
    assert minutes(1) == list(range(1, 211))


def test_minutes_become_a_market_to_sell_in(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], warehouse: Warehouse
) -> None:
    """From the wire to `ExecutionMarket`: real spreads, carried from one quote to the next, and real volumes."""
    sessions = CALENDAR.sessions(DAY(2012, 1, 3), DAY(2012, 1, 11))
    made = source(minute_bars=True, symbols="MSFT", first_session="2012-01-03")
    rows = validate_minute_bars(made.minute_bars(sessions[0], sessions[-1]), CALENDAR).rows
    rows = rows.append_column("source", pa.array(["alpaca"] * rows.num_rows))
    columns = [column.name for column in STORED_MINUTES.columns]
    warehouse.write(STORED_MINUTES, STORED_MINUTES.conform(rows.select(columns)))
    log = logging.getLogger("test")
    days, market = read_real_markets(warehouse, {"MSFT": IntradayModel()}, 2, log).markets["MSFT"]
    assert days.astype(object).tolist() == sessions[-2:]
    for at, session in enumerate(sessions[-2:]):
        opens = CALENDAR.opens(session)
        stored = by_key(rows.filter(pc.equal(rows["session"], session)))
        volumes = [
            stored.get(("MSFT", opens + dt.timedelta(minutes=k)), {"volume": 0})["volume"] for k in range(390)
        ]
        np.testing.assert_array_equal(market.volume_shares[at], volumes)
        quoted = {
            k + 1: row["ask"] - row["bid"]
            for k in range(390)
            if (row := stored.get(("MSFT", opens + dt.timedelta(minutes=k)))) and row["bid"] is not None
        }
        assert len(quoted) >= 11
        carried = [
            quoted[max((k for k in quoted if k <= instant), default=min(quoted))] for instant in range(391)
        ]
        np.testing.assert_allclose(market.spread[at], carried)
        closes = [stored[key]["close"] for key in stored]
        assert market.mid[at, 5] in closes  # a minute without a quote: its last trade


# -- news --------------------------------------------------------------------------------------------------------------


def test_news_belong_to_the_session_whose_close_follows(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    stub.articles = [
        article(1, "2024-06-26T20:00:00Z", ["AAPL"], "at the close of the day before"),
        article(2, "2024-06-26T20:00:01Z", ["AAPL"], "after it"),
        article(3, "2024-06-27T20:00:00Z", ["AAPL"], "at the close"),
        article(4, "2024-06-27T20:00:01Z", ["AAPL"], "after the close"),
        article(5, "2024-06-27T12:00:00Z", ["TSLA"], "of nobody who is wanted"),
        article(6, "2024-06-27T13:00:00Z", ["TSLA", "MSFT", "IBM", "msft"], "Microsoft and IBM &amp; others"),
        article(7, "2024-06-27T14:00:00Z", [], "of nobody"),
    ]
    made = source()
    rows = made.news(DAY(2024, 6, 27), DAY(2024, 6, 27))
    assert rows.schema == NEWS
    found = [(r["article_id"], r["symbol"], round(r["relevance_score"], 3)) for r in rows.to_pylist()]
    assert found == [("2", "AAPL", 1), ("6", "IBM", 0.333), ("6", "MSFT", 0.333), ("3", "AAPL", 1)]
    row = rows.to_pylist()[1]
    assert row["title"] == "Microsoft and IBM & others"
    assert row["url"] == "https://www.benzinga.com/news/6"
    assert (row["scorer"], row["dated_session"]) == (made.scorer.name, None)
    judged = validate_news(rows, made.calendar)
    assert not judged.violations
    assert set(judged.rows["session"].to_pylist()) == {DAY(2024, 6, 27)}
    table = judged.rows.append_column("source", pa.array(["alpaca"] * rows.num_rows))
    stored = STORED_NEWS.conform(table.select([c.name for c in STORED_NEWS.columns]))
    assert set(stored["scorer"].to_pylist()) == {made.scorer.name}


def test_news_pages_are_walked_and_articles_count_once(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant_resources.sources.alpaca.BATCH_SYMBOLS", 2)
    stub.articles = [
        article(
            k, f"2024-06-{3 + k // 10:02d}T{10 + k % 8}:00:{k % 60:02d}Z", ["AAPL", "MSFT"], f"Number {k}"
        )
        for k in range(120)
    ]
    rows = source(news_symbols="INTC").news(DAY(2024, 5, 20), LAST)
    assert rows.num_rows == 240
    assert len(set(rows["article_id"].to_pylist())) == 120
    # May and June for AAPL+IBM, then INTC+MSFT; 120 articles are three pages of fifty, twice.
    assert stub.asked("news") == 8
    assert {asked["symbols"] for _, asked in stub.requests} == {"AAPL,IBM", "INTC,MSFT"}
    assert source(news_symbols="INTC").news(DAY(2024, 5, 20), LAST).equals(rows)
    assert stub.asked("news") == 8


def test_an_article_that_is_changed_after_the_close_is_still_found(
    stub: AlpacaStub, source: Callable[..., AlpacaSource]
) -> None:
    stub.articles = [article(1, "2024-06-27T15:00:00Z", ["IBM"], "Changed", "2024-06-29T10:00:00Z")]
    rows = source().news(DAY(2024, 6, 27), DAY(2024, 6, 27)).to_pylist()
    assert [row["published_at"] for row in rows] == [dt.datetime(2024, 6, 27, 15, tzinfo=dt.UTC)]


def test_markup_is_taken_out_of_texts() -> None:
    text = (
        "<p>Profit &lt;b&gt; &amp; <a href='x>y'>loss</a> 3 < 5</p><script>alert(1)</script>\n\n &nbsp; end"
    )
    assert alpaca_documents.plain_text(text) == "Profit <b> & y'>loss 3 < 5 end"


# -- the rest of the protocol ------------------------------------------------------------------------------------------


def test_securities_are_the_wanted_symbols_classified_by_ones_own_file(
    source: Callable[..., AlpacaSource], tmp_path: Path
) -> None:
    blank = source(news_symbols="INTC").securities()
    assert blank.schema == SECURITIES
    assert blank["symbol"].to_pylist() == ["AAPL", "IBM", "INTC", "MSFT"]
    assert set(blank["industry"].to_pylist()) == {""}
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "securities.csv").write_text(
        "symbol,name,industry\nIBM,International,IT Services\nTSLA,Tesla,Cars\n"
    )
    own = source(files_dir=folder).securities().to_pylist()
    assert [(row["symbol"], row["name"], row["industry"]) for row in own] == [
        ("AAPL", "", ""),
        ("IBM", "International", "IT Services"),
        ("MSFT", "", ""),
    ]
    (folder / "securities.csv").write_text("ticker\nIBM\n")
    with pytest.raises(SourceError, match=r"securities\.csv: wrong columns: symbol missing"):
        source(files_dir=folder).securities()


def test_a_probe_is_one_request_and_a_sentence(stub: AlpacaStub, source: Callable[..., AlpacaSource]) -> None:
    stub.published_until = LAST
    close = stub.day("AAPL", LAST)["c"]
    assert source().probe() == f"Alpaca answers: AAPL at {close:g} dollars, 2024-06-28 04:00 UTC (feed iex)."
    assert source(symbols="NONE").probe() == "Alpaca answers, and has no bar of NONE on its feed iex."
    assert len(stub.requests) == 2
    told = source(symbols="AAPL,IBM,NONE,NADA").probe()
    assert told.startswith(f"Alpaca answers: AAPL at {close:g} dollars, 2024-06-28 04:00 UTC (feed iex).")
    assert told.endswith("It has no bar of NADA, NONE: are they written as Alpaca writes them?")
    assert len(stub.requests) == 3
    stub.key_id = "another"
    with pytest.raises(SourceError, match="check QUANT_ALPACA_KEY_ID"):
        source().probe()
    # A home that is read back from the archive has no keys.
    made = source(alpaca_key_id=None, alpaca_secret_key=None, archive_only=True)
    made.vendor.archive_only = False
    with pytest.raises(SourceError, match="QUANT_ALPACA_KEY_ID and QUANT_ALPACA_SECRET_KEY are needed"):
        made.probe()


def test_settings_open_it(tmp_path: Path) -> None:
    opened = open_source(
        load_settings(
            home=tmp_path,
            source="alpaca",
            symbols="MSFT,AAPL,MSFT",
            alpaca_key_id=KEY_ID,
            alpaca_secret_key=SECRET_KEY,
            last_session="2024-06-28",
            overlap_sessions=7,
        )
    )
    assert isinstance(opened, AlpacaSource)
    assert (opened.name, opened.news_is_simulated, opened.has_minute_bars) == ("alpaca", False, False)
    assert (opened.overlap_sessions, opened.is_live, opened.symbols) == (7, True, ("AAPL", "MSFT"))
    assert opened.span() == (DAY(2000, 1, 3), LAST)
    assert opened.minute_bars(LAST, LAST).num_rows == 0
    assert os.listdir(tmp_path) == []
    assert {c.name for c in STORED_BARS.columns} >= set(BARS.names) - {"origin"}


# -- malformed documents -----------------------------------------------------------------------------------------------

READERS = {
    "day_bars": {"bars": {"AAPL": [{"t": "2024-06-28T04:00:00Z", "o": 1, "h": 1, "l": 1, "c": 1, "v": 1}]}},
    "minute_bars": {
        "bars": {"AAPL": [{"t": "2024-06-28T14:00:00Z", "o": 1, "h": 1, "l": 1, "c": 1, "v": 1}]}
    },
    "quotes": {"quotes": {"AAPL": [{"t": "2024-06-28T14:00:00.1234Z", "bp": 1, "ap": 2, "bs": 1, "as": 1}]}},
    "actions": {
        "corporate_actions": {
            "cash_dividends": [{"symbol": "AAPL", "rate": 0.1, "ex_date": "2024-06-28"}],
            "forward_splits": [{"symbol": "AAPL", "new_rate": 2, "old_rate": 1, "ex_date": "2024-06-28"}],
        }
    },
    "articles": {"news": [article(1, "2024-06-28T14:00:00Z", ["AAPL"], "x")]},
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("day_bars", '"c": 1', '"c": "1"', r"ORIGIN: AAPL: .*Expected `float`, got `str`.*\.c"),
        ("day_bars", '"c": 1', '"x": 1', r"ORIGIN: AAPL: .*missing required field `c`"),
        ("day_bars", "2024-06-28T04:00:00Z", "28.6.2024", r"ORIGIN: AAPL: '28\.6\.2024' is no instant"),
        (
            "day_bars",
            "04:00:00Z",
            "04:00:00",
            r"ORIGIN: AAPL: '2024-06-28T04:00:00' is no instant with a zone",
        ),
        ("day_bars", '"bars"', '"bar"', r"ORIGIN: the answer is not what Alpaca documents: .*`bars`"),
        ("quotes", '"bp": 1', '"bp": null', r"ORIGIN: AAPL: .*got `null`"),
        (
            "actions",
            '"rate": 0.1',
            '"rate": -0.1',
            r"ORIGIN: AAPL: a cash dividend of 2024-06-28 has .* -0\.1 dollars",
        ),
        (
            "actions",
            '"old_rate": 1',
            '"old_rate": 0',
            r"ORIGIN: AAPL: a forward split of 2024-06-28 has a factor of 0",
        ),
        ("actions", '"ex_date": "2024-06-28"', '"ex_date": "2024-06-31"', r"ORIGIN: .*RFC3339.*\.ex_date"),
        ("articles", '"id": 1', '"id": null', r"ORIGIN: .*got `null`"),
        ("articles", "2024-06-28T14:00:00Z", "yesterday", r"ORIGIN: article 1: 'yesterday' is no instant"),
    ],
)
def test_what_is_wrong_with_a_document_is_said(name: str, old: str, new: str, says: str) -> None:
    text = json.dumps(READERS[name])
    assert old in text
    with pytest.raises(SourceError, match=says):
        getattr(alpaca_documents, name)(text.replace(old, new).encode(), "ORIGIN")


@pytest.mark.parametrize("name", READERS)
def test_a_document_without_rows_is_empty(name: str) -> None:
    (root,) = READERS[name]
    for nothing in ("null", "[]" if root == "news" else "{}"):
        page = getattr(alpaca_documents, name)(
            f'{{"{root}": {nothing}, "next_page_token": null}}'.encode(), "ORIGIN"
        )
        assert (page.rows.num_rows, page.next_page_token) == (0, None)


@given(data=st.data(), name=st.sampled_from(sorted(READERS)))
def test_no_document_breaks_a_reader(data: st.DataObject, name: str) -> None:
    """A good document with one part replaced by anything, or cut somewhere: rows, or an error that names the origin."""
    document = json.loads(json.dumps(READERS[name]))
    at = document
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
        if data.draw(st.booleans()) or not isinstance(at[key], dict | list):
            at[key] = data.draw(ANYTHING)
            break
        at = at[key]
    body = json.dumps(document).encode()
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body)))]
    try:
        page = getattr(alpaca_documents, name)(body, "ORIGIN")
    except (SourceError, NoJSON) as error:
        told, rows = str(error), 0
    else:
        told, rows = "ORIGIN", page.rows.num_rows
    assert "ORIGIN" in told
    assert rows <= 3


@pytest.mark.parametrize(
    ("path", "root"), [("bars", "bars"), ("corporate-actions", "corporate_actions"), ("news", "news")]
)
def test_a_wrong_document_is_neither_archived_nor_asked_for_again(
    stub: AlpacaStub, source: Callable[..., AlpacaSource], path: str, root: str
) -> None:
    stub.faults = [Fault("body", body=f'{{"{root}": 7}}', path=path)]
    ask = source().news if root == "news" else source().bars
    with pytest.raises(SourceError, match="not what Alpaca documents"):
        ask(DAY(2024, 6, 27), LAST)
    assert stub.asked(path) == 1
    ask(DAY(2024, 6, 27), LAST)
    assert stub.asked(path) == 2
