"""What a vendor still owes: sessions that were late, symbols whose turn comes with tomorrow's requests.

Ticks read `market.coverage` alone, which the assets of the layer `market` write, and ask nobody.
"""

import datetime as dt
import json
from collections import defaultdict

import dagster as dg

from jobs.ingest import ingest_job, securities_job
from jobs.nightly import daily_signals_job
from quant_assets.partitions import RANGE_TAGS
from quant_resources.iceberg import Column, TableSpec, Warehouse

# What the sensor reads of the table (sensors import no layer).
COVERAGE = TableSpec(
    name="market.coverage",
    description="",
    columns=(
        Column("dataset", "string", "", required=True),
        Column("symbol", "string", "", required=True),
        Column("first_session", "date", "", required=True),
        Column("last_session", "date", "", required=True),
        Column("retry_at", "timestamptz", ""),
    ),
    key=("dataset", "symbol", "first_session", "last_session"),
    slice_column="dataset",
)
# What a run did not bring about is asked for again after so long, each time twice as long, at most daily.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1800.0, 86400.0
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dg.sensor(
    jobs=[ingest_job, securities_job, daily_signals_job],
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks a vendor again for what it owes: a session that it had not published yet, symbols that wait for the next day's "
    "requests, a vendor that could not be reached. A single session is a night and runs as one; a range is brought in, and the features "
    "follow. The oldest sessions first; a run that ends without bringing anything about is tried again, each time after twice as long.",
)
def waiting_symbols_sensor(
    context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Warehouse]
) -> dg.SensorResult | dg.SkipReason:
    """Request a run for the oldest range whose time has come; the cursor holds the attempts for ranges that did not move."""
    if not warehouse.exists(COVERAGE):
        return dg.SkipReason("market.coverage does not exist: no vendor was asked yet")
    owed = [row for row in warehouse.read(COVERAGE).to_pylist() if row["retry_at"] is not None]
    if not owed:
        return dg.SkipReason("no symbol waits")
    now = dt.datetime.now(dt.UTC)
    ranges: dict[str, list[dict]] = defaultdict(list)
    for row in owed:
        kind = (
            "securities"
            if row["dataset"] == "securities"
            else f"{row['first_session']}:{row['last_session']}"
        )
        ranges[kind].append(row)
    before = json.loads(context.cursor) if context.cursor else {}
    attempts: dict[str, dict] = {kind: before[kind] for kind in ranges if kind in before}
    reasons = []
    for kind in sorted(ranges):
        rows = [row for row in ranges[kind] if row["retry_at"] <= now]
        if not rows:
            soonest = min(row["retry_at"] for row in ranges[kind])
            reasons.append(
                f"{len(_symbols(ranges[kind]))} symbol(s) of {kind} wait until {soonest:%Y-%m-%d %H:%M} UTC"
            )
            continue
        since = max(row["retry_at"] for row in rows).isoformat()
        made = attempts.get(kind, {})
        if made.get("since") != since:
            made = {"since": since, "number": 0, "at": 0.0}
        rest = made["at"] + _wait(made["number"]) - now.timestamp()
        if made["number"] and rest > 0:
            reasons.append(
                f"{kind}: attempt {made['number']} brought nothing about, again in {rest / 60:.0f} min"
            )
            continue
        tags = {"quant/owed_range": kind}
        if context.instance.get_runs_count(dg.RunsFilter(tags=tags, statuses=UNFINISHED)):
            reasons.append(f"{kind}: a run for it is under way")
            continue
        attempts[kind] = {"since": since, "number": made["number"] + 1, "at": now.timestamp()}
        # One range at a time, the oldest first: later sessions rest on earlier ones.
        return dg.SensorResult(
            run_requests=[_run(kind, rows, f"{kind}:{since}:{attempts[kind]['number']}", tags)],
            cursor=json.dumps(attempts),
        )
    return dg.SensorResult(skip_reason=dg.SkipReason("; ".join(reasons)), cursor=json.dumps(attempts))


def _wait(number: int) -> float:
    return min(FIRST_WAIT_SECONDS * 2 ** max(number - 1, 0), LONGEST_WAIT_SECONDS)


def _symbols(rows: list[dict]) -> set[str]:
    return {row["symbol"] for row in rows}


def _run(kind: str, rows: list[dict], key: str, tags: dict[str, str]) -> dg.RunRequest:
    datasets = sorted({row["dataset"] for row in rows})
    tags = {**tags, "quant/owed": f"{len(_symbols(rows))} symbol(s) of {', '.join(datasets)}"}
    if kind == "securities":
        return dg.RunRequest(run_key=key, job_name="securities_job", tags=tags)
    first, last = kind.split(":")
    if first == last:
        return dg.RunRequest(
            run_key=key,
            job_name="daily_signals_job",
            partition_key=first,
            tags={**tags, "quant/session": first},
        )
    return dg.RunRequest(
        run_key=key,
        job_name="ingest_job",
        asset_selection=[dg.AssetKey(["market", dataset]) for dataset in datasets],
        tags={**tags, **dict(zip(RANGE_TAGS, (first, last), strict=True))},
    )
