"""The 13-year feature build: ours (DuckDB SQL) against the same features in pandas and in polars.

Belongs here: the peers, written as a good user of each library would write them, and the proof that all sides give
the same numbers. Does not belong here: our side; `quant_assets/features` is called as it stands.

Every side takes the Arrow tables that Iceberg hands over and gives an Arrow table back. What differs is the
definition: ours writes every window out in a fixed order, so that one night gives the same bits as thirteen years
(truncation invariance); the peers use running windows, whose last bits depend on where the table begins.
"""

# ruff: noqa: E402  # polars reads its number of threads when it is imported

from __future__ import annotations

import os

# The peers get as many threads as our DuckDB connection has by default (`quant_resources/duckdb.py`).
THREADS = 2
os.environ.setdefault("POLARS_MAX_THREADS", str(THREADS))

import argparse
import datetime as dt
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from benchmarks import in_turn, last_line, print_table, replicate, spread
from quant_assets.features.labels import LOOKBACK_SESSIONS as LABEL_LOOKBACK
from quant_assets.features.labels import TOUCH_TOLERANCE, LabelParameters, labels
from quant_assets.features.sentiment import BARS_BACK as SENTIMENT_BARS_BACK
from quant_assets.features.sentiment import LOOKBACK_SESSIONS as SENTIMENT_LOOKBACK
from quant_assets.features.sentiment import sentiment_features
from quant_assets.features.tables import ROC_PERIODS, SENTIMENT_PERIODS, SMA_PERIODS, TECHNICAL
from quant_assets.features.technical import (
    ATR_BARS,
    BARS_BACK,
    LOOKBACK_SESSIONS,
    RSI_BARS,
    VOLATILITY_BARS,
    calendar_table,
    technical_features,
)
from quant_assets.market import tables as market
from quant_assets.market.validation import validate_bars, validate_news
from quant_resources.calendar import TradingCalendar
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION, SampleSource

NEWS_SOURCE = "simulated"
TOLERANCE = 1e-9
LABELS = LabelParameters()
# Barriers as multiples of the entry price, giving way as in `features/labels.py`: a price exactly at its level is a touch.
LEVELS = (
    (1 + LABELS.profit_target_pct / 100) * (1 - TOUCH_TOLERANCE),
    (1 - LABELS.profit_target_pct / 100) * (1 + TOUCH_TOLERANCE),
    (1 + LABELS.stop_loss_pct / 100) * (1 - TOUCH_TOLERANCE),
    (1 - LABELS.stop_loss_pct / 100) * (1 + TOUCH_TOLERANCE),
)
VALUES = len(TECHNICAL.columns) - len(("symbol", "session", "available_at"))
# 5 symbols, and the same bars and articles under 100 names.
COPIES = {5: 1, 100: 20}
REPEATS = {5: 15, 100: 7}

Build = Callable[[], pa.Table]


def sample_tables() -> tuple[pa.Table, pa.Table, TradingCalendar]:
    """All bars and articles of the sample as the layer `market` stores them."""
    calendar = TradingCalendar(FIRST_SESSION, LAST_SESSION)
    source = SampleSource(seed=20000301)
    bars = validate_bars(source.bars(FIRST_SESSION, LAST_SESSION), calendar).rows
    closes = [calendar.close(day) for day in bars["session"].to_pylist()]
    bars = bars.append_column("available_at", pa.array(closes, pa.timestamp("us", "UTC")))
    bars = bars.append_column("source", pa.array([source.name] * bars.num_rows))
    news = validate_news(source.news(FIRST_SESSION, LAST_SESSION), calendar).rows
    news = news.append_column("source", pa.array([NEWS_SOURCE] * news.num_rows))
    return (
        market.BARS.conform(bars.select([c.name for c in market.BARS.columns])),
        market.NEWS.conform(news.select([c.name for c in market.NEWS.columns])),
        calendar,
    )


# -- pandas ------------------------------------------------------------------------------------------------------------


def _pandas_bars(bars: pa.Table, sessions: pa.Table) -> pd.DataFrame:
    frame = bars.to_pandas(date_as_object=False).merge(
        sessions.to_pandas(date_as_object=False), on="session", how="inner"
    )
    return frame.sort_values(["symbol", "session"], ignore_index=True)


def _pandas_out(columns: dict[str, Any], keep: pd.Series) -> pa.Table:
    return pa.Table.from_pandas(pd.DataFrame(columns)[keep], preserve_index=False)


