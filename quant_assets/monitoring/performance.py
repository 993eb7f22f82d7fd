"""What served models achieved, and whether that has become worse. Pure.

Belongs here: outcomes of live signals, costs of served schedules against what was promised, ADWIN over their series. Does not belong
here: drift of what a model sees and says (`drift.py`), the metrics of a training (`quant_assets/models/evaluation.py`).

Time. An outcome counts for the session at whose close it became known: a signal's when its label is complete, an order's when its
session has closed. A series begins with the first outcome of a model version and is followed from there each time, so a value of a
session depends on nothing later. Outcomes of signals are found again each time; running schedules again takes long, so those of earlier
sessions are taken from the table.

Measures, one value per session, the mean over its outcomes:

- `hit_rate`: of the sides that were taken, the part whose trade reached its target before its stop;
- `brier_excess_long`, `brier_excess_short`: (p - y)² - (b - y)² with b the training's base rate: above 0, quoting b was better;
- `cost_residual_bps`: what a served schedule cost on the minute bars of its session, without the market's own move, less what the
  endpoint expected. The move has mean 0 and a standard deviation of a hundred times what a schedule decides.

ADWIN (Bifet and Gavaldà 2007; river) keeps a window as long as its older and newer part agree in their mean, and sees a change when they do
not; then it begins anew. It takes numbers between 0 and 1, so values are scaled by the first ones; and it takes them for independent, which labels of
neighbouring sessions are not: docs/monitoring.md says how often it errs on such series.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quant_assets.monitoring.drift import PERFORMANCE, DriftParameters, Scored, day_at
from quant_assets.monitoring.tables import PERFORMANCE as PERFORMANCE_TABLE
from quant_resources.duckdb import query

if TYPE_CHECKING:
    from quant_assets.environments.execution import ExecutionMarket, ExecutionParameters
    from quant_assets.simulation.intraday import RealDays
    from quant_resources.calendar import TradingCalendar

HIT_RATE, BRIER_LONG, BRIER_SHORT = "hit_rate", "brier_excess_long", "brier_excess_short"
COST_RESIDUAL = "cost_residual_bps"
SIGNAL_MEASURES = (HIT_RATE, BRIER_LONG, BRIER_SHORT)
# Sessions of minute bars before an order's that its market is known from, as `simulation.inputs` reads them.
EARLIER_SESSIONS = 63


@dataclass(frozen=True, eq=False)
class Series:
    """One measure of one model version.

    Attributes:
        measure: its name.
        session: positions on the calendar, ascending, shape (n,).
        rows: outcomes that became known, shape (n,).
        value: their mean.
        yardstick: mean of what they are compared with.
    """

    measure: str
    session: np.ndarray
    rows: np.ndarray
    value: np.ndarray
    yardstick: np.ndarray

    @staticmethod
    def stored(rows: pa.Table, measure: str, calendar: TradingCalendar) -> Series:
        """A measure as `monitoring.performance` holds it, of one model version."""
        some = [row for row in rows.sort_by("session").to_pylist() if row["measure"] == measure]
        return Series(
            measure,
            np.array([calendar.ordinal(row["session"]) for row in some], np.int64),
            np.array([row["rows"] for row in some], np.int64),
            np.array([row["value"] for row in some], np.float64),
            np.array([row["yardstick"] for row in some], np.float64),
        )

    def followed_by(self, later: Series) -> Series:
        """The sessions of both, `later` after these."""
        mine = (self.session, self.rows, self.value, self.yardstick)
        theirs = (later.session, later.rows, later.value, later.yardstick)
        return Series(self.measure, *(np.concatenate(both) for both in zip(mine, theirs, strict=True)))


def _series(measure: str, session: np.ndarray, value: np.ndarray, yardstick: np.ndarray | float) -> Series:
    """Means by session, added up in the order of the rows."""
    known, code = np.unique(session, return_inverse=True)
    rows = np.bincount(code, minlength=len(known))
    yardstick = np.broadcast_to(yardstick, value.shape)
    return Series(
        measure,
        known,
        rows,
        np.bincount(code, value, len(known)) / rows,
        np.bincount(code, yardstick, len(known)) / rows,
    )


# -- signals -----------------------------------------------------------------------------------------------------------


def signal_series(
    signals: pa.Table, labels: pa.Table, base_rate: Sequence[float], calendar: TradingCalendar
) -> list[Series]:
    """Hit rate and Brier scores of the signals of one model version.

    Args:
        signals: rows of `serving.live_signals` of the version.
        labels: `features.labels`.
        base_rate: of the labels long and short in training.
        calendar: says what was known when.
    """
    rows = query(
        """
        SELECT symbol, session, side, probability_long, probability_short, long, short,
          greatest(signals.available_at, labels.available_at) AS known_at
        FROM signals JOIN labels USING (symbol, session)
        WHERE probability_long IS NOT NULL AND probability_short IS NOT NULL
        ORDER BY known_at, session, symbol
        """,
        {"signals": signals, "labels": labels},
    )
    instants = rows["known_at"].to_pylist()
    positions = {at: calendar.ordinal(calendar.session_of(at)) for at in set(instants) if calendar.covers(at)}
    known = np.array([positions.get(at, -1) for at in instants], np.int64)
    side = np.array(rows["side"].to_pylist(), str)
    outcome = np.column_stack([rows[name].to_numpy() for name in ("long", "short")]).astype(np.float64)
    probability = np.column_stack([rows[f"probability_{name}"].to_numpy() for name in ("long", "short")])
    told = known >= 0
    of_base = (np.asarray(base_rate) - outcome) ** 2
    excess = (probability - outcome) ** 2 - of_base
    taken = told & (side != "flat")
    hit = np.where(side == "long", outcome[:, 0], outcome[:, 1])
    expected = np.where(side == "long", base_rate[0], base_rate[1])
    return [
        _series(HIT_RATE, known[taken], hit[taken], expected[taken]),
        _series(BRIER_LONG, known[told], excess[told, 0], of_base[told, 0]),
        _series(BRIER_SHORT, known[told], excess[told, 1], of_base[told, 1]),
    ]


# -- schedules ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ServedOrder:
    """A captured order with the schedule that was served for it.

    Attributes:
        ticker: symbol.
        session: exchange date of all its sales.
        known: position of the session from which its outcome is known.
        first_minute: of the session, in which it begins.
        schedule: shares by minute, shape (horizon,).
        expected_bps: what the endpoint expected it to cost.
    """

    ticker: str
    session: dt.date
    known: int
    first_minute: int
    schedule: np.ndarray
    expected_bps: float


def served_orders(captured: pa.Table, calendar: TradingCalendar) -> list[ServedOrder]:
    """Orders of one model that were sold within one session, in the order of the answers.

    Args:
        captured: rows of `serving.captured_requests` of one model, kind execution.
        calendar: says what was known when.
    """
    orders = []
    order_of_answers = captured.sort_by([("available_at", "ascending"), ("event_id", "ascending")])
    for row in order_of_answers.select(["available_at", "response"]).to_pylist():
        answer = json.loads(row["response"])
        session = dt.date.fromisoformat(answer["session"])
        instants = [dt.datetime.fromisoformat(part["timestamp"]) for part in answer["schedule"]]
        if not calendar.covers(row["available_at"]) or not calendar.is_session(session):
            continue
        if instants[-1] >= calendar.close(session):
            continue  # it rolls into another session
        known = max(calendar.ordinal(calendar.session_of(row["available_at"])), calendar.ordinal(session))
        orders.append(
            ServedOrder(
                ticker=answer["ticker"],
                session=session,
                known=known,
                first_minute=int((instants[0] - calendar.opens(session)).total_seconds()) // 60,
                schedule=np.array([part["shares"] for part in answer["schedule"]], np.float64),
                expected_bps=float(answer["expected_cost_bps"]["schedule"]),
            )
        )
    return orders


def cost_series(
    orders: Sequence[ServedOrder],
    days: Mapping[str, RealDays],
    parameters: ExecutionParameters,
    calendar: TradingCalendar,
) -> Series:
    """What served schedules cost beyond what was expected of them, on real minute bars.

    Args:
        orders: of one model version.
        days: minute bars by symbol, with the sessions before the orders'; an order whose session is missing has no outcome.
        parameters: impact of the agent's environment.
        calendar: counts the sessions before an order.
    """
    markets: dict[tuple[str, dt.date], ExecutionMarket | None] = {}
    known, residual, expected = [], [], []
    for order in orders:
        key = order.ticker, order.session
        if key not in markets:
            markets[key] = _session_market(days.get(order.ticker), order.session, calendar)
        market = markets[key]
        if market is None or order.first_minute + len(order.schedule) > market.minutes:
            continue
        known.append(order.known)
        expected.append(order.expected_bps)
        residual.append(
            realized_cost_bps(market, parameters, order.first_minute, order.schedule) - order.expected_bps
        )
    return _series(
        COST_RESIDUAL,
        np.array(known, np.int64),
        np.array(residual, np.float64),
        np.array(expected, np.float64),
    )


def realized_cost_bps(
    market: ExecutionMarket, parameters: ExecutionParameters, first_minute: int, schedule: np.ndarray
) -> float:
    """Cost of a schedule on the one session of a market, without the market's own move, basis points.

    The accounting is `environments.execution.run_schedule`. Permanent impact is relative to the volume of the whole session, whatever
    part of it the schedule takes.
    """
    from quant_assets.environments.execution import ExecutionMarket, run_schedule

    minutes = slice(first_minute, first_minute + len(schedule))
    instants = slice(first_minute, first_minute + len(schedule) + 1)
    part = ExecutionMarket(
        mid=market.mid[:, instants],
        spread=market.spread[:, instants],
        volume_shares=market.volume_shares[:, minutes],
        expected_volume_shares=market.expected_volume_shares[:, minutes],
        daily_volatility=market.daily_volatility,
        draw_id=market.draw_id,
    )
    law = replace(parameters, order_shares=None, horizon_minutes=len(schedule), slippage="at_sale")
    costs = run_schedule(part, law, schedule, order_shares=float(schedule.sum()))
    share = part.expected_volume_shares.sum() / market.expected_volume_shares.sum()
    without_move = costs.implementation_shortfall_bps - costs.slippage_bps
    return float((without_move - (1 - share) * costs.permanent_impact_bps)[0])


def _session_market(
    days: RealDays | None, session: dt.date, calendar: TradingCalendar
) -> ExecutionMarket | None:
    """A session as a market that knows the quarter before it and no more; None where it has no usable minute bars."""
    from quant_assets.simulation.intraday import RealDays
    from quant_assets.simulation.markets import quoted_sessions, real_sessions

    if days is None:
        return None
    since = np.datetime64(calendar.shift(session, -EARLIER_SESSIONS))
    some = (days.sessions >= since) & (days.sessions <= np.datetime64(session))
    found = real_sessions(quoted_sessions(RealDays(*(values[some] for values in days)))[0], newest=1)
    return found[1] if found is not None and found[0][-1] == np.datetime64(session) else None


# -- ADWIN -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Followed:
    """What ADWIN makes of a series, at each of its sessions; all of shape (n,).

    Attributes:
        first: place in the series of the first session of its window: of the newest change, or of the series.
        mean: of the values in the window.
        mean_before: of the window before the newest change, NaN before the first one.
        changed: whether a change was seen just now.
        drifted: whether the newest change was for the worse and lies at most a window of sessions back.
    """

    first: np.ndarray
    mean: np.ndarray
    mean_before: np.ndarray
    changed: np.ndarray
    drifted: np.ndarray


def follow(series: Series, parameters: DriftParameters, together: int) -> Followed:
    """Follow a series from its beginning.

    Args:
        series: see `Series`.
        parameters: delta, scale, and for how many sessions a change for the worse counts.
        together: number of series of the model, which share delta.
    """
    from river.drift import ADWIN

    adwin = ADWIN(delta=parameters.adwin_delta / together, clock=1)
    n, scale_sessions = len(series.value), parameters.adwin_scale_sessions
    worse_sign = -1.0 if series.measure == HIT_RATE else 1.0
    scaled = _scaled(series.value, scale_sessions)
    first, mean, before = np.zeros(n, np.int64), np.empty(n), np.full(n, np.nan)
    changed, drifted = np.zeros(n, bool), np.zeros(n, bool)
    since, mean_before, worse_at = 0, np.nan, None
    for i in range(n):
        # The first values are told together, as soon as their scale is known.
        told = scaled[:0] if i + 1 < scale_sessions else scaled[0 if i + 1 == scale_sessions else i : i + 1]
        for value in told:
            adwin.update(float(value))
        if len(told) and adwin.drift_detected:
            # The part that ADWIN keeps is newer and still holds some of the old: good for the direction alone. It then begins anew.
            kept = max(i + 1 - int(adwin.width), since + 1)
            worse = worse_sign * (series.value[kept : i + 1].mean() - series.value[since:kept].mean()) > 0
            worse_at = series.session[i] if worse else None
            mean_before, since, changed[i] = series.value[since:i].mean(), i, True
        first[i], mean[i], before[i] = since, series.value[since : i + 1].mean(), mean_before
        drifted[i] = worse_at is not None and series.session[i] - worse_at < parameters.window_sessions
    return Followed(first, mean, before, changed, drifted)


def _scaled(values: np.ndarray, scale_sessions: int) -> np.ndarray:
    """Values in ADWIN's range, by the first of them; known from there on."""
    first = values[:scale_sessions]
    if not len(first):
        return values
    # Where the first ones do not differ, any other value is one of the ends.
    width = max(3 * float(first.std()), 1e-9)
    return np.clip(0.5 + (values - first.mean()) / (2 * width), 0.0, 1.0)


