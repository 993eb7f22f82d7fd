"""Run a job from a terminal: `python -m quant_assets.launch chain_job --first 2022-03-03 --last 2024-12-31`.

Belongs here: preparing the Dagster instance in `QUANT_HOME`, launching a job in this process, readable progress. Does
not belong here: any work, and what the demo shows (`demo.py`).
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from quant_resources.settings import Settings, SettingsError, creating, ensure_home, load_settings

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
PROGRESS_SECONDS = 5.0
RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of `QUANT_HOME`, the same that `make dev` shows.

    Raises:
        SettingsError: `QUANT_HOME` cannot be written.
    """
    dagster_home = ensure_home(settings) / "dagster"
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    with creating(settings.home):
        dagster_home.mkdir(exist_ok=True)
        shutil.copy(Path(__file__).resolve().parent.parent / "dagster.yaml", dagster_home / "dagster.yaml")
        instance = dg.DagsterInstance.get()
    with instance:
        yield instance


def run_job(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    job_name: str,
    tags: dict[str, str],
    partition_key: str | None = None,
    ops: Mapping[str, Mapping[str, object]] | None = None,
    run_config: Mapping[str, object] | None = None,
    only: Sequence[str] = (),
) -> bool:
    """Run a job in this process and print each step as it ends.

    Args:
        defs, instance: where.
        job_name: what.
        tags, partition_key: of the run.
        ops: config of assets and ops by op name.
        run_config: the whole config as Dagster takes it, beside `ops`.
        only: of the job's assets, `layer/name`; all when empty.
    """
    run_id = str(uuid.uuid4())
    started: dict[str, float] = {}
    told: dict[str, float] = {}
    checks: dict[str, list[bool]] = {}
    newest = partition_key or tags.get(RANGE_TAGS[1])

    def progress(entry: dg.EventLogEntry, _cursor: object = None) -> None:
        event = entry.dagster_event
        if event is None:
            # What an asset says of its progress, not more often than somebody would want to read it.
            now = time.monotonic()
            if (
                entry.step_key
                and now - told.get(entry.step_key, started.get(entry.step_key, now)) >= PROGRESS_SECONDS
            ):
                told[entry.step_key] = now
                print(f"    {entry.user_message}", flush=True)
            return
        if event.step_key is None:
            return
        kind = event.event_type
        if kind == dg.DagsterEventType.STEP_START:
            started[event.step_key] = time.monotonic()
        elif kind == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            checks.setdefault(event.step_key, []).append(evaluation.passed)
            if not evaluation.passed:
                level = "warning" if evaluation.severity == dg.AssetCheckSeverity.WARN else "FAILED"
                asset = evaluation.asset_key.to_user_string()
                print(
                    f"    {level}: {asset} {evaluation.check_name}: {evaluation.description or ''}",
                    flush=True,
                )
        elif kind == dg.DagsterEventType.ASSET_MATERIALIZATION:
            # A range of sessions is one event per partition; the newest one speaks for all.
            if event.partition != newest and event.partition is not None:
                return
            metadata = event.materialization.metadata
            rows = metadata.get("dagster/partition_row_count")
            if rows is not None:
                detail = f"{rows.value:>9,} rows"
            else:
                version, total = metadata.get("version"), metadata.get("dagster/row_count")
                detail = f"{total.value:>9,} rows" if total else ""
                if version:
                    detail = f"version {version.value} {metadata['alias'].value}"
            elapsed = time.monotonic() - started[event.step_key]
            passed = sum(checks.get(event.step_key, []))
            note = f"  {passed} checks passed" if passed else ""
            print(
                f"  {event.asset_key.to_user_string():34s} {detail:>20s} {elapsed:6.1f} s{note}", flush=True
            )
        elif kind == dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            said = data.user_failure_data.description if data.user_failure_data else None
            # Dagster wraps what the asset raised; the innermost error is the one to read.
            error = data.error
            while error and error.cause:
                error = error.cause
            print(
                f"  {event.step_key} FAILED: {said or (error.message.strip() if error else '')}", flush=True
            )

    instance.add_event_listener(run_id, progress)
    job = defs.resolve_job_def(job_name)
    if only:
        job = job.get_subset(asset_selection={dg.AssetKey(key.split("/")) for key in only})
    config: dict[str, object] = {**QUIET, **(run_config or {})}
    if ops:
        given = config.get("ops") or {}
        config["ops"] = {**given, **{name: {"config": values} for name, values in ops.items()}}  # type: ignore[dict-item]
    result = job.execute_in_process(
        run_config=config,
        instance=instance,
        tags=tags,
        partition_key=partition_key,
        run_id=run_id,
        raise_on_error=False,
    )
    done = [e for e in result.all_events if e.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION]
    failed = [e for e in done if not e.asset_check_evaluation_data.passed]
    print(
        f"  run {run_id[:8]}: {'success' if result.success else 'FAILED'}, {len(done)} checks, {len(failed)} not passed",
        flush=True,
    )
    return result.success


