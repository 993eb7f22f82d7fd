"""Assets of the layer `market`: fetch, judge, store.

Belongs here: the Dagster face. Does not belong here: the rules (`validation.py`) and the sources
(`quant_resources/sources`).

A source that corrects itself is asked for a few sessions before the wanted ones as well: what differs there is written over what is
stored, in a commit of its own, and reported as an update of those partitions. Where a source gives a part (a day's requests are used up), all
of some symbols is stored, the others keep what they have, and `market.coverage` says when they are worth asking again.

A row that breaks a rule never enters silently. With `QUANT_BAD_ROWS=fail` (default) the run fails before anything is
written, and the failed check shows the rows; with `quarantine` they go to `market.<table>_quarantine` with the rule
and the reason, the good rows are written, and the check warns.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence

import dagster as dg
import pyarrow as pa

from quant_assets.market import arrivals, tables, validation
from quant_assets.partitions import (
    CALENDAR,
    FIRST_SESSION,
    LAST_SESSION,
    SESSIONS,
    SYMBOLS,
    run_sessions,
    settings,
)
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
from quant_resources.sources import (
    MarketSource,
    SourceError,
    SourceIncomplete,
    SourceUnavailable,
    Waiting,
)

GROUP = "market"
CAME_CHECK = "every_symbol_came"
DATA_VERSION_TAG = "dagster/data_version"
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
        "alpha_vantage": "Alpha Vantage with your key: daily bars, news with sentiment by ticker, company overviews; minute bars with a "
        "premium key. Every answer is kept under QUANT_HOME/archive.",
        "alpaca": "Alpaca with your key: daily and minute bars, corporate actions, quotes, news that are scored here "
        f"({settings().news_scorer}). Every answer is kept under QUANT_HOME/archive.",
    }[settings().source],
    kinds={"file"} if settings().source in ("sample", "files") else {"api"},
    owners=OWNERS,
)


def _fetch(call: Callable[..., pa.Table], *sessions: dt.date) -> tuple[pa.Table, list[Waiting]]:
    """Ask the source; what is wrong with the user's data or key stays wrong, so it is not tried again.

    Returns:
        What came, and the symbols that have to wait.

    Raises:
        dg.Failure: the source's own message (file, row, rule; request and answer).
    """
    try:
        return call(*sessions), []
    except SourceIncomplete as part:
        return part.rows, part.waiting
    except SourceUnavailable as error:
        raise dg.Failure(f"{error}. Nothing was written.") from error
    except SourceError as error:
        raise dg.Failure(f"{error}. Nothing was written.", allow_retries=False) from error


def _came_spec(key: list[str]) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        CAME_CHECK,
        asset=dg.AssetKey(key),
        description="No symbol has to wait for the vendor. A warning: the others are stored, and what waits is asked for again.",
    )


def _check_specs(
    key: list[str], rules: dict[str, str], extra: dict[str, str] | None = None
) -> list[dg.AssetCheckSpec]:
    specs = [
        dg.AssetCheckSpec(name, asset=dg.AssetKey(key), description=f"Every row: {demand}.", blocking=True)
        for name, demand in rules.items()
    ]
    specs.append(_came_spec(key))
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
        data = data.append_column(name, pa.repeat(pa.scalar(value, pa.string()), data.num_rows))
    return spec.conform(data.select([c.name for c in spec.columns]))


# -- what came, what waits, what was corrected -------------------------------------------------------------------------


def _asked_since(source: MarketSource, first: dt.date) -> dt.date:
    """First session that the source is asked for: with those that it may have corrected."""
    earlier = CALENDAR.sessions(FIRST_SESSION, first)
    return earlier[-min(source.overlap_sessions + 1, len(earlier))]


def _with_waiting(
    warehouse: Warehouse,
    spec: TableSpec,
    came: pa.Table,
    waiting: Sequence[Waiting],
    first: dt.date,
    last: dt.date,
) -> pa.Table:
    """The run's slice: what came, and of the symbols that have to wait what is stored already."""
    came = _between(came, first, last)
    if not waiting:
        return came
    return spec.conform(arrivals.keep_waiting(came, warehouse.read(spec, first, last), _symbols(waiting)))


