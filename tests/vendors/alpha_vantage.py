"""A stand-in for Alpha Vantage on the loopback interface: its wire format, limits and refusals, over a made market.

Belongs here: what the service answers, as it was recorded. Does not belong here: anything of the client that is tested.

Runs in a thread (`with AlphaVantageStub(...) as stub`) or as a process: `python tests/vendors/alpha_vantage.py --port 8901`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import itertools
import json
import socket
import struct
import threading
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from quant_resources.calendar import NEW_YORK, TradingCalendar

KEY = "STUBKEY0123456789"
SUBSCRIBE = "You may subscribe to any of the premium plans at https://www.alphavantage.co/premium/"
THANKS = "Thank you for using Alpha Vantage!"
NO_KEY = (
    "the parameter apikey is invalid or missing. Please claim your free API key on (https://www.alphavantage.co/support/#api-key). It "
    "should take less than 20 seconds."
)
DEMO = (
    "The **demo** API key is for demo purposes only. Please claim your free API key at (https://www.alphavantage.co/support/#api-key) to "
    "explore our full API offerings. It takes fewer than 20 seconds."
)
TOO_FAST = (
    f"{THANKS} Please consider spreading out your free API requests more sparingly (1 request per second). {SUBSCRIBE} to lift the free key "
    "rate limit (25 requests per day), raise the per-second burst limit, and instantly unlock all premium endpoints"
)
BURST = (
    "Burst pattern detected. Please consider spreading out your API requests more evenly across a 1-minute window and query no more than 5 "
    "requests per second. Please contact support@alphavantage.co if you are targeting a higher API request volume."
)
PER_MINUTE = (
    "Minute-level rate limit exceed. Please stay under the number of API requests per minute for your premium subscription plan. Please "
    "contact support@alphavantage.co if you are targeting a higher API request volume."
)
FREQUENCY = (
    f"{THANKS} Our standard API call frequency is 5 calls per minute and 500 calls per day. Please visit "
    "https://www.alphavantage.co/premium/ if you would like to target a higher API call frequency."
)
PREMIUM_ENDPOINT = (
    f"{THANKS} This is a premium endpoint. {SUBSCRIBE} to instantly unlock all premium endpoints"
)
PREMIUM_FULL = (
    f"{THANKS} The outputsize=full parameter value is a premium feature for the TIME_SERIES_DAILY endpoint. {SUBSCRIBE} to instantly unlock "
    "all premium features"
)
NO_ARTICLES = (
    "No articles found. Please adjust the time range or refer to the API documentation "
    "https://www.alphavantage.co/documentation#newsapi and try again."
)
INVALID_INPUTS = "Invalid inputs. Please refer to the API documentation https://www.alphavantage.co/documentation#newsapi and try again."
SENTIMENT = (
    "x <= -0.35: Bearish; -0.35 < x <= -0.15: Somewhat-Bearish; -0.15 < x < 0.15: Neutral; 0.15 <= x < 0.35: Somewhat_Bullish; x >= 0.35: "
    "Bullish"
)
RELEVANCE = "0 < x <= 1, with a higher score indicating higher relevance."
# The vendor shouts for some and does not for others.
SEGMENTS = (
    ("TECHNOLOGY", "SERVICES-PREPACKAGED SOFTWARE"),
    ("Technology", "Software—Infrastructure"),
    ("LIFE SCIENCES", "PHARMACEUTICAL PREPARATIONS"),
    ("ENERGY & TRANSPORTATION", "OIL & GAS E&P"),
)
# A fault that the next request meets instead of an answer.
NOTICES: dict[str, dict[str, str]] = {
    "too fast": {"Information": TOO_FAST},
    "burst": {"Information": BURST},
    "per minute": {"Information": PER_MINUTE},
    "frequency": {"Note": FREQUENCY},
    "premium": {"Information": PREMIUM_ENDPOINT},
    "demo": {"Information": DEMO},
    "no key": {"Error Message": NO_KEY},
    "strange": {"Information": "The moon is full. Please come back when it is not."},
}


class Market:
    """Made prices, events, articles and companies: the same for the same symbol, whoever asks.

    Args:
        symbols: that the market knows.
        first, last: sessions.
        paths: distinct price paths; symbols share them in turn. As many as symbols when None. Fewer make large markets cheap to serve.
        articles_per_session: of each symbol.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        first: dt.date,
        last: dt.date,
        paths: int | None = None,
        articles_per_session: float = 1.0,
    ) -> None:
        self.symbols = tuple(symbols)
        self.calendar = TradingCalendar(first, last)
        self.sessions = self.calendar.sessions(first, last)
        self.names = [session.isoformat() for session in self.sessions]
        self.paths = paths or len(self.symbols)
        self.articles_per_session = articles_per_session
        self.path = lru_cache(maxsize=64)(self._path)
        self.articles = lru_cache(maxsize=64)(self._articles)

    def path_of(self, symbol: str) -> int:
        """Which price path is the symbol's."""
        return self.symbols.index(symbol) % self.paths

    def _path(self, path: int) -> dict[str, np.ndarray]:
        """Prices as traded, shape (sessions,): a split on every third path, quarterly dividends on every second."""
        random = np.random.default_rng(1000 + path)
        n = len(self.sessions)
        split = np.ones(n)
        dividend = np.zeros(n)
        if path % 3 == 0 and n > 3:
            split[2 * n // 3] = 4.0
        if path % 2 == 0:
            dividend[40::63] = 0.24
        close = (
            60
            * (1 + path % 7)
            * np.exp(np.cumsum(random.normal(0.0003, 0.012, n)))
            / np.cumprod(split)
            * np.prod(split)
        )
        open_ = close * np.exp(random.normal(0, 0.004, n))
        high = np.maximum(open_, close) * (1 + np.abs(random.normal(0, 0.003, n)))
        low = np.minimum(open_, close) * (1 - np.abs(random.normal(0, 0.003, n)))
        values = {"open": open_, "high": high, "low": low, "close": close}
        result = {name: np.round(value, 2) for name, value in values.items()}
        # What is left of a dollar's worth of adjustments, from the newest session back, as the vendor gives it.
        ratio = np.append(((1 - dividend / close) / split)[1:], 1.0)
        result["adjusted"] = result["close"] * np.cumprod(ratio[::-1])[::-1]
        result["volume"] = np.round(random.lognormal(14, 0.3, n))
        return result | {"dividend": dividend, "split_factor": split}

    def minutes(self, symbol: str, session: dt.date) -> list[tuple[str, float, float, float, float, int]]:
        """(start in New York, open, high, low, close, volume) of each minute of a session, in order."""
        at = self.sessions.index(session)
        day = self.path(self.path_of(symbol))
        opens, closes = self.calendar.opens(session), self.calendar.close(session)
        n = int((closes - opens).total_seconds() // 60)
        random = np.random.default_rng([at, self.path_of(symbol)])
        marks = np.round(np.linspace(day["open"][at], day["close"][at], n + 1), 2)
        wiggle = np.round(np.abs(random.normal(0, 0.02, n)), 2)
        volume = random.integers(100, 5000, n)
        local = opens.astimezone(ZoneInfo(NEW_YORK)).replace(tzinfo=None)
        return [
            (
                f"{local + dt.timedelta(minutes=i):%Y-%m-%d %H:%M:%S}",
                float(marks[i]),
                float(max(marks[i], marks[i + 1]) + wiggle[i]),
                float(min(marks[i], marks[i + 1]) - wiggle[i]),
                float(marks[i + 1]),
                int(volume[i]),
            )
            for i in range(n)
        ]

    def _articles(self, symbol: str) -> list[tuple[dt.datetime, str, float, float]]:
        """(published, url, sentiment, relevance) in order; a third after the close, none before 2000."""
        random = np.random.default_rng(int(hashlib.sha256(symbol.encode()).hexdigest()[:8], 16))
        count = random.poisson(self.articles_per_session, len(self.sessions))
        found = []
        for session, n in zip(self.sessions, count, strict=True):
            close = self.calendar.close(session)
            for i, seconds in enumerate(sorted(random.integers(-12 * 3600, 6 * 3600, n).tolist())):
                url = f"https://www.example.com/{session:%Y/%m/%d}/{symbol.lower()}-{i}"
                score, weight = round(random.uniform(-0.6, 0.6), 6), round(random.uniform(0.05, 1), 6)
                found.append((close + dt.timedelta(seconds=int(seconds)), url, score, weight))
        return sorted(found)


class AlphaVantageStub:
    """The service over a market, in a thread. Everything public may be changed while it runs.

    Attributes:
        now: the vendor's clock; sessions and articles after it do not exist yet.
        key, plan: what is accepted, and what it may.
        per_day: requests a New York day; None for no limit.
        publish_after: how long after a close its bar appears.
        late: symbols whose newest session is held back.
        trading_bar: whether the session that is being traded has an unfinished bar.
        corrected: (symbol, session) -> values that replace the bar's.
        extra_articles: symbol -> (published, url, sentiment, relevance).
        news_limit: most articles a page whatever is asked.
        faults: what the next requests meet, first in first out: a name of `NOTICES`, an HTTP status such as "503" or "503 after 7",
            "reset", "cut" (fewer bytes than announced), "torn" (no whole JSON), "slow", "redirect", "page" (HTML), bytes (a body).
        hold, hold_from: requests from this one on (1 is the first) wait for it to be set.
        asked: every request: function, symbol and its other parameters, without key.
        seen_keys: the keys that came.
    """

    def __init__(self, market: Market, plan: str = "premium", now: dt.datetime | None = None) -> None:
        self.market = market
        self.plan = plan
        self.key = KEY
        end = market.calendar.close(market.sessions[-1]) + dt.timedelta(hours=1)
        self.now: Callable[[], dt.datetime] = lambda: now or end
        self.per_day: int | None = None
        self.publish_after = dt.timedelta(minutes=10)
        self.late: set[str] = set()
        self.trading_bar = False
        self.corrected: dict[tuple[str, dt.date], dict[str, float]] = {}
        self.extra_articles: dict[str, list[tuple[dt.datetime, str, float, float]]] = {}
        self.news_limit = 1000
        self.faults: deque[str | bytes] = deque()
        self.hold = threading.Event()
        self.hold.set()
        self.hold_from = 1
        self.asked: list[dict[str, str]] = []
        self.seen_keys: set[str] = set()
        self.slow_seconds = 5.0
        self._used: Counter[dt.date] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._rendered = lru_cache(maxsize=256)(self._rows_of_path)
        self._server: ThreadingHTTPServer | None = None

    # -- running -------------------------------------------------------------------------------------------------------

    def start(self, port: int = 0) -> AlphaVantageStub:
        """Listen on 127.0.0.1."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body leave in two writes; without this the second waits for the first's acknowledgement.
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                stub._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # a client that was killed is no news
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def stop(self) -> None:
        """Close the port; held and slow requests end."""
        self._stopped.set()
        self.hold.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def __enter__(self) -> AlphaVantageStub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, function: str | None = None, **parameters: str) -> int:
        """How many requests came, of a function and with these parameters."""
        wanted = parameters | ({"function": function} if function else {})
        return sum(all(one.get(k) == v for k, v in wanted.items()) for one in self.asked)

    # -- answering -----------------------------------------------------------------------------------------------------

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        address = urllib.parse.urlsplit(handler.path)
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        key = query.pop("apikey", "")
        with self._lock:
            self.seen_keys.add(key)
            self.asked.append(query)
            fault = self.faults.popleft() if self.faults else None
            number = len(self.asked)
        if number >= self.hold_from:
            self.hold.wait(30)
        if isinstance(fault, bytes):
            return _send(handler, 200, fault)
        if fault is not None and fault not in NOTICES:
            return self._break(handler, fault, key)
        if address.path != "/query":
            return _send(handler, 404, b"Not Found", {"Content-Type": "text/plain"})
        body = json.dumps(NOTICES[fault], indent=4).encode() if fault is not None else self._body(query, key)
        return _send(handler, 200, body)

    def _break(self, handler: BaseHTTPRequestHandler, fault: str, key: str) -> None:
        whole = b'{\n    "Meta Data": {\n        "1. Information": "Daily Prices", "2. Symbol": '
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
        elif fault == "cut":
            _send(handler, 200, whole, {"Content-Length": str(len(whole) + 1000)})
            handler.close_connection = True
        elif fault == "torn":
            _send(handler, 200, whole)
        elif fault == "page":
            _send(
                handler, 200, b"<!DOCTYPE html><title>Just a moment...</title>", {"Content-Type": "text/html"}
            )
        elif fault == "slow":
            self._stopped.wait(self.slow_seconds)
            handler.close_connection = True
        elif fault == "redirect":
            _send(handler, 301, b"", {"Location": f"https://www.example.com{handler.path}"})
        elif fault == "forbidden":
            _send(handler, 403, f"key {key} is blocked".encode(), {"Content-Type": "text/plain"})
        else:
            status, _, after = fault.partition(" after ")
            _send(handler, int(status), b"upstream failed", {"Retry-After": after} if after else {})

    def _body(self, query: dict[str, str], key: str) -> bytes:
        refusal = self._refusal(query, key)
        if refusal is not None:
            return json.dumps(refusal, indent=4).encode()
        function = query["function"]
        answer = {
            "TIME_SERIES_DAILY": self._daily,
            "TIME_SERIES_DAILY_ADJUSTED": self._daily,
            "TIME_SERIES_INTRADAY": self._intraday,
            "NEWS_SENTIMENT": self._news,
            "OVERVIEW": self._overview,
            "GLOBAL_QUOTE": self._quote,
        }[function]
        found = answer(query)
        return found if isinstance(found, bytes) else json.dumps(found, indent=4).encode()

    def _refusal(self, query: dict[str, str], key: str) -> dict[str, str] | None:
        function = query.get("function", "")
        if key == "demo":
            return {"Information": DEMO}
        if key != self.key:
            return {"Error Message": NO_KEY}
        day = self.now().astimezone(ZoneInfo(NEW_YORK)).date()
        with self._lock:
            if self.per_day is not None and self._used[day] >= self.per_day:
                return {
                    "Information": f"We have detected your API key as {key} and our standard API rate limit is {self.per_day} requests per "
                    "day. Please subscribe to any of the premium plans at https://www.alphavantage.co/premium/ to instantly remove all "
                    "daily rate limits."
                }
            self._used[day] += 1
        if function not in (
            "TIME_SERIES_DAILY",
            "TIME_SERIES_DAILY_ADJUSTED",
            "TIME_SERIES_INTRADAY",
            "NEWS_SENTIMENT",
            "OVERVIEW",
            "GLOBAL_QUOTE",
        ):
            return {"Error Message": f"This API function ({function}) does not exist."}
        if self.plan == "free":
            if function in ("TIME_SERIES_DAILY_ADJUSTED", "TIME_SERIES_INTRADAY"):
                return {"Information": PREMIUM_ENDPOINT}
            if query.get("outputsize") == "full":
                return {"Information": PREMIUM_FULL}
        symbol = query.get("symbol", query.get("tickers", ""))
        if symbol not in self.market.symbols:
            if function == "NEWS_SENTIMENT":
                return {"Information": INVALID_INPUTS}
            if function.startswith("TIME_SERIES"):
                return {
                    "Error Message": "Invalid API call. Please retry or visit the documentation (https://www.alphavantage.co/documentation/) "
                    f"for {function}."
                }
        return None

    def published(self, symbol: str) -> int:
        """How many sessions of a symbol are out."""
        now = self.now()
        last = next(
            (
                i + 1
                for i in range(len(self.market.sessions) - 1, -1, -1)
                if self.market.calendar.close(self.market.sessions[i]) + self.publish_after <= now
            ),
            0,
        )
        if symbol in self.late:
            return last - 1
        trading = (
            last < len(self.market.sessions) and self.market.calendar.opens(self.market.sessions[last]) < now
        )
        return last + (self.trading_bar and trading)

    def _rows_of_path(self, path: int, adjusted: bool) -> list[str]:
        """Each session's bar as text, the oldest first."""
        values = self.market.path(path)
        columns = [
            values[name].tolist()
            for name in ("open", "high", "low", "close", "adjusted", "volume", "dividend", "split_factor")
        ]
        rows = zip(self.market.names, *columns, strict=True)
        return [_bar_text(adjusted, *row) for row in rows]

    def _daily(self, query: dict[str, str]) -> bytes:
        symbol, adjusted = query["symbol"], query["function"].endswith("ADJUSTED")
        until = self.published(symbol)
        compact = query.get("outputsize", "compact") == "compact"
        rows = self._rendered(self.market.path_of(symbol), adjusted)[
            max(until - 100, 0) if compact else 0 : until
        ]
        for (name, session), changed in self.corrected.items():
            at = self.market.sessions.index(session) if name == symbol else until
            if until - len(rows) <= at < until:
                values = self.market.path(self.market.path_of(symbol))
                one = {k: float(v[at]) for k, v in values.items()} | changed
                names = ("open", "high", "low", "close", "adjusted", "volume", "dividend", "split_factor")
                rows[at - until + len(rows)] = _bar_text(
                    adjusted, self.market.names[at], *(one[k] for k in names)
                )
        meta = {
            "1. Information": "Daily Time Series with Splits and Dividend Events"
            if adjusted
            else "Daily Prices (open, high, low, close) and Volumes",
            "2. Symbol": symbol,
            "3. Last Refreshed": self.market.names[max(until, 1) - 1],
            "4. Output Size": "Compact" if compact else "Full size",
            "5. Time Zone": "US/Eastern",
        }
        head = json.dumps({"Meta Data": meta}, indent=4)[:-2]
        return f'{head},\n    "Time Series (Daily)": {{\n{",".join(reversed(rows))}\n    }}\n}}'.encode()

    def _intraday(self, query: dict[str, str]) -> dict[str, Any]:
        symbol, month = query["symbol"], query["month"]
        sessions = [s for s in self.market.sessions[: self.published(symbol)] if f"{s:%Y-%m}" == month]
        if not sessions:
            return {
                "Error Message": "Invalid API call. Please retry or visit the documentation (https://www.alphavantage.co/documentation/) for "
                "TIME_SERIES_INTRADAY."
            }
        rows = [row for session in sessions for row in self.market.minutes(symbol, session)]
        return {
            "Meta Data": {
                "1. Information": f"Intraday ({query['interval']}) open, high, low, close prices and volume",
                "2. Symbol": symbol,
                "3. Last Refreshed": rows[-1][0],
                "4. Interval": query["interval"],
                "5. Output Size": "Full size",
                "6. Time Zone": "US/Eastern",
            },
            f"Time Series ({query['interval']})": {
                row[0]: {
                    "1. open": f"{row[1]:.4f}",
                    "2. high": f"{row[2]:.4f}",
                    "3. low": f"{row[3]:.4f}",
                    "4. close": f"{row[4]:.4f}",
                    "5. volume": str(row[5]),
                }
                for row in reversed(rows)
            },
        }

    def _news(self, query: dict[str, str]) -> dict[str, Any]:
        symbol = query["tickers"]
        first = _minute(query.get("time_from", "19900101T0000"))
        last = min(_minute(query["time_to"]) if "time_to" in query else self.now(), self.now())
        found = sorted((*self.market.articles(symbol), *self.extra_articles.get(symbol, ())))
        found = [article for article in found if first <= article[0] <= last]
        if query.get("sort", "LATEST") == "LATEST":
            found.reverse()
        found = found[: min(int(query.get("limit", "50")), self.news_limit)]
        if not found:
            return {"Information": NO_ARTICLES}
        feed = [self._article(symbol, *article) for article in found]
        return {
            "items": str(len(feed)),
            "sentiment_score_definition": SENTIMENT,
            "relevance_score_definition": RELEVANCE,
            "feed": feed,
        }

    def _article(
        self, symbol: str, published: dt.datetime, url: str, score: float, relevance: float
    ) -> dict[str, Any]:
        other = next((s for s in self.market.symbols if s != symbol), "SPY")
        return {
            "title": f"What moved {symbol} on {published:%B %d} – and why",  # noqa: RUF001  # as headlines have it
            "url": url,
            "time_published": f"{published:%Y%m%dT%H%M%S}",
            "authors": ["Jane Doe"],
            "summary": f"Shares of {symbol} were among those that traders watched. " * 3,
            "banner_image": None,
            "source": "Example",
            "category_within_source": "n/a",
            "source_domain": "www.example.com",
            "topics": [{"topic": "Financial Markets", "relevance_score": "0.161647"}],
            "overall_sentiment_score": score,
            "overall_sentiment_label": _label(score),
            "ticker_sentiment": [
                {
                    "ticker": other,
                    "relevance_score": "0.046068",
                    "ticker_sentiment_score": "-0.9",
                    "ticker_sentiment_label": "Bearish",
                },
                {
                    "ticker": symbol,
                    "relevance_score": str(relevance),
                    "ticker_sentiment_score": str(score),
                    "ticker_sentiment_label": _label(score),
                },
            ],
        }

    def _overview(self, query: dict[str, str]) -> dict[str, str]:
        symbol = query["symbol"]
        if symbol not in self.market.symbols:
            return {}
        sector, industry = SEGMENTS[self.market.symbols.index(symbol) % len(SEGMENTS)]
        return {
            "Symbol": symbol,
            "AssetType": "Common Stock",
            "Name": f"{symbol.title()} Incorporated",
            "Description": f"{symbol} makes things and sells them.",
            "CIK": "51143",
            "Exchange": "NYSE",
            "Currency": "USD",
            "Country": "USA",
            "Sector": sector,
            "Industry": industry,
            "FiscalYearEnd": "December",
            "MarketCapitalization": "114234572800",
            "PERatio": "None",
            "DividendPerShare": "6.52",
            "52WeekHigh": "158.75",
        }

    def _quote(self, query: dict[str, str]) -> dict[str, dict[str, str]]:
        symbol = query["symbol"]
        if symbol not in self.market.symbols:
            return {"Global Quote": {}}
        at = self.published(symbol) - 1
        values = self.market.path(self.market.path_of(symbol))
        before = float(values["close"][max(at - 1, 0)])
        close = float(values["close"][at])
        return {
            "Global Quote": {
                "01. symbol": symbol,
                "02. open": f"{values['open'][at]:.4f}",
                "03. high": f"{values['high'][at]:.4f}",
                "04. low": f"{values['low'][at]:.4f}",
                "05. price": f"{close:.4f}",
                "06. volume": f"{values['volume'][at]:.0f}",
                "07. latest trading day": self.market.names[at],
                "08. previous close": f"{before:.4f}",
                "09. change": f"{close - before:.4f}",
                "10. change percent": f"{100 * (close / before - 1):.4f}%",
            }
        }


def _bar_text(
    adjusted: bool,
    name: str,
    open_: float,
    high: float,
    low: float,
    close: float,
    adjusted_close: float,
    volume: float,
    dividend: float,
    split_factor: float,
) -> str:
    """One session as the service writes it: plain numbers in the adjusted series, four decimals in the other."""
    if adjusted:
        return (
            f'        "{name}": {{\n            "1. open": "{open_}",\n            "2. high": "{high}",\n            "3. low": "{low}",\n'
            f'            "4. close": "{close}",\n            "5. adjusted close": "{adjusted_close}",\n'
            f'            "6. volume": "{volume:.0f}",\n            "7. dividend amount": "{dividend:.4f}",\n'
            f'            "8. split coefficient": "{split_factor}"\n        }}'
        )
    return (
        f'        "{name}": {{\n            "1. open": "{open_:.4f}",\n            "2. high": "{high:.4f}",\n'
        f'            "3. low": "{low:.4f}",\n            "4. close": "{close:.4f}",\n            "5. volume": "{volume:.0f}"\n        }}'
    )


def _label(score: float) -> str:
    marks = ((-0.35, "Bearish"), (-0.15, "Somewhat-Bearish"), (0.15, "Neutral"), (0.35, "Somewhat-Bullish"))
    return next((label for mark, label in marks if score <= mark), "Bullish")


def _minute(text: str) -> dt.datetime:
    return dt.datetime.strptime(text, "%Y%m%dT%H%M").replace(tzinfo=dt.UTC)


def _send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    with contextlib.suppress(OSError):  # the client may be gone
        handler.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        for name, value in sent.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()


def tickers(count: int) -> list[str]:
    """AAA, AAB, ...: as many as asked for."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return ["".join(three) for three in itertools.islice(itertools.product(letters, repeat=3), count)]


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--symbols", type=int, default=5, help="how many there are: AAA, AAB, ...")
    parser.add_argument("--first", type=dt.date.fromisoformat, default=dt.date(2015, 1, 2))
    parser.add_argument("--last", type=dt.date.fromisoformat, default=dt.date.today())
    parser.add_argument("--paths", type=int, help="distinct price paths, for large markets")
    parser.add_argument("--plan", choices=("free", "premium"), default="premium")
    parser.add_argument("--per-day", type=int, help="requests a day")
    arguments = parser.parse_args()
    market = Market(tickers(arguments.symbols), arguments.first, arguments.last, paths=arguments.paths)
    stub = AlphaVantageStub(market, plan=arguments.plan)
    stub.per_day = arguments.per_day
    stub.now = lambda: dt.datetime.now(dt.UTC)
    stub.start(arguments.port)
    print(f"{stub.url} key {KEY} plan {stub.plan}: {', '.join(market.symbols[:20])}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    stub.stop()


if __name__ == "__main__":
    main()
