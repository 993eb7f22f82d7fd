"""Assets of the layer `backtests` that judge agents: execution, market making, portfolio.

Belongs here: the Dagster face: champions and their days in, tables, figures and pages out. Does not belong here: running and comparing
(`agents.py`), drawing (`agent_plots.py`), training and the choice among seeds (`quant_assets/models`).

Nothing is chosen here: the agent that serves was chosen on validation days, every seed is shown beside it, and no session that let
it through the gate is reported.
"""

import datetime as dt
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from quant_assets.backtests import tables
from quant_assets.market.tables import MINUTE_BARS
from quant_assets.partitions import CALENDAR, settings
from quant_assets.presentation import image_markdown, markdown_table, render
from quant_resources.iceberg import TableSpec, Warehouse
from quant_resources.io_manager import table_metadata
from quant_resources.registry import ModelRegistry, ModelVersion, RegistryError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from quant_assets.backtests.agents import Verdict
    from quant_assets.environments.episodes import Episodes
    from quant_assets.environments.execution import ExecutionMarket
    from quant_assets.models.sac import OnnxPolicy

GROUP = "backtests"
OWNERS = ["team:research"]
ALL_SYMBOLS = dg.AllPartitionMapping()
PATHS = dg.AssetDep(["simulation", "intraday_paths"], partition_mapping=ALL_SYMBOLS)
WANTED_PATHS = 1_000  # fewer unseen paths are said so on the page
UNSEEN, REAL, REAL_SEEN, OUT_OF_SAMPLE = "unseen", "real", "real_seen", "out_of_sample"
AGENT = "sac"  # strategy of the agents' rows
SHARE_TOLERANCE = 1e-6  # of an order, what rounding may leave unaccounted for
CUTS = (0.35, 0.7, 1.0)  # where the window is cut to prove that no weight knows what comes after
# Of the columns of the tables, on pages.
HEADERS = {
    "implementation_shortfall_bps": "shortfall",
    "cost_without_market_move_bps": "without the move",
    "slippage_bps": "slippage",
    "spread_bps": "spread",
    "temporary_impact_bps": "temporary",
    "permanent_impact_bps": "permanent",
    "leftover_bps": "leftover",
    "objective_dollars": "objective",
    "objective_without_market_move_dollars": "without the move",
    "pnl_dollars": "PnL",
    "inventory_sd_shares": "sd of inventory",
    "final_inventory_sd_shares": "sd at the end",
    "mean_spread_dollars": "quoted spread",
    "annual_log_growth_pct": "log growth, % a year",
    "sharpe_ratio": "Sharpe ratio",
    "annual_volatility_pct": "volatility, % a year",
    "max_drawdown_pct": "max drawdown, %",
    "mean_turnover_pct": "turnover a session, %",
    "total_cost_pct": "costs in all, %",
    "seed_sd": "sd over seeds",
}
BASELINE_CHECK = "agent_beats_or_matches_baseline"
FITS_CHECK = "agent_fits_environment"


class ExecutionBacktestConfig(dg.Config):
    """Which days are sold on, and what the schedules assume.

    Attributes:
        max_paths: simulated days in all, shared evenly among the symbols; 0 for all unseen ones.
        real_sessions: newest real sessions of each symbol, where minute bars are stored; 0 for none.
        urgency: kappa times horizon of Almgren and Chriss's typical order, see `agents.almgren_chriss_risk_aversion`.
        match_tolerance_bps: how much dearer than the best schedule still counts as a match in the warning check.
        seed: of the order sizes; the project's when none is given.
    """

    max_paths: int = 3_000
    real_sessions: int = 250
    urgency: float = 1.0
    match_tolerance_bps: float = 0.1
    seed: int | None = None


class MarketMakingBacktestConfig(dg.Config):
    """Which days are quoted on, and what the rules assume.

    Attributes:
        max_paths: simulated days in all, shared evenly among the symbols; 0 for all unseen ones.
        risk_aversion: gamma of Avellaneda and Stoikov, per dollar; None: the one that goes with the agent's penalty.
        match_tolerance_pct: of the best rule's objective; what still counts as a match in the warning check.
        seed: of the market orders; the project's when none is given.
    """

    max_paths: int = 3_000
    risk_aversion: float | None = None
    match_tolerance_pct: float = 1.0
    seed: int | None = None


class PortfolioBacktestConfig(dg.Config):
    """Which sessions are traded.

    Attributes:
        last_session: last session that is read, such as 2012-04-03; the newest stored one when none is given.
        match_tolerance_pct: log growth a year; what still counts as a match in the warning check.
        seed: of the bootstrap; the project's when none is given.
    """

    last_session: str | None = None
    match_tolerance_pct: float = 0.0
    seed: int | None = None


