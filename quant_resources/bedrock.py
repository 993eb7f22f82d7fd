"""Questions to a generative model on Amazon Bedrock whose answers are JSON (Converse API).

Belongs here: the client, waiting while Bedrock is busy, what AWS refuses told in a sentence, and the JSON of an answer. Does not belong
here: what is asked, what an answer must hold, and what to do without Bedrock (`peers.py`, `sources/scoring.py`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

ATTEMPTS = 6
SHOWN_CHARACTERS = 200
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL | re.IGNORECASE)

# Codes that pass by themselves: too many requests, a model that is loaded or overloaded, a service in trouble.
_PASSING = {
    "InternalServerException",
    "ModelErrorException",
    "ModelNotReadyException",
    "ModelTimeoutException",
    "RequestTimeout",
    "ServiceUnavailableException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_NOT_KNOWN = {
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}

Read = TypeVar("Read")


class BedrockError(RuntimeError):
    """Bedrock cannot be asked, or refuses. The message is whole sentences: what is wrong and the way out."""


class BedrockBusy(BedrockError):
    """Bedrock cannot answer now; the same question is worth another try in a few minutes."""


class NoUsableAnswer(BedrockError):
    """The model answered, twice, and neither could be read. The message is what is wrong with the second, as half a sentence."""


class BedrockModel:
    """A model on Bedrock, asked at temperature 0.

    Credentials and region come from the standard AWS environment; the caller needs bedrock:InvokeModel on the model.

    Args:
        model_id: model or inference profile.
        client: boto3's `bedrock-runtime`; one is made at the first question when None.
        pause: waits so many seconds while Bedrock is busy.

    Attributes:
        asked: how many answers came, whether they could be read or not.
    """

    def __init__(
        self, model_id: str, client: Any = None, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.model_id, self.asked = model_id, 0
        self._client, self._pause = client, pause

    def ask(self, prompt: str, read: Callable[[str], Read], max_tokens: int) -> tuple[Read, str, str]:
        """Ask a question; an answer that cannot be read is asked for once more, with what was wrong with it.

        Args:
            prompt: the question.
            read: makes of an answer what is wanted; raises ValueError with what is wrong, as half a sentence.
            max_tokens: length at which an answer is cut off.

        Returns:
            What `read` made of the answer, the question that it answers, and the answer itself.

        Raises:
            NoUsableAnswer: two answers in a row could not be read.
            BedrockBusy: Bedrock was too busy or out of reach every time.
            BedrockError: credentials, region, access, model.
        """
        question, complaint = prompt, ""
        for _ in range(2):
            answer = self._answer(question, max_tokens)
            try:
                return read(answer), question, answer
            except ValueError as error:
                complaint = str(error)
            # At temperature 0 the same question has the same answer.
            question = f"{prompt}\nAn earlier answer could not be used: {complaint}. Answer with the JSON object alone."
        raise NoUsableAnswer(complaint)

    def _answer(self, question: str, max_tokens: int) -> str:
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise BedrockError(
                "Bedrock needs boto3. Install the extra `aws`: pip install 'quant-assets[aws]'."
            ) from None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._client is None:
                    self._client = _open_client()
                response = self._client.converse(
                    modelId=self.model_id,
                    messages=[{"role": "user", "content": [{"text": question}]}],
                    inferenceConfig={"maxTokens": max_tokens, "temperature": 0.0},
                )
            except (ClientError, BotoCoreError) as error:
                refusal = _explained(error, self.model_id)
            else:
                self.asked += 1
                parts = response["output"].get("message", {}).get("content", [])
                return "".join(str(part["text"]) for part in parts if "text" in part)
            if not isinstance(refusal, BedrockBusy) or attempt == ATTEMPTS:
                break
            # From 1 s doubling to 16 s, and each caller somewhere around it.
            delay = 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)
            logger.warning("%s Asked again in %.1f s (attempt %d of %d).", refusal, delay, attempt, ATTEMPTS)
            self._pause(delay)
        # Outside of the handler: what botocore says may quote the signed request, and `from None` would keep it in `__context__`.
        raise refusal


def read_json(answer: str) -> Any:
    r"""What an answer says: exactly one JSON value, perhaps inside a ```json fence.

    Raises:
        ValueError: it is anything else; says how the answer begins.

    >>> read_json('```json\n{"score": 0.5}\n```')
    {'score': 0.5}
    """
    text = answer.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"it is not a JSON object: it begins with {beginning(answer)}") from None


def beginning(answer: str) -> str:
    """How an answer begins, in quotes and on one line."""
    return json.dumps(answer[:SHOWN_CHARACTERS])


def _open_client() -> Any:
    import boto3
    from botocore.config import Config

    # boto3 itself does not read AWS_REGION. Busy answers are tried again here, where a pause can be seen.
    return boto3.Session(region_name=os.environ.get("AWS_REGION") or None).client(
        "bedrock-runtime",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=70),
    )


def _explained(error: Exception, model_id: str) -> BedrockError:
    """The error to raise instead of one of botocore's: what is wrong and the way out, of the first line of what AWS said."""
    from botocore import exceptions as of

    if isinstance(error, of.ClientError):
        answer = error.response.get("Error", {})
        code, said = str(answer.get("Code", "")), _first_line(answer.get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in ("AccessDeniedException", "AccessDenied"):
            return BedrockError(
                f"Bedrock does not let this caller use the model {model_id} ({said}). Ask for access to the model in the Bedrock "
                "console of this region, allow the caller bedrock:InvokeModel on it, or name another in QUANT_BEDROCK_MODEL_ID."
            )
        if code in _NOT_KNOWN or status in (401, 403):
            return BedrockError(
                f"AWS does not take the credentials ({code}): they are over, revoked or wrong. Sign in again (`aws sso login`), and "
                "look at what AWS_PROFILE and the AWS_ variables of the environment say."
            )
        if code in _PASSING or status >= 500:
            return BedrockBusy(
                f"Bedrock is too busy for the model {model_id} ({code}: {said}); a higher quota is asked for under Service Quotas, "
                "Amazon Bedrock."
            )
        if code == "ResourceNotFoundException" or (
            code == "ValidationException" and re.search(r"model|throughput|inference profile", said, re.I)
        ):
            return BedrockError(
                f"Bedrock cannot use QUANT_BEDROCK_MODEL_ID={model_id} in this region ({said}). Name a text model that the region "
                "has, or the inference profile that the model asks for (such as us.amazon.nova-lite-v1:0)."
            )
        return BedrockError(
            f"Bedrock refused the question to {model_id} ({code}: {said}). Try another model in QUANT_BEDROCK_MODEL_ID."
        )
    said = _first_line(error)
    if isinstance(error, (of.NoCredentialsError, of.PartialCredentialsError, of.CredentialRetrievalError)):
        return BedrockError(
            f"there are no complete AWS credentials ({said}). Sign in (`aws sso login`), or set AWS_PROFILE."
        )
    if isinstance(error, (of.SSOTokenLoadError, of.UnauthorizedSSOTokenError, of.TokenRetrievalError)):
        return BedrockError(f"the AWS sign-in is over ({said}). Sign in again: `aws sso login`.")
    if isinstance(error, of.ProfileNotFound):
        return BedrockError(f"{said}. Set AWS_PROFILE to a profile of ~/.aws/config.")
    if isinstance(error, of.NoRegionError):
        return BedrockError(
            "no AWS region is set. Set AWS_REGION to one that has Bedrock, such as us-east-1."
        )
    if isinstance(error, (of.HTTPClientError, of.ConnectionError)):
        return BedrockBusy(
            f"Bedrock cannot be reached ({said}). Check the network, and that the region in AWS_REGION has Bedrock."
        )
    return BedrockError(f"the question could not be asked: {type(error).__name__}: {said}.")


def _first_line(said: object) -> str:
    line = (str(said).strip().splitlines() or [""])[0].strip()
    return line[:SHOWN_CHARACTERS].removesuffix(".")
