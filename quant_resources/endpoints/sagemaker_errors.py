"""What AWS refuses, as an `EndpointError` in a sentence: what was being done, who refused it and the way out.

Belongs here: errors of botocore and what may be told of them. Does not belong here: the calls (`sagemaker.py`).

Errors of AWS can hold credentials: a refused signature quotes the whole request with its session token, and S3 names the access key.
So an `EndpointError` takes the first line only, without anything that is known to be secret, and does not chain the error that it
stands for: what is chained is printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from quant_resources.endpoints import EndpointDown, EndpointError

POLICY_PAGE = "docs/sagemaker.md"
SHOWN_CHARACTERS = 600
# Keys of AWS have 16 characters at least; what is shorter is a stand-in for one, such as "test", and part of many words.
SHORTEST_SECRET = 16
SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
)

DENIED = {"AccessDenied", "AccessDeniedException", "403", "Forbidden", "UnauthorizedOperation"}
NOT_KNOWN = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
THROTTLED = {
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
OVER_QUOTA = {"LimitExceededException", "ResourceLimitExceeded", "ServiceQuotaExceededException"}

# Permissions are not always called like the operations that need them.
ACTIONS = {
    "GetObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "ListObjectsV2": "s3:ListBucket",
    **{
        name: f"cloudwatch:{name}"
        for name in ("DeleteAlarms", "DescribeAlarms", "GetMetricData", "PutMetricAlarm", "SetAlarmState")
    },
    **{
        name: f"logs:{name}"
        for name in ("CreateLogGroup", "DeleteMetricFilter", "DescribeMetricFilters", "PutMetricFilter")
    },
    **{
        name: f"application-autoscaling:{name}"
        for name in (
            "DeregisterScalableTarget",
            "DescribeScalableTargets",
            "DescribeScalingPolicies",
            "PutScalingPolicy",
            "RegisterScalableTarget",
        )
    },
}


@dataclass(frozen=True)
class Account:
    """What an error may have to name.

    Attributes:
        role_arn, image_uri, bucket, instance_type: of the endpoints.
        caller: tells who asks, an ARN; '' when that cannot be found out.
        secrets: what no text may hold, beside what the environment holds.
    """

    role_arn: str
    image_uri: str
    bucket: str
    instance_type: str
    caller: Callable[[], str] = field(default=lambda: "")
    secrets: Callable[[], Collection[str]] = field(default=tuple)


def action_of(operation: str) -> str:
    """The IAM action that an operation needs.

    >>> action_of("CreateEndpoint"), action_of("ListObjectsV2")
    ('sagemaker:CreateEndpoint', 's3:ListBucket')
    """
    return ACTIONS.get(operation, f"sagemaker:{operation}")


def is_missing(error: Exception) -> bool:
    """Whether an error says that what was asked for does not exist."""
    answer = getattr(error, "response", {}).get("Error", {})
    code, message = str(answer.get("Code")), str(answer.get("Message"))
    if code in ("ResourceNotFound", "ResourceNotFoundException", "ObjectNotFoundException", "404"):
        return True
    # SageMaker has no code of its own for it.
    return code in ("ValidationException", "ValidationError") and bool(
        re.search(r"could not find|does not exist|not found", message, re.IGNORECASE)
    )


def explained(error: Exception, endpoint: str, doing: str, account: Account) -> EndpointError:
    """The error to raise instead of one of botocore's; raise it `from None`.

    Args:
        error: a `ClientError` or `BotoCoreError`.
        endpoint: its name.
        doing: what was being done, such as "deploying mlp_technical version 3".
        account: what may be named.
    """
    from botocore.exceptions import ClientError

    kind, sentence = _of_aws(error, account) if isinstance(error, ClientError) else _of_here(error)
    secrets = {os.environ.get(name, "") for name in SECRET_VARIABLES} | set(account.secrets())
    return kind(_without(f"endpoint {endpoint}, {doing}: {sentence}", secrets))


def _without(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def _first_line(message: object) -> str:
    line = (str(message).strip().splitlines() or [""])[0].strip()
    return line[:SHOWN_CHARACTERS].removesuffix(".")


def _of_here(error: Exception) -> tuple[type[EndpointError], str]:
    """Errors before AWS was reached."""
    from botocore import exceptions as of

    said = _first_line(error)
    if isinstance(error, (of.NoCredentialsError, of.PartialCredentialsError, of.CredentialRetrievalError)):
        return EndpointError, (
            f"there are no complete AWS credentials ({said}). Sign in (`aws sso login`), set AWS_PROFILE, or run under a role "
            f"with the policy of {POLICY_PAGE}."
        )
    if isinstance(error, of.ProfileNotFound):
        return EndpointError, f"{said}. Set AWS_PROFILE to a profile of ~/.aws/config."
    if isinstance(
        error,
        (of.SSOTokenLoadError, of.UnauthorizedSSOTokenError, of.TokenRetrievalError),
    ):
        return EndpointError, f"the AWS sign-in is over ({said}). Sign in again: `aws sso login`."
    if isinstance(error, of.NoRegionError):
        return EndpointError, "no AWS region is set. Set AWS_REGION, for example us-east-1."
    if isinstance(error, (of.HTTPClientError, of.ConnectionError)):
        return (
            EndpointDown,
            f"AWS cannot be reached ({said}). Check the network, the region and AWS_ENDPOINT_URL.",
        )
    return EndpointError, f"the call could not be made: {type(error).__name__}: {said}."


def _of_aws(error: Exception, account: Account) -> tuple[type[EndpointError], str]:
    """Errors that AWS answered."""
    response = getattr(error, "response", {})
    operation = str(getattr(error, "operation_name", "a call"))
    answer = response.get("Error", {})
    code, message = str(answer.get("Code", "")), str(answer.get("Message", ""))
    said = f"{operation}: {code}: {_first_line(message)}"
    attempts = response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1

    if code in DENIED:
        denied = re.search(r"User: (\S+) is not authorized to perform: (\S+)", message)
        caller, action = denied.groups() if denied else (account.caller(), action_of(operation))
        if action == "iam:PassRole":
            return EndpointError, (
                f"{caller} may not hand the role {account.role_arn} to SageMaker (iam:PassRole). Attach the policy of {POLICY_PAGE}, "
                "which names that role."
            )
        return EndpointError, (
            f"{caller or 'the caller'} has no permission {action} ({said}). Attach the policy of {POLICY_PAGE} to it."
        )
    if code in NOT_KNOWN:
        return EndpointError, (
            f"AWS does not take the credentials ({operation}: {code}): they are over, revoked or of another account. "
            "Sign in again, and look at what AWS_PROFILE and the AWS_ variables of the environment say."
        )
    if code in THROTTLED:
        kind = EndpointDown if operation == "InvokeEndpoint" else EndpointError
        return kind, (
            f"AWS takes no more calls of this kind at the moment ({said}, {attempts} attempts). Try again in a minute; raise "
            "AWS_MAX_ATTEMPTS if it happens often."
        )
    if code in OVER_QUOTA:
        return EndpointError, (
            f"a quota of the AWS account is used up ({said}). A rollout needs twice the instances of {account.instance_type} for its "
            f'time. Ask for more under Service Quotas, Amazon SageMaker, "{account.instance_type} for endpoint usage", or set '
            "QUANT_SAGEMAKER_INSTANCE_TYPE to a type that has room."
        )
    if code == "NoSuchBucket":
        return EndpointError, (
            f"the bucket {account.bucket} does not exist in this account. Create it, or correct QUANT_SAGEMAKER_BUCKET."
        )
    if code.startswith("Validation"):
        if re.search(r"assume role|invalid role|role.*(not exist|cannot be found)", message, re.IGNORECASE):
            return EndpointError, (
                f"SageMaker cannot take on the role {account.role_arn} ({said}). Check QUANT_SAGEMAKER_ROLE_ARN and that the role "
                "trusts sagemaker.amazonaws.com."
            )
        if re.search(r"\b(image|repository|ecr)\b", message, re.IGNORECASE):
            return EndpointError, (
                f"SageMaker cannot get the image {account.image_uri} ({said}). Push it, correct QUANT_SAGEMAKER_IMAGE_URI, and let "
                f"the role {account.role_arn} read the repository."
            )
        if re.search(r"model data|s3://", message, re.IGNORECASE):
            return EndpointError, (
                f"SageMaker cannot read the bundle ({said}). Let the role {account.role_arn} read s3://{account.bucket}."
            )
        if re.search(r"in-progress|in progress|currently (being )?(updat|creat)", message, re.IGNORECASE):
            return EndpointError, (
                f"something else is changing the endpoint at this moment ({said}). Wait for its end, then try again."
            )
    if operation == "InvokeEndpoint" and (
        is_missing(error)
        or response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
        or code == "ModelNotReadyException"
    ):
        return EndpointDown, f"nobody answers ({said}). Look at its status; deploy or restart it."
    if response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return EndpointDown, f"AWS has trouble of its own ({said}, {attempts} attempts). Try again later."
    return EndpointError, f"AWS refused ({said})."
