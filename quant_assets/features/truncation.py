"""Truncation invariance: the proof that a row uses nothing from after its session. Pure.

Belongs here: cutting inputs at an instant, rebuilding, comparing bit for bit. Does not belong here: which tables are
checked when (`checks.py`).
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.calendar import TradingCalendar

Build = Callable[[Mapping[str, pa.Table], dt.date, dt.date], pa.Table]


def cut(inputs: Mapping[str, pa.Table], instant: dt.datetime) -> dict[str, pa.Table]:
    """What was known at `instant`: rows of every input with `available_at` not after it."""
    return {
        name: table.filter(
            pc.less_equal(table["available_at"], pa.scalar(instant, pa.timestamp("us", "UTC")))
        )
        for name, table in inputs.items()
    }


def truncation_violations(
    build: Build,
    inputs: Mapping[str, pa.Table],
    stored: pa.Table,
    sessions: Sequence[dt.date],
    calendar: TradingCalendar,
    slice_column: str = "session",
) -> list[dict[str, object]]:
    """Rebuild single sessions from what was known at their close and compare with the stored rows, bit for bit.

    Args:
        build: (inputs, first, last) -> feature rows.
        inputs: the build's inputs with everything that is known now, including rows after `sessions`.
        stored: the feature table.
        sessions: which sessions to prove.
        calendar: gives the closes.
        slice_column: column that carries the session under proof.

    Returns:
        One dict per differing row or value: session, symbol, column, stored, rebuilt. Empty when nothing peeks.
    """
    found: list[dict[str, object]] = []
    for session in sessions:
        rebuilt = build(cut(inputs, calendar.close(session)), session, session)
        expected = stored.filter(pc.equal(stored[slice_column], pa.scalar(session)))
        rebuilt = rebuilt.select(expected.column_names).cast(expected.schema)
        expected, rebuilt = (
            t.sort_by([("symbol", "ascending"), ("session", "ascending")]) for t in (expected, rebuilt)
        )
        if expected.equals(rebuilt):
            continue
        identity = ["symbol", "session"]
        for name, table in (("stored", expected), ("rebuilt", rebuilt)):
            counts = Counter((row["symbol"], row["session"]) for row in table.select(identity).to_pylist())
            found += [
                {
                    "session": str(session),
                    "symbol": key[0],
                    "column": "(row)",
                    "stored": f"{count} times" if name == "stored" else "",
                    "rebuilt": f"{count} times" if name == "rebuilt" else "",
                }
                for key, count in counts.items()
                if count > 1
            ]
        before = {tuple(row[k] for k in identity): row for row in expected.to_pylist()}
        after = {tuple(row[k] for k in identity): row for row in rebuilt.to_pylist()}
        for key in sorted({*before, *after}):
            old, new = before.get(key), after.get(key)
            if old is None or new is None:
                found.append(
                    {
                        "session": str(session),
                        "symbol": key[0],
                        "column": "(row)",
                        "stored": "present" if old else "absent",
                        "rebuilt": "present" if new else "absent",
                    }
                )
                continue
            found += [
                {
                    "session": str(session),
                    "symbol": key[0],
                    "column": c,
                    "stored": str(old[c]),
                    "rebuilt": str(new[c]),
                }
                for c in expected.column_names
                # NaN differs from itself; the representation tells whether the bits do.
                if repr(old[c]) != repr(new[c])
            ]
    return found
