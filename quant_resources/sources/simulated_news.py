"""The simulated news feed of the sample: articles, several tickers each, every ticker with its own score.

Belongs here: the generator and its calibration. It contains **no alpha by construction**: an article's score loads on
the return of the session that the article belongs to, and on nothing later, the way daily news do (on INTC 2022-2024
the correlation is +0.24 with the same session's return and 0.00 with the next's). Within the session it is not
realistic: an article of the morning already reflects the session's close, so it must not be used for intraday work.
"""

from __future__ import annotations

import datetime as dt
import hashlib

import numpy as np
import pyarrow as pa

from quant_resources.calendar import TradingCalendar
from quant_resources.sources import NEWS

ARTICLES_PER_SESSION = 1.3  # mean number of articles that a ticker leads in one session
MENTION_PROBABILITY = 0.35  # that an article mentions one peer of its lead
RETURN_LOADING = 0.205  # of an entity's score on its standardized return; calibrated to a correlation of 0.24
SCORE_MEAN = 0.06
SCORE_SD = 0.22
VOLATILITY_SESSIONS = 20

_HEADLINES = {
    1: ("{lead} beats expectations", "{lead} gains ground on {peer}", "Analysts raise their view of {lead}"),
    0: ("{lead} in line with expectations", "What to watch at {lead}", "{lead} and {peer} share a stage"),
    -1: ("{lead} misses expectations", "{lead} loses ground to {peer}", "Analysts cut their view of {lead}"),
}


def _standardized_returns(bars: pa.Table) -> dict[str, dict[dt.date, float]]:
    """Total return of each symbol and session over its trailing volatility (previous 20 sessions only)."""
    import pandas as pd

    frame = bars.select(["symbol", "session", "close", "dividend", "split_factor"]).to_pandas()
    frame = frame.sort_values(["symbol", "session"])
    previous = frame.groupby("symbol")["close"].shift(1)
    frame["r"] = np.log((frame["close"] + frame["dividend"]) * frame["split_factor"] / previous).fillna(0.0)
    trailing = frame.groupby("symbol")["r"].transform(
        lambda r: r.shift(1).rolling(VOLATILITY_SESSIONS, min_periods=5).std()
    )
    frame["z"] = (frame["r"] / trailing.fillna(0.02).clip(lower=0.002)).clip(-4, 4)
    return {
        str(symbol): dict(zip(pd.to_datetime(rows["session"]).dt.date, rows["z"], strict=True))
        for symbol, rows in frame.groupby("symbol")
    }


def simulate(
    bars: pa.Table,
    names: dict[str, str],
    peers: dict[str, tuple[str, ...]],
    calendar: TradingCalendar,
    seed: int,
    first: dt.date,
    last: dt.date,
) -> pa.Table:
    """Articles of the sessions `first`..`last`, one row per article and ticker.

    Each session draws from its own generator, seeded by (seed, session), so one night yields the very articles that
    the whole history does. An article is published between the previous session's close (exclusive) and its own
    session's close, so weekends and evenings have news and they belong to the next session.

    Args:
        bars: all bars of all symbols, as `BARS`.
        names: company name by ticker.
        peers: tickers that an article led by the key may mention.
        calendar: knows every session in the range and the one before it.
        seed: same seed, same articles.
        first, last: range of sessions, both included.

    Returns:
        Rows as `NEWS`; scores in [-1, 1], relevance in (0, 1].
    """
    z = _standardized_returns(bars)
    rows: list[tuple[object, ...]] = []
    noise_loading = float(np.sqrt(1 - RETURN_LOADING**2))
    for session in calendar.sessions(first, last):
        rng = np.random.default_rng([seed, session.toordinal()])
        opens_after = calendar.close(calendar.shift(session, -1))
        window_seconds = int((calendar.close(session) - opens_after).total_seconds())
        for lead in sorted(z):
            # Drawn for every symbol on every session, listed or not, so that one symbol's start moves no other's news.
            count = int(rng.poisson(ARTICLES_PER_SESSION))
            for number in range(count):
                draw = rng.random(5)
                noise = rng.standard_normal(2)
                if session not in z[lead]:
                    continue
                available = [p for p in peers[lead] if session in z[p]]
                peer = available[int(draw[0] * len(available))] if available else None
                mentioned = [lead]
                if peer is not None and draw[1] < MENTION_PROBABILITY:
                    mentioned.append(peer)
                published_at = opens_after + dt.timedelta(seconds=1 + int(draw[2] * (window_seconds - 1)))
                article_id = hashlib.sha1(f"{seed}/{session}/{lead}/{number}".encode()).hexdigest()[:16]
                scores = []
                for i, symbol in enumerate(mentioned):
                    # A peer's noise has the opposite sign: who beats somebody leaves a loser.
                    idiosyncratic = noise[0] if i == 0 else -0.6 * noise[0] + 0.8 * noise[1]
                    score = SCORE_MEAN + SCORE_SD * (
                        RETURN_LOADING * z[symbol][session] + noise_loading * idiosyncratic
                    )
                    scores.append(round(float(np.clip(score, -1, 1)), 6))
                tone = 1 if scores[0] > 0.15 else -1 if scores[0] < -0.15 else 0
                headline = _HEADLINES[tone][int(draw[3] * 3)]
                title = headline.format(lead=names[lead], peer=names[peer] if peer else "its rivals")
                url = f"https://simulated-news.example/{session:%Y/%m/%d}/{article_id}"
                for i, symbol in enumerate(mentioned):
                    relevance = 0.5 + 0.5 * draw[4] if i == 0 else 0.05 + 0.35 * draw[4]
                    rows.append(
                        (
                            article_id,
                            symbol,
                            published_at,
                            None,
                            title,
                            url,
                            scores[i],
                            round(float(relevance), 6),
                            "simulated",
                            f"simulated:{article_id}",
                        )
                    )
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(NEWS.names)
    return pa.table(
        {
            name: pa.array(column, type=field.type)
            for (name, column, field) in zip(NEWS.names, columns, NEWS, strict=True)
        },
        schema=NEWS,
    )
