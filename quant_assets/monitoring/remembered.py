"""Null distributions on disk: computing one takes a second or, with hundreds of symbols, a minute; each night needs the same.

Belongs here: files, written whole or not at all. Does not belong here: what identifies a null distribution (`drift.Reference`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

# Files of one model that are kept, the newest; a reference that changes (new version, corrected features) has a new one.
KEPT = 8


class RememberedNulls:
    """Arrays by key, of one model. A file that cannot be read or written costs time and nothing else.

    Args:
        folder: created when something is written.
        name: of the model; begins the names of its files.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def __call__(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """What is stored under `key`, otherwise computed and stored."""
        path = self.folder / f"{self.name}-{key}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            logger.warning("%s cannot be read (%s): computed again", path, error)
        found = compute()
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.save(file, found, allow_pickle=False)
            temporary.replace(path)
            stored = sorted(self.folder.glob(f"{self.name}-*.npy"), key=lambda p: p.stat().st_mtime)
            for old in stored[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be written (%s): the next night computes it again", path, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return found
