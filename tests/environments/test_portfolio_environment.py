"""The portfolio environment: what is traded when, what it costs, what may be held, and what nobody may know."""

import dataclasses
import datetime as dt
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from quant_assets.environments.episodes import EnvironmentRefusal, Single
from quant_assets.environments.portfolio import (
    PortfolioEpisodes,
    PortfolioMarket,
    PortfolioParameters,
    buy_and_hold,
    cost_rates,
    decision_rows,
    equal_weight,
    minimum_variance,
    minimum_variance_weights,
    observation_at,
    rollout_weights,
    shuffled,
    target_weights,
    with_tomorrow,
)

SMALL = PortfolioParameters(look_back=3, episode_steps=8)


def make_market(
    periods: int = 60, assets: int = 3, seed: int = 1, volatility: float = 0.02
) -> PortfolioMarket:
    """A random walk whose opens and closes are known: every array follows from them. Asset 0 is listed in row 10."""
    rng = np.random.default_rng(seed)
    # Of unequal risk: between equals, Ledoit and Wolf shrink a covariance all the way, and it would not matter which rows it reads.
    risk = volatility * np.linspace(0.5, 1.5, assets) / np.sqrt(2)
    night, day = risk * rng.normal(size=(2, periods, assets))
    close = 100 * np.exp((night + day).cumsum(0))
    opens = close / np.exp(day)
    return from_prices(opens, close)


def from_prices(opens: np.ndarray, close: np.ndarray) -> PortfolioMarket:
    periods, assets = close.shape
    log_return = np.vstack([np.full(assets, np.nan), np.diff(np.log(close), axis=0)])
    next_return = np.full(close.shape, np.nan)
    next_return[:-2] = opens[2:] / opens[1:-1] - 1
    tradable = np.ones(close.shape, bool)
    tradable[:10, 0] = False
    features = np.stack([np.nan_to_num(log_return) * 50, np.cos(close)], axis=1)
    volatility = 0.01 + np.abs(np.nan_to_num(log_return))
    return PortfolioMarket(
        sessions=np.datetime64("2020-01-01") + np.arange(periods),
        symbols=tuple("ABCDEFGHIJ"[:assets]),
        features=features,
        feature_names=("move", "wave"),
        next_return=next_return,
        open_to_close=close / opens - 1,
        log_return=log_return,
        tradable=tradable,
        volatility=volatility,
    )


@pytest.fixture(scope="module")
def market() -> PortfolioMarket:
    return make_market()


