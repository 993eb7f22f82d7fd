"""Alpaca's documents as Arrow tables: bars, quotes, corporate actions, articles.

Belongs here: the format of `data.alpaca.markets`. Does not belong here: asking and refusals (`alpaca_wire.py`), and what becomes of
the rows (`alpaca.py`).
"""

from __future__ import annotations

import datetime as dt
import re
from typing import NamedTuple, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.calendar import NEW_YORK
from quant_resources.sources import INSTANT, SourceError

# Day bars: their instant is midnight in New York.
DAY_BARS = pa.schema(
    [("symbol", pa.string()), ("session", pa.date32())]
    + [(name, pa.float64()) for name in ("open", "high", "low", "close", "volume")]
    + [("origin", pa.string())]
)
MINUTES = pa.schema(
    [("symbol", pa.string()), ("ts", INSTANT)]
    + [(name, pa.float64()) for name in ("open", "high", "low", "close", "volume")]
    + [("origin", pa.string())]
)
# The newest usable quote of each minute `ts`, and its own instant `at`; sizes as the vendor states them.
QUOTES = pa.schema(
    [("symbol", pa.string()), ("ts", INSTANT), ("at", pa.timestamp("ns", tz="UTC"))]
    + [(name, pa.float64()) for name in ("bid", "ask", "bid_size", "ask_size")]
)
# `factor`: new shares per old share; `cash`: dollars per share. One of the two says something.
ACTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("symbol", pa.string()),
        ("ex_date", pa.date32()),
        ("process_date", pa.date32()),
        ("factor", pa.float64()),
        ("cash", pa.float64()),
    ]
)
ARTICLES = pa.schema(
    [
        ("article_id", pa.string()),
        ("published_at", INSTANT),
        ("updated_at", INSTANT),
        ("title", pa.string()),
        ("summary", pa.string()),
        ("url", pa.string()),
        ("symbols", pa.list_(pa.string())),
        ("origin", pa.string()),
    ]
)


Content = TypeVar("Content")


class Page(NamedTuple):
    """One document, read.

    Attributes:
        rows: what it holds.
        next_page_token: of the page that follows; None on the last one.
    """

    rows: pa.Table
    next_page_token: str | None


class _Bar(msgspec.Struct, gc=False):
    t: str
    o: float
    h: float
    l: float  # noqa: E741  # the vendor's name
    c: float
    v: float


class _Quote(msgspec.Struct, gc=False):
    t: str
    bp: float
    ap: float
    bs: float = 0.0
    as_: float = msgspec.field(name="as", default=0.0)


class _Bars(msgspec.Struct):
    bars: dict[str, list[_Bar]] | None
    next_page_token: str | None = None


class _LatestBars(msgspec.Struct):
    bars: dict[str, _Bar]


class _Quotes(msgspec.Struct):
    quotes: dict[str, list[_Quote]] | None
    next_page_token: str | None = None


class _CashDividend(msgspec.Struct):
    symbol: str
    rate: float
    ex_date: dt.date
    process_date: dt.date | None = None
    id: str | None = None


class _Split(msgspec.Struct):
    symbol: str
    new_rate: float
    old_rate: float
    ex_date: dt.date
    process_date: dt.date | None = None
    id: str | None = None


class _UnitSplit(msgspec.Struct):
    new_symbol: str
    new_rate: float
    old_rate: float
    effective_date: dt.date
    process_date: dt.date | None = None
    id: str | None = None


class _StockDividend(msgspec.Struct):
    symbol: str
    rate: float
    ex_date: dt.date
    process_date: dt.date | None = None
    id: str | None = None


class _ActionLists(msgspec.Struct):
    cash_dividends: list[_CashDividend] = []
    forward_splits: list[_Split] = []
    reverse_splits: list[_Split] = []
    unit_splits: list[_UnitSplit] = []
    stock_dividends: list[_StockDividend] = []


class _Actions(msgspec.Struct):
    corporate_actions: _ActionLists | None
    next_page_token: str | None = None


class _Article(msgspec.Struct):
    id: int
    headline: str
    created_at: str
    updated_at: str
    symbols: list[str]
    summary: str | None = None
    url: str | None = None


class _News(msgspec.Struct):
    news: list[_Article] | None
    next_page_token: str | None = None


def day_bars(body: bytes, origin: str) -> Page:
    """A page of `/v2/stocks/bars` of days as `DAY_BARS`.

    Raises:
        SourceError: it is not what it has to be; names origin, symbol and what was wrong.
        NoJSON: it was cut short.
    """
    symbols, bars, token = _flat(body, _Bars, "bars", origin)
    local = pc.cast(_instants([bar.t for bar in bars], symbols, origin), pa.timestamp("us", NEW_YORK))
    sessions = pc.cast(pc.local_timestamp(local), pa.date32())
    return Page(_bar_table(symbols, sessions, bars, origin, DAY_BARS), token)


