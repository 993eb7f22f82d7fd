"""The warehouse: slices replaced in one commit, also by many processes, through kills and on a full disk.

Tests that need a process of their own run this very file as a script (see `_child` at the end).
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant_resources.iceberg import Column, TableSpec, Warehouse, WarehouseError, WriteResult

ROOT = Path(__file__).resolve().parents[2]

PRICES = TableSpec(
    name="test.prices",
    columns=(
        Column("symbol", "string", "Ticker.", required=True),
        Column("session", "date", "Exchange date.", required=True),
        Column("close", "double", "Close, dollars."),
    ),
    key=("symbol", "session"),
    slice_column="session",
    partition_by="year",
    description="One row per symbol and session.",
)
Key = tuple[str, dt.date]


def day(text: str) -> dt.date:
    return dt.date.fromisoformat(text)


def prices(values: dict[tuple[str, str | dt.date], float | None]) -> pa.Table:
    """Rows from {(symbol, session): close}."""
    return pa.table(
        {
            "symbol": pa.array([symbol for symbol, _ in values], pa.string()),
            "session": pa.array([day(s) if isinstance(s, str) else s for _, s in values], pa.date32()),
            "close": pa.array(list(values.values()), pa.float64()),
        }
    )


def stored(
    warehouse: Warehouse, spec: TableSpec = PRICES, **options: object
) -> dict[tuple[str, str], object]:
    """{(symbol, session): close} of the table; fails on a doubled row."""
    rows = warehouse.read(spec, **options).to_pylist()  # type: ignore[arg-type]
    result = {(row["symbol"], str(row["session"])): row["close"] for row in rows}
    assert len(result) == len(rows), "a row is doubled"
    return result


def put(
    warehouse: Warehouse, session: str, *closes: float, spec: TableSpec = PRICES, **properties: str
) -> WriteResult:
    """Replace one session's slice by rows of the symbols A, B, ..."""
    rows = prices({(chr(ord("A") + i), session): close for i, close in enumerate(closes)})
    return warehouse.write(spec, rows, day(session), day(session), properties)


def data_files(warehouse: Warehouse, spec: TableSpec = PRICES) -> int:
    """Data files of the current snapshot."""
    return len(list(warehouse.table(spec).scan().plan_files()))


def files_on_disk(warehouse: Warehouse, pattern: str = "*") -> list[Path]:
    return [path for path in (warehouse.home / "warehouse").rglob(pattern) if path.is_file()]


# -- round trip --------------------------------------------------------------------------------------------------------


def test_every_type_survives_a_round_trip(warehouse: Warehouse) -> None:
    spec = TableSpec(
        "test.types",
        (
            Column("name", "string", ""),
            Column("day", "date", "", required=True),
            Column("at", "timestamptz", ""),
            Column("x", "double", ""),
            Column("many", "long", ""),
            Column("few", "int", ""),
            Column("yes", "boolean", ""),
        ),
        key=("day",),
        slice_column="day",
    )
    rows = pa.table(
        [
            ["Zürich | „quoted“", None, ""],
            [day("1969-12-31"), day("2012-02-29"), day("2099-12-31")],
            [
                dt.datetime(2012, 2, 29, 21, 0, 0, 123456, dt.UTC),
                None,
                dt.datetime(1969, 1, 1, tzinfo=dt.UTC),
            ],
            [0.1 + 0.2, None, float("inf")],
            [2**62, None, -1],
            [2**31 - 1, None, -1],
            [True, None, False],
        ],
        schema=spec.arrow_schema,
    )
    warehouse.write(spec, rows)
    assert warehouse.read(spec) == rows
    # Another process sees the same: nothing hangs on this object.
    assert Warehouse(warehouse.home).read(spec).schema == spec.arrow_schema
    assert Warehouse(warehouse.home).read(spec) == rows


def test_rows_come_back_sorted_by_key_whatever_their_order_and_that_of_the_columns(
    warehouse: Warehouse,
) -> None:
    rows = prices({("B", "2012-01-04"): 4.0, ("A", "2012-01-04"): 2.0, ("B", "2012-01-03"): 3.0})
    warehouse.write(PRICES, rows.select(["close", "session", "symbol"]), day("2012-01-03"), day("2012-01-04"))
    read = warehouse.read(PRICES)
    assert read.column_names == ["symbol", "session", "close"]
    assert read["close"].to_pylist() == [2.0, 3.0, 4.0]


def test_a_table_that_does_not_exist_yet_is_empty(warehouse: Warehouse) -> None:
    assert warehouse.read(PRICES) == PRICES.arrow_schema.empty_table()
    assert warehouse.read(PRICES, columns=["close"]).schema.names == ["close"]
    assert not warehouse.exists(PRICES)
    assert warehouse.snapshot_id(PRICES) is None
    assert warehouse.snapshots(PRICES) == []
    assert warehouse.table_names() == []


