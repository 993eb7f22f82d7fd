"""Days as markets: nothing unknown at its instant, every draw in one part, real sessions with their gaps bridged."""

from pathlib import Path

import numpy as np
import pytest

from quant_assets.environments.execution import ExecutionEpisodes
from quant_assets.environments.market_making import MarketMaking
from quant_assets.environments.problems import EXECUTION, MARKET_MAKING, MARKET_MAKING_MINUTES_PER_STEP
from quant_assets.posterior.priors import HestonParameters
from quant_assets.simulation.behaviour import random_transitions
from quant_assets.simulation.intraday import IntradayDays, IntradayModel, RealDays, simulate_days
from quant_assets.simulation.markets import (
    SPLIT,
    MarketError,
    execution_market,
    join_execution_markets,
    market_making_market,
    part_of,
    quoted_sessions,
    real_execution_market,
    real_sessions,
)
from quant_assets.simulation.transitions import TransitionInfo, read_transitions, write_transitions

MODEL = IntradayModel()


@pytest.fixture(scope="module")
def days() -> IntradayDays:
    rng = np.random.default_rng(0)
    draws = HestonParameters(
        mu=rng.normal(0.05, 0.05, 20),
        kappa=rng.uniform(3, 8, 20),
        theta=rng.uniform(0.03, 0.09, 20),
        sigma=rng.uniform(0.3, 0.6, 20),
        rho=rng.uniform(-0.8, -0.2, 20),
        v0=rng.uniform(0.02, 0.12, 20),
    )
    return simulate_days(draws, days_per_draw=2, seed=1, mid0=50.0, model=MODEL)


def test_every_draw_is_in_exactly_one_part(days: IntradayDays) -> None:
    parts = {name: set(part_of(days, name).draw_id.tolist()) for name in SPLIT}
    assert sorted(draw for part in parts.values() for draw in part) == list(range(20))
    assert sum(part_of(days, name).days for name in SPLIT) == 40
    assert parts["real"] == {0, 10}
    with pytest.raises(MarketError, match="part = 'training': it is one of real, imagined"):
        part_of(days, "training")


def test_too_few_draws_are_named(days: IntradayDays) -> None:
    few = part_of(part_of(days, "unseen"), "real")
    with pytest.raises(MarketError, match="1 draws leave none for gate: simulate at least 10 draws"):
        part_of(few, "gate")


def test_the_variance_of_a_minute_is_known_when_it_is_over(days: IntradayDays) -> None:
    market = market_making_market(days, MARKET_MAKING_MINUTES_PER_STEP)
    assert market.steps == 195
    np.testing.assert_allclose(market.mid[:, 0], 100)
    np.testing.assert_allclose(market.variance[:, 0], days.parameters.v0 / 252 * 100**2)
    np.testing.assert_allclose(market.variance[:, 5], days.variance[:, 9] / 252 * market.mid[:, 5] ** 2)
    with pytest.raises(MarketError, match="minutes_per_step = 7: a session of 390 minutes"):
        market_making_market(days, 7)


def test_symbols_are_joined_in_order(days: IntradayDays) -> None:
    one, other = (execution_market(part_of(days, part), MODEL) for part in ("gate", "unseen"))
    both = join_execution_markets([one, other])
    assert both.paths == one.paths + other.paths
    assert np.array_equal(both.mid[one.paths :], other.mid)
    assert one.daily_volatility.min() > 0.003


def test_gaps_of_real_sessions_are_bridged_with_what_was_known() -> None:
    mid = np.array([[100.0, 101.0, np.nan, 103.0]])
    spread = np.array([[np.nan, 0.02, np.nan, 0.04]])
    real = RealDays(np.array(["2014-06-05"], "datetime64[D]"), mid, spread, np.ones((1, 3)), np.zeros((1, 3)))
    market = real_execution_market(real, np.array([2.0, 1.0, 2.0]), 0.2)
    assert market.mid.tolist() == [[100, 101, 101, 103]]
    assert market.spread.tolist() == [[0.02, 0.02, 0.02, 0.04]]
    assert market.daily_volatility[0] == pytest.approx(0.2 / np.sqrt(252))
    with pytest.raises(MarketError, match="session 2014-06-05 has no price or no quote at all"):
        real_execution_market(real._replace(spread=np.full_like(spread, np.nan)), np.ones(3), 0.2)


