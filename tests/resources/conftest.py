"""Fixtures of the local endpoint's tests: a folder with endpoints whose processes are fakes, bundles with faults, load."""

import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from quant_resources.endpoints import Release
from quant_resources.endpoints.folder import FOLDER_MARK, supervisor_pid
from quant_resources.endpoints.local import LocalEndpoints

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
LIVENESS_SECONDS = 30.0


class Local:
    """Endpoints under a folder of their own.

    Attributes:
        endpoints: what is tested.
        folder: of the endpoints.
    """

    def __init__(self, folder: Path, **limits: object) -> None:
        command = [sys.executable, "-S", str(FAKE_WORKER)]
        for name in ("bundle", "fd", "capture", "endpoint", "config"):
            command += [f"--{name}", f"{{{name}}}"]
        command += ["--capture-share", "{capture_share}"]
        self.folder = folder / "endpoints"
        self.endpoints = LocalEndpoints(self.folder, None, command, limits)
        self._bundles = folder

    def release(
        self, version: int, workers: int = 1, capture_share: float = 0.0, **faults: object
    ) -> Release:
        """A bundle whose processes show faults, see `fake_worker.py`."""
        path = self._bundles / f"bundle-{version}.json"
        path.write_text(json.dumps({"model": "fake", "version": version, **faults}))
        return Release.of(path, "fake", version, workers=workers, capture_share=capture_share)

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        pid = supervisor_pid(self.folder)
        assert pid is not None
        return pid

    def processes(self) -> list[psutil.Process]:
        """All that answer, whoever started them."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(FOLDER_MARK) == str(self.folder):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def kill_supervisor(self) -> None:
        """kill -9, and wait until nobody holds the folder."""
        os.kill(self.pid, signal.SIGKILL)
        self.until(lambda: not self.endpoints.running)

    @staticmethod
    def until(happened: Callable[[], object]) -> None:
        """Wait for something that is bound to happen."""
        end = time.monotonic() + LIVENESS_SECONDS
        while not happened():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)

    def end(self) -> None:
        """Nothing of this folder is left, whatever the test did. Not gracefully: that takes longer, and has a test of its own."""
        while self.endpoints.running:
            if (pid := supervisor_pid(self.folder)) is not None:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        for process in self.processes():
            process.kill()


@pytest.fixture
def make_local(tmp_path: Path) -> Iterator[Callable[..., Local]]:
    """Endpoints with limits of their own: `make_local(hung_seconds=1)`."""
    made: list[Local] = []

    def make(**limits: object) -> Local:
        made.append(Local(tmp_path, **limits))
        return made[-1]

    yield make
    for local in made:
        local.end()


@pytest.fixture
def local(make_local: Callable[..., Local]) -> Local:
    """Endpoints with short patience."""
    return make_local(end_seconds=0.5, canary_seconds=0.5)


class Load:
    """Four plain HTTP clients that ask without a pause, retry nothing and count everything.

    Args:
        local: the endpoints.
        name: of the endpoint.
        most_requests: then they stop by themselves.

    Attributes:
        answers: how often each (status, version) came; a status is the name of an exception where there was no answer.
    """

    def __init__(self, local: Local, name: str, most_requests: int = 8000) -> None:
        self._port = local.endpoints.supervisor["port"]
        self._path = f"/endpoints/{name}/direct"
        self._most = most_requests // 4
        self.answers: Counter[tuple[int | str, int | None]] = Counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIVENESS_SECONDS)
        for _ in range(self._most):
            if self._stop.wait(0.003):
                break
            status: int | str
            version = None
            try:
                connection.request(
                    "POST", self._path, b'{"shares": 100}', {"content-type": "application/json"}
                )
                response = connection.getresponse()
                status, body = response.status, response.read()
                version = json.loads(body).get("version")
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
                connection.close()
            with self._lock:
                self.answers[status, version] += 1
        connection.close()

    @property
    def total(self) -> int:
        """Requests so far."""
        with self._lock:
            return sum(self.answers.values())

    @property
    def failed(self) -> dict[tuple[int | str, int | None], int]:
        """What was not answered with 200."""
        return {key: count for key, count in self.answers.items() if key[0] != 200}

    def of_version(self, version: int) -> int:
        """Answers that a version gave."""
        with self._lock:
            return self.answers[200, version]

    def more(self, requests: int = 40) -> None:
        """Wait until so many more are answered."""
        goal = self.total + requests
        Local.until(lambda: self.total >= goal)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.more()
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def load() -> type[Load]:
    """Load on an endpoint for as long as a block lasts: `with load(local, "execution") as seen: ...`."""
    return Load
