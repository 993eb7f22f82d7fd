"""What the archived answers of Alpaca reach over: which sessions of which symbols they hold whole.

Belongs here: judging requests that were answered, page by page. Does not belong here: what their rows say (`alpaca_rows.py`), and what
follows when something is missing (`alpaca.py`).

Several answers count together: a backfill and the nights after it reach over the sessions of all of them.
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from quant_resources.calendar import NEW_YORK
from quant_resources.sources.alpaca_requests import PROCESSED_EARLIER_DAYS, PROCESSED_LATER_DAYS
from quant_resources.sources.alpaca_rows import MINUTE

Span = tuple[dt.datetime, dt.datetime]
Window = Callable[[Mapping[str, str]], Span]


class Answer(NamedTuple):
    """One archived page, without its rows.

    Attributes:
        request: parameters as they were sent.
        fetched_at: when it had come, UTC.
        next_page_token: of the page that follows; None on the last one.
        listed: symbols that have a row on it.
    """

    request: Mapping[str, str]
    fetched_at: dt.datetime
    next_page_token: str | None
    listed: frozenset[str]


class Wanted(NamedTuple):
    """A stretch of time that an answer has to hold whole, and the session that lacks something where none does."""

    session: dt.date
    begin: dt.datetime
    end: dt.datetime


def lacking(
    answers: Iterable[Answer], symbols: Sequence[str], wanted: Sequence[Wanted], window: Window
) -> dict[str, list[dt.date]]:
    """Sessions that the answers do not hold whole, by symbol; symbols that lack nothing are left out.

    Args:
        answers: the oldest first.
        symbols: tickers that are wanted.
        wanted: in order of both their ends.
        window: from and until when a request's answer says all; what came later than the answer is not in it.
    """
    begins, ends = [stretch.begin for stretch in wanted], [stretch.end for stretch in wanted]
    held = {symbol: np.zeros(len(wanted), bool) for symbol in symbols}
    for request, fetched_at in _whole(answers):
        begin, until = window(request)
        low, high = bisect_left(begins, begin), bisect_right(ends, min(until, fetched_at))
        if low < high:
            for symbol in request.get("symbols", "").split(","):
                if symbol in held:
                    held[symbol][low:high] = True
    return {
        symbol: sorted({wanted[at].session for at in np.flatnonzero(~has).tolist()})
        for symbol, has in held.items()
        if not has.all()
    }


def _whole(answers: Iterable[Answer]) -> Iterator[tuple[Mapping[str, str], dt.datetime]]:
    """Requests all of whose pages came, with the instant of the page that came first.

    The walk over quotes ends with the page on which each symbol has had one, so that counts as whole too; other datasets are walked to
    their end.
    """
    series: dict[tuple[tuple[str, str], ...], dict[str | None, list[Answer]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for answer in answers:
        without_page = {name: said for name, said in answer.request.items() if name != "page_token"}
        series[tuple(sorted(without_page.items()))][answer.request.get("page_token")].append(answer)
    for pages in series.values():
        for first in pages.get(None, ()):
            page, fetched_at, seen = first, first.fetched_at, set(first.listed)
            walked: set[str] = set()
            quotes = str(first.request.get("path", "")).endswith("/quotes")
            while (token := page.next_page_token) is not None:
                if quotes and seen.issuperset(first.request.get("symbols", "").split(",")):
                    token = None
                    break
                if token in walked or not pages.get(token):
                    break
                walked.add(token)
                page = pages[token][-1]
                fetched_at = min(fetched_at, page.fetched_at)
                seen |= page.listed
            if token is None:
                yield first.request, fetched_at


def asked_span(request: Mapping[str, str]) -> Span:
    """`start` and `end` of a request for day bars, news or quotes."""
    return _instant(request["start"]), _instant(request["end"])


def minutes_span(request: Mapping[str, str]) -> Span:
    """The same for minute bars, whose `end` is the beginning of the last minute."""
    begin, end = asked_span(request)
    return begin, end + MINUTE


def actions_span(request: Mapping[str, str]) -> Span:
    """The sessions whose corporate actions a range of process dates was asked for."""
    first = dt.date.fromisoformat(request["start"]) + dt.timedelta(days=PROCESSED_EARLIER_DAYS)
    after = dt.date.fromisoformat(request["end"]) - dt.timedelta(days=PROCESSED_LATER_DAYS - 1)
    begin, end = (dt.datetime.combine(day, dt.time(), ZoneInfo(NEW_YORK)) for day in (first, after))
    return begin, end


def _instant(text: str) -> dt.datetime:
    instant = dt.datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)
