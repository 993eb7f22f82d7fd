"""Trading hours of an exchange, as they travel in a bundle. Pure.

Belongs here: which minutes the exchange trades, from a description of a few kilobytes: an endpoint needs no calendar package, and
its hours are those that its bundle was tested with. Does not belong here: where the hours come from
(`quant_resources/calendar.py`, which `from_calendar` reads) and what is done in a minute.

A *session* is an exchange date. Minutes of a session count from its open: minute 0 begins at the open, the last one ends at the
close. Instants inside are whole minutes since 1970 UTC, so that a request costs no arithmetic with time zones.
"""

from __future__ import annotations

import bisect
import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from quant_resources.calendar import NEW_YORK, TradingCalendar

MINUTE = dt.timedelta(minutes=1)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# Sessions whose timestamps are kept: requests are about a few sessions, and fuzzed ones about any.
KEPT_SESSIONS = 64
MOST_YEARS = 200


class HoursError(ValueError):
    """Hours that cannot be, or an instant outside them. Names the value and what is known."""


class Stretch(NamedTuple):
    """Minutes in a row of one session: `first` up to, but without, `end`, counted from the session's open."""

    session: dt.date
    first: int
    end: int


class ExchangeHours:
    """Sessions of an exchange from `first` to `last`, with open and close: every weekday that is no holiday.

    Args:
        timezone: IANA name of the exchange's time zone.
        first, last: dates that the hours are known for, both included.
        regular: open and close of a regular session, local.
        holidays: weekdays without a session.
        other: session -> open and close, local, where they are not the regular ones (half days, late opens).

    Raises:
        HoursError: the parts do not fit each other.
    """

    def __init__(
        self,
        timezone: str,
        first: dt.date,
        last: dt.date,
        regular: tuple[dt.time, dt.time],
        holidays: Iterable[dt.date],
        other: Mapping[dt.date, tuple[dt.time, dt.time]],
    ) -> None:
        self.timezone, self.first, self.last, self.regular = timezone, first, last, regular
        self.holidays, self.other = tuple(sorted(holidays)), dict(sorted(other.items()))
        if not dt.timedelta(0) <= last - first <= dt.timedelta(days=366 * MOST_YEARS):
            raise HoursError(f"hours from {first} to {last}: a range of up to {MOST_YEARS} years is needed")
        for day, (opens, closes) in [("a regular session", regular), *self.other.items()]:
            if not opens < closes:
                raise HoursError(f"{day} opens at {opens} and closes at {closes}: the close comes later")
        off = set(self.holidays)
        days = (first + dt.timedelta(days=i) for i in range((last - first).days + 1))
        self._days = [day for day in days if day.weekday() < 5 and day not in off]
        self._position = {day: i for i, day in enumerate(self._days)}
        if not self._days:
            raise HoursError(f"no session between {first} and {last}")
        if wrong := [day for day in off if not first <= day <= last or day.weekday() >= 5]:
            raise HoursError(f"holiday {min(wrong)} is no weekday between {first} and {last}")
        if wrong := [day for day in self.other if day not in self._position]:
            raise HoursError(f"{min(wrong)} has hours of its own and is no session")
        try:
            zone = ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise HoursError(f"timezone {timezone!r} is not known here: install tzdata ({error})") from error

        def minute(day: dt.date, time: dt.time) -> int:
            return int(dt.datetime.combine(day, time, zone).timestamp()) // 60

        hours = [(day, self.other.get(day, regular)) for day in self._days]
        self._opens = [minute(day, opens) for day, (opens, _) in hours]
        self._closes = [minute(day, closes) for day, (_, closes) in hours]
        self._known_from = minute(first, dt.time())
        self._timestamps: dict[dt.date, list[str]] = {}

    # -- in and out of a bundle ------------------------------------------------------------------------------------------

    @staticmethod
    def from_calendar(calendar: TradingCalendar) -> ExchangeHours:
        """The hours of all sessions between the calendar's first and last date.

        Raises:
            HoursError: a session on a weekend, or one that opens or closes within a minute.
        """
        zone = ZoneInfo(NEW_YORK)
        hours: dict[dt.date, tuple[dt.time, dt.time]] = {}
        for day in calendar.sessions(calendar.first, calendar.last):
            opens, closes = (
                instant.astimezone(zone) for instant in (calendar.opens(day), calendar.close(day))
            )
            if day.weekday() >= 5 or {opens.date(), closes.date()} != {day} or opens.second or closes.second:
                raise HoursError(
                    f"session {day} ({opens} to {closes}): sessions are weekdays and begin and end with a whole minute of "
                    "their own date"
                )
            hours[day] = (opens.time(), closes.time())
        if not hours:
            raise HoursError(f"no session between {calendar.first} and {calendar.last}")
        regular = Counter(hours.values()).most_common(1)[0][0]
        span = range((calendar.last - calendar.first).days + 1)
        weekdays = [
            day for i in span if (day := calendar.first + dt.timedelta(days=i)).weekday() < 5
        ]  # Monday to Friday
        return ExchangeHours(
            NEW_YORK,
            calendar.first,
            calendar.last,
            regular,
            [day for day in weekdays if day not in hours],
            {day: of for day, of in hours.items() if of != regular},
        )

    @staticmethod
    def from_description(description: Mapping[str, Any]) -> ExchangeHours:
        """From what `description` gave.

        Raises:
            HoursError: it is no such description.
        """
        try:
            return ExchangeHours(
                description["timezone"],
                dt.date.fromisoformat(description["first"]),
                dt.date.fromisoformat(description["last"]),
                _times(description["regular"]),
                [dt.date.fromisoformat(day) for day in description["holidays"]],
                {dt.date.fromisoformat(day): _times(of) for day, of in description["other"].items()},
            )
        except HoursError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HoursError(f"hours cannot be read: {type(error).__name__}: {error}") from error

    def description(self) -> dict[str, Any]:
        """A few kilobytes of text for ten years: dates as 2013-03-01, local times as 09:30."""
        return {
            "timezone": self.timezone,
            "first": self.first.isoformat(),
            "last": self.last.isoformat(),
            "regular": [f"{time:%H:%M}" for time in self.regular],
            "holidays": [day.isoformat() for day in self.holidays],
            "other": {day.isoformat(): [f"{time:%H:%M}" for time in of] for day, of in self.other.items()},
        }

    # -- sessions --------------------------------------------------------------------------------------------------------

    def is_session(self, day: dt.date) -> bool:
        """Whether the exchange trades on `day`, as far as the hours are known."""
        return day in self._position

    def sessions(self, first: dt.date, last: dt.date) -> list[dt.date]:
        """Sessions from `first` to `last`, both included, in order."""
        return self._days[bisect.bisect_left(self._days, first) : bisect.bisect_right(self._days, last)]

    def ordinal(self, session: dt.date) -> int:
        """Position of a session; differences count sessions.

        Raises:
            HoursError: `session` is none.
        """
        try:
            return self._position[session]
        except KeyError:
            raise HoursError(
                f"{session} is no session: a weekend, a holiday, or outside {self.first}..{self.last}"
            ) from None

    def opens(self, session: dt.date) -> dt.datetime:
        """Opening instant of a session, UTC."""
        return EPOCH + self._opens[self.ordinal(session)] * MINUTE

    def close(self, session: dt.date) -> dt.datetime:
        """Closing instant of a session, UTC."""
        return EPOCH + self._closes[self.ordinal(session)] * MINUTE

    def length(self, session: dt.date) -> int:
        """Minutes of a session."""
        at = self.ordinal(session)
        return self._closes[at] - self._opens[at]

    @property
    def longest(self) -> int:
        """Minutes of the longest session."""
        return max(closes - opens for opens, closes in zip(self._opens, self._closes, strict=True))

    # -- minutes ---------------------------------------------------------------------------------------------------------

    def stretches(self, start: dt.datetime, count: int) -> list[Stretch]:
        """The next `count` trading minutes that begin at or after `start`, by session.

        What does not fit into a session goes on in the next one: nights, weekends, holidays and what a half day lacks are
        skipped.

        Args:
            start: with a time zone; rounded up to a whole minute.
            count: at least 1.

        Raises:
            HoursError: `start` has no time zone, or a minute lies outside the dates that the hours are known for.
        """
        if count < 1:
            raise HoursError(f"count = {count}: at least 1 minute")
        if start.tzinfo is None or start.utcoffset() is None:
            raise HoursError(f"{start.isoformat()} has no offset from UTC")
        begin = -((EPOCH - start) // MINUTE)
        at = bisect.bisect_right(self._closes, begin)
        if begin < self._known_from or at == len(self._days):
            raise HoursError(f"{start.isoformat()} lies outside the hours {self.first}..{self.last}")
        found, first, missing = [], max(begin - self._opens[at], 0), count
        while missing:
            if at == len(self._days):
                raise HoursError(
                    f"{count} trading minutes from {start.isoformat()} on go beyond the hours {self.first}..{self.last}"
                )
            end = min(self._closes[at] - self._opens[at], first + missing)
            found.append(Stretch(self._days[at], first, end))
            missing -= end - first
            at, first = at + 1, 0
        return found

    def minutes(self, start: dt.datetime, count: int) -> list[tuple[dt.date, int]]:
        """`stretches` minute by minute: (session, minute of the session)."""
        return [
            (session, k) for session, first, end in self.stretches(start, count) for k in range(first, end)
        ]

    def timestamps(self, stretches: Sequence[Stretch]) -> list[str]:
        """When each minute of the stretches begins, as 2013-03-01T14:30:00Z."""
        if len(stretches) == 1:
            session, first, end = stretches[0]
            return self._timestamps_of(session)[first:end]
        return [text for session, first, end in stretches for text in self._timestamps_of(session)[first:end]]

    def _timestamps_of(self, session: dt.date) -> list[str]:
        made = self._timestamps.get(session)
        if made is None:
            if len(self._timestamps) >= KEPT_SESSIONS:
                self._timestamps.clear()
            at = self.ordinal(session)
            instants = np.arange(self._opens[at], self._closes[at]).astype("datetime64[m]")
            made = [f"{text}:00Z" for text in np.datetime_as_string(instants).tolist()]
            self._timestamps[session] = made
        return made


def _times(pair: Sequence[str]) -> tuple[dt.time, dt.time]:
    opens, closes = (dt.datetime.strptime(text, "%H:%M").time() for text in pair)
    return opens, closes
