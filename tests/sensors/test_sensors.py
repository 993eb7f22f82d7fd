"""A failed run alerts; corrected bars bring their features after them."""

import datetime as dt
import json
from pathlib import Path

import dagster as dg
import pyarrow as pa

from quant_assets.definitions import build_defs
from quant_assets.launch import QUIET, RANGE_TAGS
from quant_resources.alerts import LogAlerts
from quant_resources.iceberg import Warehouse
from quant_resources.sources.sample import SampleSource
from sensors.automation import feature_automation
from sensors.failures import run_failure_sensor

FEATURES = {"features/technical", "features/sentiment", "features/peers", "features/labels"}


class Down(SampleSource):
    """A vendor whose bars cannot be had."""

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        from quant_resources.sources import SourceError

        raise SourceError("bars/AAPL.csv:17: close = 'n/a' is not a number")


def test_a_failed_night_alerts_with_job_partition_step_and_error(tmp_path: Path) -> None:
    defs = build_defs({"source": Down(), "warehouse": Warehouse(tmp_path)})
    alerts = LogAlerts(alerts_file=str(tmp_path / "alerts.jsonl"))
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("daily_signals_job").execute_in_process(
            partition_key="2012-04-04", instance=instance, raise_on_error=False, run_config=QUIET
        )
        assert not result.success
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failure_sensor",
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            resources={"alerts": alerts},
        ).for_run_failure()
        run_failure_sensor(context)
    (line,) = (tmp_path / "alerts.jsonl").read_text().splitlines()
    alert = json.loads(line)
    assert alert["title"] == "daily_signals_job failed"
    assert alert["partition"] == "2012-04-04"
    assert alert["run_id"] == result.run_id
    assert "step market__bars" in alert["body"]
    assert "bars/AAPL.csv:17" in alert["body"]


def test_the_failure_sensor_runs_by_default() -> None:
    assert run_failure_sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert feature_automation.default_status == dg.DefaultSensorStatus.RUNNING


def _requested(result: dg.EvaluateAutomationConditionsResult) -> dict[str, set[str]]:
    return {
        key: set(result.get_requested_partitions(dg.AssetKey(key.split("/")))) for key in sorted(FEATURES)
    }


def test_features_follow_corrected_bars_but_not_the_runs_that_bring_their_own(tmp_path: Path) -> None:
    defs = build_defs({"source": SampleSource(symbols=("AAPL",), seed=1), "warehouse": Warehouse(tmp_path)})
    tags = dict(zip(RANGE_TAGS, ("2012-01-03", "2012-06-29"), strict=True))
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.define_asset_job("both", selection=dg.AssetSelection.groups("market", "features"))
        whole = dg.Definitions.merge(defs, dg.Definitions(jobs=[job]))
        assert (
            whole.resolve_job_def("both")
            .execute_in_process(instance=instance, tags=tags, run_config=QUIET)
            .success
        )
        quiet = dg.evaluate_automation_conditions(defs, instance)
        assert quiet.total_requested == 0

        # A correction of an old session must not leave stale features behind.
        ingest = defs.resolve_job_def("ingest_job")
        assert ingest.execute_in_process(
            instance=instance, partition_key="2012-04-02", run_config=QUIET
        ).success
        corrected = dg.evaluate_automation_conditions(defs, instance, cursor=quiet.cursor)
        for key, partitions in _requested(corrected).items():
            # The session itself and the sessions whose look-back window contains it, no others.
            assert {"2012-04-02", "2012-04-20"} <= partitions, key
            assert not {"2012-03-30", "2012-06-01"} & partitions, key

        # What automation computes is proved like everything else: the checks follow their asset in the next tick.
        job = dg.define_asset_job(
            "technical", selection=dg.AssetSelection.assets("features/technical").without_checks()
        )
        alone = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("technical")
        assert alone.execute_in_process(
            instance=instance, partition_key="2012-04-02", run_config=QUIET
        ).success
        proved = dg.evaluate_automation_conditions(defs, instance, cursor=corrected.cursor)
        requested = {result.key: result.true_subset.size for result in proved.results}
        for check in ("no_look_ahead", "stored_table"):
            assert requested[dg.AssetCheckKey(dg.AssetKey(["features", "technical"]), check)] == 1, check

        # The night computes its features itself: while its bars are new and its features not yet there, nobody else does.
        night = defs.resolve_job_def("daily_signals_job").get_subset(
            asset_selection={dg.AssetKey(["market", "bars"]), dg.AssetKey(["market", "news"])}
        )
        assert night.execute_in_process(
            instance=instance, partition_key="2012-06-29", run_config=QUIET
        ).success
        after = dg.evaluate_automation_conditions(defs, instance, cursor=proved.cursor)
        assert after.total_requested == 0
