"""A plan is what the environment does with the same agent on the expected market; and whatever is asked, what leaves can be traded."""

import datetime as dt
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from quant_assets.environments import episodes as environment_episodes
from quant_assets.environments import execution as environment
from quant_assets.environments.execution import (
    ExecutionEpisodes,
    ExecutionMarket,
    ExecutionParameters,
    run_schedule,
    twap_schedule,
    vwap_schedule,
)
from quant_assets.environments.problems import EXECUTION
from quant_assets.models.sac import OnnxPolicy
from quant_assets.serving import execution_plan
from quant_assets.serving.bundle import (
    Bundle,
    BundleError,
    execution_description,
    pack,
    unpack,
)
from quant_assets.serving.execution_plan import (
    ExecutionAnswer,
    ExecutionPlanner,
    ExecutionRequest,
    ExpectedMarket,
    MarketState,
    Slice,
)
from quant_assets.serving.hours import Stretch
from quant_assets.serving.refusals import InvalidAnswer, RequestRefused
from quant_resources.calendar import TradingCalendar
from tests.serving import bundles

NOW = dt.datetime(2013, 3, 1, 14, 30, tzinfo=dt.UTC)
OPEN = "2013-03-01T14:30:00Z"
MINUTES = np.arange(390)
# Not symmetric, so that no two stretches of the day are alike.
PROFILE = 9_000.0 * (1 + 2 * ((MINUTES - 220) / 200) ** 2 + 0.1 * np.sin(MINUTES))
AAPL = ExpectedMarket(
    price_dollars=430.47, spread_dollars=0.05, daily_volatility=0.016, volume_shares=PROFILE
)
CALENDAR = TradingCalendar(bundles.FIRST, bundles.LAST)


def bundle_of(
    policy: bytes,
    parameters: ExecutionParameters = EXECUTION,
    market: ExpectedMarket = AAPL,
    change: Callable[[dict[str, Any]], None] = lambda description: None,
) -> Bundle:
    registered = {**bundles.registered_agent(), "parameters": asdict(parameters)}
    description = execution_description(
        "sac_execution", 4, registered, {"AAPL": market, "IBM": market}, bundles.hours(), policy
    )
    description = json.loads(json.dumps(description))
    change(description)
    return unpack(pack(policy, description))


def ask(planner: ExecutionPlanner, shares: int, horizon: int = 390, **more: Any) -> ExecutionAnswer:
    request = ExecutionRequest(
        ticker="AAPL", shares=shares, horizon_minutes=horizon, **{"start": OPEN, **more}
    )
    return planner.answer(request, NOW)


def sold(slices: list[Slice]) -> np.ndarray:
    return np.array([one.shares for one in slices])


def asdict_struct(struct: msgspec.Struct) -> dict[str, Any]:
    return msgspec.structs.asdict(struct)


def expected_day(volume: np.ndarray, *, moves: bool) -> ExecutionMarket:
    """The expected market as the environment takes it: one day of 390 minutes.

    A mid that rests prices a plan. What the agent is told is another matter: that volatility is as expected and that there is
    no momentum, which a mid shows that goes up and down by the expected sd of a minute in turn.
    """
    step = AAPL.daily_volatility / np.sqrt(len(volume)) if moves else 0.0
    mid = AAPL.price_dollars * np.exp(step * (np.arange(len(volume) + 1) % 2))
    return ExecutionMarket(
        mid=mid[None],
        spread=np.full((1, len(volume) + 1), AAPL.spread_dollars),
        volume_shares=volume[None],
        expected_volume_shares=volume[None],
        daily_volatility=np.array([AAPL.daily_volatility]),
        draw_id=np.zeros(1, int),
    )


