"""The inference app's contract, in process: statuses, fields and reasons, limits, health, the document, captured requests."""

import asyncio
import datetime as dt
import json
import logging
import threading

import httpx
import msgspec
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate as validate_openapi
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from quant_assets.serving import app as app_module
from quant_assets.serving.app import MAX_REQUEST_BYTES, make_app
from quant_assets.serving.bundle import read_bundle
from quant_assets.serving.capture import Capture
from quant_assets.serving.execution_plan import ExecutionPlanner, ExecutionRequest
from quant_assets.serving.refusals import InvalidAnswer
from quant_assets.serving.signal_answer import SignalAnswerer
from quant_resources.endpoints import INVALID_HEADER, SERVED_BY_HEADER
from quant_resources.endpoints.captured import read_captured
from tests.serving.bundles import (
    EXECUTION_REQUEST,
    LARGE_REQUEST,
    always_wrong,
    bars_request,
    execution_bundle,
    sac_policy,
    signal_bundle,
    signal_request,
    slow_pace,
    wrong_for_large_orders,
    wrong_probability,
)

JSON = {"content-type": "application/json"}


def ask(app, method="POST", path="/invocations", content=None, headers=None, **more) -> httpx.Response:
    """One request to an app in this process."""
    if content is not None and not isinstance(content, bytes):
        content = json.dumps(content).encode()
    return asyncio.run(_ask(app, method, path, content, JSON if headers is None else headers, **more))


async def _ask(app, method, path, content=None, headers=None, **more) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return await client.request(method, path, content=content, headers=headers, **more)


def call(
    app, messages, headers=((b"content-type", b"application/json"),), cancel_after_seconds=None
) -> tuple[dict[str, object], int]:
    """POST /invocations as a server calls it.

    Args:
        messages: iterator of what the app receives; a function is awaited for its message.
        cancel_after_seconds: when the server gives the request up.

    Returns:
        Answer (status, headers, body; empty where nothing was sent), and how many messages were taken.
    """
    answer: dict[str, object] = {}
    taken = 0

    async def receive():
        nonlocal taken
        taken += 1
        message = next(messages)
        return await message() if callable(message) else message

    async def send(message):
        if message["type"] == "http.response.start":
            answer.update(status=message["status"], headers=dict(message["headers"]))
        else:
            answer["body"] = answer.get("body", b"") + message["body"]

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/invocations",
        "raw_path": b"/invocations",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("app", 80),
        "headers": list(headers),
    }

    async def run():
        task = asyncio.create_task(app(scope, receive, send))
        if cancel_after_seconds is not None:
            await asyncio.sleep(cancel_after_seconds)
            task.cancel()
        await task

    asyncio.run(run())
    return answer, taken


@pytest.fixture(scope="module")
def execution(tmp_path_factory):
    return read_bundle(execution_bundle(tmp_path_factory.mktemp("execution"), sac_policy()))


@pytest.fixture(scope="module")
def signal(tmp_path_factory):
    return read_bundle(signal_bundle(tmp_path_factory.mktemp("signal"), symbols=("AAPL", "IBM")))


@pytest.fixture(scope="module")
def execution_app(execution):
    return make_app(execution)


@pytest.fixture(scope="module")
def signal_app(signal):
    return make_app(signal)


# -- what is answered --------------------------------------------------------------------------------------------------


def test_ping_and_an_execution_request(execution, execution_app):
    ping = ask(execution_app, "GET", "/ping")
    assert ping.status_code == 200
    assert ping.json() == {"status": "ok", "kind": "execution", "served_by": execution.served_by}

    answer = ask(execution_app, content=EXECUTION_REQUEST)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    # The app adds nothing to what the planner says.
    planned = ExecutionPlanner(execution).answer(
        ExecutionRequest(**EXECUTION_REQUEST), dt.datetime.now(dt.UTC)
    )
    assert answer.content == msgspec.json.encode(planned)
    told = answer.json()
    for name in ("schedule", "twap", "vwap"):
        assert len(told[name]) == 390
        assert sum(s["shares"] for s in told[name]) == 1000


