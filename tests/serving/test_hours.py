"""Trading hours in a bundle say what the exchange's calendar says, and hand out minutes inside sessions only."""

import datetime as dt
import json
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.serving.hours import KEPT_SESSIONS, ExchangeHours, HoursError, Stretch
from quant_resources.calendar import TradingCalendar

FIRST, LAST = dt.date(2000, 1, 3), dt.date(2030, 12, 31)
CALENDAR = TradingCalendar(FIRST, LAST)
HOURS = ExchangeHours.from_description(
    json.loads(json.dumps(ExchangeHours.from_calendar(CALENDAR).description()))
)
SESSIONS = CALENDAR.sessions(FIRST, LAST)
MINUTE = dt.timedelta(minutes=1)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def day(text: str) -> dt.date:
    return dt.date.fromisoformat(text)


def test_every_session_open_and_close_is_the_calendars() -> None:
    assert HOURS.sessions(FIRST, LAST) == SESSIONS
    assert [HOURS.opens(s) for s in SESSIONS] == [CALENDAR.opens(s) for s in SESSIONS]
    assert [HOURS.close(s) for s in SESSIONS] == [CALENDAR.close(s) for s in SESSIONS]
    assert HOURS.longest == 390


def test_sessions_are_counted_and_known_as_by_the_calendar() -> None:
    first, last = day("2012-10-26"), day("2012-11-26")
    assert HOURS.sessions(first, last) == CALENDAR.sessions(first, last)
    assert HOURS.ordinal(last) - HOURS.ordinal(first) == CALENDAR.ordinal(last) - CALENDAR.ordinal(first)
    for i in range(3650):
        date = dt.date(2010, 1, 1) + dt.timedelta(days=i)
        assert HOURS.is_session(date) == CALENDAR.is_session(date)


@pytest.mark.parametrize("closed", ["2012-11-24", "2012-12-25", "2012-10-30", "1999-12-31", "2031-01-02"])
def test_a_day_without_a_session_is_named(closed: str) -> None:
    for ask in (HOURS.ordinal, HOURS.opens, HOURS.close, HOURS.length):
        with pytest.raises(HoursError, match=f"{closed} is no session"):
            ask(day(closed))


def test_thirty_years_of_hours_are_a_few_kilobytes() -> None:
    assert len(json.dumps(HOURS.description())) < 8000


def test_a_description_comes_back_as_it_went() -> None:
    assert ExchangeHours.from_description(HOURS.description()).description() == HOURS.description()


@pytest.mark.parametrize(
    ("start", "first_minute"),
    [
        ("2013-03-01T14:30:00", ("2013-03-01", 0)),  # the open
        ("2013-03-01T14:30:00.000001", ("2013-03-01", 1)),  # rounded up
        ("2013-03-01T14:29:59", ("2013-03-01", 0)),
        ("2013-03-01T20:59:00", ("2013-03-01", 389)),  # the last minute
        ("2013-03-01T20:59:01", ("2013-03-04", 0)),  # after it: over the weekend
        ("2013-03-01T21:00:00", ("2013-03-04", 0)),
        ("2013-03-28T21:00:00", ("2013-04-01", 0)),  # Good Friday
        ("2012-10-27T12:00:00", ("2012-10-31", 0)),  # hurricane Sandy
        ("2013-11-29T18:00:00", ("2013-12-02", 0)),  # a half day has closed at 13:00
        ("2013-11-29T17:59:00", ("2013-11-29", 209)),
        ("2013-03-11T13:30:00", ("2013-03-11", 0)),  # the first session of daylight saving time
    ],
)
def test_the_first_minute_is_the_next_that_the_exchange_trades(
    start: str, first_minute: tuple[str, int]
) -> None:
    session, minute = first_minute
    assert HOURS.minutes(utc(start), 1) == [(day(session), minute)]


def test_a_stretch_ends_with_the_close_and_goes_on_with_the_next_session() -> None:
    # The eve of Independence Day 2013 was a half day of 210 minutes, the day itself a holiday.
    assert HOURS.stretches(utc("2013-07-03T16:50:00"), 390) == [
        Stretch(day("2013-07-03"), 200, 210),
        Stretch(day("2013-07-05"), 0, 380),
    ]


