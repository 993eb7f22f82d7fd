"""Which rows a model is watched by, and what captured requests say when."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quant_assets.features.tables import (
    COMPETITOR_INPUTS,
    INDUSTRY_INPUTS,
    PEERS,
    SENTIMENT,
    TECHNICAL,
    TECHNICAL_INPUTS,
)
from quant_assets.models.feature_sets import FEATURE_SETS
from quant_assets.monitoring.watched import (
    LEAST_RETURN,
    captured_order_rows,
    captured_signal_rows,
    classifier_rows,
    scope_of,
    watched_columns,
)
from quant_assets.serving.tables import CAPTURED_REQUESTS
from quant_resources.calendar import TradingCalendar

BUNDLE = {"inputs": list(TECHNICAL_INPUTS), "tables": [TECHNICAL.name]}
INPUTS = ("a", "b")
DAY = dt.date(2012, 3, 7)


class Summing:
    """Probabilities that tell which rows they were made from."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, x: np.ndarray, symbol: Sequence[str]) -> np.ndarray:
        self.batches.append(len(x))
        return np.column_stack([x.sum(axis=1), -x.sum(axis=1)])


def test_a_classifier_is_watched_by_inputs_returns_and_outputs(
    sample_technical: pa.Table, calendar: TradingCalendar
) -> None:
    some = sample_technical.slice(1000, 200)
    network = Summing()
    rows = classifier_rows(BUNDLE, {TECHNICAL.name: some}, network, calendar)  # type: ignore[arg-type]
    assert rows.columns == watched_columns(BUNDLE)
    assert rows.columns[-5:] == (
        "log_return",
        "absolute_log_return",
        "log_absolute_return",
        "probability_long",
        "probability_short",
    )
    assert (np.diff(rows.session) >= 0).all()
    inputs, size = rows.values[:, : len(TECHNICAL_INPUTS)], np.abs(rows.values[:, -5])
    assert (rows.values[:, -4] == size).all()
    assert (rows.values[:, -3] == np.log(np.maximum(size, LEAST_RETURN))).all()
    assert rows.values[:, -2] == pytest.approx(inputs.sum(axis=1))
    # Asked session by session, so that a night and a range ask alike.
    assert network.batches == np.unique(rows.session, return_counts=True)[1].tolist()


def test_of_a_model_that_reads_news_the_peers_are_watched_as_well(
    sample_technical: pa.Table, sample_sentiment: pa.Table, calendar: TradingCalendar
) -> None:
    some = sample_technical.slice(1000, 50)
    rng = np.random.default_rng(0)
    peers = some.select(["symbol", "session"]).append_column("source", pa.array(["simulated"] * 50))
    for name in COMPETITOR_INPUTS + INDUSTRY_INPUTS:
        peers = peers.append_column(name, pa.array(rng.normal(0, 1, 50)))
    stored = {TECHNICAL.name: some, SENTIMENT.name: sample_sentiment, PEERS.name: peers}
    features = FEATURE_SETS["mlp_enhanced"]
    bundle = {"inputs": list(features.inputs), "tables": [spec.name for spec in features.tables]}
    rows = classifier_rows(bundle, stored, Summing(), calendar)  # type: ignore[arg-type]
    assert rows.columns == (*features.inputs, *rows.columns[-5:])
    assert len(rows.session) == 50
    at = rows.columns.index("industry_sentiment_sma_16")
    assert sorted(rows.values[:, at]) == sorted(peers["industry_sentiment_sma_16"].to_pylist())
    assert {scope_of(name) for name in COMPETITOR_INPUTS + INDUSTRY_INPUTS} == {"feature"}


# -- captured requests -------------------------------------------------------------------------------------------------


