"""A portfolio that is rebalanced every period, as an environment, and the plain rules that an agent has to beat.

Belongs here: how weights are traded, charged and drift, the environment around it, baselines and controls. Does not belong
here: where prices come from (`quant_assets/models/portfolio_market.py`) and how an agent learns (`models/sac.py`).

A period is a session or a minute; nothing here counts days. Row T of a market is decided upon at the close of T, traded at the
open of T+1 and earns the return from that open to the open of T+2.

One period, for weights h held before it (fractions of wealth; what is not in assets is cash), targets w, costs per unit of
turnover k = cost_bps * 1e-4 + cost_volatility_factor * volatility, and returns r:

    turnover = sum |w - h|                  at the open of T+1, in units of the wealth before costs; cash trades for nothing
    cost     = sum k |w - h|                paid from wealth, so it shrinks cash and assets alike and leaves w as it is
    growth   = (1 - cost) (1 + sum w r + cash * cash_rate)
    h'       = w (1 + r) / (1 + sum w r + cash * cash_rate)     held at the open of T+2, where the next decision trades

What is held enters the next cost, so it is part of the state. But an observation at the close of T+1 may not show h', which knows
the open of T+2: it shows the weights as they stand at that close.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from quant_assets.environments.episodes import EnvironmentRefusal, Episodes

OBSERVATION_BOUND = 10.0
# Nobody's short may cost more than there is: a broker closes the account when this share of the wealth is left.
RUIN_GROWTH = 0.01
# Weights may miss their limits by rounding.
WEIGHT_TOLERANCE = 1e-6
# Fewer returns say nothing about a covariance.
MINIMUM_RETURNS = 20
UNKNOWN_ROWS = 2


@dataclass(frozen=True, eq=False)
class PortfolioMarket:
    """What a portfolio can know and earn; row T is the close of period T.

    The last two rows never have a `next_return`: it would end after the market does. They can be observed (the newest decision
    of a live portfolio is one of them) and not be rolled out.

    Attributes:
        sessions: `datetime64` of any unit, strictly increasing, shape (periods,).
        symbols: one per asset.
        features: known at the close of T, about in [-5, 5], finite, shape (periods, features, assets). 0 where nothing is known.
        feature_names: one per feature.
        next_return: simple total return from the open of T+1 to the open of T+2, shape (periods, assets); 0 for an asset that
            has no price there, NaN in the last two rows and only there.
        open_to_close: simple return from the open of T to its close, shape (periods, assets), finite.
        log_return: total log return from the close of T-1 to the close of T, shape (periods, assets); NaN before an asset has two
            prices.
        tradable: whether an asset may be held from the open of T+1 on, as far as the close of T can tell; shape
            (periods, assets). A mask that knew whether it trades later would sell before every delisting.
        volatility: standard deviation of a period's return as known at the close of T, shape (periods, assets), finite.
        first_decision: row of the first decision of the window; earlier rows only feed look-backs.
        periods_per_year: for figures per year.
    """

    sessions: np.ndarray
    symbols: tuple[str, ...]
    features: np.ndarray
    feature_names: tuple[str, ...]
    next_return: np.ndarray
    open_to_close: np.ndarray
    log_return: np.ndarray
    tradable: np.ndarray
    volatility: np.ndarray
    first_decision: int = 0
    periods_per_year: float = 252.0

    def __post_init__(self) -> None:
        periods, assets = len(self.sessions), len(self.symbols)
        if not assets or periods <= UNKNOWN_ROWS:
            raise EnvironmentRefusal(
                f"portfolio market of {assets} assets and {periods} periods: at least 1 asset and {UNKNOWN_ROWS + 1} periods are "
                "needed, because a decision's return ends two periods later"
            )
        if len(set(self.symbols)) < assets:
            raise EnvironmentRefusal(f"portfolio market: a symbol occurs twice in {', '.join(self.symbols)}")
        if not np.issubdtype(self.sessions.dtype, np.datetime64):
            raise EnvironmentRefusal(f"portfolio market: sessions are {self.sessions.dtype}, not datetime64")
        late = np.flatnonzero(self.sessions[1:] <= self.sessions[:-1])
        if late.size:
            raise EnvironmentRefusal(
                f"portfolio market: session {self.sessions[late[0] + 1]} does not come after {self.sessions[late[0]]}"
            )
        wanted = dict.fromkeys(PER_ASSET, (periods, assets))
        for name, shape in {**wanted, "features": (periods, len(self.feature_names), assets)}.items():
            if getattr(self, name).shape != shape:
                raise EnvironmentRefusal(
                    f"portfolio market: {name} has shape {getattr(self, name).shape}, it must be {shape}: periods"
                    f"{', features' if name == 'features' else ''}, assets"
                )
        if self.tradable.dtype != bool:
            raise EnvironmentRefusal(f"portfolio market: tradable is {self.tradable.dtype}, not bool")
        for k, name in enumerate(self.feature_names):
            values = self.features[:, k]
            self._require(f"feature {name}", np.isfinite(values), values)
        known = self.next_return[:-UNKNOWN_ROWS]
        self._require("next_return", np.isfinite(known) & (known > -1), known)
        self._require("open_to_close", np.isfinite(self.open_to_close) & (self.open_to_close > -1))
        self._require("log_return", ~np.isinf(self.log_return))
        self._require("volatility", np.isfinite(self.volatility) & (self.volatility >= 0))
        if not np.isnan(self.next_return[-UNKNOWN_ROWS:]).all():
            raise EnvironmentRefusal(
                f"portfolio market: next_return of the last {UNKNOWN_ROWS} rows must be NaN: it ends after {self.sessions[-1]}, so "
                "whoever knows it has seen more than this market"
            )
        if not 0 <= self.first_decision < periods:
            raise EnvironmentRefusal(
                f"portfolio market: first_decision = {self.first_decision} is no row of {periods} periods"
            )
        if not self.periods_per_year > 0:
            raise EnvironmentRefusal(f"portfolio market: periods_per_year = {self.periods_per_year}")

    def _require(self, name: str, good: np.ndarray, values: np.ndarray | None = None) -> None:
        if not good.all():
            at, asset = np.argwhere(~good)[0]
            value = (getattr(self, name) if values is None else values)[at, asset]
            raise EnvironmentRefusal(
                f"portfolio market: {name} of {self.symbols[asset]} at {self.sessions[at]} is {value} ({int((~good).sum())} such "
                "values): give 0 where an asset has no price, and correct a wrong price at its source"
            )

    def __len__(self) -> int:
        return len(self.sessions)

    def between(self, first: dt.date | np.datetime64, last: dt.date | np.datetime64) -> PortfolioMarket:
        """The window of decisions whose returns lie within it.

        Look-backs may reach before `first`, where the past is. Nothing after `last` is left in the result, so the last decision
        trades and earns at opens up to that of `last`.

        Args:
            first: no decision before it.
            last: no price after it. A date means all periods of that day.

        Raises:
            EnvironmentRefusal: the window holds no whole decision.
        """
        low, high = np.datetime64(first), np.datetime64(last)
        start = int((self.sessions.astype(low.dtype) < low).sum())
        stop = int((self.sessions.astype(high.dtype) <= high).sum())
        if stop - start <= UNKNOWN_ROWS:
            raise EnvironmentRefusal(
                f"the window {first} to {last} holds {max(stop - start, 0)} periods; a decision and its return need "
                f"{UNKNOWN_ROWS + 1}. There are periods from {self.sessions[0]} to {self.sessions[-1]}"
            )
        arrays = {name: getattr(self, name)[:stop] for name in (*PER_ASSET, "sessions", "features")}
        arrays["next_return"] = arrays["next_return"].copy()
        arrays["next_return"][-UNKNOWN_ROWS:] = np.nan
        return replace(self, **arrays, first_decision=start)


PER_ASSET = ("next_return", "open_to_close", "log_return", "tradable", "volatility")


@dataclass(frozen=True)
class PortfolioParameters:
    """What the agent sees, what it may hold, what it pays and what it is paid for.

    Attributes:
        look_back: periods of features in an observation.
        episode_steps: decisions of an episode; None for all of the window in one.
        mode: 'long_only': weights of at least 0, together with cash 1. 'gross': long and short, each within [-1, 1]; cash is
            1 less their sum.
        gross_limit: most that the absolute weights of the mode 'gross' add up to.
        logit_scale: an action of 1 is this many units before the softmax of 'long_only'. At 5 one asset of six can hold 99.98 %.
        cost_bps: cost of turnover whatever the asset, basis points.
        cost_volatility_factor: cost of turnover in units of the asset's volatility per period. 0.05 at 2 % a day is 10 bps.
        cash_rate: simple return of cash per period.
        reward_scale: rewards are log growth times this; 100 gives percent.
        risk_aversion: reward lost per squared return of a period, before scaling: `risk_aversion / 2 * return ** 2`.
    """

    look_back: int = 20
    episode_steps: int | None = 64
    mode: Literal["long_only", "gross"] = "long_only"
    gross_limit: float = 1.0
    logit_scale: float = 5.0
    cost_bps: float = 5.0
    cost_volatility_factor: float = 0.0
    cash_rate: float = 0.0
    reward_scale: float = 100.0
    risk_aversion: float = 0.0

    def __post_init__(self) -> None:
        for name in ("look_back", "episode_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EnvironmentRefusal(f"portfolio: {name} = {value}: at least 1 is needed")
        if self.mode not in ("long_only", "gross"):
            raise EnvironmentRefusal(f"portfolio: mode = {self.mode!r} is neither 'long_only' nor 'gross'")
        for name in ("gross_limit", "logit_scale", "reward_scale"):
            if not 0 < getattr(self, name) < np.inf:
                raise EnvironmentRefusal(f"portfolio: {name} = {getattr(self, name)} is not above 0")
        for name in ("cost_bps", "cost_volatility_factor", "risk_aversion"):
            if not 0 <= getattr(self, name) < np.inf:
                raise EnvironmentRefusal(f"portfolio: {name} = {getattr(self, name)} is below 0 or no number")
        if not -1 < self.cash_rate < 1:
            raise EnvironmentRefusal(
                f"portfolio: cash_rate = {self.cash_rate} is not a return of one period; a yearly rate is divided by "
                "periods_per_year"
            )


# -- accounting --------------------------------------------------------------------------------------------------------


class Settlement(NamedTuple):
    """What one period did to n portfolios.

    Attributes:
        growth: wealth after over wealth before, net of costs, shape (n,).
        cost: fraction of wealth paid, shape (n,).
        turnover: sum of absolute changes of weight, shape (n,).
        held: weights at the end of the period, shape (n, assets).
    """

    growth: np.ndarray
    cost: np.ndarray
    turnover: np.ndarray
    held: np.ndarray


def drift(weights: np.ndarray, returns: np.ndarray, cash_rate: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Weights after returns.

    Args:
        weights: of the assets, the rest is cash; shape (n, assets).
        returns: simple, shape (n, assets).
        cash_rate: simple.

    Returns:
        Growth of wealth, shape (n,), and the new weights, shape (n, assets); nothing is held when less than 1 % is left.
    """
    growth = 1 + (weights * returns).sum(-1) + (1 - weights.sum(-1)) * cash_rate
    safe = np.maximum(growth, RUIN_GROWTH)
    return safe, np.where((growth >= RUIN_GROWTH)[:, None], weights * (1 + returns) / safe[:, None], 0.0)