def test_any_time_zone_means_its_instant() -> None:
    local = dt.datetime(2013, 3, 1, 9, 30, tzinfo=ZoneInfo("America/New_York"))
    tokyo = local.astimezone(ZoneInfo("Asia/Tokyo"))
    assert HOURS.stretches(local, 390) == HOURS.stretches(tokyo, 390) == [Stretch(day("2013-03-01"), 0, 390)]


@pytest.mark.parametrize(
    ("start", "count", "reason"),
    [
        (dt.datetime(2013, 3, 1, 14, 30), 1, "no offset"),
        (utc("1999-12-31T15:00:00"), 1, "outside the hours 2000-01-03..2030-12-31"),
        (utc("2030-12-31T21:00:00"), 1, "outside the hours"),
        (utc("2030-12-31T20:59:00"), 2, "2 trading minutes .* go beyond the hours"),
        (dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=14))), 1, "outside the hours"),
        (dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-14))), 1, "outside the hours"),
        (utc("2013-03-01T15:00:00"), 0, "count = 0"),
    ],
)
def test_what_lies_outside_is_refused(start: dt.datetime, count: int, reason: str) -> None:
    with pytest.raises(HoursError, match=reason):
        HOURS.stretches(start, count)


@settings(deadline=None)
@given(
    st.datetimes(dt.datetime(2000, 1, 3, 6), dt.datetime(2030, 12, 1), timezones=st.just(dt.UTC)),
    st.integers(1, 1000),
)
def test_the_next_minutes_are_those_of_the_calendar_and_none_is_missing(
    start: dt.datetime, count: int
) -> None:
    # Written out the long way: every minute of the calendar's sessions around the start.
    around = CALENDAR.sessions(start.date() - dt.timedelta(days=1), start.date() + dt.timedelta(days=16))
    traded = [
        (session, k, CALENDAR.opens(session) + k * MINUTE)
        for session in around
        for k in range((CALENDAR.close(session) - CALENDAR.opens(session)) // MINUTE)
    ]
    wanted = [minute for minute in traded if minute[2] >= start][:count]
    assert len(wanted) == count
    assert HOURS.minutes(start, count) == [(session, k) for session, k, _ in wanted]
    timestamps = HOURS.timestamps(HOURS.stretches(start, count))
    assert timestamps == [f"{instant:%Y-%m-%dT%H:%M:%SZ}" for _, _, instant in wanted]


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(3 * KEPT_SESSIONS)))
def test_timestamps_do_not_depend_on_what_was_asked_before(order: list[int]) -> None:
    for i in order[:KEPT_SESSIONS]:
        session = SESSIONS[i]
        assert HOURS.timestamps([Stretch(session, 0, 1)]) == [f"{CALENDAR.opens(session):%Y-%m-%dT%H:%M:%SZ}"]
    assert len(HOURS._timestamps) <= KEPT_SESSIONS


GOOD = ExchangeHours.from_calendar(TradingCalendar(day("2013-06-28"), day("2013-07-08"))).description()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"first": "2013-07-09"}, "range"),
        ({"last": "9999-12-31"}, "range"),
        ({"first": "soon"}, "soon"),
        ({"regular": ["16:00", "09:30"]}, "close comes later"),
        ({"regular": ["09:30"]}, "cannot be read"),
        ({"holidays": ["2013-07-06"]}, "2013-07-06 is no weekday"),
        ({"holidays": ["2014-07-04"]}, "2014-07-04 is no weekday between"),
        ({"holidays": 4}, "cannot be read"),
        ({"other": {"2013-07-04": ["09:30", "13:00"]}}, "2013-07-04 has hours of its own"),
        ({"other": []}, "cannot be read"),
    ],
)
def test_a_broken_description_is_refused(change: dict[str, object], reason: str) -> None:
    assert ExchangeHours.from_description(GOOD).holidays == (day("2013-07-04"),)
    with pytest.raises(HoursError, match=reason):
        ExchangeHours.from_description({**GOOD, **change})
    with pytest.raises(HoursError, match="cannot be read"):
        ExchangeHours.from_description({k: v for k, v in GOOD.items() if k not in change})


def test_a_range_without_a_session_is_refused() -> None:
    with pytest.raises(HoursError, match="no session"):
        ExchangeHours.from_calendar(TradingCalendar(day("2013-07-06"), day("2013-07-07")))