def environment_plan(
    policy: bytes, parameters: ExecutionParameters, volume: np.ndarray, shares: int
) -> np.ndarray:
    """Shares by minute that the environment sells; what it leaves to the end goes with the last minute."""
    parameters = replace(parameters, order_shares=float(shares))
    episodes = ExecutionEpisodes(expected_day(volume, moves=True), parameters, 1)
    agent = OnnxPolicy(policy, bundles.registered_agent())
    observation, parts, leftover = episodes.reset(np.random.default_rng(0), np.zeros(1, int)), [], 0.0
    for _ in range(episodes.steps):
        step = episodes.step(agent.act(observation))
        observation = step.observation
        parts.append(step.info["sold_by_minute"][0])
        leftover += step.info["leftover_shares"][0]
    made = np.concatenate(parts)
    made[-1] += leftover
    return made.astype(int)


# -- against the environment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("horizon", "shares"),
    [
        (390, 1000),
        (390, 123_457),
        (390, 1),
        (390, 40),
        (389, 7_777),
        (200, 50_000),
        (46, 313),
        (16, 25),
        (15, 9_001),
        (2, 3),
        (1, 500),
    ],
)
def test_a_plan_is_what_the_environment_does_share_for_share(horizon: int, shares: int, seed: int) -> None:
    policy = bundles.sac_policy(seed)
    parameters = replace(EXECUTION, horizon_minutes=horizon)
    wanted = environment_plan(policy, parameters, PROFILE, shares)
    assert (
        sold(ask(ExecutionPlanner(bundle_of(policy)), shares, horizon).schedule).tolist() == wanted.tolist()
    )


@pytest.mark.parametrize(
    "policy", [bundles.sac_policy(3), bundles.constant_pace(1.0)], ids=["agent", "as fast as allowed"]
)
@pytest.mark.parametrize(
    "parameters",
    [
        replace(EXECUTION, minutes_per_decision=30),
        replace(EXECUTION, minutes_per_decision=390),
        replace(EXECUTION, max_pace=5.0),
        replace(EXECUTION, max_pace=None, minutes_per_decision=60),
    ],
)
def test_an_action_means_what_the_bundle_says(parameters: ExecutionParameters, policy: bytes) -> None:
    planner = ExecutionPlanner(bundle_of(policy, parameters))
    for horizon in (390, 3):
        wanted = environment_plan(policy, replace(parameters, horizon_minutes=horizon), PROFILE, 10_011)
        assert sold(ask(planner, 10_011, horizon).schedule).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("start", "horizon", "stretches"),
    [
        ("2013-03-01T17:00:00Z", 100, [(150, 250)]),  # within the session
        ("2013-03-01T17:00:00Z", 390, [(150, 390), (0, 150)]),  # over a weekend
        ("2013-03-02T12:00:00Z", 390, [(0, 390)]),  # on a Saturday
        ("2013-07-03T16:00:00Z", 390, [(150, 210), (0, 330)]),  # a half day and the holiday after it
    ],
)
def test_a_horizon_takes_the_profile_of_its_minutes(
    start: str, horizon: int, stretches: list[tuple[int, int]]
) -> None:
    policy = bundles.sac_policy(1)
    volume = np.concatenate([PROFILE[first:end] for first, end in stretches])
    planner = ExecutionPlanner(bundle_of(policy))
    answer = ask(planner, 30_011, horizon, start=start)
    parameters = replace(EXECUTION, horizon_minutes=horizon, order_shares=30_011.0)
    wanted = environment_plan(policy, parameters, volume, 30_011)
    assert sold(answer.schedule).tolist() == wanted.tolist()
    vwap = vwap_schedule(expected_day(volume, moves=False), parameters)[0]
    assert sold(answer.vwap).tolist() == vwap.tolist()


@pytest.mark.parametrize("impact", ["square_root", "linear"])
@pytest.mark.parametrize(("horizon", "shares"), [(390, 100_003), (61, 999), (1, 12)])
def test_costs_and_the_schedules_to_compare_with_are_the_environments(
    impact: str, horizon: int, shares: int
) -> None:
    parameters = replace(EXECUTION, impact=impact, horizon_minutes=horizon, order_shares=float(shares))
    market = expected_day(PROFILE, moves=False)
    answer = ask(
        ExecutionPlanner(bundle_of(bundles.sac_policy(2), replace(EXECUTION, impact=impact))), shares, horizon
    )
    assert sold(answer.twap).tolist() == twap_schedule(parameters).tolist()
    assert sold(answer.vwap).tolist() == vwap_schedule(market, parameters)[0].tolist()
    for name in ("schedule", "twap", "vwap"):
        cost = run_schedule(market, parameters, sold(getattr(answer, name)))
        assert cost.leftover_shares[0] == 0
        assert getattr(answer.expected_cost_bps, name) == pytest.approx(
            cost.implementation_shortfall_bps[0], rel=1e-9
        )


