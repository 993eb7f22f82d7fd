"""Which columns of a served model are watched, and their rows from what is stored. Pure.

Belongs here: from feature tables, a network and captured requests to `Rows`. Does not belong here: what is done with them (`drift.py`).

A captured request counts for the first session whose close is not before the answer: until then nobody could have known it. In a replay of
the past, where endpoints answer years after the sessions that they are asked about, captured requests are therefore never known in time.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quant_assets.features import tables as feature_tables
from quant_assets.models.inference import model_rows
from quant_assets.monitoring.drift import FEATURE, PREDICTION, Rows, day_at

if TYPE_CHECKING:
    from quant_assets.models.mlp import OnnxMlp
    from quant_resources.calendar import TradingCalendar

# Watched beside the inputs, where the model reads technical features: every input averages over 2 to 16 sessions and shows a change
# late, the session's return shows it at once. Its size shows wilder markets sooner, the logarithm of its size calmer ones.
RETURN, RETURN_SIZE, RETURN_SIZE_LOG = "log_return", "absolute_log_return", "log_absolute_return"
# A return of nothing counts as one basis point in the logarithm.
LEAST_RETURN = 1e-4
PROBABILITIES = ("probability_long", "probability_short")
ORDER_COLUMNS = ("log_participation", "horizon_minutes")
# Captured requests about a session so far from their answer are somebody's look at history and no input of today.
FRESH_SESSIONS = 5
# Expected volume of an order's session: the mean of so many sessions before it.
VOLUME_SESSIONS = 20
SESSION_MINUTES = 390


# -- a classifier ------------------------------------------------------------------------------------------------------


def watched_columns(bundle: Mapping[str, Any]) -> tuple[str, ...]:
    """What is watched of a classifier: its inputs, the session's return and its size, its outputs."""
    beside = (RETURN, RETURN_SIZE, RETURN_SIZE_LOG) if _has_returns(bundle) else ()
    return (*bundle["inputs"], *beside, *PROBABILITIES)


def scope_of(column: str) -> str:
    """Scope of a classifier's column."""
    return PREDICTION if column in PROBABILITIES else FEATURE


def _has_returns(bundle: Mapping[str, Any]) -> bool:
    return feature_tables.TECHNICAL.name in bundle["tables"] and RETURN not in bundle["inputs"]


def classifier_rows(
    bundle: Mapping[str, Any], tables: Mapping[str, pa.Table], network: OnnxMlp, calendar: TradingCalendar
) -> Rows:
    """Inputs, returns and probabilities of every stored row.

    The network is asked session by session: how a matrix product rounds depends on the number of rows, and a night has to give the
    same bits as a range.

    Args:
        bundle: of the registered version.
        tables: feature tables by name.
        network: of the version.
        calendar: covers the rows.
    """
    inputs = list(bundle["inputs"])
    beside = [RETURN] if _has_returns(bundle) else []
    table = model_rows({**bundle, "inputs": [*inputs, *beside]}, tables)
    session = np.array([calendar.ordinal(day) for day in table["session"].to_pylist()], np.int64)
    symbol = np.array(table["symbol"].to_pylist(), str)
    values = np.column_stack([table[name].to_numpy().astype(np.float64) for name in (*inputs, *beside)])
    bounds = np.append(np.unique(session, return_index=True)[1], len(session))
    probability = np.empty((len(session), len(PROBABILITIES)))
    for start, stop in itertools.pairwise(bounds.tolist()):
        probability[start:stop] = network.predict(values[start:stop, : len(inputs)], symbol[start:stop])
    size = np.abs(values[:, len(inputs) :])
    log_size = np.log(np.maximum(size, LEAST_RETURN))
    return Rows(
        watched_columns(bundle), session, symbol, np.column_stack([values, size, log_size, probability])
    )


# -- captured requests -------------------------------------------------------------------------------------------------


