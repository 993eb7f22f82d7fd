"""Figures of the layer `features`. Pure matplotlib; what to show, not where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from quant_assets.presentation import COLORS, date_axis, first_symbols, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SYMBOLS = 6


def technical_figure(features: pa.Table) -> Figure:
    """Realized volatility over time and the distributions of RSI and of the session's return, by symbol."""
    shown = features.select(["symbol", "session", "realized_volatility_20", "rsi_14", "log_return"])
    frame = first_symbols(shown, MOST_SYMBOLS).to_pandas()
    figure = new_figure(11, 3.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    for color, symbol in zip(COLORS, sorted(frame["symbol"].unique())[:MOST_SYMBOLS], strict=False):
        part = frame[frame["symbol"] == symbol]
        day = part["session"].to_numpy(dtype="datetime64[D]")
        left.plot(day, 100 * part["realized_volatility_20"], color=color, lw=0.8, label=symbol)
        middle.hist(part["rsi_14"], bins=np.linspace(0, 100, 41), histtype="step", color=color, density=True)
        right.hist(
            100 * part["log_return"], bins=np.linspace(-8, 8, 65), histtype="step", color=color, density=True
        )
    left.set_ylabel("realized volatility, % a year", fontsize=9)
    left.legend(fontsize=8, ncols=3, frameon=False)
    date_axis(left)
    middle.set_xlabel("RSI 14", fontsize=9)
    right.set_xlabel("session's log return, %", fontsize=9)
    right.set_yscale("log")
    return figure


def sentiment_correlations(features: pa.Table, returns: pa.Table) -> dict[str, float]:
    """Correlation of a session's sentiment with the same and with the next session's return.

    Args:
        features: columns symbol, session, article_count, sentiment_sma_1.
        returns: columns symbol, session, log_return.

    Returns:
        `same_session`, `next_session` (NaN below 30 pairs), `pairs`; over sessions with at least one article.
    """
    frame = features.select(["symbol", "session", "article_count", "sentiment_sma_1"]).to_pandas()
    after = returns.select(["symbol", "session", "log_return"]).to_pandas().sort_values(["symbol", "session"])
    after["next"] = after.groupby("symbol")["log_return"].shift(-1)
    both = frame.merge(after, on=["symbol", "session"])
    both = both[both["article_count"] > 0]
    if len(both) < 30:
        return {"same_session": float("nan"), "next_session": float("nan"), "pairs": float(len(both))}
    return {
        "same_session": float(both["sentiment_sma_1"].corr(both["log_return"])),
        "next_session": float(both["sentiment_sma_1"].corr(both["next"])),
        "pairs": float(len(both)),
    }


def sentiment_figure(features: pa.Table, returns: pa.Table, source: str) -> Figure:
    """Mean return of the same and of the next session by decile of sentiment, and sentiment over time."""
    frame = features.select(
        ["symbol", "session", "article_count", "sentiment_sma_1", "sentiment_sma_16"]
    ).to_pandas()
    after = returns.select(["symbol", "session", "log_return"]).to_pandas().sort_values(["symbol", "session"])
    after["next"] = after.groupby("symbol")["log_return"].shift(-1)
    both = frame.merge(after, on=["symbol", "session"])
    both = both[both["article_count"] > 0].dropna()
    figure = new_figure(11, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.4])
    if len(both) >= 30:
        order = both["sentiment_sma_1"].rank(method="first")
        decile = np.minimum((10 * (order - 1) / len(both)).astype(int), 9)
        for column, color, name in (
            ("log_return", COLORS[0], "same session"),
            ("next", COLORS[1], "next session"),
        ):
            means = both.groupby(decile)[column].mean() * 1e4
            errors = both.groupby(decile)[column].sem() * 1e4
            left.errorbar(
                means.index + 1, means, 1.96 * errors, color=color, marker="o", ms=4, lw=1, label=name
            )
        left.legend(fontsize=8, frameon=False)
    left.axhline(0, color="black", lw=0.5)
    left.set_xlabel("decile of the session's sentiment", fontsize=9)
    left.set_ylabel("mean log return, bps (95 %)", fontsize=9)
    for color, symbol in zip(COLORS, sorted(frame["symbol"].unique())[:MOST_SYMBOLS], strict=False):
        part = frame[frame["symbol"] == symbol]
        if len(part) > 500:  # thirteen years of a 16-session mean are a smear; months can be read
            month = part["session"].to_numpy(dtype="datetime64[M]")
            part = part.groupby(month)[["sentiment_sma_1"]].mean()
            day, value = part.index.to_numpy(dtype="datetime64[D]"), part["sentiment_sma_1"]
        else:
            day, value = part["session"].to_numpy(dtype="datetime64[D]"), part["sentiment_sma_16"]
        right.plot(day, value, color=color, lw=0.8, label=symbol)
    right.set_ylabel("mean sentiment, 16 sessions or month", fontsize=9)
    right.legend(fontsize=8, ncols=3, frameon=False)
    date_axis(right)
    figure.suptitle(f"Sentiment and returns (news: {source})", fontsize=10)
    return figure