# -- the tables --------------------------------------------------------------------------------------------------------


def performance_table(
    model: str,
    version: int,
    series: Sequence[Series],
    first: dt.date,
    last: dt.date,
    parameters: DriftParameters,
    calendar: TradingCalendar,
) -> pa.Table:
    """Rows of `monitoring.performance` for a range of sessions.

    Args:
        model, version: whose outcomes these are.
        series: from the version's first outcome on.
        first, last: sessions.
        parameters: of ADWIN.
        calendar: gives dates and closes to positions.
    """
    rows: list[dict[str, Any]] = []
    low, high = calendar.ordinal(first), calendar.ordinal(last)
    for one in series:
        seen = one.session <= high
        one = Series(
            one.measure, *(values[seen] for values in (one.session, one.rows, one.value, one.yardstick))
        )
        if not len(one.session) or one.session[-1] < low:
            continue
        followed = follow(one, parameters, len(series))

        def day(place: int, one: Series = one) -> dt.date:
            return day_at(calendar, int(one.session[place]))

        for i in np.flatnonzero(one.session >= low).tolist():
            rows.append(
                {
                    "model": model,
                    "model_version": version,
                    "measure": one.measure,
                    "session": day(i),
                    "available_at": calendar.close(day(i)),
                    "rows": int(one.rows[i]),
                    "value": float(one.value[i]),
                    "yardstick": float(one.yardstick[i]),
                    "series_first": day(0),
                    "series_sessions": i + 1,
                    "adwin_first": day(int(followed.first[i])),
                    "adwin_sessions": i + 1 - int(followed.first[i]),
                    "adwin_mean": float(followed.mean[i]),
                    "mean_before": None
                    if np.isnan(followed.mean_before[i])
                    else float(followed.mean_before[i]),
                    "changed": bool(followed.changed[i]),
                    "drifted": bool(followed.drifted[i]),
                }
            )
    spec = PERFORMANCE_TABLE
    return spec.conform(
        pa.Table.from_pylist(rows, pa.schema([f.with_nullable(True) for f in spec.arrow_schema]))
    )


