"""Source `files`: somebody's own CSV and Parquet files, and what they are told when a file is wrong."""

from __future__ import annotations

import datetime as dt
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from quant_resources.settings import load_settings
from quant_resources.sources import BARS, MINUTE_BARS, NEWS, SECURITIES, SourceError, open_source
from quant_resources.sources.files import FilesSource

SHARED_FILES = Path(__file__).resolve().parents[3] / "shared" / "data" / "files"
needs_shared_files = pytest.mark.skipif(
    not SHARED_FILES.is_dir(), reason=f"{SHARED_FILES} is not there (real data stay out of the repository)"
)

FIRST, LAST = dt.date(2000, 1, 3), dt.date(2025, 12, 31)
BARS_HEADER = "symbol,session,open,high,low,close,volume"
NEWS_HEADER = "symbol,published_at,title,sentiment_score"
MINUTE_HEADER = "symbol,ts,open,high,low,close,volume"


def day(text: str) -> dt.date:
    return dt.date.fromisoformat(text)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


class Folder:
    """A folder of files as a user fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Every source needs bars; tests of news and minute bars do not care which.
        self.csv("bars/other.csv", BARS_HEADER, "ZZZ,2024-03-01,1,1,1,1,1")

    def write(self, name: str, content: bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def csv(self, name: str, *lines: str) -> Path:
        content = ("\n".join(lines) + "\n").encode()
        return self.write(name, gzip.compress(content) if name.endswith(".gz") else content)

    def parquet(self, name: str, table: pa.Table) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    def bars(self, *lines: str, header: str = BARS_HEADER) -> Path:
        (self.path / "bars/other.csv").unlink(missing_ok=True)
        return self.csv("bars/mine.csv", header, *lines)

    def news(self, *lines: str, header: str = NEWS_HEADER) -> Path:
        return self.csv("news/mine.csv", header, *lines)

    def source(self, **options: object) -> FilesSource:
        return FilesSource(self.path, **options)  # type: ignore[arg-type]

    def read(self, kind: str, **options: object) -> pa.Table:
        return getattr(self.source(**options), kind)(FIRST, LAST)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "mine")


def without_origin(table: pa.Table) -> list[dict[str, object]]:
    return table.drop_columns(["origin"]).to_pylist()


# -- bars --------------------------------------------------------------------------------------------------------------


def test_a_csv_row_becomes_a_bar_that_knows_its_file_and_line(folder: Folder) -> None:
    folder.bars(
        "AAPL,2024-02-29,181,183,179,180.75,136682600", "aapl ,2024-03-01,179,180,177,179.66,73563100"
    )
    rows = folder.read("bars")
    assert rows.schema == BARS
    assert rows.to_pylist() == [
        {
            "symbol": "AAPL",
            "session": day("2024-02-29"),
            "open": 181.0,
            "high": 183.0,
            "low": 179.0,
            "close": 180.75,
            "volume": 136682600.0,
            "dividend": 0.0,
            "split_factor": 1.0,
            "origin": "mine.csv:2",
        },
        {
            "symbol": "AAPL",
            "session": day("2024-03-01"),
            "open": 179.0,
            "high": 180.0,
            "low": 177.0,
            "close": 179.66,
            "volume": 73563100.0,
            "dividend": 0.0,
            "split_factor": 1.0,
            "origin": "mine.csv:3",
        },
    ]


def test_csv_gzip_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    lines = [f"{BARS_HEADER},dividend,split_factor"]
    lines += [f"AAPL,2024-02-{d},18{d}.25,190,170,18{d}.5,{d}000,0.24,2" for d in (26, 27, 28, 29)]
    results = {}
    for name in ("mine.csv", "mine.csv.gz", "mine.parquet", "mine.pq"):
        folder = Folder(tmp_path / name)
        (folder.path / "bars/other.csv").unlink()
        if name.startswith("mine.csv"):
            folder.csv(f"bars/{name}", *lines)
        else:
            plain = Folder(tmp_path / "plain").csv("bars/mine.csv", *lines)
            # As pandas would write it: dates as nanosecond timestamps, integers where the text had no point.
            table = pacsv.read_csv(plain)
            midnight = table["session"].cast(pa.timestamp("ns"))
            folder.parquet(f"bars/{name}", table.set_column(1, "session", midnight))
        rows = folder.read("bars")
        results[name] = without_origin(rows)
        first = 2 if name.startswith("mine.csv") else 1  # a Parquet file has rows, not lines
        assert rows["origin"].to_pylist() == [f"{name}:{i}" for i in range(first, first + 4)]
    assert len(results["mine.csv"]) == 4
    assert results["mine.csv"][0]["dividend"] == 0.24
    assert results["mine.csv.gz"] == results["mine.csv"]
    assert results["mine.parquet"] == results["mine.csv"]
    assert results["mine.pq"] == results["mine.csv"]


def test_all_files_of_the_folder_and_its_subfolders_are_read_and_other_files_ignored(folder: Folder) -> None:
    folder.csv("bars/2024/aapl.csv", BARS_HEADER, "AAPL,2024-03-01,1,1,1,1,1")
    folder.csv("bars/2023/MSFT.CSV", BARS_HEADER, "MSFT,2023-03-01,1,1,1,1,1")
    folder.csv("bars/README.md", "not a table")
    assert sorted(folder.read("bars")["symbol"].to_pylist()) == ["AAPL", "MSFT", "ZZZ"]


def test_optional_columns_default_and_empty_cells_of_them_too(folder: Folder) -> None:
    folder.bars(
        "AAPL,2024-02-29,1,1,1,1,1,0.24,",
        "AAPL,2024-03-01,1,1,1,1,1,,2",
        header=f"{BARS_HEADER},dividend,split_factor",
    )
    rows = folder.read("bars")
    assert rows["dividend"].to_pylist() == [0.24, 0.0]
    assert rows["split_factor"].to_pylist() == [1.0, 2.0]


def test_columns_may_stand_in_any_order_and_further_ones_are_ignored(folder: Folder) -> None:
    folder.bars("8,x,2024-03-01,5,2,4,1,AAPL", header="volume,remark,session,high,open,close,low,symbol")
    row = folder.read("bars").to_pylist()[0]
    assert [row[c] for c in ("symbol", "open", "high", "low", "close", "volume")] == ["AAPL", 2, 5, 1, 4, 8]


def test_byte_order_mark_and_windows_line_ends_are_no_obstacle(folder: Folder) -> None:
    lines = f"{BARS_HEADER}\r\nAAPL,2024-03-01,1,1,1,1,1\r\n"
    folder.write("bars/other.csv", b"\xef\xbb\xbf" + lines.encode())
    assert without_origin(folder.read("bars"))[0]["symbol"] == "AAPL"


def test_a_file_with_a_header_only_has_no_rows(folder: Folder) -> None:
    folder.bars()
    rows = folder.read("bars")
    assert rows.num_rows == 0
    assert rows.schema == BARS


def test_a_range_includes_both_ends(folder: Folder) -> None:
    folder.bars(*[f"AAPL,2024-02-{d},1,1,1,1,1" for d in (26, 27, 28, 29)])
    rows = folder.source().bars(day("2024-02-27"), day("2024-02-28"))
    assert rows["session"].to_pylist() == [day("2024-02-27"), day("2024-02-28")]


def test_rows_that_break_a_market_rule_pass_with_their_origin(folder: Folder) -> None:
    # Judging them (fail or quarantine) is the work of market/validation.py, which names the origin.
    folder.bars(
        "AAPL,2024-03-01,nan,NaN,,180,1",  # no price
        "AAPL,2024-03-02,1,1,1,1,1",  # Saturday
        "AAPL,2024-03-04,-5,1,-6,-1,-7",  # negative
        "AAPL,2024-03-05,inf,1,1,1,1",
        "AAPL,2024-03-05,1,1,1,1,1",  # twice
    )
    rows = folder.read("bars").to_pylist()
    assert [row["origin"] for row in rows] == [f"mine.csv:{line}" for line in (2, 3, 4, 5, 6)]
    assert [row["session"].day for row in rows] == [1, 2, 4, 5, 5]
    no_price = rows[0]
    assert all(no_price[c] is None or np.isnan(no_price[c]) for c in ("open", "high", "low"))
    assert no_price["close"] == 180.0
    assert [rows[2][c] for c in ("open", "low", "close", "volume")] == [-5, -6, -1, -7]
    assert rows[3]["open"] == float("inf")


def test_nan_prices_of_a_parquet_file_pass_too(folder: Folder) -> None:
    bar = {c: [float("nan")] for c in ("open", "high", "low", "close", "volume")}
    (folder.path / "bars/other.csv").unlink()
    folder.parquet("bars/mine.parquet", pa.table({"symbol": ["A"], "session": [day("2024-03-01")], **bar}))
    row = folder.read("bars").to_pylist()[0]
    assert np.isnan([row[c] for c in bar]).all()
    assert row["origin"] == "mine.parquet:1"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("AAPL,2024-03-04,1,1,oops,1,1", "low = 'oops' is not a number"),
        ('AAPL,2024-03-04,1,1,1,1,"1,000"', "volume = '1,000' is not a number"),
        ("AAPL,2024-02-30,1,1,1,1,1", "session = '2024-02-30' is not a date (YYYY-MM-DD)"),
        ("AAPL,03/04/2024,1,1,1,1,1", "session = '03/04/2024' is not a date (YYYY-MM-DD)"),
        (",2024-03-04,1,1,1,1,1", "symbol is empty"),
        ("   ,2024-03-04,1,1,1,1,1", "symbol is empty"),
        ("AAPL,,1,1,1,1,1", "session is empty"),
    ],
)
def test_a_bad_cell_is_named_with_file_line_and_rule(folder: Folder, line: str, rule: str) -> None:
    path = folder.bars("AAPL,2024-02-29,1,1,1,1,1", "AAPL,2024-03-01,1,1,1,1,1", line)
    with pytest.raises(SourceError) as caught:
        folder.read("bars")
    assert f"{path}:4: {rule}" in str(caught.value)


def test_a_bad_cell_of_a_parquet_file_is_named_with_its_row(folder: Folder) -> None:
    (folder.path / "bars/other.csv").unlink()
    ones = {c: [1.0, 1.0] for c in ("open", "high", "low", "close", "volume")}
    path = folder.parquet(
        "bars/mine.parquet", pa.table({"symbol": ["A", "A"], "session": ["2024-03-01", "soon"], **ones})
    )
    with pytest.raises(SourceError) as caught:
        folder.read("bars")
    assert f"{path}:2: session = 'soon' is not a date" in str(caught.value)


@pytest.mark.parametrize(
    "line", ["AAPL,2024-03-04,1", "AAPL,2024-03-04,1,1,1,1,1,9"], ids=["too few", "too many"]
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_row_with_a_wrong_number_of_fields_is_named_with_file_and_line(
    folder: Folder, line: str, suffix: str
) -> None:
    (folder.path / "bars/other.csv").unlink()
    path = folder.csv(f"bars/mine{suffix}", BARS_HEADER, *["AAPL,2024-02-29,1,1,1,1,1"] * 2, line)
    with pytest.raises(SourceError) as caught:
        folder.read("bars")
    message = str(caught.value)
    assert str(path) in message
    assert "7 columns" in message
    assert ":4" in message or "#4" in message or "row 4" in message.lower() or "line 4" in message.lower()


def test_a_blank_line_does_not_shift_the_line_numbers_of_the_rows_below(folder: Folder) -> None:
    path = folder.bars("AAPL,2024-02-29,1,1,1,1,1", "", "AAPL,2024-03-01,oops,1,1,1,1")
    with pytest.raises(SourceError) as caught:
        folder.read("bars")
    assert f"{path}:4: open = 'oops'" in str(caught.value)


def test_the_ticker_na_is_a_ticker_and_no_missing_value(folder: Folder) -> None:
    # Nano Labs trades as NA on Nasdaq; pandas and pyarrow both take the letters for a null.
    folder.bars("NA,2024-03-01,1,1,1,1,1")
    assert folder.read("bars")["symbol"].to_pylist() == ["NA"]


@pytest.mark.parametrize(
    ("header", "line", "missing"),
    [
        ("ticker,session,open,high,low,close,volume", "AAPL,2024-03-01,1,1,1,1,1", "symbol missing"),
        ("symbol,session,open,high,low", "AAPL,2024-03-01,1,1,1", "close, volume missing"),
        (BARS_HEADER.replace(",", ";"), "AAPL;2024-03-01;1;1;1;1;1", "symbol, session, open"),
    ],
)
def test_wrong_columns_are_named_with_those_found_and_those_needed(
    folder: Folder, header: str, line: str, missing: str
) -> None:
    path = folder.bars(line, header=header)
    with pytest.raises(SourceError) as caught:
        folder.read("bars")
    message = str(caught.value)
    assert message.startswith(f"{path}: wrong columns: ")
    assert missing in message
    assert f"found {header.replace(',', ', ')}" in message
    assert "needs symbol, session, open, high, low, close, volume" in message
    assert "may have dividend, split_factor" in message


def test_a_column_that_occurs_twice_is_refused_with_its_name(folder: Folder) -> None:
    path = folder.bars(
        "AAPL,2024-03-01,1,1,1,1,2,1", header="symbol,session,open,high,low,close,close,volume"
    )
    with pytest.raises(SourceError, match=f"{path}.*close"):
        folder.read("bars")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.csv", b""),
        ("mine.parquet", b"this is no parquet file"),
        ("mine.csv.gz", b"this is no gzip file"),
        ("mine.csv", f"{BARS_HEADER}\nCaf\xe9,2024-03-01,1,1,1,1,1\n".encode("latin-1")),
    ],
    ids=["empty", "no parquet", "no gzip", "not UTF-8"],
)
def test_a_file_that_cannot_be_read_at_all_is_named(folder: Folder, name: str, content: bytes) -> None:
    (folder.path / "bars/other.csv").unlink()
    path = folder.write(f"bars/{name}", content)
    with pytest.raises(SourceError, match=f"{path}: cannot be read"):
        folder.read("bars")


@pytest.mark.parametrize("bars", ["absent", "empty", "only other files"])
def test_a_folder_without_bars_is_refused_with_what_belongs_there(tmp_path: Path, bars: str) -> None:
    if bars != "absent":
        (tmp_path / "bars").mkdir()
    if bars == "only other files":
        (tmp_path / "bars" / "prices.xlsx").write_bytes(b"x")
    with pytest.raises(SourceError) as caught:
        FilesSource(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'bars'}: no CSV or Parquet file")
    assert "symbol, session, open, high, low, close, volume" in message


def test_symbols_keep_their_bars_and_an_unknown_one_is_named(folder: Folder) -> None:
    folder.bars("AAPL,2024-03-01,1,1,1,1,1", "MSFT,2024-03-01,1,1,1,1,1")
    assert folder.read("bars", symbols=("MSFT",))["symbol"].to_pylist() == ["MSFT"]
    with pytest.raises(SourceError) as caught:
        folder.read("bars", symbols=("MSFT", "TSLA"))
    message = str(caught.value)
    assert f"{folder.path / 'bars'}: unknown symbol(s) TSLA in QUANT_SYMBOLS" in message
    assert "the files have AAPL, MSFT" in message


def test_a_known_symbol_without_a_bar_in_the_range_is_no_error(folder: Folder) -> None:
    folder.bars("AAPL,2024-03-01,1,1,1,1,1", "MSFT,2024-02-01,1,1,1,1,1")
    rows = folder.source(symbols=("MSFT",)).bars(day("2024-03-01"), day("2024-03-01"))
    assert rows.num_rows == 0


def test_settings_open_the_folder_with_its_symbols_and_sessions(folder: Folder) -> None:
    folder.bars("AAPL,2024-03-01,1,1,1,1,1", "MSFT,2024-03-01,1,1,1,1,1")
    source = open_source(
        load_settings(
            source="files", files_dir=folder.path, symbols=("AAPL",), first_session=day("2024-01-02")
        )
    )
    assert (source.name, source.news_is_simulated, source.has_minute_bars) == ("files", False, False)
    assert source.span() == (day("2024-01-02"), None)
    assert source.bars(FIRST, LAST)["symbol"].to_pylist() == ["AAPL"]


# -- news --------------------------------------------------------------------------------------------------------------


def test_news_by_instant_go_to_utc_and_to_their_session(folder: Folder) -> None:
    folder.news(
        "AAPL,2024-03-01T16:00:00-05:00,at the close,0.5",
        "AAPL,2024-03-01T16:00:01-05:00,after the close,0.25",
        "AAPL,2024-03-02T12:00:00Z,on Saturday,-0.25",
    )
    rows = folder.read("news")
    assert rows.schema == NEWS
    assert rows["published_at"].to_pylist() == [
        utc("2024-03-01T21:00"),
        utc("2024-03-01T21:00:01"),
        utc("2024-03-02T12:00"),
    ]
    assert rows["dated_session"].null_count == 3
    assert rows["relevance_score"].to_pylist() == [1.0, 1.0, 1.0]
    friday = folder.source().news(day("2024-03-01"), day("2024-03-01"))
    assert friday["title"].to_pylist() == ["at the close"]
    monday = folder.source().news(day("2024-03-04"), day("2024-03-04"))
    assert monday["title"].to_pylist() == ["after the close", "on Saturday"]


def test_news_that_name_only_a_session_count_from_the_next_one_on(folder: Folder) -> None:
    # Whoever knows the day but not the hour may have read it after the close.
    folder.news("INTC,2024-03-01,0.1", header="symbol,session,sentiment_score")
    rows = folder.read("news")
    assert rows["dated_session"].to_pylist() == [day("2024-03-01")]
    assert rows["published_at"].null_count == 1
    assert folder.source().news(day("2024-03-01"), day("2024-03-01")).num_rows == 0
    assert folder.source().news(day("2024-03-04"), day("2024-03-04")).num_rows == 1


def test_one_file_may_date_some_rows_by_instant_and_others_by_session(folder: Folder) -> None:
    folder.news(
        "AAPL,2024-03-01T12:00:00Z,,0.1",
        "AAPL,,2024-03-01,0.2",
        header="symbol,published_at,session,sentiment_score",
    )
    rows = folder.read("news").to_pylist()
    assert [(r["published_at"], r["dated_session"]) for r in rows] == [
        (utc("2024-03-01T12:00"), None),
        (None, day("2024-03-01")),
    ]


def test_an_article_is_known_by_its_id_or_url_or_else_by_ticker_instant_and_title(folder: Folder) -> None:
    folder.news(
        "AAPL,2024-03-01T12:00:00Z,a,u1,x1,0.1",
        "AAPL,2024-03-01T12:00:00Z,b,u2,,0.1",
        "MSFT,2024-03-01T12:00:00Z,b,u2,,0.1",
        "AAPL,2024-03-01T12:00:00Z,c,,,0.1",
        "AAPL,2024-03-01T12:00:00Z,d,,,0.1",
        header="symbol,published_at,title,url,article_id,sentiment_score",
    )
    ids = folder.read("news")["article_id"].to_pylist()
    assert ids[:3] == ["x1", "u2", "u2"]
    assert len(set(ids)) == 4  # one url is one article; two titles without url are two
    assert all(ids)


def test_news_of_csv_and_parquet_are_the_same(folder: Folder, tmp_path: Path) -> None:
    folder.news(
        'AAPL,2024-03-01T12:00:00Z,"Apple, ""again""",0.5',
        "AAPL,2024-03-01T23:30:00+02:00,two,-0.125",
    )
    other = Folder(tmp_path / "other")
    other.parquet(
        "news/mine.parquet",
        pa.table(
            {
                "symbol": ["AAPL", "AAPL"],
                "published_at": pa.array(
                    [utc("2024-03-01T12:00"), utc("2024-03-01T21:30")], pa.timestamp("ms", "America/New_York")
                ),
                "title": ['Apple, "again"', "two"],
                "sentiment_score": pa.array([0.5, -0.125], pa.float32()),
            }
        ),
    )
    assert without_origin(folder.read("news")) == without_origin(other.read("news"))
    assert folder.read("news").num_rows == 2


