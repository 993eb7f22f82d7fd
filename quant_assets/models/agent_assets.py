"""Assets of the agents: train on the posterior's days or on the tables, choose, gate, register.

Belongs here: the Dagster face and the lineage that goes into the registry. Does not belong here: problems and profiles
(`agents.py`), the algorithm (`sac.py`), the promotion rule (`gate.py`), reports of how good an agent is (`backtests`).
"""

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from quant_assets.partitions import settings
from quant_assets.presentation import image_markdown, markdown_table, render, write_report
from quant_resources.compute import Compute
from quant_resources.iceberg import Warehouse
from quant_resources.registry import ModelRegistry, ModelVersion, TrainingRun, git_commit

if TYPE_CHECKING:
    from quant_assets.environments.episodes import Episodes
    from quant_assets.models.agents import Problem
    from quant_assets.models.gate import Verdict
    from quant_assets.models.sac import OnnxPolicy, SacParameters, TrainedAgent

GROUP = "models"
OWNERS = ["team:research"]
ONNX_TOLERANCE = 1e-5
# Fewer real sessions than this are no market to learn from; they are replayed by backtests alone.
FEWEST_REAL_SESSIONS = 20
MOST_REAL_SESSIONS = 250  # of each symbol, the newest ones
STAND_IN = "simulated stand-in"
STALE_SECONDS = 7 * 24 * 3600.0
# Of the sessions out of sample: they decide about promotion, and backtests judge on those after them.
GATE_FRACTION = 0.3
# Of the imagined buffer that transitions of random agents fill at the start.
INITIAL_FRACTION = 0.5
ALL_SYMBOLS = dg.AllPartitionMapping()


class AgentConfig(dg.Config):
    """Training of an agent; see `SacParameters` and `agents.PROFILES`.

    Attributes:
        profile: `demo` (minutes on two cores) or `full`.
        parameters: fields of `SacParameters` that differ from the profile's, such as {"steps": 100000}.
        seeds: how many agents; the best on the validation days is registered, all of them are kept. None: the profile's.
        seed: of the first agent; the project's when None.
        gate_confidence: of the interval that must lie above 0 for a challenger to become champion.
    """

    profile: str = "demo"
    parameters: dict[str, Any] = {}  # noqa: RUF012  # a pydantic field, copied per instance
    seeds: int | None = None
    seed: int | None = None
    gate_confidence: float = 0.95


class PortfolioAgentConfig(AgentConfig):
    """The same for the portfolio, with its windows.

    Attributes:
        symbols: assets; all stored when empty.
        extra_features: columns of features/technical, features/sentiment or features/peers.
        in_sample_fraction, in_sample_last, validation_fraction, embargo_sessions: as for the classifiers.
    """

    symbols: list[str] = []  # noqa: RUF012
    extra_features: list[str] = []  # noqa: RUF012
    in_sample_fraction: float = 0.4
    in_sample_last: str | None = None
    validation_fraction: float = 0.2
    embargo_sessions: int = 5


@dataclass
class _Prepared:
    """What a training starts from."""

    problem: "Problem"
    symbols: tuple[str, ...]
    initial: Any = None
    real_market: str = STAND_IN
    market: dict[str, Any] = field(default_factory=dict)
    windows: dict[str, str] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
    gate_block: int = 1
    # bundle of an earlier version -> the problem on the markets that it reads; None: those of `problem`
    markets_of: "Callable[[dict[str, Any]], Problem] | None" = None


def _check_specs(name: str) -> list[dg.AssetCheckSpec]:
    asset = dg.AssetKey([GROUP, name])
    return [
        dg.AssetCheckSpec(
            "onnx_agrees",
            asset=asset,
            blocking=True,
            description=f"torch and ONNX take the same action on observations of the validation days ({ONNX_TOLERANCE:g}).",
        ),
        dg.AssetCheckSpec(
            "gate",
            asset=asset,
            description="The challenger is better than the champion on days that neither has seen (lower end of the bootstrap "
            "interval of the paired difference above 0); otherwise it stays challenger.",
        ),
    ]