def settle(
    held: np.ndarray, target: np.ndarray, returns: np.ndarray, cost_rate: np.ndarray, cash_rate: float = 0.0
) -> Settlement:
    """Trade from `held` to `target` and hold for one period; the formulas are in the module's docstring.

    Args:
        held, target: weights, shape (n, assets).
        returns: from the trade to the next one, simple, shape (n, assets).
        cost_rate: cost per unit of turnover, shape (n, assets).
        cash_rate: simple return of cash.
    """
    change = np.abs(target - held)
    cost = (change * cost_rate).sum(-1)
    growth, after = drift(target, returns, cash_rate)
    growth = np.maximum((1 - np.minimum(cost, 1.0)) * growth, RUIN_GROWTH)
    return Settlement(growth, cost, change.sum(-1), after)


def cost_rates(market: PortfolioMarket, parameters: PortfolioParameters) -> np.ndarray:
    """Cost per unit of turnover of each asset, as known at the close of T, shape (periods, assets)."""
    return parameters.cost_bps * 1e-4 + parameters.cost_volatility_factor * market.volatility


def target_weights(action: np.ndarray, tradable: np.ndarray, parameters: PortfolioParameters) -> np.ndarray:
    """The weights that an action asks for.

    'long_only': softmax of `logit_scale * action` over the tradable assets and cash, which comes last.
    'gross': the action itself, shrunk as a whole where its absolute values exceed `gross_limit`.

    Args:
        action: in [-1, 1], shape (n, assets + 1) for 'long_only', (n, assets) for 'gross'.
        tradable: bool, shape (n, assets).
        parameters: mode and limits.

    Returns:
        Weights of the assets, shape (n, assets); 0 for what is not tradable. Cash is 1 less their sum.
    """
    if parameters.mode == "gross":
        weights = np.where(tradable, action, 0.0)
        gross = np.abs(weights).sum(-1, keepdims=True)
        return weights * (parameters.gross_limit / np.maximum(gross, parameters.gross_limit))
    logits = parameters.logit_scale * action
    logits[:, :-1][~tradable] = -np.inf
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds[:, :-1] / odds.sum(-1, keepdims=True)


