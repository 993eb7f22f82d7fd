"""What a registered classifier says about stored feature rows. Pure.

Belongs here: joining the feature tables that a bundle names, refusing features of another definition, predicting. Does not
belong here: what is done with a probability (`quant_assets/strategies`) and the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from quant_assets.models.feature_sets import FEATURE_SETS, NEWS_TABLES
from quant_resources.duckdb import query


class FeatureSchemaMismatch(ValueError):
    """The champion was trained on other feature definitions than those that are computed now."""


def require_same_features(model: str, bundle: Mapping[str, Any]) -> None:
    """Raise `FeatureSchemaMismatch` when the code computes other features than the model was trained on."""
    now = FEATURE_SETS[model].schema_hash
    then = bundle["lineage"]["feature_schema_hash"]
    if now != then:
        raise FeatureSchemaMismatch(
            f"the champion of {model} was trained on feature schema {then}, the code computes {now}. "
            "Run train_job: its challenger takes the place of a champion that cannot be fed any more."
        )


def model_rows(bundle: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> pa.Table:
    """The rows that a model can be asked about.

    Args:
        bundle: of the registered version; names its `tables` and `inputs`.
        tables: feature tables by name (`features.technical`, ...); may hold more than the bundle names.

    Returns:
        Columns symbol, session, news_source ('none' without news) and the inputs in the network's order, sorted by
        session and symbol.
    """
    wanted = bundle["tables"]
    joins = " ".join(f'JOIN "{name}" USING (symbol, session)' for name in wanted[1:])
    columns = ", ".join(f'"{name}"' for name in bundle["inputs"])
    source = next((f'"{spec.name}".source' for spec in NEWS_TABLES if spec.name in wanted), "'none'")
    return query(
        f'SELECT symbol, session, {source} AS news_source, {columns} FROM "{wanted[0]}" {joins} '
        "ORDER BY session, symbol",
        {name: tables[name] for name in wanted},
    )


def inputs_of(bundle: Mapping[str, Any], rows: pa.Table) -> tuple[np.ndarray, list[str]]:
    """(inputs of shape (rows, inputs), symbols) of `model_rows`, as `OnnxMlp.predict` takes them."""
    return np.column_stack([rows[name].to_numpy() for name in bundle["inputs"]]), rows["symbol"].to_pylist()