def test_signals_from_rows_and_from_bars(signal, signal_app):
    answer = ask(signal_app, content=signal_request())
    assert answer.status_code == 200
    assert [p["symbol"] for p in answer.json()["predictions"]] == ["AAPL", "IBM"]
    answer = ask(signal_app, content=bars_request())
    assert answer.status_code == 200
    assert answer.json()["session"] == "2013-03-01"
    assert all(0 <= p["probability_long"] <= 1 for p in answer.json()["predictions"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ping", 200),
        ("HEAD", "/ping", 200),
        ("GET", "/openapi.json", 200),
        ("POST", "/ping", 405),
        ("GET", "/invocations", 405),
        ("PUT", "/invocations", 405),
        ("GET", "/", 404),
        ("GET", "/ping/", 404),
        ("POST", "/invocations/x%0d%0ay", 404),
    ],
)
def test_every_answer_is_json_and_says_who_gave_it(execution, execution_app, method, path, status):
    answer = ask(execution_app, method, path)
    assert answer.status_code == status
    assert answer.headers[SERVED_BY_HEADER] == execution.served_by
    assert answer.headers["content-type"] == "application/json"
    if status >= 400:
        assert set(answer.json()) == {"error", "field", "reason"}
    if status == 405:
        assert "allow" in answer.headers


# -- what is refused ---------------------------------------------------------------------------------------------------

ORDER = '{"ticker": "AAPL", "shares": %s}'


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (b"", "body", "not JSON"),
        (b"{", "body", "not JSON"),
        (b"shares=1000", "body", "not JSON"),
        (b'{"ticker": "AAPL", "shares": 1000} {}', "body", "not JSON"),
        (b'{"ticker": "\xff\xfe", "shares": 1000}', "body", "not JSON in UTF-8"),
        ('{"ticker": "AAPL", "shares": 1000}'.encode("utf-16"), "body", "not JSON"),
        (b"\xef\xbb\xbf" + (ORDER % 1000).encode(), "body", "not JSON"),
        (b'{"ticker": "\\ud800", "shares": 1000}', "body", "not JSON"),
        (b"[" * 100_000, "body", "Expected `object`"),
        (b'{"ticker": "AAPL", "shares": 1, "deep": ' + b"[" * 100_000, "deep", "unknown field"),
        (b'{"ticker": ' + b'{"a":' * 50_000, "ticker", "Expected `str`"),
        (b"null", "body", "Expected `object`, got `null`"),
        (b"[1, 2]", "body", "Expected `object`, got `array`"),
        (b"{}", "ticker", "missing"),
        (b'{"ticker": "AAPL"}', "shares", "missing"),
        (ORDER % "NaN", "body", "not JSON"),
        (ORDER % "Infinity", "body", "not JSON"),
        (ORDER % "1000.0", "shares", "Expected `int`, got `float`"),
        (ORDER % "1000.5", "shares", "Expected `int`, got `float`"),
        (ORDER % "1e3", "shares", "Expected `int`, got `float`"),
        (ORDER % '"1000"', "shares", "Expected `int`, got `str`"),
        (ORDER % "true", "shares", "Expected `int`, got `bool`"),
        (ORDER % "null", "shares", "Expected `int`, got `null`"),
        (ORDER % "[1000]", "shares", "Expected `int`, got `array`"),
        (ORDER % "0", "shares", "0"),
        (ORDER % "-1000", "shares", "-1000"),
        (ORDER % 10**30, "shares", "1000000"),
        (ORDER % ("9" * 10_000), "shares", ""),
        ({**EXECUTION_REQUEST, "ticker": "XYZ"}, "ticker", "AAPL"),
        ({**EXECUTION_REQUEST, "ticker": ""}, "ticker", "AAPL"),
        ({**EXECUTION_REQUEST, "ticker": "A" * 100_000}, "ticker", "AAPL"),
        ({**EXECUTION_REQUEST, "horizon_minutes": 0}, "horizon_minutes", "0"),
        ({**EXECUTION_REQUEST, "horizon_minutes": -1}, "horizon_minutes", "-1"),
        ({**EXECUTION_REQUEST, "horizon_minutes": 391}, "horizon_minutes", "391"),
        ({**EXECUTION_REQUEST, "horizon_minutes": None}, "horizon_minutes", "got `null`"),
        ({**EXECUTION_REQUEST, "start": "tomorrow"}, "start", "tomorrow"),
        ({**EXECUTION_REQUEST, "start": "2013-03-01T14:30:00"}, "start", "offset"),
        ({**EXECUTION_REQUEST, "start": "1999-03-01T14:30:00Z"}, "start", "outside"),
        ({**EXECUTION_REQUEST, "start": 1362148200}, "start", "Expected `str | null`"),
        ({**EXECUTION_REQUEST, "side": "sell"}, "side", "unknown field"),
        ({**EXECUTION_REQUEST, "market": {"mid": 450.0}}, "market.mid", "unknown field"),
        ({**EXECUTION_REQUEST, "market": {"mid_dollars": "450"}}, "market.mid_dollars", "got `str`"),
        ({**EXECUTION_REQUEST, "market": {"mid_dollars": -450.0}}, "market.mid_dollars", "-450"),
        ('{"ticker": "AAPL", "shares": 1, "market": {"spread_dollars": 1e999}}', "market.spread_dollars", "range"),
    ],
    ids=lambda value: str(value)[:60],  # some bodies are long
)  # fmt: skip
def test_a_bad_order_is_refused_with_the_field_and_the_reason(execution_app, body, field, reason):
    answer = ask(execution_app, content=body.encode() if isinstance(body, str) else body)
    assert answer.status_code == 400
    told = answer.json()
    assert told["error"] == "bad_request"
    assert told["field"] == field
    assert reason in told["reason"]
    assert len(answer.content) < 2000  # a long request does not come back


