"""Assets of the layer `posterior`: the Heston posterior of each symbol, and the calibration of the sampler.

Belongs here: the Dagster face. Does not belong here: the model and its samplers (`heston.py`), what they read (`inputs.py`),
checks on the model (`predictive.py`), the calibration itself (`calibration.py`), drawing (`plots.py`).
"""

import datetime as dt
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from quant_assets.partitions import CALENDAR, SYMBOLS, settings
from quant_assets.posterior import tables
from quant_assets.presentation import figure_markdown, markdown_table
from quant_resources.compute import Compute
from quant_resources.iceberg import Warehouse
from quant_resources.io_manager import table_metadata

if TYPE_CHECKING:
    import pyarrow as pa

    from quant_assets.posterior.heston import HestonPosterior, SamplerSettings
    from quant_assets.posterior.inputs import Returns
    from quant_assets.posterior.predictive import PredictiveCheck
    from quant_assets.posterior.priors import HestonPriors

GROUP = "posterior"
OWNERS = ["team:research"]
CALIBRATION_FILE = "calibration.db"
KEY = dg.AssetKey([GROUP, "heston"])


class PriorConfig(dg.Config):
    """Priors of the Heston model; see `priors.HestonPriors`. Rates and variances per year."""

    mu_mean: float = 0.05
    mu_sd: float = 0.2
    kappa_median: float = 5.0
    kappa_log_sd: float = 0.7
    theta_median: float = 0.03
    theta_log_sd: float = 0.7
    sigma_median: float = 0.5
    sigma_log_sd: float = 0.6
    variance_floor: float = 1e-4
    v0_median: float | None = None
    v0_log_sd: float = 0.7

    def priors(self) -> "HestonPriors":
        """As the pure modules take them."""
        from quant_assets.posterior.priors import HestonPriors

        return HestonPriors(**{name: getattr(self, name) for name in HestonPriors.__dataclass_fields__})


class HestonConfig(PriorConfig):
    """Window, sampler, limits and priors of a fit; see `inputs.read_returns` and `heston.SamplerSettings`.

    Attributes:
        last_session: instead of the end of the in-sample window; needs `beyond_in_sample` to lie after it.
        beyond_in_sample: allow sessions that models and backtests are judged on.
        fall_back: sample by `latent` (minutes) when the marginal fit breaks a limit; otherwise it is refused at once.
    """

    first_session: str | None = None
    last_session: str | None = None
    in_sample_fraction: float = 0.4
    in_sample_last: str | None = None
    beyond_in_sample: bool = False
    sampler: str = "marginal"
    chains: int = 4
    warmup: int = 300
    draws: int = 1000
    rounds: int = 4
    threads: int = 2
    latent_thinning: int = 10
    fall_back: bool = True
    seed: int | None = None
    max_r_hat: float = 1.01
    min_ess: float = 400.0
    max_divergent_fraction: float = 0.0
    min_bfmi: float = 0.3
    max_pareto_k: float = 0.7
    max_likelihood_error: float = 0.3

    def sampler_settings(self) -> "SamplerSettings":
        """As `heston.fit` takes them."""
        from quant_assets.posterior.diagnostics import Limits
        from quant_assets.posterior.heston import SamplerSettings

        return SamplerSettings(
            sampler=self.sampler,  # type: ignore[arg-type]  # fit names the allowed ones
            chains=self.chains,
            warmup=self.warmup,
            draws=self.draws,
            seed=settings().seed if self.seed is None else self.seed,
            threads=self.threads,
            rounds=self.rounds,
            latent_thinning=self.latent_thinning,
            fall_back=self.fall_back,
            limits=Limits(
                r_hat=self.max_r_hat,
                ess=self.min_ess,
                divergences=self.max_divergent_fraction,
                bfmi=self.min_bfmi,
                pareto_k=self.max_pareto_k,
                likelihood_error=self.max_likelihood_error,
            ),
        )


