"""One night of `daily_signals_job` on 5 and on 500 symbols, and how much of it is not our compute.

Belongs here: a house of each size (Dagster instance, Iceberg warehouse, models), the nights as the schedule requests
them, and the clock that says where a night's time goes. Does not belong here: any change to what a night does; the
functions are only timed where they are looked up.

There is no peer: `theirs` is the night on 5 symbols, `ours` the one on 500, and `ratio` says how many times as long the
small one takes as the large one (1 would mean that 100 times the symbols cost nothing).
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from benchmarks import last_line, print_table, replicate, spread

if TYPE_CHECKING:
    import dagster as dg

REPOSITORY = Path(__file__).resolve().parents[1]
COPIES = {5: 1, 500: 100}
HISTORY_SESSIONS = 400
NIGHTS = 5
# The nights end here: at a year's end the warehouse's yearly files, which each night rewrites, are at their largest.
LAST_NIGHT = dt.date(2012, 12, 31)
# What the large house needs before its first night; its models are those of the small one.
TABLES = (
    "market.bars",
    "market.news",
    "market.securities",
    "market.peers",
    "features.technical",
    "features.sentiment",
    "features.peers",
    "features.labels",
)
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

# Where a night's time goes. Whatever no timer claims is `the rest`: Dagster's orchestration and the assets' own glue.
KINDS = {
    "compute": "our compute: features, labels, validation, truncation proof, ONNX, signals",
    "iceberg": "Iceberg reads and writes",
    "plots": "plots and tables for the UI",
    "registry": "champions from MLflow",
    "source": "the source (a vendor would answer here)",
    "events": "Dagster's SQLite: events and runs",
    "rest": "the rest: Dagster's orchestration, glue",
}


class ManySymbols:
    """The sample under many names: a `MarketSource` whose symbols are AAPL000, AAPL001, ...

    Args:
        copies: how often each of the five symbols appears.
        seed: seed of the simulated news.
    """

    name = "sample"
    news_is_simulated = True
    has_minute_bars = False
    overlap_sessions = 0
    is_live = False

    def __init__(self, copies: int, seed: int) -> None:
        from quant_resources.sources.sample import SampleSource

        self.sample = SampleSource(seed=seed)
        self.copies = copies

    def span(self) -> tuple[dt.date, dt.date | None]:
        """That of the sample."""
        return self.sample.span()

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """The sample's bars once per copy."""
        return replicate(self.sample.bars(first, last), self.copies)

    def news(self, first: dt.date, last: dt.date) -> pa.Table:
        """The sample's simulated articles once per copy, each with an id of its own."""
        return replicate(self.sample.news(first, last), self.copies, keys=("symbol", "article_id"))

    def minute_bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """None."""
        return self.sample.minute_bars(first, last)

    def securities(self) -> pa.Table:
        """The sample's five rows once per copy; competitors and industries are those of the same copy."""
        rows = self.sample.securities().to_pylist()
        return pa.Table.from_pylist(
            [
                {
                    **row,
                    "symbol": f"{row['symbol']}{i:03d}",
                    "sector": f"{row['sector']} {i:03d}",
                    "industry": f"{row['industry']} {i:03d}",
                    "peers": ",".join(f"{peer}{i:03d}" for peer in row["peers"].split(",")),
                }
                for row in rows
                for i in range(self.copies)
            ],
            schema=self.sample.securities().schema,
        )


