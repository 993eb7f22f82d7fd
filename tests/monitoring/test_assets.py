"""The assets in real runs on a warehouse of their own: what they store, say, and refuse to call a failure."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant_assets.features import tables as feature_tables
from quant_assets.features.tables import LABELS, TECHNICAL, TECHNICAL_INPUTS
from quant_assets.features.truncation import cut
from quant_assets.market.tables import BARS, MINUTE_BARS
from quant_assets.models.feature_sets import FEATURE_SETS
from quant_assets.monitoring import assets, tables
from quant_assets.serving.signals import make_signals
from quant_assets.serving.tables import CAPTURED_REQUESTS, LIVE_SIGNALS
from quant_assets.strategies.mlp_long_short import MlpLongShort
from quant_resources.calendar import TradingCalendar
from quant_resources.iceberg import TableSpec, Warehouse
from quant_resources.io_manager import IcebergIOManager
from quant_resources.registry import ModelVersion

MODEL = "mlp_technical"
SYMBOLS = ["AAPL", "GOOG", "IBM", "MSFT"]
FIRST, TRAINED, LAST = dt.date(2010, 7, 1), dt.date(2011, 6, 30), dt.date(2011, 10, 31)
# A quiet stretch, and August 2011: a fall of the market as this reference has none.
QUIET = (dt.date(2011, 7, 1), dt.date(2011, 7, 8))
STORMY = (dt.date(2011, 8, 17), dt.date(2011, 8, 29))
UTC = pa.timestamp("us", "UTC")


def network(inputs: int) -> bytes:
    """Two probabilities from a weighted sum, as the exported classifiers take their inputs."""
    weight = np.zeros((inputs, 2), np.float32)
    weight[20:24] = [0.1, -0.1]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["probability"]),
        helper.make_node("Identity", ["model_index"], ["index"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, inputs]),
            helper.make_tensor_value_info("model_index", TensorProto.INT64, [None]),
        ],
        [
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None, 2]),
            helper.make_tensor_value_info("index", TensorProto.INT64, [None]),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def classifier(version: int = 1, trained: dt.date = TRAINED) -> ModelVersion:
    features = FEATURE_SETS[MODEL]
    bundle = {
        "inputs": list(features.inputs),
        "symbols": ["*"],
        "tables": [t.name for t in features.tables],
        "windows": {"train_first": str(FIRST), "in_sample_last": str(trained)},
        "base_rate": [0.39, 0.38],
        "lineage": {"feature_schema_hash": features.schema_hash},
    }
    return ModelVersion(MODEL, version, network(len(TECHNICAL_INPUTS)), bundle, "run")


def agent(version: int = 1) -> ModelVersion:
    parameters = {"order_participation_low": 0.01, "order_participation_high": 0.2, "horizon_minutes": 390}
    return ModelVersion("sac_execution", version, b"", {"parameters": parameters}, "run")


class Registry:
    """Champions by name."""

    def __init__(self, *champions: ModelVersion) -> None:
        self.champions = {champion.name: champion for champion in champions}

    def find(self, name: str) -> ModelVersion | None:
        return self.champions.get(name)


class House:
    """A warehouse with features, labels and signals, and runs of the two assets on it."""

    def __init__(self, folder: Path, *champions: ModelVersion) -> None:
        self.warehouse, self.registry = Warehouse(folder / "home"), Registry(*champions)

    def put(self, spec: TableSpec, rows: pa.Table) -> None:
        self.warehouse.write(spec, spec.conform(rows))

    def run(
        self, first: dt.date, last: dt.date, *, config: dict[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        specs = {dg.AssetKey(s.name.split(".")): s for s in (tables.DRIFT, tables.PERFORMANCE)}
        tags = dict(
            zip(
                ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end"),
                (str(first), str(last)),
                strict=True,
            )
        )
        of = {"config": {"models": [MODEL], **(config or {})}}
        return dg.materialize(
            [assets.performance, assets.drift],
            resources={
                "warehouse": self.warehouse,
                "registry": self.registry,
                "io_manager": IcebergIOManager(self.warehouse, specs),
            },
            run_config={
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                "ops": {"monitoring__performance": of, "monitoring__drift": of},
            },
            tags=tags,
        )

    def rows(self, spec: TableSpec = tables.DRIFT) -> pa.Table:
        return self.warehouse.read(spec)


def metadata(result: dg.ExecuteInProcessResult, asset: str = "drift") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for event in result.asset_materializations_for_node(f"monitoring__{asset}"):
        found |= {k: getattr(v, "md_str", v.value) for k, v in event.metadata.items()}
    return found


def check(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (found,) = result.get_asset_check_evaluations()
    assert found.check_name == "no_drift"
    assert found.severity == dg.AssetCheckSeverity.WARN
    return found


def between(rows: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    day = rows["session"]
    rows = rows.filter(pc.and_(pc.greater_equal(day, pa.scalar(first)), pc.less_equal(day, pa.scalar(last))))
    return rows.filter(pc.is_in(rows["symbol"], pa.array(SYMBOLS)))


@pytest.fixture(scope="module")
def features(sample_technical: pa.Table, sample_labels: pa.Table) -> dict[str, pa.Table]:
    return {
        TECHNICAL.name: between(sample_technical, FIRST, LAST),
        LABELS.name: between(sample_labels, FIRST, LAST),
    }


@pytest.fixture(scope="module")
def signals(features: dict[str, pa.Table], calendar: TradingCalendar) -> pa.Table:
    """Of the classifier, at random: what they say does not matter here."""
    parts = []
    rng = np.random.default_rng(2)
    lineage = {
        "model": MODEL,
        "model_version": 1,
        "served_by": "",
        "feature_snapshots": "",
        "news_source": "none",
    }
    rule = MlpLongShort(sizing="shares", size=100)
    for session in calendar.sessions(calendar.shift(TRAINED, 1), LAST):
        p = rng.uniform(0.2, 0.6, (len(SYMBOLS), 2))
        parts.append(
            make_signals("mlp_long_short", SYMBOLS, session, calendar.close(session), p, rule, lineage)
        )
    return pa.concat_tables(parts)


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else; one test looks at the figures."""
    if "figures" not in request.node.name:
        monkeypatch.setattr(assets, "_figures", lambda *_: {})
        monkeypatch.setattr(assets, "_performance_figure", lambda *_: {})


