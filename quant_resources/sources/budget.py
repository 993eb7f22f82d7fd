"""How often a vendor may be asked: a token bucket and a daily quota, shared by every process of a QUANT_HOME.

Belongs here: counting and waiting. Does not belong here: what a vendor's refusal means (`vendor.py`).
"""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

from quant_resources.calendar import NEW_YORK

BURST_SECONDS = 6.0  # of the rate may be asked at once after a pause
# Vendors do not say when their day ends. After a refusal one request in this time finds out, and no day of theirs is lost whole.
REFUSED_SECONDS = 4 * 3600.0


class QuotaExhausted(Exception):
    """The vendor answers no more before `until` (UTC)."""

    def __init__(self, until: dt.datetime, message: str) -> None:
        super().__init__(message)
        self.until = until


class Budget:
    """Requests per minute and per day.

    The state is a small file under a lock, so that a nightly run and a backfill beside it share one allowance, and a killed process
    holds nothing. Our own count begins anew at midnight in New York. When a vendor's own day ends it does not say: what it refuses may
    be worth another request much earlier, or be refused still after that midnight. So a refusal of the vendor's ends the asking for
    four hours, or until midnight where that comes first, and then the next request finds out.

    Args:
        path: of the state.
        per_minute: rate; after a pause, six seconds' worth may go at once (at least one request).
        per_day: most requests a day; None for no limit.
        now: seconds since 1970.
        sleep: how to wait.
    """

    def __init__(
        self,
        path: Path,
        per_minute: float,
        per_day: int | None = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path, self.per_minute, self.per_day = path, per_minute, per_day
        self._now, self._sleep = now, sleep

    def take(self) -> None:
        """Wait for one request's turn and count it.

        Raises:
            QuotaExhausted: the day's requests are used up; nothing is counted then.
        """
        with self._state() as state:
            now = self._now()
            self._require_quota(state, now)
            rate, burst = self.per_minute / 60, max(1.0, self.per_minute / 60 * BURST_SECONDS)
            # A clock that was set back must not make anybody wait for it.
            elapsed = max(now - state.get("at", 0.0), 0.0)
            tokens = min(burst, state.get("tokens", burst) + elapsed * rate) - 1
            state |= {"tokens": tokens, "at": now, "used": state["used"] + 1}
            # Below zero the turn is reserved: others line up behind it while this one waits outside the lock.
            wait = max(-tokens / rate, 0.0)
        if wait:
            self._sleep(wait)

    def exhaust(self, message: str) -> QuotaExhausted:
        """Remember that the vendor says the day's requests are used up; the exception to raise, with when to ask again."""
        with self._state() as state:
            now = self._now()
            state["refused_until"] = min(now + REFUSED_SECONDS, _next_day(now).timestamp())
            state["reason"] = message
            return QuotaExhausted(_instant(state["refused_until"]), message)

    def closed_until(self) -> dt.datetime | None:
        """When the next request may be made, UTC; None when one may be made now."""
        with self._state() as state:
            try:
                self._require_quota(state, self._now())
            except QuotaExhausted as error:
                return error.until
            return None

    def left(self) -> int | None:
        """Requests that are left today; None without a daily limit (0 while the vendor's refusal holds)."""
        with self._state() as state:
            if self._refused(state, self._now()):
                return 0
            return None if self.per_day is None else max(self.per_day - state["used"], 0)

    def used(self) -> int:
        """Requests that were made today."""
        with self._state() as state:
            return int(state["used"])

    def _refused(self, state: dict, now: float) -> bool:
        # A clock that was set back must not stretch a refusal.
        return now < float(state.get("refused_until", 0.0)) <= now + REFUSED_SECONDS

    def _require_quota(self, state: dict, now: float) -> None:
        if self._refused(state, now):
            raise QuotaExhausted(
                _instant(state["refused_until"]), str(state.get("reason", "the day's requests are used up"))
            )
        if self.per_day is not None and state["used"] >= self.per_day:
            raise QuotaExhausted(
                _next_day(now), f"{state['used']} of {self.per_day} requests of today are used"
            )

    def _state(self) -> _State:
        return _State(self.path, _day(self._now()))


class _State:
    """The file under its lock; written back when the block ends without an exception."""

    def __init__(self, path: Path, day: str) -> None:
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.day = path, day
        self._lock = FileLock(path.with_suffix(".lock"), timeout=60)
        self.values: dict = {}

    def __enter__(self) -> dict:
        self._lock.acquire()
        try:
            self.values = json.loads(self.path.read_text())
            if not isinstance(self.values, dict):
                raise ValueError("no object")
        except (OSError, ValueError):
            self.values = {}  # none yet, or torn by a full disk: counting starts again
        if self.values.get("day") != self.day:
            kept = {name: self.values[name] for name in ("tokens", "at") if name in self.values}
            self.values = {"day": self.day, "used": 0, **kept}
        return self.values

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        try:
            if kind is None:
                partial = self.path.with_suffix(f".{os.getpid()}.partial")
                partial.write_text(json.dumps(self.values))
                partial.replace(self.path)
        finally:
            self._lock.release()


def _local(now: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(now, ZoneInfo(NEW_YORK))


def _day(now: float) -> str:
    return _local(now).date().isoformat()


def _instant(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _next_day(now: float) -> dt.datetime:
    """The next midnight in New York, UTC."""
    day = _local(now).date() + dt.timedelta(days=1)
    return dt.datetime.combine(day, dt.time(), ZoneInfo(NEW_YORK)).astimezone(dt.UTC)
