"""From an order to a schedule: what an execution bundle answers. Pure.

Belongs here: the request and the answer, the agent's decisions along an expected path, the schedules to compare with, their
expected costs, and the checks of both sides. Does not belong here: HTTP (`app.py`), the archive (`bundle.py`), and how an agent
learns. The law of impact and the observations are those of `quant_assets/environments/execution.py`, which says why they are so;
they are written down again because an endpoint has to do without gymnasium, and `tests/serving/test_execution_plan.py` holds both
to the same shares and costs.

The expected path. The agent decides every `minutes_per_decision` minutes, from seven observations. Of a day that has not happened
yet it is told what is expected: the mid rests and has no momentum, spread and volatility are the expected ones, volume is the
profile's, so those four observations are 0; what is left of the order and of the time moves on with the plan. A *market state* in
the request replaces expectations by what is seen now; see `MarketState`.

Minutes. A horizon is the next so many trading minutes from the start on, across nights, weekends and holidays. The profile goes by
the minute of the session: a horizon that begins at noon takes the afternoon's volume and then the next morning's; a half day has
the profile of its first hours. What a session's whole profile trades is V, the day's volume in the law of permanent impact.

Whole shares. What is left after each minute is rounded, as in the environment, so a schedule adds up; what the agent would leave
to the end of the horizon is sold in its last minute.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from quant_assets.serving.bundle import Bundle, BundleError, require_kind
from quant_assets.serving.hours import ExchangeHours, HoursError, Stretch
from quant_assets.serving.refusals import InvalidAnswer, RequestRefused

SESSION_MINUTES = 390
# As in `environments/execution.py` and `environments/episodes.py`.
ENVIRONMENT = "execution"
OBSERVATION_NAMES = (
    "shares_left_fraction",
    "time_left_fraction",
    "spread_log",
    "volume_to_profile_log",
    "volatility_log",
    "momentum_sd",
    "order_participation_log",
)
ACTION_NAMES = ("pace",)
LEAST_VOLUME = 0.01
LEAST_SPREAD = 1e-5
TYPICAL_PARTICIPATION = 0.05
OBSERVATION_BOUND = 10.0
BOX_TOLERANCE = 1e-5
# What a market state may say: the least and the most. Wide enough for any market, narrow enough that nothing overflows.
MARKET_BOUNDS = {
    "mid_dollars": (1e-4, 1e7),
    "spread_dollars": (0.0, 1e7),
    "daily_volatility": (1e-6, 10.0),
    "volume_to_profile": (0.0, 1e6),
    "momentum_sd": (-100.0, 100.0),
}
NAMED_AT_MOST = 20


# -- request and answer ------------------------------------------------------------------------------------------------


def _number(name: str, text: str) -> Any:
    low, high = MARKET_BOUNDS[name]
    return Meta(description=text, extra_json_schema={"minimum": low, "maximum": high})


class MarketState(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What is seen of the market at the start; what is not given is as expected.

    Attributes:
        mid_dollars: mid price. Prices the costs: impact is in proportion to it, the spread is in dollars. Not below the spread.
        spread_dollars: quoted spread, ask - bid. Prices the costs; the agent sees its log over the expected spread, in every
            decision.
        daily_volatility: sd of the day's return as a fraction. Prices the impact; the agent sees its log over the expected
            one, in every decision.
        volume_to_profile: volume of the last 15 minutes over what the profile expects of them. The agent sees its log in every
            decision; the profile itself, and so costs and VWAP, stay as they are.
        momentum_sd: log return of the last 10 minutes in units of its expected sd. The agent sees it in its first decision
            alone: ten minutes later it is another one, which is expected to be 0.
    """

    mid_dollars: Annotated[float, _number("mid_dollars", "mid price, dollars")] | None = None
    spread_dollars: Annotated[float, _number("spread_dollars", "ask - bid, dollars")] | None = None
    daily_volatility: (
        Annotated[float, _number("daily_volatility", "sd of the day's return, a fraction")] | None
    ) = None
    volume_to_profile: (
        Annotated[float, _number("volume_to_profile", "volume of the last 15 minutes over their profile")]
        | None
    ) = None
    momentum_sd: (
        Annotated[float, _number("momentum_sd", "log return of the last 10 minutes over its expected sd")]
        | None
    ) = None


class ExecutionRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An order to sell.

    Attributes:
        ticker: one that the bundle knows.
        shares: whole, above 0, and at most half of the volume expected over the horizon.
        horizon_minutes: trading minutes to sell in, 1 to 390.
        start: ISO 8601 with an offset from UTC; now when None. Rounded up to a whole minute; outside the sessions the schedule
            begins with the next one.
        market: what is seen now; None: as expected.
    """

    ticker: str
    shares: Annotated[int, Meta(description="whole shares to sell", extra_json_schema={"minimum": 1})]
    horizon_minutes: Annotated[
        int,
        Meta(
            description="trading minutes to sell in",
            extra_json_schema={"minimum": 1, "maximum": SESSION_MINUTES},
        ),
    ] = SESSION_MINUTES
    start: (
        Annotated[
            str,
            Meta(
                description="first instant to sell at, ISO 8601 with an offset; now without it",
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | None
    ) = None
    market: MarketState | None = None


# Never part of a cycle: the garbage collector need not follow a thousand of them per answer.
class Slice(msgspec.Struct, gc=False):
    """Shares to sell in one minute.

    Attributes:
        timestamp: when the minute begins, UTC, as 2013-03-01T14:30:00Z.
        shares: whole, 0 or above.
    """

    timestamp: str
    shares: int


class ExpectedCost(msgspec.Struct):
    """Implementation shortfall expected of each schedule, basis points of the order's value: half the spread, temporary and
    permanent impact, no move of the market."""

    schedule: float
    twap: float
    vwap: float


class ExecutionAnswer(msgspec.Struct, kw_only=True):
    """How to sell an order. Each list has one slice for every minute of the horizon, in order, and sums to the order.

    Attributes:
        ticker, shares, horizon_minutes: as asked for.
        side: 'sell'.
        session: of the first slice, exchange date.
        schedule: what the agent would sell.
        twap: the same number of shares every minute.
        vwap: in proportion to the expected volume.
        expected_cost_bps: of each.
        model, model_version: who answered.
        bundle: first 12 digits of the archive's digest.
    """

    ticker: str
    side: str
    shares: int
    horizon_minutes: int
    session: str
    schedule: list[Slice]
    twap: list[Slice]
    vwap: list[Slice]
    expected_cost_bps: ExpectedCost
    model: str
    model_version: int
    bundle: str


# -- what a bundle says ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ExpectedMarket:
    """What is expected of a day, before it begins.

    Attributes:
        price_dollars: mid that costs are reckoned at where the request has none.
        spread_dollars: quoted spread, ask - bid, 0 or above.
        daily_volatility: sd of the day's return as a fraction.
        volume_shares: shares expected to trade in each minute of a regular session, above 0, shape (390,).

    Raises:
        ValueError: another shape, or a number out of its range.
    """

    price_dollars: float
    spread_dollars: float
    daily_volatility: float
    volume_shares: np.ndarray

    def __post_init__(self) -> None:
        volume = np.ascontiguousarray(self.volume_shares, np.float64)
        object.__setattr__(self, "volume_shares", volume)
        if volume.shape != (SESSION_MINUTES,) or not (np.isfinite(volume) & (volume > 0)).all():
            raise ValueError(
                f"volume_shares of shape {volume.shape}: {SESSION_MINUTES} finite numbers above 0 are needed, one per minute"
            )
        for name, bounds in (
            ("price_dollars", MARKET_BOUNDS["mid_dollars"]),
            ("spread_dollars", (0.0, self.price_dollars)),
            ("daily_volatility", MARKET_BOUNDS["daily_volatility"]),
        ):
            if not bounds[0] <= getattr(self, name) <= bounds[1]:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: from {bounds[0]:g} to {bounds[1]:g} is possible"
                )

    def description(self) -> dict[str, Any]:
        """For a bundle."""
        return {
            "price_dollars": float(self.price_dollars),
            "spread_dollars": float(self.spread_dollars),
            "daily_volatility": float(self.daily_volatility),
            "volume_shares": self.volume_shares.tolist(),
        }

    @staticmethod
    def from_description(description: Mapping[str, Any]) -> ExpectedMarket:
        """From a bundle."""
        return ExpectedMarket(**{name: description[name] for name in ExpectedMarket.__dataclass_fields__})

    def volume_of(self, stretches: list[Stretch]) -> np.ndarray:
        """Shares expected in each minute, shape (minutes,)."""
        if len(stretches) == 1:
            _, first, end = stretches[0]
            return self.volume_shares[first:end]
        return np.concatenate([self.volume_shares[first:end] for _, first, end in stretches])


def observation_code(agent: Mapping[str, Any]) -> str:
    """Identity of what the planner shows an agent and makes of its actions, 16 hex digits.

    Args:
        agent: names of environment, observations and actions, and the parameters that give an action its meaning.
    """
    meaning = [agent["parameters"][name] for name in ("minutes_per_decision", "max_pace")]
    content = [
        agent["environment"],
        list(agent["observation_names"]),
        list(agent["action_names"]),
        meaning,
        [LEAST_VOLUME, LEAST_SPREAD, TYPICAL_PARTICIPATION, OBSERVATION_BOUND],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


# -- the planner -------------------------------------------------------------------------------------------------------


class ExecutionPlanner:
    """Answers orders with the agent of a bundle. Holds nothing of a request: threads may share it.

    Args:
        bundle: of kind 'execution'.

    Raises:
        BundleError: another kind, an agent that wants other observations than this code computes, or a description that lacks
            something.
    """

    def __init__(self, bundle: Bundle) -> None:
        from quant_assets.models.sac import OnnxPolicy

        require_kind(bundle, "execution")
        described = bundle.description
        try:
            agent = described["agent"]
            ours = {
                "environment": ENVIRONMENT,
                "observation_names": OBSERVATION_NAMES,
                "action_names": ACTION_NAMES,
                "parameters": agent["parameters"],
            }
            if described["hashes"]["observation_code"] != observation_code(ours):
                raise BundleError(
                    f"{bundle.served_by} wants observations {described['hashes']['observation_code']}, the code computes "
                    f"{observation_code(ours)} ({', '.join(OBSERVATION_NAMES)}): train the agent again (train_agents_job), or "
                    "serve it with the code that packed it"
                )
            self._law = _Law.of(agent["parameters"])
            self._policy = OnnxPolicy(bundle.onnx, agent)
            self._markets = {
                ticker: ExpectedMarket.from_description(of) for ticker, of in described["markets"].items()
            }
            self._daily_volume = {
                ticker: float(market.volume_shares.sum()) for ticker, market in self._markets.items()
            }
            self.hours = ExchangeHours.from_description(described["hours"])
            self._most_participation = float(described["limits"]["max_participation"])
            self._most_minutes = int(described["limits"]["max_horizon_minutes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(
                f"{bundle.served_by} does not describe an agent that can be asked ({type(error).__name__}: {error}): pack it again"
            ) from error
        except Exception as error:  # what onnxruntime raises has no type of its own
            raise BundleError(
                f"the network of {bundle.served_by} cannot be loaded ({error}): pack it again"
            ) from error
        if self.hours.longest > SESSION_MINUTES or self._most_minutes > SESSION_MINUTES:
            raise BundleError(
                f"{bundle.served_by} has sessions of {self.hours.longest} and horizons of {self._most_minutes} minutes, a profile "
                f"has {SESSION_MINUTES}: pack it again with hours of one exchange"
            )
        self._model, self._version, self._digest = bundle.model, bundle.version, bundle.digest[:12]

    @property
    def tickers(self) -> tuple[str, ...]:
        """Those that can be asked for."""
        return tuple(self._markets)

    def answer(self, request: ExecutionRequest, now: dt.datetime) -> ExecutionAnswer:
        """Plan an order.

        Args:
            request: as decoded; the ranges of its values are checked here.
            now: instant that an order without a start begins at.

        Raises:
            RequestRefused: it cannot be planned as it is.
            InvalidAnswer: the network gave no pace, or what came out is no schedule.
        """
        expected = self._market(request.ticker)
        shares, horizon = request.shares, request.horizon_minutes
        _require_whole("shares", shares)
        _require_whole("horizon_minutes", horizon)
        if horizon > self._most_minutes:
            raise RequestRefused(
                "horizon_minutes", f"{_shown(horizon)} is too long: 1 to {self._most_minutes} minutes"
            )
        stretches = self._stretches(request.start, now, horizon)
        volume = expected.volume_of(stretches)
        most = int(self._most_participation * float(volume.sum()))
        if shares > most:
            raise RequestRefused(
                "shares",
                f"{_shown(shares)} is too large: at most {most}, {self._most_participation:.0%} of the volume that is expected "
                f"over the {horizon} minutes",
            )
        mid, spread, volatility, seen = _market_now(request.market, expected)

        schedules = np.stack(
            [
                self._plan(shares, volume, seen),
                _spread_over(shares, np.arange(1, horizon + 1) / horizon),
                _spread_over(shares, _part_of_volume(volume)),
            ]
        )
        timestamps = self.hours.timestamps(stretches)
        self._verify(schedules, timestamps, shares, stretches)
        costs = self._law.cost_bps(
            schedules, volume, self._daily_volume[request.ticker], mid, spread, volatility
        )
        if not np.isfinite(costs).all():
            raise InvalidAnswer(f"expected costs are {costs.tolist()}")
        schedule, twap, vwap = ([*map(Slice, timestamps, sold)] for sold in schedules.tolist())
        return ExecutionAnswer(
            ticker=request.ticker,
            side="sell",
            shares=shares,
            horizon_minutes=horizon,
            session=stretches[0].session.isoformat(),
            schedule=schedule,
            twap=twap,
            vwap=vwap,
            expected_cost_bps=ExpectedCost(*costs.tolist()),
            model=self._model,
            model_version=self._version,
            bundle=self._digest,
        )

    def _market(self, ticker: str) -> ExpectedMarket:
        market = self._markets.get(ticker)
        if market is None:
            known = ", ".join(list(self._markets)[:NAMED_AT_MOST])
            more = len(self._markets) - NAMED_AT_MOST
            raise RequestRefused(
                "ticker",
                f"{_shown(ticker)} is unknown; known are {known}{f' and {more} more' if more > 0 else ''}",
            )
        return market

    def _stretches(self, start: str | None, now: dt.datetime, horizon: int) -> list[Stretch]:
        try:
            begin = now if start is None else dt.datetime.fromisoformat(start)
        except ValueError as error:
            raise RequestRefused(
                "start", f"{_shown(start)} is no instant: ISO 8601 with an offset, as 2013-03-01T14:30:00Z"
            ) from error
        if begin.tzinfo is None:
            raise RequestRefused(
                "start", f"{_shown(start)} has no offset from UTC: 2013-03-01T14:30:00Z has one"
            )
        try:
            return self.hours.stretches(begin, horizon)
        except HoursError as error:
            raise RequestRefused("start", str(error)) from error

    def _plan(self, shares: int, volume: np.ndarray, seen: _Seen) -> np.ndarray:
        """What the agent sells in each minute, whole shares, shape (minutes,)."""
        law, act, horizon = self._law, self._policy.act, len(volume)
        # Of what is left to trade over the horizon, the part that each minute trades; exactly 1 in the last one.
        profile = (volume / np.cumsum(volume[::-1])[::-1]).tolist()
        participation = _bounded(math.log(shares / float(volume.sum()) / TYPICAL_PARTICIPATION))
        observation = np.empty((1, len(OBSERVATION_NAMES)), np.float32)
        observation[0, 2:] = (seen.spread, seen.volume, seen.volatility, seen.momentum, participation)
        wanted, left = float(shares), []
        for first in range(0, horizon, law.minutes_per_decision):
            observation[0, 0] = round(wanted) / shares
            observation[0, 1] = 1.0 - first / horizon
            pace = _pace(act, observation, first)
            observation[0, 5] = 0.0
            # The hot loop of a request: plain numbers are quicker here than arrays of fifteen.
            fastest = pace if law.max_pace is None else pace * law.max_pace
            for k in range(first, min(first + law.minutes_per_decision, horizon)):
                share = fastest if law.max_pace is None else fastest * profile[k]
                wanted *= 1.0 - share if share < 1.0 else 0.0
                left.append(wanted)
        left[-1] = 0.0
        return _sold(shares - np.rint(left))

    def _verify(
        self, schedules: np.ndarray, timestamps: list[str], shares: int, stretches: list[Stretch]
    ) -> None:
        """Whatever went before: what leaves here can be traded."""
        minutes = sum(end - first for _, first, end in stretches)
        if schedules.shape != (3, minutes) or len(timestamps) != minutes:
            raise InvalidAnswer(
                f"schedules of shape {schedules.shape} and {len(timestamps)} timestamps for {minutes} minutes"
            )
        if schedules.min() < 0 or (schedules.sum(axis=1) != shares).any():
            raise InvalidAnswer(
                f"schedules sell {schedules.sum(axis=1).tolist()} of {shares} shares, in one minute {schedules.min()}"
            )
        before = None
        for session, first, end in stretches:
            if not (0 <= first < end <= self.hours.length(session)) or (before and session <= before):
                raise InvalidAnswer(
                    f"minutes {first} to {end} of {session} are not in the session, or not in order"
                )
            before = session


@dataclass(frozen=True)
class _Seen:
    """What the agent is told of the market, as it observes it."""

    spread: float = 0.0
    volume: float = 0.0
    volatility: float = 0.0
    momentum: float = 0.0


@dataclass(frozen=True)
class _Law:
    """What an action means and what sales cost: the part of `ExecutionParameters` that a plan needs, named alike."""

    minutes_per_decision: int
    max_pace: float | None
    impact: str
    temporary_impact: float
    permanent_impact: float

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> _Law:
        law = _Law(**{name: parameters[name] for name in _Law.__dataclass_fields__})
        if (
            law.minutes_per_decision < 1
            or law.impact not in ("linear", "square_root")
            or not (law.max_pace is None or 1 <= law.max_pace < math.inf)
            or not (0 <= law.temporary_impact < math.inf and 0 <= law.permanent_impact < math.inf)
        ):
            raise ValueError(f"parameters {law} are none of the execution environment")
        return law

    def cost_bps(
        self,
        schedules: np.ndarray,
        volume: np.ndarray,
        daily_volume: float,
        mid: float,
        spread: float,
        volatility: float,
    ) -> np.ndarray:
        """Expected implementation shortfall of schedules (n, minutes), basis points, shape (n,)."""
        participation = schedules / volume
        if self.impact == "square_root":
            participation = np.sqrt(participation)
        sold_before = np.cumsum(schedules, axis=1) - schedules
        sigma_dollars = volatility * mid
        concession = (
            0.5 * spread
            + self.temporary_impact * sigma_dollars * participation
            + self.permanent_impact * sigma_dollars / daily_volume * sold_before
        )
        return (schedules * concession).sum(axis=1) * 1e4 / (schedules.sum(axis=1) * mid)


def _pace(act: Any, observation: np.ndarray, minute: int) -> float:
    """The network's decision, within its box."""
    try:
        pace = float(act(observation)[0, 0])
    except Exception as error:  # of any type: the model is at fault, and the process goes on
        raise InvalidAnswer(f"the network fails at minute {minute}: {error}") from error
    if not -BOX_TOLERANCE <= pace <= 1 + BOX_TOLERANCE:  # NaN compares false
        raise InvalidAnswer(f"the network's pace at minute {minute} is {pace}, it must lie in [0, 1]")
    return min(max(pace, 0.0), 1.0)


