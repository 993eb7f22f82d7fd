"""Training the models on everything that is stored: the classifiers, and the agents."""

import dagster as dg

AGENTS = dg.AssetSelection.assets("models/sac_execution", "models/sac_market_maker", "models/sac_portfolio")
JUDGED_AGENTS = dg.AssetSelection.assets(
    "backtests/execution", "backtests/market_making", "backtests/portfolio"
)

train_job = dg.define_asset_job(
    "train_job",
    selection=dg.AssetSelection.groups("models") - AGENTS,
    description="Train, measure and register every classifier; a better challenger becomes champion.",
    executor_def=dg.in_process_executor,
)

train_agents_job = dg.define_asset_job(
    "train_agents_job",
    selection=AGENTS | JUDGED_AGENTS,
    description="Train the soft actor-critic agents on the posterior's days and on the stored bars, register them, a better "
    "challenger becomes champion; then backtest the champions on days that none has seen. A training that was killed goes on "
    "where it was. Needs posterior_job for at least one symbol.",
    executor_def=dg.in_process_executor,
)
