"""The page that compares all strategies, and the same numbers for programs. Pure.

Belongs here: the content of `index.html` beside the tear sheets and of `comparison.json`. Does not belong here: cutting to
common sessions (`common_sessions.py`), the figures (`comparison_figures.py`), one strategy alone (`tear_sheet.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quant_assets.backtests.pages.ablation_section import ablation_facts, ablation_section
from quant_assets.backtests.pages.common_sessions import Common, correlations, on_common_sessions
from quant_assets.backtests.pages.comparison_figures import (
    correlation_plot,
    growth_plot,
    scatter_plot,
    sharpe_plot,
)
from quant_assets.backtests.pages.glossary import COMPARED, DEFINITIONS, statistic
from quant_assets.backtests.pages.page import (
    MISSING,
    Html,
    absent,
    banner,
    columns,
    join,
    link,
    page,
    paragraph,
    plot,
    section,
    show,
    table,
    term,
    text,
    write_json,
    write_plotly,
    write_whole,
)
from quant_assets.backtests.pages.sheet import AblationView, TearSheet


def write_comparison(sheets: Sequence[TearSheet], folder: Path, ablation: AblationView | None = None) -> Path:
    """Write `<folder>/index.html` and `<folder>/comparison.json`; the path of the page.

    Everything is compared on the sessions that all sheets have, under the conventions of the first. A tear sheet is linked
    if its page exists, so write those first; the page above it, `write_index` makes.

    Args:
        sheets: of all strategies.
        folder: is made.
        ablation: what alternative data add; None where that was not measured yet, and the page says so.

    Raises:
        ValueError: no sheet, or two of one name.
    """
    if not sheets:
        raise ValueError("there is nothing to compare")
    names = [sheet.strategy for sheet in sheets]
    if len(set(names)) != len(names):
        raise ValueError(f"two sheets have the same name: {', '.join(names)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_plotly(folder)
    common = on_common_sessions(sheets)
    write_json(folder / "comparison.json", _facts(sheets, common, ablation))
    return write_whole(folder / "index.html", _page(sheets, common, ablation, folder))


def _facts(sheets: Sequence[TearSheet], common: Common, ablation: AblationView | None) -> dict[str, Any]:
    """What comparison.json holds."""
    names, values = correlations(common)
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
        "correlation": {"names": names, "values": values},
        "sentiment_ablation": ablation_facts(ablation),
    }


def _page(sheets: Sequence[TearSheet], common: Common, ablation: AblationView | None, folder: Path) -> str:
    head = "<nav><a href=../index.html>&larr; all reports</a></nav><header><h1>Strategies compared</h1>"
    notes = banner([*_unlike(sheets), *_notes(sheets)])
    belief = section(
        "In sample and out of sample",
        plot(sharpe_plot([sheet for sheet in sheets if not sheet.is_yardstick] or list(sheets))),
        _belief_table(sheets),
    )
    entries = (
        f"<li>{_sheet_link(s.strategy, folder)}{' (yardstick)' if s.is_yardstick else ''}: {text(s.description)}</li>"
        for s in sheets
    )
    facts = Html("The same numbers for programs: <a href=comparison.json>comparison.json</a>.")
    pages = section("Tear sheets", f"<ul>{''.join(entries)}</ul>", paragraph(facts, "quiet"))
    if not common.lines:
        spans = "; ".join(f"{s.strategy} {s.sessions[0]} to {s.sessions[-1]}" for s in sheets)
        why = f"The strategies have {common.sessions.size} sessions in common ({spans}), too few to compare them."
        parts = [head, "</header>", notes, absent("Comparison", why)]
    else:
        span = (
            f"On the {common.sessions.size:,} sessions that all of them have, {common.sessions[0]} to {common.sessions[-1]}, out "
            "of sample, net of costs. Ranked by Sharpe ratio; yardsticks are there to be beaten and have no rank. Trades that "
            "began before or ended after are left out of the counts."
        )
        likeness = columns(plot(scatter_plot(common)), plot(correlation_plot(common)))
        parts = [
            head,
            paragraph(span, "quiet"),
            "</header>",
            notes,
            _table(common, folder),
            section("Performance", plot(growth_plot(common))),
            section("Risk and likeness", likeness),
        ]
    return page("Strategies compared", join(*parts, belief, ablation_section(ablation), pages))


def _notes(sheets: Sequence[TearSheet]) -> list[str]:
    """Each note once, with the strategies that it is about unless it is about all."""
    ranked = [sheet for sheet in sheets if not sheet.is_yardstick]
    by_note = {
        note: [other.strategy for other in ranked if note in other.notes]
        for sheet in sheets
        for note in sheet.notes
    }
    return [
        f"{note} ({', '.join(names)})" if names and len(names) < len(ranked) else note
        for note, names in by_note.items()
    ]


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


def _table(common: Common, folder: Path) -> Html:
    """Statistics of all lines on the common sessions."""
    header = ["Rank", "Strategy", *(term(label, DEFINITIONS[key]) for key, label, _ in COMPARED)]
    rows = []
    for rank, line in enumerate(common.lines, 1):
        numbers = [
            MISSING
            if line.sheet is None and key.startswith("trades.")
            else show(statistic(line.summary, key), form)
            for key, _, form in COMPARED
        ]
        rows.append(["yardstick" if line.yardstick else rank, _sheet_link(line.name, folder), *numbers])
    lines = table(header, rows, 2, "comparison").replace(
        "<tr><td>yardstick", "<tr class=yardstick><td>yardstick"
    )
    return Html(f"<div class=wide>{lines}</div>")


def _sheet_link(name: str, folder: Path) -> str:
    """The name, linked to its tear sheet if there is one."""
    return link(f"{name}.html", name) if (folder / f"{name}.html").exists() else text(name)


def _belief_table(sheets: Sequence[TearSheet]) -> Html:
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
                show(validity["psr"], "probability"),
                f"{validity['trials']:,.6g}",
                show(validity["sr0"], "ratio"),
                show(validity["dsr"], "probability"),
                show(sheet.sweep.pbo if sheet.sweep else None, "probability"),
            )
        )
    header = (
        "Strategy", "Out of sample", "Sharpe in sample", "Sharpe out of sample",
        term("PSR", DEFINITIONS["validity.psr"]), "Trials", term("Sharpe of luck", DEFINITIONS["validity.sr0"]),
        term("DSR", DEFINITIONS["validity.dsr"]), term("PBO", "Probability of backtest overfitting."),
    )  # fmt: skip
    return Html(f"<div class=wide>{table(header, rows, 2, 'belief')}</div>")
