"""The processes that serve one config, and what they have answered.

Belongs here: starting a process on a socket of its own, seeing that it is ready, that it died or hangs, starting it again, ending
it; the tally of answers. Does not belong here: which config is served (`served.py`) and which process gets a request (`router.py`).

The supervisor makes the listening socket and hands it down, so a process that is started again takes the same one. Every process has
its own, not one for all of a config: whoever shares a listening socket takes as many connections as it can get, and one process
would do all the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from quant_resources.endpoints import VariantStatus
from quant_resources.endpoints.channel import HOST, Channel, ChannelBroken, Reply, request_bytes

logger = logging.getLogger(__name__)

PING = request_bytes("GET", "/ping", {})
# Deaths in a row after which an endpoint counts as failed, while it is still being started again.
CRASH_LOOP = 3
# Deaths in a row, before it was ever ready, after which requests no longer wait for a process.
STILLBORN = 2
# A process that was ready for so long was healthy: its death is the first in a row.
HEALTHY_SECONDS = 3.0
LATENCIES = 5000
TAIL_LINES, TAIL_CHARACTERS = 12, 800


class NotReady(RuntimeError):
    """A config does not come up. Says why, with the end of its log."""


@dataclass(frozen=True)
class Limits:
    """Patience of the supervisor, in seconds.

    Attributes:
        wait_seconds: a request waits so long for a process that is being started again.
        answer_seconds: a process may take so long for an answer (SageMaker's limit).
        canary_seconds: a canary has at least so long for an answer, whatever its p99 is allowed to be.
        drain_seconds: what is being answered may take so long once its process is to end.
        end_seconds: from SIGTERM to SIGKILL.
        ready_seconds: a process that is started again may take so long to be ready.
        hung_seconds: a process that answers nothing, not even /ping, for so long is killed and started again.
        back_off_seconds: before a process that died is started again: after the first death in a row, the second, ...
        log_bytes: a log is cut when it is longer; as much again is kept of what was cut.
    """

    wait_seconds: float = 15.0
    answer_seconds: float = 60.0
    canary_seconds: float = 2.0
    drain_seconds: float = 30.0
    end_seconds: float = 20.0
    ready_seconds: float = 60.0
    hung_seconds: float = 30.0
    back_off_seconds: tuple[float, ...] = (0.0, 0.2, 1.0, 3.0, 10.0, 30.0)
    log_bytes: int = 5 << 20


@dataclass
class Tally:
    """What a config has answered.

    Attributes:
        requests: answered, or broken off.
        errors_5xx: status 500 or above, no answer in time, or none at all; without the invalid ones.
        invalid: answers that the app itself found wrong, and requests that were refused though the current config answers them.
        last_problem: of the last error or invalid answer.
        latencies_ms: of the last answers.
    """

    requests: int = 0
    errors_5xx: int = 0
    invalid: int = 0
    last_problem: str = ""
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))

    def percentile_ms(self, percent: float) -> float | None:
        """The smallest latency that is not exceeded by so many percent of them; None before the first."""
        if not self.latencies_ms:
            return None
        ordered = sorted(self.latencies_ms)
        return ordered[max(0, -int(-percent * len(ordered) // 100) - 1)]


class Process:
    """One process that answers: started, watched, started again when it dies.

    Args:
        command: of the config, with `{fd}` for the listening socket.
        environment: of the process.
        folder: that it runs in.
        log: takes its output.
        limits: see there.
        died: told after each death, with the reason.

    Attributes:
        ready: whether it answers.
        in_flight: requests that it is answering.
        deaths: in a row.
        stillborn: deaths in a row of a process that had never been ready.
        why: it died the last time.
        channel: to it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        limits: Limits,
        died: Callable[[str], None],
    ) -> None:
        self._command, self._environment, self._folder = command, environment, folder
        self._log, self._limits, self._died = log, limits, died
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind((HOST, 0))
        self._socket.listen(1024)
        self._socket.setblocking(False)
        self.channel = Channel(self._socket.getsockname()[1])
        self.ready, self.in_flight = False, 0
        self.deaths, self.stillborn, self.why = 0, 0, ""
        self._answered_at = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._keeping = asyncio.create_task(self._keep())

    @property
    def pid(self) -> int | None:
        """Of the process that lives, None between two."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def ask(self, request: bytes, timeout_seconds: float) -> Reply:
        """A request of a client."""
        self.in_flight += 1
        try:
            reply = await self.channel.ask(request, timeout_seconds)
            self._answered_at = time.monotonic()
            return reply
        finally:
            self.in_flight -= 1

    async def _keep(self) -> None:
        """Start it, and again after each death, until this task is cancelled."""
        while True:
            ready_at = None
            try:
                ready_at = await self._watch(await self._start())
            except OSError as error:
                self.why = f"it cannot be started: {error}"
            except Exception as error:  # whatever it is, it must not be the end of the watch
                logger.exception("%s: a process is started again", self._log.stem)
                self.why = f"it could not be watched: {error!r}"
                if self.pid is not None:
                    kill_group(self.pid)
            long_ready = ready_at is not None and time.monotonic() - ready_at > HEALTHY_SECONDS
            self.deaths = 1 if long_ready else self.deaths + 1
            self.stillborn = self.stillborn + 1 if ready_at is None else 0
            self._died(self.why)
            pauses = self._limits.back_off_seconds
            await asyncio.sleep(pauses[min(self.deaths, len(pauses)) - 1])

    async def _start(self) -> asyncio.subprocess.Process:
        descriptor = self._socket.fileno()
        command = [part.replace("{fd}", str(descriptor)) for part in self._command]
        # Whoever ends it waits until it is there: a start that was broken off would leave a process that nobody knows.
        async with self._starting:
            with open_log(self._log) as log:
                with contextlib.suppress(OSError):  # a full disk costs the line, not the process
                    log.write(
                        f"=== {dt.datetime.now(dt.UTC).isoformat(timespec='seconds')} started\n".encode()
                    )
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    env=dict(self._environment),
                    pass_fds=(descriptor,),
                    start_new_session=True,  # an interrupt of the terminal is the supervisor's to handle
                )
        return self._process

    async def _watch(self, process: asyncio.subprocess.Process) -> float | None:
        """Until the process has ended. Returns when it became ready, None if it never did."""
        exited = asyncio.create_task(process.wait())
        answers = asyncio.create_task(self._answers())
        killed_because = ""
        ready_at = None
        try:
            await asyncio.wait(
                {exited, answers},
                timeout=self._limits.ready_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not exited.done() and answers.done():
                answers.result()
                self.ready, ready_at = True, time.monotonic()
                self._answered_at = ready_at
                while not exited.done() and await self._lives(exited):
                    pass
            if not exited.done():
                patience = self._limits.hung_seconds if ready_at else self._limits.ready_seconds
                killed_because = f", because it answered nothing for {patience:g} s"
                kill_group(process.pid)
                await exited
            self.why = f"it {describe_exit(exited.result())}{killed_because}"
        finally:
            self.ready = False
            for task in (exited, answers):
                task.cancel()
            if process.returncode is not None:
                kill_group(process.pid)  # children that it may have left, which hold the socket too
                self._give_up_requests()
        return ready_at

    def _give_up_requests(self) -> None:
        """Of a process that died. Those still waiting in the socket too: the router asks them again, so the next process would answer
        them twice, and one that kills its process would do so without end."""
        self.channel.abort()
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()

    async def _answers(self) -> None:
        """Until /ping is answered with 200. The question waits in the socket until the process takes it."""
        while True:
            with contextlib.suppress(ChannelBroken, TimeoutError):
                if (await self.channel.ask(PING, self._limits.ready_seconds)).status == 200:
                    return
            await asyncio.sleep(0.02)

    async def _lives(self, exited: asyncio.Task[int]) -> bool:
        """A pause, then whether something has been answered within the patience."""
        patience = self._limits.hung_seconds
        await asyncio.wait({exited}, timeout=patience / 4)
        if exited.done() or time.monotonic() - self._answered_at < patience / 4:
            return True
        with contextlib.suppress(ChannelBroken, TimeoutError):
            await self.channel.ask(PING, max(self._answered_at + patience - time.monotonic(), 0.1))
            self._answered_at = time.monotonic()
        return time.monotonic() - self._answered_at < patience

    async def end(self) -> None:
        """End it for good: SIGTERM, which lets it finish, then SIGKILL."""
        self.ready = False
        async with self._starting:
            self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._limits.end_seconds)
            kill_group(process.pid)
            await process.wait()
        self.channel.abort()
        self._socket.close()


class Variant:
    """A config with its processes.

    Args:
        config: its name.
        release: model, model_version and the rest of the journal's entry.
        log: takes the output of the processes.
        make: one process, with the function that it tells of its deaths.

    Attributes:
        tally: of its answers.
        was_ready: whether it has ever been.
    """

    def __init__(
        self,
        config: str,
        release: Mapping[str, Any],
        log: Path,
        make: Callable[[Callable[[str], None]], Process],
        tell: Callable[[str, str], None],
    ) -> None:
        self.config, self.release, self.log = config, release, log
        self.tally = Tally()
        self.was_ready = False
        self._asked: dict[object, float] = {}
        self._tell = tell
        self.processes = [make(self._died) for _ in range(release["workers"])]

    def _died(self, why: str) -> None:
        logger.warning("%s: a process died: %s", self.config, why)
        self._tell(self.config, why)

    def pick(self) -> Process | None:
        """The ready process with the least to do, None when there is none."""
        ready = [process for process in self.processes if process.ready]
        self.was_ready = self.was_ready or bool(ready)
        return min(ready, key=lambda process: process.in_flight, default=None)

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """A request is on its way through this config for as long as the block lasts."""
        token = object()
        self._asked[token] = time.monotonic()
        try:
            yield
        finally:
            del self._asked[token]

    def owes(self, before: float) -> bool:
        """Whether a request that came before an instant (of `time.monotonic`) is not answered yet."""
        return any(at < before for at in self._asked.values())

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return self.pick() is not None

    @property
    def failing(self) -> bool:
        """Whether nothing answers, after deaths in a row."""
        return not self.ready and any(process.deaths >= CRASH_LOOP for process in self.processes)

    @property
    def hopeless(self) -> bool:
        """Whether it is failing and does not even come up: waiting for it makes no sense."""
        return not self.ready and all(process.stillborn >= STILLBORN for process in self.processes)

    @property
    def why(self) -> str:
        """What became of the process that died last, with the end of the log."""
        reasons = [process.why for process in self.processes if process.why]
        return f"{reasons[-1] if reasons else 'no process died'}; end of {self.log}: {tail(self.log)}"

    @property
    def died(self) -> bool:
        """Whether a process has ever died."""
        return any(process.deaths for process in self.processes)

    async def wait_ready(self, seconds: float, give_up: Callable[[], None] = lambda: None) -> None:
        """Until all processes answer /ping for the first time.

        Args:
            seconds: how long that may take.
            give_up: called again and again; raises when nobody wants the config any more.

        Raises:
            NotReady: one has died, or the time is over.
        """
        until = time.monotonic() + seconds
        while not all(process.ready for process in self.processes):
            give_up()
            if self.died:
                raise NotReady(f"{self.config} does not come up: {self.why}")
            if time.monotonic() > until:
                raise NotReady(
                    f"{self.config} did not answer /ping within {seconds:g} s; end of {self.log}: {tail(self.log)}"
                )
            await asyncio.sleep(0.01)
        self.was_ready = True

    def status(self, share: float) -> VariantStatus:
        """For people and sensors.

        Args:
            share: of the traffic.
        """
        tally = self.tally
        return VariantStatus(
            config=self.config,
            model=self.release["model"],
            model_version=self.release["model_version"],
            share=share,
            ready=self.ready,
            requests=tally.requests,
            errors_5xx=tally.errors_5xx,
            invalid=tally.invalid,
            p50_ms=tally.percentile_ms(50),
            p99_ms=tally.percentile_ms(99),
        )

    async def end(self, drain_seconds: float) -> None:
        """End the processes once nothing is in flight, at the latest after so long."""
        until = time.monotonic() + drain_seconds
        while self._asked and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(process.end() for process in self.processes))


def describe_exit(code: int) -> str:
    """An exit status in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"


def kill_group(pid: int) -> None:
    """SIGKILL to a process and its children; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def open_log(path: Path) -> IO[bytes]:
    """The log for appending, or /dev/null: a disk that does not take a log must not keep an endpoint from serving."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as error:
        logger.error("%s cannot be written (%s): output of the process is lost", path, error)
        return open(os.devnull, "ab", buffering=0)


def tail(path: Path) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4 * TAIL_CHARACTERS))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
    return "\n".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:] or "(empty)"


def cut_log(path: Path, most_bytes: int) -> None:
    """Keep a log bounded: what is too long moves to `<log>.1`, and whoever appends goes on at the beginning."""
    if not path.exists() or path.stat().st_size <= most_bytes:
        return
    kept = path.with_name(path.name + ".1")
    with path.open("rb+") as file:
        file.seek(-most_bytes, os.SEEK_END)
        kept.write_bytes(file.read(most_bytes))
        file.truncate(0)
