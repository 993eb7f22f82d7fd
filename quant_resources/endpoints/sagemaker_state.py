"""What an endpoint on SageMaker is doing, from what AWS says of it. Pure.

Belongs here: SageMaker's states in the words of the protocol, what was asked for last, how the last rollout ended. Does not belong
here: asking AWS (`sagemaker.py`).

SageMaker remembers the config that serves and the one that it is changing to, and forgets both once the change is over, whichever way
it ended. What is to be remembered beyond that stands in tags of the endpoint.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant_resources.endpoints import EndpointError, Phase

PHASES: Mapping[str, Phase] = {
    "Creating": "creating",
    "InService": "in_service",
    "Updating": "updating",
    "SystemUpdating": "updating",
    "RollingBack": "rolling_back",
    "Deleting": "deleting",
    "Failed": "failed",
    "OutOfService": "failed",
    "UpdateRollbackFailed": "failed",
}
# An endpoint in these states can only be deleted; in UpdateRollbackFailed it serves and can be updated.
ONLY_DELETABLE = ("Failed", "OutOfService")
# States of a new fleet that gets traffic.
WITH_TRAFFIC = ("ActivatingTraffic", "Baking")
# Of a tag without a value: sagemaker-core leaves out an empty one, which SageMaker then misses.
NOTHING = "-"


def tag_value(text: object, longest: int = 256) -> str:
    """Text in the alphabet of tags, cut to their length.

    >>> tag_value("cost > 3 bps; rolled back")
    'cost _ 3 bps_ rolled back'
    """
    allowed = re.sub(r"[^\w .:/=+\-@]", "_", str(text))
    return allowed if len(allowed) <= longest else allowed[: longest - 3] + "..."


@dataclass(frozen=True)
class Asked:
    """What was asked for last, as tags on the endpoint.

    Written before the call that it is about: a process that is killed between the two leaves an endpoint whose last change
    (`LastModifiedTime`) is still `before`, so the rollout is known not to have begun.

    Attributes:
        what: 'create', 'deploy' or 'rollback'; '' for an endpoint that was not made here.
        target: config that is to serve.
        history: the config that served, and the one that a rollback would have gone to then.
        reason: of a rollback, in words.
        before: when the endpoint was last changed, as AWS says it; '' where asking is already beginning.
    """

    what: str = ""
    target: str = ""
    history: tuple[str, ...] = ()
    reason: str = ""
    before: str = ""

    @staticmethod
    def of(tags: Mapping[str, str]) -> Asked:
        """From the endpoint's tags."""
        told = {key: "" if value == NOTHING else value for key, value in tags.items()}
        return Asked(
            what=told.get("quant:asked", ""),
            target=told.get("quant:target-config", ""),
            history=tuple(filter(None, told.get("quant:previous-config", "").split("/"))),
            reason=told.get("quant:reason", ""),
            before=told.get("quant:asked-after", ""),
        )

    def tags(self) -> dict[str, str]:
        """All of them, so that none of an earlier rollout stays."""
        told = {
            "quant:asked": self.what,
            "quant:target-config": self.target,
            "quant:previous-config": "/".join(self.history),
            "quant:reason": tag_value(self.reason),
            "quant:asked-after": self.before,
        }
        return {key: value or NOTHING for key, value in told.items()}

    def previous(self, config: str | None) -> str | None:
        """What a rollback goes to while `config` serves.

        >>> Asked("deploy", "b", ("a", "z")).previous("b")  # b took over from a
        'a'
        >>> Asked("deploy", "b", ("a", "z")).previous("a")  # b is on its way, or was rolled back
        'z'
        """
        left = self.history[1:] if self.history[:1] == (config,) else self.history
        return left[0] if left else None

    def deploying(self, config: str, target: str) -> Asked:
        """What is asked for when `target` is to take over from `config`."""
        previous = self.previous(config)
        return Asked("deploy", target, (config, previous) if previous else (config,))

    @staticmethod
    def going_back(target: str, reason: str) -> Asked:
        """What is asked for when `target`, which served before, is to serve again. From there nothing is gone back to: what it takes
        over from was given up."""
        return Asked("rollback", target, (target,), reason)


