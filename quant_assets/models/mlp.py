"""The multilayer perceptron: parameters, training, ONNX. Reads top to bottom. Pure (torch, no Dagster).

Belongs here: the network and how its weights come about. Does not belong here: windows (`dataset.py`), metrics
(`evaluation.py`), the registry.

The published network has 31 inputs, one hidden layer of 15 and two sigmoid outputs (long, short).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

OUTPUTS = ("long", "short")


@dataclass(frozen=True)
class MlpParameters:
    """Hyperparameters.

    Attributes:
        hidden_units: width of each hidden layer.
        learning_rate: of Adam.
        weight_decay: L2 penalty of AdamW.
        batch_size: rows per step.
        max_epochs: passes over the training rows at most.
        patience_epochs: passes without a better validation loss before training stops.
        balance_classes: weight positives so that both classes weigh alike while training. The bias of the output is
            moved back by log(weight) afterwards, so that the probabilities stay calibrated to the true base rate.
        per_symbol: one network per symbol instead of one over all.
        seed: of initial weights and of the order of the batches.
    """

    hidden_units: tuple[int, ...] = (15,)
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    batch_size: int = 256
    max_epochs: int = 60
    patience_epochs: int = 8
    balance_classes: bool = True
    per_symbol: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hidden_units or min(self.hidden_units) < 1:
            raise ValueError(f"hidden_units = {self.hidden_units}: at least one layer of at least one unit")
        for name in ("learning_rate", "batch_size", "max_epochs", "patience_epochs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0")


@dataclass
class TrainedMlp:
    """A trained network, or one per symbol.

    Attributes:
        inputs: names of the input columns, in order.
        symbols: one network per entry; ("*",) when one network serves all symbols.
        network: torch module, (x [rows, inputs], model_index [rows]) -> probabilities [rows, 2].
        history: one dict per epoch and network: symbol, epoch, train_loss, validation_loss (unweighted log loss).
    """

    inputs: tuple[str, ...]
    symbols: tuple[str, ...]
    network: Any
    history: list[dict[str, float | str]] = field(default_factory=list)

    def predict(self, x: np.ndarray, symbol: np.ndarray) -> np.ndarray:
        """Probabilities, shape (rows, 2): long, short."""
        import torch

        with torch.no_grad():
            return self.network(
                torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)),
                torch.from_numpy(model_index(symbol, self.symbols)),
            ).numpy()

    def to_onnx(self) -> bytes:
        """The network as one ONNX graph: inputs `x` and `model_index`, output `probability`. Scaling is inside."""
        import contextlib
        import logging
        import warnings

        import torch

        buffer = io.BytesIO()
        rows = torch.export.Dim("rows", min=1)
        # The exporter prints its progress and warns about its own opset conversions.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                self.network,
                (torch.zeros(2, len(self.inputs)), torch.zeros(2, dtype=torch.int64)),
                input_names=["x", "model_index"],
                output_names=["probability"],
                dynamic_shapes=({0: rows}, {0: rows}),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            buffer.write(program.model_proto.SerializeToString())
        return buffer.getvalue()


def model_index(symbol: Sequence[str] | np.ndarray, symbols: Sequence[str]) -> np.ndarray:
    """Which network serves each row, int64.

    Raises:
        ValueError: a symbol that none of the per-symbol networks was trained on.
    """
    if tuple(symbols) == ("*",):
        return np.zeros(len(symbol), dtype=np.int64)
    position = {s: i for i, s in enumerate(symbols)}
    if unknown := sorted({str(s) for s in symbol if s not in position}):
        raise ValueError(f"no network was trained on {', '.join(unknown)}; there are {', '.join(symbols)}")
    return np.array([position[s] for s in symbol], dtype=np.int64)


def _network(inputs: int, hidden_units: Sequence[int]) -> torch.nn.Sequential:
    import torch

    layers: list[torch.nn.Module] = []
    width = inputs
    for units in hidden_units:
        layers += [torch.nn.Linear(width, units), torch.nn.ReLU()]
        width = units
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, len(OUTPUTS)))


def _stack(networks: Sequence[torch.nn.Sequential], means: np.ndarray, scales: np.ndarray) -> torch.nn.Module:
    """Several networks of one shape as one module that picks each row's weights by index."""
    import torch

    class Stacked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.from_numpy(means))
            self.register_buffer("scale", torch.from_numpy(scales))
            linears = [[m for m in n if isinstance(m, torch.nn.Linear)] for n in networks]
            self.depth = len(linears[0])
            for i in range(self.depth):
                self.register_buffer(f"weight{i}", torch.stack([n[i].weight.detach() for n in linears]))
                self.register_buffer(f"bias{i}", torch.stack([n[i].bias.detach() for n in linears]))

        def forward(self, x: torch.Tensor, model_index: torch.Tensor) -> torch.Tensor:
            value = (x - self.mean[model_index]) / self.scale[model_index]  # type: ignore[index]
            for i in range(self.depth):
                weight, bias = getattr(self, f"weight{i}"), getattr(self, f"bias{i}")
                value = (weight[model_index] @ value.unsqueeze(-1)).squeeze(-1) + bias[model_index]
                if i < self.depth - 1:
                    value = torch.relu(value)
            return torch.sigmoid(value)

    return Stacked().eval()


