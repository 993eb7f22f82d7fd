"""Outcomes by hand, costs against the environment's accounting, and what ADWIN sees of a step."""

import datetime as dt
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quant_assets.environments.execution import ExecutionParameters, run_schedule, textbook_market
from quant_assets.monitoring.drift import DriftParameters
from quant_assets.monitoring.performance import (
    BRIER_LONG,
    COST_RESIDUAL,
    HIT_RATE,
    Series,
    ServedOrder,
    cost_series,
    follow,
    performance_scored,
    performance_table,
    realized_cost_bps,
    served_orders,
    signal_series,
)
from quant_assets.monitoring.tables import PERFORMANCE
from quant_assets.simulation.intraday import RealDays
from quant_resources.calendar import TradingCalendar

PARAMETERS = DriftParameters()
DAY = dt.date(2012, 3, 7)
UTC = pa.timestamp("us", "UTC")


# -- signals -----------------------------------------------------------------------------------------------------------


def outcomes(calendar: TradingCalendar, known: dt.date) -> tuple[pa.Table, pa.Table]:
    """Signals of one session, and their labels, which `known` tells."""
    sides = {"AAPL": "long", "GOOG": "short", "IBM": "flat"}
    signals = pa.table(
        {
            "symbol": [*sides],
            "session": pa.array([DAY] * 3, pa.date32()),
            "available_at": pa.array([calendar.close(DAY)] * 3, UTC),
            "side": [*sides.values()],
            "probability_long": [0.7, 0.2, 0.4],
            "probability_short": [0.1, 0.6, 0.3],
        }
    )
    labels = pa.table(
        {
            "symbol": [*sides, "MSFT"],
            "session": pa.array([DAY] * 4, pa.date32()),
            "available_at": pa.array([calendar.close(known)] * 4, UTC),
            "long": [1, 0, 0, 1],
            "short": [0, 0, 1, 0],
        }
    )
    return signals, labels


def test_outcomes_by_hand(calendar: TradingCalendar) -> None:
    known = calendar.shift(DAY, 5)
    found = {s.measure: s for s in signal_series(*outcomes(calendar, known), (0.4, 0.3), calendar)}
    hits = found[HIT_RATE]
    assert hits.session.tolist() == [calendar.ordinal(known)]
    # AAPL long: hit; GOOG short: no. IBM took no side. Base rates: 0.4 and 0.3.
    assert (hits.rows.tolist(), hits.value.tolist()) == ([2], [0.5])
    assert hits.yardstick == pytest.approx([0.35])
    excess = [(0.7 - 1) ** 2 - (0.4 - 1) ** 2, 0.2**2 - 0.4**2, 0.4**2 - 0.4**2]
    assert found[BRIER_LONG].value == pytest.approx([np.mean(excess)])
    assert found[BRIER_LONG].yardstick == pytest.approx([(0.36 + 0.16 + 0.16) / 3])


def test_an_outcome_counts_when_its_label_is_known(calendar: TradingCalendar) -> None:
    known = calendar.shift(DAY, 5)
    series = signal_series(*outcomes(calendar, known), (0.4, 0.3), calendar)
    before = performance_table("m", 1, series, DAY, calendar.shift(DAY, 4), PARAMETERS, calendar)
    assert before.num_rows == 0
    rows = performance_table("m", 1, series, DAY, known, PARAMETERS, calendar).to_pylist()
    assert {(row["session"], row["available_at"]) for row in rows} == {(known, calendar.close(known))}
    assert len(rows) == 3


def test_no_signals_no_series(calendar: TradingCalendar) -> None:
    signals, labels = outcomes(calendar, calendar.shift(DAY, 5))
    series = signal_series(signals.slice(0, 0), labels, (0.4, 0.3), calendar)
    assert [len(one.session) for one in series] == [0, 0, 0]
    assert performance_table("m", 1, series, DAY, DAY, PARAMETERS, calendar).num_rows == 0


# -- ADWIN -------------------------------------------------------------------------------------------------------------


def made(values: np.ndarray, measure: str = BRIER_LONG, first: int = 100) -> Series:
    ones = np.ones(len(values))
    return Series(measure, first + np.arange(len(values)), ones.astype(int), values, ones)


def step(size: float, sessions: int = 400, at: int = 200) -> np.ndarray:
    values = 0.01 * np.random.default_rng(4).standard_normal(sessions)
    values[at:] += size
    return values


