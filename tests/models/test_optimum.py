"""Trained agents against the closed forms: Almgren and Chriss's schedule, Cartea and Jaimungal's quotes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from quant_assets.environments import execution, market_making
from quant_assets.environments.closed_form import (
    AlmgrenChriss,
    almgren_chriss_cost,
    almgren_chriss_trajectory,
    quote_table_value,
)
from quant_assets.models.sac import SacParameters, SacPolicy, train

pytestmark = pytest.mark.slow

# The example of Almgren and Chriss (2000): a million shares in five days.
ORDER = AlmgrenChriss(1e6, 5, 5, 0.95, 2.5e-7, 2.5e-6, 0.0625)
RISK_AVERSION = 1e-6
UNSEEN_PATHS = 20_000
# So many episodes at once because the price moves of an inventory drown what a quote earns: only transitions help.
MARKET_MAKING = SacParameters(
    hidden_units=(64, 64),
    batch_size=512,
    learning_rate=1e-3,
    gamma=0.8,
    tau=0.01,
    episodes=1_000,
    steps=3_000_000,
    updates_per_step=3,
    reward_scale=5.0,
    learning_starts=400_000,
    buffer_size=3_000_000,
    initial_alpha=0.1,
    target_entropy=-2.0,
    final_learning_rate_factor=0.02,
)


def test_an_execution_agent_comes_within_5_percent_of_almgren_chriss_and_beats_twap_and_vwap() -> None:
    best_cost, best_variance = almgren_chriss_cost(ORDER, almgren_chriss_trajectory(ORDER, RISK_AVERSION))
    best = best_cost + RISK_AVERSION * best_variance

    def parameters_of(market: execution.ExecutionMarket) -> execution.ExecutionParameters:
        return execution.ExecutionParameters.almgren_chriss(
            market,
            order_shares=ORDER.order_shares,
            eta=ORDER.temporary_impact,
            gamma=ORDER.permanent_impact,
            risk_aversion=RISK_AVERSION,
            leftover_penalty_bps=200.0,  # or the end would be a sixth day
        )

    seen = execution.textbook_market(paths=20_000, steps=5, seed=1)
    agent = train(
        execution.ExecutionEpisodes(seen, parameters_of(seen), 64),
        SacParameters(
            hidden_units=(64, 64),
            batch_size=256,
            learning_rate=1e-3,
            gamma=1.0,
            tau=0.01,
            episodes=64,
            steps=20_000,
            updates_per_step=8,
            reward_scale=0.01,
            learning_starts=2_000,
            buffer_size=100_000,
            initial_alpha=0.1,
            target_entropy=-3.0,
            final_learning_rate_factor=0.1,
        ),
    ).policy

    unseen = execution.textbook_market(paths=UNSEEN_PATHS, steps=5, seed=2)
    parameters = parameters_of(unseen)

    def sell(market: execution.ExecutionMarket, act: Callable[..., np.ndarray]) -> np.ndarray:
        """Shortfall in dollars on each path."""
        episodes = execution.ExecutionEpisodes(market, parameters, market.paths)
        observation = episodes.reset(np.random.default_rng(0), np.arange(market.paths))
        shortfall = np.zeros(market.paths)
        for _ in range(episodes.steps):
            done = episodes.step(act(episodes, observation))
            shortfall += done.info["shortfall_dollars"]
            observation = done.observation
        return shortfall

    def objective(shortfall: np.ndarray) -> float:
        return float(shortfall.mean() + RISK_AVERSION * shortfall.var()) / float(best)

    def following(schedule: np.ndarray) -> Callable[..., np.ndarray]:
        def act(episodes: execution.ExecutionEpisodes, _: np.ndarray) -> np.ndarray:
            return episodes.action_for(np.broadcast_to(schedule, (episodes.n, 5))[:, episodes.step_index])

        return act

    value = objective(sell(unseen, lambda _, observation: agent.act(observation)))
    assert value < 1.05
    # A sampled value knows the paths' own chance; without it the schedule itself is close.
    still = execution.textbook_market(paths=1, steps=5, seed=3, moves=False)
    sold = ORDER.order_shares - _left(still, parameters, agent)
    exact_cost, exact_variance = almgren_chriss_cost(ORDER, np.diff(sold, prepend=0.0))
    assert exact_cost + RISK_AVERSION * exact_variance < 1.05 * best
    for schedule in (execution.twap_schedule(parameters), execution.vwap_schedule(unseen, parameters)):
        assert objective(sell(unseen, following(schedule))) > 1.3


def _left(
    market: execution.ExecutionMarket, parameters: execution.ExecutionParameters, agent: SacPolicy
) -> np.ndarray:
    """Shares left after each period; the last sale takes the rest."""
    episodes = execution.ExecutionEpisodes(market, parameters, 1)
    observation = episodes.reset(np.random.default_rng(0))
    left = np.zeros(5)
    for k in range(4):
        observation = episodes.step(agent.act(observation)).observation
        left[k] = episodes.shares_left[0]
    return left


def test_a_market_maker_earns_95_percent_of_cartea_jaimungal() -> None:
    """Their example as published. It proves little alone: holding costs so little there that a fixed spread has 99.9 %."""
    terms = market_making.MarketMakingParameters(max_depth=2.0)
    seen = market_making.textbook_market(2_000, 200, 100.0, 2.0, 1.0, seed=1)
    agent = train(market_making.MarketMaking(seen, terms, MARKET_MAKING.episodes), MARKET_MAKING).policy
    unseen = market_making.textbook_market(UNSEEN_PATHS, 200, 100.0, 2.0, 1.0, seed=5)
    episodes = market_making.MarketMaking(unseen, terms, UNSEEN_PATHS)
    best = market_making.cartea_jaimungal_table(episodes).value[0, terms.inventory_limit]
    assert best == pytest.approx(68.25583, abs=1e-5)
    reward = market_making.rollout(
        episodes, lambda _, seen: agent.act(seen), np.random.default_rng(7), np.arange(UNSEEN_PATHS)
    ).reward
    assert reward.mean() > 0.95 * best


def test_a_market_maker_that_must_mind_its_inventory_earns_90_percent_and_a_fixed_spread_does_not() -> None:
    """A hundred times their penalty on inventory: a spread that ignores it has 57 % of the value at its best."""
    terms = market_making.MarketMakingParameters(max_depth=2.0, running_penalty=1.0)
    seen = market_making.textbook_market(2_000, 200, 100.0, 2.0, 1.0, seed=1)
    parameters = replace(
        MARKET_MAKING, episodes=500, steps=1_000_000, learning_starts=200_000, buffer_size=1_000_000
    )
    agent = train(market_making.MarketMaking(seen, terms, parameters.episodes), parameters).policy
    unseen = market_making.textbook_market(UNSEEN_PATHS, 200, 100.0, 2.0, 1.0, seed=5)
    episodes = market_making.MarketMaking(unseen, terms, UNSEEN_PATHS)
    best = market_making.cartea_jaimungal_table(episodes).value[0, terms.inventory_limit]
    reward = market_making.rollout(
        episodes, lambda _, seen: agent.act(seen), np.random.default_rng(7), np.arange(UNSEEN_PATHS)
    ).reward
    fixed = max(
        quote_table_value(
            *[np.full((200, 2 * terms.inventory_limit + 1), depth)] * 2,
            arrival_rate=terms.arrival_rate,
            depth_decay=terms.depth_decay,
            dt=unseen.dt,
            running_penalty=terms.running_penalty,
            terminal_penalty=terms.terminal_penalty,
        )[0, terms.inventory_limit]
        for depth in np.arange(0.5, 2.0, 0.02)
    )
    assert fixed == pytest.approx(0.57 * best, rel=0.01)
    assert reward.mean() > 0.9 * best
    assert reward.mean() > 1.4 * fixed
