"""Figures of agents beside what they have to beat. Pure matplotlib; what to show, not where.

Belongs here: drawing what `agents.py` found. Does not belong here: computing it, the figures of rule-based strategies (`plots.py`).

The agent is always the first color and the baselines always the same ones, so that a reader learns them once. A band around an
agent's line is the range over training seeds unless the caption says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quant_assets.backtests.agents import (
    BAND,
    CAUSED,
    PARTS,
    SHORTFALL,
    ExecutionResults,
    MarketMakingResults,
    PortfolioResults,
    averaged_execution,
)
from quant_assets.environments.portfolio import PortfolioRollout
from quant_assets.presentation import COLORS, date_axis, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AGENT_COLOR, GREY = COLORS[0], COLORS[7]
BASELINE_COLORS = {
    "twap": COLORS[4],
    "vwap": COLORS[2],
    "almgren_chriss": COLORS[1],
    "avellaneda_stoikov": COLORS[1],
    "fixed_spread": COLORS[4],
    "cartea_jaimungal": COLORS[2],
    "equal_weight": COLORS[4],
    "buy_and_hold": COLORS[2],
    "minimum_variance": COLORS[1],
}
LABELS = {
    "twap": "TWAP",
    "vwap": "VWAP",
    "almgren_chriss": "Almgren-Chriss",
    "avellaneda_stoikov": "Avellaneda-Stoikov",
    "fixed_spread": "fixed spread",
    "cartea_jaimungal": "Cartea-Jaimungal",
    "equal_weight": "equal weight",
    "buy_and_hold": "buy and hold",
    "minimum_variance": "minimum variance",
}
PART_COLORS = dict(zip(PARTS, (COLORS[7], COLORS[5], COLORS[0], COLORS[1], COLORS[6]), strict=True))
PERCENTILES = (0.5, 99.5)  # of the values that a histogram shows; the rest is in its outer bins


# -- execution ---------------------------------------------------------------------------------------------------------


def inventory_figure(results: ExecutionResults) -> Figure:
    """What is left of an order over the session: mean over paths of each strategy, and its distance from VWAP's.

    The dark band is the agents' range over seeds, the light one the chosen paths' 10 to 90 %.
    """
    figure = new_figure(9, 4.4)
    left, right = figure.subplots(1, 2)
    minutes = np.arange(len(next(iter(results.baselines.values())).left_fraction))
    mean = averaged_execution(results.agents)
    every = np.array([outcome.left_fraction for outcome in results.agents.values()])
    reference = results.baselines["vwap"].left_fraction
    left.fill_between(minutes, *(100 * mean.left_band), color=AGENT_COLOR, alpha=0.12, lw=0)
    for ax, base in ((left, np.zeros(len(minutes))), (right, reference)):
        ax.fill_between(
            minutes,
            100 * (every.min(axis=0) - base),
            100 * (every.max(axis=0) - base),
            color=AGENT_COLOR,
            alpha=0.35,
            lw=0,
        )
        for name, outcome in results.baselines.items():
            ax.plot(
                minutes,
                100 * (outcome.left_fraction - base),
                color=BASELINE_COLORS[name],
                lw=1.2,
                ls="--",
                label=LABELS[name],
            )
        ax.plot(
            minutes,
            100 * (mean.left_fraction - base),
            color=AGENT_COLOR,
            lw=1.6,
            label=_agents_label(results.agents),
        )
        ax.set_xlabel("minutes since the open", fontsize=8)
    left.legend(fontsize=8, frameon=False)
    _title(left, f"left of the order, %; light: {100 * BAND[0]:.0f} to {100 * BAND[1]:.0f} % of the paths")
    _title(right, "the same less VWAP's, points")
    right.axhline(0, color="black", lw=0.5)
    for ax in (left, right):
        _plain(ax)
    return figure


def frontier_figure(results: ExecutionResults) -> Figure:
    """Mean cost without the market's move against the sd of the shortfall: schedules of Almgren and Chriss, and everybody."""
    figure = new_figure(7.5, 4.6)
    ax = figure.subplots()
    for (clock, frontier), style in zip(results.frontiers.items(), ("-", ":"), strict=False):
        ax.plot(
            frontier.sd,
            frontier.mean,
            color=GREY,
            ls=style,
            marker=".",
            ms=4,
            lw=1.1,
            label=f"Almgren-Chriss by {clock}",
        )
    for name, outcome in results.baselines.items():
        ax.scatter(
            outcome.measure(SHORTFALL).std(),
            outcome.measure(CAUSED).mean(),
            color=BASELINE_COLORS[name],
            marker="s",
            s=38,
            label=LABELS[name],
            zorder=3,
        )
    ax.scatter(
        [outcome.measure(SHORTFALL).std() for outcome in results.agents.values()],
        [outcome.measure(CAUSED).mean() for outcome in results.agents.values()],
        color=AGENT_COLOR,
        s=38,
        alpha=0.7,
        label="agent, one point per seed",
        zorder=4,
    )
    ax.set_xlabel("sd of the implementation shortfall, bps", fontsize=9)
    ax.set_ylabel("mean cost without the market's move, bps", fontsize=9)
    ax.legend(fontsize=8, frameon=False)
    _plain(ax)
    return figure


