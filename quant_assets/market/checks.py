"""Checks of the layer `market` on what is stored.

Belongs here: freshness by session. Does not belong here: rules on incoming rows (`validation.py`, judged before the
write) and what must hold for every table (`quant_assets/table_checks.py`).
"""

import datetime as dt

import dagster as dg

from quant_assets.market import tables
from quant_assets.partitions import CALENDAR, LAST_SESSION
from quant_resources.iceberg import Warehouse


@dg.asset_check(
    asset=dg.AssetKey(["market", "bars"]),
    name="newest_session",
    description="The newest stored session is the last one that has closed (or the sample's last).",
)
def newest_session(warehouse: dg.ResourceParam[Warehouse]) -> dg.AssetCheckResult:
    """Warns when the table lags behind the exchange."""
    import pyarrow.compute as pc

    now = dt.datetime.now(dt.UTC)
    until = LAST_SESSION or now.date()
    closed = [s for s in CALENDAR.sessions(until - dt.timedelta(days=14), until) if CALENDAR.close(s) <= now]
    newest = pc.max(warehouse.read(tables.BARS, columns=["session"])["session"]).as_py()
    behind = len([s for s in closed if newest is None or s > newest])
    return dg.AssetCheckResult(
        passed=behind == 0,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{behind} session(s) behind" if behind else "up to date",
        metadata={"newest": str(newest), "expected": str(closed[-1])},
    )
