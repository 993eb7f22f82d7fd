"""Figures of the layer `serving`. Pure matplotlib; what to show, not where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from quant_assets.presentation import COLORS, new_figure
from quant_assets.strategies.mlp_long_short import MlpLongShort

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SYMBOLS = 20


def signals_figure(signals: pa.Table, parameters: Mapping[str, MlpLongShort]) -> Figure:
    """Long and short probabilities per symbol and strategy with their thresholds; taken sides are filled."""
    frame = signals.to_pandas()
    strategies = sorted(frame["strategy"].unique())
    figure = new_figure(5 * len(strategies), 3.4)
    axes = np.atleast_1d(figure.subplots(1, len(strategies), sharey=True))
    for ax, strategy in zip(axes, strategies, strict=True):
        part = frame[frame["strategy"] == strategy].sort_values("symbol").iloc[:MOST_SYMBOLS]
        position = np.arange(len(part))
        for offset, side, color, threshold in zip(
            (-0.2, 0.2), ("long", "short"), COLORS, parameters[strategy].thresholds, strict=False
        ):
            taken = (part["side"] == side).to_numpy()
            bars = ax.bar(
                position + offset, part[f"probability_{side}"], 0.38, edgecolor=color, fill=False, lw=1.2
            )
            for bar, filled in zip(bars, taken, strict=True):
                if filled:
                    bar.set(fill=True, facecolor=color)
            ax.axhline(
                threshold, color=color, lw=0.8, ls="--" if side == "long" else ":", label=f"{side} threshold"
            )
        ax.set_xticks(position, part["symbol"], fontsize=8)
        ax.set_title(strategy, fontsize=10, loc="left")
        ax.set_ylim(0, 1)
    axes[0].set_ylabel("probability (filled: side taken)", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def weights_figure(signals: pa.Table) -> Figure:
    """The newest weights of a portfolio as bars, cash last, and the sessions before them as areas where there are several."""
    frame = signals.to_pandas().pivot_table(index="session", columns="symbol", values="target_weight")
    frame = frame[sorted(frame.columns, key=lambda symbol: -frame[symbol].iloc[-1])[:MOST_SYMBOLS]].fillna(
        0.0
    )
    frame["cash"] = 1 - frame.sum(axis=1)
    several = len(frame) > 1
    figure = new_figure(9, 3.2)
    axes = np.atleast_1d(figure.subplots(1, 2 if several else 1))
    colors = [COLORS[i % (len(COLORS) - 1)] for i in range(frame.shape[1] - 1)] + [COLORS[-1]]
    axes[-1].bar(frame.columns, frame.iloc[-1], color=colors)
    axes[-1].set_title(f"after the close of {frame.index[-1]:%Y-%m-%d}", fontsize=10, loc="left")
    axes[-1].tick_params(axis="x", labelsize=8)
    axes[-1].axhline(0, color="black", lw=0.6)
    if several:
        axes[0].stackplot(np.arange(len(frame)), *frame.T.to_numpy().clip(0), colors=colors)
        axes[0].set_title(f"{len(frame)} sessions from {frame.index[0]:%Y-%m-%d}", fontsize=10, loc="left")
        axes[0].set_xlabel("session", fontsize=9)
        axes[0].margins(x=0)
    axes[0].set_ylabel("share of equity", fontsize=9)
    return figure


def latency_figure(latency_ms: Sequence[float]) -> Figure:
    """How long answers took: a histogram with the median and the 99th percentile."""
    figure = new_figure(6, 2.6)
    ax = figure.subplots()
    values = np.asarray(latency_ms)
    ax.hist(values, bins=40, color=COLORS[0])
    for quantile, style in ((0.5, "-"), (0.99, "--")):
        at = float(np.quantile(values, quantile))
        ax.axvline(at, color="black", lw=0.9, ls=style, label=f"{quantile:.0%}: {at:.2f} ms")
    ax.set(xlabel="ms, as a client on this machine sees it", ylabel="answers")
    ax.legend(frameon=False)
    return figure


def traffic_figure(asked: Sequence[tuple[float, str, float, int]]) -> Figure:
    """Who answered when, and how long it took.

    Args:
        asked: second, who answered (`model:version:bundle`), latency in ms, HTTP status; in order.
    """
    figure = new_figure(9, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    who = list(dict.fromkeys(served for _, served, _, status in asked if status == 200))
    for row, served in enumerate(who):
        seconds = [second for second, by, _, status in asked if by == served and status == 200]
        color = COLORS[row % len(COLORS)]
        above.plot(seconds, [row] * len(seconds), "|", color=color, ms=9)
        latency = [ms for _, by, ms, status in asked if by == served and status == 200]
        below.plot(seconds, latency, ".", ms=2.5, color=color)
    above.set_yticks(range(len(who)), [" v".join(served.split(":")[:2]) for served in who])
    above.set_ylim(-0.6, len(who) - 0.4)
    failed = [second for second, _, _, status in asked if status != 200]
    below.set(yscale="log", xlabel="seconds since the traffic began", ylabel="ms")
    below.set_title(f"{len(asked)} requests, {len(failed)} failed", fontsize=9, loc="left")
    for second in failed:
        below.axvline(second, color="crimson", lw=0.8)
    return figure
