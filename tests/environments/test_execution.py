"""Selling an order: every share and every dollar against a plain loop, timing by truncation, and published numbers."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.environments.episodes import EnvironmentRefusal, Single
from quant_assets.environments.execution import (
    ExecutionCosts,
    ExecutionEpisodes,
    ExecutionMarket,
    ExecutionParameters,
    draw_orders,
    run_schedule,
    square_root_impact_total,
    textbook_market,
    twap_schedule,
    vwap_schedule,
    whole_schedule,
)
from quant_assets.simulation.intraday import real_days

REAL_BARS = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "files" / "minute_bars" / "AAPL_2014-06.parquet"
)
COSTS = (
    "slippage_bps",
    "spread_bps",
    "temporary_impact_bps",
    "permanent_impact_bps",
    "leftover_bps",
)

# Almgren and Chriss (2000), their example: KNOWN_ANSWERS.md.
AC: dict[str, Any] = {"eta": 2.5e-6, "gamma": 2.5e-7, "order_shares": 1_000_000.0}
AC_SIGMA, AC_DAYS = 0.95, 5


def market(paths: int = 6, minutes: int = 30, seed: int = 1, **changes: Any) -> ExecutionMarket:
    """Everything moves: mid, spread, volume, profile, and from path to path the volatility."""
    rng = np.random.default_rng(seed)
    volatility = rng.uniform(0.005, 0.03, paths)
    steps = rng.standard_normal((paths, minutes)) * volatility[:, None] / math.sqrt(minutes)
    mid = rng.uniform(20, 600, (paths, 1)) * np.exp(np.cumsum(np.c_[np.zeros(paths), steps], axis=1))
    profile = rng.uniform(2_000, 50_000, (paths, 1)) * (1 + 3 * np.linspace(-1, 1, minutes) ** 2)
    values = {
        "mid": mid,
        "spread": np.round(rng.uniform(0.0, 0.08, mid.shape), 2),
        "volume_shares": rng.poisson(profile * rng.lognormal(0, 0.5, profile.shape)),
        "expected_volume_shares": profile,
        "daily_volatility": volatility,
        "draw_id": np.arange(paths) // 2,
    }
    return ExecutionMarket(**{**values, **changes})


def still(size: int = 4, minutes: int = 20) -> ExecutionMarket:
    """The mid never moves."""
    made = market(size, minutes, seed=3)
    return replace(made, mid=np.repeat(made.mid[:, :1], minutes + 1, axis=1))


def play(env: ExecutionEpisodes, actions: np.ndarray) -> list[Any]:
    """Steps under actions (steps, n)."""
    return [env.step(action[:, None]) for action in actions]


def totals(steps: list[Any]) -> dict[str, np.ndarray]:
    """Infos added over the episode."""
    return {name: np.sum([step.info[name] for step in steps], axis=0) for name in steps[0].info}


def by_hand(
    m: ExecutionMarket, p: ExecutionParameters, row: int, order: float, fills: list[float]
) -> dict[str, float]:
    """The module's docstring as a loop over plain floats: costs of one episode in bps of the arrival value."""
    mid0 = float(m.mid[row, 0])
    sigma = float(m.daily_volatility[row]) * mid0
    power = 0.5 if p.impact == "square_root" else 1.0
    day = sum(float(v) for v in m.expected_volume_shares[row])
    bps = 1e4 / (order * mid0)
    proceeds, sold, risk = 0.0, 0.0, 0.0
    left = order
    for k, fill in enumerate(fills):
        participation = fill / float(m.expected_volume_shares[row, k])
        price = float(m.mid[row, k]) - float(m.spread[row, k]) / 2
        price -= p.permanent_impact * sigma * sold / day
        price -= p.temporary_impact * sigma * participation**power
        proceeds += fill * price
        sold += fill
        left -= fill
        risk += p.risk_aversion * sigma**2 / m.minutes * left**2
    end = len(fills)
    price = float(m.mid[row, end]) - float(m.spread[row, end]) / 2
    price -= p.permanent_impact * sigma * sold / day
    price -= p.temporary_impact * sigma * (left / float(m.expected_volume_shares[row, end - 1])) ** power
    proceeds += left * price - left * mid0 * p.leftover_penalty_bps / 1e4
    return {"shortfall": (order * mid0 - proceeds) * bps, "risk": risk * bps, "left": left}