def shortfall_histogram(results: ExecutionResults, chosen: int) -> Figure:
    """Shortfall of every order by strategy, and the chosen agent's difference from each schedule on the same order."""
    figure = new_figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    ours = results.agents[chosen].measure(SHORTFALL)
    everyone = {name: outcome.measure(SHORTFALL) for name, outcome in results.baselines.items()}
    bins = _bins([*everyone.values(), ours])
    for name, values in everyone.items():
        _outline(left, values, bins, BASELINE_COLORS[name], LABELS[name])
    left.hist(
        np.clip(ours, bins[0], bins[-1]),
        bins=list(bins),
        color=AGENT_COLOR,
        alpha=0.3,
        label=f"agent, seed {chosen}",
    )
    _title(left, "implementation shortfall, bps; number of orders")
    left.legend(fontsize=8, frameon=False)
    differences = {name: ours - values for name, values in everyone.items()}
    bins = _bins(list(differences.values()))
    for name, values in differences.items():
        _outline(right, values, bins, BASELINE_COLORS[name], f"less {LABELS[name]}: {values.mean():+.2f}")
    right.axvline(0, color="black", lw=0.6)
    _title(right, "agent less schedule on the same order, bps; left of 0 it is cheaper")
    right.legend(fontsize=8, frameon=False, title="mean", title_fontsize=8)
    for ax in (left, right):
        _plain(ax)
    return figure


