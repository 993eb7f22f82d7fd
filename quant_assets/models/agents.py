"""What the three agents are trained on and how long: problems, profiles, seeds, and how two policies are compared. Pure.

Belongs here: the step from markets to a trained agent with its score. Does not belong here: the algorithm (`sac.py`), the
environments, reading tables and files, the registry (`agent_assets.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from quant_assets.environments.episodes import Episodes
from quant_assets.environments.execution import ExecutionEpisodes, ExecutionMarket, ExecutionParameters
from quant_assets.environments.market_making import (
    MarketMaking,
    MarketMakingMarket,
    MarketMakingParameters,
    rollout,
)
from quant_assets.environments.portfolio import PortfolioEpisodes, PortfolioMarket, PortfolioParameters
from quant_assets.models.sac import SacError, SacParameters, SacPolicy, TrainedAgent, train

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
            learning_rate=2e-4,
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
    "sac_execution": {"demo": 2, "full": 5},
    "sac_market_maker": {"demo": 2, "full": 5},
    "sac_portfolio": {"demo": 10, "full": 10},
}

Act = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Problem(ABC):
    """Where an agent learns and where it is judged.

    Attributes:
        name: of the agent.
        score_unit: of `scores`.
        terms: parameters that say what an action and an observation mean; the others are costs and rewards.
        markets: by part of the days.
        parameters: of the environment.
    """

    name: ClassVar[str]
    score_unit: ClassVar[str]
    terms: ClassVar[tuple[str, ...]]

    markets: Mapping[str, Any]
    parameters: Any

    @abstractmethod
    def episodes(self, part: str, n: int) -> Episodes:
        """n episodes on a part of the days: real, imagined, validation, gate."""

    @abstractmethod
    def scores(self, act: Act, part: str) -> np.ndarray:
        """What a policy gets on each path (or in each period) of a part, above is better; paired between policies."""

    def groups(self, part: str) -> np.ndarray:
        """What each score belongs to: the posterior draw of a path (paths of one draw are not independent), or the session."""
        return self.markets[part].draw_id

    def as_trained(self, parameters: Mapping[str, Any]) -> Self:
        """The same costs and rewards, with the actions and observations of a bundle's `parameters`: a policy means by an action what
        it meant when it was trained. A portfolio's markets are those of the bundle already.
        """
        trained = {name: parameters[name] for name in self.terms}
        return replace(self, parameters=replace(self.parameters, **trained))


@dataclass(frozen=True)
class ExecutionProblem(Problem):
    """Selling an order. Scores: minus the cost in basis points of the order, the market's own move left out."""

    name = "sac_execution"
    score_unit = "bps of the order"
    terms = ("minutes_per_decision", "max_pace")

    markets: Mapping[str, ExecutionMarket]
    parameters: ExecutionParameters

    def episodes(self, part: str, n: int) -> ExecutionEpisodes:
        """See `Problem`."""
        return ExecutionEpisodes(self.markets[part], self.parameters, n)

    def scores(self, act: Act, part: str) -> np.ndarray:
        """See `Problem`."""
        market = self.markets[part]
        episodes = ExecutionEpisodes(market, self.parameters, market.paths)
        observation = episodes.reset(np.random.default_rng(JUDGING_SEED), np.arange(market.paths))
        total = np.zeros(market.paths)
        for _ in range(episodes.steps):
            done = episodes.step(act(observation))
            total += done.reward
            observation = done.observation
        return total


@dataclass(frozen=True)
class MarketMakingProblem(Problem):
    """Quoting both sides. Scores: dollars per session net of the penalty, the mid's moves left out."""

    name = "sac_market_maker"
    score_unit = "dollars a session"
    terms = (
        "max_depth",
        "max_size",
        "max_hedge_shares",
        "inventory_scale_shares",
        "wealth_scale_dollars",
        "recent_fills_halflife_steps",
    )

    markets: Mapping[str, MarketMakingMarket]
    parameters: MarketMakingParameters

    def episodes(self, part: str, n: int) -> MarketMaking:
        """See `Problem`."""
        return MarketMaking(self.markets[part], self.parameters, n)

    def scores(self, act: Act, part: str) -> np.ndarray:
        """See `Problem`."""
        market = self.markets[part]
        episodes = MarketMaking(market, self.parameters, market.paths)
        done = rollout(
            episodes,
            lambda _, observation: act(observation),
            np.random.default_rng(JUDGING_SEED),
            np.arange(market.paths),
        )
        return done.reward


@dataclass(frozen=True)
class PortfolioProblem(Problem):
    """Weights over assets and cash, judged over a whole window in one episode; the gate's is the first sessions out of sample.
    Scores: log growth of each period in percent, net of costs.
    """

    name = "sac_portfolio"
    score_unit = "% a session"
    terms = ("look_back", "mode", "gross_limit", "logit_scale")

    markets: Mapping[str, PortfolioMarket]
    parameters: PortfolioParameters

    def episodes(self, part: str, n: int) -> PortfolioEpisodes:
        """See `Problem`. Parts that judge are one episode, however short or long they are."""
        whole = replace(self.parameters, episode_steps=None)
        return PortfolioEpisodes(n, self.markets[part], self.parameters if part == "real" else whole)

    def groups(self, part: str) -> np.ndarray:
        """See `Problem`."""
        return self.markets[part].sessions[np.asarray(self.episodes(part, 1).decisions)]

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
    progress: Callable[[dict[str, float | None]], None] | None = None,
) -> TrainedAgent:
    """One agent, judged on the validation part while it learns.

    Args:
        problem: markets and environment.
        parameters: with the seed.
        initial: transitions to begin the imagined buffer with, or None.
        checkpoint: file to continue from and to write to; it stays when the agent is done, and whoever has stored the agent
            removes it.
        identity: of the markets; a checkpoint of others is refused.
        progress: called with each row of the history; `progress_line` makes text of it.

    Raises:
        SacError: the problem has no imagined part and `imagined_per_step` is above 0.
    """
    k = parameters.imagined_per_step
    if k and "imagined" not in problem.markets:
        raise SacError(
            f"{problem.name}: imagined_per_step = {k}, but there are no imagined days for it: set it to 0"
        )

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
        progress=progress,
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


def join_transitions(parts: Sequence[Any], steps: int, most: int) -> Any:
    """Transition buffers of several symbols as one, with the same number of whole episodes of each.

    Args:
        parts: one per symbol.
        steps: of an episode.
        most: rows in all; a buffer that is filled with them would hold nothing of the first symbols.
    """
    first, each = parts[0], max(most // (len(parts) * steps), 1)
    taken = []
    for part in parts:
        episodes = len(part.step) // steps
        kept = np.arange(min(each, episodes)) * episodes // min(each, episodes)
        taken.append((kept[:, None] * steps + np.arange(steps)).ravel())
    arrays = {
        name: np.concatenate([getattr(part, name)[rows] for part, rows in zip(parts, taken, strict=True)])
        for name in first._fields
        if name != "info"
    }
    return first._replace(**arrays)
