"""The inference app under requests that nobody would write: never a 5xx, always JSON, and the next good request gets the same bits.

In process, by hypothesis (bytes, JSON, mutations of good requests) and by schemathesis (from the OpenAPI document that is served).
Whatever fails here as 5xx would, in production, roll back a deployment.
"""

import asyncio
import copy
import json

import pytest
import schemathesis

# schemathesis imports it when its first case is made, deep inside Hypothesis; pytest then rewrites its assertions there, and CPython 3.11
# has been seen to lose count of its recursion in that (SystemError in ast.parse).
import schemathesis.specs.openapi.coverage._operation
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from quant_assets.serving.app import make_app
from quant_assets.serving.bundle import read_bundle
from quant_resources.endpoints import SERVED_BY_HEADER
from tests.serving.bundles import (
    EXECUTION_REQUEST,
    bars_request,
    execution_bundle,
    sac_policy,
    signal_bundle,
    signal_request,
)

ORDER = {**EXECUTION_REQUEST, "market": {"mid_dollars": 450.0, "spread_dollars": 0.02, "momentum_sd": 0.5}}
BARS = bars_request(sessions=22, symbols=("AAPL",))
NEWS = [
    {
        "article_id": "a1",
        "symbol": "AAPL",
        "session": "2013-03-01",
        "sentiment_score": 0.5,
        "relevance_score": 0.5,
    }
]
RELATIONS = [
    {"symbol": "AAPL", "peer": "IBM", "kind": "competitor"},
    {"symbol": "AAPL", "peer": "IBM", "kind": "industry"},
]
quick = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
few = settings(quick, max_examples=25)


class Fuzzed:
    """An app with a good request and its answer."""

    def __init__(self, bundle, good):
        self.app = make_app(bundle)
        self.served_by = bundle.served_by
        self.good = json.dumps(good).encode()
        status, _, self.answer = self.post(self.good)
        assert status == 200

    def post(self, body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """(status, headers, body), through the app's ASGI interface: an exception that leaves it fails the test."""
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/invocations",
            "raw_path": b"/invocations",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("app", 80),
            "headers": [(b"content-type", b"application/json")],
        }
        asyncio.run(self.app(scope, receive, send))
        start, answer = sent
        return start["status"], dict(start["headers"]), answer["body"]

    def survives(self, body: bytes) -> dict | None:
        """Check the answer to whatever body, and that of a good request after it; the answer where it was 200."""
        status, headers, answer = self.post(body)
        assert status in (200, 400), (status, answer)
        assert headers[b"content-type"] == b"application/json"
        assert headers[SERVED_BY_HEADER.encode()] == self.served_by.encode()
        told = json.loads(answer)
        if status == 400:
            assert set(told) == {"error", "field", "reason"}
            assert all(isinstance(value, str) for value in told.values())
            assert told["error"] == "bad_request"
            assert told["reason"]
        assert self.post(self.good) == (
            200,
            headers | {b"content-length": b"%d" % len(self.answer)},
            self.answer,
        )
        return told if status == 200 else None


@pytest.fixture(scope="module")
def execution(tmp_path_factory):
    return Fuzzed(read_bundle(execution_bundle(tmp_path_factory.mktemp("execution"), sac_policy())), ORDER)


@pytest.fixture(scope="module")
def signal(tmp_path_factory):
    return Fuzzed(read_bundle(signal_bundle(tmp_path_factory.mktemp("signal"))), signal_request())


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory):
    bundle = read_bundle(signal_bundle(tmp_path_factory.mktemp("enhanced"), name="mlp_enhanced"))
    return Fuzzed(bundle, signal_request("mlp_enhanced"))


