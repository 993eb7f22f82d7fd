"""Backtests of every strategy, the parameter sweep before them and the report after them."""

import dagster as dg

from jobs.training import JUDGED_AGENTS

backtest_job = dg.define_asset_job(
    "backtest_job",
    selection=dg.AssetSelection.groups("backtests") - JUDGED_AGENTS,
    description="Sweep the strategies' parameters (finished trials are not run again), backtest every strategy on all stored "
    "sessions, write the tear sheets and the comparison.",
    executor_def=dg.in_process_executor,
)
