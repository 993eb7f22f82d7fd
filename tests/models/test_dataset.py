"""Windows that cannot look into each other, and joins that fail loudly."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.features.labels import LabelParameters, labels
from quant_assets.features.tables import SENTIMENT_INPUTS, TECHNICAL_INPUTS
from quant_assets.models.dataset import Dataset, DatasetError, make_dataset, make_windows
from quant_resources.calendar import TradingCalendar


@pytest.fixture(scope="module")
def dataset(sample_technical: pa.Table, sample_labels: pa.Table) -> Dataset:
    return make_dataset([sample_technical], sample_labels, TECHNICAL_INPUTS)


def test_rows_have_31_inputs_two_labels_and_are_in_time_order(dataset: Dataset) -> None:
    assert dataset.x.shape[1] == 31
    assert dataset.y.shape == (len(dataset.x), 2)
    assert set(np.unique(dataset.y)) == {0.0, 1.0}
    assert (np.diff(dataset.session.astype(int)) >= 0).all()


def test_each_row_is_its_own_symbol_and_session(
    dataset: Dataset, sample_technical: pa.Table, sample_labels: pa.Table
) -> None:
    """Spot rows against the tables, by hand instead of by join."""
    features = {(r["symbol"], r["session"]): r for r in sample_technical.to_pylist()}
    outcomes = {(r["symbol"], r["session"]): r for r in sample_labels.to_pylist()}
    for i in range(0, len(dataset.x), 997):
        key = (str(dataset.symbol[i]), dataset.session[i].astype(object))
        assert dataset.x[i, 0] == np.float32(features[key]["scaled_close"])
        assert dataset.x[i, -1] == np.float32(features[key]["roc_16_pct"])
        assert tuple(dataset.y[i]) == (outcomes[key]["long"], outcomes[key]["short"])


@settings(deadline=None, max_examples=30)
@given(
    fraction=st.floats(0.2, 0.8),
    validation=st.floats(0.1, 0.5),
    embargo=st.integers(0, 20),
)
def test_no_label_of_one_window_reaches_into_the_next(
    dataset: Dataset, fraction: float, validation: float, embargo: int
) -> None:
    sessions = sorted(set(dataset.session.astype(object)))
    windows = make_windows(sessions, fraction, None, validation, embargo)
    masks = dataset.masks(windows)
    train, check, unseen = (dataset.take(masks[k]) for k in ("train", "validation", "out_of_sample"))
    assert not (masks["train"] & masks["validation"]).any()
    assert not (masks["validation"] & masks["out_of_sample"]).any()
    assert train.label_end_session.max() < check.session.min()
    assert check.label_end_session.max() < unseen.session.min()
    position = {s: i for i, s in enumerate(sessions)}
    gap = (
        position[check.session.min().astype(object)] - position[train.label_end_session.max().astype(object)]
    )
    assert gap > embargo


def test_the_default_is_the_first_forty_percent(dataset: Dataset) -> None:
    sessions = sorted(set(dataset.session.astype(object)))
    windows = make_windows(sessions)
    assert sum(s <= windows.in_sample_last for s in sessions) == int(0.4 * len(sessions))
    chosen = make_windows(sessions, in_sample_last=dt.date(2008, 6, 30))
    assert chosen.in_sample_last == dt.date(2008, 6, 30)


def test_too_few_sessions_are_refused_with_the_counts(dataset: Dataset) -> None:
    sessions = sorted(set(dataset.session.astype(object)))[:40]
    with pytest.raises(DatasetError, match="40 labelled sessions are too few"):
        make_windows(sessions)
    with pytest.raises(DatasetError, match=r"in_sample_fraction = 1\.5"):
        make_windows(sessions, in_sample_fraction=1.5)


def test_labels_of_two_rules_are_refused(
    sample_technical: pa.Table, sample_bars: pa.Table, calendar: TradingCalendar
) -> None:
    first, middle, last = dt.date(2012, 1, 3), dt.date(2012, 6, 29), dt.date(2012, 12, 31)
    old = labels(sample_bars, calendar, first, middle)
    new = labels(sample_bars, calendar, dt.date(2012, 7, 2), last, LabelParameters(profit_target_pct=3.0))
    with pytest.raises(DatasetError, match="mixes 2 rules"):
        make_dataset([sample_technical], pa.concat_tables([old, new]), TECHNICAL_INPUTS)


def test_nothing_to_join_and_broken_inputs_are_refused(
    sample_technical: pa.Table, sample_labels: pa.Table
) -> None:
    with pytest.raises(DatasetError, match="materialize features and labels first"):
        make_dataset([sample_technical.slice(0, 0)], sample_labels, TECHNICAL_INPUTS)
    broken = sample_technical.to_pandas()
    broken.loc[100, "roc_5_pct"] = np.inf
    with pytest.raises(DatasetError, match="roc_5_pct is inf for"):
        make_dataset([pa.Table.from_pandas(broken)], sample_labels, TECHNICAL_INPUTS)


def test_sentiment_joins_on_the_same_session(
    sample_technical: pa.Table, sample_sentiment: pa.Table, sample_labels: pa.Table
) -> None:
    both = make_dataset(
        [sample_technical, sample_sentiment], sample_labels, TECHNICAL_INPUTS + SENTIMENT_INPUTS
    )
    assert both.x.shape[1] == 47
    values = {(r["symbol"], r["session"]): r["sentiment_sma_1"] for r in sample_sentiment.to_pylist()}
    column = both.inputs.index("sentiment_sma_1")
    for i in range(0, len(both.x), 1013):
        assert both.x[i, column] == np.float32(values[str(both.symbol[i]), both.session[i].astype(object)])
