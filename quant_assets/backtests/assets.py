"""Assets of the layer `backtests`: one backtest per strategy, the parameter sweep, the report.

Belongs here: the Dagster face. Does not belong here: reading inputs (`inputs.py`), simulating (`engine.py`, `portfolio.py`),
searching (`sweep.py`), judging (`statistics.py`, `proof.py`), the shape of rows (`results.py`), drawing (`pages`,
`plots.py`).
"""

import datetime as dt
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from quant_assets.backtests import tables
from quant_assets.models.feature_sets import FEATURE_SETS
from quant_assets.partitions import CALENDAR, settings
from quant_assets.presentation import figure_markdown, markdown_table
from quant_assets.strategies import STRATEGIES, YARDSTICKS, make_strategy, space_path, strategy_class
from quant_resources.compute import Compute
from quant_resources.iceberg import TableSpec, Warehouse
from quant_resources.io_manager import table_metadata
from quant_resources.registry import ModelRegistry, RegistryError

if TYPE_CHECKING:
    import pyarrow as pa

    from quant_assets.backtests.engine import Account, Costs
    from quant_assets.backtests.inputs import Champion, Market
    from quant_assets.backtests.sweep import TrialStore

GROUP = "backtests"
AGENT_PAGES = ("execution", "market_making", "portfolio")  # written by `agent_assets.py`, listed by the index
ABLATION = "sentiment_ablation"  # made by `ablation_assets.py`, a section of the comparison
OWNERS = ["team:research"]
IN_SAMPLE, OUT_OF_SAMPLE = "in_sample", "out_of_sample"
SWEEPS_FILE = "sweeps.db"
COST_FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0)


class Money(dg.Config):
    """Money and costs; see `engine.Account` and `engine.Costs`."""

    initial_cash: float = 100_000.0
    leverage: float = 1.0
    commission_per_share: float = 0.005
    commission_bps: float = 0.0
    commission_minimum: float = 1.0
    half_spread_bps: float = 2.0
    impact_bps: float = 150.0
    participation_cap: float = 0.1
    borrow_annual_pct: float = 0.5
    interest_annual_pct: float = 0.0
    whole_shares: bool = True
    bracket_on_entry_bar: bool = True

    def money(self) -> "tuple[Costs, Account]":
        """Costs and account."""
        from quant_assets.backtests.engine import Account, Costs, check_account, check_costs

        costs = Costs(**{name: getattr(self, name) for name in Costs._fields})
        return check_costs(costs), check_account(
            Account(self.initial_cash, self.leverage, self.whole_shares, self.bracket_on_entry_bar)
        )


class Assumptions(Money):
    """Symbols, windows, money and costs; see `split_windows`, `engine.Account` and `engine.Costs`."""

    symbols: list[str] = []  # noqa: RUF012  # a pydantic field, copied per instance
    first_session: str | None = None
    last_session: str | None = None
    in_sample_fraction: float = 0.4
    in_sample_last: str | None = None
    purge_sessions: int = 5

    def market(self, warehouse: Warehouse) -> "Market":
        """Bars and windows."""
        from quant_assets.backtests.inputs import Market

        first, last, cut = (
            _session(name, getattr(self, name))
            for name in ("first_session", "last_session", "in_sample_last")
        )
        return Market(warehouse, self.symbols, first, last, self.in_sample_fraction, cut, self.purge_sessions)


def _session(name: str, text: str | None) -> dt.date | None:
    if not text:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{name} = {text!r} is not a date like 2012-04-03") from error


class BacktestConfig(Assumptions):
    """One strategy's backtest.

    Attributes:
        parameters: of the strategy; the others keep their defaults.
        use_swept_parameters: take the set that the newest sweep chose (`parameters` still win). The out-of-sample window
            then starts after the sessions that the sweep saw.
        rf_annual: risk-free rate of the statistics, simple, per year.
    """

    parameters: dict[str, Any] = {}  # noqa: RUF012
    use_swept_parameters: bool = False
    rf_annual: float = 0.0


