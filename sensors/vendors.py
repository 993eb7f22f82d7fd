"""What a vendor still owes: sessions that were late, symbols whose turn comes with tomorrow's requests.

Ticks read `market.coverage` alone, which the assets of the layer `market` write, and ask nobody.
"""

import datetime as dt
from collections import defaultdict

import dagster as dg

from jobs.ingest import ingest_job
from jobs.nightly import daily_signals_job
from quant_resources.iceberg import Column, TableSpec, Warehouse

RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
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


@dg.sensor(
    jobs=[ingest_job, daily_signals_job],
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks a vendor again for what it owes: a session that it had not published yet (every half hour, twelve hours long), symbols "
    "that wait for the next day's requests. A single session is a night and runs as one; a range is brought in, and the features follow.",
)
def waiting_symbols_sensor(
    context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Warehouse]
) -> dg.SensorResult | dg.SkipReason:
    """Request one run per range of sessions whose time has come; the time is part of the run key."""
    if not warehouse.exists(COVERAGE):
        return dg.SkipReason("market.coverage does not exist: no vendor was asked yet")
    owed = [row for row in warehouse.read(COVERAGE).to_pylist() if row["retry_at"] is not None]
    if not owed:
        return dg.SkipReason("no symbol waits")
    now = dt.datetime.now(dt.UTC)
    due: dict[tuple[dt.date, dt.date], list[dict]] = defaultdict(list)
    for row in owed:
        if row["retry_at"] <= now:
            due[row["first_session"], row["last_session"]].append(row)
    if not due:
        soonest = min(row["retry_at"] for row in owed)
        return dg.SkipReason(
            f"{len({r['symbol'] for r in owed})} symbol(s) wait until {soonest:%Y-%m-%d %H:%M} UTC"
        )
    return dg.SensorResult(run_requests=[_run(*sessions, rows) for sessions, rows in sorted(due.items())])


def _run(first: dt.date, last: dt.date, rows: list[dict]) -> dg.RunRequest:
    datasets = sorted({row["dataset"] for row in rows})
    # The newest time: a run sets new ones, and only then is there something to launch again.
    key = f"{first}:{last}:{','.join(datasets)}:{max(row['retry_at'] for row in rows).isoformat()}"
    tags = {"quant/owed": f"{len({row['symbol'] for row in rows})} symbol(s) of {', '.join(datasets)}"}
    if first == last:
        return dg.RunRequest(
            run_key=key,
            job_name="daily_signals_job",
            partition_key=str(first),
            tags={**tags, "quant/session": str(first)},
        )
    return dg.RunRequest(
        run_key=key,
        job_name="ingest_job",
        asset_selection=[dg.AssetKey(["market", dataset]) for dataset in datasets],
        tags={**tags, **dict(zip(RANGE_TAGS, (str(first), str(last)), strict=True))},
    )
