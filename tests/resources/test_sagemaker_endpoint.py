"""Endpoints on SageMaker against a moto server: the exact calls, every way in which a rollout ends, what AWS refuses, no credentials."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# Tests are collected one by one, so a neighbour is no member of a package.
sys.path.append(str(Path(__file__).parent))
from sagemaker_shim import BUCKET, IMAGE, ROLE, Call, FakeAws, fake_aws

from quant_resources.endpoints import (
    Endpoint,
    EndpointDown,
    EndpointError,
    EndpointStatus,
    Release,
    Rollout,
)
from quant_resources.endpoints.sagemaker import SageMakerEndpoint, SageMakerEndpoints, lineage_properties
from quant_resources.endpoints.sagemaker_errors import action_of
from quant_resources.endpoints.sagemaker_state import PHASES, Asked
from quant_resources.settings import load_settings

# moto knows no throttling.
pytestmark = pytest.mark.filterwarnings("ignore:Exception.SagemakerClientError.:UserWarning")

REPOSITORY = Path(__file__).resolve().parents[2]
ROLLOUT = Rollout(canary_share=0.2, bake_seconds=300, max_errors_5xx=2, max_p99_latency_ms=250)
MakeRelease = Callable[..., Release]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeAws]:
    with fake_aws() as aws:
        yield aws


@pytest.fixture(scope="module")
def clients(server: FakeAws) -> SageMakerEndpoints:
    """Its session and clients are shared, as making them takes a second."""
    return SageMakerEndpoints(ROLE, IMAGE, BUCKET)


@pytest.fixture
def aws(server: FakeAws) -> FakeAws:
    server.reset()
    server.serve = lambda config, body: (200, {}, json.dumps({"config": config}).encode())
    return server


@pytest.fixture
def make_account(aws: FakeAws, clients: SageMakerEndpoints) -> Callable[..., SageMakerEndpoints]:
    def make(**settings: Any) -> SageMakerEndpoints:
        quick = {"poll_seconds": 0.001}
        arguments = {"role_arn": ROLE, "image_uri": IMAGE, "bucket": BUCKET, **quick, **settings}
        account = SageMakerEndpoints(**arguments)
        account.session, account._clients = clients.session, clients._clients
        return account

    return make


@pytest.fixture
def account(make_account: Callable[..., SageMakerEndpoints]) -> SageMakerEndpoints:
    return make_account()


@pytest.fixture
def endpoint(account: SageMakerEndpoints) -> SageMakerEndpoint:
    return account.endpoint("execution")


@pytest.fixture
def release(tmp_path: Path) -> MakeRelease:
    def make(version: int = 1, **settings: Any) -> Release:
        bundle = tmp_path / f"bundle-{version}.tar.gz"
        bundle.write_bytes(b"bundle of version %d" % version)
        settings = {"tags": {"git_commit": "c0ffee", "run": "of a test"}, **settings}
        return Release.of(bundle, "sac_execution", version, **settings)

    return make


@pytest.fixture
def served(aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease) -> EndpointStatus:
    """Version 1 serves."""
    endpoint.deploy(release(1), ROLLOUT)
    status = endpoint.wait(30)
    assert (status.phase, status.model_version) == ("in_service", 1)
    aws.calls.clear()
    return status


def config_of(endpoint: SageMakerEndpoint, release: Release) -> str:
    return endpoint.config_of(release)


def holds(whole: Any, part: Any) -> bool:
    """Whether all that `part` says is said by `whole`."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(k in whole and holds(whole[k], v) for k, v in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part)


def assert_calls(calls: list[Call], expected: list[tuple[str, str, dict[str, Any]]]) -> None:
    """The calls are these, in this order, with these parameters among others."""
    assert [(c.service, c.operation) for c in calls] == [(s, o) for s, o, _ in expected]
    for call, (_, operation, params) in zip(calls, expected, strict=True):
        assert holds(call.params, params), (operation, call.params, params)


def tags(**named: str) -> list[dict[str, str]]:
    return [{"Key": f"quant:{key.replace('_', '-')}", "Value": value} for key, value in named.items()]


def alarm_calls(release: Release, config: str) -> list[tuple[str, str, dict[str, Any]]]:
    where = [
        {"Name": "EndpointName", "Value": "quant-execution"},
        {"Name": "VariantName", "Value": "AllTraffic"},
        {"Name": "EndpointConfigName", "Value": config},
    ]
    above = {"EvaluationPeriods": 1, "ComparisonOperator": "GreaterThanThreshold"}
    quiet = {**above, "TreatMissingData": "notBreaching"}

    def measured(name: str, metric: str, stat: str) -> dict[str, Any]:
        of = {"Namespace": "AWS/SageMaker", "MetricName": metric, "Dimensions": where}
        return {"Id": name, "MetricStat": {"Metric": of, "Period": 420, "Stat": stat}, "ReturnData": False}

    return [
        (
            "cloudwatch",
            "PutMetricAlarm",
            {
                "AlarmName": "quant-execution-5xx",
                "Namespace": "AWS/SageMaker",
                "MetricName": "Invocation5XXErrors",
                "Dimensions": where,
                "Statistic": "Sum",
                "Period": 420,  # 300 s of bake and 120 s in which the old fleet is kept
                "Threshold": 2.0,
                **quiet,
            },
        ),
        (
            "cloudwatch",
            "PutMetricAlarm",
            {
                "AlarmName": "quant-execution-p99",
                "Metrics": [
                    measured("requests", "Invocations", "Sum"),
                    measured("latency", "ModelLatency", "p99"),
                    {"Id": "judged", "Expression": "IF(requests >= 20, latency, 0)", "ReturnData": True},
                ],
                "Threshold": 250_000.0,
                **quiet,
            },
        ),
        (
            "cloudwatch",
            "PutMetricAlarm",
            {
                "AlarmName": "quant-execution-invalid",
                "Namespace": "quant/endpoints",
                "MetricName": "quant-execution-invalid-answers",
                "Dimensions": [
                    {
                        "Name": "ServedBy",
                        "Value": f"sac_execution:{release.model_version}:{release.digest[:12]}",
                    }
                ],
                "Threshold": 0.0,
                "Period": 420,
                **quiet,
            },
        ),
        (
            "cloudwatch",
            "PutMetricAlarm",
            {"AlarmName": "quant-execution-stop", **above, "TreatMissingData": "ignore"},
        ),
    ]


def release_calls(release: Release, config: str) -> list[tuple[str, str, dict[str, Any]]]:
    """What brings a bundle to where an endpoint can serve it."""
    key = f"quant/execution/{release.digest}/model.tar.gz"
    of_release = tags(
        project="quant",
        endpoint="execution",
        model="sac_execution",
        model_version=str(release.model_version),
        digest=release.digest,
        git_commit="c0ffee",
    )
    return [
        (
            "s3",
            "PutObject",
            {
                "Bucket": BUCKET,
                "Key": key,
                "ServerSideEncryption": "AES256",
                "Metadata": {
                    "sha256": release.digest,
                    "model": "sac_execution",
                    "version": str(release.model_version),
                },
            },
        ),
        (
            "sagemaker",
            "CreateModelPackage",
            {
                "ModelPackageGroupName": "quant-execution",
                "ModelApprovalStatus": "Approved",
                "InferenceSpecification": {
                    "Containers": [{"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/{key}"}],
                    "SupportedRealtimeInferenceInstanceTypes": ["ml.m5.large"],
                },
                "CustomerMetadataProperties": {
                    "model": "sac_execution",
                    "model_version": str(release.model_version),
                    "digest": release.digest,
                    "git_commit": "c0ffee",
                    "run": "of a test",
                },
            },
        ),
        (
            "sagemaker",
            "CreateModel",
            {
                "ModelName": config,
                "PrimaryContainer": {"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/{key}"},
                "ExecutionRoleArn": ROLE,
                "EnableNetworkIsolation": True,
                "Tags": of_release,
            },
        ),
        (
            "sagemaker",
            "CreateEndpointConfig",
            {
                "EndpointConfigName": config,
                "ProductionVariants": [
                    {
                        "VariantName": "AllTraffic",
                        "ModelName": config,
                        "InstanceType": "ml.m5.large",
                        "InitialInstanceCount": 1,
                    }
                ],
                "DataCaptureConfig": {
                    "EnableCapture": True,
                    "InitialSamplingPercentage": 100,
                    "DestinationS3Uri": f"s3://{BUCKET}/quant/execution/captured/{config}",
                    "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
                    "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
                },
                "Tags": [*of_release, *tags(instances="1", instance_type="ml.m5.large")],
            },
        ),
    ]


