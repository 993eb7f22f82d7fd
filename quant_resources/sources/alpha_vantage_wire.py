"""Alpha Vantage's wire format: what an answer means, from its bytes to Arrow. Pure.

Belongs here: refusals (which arrive with HTTP 200), field names, number and time formats. Does not belong here: what to ask and when
(`alpha_vantage.py`), and rules about which rows are acceptable.

Numbers come as strings; a document is read into Arrow columns at once and nothing of its JSON stays.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.calendar import NEW_YORK
from quant_resources.sources import BARS, INSTANT, MINUTE_BARS, NEWS, SourceError
from quant_resources.sources.vendor import Busy, OutOfQuota, Response

# The name of the scores that come with the news (column `scorer`).
SCORER = "alpha_vantage"
MINUTE_SECONDS = 60.0
# Of a message or page that is shown to a person.
SHOWN_CHARACTERS = 400

_NO_ARTICLES = "no articles found"
_QUOTA = re.compile(r"rate limit is [\d,]+ (api )?(requests|calls) per day")
# The vendor's own words for "too fast". Some of them speak of days and premium plans as well, so they are looked for before those.
_PER_MINUTE = ("call frequency", "minute-level rate limit", "call volume")
_TOO_FAST = ("spreading out", "burst pattern")
_KEY = re.compile(r"apikey\W* is invalid or missing|\*\*demo\*\*|demo. api key|api key is for demo")
_PREMIUM = ("premium endpoint", "premium feature")
_UNKNOWN = ("invalid api call", "invalid inputs")

T = TypeVar("T")


class _Notice(msgspec.Struct):
    """What a refusal is made of; everything else is passed over, but has to be JSON."""

    error: object = msgspec.field(name="Error Message", default=None)
    information: object = msgspec.field(name="Information", default=None)
    note: object = msgspec.field(name="Note", default=None)

    def text(self) -> str:
        """The vendor's words, empty where there are none."""
        return " ".join(str(part) for part in (self.error, self.information, self.note) if part is not None)


class _Meta(msgspec.Struct):
    symbol: str = msgspec.field(name="2. Symbol")


class _MinuteMeta(msgspec.Struct):
    symbol: str = msgspec.field(name="2. Symbol")
    interval: str = msgspec.field(name="4. Interval")
    zone: str = msgspec.field(name="6. Time Zone")


class _Bar(msgspec.Struct, gc=False):
    open: float = msgspec.field(name="1. open")
    high: float = msgspec.field(name="2. high")
    low: float = msgspec.field(name="3. low")
    close: float = msgspec.field(name="4. close")
    volume: float = msgspec.field(name="5. volume")


class _AdjustedBar(msgspec.Struct, gc=False):
    open: float = msgspec.field(name="1. open")
    high: float = msgspec.field(name="2. high")
    low: float = msgspec.field(name="3. low")
    close: float = msgspec.field(name="4. close")
    volume: float = msgspec.field(name="6. volume")
    dividend: float = msgspec.field(name="7. dividend amount")
    split_factor: float = msgspec.field(name="8. split coefficient")


class _Daily(msgspec.Struct):
    meta: _Meta = msgspec.field(name="Meta Data")
    series: dict[str, _Bar] = msgspec.field(name="Time Series (Daily)")


class _DailyAdjusted(msgspec.Struct):
    meta: _Meta = msgspec.field(name="Meta Data")
    series: dict[str, _AdjustedBar] = msgspec.field(name="Time Series (Daily)")


class _Minutes(msgspec.Struct):
    meta: _MinuteMeta = msgspec.field(name="Meta Data")
    series: dict[str, _Bar] = msgspec.field(name="Time Series (1min)")


class _Mention(msgspec.Struct, gc=False):
    ticker: str
    # Whether a score may be missing is for the rules of the table to say.
    relevance: float | None = msgspec.field(name="relevance_score", default=None)
    sentiment: float | None = msgspec.field(name="ticker_sentiment_score", default=None)


class _Article(msgspec.Struct, gc=False):
    time_published: str
    title: str | None = None
    url: str | None = None
    ticker_sentiment: list[_Mention] = []


class _Feed(msgspec.Struct):
    items: object = None
    feed: list[_Article] | None = None
    information: object = msgspec.field(name="Information", default=None)


class _Overview(msgspec.Struct):
    symbol: str | None = msgspec.field(name="Symbol", default=None)
    name: str | None = msgspec.field(name="Name", default=None)
    sector: str | None = msgspec.field(name="Sector", default=None)
    industry: str | None = msgspec.field(name="Industry", default=None)