def decision_rows(market: PortfolioMarket, parameters: PortfolioParameters) -> range:
    """Rows of the window that can be decided upon and earn a return: the look-back is whole, the return known.

    Raises:
        EnvironmentRefusal: there are none.
    """
    rows = range(max(market.first_decision, parameters.look_back - 1), len(market) - UNKNOWN_ROWS)
    if not rows:
        raise EnvironmentRefusal(
            f"portfolio: {len(market)} periods with the first decision in row {market.first_decision} hold no decision with "
            f"look_back = {parameters.look_back} periods behind it: widen the window or shorten the look-back"
        )
    return rows


# -- environment -------------------------------------------------------------------------------------------------------


class PortfolioEpisodes(Episodes):
    """n portfolios over stretches of one market. Each starts in cash; row r starts at the r-th decision of the window.

    Where a stretch ends is chance and no observation tells how far it is, so its last step is truncated: the portfolio is still
    worth what can be earned with it.

    Observation: features of the last `look_back` periods, oldest first, flattened from `window_shape`, then the weight of each
    asset as it stands at the close of T. Action: see `target_weights`. Reward:
    `reward_scale * (log(growth) - risk_aversion / 2 * (growth - 1) ** 2)`, net of costs.

    `info`: `growth`, `cost`, `turnover` (of this period), `wealth` (1 at the start), each of shape (n,); `weights`, the targets,
    shape (n, assets).

    Args:
        n: episodes at once.
        market: the window to trade.
        parameters: of the environment.

    Attributes:
        window_shape: (look_back, features, assets); an observation begins with that many numbers.
        decisions: rows of the market that the window decides upon.

    Raises:
        EnvironmentRefusal: the window is shorter than an episode.
    """

    name = "portfolio"
    time_limited = True

    def __init__(
        self, n: int, market: PortfolioMarket, parameters: PortfolioParameters | None = None
    ) -> None:
        self.market, self.parameters = market, (parameters := parameters or PortfolioParameters())
        self.decisions = decision_rows(market, parameters)
        steps = parameters.episode_steps or len(self.decisions)
        if steps > len(self.decisions):
            raise EnvironmentRefusal(
                f"portfolio: episodes of {steps} decisions do not fit into the {len(self.decisions)} decisions from "
                f"{market.sessions[self.decisions[0]]} to {market.sessions[self.decisions[-1]]}: widen the window or set a smaller "
                "episode_steps (None for the whole window)"
            )
        assets = len(market.symbols)
        self.window_shape = (parameters.look_back, len(market.feature_names), assets)
        self.observation_names = observation_names(market, parameters)
        if parameters.mode == "gross":
            self.action_names = tuple(f"weight_{symbol}" for symbol in market.symbols)
        else:
            self.action_names = tuple(f"score_{name}" for name in (*market.symbols, "cash"))
        super().__init__(n, steps, len(self.decisions) - steps + 1, -1.0, 1.0, OBSERVATION_BOUND)
        # A look-back is one run of memory in the features, so a row of this view is an observation and nothing is copied.
        flat = market.features.astype(np.float32).reshape(-1)
        per_period = len(market.feature_names) * assets
        self._windows = np.lib.stride_tricks.sliding_window_view(flat, parameters.look_back * per_period)[
            ::per_period
        ]
        self._cost_rate = cost_rates(market, parameters)
        self._row = np.zeros(n, np.int64)
        self._held = np.zeros((n, assets))
        self._wealth = np.ones(n)
        # Reused, because fresh pages cost more than the gather; what is handed out is a clipped copy.
        self._seen_before_clip = np.empty((n, len(self.observation_names)), np.float32)

    def _begin(self) -> np.ndarray:
        self._row = self.decisions[0] + self.rows
        self._held = np.zeros((self.n, len(self.market.symbols)))
        self._wealth = np.ones(self.n)
        return self._observe(self._held)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        market, row = self.market, self._row
        target = target_weights(action, market.tradable[row], self.parameters)
        done = settle(
            self._held, target, market.next_return[row], self._cost_rate[row], self.parameters.cash_rate
        )
        self._held, self._wealth, self._row = done.held, self._wealth * done.growth, row + 1
        reward = np.log(done.growth)
        if self.parameters.risk_aversion:
            reward = reward - 0.5 * self.parameters.risk_aversion * (done.growth - 1) ** 2
        info = {
            "growth": done.growth,
            "cost": done.cost,
            "turnover": done.turnover,
            "wealth": self._wealth,
            "weights": target,
        }
        # The open of T+2, to which `held` has drifted, lies after the close of T+1, at which this is seen.
        _, seen = drift(target, market.open_to_close[self._row])
        return self._observe(seen), self.parameters.reward_scale * reward, info

    def _observe(self, weights: np.ndarray) -> np.ndarray:
        window = self._windows.shape[1]
        self._seen_before_clip[:, :window] = self._windows[self._row - self.parameters.look_back + 1]
        self._seen_before_clip[:, window:] = weights
        return self._seen_before_clip


