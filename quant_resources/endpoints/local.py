"""Local endpoints, seen from whoever deploys and asks: the `Endpoint` protocol on this machine.

Belongs here: talking to the supervisor, starting it, reading its journal when it is gone. Does not belong here: serving
(`supervisor.py`).

The supervisor belongs to the folder, not to the process that started it: it outlives a Dagster run and a shell, and is ended by
`LocalEndpoints.stop` or `python -m quant_resources.endpoints stop`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quant_resources.endpoints import (
    JSON,
    SERVED_BY_HEADER,
    Answer,
    CapturedRequest,
    EndpointDown,
    EndpointError,
    EndpointStatus,
    Release,
    Rollout,
    VariantStatus,
)
from quant_resources.endpoints.folder import (
    LOG_FILE,
    MODULE,
    NAME,
    TOKEN_FILE,
    TOKEN_HEADER,
    end_leftovers,
    is_running,
    known,
    lives,
    supervisor_pid,
)
from quant_resources.endpoints.journal import STATE_FILE, Journal

HOST = "127.0.0.1"
STOPPED_FILE = "stopped"
# What serves a bundle. Filled in: bundle, fd (a listening socket), capture, capture_share, endpoint, config.
WORKER_COMMAND = (
    sys.executable, "-P", "-m", "quant_assets.serving", "serve",
    "--bundle", "{bundle}", "--fd", "{fd}", "--capture", "{capture}", "--capture-share", "{capture_share}",
    "--endpoint", "{endpoint}", "--config", "{config}",
)  # fmt: skip
START_SECONDS = 30.0
CONTROL_SECONDS = 60.0  # of a call that may copy a bundle
STATUS_SECONDS = 2.0
STOP_SECONDS = 60.0
# SageMaker's limit of an answer, and a restart that may come before it.
ANSWER_SECONDS = 90.0
RETRY_SECONDS = 5.0
POLL_SECONDS = 0.05


class _Unreachable(ConnectionError):
    """The supervisor cannot be talked to."""


@dataclass(frozen=True)
class LocalEndpoints:
    """The endpoints under a folder; the Dagster resource of `QUANT_ENDPOINT_BACKEND=local`.

    Args:
        folder: `Settings.endpoints_dir`.
        port: of the supervisor on the loopback interface; None: chosen once and kept.
        worker_command: of a process, see `WORKER_COMMAND`.
        limits: what differs from `quant_resources.endpoints.variant.Limits`.
    """

    folder: Path
    port: int | None = None
    worker_command: Sequence[str] = WORKER_COMMAND
    limits: Mapping[str, Any] = field(default_factory=dict)

    def endpoint(self, name: str) -> LocalEndpoint:
        """One by its name, whether it exists or not.

        Raises:
            EndpointError: no endpoint can have that name.
        """
        if not NAME.fullmatch(name):
            raise EndpointError(
                f"{name!r} is no name of an endpoint: letters, digits and hyphens within, at most 50"
            )
        return LocalEndpoint(name, self)

    def statuses(self) -> list[EndpointStatus]:
        """Of all endpoints that exist, by name."""
        names = sorted(path.parent.name for path in self.directory.glob(f"*/{STATE_FILE}"))
        return [status for name in names if (status := self.endpoint(name).status()).phase != "absent"]

    @property
    def directory(self) -> Path:
        """The folder, absolute and without links: it is how the supervisor knows its processes."""
        return Path(self.folder).resolve()

    @property
    def running(self) -> bool:
        """Whether there is a supervisor."""
        return is_running(self.directory)

    @property
    def stopped(self) -> bool:
        """Whether the supervisor was ended by `stop`, and not started since."""
        return (self.directory / STOPPED_FILE).exists()

    @property
    def supervisor(self) -> dict[str, Any]:
        """What is known of the supervisor that runs, or of the last one: pid, port, started or stopped."""
        return known(self.directory)

    def start(self) -> None:
        """Start the supervisor unless there is one. It brings back every endpoint that it finds in the folder.

        Raises:
            EndpointError: it does not start, or there is one at another port.
        """
        from filelock import FileLock, Timeout

        if not self._answers():
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                with FileLock(self.directory / "starting.lock", timeout=2 * START_SECONDS):
                    self._start_unless_running()
            except (OSError, Timeout) as error:
                raise EndpointError(
                    f"the supervisor of {self.directory} cannot be started: {error}"
                ) from error
        port = self.supervisor.get("port")
        if self.port is not None and port != self.port:
            raise EndpointError(
                f"the supervisor of {self.directory} listens at port {port}, not at {self.port} (QUANT_ENDPOINT_PORT). Stop it "
                "first: python -m quant_resources.endpoints stop"
            )

    def _start_unless_running(self) -> None:
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self.running:
                (self.directory / STOPPED_FILE).unlink(missing_ok=True)
                self._start()
                return
            if time.monotonic() > until:
                raise EndpointError(
                    f"the supervisor of {self.directory} (pid {self.supervisor.get('pid')}) runs, but has not answered for "
                    f"{START_SECONDS:g} s. See {self.directory / LOG_FILE}; end it and start it again."
                )
            time.sleep(POLL_SECONDS)

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", MODULE, "--detach"]
        command += [
            "--folder",
            str(self.directory),
            "--worker-command",
            json.dumps(list(self.worker_command)),
        ]
        command += ["--limits", json.dumps(dict(self.limits))]
        if self.port is not None:
            command += ["--port", str(self.port)]
        # Where this package is, and only there: not what happens to lie in the working directory.
        home = str(Path(__file__).resolve().parents[2])
        paths = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        log = self.directory / LOG_FILE
        try:
            with log.open("ab") as errors:
                started = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=self.directory,
                    env=environment,
                    timeout=START_SECONDS,
                    start_new_session=True,
                )
            pid = int(started.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise EndpointError(
                f"the supervisor of {self.directory} cannot be started: {error}. See {log}."
            ) from error
        until = time.monotonic() + START_SECONDS
        while not (self.supervisor.get("pid") == pid and self._answers()):
            if time.monotonic() > until or not lives(pid):
                from quant_resources.endpoints.variant import tail

                raise EndpointError(
                    f"the supervisor of {self.directory} does not start. End of {log}: {tail(log)}"
                )
            time.sleep(POLL_SECONDS / 5)

    def _answers(self) -> bool:
        if not self.running:
            return False
        try:
            self.control("GET", "/control/endpoints", timeout_seconds=STATUS_SECONDS)
        except (_Unreachable, EndpointError):
            return False
        return True

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """End the supervisor and all processes; what is being answered is finished. Endpoints come back with `start`.

        That it was meant is kept in a file, so that a sensor tells it from a supervisor that died or a machine that was switched off.

        Raises:
            EndpointError: it does not end.
        """
        until = time.monotonic() + timeout_seconds
        told = None
        if self.directory.is_dir():
            (self.directory / STOPPED_FILE).touch()
        while self.running:
            pid = supervisor_pid(self.directory)
            if pid is not None and pid != told:
                with contextlib.suppress(ProcessLookupError):  # it ended by itself in between
                    os.kill(pid, signal.SIGTERM)
                told = pid
            if time.monotonic() > until:
                raise EndpointError(
                    f"the supervisor of {self.directory} (pid {told}) has not ended within {timeout_seconds:g} s"
                )
            time.sleep(POLL_SECONDS / 5)
        end_leftovers(self.directory)

    def control(
        self, method: str, path: str, content: Any = None, timeout_seconds: float = CONTROL_SECONDS
    ) -> Any:
        """One call of the supervisor's control plane.

        Raises:
            EndpointError: it refuses.
            ConnectionError: nobody answers.
        """
        try:
            token = (self.directory / TOKEN_FILE).read_text()
            port = self.supervisor["port"]
            headers = {TOKEN_HEADER: token, "content-type": JSON}
            body = json.dumps(content).encode()
            status, _, answer = _request(port, method, path, body, headers, timeout_seconds)
            value = json.loads(answer)
        except (OSError, KeyError, ValueError, http.client.HTTPException) as error:
            raise _Unreachable(f"the supervisor of {self.directory} does not answer: {error!r}") from error
        if status >= 400:
            raise EndpointError(value["error"])
        return value


@dataclass(eq=False)
class LocalEndpoint:
    """One endpoint on this machine; see `Endpoint` for what its methods promise."""

    name: str
    endpoints: LocalEndpoints

    @property
    def folder(self) -> Path:
        """Journal, history, bundles, logs and captured requests of this endpoint."""
        return self.endpoints.directory / self.name

    def status(self) -> EndpointStatus:
        """What it is doing. Never starts the supervisor: one that is gone is told from the journal, as `failed`, or as `stopped` where
        somebody ended it by `stop`.
        """
        until = time.monotonic() + STATUS_SECONDS
        why = ""
        while self.endpoints.running:
            try:
                return _status(self.endpoints.control("GET", self._path(), timeout_seconds=STATUS_SECONDS))
            except _Unreachable as error:  # it may be starting
                why = str(error)
            if time.monotonic() > until:
                break
            time.sleep(POLL_SECONDS)
        supervisor = self.endpoints.supervisor
        try:
            state = Journal(self.folder).read()
        except EndpointError as error:
            return EndpointStatus(self.name, "failed", message=str(error))
        if state is None:
            return EndpointStatus(self.name, "absent")
        if not why:
            why = "the supervisor is not running"
            why += f" (pid {supervisor['pid']} is gone)" if supervisor.get("pid") else ""
            why += f" (stopped {supervisor['stopped']})" if supervisor.get("stopped") else ""
        release = state.releases.get(state.config or "", {})
        return EndpointStatus(
            name=self.name,
            phase="stopped" if self.endpoints.stopped else "failed",
            url=f"http://{HOST}:{supervisor['port']}/endpoints/{self.name}/invocations" if supervisor else "",
            config=state.config,
            model=release.get("model"),
            model_version=release.get("model_version"),
            previous_config=state.previous_config,
            target_config=state.target_config,
            last_outcome=state.last_outcome,
            message=f"{why}; restart() starts it. Before that: {state.message}",
        )

    def config_of(self, release: Release) -> str:
        """Name of the config that a release has here, or would have."""
        return release.config(self.name)

    def deploy(self, release: Release, rollout: Rollout) -> EndpointStatus:
        """Begin to serve a release; see `Endpoint.deploy`."""
        if not Path(release.bundle).is_file():
            raise EndpointError(f"{self.name}: {release.bundle} is no file, so there is nothing to deploy")
        values = {**asdict(release), "bundle": str(Path(release.bundle).absolute())}
        return self._ask("deploy", {"release": values, "rollout": rollout.as_dict()})

    def wait(
        self, timeout_seconds: float, progress: Callable[[EndpointStatus], None] | None = None
    ) -> EndpointStatus:
        """The status once it is settled; see `Endpoint.wait`."""
        until = time.monotonic() + timeout_seconds
        last = None
        while True:
            status = self.status()
            if progress is not None and status != last:
                progress(status)
            if status.settled:
                return status
            if time.monotonic() > until:
                raise EndpointError(
                    f"{self.name} is still {status.phase.replace('_', ' ')} after {timeout_seconds:g} s: {status.message}. See "
                    f"the logs under {self.folder / 'logs'}."
                )
            last = status
            time.sleep(POLL_SECONDS)

    def invoke(self, body: bytes, content_type: str = JSON) -> Answer:
        """One request; see `Endpoint.invoke`. A supervisor that is being started again is waited for, for a few seconds."""
        until = time.monotonic() + RETRY_SECONDS
        while True:
            port = self.endpoints.supervisor.get("port")
            if port is None or not (self.folder / STATE_FILE).exists():
                raise EndpointDown(
                    f"{self.name} does not exist under {self.endpoints.directory}. Deploy a release."
                )
            headers = {"content-type": content_type}
            path = f"/endpoints/{self.name}/direct"
            try:
                status, got, answer = _request(port, "POST", path, body, headers, ANSWER_SECONDS)
            except (OSError, http.client.HTTPException) as error:
                stopped = self.endpoints.supervisor.get("stopped") and not self.endpoints.running
                if stopped or time.monotonic() > until:
                    raise EndpointDown(
                        f"{self.name}: nobody answers at port {port} ({error!r}). {self.status().message}"
                    ) from error
                time.sleep(POLL_SECONDS)
                continue
            # Only the router's own refusals carry this header here.
            if status != 413 and got.get("x-amzn-errortype"):
                raise EndpointDown(f"{self.name}: {json.loads(answer)['reason']}")
            return Answer(status, answer, got.get(SERVED_BY_HEADER, ""))

    def rollback(self, reason: str) -> EndpointStatus:
        """Go back; see `Endpoint.rollback`."""
        self._must_exist()
        return self._ask("rollback", {"reason": reason})

    def restart(self, reason: str) -> EndpointStatus:
        """Start the supervisor if it is gone, which brings back all endpoints; otherwise new processes for this one."""
        self._must_exist()
        if not self.endpoints.running:
            self.endpoints.start()
            return self.status()
        return self._ask("restart", {"reason": reason})

    def captured(self, since: dt.datetime | None = None) -> Iterator[CapturedRequest]:
        """Captured requests at or after an instant, oldest first; of every config that ever answered."""
        from quant_resources.endpoints.captured import read_captured

        return read_captured(self.folder / "capture", since)

    def history(self) -> list[dict[str, Any]]:
        """What happened to it, oldest first; across restarts, and after its deletion."""
        return Journal(self.folder).history()

    def delete(self) -> None:
        """Take it down; see `Endpoint.delete`. Returns once it is gone."""
        if not (self.folder / STATE_FILE).exists():
            return
        self._start()
        self.endpoints.control("DELETE", self._path())
        until = time.monotonic() + STOP_SECONDS
        while self.status().phase != "absent":
            if time.monotonic() > until:
                raise EndpointError(
                    f"{self.name} is still there after {STOP_SECONDS:g} s: {self.status().message}"
                )
            time.sleep(POLL_SECONDS / 5)

    def _path(self) -> str:
        return f"/control/endpoints/{self.name}"

    def _must_exist(self) -> None:
        if not (self.folder / STATE_FILE).exists():
            raise EndpointError(
                f"{self.name} does not exist under {self.endpoints.directory}. Deploy a release."
            )

    def _start(self) -> None:
        self.endpoints.start()

    def _ask(self, action: str, content: Mapping[str, Any]) -> EndpointStatus:
        self._start()
        try:
            return _status(self.endpoints.control("POST", f"{self._path()}/{action}", content))
        except _Unreachable as error:
            raise EndpointDown(f"{self.name}: {action} was not taken: {error}") from error


def _status(values: Mapping[str, Any]) -> EndpointStatus:
    variants = tuple(VariantStatus(**variant) for variant in values["variants"])
    return EndpointStatus(**{**values, "variants": variants})


def _request(
    port: int, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float
) -> tuple[int, Mapping[str, str], bytes]:
    """One request over a connection of its own: status, headers by name in lower case, body."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_seconds)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        answer = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, answer
    finally:
        connection.close()
