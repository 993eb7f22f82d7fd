"""Tables of the layer `features`: columns with units, keys, slices. Nothing else belongs here."""

from __future__ import annotations

from quant_assets.market.tables import AVAILABLE_AT, SESSION, SYMBOL
from quant_resources.iceberg import Column, TableSpec

SMA_PERIODS = tuple(range(2, 17))
ROC_PERIODS = tuple(range(2, 17))
SENTIMENT_PERIODS = tuple(range(1, 17))

# The 31 inputs of the published classifier: close and SMA 2..16 scaled within the row, ROC 2..16 as they are.
TECHNICAL_INPUTS = (
    "scaled_close",
    *(f"scaled_sma_{k}" for k in SMA_PERIODS),
    *(f"roc_{k}_pct" for k in ROC_PERIODS),
)
SENTIMENT_INPUTS = tuple(f"sentiment_sma_{k}" for k in SENTIMENT_PERIODS)
COMPETITOR_INPUTS = tuple(f"competitor_sentiment_sma_{k}" for k in SENTIMENT_PERIODS)
INDUSTRY_INPUTS = tuple(f"industry_sentiment_sma_{k}" for k in SENTIMENT_PERIODS)

TECHNICAL = TableSpec(
    name="features.technical",
    description="Indicators of one symbol at the close of one session, from prices adjusted point in time.",
    columns=(
        SYMBOL,
        SESSION,
        AVAILABLE_AT,
        Column("close", "double", "raw close of the session, dollars", required=True),
        Column(
            "scaled_close",
            "double",
            "close, min-max scaled among itself and SMA 2..16; 0.5 when all are equal",
        ),
        *(
            Column(f"scaled_sma_{k}", "double", f"mean adjusted close of {k} sessions, scaled alike")
            for k in SMA_PERIODS
        ),
        *(
            Column(f"roc_{k}_pct", "double", f"rate of change over {k} sessions, percent")
            for k in ROC_PERIODS
        ),
        Column("log_return", "double", "total log return of the session"),
        Column("log_volume_change", "double", "log change of split-adjusted volume"),
        Column(
            "realized_volatility_20",
            "double",
            "root mean square log return of 20 sessions, annualized by 252",
        ),
        Column("atr_14", "double", "mean true range of 14 sessions, dollars of this session"),
        Column("atr_14_pct", "double", "atr_14 over close, percent"),
        Column(
            "rsi_14", "double", "relative strength index of 14 sessions with simple means (Cutler), 0..100"
        ),
    ),
    key=("symbol", "session"),
    slice_column="session",
    partition_by="year",
)

SENTIMENT = TableSpec(
    name="features.sentiment",
    description="Entity sentiment of one symbol and session, from articles available at its close.",
    columns=(
        SYMBOL,
        SESSION,
        AVAILABLE_AT,
        Column("article_count", "long", "articles that mention the symbol", required=True),
        *(
            Column(
                f"sentiment_sma_{k}",
                "double",
                f"relevance-weighted sentiment, mean of {k} session(s); a session without news counts as 0",
            )
            for k in SENTIMENT_PERIODS
        ),
        Column("source", "string", "source of the news; 'simulated' where it is not real", required=True),
    ),
    key=("symbol", "session"),
    slice_column="session",
    partition_by="year",
)

PEERS = TableSpec(
    name="features.peers",
    description="Sentiment of a symbol's competitors and of the other companies of its industry, from articles available at "
    "the session's close.",
    columns=(
        SYMBOL,
        SESSION,
        AVAILABLE_AT,
        Column(
            "competitor_article_count",
            "long",
            "mentions of competitors in the session's articles",
            required=True,
        ),
        Column(
            "industry_article_count",
            "long",
            "mentions of others of the industry in the session's articles",
            required=True,
        ),
        *(
            Column(
                f"competitor_sentiment_sma_{k}",
                "double",
                f"relevance-weighted sentiment of the competitors, mean of {k} session(s); none counts as 0",
            )
            for k in SENTIMENT_PERIODS
        ),
        *(
            Column(
                f"industry_sentiment_sma_{k}",
                "double",
                f"relevance-weighted sentiment of the others of the industry, mean of {k} session(s); none counts as 0",
            )
            for k in SENTIMENT_PERIODS
        ),
        Column(
            "peers_as_of",
            "date",
            "day of the list of competitors that was used; after the session where no older list is known, null "
            "where there is none",
        ),
        Column("source", "string", "source of the news; 'simulated' where it is not real", required=True),
    ),
    key=("symbol", "session"),
    slice_column="session",
    partition_by="year",
)

LABELS = TableSpec(
    name="features.labels",
    description="What happened after the decision at a session's close. Written once the horizon is complete.",
    columns=(
        SYMBOL,
        SESSION,
        Column(
            "known_session",
            "date",
            "session at whose close the label is complete; a partition's slice",
            required=True,
        ),
        AVAILABLE_AT,
        Column("long", "int", "1: a long trade reaches its profit target before its stop", required=True),
        Column("short", "int", "1: a short trade reaches its profit target before its stop", required=True),
        Column(
            "label_end_session", "date", "last session that decided either label (for purging)", required=True
        ),
        Column("horizon_sessions", "int", "sessions that the trade may last", required=True),
        Column("profit_target_pct", "double", "profit target, percent of entry", required=True),
        Column("stop_loss_pct", "double", "stop, percent of entry", required=True),
        Column("rule", "string", "first_touch or any_order", required=True),
    ),
    key=("symbol", "session"),
    slice_column="known_session",
    partition_by="year",
)