def test_what_is_written_down_twice_is_the_same_twice() -> None:
    assert ExecutionEpisodes.name == execution_plan.ENVIRONMENT
    assert ExecutionEpisodes.observation_names == execution_plan.OBSERVATION_NAMES
    assert ExecutionEpisodes.action_names == execution_plan.ACTION_NAMES
    for name in ("LEAST_VOLUME", "LEAST_SPREAD", "TYPICAL_PARTICIPATION"):
        assert getattr(execution_plan, name) == getattr(environment, name)
    assert execution_plan.BOX_TOLERANCE == environment_episodes.BOX_TOLERANCE
    episodes = ExecutionEpisodes(expected_day(PROFILE, moves=False), EXECUTION, 1)
    assert episodes.observation_bound == execution_plan.OBSERVATION_BOUND
    assert (episodes.action_space.low, episodes.action_space.high) == (0.0, 1.0)


def test_known_costs() -> None:
    """100 shares in one minute that expects 10,000, at 50 dollars: half a spread of 4 cents is 4 bps, 1 % of the volume costs a
    tenth of 0.11 daily sd of 2 %, 2.2 bps, each on every share; nothing was sold before."""
    market = ExpectedMarket(50.0, 0.04, 0.02, np.full(390, 10_000.0))
    answer = ask(ExecutionPlanner(bundle_of(bundles.constant_pace(), EXECUTION, market)), 100, 1)
    assert asdict_struct(answer.expected_cost_bps) == pytest.approx(
        {"schedule": 6.2, "twap": 6.2, "vwap": 6.2}, rel=1e-12
    )


# -- what the agent is told --------------------------------------------------------------------------------------------


def telling(observation: str, factor: float) -> bytes:
    """An agent whose pace is 0.5 plus so many times one of its observations: what it sells says what it was told."""
    weights = np.zeros((7, 1))
    weights[execution_plan.OBSERVATION_NAMES.index(observation)] = factor
    node = helper.make_node("Gemm", ["observation", "weights", "middle"], ["action"])
    return bundles._policy([node], {"weights": weights, "middle": [0.5]})


def told(observation: str, factor: float, state: MarketState | None, shares: int = 1_700_000) -> list[float]:
    """What an observation was in each decision, read off the plan over a flat profile."""
    flat = replace(AAPL, volume_shares=np.full(390, 9_000.0))
    planner = ExecutionPlanner(bundle_of(telling(observation, factor), EXECUTION, flat))
    schedule = sold(ask(planner, shares, market=state).schedule)
    left = shares - np.concatenate([[0], np.cumsum(schedule)])
    found = []
    for first in range(0, 375, 15):
        # The first minute of a decision sells pace * max_pace / (minutes left) of what is left.
        pace = schedule[first] / left[first] * (390 - first) / 2
        found.append((pace - 0.5) / factor)
    return found


@pytest.mark.parametrize("observation", execution_plan.OBSERVATION_NAMES[2:6])
def test_without_a_market_state_everything_is_as_expected(observation: str) -> None:
    assert told(observation, 0.1, None) == pytest.approx([0.0] * 25, abs=0.005)
    assert told(observation, 0.1, MarketState()) == told(observation, 0.1, None)