def almgren_chriss_schedule(risk_aversion: float) -> np.ndarray:
    """Their optimum from its definition, shares on each of the five days."""
    tau, x = 1.0, AC["order_shares"]
    if risk_aversion == 0:
        return np.full(AC_DAYS, x / AC_DAYS)
    eta = AC["eta"] - AC["gamma"] * tau / 2
    kappa = math.acosh(risk_aversion * AC_SIGMA**2 / eta * tau**2 / 2 + 1) / tau
    held = x * np.sinh(kappa * (AC_DAYS - np.arange(AC_DAYS + 1))) / np.sinh(kappa * AC_DAYS)
    return -np.diff(held)


# -- published numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("risk_aversion", "cost", "variance", "thousands"),
    [
        (0.0, 662_500, 1.0830e12, [200, 200, 200, 200, 200]),
        (1e-9, 662_501, 1.0812e12, [200.5, None, None, None, 199.7]),
        (1e-6, 911_227, 3.6413e11, [458.0, 252.1, 142.0, 85.8, 62.1]),
    ],
)
def test_almgren_and_chriss(
    risk_aversion: float, cost: float, variance: float, thousands: list[float | None]
) -> None:
    schedule = almgren_chriss_schedule(risk_aversion)
    for found, published in zip(schedule, thousands, strict=True):
        assert published is None or found / 1000 == pytest.approx(published, abs=0.051)

    resting = textbook_market(paths=1, steps=AC_DAYS, seed=0, moves=False)
    parameters = ExecutionParameters.almgren_chriss(
        resting, **AC, risk_aversion=risk_aversion, whole_shares=False
    )
    costs = run_schedule(resting, parameters, schedule)
    tolerance = 1e-9 if risk_aversion == 0 else 1.0 / cost  # printed in whole dollars
    np.testing.assert_allclose(costs.shortfall_dollars, cost, rtol=tolerance)
    # Variance in dollars squared is what the risk term charges, in bps of 50 million dollars, for one lambda.
    if risk_aversion:
        np.testing.assert_allclose(costs.risk_bps * 5e7 / 1e4, risk_aversion * variance, rtol=1e-4)

    paths = 20_000
    moving = textbook_market(paths=paths, steps=AC_DAYS, seed=4)
    shortfall = run_schedule(moving, parameters, schedule).shortfall_dollars
    assert abs(shortfall.mean() - cost) < 3 * math.sqrt(variance / paths)
    assert abs(shortfall.var(ddof=1) - variance) < 3 * variance * math.sqrt(2 / paths)


def test_almgren_and_chriss_do_not_depend_on_how_the_market_is_described() -> None:
    """Neither the volume in which impact is expressed nor the length of a step changes a dollar."""
    for volume, steps, tau in ((1e6, 5, 1.0), (3e5, 5, 1.0), (1e5, 50, 0.1)):
        resting = textbook_market(
            paths=1,
            steps=steps,
            seed=0,
            sigma=AC_SIGMA * math.sqrt(tau),
            expected_volume_shares=volume,
            moves=False,
        )
        p = ExecutionParameters.almgren_chriss(resting, **AC, step_days=tau)
        cost = run_schedule(resting, p, twap_schedule(p)).shortfall_dollars[0]
        eta = AC["eta"] - AC["gamma"] * tau / 2
        n = AC["order_shares"] / steps
        exact = 0.5 * AC["gamma"] * 1e12 + 0.0625 * 1e6 + eta / tau * steps * n**2
        assert cost == pytest.approx(exact, rel=1e-12)


def test_square_root_impact_of_twap() -> None:
    alpha = 4.439584265535017e-06
    assert square_root_impact_total(np.full(390, 1000 / 390), alpha) == pytest.approx(0.00277252, abs=5e-9)
    orders = np.array([[390.0], [5_000.0]])
    np.testing.assert_allclose(
        square_root_impact_total(np.broadcast_to(orders / 390, (2, 390)), alpha),
        alpha * np.sqrt(390 * orders[:, 0]),
    )


def test_the_square_root_law_is_y_sigma_root_participation() -> None:
    """VWAP at a tenth of the volume, no spread, no permanent impact, nothing left."""
    m = replace(still(), spread=np.zeros((4, 21)))
    p = ExecutionParameters(
        horizon_minutes=20, permanent_impact=0.0, temporary_impact=0.5, whole_shares=False
    )
    orders = 0.1 * m.expected_volume_shares.sum(axis=1)
    costs = run_schedule(m, p, vwap_schedule(m, p, order_shares=orders), order_shares=orders)
    np.testing.assert_allclose(
        costs.implementation_shortfall_bps, 0.5 * 1e4 * m.daily_volatility * math.sqrt(0.1)
    )


