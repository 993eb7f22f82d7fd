"""The backtests as assets: real runs of `backtest_job` on the filled home, and what happens when something is wrong."""

import datetime as dt
import json
import re
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from quant_assets import strategies
from quant_assets.backtests import tables
from quant_assets.backtests.ablation import RUNGS
from quant_assets.backtests.ablation_assets import READ, sentiment_ablation
from quant_assets.backtests.assets import BACKTESTS, backtest_asset, parameter_sweep
from quant_assets.backtests.results import ablation_view
from quant_assets.features.tables import LABELS, PEERS
from quant_assets.launch import QUIET
from quant_assets.partitions import CALENDAR
from quant_assets.strategies import STRATEGIES, YARDSTICKS
from quant_resources.compute import Compute
from quant_resources.iceberg import TableSpec, Warehouse

MODELS = {
    "mlp_long_short": "mlp_technical",
    "mlp_sentiment_long_short": "mlp_sentiment",
    "mlp_enhanced_long_short": "mlp_enhanced",
}
SLICED = (tables.EQUITY, tables.POSITIONS, tables.TRADES, tables.REJECTED_ORDERS, tables.RUNS)


def rows(chain: Any, spec: TableSpec, strategy: str, window: str | None = None) -> list[dict[str, Any]]:
    found = chain.warehouse.read(spec, only=strategy).to_pylist()
    return [row for row in found if window is None or row["window"] == window]


def test_every_strategy_has_its_runs_and_a_model_none_on_what_it_has_seen(chain: Any) -> None:
    for name in STRATEGIES:
        windows = {row["window"] for row in rows(chain, tables.RUNS, name)}
        assert windows == ({"out_of_sample"} if name in MODELS else {"in_sample", "out_of_sample"}), name
        equity = rows(chain, tables.EQUITY, name, "out_of_sample")
        assert equity[0]["equity"] == 100_000
        assert equity[-1]["session"] == chain.nights[-1]
    for name, model in MODELS.items():
        seen = dt.date.fromisoformat(chain.registry.champion(model).bundle["windows"]["in_sample_last"])
        assert min(row["session"] for row in rows(chain, tables.EQUITY, name)) > seen


def test_the_accounts_of_the_symbols_add_up_to_the_equity(chain: Any) -> None:
    for name in STRATEGIES:
        total: dict[tuple[str, dt.date], float] = {}
        for row in rows(chain, tables.POSITIONS, name):
            assert row["equity"] == pytest.approx(row["cash"] + row["shares"] * row["close"], rel=1e-12)
            key = (row["window"], row["session"])
            total[key] = total.get(key, 0.0) + row["equity"]
        for row in rows(chain, tables.EQUITY, name):
            assert row["equity"] == pytest.approx(total[row["window"], row["session"]], rel=1e-12), name


def test_statistics_are_stored_with_their_conventions_and_the_counted_trials(chain: Any) -> None:
    for name in STRATEGIES:
        for run in rows(chain, tables.RUNS, name):
            numbers = json.loads(run["statistics"])
            assert set(numbers["conventions"]) == {
                "periods_per_year",
                "ddof",
                "rf_annual",
                "compounding",
                "calendar",
            }
            assert numbers["validity"]["purge_sessions"] == 5
            trades = rows(chain, tables.TRADES, name, run["window"])
            assert numbers["trades"]["count"] == len(trades)
            assert sum(t["pnl"] for t in trades) == pytest.approx(numbers["returns"]["total_pnl"], abs=1e-6)
            if name not in YARDSTICKS:
                searched = rows(chain, tables.SWEEPS, name)[0]["trials_ever"]
                assert numbers["validity"]["trials"] >= searched > 5, "trials were run before the backtest"


def test_the_metric_line_of_training_jobs_is_logged(chain: Any) -> None:
    """The regular expressions are those of the SageMaker metric definitions."""
    job = chain.defs.resolve_job_def("backtest_job").get_subset(
        asset_selection={dg.AssetKey(["backtests", "sma_crossover"])}
    )
    result = job.execute_in_process(instance=chain.instance, run_config=QUIET)
    lines = [entry.user_message for entry in chain.instance.all_logs(result.run_id)]
    logged = [line for line in lines if re.search(r"Total PnL:(.*?)]", line)]
    assert len(logged) == 2, "one per window"
    run = rows(chain, tables.RUNS, "sma_crossover", "out_of_sample")[0]
    numbers = json.loads(run["statistics"])
    line = next(line for line in logged if "out_of_sample" in line)
    assert float(re.search(r"Total PnL:(.*?)]", line)[1]) == round(numbers["returns"]["total_pnl"], 2)  # type: ignore[index]
    assert float(re.search(r"Sharpe Ratio:(.*?),", line)[1]) == round(numbers["returns"]["sharpe"], 2)  # type: ignore[index]
    assert re.search(
        r"\[SQN:-?\d+\.\d\d, Sharpe Ratio:-?\d+\.\d\d, Final Portfolio:\d+\.\d\d, Total PnL:-?\d+\.\d\d\]",
        line,
    )


