"""The network learns what is there, nothing else, the same each time, and survives its export."""

import numpy as np
import pytest

from quant_assets.models.evaluation import auc
from quant_assets.models.mlp import MlpParameters, OnnxMlp, TrainedMlp, model_index, train

INPUTS = tuple(f"x{i}" for i in range(6))


def _rows(seed: int, count: int = 3000, signal: float = 1.5, base: float = -0.8) -> tuple[np.ndarray, ...]:
    """Two labels that depend on the first two inputs through a logistic link; inputs on unlike scales."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6))
    logit = np.column_stack([base + signal * x[:, 0], base - signal * x[:, 1]])
    y = (rng.random((count, 2)) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    scale = np.array([1, 100, 1e-3, 1, 1, 1]) + 0.0
    symbol = np.where(rng.random(count) < 0.5, "AAA", "BBB")
    return (x * scale + 5).astype(np.float32), y, symbol


def _train(**changes: object) -> TrainedMlp:
    return train(INPUTS, _rows(1), _rows(2, 1000), MlpParameters(**{"max_epochs": 25, "seed": 7, **changes}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> TrainedMlp:
    return _train()


def test_it_finds_a_signal_that_is_there(model: TrainedMlp) -> None:
    x, y, symbol = _rows(3)
    p = model.predict(x, symbol)
    best = np.column_stack([x[:, 0], -x[:, 1]])
    for i in range(2):
        assert auc(y[:, i], p[:, i]) > 0.78
        # The inputs themselves rank optimally; the network comes within a hair of them.
        assert auc(y[:, i], p[:, i]) > auc(y[:, i], best[:, i]) - 0.01


def test_it_finds_nothing_in_shuffled_labels() -> None:
    x, y, symbol = _rows(1)
    shuffled = np.random.default_rng(0).permutation(y)
    model = train(INPUTS, (x, shuffled, symbol), _rows(2, 1000, signal=0.0), MlpParameters(max_epochs=25))
    x, y, symbol = _rows(3, 6000, signal=0.0)
    p = model.predict(x, symbol)
    assert all(abs(auc(y[:, i], p[:, i]) - 0.5) < 0.03 for i in range(2))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(model: TrainedMlp) -> None:
    x, _, symbol = _rows(3)
    first, again, other = (
        model.predict(x, symbol),
        _train().predict(x, symbol),
        _train(seed=8).predict(x, symbol),
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_training_leaves_the_global_random_state_alone() -> None:
    import torch

    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    _train(max_epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_torch_and_onnx_agree_for_any_number_of_rows(model: TrainedMlp) -> None:
    exported = OnnxMlp(model.to_onnx(), model.symbols)
    x, _, symbol = _rows(3)
    for rows in (1, 2, 7, 3000):
        difference = exported.predict(x[:rows], symbol[:rows]) - model.predict(x[:rows], symbol[:rows])
        assert np.abs(difference).max() < 1e-6


def test_balanced_classes_keep_probabilities_calibrated() -> None:
    """Positives weigh more while training, and the output bias takes that back."""
    rare = {"base": -2.5, "signal": 0.7}
    x, y, symbol = _rows(5, 8000, **rare)
    for balance in (True, False):
        model = train(
            INPUTS, _rows(4, 8000, **rare), _rows(2, 2000, **rare), MlpParameters(balance_classes=balance)
        )
        assert np.allclose(model.predict(x, symbol).mean(axis=0), y.mean(axis=0), atol=0.015)


def test_training_stops_when_validation_stops_improving(model: TrainedMlp) -> None:
    long = _train(max_epochs=200, patience_epochs=4)
    losses = [float(row["validation_loss"]) for row in long.history]
    assert len(losses) < 200
    assert int(np.argmin(losses)) == len(losses) - 5


def test_one_network_per_symbol_serves_each_its_own() -> None:
    """AAA's label follows its input, BBB's the opposite: one network cannot, two can."""
    x, y, symbol = _rows(1, 6000)
    flip = symbol == "BBB"
    x = x.copy()
    x[flip, 0] = 10 - x[flip, 0]
    rows, check = (x[:4000], y[:4000], symbol[:4000]), (x[4000:], y[4000:], symbol[4000:])
    pooled = train(INPUTS, rows, check, MlpParameters(max_epochs=25))
    apart = train(INPUTS, rows, check, MlpParameters(max_epochs=25, per_symbol=True))
    assert apart.symbols == ("AAA", "BBB")
    assert auc(check[1][:, 0], apart.predict(check[0], check[2])[:, 0]) > 0.78
    assert auc(check[1][:, 0], pooled.predict(check[0], check[2])[:, 0]) < 0.6
    exported = OnnxMlp(apart.to_onnx(), apart.symbols)
    assert np.abs(exported.predict(check[0], check[2]) - apart.predict(check[0], check[2])).max() < 1e-6
    with pytest.raises(ValueError, match="no network was trained on CCC"):
        model_index(["AAA", "CCC"], apart.symbols)


def test_bad_inputs_are_refused(model: TrainedMlp) -> None:
    exported = OnnxMlp(model.to_onnx(), model.symbols)
    with pytest.raises(ValueError, match="NaN or infinite"):
        exported.predict(np.full((1, 6), np.nan), ["AAA"])
    with pytest.raises(ValueError, match=r"\(1, 5\), the model takes \(rows, 6\)"):
        exported.predict(np.zeros((1, 5)), ["AAA"])
    empty = (np.zeros((0, 6), np.float32), np.zeros((0, 2), np.float32), np.array([], str))
    with pytest.raises(ValueError, match="0 training"):
        train(INPUTS, empty, _rows(2))
    x, y, symbol = _rows(1)
    with pytest.raises(ValueError, match="never or always occurs"):
        train(INPUTS, (x, np.zeros_like(y), symbol), _rows(2))
    with pytest.raises(ValueError, match="learning_rate = -1"):
        MlpParameters(learning_rate=-1)


def test_a_loss_that_explodes_stops_the_training() -> None:
    x, y, symbol = _rows(1)
    x = x.copy()
    x[:, 0] *= np.float32(1e30)
    x[17, 0] = np.inf
    with pytest.raises(FloatingPointError, match="loss is nan"):
        train(INPUTS, (x, y, symbol), _rows(2, 1000), MlpParameters(max_epochs=3))
