"""Which rows of bars, news and quotes are acceptable. Pure: Arrow in, good rows and named violations out.

Belongs here: the rules. Does not belong here: what happens to a bad row (`assets.py` fails the run or sets it aside).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from quant_resources.calendar import TradingCalendar

PRICE_COLUMNS = ("open", "high", "low", "close")
# An overnight move is taken for a split that nobody recorded when it is this close to a usual ratio on volume (in
# dollars) that stays below this multiple of its median. Real crashes come with many times the usual volume and miss
# the round ratios: AAPL on 2000-09-29 opened at 0.527 of the previous close on 10 times the usual dollar volume,
# whereas the sample's three real splits opened within 2 % of theirs on less than 0.8 times.
SPLIT_RATIOS = (1 / 10, 1 / 7, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 2, 2.0, 3.0, 4.0, 5.0, 10.0)
SPLIT_RATIO_TOLERANCE = 0.03
SPLIT_DOLLAR_VOLUME_MULTIPLE = 4.0
JUMP_RETURN = 0.40
HISTORY_SESSIONS = 20


@dataclass(frozen=True)
class Violation:
    """One row that broke one rule."""

    rule: str
    reason: str
    origin: str
    row: str


@dataclass(frozen=True)
class Validated:
    """Rows that passed every rule, and those that did not.

    Attributes:
        rows: the good rows.
        violations: every (row, rule) that failed; a row may appear under several rules.
        checked: rule name -> what it demands, for every rule that was applied.
    """

    rows: pa.Table
    violations: list[Violation]
    checked: dict[str, str]


BAR_RULES = {
    "numbers": "open, high, low, close, volume, dividend and split_factor are finite numbers",
    "positive": "prices, volume and split_factor are above 0, dividend is not below 0",
    "ohlc": "low <= open, close <= high",
    "calendar": "the session is an exchange session: no weekend, no holiday",
    "unique": "one bar per symbol and session",
    "unrecorded_split": "no overnight move by a split ratio on ordinary volume without a split_factor",
}
NEWS_RULES = {
    "score": "sentiment_score is a number in [-1, 1] and relevance_score in [0, 1]",
    "calendar": "the article can be dated to a session of the calendar",
    "unique": "one row per article and ticker",
}
MINUTE_BAR_RULES = {
    "numbers": "open, high, low, close and volume are finite numbers",
    "positive": "prices are above 0, volume is not below 0",
    "ohlc": "low <= open, close <= high",
    "calendar": "the minute lies within the trading hours of a session",
    "unique": "one bar per symbol and minute",
    "quotes": "bid and ask are above 0 and not crossed (bid <= ask), sizes are not below 0",
}


class _Judge:
    """Collects violations of one frame; `drop` says which rows have at least one."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.violations: list[Violation] = []
        self.drop = np.zeros(len(frame), dtype=bool)

    def rule(self, name: str, bad: np.ndarray, reason: Callable[[pd.Series], str]) -> None:
        bad = np.asarray(bad, dtype=bool)
        self.drop |= bad
        for index in np.flatnonzero(bad):
            row = self.frame.iloc[index]
            self.violations.append(
                Violation(
                    name,
                    reason(row),
                    str(row["origin"]),
                    _as_json(row),
                )
            )


def _as_json(row: pd.Series) -> str:
    """The row without its origin; JSON has no NaN and no infinity, so those are text."""
    values = {
        name: str(value) if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.drop("origin").items()
    }
    return json.dumps(values, default=str)


def _shared_price_rules(judge: _Judge, volume_may_be_zero: bool) -> None:
    frame = judge.frame
    numbers = [*PRICE_COLUMNS, "volume", *(c for c in ("dividend", "split_factor") if c in frame)]
    finite = np.isfinite(frame[numbers].to_numpy(dtype=float))
    judge.rule(
        "numbers",
        ~finite.all(axis=1),
        lambda row: ", ".join(f"{c} = {row[c]}" for c in numbers if not np.isfinite(row[c])),
    )
    # Comparisons with NaN are false, so a row that already failed `numbers` is not reported again for the same cell.
    prices = frame[list(PRICE_COLUMNS)].to_numpy(dtype=float)
    volume = frame["volume"].to_numpy(dtype=float)
    bad = (prices <= 0).any(axis=1) | ((volume < 0) if volume_may_be_zero else (volume <= 0))
    if "dividend" in frame:
        bad |= (frame["dividend"].to_numpy(dtype=float) < 0) | (
            frame["split_factor"].to_numpy(dtype=float) <= 0
        )
    judge.rule("positive", bad, lambda row: ", ".join(f"{c} = {row[c]:g}" for c in numbers))
    judge.rule(
        "ohlc",
        (frame["low"] > frame[["open", "close"]].min(axis=1)).to_numpy()
        | (frame["high"] < frame[["open", "close"]].max(axis=1)).to_numpy(),
        lambda row: f"open {row['open']:g}, high {row['high']:g}, low {row['low']:g}, close {row['close']:g}",
    )