def minute_bars(body: bytes, origin: str) -> Page:
    """A page of `/v2/stocks/bars` of minutes as `MINUTES`; raises as `day_bars`."""
    symbols, bars, token = _flat(body, _Bars, "bars", origin)
    instants = _instants([bar.t for bar in bars], symbols, origin)
    return Page(_bar_table(symbols, instants, bars, origin, MINUTES), token)


def quotes(body: bytes, origin: str) -> Page:
    """A page of `/v2/stocks/quotes`: the newest usable quote of each symbol and minute as `QUOTES`; raises as `day_bars`.

    A quote without one of its sides (a price of zero) and a crossed one (bid above ask) say nothing about what trading costs, and are
    passed over.
    """
    symbols, listed, token = _flat(body, _Quotes, "quotes", origin)
    table = pa.table(
        {
            "symbol": pa.array(symbols, pa.string()),
            "at": _instants([quote.t for quote in listed], symbols, origin, "ns"),
            "bid": pa.array([quote.bp for quote in listed], pa.float64()),
            "ask": pa.array([quote.ap for quote in listed], pa.float64()),
            "bid_size": pa.array([quote.bs for quote in listed], pa.float64()),
            "ask_size": pa.array([quote.as_ for quote in listed], pa.float64()),
        }
    )
    usable = pc.and_(pc.greater(table["bid"], 0), pc.greater_equal(table["ask"], table["bid"]))
    table = table.filter(usable)
    minute = pc.cast(pc.floor_temporal(table["at"], unit="minute"), INSTANT)
    table = table.append_column("ts", minute).sort_by([("symbol", "ascending"), ("at", "ascending")])
    newest = table.group_by(["symbol", "ts"], use_threads=False).aggregate(
        [(name, "last") for name in QUOTES.names[2:]]
    )
    renamed = newest.rename_columns([name.removesuffix("_last") for name in newest.column_names])
    return Page(renamed.select(QUOTES.names).cast(QUOTES), token)


def actions(body: bytes, origin: str) -> Page:
    """A page of `/v1/corporate-actions` as `ACTIONS`; raises as `day_bars`.

    Splits, unit splits and stock dividends are factors (a stock dividend of 0.05 makes 1.05 shares of one), cash dividends are cash.
    Other kinds (spin-offs, mergers, rights) are not looked at: `BARS` has no place for them.
    """
    found = _decoded(body, _Actions, origin)
    listed = found.corporate_actions or _ActionLists()
    rows: list[tuple[str, str, dt.date, dt.date, float, float]] = []

    def add(kind: str, one: object, symbol: str, ex: dt.date, factor: float, cash: float) -> None:
        identity, process = one.id, one.process_date  # type: ignore[attr-defined]
        if not (0 < factor < float("inf") and 0 <= cash < float("inf")):
            raise SourceError(
                f"{origin}: {symbol}: a {kind} of {ex} has a factor of {factor:g} and {cash:g} dollars: factors must be above 0, "
                "dollars not below 0"
            )
        rows.append(
            (identity or f"{kind}/{symbol}/{ex}/{factor:g}/{cash:g}", symbol, ex, process or ex, factor, cash)
        )

    for dividend in listed.cash_dividends:
        add("cash dividend", dividend, dividend.symbol, dividend.ex_date, 1.0, dividend.rate)
    for kind, splits in (("forward split", listed.forward_splits), ("reverse split", listed.reverse_splits)):
        for split in splits:
            add(kind, split, split.symbol, split.ex_date, _ratio(split.new_rate, split.old_rate), 0.0)
    for unit in listed.unit_splits:
        factor = _ratio(unit.new_rate, unit.old_rate)
        add("unit split", unit, unit.new_symbol, unit.effective_date, factor, 0.0)
    for stock in listed.stock_dividends:
        add("stock dividend", stock, stock.symbol, stock.ex_date, 1.0 + stock.rate, 0.0)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(ACTIONS)
    return Page(
        pa.table([pa.array(c, f.type) for c, f in zip(columns, ACTIONS, strict=True)], schema=ACTIONS),
        found.next_page_token,
    )