def test_a_range_is_read_with_both_ends_or_open_ones(warehouse: Warehouse) -> None:
    sessions = ["2011-12-30", "2012-01-03", "2012-01-04", "2013-01-02"]
    warehouse.write(PRICES, prices({("A", s): float(i) for i, s in enumerate(sessions)}))

    def closes(first: str | None, last: str | None) -> list[float]:
        bounds = [None if bound is None else day(bound) for bound in (first, last)]
        return warehouse.read(PRICES, *bounds, columns=["close"])["close"].to_pylist()

    assert closes("2012-01-03", "2012-01-04") == [1.0, 2.0]
    assert closes(None, "2012-01-03") == [0.0, 1.0]
    assert closes("2012-01-04", None) == [2.0, 3.0]
    assert closes("2012-02-01", "2012-03-01") == []


# -- slices ------------------------------------------------------------------------------------------------------------


def test_the_same_write_twice_leaves_identical_rows_and_exactly_one_more_snapshot(
    warehouse: Warehouse,
) -> None:
    put(warehouse, "2012-01-03", 1.0, 2.0)
    first = put(warehouse, "2012-01-04", 3.0, 4.0)
    rows, snapshots = warehouse.read(PRICES), warehouse.snapshots(PRICES)
    second = put(warehouse, "2012-01-04", 3.0, 4.0)
    assert warehouse.read(PRICES) == rows
    assert warehouse.snapshots(PRICES)[: len(snapshots)] == snapshots
    assert len(warehouse.snapshots(PRICES)) == len(snapshots) + 1
    assert second.snapshot_id != first.snapshot_id
    assert second.snapshot_id == warehouse.snapshot_id(PRICES)
    assert (second.rows_written, second.rows_total, second.attempts) == (2, 4, 1)


@pytest.mark.parametrize("partition_by", ["year", "month", "symbol", None])
def test_a_slice_replaces_its_own_rows_only(warehouse: Warehouse, partition_by: str | None) -> None:
    spec = replace(PRICES, partition_by=partition_by)
    before = {(s, d): 1.0 for s in "AB" for d in ("2011-12-30", "2012-01-03", "2012-01-04", "2012-02-01")}
    warehouse.write(spec, prices(before))
    # Fewer symbols than before: B's row of that session goes.
    result = put(warehouse, "2012-01-03", 9.0, spec=spec)
    expected = {k: v for k, v in before.items() if k[1] != "2012-01-03"} | {("A", "2012-01-03"): 9.0}
    assert stored(warehouse, spec) == expected
    assert (result.rows_written, result.rows_total) == (1, 7)


def test_a_range_of_sessions_is_one_commit(warehouse: Warehouse) -> None:
    put(warehouse, "2011-06-01", 0.5)
    sessions = ["2011-12-30", "2012-01-03", "2012-06-01", "2013-01-02"]
    rows = prices({(s, d): 1.0 for s in "AB" for d in sessions})
    warehouse.write(PRICES, rows, day("2011-12-01"), day("2013-01-31"))
    assert len(warehouse.snapshots(PRICES)) == 2
    assert len(stored(warehouse)) == 9
    assert data_files(warehouse) == 3


def test_an_empty_slice_deletes_its_rows(warehouse: Warehouse) -> None:
    for session in ("2012-01-03", "2012-01-04", "2013-01-02"):
        put(warehouse, session, 1.0)
    empty = PRICES.arrow_schema.empty_table()
    warehouse.write(PRICES, empty, day("2012-01-04"), day("2012-01-04"))
    assert set(stored(warehouse)) == {("A", "2012-01-03"), ("A", "2013-01-02")}
    # The last row of a year takes the year's file along.
    result = warehouse.write(PRICES, empty, day("2013-01-01"), day("2013-12-31"))
    assert set(stored(warehouse)) == {("A", "2012-01-03")}
    assert data_files(warehouse) == 1
    assert (result.rows_written, result.rows_total) == (0, 1)
    assert len(warehouse.snapshots(PRICES)) == 5


def test_an_empty_slice_of_an_empty_table_is_a_snapshot_without_rows(warehouse: Warehouse) -> None:
    warehouse.write(PRICES, PRICES.arrow_schema.empty_table(), day("2012-01-03"), day("2012-01-03"))
    assert warehouse.read(PRICES).num_rows == 0
    assert len(warehouse.snapshots(PRICES)) == 1


def test_a_write_without_bounds_replaces_the_whole_table(warehouse: Warehouse) -> None:
    for session in ("2011-12-30", "2012-01-03"):
        put(warehouse, session, 1.0, 2.0)
    warehouse.write(PRICES, prices({("Z", "2013-01-02"): 5.0}))
    assert stored(warehouse) == {("Z", "2013-01-02"): 5.0}
    assert data_files(warehouse) == 1


@pytest.mark.parametrize("bounds", [("2012-06-01", None), (None, "2012-06-01")])
def test_a_slice_that_is_open_at_one_end_touches_nothing_outside_it(
    warehouse: Warehouse, bounds: tuple[str | None, str | None]
) -> None:
    # All in one year, hence in one data file.
    warehouse.write(PRICES, prices({("A", f"2012-{m}-01"): 1.0 for m in ("05", "06", "08")}))
    first, last = (None if b is None else day(b) for b in bounds)
    try:
        warehouse.write(PRICES, prices({("A", "2012-06-01"): 9.0}), first, last)
    except WarehouseError:
        return  # refusing such a slice is right as well
    outside = "2012-05-01" if first else "2012-08-01"
    assert stored(warehouse) == {("A", "2012-06-01"): 9.0, ("A", outside): 1.0}