def _check_specs(name: str, extra: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    key = dg.AssetKey([GROUP, name])
    blocking = {
        FITS_CHECK: "Every seed's policy takes the observations of the environment that it is judged in and gives its actions; the "
        "chosen seed's is the one that serves, bit for bit.",
        **extra,
    }
    return [
        *(
            dg.AssetCheckSpec(check, asset=key, blocking=True, description=text)
            for check, text in blocking.items()
        ),
        dg.AssetCheckSpec(
            BASELINE_CHECK,
            asset=key,
            description="The unfavourable end of the 95 % interval of the chosen agent less the best baseline, pair by pair, is no worse "
            "than the tolerance. A warning is a result, not a fault: it says that the agent is not shown to hold its own.",
        ),
    ]


# -- execution ---------------------------------------------------------------------------------------------------------


@dg.asset(
    key=[GROUP, "execution"],
    group_name=GROUP,
    description="The execution agent against TWAP, VWAP and Almgren-Chriss: implementation shortfall in basis points of the arrival "
    "value, the same orders on simulated days that no agent saw (300 per symbol by default), every training seed, paired 95 % "
    "intervals; also on real sessions where minute bars are stored, each known up to the session before. Writes "
    "backtests.execution and the page reports/backtests/execution.html.",
    metadata=table_metadata(tables.EXECUTION),
    # market/minute_bars is read as well, but is in the graph only where the source has it; see `simulation/inputs.py`.
    deps=[dg.AssetKey(["models", "sac_execution"]), PATHS],
    kinds={"onnx", "iceberg"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    check_specs=_check_specs(
        "execution",
        {
            "schedule_sums_to_order": "Every strategy sells each order to the last share, leftover included, and the five parts of its "
            "cost add up to the implementation shortfall."
        },
    ),
)
def execution(
    context: dg.AssetExecutionContext,
    config: ExecutionBacktestConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Unseen simulated days, then real sessions; the same orders for all."""
    import numpy as np

    from quant_assets.backtests import agent_plots, agents
    from quant_assets.environments.execution import ExecutionEpisodes, ExecutionParameters
    from quant_assets.simulation.markets import execution_market, join_execution_markets

    agent = _agent(registry, "sac_execution")
    parameters = ExecutionParameters(**agent.bundle["parameters"])
    days = _UnseenDays(context, warehouse, config.max_paths)
    market = days.market(lambda part, model: execution_market(part, model), join_execution_markets)
    yield from _blocking(agent.fits(ExecutionEpisodes(market, parameters)))
    seed = settings().seed if config.seed is None else config.seed
    results = agents.execution_results(market, parameters, agent.acts, seed, config.urgency)
    context.log.info(
        "%d unseen paths of %s, %d seeds", market.paths, ", ".join(days.symbols), len(agent.acts)
    )

    evaluated = [
        _Evaluated(UNSEEN, name, part, days.group[keep], days.last(name))
        for name, part, keep in agents.by_symbol(results, days.symbol)
    ]
    real_markets, minute_bars = _real_markets(context, config.real_sessions, warehouse, days, agent)
    for window, (sessions, symbol, real) in real_markets.items():
        found = agents.execution_results(real, parameters, agent.acts, seed, config.urgency, frontier=False)
        evaluated += [
            # Symbols of one session move together, so a session is one group.
            _Evaluated(window, name, part, sessions[keep].astype(np.int64), sessions[keep].max().item())
            for name, part, keep in agents.by_symbol(found, symbol)
        ]
    yield from _blocking(_sums_to_order([one.results for one in evaluated]))

    levels, differences = [], []
    for one in evaluated:
        levels += one.stamped(agents.execution_rows(one.results, agent.chosen, one.group))
        differences += one.stamped(agents.execution_differences(one.results, agent.chosen, one.group))
    snapshots = _store(context, warehouse, agent, "execution", {tables.EXECUTION: levels}, differences)
    if real_markets:
        snapshots[f"snapshot {MINUTE_BARS.name}"] = str(minute_bars)
    verdict = agents.verdict(
        _of(levels, UNSEEN),
        _of(differences, UNSEEN),
        agents.CAUSED,
        True,
        config.match_tolerance_bps,
        "bps without the market's move",
    )
    yield _verdict_check(context, verdict)
    shortfall = ("implementation_shortfall_bps", "cost_without_market_move_bps")
    page = {
        "Unseen days, bps": _level_rows(_of(levels, UNSEEN), shortfall, ("seed_sd",)),
        "Agent less baseline on the same orders, unseen days, bps": _difference_rows(
            _of(differences, UNSEEN)
        ),
        "Parts of the shortfall, unseen days, mean, bps": _level_rows(_of(levels, UNSEEN), (), agents.PARTS),
        "Unseen days by symbol, bps": _level_rows(
            [row for row in levels if row["window"] == UNSEEN and row["symbol"] != "all" and _main(row)],
            shortfall,
            (),
        ),
        "Real sessions after all that training rests on, bps": _level_rows(_of(levels, REAL), shortfall, ()),
        "Agent less baseline, those sessions, bps": _difference_rows(_of(differences, REAL)),
        "Real sessions that the simulation was calibrated on, bps": _level_rows(
            _of(levels, REAL_SEEN), shortfall, ()
        ),
    }
    figures = {
        "Inventory: agent, TWAP, VWAP, Almgren-Chriss": agent_plots.inventory_figure(results),
        "Cost against risk; frontiers of Almgren-Chriss on the same orders": agent_plots.frontier_figure(
            results
        ),
        "Implementation shortfall of each order": agent_plots.shortfall_histogram(results, agent.chosen),
        "Slippage, spread and impact of each strategy": agent_plots.cost_parts_figure(results),
        "Learning curves": agent_plots.learning_curve_figure(agent.curves),
    }
    notes = [
        _sample_note(market.paths, days, agent),
        *_days_notes(context, days, agent),
        "Costs are given with and without the market's own move: the mid is a martingale up to a drift of some basis points a day, so "
        "both have nearly the same mean difference, and without it the interval is far narrower; the verdict reads that one. "
        "Almgren-Chriss: linear impact that costs as much as the square root at each order's participation, volatility known before "
        + (
            f"the day, the agent's own risk aversion of {parameters.risk_aversion:g} per dollar."
            if parameters.risk_aversion
            else f"the day, kappa times horizon {config.urgency:g} for an order of 5 % of the volume."
        ),
    ]
    yield _finished(
        context,
        agent,
        "execution",
        verdict,
        notes,
        page,
        figures,
        snapshots,
        _facts(UNSEEN, market.paths, levels, differences),
    )


def _sums_to_order(results: "Sequence[Any]") -> dg.AssetCheckResult:
    import numpy as np

    from quant_assets.backtests.agents import PARTS, SHORTFALL

    worst, apart = 0.0, 0.0
    for one in results:
        for outcome in (*one.agents.values(), *one.baselines.values()):
            worst = max(worst, float((outcome.missing_shares / one.order_shares).max()))
            parts = sum(getattr(outcome.costs, name) for name in PARTS)
            apart = max(apart, float(np.abs(parts - outcome.measure(SHORTFALL)).max()))
    good = worst <= SHARE_TOLERANCE and apart <= SHARE_TOLERANCE
    return dg.AssetCheckResult(
        check_name="schedule_sums_to_order",
        passed=good,
        description=None
        if good
        else f"{worst:g} of an order is missing, or the parts of a cost are {apart:g} bps apart",
        metadata={"largest part of an order missing": worst, "parts less shortfall, bps": apart},
    )


def _real_markets(
    context: dg.AssetExecutionContext,
    newest: int,
    warehouse: Warehouse,
    days: "_UnseenDays",
    agent: "_Agent",
) -> "tuple[dict[str, tuple[np.ndarray, np.ndarray, ExecutionMarket]], int | None]":
    """Real sessions by window: session and symbol of each path, and their market; nothing where no minute bars are stored. And the
    snapshot of the table.

    A session up to the posterior's last one is `real_seen`: the simulated days were shaped after it, and an agent may have been
    trained on it.
    """
    import numpy as np

    from quant_assets.backtests.agents import take_paths
    from quant_assets.simulation.inputs import read_real_markets
    from quant_assets.simulation.markets import join_execution_markets

    found: dict[str, list[Any]] = {REAL: [], REAL_SEEN: []}
    real = read_real_markets(warehouse, days.models, newest, context.log)
    for symbol, (sessions, market) in real.markets.items():
        seen_until = max(days.last(symbol), agent.seen_until)
        after = sessions > np.datetime64(seen_until)
        for window, rows in ((REAL, np.flatnonzero(after)), (REAL_SEEN, np.flatnonzero(~after))):
            if len(rows):
                found[window].append((sessions[rows], np.full(len(rows), symbol), take_paths(market, rows)))
    joined = {
        window: (
            np.concatenate([part[0] for part in parts]),
            np.concatenate([part[1] for part in parts]),
            join_execution_markets([part[2] for part in parts]),
        )
        for window, parts in found.items()
        if parts
    }
    return joined, real.snapshot


# -- market making -----------------------------------------------------------------------------------------------------


@dg.asset(
    key=[GROUP, "market_making"],
    group_name=GROUP,
    description="The market maker under Heston mids against Avellaneda-Stoikov, a fixed spread and Cartea-Jaimungal: PnL and objective "
    "in dollars a session (mids start at 100), inventory beside the closed form's, on simulated days that no agent saw, "
    "every training seed, the same market orders for all, paired 95 % intervals. Writes backtests.market_making and the page "
    "reports/backtests/market_making.html.",
    metadata=table_metadata(tables.MARKET_MAKING),
    deps=[dg.AssetKey(["models", "sac_market_maker"]), PATHS],
    kinds={"onnx", "iceberg"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    check_specs=_check_specs(
        "market_making",
        {
            "inventory_within_limit": "No strategy ever holds more than the limit, long or short, and every instant is counted."
        },
    ),
)
def market_making(
    context: dg.AssetExecutionContext,
    config: MarketMakingBacktestConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Unseen simulated days; the same market orders for all."""
    import numpy as np

    from quant_assets.backtests import agent_plots, agents
    from quant_assets.environments.market_making import MarketMaking, MarketMakingParameters
    from quant_assets.simulation.markets import join_market_making_markets, market_making_market

    agent = _agent(registry, "sac_market_maker")
    parameters = MarketMakingParameters(**agent.bundle["parameters"])
    minutes = int(agent.bundle["market"]["minutes_per_step"])
    days = _UnseenDays(context, warehouse, config.max_paths)
    market = days.market(lambda part, _: market_making_market(part, minutes), join_market_making_markets)
    paths = market.mid.shape[0]
    yield from _blocking(agent.fits(MarketMaking(market, parameters)))
    seed = settings().seed if config.seed is None else config.seed
    try:
        results = agents.market_making_results(market, parameters, agent.acts, seed, config.risk_aversion)
    except agents.AgentEvaluationError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info("%d unseen paths of %s, %d seeds", paths, ", ".join(days.symbols), len(agent.acts))
    outcomes = [*results.agents.values(), *results.baselines.values()]
    most = max(float(np.abs(outcome.final_inventory).max()) for outcome in outcomes)
    counted = min(float(outcome.time_at.sum(axis=1).min()) for outcome in outcomes)
    good = most <= parameters.inventory_limit and counted > 1 - 1e-4
    found = dg.AssetCheckResult(
        check_name="inventory_within_limit",
        passed=good,
        description=None
        if good
        else f"{most:g} shares at the end, {100 * counted:g} % of the instants within the limit",
        metadata={"limit, shares": parameters.inventory_limit, "most at the end, shares": most},
    )
    yield from _blocking(found)

    levels, differences = [], []
    for name, part, keep in agents.by_symbol(results, days.symbol):
        one = _Evaluated(UNSEEN, name, part, days.group[keep], days.last(name))
        levels += one.stamped(agents.market_making_rows(part, agent.chosen, one.group))
        differences += one.stamped(agents.market_making_differences(part, agent.chosen, one.group))
    snapshots = _store(
        context, warehouse, agent, "market_making", {tables.MARKET_MAKING: levels}, differences
    )
    best = max(row[f"{agents.EARNED}_mean"] for row in _of(levels, UNSEEN) if row["seeds"] == 0)
    verdict = agents.verdict(
        _of(levels, UNSEEN),
        _of(differences, UNSEEN),
        agents.EARNED,
        False,
        config.match_tolerance_pct / 100 * abs(best),
        "dollars a session without the market's move",
    )
    yield _verdict_check(context, verdict)
    measures = ("objective_dollars", "objective_without_market_move_dollars", "pnl_dollars")
    columns = ("inventory_sd_shares", "final_inventory_sd_shares", "mean_spread_dollars")
    page = {
        "Unseen days, dollars a session": _level_rows(_of(levels, UNSEEN), measures[:2], ("seed_sd",)),
        "Agent less rule on the same market orders, dollars a session": _difference_rows(
            _of(differences, UNSEEN)
        ),
        "PnL in dollars, inventory in shares, quoted spread in dollars": _level_rows(
            _of(levels, UNSEEN), measures[2:], columns
        ),
        "By symbol, dollars a session": _level_rows(
            [row for row in levels if row["symbol"] != "all" and _main(row)], measures[:2], ()
        ),
    }
    figures = {
        "Inventory beside the closed forms": agent_plots.inventory_distribution_figure(results, agent.chosen),
        "PnL of each session": agent_plots.pnl_histogram(results, agent.chosen),
        "Learning curves": agent_plots.learning_curve_figure(agent.curves),
    }
    notes = [
        _sample_note(paths, days, agent),
        *_days_notes(context, days, agent),
        f"Avellaneda-Stoikov with a risk aversion of {results.risk_aversion:.4g} per dollar at the variance of each instant; fixed spread "
        "2 / k; Cartea-Jaimungal from its table"
        + (
            ", exact only for a penalty that does not scale with the variance. "
            if parameters.penalty_scales_with_variance
            else ". "
        )
        + "Objective: PnL less the penalties on inventory. Without the market's move: less what the mid's moves did to the inventory, "
        "which is zero in the mean, so the interval is narrower; the verdict reads that one.",
    ]
    yield _finished(
        context,
        agent,
        "market_making",
        verdict,
        notes,
        page,
        figures,
        snapshots,
        _facts(UNSEEN, paths, levels, differences),
    )


# -- portfolio ---------------------------------------------------------------------------------------------------------


@dg.asset(
    key=[GROUP, "portfolio"],
    group_name=GROUP,
    description="The portfolio agent against equal weight, buy and hold and minimum variance (Ledoit-Wolf), on the sessions that "
    "neither training nor the choice among seeds nor the gate has seen: decided at the close of T, traded at the open of T+1, paid at the open of T+2, net of costs; every training seed with the range over them, "
    "intervals from a moving-block bootstrap over sessions. Growth in per cent a year. Writes backtests.portfolio, "
    "backtests.portfolio_equity and the page reports/backtests/portfolio.html.",
    metadata=table_metadata(tables.PORTFOLIO),
    deps=[
        dg.AssetKey(["models", "sac_portfolio"]),
        dg.AssetDep(["market", "bars"], partition_mapping=ALL_SYMBOLS),
    ],
    kinds={"onnx", "iceberg"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    check_specs=_check_specs(
        "portfolio",
        {
            "out_of_sample_only": "Every decision lies after the last session that training, the choice among seeds or the gate saw.",
            "no_look_ahead": "Cut the tables at three sessions, build the market again and decide again: the chosen agent's and minimum "
            "variance's weights up to each cut are the same bit for bit.",
        },
    ),
)
def portfolio(
    context: dg.AssetExecutionContext,
    config: PortfolioBacktestConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """All sessions after those of training, choice and gate, once by each seed and each rule."""
    from quant_assets.backtests import agent_plots, agents
    from quant_assets.environments.episodes import EnvironmentRefusal
    from quant_assets.environments.portfolio import PortfolioEpisodes, PortfolioParameters
    from quant_assets.models.portfolio_market import BAR_FEATURES, read_portfolio_market

    agent = _agent(registry, "sac_portfolio")
    parameters = PortfolioParameters(**{**agent.bundle["parameters"], "episode_steps": None})
    extra = [name for name in agent.bundle["market"]["features"] if name not in BAR_FEATURES]
    unseen_first = agent.bundle["windows"].get("unseen_first")
    first = dt.date.fromisoformat(unseen_first) if unseen_first else CALENDAR.shift(agent.seen_until, 1)
    newest = dt.date.fromisoformat(config.last_session) if config.last_session else None

    def market_until(last: "dt.date | None") -> tuple[Any, Any]:
        data = read_portfolio_market(warehouse, agent.bundle["symbols"], last=last, extra_features=extra)
        return data, data.market.between(first, data.market.sessions[-1])

    try:
        data, market = market_until(newest)
        environment = PortfolioEpisodes(1, market, parameters)
    except (ValueError, EnvironmentRefusal) as error:
        raise dg.Failure(
            f"portfolio: no unseen session from {first} on can be traded: {error}", allow_retries=False
        ) from error
    yield from _blocking(agent.fits(environment))
    results = agents.portfolio_results(market, parameters, agent.acts)
    everyone = [*results.agents.values(), *results.baselines.values()]

    earliest = min(rollout.sessions[0] for rollout in everyone).astype("datetime64[D]").item()
    good = earliest > agent.judged_until
    found = dg.AssetCheckResult(
        check_name="out_of_sample_only",
        passed=good,
        description=None
        if good
        else f"the decision of {earliest} is not after {agent.judged_until}, the last session that training, the choice among seeds "
        "or the gate saw",
        metadata={"earliest decision": str(earliest), "seen until": str(agent.judged_until)},
    )
    yield from _blocking(found)
    problems: list[dict[str, object]] = []
    cuts = _cut_sessions(market, results.agents[agent.chosen].sessions)
    for cut in cuts:
        part = agents.portfolio_results(
            market_until(cut)[1], parameters, {agent.chosen: agent.acts[agent.chosen]}
        )
        for name, whole, again in (
            ("agent", results.agents[agent.chosen], part.agents[agent.chosen]),
            ("minimum variance", results.baselines["minimum_variance"], part.baselines["minimum_variance"]),
        ):
            problems += [
                {"cut": str(cut), "strategy": name, **row} for row in agents.truncation_problems(whole, again)
            ]
    found = dg.AssetCheckResult(
        check_name="no_look_ahead",
        passed=not problems,
        description=f"the past depends on the future: {len(problems)} decisions differ" if problems else None,
        metadata={"cuts": ", ".join(map(str, cuts)), "problems": markdown_table(problems)},
    )
    yield from _blocking(found)

    seed = settings().seed if config.seed is None else config.seed
    levels, differences = agents.portfolio_rows(results, agent.chosen, seed)
    last = market.sessions[-1].astype("datetime64[D]").item()
    levels, differences = (_stamped(rows, OUT_OF_SAMPLE, "all", last) for rows in (levels, differences))
    for row in levels:
        row["first_session"] = earliest
    equity = [
        {**row, "available_at": CALENDAR.close(row["session"])} for row in agents.equity_rows(results, market)
    ]
    snapshots = _store(
        context,
        warehouse,
        agent,
        "portfolio",
        {tables.PORTFOLIO: levels, tables.PORTFOLIO_EQUITY: equity},
        differences,
    )
    growth = "annual_log_growth_pct"
    verdict = agents.verdict(
        levels, differences, growth, False, config.match_tolerance_pct, "% of log growth a year", level=growth
    )
    yield _verdict_check(context, verdict)
    columns = (
        "annual_volatility_pct",
        "max_drawdown_pct",
        "mean_turnover_pct",
        "total_cost_pct",
        "seed_sd",
    )
    page: dict[str, list[dict[str, object]]] = {
        "Unseen sessions, net of costs": [
            {
                "strategy": agent_plots.who(row),
                **{f"{HEADERS[name]} [95 %]": _with_interval(row, name) for name in (growth, "sharpe_ratio")},
                **{HEADERS[name]: _number(row[name]) for name in columns},
            }
            for row in levels
            if _shown(row)
        ],
        "Agent less baseline on the same sessions": _difference_rows(differences),
    }
    chosen = results.agents[agent.chosen]
    figures = {
        "Wealth net of costs; band: range over seeds": agent_plots.portfolio_figure(results, agent.chosen),
        "Sharpe ratios": agent_plots.sharpe_figure(levels),
        f"Weights of the chosen agent (seed {agent.chosen})": agent_plots.weights_figure(
            chosen, market.symbols
        ),
        "Learning curves": agent_plots.learning_curve_figure(agent.curves),
    }
    sources = ", ".join(f"{table}: {source}" for table, source in data.sources.items()) or "not recorded"
    notes = [
        f"{len(chosen.sessions)} decisions from {earliest} on, prices up to {last}; {len(agent.acts)} training seeds. Costs: "
        f"{parameters.cost_bps:g} bps and {parameters.cost_volatility_factor:g} of the volatility per unit of turnover. Sources: "
        f"{sources}.",
        "The mean over seeds is of each seed's figure. Every strategy starts in cash and pays the same costs.",
        f"Neither training nor the choice among seeds nor the gate has seen a session of these; the gate's last one is "
        f"{agent.judged_until}."
        if unseen_first
        else f"This champion knows no sessions of the gate's own: all after {agent.seen_until} are reported, those that decided "
        "on its promotion as well, so it looks better than it is. Train it again (train_agents_job).",
    ]
    facts = _facts(f"{earliest} to {last}", len(chosen.sessions), levels, differences)
    yield _finished(context, agent, "portfolio", verdict, notes, page, figures, snapshots, facts)


def _cut_sessions(market: Any, decisions: "np.ndarray") -> list[dt.date]:
    """Where the market is cut: after every asset is listed, so that the cut tables hold all symbols, and decisions are left."""
    import numpy as np

    # An asset that is never tradable may have its first bar anywhere: then only the last cut is sure to hold it.
    listed = max(int(np.argmax(able)) if able.any() else len(market) for able in market.tradable.T)
    start = max(listed, int(np.searchsorted(market.sessions, decisions[0])) + 2)
    rows = {start + int(share * (len(market) - 1 - start)) for share in CUTS}
    # The last row is the whole market; the one before it is the strictest cut there is.
    rows = {min(row, len(market) - 2) for row in rows if row >= start} or {len(market) - 2}
    return [market.sessions[row].astype("datetime64[D]").item() for row in sorted(rows)]


# -- what the three share ----------------------------------------------------------------------------------------------


def _blocking(found: dg.AssetCheckResult) -> Iterator[dg.AssetCheckResult]:
    """The result of a blocking check; the end of the run where it failed."""
    yield found
    if not found.passed:
        raise dg.Failure(
            f"{found.check_name}: {found.description}. Nothing was stored; an earlier evaluation is as it was.",
            allow_retries=False,
        )


@dataclass
class _Agent:
    """A champion, all of its seeds, and what it has seen."""

    version: ModelVersion
    policies: "dict[int, OnnxPolicy]"
    curves: dict[str, list[dict[str, float | None]]]

    @property
    def bundle(self) -> dict[str, Any]:
        return self.version.bundle

    @property
    def chosen(self) -> int:
        """Seed of the policy that serves."""
        return int(self.bundle["chosen_seed"])

    @property
    def acts(self) -> "dict[int, Callable[[np.ndarray], np.ndarray]]":
        """Seed -> policy, as `agents.py` takes it."""
        return {seed: policy.act for seed, policy in self.policies.items()}

    @property
    def seen_until(self) -> dt.date:
        """Last session of real data that training or the choice among seeds saw."""
        return dt.date.fromisoformat(self.bundle["windows"]["in_sample_last"])

    @property
    def judged_until(self) -> dt.date:
        """Last session of real data that training, the choice among seeds or, where its bundle says so, the gate saw."""
        gate_last = self.bundle["windows"].get("gate_last")
        return dt.date.fromisoformat(gate_last) if gate_last else self.seen_until

    def fits(self, environment: "Episodes") -> dg.AssetCheckResult:
        """The check that every seed's policy takes this environment's observations, and that the chosen one serves."""
        import numpy as np

        from quant_assets.models.sac import OnnxPolicy, SacError

        problem = None
        try:
            for policy in self.policies.values():
                policy.require(environment)
            serving = OnnxPolicy(self.version.onnx, self.bundle)
            seen = np.random.default_rng(0).normal(size=(64, len(environment.observation_names)))
            if not np.array_equal(serving.act(seen), self.policies[self.chosen].act(seen)):
                problem = f"what serves is not the policy of the chosen seed {self.chosen}; train it again (train_agents_job)"
        except SacError as error:
            problem = str(error)
        return dg.AssetCheckResult(
            check_name=FITS_CHECK,
            passed=problem is None,
            description=problem,
            metadata={"model": f"{self.version.name} v{self.version.version}", "seeds": len(self.policies)},
        )


def _agent(registry: ModelRegistry, name: str) -> _Agent:
    """The champion of a name.

    Raises:
        Failure: there is none, or its files do not hold what its bundle says.
    """
    from quant_assets.models.sac import OnnxPolicy

    try:
        version = registry.champion(name)
        files = registry.files(version)
    except RegistryError as error:
        raise dg.Failure(
            f"{error}. Train it first: materialize models/{name} (train_agents_job).", allow_retries=False
        ) from error
    wanted = {int(entry["seed"]): str(entry["file"]) for entry in version.bundle.get("seeds", ())}
    missing = [file for file in wanted.values() if file not in files]
    if not wanted or missing or int(version.bundle["chosen_seed"]) not in wanted:
        raise dg.Failure(
            f"{name} version {version.version} lacks {', '.join(missing) or 'its seeds'} beside its bundle: train it again "
            "(train_agents_job)",
            allow_retries=False,
        )
    return _Agent(
        version,
        {seed: OnnxPolicy(files[file], version.bundle) for seed, file in wanted.items()},
        json.loads(files.get("learning_curves.json", b"{}")),
    )


class _UnseenDays:
    """The unseen part of every symbol's simulated days.

    Args:
        context: its log is told which files are left out.
        warehouse: knows where they lie.
        max_paths: most days in all; 0 for all.

    Attributes:
        symbols: in order.
        models: symbol -> shapes of its days.
        identities: symbol -> which days they are, as the lineage of a training has it.
        symbol, group: of each path, shape (paths,); days of one draw are one group.

    Raises:
        Failure: there are none, or a file cannot be read.
    """

    def __init__(self, context: dg.AssetExecutionContext, warehouse: Warehouse, max_paths: int) -> None:
        import numpy as np

        from quant_assets.simulation.inputs import day_files
        from quant_assets.simulation.markets import MarketError, days_identity, part_of, take_days
        from quant_assets.simulation.transitions import BufferFileError, read_paths

        try:
            files = day_files(warehouse, context.log)
        except (BufferFileError, MarketError) as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        if max_paths < 0:
            raise dg.Failure(f"max_paths = {max_paths}: at least 0 (all)", allow_retries=False)
        each = -(-max_paths // len(files)) if max_paths else None
        self._days, self.models, self._last = {}, {}, {}
        self.identities: dict[str, str] = {}
        symbols: list[np.ndarray] = []
        groups: list[np.ndarray] = []
        for symbol, path in files.items():
            try:
                stored = read_paths(path)
                days = part_of(stored.days, UNSEEN)
            except (BufferFileError, MarketError) as error:
                raise dg.Failure(f"{symbol}: {error}", allow_retries=False) from error
            if each is not None and days.days > each:
                # Spread over the chains, as the draws are.
                days = take_days(days, np.arange(each) * days.days // each)
            self._days[symbol], self.models[symbol] = days, stored.info.model
            self.identities[symbol] = days_identity(stored.days, stored.info)
            self._last[symbol] = dt.date.fromisoformat(str(stored.info.posterior["session"]))
            symbols.append(np.full(days.days, symbol))
            groups.append(days.draw_id.astype(np.int64) + (len(groups) << 32))
        self.symbols = list(self._days)
        self.symbol, self.group = np.concatenate(symbols), np.concatenate(groups)

    def market(self, make: Callable[[Any, Any], Any], join: Callable[[Sequence[Any]], Any]) -> Any:
        """All days as a market: `make(days, model)` of each symbol, joined in order."""
        return join([make(days, self.models[symbol]) for symbol, days in self._days.items()])

    def last(self, symbol: str) -> dt.date:
        """Last session behind the posterior of a symbol, or of `all`."""
        return max(self._last.values()) if symbol == "all" else self._last[symbol]


@dataclass
class _Evaluated:
    """Results of one window and symbol."""

    window: str
    symbol: str
    results: Any
    group: "np.ndarray"
    session: dt.date

    def stamped(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with window, symbol and time."""
        return _stamped(rows, self.window, self.symbol, self.session)


def _stamped(
    rows: Sequence[dict[str, Any]], window: str, symbol: str, session: dt.date
) -> list[dict[str, Any]]:
    stamp = {
        "window": window,
        "symbol": symbol,
        "session": session,
        "available_at": CALENDAR.close(session),
    }
    return [{**stamp, **row} for row in rows]


def _store(
    context: dg.AssetExecutionContext,
    warehouse: Warehouse,
    agent: _Agent,
    environment: str,
    levels: Mapping[TableSpec, list[dict[str, Any]]],
    differences: list[dict[str, Any]],
) -> dict[str, str]:
    """Write all tables of one evaluation; snapshot ids by table."""
    import pyarrow as pa

    about = {"model": agent.version.name, "model_version": agent.version.version, "environment": environment}
    written = {**levels, tables.AGENT_DIFFERENCES: differences}
    properties = {"quant.run_id": context.run.run_id}
    snapshots = {}
    for spec, rows in written.items():
        names = [column.name for column in spec.columns]
        whole = [{name: _stored({**about, **row}[name]) for name in names} for row in rows]
        data = pa.Table.from_pylist(whole, schema=spec.arrow_schema)
        only = environment if spec is tables.AGENT_DIFFERENCES else None
        done = warehouse.write(spec, data, only=only, properties=properties)
        snapshots[f"snapshot {spec.name}"] = str(done.snapshot_id)
    return snapshots


def _stored(value: Any) -> Any:
    """No number is null in a table."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _verdict_check(context: dg.AssetExecutionContext, verdict: "Verdict") -> dg.AssetCheckResult:
    context.log.info("%s", verdict.text)
    return dg.AssetCheckResult(
        check_name=BASELINE_CHECK,
        passed=verdict.holds,
        severity=dg.AssetCheckSeverity.WARN,
        description=verdict.text,
    )


def _finished(
    context: dg.AssetExecutionContext,
    agent: _Agent,
    name: str,
    verdict: "Verdict",
    notes: Sequence[str],
    page: Mapping[str, list[dict[str, object]]],
    figures: "Mapping[str, Figure]",
    snapshots: Mapping[str, str],
    facts: Mapping[str, Any],
) -> dg.MaterializeResult:
    """The page, the index above it, and the same in the asset's metadata."""
    from quant_assets.backtests.pages.agent_page import write_agent_page
    from quant_assets.backtests.pages.report_index import write_index

    bundle, version = agent.bundle, agent.version
    shown = {title: rows for title, rows in page.items() if rows}
    images = {title: render(figure) for title, figure in figures.items()}
    model = f"{version.name} v{version.version}"
    about = (
        f"{model}, profile {bundle['profile']}, {_number(len(agent.policies))} training seed(s), chosen on validation: seed {agent.chosen}. "
        f"Real market of the training: {bundle['real_market']}."
    )
    path = write_agent_page(
        settings().reports_dir / GROUP,
        name,
        verdict.text,
        [*notes, about],
        shown,
        images,
        {"model": model, **facts},
    )
    index = write_index(settings().reports_dir)
    context.log.info("%s", path)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(facts["levels"]),
            "verdict": verdict.text,
            "model": model,
            "profile": bundle["profile"],
            "seeds": len(agent.policies),
            "notes": dg.MetadataValue.md("\n\n".join(notes)),
            "page": dg.MetadataValue.path(str(path)),
            "index": dg.MetadataValue.path(str(index)),
            **{title: markdown_table(rows) for title, rows in shown.items()},
            **{title: image_markdown(image, title) for title, image in images.items()},
            **snapshots,
        },
    )


def _sample_note(paths: int, days: _UnseenDays, agent: _Agent) -> str:
    note = f"{paths:,} days of {', '.join(days.symbols)} that no agent saw, simulated from the posterior."
    if strangers := [symbol for symbol in days.symbols if symbol not in agent.bundle["symbols"]]:
        note += f" The agent was trained on no day of {', '.join(strangers)}."
    if paths < WANTED_PATHS:
        note += f" Fewer than {WANTED_PATHS:,}: simulate more draws or symbols (simulation/intraday_paths) for narrower intervals."
    return note


def _days_notes(context: dg.AssetExecutionContext, days: _UnseenDays, agent: _Agent) -> list[str]:
    """What is to be said, on the page and in the log, where these are not the days that the agent was trained beside."""
    trained = {symbol: agent.bundle["lineage"].get(f"days.{symbol}") for symbol in days.symbols}
    others = [symbol for symbol, was in trained.items() if was is not None and was != days.identities[symbol]]
    if not others:
        return []
    note = (
        f"The days of {', '.join(others)} are not those of the training: they were simulated anew since. The unseen part of these days may "
        "not be the one that the training left out, so the agent may look better than it is: train it again (train_agents_job)."
    )
    context.log.warning("%s", note)
    for symbol in others:
        context.log.warning("%s: trained with %s; now %s", symbol, trained[symbol], days.identities[symbol])
    return [note]


def _of(rows: Sequence[dict[str, Any]], window: str) -> list[dict[str, Any]]:
    """Rows of a window, all symbols together."""
    return [row for row in rows if row["window"] == window and row["symbol"] == "all"]


def _main(row: Mapping[str, Any]) -> bool:
    """Baselines, the chosen agent and the mean over seeds: what a short table shows."""
    return row["seeds"] != 1 or bool(row["chosen"])


def _facts(
    window: str, paths: int, levels: list[dict[str, Any]], differences: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the JSON beside the page holds."""
    return {"window": window, "paths": paths, "levels": levels, "differences": differences}


def _shown(row: Mapping[str, Any]) -> bool:
    """Whether a page shows the row: the mean over a single seed is that seed again."""
    return row["strategy"] != AGENT or row["seed"] is not None or row["seeds"] > 1


def _number(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.4g}"


def _with_interval(row: Mapping[str, Any], name: str, mean: str | None = None) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) else ""
    return f"{row[mean or name]:.4g}{ends}"


def _level_rows(
    rows: Sequence[Mapping[str, Any]], measures: Sequence[str], columns: Sequence[str]
) -> list[dict[str, object]]:
    """Levels for a page: mean with interval and sd of each measure, then single columns."""
    from quant_assets.backtests.agent_plots import who

    several = len({row["symbol"] for row in rows}) > 1
    return [
        {
            "strategy": f"{row['symbol']}: {who(row)}" if several else who(row),
            "paths": row["paths"],
            **{
                key: value
                for name in measures
                for key, value in (
                    (f"{HEADERS[name]} [95 %]", _with_interval(row, name, f"{name}_mean")),
                    (f"sd of {HEADERS[name]}", _number(row[f"{name}_sd"])),
                )
            },
            **{HEADERS[name]: _number(row[name]) for name in columns},
        }
        for row in rows
        if _shown(row)
    ]


def _difference_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Differences for a page: the chosen agent and the mean over seeds; every seed's are in the table."""
    from quant_assets.backtests.agent_plots import LABELS, who

    return [
        {
            "": f"{HEADERS[row['measure']]}: {who(row)} less {LABELS[str(row['baseline'])]}",
            "difference": _number(row["difference"]),
            "95 % interval": f"{row['low']:.3g} to {row['high']:.3g}" if math.isfinite(row["low"]) else "",
            "agent better in": f"{100 * row['better_share']:.0f} %",
            "sd over seeds": _number(row["seed_sd"]),
        }
        for row in rows
        if _main(row)
    ]