# -- accounting --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    order=st.sampled_from([1.0, 2.0, 7.0, 100.0, 12_345.0, 1_000_001.0]),
    pace=st.sampled_from([None, 1.0, 3.0, 5.0]),
    impact=st.sampled_from(["linear", "square_root"]),
    whole=st.booleans(),
    horizon=st.integers(1, 30),
)
def test_any_actions_sell_exactly_the_order_and_rewards_add_up(
    seed: int, order: float, pace: float | None, impact: Any, whole: bool, horizon: int
) -> None:
    m = market()
    p = ExecutionParameters(
        order_shares=order,
        horizon_minutes=horizon,
        impact=impact,
        temporary_impact=0.3,
        risk_aversion=1e-6,
        whole_shares=whole,
        max_pace=pace,
    )
    rng = np.random.default_rng(seed)
    env = ExecutionEpisodes(m, p, n=4)
    env.reset(rng)
    # Some do nothing, some everything, most something.
    steps = play(env, np.clip(rng.normal(0.3, 0.5, (horizon, 4)), 0, 1))
    sold = np.array([step.info["sold_shares"] for step in steps])
    leftover = steps[-1].info["leftover_shares"]
    assert (sold >= 0).all()
    if whole:
        assert (sold == np.rint(sold)).all()
        assert (sold.sum(axis=0) + leftover == order).all()
    np.testing.assert_allclose(sold.sum(axis=0) + leftover, order, rtol=1e-12)
    assert (steps[-1].info["shares_left"] == 0).all()
    assert [step.terminated for step in steps] == [False] * (horizon - 1) + [True]

    found = totals(steps)
    rewards = np.sum([step.reward for step in steps], axis=0)
    for i, row in enumerate(env.rows):
        wanted = by_hand(m, p, int(row), order, [float(x) for x in sold[:, i]])
        assert found["implementation_shortfall_bps"][i] == pytest.approx(wanted["shortfall"], abs=1e-8)
        assert rewards[i] == pytest.approx(-(wanted["shortfall"] + wanted["risk"]), abs=1e-8)
    np.testing.assert_allclose(
        sum(found[name] for name in COSTS), found["implementation_shortfall_bps"], atol=1e-9
    )

    if whole:
        costs = run_schedule(m, p, sold.T, rows=env.rows)
        for name in ExecutionCosts._fields:
            np.testing.assert_allclose(getattr(costs, name), found[name], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(costs.reward, rewards, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), impact=st.sampled_from(["linear", "square_root"]))
def test_no_cost_is_negative_while_the_mid_stands_still(seed: int, impact: Any) -> None:
    p = ExecutionParameters(order_shares=5_000, horizon_minutes=20, impact=impact)
    env = ExecutionEpisodes(still(), p, n=4)
    rng = np.random.default_rng(seed)
    env.reset(rng)
    for step in play(env, rng.random((20, 4))):
        assert (step.info["slippage_bps"] == 0).all()
        assert all((step.info[name] >= 0).all() for name in COSTS)
        assert (step.reward <= 0).all()


def test_leftover_is_sold_at_the_end_with_all_costs_and_a_penalty() -> None:
    m = still()
    p = ExecutionParameters(order_shares=5_000, horizon_minutes=20, leftover_penalty_bps=25.0)
    env = ExecutionEpisodes(m, p, n=4)
    env.reset(np.random.default_rng(0))
    steps = play(env, np.zeros((20, 4)))
    assert all((step.reward == 0).all() for step in steps[:-1])
    last = steps[-1].info
    assert (last["leftover_shares"] == 5_000).all()
    np.testing.assert_allclose(last["leftover_bps"], 25.0)
    assert (last["temporary_impact_bps"] > 0).all()
    free = run_schedule(m, replace(p, leftover_penalty_bps=0.0), np.zeros(20), rows=env.rows)
    np.testing.assert_allclose(last["implementation_shortfall_bps"] - free.implementation_shortfall_bps, 25.0)


