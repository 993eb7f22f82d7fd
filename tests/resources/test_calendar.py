"""The exchange calendar: sessions, closes, and the session that an instant belongs to."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_resources.calendar import TradingCalendar

FIRST, LAST = dt.date(2000, 3, 1), dt.date(2013, 3, 1)
# One object for the property test as well: hypothesis and function-scoped fixtures do not go together.
CALENDAR = TradingCalendar(FIRST, LAST)
NEW_YORK = ZoneInfo("America/New_York")


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def day(text: str) -> dt.date:
    return dt.date.fromisoformat(text)


def test_the_sample_range_has_3270_sessions() -> None:
    # The same number as the bars of AAPL, IBM and MSFT in the sample.
    sessions = CALENDAR.sessions(FIRST, LAST)
    assert len(sessions) == 3270
    assert (sessions[0], sessions[-1]) == (FIRST, LAST)


def test_sessions_include_both_ends_and_are_empty_when_the_range_holds_none() -> None:
    assert CALENDAR.sessions(day("2012-11-21"), day("2012-11-26")) == [
        day("2012-11-21"),
        day("2012-11-23"),
        day("2012-11-26"),
    ]
    assert CALENDAR.sessions(day("2012-11-24"), day("2012-11-25")) == []
    assert CALENDAR.sessions(day("2012-11-26"), day("2012-11-21")) == []


@pytest.mark.parametrize(
    "closed",
    [
        "2012-12-25",  # Christmas
        "2012-01-02",  # New Year's Day fell on a Sunday
        "2012-04-06",  # Good Friday: no federal holiday
        "2001-09-12",  # attacks of September 11
        "2004-06-11",  # mourning of President Reagan
        "2012-10-30",  # hurricane Sandy
        "2012-11-24",  # Saturday
    ],
)
def test_the_exchange_is_closed_on_weekends_holidays_and_single_events(closed: str) -> None:
    assert not CALENDAR.is_session(day(closed))
    with pytest.raises(ValueError, match=f"{closed} is no XNYS session"):
        CALENDAR.close(day(closed))


@pytest.mark.parametrize("trading", ["2012-10-08", "2012-11-12", "2012-12-24", "2012-11-23"])
def test_bank_holidays_and_half_days_are_sessions(trading: str) -> None:
    # Columbus Day and Veterans Day close banks, not the exchange.
    assert CALENDAR.is_session(day(trading))


@pytest.mark.parametrize(
    ("session", "opens", "closes", "early"),
    [
        ("2012-11-21", "2012-11-21T14:30", "2012-11-21T21:00", False),  # winter time
        ("2012-07-05", "2012-07-05T13:30", "2012-07-05T20:00", False),  # summer time
        ("2012-11-23", "2012-11-23T14:30", "2012-11-23T18:00", True),  # day after Thanksgiving, 13:00
        ("2012-07-03", "2012-07-03T13:30", "2012-07-03T17:00", True),  # eve of July 4th, 13:00 summer time
        ("2012-12-24", "2012-12-24T14:30", "2012-12-24T18:00", True),
    ],
)
def test_opening_and_closing_instants_in_utc(session: str, opens: str, closes: str, early: bool) -> None:
    assert CALENDAR.opens(day(session)) == utc(opens)
    assert CALENDAR.close(day(session)) == utc(closes)
    assert CALENDAR.close(day(session)).utcoffset() == dt.timedelta(0)
    assert CALENDAR.is_early_close(day(session)) is early


@pytest.mark.parametrize(
    ("instant", "session"),
    [
        ("2012-11-21T21:00:00", "2012-11-21"),  # exactly at the close
        ("2012-11-21T21:00:01", "2012-11-23"),  # a second later, Thanksgiving follows
        ("2012-11-23T18:00:00", "2012-11-23"),  # exactly at the early close
        ("2012-11-23T18:00:01", "2012-11-26"),  # a second after the early close: Monday
        ("2012-11-24T12:00:00", "2012-11-26"),  # Saturday
        ("2012-11-25T23:59:59", "2012-11-26"),  # Sunday
        ("2012-11-26T00:00:00", "2012-11-26"),  # before the open
        ("2012-10-29T15:00:00", "2012-10-31"),  # hurricane Sandy
    ],
)
def test_news_after_a_close_belongs_to_the_next_session(instant: str, session: str) -> None:
    assert CALENDAR.session_of(utc(instant)) == day(session)


def test_an_instant_in_another_zone_is_the_same_instant() -> None:
    at_the_close = dt.datetime(2012, 7, 5, 16, 0, tzinfo=NEW_YORK)
    assert CALENDAR.session_of(at_the_close) == day("2012-07-05")
    assert CALENDAR.session_of(at_the_close + dt.timedelta(microseconds=1)) == day("2012-07-06")


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(ValueError, match="2012-07-05 16:00:00 has no time zone"):
        CALENDAR.session_of(dt.datetime(2012, 7, 5, 16, 0))


@pytest.mark.parametrize("instant", ["1999-12-31T12:00", "2014-01-02T12:00"])
def test_an_instant_outside_the_calendar_is_refused(instant: str) -> None:
    with pytest.raises(ValueError, match=r"outside the calendar 2000-03-01\.\.2013-03-01"):
        CALENDAR.session_of(utc(instant))


def test_the_evening_before_the_first_session_belongs_to_the_first_session() -> None:
    assert CALENDAR.session_of(utc("2000-02-29T22:00")) == FIRST


@pytest.mark.parametrize(
    ("session", "by", "expected"),
    [
        ("2012-11-21", 1, "2012-11-23"),
        ("2012-11-26", -1, "2012-11-23"),
        ("2012-11-21", 0, "2012-11-21"),
        ("2012-10-26", 1, "2012-10-31"),
        ("2012-11-21", 20, "2012-12-20"),
    ],
)
def test_shift_counts_sessions_not_days(session: str, by: int, expected: str) -> None:
    assert CALENDAR.shift(day(session), by) == day(expected)
    assert CALENDAR.ordinal(day(expected)) - CALENDAR.ordinal(day(session)) == by


def test_shift_reaches_the_neighbours_of_the_range_and_stops_at_its_margin() -> None:
    assert CALENDAR.shift(FIRST, -1) == day("2000-02-29")
    assert CALENDAR.shift(LAST, 1) == day("2013-03-04")
    far_back, far_ahead = CALENDAR.shift(FIRST, -10_000), CALENDAR.shift(LAST, 10_000)
    assert CALENDAR.shift(far_back, -1) == far_back < FIRST
    assert CALENDAR.shift(far_ahead, 1) == far_ahead > LAST


def test_the_neighbours_of_the_range_are_no_sessions_of_it() -> None:
    # The exchange was open, but the history neither starts before its first session nor goes on after its last.
    assert (CALENDAR.is_session(FIRST), CALENDAR.is_session(LAST)) == (True, True)
    for outside in ("2000-02-29", "2013-03-04"):
        assert not CALENDAR.is_session(day(outside))
        assert (
            CALENDAR.why_closed(day(outside)) == f"{outside} lies outside the calendar 2000-03-01..2013-03-01"
        )


@pytest.mark.parametrize(
    ("instant", "covered"),
    [
        ("2000-02-29T21:00:00", False),  # the close before the first session: news of that session
        ("2000-02-29T21:00:01", True),  # a second later: the first news of the history
        ("2006-07-08T12:00:00", True),
        ("2013-03-01T21:00:00", True),  # the last close
        ("2013-03-01T23:59:59", True),
        ("2013-03-02T00:00:00", False),
    ],
)
def test_the_calendar_covers_from_the_close_before_it_to_the_end_of_its_last_day(
    instant: str, covered: bool
) -> None:
    assert CALENDAR.covers(utc(instant)) is covered
    in_new_york = utc(instant).astimezone(NEW_YORK)
    assert CALENDAR.covers(in_new_york) is covered


def test_shift_of_a_day_that_is_no_session_is_refused() -> None:
    with pytest.raises(ValueError, match="2012-11-22 is no XNYS session"):
        CALENDAR.shift(day("2012-11-22"), 1)


@pytest.mark.parametrize(
    ("closed", "reason"),
    [
        ("2012-11-24", "2012-11-24 is a Saturday"),
        ("2012-11-25", "2012-11-25 is a Sunday"),
        ("2012-11-22", "2012-11-22 is an exchange holiday (Thanksgiving)"),
        ("2012-12-25", "2012-12-25 is an exchange holiday (Christmas)"),
        ("2012-04-06", "2012-04-06 is an exchange holiday (Good Friday)"),
        ("2001-09-12", "2001-09-12 is an exchange holiday"),  # one of its kind: the calendar has no name
    ],
)
def test_why_closed_says_weekend_or_the_holidays_name(closed: str, reason: str) -> None:
    assert CALENDAR.why_closed(day(closed)) == reason


def test_an_inverted_range_is_refused() -> None:
    with pytest.raises(ValueError, match="inverted: 2013-03-01 > 2000-03-01"):
        TradingCalendar(LAST, FIRST)


def test_a_calendar_of_a_single_session_knows_its_neighbours() -> None:
    monday = day("2024-01-08")
    calendar = TradingCalendar(monday, monday)
    assert (calendar.shift(monday, -1), calendar.shift(monday, 1)) == (day("2024-01-05"), day("2024-01-09"))


@given(
    st.datetimes(dt.datetime(2000, 3, 1), dt.datetime(2013, 3, 1), timezones=st.just(dt.UTC)),
)
@settings(max_examples=300, deadline=None)
def test_an_instant_lies_after_the_previous_close_and_not_after_its_own(instant: dt.datetime) -> None:
    session = CALENDAR.session_of(instant)
    assert CALENDAR.close(CALENDAR.shift(session, -1)) < instant <= CALENDAR.close(session)


@given(
    st.sampled_from(CALENDAR.sessions(FIRST, LAST)),
    st.integers(-1_000_000, 1_000_000).map(lambda us: dt.timedelta(microseconds=us)),
)
@settings(max_examples=300, deadline=None)
def test_the_property_holds_within_a_second_of_every_close(session: dt.date, off: dt.timedelta) -> None:
    # Uniform instants hardly ever come near a close, which is where a wrong inequality would show.
    expected = session if off <= dt.timedelta(0) else CALENDAR.shift(session, 1)
    assert CALENDAR.session_of(CALENDAR.close(session) + off) == expected