@pytest.mark.parametrize(
    ("observation", "state", "value"),
    [
        ("spread_log", MarketState(spread_dollars=0.10), np.log(2)),
        ("spread_log", MarketState(spread_dollars=0.0), np.log(430.47e-5 / 0.05)),  # locked
        ("volatility_log", MarketState(daily_volatility=0.008), -np.log(2)),
        ("volume_to_profile_log", MarketState(volume_to_profile=3.0), np.log(3.01 / 1.01)),
        ("volume_to_profile_log", MarketState(volume_to_profile=0.0), np.log(0.01 / 1.01)),
        ("volume_to_profile_log", MarketState(volume_to_profile=1e6), 10.0),  # as far as an agent sees
    ],
)
def test_a_market_state_holds_for_the_whole_plan(observation: str, state: MarketState, value: float) -> None:
    factor = 0.3 / max(abs(value), 1)
    assert told(observation, factor, state) == pytest.approx([value] * 25, abs=0.002 * max(abs(value), 1))


def test_momentum_is_told_once() -> None:
    first, *others = told("momentum_sd", 0.1, MarketState(momentum_sd=2.0))
    assert first == pytest.approx(2.0, abs=0.005)
    assert others == pytest.approx([0.0] * 24, abs=0.005)


def test_order_and_time_move_on_with_the_plan() -> None:
    assert told("time_left_fraction", 0.3, None) == pytest.approx([1 - k / 26 for k in range(25)], abs=0.002)
    fraction = told("shares_left_fraction", 0.3, None)
    assert fraction[0] == pytest.approx(1.0, abs=0.01)
    assert all(after < before for before, after in itertools.pairwise(fraction))
    participation = np.log(1_700_000 / (390 * 9_000) / 0.05)
    assert told("order_participation_log", 0.1, None) == pytest.approx([participation] * 25, abs=0.005)


def test_mid_spread_and_volatility_price_the_costs() -> None:
    planner = ExecutionPlanner(bundle_of(bundles.constant_pace(0.5)))
    state = MarketState(mid_dollars=100.0, spread_dollars=0.03, daily_volatility=0.03, volume_to_profile=9.0)
    answer = ask(planner, 10_000, market=state)
    usual = ask(planner, 10_000)
    day = expected_day(PROFILE, moves=False)
    market = replace(
        day,
        mid=np.full_like(day.mid, 100.0),
        spread=np.full_like(day.spread, 0.03),
        daily_volatility=np.array([0.03]),
    )
    parameters = replace(EXECUTION, order_shares=10_000.0)
    cost = run_schedule(market, parameters, sold(answer.vwap)).implementation_shortfall_bps[0]
    assert answer.expected_cost_bps.vwap == pytest.approx(cost, rel=1e-9)
    assert answer.expected_cost_bps.vwap != pytest.approx(usual.expected_cost_bps.vwap, rel=0.1)
    # The profile is what it was, and an agent that looks at nothing sells what it sold.
    assert (answer.vwap, answer.schedule) == (usual.vwap, usual.schedule)


# -- whatever is asked -------------------------------------------------------------------------------------------------

PLANNER = ExecutionPlanner(bundle_of(bundles.sac_policy(5)))
MARKET_STATES = st.builds(
    MarketState,
    **{
        name: st.none() | st.floats(low, high)
        for name, (low, high) in {**execution_plan.MARKET_BOUNDS, "spread_dollars": (0.0, 1e-4)}.items()
        if name != "mid_dollars"
    },
)


@settings(max_examples=150, deadline=None)
@given(
    shares=st.integers(1, 5_000),
    horizon=st.integers(1, 390),
    start=st.datetimes(dt.datetime(2012, 1, 4), dt.datetime(2027, 12, 1), timezones=st.just(dt.UTC)),
    market=st.none() | MARKET_STATES,
)
def test_what_leaves_can_be_traded(
    shares: int, horizon: int, start: dt.datetime, market: MarketState | None
) -> None:
    """Whole shares, none negative, the order and not one more, one slice a minute, in order, each inside a session."""
    assume(shares <= 0.5 * PROFILE.min() * horizon)
    answer = ask(PLANNER, shares, horizon, start=start.isoformat(), market=market)
    instants = []
    for slices in (answer.schedule, answer.twap, answer.vwap):
        assert all(type(one.shares) is int and one.shares >= 0 for one in slices)
        assert (len(slices), sum(one.shares for one in slices)) == (horizon, shares)
        instants.append([dt.datetime.fromisoformat(one.timestamp) for one in slices])
    assert instants[0] == instants[1] == instants[2]
    assert instants[0][0] >= start
    assert instants[0] == sorted(set(instants[0]))
    for instant in instants[0]:
        session = CALENDAR.session_of(instant + dt.timedelta(seconds=59))
        assert CALENDAR.opens(session) <= instant < CALENDAR.close(session)
    assert answer.session == CALENDAR.session_of(instants[0][0] + dt.timedelta(seconds=1)).isoformat()
    costs = asdict_struct(answer.expected_cost_bps)
    assert all(np.isfinite(cost) and cost >= 0 for cost in costs.values())


