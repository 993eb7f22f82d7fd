"""Sell an order within a horizon: what the agent sees every minute, what its sales cost, and the schedules to beat.

Belongs here: the market an order is sold in, the law of its impact, the environment, the accounting of any schedule and
the schedules known before the day (TWAP, VWAP). Does not belong here: where the market comes from (arrays are handed
in), how an agent learns, and which schedule theory calls best (`closed_form.py`).

Time. A *day* is a row of the market; *instants* 0 ... minutes are the open and the ends of the minutes, *minute* k lies
between the instants k and k + 1. At the instant k the agent knows mid and spread up to k and volume of the minutes
before k, and sells n_k shares at

    price_k     = mid_k - permanent_k - spread_k / 2 - temporary_k
    permanent_k = permanent_impact * sigma * mid_0 * (n_0 + ... + n_{k-1}) / V
    temporary_k = temporary_impact * sigma * mid_0 * (n_k / V_k)^a          a = 1 (linear) or 1/2 (square_root)

with sigma the day's volatility as a fraction, V_k the volume expected in the minute k and V that of the day. So a
sale has the price before the minute's move, and moves only the sales after it. What is left at the end of the horizon H
is sold at the instant H: its mid and spread, the temporary impact of a sale in the last minute, and a penalty.

Money. Costs are in basis points of the order's value on arrival, order_shares * mid_0; their sum over the episode is
the implementation shortfall (Perold). The reward is minus the cost of the step, less risk_aversion * variance (dollars
squared) of what is held over the coming minute (`ExecutionParameters.slippage` has other ways to time it): the mean of an episode's rewards is, for a schedule fixed in advance,
minus the mean-variance cost of Almgren and Chriss.

References:
    Perold (1988), The implementation shortfall: paper versus reality, J. Portfolio Management 14.
    Almgren and Chriss (2000), Optimal execution of portfolio transactions, J. Risk 3.
    Huberman and Stanzl (2004), Price manipulation and quasi-arbitrage, Econometrica 72: permanent impact must be linear.
    Almgren, Thum, Hauptmann and Li (2005), Direct estimation of equity market impact, Risk 18.
    Toth et al. (2011), Anomalous price impact and the critical nature of liquidity in financial markets, PRX 1.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from quant_assets.environments.episodes import EnvironmentRefusal, Episodes

RECENT_MINUTES = 15  # over which volume and volatility are seen
MOMENTUM_MINUTES = 10
# The volatility seen starts at the expected one, which weighs as much as this many minutes.
EXPECTED_WEIGHT_MINUTES = 5
# No volume at all is seen as this part of the profile, so that its logarithm is finite.
LEAST_VOLUME = 0.01
# A locked quote is seen as this part of the mid, 0.1 bps, for the same reason.
LEAST_SPREAD = 1e-5
# Observations of the order are relative to this participation.
TYPICAL_PARTICIPATION = 0.05
Slippage = Literal["at_sale", "at_move", "beyond_profile", "none"]
# What floating point may leave of an order that was sold, as part of it.
ROUNDING = 1e-9
SCHEDULE_CHUNK = 1024  # paths in memory at once


# -- the market --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ExecutionMarket:
    """Days that an order can be sold on, one per row; checked once, here.

    Attributes:
        mid: dollars at the instants, above 0, shape (paths, minutes + 1).
        spread: ask - bid in dollars at the instants, 0 or above, shape (paths, minutes + 1).
        volume_shares: shares traded within each minute, 0 or above, shape (paths, minutes).
        expected_volume_shares: the profile known before the day, above 0, shape (paths, minutes).
        daily_volatility: sd of the day's return as a fraction, known before the day: the root of its expected variance
            over the whole row; above 0, shape (paths,).
        draw_id: what each path was drawn from, whole numbers, shape (paths,); only carried along.

    Raises:
        EnvironmentRefusal: shapes differ, or a value is NaN or out of its range.
    """

    mid: np.ndarray
    spread: np.ndarray
    volume_shares: np.ndarray
    expected_volume_shares: np.ndarray
    daily_volatility: np.ndarray
    draw_id: np.ndarray

    def __post_init__(self) -> None:
        volume = np.shape(self.volume_shares)
        if len(volume) != 2 or 0 in volume:
            raise EnvironmentRefusal(
                f"volume_shares has shape {volume}: it must be (paths, minutes), each at least 1"
            )
        paths, minutes = volume
        needed = {
            "mid": (paths, minutes + 1),
            "spread": (paths, minutes + 1),
            "volume_shares": volume,
            "expected_volume_shares": volume,
            "daily_volatility": (paths,),
            "draw_id": (paths,),
        }
        for name, shape in needed.items():
            values = np.asarray(getattr(self, name))
            if values.shape != shape:
                raise EnvironmentRefusal(
                    f"{name} has shape {values.shape}: beside volume_shares of shape {volume} it must be {shape}"
                )
            object.__setattr__(self, name, values)
        ways_out = {
            "mid": "bridge gaps or leave the day out; an arithmetic mid that reaches 0 needs a higher start or less noise",
            "spread": "give instants without a quote the last one, or leave the day out",
            "volume_shares": "a minute without trades has 0",
            "expected_volume_shares": "smooth the profile so that every minute expects some volume",
            "daily_volatility": "it is a fraction, such as 0.01; even a mid that rests has one it was expected to have",
        }
        for name, way_out in ways_out.items():
            values = getattr(self, name)
            least_allowed = name in ("spread", "volume_shares")
            fine = (values >= 0 if least_allowed else values > 0) & (values < np.inf)
            if not fine.all():
                at = tuple(int(i) for i in np.argwhere(~fine)[0])
                raise EnvironmentRefusal(
                    f"{name}[{', '.join(map(str, at))}] = {values[at]}: it must be finite and "
                    f"{'0 or above' if least_allowed else 'above 0'} ({way_out})"
                )

    @property
    def paths(self) -> int:
        """Number of days."""
        return self.volume_shares.shape[0]

    @property
    def minutes(self) -> int:
        """Minutes of a day."""
        return self.volume_shares.shape[1]


def textbook_market(
    *,
    paths: int,
    steps: int,
    seed: int,
    mid0: float = 50.0,
    sigma: float = 0.95,
    spread: float = 0.125,
    expected_volume_shares: float = 1_000_000.0,
    moves: bool = True,
) -> ExecutionMarket:
    """The market of Almgren and Chriss: arithmetic Brownian mid, constant volatility, spread and volume.

    The defaults are their example with a step of a day: 50 dollars, 0.95 dollars per root of a day, an eighth of spread.

    Args:
        paths, steps: at least 1 each; a step is what the environment calls a minute.
        seed: the same seed gives the same bits.
        mid0: dollars.
        sigma: dollars per root of a step.
        spread: dollars; twice the epsilon of Almgren and Chriss.
        expected_volume_shares: of each step, and what is traded.
        moves: False keeps the mid at mid0 while the volatility that is expected stays sigma, so that every cost is its
            own expectation.

    Raises:
        EnvironmentRefusal: as `ExecutionMarket`; above all a mid that falls to 0.
    """
    if min(paths, steps) < 1:
        raise EnvironmentRefusal(f"{paths} paths of {steps} steps: each must be at least 1")
    mid = np.full((paths, steps + 1), float(mid0))
    if moves:
        noise = np.random.default_rng(seed).standard_normal((paths, steps))
        mid[:, 1:] += sigma * np.cumsum(noise, axis=1)
    volume = np.full((paths, steps), float(expected_volume_shares))
    return ExecutionMarket(
        mid=mid,
        spread=np.full((paths, steps + 1), float(spread)),
        volume_shares=volume,
        expected_volume_shares=volume,
        daily_volatility=np.full(paths, sigma * math.sqrt(steps) / mid0),
        draw_id=np.arange(paths),
    )


# -- the order ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExecutionParameters:
    """The order, its costs, and what an action means.

    Attributes:
        order_shares: size of every order; None: drawn for each episode, so that one agent learns all sizes and symbols.
        order_participation_low, order_participation_high: bounds of a drawn order as a fraction of the volume expected
            over the horizon; its log is uniform between them.
        horizon_minutes: minutes to sell in, from the open; at most those of the market.
        minutes_per_decision: an action holds for so many minutes (the last one for what is left of the horizon). 1: the
            agent decides every minute, and what happens at the close has to be learned back through 390 estimates, each
            a little off and each following its target slowly; with 15 it is 26, and the market has not changed much.
        impact: of a sale on its own price: "square_root" or "linear" in its participation n_k / V_k.
        temporary_impact: the concession in units of the day's volatility for a sale as large as the expected volume.
            0.11 is Almgren et al. (2005): 0.142 participation^(3/5), equal to 0.11 participation^(1/2) at 8 % and
            within 15 % of it from 2 % to 30 %. The law of Toth et al. (2011), impact of a whole day's order of
            sigma sqrt(order / V), so a mean cost of 2/3 of that, is 0.67 with `permanent_impact` 0.
        permanent_impact: by how much the price falls, in units of the day's volatility, when the volume expected of the
            day is sold; linear. 1 is Almgren et al. (2005): 0.314 turnover^(-1/4), at a turnover of 1 % a day.
        leftover_penalty_bps: of its value on arrival, on what is left at the end. Above 0, or the end would be one more
            free minute to sell in.
        risk_aversion: lambda, per dollar; 0 is risk neutral. The variance held is that of `daily_volatility`, spread
            evenly over the minutes.
        whole_shares: sales are whole shares; what the agent wants to have left is carried exactly and rounded, so small
            orders keep pace as well.
        slippage: when the market's own move is charged in the rewards; what an episode costs is the same, its info too.
            "at_sale": with each sale, its distance from the arrival mid. "at_move": when it happens, on what is held
            over the minute; the sum over the episode is equal, and no reward depends on an earlier move, which no
            observation shows. "beyond_profile": as at_move, on what is held beyond the expected profile's schedule:
            the episode's sum is less by VWAP's slippage, which no action changes. "none": not at all. Where the mid is
            a martingale, as simulated ones are up to a drift of some basis points a day, this changes no expectation;
            it takes away moves of tens of basis points that would drown costs of a few. Agents are trained with it on
            simulated days, and judged with all of it.
        max_pace: how many times faster than the expected profile the action 1 sells. The share of the remaining order
            sold is min(1, action * max_pace * V_k / (V_k + ... + V_{H-1})): the action 1 / max_pace, held, is VWAP
            (TWAP where the profile is flat), and an agent that knows nothing yet spreads its order over the day, where
            a bare share of 1/2 would dump nearly all of it within five minutes. At least 1, or VWAP could not be done.
            None: the action is the share.

    Raises:
        EnvironmentRefusal: a value is NaN or out of its range.
    """

    order_shares: float | None = None
    order_participation_low: float = 0.01
    order_participation_high: float = 0.2
    horizon_minutes: int = 390
    minutes_per_decision: int = 1
    impact: Literal["linear", "square_root"] = "square_root"
    temporary_impact: float = 0.11
    permanent_impact: float = 1.0
    leftover_penalty_bps: float = 10.0
    risk_aversion: float = 0.0
    whole_shares: bool = True
    slippage: Slippage = "at_sale"
    max_pace: float | None = 5.0

    def __post_init__(self) -> None:
        if self.order_shares is not None:
            _check_orders(np.asarray(self.order_shares, np.float64), self.whole_shares)
        low, high = self.order_participation_low, self.order_participation_high
        if not 0 < low <= high < math.inf:
            raise EnvironmentRefusal(
                f"order_participation_low = {low}, order_participation_high = {high}: fractions of the horizon's expected "
                "volume with 0 < low <= high are needed"
            )
        if operator.index(self.horizon_minutes) < 1:
            raise EnvironmentRefusal(
                f"horizon_minutes = {self.horizon_minutes}: at least 1 minute is needed to sell in"
            )
        if operator.index(self.minutes_per_decision) < 1:
            raise EnvironmentRefusal(
                f"minutes_per_decision = {self.minutes_per_decision}: a decision holds for at least 1 minute"
            )
        if self.impact not in ("linear", "square_root"):
            raise EnvironmentRefusal(f"impact = {self.impact!r}: it is 'linear' or 'square_root'")
        if self.slippage not in get_args(Slippage):
            raise EnvironmentRefusal(f"slippage = {self.slippage!r}: it is one of {get_args(Slippage)}")
        for name in ("temporary_impact", "permanent_impact", "leftover_penalty_bps", "risk_aversion"):
            if not 0 <= getattr(self, name) < math.inf:
                raise EnvironmentRefusal(
                    f"{name} = {getattr(self, name)}: it must be a finite number, 0 or above"
                )
        if self.max_pace is not None and not 1 <= self.max_pace < math.inf:
            raise EnvironmentRefusal(
                f"max_pace = {self.max_pace}: it must be at least 1, the pace of the profile, or None for bare shares"
            )

    @staticmethod
    def almgren_chriss(
        market: ExecutionMarket,
        *,
        order_shares: float,
        eta: float,
        gamma: float,
        step_days: float = 1.0,
        risk_aversion: float = 0.0,
        leftover_penalty_bps: float = 0.0,
        whole_shares: bool = True,
        slippage: Slippage = "at_sale",
        max_pace: float | None = None,
    ) -> ExecutionParameters:
        """Their impact h(v) = epsilon + eta v and g(v) = gamma v, exactly, on a `textbook_market` over all of its steps.

        Args:
            market: one opening mid, volatility and expected volume for all; half of its spread is epsilon.
            order_shares: X.
            eta: dollars per share, for a sale of one share a day.
            gamma: dollars per share, for each share sold.
            step_days: tau, length of a step of the market in days. Its sigma per root of a step is theirs times sqrt(tau).
            risk_aversion: lambda, per dollar.
            leftover_penalty_bps, whole_shares, slippage, max_pace: as in the class.

        Raises:
            EnvironmentRefusal: the market is not of one kind, or a number is out of its range.
        """
        expected, volatility, mid0 = market.expected_volume_shares, market.daily_volatility, market.mid[:, 0]
        for name, values in (
            ("expected_volume_shares", expected),
            ("daily_volatility", volatility),
            ("mid at the open", mid0),
        ):
            if np.ptp(values) > ROUNDING * np.max(values):
                raise EnvironmentRefusal(
                    f"{name} goes from {np.min(values):g} to {np.max(values):g}: Almgren and Chriss know one value, take a "
                    "textbook_market"
                )
        if not 0 < step_days < math.inf:
            raise EnvironmentRefusal(f"step_days = {step_days}: it must be a finite number above 0")
        per_step, sigma_dollars = float(expected[0, 0]), float(volatility[0] * mid0[0])
        return ExecutionParameters(
            order_shares=order_shares,
            horizon_minutes=market.minutes,
            impact="linear",
            temporary_impact=eta / step_days * per_step / sigma_dollars,
            permanent_impact=gamma * per_step * market.minutes / sigma_dollars,
            leftover_penalty_bps=leftover_penalty_bps,
            risk_aversion=risk_aversion,
            whole_shares=whole_shares,
            slippage=slippage,
            max_pace=max_pace,
        )


def draw_orders(
    market: ExecutionMarket,
    parameters: ExecutionParameters,
    rng: np.random.Generator,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Sizes of orders on the paths `rows` (all when None), shares, shape (n,); at least 1 share where they are whole.

    Orders of a fixed size take nothing from `rng`, drawn ones one uniform number each.
    """
    _check_horizon(market, parameters)
    rows = _check_rows(market, rows)
    if parameters.order_shares is not None:
        return np.full(len(rows), float(parameters.order_shares))
    low, high = math.log(parameters.order_participation_low), math.log(parameters.order_participation_high)
    volume = market.expected_volume_shares[rows, : parameters.horizon_minutes].sum(axis=1)
    orders = volume * np.exp(low + (high - low) * rng.random(len(rows)))
    return np.maximum(np.rint(orders), 1.0) if parameters.whole_shares else orders


