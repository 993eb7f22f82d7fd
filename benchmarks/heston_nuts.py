"""The Heston posterior: effective draws a second, the marginal sampler against the latent one.

Belongs here: both samplers of `quant_assets/posterior/heston.py` on the same returns, clocked warm and with compilation, and
what a fit costs by length and for many symbols. Does not belong here: whether the posterior is right
(`tests/posterior`, `posterior/heston_calibration`).

The unit is the smallest bulk ESS over mu, kappa, theta, sigma, rho, v0 and v_T, per second of wall-clock time on all cores.

* **Warm.** Both compiled, both the whole sampling with what it needs to adapt. Marginal: mode, points, NUTS, weights, draws
  of v0 and v_T, diagnostics. Latent: its warm-up and at least 4,000 kept draws, one chain per core, clocked in parts. Beside it
  the ratio to latent's *kept draws alone*, as if its warm-up cost nothing.
* **With compilation.** Each sampler in a fresh process with an empty Numba cache and without JAX's persistent cache, from
  before the first import of JAX and Numba to the last draw. Latent's warm-up counts here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import last_line, print_table

REPEATS = 5
LATENT_DRAWS = 4000  # over all chains
LATENT_WARMUP_PARTS = 3  # of the same length as the five that are kept
CORES = len(os.sched_getaffinity(0))
CASES = ("S&P 500", "AAPL")


def returns_of(case: str) -> np.ndarray:
    """2,000 daily log returns of the S&P 500 (until 2018), or 3,000 of AAPL (from 2000)."""
    if case == "S&P 500":
        import arch.data.sp500

        return np.diff(np.log(arch.data.sp500.load()["Adj Close"].to_numpy()))[-2000:]
    from quant_assets.market.series import bar_series
    from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION, SampleSource

    bars = SampleSource(symbols=("AAPL",)).bars(FIRST_SESSION, LAST_SESSION)
    return np.diff(np.log(bar_series(bars)["AAPL"].adj_close))[:3000]


def marginal(returns: np.ndarray, seed: int) -> tuple[float, float, dict[str, Any]]:
    """(seconds, smallest bulk ESS, means and sds) of one accepted fit; 4 x 1,000 draws."""
    from quant_assets.posterior.heston import SamplerSettings, fit

    started = time.perf_counter()
    posterior = fit(returns, settings=SamplerSettings(seed=seed, threads=CORES, fall_back=False))
    seconds = time.perf_counter() - started
    return seconds, min(posterior.diagnostics.ess_bulk.values()), _moments(posterior.draws)


def latent(returns: np.ndarray, seed: int) -> dict[str, Any]:
    """Latent's draws in parts of equal length, each clocked; the smallest ESS over all kept ones together.

    NumPyro's NUTS on the house's NumPyro model, through the functional face that `MCMC` is built on: `MCMC` itself compiles
    in every call, and so cannot be clocked warm.
    """
    import jax
    from numpyro.infer.hmc import hmc
    from numpyro.infer.util import initialize_model

    from quant_assets.posterior.diagnostics import diagnose
    from quant_assets.posterior.heston import heston_model, latent_quantities, latent_start
    from quant_assets.posterior.priors import HestonPriors

    priors = HestonPriors()
    data = jax.numpy.asarray(returns, jax.numpy.float32)
    keys = jax.random.split(jax.random.key(seed), CORES)
    model = initialize_model(
        keys[0], heston_model, init_strategy=latent_start(returns, priors), model_args=(data, priors)
    )
    initialize, step = hmc(model.potential_fn, algo="NUTS")
    draws = -(-LATENT_DRAWS // (CORES * REPEATS))

    def one(state: Any, _: None) -> Any:
        state = step(state)
        return state, (state.z["x"], state.z["log_excess"], state.energy, state.num_steps, state.diverging)

    advance = jax.pmap(lambda state: jax.lax.scan(one, state, None, length=draws))
    started = time.perf_counter()
    state = jax.pmap(
        lambda key: initialize(
            model.param_info.z, num_warmup=LATENT_WARMUP_PARTS * draws, dense_mass=[("x",)], rng_key=key
        )
    )(keys)
    jax.block_until_ready(state)
    compiled = advance.lower(state).compile()
    seconds, kept = [], []
    for part in range(LATENT_WARMUP_PARTS + REPEATS):
        begun = time.perf_counter()
        state, found = jax.block_until_ready(compiled(state))
        seconds.append(time.perf_counter() - begun)
        if part >= LATENT_WARMUP_PARTS:
            kept.append([np.asarray(a) for a in found])
    total = time.perf_counter() - started
    x, log_excess, energy, steps, divergent = (np.concatenate(a, axis=1) for a in zip(*kept, strict=True))
    together = latent_quantities({"x": x, "log_excess": log_excess}, priors)
    diagnostics = diagnose(together, int(divergent.sum()), energy)
    return {
        "seconds": seconds[LATENT_WARMUP_PARTS:],
        "warmup_seconds": sum(seconds[:LATENT_WARMUP_PARTS]),
        "total_seconds": total,
        "ess": min(diagnostics.ess_bulk.values()),
        "ess_of": diagnostics.ess_bulk,
        "r_hat": max(diagnostics.r_hat.values()),
        "leapfrogs": float(steps.mean()),
        "divergences": int(divergent.sum()),
        "moments": _moments(together, diagnostics.ess_bulk),
    }


def _moments(draws: dict[str, np.ndarray], ess: dict[str, float] | None = None) -> dict[str, Any]:
    """Mean, sd and standard error of the mean by quantity."""
    return {
        name: (float(v.mean()), float(v.std()), float(v.std() / np.sqrt(ess[name] if ess else v.size)))
        for name, v in draws.items()
    }


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Of the means, in standard errors."""
    return max(abs(a[n][0] - b[n][0]) / np.hypot(a[n][2], b[n][2]) for n in a)


