"""What all pages are made of: small pieces of HTML, the frame with its style and script, files written whole. Pure.

Belongs here: anything that two pages would otherwise both spell out. Does not belong here: what a page says (`tear_sheet.py`,
`comparison.py`, `report_index.py`) and what a figure shows (`*_figures.py`).

Pages work without a network: `plotly.min.js` is written once beside them, each figure is JSON inside the page, and a short
script draws it. All text from outside goes through `text`. A file is there whole or not at all.
"""

from __future__ import annotations

import datetime as dt
import html
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import plotly
import plotly.io

from quant_assets.backtests.pages.figures import Absent, Plot
from quant_assets.backtests.pages.glossary import FORMATS, undefined

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;color:#222;background:#fff;
 margin:0 auto;max-width:1240px;padding:1.2rem 1.5rem 3rem}
h1{font-size:1.75rem;font-weight:600;margin:.2rem 0 0;overflow-wrap:anywhere}
h2{font-size:1.25rem;font-weight:600;margin:2.6rem 0 .8rem;padding-top:.5rem;border-top:2px solid #222}
h3{font-size:.95rem;font-weight:600;margin:0 0 .3rem}
p{margin:.3rem 0 .7rem;max-width:60rem}a{color:#0072B2}
nav{font-size:.9rem;color:#666}nav a{margin-right:1.1rem;text-decoration:none}nav a:hover{text-decoration:underline}
.quiet{color:#666;font-size:.9rem}
.banner{border-left:4px solid #E69F00;background:#fdf6e6;padding:.55rem .9rem;margin:.8rem 0;max-width:none}
.banner p{margin:.15rem 0}
.tiles{display:grid;grid-template-columns:repeat(7,minmax(0,1fr));gap:.7rem;margin:1.1rem 0 .6rem}
.tile{background:#f6f7f8;border-radius:6px;padding:.6rem .8rem;min-width:0}
.tile b{display:block;font-size:1.35rem;font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap}
.tile span{display:block;font-size:.8rem;color:#555}
.columns{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1.4rem 2rem;align-items:start}
figure{margin:0 0 1.4rem;min-width:0}figcaption{color:#666;font-size:.85rem;max-width:62rem;margin-top:.2rem}
.absent p{color:#555;background:#f6f7f8;border-radius:6px;padding:.8rem 1rem;margin:.2rem 0}
table{border-collapse:collapse;font-size:.875rem;margin:.2rem 0 .8rem;font-variant-numeric:tabular-nums}
.wide table,.statistics table,.pairs table{width:100%}
.statistics table{table-layout:fixed}.statistics th:first-child{width:46%}.pairs table{table-layout:fixed}
th,td{padding:.24rem .7rem .24rem 0;text-align:left;border-bottom:1px solid #e8e8e8;vertical-align:top}
th{font-weight:600;color:#444;border-bottom:1px solid #999}
.n{text-align:right;padding:.24rem 0 .24rem .9rem;white-space:nowrap}
tr.yardstick td{color:#666;font-style:italic}
.scroll{overflow-x:auto}.tall{max-height:430px;overflow:auto}.tall th{position:sticky;top:0;background:#fff}
code,#folds td:nth-child(-n+3){white-space:nowrap}
abbr{text-decoration:underline dotted #aaa;text-underline-offset:3px;cursor:help}
details{margin:.4rem 0 1rem}summary{cursor:pointer;color:#0072B2;font-size:.9rem}
dl{font-size:.875rem;columns:2;column-gap:2rem}dt{font-weight:600;break-after:avoid}dd{margin:0 0 .5rem;color:#444}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:#f3f4f5;padding:.08em .35em;border-radius:3px}
.up{color:#00724f}.down{color:#b34700}
@media(max-width:900px){.columns{grid-template-columns:minmax(0,1fr)}.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}dl{columns:1}}
@media print{nav,details:not([open]){display:none}figure,table{break-inside:avoid}}
""".strip()

SCRIPT = """
for (const place of document.querySelectorAll('.plot')) {
  const figure = JSON.parse(document.getElementById(place.id + '-data').textContent);
  Plotly.newPlot(place, figure.data, figure.layout,
    {responsive: true, displaylogo: false, modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']});
}
""".strip()


class Html(str):
    """Text that is HTML already."""


MISSING = Html("&ndash;")


# ------------------------------------------------------------------------------------------------------ inside a line


def text(value: object) -> str:
    """A value as HTML."""
    return value if isinstance(value, Html) else html.escape(str(value))


def show(value: Any, form: str = "plain") -> str:
    """A value in one of the `FORMATS`, as HTML; a dash where there is none."""
    if undefined(value):
        return MISSING
    if isinstance(value, bool | str | dt.date) or not isinstance(value, int | float | np.number):
        return text(value)
    return Html(text(FORMATS[form](value)))


def term(label: str, definition: str) -> Html:
    """A word with its definition as a tooltip."""
    return Html(f"<abbr title='{text(definition)}'>{text(label)}</abbr>")


def assignments(values: Mapping[str, Any]) -> Html:
    """Parameters as `name = value`."""
    codes = [f"<code>{text(name)} = {text(value)}</code>" for name, value in values.items()]
    return Html(" ".join(codes) or "no parameters")


def link(address: str, label: object) -> Html:
    """A link to a file below this page."""
    return Html(f"<a href='{html.escape(quote(address))}'>{text(label)}</a>")


# ------------------------------------------------------------------------------------------------------------- blocks


def join(*parts: str) -> Html:
    """One below the other."""
    return Html("\n".join(parts))


def paragraph(value: object, kind: str = "") -> Html:
    """A paragraph; `kind` is a class of the style."""
    return Html(f"<p{f' class={kind}' if kind else ''}>{text(value)}</p>")


def anchor(title: str) -> str:
    """Where a section of this title can be linked."""
    return title.lower().replace(" ", "-")


def section(title: str, *parts: str) -> Html:
    """Parts below a heading."""
    return Html(f"<section id={anchor(title)}><h2>{text(title)}</h2>\n{join(*parts)}\n</section>")


def columns(*parts: str) -> Html:
    """Parts side by side, two in a row."""
    return Html(f"<div class=columns>{join(*parts)}</div>")


def banner(notes: Sequence[object]) -> Html:
    """What a reader must know first."""
    return Html(f"<div class=banner>{''.join(map(paragraph, notes))}</div>" if notes else "")


def tiles(numbers: Iterable[tuple[str, str, str]]) -> Html:
    """Key numbers: (value, name, what stands below)."""
    boxes = (
        f"<div class=tile><span>{name}</span><b>{value}</b><span>{below}</span></div>"
        for value, name, below in numbers
    )
    return Html(f"<div class=tiles>{''.join(boxes)}</div>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], words: int = 1, name: str = "") -> Html:
    """A table whose first `words` columns are text and whose others are numbers."""

    def line(cells: Sequence[object], tag: str) -> str:
        kinds = ("" if i < words else " class=n" for i in range(len(cells)))
        return "".join(f"<{tag}{kind}>{text(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    label = f" id={name}" if name else ""
    head = f"<thead><tr>{line(header, 'th')}</tr></thead>"
    return Html(f"<div class=scroll><table{label}>{head}{body}</table></div>")


def pairs(title: str, values: Mapping[str, Any]) -> Html:
    """Names and values below a title."""
    if not values:
        return paragraph(f"{title}: none")
    return Html(f"<div class=pairs>{table((title, ''), ((k, show(v)) for k, v in values.items()), 2)}</div>")


def titled(title: str, content: str, kind: str = "", caption: str = "") -> Html:
    """Content below a small heading, usually a table; `kind` is a class of the style."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return Html(f"<figure{f' class={kind}' if kind else ''}><h3>{text(title)}</h3>{content}{below}</figure>")


def absent(title: str, why: object) -> Html:
    """What stands where something would be empty."""
    return titled(title, paragraph(why), "absent")


def plot(what: Plot | Absent) -> Html:
    """A figure: its title, the place where the script draws it, its JSON and a caption; or why there is none."""
    if isinstance(what, Absent):
        return absent(what.title, what.why)
    # "</script>" inside the data would end it; plotly's JSON escapes the bracket, and so do we.
    data = plotly.io.to_json(what.figure, validate=False).replace("<", "\\u003c")
    return Html(
        f"<figure><h3>{text(what.title)}</h3>"
        f"<div class=plot id=plot-{what.name} style='height:{what.figure.layout.height}px'></div>"
        f"<script type=application/json id=plot-{what.name}-data>{data}</script>"
        f"<figcaption>{text(what.caption)}</figcaption></figure>"
    )


def page(title: str, body: str, plots: bool = True) -> str:
    """A whole page."""
    drawing = f"<script src=plotly.min.js></script>\n<script>{SCRIPT}</script>" if plots else ""
    without = paragraph("The plots need JavaScript; the tables do not.", "banner")
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n<link rel=icon href='data:,'>\n"
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{f'<noscript>{without}</noscript>' if plots else ''}{body}\n{drawing}\n</body>\n</html>\n"
    )


# -------------------------------------------------------------------------------------------------------------- files


def write_whole(path: Path, content: str) -> Path:
    """Write a file whole: into a temporary one beside it, then over the old one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_plotly(folder: Path) -> None:
    """The library that draws, once per folder."""
    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    target = folder / "plotly.min.js"
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        write_whole(target, source.read_text(encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write what a program reads; NaN and infinity become null."""
    return write_whole(path, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """The same in JSON's types: NaN and infinity become None, dates ISO strings, arrays lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if isinstance(value, dt.date) else str(value)
