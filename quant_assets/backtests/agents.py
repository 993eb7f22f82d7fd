"""How agents compare with the rules that they have to beat, on days and sessions that they never saw. Pure.

Belongs here: running policies and baselines on the same paths and orders, what each of them cost or earned, paired differences
with intervals, rows of the tables. Does not belong here: where policies and days come from (`agent_assets.py`), drawing
(`agent_plots.py`), what an environment pays (`quant_assets/environments`).

Pairs. Every strategy meets the same paths, the same order sizes and the same market orders, so what is random about a day cancels in
a difference. Intervals of execution and market making are Student's t over independent groups of paths: days of one posterior draw
share its parameters, so they are averaged first. With a thousand groups that is the normal interval; the tails of a day's
cost are light enough for it. Returns of a portfolio follow one another in time: theirs are percentiles of a moving-block bootstrap
over sessions (`models.evaluation.session_resamples`), paired because both sides are resampled together.

Two sources of chance are kept apart. An interval over paths holds the trained policies fixed; the standard deviation over seeds
says how much another training would have changed the number.

The market's own move. A mid is a martingale up to a drift of some basis points a day, so its move adds nothing to the mean of a
difference but tens of basis points of noise to every path. Costs and rewards are therefore given twice: with the move, which is the
implementation shortfall (the objective) as defined, and without it, which is the part that a strategy causes and has, up to that drift, the same mean
with a far narrower interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from quant_assets.environments import closed_form, market_making, portfolio
from quant_assets.environments.execution import (
    TYPICAL_PARTICIPATION,
    ExecutionCosts,
    ExecutionEpisodes,
    ExecutionMarket,
    ExecutionParameters,
    run_schedule,
    twap_schedule,
    vwap_schedule,
    whole_schedule,
)
from quant_assets.environments.market_making import (
    MarketMaking,
    MarketMakingMarket,
    MarketMakingParameters,
    Rollout,
)
from quant_assets.environments.portfolio import (
    UNKNOWN_ROWS,
    PortfolioEpisodes,
    PortfolioMarket,
    PortfolioParameters,
    PortfolioRollout,
)
from quant_assets.models.evaluation import session_resamples

# Observations of shape (n, dimensions) -> actions of shape (n, actions); `OnnxPolicy.act` is one.
Act = Callable[[np.ndarray], np.ndarray]

AGENT = "sac"
CONFIDENCE = 0.95
BAND = (0.1, 0.9)  # quantiles over paths that are drawn around a mean
URGENCIES = (0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 9.0)  # of the frontier
SHORTFALL, CAUSED = "implementation_shortfall_bps", "cost_without_market_move_bps"
PARTS = ("slippage_bps", "spread_bps", "temporary_impact_bps", "permanent_impact_bps", "leftover_bps")
OBJECTIVE, EARNED = "objective_dollars", "objective_without_market_move_dollars"


class AgentEvaluationError(ValueError):
    """Something that cannot be evaluated. Names the thing, the value and the way out."""


# -- intervals ---------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean and how sure it is.

    Attributes:
        size: number of values.
        mean: of them.
        sd: of the values, not of the mean; NaN for one.
        low, high: 95 % interval of the mean; NaN where there are not two independent groups.
    """

    size: int
    mean: float
    sd: float
    low: float
    high: float


def estimate(values: np.ndarray, group: np.ndarray | None = None) -> Estimate:
    """Mean of values with Student's t interval.

    Args:
        values: shape (n,).
        group: values of one group are not independent and are averaged first, shape (n,); None: each is its own group.

    >>> estimate(np.array([1.0, 2.0, 3.0]))
    Estimate(size=3, mean=2.0, sd=1.0, low=-0.4841..., high=4.4841...)
    """
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise AgentEvaluationError(f"values have shape {values.shape}: at least one number, shape (n,)")
    independent = values
    if group is not None:
        _, member = np.unique(group, return_inverse=True)
        independent = np.bincount(member, values) / np.bincount(member)
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    mean, groups = float(independent.mean()), len(independent)
    if groups < 2:
        return Estimate(len(values), mean, sd, math.nan, math.nan)
    reach = t.ppf((1 + CONFIDENCE) / 2, groups - 1) * independent.std(ddof=1) / math.sqrt(groups)
    return Estimate(len(values), mean, sd, float(mean - reach), float(mean + reach))


def paired(ours: np.ndarray, theirs: np.ndarray, group: np.ndarray | None = None) -> Estimate:
    """`estimate` of ours less theirs, pair by pair.

    Args:
        ours, theirs: of the same paths in the same order, shape (n,).
        group: see `estimate`.
    """
    if np.shape(ours) != np.shape(theirs):
        raise AgentEvaluationError(
            f"pairs of {np.shape(ours)} and {np.shape(theirs)} values: both sides need the same paths"
        )
    return estimate(np.asarray(ours) - np.asarray(theirs), group)


