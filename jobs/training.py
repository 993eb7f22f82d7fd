"""Training the models on everything that is stored: the classifiers, and the agents."""

import dagster as dg

AGENTS = dg.AssetSelection.assets("models/sac_execution", "models/sac_market_maker", "models/sac_portfolio")

train_job = dg.define_asset_job(
    "train_job",
    selection=dg.AssetSelection.groups("models") - AGENTS,
    description="Train, measure and register every classifier; a better challenger becomes champion.",
    executor_def=dg.in_process_executor,
)

train_agents_job = dg.define_asset_job(
    "train_agents_job",
    selection=AGENTS,
    description="Train the soft actor-critic agents on the posterior's days and on the stored bars, judge them on unseen days, "
    "register them; a better challenger becomes champion. A training that was killed goes on where it was. Needs "
    "posterior_job for at least one symbol.",
    executor_def=dg.in_process_executor,
)