@dataclass(frozen=True)
class Seen:
    """An endpoint as AWS describes it.

    Attributes:
        arn: of the endpoint.
        state: SageMaker's word for what it is doing.
        config: that it has; of a rollout in progress the old one.
        pending: config of a rollout in progress.
        failure: why, where SageMaker says it.
        changed: when it was last changed, UTC.
        canary_share: of the last rollout, 0 to 1.
        green: states of the new fleet, such as Baking.
        instances: that serve.
        asked: see there.
    """

    arn: str
    state: str
    config: str
    pending: str | None
    failure: str
    changed: dt.datetime
    canary_share: float
    green: tuple[str, ...]
    instances: int
    asked: Asked

    @staticmethod
    def of(described: Mapping[str, Any], tags: Mapping[str, str]) -> Seen:
        """From the answer of DescribeEndpoint and the endpoint's tags."""
        pending = described.get("PendingDeploymentSummary") or {}
        policy = (described.get("LastDeploymentConfig") or {}).get("BlueGreenUpdatePolicy") or {}
        canary = policy.get("TrafficRoutingConfiguration", {}).get("CanarySize") or {}
        return Seen(
            arn=described["EndpointArn"],
            state=described["EndpointStatus"],
            config=described["EndpointConfigName"],
            pending=pending.get("EndpointConfigName"),
            failure=described.get("FailureReason") or "",
            changed=described["LastModifiedTime"].astimezone(dt.UTC),
            canary_share=canary.get("Value", 0) / 100,
            green=tuple(
                state["Status"]
                for variant in pending.get("ProductionVariants") or []
                for state in variant.get("VariantStatus") or []
            ),
            instances=sum(
                variant.get("CurrentInstanceCount") or 0
                for variant in described.get("ProductionVariants") or []
            ),
            asked=Asked.of(tags),
        )

    @property
    def phase(self) -> Phase:
        """In the words of the protocol; going back by an update of its own is a rollback as well.

        Raises:
            EndpointError: a state that this version does not know.
        """
        if self.state not in PHASES:
            raise EndpointError(
                f"{self.arn} is {self.state}, a state that this version does not know; look at the AWS console"
            )
        phase = PHASES[self.state]
        if phase == "updating" and self.pending and self.asked.what == "rollback":
            return "rolling_back"
        return phase

    @property
    def serving(self) -> str | None:
        """The config that all traffic goes to; None before the first one serves."""
        return None if self.phase == "creating" else self.config

    @property
    def target(self) -> str | None:
        """What a rollout in progress leads to."""
        if self.phase == "creating":
            return self.config
        if self.phase == "rolling_back":
            return self.asked.target if self.asked.what == "rollback" else self.config
        return self.pending if self.phase == "updating" else None

    @property
    def green_share(self) -> float:
        """Of the traffic, that the new fleet gets."""
        return self.canary_share if any(state in WITH_TRAFFIC for state in self.green) else 0.0

    @property
    def outcome(self) -> str:
        """Of the last rollout, as in `EndpointStatus`."""
        if self.phase == "failed":
            return "failed"
        begun = self.asked.what and self.asked.before != self.changed.isoformat()
        if self.phase != "in_service" or not begun:
            return ""
        if self.asked.what == "rollback":
            return "rolled_back" if self.config == self.asked.target else "failed"
        # SageMaker ends a rollback as it ends a rollout, in service and often without a reason: only the config tells them apart.
        return "deployed" if self.config == self.asked.target else "rolled_back"

    def message(self, firing: str) -> str:
        """Why it is as it is, in a sentence.

        Args:
            firing: names of alarms, '' for none.
        """
        asked, outcome = self.asked, self.outcome
        failure = f": {self.failure}" if self.failure else ""
        alarms = f"; in ALARM: {firing}" if firing else ""
        if self.phase == "failed":
            return f"{self.state} with {self.config}{failure or ', SageMaker gives no reason'}"
        if self.phase == "creating":
            return f"the instances of {self.config} are being started"
        if self.phase == "deleting":
            return "it is being deleted"
        if self.phase == "updating" and not self.pending:
            return f"{self.state}: SageMaker changes its capacity or maintains it"
        if self.phase == "rolling_back" and asked.what == "rollback":
            return f"going back to {asked.target}: {asked.reason}"
        if self.phase in ("updating", "rolling_back"):
            fleet = f" ({', '.join(self.green)})" if self.green else ""
            return f"from {self.config} to {self.pending or self.target}{fleet}{failure}{alarms}"
        if outcome == "rolled_back" and asked.what == "rollback":
            return f"rolled back to {self.config}: {asked.reason}"
        if outcome == "rolled_back":
            return f"SageMaker rolled {asked.target} back to {self.config}{failure}{alarms}"
        if outcome == "failed":
            return f"{self.config} serves on, going back to {asked.target} did not come about{failure}"
        return self.failure
