"""The agents judged as assets: what `train_agents_job` left in the filled home, and what happens when something is wrong."""

import datetime as dt
import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from quant_assets.backtests import agent_assets, tables
from quant_assets.environments.market_making import MarketMaking, MarketMakingParameters
from quant_assets.launch import QUIET
from quant_assets.market.tables import BARS, MINUTE_BARS
from quant_assets.partitions import CALENDAR, settings
from quant_assets.posterior.tables import HESTON_FITS
from quant_assets.simulation.markets import SPLIT, market_making_market, part_of
from quant_assets.simulation.transitions import Paths, read_paths
from quant_resources.iceberg import TableSpec, Warehouse
from quant_resources.registry import ModelRegistry

AGENTS = {"execution": "sac_execution", "market_making": "sac_market_maker", "portfolio": "sac_portfolio"}
LEVELS = {
    "execution": tables.EXECUTION,
    "market_making": tables.MARKET_MAKING,
    "portfolio": tables.PORTFOLIO,
}
BASELINES = {
    "execution": {"twap", "vwap", "almgren_chriss"},
    "market_making": {"avellaneda_stoikov", "fixed_spread", "cartea_jaimungal"},
    "portfolio": {"equal_weight", "buy_and_hold", "minimum_variance"},
}
CHECKS = {
    "execution": {"agent_fits_environment", "schedule_sums_to_order", "agent_beats_or_matches_baseline"},
    "market_making": {"agent_fits_environment", "inventory_within_limit", "agent_beats_or_matches_baseline"},
    "portfolio": {
        "agent_fits_environment",
        "out_of_sample_only",
        "no_look_ahead",
        "agent_beats_or_matches_baseline",
    },
}

# Of the portfolio's windows, in the order in which they must lie.
BOUNDARIES = ("in_sample_last", "out_of_sample_first", "gate_last", "unseen_first", "out_of_sample_last")


def rows(chain: Any, spec: TableSpec) -> list[dict[str, Any]]:
    return chain.warehouse.read(spec).to_pylist()


def whole(chain: Any, name: str) -> list[dict[str, Any]]:
    """Rows of the unseen days or sessions, all symbols together."""
    windows = ("unseen", "out_of_sample")
    return [row for row in rows(chain, LEVELS[name]) if row["symbol"] == "all" and row["window"] in windows]


def stored_days(chain: Any) -> dict[str, Paths]:
    folder = chain.home / "simulation" / "intraday_paths"
    return {path.stem: read_paths(path) for path in sorted(folder.glob("*.parquet"))}


def materialize(
    home: Path, name: str, config: dict[str, Any] | None = None, warehouse: Warehouse | None = None
) -> dg.ExecuteInProcessResult:
    """An asset alone, in a log of its own: a failed run leaves nothing in the chain's."""
    asset = getattr(agent_assets, name)
    ops = {"ops": {f"backtests__{name}": {"config": config}}} if config else {}
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [asset],
            instance=instance,
            resources={"warehouse": warehouse or Warehouse(home), "registry": ModelRegistry(home)},
            run_config={**QUIET, **ops},
            raise_on_error=False,
        )


def message(result: dg.ExecuteInProcessResult, name: str) -> str:
    assert not result.success
    return str(result.failure_data_for_node(f"backtests__{name}").user_failure_data.description)


@pytest.mark.parametrize("name", AGENTS)
def test_every_check_ran_and_the_blocking_ones_passed(chain: Any, name: str) -> None:
    key = dg.AssetKey(["backtests", name])
    graph = chain.defs.resolve_asset_graph()
    checks = graph.get_check_keys_for_assets({key})
    assert {check.name for check in checks} == CHECKS[name]
    for check in checks:
        record = chain.instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
        if graph.get(check).blocking:
            assert record.status.value == "SUCCEEDED", check
        else:
            evaluation = record.event.dagster_event.asset_check_evaluation_data
            assert evaluation.severity == dg.AssetCheckSeverity.WARN
            assert "95 % interval" in evaluation.description