def _market_now(state: MarketState | None, expected: ExpectedMarket) -> tuple[float, float, float, _Seen]:
    """(mid, spread, daily volatility, what the agent sees)."""
    if state is None:
        return expected.price_dollars, expected.spread_dollars, expected.daily_volatility, _Seen()
    for name, (low, high) in MARKET_BOUNDS.items():
        value = getattr(state, name)
        if value is not None and not low <= value <= high:
            raise RequestRefused(f"market.{name}", f"{value:g} is not possible: {low:g} to {high:g}")
    mid = _given(state.mid_dollars, expected.price_dollars)
    spread = _given(state.spread_dollars, expected.spread_dollars)
    volatility = _given(state.daily_volatility, expected.daily_volatility)
    if spread > mid:
        field = "mid_dollars" if state.spread_dollars is None else "spread_dollars"
        raise RequestRefused(
            f"market.{field}", f"a spread of {spread:g} dollars at a mid of {mid:g}: it is at most the mid"
        )
    ratio = _given(state.volume_to_profile, 1.0)
    least = LEAST_SPREAD * mid
    return (
        mid,
        spread,
        volatility,
        _Seen(
            spread=_bounded(math.log(max(spread, least) / max(expected.spread_dollars, least))),
            volume=_bounded(math.log((ratio + LEAST_VOLUME) / (1 + LEAST_VOLUME))),
            volatility=_bounded(math.log(volatility / expected.daily_volatility)),
            momentum=_bounded(_given(state.momentum_sd, 0.0)),
        ),
    )


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _bounded(observation: float) -> float:
    return min(max(observation, -OBSERVATION_BOUND), OBSERVATION_BOUND)


def _part_of_volume(volume: np.ndarray) -> np.ndarray:
    done = np.cumsum(volume)
    return done / done[-1]


def _spread_over(shares: int, part: np.ndarray) -> np.ndarray:
    """Whole shares of each minute, from the part of the order that is sold by its end."""
    return _sold(np.rint(shares * part))


def _sold(done: np.ndarray) -> np.ndarray:
    return np.diff(done, prepend=0.0).astype(np.int64)


def _require_whole(field: str, value: object) -> None:
    if type(value) is not int:
        raise RequestRefused(field, f"{_shown(value)} is no whole number")
    if value < 1:
        raise RequestRefused(field, f"{_shown(value)} is too small: at least 1")


def _shown(value: object) -> str:
    """A value of a request for a message, whatever its length."""
    text = "a number beyond 10^18" if isinstance(value, int) and abs(value) > 10**18 else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