def first_days(days: IntradayDays, n: int) -> RealDays:
    """Simulated days as if they were real sessions."""
    return RealDays(
        np.datetime64("2014-06-02") + np.arange(n),
        days.mid[:n].copy(),
        days.spread[:n].copy(),
        days.volume_shares[:n].astype(float),
        np.zeros((n, 390)),
    )


def test_a_real_session_knows_only_the_sessions_before_it(days: IntradayDays) -> None:
    real = first_days(days, 8)
    found = real_sessions(real)
    assert found is not None
    sessions, whole = found
    assert list(sessions) == list(real.sessions[5:])
    np.testing.assert_allclose(whole.expected_volume_shares[0], real.volume_shares[:5].mean(axis=0))
    variance = (np.diff(np.log(real.mid[:5]), axis=1) ** 2).sum(axis=1).mean()
    assert whole.daily_volatility[0] == pytest.approx(np.sqrt(variance))
    newest = real_sessions(real, newest=1)
    assert newest is not None
    assert list(newest[0]) == list(real.sessions[7:])
    np.testing.assert_array_equal(newest[1].expected_volume_shares[0], whole.expected_volume_shares[2])
    for values in (real.mid, real.spread, real.volume_shares):
        values[6:] *= 1.5
    again = real_sessions(real)
    assert again is not None
    for name in ("expected_volume_shares", "daily_volatility", "mid"):
        np.testing.assert_array_equal(getattr(again[1], name)[:1], getattr(whole, name)[:1])
    assert real_sessions(RealDays(*(values[:5] for values in real))) is None


def test_a_session_without_quotes_is_left_out_and_the_others_stay(days: IntradayDays) -> None:
    real = first_days(days, 8)
    real.spread[6] = np.nan
    real.spread[2, :100] = np.nan  # quotes later in the day are enough
    with pytest.raises(MarketError, match="session 2014-06-08 has no price or no quote at all"):
        real_sessions(real)
    usable, left_out = quoted_sessions(real)
    assert list(left_out) == [real.sessions[6]]
    assert list(usable.sessions) == [*real.sessions[:6], real.sessions[7]]
    found = real_sessions(usable)
    assert found is not None
    assert list(found[0]) == [real.sessions[5], real.sessions[7]]


@pytest.mark.parametrize("environment", ["execution", "market_making"])
def test_random_transitions_are_whole_episodes_that_a_buffer_can_load(
    days: IntradayDays, environment: str, tmp_path: Path
) -> None:
    imagined = part_of(days, "imagined")
    if environment == "execution":
        episodes = ExecutionEpisodes(execution_market(imagined, MODEL), EXECUTION, imagined.days)
    else:
        episodes = MarketMaking(market_making_market(imagined), MARKET_MAKING, imagined.days)
    info = TransitionInfo(environment, episodes.observation_names, episodes.action_names, {}, 3)
    for name in ("a", "b"):
        rows = random_transitions(episodes, imagined.draw_id, seed=3, rounds=2)
        written = write_transitions(tmp_path / name, rows, info)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    stored = read_transitions(tmp_path / "a")
    assert written == 2 * imagined.days * episodes.steps == len(stored.step)
    by_episode = stored.dones[:, 0].reshape(-1, episodes.steps)
    assert by_episode[:, -1].all()
    assert not by_episode[:, :-1].any()
    # what was seen after a step is what is seen before the next one
    before = stored.observations[:, 0].reshape(-1, episodes.steps, len(episodes.observation_names))
    after = stored.next_observations[:, 0].reshape(before.shape)
    assert np.array_equal(before[:, 1:], after[:, :-1])
    assert set(stored.draw_id.tolist()) == set(imagined.draw_id.tolist())
    assert stored.actions.std() > 0.2
