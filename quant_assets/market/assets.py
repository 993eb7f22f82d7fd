"""Assets of the layer `market`: fetch, judge, store.

Belongs here: the Dagster face. Does not belong here: the rules (`validation.py`) and the sources
(`quant_resources/sources`).

A row that breaks a rule never enters silently. With `QUANT_BAD_ROWS=fail` (default) the run fails before anything is
written, and the failed check shows the rows; with `quarantine` they go to `market.<table>_quarantine` with the rule
and the reason, the good rows are written, and the check warns.
"""

import datetime as dt
from collections.abc import Callable, Iterator

import dagster as dg
import pyarrow as pa

from quant_assets.market import tables, validation
from quant_assets.partitions import CALENDAR, LAST_SESSION, SESSIONS, SYMBOLS, run_sessions, settings
from quant_assets.presentation import (
    data_version,
    figure_markdown,
    markdown_table,
    show,
    with_recent_sessions,
)
from quant_resources.calendar import NEW_YORK
from quant_resources.iceberg import TableSpec, Warehouse
from quant_resources.io_manager import table_metadata, table_preview
from quant_resources.sources import MarketSource, SourceError

GROUP = "market"
OWNERS = ["team:market-data"]
VENDOR = dg.AssetKey(["vendor", settings().source])

# A vendor that is down for a minute costs a minute, not the night.
VENDOR_RETRIES = dg.RetryPolicy(
    max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)
# A live source is expected to be current by 20:00 New York on weekdays; the sample ended in 2013.
FRESHNESS = (
    dg.FreshnessPolicy.cron(
        deadline_cron="0 20 * * 1-5", lower_bound_delta=dt.timedelta(hours=7), timezone=NEW_YORK
    )
    if LAST_SESSION is None
    else None
)

vendor = dg.AssetSpec(
    VENDOR,
    group_name="vendors",
    description={
        "sample": "The bundled sample: real daily bars of AAPL, FB, GOOG, IBM and MSFT, 2000-03-01 to 2013-03-01 "
        "(bokeh_sampledata), and a **simulated** news feed without alpha.",
        "files": f"Your files under QUANT_FILES_DIR ({settings().files_dir}).",
    }[settings().source],
    kinds={"file"},
    owners=OWNERS,
)


def _fetch(call: Callable[..., pa.Table], *sessions: dt.date) -> pa.Table:
    """Ask the source; what is wrong with the user's data stays wrong, so it is not tried again.

    Raises:
        dg.Failure: the source's own message (file, row, rule).
    """
    try:
        return call(*sessions)
    except SourceError as error:
        raise dg.Failure(f"{error}. Nothing was written.", allow_retries=False) from error


def _check_specs(
    key: list[str], rules: dict[str, str], extra: dict[str, str] | None = None
) -> list[dg.AssetCheckSpec]:
    specs = [
        dg.AssetCheckSpec(name, asset=dg.AssetKey(key), description=f"Every row: {demand}.", blocking=True)
        for name, demand in rules.items()
    ]
    for name, description in (extra or {}).items():
        specs.append(dg.AssetCheckSpec(name, asset=dg.AssetKey(key), description=description, blocking=True))
    return specs


def require_closed(last: dt.date) -> None:
    """Refuse a session whose close has not come: its bar would be a guess.

    Raises:
        dg.Failure: naming the session and its close.
    """
    close = CALENDAR.close(last)
    if close > dt.datetime.now(dt.UTC):
        raise dg.Failure(
            f"session {last} closes at {close:%Y-%m-%d %H:%M} UTC, which lies ahead. Materialize it after the close; "
            "the partition exists from midnight on only so that the night can run.",
            allow_retries=False,
        )


def _settle(
    verdict: validation.Validated,
    spec: TableSpec,
    warehouse: Warehouse,
    first: dt.date,
    last: dt.date,
) -> Iterator[dg.AssetCheckResult]:
    """Yield one check result per rule; fail the step, or set the bad rows aside.

    Raises:
        dg.Failure: with `QUANT_BAD_ROWS=fail` and at least one violation; nothing has been written then.
    """
    quarantine = settings().bad_rows == "quarantine"
    for rule in verdict.checked:
        found = [v for v in verdict.violations if v.rule == rule]
        yield dg.AssetCheckResult(
            check_name=rule,
            passed=not found,
            severity=dg.AssetCheckSeverity.WARN if quarantine else dg.AssetCheckSeverity.ERROR,
            description=f"{len(found)} row(s) break it" if found else None,
            metadata={
                "violations": len(found),
                "rows": markdown_table(
                    [{"origin": v.origin, "reason": v.reason, "row": v.row} for v in found]
                ),
            },
        )
    if verdict.violations and not quarantine:
        shown = "; ".join(f"{v.origin}: rule {v.rule}: {v.reason}" for v in verdict.violations[:5])
        raise dg.Failure(
            f"{len(verdict.violations)} violation(s) in {spec.name} {first}..{last}, nothing was written. {shown}. "
            "Correct the source, or set QUANT_BAD_ROWS=quarantine to set such rows aside.",
            metadata={"violations": markdown_table([v.__dict__ for v in verdict.violations])},
            allow_retries=False,
        )
    aside = tables.quarantine_of(spec)
    if verdict.violations or warehouse.exists(aside):
        rows = {
            (v.origin, v.rule): {
                "session": first,
                "origin": v.origin,
                "rule": v.rule,
                "reason": v.reason,
                "row": v.row,
            }
            for v in verdict.violations
        }
        warehouse.write(
            aside, pa.Table.from_pylist(list(rows.values()), schema=aside.arrow_schema), first, last
        )


