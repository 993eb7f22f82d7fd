"""The posterior of the Heston model given daily returns: a NumPyro model and two samplers behind `fit`.

Belongs here: the latent model, the marginal sampler, the rule by which a fit is accepted. Does not belong here: the
likelihood and the model's definition (`variance_filter.py`), priors (`priors.py`), diagnostics' arithmetic
(`diagnostics.py`).

`latent` hands NumPyro's NUTS the whole path: five parameters and T + 1 log variances. Plain, slow, the reference.

`marginal` integrates the path out, so that five dimensions are left, and lets NUTS walk a surrogate:

1. Find the mode of the exact log posterior and its Hessian (the filter gives value and score).
2. Evaluate it at points from a wide Student t there, twice more from one moved to the mean and covariance that the
   points so far imply (adaptive multiple importance sampling, Cornuet et al. 2012). In coordinates whitened by the last
   covariance, fit a polynomial of degree 4 to the log posterior: 126 coefficients from 900 points.
3. NUTS on the surrogate, a little flattened so that its tails are the heavier ones.
4. Evaluate the exact log posterior at every draw: Pareto-smoothed importance weights (Vehtari et al. 2024) correct what
   the surrogate has wrong and say how much that was. Too much: add the draws to the points and go back to the fit.
5. Resample each chain in its order with its weights. What is left are draws from the exact posterior; what the weights
   cost shows as autocorrelation, so that the usual effective sample size tells the truth. v0 and v_T come along from the
   filter, drawn exactly given the parameters.

All coordinates `x` are the five standard normals of `HestonPriors.parameters`; `z` are whitened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from quant_assets.posterior.diagnostics import Diagnostics, Limits, diagnose, pareto_smoothed
from quant_assets.posterior.priors import DT_YEARS, PARAMETERS, HestonError, HestonPriors
from quant_assets.posterior.variance_filter import FINEST_NEGLIGIBLE, STEP, filter_returns

DIMENSIONS = len(PARAMETERS)
DEGREE = 4  # of the surrogate; even, so that it can fall off to all sides
POINTS = 300  # of each of the three proposals
PROPOSAL_FREEDOM = 8  # degrees of freedom of the Student t
PROPOSAL_SCALE = 1.4  # the edges of the posterior need points as well
TEMPERATURE = 1.15  # of the surrogate: flattening costs 4 % of the draws and keeps the weights' tail short
LOWEST = -40.0  # where the log posterior counts as this much below its largest value, or is -inf
TAIL = 0.35  # beyond the points the surrogate falls off as exp(-0.35 |z|²), a little slower than a normal
FEWEST_RETURNS = 250
LONGEST_STALE_RUN = 10
MOST_ZEROS = 0.5  # part of the returns
STARTS = 100  # prior draws among which the search for the mode begins
FARTHEST_MODE = 5.0  # in sds of the prior
PROBES = 48  # draws whose likelihood is computed again on a much finer lattice
Progress = Callable[[str], None]


class FitRefused(RuntimeError):
    """The sampler ran, and its draws cannot be believed. `posterior` holds them, for looking only."""

    def __init__(self, posterior: HestonPosterior) -> None:
        super().__init__(
            f"the {posterior.sampler} fit is refused: {'; '.join(posterior.failures)}. More draws (now "
            f"{posterior.diagnostics.draws}) help against a low ESS, other priors against a posterior that the data do "
            "not hold together; look at the trace plots first."
        )
        self.posterior = posterior


@dataclass(frozen=True)
class SamplerSettings:
    """How long to sample, and how to judge the result.

    Attributes:
        sampler: `marginal`, or `latent` for the reference.
        chains: independent chains.
        warmup: draws per chain for adaptation, not kept.
        draws: draws per chain that are kept.
        seed: same seed, same draws.
        threads: for the filter; results do not depend on it.
        rounds: most refinements of the surrogate.
        latent_thinning: `latent` walks so many draws for each one that it keeps, as its draws hang together: by 10, 4 x 1,000
            kept ones have an ESS of several hundred. Warm-up is 1,000 draws at least then.
        fall_back: a marginal fit that fails its limits is sampled again by `latent`; otherwise it is refused.
        limits: what a fit must fulfil.
    """

    sampler: Literal["marginal", "latent"] = "marginal"
    chains: int = 4
    warmup: int = 300
    draws: int = 1000
    seed: int = 0
    threads: int = 2
    rounds: int = 4
    latent_thinning: int = 10
    fall_back: bool = True
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class HestonPosterior:
    """Draws from the posterior, and whether they can be believed.

    Attributes:
        draws: by quantity (mu, kappa, theta, sigma, rho, v0, v_T; per year), each (chains, draws).
        sampler: which one they come from.
        diagnostics, failures: what was measured, and which limits it breaks (empty: accepted).
        fell_back_because: failures of the marginal fit that this latent fit replaces.
        divergent, energy: of NUTS, (chains, draws); of the surrogate's NUTS where the sampler is `marginal`.
        priors, settings, returns: what it was asked; returns (T,).
        seconds: wall-clock time by stage.
    """

    draws: dict[str, np.ndarray]
    sampler: str
    diagnostics: Diagnostics
    failures: tuple[str, ...]
    fell_back_because: tuple[str, ...]
    divergent: np.ndarray
    energy: np.ndarray
    priors: HestonPriors
    settings: SamplerSettings
    returns: np.ndarray
    seconds: dict[str, float]

    def parameter_matrix(self) -> np.ndarray:
        """(chains x draws, 5), columns mu, kappa, theta, sigma, rho, chain by chain."""
        return np.stack([self.draws[name].ravel() for name in PARAMETERS], axis=1)


def check_returns(returns: np.ndarray, priors: HestonPriors) -> np.ndarray:
    """The returns as an array of floats, if a posterior can come from them.

    Raises:
        HestonError: fewer than 250, not finite, prices that stand still for weeks, returns in percent, a volatility at
            the floor of the model.
    """
    returns = np.asarray(returns, float)
    if returns.ndim != 1:
        raise HestonError(f"returns must be one series, got an array of shape {returns.shape}")
    if len(returns) < FEWEST_RETURNS:
        raise HestonError(
            f"{len(returns)} returns are too few: the Heston model needs at least {FEWEST_RETURNS} sessions; give a "
            "longer window"
        )
    bad = np.flatnonzero(~np.isfinite(returns))
    if len(bad):
        raise HestonError(
            f"return {bad[0]} of {len(returns)} is {returns[bad[0]]} ({len(bad)} are not finite): fill or drop the "
            "missing prices first; zero or negative prices have no log return"
        )
    changes = np.flatnonzero(np.diff(np.concatenate([[0], (returns == 0).astype(int), [0]])))
    runs = changes[1::2] - changes[::2]
    if len(runs) and runs.max() >= LONGEST_STALE_RUN:
        worst = int(runs.argmax())
        if runs[worst] == len(returns):
            raise HestonError("all returns are zero: a constant price has no variance to infer")
        raise HestonError(
            f"{runs[worst]} zero returns in a row from return {changes[2 * worst]}: a price that stands still for weeks "
            f"is stale, not calm (at most {LONGEST_STALE_RUN - 1} are allowed); cut the halt out of the window"
        )
    zeros = float((returns == 0).mean())
    if zeros > MOST_ZEROS:
        raise HestonError(
            f"{zeros:.0%} of the returns are zero (at most {MOST_ZEROS:.0%} are allowed): a price that hardly trades says little "
            "about its variance; use weekly returns or another symbol"
        )
    volatility = 1.4826 * np.median(np.abs(returns - np.median(returns))) / np.sqrt(DT_YEARS)
    if volatility > 2.5:
        raise HestonError(
            f"the returns' typical volatility is {volatility:.0%} a year: they look like percent; divide by 100"
        )
    lowest = np.sqrt(priors.variance_floor)
    if np.std(returns) / np.sqrt(DT_YEARS) < 1.5 * lowest:
        raise HestonError(
            f"the returns' volatility is {np.std(returns) / np.sqrt(DT_YEARS):.3%} a year, at the model's floor of "
            f"{lowest:.1%}: lower `variance_floor` (now {priors.variance_floor}), or check the scale of the returns"
        )
    return returns


def fit(
    returns: np.ndarray,
    priors: HestonPriors | None = None,
    settings: SamplerSettings | None = None,
    progress: Progress = lambda message: None,
) -> HestonPosterior:
    """Draws from the posterior of the Heston model given daily log returns.

    Args:
        returns: (T,) daily log returns, oldest first, as fractions (0.01 is one percent).
        priors: of the five parameters.
        settings: sampler, length, limits.
        progress: is told what goes on.

    Raises:
        HestonError: returns or settings that no posterior can come from.
        FitRefused: the draws break a limit, and there is nothing (left) to fall back on.
    """
    priors, settings = priors or HestonPriors(), settings or SamplerSettings()
    if settings.sampler not in _SAMPLERS:
        raise HestonError(f"sampler {settings.sampler!r}: there are {' and '.join(_SAMPLERS)}")
    for name in ("chains", "warmup", "draws", "threads", "rounds", "latent_thinning"):
        if getattr(settings, name) < 1:
            raise HestonError(f"{name} = {getattr(settings, name)}: at least 1")
    returns = check_returns(returns, priors)
    posterior = _SAMPLERS[settings.sampler](returns, priors, settings, progress)
    if posterior.failures and posterior.sampler == "marginal" and settings.fall_back:
        progress(
            f"marginal fit refused ({'; '.join(posterior.failures)}): sampling all {len(returns) + 1} variances"
        )
        reasons = posterior.failures
        posterior = _sample_latent(returns, priors, settings, progress)
        posterior = replace(posterior, fell_back_because=reasons)
    if posterior.failures:
        raise FitRefused(posterior)
    return posterior


# ---- marginal ------------------------------------------------------------------------------------------------------


class _Surrogate(NamedTuple):
    """log posterior(z) + constant: a polynomial inside `radius`, a slow fall along rays beyond."""

    coefficients: Any
    radius: Any


@lru_cache
def _exponents() -> np.ndarray:
    """(126, 5) exponents of the monomials of degree 0..4."""
    grid = np.indices((DEGREE + 1,) * DIMENSIONS).reshape(DIMENSIONS, -1).T
    return grid[grid.sum(axis=1) <= DEGREE]


def _monomials(z: Any, backend: Any) -> Any:
    """(..., 126) monomials of z (..., 5)."""
    powers = [backend.ones_like(z)]
    for _ in range(DEGREE):
        powers.append(powers[-1] * z)
    table = backend.stack(powers, axis=-1)  # (..., 5, 5): dimension, power
    result = 1.0
    for k, column in enumerate(_exponents().T):
        result = result * table[..., k, column]
    return result


def _surrogate_log_density(z: Any, surrogate: _Surrogate, backend: Any = np) -> Any:
    """The surrogate at z (..., 5), flattened by TEMPERATURE."""
    square = (z * z).sum(axis=-1)
    # + tiny: the gradient of a norm at 0 is not a number
    inside = z * backend.minimum(1.0, surrogate.radius / backend.sqrt(square + 1e-12))[..., None]
    beyond = backend.maximum(square - surrogate.radius**2, 0.0)
    return (_monomials(inside, backend) @ surrogate.coefficients - TAIL * beyond) / TEMPERATURE


def _fit_surrogate(z: np.ndarray, log_posterior: np.ndarray) -> _Surrogate:
    """Weighted least squares. (Exact where the posterior is normal in the whitened coordinates.)

    A point counts by the fourth root of its density, so that the polynomial is good where the draws will be and not wild at
    the edges. What lies below LOWEST, or is impossible, is raised to it: it keeps the surrogate from rising there.
    """
    drop = np.maximum(log_posterior - log_posterior.max(), LOWEST)
    weight = np.exp(0.25 * drop)
    design = _monomials(z, np) * weight[:, None]
    scale = np.sqrt((design**2).mean(axis=0)) + 1e-12
    design /= scale
    # a touch of ridge: what the points cannot tell stays 0
    normal = design.T @ design / len(z) + 1e-9 * np.eye(len(scale))
    coefficients = np.linalg.solve(normal, design.T @ (drop * weight) / len(z)) / scale
    radius = np.quantile(np.sqrt((z**2).sum(axis=1))[drop > -10], 0.98)
    return _Surrogate(coefficients.astype(np.float32), np.float32(radius))


@lru_cache
def _surrogate_nuts(chains: int, warmup: int, draws: int) -> Callable[..., Any]:
    """NumPyro's NUTS on any surrogate, compiled once: the surrogate is an argument.

    numpyro's `MCMC` would compile for each new one (2 to 6 s), which is more than the sampling takes.
    """
    import jax
    import jax.numpy as jnp
    from numpyro.infer.hmc import hmc

    initialize, step = hmc(
        potential_fn_gen=lambda surrogate: lambda z: -_surrogate_log_density(z, surrogate, jnp), algo="NUTS"
    )

    def chain(surrogate: _Surrogate, key: Any, start: Any) -> Any:
        state = initialize(
            start, num_warmup=warmup, step_size=0.5, dense_mass=True, model_args=(surrogate,), rng_key=key
        )

        def one(state: Any, _: None) -> Any:
            state = step(state, model_args=(surrogate,))
            return state, (state.z, state.energy, state.diverging)

        state, _ = jax.lax.scan(one, state, None, length=warmup)
        return jax.lax.scan(one, state, None, length=draws)[1]

    return jax.jit(jax.vmap(chain, in_axes=(None, 0, 0)))


def _find_mode(
    negative_log_posterior: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mode, and the lower Cholesky factor of the inverse Hessian there (by differences of the score)."""
    from scipy.optimize import minimize

    def bounded(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = negative_log_posterior(x)
        # Finite where nothing is possible: the line search then turns back instead of giving up.
        return (value, slope) if np.isfinite(value) and np.abs(x).max() <= FARTHEST_MODE else (1e10, 0 * x)

    mode = minimize(bounded, start, jac=True, method="BFGS", options={"gtol": 0.05}).x
    distance = 0.02
    hessian = np.array(
        [
            (negative_log_posterior(mode + shift)[1] - negative_log_posterior(mode - shift)[1])
            / (2 * distance)
            for shift in distance * np.eye(DIMENSIONS)
        ]
    )
    curvature, axes = np.linalg.eigh((hessian + hessian.T) / 2)
    # The prior alone has curvature 1: less than half of it comes from a mode that was not quite reached.
    return mode, np.linalg.cholesky(axes / np.maximum(curvature, 0.5) @ axes.T)


def _student_log_density(x: np.ndarray, centre: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Multivariate Student t up to a constant."""
    square = (np.linalg.solve(factor, (x - centre).T) ** 2).sum(axis=0)
    return (
        -0.5 * (PROPOSAL_FREEDOM + DIMENSIONS) * np.log1p(square / PROPOSAL_FREEDOM)
        - np.log(np.diag(factor)).sum()
    )


def _spread_points(
    log_posterior: Callable[[np.ndarray], np.ndarray],
    centre: np.ndarray,
    factor: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points and their log posterior, and the mean and Cholesky factor of the covariance that they imply."""
    points, values, proposals = np.empty((0, DIMENSIONS)), np.empty(0), []
    for _ in range(3):
        proposal = (centre, PROPOSAL_SCALE * factor)
        normal = random.standard_normal((POINTS, DIMENSIONS))
        mixing = np.sqrt(random.chisquare(PROPOSAL_FREEDOM, (POINTS, 1)) / PROPOSAL_FREEDOM)
        new = centre + normal / mixing @ proposal[1].T
        points, values = np.concatenate([points, new]), np.concatenate([values, log_posterior(new)])
        proposals.append(proposal)
        # every point under the mixture of all proposals so far
        mixture = np.logaddexp.reduce([_student_log_density(points, *q) for q in proposals])
        weights, _, _ = pareto_smoothed(values - mixture)
        centre = weights @ points
        covariance = (points - centre).T * weights @ (points - centre)
        factor = np.linalg.cholesky(covariance + 1e-6 * np.eye(DIMENSIONS))
    return points, values, centre, factor


def _resample_in_order(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Systematic resampling of each chain (chains, draws) with its own weights: indices that never step back."""
    chains, draws = weights.shape
    picked = np.empty((chains, draws), int)
    for c in range(chains):
        cumulated = np.cumsum(weights[c]) / weights[c].sum()
        picked[c] = np.minimum(
            np.searchsorted(cumulated, (np.arange(draws) + random.random()) / draws), draws - 1
        )
    return picked


def _sample_marginal(
    returns: np.ndarray, priors: HestonPriors, settings: SamplerSettings, progress: Progress
) -> HestonPosterior:
    import jax

    clock = _Clock()
    random = np.random.default_rng(settings.seed)

    def filtered(x: np.ndarray, **options: Any) -> Any:
        matrix = np.stack(priors.parameters(x), axis=-1)
        return filter_returns(
            returns,
            matrix,
            priors.variance_floor,
            own_v0=priors.own_v0,
            threads=settings.threads,
            **options,
        )

    def log_posterior(x: np.ndarray) -> np.ndarray:
        return filtered(x).log_likelihood - 0.5 * (x**2).sum(axis=1)

    def negative_log_posterior(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = filtered(x[None], score=True)
        slope = at.score[0] * priors.jacobian(x[None])[0]
        return -(at.log_likelihood[0] - 0.5 * x @ x), -(slope - x)

    # The search begins at the best of some prior draws: from one point alone it can run away where a crash rules.
    starts = random.standard_normal((STARTS, DIMENSIONS))
    # theta: what the sample variance says, as far as the prior can follow
    starts[0] = 0
    starts[:, 2] = np.clip(
        np.log(np.var(returns) / DT_YEARS / priors.theta_median) / priors.theta_log_sd + 0.5 * starts[:, 2],
        -3,
        3,
    )
    mode, factor = _find_mode(negative_log_posterior, starts[np.nanargmax(log_posterior(starts))])
    clock.lap("mode")
    points, values, centre, factor = _spread_points(log_posterior, mode, factor, random)
    clock.lap("points")
    progress(f"mode found and {len(points)} points evaluated in {clock.total:.1f} s")

    for attempt in range(settings.rounds):
        surrogate = _fit_surrogate(np.linalg.solve(factor, (points - centre).T).T, values)
        keys = jax.random.split(jax.random.key(int(random.integers(2**31))), settings.chains)
        near = 0.5 * random.standard_normal((settings.chains, DIMENSIONS)).astype(np.float32)
        nuts = _surrogate_nuts(settings.chains, settings.warmup, settings.draws)
        z, energy, divergent = (np.asarray(a) for a in nuts(surrogate, keys, near))
        clock.lap("nuts")
        z = z.reshape(-1, DIMENSIONS).astype(float)
        x = centre + z @ factor.T
        exact = filtered(x, seeds=random.integers(2**31, size=len(x)))
        value = exact.log_likelihood - 0.5 * (x**2).sum(axis=1)
        weights, pareto_k, efficiency = pareto_smoothed(
            (value - _surrogate_log_density(z, surrogate)).reshape(energy.shape)
        )
        clock.lap("weights")
        progress(
            f"surrogate {attempt + 1}: Pareto k {pareto_k:.2f}, {efficiency:.0%} of {len(x)} draws effective, "
            f"{int(divergent.sum())} divergent, {clock.total:.1f} s"
        )
        if pareto_k <= settings.limits.pareto_k and efficiency > 0.5 and not divergent.any():
            break
        points, values = np.concatenate([points, x]), np.concatenate([values, value])

    index = np.arange(len(x)).reshape(energy.shape)
    picked = np.take_along_axis(index, _resample_in_order(weights, random), axis=1)
    draws = dict(zip(PARAMETERS, priors.parameters(x[picked]), strict=True))
    draws["v0"], draws["v_T"] = exact.ends[picked, 0], exact.ends[picked, 1]
    # What the weights cannot see: an error of the likelihood itself. A constant one would not matter.
    probed = random.choice(picked.ravel(), PROBES)
    finer = filtered(x[probed], step=STEP / 2, negligible=FINEST_NEGLIGIBLE).log_likelihood
    with np.errstate(invalid="ignore"):
        likelihood_error = float(np.std(exact.log_likelihood[probed] - finer))
    clock.lap("probes")
    diagnostics = diagnose(draws, int(divergent.sum()), energy, pareto_k, efficiency, likelihood_error)
    clock.lap("diagnostics")
    return HestonPosterior(
        draws,
        "marginal",
        diagnostics,
        tuple(diagnostics.failures(settings.limits)),
        (),
        divergent,
        energy,
        priors,
        settings,
        returns,
        clock.laps,
    )


# ---- latent --------------------------------------------------------------------------------------------------------


def heston_model(returns: Any, priors: HestonPriors) -> None:
    """The model with its whole path, for NumPyro: `x` (5,), `log_excess` (T + 1,) = log(v_t - floor).

    The same model as `variance_filter.py`, written a second time and without its tricks.
    """
    import jax.numpy as jnp
    import numpyro
    from jax.scipy.special import gammaincc, log_ndtr
    from jax.scipy.stats import gamma
    from numpyro.distributions import ImproperUniform, Normal, constraints

    x = numpyro.sample("x", Normal(0, 1).expand([DIMENSIONS]).to_event(1))
    mu, kappa, theta, sigma, rho = priors.parameters(x, jnp)
    log_excess = numpyro.sample(
        "log_excess", ImproperUniform(constraints.real_vector, (), (returns.shape[0] + 1,))
    )
    v = priors.variance_floor + jnp.exp(log_excess)
    if priors.own_v0 is None:
        shape, rate = 2 * kappa * theta / sigma**2, 2 * kappa / sigma**2
        first = gamma.logpdf(v[0], shape, scale=1 / rate) - jnp.log(
            gammaincc(shape, rate * priors.variance_floor)
        )
    else:
        first = Normal(*priors.own_v0).log_prob(jnp.log(v[0])) - jnp.log(v[0])
    numpyro.factor("v0", first)
    now, after = v[:-1], v[1:]
    drift, sd = now + kappa * (theta - now) * DT_YEARS, sigma * jnp.sqrt(now * DT_YEARS)
    shock = (after - drift) / sd
    numpyro.factor(
        "variance",
        (Normal(0, 1).log_prob(shock) - jnp.log(sd) - log_ndtr((drift - priors.variance_floor) / sd)).sum(),
    )
    numpyro.factor("to_log", log_excess.sum())
    mean, scale = (mu - now / 2) * DT_YEARS, jnp.sqrt(now * DT_YEARS)
    numpyro.sample("r", Normal(mean + scale * rho * shock, scale * jnp.sqrt(1 - rho**2)), obs=returns)


def latent_start(returns: np.ndarray, priors: HestonPriors) -> Any:
    """NumPyro's `init_strategy` of `heston_model`: near the path, at the variance of 21 sessions around each one."""
    import jax.numpy as jnp
    from numpyro.infer import init_to_value

    squares = np.concatenate([returns**2, returns[-1:] ** 2]) / DT_YEARS
    local = np.convolve(np.pad(squares, 10, mode="edge"), np.full(21, 1 / 21), mode="valid")
    excess = np.maximum(local - priors.variance_floor, 1e-3 * priors.theta_median)
    return init_to_value(values={"x": jnp.zeros(DIMENSIONS), "log_excess": jnp.log(excess)})


def latent_quantities(samples: dict[str, Any], priors: HestonPriors) -> dict[str, np.ndarray]:
    """The seven quantities, each (chains, draws), of samples of `heston_model` by chain."""
    v = priors.variance_floor + np.exp(np.asarray(samples["log_excess"][..., np.array([0, -1])], float))
    draws = dict(zip(PARAMETERS, priors.parameters(np.asarray(samples["x"], float)), strict=True))
    return {**draws, "v0": v[..., 0], "v_T": v[..., 1]}


def _sample_latent(
    returns: np.ndarray, priors: HestonPriors, settings: SamplerSettings, progress: Progress
) -> HestonPosterior:
    import jax
    import jax.numpy as jnp
    from numpyro.infer import MCMC, NUTS

    clock = _Clock()
    warmup = settings.warmup if settings.latent_thinning == 1 else max(settings.warmup, 1000)
    mcmc = MCMC(
        NUTS(heston_model, init_strategy=latent_start(returns, priors), dense_mass=[("x",)]),
        num_warmup=warmup,
        num_samples=settings.draws * settings.latent_thinning,
        thinning=settings.latent_thinning,
        num_chains=settings.chains,
        chain_method="parallel" if jax.local_device_count() >= settings.chains else "vectorized",
        progress_bar=False,
    )
    progress(
        f"latent: {settings.chains} chains of {warmup} + {settings.draws * settings.latent_thinning} draws of "
        f"{len(returns) + 1} variances, minutes"
    )
    mcmc.run(
        jax.random.key(settings.seed),
        jnp.asarray(returns, jnp.float32),
        priors,
        extra_fields=("energy", "diverging", "num_steps"),
    )
    extra = {k: np.asarray(v) for k, v in mcmc.get_extra_fields(group_by_chain=True).items()}
    draws = latent_quantities(mcmc.get_samples(group_by_chain=True), priors)
    clock.lap("nuts")
    diagnostics = diagnose(draws, int(extra["diverging"].sum()), extra["energy"])
    progress(f"latent: {extra['num_steps'].mean():.0f} leapfrogs a draw, {clock.total:.0f} s")
    return HestonPosterior(
        draws,
        "latent",
        diagnostics,
        tuple(diagnostics.failures(settings.limits)),
        (),
        extra["diverging"],
        extra["energy"],
        priors,
        settings,
        returns,
        clock.laps,
    )


class _Clock:
    """Wall-clock seconds by stage; a stage that comes again adds up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.laps.values())


_SAMPLERS = {"marginal": _sample_marginal, "latent": _sample_latent}
