"""Bedrock: what is asked again and how long it waits, how each refusal is told, and which answers are JSON."""

import doctest
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_resources import bedrock
from quant_resources.bedrock import (
    ATTEMPTS,
    BedrockBusy,
    BedrockError,
    BedrockModel,
    NoUsableAnswer,
    beginning,
    read_json,
)
from tests.vendors.bedrock import MODEL, SIGNED, BedrockStub, bedrock_stub


def test_examples_in_the_module_run() -> None:
    results = doctest.testmod(bedrock)
    assert results.attempted >= 1
    assert results.failed == 0


@pytest.fixture
def stub() -> Iterator[BedrockStub]:
    with bedrock_stub() as made:
        yield made


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def model(stub: BedrockStub, pauses: list[float]) -> BedrockModel:
    return BedrockModel(MODEL, stub.client, pauses.append)


# ---------------------------------------------------------------------------------------------------------- answers


def test_one_question_one_answer(model: BedrockModel, stub: BedrockStub) -> None:
    stub.answers("[1]", "a list?", max_tokens=12)
    assert model.ask("a list?", read_json, max_tokens=12) == ([1], "a list?", "[1]")
    assert model.asked == 1


def test_an_answer_is_the_text_of_its_parts(model: BedrockModel, stub: BedrockStub) -> None:
    thought = {"reasoningContent": {"reasoningText": {"text": "one and two"}}}
    stub.says([thought, {"text": "[1,"}, {"text": "2]"}])
    assert model.ask("a list?", read_json, max_tokens=9)[0] == [1, 2]


def test_an_answer_that_cannot_be_read_is_asked_for_once_more(model: BedrockModel, stub: BedrockStub) -> None:
    again = (
        'a list?\nAn earlier answer could not be used: it is not a JSON object: it begins with "Sure.". '
        "Answer with the JSON object alone."
    )
    stub.answers("Sure.", "a list?")
    stub.answers("[1]", again)
    assert model.ask("a list?", read_json, max_tokens=30) == ([1], again, "[1]")
    stub.answers("[1, 2")
    stub.answers(None)
    with pytest.raises(NoUsableAnswer, match=r'^it is not a JSON object: it begins with ""$'):
        model.ask("a list?", read_json, max_tokens=30)
    assert model.asked == 4


@pytest.mark.parametrize(
    "answer", ['{"a": 1}', ' \n{"a":1}\n', '```json\n{"a": 1}\n```', '```\n{\n "a": 1}\n```\n', '```JSON\n{"a": 1}```']
)  # fmt: skip
def test_json_is_read_alone_or_in_a_fence(answer: str) -> None:
    assert read_json(answer) == {"a": 1}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "GOOG",
        'Sure! {"a": 1}',
        '{"a": 1} Hope this helps.',
        '```json\n{"a": 1}\n``` and ```json\n{}\n```',
        '{"a": [1, 2',
        "[" * 100_000,
        "9" * 10_000,  # longer than any number that Python reads
    ],
)
def test_anything_else_is_refused_with_its_beginning(answer: str) -> None:
    with pytest.raises(ValueError, match=r"^it is not a JSON object: it begins with ") as raised:
        read_json(answer)
    assert str(raised.value).endswith(beginning(answer))
    assert len(str(raised.value)) < 300


@given(st.text())
def test_a_beginning_is_one_line_in_quotes(answer: str) -> None:
    shown = beginning(answer)
    assert answer.startswith(json.loads(shown))
    assert len(shown.splitlines()) == 1


# --------------------------------------------------------------------------------------------------------- refusals