@pytest.fixture
def house(tmp_path: Path, features: dict[str, pa.Table], signals: pa.Table) -> House:
    made = House(tmp_path, classifier())
    for spec in (feature_tables.TECHNICAL, feature_tables.LABELS):
        made.put(spec, features[spec.name])
    made.put(LIVE_SIGNALS, signals)
    return made


def test_a_fall_of_the_market_is_an_event_with_names_and_figures(house: House) -> None:
    result = house.run(*STORMY)
    assert result.success
    found = check(result)
    assert not found.passed
    assert found.description is not None
    assert "mlp_technical v1 has been drifting since 2011-08" in found.description
    assert "absolute_log_return" in found.description
    shown = metadata(result)
    assert found.description in shown["summary"]
    for figure in ("p-values", "PSI", "distributions"):
        assert shown[figure].startswith("![")
    assert shown["worst columns"].splitlines()[0].startswith("| model | scope | column | psi")
    rows = house.rows().to_pylist()
    scopes = {row["scope"] for row in rows}
    assert scopes == {"feature", "prediction", "performance"}
    assert {row["column"] for row in rows if row["scope"] == "prediction"} == {
        "probability_long",
        "probability_short",
    }
    assert all(
        row["event_id"].startswith("mlp_technical:v1:2011-08") for row in rows if row["session"] == STORMY[1]
    )
    tested = [row for row in rows if row["p_value"] is not None]
    assert all(0 <= row["p_value"] <= row["p_adjusted"] <= 1 for row in tested)
    assert metadata(result, "performance")["performance"].startswith("![")


def test_a_range_and_its_nights_store_the_same_rows(
    house: House, tmp_path: Path, features: dict[str, pa.Table], signals: pa.Table
) -> None:
    """The nights begin in the middle of the event."""
    first, last = dt.date(2011, 8, 24), dt.date(2011, 8, 26)
    house.run(first, last)
    nights = House(tmp_path / "nights", classifier())
    for spec, rows in (
        (TECHNICAL, features[TECHNICAL.name]),
        (LABELS, features[LABELS.name]),
        (LIVE_SIGNALS, signals),
    ):
        nights.put(spec, rows)
    for session in assets.CALENDAR.sessions(first, last):
        assert nights.run(session, session).success
    for spec in (tables.DRIFT, tables.PERFORMANCE):
        assert nights.rows(spec).num_rows > 0
        assert nights.rows(spec).equals(house.rows(spec))


def test_rows_rest_on_what_was_available_at_the_close(
    house: House, tmp_path: Path, features: dict[str, pa.Table], signals: pa.Table, calendar: TradingCalendar
) -> None:
    session = dt.date(2011, 8, 24)
    house.run(session, session)
    then = House(tmp_path / "then", classifier())
    for name, rows in cut({**features, LIVE_SIGNALS.name: signals}, calendar.close(session)).items():
        then.put({s.name: s for s in (TECHNICAL, LABELS, LIVE_SIGNALS)}[name], rows)
    then.run(session, session)
    for spec in (tables.DRIFT, tables.PERFORMANCE):
        assert then.rows(spec).num_rows > 0
        assert then.rows(spec).equals(house.rows(spec))


