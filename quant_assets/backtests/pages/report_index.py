"""The page above all reports. Pure.

Belongs here: finding the pages below a folder and listing them. Does not belong here: the pages themselves (`tear_sheet.py`,
`comparison.py`, `agent_page.py`, the reports of the models).
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

from quant_assets.backtests.pages.ablation_section import TITLE as ABLATION_TITLE
from quant_assets.backtests.pages.glossary import statistic
from quant_assets.backtests.pages.page import (
    MISSING,
    Html,
    anchor,
    join,
    link,
    page,
    paragraph,
    section,
    show,
    table,
    text,
    write_whole,
)
from quant_assets.strategies import YARDSTICKS


def write_index(reports_dir: Path) -> Path:
    """Write `<reports_dir>/index.html`, which links every report below it: backtests, agents, then models, the newest first."""
    reports_dir.mkdir(parents=True, exist_ok=True)
    found = sorted(path for path in reports_dir.rglob("*.html") if not path.name.startswith("."))
    index = reports_dir / "index.html"
    backtests = [path for path in found if path.parent == reports_dir / "backtests"]
    agents = {path: facts for path in backtests if (facts := _read(path.with_suffix(".json"), "agent"))}
    backtests = [path for path in backtests if path not in agents]
    models = [path for path in found if path.parent == reports_dir / "models"]
    known = {*backtests, *agents, *models, index}
    others = [path for path in found if path not in known]

    def entry(path: Path, label: str) -> Html:
        return link(path.relative_to(reports_dir).as_posix(), label)

    sections = []
    if backtests:
        order = sorted(
            backtests, key=lambda path: (path.name != "index.html", path.stem in YARDSTICKS, path.name)
        )
        lines = [
            (
                entry(path, "Comparison of all strategies" if path.name == "index.html" else path.stem),
                *_key_numbers(path),
            )
            for path in order
        ]
        header = ("Page", "Out of sample", "Written", "Total return", "Sharpe", "Max drawdown")
        add = _read(reports_dir / "backtests" / "comparison.json", "sentiment_ablation").get("conclusion")
        said = [paragraph(Html(f"{_ablation_link()}: {text(add)}"))] if add else []
        sections.append(section("Backtests", table(header, lines, 3), *said))
    if agents:
        rows = [
            (
                entry(path, path.stem),
                *(facts.get(key, "") for key in ("model", "window", "paths")),
                _written(path),
                facts["verdict"],
            )
            for path, facts in sorted(agents.items())
        ]
        header = ("Page", "Model", "Window", "Paths or sessions", "Written", "Against the best baseline")
        sections.append(section("Agents", table(header, rows, 6)))
    if models:
        order = sorted(models, key=lambda path: (_version(path)[0], -_version(path)[1]))
        rows = [
            (entry(path, _version(path)[0]), _version(path)[1] or MISSING, _written(path)) for path in order
        ]
        sections.append(section("Models", table(("Report", "Version", "Written"), rows, 3)))
    if others:
        named = [(entry(path, str(path.relative_to(reports_dir))), _written(path)) for path in others]
        sections.append(section("Other reports", table(("Report", "Written"), named, 2)))
    if not sections:
        sections.append(paragraph("There is no report yet. Backtests and models write theirs here."))
    return write_whole(index, page("Reports", join("<h1>Reports</h1>", *sections), plots=False))


def _ablation_link() -> Html:
    return Html(f"<a href=backtests/index.html#{anchor(ABLATION_TITLE)}>{ABLATION_TITLE}</a>")


def _written(path: Path) -> str:
    return dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _version(path: Path) -> tuple[str, int]:
    """`mlp_technical-v3.html` -> (mlp_technical, 3)."""
    name, _, version = path.stem.rpartition("-v")
    return (name, int(version)) if name and version.isdigit() else (path.stem, 0)


def _key_numbers(path: Path) -> tuple[str, ...]:
    """Window, time of writing, total return, Sharpe ratio and deepest drawdown of a backtest's page."""
    numbers = _read(path.with_suffix(".json"), "statistics")
    if not numbers:
        return "", _written(path), "", "", ""
    window = numbers.get("window") or {}
    return (
        f"{window['first']} to {window['last']}" if window else "",
        _written(path),
        show(statistic(numbers, "returns.total_return"), "percent"),
        show(statistic(numbers, "returns.sharpe"), "ratio"),
        show(statistic(numbers, "drawdown.maximum"), "percent"),
    )


def _read(path: Path, key: str) -> dict[str, Any]:
    """What the JSON beside a page holds under a key; nothing where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
