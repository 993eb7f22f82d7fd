"""Tables of the layer `monitoring`: columns with units, keys, slices. Nothing else belongs here."""

from __future__ import annotations

from quant_assets.market.tables import AVAILABLE_AT, SESSION
from quant_resources.iceberg import Column, TableSpec

_MODEL = (
    Column("model", "string", "registered model", required=True),
    Column("model_version", "long", "its version: the champion when the row was computed", required=True),
)

DRIFT = TableSpec(
    name="monitoring.drift",
    description="One watched column of one served model: how far its last sessions are from the model's training reference.",
    columns=(
        *_MODEL,
        Column(
            "scope",
            "string",
            "feature, prediction, endpoint_input (captured requests) or performance",
            required=True,
        ),
        Column("column", "string", "feature, output, field of a request or measure", required=True),
        SESSION,
        AVAILABLE_AT,
        Column(
            "window_first", "date", "first session of the window, which ends with `session`", required=True
        ),
        Column("window_sessions", "long", "sessions in the window", required=True),
        Column("window_rows", "long", "rows in the window: sessions x symbols, or requests", required=True),
        Column(
            "reference_first", "date", "first session of the reference; null where no sessions are behind it"
        ),
        Column("reference_last", "date", "last session of the reference"),
        Column("reference_rows", "long", "rows of the reference"),
        Column("psi", "double", "population stability index over quantile bins of the reference, nats"),
        Column("ks", "double", "Kolmogorov-Smirnov distance, 0..1"),
        Column("wasserstein", "double", "Wasserstein-1 distance in standard deviations of the reference"),
        Column("statistic", "string", "which of the three has the smallest p-value: psi, ks or wasserstein"),
        Column(
            "p_value",
            "double",
            "the smallest p-value of the three, before any correction; null where nothing is tested",
        ),
        Column(
            "p_adjusted",
            "double",
            "the same, Holm-corrected over all that was tested for the model in this session",
        ),
        Column(
            "drifted",
            "boolean",
            "p_adjusted < alpha; performance: ADWIN saw a change for the worse within the last window",
            required=True,
        ),
        Column(
            "event_id",
            "string",
            "model:vVERSION:FIRST SESSION of the drift event that goes on; null when none does",
        ),
        Column("mean_reference", "double", "in the column's unit; performance: before ADWIN's newest change"),
        Column("mean_window", "double", "in the column's unit; performance: in ADWIN's window"),
        Column("sd_reference", "double", "in the column's unit"),
        Column("sd_window", "double", "in the column's unit"),
    ),
    key=("model", "scope", "column", "session"),
    slice_column="session",
    partition_by="year",
)

PERFORMANCE = TableSpec(
    name="monitoring.performance",
    description="What one served model achieved, by measure and by the session at whose close it became known.",
    columns=(
        *_MODEL,
        Column(
            "measure",
            "string",
            "hit_rate, brier_excess_long, brier_excess_short (Brier score less that of the base rate) or cost_residual_bps",
            required=True,
        ),
        SESSION,
        AVAILABLE_AT,
        Column("rows", "long", "signals or orders whose outcome became known", required=True),
        Column(
            "value", "double", "mean over them; hit rate 0..1, Brier score -1..1, basis points", required=True
        ),
        Column(
            "yardstick", "double", "base rate's hit rate or Brier score, or the expected cost in basis points"
        ),
        Column(
            "series_first", "date", "first session of the series, since this version serves", required=True
        ),
        Column("series_sessions", "long", "sessions of the series so far", required=True),
        Column(
            "adwin_first", "date", "first session of ADWIN's window, which ends with `session`", required=True
        ),
        Column("adwin_sessions", "long", "sessions of the series in it", required=True),
        Column("adwin_mean", "double", "mean of their values", required=True),
        Column(
            "mean_before", "double", "mean before the newest change that ADWIN saw; null before the first"
        ),
        Column(
            "changed", "boolean", "ADWIN saw a change at this session, for better or worse", required=True
        ),
        Column("drifted", "boolean", "a change for the worse was seen within the last window", required=True),
    ),
    key=("model", "measure", "session"),
    slice_column="session",
    partition_by="year",
)