# -- strategies --------------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 400)
    | st.floats()  # NaN and infinities too: Python writes them, and the app has to refuse them
    | st.floats(-2, 2)
    | st.text(max_size=20)
    | st.sampled_from(["AAPL", "IBM", "*", "2013-03-01", "2013-03-02", "9999-12-31", "2013-03-01T14:30:00Z", 1e308, -0.0,
                       2**31, 2**63, 2**64, 10**40, "2027-12-31T20:59:00Z", "2013-03-01T14:30:00+23:59", "\x00"])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def _places(value, way=()):
    """Ways to every value inside a JSON value, itself included."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*way, key))


@st.composite
def mutations(draw, request):
    """A good request in which one to three things were replaced, removed, doubled or added."""
    changed = copy.deepcopy(request)
    for _ in range(draw(st.integers(1, 3))):
        places = [way for way in _places(changed) if way]
        if not places:
            break
        # Lists of alike entries would take all the attention.
        *way, last = draw(st.sampled_from(places if len(places) < 60 else places[:60] + places[-5:]))
        at = changed
        for step in way:
            at = at[step]
        what = draw(st.sampled_from(["replace", "replace", "scale", "remove", "double", "add"]))
        if what == "replace":
            at[last] = draw(values)
        elif what == "scale" and isinstance(at[last], int | float) and not isinstance(at[last], bool):
            at[last] *= draw(st.sampled_from([-1, 0, 0.5, 3, 1e3, 1e9, 1e300]))
        elif what == "remove":
            del at[last]
        elif what == "double" and isinstance(at, list):
            at.append(copy.deepcopy(at[last]))
        elif what == "add" and isinstance(at, dict):
            at[draw(st.text(max_size=12))] = draw(values)
    return json.dumps(changed).encode()


@st.composite
def damaged(draw, body):
    """The bytes of a good request with some replaced, cut out or put in."""
    begin = draw(st.integers(0, len(body)))
    end = min(len(body), begin + draw(st.integers(0, 12)))
    return body[:begin] + draw(st.binary(max_size=12)) + body[end:]


# -- properties --------------------------------------------------------------------------------------------------------


@quick
@given(st.binary(max_size=300))
@example(b"\xff" * 100)
@example(b"[" * 100_000)
@example(b'{"ticker":' * 20_000)
@example(b'{"rows":[' * 20_000)
@example(b"1" * 10_000)
@example(b'{"shares": ' + b"9" * 10_000 + b"}")
@example(b'{"shares": 1e' + b"9" * 10_000 + b"}")
@example(b'{"rows": [{"features": {"a": -' + b"9" * 10_000 + b"}}]}")
def test_any_bytes(execution, signal, body):
    execution.survives(body)
    signal.survives(body)


@quick
@given(values.map(lambda value: json.dumps(value).encode()))
def test_any_json(execution, signal, body):
    execution.survives(body)
    signal.survives(body)


@settings(quick, max_examples=250)
@given(mutations(ORDER))
def test_orders_that_are_nearly_good(execution, body):
    told = execution.survives(body)
    if told is not None:
        for name in ("schedule", "twap", "vwap"):
            assert len(told[name]) == told["horizon_minutes"]
            assert sum(s["shares"] for s in told[name]) == told["shares"]
            assert all(type(s["shares"]) is int and s["shares"] >= 0 for s in told[name])
            assert [s["timestamp"] for s in told[name]] == sorted({s["timestamp"] for s in told[name]})


@quick
@given(damaged(json.dumps(ORDER).encode()))
def test_orders_whose_bytes_were_damaged(execution, body):
    execution.survives(body)


@settings(quick, max_examples=150)
@given(mutations(signal_request()))
def test_rows_that_are_nearly_good(signal, body):
    told = signal.survives(body)
    if told is not None:
        for row in told["predictions"]:
            assert 0 <= row["probability_long"] <= 1
            assert row["side"] in ("long", "short", "flat")


@few
@given(mutations(BARS))
def test_bars_that_are_nearly_good(signal, body):
    signal.survives(body)


@few
@given(mutations({"news": NEWS, "relations": RELATIONS, "bars": BARS["bars"]}))
def test_news_and_relations_that_are_nearly_good(enhanced, body):
    enhanced.survives(body)


# -- from the document -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def execution_document(execution):
    return schemathesis.openapi.from_asgi("/openapi.json", execution.app)


@pytest.fixture(scope="module")
def signal_document(signal):
    return schemathesis.openapi.from_asgi("/openapi.json", signal.app)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@schemathesis.pytest.from_fixture("execution_document").parametrize()
@settings(quick, max_examples=40)
def test_what_the_document_of_orders_says(case):
    case.call_and_validate(checks=CHECKS)


@schemathesis.pytest.from_fixture("signal_document").parametrize()
@settings(quick, max_examples=25)
def test_what_the_document_of_signals_says(case):
    case.call_and_validate(checks=CHECKS)