# -- with compilation ----------------------------------------------------------------------------------------------


def cold(sampler: str, case: str) -> dict[str, float]:
    """Seconds and ESS in a fresh process without caches."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "NUMBA_CACHE_DIR": empty, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.heston_nuts", "--cold", sampler, "--case", case],
            capture_output=True,
            text=True,
            env=environment,
        )
    if done.returncode:
        raise RuntimeError(f"cold run of {sampler} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _cold_child(sampler: str, case: str) -> None:
    returns = returns_of(case)
    started = time.perf_counter()
    if sampler == "marginal":
        _, ess, _ = marginal(returns, seed=1)
    else:
        import numpyro

        numpyro.set_host_device_count(CORES)
        ess = latent(returns, seed=1)["ess"]
    print(json.dumps({"seconds": time.perf_counter() - started, "ess": ess}))


# -- cost ----------------------------------------------------------------------------------------------------------


def by_length() -> list[list[object]]:
    """Seconds of a fit of the first T returns simulated from the prior's medians, and of 20 symbols of T = 1,000."""
    from quant_assets.posterior.variance_filter import simulate_returns
    from quant_resources.compute import Compute

    truth = np.array([0.05, 5.0, 0.03, 0.5, -0.6])
    returns, _ = simulate_returns(truth, 8000, 1e-4, seed=3)
    rows: list[list[object]] = []
    for sessions in (500, 2000, 8000):
        seconds, ess, _ = marginal(returns[0, :sessions], seed=1)
        rows.append([f"T = {sessions:,}", f"{seconds:.1f} s", f"{ess / seconds:.0f}"])
    many, _ = simulate_returns(np.tile(truth, (20, 1)), 1000, 1e-4, seed=4)
    started = time.perf_counter()
    alone = [marginal(series, seed=1) for series in many]
    seconds = time.perf_counter() - started
    rows.append(
        ["20 symbols, T = 1,000, in turn", f"{seconds:.1f} s", f"{sum(r[1] for r in alone) / seconds:.0f}"]
    )
    pool = Compute("loky", CORES)
    list(pool.map(_in_pool, many[:CORES]))  # the processes start and compile
    started = time.perf_counter()
    together = list(pool.map(_in_pool, many))
    seconds = time.perf_counter() - started
    rows.append(
        [
            f"20 symbols, T = 1,000, {CORES} processes",
            f"{seconds:.1f} s",
            f"{sum(r[1] for r in together) / seconds:.0f}",
        ]
    )
    return rows