def square_root_impact_total(shares_per_slice: np.ndarray, alpha: float) -> np.ndarray:
    """Sum over the slices of alpha sqrt(shares): each slice's price impact as a fraction, added, not averaged.

    N equal slices of an order of S shares: N alpha sqrt(S / N) = alpha sqrt(N S). What a share of the order pays is the
    mean of the impacts weighted by shares, here the N-th part of the sum.

    Args:
        shares_per_slice: 0 or above, shape (..., slices).
        alpha: fraction of the price per root of a share.

    Returns:
        Shape (...).

    >>> round(float(square_root_impact_total(np.full(390, 1000 / 390), 4.439584265535017e-06)), 8)
    0.00277252
    """
    shares = np.asarray(shares_per_slice, np.float64)
    if not (shares >= 0).all():
        raise EnvironmentRefusal(f"shares_per_slice has {shares[~(shares >= 0)][0]}: shares are 0 or above")
    return alpha * np.sqrt(shares).sum(axis=-1)


def _check_orders(orders: np.ndarray, whole_shares: bool) -> np.ndarray:
    for wrong, rule in (
        (~((orders > 0) & (orders < np.inf)), "an order is a finite number of shares above 0"),
        (
            (orders != np.rint(orders)) & whole_shares,
            "with whole_shares an order is whole: round it, or set whole_shares=False",
        ),
    ):
        if wrong.any():
            raise EnvironmentRefusal(f"order_shares = {orders[wrong].ravel()[0]}: {rule}")
    return orders