SCALED = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "endpoint/quant-execution/variant/AllTraffic",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
REGISTER = (
    "application-autoscaling",
    "RegisterScalableTarget",
    {**SCALED, "MinCapacity": 1, "MaxCapacity": 2},
)
PUT_POLICY = (
    "application-autoscaling",
    "PutScalingPolicy",
    {
        **SCALED,
        "PolicyName": "quant-execution-invocations",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": 3000.0,
            "PredefinedMetricSpecification": {
                "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
            },
            "ScaleOutCooldown": 60,
            "ScaleInCooldown": 600,
        },
    },
)
ALARMS = [{"AlarmName": f"quant-execution-{kind}"} for kind in ("5xx", "p99", "invalid", "stop")]


# -- the exact calls ---------------------------------------------------------------------------------------------------


def test_the_first_deploy_creates_everything_once_in_order(
    aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease
) -> None:
    first = release(1)
    config = config_of(endpoint, first)
    status = endpoint.deploy(first, ROLLOUT)
    assert (status.phase, status.config, status.target_config) == ("creating", None, config)

    upload, package, model, endpoint_config = release_calls(first, config)
    group = (
        "sagemaker",
        "CreateModelPackageGroup",
        {"ModelPackageGroupName": "quant-execution", "Tags": tags(project="quant", endpoint="execution")},
    )
    logs = "/aws/sagemaker/Endpoints/quant-execution"
    log_group = (
        "logs",
        "CreateLogGroup",
        {"logGroupName": logs, "tags": {"quant:project": "quant", "quant:endpoint": "execution"}},
    )
    invalid = (
        "logs",
        "PutMetricFilter",
        {
            "logGroupName": logs,
            "filterPattern": '{ $.event = "invalid_answer" }',
            "metricTransformations": [
                {
                    "metricName": "quant-execution-invalid-answers",
                    "metricNamespace": "quant/endpoints",
                    "metricValue": "1",
                    "dimensions": {"ServedBy": "$.served_by"},
                }
            ],
        },
    )
    create = (
        "sagemaker",
        "CreateEndpoint",
        {
            "EndpointName": "quant-execution",
            "EndpointConfigName": config,
            "Tags": tags(
                project="quant",
                endpoint="execution",
                asked="create",
                target_config=config,
                previous_config="-",
                reason="-",
                asked_after="-",
            ),
        },
    )
    assert_calls(
        aws.changes(),
        [
            upload,
            group,
            package,
            model,
            endpoint_config,
            log_group,
            invalid,
            *alarm_calls(first, config),
            create,
        ],
    )

    status = endpoint.wait(30)
    assert (status.phase, status.config, status.last_outcome) == ("in_service", config, "deployed")
    assert (status.model, status.model_version, status.previous_config) == ("sac_execution", 1, None)
    assert [(v.config, v.share, v.ready) for v in status.variants] == [(config, 1.0, True)]
    assert status.url == f"{aws.url}/endpoints/quant-execution/invocations"
    assert_calls(aws.changes(), [REGISTER, PUT_POLICY])
    assert aws.objects()[f"quant/execution/{first.digest}/model.tar.gz"].value == b"bundle of version 1"


def test_the_same_deploy_again_changes_nothing_and_reads_little(
    aws: FakeAws,
    make_account: Callable[..., SageMakerEndpoints],
    served: EndpointStatus,
    release: MakeRelease,
) -> None:
    # Another process: nothing is remembered there.
    again = make_account().endpoint("execution")
    status = again.deploy(release(1), Rollout(canary_share=0.5, bake_seconds=0))
    assert (status.phase, status.config) == ("in_service", served.config)
    assert_calls(
        aws.calls,
        [
            ("sagemaker", "DescribeEndpoint", {}),
            ("sagemaker", "ListTags", {}),
            ("sagemaker", "ListTags", {}),
            ("application-autoscaling", "DescribeScalableTargets", {}),
            ("application-autoscaling", "DescribeScalingPolicies", {}),
            ("cloudwatch", "GetMetricData", {}),
        ],
    )
    assert aws.changes() == []
    again.wait(30)
    assert aws.changes() == []


def test_deploying_what_is_on_its_way_changes_nothing(
    aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease
) -> None:
    endpoint.deploy(release(1), ROLLOUT)
    aws.changes()
    assert endpoint.deploy(release(1), ROLLOUT).phase == "creating"
    assert aws.changes() == []
    endpoint.wait(30)
    endpoint.deploy(release(2), ROLLOUT)
    aws.changes()
    assert endpoint.deploy(release(2), ROLLOUT).phase == "updating"
    assert aws.changes() == []


def test_an_update_is_a_canary_with_alarms(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    second = release(2)
    config = config_of(endpoint, second)
    before = aws.sagemaker.endpoints["quant-execution"].last_modified_time.isoformat()
    status = endpoint.deploy(second, ROLLOUT)
    assert (status.phase, status.config, status.target_config) == ("updating", served.config, config)
    asked = tags(
        asked="deploy",
        target_config=config,
        previous_config=str(served.config),
        reason="-",
        asked_after=before,
    )
    update = (
        "sagemaker",
        "UpdateEndpoint",
        {
            "EndpointName": "quant-execution",
            "EndpointConfigName": config,
            "RetainAllVariantProperties": True,
            "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DataCaptureConfig"}],
            "DeploymentConfig": {
                "BlueGreenUpdatePolicy": {
                    "TrafficRoutingConfiguration": {
                        "Type": "CANARY",
                        "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 20},
                        "WaitIntervalInSeconds": 300,
                    },
                    "TerminationWaitInSeconds": 120,
                    "MaximumExecutionTimeoutInSeconds": 1800 + 2 * 300 + 120,
                },
                "AutoRollbackConfiguration": {"Alarms": ALARMS},
            },
        },
    )
    assert_calls(
        aws.changes(),
        [
            *release_calls(second, config),
            *alarm_calls(second, config),
            ("sagemaker", "AddTags", {"Tags": asked}),
            update,
        ],
    )
    status = endpoint.wait(30)
    assert (status.phase, status.config, status.model_version) == ("in_service", config, 2)
    assert (status.last_outcome, status.previous_config) == ("deployed", served.config)
    assert aws.changes() == []