class SweepConfig(Assumptions):
    """Which spaces are searched and how; see `sweep.Sweep`.

    Attributes:
        strategies: names; all that have a search space when empty.
        method: grid, random or bayesian; a grid of more than `most_trials` sets is drawn from at random instead.
        trials: of random and bayesian.
        objective: sharpe, total_return, max_drawdown, sqn or profit_factor.
        most_trials: largest grid.
        min_trades: sets with fewer trades are not chosen.
        train_sessions, test_sessions: of the walk-forward; a quarter and a sixth of the sessions when none is given,
            test_sessions 0 for no walk-forward.
        seed: of the draws; the project's when none is given.
    """

    strategies: list[str] = []  # noqa: RUF012
    method: str = "grid"
    trials: int = 60
    objective: str = "sharpe"
    most_trials: int = 2_000
    min_trades: int = 10
    train_sessions: int | None = None
    test_sessions: int | None = None
    seed: int | None = None


def _check_specs(name: str) -> list[dg.AssetCheckSpec]:
    descriptions = {
        "no_look_ahead": "Cut bars and probabilities where decisions change and run again: decisions, equity, positions "
        "and closed trades up to the cut are the same bit for bit. That features and adjusted prices do not look ahead is "
        "proved by the checks of features/*.",
        "unseen_sessions": "Every out-of-sample trade was decided after the sessions that the model was trained on, or "
        "that parameters were chosen on, and the purge.",
        "accounts_balance": "Initial cash + PnL of all trades + interest = final equity, in each window (1e-9 of the "
        "initial cash).",
    }
    return [
        dg.AssetCheckSpec(check, asset=dg.AssetKey([GROUP, name]), blocking=True, description=text)
        for check, text in descriptions.items()
    ]


def _model_keys(model: str | None) -> list[dg.AssetKey]:
    if model is None:
        return []
    tables_read = [dg.AssetKey(spec.name.split(".")) for spec in FEATURE_SETS[model].tables]
    return [dg.AssetKey(["models", model]), *tables_read]


