"""Endpoints on Amazon SageMaker.

Belongs here: what is created in the AWS account and which calls bring it about. Does not belong here: the bundle (`quant_assets/serving`),
the image (`deploy/serving`), who may do what (`docs/sagemaker.md`), what a state means (`sagemaker_state.py`), alarms and autoscaling
(`sagemaker_watch.py`), AWS's errors in words (`sagemaker_errors.py`).

Nothing is kept on this machine: status, history and settings of an endpoint are read from AWS, so that any process can go on where
another one was killed. SageMaker runs the rollout and rolls it back by itself.

    S3       PREFIX/NAME/<digest>/model.tar.gz, PREFIX/NAME/captured/<config>/...
    names    PREFIX-NAME of endpoint, model package group and log group; PREFIX-NAME-<12 hex> of config and model (the same name)
    alarms   PREFIX-NAME-{5xx,p99,invalid}, and `stop`, which a person's rollback sets off
    tags     of a config and a model: what they serve; of the endpoint: what was asked for last, see `Asked`

Model, EndpointConfig and Endpoint are created, changed and deleted through `sagemaker.core.resources`. They are read through boto3:
importing sagemaker-core takes more than a second, which a sensor's tick has not, and its `refresh()` keeps the value of a field that the
answer no longer has, such as the pending deployment of a rollout that is over. Model packages go through boto3, as
`ModelPackage.create` is broken in sagemaker 3.27; so does all that is not SageMaker's.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from quant_resources.endpoints import (
    JSON,
    Answer,
    CapturedRequest,
    EndpointDown,
    EndpointError,
    EndpointStatus,
    Release,
    Rollout,
    VariantStatus,
)
from quant_resources.endpoints.sagemaker_errors import Account, explained, is_missing
from quant_resources.endpoints.sagemaker_state import ONLY_DELETABLE, Asked, Seen, tag_value
from quant_resources.endpoints.sagemaker_watch import (
    LONGEST_BAKE_SECONDS,
    TERMINATION_SECONDS,
    VARIANT,
    Figures,
    Watch,
    bake_seconds,
    listed,
    served_by,
)

if TYPE_CHECKING:
    from boto3.session import Session

    from quant_resources.settings import Settings

logger = logging.getLogger(__name__)

MAX_NAME = 63
# Starting a fleet, without the waiting that a rollout asks for.
PROVISION_SECONDS = 1800
LONGEST_ROLLOUT_SECONDS = 28800
# Looks get rarer up to so many times the first pause.
SLOWEST_POLL = 6
DELETION_SECONDS = 600.0
# Of a request whose answers are errors of the app.
TIMES_ASKED = 3


class SageMakerEndpoints:
    """The endpoints of an AWS account and region. Credentials and region come from the standard AWS environment.

    Args:
        role_arn: that SageMaker assumes.
        image_uri: of the inference app in ECR; a tag that moves is not noticed, so name a digest or a tag that does not.
        bucket: in S3.
        instance_type: of every endpoint.
        prefix: of all names.
        most_instances: that autoscaling may start for one endpoint; a release asks for the fewest by its `workers`.
        invocations_per_instance: requests a minute that autoscaling aims at.
        poll_seconds: between the first looks at something that goes on; later ones are up to six times further apart.
        figures_seconds: so long figures of CloudWatch are not read again.

    Raises:
        EndpointError: a setting is missing.
    """

    def __init__(
        self,
        role_arn: str,
        image_uri: str,
        bucket: str,
        instance_type: str = "ml.m5.large",
        prefix: str = "quant",
        most_instances: int = 2,
        invocations_per_instance: int = 3000,
        poll_seconds: float = 5.0,
        figures_seconds: float = 60.0,
    ) -> None:
        for name, value in (("ROLE_ARN", role_arn), ("IMAGE_URI", image_uri), ("BUCKET", bucket)):
            if not value:
                raise EndpointError(f"SageMaker endpoints need QUANT_SAGEMAKER_{name}; see docs/sagemaker.md")
        self.role_arn, self.image_uri, self.bucket = role_arn, image_uri, bucket
        self.instance_type, self.prefix = instance_type, prefix
        self.most_instances, self.invocations_per_instance = most_instances, invocations_per_instance
        self.poll_seconds = poll_seconds
        self.figures = Figures(figures_seconds)
        self._config_tags: dict[str, dict[str, str]] = {}
        self._clients: dict[str, Any] = {}
        # A boto3 session makes clients one at a time; clients themselves may be shared by threads.
        self._making = threading.Lock()

    @classmethod
    def of(cls, settings: Settings) -> SageMakerEndpoints:
        """The endpoints that the settings describe."""
        return cls(
            settings.sagemaker_role_arn or "",
            settings.sagemaker_image_uri or "",
            settings.sagemaker_bucket or "",
            settings.sagemaker_instance_type,
            settings.sagemaker_prefix,
        )

    def endpoint(self, name: str) -> SageMakerEndpoint:
        """One by its name, whether it exists or not.

        Raises:
            EndpointError: SageMaker cannot have an endpoint of that name.
        """
        return SageMakerEndpoint(name, self)

    def stop(self) -> None:
        """Nothing: they run on AWS. `SageMakerEndpoint.delete` ends one."""

    @cached_property
    def session(self) -> Session:
        """Of boto3, in the region of AWS_REGION, AWS_DEFAULT_REGION or the profile."""
        import boto3
        from botocore.exceptions import NoRegionError

        # boto3 itself does not read AWS_REGION, which containers and Lambda set.
        session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
        if not session.region_name:
            raise NoRegionError()
        return session

    def client(self, service: str) -> Any:
        """A boto3 client, made once."""
        with self._making:
            if service not in self._clients:
                from botocore.config import Config

                # `standard` retries throttling with a growing pause; how often, AWS_MAX_ATTEMPTS says.
                # SageMaker gives a container 60 s to answer.
                config = Config(
                    retries={"mode": "standard"}, connect_timeout=5, read_timeout=70, max_pool_connections=32
                )
                self._clients[service] = self.session.client(service, config=config)
            return self._clients[service]

    def caller(self) -> str:
        """ARN of who asks; '' when AWS does not say."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return str(self.client("sts").get_caller_identity()["Arn"])
        except (BotoCoreError, ClientError):
            return ""

    def secrets(self) -> list[str]:
        """What no text may hold."""
        credentials = self.session.get_credentials()
        return [value for value in credentials.get_frozen_credentials() if value] if credentials else []

    def tags_of_config(self, arn: str) -> dict[str, str]:
        """Tags of a config, which never change; empty for one that was not made here."""
        if not self._config_tags.get(arn):
            self._config_tags[arn] = self.tags(arn)
        return self._config_tags[arn]

    def tags(self, arn: str) -> dict[str, str]:
        """Tags of what an ARN names; empty if there is no such thing."""
        found = self.read("list_tags", ResourceArn=arn) or {}
        return {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}

    def read(self, operation: str, **arguments: Any) -> dict[str, Any] | None:
        """Answer of SageMaker; None where what was asked for does not exist."""
        from botocore.exceptions import ClientError

        try:
            answer: dict[str, Any] = getattr(self.client("sagemaker"), operation)(**arguments)
            return answer
        except ClientError as error:
            if is_missing(error):
                return None
            raise