def test_an_alarm_rolls_back_without_us(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    endpoint.deploy(release(2), ROLLOUT)
    aws.changes()
    aws.set_alarm("quant-execution-p99")
    seen: list[EndpointStatus] = []
    status = endpoint.wait(30, seen.append)
    assert aws.changes() == []
    assert [s.phase for s in seen[:1]] == ["rolling_back"]
    assert seen[0].target_config == served.config
    assert (status.phase, status.config, status.model_version) == ("in_service", served.config, 1)
    assert (status.last_outcome, status.previous_config) == ("rolled_back", None)
    second = config_of(endpoint, release(2))
    assert status.message == (
        f"SageMaker rolled {second} back to {served.config}; in ALARM: quant-execution-p99"
    )


def test_a_manual_rollback_goes_at_once_and_without_alarms(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    endpoint.deploy(release(2), ROLLOUT)
    second = endpoint.wait(30)
    before = aws.sagemaker.endpoints["quant-execution"].last_modified_time.isoformat()
    aws.set_alarm("quant-execution-5xx")
    aws.changes()

    status = endpoint.rollback("the desk does not like it; at all")
    assert (status.phase, status.target_config) == ("rolling_back", served.config)
    assert endpoint.rollback("impatient").phase == "rolling_back"
    assert_calls(
        aws.changes(),
        [
            (
                "sagemaker",
                "AddTags",
                {
                    "Tags": tags(
                        asked="rollback",
                        target_config=str(served.config),
                        previous_config=str(served.config),
                        reason="the desk does not like it_ at all",
                        asked_after=before,
                    )
                },
            ),
            (
                "sagemaker",
                "UpdateEndpoint",
                {
                    "EndpointConfigName": served.config,
                    "RetainAllVariantProperties": True,
                    "DeploymentConfig": {
                        "BlueGreenUpdatePolicy": {
                            "TrafficRoutingConfiguration": {
                                "Type": "ALL_AT_ONCE",
                                "WaitIntervalInSeconds": 1,
                            },
                            "MaximumExecutionTimeoutInSeconds": 1800,
                        }
                    },
                },
            ),
        ],
    )
    update = aws.sagemaker.endpoints["quant-execution"]
    assert "AutoRollbackConfiguration" not in aws.fleets[update.endpoint_name].deployment

    status = endpoint.wait(30)
    assert (status.config, status.model_version, status.last_outcome) == (served.config, 1, "rolled_back")
    assert status.message == f"rolled back to {served.config}: the desk does not like it_ at all"
    assert status.previous_config is None
    assert second.config != status.config
    with pytest.raises(EndpointError, match="no previous config to go back to"):
        endpoint.rollback("further")


def test_a_rollback_in_the_middle_of_a_rollout_sets_off_the_stop_alarm(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    endpoint.deploy(release(2), ROLLOUT)
    asked_before = aws.sagemaker.endpoints["quant-execution"].last_modified_time.isoformat()
    aws.changes()
    status = endpoint.rollback("wrong version")
    assert (status.phase, status.config) == ("rolling_back", served.config)
    assert_calls(
        aws.changes(),
        [
            (
                "cloudwatch",
                "SetAlarmState",
                {
                    "AlarmName": "quant-execution-stop",
                    "StateValue": "ALARM",
                    "StateReason": "wrong version",
                },
            ),
            ("sagemaker", "AddTags", {}),
        ],
    )
    status = endpoint.wait(30)
    assert (status.config, status.last_outcome) == (served.config, "rolled_back")
    assert status.message == f"rolled back to {served.config}: wrong version"
    # Whether going back counts as a change, AWS does not say.
    asked_at = dt.datetime.fromisoformat(asked_before)
    aws.sagemaker.endpoints["quant-execution"].last_modified_time = asked_at
    assert endpoint.status().last_outcome == "rolled_back"


def test_what_stopped_one_rollout_does_not_stop_the_next(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    endpoint.deploy(release(2), ROLLOUT)
    endpoint.rollback("by hand")
    aws.set_alarm("quant-execution-5xx")
    assert endpoint.wait(30).config == served.config
    aws.changes()
    endpoint.deploy(release(3), ROLLOUT)
    reset = [c.params for c in aws.changes() if c.operation == "SetAlarmState"]
    assert [(p["AlarmName"], p["StateValue"]) for p in reset] == [
        ("quant-execution-5xx", "OK"),
        ("quant-execution-stop", "OK"),
    ]
    status = endpoint.wait(30)
    assert (status.model_version, status.last_outcome) == (3, "deployed")
    assert status.previous_config == served.config


def test_a_kill_in_the_middle_of_a_rollback_rolls_back(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    endpoint.deploy(release(2), ROLLOUT)
    aws.refused["AddTags"] = ["ThrottlingException", "Rate exceeded", 1]
    with pytest.raises(EndpointError):
        endpoint.rollback("cut off")
    status = endpoint.wait(30)
    assert (status.config, status.last_outcome) == (served.config, "rolled_back")


def test_a_rollback_that_comes_too_late_is_told(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    endpoint.deploy(release(2), ROLLOUT)
    endpoint.rollback("too late")
    aws.set_alarm("quant-execution-stop", "OK")  # as if SageMaker had not seen it
    aws.sagemaker.endpoints["quant-execution"].endpoint_status = "Updating"
    status = endpoint.wait(30)
    assert (status.phase, status.model_version, status.last_outcome) == ("in_service", 2, "failed")
    assert "did not come about" in status.message
    assert status.previous_config == served.config


def test_teardown_takes_what_was_created_and_leaves_what_is_worth_keeping(
    aws: FakeAws, account: SageMakerEndpoints, endpoint: SageMakerEndpoint, release: MakeRelease
) -> None:
    # Its names begin like the other's.
    neighbour = account.endpoint("execution-2")
    for each, version in ((endpoint, 1), (neighbour, 1), (endpoint, 2)):
        each.deploy(release(version), ROLLOUT)
        each.wait(30)
    endpoint.invoke(b"{}")
    kept = set(aws.objects())
    configs = sorted(config_of(endpoint, release(version)) for version in (1, 2))
    aws.changes()

    endpoint.delete()
    logs = "/aws/sagemaker/Endpoints/quant-execution"
    names = [alarm["AlarmName"] for alarm in ALARMS]
    assert_calls(
        aws.changes(),
        [
            ("application-autoscaling", "DeregisterScalableTarget", SCALED),
            ("sagemaker", "DeleteEndpoint", {"EndpointName": "quant-execution"}),
            *(("sagemaker", "DeleteEndpointConfig", {"EndpointConfigName": c}) for c in configs),
            *(("sagemaker", "DeleteModel", {"ModelName": c}) for c in configs),
            ("cloudwatch", "DeleteAlarms", {"AlarmNames": sorted(names)}),
            ("logs", "DeleteMetricFilter", {"logGroupName": logs}),
        ],
    )
    assert endpoint.status().phase == "absent"
    assert set(aws.objects()) == kept
    assert len(list(endpoint.captured())) == 1
    assert len(aws.sagemaker.model_packages) == 3
    status = neighbour.status()
    assert (status.phase, status.model_version) == ("in_service", 1)
    assert {n for n in aws.cloudwatch.alarms if n.startswith("quant-execution-2-")} == {
        name.replace("execution", "execution-2") for name in names
    }

    aws.changes()
    endpoint.delete()
    assert aws.changes() == []


# -- traffic -----------------------------------------------------------------------------------------------------------


def test_requests_are_shared_while_a_canary_bakes_and_all_are_answered(
    aws: FakeAws,
    make_account: Callable[..., SageMakerEndpoints],
    served: EndpointStatus,
    release: MakeRelease,
) -> None:
    endpoint = make_account(figures_seconds=0.0).endpoint("execution")
    second = config_of(endpoint, release(2))
    aws.looks = 8
    endpoint.deploy(release(2), ROLLOUT)
    while not any(v.share for v in endpoint.status().variants if v.config == second):
        pass
    aws.served.clear()
    assert {endpoint.invoke(b"{}").status for _ in range(50)} == {200}
    assert aws.served.count(second) == 10
    status = endpoint.status()
    shares = {v.config: (v.share, v.requests) for v in status.variants}
    assert shares[second] == (0.2, 10)
    # SageMaker counts both fleets under the variant.
    assert shares[str(served.config)] == (0.8, 50)
    assert endpoint.wait(30).config == second


def test_no_request_fails_under_load_while_versions_come_and_go(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    over, failures, answered = threading.Event(), [], []

    def ask() -> None:
        while not over.is_set():
            try:
                answer = endpoint.invoke(b"{}")
                answered.append(json.loads(answer.body)["config"])
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        endpoint.deploy(release(2), ROLLOUT)
        second = endpoint.wait(30)
        endpoint.deploy(release(3), ROLLOUT)
        aws.set_alarm("quant-execution-p99")
        assert endpoint.wait(30).config == second.config
        endpoint.rollback("under load")
        assert endpoint.wait(30).config == served.config
    finally:
        over.set()
        for client in clients:
            client.join(30)
    assert failures == []
    assert {served.config, second.config} <= set(answered)


@pytest.mark.parametrize("kind", ["5xx", "invalid"])
def test_a_canary_that_breaks_is_rolled_back_by_itself(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease, kind: str
) -> None:
    second = config_of(endpoint, release(2))

    def serve(config: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if config != second:
            return 200, {}, b"{}"
        wrong = {"x-quant-invalid": "does not add up", "x-quant-served-by": "sac_execution:2:abc"}
        return 500, wrong if kind == "invalid" else {}, b"broken"

    aws.serve, aws.looks = serve, 12
    endpoint.deploy(release(2), Rollout(canary_share=0.5, bake_seconds=300, max_errors_5xx=1))
    statuses = []
    status = endpoint.wait(60, lambda now: statuses.append(endpoint.invoke(b"{}").status))
    assert (status.config, status.last_outcome) == (served.config, "rolled_back")
    assert f"quant-execution-{kind}" in status.message
    # No request failed: what the canary could not answer, the other fleet did.
    assert set(statuses) == {200}
    assert 1 <= aws.served.count(second) <= 2
    assert endpoint.invoke(b"{}").status == 200


def test_figures_come_from_cloudwatch(
    aws: FakeAws,
    make_account: Callable[..., SageMakerEndpoints],
    served: EndpointStatus,
    release: MakeRelease,
) -> None:
    endpoint = make_account(figures_seconds=0.0).endpoint("execution")
    invalid = {"x-quant-invalid": "no", "x-quant-served-by": f"sac_execution:1:{release(1).digest[:12]}"}
    aws.serve = lambda config, body: (500, invalid, b"{}") if b"wrong" in body else (200, {}, b"{}")
    assert [endpoint.invoke(body).status for body in (b"{}", b"{}", b"wrong")] == [200, 200, 500]
    (variant,) = endpoint.status().variants
    # What goes wrong is asked for three times.
    assert (variant.requests, variant.errors_5xx, variant.invalid) == (5, 3, 3)
    assert (variant.p50_ms, variant.p99_ms) == (5.0, 5.0)


def test_figures_are_not_read_again_within_a_minute(
    aws: FakeAws,
    make_account: Callable[..., SageMakerEndpoints],
    served: EndpointStatus,
) -> None:
    account = make_account()
    for _ in range(3):
        # Whoever asks: sensors make endpoints anew at every tick.
        assert account.endpoint("execution").status().phase == "in_service"
    assert [call.operation for call in aws.calls].count("GetMetricData") == 1


def test_an_answer_says_what_served_it(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus
) -> None:
    told = b'{"schedule": [], "model": "sac_execution", "model_version": 1, "bundle": "abc123"}'
    aws.serve = lambda config, body: (200, {}, told)
    answer = endpoint.invoke(b'{"ticker": "AAPL"}')
    assert (answer.status, answer.body, answer.served_by) == (200, told, "sac_execution:1:abc123")
    assert aws.calls[-1].params["ContentType"] == "application/json"


@pytest.mark.parametrize("status", [400, 413, 415, 500, 503])
def test_what_the_app_refuses_comes_back_as_the_app_said_it(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, status: int
) -> None:
    said = b'{"error": "bad_request", "field": "shares", "reason": "Gr\xc3\xb6\xc3\x9fe: -1"}'
    aws.serve = lambda config, body: (status, {}, said)
    answer = endpoint.invoke(b"{}")
    assert (answer.status, answer.body, answer.served_by) == (status, said, "")
    assert len(aws.served) == (3 if status >= 500 else 1)


def test_nobody_answers(
    aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EndpointDown, match="nobody answers"):
        endpoint.invoke(b"{}")
    endpoint.deploy(release(1), ROLLOUT)
    with pytest.raises(EndpointDown, match="quant-execution of account"):
        endpoint.invoke(b"{}")
    endpoint.wait(30)
    for code in ("ServiceUnavailable", "InternalFailure", "ThrottlingException", "ModelNotReadyException"):
        aws.refused["InvokeEndpoint"] = [code, "not now", 1]
        with pytest.raises(EndpointDown, match=code):
            endpoint.invoke(b"{}")
    # Nobody listens at port 1.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(EndpointDown, match="cannot be reached"):
        SageMakerEndpoints(ROLE, IMAGE, BUCKET).endpoint("execution").invoke(b"{}")


# -- what is left after something went wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(PHASES))
def test_every_state_of_sagemaker_has_a_phase(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, state: str
) -> None:
    made = aws.sagemaker.endpoints["quant-execution"]
    made.endpoint_status, made.failure_reason = state, "why it is so"
    aws.fleets["quant-execution"].looks = 99
    status = endpoint.status()
    assert status.phase == PHASES[state]
    assert status.config == (None if state == "Creating" else served.config)
    if status.phase == "failed":
        assert status.message == f"{state} with {served.config}: why it is so"
        assert (status.last_outcome, status.settled) == ("failed", True)


def test_a_state_that_is_not_known_is_told(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus
) -> None:
    aws.sagemaker.endpoints["quant-execution"].endpoint_status = "Sleeping"
    aws.fleets["quant-execution"].looks = 99
    with pytest.raises(EndpointError, match="is Sleeping, a state that this version does not know"):
        endpoint.status()


@pytest.mark.parametrize("state", ["Failed", "OutOfService"])
def test_restart_creates_an_endpoint_that_does_not_serve_again(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease, state: str
) -> None:
    endpoint.deploy(release(2), ROLLOUT)
    second = endpoint.wait(30)
    aws.sagemaker.endpoints["quant-execution"].endpoint_status = state
    aws.fleets["quant-execution"].looks = 99
    aws.changes()
    assert endpoint.restart("the sensor said so").phase == "creating"
    assert_calls(
        aws.changes(),
        [
            ("sagemaker", "DeleteEndpoint", {}),
            ("sagemaker", "CreateEndpoint", {"EndpointConfigName": second.config}),
        ],
    )
    status = endpoint.wait(30)
    assert (status.phase, status.config, status.model_version) == ("in_service", second.config, 2)
    # What it knew of itself came along.
    assert status.previous_config == served.config


def test_restart_leaves_an_endpoint_that_serves_alone(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus
) -> None:
    assert endpoint.restart("nervous").phase == "in_service"
    assert aws.changes() == []


def test_a_mix_of_two_configs_is_ended_without_downtime(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus
) -> None:
    aws.sagemaker.endpoints["quant-execution"].endpoint_status = "UpdateRollbackFailed"
    assert endpoint.status().phase == "failed"
    endpoint.restart("one config, please")
    calls = aws.changes()
    assert [call.operation for call in calls] == ["AddTags", "UpdateEndpoint"]
    assert calls[1].params["EndpointConfigName"] == served.config
    assert endpoint.wait(30).phase == "in_service"


def test_restart_of_nothing(aws: FakeAws, endpoint: SageMakerEndpoint) -> None:
    with pytest.raises(EndpointDown, match="does not exist, and nothing says what it served"):
        endpoint.restart("why not")
    with pytest.raises(EndpointDown, match="does not exist, so there is nothing to go back to"):
        endpoint.rollback("why not")
    assert aws.changes() == []


def test_a_failed_endpoint_takes_another_version(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    aws.sagemaker.endpoints["quant-execution"].endpoint_status = "Failed"
    aws.changes()
    endpoint.deploy(release(2), ROLLOUT)
    assert [c.operation for c in aws.changes()][-2:] == ["DeleteEndpoint", "CreateEndpoint"]
    status = endpoint.wait(30)
    assert (status.phase, status.model_version, status.last_outcome) == ("in_service", 2, "deployed")


def test_a_failed_endpoint_goes_back(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    endpoint.deploy(release(2), ROLLOUT)
    endpoint.wait(30)
    aws.sagemaker.endpoints["quant-execution"].endpoint_status = "Failed"
    endpoint.rollback("it does not start any more")
    status = endpoint.wait(30)
    assert (status.config, status.last_outcome) == (served.config, "rolled_back")


def test_a_kill_before_the_update_leaves_a_known_version(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    # The tags are written, the update is not asked for: as far as AWS is concerned, the same as a kill -9 between the two.
    aws.refused["UpdateEndpoint"] = ["ThrottlingException", "Rate exceeded", 1]
    with pytest.raises(EndpointError):
        endpoint.deploy(release(2), ROLLOUT)
    status = endpoint.status()
    assert (status.phase, status.config, status.model_version) == ("in_service", served.config, 1)
    # Nothing was rolled out, so nothing was rolled back.
    assert status.last_outcome == ""
    aws.changes()
    endpoint.deploy(release(2), ROLLOUT)
    created = [c.operation for c in aws.changes() if c.operation.startswith("Create")]
    assert created == []
    status = endpoint.wait(30)
    assert (status.model_version, status.previous_config) == (2, served.config)


@pytest.mark.parametrize(
    "stop", ["CreateModelPackage", "CreateModel", "CreateEndpointConfig", "PutMetricAlarm", "CreateEndpoint"]
)
def test_a_deploy_that_was_cut_off_goes_on_where_it_was(
    aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease, stop: str
) -> None:
    aws.refused[stop] = ["InternalFailure", "half way", 1]
    with pytest.raises(EndpointDown, match="half way"):
        endpoint.deploy(release(1), ROLLOUT)
    done = {(c.operation, c.params.get("ModelName")) for c in aws.changes() if c.operation != stop}
    endpoint.deploy(release(1), ROLLOUT)
    again = {(c.operation, c.params.get("ModelName")) for c in aws.changes()}
    twice = {operation for operation, _ in done & again}
    # Alarms are put as a whole; everything else exists once.
    assert twice <= {"PutMetricAlarm", "SetAlarmState"}
    assert endpoint.wait(30).phase == "in_service"
    assert (len(aws.sagemaker.model_packages), len(aws.sagemaker._models)) == (1, 1)


def test_one_thing_at_a_time(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    aws.looks = 99
    endpoint.deploy(release(2), ROLLOUT)
    aws.changes()
    for version in (1, 3):
        with pytest.raises(EndpointError, match=r"a change to .* is in progress"):
            endpoint.deploy(release(version), ROLLOUT)
    with pytest.raises(EndpointError, match="something else is changing the endpoint"):
        endpoint.delete()
    endpoint.rollback("enough")
    with pytest.raises(EndpointError, match="is in progress"):
        endpoint.deploy(release(2), ROLLOUT)
    assert {c.operation for c in aws.changes()} == {
        "AddTags",
        "SetAlarmState",
        "DeregisterScalableTarget",
        "DeleteEndpoint",
    }


def test_while_sagemaker_maintains_it(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    aws.sagemaker.endpoints["quant-execution"].endpoint_status = "SystemUpdating"
    aws.fleets["quant-execution"].looks = 99
    assert endpoint.status().message == "SystemUpdating: SageMaker changes its capacity or maintains it"
    assert endpoint.deploy(release(1), ROLLOUT).config == served.config
    with pytest.raises(EndpointError, match="it is SystemUpdating, so"):
        endpoint.deploy(release(2), ROLLOUT)
    with pytest.raises(EndpointError, match="is SystemUpdating, and SageMaker takes no change meanwhile"):
        endpoint.rollback("now")


def test_the_first_one_cannot_be_rolled_back(
    aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease
) -> None:
    endpoint.deploy(release(1), ROLLOUT)
    with pytest.raises(EndpointError, match="is Creating, and SageMaker takes no change"):
        endpoint.rollback("now")
    endpoint.wait(30)
    with pytest.raises(EndpointError, match="no previous config"):
        endpoint.rollback("now")


def test_waiting_ends(aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease) -> None:
    aws.looks = 10_000
    endpoint.deploy(release(1), ROLLOUT)
    with pytest.raises(EndpointError, match=r"creating still after 0\.05 s .* wait again"):
        endpoint.wait(0.05)
    assert aws.sagemaker.endpoints["quant-execution"].endpoint_status == "Creating"


# -- autoscaling, capture, packages ------------------------------------------------------------------------------------


def test_more_workers_are_more_instances(
    aws: FakeAws, endpoint: SageMakerEndpoint, served: EndpointStatus, release: MakeRelease
) -> None:
    endpoint.deploy(release(1, workers=3), ROLLOUT)
    config = next(c for c in aws.changes() if c.operation == "CreateEndpointConfig")
    assert config.params["ProductionVariants"][0]["InitialInstanceCount"] == 3
    endpoint.wait(30)
    assert_calls(
        aws.changes(),
        [(*REGISTER[:2], {**SCALED, "MinCapacity": 3, "MaxCapacity": 3})],  # type: ignore[list-item]
    )


def test_another_instance_type_is_taken_out_of_autoscaling_for_the_rollout(
    aws: FakeAws,
    make_account: Callable[..., SageMakerEndpoints],
    served: EndpointStatus,
    release: MakeRelease,
) -> None:
    larger = make_account(instance_type="ml.m5.xlarge").endpoint("execution")
    larger.deploy(release(1), ROLLOUT)
    operations = [c.operation for c in aws.changes()]
    assert operations[-3:] == ["DeregisterScalableTarget", "AddTags", "UpdateEndpoint"]
    assert larger.wait(30).last_outcome == "deployed"
    assert "RegisterScalableTarget" in [c.operation for c in aws.changes()]


@pytest.mark.parametrize(("share", "percent"), [(1.0, 100), (0.25, 25), (0.001, 1), (0.0, None)])
def test_capture_is_a_whole_percentage_or_none(
    aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease, share: float, percent: int | None
) -> None:
    endpoint.deploy(release(1, capture_share=share), ROLLOUT)
    (config,) = (c.params for c in aws.changes() if c.operation == "CreateEndpointConfig")
    capture = config.get("DataCaptureConfig", {})
    assert capture.get("InitialSamplingPercentage") == percent
    endpoint.wait(30)
    for _ in range(4):
        endpoint.invoke(b"{}")
    assert len(list(endpoint.captured())) == {100: 4, 25: 1, 1: 0, None: 0}[percent]


def test_captured_requests_of_all_configs_oldest_first(
    aws: FakeAws, account: SageMakerEndpoints, caplog: pytest.LogCaptureFixture
) -> None:
    def line(number: int, at: str) -> bytes:
        side = {"observedContentType": "application/json", "encoding": "JSON"}
        event = {
            "captureData": {
                "endpointInput": {**side, "mode": "INPUT", "data": json.dumps({"n": number})},
                "endpointOutput": {**side, "mode": "OUTPUT", "data": "{}"},
            },
            "eventMetadata": {"eventId": f"event-{number}", "inferenceTime": at},
            "eventVersion": "0",
        }
        return json.dumps(event).encode()

    files = {
        "new/quant-execution/AllTraffic/2026/03/02/00/00-01-1.jsonl": [line(5, "2026-03-02T00:30:00Z")],
        "new/quant-execution/AllTraffic/2026/03/01/23/59-01-1.jsonl": [
            line(3, "2026-03-01T23:30:00Z"),
            b'{"captureData": {"torn',
            b"",
        ],
        "old/quant-execution/AllTraffic/2026/03/01/23/10-01-1.jsonl": [
            line(4, "2026-03-01T23:59:00Z"),
            line(2, "2026-03-01T23:10:00Z"),
        ],
        "old/quant-execution/AllTraffic/2026/02/28/01/00-01-1.jsonl": [line(1, "2026-02-28T01:00:00Z")],
        "old/quant-execution/AllTraffic/manifest.json": [b"no capture file"],
    }
    for key, lines in files.items():
        account.client("s3").put_object(
            Bucket=BUCKET, Key=f"quant/execution/captured/{key}", Body=b"\n".join(lines)
        )
    account.client("s3").put_object(
        Bucket=BUCKET,
        Key="quant/execution-2/captured/c/quant-execution-2/AllTraffic/2026/03/01/23/1.jsonl",
        Body=line(9, "2026-03-01T23:00:00Z"),
    )
    endpoint = account.endpoint("execution")
    with caplog.at_level(logging.WARNING):
        found = list(endpoint.captured())
    assert [(c.event_id[-1], c.config) for c in found] == [
        ("1", "old"),
        ("2", "old"),
        ("3", "new"),
        ("4", "old"),
        ("5", "new"),
    ]
    assert {c.endpoint for c in found} == {"execution"}
    assert found[0].at == dt.datetime(2026, 2, 28, 1, tzinfo=dt.UTC)
    assert "1 captured lines cannot be read" in caplog.text

    since = dt.datetime(2026, 3, 1, 23, 30, tzinfo=dt.UTC)
    aws.calls.clear()
    assert [c.event_id[-1] for c in endpoint.captured(since)] == ["3", "4", "5"]
    assert not any("2026/02" in str(c.params) for c in aws.calls if c.operation == "GetObject")
    for hours in (-5, 9):  # the same instant, said in New York and in Tokyo
        said = since.astimezone(dt.timezone(dt.timedelta(hours=hours)))
        assert [c.event_id[-1] for c in endpoint.captured(said)] == ["3", "4", "5"]
    with pytest.raises(EndpointError, match="has no time zone"):
        list(endpoint.captured(dt.datetime(2026, 3, 1)))


def test_a_person_approves_later(aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease) -> None:
    waiting = {"git_commit": "c0ffee", "approval": "PendingManualApproval"}
    endpoint.deploy(release(1, tags=waiting), ROLLOUT)
    (package,) = aws.sagemaker.model_packages.values()
    assert package.model_approval_status == "PendingManualApproval"
    endpoint.wait(30)
    endpoint.deploy(release(2), ROLLOUT)
    endpoint.wait(30)
    aws.changes()
    endpoint.deploy(release(1), ROLLOUT)
    assert aws.changes()[0].operation == "UpdateModelPackage"
    assert package.model_approval_status == "Approved"
    assert len(aws.sagemaker.model_packages) == 2


@given(
    st.dictionaries(st.text(min_size=1, max_size=300), st.text(max_size=600), max_size=80),
)
@settings(max_examples=60, deadline=None)
def test_lineage_fits_what_sagemaker_takes(found: dict[str, str]) -> None:
    release = Release(Path("model.tar.gz"), "sac_execution", 3, "ab" * 32, tags=found)
    properties = lineage_properties(release)
    assert 4 <= len(properties) <= 50
    allowed = re.compile(r"[\w .:/=+\-@]*")
    for key, value in properties.items():
        assert 1 <= len(key) <= 128
        assert allowed.fullmatch(key)
        assert len(value) <= 256
        assert allowed.fullmatch(value)
    assert properties["digest"] == "ab" * 32
    assert properties["model_version"] == "3"


@given(
    canary_share=st.floats(0, 0.5, exclude_min=True),
    bake_seconds=st.floats(0, 3600),
)
@settings(max_examples=100, deadline=None)
def test_every_rollout_is_one_that_sagemaker_takes(canary_share: float, bake_seconds: float) -> None:
    rollout = Rollout(canary_share=canary_share, bake_seconds=bake_seconds)
    endpoint = SageMakerEndpoints(ROLE, IMAGE, BUCKET).endpoint("execution")
    policy = endpoint._canary(rollout).blue_green_update_policy
    routing = policy.traffic_routing_configuration
    assert 1 <= routing.canary_size.value <= 50
    assert abs(routing.canary_size.value / 100 - canary_share) <= 0.01
    # Never shorter than asked for, never so short that CloudWatch sees nothing.
    assert max(180, bake_seconds) <= routing.wait_interval_in_seconds <= 3600
    waits = policy.termination_wait_in_seconds + 2 * routing.wait_interval_in_seconds
    assert max(600, waits) < policy.maximum_execution_timeout_in_seconds <= 28800


def test_a_bake_that_is_too_long(endpoint: SageMakerEndpoint, aws: FakeAws, release: MakeRelease) -> None:
    with pytest.raises(EndpointError, match="bake_seconds = 3601, SageMaker bakes 3600 s at most"):
        endpoint.deploy(release(1), Rollout(bake_seconds=3601))
    assert aws.calls == []


# What happens to an endpoint -> what the model of it says: (config, previous).
EVENTS = st.lists(
    st.sampled_from(["deployed", "rolled_back", "went_back", "stayed"]), min_size=1, max_size=12
)


@given(EVENTS)
@settings(max_examples=200, deadline=None)
def test_whatever_happened_a_rollback_goes_to_what_served_before(events: list[str]) -> None:
    asked, config, previous = Asked("create", "c0"), "c0", None
    for number, event in enumerate(events, start=1):
        if event in ("deployed", "rolled_back"):
            asked = Asked.of(asked.deploying(config, f"c{number}").tags())
            assert asked.previous(config) == previous  # while it goes on
            if event == "deployed":
                config, previous = f"c{number}", config
        elif previous is not None:
            asked = Asked.of(Asked.going_back(previous, "by hand").tags())
            if event == "went_back":
                # From what was given up for nothing better: there is nothing to go back to.
                config, previous = previous, None
        assert asked.previous(config) == previous
        assert previous != config


# -- errors ------------------------------------------------------------------------------------------------------------

DENIED = (
    "User: arn:aws:sts::123456789012:assumed-role/night/run is not authorized to perform: {} on resource: "
    "arn:aws:sagemaker:us-east-1:123456789012:endpoint/quant-execution because no identity-based policy allows the {} action"
)


@pytest.mark.parametrize(
    ("operation", "code", "said", "told"),
    [
        (
            "CreateEndpoint",
            "AccessDeniedException",
            DENIED.format("sagemaker:CreateEndpoint", "sagemaker:CreateEndpoint"),
            r"assumed-role/night/run has no permission sagemaker:CreateEndpoint .*docs/sagemaker\.md",
        ),
        (
            "CreateModel",
            "AccessDeniedException",
            DENIED.format("iam:PassRole", "iam:PassRole"),
            rf"assumed-role/night/run may not hand the role {ROLE} to SageMaker \(iam:PassRole\)",
        ),
        (
            # Without a word of who may not do what: AWS is asked who we are.
            "PutMetricAlarm",
            "AccessDenied",
            "",
            r"arn:aws:sts::123456789012:user/moto has no permission cloudwatch:PutMetricAlarm",
        ),
        (
            "CreateEndpoint",
            "ResourceLimitExceeded",
            "The account-level service limit 'ml.m5.large for endpoint usage' is 0 Instances",
            r"quota .*ml\.m5\.large for endpoint usage.*QUANT_SAGEMAKER_INSTANCE_TYPE",
        ),
        (
            "CreateModel",
            "ValidationException",
            f"Could not assume role {ROLE}. Please ensure that the role exists",
            rf"cannot take on the role {ROLE} .*QUANT_SAGEMAKER_ROLE_ARN",
        ),
        (
            "CreateModel",
            "ValidationException",
            f"Requested image {IMAGE} not found.",
            r"cannot get the image .*quant-serving:1 .*QUANT_SAGEMAKER_IMAGE_URI",
        ),
        (
            "CreateModel",
            "ValidationException",
            "Could not access model data at s3://quant-bucket/x. Please ensure that the role has permissions",
            r"cannot read the bundle .*s3://quant-bucket",
        ),
        (
            "DescribeEndpoint",
            "ThrottlingException",
            "Rate exceeded",
            r"no more calls of this kind .*Rate exceeded.*AWS_MAX_ATTEMPTS",
        ),
        (
            "DescribeEndpoint",
            "ExpiredTokenException",
            "The security token included in the request is expired",
            r"does not take the credentials \(DescribeEndpoint: ExpiredTokenException\).*Sign in again",
        ),
        (
            "CreateEndpointConfig",
            "ValidationException",
            "1 validation error detected: something odd\nwith a second line",
            r"AWS refused \(CreateEndpointConfig: ValidationException: 1 validation error detected: something odd\)",
        ),
    ],
)
def test_what_aws_refuses_is_told_in_a_sentence(
    aws: FakeAws,
    endpoint: SageMakerEndpoint,
    release: MakeRelease,
    operation: str,
    code: str,
    said: str,
    told: str,
) -> None:
    aws.refused[operation] = [code, said, 1]
    with pytest.raises(EndpointError, match=told) as raised:
        endpoint.deploy(release(1), ROLLOUT)
    message = str(raised.value)
    assert message.startswith("endpoint execution, deploying sac_execution version 1: ")
    assert "\n" not in message
    # What is chained would be printed, with whatever it holds.
    assert raised.value.__suppress_context__


def test_stand_ins_for_credentials_do_not_garble_messages(aws: FakeAws, endpoint: SageMakerEndpoint) -> None:
    aws.refused["DescribeEndpoint"] = ["SomethingElse", "a testing ground", 1]
    with pytest.raises(EndpointError, match="a testing ground"):  # the test's own key is "testing"
        endpoint.status()


def test_a_bucket_that_does_not_exist(
    aws: FakeAws, make_account: Callable[..., SageMakerEndpoints], release: MakeRelease
) -> None:
    endpoint = make_account(bucket="nobodys-bucket").endpoint("execution")
    with pytest.raises(EndpointError, match=r"bucket nobodys-bucket does not exist .*QUANT_SAGEMAKER_BUCKET"):
        endpoint.deploy(release(1), ROLLOUT)
    with pytest.raises(EndpointError, match="bucket nobodys-bucket does not exist"):
        list(endpoint.captured())


def test_throttling_is_tried_again(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, served: EndpointStatus
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    endpoint = SageMakerEndpoints(ROLE, IMAGE, BUCKET).endpoint("execution")
    aws.refused["DescribeEndpoint"] = ["ThrottlingException", "Rate exceeded", 1]
    assert endpoint.status().phase == "in_service"
    aws.refused["DescribeEndpoint"] = ["ThrottlingException", "Rate exceeded", 2]
    with pytest.raises(EndpointError, match="2 attempts"):
        endpoint.status()


def test_without_credentials_or_region(monkeypatch: pytest.MonkeyPatch, aws: FakeAws) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(EndpointError, match=r"no complete AWS credentials .*aws sso login"):
        SageMakerEndpoints(ROLE, IMAGE, BUCKET).endpoint("execution").status()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    with pytest.raises(EndpointError, match="no complete AWS credentials"):
        SageMakerEndpoints(ROLE, IMAGE, BUCKET).endpoint("execution").status()
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(EndpointError, match="no AWS region is set"):
        SageMakerEndpoints(ROLE, IMAGE, BUCKET).endpoint("execution").status()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(EndpointError, match=r"nobody.*AWS_PROFILE"):
        SageMakerEndpoints(ROLE, IMAGE, BUCKET).endpoint("execution").status()


def test_aws_region_is_read(monkeypatch: pytest.MonkeyPatch, aws: FakeAws) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert SageMakerEndpoints(ROLE, IMAGE, BUCKET).session.region_name == "eu-west-1"


def test_a_bundle_that_is_not_what_the_release_names(
    aws: FakeAws, endpoint: SageMakerEndpoint, release: MakeRelease
) -> None:
    first = release(1)
    first.bundle.write_bytes(b"torn")
    with pytest.raises(EndpointError, match="is not the bundle that the release names"):
        endpoint.deploy(first, ROLLOUT)
    first.bundle.unlink()
    with pytest.raises(EndpointError, match="cannot be read: No such file"):
        endpoint.deploy(first, ROLLOUT)
    assert aws.changes() == []


def test_an_object_that_is_not_the_bundle_is_replaced(
    aws: FakeAws, account: SageMakerEndpoints, endpoint: SageMakerEndpoint, release: MakeRelease
) -> None:
    first = release(1)
    key = f"quant/execution/{first.digest}/model.tar.gz"
    account.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"half of it")
    endpoint.deploy(first, ROLLOUT)
    assert aws.objects()[key].value == first.bundle.read_bytes()


@pytest.mark.parametrize("name", ["", "a_b", "-a", "a-", "a b", "a/b", "a" * 45, "ä"])
def test_names_that_sagemaker_does_not_take(account: SageMakerEndpoints, name: str) -> None:
    with pytest.raises(EndpointError, match="letters, digits and hyphens"):
        account.endpoint(name)


def test_the_longest_name_fits(account: SageMakerEndpoints, release: MakeRelease) -> None:
    assert len(account.endpoint("a" * 44).config_of(release(1))) == 63


def test_settings_say_where(tmp_path: Path) -> None:
    given_settings = load_settings(
        home=tmp_path,
        endpoint_backend="sagemaker",
        sagemaker_role_arn=ROLE,
        sagemaker_image_uri=IMAGE,
        sagemaker_bucket=BUCKET,
        sagemaker_prefix="desk",
        sagemaker_instance_type="ml.c5.large",
    )
    account = SageMakerEndpoints.of(given_settings)
    assert (account.role_arn, account.image_uri, account.bucket) == (ROLE, IMAGE, BUCKET)
    assert account.endpoint("execution").aws_name == "desk-execution"
    assert account.instance_type == "ml.c5.large"
    with pytest.raises(EndpointError, match="QUANT_SAGEMAKER_IMAGE_URI"):
        SageMakerEndpoints(ROLE, "", BUCKET)


def test_what_is_served_and_how_is_in_the_name_of_a_config(
    make_account: Callable[..., SageMakerEndpoints], release: MakeRelease
) -> None:
    accounts = [
        make_account(),
        make_account(instance_type="ml.c5.large"),
        make_account(image_uri=IMAGE + "1"),
        make_account(role_arn=ROLE + "1"),
        make_account(bucket="another"),
        make_account(prefix="desk"),
    ]
    names = {account.endpoint("execution").config_of(release(1)) for account in accounts}
    first = accounts[0].endpoint("execution")
    names |= {first.config_of(release(1, workers=2)), first.config_of(release(1, capture_share=0.5))}
    names |= {first.config_of(release(2)), accounts[0].endpoint("signal").config_of(release(1))}
    assert len(names) == 10
    # Lineage decides nothing.
    assert first.config_of(release(1, tags={})) == first.config_of(release(1))


# -- credentials, permissions, imports ---------------------------------------------------------------------------------


def test_no_credential_is_ever_told(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, release: MakeRelease
) -> None:
    secrets = ["AKIAPLANTEDKEY000001", "planted/secret+key/of/forty/characters00", "planted-session-token"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", secrets[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets[1])
    monkeypatch.setenv("AWS_SESSION_TOKEN", secrets[2])
    # AWS's own account of a refused signature: it quotes the request.
    quoted = (
        f"The request signature we calculated does not match ({secrets[0]}). {secrets[1]}\n\nThe Canonical String for this "
        f"request should have been\n'POST\n/\n\nx-amz-security-token:{secrets[2]}\n"
    )
    endpoint = SageMakerEndpoints(ROLE, IMAGE, BUCKET, poll_seconds=0.001, figures_seconds=0.0).endpoint(
        "execution"
    )
    told: list[str] = []

    def failing(act: Callable[[], object], operation: str, code: str) -> None:
        aws.refused[operation] = [code, quoted, 1]
        with pytest.raises(EndpointError) as raised:
            act()
        error = raised.value
        told.extend([str(error), repr(error), "".join(traceback.format_exception(error))])

    # botocore itself logs whole requests at DEBUG; that is for whoever turns it on.
    for name in ("botocore", "boto3", "urllib3", "s3transfer"):
        caplog.set_level(logging.INFO, logger=name)
    with caplog.at_level(logging.DEBUG):
        failing(endpoint.status, "DescribeEndpoint", "SignatureDoesNotMatch")
        failing(endpoint.status, "DescribeEndpoint", "SomethingElse")
        failing(lambda: endpoint.deploy(release(1), ROLLOUT), "CreateEndpoint", "AccessDeniedException")
        endpoint.deploy(release(1), ROLLOUT)
        told.append(repr(endpoint.wait(30)))
        failing(lambda: endpoint.invoke(b"{}"), "InvokeEndpoint", "ThrottlingException")
        endpoint.invoke(b"{}")
        endpoint.deploy(release(2), ROLLOUT)
        told.append(repr(endpoint.rollback("why not")))
        told.append(repr(endpoint.wait(30)))
        told.append(repr([*endpoint.captured()]))
        stored = [
            *(f"{key} {item.metadata} {item.value!r}" for key, item in aws.objects().items()),
            *(
                repr(vars(item))
                for held in (
                    aws.sagemaker.endpoints,
                    aws.sagemaker.endpoint_configs,
                    aws.sagemaker._models,
                    aws.sagemaker.model_packages,
                    aws.sagemaker.model_package_groups,
                    aws.cloudwatch.alarms,
                )
                for item in held.values()
            ),
            *(repr(call) for call in aws.calls),
        ]
        endpoint.delete()
    logged = [f"{record.name} {record.getMessage()}" for record in caplog.records]
    assert any(
        "Serialized input request" in line for line in logged
    )  # sagemaker-core's were looked at as well
    assert len(told) == 16
    assert len(stored) > 30
    everything = "\n".join([*told, *stored, *logged, repr(vars(endpoint)), repr(endpoint)])
    for secret in secrets:
        assert secret not in everything


def policies() -> list[dict[str, Any]]:
    """The JSON policies of docs/sagemaker.md."""
    page = (REPOSITORY / "docs" / "sagemaker.md").read_text()
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)]


def test_the_documented_policy_allows_what_is_called_and_nothing_else(
    aws: FakeAws,
    make_account: Callable[..., SageMakerEndpoints],
    endpoint: SageMakerEndpoint,
    release: MakeRelease,
) -> None:
    waiting = {"approval": "PendingManualApproval"}
    endpoint.deploy(release(1, tags=waiting), ROLLOUT)
    endpoint.wait(30)
    endpoint.invoke(b"{}")
    endpoint.deploy(release(2), ROLLOUT)
    endpoint.rollback("once")
    endpoint.wait(30)
    endpoint.deploy(release(2), ROLLOUT)
    endpoint.wait(30)
    endpoint.deploy(release(1), ROLLOUT)
    endpoint.wait(30)
    list(endpoint.captured())
    endpoint.delete()
    called = {action_of(call.operation) for call in aws.calls}
    (caller, _) = policies()[:2]
    allowed = {action for statement in caller["Statement"] for action in statement["Action"]}
    # What no call is named after: the role is handed over, tags are set while creating, autoscaling makes its own role once and
    # scales in the name of whoever registered the endpoint.
    beside = {
        "iam:PassRole",
        "iam:CreateServiceLinkedRole",
        "sagemaker:UpdateEndpointWeightsAndCapacities",
        "cloudwatch:TagResource",
        "logs:TagResource",
    }
    assert called == allowed - beside
    assert beside <= allowed
    assert not any("*" in action for action in allowed)


def test_the_modules_are_light_and_a_status_needs_no_sagemaker_core(server: FakeAws) -> None:
    script = f"""
import sys
import quant_resources.endpoints.sagemaker as module
heavy = [name for name in ("boto3", "botocore", "sagemaker", "pydantic") if name in sys.modules]
assert not heavy, heavy
status = module.SageMakerEndpoints({ROLE!r}, {IMAGE!r}, {BUCKET!r}).endpoint("nobody").status()
assert status.phase == "absent"
assert "sagemaker" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr


# -- the script of steps -----------------------------------------------------------------------------------------------


def run_steps(endpoint: Endpoint, releases: list[Release]) -> list[tuple[str, int | None, str]]:
    """A life of an endpoint through the protocol alone."""
    seen = []

    def note(status: EndpointStatus) -> None:
        seen.append((status.phase, status.model_version, status.last_outcome))

    rollout = Rollout(canary_share=0.5, bake_seconds=0.1)
    note(endpoint.status())
    for release in releases:
        endpoint.deploy(release, rollout)
        note(endpoint.wait(60))
        assert endpoint.invoke(b"{}").status == 200
    endpoint.rollback("the steps say so")
    note(endpoint.wait(60))
    assert endpoint.invoke(b"{}").status == 200
    assert len(list(endpoint.captured())) == len(releases) + 1
    endpoint.restart("the steps say so")
    note(endpoint.wait(60))
    endpoint.delete()
    note(endpoint.status())
    return seen


def test_a_script_of_steps_needs_nothing_but_the_protocol(
    endpoint: SageMakerEndpoint, release: MakeRelease
) -> None:
    assert run_steps(endpoint, [release(1), release(2)]) == [
        ("absent", None, ""),
        ("in_service", 1, "deployed"),
        ("in_service", 2, "deployed"),
        ("in_service", 1, "rolled_back"),
        ("in_service", 1, "rolled_back"),
        ("absent", None, ""),
    ]
