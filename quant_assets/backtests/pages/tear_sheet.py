"""The tear sheet: the page about one strategy, and the same numbers for programs. Pure.

Belongs here: the content of `<strategy>.html` and `<strategy>.json`, section by section. Does not belong here: the figures
(`performance_figures.py`, `trade_figures.py`, `sweep_figures.py`), the words of the statistics (`glossary.py`), pieces that other
pages share (`page.py`), more than one strategy (`comparison.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from quant_assets.backtests import statistics
from quant_assets.backtests.pages.glossary import (
    DEFINITIONS,
    OF_THE_CHOICE,
    REJECTIONS,
    STATISTIC_GROUPS,
    statistic,
    undefined,
)
from quant_assets.backtests.pages.page import (
    Html,
    absent,
    anchor,
    assignments,
    banner,
    columns,
    join,
    link,
    page,
    pairs,
    paragraph,
    plot,
    section,
    show,
    table,
    term,
    text,
    tiles,
    titled,
    write_json,
    write_plotly,
    write_whole,
)
from quant_assets.backtests.pages.performance_figures import (
    annual_plot,
    distribution_plot,
    equity_plot,
    exposure_plot,
    monthly_plot,
    rolling_plot,
)
from quant_assets.backtests.pages.sheet import SweepView, TearSheet, completed
from quant_assets.backtests.pages.sweep_figures import heat_map_plot, parallel_plot, walk_forward_plot
from quant_assets.backtests.pages.trade_figures import (
    cost_breakdown_plot,
    cost_sensitivity_plot,
    excursion_plot,
    pnl_plot,
    price_plot,
)

MOST_TRADES = 100  # of the table, at each end


def write_tear_sheet(sheet: TearSheet, folder: Path) -> Path:
    """Write `<folder>/<strategy>.html` and `<folder>/<strategy>.json`; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_plotly(folder)
    write_json(folder / f"{sheet.strategy}.json", _facts(sheet))
    return write_whole(folder / f"{sheet.strategy}.html", _page(sheet))


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


def _page(sheet: TearSheet) -> str:
    sections = {
        "Performance": _performance(sheet),
        "Statistics": _statistics(sheet),
        "Trades": _trades(sheet),
        "Costs": _costs(sheet),
        "Parameter sweep": _sweep(sheet),
        "Assumptions": _assumptions(sheet),
    }
    body = [section(title, *parts) for title, parts in sections.items()]
    return page(f"{sheet.strategy}: tear sheet", join(_header(sheet, sections), *body))


def _header(sheet: TearSheet, sections: Iterable[str]) -> Html:
    links = "".join(f"<a href='#{anchor(title)}'>{text(title)}</a>" for title in sections)
    kind = "A yardstick, not a strategy. " if sheet.is_yardstick else ""
    symbols = sorted(sheet.bars)
    window = (
        f"Out of sample, {_span(sheet.statistics)} ({sheet.statistics['window']['sessions']:,} sessions), "
        f"{len(symbols)} symbol{'s' if len(symbols) != 1 else ''}: {', '.join(symbols[:12])}"
        f"{' and more' if len(symbols) > 12 else ''}."
    )
    return join(
        f"<nav><a href=index.html>&larr; all strategies</a>{links}</nav>",
        f"<header><h1>{text(sheet.strategy)}</h1>",
        paragraph(kind + sheet.description),
        paragraph(window, "quiet"),
        paragraph(assignments(sheet.parameters)),
        banner(sheet.notes),
        _key_numbers(sheet),
        "</header>",
    )


def _span(summary: Mapping[str, Any]) -> str:
    """First and last session of a summary."""
    return f"{summary['window']['first']} to {summary['window']['last']}"


