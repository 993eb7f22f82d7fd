"""Endpoints: where a bundle answers requests. One protocol, two implementations.

Belongs here: the vocabulary (release, rollout, status) and the protocol. `local.py` is a supervised process on this machine,
`sagemaker.py` is Amazon SageMaker. Does not belong here: what a bundle says (`quant_assets/serving`), which version is to be
served (the registry), and when to deploy (jobs and sensors).

Both implementations keep SageMaker's terms. A *release* is a bundle with the settings it runs under; its *config* is named by the
content of both, so deploying the same release twice changes nothing. A *rollout* replaces the config that serves by another one: a
canary takes a share of the traffic for a while, and an alarm brings all traffic back. Rollouts run where the endpoint runs, not in the
process that asked for them: who asked may be killed, and the rollout ends all the same.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from quant_resources.settings import Settings

Phase = Literal[
    "absent", "creating", "in_service", "updating", "rolling_back", "failed", "stopped", "deleting"
]
# Phases in which nothing goes on by itself. What is `stopped` was ended on purpose, and no sensor brings it back; `failed` was not.
SETTLED: tuple[Phase, ...] = ("absent", "in_service", "failed", "stopped")
JSON = "application/json"
# An answer that the app itself found wrong carries this header with the reason, next to status 500.
INVALID_HEADER = "x-quant-invalid"
# Of every answer: which bundle gave it, `model:version:digest`.
SERVED_BY_HEADER = "x-quant-served-by"


class EndpointError(RuntimeError):
    """An endpoint cannot do what it was asked to. Names the endpoint, the reason and the way out."""


class EndpointDown(EndpointError):
    """Nobody answers: the endpoint does not exist, is not in service, or cannot be reached."""


@dataclass(frozen=True)
class Release:
    """A bundle that is to be served.

    Attributes:
        bundle: the archive, `model.tar.gz`.
        model, model_version: of the registry.
        digest: sha256 of the archive, hex.
        capture_share: part of the requests whose input and output are captured, 0 to 1.
        workers: processes that answer (local); instances are SageMaker's own setting.
        tags: lineage; carried along, no part of the identity.
    """

    bundle: Path
    model: str
    model_version: int
    digest: str
    capture_share: float = 1.0
    workers: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.capture_share <= 1:
            raise EndpointError(f"capture_share = {self.capture_share}: it is a part, 0 to 1")
        if self.workers < 1:
            raise EndpointError(f"workers = {self.workers}: at least 1 process has to answer")

    @staticmethod
    def of(bundle: Path, model: str, model_version: int, **settings: object) -> Release:
        """The release of an archive on disk."""
        digest = hashlib.sha256(Path(bundle).read_bytes()).hexdigest()
        return Release(Path(bundle), model, model_version, digest, **settings)  # type: ignore[arg-type]

    def config(self, endpoint: str, **where: object) -> str:
        """Name of the config: the endpoint, and 12 hex digits of all that decides what is served and how.

        Args:
            endpoint: its name.
            where: what else an implementation lets decide, such as an instance type or an image.
        """
        content = {"bundle": self.digest, "capture": self.capture_share, "workers": self.workers, **where}
        named = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return f"{endpoint}-{named}"


@dataclass(frozen=True)
class Rollout:
    """How a config takes over from another one, and what stops it.

    Attributes:
        canary_share: part of the traffic that the new config gets first, above 0 and at most 0.5 (SageMaker's bound).
        bake_seconds: how long it stays there.
        max_errors_5xx: answers with a status of 500 or above that are suffered during the bake; one more is an alarm.
        max_p99_latency_ms: of the canary; an alarm once `least_requests` have been seen.
        max_invalid: answers that are wrong in themselves (a schedule that does not add up); one more is an alarm.
        least_requests: fewer say nothing about latency.
        ready_seconds: how long a new process may take until it answers /ping.
    """

    canary_share: float = 0.1
    bake_seconds: float = 30.0
    max_errors_5xx: int = 0
    max_p99_latency_ms: float = 1000.0
    max_invalid: int = 0
    least_requests: int = 20
    ready_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.canary_share <= 0.5:
            raise EndpointError(f"canary_share = {self.canary_share}: above 0 and at most 0.5")
        for name in ("bake_seconds", "max_p99_latency_ms", "ready_seconds"):
            if not getattr(self, name) >= 0:
                raise EndpointError(f"{name} = {getattr(self, name)}: 0 or above")

    def as_dict(self) -> dict[str, float]:
        """Names and values, for metadata and for the wire."""
        return asdict(self)


@dataclass(frozen=True)
class VariantStatus:
    """One config of an endpoint that has processes.

    Attributes:
        config: its name.
        model, model_version: what it serves.
        share: of the traffic, 0 to 1.
        ready: whether it answers /ping.
        requests, errors_5xx, invalid: since it started (SageMaker: since the endpoint was changed last).
        p50_ms, p99_ms: of its answers; None before the first one.
    """

    config: str
    model: str
    model_version: int
    share: float
    ready: bool
    requests: int = 0
    errors_5xx: int = 0
    invalid: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True)
class EndpointStatus:
    """What an endpoint is doing.

    Attributes:
        name: of the endpoint.
        phase: see `Phase`.
        url: where invocations go, '' where there is none.
        config: that all traffic ends up at if nothing more happens; None before the first one serves.
        model, model_version: of `config`.
        previous_config: what `rollback` goes back to.
        target_config: what a rollout in progress leads to.
        variants: of all configs that have processes.
        last_outcome: of the last rollout: 'deployed', 'rolled_back', 'failed', '' before the first.
        message: why, in a sentence.
    """

    name: str
    phase: Phase
    url: str = ""
    config: str | None = None
    model: str | None = None
    model_version: int | None = None
    previous_config: str | None = None
    target_config: str | None = None
    variants: tuple[VariantStatus, ...] = ()
    last_outcome: str = ""
    message: str = ""

    @property
    def settled(self) -> bool:
        """Whether nothing goes on by itself."""
        return self.phase in SETTLED


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered.

    Attributes:
        status: HTTP status; 400 and above is the request's or the model's fault, not the network's.
        body: as it came.
        served_by: `model:version:digest`, '' where the endpoint does not say.
    """

    status: int
    body: bytes
    served_by: str = ""


@dataclass(frozen=True)
class CapturedRequest:
    """One captured request, from SageMaker's capture format, which the local endpoint writes as well.

    Attributes:
        event_id: unique.
        endpoint, config: who answered.
        at: when, UTC.
        request, response: bodies as text.
    """

    event_id: str
    endpoint: str
    config: str
    at: dt.datetime
    request: str
    response: str


class Endpoint(Protocol):
    """One endpoint. All methods raise `EndpointError` with the endpoint's name and the way out."""

    name: str

    def status(self) -> EndpointStatus:
        """What it is doing; phase `absent` when it does not exist. Quick: a sensor asks."""
        ...

    def config_of(self, release: Release) -> str:
        """Name of the config that a release has here, or would have."""
        ...

    def deploy(self, release: Release, rollout: Rollout) -> EndpointStatus:
        """Begin to serve a release and return at once; `wait` for the end.

        The first release starts without a canary. The release that serves already, or that is being rolled out, changes nothing.
        Another rollout in progress is an error.
        """
        ...

    def wait(
        self, timeout_seconds: float, progress: Callable[[EndpointStatus], None] | None = None
    ) -> EndpointStatus:
        """The status once it is settled.

        Raises:
            EndpointError: it is not, after so long.
        """
        ...

    def invoke(self, body: bytes, content_type: str = JSON) -> Answer:
        """One request. Raises `EndpointDown` when nobody answers; an answer of 400 or above is returned."""
        ...

    def rollback(self, reason: str) -> EndpointStatus:
        """Go back: out of a rollout in progress, otherwise to the previous config. Returns at once; `wait` for the end."""
        ...

    def restart(self, reason: str) -> EndpointStatus:
        """Bring an endpoint that should serve and does not back to its config."""
        ...

    def captured(self, since: dt.datetime | None = None) -> Iterator[CapturedRequest]:
        """Captured requests at or after an instant, oldest first."""
        ...

    def delete(self) -> None:
        """Take it down with its configs; captured requests stay. An endpoint that is absent stays so."""
        ...


class Endpoints(Protocol):
    """The endpoints of a deployment; the Dagster resource."""

    def endpoint(self, name: str) -> Endpoint:
        """One by its name (letters, digits and hyphens), whether it exists or not."""
        ...

    def stop(self) -> None:
        """End what this machine runs for them; what they serve stays known, and `restart` or `deploy` brings it back. Nothing
        where they run elsewhere."""
        ...


def open_endpoints(settings: Settings) -> Endpoints:
    """The endpoints that the settings name (QUANT_ENDPOINT_BACKEND)."""
    if settings.endpoint_backend == "sagemaker":
        from quant_resources.endpoints.sagemaker import SageMakerEndpoints

        return SageMakerEndpoints.of(settings)
    from quant_resources.endpoints.local import LocalEndpoints

    return LocalEndpoints(settings.endpoints_dir, settings.endpoint_port)
