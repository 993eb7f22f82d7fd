"""The dealer's environment against published tables, exact values and a plain loop of its accounts."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.environments import market_making
from quant_assets.environments.closed_form import avellaneda_stoikov_spread
from quant_assets.environments.episodes import EnvironmentRefusal, Single
from quant_assets.environments.market_making import (
    MarketMaking,
    MarketMakingMarket,
    MarketMakingParameters,
    avellaneda_stoikov,
    cartea_jaimungal_table,
    fixed_spread,
    quote_actions,
    quoted_from_table,
    rollout,
    table_value,
    textbook_market,
)

EPISODES = 20_000
SMALL = textbook_market(paths=6, steps=15, s0=100, sigma=2, horizon=0.075, seed=3)
# The same mids under a variance that differs at every instant.
WANDERING = dataclasses.replace(SMALL, variance=1.0 + np.arange(96.0).reshape(6, 16) % 7)
VARIANTS = {
    "depths": {},
    "sizes": {"max_size": 4},
    "hedge": {"max_hedge_shares": 3, "taker_half_spread": 0.2, "taker_fee_per_share": 0.01},
    "all_poisson": {"max_size": 4, "max_hedge_shares": 3, "fills": "poisson", "fee_per_share": -0.02},
}


@pytest.fixture(scope="module")
def textbook():
    return textbook_market(paths=EPISODES, steps=200, s0=100, sigma=2, horizon=1, seed=1)


def random_actions(environment, rng):
    box = environment.action_space
    return rng.uniform(box.low, box.high, (environment.n, len(environment.action_names)))


def sd_error(values, theirs):
    """Standard error of the difference of two standard deviations, theirs from `theirs` simulations."""
    excess = scipy.stats.kurtosis(values, fisher=False) - 1
    return values.std() * math.sqrt(excess / 4 * (1 / theirs + 1 / len(values)))


# -- published numbers


@pytest.mark.parametrize(
    ("risk_aversion", "strategy", "spread", "profit", "sd", "final", "sd_final"),
    [
        (0.1, "inventory", 1.49, 65.0, 6.6, 0.08, 2.9),
        (0.1, "symmetric", 1.49, 68.4, 12.7, 0.26, 8.4),
        (0.01, "inventory", 1.35, 68.6, 8.7, 0.12, 5.1),
        (0.01, "symmetric", 1.35, 68.8, 12.8, 0.09, 8.7),
    ],
)
def test_avellaneda_stoikov_tables(textbook, risk_aversion, strategy, spread, profit, sd, final, sd_final):
    """Their tables within three standard errors of their 1,000 simulations and our 20,000.

    The convention that reproduces them: the inventory strategy quotes the formula's own spread, which shrinks with the time
    left, around the reservation price; the symmetric one quotes the average of that spread around the mid; profit is
    wealth at the mid; one fill at most per side and step of 0.005, with probability A exp(-k depth) dt.
    """
    environment = MarketMaking(
        textbook, MarketMakingParameters(running_penalty=0, terminal_penalty=0), EPISODES
    )
    policy = (
        avellaneda_stoikov(risk_aversion)
        if strategy == "inventory"
        else fixed_spread(float(avellaneda_stoikov_spread(0.5, 4.0, risk_aversion, 1.5)))
    )
    done = rollout(environment, policy, np.random.default_rng(2), np.arange(EPISODES))
    assert done.mean_spread_dollars.mean() == pytest.approx(spread, abs=0.005)
    for values, mean, deviation, rounding in (
        (done.pnl_dollars, profit, sd, 0.05),
        (done.final_inventory_shares, final, sd_final, 0.05),
    ):
        error = values.std() * math.sqrt(1 / 1000 + 1 / EPISODES)
        assert abs(values.mean() - mean) < 3 * error
        assert abs(values.std() - deviation) < 3 * sd_error(values, 1000) + rounding
    np.testing.assert_allclose(done.reward, done.pnl_dollars, atol=1e-8)


def test_cartea_jaimungal_in_the_environment(textbook):
    """The mean reward is the exact value of the discrete steps, and that is near the published 68.25583."""
    environment = MarketMaking(textbook, MarketMakingParameters(), EPISODES)
    table = cartea_jaimungal_table(environment)
    value = table_value(environment, table)[0, 100]
    assert table.value[0, 100] == pytest.approx(68.25583, abs=5e-6)
    assert value == pytest.approx(68.25583, abs=0.15)
    done = rollout(environment, quoted_from_table(table), np.random.default_rng(3), np.arange(EPISODES))
    assert abs(done.reward.mean() - value) < 3 * done.reward.std() / math.sqrt(EPISODES)
    assert abs(done.reward.mean() - 68.25583) < 3 * done.reward.std() / math.sqrt(EPISODES) + 0.15


@pytest.mark.parametrize("fills", ["at_most_one", "poisson"])
def test_exact_value_with_fees_and_liquidation(fills):
    """A tight limit, fees, a scaled reward, and a variance that wanders: the exact value does not care."""
    rng = np.random.default_rng(0)
    episodes, steps = 40_000, 40
    variance = 4 * np.exp(np.cumsum(rng.normal(0, 0.05, (episodes, steps + 1)), 1))
    mid = np.full((episodes, steps + 1), 50.0)
    mid[:, 1:] += np.cumsum(np.sqrt(variance[:, :-1] * 0.005) * rng.standard_normal((episodes, steps)), 1)
    market = MarketMakingMarket(mid, variance, 0.005, np.zeros(episodes, np.int64))
    terms = MarketMakingParameters(
        fills=fills,
        inventory_limit=3,
        running_penalty=0.3,
        terminal_penalty=0.05,
        fee_per_share=0.04,
        liquidation_half_spread=0.3,
        reward_scale=10,
    )
    environment = MarketMaking(market, terms, episodes)
    table = cartea_jaimungal_table(environment)
    value = table_value(environment, table)[0, 3]
    done = rollout(environment, quoted_from_table(table), rng, np.arange(episodes))
    assert abs(done.reward.mean() / 10 - value) < 3 * done.reward.std() / 10 / math.sqrt(episodes)


def test_better_theory_earns_more_on_the_same_orders(textbook):
    environment = MarketMaking(textbook, MarketMakingParameters(running_penalty=0.05), 4000)
    rows = np.arange(4000)
    best, flat = (
        rollout(environment, policy, np.random.default_rng(4), rows).reward
        for policy in (quoted_from_table(cartea_jaimungal_table(environment)), fixed_spread(2 / 1.5))
    )
    gain = best - flat
    assert gain.mean() > 3 * gain.std() / math.sqrt(len(gain))


# -- accounts


@settings(max_examples=40, deadline=None)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    limit=st.integers(1, 9),
    fee=st.floats(-0.05, 0.05),
    phi=st.floats(0, 1),
    alpha=st.floats(0, 1),
    half_spread=st.floats(0, 1),
    arrival_rate=st.floats(1, 1000),
    scaled=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_accounts_by_a_plain_loop(variant, limit, fee, phi, alpha, half_spread, arrival_rate, scaled, seed):
    terms = MarketMakingParameters(
        **VARIANTS[variant]
        | {
            "inventory_limit": limit,
            "fee_per_share": fee,
            "running_penalty": phi,
            "terminal_penalty": alpha,
            "liquidation_half_spread": half_spread,
            "arrival_rate": arrival_rate,
            "penalty_scales_with_variance": scaled,
            "typical_variance": 5.0,
            "reward_scale": 0.5,
        }
    )
    rng = np.random.default_rng(seed)
    environment = MarketMaking(WANDERING, terms, n=1)
    row = int(rng.integers(6))
    environment.reset(rng, np.array([row]))
    cash, q, wealth = 0.0, 0, 0.0
    for k in range(SMALL.steps):
        action = random_actions(environment, rng)
        step = environment.step(action)
        info = {name: float(values[0]) for name, values in step.info.items()}
        mid = SMALL.mid[row, k]
        assert info["mid_dollars"] == mid
        assert info["bid_depth_dollars"] == pytest.approx(action[0, 0] * 3.0, abs=1e-6)
        hedge, bought, sold = info["hedge_shares"], info["bid_fills_shares"], info["ask_fills_shares"]
        assert hedge == int(hedge)
        assert bought == int(bought)
        assert sold == int(sold)
        fees = abs(hedge) * (terms.taker_half_spread + terms.taker_fee_per_share) + fee * (bought + sold)
        cash -= hedge * mid
        q += hedge
        # What is shown cannot break the limit, and what is filled was shown.
        assert 0 <= bought <= info["bid_size_shares"] <= min(terms.max_size, limit - q)
        assert 0 <= sold <= info["ask_size_shares"] <= min(terms.max_size, limit + q)
        cash -= bought * (mid - info["bid_depth_dollars"])
        cash += sold * (mid + info["ask_depth_dollars"])
        cash -= fees
        q += bought - sold
        assert abs(q) <= limit
        penalty = phi * q * q * SMALL.dt * (WANDERING.variance[row, k] / 5 if scaled else 1)
        before, wealth = wealth, cash + q * SMALL.mid[row, k + 1]
        liquidation = alpha * q * q + half_spread * abs(q) if k == SMALL.steps - 1 else 0.0
        assert info["inventory_shares"] == q
        assert info["fees_dollars"] == pytest.approx(fees, abs=1e-9)
        assert info["cash_dollars"] == pytest.approx(cash, abs=1e-9)
        assert info["wealth_dollars"] == pytest.approx(wealth, abs=1e-9)
        assert info["penalty_dollars"] == pytest.approx(penalty, abs=1e-12)
        assert info["liquidation_cost_dollars"] == pytest.approx(liquidation, abs=1e-9)
        assert step.reward[0] == pytest.approx(0.5 * (wealth - before - penalty - liquidation), abs=1e-8)
        assert step.terminated == (k == SMALL.steps - 1)


def test_a_hedge_stops_at_the_limit_and_a_size_of_nothing_shows_no_quote():
    environment = MarketMaking(
        SMALL, MarketMakingParameters(max_size=2, max_hedge_shares=5, inventory_limit=3, arrival_rate=1e5)
    )
    environment.reset(np.random.default_rng(0))
    info = environment.step(np.array([[0.0, 1.0, 0.0, 0.0, 1.0]])).info
    assert info["hedge_shares"] == 3
    assert info["bid_size_shares"] == info["bid_fills_shares"] == 0
    info = environment.step(np.array([[0.0, 0.0, 1.0, 1.0, 0.0]])).info
    assert info["bid_size_shares"] == 0  # at the limit
    assert info["ask_fills_shares"] == 2  # a certain fill of the whole quote


def test_poisson_counts_are_the_inverse_distribution():
    rng = np.random.default_rng(0)
    uniform, expected = rng.random((2, 2000)), rng.uniform(0, 9, (2, 2000))
    most = rng.integers(0, 8, (2, 2000)).astype(float)
    counts = market_making._poisson(uniform, expected, most)
    np.testing.assert_array_equal(counts, np.minimum(scipy.stats.poisson.ppf(uniform, expected), most))


def test_closer_quotes_fill_whatever_farther_ones_fill():
    for fills in ("at_most_one", "poisson"):
        environment = MarketMaking(
            SMALL, MarketMakingParameters(fills=fills, max_size=5, inventory_limit=1000), 6
        )
        filled = []
        for depth in (0.2, 0.8):
            environment.reset(np.random.default_rng(1), np.arange(6))
            filled.append(
                [
                    environment.step(quote_actions(environment, depth, depth)).info["bid_fills_shares"]
                    for _ in range(15)
                ]
            )
        near, far = np.array(filled)
        assert (near >= far).all()
        assert near.sum() > far.sum() > 0


# -- what the agent sees


def test_observations_mean_what_they_say():
    terms = MarketMakingParameters(recent_fills_halflife_steps=1)
    environment = MarketMaking(SMALL, terms, 6)
    first = environment.reset(np.random.default_rng(0), np.arange(6))
    np.testing.assert_array_equal(first, np.tile(np.float32([0, 0, 0, 1, 0, 0, 0]), (6, 1)))
    steps = [environment.step(quote_actions(environment, 0.0, 0.3)) for _ in range(3)]
    seen, info = steps[-1].observation, steps[-1].info
    np.testing.assert_allclose(
        seen[:, 0], (SMALL.mid[:6, 3] - SMALL.mid[:6, 2]) / (2 * math.sqrt(0.005)), rtol=1e-5
    )
    rate = 2 * 140 / math.e
    np.testing.assert_allclose(seen[:, 1], info["inventory_shares"] / math.sqrt(rate * 0.075), rtol=1e-5)
    np.testing.assert_allclose(seen[:, 2], info["wealth_dollars"] / (rate * 0.075 / 1.5), rtol=1e-5)
    np.testing.assert_allclose(seen[:, 3], 12 / 15, rtol=1e-6)
    assert (seen[:, 4] == 0).all()
    weighted = sum(
        0.5 ** (2 - k) * (step.info["bid_fills_shares"] - step.info["ask_fills_shares"])
        for k, step in enumerate(steps)
    )
    np.testing.assert_allclose(seen[:, 5], weighted / math.sqrt(rate * 0.005 / 0.75), rtol=1e-5)
    weighted = sum(
        0.5 ** (2 - k) * (step.info["bid_fills_shares"] + step.info["ask_fills_shares"])
        for k, step in enumerate(steps)
    )
    np.testing.assert_allclose(seen[:, 6], weighted / (rate * 0.005 / 0.5), rtol=1e-5)


def test_a_variance_that_touches_zero_is_seen_bounded():
    returns_variance = np.tile([0.04, 0.0, 0.08, 0.0], (2, 1))
    mid = np.tile([50.0, 50.5, 50.4, 50.6], (2, 1))
    market = MarketMakingMarket.from_returns_variance(mid, returns_variance, 0.01, np.zeros(2, np.int64))
    assert market.variance[0, 2] == pytest.approx(0.08 * 50.4**2)
    environment = MarketMaking(market, MarketMakingParameters(), 2)
    environment.reset(np.random.default_rng(0))
    for expected in (-10, math.log(2 * (50.4 / 50) ** 2), -10):
        seen = environment.step(np.full((2, 2), 0.5)).observation
        assert abs(seen).max() <= 10
        np.testing.assert_allclose(seen[:, 4], expected, rtol=1e-5)


def test_observations_are_about_of_unit_scale(textbook):
    environment = MarketMaking(textbook, MarketMakingParameters(), 2000)
    observation = environment.reset(np.random.default_rng(0))
    seen = []
    policy = fixed_spread(2 / 1.5)
    for _ in range(200):
        observation = environment.step(policy(environment, observation)).observation
        seen.append(observation)
    scale = np.sqrt((np.array(seen) ** 2).mean((0, 1)))
    others = [i for i, name in enumerate(environment.observation_names) if name != "variance_log_ratio"]
    assert (scale[others] > 0.4).all()
    assert (scale[others] < 1.5).all()


@settings(max_examples=20, deadline=None)
@given(variant=st.sampled_from(sorted(VARIANTS)), instant=st.integers(0, 14), seed=st.integers(0, 2**32 - 1))
def test_no_look_ahead(variant, instant, seed):
    """Another market after an instant changes nothing that is seen or paid up to it."""
    mid, variance = SMALL.mid.copy(), SMALL.variance.copy()
    mid[:, instant + 1 :] += 7
    variance[:, instant + 1 :] *= 3
    other = MarketMakingMarket(mid, variance, SMALL.dt, SMALL.draw_id)
    seen = []
    for market in (SMALL, other):
        environment = MarketMaking(market, MarketMakingParameters(**VARIANTS[variant]), 4)
        rng = np.random.default_rng(seed)
        observations, fills, rewards = [environment.reset(rng)], [], []
        for k in range(instant + 1):
            step = environment.step(random_actions(environment, rng))
            fills.append([step.info["bid_fills_shares"], step.info["ask_fills_shares"]])
            if k < instant:
                observations.append(step.observation)
                rewards.append(step.reward)
        seen.append((observations, fills, rewards))
    # Fills of the step that begins at the instant included: they do not know where the mid goes.
    for one, two in zip(*seen, strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(two))


# -- as an environment


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_gymnasium_accepts_it(variant):
    environment = MarketMaking(SMALL, MarketMakingParameters(**VARIANTS[variant]))
    check_env(Single(environment), skip_render_check=True)
    assert len(environment.action_names) == {"depths": 2, "sizes": 4, "hedge": 3, "all_poisson": 5}[variant]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_at_once_is_one_after_the_other(variant):
    terms = MarketMakingParameters(**VARIANTS[variant])
    together, alone = MarketMaking(SMALL, terms, 5), MarketMaking(SMALL, terms, 1)
    rows = np.array([3, 0, 5, 3, 1])
    actions = [random_actions(together, np.random.default_rng(k)) for k in range(SMALL.steps)]
    together.reset(np.random.default_rng(9), rows)
    steps = [together.step(action) for action in actions]
    rng = np.random.default_rng(9)  # goes on from one episode to the next
    for i, row in enumerate(rows):
        alone.reset(rng, np.array([row]))
        for step, action in zip(steps, actions, strict=True):
            single = alone.step(action[i : i + 1])
            np.testing.assert_array_equal(single.observation[0], step.observation[i])
            assert single.reward[0] == step.reward[i]


def test_same_seed_same_bits():
    environment = MarketMaking(SMALL, MarketMakingParameters(), 6)
    policy = avellaneda_stoikov(0.1)
    one, two, other = (
        rollout(environment, policy, np.random.default_rng(seed), keep_inventory=True) for seed in (1, 1, 2)
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one.reward != other.reward).any()
    assert one.inventory_shares.shape == (6, 16)
    np.testing.assert_array_equal(one.inventory_shares[:, -1], one.final_inventory_shares)


def test_earlier_answers_are_not_written_over():
    environment = MarketMaking(SMALL, MarketMakingParameters(arrival_rate=2000), 6)
    environment.reset(np.random.default_rng(0))
    first = environment.step(quote_actions(environment, 0.0, 3.0))
    kept = {name: values.copy() for name, values in first.info.items()}
    environment.step(quote_actions(environment, 0.0, 3.0))
    environment.reset(np.random.default_rng(0))
    for name, values in kept.items():
        np.testing.assert_array_equal(first.info[name], values)


# -- refusals


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (1.5, "1.5"), (-0.1, "-0.1")])
def test_actions_outside_the_box_are_refused(value, shown):
    environment = MarketMaking(SMALL, MarketMakingParameters(), 2)
    environment.reset(np.random.default_rng(0))
    with pytest.raises(EnvironmentRefusal, match=rf"ask_depth = {shown} of episode 1 .*\[0, 1\]"):
        environment.step(np.array([[0.5, 0.5], [0.5, value]]))


def test_markets_that_are_refused():
    fields = {f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)}
    mid, variance = SMALL.mid.copy(), SMALL.variance.copy()
    mid[2, 5], variance[1, 3] = np.nan, -1
    for change, message in (
        ({"mid": mid}, "mid = nan on path 2 at instant 5"),
        ({"variance": variance}, "variance = -1.0 on path 1 at instant 3.*at least 0"),
        ({"variance": variance[:, 1:]}, r"variance has shape \(6, 15\)"),
        ({"draw_id": np.zeros(2)}, r"draw_id \(2,\)"),
        ({"dt": 0.0}, "dt = 0.0"),
        ({"mid": np.ones(5)}, r"mid has shape \(5,\)"),
    ):
        with pytest.raises(EnvironmentRefusal, match=message):
            MarketMakingMarket(**fields | change)
    with pytest.raises(EnvironmentRefusal, match="0 paths"):
        textbook_market(0, 5, 100, 2, 1, 0)
    still = MarketMakingMarket(**fields | {"variance": np.zeros_like(SMALL.mid)})
    with pytest.raises(EnvironmentRefusal, match="set typical_variance"):
        MarketMaking(still, MarketMakingParameters())
    MarketMaking(still, MarketMakingParameters(typical_variance=1.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arrival_rate", 0),
        ("depth_decay", -1.5),
        ("max_depth", math.inf),
        ("max_size", 0),
        ("max_size", 1.5),
        ("max_hedge_shares", -1),
        ("inventory_limit", 0),
        ("running_penalty", -0.01),
        ("terminal_penalty", math.nan),
        ("liquidation_half_spread", -1),
        ("fee_per_share", math.nan),
        ("reward_scale", 0),
        ("typical_variance", 0),
        ("inventory_scale_shares", -2),
        ("recent_fills_halflife_steps", 0),
        ("fills", "always"),
    ],
)
def test_parameters_that_are_refused(name, value):
    with pytest.raises(EnvironmentRefusal, match=f"{name} = {value!r}"):
        MarketMakingParameters(**{name: value})


def test_what_does_not_fit_together_is_refused(textbook):
    with pytest.raises(EnvironmentRefusal, match="take shorter steps"):
        MarketMaking(SMALL, MarketMakingParameters(fills="poisson", arrival_rate=1e6))
    small = MarketMaking(SMALL, MarketMakingParameters(inventory_limit=5))
    table = cartea_jaimungal_table(small)
    with pytest.raises(EnvironmentRefusal, match=r"15 steps and a limit of 5 shares does not fit.*200 steps"):
        rollout(
            MarketMaking(textbook, MarketMakingParameters()),
            quoted_from_table(table),
            np.random.default_rng(0),
        )
    with pytest.raises(EnvironmentRefusal, match="max_size = 2"):
        table_value(MarketMaking(SMALL, MarketMakingParameters(max_size=2)), table)