def _check_horizon(market: ExecutionMarket, parameters: ExecutionParameters) -> None:
    if parameters.horizon_minutes > market.minutes:
        raise EnvironmentRefusal(
            f"horizon_minutes = {parameters.horizon_minutes}: the market has {market.minutes} minutes; shorten the horizon"
        )


def _check_rows(market: ExecutionMarket, rows: np.ndarray | None) -> np.ndarray:
    rows = np.arange(market.paths) if rows is None else np.asarray(rows)
    if (
        rows.ndim != 1
        or not len(rows)
        or rows.dtype.kind not in "iu"
        or rows.min() < 0
        or rows.max() >= market.paths
    ):
        raise EnvironmentRefusal(
            f"rows of shape {rows.shape} and type {rows.dtype}: whole numbers from 0 to {market.paths - 1} are needed, "
            "shape (n,), at least one"
        )
    return rows


# -- what sales cost ---------------------------------------------------------------------------------------------------


class _Scales(NamedTuple):
    """Of each episode, shape (n,), or (n, 1) to go with minutes."""

    mid0: np.ndarray  # dollars
    temporary: np.ndarray  # dollars per share, at participation 1
    permanent: np.ndarray  # dollars per share, for each share sold before
    risk: np.ndarray  # risk aversion times variance of a share over a minute, dollars
    bps: np.ndarray  # basis points of the order's value on arrival, per dollar


