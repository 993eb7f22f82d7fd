"""Captured requests: what was asked and answered, appended to files in the format of SageMaker's data capture.

Belongs here: which requests are captured, the line of each, and the files. Does not belong here: reading them
(`quant_resources/endpoints/captured.py`) and their table.

A request hands its two bodies over and goes on. One thread makes lines of them and appends them, at the latest after
`FLUSH_SECONDS`: a disk that is slow, full or not there costs captured requests and one line in the log, never an answer. A kill
loses what was not written yet and may tear the last line.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
import os
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import NamedTuple

import msgspec

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
# What waits for the disk. More is left out: memory is for answers.
MAX_WAITING_BYTES = 16 << 20
# After a failed write, so long nothing is tried: a full disk is not emptied by trying.
RETRY_SECONDS = 30.0
CLOSE_SECONDS = 5.0
CONTENT_TYPE = "application/json"


class _Event(NamedTuple):
    event_id: str
    at: dt.datetime
    request: bytes
    response: bytes


def is_sampled(event_id: str, share: float) -> bool:
    """Whether a request belongs to the captured share, decided by the hash of its id.

    The same id gives the same decision everywhere, and what a small share captures a larger one captures as well.

    Args:
        event_id: any text.
        share: 0 captures nothing, 1 everything.
    """
    drawn = int.from_bytes(hashlib.sha256(event_id.encode()).digest()[:8], "big")
    return drawn < share * 2**64


def capture_line(
    event_id: str, at: dt.datetime, endpoint: str, config: str, request: bytes, response: bytes
) -> bytes:
    """One line with its end; keys as SageMaker writes them, and in `eventMetadata` also `endpoint` and `config`."""

    def side(mode: str, body: bytes) -> dict[str, str]:
        text = body.decode(errors="replace")
        return {"observedContentType": CONTENT_TYPE, "mode": mode, "data": text, "encoding": "JSON"}

    event = {
        "captureData": {"endpointInput": side("INPUT", request), "endpointOutput": side("OUTPUT", response)},
        "eventMetadata": {
            "eventId": event_id,
            "inferenceTime": at.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "endpoint": endpoint,
            "config": config,
        },
        "eventVersion": "0",
    }
    return msgspec.json.encode(event) + b"\n"


class Capture:
    """Appends captured requests to `FOLDER/<config>/YYYY/MM/DD/HH/<start>-<pid>.jsonl`, hours in UTC.

    Start and pid keep processes apart, those before a restart too, so every file has one writer.

    Args:
        folder: of the endpoint.
        share: of the requests, 0 to 1.
        endpoint, config: who answers.

    Attributes:
        lost: captured requests that could not be written so far.

    Raises:
        ValueError: `share` is no part.
    """

    def __init__(self, folder: Path, share: float, endpoint: str, config: str) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"capture share = {share}: it is a part of the requests, 0 to 1")
        self.folder, self.share, self.endpoint, self.config = Path(folder), share, endpoint, config
        self.lost = 0
        self._started = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S%f}"
        self._waiting: deque[_Event] = deque()
        self._waiting_bytes = 0
        self._lock = threading.Lock()  # of what waits
        self._writing = threading.Lock()  # of the file
        self._wake, self._closed = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._file: int | None = None
        self._torn = False
        self._retry_at: float | None = None

    def append(self, request: bytes, response: bytes) -> None:
        """Capture an answered request if it belongs to the share. Neither waits for the disk nor raises on its account."""
        event_id = str(uuid.uuid4())
        if not is_sampled(event_id, self.share):
            return
        with self._lock:
            size = len(request) + len(response)
            if self._closed or self._waiting_bytes + size > MAX_WAITING_BYTES:
                self.lost += 1
                return
            # Stamped under the lock, so that a file is in the order of time.
            self._waiting.append(_Event(event_id, dt.datetime.now(dt.UTC), request, response))
            self._waiting_bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
                self._thread.start()
            if self._waiting_bytes > MAX_WAITING_BYTES // 4:
                self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self.flush()

    def flush(self) -> None:
        """Write what waits. A failure is logged once until a write succeeds again."""
        with self._writing:
            with self._lock:
                events = list(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
            for done, event in enumerate(events):
                if self._retry_at is not None and time.monotonic() < self._retry_at:
                    self.lost += len(events) - done
                    return
                try:
                    self._write(event)
                except Exception as error:  # whatever a disk may do, the next events are tried again
                    self.lost += 1
                    if self._retry_at is None:
                        logger.error(
                            "captured requests cannot be written under %s: %s. Answers go on; captured requests are left "
                            "out until it can be written again.", self.folder, error,
                        )  # fmt: skip
                    self._retry_at = time.monotonic() + RETRY_SECONDS
                    self._close_file()
                else:
                    self._retry_at = None

    def _write(self, event: _Event) -> None:
        path = self.folder / self.config / f"{event.at:%Y/%m/%d/%H}" / f"{self._started}-{os.getpid()}.jsonl"
        if path != self._path or self._file is None:
            self._close_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._path = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), path
        line = capture_line(*event[:2], self.endpoint, self.config, *event[2:])
        # A line that a full disk cut off is ended first, so that it takes no other with it.
        line = b"\n" * self._torn + line
        self._torn = True
        written = os.write(self._file, line)
        if written < len(line):
            raise OSError(f"{written} of {len(line)} bytes were written")
        self._torn = False

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # some file systems report a full disk here once more
                os.close(file)

    def close(self) -> None:
        """Write what waits, then stop; a disk that hangs is not waited for longer than `CLOSE_SECONDS`."""
        with self._lock:
            self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                return
        self.flush()
        self._close_file()
