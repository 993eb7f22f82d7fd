"""Source `alpha_vantage`: daily bars, minute bars, news with sentiment and company overviews with a key of yours.

Belongs here: which requests a range of sessions needs, and one table out of all that is archived. Does not belong here: what an answer
means (`alpha_vantage_wire.py`), how it gets here (`alpha_vantage_client.py`), waiting, quota and archive (`vendor.py`).

Every method asks for what the archive lacks and then reads the archive: the newest answer wins for each bar and article. So a table that
is rebuilt without the vendor (`QUANT_ARCHIVE_ONLY`) is the one that the live calls gave, and a killed run loses at most the request that was
under way. The key is added to the address below httpx's client: no log line, exception or file holds it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.calendar import TradingCalendar
from quant_resources.settings import Settings
from quant_resources.sources import (
    BARS,
    MINUTE_BARS,
    NEWS,
    SECURITIES,
    SourceError,
    SourceIncomplete,
    Waiting,
)
from quant_resources.sources import alpha_vantage_wire as wire
from quant_resources.sources.alpha_vantage_client import READ_TIMEOUT_SECONDS, open_client
from quant_resources.sources.archive import Archive, Document
from quant_resources.sources.budget import Budget, QuotaExhausted
from quant_resources.sources.vendor import Response, Vendor

logger = logging.getLogger(__name__)

NAME = "alpha_vantage"
DEFAULT_FIRST_SESSION = dt.date(2000, 1, 3)
ADJUSTED, UNADJUSTED = "TIME_SERIES_DAILY_ADJUSTED", "TIME_SERIES_DAILY"
# outputsize=compact holds the newest 100 sessions; a few of them may be missing where trading was halted.
COMPACT_SESSIONS, COMPACT_USED_SESSIONS = 100, 95
# A night with its overlap is one request for news; longer ranges are cut by year.
NEWS_WINDOW_SESSIONS = 25
NEWS_LIMIT = 1000
# The vendor does not say whether it counts before or after it removes doubles, and other plans had pages of 50 and 200: such pages are
# followed as well, for one request that may be needless.
NEWS_FULL_FROM, NEWS_OTHER_LIMITS = 800, (50, 200)
OVERVIEW_GOOD_FOR = dt.timedelta(days=30)
# Demonstrates a few requests to anybody; blotting out the word would tear texts apart.
DEMONSTRATION_KEY = "demo"


class NotArchived(Exception):
    """The archive lacks a part of what is wanted of a symbol, and QUANT_ARCHIVE_ONLY keeps the vendor from being asked."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the archive has no answer for {what}, and QUANT_ARCHIVE_ONLY keeps the vendor from being asked"
        )