# -- execution ---------------------------------------------------------------------------------------------------------


class ExecutionOutcome(NamedTuple):
    """What one strategy did with all orders.

    Attributes:
        costs: of each order, every field of shape (paths,).
        left_by_minute: fraction of the order at the instants 0..horizon before the sale there, shape (paths, horizon + 1).
        missing_shares: difference between an order and all that was sold of it, leftover included, shape (paths,).
    """

    costs: ExecutionCosts
    left_by_minute: np.ndarray
    missing_shares: np.ndarray

    @property
    def left_fraction(self) -> np.ndarray:
        """Mean over paths, shape (horizon + 1,)."""
        return self.left_by_minute.mean(axis=0, dtype=np.float64)

    @property
    def left_band(self) -> np.ndarray:
        """Quantiles `BAND` over paths, shape (2, horizon + 1)."""
        return np.quantile(self.left_by_minute, BAND, axis=0)

    def measure(self, name: str) -> np.ndarray:
        """`SHORTFALL`, `CAUSED` or a field of the costs, shape (paths,)."""
        if name == CAUSED:
            return self.costs.implementation_shortfall_bps - self.costs.slippage_bps
        return getattr(self.costs, name)


class Frontier(NamedTuple):
    """Schedules of Almgren and Chriss over urgencies: shape (points,) each, basis points.

    Attributes:
        urgency: kappa times horizon of the typical order.
        mean: of the cost without the market's move.
        sd: of the implementation shortfall.
    """

    urgency: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


class ExecutionResults(NamedTuple):
    """Strategies on the same paths and orders.

    Attributes:
        order_shares: shape (paths,).
        agents: training seed -> outcome.
        baselines: `twap`, `vwap`, `almgren_chriss` -> outcome.
        frontiers: clock (`minutes`, `expected volume`) -> frontier.
    """

    order_shares: np.ndarray
    agents: dict[int, ExecutionOutcome]
    baselines: dict[str, ExecutionOutcome]
    frontiers: dict[str, Frontier]


def execution_results(
    market: ExecutionMarket,
    parameters: ExecutionParameters,
    policies: Mapping[int, Act],
    seed: int,
    urgency: float = 1.0,
    frontier: bool = True,
) -> ExecutionResults:
    """Sell one order on every path by each agent and each schedule.

    Orders are drawn once, from `seed`, and are the same for all. Costs are complete: whatever the training left out of its
    rewards, here slippage is charged (`slippage="at_sale"`).

    Args:
        market: days that no agent has seen.
        parameters: of the training.
        policies: training seed -> policy.
        seed: of the orders.
        urgency: of Almgren and Chriss's schedule, see `almgren_chriss_risk_aversion`; an agent that was trained with a
            risk aversion of its own is compared under that one.
        frontier: whether to compute the frontiers.
    """
    parameters = replace(parameters, slippage="at_sale")
    rows = np.arange(market.paths)
    environment = ExecutionEpisodes(market, parameters, n=market.paths)
    environment.reset(np.random.default_rng(seed), rows)
    orders = environment.order_shares.copy()
    agents = {}
    for training_seed, act in policies.items():
        agents[training_seed] = run_execution_policy(environment, act, seed)
        if not np.array_equal(environment.order_shares, orders):
            raise AgentEvaluationError(f"seed {training_seed} was given other orders than the schedules")
    if parameters.risk_aversion > 0:
        aversion = np.full(market.paths, parameters.risk_aversion)
    else:
        aversion = almgren_chriss_risk_aversion(market, parameters, orders, urgency)
    schedules = {
        "twap": twap_schedule(parameters, orders),
        "vwap": vwap_schedule(market, parameters, rows, orders),
        "almgren_chriss": almgren_chriss_schedules(market, parameters, orders, aversion),
    }
    return ExecutionResults(
        orders,
        agents,
        {name: _schedule_outcome(market, parameters, sold, orders) for name, sold in schedules.items()},
        {
            name: almgren_chriss_frontier(market, parameters, orders, volume_clock=volume_clock)
            for name, volume_clock in (("minutes", False), ("expected volume", True))
            if frontier
        },
    )


def run_execution_policy(environment: ExecutionEpisodes, act: Act, seed: int) -> ExecutionOutcome:
    """One policy on every path of the environment's market, which has as many paths as episodes."""
    observation = environment.reset(np.random.default_rng(seed), np.arange(environment.n))
    orders = environment.order_shares.copy()
    total = ExecutionCosts(*(np.zeros(environment.n) for _ in ExecutionCosts._fields))
    sold = []
    for _ in range(environment.steps):
        observation, _, _, _, info = environment.step(act(observation))
        total = ExecutionCosts(*(sum_ + info[name] for name, sum_ in total._asdict().items()))
        sold.append(info["sold_by_minute"])
    return _outcome(total, np.concatenate(sold, axis=1), orders)