def test_an_order_without_a_start_begins_now() -> None:
    request = ExecutionRequest(ticker="IBM", shares=10, horizon_minutes=2)
    # A second after the last minute of the session before the weekend has begun.
    answer = PLANNER.answer(request, dt.datetime(2013, 3, 1, 20, 59, 1, tzinfo=dt.UTC))
    assert answer.session == "2013-03-04"
    assert [one.timestamp for one in answer.schedule] == ["2013-03-04T14:30:00Z", "2013-03-04T14:31:00Z"]
    assert (answer.ticker, answer.side) == ("IBM", "sell")


def test_an_answer_says_who_gave_it() -> None:
    bundle = bundle_of(bundles.sac_policy(5))
    answer = ask(ExecutionPlanner(bundle), 100)
    assert f"{answer.model}:{answer.model_version}:{answer.bundle}" == bundle.served_by


def test_the_same_request_gives_the_same_bytes() -> None:
    again = ExecutionPlanner(bundle_of(bundles.sac_policy(5)))
    encoded = [msgspec.json.encode(ask(planner, 777, 300)) for planner in (PLANNER, PLANNER, again)]
    assert encoded[0] == encoded[1] == encoded[2]
    assert msgspec.json.decode(encoded[0], type=ExecutionAnswer) == ask(PLANNER, 777, 300)


# -- refusals ----------------------------------------------------------------------------------------------------------