class _Price(msgspec.Struct):
    price: float | None = msgspec.field(name="05. price", default=None)
    session: str | None = msgspec.field(name="07. latest trading day", default=None)


class _Quote(msgspec.Struct):
    quote: _Price = msgspec.field(name="Global Quote")


# Not strict: a number may be a string.
_NOTICE = msgspec.json.Decoder(_Notice)
_DAILY = msgspec.json.Decoder(_Daily, strict=False)
_DAILY_ADJUSTED = msgspec.json.Decoder(_DailyAdjusted, strict=False)
_MINUTES = msgspec.json.Decoder(_Minutes, strict=False)
_FEED = msgspec.json.Decoder(_Feed, strict=False)
_OVERVIEW = msgspec.json.Decoder(_Overview)
_QUOTE = msgspec.json.Decoder(_Quote, strict=False)


@dataclass(frozen=True)
class NewsPage:
    """One page of articles.

    Attributes:
        rows: as `NEWS`, one per article that names the ticker.
        articles: how many the page holds, whether they name it or not.
        newest: when the newest of them was published, UTC; None for an empty page.
    """

    rows: pa.Table
    articles: int
    newest: dt.datetime | None


def judge(response: Response, what: str, now: dt.datetime) -> None:
    """Refuse a response that is no answer.

    Args:
        response: as it came.
        what: dataset and symbol, for messages.
        now: for a Retry-After that is a date.

    Raises:
        Busy: too fast, the vendor's own failure, or a torn body: worth another try.
        OutOfQuota: no more today.
        SourceError: refused for good, in the vendor's words and with the way out.
    """
    if response.status == 429 or response.status >= 500:
        raise Busy(f"HTTP {response.status}", retry_after_seconds(response, now))
    if response.status != 200:
        _refused_by_status(response, what)
    try:
        text = _NOTICE.decode(response.body).text()
    except msgspec.ValidationError as error:
        raise SourceError(f"alpha_vantage: {what}: the answer is no JSON object ({error})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Busy(f"an answer of {len(response.body)} bytes that is no whole JSON ({error})") from None
    if text:
        _refused_by_notice(text, what)


def retry_after_seconds(response: Response, now: dt.datetime) -> float | None:
    """What Retry-After asks for, in seconds or as an HTTP date; None without one that can be read."""
    value = next((v for k, v in response.headers.items() if k.lower() == "retry-after"), "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max((at.replace(tzinfo=at.tzinfo or dt.UTC) - now).total_seconds(), 0.0)


def _refused_by_status(response: Response, what: str) -> NoReturn:
    if response.status in (401, 403):
        way_out = "Check QUANT_ALPHA_VANTAGE_KEY"
    elif response.status in (301, 302, 303, 307, 308):
        way_out = (
            "The service redirects, which is not followed because the key would go along. Set QUANT_ALPHA_VANTAGE_URL to its "
            "address (https://www.alphavantage.co)"
        )
    else:
        way_out = "Check QUANT_ALPHA_VANTAGE_URL"
    said = response.body[:SHOWN_CHARACTERS].decode(errors="replace").strip()
    raise SourceError(f"alpha_vantage: {what}: HTTP {response.status}: {said or 'no text'}. {way_out}")


def _refused_by_notice(text: str, what: str) -> None:
    """Raise what the vendor's words mean; an empty search is no refusal."""
    said, low = text[:SHOWN_CHARACTERS], text.lower()
    if low.startswith(_NO_ARTICLES):
        return
    if _QUOTA.search(low):
        raise OutOfQuota(said)
    if any(words in low for words in _PER_MINUTE):
        raise Busy(said, MINUTE_SECONDS)
    if any(words in low for words in _TOO_FAST):
        raise Busy(said)
    if _KEY.search(low):
        way_out = "QUANT_ALPHA_VANTAGE_KEY is wrong or the demonstration key: set it to the key that you claimed at alphavantage.co"
    elif any(words in low for words in _PREMIUM):
        way_out = (
            "Your key's plan does not have it: with a free key set QUANT_ALPHA_VANTAGE_PLAN=free and unset QUANT_MINUTE_BARS, or "
            "subscribe"
        )
    elif any(words in low for words in _UNKNOWN):
        way_out = (
            f"Alpha Vantage does not know this request; most often the symbol ({what.rsplit(' ', 1)[-1]}) is wrong or not covered: "
            "take it out of QUANT_SYMBOLS and QUANT_NEWS_SYMBOLS"
        )
    else:
        way_out = "This refusal is not known here; what came before is archived"
    raise SourceError(f"alpha_vantage: {what}: {said} - {way_out}")


def daily_bars(body: bytes, symbol: str, adjusted: bool, origin: str) -> pa.Table:
    """Daily bars of one document.

    Args:
        body: answer to TIME_SERIES_DAILY_ADJUSTED or TIME_SERIES_DAILY.
        symbol: that was asked for.
        adjusted: which of the two. Only the former has dividends (as paid, dollars) and split factors (new shares per old share, on
            the session that trades in new shares); without them they are null, so that whoever merges sees which rows know them.
        origin: for messages.

    Returns:
        Rows as `BARS`, prices as traded, in the document's order (the newest first).

    Raises:
        SourceError: the document has another shape or another symbol.
    """
    document: _Daily | _DailyAdjusted
    document = _decoded(_DAILY_ADJUSTED, body, origin) if adjusted else _decoded(_DAILY, body, origin)
    _require_symbol(document.meta.symbol, symbol, origin)
    bars: list[_Bar | _AdjustedBar] = [*document.series.values()]
    return pa.table(
        {
            "symbol": _repeated(symbol, len(bars)),
            "session": _read(origin, "a session", list(document.series), lambda a: pc.cast(a, pa.date32())),
            **_prices(bars),
            "dividend": _events(document, "dividend"),
            "split_factor": _events(document, "split_factor"),
            "origin": _repeated(origin, len(bars)),
        },
        schema=BARS,
    )


def minute_bars(body: bytes, symbol: str, origin: str) -> pa.Table:
    """One-minute bars of one document (TIME_SERIES_INTRADAY); `ts` is the bar's start, turned from US/Eastern to UTC. No quotes.

    Raises:
        SourceError: the document has another shape, symbol, interval or zone.
    """
    document = _decoded(_MINUTES, body, origin)
    _require_symbol(document.meta.symbol, symbol, origin)
    if (document.meta.interval, document.meta.zone) != ("1min", "US/Eastern"):
        raise SourceError(
            f"{origin}: minutes of 1min in US/Eastern were asked for, {document.meta.interval} in {document.meta.zone} came"
        )
    bars = list(document.series.values())
    local = _read(origin, "a time", list(document.series), lambda a: pc.cast(a, pa.timestamp("us")))
    # The hour that occurs twice or never lies outside trading hours; it is read without failing and dropped with them.
    zoned = pc.assume_timezone(local, NEW_YORK, ambiguous="earliest", nonexistent="earliest")
    none = pa.nulls(len(bars), pa.float64())
    return pa.table(
        {
            "symbol": _repeated(symbol, len(bars)),
            "ts": pc.cast(zoned, INSTANT),
            **_prices(bars),
            **dict.fromkeys(("bid", "ask", "bid_size", "ask_size"), none),
            "origin": _repeated(origin, len(bars)),
        },
        schema=MINUTE_BARS,
    )


def news_page(body: bytes, symbol: str, origin: str) -> NewsPage:
    """One page of NEWS_SENTIMENT, with the asked ticker's own scores.

    `time_published` is UTC. An article's id is its url, as in source `files`: the vendor gives no id, and the url is what it tells
    articles apart by. An article whose `ticker_sentiment` does not name the ticker is not about it and gives no row.

    Raises:
        SourceError: the document has another shape.
    """
    document = _decoded(_FEED, body, origin)
    if document.feed is None and document.items is None and document.information is None:
        raise SourceError(f"{origin}: neither `feed` nor `items` is in the answer")
    feed = document.feed or []
    published = _read(
        origin,
        "time_published",
        [article.time_published for article in feed],
        lambda a: pc.assume_timezone(pc.strptime(a, format="%Y%m%dT%H%M%S", unit="us"), "UTC"),
    )
    wanted = _plain(symbol)
    mentions = [
        next((m for m in article.ticker_sentiment if _plain(m.ticker) == wanted), None) for article in feed
    ]
    # The same article may stand on a page twice; the later entry counts.
    last = {_article_id(article, symbol): i for i, article in enumerate(feed) if mentions[i] is not None}
    about = list(last.values())
    named = [mention for i in about if (mention := mentions[i]) is not None]
    rows = pa.table(
        {
            "article_id": pa.array(list(last), pa.string()),
            "symbol": _repeated(symbol, len(about)),
            "published_at": published.take(pa.array(about, pa.int64())),
            "dated_session": pa.nulls(len(about), pa.date32()),
            "title": pa.array([feed[i].title or "" for i in about], pa.string()),
            "url": pa.array([feed[i].url or "" for i in about], pa.string()),
            "sentiment_score": pa.array([m.sentiment for m in named], pa.float64()),
            "relevance_score": pa.array([m.relevance for m in named], pa.float64()),
            "scorer": _repeated(SCORER, len(about)),
            "origin": _repeated(origin, len(about)),
        },
        schema=NEWS,
    )
    return NewsPage(rows, len(feed), pc.max(published).as_py())


def overview(body: bytes, symbol: str, origin: str) -> dict[str, str]:
    """Name, sector and industry of OVERVIEW; empty texts for a symbol that the vendor does not know (it answers `{}`).

    Raises:
        SourceError: the document has another shape or another symbol.
    """
    document = _decoded(_OVERVIEW, body, origin)
    if document.symbol is not None:
        _require_symbol(document.symbol, symbol, origin)
    return {
        "name": _given(document.name),
        "sector": segment(_given(document.sector)),
        "industry": segment(_given(document.industry)),
    }


def quote(body: bytes, symbol: str, origin: str) -> tuple[float, str]:
    """Newest price (dollars) and its session of GLOBAL_QUOTE.

    Raises:
        SourceError: the document has another shape, or is empty because the vendor does not know the symbol.
    """
    document = _decoded(_QUOTE, body, origin)
    if document.quote.price is None or document.quote.session is None:
        raise SourceError(
            f"{origin}: the vendor has no quote of {symbol}. Take it out of QUANT_SYMBOLS, or check its spelling"
        )
    return document.quote.price, document.quote.session


def segment(text: str) -> str:
    """A sector's or industry's name in one spelling: the vendor writes the same one in capitals, in title case, and with several dashes.

    >>> segment("TECHNOLOGY"), segment("Technology"), segment("Software—Infrastructure"), segment("SOFTWARE - INFRASTRUCTURE")
    ('Technology', 'Technology', 'Software - Infrastructure', 'Software - Infrastructure')
    >>> segment("SERVICES-PREPACKAGED SOFTWARE"), segment("REIT - OFFICE"), segment("OIL & GAS E&P")
    ('Services-Prepackaged Software', 'REIT - Office', 'Oil & Gas E&P')
    """
    spaced = re.sub(r"\s*[–—]\s*|\s+-\s+", " - ", text.lower())  # noqa: RUF001  # the vendor's dashes
    words = []
    for i, word in enumerate(spaced.split()):
        if word in _ACRONYMS:
            words.append(_ACRONYMS[word])
        elif i and word in ("and", "of", "the", "for", "in", "or"):
            words.append(word)
        else:
            words.append(re.sub(r"(^|[-/&(,.])([a-z])", lambda m: m[1] + m[2].upper(), word))
    return " ".join(words)


_ACRONYMS = {"reit": "REIT", "reits": "REITs", "etf": "ETF", "it": "IT", "usa": "USA"}


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes, origin: str) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{origin}: the answer does not have the documented shape: {error}") from None


def _read(origin: str, what: str, texts: list[str], read: Callable[[pa.Array], pa.Array]) -> pa.Array:
    try:
        return read(pa.array(texts, pa.string()))
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise SourceError(f"{origin}: {what} cannot be read: {error}") from None


def _prices(bars: Sequence[_Bar | _AdjustedBar]) -> dict[str, pa.Array]:
    return {
        "open": pa.array([bar.open for bar in bars], pa.float64()),
        "high": pa.array([bar.high for bar in bars], pa.float64()),
        "low": pa.array([bar.low for bar in bars], pa.float64()),
        "close": pa.array([bar.close for bar in bars], pa.float64()),
        "volume": pa.array([bar.volume for bar in bars], pa.float64()),
    }


def _events(document: _Daily | _DailyAdjusted, name: str) -> pa.Array:
    if isinstance(document, _Daily):
        return pa.nulls(len(document.series), pa.float64())
    return pa.array([getattr(bar, name) for bar in document.series.values()], pa.float64())


def _repeated(text: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), rows)


def _require_symbol(came: str, asked: str, origin: str) -> None:
    if _plain(came) != _plain(asked):
        raise SourceError(f"{origin}: {asked} was asked for, {came[:20]!r} came")


def _plain(ticker: str) -> str:
    """A share class is written BRK.B or BRK-B."""
    return ticker.strip().upper().replace("-", ".")


def _given(text: str | None) -> str:
    text = " ".join((text or "").split())
    return "" if text.lower() in ("none", "-", "n/a", "null") else text


def _article_id(article: _Article, symbol: str) -> str:
    return article.url or f"{symbol}/{article.time_published}/{article.title or ''}"
