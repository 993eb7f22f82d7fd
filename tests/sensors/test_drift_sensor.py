"""The drift sensor on real tables: it waits, launches once per event, cools down, and says why it does nothing."""

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from quant_assets.monitoring.tables import DRIFT as STORED
from quant_assets.partitions import CALENDAR
from quant_resources.alerts import LogAlerts
from quant_resources.iceberg import Warehouse
from sensors.drift import COOLDOWN_SESSIONS, DRIFT, JUDGE_SESSIONS, WAIT_SESSIONS, model_drift_sensor

BEGUN = dt.date(2011, 3, 1)


class Watch:
    """A warehouse with a drift table, and the sensor with its cursor."""

    def __init__(self, folder: Path) -> None:
        self.warehouse = Warehouse(folder / "home")
        self.alerts = LogAlerts(alerts_file=str(folder / "alerts.jsonl"))
        self.cursor: str | None = None

    def night(self, session: dt.date, event: str | None, model: str = "mlp_technical") -> None:
        """Rows of one session: two columns, one of them drifted while an event goes on."""
        self.nights([session], event, model)

    def nights(self, sessions: Sequence[dt.date], event: str | None, model: str = "mlp_technical") -> None:
        values: dict[str, Any] = {"string": "x", "double": 0.5, "long": 1, "int": 1, "boolean": False}
        rows = []
        for session in sessions:
            values |= {"date": session, "timestamptz": CALENDAR.close(session)}
            base = {c.name: values[c.type] if c.required else None for c in STORED.columns}
            for column in ("roc_2_pct", "rsi_14"):
                rows.append(
                    {
                        **base,
                        "model": model,
                        "scope": "feature",
                        "column": column,
                        "session": session,
                        "event_id": event,
                        "drifted": bool(event) and column == "roc_2_pct",
                    }
                )
        data = pa.Table.from_pylist(rows, schema=STORED.arrow_schema)
        kept = self.warehouse.read(STORED, sessions[0], sessions[-1])
        others = [r for r in kept.to_pylist() if r["model"] != model]
        if others:
            data = pa.concat_tables([data, pa.Table.from_pylist(others, schema=STORED.arrow_schema)])
        self.warehouse.write(STORED, data, sessions[0], sessions[-1])

    def tick(self) -> dg.SensorResult:
        """One evaluation; the cursor goes on."""
        context = dg.build_sensor_context(
            cursor=self.cursor, resources={"warehouse": self.warehouse, "alerts": self.alerts}
        )
        found = model_drift_sensor(context)
        if isinstance(found, dg.SkipReason):
            return dg.SensorResult(skip_reason=found)
        assert isinstance(found, dg.SensorResult)
        self.cursor = found.cursor
        return found

    @property
    def told(self) -> list[dict[str, str]]:
        path = Path(self.alerts.alerts_file)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def event(model: str = "mlp_technical", version: int = 1, begun: dt.date = BEGUN) -> str:
    return f"{model}:v{version}:{begun}"


def reason(found: dg.SensorResult) -> str:
    assert not found.run_requests
    assert isinstance(found.skip_reason, dg.SkipReason)
    return str(found.skip_reason.skip_message)


def test_without_a_table_it_says_who_writes_it(watch: Watch) -> None:
    assert "does not exist yet" in reason(watch.tick())


def test_without_drift_it_says_up_to_when(watch: Watch) -> None:
    watch.night(BEGUN, None)
    assert reason(watch.tick()) == f"mlp_technical: no drift in session {BEGUN}"
    assert watch.told == []


def test_a_new_event_is_told_at_once_and_redeployed_once_when_there_is_enough_to_learn_from(
    watch: Watch,
) -> None:
    watch.night(BEGUN, event())
    assert f"0 sessions old, {WAIT_SESSIONS} are needed" in reason(watch.tick())
    (alert,) = watch.told
    assert alert["title"] == "mlp_technical drifts"
    assert "feature roc_2_pct" in alert["body"]
    ripe = CALENDAR.shift(BEGUN, WAIT_SESSIONS)
    watch.nights(CALENDAR.sessions(BEGUN, CALENDAR.shift(ripe, -1)), event())
    assert f"{WAIT_SESSIONS - 1} sessions old" in reason(watch.tick())
    watch.night(ripe, event())
    found = watch.tick()
    (request,) = found.run_requests or []
    assert request.run_key == event()
    assert [key.to_user_string() for key in request.asset_selection or ()] == [
        "models/mlp_technical",
        "serving/signal_endpoint",
    ]
    ops = request.run_config["ops"]
    last = dt.date.fromisoformat(ops["models__mlp_technical"]["config"]["in_sample_last"])
    assert CALENDAR.ordinal(ripe) - CALENDAR.ordinal(last) == JUDGE_SESSIONS
    assert ops["serving__signal_endpoint"]["config"]["models"] == ["mlp_technical"]
    # The same event, later: nothing more, and nobody is told twice.
    watch.nights(CALENDAR.sessions(ripe, CALENDAR.shift(ripe, 3)), event())
    assert f"redeployment for {event()} was launched in session {ripe}" in reason(watch.tick())
    assert len(watch.told) == 1


def test_after_a_redeployment_the_next_event_cools_down(watch: Watch) -> None:
    ripe = CALENDAR.shift(BEGUN, WAIT_SESSIONS)
    watch.night(ripe, event())
    assert watch.tick().run_requests
    # An event of the new version that began long ago, as when a table is written again.
    second = event(version=2)
    watch.night(CALENDAR.shift(ripe, 1), second)
    assert f"cools down for {COOLDOWN_SESSIONS - 1} sessions more" in reason(watch.tick())
    watch.night(CALENDAR.shift(ripe, COOLDOWN_SESSIONS), second)
    (request,) = watch.tick().run_requests or []
    assert request.run_key == second


def test_each_model_has_its_own_event_and_its_own_run(watch: Watch) -> None:
    ripe = CALENDAR.shift(BEGUN, WAIT_SESSIONS)
    watch.night(ripe, event())
    others = ("mlp_sentiment", "mlp_enhanced")
    for model in others:
        watch.night(ripe, event(model), model)
    found = watch.tick()
    assert {r.run_key for r in found.run_requests or []} == {event(), *map(event, others)}


def test_the_columns_that_it_reads_are_those_of_the_stored_table() -> None:
    stored = {c.name: (c.type, c.required) for c in STORED.columns}
    assert {c.name: (c.type, c.required) for c in DRIFT.columns}.items() <= stored.items()
    assert (DRIFT.name, DRIFT.slice_column, set(DRIFT.key)) == (
        STORED.name,
        STORED.slice_column,
        set(STORED.key),
    )