def test_permanent_impact_hits_later_sales_only() -> None:
    m = still()
    p = ExecutionParameters(order_shares=4_000, horizon_minutes=20, permanent_impact=2.0, max_pace=None)
    env = ExecutionEpisodes(m, p, n=4)
    env.reset(np.random.default_rng(0))
    schedule = np.zeros(20)
    schedule[[3, 7]] = 3_000, 1_000
    steps = [env.step(env.action_for(float(sell))) for sell in schedule]
    paid = np.array([step.info["permanent_impact_bps"] for step in steps])
    assert (paid[np.arange(20) != 7] == 0).all()
    day = m.expected_volume_shares[env.rows].sum(axis=1)
    np.testing.assert_allclose(paid[7], 0.25 * 1e4 * 2.0 * m.daily_volatility[env.rows] * 3_000 / day)


def test_price_of_a_sale_is_what_it_got() -> None:
    m = market()
    p = ExecutionParameters(order_shares=4_000, horizon_minutes=30)
    env = ExecutionEpisodes(m, p, n=6)
    env.reset(np.random.default_rng(0), np.arange(6))
    for k in range(29):
        step = env.step(np.full((6, 1), 0.3))
        lost = step.info["sold_shares"] * (m.mid[:, 0] - step.info["price_dollars"])
        np.testing.assert_allclose(step.info["shortfall_dollars"], lost, atol=1e-6, err_msg=str(k))


# -- timing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 7, 16, 29])
def test_what_comes_after_an_instant_changes_nothing_before(cut: int) -> None:
    """Mid and spread after the instant, volume from the minute that begins there: other values, the same bits."""
    m, other = market(seed=1), market(seed=2)

    def spliced(name: str, keep: int) -> np.ndarray:
        return np.concatenate([getattr(m, name)[:, :keep], getattr(other, name)[:, keep:]], axis=1)

    changed = replace(
        m,
        mid=spliced("mid", cut + 1),
        spread=spliced("spread", cut + 1),
        volume_shares=spliced("volume_shares", cut),
    )
    seen = []
    for each in (m, changed):
        env = ExecutionEpisodes(each, ExecutionParameters(horizon_minutes=30), n=6)
        observations = [env.reset(np.random.default_rng(0), np.arange(6))]
        steps = play(env, np.random.default_rng(1).random((30, 6)))
        observations += [step.observation for step in steps]
        filled = [(step.info["price_dollars"], step.info["sold_shares"]) for step in steps]
        seen.append((np.array(observations), np.array(filled)))
    (before, fills), (after, other_fills) = seen
    assert (before[: cut + 1] == after[: cut + 1]).all()
    assert (fills[: cut + 1] == other_fills[: cut + 1]).all()
    assert (before[cut + 1] != after[cut + 1]).any()  # the change is seen, one instant later


def test_observations_are_what_they_are_called() -> None:
    m = market()
    p = ExecutionParameters(order_shares=3_000, horizon_minutes=25)
    env = ExecutionEpisodes(m, p, n=6)
    first = env.reset(np.random.default_rng(0), np.arange(6))
    assert (first[:, 0] == 1).all()
    assert (first[:, 1] == 1).all()
    np.testing.assert_array_equal(first[:, 2:6], 0)
    for k in range(1, 26):
        step = env.step(np.full((6, 1), 0.2))
        for row in range(6):
            spread = np.maximum(m.spread[row, : k + 1], 1e-5 * m.mid[row, : k + 1])
            w = slice(max(k - 15, 0), k)
            volume, expected = m.volume_shares[row, w].sum(), m.expected_volume_shares[row, w].sum()
            count = min(k, 15)
            usual = m.daily_volatility[row] ** 2 / 30
            returns = np.diff(np.log(m.mid[row, max(k - 15, 0) : k + 1]))
            back = min(k, 10)
            wanted = [
                env.shares_left[row] / 3_000,
                1 - k / 25,
                math.log(spread[-1] / spread.mean()),
                math.log((volume + 0.01 * expected) / (1.01 * expected)),
                0.5 * math.log((np.sum(returns**2) + 5 * usual) / ((count + 5) * usual)),
                math.log(m.mid[row, k] / m.mid[row, k - back]) / math.sqrt(back * usual),
                math.log(3_000 / m.expected_volume_shares[row, :25].sum() / 0.05),
            ]
            np.testing.assert_allclose(step.observation[row], wanted, rtol=1e-5, atol=1e-5)