def almgren_chriss_risk_aversion(
    market: ExecutionMarket, parameters: ExecutionParameters, order_shares: np.ndarray, urgency: float
) -> np.ndarray:
    """Risk aversion of a seller who is equally averse, relative to the order, to the risk of every order.

    lambda times the order's value is one number for all orders: the one with which a typical order (5 % of the expected volume, at the
    market's median volatility) has kappa * horizon = `urgency`. So small orders of volatile shares are sold faster than large ones
    of quiet shares, as their impact costs less against their risk. Without one of its own for the agent, that number is ours:
    at an urgency of 1 half the typical order is sold after 44 % of the horizon, and 0 is TWAP.

    Args:
        order_shares: shape (paths,).
        urgency: at least 0.

    Returns:
        lambda, per dollar, shape (paths,).
    """
    if not 0 <= urgency < math.inf:
        raise AgentEvaluationError(f"urgency = {urgency}: kappa times horizon is a number of at least 0")
    minutes = parameters.horizon_minutes
    variance = float(np.median(market.daily_volatility)) ** 2 * minutes / market.minutes
    # Equation 15 of Almgren and Chriss for a horizon of 1 and an order of 1 dollar; permanent impact is negligible in eta~.
    curvature = 2 * (math.cosh(urgency / minutes) - 1) * minutes**2
    eta = parameters.temporary_impact * float(np.median(market.daily_volatility))
    eta *= _participation_cost(parameters, TYPICAL_PARTICIPATION)
    return curvature * eta / variance / (order_shares * market.mid[:, 0])


def almgren_chriss_schedules(
    market: ExecutionMarket,
    parameters: ExecutionParameters,
    order_shares: np.ndarray,
    risk_aversion: np.ndarray,
    volume_clock: bool = False,
) -> np.ndarray:
    """The schedule of Almgren and Chriss for each path's order, under a linear impact that costs as much as the real law.

    Their eta is such that an order sold evenly has the temporary impact that the environment's law (a square root, usually) gives it
    at its mean participation. Everything is known before the day: volatility, expected volume, the arrival mid.

    Args:
        order_shares, risk_aversion: shape (paths,).
        volume_clock: let time run with the expected volume. Their market has a constant volume, so their clock is the minute;
            the other one is what a desk would do with a U-shaped profile.

    Returns:
        Shares, shape (paths, horizon); each row sums to the order.
    """
    steps = parameters.horizon_minutes
    expected = market.expected_volume_shares[:, :steps]
    sigma = market.daily_volatility * market.mid[:, 0]
    volume = expected.sum(axis=1)
    clock = np.cumsum(expected, axis=1) / volume[:, None]
    schedule = np.empty((market.paths, steps))
    for path, order in enumerate(order_shares):
        model = closed_form.AlmgrenChriss(
            order_shares=float(order),
            horizon=1.0,
            periods=steps,
            volatility=float(sigma[path]) * math.sqrt(steps / market.minutes),
            permanent_impact=parameters.permanent_impact
            * float(sigma[path] / market.expected_volume_shares[path].sum()),
            temporary_impact=parameters.temporary_impact
            * float(sigma[path] * _participation_cost(parameters, order / volume[path]) / order),
            half_spread=0.0,  # shifts every schedule's cost alike
        )
        sold = closed_form.almgren_chriss_trajectory(model, float(risk_aversion[path]))
        if volume_clock:
            done = np.concatenate([[0.0], np.cumsum(sold)])
            sold = np.diff(np.interp(clock[path], np.linspace(0, 1, steps + 1), done), prepend=0.0)
        # So that the sum is the order to the last bit, whatever the rounding of so many terms.
        sold[-1] = max(float(order) - sold[:-1].sum(), 0.0)
        schedule[path] = sold
    return whole_schedule(schedule) if parameters.whole_shares else schedule


def almgren_chriss_frontier(
    market: ExecutionMarket,
    parameters: ExecutionParameters,
    order_shares: np.ndarray,
    urgencies: Sequence[float] = URGENCIES,
    volume_clock: bool = False,
) -> Frontier:
    """Cost and risk of the schedules over a range of risk aversions, on the same paths and orders."""
    points = []
    for urgency in urgencies:
        aversion = almgren_chriss_risk_aversion(market, parameters, order_shares, urgency)
        sold = almgren_chriss_schedules(market, parameters, order_shares, aversion, volume_clock)
        costs = run_schedule(market, parameters, sold, order_shares=order_shares)
        shortfall = costs.implementation_shortfall_bps
        points.append((urgency, (shortfall - costs.slippage_bps).mean(), shortfall.std()))
    return Frontier(*np.array(points).T)


def _participation_cost(parameters: ExecutionParameters, participation: float) -> float:
    return math.sqrt(participation) if parameters.impact == "square_root" else participation