def test_throttling_is_waited_out_with_growing_uneven_pauses(
    model: BedrockModel, stub: BedrockStub, pauses: list[float]
) -> None:
    for code in ("ThrottlingException", "ModelNotReadyException", "ServiceUnavailableException"):
        stub.refuses(code, "Too many requests", 429)
    stub.answers("[1]")
    assert model.ask("a list?", read_json, max_tokens=30)[0] == [1]
    assert len(pauses) == 3
    for number, pause in enumerate(pauses):
        assert 0.5 * 2**number <= pause <= 1.5 * 2**number
    assert model.asked == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ThrottlingException", 429),
        ("ModelErrorException", 424),
        ("ModelTimeoutException", 408),
        ("InternalServerException", 500),
        ("NeverHeardOfException", 503),
    ],
)
def test_what_does_not_pass_is_told_in_the_end(
    model: BedrockModel, stub: BedrockStub, pauses: list[float], code: str, status: int
) -> None:
    stub.refuses(code, "Too many requests.", status, times=ATTEMPTS)
    with pytest.raises(
        BedrockBusy, match=rf"too busy for the model amazon\.nova.*\({code}: Too many requests\)"
    ) as raised:
        model.ask("a list?", read_json, max_tokens=30)
    assert len(pauses) == ATTEMPTS - 1
    assert all(0 < pause <= 24 for pause in pauses)
    assert SIGNED not in str(raised.value)
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("code", "message", "status", "told"),
    [
        (
            "AccessDeniedException",
            "You don't have access to the model with the specified model ID.",
            403,
            "does not let this caller use the model amazon.nova-lite-v1:0 (You don't have access",
        ),
        ("UnrecognizedClientException", "The token is invalid", 400, "does not take the credentials"),
        ("ExpiredTokenException", "The security token is over", 403, "Sign in again (`aws sso login`)"),
        ("NeverHeardOfException", "Who are you?", 403, "does not take the credentials (NeverHeardOf"),
        (
            "ResourceNotFoundException",
            "Could not resolve the foundation model",
            404,
            "cannot use QUANT_BEDROCK_MODEL_ID=amazon.nova-lite-v1:0 in this region",
        ),
        ("ValidationException", "The provided model identifier is invalid.", 400, "Name a text model"),
        (
            "ValidationException",
            "Invocation of model ID x with on-demand throughput isn't supported.",
            400,
            "inference profile",
        ),
        (
            "ValidationException",
            "Malformed input request",
            400,
            "Bedrock refused the question to amazon.nova-lite-v1:0 (ValidationException: Malformed input request). Try another",
        ),
    ],
)
def test_what_aws_refuses_is_told_in_a_sentence_and_not_tried_again(
    model: BedrockModel,
    stub: BedrockStub,
    pauses: list[float],
    code: str,
    message: str,
    status: int,
    told: str,
) -> None:
    stub.refuses(code, message, status)
    with pytest.raises(BedrockError) as raised:
        model.ask("a list?", read_json, max_tokens=30)
    assert told in str(raised.value)
    assert not isinstance(raised.value, BedrockBusy)
    assert (pauses, model.asked) == ([], 0)
    # What AWS quotes of a signed request appears neither in the message nor in a chained error.
    assert SIGNED not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("error", "busy", "told"),
    [
        (botocore.exceptions.NoRegionError(), False, "no AWS region is set. Set AWS_REGION"),
        (botocore.exceptions.NoCredentialsError(), False, "Sign in (`aws sso login`), or set AWS_PROFILE"),
        (botocore.exceptions.UnauthorizedSSOTokenError(), False, "the AWS sign-in is over"),
        (
            botocore.exceptions.EndpointConnectionError(endpoint_url="https://x"),
            True,
            "Bedrock cannot be reached",
        ),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="https://x"), True, "Bedrock cannot be reached"),
        (
            botocore.exceptions.ParamValidationError(report="modelId is too short"),
            False,
            "the question could not be asked: ParamValidationError: ",
        ),
    ],
)
def test_what_the_client_cannot_do_is_told_in_a_sentence(
    pauses: list[float], error: Exception, busy: bool, told: str
) -> None:
    class Failing:
        def converse(self, **_: object) -> None:
            raise error

    with pytest.raises(BedrockError) as raised:
        BedrockModel(MODEL, Failing(), pauses.append).ask("a list?", read_json, max_tokens=30)
    assert told in str(raised.value)
    assert isinstance(raised.value, BedrockBusy) == busy
    assert len(pauses) == (ATTEMPTS - 1 if busy else 0)
    assert raised.value.__context__ is None


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No AWS credentials, region or profile, and no metadata service that could give some."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_without_region_or_credentials_it_says_which_is_missing(nobody: pytest.MonkeyPatch) -> None:
    def ask() -> None:
        BedrockModel(MODEL).ask("a list?", read_json, max_tokens=30)

    with pytest.raises(BedrockError, match=r"no AWS region is set\. Set AWS_REGION"):
        ask()
    nobody.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(BedrockError, match="there are no complete AWS credentials"):
        ask()
    nobody.setenv("AWS_PROFILE", "nobodys")
    with pytest.raises(BedrockError, match=r"nobodys.*Set AWS_PROFILE to a profile"):
        ask()


def test_a_service_that_nobody_answers_for_is_busy(nobody: pytest.MonkeyPatch, pauses: list[float]) -> None:
    nobody.setenv("AWS_REGION", "us-east-1")
    nobody.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLEEXAMPLE")
    nobody.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    nobody.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # discard: nothing listens
    with pytest.raises(BedrockBusy, match="Bedrock cannot be reached"):
        BedrockModel(MODEL, pause=pauses.append).ask("a list?", read_json, max_tokens=30)
    assert len(pauses) == ATTEMPTS - 1


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(BedrockError, match=r"needs boto3.*quant-assets\[aws\]"):
        BedrockModel(MODEL).ask("a list?", read_json, max_tokens=30)
