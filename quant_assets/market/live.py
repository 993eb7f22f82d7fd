"""One run's dealings with a source: what came, what waits, what was corrected, and what is asked for again.

Belongs here: the bookkeeping that every asset of this layer shares, from the first request to the row in `market.coverage`. Does not
belong here: the rules about rows (`validation.py`), comparing (`arrivals.py`, pure) and the assets.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from quant_assets.market import arrivals, tables
from quant_assets.partitions import CALENDAR, FIRST_SESSION, settings
from quant_assets.presentation import data_version, markdown_table
from quant_resources.iceberg import TableSpec, Warehouse
from quant_resources.sources import MarketSource, SourceError, SourceIncomplete, SourceUnavailable, Waiting

CAME_CHECK = "every_symbol_came"
DATA_VERSION_TAG = "dagster/data_version"
# Stored sessions before those that are asked for, by which it is known that a table had begun, and which symbols trade.
KNOWN_SESSIONS = 25
# A symbol without a bar for so many stored sessions has stopped trading.
LISTED_SESSIONS = 5
# Features look back so far: a session that changes under later ones changes theirs.
LOOKED_AHEAD = 30


class Arrival:
    """What one run brings of one dataset.

    Args:
        context: of the asset.
        source: that is asked.
        warehouse: where it goes.
        dataset: `bars`, `news`, `minute_bars` or `securities`.
        spec: the dataset's table.
        first, last: sessions of the run.
        overlap: whether earlier sessions are asked for again, for corrections.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        source: MarketSource,
        warehouse: Warehouse,
        dataset: str,
        spec: TableSpec,
        first: dt.date,
        last: dt.date,
        overlap: bool = True,
    ) -> None:
        self.context, self.source, self.warehouse = context, source, warehouse
        self.dataset, self.spec, self.first, self.last = dataset, spec, first, last
        self.since = first
        if overlap and source.overlap_sessions:
            sessions = CALENDAR.sessions(FIRST_SESSION, first)
            self.since = sessions[-min(source.overlap_sessions + 1, len(sessions))]
        self.waiting: list[Waiting] = []
        self.fixed: arrivals.Corrections | None = None
        self.status: list[dict[str, object]] = []
        self._brought_since = first

    # -- asking ------------------------------------------------------------------------------------------------------------

    def fetch(self, call: Callable[..., pa.Table], *sessions: dt.date) -> pa.Table:
        """Ask the source; the symbols that have to wait are remembered.

        Raises:
            dg.Failure: the source's own message. What is wrong with the user's data or key stays wrong and is not tried again; a vendor
                that cannot be reached is, by the retry policy and then by waiting_symbols_sensor.
        """
        try:
            return call(*sessions)
        except SourceIncomplete as part:
            self.waiting = part.waiting
            return part.rows
        except SourceUnavailable as error:
            self.waiting = [Waiting(symbol, str(error), self._again()) for symbol in self.symbols]
            self.judge(self.spec.arrow_schema.empty_table(), [])
            self._write(brought=False)
            raise dg.Failure(f"{error}. Nothing was written.") from error
        except SourceError as error:
            raise dg.Failure(f"{error}. Nothing was written.", allow_retries=False) from error

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols that are wanted of a vendor; none where the source's own are taken."""
        more = settings().news_symbols or () if self.dataset in ("news", "securities") else ()
        return tuple(dict.fromkeys((*(settings().symbols or ()), *more)))

    @property
    def waiting_symbols(self) -> set[str]:
        """Those that have to wait."""
        return {item.symbol for item in self.waiting}

    def _again(self) -> dt.datetime:
        """When a vendor that owes the newest session is worth asking again."""
        now = dt.datetime.now(dt.UTC)
        # Of the vendors only Alpha Vantage counts requests by the day.
        limited = self.source.name == "alpha_vantage" and settings().alpha_vantage_requests_per_day
        return now + arrivals.ask_again_after(now - CALENDAR.close(self.last), limited or None)

    # -- what came ---------------------------------------------------------------------------------------------------------

    def before(self) -> pa.Table:
        """Stored rows of the sessions before the run's: those that may be corrected, and enough before them to know the table."""
        start = CALENDAR.shift(self.since, -KNOWN_SESSIONS)
        return self.warehouse.read(self.spec, start, CALENDAR.shift(self.first, -1))

    def correct(self, came: pa.Table, stored: pa.Table) -> None:
        """Write what the source says differently of the sessions before the run's, and report their partitions as updated.

        The report is no event of this run: automation passes over runs that compute features themselves, and those compute the
        features of their own sessions alone. It is made before the commit, so that a kill between the two leaves nothing stale, and
        after it, so that nobody goes by the old rows.
        """
        if self.since >= self.first or not stored.num_rows:
            return
        earlier = CALENDAR.shift(self.first, -1)
        began = pc.min(stored["session"]).as_py()
        self._brought_since = max(self.since, began)
        self.fixed = arrivals.corrections(
            between(came, self.since, earlier), between(stored, self.since, earlier), self.spec, began
        )
        found = self.fixed
        if not found.sessions:
            return
        self.context.log.warning(
            "%s: the source corrected %d value(s) of %s",
            self.spec.name,
            len(found.changes),
            ", ".join(map(str, found.sessions)),
        )
        self._report(found.sessions, "corrected by the source")
        low, high = found.sessions[0], found.sessions[-1]
        # Sessions between two corrected ones are written again as they are: one commit for all.
        kept = between(stored, low, high)
        kept = kept.filter(pc.invert(pc.is_in(kept["session"], pa.array(found.sessions, pa.date32()))))
        self.warehouse.write(
            self.spec,
            pa.concat_tables([found.rows, self.spec.conform(kept)]),
            low,
            high,
            {
                "quant.run_id": self.context.run.run_id,
                "quant.partition": f"{low}..{high}",
                "quant.corrections": str(len(found.changes)),
            },
        )
        self._report(found.sessions, "corrected by the source")

    def slice(self, came: pa.Table) -> pa.Table:
        """The run's slice: what came, and of the symbols that have to wait what is stored already."""
        came = between(came, self.first, self.last)
        if not self.waiting:
            return came
        stored = self.warehouse.read(self.spec, self.first, self.last)
        return self.spec.conform(arrivals.keep_waiting(came, stored, self.waiting_symbols))

    def judge(
        self, data: pa.Table, missing: Sequence[tuple[str, dt.date]], new: Sequence[str] = ()
    ) -> list[dict[str, object]]:
        """What becomes of each symbol when `data` is stored; see `arrivals.coverage`. Nothing is written yet."""
        if self.source.is_live:
            now = dt.datetime.now(dt.UTC)
            self.status = arrivals.coverage(
                self.dataset,
                data,
                self.symbols,
                self.waiting,
                missing,
                self.first,
                self.last,
                now,
                self._again() if now < CALENDAR.close(self.last) + arrivals.LATE_FOR else None,
                new,
            )
        return self.status

    # -- the end -----------------------------------------------------------------------------------------------------------

    def failed(self) -> None:
        """Nothing is written in this run: what came waits with the others."""
        again = [row["retry_at"] for row in self.status if row["retry_at"] is not None]
        for row in self.status:
            if row["status"] == arrivals.COMPLETE and again:
                row |= {
                    "status": arrivals.WAITING,
                    "note": "came, and nothing was written because others are missing",
                    "retry_at": min(again),  # type: ignore[type-var]
                }
        self._write(brought=False)

    def stored(self) -> None:
        """The run's slice is committed: say what became of each symbol, and let what was computed from later sessions be made again."""
        self._write(brought=True)
        if self.spec.slice_column != "session":
            return
        later = CALENDAR.shift(self.last, 1), CALENDAR.shift(self.last, LOOKED_AHEAD)
        if later[0] > self.last and self.warehouse.read(self.spec, *later, ["session"]).num_rows:
            # A session that comes under later ones, in a run that computes its own features alone.
            self._report((self.last,), "brought in after later sessions")

    def _write(self, brought: bool) -> None:
        if not self.source.is_live:
            return
        spec = tables.COVERAGE
        # Two runs at once must not lose each other's rows.
        with FileLock(self.warehouse.home / ".coverage.lock", timeout=120):
            before = self.warehouse.read(spec, only=self.dataset).to_pylist()
            since = self._brought_since if brought else None
            kept = arrivals.still_waiting(before, self.status, since, self.last)
            rows = pa.Table.from_pylist([*self.status, *kept], schema=spec.arrow_schema)
            self.warehouse.write(spec, rows, only=self.dataset)

    def _report(self, sessions: Sequence[dt.date], why: str) -> None:
        for session in sessions:
            metadata, tags = {}, None
            if self.fixed is not None and session in self.fixed.sessions:
                changes = [c for c in self.fixed.changes if c["session"] == str(session)]
                metadata = {"corrections": markdown_table(changes)}
                version = data_version(between(self.fixed.rows, session, session), (session, session))
                tags = {DATA_VERSION_TAG: version.value} if version else None
            self.context.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    asset_key=dg.AssetKey(self.spec.name.split(".")),
                    partition=session.isoformat(),
                    description=f"{why}; by run {self.context.run.run_id}",
                    metadata=metadata,
                    tags=tags,
                )
            )

    # -- for people --------------------------------------------------------------------------------------------------------

    def came_check(self) -> dg.AssetCheckResult:
        """Whether every symbol came; a warning, as the others are stored."""
        absent = [
            {
                "symbol": row["symbol"],
                "status": row["status"],
                "again at": f"{row['retry_at']:%Y-%m-%d %H:%M} UTC" if row["retry_at"] else "",
                "why": row["note"],
            }
            for row in self.status
            if row["status"] != arrivals.COMPLETE
        ]
        return dg.AssetCheckResult(
            check_name=CAME_CHECK,
            passed=not absent,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{len(absent)} symbol(s) did not come: {absent[0]['symbol']}: {absent[0]['why']}"
            if absent
            else None,
            metadata={"did not come": markdown_table(absent)},
        )

    def metadata(self) -> dict[str, object]:
        """What the asset's page says of symbols and corrections; those that need a look come first."""
        shown: dict[str, object] = {}
        if self.status:
            order = (arrivals.WAITING, arrivals.LATE, arrivals.MISSING, arrivals.COMPLETE)
            names = ("symbol", "status", "rows", "newest_session", "note", "retry_at")
            ranked = sorted(
                self.status, key=lambda row: (order.index(str(row["status"])), str(row["symbol"]))
            )
            shown["symbols by status"] = markdown_table(
                [{name: "" if row[name] is None else row[name] for name in names} for row in ranked], most=100
            )
            for name in order:
                if count := sum(row["status"] == name for row in self.status):
                    shown[f"symbols {name}"] = count
        if self.fixed is not None and self.fixed.sessions:
            shown["corrections"] = markdown_table(self.fixed.changes)
        return shown

    def require_some(self) -> None:
        """Nothing came and nothing is stored: there is nothing to go on with.

        Raises:
            dg.Failure: with the vendor's reason, and when it is asked again.
        """
        if self.waiting:
            until = min(item.retry_at for item in self.waiting)
            raise dg.Failure(
                f"nothing came, {len(self.waiting)} symbol(s) have to wait until {until:%Y-%m-%d %H:%M} UTC: "
                f"{self.waiting[0].reason}. Nothing was written; waiting_symbols_sensor asks again then.",
                allow_retries=False,
            )


def between(rows: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    """Rows of the sessions `first`..`last`."""
    return rows.filter(
        pc.and_(
            pc.greater_equal(rows["session"], pa.scalar(first)),
            pc.less_equal(rows["session"], pa.scalar(last)),
        )
    )


def still_listed(stored: pa.Table) -> pa.Table:
    """Bars of symbols that are expected tonight: those that traded lately and are still wanted."""
    if not stored.num_rows:
        return stored
    lately = sorted(stored["session"].unique().to_pylist())[-LISTED_SESSIONS:]
    stored = stored.filter(pc.is_in(stored["session"], pa.array(lately, pa.date32())))
    if wanted := settings().symbols:
        stored = stored.filter(pc.is_in(stored["symbol"], pa.array(wanted, pa.string())))
    return stored
