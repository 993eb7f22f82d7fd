"""Tear sheets: what a strategy did, as pages that a person opens in a browser and files that a program reads. Pure.

Belongs here: the content and the look of `<strategy>.html`, of the comparison and of the index, and their JSON. Does not
belong here: any number that needs a definition (`statistics.py`), running anything, and the pictures of the Dagster UI
(`plots.py`).

Pages work without a network: `plotly.min.js` is written once beside them, each figure is JSON inside the page, and a short
script draws it. All text from outside goes through `_text`. A file is there whole or not at all.
"""

from __future__ import annotations

import datetime as dt
import html
import json
import math
import os
import statistics as averages
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from quant_assets.backtests import statistics
from quant_assets.backtests.statistics import Conventions
from quant_assets.market.series import BarSeries
from quant_assets.strategies import YARDSTICKS

ROLLING_SESSIONS = 126
MOST_SYMBOLS = 12  # of the price chart: those with the most trades
MOST_TRADES = 100  # of the table, at each end
MOST_POINTS = 3000  # of a scatter of trades
MOST_TRIALS = 5000  # of the parallel coordinates

# Okabe & Ito's palette: distinguishable for colour-blind readers.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
INK, GREY, RULE = "#222222", "#8a8a8a", "#e3e3e3"
STRATEGY_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
YARDSTICK_COLORS = (GREY, "#bbbbbb")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LOSS_TO_GAIN = [[0.0, VERMILLION], [0.5, "#ffffff"], [1.0, BLUE]]


@dataclass(frozen=True)
class SweepView:
    """What a sweep of one strategy found.

    Attributes:
        objective: the column of `trials` that was maximised, e.g. `sharpe`.
        names: swept parameters.
        trials: one row per trial: a column per name in `names`, statistics as in `grid.STATISTICS`, `state` (`complete`
            or `failed`) and `error` (text or null).
        heat_map: 0, 1 or 2 of the names.
        chosen: name -> value of the set that the sweep chose; the page says so where the backtest used another.
        pbo: probability of backtest overfitting, in [0, 1].
        trial_count: how many trials the deflated Sharpe ratio counts.
        sharpe_variance: variance of their annual Sharpe ratios.
        walk_forward: one per fold: `train_first`, `train_last`, `test_first`, `test_last` (dates; the last may also be called
            `session`), `parameters` (dict), `in_sample` and `out_of_sample` (the objective), `total_return` (out of sample,
            fraction).
        walk_forward_sessions: `datetime64[D]`, shape (sessions,): the test windows, one after the other.
        walk_forward_equity: dollars, shape (sessions,).
    """

    objective: str
    names: tuple[str, ...]
    trials: pa.Table
    heat_map: tuple[str, ...]
    chosen: Mapping[str, Any]
    pbo: float | None = None
    trial_count: int = 1
    sharpe_variance: float | None = None
    walk_forward: Sequence[Mapping[str, Any]] = ()
    walk_forward_sessions: np.ndarray | None = None
    walk_forward_equity: np.ndarray | None = None


@dataclass(frozen=True)
class TearSheet:
    """One strategy on the out-of-sample window, and what is needed to judge it.

    Attributes:
        strategy: its name, also the name of its files.
        description: one sentence.
        parameters: field -> value.
        statistics: `statistics.summary` of the out-of-sample window.
        in_sample: the same of the in-sample window; None where the strategy's model was trained on it.
        sessions: `datetime64[D]`, shape (n,).
        equity: dollars at each close, shape (n,).
        invested: market value of the positions at each close, dollars, shorts negative, shape (n,).
        gross: the same with shorts counted positive, shape (n,).
        yardsticks: name -> equity on the same sessions, dollars, shape (n,).
        trades: columns as `engine.TRADE_SCHEMA`.
        rejected: columns as `engine.REJECTION_SCHEMA`.
        bars: by symbol, the whole history; charts show the window.
        cost_sensitivity: one per multiple of the costs: `cost_factor`, `total_return` (fraction), `sharpe` (annual),
            `final_equity` (dollars).
        costs: `Costs` as a dict.
        account: `Account` as a dict.
        sweep: what the parameters were chosen from; None where they were given.
        notes: what a reader must know first, shown on top.
    """

    strategy: str
    description: str
    parameters: Mapping[str, Any]
    statistics: Mapping[str, Any]
    in_sample: Mapping[str, Any] | None
    sessions: np.ndarray
    equity: np.ndarray
    invested: np.ndarray
    gross: np.ndarray
    yardsticks: Mapping[str, np.ndarray]
    trades: pa.Table
    rejected: pa.Table
    bars: Mapping[str, BarSeries]
    cost_sensitivity: Sequence[Mapping[str, float | None]]
    costs: Mapping[str, Any]
    account: Mapping[str, Any]
    sweep: SweepView | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.strategy or Path(self.strategy).name != self.strategy or self.strategy.startswith("."):
            raise ValueError(f"strategy = {self.strategy!r} names a file and cannot hold a path")
        if self.strategy == "index" or self.strategy == "comparison":
            raise ValueError(f"strategy = {self.strategy!r} is the name of another page")
        series = {"equity": self.equity, "invested": self.invested, "gross": self.gross, **self.yardsticks}
        for name, values in series.items():
            if np.shape(values) != self.sessions.shape:
                raise ValueError(f"{name} has shape {np.shape(values)} for {self.sessions.size} sessions")

    @property
    def conventions(self) -> Conventions:
        """How its numbers are annualised."""
        return Conventions(**self.statistics["conventions"])

    @property
    def is_yardstick(self) -> bool:
        """Whether it is only there to be compared with."""
        return self.strategy in YARDSTICKS


# ----------------------------------------------------------------------------------------------------------- writing