class Clock:
    """Seconds by kind of work. A timed call inside another one counts only for its own kind, never twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.by_function: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def timed(self, kind: str, call: Callable[..., Any], label: str = "") -> Callable[..., Any]:
        """`call`, with the seconds that it takes without its timed inner calls added to `kind`."""
        label = f"{kind}: {label or getattr(call, '__qualname__', str(call))}"

        @functools.wraps(call)
        def timing(*args: object, **kwargs: object) -> object:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                own = elapsed - self._inner.pop()
                self.seconds[kind] += own
                self.by_function[label] += own
                if self._inner:
                    self._inner[-1] += elapsed

        return timing

    def watch(self, kind: str, place: object, *names: str) -> None:
        """Time `place.name`, as seen by whoever looks it up there."""
        for name in names:
            setattr(place, name, self.timed(kind, getattr(place, name)))

    def reset(self) -> None:
        """Start the next night at zero."""
        self.seconds.clear()
        self.by_function.clear()


def watch_the_graph(clock: Clock) -> None:
    """Put the timers where the graph looks its functions up."""
    from quant_assets.features import assets as feature_assets
    from quant_assets.features import checks as feature_checks
    from quant_assets.features import plots as feature_plots
    from quant_assets.market import assets as market_assets
    from quant_assets.market import plots as market_plots
    from quant_assets.market import validation
    from quant_assets.models.mlp import OnnxMlp
    from quant_assets.serving import assets as serving_assets
    from quant_assets.serving import plots as serving_plots
    from quant_resources.iceberg import TableSpec, Warehouse
    from quant_resources.registry import ModelRegistry

    clock.watch("compute", feature_assets, "technical_features", "sentiment_features", "build_labels")
    clock.watch("compute", feature_assets, "peer_features", "relations")
    clock.watch("compute", feature_checks, "technical_features", "sentiment_features", "labels")
    clock.watch("compute", feature_checks, "peer_features", "relations")
    clock.watch("compute", feature_checks, "truncation_violations")
    clock.watch("compute", validation, "validate_bars", "validate_news", "missing_sessions", "price_jumps")
    clock.watch("compute", serving_assets, "query", "make_signals", "write_signal_files")
    clock.watch("compute", OnnxMlp, "__init__", "predict")
    clock.watch("iceberg", Warehouse, "read", "write", "table", "exists", "snapshot_id")
    # Casting and sorting rows into a table's schema belongs to storing them, wherever it is called from.
    clock.watch("iceberg", TableSpec, "conform")
    clock.watch("plots", market_plots, "price_figure", "coverage_figure", "news_figure")
    clock.watch(
        "plots",
        feature_plots,
        "technical_figure",
        "sentiment_figure",
        "sentiment_correlations",
        "labels_figure",
        "peers_figure",
    )
    clock.watch("plots", serving_plots, "signals_figure")
    for assets in (market_assets, feature_assets, serving_assets):
        clock.watch("plots", assets, "figure_markdown")
    for assets in (market_assets, feature_assets):
        clock.watch("plots", assets, "table_preview")
    for place in (market_assets, serving_assets, feature_checks):
        clock.watch("plots", place, "markdown_table")
    clock.watch("registry", ModelRegistry, "find")


def watch_the_instance(clock: Clock, instance: dg.DagsterInstance) -> None:
    """Time every public method of the instance's storages, reads and writes."""
    for storage in (instance.event_log_storage, instance.run_storage):
        for name in dir(type(storage)):
            member = getattr(type(storage), name)
            if not name.startswith("_") and callable(member) and not isinstance(member, type):
                clock_name = f"{type(storage).__name__}.{name}"
                setattr(storage, name, clock.timed("events", getattr(storage, name), clock_name))


