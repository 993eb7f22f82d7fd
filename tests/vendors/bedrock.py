"""A stand-in for Amazon Bedrock: boto3's own client, whose next answers and refusals a test lines up.

Belongs here: what the Converse API answers, in the shape that botocore demands. Does not belong here: anything of what is tested.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.stub import Stubber

MODEL = "amazon.nova-lite-v1:0"
# What AWS quotes of a signed request after the first line of a refusal; it must not be shown to anybody.
SIGNED = "x-amz-security-token:FQoGZXIvYXdzEJr"


class BedrockStub:
    """Answers in the order in which they are lined up; a question that none is there for is an error.

    Attributes:
        client: give this to what is tested.
    """

    def __init__(self, stubber: Stubber) -> None:
        self._stubber = stubber
        self.client: Any = stubber.client

    def answers(
        self, text: str | None, asked: str | None = None, max_tokens: int = 30, model: str = MODEL
    ) -> None:
        """The next answer; None is one without text. Where `asked` is given, exactly this question with this limit is expected."""
        expected = {
            "modelId": model,
            "messages": [{"role": "user", "content": [{"text": asked}]}],
            "inferenceConfig": {"maxTokens": max_tokens, "temperature": 0.0},
        }
        self.says([] if text is None else [{"text": text}], None if asked is None else expected)

    def says(self, content: list[dict[str, Any]], expected: dict[str, Any] | None = None) -> None:
        """The next answer, part for part."""
        self._stubber.add_response(
            "converse",
            {
                "output": {"message": {"role": "assistant", "content": content}},
                "stopReason": "end_turn",
                "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
                "metrics": {"latencyMs": 1},
            },
            expected,
        )

    def refuses(self, code: str, message: str = "told", status: int = 400, times: int = 1) -> None:
        """The next answers are refusals."""
        for _ in range(times):
            self._stubber.add_client_error("converse", code, f"{message}\n{SIGNED}", status)


@contextmanager
def bedrock_stub() -> Iterator[BedrockStub]:
    """A stub that demands in the end that everything lined up was asked for."""
    with Stubber(_client()) as stubber:
        yield BedrockStub(stubber)
        stubber.assert_no_pending_responses()


@functools.cache
def _client() -> Any:
    return boto3.client(
        "bedrock-runtime",
        region_name="us-east-1",
        aws_access_key_id="AKIDEXAMPLEEXAMPLE",
        aws_secret_access_key="wJalrXUtnFEMI/K7MDENG",
    )
