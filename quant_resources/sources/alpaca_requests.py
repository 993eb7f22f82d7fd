"""What Alpaca is asked for, through alpaca-py: one method for each kind of request, each returns the pages that came.

Belongs here: parameters of requests, labels of their answers in the archive, and when an archived answer will do. Does not belong
here: which symbols and sessions are asked for together (`alpaca.py`), and how an answer comes (`alpaca_wire.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.calendar import NEW_YORK, TradingCalendar
from quant_resources.sources import SourceError
from quant_resources.sources import alpaca_documents as documents
from quant_resources.sources.alpaca_rows import MINUTE, between, quote_instants
from quant_resources.sources.alpaca_wire import Series, Wire
from quant_resources.sources.vendor import Vendor

if TYPE_CHECKING:
    from alpaca.data.enums import DataFeed

    from quant_resources.settings import Settings
    from quant_resources.sources.alpaca_documents import Page

QUOTE_WINDOW_SECONDS = 5
PROCESSED_EARLIER_DAYS, PROCESSED_LATER_DAYS = 30, 180
_ACTIONS_ASKED = ("cash_dividend", "forward_split", "reverse_split", "unit_split", "stock_dividend")


class AlpacaRequests:
    """Requests of one account.

    Args:
        settings: keys, address, feed, how often quotes are wanted.
        vendor: asks.
        calendar: knows the sessions.

    Every method raises `SourceError` for what the vendor refuses and `SourceUnavailable` where it is out of reach.
    """

    def __init__(self, settings: Settings, vendor: Vendor, calendar: TradingCalendar) -> None:
        self._settings, self.calendar = settings, calendar
        self._wire = Wire(vendor)

    def _client(self, kind: Callable[..., Any]) -> Any:
        """A client of alpaca-py whose requests our adapter answers."""
        key_id, secret_key = self._settings.alpaca_key_id, self._settings.alpaca_secret_key
        if not (key_id and secret_key):
            raise SourceError("alpaca: QUANT_ALPACA_KEY_ID and QUANT_ALPACA_SECRET_KEY are needed to ask")
        client = kind(
            key_id.get_secret_value(),
            secret_key.get_secret_value(),
            raw_data=True,
            url_override=self._settings.alpaca_url,
        )
        for scheme in ("https://", "http://"):
            client._session.mount(scheme, self._wire)
        return client

    @cached_property
    def _feed(self) -> DataFeed:
        from alpaca.data.enums import DataFeed

        return DataFeed(self._settings.alpaca_feed)

    @cached_property
    def _stocks(self) -> Any:
        from alpaca.data.historical import StockHistoricalDataClient

        return self._client(StockHistoricalDataClient)

    def days(self, sessions: list[dt.date], batch: tuple[str, ...]) -> list[pa.Table]:
        """Day bars of a batch of symbols, from the first of these sessions to the last."""
        from alpaca.data.enums import Adjustment
        from alpaca.data.requests import StockBarsRequest
        from alpaca.data.timeframe import TimeFrame

        last = sessions[-1]
        request = StockBarsRequest(
            symbol_or_symbols=list(batch),
            timeframe=TimeFrame.Day,
            start=_midnight(sessions[0]),
            # Not the end of the day: that lies ahead on the night of the session, and a plan without recent data is refused then.
            end=self.calendar.close(last),
            adjustment=Adjustment.RAW,
            feed=self._feed,
        )

        def complete(page: Page, is_first: bool) -> bool:
            """Whether each symbol that belongs on the page has the newest session; the last one's may follow on the next page.

            Pages go on in the order of the symbols, so one of the batch that is not on the page in whose stretch it lies has no bar:
            without an overlap a late one is missed by nothing else.
            """
            have = set(between(page.rows, "session", last, last)["symbol"].to_pylist())
            listed = page.rows["symbol"].unique().to_pylist()
            if not listed:
                return False
            from_here = [symbol for symbol in batch if is_first or symbol >= min(listed)]
            until_here = [s for s in from_here if not page.next_page_token or s < max(listed)]
            return have.issuperset(until_here)

        series = Series(
            "bars",
            f"{sessions[0]}_{last}_{batch[0]}_{batch[-1]}",
            "bars",
            documents.day_bars,
            self.calendar.close(last),
            complete,
        )
        return self._wire.collect(series, partial(self._stocks.get_stock_bars, request))

    def actions(self, sessions: list[dt.date], batch: tuple[str, ...]) -> list[pa.Table]:
        """Corporate actions of a batch of symbols that may take effect on these sessions."""
        from alpaca.data.enums import CorporateActionsType
        from alpaca.data.historical.corporate_actions import CorporateActionsClient
        from alpaca.data.requests import CorporateActionsRequest

        client = self._client(CorporateActionsClient)
        request = CorporateActionsRequest(
            symbols=list(batch),
            types=[CorporateActionsType(kind) for kind in _ACTIONS_ASKED],
            start=sessions[0] - dt.timedelta(days=PROCESSED_EARLIER_DAYS),
            end=sessions[-1] + dt.timedelta(days=PROCESSED_LATER_DAYS),
            limit=None,  # alpaca-py's default of 1000 is the most of all pages, not of one
        )
        series = Series(
            "actions",
            f"{sessions[0]}_{sessions[-1]}_{batch[0]}_{batch[-1]}",
            "corporate_actions",
            documents.actions,
            self.calendar.close(sessions[-1]),
        )
        return self._wire.collect(series, partial(client.get_corporate_actions, request))

    def minutes(self, session: dt.date, batch: tuple[str, ...]) -> list[pa.Table]:
        """Minute bars of a batch of symbols in the regular hours of a session."""
        from alpaca.data.enums import Adjustment
        from alpaca.data.requests import StockBarsRequest
        from alpaca.data.timeframe import TimeFrame

        opens, close = self.calendar.opens(session), self.calendar.close(session)
        request = StockBarsRequest(
            symbol_or_symbols=list(batch),
            timeframe=TimeFrame.Minute,
            start=opens,
            end=close - MINUTE,
            adjustment=Adjustment.RAW,
            feed=self._feed,
        )

        def complete(page: Page, is_first: bool) -> bool:
            late = pc.max(page.rows["ts"]).as_py()
            return late is not None and late >= close - 5 * MINUTE

        series = Series(
            "minute_bars", f"{session}_{batch[0]}_{batch[-1]}", "bars", documents.minute_bars, close, complete
        )
        return self._wire.collect(series, partial(self._stocks.get_stock_bars, request))

    def quotes(self, session: dt.date, batch: tuple[str, ...]) -> list[pa.Table]:
        """The newest quotes of some minutes. The limit of a page counts all symbols' quotes: pages are walked until each symbol has one."""
        from alpaca.common.enums import Sort
        from alpaca.data.requests import StockQuotesRequest

        found: list[pa.Table] = []
        for end in quote_instants(
            self.calendar.opens(session), self.calendar.close(session), self._settings.alpaca_quote_minutes
        ):
            request = StockQuotesRequest(
                symbol_or_symbols=list(batch),
                start=end - dt.timedelta(seconds=QUOTE_WINDOW_SECONDS),
                end=end - dt.timedelta(microseconds=1),
                sort=Sort.DESC,
                feed=self._feed,
            )

            def enough(pages: list[pa.Table]) -> bool:
                return set(batch) <= {s for page in pages for s in page["symbol"].unique().to_pylist()}

            series = Series(
                "quotes",
                f"{end:%Y-%m-%dT%H%M}_{batch[0]}_{batch[-1]}",
                "quotes",
                documents.quotes,
                self.calendar.close(session),
                enough=enough,
            )
            found += self._wire.collect(series, partial(self._stocks.get_stock_quotes, request))
        return found

    def news(
        self, start: dt.datetime, end: dt.datetime, batch: tuple[str, ...], covers: dt.datetime
    ) -> list[pa.Table]:
        """Articles that name one of a batch of symbols and were changed last within these instants.

        Args:
            start, end: both included.
            batch: several symbols in a request mean any of them.
            covers: close of the newest session that is wanted.
        """
        from alpaca.data.historical.news import NewsClient
        from alpaca.data.requests import NewsRequest

        client = self._client(NewsClient)
        request = NewsRequest(
            symbols=",".join(batch), start=start, end=end, sort="asc", include_content=False
        )
        series = Series("news", f"{start:%Y-%m}", "news", documents.articles, covers)
        return self._wire.collect(series, partial(client.get_news, request))

    def latest_bars(self, batch: tuple[str, ...]) -> pa.Table:
        """The newest minute bar of each of a batch of symbols that has one, archived or not."""
        from alpaca.data.requests import StockLatestBarRequest

        request = StockLatestBarRequest(symbol_or_symbols=list(batch), feed=self._feed)
        series = Series("probe", f"{batch[0]}_{batch[-1]}", "bars", documents.latest_bars)
        (rows,) = self._wire.collect(series, partial(self._stocks.get_stock_latest_bar, request))
        return rows


def _midnight(session: dt.date) -> dt.datetime:
    return dt.datetime.combine(session, dt.time(), ZoneInfo(NEW_YORK))