def test_a_step_for_the_worse_is_seen_and_counts_for_a_window() -> None:
    followed = follow(made(step(0.03)), PARAMETERS, 1)
    (changed,) = np.flatnonzero(followed.changed)
    assert 200 < changed < 240
    assert np.flatnonzero(followed.drifted).tolist() == [
        *range(changed, changed + PARAMETERS.window_sessions)
    ]
    assert followed.mean_before[changed] == pytest.approx(0, abs=0.005)
    assert followed.mean[-1] == pytest.approx(0.03, abs=0.005)
    assert followed.first[-1] == changed
    assert np.isnan(followed.mean_before[:changed]).all()


def test_a_step_for_the_better_is_a_change_and_no_drift() -> None:
    for series in (made(step(-0.03)), made(step(0.03), HIT_RATE)):
        followed = follow(series, PARAMETERS, 1)
        assert followed.changed.sum() == 1
        assert not followed.drifted.any()


def test_nothing_happens_without_a_step() -> None:
    followed = follow(made(step(0.0)), PARAMETERS, 1)
    assert not followed.changed.any()
    assert not follow(made(np.zeros(300)), PARAMETERS, 1).changed.any()


def test_a_series_is_followed_alike_however_far_it_goes_on() -> None:
    """Truncation: what comes later changes nothing."""
    values = step(0.03)
    whole = follow(made(values), PARAMETERS, 3)
    for cut in (1, 49, 50, 230, 300):
        part = follow(made(values[:cut]), PARAMETERS, 3)
        for name in ("first", "mean", "mean_before", "changed", "drifted"):
            assert getattr(part, name).tolist() == pytest.approx(
                getattr(whole, name)[:cut].tolist(), nan_ok=True, abs=0
            )


def test_a_range_of_the_table_is_its_nights(calendar: TradingCalendar) -> None:
    first = calendar.ordinal(DAY)
    series = [made(step(0.03), first=first - 150)]
    span = [calendar.shift(DAY, i) for i in range(100)]
    together = performance_table("m", 2, series, span[0], span[-1], PARAMETERS, calendar)
    nights = [performance_table("m", 2, series, day, day, PARAMETERS, calendar) for day in span]
    assert pa.concat_tables(nights).equals(together)
    assert sum(together["changed"].to_pylist()) == 1
    # The drift table takes ADWIN's word, and has no p-value.
    (scored,) = performance_scored(together, first + 10, first + 99, calendar)
    assert scored.session.tolist() == [*range(first + 10, first + 100)]
    assert scored.drifted is not None
    assert scored.drifted.sum() == sum(together["drifted"].to_pylist())
    assert np.isnan(scored.p).all()


def test_stored_costs_are_continued(calendar: TradingCalendar) -> None:
    first = calendar.ordinal(DAY)
    series = made(np.arange(60.0), COST_RESIDUAL, first)
    stored = performance_table("m", 1, [series], DAY, calendar.shift(DAY, 39), PARAMETERS, calendar)
    again = Series.stored(PERFORMANCE.conform(stored), COST_RESIDUAL, calendar)
    later = Series(
        COST_RESIDUAL, *(v[40:] for v in (series.session, series.rows, series.value, series.yardstick))
    )
    both = again.followed_by(later)
    assert both.session.tolist() == series.session.tolist()
    assert both.value.tolist() == series.value.tolist()


# -- schedules ---------------------------------------------------------------------------------------------------------

LAW = ExecutionParameters(order_participation_low=0.01, order_participation_high=0.2)


def test_a_schedule_over_the_whole_session_costs_what_the_environment_says() -> None:
    market = textbook_market(paths=1, steps=390, seed=3, sigma=0.05)
    schedule = np.full(390, 100.0)
    expected = run_schedule(market, LAW, schedule, order_shares=39_000.0)
    found = realized_cost_bps(market, LAW, 0, schedule)
    assert found == pytest.approx(float((expected.implementation_shortfall_bps - expected.slippage_bps)[0]))


def test_a_schedule_of_an_hour_has_the_permanent_impact_of_the_whole_sessions_volume() -> None:
    """The market rests, so only impact and spread cost: by hand."""
    market = textbook_market(paths=1, steps=390, seed=3, sigma=0.05, moves=False)
    schedule = np.full(60, 500.0)
    sigma_dollars, volume = market.daily_volatility[0] * 50.0, 1e6
    sold_before = 500.0 * np.arange(60)
    per_share = (
        0.125 / 2
        + 0.11 * sigma_dollars * np.sqrt(500 / volume)
        + sigma_dollars * sold_before / (390 * volume)
    )
    expected = 1e4 * (500 * per_share).sum() / (30_000 * 50.0)
    for first_minute in (0, 200, 330):
        assert realized_cost_bps(market, LAW, first_minute, schedule) == pytest.approx(expected)


