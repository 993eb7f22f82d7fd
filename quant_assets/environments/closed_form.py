"""What theory says is best: schedules and quotes that have a formula, and exact values of quotes that have none.

Belongs here: formulas and recursions of published models, numpy and scipy only. Does not belong here: environments, random
numbers, agents.

Three models:

- Almgren and Chriss: a large order sold in periods, linear impact, cost against variance.
- Avellaneda and Stoikov: quotes of a dealer with exponential utility, as a formula of inventory and time left.
- Cartea and Jaimungal: quotes of a dealer with penalties on inventory, as a table over time and inventory; with it the exact
  value, and the exact distribution of inventory, of *any* table of quotes, so that quotes are compared without
  Monte Carlo noise.

Dealers: market orders arrive on each side at `arrival_rate` A per unit of time, and one that finds our quote `depth` dollars from
the mid fills it with probability exp(-k depth), k = `depth_decay` per dollar. The mid is a martingale. A unit of time is whatever
rates, variances and horizons are given in; it must be the same one for all.

References:
    Almgren and Chriss (2000), Optimal execution of portfolio transactions, J. Risk 3(2).
    Avellaneda and Stoikov (2008), High-frequency trading in a limit order book, Quantitative Finance 8(3).
    Cartea, Jaimungal and Penalva (2015), Algorithmic and High-Frequency Trading, chapter 10, Cambridge University Press.
    Guéant, Lehalle and Fernandez-Tapia (2013), Dealing with the inventory risk, Math. Financial Economics 7(4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.special import logsumexp

Fills = Literal["at_most_one", "poisson"]


def _needs(name: str, value: float, at_least: float, strictly: bool) -> None:
    # A NaN compares false, so it is caught as well.
    if not (math.isfinite(value) and (value > at_least if strictly else value >= at_least)):
        raise ValueError(
            f"{name} = {value}: it must be a number {'above' if strictly else 'of at least'} {at_least:g}"
        )


# -- Almgren and Chriss ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlmgrenChriss:
    """An order to sell, and a market with linear impact; a purchase is its mirror image.

    Attributes:
        order_shares: X, shares to sell, above 0.
        horizon: T, time until all is sold.
        periods: N, of equal length tau = T / N; in each one sale.
        volatility: sigma, of the price, dollars per square root of a unit of time.
        permanent_impact: gamma, dollars of price that each share sold takes away for good.
        temporary_impact: eta, dollars per share for each share per unit of time.
        half_spread: epsilon, dollars per share sold, whatever the size.

    Raises:
        ValueError: a field is out of its range, or eta - gamma tau / 2 is not above 0: then no schedule is best.
    """

    order_shares: float
    horizon: float
    periods: int
    volatility: float
    permanent_impact: float
    temporary_impact: float
    half_spread: float

    def __post_init__(self) -> None:
        for name in ("order_shares", "horizon"):
            _needs(name, getattr(self, name), 0, strictly=True)
        _needs("periods", self.periods, 1, strictly=False)
        for name in ("volatility", "permanent_impact", "temporary_impact", "half_spread"):
            _needs(name, getattr(self, name), 0, strictly=False)
        if not self.effective_temporary_impact > 0:
            raise ValueError(
                f"temporary_impact - permanent_impact * tau / 2 = {self.effective_temporary_impact:g} with tau = {self.tau:g}: "
                "it must be above 0; take more periods or a larger temporary_impact"
            )

    @property
    def tau(self) -> float:
        """Length of a period, in units of time."""
        return self.horizon / self.periods

    @property
    def effective_temporary_impact(self) -> float:
        """eta~ = eta - gamma tau / 2: a sale does not pay its own permanent impact in full."""
        return self.temporary_impact - self.permanent_impact * self.tau / 2


class ExecutionFrontier(NamedTuple):
    """Best schedules over a range of risk aversions.

    Attributes:
        risk_aversion: lambda, per dollar, shape (points,).
        sales: shares sold in each period, shape (points, periods).
        expected_cost: dollars of shortfall against the price at the start, shape (points,).
        cost_variance: dollars squared, shape (points,).
    """

    risk_aversion: np.ndarray
    sales: np.ndarray
    expected_cost: np.ndarray
    cost_variance: np.ndarray


def almgren_chriss_kappa(model: AlmgrenChriss, risk_aversion: float | np.ndarray) -> np.ndarray:
    """Urgency kappa, per unit of time: 1 / kappa is the time in which what is left falls to 1/e.

    Solves 2 (cosh(kappa tau) - 1) / tau^2 = lambda sigma^2 / eta~ (Almgren and Chriss 2000, equation 15), exactly. It is
    their arccosh, written with the half angle as an arcsinh because arccosh loses all digits for small lambda.

    Args:
        risk_aversion: lambda, per dollar, at least 0; any shape.
    """
    aversion = np.asarray(risk_aversion, np.float64)
    if not (np.isfinite(aversion).all() and (aversion >= 0).all()):
        raise ValueError(f"risk_aversion = {risk_aversion}: every lambda must be a number of at least 0")
    kappa_squared = aversion * model.volatility**2 / model.effective_temporary_impact
    return 2 * np.arcsinh(np.sqrt(kappa_squared) * model.tau / 2) / model.tau


def almgren_chriss_trajectory(model: AlmgrenChriss, risk_aversion: float | np.ndarray) -> np.ndarray:
    """Sales in each period that minimise E[cost] + lambda Var[cost].

    Shares left after period j are X sinh(kappa (T - j tau)) / sinh(kappa T) (Almgren and Chriss 2000, equation 18); without
    risk aversion they fall along a line (TWAP). Drift of the price is ignored.

    Args:
        model: order and market.
        risk_aversion: lambda, per dollar, at least 0; any shape.

    Returns:
        n_1..n_N in shares, their sum is X; shape (*shape of risk_aversion, periods).

    >>> order = AlmgrenChriss(1e6, 5, 5, 0.95, 2.5e-7, 2.5e-6, 0.0625)
    >>> (almgren_chriss_trajectory(order, 1e-6) / 1000).round(1).tolist()
    [458.0, 252.1, 142.0, 85.8, 62.1]
    """
    kappa = almgren_chriss_kappa(model, risk_aversion)[..., None]
    time_left = model.horizon * (1 - np.arange(model.periods + 1) / model.periods)
    # sinh(a) / sinh(b) without overflow. Below 1e-8 the curve is the line to the last bit and the quotient 0 / 0.
    curved = kappa * model.horizon > 1e-8
    safe = np.where(curved, kappa, 1.0)
    curve = (
        np.exp(safe * (time_left - model.horizon))
        * np.expm1(-2 * safe * time_left)
        / np.expm1(-2 * safe * model.horizon)
    )
    left = np.where(curved, curve, time_left / model.horizon)
    return -np.diff(left, axis=-1) * model.order_shares


def almgren_chriss_cost(model: AlmgrenChriss, sales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected cost and variance of any schedule.

    E = gamma X^2 / 2 + epsilon sum |n_j| + eta~ / tau sum n_j^2 and Var = sigma^2 tau sum x_j^2, where x_j is left after
    period j (Almgren and Chriss 2000, equations 4, 5 and 8).

    Args:
        sales: shares in each period, shape (..., periods); each row sums to the order. A negative sale is a purchase.

    Returns:
        Expected cost in dollars and its variance in dollars squared, each of shape (...).

    Raises:
        ValueError: the periods or the sum do not fit the order.
    """
    sales = np.asarray(sales, np.float64)
    if sales.shape[-1:] != (model.periods,):
        raise ValueError(f"sales have shape {sales.shape}, the last axis must be the {model.periods} periods")
    sold = sales.sum(-1)
    if not np.allclose(sold, model.order_shares, rtol=1e-9):
        raise ValueError(
            f"sales sum to {sold} shares, the order is {model.order_shares}: a schedule must end with nothing left"
        )
    left = model.order_shares - np.cumsum(sales, -1)
    cost = (
        model.permanent_impact * model.order_shares**2 / 2
        + model.half_spread * np.abs(sales).sum(-1)
        + model.effective_temporary_impact / model.tau * (sales**2).sum(-1)
    )
    return cost, model.volatility**2 * model.tau * (left**2).sum(-1)