class SageMakerEndpoint:
    """One endpoint on SageMaker; see `Endpoint`.

    Args:
        name: letters, digits and hyphens.
        account: where.

    Attributes:
        aws_name: of the endpoint in SageMaker.

    Raises:
        EndpointError: SageMaker cannot have an endpoint of that name.
    """

    def __init__(self, name: str, account: SageMakerEndpoints) -> None:
        self.name, self._at = name, account
        self.aws_name = f"{account.prefix}-{name}"
        longest = (
            MAX_NAME - 13 - len(account.prefix) - 1
        )  # a config's name ends in a hyphen and 12 hex digits
        if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", name) or len(name) > longest:
            raise EndpointError(
                f"endpoint {name!r}: a name is letters, digits and hyphens between them, at most {longest} characters"
            )
        self._folder = f"{account.prefix}/{name}"
        self._base_tags = {"quant:project": tag_value(account.prefix), "quant:endpoint": name}
        self._watch = Watch(self.aws_name, f"{account.prefix}/endpoints", self._base_tags, account.client)

    # -- the protocol --------------------------------------------------------------------------------------------------

    def config_of(self, release: Release) -> str:
        """Name of the config that a release has here, or would have."""
        at = self._at
        return release.config(
            self.aws_name,
            instance_type=at.instance_type,
            image=at.image_uri,
            role=at.role_arn,
            bucket=at.bucket,
        )

    def status(self) -> EndpointStatus:
        """What it is doing; counts since it was last changed, latencies of the newest hour."""
        with self._plainly("reading its status"):
            return self._status(self._see())

    def deploy(self, release: Release, rollout: Rollout) -> EndpointStatus:
        """Begin to serve a release and return at once; `wait` for the end."""
        if rollout.bake_seconds > LONGEST_BAKE_SECONDS:
            raise EndpointError(
                f"endpoint {self.name}: bake_seconds = {rollout.bake_seconds:g}, SageMaker bakes {LONGEST_BAKE_SECONDS} s at most"
            )
        wanted = self.config_of(release)
        with self._plainly(f"deploying {release.model} version {release.model_version}"):
            seen = self._see()
            if seen is not None and self._changes_nothing(seen, wanted):
                if seen.phase == "in_service":
                    self._ensure_scaling(seen)
                return self._status(seen)
            location = self._upload(release)
            self._register(release, location)
            self._create_model(release, wanted, location)
            self._create_config(release, wanted)
            self._watch.put_alarms(release, rollout, wanted)
            if seen is None:
                self._create(wanted, self._base_tags | Asked("create", wanted).tags())
            elif seen.state in ONLY_DELETABLE:
                self._recreate(seen, Asked("create", wanted, seen.asked.history))
            else:
                self._update(seen, seen.asked.deploying(seen.config, wanted), self._canary(rollout))
            logger.info(
                "endpoint %s: %s version %d is being deployed as %s",
                self.name, release.model, release.model_version, wanted,
            )  # fmt: skip
            return self._status(self._see())

    def wait(
        self, timeout_seconds: float, progress: Callable[[EndpointStatus], None] | None = None
    ) -> EndpointStatus:
        """The status once it is settled; autoscaling is set up then, as SageMaker allows it in service only."""
        deadline = time.monotonic() + timeout_seconds
        pause = self._at.poll_seconds
        with self._plainly("waiting for it"):
            while True:
                seen = self._see()
                status = self._status(seen)
                if progress is not None:
                    progress(status)
                if status.settled:
                    if seen is not None and status.phase == "in_service":
                        self._ensure_scaling(seen)
                    return status
                left = deadline - time.monotonic()
                if left <= 0:
                    raise EndpointError(
                        f"endpoint {self.name} is {status.phase} still after {timeout_seconds:g} s ({status.message}). SageMaker goes "
                        "on by itself; wait again."
                    )
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, self._at.poll_seconds * SLOWEST_POLL)

    def invoke(self, body: bytes, content_type: str = JSON) -> Answer:
        """One request. An answer of 500 or above is asked for again: inference changes nothing, and SageMaker hands a canary's errors on
        to the client, while the fleet that still has most of the traffic can answer."""
        with self._plainly("asking it"):
            for _ in range(TIMES_ASKED):
                answer = self._invoke_once(body, content_type)
                if answer.status < 500:
                    break
            return answer

    def _invoke_once(self, body: bytes, content_type: str) -> Answer:
        from botocore.exceptions import ClientError

        try:
            answer = self._at.client("sagemaker-runtime").invoke_endpoint(
                EndpointName=self.aws_name, Body=body, ContentType=content_type, Accept=JSON
            )
            content = answer["Body"].read()
            return Answer(200, content, _said_served_by(content))
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "ModelError":
                raise
            # What the app answered, on which SageMaker puts a status of its own. 0 is a container that gave no answer.
            said = str(error.response.get("OriginalMessage") or error.response["Error"].get("Message"))
            return Answer(int(error.response.get("OriginalStatusCode") or 500), said.encode())

    def rollback(self, reason: str) -> EndpointStatus:
        """Go back: out of a rollout in progress, otherwise to the previous config."""
        with self._plainly("rolling it back"):
            seen = self._see()
            if seen is None:
                raise EndpointDown(f"endpoint {self.name} does not exist, so there is nothing to go back to")
            if seen.phase == "rolling_back":
                return self._status(seen)
            if seen.phase == "updating" and seen.pending:
                # The alarm first: whoever is killed in between has the rollout rolled back, only the reason is lost.
                self._watch.stop_rollout(reason)
                self._ask(
                    seen, replace(seen.asked, what="rollback", target=seen.config, reason=reason, before="")
                )
            elif seen.phase in ("in_service", "failed"):
                previous = seen.asked.previous(seen.config)
                if previous is None:
                    raise EndpointError(
                        f"endpoint {self.name} serves {seen.config} and has no previous config to go back to; deploy the version that "
                        "you want"
                    )
                asked = Asked.going_back(previous, reason)
                if seen.state in ONLY_DELETABLE:
                    self._recreate(seen, asked)
                else:
                    self._update(seen, asked, self._all_at_once())
            else:
                raise EndpointError(
                    f"endpoint {self.name} is {seen.state}, and SageMaker takes no change meanwhile. Wait for its end, then roll back."
                )
            logger.warning("endpoint %s: rolled back on request: %s", self.name, reason)
            return self._status(self._see())

    def restart(self, reason: str) -> EndpointStatus:
        """Bring an endpoint that should serve and does not back to its config. One that serves is left as it is: SageMaker replaces
        instances that fall ill."""
        with self._plainly("restarting it"):
            seen = self._see()
            if seen is None:
                raise EndpointDown(
                    f"endpoint {self.name} does not exist, and nothing says what it served; deploy a version"
                )
            if seen.state in ONLY_DELETABLE:
                logger.warning("endpoint %s: %s is created again: %s", self.name, seen.config, reason)
                self._recreate(seen, replace(seen.asked, what="create", target=seen.config, before=""))
            elif seen.phase == "failed":
                # UpdateRollbackFailed: it serves with a mix of two configs, which deleting it would end.
                logger.warning("endpoint %s: %s takes all traffic: %s", self.name, seen.config, reason)
                self._update(seen, Asked.going_back(seen.config, reason), self._all_at_once())
            return self._status(self._see())

    def captured(self, since: dt.datetime | None = None) -> Iterator[CapturedRequest]:
        """Captured requests at or after an instant, oldest first; those of an hour are in memory together."""
        from quant_resources.endpoints.captured import CaptureLineError, parse_captured

        if since is not None and since.tzinfo is None:
            raise EndpointError(
                f"endpoint {self.name}: since = {since} has no time zone; say which instant is meant"
            )
        files = self._capture_files(since)
        left_out = []
        for hour in sorted(files):
            requests = []
            for config, key in files[hour]:
                with self._plainly("reading captured requests"):
                    body = self._at.client("s3").get_object(Bucket=self._at.bucket, Key=key)["Body"].read()
                for line in filter(bytes.strip, body.splitlines()):
                    try:
                        requests.append(parse_captured(line, self.name, config))
                    except CaptureLineError as error:
                        left_out.append(f"{key}: {error}")
            yield from sorted((r for r in requests if since is None or r.at >= since), key=lambda r: r.at)
        if left_out:
            logger.warning(
                "endpoint %s: %d captured lines cannot be read and were left out, the first: %s",
                self.name, len(left_out), left_out[0],
            )  # fmt: skip

    def delete(self) -> None:
        """Take it down with its configs, models, alarms and autoscaling; returns once SageMaker has deleted it.

        Bundles, captured requests, model packages and logs stay.
        """
        with self._plainly("deleting it"):
            seen = self._see()
            self._watch.remove_scaling()
            if seen is not None:
                if seen.phase != "deleting":
                    self._delete_endpoint(seen)
                self._wait_until_gone()
            self._delete_configs_and_models()
            self._watch.remove_alarms()
            logger.info("endpoint %s: deleted; bundles, captured requests and logs stay", self.name)

    # -- reading -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _plainly(self, doing: str) -> Iterator[None]:
        """Errors of AWS as sentences."""
        from botocore.exceptions import BotoCoreError, ClientError

        at = self._at
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            # A call that AWS answered had credentials; without any, the session would search for them again.
            secrets = at.secrets if isinstance(error, ClientError) else tuple
            account = Account(
                at.role_arn, at.image_uri, at.bucket, at.instance_type, caller=at.caller, secrets=secrets
            )
            raise explained(error, self.name, doing, account) from None

    def _see(self) -> Seen | None:
        """The endpoint as it is; None where there is none."""
        described = self._at.read("describe_endpoint", EndpointName=self.aws_name)
        return Seen.of(described, self._at.tags(described["EndpointArn"])) if described else None

    def _config_tags(self, seen: Seen, config: str | None) -> dict[str, str]:
        """What a config serves."""
        if config is None:
            return {}
        return self._at.tags_of_config(
            f"{seen.arn.rpartition(':endpoint/')[0]}:endpoint-config/{config.lower()}"
        )

    def _status(self, seen: Seen | None) -> EndpointStatus:
        if seen is None:
            return EndpointStatus(
                self.name, "absent", message=f"there is no endpoint {self.aws_name} in SageMaker"
            )
        # Alarms say why only where something is, or was, on its way.
        rollout = seen.outcome == "rolled_back" or seen.phase in ("updating", "rolling_back")
        serves = self._config_tags(seen, seen.serving)
        base = self._at.client("sagemaker-runtime").meta.endpoint_url.rstrip("/")
        return EndpointStatus(
            name=self.name,
            phase=seen.phase,
            url="" if seen.phase == "deleting" else f"{base}/endpoints/{self.aws_name}/invocations",
            config=seen.serving,
            model=serves.get("quant:model"),
            model_version=_whole(serves.get("quant:model-version")),
            previous_config=seen.asked.previous(seen.config),
            target_config=seen.target,
            variants=self._variants(seen),
            last_outcome=seen.outcome,
            message=seen.message(self._watch.firing() if rollout else ""),
        )

    def _variants(self, seen: Seen) -> tuple[VariantStatus, ...]:
        """Configs that have instances.

        SageMaker counts both fleets of a rollout under the variant, and the new one under its config as well, so the serving config's
        figures have the canary's in them.
        """
        if seen.phase in ("deleting", "failed"):
            return ()
        variants = []
        for config in dict.fromkeys(filter(None, (seen.serving, seen.pending or seen.target))):
            green = config != seen.serving
            tags = self._config_tags(seen, config)
            bundle = served_by(
                tags.get("quant:model", ""),
                tags.get("quant:model-version", ""),
                tags.get("quant:digest", ""),
            )
            of = config if green and seen.serving else None
            figures = self._at.figures.of(
                (self.aws_name, of, bundle, seen.changed),
                lambda of=of, bundle=bundle: self._watch.figures(of, bundle, seen.changed),  # type: ignore[misc]
            )
            variants.append(
                VariantStatus(
                    config,
                    tags.get("quant:model", ""),
                    _whole(tags.get("quant:model-version")) or 0,
                    share=seen.green_share if green else 1 - seen.green_share,
                    ready=seen.green_share > 0 if green else seen.instances > 0,
                    requests=int(figures.get("requests", 0)),
                    errors_5xx=int(figures.get("errors", 0)),
                    invalid=int(figures.get("invalid", 0)),
                    p50_ms=figures["p50"] / 1000 if "p50" in figures else None,
                    p99_ms=figures["p99"] / 1000 if "p99" in figures else None,
                )
            )
        return tuple(variants)

    def _capture_files(self, since: dt.datetime | None) -> dict[tuple[str, ...], list[tuple[str, str]]]:
        """(config, key) of capture files by hour."""
        from quant_resources.endpoints.captured import HOUR

        files: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        with self._plainly("listing captured requests"):
            pages = self._at.client("s3").get_paginator("list_objects_v2")
            folder = f"{self._folder}/captured/"
            folders = [
                found["Prefix"]
                for page in pages.paginate(Bucket=self._at.bucket, Prefix=folder, Delimiter="/")
                for found in page.get("CommonPrefixes", [])
            ]
            for of_config in folders:
                start = {}
                if since is not None:
                    # An hour more: a file lies under the hour in which it was begun.
                    first = since.astimezone(dt.UTC) - dt.timedelta(hours=1)
                    start["StartAfter"] = f"{of_config}{self.aws_name}/{VARIANT}/{first:%Y/%m/%d/%H}"
                for page in pages.paginate(Bucket=self._at.bucket, Prefix=of_config, **start):
                    for found in page.get("Contents", []):
                        if hour := HOUR.search(found["Key"]):
                            config = of_config.removeprefix(folder).rstrip("/")
                            files.setdefault(hour.groups(), []).append((config, found["Key"]))
        return files

    # -- what a release consists of ------------------------------------------------------------------------------------

    def _changes_nothing(self, seen: Seen, wanted: str) -> bool:
        """Whether a config serves already or is on its way.

        Raises:
            EndpointError: something else is on its way.
        """
        if seen.phase in ("creating", "updating") and seen.target == wanted:
            return True
        if seen.config == wanted and seen.phase in ("in_service", "updating") and not seen.pending:
            return True
        if seen.phase in ("in_service", "failed"):
            return False
        what = f"a change to {seen.target} is in progress" if seen.target else f"it is {seen.state}"
        raise EndpointError(
            f"endpoint {self.name}: {what}, so {wanted} cannot be deployed. Wait for the end, or roll back."
        )

    def _tags_of(self, release: Release) -> dict[str, str]:
        """What a model and a config are tagged with."""
        return self._base_tags | {
            "quant:model": tag_value(release.model),
            "quant:model-version": str(release.model_version),
            "quant:digest": release.digest,
            "quant:git-commit": tag_value(release.tags.get("git_commit") or "unknown"),
        }

    def _upload(self, release: Release) -> str:
        """The bundle in S3, as s3://..."""
        bucket, key = self._at.bucket, f"{self._folder}/{release.digest}/model.tar.gz"
        try:
            content = release.bundle.read_bytes()
        except OSError as error:
            raise EndpointError(
                f"endpoint {self.name}: the bundle {release.bundle} cannot be read: {error.strerror or error}. Pack it again."
            ) from error
        if hashlib.sha256(content).hexdigest() != release.digest:
            raise EndpointError(
                f"endpoint {self.name}: {release.bundle} is not the bundle that the release names (sha256 {release.digest[:12]}...): it "
                "was changed or torn. Pack it again."
            )
        s3 = self._at.client("s3")
        # Not HeadObject: of what is not there it says 403 to whoever may list some prefixes only. S3 has an object whole or not at all.
        found = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [])
        if [(each["Key"], each["Size"]) for each in found] != [(key, len(content))]:
            s3.put_object(
                Bucket=bucket,
                Key=key,
                Body=content,
                ContentType="application/gzip",
                ServerSideEncryption="AES256",
                # S3 refuses the object if something was lost on the way.
                ChecksumAlgorithm="SHA256",
                Metadata={
                    "sha256": release.digest,
                    "model": release.model,
                    "version": str(release.model_version),
                },
            )
        return f"s3://{bucket}/{key}"

    def _register(self, release: Release, location: str) -> None:
        """A version of the model package group, or its approval if that has changed."""
        sagemaker, group = self._at.client("sagemaker"), self.aws_name
        if self._at.read("describe_model_package_group", ModelPackageGroupName=group) is None:
            sagemaker.create_model_package_group(
                ModelPackageGroupName=group,
                ModelPackageGroupDescription=f"Bundles that endpoint {self.name} has served",
                Tags=listed(self._base_tags),
            )
        approval = release.tags.get("approval") or "Approved"
        # Summaries carry the description, so a version is found without describing each.
        description = f"{release.model}:{release.model_version}:{release.digest}"
        for page in sagemaker.get_paginator("list_model_packages").paginate(ModelPackageGroupName=group):
            for package in page["ModelPackageSummaryList"]:
                if package.get("ModelPackageDescription") == description:
                    if package.get("ModelApprovalStatus") != approval:
                        sagemaker.update_model_package(
                            ModelPackageArn=package["ModelPackageArn"], ModelApprovalStatus=approval
                        )
                    return
        sagemaker.create_model_package(
            ModelPackageGroupName=group,
            ModelPackageDescription=description,
            ModelApprovalStatus=approval,
            InferenceSpecification={
                "Containers": [{"Image": self._at.image_uri, "ModelDataUrl": location}],
                "SupportedContentTypes": [JSON],
                "SupportedResponseMIMETypes": [JSON],
                "SupportedRealtimeInferenceInstanceTypes": [self._at.instance_type],
            },
            # Versions of a group take no tags; this is their place for lineage.
            CustomerMetadataProperties=lineage_properties(release),
        )

    def _create_model(self, release: Release, config: str, location: str) -> None:
        if self._at.read("describe_model", ModelName=config) is not None:
            return
        from sagemaker.core.resources import Model
        from sagemaker.core.shapes import ContainerDefinition

        Model.create(
            model_name=config,
            primary_container=ContainerDefinition(image=self._at.image_uri, model_data_url=location),
            execution_role_arn=self._at.role_arn,
            # The app needs no network: what it could leak, it cannot send.
            enable_network_isolation=True,
            tags=_shapes(self._tags_of(release)),
            **self._where,
        )

    def _create_config(self, release: Release, config: str) -> None:
        if self._at.read("describe_endpoint_config", EndpointConfigName=config) is not None:
            return
        from sagemaker.core.resources import EndpointConfig
        from sagemaker.core.shapes import (
            CaptureContentTypeHeader,
            CaptureOption,
            DataCaptureConfig,
            ProductionVariant,
        )

        capture = {}
        # sagemaker-core leaves out a percentage of 0, which SageMaker then misses: no capture is no capture config.
        if release.capture_share > 0:
            capture["data_capture_config"] = DataCaptureConfig(
                enable_capture=True,
                # Whole percents; a share below one is rounded up, so that something is captured.
                initial_sampling_percentage=max(1, round(release.capture_share * 100)),
                # A folder for each config: SageMaker's lines do not say which config answered.
                destination_s3_uri=f"s3://{self._at.bucket}/{self._folder}/captured/{config}",
                capture_options=[CaptureOption(capture_mode="Input"), CaptureOption(capture_mode="Output")],
                capture_content_type_header=CaptureContentTypeHeader(json_content_types=[JSON]),
            )
        EndpointConfig.create(
            endpoint_config_name=config,
            production_variants=[
                ProductionVariant(
                    variant_name=VARIANT,
                    model_name=config,
                    instance_type=self._at.instance_type,
                    initial_instance_count=release.workers,
                    initial_variant_weight=1.0,
                )
            ],
            tags=_shapes(
                self._tags_of(release)
                | {"quant:instances": str(release.workers), "quant:instance-type": self._at.instance_type}
            ),
            **capture,
            **self._where,
        )

    # -- the endpoint --------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> dict[str, Any]:
        """What binds a resource of sagemaker-core to the account; without it the first session of the process would be taken."""
        return {"session": self._at.session, "region": self._at.session.region_name}

    def _ensure_scaling(self, seen: Seen) -> None:
        least = _whole(self._config_tags(seen, seen.config).get("quant:instances")) or 1
        self._watch.ensure_scaling(least, self._at.most_instances, self._at.invocations_per_instance)

    def _ask(self, seen: Seen, asked: Asked) -> None:
        """Write down what is about to be asked for."""
        self._at.client("sagemaker").add_tags(ResourceArn=seen.arn, Tags=listed(asked.tags()))

    def _create(self, config: str, tags: Mapping[str, str]) -> None:
        from sagemaker.core.resources import Endpoint

        Endpoint.create(
            endpoint_name=self.aws_name, endpoint_config_name=config, tags=_shapes(tags), **self._where
        )

    def _recreate(self, seen: Seen, asked: Asked) -> None:
        """Delete an endpoint that does not serve and create it with another config or its own: SageMaker allows nothing else."""
        tags = self._at.tags(seen.arn) | asked.tags()
        self._delete_endpoint(seen)
        self._wait_until_gone()
        self._create(asked.target, tags)

    def _update(self, seen: Seen, asked: Asked, deployment: Any) -> None:
        """Have SageMaker replace one config by another."""
        from sagemaker.core.resources import Endpoint
        from sagemaker.core.shapes import VariantProperty

        types = {
            self._config_tags(seen, config).get("quant:instance-type")
            for config in (seen.config, asked.target)
        }
        if len(types) > 1:
            # SageMaker refuses to change the instance type under autoscaling; `wait` sets it up again.
            self._watch.remove_scaling()
        self._ask(seen, replace(asked, before=seen.changed.isoformat()))
        endpoint = Endpoint.get(endpoint_name=self.aws_name, **self._where)
        # `update` has no argument for the config: it sends the attribute.
        endpoint.endpoint_config_name = asked.target
        endpoint.update(
            # Autoscaling may have started instances that the config does not know of; what is captured is the config's own.
            retain_all_variant_properties=True,
            exclude_retained_variant_properties=[VariantProperty(variant_property_type="DataCaptureConfig")],
            deployment_config=deployment,
        )

    def _canary(self, rollout: Rollout) -> Any:
        """SageMaker's deployment config of a rollout, with the alarms that roll it back."""
        from sagemaker.core.shapes import (
            Alarm,
            AutoRollbackConfig,
            BlueGreenUpdatePolicy,
            CapacitySize,
            DeploymentConfig,
            TrafficRoutingConfig,
        )

        bake = bake_seconds(rollout)
        if bake > rollout.bake_seconds:
            logger.info(
                "endpoint %s: in %g s CloudWatch would see nothing of a canary, it bakes %d s",
                self.name, rollout.bake_seconds, bake,
            )  # fmt: skip
        # It bakes after the canary and again after all traffic.
        most = PROVISION_SECONDS + 2 * bake + TERMINATION_SECONDS
        size = CapacitySize(type="CAPACITY_PERCENT", value=max(1, round(rollout.canary_share * 100)))
        return DeploymentConfig(
            blue_green_update_policy=BlueGreenUpdatePolicy(
                traffic_routing_configuration=TrafficRoutingConfig(
                    type="CANARY", canary_size=size, wait_interval_in_seconds=bake
                ),
                termination_wait_in_seconds=TERMINATION_SECONDS,
                maximum_execution_timeout_in_seconds=min(most, LONGEST_ROLLOUT_SECONDS),
            ),
            auto_rollback_configuration=AutoRollbackConfig(
                alarms=[Alarm(alarm_name=name) for name in self._watch.alarms]
            ),
        )

    def _all_at_once(self) -> Any:
        """SageMaker's deployment config of a rollback: at once, and without alarms, which what is left may have set off."""
        from sagemaker.core.shapes import BlueGreenUpdatePolicy, DeploymentConfig, TrafficRoutingConfig

        return DeploymentConfig(
            blue_green_update_policy=BlueGreenUpdatePolicy(
                # sagemaker-core leaves out a 0, which SageMaker then misses.
                traffic_routing_configuration=TrafficRoutingConfig(
                    type="ALL_AT_ONCE", wait_interval_in_seconds=1
                ),
                maximum_execution_timeout_in_seconds=PROVISION_SECONDS,
            )
        )

    def _delete_endpoint(self, seen: Seen) -> None:
        from sagemaker.core.resources import Endpoint

        logger.info("endpoint %s: deleting %s, which is %s", self.name, seen.arn, seen.state)
        Endpoint.get(endpoint_name=self.aws_name, **self._where).delete()

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + DELETION_SECONDS
        pause = self._at.poll_seconds
        while self._at.read("describe_endpoint", EndpointName=self.aws_name) is not None:
            if time.monotonic() > deadline:
                raise EndpointError(
                    f"endpoint {self.name} is being deleted still after {DELETION_SECONDS:g} s; try again later"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, self._at.poll_seconds * SLOWEST_POLL)

    def _delete_configs_and_models(self) -> None:
        """Those of this endpoint: a name that begins like it may belong to another one."""
        from sagemaker.core.resources import EndpointConfig, Model

        own = re.compile(rf"{re.escape(self.aws_name)}-[0-9a-f]{{12}}")

        def names(operation: str, summaries: str, key: str) -> list[str]:
            # `get_all` of sagemaker-core would describe every one of them.
            pages = self._at.client("sagemaker").get_paginator(operation)
            found = pages.paginate(NameContains=f"{self.aws_name}-")
            return sorted(each[key] for page in found for each in page[summaries] if own.fullmatch(each[key]))

        for name in names("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"):
            EndpointConfig.get(endpoint_config_name=name, **self._where).delete()
        for name in names("list_models", "Models", "ModelName"):
            Model.get(model_name=name, **self._where).delete()


# -- small things ------------------------------------------------------------------------------------------------------


def lineage_properties(release: Release) -> dict[str, str]:
    """Lineage as `CustomerMetadataProperties`: at most 50 keys of 128 characters with values of 256, in SageMaker's alphabet."""
    lineage = {
        "model": release.model,
        "model_version": str(release.model_version),
        "digest": release.digest,
        "capture_share": f"{release.capture_share:g}",
    }
    lineage |= {key: value for key, value in sorted(release.tags.items()) if key not in lineage}
    return {tag_value(key, 128): tag_value(value) for key, value in list(lineage.items())[:50]}


def _shapes(tags: Mapping[str, str]) -> list[Any]:
    from sagemaker.core.shapes import Tag

    return [Tag(key=key, value=value) for key, value in tags.items()]


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _said_served_by(content: bytes) -> str:
    """What an answer says of its bundle: SageMaker does not pass the app's header on."""
    try:
        told = json.loads(content)
        return f"{told['model']}:{told['model_version']}:{told['bundle']}"
    except (ValueError, TypeError, KeyError):
        return ""
