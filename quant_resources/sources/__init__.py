"""Where market data come from: one small protocol, one module per source.

Belongs here: fetching and parsing, up to clean Arrow tables whose every row says where it came from. Does not belong
here: rules about which rows are acceptable (`quant_assets/market/validation.py`) and storage.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from quant_resources.settings import Settings

INSTANT = pa.timestamp("us", tz="UTC")

# What a source hands over. `origin` says where a row came from (file and line), for error messages and quarantine.
BARS = pa.schema(
    [
        ("symbol", pa.string()),
        ("session", pa.date32()),
        ("open", pa.float64()),
        ("high", pa.float64()),
        ("low", pa.float64()),
        ("close", pa.float64()),
        ("volume", pa.float64()),
        ("dividend", pa.float64()),
        ("split_factor", pa.float64()),
        ("origin", pa.string()),
    ]
)
NEWS = pa.schema(
    [
        ("article_id", pa.string()),
        ("symbol", pa.string()),
        # Exactly one of these two is set: an instant, or only the session that the article is dated.
        ("published_at", INSTANT),
        ("dated_session", pa.date32()),
        ("title", pa.string()),
        ("url", pa.string()),
        ("sentiment_score", pa.float64()),
        ("relevance_score", pa.float64()),
        # Who scored it: the vendor, a scorer of ours, 'simulated'; null where nobody says.
        ("scorer", pa.string()),
        ("origin", pa.string()),
    ]
)
MINUTE_BARS = pa.schema(
    [
        ("symbol", pa.string()),
        ("ts", INSTANT),
        ("open", pa.float64()),
        ("high", pa.float64()),
        ("low", pa.float64()),
        ("close", pa.float64()),
        ("volume", pa.float64()),
        ("bid", pa.float64()),
        ("ask", pa.float64()),
        ("bid_size", pa.float64()),
        ("ask_size", pa.float64()),
        ("origin", pa.string()),
    ]
)
SECURITIES = pa.schema(
    [
        ("symbol", pa.string()),
        ("name", pa.string()),
        ("sector", pa.string()),
        ("industry", pa.string()),
        ("peers", pa.string()),
    ]
)


class SourceError(ValueError):
    """A source could not be read. The message names the file (or request), the row, the rule and the way out."""


class SourceUnavailable(RuntimeError):
    """A source could not be reached now. Asking again later goes on from what has come."""


@dataclass(frozen=True)
class Waiting:
    """A symbol whose data have not come yet.

    Attributes:
        symbol: its ticker.
        reason: why, in the vendor's words or ours.
        retry_at: when it is worth asking again, UTC.
    """

    symbol: str
    reason: str
    retry_at: dt.datetime


class SourceIncomplete(Exception):
    """A source gave a part: all of some symbols, nothing of others.

    Attributes:
        rows: what came, with the schema of the whole.
        waiting: the symbols that did not.
    """

    def __init__(self, rows: pa.Table, waiting: list[Waiting]) -> None:
        super().__init__(f"{len(waiting)} symbol(s) have to wait: {waiting[0].reason if waiting else ''}")
        self.rows, self.waiting = rows, waiting


class MarketSource(Protocol):
    """What every source can do. All ranges include both ends; rows come unvalidated and in any order.

    Any call may raise `SourceError` (wrong for good), `SourceUnavailable` (worth another try) or `SourceIncomplete` (a part).

    Attributes:
        name: as `QUANT_SOURCE` names it.
        news_is_simulated: whether `news` is made up.
        has_minute_bars: whether `minute_bars` has any.
        overlap_sessions: how many sessions before the wanted ones are asked for again, because the source corrects itself.
        is_live: whether it is a vendor that may be late, correct itself, or have had enough for today.
    """

    name: str
    news_is_simulated: bool
    has_minute_bars: bool
    overlap_sessions: int
    is_live: bool

    def span(self) -> tuple[dt.date, dt.date | None]:
        """First session, and last session or None when the source goes on."""
        ...

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """Daily bars with raw prices, cash dividends and split factors of sessions in the range, as `BARS`.

        `dividend` is cash per share on its ex-session, in that session's (post-split) shares; `split_factor` is new
        shares per old share on the session from which prices are quoted in new shares, 1.0 otherwise.
        """
        ...

    def news(self, first: dt.date, last: dt.date) -> pa.Table:
        """Articles that belong to sessions in the range, one row per article and ticker, as `NEWS`."""
        ...

    def minute_bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """One-minute bars and closing quotes of sessions in the range, `ts` the bar's start, as `MINUTE_BARS`."""
        ...

    def securities(self) -> pa.Table:
        """The security master, as `SECURITIES`; `peers` is a comma-separated list of tickers."""
        ...


def open_source(settings: Settings) -> MarketSource:
    """The source that `QUANT_SOURCE` names."""
    if settings.source == "files":
        from quant_resources.sources.files import FilesSource

        assert settings.files_dir is not None  # Settings has checked it
        return FilesSource(
            settings.files_dir,
            symbols=settings.symbols,
            first_session=settings.first_session,
            last_session=settings.last_session,
        )
    if settings.source == "alpha_vantage":
        from quant_resources.sources.alpha_vantage import AlphaVantageSource

        return AlphaVantageSource.from_settings(settings)
    if settings.source == "alpaca":
        from quant_resources.sources.alpaca import AlpacaSource

        return AlpacaSource.from_settings(settings)
    from quant_resources.sources.sample import SampleSource

    return SampleSource(symbols=settings.symbols, seed=settings.seed)