def _require_some(waiting: Sequence[Waiting]) -> None:
    """Nothing came and nothing is stored: there is nothing to go on with.

    Raises:
        dg.Failure: with the vendor's reason, and when it is asked again.
    """
    if waiting:
        until = min(item.retry_at for item in waiting)
        raise dg.Failure(
            f"nothing came, {len(waiting)} symbol(s) have to wait until {until:%Y-%m-%d %H:%M} UTC: {waiting[0].reason}. "
            "Nothing was written; waiting_symbols_sensor asks again then.",
            allow_retries=False,
        )


def _between(rows: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    import pyarrow.compute as pc

    return rows.filter(
        pc.and_(
            pc.greater_equal(rows["session"], pa.scalar(first)),
            pc.less_equal(rows["session"], pa.scalar(last)),
        )
    )


def _until(rows: pa.Table, last: dt.date) -> pa.Table:
    import pyarrow.compute as pc

    return rows.filter(pc.less_equal(rows["session"], pa.scalar(last)))


def _without(rows: pa.Table, symbols: set[str]) -> pa.Table:
    import pyarrow.compute as pc

    return rows.filter(pc.invert(pc.is_in(rows["symbol"], pa.array(sorted(symbols), pa.string()))))


def _symbols(waiting: Sequence[Waiting]) -> set[str]:
    return {item.symbol for item in waiting}


def _correct(
    context: dg.AssetExecutionContext,
    warehouse: Warehouse,
    spec: TableSpec,
    came: pa.Table,
    stored: pa.Table,
    since: dt.date,
    first: dt.date,
) -> arrivals.Corrections | None:
    """Write what the source has corrected in the sessions before the run's, and report their partitions as updated.

    The report is no event of this run: automation passes over runs that compute features themselves, and those compute
    the features of their own sessions alone.
    """
    if since >= first:
        return None
    earlier = CALENDAR.shift(first, -1)
    found = arrivals.corrections(_between(came, since, earlier), _between(stored, since, earlier), spec)
    if not found.sessions:
        return found
    context.log.warning(
        "%s: the source corrected %d value(s) of %s",
        spec.name,
        len(found.changes),
        ", ".join(map(str, found.sessions)),
    )
    for session in found.sessions:
        rows = _between(found.rows, session, session)
        version = data_version(rows, (session, session))
        context.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key=dg.AssetKey(spec.name.split(".")),
                partition=session.isoformat(),
                description=f"corrected by the source; found by run {context.run.run_id}",
                metadata={
                    "corrections": markdown_table([c for c in found.changes if c["session"] == str(session)])
                },
                tags={DATA_VERSION_TAG: version.value} if version else None,
            )
        )
    # Sessions between two corrected ones are written again as they are: one commit for all.
    low, high = found.sessions[0], found.sessions[-1]
    import pyarrow.compute as pc

    kept = _between(stored, low, high)
    kept = kept.filter(pc.invert(pc.is_in(kept["session"], pa.array(found.sessions, pa.date32()))))
    warehouse.write(
        spec,
        pa.concat_tables([found.rows, spec.conform(kept)]),
        low,
        high,
        {
            "quant.run_id": context.run.run_id,
            "quant.partition": f"{low}..{high}",
            "quant.corrections": str(len(found.changes)),
        },
    )
    return found


def _cover(
    warehouse: Warehouse,
    source: MarketSource,
    dataset: str,
    data: pa.Table,
    waiting: Sequence[Waiting],
    missing: Sequence[tuple[str, dt.date]],
    first: dt.date,
    last: dt.date,
) -> list[dict[str, object]]:
    """Say what became of each symbol, in `market.coverage` and for the asset's page. Sources on this machine need none of it."""
    if not source.is_live:
        return []
    rows = arrivals.coverage(
        dataset,
        data,
        settings().symbols or (),
        waiting,
        missing,
        first,
        last,
        CALENDAR.close(last),
        dt.datetime.now(dt.UTC),
    )
    spec = tables.COVERAGE
    asked = _asked_since(source, first) if dataset != "minute_bars" else first
    before = warehouse.read(spec, only=dataset).to_pylist()
    kept = arrivals.still_waiting(before, rows, asked, last)
    warehouse.write(spec, pa.Table.from_pylist([*rows, *kept], schema=spec.arrow_schema), only=dataset)
    return rows


