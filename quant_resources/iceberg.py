"""The Iceberg warehouse: table specifications, idempotent slice writes, reads, maintenance.

Belongs here: everything that knows pyiceberg. Does not belong here: Dagster (see `io_manager.py`) and the schemas of
single tables (each layer's `tables.py` declares its own with `TableSpec`).

A write replaces one slice of a table (a range of sessions, or the whole table) in **one commit with one snapshot**.
pyiceberg's own `overwrite` makes two or three snapshots and leaves one small file per night, so the commit is built
here with the library's overwrite producer: the files that the slice touches are read, their other rows kept, and one
sorted file per table partition is written in their place. A year of 500 symbols is about 126,000 rows, so rewriting
it each night costs well under a second and small files never pile up.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlparse

import pyarrow as pa

from quant_resources.settings import creating

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table
    from pyiceberg.types import PrimitiveType

logger = logging.getLogger(__name__)

COMMIT_ATTEMPTS = 30

_ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "date": pa.date32(),
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "double": pa.float64(),
    "long": pa.int64(),
    "int": pa.int32(),
    "boolean": pa.bool_(),
}
ColumnType = Literal["string", "date", "timestamptz", "double", "long", "int", "boolean"]


class WarehouseError(RuntimeError):
    """A table could not be read or written. The message names the table, the reason and the way out."""


@dataclass(frozen=True)
class Column:
    """One column of a table: name, type, what it means (with its unit), and whether it may be null."""

    name: str
    type: ColumnType
    description: str
    required: bool = False


@dataclass(frozen=True)
class TableSpec:
    """Everything that the warehouse, the checks and the UI need to know of one table.

    Attributes:
        name: `<layer>.<table>`, which is also the asset key.
        columns: in stored order.
        key: columns that identify a row; unique.
        slice_column: what one write replaces: a date column, of which a range (a Dagster partition or a range of them),
            or a string column, of which one value (`only`); None for tables that are always replaced whole.
        partition_by: Iceberg partitioning; `value` is the value of a string `slice_column`. Never one file per session.
        description: what one row is.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    slice_column: str | None = None
    partition_by: Literal["year", "month", "symbol", "value"] | None = None
    description: str = ""

    @property
    def namespace(self) -> str:
        """The layer."""
        return self.name.split(".")[0]

    @property
    def arrow_schema(self) -> pa.Schema:
        """The schema as Arrow, nullability included."""
        return pa.schema(
            [pa.field(c.name, _ARROW_TYPES[c.type], nullable=not c.required) for c in self.columns]
        )

    def conform(self, data: pa.Table) -> pa.Table:
        """Reorder and cast `data` to this schema, sorted by key.

        Raises:
            WarehouseError: a column is missing or unknown, cannot be cast without loss, or a required value is null.
        """
        wanted, have = [c.name for c in self.columns], data.column_names
        if missing := [name for name in wanted if name not in have]:
            raise WarehouseError(
                f"table {self.name}: column(s) {', '.join(missing)} are missing; got {', '.join(have)}"
            )
        if unknown := [name for name in have if name not in wanted]:
            raise WarehouseError(
                f"table {self.name}: unknown column(s) {', '.join(unknown)}; expected {', '.join(wanted)}"
            )
        data = data.select(wanted)
        for column in self.columns:
            if column.required and data[column.name].null_count:
                raise WarehouseError(
                    f"table {self.name}: {data[column.name].null_count} null(s) in required column {column.name}"
                )
        columns = []
        for name, wanted_type in zip(self.arrow_schema.names, self.arrow_schema.types, strict=True):
            if (
                pa.types.is_timestamp(data[name].type)
                and pa.types.is_timestamp(wanted_type)
                and data[name].type.tz is None
            ):
                raise WarehouseError(f"table {self.name}: column {name} has no time zone; give it one (UTC)")
            try:
                columns.append(data[name].cast(wanted_type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
                raise WarehouseError(f"table {self.name}: column {name}: {error}") from error
        data = pa.table(columns, schema=self.arrow_schema)
        return data.sort_by([(name, "ascending") for name in self.key]).combine_chunks()


@dataclass(frozen=True)
class WriteResult:
    """What one write did.

    Attributes:
        snapshot_id: the snapshot that the write made.
        rows_written: rows of the slice.
        rows_total: rows of the table afterwards.
        attempts: commits tried; more than one means that a concurrent writer was there.
    """

    snapshot_id: int
    rows_written: int
    rows_total: int
    attempts: int


def _iceberg_type(name: ColumnType) -> PrimitiveType:
    from pyiceberg import types

    return {
        "string": types.StringType,
        "date": types.DateType,
        "timestamptz": types.TimestamptzType,
        "double": types.DoubleType,
        "long": types.LongType,
        "int": types.IntegerType,
        "boolean": types.BooleanType,
    }[name]()


def _iceberg_schema(spec: TableSpec) -> Schema:
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    return Schema(
        *[
            NestedField(i, c.name, _iceberg_type(c.type), required=c.required, doc=c.description)
            for i, c in enumerate(spec.columns, start=1)
        ]
    )


class Warehouse:
    """Iceberg tables on a local SQLite catalog.

    Args:
        home: `QUANT_HOME`; the catalog is `catalog.db`, the data lie under `warehouse/`.
    """

    def __init__(self, home: Path) -> None:
        self.home = Path(home).absolute()
        # pyiceberg plans scans through a thread pool, but one catalog object is not meant for concurrent creation.
        self._lock = threading.Lock()

    @cached_property
    def catalog(self) -> Catalog:
        """The SQL catalog, created on first use."""
        from pyiceberg.catalog.sql import SqlCatalog
        from sqlalchemy.exc import OperationalError

        warehouse = self.home / "warehouse"
        try:
            warehouse.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WarehouseError(
                f"warehouse {warehouse} cannot be created: {error.strerror}. Point QUANT_HOME at a writable folder."
            ) from error
        try:
            with creating(self.home):
                # `timeout` is SQLite's busy wait in seconds: concurrent runs queue instead of failing.
                return SqlCatalog(
                    "quant",
                    uri=f"sqlite:///{self.home / 'catalog.db'}?timeout=60",
                    # A plain path: pyiceberg does not decode the escapes of a file:// address.
                    warehouse=str(warehouse),
                )
        except OperationalError as error:
            raise WarehouseError(
                f"catalog {self.home / 'catalog.db'} cannot be opened: {error.orig}"
            ) from error

    # -- tables ----------------------------------------------------------------------------------------------------

    def exists(self, spec: TableSpec) -> bool:
        """Whether the table has been created."""
        return self.catalog.table_exists(spec.name)

    def table(self, spec: TableSpec) -> Table:
        """Load the table, creating it (or adding columns that the specification gained, and allowing nulls where it now does) when
        need be.
        """
        from pyiceberg.exceptions import NoSuchTableError

        try:
            table = self.catalog.load_table(spec.name)
        except NoSuchTableError:
            table = self._create(spec)
        known = {f.name: str(f.field_type) for f in table.schema().fields}
        for column in spec.columns:
            if column.name in known and known[column.name] != column.type:
                raise WarehouseError(
                    f"table {spec.name}: column {column.name} is stored as {known[column.name]} and declared as "
                    f"{column.type}. Declare the stored type, or write the table anew under another QUANT_HOME."
                )
        new = [c for c in spec.columns if c.name not in known]
        strict = {f.name for f in table.schema().fields if f.required}
        looser = [c for c in spec.columns if c.name in strict and not c.required]
        if new or looser:
            with table.update_schema() as update:
                for column in new:
                    update.add_column(column.name, _iceberg_type(column.type), doc=column.description)
                for column in looser:
                    update.update_column(column.name, required=False)
        return table

    def _create(self, spec: TableSpec) -> Table:
        from pyiceberg.partitioning import PartitionField, PartitionSpec
        from pyiceberg.table.sorting import SortField, SortOrder
        from pyiceberg.transforms import IdentityTransform, MonthTransform, Transform, YearTransform

        schema = _iceberg_schema(spec)
        partition_spec = PartitionSpec()
        if spec.partition_by:
            source = "symbol" if spec.partition_by == "symbol" else spec.slice_column
            if source is None:
                raise WarehouseError(
                    f"table {spec.name} is partitioned by {spec.partition_by} without a slice_column"
                )
            transform: Transform = {
                "year": YearTransform(),
                "month": MonthTransform(),
                "symbol": IdentityTransform(),
                "value": IdentityTransform(),
            }[spec.partition_by]
            partition_spec = PartitionSpec(
                PartitionField(
                    schema.find_field(source).field_id, 1000, transform, f"{source}_{spec.partition_by}"
                )
            )
        with self._lock:
            self._create_namespace(spec.namespace)
            return self.catalog.create_table_if_not_exists(
                spec.name,
                schema=schema,
                partition_spec=partition_spec,
                sort_order=SortOrder(
                    *[SortField(schema.find_field(k).field_id, IdentityTransform()) for k in spec.key]
                ),
                properties={
                    "comment": spec.description,
                    "write.parquet.compression-codec": "zstd",
                    # A lost race is retried by `write` from the read on: replaying only the commit would put back
                    # rows that the winner replaced.
                    "commit.retry.num-retries": "0",
                },
            )

    def _create_namespace(self, namespace: str) -> None:
        from sqlalchemy.exc import IntegrityError

        try:
            self.catalog.create_namespace_if_not_exists(namespace)
        except IntegrityError:
            # Another process created it between the look and the insert.
            if (namespace,) not in self.catalog.list_namespaces():
                raise

    # -- write -----------------------------------------------------------------------------------------------------

    def write(
        self,
        spec: TableSpec,
        data: pa.Table,
        first: dt.date | None = None,
        last: dt.date | None = None,
        properties: Mapping[str, str] | None = None,
        only: str | None = None,
    ) -> WriteResult:
        """Replace the slice `first <= slice_column <= last` or `slice_column = only` (or the whole table) by `data`.

        One snapshot.

        Idempotent: the same call twice leaves identical rows and one more snapshot. Safe under concurrency: when
        another writer commits first, the slice is planned again on top of its snapshot and nothing is lost.

        Args:
            spec: the table.
            data: rows of the slice, columns as in `spec`; unique by `spec.key`.
            first: first date of the slice, None for the whole table.
            last: last date of the slice.
            properties: recorded in the snapshot's summary (run id, partition, code version).
            only: the value of the slice, for a table sliced by a string column.

        Raises:
            WarehouseError: schema mismatch, duplicate keys, rows outside the slice, disk full or not writable,
                or still beaten by other writers after 30 attempts. The table is then as it was.
        """
        from pyiceberg.exceptions import CommitFailedException, ValidationException
        from sqlalchemy.exc import SQLAlchemyError

        data = spec.conform(data)
        self._require_unique(spec, data)
        part = _Slice(first, last, only)
        self._require_inside(spec, data, part)
        table: Table | None = None
        for attempt in range(1, COMMIT_ATTEMPTS + 1):
            try:
                table = self.table(spec)
                snapshot_id = self._replace(table, spec, data, part, dict(properties or {}))
            except (CommitFailedException, ValidationException) as error:
                if attempt == COMMIT_ATTEMPTS:
                    raise WarehouseError(
                        f"table {spec.name}: {attempt} commits lost against other writers; last: {error}"
                    ) from error
                logger.info(
                    "table %s: a concurrent writer won, planning the slice again (%d)", spec.name, attempt
                )
                time.sleep(random.uniform(0.02, 0.1) * min(attempt, 10))
            except (OSError, SQLAlchemyError) as error:
                raise WarehouseError(
                    f"table {spec.name} cannot be written under {self.home}: {error}. The table is as it was. "
                    "Free space or permissions there, or point QUANT_HOME elsewhere, and run again."
                ) from error
            else:
                table = self.catalog.load_table(spec.name)
                snapshot = table.snapshot_by_id(snapshot_id)
                total = int(snapshot.summary["total-records"]) if snapshot and snapshot.summary else 0  # type: ignore[arg-type]
                return WriteResult(snapshot_id, data.num_rows, total, attempt)
        raise AssertionError("unreachable")

    def _replace(
        self,
        table: Table,
        spec: TableSpec,
        data: pa.Table,
        part: _Slice,
        properties: dict[str, str],
    ) -> int:
        import pyarrow.compute as pc
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files

        scan = table.scan(row_filter=_slice_filter(spec, part))
        tasks = list(scan.plan_files())
        # A table may know columns that this specification does not (written by newer code): rows of other slices keep
        # theirs, and the new rows have none.
        for unknown in table.schema().as_arrow():
            if unknown.name not in data.column_names:
                data = data.append_column(unknown, pa.nulls(data.num_rows, unknown.type))
        if spec.slice_column and not part.whole:
            # Rows of the touched table partitions that stay. Data that go to a partition without a touched file
            # simply make a new file there.
            tasks = self._files_of_partitions(table, spec, data, tasks)
            if tasks:
                kept = ArrowScan(
                    table_metadata=table.metadata,
                    io=table.io,
                    projected_schema=table.schema(),
                    row_filter=AlwaysTrue(),
                ).to_table(tasks)
                outside = pc.invert(_inside(kept[spec.slice_column], part))
                kept = kept.filter(outside).select(data.column_names).cast(_as_nullable(data.schema))
                rows = pa.concat_tables([kept, data.cast(_as_nullable(data.schema))])
                data = rows.sort_by([(name, "ascending") for name in spec.key])
        data = data.cast(_matching_nullability(data.schema, table.schema().as_arrow()))
        with table.transaction() as transaction:
            producer = transaction.update_snapshot(snapshot_properties=properties).overwrite()
            with producer as overwrite:
                for task in tasks:
                    overwrite.delete_data_file(task.file)
                if data.num_rows:
                    for file in _dataframe_to_data_files(
                        table_metadata=transaction.table_metadata,
                        df=data,
                        io=table.io,
                        write_uuid=uuid.uuid4(),
                    ):
                        overwrite.append_data_file(file)
            return producer.snapshot_id

    @staticmethod
    def _files_of_partitions(table: Table, spec: TableSpec, data: pa.Table, touched: list) -> list:
        """All files of the table partitions that the slice or its new rows fall into: they become one file each."""
        everything = list(table.scan().plan_files())
        if spec.partition_by is None:
            return everything
        days = data[spec.slice_column].unique().to_pylist()
        keys: set[object]
        if spec.partition_by == "value":
            keys = set(days)
        elif spec.partition_by == "year":
            keys = {day.year - 1970 for day in days}
        elif spec.partition_by == "month":
            keys = {(day.year - 1970) * 12 + day.month - 1 for day in days}
        else:
            keys = set(data["symbol"].unique().to_pylist())
        keys |= {task.file.partition[0] for task in touched}
        return [task for task in everything if task.file.partition[0] in keys]

    @staticmethod
    def _require_unique(spec: TableSpec, data: pa.Table) -> None:
        import pyarrow.compute as pc

        counts = data.group_by(list(spec.key)).aggregate([([], "count_all")])
        doubled = counts.filter(pc.greater(counts["count_all"], 1))
        if doubled.num_rows:
            raise WarehouseError(
                f"table {spec.name}: {doubled.num_rows} key(s) {spec.key} occur more than once, "
                f"first {doubled.slice(0, 3).to_pylist()}"
            )

    @staticmethod
    def _require_inside(spec: TableSpec, data: pa.Table, part: _Slice) -> None:
        import pyarrow.compute as pc

        if part.whole:
            return
        if spec.slice_column is None:
            raise WarehouseError(f"table {spec.name} has no slice_column; it is always replaced whole")
        column = data[spec.slice_column]
        if data.num_rows and not pc.all(_inside(column, part)).as_py():
            bounds = pc.min_max(column).as_py()
            raise WarehouseError(
                f"table {spec.name}: {spec.slice_column} {bounds['min']}..{bounds['max']} does not fit the slice {part}"
            )

    # -- read ------------------------------------------------------------------------------------------------------

    def read(
        self,
        spec: TableSpec,
        first: dt.date | None = None,
        last: dt.date | None = None,
        columns: list[str] | None = None,
        snapshot_id: int | None = None,
        only: str | None = None,
    ) -> pa.Table:
        """Rows of a slice (see `write`), sorted by key; a table that does not exist yet is empty.

        Args:
            spec: the table.
            first: first date; None for no lower bound.
            last: last date; None for no upper bound.
            columns: subset of columns.
            snapshot_id: read the table as it was at this snapshot.
            only: one value of a string `slice_column`.
        """
        names = columns or [c.name for c in spec.columns]
        if not self.exists(spec):
            return spec.arrow_schema.empty_table().select(names)
        table = self.table(spec)
        schema = table.schema()
        if snapshot_id is not None:
            snapshot = table.snapshot_by_id(snapshot_id)
            if snapshot is None:
                raise WarehouseError(
                    f"table {spec.name} has no snapshot {snapshot_id}; it was expired by maintenance or never existed"
                )
            schema = table.schemas()[
                snapshot.schema_id if snapshot.schema_id is not None else schema.schema_id
            ]
        stored = {field.name for field in schema.fields}
        wanted = dict.fromkeys([*names, *spec.key])
        data = table.scan(
            row_filter=_slice_filter(spec, _Slice(first, last, only)),
            snapshot_id=snapshot_id,
            selected_fields=tuple(name for name in wanted if name in stored),
        ).to_arrow()
        data = data.sort_by([(name, "ascending") for name in spec.key])
        columns_read, fields = [], []
        for name in names:
            field = spec.arrow_schema.field(name)
            # A column that is younger than the rows is null there.
            column = data[name].cast(field.type) if name in stored else pa.nulls(data.num_rows, field.type)
            columns_read.append(column)
            fields.append(field.with_nullable(True) if column.null_count else field)
        return pa.table(columns_read, schema=pa.schema(fields)).combine_chunks()

    def snapshot_id(self, spec: TableSpec) -> int | None:
        """The current snapshot's id; None while the table is empty or missing."""
        if not self.exists(spec):
            return None
        snapshot = self.catalog.load_table(spec.name).current_snapshot()
        return snapshot.snapshot_id if snapshot else None

    def snapshots(self, spec: TableSpec) -> list[dict[str, object]]:
        """The table's snapshots, oldest first: id, instant (UTC) and summary."""
        if not self.exists(spec):
            return []
        return [
            {
                "snapshot_id": s.snapshot_id,
                "committed_at": dt.datetime.fromtimestamp(s.timestamp_ms / 1000, dt.UTC),
                "summary": dict(s.summary.additional_properties) if s.summary else {},
            }
            for s in self.catalog.load_table(spec.name).metadata.snapshots
        ]

    # -- maintenance -----------------------------------------------------------------------------------------------

    def table_names(self) -> list[str]:
        """Every table of the catalog, `<layer>.<table>`."""
        return sorted(
            ".".join(name)
            for space in self.catalog.list_namespaces()
            for name in self.catalog.list_tables(space)
        )

    def maintain(self, name: str, keep: dt.timedelta, now: dt.datetime | None = None) -> dict[str, int]:
        """Expire snapshots older than `keep` and delete files that no snapshot refers to any more.

        Files younger than `keep` stay, because a run that is writing now has not committed them yet. Small files need
        no compaction: every write leaves one file per table partition.

        Returns:
            Counts: `expired_snapshots`, `deleted_files`, `freed_bytes`.
        """
        cutoff = (now or dt.datetime.now(dt.UTC)) - keep
        table = self.catalog.load_table(name)
        before = len(table.metadata.snapshots)
        table.maintenance.expire_snapshots().older_than(cutoff).commit()
        table = self.catalog.load_table(name)
        live: set[Path] = set()
        for snapshot in table.metadata.snapshots:
            live.add(_local_path(snapshot.manifest_list))
            for manifest in snapshot.manifests(table.io):
                live.add(_local_path(manifest.manifest_path))
                live |= {
                    _local_path(entry.data_file.file_path)
                    for entry in manifest.fetch_manifest_entry(table.io)
                }
        live.add(_local_path(table.metadata_location))
        deleted = freed = 0
        for path in _local_path(table.metadata.location).rglob("*"):
            # A table's current metadata lists its forerunners; they are only history and go with their age.
            if path.is_file() and path not in live and path.stat().st_mtime < cutoff.timestamp():
                freed += path.stat().st_size
                path.unlink()
                deleted += 1
        return {
            "expired_snapshots": before - len(table.metadata.snapshots),
            "deleted_files": deleted,
            "freed_bytes": freed,
        }


@dataclass(frozen=True)
class _Slice:
    """A range of dates, or one value of a string column, or (all None) the whole table."""

    first: dt.date | None = None
    last: dt.date | None = None
    only: str | None = None

    @property
    def whole(self) -> bool:
        return self.first is None and self.last is None and self.only is None

    def __str__(self) -> str:
        return self.only if self.only is not None else f"{self.first}..{self.last}"


def _inside(column: pa.ChunkedArray, part: _Slice) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    inside = pc.is_valid(column)
    if part.only is not None:
        inside = pc.and_(inside, pc.equal(column, pa.scalar(part.only)))
    if part.first is not None:
        inside = pc.and_(inside, pc.greater_equal(column, pa.scalar(part.first)))
    if part.last is not None:
        inside = pc.and_(inside, pc.less_equal(column, pa.scalar(part.last)))
    return inside


def _as_nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def _matching_nullability(schema: pa.Schema, stored: pa.Schema) -> pa.Schema:
    """Fields of `schema` with the nullability that the table has: Iceberg refuses nullable data for a required column."""
    return pa.schema([field.with_nullable(stored.field(field.name).nullable) for field in schema])


def _local_path(location: str) -> Path:
    return Path(unquote(urlparse(location).path)) if location.startswith("file:") else Path(location)


def _slice_filter(spec: TableSpec, part: _Slice) -> str | BooleanExpression:
    from pyiceberg.expressions import AlwaysTrue

    if part.whole:
        return AlwaysTrue()
    if spec.slice_column is None:
        raise WarehouseError(f"table {spec.name} has no slice_column; it cannot be read or written in slices")
    kind = next(column.type for column in spec.columns if column.name == spec.slice_column)
    if (kind == "string") != (part.only is not None) or (part.only is not None and (part.first or part.last)):
        raise WarehouseError(
            f"table {spec.name} is sliced by {spec.slice_column} ({kind}), {part} is no slice of it: give one value "
            "(only) for a string, a range (first, last) for a date"
        )
    if part.only is not None and "'" in part.only:
        raise WarehouseError(f"table {spec.name}: the slice {part.only!r} must not contain a quote")
    terms = [
        f"{spec.slice_column} {operator} '{value}'"
        for operator, value in (("=", part.only), (">=", part.first), ("<=", part.last))
        if value is not None
    ]
    return " and ".join(terms)
