"""What a fit reads: the daily log returns of one symbol, and which sessions are in sample.

Belongs here: reading `features.technical` into the array that the pure modules take. Does not belong here: Dagster, and
the judgement whether a posterior can come from the returns (`heston.check_returns`).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from quant_assets.features.tables import TECHNICAL
from quant_assets.posterior.priors import HestonError
from quant_resources.iceberg import Warehouse


@dataclass(frozen=True)
class Returns:
    """Daily total log returns of one symbol, oldest first.

    Attributes:
        symbol: its name.
        values: (T,) as fractions.
        sessions: the session of each return.
        in_sample_last: last session of the in-sample window, whether or not the returns end there.
        snapshot: Iceberg snapshot of `features.technical`.
    """

    symbol: str
    values: np.ndarray
    sessions: list[dt.date]
    in_sample_last: dt.date
    snapshot: int


def read_returns(
    warehouse: Warehouse,
    symbol: str,
    first: dt.date | None = None,
    last: dt.date | None = None,
    in_sample_fraction: float = 0.4,
    in_sample_last: dt.date | None = None,
) -> Returns:
    """Returns of the in-sample window, which is the first `in_sample_fraction` of all stored sessions, as for the models.

    Args:
        warehouse: holds `features.technical`.
        symbol: of which.
        first: first session; the first stored one when None.
        last: last session, instead of the end of the in-sample window.
        in_sample_fraction: share of the sessions that is in sample.
        in_sample_last: last in-sample session, instead of the fraction.

    Raises:
        HestonError: nothing stored, unknown symbol, empty window.
    """
    if not 0 < in_sample_fraction <= 1:
        raise HestonError(f"in_sample_fraction = {in_sample_fraction} must lie in (0, 1]")
    snapshot = warehouse.snapshot_id(TECHNICAL)
    columns = ["symbol", "session", "log_return"]
    rows = warehouse.read(TECHNICAL, columns=columns, snapshot_id=snapshot).to_pandas()
    if rows.empty or snapshot is None:
        raise HestonError("features/technical holds no rows: run the chain (chain_job) first")
    if symbol not in set(rows["symbol"]):
        raise HestonError(
            f"features/technical has no rows of {symbol!r}; it has {', '.join(sorted(set(rows['symbol'])))}"
        )
    sessions = sorted(set(rows["session"]))
    if in_sample_last is None:
        in_sample_last = sessions[max(int(len(sessions) * in_sample_fraction), 1) - 1]
    rows = rows[(rows["symbol"] == symbol) & rows["log_return"].notna()].sort_values("session")
    rows = rows[(rows["session"] <= (last or in_sample_last)) & (rows["session"] >= (first or sessions[0]))]
    if rows.empty:
        raise HestonError(
            f"{symbol} has no return between {first or sessions[0]} and {last or in_sample_last}; widen the window"
        )
    return Returns(
        symbol, rows["log_return"].to_numpy(float), list(rows["session"]), in_sample_last, snapshot
    )