def _with(data: pa.Table, spec: TableSpec, **constants: str) -> pa.Table:
    for name, value in constants.items():
        data = data.append_column(name, pa.array([value] * data.num_rows, pa.string()))
    return spec.conform(data.select([c.name for c in spec.columns]))


@dg.asset(
    key=["market", "bars"],
    metadata=table_metadata(tables.BARS),
    group_name=GROUP,
    description="Raw daily bars with dividends and split factors, one row per symbol and session, as traded (never "
    "adjusted; dollars, shares). Known at the session's close.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[vendor],
    kinds={"iceberg", "python"},
    owners=OWNERS,
    code_version="1",
    pool="vendor",
    retry_policy=VENDOR_RETRIES,
    freshness_policy=FRESHNESS,
    check_specs=_check_specs(
        ["market", "bars"],
        validation.BAR_RULES,
        {
            "no_missing_session": "Every listed symbol has a bar on every session (QUANT_MISSING_SESSIONS=warn to allow)."
        },
    ),
)
def bars(
    context: dg.AssetExecutionContext,
    source: dg.ResourceParam[MarketSource],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.AssetCheckResult | dg.Output[pa.Table]]:
    """Fetch, judge and store the bars of the run's sessions."""
    first, last = run_sessions(context)
    require_closed(last)
    rows = _fetch(source.bars, first, last)
    context.log.info("source %s: %d bars for %s..%s", source.name, rows.num_rows, first, last)
    history = warehouse.read(
        tables.BARS, CALENDAR.shift(first, -validation.HISTORY_SESSIONS - 5), CALENDAR.shift(first, -1)
    )
    verdict = validation.validate_bars(rows, CALENDAR, history)
    yield from _settle(verdict, tables.BARS, warehouse, first, last)
    missing = validation.missing_sessions(verdict.rows, CALENDAR, first, last, _still_listed(history))
    tolerated = settings().missing_sessions == "warn"
    yield dg.AssetCheckResult(
        check_name="no_missing_session",
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN if tolerated else dg.AssetCheckSeverity.ERROR,
        description=f"{len(missing)} bar(s) are missing" if missing else None,
        metadata={"missing": markdown_table([{"symbol": s, "session": str(d)} for s, d in missing])},
    )
    if missing and not tolerated:
        raise dg.Failure(
            f"{len(missing)} bar(s) are missing in {first}..{last}, nothing was written: "
            + ", ".join(f"{s} {d}" for s, d in missing[:10])
            + ". Complete the source, or set QUANT_MISSING_SESSIONS=warn to accept the gaps.",
            allow_retries=False,
        )
    if not verdict.rows.num_rows:
        raise dg.Failure(
            f"source {source.name} has no bar in {first}..{last}. Check QUANT_SYMBOLS and the range of your data.",
            allow_retries=False,
        )
    jumps = validation.price_jumps(verdict.rows, history)
    data = verdict.rows.append_column("available_at", _closes(verdict.rows["session"]))
    data = _with(data, tables.BARS, source=source.name)

    from quant_assets.market import plots

    recent = with_recent_sessions(warehouse, tables.BARS, data, first, last)
    months: dict[str, int] = {}
    for session in CALENDAR.sessions(min(recent["session"].to_pylist()), last):
        months[f"{session:%Y-%m}"] = months.get(f"{session:%Y-%m}", 0) + 1
    show(
        context,
        {
            "symbols": ", ".join(sorted(set(data["symbol"].to_pylist()))[:50]),
            "moves above 40 %": markdown_table(jumps),
            "prices": figure_markdown(plots.price_figure(recent), "Raw and adjusted close"),
            "coverage": figure_markdown(plots.coverage_figure(recent, months), "Sessions with a bar"),
            "preview": table_preview(data),
        },
    )
    yield dg.Output(data, data_version=data_version(data, (first, last)))