def validate_bars(rows: pa.Table, calendar: TradingCalendar, history: pa.Table | None = None) -> Validated:
    """Judge daily bars by `BAR_RULES`.

    Args:
        rows: as `quant_resources.sources.BARS`.
        calendar: covers the sessions of `rows`.
        history: earlier bars of the same symbols (columns as `market.bars`; at least the last 20 sessions), so that a
            single night can see a split against the day before.
    """
    frame = rows.to_pandas()
    judge = _Judge(frame)
    _shared_price_rules(judge, volume_may_be_zero=False)
    sessions = pd.Series(frame["session"])
    judge.rule(
        "calendar",
        ~sessions.map(calendar.is_session).to_numpy(dtype=bool) if len(frame) else np.zeros(0, dtype=bool),
        lambda row: calendar.why_closed(row["session"]),
    )
    judge.rule(
        "unique",
        frame.duplicated(["symbol", "session"], keep=False).to_numpy(),
        lambda row: f"{row['symbol']} {row['session']} occurs more than once",
    )
    judge.rule(
        "unrecorded_split",
        _looks_like_unrecorded_split(frame, ~judge.drop, history),
        lambda row: (
            f"{row['symbol']} opens at {row['open']:g}: a split ratio away from the previous close; "
            "record the split_factor, or set QUANT_BAD_ROWS=quarantine"
        ),
    )
    return Validated(rows.filter(pa.array(~judge.drop)), judge.violations, BAR_RULES)


def _with_history(frame: pd.DataFrame, history: pa.Table | None) -> pd.DataFrame:
    columns = ["symbol", "session", "open", "close", "volume", "dividend", "split_factor"]
    parts = [frame[columns].assign(row=np.arange(len(frame)))]
    if history is not None and history.num_rows:
        parts.insert(0, history.select(columns).to_pandas().assign(row=-1))
    return pd.concat(parts, ignore_index=True).sort_values(["symbol", "session"], kind="stable")


def _looks_like_unrecorded_split(
    frame: pd.DataFrame, good: np.ndarray, history: pa.Table | None
) -> np.ndarray:
    # Only rows that broke no other rule: a wrong close must neither fake a split next to it nor hide one.
    series = _with_history(frame, history)
    series = series[(series["row"] < 0) | np.isin(series["row"], np.flatnonzero(good))]
    by_symbol = series.groupby("symbol")
    gap = series["open"] / by_symbol["close"].shift(1) * series["split_factor"]
    dollars = series["close"] * series["volume"]
    usual = dollars.groupby(series["symbol"]).transform(
        lambda x: x.shift(1).rolling(HISTORY_SESSIONS, min_periods=1).median()
    )
    near = np.zeros(len(series), dtype=bool)
    for ratio in SPLIT_RATIOS:
        near |= ((gap / ratio - 1).abs() < SPLIT_RATIO_TOLERANCE).to_numpy()
    suspicious = near & (dollars < SPLIT_DOLLAR_VOLUME_MULTIPLE * usual).to_numpy()
    result = np.zeros(len(frame), dtype=bool)
    own = series["row"].to_numpy()
    result[own[suspicious & (own >= 0)]] = True
    return result


def price_jumps(rows: pa.Table, history: pa.Table | None = None) -> list[dict[str, object]]:
    """Sessions whose total return exceeds 40 % either way: worth a look, not wrong (AAPL, 2000-09-29, -51.9 %).

    Returns:
        One dict per jump: symbol, session, return_pct.
    """
    series = _with_history(rows.to_pandas(), history)
    previous = series.groupby("symbol")["close"].shift(1)
    returns = (series["close"] + series["dividend"]) * series["split_factor"] / previous - 1
    jumps = series.assign(r=returns)[(returns.abs() > JUMP_RETURN) & (series["row"] >= 0)]
    return [
        {"symbol": r.symbol, "session": str(r.session), "return_pct": round(100 * r.r, 2)}
        for r in jumps.itertuples()
    ]


