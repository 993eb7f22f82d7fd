"""Evaluation of agents: same orders for all, complete costs, hand-made intervals, nothing of the future in a weight."""

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant_assets.backtests import agents
from quant_assets.backtests.agents import (
    AGENT,
    CAUSED,
    EARNED,
    OBJECTIVE,
    SHORTFALL,
    AgentEvaluationError,
    estimate,
    execution_results,
    market_making_results,
    paired,
    portfolio_results,
    verdict,
)
from quant_assets.backtests.pages.agent_page import write_agent_page
from quant_assets.backtests.pages.report_index import write_index
from quant_assets.environments import closed_form
from quant_assets.environments.execution import (
    ExecutionMarket,
    ExecutionParameters,
    vwap_schedule,
)
from quant_assets.environments.market_making import (
    MarketMaking,
    MarketMakingMarket,
    MarketMakingParameters,
    textbook_market,
)
from quant_assets.environments.portfolio import PortfolioMarket, PortfolioParameters, PortfolioRollout
from quant_assets.posterior.priors import HestonParameters
from quant_assets.simulation.intraday import IntradayModel, simulate_days
from quant_assets.simulation.markets import execution_market, market_making_market

MODEL = IntradayModel()
PARAMETERS = ExecutionParameters(slippage="none")


@pytest.fixture(scope="module")
def days() -> Any:
    """Eighty simulated days, two of each of 40 draws."""
    ones = np.ones(40)
    draws = HestonParameters(0.1 * ones, 5.0 * ones, 0.03 * ones, 0.5 * ones, -0.6 * ones, 0.03 * ones)
    return simulate_days(draws, days_per_draw=2, seed=3, mid0=50.0)


@pytest.fixture(scope="module")
def market(days: Any) -> ExecutionMarket:
    return execution_market(days, MODEL)


def constant(value: float, width: int = 1) -> Any:
    return lambda seen: np.full((len(seen), width), value, np.float32)


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_a_paired_interval_is_the_textbook_t_interval() -> None:
    ours, theirs = np.array([5.0, 7.0, 6.0, 9.0]), np.array([4.0, 4.0, 4.0, 4.0])
    found = paired(ours, theirs)
    # Differences 1, 3, 2, 5: mean 2.75, sd sqrt(8.75 / 3), t(0.975, 3) = 3.182446.
    reach = 3.1824463 * np.sqrt(8.75 / 3) / 2
    assert found.mean == 2.75
    assert found.sd == pytest.approx(np.sqrt(8.75 / 3))
    assert (found.low, found.high) == pytest.approx((2.75 - reach, 2.75 + reach))


def test_days_of_one_draw_count_once() -> None:
    values = np.array([1.0, 3.0, 6.0, 8.0, 4.0, 6.0])
    found = estimate(values, np.array([7, 7, 9, 9, 8, 8]))
    assert found.size == 6
    assert (found.low, found.high) == pytest.approx(estimate(np.array([2.0, 7.0, 5.0]))[3:])
    assert np.isnan(estimate(values, np.zeros(6)).low), "one group says nothing about the next"


def test_pairs_need_the_same_paths() -> None:
    with pytest.raises(AgentEvaluationError, match="same paths"):
        paired(np.zeros(3), np.zeros(4))


# -- execution ---------------------------------------------------------------------------------------------------------


def test_every_strategy_has_the_same_orders_and_sells_all_of_them(market: ExecutionMarket) -> None:
    found = execution_results(market, PARAMETERS, {0: constant(0.2), 3: constant(0.9)}, seed=5)
    everyone = [*found.agents.values(), *found.baselines.values()]
    for outcome in everyone:
        assert outcome.missing_shares.max() < 1e-6
        assert outcome.left_fraction[0] == 1
        assert outcome.left_by_minute.shape == (80, 391)
        # Dollars of shortfall over basis points of it are the order's value: the same for all.
        value = outcome.costs.shortfall_dollars / outcome.costs.implementation_shortfall_bps * 1e4
        np.testing.assert_allclose(value, found.order_shares * market.mid[:, 0])
        parts = sum(getattr(outcome.costs, name) for name in agents.PARTS)
        np.testing.assert_allclose(parts, outcome.measure(SHORTFALL), atol=1e-9)


