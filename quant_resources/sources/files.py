"""Source `files`: a folder of CSV or Parquet files that the user owns.

Belongs here: reading `bars/`, `minute_bars/`, `news/` and `securities.*`, with errors that name file, row and rule.
Rows that parse but break a market rule (a negative price, a weekend) pass through with their origin; the checks of
`market/*` judge them.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from quant_resources.calendar import TradingCalendar
from quant_resources.sources import BARS, INSTANT, MINUTE_BARS, NEWS, SECURITIES, SourceError

DEFAULT_FIRST_SESSION = dt.date(2000, 1, 3)
_FORMATS = (".csv", ".csv.gz", ".parquet", ".pq")
_NEWS_ALIASES = {"session": "dated_session"}


class FilesSource:
    """A folder of files behind the `MarketSource` protocol.

    Args:
        folder: `QUANT_FILES_DIR`; holds `bars/` (required), `minute_bars/`, `news/`, `securities.csv|parquet`.
        symbols: tickers to keep; all when None. A ticker that no bars file has is an error.
        first_session: first session of the span; 2000-01-03 when None.
        last_session: last session of the span; open-ended when None.

    Raises:
        SourceError: `bars/` is missing or holds no CSV or Parquet file.
    """

    name = "files"
    news_is_simulated = False
    overlap_sessions = 0
    is_live = False

    def __init__(
        self,
        folder: Path,
        symbols: tuple[str, ...] | None = None,
        first_session: dt.date | None = None,
        last_session: dt.date | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.symbols = symbols
        self._first, self._last = first_session or DEFAULT_FIRST_SESSION, last_session
        self.calendar = TradingCalendar(self._first, self._last or dt.date.today())
        if not self._files("bars"):
            raise SourceError(
                f"{self.folder / 'bars'}: no CSV or Parquet file. Put daily bars there "
                "(symbol, session, open, high, low, close, volume[, dividend, split_factor])."
            )
        self.has_minute_bars = bool(self._files("minute_bars"))

    def _files(self, kind: str) -> list[Path]:
        folder = self.folder / kind
        if not folder.is_dir():
            return []
        return sorted(p for p in folder.rglob("*") if p.is_file() and p.name.lower().endswith(_FORMATS))

    def span(self) -> tuple[dt.date, dt.date | None]:
        """`QUANT_FIRST_SESSION` to `QUANT_LAST_SESSION`."""
        return self._first, self._last

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.bars`. Dividends default to 0, split factors to 1."""
        rows = self._read("bars", BARS, optional={"dividend": 0.0, "split_factor": 1.0})
        if self.symbols:
            have = set(rows["symbol"].to_pylist())
            if unknown := [s for s in self.symbols if s not in have]:
                raise SourceError(
                    f"{self.folder / 'bars'}: unknown symbol(s) {', '.join(unknown)} in QUANT_SYMBOLS; "
                    f"the files have {', '.join(sorted(have)[:20])}"
                )
        return self._keep(rows, "session", first, last)

    def news(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.news`. A file dates its rows by `published_at` or by `session`."""
        rows = self._read(
            "news",
            NEWS,
            optional={
                "article_id": None,
                "published_at": None,
                "dated_session": None,
                "title": "",
                "url": "",
                "relevance_score": 1.0,
                "scorer": None,
            },
            either=("published_at", "dated_session"),
        )
        if not rows.num_rows:
            return rows
        # Without an id or url, an article is its ticker, instant and title.
        when = pc.coalesce(
            pc.strftime(rows["published_at"], format="%Y-%m-%dT%H:%M:%SZ"),
            pc.strftime(rows["dated_session"], format="%Y-%m-%d"),
        )
        fallback = pc.if_else(
            pc.equal(rows["url"], ""),
            pc.binary_join_element_wise(rows["symbol"], when, rows["title"], "/"),
            rows["url"],
        )
        rows = rows.set_column(
            NEWS.get_field_index("article_id"), "article_id", pc.coalesce(rows["article_id"], fallback)
        )
        sessions = [
            self._news_session(published, dated)
            for published, dated in zip(
                rows["published_at"].to_pylist(), rows["dated_session"].to_pylist(), strict=True
            )
        ]
        rows = rows.append_column("session", pa.array(sessions, pa.date32()))
        return self._keep(rows, "session", first, last).drop_columns(["session"])

    def _news_session(self, published: dt.datetime | None, dated: dt.date | None) -> dt.date | None:
        """The session that the article first counts for; a dated one counts from the following session on."""
        if published is not None:
            if not self.calendar.covers(published):
                return None
            return self.calendar.session_of(published)
        assert dated is not None
        if not self.calendar.is_session(dated):
            later = self.calendar.sessions(dated, dated + dt.timedelta(days=14))
            return later[0] if later else None
        return self.calendar.shift(dated, 1)

    def minute_bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.minute_bars`. Quotes and sizes may be absent."""
        rows = self._read(
            "minute_bars", MINUTE_BARS, optional=dict.fromkeys(("bid", "ask", "bid_size", "ask_size"))
        )
        days = pc.cast(
            pc.local_timestamp(pc.cast(rows["ts"], pa.timestamp("us", "America/New_York"))), pa.date32()
        )
        return self._keep(rows.append_column("session", days), "session", first, last).drop_columns(
            ["session"]
        )

    def securities(self) -> pa.Table:
        """`securities.csv` or `.parquet` when there is one; otherwise the symbols of the bars, unclassified."""
        rows = read_securities(self.folder)
        if rows is None:
            symbols = sorted(
                set(self._read("bars", BARS, {"dividend": 0.0, "split_factor": 1.0})["symbol"].to_pylist())
            )
            blank = [""] * len(symbols)
            rows = pa.table(
                {"symbol": symbols, "name": blank, "sector": blank, "industry": blank, "peers": blank},
                schema=SECURITIES,
            )
        return rows.filter(pc.is_in(rows["symbol"], pa.array(self.symbols))) if self.symbols else rows

    def _read(
        self,
        kind: str,
        schema: pa.Schema,
        optional: dict[str, object],
        either: tuple[str, str] | None = None,
    ) -> pa.Table:
        parts = []
        for path in self._files(kind):
            part = _conform(path, _load(path), schema, optional, either)
            parts.append(part)
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def _keep(self, rows: pa.Table, column: str, first: dt.date, last: dt.date) -> pa.Table:
        keep = pc.and_(
            pc.greater_equal(rows[column], pa.scalar(first)), pc.less_equal(rows[column], pa.scalar(last))
        )
        if self.symbols:
            keep = pc.and_(keep, pc.is_in(rows["symbol"], pa.array(self.symbols)))
        return rows.filter(keep)


def read_securities(folder: Path) -> pa.Table | None:
    """`securities.csv` or `.parquet` of a folder as `SECURITIES`; None where there is none. Vendors without a master read it too.

    Raises:
        SourceError: the file is not what it has to be.
    """
    for suffix in _FORMATS:
        path = folder / f"securities{suffix}"
        if path.is_file():
            blank: dict[str, object] = {"name": "", "sector": "", "industry": "", "peers": ""}
            return _conform(path, _load(path), SECURITIES, blank)
    return None


def _load(path: Path) -> pa.Table:
    """One file as it stands: CSV columns as text, Parquet columns as typed."""
    if path.name.lower().endswith((".parquet", ".pq")):
        import pyarrow.parquet as pq

        try:
            return _unique_columns(path, pq.read_table(path))
        except (pa.ArrowInvalid, OSError) as error:
            raise SourceError(f"{path}: cannot be read as Parquet: {error}") from error
    import pyarrow.csv as pacsv

    malformed: list[pacsv.InvalidRow] = []

    def remember(row: pacsv.InvalidRow) -> str:
        malformed.append(row)
        return "error"

    try:
        with pa.input_stream(str(path)) as stream:  # decompresses by extension
            text = stream.read()
        names = [
            name.strip().strip('"') for name in text.split(b"\n", 1)[0].decode("utf-8-sig").strip().split(",")
        ]
        return _unique_columns(
            path,
            pacsv.read_csv(
                pa.BufferReader(text),
                # One thread: only then does the reader know the number of a malformed row.
                read_options=pacsv.ReadOptions(use_threads=False),
                parse_options=pacsv.ParseOptions(invalid_row_handler=remember),
                convert_options=pacsv.ConvertOptions(
                    # As text; and only an empty cell is null, because NA is a ticker.
                    column_types={name: pa.string() for name in names},
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            ),
        )
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        if malformed:
            row = malformed[0]
            raise SourceError(
                f"{path}:{row.number}: malformed CSV: {row.actual_columns} cells where the header has "
                f"{row.expected_columns} columns: {row.text}"
            ) from None
        raise SourceError(f"{path}: cannot be read as CSV: {error}") from error


def _unique_columns(path: Path, table: pa.Table) -> pa.Table:
    doubled = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if doubled:
        raise SourceError(f"{path}: wrong columns: {', '.join(doubled)} occurs more than once")
    return table


def _row_numbers(path: Path, rows: int) -> list[int]:
    """Number of each row for messages: the line in a CSV file (header and blank lines count), the row in Parquet."""
    if ".csv" not in path.name.lower():
        return list(range(1, rows + 1))
    with pa.input_stream(str(path)) as stream:
        lines = stream.read().split(b"\n")
    numbers = [i for i, line in enumerate(lines, start=1) if line.strip()][1:]
    # A quoted cell may hold a line break; then lines and rows cannot be matched and the row's position has to do.
    return numbers if len(numbers) == rows else list(range(2, rows + 2))


def _conform(
    path: Path,
    raw: pa.Table,
    schema: pa.Schema,
    optional: dict[str, object],
    either: tuple[str, str] | None = None,
) -> pa.Table:
    """Columns by name and type; every failure names file, row and rule."""
    number = _row_numbers(path, raw.num_rows)
    if schema is NEWS:
        raw = raw.rename_columns([_NEWS_ALIASES.get(name, name) for name in raw.column_names])
    wanted = [name for name in schema.names if name != "origin"]
    required = [name for name in wanted if name not in optional]
    shown = {alias: name for name, alias in _NEWS_ALIASES.items()}
    if missing := [name for name in required if name not in raw.column_names]:
        raise SourceError(
            f"{path}: wrong columns: {', '.join(missing)} missing; found {', '.join(raw.column_names)}; "
            f"needs {', '.join(required)}, may have {', '.join(shown.get(o, o) for o in optional)}"
        )
    if either and not any(name in raw.column_names for name in either):
        raise SourceError(
            f"{path}: wrong columns: one of {', '.join(shown.get(e, e) for e in either)} is needed"
        )
    columns = []
    for field in schema:
        if field.name == "origin":
            columns.append(pa.array([f"{path.name}:{i}" for i in number], pa.string()))
        elif field.name in raw.column_names:
            column = _convert(path, field, raw[field.name], number)
            if field.name in optional and optional[field.name] is not None:
                column = pc.fill_null(column, pa.scalar(optional[field.name], field.type))
            columns.append(column)
        else:
            columns.append(pa.array([optional[field.name]] * raw.num_rows, field.type))
    table = pa.table(columns, schema=schema)
    for name in required:
        if pa.types.is_floating(schema.field(name).type):
            continue  # a missing number is judged by the market rules, row by row
        if table[name].null_count:
            row = pc.index(pc.is_null(table[name]), True).as_py()
            raise SourceError(f"{path}:{number[row]}: {name} is empty; every row needs one")
    if either:
        both_null = pc.and_(pc.is_null(table[either[0]]), pc.is_null(table[either[1]]))
        if pc.any(both_null).as_py():
            row = pc.index(both_null, True).as_py()
            raise SourceError(f"{path}:{number[row]}: neither published_at nor session is given")
    return table


def _convert(path: Path, field: pa.Field, column: pa.ChunkedArray, number: list[int]) -> pa.ChunkedArray:
    if field.type == INSTANT:
        return _instants(path, field.name, column, number)
    if pa.types.is_date(field.type) and pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.timestamp("us"), safe=False)
    if field.name == "symbol":
        column = pc.utf8_upper(pc.utf8_trim_whitespace(pc.cast(column, pa.string())))
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    try:
        return pc.cast(column, field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        for row, value in enumerate(column.to_pylist()):
            try:
                pc.cast(pa.array([value], column.type), field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                kind = "a date (YYYY-MM-DD)" if pa.types.is_date(field.type) else "a number"
                raise SourceError(f"{path}:{number[row]}: {field.name} = {value!r} is not {kind}") from None
        raise


def _instants(path: Path, name: str, column: pa.ChunkedArray, number: list[int]) -> pa.ChunkedArray:
    """Timestamps to UTC. Every one must say its zone: local times with a forgotten zone shift decisions by hours."""
    if pa.types.is_timestamp(column.type):
        if column.type.tz is None:
            raise SourceError(f"{path}: column {name} has no time zone; store it as UTC or with an offset")
        return pc.cast(column, INSTANT)
    values: list[dt.datetime | None] = []
    for row, value in enumerate(column.to_pylist()):
        if value is None:
            values.append(None)
            continue
        try:
            instant = dt.datetime.fromisoformat(value.strip())
        except ValueError:
            raise SourceError(
                f"{path}:{number[row]}: {name} = {value!r} is not an ISO 8601 instant"
            ) from None
        if instant.tzinfo is None:
            raise SourceError(
                f"{path}:{number[row]}: {name} = {value!r} has no time zone; "
                "every row needs an offset, such as 2024-03-01T21:00:00Z"
            )
        values.append(instant.astimezone(dt.UTC))
    return pa.chunked_array([pa.array(values, INSTANT)])