# -- actions and schedules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [23.0, 4_000.0])
def test_a_constant_action_is_vwap_and_twap_where_the_profile_is_flat(order: float) -> None:
    m = market()
    p = ExecutionParameters(order_shares=order, horizon_minutes=30, max_pace=4.0)
    for each, wanted in (
        (m, vwap_schedule(m, p)),
        (
            replace(m, expected_volume_shares=np.full((6, 30), 1e4)),
            np.broadcast_to(twap_schedule(p), (6, 30)),
        ),
    ):
        env = ExecutionEpisodes(each, p, n=6)
        env.reset(np.random.default_rng(0), np.arange(6))
        sold = np.array([step.info["sold_shares"] for step in play(env, np.full((30, 6), 0.25))]).T
        assert (sold.sum(axis=1) == order).all()
        assert (wanted.sum(axis=1) == order).all()
        # Halves may round either way.
        assert np.abs(np.cumsum(sold - wanted, axis=1)).max() <= 1


def test_a_bare_share_sells_that_share_of_what_is_left() -> None:
    p = ExecutionParameters(order_shares=1_000, horizon_minutes=30, max_pace=None)
    env = ExecutionEpisodes(market(), p, n=2)
    env.reset(np.random.default_rng(0))
    sold = [env.step(np.full((2, 1), 0.5)).info["sold_shares"][0] for _ in range(4)]
    assert sold == [500, 250, 125, 63]  # 62.5 to 62 left: to the even number
    assert env.step(np.ones((2, 1))).info["shares_left"].tolist() == [0, 0]


@pytest.mark.parametrize("max_pace", [None, 6.0])
def test_a_schedule_runs_through_the_environment(max_pace: float | None) -> None:
    m = market()
    p = ExecutionParameters(order_shares=10_007, horizon_minutes=30, max_pace=max_pace, risk_aversion=1e-7)
    for schedule in (vwap_schedule(m, p), np.tile(twap_schedule(p), (6, 1))):
        env = ExecutionEpisodes(m, p, n=6)
        env.reset(np.random.default_rng(0), np.arange(6))
        steps = [env.step(env.action_for(schedule[:, k])) for k in range(30)]
        np.testing.assert_array_equal(np.array([step.info["sold_shares"] for step in steps]).T, schedule)
        costs = run_schedule(m, p, schedule)
        np.testing.assert_allclose(np.sum([step.reward for step in steps], axis=0), costs.reward, atol=1e-9)


def test_too_fast_a_sale_names_the_pace() -> None:
    env = ExecutionEpisodes(market(), ExecutionParameters(order_shares=100, horizon_minutes=30), n=1)
    with pytest.raises(EnvironmentRefusal, match="call reset"):
        env.action_for(1)
    env.reset(np.random.default_rng(0))
    with pytest.raises(EnvironmentRefusal, match="max_pace is 5"):
        env.action_for(100)
    with pytest.raises(EnvironmentRefusal, match=r"has 100\.0 shares left"):
        env.action_for(101)
    with pytest.raises(EnvironmentRefusal, match="nan"):
        env.action_for(math.nan)


def test_drawn_orders_stay_in_their_range_and_fill_it() -> None:
    m = market(paths=2_000)
    p = ExecutionParameters(horizon_minutes=12, order_participation_low=0.02, order_participation_high=0.5)
    orders = draw_orders(m, p, np.random.default_rng(0))
    log = np.log(orders / m.expected_volume_shares[:, :12].sum(axis=1))
    low, high = math.log(0.02), math.log(0.5)
    assert (orders == np.rint(orders)).all()
    assert low - 0.01 < log.min() < low + 0.05
    assert high - 0.05 < log.max() < high + 0.01
    assert log.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / math.sqrt(12 * 2_000))
    schedule = vwap_schedule(m, p, order_shares=orders)
    assert (schedule.sum(axis=1) == orders).all()
    assert (twap_schedule(p, orders).sum(axis=1) == orders).all()
    # More paths than fit into memory at once: chunks change nothing.
    costs = run_schedule(m, p, schedule, order_shares=orders)
    some = np.array([1_500, 3])
    again = run_schedule(m, p, schedule[some], rows=some, order_shares=orders[some])
    for whole, part in zip(costs, again, strict=True):
        np.testing.assert_array_equal(whole[some], part)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 10**7))
def test_a_schedule_in_whole_shares_keeps_its_sum(weights: list[float], order: int) -> None:
    shares = np.array(weights) + 1e-3
    shares *= order / shares.sum()
    whole = whole_schedule(shares)
    assert whole.sum() == order
    assert (whole == np.rint(whole)).all()
    assert (whole >= 0).all()
    assert np.abs(np.cumsum(whole - shares)).max() <= 0.5 + 1e-6


