"""Source `alpaca`: bars, corporate actions, minute bars with quotes, and news of Alpaca's market data service, through alpaca-py.

Belongs here: which symbols and sessions are asked for together, and the tables that come of it. Does not belong here: the requests
(`alpaca_requests.py`), the documents' format (`alpaca_documents.py`), the vendor's refusals (`alpaca_wire.py`), what rows do to one
another (`alpaca_rows.py`), scores (`scoring.py`).

What is worth knowing of the service (its history begins in 2016):

- The free feed `iex` is one exchange: its volumes are a few percent of the market's, its spreads wider, and quiet minutes have no bar.
- Bars are asked raw and without `asof`, which means as of today: a company that was renamed has its whole history under the name that
  it has now (META holds FB's bars), and the old name has none. A fixed `asof` would lose the other half of that history, and one that
  moves with the day would make every night another request. The vendor learns of a new name the day after.
- Corporate actions are found by their process date, which for a dividend is the day on which it is paid, weeks after the ex-date: the
  requests reach half a year further than the sessions. One that becomes known after the nights that ask for its session again
  (`QUANT_OVERLAP_SESSIONS`) needs a backfill. Spin-offs, mergers and rights are not brought in: nothing in `BARS` can hold them.
- Sizes of quotes were stated in round lots of 100 shares until the exchanges' feeds went over to shares (`SIZES_IN_SHARES_SINCE`); here
  they are shares. A few very expensive shares have smaller lots, which the vendor does not state: theirs are too large before that day.
- News are listed by the instant of their last change, carry no sentiment, and several symbols in a request mean any of them. An
  article counts from its first publication on, in the first of its versions that the archive has; a backfill can only get the
  version of today.
- There is no master of securities: names and segments come from `securities.csv` in QUANT_FILES_DIR where there is one.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Set
from functools import cached_property
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.calendar import NEW_YORK, TradingCalendar
from quant_resources.sources import (
    BARS,
    MINUTE_BARS,
    NEWS,
    SECURITIES,
    SourceError,
    SourceIncomplete,
    Waiting,
)
from quant_resources.sources import alpaca_documents as documents
from quant_resources.sources.alpaca_coverage import (
    Answer,
    Wanted,
    actions_span,
    asked_span,
    lacking,
    minutes_span,
)
from quant_resources.sources.alpaca_requests import QUOTE_WINDOW_SECONDS, AlpacaRequests
from quant_resources.sources.alpaca_rows import (
    between,
    first_versions,
    latest_actions,
    newest,
    of_symbols,
    quote_instants,
    with_actions,
)
from quant_resources.sources.alpaca_wire import TRANSIENT, read_document
from quant_resources.sources.archive import Archive
from quant_resources.sources.budget import Budget
from quant_resources.sources.scoring import Scorer, Text, open_scorer
from quant_resources.sources.vendor import Vendor

if TYPE_CHECKING:
    from quant_resources.settings import Settings
    from quant_resources.sources.alpaca_documents import Page
    from quant_resources.sources.archive import Document

logger = logging.getLogger(__name__)

DEFAULT_FIRST_SESSION = dt.date(2000, 1, 3)
# A series is a batch of symbols and a calendar year: three pages, small enough to be asked again, few enough to be fast.
BATCH_SYMBOLS = 100
# A session of 25 symbols is one page of minute bars (10,000 rows).
MINUTE_BATCH_SYMBOLS = 25
SIZES_IN_SHARES_SINCE = dt.date(2025, 11, 3)
ROUND_LOT_SHARES = 100
# An article that is changed within this time of the last close is still found under its window.
CHANGED_LATER = dt.timedelta(days=3)
# A month's request may begin with the weekend before it and reaches `CHANGED_LATER` further.
LONGEST_NEWS_SERIES = dt.timedelta(days=40)


class AlpacaSource:
    """Alpaca behind the `MarketSource` protocol.

    Every answer is archived; a second call asks for what has not come. Whatever the vendor refuses is a `SourceError` in its own words;
    a vendor out of reach is a `SourceUnavailable`. There is no daily quota, so nothing that is asked for is half given. While nothing may
    be asked (`QUANT_ARCHIVE_ONLY`), symbols whose archived answers, put together, do not reach over all wanted sessions wait: a
    `SourceIncomplete` names them and holds all of the others.

    Args:
        settings: symbols, feed, keys, address, sessions.
        sleep, now: the clock, for tests.

    Raises:
        SourceError: a key cannot be one.
    """

    name = "alpaca"
    news_is_simulated = False
    is_live = True

    def __init__(
        self,
        settings: Settings,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._settings = settings
        self.symbols = tuple(sorted(set(settings.symbols or ())))
        self.news_symbols = tuple(sorted({*self.symbols, *(settings.news_symbols or ())}))
        self.has_minute_bars = settings.minute_bars
        self.overlap_sessions = settings.overlap_sessions
        secrets = tuple(
            _key(name, value.get_secret_value() if (value := getattr(settings, name)) is not None else "")
            for name in ("alpaca_key_id", "alpaca_secret_key")
        )
        self.vendor = Vendor(
            Archive(settings.archive_dir, self.name, secrets),
            Budget(
                settings.archive_dir / f"{self.name}.budget.json",
                settings.alpaca_requests_per_minute,
                now=lambda: now().timestamp(),
                sleep=sleep,
            ),
            secrets,
            TRANSIENT,
            archive_only=settings.archive_only,
            sleep=sleep,
            now=now,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> AlpacaSource:
        """The source that the settings describe."""
        return cls(settings)

    def span(self) -> tuple[dt.date, dt.date | None]:
        """`QUANT_FIRST_SESSION` to `QUANT_LAST_SESSION`."""
        return self._settings.first_session or DEFAULT_FIRST_SESSION, self._settings.last_session

    @cached_property
    def calendar(self) -> TradingCalendar:
        """Knows the span and a year more than today."""
        first, last = self.span()
        end = last or self.vendor.now().date() + dt.timedelta(days=365)
        return TradingCalendar(first, end)

    @cached_property
    def _requests(self) -> AlpacaRequests:
        return AlpacaRequests(self._settings, self.vendor, self.calendar)

    @cached_property
    def scorer(self) -> Scorer:
        """Who scores the news."""
        return open_scorer(self._settings)

    # -- what `MarketSource` promises ----------------------------------------------------------------------------------

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.bars`."""
        sessions = self.calendar.sessions(first, last)
        if not sessions:
            return BARS.empty_table()
        before = self.calendar.shift(sessions[0], -1)
        parts = [BARS.empty_table()]
        days_had: list[Answer] = []
        actions_had: list[Answer] = []
        # Batch by batch: the sorting and matching of one is done before the next one comes.
        for days, known in (
            self._archived_bars(first, last, days_had, actions_had)
            if self.vendor.archive_only
            else self._ask_bars(sessions)
        ):
            whole = newest(between(days, "session", first, last), ["symbol", "session"])
            parts.append(with_actions(whole, known, before))
        rows = pa.concat_tables(parts)
        if absent := sorted(set(self.symbols) - set(rows["symbol"].unique().to_pylist())):
            logger.warning("alpaca: no bar of %s in %s..%s", ", ".join(absent[:20]), first, last)
        if self.vendor.archive_only:
            wanted = [
                Wanted(s, dt.datetime.combine(s, dt.time(), ZoneInfo(NEW_YORK)), self.calendar.close(s))
                for s in sessions
            ]
            self._require(
                rows,
                ("day bars", lacking(days_had, self.symbols, wanted, asked_span)),
                ("corporate actions", lacking(actions_had, self.symbols, wanted, actions_span)),
            )
        return rows

    def minute_bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.minute_bars`; regular hours alone.

        Every `QUANT_ALPACA_QUOTE_MINUTES` minutes of a session, and at its end, a minute has the last quote of its last
        `alpaca_requests.QUOTE_WINDOW_SECONDS`, if there was one; all other minutes have none.
        """
        sessions = self.calendar.sessions(first, last)
        if not (sessions and self.has_minute_bars):
            return MINUTE_BARS.empty_table()
        minutes_had: list[Answer] = []
        quotes_had: list[Answer] = []
        if self.vendor.archive_only:
            bars = [
                self._in_hours(page.rows, sessions)
                for _, page in self._archived("minute_bars", documents.minute_bars, had=minutes_had)
            ]
            quotes = [page.rows for _, page in self._archived("quotes", documents.quotes, had=quotes_had)]
        else:
            bars, quotes = [], []
            for session in sessions:
                for batch in _batches(self.symbols, MINUTE_BATCH_SYMBOLS):
                    bars += self._requests.minutes(session, batch)
                    quotes += self._requests.quotes(session, batch)
        minutes = newest(
            self._in_hours(pa.concat_tables([documents.MINUTES.empty_table(), *bars]), sessions),
            ["symbol", "ts"],
        )
        # A symbol may go on over several pages: the quote's own instant says which is the last one of its minute.
        listed = pa.concat_tables([documents.QUOTES.empty_table(), *quotes]).sort_by("at")
        quoted = newest(listed, ["symbol", "ts"]).drop_columns(["at"])
        since = dt.datetime.combine(SIZES_IN_SHARES_SINCE, dt.time(), ZoneInfo(NEW_YORK))
        lot = pc.if_else(pc.less(quoted["ts"], pa.scalar(since)), float(ROUND_LOT_SHARES), 1.0)
        for name in ("bid_size", "ask_size"):
            at = quoted.schema.get_field_index(name)
            quoted = quoted.set_column(at, name, pc.multiply(quoted[name], lot))
        joined = minutes.join(quoted, ["symbol", "ts"], use_threads=False)
        rows = (
            joined.select(MINUTE_BARS.names)
            .cast(MINUTE_BARS)
            .sort_by([("symbol", "ascending"), ("ts", "ascending")])
        )
        if self.vendor.archive_only:
            hours = [Wanted(s, self.calendar.opens(s), self.calendar.close(s)) for s in sessions]
            looks = [
                Wanted(
                    s, end - dt.timedelta(seconds=QUOTE_WINDOW_SECONDS), end - dt.timedelta(microseconds=1)
                )
                for s, opens, close in hours
                for end in quote_instants(opens, close, self._settings.alpaca_quote_minutes)
            ]
            self._require(
                rows,
                ("minute bars", lacking(minutes_had, self.symbols, hours, minutes_span)),
                ("quotes", lacking(quotes_had, self.symbols, looks, asked_span)),
            )
        return rows

    def news(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.news`: one row for each wanted symbol that an article names.

        The score is the scorer's, the relevance one over the number of symbols that the article names: the vendor states neither.
        """
        sessions = self.calendar.sessions(first, last)
        if not sessions:
            return NEWS.empty_table()
        begin = self.calendar.close(self.calendar.shift(sessions[0], -1))
        end = self.calendar.close(sessions[-1])
        if not self.vendor.archive_only:
            for batch in _batches(self.news_symbols, BATCH_SYMBOLS):
                start = begin
                for month in _by(sessions, lambda session: (session.year, session.month)):
                    close = self.calendar.close(month[-1])
                    until = close + CHANGED_LATER if close == end else close
                    self._requests.news(start, until, batch, close)
                    start = close
        # Read from the archive either way: an article may have come in an earlier version before.
        labels = _months(begin - LONGEST_NEWS_SERIES, end)
        parts = [documents.ARTICLES.empty_table()]
        had: list[Answer] = []
        for _, page in self._archived("news", documents.articles, labels, had):
            published = page.rows["published_at"]
            inside = pc.and_(
                pc.greater(published, pa.scalar(begin)), pc.less_equal(published, pa.scalar(end))
            )
            parts.append(page.rows.filter(inside))
        lacks: dict[str, list[dt.date]] = {}
        if self.vendor.archive_only:
            closes = [begin, *(self.calendar.close(session) for session in sessions)]
            wanted = [Wanted(s, closes[at], closes[at + 1]) for at, s in enumerate(sessions)]
            lacks = lacking(had, self.news_symbols, wanted, asked_span)
        # What is left out is not scored either: a score may have to be paid for.
        rows = self._scored(first_versions(pa.concat_tables(parts)), set(self.news_symbols) - set(lacks))
        self._require(rows, ("news", lacks))
        return rows

    def securities(self) -> pa.Table:
        """See `MarketSource.securities`: the wanted symbols, classified by the user's own file alone."""
        from quant_resources.sources.files import read_securities

        folder = self._settings.files_dir
        own = read_securities(folder) if folder is not None else None
        own = of_symbols(own if own is not None else SECURITIES.empty_table(), self.news_symbols)
        known = set(own["symbol"].to_pylist())
        others = [symbol for symbol in self.news_symbols if symbol not in known]
        blank = pa.table(
            [pa.array(others, pa.string())] + [pa.array([""] * len(others), pa.string())] * 4,
            schema=SECURITIES,
        )
        return pa.concat_tables([own, blank]).sort_by("symbol")

    def probe(self) -> str:
        """Ask for the newest minute bar of every symbol, archived or not: one request for a hundred of them.

        Returns:
            What came of the first one, and which have none, in a sentence or two.

        Raises:
            SourceError: the vendor refuses.
            SourceUnavailable: it could not be reached.
        """
        if self.vendor.archive_only:
            return f"Alpaca is not asked while QUANT_ARCHIVE_ONLY is set; answers lie in {self.vendor.archive.folder}."
        feed = self._settings.alpaca_feed
        found = [self._requests.latest_bars(batch) for batch in _batches(self.symbols, BATCH_SYMBOLS)]
        bars = {bar["symbol"]: bar for rows in found for bar in rows.to_pylist()}
        without = [symbol for symbol in self.symbols if symbol not in bars]
        named = ", ".join(without[:20]) + (f" and {len(without) - 20} more" if len(without) > 20 else "")
        if not bars:
            return f"Alpaca answers, and has no bar of {named} on its feed {feed}."
        bar = bars[min(bars)]
        said = f"Alpaca answers: {bar['symbol']} at {bar['close']:g} dollars, {bar['ts']:%Y-%m-%d %H:%M} UTC (feed {feed})."
        return (
            f"{said} It has no bar of {named}: are they written as Alpaca writes them?" if without else said
        )

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _ask_bars(self, sessions: list[dt.date]) -> Iterator[tuple[pa.Table, pa.Table]]:
        """(day bars, corporate actions) of each batch of symbols, as the vendor answers."""
        for batch in _batches(self.symbols, BATCH_SYMBOLS):
            pages = [page for year in _years(sessions) for page in self._requests.days(year, batch)]
            acted = self._requests.actions(sessions, batch)
            yield (
                of_symbols(pa.concat_tables([documents.DAY_BARS.empty_table(), *pages]), batch),
                newest(
                    of_symbols(pa.concat_tables([documents.ACTIONS.empty_table(), *acted]), batch), ["id"]
                ),
            )

    def _archived_bars(
        self, first: dt.date, last: dt.date, days_had: list[Answer], actions_had: list[Answer]
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """(day bars, corporate actions) of each batch of symbols, as the archive has them; notes the answers of both."""
        days = pa.concat_tables(
            [documents.DAY_BARS.empty_table()]
            + [
                between(page.rows, "session", first, last)
                for _, page in self._archived("bars", documents.day_bars, had=days_had)
            ]
        )
        known = latest_actions(self._archived("actions", documents.actions, had=actions_had))
        for batch in _batches(self.symbols, BATCH_SYMBOLS):
            yield of_symbols(days, batch), of_symbols(known, batch)

    def _require(self, rows: pa.Table, *lacks: tuple[str, dict[str, list[dt.date]]]) -> None:
        """Refuse when the archive lacks something that is wanted.

        Args:
            rows: what there is.
            lacks: of each dataset, in words, the sessions that are missing by symbol.

        Raises:
            SourceIncomplete: with the rows of the symbols that lack nothing.
        """
        reasons: dict[str, str] = {}
        for what, missing in lacks:
            for symbol, sessions in missing.items():
                reasons.setdefault(
                    symbol,
                    f"the archive has no whole answer for {what} of {symbol} in {sessions[0]}..{sessions[-1]} ({len(sessions)} "
                    "session(s)), and QUANT_ARCHIVE_ONLY keeps the vendor from being asked",
                )
        if reasons:
            retry_at = self.vendor.now() + dt.timedelta(days=1)
            kept = rows.filter(pc.invert(pc.is_in(rows["symbol"], pa.array(reasons, pa.string()))))
            raise SourceIncomplete(kept, [Waiting(s, reasons[s], retry_at) for s in sorted(reasons)])

    def _archived(
        self,
        dataset: str,
        read: Callable[[bytes, str], Page],
        labels: Iterable[str] | None = None,
        had: list[Answer] | None = None,
    ) -> Iterator[tuple[Document, Page]]:
        """Archived documents of a dataset with their pages, the oldest first; each is noted in `had` while nothing may be asked.

        Raises:
            SourceError: there is none at all and none may be asked for; one is damaged.
        """
        archive = self.vendor.archive
        found = (
            archive.documents(dataset)
            if labels is None
            else heapq.merge(
                *(archive.documents(dataset, label) for label in labels),
                key=lambda document: document.path.name,
            )
        )
        none = True
        for document in found:
            none = False
            page = read_document(document, read)
            if had is not None and self.vendor.archive_only:
                # Only the walk over quotes looks at which symbols a page has.
                listed = page.rows["symbol"].unique().to_pylist() if dataset == "quotes" else ()
                had.append(
                    Answer(document.request, document.fetched_at, page.next_page_token, frozenset(listed))
                )
            yield document, page
        if none and self.vendor.archive_only:
            raise SourceError(
                f"the archive {archive.folder} has no answer of alpaca for {dataset}, and QUANT_ARCHIVE_ONLY keeps it from being asked. "
                "Unset QUANT_ARCHIVE_ONLY"
            )

    def _in_hours(self, minutes: pa.Table, sessions: list[dt.date]) -> pa.Table:
        """Wanted symbols' minutes from the open to the close of these sessions."""
        rows = of_symbols(minutes, self.symbols)
        opens = np.array([_naive(self.calendar.opens(s)) for s in sessions], "datetime64[us]")
        closes = np.array([_naive(self.calendar.close(s)) for s in sessions], "datetime64[us]")
        ts = rows["ts"].to_numpy().astype("datetime64[us]")
        at = np.searchsorted(opens, ts, side="right") - 1
        return rows.filter(pa.array((at >= 0) & (ts < closes[np.maximum(at, 0)])))

    def _scored(self, articles: pa.Table, wanted: Set[str]) -> pa.Table:
        """`ARTICLES` as `NEWS`, one row for each wanted symbol; none where the scorer has no score."""
        companies = dict(
            zip(*(self.securities()[name].to_pylist() for name in ("symbol", "name")), strict=True)
        )
        row, symbols, relevance = [], [], []
        texts: list[Text] = []
        named = articles["symbols"].to_pylist()
        titles, summaries = articles["title"].to_pylist(), articles["summary"].to_pylist()
        for at, mentioned in enumerate(named):
            mentioned = sorted({str(symbol).upper() for symbol in mentioned or () if symbol})
            for symbol in mentioned:
                if symbol in wanted:
                    row.append(at)
                    symbols.append(symbol)
                    relevance.append(1 / len(mentioned))
                    texts.append(Text(titles[at], summaries[at], symbol, companies.get(symbol, "")))
        given = self.scorer.score(texts) if texts else []
        scored = [at for at, score in enumerate(given) if score is not None]
        scores = [given[at] for at in scored]
        row, symbols = [row[at] for at in scored], [symbols[at] for at in scored]
        relevance = [relevance[at] for at in scored]
        taken = articles.take(pa.array(row, pa.int64()))
        return pa.table(
            {
                "article_id": taken["article_id"],
                "symbol": pa.array(symbols, pa.string()),
                "published_at": taken["published_at"],
                "dated_session": pa.nulls(len(row), pa.date32()),
                "title": taken["title"],
                "url": taken["url"],
                "sentiment_score": pa.array(scores, pa.float64()),
                "relevance_score": pa.array(relevance, pa.float64()),
                "scorer": pa.array([self.scorer.name] * len(row), pa.string()),
                "origin": taken["origin"],
            },
            schema=NEWS,
        ).sort_by([("published_at", "ascending"), ("article_id", "ascending"), ("symbol", "ascending")])


def _batches(symbols: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [symbols[at : at + size] for at in range(0, len(symbols), size)]


def _by(sessions: list[dt.date], part: Callable[[dt.date], object]) -> list[list[dt.date]]:
    """Sessions in order, split where `part` changes."""
    return [list(group) for _, group in itertools.groupby(sessions, part)]


def _years(sessions: list[dt.date]) -> list[list[dt.date]]:
    return _by(sessions, lambda session: session.year)


def _months(first: dt.datetime, last: dt.datetime) -> list[str]:
    """Year and month of each month from `first` to `last`."""
    counts = range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    return [f"{count // 12:04d}-{count % 12 + 1:02d}" for count in counts]


def _naive(instant: dt.datetime) -> dt.datetime:
    return instant.astimezone(dt.UTC).replace(tzinfo=None)


def _key(name: str, value: str) -> str:
    """A key as it stands in a header; what cannot stand there would be shown by the error that says so."""
    if not re.fullmatch(r"[\x21-\x7e]*", value):
        raise SourceError(
            f"QUANT_{name.upper()} holds a space, a line break or a letter that no key has: copy it from Alpaca again"
        )
    return value
