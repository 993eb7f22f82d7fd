"""The only place that composes: assets, checks, jobs, schedules, sensors and the resources of this deployment.

Belongs here: wiring. Does not belong here: any logic. `dagster dev`, `workspace.yaml` and the tests all load this.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import dagster as dg

# Single-run backfills and freshness policies are marked beta or preview in Dagster 1.13; the graph rests on them
# knowingly, and a warning per asset would bury the messages that matter.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

from jobs import backtests, deployment, ingest, maintenance, nightly, posterior, training  # noqa: E402
from quant_assets.backtests import ablation_assets  # noqa: E402
from quant_assets.backtests import agent_assets as agent_backtest_assets  # noqa: E402
from quant_assets.backtests import assets as backtest_assets  # noqa: E402
from quant_assets.features import assets as feature_assets  # noqa: E402
from quant_assets.features import checks as feature_checks  # noqa: E402
from quant_assets.features import tables as feature_tables  # noqa: E402
from quant_assets.market import assets as market_assets  # noqa: E402
from quant_assets.market import checks as market_checks  # noqa: E402
from quant_assets.market import peer_assets  # noqa: E402
from quant_assets.market import tables as market_tables  # noqa: E402
from quant_assets.models import agent_assets  # noqa: E402
from quant_assets.models import assets as model_assets  # noqa: E402
from quant_assets.monitoring import assets as monitoring_assets  # noqa: E402
from quant_assets.monitoring import tables as monitoring_tables  # noqa: E402
from quant_assets.partitions import settings  # noqa: E402
from quant_assets.posterior import assets as posterior_assets  # noqa: E402
from quant_assets.serving import assets as serving_assets  # noqa: E402
from quant_assets.serving import endpoint_assets  # noqa: E402
from quant_assets.serving import tables as serving_tables  # noqa: E402
from quant_assets.simulation import assets as simulation_assets  # noqa: E402
from quant_assets.simulation import transition_assets  # noqa: E402
from quant_assets.table_checks import stored_table_check  # noqa: E402
from quant_resources.alerts import LogAlerts  # noqa: E402
from quant_resources.compute import Compute  # noqa: E402
from quant_resources.endpoints import open_endpoints  # noqa: E402
from quant_resources.iceberg import TableSpec, Warehouse  # noqa: E402
from quant_resources.io_manager import IcebergIOManager  # noqa: E402
from quant_resources.peers import open_peer_finder  # noqa: E402
from quant_resources.registry import ModelRegistry  # noqa: E402
from quant_resources.sources import open_source  # noqa: E402
from sensors import automation, drift, failures, vendors  # noqa: E402
from sensors import endpoints as endpoint_sensors  # noqa: E402

TABLE_MODULES = (market_tables, feature_tables, serving_tables, monitoring_tables)
ASSET_MODULES = (
    market_assets,
    peer_assets,
    feature_assets,
    posterior_assets,
    simulation_assets,
    transition_assets,
    model_assets,
    agent_assets,
    backtest_assets,
    ablation_assets,
    agent_backtest_assets,
    serving_assets,
    endpoint_assets,
    monitoring_assets,
)
CHECK_MODULES = (market_checks, feature_checks)


def table_specs(modules: tuple[ModuleType, ...] = TABLE_MODULES) -> dict[dg.AssetKey, TableSpec]:
    """Every `TableSpec` that the layers declare, by asset key."""
    return {
        dg.AssetKey(value.name.split(".")): value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, TableSpec)
    }


def build_defs(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The whole graph.

    Args:
        resource_overrides: resources that replace those of the deployment by name (`warehouse`, `source`,
            `peer_finder`, `registry`, `endpoints`, `compute`, `alerts`, `io_manager`); tests pass a temporary warehouse here.
    """
    config = settings()
    overrides = dict(resource_overrides or {})
    warehouse = overrides.get("warehouse") or Warehouse(config.home)
    source = overrides.get("source") or open_source(config)
    tables = table_specs()
    assets = [
        asset
        for asset in dg.load_assets_from_modules(ASSET_MODULES, include_specs=True)
        if source.has_minute_bars or asset.key != dg.AssetKey(["market", "minute_bars"])
    ]
    present = {asset.key for asset in assets}
    return dg.Definitions(
        assets=assets,
        asset_checks=[
            *dg.load_asset_checks_from_modules(CHECK_MODULES),
            *(stored_table_check(spec) for key, spec in tables.items() if key in present),
        ],
        jobs=[
            ingest.chain_job,
            ingest.ingest_job,
            ingest.securities_job,
            posterior.posterior_job,
            posterior.calibration_job,
            training.train_job,
            training.train_agents_job,
            backtests.backtest_job,
            deployment.deploy_job,
            deployment.redeploy_job,
            deployment.rollback_job,
            deployment.restart_endpoint_job,
            deployment.approve_job,
            deployment.teardown_job,
            nightly.daily_signals_job,
            maintenance.maintenance_job,
        ],
        schedules=[nightly.daily_signals_schedule, maintenance.maintenance_schedule],
        sensors=[
            failures.run_failure_sensor,
            vendors.waiting_symbols_sensor,
            automation.feature_automation,
            drift.model_drift_sensor,
            endpoint_sensors.endpoint_health_sensor,
            endpoint_sensors.new_champion_sensor,
        ],
        resources={
            "warehouse": warehouse,
            "source": source,
            "peer_finder": open_peer_finder(config),
            "registry": ModelRegistry(config.home),
            "endpoints": open_endpoints(config),
            "compute": Compute(config.compute_backend, config.compute_jobs),
            "alerts": LogAlerts(alerts_file=str(config.home / "alerts.jsonl")),
            "io_manager": IcebergIOManager(warehouse, tables),
            **overrides,
        },
        # Materializing from the UI runs in one process too; heavy assets bring their own.
        executor=dg.in_process_executor,
    )


defs = build_defs()