class AlphaVantageSource:
    """Alpha Vantage behind the `MarketSource` protocol.

    Plan `premium` has the whole history, dividends, splits and minutes. Plan `free` has the newest 100 sessions without dividends and
    splits; what was archived while it was among them stays. An adjusted answer of a session beats an unadjusted one, whichever is newer:
    a plan that ends must not take a dividend back.

    Args:
        vendor: archive, budget and manners.
        client: an httpx client that adds the key; None where nothing is asked.
        url: address of the service.
        symbols: tickers of bars.
        news_symbols: further tickers of news and overviews.
        plan: `free` or `premium`.
        minute_bars: whether minutes are wanted (premium only).
        overlap_sessions: sessions before the wanted ones that are asked for again.
        first_session: of the span; 2000-01-03 when None.
        last_session: of the span; open when None.
    """

    name = NAME
    news_is_simulated = False
    is_live = True

    def __init__(
        self,
        vendor: Vendor,
        client: httpx.Client | None,
        url: str,
        symbols: Sequence[str],
        news_symbols: Sequence[str] = (),
        plan: str = "free",
        minute_bars: bool = False,
        overlap_sessions: int = 5,
        first_session: dt.date | None = None,
        last_session: dt.date | None = None,
    ) -> None:
        self.vendor, self._client, self._url = vendor, client, url
        self.symbols = tuple(dict.fromkeys(symbols))
        self.all_symbols = tuple(dict.fromkeys((*symbols, *news_symbols)))
        self.premium = plan == "premium"
        self.has_minute_bars = minute_bars and self.premium
        self.overlap_sessions = overlap_sessions
        self._first, self._last = first_session or DEFAULT_FIRST_SESSION, last_session
        today = vendor.now().date()
        # The overlap reaches back before the first session.
        self.calendar = TradingCalendar(
            self._first - dt.timedelta(days=2 * overlap_sessions + 30),
            max(self._last or today, today) + dt.timedelta(days=365),
        )
        if minute_bars and not self.premium:
            logger.warning(
                "QUANT_MINUTE_BARS is set, but minutes need QUANT_ALPHA_VANTAGE_PLAN=premium: none are asked for"
            )

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    ) -> AlphaVantageSource:
        """The source that the settings describe; the clock is for tests.

        Requests are counted in a file per key and plan, so that neither a new key nor a new plan inherits a used-up day.
        """
        key = settings.alpha_vantage_key.get_secret_value().strip() if settings.alpha_vantage_key else ""
        secrets = () if key in ("", DEMONSTRATION_KEY) else tuple({key, urllib.parse.quote_plus(key)})
        account = f"{settings.alpha_vantage_plan}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        budget = Budget(
            settings.archive_dir / NAME / f"requests-{account}.json",
            settings.alpha_vantage_requests_per_minute,
            settings.alpha_vantage_requests_per_day,
            now=lambda: now().timestamp(),
            sleep=sleep,
        )
        vendor = Vendor(
            Archive(settings.archive_dir, NAME, secrets),
            budget,
            secrets,
            (httpx.RequestError,),
            archive_only=settings.archive_only,
            sleep=sleep,
            now=now,
        )
        client = (
            None
            if settings.archive_only
            else open_client(settings.alpha_vantage_url, key, secrets, read_timeout_seconds)
        )
        return cls(
            vendor,
            client,
            settings.alpha_vantage_url,
            settings.symbols or (),
            settings.news_symbols or (),
            settings.alpha_vantage_plan,
            settings.minute_bars,
            settings.overlap_sessions,
            settings.first_session,
            settings.last_session,
        )

    def span(self) -> tuple[dt.date, dt.date | None]:
        """`QUANT_FIRST_SESSION` (2000-01-03) to `QUANT_LAST_SESSION`."""
        return self._first, self._last

    # -- daily bars ----------------------------------------------------------------------------------------------------

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.bars`. One request per symbol; a bar whose session had not closed when the answer came is left out.

        Raises:
            SourceError: also where a free key is asked for sessions that it does not have and the archive has none of them.
        """
        sessions = self.calendar.sessions(first, last)
        if not sessions:
            return BARS.empty_table()
        rows = self._of_each(
            self.symbols, "daily", BARS, lambda symbol: self._bars_of(symbol, sessions[0], sessions[-1])
        )
        if not rows.num_rows and not self.premium and self._sessions_back(first) > COMPACT_SESSIONS:
            raise SourceError(
                f"alpha_vantage: a free key has the newest {COMPACT_SESSIONS} sessions, and neither they nor the archive have any of "
                f"{first}..{last}. Set QUANT_FIRST_SESSION to {self._sessions_before_now(COMPACT_USED_SESSIONS)} or later, or "
                "QUANT_ALPHA_VANTAGE_PLAN=premium"
            )
        return rows

    def _bars_of(self, symbol: str, first: dt.date, last: dt.date) -> pa.Table:
        # A free key cannot get what has left the newest 100 sessions: no request is spent on it.
        if not self.vendor.archive_only and (self.premium or self._sessions_back(last) <= COMPACT_SESSIONS):
            self._ask_for_bars(symbol, first, last)
        parts, held = [], []
        for document in self.vendor.archive.documents("daily", symbol, since=self.calendar.close(first)):
            parts.append(self._bars_in(document, symbol, first, last))
            if self.vendor.archive_only and (not self.premium or document.request["function"] == ADJUSTED):
                held.append(self._sessions_of(document, symbol, last))
        if self.vendor.archive_only:
            # A free key cannot ask for what has left the newest 100 sessions: the newest wanted one is all that it must have asked for.
            self._require(held, self.calendar.sessions(first if self.premium else last, last))
        # Stable: unadjusted answers first, each kind as it came.
        parts.sort(key=lambda part: part["split_factor"].null_count == 0)
        rows = _newest(parts, "session", BARS)
        for name, without in (("dividend", 0.0), ("split_factor", 1.0)):
            rows = rows.set_column(
                BARS.get_field_index(name), BARS.field(name), pc.fill_null(rows[name], without)
            )
        return rows

    def _sessions_of(self, document: Document, symbol: str, last: dt.date) -> tuple[dt.date, dt.date]:
        """First and last session up to `last` of which an answer says all: a compact one begins with its oldest row, if it is full."""
        oldest = dt.date.min
        if document.request["outputsize"] == "compact":
            rows = wire.daily_bars(
                document.body, symbol, document.request["function"] == ADJUSTED, document.origin
            )
            if rows.num_rows >= COMPACT_USED_SESSIONS:
                oldest = pc.min(rows["session"]).as_py()
        return oldest, min(last, self._newest_closed(document))

    def _require(self, held: Iterable[tuple[dt.date, dt.date]], sessions: list[dt.date]) -> None:
        """Refuse when a session lies in none of these ranges; both ends are included."""
        ranges = sorted(held, reverse=True)
        end, missing = dt.date.min, []
        for session in sessions:
            while ranges and ranges[-1][0] <= session:
                end = max(end, ranges.pop()[1])
            if end < session:
                missing.append(session)
        if missing:
            raise NotArchived(f"bars of {missing[0]}..{missing[-1]} ({len(missing)} session(s))")

    def _ask_for_bars(self, symbol: str, first: dt.date, last: dt.date) -> None:
        covers = self.calendar.close(last)
        request = {
            "function": ADJUSTED if self.premium else UNADJUSTED,
            "symbol": symbol,
            "outputsize": "full",
            "datatype": "json",
        }
        if not self.premium or self._sessions_back(first) <= COMPACT_USED_SESSIONS:
            whole = self.vendor.archive.fetched_at("daily", symbol, request)
            if (
                whole is None or whole < covers
            ):  # a whole history that came since then holds these sessions too
                request["outputsize"] = "compact"
        self._ask(
            "daily",
            symbol,
            request,
            lambda body, origin: wire.daily_bars(body, symbol, self.premium, origin),
            covers,
            lambda document: last in self._bars_in(document, symbol, last, last)["session"].to_pylist(),
        )

    def _bars_in(self, document: Document, symbol: str, first: dt.date, last: dt.date) -> pa.Table:
        rows = wire.daily_bars(
            document.body, symbol, document.request["function"] == ADJUSTED, document.origin
        )
        last = min(last, self._newest_closed(document))
        keep = pc.and_(
            pc.greater_equal(rows["session"], pa.scalar(first)),
            pc.less_equal(rows["session"], pa.scalar(last)),
        )
        return rows.filter(keep)

    def _had_closed(self, session: dt.date, document: Document) -> bool:
        return self.calendar.close(session) <= document.fetched_at

    def _newest_closed(self, document: Document) -> dt.date:
        """The newest session that had closed when the document came: later ones are still being traded in it."""
        day = document.fetched_at.date()
        return next(
            session
            for session in reversed(self.calendar.sessions(day - dt.timedelta(days=14), day))
            if self._had_closed(session, document)
        )

    # -- minute bars ---------------------------------------------------------------------------------------------------

    def minute_bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.minute_bars`. One request per symbol and month, regular hours, as traded, without quotes."""
        sessions = self.calendar.sessions(first, last)
        if not sessions or not self.has_minute_bars:
            return MINUTE_BARS.empty_table()
        return self._of_each(
            self.symbols, "minute_bars", MINUTE_BARS, lambda symbol: self._minutes_of(symbol, sessions)
        )

    def _minutes_of(self, symbol: str, sessions: list[dt.date]) -> pa.Table:
        parts = []
        for month in dict.fromkeys(f"{session:%Y-%m}" for session in sessions):
            wanted = [session for session in sessions if f"{session:%Y-%m}" == month]
            parts.append(self._minutes_in(self._month(symbol, month, wanted[-1]), symbol, wanted))
        return pa.concat_tables(parts) if parts else MINUTE_BARS.empty_table()

    def _month(self, symbol: str, month: str, last: dt.date) -> Document:
        """The newest answer for a month: it holds all that earlier ones held."""
        request = {
            "function": "TIME_SERIES_INTRADAY",
            "symbol": symbol,
            "interval": "1min",
            "month": month,
            "outputsize": "full",
            "adjusted": "false",
            "extended_hours": "false",
            "datatype": "json",
        }
        if self.vendor.archive_only:
            found = self.vendor.archive.newest("minute_bars", symbol, request)
            if found is None or found.fetched_at < self.calendar.close(last):
                raise NotArchived(f"minutes of {month} up to {last}")
            return found
        return self._ask(
            "minute_bars",
            symbol,
            request,
            lambda body, origin: wire.minute_bars(body, symbol, origin),
            self.calendar.close(last),
            lambda document: self._minutes_in(document, symbol, [last]).num_rows > 0,
        )

    def _minutes_in(self, document: Document, symbol: str, sessions: list[dt.date]) -> pa.Table:
        """Minutes within the trading hours of those sessions that had closed when the document came, in order."""
        rows = wire.minute_bars(document.body, symbol, document.origin)
        sessions = [session for session in sessions if self._had_closed(session, document)]
        if not sessions or not rows.num_rows:
            return rows.slice(0, 0)
        opens = _microseconds(self.calendar.opens(session) for session in sessions)
        closes = _microseconds(self.calendar.close(session) for session in sessions)
        ts = pc.cast(rows["ts"], pa.int64()).to_numpy()
        at = np.searchsorted(opens, ts, side="right") - 1
        within = (at >= 0) & (ts < closes[at])
        return rows.filter(pa.array(within)).sort_by("ts")

    # -- news ----------------------------------------------------------------------------------------------------------

    def news(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.news`. One ticker a request (several would have to stand in the same article), with the ticker's own scores.

        The vendor documents `time_from` and `time_to` as YYYYMMDDTHHMM, 20220410T0130 being 1:30 am UTC, and `sort=EARLIEST`; it does
        not say whether `time_to` itself is included, so one minute more is asked for, and what lies outside (close of the session before
        `first`, close of `last`] is left out here. Ranges of more than 25 sessions are cut by calendar year: a finished year is asked for
        once, whatever the range, and a symbol without news costs a request a year. A full page is followed from its newest minute on.
        """
        sessions = self.calendar.sessions(first, last)
        if not sessions:
            return NEWS.empty_table()
        return self._of_each(self.all_symbols, "news", NEWS, lambda symbol: self._news_of(symbol, sessions))

    def _news_of(self, symbol: str, sessions: list[dt.date]) -> pa.Table:
        if not self.vendor.archive_only:
            for begin, end in self._news_windows(sessions):
                self._ask_for_news(symbol, begin, end)
        after, until = self._close_before(sessions[0]), self.calendar.close(sessions[-1])
        parts, held = [], []
        for document in self.vendor.archive.documents("news", symbol, since=after):
            page = wire.news_page(document.body, symbol, document.origin)
            held.append(_instants_of(document, page))
            rows = page.rows
            published = rows["published_at"]
            parts.append(
                rows.filter(
                    pc.and_(
                        pc.greater(published, pa.scalar(after, published.type)),
                        pc.less_equal(published, pa.scalar(until, published.type)),
                    )
                )
            )
        if self.vendor.archive_only and (reach := _reach(held, after)) < until:
            raise NotArchived(f"news published between {reach:%Y-%m-%d %H:%M} and {until:%Y-%m-%d %H:%M} UTC")
        return _newest(parts, "article_id", NEWS)

    def _news_windows(self, sessions: list[dt.date]) -> list[tuple[dt.datetime, dt.datetime]]:
        if len(sessions) <= NEWS_WINDOW_SESSIONS:
            groups = [sessions]
        else:
            years = dict.fromkeys(session.year for session in sessions)
            groups = [[s for s in sessions if s.year == year] for year in years]
        return [(self._close_before(group[0]), self.calendar.close(group[-1])) for group in groups]

    def _ask_for_news(self, symbol: str, begin: dt.datetime, end: dt.datetime) -> None:
        at = begin
        while True:
            request = {
                "function": "NEWS_SENTIMENT",
                "tickers": symbol,
                "time_from": f"{at:%Y%m%dT%H%M}",
                "time_to": f"{end + dt.timedelta(minutes=1):%Y%m%dT%H%M}",
                "sort": "EARLIEST",
                "limit": str(NEWS_LIMIT),
            }
            document = self._ask(
                "news", symbol, request, lambda body, origin: wire.news_page(body, symbol, origin), covers=end
            )
            page = wire.news_page(document.body, symbol, document.origin)
            newest = _next_page_from(page)
            if newest is None:
                return
            if newest <= at:
                if page.articles < NEWS_LIMIT:
                    return
                raise SourceError(
                    f"{document.origin}: {page.articles} articles within the minute {at:%Y-%m-%d %H:%M} UTC: the vendor gives at most "
                    f"{NEWS_LIMIT} a request and none can be shorter than a minute. Take {symbol} out of QUANT_SYMBOLS and "
                    "QUANT_NEWS_SYMBOLS, or that session out of the range"
                )
            at = newest

    def _close_before(self, session: dt.date) -> dt.datetime:
        return self.calendar.close(self.calendar.shift(session, -1))

    # -- securities ----------------------------------------------------------------------------------------------------

    def securities(self) -> pa.Table:
        """See `MarketSource.securities`: every symbol of bars and news. An answer is good for 30 days; a symbol without one has empty texts.

        Raises:
            SourceIncomplete: the day's requests are used up; its rows hold every symbol all the same.
        """
        rows: list[dict[str, str]] = []
        waiting: list[Waiting] = []
        for symbol in self.all_symbols:
            try:
                document = self._overview_of(symbol)
            except QuotaExhausted as error:
                waiting.append(Waiting(symbol, str(error), error.until))
                document = self._archived_overview(symbol)
            known = wire.overview(document.body, symbol, document.origin) if document else {}
            rows.append({"symbol": symbol, "name": "", "sector": "", "industry": "", **known, "peers": ""})
        table = pa.Table.from_pylist(rows, schema=SECURITIES)
        if waiting:
            raise SourceIncomplete(table, waiting)
        return table

    def _overview_of(self, symbol: str) -> Document | None:
        if self.vendor.archive_only:
            return self._archived_overview(symbol)
        return self._ask(
            "overview",
            symbol,
            _overview_request(symbol),
            lambda body, origin: wire.overview(body, symbol, origin),
            covers=self.vendor.now() - OVERVIEW_GOOD_FOR,
        )

    def _archived_overview(self, symbol: str) -> Document | None:
        """The newest, however old it is."""
        return self.vendor.archive.newest("overview", symbol, _overview_request(symbol))

    # -- asking --------------------------------------------------------------------------------------------------------

    def probe(self) -> str:
        """Ask for one quote, which every plan has, and say in a sentence what came.

        Raises:
            SourceError: the key, the plan or the symbol is wrong.
            SourceUnavailable: the service cannot be reached now.
            QuotaExhausted: the day's requests are used up.
        """
        symbol = self.symbols[0]
        document = self._ask(
            "probe",
            symbol,
            {"function": "GLOBAL_QUOTE", "symbol": symbol, "datatype": "json"},
            lambda body, origin: wire.quote(body, symbol, origin),
        )
        price, session = wire.quote(document.body, symbol, document.origin)
        left = self.vendor.budget.left()
        return (
            f"Alpha Vantage answers: {symbol} stood at {price:g} on {session}; plan {'premium' if self.premium else 'free'}, "
            f"{'no daily limit' if left is None else f'{left} request(s) left today'}"
        )

    def _ask(
        self,
        dataset: str,
        label: str,
        request: dict[str, str],
        read: Callable[[bytes, str], object],
        covers: dt.datetime | None = None,
        complete: Callable[[Document], bool] | None = None,
    ) -> Document:
        what = f"{dataset} {label}"

        def judge(response: Response) -> None:
            wire.judge(response, what, self.vendor.now())
            # An answer that cannot be read is refused before it is archived: a later call asks again.
            read(response.body, f"{NAME}/{dataset}/{label}")

        return self.vendor.ask(dataset, label, request, lambda: self._send(request), judge, covers, complete)

    def _send(self, request: dict[str, str]) -> Response:
        assert self._client is not None  # `Vendor.ask` sends nothing in archive_only
        response = self._client.get(f"{self._url}/query", params=request)
        return Response(response.status_code, dict(response.headers), response.content)

    def _of_each(
        self,
        symbols: Sequence[str],
        dataset: str,
        schema: pa.Schema,
        rows_of: Callable[[str], pa.Table],
    ) -> pa.Table:
        """The rows of all symbols.

        Raises:
            SourceIncomplete: some symbols have to wait; all of the others is in its rows. When the day's requests are used up, the
                remaining symbols are still looked for in the archive. While nothing may be asked, a symbol waits when its archived
                answers, put together, do not reach over the whole range.
            SourceError: nothing at all is archived, and nothing may be asked.
        """
        parts: list[pa.Table] = []
        waiting: list[Waiting] = []
        if self.vendor.archive_only and not any(
            self.vendor.archive.has_any(dataset, symbol) for symbol in symbols
        ):
            raise SourceError(
                f"{self.vendor.archive.folder} holds no {dataset} answer of {', '.join(symbols[:5])}, and QUANT_ARCHIVE_ONLY keeps "
                "alpha_vantage from being asked. Unset it, or point QUANT_HOME to the archive"
            )
        for symbol in symbols:
            try:
                parts.append(rows_of(symbol))
            except QuotaExhausted as error:
                waiting.append(Waiting(symbol, str(error), error.until))
            except NotArchived as error:
                waiting.append(Waiting(symbol, str(error), self.vendor.now() + dt.timedelta(days=1)))
        rows = pa.concat_tables(parts) if parts else schema.empty_table()
        logger.info(
            "alpha_vantage: %s: %d rows of %d symbols, %d have to wait; %d requests made, %d answers reused",
            dataset,
            rows.num_rows,
            len(parts),
            len(waiting),
            self.vendor.asked,
            self.vendor.reused,
        )
        if waiting:
            raise SourceIncomplete(rows, waiting)
        return rows

    def _sessions_back(self, session: dt.date) -> int:
        """Sessions from `session` to now, both counted."""
        return len(self.calendar.sessions(session, self.vendor.now().date()))

    def _sessions_before_now(self, sessions: int) -> dt.date:
        now = self.vendor.now().date()
        return self.calendar.sessions(now - dt.timedelta(days=2 * sessions + 14), now)[-sessions]


