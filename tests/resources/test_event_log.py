"""The batched SQLite event log against the stock one: the same runs leave the same facts.

The two writers at once run this very file as a script (see the end).
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance import InstanceRef
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqliteEventLogStorage

from quant_resources.event_log import BatchedSqliteEventLogStorage

ROOT = Path(__file__).resolve().parents[2]
DAYS = dg.DailyPartitionsDefinition("2012-01-01", end_date="2012-04-01")
FIRST, LAST, PARTITIONS = "2012-01-03", "2012-02-01", 30
PRICES, RETURNS, BROKEN = dg.AssetKey("prices"), dg.AssetKey("returns"), dg.AssetKey("broken")


@dg.asset(
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[dg.AssetCheckSpec("positive", asset="prices")],
)
def prices(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    rows = len(context.partition_keys)
    for key in context.partition_keys[-3:]:
        context.log_event(dg.AssetObservation("prices", partition=key, metadata={"seen": True}))
    return dg.MaterializeResult(
        metadata={"rows": rows},
        data_version=dg.DataVersion("prices-1"),
        check_results=[dg.AssetCheckResult(passed=True, metadata={"rows": rows})],
    )


@dg.asset(deps=[prices], partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def returns() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"volatility": 0.2}, data_version=dg.DataVersion("returns-1"))


@dg.asset_check(asset=prices)
def fresh() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN)


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def broken() -> None:
    raise RuntimeError("as always")


DEFINITIONS = dg.Definitions(
    [prices, returns, broken],
    asset_checks=[fresh],
    jobs=[
        dg.define_asset_job("night", dg.AssetSelection.assets("prices", "returns")),
        dg.define_asset_job("prices_only", dg.AssetSelection.assets("prices")),
        dg.define_asset_job("returns_only", dg.AssetSelection.assets("returns")),
        dg.define_asset_job("breaks", dg.AssetSelection.assets("broken")),
    ],
)


def run(
    instance: dg.DagsterInstance, first: str = FIRST, last: str = LAST, job: str = "night"
) -> dg.ExecuteInProcessResult:
    """One run over a range of partitions."""
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return DEFINITIONS.resolve_job_def(job).execute_in_process(
        instance=instance, tags=tags, raise_on_error=False
    )


@pytest.fixture(scope="module")
def open_instance() -> Iterator[Callable[..., dg.DagsterInstance]]:
    """A Dagster instance on disk: the stock event log, or ours with a batch size."""
    with pytest.MonkeyPatch.context() as monkeypatch:

        def open_(home: Path, batch_size: int | None) -> dg.DagsterInstance:
            home.mkdir(exist_ok=True)
            monkeypatch.setenv("DAGSTER_HOME", str(home))
            monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", str(batch_size or 0))
            write_dagster_yaml(home, batched=batch_size is not None)
            return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home)))

        yield open_


@pytest.fixture(scope="module")
def stock_facts(
    tmp_path_factory: pytest.TempPathFactory, open_instance: Callable[..., dg.DagsterInstance]
) -> dict[str, dict[str, object]]:
    """What the stock storage keeps of the jobs `night` and `breaks`."""
    with open_instance(tmp_path_factory.mktemp("stock"), None) as stock:
        assert type(stock.event_log_storage) is SqliteEventLogStorage
        return {job: facts(stock, run(stock, job=job).run_id) for job in ("night", "breaks")}


def write_dagster_yaml(home: Path, batched: bool) -> None:
    text = "telemetry:\n  enabled: false\n"
    if batched:
        # As in the repository's own dagster.yaml.
        text += (
            "event_log_storage:\n  module: quant_resources.event_log\n"
            "  class: BatchedSqliteEventLogStorage\n  config: {}\n"
        )
    (home / "dagster.yaml").write_text(text)


def facts(instance: dg.DagsterInstance, run_id: str) -> dict[str, object]:
    """What the UI and the sensors read of a run, without what is unique to it (ids, instants)."""
    storage = instance.event_log_storage
    events = [e.dagster_event for e in instance.all_logs(run_id) if e.dagster_event]
    result: dict[str, object] = {
        "status": instance.get_run_by_id(run_id).status,
        "events": Counter(e.event_type_value for e in events),
        "events of the storage": instance.get_run_stats(run_id).materializations,
    }
    for key in (PRICES, RETURNS, BROKEN):
        records = instance.get_asset_records([key])
        newest = storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
        entry = records[0].asset_entry if records else None
        latest = instance.get_latest_materialization_event(key)
        materializations = instance.fetch_materializations(key, limit=1000).records
        result[key.to_user_string()] = {
            "materialized": sorted(instance.get_materialized_partitions(key)),
            # The ids that conditions and data versions are looked up by point at this partition's event.
            "newest is its own": {
                partition: next(r for r in materializations if r.storage_id == storage_id).partition_key
                for partition, storage_id in newest.items()
            },
            "latest": latest and (latest.dagster_event.partition, latest.run_id == run_id),
            "metadata": latest and {k: v.value for k, v in latest.asset_materialization.metadata.items()},
            "record": entry
            and {
                "run": entry.last_run_id == run_id,
                "partition": entry.last_materialization
                and entry.last_materialization.dagster_event.partition,
                "is the newest": entry.last_materialization_storage_id == max(newest.values(), default=None),
            },
            "observed": [r.partition_key for r in instance.fetch_observations(key, limit=1000).records],
            "planned": sorted(
                storage.get_latest_asset_partition_materialization_attempts_without_materializations(key)
            ),
            "data versions": storage.get_latest_tags_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
            ),
        }
    return result


def checks(instance: dg.DagsterInstance, name: str) -> list[tuple[object, str | None]]:
    records = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(PRICES, name), limit=1000
    )
    return [(record.status, record.partition) for record in records]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were stored: proof that the code under test was used at all."""
    return watch_batches(monkeypatch.setattr)