def _still_listed(history: pa.Table) -> pa.Table:
    """Bars of the newest stored session: a symbol that stopped trading before is not expected tonight."""
    import pyarrow.compute as pc

    if not history.num_rows:
        return history
    return history.filter(pc.equal(history["session"], pc.max(history["session"])))


def _closes(sessions: pa.ChunkedArray) -> pa.Array:
    closes = {day: CALENDAR.close(day) for day in set(sessions.to_pylist())}
    return pa.array([closes[day] for day in sessions.to_pylist()], pa.timestamp("us", "UTC"))


@dg.asset(
    key=["market", "news"],
    metadata=table_metadata(tables.NEWS),
    group_name=GROUP,
    description="Articles, one row per article and ticker with the ticker's own sentiment (-1..1) and relevance "
    "(0..1). Published after a session's close = the next session. Known when published.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[vendor],
    kinds={"iceberg", "python"},
    owners=OWNERS,
    code_version="1",
    pool="vendor",
    retry_policy=VENDOR_RETRIES,
    freshness_policy=FRESHNESS,
    check_specs=_check_specs(["market", "news"], validation.NEWS_RULES),
)
def news(
    context: dg.AssetExecutionContext,
    source: dg.ResourceParam[MarketSource],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.AssetCheckResult | dg.Output[pa.Table]]:
    """Fetch, judge and store the articles of the run's sessions."""
    first, last = run_sessions(context)
    require_closed(last)
    rows = _fetch(source.news, first, last)
    context.log.info("source %s: %d article rows for %s..%s", source.name, rows.num_rows, first, last)
    verdict = validation.validate_news(rows, CALENDAR)
    yield from _settle(verdict, tables.NEWS, warehouse, first, last)
    origin = "simulated" if source.news_is_simulated else source.name
    data = _with(verdict.rows, tables.NEWS, source=origin)

    from quant_assets.market import plots

    metadata: dict[str, object] = {
        "source": origin,
        "articles": len(set(data["article_id"].to_pylist())),
        "preview": table_preview(data),
    }
    recent = with_recent_sessions(warehouse, tables.NEWS, data, first, last)
    if recent.num_rows:
        metadata["news"] = figure_markdown(
            plots.news_figure(recent), f"Articles and scores (source: {origin})"
        )
    show(context, metadata)
    yield dg.Output(data, data_version=data_version(data, (first, last)))


@dg.asset(
    key=["market", "minute_bars"],
    metadata=table_metadata(tables.MINUTE_BARS),
    group_name=GROUP,
    description="Raw one-minute bars with closing quotes (dollars, shares); `ts` is the minute's start, known at its "
    "end. Only sources that have them.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[vendor],
    kinds={"iceberg", "python"},
    owners=OWNERS,
    code_version="1",
    pool="vendor",
    retry_policy=VENDOR_RETRIES,
    check_specs=_check_specs(["market", "minute_bars"], validation.MINUTE_BAR_RULES),
)
def minute_bars(
    context: dg.AssetExecutionContext,
    source: dg.ResourceParam[MarketSource],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.AssetCheckResult | dg.Output[pa.Table]]:
    """Fetch, judge and store the minute bars of the run's sessions."""
    first, last = run_sessions(context)
    require_closed(last)
    rows = _fetch(source.minute_bars, first, last)
    verdict = validation.validate_minute_bars(rows, CALENDAR)
    yield from _settle(verdict, tables.MINUTE_BARS, warehouse, first, last)
    data = _with(verdict.rows, tables.MINUTE_BARS, source=source.name)

    from quant_assets.market import plots

    metadata: dict[str, object] = {"minutes": data.num_rows, "preview": table_preview(data)}
    if data.num_rows:
        metadata["day"] = figure_markdown(plots.spread_figure(data), "Spread and volume over the day")
    show(context, metadata)
    yield dg.Output(data, data_version=data_version(data, (first, last)))


@dg.asset(
    key=["market", "securities"],
    metadata=table_metadata(tables.SECURITIES),
    group_name=GROUP,
    description="The security master: name, sector, industry and listed competitors per symbol, as known now.",
    deps=[vendor],
    kinds={"iceberg", "python"},
    owners=OWNERS,
    # Commands over a range of sessions want a policy of every selected asset.
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    pool="vendor",
    retry_policy=VENDOR_RETRIES,
)
def securities(
    context: dg.AssetExecutionContext, source: dg.ResourceParam[MarketSource]
) -> dg.Output[pa.Table]:
    """Fetch and store the security master; its symbols become the partitions of what is made symbol by symbol."""
    data = _with(_fetch(source.securities), tables.SECURITIES, source=source.name)
    assert SYMBOLS.name is not None
    context.instance.add_dynamic_partitions(SYMBOLS.name, sorted(data["symbol"].unique().to_pylist()))
    return dg.Output(
        data,
        data_version=data_version(data),
        metadata={"symbols": data.num_rows, "preview": table_preview(data)},
    )
