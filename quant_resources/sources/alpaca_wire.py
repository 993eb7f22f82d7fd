"""Alpaca's wire: what its refusals mean, and the seam between alpaca-py and the network.

Belongs here: one request and its answer. Does not belong here: the documents' format (`alpaca_documents.py`), what is asked for
(`alpaca.py`), waiting, archiving and asking again (`vendor.py`).

alpaca-py builds every request and walks the pages; an adapter on its session answers them. It asks through `Vendor.ask`, so that an
archived page needs no request, and its own rules for time-outs, `Retry-After` and back-off hold: alpaca-py has no time-out, and
repeats a refused request after three seconds whatever the refusal says.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from quant_resources.sources import SourceError
from quant_resources.sources.alpaca_documents import NoJSON, Page, plain_text
from quant_resources.sources.vendor import Busy, Response, Vendor

if TYPE_CHECKING:
    import pyarrow as pa

    from quant_resources.sources.archive import Document

CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
TRANSIENT = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
_SAID = 300  # characters of a refusal that are shown


# -- refusals ----------------------------------------------------------------------------------------------------------


def judge(response: Response, what: str, now: dt.datetime) -> None:
    """Pass an answer; say what a refusal means and what to do about it.

    Args:
        response: as it came.
        what: dataset and label, for messages.
        now: for a `X-RateLimit-Reset`, which is an instant.

    Raises:
        Busy: a limit of the rate, or a failure of the vendor's.
        SourceError: anything else that is no answer.
    """
    status, said = response.status, _message(response.body)
    if status == 200:
        return
    told = f"alpaca: {what}: HTTP {status}: {said}"
    if status == 429 or status >= 500:
        raise Busy(told, after_seconds(response.headers, now))
    if status in (401, 403):
        if "recent SIP" in said:
            raise SourceError(
                f"{told}. Your subscription gives SIP data when they are 15 minutes old: run at least 16 minutes after the close "
                "(QUANT_NIGHT_DELAY_MINUTES=30), set QUANT_ALPACA_FEED=iex, or subscribe to Algo Trader Plus"
            )
        if re.search(r"subscription|permit|entitle", said, re.IGNORECASE):
            raise SourceError(
                f"{told}. The key is right, your subscription does not cover this: set QUANT_ALPACA_FEED=iex, or change the plan at "
                "Alpaca"
            )
        raise SourceError(
            f"{told}. Alpaca does not accept the credentials: check QUANT_ALPACA_KEY_ID and QUANT_ALPACA_SECRET_KEY (both are shown "
            "once when a key is generated; resetting a paper account ends its keys)"
        )
    if status in (400, 422):
        if found := re.search(r"invalid symbol\(?s?\)?:? *([A-Za-z0-9./\-, ]*)", said):
            which = found.group(1).strip() or "one of those asked for"
            raise SourceError(
                f"{told}. Alpaca knows no symbol {which}: take it out of QUANT_SYMBOLS or QUANT_NEWS_SYMBOLS (share classes are written "
                "with a dot: BRK.B)"
            )
        if "feed" in said:
            raise SourceError(f"{told}. Set QUANT_ALPACA_FEED to iex or sip")
        raise SourceError(f"{told}. The request itself is refused, asking again would not help")
    raise SourceError(f"{told}. Is QUANT_ALPACA_URL the address of Alpaca's data service?")


def after_seconds(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """How long the vendor wants to be left alone: `Retry-After` (seconds or a date), else `X-RateLimit-Reset` (seconds since 1970)."""
    named = {name.lower(): value.strip() for name, value in headers.items()}
    if wait := named.get("retry-after"):
        if re.fullmatch(r"\d+(\.\d+)?", wait):
            return float(wait)
        try:
            until = email.utils.parsedate_to_datetime(wait)
        except ValueError:
            return None
        until = until if until.tzinfo else until.replace(tzinfo=dt.UTC)
        return max((until - now).total_seconds(), 0.0)
    reset = named.get("x-ratelimit-reset", "")
    if re.fullmatch(r"\d{9,11}", reset) and named.get("x-ratelimit-remaining", "0") == "0":
        return max(float(reset) - now.timestamp(), 0.0)
    return None


def _message(body: bytes) -> str:
    """The vendor's words: `message` of a JSON object, else the beginning of the text."""
    text = body.decode("utf-8", "replace").strip()
    try:
        said = json.loads(text)["message"]
    except (ValueError, TypeError, KeyError, RecursionError):
        said = plain_text(text)
    return str(said)[:_SAID] or "(nothing)"