def missing_sessions(
    rows: pa.Table, calendar: TradingCalendar, first: dt.date, last: dt.date, history: pa.Table | None = None
) -> list[tuple[str, dt.date]]:
    """Sessions of `first`..`last` on which a symbol that trades has no bar.

    A symbol is expected from its first bar on (in `rows`, or on every session when `history` has it) up to the last
    session of the range: a source that stops delivering a symbol is seen on the first night.

    Returns:
        (symbol, session) pairs in order.
    """
    frame = rows.select(["symbol", "session"]).to_pandas()
    known = set(history["symbol"].to_pylist()) if history is not None else set()
    have = {str(symbol): set(group) for symbol, group in frame.groupby("symbol")["session"]}
    missing = []
    for symbol in sorted(known | set(have)):
        days = have.get(symbol, set())
        start = first if symbol in known else min(days)
        missing += [(symbol, s) for s in calendar.sessions(start, last) if s not in days]
    return missing


def validate_news(rows: pa.Table, calendar: TradingCalendar) -> Validated:
    """Judge articles by `NEWS_RULES`; good rows gain `session` and `available_at`.

    An article that names only a session is known after that session's close: it becomes available one second later
    and belongs to the next session.
    """
    frame = rows.to_pandas()
    judge = _Judge(frame)
    score = frame["sentiment_score"].to_numpy(dtype=float)
    relevance = frame["relevance_score"].to_numpy(dtype=float)
    with np.errstate(invalid="ignore"):
        inside = (np.abs(score) <= 1) & (relevance >= 0) & (relevance <= 1)
    judge.rule(
        "score",
        ~inside,
        lambda row: f"sentiment_score = {row['sentiment_score']}, relevance_score = {row['relevance_score']}",
    )
    available: list[dt.datetime | None] = []
    session: list[dt.date | None] = []
    for published, dated in zip(
        rows["published_at"].to_pylist(), rows["dated_session"].to_pylist(), strict=True
    ):
        if published is not None and calendar.covers(published):
            available.append(published)
            session.append(calendar.session_of(published))
        elif dated is not None and calendar.is_session(dated):
            instant = calendar.close(dated) + dt.timedelta(seconds=1)
            available.append(instant)
            session.append(calendar.session_of(instant))
        else:
            available.append(None)
            session.append(None)
    judge.rule(
        "calendar",
        np.array([s is None for s in session], dtype=bool),
        lambda row: f"published_at = {row['published_at']}, session = {row['dated_session']}",
    )
    judge.rule(
        "unique",
        frame.duplicated(["article_id", "symbol"], keep=False).to_numpy(),
        lambda row: f"article {row['article_id']} has {row['symbol']} more than once",
    )
    rows = rows.append_column("session", pa.array(session, pa.date32()))
    rows = rows.append_column("available_at", pa.array(available, pa.timestamp("us", "UTC")))
    return Validated(rows.filter(pa.array(~judge.drop)), judge.violations, NEWS_RULES)


def validate_minute_bars(rows: pa.Table, calendar: TradingCalendar) -> Validated:
    """Judge minute bars by `MINUTE_BAR_RULES`; good rows gain `session` and `available_at` (the minute's end)."""
    frame = rows.to_pandas()
    judge = _Judge(frame)
    _shared_price_rules(judge, volume_may_be_zero=True)
    ts: list[dt.datetime] = rows["ts"].to_pylist()
    session: list[dt.date | None] = []
    for instant in ts:
        day = calendar.session_of(instant + dt.timedelta(seconds=1)) if calendar.covers(instant) else None
        if day is not None and not calendar.opens(day) <= instant < calendar.close(day):
            day = None
        session.append(day)
    judge.rule(
        "calendar",
        np.array([s is None for s in session], dtype=bool),
        lambda row: f"{row['ts']} is outside trading hours",
    )
    judge.rule(
        "unique",
        frame.duplicated(["symbol", "ts"], keep=False).to_numpy(),
        lambda row: f"{row['symbol']} {row['ts']} occurs more than once",
    )
    bid, ask = frame["bid"].to_numpy(dtype=float), frame["ask"].to_numpy(dtype=float)
    sizes = frame[["bid_size", "ask_size"]].to_numpy(dtype=float)
    with np.errstate(invalid="ignore"):
        bad = (bid > ask) | (bid <= 0) | (ask <= 0) | (sizes < 0).any(axis=1)
    judge.rule(
        "quotes",
        bad,
        lambda row: f"bid {row['bid']} x {row['bid_size']}, ask {row['ask']} x {row['ask_size']}",
    )
    rows = rows.append_column("session", pa.array(session, pa.date32()))
    rows = rows.append_column(
        "available_at", pa.array([t + dt.timedelta(minutes=1) for t in ts], pa.timestamp("us", "UTC"))
    )
    return Validated(rows.filter(pa.array(~judge.drop)), judge.violations, MINUTE_BAR_RULES)
