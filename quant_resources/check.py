"""`quant check`: what the settings lead to, one line each, before anything is run.

Belongs here: looking, one request to the vendor, and a sentence for each thing that is wrong. Does not belong here: mending any of it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quant_resources.calendar import TradingCalendar
from quant_resources.settings import Settings, SettingsError, ensure_home, load_settings
from quant_resources.sources import MarketSource, SourceError, SourceUnavailable, open_source

GOOD, NOTE, BAD = "ok", "note", "FAIL"
SHOWN_SYMBOLS = 12
# What a shell reports of a command whose reader went away (128 + SIGPIPE).
READER_GONE = 141
# The settings' defaults, which are the limits of a free key at Alpha Vantage.
FREE_PER_DAY, FREE_PER_MINUTE = 25, 5
LITTLE_SPACE_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the answer: how it is, what it is about, what was found."""

    state: str
    about: str
    text: str


def findings(settings: Settings) -> Iterator[Finding]:
    """Look at everything that the settings lead to; later lines do not need earlier ones to be good.

    Args:
        settings: valid ones.
    """
    yield from _looked("storage", lambda: _storage(settings))
    if settings.first_session and settings.first_session > dt.date.today():
        yield Finding(
            BAD,
            "sessions",
            f"no session has closed since QUANT_FIRST_SESSION={settings.first_session}: begin earlier",
        )
        return
    source: MarketSource | None = None
    try:
        source = open_source(settings)
    except (SourceError, OSError) as error:
        yield Finding(BAD, "source", str(error))
    if source is not None:
        yield _source(settings, source)
        yield _symbols(settings)
        first, last = source.span()
        yield from _looked("sessions", lambda: _sessions(first, last))
        if source.is_live:
            yield from _looked("quota", lambda: _quota(settings, source))
            yield from _allowance(settings)
            yield from _looked("request", lambda: _probe(settings, source))
        else:
            yield from _looked("data", lambda: _data(source, first, last))
    yield _peers(settings)
    yield from _looked("competitors", lambda: _stored_peers(settings))
    yield from _looked("tables", lambda: _tables(settings))
    yield from _looked("endpoints", lambda: _endpoints(settings))


