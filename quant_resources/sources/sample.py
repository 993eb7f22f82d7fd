"""Source `sample`: real daily bars of AAPL, FB, GOOG, IBM and MSFT, 2000-03-01 to 2013-03-01, with simulated news.

Belongs here: reading `bokeh_sampledata` and recovering splits and dividends from its adjusted close. The news feed is
generated in `simulated_news.py`.
"""

from __future__ import annotations

import datetime as dt
from functools import cached_property

import numpy as np
import pyarrow as pa

from quant_resources.calendar import TradingCalendar
from quant_resources.sources import BARS, MINUTE_BARS, SECURITIES, SourceError

FIRST_SESSION = dt.date(2000, 3, 1)
LAST_SESSION = dt.date(2013, 3, 1)

# Curated by hand as of early 2013. Sector and industry follow the GICS structure of that time.
_SECURITIES = (
    ("AAPL", "Apple", "Information Technology", "Computers & Peripherals", "GOOG,IBM,MSFT"),
    ("FB", "Facebook", "Information Technology", "Internet Software & Services", "GOOG"),
    ("GOOG", "Google", "Information Technology", "Internet Software & Services", "AAPL,FB,MSFT"),
    ("IBM", "International Business Machines", "Information Technology", "IT Services", "MSFT"),
    ("MSFT", "Microsoft", "Information Technology", "Software", "AAPL,GOOG,IBM"),
)

_SPLIT_RATIOS = (1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0)
# Adjusted closes are printed with six decimals and start near one dollar, so a day without an event moves their
# ratio to the raw close by at most about 1e-6. The smallest real dividend (IBM, 0.12 on 90) moves it by 1.3e-3.
_FACTOR_NOISE = 5e-5
# Half the price in cash is no dividend that these companies ever paid (the largest, MSFT 2004-11-15, was 11 %).
LARGEST_DIVIDEND_STEP = 1.5


def recover_events(
    open_: np.ndarray, close: np.ndarray, adjusted_close: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Recover cash dividends and split factors from a raw and an adjusted close.

    With f = adjusted / raw, the step c_t = f_t / f_{t-1} is 1 on a day without an event. The vendor's convention
    (CRSP's) is c_t = split_t * (1 + dividend_t / close_t). A step near a usual split ratio counts as a split only
    if the raw price really fell by about that ratio at the open; what remains of the step is the dividend. A crash
    moves raw and adjusted price alike, c stays 1, and nothing is recovered (AAPL, 2000-09-29, -51.9 %).

    Args:
        open_, close, adjusted_close: shape (sessions,), one symbol, in order.

    Returns:
        (dividend, split_factor), each shape (sessions,); dividend in dollars per share of that session, rounded to
        0.0001, split_factor in new shares per old share.

    Raises:
        SourceError: the adjusted close jumps in a way that no split or dividend explains.
    """
    dividend = np.zeros(len(close))
    split_factor = np.ones(len(close))
    factor = adjusted_close / close
    for t in range(1, len(close)):
        step = factor[t] / factor[t - 1]
        if abs(step - 1) <= _FACTOR_NOISE:
            continue
        for ratio in _SPLIT_RATIOS:
            if abs(step / ratio - 1) < 0.05 and abs(open_[t] * ratio / close[t - 1] - 1) < 0.15:
                split_factor[t] = ratio
                step /= ratio
                break
        if step > LARGEST_DIVIDEND_STEP or step < 1 - _FACTOR_NOISE:
            raise SourceError(
                f"row {t}: adjusted close steps by {step:.6f}, which no split or dividend explains"
            )
        if step - 1 > _FACTOR_NOISE:
            dividend[t] = round(close[t] * (step - 1), 4)
    return dividend, split_factor


class SampleSource:
    """The bundled sample behind the `MarketSource` protocol.

    Args:
        symbols: tickers to keep; all five when None.
        seed: seed of the simulated news.

    Raises:
        SourceError: a symbol that the sample does not have.
    """

    name = "sample"
    news_is_simulated = True
    has_minute_bars = False
    overlap_sessions = 0
    is_live = False

    def __init__(self, symbols: tuple[str, ...] | None = None, seed: int = 0) -> None:
        known = tuple(row[0] for row in _SECURITIES)
        if unknown := [s for s in symbols or () if s not in known]:
            raise SourceError(
                f"the sample has no {', '.join(unknown)}; it has {', '.join(known)}. "
                "Set QUANT_SYMBOLS to some of these, or bring your own data with QUANT_SOURCE=files."
            )
        self.symbols = tuple(sorted(symbols or known))
        self.seed = seed
        self.calendar = TradingCalendar(FIRST_SESSION, LAST_SESSION)

    def span(self) -> tuple[dt.date, dt.date | None]:
        """2000-03-01 to 2013-03-01."""
        return FIRST_SESSION, LAST_SESSION

    @cached_property
    def _bars(self) -> pa.Table:
        """Every bar of all five symbols: the simulated news of one ticker mention the others."""
        import importlib.resources

        import pandas as pd

        path = importlib.resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz"
        with importlib.resources.as_file(path) as file:
            raw = pd.read_csv(file, parse_dates=["Date"])
        parts = []
        for symbol, rows in raw.groupby("Ticker", sort=True):
            rows = rows.sort_values("Date")
            dividend, split_factor = recover_events(
                rows["Open"].to_numpy(), rows["Close"].to_numpy(), rows["Adj Close"].to_numpy()
            )
            parts.append(
                pa.table(
                    {
                        "symbol": [str(symbol)] * len(rows),
                        "session": rows["Date"].dt.date.to_list(),
                        "open": rows["Open"].to_numpy(),
                        "high": rows["High"].to_numpy(),
                        "low": rows["Low"].to_numpy(),
                        "close": rows["Close"].to_numpy(),
                        "volume": rows["Volume"].to_numpy().astype(float),
                        "dividend": dividend,
                        "split_factor": split_factor,
                        "origin": [f"bokeh_sampledata/stocks.csv.gz:{i + 2}" for i in rows.index],
                    },
                    schema=BARS,
                )
            )
        return pa.concat_tables(parts)

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.bars`."""
        import pyarrow.compute as pc

        rows = self._bars
        keep = pc.is_in(rows["symbol"], pa.array(self.symbols))
        keep = pc.and_(keep, pc.greater_equal(rows["session"], pa.scalar(first)))
        keep = pc.and_(keep, pc.less_equal(rows["session"], pa.scalar(last)))
        return rows.filter(keep)

    def news(self, first: dt.date, last: dt.date) -> pa.Table:
        """Simulated articles; see `simulated_news.simulate`."""
        import pyarrow.compute as pc

        from quant_resources.sources.simulated_news import simulate

        names = {row[0]: row[1] for row in _SECURITIES}
        peers = {row[0]: tuple(row[4].split(",")) for row in _SECURITIES}
        rows = simulate(self._bars, names, peers, self.calendar, self.seed, first, last)
        return rows.filter(pc.is_in(rows["symbol"], pa.array(self.symbols)))

    def minute_bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """The sample has none."""
        return MINUTE_BARS.empty_table()

    def securities(self) -> pa.Table:
        """The curated security master."""
        rows = [row for row in _SECURITIES if row[0] in self.symbols]
        return pa.table(dict(zip(SECURITIES.names, zip(*rows, strict=True), strict=True)), schema=SECURITIES)
