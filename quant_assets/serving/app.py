"""The inference app: SageMaker's hosting contract over one bundle.

Belongs here: HTTP. Decoding, limits, statuses, health, the OpenAPI document. Does not belong here: what is answered
(`execution_plan.py`, `signal_answer.py`), processes and sockets (`__main__.py`).

    GET  /ping          200 once the model has answered a request made from the bundle itself, 503 if it could not
    POST /invocations   one request, one answer
    GET  /openapi.json  what exactly is taken and given

Every body is JSON; every answer carries `x-quant-served-by`. What a client gets wrong is a 4xx with `field` and `reason`. A 5xx is
ours: `invalid_answer` when the model's answer is wrong in itself (header `x-quant-invalid` says how), `internal_error` for what
nobody foresaw; both are one line in the log, and the process goes on.

Where answers are computed. An execution plan or a few feature rows take about a millisecond, less than handing them to a thread and
back would cost in the tail, so they are computed in the event loop. Bars go through DuckDB, and thousands of rows through the
network: those take a thread, so that /ping and small requests do not wait for them. A model whose own self-test was slow
always takes one.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from quant_assets.serving.bundle import Bundle, BundleError
from quant_assets.serving.capture import Capture
from quant_assets.serving.refusals import InvalidAnswer, RequestRefused
from quant_resources.endpoints import INVALID_HEADER, JSON, SERVED_BY_HEADER

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 1 << 20
# A client that sends its body slower than this holds a connection and, at shutdown, the process.
BODY_SECONDS = 10.0
# A self-test that takes longer moves the model's answers into threads. /ping waits no longer than this for anything.
IN_LOOP_SECONDS = 0.02
HEAVY_ROWS = 500
HEAVY_THREADS = 2
# What is quoted of a request in an answer, and of an error in the log.
QUOTED_CHARACTERS = 300


class Problem(msgspec.Struct, kw_only=True):
    """Body of every answer that is no 200.

    Attributes:
        error: what kind, for programs.
        field: of the request, such as `shares` or `rows[3].features`; '' where no one field is at fault.
        reason: for people.
    """

    error: str
    field: str
    reason: str


class Health(msgspec.Struct, kw_only=True):
    """Body of /ping when it is 200."""

    status: str
    kind: str
    served_by: str


class _Refused(Exception):
    """An answer that is no 200, on its way to the client."""

    def __init__(
        self, status: int, error: str, field: str, reason: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers or {}
        self.problem = Problem(error=error, field=_shown(field), reason=_shown(reason))


@dataclass(frozen=True)
class _Service:
    """What differs between the kinds of bundle.

    Attributes:
        request, response: structs.
        answer: request and instant to response.
        is_heavy: whether a request is worth a thread.
        example: a request that any healthy model of this bundle answers.
        asked_at: when it is asked.
        known: what this bundle adds to the JSON schema of a property of the request.
    """

    request: type[msgspec.Struct]
    response: type[msgspec.Struct]
    answer: Callable[[Any, dt.datetime], Any]
    is_heavy: Callable[[Any], bool]
    example: msgspec.Struct
    asked_at: dt.datetime
    known: dict[str, dict[str, Any]]


def make_app(bundle: Bundle, capture: Capture | None = None) -> Starlette:
    """The app that serves a bundle. The model is loaded and tried before this returns.

    Args:
        bundle: of either kind.
        capture: takes requests with their answers; closed when the app ends.

    Raises:
        BundleError: the bundle cannot be served by this code.
    """
    service = _service_of(bundle)
    wrong, self_test_seconds = _self_test(service, bundle)
    always_heavy = self_test_seconds > IN_LOOP_SECONDS
    decoder = msgspec.json.Decoder(service.request)
    encode = msgspec.json.Encoder().encode
    threads = ThreadPoolExecutor(HEAVY_THREADS, thread_name_prefix="answer")
    document = encode(openapi(bundle, service))
    served_by = {SERVED_BY_HEADER: bundle.served_by}

    def reply(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
        return Response(body, status, served_by | headers if headers else served_by, JSON)

    def refusal(refused: _Refused) -> Response:
        return reply(refused.status, encode(refused.problem), refused.headers)

    def answer(asked: Any) -> bytes:
        return encode(service.answer(asked, dt.datetime.now(dt.UTC)))

    async def invocations(request: Request) -> Response:
        try:
            body = await _read_body(request)
            asked = _decode(decoder, body)
            if always_heavy or service.is_heavy(asked):
                content = await asyncio.get_running_loop().run_in_executor(threads, answer, asked)
            else:
                content = answer(asked)
        except _Refused as refused:
            return refusal(refused)
        except RequestRefused as refused:
            return refusal(_Refused(400, "bad_request", refused.field, refused.reason))
        except InvalidAnswer as invalid:
            reason = _shown(invalid.reason)
            logger.error(
                "invalid_answer",
                extra={
                    "fields": {"event": "invalid_answer", "reason": reason, "served_by": bundle.served_by}
                },
            )
            header = {INVALID_HEADER: re.sub(r"[^ -~]", "?", reason)}
            return refusal(_Refused(500, "invalid_answer", "", reason, header))
        except asyncio.CancelledError:  # the server ends, and this answer is not ready in time
            return refusal(
                _Refused(503, "ending", "", "this process ends; ask again", {"connection": "close"})
            )
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except Exception:  # whatever one request brought about, the others are to be answered
            return unexpected()
        if capture is not None:
            capture.append(body, content)
        return reply(200, content)

    def unexpected() -> Response:
        logger.exception("internal_error", extra={"fields": {"served_by": bundle.served_by}})
        return refusal(_Refused(500, "internal_error", "", "this was not foreseen and has been logged"))

    async def ping(request: Request) -> Response:
        if wrong:
            return refusal(_Refused(503, "unhealthy", "", wrong))
        return reply(200, encode(Health(status="ok", kind=bundle.kind, served_by=bundle.served_by)))

    async def openapi_json(request: Request) -> Response:
        return reply(200, document)

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {404: ("not_found", "path"), 405: ("method_not_allowed", "method")}
        name, field = known.get(error.status_code, ("http_error", ""))
        quoted = request.url.path if field == "path" else request.method
        reason = f"{error.detail}: {quoted}. There are GET /ping, POST /invocations and GET /openapi.json."
        return refusal(_Refused(error.status_code, name, field, reason, dict(error.headers or {})))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        threads.shutdown(wait=False, cancel_futures=True)
        if capture is not None:
            capture.close()

    app = Starlette(
        routes=[
            Route("/ping", ping, methods=["GET"]),
            Route("/invocations", invocations, methods=["POST"]),
            Route("/openapi.json", openapi_json, methods=["GET"]),
        ],
        exception_handlers={HTTPException: no_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


# -- the request -------------------------------------------------------------------------------------------------------


def _shown(text: str) -> str:
    """What may be quoted: it is the client's text, of any length."""
    cut = text if len(text) <= QUOTED_CHARACTERS else text[:QUOTED_CHARACTERS] + "..."
    return cut.encode(errors="replace").decode()


