"""The parameters of the Heston model, their units and their priors.

Belongs here: names, priors, and the map from five standard normals to the parameters, which every sampler walks.
Does not belong here: the likelihood (`variance_filter.py`), the samplers (`heston.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

# The five dimensions of the sampler, in this order everywhere; then the two variances that follow from the path.
PARAMETERS = ("mu", "kappa", "theta", "sigma", "rho")
QUANTITIES = (*PARAMETERS, "v0", "v_T")
DT_YEARS = 1 / 252


class HestonError(ValueError):
    """Returns, priors or settings that no posterior can come from. The message names the thing, its value and the way out."""


class HestonParameters(NamedTuple):
    """Draws of the parameters; every field an array of the same shape (numpy or JAX).

    Attributes:
        mu: drift of the price, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance, per year.
        rho: correlation of price and variance shocks.
        v0: variance at the start of the paths, per year.
    """

    mu: Any
    kappa: Any
    theta: Any
    sigma: Any
    rho: Any
    v0: Any


@dataclass(frozen=True)
class HestonPriors:
    """mu ~ N, kappa, theta and sigma ~ log-normal (median, sd of the log), rho ~ U(-1, 1).

    The medians say what shares of listed companies do: shocks to the variance halve in about 35 sessions (kappa = 5 a
    year), volatility near 17 % a year (theta = 0.03), within a factor of 1.4 either way at one sd, and a volatility of
    variance of 0.5. `variance_floor` is part of the model: the variance is never below it (1e-4: 1 % a year), which
    settles what an Euler step does at zero; see `variance_filter.py`.

    v0 comes from the Gamma that kappa, theta and sigma imply, unless `v0_median` is given: then it is log-normal of its own, for
    series that begin in a storm or are known to begin in calm.
    """

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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "v0_median" and value is None:
                continue
            if not np.isfinite(value) or (field.name != "mu_mean" and value <= 0):
                above = "" if field.name == "mu_mean" else " above 0"
                raise HestonError(f"prior {field.name} = {value}: it must be a finite number{above}")
        if self.variance_floor > 0.1 * self.theta_median:
            raise HestonError(
                f"variance_floor = {self.variance_floor} is not far below theta_median = {self.theta_median}; "
                "lower the floor or raise the prior of theta"
            )

    @property
    def own_v0(self) -> tuple[float, float] | None:
        """Mean and sd of log v0 under its own prior; None for the stationary law."""
        return None if self.v0_median is None else (float(np.log(self.v0_median)), self.v0_log_sd)

    def as_dict(self) -> dict[str, float | None]:
        """Names and values, for metadata and for the identity of a result."""
        return asdict(self)

    def parameters(self, x: Any, backend: Any = np) -> tuple[Any, Any, Any, Any, Any]:
        """(mu, kappa, theta, sigma, rho) at standard normals `x` of shape (..., 5).

        Args:
            x: five independent standard normals under the prior.
            backend: the module that computes: `numpy`, or `jax.numpy` inside a NumPyro model.
        """
        if backend is np:
            from scipy.special import ndtr
        else:
            from jax.scipy.special import ndtr
        return (
            self.mu_mean + self.mu_sd * x[..., 0],
            self.kappa_median * backend.exp(self.kappa_log_sd * x[..., 1]),
            self.theta_median * backend.exp(self.theta_log_sd * x[..., 2]),
            self.sigma_median * backend.exp(self.sigma_log_sd * x[..., 3]),
            2 * ndtr(x[..., 4]) - 1,
        )

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """d parameter / d x, elementwise (the map is diagonal); shape of `x`."""
        _, kappa, theta, sigma, _ = self.parameters(x)
        return np.stack(
            [
                np.full_like(kappa, self.mu_sd),
                self.kappa_log_sd * kappa,
                self.theta_log_sd * theta,
                self.sigma_log_sd * sigma,
                2 * np.exp(-0.5 * x[..., 4] ** 2) / np.sqrt(2 * np.pi),
            ],
            axis=-1,
        )
