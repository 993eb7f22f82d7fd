"""Alerts: where a failed run or a drift event tells a person.

Belongs here: channels. Does not belong here: the decision to alert (sensors).
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from pathlib import Path

import dagster as dg

logger = logging.getLogger(__name__)


class LogAlerts(dg.ConfigurableResource):
    """Alerts into the log and, one JSON line each, into `alerts_file`, so that a night's alerts survive its process."""

    alerts_file: str

    def send(self, title: str, body: str, **fields: str) -> None:
        """Raise one alert; `fields` are stored beside the text (run id, job, partition)."""
        logger.error("ALERT %s: %s", title, body)
        path = Path(self.alerts_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {
            "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "title": title,
            "body": body,
            **fields,
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
