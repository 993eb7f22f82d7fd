"""What a posterior says beyond its own numbers: whether the model makes such data, what the prior decides, a file of it.

Belongs here: posterior-predictive checks, prior sensitivity without a new fit, the smoothed volatility, ArviZ's container
and its NetCDF file. Does not belong here: whether the draws can be believed (`diagnostics.py`), figures (`plots.py`).

**Posterior-predictive checks** (Gelman, Meng & Stern 1996, *Posterior predictive assessment of model fitness via realized
discrepancies*): series of the length of the data are simulated at draws of the posterior, and statistics of the data are
looked up among those of the simulated series. They judge the model, not the sampler: a perfect sampler of a model that is
too simple misses the bands, and a fit that is inside them may still be wrong elsewhere. The data were used to fit, so
p-values lean to 1/2 for whatever the parameters fit directly (volatility); nine correlated statistics at 5 % miss by chance
now and then. A miss is a warning. Every simulated series starts in the stationary Gamma law of the variance
(`variance_filter.simulate_returns`), not at the v0 of the data: it is another history of such a share, not another
ending of this one. In a short window that began or stayed in a calm or a storm, that widens the bands.

**Prior sensitivity**: posterior draws under priors p become draws under priors q with weights q / p (the likelihood and
the variances given the parameters stay, so v0 and v_T go along). Pareto-smoothed, and believed only as far as Pareto k
allows (Vehtari, Simpson, Gelman, Yao & Gabry 2024; Kallioinen, Paananen, Bürkner & Vehtari 2024, *Detecting and diagnosing
prior and likelihood sensitivity with power-scaling*).
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quant_assets.posterior.diagnostics import Limits, pareto_smoothed
from quant_assets.posterior.priors import DT_YEARS, QUANTITIES, HestonPriors

if TYPE_CHECKING:
    import arviz

    from quant_assets.posterior.heston import HestonPosterior

ACF_LAGS = 20  # sessions over which the mean autocorrelation of squared returns is taken
LEVERAGE_LAGS = 10
BAND = (0.025, 0.975)
INTERVAL = (0.05, 0.95)
FEWEST_EFFECTIVE_DRAWS = 100.0  # below it the ends of a 90 % interval are noise, whatever Pareto k says

# name -> what a reader sees
STATISTICS = {
    "volatility": "volatility, per year",
    "skewness": "skewness",
    "excess_kurtosis": "excess kurtosis",
    "smallest_return": "smallest return",
    "acf_squares_1": "ACF of squares, lag 1",
    "acf_squares_5": "ACF of squares, lag 5",
    "acf_squares_20": "ACF of squares, lag 20",
    "acf_squares_mean": f"ACF of squares, mean of 1–{ACF_LAGS}",  # noqa: RUF001
    "leverage": f"leverage, mean of 1–{LEVERAGE_LAGS}",  # noqa: RUF001
}


# ---- posterior-predictive checks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictiveCheck:
    """One statistic of the data among those of simulated series.

    Attributes:
        statistic: a name of `STATISTICS`.
        observed: of the data.
        low, median, high: 2.5 %, 50 % and 97.5 % quantiles of the simulated ones.
        p_value: two-sided posterior predictive p-value, 2 min(P(simulated <= observed), P(simulated >= observed)),
            the data counted among the simulated, at most 1.
        inside: low <= observed <= high.
        simulated: (draws,).
    """

    statistic: str
    observed: float
    low: float
    median: float
    high: float
    p_value: float
    inside: bool
    simulated: np.ndarray = field(repr=False, compare=False)

    def as_row(self) -> dict[str, object]:
        """For tables and metadata: everything but the simulated values."""
        return {
            "statistic": STATISTICS[self.statistic],
            "observed": self.observed,
            "simulated 2.5 %": self.low,
            "50 %": self.median,
            "97.5 %": self.high,
            "p-value": self.p_value,
            "inside": "yes" if self.inside else "NO",
        }


def return_statistics(returns: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of daily log returns (..., T), by the names of `STATISTICS`, each of shape (...).

    - volatility: sd (T - 1) times sqrt(252);
    - skewness, excess_kurtosis: of the moments, not corrected for T; smallest_return: a log return;
    - acf_squares_k: autocorrelation of r² at lag k sessions, sum of products over lags over the sum of squares;
      acf_squares_mean over lags 1..20: how long storms last;
    - leverage: mean over k = 1..10 of corr(r_t, r²_{t+k}): below 0 where falls are followed by storms
      (Bouchaud, Matacz & Potters 2001, *Leverage effect in financial markets*, there up to normalization).
    """
    returns = np.asarray(returns, float)
    # The smallest series has to hold some pairs at every lag.
    if returns.shape[-1] < 3 * ACF_LAGS:
        raise ValueError(
            f"{returns.shape[-1]} returns are too few for lags of {ACF_LAGS}: at least {3 * ACF_LAGS}"
        )
    centred = returns - returns.mean(axis=-1, keepdims=True)
    second = (centred**2).mean(axis=-1)
    squares = returns**2
    deviation = squares - squares.mean(axis=-1, keepdims=True)
    total = (deviation**2).sum(axis=-1)
    acf = {
        lag: (deviation[..., :-lag] * deviation[..., lag:]).sum(axis=-1) / total
        for lag in range(1, ACF_LAGS + 1)
    }
    leverage = [_correlation(returns[..., :-lag], squares[..., lag:]) for lag in range(1, LEVERAGE_LAGS + 1)]
    return {
        "volatility": returns.std(axis=-1, ddof=1) / np.sqrt(DT_YEARS),
        "skewness": (centred**3).mean(axis=-1) / second**1.5,
        "excess_kurtosis": (centred**4).mean(axis=-1) / second**2 - 3,
        "smallest_return": returns.min(axis=-1),
        "acf_squares_1": acf[1],
        "acf_squares_5": acf[5],
        "acf_squares_20": acf[20],
        "acf_squares_mean": np.mean(list(acf.values()), axis=0),
        "leverage": np.mean(leverage, axis=0),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, along the last axis."""
    a = a - a.mean(axis=-1, keepdims=True)
    b = b - b.mean(axis=-1, keepdims=True)
    return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def _some_draws(posterior: HestonPosterior, draws: int, random: np.random.Generator) -> np.ndarray:
    """Parameters (draws, 5) of different draws of the posterior, all of them where it has fewer."""
    matrix = posterior.parameter_matrix()
    return matrix[random.permutation(len(matrix))[:draws]]


def replicate(posterior: HestonPosterior, draws: int = 400, seed: int = 0) -> np.ndarray:
    """Simulated log returns (draws, T), one series of the length of the data at each of `draws` posterior draws.

    The variance starts in its prior law (the stationary Gamma, unless it has one of its own), not at the posterior of v0.
    """
    from quant_assets.posterior.variance_filter import simulate_returns

    random = np.random.default_rng(seed)
    parameters = _some_draws(posterior, draws, random)
    simulated, _ = simulate_returns(
        parameters,
        len(posterior.returns),
        posterior.priors.variance_floor,
        int(random.integers(2**62)),
        posterior.priors.own_v0,
    )
    return simulated


def predictive_checks(
    posterior: HestonPosterior, draws: int = 400, seed: int = 0, returns: np.ndarray | None = None
) -> list[PredictiveCheck]:
    """Every statistic of `STATISTICS`, in its order: the data among series that the model makes.

    Args:
        posterior: parameters of the series.
        draws: simulated series, one posterior draw each; 400 know a p-value of 5 % to about 1.5 %.
        seed: same seed, same result.
        returns: (T,) other data than those of the fit, of the same length.
    """
    data = posterior.returns if returns is None else np.asarray(returns, float)
    if data.shape != posterior.returns.shape:
        raise ValueError(
            f"returns of shape {data.shape} cannot be compared with simulated series of {len(posterior.returns)}"
        )
    observed = return_statistics(data)
    simulated = return_statistics(replicate(posterior, draws, seed))
    return [_check(name, float(observed[name]), simulated[name]) for name in STATISTICS]


def _check(name: str, observed: float, simulated: np.ndarray) -> PredictiveCheck:
    low, median, high = (float(q) for q in np.quantile(simulated, (BAND[0], 0.5, BAND[1])))
    below, above = int((simulated <= observed).sum()), int((simulated >= observed).sum())
    p_value = min(1.0, 2 * (1 + min(below, above)) / (1 + len(simulated)))
    return PredictiveCheck(name, observed, low, median, high, p_value, low <= observed <= high, simulated)


# ---- prior sensitivity ---------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """Of one quantity: posterior mean, the 5 % and 95 % quantiles, and the Monte Carlo standard error of the mean."""

    mean: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Sensitivity:
    """The posterior under other priors, as far as the draws of this one can tell.

    Attributes:
        alternative: its name.
        priors: the other priors.
        pareto_k: of the weights; -inf where all are equal.
        efficiency: effective part of the draws after weighting, 1 for equal weights.
        effective_draws: independent draws that would know the worst known of the means as well, (sd / error)² with the
            Monte Carlo error of the weighted mean: less than `efficiency` says where draws of one weight come in a row.
        intervals: by quantity (mu, kappa, theta, sigma, rho, v0, v_T), per year; empty where the weights cannot be
            believed.
        shifts: change of the mean by quantity, in posterior sds of the fit; empty likewise.
        trouble: why the weights cannot be believed, and what to do; empty where they can.
    """

    alternative: str
    priors: HestonPriors
    pareto_k: float
    efficiency: float
    effective_draws: float
    intervals: dict[str, Interval]
    shifts: dict[str, float]
    trouble: str

    @property
    def reliable(self) -> bool:
        """Whether there are numbers."""
        return not self.trouble

    def as_row(self) -> dict[str, object]:
        """For tables: mean and 90 % interval of each quantity as text, a dash where there is nothing to believe."""
        row: dict[str, object] = {
            "alternative": self.alternative,
            "Pareto k": f"{self.pareto_k:.2f}" if math.isfinite(self.pareto_k) else "–",  # noqa: RUF001
            "efficiency": f"{self.efficiency:.0%}",
        }
        for name in QUANTITIES:
            at = self.intervals.get(name)
            row[name] = f"{at.mean:.3g} [{at.low:.3g}, {at.high:.3g}]" if at else "–"  # noqa: RUF001
        return row | {"note": self.trouble}


def prior_log_density(priors: HestonPriors, draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log prior density of mu, kappa, theta, sigma and rho (jointly), up to a constant; shape of one field of `draws`.

    The density of the parameters themselves, not of the sampler's standard normals; rho is uniform under all priors.
    """
    total = np.asarray(-0.5 * ((draws["mu"] - priors.mu_mean) / priors.mu_sd) ** 2)
    for name in ("kappa", "theta", "sigma"):
        value = np.log(draws[name])
        sd = getattr(priors, f"{name}_log_sd")
        total = total - 0.5 * ((value - np.log(getattr(priors, f"{name}_median"))) / sd) ** 2 - value
    return total


def default_alternatives(priors: HestonPriors) -> dict[str, HestonPriors]:
    """The priors with all scales doubled, and each median and the sd of mu halved and doubled, by name.

    `variance_floor` belongs to the likelihood and stays. An alternative that `HestonPriors` itself refuses (theta next
    to the floor) is left out.
    """
    scales = ("mu_sd", "kappa_log_sd", "theta_log_sd", "sigma_log_sd")
    changes = {"all scales × 2": dict.fromkeys(scales, 2.0)}  # noqa: RUF001
    for name in ("mu_sd", "kappa_median", "theta_median", "sigma_median"):
        changes[f"{name} ÷ 2"] = {name: 0.5}
        changes[f"{name} × 2"] = {name: 2.0}  # noqa: RUF001
    alternatives = {}
    for label, factors in changes.items():
        try:
            alternatives[label] = replace(priors, **{k: getattr(priors, k) * f for k, f in factors.items()})
        except ValueError:
            continue
    return alternatives


def prior_sensitivity(
    posterior: HestonPosterior, alternatives: Mapping[str, HestonPriors] | None = None
) -> list[Sensitivity]:
    """The posterior as fitted, and under each alternative, by weighting the draws with the ratio of the priors.

    Args:
        posterior: whose draws are weighted.
        alternatives: other priors by name, with the same `variance_floor`; `default_alternatives` when None.

    Returns:
        First `as fitted` (equal weights), then the alternatives in their order. An alternative is believed while
        Pareto k is at most min(0.7, 1 - 1 / log10(draws)), Vehtari et al.'s limit for this many draws, and at least
        100 effective draws are left; else it has no numbers, and says that it needs a fit of its own.
    """
    given = default_alternatives(posterior.priors) if alternatives is None else alternatives
    fitted = prior_log_density(posterior.priors, posterior.draws)
    limit = min(Limits().pareto_k, 1 - 1 / math.log10(fitted.size))
    results = []
    for name, priors in {"as fitted": posterior.priors, **given}.items():
        if priors.variance_floor != posterior.priors.variance_floor:
            raise ValueError(
                f"alternative {name!r}: variance_floor = {priors.variance_floor} is part of the likelihood, "
                f"which was fitted with {posterior.priors.variance_floor}; weights cannot change it, fit again"
            )
        weights, k, efficiency = pareto_smoothed(prior_log_density(priors, posterior.draws) - fitted)
        intervals = {q: _interval(posterior.draws[q], weights) for q in QUANTITIES}
        effective = min(_effective_draws(posterior.draws[q], weights, at) for q, at in intervals.items())
        trouble = ""
        if not k <= limit:
            trouble = (
                f"Pareto k {k:.2f} is above {limit:.2f}: re-weighting is not enough, fit with these priors"
            )
        elif not effective >= FEWEST_EFFECTIVE_DRAWS:
            trouble = (
                f"{effective:.0f} effective draws are left: re-weighting is not enough, fit with these priors"
            )
        if trouble:
            intervals = {}
        shifts = {
            q: (at.mean - float(posterior.draws[q].mean())) / float(posterior.draws[q].std())
            for q, at in intervals.items()
        }
        results.append(Sensitivity(name, priors, k, efficiency, effective, intervals, shifts, trouble))
    return results


def _interval(values: np.ndarray, weights: np.ndarray) -> Interval:
    """Of values (chains, draws) with weights of that shape that sum to 1."""
    import arviz

    mean = float((weights * values).sum())
    low, high = np.quantile(values.ravel(), INTERVAL, weights=weights.ravel(), method="inverted_cdf")
    # The mean of a ratio, linearized: its error is that of the plain mean of these terms, chains and all.
    terms = weights * weights.size * (values - mean)
    error = terms.std() / np.sqrt(arviz.ess(terms, method="mean"))
    return Interval(mean, float(low), float(high), float(error))


def _effective_draws(values: np.ndarray, weights: np.ndarray, at: Interval) -> float:
    variance = float((weights * (values - at.mean) ** 2).sum())
    # chains that stand still have neither spread nor error, and know nothing
    return min(float(values.size), variance / at.error**2) if at.error > 0 else 0.0


# ---- smoothed volatility -------------------------------------------------------------------------------------------


def smoothed_volatility(
    posterior: HestonPosterior,
    draws: int = 100,
    seed: int = 0,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
) -> np.ndarray:
    """Quantiles of sqrt(v_t) given all returns, per year: (quantiles, T + 1), the last column for the next session.

    Each of `draws` posterior draws brings one path, drawn backwards through the filter, so that the band holds the
    uncertainty of the parameters too. It knows the future: not for trading at t < T.
    """
    from quant_assets.posterior.variance_filter import filter_returns

    random = np.random.default_rng(seed)
    parameters = _some_draws(posterior, draws, random)
    paths = filter_returns(
        posterior.returns,
        parameters,
        posterior.priors.variance_floor,
        own_v0=posterior.priors.own_v0,
        seeds=random.integers(2**31, size=len(parameters)),
        keep_paths=True,
        threads=posterior.settings.threads,
    ).path
    return np.sqrt(np.quantile(paths, quantiles, axis=0))


# ---- ArviZ, NetCDF -------------------------------------------------------------------------------------------------

_UNITS = dict.fromkeys(QUANTITIES, "per year") | {"rho": "1"}


def to_inference_data(
    posterior: HestonPosterior,
    attrs: Mapping[str, object] | None = None,
    sessions: Sequence[Any] | np.ndarray | None = None,
) -> arviz.InferenceData:
    """The posterior as ArviZ's container, which its plots and `arviz.summary` take.

    Groups: `posterior` (seven quantities, (chain, draw), with units), `sample_stats` (energy, diverging; of the
    surrogate's NUTS before re-sampling where the sampler is `marginal`: their draw k is not draw k of the posterior),
    `observed_data` (returns, by session), `constant_data` (the numbers of the priors). Attributes of the container:
    sampler, seed, and settings, diagnostics, failures and fell_back_because as JSON. Nothing in it tells the time: the same
    fit gives the same bytes.

    Args:
        posterior: what to keep.
        attrs: more attributes of the container (symbol, code version ...); numbers and text as they are,
            dictionaries, lists, True, False and None as JSON, all else (a date) as its text. They win over ours.
        sessions: (T,) dates of the returns; 0..T-1 when None.
    """
    import arviz
    import xarray

    chains, count = posterior.draws[QUANTITIES[0]].shape
    grid = {"chain": np.arange(chains), "draw": np.arange(count)}
    dims = ("chain", "draw")
    days = np.arange(len(posterior.returns)) if sessions is None else np.asarray(sessions, "datetime64[ns]")
    if len(days) != len(posterior.returns):
        raise ValueError(f"{len(days)} sessions for {len(posterior.returns)} returns")
    groups = {
        "posterior": xarray.Dataset(
            {name: (dims, posterior.draws[name], {"units": _UNITS[name]}) for name in QUANTITIES}, grid
        ),
        "sample_stats": xarray.Dataset(
            {"energy": (dims, posterior.energy), "diverging": (dims, posterior.divergent)},
            grid,
            {"of": "the surrogate, before re-sampling" if posterior.sampler == "marginal" else "the draws"},
        ),
        "observed_data": xarray.Dataset(
            {"returns": ("session", posterior.returns, {"units": "log return of one session"})},
            {"session": days},
        ),
        "constant_data": xarray.Dataset(
            {name: value for name, value in posterior.priors.as_dict().items() if value is not None}
        ),
    }
    about = {
        "sampler": posterior.sampler,
        "seed": posterior.settings.seed,
        "settings": asdict(posterior.settings),
        "diagnostics": posterior.diagnostics.as_dict(),
        "failures": list(posterior.failures),
        "fell_back_because": list(posterior.fell_back_because),
        **(attrs or {}),
    }
    data = arviz.InferenceData(attrs={k: _attribute(v) for k, v in about.items()})
    data.add_groups(groups)
    return data


def _attribute(value: object) -> str | int | float:
    """What a NetCDF attribute can hold: numbers and text as they are, containers as JSON, a date as its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | Mapping | list | tuple) or value is None:
        return json.dumps(_strict(value), default=str)
    return value if isinstance(value, str | int | float) else str(value)


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the text that `float` reads."""
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_netcdf(
    posterior: HestonPosterior,
    path: Path,
    attrs: Mapping[str, object] | None = None,
    sessions: Sequence[Any] | np.ndarray | None = None,
) -> Path:
    """`to_inference_data` as a NetCDF file (HDF5, engine h5netcdf), whole or not at all.

    Written under a hidden name of its own next to `path`, then renamed: a reader sees the old file or the new one, two
    writers do not mix, and a killed one leaves `path` as it was (and its own `.NAME.*.tmp` behind). Read it with
    `arviz.from_netcdf(path, engine="h5netcdf")`.
    """
    data = to_inference_data(posterior, attrs, sessions)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        data.to_netcdf(str(temporary), engine="h5netcdf")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