def backtest_asset(name: str) -> dg.AssetsDefinition:
    """The asset `backtests/<name>` of a registered strategy."""
    cls = strategy_class(name)
    about = (cls.__doc__ or name).strip().splitlines()[0]
    swept = [dg.AssetKey([GROUP, "parameter_sweep"])] if name not in YARDSTICKS else []

    @dg.asset(
        key=[GROUP, name],
        group_name=GROUP,
        description=f"{about} Backtest in dollars: decided at the close, filled at the next open, net of commission, spread, "
        "impact and borrow fee; in sample (first 40 % of the sessions) and, after a purge, out of sample. A strategy with a "
        "model trades only sessions that it has not seen. Paths, trades and rejected orders go to the backtests.* tables.",
        metadata=table_metadata(tables.EQUITY),
        deps=[dg.AssetKey(["market", "bars"]), *_model_keys(cls.model), *swept],
        kinds={"numba", "iceberg"},
        owners=OWNERS,
        # Commands over a range of sessions want a policy of every selected asset.
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version="1",
        check_specs=_check_specs(name),
    )
    def backtest(
        context: dg.AssetExecutionContext,
        config: BacktestConfig,
        warehouse: dg.ResourceParam[Warehouse],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        yield from _backtest(context, name, config, warehouse, registry)

    return backtest


BACKTESTS = [backtest_asset(name) for name in STRATEGIES]


def _backtest(
    context: dg.AssetExecutionContext,
    name: str,
    config: BacktestConfig,
    warehouse: Warehouse,
    registry: ModelRegistry,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    import numpy as np

    from quant_assets.backtests import plots, proof
    from quant_assets.backtests.inputs import Champion
    from quant_assets.backtests.pages.tear_sheet import write_tear_sheet
    from quant_assets.backtests.portfolio import run_backtest
    from quant_assets.backtests.results import backtest_tables, newest_sweep, tear_sheets, trials_of
    from quant_assets.backtests.statistics import Conventions, log_line, summary
    from quant_assets.backtests.sweep import TrialStore, data_identity, record_backtest

    costs, account = config.money()
    market = config.market(warehouse)
    model = strategy_class(name).model
    champion = Champion(model, warehouse, registry) if model else None
    store = TrialStore(warehouse.home / SWEEPS_FILE)
    strategy, seen_until = _parameters(name, config, market, champion, newest_sweep(warehouse, name), store)
    windows = {} if champion else {IN_SAMPLE: market.in_sample}
    windows[OUT_OF_SAMPLE] = market.window_after(seen_until)

    probability = champion.on(market.series) if champion else None
    conventions = Conventions(rf_annual=config.rf_annual)
    runs, benchmarks, summaries = {}, {}, {}
    for label, window in windows.items():
        runs[label] = run_backtest(strategy, market.series, window, probability, costs, account)
        benchmarks[label] = run_backtest(
            make_strategy("buy_and_hold"), market.series, window, None, costs, account
        )
    data = data_identity(market.series, probability)
    if name not in YARDSTICKS:
        record_backtest(store, runs[OUT_OF_SAMPLE], costs, account, sorted(market.series), data)
    trials, variance = trials_of(name, store, champion.version if champion else None)
    for label, run in runs.items():
        window, held = run.window, benchmarks[label]
        summaries[label] = summary(
            run.equity,
            run.sessions,
            run.trades,
            conventions,
            held.equity,
            trials=trials,
            # Of one trial there is no variance; of several, an unknown one makes the deflated ratio unknown.
            trial_sharpe_variance=math.nan if variance is None else variance,
            purge_sessions=config.purge_sessions,
        )
        context.log.info(
            "%s %s, %s to %s: %s", name, label, window.first, window.last, log_line(summaries[label])
        )

    passed = True
    balance = [{"window": label, **proof.balance(run)} for label, run in runs.items()]
    good = all(abs(float(row["difference"])) <= 1e-9 * account.initial_cash for row in balance)
    passed &= good
    yield dg.AssetCheckResult(
        check_name="accounts_balance",
        passed=good,
        metadata={"windows": markdown_table(balance)},
    )
    problems = [
        {"window": label, **row}
        for label, run in runs.items()
        for row in proof.truncation_problems(
            run, strategy, market.series, champion.on if champion else None, costs, account
        )
    ]
    passed &= not problems
    yield dg.AssetCheckResult(
        check_name="no_look_ahead",
        passed=not problems,
        description=f"the past depends on the future: {len(problems)} differences" if problems else None,
        metadata={"problems": markdown_table(problems)},
    )
    unseen = runs[OUT_OF_SAMPLE]
    earliest = proof.sessions_between(unseen, market.sessions, seen_until)
    good = earliest is None or earliest[1] >= config.purge_sessions
    passed &= good
    yield dg.AssetCheckResult(
        check_name="unseen_sessions",
        passed=good,
        metadata={
            "seen until": str(seen_until),
            "earliest decision": str(earliest[0]) if earliest else "no trade",
            **({"sessions in between": earliest[1]} if earliest else {}),
            "purge": config.purge_sessions,
        },
    )
    if not passed:
        raise dg.Failure(
            f"{name}: a blocking check failed, see above. Nothing was stored; an earlier backtest of it is as it was.",
            allow_retries=False,
        )

    sensitivity = []
    for factor in COST_FACTORS:
        dearer = run_backtest(
            strategy, market.series, unseen.window, probability, costs.times(factor), account
        )
        numbers = summary(dearer.equity, dearer.sessions, dearer.trades, conventions)["returns"]
        wanted = ("total_return", "sharpe", "final_equity")
        sensitivity.append({"cost_factor": factor, **{key: numbers[key] for key in wanted}})
    facts = {
        "parameters": json.dumps(strategy.parameters),
        "costs": json.dumps(costs._asdict()),
        "account": json.dumps(account._asdict()),
        "symbols": json.dumps(sorted(market.series)),
        "bars_snapshot": str(market.snapshot),
        "model": champion.model if champion else "",
        "model_version": champion.version if champion else None,
        "news_source": champion.news_source if champion else "none",
    }
    snapshots = _write(
        context,
        warehouse,
        name,
        backtest_tables(name, runs, summaries, facts, {OUT_OF_SAMPLE: sensitivity}, CALENDAR),
    )

    symbols = unseen.trades["symbol"].to_pylist()
    shown = max(sorted(market.series), key=symbols.count)
    curves = {
        name: unseen.equity,
        "buy_and_hold": benchmarks[OUT_OF_SAMPLE].equity,
        "flat": np.full(len(unseen.equity), account.initial_cash),
    }
    sheets = {sheet.strategy: sheet for sheet in tear_sheets(warehouse, [name, *YARDSTICKS], store)}
    page = write_tear_sheet(sheets[name], settings().reports_dir / "backtests")
    sharpe = summaries[OUT_OF_SAMPLE]["returns"]["sharpe"]
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(unseen.sessions),
            "statistics": markdown_table(statistics_rows(summaries)),
            "equity": figure_markdown(
                plots.equity_figure(unseen.sessions, curves),
                f"Out of sample, {unseen.window.first} to {unseen.window.last}, dollars",
            ),
            "tear sheet": dg.MetadataValue.path(str(page)),
            "risk": figure_markdown(
                plots.risk_figure(unseen.sessions, unseen.equity, unseen.invested, unseen.gross),
                "Years, distribution, rolling ratio and volatility, exposure, deepest drawdowns",
            ),
            "monthly returns": figure_markdown(
                plots.monthly_figure(unseen.sessions, unseen.equity), "Monthly returns"
            ),
            "trades on the chart": figure_markdown(
                plots.trades_figure(market.series[shown], unseen.trades, shown), f"Trades in {shown}"
            ),
            "cost sensitivity": figure_markdown(plots.cost_figure(sensitivity), "The same at other costs"),
            "last trades": markdown_table(_last_trades(unseen.trades)),
            "log": log_line(summaries[OUT_OF_SAMPLE]),
            "parameters": strategy.parameters,
            "trades": unseen.trades.num_rows,
            "rejected orders": unseen.rejected.num_rows,
            **({} if sharpe is None else {"sharpe": sharpe}),
            **(
                {"model": f"{champion.model} v{champion.version}", "news": champion.news_source}
                if champion
                else {}
            ),
            **snapshots,
        },
    )