@pytest.mark.parametrize("name", AGENTS)
def test_tables_hold_every_strategy_and_every_seed_once(chain: Any, name: str) -> None:
    champion = chain.registry.champion(AGENTS[name])
    seeds = [entry["seed"] for entry in champion.bundle["seeds"]]
    found = whole(chain, name)
    assert {row["strategy"] for row in found} == {*BASELINES[name], "sac"}
    assert len(found) == len(BASELINES[name]) + len(seeds) + 1
    assert sorted(row["seed"] for row in found if row["seeds"] == 1 and row["seed"] is not None) == sorted(
        seeds
    )
    assert [row["seed"] for row in found if row["chosen"]] == [champion.bundle["chosen_seed"]]
    assert {(row["model"], row["model_version"]) for row in found} == {(AGENTS[name], champion.version)}
    assert all(row["available_at"] == CALENDAR.close(row["session"]) for row in found)
    pairs = [
        row
        for row in chain.warehouse.read(tables.AGENT_DIFFERENCES, only=name).to_pylist()
        if row["symbol"] == "all" and row["window"] in ("unseen", "out_of_sample")
    ]
    assert len(pairs) == len(BASELINES[name]) * 2 * (len(seeds) + 1)
    assert {row["baseline"] for row in pairs} == BASELINES[name]
    for row in pairs:
        assert row["low"] <= row["difference"] <= row["high"]


def test_simulated_days_are_the_unseen_ones_and_a_thousand_where_there_are_enough(chain: Any) -> None:
    stored = stored_days(chain)
    unseen = {symbol: part_of(found.days, "unseen") for symbol, found in stored.items()}
    available = sum(days.days for days in unseen.values())
    for name in ("execution", "market_making"):
        paths = {row["paths"] for row in whole(chain, name)}
        assert len(paths) == 1
        assert paths.pop() == min(available, agent_assets.ExecutionBacktestConfig().max_paths)
        if available >= agent_assets.WANTED_PATHS:
            assert whole(chain, name)[0]["paths"] >= agent_assets.WANTED_PATHS
    for symbol, found in stored.items():
        seen = [part_of(found.days, part) for part in SPLIT if part != "unseen"]
        others = set(np.concatenate([days.draw_id for days in seen]).tolist())
        assert not others & set(unseen[symbol].draw_id.tolist())


def test_levels_and_differences_are_one_evaluation(chain: Any) -> None:
    for name, measure in (
        ("execution", "implementation_shortfall_bps"),
        ("market_making", "objective_dollars"),
    ):
        level = {(row["strategy"], row["seed"]): row[f"{measure}_mean"] for row in whole(chain, name)}
        for row in chain.warehouse.read(tables.AGENT_DIFFERENCES, only=name).to_pylist():
            if row["measure"] == measure and row["symbol"] == "all" and row["window"] == "unseen":
                expected = level["sac", row["seed"]] - level[row["baseline"], None]
                assert row["difference"] == pytest.approx(expected, abs=1e-9)


def test_nothing_that_is_reported_was_learned_from_or_decided_the_promotion(chain: Any) -> None:
    champion = chain.registry.champion("sac_portfolio")
    windows = {name: dt.date.fromisoformat(champion.bundle["windows"][name]) for name in BOUNDARIES}
    assert list(windows.values()) == sorted(set(windows.values()))
    found = whole(chain, "portfolio")
    assert {row["first_session"] for row in found} == {windows["unseen_first"]}
    equity = rows(chain, tables.PORTFOLIO_EQUITY)
    # Paid two sessions after the first decision.
    assert min(row["session"] for row in equity) == CALENDAR.shift(windows["unseen_first"], 2)
    page = html.unescape((chain.home / "reports" / "backtests" / "portfolio.html").read_text())
    assert f"the gate's last one is {windows['gate_last']}" in page
    by_name: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for row in equity:
        by_name.setdefault((row["strategy"], row["seed"]), []).append(row)
    lengths = {len(values) for values in by_name.values()}
    assert lengths == {found[0]["decisions"]}
    assert len(by_name) == len(BASELINES["portfolio"]) + len(champion.bundle["seeds"])
    growth = {(row["strategy"], row["seed"]): row["annual_log_growth_pct"] for row in found}
    for key, values in by_name.items():
        last = max(values, key=lambda row: row["session"])["equity"]
        assert 100 * 252 * np.log(last) / len(values) == pytest.approx(growth[key], abs=1e-9)