def test_one_strategy_run_again_replaces_its_own_rows_with_the_same(chain: Any) -> None:
    before = {spec.name: chain.read(spec) for spec in SLICED}
    snapshots = {spec.name: len(chain.warehouse.snapshots(spec)) for spec in SLICED}
    job = chain.defs.resolve_job_def("backtest_job").get_subset(
        asset_selection={dg.AssetKey(["backtests", "daily_breakout"])}
    )
    assert job.execute_in_process(instance=chain.instance, run_config=QUIET).success
    for spec in SLICED:
        assert chain.read(spec).equals(before[spec.name]), spec.name
        assert len(chain.warehouse.snapshots(spec)) == snapshots[spec.name] + 1


def test_other_parameters_change_one_strategy_and_no_other(chain: Any) -> None:
    others = {name: rows(chain, tables.TRADES, name) for name in STRATEGIES if name != "sma_crossover"}
    before = rows(chain, tables.TRADES, "sma_crossover")
    job = chain.defs.resolve_job_def("backtest_job").get_subset(
        asset_selection={dg.AssetKey(["backtests", "sma_crossover"])}
    )
    config = {
        "ops": {"backtests__sma_crossover": {"config": {"parameters": {"fast_period": 5, "slow_period": 10}}}}
    }
    assert job.execute_in_process(instance=chain.instance, run_config={**QUIET, **config}).success
    assert rows(chain, tables.TRADES, "sma_crossover") != before
    assert {name: rows(chain, tables.TRADES, name) for name in others} == others
    assert job.execute_in_process(instance=chain.instance, run_config=QUIET).success
    assert rows(chain, tables.TRADES, "sma_crossover") == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"parameters": {"window": 3}}, "sma_crossover has no parameter window; it has "),
        (
            {"parameters": {"fast_period": 30, "slow_period": 10}},
            "slow_period = 10 must be above fast_period = 30",
        ),
        ({"symbols": ["TSLA"]}, "no bars of TSLA; there are bars of AAPL, IBM, MSFT"),
        ({"first_session": "soon"}, "first_session = 'soon' is not a date like 2012-04-03"),
        ({"first_session": "2031-01-02"}, "market/bars holds no bar between 2031-01-02"),
        ({"in_sample_last": "2012-04-03"}, "leave 0 out of sample"),
        ({"half_spread_bps": -1.0}, "half_spread_bps = -1.0 must be a number of at least 0"),
        ({"initial_cash": 0.0}, "initial_cash = 0.0 must be a number above 0"),
    ],
)
def test_a_wrong_configuration_fails_with_its_reason_and_changes_nothing(
    chain: Any, config: dict[str, Any], message: str
) -> None:
    before = {spec.name: chain.warehouse.snapshot_id(spec) for spec in SLICED}
    job = chain.defs.resolve_job_def("backtest_job").get_subset(
        asset_selection={dg.AssetKey(["backtests", "sma_crossover"])}
    )
    # Checks of a failed run stay open: not in the chain's log.
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance,
            run_config={**QUIET, "ops": {"backtests__sma_crossover": {"config": config}}},
            raise_on_error=False,
        )
    assert not result.success
    assert message in str(result.failure_data_for_node("backtests__sma_crossover").error)
    assert {spec.name: chain.warehouse.snapshot_id(spec) for spec in SLICED} == before


