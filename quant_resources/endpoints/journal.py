"""The journal of a local endpoint: what it serves, on disk, so that a kill at any moment leaves a known version.

Belongs here: the state, reading and writing it, and the history. Does not belong here: what leads from one state to the next
(`served.py`).

`state.json` is replaced as a whole and brought to the disk before anything acts on it: writing it *is* the switch from one config to
another. `history.jsonl` tells people what happened, one line for each state and for each process that died; it is never read back to
decide anything.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from quant_resources.endpoints import EndpointError, Phase

FORMAT = 1
STATE_FILE, HISTORY_FILE = "state.json", "history.jsonl"


@dataclass(frozen=True)
class State:
    """What is known of an endpoint across restarts.

    Attributes:
        name: of the endpoint.
        phase: when this was written; whether processes live is not written down.
        config: that all traffic goes to; None before the first one serves.
        previous_config: what a manual rollback goes back to.
        target_config: what a rollout in progress leads to.
        releases: by config, what it takes to serve it again: model, model_version, digest, capture_share, workers, tags.
        rollout: settings of the rollout in progress.
        last_outcome, message: as in `EndpointStatus`.
        sequence: 1, 2, ...
        at: when it was written, UTC.
    """

    name: str
    phase: Phase = "absent"
    config: str | None = None
    previous_config: str | None = None
    target_config: str | None = None
    releases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rollout: Mapping[str, Any] = field(default_factory=dict)
    last_outcome: str = ""
    message: str = ""
    sequence: int = 0
    at: str = ""
    format: int = FORMAT

    def next(self, **changes: Any) -> State:
        """The state that follows this one."""
        return replace(self, **changes, sequence=self.sequence + 1, at=now())


def now() -> str:
    """This instant, UTC, to the millisecond."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def write_durably(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file so that a reader, a kill or a power cut sees the old content or the new one.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    beside = path.with_name(path.name + ".new")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Journal:
    """State and history of one endpoint.

    Args:
        folder: of the endpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> State | None:
        """The last state that was written; None where there is none.

        Raises:
            EndpointError: the file is not one that `write` wrote.
        """
        path = self.folder / STATE_FILE
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"it has format {content['format']}, this version reads {FORMAT}")
            return State(**content)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EndpointError(
                f"{path} cannot be read: {error}. Bring it back from a backup, or delete the endpoint and deploy again."
            ) from error

    def write(self, state: State) -> None:
        """Make a state the one that holds after a restart.

        Raises:
            OSError: the disk is full or gone; the state before still holds.
        """
        write_durably(self.folder / STATE_FILE, json.dumps(asdict(state), indent=1).encode())

    def tell(self, state: State) -> None:
        """Add a state to the history."""
        names = ("sequence", "phase", "config", "target_config", "previous_config", "last_outcome", "message")
        self._append({"at": state.at, "event": "state", **{name: getattr(state, name) for name in names}})

    def tell_process(self, config: str, message: str) -> None:
        """Add to the history what happened to a process."""
        self._append({"at": now(), "event": "process", "config": config, "message": message})

    def _append(self, line: Mapping[str, Any]) -> None:
        with (self.folder / HISTORY_FILE).open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            # A line that a kill tore must not take this one with it.
            torn = size and file.read(1) != b"\n"
            file.write(b"\n" * bool(torn) + json.dumps(line).encode() + b"\n")

    def history(self) -> list[dict[str, Any]]:
        """All lines, oldest first; one that a kill tore is left out."""
        try:
            lines = (self.folder / HISTORY_FILE).read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        told = []
        for line in lines:
            try:
                told.append(json.loads(line))
            except ValueError:
                continue
        return told

    def mend(self, state: State) -> None:
        """Add the last state to the history if a kill came between the two writes."""
        told = [line["sequence"] for line in self.history() if line.get("event") == "state"]
        if not told or told[-1] < state.sequence:
            self.tell(state)

    def forget(self) -> None:
        """Remove the state; the history stays."""
        (self.folder / STATE_FILE).unlink(missing_ok=True)
