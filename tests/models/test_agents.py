"""Problems, profiles and the gate of agents; what a portfolio agent can and cannot learn."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quant_assets.environments.portfolio import PortfolioMarket, shuffled, with_tomorrow
from quant_assets.environments.problems import EXECUTION, PORTFOLIO
from quant_assets.market.series import bar_series
from quant_assets.models.agents import (
    PROFILES,
    SEEDS,
    ExecutionProblem,
    PortfolioProblem,
    best_of,
    join_transitions,
    progress_line,
    train_seed,
)
from quant_assets.models.gate import judge_scores
from quant_assets.models.portfolio_market import portfolio_market, split_market
from quant_assets.models.sac import SacError, TrainedAgent
from quant_assets.simulation.transitions import Transitions


def test_the_published_profile_is_the_default() -> None:
    published = PROFILES["sac_execution"]["full"]
    assert (published.learning_rate, published.batch_size, published.buffer_size) == (1e-4, 512, 500_000)
    assert (published.gamma, published.tau) == (0.98, 0.01)
    assert all(set(PROFILES[name]) == set(SEEDS[name]) == {"demo", "full"} for name in PROFILES)


def test_the_best_seed_is_the_one_of_the_validation_days() -> None:
    agents: Any = {
        seed: TrainedAgent(None, [], score, 1.0) for seed, score in ((7, -2.0), (8, -1.0), (9, None))
    }  # type: ignore[arg-type]
    assert best_of(agents) == 8


def test_progress_says_everything_that_is_known() -> None:
    problem = PortfolioProblem({}, PORTFOLIO)
    row = dict.fromkeys(
        ("updates_per_second", "reward", "critic_loss", "actor_loss", "alpha", "entropy", "score"), None
    )
    line = progress_line(
        problem, PROFILES["sac_portfolio"]["demo"], {**row, "real_steps": 1000, "updates": 0}
    )
    assert line.startswith("sac_portfolio seed 0: 1,000 of 16,000 real steps, 0 updates (-/s)")


def test_the_gate_wants_a_difference_that_noise_does_not_explain() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 5, 500)
    each = np.arange(500)
    better = judge_scores(common + 0.3 + rng.normal(0, 0.5, 500), common, "bps", each)
    assert better.promote
    assert "improves by +0.2654 bps" in better.reason
    assert not judge_scores(common + rng.normal(0, 0.5, 500), common, "bps", each).promote
    assert not judge_scores(common, common, "bps", each).promote
    nothing = judge_scores(common[:0], common[:0], "bps", each[:0])
    assert "nothing that neither agent has seen" in nothing.reason


def test_paths_of_one_draw_are_resampled_together() -> None:
    """Fifty copies of ten numbers are ten numbers, not five hundred."""
    ten = np.linspace(-0.8, 1.1, 10)
    scores, draw = np.repeat(ten, 50), np.repeat(np.arange(10), 50)
    assert judge_scores(scores, np.zeros(500), "bps", np.arange(500)).promote
    assert not judge_scores(scores, np.zeros(500), "bps", draw).promote


def test_every_symbol_has_as_many_initial_episodes() -> None:
    def part(first: int) -> Any:
        rows = np.arange(first, first + 40)
        episode = np.repeat(np.arange(10), 4)
        wide = rows[:, None, None].astype(np.float32)
        return Transitions(
            wide, wide, wide, wide[:, 0], wide[:, 0], episode, episode, np.tile(np.arange(4), 10), None
        )  # type: ignore[arg-type]

    joined = join_transitions([part(0), part(100)], steps=4, most=25)
    assert joined.rewards[:, 0].tolist() == [*range(4), *range(12, 16), *range(24, 28), *range(100, 104),
                                             *range(112, 116), *range(124, 128)]  # fmt: skip
    assert joined.step.tolist() == [0, 1, 2, 3] * 6


def test_a_champion_is_judged_with_its_own_actions_and_todays_costs() -> None:
    old = replace(EXECUTION, max_pace=5.0, minutes_per_decision=30, temporary_impact=9.0)
    problem = ExecutionProblem({}, EXECUTION).as_trained(asdict(old))
    assert (problem.parameters.max_pace, problem.parameters.minutes_per_decision) == (5.0, 30)
    assert problem.parameters.temporary_impact == EXECUTION.temporary_impact


def test_planning_without_imagined_days_is_refused() -> None:
    problem = PortfolioProblem({}, PORTFOLIO)
    parameters = replace(PROFILES["sac_portfolio"]["demo"], imagined_per_step=1)
    with pytest.raises(SacError, match="imagined_per_step = 1, but there are no imagined days"):
        train_seed(problem, parameters)


# -- the controls of the portfolio -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def market(sample_bars: pa.Table) -> PortfolioMarket:
    return portfolio_market(bar_series(sample_bars, ["AAPL", "IBM", "MSFT"]))


def annual_growth_pct(market: PortfolioMarket, seed: int) -> float:
    """Out of sample, mean log growth in percent a year, of an agent that was trained for a few seconds."""
    parts = split_market(market)
    problem = PortfolioProblem(
        {"real": parts.train, "validation": parts.validation, "gate": parts.out_of_sample}, PORTFOLIO
    )
    parameters = replace(PROFILES["sac_portfolio"]["demo"], seed=seed, steps=16_000, evaluations=4)
    agent = train_seed(problem, parameters)
    return float(252 * problem.scores(agent.policy.act, "gate").mean())


@pytest.mark.slow
def test_with_tomorrows_return_in_sight_it_earns_absurdly(market: PortfolioMarket) -> None:
    """Otherwise it could not learn at all, and nothing that it does not earn would mean anything."""
    assert annual_growth_pct(with_tomorrow(market), seed=0) > 80


@pytest.mark.slow
def test_on_shuffled_returns_there_is_no_edge(market: PortfolioMarket) -> None:
    """Against holding the same assets equally: what is left after the drift of the sample, which shuffling keeps."""
    from quant_assets.environments.portfolio import equal_weight, rollout_weights

    shuffle = shuffled(market, seed=5)
    parts = split_market(shuffle)
    whole = replace(PORTFOLIO, episode_steps=None)
    held = rollout_weights(parts.out_of_sample, whole, equal_weight(parts.out_of_sample))
    drift_pct = held.summary()["annual_log_growth_pct"]
    edges = [annual_growth_pct(shuffle, seed) - drift_pct for seed in range(2)]
    # The tracking error against equal weights is about 15 % a year, over eight years; two seeds share the market.
    assert max(edges) < 2 * 15 / np.sqrt(8)
