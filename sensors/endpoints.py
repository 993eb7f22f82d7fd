"""What an endpoint or the registry calls for: a champion that is not served, an endpoint that is down or sick.

Ticks look at precomputed state alone (the endpoint's journal or its description by AWS, the registry's SQLite file) and compute nothing.
"""

import json
import time
from typing import Any

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
    "signal-mlp-enhanced": ("mlp_enhanced", "serving/signal_endpoint"),
}
# Since the tick before: so many answers of 500 and above, or wrong in themselves, are an illness of what serves.
MOST_ERRORS = 5
MOST_ERROR_SHARE = 0.05
# What a run did not bring about is asked for again after so long, so many times in all.
AGAIN_AFTER_SECONDS = 600.0
MOST_ATTEMPTS = 3


@dg.sensor(
    jobs=[deploy_job, approve_job],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Deploys a champion that its endpoint does not serve yet; a deployment that ended without an outcome (a killed run, a lost "
    "network) is tried again after a while, three times in all, and then a person is told. Under QUANT_PROMOTION=approval, makes a "
    "challenger champion that passed its gate and that a person tagged `approved` = `true`. Endpoints that were never deployed are left "
    "alone.",
)
def new_champion_sensor(
    context: dg.SensorEvaluationContext,
    registry: dg.ResourceParam[ModelRegistry],
    endpoints: dg.ResourceParam[Endpoints],
    alerts: LogAlerts,
) -> dg.SensorResult:
    """Compare the registry's aliases with what serves; the cursor holds the attempts for what is not served yet."""
    attempts = json.loads(context.cursor) if context.cursor else {}
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    standing = {(s.name, s.alias): s for s in registry.standing()}
    now = time.time()
    for name, (model, asset) in SERVED.items():
        challenger = standing.get((model, CHALLENGER))
        if challenger and challenger.approved and challenger.gate == "passed":
            requests.append(_approval(model, challenger.version))
        champion = standing.get((model, CHAMPION))
        try:
            status = endpoints.endpoint(name).status()
        except EndpointError as error:
            reasons.append(f"{name}: cannot be seen: {error}")
            continue
        if champion is None or status.phase == "absent":
            reasons.append(f"{name}: {'no champion' if champion is None else 'not deployed'}")
        elif status.phase != "in_service":
            reasons.append(f"{name}: {status.phase}")
        elif status.model_version == champion.version:
            attempts.pop(name, None)
            reasons.append(f"{name}: serves the champion, v{champion.version}")
        else:
            made = attempts.get(name)
            if made is None or made["version"] != champion.version or made["instead_of"] != status.config:
                made = {"version": champion.version, "instead_of": status.config, "number": 0, "at": 0.0}
            waits = AGAIN_AFTER_SECONDS - (now - made["at"])
            if made["number"] and waits > 0:
                reasons.append(
                    f"{name}: deployment {made['number']} of v{champion.version} was launched, again in {waits:.0f} s"
                )
            elif made["number"] >= MOST_ATTEMPTS:
                reasons.append(f"{name}: v{champion.version} was not deployed in {MOST_ATTEMPTS} attempts")
            else:
                made = {**made, "number": made["number"] + 1, "at": now}
                requests.append(_deployment(name, model, asset, champion.version, made))
                if made["number"] == MOST_ATTEMPTS:
                    alerts.send(
                        f"endpoint {name} does not take {model} v{champion.version}",
                        f"this is attempt {MOST_ATTEMPTS}, the last; it serves v{status.model_version}: {status.message}",
                    )
            attempts[name] = made
    cursor = json.dumps(attempts)
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    return dg.SensorResult(skip_reason=dg.SkipReason("; ".join(reasons)), cursor=cursor)


def _approval(model: str, version: int) -> dg.RunRequest:
    config = {"model": model, "version": version, "approved_by": "a tag in the registry"}
    return dg.RunRequest(
        run_key=f"approve:{model}:{version}",
        job_name="approve_job",
        run_config={"ops": {"approve_version": {"config": config}}},
    )


def _deployment(name: str, model: str, asset: str, version: int, made: dict[str, Any]) -> dg.RunRequest:
    # The moment is part of the key: the same version may be deployed again long after, when a person moved the alias back.
    return dg.RunRequest(
        run_key=f"deploy:{model}:{version}:{made['number']}:{made['at']:.0f}",
        job_name="deploy_job",
        asset_selection=[dg.AssetKey(asset.split("/"))],
        run_config=_only(asset, model),
        tags={"quant/endpoint": name, "quant/model_version": f"{model} v{version}"},
    )


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
        before = seen.get(
            name, {"config": None, "requests": 0, "wrong": 0, "ill": None, "number": 0, "at": 0.0}
        )
        try:
            status = endpoints.endpoint(name).status()
        except EndpointError as error:
            reasons.append(f"{name}: cannot be seen: {error}")
            continue
        now = {**before, **_counted(status)}
        kind, reason = _diagnosis(status, before, now)
        if kind is None:
            seen[name] = {**now, "ill": None, "number": 0, "at": 0.0}
            reasons.append(f"{name}: {reason}")
            continue
        if before["ill"] != kind:
            now |= {"ill": kind, "number": 0, "at": 0.0, "since": time.time()}
            alerts.send(f"endpoint {name} {'is down' if kind == 'restart' else 'answers wrongly'}", reason)
        waits = AGAIN_AFTER_SECONDS - (time.time() - now["at"])
        if kind == "rollback" and not status.previous_config:
            reasons.append(f"{name}: {reason}; there is no previous version to go back to")
        elif now["number"] and waits > 0:
            reasons.append(f"{name}: {kind} {now['number']} was launched, again in {waits:.0f} s")
        elif now["number"] >= MOST_ATTEMPTS:
            reasons.append(f"{name}: {MOST_ATTEMPTS} times {kind} did not help: {reason}")
        else:
            now |= {"number": now["number"] + 1, "at": time.time()}
            requests.append(_request(kind, name, now, status, reason))
            if now["number"] == MOST_ATTEMPTS:
                alerts.send(
                    f"endpoint {name} does not get well", f"attempt {MOST_ATTEMPTS}, the last: {reason}"
                )
        seen[name] = now
    cursor = json.dumps(seen)
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    return dg.SensorResult(skip_reason=dg.SkipReason("; ".join(reasons)), cursor=cursor)


def _diagnosis(status: EndpointStatus, before: dict[str, Any], now: dict[str, Any]) -> tuple[str | None, str]:
    """What to do about an endpoint (restart, rollback, nothing), and why."""
    if status.phase == "failed" and status.config is not None:
        return "restart", (status.message or "it does not serve").split("; restart() starts it")[0]
    if status.phase == "failed":
        return None, f"never served: {status.message}"
    if status.phase == "in_service" and (illness := _illness(before, now)):
        return "rollback", illness
    return None, status.phase


def _counted(status: EndpointStatus) -> dict[str, Any]:
    serving = [v for v in status.variants if v.config == status.config]
    return {
        "config": status.config,
        "requests": sum(v.requests for v in serving),
        "wrong": sum(v.errors_5xx + v.invalid for v in serving),
    }


def _illness(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What is wrong with the answers since the last tick; counters of a restarted process begin at 0 again."""
    again = now["config"] == before["config"] and now["requests"] >= before["requests"]
    asked = now["requests"] - (before["requests"] if again else 0)
    wrong = now["wrong"] - (before["wrong"] if again else 0)
    if wrong > MOST_ERRORS and wrong > MOST_ERROR_SHARE * asked:
        return f"{wrong} of {asked} answers since the last look were errors or invalid"
    return None


def _request(
    kind: str, name: str, attempt: dict[str, Any], status: EndpointStatus, reason: str
) -> dg.RunRequest:
    op, job = (
        ("restart_endpoint", "restart_endpoint_job")
        if kind == "restart"
        else ("roll_back_endpoint", "rollback_job")
    )
    return dg.RunRequest(
        # One run per attempt of one illness, however often the tick comes, and whatever becomes of the cursor.
        run_key=f"{kind}:{name}:{status.config}:{attempt['since']:.0f}:{attempt['number']}",
        job_name=job,
        run_config={"ops": {op: {"config": {"endpoint": name, "reason": reason[:500]}}}},
        # Ahead of trainings that wait for a free slot.
        tags={"quant/endpoint": name, "dagster/priority": "10"},
    )