def test_the_sweep_is_stored_counted_and_not_run_twice(chain: Any) -> None:
    trials = chain.read(tables.PARAMETER_SWEEP)
    for name in STRATEGIES:
        if name in YARDSTICKS:
            continue
        newest = rows(chain, tables.SWEEPS, name)[0]
        mine = trials.filter(pc.equal(trials["strategy"], name)).to_pylist()
        searched = [row for row in mine if row["study"] == newest["study"]]
        assert len(searched) == newest["trials"] == 12
        assert {row["scope"] for row in searched} == {"in_sample"}
        assert newest["trials_ever"] >= sum(row["sharpe"] is not None for row in searched)
        best = max(row["sharpe"] for row in searched if row["sharpe"] is not None)
        assert newest["objective_value"] == best
        steps = rows(chain, tables.WALK_FORWARD, name)
        assert len(steps) >= 3
        for step in steps:
            assert step["train_last"] < step["test_first"]
            scope = [
                r for r in mine if r["scope"] == f"fold {step['fold']}" and r["session"] == step["train_last"]
            ]
            assert step["in_sample"] == max(r["sharpe"] for r in scope if r["sharpe"] is not None)
    result = chain.run(
        "backtest_job", {"backtests__parameter_sweep": {"method": "random", "trials": 12, "seed": 7}}
    )
    assert result.success
    said = [entry.user_message for entry in chain.instance.all_logs(result.run_id)]
    assert sum("12 trials, 12 of them found finished" in line for line in said) == len(STRATEGIES) - len(
        YARDSTICKS
    )
    again = chain.read(tables.PARAMETER_SWEEP)
    swept = [table.filter(pc.not_equal(table["scope"], "backtest")).num_rows for table in (trials, again)]
    assert swept[0] == swept[1], "backtests in between are trials, too; of the sweep's there is none more"


def test_swept_parameters_are_traded_after_the_sessions_they_were_chosen_on(chain: Any) -> None:
    for name in ("daily_breakout", "mlp_long_short"):
        job = chain.defs.resolve_job_def("backtest_job").get_subset(
            asset_selection={dg.AssetKey(["backtests", name])}
        )
        config = {"ops": {f"backtests__{name}": {"config": {"use_swept_parameters": True}}}}
        assert job.execute_in_process(instance=chain.instance, run_config={**QUIET, **config}).success
        newest = rows(chain, tables.SWEEPS, name)[0]
        run = rows(chain, tables.RUNS, name, "out_of_sample")[0]
        assert json.loads(newest["parameters"]).items() <= json.loads(run["parameters"]).items()
        assert run["first_session"] > newest["session"]
        assert job.execute_in_process(instance=chain.instance, run_config=QUIET).success


def test_pages_and_their_json_lie_where_the_readme_says(chain: Any) -> None:
    reports = chain.home / "reports"
    index = (reports / "index.html").read_text()
    for name in STRATEGIES:
        assert f"backtests/{name}.html" in index
        assert (reports / "backtests" / f"{name}.html").stat().st_size > 10_000
        numbers = json.loads((reports / "backtests" / f"{name}.json").read_text())["statistics"]
        stored = json.loads(rows(chain, tables.RUNS, name, "out_of_sample")[0]["statistics"])
        assert numbers | {"validity": None} == stored | {"validity": None}
        if name not in YARDSTICKS:
            assert numbers["validity"]["trials"] >= stored["validity"]["trials"] > 5
    assert "models/mlp_technical-v1.html" in index
    for name in ("mlp_sentiment_long_short", "mlp_enhanced_long_short"):
        assert "simulated" in (reports / "backtests" / f"{name}.html").read_text()


# -- strategies that are not ours ----------------------------------------------------------------------------------

