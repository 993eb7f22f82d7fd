"""A vendor's JSON to Arrow: ours (msgspec into columns) against the way the public Alpha Vantage client does it (json and pandas).

Belongs here: the peer, written as `alpha_vantage` 3.0.0 does it for `output_format="pandas"` (`DataFrame.from_dict(..., orient="index")`, numbers
from strings, dates from the index), and the proof that both give the same columns. Does not belong here: our side;
`quant_resources/sources/alpha_vantage_wire.py` is called as it stands.

The daily document is ten years of the sample's IBM in the vendor's format; the minutes are those of a month, made from the same prices.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
from collections.abc import Callable

import pandas as pd
import pyarrow as pa

from benchmarks import in_turn, last_line, print_table, spread
from quant_resources.calendar import NEW_YORK
from quant_resources.sources import INSTANT
from quant_resources.sources.alpha_vantage_wire import daily_bars, minute_bars
from quant_resources.sources.sample import SampleSource

SYMBOL = "IBM"
FIRST, LAST = dt.date(2003, 3, 3), dt.date(2013, 3, 1)
MINUTES_OF_A_SESSION, SESSIONS_OF_A_MONTH = 390, 21
REPEATS = 15
PRICES = ("open", "high", "low", "close")
DAILY = (*PRICES, "volume", "dividend", "split_factor")


def daily_document() -> bytes:
    """Ten years of IBM as TIME_SERIES_DAILY_ADJUSTED answers: the newest first, numbers as text."""
    bars = SampleSource((SYMBOL,)).bars(FIRST, LAST).sort_by([("session", "descending")]).to_pylist()
    series = {
        bar["session"].isoformat(): {
            "1. open": str(bar["open"]),
            "2. high": str(bar["high"]),
            "3. low": str(bar["low"]),
            "4. close": str(bar["close"]),
            "5. adjusted close": str(bar["close"]),
            "6. volume": f"{bar['volume']:.0f}",
            "7. dividend amount": f"{bar['dividend']:.4f}",
            "8. split coefficient": str(bar["split_factor"]),
        }
        for bar in bars
    }
    meta = {"1. Information": "Daily Time Series with Splits and Dividend Events", "2. Symbol": SYMBOL}
    return json.dumps({"Meta Data": meta, "Time Series (Daily)": series}, indent=4).encode()


def minute_document() -> bytes:
    """A month of minutes as TIME_SERIES_INTRADAY answers; the prices are daily ones, one after another."""
    bars = SampleSource((SYMBOL,)).bars(FIRST, LAST).to_pylist()
    days = list(pd.bdate_range("2013-02-01", periods=SESSIONS_OF_A_MONTH))[::-1]
    starts = [
        day + pd.Timedelta(hours=9, minutes=30 + minute)
        for day in days
        for minute in reversed(range(MINUTES_OF_A_SESSION))
    ]
    series = {}
    for i, start in enumerate(starts):
        bar = bars[i % len(bars)]
        series[f"{start:%Y-%m-%d %H:%M:%S}"] = {
            **{f"{j}. {name}": f"{bar[name]:.4f}" for j, name in enumerate(PRICES, start=1)},
            "5. volume": f"{bar['volume']:.0f}",
        }
    meta = {
        "1. Information": "Intraday (1min) open, high, low, close prices and volume",
        "2. Symbol": SYMBOL,
        "4. Interval": "1min",
        "6. Time Zone": "US/Eastern",
    }
    return json.dumps({"Meta Data": meta, "Time Series (1min)": series}, indent=4).encode()


def client_frame(body: bytes, key: str) -> pd.DataFrame:
    """What the public client hands over: a frame of floats by date."""
    frame = pd.DataFrame.from_dict(json.loads(body)[key], orient="index").astype(float)
    frame.index = pd.to_datetime(frame.index)
    frame.index.name = "date"
    # The client's columns are called "1. open"; a user strips the numbers.
    frame.columns = [name.split(". ", 1)[1] for name in frame.columns]
    return frame


def client_daily(body: bytes) -> pa.Table:
    """The daily document by way of the client."""
    frame = client_frame(body, "Time Series (Daily)").rename(
        columns={"dividend amount": "dividend", "split coefficient": "split_factor"}
    )
    session = pa.array(frame.index.to_numpy()).cast(pa.timestamp("s")).cast(pa.date32())
    columns = {name: pa.array(frame[name].to_numpy()) for name in DAILY}
    return pa.table({"symbol": pa.repeat(SYMBOL, len(frame)), "session": session, **columns})


def client_minutes(body: bytes) -> pa.Table:
    """The month of minutes by way of the client; its times are New York's."""
    frame = client_frame(body, "Time Series (1min)")
    ts = pa.array(frame.index.tz_localize(NEW_YORK).tz_convert("UTC")).cast(INSTANT)
    columns = {name: pa.array(frame[name].to_numpy()) for name in (*PRICES, "volume")}
    return pa.table({"symbol": pa.repeat(SYMBOL, len(frame)), "ts": ts, **columns})


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    repeats = parser.parse_args().repeats
    daily, minutes = daily_document(), minute_document()
    cases: dict[str, tuple[bytes, Callable[[], pa.Table], Callable[[], pa.Table]]] = {
        "daily_10_years": (
            daily,
            lambda: daily_bars(daily, SYMBOL, True, "benchmark"),
            lambda: client_daily(daily),
        ),
        "minutes_1_month": (
            minutes,
            lambda: minute_bars(minutes, SYMBOL, "benchmark"),
            lambda: client_minutes(minutes),
        ),
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    rows: dict[str, int] = {}
    for case, (_, ours, theirs) in cases.items():
        expected = theirs()
        found = ours().select(expected.column_names)
        if not found.combine_chunks().equals(expected.cast(found.schema).combine_chunks()):
            raise SystemExit(f"{case}: the two sides differ")
        rows[case] = found.num_rows
        seconds[case] = in_turn({"ours": ours, "client": theirs}, repeats)
    medians = {
        case: {side: statistics.median(s) for side, s in sides.items()} for case, sides in seconds.items()
    }
    ratios = {case: sides["client"] / sides["ours"] for case, sides in medians.items()}
    print_table(
        ["document", "KiB", "rows", "side", "median ms", "min", "max", "ours is"],
        [
            [
                case,
                f"{len(cases[case][0]) / 2**10:,.0f}",
                f"{rows[case]:,}",
                side,
                f"{1e3 * statistics.median(values):.2f}",
                f"{1e3 * min(values):.2f}",
                f"{1e3 * max(values):.2f}",
                "" if side == "ours" else f"{ratios[case]:.2f} x",
            ]
            for case, sides in seconds.items()
            for side, values in sides.items()
        ],
    )
    print("\n'ours is 2.00 x' = ours takes half the client's time.\n", flush=True)
    last_line(
        "vendor_parse",
        ratio=ratios["daily_10_years"],
        ratios=ratios,
        ours=spread(seconds["daily_10_years"]["ours"]),
        theirs=spread(seconds["daily_10_years"]["client"]),
        work=f"an answer of TIME_SERIES_DAILY_ADJUSTED with {rows['daily_10_years']:,} sessions ({len(daily) / 2**20:.2f} MiB of JSON) to "
        f"Arrow columns; ours msgspec, theirs json and pandas {pd.__version__} as alpha_vantage 3.0.0 does it; one thread each",
        equal=True,
        equal_how="every column of both documents identical, bit for bit",
    )


if __name__ == "__main__":
    main()