NIGHTS = [dt.date(2011, 12, 26) + dt.timedelta(days=i) for i in range(0, 42, 3)]


@pytest.mark.parametrize(
    ("partition_by", "partitions"),
    [
        ("year", len({d.year for d in NIGHTS})),
        ("month", len({(d.year, d.month) for d in NIGHTS})),
        ("symbol", 2),
        (None, 1),
    ],
)
def test_many_nights_leave_one_data_file_per_table_partition(
    warehouse: Warehouse, partition_by: str | None, partitions: int
) -> None:
    spec = replace(PRICES, partition_by=partition_by)
    for i, session in enumerate(NIGHTS):
        put(warehouse, str(session), float(i), -float(i), spec=spec)
    put(warehouse, str(NIGHTS[3]), 99.0, 98.0, spec=spec)  # a re-run of an earlier night
    assert len(stored(warehouse, spec)) == 2 * len(NIGHTS)
    assert data_files(warehouse, spec) == partitions


def test_data_files_are_sorted_by_key(warehouse: Warehouse) -> None:
    import pyarrow.parquet as pq

    for session in ("2012-01-05", "2012-01-03", "2012-01-04"):
        put(warehouse, session, 1.0, 2.0, 3.0)
    (task,) = warehouse.table(PRICES).scan().plan_files()
    file = pq.read_table(task.file.file_path.removeprefix("file://"), partitioning=None)
    keys = list(zip(file["symbol"].to_pylist(), file["session"].to_pylist(), strict=True))
    assert len(keys) == 9
    assert keys == sorted(keys)


SESSIONS = [
    day(s)
    for s in (
        "2011-12-29",
        "2011-12-30",
        "2012-01-03",
        "2012-01-31",
        "2012-02-01",
        "2012-02-02",
        "2013-01-02",
    )
]


@st.composite
def slice_writes(draw: st.DrawFn) -> tuple[dt.date | None, dt.date | None, dict[Key, float]]:
    """A slice (or the whole table) and its rows: any of three symbols on any of its sessions, or none at all."""
    low = draw(st.integers(0, len(SESSIONS) - 1))
    high = draw(st.integers(low, len(SESSIONS) - 1))
    whole = draw(st.integers(0, 9)) == 0
    inside = SESSIONS if whole else SESSIONS[low : high + 1]
    keys = st.tuples(st.sampled_from("ABC"), st.sampled_from(inside))
    rows = draw(st.dictionaries(keys, st.integers(0, 999).map(float), max_size=8))
    return (None, None, rows) if whole else (SESSIONS[low], SESSIONS[high], rows)


_TABLE_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def shared_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """One home for all examples of the property test: each takes a table of its own."""
    return Warehouse(tmp_path_factory.mktemp("property"))


