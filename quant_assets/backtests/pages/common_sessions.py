"""Strategies side by side: what each did on the sessions that all of them have. Pure.

Belongs here: cutting sheets to their common sessions and judging them there. Does not belong here: the definitions
(`statistics.py`) and the page (`comparison.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from quant_assets.backtests import statistics
from quant_assets.backtests.pages.sheet import TearSheet
from quant_assets.strategies import YARDSTICKS


class Compared(NamedTuple):
    """One line of the comparison: growth of one dollar on the common sessions, and its statistics there."""

    name: str
    yardstick: bool
    growth: np.ndarray
    summary: dict[str, Any]
    sheet: TearSheet | None


class Common(NamedTuple):
    """What all strategies have in common. `lines`: strategies by Sharpe ratio, the best first, then the yardsticks."""

    sessions: np.ndarray
    lines: list[Compared]


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


def on_common_sessions(sheets: Sequence[TearSheet]) -> Common:
    """Everything on the sessions that all sheets have, under the conventions of the first; no lines for fewer than two."""
    sessions, curves = common_growth(sheets)
    if sessions.size < 2:
        return Common(sessions, [])
    owners = {sheet.strategy: sheet for sheet in sheets}
    lines = []
    for name, growth in curves.items():
        owner = owners.get(name)
        validity: Mapping[str, Any] = owner.statistics["validity"] if owner else {}
        trials, variance = validity.get("trials", 1), validity.get("trial_sharpe_variance")
        summary = statistics.summary(
            growth,
            sessions,
            _inside(owner.trades if owner else sheets[0].trades.slice(0, 0), sessions),
            sheets[0].conventions,
            benchmark_equity=None if name == "buy_and_hold" else curves.get("buy_and_hold"),
            trials=trials,
            trial_sharpe_variance=math.nan if variance is None and trials > 1 else variance,
        )
        lines.append(Compared(name, name in YARDSTICKS, growth, summary, owner))
    lines.sort(key=_rank)
    return Common(sessions, lines)


def _rank(line: Compared) -> tuple[bool, float]:
    sharpe = line.summary["returns"]["sharpe"]
    return line.yardstick, math.inf if sharpe is None else -sharpe


def _inside(trades: pa.Table, sessions: np.ndarray) -> pa.Table:
    """Trades that began and ended between the first and the last of the sessions."""
    entry = trades["entry_session"].to_numpy().astype("datetime64[D]")
    exit_ = trades["exit_session"].to_numpy().astype("datetime64[D]")
    return trades.filter(pa.array((entry >= sessions[0]) & (exit_ <= sessions[-1])))


def correlations(common: Common) -> tuple[list[str], np.ndarray]:
    """Correlation of daily returns of all lines whose returns vary; shape (lines, lines)."""
    returns = {line.name: statistics.period_returns(line.growth) for line in common.lines}
    moving = [name for name, values in returns.items() if values.size > 1 and np.ptp(values) > 1e-12]
    table = np.array(
        [[statistics.correlation(returns[a], returns[b]) for b in moving] for a in moving], dtype=float
    )
    return moving, table.reshape(len(moving), len(moving))
