"""The Heston posterior of a symbol with the paths simulated from it, and the calibration of the sampler."""

import dagster as dg

posterior_job = dg.define_asset_job(
    "posterior_job",
    selection=dg.AssetSelection.assets("posterior/heston") | dg.AssetSelection.groups("simulation"),
    description="Fit the Heston model to one symbol's in-sample returns and simulate days from the posterior; one partition "
    "per symbol.",
    executor_def=dg.in_process_executor,
)

calibration_job = dg.define_asset_job(
    "calibration_job",
    selection=dg.AssetSelection.assets("posterior/heston_calibration"),
    description="Simulation-based calibration of the sampler: on demand, resumable; finished datasets are not fitted again.",
    executor_def=dg.in_process_executor,
)