def observation_names(market: PortfolioMarket, parameters: PortfolioParameters) -> tuple[str, ...]:
    """Names of an observation's dimensions: `<feature>_<symbol>_lag_<periods>`, then `held_<symbol>`."""
    return (
        *(
            f"{feature}_{symbol}_lag_{lag}"
            for lag in range(parameters.look_back - 1, -1, -1)
            for feature in market.feature_names
            for symbol in market.symbols
        ),
        *(f"held_{symbol}" for symbol in market.symbols),
    )


def observation_at(
    market: PortfolioMarket, parameters: PortfolioParameters, row: int, held_weights: np.ndarray
) -> np.ndarray:
    """What the environment shows at the close of a row; also of the newest one, whose return nobody knows.

    Args:
        market: any window of it.
        parameters: as trained.
        row: of the market; `len(market) - 1` is the newest.
        held_weights: weights of the assets, valued at that row's close, shape (assets,).

    Returns:
        float32, shape (look_back * features * assets + assets,).

    Raises:
        EnvironmentRefusal: no whole look-back before the row, or weights of a wrong shape.
    """
    if not parameters.look_back - 1 <= row < len(market):
        raise EnvironmentRefusal(
            f"portfolio: row {row} of {len(market)} has no whole look-back of {parameters.look_back} periods: rows "
            f"{parameters.look_back - 1} to {len(market) - 1} have"
        )
    held = np.asarray(held_weights, np.float64)
    if held.shape != (len(market.symbols),) or not np.isfinite(held).all():
        raise EnvironmentRefusal(
            f"portfolio: held_weights = {held} must be {len(market.symbols)} finite weights: {', '.join(market.symbols)}"
        )
    window = market.features[row - parameters.look_back + 1 : row + 1].reshape(-1)
    seen = np.concatenate([window, held]).astype(np.float32)
    return np.clip(seen, -np.float32(OBSERVATION_BOUND), np.float32(OBSERVATION_BOUND))


