"""The inference app as a process: start, signals, several workers, sockets, memory, imports, what is on stderr."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from quant_assets.serving.bundle import pack, read_bundle
from quant_resources.endpoints import INVALID_HEADER, SERVED_BY_HEADER
from quant_resources.endpoints.captured import read_captured
from tests.serving.bundles import (
    EXECUTION_REQUEST,
    LARGE_REQUEST,
    bars_request,
    execution_bundle,
    sac_policy,
    signal_bundle,
    signal_request,
    slow_pace,
    wrong_for_large_orders,
)

# Of anything that has to happen; nothing here is about speed.
PATIENCE_SECONDS = 60
ROOT = Path(__file__).resolve().parents[2]
BODY = json.dumps(EXECUTION_REQUEST).encode()


@dataclass
class Served:
    """A running app."""

    process: subprocess.Popen
    port: int
    stderr: Path
    ready_seconds: float

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)

    def ask(self, body: bytes = BODY, path: str = "/invocations") -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) over a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            method = "POST" if path == "/invocations" else "GET"
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def workers(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children() if p.status() != psutil.STATUS_ZOMBIE]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


def _start(bundle: Path, *options: str, **more) -> subprocess.Popen:
    command = [sys.executable, "-m", "quant_assets.serving", "--bundle", str(bundle), *options]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, **more)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(bundle: Path, *options: str, listening: socket.socket | None = None) -> Iterator[Served]:
    """Start the app, wait until /ping is 200, and leave no process behind."""
    stderr = bundle.parent / f"stderr-{time.monotonic_ns()}"
    if listening is None:
        port, where, inherited = _free_port(), ["--port"], ()
        where.append(str(port))
    else:
        port, where, inherited = (
            listening.getsockname()[1],
            ["--fd", str(listening.fileno())],
            (listening.fileno(),),
        )
    started = time.monotonic()
    with stderr.open("wb") as file:
        process = _start(bundle, *where, *options, stderr=file, pass_fds=inherited)
    served = Served(process, port, stderr, 0.0)
    family = []
    try:
        while True:
            assert process.poll() is None, stderr.read_text()
            assert time.monotonic() - started < PATIENCE_SECONDS
            with contextlib.suppress(OSError):
                if served.ask(b"", "/ping")[0] == 200:
                    break
            time.sleep(0.01)
        served.ready_seconds = time.monotonic() - started
        family = psutil.Process(process.pid).children(recursive=True)
        yield served
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += psutil.Process(process.pid).children(recursive=True)
        for member in (process, *family):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                member.kill()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "execution": execution_bundle(folder / "execution", sac_policy()),
        "signal": signal_bundle(folder / "signal"),
        "sentiment": signal_bundle(folder / "sentiment", name="mlp_sentiment"),
        "enhanced": signal_bundle(folder / "enhanced", name="mlp_enhanced"),
        "large": execution_bundle(folder / "large", wrong_for_large_orders()),
        "slow": execution_bundle(folder / "slow", slow_pace(0.5)),
    }


# -- one process -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["execution", "signal"])
def test_it_starts_answers_stays_small_and_ends(bundles, kind, record_property):
    body = BODY if kind == "execution" else json.dumps(signal_request()).encode()
    with serving(bundles[kind]) as served:
        status, headers, first = served.ask(body)
        assert status == 200
        assert headers[SERVED_BY_HEADER] == read_bundle(bundles[kind]).served_by
        connection = served.connect()
        for _ in range(200):
            connection.request("POST", "/invocations", body, {"content-type": "application/json"})
            assert connection.getresponse().read() == first
        resident = psutil.Process(served.process.pid).memory_info().rss
        assert resident < 150 * 2**20
        assert served.end() == 0
        assert served.stderr.read_bytes() == b""
        record_property("ready_seconds", served.ready_seconds)
        record_property("resident_mib", resident / 2**20)
        print(f"\n{kind}: ready after {served.ready_seconds:.2f} s, {resident / 2**20:.0f} MiB")


def test_a_folder_is_served_with_the_word_serve_and_the_environment_of_sagemaker(bundles, tmp_path):
    bundle = read_bundle(bundles["execution"])
    (tmp_path / "model.onnx").write_bytes(bundle.onnx)
    (tmp_path / "bundle.json").write_text(json.dumps(bundle.description))
    port = _free_port()
    environment = {**os.environ, "SM_MODEL_DIR": str(tmp_path), "SAGEMAKER_BIND_TO_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "quant_assets.serving", "serve"], cwd=ROOT, env=environment
    )
    served = Served(process, port, tmp_path, 0.0)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError):
                assert served.ask()[0] == 200
                break
            time.sleep(0.02)
        (listens,) = psutil.Process(process.pid).net_connections("tcp4")
        assert listens.laddr == ("0.0.0.0", port)
        # Unpacked or not, it is the same bundle.
        assert served.ask()[1][SERVED_BY_HEADER] == bundle.served_by
        assert served.end() == 0
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def test_by_hand_it_listens_on_this_machine_alone(bundles):
    with serving(bundles["execution"]) as served:
        (listens,) = (
            c
            for c in psutil.Process(served.process.pid).net_connections("tcp4")
            if c.status == psutil.CONN_LISTEN
        )
        assert listens.laddr.ip == "127.0.0.1"


def _begin(served: Served, length: int = len(BODY)) -> socket.socket:
    """A connection whose request the app is reading: it has said `100 Continue`, and nothing of the body was sent."""
    connection = socket.create_connection(("127.0.0.1", served.port), PATIENCE_SECONDS)
    connection.sendall(
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % length
    )
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    return connection


def _answered(connection: socket.socket) -> tuple[int, bytes]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.read()


def _soon_refused(port: int) -> bool:
    """Whether connections to a port are refused, now or soon."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS).close()
        except ConnectionError:
            return True
    return False


