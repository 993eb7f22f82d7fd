"""When the night runs, and what it asks for."""

import datetime as dt
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from jobs.nightly import daily_signals_schedule
from quant_assets.definitions import defs

NEW_YORK = ZoneInfo("America/New_York")


def _tick(day: str, time: str) -> dg.RunRequest | dg.SkipReason:
    instant = dt.datetime.combine(dt.date.fromisoformat(day), dt.time.fromisoformat(time), NEW_YORK)
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance=instance, scheduled_execution_time=instant)
        return daily_signals_schedule(context)


def test_a_regular_session_runs_after_16_and_not_before() -> None:
    early = _tick("2013-02-25", "13:30")
    assert isinstance(early, dg.SkipReason)
    assert "closes at 16:00" in early.skip_message
    request = _tick("2013-02-25", "16:30")
    assert isinstance(request, dg.RunRequest)
    assert (request.run_key, request.partition_key) == ("2013-02-25", "2013-02-25")


def test_a_half_day_runs_after_13_and_the_later_tick_repeats_its_key() -> None:
    """2012-11-23, the day after Thanksgiving, closes at 13:00; the same run key means that no second run starts."""
    first, second = _tick("2012-11-23", "13:30"), _tick("2012-11-23", "16:30")
    assert isinstance(first, dg.RunRequest)
    assert isinstance(second, dg.RunRequest)
    assert first.run_key == second.run_key == "2012-11-23"


@pytest.mark.parametrize(
    ("day", "reason"),
    [
        ("2013-01-21", "Martin Luther King"),
        ("2012-12-25", "Christmas"),
        ("2013-02-23", "Saturday"),
        ("2013-03-04", "ends with session 2013-03-01"),
        ("2000-02-29", "begins with session 2000-03-01"),
    ],
)
def test_other_days_are_skipped_with_the_reason(day: str, reason: str) -> None:
    decision = _tick(day, "16:30")
    assert isinstance(decision, dg.SkipReason)
    assert reason in decision.skip_message


def test_the_schedule_ticks_after_both_closes_in_new_york_time() -> None:
    assert daily_signals_schedule.execution_timezone == "America/New_York"
    assert daily_signals_schedule.cron_schedule == ["30 13 * * 1-5", "30 16 * * 1-5"]


def test_the_night_brings_everything_but_training_and_deploying() -> None:
    job = defs.resolve_job_def("daily_signals_job")
    keys = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert keys == {
        "market/bars",
        "market/news",
        "features/technical",
        "features/sentiment",
        "features/labels",
        "features/peers",
        "serving/live_signals",
        "serving/captured_requests",
        "monitoring/performance",
        "monitoring/drift",
    }