@given(
    partition_by=st.sampled_from(["year", "month", "symbol", None]),
    writes=st.lists(slice_writes(), min_size=2, max_size=5),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_sequence_of_writes_does_what_it_does_to_a_dictionary(
    shared_warehouse: Warehouse,
    partition_by: str | None,
    writes: list[tuple[dt.date | None, dt.date | None, dict[Key, float]]],
) -> None:
    spec = replace(PRICES, name=f"test.property_{next(_TABLE_NUMBERS)}", partition_by=partition_by)
    model: dict[Key, float] = {}
    for first, last, rows in writes:
        result = shared_warehouse.write(spec, prices(rows), first, last)
        kept = {k: v for k, v in model.items() if first and last and not first <= k[1] <= last}
        model = kept | rows
        assert (result.rows_written, result.rows_total) == (len(rows), len(model))
    expected = prices(dict(sorted(model.items()))).cast(spec.arrow_schema)
    assert shared_warehouse.read(spec) == expected
    first, last = SESSIONS[1], SESSIONS[3]
    part = prices({k: v for k, v in sorted(model.items()) if first <= k[1] <= last}).cast(spec.arrow_schema)
    assert shared_warehouse.read(spec, first, last) == part
    assert len(shared_warehouse.snapshots(spec)) == len(writes)


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_snapshot_properties_are_recorded(warehouse: Warehouse) -> None:
    put(warehouse, "2012-01-03", 1.0, **{"quant.run_id": "r1", "quant.partition": "2012-01-03"})
    put(warehouse, "2012-01-04", 1.0, **{"quant.run_id": "r2"})
    first, second = (snapshot["summary"] for snapshot in warehouse.snapshots(PRICES))
    assert (first["quant.run_id"], first["quant.partition"]) == ("r1", "2012-01-03")
    assert second["quant.run_id"] == "r2"
    assert "quant.partition" not in second
    assert second["total-records"] == "2"


def test_an_old_snapshot_shows_the_old_rows(warehouse: Warehouse) -> None:
    old = put(warehouse, "2012-01-03", 1.0)
    put(warehouse, "2012-01-03", 2.0)
    put(warehouse, "2012-01-04", 3.0)
    assert stored(warehouse, snapshot_id=old.snapshot_id) == {("A", "2012-01-03"): 1.0}
    assert stored(warehouse) == {("A", "2012-01-03"): 2.0, ("A", "2012-01-04"): 3.0}


def test_a_snapshot_that_does_not_exist_is_named(warehouse: Warehouse) -> None:
    # A model's lineage names snapshots that maintenance may have expired since.
    put(warehouse, "2012-01-03", 1.0)
    with pytest.raises(WarehouseError, match=r"test\.prices.*12345"):
        warehouse.read(PRICES, snapshot_id=12345)


# -- schema ------------------------------------------------------------------------------------------------------------

VOLUME = Column("volume", "long", "Shares.")
WITH_VOLUME = replace(PRICES, columns=(*PRICES.columns, VOLUME))


def with_volume(rows: pa.Table, volume: int) -> pa.Table:
    return rows.append_column("volume", pa.array([volume] * rows.num_rows, pa.int64()))


def test_a_column_added_to_the_specification_is_null_in_old_rows(warehouse: Warehouse) -> None:
    put(warehouse, "2012-01-03", 1.0)
    assert warehouse.read(WITH_VOLUME)["volume"].to_pylist() == [None]
    assert warehouse.read(WITH_VOLUME).schema == WITH_VOLUME.arrow_schema
    rows = with_volume(prices({("A", "2012-01-04"): 2.0}), 7)
    warehouse.write(WITH_VOLUME, rows, day("2012-01-04"), day("2012-01-04"))
    assert warehouse.read(WITH_VOLUME).to_pydict() == {
        "symbol": ["A", "A"],
        "session": [day("2012-01-03"), day("2012-01-04")],
        "close": [1.0, 2.0],
        "volume": [None, 7],
    }


def test_a_snapshot_from_before_a_column_was_added_reads_null_there(warehouse: Warehouse) -> None:
    old = put(warehouse, "2012-01-03", 1.0)
    rows = with_volume(prices({("A", "2012-01-03"): 2.0}), 7)
    warehouse.write(WITH_VOLUME, rows, day("2012-01-03"), day("2012-01-03"))
    read = warehouse.read(WITH_VOLUME, snapshot_id=old.snapshot_id)
    assert read.select(["close", "volume"]).to_pylist() == [{"close": 1.0, "volume": None}]


def test_code_that_does_not_know_a_column_yet_does_not_wipe_it_in_rows_of_other_slices(
    warehouse: Warehouse,
) -> None:
    # A rollback of the code, or a backfill started before the deployment, in the same year.
    rows = with_volume(prices({("A", "2012-01-03"): 1.0}), 7)
    warehouse.write(WITH_VOLUME, rows, day("2012-01-03"), day("2012-01-03"))
    try:
        put(warehouse, "2012-01-04", 2.0)
    except WarehouseError as error:
        assert "volume" in str(error)  # noqa: PT017  # refusing is right as well
    assert warehouse.read(WITH_VOLUME, last=day("2012-01-03"))["volume"].to_pylist() == [7]


def test_a_required_column_that_old_rows_lack_reads_null_or_is_named(warehouse: Warehouse) -> None:
    put(warehouse, "2012-01-03", 1.0)
    spec = replace(PRICES, columns=(*PRICES.columns, replace(VOLUME, required=True)))
    try:
        volume = warehouse.read(spec)["volume"].to_pylist()
    except WarehouseError as error:
        assert "test.prices" in str(error)  # noqa: PT017
        assert "volume" in str(error)  # noqa: PT017
    else:
        assert volume == [None]


def test_a_specification_that_contradicts_the_stored_type_is_refused(warehouse: Warehouse) -> None:
    before = put(warehouse, "2012-01-03", 1.0)
    text = replace(PRICES, columns=(*PRICES.columns[:2], Column("close", "string", "Now text.")))
    rows = pa.table({"symbol": ["A"], "session": [day("2012-01-04")], "close": ["dear"]})
    with pytest.raises(WarehouseError, match=r"test\.prices.*close"):
        warehouse.write(text, rows, day("2012-01-04"), day("2012-01-04"))
    assert warehouse.snapshot_id(PRICES) == before.snapshot_id
    assert stored(warehouse) == {("A", "2012-01-03"): 1.0}


BAD_ROWS: dict[str, tuple[pa.Table, str]] = {
    "missing column": (prices({("A", "2012-01-04"): 1.0}).drop_columns(["close"]), "close"),
    "unknown column": (with_volume(prices({("A", "2012-01-04"): 1.0}), 1), "volume"),
    "null in a required column": (
        pa.table({"symbol": pa.array([None], pa.string()), "session": [day("2012-01-04")], "close": [1.0]}),
        "symbol",
    ),
    "text for a number": (
        pa.table({"symbol": ["A"], "session": [day("2012-01-04")], "close": ["dear"]}),
        "close",
    ),
    "text for a date": (pa.table({"symbol": ["A"], "session": ["soon"], "close": [1.0]}), "session"),
    "a type that cannot be cast": (
        pa.table({"symbol": ["A"], "session": [day("2012-01-04")], "close": [[1.0, 2.0]]}),
        "close",
    ),
    "duplicate keys": (
        pa.concat_tables([prices({("A", "2012-01-04"): 1.0}), prices({("A", "2012-01-04"): 2.0})]),
        "'symbol', 'session'",
    ),
    "rows before the slice": (
        prices({("A", "2012-01-03"): 9.0, ("A", "2012-01-04"): 1.0}),
        "2012-01-04..2012-01-04",
    ),
    "rows after the slice": (prices({("A", "2012-01-05"): 9.0}), "2012-01-04..2012-01-04"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused_by_table_and_column_and_the_table_stays_as_it_was(
    warehouse: Warehouse, case: str
) -> None:
    for session in ("2012-01-03", "2012-01-04", "2012-01-05"):
        put(warehouse, session, 1.0, 2.0)
    snapshot, rows = warehouse.snapshot_id(PRICES), warehouse.read(PRICES)
    data, named = BAD_ROWS[case]
    with pytest.raises(WarehouseError) as caught:
        warehouse.write(PRICES, data, day("2012-01-04"), day("2012-01-04"))
    assert "table test.prices" in str(caught.value)
    assert named in str(caught.value)
    assert warehouse.snapshot_id(PRICES) == snapshot
    assert warehouse.read(PRICES) == rows


def test_a_cast_that_would_lose_something_is_refused(warehouse: Warehouse) -> None:
    rows = with_volume(prices({("A", "2012-01-04"): 1.0}), 1)
    rows = rows.set_column(3, "volume", pa.array([1.5]))
    with pytest.raises(WarehouseError, match=r"table test\.prices"):
        warehouse.write(WITH_VOLUME, rows, day("2012-01-04"), day("2012-01-04"))
    assert warehouse.read(WITH_VOLUME).num_rows == 0


def test_a_table_without_slice_column_is_replaced_whole_and_takes_no_slice(warehouse: Warehouse) -> None:
    spec = TableSpec(
        "test.securities", (Column("symbol", "string", "", True), Column("name", "string", "")), ("symbol",)
    )
    warehouse.write(spec, pa.table({"symbol": ["A", "B"], "name": ["Ay", "Bee"]}))
    warehouse.write(spec, pa.table({"symbol": ["B"], "name": ["Be"]}))
    assert warehouse.read(spec).to_pylist() == [{"symbol": "B", "name": "Be"}]
    for attempt in (
        lambda: warehouse.write(spec, pa.table({"symbol": ["C"], "name": [""]}), SESSIONS[0], SESSIONS[0]),
        lambda: warehouse.write(spec, spec.arrow_schema.empty_table(), SESSIONS[0], SESSIONS[0]),
        lambda: warehouse.read(spec, first=SESSIONS[0]),
    ):
        with pytest.raises(WarehouseError, match=r"test\.securities has no slice_column"):
            attempt()
    assert warehouse.read(spec).num_rows == 1


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my home", "50% off", "a#b", "Zürich"])
def test_everything_lies_under_home_whatever_its_name(tmp_path: Path, name: str) -> None:
    warehouse = Warehouse(tmp_path / "somewhere" / name)
    put(warehouse, "2012-01-03", 1.0)
    put(warehouse, "2012-01-03", 2.0)
    assert [path.name for path in (tmp_path / "somewhere").iterdir()] == [name]
    assert len(files_on_disk(warehouse, "*.parquet")) == 2
    # Maintenance finds the files there, too.
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)
    assert warehouse.maintain("test.prices", dt.timedelta(days=7), later)["expired_snapshots"] == 1
    assert len(files_on_disk(warehouse, "*.parquet")) == 1
    assert stored(Warehouse(warehouse.home)) == {("A", "2012-01-03"): 2.0}


def test_a_home_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WarehouseError, match=r"file/home/warehouse cannot be created.*QUANT_HOME"):
        put(Warehouse(tmp_path / "file" / "home"), "2012-01-03", 1.0)


# -- many writers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start this file as a process of its own: `start("write", home, ...)`; none outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    """What the child printed, once it has ended well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_processes_that_write_sessions_of_one_year_at_once_lose_and_double_nothing(
    warehouse: Warehouse, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    put(warehouse, "2012-01-03", 0.5, 0.5)
    # Each plans its first commit on the same snapshot and waits there for the others: all but one must lose.
    children = [start("write", warehouse.home, tmp_path, i, 3, f"2012-03-0{i + 1}") for i in range(3)]
    results = [finish(child) for child in children]
    expected = {(s, "2012-01-03"): 0.5 for s in "AB"}
    for i in range(3):
        expected |= {(s, f"2012-03-0{i + 1}"): float(i) for s in "AB"}
    assert stored(warehouse) == expected
    assert sorted(result["attempts"] for result in results)[1] > 1, "the writers never met"
    assert len(warehouse.snapshots(PRICES)) == 4
    assert data_files(warehouse) == 1


@pytest.mark.parametrize("before", ["2012-03-01", "2011-03-01"], ids=["slice has rows", "slice is new"])
def test_processes_that_write_the_same_slice_at_once_leave_the_rows_of_one_of_them(
    warehouse: Warehouse, tmp_path: Path, start: Callable[..., subprocess.Popen[str]], before: str
) -> None:
    # In a new slice neither deletes a file, so nothing but the snapshot tells the second that it came second:
    # replaying its commit would double every row.
    put(warehouse, before, 0.5, 0.5, 0.5)
    children = [start("write", warehouse.home, tmp_path, i, 2, "2012-03-01") for i in range(2)]
    results = [finish(child) for child in children]
    closes = stored(warehouse, first=day("2012-03-01"))
    assert set(closes) == {("A", "2012-03-01"), ("B", "2012-03-01")}
    assert len(set(closes.values())) == 1, "rows of both writers are mixed"
    # The one that had to plan again came last, and its rows stay.
    last = max(range(2), key=lambda i: results[i]["attempts"])
    assert set(closes.values()) == {float(last)}
    assert sorted(result["attempts"] for result in results) == [1, 2]


def test_processes_that_open_a_fresh_home_at_once_all_succeed(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    # Both see that the table's namespace does not exist before either creates it.
    home = tmp_path / "home"
    children = [start("first-write", home, tmp_path, i, 2, f"2012-03-0{i + 1}") for i in range(2)]
    for child in children:
        finish(child)
    assert set(stored(Warehouse(home))) == {(s, f"2012-03-0{i}") for s in "AB" for i in (1, 2)}


def test_threads_that_share_a_warehouse_lose_nothing(warehouse: Warehouse) -> None:
    sessions = [f"2012-03-0{i}" for i in range(1, 7)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda session: put(warehouse, session, 1.0, 2.0), sessions))
    assert set(stored(warehouse)) == {(s, session) for s in "AB" for session in sessions}


def test_a_writer_killed_before_its_commit_leaves_the_table_as_it_was(
    warehouse: Warehouse, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    put(warehouse, "2012-03-01", 1.0, 2.0)
    snapshot, rows = warehouse.snapshot_id(PRICES), warehouse.read(PRICES)
    child = start("hang-before-commit", warehouse.home, tmp_path / "reached")
    wait_for(tmp_path / "reached", child)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    # It had written its data file: that is the moment which this test is about.
    assert len(files_on_disk(warehouse, "*.parquet")) == 2
    assert Warehouse(warehouse.home).snapshot_id(PRICES) == snapshot
    assert Warehouse(warehouse.home).read(PRICES) == rows
    # A retry succeeds, and maintenance later takes the orphan away.
    put(warehouse, "2012-03-02", 7.0, 8.0)
    assert len(stored(warehouse)) == 4
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)
    warehouse.maintain("test.prices", dt.timedelta(days=7), later)
    assert len(files_on_disk(warehouse, "*.parquet")) == 1
    assert len(stored(warehouse)) == 4


@pytest.mark.parametrize("full_at", ["data file", "metadata", "catalog"])
def test_a_full_disk_is_told_and_leaves_the_table_as_it_was(
    warehouse: Warehouse, start: Callable[..., subprocess.Popen[str]], full_at: str
) -> None:
    put(warehouse, "2012-03-01", 1.0, 2.0)
    snapshot, rows = warehouse.snapshot_id(PRICES), warehouse.read(PRICES)
    result = finish(start("full-disk", warehouse.home, full_at))
    assert result["error"] == "WarehouseError", result["message"]
    assert "test.prices" in result["message"]
    assert str(warehouse.home) in result["message"]
    assert "The table is as it was" in result["message"]
    assert Warehouse(warehouse.home).snapshot_id(PRICES) == snapshot
    assert Warehouse(warehouse.home).read(PRICES) == rows
    put(warehouse, "2012-03-02", 7.0)  # with space again
    assert len(stored(warehouse)) == 3


def test_a_disk_that_is_full_from_the_start_is_told(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    home = tmp_path / "home"
    result = finish(start("full-disk", home, "start"))
    assert result["error"] == "WarehouseError", result["message"]
    assert str(home) in result["message"]
    put(Warehouse(home), "2012-03-02", 7.0)
    assert stored(Warehouse(home)) == {("A", "2012-03-02"): 7.0}


# -- maintenance -------------------------------------------------------------------------------------------------------

WEEK = dt.timedelta(days=7)


def test_maintenance_expires_old_snapshots_and_frees_their_files(warehouse: Warehouse) -> None:
    for i in range(4):
        put(warehouse, "2012-03-01", float(i), float(-i))
    current, rows = warehouse.snapshot_id(PRICES), warehouse.read(PRICES)
    before = files_on_disk(warehouse)
    size = sum(path.stat().st_size for path in before)
    result = warehouse.maintain("test.prices", WEEK, dt.datetime.now(dt.UTC) + dt.timedelta(days=30))
    after = files_on_disk(warehouse)
    assert [s["snapshot_id"] for s in warehouse.snapshots(PRICES)] == [current]
    assert warehouse.read(PRICES) == rows
    assert result["expired_snapshots"] == 3
    # Expiring writes one metadata file itself.
    assert result["deleted_files"] == len(before) + 1 - len(after)
    assert result["deleted_files"] >= 3 * 3  # of each old snapshot: data file, manifest and manifest list
    new = sum(path.stat().st_size for path in set(after) - set(before))
    assert result["freed_bytes"] == size + new - sum(path.stat().st_size for path in after)
    assert len(files_on_disk(warehouse, "*.parquet")) == 1
    # The table goes on.
    put(warehouse, "2012-03-02", 5.0)
    assert len(stored(Warehouse(warehouse.home))) == 3


def test_maintenance_keeps_snapshots_and_files_that_are_younger_than_keep(warehouse: Warehouse) -> None:
    old = put(warehouse, "2012-03-01", 1.0)
    put(warehouse, "2012-03-01", 2.0)
    # A run that writes right now has files that no snapshot knows yet.
    unfinished = files_on_disk(warehouse, "*.parquet")[0].with_name("of-a-run-that-writes-now.parquet")
    unfinished.write_bytes(b"not committed yet")
    before = set(files_on_disk(warehouse))
    result = warehouse.maintain("test.prices", WEEK)
    assert result == {"expired_snapshots": 0, "deleted_files": 0, "freed_bytes": 0}
    assert set(files_on_disk(warehouse)) >= before
    assert stored(warehouse, snapshot_id=old.snapshot_id) == {("A", "2012-03-01"): 1.0}


def test_maintenance_deletes_orphans_by_their_age(warehouse: Warehouse) -> None:
    put(warehouse, "2012-03-01", 1.0)
    folder = files_on_disk(warehouse, "*.parquet")[0].parent
    old, young = folder / "orphan-old.parquet", folder / "orphan-young.parquet"
    for orphan, age in ((old, WEEK * 2), (young, WEEK / 2)):
        orphan.write_bytes(b"12345")
        then = time.time() - age.total_seconds()
        os.utime(orphan, (then, then))
    result = warehouse.maintain("test.prices", WEEK)
    assert result == {"expired_snapshots": 0, "deleted_files": 1, "freed_bytes": 5}
    assert not old.exists()
    assert young.exists()
    assert stored(warehouse) == {("A", "2012-03-01"): 1.0}


def test_maintenance_of_one_table_leaves_the_others_alone(warehouse: Warehouse) -> None:
    other = replace(PRICES, name="test.prices2")
    for spec in (PRICES, other):
        for close in (1.0, 2.0):
            put(warehouse, "2012-03-01", close, spec=spec)
    assert warehouse.table_names() == ["test.prices", "test.prices2"]
    warehouse.maintain("test.prices", WEEK, dt.datetime.now(dt.UTC) + dt.timedelta(days=30))
    assert len(warehouse.snapshots(PRICES)) == 1
    old, new = (s["snapshot_id"] for s in warehouse.snapshots(other))
    assert stored(warehouse, other, snapshot_id=old) == {("A", "2012-03-01"): 1.0}
    assert stored(warehouse, other, snapshot_id=new) == {("A", "2012-03-01"): 2.0}


def test_maintenance_goes_on_when_a_writer_commits_meanwhile(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyiceberg.table import Table

    first, second = (put(warehouse, "2012-03-01", close).snapshot_id for close in (1.0, 2.0))
    commit, night = Table._do_commit, Warehouse(warehouse.home)

    def commit_after_the_night(self: Table, *args: object, **kwargs: object) -> None:
        monkeypatch.setattr(Table, "_do_commit", commit)
        put(night, "2012-03-02", 3.0)
        commit(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Table, "_do_commit", commit_after_the_night)
    warehouse.maintain("test.prices", WEEK, dt.datetime.now(dt.UTC) + dt.timedelta(days=30))
    assert stored(warehouse) == {("A", "2012-03-01"): 2.0, ("A", "2012-03-02"): 3.0}
    kept = [s["snapshot_id"] for s in warehouse.snapshots(PRICES)]
    assert first not in kept
    assert kept == [second, warehouse.snapshot_id(PRICES)]  # what was current when it began is not taken away


# -- what runs in a process of its own ---------------------------------------------------------------------------------


def wait_for(path: Path, process: subprocess.Popen[str] | None = None) -> None:
    """Until the file is there; not forever, and not for a process that has ended."""
    for _ in range(12_000):
        if path.exists():
            return
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


def _meet(folder: Path, name: str, number: int, of: int) -> None:
    """Wait until all `of` processes are here."""
    (folder / f"{name}-{number}").touch()
    for i in range(of):
        wait_for(folder / f"{name}-{i}")


def _child(command: str, home: str, *rest: str) -> dict[str, object]:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.table import Table

    warehouse = Warehouse(Path(home))
    commit, namespace_exists = Table._do_commit, SqlCatalog.namespace_exists
    write_metadata = SqlCatalog._write_metadata

    if command == "write":
        folder, number, of, session = Path(rest[0]), int(rest[1]), int(rest[2]), rest[3]
        met = False

        def meet_then_commit(self: Table, *args: object, **kwargs: object) -> None:
            nonlocal met
            if not met:
                met = True
                _meet(folder, "commit", number, of)
            commit(self, *args, **kwargs)  # type: ignore[arg-type]

        Table._do_commit = meet_then_commit  # type: ignore[method-assign]
        return {"attempts": put(warehouse, session, float(number), float(number)).attempts}

    if command == "first-write":
        folder, number, of, session = Path(rest[0]), int(rest[1]), int(rest[2]), rest[3]
        # Opening the catalog is a race of its own.
        _meet(folder, "open", number, of)
        warehouse.catalog  # noqa: B018

        def look_then_meet(self: SqlCatalog, *args: object) -> bool:
            exists = namespace_exists(self, *args)  # type: ignore[arg-type]
            SqlCatalog.namespace_exists = namespace_exists  # type: ignore[method-assign]
            _meet(folder, "namespace", number, of)
            return exists

        SqlCatalog.namespace_exists = look_then_meet  # type: ignore[method-assign]
        return {"attempts": put(warehouse, session, 1.0, 2.0).attempts}

    if command == "hang-before-commit":

        def hang(self: Table, *args: object, **kwargs: object) -> None:
            Path(rest[0]).touch()
            time.sleep(600)

        Table._do_commit = hang  # type: ignore[method-assign]
        put(warehouse, "2012-03-02", 3.0, 4.0)
        return {}

    if command == "full-disk":
        import resource

        # With the signal ignored, a write beyond the limit fails with EFBIG, through the same paths as ENOSPC.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def full() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

        def full_before_metadata(*args: object, **kwargs: object) -> None:
            full()
            write_metadata(*args, **kwargs)  # type: ignore[arg-type]

        def full_after_metadata(*args: object, **kwargs: object) -> None:
            write_metadata(*args, **kwargs)  # type: ignore[arg-type]
            full()

        if rest[0] in ("data file", "start"):
            full()
        elif rest[0] == "metadata":
            SqlCatalog._write_metadata = staticmethod(full_before_metadata)  # type: ignore[method-assign]
        elif rest[0] == "catalog":
            SqlCatalog._write_metadata = staticmethod(full_after_metadata)  # type: ignore[method-assign]
        try:
            put(warehouse, "2012-03-02", 3.0, 4.0)
        except Exception as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "none", "message": "the write succeeded"}

    raise ValueError(command)


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))


