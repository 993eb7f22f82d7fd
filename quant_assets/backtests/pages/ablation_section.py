"""The section "What alternative data add" of the comparison, and the same numbers for programs. Pure.

Belongs here: how an ablation is shown. Does not belong here: what its intervals allow to say (`quant_assets/backtests/ablation.py`)
and the figure (`comparison_figures.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quant_assets.backtests.pages.comparison_figures import ablation_plot
from quant_assets.backtests.pages.page import MISSING, Html, paragraph, plot, section, show, table
from quant_assets.backtests.pages.sheet import AblationView

TITLE = "What alternative data add"
NONE = "The ablation has not run: materialize backtests/sentiment_ablation (backtest_job), then backtests/report."
# Measure -> title of its table, format of its numbers, whether rows have sides.
MEASURES = {
    "auc": ("AUC", ".4f"),
    "brier_gain": ("Brier score better than the base rate's by", ".5f"),
    "sharpe": ("Annual Sharpe ratio, net of costs", ".2f"),
    "total_return": ("Total return, net of costs", ".1%"),
    "trades": ("Number of trades", ".1f"),
}
READING = (
    "Brackets: 95 % intervals from resampled blocks of sessions, paired for differences. Of the AUC and the Brier score they are "
    "those of the networks that were trained, mean over the seeds; of what was earned, those of one strategy on the seeds' mean "
    "probability, whose own number stands under ensemble, and differences are between ensembles. The sentence above reads wider "
    "intervals, which hold for all differences together, and for networks trained with other seeds on the same rows."
)
FIXED = (
    "The strategy enters above the break-even probability of its bracket on every rung. Probabilities of one rung spread wider than "
    "those of another, so rungs trade differently often, and what the strategy earns compares that as well as the inputs."
)


def ablation_section(view: AblationView | None) -> Html:
    """The section; without an ablation, a sentence that says how to get one."""
    if view is None:
        return section(TITLE, paragraph(NONE))
    parts = [paragraph(view.conclusion), paragraph(view.notes, "quiet"), plot(ablation_plot(view.rows))]
    for measure, (title, form) in MEASURES.items():
        if rows := [row for row in view.rows if row["measure"] == measure]:
            parts += [Html(f"<h3>{title}</h3>"), _table(rows, form)]
    return section(TITLE, *parts, paragraph(READING, "quiet"), paragraph(FIXED, "quiet"))


def ablation_facts(view: AblationView | None) -> dict[str, Any] | None:
    """What comparison.json holds of it."""
    if view is None:
        return None
    return {"conclusion": view.conclusion, "notes": view.notes, "rows": list(view.rows)}


def _table(rows: Sequence[Mapping[str, Any]], form: str) -> Html:
    """Levels and differences of one measure."""

    def number(row: Mapping[str, Any], name: str, sign: str = "") -> str:
        return MISSING if row[name] is None else Html(f"{row[name]:{sign}{form}}")

    def bracketed(row: Mapping[str, Any], prefix: str, sign: str = "") -> str:
        low, high = number(row, f"{prefix}low", sign), number(row, f"{prefix}high", sign)
        return "" if MISSING in (low, high) else f" [{low}, {high}]"

    lines = []
    for row in rows:
        level = number(row, "value")
        strategy = row["side"] == "both"
        ensemble = number(row, "ensemble") + (bracketed(row, "") if strategy else "")
        lines.append(
            (
                row["rung"],
                row["side"],
                show(row["inputs"]),
                Html(level + ("" if strategy else bracketed(row, ""))),
                number(row, "seed_sd"),
                Html(ensemble),
                Html(number(row, "step", "+") + bracketed(row, "step_", "+")),
                Html(number(row, "gain", "+") + bracketed(row, "gain_", "+")),
            )
        )
    header = (
        "Rung", "Side", "Inputs", "Mean over seeds", "SD over seeds", "Ensemble", "Less the rung before", "Less technical",
    )  # fmt: skip
    return Html(f"<div class=wide>{table(header, lines, 2)}</div>")