def with_windows(
    chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: dict[str, str]
) -> tuple[dg.ExecuteInProcessResult, Warehouse]:
    """The portfolio's evaluation of the champion with other windows in its bundle, in a warehouse of its own."""
    champion = chain.registry.champion("sac_portfolio")
    other = replace(champion, bundle={**champion.bundle, "windows": windows})
    monkeypatch.setattr(ModelRegistry, "champion", lambda self, name: other)
    monkeypatch.setattr(agent_assets, "settings", lambda: settings().model_copy(update={"home": tmp_path}))
    warehouse = Warehouse(tmp_path)
    warehouse.write(BARS, chain.warehouse.read(BARS))
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [agent_assets.portfolio],
            instance=instance,
            resources={"warehouse": warehouse, "registry": chain.registry},
            run_config=QUIET,
            raise_on_error=False,
        )
    return result, warehouse


def test_a_champion_of_before_is_judged_on_all_that_it_did_not_learn_from_and_the_page_says_so(
    chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = chain.registry.champion("sac_portfolio").bundle["windows"]
    kept = {name: stored[name] for name in ("in_sample_last", "out_of_sample_first")}
    result, warehouse = with_windows(chain, tmp_path, monkeypatch, kept)
    assert result.success
    first = CALENDAR.shift(dt.date.fromisoformat(kept["in_sample_last"]), 1)
    assert {row["first_session"] for row in warehouse.read(tables.PORTFOLIO).to_pylist()} == {first}
    page = html.unescape((tmp_path / "reports" / "backtests" / "portfolio.html").read_text())
    assert "those that decided on its promotion as well" in page
    assert "Train it again (train_agents_job)" in page


def test_a_decision_on_a_session_of_the_gate_is_not_reported(
    chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = chain.registry.champion("sac_portfolio").bundle["windows"]
    result, warehouse = with_windows(
        chain, tmp_path, monkeypatch, {**stored, "unseen_first": stored["gate_last"]}
    )
    assert f"the decision of {stored['gate_last']} is not after {stored['gate_last']}" in message(
        result, "portfolio"
    )
    assert not warehouse.read(tables.PORTFOLIO).num_rows


@pytest.mark.parametrize("name", AGENTS)
def test_the_page_exists_and_the_index_lists_it(chain: Any, name: str) -> None:
    folder = chain.home / "reports" / "backtests"
    page = (folder / f"{name}.html").read_text()
    assert f"Agents: {name.replace('_', ' ')}" in page
    assert page.count("data:image/png;base64,") >= 3
    assert "src='http" not in page
    facts = json.loads((folder / f"{name}.json").read_text())["agent"]
    index = html.unescape((chain.home / "reports" / "index.html").read_text())
    assert facts["verdict"] in index
    assert f"href='backtests/{name}.html'" in index
    assert len(facts["levels"]) >= len(BASELINES[name]) + 2


def test_a_second_run_leaves_identical_rows(chain: Any) -> None:
    for name in AGENTS:
        before = {
            spec.name: chain.warehouse.read(spec) for spec in (*LEVELS.values(), tables.AGENT_DIFFERENCES)
        }
        assert materialize(chain.home, name).success
        for spec in (*LEVELS.values(), tables.AGENT_DIFFERENCES):
            assert chain.warehouse.read(spec).equals(before[spec.name]), (name, spec.name)


def test_real_sessions_are_sold_on_where_minute_bars_are_stored(chain: Any, tmp_path: Path) -> None:
    """Invented minute bars around the posterior's last session, in a warehouse of their own beside the same days and agents."""
    (tmp_path / "simulation").symlink_to(chain.home / "simulation")
    warehouse = Warehouse(tmp_path)
    warehouse.write(HESTON_FITS, chain.warehouse.read(HESTON_FITS))
    symbol, stored = next(iter(stored_days(chain).items()))
    last = dt.date.fromisoformat(str(stored.info.posterior["session"]))
    sessions = CALENDAR.sessions(CALENDAR.shift(last, -7), CALENDAR.shift(last, 4))
    days, bars = stored.days, []
    for row, session in enumerate(sessions):
        for k in range(days.minutes):
            before, mid, half = days.mid[row, k], days.mid[row, k + 1], days.spread[row, k + 1] / 2
            bars.append(
                {
                    "symbol": symbol,
                    "session": session,
                    "ts": CALENDAR.opens(session) + dt.timedelta(minutes=k),
                    "available_at": CALENDAR.close(session),
                    "open": before,
                    "high": max(before, mid),
                    "low": min(before, mid),
                    "close": mid,
                    "volume": float(days.volume_shares[row, k]),
                    "bid": mid - half,
                    "ask": mid + half,
                    "bid_size": None,
                    "ask_size": None,
                    "source": "test",
                }
            )
    warehouse.write(MINUTE_BARS, pa.Table.from_pylist(bars, schema=MINUTE_BARS.arrow_schema))
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize(
            [agent_assets.execution],
            instance=instance,
            resources={"warehouse": warehouse, "registry": chain.registry},
            run_config=QUIET,
        ).success
    found = warehouse.read(tables.EXECUTION).to_pylist()
    paths = {row["window"]: row["paths"] for row in found if row["symbol"] == "all"}
    # Five sessions are needed to know a profile; those up to the posterior's last one shaped the simulation.
    assert paths["real_seen"] == 3
    assert paths["real"] == 4
    assert {row["session"] for row in found if row["window"] == "real"} == {sessions[-1]}
    assert materialize(chain.home, "execution").success  # the page is that of the filled home again


def test_the_market_maker_is_judged_on_the_days_that_it_was_trained_for(chain: Any) -> None:
    champion = chain.registry.champion("sac_market_maker")
    _, stored = next(iter(stored_days(chain).items()))
    market = market_making_market(
        part_of(stored.days, "unseen"), champion.bundle["market"]["minutes_per_step"]
    )
    environment = MarketMaking(market, MarketMakingParameters(**champion.bundle["parameters"]))
    assert environment.observation_names == tuple(champion.bundle["observation_names"])


def test_without_a_champion_or_days_the_way_out_is_said(chain: Any, tmp_path: Path) -> None:
    for name, model in AGENTS.items():
        assert f"materialize models/{model} (train_agents_job)" in message(
            materialize(tmp_path / "empty", name), name
        )
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [agent_assets.execution],
            instance=instance,
            resources={"warehouse": Warehouse(tmp_path / "dayless"), "registry": chain.registry},
            run_config=QUIET,
            raise_on_error=False,
        )
    assert "holds no simulated days" in message(result, "execution")
    assert "posterior_job" in message(result, "execution")


def test_a_window_without_sessions_is_refused_with_its_reason(chain: Any) -> None:
    first = chain.registry.champion("sac_portfolio").bundle["windows"]["in_sample_last"]
    before = chain.warehouse.read(tables.PORTFOLIO)
    result = materialize(chain.home, "portfolio", {"last_session": first})
    assert "no unseen session" in message(result, "portfolio")
    assert chain.warehouse.read(tables.PORTFOLIO).equals(before)