def test_sigterm_finishes_requests_in_flight_and_takes_no_new_ones(bundles):
    with serving(bundles["slow"]) as served:
        first, second = _begin(served), _begin(served)
        first.sendall(BODY)  # computed in a thread, for about half a second
        served.process.send_signal(signal.SIGTERM)
        assert _soon_refused(served.port)
        assert served.process.poll() is None
        second.sendall(BODY)  # begun before, so it is finished too
        for connection in (first, second):
            status, body = _answered(connection)
            assert status == 200
            assert sum(s["shares"] for s in json.loads(body)["schedule"]) == 1000
        assert served.process.wait(PATIENCE_SECONDS) == 0
        assert served.stderr.read_bytes() == b""


def test_clients_that_do_not_go_on_harm_nobody(bundles):
    with serving(bundles["execution"]) as served:
        silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
        for connection in silent[50:]:
            connection.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-ty")
        in_the_middle = [_begin(served) for _ in range(20)]
        for connection in in_the_middle[:10]:
            connection.sendall(BODY[:10])
        assert served.ask()[0] == 200
        for connection in in_the_middle:
            connection.close()
        assert served.ask()[0] == 200
        # Connections without a request do not hold up the end.
        assert served.end() == 0
        assert served.stderr.read_bytes() == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff\x16\x03\x01" * 200,
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10 + b"\xff\xfe: z\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{",
        b"GET /%ff%00%zz HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: a\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_harms_nobody(running, sent):
    before = running.ask()
    with socket.create_connection(("127.0.0.1", running.port), PATIENCE_SECONDS) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                pass
    assert running.ask()[2] == before[2]
    assert running.process.poll() is None


@pytest.fixture(scope="module")
def running(bundles) -> Iterator[Served]:
    """One app for several tests, none of which may end it."""
    with serving(bundles["large"]) as served:
        yield served
        assert served.process.poll() is None


def test_a_body_declared_too_large_is_refused_before_it_is_sent(running):
    connection = socket.create_connection(("127.0.0.1", running.port), PATIENCE_SECONDS)
    connection.sendall(
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"expect: 100-continue\r\ncontent-length: 3000000\r\n\r\n"
    )
    assert _answered(connection)[0] == 413


