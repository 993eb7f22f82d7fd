"""Bundles to test serving with: tiny networks made by hand, good and broken ones. Nothing is trained, a bundle takes milliseconds.

`execution_bundle(folder, policy=...)` and `signal_bundle(folder, network=...)` write `model.tar.gz` into a folder and return its
path. Policies and networks are ONNX bytes:

- `constant_pace(0.5)`: an agent that sells at one pace, whatever it sees
- `sac_policy()`: an untrained agent of the real kind
- `always_wrong()`: every pace is NaN; the app's own self-test fails
- `wrong_for_large_orders()`: NaN for orders above 5 % of the volume; the self-test passes, traffic finds out
- `slow_pace(0.5)`: right, but every answer takes about so many seconds
- `linear_probability()`: probabilities from a weighted sum of the features
- `wrong_probability()`: probabilities above 1 where the first feature is above 0.9; the self-test passes, traffic finds out

Import as `from tests.serving.bundles import execution_bundle`.
"""

import datetime as dt
import functools
import itertools
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from quant_assets.environments.execution import ExecutionEpisodes, ExecutionParameters
from quant_assets.models.feature_sets import FEATURE_SETS
from quant_assets.serving.bundle import execution_description, pack, signal_description
from quant_assets.serving.execution_plan import ExpectedMarket
from quant_assets.serving.hours import ExchangeHours
from quant_resources.calendar import TradingCalendar

MINUTES_PER_DECISION = 15
DECISIONS = 390 // MINUTES_PER_DECISION
PARTICIPATION = ExecutionEpisodes.observation_names.index("order_participation_log")
# Shares of a day that the tickers are expected to trade, and dollars.
MARKETS = {"AAPL": (20_000_000.0, 450.0), "IBM": (4_000_000.0, 200.0)}
# Valid from the first to the last of these dates, so `start` decides when a plan begins; without it, now does.
FIRST, LAST = dt.date(2012, 1, 3), dt.date(2027, 12, 31)
START = "2013-03-01T14:30:00Z"
EXECUTION_REQUEST = {"ticker": "AAPL", "shares": 1000, "horizon_minutes": 390, "start": START}
# Above what `wrong_for_large_orders` can do, within what a bundle allows.
LARGE_REQUEST = {**EXECUTION_REQUEST, "shares": 4_000_000}


@functools.cache
def hours() -> ExchangeHours:
    """Of the exchange, from `FIRST` to `LAST`."""
    return ExchangeHours.from_calendar(TradingCalendar(FIRST, LAST))


# -- agents ------------------------------------------------------------------------------------------------------------


