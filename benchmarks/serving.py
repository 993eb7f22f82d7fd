"""The inference app against a FastAPI + torch server: latency, throughput, memory, cold start, a second worker.

Belongs here: one bundle for both sides, the requests, a cheap client, processes as they are really started, and the clock. Does
not belong here: the peer (`_serving_peer.py`), and whether answers are right (`tests/serving`); here they are only held to
each other.

Every request is an order over 390 trading minutes, so an answer holds three schedules of 390 slices. Tickers, shares, starts and
the market's state differ from request to request, and none is sent twice to a server. Both sides get the same requests, from one
client on loopback over connections that stay open.

* **Equal.** Requests are answered by both and compared slice by slice before anything is measured.
* **Latency.** One connection, one request after the other.
* **Throughput.** Eight connections, each of which sends its next request when it has its answer; ours also with two workers.
* **Memory.** Resident, after all that.
* **Cold start.** From the start of the process to its first answer. Files have been read before.

The client is one process and needs a core: on two cores a second worker has to share one with it. What client and servers take
of a core for each request is measured too, and from it what all cores could give at most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import datetime as dt
import gc
import hashlib
import http.client
import itertools
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop

from benchmarks import last_line, print_table, spread
from quant_assets.environments.execution import ExecutionEpisodes
from quant_assets.environments.problems import EXECUTION
from quant_assets.serving.bundle import execution_description, pack
from quant_assets.serving.execution_plan import ExpectedMarket
from quant_assets.serving.hours import ExchangeHours
from quant_resources.calendar import TradingCalendar

REPOSITORY = Path(__file__).resolve().parents[1]
COMPARED = 300
ROUNDS = 5
COLD_STARTS = 5
CONNECTIONS = 8
WARM_UP = 200
PORT_WAIT_SECONDS = 60.0
LOAD_WAIT_SECONDS = 60.0
# Costs are sums of products that the two sides do not take in the same order.
COST_TOLERANCE = 1e-9
# Of the compared schedules; about one in a hundred has a tie.
LEAST_SAME = 0.95

# The demo's agent, untrained: what an answer costs does not depend on its weights.
HIDDEN_UNITS = (64, 64)
FIRST, LAST = dt.date(2012, 1, 3), dt.date(2027, 12, 31)
# Shares of a day that the tickers are expected to trade, and dollars.
MARKETS = {
    "AAPL": (20e6, 450.0),
    "FB": (30e6, 27.0),
    "GOOG": (4e6, 800.0),
    "IBM": (4e6, 200.0),
    "MSFT": (50e6, 28.0),
}

# Looked up before there is a child in which nothing may be looked up any more.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

P50_BAR, P99_BAR_MS, THROUGHPUT_BAR, MEMORY_BAR_MIB, COLD_START_BAR_SECONDS = 3.0, 5.0, 2.0, 150.0, 2.0


# -- one agent for both sides ------------------------------------------------------------------------------------------


def expected_markets() -> dict[str, ExpectedMarket]:
    """Busy at the open and the close."""
    u_shape = 1 + np.linspace(-1, 1, EXECUTION.horizon_minutes) ** 2
    return {
        ticker: ExpectedMarket(dollars, 0.02, 0.015, shares * u_shape / u_shape.sum())
        for ticker, (shares, dollars) in MARKETS.items()
    }


def write_agent(folder: Path, hours: ExchangeHours) -> None:
    """`model.tar.gz` for our app and the same weights for the peer."""
    import torch

    from benchmarks._serving_peer import DESCRIPTION, WEIGHTS, Policy
    from quant_assets.models.sac import SacPolicy

    rng = np.random.default_rng(0)
    names, actions = ExecutionEpisodes.observation_names, len(ExecutionEpisodes.action_names)
    sizes = (len(names), *HIDDEN_UNITS, 2 * actions)
    layers = [
        (rng.normal(0, 1 / math.sqrt(i), (i, o)).astype(np.float32), rng.normal(0, 0.1, o).astype(np.float32))
        for i, o in itertools.pairwise(sizes)
    ]
    agent = SacPolicy(
        environment=ExecutionEpisodes.name,
        observation_names=names,
        action_names=ExecutionEpisodes.action_names,
        mean=rng.normal(0, 0.1, len(names)).astype(np.float32),
        scale=rng.uniform(0.5, 1.5, len(names)).astype(np.float32),
        action_low=np.zeros(actions, np.float32),
        action_high=np.ones(actions, np.float32),
        hidden_units=HIDDEN_UNITS,
        flat=np.concatenate([part.ravel() for layer in layers for part in layer]),
    )
    registered = {
        "environment": agent.environment,
        "observation_names": list(agent.observation_names),
        "action_names": list(agent.action_names),
        "parameters": asdict(EXECUTION),
        "symbols": list(MARKETS),
        "windows": {},
        "lineage": {},
    }
    onnx = agent.to_onnx()
    description = execution_description("sac_execution", 1, registered, expected_markets(), hours, onnx)
    archive = pack(onnx, description)
    (folder / "model.tar.gz").write_bytes(archive)

    weights = {
        "mean": agent.mean,
        "scale": agent.scale,
        "box_half": (agent.action_high - agent.action_low) / np.float32(2),
        "box_middle": (agent.action_high + agent.action_low) / np.float32(2),
    }
    for i, (weight, bias) in enumerate(layers):
        # Without noise the last layer's second half, the standard deviations, is not asked for.
        keep = actions if i == len(layers) - 1 else len(bias)
        weights |= {f"network.{2 * i}.weight": weight.T[:keep], f"network.{2 * i}.bias": bias[:keep]}
    policy = Policy([*sizes[:-1], actions])
    policy.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    torch.save(policy.state_dict(), folder / WEIGHTS)
    said = {key: description[key] for key in ("hours", "markets", "limits")}
    said |= {
        "sizes": [*sizes[:-1], actions],
        "parameters": registered["parameters"],
        "identity": {
            "model": description["model"],
            "model_version": description["version"],
            "bundle": hashlib.sha256(archive).hexdigest()[:12],
        },
    }
    (folder / DESCRIPTION).write_text(json.dumps(said))


def orders(seed: int, count: int, hours: ExchangeHours) -> list[bytes]:
    """Bodies of requests over 390 minutes, all different; every second one with a state of the market."""
    rng = np.random.default_rng(seed)
    sessions, tickers = hours.sessions(dt.date(2013, 2, 1), dt.date(2013, 3, 1)), list(MARKETS)
    bodies = []
    for i in range(count):
        session = sessions[rng.integers(len(sessions))]
        start = hours.opens(session) + dt.timedelta(minutes=int(rng.integers(hours.length(session))))
        order: dict[str, Any] = {
            "ticker": tickers[rng.integers(len(tickers))],
            "shares": int(rng.integers(100, 20_000)),
            "horizon_minutes": EXECUTION.horizon_minutes,
            "start": start.isoformat().replace("+00:00", "Z"),
        }
        if i % 2:
            order["market"] = {
                "mid_dollars": round(MARKETS[order["ticker"]][1] * rng.uniform(0.9, 1.1), 2),
                "spread_dollars": round(rng.uniform(0.01, 0.05), 3),
                "daily_volatility": round(rng.uniform(0.005, 0.04), 4),
                "volume_to_profile": round(rng.lognormal(0, 0.5), 3),
                "momentum_sd": round(rng.normal(), 3),
            }
        bodies.append(json.dumps(order).encode())
    return bodies


# -- servers -----------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A process that serves on a port of its own.

    Attributes:
        name: for messages.
        process: as started; its workers are its children.
        port: on 127.0.0.1.
        log: what it wrote.
        cold_start_seconds: from its start to the first answer.
    """

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    cold_start_seconds: float = math.nan

    def workers(self) -> list[psutil.Process]:
        """The processes that answer."""
        started = psutil.Process(self.process.pid)
        return started.children() or [started]

    def cpu_seconds(self) -> float:
        """Taken by the workers since they began."""
        return sum(sum(worker.cpu_times()[:2]) for worker in self.workers())

    def resident_mib(self) -> float:
        """Of the largest worker."""
        return max(worker.memory_info().rss for worker in self.workers()) / 2**20


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_the_benchmark() -> None:
    """In a server before it begins: however this process ends, the server does not outlive it (Linux)."""
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def running(name: str, command: Sequence[object], first: bytes, folder: Path) -> Iterator[Server]:
    """A server that has answered a first request; it has ended when this is left.

    Args:
        name: for messages.
        command: takes `--port` at its end.
        first: body of a request.
        folder: for its log.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    port = _free_port()
    log = folder / f"{name.replace(' ', '_')}.log"
    with log.open("ab") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command), "--port", str(port)],
            cwd=REPOSITORY,
            stdout=out,
            stderr=out,
            preexec_fn=_end_with_the_benchmark,
        )
    server = Server(name, process, port, log)
    try:
        while True:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                ask(http.client.HTTPConnection("127.0.0.1", port, timeout=PORT_WAIT_SECONDS), first)
                break
            if process.poll() is not None or time.perf_counter() - started > PORT_WAIT_SECONDS:
                raise RuntimeError(f"{name} does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.005)
        server.cold_start_seconds = time.perf_counter() - started
        yield server
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server with its workers."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(10)
    finally:
        for left in psutil.wait_procs(family, 5 if process.poll() is not None else 0)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait(10)


def ask(connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
    """One answer, decoded.

    Raises:
        RuntimeError: it is no 200.
    """
    connection.request("POST", "/invocations", body, {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(f"{response.status} for {body!r}: {content[:500]!r}")
    return dict(json.loads(content))


# -- both give the same answers ----------------------------------------------------------------------------------------


def compare(ours: Server, theirs: Server, bodies: Sequence[bytes]) -> tuple[int, int]:
    """(answers that are equal in every slice, slices that differ in all).

    A slice may differ by a share where what is left of the order lies half-way between two whole numbers: one network's
    last bit then decides in which of two minutes a share is sold. Everything else has to be the same.

    Raises:
        SystemExit: something differs that is no such tie, or too many do.
    """
    connections = [http.client.HTTPConnection("127.0.0.1", side.port) for side in (ours, theirs)]
    same, moved = 0, 0
    for body in bodies:
        first, second = (ask(connection, body) for connection in connections)
        costs = [answer.pop("expected_cost_bps") for answer in (first, second)]
        left = [[*itertools.accumulate(s["shares"] for s in a.pop("schedule"))] for a in (first, second)]
        differing = sum(a != b for a, b in zip(*left, strict=True))
        tied = all(abs(a - b) <= 1 for a, b in zip(*left, strict=True))
        close = all(
            math.isclose(costs[0][name], costs[1][name], rel_tol=1e-4 if differing else COST_TOLERANCE)
            for name in costs[0]
        )
        if first != second or not tied or not close:
            raise SystemExit(f"answers to {body!r} differ: {costs}, {differing} minutes of the schedule")
        same, moved = same + (not differing), moved + differing
    for connection in connections:
        connection.close()
    if same < LEAST_SAME * len(bodies):
        raise SystemExit(f"only {same} of {len(bodies)} schedules are the same: those are no ties any more")
    return same, moved


# -- the client --------------------------------------------------------------------------------------------------------


class Connection(asyncio.BufferedProtocol):
    """Sends the next request when the last answer is complete. Reads an answer's head, and only counts the bytes of its body.

    Args:
        requests: whole requests, head and body; shared with other connections.
        until: on the clock of `time.perf_counter`; no request is sent after it.
        seconds: takes what each answer took.
    """

    def __init__(self, requests: Iterator[bytes], until: float, seconds: list[float]) -> None:
        self.requests, self.until, self.seconds = requests, until, seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = bytearray(1 << 18)
        self.view = memoryview(self.buffer)
        self.filled = self.whole = 0
        self.sent = math.nan

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: Any = transport  # uvloop's is no subclass of asyncio's
        self._send()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room behind what has come."""
        return self.view[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """More of an answer has come."""
        self.filled += nbytes
        if not self.whole:
            head, found, _ = self.buffer[: min(self.filled, 2048)].partition(b"\r\n\r\n")
            if not found:
                return
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.whole = len(head) + 4 + int(length)
            if not head.startswith(b"HTTP/1.1 200 "):
                self._fail(RuntimeError(f"an answer is no 200: {bytes(self.view[: self.filled])[:500]!r}"))
                return
        if self.filled >= self.whole:
            self.seconds.append(time.perf_counter() - self.sent)
            self.filled = self.whole = 0
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Only after the last answer."""
        self._fail(exc or RuntimeError("the server has closed a connection"))

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def _send(self) -> None:
        request = next(self.requests, None) if time.perf_counter() < self.until else None
        if request is not None:
            self.sent = time.perf_counter()
            self.transport.write(request)
        elif not self.done.done():
            self.done.set_result(None)
            self.transport.close()


@dataclass
class Load:
    """What one load on one server gave.

    Attributes:
        seconds: of each answer.
        elapsed: seconds from the first request to the last answer.
        client_cpu_seconds, server_cpu_seconds: taken in all.
        largest_share: of the server's CPU seconds that one of its workers took.
        others_cores: what everything else on the machine took meanwhile.
    """

    seconds: list[float]
    elapsed: float
    client_cpu_seconds: float
    server_cpu_seconds: float
    largest_share: float
    others_cores: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.elapsed

    def quantile_ms(self, q: float) -> float:
        """Of the answers' times."""
        return 1e3 * float(np.quantile(self.seconds, q))


def busy_seconds() -> float:
    """What all processes have taken of all cores since the machine began."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def load(server: Server, bodies: Sequence[bytes], connections: int, seconds: float = math.inf) -> Load:
    """Ask until the bodies are used up or the time is over.

    Raises:
        RuntimeError: an answer is no 200, or does not come.
    """
    head = (
        f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
    )
    requests = iter([f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies])
    taken: list[float] = []

    async def run() -> tuple[float, float]:
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        opened = [
            await loop.create_connection(
                lambda: Connection(requests, started + seconds, taken), "127.0.0.1", server.port
            )
            for _ in range(connections)
        ]
        async with asyncio.timeout(LOAD_WAIT_SECONDS):
            await asyncio.gather(*(protocol.done for _, protocol in opened))
        return started, time.perf_counter()

    gc.collect()
    gc.disable()
    machine_before, client_before = busy_seconds(), time.process_time()
    before = [sum(worker.cpu_times()[:2]) for worker in server.workers()]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            started, ended = runner.run(run())
    except TimeoutError as error:
        raise RuntimeError(f"{server.name} left a request without an answer") from error
    finally:
        gc.enable()
    client = time.process_time() - client_before
    after = [sum(worker.cpu_times()[:2]) for worker in server.workers()]
    own, elapsed = [b - a for a, b in zip(before, after, strict=True)], ended - started
    others = (busy_seconds() - machine_before - client - sum(own)) / elapsed
    return Load(taken, elapsed, client, sum(own), max(own) / max(sum(own), 1e-9), max(others, 0.0))


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One side, a value per round.

    Attributes:
        p50_ms, p99_ms: of the answers of a round, one connection.
        rate: answers a second, eight connections.
        server_cpu_ms, client_cpu_ms: per answer, eight connections.
        largest_share: of the CPU time of all workers that one of them took.
        others_cores: taken by everything else meanwhile, in each load.
        answers: on one connection, in all.
        cold_start: seconds.
        memory: MiB.
    """

    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    server_cpu_ms: list[float] = field(default_factory=list)
    client_cpu_ms: list[float] = field(default_factory=list)
    largest_share: list[float] = field(default_factory=list)
    others_cores: list[float] = field(default_factory=list)
    answers: int = 0
    cold_start: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def add_latency(self, one: Load) -> None:
        """A round on one connection."""
        self.p50_ms.append(one.quantile_ms(0.5))
        self.p99_ms.append(one.quantile_ms(0.99))
        self.answers += len(one.seconds)
        self.others_cores.append(one.others_cores)

    def add_throughput(self, many: Load) -> None:
        """A round on eight connections."""
        self.rate.append(many.rate)
        self.server_cpu_ms.append(1e3 * many.server_cpu_seconds / len(many.seconds))
        self.client_cpu_ms.append(1e3 * many.client_cpu_seconds / len(many.seconds))
        self.largest_share.append(many.largest_share)
        self.others_cores.append(many.others_cores)


def middle(values: Sequence[float], digits: int = 2) -> str:
    """Median (smallest to largest)."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def met(is_met: bool) -> str:
    """For the table."""
    return "yes" if is_met else "NO"


def print_results(
    ours: Measured, theirs: Measured, two: Measured, ratios: dict[str, float], others: Sequence[float]
) -> None:
    """The table of bars, and what the client and others took."""
    median = statistics.median
    answers = f"{ours.answers:,} answers"
    rows = [
        [
            f"p50, 1 connection, ms ({answers})",
            f"{P50_BAR:g} x",
            middle(ours.p50_ms),
            middle(theirs.p50_ms),
            f"{ratios['p50']:.2f} x",
            met(ratios["p50"] >= P50_BAR),
        ],
        [
            "p99, 1 connection, ms",
            f"<= {P99_BAR_MS:g} ms",
            middle(ours.p99_ms),
            middle(theirs.p99_ms),
            f"{ratios['p99']:.2f} x",
            met(median(ours.p99_ms) <= P99_BAR_MS),
        ],
        [
            f"answers a second, {CONNECTIONS} connections",
            f"{THROUGHPUT_BAR:g} x",
            middle(ours.rate, 0),
            middle(theirs.rate, 0),
            f"{ratios['requests_per_second']:.2f} x",
            met(ratios["requests_per_second"] >= THROUGHPUT_BAR),
        ],
        [
            "resident memory after that, MiB",
            f"< {MEMORY_BAR_MIB:g} MiB",
            middle(ours.memory, 0),
            middle(theirs.memory, 0),
            f"{ratios['memory']:.2f} x",
            met(median(ours.memory) < MEMORY_BAR_MIB),
        ],
        [
            "cold start to the first answer, s",
            f"< {COLD_START_BAR_SECONDS:g} s",
            middle(ours.cold_start),
            middle(theirs.cold_start),
            f"{ratios['cold_start']:.2f} x",
            met(median(ours.cold_start) < COLD_START_BAR_SECONDS),
        ],
        [
            "answers a second, ours: 2 workers, 1 worker",
            "",
            middle(two.rate, 0),
            middle(ours.rate, 0),
            f"{ratios['second_worker']:.2f} x",
            "",
        ],
    ]
    print()
    print_table(["median of the rounds (smallest-largest)", "bar", "ours", "theirs", "ours is", "met"], rows)
    print()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sides = {"ours": ours, "theirs": theirs, "ours, 2 workers": two}
    print_table(
        [
            f"of a core for each answer, {CONNECTIONS} connections",
            "server, ms",
            "client, ms",
            "busiest worker",
            "others, cores",
        ],
        [
            [
                name,
                middle(of.server_cpu_ms, 3),
                middle(of.client_cpu_ms, 3),
                f"{100 * median(of.largest_share):.0f} % of the work",
                middle(of.others_cores),
            ]
            for name, of in sides.items()
        ],
    )
    server_ms, client_ms = median(ours.server_cpu_ms), median(ours.client_cpu_ms)
    most = min(2.0, cores * server_ms / (server_ms + client_ms))
    print(
        f"\nThe client is one process on the same {cores} cores and takes {client_ms / server_ms:.0%} of what our server takes for an "
        f"answer, so a second worker can bring at most {most:.2f} x here.\nOthers took {middle(others)} cores while this was measured.\n",
        flush=True,
    )


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=1_000, help="on one connection, in each round")
    parser.add_argument("--seconds", type=float, default=2.0, help="of eight connections, in each round")
    given = parser.parse_args()
    # Whoever ends the benchmark ends its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hours = ExchangeHours.from_calendar(TradingCalendar(FIRST, LAST))
    seeds = itertools.count()

    def fresh(count: int) -> list[bytes]:
        return orders(next(seeds), count, hours)

    ours, theirs, two = Measured(), Measured(), Measured()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as servers:
        folder = Path(name)
        write_agent(folder, hours)
        own: list[object] = ["quant_assets.serving", "--bundle", folder / "model.tar.gz"]
        peer: list[object] = ["benchmarks._serving_peer", "--folder", folder]

        for i in range(COLD_STARTS + 1):
            for side, of, command in (("ours", ours, own), ("theirs", theirs, peer)):
                with running(side, command, fresh(1)[0], folder) as server:
                    if i:  # the first one reads files that nobody has read before
                        of.cold_start.append(server.cold_start_seconds)

        def start(side: str, command: list[object]) -> Server:
            return servers.enter_context(running(side, command, fresh(1)[0], folder))

        our_server, their_server = start("ours", own), start("theirs", peer)
        same, moved = compare(our_server, their_server, fresh(COMPARED))
        how = (
            f"{COMPARED} orders: timestamps, TWAP and VWAP are the same in all; the agent's schedule has the same shares in every "
            f"slice of {same}, and in the other {COMPARED - same} a share is sold a minute earlier or later, {moved} times in all, where "
            "what is left lies half-way between two whole numbers; costs where schedules are the same within "
            f"{COST_TOLERANCE:g} of themselves"
        )
        print(f"equal: {how}", flush=True)
        two_server = start("ours with two workers", [*own, "--workers", 2])

        sides = [(ours, our_server), (theirs, their_server), (two, two_server)]
        for _, server in sides:
            load(server, fresh(WARM_UP), CONNECTIONS)
        for i in range(given.rounds):
            turn = sides[i % 3 :] + sides[: i % 3]
            bodies = fresh(given.requests)
            for of, server in turn:
                if of is not two:
                    of.add_latency(load(server, bodies, 1))
            bodies = fresh(int(5_000 * given.seconds))
            for of, server in turn:
                of.add_throughput(load(server, bodies, CONNECTIONS, given.seconds))
        for of, server in sides:
            of.memory.append(server.resident_mib())

    def ratio(of: Callable[[Measured], list[float]]) -> float:
        return statistics.median(of(theirs)) / statistics.median(of(ours))

    ratios = {
        "p50": ratio(lambda of: of.p50_ms),
        "p99": ratio(lambda of: of.p99_ms),
        "requests_per_second": 1 / ratio(lambda of: of.rate),
        "memory": ratio(lambda of: of.memory),
        "cold_start": ratio(lambda of: of.cold_start),
        "second_worker": statistics.median(two.rate) / statistics.median(ours.rate),
    }
    others = [*ours.others_cores, *theirs.others_cores, *two.others_cores]
    print_results(ours, theirs, two, ratios, others)
    last_line(
        "serving",
        ratio=ratios["p50"],
        ratios=ratios,
        ours=spread(ours.p50_ms, "ms"),
        theirs=spread(theirs.p50_ms, "ms"),
        work=f"execution requests over {EXECUTION.horizon_minutes} minutes (3 schedules of 390 slices), network "
        f"{HIDDEN_UNITS[0]} x {HIDDEN_UNITS[1]}, every request different, one worker, loopback; p50 and p99 of {given.requests:,} requests "
        f"on 1 connection, answers a second on {CONNECTIONS} connections for {given.seconds:g} s, {given.rounds} rounds in turn; theirs FastAPI, "
        "pydantic and torch with one thread; cold start and memory: theirs over ours; second_worker: ours with two workers over "
        "ours with one, the client on the same cores",
        equal=True,
        equal_how=how,
        bars={
            "p99_ms": spread(ours.p99_ms, "ms"),
            "requests_per_second": spread(ours.rate, "1/s"),
            "memory": spread(ours.memory, "MiB"),
            "cold_start": spread(ours.cold_start, "s"),
            "two_workers_requests_per_second": spread(two.rate, "1/s"),
        },
        client_cpu_ms=spread(ours.client_cpu_ms, "ms"),
        taken_by_others=spread(others, "cores"),
    )


if __name__ == "__main__":
    main()
