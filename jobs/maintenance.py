"""Housekeeping of the warehouse."""

import datetime as dt

import dagster as dg

from quant_resources.calendar import NEW_YORK
from quant_resources.iceberg import Warehouse


class MaintenanceConfig(dg.Config):
    """How long old snapshots stay readable.

    Attributes:
        keep_days: snapshots and unreferenced files younger than this stay.
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


@dg.job(
    description="Expire Iceberg snapshots and delete orphaned files. Models' lineage names snapshots, so keep them as "
    "long as you want to retrace a model.",
    executor_def=dg.in_process_executor,
)
def maintenance_job() -> None:
    """Housekeeping of the warehouse."""
    maintain_tables()


maintenance_schedule = dg.ScheduleDefinition(
    name="maintenance_schedule", job=maintenance_job, cron_schedule="0 6 * * 0", execution_timezone=NEW_YORK
)