def main(arguments: list[str] | None = None) -> int:
    """Run one job over a range of sessions."""
    parser = argparse.ArgumentParser(
        prog="python -m quant_assets.launch", description="Run a job with progress."
    )
    parser.add_argument("job", nargs="?", default="chain_job", help="job to run (default: chain_job)")
    parser.add_argument(
        "--first", type=dt.date.fromisoformat, help="first session (default: the source's first)"
    )
    parser.add_argument(
        "--last", type=dt.date.fromisoformat, help="last session (default: the newest closed one)"
    )
    parser.add_argument(
        "--symbols", help="comma-separated symbols of a job that runs per symbol (default: all)"
    )
    parser.add_argument("--config", type=Path, help="run config as the UI's launchpad takes it, YAML or JSON")
    parser.add_argument(
        "--only", help="comma-separated assets of the job (default: all), such as models/mlp_technical"
    )
    options = parser.parse_args(arguments)
    run_config: dict[str, object] = {}
    if options.config:
        import yaml

        try:
            run_config = yaml.safe_load(options.config.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            print(f"--config {options.config}: {error}", file=sys.stderr)
            return 2
    only = [key.strip() for key in options.only.split(",")] if options.only else []
    try:
        settings = load_settings()
        ensure_home(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2

    from quant_assets.definitions import defs
    from quant_assets.partitions import CALENDAR, FIRST_SESSION, LAST_SESSION

    now = dt.datetime.now(dt.UTC)
    sessions = CALENDAR.sessions(
        max(options.first or FIRST_SESSION, FIRST_SESSION),
        min(options.last or now.date(), LAST_SESSION or now.date()),
    )
    sessions = [session for session in sessions if CALENDAR.close(session) <= now]
    if not sessions:
        print(
            f"no closed session between --first {options.first} and --last {options.last}; "
            f"the source has {FIRST_SESSION} to {LAST_SESSION or 'today'}",
            file=sys.stderr,
        )
        return 2
    job = defs.resolve_job_def(options.job)
    if unknown := sorted(set(only) - {key.to_user_string() for key in job.asset_layer.executable_asset_keys}):
        print(f"--only: {options.job} has no {', '.join(unknown)}", file=sys.stderr)
        return 2
    with open_instance(settings) as instance:
        if isinstance(job.partitions_def, dg.DynamicPartitionsDefinition):
            return _run_per_symbol(defs, instance, options.job, options.symbols, run_config, only)
        tags = {}
        if job.partitions_def is not None:
            print(f"{options.job}, {sessions[0]} to {sessions[-1]} ({len(sessions)} sessions, one run)")
            tags = dict(zip(RANGE_TAGS, (sessions[0].isoformat(), sessions[-1].isoformat()), strict=True))
        return 0 if run_job(defs, instance, options.job, tags, run_config=run_config, only=only) else 1


def _run_per_symbol(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    job_name: str,
    wanted: str | None,
    run_config: Mapping[str, object],
    only: Sequence[str],
) -> int:
    """One run per symbol; a symbol that fails does not keep the others from running."""
    from quant_assets.partitions import SYMBOLS

    assert SYMBOLS.name is not None
    known = sorted(instance.get_dynamic_partitions(SYMBOLS.name))
    symbols = [part.strip().upper() for part in wanted.split(",")] if wanted else known
    if not known:
        print("no symbols yet: run chain_job first, which reads the security master", file=sys.stderr)
        return 2
    if unknown := sorted(set(symbols) - set(known)):
        print(f"--symbols: unknown are {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for symbol in symbols:
        print(f"{job_name}, {symbol}", flush=True)
        if not run_job(defs, instance, job_name, {}, partition_key=symbol, run_config=run_config, only=only):
            failed.append(symbol)
    if failed:
        print(
            f"failed: {', '.join(failed)} ({len(symbols) - len(failed)} of {len(symbols)} done)",
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