def _is_json(content_type: str) -> bool:
    """Whether a content type is JSON in UTF-8; parameters may be there."""
    if content_type == JSON:
        return True
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [p.removeprefix("charset=").strip('"') for p in parameters if p.startswith("charset=")]
    return kind == JSON and all(charset in ("utf-8", "utf8", "us-ascii") for charset in charsets)


async def _read_body(request: Request) -> bytes:
    """The body, at most `MAX_REQUEST_BYTES` of it in memory."""
    content_type = request.headers.get("content-type", "")
    if not _is_json(content_type):
        reason = f"{content_type!r}: it must be {JSON}, in UTF-8"
        raise _Refused(415, "unsupported_media_type", "content-type", reason)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        reason = f"{encoding!r}: send the body as it is, without compression"
        raise _Refused(415, "unsupported_media_type", "content-encoding", reason)
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdecimal()):
        raise _Refused(400, "bad_request", "content-length", f"{declared!r} is no number of bytes")
    # Refused before it is read: what still comes is dropped by the server, piece by piece.
    if len(declared) > 15 or int(declared) > MAX_REQUEST_BYTES:
        raise _too_large()
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MAX_REQUEST_BYTES:
                    raise _too_large()
                parts.append(part)
    except TimeoutError:
        reason = f"it must arrive within {BODY_SECONDS:g} s, {size} bytes have"
        raise _Refused(408, "timeout", "body", reason, {"connection": "close"}) from None
    return b"".join(parts)