PEEKING = '''
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from quant_assets.strategies.strategy import ENTER_LONG, EXIT_LONG, Strategy

@dataclass(frozen=True, kw_only=True)
class Peeking(Strategy):
    """Holds the days that will rise, because it reads tomorrow's close."""
    name: ClassVar[str] = "peeking"

    def decide(self, bars, probability=None):
        tomorrow = np.append(bars.adj_close[1:], bars.adj_close[-1])
        return np.where(tomorrow > bars.adj_close, ENTER_LONG, EXIT_LONG).astype(np.int8)
'''
FOREKNOWING = '''
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from quant_assets.strategies.sma_crossover import SmaCrossover

@dataclass(frozen=True, kw_only=True)
class Foreknowing(SmaCrossover):
    """A slow crossover that trades a handful of times, and knows each cross one session early."""
    name: ClassVar[str] = "foreknowing"
    fast_period: int = 20
    slow_period: int = 100

    def decide(self, bars, probability=None):
        return np.append(super().decide(bars)[1:], np.int8(0))
'''
MOOD = '''
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from quant_assets.strategies.strategy import ENTER_LONG, EXIT_LONG, Strategy

@dataclass(frozen=True, kw_only=True)
class Mood(Strategy):
    """Long after a rise of so many days; cannot count to three."""
    name: ClassVar[str] = "mood"
    days: int = 1

    def decide(self, bars, probability=None):
        if self.days == 3:
            raise ArithmeticError("three days are too many")
        rises = np.zeros(len(bars), dtype=bool)
        rises[self.days:] = bars.adj_close[self.days:] > bars.adj_close[:-self.days]
        return np.where(rises, ENTER_LONG, EXIT_LONG).astype(np.int8)
'''


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three strategies, each one file and one line of registration."""
    (tmp_path / "peeking_strategy.py").write_text(PEEKING)
    (tmp_path / "foreknowing_strategy.py").write_text(FOREKNOWING)
    (tmp_path / "mood_strategy.py").write_text(MOOD)
    (tmp_path / "mood.yaml").write_text("parameters:\n  days: {type: int, low: 1, high: 5}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(strategies.STRATEGIES, "peeking", "peeking_strategy:Peeking")
    monkeypatch.setitem(strategies.STRATEGIES, "foreknowing", "foreknowing_strategy:Foreknowing")
    monkeypatch.setitem(strategies.STRATEGIES, "mood", "mood_strategy:Mood")
    for module in ("peeking_strategy", "foreknowing_strategy", "mood_strategy"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def materialize(chain: Any, asset: dg.AssetsDefinition, config: dict[str, Any] | None = None) -> Any:
    """On the filled home, but with an event log of its own: what fails here is no failure of the chain."""
    name = "__".join(asset.key.path)
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [asset],
            instance=instance,
            resources={
                "warehouse": chain.warehouse,
                "registry": chain.registry,
                "compute": Compute("sequential"),
            },
            run_config={**QUIET, "ops": {name: {"config": config or {}}}},
            raise_on_error=False,
        )


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", ["peeking", "foreknowing"])
def test_a_strategy_that_reads_tomorrow_is_caught_and_nothing_of_it_is_stored(chain: Any, name: str) -> None:
    before = {spec.name: chain.warehouse.snapshot_id(spec) for spec in SLICED}
    result = materialize(chain, backtest_asset(name))
    checks = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert not checks["no_look_ahead"].passed
    assert checks["no_look_ahead"].blocking
    assert checks["accounts_balance"].passed
    assert "decisions on AAPL differ from" in str(checks["no_look_ahead"].metadata["problems"].value)
    assert not result.success
    assert not result.get_asset_materialization_events()
    assert {spec.name: chain.warehouse.snapshot_id(spec) for spec in SLICED} == before


@pytest.mark.usefixtures("foreign")
def test_a_new_strategy_is_one_file_and_one_line(chain: Any) -> None:
    assert materialize(chain, backtest_asset("mood")).success
    assert rows(chain, tables.TRADES, "mood", "out_of_sample")


def test_rows_of_two_runs_are_not_shown_as_one(chain: Any) -> None:
    """As a kill between the writes of two tables leaves them."""
    from quant_assets.backtests.engine import BacktestError
    from quant_assets.backtests.results import tear_sheets
    from quant_assets.backtests.sweep import TrialStore

    store = TrialStore(chain.home / "sweeps.db")
    whole = chain.warehouse.read(tables.EQUITY, only="flat")
    other = whole.set_column(
        whole.column_names.index("result"), "result", pa.array(["another run"] * whole.num_rows)
    )
    chain.warehouse.write(tables.EQUITY, other, only="flat")
    with pytest.raises(BacktestError, match=r"two runs of flat: .* Materialize backtests/flat again"):
        tear_sheets(chain.warehouse, ["flat"], store)
    chain.warehouse.write(tables.EQUITY, whole, only="flat")
    assert len(tear_sheets(chain.warehouse, ["flat"], store)) == 1


@pytest.mark.usefixtures("foreign")
def test_a_strategy_that_cannot_be_swept_is_named_and_the_others_go_on(chain: Any, tmp_path: Path) -> None:
    (tmp_path / "peeking.yaml").write_text("parameters:\n  nothing: {type: int, low: 1, high: 2}\n")
    result = materialize(chain, parameter_sweep, {"strategies": ["peeking", "mood"], "test_sessions": 0})
    assert result.success
    shown = str(result.get_asset_check_evaluations()[0].metadata["failed"].value)
    assert "peeking" in shown
    assert "the strategy has no such parameter; it has size, sizing" in shown
    assert rows(chain, tables.SWEEPS, "mood")
    assert not rows(chain, tables.SWEEPS, "peeking")
    result = materialize(chain, parameter_sweep, {"strategies": ["peeking"]})
    assert not result.success
    assert "no strategy could be swept: peeking" in str(
        result.failure_data_for_node("backtests__parameter_sweep")
    )


def test_parameters_found_by_a_sweep_are_traded_after_what_it_saw(chain: Any) -> None:
    """Also when they are typed in by hand."""
    newest = rows(chain, tables.SWEEPS, "mlp_long_short")[0]
    job = chain.defs.resolve_job_def("backtest_job").get_subset(
        asset_selection={dg.AssetKey(["backtests", "mlp_long_short"])}
    )
    config = {
        "ops": {"backtests__mlp_long_short": {"config": {"parameters": json.loads(newest["parameters"])}}}
    }
    assert job.execute_in_process(instance=chain.instance, run_config={**QUIET, **config}).success
    assert rows(chain, tables.RUNS, "mlp_long_short")[0]["first_session"] > newest["session"]
    assert job.execute_in_process(instance=chain.instance, run_config=QUIET).success


@pytest.mark.usefixtures("foreign")
def test_failed_trials_are_reported_with_their_parameters_and_the_others_go_on(chain: Any) -> None:
    result = materialize(
        chain, parameter_sweep, {"strategies": ["mood"], "test_sessions": 0, "min_trades": 1}
    )
    assert result.success
    check = result.get_asset_check_evaluations()[0]
    assert (check.check_name, check.passed, check.severity) == (
        "no_failed_trials",
        False,
        dg.AssetCheckSeverity.WARN,
    )
    shown = str(check.metadata["failed"].value)
    assert '{"days": 3}' in shown
    assert "ArithmeticError: three days are too many" in shown
    newest = rows(chain, tables.SWEEPS, "mood")[0]
    assert (newest["trials"], newest["failed"]) == (4, 1)
    trials = chain.read(tables.PARAMETER_SWEEP)
    failed = trials.filter(pc.equal(trials["state"], "failed")).to_pylist()
    assert [row["parameters"] for row in failed if row["strategy"] == "mood"] == ['{"days": 3}']


# -- what alternative data add -------------------------------------------------------------------------------------

SMALL = {"seeds": 2, "max_epochs": 5, "resamples": 100}


def ablated(chain: Any, warehouse: Warehouse, config: dict[str, Any] = SMALL) -> Any:
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [sentiment_ablation],
            instance=instance,
            resources={"warehouse": warehouse},
            run_config={**QUIET, "ops": {"backtests__sentiment_ablation": {"config": config}}},
            raise_on_error=False,
        )


@pytest.fixture(scope="module")
def elsewhere(chain: Any, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Bars, features and labels of the filled home, where an ablation changes no other test's report."""
    warehouse = Warehouse(tmp_path_factory.mktemp("ablation"))
    for spec in READ:
        warehouse.write(spec, chain.read(spec))
    return warehouse


