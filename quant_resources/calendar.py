"""The exchange calendar: what a session is, when it closes, which session an instant belongs to.

Belongs here: XNYS sessions as plain dates and their closes as UTC instants. Does not belong here: Dagster partitions
(`quant_assets/partitions.py`), and any rule about which rows a decision may read.
"""

from __future__ import annotations

import bisect
import datetime as dt
from functools import cached_property

NEW_YORK = "America/New_York"


class TradingCalendar:
    """Sessions of the New York Stock Exchange (XNYS), regular and early closes, from `exchange_calendars`.

    Args:
        first: earliest date that the calendar must know.
        last: latest date that the calendar must know.

    All dates are exchange dates; all instants are timezone-aware UTC.
    """

    def __init__(self, first: dt.date, last: dt.date) -> None:
        if first > last:
            raise ValueError(f"calendar range is inverted: {first} > {last}")
        self.first, self.last = first, last

    @cached_property
    def _calendar(self):  # type: ignore[no-untyped-def]  # exchange_calendars has no stubs
        import exchange_calendars

        # A margin on both sides, so that neighbours of the first and last session exist.
        margin = dt.timedelta(days=30)
        return exchange_calendars.get_calendar("XNYS", start=self.first - margin, end=self.last + margin)

    @cached_property
    def _days(self) -> list[dt.date]:
        return [stamp.date() for stamp in self._calendar.sessions]

    @cached_property
    def _closes(self) -> list[dt.datetime]:
        return [stamp.to_pydatetime() for stamp in self._calendar.closes.dt.tz_convert("UTC")]

    @cached_property
    def _opens(self) -> list[dt.datetime]:
        return [stamp.to_pydatetime() for stamp in self._calendar.opens.dt.tz_convert("UTC")]

    @cached_property
    def _position(self) -> dict[dt.date, int]:
        return {day: i for i, day in enumerate(self._days)}

    def is_session(self, day: dt.date) -> bool:
        """Whether the exchange trades on `day`, within the calendar's range (its margin does not count)."""
        return self.first <= day <= self.last and day in self._position

    def covers(self, instant: dt.datetime) -> bool:
        """Whether `instant` belongs to a session of the range: after the close before the first one, until `last` ends."""
        before = bisect.bisect_left(self._days, self.first) - 1
        return self._closes[before] < instant and instant.astimezone(dt.UTC).date() <= self.last

    def sessions(self, first: dt.date, last: dt.date) -> list[dt.date]:
        """Sessions from `first` to `last`, both included, in order."""
        return self._days[bisect.bisect_left(self._days, first) : bisect.bisect_right(self._days, last)]

    def ordinal(self, session: dt.date) -> int:
        """Position of a session on the calendar; differences count sessions.

        Raises:
            ValueError: `session` is not a session.
        """
        try:
            return self._position[session]
        except KeyError:
            raise ValueError(
                f"{session} is no XNYS session (weekend, holiday or outside {self.first}..{self.last})"
            ) from None

    def shift(self, session: dt.date, sessions: int) -> dt.date:
        """The session `sessions` after (negative: before) `session`, clamped to the calendar's range."""
        index = min(max(self.ordinal(session) + sessions, 0), len(self._days) - 1)
        return self._days[index]

    def close(self, session: dt.date) -> dt.datetime:
        """Closing instant of a session, UTC; 13:00 New York on half days."""
        return self._closes[self.ordinal(session)]

    def opens(self, session: dt.date) -> dt.datetime:
        """Opening instant of a session, UTC."""
        return self._opens[self.ordinal(session)]

    def is_early_close(self, session: dt.date) -> bool:
        """Whether the session closes before 16:00 New York time."""
        from zoneinfo import ZoneInfo

        return self.close(session).astimezone(ZoneInfo(NEW_YORK)).hour < 16

    def session_of(self, instant: dt.datetime) -> dt.date:
        """The first session whose close is not before `instant`: news after the close belongs to the next session.

        Args:
            instant: timezone-aware.

        Raises:
            ValueError: naive instant, or one outside the calendar's range.
        """
        if instant.tzinfo is None:
            raise ValueError(f"instant {instant} has no time zone")
        index = bisect.bisect_left(self._closes, instant)
        if index == len(self._closes) or instant < self._closes[0] - dt.timedelta(days=7):
            raise ValueError(f"instant {instant} lies outside the calendar {self.first}..{self.last}")
        return self._days[index]

    def why_closed(self, day: dt.date) -> str:
        """Why there is no session on `day`, in words: a weekend, or the holiday's name where the calendar knows it."""
        if not self.first <= day <= self.last:
            return f"{day:%Y-%m-%d} lies outside the calendar {self.first}..{self.last}"
        if day.weekday() >= 5:
            return f"{day:%Y-%m-%d} is a {day:%A}"
        import pandas as pd

        stamp = pd.Timestamp(day)
        calendar = self._calendar
        for rule in calendar.regular_holidays.rules if calendar.regular_holidays is not None else []:
            if len(rule.dates(stamp, stamp)):
                return f"{day:%Y-%m-%d} is an exchange holiday ({rule.name})"
        return f"{day:%Y-%m-%d} is an exchange holiday"
