"""What vendors answered, kept as it came: one compressed file per request.

Belongs here: storing an answer, finding it again, reading all of them in the order in which they came. Does not belong here: what an
answer means (each vendor's module) and when to ask (`vendor.py`).

A file is gzip: one line of JSON (who was asked for what, when), then the answer's bytes. `zcat FILE | head -1` shows the line. No key is in it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quant_resources.sources import SourceError

logger = logging.getLogger(__name__)

COMPRESSION_LEVEL = (
    4  # a vendor's JSON shrinks to a tenth; level 9 takes three times as long for two percent more
)
_TIME = "%Y%m%dT%H%M%S%f"


@dataclass(frozen=True)
class Document:
    """One answer.

    Attributes:
        vendor: who was asked.
        dataset: what for: `daily`, `news`, ...
        label: of whom: a ticker, or the window of a request for several.
        request: parameters as they were sent, without the key.
        fetched_at: when it had come, UTC.
        body: the answer's bytes; keys are blotted out.
        path: the file.
    """

    vendor: str
    dataset: str
    label: str
    request: Mapping[str, str]
    fetched_at: dt.datetime
    body: bytes
    path: Path

    @property
    def origin(self) -> str:
        """Where a row of it came from, for messages: vendor, dataset, label and file."""
        return f"{self.vendor}/{self.dataset}/{self.label}/{self.path.name.removesuffix('.json.gz')}"


class Archive:
    """The answers of one vendor under `folder`.

    Args:
        folder: `QUANT_HOME/archive`.
        vendor: its name; a folder below.
        secrets: texts that must never be written; they are blotted out of bodies.
    """

    def __init__(self, folder: Path, vendor: str, secrets: tuple[str, ...] = ()) -> None:
        self.vendor = vendor
        self.folder = folder / vendor
        self._secrets = tuple(secret.encode() for secret in secrets if secret)

    def store(
        self, dataset: str, label: str, request: Mapping[str, str], body: bytes, fetched_at: dt.datetime
    ) -> Document:
        """Write an answer; it is there whole or not at all, also after a kill.

        Raises:
            SourceError: it cannot be written (a full disk, no permission).
        """
        for secret in self._secrets:
            body = body.replace(secret, b"(key)")
        path = (
            self._place(dataset, label)
            / f"{fetched_at.astimezone(dt.UTC):{_TIME}}-{_digest(request)}.json.gz"
        )
        header = {
            "vendor": self.vendor,
            "dataset": dataset,
            "label": label,
            "request": dict(sorted(request.items())),
            "fetched_at": fetched_at.isoformat(),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        content = gzip.compress(json.dumps(header).encode() + b"\n" + body, COMPRESSION_LEVEL, mtime=0)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(
                OSError
            ):  # what kept it from being written may keep it from being removed
                partial.unlink(missing_ok=True)
            raise SourceError(
                f"the answer of {self.vendor} cannot be archived in {path.parent}: {error.strerror or error}. Free space or "
                "permissions there, or point QUANT_HOME elsewhere; what came before is kept"
            ) from error
        return Document(self.vendor, dataset, label, dict(request), fetched_at, body, path)

    def newest(self, dataset: str, label: str, request: Mapping[str, str]) -> Document | None:
        """The newest answer to exactly this request; a damaged one is passed over with a warning."""
        for path in sorted(self._place(dataset, label).glob(f"*-{_digest(request)}.json.gz"), reverse=True):
            try:
                return self._read(path)
            except SourceError as error:
                logger.warning("%s", error)
        return None

    def fetched_at(self, dataset: str, label: str, request: Mapping[str, str]) -> dt.datetime | None:
        """When the newest answer to this request came, without reading it."""
        names = sorted(
            path.name for path in self._place(dataset, label).glob(f"*-{_digest(request)}.json.gz")
        )
        return _instant(names[-1]) if names else None

    def documents(
        self, dataset: str, label: str | None = None, since: dt.datetime | None = None
    ) -> Iterator[Document]:
        """Every answer, the oldest first, one in memory at a time: a table is rebuilt by letting later ones win.

        Args:
            dataset: as stored.
            label: of one label alone.
            since: only answers that came at or after this instant; others are not opened.

        Raises:
            SourceError: a file is damaged; the message names it.
        """
        folder = self._place(dataset, label) if label is not None else self.folder / _name(dataset)
        for path in sorted(folder.rglob("*.json.gz"), key=lambda path: (path.name, str(path))):
            if since is None or _instant(path.name) >= since:
                yield self._read(path)

    def has_any(self, dataset: str, label: str) -> bool:
        """Whether a label has an answer, without reading one."""
        return next(self._place(dataset, label).glob("*.json.gz"), None) is not None

    def _place(self, dataset: str, label: str) -> Path:
        return self.folder / _name(dataset) / _name(label)

    def _read(self, path: Path) -> Document:
        try:
            line, body = gzip.decompress(path.read_bytes()).split(b"\n", 1)
            header = json.loads(line)
            if hashlib.sha256(body).hexdigest() != header["sha256"]:
                raise ValueError("its checksum differs")
            return Document(
                header["vendor"],
                header["dataset"],
                header["label"],
                header["request"],
                dt.datetime.fromisoformat(header["fetched_at"]),
                body,
                path,
            )
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise SourceError(
                f"{path} is damaged ({error}): delete it, and the vendor is asked again"
            ) from error


def _digest(request: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(request.items())).encode()).hexdigest()[:12]


def _name(text: str) -> str:
    """A folder's name: tickers have dots, windows have dashes, nothing else may lead elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*", text):
        raise SourceError(f"{text!r} cannot name a folder of the archive: letters, digits, '.', '-', '_'")
    return text


def _instant(name: str) -> dt.datetime:
    return dt.datetime.strptime(name.split("-", 1)[0], _TIME).replace(tzinfo=dt.UTC)