# -- given weights, and the plain rules --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PortfolioRollout:
    """What a sequence of weights earned, net of costs; one entry per decision of the window.

    Attributes:
        sessions: of the decisions, shape (decisions,). The return of each ends two periods later.
        equity: wealth, 1 before the first trade, shape (decisions + 1,).
        net_return: simple, shape (decisions,).
        turnover: sum of absolute changes of weight, shape (decisions,).
        cost: fraction of wealth, shape (decisions,).
        weights: after each trade, shape (decisions, assets).
        periods_per_year: of the market.
    """

    sessions: np.ndarray
    equity: np.ndarray
    net_return: np.ndarray
    turnover: np.ndarray
    cost: np.ndarray
    weights: np.ndarray
    periods_per_year: float

    def summary(self) -> dict[str, float]:
        """Figures of a table: per year where the name says annual; Sharpe ratio without a rate of interest, NaN for a
        constant."""
        log_growth = np.log1p(self.net_return)
        deviation = self.net_return.std(ddof=1) if len(self.net_return) > 1 else np.nan
        peak = np.maximum.accumulate(self.equity)
        return {
            "annual_log_growth_pct": 100 * self.periods_per_year * float(log_growth.mean()),
            "annual_volatility_pct": 100 * float(np.sqrt(self.periods_per_year) * deviation),
            "sharpe_ratio": float(np.sqrt(self.periods_per_year) * self.net_return.mean() / deviation)
            if deviation > 0
            else float("nan"),
            "max_drawdown_pct": 100 * float((1 - self.equity / peak).max()),
            "mean_turnover_pct": 100 * float(self.turnover.mean()),
            "total_cost_pct": 100 * float(self.cost.sum()),
        }


