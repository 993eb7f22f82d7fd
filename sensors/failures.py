"""A failed run tells a person."""

import dagster as dg

from quant_resources.alerts import LogAlerts


@dg.run_failure_sensor(
    name="run_failure_sensor",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends an alert for every failed run: job, partition, the first failed step and its error.",
)
def run_failure_sensor(context: dg.RunFailureSensorContext, alerts: LogAlerts) -> None:
    """Alert with what a person needs to act."""
    run = context.dagster_run
    partition = run.tags.get("dagster/partition") or run.tags.get("dagster/asset_partition_range_start", "")
    steps = context.get_step_failure_events()
    reason = context.failure_event.message or "run failed"
    if steps:
        data = steps[0].step_failure_data
        error = data.user_failure_data.description if data.user_failure_data else None
        reason = (
            f"step {steps[0].step_key}: {error or (data.error.message if data.error else steps[0].message)}"
        )
    alerts.send(f"{run.job_name} failed", reason.strip(), run_id=run.run_id, partition=partition)