def test_costs_are_complete_whatever_the_training_left_out(market: ExecutionMarket) -> None:
    none, complete = (
        execution_results(
            market, replace(PARAMETERS, slippage=slippage), {0: constant(0.3)}, 5, frontier=False
        )  # type: ignore[arg-type]
        for slippage in ("none", "at_sale")
    )
    np.testing.assert_array_equal(none.agents[0].measure(SHORTFALL), complete.agents[0].measure(SHORTFALL))
    assert np.abs(none.agents[0].costs.slippage_bps).mean() > 1
    np.testing.assert_array_equal(
        none.agents[0].measure(CAUSED),
        none.agents[0].measure(SHORTFALL) - none.agents[0].costs.slippage_bps,
    )


def test_a_policy_that_does_vwap_costs_what_vwap_costs(market: ExecutionMarket) -> None:
    parameters = replace(PARAMETERS, whole_shares=False, minutes_per_decision=1, max_pace=4.0)
    found = execution_results(market, parameters, {0: constant(0.25)}, seed=1, frontier=False)
    for ours, theirs in zip(found.agents[0].costs, found.baselines["vwap"].costs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    for row in agents.execution_differences(found, 0, market.draw_id):
        if row["baseline"] == "vwap":
            assert row["difference"] == pytest.approx(0, abs=1e-6)


def test_the_same_seed_gives_the_same_results_and_another_one_other_orders(market: ExecutionMarket) -> None:
    first, again, other = (
        execution_results(market, PARAMETERS, {0: constant(0.4)}, seed, frontier=False) for seed in (2, 2, 3)
    )
    np.testing.assert_array_equal(first.order_shares, again.order_shares)
    np.testing.assert_array_equal(first.agents[0].measure(SHORTFALL), again.agents[0].measure(SHORTFALL))
    assert (first.order_shares != other.order_shares).any()


def test_almgren_chriss_sells_the_order_early_and_is_twap_without_risk_aversion(
    market: ExecutionMarket,
) -> None:
    orders = np.rint(0.05 * market.expected_volume_shares.sum(axis=1))
    for volume_clock in (False, True):
        for urgency in (0.0, 1.0, 9.0, 300.0):
            aversion = agents.almgren_chriss_risk_aversion(market, PARAMETERS, orders, urgency)
            sold = agents.almgren_chriss_schedules(market, PARAMETERS, orders, aversion, volume_clock)
            np.testing.assert_array_equal(sold.sum(axis=1), orders)
            assert sold.min() >= 0
            if urgency == 0 and not volume_clock:
                assert np.ptp(sold) - np.ptp(orders / 390) <= 2
            if urgency == 0 and volume_clock:
                assert np.abs(sold - vwap_schedule(market, PARAMETERS, order_shares=orders)).max() <= 1
            assert (sold[:, :195].sum(axis=1) >= 0.45 * orders).all()


def test_the_typical_order_has_the_urgency_that_was_asked_for(market: ExecutionMarket) -> None:
    """kappa from the published formula, on the linear law that costs as much as the square root at 5 %."""
    orders = 0.05 * market.expected_volume_shares.sum(axis=1)
    aversion = agents.almgren_chriss_risk_aversion(market, PARAMETERS, orders, 2.0)
    path = int(np.argsort(market.daily_volatility)[len(orders) // 2])
    sigma = market.daily_volatility[path] * market.mid[path, 0]
    model = closed_form.AlmgrenChriss(
        orders[path], 1.0, 390, sigma, 0.0, 0.11 * sigma * np.sqrt(0.05) / orders[path], 0.0
    )
    assert closed_form.almgren_chriss_kappa(model, aversion[path]) == pytest.approx(2.0, rel=0.02)


def test_an_agent_with_a_risk_aversion_is_compared_under_its_own(market: ExecutionMarket) -> None:
    parameters = replace(PARAMETERS, risk_aversion=1e-4, order_shares=1e5)
    found = execution_results(market, parameters, {0: constant(0.2)}, seed=1, urgency=0.0, frontier=False)
    twap, averse = (found.baselines[name].left_fraction for name in ("twap", "almgren_chriss"))
    assert averse[195] < twap[195] - 0.1


def test_the_frontier_trades_cost_for_risk(market: ExecutionMarket) -> None:
    found = execution_results(market, PARAMETERS, {0: constant(0.2)}, seed=1)
    for frontier in found.frontiers.values():
        assert (np.diff(frontier.sd) < 0).all()
        assert frontier.mean[-1] > frontier.mean[0]
    by_volume, by_minute = found.frontiers["expected volume"], found.frontiers["minutes"]
    assert by_volume.mean[0] < by_minute.mean[0], "who follows the volume pays less impact"
    vwap = found.baselines["vwap"]
    assert by_volume.mean[0] == pytest.approx(vwap.measure(CAUSED).mean(), rel=1e-3)


def test_rows_name_every_strategy_and_seed_once(market: ExecutionMarket) -> None:
    found = execution_results(
        market, PARAMETERS, {4: constant(0.2), 1: constant(0.8)}, seed=1, frontier=False
    )
    rows = agents.execution_rows(found, 4, market.draw_id)
    assert [(row["strategy"], row["seed"], row["chosen"], row["seeds"]) for row in rows] == [
        ("twap", None, False, 0),
        ("vwap", None, False, 0),
        ("almgren_chriss", None, False, 0),
        (AGENT, 4, True, 1),
        (AGENT, 1, False, 1),
        (AGENT, None, False, 2),
    ]
    means = [row[f"{SHORTFALL}_mean"] for row in rows]
    assert means[5] == pytest.approx((means[3] + means[4]) / 2)
    assert rows[5]["seed_sd"] == pytest.approx(abs(means[3] - means[4]) / np.sqrt(2))
    assert rows[3]["seed_sd"] is None
    pairs = agents.execution_differences(found, 4, market.draw_id)
    assert len(pairs) == 3 * 2 * 3
    with pytest.raises(AgentEvaluationError, match="chosen seed 9"):
        agents.execution_rows(found, 9, market.draw_id)


def test_rows_of_a_symbol_are_those_of_its_paths(market: ExecutionMarket) -> None:
    found = execution_results(
        market, PARAMETERS, {0: constant(0.2), 1: constant(0.4)}, seed=1, frontier=False
    )
    symbol = np.where(np.arange(80) < 30, "A", "B")
    parts = {name: (part, keep) for name, part, keep in agents.by_symbol(found, symbol)}
    assert list(parts) == ["all", "A", "B"]
    part, keep = parts["A"]
    np.testing.assert_array_equal(part.order_shares, found.order_shares[:30])
    rows = agents.execution_rows(part, 0, market.draw_id[keep])
    assert rows[3]["paths"] == 30
    assert rows[3][f"{SHORTFALL}_mean"] == pytest.approx(found.agents[0].measure(SHORTFALL)[:30].mean())
    assert len(list(agents.by_symbol(found, np.full(80, "A")))) == 1


# -- market making -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quotes(days: Any) -> MarketMakingMarket:
    return market_making_market(days, minutes_per_step=5)


def test_market_makers_meet_the_same_orders_and_the_moves_are_charged(quotes: MarketMakingMarket) -> None:
    parameters = MarketMakingParameters(reward_mid_moves=False, reward_scale=0.1)
    wide = 1 / parameters.depth_decay / parameters.max_depth
    found = market_making_results(quotes, parameters, {0: constant(wide, 2), 1: constant(0.9, 2)}, seed=1)
    # The first policy is the fixed spread.
    for ours, theirs in zip(found.agents[0], found.baselines["fixed_spread"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    spread = found.agents[0]
    np.testing.assert_allclose((found.inventory * spread.time_at.mean(axis=0)).sum(), 0, atol=2)
    assert spread.objective.std() > 1.2 * spread.objective_without_market_move.std()
    assert found.agents[1].spread.mean() == pytest.approx(2 * 0.9 * 3, rel=1e-6)
    assert found.exact_time_at is not None
    np.testing.assert_allclose(found.exact_time_at.sum(), 1)
    again = market_making_results(quotes, parameters, {0: constant(wide, 2)}, seed=1)
    np.testing.assert_array_equal(again.agents[0].objective, found.agents[0].objective)


def test_without_moves_the_objective_is_what_the_closed_form_says() -> None:
    parameters = MarketMakingParameters(running_penalty=0.5)
    market = textbook_market(3_000, 200, 100.0, 2.0, 1.0, seed=1)
    found = market_making_results(market, parameters, {0: constant(0.5, 2)}, seed=2)
    environment = MarketMaking(market, parameters)
    from quant_assets.environments.market_making import cartea_jaimungal_table, table_value

    exact = table_value(environment, cartea_jaimungal_table(environment))[0, parameters.inventory_limit]
    best = found.baselines["cartea_jaimungal"]
    earned, complete = estimate(best.measure(EARNED)), estimate(best.measure(OBJECTIVE))
    assert earned.low < exact < earned.high
    assert complete.high - complete.low > earned.high - earned.low
    assert found.exact_time_at is not None
    assert np.abs(found.exact_time_at - best.time_at.mean(axis=0)).max() < 0.01
    # gamma sigma^2 / 2 is the running penalty.
    assert found.risk_aversion * 2.0**2 / 2 == pytest.approx(0.5)


def test_without_a_penalty_a_risk_aversion_must_be_given(quotes: MarketMakingMarket) -> None:
    parameters = MarketMakingParameters(running_penalty=0.0)
    with pytest.raises(AgentEvaluationError, match="set risk_aversion"):
        market_making_results(quotes, parameters, {0: constant(0.5, 2)}, seed=1)
    assert market_making_results(quotes, parameters, {0: constant(0.5, 2)}, 1, risk_aversion=0.01).agents


# -- portfolio ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shares() -> PortfolioMarket:
    """Three assets over 400 sessions, two features."""
    rng = np.random.default_rng(0)
    periods, assets = 400, 3
    day, night = rng.normal(0.0004, 0.01, (2, periods, assets))
    following = np.full((periods, assets), np.nan)
    following[:-2] = np.expm1(np.log1p(day[1:-1]) + night[2:])
    return PortfolioMarket(
        sessions=np.datetime64("2010-01-04") + np.arange(periods),
        symbols=("A", "B", "C"),
        features=rng.normal(size=(periods, 2, assets)),
        feature_names=("x", "y"),
        next_return=following,
        open_to_close=day,
        log_return=np.log1p(day) + night,
        tradable=np.ones((periods, assets), bool),
        volatility=np.full((periods, assets), 0.01),
    ).between(dt.date(2010, 6, 1), dt.date(2011, 2, 1))


def tilting(seen: np.ndarray) -> np.ndarray:
    """Depends on the features and on what is held."""
    return np.tanh(seen[:, -7:-3] + seen[:, :4] * 0.2 + np.resize(seen[:, -3:], (len(seen), 4))).astype(
        np.float32
    )


def test_portfolios_are_compared_on_the_same_sessions_net_of_costs(shares: PortfolioMarket) -> None:
    parameters = PortfolioParameters(look_back=5, episode_steps=16)
    found = portfolio_results(shares, parameters, {0: tilting, 1: constant(-1.0, 4)})
    everyone: list[PortfolioRollout] = [*found.agents.values(), *found.baselines.values()]
    for rollout in everyone:
        assert rollout.sessions[0] == np.datetime64("2010-06-01")
        np.testing.assert_array_equal(rollout.sessions, everyone[0].sessions)
        np.testing.assert_allclose(rollout.equity[1:] / rollout.equity[:-1] - 1, rollout.net_return)
        assert rollout.cost.sum() > 0
    # Equal scores are equal weights of three assets and cash.
    np.testing.assert_allclose(found.agents[1].weights, 0.25)
    levels, differences = agents.portfolio_rows(found, 0, seed=1)
    assert [row["strategy"] for row in levels] == [*found.baselines, AGENT, AGENT, AGENT]
    for row in levels:
        assert row["sharpe_ratio_low"] < row["sharpe_ratio"] < row["sharpe_ratio_high"]
        assert row["decisions"] == len(everyone[0].sessions)
    ours = next(r for r in differences if r["chosen"] and r["measure"] == "sharpe_ratio")
    by_name = {(r["strategy"], r["seed"]): r["sharpe_ratio"] for r in levels}
    assert ours["difference"] == by_name[AGENT, 0] - by_name[ours["baseline"], None]
    assert ours["low"] < ours["difference"] < ours["high"]
    equity = agents.equity_rows(found, shares)
    assert len(equity) == len(everyone) * len(everyone[0].sessions)
    # A decision trades at the next open and is paid at the one after it.
    assert min(row["session"] for row in equity) == dt.date(2010, 6, 3)
    assert max(row["session"] for row in equity) == shares.sessions[-1].item()


def test_a_policy_that_peeks_is_caught_by_the_cut_and_an_honest_one_is_not(shares: PortfolioMarket) -> None:
    parameters = PortfolioParameters(look_back=5)
    cut = shares.between(dt.date(2010, 6, 1), dt.date(2010, 10, 1))
    whole, part = (agents.run_portfolio_policy(m, parameters, tilting) for m in (shares, cut))
    assert not agents.truncation_problems(whole, part)
    assert len(part.sessions) < len(whole.sessions)

    def peeking(m: PortfolioMarket) -> PortfolioMarket:
        return replace(m, features=m.features - m.features.mean(axis=0))

    whole, part = (agents.run_portfolio_policy(peeking(m), parameters, tilting) for m in (shares, cut))
    assert agents.truncation_problems(whole, part)


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "holds", "says"),
    [
        (-3.0, -1.0, True, "it beats it"),
        (-3.0, 0.05, True, "it matches it within 0.1 bps"),
        (-3.0, 1.0, False, "neither beaten nor matched"),
        (1.0, 3.0, False, "it is worse"),
        (np.nan, np.nan, False, "too few"),
    ],
)
def test_a_verdict_reads_the_unfavourable_end_against_the_best_baseline(
    low: float, high: float, holds: bool, says: str
) -> None:
    levels = [{"strategy": "good", "m_mean": 1.0}, {"strategy": "bad", "m_mean": 2.0}]
    pair = {"measure": "m", "count": 9, "difference": (low + high) / 2, "seeds": 2, "seed_sd": 0.5}
    differences = [
        {**pair, "baseline": "bad", "chosen": True, "seed": 1, "low": -9.0, "high": -8.0},
        {**pair, "baseline": "good", "chosen": True, "seed": 1, "low": low, "high": high},
        {**pair, "baseline": "good", "chosen": False, "seed": None, "low": low, "high": high},
    ]
    found = verdict(levels, differences, "m", lower_is_better=True, tolerance=0.1, unit="bps")
    assert found.holds == holds
    assert says in found.text
    assert "good" in found.text
    mirrored = [
        {**row, "low": -row["high"], "high": -row["low"], "difference": -row["difference"]}
        for row in differences
    ]
    rewards = [{"strategy": "good", "m_mean": 2.0}, {"strategy": "bad", "m_mean": 1.0}]
    assert verdict(rewards, mirrored, "m", lower_is_better=False, tolerance=0.1, unit="$").holds == holds


# -- pages -------------------------------------------------------------------------------------------------------------


def test_a_page_says_what_came_out_and_the_index_lists_it_apart(tmp_path: Path) -> None:
    rows = [{"strategy": "TWAP <1>", "paths": 3}]
    facts = {"model": "sac_execution v1", "window": "unseen", "paths": 3, "levels": [{"low": float("nan")}]}
    path = write_agent_page(
        tmp_path / "backtests",
        "execution",
        "It is worse & says so.",
        ["A note."],
        {"Days": rows, "None": []},
        {},
        facts,
    )
    page = path.read_text()
    assert "It is worse &amp; says so." in page
    assert "TWAP &lt;1&gt;" in page
    assert ">None<" not in page
    assert json.loads(path.with_suffix(".json").read_text())["agent"]["levels"] == [{"low": None}]
    (tmp_path / "backtests" / "sma_crossover.html").write_text("a strategy")
    index = write_index(tmp_path).read_text()
    strategies, agents_part = index.split("<h2>Agents</h2>")
    assert "backtests/sma_crossover.html" in strategies
    assert "backtests/execution.html" in agents_part
    assert "backtests/execution.html" not in strategies
    assert "It is worse &amp; says so." in agents_part