def test_quiet_sessions_pass_and_say_so(house: House) -> None:
    result = house.run(*QUIET)
    found = check(result)
    assert found.passed
    assert found.description == "No drift event goes on for mlp_technical."
    assert "36 columns over 5 session(s)" in metadata(result)["summary"]
    assert "sac_execution: no champion" in metadata(result)["summary"]
    # The null distribution lies under the home, for the next night.
    assert len(list((house.warehouse.home / "monitoring").glob("mlp_technical-*.npy"))) == 1


def _nothing(house: House) -> None:
    house.registry = Registry()


def _other_features(house: House) -> None:
    champion = classifier()
    champion.bundle["lineage"]["feature_schema_hash"] = "0123456789abcdef"
    house.registry = Registry(champion)


def _trained_later(house: House) -> None:
    house.registry = Registry(classifier(trained=LAST))


def _short(house: House) -> None:
    champion = classifier()
    champion.bundle["windows"]["train_first"] = "2011-06-01"
    house.registry = Registry(champion)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (_nothing, "mlp_technical: no champion (train_job makes one)"),
        (_other_features, "trained on feature schema 0123456789abcdef"),
        (_trained_later, "was trained on sessions up to 2011-10-31, so on all of these"),
        (_short, "the reference has 22 sessions with rows, 120 are needed"),
    ],
)
def test_what_cannot_be_compared_is_no_failure_and_says_why(
    house: House, prepare: Callable[[House], None], said: str
) -> None:
    prepare(house)
    result = house.run(*QUIET)
    assert result.success
    assert check(result).passed
    assert said in metadata(result)["summary"]
    drift = [row for row in house.rows().to_pylist() if row["scope"] != "performance"]
    assert drift == []


def test_an_empty_house(tmp_path: Path) -> None:
    result = House(tmp_path, classifier(), agent()).run(*QUIET)
    assert result.success
    assert "is not watched: the reference has 0 sessions" in metadata(result)["summary"]
    assert "has answered no captured request" in metadata(result)["summary"]


# -- captured requests -------------------------------------------------------------------------------------------------


def captured(
    kind: str,
    model: str,
    session: dt.date,
    at: dt.datetime,
    request: dict[str, Any],
    response: dict[str, Any],
    number: int,
) -> dict[str, Any]:
    return {
        "event_id": f"{kind}-{session}-{number}",
        "session": session,
        "available_at": at,
        "endpoint": "endpoint",
        "config": "config",
        "kind": kind,
        "model": model,
        "model_version": 1,
        "request": json.dumps(request),
        "response": json.dumps(response),
    }


def asked_features(
    features: pa.Table, calendar: TradingCalendar, factor: float = 1.0
) -> list[dict[str, Any]]:
    """The rows of each session, sent before its close."""
    rows = []
    for i, row in enumerate(between(features, dt.date(2011, 6, 1), QUIET[1]).to_pylist()):
        values = {name: factor * row[name] for name in TECHNICAL_INPUTS}
        request = {"rows": [{"symbol": row["symbol"], "session": str(row["session"]), "features": values}]}
        at = calendar.close(row["session"]) - dt.timedelta(hours=1)
        rows.append(captured("signal", MODEL, row["session"], at, request, {}, i))
    return rows


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_captured_features_are_compared_too(
    house: House, features: dict[str, pa.Table], calendar: TradingCalendar, factor: float
) -> None:
    rows = asked_features(features[TECHNICAL.name], calendar, factor)
    house.put(CAPTURED_REQUESTS, pa.Table.from_pylist(rows, CAPTURED_REQUESTS.arrow_schema))
    result = house.run(*QUIET)
    found = [row for row in house.rows().to_pylist() if row["scope"] == "endpoint_input"]
    assert len(found) == 5 * len(TECHNICAL_INPUTS)
    assert check(result).passed == (factor == 1.0)
    if factor == 1.0:
        # The same values as the stored features, so the same distances.
        by_scope: dict[str, list[float]] = {"feature": [], "endpoint_input": []}
        for row in house.rows().to_pylist():
            if row["column"] == "roc_5_pct":
                by_scope[row["scope"]].append(row["wasserstein"])
        assert by_scope["feature"] == by_scope["endpoint_input"]
    else:
        assert "endpoint_input roc_" in str(check(result).description)


def test_answers_of_years_later_are_counted_and_left_out(
    house: House, features: dict[str, pa.Table], calendar: TradingCalendar
) -> None:
    rows = asked_features(features[TECHNICAL.name], calendar)
    late = [{**row, "available_at": dt.datetime(2026, 1, 5, tzinfo=dt.UTC)} for row in rows]
    house.put(CAPTURED_REQUESTS, pa.Table.from_pylist(late, CAPTURED_REQUESTS.arrow_schema))
    result = house.run(*QUIET)
    assert "answered when no session of the calendar could know them" in metadata(result)["summary"]
    assert "endpoint_input" not in house.rows()["scope"].to_pylist()


