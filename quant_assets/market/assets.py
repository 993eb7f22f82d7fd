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
from collections.abc import Iterator

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from quant_assets.market import arrivals, tables, validation
from quant_assets.market.live import CAME_CHECK, Arrival, between, still_listed
from quant_assets.partitions import (
    CALENDAR,
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
from quant_resources.sources import MarketSource

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
        "alpha_vantage": "Alpha Vantage with your key: daily bars, news with sentiment by ticker, company overviews; minute bars with a "
        "premium key. Every answer is kept under QUANT_HOME/archive.",
        "alpaca": "Alpaca with your key: daily and minute bars, corporate actions, quotes, news that are scored here "
        f"({settings().news_scorer}). Every answer is kept under QUANT_HOME/archive.",
    }[settings().source],
    kinds={"file"} if settings().source in ("sample", "files") else {"api"},
    owners=OWNERS,
)


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
    arrival = Arrival(context, source, warehouse, "bars", tables.BARS, first, last)
    rows = arrival.fetch(source.bars, arrival.since, last)
    context.log.info("source %s: %d bars for %s..%s", source.name, rows.num_rows, arrival.since, last)
    stored = arrival.before()
    history = between(stored, CALENDAR.first, CALENDAR.shift(arrival.since, -1))
    verdict = validation.validate_bars(rows, CALENDAR, history)
    yield from _settle(verdict, tables.BARS, warehouse, first, last)
    came = verdict.rows.append_column("available_at", _closes(verdict.rows["session"]))
    came = _with(came, tables.BARS, source=source.name)
    arrival.correct(came, stored)
    data = arrival.slice(came)
    missing = [
        pair
        for pair in validation.missing_sessions(data, CALENDAR, first, last, still_listed(stored))
        if pair[0] not in arrival.waiting_symbols
    ]
    known = set(stored["symbol"].unique().to_pylist())
    status = arrival.judge(data, missing, new=[s for s in arrival.symbols if known and s not in known])
    tolerated = settings().missing_sessions == "warn"
    yield dg.AssetCheckResult(
        check_name="no_missing_session",
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN if tolerated else dg.AssetCheckSeverity.ERROR,
        description=f"{len(missing)} bar(s) are missing" if missing else None,
        metadata={"missing": markdown_table([{"symbol": s, "session": str(d)} for s, d in missing])},
    )
    yield arrival.came_check()
    if missing and not tolerated:
        arrival.failed()
        late = any(row["status"] == arrivals.LATE for row in status)
        raise dg.Failure(
            f"{len(missing)} bar(s) are missing in {first}..{last}, nothing was written: "
            + ", ".join(f"{s} {d}" for s, d in missing[:10])
            + (
                ". The source may not have published them yet: waiting_symbols_sensor tries again until twelve hours after the close "
                "(QUANT_NIGHT_DELAY_MINUTES makes the night start later). A symbol that has stopped trading has to leave QUANT_SYMBOLS."
                if late
                else ". Complete the source, take symbols that stopped trading out of QUANT_SYMBOLS, or set QUANT_MISSING_SESSIONS=warn "
                "to accept the gaps."
            ),
            allow_retries=False,
        )
    if not data.num_rows:
        arrival.failed()
        arrival.require_some()
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
            **arrival.metadata(),
            "moves above 40 %": markdown_table(jumps),
            "prices": figure_markdown(plots.price_figure(recent), "Raw and adjusted close"),
            "coverage": figure_markdown(plots.coverage_figure(recent, months), "Sessions with a bar"),
            "preview": table_preview(data),
        },
    )
    yield dg.Output(data, data_version=data_version(data, (first, last)))
    arrival.stored()


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
    arrival = Arrival(context, source, warehouse, "news", tables.NEWS, first, last)
    rows = arrival.fetch(source.news, arrival.since, last)
    context.log.info("source %s: %d article rows for %s..%s", source.name, rows.num_rows, arrival.since, last)
    verdict = validation.validate_news(rows, CALENDAR)
    yield from _settle(verdict, tables.NEWS, warehouse, first, last)
    origin = "simulated" if source.news_is_simulated else source.name
    came = _with(verdict.rows, tables.NEWS, source=origin)
    if source.is_live:
        arrival.correct(came, arrival.before())
    data = arrival.slice(came)
    arrival.judge(data, [])
    yield arrival.came_check()

    from quant_assets.market import plots

    metadata: dict[str, object] = {
        "source": origin,
        "articles": len(data["article_id"].unique()),
        **arrival.metadata(),
        "preview": table_preview(data),
    }
    recent = with_recent_sessions(warehouse, tables.NEWS, data, first, last)
    if recent.num_rows:
        metadata["news"] = figure_markdown(
            plots.news_figure(recent), f"Articles and scores (source: {origin})"
        )
    show(context, metadata)
    yield dg.Output(data, data_version=data_version(data, (first, last)))
    arrival.stored()


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
    arrival = Arrival(
        context, source, warehouse, "minute_bars", tables.MINUTE_BARS, first, last, overlap=False
    )
    rows = arrival.fetch(source.minute_bars, first, last)
    verdict = validation.validate_minute_bars(rows, CALENDAR)
    yield from _settle(verdict, tables.MINUTE_BARS, warehouse, first, last)
    data = arrival.slice(_with(verdict.rows, tables.MINUTE_BARS, source=source.name))
    have = set(between(data, last, last)["symbol"].to_pylist())
    late = [(symbol, last) for symbol in arrival.symbols if symbol not in have | arrival.waiting_symbols]
    arrival.judge(data, late)
    yield arrival.came_check()

    from quant_assets.market import plots

    metadata: dict[str, object] = {
        "minutes": data.num_rows,
        **arrival.metadata(),
        "preview": table_preview(data),
    }
    if data.num_rows:
        metadata["day"] = figure_markdown(plots.spread_figure(data), "Spread and volume over the day")
    show(context, metadata)
    yield dg.Output(data, data_version=data_version(data, (first, last)))
    arrival.stored()


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
    today = CALENDAR.session_of(dt.datetime.now(dt.UTC)) if LAST_SESSION is None else LAST_SESSION
    arrival = Arrival(
        context, source, warehouse, "securities", tables.SECURITIES, today, today, overlap=False
    )
    data = _with(arrival.fetch(source.securities), tables.SECURITIES, source=source.name)
    if arrival.waiting:
        known = warehouse.read(tables.SECURITIES)
        held = set(known["symbol"].to_pylist()) & arrival.waiting_symbols
        again = data.filter(pc.invert(pc.is_in(data["symbol"], pa.array(sorted(held), pa.string()))))
        data = tables.SECURITIES.conform(arrivals.keep_waiting(again, known, arrival.waiting_symbols))
    dated = data.append_column("session", pa.repeat(pa.scalar(today), data.num_rows))
    arrival.judge(dated, [])
    assert SYMBOLS.name is not None
    news_only = set(settings().news_symbols or ()) - set(settings().symbols or ())
    traded = sorted(set(data["symbol"].to_pylist()) - news_only)
    context.instance.add_dynamic_partitions(SYMBOLS.name, traded)
    yield arrival.came_check()
    yield dg.Output(
        data,
        data_version=data_version(data),
        metadata={"symbols": data.num_rows, **arrival.metadata(), "preview": table_preview(data)},
    )
    arrival.stored()