def test_a_timestamp_without_a_zone_is_refused_and_not_taken_for_utc(warehouse: Warehouse) -> None:
    spec = TableSpec(
        name="test.events",
        columns=(Column("id", "long", "Identity.", required=True), Column("at", "timestamptz", "When.")),
        key=("id",),
    )
    naive = pa.table({"id": [1], "at": pa.array([dt.datetime(2012, 1, 3, 16, 0)], pa.timestamp("us"))})
    with pytest.raises(WarehouseError, match=r"table test\.events: column at has no time zone"):
        warehouse.write(spec, naive)


BY_NAME = TableSpec(
    name="test.by_name",
    columns=(
        Column("name", "string", "slice", required=True),
        Column("session", "date", "day", required=True),
        Column("value", "double", "value"),
    ),
    key=("name", "session"),
    slice_column="name",
    partition_by="value",
)


def named(name: str, *values: float) -> pa.Table:
    days = [day("2012-01-03") + dt.timedelta(days=i) for i in range(len(values))]
    return pa.table({"name": [name] * len(values), "session": days, "value": list(values)})


def test_a_slice_can_be_one_value_of_a_string(warehouse: Warehouse) -> None:
    for name in ("first", "second", "third"):
        warehouse.write(BY_NAME, named(name, 1.0, 2.0), only=name)
    warehouse.write(BY_NAME, named("second", 9.0), only="second")
    assert warehouse.read(BY_NAME, only="second")["value"].to_pylist() == [9.0]
    assert warehouse.read(BY_NAME, only="first")["value"].to_pylist() == [1.0, 2.0]
    assert warehouse.read(BY_NAME, only="nobody").num_rows == 0
    assert warehouse.read(BY_NAME).num_rows == 5
    assert len(warehouse.snapshots(BY_NAME)) == 4
    assert data_files(warehouse, BY_NAME) == 3
    warehouse.write(BY_NAME, named("third"), only="third")
    assert sorted(set(warehouse.read(BY_NAME)["name"].to_pylist())) == ["first", "second"]


def test_a_slice_of_the_wrong_kind_is_refused(warehouse: Warehouse) -> None:
    warehouse.write(BY_NAME, named("first", 1.0), only="first")
    put(warehouse, "2012-01-03", 1.0)
    with pytest.raises(WarehouseError, match=r"sliced by name \(string\), 2012-01-01\.\.None is no slice"):
        warehouse.read(BY_NAME, first=day("2012-01-01"))
    with pytest.raises(WarehouseError, match=r"sliced by session \(date\), AAPL is no slice of it"):
        warehouse.read(PRICES, only="AAPL")
    with pytest.raises(WarehouseError, match="does not fit the slice second"):
        warehouse.write(BY_NAME, named("first", 1.0), only="second")
    with pytest.raises(WarehouseError, match="must not contain a quote"):
        warehouse.read(BY_NAME, only="it's")