class _Costs(NamedTuple):
    """Of sales, in dollars, any shape."""

    slippage: np.ndarray
    spread: np.ndarray
    temporary_impact: np.ndarray
    permanent_impact: np.ndarray


def _scales(
    market: ExecutionMarket, parameters: ExecutionParameters, rows: np.ndarray, orders: np.ndarray
) -> _Scales:
    mid0 = market.mid[rows, 0].astype(np.float64)
    sigma_dollars = market.daily_volatility[rows] * mid0
    return _Scales(
        mid0=mid0,
        temporary=parameters.temporary_impact * sigma_dollars,
        permanent=parameters.permanent_impact
        * sigma_dollars
        / market.expected_volume_shares[rows].sum(axis=1),
        risk=parameters.risk_aversion * sigma_dollars**2 / market.minutes,
        bps=1e4 / (orders * mid0),
    )


def _cost_of_sales(
    parameters: ExecutionParameters,
    scales: _Scales,
    sold: np.ndarray,
    sold_before: np.ndarray,
    mid: np.ndarray,
    spread: np.ndarray,
    expected_volume: np.ndarray,
) -> tuple[_Costs, np.ndarray]:
    """The law of the module's docstring, for every sale and every schedule; and the prices, dollars."""
    participation = sold / expected_volume
    if parameters.impact == "square_root":
        participation = np.sqrt(participation)
    slippage = scales.mid0 - mid
    half_spread = 0.5 * spread
    temporary = scales.temporary * participation
    permanent = scales.permanent * sold_before
    price = mid - permanent - half_spread - temporary
    return _Costs(sold * slippage, sold * half_spread, sold * temporary, sold * permanent), price


