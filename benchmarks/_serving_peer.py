"""The server that the inference app is measured against: FastAPI, pydantic and a torch policy. Run by `benchmarks/serving.py`.

Belongs here: the same orders answered with the same plan, written as one would with these libraries: typed models for request
and answer, a torch module in inference mode asked once per decision, numpy for what is an array, uvicorn with uvloop and
httptools, one process. Does not belong here: the client, the clock, and anything that the inference app does beyond the
answer (capture, self-test, a document of its own).

What is no matter of libraries is taken from the project: the exchange's hours with their timestamps, the expected market. The
module's name begins with an underscore because it is no benchmark of its own.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from quant_assets.serving.execution_plan import (
    LEAST_SPREAD,
    LEAST_VOLUME,
    OBSERVATION_BOUND,
    OBSERVATION_NAMES,
    TYPICAL_PARTICIPATION,
    ExpectedMarket,
)
from quant_assets.serving.hours import ExchangeHours, HoursError

WEIGHTS, DESCRIPTION = "policy.pt", "description.json"


# -- request and answer ------------------------------------------------------------------------------------------------


class Asked(BaseModel):
    """What every part of a request has in common."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class MarketState(Asked):
    """What is seen of the market at the start."""

    mid_dollars: float | None = Field(default=None, ge=1e-4, le=1e7)
    spread_dollars: float | None = Field(default=None, ge=0, le=1e7)
    daily_volatility: float | None = Field(default=None, ge=1e-6, le=10)
    volume_to_profile: float | None = Field(default=None, ge=0, le=1e6)
    momentum_sd: float | None = Field(default=None, ge=-100, le=100)


class ExecutionRequest(Asked):
    """An order to sell."""

    ticker: str
    shares: int = Field(ge=1, strict=True)
    horizon_minutes: int = Field(default=390, ge=1, le=390, strict=True)
    start: AwareDatetime | None = None
    market: MarketState | None = None


class Slice(BaseModel):
    """Shares to sell in one minute."""

    timestamp: str
    shares: int


class ExpectedCost(BaseModel):
    """Of each schedule, basis points."""

    schedule: float
    twap: float
    vwap: float


class ExecutionAnswer(BaseModel):
    """How to sell an order."""

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


# -- the policy --------------------------------------------------------------------------------------------------------


class Policy(torch.nn.Module):
    """The actor without its noise, from raw observations to actions within the box.

    Args:
        sizes: widths from input to output.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    box_half: torch.Tensor
    box_middle: torch.Tensor

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for width, following in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(width, following), torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*layers[:-1], torch.nn.Tanh())
        self.register_buffer("mean", torch.zeros(sizes[0]))
        self.register_buffer("scale", torch.ones(sizes[0]))
        self.register_buffer("box_half", torch.ones(sizes[-1]))
        self.register_buffer("box_middle", torch.zeros(sizes[-1]))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Actions, shape (n, action), for observations of shape (n, observation)."""
        return self.network((observation - self.mean) / self.scale) * self.box_half + self.box_middle


# -- the plan ----------------------------------------------------------------------------------------------------------


def bounded(value: float) -> float:
    """An observation within its bounds."""
    return min(max(value, -OBSERVATION_BOUND), OBSERVATION_BOUND)


def given(value: float | None, otherwise: float) -> float:
    """A value of the request, or what is expected."""
    return otherwise if value is None else value


def sold(done: np.ndarray) -> np.ndarray:
    """Whole shares of each minute, from shares sold by its end."""
    return np.diff(np.rint(done), prepend=0.0).astype(np.int64)


