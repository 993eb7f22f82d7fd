"""From the tables of bars and features to the market of the portfolio environment.

Belongs here: reading, aligning symbols on one axis of sessions, the features an agent sees, windows. Does not belong here:
Dagster, trading (`quant_assets/environments/portfolio.py`) and learning.

Everything in row T comes from rows of session T or before, except `next_return`. Scales are trailing, so that a cut at T leaves
all features up to T bit for bit.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from quant_assets.environments.portfolio import UNKNOWN_ROWS, PortfolioMarket
from quant_assets.features import tables as feature_tables
from quant_assets.market import tables as market_tables
from quant_assets.market.adjustment import adjust_bars
from quant_assets.market.series import ARRAYS, BarSeries, SeriesError, bar_series
from quant_assets.models.dataset import DatasetError, Windows, make_windows
from quant_resources.duckdb import query
from quant_resources.iceberg import TableSpec, Warehouse

BAR_FEATURES = ("scaled_log_return", "scaled_log_volume_change")
# Bars of a trailing scale, and how many a symbol needs before it has one and may be traded.
SCALE_BARS = 60
VOLATILITY_BARS = 20
EXTRA_SCALE_BARS = 250
FEATURE_LIMIT = 5.0
# The median absolute value of a normal variable is this share of its standard deviation.
MEDIAN_TO_DEVIATION = 0.6744897501960817
FEATURE_TABLES = (feature_tables.TECHNICAL, feature_tables.SENTIMENT, feature_tables.PEERS)


class PortfolioData(NamedTuple):
    """A market and where it comes from.

    Attributes:
        market: as the environment takes it.
        snapshots: table name -> Iceberg snapshot id that was read.
        sources: table name -> source of its rows, such as 'sample' or 'simulated', for tables that record one.
    """

    market: PortfolioMarket
    snapshots: dict[str, int | None]
    sources: dict[str, str]


class PortfolioWindows(NamedTuple):
    """Three windows of one market; no return of one ends in the next.

    Attributes:
        train, validation, out_of_sample: markets that end with their window.
        windows: the bounds.
    """

    train: PortfolioMarket
    validation: PortfolioMarket
    out_of_sample: PortfolioMarket
    windows: Windows


def read_portfolio_market(
    warehouse: Warehouse,
    symbols: Sequence[str] | None = None,
    first: dt.date | None = None,
    last: dt.date | None = None,
    extra_features: Sequence[str] = (),
) -> PortfolioData:
    """Read a market.

    Args:
        warehouse: holds `market.bars` and the tables of the extra features.
        symbols: assets in this order; all, by name, when None.
        first: session of the first decision; look-backs and scales read what is stored before it. None for the first bar.
        last: last session that is read; None for the newest.
        extra_features: columns of `features.technical`, `features.sentiment` or `features.peers`, such as 'rsi_14' or
            'sentiment_sma_1'; each is scaled by the mean and the deviation of the symbol's last 250 rows.

    Raises:
        DatasetError: no bars, or an unknown feature.
        SeriesError: an unknown symbol, or impossible prices.
        EnvironmentRefusal: no whole decision between `first` and `last`.
    """
    specs = {name: _table_of(name) for name in extra_features}
    snapshots = {market_tables.BARS.name: warehouse.snapshot_id(market_tables.BARS)}
    bars = warehouse.read(market_tables.BARS, last=last, snapshot_id=snapshots[market_tables.BARS.name])
    if not bars.num_rows:
        raise DatasetError(
            f"market/bars holds no bar until {last or 'today'}; run ingest_job for these sessions first"
        )
    read = {market_tables.BARS.name: bars}
    for spec in dict.fromkeys(specs.values()):
        snapshots[spec.name] = warehouse.snapshot_id(spec)
        read[spec.name] = warehouse.read(spec, last=last, snapshot_id=snapshots[spec.name])
        if not read[spec.name].num_rows:
            raise DatasetError(
                f"{spec.name} holds no row until {last or 'today'}; materialize {spec.name.replace('.', '/')}"
            )
    market = portfolio_market(
        bar_series(bars, symbols), {name: read[spec.name] for name, spec in specs.items()}
    )
    if first is not None:
        market = market.between(first, market.sessions[-1])
    sources = {
        name: ", ".join(sorted(set(rows["source"].to_pylist())))
        for name, rows in read.items()
        if "source" in rows.column_names
    }
    return PortfolioData(market, snapshots, sources)


SESSION_MINUTES = 390
# Bars of some minutes, labelled by their end in New York, within the regular session; splits and dividends belong to the first
# bar of a session.
MINUTE_SQL = """
WITH placed AS (
    SELECT symbol, session, ts, open, high, low, close, volume,
           date_diff('minute', CAST(session AS TIMESTAMP) + INTERVAL 570 MINUTE, timezone('America/New_York', ts)) AS minute
    FROM minutes
), grouped AS (
    SELECT symbol, session, CAST(floor(minute / $width) AS INTEGER) AS period,
           arg_min(open, minute) AS open, max(high) AS high, min(low) AS low, arg_max(close, minute) AS close,
           sum(volume) AS volume
    FROM placed WHERE minute BETWEEN 0 AND 389 GROUP BY ALL
)
SELECT g.symbol, CAST(g.session AS TIMESTAMP) + to_minutes(570 + least((period + 1) * $width, 390)) AS session,
       g.open, g.high, g.low, g.close, g.volume,
       CASE WHEN row_number() OVER day = 1 THEN d.dividend ELSE 0.0 END AS dividend,
       CASE WHEN row_number() OVER day = 1 THEN d.split_factor ELSE 1.0 END AS split_factor
