"""Local endpoints from a shell: `python -m quant_resources.endpoints status|start|stop|rollback NAME|restart NAME`.

Belongs here: words in, a table out. Does not belong here: anything that the Dagster UI cannot do as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from quant_resources.endpoints import EndpointError, EndpointStatus
from quant_resources.endpoints.local import LocalEndpoints
from quant_resources.settings import SettingsError, load_settings

COLUMNS = (
    "endpoint",
    "phase",
    "config",
    "model",
    "traffic",
    "requests",
    "5xx",
    "invalid",
    "p50 ms",
    "p99 ms",
)
WAIT_SECONDS = 120.0


def table(statuses: Sequence[EndpointStatus]) -> str:
    """One line for each config that has processes, and the reason under each endpoint."""
    rows = [COLUMNS]
    notes: dict[int, str] = {}
    for status in statuses:
        for number, variant in enumerate(status.variants or (None,)):
            rows.append(
                (
                    status.name if number == 0 else "",
                    status.phase if number == 0 else "",
                    (variant.config if variant else status.config) or "-",
                    f"{variant.model if variant else status.model}:{variant.model_version if variant else status.model_version}",
                    f"{variant.share:.0%}" if variant else "-",
                    str(variant.requests) if variant else "-",
                    str(variant.errors_5xx) if variant else "-",
                    str(variant.invalid) if variant else "-",
                    f"{variant.p50_ms:.1f}" if variant and variant.p50_ms is not None else "-",
                    f"{variant.p99_ms:.1f}" if variant and variant.p99_ms is not None else "-",
                )
            )
        notes[len(rows) - 1] = status.message
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for number, row in enumerate(rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if notes.get(number):
            lines.append(f"    {notes[number]}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Exit status 1 when an endpoint is not in service."""
    parser = argparse.ArgumentParser(prog="python -m quant_resources.endpoints")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("status", help="what every endpoint is doing")
    actions.add_parser("start", help="start the supervisor; every endpoint comes back")
    actions.add_parser("stop", help="end the supervisor and all processes; requests are finished")
    for action in ("rollback", "restart"):
        actions.add_parser(action, help=f"{action} one endpoint and wait for the end").add_argument("name")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings()
        endpoints = LocalEndpoints(settings.endpoints_dir, settings.endpoint_port)
        if options.action == "stop":
            endpoints.stop()
        elif options.action == "start":
            endpoints.start()
        elif options.action in ("rollback", "restart"):
            endpoint = endpoints.endpoint(options.name)
            getattr(endpoint, options.action)("asked for from the command line")
            endpoint.wait(WAIT_SECONDS)
        statuses = endpoints.statuses()
    except (EndpointError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    supervisor = endpoints.supervisor
    where = (
        f"http://127.0.0.1:{supervisor['port']}, pid {supervisor['pid']}"
        if endpoints.running
        else "not running"
    )
    print(f"supervisor: {where}")
    print(table(statuses) if statuses else "no endpoint")
    return 0 if options.action == "stop" or all(status.phase == "in_service" for status in statuses) else 1


if __name__ == "__main__":
    sys.exit(main())
