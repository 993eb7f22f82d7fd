"""Labels: does a long (short) trade after this session's close reach its target before its stop? Pure, DuckDB SQL.

Belongs here: the barrier rules. Does not belong here: when a label may be used for training (`models/dataset.py`).

A label looks ahead, so it is stored under the session at whose close its horizon is complete (`known_session`): time
in the table runs forward like in every other one, and a partition needs only the past.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from quant_assets.features.technical import calendar_table
from quant_assets.market.adjustment import STEP_SQL, future_factor_sql
from quant_resources.calendar import TradingCalendar
from quant_resources.duckdb import query

MAX_HORIZON_SESSIONS = 20
LOOKBACK_SESSIONS = 30
TOUCH_TOLERANCE = 1e-12


@dataclass(frozen=True)
class LabelParameters:
    """The trade that a label describes.

    Attributes:
        horizon_sessions: sessions that the trade may last, 1..20.
        profit_target_pct: target, percent of the entry price.
        stop_loss_pct: stop, percent of the entry price.
        rule: `first_touch`: entry at the next session's open, barriers against each bar's high and low, the first
            touch decides, and a bar that touches both counts as the stop. `any_order`: the rule of the published
            proof of concept, kept for comparison: entry at the session's close, barriers against the next closes,
            positive when the target is reached and the stop is not, in whatever order.
    """

    horizon_sessions: int = 5
    profit_target_pct: float = 2.0
    stop_loss_pct: float = 1.5
    rule: Literal["first_touch", "any_order"] = "first_touch"

    def __post_init__(self) -> None:
        if not 1 <= self.horizon_sessions <= MAX_HORIZON_SESSIONS:
            raise ValueError(
                f"horizon_sessions = {self.horizon_sessions} is not in 1..{MAX_HORIZON_SESSIONS}"
            )
        for name in ("profit_target_pct", "stop_loss_pct"):
            if not 0 < getattr(self, name) < 100:
                raise ValueError(f"{name} = {getattr(self, name)} is not in (0, 100)")
        if self.rule not in ("first_touch", "any_order"):
            raise ValueError(f"rule = {self.rule!r} is neither 'first_touch' nor 'any_order'")


def _sql(parameters: LabelParameters) -> str:
    n = parameters.horizon_sessions
    # A price exactly at its level is a touch, and 29 * 1.02 is 29.580000000000002 in floating point: the levels give way
    # by a part in 10^12, far below a tick.
    above, below = f"(1 - {TOUCH_TOLERANCE!r})", f"(1 + {TOUCH_TOLERANCE!r})"
    up = f"(1 + {parameters.profit_target_pct!r} / 100) * {above}"
    stop_long = f"(1 - {parameters.stop_loss_pct!r} / 100) * {below}"
    down = f"(1 - {parameters.profit_target_pct!r} / 100) * {below}"
    stop_short = f"(1 + {parameters.stop_loss_pct!r} / 100) * {above}"
    ahead = [
        item
        for j in range(1, n + 1)
        for item in (
            f"lead(high, {j}) OVER w AS h{j}",
            f"lead(low, {j}) OVER w AS l{j}",
            f"lead(close, {j}) OVER w AS c{j}",
            f"lead(step, {j}) OVER w AS g{j}",
            f"lead(session, {j}) OVER w AS session{j}",
        )
    ]
    if parameters.rule == "first_touch":

        def touched(hit: str, stop: str) -> str:
            # CASE takes the first branch that holds: bars in order, and within a bar the stop before the target.
            branches = [
                branch
                for j in range(1, n + 1)
                for branch in (
                    f"WHEN {stop.format(j=j)} THEN {-j}",
                    f"WHEN {hit.format(j=j)} THEN {j}",
                )
            ]
            return "CASE " + " ".join(branches) + " ELSE 0 END"

        outcome = [
            touched(f"h{{j}} * f{{j}} >= entry * {up}", f"l{{j}} * f{{j}} <= entry * {stop_long}")
            + " AS long_touch",
            touched(f"l{{j}} * f{{j}} <= entry * {down}", f"h{{j}} * f{{j}} >= entry * {stop_short}")
            + " AS short_touch",
        ]
        end = "CASE greatest(CASE long_touch WHEN 0 THEN $n ELSE abs(long_touch) END, CASE short_touch WHEN 0 THEN $n ELSE abs(short_touch) END)"
        end += " ".join(["", *(f"WHEN {j} THEN session{j}" for j in range(1, n + 1)), "END"])
    else:
        # In units of the signal's own close: the first session's step counts too.
        high = "greatest(" + ", ".join(f"c{j} * f{j} * g1" for j in range(1, n + 1)) + ")"
        low = "least(" + ", ".join(f"c{j} * f{j} * g1" for j in range(1, n + 1)) + ")"
        outcome = [
            f"CASE WHEN {high} >= close * {up} AND {low} > close * {stop_long} THEN 1 ELSE 0 END AS long_touch",
            f"CASE WHEN {low} <= close * {down} AND {high} < close * {stop_short} THEN 1 ELSE 0 END AS short_touch",
        ]
        end = f"session{n}"
    join = ",\n    ".join
    return f"""
WITH bars_ AS (
  SELECT bars.*, {STEP_SQL} AS step, position FROM bars JOIN calendar USING (session)
), ahead AS (
  SELECT symbol, session, close, position, lead(position, {n}) OVER w AS last_position,
    lead(available_at, {n}) OVER w AS known_at, lead(open) OVER w AS entry,
    {join(ahead)}
  FROM bars_ WINDOW w AS (PARTITION BY symbol ORDER BY session)
), factors AS (
  SELECT *, {join(future_factor_sql(n))} FROM ahead
  WHERE session{n} BETWEEN $first AND $last AND last_position - position <= {LOOKBACK_SESSIONS}
), touched AS (
  SELECT *, {join(outcome)} FROM factors
)
SELECT symbol, session, session{n} AS known_session, known_at AS available_at,
  CAST(long_touch > 0 AS INTEGER) AS long, CAST(short_touch > 0 AS INTEGER) AS short,
  {end} AS label_end_session,
  CAST($n AS INTEGER) AS horizon_sessions, CAST($target AS DOUBLE) AS profit_target_pct,
  CAST($stop AS DOUBLE) AS stop_loss_pct, $rule AS rule
FROM touched
ORDER BY symbol, session
"""


def labels(
    bars: pa.Table,
    calendar: TradingCalendar,
    first: dt.date,
    last: dt.date,
    parameters: LabelParameters | None = None,
) -> pa.Table:
    """Labels that become complete at the close of a session in `first`..`last`.

    Args:
        bars: `market.bars` rows of the range and at least the 30 sessions before it.
        calendar: covers the bars.
        first, last: range of `known_session`, both included.
        parameters: the trade; the published one (2 % / 1.5 % within 5 sessions) by default.

    Returns:
        Columns as `features.tables.LABELS`. `label_end_session` is the session that decided the slower of the two
        labels: the first touch, or the end of the horizon.
    """
    import pyarrow.compute as pc

    parameters = parameters or LabelParameters()
    bounds = pc.min_max(bars["session"]).as_py() if bars.num_rows else {"min": first, "max": last}
    span = calendar_table(calendar, bounds["min"], bounds["max"])
    values = {
        "first": first,
        "last": last,
        "n": parameters.horizon_sessions,
        "target": parameters.profit_target_pct,
        "stop": parameters.stop_loss_pct,
        "rule": parameters.rule,
    }
    return query(_sql(parameters), {"bars": bars, "calendar": span}, values)
