"""Real runs on a source that behaves as a vendor does: corrections, late sessions, a day's requests used up in the middle."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from quant_assets.definitions import build_defs, table_specs
from quant_assets.launch import QUIET, RANGE_TAGS
from quant_assets.market import arrivals, assets
from quant_assets.market.live import Arrival
from quant_assets.market.tables import BARS, COVERAGE, NEWS
from quant_assets.partitions import settings
from quant_resources.iceberg import TableSpec, Warehouse
from quant_resources.io_manager import IcebergIOManager
from quant_resources.sources import SourceError, SourceIncomplete, SourceUnavailable, Waiting
from quant_resources.sources.sample import SampleSource
from sensors.vendors import waiting_symbols_sensor

SYMBOLS = ("AAPL", "IBM", "MSFT")
FIRST, LAST = dt.date(2012, 1, 3), dt.date(2012, 3, 30)
NIGHT, NEXT = dt.date(2012, 4, 2), dt.date(2012, 4, 3)
TOMORROW = dt.datetime(2012, 4, 3, 4, tzinfo=dt.UTC)


class Vendor(SampleSource):
    """The sample as a vendor would serve it."""

    is_live = True
    overlap_sessions = 5

    def __init__(self) -> None:
        super().__init__(symbols=SYMBOLS, seed=1)
        self.closes: dict[tuple[str, dt.date], float] = {}
        self.unpublished: set[tuple[str, dt.date]] = set()
        self.used_up: set[str] = set()
        self.down = False
        self.asked: list[tuple[dt.date, dt.date]] = []

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        self.asked.append((first, last))
        if self.down:
            raise SourceUnavailable("vendor: AAPL did not come after 6 attempts")
        rows = super().bars(first, last).to_pylist()
        rows = [r for r in rows if (r["symbol"], r["session"]) not in self.unpublished]
        for row in rows:
            if (close := self.closes.get((row["symbol"], row["session"]))) is not None:
                row["close"] = close
                row["high"] = max(row["high"], close)
        return self._part(pa.Table.from_pylist(rows, schema=super().bars(first, last).schema))

    def news(self, first: dt.date, last: dt.date) -> pa.Table:
        return self._part(super().news(first, last))

    def _part(self, rows: pa.Table) -> pa.Table:
        if not self.used_up:
            return rows
        came = rows.filter(pc.invert(pc.is_in(rows["symbol"], pa.array(sorted(self.used_up)))))
        why = "25 of 25 requests of today are used"
        raise SourceIncomplete(came, [Waiting(symbol, why, TOMORROW) for symbol in sorted(self.used_up)])


class House:
    """A warehouse, an instance and the vendor, with the job that brings data in."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.vendor, self.warehouse, self.instance = Vendor(), Warehouse(home), instance

    def run(self, first: dt.date, last: dt.date, names: str = "bars") -> dg.ExecuteInProcessResult:
        tags = dict(zip(RANGE_TAGS, (str(first), str(last)), strict=True))
        return dg.materialize(
            [getattr(assets, name) for name in names.split()],
            instance=self.instance,
            resources={
                "source": self.vendor,
                "warehouse": self.warehouse,
                "io_manager": IcebergIOManager(self.warehouse, table_specs()),
            },
            run_config=QUIET,
            raise_on_error=False,
            **({"partition_key": str(first)} if first == last else {"tags": tags}),
        )

    def close(self, symbol: str, session: dt.date, snapshot_id: int | None = None) -> list[float]:
        rows = self.warehouse.read(BARS, session, session, snapshot_id=snapshot_id).to_pylist()
        return [row["close"] for row in rows if row["symbol"] == symbol]

    def coverage(self, dataset: str = "bars") -> dict[tuple[str, dt.date], dict]:
        rows = self.warehouse.read(COVERAGE, only=dataset).to_pylist()
        return {(row["symbol"], row["last_session"]): row for row in rows}

    def tick(self, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
        context = dg.build_sensor_context(
            instance=self.instance, resources={"warehouse": self.warehouse}, cursor=cursor
        )
        return waiting_symbols_sensor(context)

    def why_not(self) -> str:
        """Why a tick launches nothing."""
        decision = self.tick()
        if isinstance(decision, dg.SensorResult):
            assert not decision.run_requests
            decision = decision.skip_reason or dg.SkipReason("")
        return str(decision.skip_message)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield House(tmp_path, instance)


def _failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = (e for e in result.all_events if e.is_step_failure)
    assert event.step_failure_data.user_failure_data is not None
    return event.step_failure_data.user_failure_data.description


def test_a_corrected_bar_replaces_the_old_one_and_both_can_be_seen_in_snapshots(house: House) -> None:
    assert house.run(FIRST, LAST).success
    before = house.warehouse.snapshot_id(BARS)
    (old,) = house.close("AAPL", LAST)
    earlier = dt.date(2012, 3, 27)
    house.vendor.closes = {("AAPL", LAST): old + 1, ("IBM", earlier): 1.0 + house.close("IBM", earlier)[0]}
    # What lies further back than the overlap is not asked for again.
    house.vendor.closes["MSFT", dt.date(2012, 1, 10)] = 99.0
    night = house.run(NIGHT, NIGHT)
    assert night.success
    assert house.vendor.asked[-1] == (dt.date(2012, 3, 26), NIGHT)
    assert house.close("AAPL", LAST) == [old + 1]
    assert house.close("AAPL", LAST, before) == [old]
    assert house.close("MSFT", dt.date(2012, 1, 10)) != [99.0]
    sessions = house.warehouse.read(BARS)["session"].to_pylist()
    assert len(sessions) == 3 * len(set(sessions)), "nothing was lost or doubled"
    # The correction is on the asset's page, and in a snapshot of its own.
    (shown,) = night.asset_materializations_for_node("market__bars")
    assert "AAPL" in str(shown.metadata["corrections"].value)
    summaries = [s["summary"] for s in house.warehouse.snapshots(BARS)]
    assert [s.get("quant.corrections") for s in summaries] == [None, "2", None]


def test_corrected_sessions_are_reported_so_that_features_follow_even_after_a_night(house: House) -> None:
    defs = build_defs({"source": house.vendor, "warehouse": house.warehouse})
    job = dg.define_asset_job("both", selection=dg.AssetSelection.groups("market", "features"))
    whole = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("both")
    tags = dict(zip(RANGE_TAGS, (str(FIRST), str(LAST)), strict=True))
    assert whole.execute_in_process(instance=house.instance, tags=tags, run_config=QUIET).success
    quiet = dg.evaluate_automation_conditions(defs, house.instance)
    assert quiet.total_requested == 0
    house.vendor.closes = {("AAPL", dt.date(2012, 3, 28)): 618.0}
    night = defs.resolve_job_def("daily_signals_job").get_subset(
        asset_selection={dg.AssetKey(["market", name]) for name in ("bars", "news")}
        | {dg.AssetKey(["features", name]) for name in ("technical", "sentiment", "labels")}
    )
    assert night.execute_in_process(
        instance=house.instance, partition_key=str(NIGHT), run_config=QUIET
    ).success
    after = dg.evaluate_automation_conditions(defs, house.instance, cursor=quiet.cursor)
    requested = set(after.get_requested_partitions(dg.AssetKey(["features", "technical"])))
    assert {"2012-03-28", "2012-03-30"} <= requested
    assert "2012-03-27" not in requested


def test_a_split_that_comes_later_leaves_old_prices_and_features_as_they_were(house: House) -> None:
    """Prices are stored as traded; only a corrected bar changes them, never an event of a later session."""
    from quant_assets.features.technical import technical_features
    from quant_assets.partitions import CALENDAR

    assert house.run(FIRST, LAST).success
    stored = house.warehouse.read(BARS)
    features = technical_features(stored, CALENDAR, dt.date(2012, 3, 1), LAST)
    rows = SampleSource(symbols=SYMBOLS, seed=1).bars(NIGHT, NIGHT).to_pylist()
    for row in rows:
        if row["symbol"] == "AAPL":
            row |= {name: row[name] / 7 for name in ("open", "high", "low", "close")}
            row |= {"split_factor": 7.0, "volume": row["volume"] * 7, "dividend": 0.1}
    honest = house.vendor.bars

    def with_split(first: dt.date, last: dt.date) -> pa.Table:
        earlier = honest(first, last)
        earlier = earlier.filter(pc.less(earlier["session"], pa.scalar(NIGHT)))
        return pa.concat_tables([earlier, pa.Table.from_pylist(rows, schema=earlier.schema)])

    house.vendor.bars = with_split  # type: ignore[method-assign]
    assert house.run(NIGHT, NIGHT).success
    now = house.warehouse.read(BARS)
    assert now.filter(pc.less(now["session"], pa.scalar(NIGHT))).equals(stored)
    assert technical_features(now, CALENDAR, dt.date(2012, 3, 1), LAST).equals(features)
    after = technical_features(now, CALENDAR, NIGHT, NIGHT).to_pylist()
    (apple,) = (row for row in after if row["symbol"] == "AAPL")
    assert abs(apple["log_return"]) < 0.1, "the split itself is no return"


def test_quota_used_up_in_the_middle_keeps_what_came_and_the_next_run_completes_it(house: House) -> None:
    house.vendor.used_up = {"MSFT"}
    part = house.run(FIRST, LAST)
    assert part.success
    sessions = house.warehouse.read(BARS)["session"].unique()
    assert set(house.warehouse.read(BARS)["symbol"].to_pylist()) == {"AAPL", "IBM"}
    rows = house.coverage()
    assert [rows[symbol, LAST]["status"] for symbol in SYMBOLS] == ["complete", "complete", "waiting"]
    assert rows["MSFT", LAST]["retry_at"] == TOMORROW
    (check,) = (c for c in part.get_asset_check_evaluations() if c.check_name == "every_symbol_came")
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    (shown,) = (
        m for m in part.asset_materializations_for_node("market__bars") if "symbols by status" in m.metadata
    )
    text = str(shown.metadata["symbols by status"].value)
    assert text.index("MSFT") < text.index("AAPL"), "what needs a look comes first"

    decision = house.tick()
    assert isinstance(decision, dg.SensorResult)
    (request,) = decision.run_requests or []
    assert request.job_name == "ingest_job"
    assert request.tags["dagster/asset_partition_range_start"] == str(FIRST)
    assert request.asset_selection == [dg.AssetKey(["market", "bars"])]
    house.vendor.used_up = set()
    assert house.run(FIRST, LAST).success
    assert house.warehouse.read(BARS).num_rows == 3 * len(sessions)
    assert {row["status"] for row in house.coverage().values()} == {"complete"}
    assert "no symbol waits" in house.why_not()


def test_symbols_that_wait_keep_the_rows_that_they_had(house: House) -> None:
    assert house.run(FIRST, LAST, "bars news").success
    before = {spec.name: house.warehouse.read(spec) for spec in (BARS, NEWS)}
    house.vendor.used_up = {"AAPL", "IBM", "MSFT"}
    assert house.run(FIRST, LAST, "bars news").success
    for spec in (BARS, NEWS):
        assert house.warehouse.read(spec).equals(before[spec.name])


def test_where_nothing_came_and_nothing_is_stored_the_run_says_so_and_is_due_tomorrow(house: House) -> None:
    house.vendor.used_up = set(SYMBOLS)
    result = house.run(NIGHT, NIGHT)
    assert not result.success
    assert "3 symbol(s) have to wait until 2012-04-03 04:00 UTC: 25 of 25 requests" in _failure(result)
    assert not house.warehouse.exists(BARS)
    decision = house.tick()
    assert isinstance(decision, dg.SensorResult)
    (request,) = decision.run_requests or []
    assert (request.job_name, request.partition_key) == ("daily_signals_job", str(NIGHT)), (
        "a session is a night"
    )


def test_a_late_session_fails_the_night_and_is_tried_again_every_half_hour(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert house.run(FIRST, LAST).success
    house.vendor.unpublished = {("IBM", NIGHT)}
    monkeypatch.setattr(arrivals, "LATE_FOR", dt.timedelta(days=365 * 100))
    result = house.run(NIGHT, NIGHT)
    assert not result.success
    assert "may not have published them yet" in _failure(result)
    assert house.coverage()["IBM", NIGHT]["status"] == "late"
    assert house.coverage()["IBM", NIGHT]["retry_at"] > dt.datetime.now(dt.UTC)
    assert f"3 symbol(s) of {NIGHT}:{NIGHT} wait until" in house.why_not()
    house.vendor.unpublished = set()
    assert house.run(NIGHT, NIGHT).success
    assert "no symbol waits" in house.why_not()
    assert ("IBM", NIGHT) in house.coverage()


def test_a_night_that_was_cut_short_is_completed_by_the_next_one(house: House) -> None:
    """The overlap brings the row that was missing, and reports its session as updated."""
    assert house.run(FIRST, LAST).success
    house.vendor.used_up = {"IBM"}
    assert house.run(NIGHT, NIGHT).success
    assert house.close("IBM", NIGHT) == []
    house.vendor.used_up = set()
    assert house.run(NEXT, NEXT).success
    assert len(house.close("IBM", NIGHT)) == len(house.close("IBM", NEXT)) == 1
    assert {row["status"] for row in house.coverage().values()} == {"complete"}


def test_a_vendor_that_is_down_is_tried_again_and_a_wrong_key_is_not(house: House) -> None:
    house.vendor.down = True
    arrival = Arrival(dg.build_asset_context(), house.vendor, house.warehouse, "bars", BARS, NIGHT, NIGHT)
    with pytest.raises(dg.Failure, match="did not come after 6 attempts") as passing:
        arrival.fetch(house.vendor.bars, NIGHT, NIGHT)
    assert passing.value.allow_retries

    def refused(first: dt.date, last: dt.date) -> pa.Table:
        raise SourceError("vendor: the key is not known")

    with pytest.raises(dg.Failure, match="the key is not known") as final:
        arrival.fetch(refused, NIGHT, NIGHT)
    assert not final.value.allow_retries


def test_sentiment_of_symbols_whose_news_wait_is_made_when_they_have_come(house: House) -> None:
    """No news yet is not the same as none: a zero would be a lie, and the proof of the features says the same."""
    from quant_assets.features.tables import PEERS as PEER_FEATURES
    from quant_assets.features.tables import SENTIMENT, TECHNICAL

    defs = build_defs({"source": house.vendor, "warehouse": house.warehouse})
    job = dg.define_asset_job(
        "both", selection=dg.AssetSelection.groups("market") | dg.AssetSelection.groups("features")
    )
    whole = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("both")
    tags = dict(zip(RANGE_TAGS, (str(FIRST), str(LAST)), strict=True))
    assert whole.execute_in_process(instance=house.instance, tags=tags, run_config=QUIET).success
    honest = house.vendor.bars
    house.vendor.bars = lambda first, last: SampleSource(SYMBOLS, 1).bars(first, last)  # type: ignore[method-assign]
    house.vendor.used_up = {"MSFT"}
    night = whole.execute_in_process(instance=house.instance, partition_key=str(NIGHT), run_config=QUIET)
    assert all(c.passed for c in night.get_asset_check_evaluations() if c.check_name == "no_look_ahead")

    def symbols(spec: TableSpec) -> set[str]:
        return set(house.warehouse.read(spec, NIGHT, NIGHT)["symbol"].to_pylist())

    assert symbols(TECHNICAL) == set(SYMBOLS)
    assert symbols(SENTIMENT) == {"AAPL", "IBM"}
    assert symbols(PEER_FEATURES) == {"MSFT"}, (
        "the others have it as a competitor, it does not wait for itself"
    )
    house.vendor.used_up, house.vendor.bars = set(), honest  # type: ignore[method-assign]
    assert whole.execute_in_process(
        instance=house.instance, partition_key=str(NIGHT), run_config=QUIET
    ).success
    assert symbols(SENTIMENT) == symbols(PEER_FEATURES) == set(SYMBOLS)


def _down(house: House, first: dt.date, last: dt.date) -> None:
    """A run on a vendor that cannot be reached; the retries of the policy are left out."""
    house.vendor.down = True
    arrival = Arrival(dg.build_asset_context(), house.vendor, house.warehouse, "bars", BARS, first, last)
    with pytest.raises(dg.Failure):
        arrival.fetch(house.vendor.bars, first, last)
    house.vendor.down = False


def test_a_night_without_the_vendor_is_due_again_and_the_next_night_fills_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANT_SYMBOLS", ",".join(SYMBOLS))
    settings.cache_clear()
    try:
        assert house.run(FIRST, LAST).success
        _down(house, NIGHT, NIGHT)
        assert {row["status"] for (_, last), row in house.coverage().items() if last == NIGHT} == {"waiting"}
        assert "wait until" in house.why_not()
        assert house.run(NEXT, NEXT).success
        assert all(len(house.close(symbol, NIGHT)) == 1 for symbol in SYMBOLS), "the overlap brought it"
        assert "no symbol waits" in house.why_not()
    finally:
        settings.cache_clear()


def test_a_session_that_comes_under_later_ones_makes_their_features_again(house: House) -> None:
    defs = build_defs({"source": house.vendor, "warehouse": house.warehouse})
    job = dg.define_asset_job("both", selection=dg.AssetSelection.groups("market", "features"))
    whole = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("both")
    tags = dict(zip(RANGE_TAGS, (str(FIRST), str(LAST)), strict=True))
    assert whole.execute_in_process(instance=house.instance, tags=tags, run_config=QUIET).success
    night = defs.resolve_job_def("daily_signals_job").get_subset(
        asset_selection={dg.AssetKey(["market", "bars"]), dg.AssetKey(["features", "technical"])}
    )
    house.vendor.overlap_sessions = 0

    def run(session: dt.date) -> None:
        assert night.execute_in_process(
            instance=house.instance, partition_key=str(session), run_config=QUIET
        ).success

    run(NEXT)
    before = dg.evaluate_automation_conditions(defs, house.instance)
    run(NIGHT)
    after = dg.evaluate_automation_conditions(defs, house.instance, cursor=before.cursor)
    assert str(NEXT) in after.get_requested_partitions(dg.AssetKey(["features", "technical"]))


def test_the_sensor_tries_again_what_a_run_did_not_bring_about_each_time_later(house: House) -> None:
    house.vendor.used_up = set(SYMBOLS)
    assert not house.run(NIGHT, NIGHT).success
    first = house.tick()
    assert isinstance(first, dg.SensorResult)
    (one,) = first.run_requests or []
    waits = house.tick(first.cursor)
    assert isinstance(waits, dg.SensorResult)
    assert not waits.run_requests
    assert "attempt 1 brought nothing about, again in" in str(waits.skip_reason)
    # An hour later, in the sensor's memory.
    earlier = first.cursor.replace('"at": ', '"at": -')  # type: ignore[union-attr]
    second = house.tick(earlier)
    assert isinstance(second, dg.SensorResult)
    (two,) = second.run_requests or []
    assert one.run_key != two.run_key, "a run key that was used would launch nothing"
    assert one.partition_key == two.partition_key == str(NIGHT)


def test_coverage_says_complete_only_once_the_rows_are_committed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Warehouse, spec: TableSpec, *given: object, **more: object) -> object:
        if spec.name == BARS.name:
            raise OSError(28, "No space left on device")
        return honest(self, spec, *given, **more)

    honest = Warehouse.write
    monkeypatch.setattr(Warehouse, "write", full)
    assert not house.run(FIRST, LAST).success
    assert not house.warehouse.exists(COVERAGE)
    monkeypatch.setattr(Warehouse, "write", honest)
    assert house.run(FIRST, LAST).success
    assert {row["status"] for row in house.coverage().values()} == {"complete"}


def test_a_symbol_that_was_taken_out_is_expected_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert house.run(FIRST, LAST).success
    house.vendor.symbols = ("AAPL", "MSFT")
    assert not house.run(NIGHT, NIGHT).success, "it traded until yesterday"
    monkeypatch.setenv("QUANT_SYMBOLS", "AAPL,MSFT")
    settings.cache_clear()
    try:
        assert house.run(NIGHT, NIGHT).success
    finally:
        settings.cache_clear()


def test_overviews_that_wait_are_asked_for_again(house: House) -> None:
    honest = house.vendor.securities
    rows = honest()
    waiting = [Waiting("MSFT", "25 of 25 requests of today are used", TOMORROW)]

    def part() -> pa.Table:
        raise SourceIncomplete(rows, waiting)

    house.vendor.securities = part  # type: ignore[method-assign]
    resources = {
        "source": house.vendor,
        "warehouse": house.warehouse,
        "io_manager": IcebergIOManager(house.warehouse, table_specs()),
    }
    assert dg.materialize([assets.securities], instance=house.instance, resources=resources).success
    decision = house.tick()
    assert isinstance(decision, dg.SensorResult)
    (request,) = decision.run_requests or []
    assert request.job_name == "securities_job"
    house.vendor.securities = honest  # type: ignore[method-assign]
    assert dg.materialize([assets.securities], instance=house.instance, resources=resources).success
    assert "no symbol waits" in house.why_not()


@pytest.mark.parametrize(("name", "minutes"), [("alpaca", 30), ("alpha_vantage", 180)])
def test_only_a_vendor_that_counts_by_the_day_is_asked_less_often(
    house: House, monkeypatch: pytest.MonkeyPatch, name: str, minutes: int
) -> None:
    monkeypatch.setattr(arrivals, "LATE_FOR", dt.timedelta(days=365 * 100))
    house.vendor.name = name
    house.vendor.unpublished = {("IBM", NIGHT)}
    assert house.run(FIRST, LAST).success
    before = dt.datetime.now(dt.UTC)
    assert not house.run(NIGHT, NIGHT).success
    again = house.coverage()["IBM", NIGHT]["retry_at"] - before
    assert dt.timedelta(minutes=minutes) <= again < dt.timedelta(minutes=minutes + 5)