def answer(session: dt.date, first: dt.datetime, shares: list[int]) -> dict[str, Any]:
    times = [first + dt.timedelta(minutes=i) for i in range(len(shares))]
    return {
        "ticker": "AAPL",
        "session": session.isoformat(),
        "horizon_minutes": len(shares),
        "schedule": [
            {"timestamp": f"{t:%Y-%m-%dT%H:%M:%SZ}", "shares": n} for t, n in zip(times, shares, strict=True)
        ],
        "expected_cost_bps": {"schedule": 7.5, "twap": 8.0, "vwap": 7.0},
    }


def answered(rows: list[tuple[dt.datetime, dict[str, Any]]]) -> pa.Table:
    return pa.table(
        {
            "event_id": [f"e{i}" for i in range(len(rows))],
            "available_at": pa.array([at for at, _ in rows], UTC),
            "response": [json.dumps(body) for _, body in rows],
        }
    )


def test_orders_are_read_from_answers(calendar: TradingCalendar) -> None:
    opens, close = calendar.opens(DAY), calendar.close(DAY)
    rolls = answer(DAY, close - dt.timedelta(minutes=1), [5, 5])
    found = served_orders(
        answered(
            [
                (opens, answer(DAY, opens + dt.timedelta(minutes=30), [10, 0, 20])),
                (close + dt.timedelta(hours=1), answer(DAY, opens, [1, 2])),
                (opens, rolls),
                (dt.datetime(2026, 1, 5, tzinfo=dt.UTC), answer(DAY, opens, [1, 2])),
            ]
        ),
        calendar,
    )
    assert [(o.first_minute, o.schedule.tolist(), o.expected_bps) for o in found] == [
        (30, [10, 0, 20], 7.5),
        (0, [1, 2], 7.5),
    ]
    # The second one was answered after the close: nobody could know it before the next.
    assert [o.known - calendar.ordinal(DAY) for o in found] == [0, 1]


def minute_days(calendar: TradingCalendar, sessions: int = 8, spread: float = 0.02) -> RealDays:
    days = calendar.sessions(calendar.shift(DAY, 1 - sessions), DAY)
    rng = np.random.default_rng(6)
    mid = 50 * np.exp(np.cumsum(1e-4 * rng.standard_normal((sessions, 391)), axis=1))
    return RealDays(
        np.array(days, "datetime64[D]"),
        mid,
        np.full((sessions, 391), spread),
        np.full((sessions, 390), 10_000.0),
        np.full((sessions, 390), 1e-4),
    )


def order(calendar: TradingCalendar, ticker: str = "AAPL", session: dt.date = DAY) -> ServedOrder:
    return ServedOrder(ticker, session, calendar.ordinal(session), 10, np.full(20, 50.0), 2.0)


def test_what_an_order_cost_beyond_what_was_promised(calendar: TradingCalendar) -> None:
    narrow = cost_series([order(calendar)], {"AAPL": minute_days(calendar)}, LAW, calendar)
    wide = cost_series([order(calendar)], {"AAPL": minute_days(calendar, spread=0.12)}, LAW, calendar)
    assert narrow.session.tolist() == [calendar.ordinal(DAY)]
    assert narrow.yardstick.tolist() == [2.0]
    # Half of 10 cents more on about 50 dollars is 10 basis points.
    assert wide.value[0] - narrow.value[0] == pytest.approx(10.0, rel=0.02)


def test_orders_without_minute_bars_have_no_outcome(calendar: TradingCalendar) -> None:
    days = minute_days(calendar)
    for lost in (
        order(calendar, "IBM"),
        order(calendar, session=calendar.shift(DAY, 1)),
        order(calendar, session=calendar.shift(DAY, -6)),  # too few sessions before it to know a profile
    ):
        assert not len(cost_series([lost], {"AAPL": days}, LAW, calendar).session)


def test_what_minute_bars_come_later_or_long_before_does_not_matter(calendar: TradingCalendar) -> None:
    days = minute_days(calendar, 80)
    earlier = calendar.shift(DAY, -10)
    whole = cost_series([order(calendar, session=earlier)], {"AAPL": days}, LAW, calendar)
    some = RealDays(*(v[(days.sessions <= np.datetime64(earlier)) & (np.arange(80) >= 6)] for v in days))
    assert cost_series([order(calendar, session=earlier)], {"AAPL": some}, LAW, calendar).value == whole.value