def _key_numbers(sheet: TearSheet) -> Html:
    numbers = sheet.statistics
    returns, trades, validity = numbers["returns"], numbers["trades"], numbers["validity"]
    benchmark = numbers.get("benchmark") or {}
    held = f"holding: {show(benchmark['total_return'], 'percent')}" if benchmark else "&nbsp;"
    interval = "no interval"
    if returns["sharpe_low"] is not None:
        interval = f"95%: {returns['sharpe_low']:.2f} to {returns['sharpe_high']:.2f}"
    tried = validity["trials"]
    return tiles(
        [
            (show(returns["total_return"], "percent"), "Total return", held),
            (show(returns["cagr"], "percent"), term("CAGR", DEFINITIONS["returns.cagr"]), f"volatility {show(returns['volatility'], 'percent')}"),
            (show(returns["sharpe"], "ratio"), term("Sharpe ratio", DEFINITIONS["returns.sharpe"]), interval),
            (show(numbers["drawdown"]["maximum"], "percent"), "Max drawdown", f"longest {numbers['drawdown']['longest_sessions']:,} sessions"),
            (show(trades["sqn"], "ratio"), term("SQN", DEFINITIONS["trades.sqn"]), f"profit factor {show(trades['profit_factor'], 'ratio')}"),
            (show(trades["count"], "whole"), "Trades", f"win rate {show(trades['win_rate'], 'percent')}"),
            (show(validity["dsr"], "probability"), term("Deflated Sharpe", DEFINITIONS["validity.dsr"]),
             f"with {tried:,.6g} trials made" if tried > 1 else "one trial made"),
        ]
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- performance


def _performance(sheet: TearSheet) -> list[str]:
    if sheet.sessions.size < 2:
        return [absent("Equity", "One session has no return; there is nothing to draw.")]
    equity = [plot(equity_plot(sheet)), _drawdown_table(sheet)]
    if not np.ptp(sheet.equity) > 0:
        why = "Equity never moved: every return is 0, so there is no distribution, no volatility and no exposure to show."
        return [*equity, absent("Returns and exposure", why)]
    small = (annual_plot, distribution_plot, rolling_plot, exposure_plot)
    return [*equity, plot(monthly_plot(sheet)), columns(*(plot(draw(sheet)) for draw in small))]


def _drawdown_table(sheet: TearSheet) -> Html:
    falls = statistics.drawdowns(sheet.equity, sheet.sessions, top=5)
    if not falls:
        return absent("Deepest drawdowns", "Equity never fell below an earlier peak.")
    header = ("", "Depth", "Peak", "Valley", "Recovered", "Sessions down", "Sessions in all")
    rows = [
        (
            i,
            show(f.depth, "percent"),
            f.start,
            f.valley,
            f.end or "not yet",
            f.sessions_down,
            f.sessions_total,
        )
        for i, f in enumerate(falls, 1)
    ]
    return titled("Deepest drawdowns", table(header, rows, name="drawdowns"))


# --------------------------------------------------------------------------------------------------------- statistics


def _statistics(sheet: TearSheet) -> list[str]:
    inside = sheet.in_sample
    # An in-sample summary that does not know of the trials has nothing to say about the choice among them.
    unaware = (
        inside is not None and statistic(inside, "validity.trials") != sheet.statistics["validity"]["trials"]
    )
    tables, definitions, lacking = [], [], []
    for group, lines in STATISTIC_GROUPS.items():
        if group.startswith("Against") and not sheet.statistics.get("benchmark"):
            continue
        rows = []
        for key, label, form, definition in lines:
            values = [statistic(sheet.statistics, key)] + ([statistic(inside, key)] if inside else [])
            if unaware and key in OF_THE_CHOICE:
                values[1] = None
            if values == [None] * len(values):
                lacking.append(label)
                continue
            rows.append([term(label, definition), *(show(value, form) for value in values)])
            definitions.append(f"<dt>{text(label)}</dt><dd>{text(definition)}</dd>")
        if rows:
            tables.append(table([group, "Out of sample"] + (["In sample"] if inside else []), rows))
    spans = f"Out of sample: {_span(sheet.statistics)}, {sheet.statistics['window']['sessions']:,} sessions."
    if inside:
        spans += f" In sample: {_span(inside)}, {inside['window']['sessions']:,} sessions."
    else:
        spans += " There is no in-sample column: the strategy's model was trained on those sessions, or they were not run."
    missing = f"Not defined here, for want of data or of variation: {', '.join(lacking)}."
    return [
        paragraph(f"{spans} Point at a name for its definition.", "quiet"),
        f"<div class=statistics>{columns(*_balance(tables))}</div>",
        paragraph(missing, "quiet") if lacking else "",
        f"<details><summary>All definitions</summary><dl>{''.join(definitions)}</dl></details>",
    ]


def _balance(tables: Sequence[str]) -> tuple[str, str]:
    """Tables in two columns of about equal height, in order within each."""
    sides: tuple[list[str], list[str]] = ([], [])
    lengths = [0, 0]
    for part in tables:
        side = 0 if lengths[0] <= lengths[1] else 1
        sides[side].append(part)
        lengths[side] += part.count("<tr>") + 1
    return f"<div>{join(*sides[0])}</div>", f"<div>{join(*sides[1])}</div>"


# ------------------------------------------------------------------------------------------------------------- trades


def _trades(sheet: TearSheet) -> list[str]:
    rejected = _rejected_table(sheet.rejected)
    if not sheet.trades.num_rows:
        why = "The strategy made no trade in this window."
        if sheet.rejected.num_rows:
            why = f"No order was filled; {sheet.rejected.num_rows:,} were rejected (below)."
        return [absent("Trades", why), rejected]
    results = columns(plot(pnl_plot(sheet)), plot(excursion_plot(sheet)))
    return [plot(price_plot(sheet)), results, _trades_table(sheet.trades), rejected]


def _trades_table(trades: pa.Table) -> Html:
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
            Html(f"<span class={tone}>{show(trade['pnl'], 'dollars')}</span>"),
            show(trade["trade_return"], "percent"),
            show(sum(trade[name] for name in statistics.COSTS), "dollars"),
            trade["bars_held"],
            show(trade["mae"], "percent"),
            show(trade["mfe"], "percent"),
        )

    count = trades.num_rows
    rows: list[Sequence[object]] = [
        line(trade) for trade in trades.slice(0, min(count, MOST_TRADES)).to_pylist()
    ]
    if count > 2 * MOST_TRADES:
        rows.append((Html("&hellip;"), f"{count - 2 * MOST_TRADES:,} more", *[""] * 12))
    rows += [line(trade) for trade in trades.slice(max(MOST_TRADES, count - MOST_TRADES)).to_pylist()]
    note = "In order of their exit; reason open: still held at the end. Prices are dollars per share of the entry's session."
    lines = f"<div class=tall>{table(header, rows, 5, 'trades')}</div>"
    return titled(f"{count:,} trade{'s' if count != 1 else ''}", lines, "wide", note)


