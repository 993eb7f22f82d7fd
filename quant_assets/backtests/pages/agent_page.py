"""The page of one agent beside what it has to beat, and the same numbers for programs. Pure.

Belongs here: how such a page looks. Does not belong here: what it says (`quant_assets/backtests/agent_assets.py`) and what its
figures show (`quant_assets/backtests/agent_plots.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quant_assets.backtests.pages.page import (
    Html,
    banner,
    join,
    page,
    paragraph,
    section,
    table,
    text,
    write_json,
    write_whole,
)


def write_agent_page(
    folder: Path,
    name: str,
    verdict: str,
    notes: Sequence[str],
    tables: Mapping[str, Sequence[Mapping[str, object]]],
    images: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Path:
    """Write `<folder>/<name>.html` and `<folder>/<name>.json`; the path of the page.

    Args:
        folder: is made.
        name: of the evaluation, such as `market_making`.
        verdict: what came out, in a sentence.
        notes: what a reader must know, a paragraph each.
        tables: title -> rows with equal keys; the first column is text. None is drawn for no rows.
        images: title -> address of a rendered figure.
        facts: for programs; the index reads `verdict`, `model`, `paths` and `window` from it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {"agent": {"verdict": verdict, **facts}})
    title = f"Agents: {name.replace('_', ' ')}"
    body = join(
        "<nav><a href=../index.html>&larr; all reports</a></nav>",
        f"<header><h1>{text(title)}</h1></header>",
        banner([verdict]),
        *(paragraph(note, "quiet") for note in notes),
        *(section(heading, _table(rows)) for heading, rows in tables.items() if rows),
        *(
            section(heading, Html(f"<img alt='{text(heading)}' src='{address}' style='max-width:100%'>"))
            for heading, address in images.items()
        ),
        paragraph(
            Html(f"The same numbers for programs, every seed: <a href={name}.json>{name}.json</a>."), "quiet"
        ),
    )
    return write_whole(folder / f"{name}.html", page(title, body, plots=False))


def _table(rows: Sequence[Mapping[str, object]]) -> Html:
    lines = ([_whole(cell) for cell in row.values()] for row in rows)
    return Html(f"<div class=wide>{table(list(rows[0]), lines)}</div>")


def _whole(cell: object) -> Html:
    """A cell that keeps its words on one line."""
    return Html(f"<span style='white-space:nowrap'>{text(cell)}</span>")
