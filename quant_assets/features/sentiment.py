"""News sentiment per symbol and session in DuckDB SQL. Pure: articles and bars in, feature rows out.

Belongs here: how articles become a session's number. Does not belong here: which session an article belongs to
(`market/validation.py`), competitors and industry, storage, Dagster.
"""

from __future__ import annotations

import datetime as dt

import pyarrow as pa

from quant_assets.features.tables import SENTIMENT_PERIODS
from quant_assets.features.technical import Sessions, calendar_table
from quant_resources.duckdb import query

BARS_BACK = max(SENTIMENT_PERIODS) - 1
LOOKBACK_SESSIONS = 30


def _sql() -> str:
    lags = ["score AS s0"] + [f"lag(score, {j}) OVER w AS s{j}" for j in range(1, BARS_BACK + 1)]
    means = [
        "(" + " + ".join(f"s{j}" for j in range(k)) + f") / {k} AS sentiment_sma_{k}"
        for k in SENTIMENT_PERIODS
    ]
    join = ",\n    ".join
    # Sums are ordered by article, so that their rounding does not depend on the order of the rows in the table.
    return f"""
WITH sessions AS (
  SELECT symbol, session, available_at, position FROM bars JOIN calendar USING (session)
), scored AS (
  SELECT symbol, session, count(*) AS article_count, max(source) AS source,
    sum(sentiment_score * relevance_score ORDER BY article_id) AS weighted,
    sum(relevance_score ORDER BY article_id) AS weight
  FROM news GROUP BY symbol, session
), filled AS (
  SELECT sessions.symbol, sessions.session, available_at, position,
    coalesce(article_count, 0) AS article_count, coalesce(source, $source) AS source,
    CASE WHEN weight > 0 THEN weighted / weight ELSE 0 END AS score
  FROM sessions LEFT JOIN scored USING (symbol, session)
), lagged AS (
  SELECT *, lag(position, {BARS_BACK}) OVER w AS oldest_position, {join(lags)}
  FROM filled WINDOW w AS (PARTITION BY symbol ORDER BY session)
)
SELECT symbol, session, available_at, article_count,
    {join(means)}, source
FROM lagged
WHERE session BETWEEN $first AND $last AND position - oldest_position <= {LOOKBACK_SESSIONS}
ORDER BY symbol, session
"""


SQL = _sql()


def sentiment_features(
    news: pa.Table, bars: pa.Table, calendar: Sessions, first: dt.date, last: dt.date, source: str
) -> pa.Table:
    """Relevance-weighted entity sentiment of every bar in `first`..`last`, and its means over 1..16 sessions.

    A ticker's score in an article is its own, never the article's; a session's value is the mean of its articles
    weighted by relevance, and 0 without articles.

    Args:
        news: `market.news` rows of the range and the 30 sessions before it.
        bars: `market.bars` rows of the same sessions: they say which symbol trades when.
        calendar: covers the bars.
        first, last: sessions to return, both included.
        source: name of the news source, for rows without an article.

    Returns:
        Columns as `features.tables.SENTIMENT`; a symbol's first 15 bars have no row.
    """
    import pyarrow.compute as pc

    bounds = pc.min_max(bars["session"]).as_py() if bars.num_rows else {"min": first, "max": last}
    span = calendar_table(calendar, bounds["min"], bounds["max"])
    tables = {"news": news, "bars": bars, "calendar": span}
    return query(SQL, tables, {"first": first, "last": last, "source": source})