def captured(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of `serving.captured_requests`; each says `at`, `session`, and `request`."""
    return pa.Table.from_pylist(
        [
            {
                "event_id": f"e{i}",
                "session": row["session"],
                "available_at": row["at"],
                "endpoint": "endpoint",
                "config": "config",
                "kind": "signal",
                "model": "model",
                "model_version": 1,
                "request": json.dumps(row["request"]),
                "response": "{}",
            }
            for i, row in enumerate(rows)
        ],
        schema=CAPTURED_REQUESTS.arrow_schema,
    )


def at(day: dt.date, hour: int) -> dt.datetime:
    return dt.datetime(day.year, day.month, day.day, hour, tzinfo=dt.UTC)


def row(symbol: str, session: dt.date, **features: float) -> dict[str, Any]:
    return {"symbol": symbol, "session": session.isoformat(), "features": features}


def test_a_request_counts_from_the_first_close_after_its_answer(calendar: TradingCalendar) -> None:
    """The session closes at 21:00 UTC."""
    asked = captured(
        [
            {"at": at(DAY, 20), "session": DAY, "request": {"rows": [row("AAPL", DAY, a=1, b=2)]}},
            {"at": at(DAY, 22), "session": DAY, "request": {"rows": [row("IBM", DAY, a=3, b=4)]}},
        ]
    )
    rows, left_out = captured_signal_rows(asked, INPUTS, calendar)
    assert rows.session.tolist() == [calendar.ordinal(DAY), calendar.ordinal(DAY) + 1]
    assert rows.symbol.tolist() == ["AAPL", "IBM"]
    assert rows.values.tolist() == [[1, 2], [3, 4]]
    assert left_out == 0


def test_a_row_that_is_sent_again_counts_once(calendar: TradingCalendar) -> None:
    again = {"rows": [row("AAPL", DAY, a=1, b=2)]}
    asked = captured(
        [
            {"at": at(DAY, 22), "session": DAY, "request": again},
            {"at": at(DAY, 15), "session": DAY, "request": again},
            {"at": at(DAY, 16), "session": DAY, "request": {"rows": [row("AAPL", DAY, a=1, b=5)]}},
        ]
    )
    rows, _ = captured_signal_rows(asked, INPUTS, calendar)
    assert rows.session.tolist() == [calendar.ordinal(DAY)] * 2
    assert rows.values.tolist() == [[1, 2], [1, 5]]


def test_requests_that_say_nothing_of_now_are_counted(calendar: TradingCalendar) -> None:
    asked = captured(
        [
            {"at": at(DAY, 15), "session": DAY, "request": {"bars": [{"symbol": "AAPL"}]}},
            {
                "at": at(DAY, 15),
                "session": DAY,
                "request": {"rows": [row("AAPL", dt.date(2011, 3, 7), a=1, b=2)]},
            },
            {"at": at(DAY, 15), "session": DAY, "request": {"rows": [row("AAPL", DAY, a=1)]}},
            {
                "at": at(dt.date(2026, 1, 5), 15),
                "session": DAY,
                "request": {"rows": [row("AAPL", DAY, a=1, b=2)]},
            },
        ]
    )
    rows, left_out = captured_signal_rows(asked, INPUTS, calendar)
    assert (len(rows.session), left_out) == (0, 4)


def volumes(calendar: TradingCalendar, split_on: dt.date | None = None) -> pa.Table:
    days = calendar.sessions(dt.date(2012, 2, 1), DAY)
    return pa.table(
        {
            "symbol": ["AAPL"] * len(days),
            "session": pa.array(days, pa.date32()),
            "volume": [1e6] * (len(days) - 1) + [5e9],
            "split_factor": [2.0 if day == split_on else 1.0 for day in days],
        }
    )


def order(shares: int, horizon: int | None = None, ticker: str = "AAPL") -> dict[str, Any]:
    request = {"ticker": ticker, "shares": shares}
    return {
        "at": at(DAY, 15),
        "session": DAY,
        "request": request | ({"horizon_minutes": horizon} if horizon else {}),
    }


def test_participation_is_of_the_volume_that_was_expected(calendar: TradingCalendar) -> None:
    """A million shares a session before; what the session itself traded nobody knew."""
    asked = captured([order(10_000), order(10_000, 39)])
    rows, left_out = captured_order_rows(asked, volumes(calendar), calendar)
    assert np.exp(rows.values[:, 0]) == pytest.approx([0.01, 0.1])
    assert rows.values[:, 1].tolist() == [390, 39]
    assert left_out == 0


def test_a_split_counts_in_shares_of_the_orders_session(calendar: TradingCalendar) -> None:
    for split_on in (DAY, calendar.shift(DAY, -1)):
        rows, _ = captured_order_rows(captured([order(10_000)]), volumes(calendar, split_on), calendar)
        after = 1 if split_on < DAY else 0  # sessions after the split are in new shares already
        known = [2e6] * (20 - after) + [1e6] * after
        assert np.exp(rows.values[0, 0]) == pytest.approx(10_000 / np.mean(known))


def test_an_order_for_a_later_session_rests_on_the_volume_known_when_it_was_answered(
    calendar: TradingCalendar,
) -> None:
    """The bar of the day before DAY has five thousand times the volume; the answer came before it."""
    earlier = calendar.shift(DAY, -2)
    bars = volumes(calendar)
    many = pa.array([5e9 if day == calendar.shift(DAY, -1) else 1e6 for day in bars["session"].to_pylist()])
    bars = bars.set_column(2, "volume", many)
    rows, _ = captured_order_rows(captured([{**order(10_000), "at": at(earlier, 15)}]), bars, calendar)
    assert rows.session.tolist() == [calendar.ordinal(earlier)]
    assert np.exp(rows.values[0, 0]) == pytest.approx(0.01)


def test_orders_without_a_known_volume_are_counted(calendar: TradingCalendar) -> None:
    late = {**order(10), "at": at(dt.date(2012, 6, 1), 15)}
    rows, left_out = captured_order_rows(
        captured([order(10, ticker="XYZ"), late]), volumes(calendar), calendar
    )
    assert (len(rows.session), left_out) == (0, 2)