def _schedule_outcome(
    market: ExecutionMarket, parameters: ExecutionParameters, schedule: np.ndarray, orders: np.ndarray
) -> ExecutionOutcome:
    costs = run_schedule(market, parameters, schedule, order_shares=orders)
    return _outcome(costs, schedule, orders)


def _outcome(costs: ExecutionCosts, sold: np.ndarray, orders: np.ndarray) -> ExecutionOutcome:
    left = np.empty((len(orders), sold.shape[1] + 1), np.float32)  # half the memory; it is only drawn
    left[:, 0] = 1.0
    left[:, 1:] = 1 - np.cumsum(sold, axis=1) / orders[:, None]
    return ExecutionOutcome(costs, left, np.abs(orders - sold.sum(axis=1) - costs.leftover_shares))


def averaged_execution(agents: Mapping[int, ExecutionOutcome]) -> ExecutionOutcome:
    """The mean agent: of every number the mean over seeds, path by path."""
    costs, left, missing = zip(*agents.values(), strict=True)
    mean = ExecutionCosts(*(np.mean(values, axis=0) for values in zip(*costs, strict=True)))
    return ExecutionOutcome(mean, np.mean(left, axis=0), np.max(missing, axis=0))


def execution_rows(results: ExecutionResults, chosen: int, group: np.ndarray) -> list[dict[str, Any]]:
    """Levels of every strategy: a row for each baseline, for each seed, and for the mean agent (seed None).

    Args:
        chosen: training seed of the agent that serves.
        group: see `estimate`, shape (paths,).
    """
    by_seed = [outcome.measure(SHORTFALL).mean() for outcome in results.agents.values()]
    rows = [
        {
            **who,
            "paths": len(results.order_shares),
            **_columns(SHORTFALL, estimate(outcome.measure(SHORTFALL), group)),
            **_columns(CAUSED, estimate(outcome.measure(CAUSED), group)),
            **{name: float(getattr(outcome.costs, name).mean()) for name in PARTS},
            "risk_bps": float(outcome.costs.risk_bps.mean()),
            "seed_sd": _seed_sd(who, by_seed),
        }
        for who, outcome in _everyone(results.agents, results.baselines, averaged_execution, chosen)
    ]
    return _typical_spreads(rows)


def execution_differences(results: ExecutionResults, chosen: int, group: np.ndarray) -> list[dict[str, Any]]:
    """Each agent less each baseline, paired by path; below 0 the agent is cheaper."""
    rows = []
    for baseline, theirs in results.baselines.items():
        for measure in (SHORTFALL, CAUSED):
            by_seed = [
                float((o.measure(measure) - theirs.measure(measure)).mean()) for o in results.agents.values()
            ]
            for who, outcome in _everyone(results.agents, {}, averaged_execution, chosen):
                difference = outcome.measure(measure) - theirs.measure(measure)
                rows.append(
                    _difference(who, baseline, measure, estimate(difference, group), difference < 0, by_seed)
                )
    return rows


# -- market making -----------------------------------------------------------------------------------------------------


class MarketMakingOutcome(NamedTuple):
    """What one strategy did on all paths.

    Attributes:
        objective: PnL less the penalties, dollars, shape (paths,): what the environment pays.
        objective_without_market_move: the same without what the mid's moves did to the inventory, dollars, shape (paths,).
        pnl: wealth at the end less the cost of liquidation, dollars, shape (paths,).
        final_inventory: shares before liquidation, shape (paths,).
        spread: mean over the steps of both depths together, dollars, shape (paths,).
        time_at: share of the instants after the open with each inventory from -limit to limit, shape (paths, 2 limit + 1).
    """

    objective: np.ndarray
    objective_without_market_move: np.ndarray
    pnl: np.ndarray
    final_inventory: np.ndarray
    spread: np.ndarray
    time_at: np.ndarray

    def measure(self, name: str) -> np.ndarray:
        """`OBJECTIVE` or `EARNED`, shape (paths,)."""
        return self.objective if name == OBJECTIVE else self.objective_without_market_move


class MarketMakingResults(NamedTuple):
    """Strategies on the same paths and market orders.

    Attributes:
        agents: training seed -> outcome.
        baselines: `avellaneda_stoikov`, `fixed_spread`, `cartea_jaimungal` -> outcome.
        exact_time_at: of Cartea and Jaimungal's quotes, mean of `time_at` without Monte Carlo; None for quotes of several shares.
        inventory: shares, -limit..limit.
        risk_aversion: gamma of Avellaneda and Stoikov, per dollar.
    """

    agents: dict[int, MarketMakingOutcome]
    baselines: dict[str, MarketMakingOutcome]
    exact_time_at: np.ndarray | None
    inventory: np.ndarray
    risk_aversion: float


