"""Tables of the layer `market`: columns with units, keys, slices. Nothing else belongs here."""

from __future__ import annotations

from quant_resources.iceberg import Column, TableSpec

SYMBOL = Column("symbol", "string", "ticker, upper case", required=True)
SESSION = Column("session", "date", "exchange session (XNYS date) that the row belongs to", required=True)
AVAILABLE_AT = Column(
    "available_at", "timestamptz", "UTC instant from which anyone could have known the row", required=True
)
SOURCE = Column(
    "source", "string", "where the row came from; 'simulated' where it is not real", required=True
)

BARS = TableSpec(
    name="market.bars",
    description="One raw daily bar per symbol and session. Prices are as traded on that day, never adjusted.",
    columns=(
        SYMBOL,
        SESSION,
        AVAILABLE_AT,
        Column("open", "double", "first trade, dollars per share", required=True),
        Column("high", "double", "highest trade, dollars per share", required=True),
        Column("low", "double", "lowest trade, dollars per share", required=True),
        Column("close", "double", "last trade, dollars per share", required=True),
        Column("volume", "double", "shares traded", required=True),
        Column("dividend", "double", "cash per share going ex on this session, dollars", required=True),
        Column(
            "split_factor", "double", "new shares per old share from this session on; 1 = none", required=True
        ),
        SOURCE,
    ),
    key=("symbol", "session"),
    slice_column="session",
    partition_by="year",
)

NEWS = TableSpec(
    name="market.news",
    description="One row per article and ticker. News after the close of a session belong to the next one.",
    columns=(
        Column("article_id", "string", "identity of the article", required=True),
        SYMBOL,
        SESSION,
        AVAILABLE_AT,
        Column("title", "string", "headline"),
        Column("url", "string", "where the article is"),
        Column("sentiment_score", "double", "this ticker's sentiment in the article, -1..1", required=True),
        Column("relevance_score", "double", "how much the article is about this ticker, 0..1", required=True),
        Column(
            "scorer", "string", "who scored it (word list or model); null: the score came with the article"
        ),
        SOURCE,
    ),
    key=("session", "symbol", "article_id"),
    slice_column="session",
    partition_by="year",
)

MINUTE_BARS = TableSpec(
    name="market.minute_bars",
    description="One-minute bars with the quote at the bar's end. Raw prices.",
    columns=(
        SYMBOL,
        SESSION,
        Column("ts", "timestamptz", "start of the minute, UTC", required=True),
        AVAILABLE_AT,
        Column("open", "double", "dollars per share", required=True),
        Column("high", "double", "dollars per share", required=True),
        Column("low", "double", "dollars per share", required=True),
        Column("close", "double", "dollars per share", required=True),
        Column("volume", "double", "shares traded", required=True),
        Column("bid", "double", "best bid at the end of the minute, dollars"),
        Column("ask", "double", "best ask at the end of the minute, dollars"),
        Column("bid_size", "double", "shares at the bid"),
        Column("ask_size", "double", "shares at the ask"),
        SOURCE,
    ),
    key=("symbol", "ts"),
    slice_column="session",
    partition_by="month",
)

SECURITIES = TableSpec(
    name="market.securities",
    description="The security master: one row per symbol, as it is known now (no history).",
    columns=(
        SYMBOL,
        Column("name", "string", "company name"),
        Column("sector", "string", "sector"),
        Column("industry", "string", "industry"),
        Column("peers", "string", "comma-separated tickers of listed competitors"),
        SOURCE,
    ),
    key=("symbol",),
)


PEERS = TableSpec(
    name="market.peers",
    description="Listed competitors of a symbol, one row per answer of a peer finder. Answers are kept, never replaced.",
    columns=(
        SYMBOL,
        Column("as_of", "date", "day that the list was made or asked for", required=True),
        AVAILABLE_AT,
        Column("finder", "string", "who answered: table or bedrock", required=True),
        Column("peers", "string", "comma-separated tickers that the security master knows", required=True),
        Column(
            "rejected", "string", "comma-separated tickers of the answer that it does not know", required=True
        ),
        Column("model_id", "string", "model that answered; null for a table"),
        Column("prompt", "string", "what it was asked; null for a table"),
        Column("answer", "string", "what it said, whole; null for a table"),
    ),
    key=("symbol", "as_of", "finder"),
)


COVERAGE = TableSpec(
    name="market.coverage",
    description="What became of each symbol in the newest run that asked a vendor for it, and what still waits from earlier ones.",
    columns=(
        Column("dataset", "string", "bars, news or minute_bars", required=True),
        SYMBOL,
        Column(
            "status",
            "string",
            "complete, waiting (quota), late (not published yet) or missing",
            required=True,
        ),
        Column("first_session", "date", "first session of the run", required=True),
        Column("last_session", "date", "last session of the run", required=True),
        Column("newest_session", "date", "newest stored session of the run's range; null without any"),
        Column("rows", "long", "stored rows of the run's range", required=True),
        Column("note", "string", "why it waits or what is missing", required=True),
        Column("retry_at", "timestamptz", "when it is worth asking again; null where it is not"),
        AVAILABLE_AT,
    ),
    key=("dataset", "symbol", "first_session", "last_session"),
    slice_column="dataset",
)


def quarantine_of(spec: TableSpec) -> TableSpec:
    """The table of rows that broke a rule of `spec` and were set aside (`QUANT_BAD_ROWS=quarantine`)."""
    return TableSpec(
        name=f"{spec.name}_quarantine",
        description=f"Rows that broke a rule of {spec.name}: which rule, why, and where they came from.",
        columns=(
            Column("session", "date", "session of the run's slice that the row came with", required=True),
            Column("origin", "string", "file and line, or request", required=True),
            Column("rule", "string", "the rule that it broke", required=True),
            Column("reason", "string", "the values that broke it"),
            Column("row", "string", "the row as JSON"),
        ),
        key=("session", "origin", "rule"),
        slice_column="session",
    )