def test_the_first_session_has_the_news_of_the_evening_and_the_weekend_before_it(folder: Folder) -> None:
    # They belong to it by the rule of session_of, also when it is the first session of the whole history.
    folder.news(
        "AAPL,2024-03-01T21:00:00Z,on Friday at the close,0.1",
        "AAPL,2024-03-01T22:00:00Z,on Friday evening,0.1",
        "AAPL,2024-03-03T12:00:00Z,on Sunday,0.1",
        "AAPL,2024-03-04T12:00:00Z,on Monday,0.1",
    )
    source = folder.source(first_session=day("2024-03-04"), last_session=day("2024-03-08"))
    titles = source.news(day("2024-03-04"), day("2024-03-04"))["title"].to_pylist()
    assert titles == ["on Friday evening", "on Sunday", "on Monday"]


def test_news_outside_the_span_are_left_out_without_an_error(folder: Folder) -> None:
    folder.news(
        "AAPL,1995-03-01T12:00:00Z,old,0.1",
        "AAPL,2024-03-05T12:00:00Z,now,0.1",
        "AAPL,2090-03-01T12:00:00Z,from the future,0.1",
    )
    source = folder.source(first_session=day("2024-03-04"), last_session=day("2024-03-08"))
    assert source.news(day("2024-03-04"), day("2024-03-08"))["title"].to_pylist() == ["now"]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("AAPL,2024-03-01T12:00:00,x,0.1", "published_at = '2024-03-01T12:00:00' has no time zone"),
        ("AAPL,2024-03-01,x,0.1", "published_at = '2024-03-01' has no time zone"),
        ("AAPL,noon,x,0.1", "published_at = 'noon' is not an ISO 8601 instant"),
        ("AAPL,2024-03-01T12:00:00Z,x,good", "sentiment_score = 'good' is not a number"),
        ("AAPL,,x,0.1", "neither published_at nor session is given"),
        (",2024-03-01T12:00:00Z,x,0.1", "symbol is empty"),
    ],
)
def test_a_bad_article_is_named_with_file_line_and_rule(folder: Folder, line: str, rule: str) -> None:
    path = folder.news("AAPL,2024-03-01T12:00:00Z,x,0.1", "AAPL,2024-03-01T12:00:00+01:00,y,0.1", line)
    with pytest.raises(SourceError) as caught:
        folder.read("news")
    assert f"{path}:4: {rule}" in str(caught.value)