def watch_batches(setattr_: Callable[..., None]) -> list[int]:
    sizes: list[int] = []
    store = BatchedSqliteEventLogStorage.store_event_batch

    def store_and_count(self: BatchedSqliteEventLogStorage, events: Sequence[dg.EventLogEntry]) -> None:
        sizes.append(len(events))
        store(self, events)

    setattr_(BatchedSqliteEventLogStorage, "store_event_batch", store_and_count)
    return sizes


def test_the_stock_storage_keeps_what_the_comparison_is_about(
    stock_facts: dict[str, dict[str, object]],
) -> None:
    # The facts that ours must match are those of thirty partitions, not thirty times nothing.
    night = stock_facts["night"]
    assert night["events"]["ASSET_MATERIALIZATION"] == 2 * PARTITIONS
    assert night["events"]["ASSET_MATERIALIZATION_PLANNED"] == 2 * PARTITIONS
    assert night["events"]["ASSET_OBSERVATION"] == 3
    assert night["events"]["ASSET_CHECK_EVALUATION"] == 2
    assert len(night["prices"]["materialized"]) == PARTITIONS
    assert night["prices"]["observed"] == ["2012-02-01", "2012-01-31", "2012-01-30"]
    assert night["returns"]["latest"] == (LAST, True)
    assert night["returns"]["record"]["is the newest"]
    assert night["returns"]["data versions"][FIRST] == {"dagster/data_version": "returns-1"}
    assert stock_facts["breaks"]["broken"]["materialized"] == []
    assert len(stock_facts["breaks"]["broken"]["planned"]) == PARTITIONS


