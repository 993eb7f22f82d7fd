"""Assets of the layer `features`: thin Dagster faces of the pure SQL modules beside this file."""

import dagster as dg
import pyarrow as pa

from quant_assets.features import tables
from quant_assets.features.labels import LOOKBACK_SESSIONS as LABEL_LOOKBACK
from quant_assets.features.labels import LabelParameters
from quant_assets.features.labels import labels as build_labels
from quant_assets.features.peers import LOOKBACK_SESSIONS as PEERS_LOOKBACK
from quant_assets.features.peers import SQL as PEERS_SQL
from quant_assets.features.peers import peer_features, relations
from quant_assets.features.sentiment import LOOKBACK_SESSIONS as SENTIMENT_LOOKBACK
from quant_assets.features.sentiment import SQL as SENTIMENT_SQL
from quant_assets.features.sentiment import sentiment_features
from quant_assets.features.technical import LOOKBACK_SESSIONS as TECHNICAL_LOOKBACK
from quant_assets.features.technical import SQL as TECHNICAL_SQL
from quant_assets.features.technical import technical_features
from quant_assets.market import tables as market_tables
from quant_assets.market.arrivals import without_waiting
from quant_assets.partitions import CALENDAR, SESSIONS, look_back, run_sessions, updated_elsewhere
from quant_assets.presentation import data_version, figure_markdown, show, sql_version, with_recent_sessions
from quant_resources.iceberg import Warehouse
from quant_resources.io_manager import table_metadata, table_preview
from quant_resources.peers import PeerFinder
from quant_resources.sources import MarketSource

GROUP = "features"
OWNERS = ["team:research"]

# Features follow bars and news whatever brought them in, corrections of old sessions included (so not only the newest
# partition counts), except in runs that compute the features themselves: those jobs carry this tag.
AFTER_UPSTREAM = (
    updated_elsewhere().since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
).with_label("after_upstream")

# Lists of competitors and the security master have no sessions, so a new version of them concerns every session. They are written
# more often than they change, and only a change is worth computing anew.
RELATIONS = dg.AssetSelection.assets("market/peers", "market/securities")
AFTER_NEWS_OR_RELATIONS = (
    (
        updated_elsewhere().ignore(RELATIONS)  # type: ignore[attr-defined]  # declared as the plain condition
        | dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed()).allow(
            RELATIONS
        )
    ).since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
).with_label("after_news_or_relations")


@dg.asset(
    key=["features", "technical"],
    metadata=table_metadata(tables.TECHNICAL),
    group_name=GROUP,
    description="Indicators of one symbol at the close of one session: close and SMA 2..16 scaled within the row, ROC "
    "2..16 (percent), log changes, realized volatility, ATR, RSI. From prices adjusted point in time; windows count "
    "sessions. Known at the session's close.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={"bars": dg.AssetIn(["market", "bars"], partition_mapping=look_back(TECHNICAL_LOOKBACK))},
    kinds={"duckdb", "iceberg"},
    owners=OWNERS,
    code_version=sql_version(TECHNICAL_SQL),
    automation_condition=AFTER_UPSTREAM,
)
def technical(
    context: dg.AssetExecutionContext, bars: pa.Table, warehouse: dg.ResourceParam[Warehouse]
) -> dg.Output[pa.Table]:
    """Compute the indicators of the run's sessions."""
    data = tables.TECHNICAL.conform(technical_features(bars, CALENDAR, *run_sessions(context)))
    metadata: dict[str, object] = {"inputs": len(tables.TECHNICAL_INPUTS), "preview": table_preview(data)}
    recent = with_recent_sessions(warehouse, tables.TECHNICAL, data, *run_sessions(context))
    if recent.num_rows:
        from quant_assets.features import plots

        metadata["indicators"] = figure_markdown(plots.technical_figure(recent), "Indicators")
    show(context, metadata)
    return dg.Output(data, data_version=data_version(data, run_sessions(context)))