def market_making_results(
    market: MarketMakingMarket,
    parameters: MarketMakingParameters,
    policies: Mapping[int, Act],
    seed: int,
    risk_aversion: float | None = None,
) -> MarketMakingResults:
    """Quote on every path by each agent and each rule of the literature; all meet the same market orders.

    The mid's moves are charged, whatever the training left out of its rewards. The fixed spread is 2 / k, the best one for a
    dealer who does not mind inventory. Cartea and Jaimungal's table is the best that is known for a mid that is a martingale,
    whatever its variance, if the penalty does not scale with it.

    Args:
        market: paths that no agent has seen.
        parameters: of the training.
        policies: training seed -> policy.
        seed: of the market orders.
        risk_aversion: gamma of Avellaneda and Stoikov, per dollar; None: the one under which the variance of wealth costs as much as
            the agent's penalty, gamma / 2 * sigma^2 q^2 = phi q^2 at the typical variance sigma^2.
    """
    parameters = replace(parameters, reward_mid_moves=True)
    environment = MarketMaking(market, parameters, n=market.mid.shape[0])
    if risk_aversion is None:
        risk_aversion = 2 * parameters.running_penalty / environment.typical_variance
    if not 0 < risk_aversion < math.inf:
        raise AgentEvaluationError(
            f"risk_aversion = {risk_aversion}: Avellaneda and Stoikov need one above 0, and running_penalty = "
            f"{parameters.running_penalty} gives none; set risk_aversion"
        )
    table = market_making.cartea_jaimungal_table(environment)
    rules: dict[str, market_making.Policy] = {
        "avellaneda_stoikov": market_making.avellaneda_stoikov(risk_aversion),
        "fixed_spread": market_making.fixed_spread(2 / parameters.depth_decay),
        "cartea_jaimungal": market_making.quoted_from_table(table),
    }
    exact = None
    if parameters.max_size == 1:
        bid, ask = (np.clip(d[:-1], 0.0, parameters.max_depth) for d in (table.bid_depth, table.ask_depth))
        exact = closed_form.inventory_distribution(
            bid,
            ask,
            arrival_rate=parameters.arrival_rate,
            depth_decay=parameters.depth_decay,
            dt=market.dt,
            fills=parameters.fills,
        )[1:].mean(axis=0)
    return MarketMakingResults(
        {training_seed: _quote(environment, _seeing(act), seed) for training_seed, act in policies.items()},
        {name: _quote(environment, rule, seed) for name, rule in rules.items()},
        exact,
        table.inventory,
        risk_aversion,
    )


def _seeing(act: Act) -> market_making.Policy:
    return lambda environment, observation: act(observation)


def _quote(environment: MarketMaking, policy: market_making.Policy, seed: int) -> MarketMakingOutcome:
    rows = np.arange(environment.n)
    done: Rollout = market_making.rollout(
        environment, policy, np.random.default_rng(seed), rows, keep_inventory=True
    )
    assert done.inventory_shares is not None
    held = done.inventory_shares[:, 1:]
    moves = (held * np.diff(environment.market.mid, axis=1)).sum(axis=1)
    objective = done.reward / environment.parameters.reward_scale
    limit = environment.parameters.inventory_limit
    levels = 2 * limit + 1
    cell = np.rint(held).astype(np.int64) + limit + levels * rows[:, None]
    counts = np.bincount(cell.ravel(), minlength=levels * len(rows)).reshape(len(rows), levels)
    return MarketMakingOutcome(
        objective,
        objective - moves,
        done.pnl_dollars,
        done.final_inventory_shares,
        done.mean_spread_dollars,
        (counts / environment.steps).astype(np.float32),
    )


def averaged_market_making(agents: Mapping[int, MarketMakingOutcome]) -> MarketMakingOutcome:
    """The mean agent: of every number the mean over seeds, path by path."""
    return MarketMakingOutcome(*(np.mean(values, axis=0) for values in zip(*agents.values(), strict=True)))


def market_making_rows(results: MarketMakingResults, chosen: int, group: np.ndarray) -> list[dict[str, Any]]:
    """Levels of every strategy; arguments as `execution_rows`."""
    by_seed = [float(outcome.objective.mean()) for outcome in results.agents.values()]
    rows = []
    for who, outcome in _everyone(results.agents, results.baselines, averaged_market_making, chosen):
        pnl = estimate(outcome.pnl, group)
        rows.append(
            {
                **who,
                "paths": pnl.size,
                **_columns(OBJECTIVE, estimate(outcome.objective, group)),
                **_columns(EARNED, estimate(outcome.objective_without_market_move, group)),
                **_columns("pnl_dollars", pnl),
                "final_inventory_mean_shares": float(outcome.final_inventory.mean()),
                "final_inventory_sd_shares": float(outcome.final_inventory.std()),
                "inventory_sd_shares": _sd_of(results.inventory, outcome.time_at.mean(axis=0)),
                "mean_spread_dollars": float(outcome.spread.mean()),
                "seed_sd": _seed_sd(who, by_seed),
            }
        )
    return _typical_spreads(rows)