def _parameters(
    name: str,
    config: BacktestConfig,
    market: "Market",
    champion: "Champion | None",
    swept: dict[str, Any] | None,
    store: "TrialStore",
) -> tuple[Any, dt.date]:
    """The strategy, and the last session that anything about it was learned from.

    Parameters that differ from the defaults may have been found by any sweep that tried them, so they are taken to know what
    the latest of those sweeps saw.
    """
    seen_until = max(market.in_sample.last, champion.seen_until) if champion else market.in_sample.last
    chosen = dict(config.parameters)
    if not (config.use_swept_parameters or chosen):
        return make_strategy(name), seen_until
    if config.use_swept_parameters and swept is None:
        raise dg.Failure(
            f"use_swept_parameters: no sweep of {name} is stored; materialize backtests/parameter_sweep first.",
            allow_retries=False,
        )
    if config.use_swept_parameters and swept is not None:
        chosen = {**json.loads(swept["parameters"]), **chosen}
    strategy = make_strategy(name, **chosen)
    tried_until = store.seen_until(name, strategy.parameters)
    return strategy, seen_until if tried_until is None else max(seen_until, tried_until)


def _write(
    context: dg.AssetExecutionContext, warehouse: Warehouse, strategy: str, rows: "dict[TableSpec, pa.Table]"
) -> dict[str, str]:
    """Replace the strategy's slice of each table; snapshot ids by table."""
    snapshots = {}
    for spec, data in rows.items():
        done = warehouse.write(spec, data, only=strategy, properties={"quant.run_id": context.run.run_id})
        snapshots[f"snapshot {spec.name}"] = str(done.snapshot_id)
    return snapshots


def statistics_rows(summaries: dict[str, dict[str, Any]]) -> list[dict[str, object]]:
    """The numbers that people look at first: a row per statistic, a column per window."""
    wanted = {
        "returns": (
            "total_return",
            "cagr",
            "volatility",
            "sharpe",
            "sharpe_low",
            "sharpe_high",
            "sortino",
            "calmar",
        ),
        "drawdown": ("maximum",),
        "trades": ("count", "win_rate", "profit_factor", "sqn", "mean_bars_held"),
        "costs": ("total", "total_bps", "turnover"),
        "validity": ("psr", "dsr", "trials"),
    }
    return [
        {
            "statistic": f"{group}: {key}",
            **{
                label: "undefined" if result[group][key] is None else result[group][key]
                for label, result in summaries.items()
            },
        }
        for group, keys in wanted.items()
        for key in keys
    ]


def _last_trades(trades: "pa.Table", most: int = 12) -> list[dict[str, object]]:
    columns = [
        "symbol",
        "side",
        "shares",
        "entry_session",
        "exit_session",
        "entry_price",
        "exit_price",
        "reason",
        "pnl",
    ]
    return trades.select(columns).slice(max(trades.num_rows - most, 0)).to_pylist()