def cost_parts_figure(results: ExecutionResults) -> Figure:
    """Parts of the mean shortfall of each strategy and seed; the dot is their sum."""
    strategies = {
        **{LABELS[name]: outcome for name, outcome in results.baselines.items()},
        **({"agent, mean": averaged_execution(results.agents)} if len(results.agents) > 1 else {}),
        **{f"seed {seed}": outcome for seed, outcome in results.agents.items()},
    }
    figure = new_figure(9, 4.4)
    ax = figure.subplots()
    at = np.arange(len(strategies))
    up, down = np.zeros(len(at)), np.zeros(len(at))
    for part in PARTS:
        values = np.array([getattr(outcome.costs, part).mean() for outcome in strategies.values()])
        # A favourable move of the market is stacked downwards.
        base = np.where(values >= 0, up, down)
        label = part.removesuffix("_bps").replace("_", " ")
        ax.bar(at, values, bottom=base, width=0.65, color=PART_COLORS[part], label=label)
        up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
    totals = [outcome.measure(SHORTFALL).mean() for outcome in strategies.values()]
    ax.plot(at, totals, "o", color="white", mec="black", ms=6, label="shortfall")
    for x, total, top in zip(at, totals, up, strict=True):
        ax.annotate(
            f"{total:.2f}", (x, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8
        )
    ax.set_xticks(
        at, list(strategies), rotation=30 if len(at) > 7 else 0, ha="right" if len(at) > 7 else "center"
    )
    ax.axhline(0, color="black", lw=0.5)
    ax.set_ylim(1.08 * down.min(), 1.12 * up.max())  # room for the numbers
    ax.set_ylabel("mean over paths, bps", fontsize=9)
    figure.legend(
        *ax.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=6, loc="outside upper center"
    )
    _plain(ax)
    return figure


# -- market making -----------------------------------------------------------------------------------------------------


def inventory_distribution_figure(results: MarketMakingResults, chosen: int) -> Figure:
    """Share of time at each inventory, and the inventory at the end: the agent beside the closed forms."""
    figure = new_figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    agent, inventory = results.agents[chosen], results.inventory
    every = np.array([outcome.time_at.mean(axis=0) for outcome in results.agents.values()])
    left.bar(
        inventory,
        100 * agent.time_at.mean(axis=0),
        width=1.0,
        color=AGENT_COLOR,
        alpha=0.3,
        label=f"agent, seed {chosen}",
    )
    if len(every) > 1:
        left.fill_between(
            inventory, 100 * every.min(axis=0), 100 * every.max(axis=0), color=AGENT_COLOR, alpha=0.25, lw=0,
            label=f"agent, {len(every)} seeds", step="mid",
        )  # fmt: skip
    for name, outcome in results.baselines.items():
        left.plot(
            inventory,
            100 * outcome.time_at.mean(axis=0),
            color=BASELINE_COLORS[name],
            lw=1.3,
            label=LABELS[name],
        )
    if results.exact_time_at is not None:
        left.plot(
            inventory,
            100 * results.exact_time_at,
            color="black",
            lw=0.9,
            ls=":",
            label="Cartea-Jaimungal, exact",
        )
    held = [outcome.time_at.mean(axis=0) for outcome in (agent, *results.baselines.values())]
    inside = np.flatnonzero(np.max(held, axis=0) > 1e-4)
    left.set_xlim(inventory[inside[0]] - 1, inventory[inside[-1]] + 1)
    left.set_xlabel("shares held", fontsize=8)
    left.legend(fontsize=8, frameon=False, loc="upper right")
    _title(left, "share of the session at each inventory, %")
    ends = {name: outcome.final_inventory for name, outcome in results.baselines.items()}
    low, high = np.percentile(np.concatenate([agent.final_inventory, *ends.values()]), PERCENTILES)
    width = max(1, int(np.ceil((high - low) / 40)))
    bins = np.arange(np.floor(low) - 0.5, np.ceil(high) + width + 0.5, width)
    right.hist(
        np.clip(agent.final_inventory, bins[0], bins[-1]), bins=list(bins), color=AGENT_COLOR, alpha=0.3,
        label=f"agent, sd {agent.final_inventory.std():.1f}",
    )  # fmt: skip
    for name, values in ends.items():
        _outline(right, values, bins, BASELINE_COLORS[name], f"{LABELS[name]}, sd {values.std():.1f}")
    right.set_xlabel("shares held at the end", fontsize=8)
    right.legend(fontsize=8, frameon=False, loc="upper right")
    _title(right, "number of sessions")
    for ax in (left, right):
        _plain(ax)
        # Room for the legend above the peaks.
        ax.set_ylim(0, 1.35 * ax.get_ylim()[1])
    return figure


def pnl_histogram(results: MarketMakingResults, chosen: int) -> Figure:
    """PnL of a session by strategy, and the chosen agent's difference in the objective without the market's move."""
    figure = new_figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    agent = results.agents[chosen]
    bins = _bins([agent.pnl, *(outcome.pnl for outcome in results.baselines.values())])
    left.hist(
        np.clip(agent.pnl, bins[0], bins[-1]), bins=list(bins), color=AGENT_COLOR, alpha=0.3,
        label=f"agent: {agent.pnl.mean():.1f} ± {agent.pnl.std():.1f}",
    )  # fmt: skip
    for name, outcome in results.baselines.items():
        label = f"{LABELS[name]}: {outcome.pnl.mean():.1f} ± {outcome.pnl.std():.1f}"
        _outline(left, outcome.pnl, bins, BASELINE_COLORS[name], label)
    _title(left, "PnL of a session, dollars (mean ± sd)")
    differences = {
        name: agent.objective_without_market_move - outcome.objective_without_market_move
        for name, outcome in results.baselines.items()
    }
    bins = _bins(list(differences.values()))
    for name, values in differences.items():
        _outline(right, values, bins, BASELINE_COLORS[name], f"less {LABELS[name]}: {values.mean():+.2f}")
    right.axvline(0, color="black", lw=0.6)
    _title(right, "objective without the market's move, agent less rule, dollars")
    for ax in (left, right):
        ax.legend(fontsize=8, frameon=False, loc="upper left")
        _plain(ax)
        ax.set_ylim(0, 1.45 * ax.get_ylim()[1])
    return figure


# -- portfolio ---------------------------------------------------------------------------------------------------------


def portfolio_figure(results: PortfolioResults, chosen: int) -> Figure:
    """Wealth net of costs on a logarithmic axis: the agents' range over seeds, their median, the chosen one, the rules."""
    figure = new_figure(9, 5.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.3, 1])
    every = np.array([rollout.equity[1:] for rollout in results.agents.values()])
    sessions = results.agents[chosen].sessions
    top.fill_between(sessions, every.min(axis=0), every.max(axis=0), color=AGENT_COLOR, alpha=0.2, lw=0)
    top.plot(
        sessions,
        np.median(every, axis=0),
        color=AGENT_COLOR,
        lw=1.5,
        label=_agents_label(results.agents, "median"),
    )
    if len(every) > 1:
        top.plot(
            sessions,
            results.agents[chosen].equity[1:],
            color=AGENT_COLOR,
            lw=0.8,
            ls=":",
            label=f"seed {chosen}, chosen",
        )
    for name, rollout in results.baselines.items():
        top.plot(sessions, rollout.equity[1:], color=BASELINE_COLORS[name], lw=1.1, label=LABELS[name])
    top.set_yscale("log")
    top.yaxis.set_major_formatter("{x:g}")
    top.yaxis.set_minor_formatter("{x:g}")
    top.set_ylabel("wealth, 1 at the start", fontsize=9)
    top.legend(fontsize=8, frameon=False, ncols=3, loc="upper left")
    drawn = np.array([_drawdown(rollout) for rollout in results.agents.values()])
    bottom.fill_between(sessions, drawn.min(axis=0), drawn.max(axis=0), color=AGENT_COLOR, alpha=0.2, lw=0)
    bottom.plot(sessions, np.median(drawn, axis=0), color=AGENT_COLOR, lw=1.0)
    for name, rollout in results.baselines.items():
        bottom.plot(sessions, _drawdown(rollout), color=BASELINE_COLORS[name], lw=0.8)
    bottom.axhline(0, color="black", lw=0.5)
    bottom.set_ylabel("% below the peak", fontsize=9)
    for ax in (top, bottom):
        _plain(ax)
        ax.tick_params(axis="y", which="minor", labelsize=7)
    date_axis(bottom)
    return figure


