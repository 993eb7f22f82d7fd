"""The data plane: a client's request to a process, and its answer back.

Belongs here: which config and which process a request goes to, what happens when that one breaks, the two dialects in which clients
are answered. Does not belong here: who serves (`served.py`), bytes on a connection (`channel.py`).

Inference changes nothing, so a request may be asked again. What a canary cannot answer, or answers with a status of 400 or above, the
current config answers, and the canary's tally keeps it; so no client pays for a canary. What a dying process of the current config
did not answer waits until it has been started again.

Two paths:

- `POST /endpoints/NAME/invocations` speaks as SageMaker's runtime does: boto3's `invoke_endpoint` needs no more than this address in
  `AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME`. A model's 4xx or 5xx is status 424, `ModelError`, with the model's own status and text inside.
- `POST /endpoints/NAME/direct` gives plain HTTP clients the model's own status and body.
"""

from __future__ import annotations

import json
import time
import uuid
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

from quant_resources.endpoints import INVALID_HEADER, JSON, SERVED_BY_HEADER
from quant_resources.endpoints.channel import ChannelBroken, Reply, request_bytes
from quant_resources.endpoints.variant import Limits, Variant

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# SageMaker's limit of InvokeEndpoint.
MAX_BODY_BYTES = 6 << 20
# A request that breaks so many processes is itself the reason.
MAX_BROKEN = 3
# A canary has so many times the allowed p99 to answer; then the current config is asked.
CANARY_PATIENCE = 3.0
# What SageMaker hands on to the model, and what it hands back.
FORWARDED = ("content-type", "accept", "x-amzn-sagemaker-custom-attributes", "x-amzn-sagemaker-inference-id")
RETURNED = ("x-amzn-sagemaker-custom-attributes", SERVED_BY_HEADER, INVALID_HEADER)
TARGET_VARIANT, INVOKED_VARIANT = "x-amzn-sagemaker-target-variant", "x-amzn-invoked-production-variant"
ERROR_TYPE = "x-amzn-errortype"
MAX_MESSAGE = 2048


class Serving(Protocol):
    """What the router knows of an endpoint."""

    name: str
    current: Variant | None
    canary: Variant | None
    canary_p99_ms: float

    @property
    def phase(self) -> str:
        """What it is doing."""
        ...

    def canary_turn(self) -> Variant | None:
        """The canary if this request is one of its share."""
        ...


class Refused(Exception):
    """The router itself has no answer: error type of SageMaker's runtime, status, and why."""

    def __init__(self, kind: str, status: int, message: str) -> None:
        super().__init__(message)
        self.kind, self.status = kind, status


async def answer(
    serving: Serving, request: bytes, limits: Limits, target: str | None = None
) -> tuple[Reply, str]:
    """A request's answer and the config that gave it.

    Args:
        serving: the endpoint.
        request: as it goes to a process.
        limits: how long to wait.
        target: config that the client insists on.

    Raises:
        Refused: nobody answers in time.
    """
    if target is not None:
        return await _from_one(serving, lambda: _named(serving, target), request, limits)
    asked: Variant | None = None
    refusal: Reply | None = None

    async def try_canary() -> tuple[Reply, str] | None:
        """The canary's answer, if it is its turn, it has not been asked yet, and the answer is a good one."""
        nonlocal asked, refusal
        canary = serving.canary_turn() if asked is None else None
        if canary is None:
            return None
        asked = canary
        reply = await _from_canary(serving, canary, request, limits)
        if reply is None or INVALID_HEADER in reply.headers or reply.status >= 500:
            return None
        if reply.status >= 400:
            refusal = reply
            return None
        return reply, canary.config

    if (given := await try_canary()) is not None:
        return given
    try:
        reply, config = await _from_one(serving, lambda: serving.current, request, limits, try_canary)
    except Refused:
        if asked is None or refusal is None:
            raise
        return refusal, asked.config
    if asked is not None and refusal is not None and reply.status < 400:
        asked.tally.invalid += 1
        asked.tally.last_problem = f"{_excerpt(refusal)} to a request that {config} answers"
    return reply, config


async def _nobody() -> None:
    return None


def _named(serving: Serving, config: str) -> Variant:
    for variant in (serving.current, serving.canary):
        if variant is not None and variant.config == config:
            return variant
    raise Refused("ValidationError", 400, f"endpoint {serving.name} has no variant {config}")


async def _from_canary(serving: Serving, canary: Variant, request: bytes, limits: Limits) -> Reply | None:
    """The canary's answer, None when there is none; in any case it is in the tally."""
    process = canary.pick()
    if process is None:
        return None
    tally = canary.tally
    patience = max(limits.canary_seconds, CANARY_PATIENCE * serving.canary_p99_ms / 1000)
    began = time.perf_counter()
    try:
        with canary.asked():
            reply = await process.ask(request, min(patience, limits.answer_seconds))
    except (ChannelBroken, TimeoutError) as error:
        tally.requests += 1
        tally.errors_5xx += 1
        tally.last_problem = str(error) or f"no answer within {patience:g} s"
        return None
    _note(canary, reply, began)
    return reply