@dg.asset(
    key=[GROUP, "parameter_sweep"],
    group_name=GROUP,
    description="Every parameter set that was ever tried, with its statistics (annual Sharpe ratio; return and drawdown as "
    "fractions). Parameters are chosen on the in-sample sessions alone (for a strategy with a model: on the first 40 % of "
    "the sessions that it has not seen); a walk-forward chooses on each past window and scores on the next. Resumable: "
    "finished trials are kept in QUANT_HOME/sweeps.db and not run again.",
    metadata=table_metadata(tables.PARAMETER_SWEEP),
    deps=[
        dg.AssetKey(["market", "bars"]),
        *sorted({key for name in STRATEGIES for key in _model_keys(strategy_class(name).model)}),
    ],
    kinds={"numba", "optuna", "iceberg"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    pool="sweep",
    check_specs=[
        dg.AssetCheckSpec(
            "no_failed_trials",
            asset=dg.AssetKey([GROUP, "parameter_sweep"]),
            description="No parameter set of the newest sweeps failed; those that did are listed with their parameters.",
        )
    ],
)
def parameter_sweep(
    context: dg.AssetExecutionContext,
    config: SweepConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
    compute: dg.ResourceParam[Compute],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Search the space of each strategy; trials that are finished are not run again."""
    from quant_assets.backtests import plots
    from quant_assets.backtests.results import newest_sweep, sweep_view, trial_table
    from quant_assets.backtests.sweep import TrialStore

    market = config.market(warehouse)
    store = TrialStore(warehouse.home / SWEEPS_FILE)
    names = config.strategies or [name for name in STRATEGIES if space_path(name).exists()]
    failed: list[dict[str, object]] = []
    found = {}
    for name in names:
        try:
            found[name], errors = _sweep(context, name, config, market, store, warehouse, registry, compute)
            failed += errors
        except (ValueError, RegistryError) as error:  # every error of ours; the other strategies go on
            context.log.error("%s: %s", name, error)
            failed.append({"strategy": name, "parameters": "all", "error": str(error)})
    # The trials before what was chosen from them, so that no reader finds a choice without its trials.
    trials = trial_table(store, CALENDAR)
    done = warehouse.write(tables.PARAMETER_SWEEP, trials, properties={"quant.run_id": context.run.run_id})
    for name, rows in found.items():
        _write(context, warehouse, name, rows)
    yield dg.AssetCheckResult(
        check_name="no_failed_trials",
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(failed)} failed, the others went on" if failed else None,
        metadata={"failed": markdown_table(failed)},
    )
    if not found:
        raise dg.Failure(
            "no strategy could be swept: "
            + "; ".join(f"{row['strategy']}: {row['error']}" for row in failed),
            allow_retries=False,
        )
    shown: dict[str, object] = {}
    chosen = []
    for name in found:
        newest, view = newest_sweep(warehouse, name), sweep_view(warehouse, name)
        assert newest is not None
        assert view is not None
        wanted = (
            "strategy",
            "method",
            "trials",
            "failed",
            "trials_ever",
            "objective",
            "objective_value",
            "parameters",
        )
        chosen.append({**{k: newest[k] for k in wanted}, "PBO": newest["overfitting_probability"]})
        if len(view.heat_map) == 2:
            shown[f"{name} heat map"] = figure_markdown(
                plots.heat_map_figure(view), f"{view.objective} of {name}"
            )
        shown[f"{name} trials"] = figure_markdown(plots.parallel_figure(view), f"All trials of {name}")
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": trials.num_rows,
            "snapshot_id": str(done.snapshot_id),
            "chosen": markdown_table(chosen),
            **shown,
        }
    )


def _sweep(
    context: dg.AssetExecutionContext,
    name: str,
    config: SweepConfig,
    market: "Market",
    store: "TrialStore",
    warehouse: Warehouse,
    registry: ModelRegistry,
    compute: Compute,
) -> "tuple[dict[TableSpec, pa.Table], list[dict[str, object]]]":
    """Sweep and walk-forward of one strategy: its rows by table, and its failed trials."""
    from quant_assets.backtests.inputs import Champion
    from quant_assets.backtests.portfolio import split_windows, walk_forward
    from quant_assets.backtests.results import sweep_tables
    from quant_assets.backtests.space import load_space
    from quant_assets.backtests.sweep import Sweep, run_sweep, run_walk_forward

    costs, account = config.money()
    space = load_space(name)
    model = strategy_class(name).model
    champion = Champion(model, warehouse, registry) if model else None
    probability = champion.on(market.series) if champion else None
    window, sessions = market.in_sample, market.sessions
    if champion:
        # The model has seen the first sessions; those that it has not seen are split again.
        first = market.window_after(max(champion.seen_until, market.in_sample.last)).first
        sessions = [day for day in market.sessions if day >= first]
        window, _ = split_windows(sessions, config.in_sample_fraction, None, config.purge_sessions)
    too_large = config.method == "grid" and space.grid_size > config.most_trials
    sweep = Sweep(
        name,
        space,
        window,
        "random" if too_large else config.method,  # type: ignore[arg-type]
        config.trials,
        settings().seed if config.seed is None else config.seed,
        config.objective,
        costs=costs,
        account=account,
        min_trades=config.min_trades,
        most_trials=config.most_trials,
    )
    if too_large:
        context.log.warning(
            "%s: the grid has %d sets, more than most_trials = %d; %d are drawn at random",
            name,
            space.grid_size,
            config.most_trials,
            config.trials,
        )
    result = run_sweep(
        sweep,
        market.series,
        store,
        compute,
        probability,
        progress=lambda done, total: context.log.info("%s: %d of %d trials", name, done, total),
    )
    context.log.info(
        "%s: %d trials, %d of them found finished; best %s = %.4g with %s",
        name,
        len(result.trials),
        result.reused,
        config.objective,
        result.best.values[config.objective],
        result.best.parameters,
    )
    folds = []
    if config.test_sessions != 0:
        steps = walk_forward(
            sessions,
            config.train_sessions or len(sessions) // 4,
            config.test_sessions or len(sessions) // 6,
            config.purge_sessions,
        )
        folds = run_walk_forward(
            sweep,
            steps,
            market.series,
            store,
            compute,
            probability,
            progress=lambda done, total: context.log.info(
                "%s: walk-forward step %d of %d", name, done, total
            ),
        )
    return sweep_tables(result, folds, store.counted(name), CALENDAR), [
        {"strategy": name, "parameters": json.dumps(trial.parameters), "error": trial.error}
        for trial in result.trials
        if trial.error
    ]


@dg.asset(
    key=[GROUP, "report"],
    group_name=GROUP,
    description="HTML pages under QUANT_HOME/reports: a tear sheet per strategy (out of sample, dollars, net of costs), a page "
    "that compares all of them on the sessions that they share and says what alternative data add, JSON with every number beside "
    "them, and index.html, which also lists the pages of the agents and of the models. "
    "Deflated Sharpe ratios count every configuration that was ever tried.",
    deps=[dg.AssetKey([GROUP, name]) for name in (*STRATEGIES, "parameter_sweep", ABLATION, *AGENT_PAGES)],
    kinds={"plotly"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="2",
)
def report(context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[Warehouse]) -> dg.MaterializeResult:
    """Draw what is stored; nothing is simulated here."""
    from quant_assets.backtests import plots
    from quant_assets.backtests.pages.comparison import write_comparison
    from quant_assets.backtests.pages.report_index import write_index
    from quant_assets.backtests.pages.tear_sheet import write_tear_sheet
    from quant_assets.backtests.results import ablation_view, tear_sheets
    from quant_assets.backtests.sweep import TrialStore

    sheets = tear_sheets(warehouse, list(STRATEGIES), TrialStore(warehouse.home / SWEEPS_FILE))
    if not sheets:
        raise dg.Failure(
            "no backtest is stored; materialize backtests/<strategy> (backtest_job) first.",
            allow_retries=False,
        )
    folder = settings().reports_dir / "backtests"
    pages = {sheet.strategy: write_tear_sheet(sheet, folder) for sheet in sheets}
    ablation = ablation_view(warehouse)
    comparison = write_comparison(sheets, folder, ablation)
    index = write_index(settings().reports_dir)
    for sheet in sheets:
        context.log.info("%s: %s", sheet.strategy, pages[sheet.strategy])
    return dg.MaterializeResult(
        metadata={
            "index": dg.MetadataValue.path(str(index)),
            "comparison": dg.MetadataValue.path(str(comparison)),
            **({"alternative data": ablation.conclusion} if ablation else {}),
            "strategies": markdown_table(
                [
                    {
                        "strategy": sheet.strategy,
                        **{
                            key: sheet.statistics["returns"][key]
                            for key in ("total_return", "cagr", "sharpe", "sharpe_low", "sharpe_high")
                        },
                        "max_drawdown": sheet.statistics["drawdown"]["maximum"],
                        "trades": sheet.statistics["trades"]["count"],
                        "dsr": sheet.statistics["validity"]["dsr"],
                        "trials": sheet.statistics["validity"]["trials"],
                    }
                    for sheet in sheets
                ]
            ),
            "equity": figure_markdown(
                plots.comparison_figure(sheets), "All strategies on their common sessions"
            ),
        }
    )