def weights_figure(rollout: PortfolioRollout, symbols: Sequence[str]) -> Figure:
    """Weights after each trade, stacked; shorts below 0; what is missing to 100 % is cash."""
    figure = new_figure(9, 3.8)
    ax = figure.subplots()
    colors = [COLORS[i % len(COLORS)] for i in range(len(symbols))]
    longs, shorts = 100 * np.maximum(rollout.weights, 0), 100 * np.minimum(rollout.weights, 0)
    ax.stackplot(rollout.sessions, longs.T, labels=list(symbols), colors=colors, lw=0, alpha=0.85)
    if (shorts < 0).any():
        ax.stackplot(rollout.sessions, shorts.T, colors=colors, lw=0, alpha=0.85)
    ax.axhline(0, color="black", lw=0.5)
    ax.margins(x=0)
    ax.set_ylabel("weight, % of wealth", fontsize=9)
    figure.legend(
        *ax.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=8, loc="outside upper center"
    )
    _plain(ax)
    date_axis(ax)
    return figure


def sharpe_figure(levels: Sequence[Mapping[str, Any]]) -> Figure:
    """Sharpe ratios with their intervals: rules, every seed, the mean over seeds; rows of `agents.portfolio_rows`."""
    figure = new_figure(7.5, 1.4 + 0.27 * len(levels))
    ax = figure.subplots()
    names = []
    for at, row in enumerate(reversed(levels)):
        color = BASELINE_COLORS.get(row["strategy"], AGENT_COLOR)
        ax.plot([row["sharpe_ratio_low"], row["sharpe_ratio_high"]], [at, at], color=color, lw=1.4)
        ax.plot(row["sharpe_ratio"], at, "o", color=color, ms=5)
        names.append(who(row))
    ax.set_yticks(range(len(names)), names)
    ax.axvline(0, color="black", lw=0.5)
    ax.set_xlabel("Sharpe ratio, annual, net of costs; 95 % interval", fontsize=9)
    _plain(ax)
    return figure


