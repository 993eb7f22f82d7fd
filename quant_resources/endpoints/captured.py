"""Reading captured requests: lines in the format of SageMaker's data capture. Pure but for opening files.

Belongs here: one line of a capture file to a `CapturedRequest`, and a folder of such files in the order of time. Does not
belong here: writing them (`quant_assets/serving/capture.py` locally, SageMaker itself there), and where an implementation keeps
them.

Both write JSON lines under `.../YYYY/MM/DD/HH/`, in UTC. The inference app adds the endpoint and the config to `eventMetadata`,
because its folders do not say all of it; SageMaker's paths do, so there whoever reads hands them in.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import heapq
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quant_resources.endpoints import CapturedRequest

logger = logging.getLogger(__name__)

# The hour of a file, from its folders.
HOUR = re.compile(r"(\d{4})/(\d{2})/(\d{2})/(\d{2})/[^/]+\.jsonl$")


class CaptureLineError(ValueError):
    """A line that is no captured request: torn by a kill or a full disk, or of another format."""


def parse_captured(line: bytes, endpoint: str = "", config: str = "") -> CapturedRequest:
    """One captured request.

    Args:
        line: of a capture file, with or without its end.
        endpoint, config: who answered, where the line does not say.

    Raises:
        CaptureLineError: it is none; says what is missing.
    """
    import msgspec

    try:
        event = msgspec.json.decode(line)
        metadata, data = event["eventMetadata"], event["captureData"]
        at = dt.datetime.fromisoformat(metadata["inferenceTime"])
        return CapturedRequest(
            event_id=str(metadata["eventId"]),
            endpoint=str(metadata.get("endpoint", endpoint)),
            config=str(metadata.get("config", config)),
            at=(at if at.tzinfo else at.replace(tzinfo=dt.UTC)).astimezone(dt.UTC),
            request=_text(data["endpointInput"]),
            response=_text(data["endpointOutput"]),
        )
    except (msgspec.DecodeError, binascii.Error, LookupError, TypeError, AttributeError, ValueError) as error:
        raise CaptureLineError(f"{len(line)} bytes: {type(error).__name__}: {error}") from error


def _text(side: Any) -> str:
    """A body as text. SageMaker encodes as base64 what it does not know as JSON or CSV."""
    data = side["data"]
    if side.get("encoding") == "BASE64":
        return base64.b64decode(data, validate=True).decode()
    if not isinstance(data, str):
        raise TypeError(f"data is of type {type(data).__name__}, it must be text")
    return data


def read_captured(
    folder: Path, since: dt.datetime | None = None, skipped: list[str] | None = None
) -> Iterator[CapturedRequest]:
    """Captured requests under a folder, oldest first; lazily, one line of each file of an hour in memory.

    Files may be written while they are read. A line that is no captured request (a kill tears at most the last one) is left out
    and counted in one warning.

    Args:
        folder: searched with everything below; one that does not exist holds nothing.
        since: nothing before this instant, which has a time zone.
        skipped: takes "file:line: reason" of what was left out.

    Raises:
        ValueError: `since` has no time zone.
    """
    if since is not None and since.tzinfo is None:
        raise ValueError(f"since = {since} has no time zone: say which instant is meant")
    hours: dict[dt.datetime, list[Path]] = {}
    for path in Path(folder).rglob("*.jsonl"):
        if found := HOUR.search(path.as_posix()):
            hours.setdefault(dt.datetime(*map(int, found.groups()), tzinfo=dt.UTC), []).append(path)  # type: ignore[misc, arg-type]
    left_out: list[str] = []
    try:
        for hour in sorted(hours):
            if since is not None and hour + dt.timedelta(hours=1) <= since:
                continue
            # Each process appends in the order of time, so merging its files is sorting them.
            streams = (_read_file(path, left_out) for path in sorted(hours[hour]))
            for captured in heapq.merge(*streams, key=lambda c: c.at):
                if since is None or captured.at >= since:
                    yield captured
    finally:
        if left_out:
            logger.warning(
                "%d captured lines under %s cannot be read and were left out, the first: %s",
                len(left_out), folder, left_out[0],
            )  # fmt: skip
        if skipped is not None:
            skipped += left_out


def remove_captured(folder: Path, before: dt.datetime) -> int:
    """Delete the files of hours that ended before an instant; how many.

    Args:
        folder: as for `read_captured`.
        before: has a time zone.
    """
    removed = 0
    for path in Path(folder).rglob("*.jsonl"):
        found = HOUR.search(path.as_posix())
        if found and dt.datetime(*map(int, found.groups()), tzinfo=dt.UTC) + dt.timedelta(hours=1) <= before:  # type: ignore[misc, arg-type]
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _read_file(path: Path, left_out: list[str]) -> Iterator[CapturedRequest]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield parse_captured(line)
            except CaptureLineError as error:
                left_out.append(f"{path}:{number}: {error}")