class House:
    """Everything that one size needs: source, warehouse, Dagster instance, definitions.

    Args:
        symbols: how many.
        root: folder of this house's warehouse and Dagster instance.
        registry: the models; both houses ask the same champions.
    """

    def __init__(self, symbols: int, root: Path, registry: object) -> None:
        import dagster as dg

        from quant_assets.definitions import build_defs
        from quant_assets.partitions import settings
        from quant_resources.iceberg import Warehouse

        self.symbols = symbols
        self.source = ManySymbols(COPIES[symbols], settings().seed)
        if COPIES[symbols] == 1:
            self.source = self.source.sample
        self.warehouse = Warehouse(root)
        dagster_home = root / "dagster"
        dagster_home.mkdir(parents=True)
        shutil.copy(REPOSITORY / "dagster.yaml", dagster_home / "dagster.yaml")
        os.environ["DAGSTER_HOME"] = str(dagster_home)
        self.instance = dg.DagsterInstance.get()
        self.defs = build_defs({"warehouse": self.warehouse, "source": self.source, "registry": registry})
        self.schedule = self.defs.resolve_schedule_def("daily_signals_schedule")
        self.repository = self.defs.get_repository_def()

    def run(self, job: str, **options: Any) -> None:
        """Run a job in this process.

        Raises:
            SystemExit: the run failed.
        """
        result = self.defs.resolve_job_def(job).execute_in_process(
            run_config=QUIET, instance=self.instance, raise_on_error=False, **options
        )
        if not result.success:
            failed = [e.step_failure_data.error for e in result.all_events if e.is_step_failure]
            raise SystemExit(f"{job} on {self.symbols} symbols failed: {failed[0] if failed else '?'}")

    def history(self, first: dt.date, last: dt.date, train: bool) -> None:
        """Fill the warehouse for a range of sessions in one run; with `train`, the whole chain with the models."""
        import dagster as dg

        tags = {
            "dagster/asset_partition_range_start": first.isoformat(),
            "dagster/asset_partition_range_end": last.isoformat(),
        }
        selection = None if train else [dg.AssetKey(name.split(".")) for name in TABLES]
        self.run("chain_job", tags=tags, asset_selection=selection)

    def night(self, session: dt.date) -> float:
        """What the daemon does at 16:30 New York: ask the schedule, launch what it requests. Wall seconds."""
        import dagster as dg

        # Half days too: at the later tick their close has passed as well.
        tick = dt.datetime.combine(session, dt.time(16, 30), ZoneInfo("America/New_York"))
        started = time.perf_counter()
        context = dg.build_schedule_context(
            instance=self.instance, scheduled_execution_time=tick, repository_def=self.repository
        )
        (request,) = self.schedule.evaluate_tick(context).run_requests or []
        tags = {
            **request.tags,
            "dagster/schedule_name": self.schedule.name,
            "dagster/run_key": str(request.run_key),
        }
        self.run("daily_signals_job", tags=tags, partition_key=request.partition_key)
        return time.perf_counter() - started

    def signals(self, session: dt.date) -> list[tuple[object, ...]]:
        """Stored signals of a session: strategy, symbol, both probabilities, side; in order."""
        from quant_assets.serving.tables import LIVE_SIGNALS

        columns = ["strategy", "symbol", "probability_long", "probability_short", "side"]
        rows = self.warehouse.read(LIVE_SIGNALS, session, session, columns).to_pylist()
        return sorted(tuple(row.values()) for row in rows)


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A `QUANT_HOME` of its own, and no other setting; must come before any import of the project."""
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("QUANT_", "DAGSTER_"))]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="quant-nightly-"))
    os.environ |= {
        "QUANT_HOME": str(home),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)
        os.environ.clear()
        os.environ |= kept


def expected_signals(small: list[tuple[object, ...]], copies: int) -> list[tuple[object, ...]]:
    """What the large house must say: the small one's signals under every copy's name, bit for bit."""
    return sorted(
        (strategy, f"{symbol}{i:03d}", *said) for strategy, symbol, *said in small for i in range(copies)
    )


def main() -> None:
    """Build both houses, run the nights in turn, print where the time went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=NIGHTS, help="measured nights of each size (default 5)")
    parser.add_argument("--functions", action="store_true", help="also print the most expensive functions")
    arguments = parser.parse_args()
    with temporary_home() as home:
        measure(home, arguments.nights, arguments.functions)


