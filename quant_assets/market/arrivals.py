"""What becomes of rows that a source hands over: corrections of stored sessions, symbols that have to wait. Pure.

Belongs here: comparing what came with what is stored, and saying what became of each symbol. Does not belong here: whether a row is
acceptable (`validation.py`) and writing it (`live.py`).
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
LATE_AGAIN, LATE_AGAIN_LIMITED = dt.timedelta(minutes=30), dt.timedelta(hours=3)
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


def ask_again_after(since_close: dt.timedelta, requests_per_day: int | None) -> dt.timedelta:
    """How long to wait before a vendor that owes a session is asked again: half an hour, less often where requests are few or it takes long."""
    if since_close > LATE_FOR:
        return dt.timedelta(hours=6)
    return LATE_AGAIN if requests_per_day is None else LATE_AGAIN_LIMITED


def corrections(
    fetched: pa.Table, stored: pa.Table, spec: TableSpec, began: dt.date | None = None
) -> Corrections:
    """What a source has corrected.

    A row that the source does not repeat stays: vendors leave out what they no longer serve. Sessions from `began` on without any
    stored row are taken as they come: a night failed there.

    Args:
        fetched, stored: rows of the same sessions, columns as `spec`.
        spec: names the key, which holds the session.
        began: first session that the table holds; earlier ones were never wanted. None: that of `stored`.
    """
    import pandas as pd

    key = list(spec.key)
    began = began or pc.min(stored["session"]).as_py()
    if began is None:
        return Corrections(stored.slice(0, 0), (), [])
    fetched = fetched.filter(pc.greater_equal(fetched["session"], pa.scalar(began)))
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
        named = {"session": str(identity.pop("session")), **{k: str(v) for k, v in identity.items()}}
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
    now: dt.datetime,
    again: dt.datetime | None,
    new: Collection[str] = (),
) -> list[dict[str, object]]:
    """What became of each symbol of a run, as rows of `market.coverage`.

    Args:
        dataset: `bars`, `news`, `minute_bars` or `securities`.
        rows: that are stored, of sessions `first`..`last`.
        symbols: that were wanted.
        waiting: that have to wait, and until when.
        missing: (symbol, session) without a row that should have one.
        first, last: sessions of the run.
        now: instant of the run.
        again: when a row of `last` that is missing is worth asking for; None where it is taken for gone.
        new: symbols that have no stored row before the run's sessions, where others have.
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
            if last in days and again is not None:
                status, retry_at = LATE, again
        elif dataset == "bars" and not count:
            # Not listed yet, or no such symbol: nobody can tell from here.
            status, note = (
                MISSING,
                f"no bar in {first}..{last}: not listed then, or misspelt in QUANT_SYMBOLS",
            )
        elif symbol in new:
            note = f"new: nothing before {first} is stored; run chain_job for its history"
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
    before: Sequence[dict[str, object]],
    now: Sequence[dict[str, object]],
    first: dt.date | None,
    last: dt.date,
) -> list[dict[str, object]]:
    """Earlier rows of `market.coverage` that stay: of symbols that wait for sessions which this run did not store.

    Args:
        before: stored rows of the dataset.
        now: rows of this run.
        first, last: sessions that this run stored, corrections included; `first` is None where it stored nothing.
    """
    waits = {str(row["symbol"]) for row in now if row["status"] == WAITING}
    again = {(row["symbol"], row["first_session"], row["last_session"]) for row in now}
    return [
        row
        for row in before
        if row["status"] in (WAITING, LATE)
        and (row["symbol"], row["first_session"], row["last_session"]) not in again
        and not (
            first is not None
            and row["symbol"] not in waits
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