# -- as an environment -------------------------------------------------------------------------------------------------


def test_gymnasium_accepts_the_single_view() -> None:
    env = Single(ExecutionEpisodes(market(), ExecutionParameters(horizon_minutes=30)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


def test_the_same_seed_gives_the_same_bits() -> None:
    def episode(seed: int) -> np.ndarray:
        env = ExecutionEpisodes(market(), ExecutionParameters(horizon_minutes=30), n=5)
        rng = np.random.default_rng(seed)
        observations = [env.reset(rng)]
        steps = play(env, rng.random((30, 5)))
        observations += [step.observation for step in steps]
        rewards = np.array([step.reward for step in steps])
        return np.r_[np.ravel(observations), np.ravel(rewards)]

    first = episode(3)
    assert (first == episode(3)).all()
    assert (first != episode(4)).any()


def test_many_at_once_are_as_many_alone() -> None:
    m, p = market(), ExecutionParameters(horizon_minutes=30, risk_aversion=1e-7)
    rows = np.array([4, 0, 0, 5, 2])
    actions = np.random.default_rng(1).random((30, 5))
    env = ExecutionEpisodes(m, p, n=5)
    first = env.reset(np.random.default_rng(9), rows)
    together = play(env, actions)
    alone, rng = ExecutionEpisodes(m, p, n=1), np.random.default_rng(9)
    for i, row in enumerate(rows):
        assert (alone.reset(rng, rows[i : i + 1])[0] == first[i]).all()
        assert alone.order_shares[0] == env.order_shares[i]
        for step, single in zip(together, play(alone, actions[:, i : i + 1]), strict=True):
            assert (step.observation[i] == single.observation[0]).all()
            assert step.reward[i] == single.reward[0]
            assert all(step.info[name][i] == single.info[name][0] for name in step.info), row


def test_an_episode_ends_once() -> None:
    env = ExecutionEpisodes(market(), ExecutionParameters(horizon_minutes=1), n=2)
    with pytest.raises(EnvironmentRefusal, match="reset"):
        env.step(np.zeros((2, 1)))
    env.reset(np.random.default_rng(0))
    assert env.step(np.zeros((2, 1))).terminated
    with pytest.raises(EnvironmentRefusal, match="ended"):
        env.step(np.zeros((2, 1)))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("order_shares", 0, r"order_shares = 0\.0"),
        ("order_shares", -5, r"order_shares = -5"),
        ("order_shares", math.nan, "order_shares = nan"),
        ("order_shares", math.inf, "order_shares = inf"),
        ("order_shares", 10.5, r"10\.5.*whole_shares=False"),
        ("order_participation_low", 0.0, "order_participation_low = 0"),
        ("order_participation_high", 0.001, r"order_participation_high = 0\.001"),
        ("horizon_minutes", 0, "horizon_minutes = 0"),
        ("horizon_minutes", -1, "horizon_minutes = -1"),
        ("impact", "cubic", "'cubic'"),
        ("temporary_impact", -1.0, "temporary_impact = -1"),
        ("permanent_impact", math.nan, "permanent_impact = nan"),
        ("leftover_penalty_bps", -1.0, "leftover_penalty_bps = -1"),
        ("risk_aversion", math.inf, "risk_aversion = inf"),
        ("max_pace", 0.5, r"max_pace = 0\.5"),
        ("max_pace", math.nan, "max_pace = nan"),
    ],
)
def test_parameters_are_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(EnvironmentRefusal, match=message):
        ExecutionParameters(**{field: value})


def test_a_horizon_beyond_the_day_is_refused() -> None:
    p = ExecutionParameters(order_shares=100, horizon_minutes=31)
    for call in (
        lambda: ExecutionEpisodes(market(), p),
        lambda: run_schedule(market(), p, np.zeros(31)),
        lambda: vwap_schedule(market(), p),
        lambda: draw_orders(market(), p, np.random.default_rng(0)),
    ):
        with pytest.raises(EnvironmentRefusal, match="horizon_minutes = 31: the market has 30"):
            call()