@dg.asset(
    key=KEY,
    group_name=GROUP,
    description="The Heston posterior of one symbol's daily total log returns, in sample (the first 40 % of the stored "
    "sessions) unless configured: draws of mu, kappa, theta, sigma, rho, v0 and v_T, per year, by NumPyro's NUTS. A fit that "
    "breaks a limit on R-hat, ESS, divergences, BFMI, Pareto k or the likelihood's own error is sampled again the slow way or refused; only accepted "
    "draws are stored. ArviZ InferenceData lies beside them as NetCDF in QUANT_HOME/posterior/heston/.",
    metadata=table_metadata(tables.HESTON),
    deps=[dg.AssetDep(["features", "technical"], partition_mapping=dg.AllPartitionMapping())],
    partitions_def=SYMBOLS,
    kinds={"numpyro", "numba", "iceberg"},
    owners=OWNERS,
    code_version="1",
    pool="training",
    check_specs=[
        dg.AssetCheckSpec(
            "converged",
            asset=KEY,
            blocking=True,
            description="R-hat, bulk and tail ESS of all seven quantities, divergences, BFMI and, where weights are used, "
            "Pareto k and the numerical error of the likelihood are within their limits.",
        ),
        dg.AssetCheckSpec(
            "in_sample_only",
            asset=KEY,
            blocking=True,
            description="No return lies after the in-sample window, unless `beyond_in_sample` is set.",
        ),
        dg.AssetCheckSpec(
            "predicts_the_data",
            asset=KEY,
            description="Volatility, kurtosis, autocorrelation of squared returns and leverage correlation of the data lie "
            "inside the 95 % bands of series simulated from the posterior. A miss speaks about the model, not the sampler.",
        ),
    ],
)
def heston(
    context: dg.AssetExecutionContext, config: HestonConfig, warehouse: dg.ResourceParam[Warehouse]
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Read returns, sample, judge, store, draw."""
    from quant_assets.posterior import plots, predictive
    from quant_assets.posterior.heston import FitRefused, HestonError, fit
    from quant_assets.posterior.inputs import read_returns

    symbol = context.partition_key
    first, last, cut = (
        _session(name, getattr(config, name)) for name in ("first_session", "last_session", "in_sample_last")
    )
    try:
        returns = read_returns(warehouse, symbol, first, last, config.in_sample_fraction, cut)
        beyond = returns.sessions[-1] > returns.in_sample_last
        yield dg.AssetCheckResult(
            check_name="in_sample_only",
            passed=config.beyond_in_sample or not beyond,
            metadata={
                "last return": str(returns.sessions[-1]),
                "in sample until": str(returns.in_sample_last),
                "beyond_in_sample": config.beyond_in_sample,
            },
        )
        if beyond and not config.beyond_in_sample:
            raise HestonError(
                f"last_session = {returns.sessions[-1]} lies after the in-sample window, which ends on "
                f"{returns.in_sample_last}: models and backtests would be judged on sessions that the posterior has seen. "
                "Set beyond_in_sample to allow it"
            )
        context.log.info(
            "%s: %d returns, %s to %s", symbol, len(returns.values), returns.sessions[0], returns.sessions[-1]
        )
        posterior = fit(returns.values, config.priors(), config.sampler_settings(), context.log.info)
    except FitRefused as refused:
        yield _converged(refused.posterior)
        raise dg.Failure(
            f"{symbol}: {refused} Nothing was stored; earlier draws of it are as they were.",
            allow_retries=False,
        ) from refused
    except HestonError as error:
        raise dg.Failure(f"{symbol}: {error}", allow_retries=False) from error
    yield _converged(posterior)
    checks = predictive.predictive_checks(posterior)
    yield _predicts(checks)

    path = warehouse.home / GROUP / "heston" / f"{symbol}.nc"
    predictive.write_netcdf(
        posterior,
        path,
        {"symbol": symbol, "first_session": returns.sessions[0], "last_session": returns.sessions[-1]},
        sessions=returns.sessions,
    )
    run = {"quant.run_id": context.run.run_id}
    # The fit first: draws without a fit would look accepted, a fit without draws is only an empty promise.
    fits = warehouse.write(
        tables.HESTON_FITS, _fit_row(returns, posterior, checks), only=symbol, properties=run
    )
    draws = _draw_rows(returns, posterior)
    done = warehouse.write(tables.HESTON, draws, only=symbol, properties=run)
    sensitivity = predictive.prior_sensitivity(posterior)
    yield dg.MaterializeResult(
        metadata={
            "dagster/partition_row_count": draws.num_rows,
            "summary": markdown_table(_summary_rows(posterior)),
            "running mean of theta": figure_markdown(
                plots.running_mean_figure(posterior),
                "Running mean of theta, the long-run variance, per chain and over all chains",
            ),
            "volatility": figure_markdown(
                plots.volatility_figure(
                    returns.values, predictive.smoothed_volatility(posterior), returns.sessions
                ),
                "Volatility given all returns, median and 90 % band, over absolute returns",
            ),
            "posterior and prior": figure_markdown(
                plots.prior_posterior_figure(posterior), "What the data say beyond the prior"
            ),
            "trace and ranks": figure_markdown(
                plots.trace_figure(posterior),
                "Draws in order, and the ranks of each chain among all: level when chains agree",
            ),
            "pairs": figure_markdown(plots.pair_figure(posterior), "Each quantity against each other"),
            "predictive": figure_markdown(
                plots.predictive_figure(checks), "Statistics of simulated series, and of the data"
            ),
            "prior sensitivity": figure_markdown(
                plots.sensitivity_figure(sensitivity), "The posterior under other priors, by re-weighting"
            ),
            "netcdf": dg.MetadataValue.path(str(path)),
            "sampler": posterior.sampler,
            **(
                {"fell back because": "; ".join(posterior.fell_back_because)}
                if posterior.fell_back_because
                else {}
            ),
            "returns": len(returns.values),
            "window": f"{returns.sessions[0]} to {returns.sessions[-1]}",
            "seconds": posterior.seconds,
            "priors": posterior.priors.as_dict(),
            "snapshot": str(done.snapshot_id),
            "snapshot of the fit": str(fits.snapshot_id),
            "snapshot of features.technical": str(returns.snapshot),
        }
    )


def _session(name: str, text: str | None) -> dt.date | None:
    if not text:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        raise dg.Failure(f"{name} = {text!r} is not a date like 2012-04-03", allow_retries=False) from error


def _converged(posterior: "HestonPosterior") -> dg.AssetCheckResult:
    diagnostics = posterior.diagnostics
    return dg.AssetCheckResult(
        check_name="converged",
        passed=not posterior.failures,
        description="; ".join(posterior.failures) or None,
        metadata={
            "quantities": markdown_table(
                [
                    {
                        "quantity": name,
                        "R-hat": round(diagnostics.r_hat[name], 4),
                        "bulk ESS": round(diagnostics.ess_bulk[name]),
                        "tail ESS": round(diagnostics.ess_tail[name]),
                    }
                    for name in diagnostics.r_hat
                ]
            ),
            "divergences": diagnostics.divergences,
            "BFMI": diagnostics.bfmi,
            # as text: metadata hold no infinity
            "Pareto k": str(diagnostics.pareto_k),
            "effective part of the weights": str(diagnostics.weight_efficiency),
            "error of the log likelihood, nats": str(diagnostics.likelihood_error),
            "sampler": posterior.sampler,
        },
    )


def _predicts(checks: "list[PredictiveCheck]") -> dg.AssetCheckResult:
    missed = [check for check in checks if not check.inside]
    return dg.AssetCheckResult(
        check_name="predicts_the_data",
        passed=not missed,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(
            f"{check.statistic} {check.observed:.3g} is outside [{check.low:.3g}, {check.high:.3g}]"
            for check in missed
        )
        or None,
        metadata={"statistics": markdown_table([check.as_row() for check in checks])},
    )


def _fit_row(returns: "Returns", posterior: "HestonPosterior", checks: "list[PredictiveCheck]") -> "pa.Table":
    from dataclasses import asdict

    import pyarrow as pa

    last = returns.sessions[-1]
    row = {
        "symbol": returns.symbol,
        "session": last,
        "available_at": CALENDAR.close(last),
        "first_session": returns.sessions[0],
        "returns": len(returns.values),
        "sampler": posterior.sampler,
        "fell_back_because": "; ".join(posterior.fell_back_because),
        "diagnostics": json.dumps(posterior.diagnostics.as_dict()),
        "priors": json.dumps(posterior.priors.as_dict()),
        "settings": json.dumps(asdict(posterior.settings)),
        "predictive": json.dumps([check.as_row() for check in checks]),
        "features_snapshot": str(returns.snapshot),
        "seconds": sum(posterior.seconds.values()),
    }
    return pa.Table.from_pylist([row], tables.HESTON_FITS.arrow_schema)


def _draw_rows(returns: "Returns", posterior: "HestonPosterior") -> "pa.Table":
    import numpy as np
    import pyarrow as pa

    chains, draws = next(iter(posterior.draws.values())).shape
    count, last = chains * draws, returns.sessions[-1]
    return pa.table(
        {
            "symbol": [returns.symbol] * count,
            "session": [last] * count,
            "available_at": [CALENDAR.close(last)] * count,
            "chain": np.repeat(np.arange(chains, dtype=np.int32), draws),
            "draw": np.tile(np.arange(draws, dtype=np.int32), chains),
            **{name: values.ravel() for name, values in posterior.draws.items()},
        },
        schema=tables.HESTON.arrow_schema,
    )


def _summary_rows(posterior: "HestonPosterior") -> list[dict[str, object]]:
    import numpy as np

    diagnostics = posterior.diagnostics
    return [
        {
            "quantity": name,
            "mean": float(values.mean()),
            "sd": float(values.std()),
            "5 %": float(np.quantile(values, 0.05)),
            "50 %": float(np.quantile(values, 0.5)),
            "95 %": float(np.quantile(values, 0.95)),
            "R-hat": round(diagnostics.r_hat[name], 4),
            "bulk ESS": round(diagnostics.ess_bulk[name]),
            "tail ESS": round(diagnostics.ess_tail[name]),
        }
        for name, values in posterior.draws.items()
    ]


class CalibrationConfig(PriorConfig):
    """What is simulated and fitted; see `calibration.CalibrationPlan`.

    Attributes:
        datasets: length of a series in sessions -> how many series.
        ranked_draws: draws that the truth is ranked among.
        fall_back: sample refused datasets by `latent` (minutes each); they count as rerouted.
        level: smallest Holm-corrected p-value that passes.
        seed: of everything.
    """

    datasets: dict[str, int] = {"500": 200, "2000": 50}  # noqa: RUF012  # a pydantic field, copied per instance
    ranked_draws: int = 99
    fall_back: bool = False
    level: float = 0.01
    seed: int | None = None


CALIBRATION_KEY = dg.AssetKey([GROUP, "heston_calibration"])


@dg.asset(
    key=CALIBRATION_KEY,
    group_name=GROUP,
    description="Simulation-based calibration of the Heston sampler, on demand: parameters from the prior, returns simulated "
    "with them (200 series of 500 sessions and 50 of 2,000 unless configured), a fit to each, and the rank of the truth of all "
    "seven quantities among its draws, which is uniform if model, likelihood and sampler are right. Resumable: finished "
    "datasets are kept in QUANT_HOME/calibration.db. Refused and rerouted fits are counted and listed.",
    metadata=table_metadata(tables.HESTON_CALIBRATION),
    kinds={"numpyro", "numba", "iceberg"},
    owners=OWNERS,
    code_version="1",
    pool="sweep",
    check_specs=[
        dg.AssetCheckSpec(
            "ranks_are_uniform",
            asset=CALIBRATION_KEY,
            description="Kolmogorov-Smirnov and chi-square of the ranks of each quantity at each length, Holm-corrected "
            "together: no p-value below 0.01.",
        )
    ],
)
def heston_calibration(
    context: dg.AssetExecutionContext,
    config: CalibrationConfig,
    warehouse: dg.ResourceParam[Warehouse],
    compute: dg.ResourceParam[Compute],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Run what is missing of the plan, judge all of it."""
    from dataclasses import replace

    import pyarrow as pa

    from quant_assets.posterior.calibration import (
        CalibrationError,
        CalibrationPlan,
        ecdf_difference_figure,
        judge,
        rank_histogram_figure,
        run_calibration,
    )

    try:
        plan = CalibrationPlan(
            datasets={int(sessions): count for sessions, count in config.datasets.items()},
            ranked_draws=config.ranked_draws,
            priors=config.priors(),
            seed=settings().seed if config.seed is None else config.seed,
        )
        plan = replace(plan, sampler=replace(plan.sampler, fall_back=config.fall_back))
        outcomes = run_calibration(plan, warehouse.home / CALIBRATION_FILE, compute, context.log.info)
        judgement = judge(outcomes, config.level)
    except CalibrationError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    columns = [column.name for column in tables.HESTON_CALIBRATION.columns]
    rows = [{"kept_draws": outcome.ranked_draws, **outcome.as_row()} for outcome in outcomes]
    done = warehouse.write(
        tables.HESTON_CALIBRATION,
        pa.Table.from_pylist(
            [{name: row[name] for name in columns} for row in rows], tables.HESTON_CALIBRATION.arrow_schema
        ),
        properties={"quant.run_id": context.run.run_id},
    )
    yield dg.AssetCheckResult(
        check_name="ranks_are_uniform",
        passed=judgement.passed,
        description="; ".join(judgement.failures) or None,
        metadata={
            "tests": markdown_table(
                [
                    {
                        "sessions": test.sessions,
                        "quantity": test.quantity,
                        "test": test.test,
                        "ranks": test.ranks,
                        "p": test.p,
                        "Holm-corrected p": test.holm_p,
                    }
                    for test in judgement.tests
                ]
            ),
        },
    )
    counts = [{"sessions": sessions, **by_status} for sessions, by_status in judgement.counts.items()]
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(rows),
            "ECDF difference": figure_markdown(
                ecdf_difference_figure(outcomes), "ECDF of the ranks minus that of uniform ones"
            ),
            "rank histograms": figure_markdown(rank_histogram_figure(outcomes), "Ranks of the truth"),
            "datasets": markdown_table(counts),
            "why refused or rerouted": markdown_table(
                [{"reason": reason, "datasets": count} for reason, count in judgement.refusals.items()]
            ),
            "smallest Holm-corrected p": min((test.holm_p for test in judgement.tests), default=float("nan")),
            "priors": plan.priors.as_dict(),
            "snapshot": str(done.snapshot_id),
        }
    )