class ExecutionCosts(NamedTuple):
    """What a schedule cost on each path; all of shape (n,). The five parts add up to the implementation shortfall.

    Attributes:
        shortfall_dollars: order_shares * mid_0 less the proceeds and plus the penalty.
        implementation_shortfall_bps: the same, in basis points of order_shares * mid_0 as everything below.
        slippage_bps: the market's own move away from the arrival mid.
        spread_bps: half of the quoted spread.
        temporary_impact_bps, permanent_impact_bps: of the sales themselves.
        leftover_bps: penalty on what was left; the costs of selling it are in the other parts.
        risk_bps: risk aversion times variance held; not part of the shortfall.
        leftover_shares: left at the end of the horizon and sold at once.
    """

    shortfall_dollars: np.ndarray
    implementation_shortfall_bps: np.ndarray
    slippage_bps: np.ndarray
    spread_bps: np.ndarray
    temporary_impact_bps: np.ndarray
    permanent_impact_bps: np.ndarray
    leftover_bps: np.ndarray
    risk_bps: np.ndarray
    leftover_shares: np.ndarray

    @property
    def reward(self) -> np.ndarray:
        """What the environment pays for the same sales, summed over the episode."""
        return -(self.implementation_shortfall_bps + self.risk_bps)


def _charge(
    scales: _Scales, costs: _Costs, penalty: np.ndarray, variance: np.ndarray, leftover: np.ndarray
) -> ExecutionCosts:
    """Args in dollars, shape (n,); variance is shares squared, summed over minutes."""
    total = costs.slippage + costs.spread + costs.temporary_impact + costs.permanent_impact + penalty
    bps = scales.bps
    return ExecutionCosts(
        shortfall_dollars=total,
        implementation_shortfall_bps=total * bps,
        slippage_bps=costs.slippage * bps,
        spread_bps=costs.spread * bps,
        temporary_impact_bps=costs.temporary_impact * bps,
        permanent_impact_bps=costs.permanent_impact * bps,
        leftover_bps=penalty * bps,
        risk_bps=scales.risk * variance * bps,
        leftover_shares=leftover,
    )


# -- schedules ---------------------------------------------------------------------------------------------------------


def twap_schedule(
    parameters: ExecutionParameters, order_shares: np.ndarray | float | None = None
) -> np.ndarray:
    """The same number of shares every minute, whole where they must be; the sum is the order.

    Args:
        order_shares: shape (n,), as `ExecutionEpisodes.order_shares`, or one number; None: the fixed size of the
            parameters.

    Returns:
        Shares, shape (n, horizon), or (horizon,) for one size.
    """
    steps = parameters.horizon_minutes
    orders = parameters.order_shares if order_shares is None else order_shares
    if orders is None:
        raise EnvironmentRefusal("order_shares is drawn for each episode: give the sizes, see draw_orders")
    orders = _check_orders(np.asarray(orders, np.float64), parameters.whole_shares)
    return _spread_over(orders[..., None] * (np.arange(1, steps + 1) / steps), parameters.whole_shares)


def vwap_schedule(
    market: ExecutionMarket,
    parameters: ExecutionParameters,
    rows: np.ndarray | None = None,
    order_shares: np.ndarray | float | None = None,
) -> np.ndarray:
    """Shares in proportion to the expected volume, known before the day; whole where they must be; the sum is the order.

    Args:
        rows: paths, shape (n,); all when None.
        order_shares: shape (n,) or one number; None: the fixed size of the parameters.

    Returns:
        Shares, shape (n, horizon).
    """
    _check_horizon(market, parameters)
    rows = _check_rows(market, rows)
    orders = _orders_of(parameters, len(rows), order_shares)
    done = np.cumsum(
        market.expected_volume_shares[rows, : parameters.horizon_minutes], axis=1, dtype=np.float64
    )
    return _spread_over(orders[:, None] * (done / done[:, -1:]), parameters.whole_shares)


def whole_schedule(schedule: np.ndarray) -> np.ndarray:
    """The schedule (..., steps) in whole shares: what is sold up to each minute is rounded, so no minute is off by more than 1.

    Raises:
        EnvironmentRefusal: its sum is not whole.
    """
    done = np.cumsum(np.asarray(schedule, np.float64), axis=-1)
    if not (np.abs(done[..., -1] - np.rint(done[..., -1])) <= ROUNDING * (1 + done[..., -1])).all():
        raise EnvironmentRefusal(
            f"a schedule adds up to {np.ravel(done[..., -1])[0]} shares: its sum must be whole"
        )
    return _spread_over(done, whole_shares=True)


