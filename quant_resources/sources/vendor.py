"""Asking a vendor: from the archive where that has the answer, within the budget, again after a passing failure.

Belongs here: what every vendor needs alike. Does not belong here: addresses, parameters and what an answer means
(`alpha_vantage.py`, `alpaca.py`).
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quant_resources.sources import SourceError, SourceUnavailable
from quant_resources.sources.archive import Archive, Document
from quant_resources.sources.budget import Budget

logger = logging.getLogger(__name__)

ATTEMPTS = 6
FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
# Longer than this a run does not wait for a vendor that asks it to: it fails, and is run again.
LONGEST_RETRY_AFTER_SECONDS = 300.0


@dataclass(frozen=True)
class Response:
    """What came over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Busy(Exception):
    """The vendor wants to be asked again, later: a limit of its rate, or a failure of its own.

    Args:
        message: what it said.
        after_seconds: when, if it said so.
    """

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class OutOfQuota(Exception):
    """The vendor says that the day's requests are used up."""


class Vendor:
    """One vendor with its archive and its budget.

    Args:
        archive: answers that came.
        budget: how often it may be asked.
        secrets: keys; blotted out of every message.
        transient: exceptions of the client that stand for a network that failed.
        archive_only: never ask; what the archive lacks is an error.
        sleep, now: the clock, for tests.
    """

    def __init__(
        self,
        archive: Archive,
        budget: Budget,
        secrets: tuple[str, ...],
        transient: tuple[type[Exception], ...],
        archive_only: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self.name = archive.vendor
        self.archive, self.budget = archive, budget
        self._secrets = tuple(secret for secret in secrets if secret)
        self._transient = transient
        self.archive_only = archive_only
        self._sleep, self.now = sleep, now
        self.asked = self.reused = 0

    def blotted(self, text: str) -> str:
        """`text` without any key: vendors like to repeat it in their refusals."""
        for secret in self._secrets:
            text = text.replace(secret, "(key)")
        return text

    def ask(
        self,
        dataset: str,
        label: str,
        request: Mapping[str, str],
        send: Callable[[], Response],
        judge: Callable[[Response], None],
        covers: dt.datetime | None = None,
        complete: Callable[[Document], bool] | None = None,
    ) -> Document:
        """The answer to a request: an archived one if it will do, else the vendor's, which is archived.

        Args:
            dataset, label: where the answer is archived.
            request: what is asked, without the key; identifies the answer.
            send: asks once.
            judge: raises `Busy`, `OutOfQuota` or `SourceError` for a response that is no answer.
            covers: an archived answer will do if it came at or after this instant (the close of the newest session that it has to
                hold); None: always ask.
            complete: whether an archived answer really holds what is wanted. A vendor may be late with the newest session; an answer
                that lacks it will only do when it came a day or more after `covers`.

        Raises:
            QuotaExhausted: no more today.
            SourceError: the vendor refuses for good; its own words are in the message.
            SourceUnavailable: it could not be reached, or stayed busy.
        """
        if covers is not None and (found := self._archived(dataset, label, request, covers, complete)):
            self.reused += 1
            return found
        if self.archive_only:
            raise SourceError(
                f"the archive {self.archive.folder} has no answer of {self.name} for {dataset} {label}, and QUANT_ARCHIVE_ONLY keeps "
                "it from being asked. Unset QUANT_ARCHIVE_ONLY, or take the session or symbol out of the range"
            )
        response = self._asked(f"{dataset} {label}", send, judge)
        self.asked += 1
        logger.info("%s: %s %s, %d bytes", self.name, dataset, label, len(response.body))
        return self.archive.store(dataset, label, request, response.body, self.now())

    def _archived(
        self,
        dataset: str,
        label: str,
        request: Mapping[str, str],
        covers: dt.datetime,
        complete: Callable[[Document], bool] | None,
    ) -> Document | None:
        fetched_at = self.archive.fetched_at(dataset, label, request)
        if fetched_at is None or fetched_at < covers:
            return None
        found = self.archive.newest(dataset, label, request)
        if found is None or found.fetched_at < covers:  # damaged, or an older one stands in for a damaged one
            return None
        settled = found.fetched_at >= covers + dt.timedelta(days=1)
        return found if settled or complete is None or complete(found) else None

    def _asked(self, what: str, send: Callable[[], Response], judge: Callable[[Response], None]) -> Response:
        for attempt in range(1, ATTEMPTS + 1):
            self.budget.take()
            after: float | None = None
            refusal: Exception | None = None
            try:
                response = send()
                judge(response)
                return response
            except OutOfQuota as error:
                refusal = self.budget.exhaust(self.blotted(str(error)))
            except SourceError as error:
                refusal = SourceError(self.blotted(str(error)))
            except Busy as error:
                said, after = self.blotted(str(error)), error.after_seconds
            except self._transient as error:
                # The client's exceptions may quote an address with its parameters: their type and text are blotted, the chain is cut.
                said = self.blotted(f"{type(error).__name__}: {error}")
            if refusal is not None:
                # Outside of the except block: `from None` would only hide the vendor's own words, which may hold the key, in `__context__`.
                raise refusal
            if attempt == ATTEMPTS or (after is not None and after > LONGEST_RETRY_AFTER_SECONDS):
                break
            delay = (
                after
                if after is not None
                else random.uniform(0.5, 1.0)
                * min(FIRST_DELAY_SECONDS * 2 ** (attempt - 1), LONGEST_DELAY_SECONDS)
            )
            logger.warning(
                "%s: %s: %s; asked again in %.1f s (attempt %d of %d)",
                self.name,
                what,
                said,
                delay,
                attempt,
                ATTEMPTS,
            )
            self._sleep(delay)
        wait = f", and wants to be asked in {after:.0f} s" if after is not None else ""
        raise SourceUnavailable(
            f"{self.name}: {what} did not come after {attempt} attempt(s){wait}. The last said: {said}. What came before is archived; "
            "run it again later and it goes on from there"
        )
