"""The chain end to end on a small slice: real Dagster runs, Iceberg, DuckDB, MLflow, ONNX; no mocks.

One home is filled by the main job and two nights (fixture `chain`); the tests look at what came out, then repeat, break
and kill things.
"""

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from quant_assets.definitions import build_defs
from quant_assets.environments.portfolio import PortfolioEpisodes, PortfolioParameters
from quant_assets.features import tables as feature_tables
from quant_assets.launch import QUIET
from quant_assets.market import tables as market_tables
from quant_assets.models.assets import mlp_sentiment
from quant_assets.models.feature_sets import FEATURE_TABLES
from quant_assets.models.mlp import OnnxMlp
from quant_assets.models.portfolio_market import read_portfolio_market
from quant_assets.models.sac import OnnxPolicy
from quant_assets.partitions import CALENDAR, settings
from quant_assets.serving.signals import follow
from quant_assets.serving.tables import LIVE_SIGNALS
from quant_resources.iceberg import Warehouse
from quant_resources.registry import ModelRegistry
from quant_resources.sources.sample import SampleSource

CLASSIFIERS = ("mlp_technical", "mlp_sentiment", "mlp_enhanced")
TABLES = (
    market_tables.BARS,
    market_tables.NEWS,
    market_tables.SECURITIES,
    feature_tables.TECHNICAL,
    feature_tables.SENTIMENT,
    feature_tables.PEERS,
    feature_tables.LABELS,
    LIVE_SIGNALS,
)


def test_every_table_holds_its_sessions(chain: Any) -> None:
    sessions = CALENDAR.sessions(chain.first, chain.nights[-1])
    bars = chain.read(market_tables.BARS)
    assert bars.num_rows == len(sessions) * len(chain.symbols)
    assert sorted(set(bars["session"].to_pylist())) == sessions
    assert chain.read(feature_tables.TECHNICAL).num_rows == (len(sessions) - 20) * len(chain.symbols)
    assert chain.read(feature_tables.SENTIMENT).num_rows == (len(sessions) - 15) * len(chain.symbols)
    assert chain.read(feature_tables.PEERS).num_rows == (len(sessions) - 15) * len(chain.symbols)
    assert chain.read(feature_tables.LABELS).num_rows == (len(sessions) - 5) * len(chain.symbols)


def test_the_range_was_one_commit_and_each_night_one_more(chain: Any) -> None:
    for spec in TABLES:
        expected = 1 if spec is market_tables.SECURITIES else 1 + len(chain.nights)
        assert len(chain.warehouse.snapshots(spec)) == expected, spec.name
    newest = chain.warehouse.snapshots(market_tables.BARS)[-1]["summary"]
    assert newest["quant.partition"] == f"{chain.nights[-1]}..{chain.nights[-1]}"
    assert newest["quant.run_id"]


def test_every_session_is_a_materialized_partition(chain: Any) -> None:
    sessions = [session.isoformat() for session in CALENDAR.sessions(chain.first, chain.nights[-1])]
    for name in ("market/bars", "features/technical", "serving/live_signals"):
        key = dg.AssetKey(name.split("/"))
        assert chain.instance.get_materialized_partitions(key) == set(sessions), name


def test_every_check_ran_and_only_the_expected_one_warns(chain: Any) -> None:
    graph = chain.defs.resolve_asset_graph()
    latest = {
        key: chain.instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
        for key in graph.asset_check_keys
        # nothing is deployed in the filled home; tests/test_deployment_jobs.py runs these
        if not key.asset_key.path[-1].endswith("_endpoint")
    }
    assert [key.to_user_string() for key, record in latest.items() if record is None] == []
    failed = {key.to_user_string() for key, record in latest.items() if record.status.value != "SUCCEEDED"}
    # The slice ends long before the sample does, and that is what this check is there to say; and a model without jumps
    # does not explain IBM of 2011; and the sample's lists of competitors are of 2013, which their own check tells. What agents are worth after seconds of training is no matter of right or wrong: they may lose
    # to rules, or be one (an untrained execution agent sells like VWAP).
    open_question = {
        f"backtests/{name}:agent_beats_or_matches_baseline"
        for name in ("execution", "market_making", "portfolio")
    }
    assert failed - open_question == {
        "market/bars:newest_session",
        "posterior/heston:predicts_the_data",
        "features/peers:competitors_known_then",
    }


