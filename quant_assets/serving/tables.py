"""Tables of the layer `serving`: columns with units, keys, slices. Nothing else belongs here."""

from __future__ import annotations

from quant_assets.market.tables import AVAILABLE_AT, SESSION, SYMBOL
from quant_resources.iceberg import Column, TableSpec

LIVE_SIGNALS = TableSpec(
    name="serving.live_signals",
    description="What each strategy would do at the next open, one row per strategy and symbol.",
    columns=(
        Column("strategy", "string", "strategy", required=True),
        SYMBOL,
        SESSION,
        AVAILABLE_AT,
        Column(
            "probability_long",
            "double",
            "probability that a long trade reaches its target first; null for a portfolio",
        ),
        Column(
            "probability_short",
            "double",
            "probability that a short trade reaches its target first; null for a portfolio",
        ),
        Column(
            "target_weight",
            "double",
            "share of the portfolio's equity after the entry; null for a strategy without weights",
        ),
        Column("side", "string", "long, short or flat", required=True),
        Column(
            "target_shares",
            "double",
            "position to hold after the entry, shares; below 0 = short",
            required=True,
        ),
        Column("entry_rule", "string", "next_open: at the open of the following session", required=True),
        Column(
            "profit_target_pct", "double", "profit target, percent of the entry price; null without a bracket"
        ),
        Column("stop_loss_pct", "double", "stop, percent of the entry price; null without a bracket"),
        Column("model", "string", "registered model", required=True),
        Column("model_version", "long", "its version", required=True),
        Column(
            "served_by",
            "string",
            "endpoint and config that answered, or why the registered champion was asked instead; null in rows of before",
        ),
        Column(
            "feature_snapshots",
            "string",
            "Iceberg snapshot of each table behind the row, `table=id`",
            required=True,
        ),
        Column(
            "news_source",
            "string",
            "source of the news behind the row; 'none' when it uses no news",
            required=True,
        ),
    ),
    key=("strategy", "symbol", "session"),
    slice_column="session",
    partition_by="year",
)

CAPTURED_REQUESTS = TableSpec(
    name="serving.captured_requests",
    description="Requests that an endpoint answered, with its answers: a sampled share, as captured where they were served.",
    columns=(
        Column("event_id", "string", "unique id of the request", required=True),
        SESSION,
        AVAILABLE_AT,
        Column("endpoint", "string", "who was asked", required=True),
        Column("config", "string", "which config answered", required=True),
        Column("kind", "string", "execution or signal", required=True),
        Column("model", "string", "registered model", required=True),
        Column("model_version", "long", "its version", required=True),
        Column("request", "string", "body of the request, JSON", required=True),
        Column("response", "string", "body of the answer, JSON", required=True),
    ),
    key=("event_id",),
    slice_column="session",
    partition_by="month",
)
