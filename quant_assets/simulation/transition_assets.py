"""Assets `simulation/*_transitions`: what agents' imagined buffers begin with, under the symbol's posterior.

Belongs here: the Dagster face. Does not belong here: the random agent (`behaviour.py`), markets (`markets.py`), the file format
(`transitions.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg

from quant_assets.partitions import CALENDAR, SYMBOLS, settings
from quant_assets.presentation import figure_markdown, markdown_table
from quant_resources.iceberg import Warehouse

if TYPE_CHECKING:
    from quant_assets.environments.episodes import Episodes
    from quant_assets.simulation.intraday import IntradayDays, IntradayModel

GROUP = "simulation"
OWNERS = ["team:research"]


class TransitionConfig(dg.Config):
    """How many episodes.

    Attributes:
        rounds: times that each simulated day is gone through.
        seed: of actions and orders; the project's when none is given.
    """

    rounds: int = 1
    seed: int | None = None


def _execution(days: "IntradayDays", model: "IntradayModel") -> "Episodes":
    from quant_assets.environments.execution import ExecutionEpisodes
    from quant_assets.environments.problems import EXECUTION
    from quant_assets.simulation.markets import execution_market

    return ExecutionEpisodes(execution_market(days, model), EXECUTION, days.days)


def _market_making(days: "IntradayDays", model: "IntradayModel") -> "Episodes":
    from quant_assets.environments.market_making import MarketMaking
    from quant_assets.environments.problems import MARKET_MAKING, MARKET_MAKING_MINUTES_PER_STEP
    from quant_assets.simulation.markets import market_making_market

    return MarketMaking(market_making_market(days, MARKET_MAKING_MINUTES_PER_STEP), MARKET_MAKING, days.days)


def _transitions_asset(
    name: str,
    description: str,
    environment: "Callable[[IntradayDays, IntradayModel], Episodes]",
) -> dg.AssetsDefinition:
    key = dg.AssetKey([GROUP, name])

    @dg.asset(
        key=key,
        group_name=GROUP,
        description=description,
        deps=[dg.AssetKey([GROUP, "intraday_paths"])],
        partitions_def=SYMBOLS,
        kinds={"numpy", "parquet"},
        owners=OWNERS,
        code_version="1",
        check_specs=[
            dg.AssetCheckSpec(
                "episodes_are_whole",
                asset=key,
                blocking=True,
                description="Every episode has all its steps, in order, ends with its last and no other, under one posterior "
                "draw, and none of the draws is kept for judging agents.",
            )
        ],
    )
    def transitions(
        context: dg.AssetExecutionContext,
        config: TransitionConfig,
        warehouse: dg.ResourceParam[Warehouse],
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        yield from _write(context, config, warehouse, name, environment)

    return transitions


execution_transitions = _transitions_asset(
    "execution_transitions",
    "Orders sold at random paces on the days of simulation/intraday_paths that imagination may use, each under its own posterior "
    "draw: observation, action, reward (basis points of the order), next observation, whether it ended. One row per decision "
    "(15 minutes), Parquet; loads into a replay buffer as it is.",
    _execution,
)
market_making_transitions = _transitions_asset(
    "market_making_transitions",
    "Quotes at random depths on the days of simulation/intraday_paths that imagination may use, mids from 100 dollars: observation, "
    "action, reward (dollars), next observation, whether it ended. One row per step of two minutes, Parquet; loads into a "
    "replay buffer as it is.",
    _market_making,
)


def _write(
    context: dg.AssetExecutionContext,
    config: TransitionConfig,
    warehouse: Warehouse,
    name: str,
    environment: "Callable[[IntradayDays, IntradayModel], Episodes]",
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    import datetime as dt

    from quant_assets.simulation import plots
    from quant_assets.simulation.behaviour import random_transitions
    from quant_assets.simulation.markets import MarketError, days_identity, part_of
    from quant_assets.simulation.transitions import (
        BufferFileError,
        TransitionInfo,
        read_paths,
        read_transitions,
        write_transitions,
    )

    symbol = context.partition_key
    seed = settings().seed if config.seed is None else config.seed
    if config.rounds < 1:
        raise dg.Failure(f"rounds = {config.rounds}: at least 1", allow_retries=False)
    source = warehouse.home / GROUP / "intraday_paths" / f"{symbol}.parquet"
    try:
        days, about = read_paths(source)
        imagined = part_of(days, "imagined")
    except (BufferFileError, MarketError) as error:
        raise dg.Failure(
            f"{symbol}: {error}. Materialize simulation/intraday_paths of it first (posterior_job).",
            allow_retries=False,
        ) from error
    episodes = environment(imagined, about.model)
    path = warehouse.home / GROUP / name / f"{symbol}.parquet"
    info = TransitionInfo(
        environment=episodes.name,
        observation_names=episodes.observation_names,
        action_names=episodes.action_names,
        posterior={
            **about.posterior,
            "days": days_identity(days, about),
            "parameters": asdict(episodes.parameters),  # type: ignore[attr-defined]
        },
        seed=seed,
    )
    written = write_transitions(
        path, random_transitions(episodes, imagined.draw_id, seed, config.rounds), info
    )
    stored = read_transitions(path)
    problems = _problems(stored, episodes.steps, set(imagined.draw_id.tolist()))
    yield dg.AssetCheckResult(
        check_name="episodes_are_whole",
        passed=not problems,
        description="; ".join(problems) or None,
        metadata={"rows": written, "episodes": int(stored.episode.max()) + 1},
    )
    if problems:
        path.unlink()
        raise dg.Failure(f"{symbol}: {'; '.join(problems)}. The file was removed.", allow_retries=False)
    rewards = stored.rewards[:, 0].reshape(-1, episodes.steps).sum(axis=1)
    last = dt.date.fromisoformat(str(about.posterior["session"]))
    yield dg.MaterializeResult(
        metadata={
            "dagster/partition_row_count": written,
            "observations": figure_markdown(
                plots.transitions_figure(stored),
                "What the agent will begin with: observations, actions, rewards",
            ),
            "reward of an episode": markdown_table(
                [{"mean": float(rewards.mean()), "sd": float(rewards.std()), "lowest": float(rewards.min())}]
            ),
            "file": dg.MetadataValue.path(str(path)),
            "bytes": path.stat().st_size,
            "after session": str(last),
            "available_at": CALENDAR.close(last).isoformat(),
            "seed": seed,
        }
    )


def _problems(stored: Any, steps: int, allowed: set[int]) -> list[str]:
    """What is wrong with a buffer, in words."""
    import numpy as np

    problems = []
    if len(stored.step) % steps or (stored.step.reshape(-1, steps) != np.arange(steps)).any():
        problems.append(f"an episode does not have its {steps} steps in order")
        return problems
    ended = stored.dones[:, 0].reshape(-1, steps)
    if ended[:, :-1].any() or not ended[:, -1].all():
        problems.append("an episode ends before its last step, or not with it")
    if np.ptp(stored.draw_id.reshape(-1, steps), axis=1).any():
        problems.append("an episode changes its posterior draw")
    if foreign := set(stored.draw_id.tolist()) - allowed:
        problems.append(f"draw {min(foreign)} is kept for judging agents")
    return problems
