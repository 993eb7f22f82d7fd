"""What a bundle has to carry beyond its model, read from what is stored.

Belongs here: the market that an execution bundle plans in, rows to try a signal bundle with. Does not belong here: the archive
(`bundle.py`), deploying it (`endpoint_assets.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quant_resources.iceberg import Warehouse

if TYPE_CHECKING:
    import pyarrow as pa

    from quant_assets.serving.execution_plan import ExpectedMarket


def read_expected_markets(
    warehouse: Warehouse, symbols: Sequence[str], log: logging.Logger
) -> tuple[dict[str, ExpectedMarket], dict[str, str]]:
    """What a session is expected to be like, per symbol: means over the days simulated from its posterior.

    These are the days that the agent was trained on, so it plans in the market that it knows.

    Args:
        warehouse: whose home holds the days.
        symbols: those that the agent was trained on; one without days any more is left out.
        log: says which were left out.

    Returns:
        Markets by symbol, and lineage: symbol -> identity of its days.

    Raises:
        MarketError: no symbol has days.
    """
    from quant_assets.serving.execution_plan import ExpectedMarket
    from quant_assets.simulation.inputs import day_files
    from quant_assets.simulation.markets import MarketError, days_identity, execution_market
    from quant_assets.simulation.transitions import read_paths

    files = day_files(warehouse, log)
    markets, lineage = {}, {}
    for symbol in symbols:
        if symbol not in files:
            log.warning(
                "%s has no simulated days any more: the bundle does not know it (posterior_job)", symbol
            )
            continue
        days, about = read_paths(files[symbol])
        market = execution_market(days, about.model)
        markets[symbol] = ExpectedMarket(
            price_dollars=float(np.median(market.mid[:, 0])),
            spread_dollars=float(market.spread.mean()),
            daily_volatility=float(np.sqrt((market.daily_volatility**2).mean())),
            volume_shares=market.expected_volume_shares.mean(axis=0),
        )
        lineage[f"days.{symbol}"] = days_identity(days, about)
    if not markets:
        raise MarketError(
            f"none of {', '.join(symbols)} has simulated days: run posterior_job for at least one symbol first"
        )
    return markets, lineage


def feature_rows(bundle: Mapping[str, Any], rows: pa.Table) -> list[dict[str, object]]:
    """Stored feature rows as a signal endpoint takes them.

    Args:
        bundle: names the inputs.
        rows: of `models.inference.model_rows`.
    """
    inputs = list(bundle["inputs"])
    return [
        {
            "symbol": row["symbol"],
            "session": row["session"].isoformat(),
            "features": {name: row[name] for name in inputs},
        }
        for row in rows.select(["symbol", "session", *inputs]).to_pylist()
    ]
