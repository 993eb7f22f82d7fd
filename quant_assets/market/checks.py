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
    description="The newest stored session is the last one that has closed (or the sample's last), and none before it is empty.",
)
def newest_session(warehouse: dg.ResourceParam[Warehouse]) -> dg.AssetCheckResult:
    """Warns when the table lags behind the exchange."""
    import pyarrow.compute as pc

    now = dt.datetime.now(dt.UTC)
    until = LAST_SESSION or now.date()
    closed = [s for s in CALENDAR.sessions(until - dt.timedelta(days=14), until) if CALENDAR.close(s) <= now]
    stored = warehouse.read(tables.BARS, columns=["session"])["session"].unique()
    newest = pc.max(stored).as_py()
    behind = len([s for s in closed if newest is None or s > newest])
    have = set(stored.to_pylist())
    holes = [s for s in CALENDAR.sessions(min(have), newest) if s not in have] if have else []
    found = [f"{behind} session(s) behind"] if behind else []
    if holes:
        found.append(f"{len(holes)} session(s) before the newest have no bar at all, the first {holes[0]}")
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(found) or "up to date",
        metadata={
            "newest": str(newest),
            "expected": str(closed[-1]),
            "sessions without a bar": ", ".join(map(str, holes[:50])),
        },
    )