def _spread_over(done: np.ndarray, whole_shares: bool) -> np.ndarray:
    """Shares of each minute from those sold by its end."""
    return np.diff(np.rint(done) if whole_shares else done, axis=-1, prepend=0.0)


def _orders_of(
    parameters: ExecutionParameters, n: int, order_shares: np.ndarray | float | None
) -> np.ndarray:
    if order_shares is None:
        if parameters.order_shares is None:
            raise EnvironmentRefusal(
                "order_shares is drawn for each episode: give the sizes, see draw_orders"
            )
        return np.full(n, float(parameters.order_shares))
    orders = np.asarray(order_shares, np.float64)
    if orders.shape not in ((), (n,)):
        raise EnvironmentRefusal(f"order_shares has shape {orders.shape}: it must be a number or ({n},)")
    return np.broadcast_to(_check_orders(orders, parameters.whole_shares), (n,))


def run_schedule(
    market: ExecutionMarket,
    parameters: ExecutionParameters,
    schedule: np.ndarray,
    rows: np.ndarray | None = None,
    order_shares: np.ndarray | float | None = None,
) -> ExecutionCosts:
    """What a schedule fixed in advance costs: the accounting of the environment without its steps.

    Args:
        schedule: shares sold at each instant, 0 or above, shape (horizon,) or (n, horizon).
        rows: paths, shape (n,); all when None.
        order_shares: shape (n,) or one number; None: the fixed size of the parameters. What the schedule leaves of it is
            sold at the end.

    Raises:
        EnvironmentRefusal: a sale is NaN, negative or not whole where it must be, or a schedule sells more than the order.
    """
    _check_horizon(market, parameters)
    rows = _check_rows(market, rows)
    n, steps = len(rows), parameters.horizon_minutes
    orders = _orders_of(parameters, n, order_shares)
    sold = np.asarray(schedule, np.float64)
    if sold.shape not in ((steps,), (n, steps)):
        raise EnvironmentRefusal(
            f"schedule has shape {sold.shape}: it must be ({steps},) or ({n}, {steps}), in shares"
        )
    fine = (sold >= 0) & (sold < np.inf)
    if not fine.all():
        raise EnvironmentRefusal(
            f"schedule sells {sold[~fine][0]} shares: every minute's sale is finite and 0 or above"
        )
    if parameters.whole_shares and (sold != np.rint(sold)).any():
        raise EnvironmentRefusal(
            f"schedule sells {sold[sold != np.rint(sold)][0]} shares: use whole_schedule, or set whole_shares=False"
        )
    sold = np.broadcast_to(sold, (n, steps))
    chunks = [slice(at, at + SCHEDULE_CHUNK) for at in range(0, n, SCHEDULE_CHUNK)]
    done = [_run_chunk(market, parameters, sold[at], rows[at], orders[at]) for at in chunks]
    return ExecutionCosts(*(np.concatenate(parts) for parts in zip(*done, strict=True)))


def _run_chunk(
    market: ExecutionMarket,
    parameters: ExecutionParameters,
    sold: np.ndarray,
    rows: np.ndarray,
    orders: np.ndarray,
) -> ExecutionCosts:
    steps = parameters.horizon_minutes
    done = np.cumsum(sold, axis=1)
    left = orders[:, None] - done
    left = np.where(np.abs(left) <= ROUNDING * orders[:, None], 0.0, left)
    if (left < 0).any():
        at = int(np.argmax((left < 0).any(axis=1)))
        raise EnvironmentRefusal(
            f"schedule on market path {rows[at]} sells {done[at, -1]} of {orders[at]} shares: sell less"
        )
    scales = _scales(market, parameters, rows, orders)
    by_minute = _Scales(*(values[:, None] for values in scales))
    mid, spread = market.mid[rows, : steps + 1], market.spread[rows, : steps + 1]
    expected = market.expected_volume_shares[rows, :steps]
    costs, _ = _cost_of_sales(parameters, by_minute, sold, done - sold, mid[:, :-1], spread[:, :-1], expected)
    leftover = left[:, -1]
    last, _ = _cost_of_sales(
        parameters, scales, leftover, done[:, -1], mid[:, -1], spread[:, -1], expected[:, -1]
    )
    total = _Costs(*(part.sum(axis=1) + end for part, end in zip(costs, last, strict=True)))
    penalty = leftover * scales.mid0 * (parameters.leftover_penalty_bps * 1e-4)
    return _charge(scales, total, penalty, (left**2).sum(axis=1), leftover)


# -- the environment ---------------------------------------------------------------------------------------------------


