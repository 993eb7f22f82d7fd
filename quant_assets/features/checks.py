"""Checks of the layer `features`: no look-ahead.

Belongs here: which sessions are proved in a run. Does not belong here: the proof (`truncation.py`).
"""

import datetime as dt
from collections.abc import Mapping

import dagster as dg
import pyarrow as pa

from quant_assets.features import tables
from quant_assets.features.labels import LabelParameters, labels
from quant_assets.features.peers import peer_features, relations
from quant_assets.features.sentiment import sentiment_features
from quant_assets.features.technical import LOOKBACK_SESSIONS, technical_features
from quant_assets.features.truncation import Build, truncation_violations
from quant_assets.market import tables as market_tables
from quant_assets.market.arrivals import without_waiting
from quant_assets.market.tables import BARS, NEWS
from quant_assets.partitions import CALENDAR
from quant_assets.presentation import markdown_table
from quant_assets.table_checks import AFTER_ITS_ASSET, PARTITION_TAG, RANGE_TAGS, checked_sessions
from quant_resources.iceberg import TableSpec, Warehouse
from quant_resources.peers import PeerFinder
from quant_resources.sources import MarketSource

PROVED_SESSIONS = 12
# Rows after the session under proof that the rebuild must not need. Without them nothing could be cut away.
SESSIONS_AFTER = 5


def proved_sessions(first: dt.date, last: dt.date) -> list[dt.date]:
    """Sessions to prove in a range: all of a short one, else evenly spaced ones with both ends."""
    sessions = CALENDAR.sessions(first, last)
    if len(sessions) <= PROVED_SESSIONS:
        return sessions
    step = (len(sessions) - 1) / (PROVED_SESSIONS - 1)
    return [sessions[round(i * step)] for i in range(PROVED_SESSIONS)]


def prove(
    build: Build,
    inputs: Mapping[str, TableSpec],
    spec: TableSpec,
    warehouse: Warehouse,
    first: dt.date,
    last: dt.date,
    stored_rows: bool = True,
) -> tuple[list[dt.date], list[dict[str, object]]]:
    """Run the truncation proof on stored tables; reads only the sessions around each proved one.

    With `stored_rows` false it compares with what the same build makes of everything, instead of with the rows that are stored.
    """
    violations: list[dict[str, object]] = []
    sessions = proved_sessions(first, last)
    assert spec.slice_column
    for session in sessions:
        window = CALENDAR.shift(session, -LOOKBACK_SESSIONS), CALENDAR.shift(session, SESSIONS_AFTER)
        known = {name: warehouse.read(table, *window) for name, table in inputs.items()}
        stored = (
            warehouse.read(spec, session, session)
            if stored_rows
            else spec.conform(build(known, session, session))
        )
        violations += truncation_violations(build, known, stored, [session], CALENDAR, spec.slice_column)
    return sessions, violations


def _result(sessions: list[dt.date], violations: list[dict[str, object]]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not violations,
        description=None
        if not violations
        else f"{len(violations)} value(s) change when the future is cut away",
        metadata={
            "sessions proved": ", ".join(str(s) for s in sessions),
            "violations": markdown_table(violations),
        },
    )


def _truncation_check(spec: TableSpec):  # type: ignore[no-untyped-def]
    return dg.asset_check(
        asset=dg.AssetKey(spec.name.split(".")),
        name="no_look_ahead",
        blocking=True,
        automation_condition=AFTER_ITS_ASSET,
        description="Rebuilt from only what was available at each session's close, the stored rows come out bit for "
        "bit.",
    )


@_truncation_check(tables.TECHNICAL)
def technical_no_look_ahead(
    context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Warehouse]
) -> dg.AssetCheckResult:
    """Truncation proof of features/technical."""
    sessions = checked_sessions(context, warehouse, tables.TECHNICAL)
    if sessions is None:
        return _result([], [])

    def build(inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date) -> pa.Table:
        return technical_features(inputs["bars"], CALENDAR, first, last)

    return _result(*prove(build, {"bars": BARS}, tables.TECHNICAL, warehouse, *sessions))


@_truncation_check(tables.SENTIMENT)
def sentiment_no_look_ahead(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    source: dg.ResourceParam[MarketSource],
) -> dg.AssetCheckResult:
    """Truncation proof of features/sentiment."""
    sessions = checked_sessions(context, warehouse, tables.SENTIMENT)
    if sessions is None:
        return _result([], [])
    origin = "simulated" if source.news_is_simulated else source.name
    coverage = warehouse.read(market_tables.COVERAGE, only="news")

    def build(inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date) -> pa.Table:
        bars = without_waiting(inputs["bars"], coverage)
        return sentiment_features(inputs["news"], bars, CALENDAR, first, last, origin)

    return _result(*prove(build, {"bars": BARS, "news": NEWS}, tables.SENTIMENT, warehouse, *sessions))


