"""From probabilities and weights to signals, and signals as CSV files. Pure.

Belongs here: the rows of live signals and their file format. Does not belong here: which model serves (the registry) and the
decision rules (`quant_assets/strategies/mlp_long_short.py`, `quant_assets/environments/portfolio.py`: those that are
backtested).
"""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from quant_assets.environments.portfolio import (
    PortfolioMarket,
    PortfolioParameters,
    drift,
    observation_at,
    target_weights,
)
from quant_assets.serving.tables import LIVE_SIGNALS
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
            "target_weight": None,
            "side": side,
            "target_shares": SIGN[side] * rule.size,
            "entry_rule": "next_open",
            "profit_target_pct": rule.profit_target_pct,
            "stop_loss_pct": rule.stop_loss_pct,
            **lineage,
        }
        for symbol, p, side in zip(symbols, probability, sides, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=LIVE_SIGNALS.arrow_schema)


def make_portfolio_signals(
    strategy: str,
    market: PortfolioMarket,
    followed: Mapping[dt.date, np.ndarray],
    sessions: Sequence[dt.date],
    closes: Mapping[dt.date, Mapping[str, float]],
    available_at: Callable[[dt.date], dt.datetime],
    equity_dollars: float,
    lineage: Mapping[str, object],
) -> pa.Table:
    """Weights of a portfolio as signals, one row per asset that has a close.

    Args:
        strategy: its name.
        market: whose symbols the weights are of.
        followed: session -> weights of the assets, as `follow` gives them.
        sessions: those to write.
        closes: session -> symbol -> dollars; an asset without one has no row.
        available_at: session -> its close, UTC.
        equity_dollars: weights become whole shares of so much, at the close.
        lineage: columns model, model_version, feature_snapshots, news_source.

    Returns:
        Columns as `serving.tables.LIVE_SIGNALS`.
    """
    rows = []
    for session in sessions:
        for symbol, weight in zip(market.symbols, followed[session], strict=True):
            close = closes.get(session, {}).get(symbol)
            if close is None:
                continue
            shares = float(np.trunc(weight * equity_dollars / close))
            rows.append(
                {
                    "strategy": strategy,
                    "symbol": symbol,
                    "session": session,
                    "available_at": available_at(session),
                    "probability_long": None,
                    "probability_short": None,
                    "target_weight": float(weight),
                    "side": SIDES[int(np.sign(shares))],
                    "target_shares": shares,
                    "entry_rule": "next_open",
                    "profit_target_pct": None,
                    "stop_loss_pct": None,
                    **lineage,
                }
            )
    return pa.Table.from_pylist(rows, schema=LIVE_SIGNALS.arrow_schema)


def follow(
    market: PortfolioMarket,
    parameters: PortfolioParameters,
    act: Callable[[np.ndarray], np.ndarray],
    after: dt.date,
) -> dict[dt.date, np.ndarray]:
    """What a portfolio policy decides at every close after a session, the newest included, when it is followed from there on.

    A decision depends on what is held, and that on all decisions before: going through them again makes tonight's weights a
    function of bars and model alone, the same whether the nights ran one by one, late, or all at once.

    Args:
        market: until the newest close.
        parameters: as trained.
        act: observations (n, observation) -> actions; starts in cash.
        after: the last session that the model was trained on.

    Returns:
        Session -> weights of the assets; cash is 1 less their sum.
    """
    days = market.sessions.astype("datetime64[D]").astype(object)
    first = max(
        parameters.look_back - 1, int(np.searchsorted(market.sessions, np.datetime64(after), side="right"))
    )
    held = np.zeros(len(market.symbols))
    followed = {}
    for row in range(first, len(market)):
        action = act(observation_at(market, parameters, row, held)[None])
        weights = target_weights(np.asarray(action, np.float64), market.tradable[row : row + 1], parameters)
        followed[days[row]] = weights[0]
        if row + 1 < len(market):  # traded at the next open, seen at its close
            _, drifted = drift(weights, market.open_to_close[row + 1 : row + 2])
            held = drifted[0]
    return followed


def remove_stale_files(
    signals: pa.Table, folder: Path, strategies: Sequence[str], sessions: Sequence[dt.date]
) -> list[Path]:
    """Remove the files of strategies and sessions that have no signal any more, so that files and table say the same.

    Args:
        signals: of all the sessions.
        folder: as for `write_signal_files`.
        strategies, sessions: whose files to look at; others are left alone.

    Returns:
        What was removed.
    """
    have = set(zip(signals["strategy"].to_pylist(), signals["session"].to_pylist(), strict=True))
    stale = [
        folder / strategy / f"{session}.csv"
        for strategy in strategies
        for session in sessions
        if (strategy, session) not in have
    ]
    found = [path for path in stale if path.exists()]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def write_signal_files(signals: pa.Table, folder: Path) -> list[Path]:
    """One CSV per strategy and session: `<folder>/<strategy>/<session>.csv` with date, symbol, signal (1, 0, -1; the weight of
    a portfolio).

    The shape that Zipline's `fetch_csv` and LEAN's custom data readers take. Each file appears whole or not at all;
    writing it again replaces it.
    """
    groups: dict[tuple[str, dt.date], list[tuple[str, int | str]]] = {}
    for row in signals.select(["strategy", "session", "symbol", "side", "target_weight"]).to_pylist():
        weight = row["target_weight"]
        signal: int | str = SIGN[row["side"]] if weight is None else f"{weight:.6f}"
        groups.setdefault((row["strategy"], row["session"]), []).append((row["symbol"], signal))
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