def _too_large() -> _Refused:
    return _Refused(413, "too_large", "body", f"it must be at most {MAX_REQUEST_BYTES:,} bytes")


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """The request of a body. Types are strict: 1000.0, "1000" and true are no whole numbers."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        field, reason = _located(str(error))
        raise _Refused(400, "bad_request", field, reason) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Refused(400, "bad_request", "body", f"it is not JSON in UTF-8: {error}") from None


def _located(message: str) -> tuple[str, str]:
    """(field, reason) of a message of msgspec.

    >>> _located("Expected `int`, got `float` - at `$.shares`")
    ('shares', 'Expected `int`, got `float`')
    >>> _located("Object contains unknown field `size` - at `$.market`")
    ('market.size', 'Object contains unknown field `size`')
    >>> _located("Expected `object`, got `array`")
    ('body', 'Expected `object`, got `array`')
    """
    reason, _, at = message.rpartition(" - at `$")
    if not reason:
        reason, at = message, ""
    field = at.removesuffix("`").removeprefix(".")
    if named := re.fullmatch(
        r"Object (?:contains unknown|missing required) field `(.*)`", reason, flags=re.DOTALL
    ):
        field = f"{field}.{named[1]}" if field else named[1]
    return field or "body", reason


# -- the two kinds -----------------------------------------------------------------------------------------------------


def _service_of(bundle: Bundle) -> _Service:
    # Each kind imports what it needs: an execution endpoint has no use for DuckDB and Arrow in its memory.
    services = {"execution": _execution, "signal": _signal}
    if bundle.kind not in services:
        raise BundleError(f"{bundle.served_by} is of kind {bundle.kind!r}; there are {', '.join(services)}")
    return services[bundle.kind](bundle)


def _execution(bundle: Bundle) -> _Service:
    from quant_assets.serving.execution_plan import ExecutionAnswer, ExecutionPlanner, ExecutionRequest

    planner = ExecutionPlanner(bundle)
    hours, ticker = planner.hours, planner.tickers[0]
    session = hours.sessions(hours.first, hours.last)[0]
    volume_shares = sum(bundle.description["markets"][ticker]["volume_shares"])
    return _Service(
        ExecutionRequest,
        ExecutionAnswer,
        planner.answer,
        lambda request: False,
        # 1 % of a day over a session: nothing that a model has not been trained on.
        ExecutionRequest(
            ticker=ticker,
            shares=max(1, round(volume_shares / 100)),
            horizon_minutes=hours.length(session),
        ),
        hours.opens(session),
        {"ticker": {"enum": list(planner.tickers)}},
    )


def _signal(bundle: Bundle) -> _Service:
    from quant_assets.serving.signal_answer import FeatureRow, SignalAnswer, SignalAnswerer, SignalRequest

    answerer = SignalAnswerer(bundle)
    hours = answerer.hours
    session = hours.sessions(hours.first, hours.last)[0]
    row = FeatureRow(
        # One network for all symbols is registered under "*".
        symbol="SELFTEST" if answerer.symbols == ("*",) else answerer.symbols[0],
        session=session,
        features=dict.fromkeys(answerer.inputs, 0.0),
    )
    return _Service(
        SignalRequest,
        SignalAnswer,
        answerer.answer,
        lambda request: request.bars is not None or len(request.rows or ()) > HEAVY_ROWS,
        # Rows and not bars: it is the model that is tried, and DuckDB takes 60 MiB that an endpoint asked with rows never needs.
        SignalRequest(rows=[row]),
        hours.close(session),
        {},
    )


def _self_test(service: _Service, bundle: Bundle) -> tuple[str, float]:
    """(what is wrong, '' if nothing, seconds of an answer): the example, answered and written out."""
    quickest = float("inf")
    for _ in range(3):  # the first one also fills caches; where it was far too slow, that was not why
        started = time.perf_counter()
        try:
            msgspec.json.encode(service.answer(service.example, service.asked_at))
        except Exception as error:  # whatever it is, this model does not serve; /ping says so
            wrong = _shown(f"the self-test failed: {type(error).__name__}: {error}")
            logger.error(
                "self_test_failed", extra={"fields": {"reason": wrong, "served_by": bundle.served_by}}
            )
            return wrong, 0.0
        quickest = min(quickest, time.perf_counter() - started)
        if not IN_LOOP_SECONDS < quickest < 10 * IN_LOOP_SECONDS:
            break
    return "", quickest


# -- the document ------------------------------------------------------------------------------------------------------


def openapi(bundle: Bundle, service: _Service) -> dict[str, Any]:
    """The OpenAPI 3.1 document of what is served: the structs of this code, and what the bundle knows (tickers)."""
    structs = (service.request, service.response, Problem, Health)
    (asked, answered, problem, health), components = msgspec.json.schema_components(
        structs, ref_template="#/components/schemas/{name}"
    )
    for name, known in service.known.items():
        components[service.request.__name__]["properties"][name] |= known
    by = {
        SERVED_BY_HEADER: {
            "description": "model:version:digest of the bundle that answered",
            "required": True,
            "schema": {"type": "string", "const": bundle.served_by},
        }
    }
    invalid = {
        INVALID_HEADER: {
            "description": "why the model's answer is wrong in itself; only then",
            "schema": {"type": "string"},
        }
    }

    def response(description: str, schema: dict[str, Any], headers: dict[str, Any] = by) -> dict[str, Any]:
        return {"description": description, "headers": headers, "content": {JSON: {"schema": schema}}}

    def operation(name: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"operationId": name, "summary": summary, **more, "responses": responses}

    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{bundle.model}, {bundle.kind}",
            "version": str(bundle.version),
            "description": f"SageMaker's hosting contract, served by {bundle.served_by}.",
        },
        "paths": {
            "/ping": {
                "get": operation(
                    "ping",
                    "Whether the model answers",
                    {
                        "200": response("it answered a request made from the bundle", health),
                        "503": response("it did not, and why", problem),
                    },
                )
            },
            "/invocations": {
                "post": operation(
                    "invocations",
                    "One request, one answer",
                    {
                        "200": response("the answer", answered),
                        "400": response("the request cannot be answered; which field and why", problem),
                        "408": response(f"the body did not arrive within {BODY_SECONDS:g} s", problem),
                        "413": response(f"the body exceeds {MAX_REQUEST_BYTES:,} bytes", problem),
                        "415": response(f"the body is not {JSON}", problem),
                        "500": response("the model's answer is wrong, or an error", problem, by | invalid),
                        "503": response("the process ended before the answer was ready", problem),
                    },
                    requestBody={"required": True, "content": {JSON: {"schema": asked}}},
                )
            },
            "/openapi.json": {
                "get": operation(
                    "openapi", "This document", {"200": response("OpenAPI 3.1", {"type": "object"})}
                )
            },
        },
        "components": {"schemas": components},
    }