def almgren_chriss_frontier(model: AlmgrenChriss, risk_aversion: np.ndarray) -> ExecutionFrontier:
    """The efficient frontier: for each risk aversion the best schedule, its expected cost and variance.

    Args:
        risk_aversion: lambda, per dollar, shape (points,).
    """
    aversion = np.atleast_1d(np.asarray(risk_aversion, np.float64))
    sales = almgren_chriss_trajectory(model, aversion)
    return ExecutionFrontier(aversion, sales, *almgren_chriss_cost(model, sales))


# -- Avellaneda and Stoikov --------------------------------------------------------------------------------------------


def avellaneda_stoikov_reservation_price(
    mid: float | np.ndarray,
    inventory: float | np.ndarray,
    time_left: float | np.ndarray,
    variance: float | np.ndarray,
    risk_aversion: float,
) -> np.ndarray:
    """Price at which the dealer does not care for one share more or less: r = s - q gamma sigma^2 (T - t).

    Avellaneda and Stoikov 2008, equation 29 (a frozen inventory until T). Arguments broadcast.

    Args:
        mid: s, dollars.
        inventory: q, shares, signed.
        time_left: T - t, units of time.
        variance: sigma^2 of the mid, dollars squared per unit of time.
        risk_aversion: gamma, per dollar.
    """
    return np.asarray(mid - np.asarray(inventory) * risk_aversion * variance * time_left)