def test_a_body_without_a_length_is_refused_while_it_comes_and_the_connection_goes_on(running):
    connection = running.connect()
    pieces = (b" " * 65536 for _ in range(48))
    connection.request(
        "POST", "/invocations", pieces, {"content-type": "application/json"}, encode_chunked=True
    )
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]) == (413, "too_large")
    connection.request("POST", "/invocations", BODY, {"content-type": "application/json"})
    assert connection.getresponse().status == 200


def test_an_invalid_answer_is_one_line_of_json_on_stderr_without_the_request(running):
    already = len(running.stderr.read_text().splitlines())
    status, headers, _ = running.ask(json.dumps(LARGE_REQUEST).encode())
    assert (status, INVALID_HEADER in headers) == (500, True)
    (line,) = running.stderr.read_text().splitlines()[already:]
    told = json.loads(line)
    assert told["event"] == "invalid_answer"
    assert told["level"] == "error"
    assert told["served_by"] == headers[SERVED_BY_HEADER]
    assert "4000000" not in line
    assert "AAPL" not in line


# -- captured requests -------------------------------------------------------------------------------------------------


def test_captured_requests_outlive_sigterm_and_kill(bundles, tmp_path):
    options = ["--capture", str(tmp_path), "--endpoint", "sell", "--config", "sell-0123"]
    with serving(bundles["execution"], *options) as served:
        for _ in range(20):
            served.ask()
        assert served.end() == 0
    assert len(list(read_captured(tmp_path))) == 20

    with serving(bundles["execution"], *options) as served:
        asked = 0
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(list(read_captured(tmp_path))) <= 20 and time.monotonic() < deadline:
            served.ask()
            asked += 1
        served.end(signal.SIGKILL)
    captured = list(read_captured(tmp_path))
    assert 20 < len(captured) <= 20 + asked
    assert {(c.endpoint, c.config) for c in captured} == {("sell", "sell-0123")}
    assert {c.request for c in captured} == {BODY.decode()}


