"""Checks on stored tables, from one factory that is fed by the table's specification.

Belongs here: what must hold for a table after it was written, whatever its layer. Does not belong here: rules on
incoming rows (`market/validation.py`, judged before the write) and checks of one layer (its `checks.py`).
"""

import datetime as dt

import dagster as dg

from quant_assets.partitions import CALENDAR, RANGE_TAGS, updated_elsewhere
from quant_assets.presentation import markdown_table
from quant_resources.iceberg import TableSpec, Warehouse

# Runs that automation launches hold no checks of partitioned assets (Dagster 1.13), so the checks follow in the next tick,
# except after runs that brought their own.
AFTER_ITS_ASSET = (
    updated_elsewhere().since_last_handled() & ~dg.AutomationCondition.any_deps_in_progress()
).with_label("after_its_asset")
UNTAGGED_SESSIONS = 250  # newest stored sessions that a check looks at when its run has no partition
PARTITION_TAG = "dagster/partition"


def checked_sessions(
    context: dg.AssetCheckExecutionContext, warehouse: Warehouse, spec: TableSpec
) -> tuple[dt.date, dt.date] | None:
    """Sessions of the run that the check belongs to; without a partition (by hand, by automation),
    the newest 250 stored. None for an empty table."""
    tags = context.run.tags
    if PARTITION_TAG in tags:
        session = dt.date.fromisoformat(tags[PARTITION_TAG])
        return session, session
    if RANGE_TAGS[0] in tags:
        first, last = (dt.date.fromisoformat(tags[tag]) for tag in RANGE_TAGS)
        return first, last
    assert spec.slice_column
    stored = warehouse.read(spec, columns=[spec.slice_column])[spec.slice_column].to_pylist()
    if not stored:
        return None
    return max(min(stored), CALENDAR.shift(max(stored), -UNTAGGED_SESSIONS)), max(stored)


def stored_table_check(spec: TableSpec) -> dg.AssetChecksDefinition:
    """A blocking check that reads back what was written: schema and types, unique keys, sessions, known times."""

    @dg.asset_check(
        asset=dg.AssetKey(spec.name.split(".")),
        name="stored_table",
        blocking=True,
        automation_condition=AFTER_ITS_ASSET,
        description=f"As stored in Iceberg: columns and types as declared, {spec.key} unique, "
        "every session on the exchange's calendar.",
    )
    def check(
        context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Warehouse]
    ) -> dg.AssetCheckResult:
        problems: list[dict[str, object]] = []
        stored = {f.name: str(f.field_type) for f in warehouse.table(spec).schema().fields}
        declared = {c.name: c.type for c in spec.columns}
        for name, kind in declared.items():
            if stored.get(name) != kind:
                problems.append({"rule": "schema", "what": f"{name} is {stored.get(name)}, declared {kind}"})
        sessions = checked_sessions(context, warehouse, spec) if spec.slice_column else None
        rows = warehouse.read(spec, *(sessions or (None, None)))
        distinct = rows.group_by(list(spec.key)).aggregate([]).num_rows
        if distinct != rows.num_rows:
            problems.append({"rule": "unique", "what": f"{rows.num_rows - distinct} doubled {spec.key}"})
        if spec.slice_column:
            for day in sorted({*rows[spec.slice_column].unique().to_pylist()}):
                if not CALENDAR.is_session(day):
                    problems.append({"rule": "calendar", "what": CALENDAR.why_closed(day)})
        return dg.AssetCheckResult(
            passed=not problems,
            metadata={"rows": rows.num_rows, "problems": markdown_table(problems)},
        )

    return check
