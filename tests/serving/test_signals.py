"""Probabilities to sides, and files that other engines read."""

import csv
import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_assets.serving.signals import make_signals, remove_stale_files, write_signal_files
from quant_assets.serving.tables import LIVE_SIGNALS
from quant_assets.strategies.mlp_long_short import MlpLongShort, choose_side

SESSION = dt.date(2013, 3, 1)
CLOSE = dt.datetime(2013, 3, 1, 21, tzinfo=dt.UTC)
LINEAGE = {
    "model": "mlp_technical",
    "model_version": 3,
    "feature_snapshots": "features.technical=1",
    "news_source": "none",
}


def _signals(
    probability: list[list[float]], session: dt.date = SESSION, strategy: str = "mlp_long_short"
) -> pa.Table:
    symbols = ["AAPL", "IBM", "MSFT"][: len(probability)]
    return make_signals(
        strategy,
        symbols,
        session,
        CLOSE,
        np.array(probability),
        MlpLongShort(sizing="shares", size=100),
        LINEAGE,
    )


def test_the_default_threshold_is_the_break_even_of_the_bracket() -> None:
    """Target 2 %, stop 1.5 %: p * 2 = (1 - p) * 1.5 at p = 3/7."""
    assert MlpLongShort().thresholds == (pytest.approx(3 / 7), pytest.approx(3 / 7))
    assert MlpLongShort(long_threshold=0.6).thresholds[0] == 0.6


def test_the_side_is_the_one_above_its_threshold() -> None:
    parameters = MlpLongShort(long_threshold=0.5, short_threshold=0.4)
    probability = np.array([[0.55, 0.3], [0.3, 0.45], [0.5, 0.4], [0.55, 0.5], [0.7, 0.45]])
    assert choose_side(probability, parameters.thresholds).tolist() == [1, -1, 0, -1, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_no_position_without_a_probability_above_its_threshold(rows: list[tuple[float, float]]) -> None:
    parameters = MlpLongShort(long_threshold=0.5, short_threshold=0.6)
    for (long, short), side in zip(rows, choose_side(np.array(rows), parameters.thresholds), strict=True):
        assert side != 1 or long > 0.5
        assert side != -1 or short > 0.6
        assert side != 0 or (long <= 0.5 and short <= 0.6)


def test_rows_carry_bracket_entry_rule_and_lineage() -> None:
    rows = LIVE_SIGNALS.conform(_signals([[0.6, 0.2], [0.2, 0.6], [0.1, 0.1]])).to_pylist()
    assert [row["target_shares"] for row in rows] == [100, -100, 0]
    assert {row["entry_rule"] for row in rows} == {"next_open"}
    assert {(row["profit_target_pct"], row["stop_loss_pct"]) for row in rows} == {(2.0, 1.5)}
    assert {(row["model"], row["model_version"]) for row in rows} == {("mlp_technical", 3)}
    assert {row["available_at"] for row in rows} == {CLOSE}


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"long_threshold = 1\.2 is not a probability"):
        MlpLongShort(long_threshold=1.2)
    with pytest.raises(ValueError, match="stop_loss_pct = 0"):
        MlpLongShort(stop_loss_pct=0)


def test_pandas_takes_the_files(tmp_path: Path) -> None:
    """The shape of Zipline's fetch_csv: a date column, a symbol column, the rest are values."""
    later = dt.date(2013, 3, 4)
    both = pa.concat_tables([_signals([[0.6, 0.2], [0.2, 0.6], [0.1, 0.1]]), _signals([[0.1, 0.1]], later)])
    paths = write_signal_files(both, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "mlp_long_short/2013-03-01.csv",
        "mlp_long_short/2013-03-04.csv",
    ]
    frame = pd.concat([pd.read_csv(path, parse_dates=["date"], index_col="date") for path in paths])
    assert list(frame.columns) == ["symbol", "signal"]
    assert frame.loc["2013-03-01"].set_index("symbol")["signal"].to_dict() == {
        "AAPL": 1,
        "IBM": -1,
        "MSFT": 0,
    }
    assert isinstance(frame.index, pd.DatetimeIndex)


def test_a_custom_data_reader_takes_the_files(tmp_path: Path) -> None:
    """LEAN's custom data: a reader gets one line of text and a date, skips what is no data, and returns a value."""

    def read_line(line: str, date: dt.date) -> dict[str, object] | None:
        if not line.strip() or not line[0].isdigit():
            return None
        day, symbol, signal = line.split(",")
        assert dt.date.fromisoformat(day) == date
        return {"time": dt.datetime.strptime(day, "%Y-%m-%d"), "symbol": symbol, "value": float(signal)}

    (path,) = write_signal_files(_signals([[0.6, 0.2], [0.2, 0.6]]), tmp_path)
    points = [point for line in path.read_text().splitlines() if (point := read_line(line, SESSION))]
    assert [(p["symbol"], p["value"]) for p in points] == [("AAPL", 1.0), ("IBM", -1.0)]
    with path.open(newline="") as file:
        assert next(csv.reader(file)) == ["date", "symbol", "signal"]


def test_writing_again_replaces_and_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_signal_files(_signals([[0.6, 0.2]]), tmp_path)
    write_signal_files(_signals([[0.2, 0.6]]), tmp_path)
    assert path.read_text() == "date,symbol,signal\n2013-03-01,AAPL,-1\n"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_signal_files(_signals([[0.6, 0.2]]), tmp_path)
    assert path.read_text() == "date,symbol,signal\n2013-03-01,AAPL,-1\n"
    assert [p.name for p in path.parent.iterdir()] == ["2013-03-01.csv"]


def test_files_of_signals_that_are_gone_are_removed_and_no_others(tmp_path: Path) -> None:
    night, later = SESSION, dt.date(2013, 3, 4)
    for strategy in ("mlp_long_short", "sac_portfolio"):
        write_signal_files(_signals([[0.9, 0.1]], strategy=strategy), tmp_path)
        write_signal_files(_signals([[0.9, 0.1]], session=later, strategy=strategy), tmp_path)
    again = _signals([[0.9, 0.1]])
    removed = remove_stale_files(again, tmp_path, ["mlp_long_short", "sac_portfolio"], [night])
    assert removed == [tmp_path / "sac_portfolio" / f"{night}.csv"]
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.csv"))
    assert left == [
        f"mlp_long_short/{night}.csv",
        f"mlp_long_short/{later}.csv",
        f"sac_portfolio/{later}.csv",
    ]