@_truncation_check(tables.PEERS)
def peers_no_look_ahead(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    source: dg.ResourceParam[MarketSource],
    peer_finder: dg.ResourceParam[PeerFinder],
) -> dg.AssetCheckResult:
    """Truncation proof of features/peers. Bars and news are cut; who counts for whom is given (`competitors_known_then`)."""
    sessions = checked_sessions(context, warehouse, tables.PEERS)
    if sessions is None:
        return _result([], [])
    origin = "simulated" if source.news_is_simulated else source.name
    coverage = warehouse.read(market_tables.COVERAGE, only="news")
    related = relations(
        warehouse.read(market_tables.PEERS), warehouse.read(market_tables.SECURITIES), peer_finder.name
    )

    def build(inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date) -> pa.Table:
        bars = without_waiting(inputs["bars"], coverage, related)
        return peer_features(inputs["news"], bars, related, CALENDAR, first, last, origin)

    inputs = {"bars": BARS, "news": NEWS}
    proved, violations = prove(build, inputs, tables.PEERS, warehouse, *sessions)
    own_rows = PARTITION_TAG in context.run.tags or RANGE_TAGS[0] in context.run.tags
    if violations and not own_rows:
        # The rows are older than the check, and lists or industries may have changed since. Whether the build peeks is still to be seen.
        _, peeking = prove(build, inputs, tables.PEERS, warehouse, *sessions, stored_rows=False)
        if not peeking:
            return dg.AssetCheckResult(
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"{len(violations)} stored value(s) differ from what today's lists of competitors, industries and news give for "
                "these sessions. Today's build does not look ahead; what the stored rows were made of is not shown. Materialize "
                "features/peers again for these sessions.",
                metadata={"stale": markdown_table(violations)},
            )
    return _result(proved, violations)


@dg.asset_check(
    asset=dg.AssetKey(["features", "peers"]),
    name="competitors_known_then",
    automation_condition=AFTER_ITS_ASSET,
    description="Every row uses a list of competitors that is not younger than its session. A warning: where a symbol has no older list, its "
    "first one is used, so who counts as a competitor is known with hindsight (companies that turned out to matter, and none that were "
    "forgotten since); what was said of them is not. A backtest over such sessions may flatter the competitors' sentiment. On the sample "
    "it always warns: its lists were made at its end, in 2013. It also warns of rows without any list whose symbol has one of another peer "
    "finder: QUANT_PEER_FINDER was changed and market/peers not materialized since.",
)
def competitors_known_then(
    context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Warehouse]
) -> dg.AssetCheckResult:
    """Share of rows whose list of competitors is younger than the session, or is missing though another finder has one."""
    import pyarrow.compute as pc

    sessions = checked_sessions(context, warehouse, tables.PEERS)
    rows = (
        warehouse.read(tables.PEERS, *sessions, ["symbol", "session", "peers_as_of"])
        if sessions
        else tables.PEERS.arrow_schema.empty_table()
    )
    younger = rows.filter(pc.greater(rows["peers_as_of"], rows["session"]))
    shown = younger.group_by(["symbol", "peers_as_of"]).aggregate([("session", "min"), ("session", "max")])
    answers = warehouse.read(market_tables.PEERS)
    unlisted = rows.filter(
        pc.and_(pc.is_null(rows["peers_as_of"]), pc.is_in(rows["symbol"], answers["symbol"]))
    )
    without = sorted(unlisted["symbol"].unique().to_pylist())
    told = []
    if younger.num_rows:
        told.append(
            f"{younger.num_rows} of {rows.num_rows} row(s) use a list that was made after their session"
        )
    if without:
        finders = (
            answers.filter(pc.is_in(answers["symbol"], pa.array(without)))["finder"].unique().to_pylist()
        )
        told.append(
            f"{unlisted.num_rows} of {rows.num_rows} row(s) have no list, though market.peers has one of their symbols "
            f"({', '.join(without[:10])}; of {', '.join(sorted(finders))}): materialize market/peers with the peer finder that is chosen "
            "now, then features/peers"
        )
    return dg.AssetCheckResult(
        passed=not told,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(told) or None,
        metadata={
            "rows": rows.num_rows,
            "share of rows whose list is younger": younger.num_rows / max(rows.num_rows, 1),
            "share of rows without a list": rows["peers_as_of"].null_count / max(rows.num_rows, 1),
            "lists": markdown_table(
                [
                    {
                        "symbol": row["symbol"],
                        "list of": str(row["peers_as_of"]),
                        "used from": str(row["session_min"]),
                        "to": str(row["session_max"]),
                    }
                    for row in shown.sort_by(
                        [("symbol", "ascending"), ("peers_as_of", "ascending")]
                    ).to_pylist()
                ]
            ),
        },
    )


@_truncation_check(tables.LABELS)
def labels_no_look_ahead(
    context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Warehouse]
) -> dg.AssetCheckResult:
    """Truncation proof of features/labels: complete at the close of `known_session`, not a session earlier."""
    sessions = checked_sessions(context, warehouse, tables.LABELS)
    if sessions is None:
        return _result([], [])
    stored = warehouse.read(tables.LABELS, *sessions)
    if not stored.num_rows:
        return _result([], [])
    row = stored.slice(stored.num_rows - 1).to_pylist()[0]
    names = ("horizon_sessions", "profit_target_pct", "stop_loss_pct", "rule")
    parameters = LabelParameters(**{name: row[name] for name in names})

    def build(inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date) -> pa.Table:
        return labels(inputs["bars"], CALENDAR, first, last, parameters)

    return _result(*prove(build, {"bars": BARS}, tables.LABELS, warehouse, *sessions))