def market_making_differences(
    results: MarketMakingResults, chosen: int, group: np.ndarray
) -> list[dict[str, Any]]:
    """Each agent less each baseline, paired by path; above 0 the agent earns more."""
    rows = []
    for baseline, theirs in results.baselines.items():
        for measure in (OBJECTIVE, EARNED):
            by_seed = [
                float((o.measure(measure) - theirs.measure(measure)).mean()) for o in results.agents.values()
            ]
            for who, outcome in _everyone(results.agents, {}, averaged_market_making, chosen):
                difference = outcome.measure(measure) - theirs.measure(measure)
                rows.append(
                    _difference(who, baseline, measure, estimate(difference, group), difference > 0, by_seed)
                )
    return rows


def _sd_of(values: np.ndarray, chance: np.ndarray) -> float:
    mean = float((values * chance).sum())
    return math.sqrt(float(((values - mean) ** 2 * chance).sum()))


# -- portfolio ---------------------------------------------------------------------------------------------------------


class PortfolioResults(NamedTuple):
    """Strategies on the same window.

    Attributes:
        agents: training seed -> what its weights earned.
        baselines: `equal_weight`, `buy_and_hold`, `minimum_variance` -> the same.
    """

    agents: dict[int, PortfolioRollout]
    baselines: dict[str, PortfolioRollout]


def portfolio_results(
    market: PortfolioMarket, parameters: PortfolioParameters, policies: Mapping[int, Act]
) -> PortfolioResults:
    """Trade the whole window, once by each agent and each rule, under the same costs; all start in cash.

    Args:
        market: the window to judge on; its earlier rows feed look-backs and covariances only.
        parameters: of the training.
        policies: training seed -> policy.
    """
    parameters = replace(parameters, episode_steps=None)
    rules = {
        "equal_weight": portfolio.equal_weight(market),
        "buy_and_hold": portfolio.buy_and_hold(market, parameters),
        "minimum_variance": portfolio.minimum_variance(market, parameters),
    }
    return PortfolioResults(
        {seed: run_portfolio_policy(market, parameters, act) for seed, act in policies.items()},
        {name: portfolio.rollout_weights(market, parameters, weights) for name, weights in rules.items()},
    )


def run_portfolio_policy(
    market: PortfolioMarket, parameters: PortfolioParameters, act: Act
) -> PortfolioRollout:
    """One policy through all of the window."""
    environment = PortfolioEpisodes(1, market, replace(parameters, episode_steps=None))
    # Nothing is drawn: there is one row, and the market is what it was.
    observation = environment.reset(np.random.default_rng(0), np.zeros(1, np.int64))
    done: dict[str, list[np.ndarray]] = {name: [] for name in ("growth", "turnover", "cost", "weights")}
    for _ in range(environment.steps):
        observation, _, _, _, info = environment.step(act(observation))
        for name, values in done.items():
            values.append(info[name])
    growth, turnover, cost, weights = (np.concatenate(values) for values in done.values())
    rows = environment.decisions
    return PortfolioRollout(
        sessions=market.sessions[rows.start : rows.stop],
        equity=np.concatenate([[1.0], np.cumprod(growth)]),
        net_return=growth - 1,
        turnover=turnover,
        cost=cost,
        weights=weights,
        periods_per_year=market.periods_per_year,
    )


def truncation_problems(whole: PortfolioRollout, cut: PortfolioRollout) -> list[dict[str, object]]:
    """Decisions of a market that was cut which differ from those of the whole one; none where nothing looks ahead.

    Args:
        whole, cut: of one policy; the sessions of `cut` are the first ones of `whole`.

    Returns:
        One row per session that differs: session, weights of both. At most 20.
    """
    n = len(cut.sessions)
    if not np.array_equal(whole.sessions[:n], cut.sessions):
        raise AgentEvaluationError(
            f"the cut market decides from {cut.sessions[0]} to {cut.sessions[-1]}, which are not the first sessions of the whole "
            f"one ({whole.sessions[0]} to {whole.sessions[-1]})"
        )
    different = np.flatnonzero((whole.weights[:n] != cut.weights).any(axis=1))
    return [
        {
            "session": str(cut.sessions[row]),
            "weights": str(whole.weights[row]),
            "weights when cut": str(cut.weights[row]),
        }
        for row in different[:20]
    ]


class _Resampled(NamedTuple):
    """Figures of a rollout, and of each resample of its sessions, shape (resamples,)."""

    value: dict[str, float]
    draws: dict[str, np.ndarray]


PORTFOLIO_MEASURES = ("annual_log_growth_pct", "sharpe_ratio")


def _resampled(rollout: PortfolioRollout, weights: np.ndarray) -> _Resampled:
    summary = rollout.summary()
    share = weights / weights.sum(axis=1, keepdims=True)
    mean, square = share @ rollout.net_return, share @ rollout.net_return**2
    with np.errstate(invalid="ignore", divide="ignore"):
        sharpe = math.sqrt(rollout.periods_per_year) * mean / np.sqrt(np.maximum(square - mean**2, 0))
    growth = 100 * rollout.periods_per_year * (share @ np.log1p(rollout.net_return))
    return _Resampled(summary, {"annual_log_growth_pct": growth, "sharpe_ratio": sharpe})


