"""Partitions: one per exchange session over the span of the configured source, and one per symbol.

Belongs here: the two partitions definitions of the graph, how a run's partitions become dates, and the run tag that jobs and
automation agree on. Does not belong
here: the calendar itself (`quant_resources/calendar.py`).
"""

from __future__ import annotations

import datetime as dt
from functools import cache

import dagster as dg

from quant_resources.calendar import NEW_YORK, TradingCalendar
from quant_resources.settings import Settings, load_settings
from quant_resources.sources import open_source

# Partitions reach this far into the future, so that a long-lived process knows the coming holidays.
YEARS_AHEAD = 1
# On a run over a range of sessions: its first and its last.
RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
# On runs that compute the features of the sessions that they bring in, so that automation need not.
BRINGS_FEATURES_TAG = "quant/brings_features"


@cache
def settings() -> Settings:
    """The settings that this process was loaded with."""
    return load_settings()


def span(config: Settings) -> tuple[dt.date, dt.date | None]:
    """First and last session of the configured source; None for a source that goes on."""
    return open_source(config).span()


def session_calendar(first: dt.date, last: dt.date | None) -> TradingCalendar:
    """The calendar of a span; of an open one, up to a year from today."""
    return TradingCalendar(first, last or dt.date.today() + dt.timedelta(days=365 * YEARS_AHEAD))


def session_partitions(first: dt.date, last: dt.date | None) -> dg.DailyPartitionsDefinition:
    """One partition per XNYS session, weekends and holidays excluded.

    The partition of a session exists from its first hour on (`end_offset=1`), because the night after the close is
    when it is wanted. That also exposes a Monday on the Saturday before, so the schedule and `market/bars` both check
    that the session has closed.
    """
    calendar = session_calendar(first, last)
    final = calendar.last
    weekdays = (first + dt.timedelta(days=i) for i in range((final - first).days + 1))
    holidays = [
        dt.datetime(day.year, day.month, day.day)
        for day in weekdays
        if day.weekday() < 5 and not calendar.is_session(day)
    ]
    return dg.DailyPartitionsDefinition(
        start_date=first.isoformat(),
        end_date=(last + dt.timedelta(days=1)).isoformat() if last else None,
        end_offset=1,
        timezone=NEW_YORK,
        exclusions=["0 0 * * 6", "0 0 * * 0", *holidays],
    )


FIRST_SESSION, LAST_SESSION = span(settings())
SESSIONS = session_partitions(FIRST_SESSION, LAST_SESSION)
CALENDAR = session_calendar(FIRST_SESSION, LAST_SESSION)


# One partition per symbol. `market/securities` adds the symbols that it learns of, so that a vendor's five hundred need
# not be known when the graph is loaded.
SYMBOLS = dg.DynamicPartitionsDefinition(name="symbols")


def look_back(sessions: int) -> dg.TimeWindowPartitionMapping:
    """A partition needs its own session and the `sessions` before it (exchange sessions, not calendar days)."""
    return dg.TimeWindowPartitionMapping(start_offset=-sessions, end_offset=0)


def run_sessions(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
) -> tuple[dt.date, dt.date]:
    """First and last session of the partitions that this run materializes."""
    keys = context.partition_key_range
    return dt.date.fromisoformat(keys.start), dt.date.fromisoformat(keys.end)


def updated_elsewhere() -> dg.AutomationCondition:
    """A dependency was updated by a run that does not go on to compute what depends on it."""
    return dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.newly_updated()
        & ~dg.AutomationCondition.all_new_updates_have_run_tags(tag_keys={BRINGS_FEATURES_TAG})
    )
