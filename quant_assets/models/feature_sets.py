"""Which features each model reads, and the identity of that choice. Pure.

Belongs here: the list of inputs per model. Does not belong here: how a feature is computed (`quant_assets/features`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from quant_assets.features import tables
from quant_assets.features.peers import SQL as PEERS_SQL
from quant_assets.features.sentiment import SQL as SENTIMENT_SQL
from quant_assets.features.technical import SQL as TECHNICAL_SQL
from quant_resources.iceberg import TableSpec


@dataclass(frozen=True)
class FeatureSet:
    """What a model reads.

    Attributes:
        tables: feature tables, joined on symbol and session.
        inputs: columns in the order of the network's input.
        definitions: SQL that computes them; part of the schema hash.
    """

    tables: tuple[TableSpec, ...]
    inputs: tuple[str, ...]
    definitions: tuple[str, ...]

    @property
    def schema_hash(self) -> str:
        """Identity of the feature set: input names in order and the SQL that computes them, 16 hex digits."""
        return hashlib.sha256("\n".join([*self.inputs, *self.definitions]).encode()).hexdigest()[:16]


# Features that come from news, and say of each row which.
NEWS_TABLES = (tables.SENTIMENT, tables.PEERS)
FEATURE_SETS = {
    "mlp_technical": FeatureSet((tables.TECHNICAL,), tables.TECHNICAL_INPUTS, (TECHNICAL_SQL,)),
    "mlp_sentiment": FeatureSet(
        (tables.TECHNICAL, tables.SENTIMENT),
        tables.TECHNICAL_INPUTS + tables.SENTIMENT_INPUTS,
        (TECHNICAL_SQL, SENTIMENT_SQL),
    ),
    "mlp_enhanced": FeatureSet(
        (tables.TECHNICAL, tables.SENTIMENT, tables.PEERS),
        tables.TECHNICAL_INPUTS + tables.SENTIMENT_INPUTS + tables.COMPETITOR_INPUTS + tables.INDUSTRY_INPUTS,
        (TECHNICAL_SQL, SENTIMENT_SQL, PEERS_SQL),
    ),
}
# Every table that a classifier reads, by name.
FEATURE_TABLES = {spec.name: spec for features in FEATURE_SETS.values() for spec in features.tables}
