"""A dealer who quotes both sides of one stock: the market, the environment, and policies to compare an agent with.

Belongs here: what a market maker sees, does and is paid for, and the policies of the literature in the terms of this
environment. Does not belong here: where mids and variances come from (they are handed in as arrays), formulas and exact
values (`closed_form.py`), and how an agent learns.

Time: at instant k (k = 0..steps) the agent knows mid and variance of instant k and all earlier fills. In this order:

1. A hedge, where there is one, is a market order that executes at once at mid_k plus or minus half the spread.
2. Quotes stand during step k at mid_k - bid_depth and mid_k + ask_depth. Market orders arrive on each side at rate A and reach a
   depth with probability exp(-k depth); the two sides fill independently, at the quoted prices.
3. The inventory penalty phi q^2 dt is charged on what is held now, and the mid moves to mid_{k+1}.
4. After the last step the inventory is liquidated: alpha q^2 plus half a spread per share below the mid.

The reward of a step is the change of wealth (cash + inventory at the mid), less the penalty, and less the liquidation cost
in the last step. So the sum over an episode is the objective of Cartea, Jaimungal and Penalva (2015, chapter 10), and for
quotes of one share `closed_form.quote_table_value` is its exact mean. That mean does not depend on the variance of the mid as
long as the mid is a martingale; with `penalty_scales_with_variance` it does, and the penalty is the variance of
wealth over the step, up to a factor.

All random numbers of an episode (one uniform per step and side) are drawn when it begins and turned into fills through
the inverse distribution: policies on the same rows and seed meet the same market orders and can be compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from quant_assets.environments import closed_form
from quant_assets.environments.closed_form import Fills, QuoteTable
from quant_assets.environments.episodes import EnvironmentRefusal, Episodes

OBSERVATIONS = (
    "mid_change_sd",
    "inventory_scales",
    "wealth_scales",
    "time_left_fraction",
    "variance_log_ratio",
    "recent_net_fills_sd",
    "recent_fills_ratio",
)
# An inverse distribution walks up from 0; more arrivals in a step than this mean that the step is too long for one quote.
MOST_ARRIVALS_PER_STEP = 100.0
# Part of the typical variance below which a variance counts as this much: Heston's v touches 0.
SMALLEST_VARIANCE_RATIO = 1e-6


# -- the market --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MarketMakingMarket:
    """Paths of a mid price and of what is known about its variance.

    Attributes:
        mid: dollars at instants 0..steps, shape (paths, steps + 1).
        variance: of the mid, dollars squared per unit of time, known at the instant, shape (paths, steps + 1). For a model of
            returns such as Heston's it is v mid^2, see `from_returns_variance`.
        dt: units of time per step.
        draw_id: which draw of the model's parameters each path comes from, shape (paths,); paths of one draw belong on one side of a
            split into training and test.
        time_unit: name of the unit that dt, variance, rates and penalties are given in; shown, never computed with.

    Raises:
        EnvironmentRefusal: shapes differ, a mid is no number, a variance is below 0 or no number, or dt is not above 0.
    """

    mid: np.ndarray
    variance: np.ndarray
    dt: float
    draw_id: np.ndarray
    time_unit: str = "day"

    def __post_init__(self) -> None:
        if self.mid.ndim != 2 or self.mid.shape[1] < 2 or self.mid.shape[0] < 1:
            raise EnvironmentRefusal(
                f"mid has shape {self.mid.shape}: it must be (paths, steps + 1) with a step"
            )
        if self.variance.shape != self.mid.shape or self.draw_id.shape != self.mid.shape[:1]:
            raise EnvironmentRefusal(
                f"variance has shape {self.variance.shape} and draw_id {self.draw_id.shape}: to mid's {self.mid.shape} belong "
                f"{self.mid.shape} and {self.mid.shape[:1]}"
            )
        for name, array, good in (
            ("mid", self.mid, np.isfinite(self.mid)),
            ("variance", self.variance, np.isfinite(self.variance) & (self.variance >= 0)),
        ):
            if not good.all():
                path, instant = np.argwhere(~good)[0]
                raise EnvironmentRefusal(
                    f"{name} = {array[path, instant]} on path {path} at instant {instant}: it must be a number"
                    + (" of at least 0" if name == "variance" else "")
                )
        _above_zero("dt", self.dt)

    @property
    def paths(self) -> int:
        """Number of paths."""
        return self.mid.shape[0]

    @property
    def steps(self) -> int:
        """Steps of each path."""
        return self.mid.shape[1] - 1

    @property
    def horizon(self) -> float:
        """Units of time from the first instant to the last."""
        return self.steps * self.dt

    @classmethod
    def from_returns_variance(
        cls,
        mid: np.ndarray,
        returns_variance: np.ndarray,
        dt: float,
        draw_id: np.ndarray,
        time_unit: str = "day",
    ) -> MarketMakingMarket:
        """The same from the variance of returns per unit of time, such as Heston's v in the unit of dt.

        Args:
            mid, dt, draw_id, time_unit: as the attributes.
            returns_variance: shape (paths, steps + 1). A variance per year goes with a dt in years.
        """
        return cls(mid, returns_variance * np.square(mid), dt, draw_id, time_unit)


def textbook_market(
    paths: int, steps: int, s0: float, sigma: float, horizon: float, seed: int, time_unit: str = "horizon"
) -> MarketMakingMarket:
    """Arithmetic Brownian motion without drift, the market of Avellaneda and Stoikov (2008): s0 = 100, sigma = 2, horizon 1.

    Args:
        paths: independent paths.
        steps: of each.
        s0: dollars at the start.
        sigma: dollars per square root of a unit of time.
        horizon: units of time.
        seed: the same seed gives the same paths.
    """
    if paths < 1 or steps < 1:
        raise EnvironmentRefusal(f"{paths} paths of {steps} steps: each must be at least 1")
    _above_zero("horizon", horizon)
    moves = np.random.default_rng(seed).standard_normal((paths, steps)) * (sigma * math.sqrt(horizon / steps))
    mid = np.full((paths, steps + 1), float(s0))
    mid[:, 1:] += np.cumsum(moves, axis=1)
    return MarketMakingMarket(
        mid, np.full_like(mid, sigma**2), horizon / steps, np.zeros(paths, np.int64), time_unit
    )


# -- the dealer --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MarketMakingParameters:
    """Order flow, what the dealer may do, and what it is paid for. A unit of time is the market's.

    Attributes:
        arrival_rate: A, market orders per unit of time and side.
        depth_decay: k, per dollar: an order reaches a quote at `depth` dollars with probability exp(-k depth).
        fills: `at_most_one`: with probability min(1, A exp(-k depth) dt) per side and step the whole quote is filled (Avellaneda
            and Stoikov's simulation). `poisson`: that many single shares as a Poisson count of mean A exp(-k depth) dt, up to the
            quoted size.
        max_depth: dollars, depth of action 1. A depth is never below 0.
        max_size: shares of the largest quote. With 1 the size is no action; otherwise 0 to max_size, rounded to whole shares, and
            a size of 0 shows no quote.
        max_hedge_shares: shares of the largest market order per step; with 0 there is no hedge action.
        inventory_limit: shares. A quote's size is cut to what keeps inventory within plus or minus this, so at the limit that side
            is not shown; a hedge is cut likewise.
        running_penalty: phi, dollars per share squared and unit of time.
        penalty_scales_with_variance: multiply phi by variance over typical variance, so that inventory costs what it risks.
        terminal_penalty: alpha, dollars per share squared left at the end.
        liquidation_half_spread: dollars per share left at the end, on top.
        fee_per_share: dollars per share of ours filled (maker); below 0 it is a rebate.
        taker_half_spread: dollars per share of a hedge.
        taker_fee_per_share: dollars per share of a hedge, on top.
        reward_scale: rewards are dollars times this; everything in `info` and `Rollout.pnl_dollars` stays in dollars.
        reward_mid_moves: False leaves the mid's moves on what is held out of the rewards. They are zero on average where the mid
            is a martingale, and several times what a step earns: agents are trained without them and judged with them.
        inventory_scale_shares: inventory is observed in units of it. None: sd of the inventory of a symmetric dealer at depth 1 / k
            who keeps quoting until the end, at most the limit.
        wealth_scale_dollars: wealth is observed in units of it. None: what that dealer earns.
        typical_variance: dollars squared per unit of time that the variance is observed against. None: median over paths of the first
            instant. Set it where an agent is trained on one market and used on another.
        recent_fills_halflife_steps: weight of a fill in the observations halves in as many steps.

    Raises:
        EnvironmentRefusal: a field is out of its range.
    """

    arrival_rate: float = 140.0
    depth_decay: float = 1.5
    fills: Fills = "at_most_one"
    max_depth: float = 3.0
    max_size: int = 1
    max_hedge_shares: int = 0
    inventory_limit: int = 100
    running_penalty: float = 0.01
    penalty_scales_with_variance: bool = False
    terminal_penalty: float = 0.001
    liquidation_half_spread: float = 0.0
    fee_per_share: float = 0.0
    taker_half_spread: float = 0.0
    taker_fee_per_share: float = 0.0
    reward_scale: float = 1.0
    reward_mid_moves: bool = True
    inventory_scale_shares: float | None = None
    wealth_scale_dollars: float | None = None
    typical_variance: float | None = None
    recent_fills_halflife_steps: float = 10.0

    def __post_init__(self) -> None:
        for name in (
            "arrival_rate",
            "depth_decay",
            "max_depth",
            "reward_scale",
            "recent_fills_halflife_steps",
        ):
            _above_zero(name, getattr(self, name))
        for name in ("inventory_scale_shares", "wealth_scale_dollars", "typical_variance"):
            if getattr(self, name) is not None:
                _above_zero(name, getattr(self, name))
        for name in (
            "running_penalty",
            "terminal_penalty",
            "liquidation_half_spread",
            "taker_half_spread",
            "taker_fee_per_share",
        ):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise EnvironmentRefusal(f"{name} = {getattr(self, name)}: it must be a number of at least 0")
        for name, least in (("max_size", 1), ("max_hedge_shares", 0), ("inventory_limit", 1)):
            number = getattr(self, name)
            if number != int(number) or number < least:
                raise EnvironmentRefusal(f"{name} = {number}: it must be a whole number of at least {least}")
        if not math.isfinite(self.fee_per_share):
            raise EnvironmentRefusal(
                f"fee_per_share = {self.fee_per_share}: it must be a number; a rebate is below 0"
            )
        if self.fills not in get_args(Fills):
            raise EnvironmentRefusal(f"fills = {self.fills!r}: it must be one of {get_args(Fills)}")


class MarketMaking(Episodes):
    """n dealers in lock-step, see the module for the order of events.

    Actions, each in its box:
        bid_depth, ask_depth: 0..1 of `max_depth`.
        bid_size, ask_size: 0..1 of `max_size`, rounded to whole shares; only if max_size > 1.
        hedge: -1..1 of `max_hedge_shares`, rounded to whole shares, above 0 buys; only if max_hedge_shares > 0.

    Observations, clipped at plus or minus 10:
        mid_change_sd: move of the mid in the last step over its standard deviation as known before it; 0 at the start.
        inventory_scales: shares over `inventory_scale_shares`.
        wealth_scales: cash + inventory at the mid, over `wealth_scale_dollars`; 0 at the start.
        time_left_fraction: 1 at the start, 0 at the end.
        variance_log_ratio: ln(variance / typical variance); 0 in the textbook market.
        recent_net_fills_sd: shares bought less shares sold by quotes, exponentially weighted, over the standard deviation of that for
            quotes of full size at depth 1 / k.
        recent_fills_ratio: shares filled on both sides, exponentially weighted, over what is expected of such quotes.

    `info`, arrays of shape (n,): mid_dollars (where the step's quotes stood), bid_depth_dollars, ask_depth_dollars,
    quoted_spread_dollars, bid_size_shares and ask_size_shares (shown; 0 means no quote), bid_fills_shares, ask_fills_shares,
    hedge_shares, fees_dollars (maker's, and all that a hedge costs), penalty_dollars, liquidation_cost_dollars (0 before the last
    step), and after the step inventory_shares, cash_dollars, wealth_dollars (at the mid, before liquidation).

    Args:
        market: its paths are the rows of `reset`.
        parameters: of the dealer.
        n: episodes at once.

    Attributes:
        inventory, cash, mid, variance: of each episode now, shape (n,); shares, dollars, dollars, dollars squared per unit of time.
    """

    name = "market_making"

    def __init__(self, market: MarketMakingMarket, parameters: MarketMakingParameters, n: int = 1) -> None:
        self.market, self.parameters = market, parameters
        names, low = ["bid_depth", "ask_depth"], [0.0, 0.0]
        if parameters.max_size > 1:
            names, low = [*names, "bid_size", "ask_size"], [*low, 0.0, 0.0]
        if parameters.max_hedge_shares > 0:
            names, low = [*names, "hedge"], [*low, -1.0]
        self.action_names, self.observation_names = tuple(names), OBSERVATIONS
        super().__init__(n, market.steps, market.mid.shape[0], action_low=np.array(low))
        expected = parameters.arrival_rate * market.dt
        if parameters.fills == "poisson" and expected > MOST_ARRIVALS_PER_STEP:
            raise EnvironmentRefusal(
                f"arrival_rate * dt = {expected:g} market orders per step and side, at most {MOST_ARRIVALS_PER_STEP:g} are "
                "simulated: take shorter steps"
            )
        self._expected_arrivals = expected
        # Of a symmetric dealer at depth 1 / k with quotes of full size, both sides.
        fill_rate = 2 * parameters.arrival_rate / math.e
        share = parameters.max_size if parameters.fills == "at_most_one" else 1
        self.inventory_scale_shares = parameters.inventory_scale_shares or min(
            share * math.sqrt(fill_rate * market.horizon), float(parameters.inventory_limit)
        )
        self.wealth_scale_dollars = (
            parameters.wealth_scale_dollars or share * fill_rate * market.horizon / parameters.depth_decay
        )
        self.typical_variance = parameters.typical_variance or float(np.median(market.variance[:, 0]))
        if not self.typical_variance > 0:
            raise EnvironmentRefusal(
                "the median variance at the first instant is 0, so there is nothing to measure variances against: set "
                "typical_variance"
            )
        self._decay = 0.5 ** (1 / parameters.recent_fills_halflife_steps)
        # Weights decay^0, decay^1, ... sum to 1 / (1 - decay), their squares to 1 / (1 - decay^2).
        self._typical_fills = share * fill_rate * market.dt / (1 - self._decay)
        self._net_fills_sd = share * math.sqrt(fill_rate * market.dt / (1 - self._decay**2))

    @property
    def time_left(self) -> float:
        """Units of time until the end."""
        return (self.steps - self.step_index) * self.market.dt

    def _begin(self) -> np.ndarray:
        assert self.rng is not None
        # Episode by episode, so that n at once and n singles after one another draw the same; then turned so that what
        # one step reads lies together.
        self._uniform = np.ascontiguousarray(self.rng.random((self.n, self.steps, 2)).transpose(1, 2, 0))
        self._mids = np.ascontiguousarray(self.market.mid[self.rows].T, np.float64)
        self._variances = np.ascontiguousarray(self.market.variance[self.rows].T, np.float64)
        self.mid, self.variance = self._mids[0], self._variances[0]
        self.inventory = np.zeros(self.n)
        self.cash = np.zeros(self.n)
        self._wealth = np.zeros(self.n)
        self._recent = np.zeros((2, self.n))  # exponentially weighted shares bought and sold
        return self._observe(np.zeros(self.n))

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        terms, step = self.parameters, self.step_index - 1
        mid, variance = self.mid, self.variance

        # 1. The hedge, at once.
        if terms.max_hedge_shares > 0:
            wanted = self.inventory + np.rint(action[:, -1] * terms.max_hedge_shares)
            hedge = np.clip(wanted, -terms.inventory_limit, terms.inventory_limit) - self.inventory
            fees = np.abs(hedge) * (terms.taker_half_spread + terms.taker_fee_per_share)
            held = self.inventory + hedge
        else:
            hedge, fees, held = np.zeros(self.n), np.zeros(self.n), self.inventory

        # 2. Quotes and fills; row 0 is the bid, row 1 the ask.
        depth = action[:, :2].T * terms.max_depth
        room = np.stack((terms.inventory_limit - held, terms.inventory_limit + held))
        size = np.rint(action[:, 2:4].T * terms.max_size) if terms.max_size > 1 else 1.0
        size = np.minimum(size, room)
        expected = self._expected_arrivals * np.exp(-terms.depth_decay * depth)
        uniform = self._uniform[step]
        # A uniform is below 1, so a probability of 1 or more always fills.
        filled = (
            (uniform < expected) * size if terms.fills == "at_most_one" else _poisson(uniform, expected, size)
        )
        bought, sold = filled
        net, count = bought - sold, bought + sold
        fees = fees + terms.fee_per_share * count
        self.inventory = held + net
        self.cash = self.cash - (net + hedge) * mid + (filled * depth).sum(0) - fees

        # 3. The penalty on what is held, then the mid moves.
        penalty = (terms.running_penalty * self.market.dt) * self.inventory**2
        if terms.penalty_scales_with_variance:
            penalty = penalty * (variance / self.typical_variance)
        self.mid, self.variance = self._mids[self.step_index], self._variances[self.step_index]
        before, self._wealth = self._wealth, self.cash + self.inventory * self.mid

        # 4. The end.
        liquidation = (
            terms.terminal_penalty * self.inventory**2
            + terms.liquidation_half_spread * np.abs(self.inventory)
            if self.step_index == self.steps
            else np.zeros(self.n)
        )
        earned = self._wealth - before
        if not terms.reward_mid_moves:
            earned = earned - self.inventory * (self.mid - mid)
        reward = (earned - penalty - liquidation) * terms.reward_scale

        self._recent = self._recent * self._decay + filled
        sd = np.sqrt(np.maximum(variance, SMALLEST_VARIANCE_RATIO * self.typical_variance) * self.market.dt)
        info = {
            "mid_dollars": mid,
            "bid_depth_dollars": depth[0],
            "ask_depth_dollars": depth[1],
            "quoted_spread_dollars": depth[0] + depth[1],
            "bid_size_shares": size[0],
            "ask_size_shares": size[1],
            "bid_fills_shares": bought,
            "ask_fills_shares": sold,
            "hedge_shares": hedge,
            "fees_dollars": fees,
            "penalty_dollars": penalty,
            "liquidation_cost_dollars": liquidation,
            "inventory_shares": self.inventory,
            "cash_dollars": self.cash,
            "wealth_dollars": self._wealth,
        }
        return self._observe((self.mid - mid) / sd), reward, info

    def _observe(self, mid_change_sd: np.ndarray) -> np.ndarray:
        ratio = np.maximum(self.variance / self.typical_variance, SMALLEST_VARIANCE_RATIO)
        seen = np.empty((self.n, len(OBSERVATIONS)))
        seen[:, 0] = mid_change_sd
        seen[:, 1] = self.inventory / self.inventory_scale_shares
        seen[:, 2] = self._wealth / self.wealth_scale_dollars
        seen[:, 3] = 1 - self.step_index / self.steps
        seen[:, 4] = np.log(ratio)
        seen[:, 5] = (self._recent[0] - self._recent[1]) / self._net_fills_sd
        seen[:, 6] = (self._recent[0] + self._recent[1]) / self._typical_fills
        return seen


def _poisson(uniform: np.ndarray, expected: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Poisson counts from uniforms through the inverse distribution, cut at `most`; all of one shape."""
    count = np.zeros_like(uniform)
    chance = np.exp(-expected)
    below = chance.copy()
    arrived = 0
    # Upwards until nobody has another one: at a mean of 0.7 that is some five rounds.
    while (more := (uniform >= below) & (count < most) & (count == arrived)).any():
        arrived += 1
        count[more] = arrived
        chance *= expected / arrived
        below += chance
    return count


def _above_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise EnvironmentRefusal(f"{name} = {value}: it must be a number above 0")


# -- policies ----------------------------------------------------------------------------------------------------------

# (environment, observation of shape (n, observations)) -> action of shape (n, actions), inside the box.
Policy = Callable[[MarketMaking, np.ndarray], np.ndarray]


def quote_actions(
    environment: MarketMaking, bid_depth: np.ndarray | float, ask_depth: np.ndarray | float
) -> np.ndarray:
    """The action that quotes these depths: full size, no hedge.

    Args:
        bid_depth, ask_depth: dollars from the mid, numbers or shape (n,); clipped to 0..max_depth, infinity included.

    Returns:
        Shape (n, actions).
    """
    action = np.zeros((environment.n, len(environment.action_names)))
    for column, depth in enumerate((bid_depth, ask_depth)):
        action[:, column] = np.clip(np.asarray(depth) / environment.parameters.max_depth, 0.0, 1.0)
    if environment.parameters.max_size > 1:
        action[:, 2:4] = 1.0
    return action


def fixed_spread(spread_dollars: float) -> Policy:
    """The same spread, symmetric around the mid, whatever the inventory: the benchmark of Avellaneda and Stoikov."""

    def policy(environment: MarketMaking, observation: np.ndarray) -> np.ndarray:
        return quote_actions(environment, spread_dollars / 2, spread_dollars / 2)

    return policy


def avellaneda_stoikov(risk_aversion: float) -> Policy:
    """Quotes of Avellaneda and Stoikov (2008) around their reservation price, at the variance of the instant.

    Args:
        risk_aversion: gamma, per dollar.
    """

    def policy(environment: MarketMaking, observation: np.ndarray) -> np.ndarray:
        return quote_actions(
            environment,
            *closed_form.avellaneda_stoikov_depths(
                environment.inventory,
                environment.time_left,
                environment.variance,
                risk_aversion,
                environment.parameters.depth_decay,
            ),
        )

    return policy


def cartea_jaimungal_table(environment: MarketMaking) -> QuoteTable:
    """Best quotes of one share in continuous time, under the objective of this environment.

    Right for one share, no hedge, a mid that is a martingale and a penalty that does not scale with the variance; else it is a
    benchmark only.
    """
    terms = environment.parameters
    return closed_form.cartea_jaimungal(
        arrival_rate=terms.arrival_rate,
        depth_decay=terms.depth_decay,
        horizon=environment.market.horizon,
        inventory_limit=terms.inventory_limit,
        running_penalty=terms.running_penalty,
        terminal_penalty=terms.terminal_penalty,
        steps=environment.steps,
        fee_per_share=terms.fee_per_share,
        liquidation_half_spread=terms.liquidation_half_spread,
    )


def quoted_from_table(table: QuoteTable) -> Policy:
    """Quotes read from a table over time and inventory; its steps and limit must be the environment's."""
    limit = len(table.inventory) // 2

    def policy(environment: MarketMaking, observation: np.ndarray) -> np.ndarray:
        if len(table.time) != environment.steps + 1 or limit != environment.parameters.inventory_limit:
            raise EnvironmentRefusal(
                f"a table of {len(table.time) - 1} steps and a limit of {limit} shares does not fit an environment of "
                f"{environment.steps} steps and {environment.parameters.inventory_limit} shares"
            )
        step, column = environment.step_index, environment.inventory.astype(np.int64) + limit
        return quote_actions(environment, table.bid_depth[step, column], table.ask_depth[step, column])

    return policy


def table_value(environment: MarketMaking, table: QuoteTable) -> np.ndarray:
    """Exact mean reward, in dollars, of `quoted_from_table` in this environment by inventory and instant.

    Valid under the conditions of `cartea_jaimungal_table`; depths are clipped as the environment clips them.

    Returns:
        Shape (steps + 1, 2 limit + 1); an episode's mean is `[0, limit]`.
    """
    terms = environment.parameters
    if terms.max_size > 1 or terms.penalty_scales_with_variance:
        raise EnvironmentRefusal(
            f"max_size = {terms.max_size} and penalty_scales_with_variance = {terms.penalty_scales_with_variance}: an exact value "
            "exists for quotes of one share and a penalty that does not scale"
        )
    bid_depth, ask_depth = (
        np.clip(depth[:-1], 0.0, terms.max_depth) for depth in (table.bid_depth, table.ask_depth)
    )
    return closed_form.quote_table_value(
        bid_depth,
        ask_depth,
        arrival_rate=terms.arrival_rate,
        depth_decay=terms.depth_decay,
        dt=environment.market.dt,
        running_penalty=terms.running_penalty,
        terminal_penalty=terms.terminal_penalty,
        fills=terms.fills,
        fee_per_share=terms.fee_per_share,
        liquidation_half_spread=terms.liquidation_half_spread,
    )


class Rollout(NamedTuple):
    """What became of n episodes under one policy.

    Attributes:
        reward: sum of rewards, in units of `reward_scale`, shape (n,).
        pnl_dollars: wealth at the end less the cost of liquidation; without penalties, shape (n,).
        final_inventory_shares: before liquidation, shape (n,).
        mean_spread_dollars: average over steps of both depths together, shape (n,).
        inventory_shares: at each instant, shape (n, steps + 1); None unless asked for.
    """

    reward: np.ndarray
    pnl_dollars: np.ndarray
    final_inventory_shares: np.ndarray
    mean_spread_dollars: np.ndarray
    inventory_shares: np.ndarray | None


def rollout(
    environment: MarketMaking,
    policy: Policy,
    rng: np.random.Generator,
    rows: np.ndarray | None = None,
    keep_inventory: bool = False,
) -> Rollout:
    """Run n episodes to their end.

    The same rows and a generator of the same seed give every policy the same mids and market orders.

    Args:
        policy: see `Policy`.
        rng: all randomness of the episodes.
        rows: market path of each episode, shape (n,); drawn when None.
        keep_inventory: whether to return inventory at each instant.
    """
    observation = environment.reset(rng, rows)
    reward, spread = np.zeros(environment.n), np.zeros(environment.n)
    held = [environment.inventory]
    for _ in range(environment.steps):
        observation, now, _, _, info = environment.step(policy(environment, observation))
        reward += now
        spread += info["quoted_spread_dollars"]
        if keep_inventory:
            held.append(info["inventory_shares"])
    return Rollout(
        reward=reward,
        pnl_dollars=info["wealth_dollars"] - info["liquidation_cost_dollars"],
        final_inventory_shares=info["inventory_shares"],
        mean_spread_dollars=spread / environment.steps,
        inventory_shares=np.stack(held, axis=1) if keep_inventory else None,
    )