def _overview_request(symbol: str) -> dict[str, str]:
    return {"function": "OVERVIEW", "symbol": symbol}


def _next_page_from(page: wire.NewsPage) -> dt.datetime | None:
    """The minute with which the page after a full one has to begin; None where all has come."""
    if page.newest is None or not (page.articles >= NEWS_FULL_FROM or page.articles in NEWS_OTHER_LIMITS):
        return None
    return page.newest.replace(second=0, microsecond=0)


def _instants_of(document: Document, page: wire.NewsPage) -> tuple[dt.datetime, dt.datetime]:
    """From and until when an answer holds all articles."""
    begin, end = (
        dt.datetime.strptime(document.request[name], "%Y%m%dT%H%M").replace(tzinfo=dt.UTC)
        for name in ("time_from", "time_to")
    )
    further = _next_page_from(page)
    # A full page whose articles all stand in its first minute has no page after it (`_ask_for_news`).
    whole = further is None or further <= begin
    until = end - dt.timedelta(minutes=1) if whole or further is None else further
    return begin, min(until, document.fetched_at)


def _reach(held: Iterable[tuple[dt.datetime, dt.datetime]], after: dt.datetime) -> dt.datetime:
    """Until when these ranges together have everything from `after` on."""
    reach = after
    for begin, end in sorted(held):
        if begin > reach:
            break
        reach = max(reach, end)
    return reach


def _newest(parts: Sequence[pa.Table], key: str, schema: pa.Schema) -> pa.Table:
    """Rows of one symbol in order of `key`; of rows with the same key the one in the last part counts."""
    kept: list[pa.Table] = []
    seen: pa.ChunkedArray | None = None
    for part in reversed(parts):
        if not part.num_rows:
            continue
        if seen is not None:
            part = part.filter(pc.invert(pc.is_in(part[key], seen)))
        if part.num_rows:
            kept.append(part)
            seen = pa.chunked_array([chunk for table in kept for chunk in table[key].chunks])
    return pa.concat_tables(kept).sort_by(key).combine_chunks() if kept else schema.empty_table()


def _microseconds(instants: Iterable[dt.datetime]) -> np.ndarray:
    return np.array([int(instant.timestamp()) * 1_000_000 for instant in instants], dtype=np.int64)
