"""Training the models on everything that is stored."""

import dagster as dg

train_job = dg.define_asset_job(
    "train_job",
    selection=dg.AssetSelection.groups("models"),
    description="Train, measure and register every model; a better challenger becomes champion.",
    executor_def=dg.in_process_executor,
)
