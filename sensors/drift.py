"""Drift calls for a new model.

The sensor reads the stored table of drift, computes nothing, and launches one redeployment per drift event.
"""

import datetime as dt
import json

import dagster as dg

from jobs.deployment import redeploy_job
from quant_assets.partitions import CALENDAR
from quant_resources.alerts import LogAlerts
from quant_resources.iceberg import Column, TableSpec, Warehouse

# The table as far as the sensor needs it: sensors import no layer.
DRIFT = TableSpec(
    name="monitoring.drift",
    description="Drift per model, column and session.",
    columns=(
        Column("model", "string", "registered model", required=True),
        Column("scope", "string", "what is compared", required=True),
        Column("column", "string", "feature, output or measure", required=True),
        Column("session", "date", "exchange session", required=True),
        Column("event_id", "string", "drift event that goes on, null when none does"),
        Column("drifted", "boolean", "whether this column drifted", required=True),
    ),
    key=("model", "scope", "column", "session"),
    slice_column="session",
    partition_by="year",
)
ASSETS = {
    "mlp_technical": ("models/mlp_technical", "serving/signal_endpoint"),
    "mlp_sentiment": ("models/mlp_sentiment", "serving/signal_endpoint"),
    "mlp_enhanced": ("models/mlp_enhanced", "serving/signal_endpoint"),
}
# A model of the new regime needs sessions of it, to learn from and to be judged by: retrained on the day of the alarm it would have
# none, the gate would keep the champion, and the event's one run would be spent.
WAIT_SESSIONS = 70
# Newest sessions that neither model has seen, which decide between them.
JUDGE_SESSIONS = 40
# What is learned from: the newest ones of the event, and of what came before no more than outweighs them a few times. The newest
# sessions of a training decide when it stops; with the usual fifth of them the new regime would be in no other role.
IN_SAMPLE_SESSIONS = 250
VALIDATION_FRACTION = 0.06
# After a redeployment of a model, further events wait so long.
COOLDOWN_SESSIONS = 40
LOOK_BACK_SESSIONS = 10


@dg.sensor(
    job=redeploy_job,
    minimum_interval_seconds=60,
    description="Launches redeploy_job once per drift event of monitoring/drift, when the event is old enough to learn from; a model that was "
    "redeployed lately waits. Off until a person turns it on, as it retrains and deploys by itself.",
)
def model_drift_sensor(
    context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Warehouse], alerts: LogAlerts
) -> dg.SensorResult | dg.SkipReason:
    """Read the newest sessions of the table; the cursor holds what was told and launched."""
    if not warehouse.exists(DRIFT):
        return dg.SkipReason("monitoring.drift does not exist yet: nights write it")
    cursor = json.loads(context.cursor) if context.cursor else {}
    told, launched = cursor.get("told", {}), cursor.get("launched", {})
    since = dt.date.fromisoformat(cursor["session"]) if "session" in cursor else None
    columns = ["model", "scope", "column", "session", "event_id", "drifted"]
    first = CALENDAR.shift(since, -LOOK_BACK_SESSIONS) if since else None
    rows = warehouse.read(DRIFT, first, CALENDAR.last if first else None, columns=columns).to_pylist()
    if not rows:
        return dg.SkipReason("monitoring.drift has no new session")
    newest = max(row["session"] for row in rows)
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    for model in sorted({row["model"] for row in rows}):
        latest = max(row["session"] for row in rows if row["model"] == model)
        now = [row for row in rows if row["model"] == model and row["session"] == latest]
        event = next((row["event_id"] for row in now if row["event_id"]), None)
        if event is None:
            reasons.append(f"{model}: no drift in session {latest}")
            continue
        drifted = [f"{row['scope']} {row['column']}" for row in now if row["drifted"]]
        if told.get(model) != event:
            told[model] = event
            alerts.send(
                f"{model} drifts",
                f"{event}: {', '.join(drifted[:8]) or 'the event goes on'}",
                session=str(latest),
            )
        if model not in ASSETS:
            reasons.append(f"{model}: {event} was told; a new agent takes posterior_job and train_agents_job")
            continue
        begun = dt.date.fromisoformat(event.rsplit(":", 1)[1])
        age = CALENDAR.ordinal(latest) - CALENDAR.ordinal(begun)
        before = launched.get(model)
        if before and before["event"] == event:
            reasons.append(f"{model}: redeployment for {event} was launched in session {before['session']}")
        elif age < WAIT_SESSIONS:
            reasons.append(
                f"{model}: {event} is {age} sessions old, {WAIT_SESSIONS} are needed to learn from it"
            )
        elif (
            before
            and (
                rest := COOLDOWN_SESSIONS
                - (CALENDAR.ordinal(latest) - CALENDAR.ordinal(dt.date.fromisoformat(before["session"])))
            )
            > 0
        ):
            reasons.append(
                f"{model}: redeployed in session {before['session']}, cools down for {rest} sessions more"
            )
        else:
            launched[model] = {"event": event, "session": str(latest)}
            requests.append(_redeployment(model, event, latest))
    state = json.dumps({"session": str(newest), "told": told, "launched": launched})
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=state)
    return dg.SensorResult(skip_reason=dg.SkipReason("; ".join(reasons)), cursor=state)


def _redeployment(model: str, event: str, session: dt.date) -> dg.RunRequest:
    """Retrain, gate, canary; data up to `session`, of which the newest sessions judge."""
    asset, endpoint = ASSETS[model]
    learning = {
        "in_sample_last": CALENDAR.shift(session, -JUDGE_SESSIONS).isoformat(),
        "in_sample_sessions": IN_SAMPLE_SESSIONS,
        "validation_fraction": VALIDATION_FRACTION,
    }
    ops = {
        asset.replace("/", "__"): {"config": learning},
        endpoint.replace("/", "__"): {"config": {"models": [model]}},
    }
    return dg.RunRequest(
        run_key=event,
        asset_selection=[dg.AssetKey(key.split("/")) for key in (asset, endpoint)],
        run_config={"ops": ops},
        tags={"quant/drift_event": event, "quant/session": str(session)},
    )
