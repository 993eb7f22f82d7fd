"""Dagster's SQLite event log, with batches written as batches.

Belongs here: how events reach the instance's SQLite files; nothing about what they say. `dagster.yaml` names the class.

A run over 13 years of session partitions records one materialization per partition and asset, about 20,000 events plus
as many planned ones. The stock SQLite storage opens two connections and commits twice for each, and for checks
(which are not partitioned here) it plans one row per partition that no evaluation ever resolves: measured, 504 s
and 1.5 GB for a chain whose own work takes 30 s. Dagster hands such events over in batches when
`DAGSTER_EVENT_BATCH_SIZE` is set, but only the PostgreSQL storage makes use of that. This subclass does too; files and
tables are those of the stock storage, which can read and continue them.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

import sqlalchemy as db
from dagster import DagsterEventType, EventLogEntry, Field, StringSource
from dagster._core.events import ASSET_EVENTS
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData, serialize_value

# Every process that opens the instance imports this module first, so this is where batching is switched on.
os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "2000")


class BatchedSqliteEventLogStorage(SqliteEventLogStorage):
    """The stock SQLite event log; a batch of events is two transactions instead of two per event.

    Args:
        base_dir: folder of the SQLite files; `$DAGSTER_HOME/history/runs` (the stock place) by default.
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """`base_dir` is optional, unlike in the stock class."""
        return {"base_dir": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Called by Dagster with the configuration of `dagster.yaml`."""
        base_dir = config_value.get("base_dir")
        if base_dir is None:
            # Without DAGSTER_HOME Dagster runs on a temporary instance, and so does this.
            home = os.environ.get("DAGSTER_HOME") or tempfile.mkdtemp(prefix="dagster-")
            base_dir = os.path.join(home, "history", "runs")
        return cls(base_dir=base_dir, inst_data=inst_data)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events that Dagster collected for one run: asset events and planned checks in bulk, others singly."""
        bulk = [e for e in events if _is_asset_event(e) or _is_planned_check(e)]
        if len({e.run_id for e in bulk}) > 1:
            raise ValueError("a batch holds the events of one run")
        if bulk:
            rows = [self._event_to_row(event) for event in bulk]
            with self.run_connection(bulk[0].run_id) as connection:
                run_ids = _insert(connection, rows)
            try:
                self._store_in_index(bulk, rows)
            except BaseException:
                # Dagster answers a failed batch by storing its events one by one, so a batch must land in both files or
                # in neither. (The storage holds one lock, so the two transactions cannot be nested.)
                with self.run_connection(bulk[0].run_id) as connection:
                    table = SqlEventLogStorageTable
                    connection.execute(table.delete().where(table.c.id.between(run_ids[0], run_ids[-1])))
                raise
        for event in events:
            if not _is_asset_event(event) and not _is_planned_check(event):
                self.store_event(event)

    def _store_in_index(self, bulk: Sequence[EventLogEntry], rows: list[dict[str, Any]]) -> None:
        with self.index_transaction() as connection:
            ids = _insert(connection, rows)
            assets = [(e, i) for e, i in zip(bulk, ids, strict=True) if _is_asset_event(e)]
            checks = [(e, i) for e, i in zip(bulk, ids, strict=True) if _is_planned_check(e)]
            self._store_asset_event_tags(connection, [e for e, _ in assets], [i for _, i in assets])
            # The asset's row only keeps its newest event of each kind.
            newest_of = {(e.dagster_event.asset_key, e.dagster_event.event_type): (e, i) for e, i in assets}  # type: ignore[union-attr]
            for event, event_id in newest_of.values():
                self._store_asset_event(connection, event, event_id)
            if checks:
                planned = [self._planned_check_row(event, event_id) for event, event_id in checks]
                connection.execute(AssetCheckExecutionsTable.insert(), planned)

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        """One planned row per check and run. The stock class plans one per partition of the run even for checks that
        are not partitioned (all of ours), each with a copy of the whole partition set."""
        with self.index_connection() as connection:
            connection.execute(AssetCheckExecutionsTable.insert(), [self._planned_check_row(event, event_id)])

    def _planned_check_row(self, event: EventLogEntry, event_id: int | None) -> dict[str, Any]:
        planned = event.dagster_event.event_specific_data  # type: ignore[union-attr]
        return {
            "asset_key": planned.asset_key.to_string(),
            "check_name": planned.check_name,
            "partition": None,
            "run_id": event.run_id,
            "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
            "evaluation_event": serialize_value(event),
            "evaluation_event_timestamp": self._event_insert_timestamp(event),
            "evaluation_event_storage_id": event_id,
        }


def _insert(connection: db.Connection, rows: list[dict[str, Any]]) -> range:
    """Insert event rows and return their ids: one INSERT per row under the transaction's write lock, so consecutive."""
    connection.execute(SqlEventLogStorageTable.insert(), rows)
    newest = connection.execute(db.text("SELECT last_insert_rowid()")).scalar_one()
    return range(newest - len(rows) + 1, newest + 1)


def _is_asset_event(event: EventLogEntry) -> bool:
    return event.dagster_event is not None and event.dagster_event.event_type in ASSET_EVENTS


def _is_planned_check(event: EventLogEntry) -> bool:
    return event.dagster_event_type == DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