def served(session: dt.date, first: dt.datetime, minutes: int) -> dict[str, Any]:
    """An answer of the execution endpoint, as far as it is read here."""
    times = [first + dt.timedelta(minutes=i) for i in range(minutes)]
    return {
        "ticker": "IBM",
        "session": str(session),
        "schedule": [{"timestamp": f"{t:%Y-%m-%dT%H:%M:%SZ}", "shares": 10} for t in times],
        "expected_cost_bps": {"schedule": 1.0},
    }


def test_orders_far_from_those_of_training_are_an_event(
    house: House, sample_bars: pa.Table, calendar: TradingCalendar
) -> None:
    house.registry = Registry(agent())
    house.put(BARS, between(sample_bars, dt.date(2011, 4, 1), LAST))
    rows = []
    for session in calendar.sessions(dt.date(2011, 6, 1), QUIET[1]):
        at = calendar.opens(session) + dt.timedelta(hours=1)
        for i in range(4):
            request = {"ticker": "IBM", "shares": 10 + i, "horizon_minutes": 390}
            response = served(session, at, 390)
            rows.append(captured("execution", "sac_execution", session, at, request, response, i))
    house.put(CAPTURED_REQUESTS, pa.Table.from_pylist(rows, CAPTURED_REQUESTS.arrow_schema))
    result = house.run(*QUIET)
    found = [row for row in house.rows().to_pylist() if row["model"] == "sac_execution"]
    assert {row["column"] for row in found} == {"log_participation", "horizon_minutes"}
    assert "sac_execution v1 has been drifting since" in str(check(result).description)
    shares = next(row for row in found if row["column"] == "log_participation")
    assert shares["ks"] == 1.0
    assert shares["window_rows"] == 60
    assert shares["reference_first"] is None


def test_costs_of_served_schedules_become_performance(house: House, calendar: TradingCalendar) -> None:
    house.registry = Registry(agent())
    sessions = calendar.sessions(dt.date(2011, 6, 22), QUIET[1])
    house.put(MINUTE_BARS, minute_bars(sessions, calendar))
    rows = []
    for session in sessions:
        opens = calendar.opens(session)
        response = served(session, opens, 30)
        rows.append(
            captured(
                "execution", "sac_execution", session, opens, {"ticker": "IBM", "shares": 300}, response, 0
            )
        )
    house.put(CAPTURED_REQUESTS, pa.Table.from_pylist(rows, CAPTURED_REQUESTS.arrow_schema))
    for session in calendar.sessions(*QUIET):
        house.run(session, session)
    found = house.rows(tables.PERFORMANCE).to_pylist()
    assert [row["session"] for row in found] == calendar.sessions(*QUIET)
    assert {row["measure"] for row in found} == {"cost_residual_bps"}
    assert [row["series_sessions"] for row in found] == [1, 2, 3, 4, 5]
    # Half of 2 cents on 100 dollars is 1 basis point, which was expected; the rest is impact.
    assert all(0 < row["value"] < 5 for row in found)
    assert {row["yardstick"] for row in found} == {1.0}
    scopes = {(row["scope"], row["column"]) for row in house.rows().to_pylist()}
    assert scopes == {("performance", "cost_residual_bps")}


def minute_bars(sessions: list[dt.date], calendar: TradingCalendar) -> pa.Table:
    parts = []
    rng = np.random.default_rng(1)
    for session in sessions:
        close = 100 * np.exp(np.cumsum(1e-4 * rng.standard_normal(390)))
        ts = [calendar.opens(session) + dt.timedelta(minutes=i) for i in range(390)]
        parts.append(
            pa.table(
                {
                    "symbol": ["IBM"] * 390,
                    "session": pa.array([session] * 390, pa.date32()),
                    "ts": pa.array(ts, UTC),
                    "available_at": pa.array([t + dt.timedelta(minutes=1) for t in ts], UTC),
                    **dict.fromkeys(("open", "high", "low", "close"), close),
                    "volume": np.full(390, 1e5),
                    "bid": close - 0.01,
                    "ask": close + 0.01,
                    "bid_size": np.full(390, 100.0),
                    "ask_size": np.full(390, 100.0),
                    "source": ["simulated"] * 390,
                }
            )
        )
    return pa.concat_tables(parts)


def test_both_assets_are_described_as_every_other() -> None:
    for asset in (assets.drift, assets.performance):
        (spec,) = asset.specs
        assert spec.group_name == "monitoring"
        assert spec.owners == ["team:research"]
        assert spec.description
        assert spec.kinds
        assert asset.backfill_policy == dg.BackfillPolicy.single_run()
    for spec in (tables.DRIFT, tables.PERFORMANCE):
        assert {"session", "available_at"} <= {c.name for c in spec.columns if c.required}