def test_news_that_nothing_dates_are_refused_with_the_two_columns_that_could(folder: Folder) -> None:
    path = folder.news("AAPL,0.1", header="symbol,sentiment_score")
    with pytest.raises(SourceError, match=f"{path}: wrong columns: one of published_at, session is needed"):
        folder.read("news")


@pytest.mark.parametrize("kind", ["news", "minute_bars"])
def test_parquet_instants_without_a_zone_are_refused(folder: Folder, kind: str) -> None:
    naive = pa.array([dt.datetime(2024, 3, 1, 15, 0)], pa.timestamp("us"))
    if kind == "news":
        column, table = "published_at", pa.table({"symbol": ["A"], "sentiment_score": [0.1]})
    else:
        prices = {c: [1.0] for c in ("open", "high", "low", "close", "volume")}
        column, table = "ts", pa.table({"symbol": ["A"], **prices})
    path = folder.parquet(f"{kind}/mine.parquet", table.append_column(column, naive))
    with pytest.raises(SourceError, match=f"{path}: column {column} has no time zone; store it as UTC"):
        folder.read(kind)


def test_a_folder_without_news_has_none(folder: Folder) -> None:
    rows = folder.read("news")
    assert rows.num_rows == 0
    assert rows.schema == NEWS


# -- minute bars -------------------------------------------------------------------------------------------------------