def performance_scored(rows: pa.Table, first: int, last: int, calendar: TradingCalendar) -> list[Scored]:
    """Rows of `monitoring.performance` of one model version as the drift table has them: decided by ADWIN, no p-values.

    Args:
        rows: of the version; those outside the range are left out.
        first, last: positions.
        calendar: gives positions to dates.
    """
    import pyarrow.compute as pc

    bounds = [pa.scalar(day_at(calendar, position), pa.date32()) for position in (first, last)]
    day = rows["session"]
    inside = rows.filter(pc.and_(pc.greater_equal(day, bounds[0]), pc.less_equal(day, bounds[1])))
    by_measure: dict[str, list[dict[str, Any]]] = {}
    for row in inside.sort_by([("measure", "ascending"), ("session", "ascending")]).to_pylist():
        by_measure.setdefault(row["measure"], []).append(row)
    scored = []
    for measure, some in by_measure.items():

        def numbers(name: str, some: list[dict[str, Any]] = some) -> np.ndarray:
            return np.array([[np.nan if row[name] is None else row[name]] for row in some], np.float64)

        nothing = np.full((len(some), 1, 3), np.nan)
        scored.append(
            Scored(
                scope=(PERFORMANCE,),
                columns=(measure,),
                session=np.array([calendar.ordinal(row["session"]) for row in some], np.int64),
                window_first=np.array([calendar.ordinal(row["adwin_first"]) for row in some], np.int64),
                window_sessions=np.array([row["adwin_sessions"] for row in some], np.int64),
                window_rows=np.array([row["adwin_sessions"] for row in some], np.int64),
                found=nothing,
                p=nothing,
                mean=numbers("adwin_mean"),
                sd=np.full((len(some), 1), np.nan),
                reference_mean=numbers("mean_before"),
                reference_sd=np.array([np.nan]),
                drifted=np.array([[row["drifted"]] for row in some], bool),
            )
        )
    return scored
