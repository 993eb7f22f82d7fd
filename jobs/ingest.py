"""Bringing market data in, and the whole chain at once."""

import dagster as dg

from jobs.deployment import ENDPOINTS
from jobs.training import AGENTS
from quant_assets.partitions import BRINGS_FEATURES_TAG

ingest_job = dg.define_asset_job(
    "ingest_job",
    selection=dg.AssetSelection.groups("market"),
    description="Bars, news, minute bars and the security master of a session or a range of sessions.",
    executor_def=dg.in_process_executor,
)

securities_job = dg.define_asset_job(
    "securities_job",
    selection=dg.AssetSelection.assets("market/securities", "market/peers"),
    description="The security master and the competitors, which belong to no session: when symbols were added, or a vendor owed some.",
    executor_def=dg.in_process_executor,
)

# What endpoints answered is no part of the past that a range of sessions brings in.
CAPTURED = dg.AssetSelection.assets("serving/captured_requests")

chain_job = dg.define_asset_job(
    "chain_job",
    selection=dg.AssetSelection.groups("market", "features", "models", "serving")
    - AGENTS
    - ENDPOINTS
    - CAPTURED,
    description="The main job: the whole chain for a range of sessions, from raw data to signals of that range.",
    tags={BRINGS_FEATURES_TAG: "true"},
    executor_def=dg.in_process_executor,
)
