"""What every layer's Dagster face shares: figures as markdown, data versions, check results from violations.

Belongs here: turning results into Dagster metadata. Does not belong here: what a figure shows (each layer's
`plots.py`) and table writes (`quant_resources/io_manager.py`).
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pyarrow as pa

from quant_assets.partitions import CALENDAR
from quant_resources.iceberg import TableSpec, Warehouse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_SESSIONS = 250  # what the plots of a single night show

# Okabe & Ito's palette: distinguishable for colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def new_figure(width: float = 9.0, height: float = 4.5) -> Figure:
    """An empty figure without pyplot's global state; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def date_axis(ax: Axes) -> None:
    """Few, short date labels, whatever the range."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=9)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ax.tick_params(axis="x", labelsize=8)


def render(figure: Figure) -> str:
    """A figure as the address of an image that carries its own data (PNG)."""
    buffer = io.BytesIO()
    # 80 dots per inch keeps an image near 40 kB in the event log and readable in the UI's side panel.
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure_markdown(figure: Figure, caption: str = "") -> dg.MarkdownMetadataValue:
    """A figure as an image inside markdown, which the Dagster UI shows on the asset's page."""
    return image_markdown(render(figure), caption)


def image_markdown(image: str, caption: str = "") -> dg.MarkdownMetadataValue:
    """A rendered figure inside markdown."""
    return dg.MetadataValue.md(f"![{caption}]({image})\n\n{caption}")


def write_report(
    path: Path,
    title: str,
    summary: str,
    tables: Mapping[str, Sequence[Mapping[str, object]]],
    images: Mapping[str, str],
) -> Path:
    """One self-contained HTML page with tables and rendered figures, for people without the Dagster UI; replaced whole."""
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>",
        "<style>body{font:15px system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.2rem .7rem;text-align:left;"
        "border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}img{max-width:100%}</style>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(summary)}</p>",
    ]
    for caption, image in images.items():
        parts.append(f"<h2>{html.escape(caption)}</h2><img alt='{html.escape(caption)}' src='{image}'>")
    for caption, rows in tables.items():
        parts.append(f"<h2>{html.escape(caption)}</h2><table>")
        if rows:
            parts.append("<tr>" + "".join(f"<th>{html.escape(str(k))}</th>" for k in rows[0]) + "</tr>")
        for row in rows:
            cells = [f"{v:.5g}" if isinstance(v, float) else html.escape(str(v)) for v in row.values()]
            parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        parts.append("</table>")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(parts))
    temporary.replace(path)
    return path


def markdown_table(rows: Sequence[dict[str, object]], most: int = 50) -> dg.MarkdownMetadataValue:
    """Rows of dictionaries with equal keys as a markdown table."""
    if not rows:
        return dg.MetadataValue.md("*none*")
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows[:most]:
        cells = [f"{v:.5g}" if isinstance(v, float) else str(v).replace("|", "\\|") for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    if len(rows) > most:
        lines.append(f"\n*and {len(rows) - most} more*")
    return dg.MetadataValue.md("\n".join(lines))


def show(context: dg.AssetExecutionContext, metadata: Mapping[str, object]) -> None:
    """Attach metadata to the newest partition of the run only.

    Dagster writes one materialization per partition. A plot of 40 kB on each of 3,270 would be 130 MB of copies of
    the same picture, and the UI shows the newest one anyway.
    """
    partition = context.partition_key_range.end if context.has_partition_key_range else None
    context.add_asset_metadata(dict(metadata), partition_key=partition)


def data_version(data: pa.Table, sessions: tuple[dt.date, dt.date] | None = None) -> dg.DataVersion | None:
    """Identity of the rows of one partition (or of an unpartitioned table), whenever they were written.

    None for a range: Dagster would give every partition of it the range's version.
    """
    if sessions and sessions[0] != sessions[1]:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data.combine_chunks(), max_chunksize=1 << 20)
    return dg.DataVersion(hashlib.blake2b(sink.getvalue(), digest_size=12).hexdigest())


def sql_version(sql: str) -> str:
    """A code version that changes exactly when the SQL does."""
    return hashlib.sha256(sql.encode()).hexdigest()[:12]


def with_recent_sessions(
    warehouse: Warehouse, spec: TableSpec, data: pa.Table, first: dt.date, last: dt.date
) -> pa.Table:
    """What a plot shows: the rows of the run, and before a short run the stored sessions up to 250 back."""
    start = CALENDAR.shift(last, -PLOT_SESSIONS)
    if first <= start:
        return data
    return spec.conform(pa.concat_tables([warehouse.read(spec, start, CALENDAR.shift(first, -1)), data]))


def first_symbols(data: pa.Table, most: int) -> pa.Table:
    """The rows of the first symbols by name: a plot of six lines need not read five hundred."""
    import pyarrow.compute as pc

    symbols = sorted(data["symbol"].unique().to_pylist())[:most]
    return data.filter(pc.is_in(data["symbol"], pa.array(symbols, pa.string())))
