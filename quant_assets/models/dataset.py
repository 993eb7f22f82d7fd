"""From feature and label tables to arrays, and which rows may train, validate and judge a model. Pure.

Belongs here: windows, purging, embargo, joins. Does not belong here: the network (`mlp.py`) and the metrics
(`evaluation.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from quant_resources.duckdb import query


class DatasetError(ValueError):
    """The tables do not give a data set that a model can be trained on. The message says what is missing."""


@dataclass(frozen=True)
class Windows:
    """Sessions of the three windows, in time order; each bound is included.

    Attributes:
        train_first, train_last: rows that the weights are fitted on (before purging).
        validation_first, in_sample_last: rows that decide when training stops.
        out_of_sample_first, out_of_sample_last: rows that the model is judged on and never saw.
        purge_before: rows train only if their label ends before this session (validation start less the embargo).
    """

    train_first: dt.date
    train_last: dt.date
    validation_first: dt.date
    in_sample_last: dt.date
    out_of_sample_first: dt.date
    out_of_sample_last: dt.date
    purge_before: dt.date


def make_windows(
    sessions: Sequence[dt.date],
    in_sample_fraction: float = 0.4,
    in_sample_last: dt.date | None = None,
    validation_fraction: float = 0.2,
    embargo_sessions: int = 5,
    in_sample_sessions: int | None = None,
) -> Windows:
    """Cut the sessions into train, validation and out-of-sample.

    Args:
        sessions: sessions that have labels, in order.
        in_sample_fraction: share of the sessions that is in sample (40 % in the AWS example).
        in_sample_last: last in-sample session, instead of the fraction.
        validation_fraction: last share of the in-sample sessions.
        embargo_sessions: sessions left out on top of purging before validation and before out-of-sample.
        in_sample_sessions: how many of the in-sample sessions are used, the newest ones; None: all.

    Raises:
        DatasetError: too few sessions for three windows.
    """
    if not 0 < in_sample_fraction < 1 or not 0 < validation_fraction < 1:
        raise DatasetError(
            f"in_sample_fraction = {in_sample_fraction} and validation_fraction = {validation_fraction} "
            "must lie in (0, 1)"
        )
    if in_sample_last is None:
        cut = int(len(sessions) * in_sample_fraction)
    else:
        cut = sum(s <= in_sample_last for s in sessions)
    start = 0 if in_sample_sessions is None else max(cut - in_sample_sessions, 0)
    validation = start + int((cut - start) * (1 - validation_fraction))
    out_of_sample = cut + embargo_sessions
    if validation - start - embargo_sessions < 20 or out_of_sample >= len(sessions) or cut - validation < 5:
        raise DatasetError(
            f"{len(sessions)} labelled sessions are too few: {validation - start - embargo_sessions} to train, "
            f"{cut - validation} to validate, {len(sessions) - out_of_sample} out of sample "
            "(at least 20, 5 and 1 are needed). Materialize a longer range of features and labels."
        )
    return Windows(
        train_first=sessions[start],
        train_last=sessions[validation - 1],
        validation_first=sessions[validation],
        in_sample_last=sessions[cut - 1],
        out_of_sample_first=sessions[out_of_sample],
        out_of_sample_last=sessions[-1],
        purge_before=sessions[validation - embargo_sessions],
    )


@dataclass(frozen=True)
class Dataset:
    """Features and labels, one row per symbol and session, sorted by session and symbol.

    Attributes:
        inputs: names of the columns of `x`.
        x: shape (rows, inputs), float32.
        y: shape (rows, 2), float32: long, short.
        session, label_end_session: shape (rows,), datetime64[D].
        symbol: shape (rows,), str.
    """

    inputs: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    session: np.ndarray
    label_end_session: np.ndarray
    symbol: np.ndarray

    def masks(self, windows: Windows) -> dict[str, np.ndarray]:
        """Boolean row masks `train`, `validation`, `out_of_sample`, purged and embargoed.

        A training row's label ends before the validation window less the embargo; a validation row's label ends
        inside the in-sample window. So no label of one window looks into the next.
        """
        session, end = self.session, self.label_end_session
        return {
            "train": (session >= np.datetime64(windows.train_first))
            & (end < np.datetime64(windows.purge_before)),
            "validation": (session >= np.datetime64(windows.validation_first))
            & (end <= np.datetime64(windows.in_sample_last)),
            "out_of_sample": (session >= np.datetime64(windows.out_of_sample_first))
            & (session <= np.datetime64(windows.out_of_sample_last)),
        }

    def take(self, mask: np.ndarray) -> Dataset:
        """The rows where `mask` holds."""
        return Dataset(
            self.inputs,
            self.x[mask],
            self.y[mask],
            self.session[mask],
            self.label_end_session[mask],
            self.symbol[mask],
        )

    def with_inputs(self, inputs: Sequence[str]) -> Dataset:
        """The same rows with a subset of the inputs."""
        columns = [self.inputs.index(name) for name in inputs]
        return Dataset(
            tuple(inputs), self.x[:, columns], self.y, self.session, self.label_end_session, self.symbol
        )


def make_dataset(features: Sequence[pa.Table], labels: pa.Table, inputs: Sequence[str]) -> Dataset:
    """Join feature tables with labels on symbol and session.

    Rows without a label (the last sessions) or without one of the features (warm-up) are left out.

    Args:
        features: tables with symbol, session and, between them, every column of `inputs`.
        labels: as `features.tables.LABELS`, all written under the same rule.
        inputs: columns of the model's input, in order.

    Raises:
        DatasetError: nothing to join, labels of several rules, or an input that is NaN or infinite.
    """
    rules = (
        labels.select(["horizon_sessions", "profit_target_pct", "stop_loss_pct", "rule"])
        .group_by(["horizon_sessions", "profit_target_pct", "stop_loss_pct", "rule"])
        .aggregate([])
    )
    if rules.num_rows > 1:
        raise DatasetError(
            f"features/labels mixes {rules.num_rows} rules: {rules.to_pylist()}. "
            "Materialize all its partitions under one configuration."
        )
    tables = {f"features_{i}": table for i, table in enumerate(features)} | {"labels": labels}
    joins = " ".join(f"JOIN features_{i} USING (symbol, session)" for i in range(1, len(features)))
    rows = query(
        f"""
        SELECT symbol, session, long, short, label_end_session, {", ".join(f'"{name}"' for name in inputs)}
        FROM features_0 {joins} JOIN labels USING (symbol, session)
        ORDER BY session, symbol
        """,
        tables,
    )
    if not rows.num_rows:
        raise DatasetError("no session has both features and labels; materialize features and labels first")
    x = np.column_stack([rows[name].to_numpy() for name in inputs]).astype(np.float32)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise DatasetError(
            f"input {inputs[column]} is {x[row, column]} for {rows['symbol'][int(row)]} on {rows['session'][int(row)]}"
        )
    return Dataset(
        inputs=tuple(inputs),
        x=x,
        y=np.column_stack([rows["long"].to_numpy(), rows["short"].to_numpy()]).astype(np.float32),
        session=rows["session"].to_numpy().astype("datetime64[D]"),
        label_end_session=rows["label_end_session"].to_numpy().astype("datetime64[D]"),
        symbol=np.asarray(rows["symbol"].to_pylist(), dtype=str),
    )