def spoiled(name: str, at: tuple[int, ...], value: float) -> np.ndarray:
    values = np.array(getattr(market(), name), dtype=np.float64)
    values[at] = value
    return values


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("mid", (2, 7), math.nan),
        ("mid", (0, 0), 0.0),
        ("mid", (0, 30), -1.0),
        ("spread", (1, 0), math.nan),
        ("spread", (1, 3), -0.01),
        ("volume_shares", (5, 29), math.nan),
        ("volume_shares", (5, 29), -1),
        ("expected_volume_shares", (3, 3), 0.0),
        ("expected_volume_shares", (3, 3), math.inf),
        ("daily_volatility", (4,), 0.0),
        ("daily_volatility", (4,), math.nan),
    ],
)
def test_a_market_is_refused_with_the_place_and_the_value(
    name: str, at: tuple[int, ...], value: float
) -> None:
    place = ", ".join(map(str, at))
    with pytest.raises(EnvironmentRefusal, match=rf"{name}\[{place}\] = {float(value)}.*\("):
        replace(market(), **{name: spoiled(name, at, value)})


def test_shapes_of_a_market_are_refused() -> None:
    with pytest.raises(EnvironmentRefusal, match=r"mid has shape \(6, 30\).*\(6, 31\)"):
        market(mid=np.ones((6, 30)))
    with pytest.raises(EnvironmentRefusal, match=r"volume_shares has shape \(30,\)"):
        market(volume_shares=np.ones(30))
    with pytest.raises(EnvironmentRefusal, match=r"draw_id has shape"):
        market(draw_id=np.zeros(5, int))
    with pytest.raises(EnvironmentRefusal, match="arithmetic mid that reaches 0"):
        textbook_market(paths=50, steps=200, seed=0, mid0=5.0)
    with pytest.raises(EnvironmentRefusal, match="0 paths"):
        textbook_market(paths=0, steps=5, seed=0)


@pytest.mark.parametrize("value", [math.nan, -0.01, 1.01, math.inf])
def test_actions_outside_the_box_are_refused(value: float) -> None:
    env = ExecutionEpisodes(market(), ExecutionParameters(horizon_minutes=30), n=3)
    env.reset(np.random.default_rng(0))
    with pytest.raises(EnvironmentRefusal, match=f"action pace = {value} of episode 1"):
        env.step(np.array([[0.5], [value], [0.5]]))


def test_an_observation_of_nan_is_refused() -> None:
    """The market is checked once; an array that somebody writes to afterwards is caught here."""
    m = market()
    env = ExecutionEpisodes(m, ExecutionParameters(order_shares=100, horizon_minutes=30), n=2)
    env.reset(np.random.default_rng(0), np.array([1, 2]))
    env._features[1, 2, 0] = math.nan
    with pytest.raises(
        EnvironmentRefusal, match="observation spread_log of episode 1 on market path 2 is nan at step 1"
    ):
        env.step(np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (np.zeros(29), r"schedule has shape \(29,\)"),
        (np.full(30, math.nan), "sells nan"),
        (np.r_[-1.0, np.zeros(29)], r"sells -1\.0"),
        (np.r_[0.5, np.zeros(29)], r"sells 0\.5 shares: use whole_schedule"),
        (np.full(30, 10.0), r"market path 0 sells 300\.0 of 100\.0"),
    ],
)
def test_schedules_are_refused(schedule: np.ndarray, message: str) -> None:
    p = ExecutionParameters(order_shares=100, horizon_minutes=30)
    with pytest.raises(EnvironmentRefusal, match=message):
        run_schedule(market(), p, schedule)


def test_orders_and_rows_are_refused() -> None:
    m, p = market(), ExecutionParameters(horizon_minutes=30)
    for call in (
        lambda: twap_schedule(p),
        lambda: vwap_schedule(m, p),
        lambda: run_schedule(m, p, np.zeros(30)),
    ):
        with pytest.raises(EnvironmentRefusal, match="see draw_orders"):
            call()
    with pytest.raises(EnvironmentRefusal, match="order_shares = -1"):
        vwap_schedule(m, p, order_shares=np.array([1, 1, 1, -1, 1, 1]))
    with pytest.raises(EnvironmentRefusal, match=r"order_shares has shape \(2,\)"):
        vwap_schedule(m, p, order_shares=np.ones(2))
    for rows in (np.array([6]), np.array([-1]), np.array([0.5]), np.array([], int)):
        with pytest.raises(EnvironmentRefusal, match="whole numbers from 0 to 5"):
            vwap_schedule(m, p, rows=rows, order_shares=10.0)
    with pytest.raises(EnvironmentRefusal, match="its sum must be whole"):
        whole_schedule(np.array([0.2, 0.2]))
    with pytest.raises(EnvironmentRefusal, match="shares are 0 or above"):
        square_root_impact_total(np.array([-1.0]), 1.0)
    with pytest.raises(EnvironmentRefusal, match="textbook_market"):
        ExecutionParameters.almgren_chriss(m, **AC)
    with pytest.raises(EnvironmentRefusal, match="step_days = 0"):
        ExecutionParameters.almgren_chriss(textbook_market(paths=1, steps=5, seed=0), **AC, step_days=0)