def articles(body: bytes, origin: str) -> Page:
    """A page of `/v1beta1/news` as `ARTICLES`, texts without markup; raises as `day_bars`."""
    found = _decoded(body, _News, origin)
    listed = found.news or []
    who = [f"article {article.id}" for article in listed]
    table = pa.table(
        {
            "article_id": pa.array([str(article.id) for article in listed], pa.string()),
            "published_at": _instants([article.created_at for article in listed], who, origin),
            "updated_at": _instants([article.updated_at for article in listed], who, origin),
            "title": pa.array([plain_text(article.headline) for article in listed], pa.string()),
            "summary": pa.array([plain_text(article.summary or "") for article in listed], pa.string()),
            "url": pa.array([article.url or "" for article in listed], pa.string()),
            "symbols": pa.array([article.symbols for article in listed], pa.list_(pa.string())),
            "origin": pa.array([origin] * len(listed), pa.string()),
        },
        schema=ARTICLES,
    )
    return Page(table, found.next_page_token)


def latest_bars(body: bytes, origin: str) -> Page:
    """An answer of `/v2/stocks/bars/latest` as `MINUTES`; raises as `day_bars`."""
    found = _decoded(body, _LatestBars, origin).bars
    symbols, bars = list(found), list(found.values())
    instants = _instants([bar.t for bar in bars], symbols, origin)
    return Page(_bar_table(symbols, instants, bars, origin, MINUTES), None)


class NoJSON(ValueError):
    """A document that ends too early, or is none: worth asking for again."""


def _decoded(body: bytes, kind: type[Content], origin: str) -> Content:
    try:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError:
            msgspec.json.decode(body)  # one that was cut short is seen to be wrong before it is seen to end
            raise
    except msgspec.ValidationError as error:
        raise SourceError(
            f"{origin}: the answer is not what Alpaca documents: {error}. If it changed its format, this source has to follow"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoJSON(f"{origin}: the answer is no JSON document: {error}") from None


def _flat(
    body: bytes, kind: type[_Bars] | type[_Quotes], name: str, origin: str
) -> tuple[list[str], list, str | None]:
    """(symbol of each row, rows, token) of a document that lists rows by symbol."""
    try:
        found: _Bars | _Quotes = _decoded(body, kind, origin)
    except SourceError as error:
        raise SourceError(_naming_the_symbol(body, kind, name, origin) or str(error)) from None
    by_symbol = getattr(found, name) or {}
    symbols = [symbol for symbol, rows in by_symbol.items() for _ in rows]
    return symbols, [row for rows in by_symbol.values() for row in rows], found.next_page_token


def _naming_the_symbol(body: bytes, kind: type, name: str, origin: str) -> str | None:
    """The reader says only that it was `[...]`; which symbol it was is found by reading one after another."""
    whole = msgspec.json.decode(body)
    listed = whole.get(name) if isinstance(whole, dict) else None
    for symbol, rows in listed.items() if isinstance(listed, dict) else ():
        try:
            msgspec.convert({name: {symbol: rows}}, kind)
        except msgspec.ValidationError as error:
            return (
                f"{origin}: {symbol}: the answer is not what Alpaca documents: {error}. If it changed its format, this source has "
                "to follow"
            )
    return None


def _instants(texts: list[str], who: list[str], origin: str, unit: str = "us") -> pa.Array:
    """RFC 3339 instants. Every one must say its zone."""
    kind = pa.timestamp(unit, tz="UTC")
    try:
        return pc.cast(pa.array(texts, pa.string()), pa.timestamp("ns", tz="UTC")).cast(kind, safe=False)
    except pa.ArrowInvalid:
        for text, owner in zip(texts, who, strict=True):
            try:
                pc.cast(pa.array([text], pa.string()), pa.timestamp("ns", tz="UTC"))
            except pa.ArrowInvalid:
                raise SourceError(
                    f"{origin}: {owner}: {text!r} is no instant with a zone (2024-01-02T05:00:00Z)"
                ) from None
        raise


def _bar_table(
    symbols: list[str], when: pa.Array, bars: list[_Bar], origin: str, schema: pa.Schema
) -> pa.Table:
    return pa.table(
        [
            pa.array(symbols, pa.string()),
            when,
            pa.array([bar.o for bar in bars], pa.float64()),
            pa.array([bar.h for bar in bars], pa.float64()),
            pa.array([bar.l for bar in bars], pa.float64()),
            pa.array([bar.c for bar in bars], pa.float64()),
            pa.array([bar.v for bar in bars], pa.float64()),
            pa.repeat(pa.scalar(origin), len(bars)),
        ],
        schema=schema,
    )


def _ratio(new: float, old: float) -> float:
    return new / old if old else 0.0


def plain_text(text: str) -> str:
    """Text without tags and entities, white space as single spaces."""
    import html

    without = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<[a-z/!][^>]*>", " ", text)
    return re.sub(r"\s+", " ", html.unescape(without)).strip()