def run(env: PortfolioEpisodes, actions: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Everything that an environment answers to actions of shape (steps, n, dimensions)."""
    seen = [env.reset(np.random.default_rng(0), rows)]
    out: dict[str, list[np.ndarray]] = {}
    for action in actions:
        step = env.step(action)
        seen.append(step.observation)
        for name, value in {**step.info, "reward": step.reward}.items():
            out.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in {**out, "observation": seen}.items()}


# -- the interface -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["long_only", "gross"])
def test_gymnasium_accepts_the_environment(market: PortfolioMarket, mode: Any) -> None:
    env = PortfolioEpisodes(1, market, dataclasses.replace(SMALL, mode=mode))
    check_env(Single(env), skip_render_check=True)


def test_the_end_of_a_stretch_is_not_the_end_of_the_market(market: PortfolioMarket) -> None:
    env = Single(PortfolioEpisodes(1, market, SMALL))
    env.reset(seed=1)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(8)]
    assert ends == [(False, False)] * 7 + [(False, True)]


def test_an_observation_is_the_look_back_oldest_first_and_what_is_held(market: PortfolioMarket) -> None:
    env = PortfolioEpisodes(2, market, SMALL)
    seen = env.reset(np.random.default_rng(0), np.array([0, 7]))
    assert env.window_shape == (3, 2, 3)
    for observation, row in zip(seen, (2, 9), strict=True):
        window = observation[:18].reshape(env.window_shape)
        assert np.array_equal(window, market.features[row - 2 : row + 1].astype(np.float32))
        assert not observation[18:].any()
    assert env.observation_names[0] == "move_A_lag_2"
    assert env.observation_names[17:19] == ("wave_C_lag_0", "held_A")
    assert len(env.observation_names) == env.observation_space.shape[0] == 21
    assert env.action_names == ("score_A", "score_B", "score_C", "score_cash")


@pytest.mark.parametrize("mode", ["long_only", "gross"])
def test_n_at_once_are_n_singles(market: PortfolioMarket, mode: Any) -> None:
    parameters = dataclasses.replace(SMALL, mode=mode, cost_volatility_factor=0.1, cash_rate=1e-4)
    env = PortfolioEpisodes(17, market, parameters)
    rng = np.random.default_rng(3)
    rows = rng.integers(env.paths, size=17)
    actions = rng.uniform(-1, 1, (8, 17, len(env.action_names)))
    together = run(env, actions, rows)
    for i in range(17):
        alone = run(PortfolioEpisodes(1, market, parameters), actions[:, i : i + 1], rows[i : i + 1])
        for name, values in together.items():
            assert np.array_equal(values[:, i], alone[name][:, 0]), name


def test_every_start_within_the_window_is_an_episode(market: PortfolioMarket) -> None:
    window = market.between(dt.date(2020, 1, 21), dt.date(2020, 2, 9))
    env = PortfolioEpisodes(1, window, SMALL)
    # 20 sessions hold 18 decisions, and 8 in a row start at 11 of them.
    assert len(env.decisions) == 18
    assert env.paths == 11
    assert len(PortfolioEpisodes(1, window, dataclasses.replace(SMALL, episode_steps=None)).decisions) == 18
    with pytest.raises(EnvironmentRefusal, match="episodes of 19 decisions do not fit into the 18 decisions"):
        PortfolioEpisodes(1, window, dataclasses.replace(SMALL, episode_steps=19))


def test_minutes_are_periods_as_well() -> None:
    daily = make_market(periods=780)
    minutes = np.concatenate(
        [np.datetime64(day) + np.arange(571, 961) for day in ("2014-06-02T00:00", "2014-06-03T00:00")]
    )
    market = dataclasses.replace(daily, sessions=minutes, periods_per_year=252 * 390)
    second = market.between(dt.date(2014, 6, 3), dt.date(2014, 6, 3))
    assert second.first_decision == 390
    assert len(second) == 780
    part = market.between(np.datetime64("2014-06-02T10:00"), np.datetime64("2014-06-02T11:00"))
    assert len(PortfolioEpisodes(4, part, SMALL).decisions) == 59


# -- accounting --------------------------------------------------------------------------------------------------------


def test_decided_at_the_close_traded_at_the_next_open_earned_until_the_open_after() -> None:
    """Two assets, all by hand. Opens and closes of four sessions; the decision is that of session 1."""
    opens = np.array([[10.0, 20.0], [11.0, 21.0], [12.0, 20.0], [15.0, 19.0], [12.0, 19.0]])
    close = np.array([[10.5, 20.0], [11.5, 20.5], [13.0, 18.0], [14.0, 20.0], [12.0, 19.0]])
    market = dataclasses.replace(from_prices(opens, close), tradable=np.ones((5, 2), bool))
    parameters = PortfolioParameters(look_back=2, episode_steps=2, mode="gross", cost_bps=10)
    env = PortfolioEpisodes(1, market, parameters)
    env.reset(np.random.default_rng(0), np.array([0]))
    step = env.step(np.array([[0.5, 0.25]]))
    # Bought at 12 and 20, worth 15 and 19 an open later: 25 % and -5 %.
    growth = (1 - 0.75 * 0.001) * (1 + 0.5 * 0.25 - 0.25 * 0.05)
    assert step.reward[0] == pytest.approx(100 * np.log(growth), rel=1e-12)
    assert step.info["turnover"][0] == 0.75
    assert step.info["cost"][0] == pytest.approx(0.00075)
    # Seen at the close of session 2 at 13 and 18, not at the open after it.
    wealth = 0.5 * 13 / 12 + 0.25 * 18 / 20 + 0.25
    assert step.observation[0, -2:] == pytest.approx([0.5 * 13 / 12 / wealth, 0.25 * 0.9 / wealth], rel=1e-6)
    # Sold at the open of session 3, where 0.5 and 0.25 have become other shares.
    step = env.step(np.array([[0.0, 0.0]]))
    total = 0.5 * 1.25 + 0.25 * 0.95 + 0.25
    assert step.info["turnover"][0] == pytest.approx((0.5 * 1.25 + 0.25 * 0.95) / total, rel=1e-12)
    assert step.reward[0] == pytest.approx(100 * np.log(1 - 0.001 * step.info["turnover"][0]), rel=1e-12)
    assert (step.terminated, step.truncated) == (False, True), "the market goes on"


def reference(
    market: PortfolioMarket, parameters: PortfolioParameters, weights: np.ndarray
) -> tuple[list[float], list[float]]:
    """Dollars in accounts, one asset at a time: wealth after each period, cost in dollars."""
    wealth, dollars, cash = [1.0], [0.0] * len(market.symbols), 1.0
    costs = []
    for t in decision_rows(market, parameters):
        before = cash + sum(dollars)
        cost = sum(
            abs(weights[t, a] * before - dollars[a])
            * (parameters.cost_bps / 10_000 + parameters.cost_volatility_factor * market.volatility[t, a])
            for a in range(len(dollars))
        )
        left = before - cost
        dollars = [weights[t, a] * left for a in range(len(dollars))]
        cash = (left - sum(dollars)) * (1 + parameters.cash_rate)
        dollars = [held * (1 + market.next_return[t, a]) for a, held in enumerate(dollars)]
        wealth.append(cash + sum(dollars))
        costs.append(cost / before)
    return wealth, costs


@pytest.mark.parametrize("mode", ["long_only", "gross"])
def test_accounting_agrees_with_dollars_in_accounts(market: PortfolioMarket, mode: Any) -> None:
    parameters = PortfolioParameters(
        look_back=3, mode=mode, gross_limit=1.5, cost_bps=7, cost_volatility_factor=0.2, cash_rate=2e-4
    )
    actions = np.random.default_rng(5).uniform(-1, 1, (len(market), 4 if mode == "long_only" else 3))
    weights = target_weights(actions, market.tradable, parameters)
    rollout = rollout_weights(market, parameters, weights)
    wealth, costs = reference(market, parameters, weights)
    np.testing.assert_allclose(rollout.equity, wealth, rtol=1e-12)
    np.testing.assert_allclose(rollout.cost, costs, rtol=1e-12)


def test_constant_actions_earn_what_their_weights_earn(market: PortfolioMarket) -> None:
    parameters = PortfolioParameters(look_back=3, episode_steps=None, cost_volatility_factor=0.1)
    env = PortfolioEpisodes(1, market, parameters)
    action = np.array([0.4, -0.2, 0.1, 0.0])
    done = run(env, np.tile(action, (env.steps, 1, 1)), np.array([0]))
    weights = target_weights(np.tile(action, (len(market), 1)), market.tradable, parameters)
    rollout = rollout_weights(market, parameters, weights)
    assert np.array_equal(done["wealth"][:, 0], rollout.equity[1:])
    assert np.array_equal(done["turnover"][:, 0], rollout.turnover)
    assert np.array_equal(done["weights"][:, 0], rollout.weights)
    assert done["reward"].sum() == pytest.approx(100 * np.log(rollout.equity[-1]), rel=1e-12)
    assert np.array_equal(rollout.sessions, market.sessions[2:-2])


def test_costs_are_fixed_or_grow_with_the_volatility_of_the_asset(market: PortfolioMarket) -> None:
    parameters = PortfolioParameters(look_back=3, cost_bps=3, cost_volatility_factor=0.5)
    assert np.array_equal(cost_rates(market, parameters), 3e-4 + 0.5 * market.volatility)
    weights = np.zeros(market.next_return.shape)
    weights[12] = (0.2, 0.3, 0.4)
    rollout = rollout_weights(market, parameters, weights)
    bought = rollout.cost[10]
    assert bought == pytest.approx(0.9 * 3e-4 + 0.5 * market.volatility[12] @ [0.2, 0.3, 0.4], rel=1e-12)
    assert not rollout.cost[:10].any()
    assert not rollout.cost[12:].any()
    free = rollout_weights(
        market, dataclasses.replace(parameters, cost_bps=0, cost_volatility_factor=0), weights
    )
    assert not free.cost.any()
    assert free.equity[-1] == pytest.approx(1 + market.next_return[12] @ [0.2, 0.3, 0.4], rel=1e-12)


def test_risk_costs_reward_and_no_money(market: PortfolioMarket) -> None:
    actions = np.ones((8, 1, 4))
    plain = run(PortfolioEpisodes(1, market, SMALL), actions, np.array([20]))
    averse = dataclasses.replace(SMALL, risk_aversion=3.0, reward_scale=1.0)
    afraid = run(PortfolioEpisodes(1, market, averse), actions, np.array([20]))
    assert np.array_equal(plain["wealth"], afraid["wealth"])
    expected = plain["reward"] / 100 - 1.5 * (plain["growth"] - 1) ** 2
    np.testing.assert_allclose(afraid["reward"], expected, rtol=1e-12)


def test_a_short_that_costs_everything_is_closed_and_the_episode_goes_on() -> None:
    opens = np.tile([[10.0, 10.0]], (8, 1))
    opens[4:, 0] = 100.0
    market = dataclasses.replace(from_prices(opens, opens), tradable=np.ones((8, 2), bool))
    parameters = PortfolioParameters(look_back=1, episode_steps=None, mode="gross", cost_bps=0)
    env = PortfolioEpisodes(1, market, parameters)
    done = run(env, np.tile([-1.0, 0.0], (env.steps, 1, 1)), np.array([0]))
    assert done["growth"][:, 0].tolist() == [1, 1, 0.01, 1, 1, 1]
    assert done["turnover"][3, 0] == 1  # from nothing, not from minus ninety
    assert np.isfinite(done["observation"]).all()


# -- limits ------------------------------------------------------------------------------------------------------------

actions = st.lists(st.floats(-1, 1), min_size=5, max_size=5)
masks = st.lists(st.booleans(), min_size=4, max_size=4)


@settings(deadline=None, max_examples=150)
@given(action=actions, mask=masks, scale=st.floats(0.1, 1000))
def test_long_only_weights_and_cash_are_a_simplex(
    action: list[float], mask: list[bool], scale: float
) -> None:
    tradable = np.array([mask])
    weights = target_weights(np.array([action]), tradable, PortfolioParameters(logit_scale=scale))
    assert (weights >= 0).all()
    assert weights.sum() <= 1 + 1e-12
    assert not weights[~tradable].any()
    if not any(mask):
        assert weights.sum() == 0
    cash = 1 - weights.sum()
    if scale < 20:
        odds = np.exp(scale * np.array(action)) * [*mask, True]
        assert [*weights[0], cash] == pytest.approx(odds / odds.sum(), abs=1e-12)


@settings(deadline=None, max_examples=150)
@given(action=actions, mask=masks, limit=st.floats(0.05, 5))
def test_gross_weights_keep_their_limit_and_their_proportions(
    action: list[float], mask: list[bool], limit: float
) -> None:
    tradable, asked = np.array([mask]), np.array([action[:4]])
    weights = target_weights(asked, tradable, PortfolioParameters(mode="gross", gross_limit=limit))
    assert np.abs(weights).sum() <= limit + 1e-12
    assert (np.abs(weights) <= np.abs(asked) + 1e-12).all()
    assert not weights[~tradable].any()
    wanted = np.where(tradable, asked, 0)
    if np.abs(wanted).sum() <= limit:
        assert np.array_equal(weights, wanted)
    else:
        assert np.abs(weights).sum() == pytest.approx(limit)
    np.testing.assert_allclose(weights * np.abs(wanted).sum(), wanted * np.abs(weights).sum(), atol=1e-12)


# -- time --------------------------------------------------------------------------------------------------------------


def test_what_comes_later_changes_nothing_before() -> None:
    """Prices after the close of row 30 are replaced: all that was seen, held, turned over and paid until then stays."""
    rng = np.random.default_rng(2)
    close = 100 * np.exp((rng.normal(size=(60, 3)) * (0.01, 0.02, 0.03)).cumsum(0))
    opens = close * np.exp(rng.normal(0, 0.01, (60, 3)))
    other_open, other_close = opens.copy(), close.copy()
    other_open[31:] *= rng.uniform(0.5, 2, (29, 3))
    other_close[31:] *= rng.uniform(0.5, 2, (29, 3))
    parameters = PortfolioParameters(look_back=3, episode_steps=None, cost_volatility_factor=0.1)
    moves = rng.uniform(-1, 1, (56, 1, 4))
    one, other = (
        run(PortfolioEpisodes(1, from_prices(*prices), parameters), moves, np.array([0]))
        for prices in ((opens, close), (other_open, other_close))
    )
    # Decision k is that of row k + 2: it trades at the open of row k + 3, earns until that of row k + 4, and 28 is of row 30.
    seen = 29
    assert np.array_equal(one["observation"][:seen], other["observation"][:seen])
    assert not np.array_equal(one["observation"][seen], other["observation"][seen])
    for name, until in {"weights": 28, "growth": 27, "turnover": 28, "cost": 28}.items():
        assert np.array_equal(one[name][:until], other[name][:until]), name
    assert not np.array_equal(one["growth"][27], other["growth"][27])
    for rule in (equal_weight, lambda m: minimum_variance(m, parameters, 20, 1)):
        before, after = rule(from_prices(opens, close)), rule(from_prices(other_open, other_close))
        assert np.array_equal(before[:31], after[:31], equal_nan=True)
    assert not np.array_equal(before[31], after[31])
    assert np.ptp(before[30]) > 0.2


def test_a_window_sees_what_was_before_it_and_nothing_after(market: PortfolioMarket) -> None:
    window = market.between(dt.date(2020, 1, 16), dt.date(2020, 2, 4))
    assert window.sessions[-1] == np.datetime64("2020-02-04")
    rows = decision_rows(window, SMALL)
    assert window.sessions[rows[0]] == np.datetime64("2020-01-16")
    # The last decision earns until the open of the last session.
    assert window.sessions[rows[-1]] == np.datetime64("2020-02-02")
    assert np.isnan(window.next_return[-2:]).all()
    assert not np.isnan(market.next_return[:-2]).any()
    first = PortfolioEpisodes(1, window, SMALL).reset(np.random.default_rng(0), np.array([0]))
    assert np.array_equal(first[0], observation_at(market, SMALL, 15, np.zeros(3)))
    with pytest.raises(EnvironmentRefusal, match="holds 2 periods; a decision and its return need 3"):
        market.between(dt.date(2020, 1, 16), dt.date(2020, 1, 17))


def test_a_live_observation_is_that_of_the_environment(market: PortfolioMarket) -> None:
    env = PortfolioEpisodes(1, market, SMALL)
    done = run(env, np.ones((8, 1, 4)), np.array([15]))
    for k in range(1, 9):
        seen = done["observation"][k, 0]
        held = np.exp(np.log1p(market.open_to_close[17 + k])) * done["weights"][k - 1, 0]
        held /= held.sum() + 1 - done["weights"][k - 1, 0].sum()
        live = observation_at(market, SMALL, 17 + k, held)
        assert live.dtype == np.float32
        np.testing.assert_allclose(live, seen, rtol=1e-6)
        assert np.array_equal(live[:18], seen[:18])
    newest = observation_at(market, SMALL, len(market) - 1, np.zeros(3))
    assert np.array_equal(newest[:18], market.features[-3:].astype(np.float32).reshape(-1))
    for row in (1, len(market)):
        with pytest.raises(
            EnvironmentRefusal, match="has no whole look-back of 3 periods: rows 2 to 59 have"
        ):
            observation_at(market, SMALL, row, np.zeros(3))
    with pytest.raises(EnvironmentRefusal, match="must be 3 finite weights: A, B, C"):
        observation_at(market, SMALL, 30, np.zeros(4))


# -- the plain rules ---------------------------------------------------------------------------------------------------


def test_equal_weight_shares_among_what_is_tradable(market: PortfolioMarket) -> None:
    weights = equal_weight(market)
    assert weights[9].tolist() == [0, 0.5, 0.5]
    assert weights[10].tolist() == [1 / 3] * 3


def test_buy_and_hold_pays_once_and_compounds_each_asset(market: PortfolioMarket) -> None:
    parameters = PortfolioParameters(look_back=3, cost_bps=20)
    rollout = rollout_weights(market, parameters, buy_and_hold(market, parameters))
    grown = np.cumprod(1 + market.next_return[2:-2, 1:], axis=0).mean(-1)
    np.testing.assert_allclose(rollout.equity[1:], (1 - 0.002) * grown, rtol=1e-12)
    assert rollout.turnover[0] == 1
    np.testing.assert_allclose(rollout.turnover[1:], 0, atol=1e-12)


def test_what_can_no_longer_be_traded_is_sold(market: PortfolioMarket) -> None:
    tradable = market.tradable.copy()
    tradable[20:, 1] = False
    ended = dataclasses.replace(market, tradable=tradable)
    parameters = PortfolioParameters(look_back=3)
    rollout = rollout_weights(ended, parameters, buy_and_hold(ended, parameters))
    assert (rollout.weights[:18, 1] > 0).all()
    assert not rollout.weights[18:, 1].any()
    assert rollout.turnover[18] > 0.3


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), assets=st.integers(1, 8))
def test_minimum_variance_agrees_with_another_solver(seed: int, assets: int) -> None:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(assets, assets + 2)) * rng.uniform(0.3, 3, (assets, 1)) + 0.7
    covariance = 1e-8 * mix @ mix.T
    weights = minimum_variance_weights(covariance)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    scaled = covariance / np.trace(covariance)
    slsqp = minimize(
        lambda w: w @ scaled @ w,
        np.full(assets, 1 / assets),
        jac=lambda w: 2 * scaled @ w,
        bounds=[(0, 1)] * assets,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(assets)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert weights @ scaled @ weights <= slsqp.fun + 1e-10
    np.testing.assert_allclose(weights, slsqp.x, atol=2e-3)
    # Kuhn and Tucker: no asset's marginal variance lies below the portfolio's, those that are held have just that.
    marginal = scaled @ weights
    assert (marginal >= weights @ marginal - 1e-10).all()
    np.testing.assert_allclose(marginal[weights > 1e-9], weights @ marginal, rtol=1e-6)


def test_minimum_variance_reads_the_window_until_the_close_of_the_decision() -> None:
    from sklearn.covariance import LedoitWolf

    market = make_market(periods=120)
    parameters = PortfolioParameters(look_back=3)
    weights = minimum_variance(market, parameters, window=30, every=7)
    assert not weights[2].any()  # two returns are no covariance
    assert np.isnan(weights[3:9]).all()
    t = 2 + 7 * 10
    covariance = LedoitWolf().fit(market.log_return[t - 29 : t + 1]).covariance_
    np.testing.assert_allclose(weights[t], minimum_variance_weights(covariance), atol=1e-12)
    assert np.ptp(weights[t]) > 0.2
    assert (rollout_weights(market, parameters, weights).turnover > 1e-9).sum() <= 17


# -- controls ----------------------------------------------------------------------------------------------------------


def test_whoever_sees_tomorrow_earns_absurdly() -> None:
    market = with_tomorrow(make_market(periods=270))
    env = PortfolioEpisodes(1, market, PortfolioParameters(look_back=1, episode_steps=None))
    seen = env.reset(np.random.default_rng(0), np.array([0]))
    wealth = 1.0
    for t in env.decisions:
        tomorrow = seen[0, :9].reshape(env.window_shape)[0, 2]
        assert tomorrow == pytest.approx(100 * market.next_return[t], rel=1e-5)
        action = -np.ones((1, 4))
        best = int(np.argmax(np.where(market.tradable[t], tomorrow, -np.inf)))
        action[0, best if tomorrow[best] > 0 else 3] = 1
        step = env.step(action)
        seen, wealth = step.observation, step.info["wealth"][0]
    assert wealth > 10
    honest = rollout_weights(market, env.parameters, equal_weight(market)).equity[-1]
    assert 0.5 < honest < 2


def test_a_shuffled_market_keeps_the_sessions_and_forgets_their_order() -> None:
    # Strong memory: tomorrow's move is nearly today's.
    rng = np.random.default_rng(4)
    trend = np.zeros((1500, 3))
    for t in range(1, 1500):
        trend[t] = 0.95 * trend[t - 1] + rng.normal(0, 0.01, 3) + rng.normal(0, 0.01)
    close = 100 * np.exp(trend.cumsum(0))
    market = from_prices(close / np.exp(0.5 * trend), close)
    mixed = shuffled(market, seed=1)

    def memory(m: PortfolioMarket) -> float:
        return float(np.corrcoef(m.features[20:-2, 0, 1], m.next_return[20:-2, 1])[0, 1])

    assert memory(market) > 0.8
    assert abs(memory(mixed)) < 0.08
    # The same sessions, with all assets of one together.
    rows = {tuple(row) for row in np.round(market.log_return[1:], 14)}
    assert {tuple(row) for row in np.round(mixed.log_return, 14) if np.isfinite(row).all()} == rows
    assert np.array_equal(market.tradable, mixed.tradable)
    at = int(np.argmax((market.log_return == mixed.log_return[700]).all(-1)))
    assert np.array_equal(mixed.features[700], market.features[at])
    for m in (market, mixed):  # the same law of composition
        day, night = np.log1p(m.open_to_close), m.log_return - np.log1p(m.open_to_close)
        np.testing.assert_allclose(m.next_return[20:-2], np.expm1(day[21:-1] + night[22:]), atol=1e-12)
    assert np.array_equal(shuffled(market, 1).next_return, mixed.next_return, equal_nan=True)
    assert not np.array_equal(shuffled(market, 2).next_return, mixed.next_return, equal_nan=True)


# -- errors ------------------------------------------------------------------------------------------------------------


def changed(market: PortfolioMarket, name: str, at: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    values = getattr(market, name).copy()
    values[at] = value
    return {name: values}


def test_impossible_markets_are_refused_with_the_place(market: PortfolioMarket) -> None:
    cases = {
        r"feature wave of B at 2020-01-06 is nan \(1 such": changed(market, "features", (5, 1, 1), np.nan),
        "next_return of C at 2020-01-08 is nan": changed(market, "next_return", (7, 2), np.nan),
        "next_return of C at 2020-01-08 is -1.0": changed(market, "next_return", (7, 2), -1.0),
        "next_return of the last 2 rows must be NaN": changed(market, "next_return", (58, 0), 0.1),
        "volatility of A at 2020-01-01 is -0.1": changed(market, "volatility", (0, 0), -0.1),
        "open_to_close of A at 2020-01-02 is inf": changed(market, "open_to_close", (1, 0), np.inf),
        "log_return of A at 2020-01-02 is -inf": changed(market, "log_return", (1, 0), -np.inf),
        "session 2020-01-01 does not come after 2020-01-03": {
            "sessions": np.r_[market.sessions[:3], market.sessions[:57]]
        },
        "sessions are int64, not datetime64": {"sessions": np.arange(60)},
        "a symbol occurs twice": {"symbols": ("A", "A", "C")},
        r"volatility has shape \(60, 2\), it must be \(60, 3\)": {"volatility": market.volatility[:, :2]},
        r"features has shape \(60, 2, 3\), it must be \(60, 1, 3\)": {"feature_names": ("move",)},
        "tradable is float64, not bool": {"tradable": market.tradable * 1.0},
        "first_decision = 60 is no row": {"first_decision": 60},
        "periods_per_year = 0": {"periods_per_year": 0},
    }
    for message, changes in cases.items():
        with pytest.raises(EnvironmentRefusal, match=message):
            dataclasses.replace(market, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"look_back": 0}, "look_back = 0"),
        ({"episode_steps": 0}, "episode_steps = 0"),
        ({"mode": "short"}, "mode = 'short'"),
        ({"gross_limit": 0.0}, "gross_limit = 0.0"),
        ({"cost_bps": -1.0}, "cost_bps = -1.0"),
        ({"cost_bps": float("nan")}, "cost_bps = nan"),
        ({"cash_rate": -2.0}, "cash_rate = -2.0"),
    ],
)
def test_impossible_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvironmentRefusal, match=message):
        PortfolioParameters(**changes)


def test_impossible_actions_and_weights_are_refused(market: PortfolioMarket) -> None:
    env = PortfolioEpisodes(1, market, SMALL)
    env.reset(np.random.default_rng(0))
    with pytest.raises(EnvironmentRefusal, match="action score_B = nan"):
        env.step(np.array([[0, np.nan, 0, 0]]))
    with pytest.raises(EnvironmentRefusal, match=r"action score_cash = 1\.5"):
        env.step(np.array([[0, 0, 0, 1.5]]))
    with pytest.raises(EnvironmentRefusal, match="look_back = 58 periods behind it"):
        PortfolioEpisodes(
            1, market.between(dt.date(2020, 1, 1), dt.date(2020, 2, 15)), PortfolioParameters(58)
        )

    gross = dataclasses.replace(SMALL, mode="gross")
    cases: list[tuple[PortfolioParameters, Any, str]] = [
        (SMALL, (0.5, 0.2, 0.2), "weight 0.5 of A at 2020-01-06 is given to an asset that cannot be traded"),
        (SMALL, (0, np.nan, 0.2), "weight nan of B at 2020-01-06 is not finite"),
        (SMALL, (0, -0.1, 0.2), "weight -0.1 of B at 2020-01-06 is short"),
        (SMALL, (0, 0.7, 0.7), "leaves less than no cash"),
        (gross, (0, 0.7, -0.7), "exceeds 1 or, with the others, gross_limit = 1.0"),
    ]
    for parameters, row, message in cases:
        weights = np.zeros(market.next_return.shape)
        weights[5] = row
        with pytest.raises(EnvironmentRefusal, match=message):
            rollout_weights(market, parameters, weights)
    with pytest.raises(EnvironmentRefusal, match=r"weights have shape \(60, 2\)"):
        rollout_weights(market, SMALL, np.zeros((60, 2)))
    with pytest.raises(EnvironmentRefusal, match="window = 5 must be at least 20"):
        minimum_variance(market, SMALL, window=5)


def test_a_summary_says_what_a_year_brings(market: PortfolioMarket) -> None:
    parameters = PortfolioParameters(look_back=3, cost_bps=0)
    rollout = rollout_weights(market, parameters, equal_weight(market))
    summary = rollout.summary()
    assert summary["annual_log_growth_pct"] == pytest.approx(100 * 252 * np.log(rollout.equity[-1]) / 56)
    assert summary["sharpe_ratio"] == pytest.approx(
        np.sqrt(252) * rollout.net_return.mean() / rollout.net_return.std(ddof=1)
    )
    idle = rollout_weights(market, parameters, np.zeros(market.next_return.shape)).summary()
    assert np.isnan(idle.pop("sharpe_ratio"))
    assert not any(idle.values())
