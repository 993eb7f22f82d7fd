"""A stand-in for Alpaca's market data service on the loopback interface: the wire format, the limits and the refusals of the real one.

Belongs here: bars, quotes, corporate actions and news of a made market (seeded, the same at every start), served as
`data.alpaca.markets` serves them, and switches for everything that can go wrong. Does not belong here: anything of the client.

    python tests/vendors/alpaca.py --port 8600 --symbols AAPL,MSFT
"""

from __future__ import annotations

import argparse
import base64
import bisect
import datetime as dt
import json
import re
import socket
import struct
import sys
import threading
import time
import zlib
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import numpy as np

from quant_resources.calendar import TradingCalendar

NEW_YORK = ZoneInfo("America/New_York")
KEY_ID, SECRET_KEY = "PKSTUB0123456789", "s3cr3tStub/abcdefghijklmnopqrstuvwxyz0123456"
DEFAULT_SYMBOLS = ("AAPL", "BRK.B", "IBM", "META", "MSFT")
_KINDS = {
    "cash_dividend": "cash_dividends",
    "forward_split": "forward_splits",
    "reverse_split": "reverse_splits",
    "unit_split": "unit_splits",
    "stock_dividend": "stock_dividends",
    "spin_off": "spin_offs",
}


# The market's days, made once for all services of a process.
CALENDAR = TradingCalendar(dt.date(2000, 1, 3), dt.date(2030, 12, 31))
SESSIONS = CALENDAR.sessions(CALENDAR.first, CALENDAR.last)
STAMPS = [
    f"{dt.datetime.combine(s, dt.time(), NEW_YORK).astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}" for s in SESSIONS
]


@dataclass
class Fault:
    """What happens instead of one answer.

    Attributes:
        kind: `status`, `reset` (the connection is torn), `truncate` (half of the body), `garbage` (half of the JSON, whole as HTTP),
            `body` (200 with `body`), `slow` (nothing for `seconds`).
        path: part of the request's path that it is meant for; "" for any.
        times: how often; counted down.
    """

    kind: str
    status: int = 500
    body: str = '{"message":"internal server error"}'
    headers: dict[str, str] = field(default_factory=dict)
    path: str = ""
    times: int = 1
    seconds: float = 0.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that went away in the middle is part of what is tested."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*_)  # type: ignore[arg-type]


