"""Tear sheets of real backtests: what the files hold, and what a browser makes of them."""

import base64
import dataclasses
import datetime as dt
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pytest

from quant_assets.backtests import plots, statistics
from quant_assets.backtests.ablation import RUNGS, SIDES, Estimate, conclusion, ladder_rows
from quant_assets.backtests.engine import Account, Costs
from quant_assets.backtests.grid import STATISTICS, join_results, rule_array, run_grid
from quant_assets.backtests.pages.comparison import write_comparison
from quant_assets.backtests.pages.report_index import write_index
from quant_assets.backtests.pages.sheet import (
    AblationView,
    SweepView,
    TearSheet,
    completed,
    heat_map_of,
    monthly_returns,
    quoted_exit,
)
from quant_assets.backtests.pages.tear_sheet import write_tear_sheet
from quant_assets.backtests.portfolio import Window, run_backtest
from quant_assets.backtests.space import load_space
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.presentation import render
from quant_assets.strategies import YARDSTICKS, make_strategy, strategy_class

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
COSTS = Costs(commission_per_share=0.005, half_spread_bps=2.0, impact_bps=10.0, participation_cap=0.1, borrow_annual_pct=0.5)  # fmt: skip
ACCOUNT = Account()
IN_SAMPLE = Window(dt.date(2000, 3, 1), dt.date(2005, 5, 13))
UNSEEN = Window(dt.date(2005, 5, 23), dt.date(2013, 3, 1))
EVERY_PLOT = {
    "equity", "monthly", "annual", "distribution", "rolling", "exposure", "trades", "pnl", "excursions",
    "cost-sensitivity", "cost-breakdown", "heat-map", "parallel", "walk-forward",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ real sheets


@pytest.fixture(scope="module")
def series(sample_bars: pa.Table) -> dict[str, BarSeries]:
    return bar_series(sample_bars)


def make_sheet(
    name: str,
    series: dict[str, BarSeries],
    window: Window = UNSEEN,
    sweep: SweepView | None = None,
    **changes: Any,
) -> TearSheet:
    strategy = make_strategy(name, **(sweep.chosen if sweep else {}))

    def run(what: Any = strategy, where: Window = window, costs: Costs = COSTS) -> Any:
        return run_backtest(what, series, where, costs=costs, account=ACCOUNT)

    yardsticks = {name: run(make_strategy(name)).equity for name in YARDSTICKS}
    trials = {"trials": sweep.trial_count, "trial_sharpe_variance": sweep.sharpe_variance} if sweep else {}

    def judge(done: Any, held: np.ndarray) -> dict[str, Any]:
        return statistics.summary(
            done.equity, done.sessions, done.trades, benchmark_equity=held, purge_sessions=5, **trials
        )

    done, before = run(), run(where=IN_SAMPLE)
    sensitivity = []
    for factor in (0.0, 0.5, 1.0, 2.0, 4.0):
        numbers = judge(run(costs=COSTS.times(factor)), yardsticks["buy_and_hold"])["returns"]
        wanted = ("total_return", "sharpe", "final_equity")
        sensitivity.append({"cost_factor": factor, **{key: numbers[key] for key in wanted}})
    values = {
        "strategy": name,
        "description": (type(strategy).__doc__ or "").splitlines()[0],
        "parameters": strategy.parameters,
        "statistics": judge(done, yardsticks["buy_and_hold"]),
        "in_sample": judge(before, run(make_strategy("buy_and_hold"), IN_SAMPLE).equity),
        "sessions": done.sessions,
        "equity": done.equity,
        "invested": done.invested,
        "gross": done.gross,
        "yardsticks": yardsticks,
        "trades": done.trades,
        "rejected": done.rejected,
        "bars": series,
        "cost_sensitivity": sensitivity,
        "costs": COSTS._asdict(),
        "account": ACCOUNT._asdict(),
        "sweep": sweep,
    }
    return TearSheet(**(values | changes))


def make_sweep(name: str, series: dict[str, BarSeries], every: int) -> SweepView:
    """A sweep over every so many sets of the grid, and a walk-forward of two folds."""
    space, kind = load_space(name), strategy_class(name)
    sets = space.grid(5000)[::every]
    rules = rule_array([kind.create(**given).rules for given in sets])
    parts = run_grid(
        series, lambda bars, part: kind.decide_grid(bars, sets[part]), rules, IN_SAMPLE, COSTS, ACCOUNT
    )
    result = join_results([part for _, part in parts])
    sharpe = result.column("sharpe")
    best = int(np.nanargmax(sharpe))
    columns: dict[str, Any] = {key: [given[key] for given in sets] for key in space.names}
    columns |= {key: result.column(key) for key in STATISTICS}
    trials = pa.table(
        {**columns, "state": ["complete"] * len(sets), "error": pa.nulls(len(sets), pa.string())}
    )
    tests = (
        Window(dt.date(2009, 1, 2), dt.date(2010, 12, 31)),
        Window(dt.date(2011, 1, 3), dt.date(2012, 12, 31)),
    )
    folds, sessions, equity = [], [], [np.array([100_000.0])]
    for test, given in zip(tests, sets, strict=False):
        run = run_backtest(make_strategy(name, **given), series, test, costs=COSTS)
        folds.append(
            {
                "train_first": dt.date(2000, 3, 1), "train_last": dt.date(2008, 12, 15), "test_first": test.first,
                "test_last": test.last, "parameters": given, "in_sample": 1.25, "out_of_sample": -0.5,
                "total_return": statistics.total_return(run.equity),
            }
        )  # fmt: skip
        sessions.append(run.sessions)
        equity.append(run.equity / run.equity[0] * equity[-1][-1])
    return SweepView(
        objective="sharpe",
        names=space.names,
        trials=trials,
        heat_map=space.heat_map,
        chosen=sets[best],
        pbo=0.25,
        trial_count=len(sets),
        sharpe_variance=float(np.nanvar(sharpe, ddof=1)),
        walk_forward=folds,
        walk_forward_sessions=np.concatenate(sessions),
        walk_forward_equity=np.concatenate(equity[1:]),
    )


@pytest.fixture(scope="module")
def sheets(series: dict[str, BarSeries]) -> list[TearSheet]:
    """Two strategies with sweeps, and the yardsticks."""
    return [
        make_sheet(
            "sma_crossover",
            series,
            sweep=make_sweep("sma_crossover", series, 1),
            notes=("Only five shares.",),
        ),
        make_sheet("daily_breakout", series, sweep=make_sweep("daily_breakout", series, 2)),
        make_sheet("buy_and_hold", series),
        make_sheet("flat", series),
    ]


def make_ablation(source: str = "simulated") -> AblationView:
    """A ladder of noise."""
    rng = np.random.default_rng(8)
    estimates = [
        Estimate(rung, measure, side, level, 0.01, level, level, level + rng.normal(0, 0.01, 100))
        for rung in RUNGS
        for measure, sides, level in (
            ("auc", SIDES, 0.51),
            ("brier_gain", SIDES, -0.001),
            ("sharpe", ("both",), -0.25),
            ("total_return", ("both",), -0.125),
            ("trades", ("both",), 321.5),
        )
        for side in sides
    ]
    shared = {
        "session": dt.date(2013, 3, 1),
        "first_session": dt.date(2005, 6, 7),
        "rows": 7939,
        "news_source": source,
        "hindsight_share": 0.25,
    }
    rows = [{**row, **shared} for row in ladder_rows(estimates, 1944, 5)]
    return AblationView(conclusion(rows), rows)


@pytest.fixture(scope="module")
def folder(sheets: list[TearSheet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages."""
    folder = tmp_path_factory.mktemp("reports") / "backtests"
    for sheet in sheets:
        write_tear_sheet(sheet, folder)
    write_comparison(sheets, folder, make_ablation())
    write_index(folder.parent)
    return folder


# ----------------------------------------------------------------------------------------------------- reading pages


class Page(HTMLParser):
    """A page that closes what it opens; its visible text, links and figures."""

    VOID = ("meta", "link", "br", "!doctype")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.figures: dict[str, Any] = {}
        self.places: list[str] = []
        self.rows: dict[str, int] = {}
        self._script = self._table = ""
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "script":
            self._script = given.get("id") or ""
            self.scripts.append(given.get("src") or "")
        if tag == "table":
            self._table = given.get("id") or ""
        if tag == "tr" and self._table:
            self.rows[self._table] = self.rows.get(self._table, -1) + 1
        if "plot" in (given.get("class") or "").split():
            self.places.append((given["id"] or "").removeprefix("plot-"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            if self._script:
                name = self._script.removeprefix("plot-").removesuffix("-data")
                self.figures[name] = json.loads(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def count(values: Any) -> int:
    """How many values an array of a figure holds that are not missing."""
    if isinstance(values, dict):
        numbers = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
        return int(np.isfinite(numbers.astype(float)).sum())
    return sum(value is not None for value in values)


def check_figure(name: str, figure: dict[str, Any]) -> None:
    go.Figure(figure)  # plotly's own validation of every property
    assert figure["data"], f"{name} is empty"
    for trace in figure["data"]:
        if trace["type"] == "parcoords":
            assert all(count(axis["values"]) for axis in trace["dimensions"])
            continue
        key = "z" if trace["type"] == "heatmap" else "y"
        assert count(trace["x"]), f"{name}: {trace.get('name')} has no x"
        assert count(trace[key]), f"{name}: {trace.get('name')} has no {key}"


def no_constants(value: str) -> Any:
    raise AssertionError(f"{value} is not JSON")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(), parse_constant=no_constants)


# ------------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("sma_crossover", set()),
        ("daily_breakout", set()),
        ("buy_and_hold", {"heat-map", "parallel", "walk-forward"}),
        ("flat", EVERY_PLOT - {"equity"}),
    ],
)
def test_a_page_holds_every_plot_with_data_or_says_why_not(
    folder: Path, name: str, missing: set[str]
) -> None:
    page = Page(folder / f"{name}.html")
    assert set(page.figures) == set(page.places) == EVERY_PLOT - missing
    for plot, figure in page.figures.items():
        check_figure(plot, figure)
    assert (folder / f"{name}.html").stat().st_size < 3_000_000


def test_pages_need_no_network_and_share_one_library(folder: Path) -> None:
    for path in folder.rglob("*.html"):
        page = Page(path)
        assert set(page.scripts) == {"plotly.min.js", ""}
        assert not re.search(r"""(src|href)=['"]?(https?:)?//""", path.read_text())
    assert [path.name for path in folder.rglob("*.js")] == ["plotly.min.js"]
    assert (folder / "plotly.min.js").stat().st_size > 1_000_000


def test_every_link_leads_to_a_file(folder: Path) -> None:
    for path in [*folder.glob("*.html"), folder.parent / "index.html"]:
        links = Page(path).links
        assert links
        for link in links:
            if link.startswith("#"):
                assert f"id={link[1:]}>" in path.read_text()
            else:
                file, _, place = link.partition("#")
                assert (path.parent / file).is_file(), f"{path.name} links {link}"
                assert not place or f"id={place}>" in (path.parent / file).read_text()


def test_the_header_shows_the_key_numbers(folder: Path, sheets: list[TearSheet]) -> None:
    text = Page(folder / "sma_crossover.html").text
    numbers = sheets[0].statistics
    returns = numbers["returns"]
    assert "Long when the fast average crosses above the slow one" in text
    assert f"{100 * returns['total_return']:.1f}%" in text
    assert f"95%: {returns['sharpe_low']:.2f} to {returns['sharpe_high']:.2f}" in text
    assert f"{numbers['validity']['dsr']:.3f} with {numbers['validity']['trials']} trials made" in text
    assert "Only five shares." in text
    assert "sessions purged in between 5" in text
    assert "half_spread_bps 2" in text
    assert "periods_per_year 252" in text


def test_tables_hold_drawdowns_folds_and_both_ends_of_the_trades(
    folder: Path, sheets: list[TearSheet]
) -> None:
    page = Page(folder / "daily_breakout.html")
    trades = sheets[1].trades.num_rows
    assert trades > 201
    assert page.rows["drawdowns"] == 5
    assert page.rows["folds"] == 2 + 1  # and their mean
    assert page.rows["trades"] == 201
    assert f"{trades - 200} more" in page.text
    few = Page(folder / "buy_and_hold.html")
    assert few.rows["trades"] == sheets[2].trades.num_rows


def test_a_strategy_that_never_traded_says_so(folder: Path) -> None:
    text = Page(folder / "flat.html").text
    for words in (
        "Equity never fell below an earlier peak.",
        "Equity never moved",
        "The strategy made no trade in this window.",
        "Nothing was traded, so nothing was paid.",
        "A yardstick has nothing to tune.",
    ):
        assert words in text


def test_without_sweep_costs_and_in_sample_the_page_says_why(
    series: dict[str, BarSeries], tmp_path: Path
) -> None:
    sheet = make_sheet("sma_crossover", series, in_sample=None, cost_sensitivity=[], yardsticks={})
    page = Page(write_tear_sheet(sheet, tmp_path))
    assert EVERY_PLOT - set(page.figures) == {"cost-sensitivity", "heat-map", "parallel", "walk-forward"}
    assert "The parameters were given, not searched for" in page.text
    assert "There is no in-sample column" in page.text
    assert "It was not computed for this strategy." in page.text
    assert read_json(tmp_path / "sma_crossover.json")["sweep"] is None


@pytest.mark.parametrize("last", [dt.date(2012, 1, 31), dt.date(2012, 1, 4), dt.date(2012, 1, 3)])
def test_short_windows(series: dict[str, BarSeries], tmp_path: Path, last: dt.date) -> None:
    sheet = make_sheet("buy_and_hold", series, Window(dt.date(2012, 1, 3), last))
    page = Page(write_tear_sheet(sheet, tmp_path))
    for name, figure in page.figures.items():
        check_figure(name, figure)
    assert "rolling" not in page.figures
    if sheet.sessions.size == 20:
        assert {"equity", "monthly", "annual", "distribution", "trades"} <= set(page.figures)
        assert "The window has 19 returns; a rolling value needs more than 126." in page.text
    write_comparison([sheet, make_sheet("flat", series, Window(dt.date(2012, 1, 3), last))], tmp_path)
    read_json(tmp_path / "comparison.json")


def test_ruin_is_drawn_up_to_where_a_logarithm_ends(sheets: list[TearSheet], tmp_path: Path) -> None:
    equity = np.concatenate([np.linspace(1e5, 10, 1900), np.full(sheets[0].sessions.size - 1900, -50.0)])
    numbers = statistics.summary(equity, sheets[0].sessions, sheets[0].trades)
    ruined = dataclasses.replace(sheets[0], equity=equity, statistics=numbers, in_sample=None)
    page = Page(write_tear_sheet(ruined, tmp_path))
    assert count(page.figures["equity"]["data"][0]["y"]) == 1900
    assert "-100.0%" in page.text


def test_text_from_outside_is_escaped(sheets: list[TearSheet], tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"
    first = sheets[0]
    assert first.sweep is not None
    trades = first.trades.set_column(0, "symbol", pa.array([evil] * first.trades.num_rows))
    rejected = pa.table({"symbol": [evil], "session": [dt.date(2012, 1, 3)], "side": ["long"], "shares": [math.nan],
                         "reason": [evil]})  # fmt: skip
    trials = first.sweep.trials.rename_columns(
        {"fast_period": evil}
        | {name: name for name in first.sweep.trials.column_names if name != "fast_period"}
    )
    sheet = dataclasses.replace(
        first,
        strategy="it's & <b>",
        description=evil,
        parameters={evil: evil},
        notes=(evil,),
        trades=trades,
        rejected=rejected,
        bars={evil: first.bars["IBM"]},
        costs={evil: evil},
        account={evil: evil},
        sweep=dataclasses.replace(
            first.sweep,
            names=(evil, "slow_period"),
            heat_map=(evil, "slow_period"),
            trials=trials,
            chosen={evil: evil},
        ),
    )
    page = write_tear_sheet(sheet, tmp_path)
    comparison = write_comparison([sheet, sheets[1]], tmp_path)
    index = write_index(tmp_path)
    for path in (page, comparison, index):
        content = path.read_text()
        assert "<script>alert" not in content
        assert "<img" not in content
        assert "<b>it" not in content
        Page(path)
    figures = Page(page).figures
    assert set(figures) == EVERY_PLOT
    assert not any("<img" in json.dumps(figure) for figure in figures.values())
    assert (tmp_path / "it's & <b>.html").exists()


def test_sheets_that_do_not_fit_together_are_refused(sheets: list[TearSheet], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="equity has shape"):
        dataclasses.replace(sheets[0], equity=sheets[0].equity[1:])
    for name in ("../outside", "", ".hidden", "index", "comparison"):
        with pytest.raises(ValueError, match="strategy ="):
            dataclasses.replace(sheets[0], strategy=name)
    with pytest.raises(ValueError, match="nothing to compare"):
        write_comparison([], tmp_path)
    with pytest.raises(ValueError, match="same name"):
        write_comparison([sheets[0], sheets[0]], tmp_path)


# ------------------------------------------------------------------------------------------------------------- files


def test_json_is_complete_and_without_nan(folder: Path, sheets: list[TearSheet]) -> None:
    first = sheets[0]
    facts = read_json(folder / "sma_crossover.json")
    assert facts["statistics"] == first.statistics
    assert facts["in_sample"] == first.in_sample
    assert facts["parameters"] == first.parameters
    assert facts["costs"] == first.costs
    assert facts["account"] == first.account
    assert facts["notes"] == ["Only five shares."]
    assert facts["conventions"]["periods_per_year"] == 252
    assert facts["sweep"]["chosen"] == first.sweep.chosen  # type: ignore[union-attr]
    assert facts["sweep"]["complete"] == facts["sweep"]["trial_count"] == 90
    assert [fold["test_first"] for fold in facts["sweep"]["walk_forward"]] == ["2009-01-02", "2011-01-03"]
    assert [row["cost_factor"] for row in facts["cost_sensitivity"]] == [0, 0.5, 1, 2, 4]
    assert read_json(folder / "flat.json")["statistics"]["returns"]["sharpe"] is None


def test_files_are_replaced_whole_or_not_at_all(sheets: list[TearSheet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    path = write_tear_sheet(sheets[3], tmp_path)
    before = path.read_text()

    def fail(source: str, target: Path) -> None:
        raise OSError("disk full")

    changed = dataclasses.replace(sheets[3], description="another")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tear_sheet(changed, tmp_path)
    monkeypatch.undo()
    assert path.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flat.html", "flat.json", "plotly.min.js"]
    write_tear_sheet(changed, tmp_path)
    assert "another" in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flat.html", "flat.json", "plotly.min.js"]


def test_the_same_sheet_gives_the_same_bytes(sheets: list[TearSheet], folder: Path, tmp_path: Path) -> None:
    again = write_tear_sheet(sheets[0], tmp_path)
    assert again.read_bytes() == (folder / "sma_crossover.html").read_bytes()


# -------------------------------------------------------------------------------------------------------- comparison


def test_the_comparison_uses_the_sessions_that_all_have(series: dict[str, BarSeries], tmp_path: Path) -> None:
    early = make_sheet("sma_crossover", series, Window(dt.date(2005, 5, 23), dt.date(2010, 12, 31)))
    late = make_sheet("daily_breakout", series, Window(dt.date(2008, 1, 2), dt.date(2013, 3, 1)))
    page = Page(write_comparison([early, late], tmp_path))
    facts = read_json(tmp_path / "comparison.json")
    assert facts["sessions"]["first"] == "2008-01-02"
    assert facts["sessions"]["last"] == "2010-12-31"
    for trace in page.figures["equity"]["data"]:
        assert trace["x"][0] == "2008-01-02"
        assert trace["x"][-1] == "2010-12-31"
        if trace["yaxis"] == "y":
            assert np.frombuffer(base64.b64decode(trace["y"]["bdata"]), "f4")[0] == 1
    inside = (early.sessions >= np.datetime64("2008-01-02")) & (early.sessions <= np.datetime64("2010-12-31"))
    by_name = {line["strategy"]: line for line in facts["strategies"]}
    numbers = by_name["sma_crossover"]["statistics"]
    returns = statistics.period_returns(early.equity[inside])
    assert numbers["returns"]["sharpe"] == pytest.approx(statistics.sharpe_ratio(returns))
    assert numbers["returns"]["total_return"] == pytest.approx(statistics.total_return(early.equity[inside]))
    assert by_name["sma_crossover"]["out_of_sample"]["window"]["first"] == "2005-05-23"
    assert 0 < numbers["trades"]["count"] < early.trades.num_rows
    assert "2008-01-02 to 2010-12-31" in page.text


def test_yardsticks_are_shown_and_never_ranked(folder: Path) -> None:
    facts = read_json(folder / "comparison.json")
    order = [(line["strategy"], line["rank"], line["yardstick"]) for line in facts["strategies"]]
    ranked = [entry for entry in order if not entry[2]]
    assert [rank for _, rank, _ in ranked] == [1, 2]
    sharpe = [line["statistics"]["returns"]["sharpe"] for line in facts["strategies"][:2]]
    assert sharpe == sorted(sharpe, reverse=True)
    assert {name for name, rank, yardstick in order if yardstick and rank is None} == set(YARDSTICKS)
    page = Page(folder / "index.html")
    assert page.rows["comparison"] == 4
    assert set(page.figures) == {"equity", "scatter", "correlation", "sharpe", "ablation"}
    for name, figure in page.figures.items():
        check_figure(name, figure)
    assert facts["correlation"]["names"] == [
        line["strategy"] for line in facts["strategies"] if line["strategy"] != "flat"
    ]
    assert np.allclose(np.diag(facts["correlation"]["values"]), 1)
    assert "Without flat, whose return never changes." in page.text
    assert "Only five shares. (sma_crossover)" in page.text


def test_what_alternative_data_add_is_a_section_with_its_numbers(folder: Path) -> None:
    view = make_ablation()
    page = Page(folder / "index.html")
    assert "What alternative data add" in page.text
    assert "No rung adds anything beyond doubt: of the 12 differences" in page.text
    assert "same 7,939 rows, windows, hyperparameters and 5 seeds; out of sample, 2005-06-07 to" in page.text
    assert "The news are simulated" in page.text
    assert "In 25.0% of the rows the list of competitors is younger than the session" in page.text
    assert "so rungs trade differently often, and what the strategy earns compares that as well" in page.text
    assert "and for networks trained with other seeds on the same rows" in page.text
    assert "321.5" in page.text
    for row in view.rows:
        if row["measure"] == "auc" and row["position"]:
            assert f"{row['step']:+.4f} [{row['step_low']:+.4f}, {row['step_high']:+.4f}]" in page.text
        if row["measure"] == "sharpe":
            assert f"-0.25 [{row['low']:.2f}, {row['high']:.2f}]" in page.text
    facts = read_json(folder / "comparison.json")["sentiment_ablation"]
    assert facts["conclusion"] == view.conclusion
    assert len(facts["rows"]) == len(view.rows) == 28
    assert facts["rows"][0]["first_session"] == "2005-06-07"
    assert facts["rows"][0]["step"] is None
    index = Page(folder.parent / "index.html")
    assert "backtests/index.html#what-alternative-data-add" in index.links
    assert view.conclusion in index.text


def test_without_an_ablation_the_section_says_how_to_get_one(sheets: list[TearSheet], tmp_path: Path) -> None:
    page = Page(write_comparison(sheets, tmp_path / "backtests"))
    assert "The ablation has not run: materialize backtests/sentiment_ablation" in page.text
    assert "ablation" not in page.figures
    assert read_json(tmp_path / "backtests" / "comparison.json")["sentiment_ablation"] is None
    assert "What alternative data add" not in Page(write_index(tmp_path)).text


def test_real_news_are_named_by_their_source_and_undefined_numbers_are_dashes(
    sheets: list[TearSheet], tmp_path: Path
) -> None:
    view = make_ablation("alpha_vantage")
    undefined = dict.fromkeys(("value", "seed_sd", "ensemble", "low", "high", "step_low", "step_high"))
    undefined |= dict.fromkeys(("step", "gain", "gain_low", "gain_high"))
    view = dataclasses.replace(view, rows=[{**row, "hindsight_share": 0.0} for row in view.rows])
    rows = [{**row, **undefined} if row["measure"] in ("auc", "sharpe") else row for row in view.rows]
    page = Page(write_comparison(sheets, tmp_path, dataclasses.replace(view, rows=rows)))
    assert "Source of the news: alpha_vantage." in page.text
    assert "No list of competitors is younger than the session" in page.text
    assert "simulated" not in page.text
    assert "The AUC is undefined: only one class occurs out of sample." in page.text


def test_strategies_without_a_common_session_are_not_compared(
    series: dict[str, BarSeries], tmp_path: Path
) -> None:
    early = make_sheet("sma_crossover", series, Window(dt.date(2006, 1, 3), dt.date(2006, 12, 29)))
    late = make_sheet("daily_breakout", series, Window(dt.date(2008, 1, 2), dt.date(2008, 12, 31)))
    page = Page(write_comparison([early, late], tmp_path))
    assert "have 0 sessions in common" in page.text
    assert set(page.figures) == {"sharpe"}
    assert read_json(tmp_path / "comparison.json")["strategies"] == []


def test_unlike_settings_are_named(sheets: list[TearSheet], tmp_path: Path) -> None:
    dear = dataclasses.replace(sheets[1], costs={**sheets[1].costs, "half_spread_bps": 20.0})
    text = Page(write_comparison([sheets[0], dear], tmp_path)).text
    assert "Not like with like: daily_breakout had other costs than sma_crossover." in text
    assert "Not like with like" not in Page(write_comparison(sheets, tmp_path)).text


# ------------------------------------------------------------------------------------------------------------- index


def test_the_index_lists_what_exists_the_newest_version_first(
    sheets: list[TearSheet], tmp_path: Path
) -> None:
    assert "There is no report yet." in Page(write_index(tmp_path)).text
    (tmp_path / "models").mkdir()
    for name in ("b-v2", "b-v10", "a-v1", "b-v9"):
        (tmp_path / "models" / f"{name}.html").write_text("<p>a model</p>")
    (tmp_path / "execution").mkdir()
    (tmp_path / "execution" / "costs & more.html").write_text("<p>another</p>")
    write_tear_sheet(sheets[0], tmp_path / "backtests")
    (tmp_path / "backtests" / "sma_crossover.json").write_text("[broken")
    page = Page(write_index(tmp_path))
    assert page.links == [
        "backtests/sma_crossover.html",
        "models/a-v1.html",
        "models/b-v10.html",
        "models/b-v9.html",
        "models/b-v2.html",
        "execution/costs%20%26%20more.html",
    ]
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", page.text)


# -------------------------------------------------------------------------------------------- the numbers behind plots


def test_monthly_returns_multiply_up_to_the_years() -> None:
    sessions = np.array(
        ["2011-11-30", "2011-12-15", "2011-12-30", "2012-01-03", "2012-03-01"], "datetime64[D]"
    )
    years, months, totals = monthly_returns(sessions, np.array([100.0, 90.0, 110.0, 121.0, 60.5]))
    assert years == [2011, 2012]
    assert months[0, 10] == 0  # from the first session on
    assert months[0, 11] == pytest.approx(0.1)
    assert months[1, 0] == pytest.approx(0.1)
    assert math.isnan(months[1, 1])
    assert months[1, 2] == pytest.approx(-0.5)
    assert totals == pytest.approx([0.1, 60.5 / 110 - 1])


def test_exits_after_a_split_stand_at_the_quoted_price(series: dict[str, BarSeries]) -> None:
    # Apple split 2:1 on 2005-02-28; held through it by whoever bought before.
    window = Window(dt.date(2005, 1, 3), dt.date(2005, 6, 30))
    apple = {"AAPL": series["AAPL"]}
    held = make_sheet("buy_and_hold", apple, window)
    trade = held.trades.to_pylist()[0]
    assert trade["split_factor"] == 2
    last = series["AAPL"].close[series["AAPL"].position(window.last)]
    assert quoted_exit(held.trades)[0] == pytest.approx(last)
    assert trade["exit_price"] == pytest.approx(2 * last)


def test_the_heat_map_keeps_the_best_of_a_cell_and_skips_failures() -> None:
    sweep = SweepView(
        objective="sharpe",
        names=("a", "b", "c"),
        trials=pa.table(
            {
                "a": [1, 1, 2, 2, 1],
                "b": ["x", "x", "x", "y", "y"],
                "c": [0.1, 0.2, 0.1, 0.1, 0.1],
                "sharpe": [0.5, 0.9, -1.0, 3.0, None],
                "state": ["complete", "complete", "complete", "failed", "complete"],
            }
        ),
        heat_map=("a", "b"),
        chosen={"a": 1, "b": "x", "c": 0.2},
    )
    assert completed(sweep)["sharpe"].to_pylist() == [0.9, 0.5, -1.0]
    grid = heat_map_of(sweep)
    assert grid.x == [1, 2]
    assert grid.y == ["x"]
    assert grid.z.tolist() == [[0.9, -1.0]]
    assert grid.chosen == (0, 0)


@pytest.mark.parametrize("names", [(), ("fast_period",), ("fast_period", "slow_period")])
def test_a_random_search_is_drawn_as_points(
    sheets: list[TearSheet], tmp_path: Path, names: tuple[str, ...]
) -> None:
    sweep = sheets[0].sweep
    assert sweep is not None
    rows = list(range(0, 90, 9))
    some = sweep.trials.take(rows)
    some = some.set_column(0, "fast_period", pa.array(np.linspace(5, 50, 10)))
    some = some.set_column(1, "slow_period", pa.array(np.linspace(60, 200, 10)))
    view = dataclasses.replace(
        sweep, trials=some, heat_map=names, chosen={"fast_period": 5.0, "slow_period": 60.0}, walk_forward=()
    )
    page = Page(write_tear_sheet(dataclasses.replace(sheets[0], sweep=view), tmp_path))
    assert "No walk-forward was run with this sweep." in page.text
    assert ("heat-map" in page.figures) == bool(names)
    if names:
        assert {trace["type"] for trace in page.figures["heat-map"]["data"]} == {"scatter"}
        assert [trace["name"] for trace in page.figures["heat-map"]["data"] if "name" in trace][
            -1
        ] == "chosen"
        check_figure("heat-map", page.figures["heat-map"])
    else:
        assert "names no parameter" in page.text
    if len(names) == 2:
        assert render(plots.heat_map_figure(view)).startswith("data:image/png")


def test_a_backtest_with_other_parameters_than_the_sweep_chose_says_so(
    sheets: list[TearSheet], folder: Path, tmp_path: Path
) -> None:
    assert "did not use what the sweep chose" not in Page(folder / "sma_crossover.html").text
    other = dataclasses.replace(sheets[0], parameters={**sheets[0].parameters, "fast_period": 17})
    text = Page(write_tear_sheet(other, tmp_path)).text
    assert "did not use what the sweep chose; it ran with fast_period = 17 ." in text


def test_a_sweep_in_which_everything_failed(sheets: list[TearSheet], tmp_path: Path) -> None:
    sweep = sheets[0].sweep
    assert sweep is not None
    failed = sweep.trials.drop_columns(["state"]).append_column("state", pa.array(["failed"] * 90))
    view = dataclasses.replace(sweep, trials=failed, sharpe_variance=None, pbo=None)
    page = Page(write_tear_sheet(dataclasses.replace(sheets[0], sweep=view), tmp_path))
    assert "90, of which 0 complete" in page.text
    assert "No trial ended with a number." in page.text
    assert render(plots.heat_map_figure(view))
    assert render(plots.parallel_figure(view))


# ------------------------------------------------------------------------------------------ pictures of the Dagster UI


def test_figures_for_the_dagster_ui_draw(sheets: list[TearSheet]) -> None:
    for sheet in (sheets[0], sheets[3]):
        figures = [
            plots.equity_figure(sheet.sessions, {sheet.strategy: sheet.equity, **sheet.yardsticks}),
            plots.monthly_figure(sheet.sessions, sheet.equity),
            plots.trades_figure(sheet.bars["AAPL"], sheet.trades, "AAPL"),
            plots.cost_figure(sheet.cost_sensitivity),
        ]
        if sheet.sweep:
            figures += [plots.heat_map_figure(sheet.sweep), plots.parallel_figure(sheet.sweep)]
        for figure in figures:
            assert 5_000 < len(render(figure)) < 150_000
    comparison = plots.comparison_figure(sheets)
    labels = [line.get_label() for line in comparison.axes[0].get_lines()]
    assert labels == ["sma_crossover", "daily_breakout", "buy_and_hold", "flat"]
    assert comparison.axes[0].get_lines()[0].get_ydata()[0] == 1


def test_figures_of_a_short_window_and_of_nothing(
    series: dict[str, BarSeries], sheets: list[TearSheet]
) -> None:
    window = Window(dt.date(2012, 1, 3), dt.date(2012, 1, 4))
    sheet = make_sheet("flat", series, window)
    assert render(plots.equity_figure(sheet.sessions, {"flat": sheet.equity}))
    assert render(plots.monthly_figure(sheet.sessions, sheet.equity))
    late = make_sheet("buy_and_hold", series, Window(dt.date(2004, 1, 2), dt.date(2004, 12, 31)))
    assert render(plots.comparison_figure([sheet, late]))
    with pytest.raises(ValueError, match="needs two parameters"):
        plots.heat_map_figure(dataclasses.replace(sheets[0].sweep, heat_map=()))  # type: ignore[type-var]


def test_heat_map_cells_keep_their_sign() -> None:
    sweep = SweepView(
        objective="sharpe",
        names=("a", "b"),
        trials=pa.table({"a": [1, 2], "b": [1, 1], "sharpe": [-0.04, -0.001], "state": ["complete"] * 2}),
        heat_map=("a", "b"),
        chosen={"a": 2, "b": 1},
    )
    texts = [text.get_text() for text in plots.heat_map_figure(sweep).axes[0].texts]
    assert texts == ["-0.04", "0.00"]


# ------------------------------------------------------------------------------------------------------- the browser


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (CI installs Debian's)")
def test_a_browser_draws_every_plot_without_an_error(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
            tab = context.new_page()
            problems: list[str] = []
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
            for name, number in (("index", 5), ("daily_breakout", len(EVERY_PLOT))):
                tab.goto((folder / f"{name}.html").as_uri())
                drawn = (
                    f"document.querySelectorAll('.js-plotly-plot .main-svg:first-child').length >= {number}"
                )
                tab.wait_for_function(drawn, timeout=60_000)
                assert tab.locator(".js-plotly-plot:has(.main-svg)").count() == number
                # Nothing is cut off at the right.
                assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
            trades = tab.locator("#plot-trades")
            trades.locator(".updatemenu-header").click(timeout=30_000)
            trades.locator(".updatemenu-dropdown-button").nth(1).click()
            shown = (
                "document.querySelector('#plot-trades').data.filter(t => t.visible === true).map(t => t.name)"
            )
            names = tab.evaluate(shown)
            assert len(names) > 1
            assert len([name for name in names if name.endswith(" close")]) == 1
            assert problems == []
        finally:
            browser.close()