def rollout_weights(
    market: PortfolioMarket, parameters: PortfolioParameters, weights: np.ndarray
) -> PortfolioRollout:
    """Trade given weights through all of the window, by the accounting of the environment. Starts in cash.

    Args:
        market: the window.
        parameters: costs, limits and look-back: the decisions are those of the environment with `episode_steps=None`.
        weights: targets at the close of T, shape (periods, assets). A row of NaN gives no order: what is held drifts on, less
            what is not tradable any more.

    Raises:
        EnvironmentRefusal: weights beyond the limits of the mode, on what is not tradable, or NaN in part of a row.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != market.next_return.shape:
        raise EnvironmentRefusal(
            f"portfolio: weights have shape {weights.shape}, it must be {market.next_return.shape}: periods, assets"
        )
    rows = decision_rows(market, parameters)
    _check_weights(market, parameters, weights, rows)
    rate = cost_rates(market, parameters)
    hold = np.isnan(weights[:, 0])
    held = np.zeros((1, len(market.symbols)))
    done, targets = [], []
    for t in rows:
        target = np.where(market.tradable[t], held, 0.0) if hold[t] else weights[t : t + 1]
        done.append(
            settle(
                held, target, market.next_return[t : t + 1], rate[t : t + 1], cash_rate=parameters.cash_rate
            )
        )
        targets.append(target)
        held = done[-1].held
    growth = np.concatenate([one.growth for one in done])
    return PortfolioRollout(
        sessions=market.sessions[rows.start : rows.stop],
        equity=np.concatenate([[1.0], np.cumprod(growth)]),
        net_return=growth - 1,
        turnover=np.concatenate([one.turnover for one in done]),
        cost=np.concatenate([one.cost for one in done]),
        weights=np.concatenate(targets),
        periods_per_year=market.periods_per_year,
    )


def _check_weights(
    market: PortfolioMarket, parameters: PortfolioParameters, weights: np.ndarray, rows: range
) -> None:
    unknown = np.isnan(weights)
    bad = ~(np.isfinite(weights) | unknown.all(-1, keepdims=True))
    why = "is not finite (a row that gives no order is NaN throughout)"
    if not bad[rows].any():
        bad, why = ~market.tradable & (weights != 0) & ~unknown, "is given to an asset that cannot be traded"
    if not bad[rows].any():
        if parameters.mode == "long_only":
            over = weights.sum(-1, keepdims=True) > 1 + WEIGHT_TOLERANCE
            bad, why = (
                (weights < -WEIGHT_TOLERANCE) | over,
                "is short or leaves less than no cash (long_only)",
            )
        else:
            over = np.abs(weights).sum(-1, keepdims=True) > parameters.gross_limit + WEIGHT_TOLERANCE
            bad, why = (
                (np.abs(weights) > 1 + WEIGHT_TOLERANCE) | over,
                (f"exceeds 1 or, with the others, gross_limit = {parameters.gross_limit}"),
            )
    if bad[rows].any():
        at, asset = np.argwhere(bad[rows])[0] + (rows.start, 0)
        raise EnvironmentRefusal(
            f"portfolio: weight {weights[at, asset]} of {market.symbols[asset]} at {market.sessions[at]} {why}; the row is "
            f"{weights[at]}"
        )


def equal_weight(market: PortfolioMarket) -> np.ndarray:
    """The same weight for every tradable asset, anew each period; shape (periods, assets)."""
    count = market.tradable.sum(-1, keepdims=True)
    return market.tradable / np.maximum(count, 1)


def buy_and_hold(market: PortfolioMarket, parameters: PortfolioParameters) -> np.ndarray:
    """Equal weights at the first decision, no order afterwards; shape (periods, assets).

    What is listed later is never bought.
    """
    first = decision_rows(market, parameters).start
    weights = np.full(market.next_return.shape, np.nan)
    weights[first] = equal_weight(market)[first]
    return weights


def minimum_variance(
    market: PortfolioMarket, parameters: PortfolioParameters, window: int = 250, every: int = 20
) -> np.ndarray:
    """The long-only portfolio of least variance under a Ledoit-Wolf covariance, renewed now and then.

    Assets take part once all their log returns of the window (or of all rows so far) are known, at least 20; until then, cash.

    Args:
        market: the window; the covariance reads rows up to the decision's own.
        parameters: which rows are decisions.
        window: periods of returns.
        every: periods from one renewal to the next; no orders in between.

    Returns:
        Weights, shape (periods, assets); NaN between renewals.

    Raises:
        EnvironmentRefusal: `window` below 20, `every` below 1, or returns that are all zero.
    """
    if window < MINIMUM_RETURNS or every < 1:
        raise EnvironmentRefusal(
            f"minimum_variance: window = {window} must be at least {MINIMUM_RETURNS}, every = {every} at least 1"
        )
    from sklearn.covariance import ledoit_wolf

    weights = np.full(market.next_return.shape, np.nan)
    rows = decision_rows(market, parameters)
    # The first row has no return: nobody knows the close before it.
    begin = int(np.argmax(np.isfinite(market.log_return).any(-1)))
    for t in rows[::every]:
        past = market.log_return[max(t - window + 1, begin) : t + 1]
        takes_part = market.tradable[t] & np.isfinite(past).all(axis=0)
        weights[t] = 0.0
        if len(past) >= MINIMUM_RETURNS and takes_part.any():
            covariance, _ = ledoit_wolf(past[:, takes_part])
            if not np.trace(covariance) > 0:
                raise EnvironmentRefusal(
                    f"minimum_variance: all returns of the {len(past)} periods until {market.sessions[t]} are zero"
                )
            weights[t, takes_part] = minimum_variance_weights(covariance)
    return weights


def minimum_variance_weights(covariance: np.ndarray) -> np.ndarray:
    """Minimise w' C w over w >= 0 with sum 1, exactly.

    The conditions of Kuhn and Tucker are those of: minimise x' C x / 2 - sum(x) over x >= 0, up to the scale of x. With C = L L'
    that is the non-negative least squares problem |L' x - L^-1 1|, which Lawson and Hanson's active sets solve in finitely many
    steps.

    Args:
        covariance: positive definite, shape (assets, assets).

    Returns:
        Weights, shape (assets,).
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    # Units: variances of a minute are so small that they would meet the solver's tolerance.
    lower = cholesky(covariance * (len(covariance) / np.trace(covariance)), lower=True)
    solution, _ = nnls(lower.T, solve_triangular(lower, np.ones(len(lower)), lower=True))
    return solution / solution.sum()