# -- the seam ----------------------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """One call of alpaca-py: a request and the pages that follow.

    Attributes:
        dataset, label: where its answers are archived.
        root: name under which its documents hold their rows.
        read: a document's body and origin as a page.
        covers, complete: see `Vendor.ask`; `complete` is asked with a page and whether it is the first one.
        enough: whether the pages so far hold all that is wanted; None: all pages are.
    """

    dataset: str
    label: str
    root: str
    read: Callable[[bytes, str], Page]
    covers: dt.datetime | None = None
    complete: Callable[[Page, bool], bool] | None = None
    enough: Callable[[list[pa.Table]], bool] | None = None


class Wire(BaseAdapter):
    """Answers the requests of alpaca-py's sessions: from the archive, or from the network through `Vendor.ask`.

    The pages' rows are kept here, as Arrow. alpaca-py gets each page without its rows and with its token: it would collect the rows of
    all pages as Python objects, a hundred times their size.

    Args:
        vendor: archive, budget and patience.
        read_seconds: longest silence of the vendor.
    """

    def __init__(self, vendor: Vendor, read_seconds: float = READ_SECONDS) -> None:
        super().__init__()
        self.vendor = vendor
        self._network = HTTPAdapter(max_retries=0)
        self._timeout = (CONNECT_SECONDS, read_seconds)
        self._series: Series | None = None
        self._pages: list[pa.Table] = []

    def collect(self, series: Series, call: Callable[[], object]) -> list[pa.Table]:
        """The pages that come when `call` lets alpaca-py ask.

        Raises:
            SourceError: the vendor refuses, or answers what it does not document.
            SourceUnavailable: it could not be reached.
        """
        self._series, self._pages = series, []
        try:
            call()
            return self._pages
        except requests.RequestException as error:
            # Not the network's: an address or a header that no request can be made of.
            said = self.vendor.blotted(f"{type(error).__name__}: {error}")
        finally:
            self._series = None
        raise SourceError(
            f"alpaca: {series.dataset} {series.label}: no request can be made: {said}. Check QUANT_ALPACA_URL, proxies and keys"
        )

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: object = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Answer one request of alpaca-py."""
        series = self._series
        assert series is not None
        assert request.url is not None
        parts = urlsplit(request.url)
        asked = {"path": parts.path, **dict(parse_qsl(parts.query))}  # the keys are in headers
        origin = f"alpaca/{series.dataset}/{series.label}"

        def ask() -> Response:
            answer = self._network.send(
                request, timeout=self._timeout, verify=verify, cert=cert, proxies=proxies
            )
            with answer:
                return Response(answer.status_code, answer.headers, answer.content)

        def accept(response: Response) -> None:
            judge(response, f"{series.dataset} {series.label}", self.vendor.now())
            try:
                series.read(response.body, origin)
            except NoJSON as error:
                raise Busy(str(error)) from None

        def is_complete(document: Document) -> bool:
            assert series.complete is not None
            return series.complete(series.read(document.body, document.origin), "page_token" not in asked)

        document = self.vendor.ask(
            series.dataset,
            series.label,
            asked,
            ask,
            accept,
            series.covers,
            is_complete if series.complete is not None else None,
        )
        page = read_document(document, series.read)
        self._pages.append(page.rows)
        token = page.next_page_token
        if token is not None and token == asked.get("page_token"):
            raise SourceError(f"{document.origin}: the page names itself as the next one ({token})")
        if series.enough is not None and series.enough(self._pages):
            token = None
        return _answer(request, {series.root: [] if series.root == "news" else {}, "next_page_token": token})

    def close(self) -> None:
        """End idle connections."""
        self._network.close()


def read_document(document: Document, read: Callable[[bytes, str], Page]) -> Page:
    """An archived document as a page; one that is no JSON cannot have been archived whole.

    Raises:
        SourceError: it is not what it has to be.
    """
    try:
        return read(document.body, document.origin)
    except NoJSON as error:
        raise SourceError(f"{error}. Delete {document.path}, and it is asked for again") from None


def _answer(request: requests.PreparedRequest, content: dict) -> requests.Response:
    response = requests.Response()
    response.status_code, response.reason = 200, "OK"
    response.url, response.request = request.url or "", request
    response.encoding = "utf-8"
    response._content = json.dumps(content).encode()
    return response