def test_minute_bars_belong_to_their_new_york_day_and_quotes_may_be_absent(folder: Folder) -> None:
    folder.csv(
        "minute_bars/mine.csv",
        MINUTE_HEADER,
        "AAPL,2024-03-01T14:30:00Z,1,2,0.5,1.5,100",
        "AAPL,2024-03-01T19:59:00-05:00,1,2,0.5,1.5,100",  # already March 2nd in UTC
        "AAPL,2024-03-04T09:30:00-05:00,1,2,0.5,1.5,100",
    )
    source = folder.source()
    assert source.has_minute_bars
    rows = source.minute_bars(day("2024-03-01"), day("2024-03-01"))
    assert rows.schema == MINUTE_BARS
    assert rows["ts"].to_pylist() == [utc("2024-03-01T14:30"), utc("2024-03-02T00:59")]
    for name in ("bid", "ask", "bid_size", "ask_size"):
        assert rows[name].null_count == 2
    assert rows["origin"].to_pylist() == ["mine.csv:2", "mine.csv:3"]


def test_a_minute_bar_without_its_minute_is_named_with_its_line(folder: Folder) -> None:
    path = folder.csv("minute_bars/mine.csv", MINUTE_HEADER, "AAPL,,1,2,0.5,1.5,100")
    with pytest.raises(SourceError, match=f"{path}:2: ts is empty"):
        folder.read("minute_bars")