def _in_pool(series: np.ndarray) -> tuple[float, float, dict[str, Any]]:
    global CORES  # a process of the pool has one core to itself
    CORES = 1
    return marginal(series, seed=1)


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--cold", choices=["marginal", "latent"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cold:
        _cold_child(given.cold, given.case)
        return
    import numpyro

    numpyro.set_host_device_count(CORES)
    load = os.getloadavg()[0]
    ratios, ours, theirs, worst = {}, {}, {}, 0.0
    for case in [c for c in CASES if given.case in (None, c)]:
        returns = returns_of(case)
        marginal(returns, seed=0)  # compiles
        fits = [marginal(returns, seed=1 + k) for k in range(REPEATS)]
        print(f"{case}: marginal done, {statistics.median(f[0] for f in fits):.1f} s a fit", flush=True)
        slow = latent(returns, seed=1)
        per_part = slow["ess"] / REPEATS
        warmup = slow["warmup_seconds"] / REPEATS
        ours[case] = [ess / seconds for seconds, ess, _ in fits]
        kept_only = [per_part / seconds for seconds in slow["seconds"]]
        theirs[case] = [per_part / (seconds + warmup) for seconds in slow["seconds"]]
        difference = largest_difference(fits[0][2], slow["moments"])
        worst = max(worst, difference)
        frozen = {name: cold(name, case) for name in ("marginal", "latent")}
        rate = {name: f["ess"] / f["seconds"] for name, f in frozen.items()}
        ratios[f"{case}, {len(returns):,} returns, warm"] = statistics.median(ours[case]) / statistics.median(
            theirs[case]
        )
        ratios[f"{case}, warm, latent's kept draws alone"] = statistics.median(
            ours[case]
        ) / statistics.median(kept_only)
        ratios[f"{case}, with compilation"] = rate["marginal"] / rate["latent"]
        print_table(
            [f"{case}, {len(returns):,} returns", "seconds", "smallest bulk ESS", "ESS/s", "min", "max"],
            [
                [
                    "marginal, whole fit, 4 x 1,000 draws",
                    f"{statistics.median(f[0] for f in fits):.1f}",
                    f"{statistics.median(f[1] for f in fits):.0f}",
                    *(f"{g(ours[case]):.1f}" for g in (statistics.median, min, max)),
                ],
                [
                    f"latent, warm-up and {LATENT_DRAWS:,} draws",
                    f"{sum(slow['seconds']) + slow['warmup_seconds']:.1f}",
                    f"{slow['ess']:.0f}",
                    *(f"{g(theirs[case]):.2f}" for g in (statistics.median, min, max)),
                ],
                [
                    "latent, kept draws alone",
                    f"{sum(slow['seconds']):.1f}",
                    f"{slow['ess']:.0f}",
                    *(f"{g(kept_only):.2f}" for g in (statistics.median, min, max)),
                ],
                *(
                    [
                        f"{name}, with compilation",
                        f"{f['seconds']:.1f}",
                        f"{f['ess']:.0f}",
                        f"{rate[name]:.2f}",
                        "",
                        "",
                    ]
                    for name, f in frozen.items()
                ),
            ],
        )
        print(
            f"latent: {slow['leapfrogs']:.0f} leapfrogs a draw, {slow['total_seconds']:.0f} s with compilation and warm-up, "
            f"R-hat {slow['r_hat']:.3f}, {slow['divergences']} divergences, ESS "
            + ", ".join(f"{k} {v:.0f}" for k, v in slow["ess_of"].items())
            + f"\nequal: means of all seven quantities within {difference:.1f} standard errors\n",
            flush=True,
        )
    print_table(["marginal fit, 4 x 1,000 draws", "time", "ESS/s"], by_length())
    last_line(
        name="heston_nuts",
        ratio=next(iter(ratios.values())),
        ratios=ratios,
        ours={c: _spread(v) for c, v in ours.items()},
        theirs={c: _spread(v) for c, v in theirs.items()},
        work="smallest bulk ESS a second over seven quantities; whole fits of both samplers, compiled",
        equal=worst < 4,
        equal_how=f"means of all seven quantities within {worst:.1f} standard errors",
        load=[round(load, 2), round(os.getloadavg()[0], 2)],
    )


def _spread(values: list[float]) -> dict[str, object]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "unit": "ESS/s"}


if __name__ == "__main__":
    main()