def _mean_resampled(agents: Mapping[int, _Resampled]) -> _Resampled:
    every = list(agents.values())
    return _Resampled(
        {name: float(np.mean([one.value[name] for one in every])) for name in every[0].value},
        {name: np.mean([one.draws[name] for one in every], axis=0) for name in every[0].draws},
    )


def portfolio_rows(
    results: PortfolioResults, chosen: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Levels of every strategy, and each agent less each baseline (above 0 the agent is better).

    Intervals are percentiles over resampled blocks of sessions, the same for all strategies; the mean agent's figures are means over
    seeds of each seed's figure, as if its money were with one of them by chance, not spread over all.

    Args:
        chosen: training seed of the agent that serves.
        seed: of the resamples.
    """
    first = next(iter(results.baselines.values()))
    weights = session_resamples(first.sessions, seed)
    agents = {key: _resampled(rollout, weights) for key, rollout in results.agents.items()}
    baselines = {key: _resampled(rollout, weights) for key, rollout in results.baselines.items()}
    sharpes = [one.value["sharpe_ratio"] for one in agents.values()]
    levels = []
    for who, one in _everyone(agents, baselines, _mean_resampled, chosen):
        ends = {
            f"{measure}_{end}": value
            for measure in PORTFOLIO_MEASURES
            for end, value in zip(("low", "high"), _percentiles(one.draws[measure]), strict=True)
        }
        levels.append(
            {**who, "decisions": len(first.sessions), **one.value, **ends, "seed_sd": _seed_sd(who, sharpes)}
        )
    differences = []
    for baseline, theirs in baselines.items():
        for measure in PORTFOLIO_MEASURES:
            by_seed = [one.value[measure] - theirs.value[measure] for one in agents.values()]
            for who, one in _everyone(agents, {}, _mean_resampled, chosen):
                draws = one.draws[measure] - theirs.draws[measure]
                low, high = _percentiles(draws)
                difference = one.value[measure] - theirs.value[measure]
                found = Estimate(len(first.sessions), difference, math.nan, low, high)
                differences.append(_difference(who, baseline, measure, found, draws > 0, by_seed))
    return levels, differences


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(draws).all():
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def equity_rows(results: PortfolioResults, market: PortfolioMarket) -> list[dict[str, Any]]:
    """Wealth of every strategy at the opens at which it trades: strategy, seed, session of the open, equity, turnover, cost.

    Row by row: the decision at the close of T trades at the open of T+1 and its return ends at the open of T+2, which is the
    session of the row.
    """
    rows = []
    named: list[tuple[str, int | None, PortfolioRollout]] = [
        (AGENT, seed, rollout) for seed, rollout in results.agents.items()
    ]
    named += [(name, None, rollout) for name, rollout in results.baselines.items()]
    for strategy, seed, rollout in named:
        first = int(np.searchsorted(market.sessions, rollout.sessions[0])) + UNKNOWN_ROWS
        ends = market.sessions[first : first + len(rollout.sessions)].astype("datetime64[D]").astype(object)
        for at, session in enumerate(ends):
            rows.append(
                {
                    "strategy": strategy,
                    "seed": seed,
                    "session": session,
                    "equity": float(rollout.equity[at + 1]),
                    "turnover": float(rollout.turnover[at]),
                    "cost": float(rollout.cost[at]),
                }
            )
    return rows


# -- some of the paths -------------------------------------------------------------------------------------------------


def by_symbol(results: Any, symbol: np.ndarray) -> Iterable[tuple[str, Any, np.ndarray]]:
    """Results of all paths, then of each symbol where there are several.

    Args:
        results: `ExecutionResults` or `MarketMakingResults`.
        symbol: of each path, shape (paths,).

    Yields:
        `all` or the symbol, the results, and which paths they are of, bool, shape (paths,).
    """
    yield "all", results, np.ones(len(symbol), bool)
    symbols = np.unique(symbol)
    for one in symbols if len(symbols) > 1 else ():
        keep = symbol == one
        part = results._replace(
            agents={seed: _some(outcome, keep) for seed, outcome in results.agents.items()},
            baselines={name: _some(outcome, keep) for name, outcome in results.baselines.items()},
        )
        if isinstance(results, ExecutionResults):
            part = part._replace(order_shares=results.order_shares[keep], frontiers={})
        yield str(one), part, keep


def _some(outcome: Any, keep: np.ndarray) -> Any:
    """Some paths of a tuple of arrays and tuples."""
    return outcome._make(_some(v, keep) if isinstance(v, tuple) else v[keep] for v in outcome)


def take_paths(market: ExecutionMarket, rows: np.ndarray) -> ExecutionMarket:
    """Some days of a market."""
    names = ("mid", "spread", "volume_shares", "expected_volume_shares", "daily_volatility", "draw_id")
    return ExecutionMarket(*(getattr(market, name)[rows] for name in names))


# -- verdicts and rows -------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """Whether the agent that serves holds its own against the best baseline.

    Attributes:
        holds: the unfavourable end of the paired interval is no worse than the tolerance.
        text: the numbers, in a sentence.
    """

    holds: bool
    text: str


def verdict(
    levels: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    measure: str,
    lower_is_better: bool,
    tolerance: float,
    unit: str,
    level: str | None = None,
) -> Verdict:
    """Judge the chosen agent against the baseline that did best on the same paths.

    The best one is picked with hindsight, which is to the agent's disadvantage: each baseline alone is easier to match.

    Args:
        levels, differences: rows of one window and symbol.
        measure: of `differences`.
        lower_is_better: a cost, or else a reward.
        tolerance: what counts as a match, in the measure's unit.
        unit: shown behind numbers.
        level: column of `levels` by which the best baseline is picked; None: `<measure>_mean`.
    """
    sign = 1.0 if lower_is_better else -1.0
    column = level or f"{measure}_mean"
    baselines = [row for row in levels if row["strategy"] != AGENT]
    best = min(baselines, key=lambda row: sign * row[column])["strategy"]
    found = [row for row in differences if row["baseline"] == best and row["measure"] == measure]
    chosen = next(row for row in found if row["chosen"])
    every = next(row for row in found if row["seed"] is None)
    worst = chosen["high"] if lower_is_better else chosen["low"]
    holds = math.isfinite(worst) and sign * worst <= tolerance
    better, worse = ("below", "above") if lower_is_better else ("above", "below")
    if not math.isfinite(worst):
        outcome = "too few independent paths for an interval"
    elif sign * worst < 0:
        outcome = "it beats it"
    elif holds:
        outcome = f"it matches it within {tolerance:g} {unit}"
    elif sign * (chosen["low"] if lower_is_better else chosen["high"]) > 0:
        outcome = "it is worse"
    else:
        outcome = "neither beaten nor matched: the interval is wider than that"
    seeds = ""
    if every["seed_sd"] is not None:
        seeds = (
            f" Mean of {every['seeds']} seeds {every['difference']:.3g}, sd over them {every['seed_sd']:.3g}."
        )
    return Verdict(
        holds,
        f"The chosen agent (seed {chosen['seed']}) less {best}, the best baseline: {chosen['difference']:.3g} {unit}, 95 % interval "
        f"{chosen['low']:.3g} to {chosen['high']:.3g} ({better} 0 the agent is better, {worse} 0 it is worse) over "
        f"{chosen['count']} pairs: {outcome}.{seeds}",
    )


def _everyone(
    agents: Mapping[int, Any],
    baselines: Mapping[str, Any],
    average: Callable[[Mapping[int, Any]], Any],
    chosen: int,
) -> Iterable[tuple[dict[str, Any], Any]]:
    """Who, and what they did: baselines, each seed, the mean agent."""
    if chosen not in agents:
        raise AgentEvaluationError(f"chosen seed {chosen} is none of {', '.join(map(str, agents))}")
    for name, outcome in baselines.items():
        yield {"strategy": name, "seed": None, "chosen": False, "seeds": 0}, outcome
    for seed, outcome in agents.items():
        yield {"strategy": AGENT, "seed": seed, "chosen": seed == chosen, "seeds": 1}, outcome
    yield {"strategy": AGENT, "seed": None, "chosen": False, "seeds": len(agents)}, average(agents)


def _typical_spreads(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Standard deviations in the row of the mean agent become means over seeds: averages of several agents vary less than each of
    them does, and nobody deploys an average."""
    seeds = [row for row in rows if row["seed"] is not None]
    for name in rows[-1]:
        if "_sd" in name and name != "seed_sd":
            rows[-1][name] = float(np.mean([row[name] for row in seeds]))
    return rows


def _seed_sd(who: Mapping[str, Any], by_seed: Sequence[float]) -> float | None:
    """Standard deviation over seeds, for the row of the mean agent."""
    return float(np.std(by_seed, ddof=1)) if who["seed"] is None and who["seeds"] > 1 else None


def _columns(name: str, found: Estimate) -> dict[str, float]:
    return {
        f"{name}_mean": found.mean,
        f"{name}_sd": found.sd,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
    }


def _difference(
    who: Mapping[str, Any],
    baseline: str,
    measure: str,
    found: Estimate,
    better: np.ndarray,
    by_seed: Sequence[float],
) -> dict[str, Any]:
    return {
        **who,
        "baseline": baseline,
        "measure": measure,
        "count": found.size,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "better_share": float(better.mean()),
        "seed_sd": _seed_sd(who, by_seed),
    }