def peers_correlations(features: pa.Table, returns: pa.Table) -> list[dict[str, float | str]]:
    """Correlation of the peers' sentiment with the symbol's own return of the same and of the next session.

    Args:
        features: columns of `features.peers`.
        returns: columns symbol, session, log_return.

    Returns:
        One dict per kind (competitor, industry) and session (same, next): kind, session, correlation, pairs; over sessions
        with at least one mention, none for fewer than 30 of them.
    """
    found: list[dict[str, float | str]] = []
    for kind in ("competitor", "industry"):
        of_kind = features.select(
            ["symbol", "session", f"{kind}_article_count", f"{kind}_sentiment_sma_1"]
        ).rename_columns(["symbol", "session", "article_count", "sentiment_sma_1"])
        correlations = sentiment_correlations(of_kind, returns)
        found += [
            {
                "kind": kind,
                "session": session,
                "correlation": correlations[f"{session}_session"],
                "pairs": correlations["pairs"],
            }
            for session in ("same", "next")
            if correlations["pairs"] >= 30
        ]
    return found


def peers_figure(features: pa.Table, returns: pa.Table, source: str) -> Figure:
    """How the peers' sentiment goes with the symbol's own returns, how much of it there is, and the competitors' over time."""
    figure = new_figure(11, 3.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 0.8, 1.6])
    bars = peers_correlations(features, returns) if returns.num_rows else []
    kinds = list(dict.fromkeys(bar["kind"] for bar in bars))
    for offset, color, session in ((-0.2, COLORS[0], "same"), (0.2, COLORS[1], "next")):
        shown = [bar for bar in bars if bar["session"] == session]
        left.bar(
            [kinds.index(bar["kind"]) + offset for bar in shown],
            [float(bar["correlation"]) for bar in shown],
            0.4,
            # Two standard errors of a correlation of nothing.
            yerr=[2 / np.sqrt(float(bar["pairs"])) for bar in shown],
            color=color,
            error_kw={"lw": 0.8},
            label=f"{session} session",
        )
    left.set_xticks(range(len(kinds)), kinds, fontsize=8)
    if kinds:
        left.legend(fontsize=8, frameon=False)
    left.axhline(0, color="black", lw=0.5)
    left.margins(y=0.25)
    left.set_ylabel("correlation with the own return", fontsize=9)
    counts = features.select(["symbol", "competitor_article_count", "industry_article_count"])
    frame = first_symbols(counts, MOST_SYMBOLS).to_pandas().groupby("symbol").mean()
    place = np.arange(len(frame))
    middle.barh(place - 0.2, frame["competitor_article_count"], 0.4, color=COLORS[2], label="competitors")
    middle.barh(place + 0.2, frame["industry_article_count"], 0.4, color=COLORS[3], label="industry")
    middle.set_yticks(place, frame.index, fontsize=8)
    middle.set_xlabel("mentions a session", fontsize=9)
    # Above the bars, which may be long.
    middle.set_ylim(-0.5, len(frame) + 0.4)
    middle.legend(fontsize=8, frameon=False, ncols=2, loc="upper center")
    chosen = ["symbol", "session", "competitor_sentiment_sma_1", "competitor_sentiment_sma_16"]
    frame = first_symbols(features.select(chosen), MOST_SYMBOLS).to_pandas()
    for color, symbol in zip(COLORS, sorted(frame["symbol"].unique()), strict=False):
        part = frame[frame["symbol"] == symbol]
        if len(part) > 500:  # as for a symbol's own sentiment: months can be read
            month = part["session"].to_numpy(dtype="datetime64[M]")
            part = part.groupby(month)[["competitor_sentiment_sma_1"]].mean()
            day, value = part.index.to_numpy(dtype="datetime64[D]"), part["competitor_sentiment_sma_1"]
        else:
            day = part["session"].to_numpy(dtype="datetime64[D]")
            value = part["competitor_sentiment_sma_16"]
        right.plot(day, value, color=color, lw=0.8, label=symbol)
    right.set_ylabel("competitors' sentiment, 16 sessions or month", fontsize=8)
    right.legend(fontsize=8, ncols=3, frameon=False)
    date_axis(right)
    figure.suptitle(f"Sentiment of competitors and industry (news: {source})", fontsize=10)
    return figure


def labels_figure(labels: pa.Table) -> Figure:
    """Share of positive labels per year (or month) and how many sessions a label took to decide."""
    frame = labels.select(
        ["symbol", "session", "label_end_session", "long", "short", "horizon_sessions"]
    ).to_pandas()
    long_range = frame["session"].nunique() > 400
    frame["period"] = frame["session"].astype(str).str.slice(0, 4 if long_range else 7)
    figure = new_figure(11, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    rates = 100 * frame.groupby("period")[["long", "short"]].mean()
    position = np.arange(len(rates))
    left.bar(position - 0.2, rates["long"], 0.4, color=COLORS[0], label="long")
    left.bar(position + 0.2, rates["short"], 0.4, color=COLORS[1], label="short")
    left.set_xticks(position, rates.index, fontsize=8, rotation=0 if long_range else 60)
    left.set_ylabel("% of labels that are 1", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    by_symbol = 100 * frame.groupby("symbol")[["long", "short"]].mean().iloc[:20]
    position = np.arange(len(by_symbol))
    right.barh(position - 0.2, by_symbol["long"], 0.4, color=COLORS[0])
    right.barh(position + 0.2, by_symbol["short"], 0.4, color=COLORS[1])
    right.set_yticks(position, by_symbol.index, fontsize=8)
    right.set_xlabel("% of labels that are 1", fontsize=9)
    return figure
