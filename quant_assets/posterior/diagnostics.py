"""Whether draws can be believed: R-hat, effective sample sizes, divergences, BFMI, Pareto k.

Belongs here: numbers about draws, and limits on them. Does not belong here: how draws are made (`heston.py`) and
what Dagster does with a failed limit (`checks.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quant_assets.posterior.priors import QUANTITIES


@dataclass(frozen=True)
class Limits:
    """A fit outside any of these is refused; Vehtari et al. (2021) for R-hat and ESS, Betancourt (2016) for BFMI.

    Attributes:
        r_hat: rank-normalized split R-hat, the largest allowed over all quantities.
        ess: bulk and tail effective sample size, the smallest allowed.
        divergences: the largest allowed part of draws that diverged.
        bfmi: energy Bayesian fraction of missing information, the smallest allowed over chains.
        pareto_k: shape of the tail of the importance weights, the largest allowed.
        likelihood_error: sd of the log likelihood's error over posterior draws, nats, the largest allowed.
    """

    r_hat: float = 1.01
    ess: float = 400.0
    divergences: float = 0.0
    bfmi: float = 0.3
    pareto_k: float = 0.7
    likelihood_error: float = 0.3


@dataclass(frozen=True)
class Diagnostics:
    """What `Limits` judges. The last three are of the marginal sampler; None for the latent one.

    Attributes:
        r_hat, ess_bulk, ess_tail: by quantity.
        divergences: how many draws diverged.
        draws: how many there are, over all chains.
        bfmi: the smallest over chains.
        pareto_k: of the importance weights.
        weight_efficiency: effective part of the weighted draws, 1 for equal weights.
        likelihood_error: the log likelihood against one on a lattice twice as fine that cuts next to nothing, sd over
            some of the draws, nats.
    """

    r_hat: dict[str, float]
    ess_bulk: dict[str, float]
    ess_tail: dict[str, float]
    divergences: int
    draws: int
    bfmi: float
    pareto_k: float | None = None
    weight_efficiency: float | None = None
    likelihood_error: float | None = None

    def failures(self, limits: Limits) -> list[str]:
        """One sentence for each limit that is broken, with the value; empty for a fit that can be believed."""
        failed = []
        for name in QUANTITIES:
            # `not (a <= b)`: a NaN fails
            if not self.r_hat[name] <= limits.r_hat:
                failed.append(f"R-hat of {name} is {self.r_hat[name]:.4f}, above {limits.r_hat}")
            if not self.ess_bulk[name] >= limits.ess:
                failed.append(f"bulk ESS of {name} is {self.ess_bulk[name]:.0f}, below {limits.ess:.0f}")
            if not self.ess_tail[name] >= limits.ess:
                failed.append(f"tail ESS of {name} is {self.ess_tail[name]:.0f}, below {limits.ess:.0f}")
        if self.divergences > limits.divergences * self.draws:
            failed.append(f"{self.divergences} of {self.draws} draws diverged")
        if not self.bfmi >= limits.bfmi:
            failed.append(f"BFMI is {self.bfmi:.2f}, below {limits.bfmi}")
        if self.likelihood_error is not None and not self.likelihood_error <= limits.likelihood_error:
            failed.append(
                f"the log likelihood is off by {self.likelihood_error:.2f} nats from draw to draw, above "
                f"{limits.likelihood_error}"
            )
        if self.pareto_k is not None and not self.pareto_k <= limits.pareto_k:
            failed.append(f"Pareto k of the weights is {self.pareto_k:.2f}, above {limits.pareto_k}")
        return failed

    def as_dict(self) -> dict[str, Any]:
        """For tables and metadata."""
        return asdict(self)


def pareto_smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Pareto-smoothed importance weights of draws of any shape.

    Returns:
        Weights of that shape that sum to 1; Pareto k (below 0.7 the weighted draws can be believed); the effective
        part of the draws, 1 / (N sum of squared weights).

    Draws whose weights differ by less than rounding need no smoothing: k is then -inf, which is below any limit. Where every
    weight is 0, k is inf.
    """
    import arviz

    flat = np.where(np.isfinite(log_weights), log_weights, -np.inf).ravel()
    if not np.isfinite(flat.max()):
        return np.full(log_weights.shape, 1 / flat.size), np.inf, 0.0
    flat = flat - flat.max()
    if np.ptp(flat) < 1e-6:
        k = -np.inf
        weights = np.full(flat.size, 1 / flat.size)
    else:
        # arviz: -inf breaks its arithmetic; e^-700 is as good as 0
        smoothed, k = arviz.psislw(np.maximum(flat, -700.0))
        weights = np.exp(smoothed - smoothed.max())
        weights /= weights.sum()
    return weights.reshape(log_weights.shape), float(k), float(1 / (flat.size * (weights**2).sum()))


def diagnose(
    draws: dict[str, np.ndarray],
    divergences: int,
    energy: np.ndarray,
    pareto_k: float | None = None,
    weight_efficiency: float | None = None,
    likelihood_error: float | None = None,
) -> Diagnostics:
    """Diagnostics of draws (each (chains, draws)) with the energy (chains, draws) that NUTS reports."""
    import arviz

    stack = {name: np.asarray(draws[name], float) for name in QUANTITIES}
    with np.errstate(all="ignore"):
        return Diagnostics(
            r_hat={name: float(arviz.rhat(values)) for name, values in stack.items()},
            ess_bulk={name: float(arviz.ess(values, method="bulk")) for name, values in stack.items()},
            ess_tail={name: float(arviz.ess(values, method="tail")) for name, values in stack.items()},
            divergences=int(divergences),
            draws=int(next(iter(stack.values())).size),
            bfmi=float(np.min(arviz.bfmi(energy))),
            pareto_k=pareto_k,
            weight_efficiency=weight_efficiency,
            likelihood_error=likelihood_error,
        )