def _looked(about: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    """A look that fails is a finding as well."""
    try:
        yield look()
    except Exception as error:  # whatever it is, the other lines still help
        yield Finding(BAD, about, f"{type(error).__name__}: {error}")


def _storage(settings: Settings) -> Finding:
    try:
        ensure_home(settings)
    except SettingsError as error:
        return Finding(BAD, "storage", str(error))
    free = shutil.disk_usage(settings.home).free / 2**30
    text = f"QUANT_HOME={settings.home}, {free:,.0f} GiB free"
    if free < LITTLE_SPACE_GIB:
        return Finding(
            NOTE, "storage", f"{text}: little; the demo takes about 1 GiB, every model and snapshot more"
        )
    return Finding(GOOD, "storage", text)


def _source(settings: Settings, source: MarketSource) -> Finding:
    about = {
        "sample": "the bundled prices of five stocks, 2000 to 2013, with simulated news; no key is needed",
        "files": f"your files in {settings.files_dir}",
        "alpha_vantage": f"Alpha Vantage at {settings.alpha_vantage_url}, plan {settings.alpha_vantage_plan}",
        "alpaca": f"Alpaca at {settings.alpaca_url}, feed {settings.alpaca_feed}, news scored by {settings.news_scorer}",
    }[settings.source]
    archive = (
        "; QUANT_ARCHIVE_ONLY: nothing is asked, tables come from the archive"
        if settings.archive_only
        else ""
    )
    if settings.source == "alpha_vantage" and settings.alpha_vantage_plan == "free":
        return Finding(
            NOTE,
            "source",
            f"QUANT_SOURCE={source.name}: {about}{archive}. The free plan has the newest 100 sessions, without dividends and splits: "
            "prices around a split are refused until you record it (QUANT_BAD_ROWS), and a model wants more history than that",
        )
    return Finding(GOOD, "source", f"QUANT_SOURCE={source.name}: {about}{archive}")


def _symbols(settings: Settings) -> Finding:
    if settings.symbols is None:
        return Finding(GOOD, "symbols", "all that the source has (QUANT_SYMBOLS narrows)")
    shown = ", ".join(settings.symbols[:SHOWN_SYMBOLS])
    more = len(settings.symbols) - SHOWN_SYMBOLS
    text = f"{len(settings.symbols)}: {shown}{f' and {more} more' if more > 0 else ''}"
    if settings.news_symbols:
        text += f"; news of {', '.join(settings.news_symbols[:SHOWN_SYMBOLS])} as well"
    return Finding(GOOD, "symbols", text)


def _sessions(first: dt.date, last: dt.date | None) -> Finding:
    now = dt.datetime.now(dt.UTC)
    calendar = TradingCalendar(first, last or now.date() + dt.timedelta(days=30))
    sessions = calendar.sessions(first, last or calendar.last)
    closed = [session for session in sessions if calendar.close(session) <= now]
    if not closed:
        return Finding(
            BAD, "sessions", f"no session has closed since QUANT_FIRST_SESSION={first}: begin earlier"
        )
    text = f"{closed[0]} to {closed[-1]}, {len(closed):,} closed sessions of the New York Stock Exchange"
    if last is None:
        ahead = next(session for session in sessions if session > closed[-1])
        return Finding(
            GOOD,
            "sessions",
            f"{text}; the next, {ahead}, closes at {calendar.close(ahead):%Y-%m-%d %H:%M} UTC",
        )
    return Finding(GOOD, "sessions", f"{text}; the source ends there")


def _quota(settings: Settings, source: MarketSource) -> Finding:
    budget = source.vendor.budget  # type: ignore[attr-defined]
    left, used = budget.left(), budget.used()
    rate = f"{budget.per_minute:g} a minute"
    if left is None:
        return Finding(GOOD, "quota", f"{used} requests today, no daily limit, at most {rate}")
    day = f"{used} of {budget.per_day} requests of today are used, {left} are left, at most {rate}"
    if not left:
        until = budget.closed_until()
        when = f" before {until:%Y-%m-%d %H:%M} UTC" if until else " now"
        return Finding(
            NOTE,
            "quota",
            f"{day}: nothing comes{when}. What came is stored, and waiting_symbols_sensor goes on then",
        )
    return Finding(GOOD, "quota", day)


def _allowance(settings: Settings) -> Iterator[Finding]:
    """What the limits of Alpha Vantage mean for a night, and limits that do not belong to the plan."""
    if settings.source != "alpha_vantage" or settings.archive_only:
        return
    per_day, per_minute = settings.alpha_vantage_requests_per_day, settings.alpha_vantage_requests_per_minute
    traded = set(settings.symbols or ())
    read = traded | set(settings.news_symbols or ())
    if per_day and (needed := len(traded) + len(read)) > per_day:
        yield Finding(
            NOTE,
            "quota",
            f"a night takes {needed} requests ({len(traded)} for bars, {len(read)} for news) and {per_day} a day are allowed: what is left "
            "over waits for the next day, and every night leaves more. Name fewer symbols in QUANT_SYMBOLS and QUANT_NEWS_SYMBOLS, or take "
            "a plan with more requests and set QUANT_ALPHA_VANTAGE_REQUESTS_PER_DAY",
        )
    if settings.alpha_vantage_plan == "premium" and (
        per_day == FREE_PER_DAY or per_minute == FREE_PER_MINUTE
    ):
        yield Finding(
            NOTE,
            "quota",
            f"QUANT_ALPHA_VANTAGE_PLAN=premium with {per_day or 'any number of'} requests a day and {per_minute:g} a minute: {FREE_PER_DAY} a "
            f"day and {FREE_PER_MINUTE} a minute are a free key's. Set QUANT_ALPHA_VANTAGE_REQUESTS_PER_DAY=0 and "
            "QUANT_ALPHA_VANTAGE_REQUESTS_PER_MINUTE to what your plan allows",
        )


def _probe(settings: Settings, source: MarketSource) -> Finding:
    from quant_resources.sources.budget import QuotaExhausted

    if settings.archive_only:
        return Finding(GOOD, "request", "none is made (QUANT_ARCHIVE_ONLY)")
    try:
        return Finding(GOOD, "request", source.probe())  # type: ignore[attr-defined]
    except QuotaExhausted as error:
        return Finding(NOTE, "request", f"{error}; again after {error.until:%Y-%m-%d %H:%M} UTC")
    except (SourceError, SourceUnavailable) as error:
        return Finding(BAD, "request", str(error))


def _data(source: MarketSource, first: dt.date, last: dt.date | None) -> Finding:
    try:
        bars = source.bars(first, last or dt.date.today())
        news = source.news(first, last or dt.date.today())
    except SourceError as error:
        return Finding(BAD, "data", str(error))
    if not bars.num_rows:
        return Finding(
            BAD, "data", f"no bar between {first} and {last or 'today'}: look at QUANT_FIRST_SESSION"
        )
    symbols = bars["symbol"].unique().to_pylist()
    return Finding(
        GOOD,
        "data",
        f"{bars.num_rows:,} bars of {len(symbols)} symbols, {news.num_rows:,} rows of news"
        f"{' (simulated)' if source.news_is_simulated else ''}, minute bars: {'yes' if source.has_minute_bars else 'no'}",
    )


def _peers(settings: Settings) -> Finding:
    if settings.peer_finder == "bedrock":
        return Finding(
            GOOD,
            "competitors",
            f"asked of {settings.bedrock_model_id} on Bedrock, once per symbol, with the AWS credentials of this shell",
        )
    where = f"{settings.peers_file}, then " if settings.peers_file else ""
    return Finding(GOOD, "competitors", f"{where}the curated list of the package")


def _stored_peers(settings: Settings) -> Finding:
    name = "market.peers"
    if not (settings.home / "catalog.db").is_file():
        return Finding(GOOD, "competitors", "none stored yet (make chain)")
    from quant_resources.iceberg import Warehouse

    warehouse = Warehouse(settings.home)
    if name not in warehouse.table_names():
        return Finding(GOOD, "competitors", "none stored yet (make chain)")
    rows = (
        warehouse.catalog.load_table(name).scan(selected_fields=("symbol", "finder")).to_arrow().to_pylist()
    )
    stored = {row["symbol"] for row in rows if row["finder"] == settings.peer_finder}
    others = sorted({row["finder"] for row in rows} - {settings.peer_finder})
    if others and not stored:
        return Finding(
            NOTE,
            "competitors",
            f"{name} has lists of {', '.join(others)} and none of QUANT_PEER_FINDER={settings.peer_finder}: competitors' sentiment is 0 until "
            "market/peers is materialized",
        )
    return Finding(GOOD, "competitors", f"lists of {len(stored)} symbol(s) are stored in {name}")


def _tables(settings: Settings) -> Finding:
    if not (settings.home / "catalog.db").is_file():
        return Finding(GOOD, "tables", "none yet (make chain)")
    from quant_resources.iceberg import Warehouse

    warehouse = Warehouse(settings.home)
    names = warehouse.table_names()
    text = f"{len(names)} Iceberg tables"
    if "market.bars" in names:
        table = warehouse.catalog.load_table("market.bars")
        rows = table.scan(selected_fields=("session", "symbol", "source")).to_arrow()
        if rows.num_rows:
            import pyarrow.compute as pc

            sources = sorted(rows["source"].unique().to_pylist())
            text += (
                f"; market.bars: {rows.num_rows:,} rows of {len(rows['symbol'].unique())} symbols to "
                f"{pc.max(rows['session'])}, from {', '.join(sources)}"
            )
            if sources != [settings.source]:
                return Finding(
                    NOTE,
                    "tables",
                    f"{text}. QUANT_SOURCE={settings.source} would mix with them: give it a QUANT_HOME of its own",
                )
    return Finding(GOOD, "tables", text)


def _endpoints(settings: Settings) -> Finding:
    if settings.endpoint_backend == "sagemaker":
        return Finding(
            GOOD,
            "endpoints",
            f"on SageMaker, named {settings.sagemaker_prefix}-..., role {settings.sagemaker_role_arn}, bucket "
            f"{settings.sagemaker_bucket} (nothing was asked; make deploy does)",
        )
    from quant_resources.endpoints.local import LocalEndpoints

    if not Path(settings.endpoints_dir).is_dir():
        return Finding(GOOD, "endpoints", "processes on this machine; none was deployed yet (make deploy)")
    endpoints = LocalEndpoints(settings.endpoints_dir, settings.endpoint_port)
    shown = [f"{status.name} {status.phase}" for status in endpoints.statuses()]
    running = "the supervisor runs" if endpoints.running else "the supervisor is stopped"
    return Finding(GOOD, "endpoints", f"on this machine, {running}: {', '.join(shown) or 'none deployed'}")


def report(lines: Iterator[Finding]) -> int:
    """Print the findings as they come; 1 when one is bad, `READER_GONE` when nobody reads them any more."""
    try:
        return _print(lines)
    except BrokenPipeError:
        # Python would write what is left once more on its way out, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


def _print(lines: Iterator[Finding]) -> int:
    bad = 0
    for finding in lines:
        bad += finding.state == BAD
        print(f"{finding.state:<5}{finding.about:<12}{finding.text}", flush=True)
    if bad:
        print(f"\n{bad} of these must be mended first.")
    else:
        print("\nNothing stands in the way: make chain brings the data in and goes on to signals.")
    return 1 if bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Exit status 0: nothing stands in the way; 1: something does; 2: the settings are wrong; 141: the reader went away."""
    parser = argparse.ArgumentParser(prog="quant", description="quant-assets from a shell.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser(
        "check",
        help="what the settings lead to: source, symbols, sessions, quota, storage, endpoints; makes one request to a vendor",
    )
    parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    try:
        settings = load_settings()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return report(findings(settings))


if __name__ == "__main__":
    sys.exit(main())