class AlpacaStub:
    """The service. Attributes are switches: a test sets them while the server runs.

    Attributes:
        symbols: that have bars; others are known and have none.
        listed: symbol -> first session.
        published_until: last session whose bars are there; None: all.
        corrections: (symbol, session) -> close of the day bar that replaces the made one.
        splits: (symbol, session) -> new shares per old share, in the prices.
        actions: corporate actions as the service lists them, each with `kind` (`cash_dividend`, ...).
        articles: news as the service lists them.
        page_rows: most rows of a page, below what the client asks for.
        quotes_per_second: of each symbol; bad_quotes: symbols whose newest quote has no bid.
        unquoted: symbols without any quote.
        basic_plan: SIP data of the last 15 minutes before `now` are refused.
        now: the service's clock.
        requests_per_minute: more are refused with 429; None: no limit.
        faults: what goes wrong next.
        requests: what was asked: (path, parameters).
    """

    def __init__(self, symbols: tuple[str, ...] = DEFAULT_SYMBOLS, port: int = 0) -> None:
        self.symbols = tuple(symbols)
        self.key_id, self.secret_key, self.key_status = KEY_ID, SECRET_KEY, 403
        self.listed: dict[str, dt.date] = {}
        self.published_until: dt.date | None = None
        self.corrections: dict[tuple[str, dt.date], float] = {}
        self.splits: dict[tuple[str, dt.date], float] = {}
        self.actions: list[dict[str, Any]] = []
        self.articles: list[dict[str, Any]] = []
        self.page_rows = 10_000
        self.quotes_per_second = 2
        self.bad_quotes: set[str] = set()
        self.unquoted: set[str] = set()
        self.basic_plan = False
        self.now: dt.datetime | None = None
        self.requests_per_minute: int | None = None
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> AlpacaStub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path: str = "") -> int:
        """How many requests came, to paths that hold this text."""
        return sum(path in asked for asked, _ in self.requests)

    # -- the made market -----------------------------------------------------------------------------------------------

    calendar, sessions, _stamps = CALENDAR, SESSIONS, STAMPS

    def day(self, symbol: str, session: dt.date) -> dict[str, Any]:
        """The day bar as the service states it now."""
        at = self.sessions.index(session)
        return json.loads(self._day_text(symbol, at))

    def _day_text(self, symbol: str, at: int) -> str:
        text = self._made(symbol)[at]
        if (corrected := self.corrections.get((symbol, self.sessions[at]))) is None:
            return text
        bar = json.loads(text)
        bar |= {"c": corrected, "h": max(bar["h"], corrected), "l": min(bar["l"], corrected)}
        return json.dumps(bar, separators=(",", ":"))

    def _made(self, symbol: str) -> list[str]:
        return _day_texts(symbol, tuple(sorted(self.splits.items())))

    @cache  # noqa: B019
    def _minute_texts(self, symbol: str, session: dt.date) -> list[tuple[str, str]]:
        """(instant, bar) of a session, a few minutes before the open and after the close with it; some minutes have no trade."""
        rng = np.random.default_rng([zlib.crc32(symbol.encode()), session.toordinal()])
        opens, close = self.calendar.opens(session), self.calendar.close(session)
        made = []
        price = float(self.day(symbol, session)["o"])
        for minute in range(-30, int((close - opens).total_seconds() // 60) + 30):
            price = round(price * float(np.exp(rng.normal(0, 0.0006))), 2)
            high, low = round(price + 0.03, 2), round(price - 0.03, 2)
            volume, there = int(rng.integers(100, 20_000)), rng.random() > 0.01
            instant = f"{opens + dt.timedelta(minutes=minute):%Y-%m-%dT%H:%M:%SZ}"
            if there:
                bar = {"t": instant, "o": price, "h": high, "l": low, "c": price, "v": volume, "n": 9}
                made.append((instant, json.dumps({**bar, "vw": price}, separators=(",", ":"))))
        return made

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(self, path: str, asked: dict[str, str]) -> tuple[int, str]:
        """(status, body) of a request with the right keys."""
        symbols = [part for part in asked.get("symbols", "").split(",") if part]
        for symbol in symbols:
            if not re.fullmatch(r"[A-Z]{1,7}(\.[A-Z]{1,2})?", symbol):
                return 400, f'{{"message":"code=400, message=invalid symbol: {symbol}"}}'
        if self.basic_plan and asked.get("feed") == "sip" and path.startswith("/v2/stocks/"):
            now = self.now or dt.datetime.now(dt.UTC)
            if "end" not in asked or _instant(asked["end"]) > now - dt.timedelta(minutes=15):
                return 403, '{"message":"subscription does not permit querying recent SIP data"}'
        if path.startswith("/v2/stocks/") and asked.get("feed") in ("otc", "delayed_sip"):
            return 400, f'{{"message":"invalid feed: {asked["feed"]}"}}'
        if path == "/v2/stocks/bars/latest":
            newest = self._published()
            bars = ",".join(f'"{s}":{self._day_text(s, newest)}' for s in symbols if s in self.symbols)
            return 200, f'{{"bars":{{{bars}}}}}'
        if path == "/v2/stocks/bars":
            return 200, self._rows("bars", self._bar_rows(symbols, asked), asked, 10_000)
        if path == "/v2/stocks/quotes":
            return 200, self._rows("quotes", self._quote_rows(symbols, asked), asked, 10_000)
        if path == "/v1/corporate-actions":
            return 200, self._action_page(symbols, asked)
        if path == "/v1beta1/news":
            return 200, self._news_page(symbols, asked)
        return 404, '{"message":"endpoint not found."}'

    def _published(self) -> int:
        if self.published_until is None:
            return len(self.sessions) - 1
        return bisect.bisect_right(self.sessions, self.published_until) - 1

    def _bar_rows(self, symbols: list[str], asked: dict[str, str]) -> list[tuple[str, list[tuple[str, str]]]]:
        """Symbol -> (instant, bar); the service sorts by symbol, then by instant."""
        assert asked["adjustment"] == "raw"
        start, end = (f"{_instant(asked[name]):%Y-%m-%dT%H:%M:%SZ}" for name in ("start", "end"))
        first = max(bisect.bisect_left(self._stamps, start) - 1, 0)
        last = min(bisect.bisect_right(self._stamps, end), self._published() + 1)
        corrected = {symbol for symbol, _ in self.corrections}
        found = []
        for symbol in sorted(set(symbols) & set(self.symbols)):
            begin = max(bisect.bisect_left(self.sessions, self.listed.get(symbol, self.sessions[0])), first)
            rows: list[tuple[str, str]] = []
            if asked["timeframe"] == "1Day":
                begin = max(begin, bisect.bisect_left(self._stamps, start))
                texts = self._made(symbol)[begin:last]
                if symbol in corrected:
                    texts = [self._day_text(symbol, at) for at in range(begin, last)]
                rows = list(zip(self._stamps[begin:last], texts, strict=True))
            else:
                for at in range(begin, last):
                    minutes = self._minute_texts(symbol, self.sessions[at])
                    rows += [(instant, bar) for instant, bar in minutes if start <= instant <= end]
            found.append((symbol, rows))
        return found

    def _quote_rows(
        self, symbols: list[str], asked: dict[str, str]
    ) -> list[tuple[str, list[tuple[str, str]]]]:
        start, end = _instant(asked["start"]), _instant(asked["end"])
        found = []
        for symbol in sorted((set(symbols) & set(self.symbols)) - self.unquoted):
            rows = []
            count = int((end - start).total_seconds() * self.quotes_per_second + 0.5)
            for at in range(count):
                moment = start + (at + 0.5) * dt.timedelta(seconds=1 / self.quotes_per_second)
                instant = f"{moment:%Y-%m-%dT%H:%M:%S.%f}123Z"
                spread = 0.01 + 0.01 * (
                    zlib.crc32(f"{symbol}{moment:%Y%m%d%H%M}{self.quotes_per_second}".encode()) % 4
                )
                bid = 100.0 + at / 100
                bad = symbol in self.bad_quotes and at == count - 1
                quote = {
                    "t": instant,
                    "ax": "V",
                    "ap": round(bid + spread, 2),
                    "as": 3,
                    "bx": "V",
                    "bp": 0 if bad else round(bid, 2),
                    "bs": 2,
                    "c": ["R"],
                    "z": "C",
                }
                rows.append((instant, json.dumps(quote, separators=(",", ":"))))
            found.append((symbol, rows[::-1] if asked.get("sort") == "desc" else rows))
        return found

    def _rows(
        self,
        name: str,
        found: list[tuple[str, list[tuple[str, str]]]],
        asked: dict[str, str],
        most: int,
    ) -> str:
        """A page: the rows after the token's, symbol by symbol; a symbol without rows is not named."""
        flat = [(symbol, instant, row) for symbol, rows in found for instant, row in rows]
        begin = 0
        if token := asked.get("page_token"):
            symbol, _, instant = base64.b64decode(token).decode().split("|")
            begin = next(i for i, row in enumerate(flat) if row[:2] == (symbol, instant)) + 1
        limit = min(int(asked.get("limit", 1000)), most, self.page_rows)
        page = flat[begin : begin + limit]
        by_symbol: dict[str, list[str]] = {}
        for symbol, _, row in page:
            by_symbol.setdefault(symbol, []).append(row)
        listed = ",".join(f'"{symbol}":[{",".join(rows)}]' for symbol, rows in by_symbol.items())
        following = "null"
        if begin + limit < len(flat):
            last = f"{page[-1][0]}|{name[0].upper()}|{page[-1][1]}"
            following = f'"{base64.b64encode(last.encode()).decode()}"'
        return f'{{"{name}":{{{listed}}},"next_page_token":{following}}}'

    def _action_page(self, symbols: list[str], asked: dict[str, str]) -> str:
        types = asked.get("types", ",".join(_KINDS)).split(",")
        kept = sorted(
            (
                action
                for action in self.actions
                if action["kind"] in types
                and asked["start"] <= action["process_date"] <= asked["end"]
                and (action.get("symbol") or action.get("new_symbol")) in symbols
            ),
            key=lambda action: (action["process_date"], action["kind"]),
        )
        begin = int(base64.b64decode(asked["page_token"])) if "page_token" in asked else 0
        limit = min(int(asked.get("limit", 100)), 1000, self.page_rows)
        listed: dict[str, list[dict[str, Any]]] = {}
        for action in kept[begin : begin + limit]:
            stated = {name: value for name, value in action.items() if name != "kind"}
            listed.setdefault(_KINDS[action["kind"]], []).append(stated)
        end = begin + limit
        token = base64.b64encode(str(end).encode()).decode() if end < len(kept) else None
        return json.dumps({"corporate_actions": listed, "next_page_token": token})

    def _news_page(self, symbols: list[str], asked: dict[str, str]) -> str:
        start, end = _instant(asked["start"]), _instant(asked["end"])
        kept = [
            article
            for article in self.articles
            if set(article["symbols"]) & set(symbols) and start <= _instant(article["updated_at"]) <= end
        ]
        kept.sort(key=lambda a: (a["updated_at"], a["id"]), reverse=asked.get("sort", "desc") == "desc")
        begin = 0
        if token := asked.get("page_token"):
            last = base64.b64decode(token).decode()
            begin = next(i for i, article in enumerate(kept) if _news_token(article) == last) + 1
        limit = min(int(asked.get("limit", 10)), 50, self.page_rows)
        page = kept[begin : begin + limit]
        following = base64.b64encode(_news_token(page[-1]).encode()).decode() if page else None
        more = begin + limit < len(kept)
        return json.dumps({"news": page, "next_page_token": following if more else None})

    # -- the server ----------------------------------------------------------------------------------------------------

    def _refusal(self, headers: Any) -> tuple[int, str, dict[str, str]] | None:
        if (headers.get("APCA-API-KEY-ID"), headers.get("APCA-API-SECRET-KEY")) != (
            self.key_id,
            self.secret_key,
        ):
            # The service never repeats a key; a proxy might, and a client must not show it.
            said = f"forbidden. (key {headers.get('APCA-API-KEY-ID')} {headers.get('APCA-API-SECRET-KEY')})"
            return self.key_status, json.dumps({"message": said}), {}
        if self.requests_per_minute is not None and len(self.requests) > self.requests_per_minute:
            reset = str(int(time.time()) + 30)
            return 429, '{"message":"too many requests."}', {"X-RateLimit-Reset": reset}
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                asked = dict(parse_qsl(parts.query))
                with stub._lock:
                    stub.requests.append((parts.path, asked))
                    fault = next((f for f in stub.faults if f.times and f.path in parts.path), None)
                    if fault is not None:
                        fault.times -= 1
                    status, body, headers = 200, "", {}
                    if fault is None or fault.kind not in ("status", "body", "reset"):
                        refused = stub._refusal(self.headers)
                        status, body, headers = refused or (*stub.answer(parts.path, asked), {})
                if fault is None:
                    return self.reply(status, body.encode(), headers)
                if fault.kind == "reset":
                    # No farewell: the client sees a connection reset by its peer.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return None
                if fault.kind == "slow":
                    time.sleep(fault.seconds)
                    return self.reply(status, body.encode(), headers)
                if fault.kind == "status":
                    return self.reply(fault.status, fault.body.encode(), fault.headers)
                if fault.kind == "garbage":
                    return self.reply(200, body.encode()[: len(body) // 2], {})
                if fault.kind == "body":
                    return self.reply(200, fault.body.encode(), {})
                assert fault.kind == "truncate", fault.kind
                self.close_connection = True
                return self.reply(200, body.encode()[: len(body) // 2], {}, length=len(body))

            def reply(
                self, status: int, body: bytes, headers: dict[str, str], length: int | None = None
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json; charset=UTF-8")
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.send_header("X-RateLimit-Limit", "200")
                self.send_header("X-RateLimit-Remaining", "0" if status == 429 else "199")
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        return Handler


@cache
def _day_texts(symbol: str, splits: tuple[tuple[tuple[str, dt.date], float], ...]) -> list[str]:
    count = len(SESSIONS)
    rng = np.random.default_rng(zlib.crc32(symbol.encode()))
    close = 100 * np.exp(np.cumsum(rng.normal(0.0001, 0.012, count)))
    factor = np.ones(count)
    for (whose, session), ratio in splits:
        if whose == symbol:
            factor[SESSIONS.index(session) :] /= ratio
    close *= factor
    opened = np.concatenate([close[:1], close[:-1] * factor[1:] / factor[:-1]]) * np.exp(
        rng.normal(0, 0.003, count)
    )
    high = np.maximum(opened, close) * (1 + rng.uniform(0, 0.01, count))
    low = np.minimum(opened, close) * (1 - rng.uniform(0, 0.01, count))
    volume = rng.integers(1_000_000, 9_000_000, count)
    columns = [np.round(c, 2).tolist() for c in (opened, high, low, close)]
    return [
        f'{{"t":"{t}","o":{o},"h":{h},"l":{lo},"c":{c},"v":{v},"n":{v // 150},"vw":{c}}}'
        for t, o, h, lo, c, v in zip(STAMPS, *columns, volume.tolist(), strict=True)
    ]


def article(
    number: int, created_at: str, symbols: list[str], headline: str, updated_at: str = "", **more: Any
) -> dict[str, Any]:
    """An article as the service lists it."""
    return {
        "author": "Benzinga Newsdesk",
        "content": "",
        "created_at": created_at,
        "headline": headline,
        "id": number,
        "images": [],
        "source": "benzinga",
        "summary": "",
        "symbols": symbols,
        "updated_at": updated_at or created_at,
        "url": f"https://www.benzinga.com/news/{number}",
        **more,
    }


def _news_token(listed: dict[str, Any]) -> str:
    return f"{int(_instant(listed['updated_at']).timestamp() * 1e9)}|{listed['id']}"


def _instant(text: str) -> dt.datetime:
    instant = dt.datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)


def main() -> None:
    """Serve until interrupted; the address is printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--symbols", default=",".join(DEFAULT_SYMBOLS))
    chosen = parser.parse_args()
    with AlpacaStub(tuple(chosen.symbols.split(",")), chosen.port) as stub:
        print(f"{stub.url} knows {', '.join(stub.symbols)}", flush=True)
        print(
            f"QUANT_ALPACA_KEY_ID={KEY_ID} QUANT_ALPACA_SECRET_KEY={SECRET_KEY} QUANT_ALPACA_URL={stub.url}",
            flush=True,
        )
        threading.Event().wait()


if __name__ == "__main__":
    main()
