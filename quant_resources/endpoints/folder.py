"""The folder of the local endpoints: who keeps it, where he listens, what he left behind.

Belongs here: the files directly in the folder, as both sides see them. Does not belong here: the folder of one endpoint
(`journal.py`, `served.py`).

- `supervisor.lock`: held by the supervisor for as long as it lives. A pid could be somebody else's by now; a lock cannot.
- `supervisor.json`: pid, port, started; or port and stopped. Anybody may read it.
- `token`: opens the control plane; only its owner may read it, which is why it is not in `supervisor.json`.
- `supervisor.log`: what the supervisor says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

from quant_resources.endpoints.journal import now, write_durably

SUPERVISOR_FILE, TOKEN_FILE, LOCK_FILE, LOG_FILE = (
    "supervisor.json",
    "token",
    "supervisor.lock",
    "supervisor.log",
)
TOKEN_HEADER = "x-quant-token"
MODULE = "quant_resources.endpoints.supervisor"
# SageMaker's rule, with room for the config's digits.
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,49}")
# In the environment of every process that answers: whose it is.
FOLDER_MARK = "QUANT_ENDPOINTS_FOLDER"
LOCK_SECONDS = 5.0
LEFTOVER_SECONDS = 5.0


class SupervisorError(RuntimeError):
    """The supervisor cannot start. Names the folder or port and the way out."""


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock goes with the process.

    Raises:
        SupervisorError: another supervisor holds it.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise SupervisorError(
                        f"{folder} has a supervisor already ({folder / LOCK_FILE} is held)"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def is_running(folder: Path) -> bool:
    """Whether a supervisor holds the folder."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def end_leftovers(folder: Path) -> list[int]:
    """End the processes that a dead supervisor of this folder left behind.

    They carry the folder in their environment, which they have from their first moment on; a list of pids would lack the one that
    was started right before the kill.

    Returns:
        Their pids.
    """
    import psutil

    leftovers = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(FOLDER_MARK) == str(folder):
                leftovers.append(process)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        until = time.monotonic() + LEFTOVER_SECONDS
        for process in filter(_runs, leftovers):
            with contextlib.suppress(psutil.Error):
                end(process)
        while any(map(_runs, leftovers)) and time.monotonic() < until:
            time.sleep(0.01)
    return [process.pid for process in leftovers]


def lives(pid: int) -> bool:
    """Whether a process runs."""
    import psutil

    try:
        return _runs(psutil.Process(pid))
    except psutil.Error:
        return False


def _runs(process: psutil.Process) -> bool:
    """One that ended may stay a zombie for as long as the system's first process likes."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def known(folder: Path) -> dict[str, Any]:
    """What `supervisor.json` says; empty before the first start."""
    try:
        return dict(json.loads((folder / SUPERVISOR_FILE).read_bytes()))
    except (OSError, ValueError):
        return {}


def token_of(folder: Path) -> str:
    """The secret of the control plane; made at the first start and kept."""
    path = folder / TOKEN_FILE
    if not path.exists():
        write_durably(path, secrets.token_urlsafe(32).encode(), mode=0o600)
    return path.read_text()


def write_known(folder: Path, port: int, pid: int | None) -> None:
    """Tell callers where the supervisor is, or that it was stopped (no pid)."""
    content = {"pid": pid, "port": port, "started" if pid else "stopped": now()}
    write_durably(folder / SUPERVISOR_FILE, json.dumps(content).encode())


def supervisor_pid(folder: Path) -> int | None:
    """The supervisor of this folder, None if there is none or it has only just begun to start."""
    import psutil

    pid = known(folder).get("pid")
    with contextlib.suppress(psutil.Error, OSError):
        # The pid could be of a dead supervisor, and somebody else's by now.
        if pid is not None and MODULE in psutil.Process(pid).cmdline():
            return int(pid)
    return None


def is_lost(folder: Path) -> bool:
    """Whether the folder was removed or taken over, seen by its supervisor. A file that cannot be read just now says nothing."""
    try:
        return bool(json.loads((folder / SUPERVISOR_FILE).read_bytes())["pid"] != os.getpid())
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError):
        return False