MOST = int(0.5 * PROFILE.sum())


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"ticker": "TSLA"}, "ticker", "'TSLA' is unknown; known are AAPL, IBM"),
        ({"ticker": ""}, "ticker", "'' is unknown"),
        ({"ticker": "A" * 10_000}, "ticker", "AAA... is unknown"),
        ({"shares": 0}, "shares", "0 is too small: at least 1"),
        ({"shares": -5}, "shares", "-5 is too small"),
        ({"shares": 1.5}, "shares", "1.5 is no whole number"),
        ({"shares": 1000.0}, "shares", "1000.0 is no whole number"),
        ({"shares": True}, "shares", "True is no whole number"),
        ({"shares": "1000"}, "shares", "'1000' is no whole number"),
        ({"shares": MOST + 1}, "shares", f"{MOST + 1} is too large: at most {MOST}, 50% of the volume"),
        ({"shares": 10**30}, "shares", "a number beyond 10^18 is too large"),
        ({"shares": 10**5000}, "shares", "a number beyond 10^18 is too large"),
        ({"shares": 100_000, "horizon_minutes": 1}, "shares", "over the 1 minutes"),
        ({"horizon_minutes": 0}, "horizon_minutes", "0 is too small: at least 1"),
        ({"horizon_minutes": 391}, "horizon_minutes", "391 is too long: 1 to 390 minutes"),
        ({"horizon_minutes": True}, "horizon_minutes", "True is no whole number"),
        ({"start": "tomorrow"}, "start", "'tomorrow' is no instant"),
        ({"start": ""}, "start", "'' is no instant"),
        ({"start": "2013-03-01T14:30:00"}, "start", "has no offset from UTC"),
        ({"start": "2013-03-01"}, "start", "has no offset from UTC"),
        ({"start": "2013-02-30T14:30:00Z"}, "start", "is no instant"),
        ({"start": "1999-03-01T14:30:00Z"}, "start", "outside the hours 2012-01-03..2027-12-31"),
        ({"start": "2027-12-31T20:00:00Z"}, "start", "go beyond the hours"),
        ({"start": "0001-01-01T00:00:00+23:59"}, "start", "outside the hours"),
        ({"start": "9999-12-31T23:59:59-23:59"}, "start", "outside the hours"),
        ({"market": MarketState(mid_dollars=float("nan"))}, "market.mid_dollars", "nan is not possible"),
        ({"market": MarketState(mid_dollars=0.0)}, "market.mid_dollars", "0 is not possible"),
        ({"market": MarketState(mid_dollars=0.01)}, "market.mid_dollars", "a spread of 0.05 dollars"),
        ({"market": MarketState(spread_dollars=-0.01)}, "market.spread_dollars", "-0.01 is not possible"),
        ({"market": MarketState(spread_dollars=431.0)}, "market.spread_dollars", "it is at most the mid"),
        (
            {"market": MarketState(daily_volatility=float("inf"))},
            "market.daily_volatility",
            "inf is not possible",
        ),
        ({"market": MarketState(daily_volatility=0.0)}, "market.daily_volatility", "0 is not possible"),
        ({"market": MarketState(volume_to_profile=-1.0)}, "market.volume_to_profile", "-1 is not possible"),
        ({"market": MarketState(momentum_sd=1e300)}, "market.momentum_sd", "1e+300 is not possible"),
        ({"market": MarketState(momentum_sd=float("-inf"))}, "market.momentum_sd", "-inf is not possible"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_field_and_reason(
    change: dict[str, Any], field: str, reason: str
) -> None:
    request = ExecutionRequest(**{"ticker": "AAPL", "shares": 1000, "start": OPEN, **change})
    with pytest.raises(RequestRefused) as refusal:
        PLANNER.answer(request, NOW)
    assert refusal.value.field == field
    assert reason in refusal.value.reason
    assert len(refusal.value.reason) < 300


@settings(max_examples=200, deadline=None)
@given(
    ticker=st.sampled_from(["AAPL", "IBM"]) | st.text(),
    shares=st.integers(1, 10_000) | st.integers() | st.floats() | st.booleans(),
    horizon=st.integers(1, 390) | st.integers(),
    start=st.none() | st.just(OPEN) | st.text() | st.datetimes().map(lambda at: f"{at.isoformat()}Z"),
    market=st.none()
    | st.builds(MarketState, **dict.fromkeys(MarketState.__struct_fields__, st.none() | st.floats())),
)
def test_any_request_is_planned_or_refused(
    ticker: str, shares: Any, horizon: int, start: str | None, market: MarketState | None
) -> None:
    request = ExecutionRequest(
        ticker=ticker, shares=shares, horizon_minutes=horizon, start=start, market=market
    )
    try:
        answer = PLANNER.answer(request, NOW)
    except RequestRefused as refusal:
        assert refusal.field in ("ticker", "shares", "horizon_minutes", "start") or market  # noqa: PT017
    else:
        assert sold(answer.schedule).sum() == shares


def test_the_largest_order_that_is_allowed_is_planned() -> None:
    assert sum(one.shares for one in ask(PLANNER, MOST).schedule) == MOST


@pytest.mark.parametrize(
    "body",
    [
        b'{"ticker": "AAPL", "shares": 1000.0}',
        b'{"ticker": "AAPL", "shares": 1e3}',
        b'{"ticker": "AAPL", "shares": true}',
        b'{"ticker": "AAPL", "shares": "1000"}',
        b'{"ticker": "AAPL", "shares": null}',
        b'{"ticker": "AAPL", "shares": 1000, "side": "buy"}',
        b'{"ticker": "AAPL"}',
        b'{"ticker": "AAPL", "shares": 1000, "market": {"mid_dollars": NaN}}',
        b'{"ticker": "AAPL", "shares": 1000, "market": {"mid_dollars": 1e999}}',
        b'{"ticker": "AAPL", "shares": 1000, "market": {"mid": 1}}',
    ],
)
def test_what_is_of_another_type_does_not_become_a_request(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body, type=ExecutionRequest)


# -- networks that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", [float("nan"), float("inf"), float("-inf"), 1.5, -0.5])
def test_a_pace_that_is_none_is_an_invalid_answer(pace: float) -> None:
    planner = ExecutionPlanner(bundle_of(bundles.constant_pace(pace)))
    with pytest.raises(InvalidAnswer, match=f"pace at minute 0 is {pace}"):
        ask(planner, 1000)


@pytest.mark.parametrize(("pace", "wanted"), [(1.0 + 5e-6, [1000, 0, 0]), (-5e-6, [0, 0, 1000])])
def test_a_pace_that_rounding_put_outside_its_box_is_the_bound(pace: float, wanted: list[int]) -> None:
    parameters = replace(EXECUTION, max_pace=None, minutes_per_decision=1)
    planner = ExecutionPlanner(bundle_of(bundles.constant_pace(pace), parameters))
    assert sold(ask(planner, 1000, 3).schedule).tolist() == wanted


def test_an_order_that_breaks_the_network_breaks_no_other() -> None:
    planner = ExecutionPlanner(bundle_of(bundles.wrong_for_large_orders()))
    before = ask(planner, 1000)
    with pytest.raises(InvalidAnswer):
        ask(planner, MOST)
    assert ask(planner, 1000) == before


def test_a_network_that_fails_while_it_runs_is_an_invalid_answer() -> None:
    nodes = [
        helper.make_node("ArgMax", ["observation"], ["largest"], axis=1, keepdims=0),
        helper.make_node("Gather", ["short", "largest"], ["picked"], axis=0),
        helper.make_node("Gemm", ["observation", "nothing", "picked"], ["action"]),
    ]
    # `time_left_fraction` and `shares_left_fraction` begin at 1, rows beyond the first do not exist.
    planner = ExecutionPlanner(bundle_of(bundles._policy(nodes, {"short": np.zeros((0, 1))})))
    with pytest.raises(InvalidAnswer, match="the network fails at minute 0"):
        ask(planner, 1000)


def _wrong(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda self, shares, volume, seen: change(np.full(len(volume), shares // len(volume)))


@pytest.mark.parametrize(
    ("attribute", "wrong", "reason"),
    [
        ("_plan", _wrong(lambda sold: sold + 1), r"sell \[1010, 1000, 1000\] of 1000 shares"),
        ("_plan", _wrong(lambda sold: sold * 0), r"sell \[0, 1000, 1000\] of 1000 shares"),
        ("_plan", _wrong(lambda sold: sold + np.resize([-500, 500], len(sold))), "in one minute -400"),
        ("_law", SimpleNamespace(cost_bps=lambda *_: np.array([1.0, np.nan, 1.0])), r"costs are \[1.0, nan"),
        ("_law", SimpleNamespace(cost_bps=lambda *_: np.array([1.0, 1.0, np.inf])), "costs are"),
    ],
)
def test_the_answer_checks_itself(
    attribute: str, wrong: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the planner goes wrong, a wrong schedule does not leave."""
    planner = ExecutionPlanner(bundle_of(bundles.constant_pace()))
    assert len(ask(planner, 1000, 10).schedule) == 10
    monkeypatch.setattr(ExecutionPlanner, "_plan", _wrong(lambda sold: sold))
    monkeypatch.setattr(ExecutionPlanner if attribute == "_plan" else planner, attribute, wrong)
    with pytest.raises(InvalidAnswer, match=reason):
        ask(planner, 1000, 10)


@pytest.mark.parametrize(
    "stretches",
    [
        [Stretch(dt.date(2013, 3, 1), 385, 395)],  # beyond the close
        [Stretch(dt.date(2013, 7, 3), 205, 215)],  # beyond the close of a half day
        [Stretch(dt.date(2013, 3, 4), 0, 5), Stretch(dt.date(2013, 3, 1), 0, 5)],
    ],
)
def test_no_minute_outside_a_session_leaves(
    stretches: list[Stretch], monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = ExecutionPlanner(bundle_of(bundles.constant_pace()))
    monkeypatch.setattr(planner.hours, "stretches", lambda start, count: stretches)
    monkeypatch.setattr(planner.hours, "timestamps", lambda stretches: [OPEN] * 10)
    monkeypatch.setattr(ExpectedMarket, "volume_of", lambda self, stretches: np.full(10, 1e6))
    with pytest.raises(InvalidAnswer, match="not in the session, or not in order"):
        ask(planner, 1000, 10)
    monkeypatch.setattr(planner.hours, "timestamps", lambda stretches: [OPEN] * 9)
    with pytest.raises(InvalidAnswer, match="9 timestamps for 10 minutes"):
        ask(planner, 1000, 10)


# -- bundles that cannot be served -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["hashes"].update(observation_code="0" * 16), "wants observations 0000000000000000"),
        (lambda d: d["agent"]["parameters"].update(max_pace=3.0), "wants observations"),
        (lambda d: d["agent"]["observation_names"].pop(), "does not describe an agent"),
        (lambda d: d["agent"]["parameters"].update(impact="cubic"), "none of the execution environment"),
        (lambda d: d["agent"]["parameters"].pop("temporary_impact"), "temporary_impact"),
        (lambda d: d["markets"]["IBM"].update(daily_volatility=0), "daily_volatility = 0"),
        (lambda d: d["markets"]["IBM"].update(spread_dollars=500.0), "spread_dollars = 500"),
        (lambda d: d["markets"]["IBM"].update(volume_shares=[1.0]), r"volume_shares of shape \(1,\)"),
        (lambda d: d["markets"]["IBM"]["volume_shares"].__setitem__(7, 0), "finite numbers above 0"),
        (lambda d: d.pop("markets"), "markets"),
        (lambda d: d.pop("limits"), "limits"),
        (lambda d: d["hours"].update(regular=["09:00", "16:00"]), "sessions of 420"),
        (lambda d: d["hours"].pop("holidays"), "holidays"),
        (lambda d: d.update(kind="signal"), "is of kind signal, execution is asked for"),
    ],
)
def test_a_description_that_does_not_fit_refuses_to_load(
    change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        ExecutionPlanner(bundle_of(bundles.constant_pace(), change=change))


@pytest.mark.parametrize(
    "network",
    [b"", b"no network", bundles.linear_probability(7)],
    ids=["empty", "text", "a classifier"],
)
def test_a_network_that_is_none_refuses_to_load(network: bytes) -> None:
    with pytest.raises(BundleError, match="sac_execution:4"):
        ExecutionPlanner(bundle_of(network))


def test_an_agent_of_another_environment_refuses_to_load() -> None:
    registered = {**bundles.registered_agent(), "environment": "portfolio"}
    onnx = bundles.constant_pace()
    description = execution_description("a", 1, registered, {"AAPL": AAPL}, bundles.hours(), onnx)
    with pytest.raises(BundleError, match="wants observations"):
        ExecutionPlanner(unpack(pack(onnx, description)))


# -- what a process needs ----------------------------------------------------------------------------------------------

HEAVY = (
    "torch",
    "jax",
    "dagster",
    "pandas",
    "mlflow",
    "pyiceberg",
    "gymnasium",
    "exchange_calendars",
    "pyarrow",
)
PROCESS = """
import datetime as dt, json, sys
from pathlib import Path
from quant_assets.serving.bundle import read_bundle
from quant_assets.serving.execution_plan import ExecutionPlanner, ExecutionRequest
planner = ExecutionPlanner(read_bundle(Path(sys.argv[1])))
answer = planner.answer(ExecutionRequest(ticker="AAPL", shares=10), dt.datetime(2013, 3, 1, tzinfo=dt.UTC))
print(json.dumps([answer.session, sorted(name for name in json.loads(sys.argv[2]) if name in sys.modules)]))
"""


def test_an_endpoint_loads_nothing_heavy(tmp_path: Path) -> None:
    path = bundles.execution_bundle(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", PROCESS, str(path), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(ran.stdout) == ["2013-03-01", []]
