"""Tables of the layer `posterior`: columns with units, keys, slices. Nothing else belongs here."""

from __future__ import annotations

from quant_assets.market.tables import AVAILABLE_AT, SYMBOL
from quant_assets.posterior.priors import QUANTITIES
from quant_resources.iceberg import Column, TableSpec

# The last session whose return the fit has seen; the draws are known at its close.
LAST_SEEN = Column("session", "date", "last session whose return the fit has seen", required=True)
_UNITS = {
    "mu": "drift of the price, per year",
    "kappa": "speed of mean reversion of the variance, per year",
    "theta": "long-run variance, per year",
    "sigma": "volatility of variance, per year",
    "rho": "correlation of price and variance shocks",
    "v0": "variance of the first session, per year",
    "v_T": "variance of the session after the last one, per year",
}

HESTON = TableSpec(
    name="posterior.heston",
    description="One draw from the posterior of the Heston model of one symbol; all draws count the same.",
    columns=(
        SYMBOL,
        LAST_SEEN,
        AVAILABLE_AT,
        Column("chain", "int", "chain, from 0", required=True),
        Column("draw", "int", "draw within the chain, from 0", required=True),
        *(Column(name, "double", _UNITS[name], required=True) for name in QUANTITIES),
    ),
    key=("symbol", "chain", "draw"),
    slice_column="symbol",
    partition_by="value",
)

HESTON_FITS = TableSpec(
    name="posterior.heston_fits",
    description="How the draws of one symbol came about, and why they can be believed. Only accepted fits are stored.",
    columns=(
        SYMBOL,
        LAST_SEEN,
        AVAILABLE_AT,
        Column("first_session", "date", "first session whose return the fit has seen", required=True),
        Column("returns", "int", "number of daily log returns", required=True),
        Column("sampler", "string", "marginal or latent", required=True),
        Column(
            "fell_back_because",
            "string",
            "limits that the marginal fit broke before latent replaced it; '' otherwise",
            required=True,
        ),
        Column("diagnostics", "string", "see diagnostics.Diagnostics, JSON", required=True),
        Column("priors", "string", "see priors.HestonPriors, JSON", required=True),
        Column("settings", "string", "see heston.SamplerSettings, JSON", required=True),
        Column("predictive", "string", "posterior-predictive checks, JSON list", required=True),
        Column("features_snapshot", "string", "Iceberg snapshot of features.technical", required=True),
        Column("seconds", "double", "wall-clock time of the fit", required=True),
    ),
    key=("symbol",),
    slice_column="symbol",
    partition_by="value",
)

HESTON_CALIBRATION = TableSpec(
    name="posterior.heston_calibration",
    description="One fit to returns that were simulated from the prior: where the truth ranks among the draws. No market "
    "data, so no session.",
    columns=(
        Column("sessions", "int", "length of the simulated series", required=True),
        Column("replicate", "int", "number of the dataset within its length", required=True),
        Column("seed", "long", "of the dataset and its fit", required=True),
        Column("status", "string", "accepted, rerouted or refused", required=True),
        Column("reason", "string", "why it was rerouted or refused; '' otherwise", required=True),
        *(Column(f"truth_{name}", "double", f"truth: {_UNITS[name]}", required=True) for name in QUANTITIES),
        *(
            Column(f"rank_{name}", "int", f"rank of the true {name} among the kept draws; null if refused")
            for name in QUANTITIES
        ),
        Column("kept_draws", "int", "draws that the truth is ranked among; ranks are 0..kept_draws"),
        Column("seconds", "double", "wall-clock time of the fit", required=True),
    ),
    key=("sessions", "replicate"),
)
