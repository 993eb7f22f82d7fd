"""Figures of agents in training. Pure matplotlib; what to show, not where.

Belongs here: how a training went. Does not belong here: how good the agent is against others (`backtests/agent_plots.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quant_assets.presentation import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, float | None]]
REWARD, SCORE = COLORS[5], COLORS[0]


def learning_figure(histories: Mapping[int, History], score_unit: str) -> Figure:
    """Return of the newest episodes (with the policy's noise) and score on the validation days, against real steps."""
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    _lines(left, histories, "score", SCORE)
    left.set_title("validation days, without the policy's noise", fontsize=10, loc="left")
    left.set_ylabel(score_unit, fontsize=9)
    _lines(right, histories, "reward", REWARD)
    right.set_title("episodes that it learned from, with noise", fontsize=10, loc="left")
    right.set_ylabel("sum of rewards", fontsize=9)
    for ax in (left, right):
        ax.set_xlabel("real steps", fontsize=9)
    return figure


def training_figure(histories: Mapping[int, History]) -> Figure:
    """Losses of critics and actor, temperature, entropy and updates per second, against updates."""
    figure = new_figure(9, 4.6)
    axes = figure.subplots(2, 3).ravel()
    shown = {
        "critic_loss": "critics' loss",
        "actor_loss": "actor's loss",
        "alpha": "temperature alpha",
        "entropy": "entropy, nats",
        "updates_per_second": "updates per second",
    }
    for ax, (name, title) in zip(axes, shown.items(), strict=False):
        _lines(ax, histories, name, COLORS[0], x="updates")
        ax.set_title(title, fontsize=9, loc="left")
        if name in ("critic_loss", "alpha"):
            ax.set_yscale("log")
    axes[-1].axis("off")
    for ax in axes[2:5]:
        ax.set_xlabel("updates", fontsize=8)
    return figure


def seeds_figure(scores: Mapping[int, np.ndarray], chosen: int, score_unit: str) -> Figure:
    """Mean score of each seed on the gate's days with two standard errors; the registered one is filled."""
    figure = new_figure(9, max(2.2, 0.32 * len(scores) + 1.2))
    ax = figure.subplots()
    for row, (seed, values) in enumerate(scores.items()):
        error = 2 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        ax.errorbar(
            values.mean(),
            row,
            xerr=error,
            fmt="o",
            color=COLORS[1] if seed == chosen else COLORS[0],
            mfc=COLORS[1] if seed == chosen else "white",
            capsize=3,
        )
    ax.set_yticks(range(len(scores)), [f"seed {seed}" for seed in scores], fontsize=8)
    ax.set_ylim(-0.7, len(scores) - 0.3)
    ax.set_xlabel(f"{score_unit}, the gate's days, with two standard errors; filled: registered", fontsize=9)
    return figure


def _lines(ax: Axes, histories: Mapping[int, History], name: str, color: str, x: str = "real_steps") -> None:
    """One thin line per seed, and their mean where there are several."""
    series = {
        seed: [(row[x], row[name]) for row in history if row[name] is not None]
        for seed, history in histories.items()
    }
    for seed, points in series.items():
        if points:
            ax.plot(*zip(*points, strict=True), color=color, lw=1.4 if len(series) == 1 else 0.7,
                    alpha=1 if len(series) == 1 else 0.5, marker="." if len(points) < 15 else None, label=f"seed {seed}")  # fmt: skip
    lengths = {len(points) for points in series.values()}
    if len(series) > 1 and len(lengths) == 1 and lengths != {0}:
        values = np.array(list(series.values()), dtype=float)
        ax.plot(values[0, :, 0], values[:, :, 1].mean(0), color="black", lw=2)
    ax.tick_params(labelsize=8)
    ax.margins(x=0.02)