def test_a_disk_that_is_full_costs_no_answer(bundles, tmp_path):
    """RLIMIT_FSIZE is a disk that has room for one line."""
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "sys.argv[0] = 'serving'; runpy.run_module('quant_assets.serving', run_name='__main__')"
    )
    port = _free_port()
    command = [sys.executable, "-c", limited, "--bundle", str(bundles["execution"]), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--capture", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    served = Served(process, port, tmp_path, 0.0)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError):
                served.ask(b"", "/ping")
                break
            time.sleep(0.02)
        assert [served.ask()[0] for _ in range(30)] == [200] * 30
        assert served.end() == 0
        (line,) = process.stderr.read().decode().splitlines()
        assert "captured requests cannot be written" in json.loads(line)["event"]
        assert len(list(read_captured(tmp_path))) == 1
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


# -- several processes, inherited sockets ------------------------------------------------------------------------------


def test_two_workers_on_one_port_and_one_of_them_is_killed(bundles):
    with serving(bundles["execution"], "--workers", "2") as served:
        first = served.ask()[2]
        workers = served.workers()
        assert len(workers) == 2
        answers = []

        def load():
            answers.extend(served.ask() for _ in range(150))

        client = threading.Thread(target=load)
        workers[0].suspend()  # it holds nothing while it rests, so the other one takes everything
        client.start()
        workers[0].kill()
        client.join(PATIENCE_SECONDS)
        assert [(status, body) for status, _, body in answers] == [(200, first)] * 150
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(served.workers()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert {w.pid for w in served.workers()} & {w.pid for w in workers} == {workers[1].pid}
        assert served.end() == 0
        assert not any(w.is_running() for w in workers)
        events = [json.loads(line)["event"] for line in served.stderr.read_text().splitlines()]
        assert events == ["worker_ended"]


def test_workers_finish_what_is_in_flight_on_sigterm(bundles):
    with serving(bundles["slow"], "--workers", "2") as served:
        connections = [_begin(served) for _ in range(3)]
        for connection in connections:
            connection.sendall(BODY)
        served.process.send_signal(signal.SIGTERM)
        assert [_answered(connection)[0] for connection in connections] == [200] * 3
        assert served.process.wait(PATIENCE_SECONDS) == 0


def test_workers_end_when_their_parent_is_killed(bundles):
    with serving(bundles["execution"], "--workers", "2") as served:
        workers = served.workers()
        served.end(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)
        assert alive == []
        assert _soon_refused(served.port)


def test_an_inherited_socket_goes_from_process_to_process_without_a_refused_connection(bundles):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        with serving(bundles["execution"], listening=listening) as served:
            assert served.ask()[0] == 200
            assert served.end() == 0
        with socket.create_connection(listening.getsockname(), PATIENCE_SECONDS) as waiting:
            waiting.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
            with serving(bundles["execution"], listening=listening):
                assert _answered(waiting)[0] == 200


# -- what cannot be served ---------------------------------------------------------------------------------------------


def _cannot(*arguments: str) -> str:
    """The sentence on stderr of an app that ends with exit code 2."""
    command = [sys.executable, "-m", "quant_assets.serving", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == 2, ended.stderr
    (sentence,) = ended.stderr.splitlines()
    return sentence


def test_a_bundle_that_cannot_be_loaded_is_one_sentence_and_exit_code_2(bundles, tmp_path):
    port = str(_free_port())
    assert "cannot be read" in _cannot("--bundle", str(tmp_path / "nothing"), "--port", port)
    (tmp_path / "text").write_text("no archive")
    assert "gzip" in _cannot("--bundle", str(tmp_path / "text"), "--port", port)
    assert "gzip" in _cannot("--bundle", str(tmp_path / "text"), "--port", port, "--workers", "2")

    described = dict(read_bundle(bundles["signal"]).description)
    described["hashes"] = {**described["hashes"], "feature_code": "0" * 16}
    other = tmp_path / "other.tar.gz"
    other.write_bytes(pack(read_bundle(bundles["signal"]).onnx, described))
    assert "trained on features 0000000000000000" in _cannot("--bundle", str(other), "--port", port)


def test_a_port_that_is_taken_and_a_descriptor_that_is_no_socket(bundles, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in _cannot("--bundle", str(bundles["execution"]), "--port", port)
    assert "--fd 77" in _cannot("--bundle", str(bundles["execution"]), "--fd", "77")


# -- imports -----------------------------------------------------------------------------------------------------------

ANSWERS = """
import asyncio, json, sys
from pathlib import Path
from quant_assets.serving.app import make_app
from quant_assets.serving.bundle import read_bundle

async def ask(app, body):
    answer = []
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}
    async def send(message):
        answer.append(message)
    scope = {"type": "http", "method": "POST", "path": "/invocations", "raw_path": b"/invocations", "query_string": b"",
             "root_path": "", "scheme": "http", "server": ("x", 1), "headers": [(b"content-type", b"application/json")]}
    await app(scope, receive, send)
    return answer[0]["status"]

statuses = []
for path, bodies in json.loads(sys.stdin.read()):
    app = make_app(read_bundle(Path(path)))
    statuses += [asyncio.run(ask(app, json.dumps(body).encode())) for body in bodies]
print(json.dumps([statuses, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_answers_need_no_torch_jax_dagster_pandas(bundles):
    asked = [
        (
            str(bundles["execution"]),
            [EXECUTION_REQUEST, {**EXECUTION_REQUEST, "market": {"spread_dollars": 0.05}}],
        ),
        (str(bundles["signal"]), [signal_request(), bars_request()]),
        (str(bundles["sentiment"]), [signal_request("mlp_sentiment"), {**bars_request(), "news": []}]),
        (
            str(bundles["enhanced"]),
            [signal_request("mlp_enhanced"), {**bars_request(), "news": [], "relations": []}],
        ),
    ]
    ended = subprocess.run(
        [sys.executable, "-c", ANSWERS], input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    statuses, modules = json.loads(ended.stdout)
    assert statuses == [200] * 8
    heavy = {
        "torch", "jax", "dagster", "pandas", "mlflow", "pyiceberg", "gymnasium", "sklearn", "scipy", "matplotlib", "numba",
        "boto3", "sagemaker", "onnx", "exchange_calendars", "httpx",
    }  # fmt: skip
    assert not heavy & set(modules)
    assert {"onnxruntime", "starlette", "duckdb"} <= set(modules)