# -- controls ----------------------------------------------------------------------------------------------------------


def with_tomorrow(market: PortfolioMarket) -> PortfolioMarket:
    """Positive control: `next_return`, in percent, as one more feature. Whoever cannot get rich on it cannot learn."""
    peek = 100 * np.nan_to_num(market.next_return, nan=0.0)
    return replace(
        market,
        features=np.concatenate([market.features, peek[:, None]], axis=1),
        feature_names=(*market.feature_names, "tomorrow_pct"),
    )


def shuffled(market: PortfolioMarket, seed: int) -> PortfolioMarket:
    """Negative control: the same sessions in random order, a market without memory. Whoever gets rich on it has peeked.

    A session moves as a whole: both parts of its return (the night before it, open to close), its features and its volatility, for
    all assets at once. So what happens across assets stays, and nothing before a session tells about it. `next_return` is put
    together from the sessions that follow now. Sessions change places only with those on which the same assets are tradable, so
    no asset trades before it is listed.

    Args:
        market: all of it or a window; rows before the first decision are shuffled along.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    order = np.arange(len(market))
    _, group = np.unique(market.tradable, axis=0, return_inverse=True)
    for one in range(group.max() + 1):
        members = np.flatnonzero(group.reshape(-1) == one)
        order[members] = rng.permutation(members)
    day = np.log1p(market.open_to_close)[order]
    night = market.log_return[order] - day
    next_return = np.full(market.next_return.shape, np.nan)
    # Without a price there is no return; such an asset is not tradable either.
    next_return[:-UNKNOWN_ROWS] = np.nan_to_num(np.expm1(day[1:-1] + night[2:]), nan=0.0)
    return replace(
        market,
        features=market.features[order],
        next_return=next_return,
        open_to_close=market.open_to_close[order],
        log_return=market.log_return[order],
        tradable=market.tradable[order],
        volatility=market.volatility[order],
    )
