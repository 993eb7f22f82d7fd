"""Asking a deployed endpoint for signals. Pure.

Belongs here: the request of feature rows, what its answer must hold, why there is none. Does not belong here: what is done with a
probability (`signals.py`), the app that answers (`app.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quant_assets.serving.inputs import feature_rows
from quant_resources.endpoints import Endpoint, EndpointError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Asked:
    """What an endpoint said about one session.

    Attributes:
        probability: shape (rows, 2), in the order of the rows; None where it said nothing usable.
        model_version: that answered; 0 where none did.
        served_by: endpoint and bundle that answered, or why there is no answer.
    """

    probability: np.ndarray | None
    model_version: int
    served_by: str


def endpoint_name(model: str) -> str:
    """The endpoint that serves a registered classifier.

    >>> endpoint_name("mlp_technical")
    'signal-mlp-technical'
    """
    return "signal-" + model.replace("_", "-")


def ask_signals(endpoint: Endpoint, bundle: Mapping[str, Any], rows: pa.Table) -> Asked:
    """Probabilities of a session's rows from an endpoint.

    Args:
        endpoint: of a signal bundle.
        bundle: of the registered champion; names the inputs. An endpoint that serves a version with other inputs refuses them.
        rows: of one session, as `models.inference.model_rows` gives them.
    """
    body = json.dumps({"rows": feature_rows(bundle, rows)}).encode()
    try:
        answer = endpoint.invoke(body)
    except EndpointError as error:
        return Asked(None, 0, f"endpoint {endpoint.name} is down: {error}")
    if answer.status != 200:
        said = answer.body[:300].decode(errors="replace")
        return Asked(None, 0, f"endpoint {endpoint.name} refused: {answer.status} {said}")
    try:
        told = json.loads(answer.body)
        of = {(p["symbol"], p["session"]): p for p in told["predictions"]}
        wanted = zip(rows["symbol"].to_pylist(), rows["session"].to_pylist(), strict=True)
        found = [of[symbol, session.isoformat()] for symbol, session in wanted]
        probability = np.array([[p["probability_long"], p["probability_short"]] for p in found], np.float64)
        model, version = told["model"], int(told["model_version"])
    except (KeyError, TypeError, ValueError) as error:
        return Asked(None, 0, f"endpoint {endpoint.name} answered nonsense: {type(error).__name__}: {error}")
    if model != bundle["name"]:
        return Asked(None, 0, f"endpoint {endpoint.name} serves {model}, not {bundle['name']}")
    if not ((probability >= 0) & (probability <= 1)).all():
        return Asked(None, 0, f"endpoint {endpoint.name} answered what is no probability")
    return Asked(probability, version, f"endpoint {endpoint.name}, {answer.served_by}")