@pytest.mark.parametrize("batch_size", [2000, 7])
def test_a_range_of_partitions_leaves_the_same_facts_as_with_the_stock_storage(
    tmp_path: Path,
    open_instance: Callable[..., dg.DagsterInstance],
    stock_facts: dict[str, dict[str, object]],
    batches: list[int],
    batch_size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_instance(tmp_path / "ours", batch_size) as ours:
        assert type(ours.event_log_storage) is BatchedSqliteEventLogStorage
        for job in ("night", "breaks"):
            result = run(ours, job=job)
            assert result.success == (job == "night")
            assert facts(ours, result.run_id) == stock_facts[job]
    # Seven does not divide thirty: the last batch of each kind is a short one.
    assert max(batches) == 7 if batch_size == 7 else max(batches) >= PARTITIONS
    assert "Exception while storing event batch" not in capsys.readouterr().err


def test_check_results_are_visible_and_no_check_stays_planned(
    tmp_path: Path, open_instance: Callable[..., dg.DagsterInstance]
) -> None:
    with open_instance(tmp_path / "ours", 2000) as instance:
        for times in (1, 2):
            run(instance)
            status = AssetCheckExecutionRecordStatus
            assert checks(instance, "positive") == [(status.SUCCEEDED, None)] * times
            assert checks(instance, "fresh") == [(status.FAILED, None)] * times
        summary = instance.event_log_storage.get_asset_check_summary_records(
            [dg.AssetCheckKey(PRICES, "positive")]
        )
        (record,) = summary.values()
        evaluation = record.last_check_execution_record.event.dagster_event.asset_check_evaluation_data
        assert evaluation.passed
        assert evaluation.metadata["rows"].value == PARTITIONS


def test_stock_and_batched_storage_continue_each_others_files(
    tmp_path: Path, open_instance: Callable[..., dg.DagsterInstance], batches: list[int]
) -> None:
    home = tmp_path / "home"
    with open_instance(home, 2000) as instance:
        first = run(instance, "2012-01-03", "2012-01-12").run_id
        written = facts(instance, first)
    with open_instance(home, None) as instance:
        assert facts(instance, first) == written
        second = run(instance, "2012-01-10", "2012-01-20").run_id
    assert len(batches) > 0
    with open_instance(home, 2000) as instance:
        third = run(instance, "2012-01-18", "2012-01-25").run_id
        assert len(instance.get_materialized_partitions(PRICES)) == 23
        newest = instance.event_log_storage.get_latest_storage_id_by_partition(
            PRICES, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        by_id = {r.storage_id: r for r in instance.fetch_materializations(PRICES, limit=1000).records}
        writer = {partition: by_id[i].run_id for partition, i in newest.items()}
        # Each partition's newest event is that of the run that wrote it last.
        for partition, run_id in writer.items():
            last = first if partition < "2012-01-10" else second if partition < "2012-01-18" else third
            assert run_id == last, partition
        assert instance.get_latest_materialization_event(PRICES).run_id == third
        assert len(by_id) == 10 + 11 + 8


def test_a_batch_of_two_runs_is_refused_before_anything_is_written(
    tmp_path: Path, open_instance: Callable[..., dg.DagsterInstance]
) -> None:
    with open_instance(tmp_path / "ours", 2000) as instance:
        runs = [run(instance, "2012-01-03", "2012-01-04").run_id for _ in range(2)]
        events = [event for run_id in runs for event in instance.all_logs(run_id)]
        before = [len(instance.all_logs(run_id)) for run_id in runs]
        with pytest.raises(ValueError, match="one run"):
            instance.event_log_storage.store_event_batch(events)
        assert [len(instance.all_logs(run_id)) for run_id in runs] == before


def test_a_batch_that_fails_leaves_nothing_behind(
    tmp_path: Path, open_instance: Callable[..., dg.DagsterInstance]
) -> None:
    # Dagster stores the events of a failed batch once more, one by one: what the batch left would be there twice.
    with open_instance(tmp_path / "ours", 2000) as instance:
        run_id = run(instance, "2012-01-03", "2012-01-06").run_id
        before = instance.all_logs(run_id)
        batch = [
            e
            for e in before
            if e.dagster_event_type
            in (dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.STEP_SUCCESS)
        ]
        with sqlite3.connect(tmp_path / "ours" / "history" / "runs" / "index.db") as index:
            # As a full disk or a lock would, on the second of the two files that a batch goes to.
            index.execute(
                "CREATE TRIGGER full BEFORE INSERT ON event_logs BEGIN SELECT RAISE(ABORT, 'no space left'); END"
            )
        with pytest.raises(Exception, match="no space left"):
            instance.event_log_storage.store_event_batch(batch)
        assert instance.all_logs(run_id) == before
        assert len(batch) > 8


def test_an_empty_batch_and_a_batch_without_asset_events_are_stored_as_they_are(
    tmp_path: Path, open_instance: Callable[..., dg.DagsterInstance]
) -> None:
    with open_instance(tmp_path / "ours", 2000) as instance:
        run_id = run(instance, "2012-01-03", "2012-01-04").run_id
        starts = [
            e
            for e in instance.all_logs(run_id)
            if e.dagster_event_type in (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS)
        ]
        before = len(instance.all_logs(run_id))
        instance.event_log_storage.store_event_batch([])
        assert len(instance.all_logs(run_id)) == before
        instance.event_log_storage.store_event_batch(starts)
        assert len(instance.all_logs(run_id)) == before + len(starts)
        assert len(starts) == 6  # two assets and a check


def test_base_dir_says_where_the_files_lie(tmp_path: Path) -> None:
    storage = BatchedSqliteEventLogStorage.from_config_value(None, {"base_dir": str(tmp_path / "there")})
    assert storage.get_logs_for_run("none") == []
    assert (tmp_path / "there" / "index.db").is_file()


def test_two_processes_that_store_batches_at_once_do_not_mix_their_tags(
    tmp_path: Path, open_instance: Callable[..., dg.DagsterInstance]
) -> None:
    home = tmp_path / "home"
    open_instance(home, 2000).dispose()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(home)}
    # Reading dagster.yaml is what switches batching on in a process of its own.
    del environment["DAGSTER_EVENT_BATCH_SIZE"]
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(home), job, str(tmp_path), other],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for job, other in (("prices_only", "returns_only"), ("returns_only", "prices_only"))
    ]
    try:
        for child in children:
            out, err = child.communicate(timeout=120)
            assert child.returncode == 0, err[-3000:]
            assert "Exception while storing event batch" not in err
            assert max(json.loads(out.splitlines()[-1])) >= PARTITIONS
    finally:
        for child in children:
            child.kill()
    with sqlite3.connect(home / "history" / "runs" / "index.db") as index:
        rows = index.execute(
            "SELECT t.asset_key, e.asset_key, e.dagster_event_type, e.partition, t.value "
            "FROM asset_event_tags t LEFT JOIN event_logs e ON e.id = t.event_id WHERE t.key = ?",
            ("dagster/data_version",),
        ).fetchall()
    by_asset = {name: [row for row in rows if row[0] == f'["{name}"]'] for name in ("prices", "returns")}
    for name, tagged in by_asset.items():
        # Each tag hangs on a materialization of its own asset, one per partition.
        assert {(row[1], row[2], row[4]) for row in tagged} == {
            (f'["{name}"]', "ASSET_MATERIALIZATION", f"{name}-1")
        }
        assert sorted(row[3] for row in tagged) == [
            k for k in DAYS.get_partition_keys() if FIRST <= k <= LAST
        ]


def _child(home: str, job: str, folder: str, other: str) -> list[int]:
    """Run `job`; the first batch waits until the other process has one as well."""
    sizes = watch_batches(setattr)
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(home)) as instance:
        Path(folder, f"ready-{job}").touch()
        for _ in range(6000):
            if Path(folder, f"ready-{other}").exists():
                break
            time.sleep(0.01)
        assert run(instance, job=job).success
    return sizes


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
