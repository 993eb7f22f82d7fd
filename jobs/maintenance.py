"""Housekeeping of the warehouse and of captured requests."""

import datetime as dt

import dagster as dg

from quant_assets.partitions import settings
from quant_resources.calendar import NEW_YORK
from quant_resources.endpoints.captured import remove_captured
from quant_resources.iceberg import Warehouse


class MaintenanceConfig(dg.Config):
    """How long old snapshots stay readable.

    Attributes:
        keep_days: snapshots, unreferenced files and captured requests (the nights have stored them) younger than this stay.
    """

    keep_days: float = 30.0


@dg.op
def maintain_tables(
    context: dg.OpExecutionContext, config: MaintenanceConfig, warehouse: dg.ResourceParam[Warehouse]
) -> None:
    """Expire old snapshots of every table and delete files that nothing refers to."""
    for name in warehouse.table_names():
        done = warehouse.maintain(name, dt.timedelta(days=config.keep_days))
        context.log.info("%s: %s", name, ", ".join(f"{k} {v:,}" for k, v in done.items()))
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=config.keep_days)
    removed = remove_captured(settings().endpoints_dir, before)
    context.log.info("%d files of captured requests from before %s removed", removed, before)


@dg.job(
    description="Expire Iceberg snapshots, delete orphaned files and old captured requests of local endpoints. Models' lineage names snapshots, so keep them as "
    "long as you want to retrace a model.",
    executor_def=dg.in_process_executor,
)
def maintenance_job() -> None:
    """Housekeeping of the warehouse."""
    maintain_tables()


maintenance_schedule = dg.ScheduleDefinition(
    name="maintenance_schedule", job=maintenance_job, cron_schedule="0 6 * * 0", execution_timezone=NEW_YORK
)