def pandas_technical(bars: pa.Table, sessions: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    """Indicators with groupby, shift and rolling windows on prices adjusted forward from each symbol's first bar.

    Everything but the ATR is a ratio, in which the anchor of the adjustment cancels out; the ATR is brought back into
    the session's own dollars. So the values are the same as with prices in the units of each session.
    """
    frame = _pandas_bars(bars, sessions)
    step = frame["split_factor"] * (1 + frame["dividend"] / frame["close"])
    factor = step.groupby(frame["symbol"], sort=False).cumprod()
    frame["adjusted"] = frame["close"] * factor
    by_symbol = frame.groupby("symbol", sort=False)
    adjusted, previous = frame["adjusted"], by_symbol["adjusted"].shift(1)
    high, low = frame["high"] * factor, frame["low"] * factor
    frame["true_range"] = np.maximum(high - low, np.maximum((high - previous).abs(), (low - previous).abs()))
    move = adjusted - previous
    frame["gain"], frame["loss"] = move.clip(lower=0), (-move).clip(lower=0)
    log_return = np.log(adjusted / previous)
    frame["squared"] = log_return**2

    by_symbol = frame.groupby("symbol", sort=False)

    # The frame is sorted by symbol, so the groups of a rolling result stand in the frame's order.
    def rolling_mean(column: str, bars_: int) -> np.ndarray:
        return by_symbol[column].rolling(bars_).mean().to_numpy()

    means = pd.DataFrame(
        {
            "scaled_close": adjusted,
            **{f"scaled_sma_{k}": rolling_mean("adjusted", k) for k in SMA_PERIODS},
        }
    )
    low_, high_ = means.min(axis=1), means.max(axis=1)
    scaled = means.sub(low_, axis=0).div(high_ - low_, axis=0).where(high_ > low_, 0.5)
    atr = rolling_mean("true_range", ATR_BARS) / factor
    gain, loss = rolling_mean("gain", RSI_BARS), rolling_mean("loss", RSI_BARS)
    columns = {
        "symbol": frame["symbol"],
        "session": frame["session"],
        "available_at": frame["available_at"],
        "close": frame["close"],
        **scaled,
        **{f"roc_{k}_pct": 100 * (adjusted / by_symbol["adjusted"].shift(k) - 1) for k in ROC_PERIODS},
        "log_return": log_return,
        "log_volume_change": np.log(frame["volume"] / (by_symbol["volume"].shift(1) * frame["split_factor"])),
        "realized_volatility_20": np.sqrt(252 * rolling_mean("squared", VOLATILITY_BARS)),
        "atr_14": atr,
        "atr_14_pct": 100 * atr / frame["close"],
        "rsi_14": np.where(gain + loss > 0, 100 * gain / (gain + loss), 50),
    }
    complete = frame["position"] - by_symbol["position"].shift(BARS_BACK) <= LOOKBACK_SESSIONS
    return _pandas_out(columns, complete & frame["session"].between(pd.Timestamp(first), pd.Timestamp(last)))


def pandas_sentiment(
    news: pa.Table, bars: pa.Table, sessions: pa.Table, first: dt.date, last: dt.date
) -> pa.Table:
    """Relevance-weighted sentiment of each session, left-joined to the bars, with rolling means."""
    articles = news.select(["symbol", "session", "sentiment_score", "relevance_score", "source"]).to_pandas(
        date_as_object=False
    )
    articles["weighted"] = articles["sentiment_score"] * articles["relevance_score"]
    scored = articles.groupby(["symbol", "session"], as_index=False).agg(
        article_count=("weighted", "size"),
        weighted=("weighted", "sum"),
        weight=("relevance_score", "sum"),
        source=("source", "max"),
    )
    frame = _pandas_bars(bars.select(["symbol", "session", "available_at"]), sessions)
    frame = frame.merge(scored, on=["symbol", "session"], how="left")
    frame["score"] = (frame["weighted"] / frame["weight"]).where(frame["weight"] > 0, 0.0)
    by_symbol = frame.groupby("symbol", sort=False)
    columns = {
        "symbol": frame["symbol"],
        "session": frame["session"],
        "available_at": frame["available_at"],
        "article_count": frame["article_count"].fillna(0).astype("int64"),
        **{f"sentiment_sma_{k}": by_symbol["score"].rolling(k).mean().to_numpy() for k in SENTIMENT_PERIODS},
        "source": frame["source"].fillna(NEWS_SOURCE),
    }
    complete = frame["position"] - by_symbol["position"].shift(SENTIMENT_BARS_BACK) <= SENTIMENT_LOOKBACK
    return _pandas_out(columns, complete & frame["session"].between(pd.Timestamp(first), pd.Timestamp(last)))


def pandas_labels(bars: pa.Table, sessions: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    """Barrier labels (`first_touch`): shifts by 1..n and one `np.select` per side."""
    n = LABELS.horizon_sessions
    frame = _pandas_bars(bars, sessions)
    frame["step"] = frame["split_factor"] * (1 + frame["dividend"] / frame["close"])
    by_symbol = frame.groupby("symbol", sort=False)
    entry = by_symbol["open"].shift(-1)
    above_target, below_target, above_stop, below_stop = LEVELS
    touches: dict[str, list[Any]] = {"long": [], "short": []}
    factor: Any = 1.0
    for j in range(1, n + 1):
        if j > 1:
            factor = factor * by_symbol["step"].shift(-j)
        high, low = by_symbol["high"].shift(-j) * factor, by_symbol["low"].shift(-j) * factor
        # The stop first: a bar that touches both counts as the stop.
        touches["long"] += [low <= entry * below_stop, high >= entry * above_target]
        touches["short"] += [high >= entry * above_stop, low <= entry * below_target]
    codes = [code for j in range(1, n + 1) for code in (-j, j)]
    touch = {side: np.select(found, codes, 0) for side, found in touches.items()}
    decided = np.maximum(*(np.where(t == 0, n, np.abs(t)) for t in touch.values()))
    known = by_symbol["session"].shift(-n)
    columns = {
        "symbol": frame["symbol"],
        "session": frame["session"],
        "known_session": known,
        "available_at": by_symbol["available_at"].shift(-n),
        "long": (touch["long"] > 0).astype("int32"),
        "short": (touch["short"] > 0).astype("int32"),
        "label_end_session": np.select(
            [decided == j for j in range(1, n + 1)],
            [by_symbol["session"].shift(-j) for j in range(1, n + 1)],
            np.datetime64("NaT"),
        ),
        "horizon_sessions": np.int32(n),
        "profit_target_pct": LABELS.profit_target_pct,
        "stop_loss_pct": LABELS.stop_loss_pct,
        "rule": LABELS.rule,
    }
    complete = by_symbol["position"].shift(-n) - frame["position"] <= LABEL_LOOKBACK
    return _pandas_out(columns, complete & known.between(pd.Timestamp(first), pd.Timestamp(last)))


# -- polars ------------------------------------------------------------------------------------------------------------


def _polars_bars(bars: pa.Table, sessions: pa.Table) -> pl.LazyFrame:
    frame = pl.from_arrow(bars)
    days = pl.from_arrow(sessions)
    assert isinstance(frame, pl.DataFrame)
    assert isinstance(days, pl.DataFrame)
    return frame.lazy().join(days.lazy(), on="session").sort("symbol", "session")


def polars_technical(bars: pa.Table, sessions: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    """The same indicators as lazy expressions over `symbol`; adjusted as in `pandas_technical`."""
    col = pl.col
    previous = col("adjusted").shift(1).over("symbol")
    means = ["adjusted", *(f"mean_{k}" for k in SMA_PERIODS)]

    def scaled(mean: str, name: str) -> pl.Expr:
        return (
            pl.when(col("highest") > col("lowest"))
            .then((col(mean) - col("lowest")) / (col("highest") - col("lowest")))
            .otherwise(0.5)
            .alias(name)
        )

    return (
        _polars_bars(bars, sessions)
        .with_columns(step=col("split_factor") * (1 + col("dividend") / col("close")))
        .with_columns(factor=col("step").cum_prod().over("symbol"))
        .with_columns(
            adjusted=col("close") * col("factor"),
            adjusted_high=col("high") * col("factor"),
            adjusted_low=col("low") * col("factor"),
        )
        .with_columns(
            true_range=pl.max_horizontal(
                col("adjusted_high") - col("adjusted_low"),
                (col("adjusted_high") - previous).abs(),
                (col("adjusted_low") - previous).abs(),
            ),
            gain=(col("adjusted") - previous).clip(lower_bound=0),
            loss=(previous - col("adjusted")).clip(lower_bound=0),
            log_return=(col("adjusted") / previous).log(),
        )
        .with_columns(
            *(col("adjusted").rolling_mean(k).over("symbol").alias(f"mean_{k}") for k in SMA_PERIODS),
            *(
                (100 * (col("adjusted") / col("adjusted").shift(k).over("symbol") - 1)).alias(f"roc_{k}_pct")
                for k in ROC_PERIODS
            ),
            log_volume_change=(
                col("volume") / (col("volume").shift(1).over("symbol") * col("split_factor"))
            ).log(),
            realized_volatility_20=(
                252 * (col("log_return") ** 2).rolling_mean(VOLATILITY_BARS).over("symbol")
            ).sqrt(),
            atr_14=col("true_range").rolling_mean(ATR_BARS).over("symbol") / col("factor"),
            mean_gain=col("gain").rolling_mean(RSI_BARS).over("symbol"),
            mean_loss=col("loss").rolling_mean(RSI_BARS).over("symbol"),
            oldest_position=col("position").shift(BARS_BACK).over("symbol"),
        )
        .filter(
            col("session").is_between(first, last)
            & (col("position") - col("oldest_position") <= LOOKBACK_SESSIONS)
        )
        .with_columns(lowest=pl.min_horizontal(means), highest=pl.max_horizontal(means))
        .select(
            "symbol",
            "session",
            "available_at",
            "close",
            scaled("adjusted", "scaled_close"),
            *(scaled(f"mean_{k}", f"scaled_sma_{k}") for k in SMA_PERIODS),
            *(f"roc_{k}_pct" for k in ROC_PERIODS),
            "log_return",
            "log_volume_change",
            "realized_volatility_20",
            "atr_14",
            (100 * col("atr_14") / col("close")).alias("atr_14_pct"),
            pl.when(col("mean_gain") + col("mean_loss") > 0)
            .then(100 * col("mean_gain") / (col("mean_gain") + col("mean_loss")))
            .otherwise(50.0)
            .alias("rsi_14"),
        )
        .collect()
        .to_arrow()
    )


def polars_sentiment(
    news: pa.Table, bars: pa.Table, sessions: pa.Table, first: dt.date, last: dt.date
) -> pa.Table:
    """The same sentiment as lazy expressions: group_by, left join, rolling means over `symbol`."""
    col = pl.col
    articles = pl.from_arrow(news)
    assert isinstance(articles, pl.DataFrame)
    scored = (
        articles.lazy()
        .group_by("symbol", "session")
        .agg(
            article_count=pl.len().cast(pl.Int64),
            weighted=(col("sentiment_score") * col("relevance_score")).sum(),
            weight=col("relevance_score").sum(),
            source=col("source").max(),
        )
    )
    return (
        _polars_bars(bars.select(["symbol", "session", "available_at"]), sessions)
        .join(scored, on=["symbol", "session"], how="left", maintain_order="left")
        .with_columns(
            article_count=col("article_count").fill_null(0),
            source=col("source").fill_null(NEWS_SOURCE),
            score=pl.when(col("weight") > 0).then(col("weighted") / col("weight")).otherwise(0.0),
        )
        .with_columns(
            *(
                col("score").rolling_mean(k).over("symbol").alias(f"sentiment_sma_{k}")
                for k in SENTIMENT_PERIODS
            ),
            oldest_position=col("position").shift(SENTIMENT_BARS_BACK).over("symbol"),
        )
        .filter(
            col("session").is_between(first, last)
            & (col("position") - col("oldest_position") <= SENTIMENT_LOOKBACK)
        )
        .select(
            "symbol",
            "session",
            "available_at",
            "article_count",
            *(f"sentiment_sma_{k}" for k in SENTIMENT_PERIODS),
            "source",
        )
        .collect()
        .to_arrow()
    )


def polars_labels(bars: pa.Table, sessions: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    """The same labels as lazy expressions: shifts over `symbol`, first touch by `coalesce`."""
    col = pl.col
    n = LABELS.horizon_sessions
    above_target, below_target, above_stop, below_stop = LEVELS

    def ahead(column: str, bars_: int) -> pl.Expr:
        return col(column).shift(-bars_).over("symbol")

    def first_touch(hit: Callable[[int], pl.Expr], stopped: Callable[[int], pl.Expr]) -> pl.Expr:
        branches = [
            pl.when(condition).then(pl.lit(code, pl.Int32))
            for j in range(1, n + 1)
            for condition, code in ((stopped(j), -j), (hit(j), j))
        ]
        return pl.coalesce(*branches, pl.lit(0, pl.Int32))

    def sessions_taken(touch: str) -> pl.Expr:
        return pl.when(col(touch) == 0).then(n).otherwise(col(touch).abs())

    frame = (
        _polars_bars(bars, sessions)
        .with_columns(step=col("split_factor") * (1 + col("dividend") / col("close")))
        .with_columns(
            *(
                ahead(c, j).alias(f"{c}_{j}")
                for c in ("high", "low", "step", "session")
                for j in range(1, n + 1)
            ),
            entry=ahead("open", 1),
            known_session=ahead("session", n),
            known_at=ahead("available_at", n),
            last_position=ahead("position", n),
        )
        .filter(
            col("known_session").is_between(first, last)
            & (col("last_position") - col("position") <= LABEL_LOOKBACK)
        )
        .with_columns(factor_1=pl.lit(1.0))
    )
    for j in range(2, n + 1):
        frame = frame.with_columns((col(f"factor_{j - 1}") * col(f"step_{j}")).alias(f"factor_{j}"))

    def high(j: int) -> pl.Expr:
        return col(f"high_{j}") * col(f"factor_{j}")

    def low(j: int) -> pl.Expr:
        return col(f"low_{j}") * col(f"factor_{j}")

    entry = col("entry")
    return (
        frame.with_columns(
            long_touch=first_touch(
                lambda j: high(j) >= entry * above_target, lambda j: low(j) <= entry * below_stop
            ),
            short_touch=first_touch(
                lambda j: low(j) <= entry * below_target, lambda j: high(j) >= entry * above_stop
            ),
        )
        .with_columns(decided=pl.max_horizontal(sessions_taken("long_touch"), sessions_taken("short_touch")))
        .select(
            "symbol",
            "session",
            "known_session",
            col("known_at").alias("available_at"),
            (col("long_touch") > 0).cast(pl.Int32).alias("long"),
            (col("short_touch") > 0).cast(pl.Int32).alias("short"),
            pl.coalesce(
                pl.when(col("decided") == j).then(col(f"session_{j}")) for j in range(1, n + 1)
            ).alias("label_end_session"),
            pl.lit(n, pl.Int32).alias("horizon_sessions"),
            pl.lit(LABELS.profit_target_pct).alias("profit_target_pct"),
            pl.lit(LABELS.stop_loss_pct).alias("stop_loss_pct"),
            pl.lit(LABELS.rule).alias("rule"),
        )
        .collect()
        .to_arrow()
    )


# -- comparison --------------------------------------------------------------------------------------------------------


def largest_difference(ours: pa.Table, theirs: pa.Table) -> float:
    """Largest relative difference of any floating-point value; every other column has to be identical.

    A difference is taken relative to the value or to its column's root mean square, whichever is larger: a rate of
    change of exactly 0 against 1e-15 is rounding, not an infinite error.

    Raises:
        AssertionError: rows or a column that is not floating-point differ, or a value is missing on one side.
    """
    theirs = theirs.select(ours.column_names).cast(ours.schema)
    order = [("symbol", "ascending"), ("session", "ascending")]
    ours, theirs = ours.sort_by(order), theirs.sort_by(order)
    assert ours.num_rows == theirs.num_rows, f"{ours.num_rows} rows against {theirs.num_rows}"
    worst = 0.0
    for field in ours.schema:
        if not pa.types.is_floating(field.type):
            assert ours[field.name].equals(theirs[field.name]), f"column {field.name} differs"
            continue
        a, b = ours[field.name].to_numpy(), theirs[field.name].to_numpy()
        assert np.isfinite(a).all(), f"column {field.name} has a value that is not finite"
        assert np.isfinite(b).all(), f"column {field.name} of the peer has a value that is not finite"
        scale = np.maximum(np.abs(a), np.sqrt(np.mean(a**2)))
        with np.errstate(invalid="ignore"):
            worst = max(worst, float(np.nanmax(np.abs(a - b) / scale, initial=0.0)))
    return worst


def builds(bars: pa.Table, news: pa.Table, calendar: TradingCalendar) -> dict[str, dict[str, Build]]:
    """By feature group: the three sides, each from Arrow to Arrow over the whole span."""
    span = FIRST_SESSION, LAST_SESSION
    sessions = calendar_table(calendar, *span)
    return {
        "technical": {
            "ours": lambda: technical_features(bars, calendar, *span),
            "pandas": lambda: pandas_technical(bars, sessions, *span),
            "polars": lambda: polars_technical(bars, sessions, *span),
        },
        "sentiment": {
            "ours": lambda: sentiment_features(news, bars, calendar, *span, NEWS_SOURCE),
            "pandas": lambda: pandas_sentiment(news, bars, sessions, *span),
            "polars": lambda: polars_sentiment(news, bars, sessions, *span),
        },
        "labels": {
            "ours": lambda: labels(bars, calendar, *span, LABELS),
            "pandas": lambda: pandas_labels(bars, sessions, *span),
            "polars": lambda: polars_labels(bars, sessions, *span),
        },
    }


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, help="instead of 15 (5 symbols) and 7 (100 symbols)")
    repeats = parser.parse_args().repeats
    pa.set_cpu_count(THREADS)
    bars, news, calendar = sample_tables()
    seconds: dict[tuple[str, int, str], list[float]] = {}
    rows: dict[tuple[str, int], int] = {}
    difference: dict[tuple[str, int, str], float] = {}
    for symbols, copies in COPIES.items():
        groups = builds(
            replicate(bars, copies) if copies > 1 else bars,
            replicate(news, copies, keys=("symbol", "article_id")) if copies > 1 else news,
            calendar,
        )
        for group, sides in groups.items():
            started = time.perf_counter()
            ours = sides["ours"]()
            rows[group, symbols] = ours.num_rows
            for peer in ("pandas", "polars"):
                found = largest_difference(ours, sides[peer]())
                difference[group, symbols, peer] = found
                if found > TOLERANCE:
                    raise SystemExit(f"{group}, {symbols} symbols: {peer} differs by {found:.2e} from ours")
            measured = in_turn(sides, repeats or REPEATS[symbols])
            seconds |= {(group, symbols, side): values for side, values in measured.items()}
            print(
                f"{group}, {symbols} symbols: {ours.num_rows:,} rows, equal, "
                f"{len(measured['ours'])} rounds in {time.perf_counter() - started:.1f} s",
                flush=True,
            )

    medians = {case: statistics.median(values) for case, values in seconds.items()}
    print()
    print_table(
        ["features", "symbols", "rows", "side", "median ms", "min", "max", "ours is", "difference"],
        [
            [
                group,
                symbols,
                f"{rows[group, symbols]:,}",
                side,
                f"{1e3 * medians[group, symbols, side]:.1f}",
                f"{1e3 * min(values):.1f}",
                f"{1e3 * max(values):.1f}",
                ""
                if side == "ours"
                else f"{medians[group, symbols, side] / medians[group, symbols, 'ours']:.2f} x",
                "" if side == "ours" else f"{difference[group, symbols, side]:.1e}",
            ]
            for (group, symbols, side), values in seconds.items()
        ],
    )
    print(
        "\n'ours is 2.00 x' = our build takes half the peer's time; below 1 the peer is faster.\n", flush=True
    )
    ratios = {
        f"{'' if group == 'technical' else group + '_'}{side}_{symbols}": medians[group, symbols, side]
        / medians[group, symbols, "ours"]
        for group, symbols, side in seconds
        if side != "ours"
    }
    last_line(
        "features",
        ratio=ratios["pandas_5"],
        ratios=ratios,
        ours=spread(seconds["technical", 5, "ours"]),
        theirs=spread(seconds["technical", 5, "pandas"]),
        work=f"technical features of {FIRST_SESSION}..{LAST_SESSION}, 5 symbols, {rows['technical', 5]:,} rows x "
        f"{VALUES} values, Arrow to Arrow; ours DuckDB SQL, theirs pandas {pd.__version__} (ratios: polars {pl.__version__} "
        "too, 100 symbols, sentiment, labels); at most 2 threads each",
        equal=True,
        equal_how=f"every row and value of every case against ours: non-floating columns identical, floating ones within "
        f"{TOLERANCE:g} of the value or its column's root mean square, largest difference "
        f"{max(difference.values()):.1e}",
    )


if __name__ == "__main__":
    main()
