"""What an endpoint or the registry calls for: a champion that is not served, an endpoint that is down or sick.

Ticks look at precomputed state alone (the endpoint's journal, the registry's SQLite file) and return in milliseconds.
"""

import json

import dagster as dg

from jobs.deployment import approve_job, deploy_job, restart_endpoint_job, rollback_job
from quant_resources.alerts import LogAlerts
from quant_resources.endpoints import EndpointError, Endpoints, EndpointStatus
from quant_resources.registry import CHALLENGER, CHAMPION, ModelRegistry

# Endpoint -> the model that it serves and the asset that deploys it.
SERVED = {
    "execution": ("sac_execution", "serving/execution_endpoint"),
    "signal-mlp-technical": ("mlp_technical", "serving/signal_endpoint"),
    "signal-mlp-sentiment": ("mlp_sentiment", "serving/signal_endpoint"),
}
# Since the tick before: so many answers of 500 and above, or wrong in themselves, are an illness of what serves.
MOST_ERRORS = 5
MOST_ERROR_SHARE = 0.05


@dg.sensor(
    jobs=[deploy_job, approve_job],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Deploys a champion that its endpoint does not serve yet, once per version; under QUANT_PROMOTION=approval, makes a challenger "
    "champion that passed its gate and that a person tagged `approved` = `true`. Endpoints that were never deployed are left alone.",
)
def new_champion_sensor(
    context: dg.SensorEvaluationContext,
    registry: dg.ResourceParam[ModelRegistry],
    endpoints: dg.ResourceParam[Endpoints],
) -> dg.SensorResult | dg.SkipReason:
    """Compare the registry's aliases with what serves."""
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    standing = {(s.name, s.alias): s for s in registry.standing()}
    for name, (model, asset) in SERVED.items():
        challenger = standing.get((model, CHALLENGER))
        if challenger and challenger.approved and challenger.gate == "passed":
            requests.append(
                dg.RunRequest(
                    run_key=f"approve:{model}:{challenger.version}",
                    job_name="approve_job",
                    run_config={
                        "ops": {
                            "approve_version": {
                                "config": {
                                    "model": model,
                                    "version": challenger.version,
                                    "approved_by": "a tag in the registry",
                                }
                            }
                        }
                    },
                )
            )
        champion = standing.get((model, CHAMPION))
        status = endpoints.endpoint(name).status()
        if champion is None or status.phase == "absent":
            reasons.append(f"{name}: {'no champion' if champion is None else 'not deployed'}")
        elif status.phase != "in_service":
            reasons.append(f"{name}: {status.phase}")
        elif status.model_version == champion.version:
            reasons.append(f"{name}: serves the champion, v{champion.version}")
        else:
            requests.append(
                dg.RunRequest(
                    run_key=f"deploy:{model}:{champion.version}",
                    job_name="deploy_job",
                    asset_selection=[dg.AssetKey(asset.split("/"))],
                    run_config=_only(asset, model),
                    tags={"quant/endpoint": name, "quant/model_version": f"{model} v{champion.version}"},
                )
            )
    return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason("; ".join(reasons))


def _only(asset: str, model: str) -> dict[str, object]:
    """Config of the deploying asset that leaves the other models' endpoints alone."""
    if asset != "serving/signal_endpoint":
        return {}
    return {"ops": {asset.replace("/", "__"): {"config": {"models": [model]}}}}


@dg.sensor(
    jobs=[restart_endpoint_job, rollback_job],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="An endpoint that should serve and does not is restarted; one whose answers go wrong since the last tick is rolled back to its "
    "previous version. Either way a person is told.",
)
def endpoint_health_sensor(
    context: dg.SensorEvaluationContext, endpoints: dg.ResourceParam[Endpoints], alerts: LogAlerts
) -> dg.SensorResult | dg.SkipReason:
    """Look at every endpoint; the cursor holds what was counted at the last tick and how often each was brought back."""
    seen = json.loads(context.cursor) if context.cursor else {}
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    for name in SERVED:
        before = seen.get(name, {"config": None, "requests": 0, "wrong": 0, "failures": 0, "down": False})
        try:
            status = endpoints.endpoint(name).status()
        except EndpointError as error:
            reasons.append(f"{name}: cannot be seen: {error}")
            continue
        now = {**before, **_counted(status), "down": status.phase == "failed"}
        illness = None
        if status.phase == "failed":
            reason = (status.message or "it does not serve").split("; restart() starts it")[0]
            if not before["down"]:
                now["failures"] = before["failures"] + 1
                alerts.send(f"endpoint {name} is down", reason)
            requests.append(_request("restart", name, now["failures"], status, reason))
        elif status.phase == "in_service":
            illness = _illness(before, now)
            if illness and status.previous_config:
                now["failures"] = before["failures"] + 1
                alerts.send(f"endpoint {name} answers wrongly", illness)
                requests.append(_request("rollback", name, now["failures"], status, illness))
            elif illness:
                alerts.send(
                    f"endpoint {name} answers wrongly",
                    f"{illness}; there is no previous version to go back to",
                )
        reasons.append(f"{name}: {illness or status.phase}")
        seen[name] = now
    cursor = json.dumps(seen)
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    return dg.SensorResult(skip_reason=dg.SkipReason("; ".join(reasons)), cursor=cursor)


def _counted(status: EndpointStatus) -> dict[str, object]:
    serving = [v for v in status.variants if v.config == status.config]
    return {
        "config": status.config,
        "requests": sum(v.requests for v in serving),
        "wrong": sum(max(v.errors_5xx, v.invalid) for v in serving),
    }


def _illness(before: dict[str, int], now: dict[str, int]) -> str | None:
    """What is wrong with the answers since the last tick; counters of a restarted process begin at 0 again."""
    again = now["config"] == before["config"] and now["requests"] >= before["requests"]
    asked = now["requests"] - (before["requests"] if again else 0)
    wrong = now["wrong"] - (before["wrong"] if again else 0)
    if wrong > MOST_ERRORS and wrong > MOST_ERROR_SHARE * asked:
        return f"{wrong} of {asked} answers since the last look were errors or invalid"
    return None


def _request(kind: str, name: str, number: int, status: EndpointStatus, reason: str) -> dg.RunRequest:
    op, job = (
        ("restart_endpoint", "restart_endpoint_job")
        if kind == "restart"
        else ("roll_back_endpoint", "rollback_job")
    )
    # One run per failure: the number is part of the key, and it grows only when an endpoint that was well falls ill again.
    return dg.RunRequest(
        run_key=f"{kind}:{name}:{status.config}:{number}",
        job_name=job,
        run_config={"ops": {op: {"config": {"endpoint": name, "reason": reason[:500]}}}},
        tags={"quant/endpoint": name},
    )
