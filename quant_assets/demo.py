"""The front door: `python -m quant_assets.demo` runs the whole chain on the sample, then five nights.

Belongs here: launching jobs as a person or the schedule would, progress, and a summary. Does not belong here: any
work; every number comes out of the assets.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from quant_resources.iceberg import Warehouse
    from quant_resources.settings import Settings

NIGHTS = 5
DEMO_DATASETS = 24


def main() -> int:
    """Run the chain up to six sessions before the sample's end, replay five nights, print what came out."""
    started = time.monotonic()
    from quant_resources.settings import SettingsError, ensure_home, load_settings

    try:
        settings = load_settings()
        if settings.source != "sample":
            raise SettingsError(
                f"QUANT_SOURCE={settings.source}: the demo runs on the bundled sample. Unset QUANT_SOURCE, and give the "
                "demo a QUANT_HOME of its own if yours holds other data."
            )
        ensure_home(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Data, models and reports go to {settings.home}", flush=True)

    import dagster as dg

    from quant_assets.definitions import defs
    from quant_assets.launch import RANGE_TAGS, open_instance, run_job
    from quant_assets.partitions import CALENDAR, FIRST_SESSION, LAST_SESSION, SYMBOLS

    assert LAST_SESSION is not None
    until = CALENDAR.shift(LAST_SESSION, -NIGHTS)
    with open_instance(settings) as instance:
        print(f"\nThe chain, {FIRST_SESSION} to {until} (chain_job, one run for all sessions)")
        tags = dict(zip(RANGE_TAGS, (FIRST_SESSION.isoformat(), until.isoformat()), strict=True))
        if not run_job(defs, instance, "chain_job", tags=tags):
            return 1
        print("\nHeston posteriors of the in-sample returns, and days simulated from them (posterior_job)")
        assert SYMBOLS.name is not None
        for symbol in sorted(instance.get_dynamic_partitions(SYMBOLS.name)):
            if too_young := _too_young(symbol):
                print(f"  {symbol}: left out, {too_young}", flush=True)
                continue
            print(f"  {symbol}", flush=True)
            if not run_job(defs, instance, "posterior_job", tags={}, partition_key=symbol):
                return 1
        print(
            f"\nCalibration of the sampler on {DEMO_DATASETS} simulated datasets (calibration_job; the full plan has 250)"
        )
        plan = {"posterior__heston_calibration": {"datasets": {"500": DEMO_DATASETS}}}
        if not run_job(defs, instance, "calibration_job", tags={}, ops=plan):
            return 1
        print(
            "\nAgents for execution, market making and a portfolio: soft actor-critic with planning, judged (train_agents_job)"
        )
        if not run_job(defs, instance, "train_agents_job", tags={}):
            return 1
        print("\nBacktests: parameter sweep, every strategy, tear sheets (backtest_job)")
        if not run_job(defs, instance, "backtest_job", tags={}):
            return 1
        print("\nEndpoints: the champions answer on this machine (deploy_job)")
        if not run_job(defs, instance, "deploy_job", tags={}):
            return 1
        schedule = defs.resolve_schedule_def("daily_signals_schedule")
        repository = defs.get_repository_def()
        for session in CALENDAR.sessions(until + dt.timedelta(days=1), LAST_SESSION):
            # What the daemon does at 16:30 New York: ask the schedule, launch what it requests.
            tick = dt.datetime.combine(session, dt.time(16, 30), ZoneInfo("America/New_York"))
            context = dg.build_schedule_context(
                instance=instance, scheduled_execution_time=tick, repository_def=repository
            )
            decision = schedule.evaluate_tick(context)
            for request in decision.run_requests or []:
                print(f"\nNight of {session} (daily_signals_schedule, run key {request.run_key})")
                run_tags = {
                    **request.tags,
                    "dagster/schedule_name": schedule.name,
                    "dagster/run_key": str(request.run_key),
                }
                if not run_job(
                    defs, instance, "daily_signals_job", tags=run_tags, partition_key=request.partition_key
                ):
                    return 1
            if decision.skip_message:
                print(f"\nNight of {session}: skipped, {decision.skip_message}")
        _summary()
        _ask(settings)
    print(
        f"\nDone in {time.monotonic() - started:.0f} s. Look at it: make dev   (QUANT_HOME={settings.home})"
    )
    return 0


def _summary() -> None:
    """Tables, models, signals, files."""
    from quant_assets.definitions import table_specs
    from quant_assets.partitions import LAST_SESSION, settings
    from quant_assets.serving.tables import LIVE_SIGNALS
    from quant_resources.iceberg import Warehouse
    from quant_resources.registry import ModelRegistry

    home = settings().home
    warehouse = Warehouse(home)
    print("\nTables" + " " * 24 + "rows  snapshot              snapshots")
    for spec in table_specs().values():
        if warehouse.exists(spec):
            rows = warehouse.table(spec).scan().count()
            print(
                f"  {spec.name:22s} {rows:>9,}  {warehouse.snapshot_id(spec):<20}  {len(warehouse.snapshots(spec)):>9}"
            )
    print("\nModels (out of sample: AUC [95 %], Brier against the base rate's)")
    registry = ModelRegistry(home)
    for name in ("mlp_technical", "mlp_sentiment", "mlp_enhanced"):
        champion = registry.champion(name)
        metrics = registry.client.get_run(champion.run_id).data.metrics
        for side in ("long", "short"):
            m = {k.removeprefix(f"out_of_sample.{side}."): v for k, v in metrics.items()}
            print(
                f"  {name} v{champion.version} {side:5s}  AUC {m['auc']:.3f} [{m['auc_low']:.3f}, {m['auc_high']:.3f}]"
                f"  Brier {m['brier']:.4f} (base rate {m['base_rate.brier']:.4f}, logistic {m['logistic_regression.brier']:.4f})"
            )
    print(
        "  An AUC near 0.5 is what these prices hold; the sample's news are simulated and contain no alpha."
    )
    _posteriors(warehouse)
    _agents(warehouse)
    _backtests(warehouse)
    signals = warehouse.read(LIVE_SIGNALS, LAST_SESSION, LAST_SESSION)
    print(f"\nSignals of {LAST_SESSION}, to be traded at the next open")
    for row in signals.to_pylist():
        weight = row["target_weight"]
        why = (
            f"P(long) {row['probability_long']:.3f}  P(short) {row['probability_short']:.3f}"
            if weight is None
            else f"weight {weight:.1%} of 100,000 dollars"
        )
        print(
            f"  {row['strategy']:26s} {row['symbol']:5s} {row['side']:5s} {row['target_shares']:>6.0f} shares  {why}  "
            f"{row['model']} v{row['model_version']}"
        )
    print(f"\nSignal files   {settings().signals_dir}/<strategy>/<session>.csv")
    print(f"Reports        {settings().reports_dir}/index.html")
    print("Plots          on each asset's page in the Dagster UI (make dev)")
    print("Models         make mlflow")


def _ask(settings: Settings) -> None:
    """Sell a thousand shares by the execution endpoint, as a client would; then end the endpoints that the demo started."""
    from quant_assets.partitions import CALENDAR, LAST_SESSION
    from quant_resources.endpoints import open_endpoints

    assert LAST_SESSION is not None
    endpoints = open_endpoints(settings)
    endpoint = endpoints.endpoint("execution")
    status = endpoint.status()
    start = CALENDAR.opens(LAST_SESSION).isoformat()
    order = {"ticker": "AAPL", "shares": 1000, "horizon_minutes": 390, "start": start}
    answer = endpoint.invoke(json.dumps(order).encode())
    print(f"\nEndpoint {status.name}, {status.model} v{status.model_version}: {json.dumps(order)}")
    plan = json.loads(answer.body)
    costs = ", ".join(f"{name} {bps:.2f}" for name, bps in plan["expected_cost_bps"].items())
    hours = [sum(s["shares"] for s in plan["schedule"][i : i + 60]) for i in range(0, 390, 60)]
    print(f"  shares by hour {hours}, expected cost in bps: {costs}")
    endpoints.stop()
    print("  The endpoints are stopped with the demo; make endpoints DO=start brings them back.")


def _too_young(symbol: str) -> str:
    """Why a symbol's in-sample returns hold no posterior; '' when they do. The asset would refuse them with the same words."""
    from quant_assets.partitions import settings
    from quant_assets.posterior.heston import check_returns
    from quant_assets.posterior.inputs import read_returns
    from quant_assets.posterior.priors import HestonError, HestonPriors
    from quant_resources.iceberg import Warehouse

    try:
        check_returns(read_returns(Warehouse(settings().home), symbol).values, HestonPriors())
    except HestonError as error:
        return str(error)
    return ""


def _posteriors(warehouse: Warehouse) -> None:
    """One line per symbol: means and 90 % intervals."""
    import numpy as np

    from quant_assets.posterior.priors import QUANTITIES
    from quant_assets.posterior.tables import HESTON, HESTON_FITS

    print("\nHeston posteriors, in sample, per year (mean [5 %, 95 %])")
    for fit in warehouse.read(HESTON_FITS).to_pylist():
        draws = warehouse.read(HESTON, only=fit["symbol"])
        numbers = []
        for name in QUANTITIES:
            values = draws[name].to_numpy()
            low, high = np.quantile(values, (0.05, 0.95))
            numbers.append(f"{name} {values.mean():.3g} [{low:.2g}, {high:.2g}]")
        print(
            f"  {fit['symbol']:5s} {fit['returns']:>5} returns to {fit['session']}, {fit['sampler']}: {'  '.join(numbers)}"
        )


def _agents(warehouse: Warehouse) -> None:
    """Each agent beside what needs no learning: one measure per environment, on days that it never saw."""
    from quant_assets.backtests.tables import EXECUTION, MARKET_MAKING, PORTFOLIO

    print("\nAgents on days that they never saw, beside rules that learn nothing (mean; more in the reports)")
    for spec, column, what in (
        (EXECUTION, "cost_without_market_move_bps_mean", "cost of an order, bps"),
        (
            MARKET_MAKING,
            "objective_without_market_move_dollars_mean",
            "dollars a session less inventory penalty",
        ),
        (PORTFOLIO, "sharpe_ratio", "Sharpe ratio net of costs"),
    ):
        rows = [
            row
            for row in warehouse.read(spec).to_pylist()
            if row["symbol"] == "all" and row["window"] in ("unseen", "out_of_sample")
        ]
        shown = []
        for row in rows:
            if row["strategy"] != "sac":
                shown.append(f"{row['strategy']} {row[column]:.2f}")
            elif row["chosen"]:
                shown.insert(0, f"sac {row[column]:.2f}")
            elif row["seeds"] > 1:
                shown.append(f"mean of {row['seeds']} seeds {row[column]:.2f}")
        print(f"  {spec.name:26s} {what}: {', '.join(shown)}")


def _backtests(warehouse: Warehouse) -> None:
    """One line per strategy, out of sample, and what alternative data add."""
    from quant_assets.backtests.results import ablation_view
    from quant_assets.backtests.tables import RUNS

    print("\nBacktests, out of sample, net of costs (Sharpe [95 %], deflated by every trial that was run)")
    for run in warehouse.read(RUNS).to_pylist():
        if run["window"] != "out_of_sample":
            continue
        numbers = json.loads(run["statistics"])
        returns, validity = numbers["returns"], numbers["validity"]
        sharpe = (
            "undefined: never traded"
            if returns["sharpe"] is None
            else f"{returns['sharpe']:5.2f} [{returns['sharpe_low']:5.2f}, {returns['sharpe_high']:5.2f}]"
            f"  DSR {validity['dsr']:.2f} of {validity['trials']:.0f} trials"
        )
        print(
            f"  {run['strategy']:26s} {run['first_session']}..{run['session']}  return {returns['total_return']:+7.1%}  "
            f"drawdown {numbers['drawdown']['maximum']:6.1%}  {numbers['trades']['count']:>5} trades  Sharpe {sharpe}"
        )
    if ablation := ablation_view(warehouse):
        print("\nWhat alternative data add (AUC out of sample, long and short, mean over seeds [95 %])")
        for row in ablation.rows:
            if row["measure"] == "auc":
                print(
                    f"  {row['rung']:14s} {row['inputs']} inputs  {row['side']:5s}  {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                )
        print(f"  {ablation.conclusion}")


if __name__ == "__main__":
    raise SystemExit(main())
