"""What becomes of Alpaca's rows: bars meet their corporate actions, the newest row of a key wins, an article counts once. Pure.

Belongs here: tables in, tables out. Does not belong here: the documents (`alpaca_documents.py`) and asking for them (`alpaca.py`).
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.sources import BARS
from quant_resources.sources.alpaca_documents import ACTIONS, Page

if TYPE_CHECKING:
    from quant_resources.sources.archive import Document

MINUTE = dt.timedelta(minutes=1)


def with_actions(bars: pa.Table, actions: pa.Table, before: dt.date) -> pa.Table:
    """Day bars with dividends and split factors, as `BARS`, by symbol and session.

    An action takes effect on the first bar of its symbol on its ex-date or after. Splits that meet on one bar multiply, dividends add
    up; a dividend is stated in the shares of its own ex-date, so a split between that and its bar divides it.

    Args:
        bars: as `alpaca_documents.DAY_BARS`, one of each symbol and session.
        actions: as `alpaca_documents.ACTIONS`, each once.
        before: the session before the first one of `bars`: what went ex on it or earlier belongs to an earlier bar.
    """
    bars = bars.sort_by([("symbol", "ascending"), ("session", "ascending")])
    dividend, factor = np.zeros(bars.num_rows), np.ones(bars.num_rows)
    names = bars["symbol"].combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]]) if len(codes) else [0]
    places = {
        names.dictionary[int(codes[start])].as_py(): (int(start), int(end))
        for start, end in itertools.pairwise(starts)
    }
    days = bars["session"].to_numpy().astype("datetime64[D]")
    later_than = actions.filter(pc.greater(actions["ex_date"], pa.scalar(before, pa.date32())))
    effective = later_than.sort_by([("ex_date", "ascending"), ("id", "ascending")]).to_pylist()
    splits: dict[str, list[tuple[np.datetime64, float]]] = {}
    for action in effective:
        if action["factor"] != 1:
            splits.setdefault(action["symbol"], []).append(
                (np.datetime64(action["ex_date"]), action["factor"])
            )
    for action in effective:
        start, end = places.get(action["symbol"], (0, 0))
        ex = np.datetime64(action["ex_date"])
        at = start + int(np.searchsorted(days[start:end], ex))
        if at == end:
            continue
        factor[at] *= action["factor"]
        later = [f for day, f in splits.get(action["symbol"], ()) if ex < day <= days[at]]
        dividend[at] += action["cash"] / float(np.prod(later))
    return pa.table(
        [*(bars[name] for name in BARS.names[:7]), pa.array(dividend), pa.array(factor), bars["origin"]],
        schema=BARS,
    )


def latest_actions(answers: Iterable[tuple[Document, Page]]) -> pa.Table:
    """What the newest answers say of corporate actions.

    An answer is all that there was of its symbols in its range of process dates, so it also ends what an earlier one knew there: an
    action that was called off, or moved.
    """
    known: dict[str, dict] = {}
    for document, page in answers:
        asked = document.request
        if "page_token" not in asked:
            symbols = set(asked.get("symbols", "").split(","))
            start, end = (dt.date.fromisoformat(asked[name]) for name in ("start", "end"))
            known = {
                name: row
                for name, row in known.items()
                if row["symbol"] not in symbols or not start <= row["process_date"] <= end
            }
        known |= {row["id"]: row for row in page.rows.to_pylist()}
    return pa.Table.from_pylist(list(known.values()), schema=ACTIONS)


def first_versions(articles: pa.Table) -> pa.Table:
    """Each article once, in the version that was changed first; of equal ones the one that came first. In order of publication."""
    # The sort is stable: equal versions stay in the order in which they came.
    order = articles.sort_by([("article_id", "ascending"), ("updated_at", "ascending")])
    numbered = order.append_column("_row", pa.array(np.arange(order.num_rows), pa.int64()))
    kept = numbered.group_by("article_id", use_threads=False).aggregate([("_row", "min")])["_row_min"]
    return order.take(kept).sort_by([("published_at", "ascending"), ("article_id", "ascending")])


def quote_instants(opens: dt.datetime, close: dt.datetime, every_minutes: int) -> list[dt.datetime]:
    """Ends of the minutes of a session whose last quote is wanted: every so many minutes from the open on, and the close."""
    minutes = int((close - opens) / MINUTE)
    ends = [*range(every_minutes, minutes, every_minutes), minutes]
    return [opens + end * MINUTE for end in ends]


def newest(rows: pa.Table, keys: list[str]) -> pa.Table:
    """The last row of each key, by key."""
    numbered = rows.append_column("_row", pa.array(np.arange(rows.num_rows), pa.int64()))
    kept = numbered.group_by(keys, use_threads=False).aggregate([("_row", "max")])["_row_max"]
    return rows.take(kept).sort_by([(name, "ascending") for name in keys])


def of_symbols(rows: pa.Table, symbols: Sequence[str]) -> pa.Table:
    """The rows of some symbols."""
    return rows.filter(pc.is_in(rows["symbol"], pa.array(symbols, pa.string())))


def between(rows: pa.Table, column: str, first: dt.date, last: dt.date) -> pa.Table:
    """The rows whose date lies in a range, both ends included."""
    days = rows[column]
    return rows.filter(
        pc.and_(pc.greater_equal(days, pa.scalar(first)), pc.less_equal(days, pa.scalar(last)))
    )