def test_nightly_rows_equal_those_of_a_full_rebuild_bit_for_bit(chain: Any, tmp_path: Path) -> None:
    rebuilt = Warehouse(tmp_path / "rebuilt")
    defs = build_defs(
        {"source": SampleSource(symbols=chain.symbols, seed=settings().seed), "warehouse": rebuilt}
    )
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.define_asset_job("j", selection=dg.AssetSelection.groups("market", "features"))
        whole = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("j")
        assert whole.execute_in_process(
            instance=instance, tags=chain.range_tags(chain.first, chain.nights[-1]), run_config=QUIET
        ).success
    for spec in TABLES[:-1]:
        assert rebuilt.read(spec).equals(chain.read(spec)), spec.name


def test_a_second_run_leaves_identical_rows_and_one_more_snapshot(chain: Any) -> None:
    before = {spec.name: (chain.read(spec), len(chain.warehouse.snapshots(spec))) for spec in TABLES}
    assert chain.night(chain.nights[-1]).success
    for spec in TABLES:
        rows, snapshots = before[spec.name]
        now = chain.read(spec)
        if spec is LIVE_SIGNALS:
            # Which snapshot of the features a signal was made from is the one thing that a second run changes.
            rows, now = (table.drop_columns(["feature_snapshots"]) for table in (rows, now))
        assert now.equals(rows), spec.name
        expected = snapshots if spec is market_tables.SECURITIES else snapshots + 1
        assert len(chain.warehouse.snapshots(spec)) == expected, spec.name


def test_the_registry_holds_champions_with_their_lineage(chain: Any) -> None:
    for name, inputs in (("mlp_technical", 31), ("mlp_sentiment", 47), ("mlp_enhanced", 79)):
        champion = chain.registry.champion(name)
        assert champion.version == 1
        assert len(champion.bundle["inputs"]) == inputs
        lineage = champion.bundle["lineage"]
        assert lineage["feature_schema_hash"]
        assert lineage["git_commit"]
        assert lineage["seed"] == str(settings().seed)
        assert lineage["snapshot.features.technical"] == str(
            chain.warehouse.snapshots(feature_tables.TECHNICAL)[0]["snapshot_id"]
        )
        assert lineage["news_source"] == ("none" if name == "mlp_technical" else "simulated")
        run = chain.registry.client.get_run(champion.run_id)
        assert run.data.tags["git_commit"] == lineage["git_commit"]
        metrics = run.data.metrics
        for side in ("long", "short"):
            low, value, high = (metrics[f"out_of_sample.{side}.{k}"] for k in ("auc_low", "auc", "auc_high"))
            assert low <= value <= high
            assert 0.3 < value < 0.7, "an edge this large on daily bars is a leak"
            assert metrics[f"out_of_sample.{side}.base_rate.brier"] > 0
            assert metrics[f"out_of_sample.{side}.logistic_regression.auc"] > 0


def test_every_model_has_a_report_that_stands_alone(chain: Any) -> None:
    for name in CLASSIFIERS:
        page = (chain.home / "reports" / "models" / f"{name}-v1.html").read_text()
        assert f"{name} version 1 (champion)" in page
        assert page.count("data:image/png;base64,") == 4
        assert "logistic regression" in page
        assert "src='http" not in page