def avellaneda_stoikov_spread(
    time_left: float | np.ndarray, variance: float | np.ndarray, risk_aversion: float, depth_decay: float
) -> np.ndarray:
    """Distance between both quotes in dollars: gamma sigma^2 (T - t) + 2 / gamma ln(1 + gamma / k).

    Avellaneda and Stoikov 2008, equation 30. At half the time left it is the average over the horizon, the constant spread
    of their symmetric strategy: 1.49 for gamma = 0.1.

    Args:
        time_left, variance, risk_aversion: as for the reservation price.
        depth_decay: k, per dollar.

    >>> round(float(avellaneda_stoikov_spread(0.5, 2.0**2, 0.1, 1.5)), 2)
    1.49
    """
    _needs("risk_aversion", risk_aversion, 0, strictly=True)
    _needs("depth_decay", depth_decay, 0, strictly=True)
    return np.asarray(
        risk_aversion * np.asarray(variance) * time_left
        + 2 / risk_aversion * math.log1p(risk_aversion / depth_decay)
    )


def avellaneda_stoikov_depths(
    inventory: float | np.ndarray,
    time_left: float | np.ndarray,
    variance: float | np.ndarray,
    risk_aversion: float,
    depth_decay: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of bid and ask from the mid: half the spread around the reservation price.

    Below 0 where inventory pushes a quote through the mid; whoever cannot quote there clips at 0 (in the published tables it
    makes no difference).

    Returns:
        bid_depth = mid - bid and ask_depth = ask - mid, dollars.
    """
    half = avellaneda_stoikov_spread(time_left, variance, risk_aversion, depth_decay) / 2
    skew = -avellaneda_stoikov_reservation_price(0.0, inventory, time_left, variance, risk_aversion)
    return half + skew, half - skew


# -- Cartea and Jaimungal ----------------------------------------------------------------------------------------------


class QuoteTable(NamedTuple):
    """Best quotes over time and inventory, and what they are worth.

    Attributes:
        inventory: shares, -limit..limit, shape (2 limit + 1,).
        time: instants 0..horizon, shape (steps + 1,).
        value: h(t, q), dollars beyond cash and inventory at the mid, shape (steps + 1, 2 limit + 1).
        bid_depth, ask_depth: dollars from the mid, same shape; infinite (no quote) at the limit. Deep in inventory a depth can be
            below 0: the model lets a dealer quote through the mid.
    """

    inventory: np.ndarray
    time: np.ndarray
    value: np.ndarray
    bid_depth: np.ndarray
    ask_depth: np.ndarray


def cartea_jaimungal(
    *,
    arrival_rate: float,
    depth_decay: float,
    horizon: float,
    inventory_limit: int,
    running_penalty: float,
    terminal_penalty: float,
    steps: int,
    fee_per_share: float = 0.0,
    liquidation_half_spread: float = 0.0,
) -> QuoteTable:
    """Quotes of one share that maximise E[cash_T + q_T mid_T - alpha q_T^2 - phi integral of q^2 dt], |q| <= limit.

    With k h = ln w the equation of the value becomes linear, dw/dt = -A w, with A tridiagonal: -phi k q^2 on the diagonal and
    lambda / e beside it, w_T = exp(-k alpha q^2); so w_t = expm(A (T - t)) w_T, and the depths are 1/k + h(q) - h(q +- 1)
    (Cartea, Jaimungal and Penalva 2015, section 10.2.2). A maker's fee c moves both depths by c: lambda / e becomes
    lambda exp(-1 - k c).

    Fills are a Poisson process in continuous time; on steps of dt the result is right up to order dt.

    Args:
        arrival_rate: lambda, market orders per unit of time and side.
        depth_decay: k, per dollar.
        horizon: T, units of time.
        inventory_limit: shares, at least 1.
        running_penalty: phi, dollars per share squared and unit of time.
        terminal_penalty: alpha, dollars per share squared.
        steps: equal steps of the horizon at whose ends the table is given.
        fee_per_share: dollars paid for each share filled; below 0 it is a rebate.
        liquidation_half_spread: dollars per share left at T, on top of alpha.

    Raises:
        ValueError: an argument is out of its range.

    >>> best = cartea_jaimungal(arrival_rate=140, depth_decay=1.5, horizon=1, inventory_limit=100,
    ...                         running_penalty=0.01, terminal_penalty=0.001, steps=1)
    >>> round(float(best.value[0, 100]), 5), round(float(best.bid_depth[0, 100]), 6)
    (68.25583, 0.672137)
    """
    for name, number in (("arrival_rate", arrival_rate), ("depth_decay", depth_decay), ("horizon", horizon)):
        _needs(name, number, 0, strictly=True)
    for name, number in (("inventory_limit", inventory_limit), ("steps", steps)):
        _needs(name, number, 1, strictly=False)
    for name, number in (("running_penalty", running_penalty), ("terminal_penalty", terminal_penalty)):
        _needs(name, number, 0, strictly=False)
    inventory = np.arange(-inventory_limit, inventory_limit + 1)
    beside = arrival_rate * math.exp(-1 - depth_decay * fee_per_share)
    generator = np.diag(-running_penalty * depth_decay * inventory.astype(float) ** 2)
    generator += beside * (np.eye(len(inventory), k=1) + np.eye(len(inventory), k=-1))
    # Logarithms throughout: w spans hundreds of orders of magnitude between the limits.
    log_step = _log_exponential(generator * (horizon / steps))
    # Entries near the smallest double have lost their digits; rows of nothing else would be wrong without a word.
    if (log_step.max(1) < log_step.max() - 600).any():
        raise ValueError(
            f"a step of {horizon / steps:g} units of time is too long for running_penalty = {running_penalty:g} at "
            f"inventory_limit = {inventory_limit}: take more steps or a lower limit"
        )
    log_w = np.empty((steps + 1, len(inventory)))
    log_w[steps] = -depth_decay * _liquidation_cost(inventory, terminal_penalty, liquidation_half_spread)
    for step in range(steps - 1, -1, -1):
        log_w[step] = logsumexp(log_step + log_w[step + 1], axis=1)
    value = log_w / depth_decay
    bid_depth, ask_depth = np.full_like(value, np.inf), np.full_like(value, np.inf)
    gain = np.diff(value, axis=1)  # of one share more
    bid_depth[:, :-1] = 1 / depth_decay + fee_per_share - gain
    ask_depth[:, 1:] = 1 / depth_decay + fee_per_share + gain
    return QuoteTable(inventory, np.linspace(0.0, horizon, steps + 1), value, bid_depth, ask_depth)


def _log_exponential(matrix: np.ndarray) -> np.ndarray:
    """Logarithms of the exponential of a matrix that is nonnegative off its diagonal, each entry right to many digits.

    `scipy.linalg.expm` is right relative to the largest entry, so the small ones, whose logarithms are needed here, would be
    noise and even negative. Shifted to be nonnegative, Taylor's series and squaring only add and multiply nonnegative
    numbers: nothing cancels.
    """
    shift = max(0.0, -float(np.diag(matrix).min()))
    shifted = matrix + shift * np.eye(len(matrix))
    squarings = max(0, math.ceil(math.log2(shifted.sum(1).max())))
    part = shifted / 2**squarings
    term = result = np.eye(len(matrix))
    # The smallest entry is a product of as many factors as the matrix has off-diagonals: that many terms, then 20 more.
    for power in range(1, len(matrix) + 20):
        term = term @ part / power
        result = result + term
    log_scale = -shift / 2**squarings
    for _ in range(squarings):
        result = result @ result
        largest = result.max()
        result, log_scale = result / largest, 2 * log_scale + math.log(largest)
    with np.errstate(divide="ignore"):
        return np.log(result) + log_scale


# -- exact values of any quotes ----------------------------------------------------------------------------------------


def _liquidation_cost(inventory: np.ndarray, terminal_penalty: float, half_spread: float) -> np.ndarray:
    return terminal_penalty * inventory.astype(float) ** 2 + half_spread * np.abs(inventory)


def fill_probability(
    depth: np.ndarray, *, arrival_rate: float, depth_decay: float, dt: float, fills: Fills = "at_most_one"
) -> np.ndarray:
    """Probability that a quote of one share is filled within a step.

    `at_most_one`: min(1, A exp(-k depth) dt), as Avellaneda and Stoikov simulate. `poisson`: 1 - exp(-A exp(-k depth) dt), at
    least one arrival of a Poisson process.

    Args:
        depth: dollars from the mid, any shape; infinite means no quote and probability 0.
        arrival_rate: A, per unit of time.
        depth_decay: k, per dollar.
        dt: units of time per step.
        fills: one of the two.
    """
    if fills not in get_args(Fills):
        raise ValueError(f"fills = {fills!r}: it must be one of {get_args(Fills)}")
    expected = arrival_rate * dt * np.exp(-depth_decay * np.asarray(depth, np.float64))
    return np.minimum(expected, 1.0) if fills == "at_most_one" else -np.expm1(-expected)


def quote_table_value(
    bid_depth: np.ndarray,
    ask_depth: np.ndarray,
    *,
    arrival_rate: float,
    depth_decay: float,
    dt: float,
    running_penalty: float,
    terminal_penalty: float,
    fills: Fills = "at_most_one",
    fee_per_share: float = 0.0,
    liquidation_half_spread: float = 0.0,
) -> np.ndarray:
    """Exact expected objective of any quotes of one share that depend on time and inventory only.

    Backward induction on the steps of `MarketMaking`, no limit of small dt: within a step both sides fill independently, at most
    once each; then phi q^2 dt is paid on what is held, and the mid moves, by 0 on average. So the mean reward of such quotes
    in the environment, with a mid that is a martingale, is `value[0, limit]`, whatever its variance.

    Args:
        bid_depth, ask_depth: dollars from the mid that stand during step k with inventory q before it, shape
            (steps, 2 limit + 1), columns -limit..limit. The table of `cartea_jaimungal` has one row more, at the horizon: cut it
            off (`best.bid_depth[:-1]`). Infinite means no quote. At the limit the quote that would break it is not shown, whatever the table says.
        arrival_rate, depth_decay, dt, fills: as for `fill_probability`.
        running_penalty, terminal_penalty, fee_per_share, liquidation_half_spread: as for `cartea_jaimungal`.

    Returns:
        Dollars beyond cash and inventory at the mid, shape (steps + 1, 2 limit + 1).

    Raises:
        ValueError: shapes differ, the number of columns is even, or a depth is NaN or minus infinity.
    """
    bid_chance, ask_chance = _fill_chances(bid_depth, ask_depth, arrival_rate, depth_decay, dt, fills)
    # Where nothing fills nothing is earned; infinity times 0 would be NaN.
    bid_gain = bid_chance * (np.where(bid_chance > 0, bid_depth, 0.0) - fee_per_share)
    ask_gain = ask_chance * (np.where(ask_chance > 0, ask_depth, 0.0) - fee_per_share)
    steps, columns = bid_chance.shape
    inventory = np.arange(columns) - columns // 2
    held = running_penalty * dt * inventory.astype(float) ** 2
    value = np.empty((steps + 1, columns))
    value[steps] = -_liquidation_cost(inventory, terminal_penalty, liquidation_half_spread)
    for step in range(steps - 1, -1, -1):
        after = value[step + 1] - held
        more, fewer = np.append(after[1:], 0.0), np.append(0.0, after[:-1])  # the 0 has chance 0
        only_bid = bid_chance[step] * (1 - ask_chance[step])
        only_ask = ask_chance[step] * (1 - bid_chance[step])
        value[step] = (
            (1 - only_bid - only_ask) * after
            + only_bid * more
            + only_ask * fewer
            + bid_gain[step]
            + ask_gain[step]
        )
    return value


def inventory_distribution(
    bid_depth: np.ndarray,
    ask_depth: np.ndarray,
    *,
    arrival_rate: float,
    depth_decay: float,
    dt: float,
    fills: Fills = "at_most_one",
    start: int = 0,
) -> np.ndarray:
    """Exact probabilities of inventory at every instant under the quotes of a table, by the forward equation.

    Args:
        bid_depth, ask_depth, arrival_rate, depth_decay, dt, fills: as for `quote_table_value`.
        start: inventory at instant 0, shares, within the limit.

    Returns:
        Shape (steps + 1, 2 limit + 1), columns -limit..limit; each row sums to 1.

    Raises:
        ValueError: as `quote_table_value`, or the start is beyond the limit.
    """
    bid_chance, ask_chance = _fill_chances(bid_depth, ask_depth, arrival_rate, depth_decay, dt, fills)
    steps, columns = bid_chance.shape
    if not 0 <= start + columns // 2 < columns:
        raise ValueError(f"start = {start} shares is beyond the table's limit of {columns // 2}")
    chance = np.zeros((steps + 1, columns))
    chance[0, start + columns // 2] = 1.0
    for step in range(steps):
        only_bid = chance[step] * bid_chance[step] * (1 - ask_chance[step])
        only_ask = chance[step] * ask_chance[step] * (1 - bid_chance[step])
        chance[step + 1] = chance[step] - only_bid - only_ask
        chance[step + 1, 1:] += only_bid[:-1]
        chance[step + 1, :-1] += only_ask[1:]
    return chance


def _fill_chances(
    bid_depth: np.ndarray,
    ask_depth: np.ndarray,
    arrival_rate: float,
    depth_decay: float,
    dt: float,
    fills: Fills,
) -> tuple[np.ndarray, np.ndarray]:
    bid_depth, ask_depth = np.asarray(bid_depth, np.float64), np.asarray(ask_depth, np.float64)
    if bid_depth.shape != ask_depth.shape or bid_depth.ndim != 2 or bid_depth.shape[1] % 2 == 0:
        raise ValueError(
            f"bid_depth and ask_depth have shapes {bid_depth.shape} and {ask_depth.shape}: both must be "
            "(steps, 2 limit + 1)"
        )
    for name, depth in (("bid_depth", bid_depth), ("ask_depth", ask_depth)):
        wrong = ~(depth > -np.inf)
        if wrong.any():
            step, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{name} = {depth[step, column]} at step {step} and inventory {column - depth.shape[1] // 2}: "
                "a depth is a number of dollars, or infinity for no quote"
            )
    for name, number in (("arrival_rate", arrival_rate), ("depth_decay", depth_decay), ("dt", dt)):
        _needs(name, number, 0, strictly=True)
    bid_chance, ask_chance = (
        fill_probability(depth, arrival_rate=arrival_rate, depth_decay=depth_decay, dt=dt, fills=fills)
        for depth in (bid_depth, ask_depth)
    )
    bid_chance[:, -1] = 0.0
    ask_chance[:, 0] = 0.0
    return bid_chance, ask_chance