def train(
    inputs: Sequence[str],
    train_rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    validation_rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    parameters: MlpParameters | None = None,
    progress: Callable[[str], None] | None = None,
) -> TrainedMlp:
    """Fit the network by AdamW on the log loss; the epoch with the lowest validation loss is kept.

    Args:
        inputs: names of the input columns.
        train_rows: (x [rows, inputs], y [rows, 2], symbol [rows]).
        validation_rows: the same, from later sessions, purged and embargoed.
        parameters: see `MlpParameters`.
        progress: called with a line of text every few epochs.

    Returns:
        The trained network; the same seed and rows give the same bits on one machine.

    Raises:
        ValueError: no rows, or a class that never occurs.
        FloatingPointError: the loss became NaN or infinite.
    """
    import torch

    parameters = parameters or MlpParameters()
    x_all, y_all, symbol_all = train_rows
    if not len(x_all) or not len(validation_rows[0]):
        raise ValueError(
            f"{len(x_all)} training and {len(validation_rows[0])} validation rows: both are needed"
        )
    symbols = tuple(sorted(set(symbol_all))) if parameters.per_symbol else ("*",)
    # The network is tiny: more threads only wait for each other, and one thread adds in one order.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        networks, means, scales, history = [], [], [], []
        for symbol in symbols:
            mine = np.ones(len(x_all), bool) if symbol == "*" else symbol_all == symbol
            theirs = np.ones(len(validation_rows[0]), bool) if symbol == "*" else validation_rows[2] == symbol
            if not theirs.any():
                raise ValueError(
                    f"{symbol} has no validation rows; train one network over all symbols instead"
                )
            network, mean, scale, losses = _fit(
                symbol,
                (x_all[mine], y_all[mine]),
                (validation_rows[0][theirs], validation_rows[1][theirs]),
                parameters,
                progress,
            )
            networks.append(network)
            means.append(mean)
            scales.append(scale)
            history += losses
    finally:
        torch.set_num_threads(threads)
    return TrainedMlp(tuple(inputs), symbols, _stack(networks, np.stack(means), np.stack(scales)), history)


def _fit(
    symbol: str,
    train_rows: tuple[np.ndarray, np.ndarray],
    validation_rows: tuple[np.ndarray, np.ndarray],
    parameters: MlpParameters,
    progress: Callable[[str], None] | None,
) -> tuple[torch.nn.Sequential, np.ndarray, np.ndarray, list[dict[str, float | str]]]:
    import copy

    import torch

    generator = torch.Generator().manual_seed(parameters.seed)
    mean = train_rows[0].mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = train_rows[0].std(axis=0, dtype=np.float64).astype(np.float32)
    scale[scale < 1e-8] = 1.0  # a constant input carries nothing; leave it at zero
    x, y = (torch.from_numpy(a) for a in ((train_rows[0] - mean) / scale, train_rows[1]))
    x_validation, y_validation = (
        torch.from_numpy(a) for a in ((validation_rows[0] - mean) / scale, validation_rows[1])
    )
    positive = y.mean(dim=0)
    if bool((positive <= 0).any()) or bool((positive >= 1).any()):
        raise ValueError(
            f"network {symbol}: a label never or always occurs in training (rates {positive.tolist()})"
        )
    positive_weight = (1 - positive) / positive if parameters.balance_classes else torch.ones(len(OUTPUTS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parameters.seed)
        network = _network(x.shape[1], parameters.hidden_units)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay
    )
    weighted = torch.nn.BCEWithLogitsLoss(pos_weight=positive_weight)
    plain = torch.nn.BCEWithLogitsLoss()
    correction = positive_weight.log()

    best_loss, best_state, since_best = math.inf, copy.deepcopy(network.state_dict()), 0
    history: list[dict[str, float | str]] = []
    for epoch in range(1, parameters.max_epochs + 1):
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for start in range(0, len(x), parameters.batch_size):
            rows = order[start : start + parameters.batch_size]
            optimizer.zero_grad(set_to_none=True)
            loss = weighted(network(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        with torch.no_grad():
            # Judged as it will be used: with the correction, against the unweighted loss.
            validation_loss = plain(network(x_validation) - correction, y_validation).item()
            train_loss = plain(network(x) - correction, y).item()
        if not math.isfinite(validation_loss) or not math.isfinite(total):
            raise FloatingPointError(
                f"network {symbol}: loss is {total / len(x)} in epoch {epoch}; lower learning_rate"
            )
        history.append(
            {"symbol": symbol, "epoch": epoch, "train_loss": train_loss, "validation_loss": validation_loss}
        )
        if validation_loss < best_loss:
            best_loss, best_state, since_best = validation_loss, copy.deepcopy(network.state_dict()), 0
        else:
            since_best += 1
        if progress and (epoch % 10 == 0 or since_best >= parameters.patience_epochs):
            progress(
                f"network {symbol}: epoch {epoch}, train {train_loss:.5f}, validation {validation_loss:.5f}"
            )
        if since_best >= parameters.patience_epochs:
            break
    network.load_state_dict(best_state)
    with torch.no_grad():
        output = network[-1]
        assert isinstance(output, torch.nn.Linear)
        output.bias.sub_(correction)
    return network, mean, scale, history


class OnnxMlp:
    """The exported network at inference: onnxruntime only, no torch.

    Args:
        model: ONNX bytes from `TrainedMlp.to_onnx`.
        symbols: as in `TrainedMlp`.
    """

    def __init__(self, model: bytes, symbols: Sequence[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.symbols = tuple(symbols)

    def predict(self, x: np.ndarray, symbol: Sequence[str] | np.ndarray) -> np.ndarray:
        """Probabilities, shape (rows, 2): long, short.

        Raises:
            ValueError: an input is NaN or infinite, or the number of inputs is wrong.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        expected = self._session.get_inputs()[0].shape[1]
        if x.ndim != 2 or x.shape[1] != expected:
            raise ValueError(f"inputs have shape {x.shape}, the model takes (rows, {expected})")
        if not np.isfinite(x).all():
            raise ValueError("an input is NaN or infinite")
        return self._session.run(["probability"], {"x": x, "model_index": model_index(symbol, self.symbols)})[
            0
        ]