# -- securities --------------------------------------------------------------------------------------------------------


def test_the_securities_file_classifies_and_its_other_columns_are_optional(folder: Folder) -> None:
    folder.csv("securities.csv", "symbol,sector,peers", 'AAPL,Technology,"MSFT,IBM"', "IBM,,")
    rows = folder.source().securities()
    assert rows.schema == SECURITIES
    assert rows.to_pylist() == [
        {"symbol": "AAPL", "name": "", "sector": "Technology", "industry": "", "peers": "MSFT,IBM"},
        {"symbol": "IBM", "name": "", "sector": "", "industry": "", "peers": ""},
    ]
    assert folder.source(symbols=("IBM",)).securities()["symbol"].to_pylist() == ["IBM"]


def test_without_a_securities_file_the_symbols_of_the_bars_stand_unclassified(folder: Folder) -> None:
    folder.bars(*[f"{s},2024-0{m}-01,1,1,1,1,1" for s in ("MSFT", "AAPL") for m in (2, 3)])
    rows = folder.source().securities()
    assert rows["symbol"].to_pylist() == ["AAPL", "MSFT"]
    assert set(rows["sector"].to_pylist()) == {""}


def test_a_securities_file_without_symbols_is_refused(folder: Folder) -> None:
    path = folder.csv("securities.csv", "ticker,sector", "AAPL,Technology")
    with pytest.raises(SourceError, match=f"{path}: wrong columns: symbol missing"):
        folder.source().securities()


