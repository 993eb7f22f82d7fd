"""A moto server in this process, with what moto 5.2 lacks of SageMaker.

Added: UpdateEndpoint with PendingDeploymentSummary and LastDeploymentConfig; endpoints that take their time to be created, updated and
deleted; rollback when an alarm of the update is in ALARM; alarms that keep their state when they are put again; refusal of names that
exist; tags that replace each other; invocations
answered by a function of the test, shared between two fleets while a canary bakes, with SageMaker's metrics, capture files and the
two alarms that count. Taken away: empty structures, which sagemaker-core refuses.

Time goes by looks: every DescribeEndpoint is one step, so nothing here depends on a clock. What differs from AWS stands in
docs/sagemaker.md, "What the tests do not show".
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import botocore.client
import numpy as np
from moto.applicationautoscaling.models import applicationautoscaling_backends
from moto.cloudwatch.models import CloudWatchBackend, Statistics, cloudwatch_backends
from moto.core.responses import ActionResult, BaseResponse
from moto.logs.models import logs_backends
from moto.s3.models import s3_backends
from moto.sagemaker.exceptions import SagemakerClientError, ValidationError
from moto.sagemaker.models import (
    FakeEndpoint,
    FakeEndpointConfig,
    Model,
    SageMakerModelBackend,
    sagemaker_backends,
)
from moto.sagemaker.responses import SageMakerResponse
from moto.sagemakerruntime.responses import SageMakerRuntimeResponse
from moto.server import ThreadedMotoServer

REGION, ACCOUNT, BUCKET = "us-east-1", "123456789012", "quant-bucket"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/quant-endpoints"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/quant-serving:1"
# Of errors that are not the caller's.
STATUSES = {"InternalFailure": 500, "ModelNotReadyException": 429, "ServiceUnavailable": 503}
READS = ("Describe", "List", "Get", "Head", "Invoke")


@dataclass(frozen=True)
class Call:
    """One call of botocore, whoever made the client."""

    service: str
    operation: str
    params: dict[str, Any]

    @property
    def reads(self) -> bool:
        return self.operation.startswith(READS)


@dataclass
class Fleet:
    """What SageMaker does with an endpoint besides serving."""

    looks: int
    new: str = ""
    deployment: dict[str, Any] = field(default_factory=dict)
    errors: int = 0
    invalid: int = 0
    owed: float = 0.0


def this_instant() -> dt.datetime:
    """To the millisecond, as AWS answers it."""
    now = dt.datetime.now(dt.UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


Serve = Callable[[str, bytes], tuple[int, dict[str, str], bytes]]


def refuse_all(config: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """What serves as long as a test says nothing else."""
    return 500, {}, b"the test gave no answer"


class FakeAws:
    """The account.

    Attributes:
        url: of the server.
        serve: config and body to status, headers and body of the container.
        looks: how many looks a creation, an update, a rollback or a deletion takes.
        refused: operation -> (code, message, how often) that is answered instead.
        calls: of botocore, in order.
        served: configs that answered, in order.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.reset()

    def reset(self) -> None:
        """An empty account with one bucket."""
        # By hand, as moto's own reset goes through all services that there are.
        for backends in (
            s3_backends,
            sagemaker_backends,
            cloudwatch_backends,
            logs_backends,
            applicationautoscaling_backends,
        ):
            backends.reset()
        s3_backends[ACCOUNT]["aws"].create_bucket(BUCKET, REGION)
        self.serve: Serve = refuse_all
        self.looks = 4
        self.fleets: dict[str, Fleet] = {}
        self.refused: dict[str, list[Any]] = {}
        self.calls: list[Call] = []
        self.served: list[str] = []

    # -- what tests look at --------------------------------------------------------------------------------------------

    @property
    def sagemaker(self) -> SageMakerModelBackend:
        return sagemaker_backends[ACCOUNT][REGION]

    @property
    def cloudwatch(self) -> CloudWatchBackend:
        return cloudwatch_backends[ACCOUNT][REGION]

    def changes(self) -> list[Call]:
        """Calls since the last time that change something."""
        calls, self.calls = self.calls, []
        return [call for call in calls if not call.reads]

    def set_alarm(self, name: str, state: str = "ALARM") -> None:
        self.cloudwatch.set_alarm_state(name, "the test says so", "{}", state)

    def objects(self) -> dict[str, Any]:
        """S3 objects by key."""
        return dict(s3_backends[ACCOUNT]["aws"].get_bucket(BUCKET).keys.items())

    # -- time ----------------------------------------------------------------------------------------------------------

    def look(self, endpoint: FakeEndpoint) -> None:
        """One step in what goes on."""
        fleet = self.fleets[endpoint.endpoint_name]
        if endpoint.endpoint_status == "Updating" and self._alarmed(fleet):
            endpoint.endpoint_status, fleet.looks = "RollingBack", self.looks
            return
        if endpoint.endpoint_status in ("InService", "Failed", "UpdateRollbackFailed"):
            return
        fleet.looks -= 1
        if fleet.looks > 0:
            return
        if endpoint.endpoint_status == "Deleting":
            del self.sagemaker.endpoints[endpoint.endpoint_name], self.fleets[endpoint.endpoint_name]
            return
        if endpoint.endpoint_status == "Updating":
            endpoint.endpoint_config_name = fleet.new
        endpoint.endpoint_status, fleet.new = "InService", ""
        endpoint.last_modified_time = this_instant()

    def _alarmed(self, fleet: Fleet) -> bool:
        alarms = fleet.deployment.get("AutoRollbackConfiguration", {}).get("Alarms", [])
        return any(self.cloudwatch.alarms[alarm["AlarmName"]].state_value == "ALARM" for alarm in alarms)

    def describe(self, endpoint: FakeEndpoint) -> dict[str, Any]:
        """Answer of DescribeEndpoint."""
        fleet = self.fleets[endpoint.endpoint_name]
        config = self.sagemaker.endpoint_configs[endpoint.endpoint_config_name]
        variant = config.production_variants[0]
        count = variant["InitialInstanceCount"]
        told: dict[str, Any] = {
            "EndpointName": endpoint.endpoint_name,
            "EndpointArn": endpoint.arn,
            "EndpointConfigName": endpoint.endpoint_config_name,
            "EndpointStatus": endpoint.endpoint_status,
            "CreationTime": endpoint.creation_time,
            "LastModifiedTime": endpoint.last_modified_time,
            "ProductionVariants": [
                {
                    "VariantName": variant["VariantName"],
                    "CurrentInstanceCount": 0 if endpoint.endpoint_status == "Creating" else count,
                    "DesiredInstanceCount": count,
                }
            ],
        }
        if endpoint.failure_reason:
            told["FailureReason"] = endpoint.failure_reason
        if fleet.deployment:
            told["LastDeploymentConfig"] = fleet.deployment
        if fleet.new:
            state = [{"Status": "Baking"}] if self._bakes(fleet) else [{"Status": "Creating"}]
            green = {"VariantName": variant["VariantName"], "VariantStatus": state}
            told["PendingDeploymentSummary"] = {
                "EndpointConfigName": fleet.new,
                "ProductionVariants": [green],
            }
        return told

    def _bakes(self, fleet: Fleet) -> bool:
        """The last half of an update."""
        return fleet.looks <= max(1, self.looks // 2)

    # -- requests ------------------------------------------------------------------------------------------------------

    def answer(self, name: str, body: bytes) -> tuple[int, bytes] | None:
        """Status and body of the container that answers; None where nobody does."""
        endpoint = self.sagemaker.endpoints.get(name)
        if endpoint is None or endpoint.endpoint_status in ("Creating", "Deleting", "Failed", "OutOfService"):
            return None
        fleet, config = self.fleets[name], endpoint.endpoint_config_name
        routing = fleet.deployment.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
        if endpoint.endpoint_status == "Updating" and self._bakes(fleet) and routing["Type"] == "CANARY":
            fleet.owed += routing["CanarySize"]["Value"] / 100
            if fleet.owed >= 1 - 1e-9:
                fleet.owed -= 1
                config = fleet.new
        self.served.append(config)
        status, headers, content = self.serve(config, body)
        self._measure(name, config, status, headers)
        self._capture(name, config, body, content)
        if config == fleet.new:
            fleet.errors += status >= 500
            fleet.invalid += "x-quant-invalid" in headers
            for kind, count in (("5xx", fleet.errors), ("invalid", fleet.invalid)):
                alarm = self.cloudwatch.alarms[f"{name}-{kind}"]
                if count > alarm.threshold:
                    alarm.update_state(f"{count} of {config}", "{}", "ALARM")
        return status, content

    def _measure(self, name: str, config: str, status: int, headers: dict[str, str]) -> None:
        of = {"EndpointName": name, "VariantName": "AllTraffic"}
        # moto looks at whole seconds that are over.
        at = dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(seconds=2)
        values = {"Invocations": 1, "Invocation5XXErrors": int(status >= 500), "ModelLatency": 5000}
        for dimensions in (of, {**of, "EndpointConfigName": config}):
            self._datum("AWS/SageMaker", values, dimensions, at)
        if "x-quant-invalid" in headers:
            by = {"ServedBy": headers["x-quant-served-by"]}
            self._datum(f"{name.split('-')[0]}/endpoints", {f"{name}-invalid-answers": 1}, by, at)

    def _datum(
        self, namespace: str, values: dict[str, int], dimensions: dict[str, str], at: dt.datetime
    ) -> None:
        listed = [{"Name": key, "Value": value} for key, value in dimensions.items()]
        self.cloudwatch.put_metric_data(
            namespace,
            [
                {"MetricName": metric, "Value": value, "Dimensions": listed, "Timestamp": at}
                for metric, value in values.items()
            ],
        )

    def _capture(self, name: str, config: str, body: bytes, content: bytes) -> None:
        """A file of one line. SageMaker gathers lines and writes them minutes later."""
        wanted = self.sagemaker.endpoint_configs[config].data_capture_config
        if not wanted:
            return
        share, number = wanted["InitialSamplingPercentage"] / 100, len(self.served)
        if int(number * share) == int((number - 1) * share):
            return
        now = dt.datetime.now(dt.UTC)

        def side(mode: str, text: bytes) -> dict[str, str]:
            return {
                "observedContentType": "application/json",
                "mode": mode,
                "data": text.decode(),
                "encoding": "JSON",
            }

        line = {
            "captureData": {"endpointInput": side("INPUT", body), "endpointOutput": side("OUTPUT", content)},
            "eventMetadata": {"eventId": str(uuid.uuid4()), "inferenceTime": f"{now:%Y-%m-%dT%H:%M:%S.%fZ}"},
            "eventVersion": "0",
        }
        bucket, _, folder = wanted["DestinationS3Uri"].removeprefix("s3://").partition("/")
        key = f"{folder}/{name}/AllTraffic/{now:%Y/%m/%d/%H}/{now:%M-%S}-{number:06d}.jsonl"
        s3_backends[ACCOUNT]["aws"].put_object(bucket, key, json.dumps(line).encode() + b"\n")


@contextmanager
def fake_aws(record: bool = True) -> Iterator[FakeAws]:
    """A server on a free loopback port, and an environment in which boto3 finds it and nothing else.

    Args:
        record: keep the calls of botocore.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    aws = FakeAws(f"http://{host}:{port}")
    environment = {
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    foreign = [name for name in os.environ if name.startswith("AWS_") and name not in environment]
    try:
        with mock.patch.dict(os.environ, environment):
            for name in foreign:
                del os.environ[name]
            with mock.patch.multiple(BaseResponse, call_action=_refusing(aws)):
                with _sagemaker(aws), _recording(aws, record):
                    yield aws
    finally:
        server.stop()


def _refusing(aws: FakeAws) -> Callable[[BaseResponse], Any]:
    """Errors that a test asks for, instead of an answer."""
    original = BaseResponse.call_action

    def call_action(self: BaseResponse) -> Any:
        action = self._get_action()
        refused = aws.refused.get(action)
        if not refused:
            return original(self)
        code, message, left = refused
        refused[2] = left - 1
        if left <= 1:
            del aws.refused[action]
        status, headers, body = self.serialized(ActionResult(SagemakerClientError(code, message)))
        return STATUSES.get(code, status), headers, body

    return call_action


@contextmanager
def _recording(aws: FakeAws, record: bool) -> Iterator[None]:
    original = botocore.client.BaseClient._make_api_call

    def make_api_call(self: Any, operation: str, params: dict[str, Any]) -> Any:
        aws.calls.append(Call(self.meta.service_model.service_name, operation, params))
        return original(self, operation, params)

    if not record:
        yield
        return
    with mock.patch.object(botocore.client.BaseClient, "_make_api_call", make_api_call):
        yield


@contextmanager
def _sagemaker(aws: FakeAws) -> Iterator[None]:
    backend, runtime = SageMakerModelBackend, SageMakerRuntimeResponse
    create_config, create_model = backend.create_endpoint_config, backend.create_model
    statistic, put_alarm = Statistics.get_statistics_for_type, CloudWatchBackend.put_metric_alarm

    def not_again(kind: str, existing: dict[str, Any], name: str) -> None:
        if name in existing:
            raise ValidationError(f'Cannot create already existing {kind} "{existing[name].arn}".')

    def create_endpoint(
        self: Any, endpoint_name: str, endpoint_config_name: str, tags: list[dict[str, str]]
    ) -> FakeEndpoint:
        not_again("endpoint", self.endpoints, endpoint_name)
        config = self.describe_endpoint_config(endpoint_config_name)
        variants, capture = config["ProductionVariants"], config.get("DataCaptureConfig", {})
        where = (self.account_id, self.region_name, endpoint_name, endpoint_config_name)
        endpoint = FakeEndpoint(*where, variants, capture, tags)
        self.endpoints[endpoint_name] = endpoint
        endpoint.endpoint_status = "Creating"
        endpoint.last_modified_time = this_instant()
        aws.fleets[endpoint_name] = Fleet(aws.looks)
        return endpoint

    def create_config_once(self: Any, endpoint_config_name: str, **arguments: Any) -> FakeEndpointConfig:
        not_again("endpoint configuration", self.endpoint_configs, endpoint_config_name)
        return create_config(self, endpoint_config_name=endpoint_config_name, **arguments)

    def create_model_once(self: Any, model_name: str, **arguments: Any) -> Model:
        not_again("model", self._models, model_name)
        return create_model(self, model_name=model_name, **arguments)

    def the_endpoint(self: Any, name: str) -> FakeEndpoint:
        if name not in self.endpoints:
            arn = FakeEndpoint.arn_formatter(name, self.account_id, self.region_name)
            raise ValidationError(f'Could not find endpoint "{arn}".')
        return self.endpoints[name]

    def describe_endpoint(self: Any, endpoint_name: str) -> dict[str, Any]:
        aws.look(the_endpoint(self, endpoint_name))
        return aws.describe(the_endpoint(self, endpoint_name))

    def delete_endpoint(self: Any, endpoint_name: str) -> None:
        endpoint = the_endpoint(self, endpoint_name)
        if endpoint.endpoint_status in ("Creating", "Updating", "RollingBack"):
            raise ValidationError(f'Cannot update in-progress endpoint "{endpoint.arn}".')
        endpoint.endpoint_status, aws.fleets[endpoint_name].looks = "Deleting", aws.looks

    def update_endpoint(self: Any) -> ActionResult:
        endpoint = the_endpoint(self.sagemaker_backend, self._get_param("EndpointName"))
        if endpoint.endpoint_status not in ("InService", "UpdateRollbackFailed"):
            raise ValidationError(f'Cannot update in-progress endpoint "{endpoint.arn}".')
        config = self._get_param("EndpointConfigName")
        self.sagemaker_backend.describe_endpoint_config(config)
        endpoint.endpoint_status = "Updating"
        endpoint.last_modified_time = this_instant()
        aws.fleets[endpoint.endpoint_name] = Fleet(
            aws.looks, new=config, deployment=self._get_param("DeploymentConfig") or {}
        )
        return ActionResult({"EndpointArn": endpoint.arn})

    def add_tags(self: Any, arn: str, tags: list[dict[str, str]]) -> list[dict[str, str]]:
        resource, new = self._get_resource_from_arn(arn), {tag["Key"] for tag in tags}
        resource.tags = [tag for tag in resource.tags if tag["Key"] not in new] + tags
        return resource.tags

    def filled(original: Any) -> property:
        return property(
            lambda self: {k: v for k, v in original.fget(self).items() if v not in ({}, [], None)}
        )

    def invoke_endpoint(self: Any) -> Any:
        name = self.parsed_url.path.split("/")[2]
        answered = aws.answer(name, self.body.encode() if isinstance(self.body, str) else self.body)
        if answered is None:
            message = f"Endpoint {name} of account {ACCOUNT} not found."
            return (
                400,
                {"status": 400, "x-amzn-ErrorType": "ValidationError"},
                json.dumps({"message": message}),
            )
        status, content = answered
        if status < 400:
            headers = {"status": 200, "Content-Type": "application/json"}
            return 200, {**headers, "x-Amzn-Invoked-Production-Variant": "AllTraffic"}, content
        error = {
            "Message": f"Received client or server error ({status}) from primary with message ...",
            "OriginalStatusCode": status,
            "OriginalMessage": content.decode(),
        }
        return 424, {"status": 424, "x-amzn-ErrorType": "ModelError"}, json.dumps(error)

    def with_percentiles(self: Statistics, stat: str) -> Any:
        if stat.startswith("p"):
            return float(np.percentile(self.metric_single_values_list, float(stat[1:])))
        return statistic(self, stat)

    def put_alarm_again(self: CloudWatchBackend, name: str, **arguments: Any) -> Any:
        before = self.alarms.get(name)
        alarm = put_alarm(self, name=name, **arguments)
        if before is not None:
            alarm.state_value = before.state_value
        return alarm

    SageMakerResponse.update_endpoint = update_endpoint  # type: ignore[attr-defined]
    try:
        with (
            mock.patch.multiple(
                backend,
                create_endpoint=create_endpoint,
                create_endpoint_config=create_config_once,
                create_model=create_model_once,
                describe_endpoint=describe_endpoint,
                delete_endpoint=delete_endpoint,
                add_tags=add_tags,
            ),
            mock.patch.object(Model, "response_object", filled(Model.response_object)),
            mock.patch.object(
                FakeEndpointConfig, "response_object", filled(FakeEndpointConfig.response_object)
            ),
            mock.patch.object(runtime, "invoke_endpoint", invoke_endpoint),
            mock.patch.object(Statistics, "get_statistics_for_type", with_percentiles),
            mock.patch.object(CloudWatchBackend, "put_metric_alarm", put_alarm_again),
        ):
            yield
    finally:
        del SageMakerResponse.update_endpoint  # type: ignore[attr-defined]