# -- training ----------------------------------------------------------------------------------------------------------


def learning_curve_figure(curves: Mapping[str, Sequence[Mapping[str, float | None]]]) -> Figure:
    """Score on validation paths and return of the training episodes against real steps: mean and range over seeds.

    Args:
        curves: seed -> rows of `TrainedAgent.history`. Rewards may lack what training leaves out of them.
    """
    figure = new_figure(9, 3.8)
    for ax, (key, title) in zip(
        figure.subplots(1, 2),
        (("score", "score on validation paths"), ("reward", "mean return of training episodes")),
        strict=True,
    ):
        lines = []
        for rows in curves.values():
            points = [(row["real_steps"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                lines.append(np.array(points, np.float64).T)
        _title(ax, title)
        ax.set_xlabel("real steps", fontsize=8)
        _plain(ax)
        if not lines:
            ax.text(0.5, 0.5, "none was recorded", ha="center", transform=ax.transAxes, fontsize=8)
            continue
        # Seeds may have reported at different steps: on one axis over what all of them have.
        steps = np.unique(np.concatenate([line[0] for line in lines]))
        steps = steps[
            (steps >= max(line[0, 0] for line in lines)) & (steps <= min(line[0, -1] for line in lines))
        ]
        for line in lines:
            ax.plot(*line, color=AGENT_COLOR, lw=0.5, alpha=0.4, marker=".", ms=3)
        if len(steps) > 1 and len(lines) > 1:
            values = np.array([np.interp(steps, *line) for line in lines])
            ax.fill_between(
                steps, values.min(axis=0), values.max(axis=0), color=AGENT_COLOR, alpha=0.15, lw=0
            )
            ax.plot(
                steps, values.mean(axis=0), color=AGENT_COLOR, lw=1.6, label=f"mean of {len(lines)} seeds"
            )
            ax.legend(fontsize=8, frameon=False, loc="lower right")
        ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 5), useMathText=True)
    return figure


# -- small pieces ------------------------------------------------------------------------------------------------------


def who(row: Mapping[str, Any]) -> str:
    """Name of a row's strategy for people."""
    if row["strategy"] in LABELS:
        return LABELS[row["strategy"]]
    if row["seed"] is None:
        return f"agent, mean of {row['seeds']}"
    return f"agent, seed {row['seed']}" + (" (chosen)" if row["chosen"] else "")


def _agents_label(agents: Mapping[int, Any], what: str = "mean") -> str:
    return "agent" if len(agents) == 1 else f"agent, {what} of {len(agents)} seeds"


def _drawdown(rollout: PortfolioRollout) -> np.ndarray:
    return 100 * (rollout.equity / np.maximum.accumulate(rollout.equity) - 1)[1:]


def _bins(values: Sequence[np.ndarray], count: int = 50) -> np.ndarray:
    low, high = np.percentile(np.concatenate(list(values)), PERCENTILES)
    return np.linspace(low, high, count + 1) if high > low else np.linspace(low - 0.5, high + 0.5, count + 1)


def _outline(ax: Axes, values: np.ndarray, bins: np.ndarray, color: str, label: str) -> None:
    ax.hist(
        np.clip(values, bins[0], bins[-1]), bins=list(bins), histtype="step", color=color, lw=1.2, label=label
    )


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, fontsize=8, loc="left")


def _plain(ax: Axes) -> None:
    ax.tick_params(labelsize=8)
    ax.grid(axis="y", color="#e6e6e6", lw=0.6)
    ax.set_axisbelow(True)