def test_an_ablation_is_a_table_a_sentence_and_a_figure_and_the_same_again(
    chain: Any, elsewhere: Warehouse
) -> None:
    assert ablation_view(elsewhere) is None
    first = ablated(chain, elsewhere)
    assert first.success
    (check,) = first.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.blocking) == ("no_suspicious_sentiment_gain", True, True)
    found = elsewhere.read(tables.SENTIMENT_ABLATION)
    assert found.num_rows == 28
    shared = found.to_pylist()[0]
    assert (shared["seeds"], shared["news_source"], shared["session"]) == (2, "simulated", chain.nights[-1])
    assert shared["sessions"] * len(chain.symbols) == shared["rows"]
    assert shared["hindsight_share"] == 1, "the sample's lists of competitors are of 2013"
    (shown,) = first.asset_materializations_for_node("backtests__sentiment_ablation")
    view = ablation_view(elsewhere)
    assert view is not None
    assert shown.metadata["conclusion"].value == view.conclusion
    assert [row["rung"] for row in view.rows[::7]] == list(RUNGS)
    assert shown.metadata["differences of the AUC"].value.startswith("![")
    assert shown.metadata["differences"].value.count("\n") == 1 + 21
    assert ablated(chain, elsewhere).success
    assert elsewhere.read(tables.SENTIMENT_ABLATION).equals(found)


