"""What becomes of what a vendor hands over: corrections, symbols that wait, and what is known of each."""

import datetime as dt

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from quant_assets.market import arrivals
from quant_assets.market.tables import BARS, COVERAGE
from quant_resources.sources import Waiting

DAYS = [dt.date(2012, 4, day) for day in (2, 3, 4, 5, 9)]
CLOSE = dt.datetime(2012, 4, 9, 20, tzinfo=dt.UTC)


def bars(prices: dict[tuple[str, dt.date], float], source: str = "vendor") -> pa.Table:
    rows = [
        {
            "symbol": symbol,
            "session": day,
            "available_at": dt.datetime.combine(day, dt.time(20), dt.UTC),
            **dict.fromkeys(("open", "high", "low", "close"), price),
            "volume": 1000.0,
            "dividend": 0.0,
            "split_factor": 1.0,
            "source": source,
        }
        for (symbol, day), price in sorted(prices.items())
    ]
    return pa.Table.from_pylist(rows, schema=BARS.arrow_schema)


keys = st.tuples(st.sampled_from(["A", "B", "C"]), st.sampled_from(DAYS))
worlds = st.dictionaries(keys, st.sampled_from([10.0, 11.0, 12.0]), min_size=1)


@given(stored=worlds, fetched=worlds)
def test_after_the_correction_every_stored_session_says_what_the_vendor_says_now(
    stored: dict[tuple[str, dt.date], float], fetched: dict[tuple[str, dt.date], float]
) -> None:
    """What came wins, what did not come again stays, sessions before the table's first stay away, empty ones after it are filled."""
    known = {day for day in DAYS if day >= min(day for _, day in stored)}
    expected = {**stored, **{key: price for key, price in fetched.items() if key[1] in known}}
    found = arrivals.corrections(bars(fetched), bars(stored, "earlier"), BARS)
    differing = {key for key, price in fetched.items() if key[1] in known and stored.get(key) != price}
    assert set(found.sessions) == {day for _, day in differing}
    assert {(c["symbol"], c["session"]) for c in found.changes} == {(s, str(d)) for s, d in differing}
    written = {(row["symbol"], row["session"]): row["close"] for row in found.rows.to_pylist()}
    assert written == {key: price for key, price in expected.items() if key[1] in found.sessions}


def test_a_change_is_named_with_both_values() -> None:
    day = DAYS[0]
    found = arrivals.corrections(bars({("A", day): 11.0, ("B", day): 9.0}), bars({("A", day): 10.0}), BARS)
    assert {
        "session": "2012-04-02",
        "symbol": "A",
        "column": "close",
        "stored": "10.0",
        "now": "11.0",
    } in found.changes
    assert {
        "session": "2012-04-02",
        "symbol": "B",
        "column": "(row)",
        "stored": "",
        "now": "added",
    } in found.changes


def test_a_row_that_says_the_same_is_no_correction_whoever_brought_it_when() -> None:
    same = {("A", day): 10.0 for day in DAYS}
    assert not arrivals.corrections(bars(same, "now"), bars(same, "then"), BARS).changes


def test_the_slice_keeps_the_rows_of_symbols_that_wait() -> None:
    stored = bars({("A", DAYS[0]): 10.0, ("B", DAYS[0]): 20.0})
    kept = arrivals.keep_waiting(bars({("A", DAYS[0]): 11.0}), stored, {"B"})
    assert {(r["symbol"], r["close"]) for r in kept.to_pylist()} == {("A", 11.0), ("B", 20.0)}


def _coverage(
    again: dt.datetime | None,
    missing: list[tuple[str, dt.date]],
    waiting: list[Waiting],
    new: tuple[str, ...] = (),
) -> dict[str, dict]:
    rows = arrivals.coverage(
        "bars",
        bars({("A", day): 10.0 for day in DAYS}),
        ("A", "B", "C"),
        waiting,
        missing,
        DAYS[0],
        DAYS[-1],
        CLOSE,
        again,
        new,
    )
    assert pa.Table.from_pylist(rows, schema=COVERAGE.arrow_schema).num_rows == 3
    return {str(row["symbol"]): row for row in rows}


