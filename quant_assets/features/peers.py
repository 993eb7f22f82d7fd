"""Sentiment of a symbol's competitors and of its industry in DuckDB SQL. Pure: articles, bars and relations in, rows out.

Belongs here: who is whose competitor or neighbour on which session, and how their articles become a session's number.
Does not belong here: who names the competitors (`quant_resources/peers.py`), a symbol's own news (`sentiment.py`),
storage, Dagster.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import defaultdict
from typing import Any

import pyarrow as pa

from quant_assets.features.tables import SENTIMENT_PERIODS
from quant_assets.features.technical import Sessions, calendar_table
from quant_resources.duckdb import query

BARS_BACK = max(SENTIMENT_PERIODS) - 1
LOOKBACK_SESSIONS = 30
COMPETITOR, INDUSTRY = "competitor", "industry"
# From the beginning: before anything that a table can hold.
ALWAYS = dt.date.min

RELATIONS = pa.schema(
    [
        ("symbol", pa.string()),
        ("peer", pa.string()),
        ("kind", pa.string()),
        ("as_of", pa.date32()),
        ("valid_from", pa.date32()),
    ]
)


def relations(answers: pa.Table, securities: pa.Table, finder: str | None = None) -> pa.Table:
    """Who counts for whom, and from which session on.

    A symbol's list of competitors holds from its `as_of` (the day after, when it was made in the course of that day) until the
    next list. Before the first one the first one holds: that is hindsight in who competes, never in what was said of them,
    and `peers_as_of` of each row tells it.

    An industry is known as it is now, for all sessions: the other symbols with the same `industry`; where no other symbol
    shares it, those with the same `sector`. Letter case and outer spaces do not count, and an empty text matches nobody.

    Share classes of one company (the same `name` in the security master, apart from "Class A" at its end) are neither
    competitors nor neighbours of one another: they have the same news.

    Args:
        answers: `market.peers`.
        securities: `market.securities`.
        finder: only the answers of this peer finder; of all of them when None.

    Returns:
        Columns as `RELATIONS`: `kind` is competitor or industry, `as_of` the day of the list (null for an industry),
        `valid_from` the first date on which it holds. A list that names nobody is one row whose `peer` is null, because
        it ends the list before it.
    """
    rows: set[tuple[str, str | None, str, dt.date | None, dt.date]] = set()
    lists: dict[str, dict[dt.date, tuple[dt.date, set[str]]]] = defaultdict(dict)
    classes = _share_classes(securities)
    for row in answers.sort_by([("as_of", "ascending"), ("finder", "ascending")]).to_pylist():
        if finder is None or row["finder"] == finder:
            named = {peer.strip() for peer in (row["peers"] or "").split(",")} - {"", row["symbol"]}
            named -= classes.get(row["symbol"], set())
            lists[row["symbol"]][_known_from(row)] = (row["as_of"], named)
    for symbol, of_symbol in lists.items():
        for position, known_from in enumerate(sorted(of_symbol)):
            as_of, named = of_symbol[known_from]
            valid_from = known_from if position else ALWAYS
            some: set[str | None] = {*named} or {None}
            rows |= {(symbol, peer, COMPETITOR, as_of, valid_from) for peer in some}
    of_industry, of_sector = _sharing(securities, "industry"), _sharing(securities, "sector")
    for symbol in set(of_industry) | set(of_sector):
        same = classes.get(symbol, set())
        for peer in of_industry.get(symbol, set()) - same or of_sector.get(symbol, set()) - same:
            rows.add((symbol, peer, INDUSTRY, None, ALWAYS))
    ordered = sorted(rows, key=lambda row: (row[0], row[2], row[4], row[1] or ""))
    return pa.Table.from_pylist([dict(zip(RELATIONS.names, r, strict=True)) for r in ordered], RELATIONS)


def _known_from(answer: dict[str, Any]) -> dt.date:
    """First date of which the whole was after the answer: one given in the course of a day counts from the next on."""
    midnight = dt.datetime.combine(answer["as_of"], dt.time(), dt.UTC)
    at = max(answer["available_at"], midnight)
    return at.date() if at.time() == dt.time() else at.date() + dt.timedelta(days=1)


_CLASS = re.compile(r"[\s,(\-]*\bclass [a-z]\b.*$")


def _share_classes(securities: pa.Table) -> dict[str, set[str]]:
    """The other symbols of the same company, by symbol."""
    groups: dict[str, set[str]] = defaultdict(set)
    for row in securities.select(["symbol", "name"]).to_pylist():
        if name := _CLASS.sub("", (row["name"] or "").strip().casefold()):
            groups[name].add(row["symbol"])
    return {symbol: group - {symbol} for group in groups.values() for symbol in group}


def _sharing(securities: pa.Table, column: str) -> dict[str, set[str]]:
    """The others that have the same text in a column, by symbol."""
    groups: dict[str, set[str]] = defaultdict(set)
    for row in securities.select(["symbol", column]).to_pylist():
        if text := (row[column] or "").strip().casefold():
            groups[text].add(row["symbol"])
    return {symbol: group - {symbol} for group in groups.values() for symbol in group}


def _sql() -> str:
    kinds = (COMPETITOR, INDUSTRY)
    lags = [
        f"lag({kind}_score, {j}) OVER w AS {kind}_s{j}" for kind in kinds for j in range(1, BARS_BACK + 1)
    ]
    means = [
        "("
        + " + ".join([f"{kind}_score", *(f"{kind}_s{j}" for j in range(1, k))])
        + f") / {k} AS {kind}_sentiment_sma_{k}"
        for kind in kinds
        for k in SENTIMENT_PERIODS
    ]
    join = ",\n    ".join
    # Sums are of whole numbers, 2^-60 each, so that neither the order of the rows nor that of the peers can be seen in
    # them: fifty neighbours over ten years are sixty million additions, too many to put in order first.
    whole = "CAST(round({} * 1152921504606846976) AS BIGINT)"
    return f"""
