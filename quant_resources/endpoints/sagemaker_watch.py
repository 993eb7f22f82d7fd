"""What watches an endpoint on SageMaker: alarms that stop a rollout, figures, autoscaling.

Belongs here: CloudWatch and Application Auto Scaling. Does not belong here: the endpoint itself (`sagemaker.py`).

The alarms of a rollout look at what the new config answers and at nothing else: CloudWatch keeps SageMaker's metrics by
`EndpointConfigName` from the moment a new fleet gets traffic, and the app's log lines say which bundle gave an invalid answer. Errors of
the config that is being replaced do not stop its repair.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from quant_resources.endpoints import Release, Rollout
from quant_resources.endpoints.sagemaker_errors import is_missing

# Old and new configs have the same one: SageMaker shifts traffic between the fleets of a variant.
VARIANT = "AllTraffic"
LONGEST_BAKE_SECONDS = 3600
# Metrics come once a minute, a minute late, and alarms look at them once a minute: a shorter bake would see nothing.
SHORTEST_BAKE_SECONDS = 180
# The old fleet is kept for so long after a rollout, in which alarms still bring all traffic back at once.
TERMINATION_SECONDS = 120
PERIOD_SECONDS = 3600
SCALING_DIMENSION = "sagemaker:variant:DesiredInstanceCount"
# Those that stop a rollout by what they measure.
MEASURED = ("5xx", "p99", "invalid")


def bake_seconds(rollout: Rollout) -> int:
    """How long a canary bakes on SageMaker."""
    return max(SHORTEST_BAKE_SECONDS, math.ceil(rollout.bake_seconds))


def served_by(model: str, version: object, digest: str) -> str:
    """A bundle as the app calls it, in its answers and its log."""
    return f"{model}:{version}:{digest[:12]}"


def listed(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as AWS takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def dimensions(**named: str) -> list[dict[str, str]]:
    """Dimensions as CloudWatch takes them."""
    return [{"Name": name, "Value": value} for name, value in named.items()]


class Figures:
    """Figures that were read a moment ago, for all endpoints of a process: CloudWatch has new ones once a minute, and reading costs.

    Args:
        kept_seconds: how long.
    """

    def __init__(self, kept_seconds: float) -> None:
        self._kept_seconds = kept_seconds
        self._kept: dict[object, tuple[float, dict[str, float]]] = {}
        self._lock = threading.Lock()

    def of(self, key: object, read: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Figures of a key, read if they are too old."""
        with self._lock:
            at, figures = self._kept.get(key, (-math.inf, {}))
        if time.monotonic() - at < self._kept_seconds:
            return figures
        figures = read()
        with self._lock:
            self._kept[key] = time.monotonic(), figures
        return figures