def test_signals_are_what_the_champion_says_about_the_nights_features(chain: Any) -> None:
    session = chain.nights[-1]
    signals = chain.warehouse.read(LIVE_SIGNALS, session, session).to_pylist()
    assert {(row["strategy"], row["symbol"]) for row in signals} == {
        (strategy, symbol)
        for strategy in (
            "mlp_long_short",
            "mlp_sentiment_long_short",
            "mlp_enhanced_long_short",
            "sac_portfolio",
        )
        for symbol in chain.symbols
    }
    champion = chain.registry.champion("mlp_technical")
    features = chain.warehouse.read(feature_tables.TECHNICAL, session, session)
    x = features.select(champion.bundle["inputs"]).to_pandas().to_numpy()
    expected = OnnxMlp(champion.onnx, champion.bundle["symbols"]).predict(x, features["symbol"].to_pylist())
    mine = [row for row in signals if row["strategy"] == "mlp_long_short"]
    assert [row["probability_long"] for row in mine] == [float(p) for p in expected[:, 0]]
    assert all(row["available_at"] == CALENDAR.close(session) for row in signals)
    snapshot = chain.warehouse.snapshot_id(feature_tables.TECHNICAL)
    assert all(f"features.technical={snapshot}" in row["feature_snapshots"] for row in mine)
    for row in signals:
        if row["strategy"] == "mlp_enhanced_long_short":
            assert row["news_source"] == "simulated"
            for spec in (feature_tables.TECHNICAL, feature_tables.SENTIMENT, feature_tables.PEERS):
                assert f"{spec.name}={chain.warehouse.snapshot_id(spec)}" in row["feature_snapshots"]


def test_no_signal_for_a_session_that_the_model_was_trained_on(chain: Any) -> None:
    rows = chain.read(LIVE_SIGNALS).to_pylist()
    for name in (*CLASSIFIERS, "sac_portfolio"):
        seen_until = dt.date.fromisoformat(chain.registry.champion(name).bundle["windows"]["in_sample_last"])
        assert min(row["session"] for row in rows if row["model"] == name) > seen_until


def test_weights_of_the_night_are_what_the_champion_holds_when_followed_from_the_start(chain: Any) -> None:
    """By the environment itself: the last decisions of its rollout on bars that go on to know their returns."""
    champion = chain.registry.champion("sac_portfolio")
    data = read_portfolio_market(chain.warehouse, champion.bundle["symbols"])
    parameters = replace(PortfolioParameters(**champion.bundle["parameters"]), episode_steps=None)
    seen_until = dt.date.fromisoformat(champion.bundle["windows"]["in_sample_last"])
    later = data.market.between(CALENDAR.shift(seen_until, 1), chain.nights[-1])
    episodes = PortfolioEpisodes(1, later, parameters)
    observation = episodes.reset(np.random.default_rng(0))
    held = {}
    for row in episodes.decisions:
        done = episodes.step(OnnxPolicy(champion.onnx, champion.bundle).act(observation))
        observation = done.observation
        held[later.sessions[row].astype("datetime64[D]").astype(object)] = done.info["weights"][0]
    followed = follow(data.market, parameters, OnnxPolicy(champion.onnx, champion.bundle).act, seen_until)
    assert list(held) == list(followed)[:-2], "of the two newest decisions nobody knows the return"
    for session, weights in held.items():
        np.testing.assert_allclose(followed[session], weights, atol=1e-6)
    for night in chain.nights:
        rows = [
            r
            for r in chain.warehouse.read(LIVE_SIGNALS, night, night).to_pylist()
            if r["strategy"] == "sac_portfolio"
        ]
        assert [r["symbol"] for r in rows] == list(chain.symbols)
        assert [r["target_weight"] for r in rows] == followed[night].tolist()
        assert all(r["target_shares"] == int(r["target_shares"]) for r in rows)
        assert all(r["probability_long"] is None and r["stop_loss_pct"] is None for r in rows)
        frame = pd.read_csv(chain.home / "signals" / "sac_portfolio" / f"{night}.csv")
        np.testing.assert_allclose(frame["signal"], followed[night], atol=1e-6)