# -- real data ---------------------------------------------------------------------------------------------------------


@needs_shared_files
def test_real_intc_bars() -> None:
    source = FilesSource(SHARED_FILES, first_session=day("2022-03-03"), last_session=day("2024-12-31"))
    rows = source.bars(day("2022-03-03"), day("2024-12-31"))
    assert rows.num_rows == 701
    assert set(rows["symbol"].to_pylist()) == {"INTC"}
    assert pc.min_max(rows["session"]).as_py() == {"min": day("2022-03-03"), "max": day("2024-12-31")}
    first = rows.to_pylist()[0]
    assert (first["open"], first["close"], first["volume"]) == (48.18, 47.93, 36389883.0)
    assert first["origin"] == "INTC.csv:2"
    assert all(source.calendar.is_session(s) for s in rows["session"].to_pylist())


@needs_shared_files
def test_real_intc_news_are_dated_by_session_and_shifted_by_one() -> None:
    source = FilesSource(SHARED_FILES, first_session=day("2022-03-03"), last_session=day("2024-12-31"))
    rows = source.news(day("2022-03-03"), day("2024-12-31"))
    # The last one, dated 2024-12-31, belongs to the session after the span.
    assert rows.num_rows == 700
    assert pc.max(rows["dated_session"]).as_py() < day("2024-12-31")
    assert len(set(rows["article_id"].to_pylist())) == 700


@needs_shared_files
def test_real_minute_bars_are_three_sessions_of_390_minutes() -> None:
    source = FilesSource(SHARED_FILES)
    rows = source.minute_bars(day("2014-06-01"), day("2014-06-30"))
    assert rows.num_rows == 1170
    for session in ("2014-06-05", "2014-06-06", "2014-06-09"):
        part = source.minute_bars(day(session), day(session))
        assert part.num_rows == 390
        bounds = pc.min_max(part["ts"]).as_py()
        assert bounds["min"] == source.calendar.opens(day(session))
        assert bounds["max"] + dt.timedelta(minutes=1) == source.calendar.close(day(session))
        assert pc.all(pc.less_equal(part["bid"], part["ask"])).as_py()
