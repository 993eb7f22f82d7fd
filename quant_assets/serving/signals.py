"""From probabilities to signals, and signals as CSV files. Pure.

Belongs here: the decision rule and the file format. Does not belong here: which model serves (the registry) and
backtesting.
"""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

SIGN = {"long": 1, "short": -1, "flat": 0}


@dataclass(frozen=True)
class SignalParameters:
    """How a probability becomes a position.

    Attributes:
        profit_target_pct, stop_loss_pct: bracket around the entry, percent.
        long_threshold, short_threshold: probability above which the side is taken; None means the break-even
            probability stop / (target + stop), at which winning the target and losing the stop cancel out.
        size_shares: shares of a position.
    """

    profit_target_pct: float = 2.0
    stop_loss_pct: float = 1.5
    long_threshold: float | None = None
    short_threshold: float | None = None
    size_shares: float = 100.0

    def __post_init__(self) -> None:
        for name in ("long_threshold", "short_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} = {value} is not a probability")
        for name in ("profit_target_pct", "stop_loss_pct", "size_shares"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0")

    @property
    def break_even(self) -> float:
        """Probability of the target at which a bracket trade earns nothing, ignoring costs and time exits."""
        return self.stop_loss_pct / (self.profit_target_pct + self.stop_loss_pct)

    @property
    def thresholds(self) -> tuple[float, float]:
        """(long, short), with the break-even where none is set."""
        return (
            self.break_even if self.long_threshold is None else self.long_threshold,
            self.break_even if self.short_threshold is None else self.short_threshold,
        )


def choose_side(probability: np.ndarray, parameters: SignalParameters) -> list[str]:
    """The side per row: the one whose probability exceeds its threshold by more; flat when neither does.

    Args:
        probability: shape (rows, 2): long, short.
        parameters: thresholds.
    """
    excess = probability - np.asarray(parameters.thresholds)
    return ["flat" if max(row) <= 0 else ("long" if row[0] >= row[1] else "short") for row in excess]


def make_signals(
    strategy: str,
    symbols: Sequence[str],
    session: dt.date,
    available_at: dt.datetime,
    probability: np.ndarray,
    parameters: SignalParameters,
    lineage: Mapping[str, object],
) -> pa.Table:
    """Signals of one strategy for one session.

    Args:
        strategy: its name.
        symbols: shape (rows,).
        session: the decision's session; the entry is the next session's open.
        available_at: the session's close, UTC.
        probability: shape (rows, 2).
        parameters: decision rule.
        lineage: columns model, model_version, feature_snapshots, news_source.

    Returns:
        Columns as `serving.tables.LIVE_SIGNALS`.
    """
    sides = choose_side(probability, parameters)
    rows = [
        {
            "strategy": strategy,
            "symbol": symbol,
            "session": session,
            "available_at": available_at,
            "probability_long": float(p[0]),
            "probability_short": float(p[1]),
            "side": side,
            "target_shares": SIGN[side] * parameters.size_shares,
            "entry_rule": "next_open",
            "profit_target_pct": parameters.profit_target_pct,
            "stop_loss_pct": parameters.stop_loss_pct,
            **lineage,
        }
        for symbol, p, side in zip(symbols, probability, sides, strict=True)
    ]
    return pa.Table.from_pylist(rows)


def write_signal_files(signals: pa.Table, folder: Path) -> list[Path]:
    """One CSV per strategy and session: `<folder>/<strategy>/<session>.csv` with date, symbol, signal (1, 0, -1).

    The shape that Zipline's `fetch_csv` and LEAN's custom data readers take. Each file appears whole or not at all;
    writing it again replaces it.
    """
    groups: dict[tuple[str, dt.date], list[tuple[str, int]]] = {}
    for row in signals.select(["strategy", "session", "symbol", "side"]).to_pylist():
        groups.setdefault((row["strategy"], row["session"]), []).append((row["symbol"], SIGN[row["side"]]))
    written = []
    for (strategy, session), rows in sorted(groups.items()):
        path = folder / strategy / f"{session}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["date,symbol,signal", *(f"{session},{symbol},{signal}" for symbol, signal in sorted(rows))]
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".signal-")
        try:
            with os.fdopen(handle, "w") as file:
                file.write("\n".join(lines) + "\n")
            os.chmod(temporary, 0o644)  # mkstemp makes it private; other programs read these
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        written.append(path)
    return written