def test_signal_files_lie_where_the_readme_says(chain: Any) -> None:
    frame = pd.read_csv(chain.home / "signals" / "mlp_long_short" / f"{chain.nights[-1]}.csv")
    assert list(frame.columns) == ["date", "symbol", "signal"]
    assert list(frame["symbol"]) == list(chain.symbols)


def test_an_equal_challenger_stays_challenger_and_the_champion_serves(chain: Any) -> None:
    """Trained on the same window the network is the same, bit for bit, and better than itself it is not."""
    ends = {name: chain.registry.champion(name).bundle["windows"]["in_sample_last"] for name in CLASSIFIERS}
    config = {f"models__{name}": {"config": {"in_sample_last": end}} for name, end in ends.items()}
    job = chain.defs.resolve_job_def("train_job")
    assert job.execute_in_process(instance=chain.instance, run_config={**QUIET, "ops": config}).success
    for name in CLASSIFIERS:
        assert chain.registry.champion(name).version == 1
        challenger = chain.registry.find(name, "challenger")
        assert challenger is not None
        assert challenger.version == 2
        key = dg.AssetCheckKey(dg.AssetKey(["models", name]), "gate")
        record = chain.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        assert record.status.value == "FAILED"
        assert (
            "not better than the champion"
            in record.event.dagster_event.asset_check_evaluation_data.description
        )


def test_retraining_on_the_same_rows_gives_the_same_network(chain: Any) -> None:
    first = chain.registry.champion("mlp_technical")
    second = chain.registry.find("mlp_technical", "challenger")
    assert second is not None
    features = chain.read(feature_tables.TECHNICAL)
    x = features.select(first.bundle["inputs"]).to_pandas().to_numpy()
    symbols = features["symbol"].to_pylist()
    predictions = [
        OnnxMlp(v.onnx, v.bundle["symbols"]).predict(x, symbols).tobytes() for v in (first, second)
    ]
    assert first.bundle["windows"]["purge_before"] == second.bundle["windows"]["purge_before"]
    assert predictions[0] == predictions[1]


class BadSource(SampleSource):
    """The sample with one bar changed."""

    def __init__(self, symbols: tuple[str, ...], change: dict[str, object], session: dt.date) -> None:
        super().__init__(symbols=symbols, seed=1)
        self._change, self._session = change, session

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        rows = super().bars(first, last).to_pylist()
        for row in rows:
            if row["symbol"] == "IBM" and row["session"] == self._session:
                row.update(self._change)
        return pa.Table.from_pylist(rows, schema=super().bars(first, first).schema)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"close": -1.0}, "positive"),
        ({"high": 1.0}, "ohlc"),
        ({"volume": float("nan")}, "numbers"),
        ({"session": dt.date(2012, 4, 7)}, "calendar"),
        ({"symbol": "AAPL"}, "unique"),
    ],
)
def test_a_bad_bar_fails_the_night_and_the_tables_are_as_they_were(
    chain: Any, change: dict[str, object], rule: str
) -> None:
    session = dt.date(2012, 4, 4)
    before = {spec.name: chain.warehouse.snapshot_id(spec) for spec in TABLES}
    defs = build_defs({"source": BadSource(chain.symbols, change, session)})
    result = defs.resolve_job_def("daily_signals_job").execute_in_process(
        partition_key=session.isoformat(), instance=chain.instance, raise_on_error=False, run_config=QUIET
    )
    assert not result.success
    data = result.failure_data_for_node("market__bars")
    message = data.user_failure_data.description
    assert f"rule {rule}" in message
    assert "bokeh_sampledata/stocks.csv.gz:" in message
    assert "nothing was written" in message
    failed = {e.check_name for e in result.get_asset_check_evaluations() if not e.passed}
    assert rule in failed
    assert "features__technical" not in {
        e.step_key for e in result.all_events if e.event_type_value == "STEP_START"
    }
    for spec in (market_tables.BARS, feature_tables.TECHNICAL, LIVE_SIGNALS):
        assert chain.warehouse.snapshot_id(spec) == before[spec.name], spec.name