def measure(home: Path, nights: int, functions: bool) -> None:
    """The benchmark, in a given home."""
    from quant_assets.partitions import CALENDAR
    from quant_resources.registry import ModelRegistry

    clock = Clock()
    registry = ModelRegistry(home)
    # One night of each house before the measured ones pays for imports and first connections.
    sessions = CALENDAR.sessions(CALENDAR.shift(LAST_NIGHT, -nights), LAST_NIGHT)
    first, until = CALENDAR.shift(sessions[0], -HISTORY_SESSIONS), CALENDAR.shift(sessions[0], -1)
    houses: list[House] = []
    for symbols in COPIES:
        started = time.perf_counter()
        house = House(symbols, home / f"symbols_{symbols}", registry)
        # The models are trained on the five; a network knows no symbol by name, so the 500 ask the same champions.
        house.history(first, until, train=not houses)
        houses.append(house)
        print(
            f"{symbols} symbols, history {first}..{until} in one run"
            f"{' with models' if len(houses) == 1 else ''}: {time.perf_counter() - started:.1f} s",
            flush=True,
        )

    watch_the_graph(clock)
    for house in houses:
        watch_the_instance(clock, house.instance)
        clock.watch("source", house.source, "bars", "news")
    wall: dict[int, list[float]] = {house.symbols: [] for house in houses}
    parts: dict[int, list[dict[str, float]]] = {house.symbols: [] for house in houses}
    costs: dict[int, dict[str, float]] = {house.symbols: defaultdict(float) for house in houses}
    for number, session in enumerate(sessions):
        for house in houses if number % 2 else houses[::-1]:
            clock.reset()
            seconds = house.night(session)
            kinds = {kind: clock.seconds[kind] for kind in KINDS if kind != "rest"}
            kinds["rest"] = seconds - sum(kinds.values())
            for label, spent in clock.by_function.items():
                costs[house.symbols][label] += spent if number else 0.0
            print(
                f"night of {session}, {house.symbols:>3} symbols: {seconds:6.2f} s"
                f"{'' if number else '  (warm-up)'}",
                flush=True,
            )
            if number:
                wall[house.symbols].append(seconds)
                parts[house.symbols].append(kinds)
        small, large = (house.signals(session) for house in houses)
        if large != expected_signals(small, COPIES[500]):
            raise SystemExit(f"the signals of {session} on 500 symbols are not those on 5, copied")
    for house in houses:
        house.instance.dispose()

    shares = _print_results(wall, parts)
    if functions:
        _print_functions(costs, nights)
    median = {symbols: statistics.median(values) for symbols, values in wall.items()}
    last_line(
        "nightly",
        ratio=median[5] / median[500],
        ratios=shares,
        ours=spread(wall[500]),
        theirs=spread(wall[5]),
        work=f"one night of daily_signals_job as its schedule requests it, in process, {nights} consecutive sessions to "
        f"{LAST_NIGHT} after {HISTORY_SESSIONS} sessions of history; ours 500 symbols, theirs 5 symbols (no peer); "
        "ratios: shares of a night's wall time by kind, not_compute = everything but compute",
        equal=True,
        equal_how="signals of every night: each of the 100 copies of a symbol has the probabilities and sides of the "
        "5-symbol night, bit for bit",
    )


def _print_results(
    wall: dict[int, list[float]], parts: dict[int, list[dict[str, float]]]
) -> dict[str, float]:
    """The table of both sizes; returns the shares by size and kind."""
    shares: dict[str, float] = {}
    rows = []
    for kind, meaning in KINDS.items():
        row: list[object] = [meaning]
        for symbols, nights in parts.items():
            mean = statistics.mean(night[kind] for night in nights)
            share = mean / statistics.mean(wall[symbols])
            shares[f"{kind}_{symbols}"] = share
            row += [f"{mean:.2f}", f"{100 * share:.0f} %"]
        rows.append(row)
    for symbols in parts:
        shares[f"not_compute_{symbols}"] = 1 - shares[f"compute_{symbols}"]
    print()
    header: list[str] = ["mean of a night"]
    for symbols in parts:
        header += [f"{symbols} symbols, s", "share"]
    total: list[object] = ["wall, mean"]
    middle: list[object] = ["wall, median (min to max)"]
    for values in wall.values():
        total += [f"{statistics.mean(values):.2f}", ""]
        middle += [f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"]
    print_table(header, [*rows, total, middle])
    print(flush=True)
    return shares


def _print_functions(costs: dict[int, dict[str, float]], nights: int) -> None:
    """The functions that take most of a night, without what they call."""
    for symbols, spent in costs.items():
        most = sorted(spent.items(), key=lambda item: -item[1])[:25]
        print_table([f"{symbols} symbols", "s a night"], [[name, f"{s / nights:.3f}"] for name, s in most])
        print(flush=True)


if __name__ == "__main__":
    main()