class ExecutionEpisodes(Episodes):
    """n orders sold in lock-step, one decision a minute or every `minutes_per_decision`.

    The action, 1 number in [0, 1], is how fast to sell now: see `ExecutionParameters.max_pace`.

    Observations at the instant k of a decision, all known then:

    - `shares_left_fraction` of the order, `time_left_fraction` of the horizon;
    - `spread_log`: log of the quoted spread over its mean since the open;
    - `volume_to_profile_log`: log of the last 15 minutes' volume over their profile; 0 at the open;
    - `volatility_log`: log of the realized volatility of the last 15 minutes over the expected one, from mids, drawn
      to 0 by 5 minutes' worth of expectation (two returns alone say little); 0 at the open;
    - `momentum_sd`: log return of the last 10 minutes in units of its expected sd; 0 at the open;
    - `order_participation_log`: log of order over 5 % of the volume expected over the horizon.

    The info of a step has, of shape (n,): the fields of `ExecutionCosts` for this step alone; `sold_shares`, by the
    agent's decision; `price_dollars` of the step's last sale (of a first share where nothing is sold); `shares_left`
    after the step. The last step also sells `leftover_shares`. `sold_by_minute` has shape (n, minutes of the step).

    Args:
        market: days to sell on.
        parameters: order, costs and action.
        n: episodes at once.

    Attributes:
        order_shares: sizes of the current orders, float64, shape (n,).
        shares_left: of them, float64, shape (n,).

    Raises:
        EnvironmentRefusal: the horizon exceeds the market's minutes.
    """

    name = "execution"
    observation_names = (
        "shares_left_fraction",
        "time_left_fraction",
        "spread_log",
        "volume_to_profile_log",
        "volatility_log",
        "momentum_sd",
        "order_participation_log",
    )
    action_names = ("pace",)

    def __init__(self, market: ExecutionMarket, parameters: ExecutionParameters, n: int = 1) -> None:
        _check_horizon(market, parameters)
        super().__init__(n, -(-parameters.horizon_minutes // parameters.minutes_per_decision), market.paths)
        self.market, self.parameters = market, parameters
        steps = parameters.horizon_minutes
        # By minute first: a step gathers from one row of contiguous numbers.
        self._mid = _by_minute(market.mid[:, : steps + 1])
        self._spread = _by_minute(market.spread[:, : steps + 1])
        self._expected = _by_minute(market.expected_volume_shares[:, :steps])
        # V_k over the volume expected from k to the end; exactly 1 in the last minute.
        self._profile = self._expected / np.cumsum(self._expected[::-1], axis=0)[::-1]
        # Part of an order that the profile's schedule holds after its sale at k.
        self._profile_holds = 1.0 - np.cumsum(self._expected, axis=0) / self._expected.sum(axis=0)
        self._features = _features(market, steps)
        self.order_shares = np.zeros(n)
        self.shares_left = np.zeros(n)

    def action_for(self, sell_shares: np.ndarray | float) -> np.ndarray:
        """The actions that sell so many shares now, shape (n, 1): how a schedule is run through the environment.

        Raises:
            EnvironmentRefusal: it is more than what is left, or faster than `max_pace` allows.
        """
        k = self._running_minute()
        sell = np.broadcast_to(np.asarray(sell_shares, np.float64), (self.n,))
        fine = (sell >= 0) & (sell <= self.shares_left * (1 + ROUNDING))
        if not fine.all():
            at = int(np.argmin(fine))
            raise EnvironmentRefusal(
                f"sell_shares = {sell[at]} of episode {at}: it has {self.shares_left[at]} shares left"
            )
        pace = self.parameters.max_pace
        # Towards a whole number of shares left, whatever fraction was carried so far.
        target = np.divide(
            self.shares_left - sell, self._wanted, out=np.zeros(self.n), where=self._wanted > 0
        )
        share = np.where(sell > 0, np.clip(1.0 - target, 0.0, 1.0), 0.0)
        action = share if pace is None else share / (pace * self._profile[k][self.rows])
        if (action > 1 + ROUNDING).any():
            at = int(np.argmax(action))
            raise EnvironmentRefusal(
                f"sell_shares = {sell[at]} of episode {at} is {action[at] * (pace or 1):.3g} times the pace of the profile, "
                f"max_pace is {pace}: raise it, or take None"
            )
        return np.minimum(action, 1.0)[:, None]

    def _running_minute(self) -> int:
        if self.step_index >= self.steps:
            raise EnvironmentRefusal("execution: the episodes have ended (or never begun): call reset first")
        if self.parameters.minutes_per_decision > 1:
            raise EnvironmentRefusal(
                f"minutes_per_decision = {self.parameters.minutes_per_decision}: an action holds for several minutes, no one "
                "sale is its own; use run_schedule, or a decision every minute"
            )
        return self.step_index

    def _begin(self) -> np.ndarray:
        assert self.rng is not None
        market, parameters, rows = self.market, self.parameters, self.rows
        self.order_shares = draw_orders(market, parameters, self.rng, rows)
        self.shares_left = self.order_shares.copy()
        # What the agent wants to have left; shares_left is this, rounded where shares are whole.
        self._wanted = self.order_shares.copy()
        self._scales = _scales(market, parameters, rows, self.order_shares)
        volume = market.expected_volume_shares[rows, : parameters.horizon_minutes].sum(axis=1)
        self._participation_log = np.log(self.order_shares / volume / TYPICAL_PARTICIPATION)
        return self._observation()

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        per_decision, horizon = self.parameters.minutes_per_decision, self.parameters.horizon_minutes
        first = (self.step_index - 1) * per_decision
        minutes = [self._sell(k, action[:, 0]) for k in range(first, min(first + per_decision, horizon))]
        charged = ExecutionCosts._make(sum(parts) for parts in zip(*(m[0] for m in minutes), strict=True))
        sold = np.stack([m[1] for m in minutes], axis=1)
        info = charged._asdict() | {
            "sold_shares": sold.sum(axis=1),
            "sold_by_minute": sold,
            "price_dollars": minutes[-1][2],
            "shares_left": self.shares_left,
        }
        reward = charged.reward
        if self.parameters.slippage != "at_sale":
            reward = reward + charged.slippage_bps + sum(m[3] for m in minutes)
        return self._observation(), reward, info

    def _sell(
        self, k: int, pace: np.ndarray
    ) -> tuple[ExecutionCosts, np.ndarray, np.ndarray, np.ndarray | float]:
        """The sale at the instant k: its costs, shares, price, and the move that `slippage` charges instead (bps)."""
        rows, parameters, scales = self.rows, self.parameters, self._scales
        share = pace
        if parameters.max_pace is not None:
            share = np.minimum(pace * parameters.max_pace * self._profile[k][rows], 1.0)
        self._wanted = self._wanted * (1.0 - share)
        left = np.rint(self._wanted) if parameters.whole_shares else self._wanted
        sold, sold_before = self.shares_left - left, self.order_shares - self.shares_left
        expected = self._expected[k][rows]
        costs, price = _cost_of_sales(
            parameters, scales, sold, sold_before, self._mid[k][rows], self._spread[k][rows], expected
        )
        held, leftover = left, np.zeros(self.n)
        penalty = leftover
        if k == parameters.horizon_minutes - 1:
            leftover = left
            mid, spread = self._mid[-1][rows], self._spread[-1][rows]
            last, _ = _cost_of_sales(
                parameters, scales, leftover, self.order_shares - leftover, mid, spread, expected
            )
            costs = _Costs(*(part + end for part, end in zip(costs, last, strict=True)))
            penalty = leftover * scales.mid0 * (parameters.leftover_penalty_bps * 1e-4)
            left = np.zeros(self.n)
        self.shares_left = left
        charged = _charge(scales, costs, penalty, held * held, leftover)
        if parameters.slippage in ("at_sale", "none"):
            return charged, sold, price, 0.0
        if parameters.slippage == "beyond_profile":
            held = held - self._profile_holds[k][rows] * self.order_shares
        return charged, sold, price, held * (self._mid[k + 1][rows] - self._mid[k][rows]) * scales.bps

    def _observation(self) -> np.ndarray:
        horizon = self.parameters.horizon_minutes
        k = min(self.step_index * self.parameters.minutes_per_decision, horizon)
        observation = np.empty((self.n, len(self.observation_names)))
        observation[:, 0] = self.shares_left / self.order_shares
        observation[:, 1] = 1.0 - k / horizon
        observation[:, 2:6] = self._features[k][self.rows]
        observation[:, 6] = self._participation_log
        return observation


def _by_minute(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.T, dtype=np.float64)


def _features(market: ExecutionMarket, steps: int) -> np.ndarray:
    """Observations 2 to 5 of every path at the instants 0 ... steps, float32, shape (steps + 1, paths, 4).

    Sums run from the open and windows are their differences, so nothing after an instant can reach it.
    """
    features = np.zeros((steps + 1, market.paths, 4), np.float32)
    for at in range(0, market.paths, SCHEDULE_CHUNK):
        chunk = slice(at, at + SCHEDULE_CHUNK)
        mid, spread = market.mid[chunk, : steps + 1], market.spread[chunk, : steps + 1]
        seen = np.maximum(spread, LEAST_SPREAD * mid)
        features[:, chunk, 0] = np.log(seen / (np.cumsum(seen, axis=1) / np.arange(1, steps + 2))).T

        instants = np.arange(steps + 1)
        before = np.maximum(instants - RECENT_MINUTES, 0)
        volume = _sum_since(market.volume_shares[chunk, :steps], before)
        expected = _sum_since(market.expected_volume_shares[chunk, :steps], before)
        least = LEAST_VOLUME * expected[:, 1:]
        features[1:, chunk, 1] = np.log((volume[:, 1:] + least) / (expected[:, 1:] + least)).T

        log_mid = np.log(mid)
        per_minute = (market.daily_volatility[chunk] ** 2 / market.minutes)[:, None]
        squares = np.maximum(_sum_since(np.diff(log_mid, axis=1) ** 2, before), 0.0)
        weight = EXPECTED_WEIGHT_MINUTES
        variance = (squares + weight * per_minute) / ((instants - before + weight) * per_minute)
        features[:, chunk, 2] = 0.5 * np.log(variance).T

        before = np.maximum(instants - MOMENTUM_MINUTES, 0)
        sd = np.sqrt(np.maximum(instants - before, 1) * per_minute)
        features[:, chunk, 3] = ((log_mid - log_mid[:, before]) / sd).T
    return features


def _sum_since(values: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Sums of values (paths, minutes) from the instants `before` to each instant, shape (paths, minutes + 1)."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums - sums[:, before]