def test_with_quarantine_the_bad_row_is_set_aside_with_its_reason(
    chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient = settings().model_copy(update={"bad_rows": "quarantine", "missing_sessions": "warn"})
    monkeypatch.setattr("quant_assets.market.assets.settings", lambda: lenient)
    session = dt.date(2012, 4, 4)
    warehouse = Warehouse(tmp_path)
    defs = build_defs({"source": BadSource(chain.symbols, {"close": -1.0}, session), "warehouse": warehouse})
    job = defs.resolve_job_def("ingest_job")
    for _ in range(2):  # setting a row aside is idempotent, too
        assert job.execute_in_process(
            partition_key=session.isoformat(), instance=chain.instance, run_config=QUIET
        ).success
        aside = warehouse.read(market_tables.quarantine_of(market_tables.BARS)).to_pylist()
        assert sorted(row["rule"] for row in aside) == ["ohlc", "positive"]
        assert json.loads(aside[0]["row"])["symbol"] == "IBM"
        assert sorted(warehouse.read(market_tables.BARS)["symbol"].to_pylist()) == ["AAPL", "MSFT"]


def test_a_missing_bar_of_a_listed_symbol_fails_the_night(chain: Any) -> None:
    class Gap(SampleSource):
        def bars(self, first: dt.date, last: dt.date) -> pa.Table:
            rows = super().bars(first, last)
            return rows.filter(pc.not_equal(rows["symbol"], "MSFT"))

    defs = build_defs({"source": Gap(symbols=chain.symbols, seed=1)})
    result = defs.resolve_job_def("daily_signals_job").execute_in_process(
        partition_key="2012-04-04", instance=chain.instance, raise_on_error=False, run_config=QUIET
    )
    assert not result.success
    message = result.failure_data_for_node("market__bars").user_failure_data.description
    assert "MSFT 2012-04-04" in message
    assert "QUANT_MISSING_SESSIONS=warn" in message


def test_signals_refuse_a_champion_of_other_feature_definitions(
    chain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quant_assets.models import feature_sets

    changed = feature_sets.FeatureSet(
        (feature_tables.TECHNICAL,), feature_tables.TECHNICAL_INPUTS, ("another SQL",)
    )
    monkeypatch.setitem(feature_sets.FEATURE_SETS, "mlp_technical", changed)
    result = chain.night(chain.nights[-1])
    assert not result.success
    assert "was trained on feature schema" in str(result.failure_data_for_node("serving__live_signals").error)


def test_a_broken_portfolio_does_not_take_the_nights_other_signals_with_it(
    chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, night = ModelRegistry.find, chain.nights[-1]

    def broken(self: ModelRegistry, name: str, alias: str = "champion") -> Any:
        found = find(self, name, alias)
        if name != "sac_portfolio" or found is None:
            return found
        return replace(found, bundle={**found.bundle, "parameters": {"look_back": 20, "leverage": 3}})

    monkeypatch.setattr(ModelRegistry, "find", broken)
    elsewhere = settings().model_copy(update={"home": tmp_path})
    monkeypatch.setattr("quant_assets.serving.assets.settings", lambda: elsewhere)
    warehouse = Warehouse(tmp_path)
    for spec in (market_tables.BARS, *FEATURE_TABLES.values()):
        warehouse.write(spec, chain.read(spec))
    defs = build_defs({"source": SampleSource(symbols=chain.symbols, seed=1), "warehouse": warehouse})
    key = dg.AssetKey(["serving", "live_signals"])
    job = defs.resolve_job_def("daily_signals_job").get_subset(asset_selection={key})
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance, partition_key=night.isoformat(), run_config=QUIET, raise_on_error=False
        )
    assert result.success
    written = warehouse.read(LIVE_SIGNALS, night, night)
    expected = chain.warehouse.read(LIVE_SIGNALS, night, night)
    expected = expected.filter(pc.not_equal(expected["strategy"], "sac_portfolio"))
    columns = ["strategy", "symbol", "probability_long", "side", "target_shares", "model_version"]
    assert written.num_rows == len(CLASSIFIERS) * len(chain.symbols)
    assert written.select(columns).equals(expected.select(columns))
    (check,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "portfolio_weights"]
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    version = chain.registry.champion("sac_portfolio").version
    assert f"no weights of sac_portfolio v{version}: TypeError" in str(check.description)
    assert "leverage" in str(check.description)


def test_two_runs_of_different_sessions_at_once_both_land(chain: Any, tmp_path: Path) -> None:
    """Two processes write market/bars at the same time, as two terminals would."""
    sessions = [dt.date(2012, 4, 4), dt.date(2012, 4, 5)]
    home = tmp_path / "home"
    shutil.copytree(chain.home, home, ignore=shutil.ignore_patterns("warehouse", "catalog.db", "dagster"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "quant_assets.launch", "ingest_job", "--first", str(s), "--last", str(s)],
            env={**os.environ, "QUANT_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for s in sessions
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    bars = Warehouse(home).read(market_tables.BARS)
    assert sorted(bars["session"].to_pylist()) == sorted(sessions * 4)  # FB is not listed yet


def test_a_run_killed_in_the_middle_of_a_write_leaves_the_table_and_can_be_repeated(tmp_path: Path) -> None:
    """SIGKILL after the data files are written and before the commit, in a real run in its own process."""
    script = f"""
import time, pathlib
from pyiceberg.table import Table
commit = Table._do_commit
def pause(self, *args, **kwargs):
    if self.name()[-1] == "bars" and pathlib.Path({str(tmp_path / "armed")!r}).exists():
        pathlib.Path({str(tmp_path / "writing")!r}).touch()
        time.sleep(600)
    return commit(self, *args, **kwargs)
Table._do_commit = pause
from quant_assets.launch import main
raise SystemExit(main(["ingest_job", "--first", "2012-04-04", "--last", "2012-04-05"]))
"""
    env = {**os.environ, "QUANT_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0
    before = Warehouse(tmp_path / "home").read(market_tables.BARS)
    assert before.num_rows == 8
    (tmp_path / "armed").touch()
    victim = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (tmp_path / "writing").exists():
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert Warehouse(tmp_path / "home").read(market_tables.BARS).equals(before)
    (tmp_path / "armed").unlink()
    repeated = subprocess.run(command, env=env, capture_output=True, text=True)
    assert repeated.returncode == 0, repeated.stdout + repeated.stderr
    assert Warehouse(tmp_path / "home").read(market_tables.BARS).equals(before)


def test_the_launcher_explains_a_home_that_cannot_be_written() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quant_assets.launch", "ingest_job"],
        env={**os.environ, "QUANT_HOME": "/proc/quant"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "QUANT_HOME=/proc/quant cannot be written" in done.stderr
    assert "point QUANT_HOME at a folder" in done.stderr


def test_a_session_that_has_not_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from quant_assets.market import assets

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return dt.datetime(2013, 2, 25, 20, 59, 59, tzinfo=tz)

    monkeypatch.setattr(assets.dt, "datetime", Clock)
    with pytest.raises(dg.Failure, match="session 2013-02-25 closes at 2013-02-25 21:00 UTC"):
        assets.require_closed(dt.date(2013, 2, 25))
    assets.require_closed(dt.date(2013, 2, 22))


def test_one_network_per_symbol_is_a_configuration(chain: Any) -> None:
    job = chain.defs.resolve_job_def("train_job").get_subset(
        asset_selection={dg.AssetKey(["models", "mlp_technical"])}
    )
    config = {"ops": {"models__mlp_technical": {"config": {"per_symbol": True, "max_epochs": 5, "seed": 3}}}}
    assert job.execute_in_process(instance=chain.instance, run_config={**QUIET, **config}).success
    found = [chain.registry.find("mlp_technical", alias) for alias in ("challenger", "champion")]
    assert tuple(chain.symbols) in [tuple(version.bundle["symbols"]) for version in found if version]


def test_housekeeping_keeps_every_row(chain: Any) -> None:
    before = {spec.name: chain.read(spec) for spec in TABLES}
    job = chain.defs.resolve_job_def("maintenance_job")
    config = {"ops": {"maintain_tables": {"config": {"keep_days": 0.0}}}}
    assert job.execute_in_process(instance=chain.instance, run_config={**QUIET, **config}).success
    for spec in TABLES:
        assert len(chain.warehouse.snapshots(spec)) == 1, spec.name
        assert chain.read(spec).equals(before[spec.name]), spec.name


# -- news that know tomorrow -------------------------------------------------------------------------------------------


def test_what_a_leak_has_taught_is_registered_and_never_serves(
    tmp_path: Path,
    sample_technical: pa.Table,
    sample_sentiment: pa.Table,
    sample_labels: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A column of the sentiment holds the label: no first champion comes of it, and the one that there is stays."""
    elsewhere = settings().model_copy(update={"home": tmp_path})
    monkeypatch.setattr("quant_assets.models.assets.settings", lambda: elsewhere)
    warehouse, registry = Warehouse(tmp_path), ModelRegistry(tmp_path)
    last = dt.date(2001, 12, 31)
    honest = sample_sentiment.filter(pc.less_equal(sample_sentiment["session"], last))
    outcomes = sample_labels.filter(pc.less_equal(sample_labels["known_session"], last))
    warehouse.write(
        feature_tables.TECHNICAL, sample_technical.filter(pc.less_equal(sample_technical["session"], last))
    )
    warehouse.write(feature_tables.LABELS, outcomes)
    will = {(r["symbol"], r["session"]): 2.0 * r["long"] - r["short"] for r in outcomes.to_pylist()}
    keys = zip(honest["symbol"].to_pylist(), honest["session"].to_pylist(), strict=True)
    at = honest.column_names.index("sentiment_sma_1")
    column = pa.array([will.get(key, 0.0) for key in keys], pa.float64())
    knowing = honest.set_column(at, honest.schema.field(at), column)

    def trained(sentiment: pa.Table) -> dg.AssetCheckEvaluation:
        """The suspicious check of a training."""
        warehouse.write(feature_tables.SENTIMENT, sentiment)
        with dg.DagsterInstance.ephemeral() as instance:
            result = dg.materialize(
                [mlp_sentiment],
                instance=instance,
                resources={"warehouse": warehouse, "registry": registry},
                run_config={
                    **QUIET,
                    "ops": {"models__mlp_sentiment": {"config": {"max_epochs": 12}}},
                },
                raise_on_error=False,
            )
        (check,) = (
            e for e in result.get_asset_check_evaluations() if e.check_name == "no_suspicious_sentiment_gain"
        )
        return check

    def tags(version: int) -> dict[str, str]:
        return registry.client.get_model_version("mlp_sentiment", str(version)).tags

    check = trained(knowing)
    assert (check.passed, check.blocking, check.severity) == (False, True, dg.AssetCheckSeverity.ERROR)
    assert "news lift the AUC of long by +0." in str(check.description)
    assert registry.find("mlp_sentiment") is None
    challenger = registry.find("mlp_sentiment", "challenger")
    assert challenger is not None
    assert challenger.version == 1
    assert tags(1)["gate"] == "failed"
    assert "look for a leak in the join: the challenger stays challenger" in tags(1)["gate_reason"]

    assert trained(honest).passed
    assert registry.champion("mlp_sentiment").version == 2
    assert not trained(knowing).passed
    assert registry.champion("mlp_sentiment").version == 2, (
        "better than the champion by far, and for no good reason"
    )
    assert "look for a leak" in tags(3)["gate_reason"]