def test_the_last_rung_is_judged_like_the_registered_model(chain: Any, elsewhere: Warehouse) -> None:
    """One seed, the default hyperparameters, the window of the champion: the AUC is the one in the registry."""
    champion = chain.registry.champion("mlp_enhanced")
    end = champion.bundle["windows"]["in_sample_last"]
    assert ablated(chain, elsewhere, {"seeds": 1, "resamples": 100, "in_sample_last": end}).success
    stored = {(r["rung"], r["side"]): r for r in elsewhere.read(tables.SENTIMENT_ABLATION).to_pylist() if r["measure"] == "auc"}  # fmt: skip
    metrics = chain.registry.client.get_run(champion.run_id).data.metrics
    assert champion.bundle["windows"]["out_of_sample_first"] == str(
        stored["industry", "long"]["first_session"]
    )
    nights = len(CALENDAR.sessions(chain.last, chain.nights[-1])) - 1
    assert stored["industry", "long"]["rows"] == metrics["out_of_sample.long.rows"] + nights * len(
        chain.symbols
    )
    for side in ("long", "short"):
        # The nights after the training brought some more rows to judge by.
        assert stored["industry", side]["value"] == pytest.approx(
            metrics[f"out_of_sample.{side}.auc"], abs=0.01
        )


def test_the_strategy_takes_the_bracket_that_the_labels_were_made_with(
    elsewhere: Warehouse, chain: Any, tmp_path: Path
) -> None:
    """As live signals do: a target twice the stop breaks even at a third, so more probabilities lie above it."""
    warehouse = Warehouse(tmp_path)
    for spec in READ:
        warehouse.write(spec, elsewhere.read(spec))
    assert ablated(chain, warehouse).success
    before = {
        (r["rung"], r["measure"], r["side"]): r for r in warehouse.read(tables.SENTIMENT_ABLATION).to_pylist()
    }
    outcomes = elsewhere.read(LABELS)
    for name, value in (("profit_target_pct", 4.0), ("stop_loss_pct", 2.0)):
        at = outcomes.column_names.index(name)
        outcomes = outcomes.set_column(
            at, outcomes.schema.field(at), pa.array([value] * outcomes.num_rows, pa.float64())
        )
    warehouse.write(LABELS, outcomes)
    result = ablated(chain, warehouse)
    (shown,) = result.asset_materializations_for_node("backtests__sentiment_ablation")
    bracket = shown.metadata["bracket of labels and strategy"].value
    assert "4" in bracket
    assert "2" in bracket
    for row in warehouse.read(tables.SENTIMENT_ABLATION).to_pylist():
        was = before[row["rung"], row["measure"], row["side"]]
        if row["measure"] == "trades":
            assert row["value"] != was["value"]
        if row["measure"] == "auc":
            assert row["value"] == was["value"]


def test_a_join_that_leaks_is_caught_and_nothing_is_stored(
    chain: Any, elsewhere: Warehouse, tmp_path: Path
) -> None:
    """What competitors are said to be told is what will happen."""
    warehouse = Warehouse(tmp_path)
    for spec in READ:
        warehouse.write(spec, elsewhere.read(spec))
    peers, labels = elsewhere.read(PEERS), elsewhere.read(LABELS)
    will = {(r["symbol"], r["session"]): 2.0 * r["long"] - r["short"] for r in labels.to_pylist()}
    keys = zip(peers["symbol"].to_pylist(), peers["session"].to_pylist(), strict=True)
    leak = pa.array([will.get(key, 0.0) for key in keys], pa.float64())
    at = peers.column_names.index("competitor_sentiment_sma_1")
    warehouse.write(PEERS, peers.set_column(at, peers.schema.field(at), leak))
    result = ablated(chain, warehouse, {"seeds": 1, "resamples": 100})
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "competitors lifts the AUC of long by +0." in str(check.description)
    assert "own sentiment" not in str(check.description)
    assert not result.success
    assert not result.get_asset_materialization_events()
    assert ablation_view(warehouse) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seeds": 0}, "seeds = 0, resamples = 400: at least 1 seed"),
        ({"in_sample_fraction": 0.001}, "labelled sessions are too few"),
        ({"half_spread_bps": -1.0}, "half_spread_bps = -1.0 must be a number of at least 0"),
    ],
)
def test_an_ablation_that_cannot_be_says_why(
    chain: Any, elsewhere: Warehouse, config: dict[str, Any], message: str
) -> None:
    result = ablated(chain, elsewhere, config)
    assert not result.success
    assert message in str(result.failure_data_for_node("backtests__sentiment_ablation"))


def test_there_is_an_asset_for_every_registered_strategy() -> None:
    assert [asset.key.path[-1] for asset in BACKTESTS] == list(STRATEGIES)