def test_each_symbol_has_a_status_and_the_time_to_ask_again() -> None:
    soon, tomorrow = CLOSE + dt.timedelta(minutes=30), CLOSE + dt.timedelta(hours=8)
    rows = _coverage(
        soon, [("C", DAYS[-1])], [Waiting("B", "25 of 25 requests of today are used", tomorrow)], ("A",)
    )
    assert (rows["A"]["status"], rows["A"]["rows"], rows["A"]["newest_session"]) == ("complete", 5, DAYS[-1])
    assert "run chain_job for its history" in str(rows["A"]["note"])
    assert (rows["B"]["status"], rows["B"]["retry_at"]) == ("waiting", tomorrow)
    assert "25 requests" in str(rows["B"]["note"])
    assert (rows["C"]["status"], rows["C"]["retry_at"]) == ("late", soon)


def test_what_is_late_too_long_or_was_never_there_is_missing_and_nobody_asks_again() -> None:
    rows = _coverage(None, [("C", DAYS[-1])], [])
    assert (rows["C"]["status"], rows["C"]["retry_at"]) == ("missing", None)
    early = _coverage(CLOSE, [("C", DAYS[0])], [])
    assert early["C"]["status"] == "missing", "an old session is not late"
    assert rows["B"]["status"] == "missing"
    assert "misspelt" in str(rows["B"]["note"])


def test_a_vendor_with_few_requests_is_asked_less_often_and_a_dead_one_seldom() -> None:
    hour = dt.timedelta(hours=1)
    assert arrivals.ask_again_after(hour, None) == dt.timedelta(minutes=30)
    assert arrivals.ask_again_after(hour, 25) == 3 * hour
    assert arrivals.ask_again_after(13 * hour, None) == 6 * hour


def _waits(symbol: str, first: dt.date, last: dt.date) -> dict[str, object]:
    return {"symbol": symbol, "status": "waiting", "first_session": first, "last_session": last}


def test_what_waited_is_forgotten_when_a_later_run_brought_it_and_only_then() -> None:
    before = [_waits("A", DAYS[1], DAYS[1]), _waits("B", DAYS[1], DAYS[1]), _waits("A", DAYS[0], DAYS[0])]
    now = [
        {**_waits("A", DAYS[4], DAYS[4]), "status": "complete"},
        _waits("B", DAYS[4], DAYS[4]),
    ]
    kept = arrivals.still_waiting(before, now, DAYS[1], DAYS[4])
    assert kept == [before[1], before[2]], "B waits again; A's older session was not stored"
    assert arrivals.still_waiting(before, now, None, DAYS[4]) == before, (
        "a run that stored nothing brought nothing"
    )


def test_news_that_have_not_come_take_the_bars_out_of_what_is_computed() -> None:
    prices = {(symbol, day): 10.0 for symbol in "ABC" for day in DAYS}
    rows = [
        {**_waits("B", DAYS[1], DAYS[2]), "dataset": "news", "rows": 0, "note": "", "available_at": CLOSE}
    ]
    coverage = pa.Table.from_pylist(rows, schema=COVERAGE.arrow_schema)
    kept = arrivals.without_waiting(bars(prices), coverage)
    gone = {("B", DAYS[1]), ("B", DAYS[2])}
    assert {(r["symbol"], r["session"]) for r in kept.to_pylist()} == set(prices) - gone
    assert kept.column_names == bars(prices).column_names
    # A symbol waits for its competitors' news too.
    peers = pa.table({"symbol": ["A", "C"], "peer": ["B", "A"]})
    kept = arrivals.without_waiting(bars(prices), coverage, peers)
    gone = {("A", DAYS[1]), ("A", DAYS[2])}
    assert {(r["symbol"], r["session"]) for r in kept.to_pylist()} == set(prices) - gone