FROM grouped g LEFT JOIN daily d USING (symbol, session)
WINDOW day AS (PARTITION BY g.symbol, g.session ORDER BY period)
ORDER BY g.symbol, 2
"""


def read_minute_portfolio_market(
    warehouse: Warehouse,
    minutes: int,
    symbols: Sequence[str] | None = None,
    first: dt.date | None = None,
    last: dt.date | None = None,
) -> PortfolioData:
    """The same from `market.minute_bars`: rebalancing every so many minutes of the regular session.

    Args:
        warehouse: holds `market.minute_bars` and, for splits and dividends, `market.bars`.
        minutes: of a period. Row T is the end of a period, New York time: what is decided then is traded at the open of the next
            one, also when that is the next morning's.
        symbols: assets in this order; all, by name, when None.
        first, last: sessions that are read.

    Raises:
        DatasetError: no minute bars, or a session of them without its daily bar.
        SeriesError: an unknown symbol, or impossible prices.
    """
    if not 1 <= minutes <= SESSION_MINUTES:
        raise DatasetError(f"minutes = {minutes}: a period has 1 to {SESSION_MINUTES} of them")
    specs = (market_tables.MINUTE_BARS, market_tables.BARS)
    snapshots = {spec.name: warehouse.snapshot_id(spec) for spec in specs}
    read = {spec.name: warehouse.read(spec, first, last, snapshot_id=snapshots[spec.name]) for spec in specs}
    bars, daily = (read[spec.name] for spec in specs)
    if not bars.num_rows:
        raise DatasetError(
            f"market/minute_bars holds no bar from {first or 'the beginning'} to {last or 'today'}: the source has none, or "
            "ingest_job has not brought them in"
        )
    rows = query(
        MINUTE_SQL,
        {"minutes": bars, "daily": daily.select(["symbol", "session", "dividend", "split_factor"])},
        {"width": minutes},
    )
    if rows["split_factor"].null_count:
        at = rows.filter(pc.is_null(rows["split_factor"])).slice(0, 1).to_pylist()[0]
        raise DatasetError(
            f"{at['symbol']} has minute bars on {at['session']:%Y-%m-%d} and no daily bar in market/bars, which knows splits and "
            "dividends: ingest that session's bars"
        )
    known = sorted(set(rows["symbol"].to_pylist()))
    if unknown := [symbol for symbol in symbols or () if symbol not in known]:
        raise SeriesError(f"no minute bars of {', '.join(unknown)}; there are bars of {', '.join(known)}")
    series = {}
    for symbol in symbols or known:
        mine = adjust_bars(rows.filter(pc.equal(rows["symbol"], symbol)))
        series[symbol] = BarSeries(
            symbol,
            mine["session"].to_numpy().astype("datetime64[m]"),
            **{name: np.ascontiguousarray(mine[name].to_numpy(), dtype=np.float64) for name in ARRAYS},
        )
    market = portfolio_market(series, periods_per_year=252.0 * SESSION_MINUTES / minutes)
    sources = {name: ", ".join(sorted(set(table["source"].to_pylist()))) for name, table in read.items()}
    return PortfolioData(market, snapshots, sources)


def portfolio_market(
    series: Mapping[str, BarSeries],
    extra_features: Mapping[str, pa.Table] | None = None,
    periods_per_year: float = 252.0,
) -> PortfolioMarket:
    """Align bars on the union of their sessions.

    An asset may be held while it has a bar on the session of the decision and 20 returns behind it. On a session without a bar
    it is worth its last close: nothing is earned there, the next bar brings all of the move, and an order is filled at that
    close, because on the day of the decision nobody knew that there would be no trading. Daily sources rarely have such a
    session; a symbol that ends is sold at its last close.

    Args:
        series: bars by symbol; dividends and splits are no moves (`adjusted` prices).
        extra_features: name -> table with symbol, session and a column of that name.
        periods_per_year: bars of a year.

    Returns:
        The market. Features: log return over 1 / 0.67 of the trailing median absolute one of 60 bars (at least 20), the same for
        log changes of volume in shares adjusted for splits, then the extra ones, all clipped to plus or minus 5 and 0 where
        unknown. `volatility` is the root mean square log return of the last 20 bars.
    """
    symbols = tuple(series)
    sessions = np.unique(np.concatenate([bars.sessions for bars in series.values()]))
    names = (*BAR_FEATURES, *(extra_features or {}))
    shape = (len(sessions), len(symbols))
    features = np.zeros((shape[0], len(names), shape[1]))
    next_return = np.full(shape, np.nan)
    open_to_close, volatility = np.zeros(shape), np.zeros(shape)
    log_return, tradable = np.full(shape, np.nan), np.zeros(shape, bool)
    for asset, (symbol, bars) in enumerate(series.items()):
        at = np.searchsorted(sessions, bars.sessions)
        change = np.log(bars.adj_close[1:] / bars.adj_close[:-1])
        volume_change = _log_volume_change(bars)
        features[at[1:], 0, asset] = _robust_score(change)
        features[at[1:], 1, asset] = _robust_score(volume_change)
        open_to_close[at, asset] = bars.close / bars.open - 1
        # A session without a bar after the first ones: no move, the last volatility.
        log_return[at[0] + 1 :, asset] = 0.0
        log_return[at[1:], asset] = change
        if len(change) >= VOLATILITY_BARS:
            runs = np.lib.stride_tricks.sliding_window_view(change**2, VOLATILITY_BARS)
            known = np.sqrt(np.ascontiguousarray(runs).mean(-1))
            tradable[at[VOLATILITY_BARS:], asset] = True
            volatility[:, asset] = _carried(known, at[VOLATILITY_BARS:], shape[0], before=0.0)
        # Prices at which a trade is made: the open, or the last close where there is no bar.
        price = _carried(bars.adj_close, at, shape[0], before=np.nan)
        price[at] = bars.adj_open
        earned = price[2:] / price[1:-1] - 1
        next_return[:-UNKNOWN_ROWS, asset] = np.where(np.isfinite(earned), earned, 0.0)
        for k, (name, table) in enumerate((extra_features or {}).items(), start=len(BAR_FEATURES)):
            days, values = _column(table, symbol, name)
            found = np.isin(days, sessions)
            rows = np.searchsorted(sessions, days[found])
            features[rows, k, asset] = _score(values)[found]
    return PortfolioMarket(
        sessions=sessions,
        symbols=symbols,
        features=features,
        feature_names=names,
        next_return=next_return,
        open_to_close=open_to_close,
        log_return=log_return,
        tradable=tradable,
        volatility=volatility,
        periods_per_year=periods_per_year,
    )


def split_market(
    market: PortfolioMarket,
    in_sample_fraction: float = 0.4,
    in_sample_last: dt.date | None = None,
    validation_fraction: float = 0.2,
    embargo_sessions: int = 5,
) -> PortfolioWindows:
    """Cut a market into train, validation and out-of-sample by the rule of the classifiers (`make_windows`).

    Days from the first decision on, on which something can be traded, are shared out; minutes follow their day.

    Raises:
        DatasetError: too few sessions.
    """
    able = np.flatnonzero(market.tradable.any(-1))
    able = able[able >= market.first_decision]
    start = int(able[0]) if able.size else len(market)
    sessions = np.unique(market.sessions[start:].astype("datetime64[D]")).astype(object).tolist()
    windows = make_windows(
        sessions, in_sample_fraction, in_sample_last, validation_fraction, embargo_sessions
    )
    train_last = sessions[sessions.index(windows.purge_before) - 1]
    return PortfolioWindows(
        train=market.between(windows.train_first, train_last),
        validation=market.between(windows.validation_first, windows.in_sample_last),
        out_of_sample=market.between(windows.out_of_sample_first, windows.out_of_sample_last),
        windows=windows,
    )


def _table_of(feature: str) -> TableSpec:
    known = {
        column.name: spec for spec in FEATURE_TABLES for column in spec.columns if column.type == "double"
    }
    if feature not in known:
        raise DatasetError(f"no table has a feature {feature!r}; there are {', '.join(sorted(known))}")
    return known[feature]


def _log_volume_change(bars: BarSeries) -> np.ndarray:
    """Per bar after the first; NaN where either volume is 0."""
    before, now = bars.volume[:-1] * bars.split_factor[1:], bars.volume[1:]
    change = np.full(len(now), np.nan)
    traded = (before > 0) & (now > 0)
    change[traded] = np.log(now[traded] / before[traded])
    return change


def _robust_score(values: np.ndarray) -> np.ndarray:
    """Values over their trailing scale, which one crash cannot stretch; 0 where either is unknown."""
    median = pd.Series(np.abs(values)).rolling(SCALE_BARS, min_periods=VOLATILITY_BARS).median().to_numpy()
    return _clipped(values, median / MEDIAN_TO_DEVIATION)


def _score(values: np.ndarray) -> np.ndarray:
    """Distance from the trailing mean in trailing deviations; most of a sentiment may be 0, so no median here."""
    past = pd.Series(values).rolling(EXTRA_SCALE_BARS, min_periods=VOLATILITY_BARS)
    return _clipped(values - past.mean().to_numpy(), past.std().to_numpy())


def _clipped(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    known = np.isfinite(values) & (scale > 0)
    score = np.divide(values, scale, out=np.zeros(len(values)), where=known)
    return np.clip(score, -FEATURE_LIMIT, FEATURE_LIMIT)


def _carried(values: np.ndarray, at: np.ndarray, length: int, before: float) -> np.ndarray:
    """Values at the positions `at` of an axis, each kept until the next; `before` in front of the first."""
    last = np.searchsorted(at, np.arange(length), side="right") - 1
    return np.where(last >= 0, values[np.maximum(last, 0)], before)


def _column(table: pa.Table, symbol: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.compute as pc

    rows = table.filter(pc.equal(table["symbol"], symbol)).sort_by("session")
    return rows["session"].to_numpy().astype("datetime64[D]"), rows[name].to_numpy().astype(np.float64)
