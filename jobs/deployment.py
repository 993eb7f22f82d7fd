"""Deploying, and everything around it: redeployment after drift, rollback, approval, restart, teardown.

Jobs that move what serves by hand are ops: they make no asset, and the asset's next materialization says what is so.
"""

import dagster as dg

from quant_resources.alerts import LogAlerts
from quant_resources.endpoints import Endpoints, EndpointStatus
from quant_resources.registry import APPROVED_TAG, CHALLENGER, CHAMPION, GATE_TAG, ModelRegistry

ENDPOINTS = dg.AssetSelection.assets("serving/execution_endpoint", "serving/signal_endpoint")
CLASSIFIERS = dg.AssetSelection.assets("models/mlp_technical", "models/mlp_sentiment", "models/mlp_enhanced")
# On SageMaker a fleet starts, bakes twice at least three minutes, and the old one stays for two more.
WAIT_SECONDS = 2700.0

deploy_job = dg.define_asset_job(
    "deploy_job",
    selection=ENDPOINTS,
    description="Put the champions behind their endpoints: preflight, canary, all traffic, or back by itself. What serves already is left "
    "alone.",
    executor_def=dg.in_process_executor,
)

redeploy_job = dg.define_asset_job(
    "redeploy_job",
    selection=CLASSIFIERS | dg.AssetSelection.assets("serving/signal_endpoint"),
    description="Retrain the classifiers on data up to now, gate, canary, promote or keep. The drift sensor launches it for the models that "
    "drift. An execution agent learns from a posterior, so a new one takes posterior_job and train_agents_job.",
    executor_def=dg.in_process_executor,
)


class EndpointChoice(dg.Config):
    """Which endpoint, and why.

    Attributes:
        endpoint: its name: execution, signal-mlp-technical, signal-mlp-sentiment, signal-mlp-enhanced.
        reason: kept in its history.
    """

    endpoint: str
    reason: str = "by hand"


def _told(context: dg.OpExecutionContext, status: EndpointStatus) -> None:
    context.log.info("%s: %s, serves %s. %s", status.name, status.phase, status.config, status.message)
    context.add_output_metadata(
        {
            "endpoint": status.name,
            "phase": status.phase,
            "serves": f"{status.model} v{status.model_version}" if status.model else "nothing",
            "config": status.config or "none",
            "message": status.message,
        }
    )


@dg.op
def roll_back_endpoint(
    context: dg.OpExecutionContext,
    config: EndpointChoice,
    endpoints: dg.ResourceParam[Endpoints],
    registry: dg.ResourceParam[ModelRegistry],
    alerts: LogAlerts,
) -> None:
    """Bring the previous version back, and make it champion again, so that no sensor deploys the newer one at once."""
    endpoint = endpoints.endpoint(config.endpoint)
    before = endpoint.status()
    endpoint.rollback(config.reason)
    status = endpoint.wait(WAIT_SECONDS, lambda now: context.log.info("%s: %s", now.name, now.phase))
    if status.phase != "in_service" or status.last_outcome != "rolled_back":
        raise dg.Failure(
            f"{status.name} was not rolled back: {status.phase}, serves {status.config}. {status.message}",
            allow_retries=False,
        )
    # Out of a rollout it is the target's version that leaves, otherwise the one that served.
    standing = {(s.name, s.alias): s.version for s in registry.standing()}
    champion = standing.get((str(status.model), CHAMPION))
    left = before.model_version if before.target_config is None else champion
    if status.model and status.model_version and champion == left != status.model_version:
        assert champion is not None
        registry.restore(status.model, status.model_version, champion, config.reason)
    alerts.send(
        f"{status.name} rolled back", f"{config.reason}; serves {status.config}", run_id=context.run_id
    )
    _told(context, status)


@dg.op
def restart_endpoint(
    context: dg.OpExecutionContext,
    config: EndpointChoice,
    endpoints: dg.ResourceParam[Endpoints],
    alerts: LogAlerts,
) -> None:
    """Bring an endpoint that should serve and does not back to its config."""
    endpoint = endpoints.endpoint(config.endpoint)
    endpoint.restart(config.reason)
    status = endpoint.wait(WAIT_SECONDS)
    if status.phase != "in_service":
        raise dg.Failure(f"{status.name} is {status.phase}: {status.message}", allow_retries=False)
    alerts.send(f"{status.name} restarted", f"{config.reason}; serves {status.config}", run_id=context.run_id)
    _told(context, status)


@dg.op
def delete_endpoint(
    context: dg.OpExecutionContext, config: EndpointChoice, endpoints: dg.ResourceParam[Endpoints]
) -> None:
    """Take an endpoint down with its configs. Captured requests, bundles and registered models stay."""
    endpoint = endpoints.endpoint(config.endpoint)
    endpoint.delete()
    _told(context, endpoint.status())


class Approval(dg.Config):
    """A person lets a challenger serve.

    Attributes:
        model: registered model.
        version: of it; the challenger when None.
        approved_by: who, kept on the version.
        although_it_failed: also a version whose gate failed, or that was rolled back.
    """

    model: str
    version: int | None = None
    approved_by: str = "a person"
    although_it_failed: bool = False


@dg.op
def approve_version(
    context: dg.OpExecutionContext, config: Approval, registry: dg.ResourceParam[ModelRegistry]
) -> None:
    """Make it champion; the sensor for new champions deploys it."""
    version = (
        registry.find(config.model, CHALLENGER)
        if config.version is None
        else registry.version(config.model, config.version)
    )
    if version is None:
        raise dg.Failure(
            f"{config.model} has no challenger: there is nothing to approve. Name a version, or train one (train_job).",
            allow_retries=False,
        )
    gate = registry.client.get_model_version(version.name, str(version.version)).tags.get(GATE_TAG, "")
    if gate in ("failed", "rolled_back"):
        if not config.although_it_failed:
            raise dg.Failure(
                f"{version.name} v{version.version}: gate {gate}. Set although_it_failed to let it serve all the same.",
                allow_retries=False,
            )
        registry.tag(version, GATE_TAG, "passed")
        registry.tag(version, "gate_reason", f"{gate}, and let pass by {config.approved_by}")
    registry.tag(version, APPROVED_TAG, "true")
    registry.tag(version, "approved_by", config.approved_by)
    registry.promote(version, f"approved by {config.approved_by}")
    context.log.info("%s v%d is champion, approved by %s", version.name, version.version, config.approved_by)


@dg.job(
    description="Manual rollback: bring an endpoint's previous version back, without a canary.",
    executor_def=dg.in_process_executor,
)
def rollback_job() -> None:
    """One endpoint back to its previous config."""
    roll_back_endpoint()


@dg.job(
    description="Bring an endpoint that should serve and does not back to its config; the health sensor launches it.",
    executor_def=dg.in_process_executor,
)
def restart_endpoint_job() -> None:
    """One endpoint back to its own config."""
    restart_endpoint()


@dg.job(
    description="Take an endpoint down: processes or instances, configs, models. Captured requests and the registry stay.",
    executor_def=dg.in_process_executor,
)
def teardown_job() -> None:
    """One endpoint away."""
    delete_endpoint()


@dg.job(
    description="A person lets a challenger that passed its gate serve (QUANT_PROMOTION=approval).",
    executor_def=dg.in_process_executor,
)
def approve_job() -> None:
    """One version becomes champion."""
    approve_version()
