"""The night: after every exchange close, the session's bars and news come in and live signals go out."""

import datetime as dt
from zoneinfo import ZoneInfo

import dagster as dg

from jobs.deployment import ENDPOINTS
from quant_assets.partitions import BRINGS_FEATURES_TAG, CALENDAR, FIRST_SESSION, LAST_SESSION, settings
from quant_resources.calendar import NEW_YORK

daily_signals_job = dg.define_asset_job(
    "daily_signals_job",
    selection=dg.AssetSelection.groups("market", "features", "serving", "monitoring")
    - dg.AssetSelection.assets("market/securities", "market/peers")
    - ENDPOINTS,
    description="One session: bars and news in, features computed and proved, live signals out (from the deployed endpoints, or from the "
    "registered champions where those are down), captured requests in, drift measured.",
    tags={BRINGS_FEATURES_TAG: "true"},
    # Small steps: in one process a night takes seconds, with a process per step most of it is starting processes.
    executor_def=dg.in_process_executor,
)


# How long after a close the source is taken to have published the session.
DELAY = dt.timedelta(minutes=settings().night_delay_minutes)


def _after(hour: int) -> str:
    """Cron of the tick that follows a close at `hour` o'clock, New York time."""
    at = dt.timedelta(hours=hour) + DELAY
    return f"{at.seconds // 60 % 60} {at.seconds // 3600} * * 1-5"


@dg.schedule(
    job=daily_signals_job,
    # Half an hour (QUANT_NIGHT_DELAY_MINUTES) after the early close and after the regular one.
    cron_schedule=[_after(13), _after(16)],
    execution_timezone=NEW_YORK,
    description="After each close of the exchange, half days included; holidays are skipped with their name.",
)
def daily_signals_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request the session's run once its close has passed; the run key makes a second tick harmless."""
    tick = context.scheduled_execution_time
    day = tick.astimezone(ZoneInfo(NEW_YORK)).date()
    if LAST_SESSION is not None and day > LAST_SESSION:
        return dg.SkipReason(f"the source ends with session {LAST_SESSION}; there is nothing for {day}")
    if day < FIRST_SESSION:
        return dg.SkipReason(f"the source begins with session {FIRST_SESSION}; there is nothing for {day}")
    if not CALENDAR.is_session(day):
        return dg.SkipReason(CALENDAR.why_closed(day))
    close = CALENDAR.close(day)
    if close + DELAY > tick.astimezone(dt.UTC):
        local = close.astimezone(ZoneInfo(NEW_YORK))
        return dg.SkipReason(f"session {day} closes at {local:%H:%M} New York; the later tick takes it")
    return dg.RunRequest(
        run_key=day.isoformat(), partition_key=day.isoformat(), tags={"quant/session": day.isoformat()}
    )