class Planner:
    """Answers orders.

    Args:
        folder: holds `WEIGHTS` and `DESCRIPTION`.
    """

    def __init__(self, folder: Path) -> None:
        said = json.loads((folder / DESCRIPTION).read_text())
        self.policy = Policy(said["sizes"])
        self.policy.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
        self.policy.eval()
        self.hours = ExchangeHours.from_description(said["hours"])
        self.markets = {ticker: ExpectedMarket.from_description(m) for ticker, m in said["markets"].items()}
        self.parameters: dict[str, Any] = said["parameters"]
        self.most_participation = said["limits"]["max_participation"]
        self.identity: dict[str, Any] = said["identity"]

    def answer(self, order: ExecutionRequest) -> dict[str, Any]:
        """Plan an order. What a thousand slices become is left to pydantic's validator, which is quicker than Python calls.

        Raises:
            HTTPException: 400, it cannot be planned as it is.
        """
        if order.ticker not in self.markets:
            raise HTTPException(400, f"ticker {order.ticker!r} is unknown")
        expected = self.markets[order.ticker]
        shares, horizon = order.shares, order.horizon_minutes
        try:
            stretches = self.hours.stretches(order.start or dt.datetime.now(dt.UTC), horizon)
        except HoursError as error:
            raise HTTPException(400, str(error)) from error
        volume = expected.volume_of(stretches)
        total = float(volume.sum())
        if shares > int(self.most_participation * total):
            raise HTTPException(400, f"{shares} shares are too many")
        state = order.market or MarketState()
        mid = given(state.mid_dollars, expected.price_dollars)
        spread = given(state.spread_dollars, expected.spread_dollars)
        volatility = given(state.daily_volatility, expected.daily_volatility)
        if spread > mid:
            raise HTTPException(400, "the spread is above the mid")
        least = LEAST_SPREAD * mid
        seen = (
            bounded(math.log(max(spread, least) / max(expected.spread_dollars, least))),
            bounded(math.log((given(state.volume_to_profile, 1.0) + LEAST_VOLUME) / (1 + LEAST_VOLUME))),
            bounded(math.log(volatility / expected.daily_volatility)),
            bounded(given(state.momentum_sd, 0.0)),
            bounded(math.log(shares / total / TYPICAL_PARTICIPATION)),
        )
        schedules = np.stack(
            [
                self.plan(shares, volume, seen),
                sold(shares * (np.arange(1, horizon + 1) / horizon)),
                sold(shares * (np.cumsum(volume) / np.cumsum(volume)[-1])),
            ]
        )
        if schedules.min() < 0 or (schedules.sum(axis=1) != shares).any():
            raise HTTPException(500, "the schedule is none")
        costs = self.cost_bps(schedules, volume, float(expected.volume_shares.sum()), mid, spread, volatility)
        timestamps = self.hours.timestamps(stretches)
        schedule, twap, vwap = (
            [{"timestamp": t, "shares": s} for t, s in zip(timestamps, row, strict=True)]
            for row in schedules.tolist()
        )
        return {
            "ticker": order.ticker,
            "side": "sell",
            "shares": shares,
            "horizon_minutes": horizon,
            "session": stretches[0].session.isoformat(),
            "schedule": schedule,
            "twap": twap,
            "vwap": vwap,
            "expected_cost_bps": {"schedule": costs[0], "twap": costs[1], "vwap": costs[2]},
            **self.identity,
        }

    @torch.inference_mode()
    def plan(self, shares: int, volume: np.ndarray, seen: tuple[float, ...]) -> np.ndarray:
        """What the agent sells in each minute, whole shares, shape (minutes,)."""
        horizon, every = len(volume), self.parameters["minutes_per_decision"]
        most = self.parameters["max_pace"] * (volume / np.cumsum(volume[::-1])[::-1])
        tensor = torch.empty(1, len(OBSERVATION_NAMES))
        observation = tensor.numpy()[0]  # the same memory
        observation[2:] = seen
        wanted, left = float(shares), np.empty(horizon)
        for first in range(0, horizon, every):
            end = min(first + every, horizon)
            observation[:2] = round(wanted) / shares, 1.0 - first / horizon
            pace = self.policy(tensor).item()
            observation[5] = 0.0  # momentum is of the first decision alone
            left[first:end] = wanted * np.cumprod(1.0 - np.minimum(pace * most[first:end], 1.0))
            wanted = float(left[end - 1])
        left[-1] = 0.0
        return sold(shares - np.rint(left))

    def cost_bps(
        self,
        schedules: np.ndarray,
        volume: np.ndarray,
        daily_volume: float,
        mid: float,
        spread: float,
        volatility: float,
    ) -> list[float]:
        """Expected implementation shortfall of schedules (n, minutes), basis points."""
        participation = schedules / volume
        if self.parameters["impact"] == "square_root":
            participation = np.sqrt(participation)
        sigma_dollars = volatility * mid
        concession = (
            0.5 * spread
            + self.parameters["temporary_impact"] * sigma_dollars * participation
            + self.parameters["permanent_impact"]
            * sigma_dollars
            / daily_volume
            * (np.cumsum(schedules, axis=1) - schedules)
        )
        costs = (schedules * concession).sum(axis=1) * 1e4 / (schedules.sum(axis=1) * mid)
        return costs.tolist()


# -- the server --------------------------------------------------------------------------------------------------------


def make_app(planner: Planner) -> FastAPI:
    """The app. Plans take milliseconds: in the event loop they are quicker than by way of FastAPI's threads."""
    app = FastAPI()

    @app.get("/ping")
    async def ping() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/invocations", response_model=ExecutionAnswer)
    async def invocations(order: ExecutionRequest) -> dict[str, Any]:
        return planner.answer(order)

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    uvicorn.run(
        make_app(Planner(arguments.folder)),
        host="127.0.0.1",
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
    )


if __name__ == "__main__":
    main()