# -- real days ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL_BARS.is_file(), reason="no real minute bars in ../shared/data")
def test_an_order_is_sold_on_real_days() -> None:
    days = real_days(pq.read_table(REAL_BARS))
    count, minutes = days.volume_shares.shape

    def bridged(values: np.ndarray) -> np.ndarray:
        """The last known value; the first one before it."""
        at = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(minutes + 1), 0), axis=1)
        at = np.maximum(at, np.argmax(np.isfinite(values), axis=1)[:, None])
        return np.take_along_axis(values, at, axis=1)

    m = ExecutionMarket(
        mid=bridged(days.mid),
        spread=bridged(days.spread),
        volume_shares=days.volume_shares,
        expected_volume_shares=np.tile(days.volume_shares.mean(axis=0), (count, 1)),
        daily_volatility=np.full(count, 0.01),
        draw_id=np.zeros(count, int),
    )
    p = ExecutionParameters()
    env = ExecutionEpisodes(m, p, n=count)
    first = env.reset(np.random.default_rng(0), np.arange(count))
    steps = play(env, np.full((390, count), 0.2))
    observations = np.array([first, *(step.observation for step in steps)])
    assert np.abs(observations).max() < 8
    sold = np.array([step.info["sold_shares"] for step in steps]).T
    assert (sold.sum(axis=1) + steps[-1].info["leftover_shares"] == env.order_shares).all()
    rewards = np.sum([step.reward for step in steps], axis=0)
    for i in range(count):
        wanted = by_hand(m, p, i, env.order_shares[i], [float(x) for x in sold[i]])
        assert rewards[i] == pytest.approx(-wanted["shortfall"], abs=1e-7)


@pytest.mark.parametrize("slippage", ["at_move", "beyond_profile"])
def test_when_slippage_is_charged_changes_no_total_but_by_the_profiles_own(slippage: str) -> None:
    market = textbook_market(paths=50, steps=20, seed=3, sigma=0.3)
    parameters = ExecutionParameters(order_shares=10_000, horizon_minutes=20)
    rewards = []
    for accounting in ("at_sale", slippage):
        episodes = ExecutionEpisodes(market, replace(parameters, slippage=accounting), 50)
        rng = np.random.default_rng(0)
        episodes.reset(rng, np.arange(50))
        actions = np.random.default_rng(1).random((20, 50, 1)) * 0.5
        rewards.append(sum(episodes.step(action).reward for action in actions))
    profile = vwap_schedule(market, replace(parameters, whole_shares=False))
    own = run_schedule(market, replace(parameters, whole_shares=False), profile).slippage_bps
    np.testing.assert_allclose(
        rewards[1], rewards[0] + (own if slippage == "beyond_profile" else 0), atol=1e-9
    )
    if slippage == "beyond_profile":
        assert rewards[1].std() < rewards[0].std()


def test_a_decision_may_hold_for_several_minutes() -> None:
    market = textbook_market(paths=30, steps=20, seed=3, sigma=0.3)
    every = ExecutionParameters(order_shares=10_000, horizon_minutes=20)
    actions = np.random.default_rng(1).random((3, 30, 1)) * 0.5
    totals = []
    for parameters, given_ in (
        (every, np.repeat(actions, [7, 7, 6], axis=0)),
        (replace(every, minutes_per_decision=7), actions),
    ):
        episodes = ExecutionEpisodes(market, parameters, 30)
        episodes.reset(np.random.default_rng(0), np.arange(30))
        assert episodes.steps == len(given_)
        done = [episodes.step(action) for action in given_]
        assert done[-1].terminated
        sold = np.concatenate([step.info["sold_by_minute"] for step in done], axis=1)
        totals.append((sum(step.reward for step in done), sold, done[-1].observation))
    assert sold.shape == (30, 20)
    for one, other in zip(*totals, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    episodes.reset(np.random.default_rng(0))
    with pytest.raises(EnvironmentRefusal, match="minutes_per_decision = 7: an action holds for several"):
        episodes.action_for(1)
