"""Dagster's door to the warehouse: assets return and receive Arrow tables.

Belongs here: which slice a run's partitions mean, and what the UI shows of a write. Does not belong here: pyiceberg
(`iceberg.py`) and anything that one asset alone wants to show.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import dagster as dg
import pyarrow as pa

from quant_resources.iceberg import TableSpec, Warehouse

PREVIEW_ROWS = 8


def table_metadata(spec: TableSpec) -> dict[str, object]:
    """Definition metadata of the asset behind a table: its name and its column schema with descriptions."""
    columns = [
        dg.TableColumn(
            c.name, c.type, c.description, constraints=dg.TableColumnConstraints(nullable=not c.required)
        )
        for c in spec.columns
    ]
    return {"dagster/table_name": spec.name, "dagster/column_schema": dg.TableSchema(columns=columns)}


def table_preview(data: pa.Table, rows: int = PREVIEW_ROWS, columns: int = 10) -> dg.MarkdownMetadataValue:
    """The last rows of a table as markdown."""
    part = data.slice(max(data.num_rows - rows, 0)).select(data.column_names[:columns])
    if not part.num_rows:
        return dg.MetadataValue.md("*no rows*")
    header = "| " + " | ".join(part.column_names) + " |"
    lines = [header, "|" + " --- |" * len(part.column_names)]
    for row in part.to_pylist():
        cells = [_cell(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    if len(data.column_names) > columns:
        lines.append(f"\n*and {len(data.column_names) - columns} more columns*")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, dt.datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}Z"
    return str(value).replace("|", "\\|")


def partition_range(context: dg.OutputContext | dg.InputContext) -> tuple[dt.date | None, dt.date | None]:
    """First and last session of the run's partitions, or (None, None) when the asset has none."""
    if not context.has_asset_partitions:
        return None, None
    keys = context.asset_partition_key_range
    return dt.date.fromisoformat(keys.start), dt.date.fromisoformat(keys.end)


class IcebergIOManager(dg.IOManager):
    """Writes an asset's Arrow table into the slice of its partitions, and reads the slices that an input maps to.

    Args:
        warehouse: where the tables are.
        tables: table by asset key (`market/bars` -> specification of `market.bars`).
    """

    def __init__(self, warehouse: Warehouse, tables: Mapping[dg.AssetKey, TableSpec]) -> None:
        self.warehouse = warehouse
        self.tables = tables

    def _spec(self, key: dg.AssetKey) -> TableSpec:
        if key not in self.tables:
            raise KeyError(
                f"asset {key.to_user_string()} has no table; declare a TableSpec in its layer's tables.py"
            )
        return self.tables[key]

    def handle_output(self, context: dg.OutputContext, obj: pa.Table) -> None:
        """Replace the slice of the run's partitions by `obj`, in one snapshot."""
        spec = self._spec(context.asset_key)
        first, last = partition_range(context)
        result = self.warehouse.write(
            spec,
            obj,
            first,
            last,
            {
                "quant.run_id": context.run_id,
                "quant.partition": "" if first is None else f"{first}..{last}",
                "quant.code_version": context.version or "",
            },
        )
        context.add_output_metadata(
            {
                "dagster/row_count": result.rows_total,
                "dagster/partition_row_count": result.rows_written,
                "snapshot_id": str(result.snapshot_id),
                "commits_tried": result.attempts,
            }
        )

    def load_input(self, context: dg.InputContext) -> pa.Table:
        """Rows of the upstream partitions that this run maps to; the whole table for an unpartitioned upstream."""
        spec = self._spec(context.asset_key)
        if not context.has_asset_partitions:
            return self.warehouse.read(spec)
        first, last = partition_range(context)
        return self.warehouse.read(spec, first, last)
