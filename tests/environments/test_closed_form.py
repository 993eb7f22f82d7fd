"""Formulas against published numbers, against independent solvers and against brute force."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from quant_assets.environments.closed_form import (
    AlmgrenChriss,
    almgren_chriss_cost,
    almgren_chriss_frontier,
    almgren_chriss_kappa,
    almgren_chriss_trajectory,
    avellaneda_stoikov_depths,
    avellaneda_stoikov_reservation_price,
    avellaneda_stoikov_spread,
    cartea_jaimungal,
    fill_probability,
    inventory_distribution,
    quote_table_value,
)

ORDER = AlmgrenChriss(
    order_shares=1e6,
    horizon=5,
    periods=5,
    volatility=0.95,
    permanent_impact=2.5e-7,
    temporary_impact=2.5e-6,
    half_spread=0.0625,
)
TEXTBOOK = {"arrival_rate": 140.0, "depth_decay": 1.5}
PENALTIES = {"running_penalty": 0.01, "terminal_penalty": 0.001}


# -- Almgren and Chriss


@pytest.mark.parametrize(
    ("risk_aversion", "cost", "variance", "thousands"),
    [
        (0.0, 662_500, 1.0830e12, [200.0] * 5),
        (1e-9, 662_501, 1.0812e12, [200.5, None, None, None, 199.7]),
        (1e-6, 911_227, 3.6413e11, [458.0, 252.1, 142.0, 85.8, 62.1]),
    ],
)
def test_almgren_chriss_table(risk_aversion, cost, variance, thousands):
    sales = almgren_chriss_trajectory(ORDER, risk_aversion)
    expected, squared = almgren_chriss_cost(ORDER, sales)
    assert expected == pytest.approx(cost, abs=0.5)
    assert squared == pytest.approx(variance, rel=0.5e-4)
    for ours, theirs in zip(sales / 1000, thousands, strict=True):
        assert theirs is None or ours == pytest.approx(theirs, abs=0.05)


def test_almgren_chriss_time_scale():
    assert 1 / almgren_chriss_kappa(ORDER, 1e-9) == pytest.approx(51.30, abs=0.005)
    # Their definition with the arccosh, where it has digits.
    squared = 1e-6 * 0.95**2 / ORDER.effective_temporary_impact
    assert almgren_chriss_kappa(ORDER, 1e-6) == pytest.approx(math.acosh(1 + squared / 2), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    periods=st.integers(1, 12),
    horizon=st.floats(0.1, 20),
    volatility=st.floats(0.01, 5),
    risk_aversion=st.floats(0, 1e-4),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_schedule_beats_almgren_chriss(periods, horizon, volatility, risk_aversion, seed):
    order = AlmgrenChriss(1e6, horizon, periods, volatility, 1e-8, 2.5e-6, 0.01)
    best = almgren_chriss_trajectory(order, risk_aversion)
    assert best.sum() == pytest.approx(1e6, rel=1e-12)
    assert (best >= 0).all()
    other = best + np.random.default_rng(seed).normal(0, 1e4, periods)
    other += (1e6 - other.sum()) / periods

    def utility(sales):
        cost, variance = almgren_chriss_cost(order, sales)
        return cost + risk_aversion * variance

    assert utility(best) <= utility(other) * (1 + 1e-12)


def test_almgren_chriss_is_what_a_solver_finds():
    def utility(sales):
        cost, variance = almgren_chriss_cost(ORDER, np.append(sales, 1 - sales.sum()) * 1e6)
        return (cost + 1e-6 * variance) / 1e6

    found = minimize(utility, np.full(4, 0.2), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(almgren_chriss_trajectory(ORDER, 1e-6)[:4] / 1e6, found, atol=1e-6)


def test_frontier_trades_cost_for_variance():
    aversion = np.concatenate([[0.0], np.logspace(-16, 3, 60)])
    frontier = almgren_chriss_frontier(ORDER, aversion)
    assert frontier.sales.shape == (61, 5)
    assert np.isfinite(frontier.sales).all()
    assert (np.diff(frontier.expected_cost) >= -1e-6).all()
    assert (np.diff(frontier.cost_variance) <= 1e-2).all()
    # Without end: all at once in the first period, none of it left.
    np.testing.assert_allclose(frontier.sales[-1], [1e6, 0, 0, 0, 0], atol=1)
    np.testing.assert_allclose(frontier.sales[1], 2e5, rtol=1e-6)


def test_almgren_chriss_refusals():
    with pytest.raises(ValueError, match=r"order_shares = 0\b.*above 0"):
        AlmgrenChriss(0, 5, 5, 0.95, 0, 1e-6, 0)
    with pytest.raises(ValueError, match="volatility = nan"):
        AlmgrenChriss(1, 5, 5, math.nan, 0, 1e-6, 0)
    with pytest.raises(ValueError, match="take more periods or a larger temporary_impact"):
        AlmgrenChriss(1, 5, 1, 0.95, 1e-6, 1e-6, 0)
    with pytest.raises(ValueError, match="risk_aversion = -1"):
        almgren_chriss_trajectory(ORDER, -1)
    with pytest.raises(ValueError, match="last axis must be the 5 periods"):
        almgren_chriss_cost(ORDER, np.ones(4))
    with pytest.raises(ValueError, match="nothing left"):
        almgren_chriss_cost(ORDER, np.ones(5))


# -- Avellaneda and Stoikov


def test_avellaneda_stoikov_formulas():
    # By hand: gamma 0.1, sigma 2, k 1.5, q 3, half the time left.
    assert avellaneda_stoikov_reservation_price(100.0, 3, 0.5, 4.0, 0.1) == pytest.approx(100 - 0.6)
    spread = 0.1 * 4 * 0.5 + 20 * math.log(1 + 0.1 / 1.5)
    assert avellaneda_stoikov_spread(0.5, 4.0, 0.1, 1.5) == pytest.approx(spread)
    bid, ask = avellaneda_stoikov_depths(3, 0.5, 4.0, 0.1, 1.5)
    assert bid == pytest.approx(spread / 2 + 0.6)
    assert ask == pytest.approx(spread / 2 - 0.6)


@pytest.mark.parametrize(("risk_aversion", "spread"), [(0.1, 1.49), (0.01, 1.35)])
def test_avellaneda_stoikov_published_spreads(risk_aversion, spread):
    """The constant spread of their tables is the average of the formula over the horizon."""
    time_left = 1 - np.arange(200) * 0.005
    average = avellaneda_stoikov_spread(time_left, 4.0, risk_aversion, 1.5).mean()
    assert average == pytest.approx(spread, abs=0.005)
    assert avellaneda_stoikov_spread(0.5, 4.0, risk_aversion, 1.5) == pytest.approx(spread, abs=0.005)


def test_without_risk_aversion_the_spread_is_two_over_k():
    assert avellaneda_stoikov_spread(1.0, 4.0, 1e-12, 1.5) == pytest.approx(2 / 1.5)
    with pytest.raises(ValueError, match=r"risk_aversion = 0\b"):
        avellaneda_stoikov_spread(1.0, 4.0, 0, 1.5)


# -- Cartea and Jaimungal


def test_cartea_jaimungal_published_value():
    best = cartea_jaimungal(**TEXTBOOK, **PENALTIES, horizon=1, inventory_limit=100, steps=100)
    assert best.value[0, 100] == pytest.approx(68.25583, abs=5e-6)
    assert best.bid_depth[0, 100] == pytest.approx(0.672137, abs=5e-7)
    assert best.ask_depth[0, 100] == pytest.approx(0.672137, abs=5e-7)
    np.testing.assert_allclose(best.bid_depth, best.ask_depth[:, ::-1])
    assert np.isinf(best.bid_depth[:, -1]).all()
    assert np.isinf(best.ask_depth[:, 0]).all()


@pytest.mark.parametrize("steps", [1, 7])
def test_cartea_jaimungal_is_the_matrix_exponential(steps):
    limit, phi, alpha = 15, 0.02, 0.01
    best = cartea_jaimungal(
        **TEXTBOOK,
        running_penalty=phi,
        terminal_penalty=alpha,
        horizon=0.5,
        inventory_limit=limit,
        steps=steps,
    )
    q = np.arange(-limit, limit + 1.0)
    matrix = np.diag(-phi * 1.5 * q**2) + 140 / math.e * (np.eye(len(q), k=1) + np.eye(len(q), k=-1))
    for step in range(steps + 1):
        left = 0.5 * (1 - step / steps)
        w = scipy.linalg.expm(matrix * left) @ np.exp(-1.5 * alpha * q**2)
        np.testing.assert_allclose(best.value[step], np.log(w) / 1.5, rtol=1e-10, atol=1e-10)


def test_cartea_jaimungal_solves_its_equation():
    """The nonlinear equation before the substitution, with fees, solved by someone else's stepper."""
    limit, phi, alpha, fee, half_spread, horizon = 12, 0.05, 0.02, 0.03, 0.1, 0.4
    q = np.arange(-limit, limit + 1.0)
    # Earned per unit of time by a quote at its best depth: lambda / k exp(-k depth).
    depth = lambda gain: 1 / 1.5 + fee - gain  # noqa: E731

    def slope(_, h):
        rate = -phi * q**2
        gain = np.diff(h)
        rate[:-1] += 140 / 1.5 * np.exp(-1.5 * depth(gain))
        rate[1:] += 140 / 1.5 * np.exp(-1.5 * depth(-gain))
        return rate

    start = -alpha * q**2 - half_spread * abs(q)
    solved = solve_ivp(slope, (0, horizon), start, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    best = cartea_jaimungal(
        **TEXTBOOK,
        running_penalty=phi,
        terminal_penalty=alpha,
        horizon=horizon,
        inventory_limit=limit,
        steps=3,
        fee_per_share=fee,
        liquidation_half_spread=half_spread,
    )
    np.testing.assert_allclose(best.value[0], solved, atol=1e-8)
    np.testing.assert_allclose(best.bid_depth[0, :-1], depth(np.diff(solved)), atol=1e-8)
    np.testing.assert_allclose(best.ask_depth[0, 1:], depth(-np.diff(solved)), atol=1e-8)


def test_cartea_jaimungal_far_from_zero():
    """w spans e^-1500 here: nothing overflows, and depths fall with inventory everywhere."""
    best = cartea_jaimungal(
        **TEXTBOOK, running_penalty=1, terminal_penalty=0.1, horizon=1, inventory_limit=100, steps=50
    )
    assert np.isfinite(best.value).all()
    assert (np.diff(best.bid_depth[:, :-1]) > 0).all()
    rich = cartea_jaimungal(
        arrival_rate=1e5, depth_decay=1.5, **PENALTIES, horizon=1, inventory_limit=10, steps=50
    )
    assert np.isfinite(rich.value).all()
    with pytest.raises(ValueError, match="take more steps or a lower limit"):
        cartea_jaimungal(
            **TEXTBOOK, running_penalty=10, terminal_penalty=0, horizon=1, inventory_limit=120, steps=1
        )


@pytest.mark.parametrize("name", ["arrival_rate", "depth_decay", "horizon", "inventory_limit", "steps"])
def test_cartea_jaimungal_refusals(name):
    arguments = {**TEXTBOOK, **PENALTIES, "horizon": 1, "inventory_limit": 5, "steps": 2, name: -1}
    with pytest.raises(ValueError, match=f"{name} = -1"):
        cartea_jaimungal(**arguments)


# -- exact values of any quotes


def test_backward_induction_becomes_the_matrix_exponential():
    """The difference halves with the step, and Richardson's extrapolation leaves almost none."""
    values = []
    for steps in (400, 800):
        best = cartea_jaimungal(**TEXTBOOK, **PENALTIES, horizon=1, inventory_limit=30, steps=steps)
        value = quote_table_value(
            best.bid_depth[:-1], best.ask_depth[:-1], **TEXTBOOK, **PENALTIES, dt=1 / steps
        )
        values.append((value - best.value)[0, 20:41])
    np.testing.assert_allclose(values[1], values[0] / 2, rtol=0.05, atol=5e-4)
    assert abs(2 * values[1] - values[0])[10] < 5e-4


@pytest.mark.parametrize("shift", [0.03, -0.03])
def test_other_quotes_are_worth_less(shift):
    steps = 1000
    best = cartea_jaimungal(**TEXTBOOK, **PENALTIES, horizon=1, inventory_limit=30, steps=steps)
    terms = {**TEXTBOOK, **PENALTIES, "dt": 1 / steps}
    value = quote_table_value(best.bid_depth[:-1], best.ask_depth[:-1], **terms)[0, 30]
    assert quote_table_value(best.bid_depth[:-1] + shift, best.ask_depth[:-1] + shift, **terms)[0, 30] < value
    assert quote_table_value(best.bid_depth[:-1] + shift, best.ask_depth[:-1] - shift, **terms)[0, 30] < value


@pytest.mark.parametrize("fills", ["at_most_one", "poisson"])
def test_value_and_distribution_by_enumeration(fills):
    """Every path of fills through three steps, written out."""
    steps, limit, dt, fee, half_spread = 3, 2, 0.01, 0.02, 0.3
    rng = np.random.default_rng(5)
    bid, ask = rng.uniform(0, 1.5, (2, steps, 2 * limit + 1))
    bid[1, 2] = np.inf
    value = quote_table_value(
        bid,
        ask,
        **TEXTBOOK,
        dt=dt,
        running_penalty=2.0,
        terminal_penalty=0.1,
        fills=fills,
        fee_per_share=fee,
        liquidation_half_spread=half_spread,
    )
    chances = inventory_distribution(bid, ask, **TEXTBOOK, dt=dt, fills=fills, start=1)
    total, final = 0.0, np.zeros(2 * limit + 1)

    def chance_of(depth, shown):
        mean = 140 * dt * math.exp(-1.5 * depth) if shown else 0.0
        return min(1.0, mean) if fills == "at_most_one" else 1 - math.exp(-mean)

    for path in itertools.product([(0, 0), (1, 0), (0, 1), (1, 1)], repeat=steps):
        q, chance, money = 1, 1.0, 0.0
        for step, (buy, sell) in enumerate(path):
            p_bid = chance_of(bid[step, q + limit], q < limit)
            p_ask = chance_of(ask[step, q + limit], q > -limit)
            chance *= (p_bid if buy else 1 - p_bid) * (p_ask if sell else 1 - p_ask)
            if chance == 0:
                break
            money += buy * (bid[step, q + limit] - fee) if buy else 0.0
            money += sell * (ask[step, q + limit] - fee) if sell else 0.0
            q += buy - sell
            money -= 2.0 * q * q * dt
        if chance > 0:
            total += chance * (money - 0.1 * q * q - half_spread * abs(q))
            final[q + limit] += chance
    assert value[0, 1 + limit] == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(chances[-1], final, atol=1e-14)
    np.testing.assert_allclose(chances.sum(1), 1.0)


def test_forward_and_backward_agree():
    """The value is the sum over time of what is earned and paid, weighted with the forward probabilities."""
    steps = 200
    best = cartea_jaimungal(**TEXTBOOK, **PENALTIES, horizon=1, inventory_limit=40, steps=steps)
    bid, ask = np.maximum(best.bid_depth[:-1], 0), np.maximum(best.ask_depth[:-1], 0)
    terms = {**TEXTBOOK, "dt": 1 / steps}
    chances = inventory_distribution(bid, ask, **terms)
    earned = sum(
        fill_probability(depth, **terms) * np.where(np.isfinite(depth), depth, 0.0) for depth in (bid, ask)
    )
    squared = best.inventory**2.0
    total = (
        (chances[:-1] * earned).sum()
        - 0.01 / steps * (chances[1:] @ squared).sum()
        - 0.001 * chances[-1] @ squared
    )
    value = quote_table_value(bid, ask, **terms, **PENALTIES)
    assert total == pytest.approx(value[0, 40], rel=1e-12)


def test_symmetric_quotes_have_the_inventory_of_a_random_walk():
    """Bernoulli fills of probability p on both sides: variance 2 p (1 - p) per step."""
    depth = np.full((200, 201), 0.745)
    chances = inventory_distribution(depth, depth, **TEXTBOOK, dt=0.005)
    p = 0.7 * math.exp(-1.5 * 0.745)
    sd = math.sqrt(chances[-1] @ np.arange(-100, 101) ** 2.0)
    assert sd == pytest.approx(math.sqrt(400 * p * (1 - p)))
    assert sd == pytest.approx(8.4, abs=0.05)


def test_quote_table_refusals():
    terms = {**TEXTBOOK, **PENALTIES, "dt": 0.01}
    with pytest.raises(ValueError, match="both must be"):
        quote_table_value(np.ones((3, 4)), np.ones((3, 4)), **terms)
    bad = np.ones((3, 5))
    bad[2, 0] = np.nan
    with pytest.raises(ValueError, match="ask_depth = nan at step 2 and inventory -2"):
        quote_table_value(np.ones((3, 5)), bad, **terms)
    with pytest.raises(ValueError, match="dt = 0"):
        quote_table_value(np.ones((3, 5)), np.ones((3, 5)), **{**terms, "dt": 0})
    with pytest.raises(ValueError, match="fills = 'all'"):
        fill_probability(np.ones(1), **TEXTBOOK, dt=0.01, fills="all")
    with pytest.raises(ValueError, match="start = 3 shares is beyond"):
        inventory_distribution(np.ones((3, 5)), np.ones((3, 5)), **TEXTBOOK, dt=0.01, start=3)
