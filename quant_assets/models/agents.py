"""What the three agents are trained on and how long: problems, profiles, seeds, and how two policies are compared. Pure.

Belongs here: the step from markets to a trained agent with its score. Does not belong here: the algorithm (`sac.py`), the
environments, reading tables and files, the registry (`agent_assets.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quant_assets.environments.episodes import Episodes
from quant_assets.environments.execution import ExecutionEpisodes, ExecutionMarket
from quant_assets.environments.market_making import MarketMaking, MarketMakingMarket, rollout
from quant_assets.environments.portfolio import PortfolioEpisodes, PortfolioMarket, PortfolioParameters
from quant_assets.environments.problems import EXECUTION, MARKET_MAKING
from quant_assets.models.sac import SacParameters, SacPolicy, TrainedAgent, train

JUDGING_SEED = (
    20_240_229  # of orders and fills when policies are judged; the same for all, so that they are paired
)

_SMALL = SacParameters(
    hidden_units=(64, 64),
    batch_size=256,
    buffer_size=300_000,
    gamma=1.0,
    final_learning_rate_factor=0.1,
    evaluations=12,
    threads=1,
)
# `full` for execution is what was published for it (the defaults of `SacParameters`); a discount of 0.98 reaches over the 26
# decisions of a session. `demo` is minutes on two cores for all three together.
PROFILES: Mapping[str, Mapping[str, SacParameters]] = {
    "sac_execution": {
        "demo": replace(
            _SMALL,
            learning_rate=5e-4,
            initial_alpha=0.01,
            target_entropy=-2.0,
            episodes=32,
            steps=24_000,
            updates_per_step=8,
            imagined_per_step=2,
        ),
        "full": SacParameters(
            episodes=32,
            steps=500_000,
            updates_per_step=16,
            initial_alpha=0.01,
            target_entropy=-2.0,
            imagined_per_step=4,
            final_learning_rate_factor=0.1,
            evaluations=50,
            threads=2,
        ),
    },
    "sac_market_maker": {
        "demo": replace(
            _SMALL,
            learning_rate=3e-3,
            gamma=0.99,
            initial_alpha=0.05,
            target_entropy=-3.0,
            episodes=16,
            steps=50_000,
            updates_per_step=4,
            imagined_per_step=1,
        ),
        "full": replace(
            _SMALL,
            hidden_units=(256, 256),
            batch_size=512,
            learning_rate=1e-3,
            gamma=0.995,
            initial_alpha=0.05,
            target_entropy=-3.0,
            episodes=16,
            steps=1_000_000,
            updates_per_step=4,
            imagined_per_step=4,
            evaluations=50,
            threads=2,
        ),
    },
    "sac_portfolio": {
        "demo": replace(
            _SMALL,
            learning_rate=1e-3,
            gamma=0.9,
            initial_alpha=0.1,
            episodes=16,
            steps=16_000,
            updates_per_step=2,
            evaluations=8,
        ),
        "full": replace(
            _SMALL,
            hidden_units=(256, 256),
            batch_size=512,
            learning_rate=3e-4,
            gamma=0.9,
            initial_alpha=0.1,
            episodes=16,
            steps=400_000,
            updates_per_step=4,
            evaluations=50,
            threads=2,
        ),
    },
}
# How many agents are trained; a portfolio's result hangs on its seed more than on anything else.
SEEDS: Mapping[str, Mapping[str, int]] = {
    "sac_execution": {"demo": 1, "full": 5},
    "sac_market_maker": {"demo": 1, "full": 5},
    "sac_portfolio": {"demo": 10, "full": 10},
}

Act = Callable[[np.ndarray], np.ndarray]


class Problem(Protocol):
    """Where an agent learns and where it is judged."""

    name: str
    score_unit: str

    def episodes(self, part: str, n: int) -> Episodes:
        """n episodes on a part of the days: real, imagined, validation, gate."""

    def scores(self, act: Act, part: str) -> np.ndarray:
        """What a policy gets on each path (or in each period) of a part, above is better; paired between policies."""


@dataclass(frozen=True)
class ExecutionProblem:
    """Selling an order. Scores: minus the cost in basis points of the order, the market's own move left out.

    Attributes:
        markets: by part of the split.
    """

    markets: Mapping[str, ExecutionMarket]
    name: str = "sac_execution"
    score_unit: str = "bps of the order"

    def episodes(self, part: str, n: int) -> ExecutionEpisodes:
        """See `Problem`."""
        return ExecutionEpisodes(self.markets[part], EXECUTION, n)

    def scores(self, act: Act, part: str) -> np.ndarray:
        """See `Problem`."""
        market = self.markets[part]
        episodes = ExecutionEpisodes(market, EXECUTION, market.paths)
        observation = episodes.reset(np.random.default_rng(JUDGING_SEED), np.arange(market.paths))
        total = np.zeros(market.paths)
        for _ in range(episodes.steps):
            done = episodes.step(act(observation))
            total += done.reward
            observation = done.observation
        return total


@dataclass(frozen=True)
class MarketMakingProblem:
    """Quoting both sides. Scores: dollars per session net of the penalty, the mid's moves left out.

    Attributes:
        markets: by part of the split.
    """

    markets: Mapping[str, MarketMakingMarket]
    name: str = "sac_market_maker"
    score_unit: str = "dollars a session"

    def episodes(self, part: str, n: int) -> MarketMaking:
        """See `Problem`."""
        return MarketMaking(self.markets[part], MARKET_MAKING, n)

    def scores(self, act: Act, part: str) -> np.ndarray:
        """See `Problem`."""
        market = self.markets[part]
        episodes = MarketMaking(market, MARKET_MAKING, market.paths)
        done = rollout(
            episodes,
            lambda _, observation: act(observation),
            np.random.default_rng(JUDGING_SEED),
            np.arange(market.paths),
        )
        return done.reward


@dataclass(frozen=True)
class PortfolioProblem:
    """Weights over assets and cash. Scores: log growth of each period in percent, net of costs.

    Attributes:
        markets: by part: real, validation, gate (out of sample).
        parameters: of training; judged over the whole window in one episode.
    """

    markets: Mapping[str, PortfolioMarket]
    parameters: PortfolioParameters
    name: str = "sac_portfolio"
    score_unit: str = "% a session"

    def episodes(self, part: str, n: int) -> PortfolioEpisodes:
        """See `Problem`. Parts that judge are one episode, however short or long they are."""
        whole = replace(self.parameters, episode_steps=None)
        return PortfolioEpisodes(n, self.markets[part], self.parameters if part == "real" else whole)

    def scores(self, act: Act, part: str) -> np.ndarray:
        """See `Problem`."""
        episodes = self.episodes(part, 1)
        observation = episodes.reset(np.random.default_rng(JUDGING_SEED), np.zeros(1, np.int64))
        growth = []
        for _ in range(episodes.steps):
            done = episodes.step(act(observation))
            growth.append(100 * np.log(done.info["growth"][0]))
            observation = done.observation
        return np.array(growth)


def train_seed(
    problem: Problem,
    parameters: SacParameters,
    initial: Any = None,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Callable[[str], None] | None = None,
) -> TrainedAgent:
    """One agent, judged on the validation part while it learns.

    Args:
        problem: markets and environment.
        parameters: with the seed.
        initial: transitions to begin the imagined buffer with, or None.
        checkpoint: file to continue from and to write to; it stays when the agent is done, and whoever has stored the agent
            removes it.
        identity: of the markets; a checkpoint of others is refused.
        progress: called with a line of text at each evaluation.
    """
    k = parameters.imagined_per_step

    def told(row: Mapping[str, float | None]) -> None:
        if progress:
            progress(progress_line(problem, parameters, row))

    def score(policy: SacPolicy) -> float:
        return float(problem.scores(policy.act, "validation").mean())

    return train(
        problem.episodes("real", parameters.episodes),
        parameters,
        imagined=problem.episodes("imagined", k * parameters.episodes) if k else None,
        initial=initial if k else None,
        evaluate=score,
        checkpoint=checkpoint,
        keep_checkpoint=True,
        identity=identity,
        progress=told,
    )


def progress_line(problem: Problem, parameters: SacParameters, row: Mapping[str, float | None]) -> str:
    """A row of the history for a log."""

    def shown(name: str, form: str) -> str:
        value = row[name]
        return "-" if value is None else format(value, form)

    return (
        f"{problem.name} seed {parameters.seed}: {shown('real_steps', ',.0f')} of {parameters.steps:,} real steps, "
        f"{shown('updates', ',.0f')} updates ({shown('updates_per_second', '.0f')}/s), reward {shown('reward', '.3f')}, "
        f"critic loss {shown('critic_loss', '.4g')}, actor loss {shown('actor_loss', '.4g')}, alpha {shown('alpha', '.4g')}, "
        f"validation {shown('score', '.3f')} {problem.score_unit}"
    )


def best_of(agents: Mapping[int, TrainedAgent]) -> int:
    """The seed with the best validation score; what out-of-sample days say has no part in it."""
    return max(agents, key=lambda seed: (-np.inf if (s := agents[seed].score) is None else s, -seed))


def join_transitions(parts: Sequence[Any]) -> Any:
    """Transition buffers of several symbols as one."""
    first = parts[0]
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in first._fields
        if name != "info"
    }
    return first._replace(**arrays)