class Watch:
    """Alarms, figures and autoscaling of one endpoint.

    Args:
        aws_name: of the endpoint, of the log group, and how alarms begin.
        namespace: of metrics that are not SageMaker's.
        tags: of everything that is created.
        client: boto3 client of a service.
    """

    def __init__(
        self, aws_name: str, namespace: str, tags: Mapping[str, str], client: Callable[[str], Any]
    ) -> None:
        self._name, self._namespace, self._tags, self._client = aws_name, namespace, tags, client
        self._log_group = f"/aws/sagemaker/Endpoints/{aws_name}"
        self._invalid_metric = f"{aws_name}-invalid-answers"
        self._scaled = {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{aws_name}/variant/{VARIANT}",
            "ScalableDimension": SCALING_DIMENSION,
        }

    # -- alarms --------------------------------------------------------------------------------------------------------

    @property
    def alarms(self) -> list[str]:
        """Names of the alarms that roll a rollout back."""
        return [f"{self._name}-{kind}" for kind in (*MEASURED, "stop")]

    def put_alarms(self, release: Release, rollout: Rollout, config: str) -> None:
        """Alarms with the limits of a rollout, on what a config answers."""
        cloudwatch = self._client("cloudwatch")
        where = self._where(config)
        bundle = served_by(release.model, release.model_version, release.digest)
        self._count_invalid_answers()
        # One sum over the whole time in which an alarm can stop the rollout, looked at every minute.
        period = 60 * math.ceil((bake_seconds(rollout) + TERMINATION_SECONDS) / 60)
        common = {
            "EvaluationPeriods": 1,
            "ComparisonOperator": "GreaterThanThreshold",
            "TreatMissingData": "notBreaching",
            "Tags": listed(self._tags),
        }

        def measured(name: str, metric: str, stat: str) -> dict[str, Any]:
            of = {"Namespace": "AWS/SageMaker", "MetricName": metric, "Dimensions": where}
            return {
                "Id": name,
                "MetricStat": {"Metric": of, "Period": period, "Stat": stat},
                "ReturnData": False,
            }

        cloudwatch.put_metric_alarm(
            AlarmName=f"{self._name}-5xx",
            AlarmDescription=f"Answers of {config} with status 500 or above",
            Namespace="AWS/SageMaker",
            MetricName="Invocation5XXErrors",
            Dimensions=where,
            Statistic="Sum",
            Period=period,
            Threshold=float(rollout.max_errors_5xx),
            **common,
        )
        cloudwatch.put_metric_alarm(
            AlarmName=f"{self._name}-p99",
            AlarmDescription=f"99th percentile of the latency of {config}, microseconds",
            # CloudWatch's own rule for few samples wants 1,000 of them for a p99.
            Metrics=[
                measured("requests", "Invocations", "Sum"),
                measured("latency", "ModelLatency", "p99"),
                {
                    "Id": "judged",
                    "Expression": f"IF(requests >= {rollout.least_requests}, latency, 0)",
                    "ReturnData": True,
                },
            ],
            Threshold=rollout.max_p99_latency_ms * 1000,
            **common,
        )
        cloudwatch.put_metric_alarm(
            AlarmName=f"{self._name}-invalid",
            AlarmDescription=f"Answers of {bundle} that are wrong in themselves",
            Namespace=self._namespace,
            MetricName=self._invalid_metric,
            Dimensions=dimensions(ServedBy=bundle),
            Statistic="Sum",
            Period=period,
            Threshold=float(rollout.max_invalid),
            **common,
        )
        cloudwatch.put_metric_alarm(
            AlarmName=f"{self._name}-stop",
            AlarmDescription="Set off by a rollback out of a rollout in progress; nothing is measured",
            Namespace=self._namespace,
            MetricName=f"{self._name}-stop",
            Statistic="Sum",
            Period=60,
            Threshold=0.0,
            **{**common, "TreatMissingData": "ignore"},
        )
        # An alarm keeps its state when it is put again: `stop` for good, the others until the next look at their new metrics. What an
        # earlier rollout set off must not stop this one.
        for name in self._in_alarm(self.alarms):
            self._set_state(name, "OK", "a rollout begins")

    def stop_rollout(self, reason: str) -> None:
        """Have SageMaker roll back the rollout in progress.

        SageMaker has no call that ends an update, and refuses a second update meanwhile. It goes back when one of the alarms that the
        update was given is in ALARM ("If any alarms are tripped during a deployment, SageMaker rolls back the deployment",
        AutoRollbackConfig in its API reference). The state that SetAlarmState gives to an alarm holds until CloudWatch next looks at
        its metric, a minute at most, which SageMaker might overlook. The metric of `stop` never has data and missing data leave its
        state as it is, so it stays in ALARM until the next rollout begins.
        """
        self._set_state(f"{self._name}-stop", "ALARM", reason[:1000] or "asked for")

    def _set_state(self, alarm: str, state: str, reason: str) -> None:
        self._client("cloudwatch").set_alarm_state(AlarmName=alarm, StateValue=state, StateReason=reason)

    def firing(self) -> str:
        """Which alarms are in ALARM now, by name; '' for none."""
        return ", ".join(self._in_alarm([f"{self._name}-{kind}" for kind in MEASURED]))

    def _in_alarm(self, names: list[str]) -> list[str]:
        found = self._client("cloudwatch").describe_alarms(AlarmNames=names, StateValue="ALARM")
        return sorted(each["AlarmName"] for each in found["MetricAlarms"] if each["StateValue"] == "ALARM")

    def _where(self, config: str | None) -> list[dict[str, str]]:
        """Dimensions of SageMaker's metrics; without a config of all that the endpoint answers."""
        of_config = {"EndpointConfigName": config} if config else {}
        return dimensions(EndpointName=self._name, VariantName=VARIANT, **of_config)

    def _counts_invalid_answers(self) -> bool:
        from botocore.exceptions import ClientError

        try:
            found = self._client("logs").describe_metric_filters(
                logGroupName=self._log_group, filterNamePrefix=self._invalid_metric
            )["metricFilters"]
        except ClientError as error:
            if not is_missing(error):
                raise
            return False  # there is no log group yet
        return any(each["filterName"] == self._invalid_metric for each in found)

    def _count_invalid_answers(self) -> None:
        """A metric of the app's log lines. The log group is made here: SageMaker would make it with the first line."""
        from botocore.exceptions import ClientError

        if self._counts_invalid_answers():
            return
        logs = self._client("logs")
        try:
            logs.create_log_group(logGroupName=self._log_group, tags=dict(self._tags))
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceAlreadyExistsException":
                raise
        logs.put_metric_filter(
            logGroupName=self._log_group,
            filterName=self._invalid_metric,
            filterPattern='{ $.event = "invalid_answer" }',
            metricTransformations=[
                {
                    "metricName": self._invalid_metric,
                    "metricNamespace": self._namespace,
                    "metricValue": "1",
                    "dimensions": {"ServedBy": "$.served_by"},
                }
            ],
        )

    def remove_alarms(self) -> None:
        """Alarms and the metric of invalid answers; logs stay."""
        cloudwatch = self._client("cloudwatch")
        found = cloudwatch.describe_alarms(AlarmNames=self.alarms)["MetricAlarms"]
        if found:
            cloudwatch.delete_alarms(AlarmNames=sorted(each["AlarmName"] for each in found))
        if self._counts_invalid_answers():
            self._client("logs").delete_metric_filter(
                logGroupName=self._log_group, filterName=self._invalid_metric
            )

    # -- figures -------------------------------------------------------------------------------------------------------

    def figures(self, config: str | None, bundle: str, since: dt.datetime) -> dict[str, float]:
        """Requests, errors and invalid answers since an instant, p50 and p99 of the newest hour in microseconds.

        Args:
            config: of a new fleet; None: of all that the endpoint answers.
            bundle: as the app calls it.
            since: counts begin here, so that they only grow until the endpoint is changed again.

        Returns:
            By name; what CloudWatch has nothing of is not there.
        """
        where = self._where(config)
        asked = [
            ("requests", "AWS/SageMaker", "Invocations", where, "Sum"),
            ("errors", "AWS/SageMaker", "Invocation5XXErrors", where, "Sum"),
            ("p50", "AWS/SageMaker", "ModelLatency", where, "p50"),
            ("p99", "AWS/SageMaker", "ModelLatency", where, "p99"),
            ("invalid", self._namespace, self._invalid_metric, dimensions(ServedBy=bundle), "Sum"),
        ]
        now = dt.datetime.now(dt.UTC)
        answer = self._client("cloudwatch").get_metric_data(
            MetricDataQueries=[
                {
                    "Id": name,
                    "MetricStat": {
                        "Metric": {"Namespace": space, "MetricName": metric, "Dimensions": of},
                        "Period": PERIOD_SECONDS,
                        "Stat": stat,
                    },
                }
                for name, space, metric, of, stat in asked
            ],
            # CloudWatch takes no empty span.
            StartTime=min(since, now - dt.timedelta(minutes=1)),
            EndTime=now,
            ScanBy="TimestampDescending",
        )
        found = {each["Id"]: each["Values"] for each in answer["MetricDataResults"] if each["Values"]}
        return {name: values[0] if name in ("p50", "p99") else sum(values) for name, values in found.items()}

    # -- autoscaling ---------------------------------------------------------------------------------------------------

    def ensure_scaling(self, least: int, most: int, invocations_per_instance: int) -> None:
        """Autoscaling between two numbers of instances; nothing is called that would change nothing.

        Args:
            least, most: instances.
            invocations_per_instance: requests a minute that are aimed at.
        """
        scaling = self._client("application-autoscaling")
        bounds = {"MinCapacity": least, "MaxCapacity": max(least, most)}
        registered = self._registered()
        if not registered or any(registered[0][name] != value for name, value in bounds.items()):
            scaling.register_scalable_target(**self._scaled, **bounds)
        policy = {
            "TargetValue": float(invocations_per_instance),
            "PredefinedMetricSpecification": {
                "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
            },
            # Up quickly, down slowly: a fleet that is too large costs cents, one that is too small answers late.
            "ScaleOutCooldown": 60,
            "ScaleInCooldown": 600,
        }
        policies = scaling.describe_scaling_policies(**self._scaled)["ScalingPolicies"]
        told = [each.get("TargetTrackingScalingPolicyConfiguration", {}) for each in policies]
        if not any(all(each.get(key) == value for key, value in policy.items()) for each in told):
            scaling.put_scaling_policy(
                PolicyName=f"{self._name}-invocations",
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration=policy,
                **self._scaled,
            )

    def remove_scaling(self) -> None:
        """Deregistering takes the policies along."""
        if self._registered():
            self._client("application-autoscaling").deregister_scalable_target(**self._scaled)

    def _registered(self) -> list[dict[str, Any]]:
        targets: list[dict[str, Any]] = self._client("application-autoscaling").describe_scalable_targets(
            ServiceNamespace="sagemaker",
            ResourceIds=[self._scaled["ResourceId"]],
            ScalableDimension=SCALING_DIMENSION,
        )["ScalableTargets"]
        return targets