def _graph(name, inputs, outputs, nodes, constants) -> bytes:
    def values(named):
        return [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in named]

    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, values(inputs), values(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    checker.check_model(model)
    return model.SerializeToString()


def _policy(nodes, constants) -> bytes:
    width = len(ExecutionEpisodes.observation_names)
    floats = {key: np.asarray(value, np.float32) for key, value in constants.items()}
    return _graph(
        "policy",
        [("observation", TensorProto.FLOAT, ["n", width])],
        [("action", TensorProto.FLOAT, ["n", 1])],
        nodes,
        # Every policy reads its observation, by a weight of 0.
        {"nothing": np.zeros((width, 1), np.float32), **floats},
    )


def constant_pace(pace: float = 0.5) -> bytes:
    """Sells at one pace."""
    node = helper.make_node("Gemm", ["observation", "nothing", "pace"], ["action"])
    return _policy([node], {"pace": [pace]})


def always_wrong() -> bytes:
    """Every pace is NaN."""
    return constant_pace(float("nan"))


def wrong_for_large_orders(pace: float = 0.5, participation_log: float = 0.0) -> bytes:
    """NaN where `order_participation_log` is above a threshold; 0 is 5 % of the volume expected over the horizon."""
    selected = np.eye(len(ExecutionEpisodes.observation_names), dtype=np.float32)[:, [PARTICIPATION]]
    nodes = [
        helper.make_node("MatMul", ["observation", "selected"], ["participation"]),
        helper.make_node("Greater", ["participation", "threshold"], ["is_large"]),
        helper.make_node("Where", ["is_large", "not_a_number", "pace"], ["action"]),
    ]
    constants = {"selected": selected, "threshold": participation_log, "not_a_number": np.nan, "pace": pace}
    return _policy(nodes, constants)


@functools.cache
def slow_pace(seconds_per_answer: float, pace: float = 0.5) -> bytes:
    """A right pace after useless work: about so many seconds for an answer over a whole session, on this machine, now."""
    from onnxruntime import InferenceSession

    def made(rounds: int) -> bytes:
        # The work begins with the observation, or the runtime would do it once, when it loads the graph.
        body = helper.make_graph(
            [
                helper.make_node("MatMul", ["state", "matrix"], ["next_state"]),
                helper.make_node("Identity", ["go"], ["go_on"]),
            ],
            "round",
            [
                helper.make_tensor_value_info("round_number", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state", TensorProto.FLOAT, [64, 64]),
            ],
            [
                helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next_state", TensorProto.FLOAT, [64, 64]),
            ],
        )
        nodes = [
            helper.make_node("ReduceSum", ["observation"], ["total"], keepdims=0),
            helper.make_node("Mul", ["total", "zero"], ["none"]),
            helper.make_node("Add", ["matrix", "none"], ["begin"]),
            helper.make_node("Loop", ["rounds", "", "begin"], ["end"], body=body),
            helper.make_node("ReduceSum", ["end"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["again_none"]),
            helper.make_node("Gemm", ["observation", "nothing", "pace"], ["constant"]),
            helper.make_node("Add", ["constant", "again_none"], ["action"]),
        ]
        width = len(ExecutionEpisodes.observation_names)
        return _graph(
            "slow_policy",
            [("observation", TensorProto.FLOAT, ["n", width])],
            [("action", TensorProto.FLOAT, ["n", 1])],
            nodes,
            {
                "nothing": np.zeros((width, 1), np.float32),
                "pace": np.array([pace], np.float32),
                "zero": np.float32(0),
                "matrix": np.full((64, 64), 1 / 64, np.float32),
                "rounds": np.int64(rounds),
            },
        )

    rounds = 50_000
    session = InferenceSession(made(rounds), providers=["CPUExecutionProvider"])
    observation = np.zeros((1, len(ExecutionEpisodes.observation_names)), np.float32)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        session.run(None, {"observation": observation})
        taken.append(time.perf_counter() - started)
    return made(max(1, round(seconds_per_answer / DECISIONS / (min(taken) / rounds))))


def sac_policy(seed: int = 0) -> bytes:
    """An untrained agent of the real kind, two layers of 16."""
    from quant_assets.models.sac import SacPolicy

    rng = np.random.default_rng(seed)
    sizes = (len(ExecutionEpisodes.observation_names), 16, 16, 2)
    weights = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
    return SacPolicy(
        environment="execution",
        observation_names=ExecutionEpisodes.observation_names,
        action_names=ExecutionEpisodes.action_names,
        mean=np.zeros(sizes[0], np.float32),
        scale=np.ones(sizes[0], np.float32),
        action_low=np.zeros(1, np.float32),
        action_high=np.ones(1, np.float32),
        hidden_units=sizes[1:-1],
        flat=rng.normal(0, 0.3, weights).astype(np.float32),
    ).to_onnx()


def expected_markets() -> dict[str, ExpectedMarket]:
    """Of the tickers in `MARKETS`: busy at the open and the close."""
    u_shape = 1 + np.linspace(-1, 1, 390) ** 2
    return {
        ticker: ExpectedMarket(
            price_dollars=dollars,
            spread_dollars=0.02,
            daily_volatility=0.015,
            volume_shares=shares * u_shape / u_shape.sum(),
        )
        for ticker, (shares, dollars) in MARKETS.items()
    }


def registered_agent() -> dict[str, object]:
    """What the registry says of an execution agent."""
    return {
        "kind": "agent",
        "name": "sac_execution",
        "environment": "execution",
        "parameters": asdict(ExecutionParameters(minutes_per_decision=MINUTES_PER_DECISION)),
        "market": {"sd_minutes": 390},
        "observation_names": list(ExecutionEpisodes.observation_names),
        "action_names": list(ExecutionEpisodes.action_names),
        "symbols": list(MARKETS),
        "profile": "demo",
        "training": {},
        "seeds": [{"seed": 0, "score": -1.0, "file": "seed_0.onnx"}],
        "chosen_seed": 0,
        "real_market": None,
        "windows": {"train_last": "2012-12-31"},
        "lineage": {"git_commit": "0" * 40, "seed": "0"},
    }


def execution_bundle(
    folder: Path, policy: bytes | None = None, name: str = "sac_execution", version: int = 1
) -> Path:
    """Write `model.tar.gz` of an agent into a folder.

    Args:
        folder: made if it is missing.
        policy: one of the above; `constant_pace()` when None.
        name, version: in the registry.
    """
    onnx = constant_pace() if policy is None else policy
    description = execution_description(name, version, registered_agent(), expected_markets(), hours(), onnx)
    return _write(folder, pack(onnx, description))


# -- classifiers -------------------------------------------------------------------------------------------------------


def _network(inputs: int, nodes, constants) -> bytes:
    nodes = [
        *nodes,
        # Which network serves a row makes no difference here, but it is an input as in a trained one.
        helper.make_node("Cast", ["model_index"], ["index"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["index", "zero"], ["no_index"]),
        helper.make_node("Unsqueeze", ["no_index", "axis"], ["column"]),
        helper.make_node("Add", ["told", "column"], ["probability"]),
    ]
    return _graph(
        "classifier",
        [("x", TensorProto.FLOAT, ["rows", inputs]), ("model_index", TensorProto.INT64, ["rows"])],
        [("probability", TensorProto.FLOAT, ["rows", 2])],
        nodes,
        {
            **{key: np.asarray(value, np.float32) for key, value in constants.items()},
            "zero": np.float32(0),
            "axis": np.array([1], np.int64),
        },
    )


def linear_probability(inputs: int, seed: int = 0) -> bytes:
    """A logistic regression with fixed weights."""
    weights = np.random.default_rng(seed).normal(0, 0.5, (inputs, 2))
    nodes = [
        helper.make_node("Gemm", ["x", "weights", "bias"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["told"]),
    ]
    return _network(inputs, nodes, {"weights": weights, "bias": np.zeros(2)})


def wrong_probability(inputs: int) -> bytes:
    """1.5 where the first feature is above 0.9, else 0.5."""
    first = np.zeros((inputs, 2))
    first[0] = 1
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["feature"]),
        helper.make_node("Greater", ["feature", "limit"], ["is_large"]),
        helper.make_node("Where", ["is_large", "wrong", "right"], ["told"]),
    ]
    return _network(inputs, nodes, {"first": first, "limit": 0.9, "wrong": 1.5, "right": 0.5})


def registered_classifier(
    name: str = "mlp_technical", symbols: tuple[str, ...] = ("*",)
) -> dict[str, object]:
    """What the registry says of a classifier."""
    features = FEATURE_SETS[name]
    return {
        "kind": "signal",
        "name": name,
        "inputs": list(features.inputs),
        "symbols": list(symbols),
        "outputs": ["long", "short"],
        "tables": [table.name for table in features.tables],
        "windows": {"train_last": "2010-12-31"},
        "label": {"horizon_sessions": 5},
        "base_rate": [0.3, 0.3],
        "lineage": {
            "git_commit": "0" * 40,
            "seed": "0",
            "feature_schema_hash": features.schema_hash,
            "news_source": "none" if name == "mlp_technical" else "simulated",
        },
    }


def signal_bundle(
    folder: Path,
    network: bytes | None = None,
    name: str = "mlp_technical",
    version: int = 1,
    symbols: tuple[str, ...] = ("*",),
) -> Path:
    """Write `model.tar.gz` of a classifier into a folder.

    Args:
        folder: made if it is missing.
        network: one of the above, for the inputs of `FEATURE_SETS[name]`; `linear_probability` when None.
        name, version: in the registry; the name decides the features.
        symbols: one network each, or '*' for one that takes all.
    """
    onnx = linear_probability(len(FEATURE_SETS[name].inputs)) if network is None else network
    description = signal_description(
        name, version, registered_classifier(name, symbols), (0.5, 0.5), hours(), onnx
    )
    return _write(folder, pack(onnx, description))


def signal_request(name: str = "mlp_technical", first_feature: float = 0.25) -> dict[str, object]:
    """Two rows of features; the first feature of the first row is given, so `wrong_probability` can be provoked."""
    inputs = FEATURE_SETS[name].inputs
    return {
        "rows": [
            {
                "symbol": symbol,
                "session": "2013-03-01",
                "features": {n: value if i == 0 else i / 100 for i, n in enumerate(inputs)},
            }
            for symbol, value in (("AAPL", first_feature), ("IBM", -1.0))
        ]
    }


def bars_request(sessions: int = 40, symbols: tuple[str, ...] = ("AAPL", "IBM")) -> dict[str, object]:
    """Bars of the last sessions up to 2013-03-01, enough for every feature of the newest one."""
    last = dt.date(2013, 3, 1)
    days = hours().sessions(last - dt.timedelta(days=2 * sessions + 20), last)[-sessions:]
    bars = []
    for at, symbol in enumerate(symbols):
        rng = np.random.default_rng(at)
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, sessions)))
        opens = np.concatenate([[100.0], close[:-1]])
        for day, begin, end in zip(days, opens.tolist(), close.tolist(), strict=True):
            low, high = 0.99 * min(begin, end), 1.01 * max(begin, end)
            prices = {"open": begin, "high": high, "low": low, "close": end}
            bars.append({"symbol": symbol, "session": day.isoformat(), **prices, "volume": 1e6})
    return {"bars": bars}


def _write(folder: Path, archive: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.tar.gz"
    path.write_bytes(archive)
    return path