@dg.asset(
    key=[GROUP, "sac_execution"],
    group_name=GROUP,
    description="Soft actor-critic that sells an order within a session: every 15 minutes a pace relative to the expected volume. "
    "Learns from real sessions of minute bars where there are enough, else from a tenth of the simulated days as a stand-in, and "
    "from imagined days, each under its own posterior draw. Judged on days that it never saw; registered in MLflow, ONNX.",
    deps=[
        dg.AssetDep(["simulation", "intraday_paths"], partition_mapping=ALL_SYMBOLS),
        dg.AssetDep(["simulation", "execution_transitions"], partition_mapping=ALL_SYMBOLS),
        # market/minute_bars is read as well, but is in the graph only where the source has it; see `simulation/inputs.py`.
    ],
    kinds={"torch", "mlflow", "onnx"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    pool="training",
    check_specs=_check_specs("sac_execution"),
)
def sac_execution(
    context: dg.AssetExecutionContext,
    config: AgentConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
    compute: dg.ResourceParam[Compute],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Days of all symbols, split; train; register."""
    most = _most_initial("sac_execution", config)
    yield from _train(
        context, config, registry, compute, "sac_execution", _execution(context, warehouse, most)
    )


@dg.asset(
    key=[GROUP, "sac_market_maker"],
    group_name=GROUP,
    description="Soft actor-critic that quotes a bid and an ask every two minutes of a session around a Heston mid of 100 dollars, paid "
    "the spread less a penalty on inventory (dollars). Learns from a tenth of the simulated days and from imagined ones, each "
    "under its own posterior draw. Judged on days that it never saw; registered in MLflow, exported to ONNX.",
    deps=[
        dg.AssetDep(["simulation", "intraday_paths"], partition_mapping=ALL_SYMBOLS),
        dg.AssetDep(["simulation", "market_making_transitions"], partition_mapping=ALL_SYMBOLS),
    ],
    kinds={"torch", "mlflow", "onnx"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    pool="training",
    check_specs=_check_specs("sac_market_maker"),
)
def sac_market_maker(
    context: dg.AssetExecutionContext,
    config: AgentConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
    compute: dg.ResourceParam[Compute],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Days of all symbols, split; train; register."""
    most = _most_initial("sac_market_maker", config)
    yield from _train(
        context, config, registry, compute, "sac_market_maker", _market_making(context, warehouse, most)
    )


@dg.asset(
    key=[GROUP, "sac_portfolio"],
    group_name=GROUP,
    description="Soft actor-critic that rebalances a long-only portfolio with cash every session: decided at the close of T, traded "
    "at the open of T+1, earning open T+1 to open T+2, net of costs that grow with volatility. Trained on the in-sample "
    "window only, ten seeds; the best on the validation sessions is registered, all are judged by backtests/portfolio.",
    deps=[dg.AssetDep(["market", "bars"], partition_mapping=ALL_SYMBOLS)],
    kinds={"torch", "mlflow", "onnx"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    pool="training",
    check_specs=_check_specs("sac_portfolio"),
)
def sac_portfolio(
    context: dg.AssetExecutionContext,
    config: PortfolioAgentConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
    compute: dg.ResourceParam[Compute],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Bars from the table, split; train; register."""
    yield from _train(context, config, registry, compute, "sac_portfolio", _portfolio(config, warehouse))


# -- markets -----------------------------------------------------------------------------------------------------------


def _stored_days(context: dg.AssetExecutionContext, warehouse: Warehouse) -> dict[str, tuple[Any, Any]]:
    """Every symbol's simulated days with what their files say of themselves."""
    from quant_assets.simulation.inputs import day_files
    from quant_assets.simulation.markets import MarketError
    from quant_assets.simulation.transitions import BufferFileError, read_paths

    try:
        return {symbol: read_paths(path) for symbol, path in day_files(warehouse, context.log).items()}
    except (BufferFileError, MarketError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _initial(
    warehouse: Warehouse, name: str, stored: dict[str, tuple[Any, Any]], environment: "Episodes", most: int
) -> Any:
    """The transitions of all symbols, of this very environment and of these very days."""
    import json

    from quant_assets.models.agents import join_transitions
    from quant_assets.simulation.markets import days_identity
    from quant_assets.simulation.transitions import BufferFileError, read_transitions

    parts = []
    wanted = json.loads(json.dumps(asdict(environment.parameters)))  # type: ignore[attr-defined]
    for symbol, (days, about) in stored.items():
        path = warehouse.home / "simulation" / name / f"{symbol}.parquet"
        try:
            part = read_transitions(path)
        except BufferFileError as error:
            raise dg.Failure(
                f"{error}. Materialize simulation/{name} of {symbol} (posterior_job).", allow_retries=False
            ) from error
        of = part.info.posterior
        if (
            of.get("parameters") != wanted
            or part.info.observation_names != environment.observation_names
            or of.get("days") != days_identity(days, about)
        ):
            raise dg.Failure(
                f"{path} was made in another environment or on other days than those of now: materialize simulation/{name} of "
                f"{symbol} again (posterior_job)",
                allow_retries=False,
            )
        parts.append(part)
    return join_transitions(parts, environment.steps, most)


def _days_lineage(stored: dict[str, tuple[Any, Any]]) -> dict[str, str]:
    from quant_assets.simulation.markets import days_identity

    return {f"days.{symbol}": days_identity(days, about) for symbol, (days, about) in stored.items()}


def _last_session(stored: dict[str, tuple[Any, Any]]) -> str:
    return max(str(about.posterior["session"]) for _, about in stored.values())


def _parts(
    stored: dict[str, tuple[Any, Any]], market_of: Callable[[Any, Any], Any], join: Callable[[list[Any]], Any]
) -> Any:
    """Markets by part of the split, all symbols together; `unseen` is left to the backtests."""
    from quant_assets.simulation.markets import MarketError, part_of

    try:
        return {
            part: join([market_of(part_of(days, part), about.model) for days, about in stored.values()])
            for part in ("real", "imagined", "validation", "gate")
        }
    except MarketError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _execution(context: dg.AssetExecutionContext, warehouse: Warehouse, most: int) -> _Prepared:
    from quant_assets.environments.problems import EXECUTION
    from quant_assets.models.agents import ExecutionProblem
    from quant_assets.simulation.markets import execution_market, join_execution_markets

    stored = _stored_days(context, warehouse)
    markets = _parts(stored, execution_market, join_execution_markets)
    real_market = STAND_IN
    replay, snapshot = _replayed(context, warehouse, stored)
    lineage = _days_lineage(stored)
    if replay:
        markets["real"], real_market = join_execution_markets(replay), "minute bars"
        lineage["snapshot.market.minute_bars"] = str(snapshot)
    context.log.info("real transitions come from %d days of %s", markets["real"].paths, real_market)
    problem = ExecutionProblem(markets, EXECUTION)
    return _Prepared(
        problem,
        tuple(stored),
        initial=_initial(warehouse, "execution_transitions", stored, problem.episodes("gate", 1), most),
        real_market=real_market,
        windows={"in_sample_last": _last_session(stored)},
        lineage=lineage,
    )


def _replayed(
    context: dg.AssetExecutionContext, warehouse: Warehouse, stored: dict[str, tuple[Any, Any]]
) -> tuple[list[Any], int | None]:
    """Real sessions of minute bars up to each posterior's last, by symbol where there are enough; and the table's snapshot."""
    from quant_assets.simulation.inputs import read_real_markets

    real = read_real_markets(
        warehouse,
        {symbol: about.model for symbol, (_, about) in stored.items()},
        MOST_REAL_SESSIONS,
        context.log,
        until={
            symbol: dt.date.fromisoformat(str(about.posterior["session"]))
            for symbol, (_, about) in stored.items()
        },
    )
    replay = []
    for symbol, (sessions, market) in real.markets.items():
        if len(sessions) < FEWEST_REAL_SESSIONS:
            context.log.warning(
                "%s: %d real sessions are too few to learn from, %d are needed",
                symbol,
                len(sessions),
                FEWEST_REAL_SESSIONS,
            )
        else:
            replay.append(market)
    return replay, real.snapshot


def _market_making(context: dg.AssetExecutionContext, warehouse: Warehouse, most: int) -> _Prepared:
    from quant_assets.environments.problems import MARKET_MAKING, MARKET_MAKING_MINUTES_PER_STEP
    from quant_assets.models.agents import MarketMakingProblem
    from quant_assets.simulation.markets import join_market_making_markets, market_making_market

    stored = _stored_days(context, warehouse)
    problem = MarketMakingProblem(
        _parts(
            stored,
            lambda days, _: market_making_market(days, MARKET_MAKING_MINUTES_PER_STEP),
            join_market_making_markets,
        ),
        MARKET_MAKING,
    )
    return _Prepared(
        problem,
        tuple(stored),
        initial=_initial(warehouse, "market_making_transitions", stored, problem.episodes("gate", 1), most),
        market={"minutes_per_step": MARKET_MAKING_MINUTES_PER_STEP},
        windows={"in_sample_last": _last_session(stored)},
        lineage=_days_lineage(stored),
    )


def _portfolio(config: PortfolioAgentConfig, warehouse: Warehouse) -> _Prepared:
    from quant_assets.environments.portfolio import decision_rows
    from quant_assets.environments.problems import PORTFOLIO
    from quant_assets.models.agents import PortfolioProblem
    from quant_assets.models.portfolio_market import read_portfolio_market, split_market

    def gated(bundle: dict[str, Any]) -> "Problem":
        """The gate's sessions on the symbols and features of an earlier version."""
        of = read_portfolio_market(
            warehouse, bundle["symbols"], extra_features=bundle["market"]["features"]
        ).market
        return PortfolioProblem(
            {"gate": of.between(split.windows.out_of_sample_first, gate_last)}, parameters
        )

    try:
        data = read_portfolio_market(warehouse, config.symbols or None, extra_features=config.extra_features)
        split = split_market(
            data.market,
            config.in_sample_fraction,
            dt.date.fromisoformat(config.in_sample_last) if config.in_sample_last else None,
            config.validation_fraction,
            config.embargo_sessions,
        )
        sessions = [
            d.date() if isinstance(d, dt.datetime) else d
            for d in data.market.sessions.astype("datetime64[D]").astype(object)
        ]
        unseen = [day for day in sessions if day >= split.windows.out_of_sample_first]
        last = int(len(unseen) * GATE_FRACTION) - 1
        gate_last, unseen_first = unseen[last], unseen[last + 1 + config.embargo_sessions]
        gate = data.market.between(split.windows.out_of_sample_first, gate_last)
        # Few sessions of one's own make shorter episodes.
        stretch = min(PORTFOLIO.episode_steps or 1, len(decision_rows(split.train, PORTFOLIO)))
        parameters = replace(PORTFOLIO, episode_steps=stretch)
    except (ValueError, IndexError) as error:
        raise dg.Failure(
            f"too few sessions, or none that can be used: {error}", allow_retries=False
        ) from error
    markets = {"real": split.train, "validation": split.validation, "gate": gate}
    return _Prepared(
        PortfolioProblem(markets, parameters),
        data.market.symbols,
        real_market="daily bars",
        market={"features": list(config.extra_features)},
        windows={
            **{name: str(value) for name, value in asdict(split.windows).items()},
            "gate_last": str(gate_last),
            "unseen_first": str(unseen_first),
        },
        lineage={
            **{f"snapshot.{table}": str(snapshot) for table, snapshot in data.snapshots.items()},
            **{f"source.{table}": source for table, source in data.sources.items()},
        },
        gate_block=10,
        markets_of=gated,
    )


# -- training, judging, registering ------------------------------------------------------------------------------------


def _parameters(name: str, config: AgentConfig, seed: int) -> "SacParameters":
    from quant_assets.models.agents import PROFILES
    from quant_assets.models.sac import SacError, SacParameters

    if config.profile not in PROFILES[name]:
        raise dg.Failure(
            f"profile = {config.profile!r}: it is one of {', '.join(PROFILES[name])}", allow_retries=False
        )
    changes = dict(config.parameters)
    if unknown := sorted(set(changes) - set(SacParameters.__dataclass_fields__)):
        raise dg.Failure(
            f"parameters: {', '.join(unknown)} is no hyperparameter; there are "
            f"{', '.join(SacParameters.__dataclass_fields__)}",
            allow_retries=False,
        )
    if "hidden_units" in changes:
        changes["hidden_units"] = tuple(changes["hidden_units"])
    try:
        return replace(PROFILES[name][config.profile], **{**changes, "seed": seed})
    except (SacError, TypeError, ValueError) as error:
        raise dg.Failure(f"parameters: {error}", allow_retries=False) from error


def _most_initial(name: str, config: AgentConfig) -> int:
    return int(INITIAL_FRACTION * _parameters(name, config, 0).buffer_size)


def _seed_worker(task: tuple[Any, ...]) -> "tuple[int, TrainedAgent]":
    """One seed, perhaps in a process of its own; its progress goes into a file beside the checkpoint."""
    problem, parameters, initial, checkpoint, identity = task
    import json

    from quant_assets.models.agents import train_seed

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with checkpoint.with_suffix(".jsonl").open("w") as file:

        def tell(row: dict[str, float | None]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        return parameters.seed, train_seed(problem, parameters, initial, checkpoint, identity, tell)


class _Progress:
    """Rows that the seeds write into their files, told in the log and to MLflow while they train.

    Args:
        files: progress file by seed.
        tell: called with the seed and each new row.
    """

    def __init__(self, files: dict[int, Path], tell: Callable[[int, dict[str, float | None]], None]) -> None:
        import threading

        self._files, self._tell = files, tell
        self._read = dict.fromkeys(files, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        for file in self._files.values():
            file.unlink(missing_ok=True)  # of an earlier attempt
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        import json

        for seed, file in self._files.items():
            if file.exists():
                with file.open() as lines:
                    lines.seek(self._read[seed])
                    while (line := lines.readline()).endswith("\n"):
                        self._read[seed] = lines.tell()
                        self._tell(seed, json.loads(line))


def _train(
    context: dg.AssetExecutionContext,
    config: AgentConfig,
    registry: ModelRegistry,
    compute: Compute,
    name: str,
    prepared: _Prepared,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    import json

    from quant_assets.environments.episodes import EnvironmentRefusal
    from quant_assets.models.agents import SEEDS, progress_line
    from quant_assets.models.sac import SacError

    first = settings().seed if config.seed is None else config.seed
    count = SEEDS[name].get(config.profile, 1) if config.seeds is None else config.seeds
    if count < 1:
        raise dg.Failure(f"seeds = {count}: at least 1", allow_retries=False)
    problem = prepared.problem
    # Seeds of agents are small numbers after the project's, whatever that is.
    runs = [_parameters(name, config, (first + i) % 2**32) for i in range(count)]
    try:
        environment = problem.episodes("real", 1)
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    # Whatever could make another agent: a checkpoint of something else must not be taken for one of this.
    identity = json.dumps(
        [
            prepared.lineage,
            prepared.windows,
            prepared.symbols,
            prepared.real_market,
            prepared.market,
            asdict(environment.parameters),  # type: ignore[attr-defined]
            0 if prepared.initial is None else len(prepared.initial.step),
            git_commit(),
        ],
        sort_keys=True,
        default=str,
    )
    folder = settings().home / "checkpoints" / name
    tasks = [(problem, p, prepared.initial, folder / _checkpoint_name(p, identity), identity) for p in runs]
    tags = {"git_commit": git_commit(), "seed": str(first), **prepared.lineage}
    agents: dict[int, TrainedAgent] = {}
    with registry.training(name, tags) as run:
        logged: dict[int, int] = dict.fromkeys([p.seed for p in runs], 0)

        def tell(seed: int, row: dict[str, float | None]) -> None:
            logged[seed] += 1
            context.log.info("%s", progress_line(problem, replace(runs[0], seed=seed), row))
            run.log(_metrics(seed, row), _step(row))

        try:
            with _Progress({task[1].seed: task[3].with_suffix(".jsonl") for task in tasks}, tell):
                alone = count == 1 or compute.workers == 1
                for seed, agent in map(_seed_worker, tasks) if alone else compute.map(_seed_worker, tasks):
                    agents[seed] = agent
        except (SacError, EnvironmentRefusal) as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        agents = {p.seed: agents[p.seed] for p in runs}
        for seed, agent in agents.items():  # what an attempt told that was killed
            for row in agent.history[: len(agent.history) - logged[seed]]:
                run.log(_metrics(seed, row), _step(row))
        yield from _judge_and_register(
            context, config, registry, name, prepared, environment, runs, agents, tasks, tags, run
        )


def _metrics(seed: int, row: dict[str, float | None]) -> dict[str, float]:
    return {f"seed_{seed}.{key}": value for key, value in row.items() if value is not None}


def _step(row: dict[str, float | None]) -> int:
    return int(row["real_steps"] or 0)


def _judge_and_register(
    context: dg.AssetExecutionContext,
    config: AgentConfig,
    registry: ModelRegistry,
    name: str,
    prepared: _Prepared,
    environment: "Episodes",
    runs: "list[SacParameters]",
    agents: "dict[int, TrainedAgent]",
    tasks: list[tuple[Any, ...]],
    tags: dict[str, str],
    run: TrainingRun,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    import json

    import numpy as np

    from quant_assets.models import agent_plots
    from quant_assets.models.agents import best_of
    from quant_assets.models.sac import OnnxPolicy

    problem, count, first = prepared.problem, len(runs), runs[0].seed
    chosen = best_of(agents)
    policy = agents[chosen].policy
    scores = {seed: problem.scores(agent.policy.act, "gate") for seed, agent in agents.items()}
    context.log.info(
        "%s: seed %d of %d is best on the validation days (%.4g %s); on the gate's: %.4g",
        name, chosen, count, agents[chosen].score, problem.score_unit, scores[chosen].mean(),
    )  # fmt: skip

    description = {
        "kind": "agent",
        "name": name,
        "environment": environment.name,
        "parameters": asdict(environment.parameters),  # type: ignore[attr-defined]
        "market": prepared.market,
        "observation_names": environment.observation_names,
        "action_names": environment.action_names,
        "symbols": prepared.symbols,
        "profile": config.profile,
        "training": asdict(runs[0]),
        "seeds": [{"seed": s, "score": a.score, "file": f"seed_{s}.onnx"} for s, a in agents.items()],
        "chosen_seed": chosen,
        "real_market": prepared.real_market,
        "windows": prepared.windows,
        "lineage": tags,
    }
    exported = {seed: agent.policy.to_onnx() for seed, agent in agents.items()}
    onnx = OnnxPolicy(exported[chosen], description)
    seen = _observations(problem, policy.act)
    onnx_error = float(np.abs(onnx.act(seen) - policy.act(seen)).max())
    yield dg.AssetCheckResult(
        check_name="onnx_agrees",
        passed=onnx_error <= ONNX_TOLERANCE,
        metadata={"largest difference": onnx_error, "observations": len(seen)},
    )
    if onnx_error > ONNX_TOLERANCE:
        raise dg.Failure(f"{name}: torch and ONNX differ by {onnx_error}", allow_retries=False)

    verdict = _judge(registry.find(name), onnx, prepared, config, first)
    metrics = {
        "validation.score": float(agents[chosen].score or 0.0),
        "gate.score": float(scores[chosen].mean()),
        "gate.score_mean_of_seeds": float(np.mean([s.mean() for s in scores.values()])),
        "gate.score_sd_of_seeds": float(np.std([s.mean() for s in scores.values()])),
        "training.seconds": sum(agent.seconds for agent in agents.values()),
        "training.updates": float(sum(agent.history[-1]["updates"] or 0 for agent in agents.values())),
    }
    version = registry.register(
        name,
        exported[chosen],
        bundle=description,
        metrics=metrics,
        parameters=asdict(runs[0]),
        tags=tags,
        run=run,
        files={
            **{f"seed_{seed}.onnx": content for seed, content in exported.items()},
            "learning_curves.json": json.dumps({str(s): a.history for s, a in agents.items()}).encode(),
        },
    )
    promoted = registry.decide(version, verdict.promote, verdict.reason, settings().promotion)
    _clear([task[3] for task in tasks])
    context.log.info("%s version %d: %s", name, version.version, verdict.reason)
    yield dg.AssetCheckResult(
        check_name="gate",
        passed=verdict.promote,
        severity=dg.AssetCheckSeverity.WARN,
        description=verdict.reason,
        metadata={"version": version.version, "promoted": promoted},
    )
    histories = {seed: agent.history for seed, agent in agents.items()}
    images = {
        "Learning curves": render(agent_plots.learning_figure(histories, problem.score_unit)),
        "Losses, temperature, entropy, speed": render(agent_plots.training_figure(histories)),
        "Scores of the seeds on the gate's days": render(
            agent_plots.seeds_figure(scores, chosen, problem.score_unit)
        ),
    }
    seeds_table = [
        {
            "seed": seed,
            "chosen": "yes" if seed == chosen else "",
            f"validation, {problem.score_unit}": agents[seed].score,
            f"gate, {problem.score_unit}": float(scores[seed].mean()),
            "updates": agents[seed].history[-1]["updates"],
            "seconds": round(agents[seed].seconds, 1),
        }
        for seed in agents
    ]
    shown = {
        "seeds": seeds_table,
        "hyperparameters": [{"name": k, "value": str(v)} for k, v in asdict(runs[0]).items() if k != "seed"],
        "lineage": [{"what": k, "value": v} for k, v in description["lineage"].items()],  # type: ignore[attr-defined]
    }
    alias = "champion" if promoted else "challenger"
    report = write_report(
        settings().reports_dir / "models" / f"{name}-v{version.version}.html",
        f"{name} version {version.version} ({alias})",
        f"{verdict.reason}. Real market: {prepared.real_market}. Profile: {config.profile}.",
        shown,
        images,
    )
    yield dg.MaterializeResult(
        metadata={
            "version": version.version,
            "alias": alias,
            "verdict": verdict.reason,
            "real market": prepared.real_market,
            "profile": config.profile,
            "mlflow_run_id": version.run_id,
            "report": dg.MetadataValue.path(str(report)),
            **{title: markdown_table(rows) for title, rows in shown.items()},
            **{title: image_markdown(image, title) for title, image in images.items()},
        }
    )


def _checkpoint_name(parameters: "SacParameters", identity: str) -> Path:
    """A file per training: another one's checkpoint is left alone, and continues when that training comes back."""
    import hashlib

    described = f"{asdict(parameters)}{identity}"
    return Path(f"seed_{parameters.seed}-{hashlib.blake2b(described.encode(), digest_size=6).hexdigest()}.pt")


def _observations(problem: "Problem", act: Callable[[Any], Any]) -> Any:
    """What a policy sees in one set of validation episodes, shape (rows, observation)."""
    import numpy as np

    episodes = problem.episodes("validation", 1)
    rng, seen = np.random.default_rng(0), []
    for _ in range(10):
        observation = episodes.reset(rng)
        for _ in range(episodes.steps):
            seen.append(observation)
            observation = episodes.step(act(observation)).observation
    return np.concatenate(seen)


def _judge(
    champion: ModelVersion | None,
    challenger: "OnnxPolicy",
    prepared: _Prepared,
    config: AgentConfig,
    seed: int,
) -> "Verdict":
    """The challenger against the champion on the gate's days, under the costs of today, each with actions and observations as it was
    trained for: another configuration alone makes no champion.
    """
    import numpy as np

    from quant_assets.models import gate
    from quant_assets.models.sac import OnnxPolicy

    if champion is None:
        return gate.first_champion()
    problem = prepared.problem
    try:
        theirs = prepared.markets_of(champion.bundle) if prepared.markets_of else problem
        theirs = theirs.as_trained(champion.bundle["parameters"])
        other = OnnxPolicy(champion.onnx, champion.bundle)
        other.require(theirs.episodes("gate", 1))
    except (ValueError, KeyError, TypeError) as error:
        return gate.incomparable(f"{type(error).__name__}: {error}")
    mine, group = problem.scores(challenger.act, "gate"), problem.groups("gate")
    others, other_group = theirs.scores(other.act, "gate"), theirs.groups("gate")
    if prepared.gate_block > 1:
        # Sessions that both can decide upon, and that the champion has not seen either.
        shared = np.intersect1d(group, other_group)
        shared = shared[shared > np.datetime64(champion.bundle["windows"]["in_sample_last"])]
        mine, others = mine[np.isin(group, shared)], others[np.isin(other_group, shared)]
        group = shared
    return gate.judge_scores(
        mine, others, problem.score_unit, group, config.gate_confidence, block=prepared.gate_block, seed=seed
    )


def _clear(checkpoints: list[Path]) -> None:
    """Remove the files of a training that is stored, and of those that nobody has come back to for a week."""
    import time

    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
        checkpoint.with_suffix(".jsonl").unlink(missing_ok=True)
    for file in checkpoints[0].parent.iterdir():
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            file.unlink(missing_ok=True)