def _with(request, path, value):
    changed = json.loads(json.dumps(request))
    *way, last = path
    at = changed
    for step in way:
        at = at[step]
    at[last] = value
    return changed


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "rows"),
        ({"rows": []}, "rows"),
        ({"bars": []}, "bars"),
        ({**signal_request(), **bars_request()}, "rows"),
        ({**signal_request(), "news": []}, "news"),
        ({**bars_request(), "news": []}, "news"),
        ({"rows": signal_request()["rows"] * 2}, "rows[2]"),
        ({"bars": bars_request()["bars"] + bars_request()["bars"][:1]}, "bars[80]"),
        ({"rows": {"symbol": "AAPL"}}, "rows"),
        (_with(signal_request(), ["rows", 1, "symbol"], "XYZ"), "rows[1].symbol"),
        (_with(signal_request(), ["rows", 1, "symbol"], 7), "rows[1].symbol"),
        (_with(signal_request(), ["rows", 1, "session"], "2013-03-02"), "rows[1].session"),
        (_with(signal_request(), ["rows", 1, "session"], "1 March"), "rows[1].session"),
        (_with(signal_request(), ["rows", 0, "features", "roc_2_pct"], "1"), "rows[0].features[...]"),
        (_with(signal_request(), ["rows", 0, "features", "roc_2_pct"], None), "rows[0].features[...]"),
        (_with(signal_request(), ["rows", 0, "features", "roc_2_pct"], 1e300), "rows[0].features.roc_2_pct"),
        (_with(signal_request(), ["rows", 0, "features", "alpha"], 1.0), "rows[0].features.alpha"),
        (_with(signal_request(), ["rows", 0, "features"], {}), "rows[0].features.scaled_close"),
        (_with(bars_request(), ["bars", 5, "low"], 1e6), "bars[5].low"),
        (_with(bars_request(), ["bars", 5, "close"], -1.0), "bars[5].close"),
        ({"bars": bars_request(sessions=10)["bars"]}, "bars"),
    ],
)
def test_a_bad_question_for_signals_is_refused_with_the_field(signal_app, body, field):
    answer = ask(signal_app, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == field


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ('Application/JSON;charset="UTF-8"', 200),
        ("application/json; profile=x", 200),
        ("application/json; charset=latin-1", 415),
        ("application/jsonl", 415),
        ("text/csv", 415),
        ("application/octet-stream", 415),
        ("", 415),
        (None, 415),
    ],
)
def test_content_types(execution_app, content_type, status):
    headers = {} if content_type is None else {"content-type": content_type}
    answer = ask(execution_app, content=EXECUTION_REQUEST, headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert answer.json()["field"] == "content-type"


def test_a_compressed_body_is_refused(execution_app):
    answer = ask(execution_app, content=b"\x1f\x8b", headers={**JSON, "content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["field"]) == (415, "content-encoding")


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_body_as_large_as_allowed_is_read_and_one_byte_more_is_not(execution_app):
    body = json.dumps(EXECUTION_REQUEST).encode()
    answer = ask(execution_app, content=body + b" " * (MAX_REQUEST_BYTES - len(body)))
    assert answer.status_code == 200
    answer = ask(execution_app, content=body + b" " * (MAX_REQUEST_BYTES - len(body) + 1))
    assert answer.status_code == 413
    assert answer.json()["error"] == "too_large"


@pytest.mark.parametrize(
    "declared", [b"%d" % (MAX_REQUEST_BYTES + 1), b"1" + b"0" * 14, b"1" + b"0" * 5000], ids=len
)
def test_a_body_that_is_declared_too_large_is_refused_before_it_is_read(execution_app, declared):
    with_length = ((b"content-type", b"application/json"), (b"content-length", declared))
    answer, taken = call(execution_app, iter([]), with_length)
    assert (answer["status"], taken) == (413, 0)


@pytest.mark.parametrize("declared", [b"-1", b"abc", b"1_000", "²".encode("latin-1"), b""])
def test_a_length_that_is_none_is_refused(execution_app, declared):
    answer, _ = call(
        execution_app, iter([]), ((b"content-type", b"application/json"), (b"content-length", declared))
    )
    assert answer["status"] == 400
    assert json.loads(answer["body"])["field"] == "content-length"


def test_a_body_without_end_is_refused_at_the_limit(execution_app):
    piece = {"type": "http.request", "body": b" " * 65536, "more_body": True}
    answer, taken = call(execution_app, iter(lambda: piece, None))
    assert answer["status"] == 413
    assert taken == MAX_REQUEST_BYTES // 65536 + 1


def test_a_client_that_leaves_in_the_middle_leaves_no_trace(execution_app, caplog):
    parts = [
        {"type": "http.request", "body": b'{"ticker": "AA', "more_body": True},
        {"type": "http.disconnect"},
    ]
    call(execution_app, iter(parts))
    assert caplog.records == []
    assert ask(execution_app, content=EXECUTION_REQUEST).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(execution_app, monkeypatch):
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.05)

    async def never():
        await asyncio.Event().wait()

    parts = [{"type": "http.request", "body": b'{"ticker"', "more_body": True}, never]
    answer, _ = call(execution_app, iter(parts))
    assert answer["status"] == 408
    assert json.loads(answer["body"])["error"] == "timeout"
    assert answer["headers"][b"connection"] == b"close"


# -- what goes wrong on our side ---------------------------------------------------------------------------------------


def test_an_answer_that_is_wrong_in_itself_is_a_500_with_the_reason_and_one_line_in_the_log(tmp_path, caplog):
    bundle = read_bundle(execution_bundle(tmp_path, wrong_for_large_orders()))
    app = make_app(bundle)
    assert ask(app, "GET", "/ping").status_code == 200
    answer = ask(app, content=LARGE_REQUEST)
    assert answer.status_code == 500
    assert answer.json()["error"] == "invalid_answer"
    assert "nan" in answer.headers[INVALID_HEADER]
    assert answer.headers[SERVED_BY_HEADER] == bundle.served_by
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.fields["event"] == "invalid_answer"
    assert record.fields["served_by"] == bundle.served_by
    assert "4000000" not in str(record.fields)
    assert ask(app, content=EXECUTION_REQUEST).status_code == 200


def test_probabilities_that_are_none_are_an_invalid_answer(tmp_path):
    app = make_app(read_bundle(signal_bundle(tmp_path, wrong_probability(31))))
    assert ask(app, content=signal_request()).status_code == 200
    answer = ask(app, content=signal_request(first_feature=0.95))
    assert answer.status_code == 500
    assert INVALID_HEADER in answer.headers


def test_a_reason_of_any_text_fits_into_a_header(execution, monkeypatch):
    planned = ExecutionPlanner.answer

    def answer(self, request, now):
        if request.shares == 13:
            raise InvalidAnswer("pace → ∞\r\nx-evil: 1 \ud800" + "x" * 10_000)
        return planned(self, request, now)

    monkeypatch.setattr(ExecutionPlanner, "answer", answer)
    got = ask(make_app(execution), content={**EXECUTION_REQUEST, "shares": 13})
    assert got.status_code == 500
    assert "x-evil" not in got.headers
    assert len(got.headers[INVALID_HEADER]) < 400


def test_what_nobody_foresaw_is_logged_and_the_next_request_is_answered(execution, monkeypatch, caplog):
    planned = ExecutionPlanner.answer

    def answer(self, request, now):
        if request.shares == 13:
            raise ZeroDivisionError("a secret of the inside")
        return planned(self, request, now)

    monkeypatch.setattr(ExecutionPlanner, "answer", answer)
    app = make_app(execution)
    before = ask(app, content=EXECUTION_REQUEST)
    got = ask(app, content={**EXECUTION_REQUEST, "shares": 13})
    assert got.status_code == 500
    assert got.json() == {
        "error": "internal_error",
        "field": "",
        "reason": "this was not foreseen and has been logged",
    }
    assert INVALID_HEADER not in got.headers
    (record,) = caplog.records
    assert record.exc_info[0] is ZeroDivisionError
    assert ask(app, content=EXECUTION_REQUEST).content == before.content


def test_a_model_that_cannot_answer_its_own_bundle_is_unhealthy(tmp_path, caplog):
    app = make_app(read_bundle(execution_bundle(tmp_path, always_wrong())))
    assert [record.getMessage() for record in caplog.records] == ["self_test_failed"]
    for _ in range(2):
        ping = ask(app, "GET", "/ping")
        assert ping.status_code == 503
        assert ping.json()["error"] == "unhealthy"
        assert "nan" in ping.json()["reason"]


@pytest.fixture
def held(execution, monkeypatch):
    """An app whose model counts as slow, and an event: requests take until it is set."""
    released = threading.Event()
    planned = ExecutionPlanner.answer

    def answer(self, request, now):
        released.wait(60)
        return planned(self, request, now)

    monkeypatch.setattr(ExecutionPlanner, "answer", answer)
    monkeypatch.setattr(app_module, "IN_LOOP_SECONDS", 0.0)
    released.set()
    app = make_app(execution)  # its self-test is not held
    released.clear()
    yield app, released
    released.set()


def test_ping_does_not_wait_for_a_slow_model(held):
    app, released = held

    async def both():
        body = json.dumps(EXECUTION_REQUEST).encode()
        answer = asyncio.create_task(_ask(app, "POST", "/invocations", body, JSON))
        ping = await _ask(app, "GET", "/ping")
        assert not answer.done()
        released.set()
        return ping.status_code, (await answer).status_code

    assert asyncio.run(both()) == (200, 200)


def test_a_request_that_the_server_gives_up_at_its_end_is_told_so(held):
    body = {"type": "http.request", "body": json.dumps(EXECUTION_REQUEST).encode(), "more_body": False}
    answer, _ = call(held[0], iter([body]), cancel_after_seconds=0.01)
    assert answer["status"] == 503
    assert json.loads(answer["body"])["error"] == "ending"
    assert answer["headers"][b"connection"] == b"close"


def test_a_model_whose_self_test_is_slow_answers_in_threads(tmp_path, monkeypatch):
    """The rule behind the two tests above, with a network that really takes its time."""
    threads = []
    planned = ExecutionPlanner.answer

    def answer(self, request, now):
        threads.append(threading.current_thread().name.split("_")[0])
        return planned(self, request, now)

    monkeypatch.setattr(ExecutionPlanner, "answer", answer)
    app = make_app(read_bundle(execution_bundle(tmp_path, slow_pace(0.2))))
    threads.clear()
    assert ask(app, content=EXECUTION_REQUEST).status_code == 200
    assert threads == ["answer"]


def test_bars_and_many_rows_take_a_thread_and_small_requests_do_not(signal, monkeypatch):
    threads = []
    answered = SignalAnswerer.answer

    def answer(self, request, now):
        threads.append(threading.current_thread().name)
        return answered(self, request, now)

    monkeypatch.setattr(SignalAnswerer, "answer", answer)
    app = make_app(signal)
    threads.clear()
    (row, _) = signal_request()["rows"]
    days = [
        d.isoformat()
        for d in SignalAnswerer(signal).hours.sessions(dt.date(2012, 1, 3), dt.date(2014, 12, 31))
    ]
    many = {"rows": [{**row, "session": day} for day in days[: app_module.HEAVY_ROWS + 1]]}
    for body in (signal_request(), bars_request(), many):
        assert ask(app, content=body).status_code == 200
    assert [name.split("_")[0] for name in threads] == ["MainThread", "answer", "answer"]


# -- the document ------------------------------------------------------------------------------------------------------


def _validator(document, name):
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry = Registry().with_resource("urn:document", resource)
    return OAS31Validator({"$ref": f"urn:document#/components/schemas/{name}"}, registry=registry)


def test_the_document_describes_what_is_taken_and_given(execution_app, signal_app):
    for app, asked, answered, request in (
        (execution_app, "ExecutionRequest", "ExecutionAnswer", EXECUTION_REQUEST),
        (signal_app, "SignalRequest", "SignalAnswer", signal_request()),
        (signal_app, "SignalRequest", "SignalAnswer", bars_request()),
    ):
        document = ask(app, "GET", "/openapi.json").json()
        validate_openapi(document)
        assert document["openapi"].startswith("3.1")
        _validator(document, asked).validate(request)
        _validator(document, answered).validate(ask(app, content=request).json())
        _validator(document, "Problem").validate(ask(app, content={}).json())
        _validator(document, "Health").validate(ask(app, "GET", "/ping").json())
        assert set(document["paths"]["/invocations"]["post"]["responses"]) == {
            "200", "400", "408", "413", "415", "500", "503",
        }  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"ticker": "XYZ"}, {"shares": 0}, {"shares": 1.5}, {"horizon_minutes": 391}, {"side": "buy"}]
)
def test_the_document_refuses_what_the_app_refuses(execution_app, change):
    document = ask(execution_app, "GET", "/openapi.json").json()
    request = {**EXECUTION_REQUEST, **change}
    assert not _validator(document, "ExecutionRequest").is_valid(request)
    assert ask(execution_app, content=request).status_code == 400


# -- captured requests -------------------------------------------------------------------------------------------------


def test_answered_requests_are_captured_and_refused_ones_are_not(tmp_path):
    capture = Capture(tmp_path / "captured", 1.0, "sell", "sell-0123")
    app = make_app(read_bundle(execution_bundle(tmp_path, wrong_for_large_orders())), capture)
    first = ask(app, content=EXECUTION_REQUEST)
    assert ask(app, content={**EXECUTION_REQUEST, "shares": 0}).status_code == 400
    assert ask(app, content=LARGE_REQUEST).status_code == 500
    second = ask(app, content={**EXECUTION_REQUEST, "shares": 5})
    capture.close()
    captured = list(read_captured(tmp_path / "captured"))
    assert [json.loads(c.request)["shares"] for c in captured] == [1000, 5]
    assert [c.response for c in captured] == [first.text, second.text]
    assert {(c.endpoint, c.config) for c in captured} == {("sell", "sell-0123")}