async def _from_one(
    serving: Serving,
    choose: Callable[[], Variant | None],
    request: bytes,
    limits: Limits,
    meanwhile: Callable[[], Awaitable[tuple[Reply, str] | None]] = _nobody,
) -> tuple[Reply, str]:
    """An answer of the chosen config, which may be another one at each try.

    It waits for a process that is being started again; `meanwhile` is asked whether somebody else has an answer.
    """
    until = time.monotonic() + limits.wait_seconds
    broken = 0
    while True:
        variant = choose()
        if variant is None:
            raise Refused(
                "ServiceUnavailable", 503, f"endpoint {serving.name} serves nothing (it is {serving.phase})"
            )
        process = variant.pick()
        if process is None:
            if variant.hopeless or time.monotonic() > until:
                raise Refused("ServiceUnavailable", 503, f"{variant.config} does not answer: {variant.why}")
            if (given := await meanwhile()) is not None:
                return given
            await sleep(0.01)
            continue
        began = time.perf_counter()
        try:
            with variant.asked():
                reply = await process.ask(request, limits.answer_seconds)
        except TimeoutError:
            variant.tally.requests += 1
            variant.tally.errors_5xx += 1
            variant.tally.last_problem = f"no answer within {limits.answer_seconds:g} s"
            body = {"error": "timeout", "reason": variant.tally.last_problem}
            return Reply(504, {"content-type": JSON}, json.dumps(body).encode()), variant.config
        except ChannelBroken as error:
            broken += 1
            if broken == MAX_BROKEN or time.monotonic() > until:
                variant.tally.requests += 1
                variant.tally.errors_5xx += 1
                variant.tally.last_problem = f"{broken} processes broke off, the last: {error}"
                body = {"error": "broken_off", "reason": variant.tally.last_problem}
                return Reply(502, {"content-type": JSON}, json.dumps(body).encode()), variant.config
            continue
        _note(variant, reply, began)
        return reply, variant.config


def _note(variant: Variant, reply: Reply, began: float) -> None:
    """Put an answer into the tally. `began` is of `time.perf_counter`."""
    tally = variant.tally
    tally.requests += 1
    tally.latencies_ms.append((time.perf_counter() - began) * 1000)
    if INVALID_HEADER in reply.headers:
        tally.invalid += 1
        tally.last_problem = f"invalid: {reply.headers[INVALID_HEADER]}"
    elif reply.status >= 500:
        tally.errors_5xx += 1
        tally.last_problem = _excerpt(reply)


def _excerpt(reply: Reply) -> str:
    return f"status {reply.status}: {reply.body[:200].decode(errors='replace')}"


class Router:
    """The data plane as an ASGI application.

    Args:
        endpoints: by name; looked at for each request.
        limits: see there.
    """

    def __init__(self, endpoints: Mapping[str, Serving], limits: Limits) -> None:
        self._endpoints, self._limits = endpoints, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; the path begins with /endpoints/."""
        name, _, action = scope["path"].removeprefix("/endpoints/").partition("/")
        as_sagemaker = action != "direct"
        try:
            if action not in ("invocations", "direct"):
                raise Refused(
                    "UnknownOperationException",
                    404,
                    f"{scope['path']}: POST /endpoints/NAME/invocations or .../direct",
                )
            if scope["method"] != "POST":
                raise Refused("UnknownOperationException", 405, f"{scope['method']}: only POST")
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            body = await _body(headers, receive)
            if body is None:
                return  # the client has gone
            serving = self._endpoints.get(name)
            if serving is None or serving.phase == "absent":
                raise Refused("ValidationError", 400 if as_sagemaker else 404, f"Endpoint {name} not found.")
            handed_on = {key: headers[key] for key in FORWARDED if key in headers}
            request = request_bytes("POST", "/invocations", handed_on, body)
            reply, config = await answer(serving, request, self._limits, headers.get(TARGET_VARIANT))
        except Refused as refused:
            await _send(send, *_refusal(refused, as_sagemaker))
            return
        back = {key: reply.headers[key] for key in RETURNED if key in reply.headers}
        back[INVOKED_VARIANT] = config
        if as_sagemaker and reply.status >= 400:
            back[ERROR_TYPE] = "ModelError"
            text = reply.body.decode(errors="replace")[:MAX_MESSAGE]
            error = {
                "__type": "ModelError",
                "Message": f"Received an error ({reply.status}) from {config} with message {text!r}"[
                    :MAX_MESSAGE
                ],
                "OriginalMessage": text,
                "OriginalStatusCode": reply.status,
            }
            await _send(send, 424, back, json.dumps(error).encode())
            return
        back["content-type"] = reply.headers.get("content-type", JSON)
        await _send(send, reply.status, back, reply.body)


async def _body(headers: Mapping[str, str], receive: Receive) -> bytes | None:
    """The request's body, None when the client has gone.

    Raises:
        Refused: it is too large.
    """
    too_large = Refused("ValidationError", 413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    if (
        headers.get("content-length", "0").isdigit()
        and int(headers.get("content-length", "0")) > MAX_BODY_BYTES
    ):
        raise too_large
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise too_large
        parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _refusal(refused: Refused, as_sagemaker: bool) -> tuple[int, dict[str, str], bytes]:
    message = str(refused)[:MAX_MESSAGE]
    if as_sagemaker:
        content: dict[str, str] = {"__type": refused.kind, "Message": message}
    else:
        content = {"error": refused.kind, "reason": message}
    # On both paths: it tells the router's own refusals from the model's.
    return refused.status, {ERROR_TYPE: refused.kind}, json.dumps(content).encode()


async def _send(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    lines = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    if "content-type" not in headers:
        lines.append((b"content-type", JSON.encode()))
    lines.append((b"x-amzn-requestid", str(uuid.uuid4()).encode()))
    lines.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
