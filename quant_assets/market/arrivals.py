"""What becomes of rows that a source hands over: corrections of stored sessions, symbols that have to wait. Pure.

Belongs here: comparing what came with what is stored, and saying what became of each symbol. Does not belong here: whether a row is
acceptable (`validation.py`) and writing it (`assets.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.iceberg import TableSpec
from quant_resources.sources import Waiting

# A vendor publishes a session's data some time after its close; for so long a run is tried again, then a person is wanted.
LATE_FOR = dt.timedelta(hours=12)
LATE_AGAIN = dt.timedelta(minutes=30)
# What a correction is about; when a row was known and who brought it is none.
_NOT_COMPARED = ("available_at", "source")
COMPLETE, WAITING, LATE, MISSING = "complete", "waiting", "late", "missing"


@dataclass(frozen=True)
class Corrections:
    """Differences between what a source says now of sessions that are stored, and what is stored.

    Attributes:
        rows: the corrected sessions' rows whole, to be written over them; empty where nothing differs.
        sessions: sessions with a difference, in order.
        changes: one dict per changed value or added row: session, symbol, column, stored, now.
    """

    rows: pa.Table
    sessions: tuple[dt.date, ...]
    changes: list[dict[str, object]]


def corrections(fetched: pa.Table, stored: pa.Table, spec: TableSpec) -> Corrections:
    """What a source has corrected.

    A row that the source does not repeat stays: vendors leave out what they no longer serve. Sessions without any stored row are not
    looked at: they were never brought in.

    Args:
        fetched, stored: rows of the same sessions, columns as `spec`.
        spec: names the key.
    """
    import pandas as pd

    key = list(spec.key)
    known = stored["session"].unique()
    fetched = fetched.filter(pc.is_in(fetched["session"], known))
    values = [c.name for c in spec.columns if c.name not in (*key, *_NOT_COMPARED)]
    now = fetched.to_pandas().set_index(key).sort_index()
    then = stored.to_pandas().set_index(key).sort_index()
    before = then.reindex(now.index)
    added = ~now.index.isin(then.index)
    differs = pd.DataFrame(
        {
            name: (now[name] != before[name]) & ~(now[name].isna() & before[name].isna()) & ~added
            for name in values
        },
        index=now.index,
    )
    changed = differs.any(axis=1).to_numpy() | added
    if not changed.any():
        return Corrections(stored.slice(0, 0), (), [])
    changes: list[dict[str, object]] = []
    for at in changed.nonzero()[0]:
        identity = dict(zip(key, now.index[at], strict=True))
        named = {"session": str(identity.pop("session", "")), **{k: str(v) for k, v in identity.items()}}
        if "session" not in spec.key:
            named["session"] = str(now["session"].iloc[at])
        if added[at]:
            changes.append({**named, "column": "(row)", "stored": "", "now": "added"})
        for name in values:
            if differs[name].iloc[at]:
                changes.append(
                    {
                        **named,
                        "column": name,
                        "stored": str(before[name].iloc[at]),
                        "now": str(now[name].iloc[at]),
                    }
                )
    sessions = tuple(sorted({dt.date.fromisoformat(str(c["session"])) for c in changes}))
    touched = pa.array(sessions, pa.date32())
    # The whole corrected sessions: what came wins, what did not come again stays.
    new = fetched.filter(pc.is_in(fetched["session"], touched))
    old = stored.filter(pc.is_in(stored["session"], touched))
    again = set(zip(*(new[name].to_pylist() for name in key), strict=True))
    kept = [row not in again for row in zip(*(old[name].to_pylist() for name in key), strict=True)]
    rows = pa.concat_tables([spec.conform(new), spec.conform(old.filter(pa.array(kept, pa.bool_())))])
    return Corrections(rows, sessions, changes)


def keep_waiting(fetched: pa.Table, stored: pa.Table, waiting: Collection[str]) -> pa.Table:
    """What came, with the stored rows of the symbols that have to wait: a slice is replaced whole, and theirs must not be lost."""
    if not waiting or not stored.num_rows:
        return fetched
    theirs = stored.filter(pc.is_in(stored["symbol"], pa.array(sorted(waiting), pa.string())))
    return pa.concat_tables([fetched, theirs.select(fetched.column_names).cast(fetched.schema)])


def coverage(
    dataset: str,
    rows: pa.Table,
    symbols: Collection[str],
    waiting: Sequence[Waiting],
    missing: Sequence[tuple[str, dt.date]],
    first: dt.date,
    last: dt.date,
    close: dt.datetime,
    now: dt.datetime,
) -> list[dict[str, object]]:
    """What became of each symbol of a run, as rows of `market.coverage`.

    Args:
        dataset: `bars`, `news` or `minute_bars`.
        rows: that are stored now, of sessions `first`..`last`.
        symbols: that were wanted.
        waiting: that have to wait, and until when.
        missing: (symbol, session) without a row that should have one.
        first, last: sessions of the run.
        close: of `last`. Up to twelve hours after it a row of `last` that is missing is late rather than gone.
        now: instant of the run.
    """
    found: dict[str, tuple[int, dt.date]] = {}
    if rows.num_rows:
        grouped = rows.group_by("symbol").aggregate([("session", "count"), ("session", "max")])
        found = {
            symbol: (count, newest)
            for symbol, count, newest in zip(
                *(grouped[name].to_pylist() for name in ("symbol", "session_count", "session_max")),
                strict=True,
            )
        }
    held_up = {item.symbol: item for item in waiting}
    lacks: dict[str, list[dt.date]] = {}
    for symbol, session in missing:
        lacks.setdefault(symbol, []).append(session)
    result = []
    for symbol in sorted({*symbols, *found, *held_up, *lacks}):
        count, newest = found.get(symbol, (0, None))
        status, note, retry_at = COMPLETE, "", None
        if symbol in held_up:
            status, note, retry_at = WAITING, held_up[symbol].reason, held_up[symbol].retry_at
        elif symbol in lacks:
            days = lacks[symbol]
            status, note = (
                MISSING,
                f"no row of {', '.join(map(str, days[:3]))}{', ...' if len(days) > 3 else ''}",
            )
            if last in days and now < close + LATE_FOR:
                status, retry_at = LATE, now + LATE_AGAIN
        result.append(
            {
                "dataset": dataset,
                "symbol": symbol,
                "status": status,
                "first_session": first,
                "last_session": last,
                "newest_session": newest,
                "rows": count,
                "note": note,
                "retry_at": retry_at,
                "available_at": now,
            }
        )
    return result


def still_waiting(
    before: Sequence[dict[str, object]], now: Sequence[dict[str, object]], first: dt.date, last: dt.date
) -> list[dict[str, object]]:
    """Earlier rows of `market.coverage` that stay: of symbols that wait for sessions which this run did not bring.

    Args:
        before: stored rows of the dataset.
        now: rows of this run.
        first, last: sessions that this run asked for, corrections included.
    """
    brought = {str(row["symbol"]) for row in now if row["status"] != WAITING}
    again = {(row["symbol"], row["first_session"], row["last_session"]) for row in now}
    return [
        row
        for row in before
        if row["status"] in (WAITING, LATE)
        and (row["symbol"], row["first_session"], row["last_session"]) not in again
        and not (
            row["symbol"] in brought
            and first <= row["first_session"]  # type: ignore[operator]
            and row["last_session"] <= last  # type: ignore[operator]
        )
    ]


def without_waiting(bars: pa.Table, coverage: pa.Table, peers: pa.Table | None = None) -> pa.Table:
    """Bars without those whose news have not come: news that are not there yet are not the same as none.

    Args:
        bars: columns symbol and session.
        coverage: rows of `market.coverage` about `news`.
        peers: columns symbol and peer; a symbol waits for its peers' news then. None: for its own.
    """
    from quant_resources.duckdb import query

    waits = coverage.filter(pc.equal(coverage["status"], WAITING))
    if not waits.num_rows:
        return bars
    waits = waits.select(["symbol", "first_session", "last_session"])
    if peers is not None:
        waits = query(
            "SELECT DISTINCT peers.symbol, first_session, last_session FROM waits JOIN peers ON peers.peer = waits.symbol",
            {"waits": waits, "peers": peers.select(["symbol", "peer"])},
        )
    return query(
        "SELECT bars.* FROM bars ANTI JOIN waits ON bars.symbol = waits.symbol "
        "AND bars.session BETWEEN waits.first_session AND waits.last_session ORDER BY bars.symbol, bars.session",
        {"bars": bars, "waits": waits},
    )