@dg.asset(
    key=["features", "sentiment"],
    metadata=table_metadata(tables.SENTIMENT),
    group_name=GROUP,
    description="Relevance-weighted entity sentiment of one symbol and session (-1..1) with means over 1..16 sessions "
    "and the article count. A session without news counts as 0. Known at the session's close.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={
        "news": dg.AssetIn(["market", "news"], partition_mapping=look_back(SENTIMENT_LOOKBACK)),
        "bars": dg.AssetIn(["market", "bars"], partition_mapping=look_back(SENTIMENT_LOOKBACK)),
    },
    kinds={"duckdb", "iceberg"},
    owners=OWNERS,
    code_version=sql_version(SENTIMENT_SQL),
    automation_condition=AFTER_UPSTREAM,
)
def sentiment(
    context: dg.AssetExecutionContext,
    news: pa.Table,
    bars: pa.Table,
    source: dg.ResourceParam[MarketSource],
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.Output[pa.Table]:
    """Compute the sentiment of the run's sessions."""
    origin = "simulated" if source.news_is_simulated else source.name
    # News that have not come yet are not the same as none: those rows are made when they have.
    bars = without_waiting(bars, warehouse.read(market_tables.COVERAGE, only="news"))
    data = tables.SENTIMENT.conform(sentiment_features(news, bars, CALENDAR, *run_sessions(context), origin))
    metadata: dict[str, object] = {"source": origin, "preview": table_preview(data)}
    recent = with_recent_sessions(warehouse, tables.SENTIMENT, data, *run_sessions(context))
    if recent.num_rows:
        from quant_assets.features import plots

        shown = recent["session"].to_pylist()
        stored = warehouse.read(tables.TECHNICAL, min(shown), max(shown), ["symbol", "session", "log_return"])
        if stored.num_rows:
            correlations = plots.sentiment_correlations(recent, stored)
            metadata |= {f"correlation_{k}": v for k, v in correlations.items() if v == v}
            metadata["sentiment and returns"] = figure_markdown(
                plots.sentiment_figure(recent, stored, origin), f"Sentiment against returns (news: {origin})"
            )
    show(context, metadata)
    return dg.Output(data, data_version=data_version(data, run_sessions(context)))


@dg.asset(
    key=["features", "peers"],
    metadata=table_metadata(tables.PEERS),
    group_name=GROUP,
    description="Relevance-weighted sentiment of a symbol's competitors and of the other companies of its industry (-1..1) per session, with "
    "means over 1..16 sessions and the counts of mentions. A session without any counts as 0. Competitors are those of the newest list that "
    "is not younger than the session, or of the first list where none is older; industries are known as they are now. Known at the session's "
    "close.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={
        "news": dg.AssetIn(["market", "news"], partition_mapping=look_back(PEERS_LOOKBACK)),
        "bars": dg.AssetIn(["market", "bars"], partition_mapping=look_back(PEERS_LOOKBACK)),
    },
    deps=[dg.AssetKey(["market", "peers"]), dg.AssetKey(["market", "securities"])],
    kinds={"duckdb", "iceberg"},
    owners=OWNERS,
    code_version=sql_version(PEERS_SQL),
    automation_condition=AFTER_NEWS_OR_RELATIONS,
)
def peers(
    context: dg.AssetExecutionContext,
    news: pa.Table,
    bars: pa.Table,
    source: dg.ResourceParam[MarketSource],
    warehouse: dg.ResourceParam[Warehouse],
    peer_finder: dg.ResourceParam[PeerFinder],
) -> dg.Output[pa.Table]:
    """Compute the sentiment of competitors and industry of the run's sessions."""
    import pyarrow.compute as pc

    origin = "simulated" if source.news_is_simulated else source.name
    related = relations(
        warehouse.read(market_tables.PEERS), warehouse.read(market_tables.SECURITIES), peer_finder.name
    )
    bars = without_waiting(bars, warehouse.read(market_tables.COVERAGE, only="news"), related)
    data = tables.PEERS.conform(peer_features(news, bars, related, CALENDAR, *run_sessions(context), origin))
    metadata: dict[str, object] = {
        "source": origin,
        "peer finder": peer_finder.name,
        "relations": related.num_rows,
        "preview": table_preview(data),
    }
    if data.num_rows:
        younger = pc.greater(data["peers_as_of"], data["session"])
        metadata |= {
            "share of rows whose list is younger": (pc.sum(younger).as_py() or 0) / data.num_rows,
            "share of rows without a list": data["peers_as_of"].null_count / data.num_rows,
        }
    recent = with_recent_sessions(warehouse, tables.PEERS, data, *run_sessions(context))
    if recent.num_rows:
        from quant_assets.features import plots

        shown = recent["session"].to_pylist()
        stored = warehouse.read(tables.TECHNICAL, min(shown), max(shown), ["symbol", "session", "log_return"])
        metadata["competitors and industry"] = figure_markdown(
            plots.peers_figure(recent, stored, origin),
            f"Sentiment of competitors and industry (news: {origin})",
        )
    show(context, metadata)
    return dg.Output(data, data_version=data_version(data, run_sessions(context)))


class LabelConfig(dg.Config):
    """The trade that a label describes; see `LabelParameters`."""

    horizon_sessions: int = 5
    profit_target_pct: float = 2.0
    stop_loss_pct: float = 1.5
    rule: str = "first_touch"


@dg.asset(
    key=["features", "labels"],
    metadata=table_metadata(tables.LABELS),
    group_name=GROUP,
    description="Whether a long (short) trade entered at the next open reaches its profit target (percent of entry) "
    "before its stop within N sessions. A partition holds the labels that become complete at its close, so a label of "
    "session t is stored N sessions later and known only then.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={"bars": dg.AssetIn(["market", "bars"], partition_mapping=look_back(LABEL_LOOKBACK))},
    kinds={"duckdb", "iceberg"},
    owners=OWNERS,
    code_version="1",
    automation_condition=AFTER_UPSTREAM,
)
def labels(
    context: dg.AssetExecutionContext,
    config: LabelConfig,
    bars: pa.Table,
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.Output[pa.Table]:
    """Compute the labels that become complete in the run's sessions."""
    parameters = LabelParameters(**config.model_dump())
    data = tables.LABELS.conform(build_labels(bars, CALENDAR, *run_sessions(context), parameters))
    metadata: dict[str, object] = {"rule": parameters.rule, "preview": table_preview(data)}
    if data.num_rows:
        metadata |= {
            f"{side}_rate": sum(data[side].to_pylist()) / data.num_rows for side in ("long", "short")
        }
    recent = with_recent_sessions(warehouse, tables.LABELS, data, *run_sessions(context))
    if recent.num_rows:
        from quant_assets.features import plots

        metadata["rates"] = figure_markdown(plots.labels_figure(recent), "Share of positive labels")
    show(context, metadata)
    return dg.Output(data, data_version=data_version(data, run_sessions(context)))