def _rejected_table(rejected: pa.Table) -> Html:
    if not rejected.num_rows:
        return absent("Rejected orders", "None: no order was rejected or cut.")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rejected.to_pylist():
        groups.setdefault(row["reason"], []).append(row)
    rows = [
        (
            reason,
            REJECTIONS.get(reason, ""),
            ", ".join(sorted({row["symbol"] for row in part})),
            show(len(part), "whole"),
            show(sum(row["shares"] or 0.0 for row in part if not undefined(row["shares"])), "whole"),
            min(row["session"] for row in part),
            max(row["session"] for row in part),
        )
        for reason, part in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    header = ("Reason", "", "Symbols", "Orders", "Shares not filled", "First", "Last")
    return titled("Rejected orders, or parts of them", table(header, rows, 3, "rejected"))


# -------------------------------------------------------------------------------------------------------------- costs


def _costs(sheet: TearSheet) -> list[str]:
    if not sheet.trades.num_rows:
        return [absent("Costs", "Nothing was traded, so nothing was paid.")]
    return [columns(plot(cost_sensitivity_plot(sheet)), plot(cost_breakdown_plot(sheet)))]


# ---------------------------------------------------------------------------------------------------- parameter sweep


def _sweep(sheet: TearSheet) -> list[str]:
    sweep = sheet.sweep
    if sweep is None:
        why = (
            "The parameters were given, not searched for: no sweep of this strategy belongs to this backtest."
        )
        return [absent("Sweep", "A yardstick has nothing to tune." if sheet.is_yardstick else why)]
    other = {
        name: sheet.parameters[name]
        for name, value in sweep.chosen.items()
        if name in sheet.parameters and sheet.parameters[name] != value
    }
    warning = Html(f"This backtest did not use what the sweep chose; it ran with {assignments(other)}.")
    return [
        banner([warning] if other else []),
        table(("Sweep", ""), _sweep_facts(sweep), 2),
        plot(heat_map_plot(sweep)),
        plot(parallel_plot(sweep)),
        plot(walk_forward_plot(sheet, sweep)),
        *([_folds_table(sweep)] if sweep.walk_forward else []),
    ]


def _sweep_facts(sweep: SweepView) -> list[tuple[str, str]]:
    """What was searched and how far its choice can be believed, as lines of a table."""
    variance = sweep.sharpe_variance
    overfitting = (
        "Share of splits of the sessions in which the best trial of one half is below the median of the other half "
        "(Bailey et al. 2017). Above 0.5 the choice is worse than a coin."
    )
    spread = "Standard deviation of their annual Sharpe ratios."
    return [
        ("Objective", sweep.objective),
        ("Trials", f"{sweep.trials.num_rows:,}, of which {completed(sweep).num_rows:,} complete"),
        ("Chosen", assignments(sweep.chosen)),
        ("Trials counted by the deflated Sharpe ratio", f"{sweep.trial_count:,}"),
        (
            term("Spread of the trials' Sharpe ratios", spread),
            show(None if variance is None else math.sqrt(max(variance, 0.0)), "ratio"),
        ),
        (term("Probability of backtest overfitting", overfitting), show(sweep.pbo, "probability")),
    ]


def _folds_table(sweep: SweepView) -> Html:
    shown = (("in_sample", "ratio"), ("out_of_sample", "ratio"), ("total_return", "percent"))
    rows: list[Sequence[object]] = [
        (
            i,
            f"{fold['train_first']} to {fold['train_last']}",
            f"{fold['test_first']} to {fold.get('test_last') or fold['session']}",
            assignments(fold["parameters"]),
            *(show(fold.get(key), form) for key, form in shown),
        )
        for i, fold in enumerate(sweep.walk_forward, 1)
    ]
    means = []
    for key, form in shown:
        values = [fold[key] for fold in sweep.walk_forward if not undefined(fold.get(key))]
        means.append(show(math.fsum(values) / len(values) if values else None, form))
    rows.append(("", "mean", "", "", *means))
    objective = sweep.objective
    header = ("Fold", "Chosen on", "Traded on", "Parameters", f"{objective} in training", f"{objective} in test",
              "Return in test")  # fmt: skip
    return titled("Folds", table(header, rows, 4, "folds"), "wide")


# -------------------------------------------------------------------------------------------------------- assumptions


def _assumptions(sheet: TearSheet) -> list[str]:
    validity = sheet.statistics["validity"]
    windows = {
        **({"in sample": _span(sheet.in_sample)} if sheet.in_sample else {}),
        "out of sample": _span(sheet.statistics),
        "sessions purged in between": validity["purge_sessions"],
        "sessions embargoed": validity["embargo_sessions"],
    }
    timing = (
        "Decided at a close with what was known then, traded at the next open at quoted prices; stop and target work inside "
        "the bar, and the stop counts when both are touched. Each symbol has an account of its own with an equal share of the cash. "
        "A position that is open at the end is marked at the last close."
    )
    facts = link(f"{sheet.strategy}.json", f"{sheet.strategy}.json")
    return [
        paragraph(timing),
        "<div class=columns><div>",
        pairs("Costs", sheet.costs),
        pairs("Account", sheet.account),
        "</div><div>",
        pairs("Windows", windows),
        pairs("Conventions", sheet.statistics["conventions"]),
        pairs("Parameters", sheet.parameters),
        "</div></div>",
        paragraph(Html(f"The same numbers for programs: {facts}."), "quiet"),
    ]