def captured_signal_rows(
    captured: pa.Table, inputs: tuple[str, ...], calendar: TradingCalendar
) -> tuple[Rows, int]:
    """Feature rows that a signal endpoint was asked about; one that is sent again counts once, when it was first sent.

    Args:
        captured: columns event_id, available_at and request of `serving.captured_requests`; of one model, kind signal.
        inputs: of the model.
        calendar: says what was known when.

    Returns:
        Rows by the session from which they were known; how many were left out: without features (bars), or about old sessions.
    """
    seen: dict[tuple[Any, ...], int] = {}
    left_out = 0
    for request in _in_order_of_answers(captured):
        known = _known(request["available_at"], calendar)
        for row in json.loads(request["request"]).get("rows") or [{}]:
            features = row.get("features", {})
            position = _position(row.get("session"), calendar)
            if known is None or position is None or not 0 <= known - position <= FRESH_SESSIONS:
                left_out += 1
                continue
            if not {*inputs} <= {*features}:
                left_out += 1
                continue
            key = (str(row["symbol"]), position, *(float(features[name]) for name in inputs))
            seen.setdefault(key, known)
    order = sorted(seen.items(), key=lambda item: (item[1], item[0]))
    return Rows(
        columns=inputs,
        session=np.array([known for _, known in order], np.int64),
        symbol=np.array([key[0] for key, _ in order], str),
        values=np.array([key[2:] for key, _ in order], np.float64).reshape(len(order), len(inputs)),
    ), left_out


def captured_order_rows(captured: pa.Table, bars: pa.Table, calendar: TradingCalendar) -> tuple[Rows, int]:
    """Orders that an execution endpoint was asked to plan: log of the part of the expected volume, and horizon.

    The volume expected over the horizon is the mean daily volume of the 20 sessions before the order's, in shares of its session, times
    the horizon's part of a session's 390 minutes.

    Args:
        captured: columns event_id, available_at, session and request of `serving.captured_requests`; of one model, kind execution.
        bars: `market.bars` around the orders' sessions.
        calendar: says what was known when.

    Returns:
        Rows by the session from which they were known; how many were left out: no volume before, or about other sessions.
    """
    volume = _DailyVolume(bars)
    rows: list[tuple[int, str, float, float]] = []
    left_out = 0
    for order in _in_order_of_answers(captured):
        request = json.loads(order["request"])
        known = _known(order["available_at"], calendar)
        horizon = float(request.get("horizon_minutes", SESSION_MINUTES))
        if known is None or abs(known - calendar.ordinal(order["session"])) > FRESH_SESSIONS:
            left_out += 1
            continue
        daily = volume.before(request["ticker"], order["session"], day_at(calendar, known))
        if not daily:
            left_out += 1
            continue
        participation = np.log(request["shares"] / (daily * horizon / SESSION_MINUTES))
        rows.append((known, request["ticker"], float(participation), horizon))
    rows.sort(key=lambda row: row[0])
    return Rows(
        columns=ORDER_COLUMNS,
        session=np.array([row[0] for row in rows], np.int64),
        symbol=np.array([row[1] for row in rows], str),
        values=np.array([row[2:] for row in rows], np.float64).reshape(len(rows), len(ORDER_COLUMNS)),
    ), left_out


def _in_order_of_answers(captured: pa.Table) -> list[dict[str, Any]]:
    return captured.sort_by([("available_at", "ascending"), ("event_id", "ascending")]).to_pylist()


class _DailyVolume:
    """Mean volume of the sessions before one, in shares of that session."""

    def __init__(self, bars: pa.Table) -> None:
        self._by_symbol: dict[str, tuple[list[dt.date], np.ndarray, np.ndarray]] = {}
        table = bars.sort_by([("symbol", "ascending"), ("session", "ascending")])
        symbol = np.array(table["symbol"].to_pylist(), str)
        sessions = table["session"].to_pylist()
        volume, split = table["volume"].to_numpy(), table["split_factor"].to_numpy()
        for name in np.unique(symbol):
            at = np.flatnonzero(symbol == name)
            days = [sessions[i] for i in at]
            self._by_symbol[str(name)] = (days, volume[at], np.cumprod(split[at]))

    def before(self, symbol: str, session: dt.date, known: dt.date) -> float | None:
        """Of sessions before `session` whose bars are there at the close of `known`; None where there are none."""
        if symbol not in self._by_symbol:
            return None
        days, volume, factor = self._by_symbol[symbol]
        until = sum(day < session and day <= known for day in days)
        if not until:
            return None
        some = slice(max(until - VOLUME_SESSIONS, 0), until)
        # The session's own bar tells of a split on it, once it is known.
        own = until < len(days) and days[until] == session <= known
        return float((volume[some] * factor[until if own else until - 1] / factor[some]).mean())


def _known(instant: dt.datetime, calendar: TradingCalendar) -> int | None:
    return calendar.ordinal(calendar.session_of(instant)) if calendar.covers(instant) else None


def _position(session: object, calendar: TradingCalendar) -> int | None:
    try:
        return calendar.ordinal(dt.date.fromisoformat(str(session)))
    except ValueError:
        return None
