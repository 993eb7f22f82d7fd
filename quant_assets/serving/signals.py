"""From probabilities to signals, and signals as CSV files. Pure.

Belongs here: the rows of live signals and their file format. Does not belong here: which model serves (the registry) and the
decision rule (`quant_assets/strategies/mlp_long_short.py`, the one that is backtested).
"""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from quant_assets.strategies.mlp_long_short import MlpLongShort, choose_side

SIGN = {"long": 1, "short": -1, "flat": 0}
SIDES = {sign: side for side, sign in SIGN.items()}


def make_signals(
    strategy: str,
    symbols: Sequence[str],
    session: dt.date,
    available_at: dt.datetime,
    probability: np.ndarray,
    rule: MlpLongShort,
    lineage: Mapping[str, object],
) -> pa.Table:
    """Signals of one strategy for one session.

    Args:
        strategy: its name.
        symbols: shape (rows,).
        session: the decision's session; the entry is the next session's open.
        available_at: the session's close, UTC.
        probability: shape (rows, 2).
        rule: thresholds, bracket, size (shares).
        lineage: columns model, model_version, feature_snapshots, news_source.

    Returns:
        Columns as `serving.tables.LIVE_SIGNALS`.
    """
    sides = [SIDES[int(sign)] for sign in choose_side(probability, rule.thresholds)]
    rows = [
        {
            "strategy": strategy,
            "symbol": symbol,
            "session": session,
            "available_at": available_at,
            "probability_long": float(p[0]),
            "probability_short": float(p[1]),
            "side": side,
            "target_shares": SIGN[side] * rule.size,
            "entry_rule": "next_open",
            "profit_target_pct": rule.profit_target_pct,
            "stop_loss_pct": rule.stop_loss_pct,
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