WITH sessions AS (
  SELECT symbol, session, available_at, position FROM bars JOIN calendar USING (session)
), told AS (
  SELECT symbol AS peer, session, count(*) AS articles, max(source) AS source,
    sum({whole.format("sentiment_score * relevance_score")}) AS weighted,
    sum({whole.format("relevance_score")}) AS weight
  FROM news GROUP BY symbol, session
), lists AS (
  SELECT symbol, kind, valid_from, max(as_of) AS as_of,
    lead(valid_from) OVER (PARTITION BY symbol, kind ORDER BY valid_from) AS valid_until
  FROM relations GROUP BY symbol, kind, valid_from
), pairs AS (
  SELECT DISTINCT symbol, peer, kind, valid_from, coalesce(valid_until, DATE '9999-12-31') AS valid_until
  FROM relations JOIN lists USING (symbol, kind, valid_from)
  WHERE peer <> symbol AND symbol IN (SELECT symbol FROM bars)
), heard AS (
  SELECT symbol, session, kind, sum(articles) AS articles, max(source) AS source,
    sum(weighted) AS weighted, sum(weight) AS weight
  FROM pairs JOIN told USING (peer)
  WHERE session >= valid_from AND session < valid_until
  GROUP BY symbol, session, kind
), filled AS (
  SELECT sessions.symbol, sessions.session, sessions.available_at, position,
    CAST(coalesce(c.articles, 0) AS BIGINT) AS competitor_article_count,
    CAST(coalesce(i.articles, 0) AS BIGINT) AS industry_article_count,
    CASE WHEN c.weight > 0 THEN c.weighted / c.weight ELSE 0 END AS competitor_score,
    CASE WHEN i.weight > 0 THEN i.weighted / i.weight ELSE 0 END AS industry_score,
    coalesce(greatest(c.source, i.source), $source) AS source
  FROM sessions
  LEFT JOIN heard AS c ON c.symbol = sessions.symbol AND c.session = sessions.session AND c.kind = '{COMPETITOR}'
  LEFT JOIN heard AS i ON i.symbol = sessions.symbol AND i.session = sessions.session AND i.kind = '{INDUSTRY}'
), lagged AS (
  SELECT *, lag(position, {BARS_BACK}) OVER w AS oldest_position,
    {join(lags)}
  FROM filled WINDOW w AS (PARTITION BY symbol ORDER BY session)
)
SELECT lagged.symbol, session, available_at, competitor_article_count, industry_article_count,
    {join(means)},
    lists.as_of AS peers_as_of, source
FROM lagged LEFT JOIN lists ON lists.symbol = lagged.symbol AND lists.kind = '{COMPETITOR}'
  AND session >= lists.valid_from AND session < coalesce(lists.valid_until, DATE '9999-12-31')
WHERE session BETWEEN $first AND $last AND position - oldest_position <= {LOOKBACK_SESSIONS}
ORDER BY lagged.symbol, session
"""


SQL = _sql()


def peer_features(
    news: pa.Table,
    bars: pa.Table,
    relations: pa.Table,
    calendar: Sessions,
    first: dt.date,
    last: dt.date,
    source: str,
) -> pa.Table:
    """Relevance-weighted sentiment of the competitors and of the industry of every bar in `first`..`last`.

    A session's value is the mean of all mentions of the peers in its articles, weighted by relevance, and 0 without any;
    then its means over 1..16 of the symbol's own sessions. An article that mentions two peers counts for both. Peers need
    no bars: companies that are only read about count as well.

    Args:
        news: `market.news` rows of the range and the 30 sessions before it, the peers' included.
        bars: `market.bars` rows of the same sessions: they say which symbol trades when.
        relations: columns as `RELATIONS`; see `relations`.
        calendar: covers the bars.
        first, last: sessions to return, both included.
        source: name of the news source, for rows without a mention.

    Returns:
        Columns as `features.tables.PEERS`; a symbol's first 15 bars have no row. `peers_as_of` is the day of the list of
        competitors in force, null where there is none.
    """
    import pyarrow.compute as pc

    bounds = pc.min_max(bars["session"]).as_py() if bars.num_rows else {"min": first, "max": last}
    span = calendar_table(calendar, bounds["min"], bounds["max"])
    tables = {"news": news, "bars": bars, "relations": relations, "calendar": span}
    return query(SQL, tables, {"first": first, "last": last, "source": source})
