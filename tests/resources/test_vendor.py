"""Asking a vendor: from the archive where that will do, again after a passing failure, never with a key in what is said."""

from __future__ import annotations

import datetime as dt
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from quant_resources.sources import SourceError, SourceUnavailable
from quant_resources.sources.archive import Archive, Document
from quant_resources.sources.budget import Budget, QuotaExhausted
from quant_resources.sources.vendor import (
    ATTEMPTS,
    FIRST_DELAY_SECONDS,
    LONGEST_RETRY_AFTER_SECONDS,
    Busy,
    OutOfQuota,
    Response,
    Vendor,
)

KEY = "SECRETKEY"
CLOSE = dt.datetime(2024, 6, 28, 20, 0, tzinfo=dt.UTC)


class Service:
    """A client and its service in one: gives what is next in line, an exception or a body."""

    def __init__(self, folder: Path, archive_only: bool = False) -> None:
        self.now = CLOSE + dt.timedelta(minutes=30)
        self.slept: list[float] = []
        self.next: list[Exception | bytes] = []
        self.sent = 0
        self.vendor = Vendor(
            Archive(folder, "vendor", (KEY,)),
            Budget(
                folder / "state.json", 60_000, None, now=lambda: self.now.timestamp(), sleep=lambda _: None
            ),
            (KEY,),
            (ConnectionError,),
            archive_only=archive_only,
            sleep=self.slept.append,
            now=lambda: self.now,
        )

    def send(self) -> Response:
        self.sent += 1
        item = self.next.pop(0) if self.next else b"answer"
        if isinstance(item, Exception):
            raise item
        return Response(200, {}, item)

    def ask(
        self,
        covers: dt.datetime | None = CLOSE,
        complete: Callable[[Document], bool] | None = None,
        judge: Callable[[Response], None] = lambda response: None,
    ) -> bytes:
        return self.vendor.ask(
            "daily", "IBM", {"symbol": "IBM"}, self.send, judge, covers=covers, complete=complete
        ).body


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def said(error: BaseException) -> str:
    """All that a person or a log could see of an exception: its chain, suppressed or not."""
    shown, queue, seen = "", [error], set()
    while queue:
        one = queue.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        shown += repr(one) + str(one) + "".join(traceback.format_exception(one))
        queue += [other for other in (one.__cause__, one.__context__) if other is not None]
    return shown


def test_an_answer_that_came_after_the_close_is_not_asked_for_again(service: Service) -> None:
    assert service.ask() == b"answer"
    service.next = [b"other"]
    assert service.ask() == b"answer"
    assert (service.sent, service.vendor.asked, service.vendor.reused) == (1, 1, 1)


def test_an_answer_from_before_the_close_does_not_do(service: Service) -> None:
    service.now = CLOSE - dt.timedelta(hours=1)
    service.ask()
    service.now = CLOSE
    service.next = [b"after the close"]
    assert service.ask() == b"after the close"


def test_an_incomplete_answer_is_asked_for_again_for_a_day(service: Service) -> None:
    service.next = [b"late", b"late", b"there"]
    for expected in (b"late", b"late", b"there", b"there"):
        assert service.ask(complete=lambda document: document.body == b"there") == expected
    assert service.sent == 3


def test_what_is_incomplete_a_day_later_stays_so(service: Service) -> None:
    service.now = CLOSE + dt.timedelta(days=1)
    service.ask(complete=lambda document: False)
    service.ask(complete=lambda document: False)
    assert service.sent == 1


def test_without_an_instant_it_always_asks(service: Service) -> None:
    service.ask(covers=None)
    service.ask(covers=None)
    assert service.sent == 2


def test_a_damaged_answer_is_asked_for_again(service: Service) -> None:
    service.ask()
    next(service.vendor.archive.folder.rglob("*.json.gz")).write_bytes(b"torn")
    service.now += dt.timedelta(seconds=1)
    service.next = [b"again"]
    assert service.ask() == b"again"


def test_archive_only_reads_and_never_asks(tmp_path: Path, service: Service) -> None:
    service.ask()
    offline = Service(tmp_path, archive_only=True)
    assert offline.ask() == b"answer"
    with pytest.raises(SourceError, match="QUANT_ARCHIVE_ONLY"):
        offline.ask(covers=CLOSE + dt.timedelta(days=3))
    assert offline.sent == 0


def test_passing_failures_are_asked_again_with_growing_uneven_pauses(service: Service) -> None:
    service.next = [ConnectionError("reset"), Busy("too fast"), ConnectionError("reset"), Busy("too fast")]
    assert service.ask() == b"answer"
    assert service.sent == 5
    for i, pause in enumerate(service.slept):
        longest = FIRST_DELAY_SECONDS * 2**i
        assert longest / 2 <= pause <= longest
    assert len(service.slept) == 4


def test_a_pause_that_the_vendor_names_is_kept_to(service: Service) -> None:
    service.next = [Busy("HTTP 429", after_seconds=17.0)]
    service.ask()
    assert service.slept == [17.0]


def test_a_pause_of_hours_is_not_waited_for(service: Service) -> None:
    service.next = [Busy("HTTP 429", after_seconds=LONGEST_RETRY_AFTER_SECONDS + 1)]
    with pytest.raises(SourceUnavailable, match="wants to be asked in 301 s"):
        service.ask()
    assert service.slept == []


def test_what_stays_busy_is_unavailable_and_nothing_is_archived(service: Service) -> None:
    service.next = [ConnectionError("nobody there")] * ATTEMPTS
    with pytest.raises(SourceUnavailable, match=rf"{ATTEMPTS} attempt.*nobody there"):
        service.ask()
    assert service.sent == ATTEMPTS
    assert list(service.vendor.archive.documents("daily")) == []
    assert service.ask() == b"answer"


def test_a_refusal_is_asked_once_and_not_archived(service: Service) -> None:
    def judge(response: Response) -> None:
        raise SourceError("no such symbol")

    with pytest.raises(SourceError, match="no such symbol"):
        service.ask(judge=judge)
    assert (service.sent, service.slept) == (1, [])
    assert list(service.vendor.archive.documents("daily")) == []


def test_a_used_up_day_stops_all_further_requests(service: Service) -> None:
    service.next = [OutOfQuota("25 a day")]
    with pytest.raises(QuotaExhausted, match="25 a day"):
        service.ask()
    with pytest.raises(QuotaExhausted, match="25 a day"):
        service.ask()
    assert service.sent == 1
    service.now += dt.timedelta(days=1)
    assert service.ask() == b"answer"


@pytest.mark.parametrize(
    "failure",
    [
        OutOfQuota(f"we have detected your API key as {KEY}"),
        SourceError(f"the key {KEY} is wrong"),
        Busy(f"{KEY} is too fast"),
        ConnectionError(f"GET https://vendor/?apikey={KEY}"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_no_message_log_or_chained_exception_holds_the_key(
    service: Service, failure: Exception, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    service.next = [failure] * ATTEMPTS
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception) as raised:  # noqa: PT011  # each kind raises its own
        service.ask()
    assert "(key)" in str(raised.value)
    assert KEY not in said(raised.value)
    assert KEY not in caplog.text
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_every_request_counts_against_the_budget_also_a_failed_one(service: Service) -> None:
    service.next = [Busy("x"), Busy("x")]
    service.ask()
    assert service.vendor.budget.used() == 3
