"""What each classifier reads, and that its rows say where their news come from."""

import dataclasses

import pyarrow as pa
import pytest

from quant_assets.features import tables
from quant_assets.models.feature_sets import FEATURE_SETS, FEATURE_TABLES
from quant_assets.models.inference import inputs_of, model_rows


@pytest.mark.parametrize(
    ("name", "count"), [("mlp_technical", 31), ("mlp_sentiment", 47), ("mlp_enhanced", 79)]
)
def test_inputs_are_columns_of_the_tables_each_once(name: str, count: int) -> None:
    features = FEATURE_SETS[name]
    assert len(features.inputs) == len(set(features.inputs)) == count
    columns = [column.name for spec in features.tables for column in spec.columns]
    assert all(columns.count(name) == 1 for name in features.inputs)
    assert len(features.definitions) == len(features.tables), "each table's SQL is part of the identity"


def test_no_two_models_share_an_identity_and_a_changed_definition_is_another_one() -> None:
    assert len({features.schema_hash for features in FEATURE_SETS.values()}) == len(FEATURE_SETS)
    enhanced = FEATURE_SETS["mlp_enhanced"]
    for i in range(len(enhanced.definitions)):
        changed = list(enhanced.definitions)
        changed[i] += " "
        other = dataclasses.replace(enhanced, definitions=tuple(changed))
        assert other.schema_hash != enhanced.schema_hash
    assert set(FEATURE_TABLES) == {"features.technical", "features.sentiment", "features.peers"}


def test_rows_are_those_that_all_tables_have_and_name_the_source_of_their_news(
    sample_technical: pa.Table, sample_sentiment: pa.Table
) -> None:
    some = sample_technical.slice(2000, 40)
    peers = some.slice(0, 30).select(["symbol", "session"])
    peers = peers.append_column("source", pa.array(["another feed"] * 30))
    for i, name in enumerate(tables.COMPETITOR_INPUTS + tables.INDUSTRY_INPUTS):
        peers = peers.append_column(name, pa.array([i / 10] * 30))
    stored = {tables.TECHNICAL.name: some, tables.SENTIMENT.name: sample_sentiment, tables.PEERS.name: peers}
    sources = {}
    for model, features in FEATURE_SETS.items():
        about = {"tables": [spec.name for spec in features.tables], "inputs": features.inputs}
        rows = model_rows(about, stored)
        x, symbols = inputs_of(about, rows)
        assert x.shape == (30 if model == "mlp_enhanced" else 40, len(features.inputs))
        assert len(symbols) == len(x)
        sources[model] = set(rows["news_source"].to_pylist())
    assert sources == {
        "mlp_technical": {"none"},
        "mlp_sentiment": {"simulated"},
        "mlp_enhanced": {"simulated"},
    }
    peers_alone = {"tables": [tables.TECHNICAL.name, tables.PEERS.name], "inputs": tables.COMPETITOR_INPUTS}
    rows = model_rows(peers_alone, stored)
    assert set(rows["news_source"].to_pylist()) == {"another feed"}
    assert rows["competitor_sentiment_sma_3"].to_pylist() == [0.2] * 30