def write_tear_sheet(sheet: TearSheet, folder: Path) -> Path:
    """Write `<folder>/<strategy>.html` and `<folder>/<strategy>.json`; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_plotly(folder)
    _write(folder / f"{sheet.strategy}.json", _to_json(_facts(sheet)))
    return _write(folder / f"{sheet.strategy}.html", _tear_sheet_page(sheet))


def write_comparison(sheets: Sequence[TearSheet], folder: Path) -> Path:
    """Write `<folder>/index.html` and `<folder>/comparison.json`; the path of the page.

    Everything is compared on the sessions that all sheets have, under the conventions of the first. A tear sheet is linked
    if its page exists, so write those first; the page above it, `write_index` makes.

    Raises:
        ValueError: no sheet, or two of one name.
    """
    if not sheets:
        raise ValueError("there is nothing to compare")
    names = [sheet.strategy for sheet in sheets]
    if len(set(names)) != len(names):
        raise ValueError(f"two sheets have the same name: {', '.join(names)}")
    folder.mkdir(parents=True, exist_ok=True)
    _write_plotly(folder)
    common = _common(sheets)
    _write(folder / "comparison.json", _to_json(_comparison_facts(sheets, common)))
    return _write(folder / "index.html", _comparison_page(sheets, common, folder))


def write_index(reports_dir: Path) -> Path:
    """Write `<reports_dir>/index.html`, which links every report below it: backtests, then models, the newest first."""
    reports_dir.mkdir(parents=True, exist_ok=True)
    return _write(reports_dir / "index.html", _index_page(reports_dir))


def _write(path: Path, content: str) -> Path:
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


def _write_plotly(folder: Path) -> None:
    """The library that draws, once per folder."""
    import plotly

    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    target = folder / "plotly.min.js"
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        _write(target, source.read_text(encoding="utf-8"))


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


def _to_json(value: Any) -> str:
    return json.dumps(_plain(value), indent=1, allow_nan=False) + "\n"


def _facts(sheet: TearSheet) -> dict[str, Any]:
    """What the JSON beside a tear sheet holds."""
    sweep = sheet.sweep
    return {
        "strategy": sheet.strategy,
        "description": sheet.description,
        "yardstick": sheet.is_yardstick,
        "notes": sheet.notes,
        "parameters": sheet.parameters,
        "conventions": sheet.statistics["conventions"],
        "statistics": sheet.statistics,
        "in_sample": sheet.in_sample,
        "costs": sheet.costs,
        "account": sheet.account,
        "cost_sensitivity": sheet.cost_sensitivity,
        "symbols": sorted(sheet.bars),
        "rejected_orders": sheet.rejected.num_rows,
        "sweep": sweep
        and {
            "objective": sweep.objective,
            "names": sweep.names,
            "chosen": sweep.chosen,
            "trial_count": sweep.trial_count,
            "complete": completed(sweep).num_rows,
            "failed": sweep.trials.num_rows - completed(sweep).num_rows,
            "sharpe_variance": sweep.sharpe_variance,
            "pbo": sweep.pbo,
            "walk_forward": sweep.walk_forward,
        },
    }


# ------------------------------------------------------------------------------------------------- numbers for plots


def monthly_returns(sessions: np.ndarray, equity: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return of each calendar month and year, fractions.

    A month's return is its last equity over that of the month before (of the first session, for the first month), - 1.

    Args:
        sessions: `datetime64[D]`, shape (n,).
        equity: dollars, shape (n,).

    Returns:
        years; returns of months, shape (years, 12), NaN where there is no session; returns of years, shape (years,).
    """

    def changes(unit: str) -> tuple[np.ndarray, np.ndarray]:
        period = sessions.astype(f"datetime64[{unit}]")
        last = np.flatnonzero(np.r_[period[1:] != period[:-1], True])
        level = np.r_[equity[0], equity[last]]
        alive = np.minimum.accumulate(level)[:-1] > 0
        change = np.divide(level[1:], level[:-1], out=np.ones(last.size), where=alive) - 1
        return period[last].astype(int), change

    months, change = changes("M")
    years = list(range(1970 + int(months[0] // 12), 1971 + int(months[-1] // 12)))
    table, totals = np.full((len(years), 12), np.nan), np.full(len(years), np.nan)
    table[months // 12 + 1970 - years[0], months % 12] = change
    year, change = changes("Y")
    totals[year + 1970 - years[0]] = change
    return years, table, totals


def quoted_exit(trades: pa.Table) -> np.ndarray:
    """Exit prices as they were quoted on the exit's session, dollars, shape (trades,).

    The engine states them in shares of the entry's session; a split in between divides them.
    """
    return trades["exit_price"].to_numpy() / trades["split_factor"].to_numpy()


def completed(sweep: SweepView) -> pa.Table:
    """The trials that ended with a number for the objective, the best first."""
    trials = sweep.trials
    value = _floats(trials, sweep.objective)
    good = np.isfinite(value)
    if "state" in trials.column_names:
        good &= np.array([state == "complete" for state in trials["state"].to_pylist()], dtype=bool)
    order = np.argsort(-value[good], kind="stable")
    return trials.take(pa.array(np.flatnonzero(good)[order]))


class HeatMap(NamedTuple):
    """The objective over two parameters.

    Attributes:
        x, y: values of the two parameters, ascending.
        z: shape (len(y), len(x)), the best objective over all other parameters, NaN where there was no trial.
        chosen: (column, row) of the chosen trial, None where it is not among the trials.
    """

    x: list[Any]
    y: list[Any]
    z: np.ndarray
    chosen: tuple[int, int] | None

    @property
    def sparse(self) -> bool:
        """Whether most cells are empty, as after a random search: then points say more than cells."""
        return float(np.isfinite(self.z).mean()) < 0.25


def heat_map_of(sweep: SweepView) -> HeatMap:
    """The table behind the heat map; needs two names in `heat_map` and a complete trial."""
    trials = completed(sweep)
    columns = [trials[name].to_pylist() for name in sweep.heat_map]
    x, y = (sorted(set(values), key=_order) for values in columns)
    z = np.full((len(y), len(x)), np.nan)
    # Worst first, so that the best of a cell is what stays.
    cells = list(zip(*columns, _floats(trials, sweep.objective), strict=True))[::-1]
    for a, b, value in cells:
        z[y.index(b), x.index(a)] = value
    a, b = (sweep.chosen.get(name) for name in sweep.heat_map)
    return HeatMap(x, y, z, (x.index(a), y.index(b)) if a in x and b in y else None)


def parallel_columns(sweep: SweepView) -> list[str]:
    """Columns of `trials` that the parallel coordinates show: parameters, then statistics, the objective last."""
    others = ("trades", "volatility", "max_drawdown", "total_return")
    return [*sweep.names, *(name for name in others if name != sweep.objective), sweep.objective]


class AxisNumbers(NamedTuple):
    """A column of trials as positions on an axis.

    Attributes:
        values: shape (trials,), without NaN.
        names: what stands at 0, 1, 2, ... where the column holds words; empty where it holds numbers.
    """

    values: np.ndarray
    names: list[str]


def axis_numbers(trials: pa.Table, name: str) -> AxisNumbers:
    """Numbers as they are (an undefined one as the lowest), words and yes or no in alphabetical order."""
    values = trials[name].to_pylist()
    if all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values):
        numbers = _floats(trials, name)
        lowest = float(np.nanmin(numbers)) if np.isfinite(numbers).any() else 0.0
        return AxisNumbers(np.where(np.isfinite(numbers), numbers, lowest), [])
    names = sorted({str(value) for value in values})
    return AxisNumbers(np.array([names.index(str(value)) for value in values], dtype=float), names)


def thin(table: pa.Table, most: int) -> pa.Table:
    """At most so many rows, evenly spaced."""
    if table.num_rows <= most:
        return table
    return table.take(pa.array(np.unique(np.linspace(0, table.num_rows - 1, most).astype(int))))


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then everything else by name."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64, null as NaN."""
    return np.array([math.nan if v is None else v for v in table[name].to_pylist()], dtype=float)


def _rolling(sheet: TearSheet) -> tuple[np.ndarray, np.ndarray]:
    """Sharpe ratio and volatility of the last 126 returns, shape (n - 126,), by the definitions of `statistics`."""
    returns = statistics.period_returns(sheet.equity)
    windows = np.lib.stride_tricks.sliding_window_view(returns, ROLLING_SESSIONS)
    conventions = sheet.conventions
    return (
        np.array([statistics.sharpe_ratio(window, conventions) for window in windows]),
        np.array([statistics.volatility(window, conventions) for window in windows]),
    )


# --------------------------------------------------------------------------------------------------------- text, HTML


class _Html(str):
    """Text that is HTML already."""


def _text(value: object) -> str:
    """A value as HTML."""
    return value if isinstance(value, _Html) else html.escape(str(value))


MISSING = _Html("&ndash;")
# Short formats: of a number, as text. A fraction is shown in percent.
FORMATS = {
    "percent": lambda v: f"{100 * v:,.1f}%",
    "percent2": lambda v: f"{100 * v:,.2f}%",
    "ratio": lambda v: f"{v:,.2f}",
    "probability": lambda v: f"{v:.3f}",
    "dollars": lambda v: f"{'-' if v < 0 else ''}${abs(v):,.0f}",
    "whole": lambda v: f"{v:,.0f}",
    "bps": lambda v: f"{v:,.1f} bps",
    "plain": lambda v: f"{v:g}" if isinstance(v, float) else str(v),
}


def _show(value: Any, form: str = "plain") -> str:
    """A value as HTML, a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool | str | dt.date) or not isinstance(value, int | float | np.number):
        return _text(value)
    return _Html(_text(FORMATS[form](value)))


def _table(
    header: Sequence[object], rows: Iterable[Sequence[object]], words: int = 1, name: str = ""
) -> _Html:
    """A table whose first `words` columns are text and whose others are numbers."""

    def line(cells: Sequence[object], tag: str) -> str:
        return (
            "<tr>"
            + "".join(
                f"<{tag}{'' if i < words else ' class=n'}>{_text(cell)}</{tag}>"
                for i, cell in enumerate(cells)
            )
            + "</tr>"
        )

    body = "".join(line(row, "td") for row in rows)
    label = f" id={name}" if name else ""
    return _Html(f"<div class=scroll><table{label}><thead>{line(header, 'th')}</thead>{body}</table></div>")


def _term(label: str, definition: str) -> _Html:
    """A word with its definition as a tooltip."""
    return _Html(f"<abbr title='{_text(definition)}'>{_text(label)}</abbr>")


def _join(*parts: str) -> _Html:
    return _Html("\n".join(parts))


def _paragraph(value: object, kind: str = "") -> _Html:
    return _Html(f"<p{f' class={kind}' if kind else ''}>{_text(value)}</p>")


def _section(title: str, *parts: str) -> _Html:
    anchor = title.lower().replace(" ", "-")
    return _Html(f"<section id={anchor}><h2>{_text(title)}</h2>\n{_join(*parts)}\n</section>")


def _columns(*parts: str) -> _Html:
    return _Html(f"<div class=columns>{_join(*parts)}</div>")


def _plot(name: str, title: str, figure: Any, caption: object = "") -> _Html:
    """A figure: its title, the place where the script draws it, its JSON and a caption."""
    import plotly.io

    # "</script>" inside the data would end it; plotly's JSON escapes the bracket, and so do we.
    data = plotly.io.to_json(figure, validate=False).replace("<", "\\u003c")
    return _Html(
        f"<figure><h3>{_text(title)}</h3>"
        f"<div class=plot id=plot-{name} style='height:{figure.layout.height}px'></div>"
        f"<script type=application/json id=plot-{name}-data>{data}</script>"
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _absent(title: str, why: object) -> _Html:
    """What stands where a figure would be empty."""
    return _Html(f"<figure class=absent><h3>{_text(title)}</h3><p>{_text(why)}</p></figure>")


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


def _page(title: str, body: str, plots: bool = True) -> str:
    """A whole page."""
    drawing = f"<script src=plotly.min.js></script>\n<script>{SCRIPT}</script>" if plots else ""
    without = (
        "<noscript><p class=banner>The plots need JavaScript; the tables do not.</p></noscript>"
        if plots
        else ""
    )
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n<link rel=icon href='data:,'>\n"
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{without}{body}\n{drawing}\n</body>\n</html>\n"
    )


# ------------------------------------------------------------------------------------------------------------ figures


@cache
def _template() -> Any:
    """The style of all figures, as plotly applies it."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": RULE,
        "zerolinecolor": "#b5b5b5",
        "ticks": "outside",
        "tickcolor": RULE,
        "ticklen": 4,
        "automargin": True,
        "title": {"font": {"size": 12, "color": "#555555"}, "standoff": 8},
    }
    layout = {
        "font": {
            "family": "system-ui,-apple-system,Segoe UI,Roboto,Arial,sans-serif",
            "size": 12,
            "color": INK,
        },
        "margin": {"l": 62, "r": 18, "t": 34, "b": 42},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": GREY},
        "hovermode": "closest",
        "bargap": 0.15,
        "xaxis": {**axis, "showgrid": False, "linecolor": "#b5b5b5", "showline": True},
        "yaxis": axis,
    }
    return go.layout.Template(layout=layout)


def _figure(rows: int = 1, columns: int = 1, height: int = 320, **subplots: Any) -> Any:
    """An empty plotly figure in the style of the pages; `height` in pixels."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=rows, cols=columns, **subplots)
    return figure.update_layout(template=_template(), height=height)


def _curve(
    x: Sequence[Any] | np.ndarray,
    y: np.ndarray | Sequence[float],
    name: str,
    color: str,
    form: str | None = None,
    width: float = 1.3,
    **more: Any,
) -> Any:
    """A line; `form` is plotly's template of what the pointer shows, None for nothing."""
    import plotly.graph_objects as go

    line = {"color": color, "width": width, "dash": more.pop("dash", "solid")}
    hover = {"hoverinfo": "skip"} if form is None else {"hovertemplate": form}
    return go.Scatter(x=x, y=_small(y), mode="lines", name=_label(name), line=line, **hover, **more)


def _dots(
    x: Sequence[Any] | np.ndarray,
    y: np.ndarray | Sequence[float],
    name: str,
    form: str,
    marker: dict[str, Any],
    **more: Any,
) -> Any:
    """Points."""
    import plotly.graph_objects as go

    more = {"mode": "markers", **more}
    return go.Scatter(x=x, y=_small(y), name=_label(name), marker=marker, hovertemplate=form, **more)


def _bars(
    x: Sequence[Any] | np.ndarray, y: Sequence[Any] | np.ndarray, color: Any, form: str, **more: Any
) -> Any:
    """Bars."""
    import plotly.graph_objects as go

    marker = {"color": color, "line": {"width": 0.5, "color": "#ffffff"}}
    return go.Bar(x=x, y=y, marker=marker, hovertemplate=form + "<extra></extra>", **more)


def _small(values: np.ndarray | Sequence[float | None]) -> np.ndarray:
    """Seven digits are more than a screen shows, and half the bytes."""
    return np.asarray(values, dtype=np.float32)


def _days(sessions: np.ndarray) -> list[str]:
    return sessions.astype("datetime64[D]").astype(str).tolist()


def _label(value: object) -> str:
    """Text inside a figure, where plotly reads a subset of HTML."""
    return html.escape(str(value), quote=False)


def _moves(equity: np.ndarray) -> bool:
    """Whether equity ever changed."""
    return bool(np.ptp(equity) > 0)


def _positive(values: np.ndarray) -> np.ndarray:
    """Equity for a logarithmic axis: NaN from ruin on."""
    return np.where(np.minimum.accumulate(values) > 0, values, np.nan)


def _log_switch() -> dict[str, Any]:
    """Two buttons that switch the first y axis between logarithmic and linear."""
    kinds = ("log", "linear")
    return {
        **CONTROL,
        "type": "buttons",
        "direction": "right",
        "buttons": [{"label": kind, "method": "relayout", "args": [{"yaxis.type": kind}]} for kind in kinds],
    }


# Where buttons and menus stand: above the plot at its right end.
CONTROL = {
    "x": 1,
    "xanchor": "right",
    "y": 1.0,
    "yanchor": "bottom",
    "font": {"size": 11},
    "bgcolor": "#ffffff",
    "bordercolor": "#cccccc",
}


def _equity_plot(sheet: TearSheet) -> _Html:
    figure = _figure(2, 1, 560, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.05)
    days, last = _days(sheet.sessions), sheet.sessions[-1].item()
    yardsticks = {name: values for name, values in sheet.yardsticks.items() if name != sheet.strategy}
    figure.add_trace(_curve(days, _positive(sheet.equity), sheet.strategy, BLUE, "$%{y:,.0f}", 1.9), 1, 1)
    path = statistics.drawdown_path(sheet.equity)
    fill = {"fill": "tozeroy", "fillcolor": "rgba(213,94,0,0.18)", "showlegend": False}
    figure.add_trace(_curve(days, path, sheet.strategy, VERMILLION, "%{y:.1%}", 1.1, **fill), 2, 1)
    for (name, values), color, dash in zip(
        yardsticks.items(), YARDSTICK_COLORS, ("solid", "dot"), strict=False
    ):
        figure.add_trace(_curve(days, _positive(values), name, color, "$%{y:,.0f}", dash=dash), 1, 1)
        if _moves(values):
            path = statistics.drawdown_path(values)
            figure.add_trace(_curve(days, path, name, color, "%{y:.1%}", 1.0, showlegend=False), 2, 1)
    caption = "Dollars at each close."
    if falls := statistics.drawdowns(sheet.equity, sheet.sessions, top=5):
        at = [int(np.searchsorted(sheet.sessions, np.datetime64(fall.valley))) for fall in falls]
        marker = {"color": VERMILLION, "size": 7, "symbol": "circle-open", "line": {"width": 1.6}}
        numbers = {
            "mode": "markers+text",
            "text": [f"<b>{i}</b>" for i in range(1, len(at) + 1)],
            "textposition": "bottom center",
            "textfont": {"color": VERMILLION, "size": 13},
            "customdata": _small([fall.depth for fall in falls]),
        }
        valleys = _positive(sheet.equity)[at]
        form = "valley %{text}, %{customdata:.1%}"
        figure.add_trace(
            _dots([days[i] for i in at], valleys, "deepest drawdowns", form, marker, **numbers), 1, 1
        )
        for fall in falls:
            figure.add_vrect(
                x0=str(fall.start), x1=str(fall.end or last), row="all", col=1, fillcolor=VERMILLION, opacity=0.07,
                line_width=0, layer="below",
            )  # fmt: skip
        caption += " Shaded and numbered: the deepest drawdowns, from peak to recovery."
    figure.update_yaxes(type="log", tickformat="$,.0f", title_text="equity", row=1, col=1)
    figure.update_yaxes(tickformat=".0%", title_text="below the peak", row=2, col=1)
    figure.update_xaxes(hoverformat="%a %d %b %Y", range=[days[0], days[-1]])
    figure.update_layout(hovermode="x unified", updatemenus=[_log_switch()])
    return _plot("equity", "Equity and distance from its peak", figure, caption)


def _drawdown_table(sheet: TearSheet) -> _Html:
    falls = statistics.drawdowns(sheet.equity, sheet.sessions, top=5)
    if not falls:
        return _absent("Deepest drawdowns", "Equity never fell below an earlier peak.")
    rows = [
        (
            i,
            _show(f.depth, "percent"),
            f.start,
            f.valley,
            f.end or "not yet",
            f.sessions_down,
            f.sessions_total,
        )
        for i, f in enumerate(falls, 1)
    ]
    header = ("", "Depth", "Peak", "Valley", "Recovered", "Sessions down", "Sessions in all")
    return _Html(f"<figure><h3>Deepest drawdowns</h3>{_table(header, rows, name='drawdowns')}</figure>")


def _monthly_plot(sheet: TearSheet) -> _Html:
    import plotly.graph_objects as go

    years, months, totals = monthly_returns(sheet.sessions, sheet.equity)
    height = max(150, 70 + 27 * len(years))
    figure = _figure(1, 2, height, shared_yaxes=True, column_widths=[0.91, 0.09], horizontal_spacing=0.015)
    for column, x, z in ((1, list(MONTHS), months), (2, ["Year"], totals[:, None])):
        reach = float(np.nanmax(np.abs(z), initial=0.0)) or 0.01
        figure.add_trace(
            go.Heatmap(
                x=x,
                y=[str(year) for year in years],
                z=np.round(z, 5),
                zmin=-reach,
                zmax=reach,
                colorscale=LOSS_TO_GAIN,
                showscale=False,
                xgap=2,
                ygap=2,
                # Adding zero takes the sign off a negative zero.
                text=[["" if np.isnan(v) else f"{round(100 * v, 1) + 0.0:.1f}" for v in row] for row in z],
                texttemplate="%{text}",
                textfont={"size": 11},
                hoverongaps=False,
                hovertemplate="%{x} %{y}: %{z:.2%}<extra></extra>",
            ),
            1,
            column,
        )
    figure.update_xaxes(type="category", showline=False, ticks="", side="top")
    figure.update_yaxes(type="category", autorange="reversed", ticks="", showgrid=False)
    figure.update_layout(margin={"l": 62, "r": 18, "t": 26, "b": 6})
    caption = "The first and the last month and year may be partial."
    return _plot("monthly", "Monthly returns, percent", figure, caption)


def _annual_plot(sheet: TearSheet) -> _Html:
    curves = {sheet.strategy: (sheet.equity, BLUE)}
    if (held := sheet.yardsticks.get("buy_and_hold")) is not None and sheet.strategy != "buy_and_hold":
        curves["buy_and_hold"] = (held, "#c4c4c4")
    figure = _figure(height=300)
    for name, (equity, color) in curves.items():
        years, _, totals = monthly_returns(sheet.sessions, equity)
        label = _label(name)
        form = f"{label}, %{{x}}: %{{y:.1%}}"
        figure.add_trace(_bars([str(year) for year in years], _small(totals), color, form, name=label))
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickformat=".0%")
    return _plot("annual", "Annual returns", figure)


def _bar_count(values: np.ndarray) -> int:
    """How many bars a histogram needs: Freedman and Diaconis' rule, between 15 and 100."""
    spread = float(np.subtract(*np.percentile(values, [75, 25])))
    if spread <= 0:
        return 15
    return int(np.clip(np.ptp(values) / (2 * spread / values.size ** (1 / 3)), 15, 100))


def _distribution_plot(sheet: TearSheet) -> _Html:
    returns = statistics.period_returns(sheet.equity)
    deviation = float(returns.std(ddof=1))
    counts, edges = np.histogram(returns, _bar_count(returns))
    width = float(edges[1] - edges[0])
    figure = _figure(height=300)
    middle = _small((edges[1:] + edges[:-1]) / 2)
    figure.add_trace(_bars(middle, counts, SKY, "%{x:.2%}: %{y} sessions", width=width, name="sessions"))
    grid = np.linspace(edges[0], edges[-1], 201)
    normal = np.exp(-0.5 * ((grid - returns.mean()) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    figure.add_trace(
        _curve(_small(grid), normal * returns.size * width, "normal, same mean and deviation", INK)
    )
    marks = (
        ("value_at_risk", "VaR 95%", ORANGE, "dash"),
        ("conditional_value_at_risk", "CVaR 95%", VERMILLION, "solid"),
    )
    for key, name, color, dash in marks:
        value = sheet.statistics["returns"][key]
        if value is not None:
            label = f"{name}: {100 * value:.2f}%"
            figure.add_trace(
                _curve([value, value], [0, int(counts.max())], label, color, None, 1.8, dash=dash)
            )
    figure.update_xaxes(tickformat=".1%", title_text="return of a session")
    figure.update_yaxes(title_text="sessions")
    figure.update_layout(bargap=0, margin_t=48)
    return _plot("distribution", "Distribution of returns", figure)


def _rolling_plot(sheet: TearSheet) -> _Html:
    title = f"Rolling {ROLLING_SESSIONS} sessions, annual"
    returns = sheet.sessions.size - 1
    if returns <= ROLLING_SESSIONS:
        return _absent(
            title, f"The window has {returns} returns; a rolling value needs more than {ROLLING_SESSIONS}."
        )
    sharpe, volatility = _rolling(sheet)
    if not np.isfinite(sharpe).any():
        return _absent(title, "Returns never vary, so there is no Sharpe ratio.")
    days = _days(sheet.sessions[ROLLING_SESSIONS:])
    figure = _figure(2, 1, 300, shared_xaxes=True, vertical_spacing=0.08)
    figure.add_trace(_curve(days, sharpe, "Sharpe ratio", BLUE, "%{y:.2f}"), 1, 1)
    figure.add_trace(_curve(days, volatility, "volatility", VERMILLION, "%{y:.1%}"), 2, 1)
    figure.update_yaxes(title_text="Sharpe ratio", row=1, col=1)
    figure.update_yaxes(title_text="volatility", tickformat=".0%", rangemode="tozero", row=2, col=1)
    figure.update_layout(showlegend=False, hovermode="x unified", margin_t=10)
    return _plot("rolling", title, figure)


def _exposure_plot(sheet: TearSheet) -> _Html:
    alive = np.where(sheet.equity > 0, sheet.equity, np.nan)
    days = _days(sheet.sessions)
    figure = _figure(height=250)
    fill = {"fill": "tozeroy", "fillcolor": "rgba(159,184,200,0.35)"}
    figure.add_trace(_curve(days, sheet.gross / alive, "gross", "#9fb8c8", "%{y:.0%}", 0.6, **fill))
    figure.add_trace(_curve(days, sheet.invested / alive, "net", BLUE, "%{y:.0%}", 1.2))
    figure.update_yaxes(tickformat=".0%", title_text="of equity")
    figure.update_layout(hovermode="x unified")
    caption = (
        f"Market value of the positions over equity at each close; invested on {100 * float(np.mean(sheet.gross > 0)):.0f}% "
        "of the sessions. Net counts shorts negative, gross counts them positive."
    )
    return _plot("exposure", "Exposure", figure, caption)


def _price_plot(sheet: TearSheet) -> _Html:
    symbols = sheet.trades["symbol"].to_pylist()
    by_count = sorted(set(symbols), key=lambda s: (-symbols.count(s), s))
    charted = [symbol for symbol in by_count if symbol in sheet.bars][:MOST_SYMBOLS]
    if not charted:
        return _absent("Trades on the price", "There are no bars of the symbols that were traded.")
    table = sheet.trades.append_column("quoted_exit", pa.array(quoted_exit(sheet.trades))).to_pylist()
    figure = _figure(height=520)
    owners: list[str] = []
    for symbol in charted:
        for trace in _price_traces(sheet, symbol, [trade for trade in table if trade["symbol"] == symbol]):
            figure.add_trace(trace.update(visible=symbol == charted[0]))
            owners.append(symbol)
    buttons = [
        {
            "label": f"{_label(symbol)} ({symbols.count(symbol)})",
            "method": "update",
            # Prices of symbols differ, so the zoom of one is no good for the next.
            "args": [{"visible": [owner == symbol for owner in owners]}, {"yaxis.autorange": True}],
        }
        for symbol in charted
    ]
    figure.update_layout(updatemenus=[{**CONTROL, "type": "dropdown", "buttons": buttons}])
    figure.update_xaxes(range=[str(sheet.sessions[0] - 20), str(sheet.sessions[-1] + 20)])
    figure.update_yaxes(type="log", tickformat="$,.6~g", title_text="dollars, as quoted")
    caption = (
        "Quoted close, log axis; choose the symbol at the right, drag to zoom. Triangles are entries (up long, down short), "
        "circles exits; green won, vermillion lost, net of costs. A dotted line joins entry and exit, except across a split."
    )
    if left_out := len(by_count) - len(charted):
        caption += f" {left_out} symbols with fewer trades are left out."
    return _plot("trades", "Trades on the price", figure, caption)


def _price_traces(sheet: TearSheet, symbol: str, trades: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Quoted close, splits, trades of one symbol; `trades` with the quoted exit price as `quoted_exit`."""
    first, last = sheet.sessions[0], sheet.sessions[-1] + 1
    bars = sheet.bars[symbol]
    bars = bars.cut(bars.position(first), bars.position(last))
    splits = np.flatnonzero(bars.split_factor != 1)
    # A gap keeps a split from looking like a crash.
    days = _days(np.insert(bars.sessions, splits, bars.sessions[splits]))
    close = np.insert(bars.close, splits, np.nan)
    form = "%{x|%d %b %Y}: $%{y:,.2f}<extra>close</extra>"
    traces = [_curve(days, close, f"{symbol} close", "#6f7f8a", form, 1.1)]
    if splits.size:
        marker = {"symbol": "diamond", "size": 9, "color": PURPLE}
        text = [f"split {factor:g}:1" for factor in bars.split_factor[splits]]
        traces.append(
            _dots(
                _days(bars.sessions[splits]),
                bars.close[splits],
                "split",
                "%{x|%d %b %Y}: %{text}<extra></extra>",
                marker,
                mode="markers+text",
                text=text,
                textposition="top right",
            )
        )
    for won, color, outcome in ((True, GREEN, "won"), (False, VERMILLION, "lost")):
        part = [trade for trade in trades if (trade["pnl"] > 0) == won]
        if not part:
            continue
        ends = [(t["entry_session"], t["exit_session"], None) for t in part if t["split_factor"] == 1]
        prices = [(t["entry_price"], t["quoted_exit"], np.nan) for t in part if t["split_factor"] == 1]
        x = [None if day is None else str(day) for triple in ends for day in triple]
        shared: dict[str, Any] = {"legendgroup": outcome}
        if x:
            y = np.array(prices).ravel()
            traces.append(_curve(x, y, outcome, color, None, dash="dot", showlegend=False, **shared))
        text = [
            f"{_label(t['side'])}, {_label(t['reason'])} after {t['bars_held']} bars: {FORMATS['dollars'](t['pnl'])} "
            f"({100 * t['trade_return']:+.1f}%)"
            for t in part
        ]
        marker = {"symbol": "circle-open", "size": 10, "color": color, "line": {"width": 1.3}}
        form = "exit %{x|%d %b %Y} at $%{y:,.2f}<br>%{text}<extra></extra>"
        traces.append(
            _dots(
                [str(t["exit_session"]) for t in part],
                [t["quoted_exit"] for t in part],
                f"exit, {outcome}",
                form,
                marker,
                text=text,
                **shared,
            )
        )
        for side, shape in (("long", "triangle-up"), ("short", "triangle-down")):
            entries = [trade for trade in part if trade["side"] == side]
            if entries:
                marker = {"symbol": shape, "size": 8, "color": color}
                form = f"{side} entry %{{x|%d %b %Y}} at $%{{y:,.2f}}<br>%{{text}}<extra></extra>"
                text = [f"{t['shares']:,.6g} shares" for t in entries]
                traces.append(
                    _dots(
                        [str(t["entry_session"]) for t in entries],
                        [t["entry_price"] for t in entries],
                        f"{side} entry, {outcome}",
                        form,
                        marker,
                        text=text,
                        **shared,
                    )
                )
    return traces


def _pnl_plot(sheet: TearSheet) -> _Html:
    pnl = sheet.trades["pnl"].to_numpy()
    low, high = min(float(pnl.min()), 0.0), max(float(pnl.max()), 0.0)
    width = (high - low) / _bar_count(pnl) or 1.0
    # An edge at zero, so that no bar mixes winners and losers.
    edges = width * np.arange(math.floor(low / width - 1e-9), math.ceil(high / width + 1e-9) + 1)
    middle = _small((edges[1:] + edges[:-1]) / 2)
    figure = _figure(height=300)
    for part, name, color in ((pnl[pnl > 0], "won", GREEN), (pnl[pnl <= 0], "lost", VERMILLION)):
        if part.size:
            counts, _ = np.histogram(part, edges)
            form = "about $%{x:,.0f}: %{y} trades"
            figure.add_trace(_bars(middle, counts, color, form, width=width, name=f"{name} ({part.size:,})"))
    figure.add_vline(x=float(pnl.mean()), line={"color": INK, "dash": "dash", "width": 1.2})
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(tickformat="$,.6~s", title_text="PnL of a trade, net of costs")
    figure.update_yaxes(title_text="trades")
    caption = f"Dashed: the mean, {FORMATS['dollars'](float(pnl.mean()))}."
    return _plot("pnl", "Distribution of the trades' PnL", figure, caption)


def _excursion_plot(sheet: TearSheet) -> _Html:
    shown = thin(sheet.trades, MOST_POINTS)
    won, outcome = shown["pnl"].to_numpy() > 0, shown["trade_return"].to_numpy()
    columns = (shown[name].to_pylist() for name in ("symbol", "side", "entry_session"))
    text = np.array([f"{_label(symbol)} {side}, {day}" for symbol, side, day in zip(*columns, strict=True)])
    figure = _figure(1, 2, 300, shared_yaxes=True, horizontal_spacing=0.05)
    form = "%{text}<br>excursion %{x:.1%}, return %{y:.1%}<extra></extra>"
    for column, name in ((1, "mae"), (2, "mfe")):
        values = _small(shown[name].to_numpy())
        for mask, color, label in ((won, GREEN, "won"), (~won, VERMILLION, "lost")):
            if mask.any():
                marker = {"color": color, "size": 5, "opacity": 0.65}
                group = {"legendgroup": label, "showlegend": column == 1, "text": text[mask].tolist()}
                figure.add_trace(_dots(values[mask], outcome[mask], label, form, marker, **group), 1, column)
    figure.update_xaxes(tickformat=".0%", nticks=6)
    figure.update_xaxes(title_text="worst price while held (MAE)", col=1)
    figure.update_xaxes(title_text="best price while held (MFE)", col=2)
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="return of the trade, net", col=1)
    caption = "Excursions against the entry price, in the trade's direction."
    if shown.num_rows < sheet.trades.num_rows:
        caption += f" {shown.num_rows:,} of {sheet.trades.num_rows:,} trades, evenly spaced."
    return _plot("excursions", "Excursions against results", figure, caption)


def _cost_sensitivity_plot(sheet: TearSheet) -> _Html:
    rows = sorted(sheet.cost_sensitivity, key=lambda row: row["cost_factor"] or 0.0)
    factors = [f"{row['cost_factor']:g}x" for row in rows]
    colors = [BLUE if row["cost_factor"] == 1 else "#a9c7da" for row in rows]
    panels = [
        (key, name, form)
        for key, name, form in (("total_return", "total return", ".1%"), ("sharpe", "Sharpe ratio", ".2f"))
        if any(row[key] is not None for row in rows)
    ]
    figure = _figure(1, len(panels), 280, horizontal_spacing=0.16)
    for column, (key, name, form) in enumerate(panels, 1):
        text = {"texttemplate": f"%{{y:{form}}}", "textposition": "outside", "cliponaxis": False,
                "constraintext": "none", "textfont": {"size": 10}, "textangle": 0}  # fmt: skip
        values = [row[key] for row in rows]
        figure.add_trace(_bars(factors, values, colors, f"costs %{{x}}: %{{y:{form}}}", **text), 1, column)
        figure.update_yaxes(
            title_text=name, tickformat=".2~f" if key == "sharpe" else ".0%", row=1, col=column
        )
    figure.update_xaxes(type="category")
    figure.update_layout(showlegend=False)
    caption = "By multiple of the assumed costs of trading and borrowing; dark: as assumed."
    return _plot("cost-sensitivity", "If trading cost more or less", figure, caption)


def _cost_breakdown_plot(sheet: TearSheet) -> _Html:
    costs, net = sheet.statistics["costs"], sheet.statistics["trades"]["pnl"]
    dollars = FORMATS["dollars"]
    names = [name for name in statistics.COSTS if costs[name]]
    figure = _figure(height=280)
    text = [f" {dollars(costs[name])}, {costs[f'{name}_bps'] or 0:.1f} bps" for name in names]
    colors = [STRATEGY_COLORS[statistics.COSTS.index(name)] for name in names]
    bars = {"orientation": "h", "text": text, "textposition": "outside", "cliponaxis": False}
    figure.add_trace(_bars([costs[name] for name in names], names, colors, "%{y}: $%{x:,.0f}", **bars))
    most = max(costs[name] for name in names)
    figure.update_xaxes(tickformat="$,.6~s", range=[0, 1.35 * most], title_text="paid over the window")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    caption = (
        f"{dollars(costs['total'])} in all, on {dollars(costs['traded_value'])} traded. The trades earned "
        f"{dollars(net + costs['total'])} before and {dollars(net)} after costs. bps are of the traded value."
    )
    return _plot("cost-breakdown", "What trading cost", figure, caption)


def _heat_map_plot(sweep: SweepView) -> _Html:
    import plotly.graph_objects as go

    title = f"{sweep.objective} by {' and '.join(sweep.heat_map)}"
    trials = completed(sweep)
    if not sweep.heat_map or not trials.num_rows:
        why = (
            "No trial ended with a number."
            if sweep.heat_map
            else "The search space names no parameter for it."
        )
        return _absent("Heat map of the sweep", why)
    ring = {"symbol": "circle-open", "size": 17, "color": VERMILLION, "line": {"width": 3}}
    objective = _floats(trials, sweep.objective)
    others = [name for name in sweep.names if name not in sweep.heat_map]
    caption = f"In sample; the best over {', '.join(others)}." if others else "In sample, one trial each."
    if len(sweep.heat_map) == 1:
        (name,) = sweep.heat_map
        best: dict[Any, float] = {}
        for value, number in zip(trials[name].to_pylist(), objective.tolist(), strict=True):
            best.setdefault(value, number)
        values = sorted(best, key=_order)
        figure = _figure(height=320)
        form = f"{_label(name)} %{{x}}: %{{y:.3f}}<extra></extra>"
        line = {"mode": "lines+markers", "line": {"color": BLUE, "width": 1.3}}
        figure.add_trace(
            _dots(_ticks(values), [best[v] for v in values], "best", form, {"color": BLUE}, **line)
        )
        if (picked := sweep.chosen.get(name)) in best:
            figure.add_trace(_dots(_ticks([picked]), [best[picked]], "chosen", form, ring))
        figure.update_xaxes(title_text=_label(name))
        figure.update_yaxes(title_text=_label(sweep.objective))
        return _plot("heat-map", title, figure, caption)
    grid = heat_map_of(sweep)
    bar = {"title": {"text": _label(sweep.objective), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    across, up = map(_label, sweep.heat_map)
    form = f"{across} %{{x}}, {up} %{{y}}: "
    if grid.sparse:
        figure = _figure(height=420)
        x, y = (_ticks(trials[name].to_pylist()) for name in sweep.heat_map)
        marker = {
            "color": _small(objective), "colorscale": "Cividis", "size": 8, "colorbar": bar, "showscale": True,
        }  # fmt: skip
        dots = {"marker": marker, "hovertemplate": form + "%{marker.color:.3f}<extra></extra>"}
        figure.add_trace(go.Scatter(x=x, y=y, mode="markers", showlegend=False, **dots))
        if grid.chosen:
            x, y = (_ticks([sweep.chosen[name]]) for name in sweep.heat_map)
            figure.add_trace(
                go.Scatter(x=x, y=y, mode="markers", name="chosen", marker=ring, hoverinfo="skip")
            )
    else:
        figure = _figure(height=int(np.clip(110 + 30 * len(grid.y), 240, 560)))
        figure.add_trace(
            go.Heatmap(
                x=[_label(v) for v in grid.x],
                y=[_label(v) for v in grid.y],
                z=np.round(grid.z, 4),
                colorscale="Cividis",
                colorbar=bar,
                xgap=1,
                ygap=1,
                hoverongaps=False,
                texttemplate="%{z:.2f}" if len(grid.x) <= 20 and len(grid.y) <= 25 else None,
                textfont={"size": 11},
                hovertemplate=form + "%{z:.3f}<extra></extra>",
            )
        )
        figure.update_xaxes(type="category", ticks="")
        figure.update_yaxes(type="category", ticks="")
        if grid.chosen:
            column, row = grid.chosen
            figure.add_shape(
                type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5,
                line={"color": VERMILLION, "width": 3.5},
            )  # fmt: skip
    figure.update_xaxes(title_text=across, showgrid=False)
    figure.update_yaxes(title_text=up, showgrid=False)
    caption += (
        " Marked in vermillion: the chosen set."
        if grid.chosen
        else " The chosen set is not among the trials."
    )
    return _plot("heat-map", title, figure, caption)


def _ticks(values: Sequence[Any]) -> list[Any]:
    """Values of a parameter as an axis takes them: numbers as they are, all else as text."""
    return [v if isinstance(v, int | float) and not isinstance(v, bool) else _label(v) for v in values]


def _parallel_plot(sweep: SweepView) -> _Html:
    import plotly.graph_objects as go

    every = completed(sweep)
    if every.num_rows < 2:
        return _absent("All trials", f"{every.num_rows} complete trial: nothing to compare it with.")
    trials = thin(every, MOST_TRIALS)
    figure = _figure(height=400)
    figure.add_trace(
        go.Parcoords(
            dimensions=[
                _dimension(trials, name) for name in parallel_columns(sweep) if name in trials.column_names
            ],
            line={
                "color": _small(_floats(trials, sweep.objective)),
                "colorscale": "Cividis",
                "showscale": True,
                "colorbar": {"title": {"text": _label(sweep.objective), "side": "right"}, "thickness": 14},
            },
            labelfont={"size": 12},
            tickfont={"size": 11},
            rangefont={
                "size": 1,
                "color": "rgba(0,0,0,0)",
            },  # the ends of an axis, which its ticks show already
        )
    )
    figure.update_layout(margin={"l": 70, "r": 40, "t": 50, "b": 20})
    caption = f"{every.num_rows:,} complete trials, in sample. Drag along an axis to keep a range; drag a name to move its axis."
    if trials.num_rows < every.num_rows:
        caption += f" {trials.num_rows:,} of them are drawn, evenly spaced by {sweep.objective}."
    if failed := sweep.trials.num_rows - every.num_rows:
        caption += f" {failed:,} trials failed or have no {sweep.objective} and are not shown."
    return _plot("parallel", "All trials", figure, caption)


def _dimension(trials: pa.Table, name: str) -> dict[str, Any]:
    """One axis of the parallel coordinates."""
    numbers = axis_numbers(trials, name)
    dimension = {"label": _label(name), "values": _small(numbers.values)}
    if numbers.names:
        ticks = {
            "tickvals": list(range(len(numbers.names))),
            "ticktext": [_label(text) for text in numbers.names],
        }
        return {**dimension, **ticks}
    percent = name in ("volatility", "max_drawdown", "total_return")
    return {**dimension, "tickformat": ".0%" if percent else ""}


def _walk_forward_plot(sheet: TearSheet, sweep: SweepView) -> _Html:
    if not sweep.walk_forward or sweep.walk_forward_equity is None or sweep.walk_forward_sessions is None:
        return _absent("Walk-forward", "No walk-forward was run with this sweep.")
    sessions = sweep.walk_forward_sessions
    growth = sweep.walk_forward_equity / sweep.walk_forward_equity[0]
    figure = _figure(height=340)
    figure.add_trace(_curve(_days(sessions), _positive(growth), "walk-forward", GREEN, "%{y:.3f}", 1.9))
    inside = np.isin(sheet.sessions, sessions)
    for name, values, color in (
        (f"{sheet.strategy} as on this page", sheet.equity, BLUE),
        ("buy_and_hold", sheet.yardsticks.get("buy_and_hold"), YARDSTICK_COLORS[0]),
    ):
        if values is not None and inside.sum() > 1:
            part = values[inside]
            # Joined to the walk-forward on the first session that both have.
            level = growth[np.searchsorted(sessions, sheet.sessions[inside][0])] / part[0]
            days = _days(sheet.sessions[inside])
            figure.add_trace(_curve(days, _positive(part * level), name, color, "%{y:.3f}", 1.1))
    for fold in sweep.walk_forward:
        line = {"color": "#cccccc", "width": 1, "dash": "dot"}
        figure.add_vline(x=str(fold["test_first"]), line=line, layer="below")
    figure.update_yaxes(type="log", tickformat=".2~f", title_text="growth of one dollar")
    figure.update_layout(hovermode="x unified", updatemenus=[_log_switch()])
    title = "Walk-forward: chosen again before every fold"
    caption = (
        "Only test windows; dotted lines start a fold. Parameters of a fold were chosen on its training window alone. The other "
        "curves start where the page's window does."
    )
    return _plot("walk-forward", title, figure, caption)


# ------------------------------------------------------------------------------------------------- statistics, tables

# group -> (key in `statistics.summary`, label, format, definition)
STATISTIC_GROUPS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "Return": (
        ("returns.final_equity", "Final equity", "dollars", "Money at the last close."),
        ("returns.total_pnl", "Total PnL", "dollars", "Final less initial equity."),
        ("returns.total_return", "Total return", "percent", "Final over initial equity, less 1."),
        ("returns.cagr", "CAGR", "percent", "Compound annual growth rate, by calendar days."),
        ("returns.best", "Best session", "percent2", "Largest return of one session."),
        ("returns.worst", "Worst session", "percent2", "Smallest return of one session."),
        ("returns.positive_share", "Positive sessions", "percent", "Share of sessions with a return above 0."),
    ),
    "Risk": (
        ("returns.volatility", "Volatility", "percent", "Annual standard deviation of the returns."),
        ("drawdown.maximum", "Maximum drawdown", "percent", "Deepest fall from a running peak of equity."),
        ("drawdown.longest_sessions", "Longest drawdown, sessions", "whole", "From a peak until equity is back there."),
        ("returns.value_at_risk", "VaR 95%, session", "percent2", "Return that 5% of the sessions fall below."),
        ("returns.conditional_value_at_risk", "CVaR 95%, session", "percent2", "Mean of the worst 5% of the sessions."),
        ("returns.skewness", "Skewness", "ratio", "Third standardised moment; negative: rare large losses."),
        ("returns.kurtosis", "Kurtosis", "ratio", "Fourth standardised moment (Pearson): 3 for a normal distribution."),
        ("returns.tail_ratio", "Tail ratio", "ratio", "95% quantile of the returns over the size of the 5% quantile."),
    ),
    "Return for risk": (
        ("returns.sharpe", "Sharpe ratio", "ratio", "Mean excess return over its standard deviation, annual."),
        ("returns.sharpe_low", "Sharpe, lower 95%", "ratio", "Lower end of the 95% interval, for non-normal returns (Mertens 2002)."),
        ("returns.sharpe_high", "Sharpe, upper 95%", "ratio", "Upper end of the 95% interval."),
        ("returns.sortino", "Sortino ratio", "ratio", "As Sharpe, with the deviation of losses alone."),
        ("returns.calmar", "Calmar ratio", "ratio", "Annual return over the size of the maximum drawdown."),
        ("returns.omega", "Omega ratio", "ratio", "Sum of positive over sum of negative returns."),
    ),
    "Against buy_and_hold": (
        ("benchmark.total_return", "Its total return", "percent", "Total return of buy_and_hold on the same sessions, with costs."),
        ("benchmark.sharpe", "Its Sharpe ratio", "ratio", "Sharpe ratio of buy_and_hold on the same sessions."),
        ("benchmark.max_drawdown", "Its maximum drawdown", "percent", "Deepest fall of buy_and_hold."),
        ("benchmark.alpha", "Alpha", "percent", "Annual return that beta does not explain (Jensen 1968)."),
        ("benchmark.beta", "Beta", "ratio", "Slope of the returns on those of buy_and_hold."),
        ("benchmark.correlation", "Correlation", "ratio", "Of the session returns with those of buy_and_hold."),
        ("benchmark.tracking_error", "Tracking error", "percent", "Annual deviation of the difference of returns."),
        ("benchmark.information_ratio", "Information ratio", "ratio", "Mean difference of returns over the tracking error, annual."),
    ),
    "Trades": (
        ("trades.count", "Trades", "whole", "Positions from opening to end; one still open counts, at the last close."),
        ("trades.long_count", "Long", "whole", "Long trades."),
        ("trades.short_count", "Short", "whole", "Short trades."),
        ("trades.win_rate", "Win rate", "percent", "Share of trades with a PnL above 0, net of costs."),
        ("trades.profit_factor", "Profit factor", "ratio", "Sum of gains over the size of the sum of losses."),
        ("trades.mean_pnl", "Mean PnL", "dollars", "Expectancy, dollars a trade, net."),
        ("trades.mean_return", "Mean return", "percent2", "Expectancy, as a fraction of the entry's value."),
        ("trades.best_return", "Best", "percent", "Largest return of a trade."),
        ("trades.worst_return", "Worst", "percent", "Smallest return of a trade."),
        ("trades.mean_winner_return", "Mean winner", "percent2", "Mean return of trades with a PnL above 0."),
        ("trades.mean_loser_return", "Mean loser", "percent2", "Mean return of trades with a PnL below 0."),
        ("trades.mean_bars_held", "Mean bars held", "ratio", "Bars from entry to exit."),
        ("trades.mean_mae", "Mean MAE", "percent2", "Mean of the worst price while held, against the entry price."),
        ("trades.mean_mfe", "Mean MFE", "percent2", "Mean of the best price while held, against the entry price."),
        ("trades.sqn", "SQN", "ratio", "System quality number: root of the number of trades, times mean over deviation of PnL (Tharp 1998)."),
    ),
    "Costs": (
        ("costs.total", "All costs", "dollars", "Commission, spread, impact and borrow fees."),
        ("costs.total_bps", "of traded value", "bps", "All costs over the value of all orders, basis points."),
        ("costs.commission", "Commission", "dollars", "Paid to the broker."),
        ("costs.spread", "Spread", "dollars", "From the middle to bid or ask."),
        ("costs.impact", "Impact", "dollars", "Own orders moving the price (square-root law)."),
        ("costs.borrow", "Borrow", "dollars", "Fees on borrowed shares."),
        ("costs.dividends", "Dividends", "dollars", "Received on longs less owed on shorts; part of the PnL, no cost."),
        ("costs.turnover", "Turnover, annual", "ratio", "Value of all orders over mean equity, a year; buys and sells both count."),
    ),
    "How far to believe it": (
        ("validity.observations", "Returns", "whole", "Sessions with a return."),
        ("validity.psr", "PSR", "probability", "Probability that the true Sharpe ratio is above 0 (Bailey and Lopez de Prado 2012)."),
        ("validity.trials", "Trials", "whole", "Parameter sets this one was chosen from."),
        ("validity.sr0", "Sharpe of luck", "ratio", "Sharpe ratio that the best of so many worthless trials is expected to show, annual."),
        ("validity.dsr", "DSR", "probability", "Deflated Sharpe ratio: probability that the Sharpe ratio is above that of luck."),
        ("validity.min_track_record_sessions", "Track record needed", "whole", "Sessions after which the PSR reaches 95%."),
    ),
}  # fmt: skip


def _value(summary: Mapping[str, Any] | None, key: str) -> Any:
    group, _, name = key.partition(".")
    return ((summary or {}).get(group) or {}).get(name)


def _statistics_section(sheet: TearSheet) -> _Html:
    inside = sheet.in_sample
    # An in-sample summary that does not know of the trials has nothing to say about the choice among them.
    unaware = (
        inside is not None and _value(inside, "validity.trials") != sheet.statistics["validity"]["trials"]
    )
    tables, definitions, undefined = [], [], []
    for group, lines in STATISTIC_GROUPS.items():
        if group.startswith("Against") and not sheet.statistics.get("benchmark"):
            continue
        rows = []
        for key, label, form, definition in lines:
            values = [_value(sheet.statistics, key)] + ([_value(inside, key)] if inside else [])
            if unaware and key in OF_THE_CHOICE:
                values[1] = None
            if values == [None] * len(values):
                undefined.append(label)
                continue
            rows.append([_term(label, definition), *(_show(value, form) for value in values)])
            definitions.append(f"<dt>{_text(label)}</dt><dd>{_text(definition)}</dd>")
        if rows:
            tables.append(_table([group, "Out of sample"] + (["In sample"] if inside else []), rows))
    window = sheet.statistics["window"]
    spans = f"Out of sample: {window['first']} to {window['last']}, {window['sessions']:,} sessions."
    if inside:
        window = inside["window"]
        spans += f" In sample: {window['first']} to {window['last']}, {window['sessions']:,} sessions."
    else:
        spans += " There is no in-sample column: the strategy's model was trained on those sessions, or they were not run."
    missing = (
        f"Not defined here, for want of data or of variation: {', '.join(undefined)}." if undefined else ""
    )
    return _section(
        "Statistics",
        _paragraph(f"{spans} Point at a name for its definition.", "quiet"),
        f"<div class=statistics>{_columns(*_balance(tables))}</div>",
        _paragraph(missing, "quiet") if missing else "",
        f"<details><summary>All definitions</summary><dl>{''.join(definitions)}</dl></details>",
    )


OF_THE_CHOICE = ("validity.trials", "validity.sr0", "validity.dsr")


def _balance(tables: Sequence[str]) -> tuple[str, str]:
    """Tables in two columns of about equal height, in order within each."""
    sides: tuple[list[str], list[str]] = ([], [])
    lengths = [0, 0]
    for table in tables:
        side = 0 if lengths[0] <= lengths[1] else 1
        sides[side].append(table)
        lengths[side] += table.count("<tr>") + 1
    return f"<div>{_join(*sides[0])}</div>", f"<div>{_join(*sides[1])}</div>"


REJECTIONS = {
    "cash": "the order was worth more than the buying power",
    "participation": "more than the allowed share of the bar's volume",
    "size": "less than one share",
    "volatility": "no volatility known yet to size it by",
    "conflict": "long and short wanted at once",
}


def _rejected_table(rejected: pa.Table) -> _Html:
    if not rejected.num_rows:
        return _absent("Rejected orders", "None: no order was rejected or cut.")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rejected.to_pylist():
        groups.setdefault(row["reason"], []).append(row)
    rows = [
        (
            reason,
            REJECTIONS.get(reason, ""),
            ", ".join(sorted({row["symbol"] for row in part})),
            _show(len(part), "whole"),
            _show(sum(row["shares"] or 0.0 for row in part if not _undefined(row["shares"])), "whole"),
            min(row["session"] for row in part),
            max(row["session"] for row in part),
        )
        for reason, part in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    header = ("Reason", "", "Symbols", "Orders", "Shares not filled", "First", "Last")
    return _Html(
        f"<figure><h3>Rejected orders, or parts of them</h3>{_table(header, rows, 3, 'rejected')}</figure>"
    )


def _undefined(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def _trades_table(trades: pa.Table) -> _Html:
    header = ("Symbol", "Side", "Entry", "Exit", "Reason", "Shares", "Entry price", "Exit price", "PnL", "Return",
              "Costs", "Bars", "MAE", "MFE")  # fmt: skip

    def line(trade: Mapping[str, Any]) -> tuple[object, ...]:
        tone = "up" if trade["pnl"] > 0 else "down"
        return (
            trade["symbol"],
            trade["side"],
            trade["entry_session"],
            trade["exit_session"],
            trade["reason"] + (f", split {trade['split_factor']:g}:1" if trade["split_factor"] != 1 else ""),
            f"{trade['shares']:,.6g}",
            f"{trade['entry_price']:,.2f}",
            f"{trade['exit_price']:,.2f}",
            _Html(f"<span class={tone}>{_show(trade['pnl'], 'dollars')}</span>"),
            _show(trade["trade_return"], "percent"),
            _show(sum(trade[name] for name in statistics.COSTS), "dollars"),
            trade["bars_held"],
            _show(trade["mae"], "percent"),
            _show(trade["mfe"], "percent"),
        )

    count = trades.num_rows
    rows: list[Sequence[object]] = [
        line(trade) for trade in trades.slice(0, min(count, MOST_TRADES)).to_pylist()
    ]
    if count > 2 * MOST_TRADES:
        rows.append((_Html("&hellip;"), f"{count - 2 * MOST_TRADES:,} more", *[""] * 12))
    rows += [line(trade) for trade in trades.slice(max(MOST_TRADES, count - MOST_TRADES)).to_pylist()]
    note = "In order of their exit; reason open: still held at the end. Prices are dollars per share of the entry's session."
    return _Html(
        f"<figure class=wide><h3>{count:,} trade{'s' if count != 1 else ''}</h3><div class=tall>"
        f"{_table(header, rows, 5, 'trades')}</div><figcaption>{note}</figcaption></figure>"
    )


def _tiles(tiles: Iterable[tuple[str, str, str]]) -> _Html:
    """Key numbers: (value, name, what stands below)."""
    return _Html(
        "<div class=tiles>"
        + "".join(
            f"<div class=tile><span>{name}</span><b>{value}</b><span>{below}</span></div>"
            for value, name, below in tiles
        )
        + "</div>"
    )


def _key_numbers(sheet: TearSheet) -> _Html:
    numbers = sheet.statistics
    returns, trades, validity = numbers["returns"], numbers["trades"], numbers["validity"]
    benchmark = numbers.get("benchmark") or {}
    held = f"holding: {_show(benchmark['total_return'], 'percent')}" if benchmark else "&nbsp;"
    interval = "no interval"
    if returns["sharpe_low"] is not None:
        interval = f"95%: {returns['sharpe_low']:.2f} to {returns['sharpe_high']:.2f}"
    tried = validity["trials"]
    definition = {key: text for lines in STATISTIC_GROUPS.values() for key, _, _, text in lines}
    return _tiles(
        [
            (_show(returns["total_return"], "percent"), "Total return", held),
            (_show(returns["cagr"], "percent"), _term("CAGR", definition["returns.cagr"]), f"volatility {_show(returns['volatility'], 'percent')}"),
            (_show(returns["sharpe"], "ratio"), _term("Sharpe ratio", definition["returns.sharpe"]), interval),
            (_show(numbers["drawdown"]["maximum"], "percent"), "Max drawdown", f"longest {numbers['drawdown']['longest_sessions']:,} sessions"),
            (_show(trades["sqn"], "ratio"), _term("SQN", definition["trades.sqn"]), f"profit factor {_show(trades['profit_factor'], 'ratio')}"),
            (_show(trades["count"], "whole"), "Trades", f"win rate {_show(trades['win_rate'], 'percent')}"),
            (_show(validity["dsr"], "probability"), _term("Deflated Sharpe", definition["validity.dsr"]),
             f"with {tried:,.6g} trials made" if tried > 1 else "one trial made"),
        ]
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- tear sheet


def _banner(notes: Sequence[object]) -> _Html:
    if not notes:
        return _Html("")
    return _Html(f"<div class=banner>{''.join(_paragraph(note) for note in notes)}</div>")


def _pairs(title: str, values: Mapping[str, Any]) -> _Html:
    """Names and values below a title."""
    if not values:
        return _paragraph(f"{title}: none")
    return _Html(
        f"<div class=pairs>{_table((title, ''), [(name, _show(value)) for name, value in values.items()], 2)}</div>"
    )


def _parameters(values: Mapping[str, Any]) -> _Html:
    return _Html(
        " ".join(f"<code>{_text(name)} = {_text(value)}</code>" for name, value in values.items())
        or "no parameters"
    )


def _nav(titles: Iterable[str]) -> _Html:
    links = "".join(f"<a href='#{title.lower().replace(' ', '-')}'>{_text(title)}</a>" for title in titles)
    return _Html(f"<nav><a href=index.html>&larr; all strategies</a>{links}</nav>")


def _tear_sheet_page(sheet: TearSheet) -> str:
    window = sheet.statistics["window"]
    kind = "A yardstick, not a strategy. " if sheet.is_yardstick else ""
    sections = {
        "Performance": _performance_section(sheet),
        "Statistics": _statistics_section(sheet),
        "Trades": _trades_section(sheet),
        "Costs": _costs_section(sheet),
        "Parameter sweep": _sweep_section(sheet),
        "Assumptions": _assumptions_section(sheet),
    }
    head = _join(
        _nav(sections),
        f"<header><h1>{_text(sheet.strategy)}</h1>",
        _paragraph(kind + sheet.description),
        _paragraph(
            f"Out of sample, {window['first']} to {window['last']} ({window['sessions']:,} sessions), "
            f"{len(sheet.bars)} symbol{'s' if len(sheet.bars) != 1 else ''}: {', '.join(sorted(sheet.bars)[:12])}"
            f"{' and more' if len(sheet.bars) > 12 else ''}.",
            "quiet",
        ),
        f"<p>{_parameters(sheet.parameters)}</p>",
        _banner(sheet.notes),
        _key_numbers(sheet),
        "</header>",
    )
    return _page(f"{sheet.strategy}: tear sheet", _join(head, *sections.values()))


def _performance_section(sheet: TearSheet) -> _Html:
    if sheet.sessions.size < 2:
        return _section(
            "Performance", _absent("Equity", "One session has no return; there is nothing to draw.")
        )
    parts = [_equity_plot(sheet), _drawdown_table(sheet)]
    if not _moves(sheet.equity):
        return _section(
            "Performance",
            *parts,
            _absent(
                "Returns and exposure",
                "Equity never moved: every return is 0, so there is no distribution, no volatility and no exposure to show.",
            ),
        )
    parts.append(_monthly_plot(sheet))
    returns = sheet.sessions.size - 1
    small = [_annual_plot(sheet)]
    distribution = "Distribution of returns"
    if np.ptp(statistics.period_returns(sheet.equity)) > 1e-12 and returns >= 10:
        small.append(_distribution_plot(sheet))
    else:
        small.append(
            _absent(distribution, f"{returns} returns that hardly differ are no distribution to draw.")
        )
    small.append(_rolling_plot(sheet))
    if np.any(sheet.gross > 0):
        small.append(_exposure_plot(sheet))
    else:
        small.append(_absent("Exposure", "The strategy never held a position at a close."))
    return _section("Performance", *parts, _columns(*small))


def _trades_section(sheet: TearSheet) -> _Html:
    if not sheet.trades.num_rows:
        why = "The strategy made no trade in this window."
        if sheet.rejected.num_rows:
            why = f"No order was filled; {sheet.rejected.num_rows:,} were rejected (below)."
        return _section("Trades", _absent("Trades", why), _rejected_table(sheet.rejected))
    return _section(
        "Trades",
        _price_plot(sheet),
        _columns(_pnl_plot(sheet), _excursion_plot(sheet)),
        _trades_table(sheet.trades),
        _rejected_table(sheet.rejected),
    )


def _costs_section(sheet: TearSheet) -> _Html:
    if not sheet.trades.num_rows:
        return _section("Costs", _absent("Costs", "Nothing was traded, so nothing was paid."))
    breakdown = _absent("What trading cost", "All costs were assumed to be zero.")
    if sheet.statistics["costs"]["total"]:
        breakdown = _cost_breakdown_plot(sheet)
    sensitivity = _absent("If trading cost more or less", "It was not computed for this strategy.")
    if sheet.cost_sensitivity:
        sensitivity = _cost_sensitivity_plot(sheet)
        if len({row["final_equity"] for row in sheet.cost_sensitivity}) == 1:
            sensitivity = _absent(
                "If trading cost more or less", "The result is the same at every level of costs."
            )
    return _section("Costs", _columns(sensitivity, breakdown))


def _sweep_section(sheet: TearSheet) -> _Html:
    sweep = sheet.sweep
    if sweep is None:
        why = "A yardstick has nothing to tune." if sheet.is_yardstick else (
            "The parameters were given, not searched for: no sweep of this strategy belongs to this backtest."
        )  # fmt: skip
        return _section("Parameter sweep", _absent("Sweep", why))
    complete = completed(sweep)
    other = {
        name: sheet.parameters[name]
        for name, value in sweep.chosen.items()
        if name in sheet.parameters and sheet.parameters[name] != value
    }
    facts = [
        ("Objective", sweep.objective),
        ("Trials", f"{sweep.trials.num_rows:,}, of which {complete.num_rows:,} complete"),
        ("Chosen", _parameters(sweep.chosen)),
        ("Trials counted by the deflated Sharpe ratio", f"{sweep.trial_count:,}"),
        (
            _term("Spread of the trials' Sharpe ratios", "Standard deviation of their annual Sharpe ratios."),
            MISSING if sweep.sharpe_variance is None else _show(math.sqrt(max(sweep.sharpe_variance, 0.0)), "ratio"),
        ),
        (
            _term(
                "Probability of backtest overfitting",
                "Share of splits of the sessions in which the best trial of one half is below the median of the other half "
                "(Bailey et al. 2017). Above 0.5 the choice is worse than a coin.",
            ),
            _show(sweep.pbo, "probability"),
        ),
    ]  # fmt: skip
    warning = f"This backtest did not use what the sweep chose; it ran with {_parameters(other)}."
    parts = [
        _banner([_Html(warning)]) if other else "",
        _table(("Sweep", ""), facts, 2),
        _heat_map_plot(sweep),
        _parallel_plot(sweep),
        _walk_forward_plot(sheet, sweep),
    ]
    if sweep.walk_forward:
        parts.append(_folds_table(sweep))
    return _section("Parameter sweep", *parts)


def _folds_table(sweep: SweepView) -> _Html:
    rows: list[tuple[object, ...]] = [
        (
            i,
            f"{fold['train_first']} to {fold['train_last']}",
            f"{fold['test_first']} to {fold.get('test_last') or fold['session']}",
            _parameters(fold["parameters"]),
            _show(fold.get("in_sample"), "ratio"),
            _show(fold.get("out_of_sample"), "ratio"),
            _show(fold.get("total_return"), "percent"),
        )
        for i, fold in enumerate(sweep.walk_forward, 1)
    ]

    def mean(key: str) -> float | None:
        values = [fold[key] for fold in sweep.walk_forward if not _undefined(fold.get(key))]
        return averages.fmean(values) if values else None

    rows.append(
        (
            "",
            "mean",
            "",
            "",
            _show(mean("in_sample"), "ratio"),
            _show(mean("out_of_sample"), "ratio"),
            _show(mean("total_return"), "percent"),
        )
    )
    header = ("Fold", "Chosen on", "Traded on", "Parameters", f"{sweep.objective} in training", f"{sweep.objective} in test",
              "Return in test")  # fmt: skip
    return _Html(f"<figure class=wide><h3>Folds</h3>{_table(header, rows, 4, 'folds')}</figure>")


def _assumptions_section(sheet: TearSheet) -> _Html:
    numbers = sheet.statistics
    validity = numbers["validity"]
    windows = {"out of sample": f"{numbers['window']['first']} to {numbers['window']['last']}"}
    if sheet.in_sample:
        windows = {
            "in sample": f"{sheet.in_sample['window']['first']} to {sheet.in_sample['window']['last']}",
            **windows,
        }
    windows |= {
        "sessions purged in between": validity["purge_sessions"],
        "sessions embargoed": validity["embargo_sessions"],
    }
    timing = (
        "Decided at a close with what was known then, traded at the next open at quoted prices; stop and target work inside "
        "the bar, and the stop counts when both are touched. Each symbol has an account of its own with an equal share of the cash. "
        "A position that is open at the end is marked at the last close."
    )
    return _section(
        "Assumptions",
        _paragraph(timing),
        "<div class=columns><div>",
        _pairs("Costs", sheet.costs),
        _pairs("Account", sheet.account),
        "</div><div>",
        _pairs("Windows", windows),
        _pairs("Conventions", numbers["conventions"]),
        _pairs("Parameters", sheet.parameters),
        "</div></div>",
        _paragraph(
            _Html(f"The same numbers for programs: <a href='{_link(sheet.strategy)}.json'>{_text(sheet.strategy)}.json</a>."),
            "quiet",
        ),
    )  # fmt: skip


def _link(name: str) -> str:
    return html.escape(quote(name))


# -------------------------------------------------------------------------------------------------------- comparison


class _Compared(NamedTuple):
    """One line of the comparison: growth of one dollar on the common sessions, and its statistics there."""

    name: str
    yardstick: bool
    growth: np.ndarray
    summary: dict[str, Any]
    sheet: TearSheet | None


class _Common(NamedTuple):
    """What all strategies have in common. `lines`: strategies by Sharpe ratio, the best first, then the yardsticks."""

    sessions: np.ndarray
    lines: list[_Compared]


def common_growth(sheets: Sequence[TearSheet]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Growth of one dollar on the sessions that all sheets have.

    Yardsticks that have no sheet of their own are taken from the first sheet that shows them.

    Returns:
        sessions, `datetime64[D]`, shape (n,); name -> growth, shape (n,), 1 on the first session.
    """
    sessions = sheets[0].sessions
    for sheet in sheets[1:]:
        sessions = np.intersect1d(sessions, sheet.sessions)
    equity: dict[str, np.ndarray] = {}
    if sessions.size:
        for sheet in sheets:
            equity[sheet.strategy] = sheet.equity[np.isin(sheet.sessions, sessions)]
        for sheet in sheets:
            for name, values in sheet.yardsticks.items():
                equity.setdefault(name, values[np.isin(sheet.sessions, sessions)])
    return sessions, {name: values / values[0] for name, values in equity.items()}


def _common(sheets: Sequence[TearSheet]) -> _Common:
    """Everything on the sessions that all sheets have; no lines when they are fewer than two."""
    sessions, curves = common_growth(sheets)
    if sessions.size < 2:
        return _Common(sessions, [])
    owners = {sheet.strategy: sheet for sheet in sheets}
    lines = []
    for name, growth in curves.items():
        owner = owners.get(name)
        trials = owner.statistics["validity"]["trials"] if owner else 1
        variance = owner.statistics["validity"]["trial_sharpe_variance"] if owner else None
        summary = statistics.summary(
            growth,
            sessions,
            _inside(owner.trades if owner else sheets[0].trades.slice(0, 0), sessions),
            sheets[0].conventions,
            benchmark_equity=None if name == "buy_and_hold" else curves.get("buy_and_hold"),
            trials=trials,
            trial_sharpe_variance=math.nan if variance is None and trials > 1 else variance,
        )
        lines.append(_Compared(name, name in YARDSTICKS, growth, summary, owner))
    lines.sort(key=lambda line: (line.yardstick, -_or_least(line.summary["returns"]["sharpe"])))
    return _Common(sessions, lines)


def _or_least(value: float | None) -> float:
    return -math.inf if value is None else value


def _inside(trades: pa.Table, sessions: np.ndarray) -> pa.Table:
    """Trades that began and ended between the first and the last of the sessions."""
    entry = trades["entry_session"].to_numpy().astype("datetime64[D]")
    exit_ = trades["exit_session"].to_numpy().astype("datetime64[D]")
    return trades.filter(pa.array((entry >= sessions[0]) & (exit_ <= sessions[-1])))


def _correlations(common: _Common) -> tuple[list[str], np.ndarray]:
    """Correlation of daily returns of all lines whose returns vary; shape (lines, lines)."""
    returns = {line.name: statistics.period_returns(line.growth) for line in common.lines}
    moving = [name for name, values in returns.items() if values.size > 1 and np.ptp(values) > 1e-12]
    table = np.array(
        [[statistics.correlation(returns[a], returns[b]) for b in moving] for a in moving], dtype=float
    )
    return moving, table.reshape(len(moving), len(moving))


def _comparison_facts(sheets: Sequence[TearSheet], common: _Common) -> dict[str, Any]:
    """What comparison.json holds."""
    names, correlations = _correlations(common)
    return {
        "conventions": sheets[0].statistics["conventions"],
        "sessions": {
            "count": common.sessions.size,
            "first": common.sessions[0].item() if common.sessions.size else None,
            "last": common.sessions[-1].item() if common.sessions.size else None,
        },
        "strategies": [
            {
                "strategy": line.name,
                "yardstick": line.yardstick,
                "rank": None if line.yardstick else rank,
                "statistics": line.summary,
                "out_of_sample": line.sheet and line.sheet.statistics,
                "in_sample": line.sheet and line.sheet.in_sample,
                "trials": line.sheet and line.sheet.statistics["validity"]["trials"],
                "dsr": line.sheet and line.sheet.statistics["validity"]["dsr"],
                "pbo": line.sheet.sweep.pbo if line.sheet and line.sheet.sweep else None,
                "notes": line.sheet.notes if line.sheet else [],
            }
            for rank, line in enumerate(common.lines, 1)
        ],
        "correlation": {"names": names, "values": correlations},
    }


def _line_style(common: _Common, name: str) -> dict[str, Any]:
    """Colour and dash of a line: strategies in colours, yardsticks in grey."""
    strategies = [line.name for line in common.lines if not line.yardstick]
    if name in strategies:
        at = strategies.index(name)
        dash = ("solid", "dash", "dot")[at // len(STRATEGY_COLORS) % 3]
        return {"color": STRATEGY_COLORS[at % len(STRATEGY_COLORS)], "dash": dash, "width": 1.7}
    return {"color": GREY, "dash": "dot" if name == "flat" else "solid", "width": 1.4}


def _comparison_equity_plot(common: _Common) -> _Html:
    import plotly.graph_objects as go

    figure = _figure(2, 1, 600, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.05)
    days = _days(common.sessions)
    for line in common.lines:
        style = _line_style(common, line.name)
        name = _label(line.name) + (" (yardstick)" if line.yardstick else "")
        for row, values, form in (
            (1, _positive(line.growth), "%{y:.3f}"),
            (2, statistics.drawdown_path(line.growth), "%{y:.1%}"),
        ):
            figure.add_trace(
                go.Scatter(
                    x=days, y=_small(values), mode="lines", line=style, name=name, legendgroup=line.name,
                    showlegend=row == 1, hovertemplate=form,
                ),
                row=row,
                col=1,
            )  # fmt: skip
    figure.update_yaxes(type="log", tickformat=".2~f", title_text="growth of one dollar", row=1, col=1)
    figure.update_yaxes(tickformat=".0%", title_text="below the peak", row=2, col=1)
    figure.update_layout(hovermode="x unified", updatemenus=[_log_switch()], margin_t=48)
    figure.update_xaxes(hoverformat="%a %d %b %Y")
    return _plot("equity", "Growth of one dollar, and distance from the peak", figure, "Net of costs. Grey: yardsticks.")  # fmt: skip


def _scatter_plot(common: _Common) -> _Html:
    import plotly.graph_objects as go

    figure = _figure(height=380)
    for line in common.lines:
        style = _line_style(common, line.name)
        annual = line.summary["returns"]["cagr"]
        figure.add_trace(
            go.Scatter(
                x=[line.summary["drawdown"]["maximum"]],
                y=[annual],
                mode="markers+text",
                text=[_label(line.name)],
                textposition="top center",
                marker={
                    "size": 12,
                    "color": style["color"],
                    "symbol": "diamond-open" if line.yardstick else "circle",
                    "line": {"width": 2},
                },
                name=_label(line.name),
                hovertemplate="%{text}<br>max drawdown %{x:.1%}, CAGR %{y:.1%}<extra></extra>",
            )
        )
    deepest = min(line.summary["drawdown"]["maximum"] for line in common.lines)
    figure.update_xaxes(tickformat=".0%", title_text="maximum drawdown", range=[1.22 * deepest - 0.02, 0.06])
    figure.update_yaxes(tickformat=".0%", title_text="CAGR", showgrid=True)
    figure.update_layout(showlegend=False)
    return _plot("scatter", "Return against drawdown", figure, "Up and to the right is better. Diamonds: yardsticks.")  # fmt: skip


def _correlation_plot(common: _Common) -> _Html:
    import plotly.graph_objects as go

    names, table = _correlations(common)
    if len(names) < 2:
        return _absent("Correlation of daily returns", "Fewer than two of the curves vary.")
    figure = _figure(height=380)
    labels = [_label(name) for name in names]
    figure.add_trace(
        go.Heatmap(
            x=labels, y=labels, z=np.round(table, 4), zmin=-1, zmax=1, colorscale=LOSS_TO_GAIN, showscale=False,
            xgap=2, ygap=2, texttemplate="%{z:.2f}", hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(type="category", showline=False, ticks="", automargin=True)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="")
    still = [line.name for line in common.lines if line.name not in names]
    caption = (
        f"Without {', '.join(still)}, whose return never changes."
        if still
        else "Of simple returns, close to close."
    )
    return _plot("correlation", "Correlation of daily returns", figure, caption)


def _sharpe_plot(sheets: Sequence[TearSheet]) -> _Html:
    import plotly.graph_objects as go

    shown = [sheet for sheet in sheets if sheet.statistics["returns"]["sharpe"] is not None]
    if not shown:
        return _absent(
            "Sharpe ratio in and out of sample", "No strategy has one: nothing was earned or lost."
        )
    figure = _figure(height=100 + 56 * len(shown))
    for label, color, shape, offset in (
        ("in sample", ORANGE, "circle-open", -0.14),
        ("out of sample", BLUE, "circle", 0.14),
    ):
        summaries = [sheet.in_sample if label == "in sample" else sheet.statistics for sheet in shown]
        rows = [
            (i + offset, shown[i].strategy, summary["returns"])
            for i, summary in enumerate(summaries)
            if summary is not None and summary["returns"]["sharpe"] is not None
        ]
        if rows:
            figure.add_trace(
                go.Scatter(
                    x=_small([r["sharpe"] for *_, r in rows]),
                    y=[at for at, *_ in rows],
                    mode="markers",
                    name=label,
                    text=[_label(name) for _, name, _ in rows],
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [(r["sharpe_high"] or r["sharpe"]) - r["sharpe"] for *_, r in rows],
                        "arrayminus": [r["sharpe"] - (r["sharpe_low"] or r["sharpe"]) for *_, r in rows],
                        "thickness": 1.6,
                        "width": 5,
                    },
                    marker={
                        "color": color,
                        "size": 10,
                        "symbol": shape,
                        "line": {"width": 2, "color": color},
                    },
                    hovertemplate=f"%{{text}}, {label}: %{{x:.2f}}<extra></extra>",
                )
            )
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    figure.update_xaxes(title_text="annual Sharpe ratio, 95% interval", showgrid=True)
    figure.update_yaxes(
        range=[len(shown) - 0.5, -0.5],
        tickvals=list(range(len(shown))),
        ticktext=[_label(sheet.strategy) for sheet in shown],
        showgrid=False,
        zeroline=False,
    )
    return _plot(
        "sharpe",
        "Sharpe ratio in and out of sample",
        figure,
        "Each on its own windows. Where parameters were chosen in sample, the in-sample number flatters.",
    )


COMPARED = (
    ("returns.total_return", "Total return", "percent"),
    ("returns.cagr", "CAGR", "percent"),
    ("returns.volatility", "Volatility", "percent"),
    ("returns.sharpe", "Sharpe", "ratio"),
    ("returns.sortino", "Sortino", "ratio"),
    ("drawdown.maximum", "Max drawdown", "percent"),
    ("returns.calmar", "Calmar", "ratio"),
    ("benchmark.beta", "Beta", "ratio"),
    ("trades.count", "Trades", "whole"),
    ("trades.win_rate", "Win rate", "percent"),
    ("trades.profit_factor", "Profit factor", "ratio"),
    ("trades.sqn", "SQN", "ratio"),
)


def _comparison_table(common: _Common, folder: Path) -> _Html:
    definition = {key: text for lines in STATISTIC_GROUPS.values() for key, _, _, text in lines}
    header = ["Rank", "Strategy", *(_term(label, definition[key]) for key, label, _ in COMPARED)]
    rows = []
    for rank, line in enumerate(common.lines, 1):
        numbers = [_show(_value(line.summary, key), form) for key, _, form in COMPARED]
        if line.sheet is None:
            numbers = [
                MISSING if key.startswith("trades.") else number
                for (key, _, _), number in zip(COMPARED, numbers, strict=True)
            ]
        rows.append(["yardstick" if line.yardstick else rank, _sheet_link(line.name, folder), *numbers])
    table = str(_table(header, rows, 2, "comparison"))
    return _Html(f"<div class=wide>{table.replace('<tr><td>yardstick', '<tr class=yardstick><td>yardstick')}</div>")  # fmt: skip


def _sheet_link(name: str, folder: Path) -> str:
    """The name, linked to its tear sheet if there is one."""
    if (folder / f"{name}.html").exists():
        return _Html(f"<a href='{_link(name)}.html'>{_text(name)}</a>")
    return _text(name)


def _belief_table(sheets: Sequence[TearSheet]) -> _Html:
    """In-sample and out-of-sample Sharpe ratios with what the choice among trials makes of them."""

    def interval(summary: Mapping[str, Any] | None) -> str:
        if summary is None or summary["returns"]["sharpe"] is None:
            return MISSING
        r = summary["returns"]
        reach = "" if r["sharpe_low"] is None else f" [{r['sharpe_low']:.2f}, {r['sharpe_high']:.2f}]"
        return f"{r['sharpe']:.2f}{reach}"

    rows = []
    for sheet in sheets:
        window, validity = sheet.statistics["window"], sheet.statistics["validity"]
        rows.append(
            (
                sheet.strategy,
                f"{window['first']} to {window['last']}",
                interval(sheet.in_sample),
                interval(sheet.statistics),
                _show(validity["psr"], "probability"),
                f"{validity['trials']:,.6g}",
                _show(validity["sr0"], "ratio"),
                _show(validity["dsr"], "probability"),
                _show(sheet.sweep.pbo if sheet.sweep else None, "probability"),
            )
        )
    definition = {key: text for lines in STATISTIC_GROUPS.values() for key, _, _, text in lines}
    header = (
        "Strategy", "Out of sample", "Sharpe in sample", "Sharpe out of sample",
        _term("PSR", definition["validity.psr"]), "Trials", _term("Sharpe of luck", definition["validity.sr0"]),
        _term("DSR", definition["validity.dsr"]), _term("PBO", "Probability of backtest overfitting."),
    )  # fmt: skip
    return _Html(f"<div class=wide>{_table(header, rows, 2, 'belief')}</div>")


def _unlike(sheets: Sequence[TearSheet]) -> list[str]:
    """What keeps the comparison from being fair, as sentences."""
    first = sheets[0]
    sentences = []
    for what, of in (
        ("costs", lambda sheet: dict(sheet.costs)),
        ("account", lambda sheet: dict(sheet.account)),
        ("symbols", lambda sheet: sorted(sheet.bars)),
        ("conventions of annualising", lambda sheet: sheet.conventions),
    ):
        if others := [sheet.strategy for sheet in sheets if of(sheet) != of(first)]:
            sentences.append(
                f"Not like with like: {', '.join(others)} had other {what} than {first.strategy}. Their backtests were run "
                "with different settings; run them with the same before judging."
            )
    return sentences


def _comparison_page(sheets: Sequence[TearSheet], common: _Common, folder: Path) -> str:
    banner = _unlike(sheets)
    ranked = sum(not sheet.is_yardstick for sheet in sheets)
    by_note = {
        note: [other.strategy for other in sheets if note in other.notes and not other.is_yardstick]
        for sheet in sheets
        for note in sheet.notes
    }
    banner += [
        f"{note} ({', '.join(names)})" if names and len(names) < ranked else note
        for note, names in by_note.items()
    ]
    head = _join(
        "<nav><a href=../index.html>&larr; all reports</a></nav><header><h1>Strategies compared</h1>"
    )
    belief = _section(
        "In sample and out of sample",
        _sharpe_plot([sheet for sheet in sheets if not sheet.is_yardstick] or list(sheets)),
        _belief_table(sheets),
    )
    pages = _section(
        "Tear sheets",
        "<ul>"
        + "".join(
            f"<li>{_sheet_link(s.strategy, folder)}{' (yardstick)' if s.is_yardstick else ''}: {_text(s.description)}</li>"
            for s in sheets
        )
        + "</ul>",
        _paragraph(
            _Html("The same numbers for programs: <a href=comparison.json>comparison.json</a>."), "quiet"
        ),
    )
    if not common.lines:
        spans = "; ".join(f"{s.strategy} {s.sessions[0]} to {s.sessions[-1]}" for s in sheets)
        why = f"The strategies have {common.sessions.size} sessions in common ({spans}), too few to compare them."
        body = _join(head, "</header>", _banner(banner), _absent("Comparison", why), belief, pages)
        return _page("Strategies compared", body)
    first, last = common.sessions[0], common.sessions[-1]
    span = (
        f"On the {common.sessions.size:,} sessions that all of them have, {first} to {last}, out of sample, net of costs. "
        "Ranked by Sharpe ratio; yardsticks are there to be beaten and have no rank. Trades that began before or ended after are "
        "left out of the counts."
    )
    return _page(
        "Strategies compared",
        _join(
            head,
            _paragraph(span, "quiet"),
            "</header>",
            _banner(banner),
            _comparison_table(common, folder),
            _section("Performance", _comparison_equity_plot(common)),
            _section("Risk and likeness", _columns(_scatter_plot(common), _correlation_plot(common))),
            belief,
            pages,
        ),
    )


# ------------------------------------------------------------------------------------------------------------- index


def _version(path: Path) -> tuple[str, int]:
    """`mlp_technical-v3.html` -> (mlp_technical, 3)."""
    name, _, version = path.stem.rpartition("-v")
    return (name, int(version)) if name and version.isdigit() else (path.stem, 0)


def _index_page(reports_dir: Path) -> str:
    def date(path: Path) -> str:
        return dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")

    def link(path: Path, label: str) -> _Html:
        address = "/".join(_link(part) for part in path.relative_to(reports_dir).parts)
        return _Html(f"<a href='{address}'>{_text(label)}</a>")

    pages = sorted(path for path in reports_dir.rglob("*.html") if not path.name.startswith("."))
    sections = []
    backtests = [p for p in pages if p.parent == reports_dir / "backtests"]
    models = [p for p in pages if p.parent == reports_dir / "models"]
    if backtests:
        rows = []
        for path in sorted(backtests, key=lambda p: (p.name != "index.html", p.stem in YARDSTICKS, p.name)):
            numbers = _read_facts(path.with_suffix(".json"))
            window = numbers.get("window") or {}
            label = "Comparison of all strategies" if path.name == "index.html" else path.stem
            rows.append(
                (
                    link(path, label),
                    f"{window['first']} to {window['last']}" if window else "",
                    date(path),
                    _show(_value(numbers, "returns.total_return"), "percent") if numbers else "",
                    _show(_value(numbers, "returns.sharpe"), "ratio") if numbers else "",
                    _show(_value(numbers, "drawdown.maximum"), "percent") if numbers else "",
                )
            )
        header = ("Page", "Out of sample", "Written", "Total return", "Sharpe", "Max drawdown")
        sections.append(_section("Backtests", _table(header, rows, 3)))
    if models:
        ordered = sorted(models, key=lambda p: (_version(p)[0], -_version(p)[1]))
        rows_of_models = [(link(p, _version(p)[0]), _version(p)[1] or MISSING, date(p)) for p in ordered]
        sections.append(_section("Models", _table(("Report", "Version", "Written"), rows_of_models, 3)))
    others = [p for p in pages if p not in backtests and p not in models and p != reports_dir / "index.html"]
    if others:
        rows_of_others = [(link(p, str(p.relative_to(reports_dir))), date(p)) for p in others]
        sections.append(_section("Other reports", _table(("Report", "Written"), rows_of_others, 2)))
    if not sections:
        sections.append(_paragraph("There is no report yet. Backtests and models write theirs here."))
    return _page("Reports", _join("<h1>Reports</h1>", *sections), plots=False)


def _read_facts(path: Path) -> dict[str, Any]:
    """Statistics from the JSON beside a tear sheet; nothing where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["statistics"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