def _every_symbol_came(waiting: Sequence[Waiting]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=CAME_CHECK,
        passed=not waiting,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(waiting)} symbol(s) have to wait: {waiting[0].reason}" if waiting else None,
        metadata={
            "waiting": markdown_table(
                [
                    {"symbol": w.symbol, "again at": f"{w.retry_at:%Y-%m-%d %H:%M} UTC", "why": w.reason}
                    for w in waiting
                ]
            )
        },
    )


def _came_metadata(
    status: Sequence[dict[str, object]], fixed: arrivals.Corrections | None
) -> dict[str, object]:
    """What the asset's page says of symbols and corrections; those that need a look come first."""
    shown: dict[str, object] = {}
    if status:
        order = (arrivals.WAITING, arrivals.LATE, arrivals.MISSING, arrivals.COMPLETE)
        names = ("symbol", "status", "rows", "newest_session", "note", "retry_at")
        ranked = sorted(status, key=lambda row: (order.index(str(row["status"])), str(row["symbol"])))
        shown["symbols by status"] = markdown_table(
            [{name: "" if row[name] is None else row[name] for name in names} for row in ranked], most=100
        )
        for name in order:
            if count := sum(row["status"] == name for row in status):
                shown[f"symbols {name}"] = count
    if fixed is not None and fixed.sessions:
        shown["corrections"] = markdown_table(fixed.changes)
    return shown


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
    since = _asked_since(source, first)
    rows, waiting = _fetch(source.bars, since, last)
    context.log.info("source %s: %d bars for %s..%s", source.name, rows.num_rows, since, last)
    earlier = CALENDAR.shift(first, -1)
    stored = warehouse.read(tables.BARS, CALENDAR.shift(since, -validation.HISTORY_SESSIONS - 5), earlier)
    history = _until(stored, CALENDAR.shift(since, -1))
    verdict = validation.validate_bars(rows, CALENDAR, history)
    yield from _settle(verdict, tables.BARS, warehouse, first, last)
    came = verdict.rows.append_column("available_at", _closes(verdict.rows["session"]))
    came = _with(came, tables.BARS, source=source.name)
    fixed = _correct(context, warehouse, tables.BARS, came, stored, since, first)
    data = _with_waiting(warehouse, tables.BARS, came, waiting, first, last)
    missing = [
        pair
        for pair in validation.missing_sessions(data, CALENDAR, first, last, _still_listed(stored))
        if pair[0] not in _symbols(waiting)
    ]
    status = _cover(warehouse, source, "bars", data, waiting, missing, first, last)
    tolerated = settings().missing_sessions == "warn"
    yield dg.AssetCheckResult(
        check_name="no_missing_session",
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN if tolerated else dg.AssetCheckSeverity.ERROR,
        description=f"{len(missing)} bar(s) are missing" if missing else None,
        metadata={"missing": markdown_table([{"symbol": s, "session": str(d)} for s, d in missing])},
    )
    yield _every_symbol_came(waiting)
    if missing and not tolerated:
        late = any(row["status"] == arrivals.LATE for row in status)
        raise dg.Failure(
            f"{len(missing)} bar(s) are missing in {first}..{last}, nothing was written: "
            + ", ".join(f"{s} {d}" for s, d in missing[:10])
            + (
                ". The source may not have published them yet: waiting_symbols_sensor tries again every half hour for twelve hours "
                "after the close (QUANT_NIGHT_DELAY_MINUTES makes the night start later)."
                if late
                else ". Complete the source, or set QUANT_MISSING_SESSIONS=warn to accept the gaps."
            ),
            allow_retries=False,
        )
    if not data.num_rows:
        _require_some(waiting)
        raise dg.Failure(
            f"source {source.name} has no bar in {first}..{last}. Check QUANT_SYMBOLS and the range of your data.",
            allow_retries=False,
        )
    jumps = validation.price_jumps(data, stored)

    from quant_assets.market import plots

    recent = with_recent_sessions(warehouse, tables.BARS, data, first, last)
    months: dict[str, int] = {}
    for session in CALENDAR.sessions(min(recent["session"].to_pylist()), last):
        months[f"{session:%Y-%m}"] = months.get(f"{session:%Y-%m}", 0) + 1
    show(
        context,
        {
            "symbols": ", ".join(sorted(data["symbol"].unique().to_pylist())[:50]),
            **_came_metadata(status, fixed),
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


def _closes(sessions: pa.ChunkedArray) -> pa.ChunkedArray:
    encoded = sessions.combine_chunks().dictionary_encode()
    closes = pa.array(
        [CALENDAR.close(day) for day in encoded.dictionary.to_pylist()], pa.timestamp("us", "UTC")
    )
    return pa.chunked_array([closes.take(encoded.indices)])


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
    since = _asked_since(source, first)
    rows, waiting = _fetch(source.news, since, last)
    context.log.info("source %s: %d article rows for %s..%s", source.name, rows.num_rows, since, last)
    verdict = validation.validate_news(rows, CALENDAR)
    yield from _settle(verdict, tables.NEWS, warehouse, first, last)
    origin = "simulated" if source.news_is_simulated else source.name
    came = _with(verdict.rows, tables.NEWS, source=origin)
    fixed = None
    if since < first:
        stored = warehouse.read(tables.NEWS, since, CALENDAR.shift(first, -1))
        fixed = _correct(context, warehouse, tables.NEWS, came, stored, since, first)
    data = _with_waiting(warehouse, tables.NEWS, came, waiting, first, last)
    status = _cover(warehouse, source, "news", data, waiting, [], first, last)
    yield _every_symbol_came(waiting)

    from quant_assets.market import plots

    metadata: dict[str, object] = {
        "source": origin,
        "articles": len(data["article_id"].unique()),
        **_came_metadata(status, fixed),
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
    rows, waiting = _fetch(source.minute_bars, first, last)
    verdict = validation.validate_minute_bars(rows, CALENDAR)
    yield from _settle(verdict, tables.MINUTE_BARS, warehouse, first, last)
    came = _with(verdict.rows, tables.MINUTE_BARS, source=source.name)
    data = _with_waiting(warehouse, tables.MINUTE_BARS, came, waiting, first, last)
    status = _cover(warehouse, source, "minute_bars", data, waiting, [], first, last)
    yield _every_symbol_came(waiting)

    from quant_assets.market import plots

    metadata: dict[str, object] = {
        "minutes": data.num_rows,
        **_came_metadata(status, None),
        "preview": table_preview(data),
    }
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
    check_specs=[_came_spec(["market", "securities"])],
)
def securities(
    context: dg.AssetExecutionContext,
    source: dg.ResourceParam[MarketSource],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.AssetCheckResult | dg.Output[pa.Table]]:
    """Fetch and store the security master; its traded symbols become the partitions of what is made symbol by symbol."""
    rows, waiting = _fetch(source.securities)
    data = _with(rows, tables.SECURITIES, source=source.name)
    if waiting:
        known = warehouse.read(tables.SECURITIES)
        again = _without(data, set(known["symbol"].to_pylist()) & _symbols(waiting))
        data = tables.SECURITIES.conform(arrivals.keep_waiting(again, known, _symbols(waiting)))
    assert SYMBOLS.name is not None
    news_only = set(settings().news_symbols or ()) - set(settings().symbols or ())
    traded = sorted(set(data["symbol"].to_pylist()) - news_only)
    context.instance.add_dynamic_partitions(SYMBOLS.name, traded)
    yield _every_symbol_came(waiting)
    yield dg.Output(
        data,
        data_version=data_version(data),
        metadata={
            "symbols": data.num_rows,
            "waiting": markdown_table([{"symbol": w.symbol, "reason": w.reason} for w in waiting]),
            "preview": table_preview(data),
        },
    )
