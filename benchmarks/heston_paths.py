"""Heston paths: ours against QuantLib and a NumPy loop, and how near the machine's limit ours is.

Belongs here: the peers as a good user of each would write them, the proof that all sides simulate one model, and the
limits (memory, arithmetic, random numbers) measured on this machine. Does not belong here: our side;
`quant_assets/simulation/paths.py` is called as it stands.

Two sizes, one draw of the parameters: 100,000 paths of 252 sessions and 10,000 paths of 390 minutes. All sides hand over
arrays of every path's price and variance:

1. QuantLib's Heston process with the same scheme (quadratic-exponential, martingale correction) through its Gaussian
   path generator, which Python calls once per path. What its C++ alone takes is measured too: the same loop without
   reading the paths, and its Monte Carlo engine of a European option, which never leaves C++ (ours beside it:
   `simulate_terminal`).
2. Euler with full truncation in NumPy, float32, all paths at once; ours beside it in both schemes.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import in_turn, last_line, print_table, spread
from quant_assets.posterior.priors import HestonParameters
from quant_assets.simulation.paths import (
    MINUTE_YEARS,
    SESSION_YEARS,
    Scheme,
    _checked,
    _normal,
    _qe_step,
    simulate_paths,
    simulate_terminal,
    threefry,
)

PARAMETERS = HestonParameters(mu=0.05, kappa=5.0, theta=0.03, sigma=0.5, rho=-0.6, v0=0.03)
REPEATS = 5
# Sides may differ by so many standard errors of their difference.
TOLERANCE = 4.0


class Size(NamedTuple):
    """One case."""

    name: str
    paths: int
    steps: int
    dt_years: float

    @property
    def path_steps(self) -> int:
        """What rates are counted in."""
        return self.paths * self.steps


SIZES = (Size("sessions", 100_000, 252, SESSION_YEARS), Size("minutes", 10_000, 390, MINUTE_YEARS))

Paths = tuple[np.ndarray, np.ndarray]


# -- sides -------------------------------------------------------------------------------------------------------------


def ours(size: Size, scheme: Scheme) -> Paths:
    """Log price and variance, shape (paths, steps + 1)."""
    found = simulate_paths(
        PARAMETERS, paths_per_draw=size.paths, steps=size.steps, dt_years=size.dt_years, seed=1, scheme=scheme
    )
    return found.log_price[0], found.variance[0]


def ours_terminal(size: Size) -> tuple[np.ndarray, ...]:
    """Where the same paths end."""
    return tuple(
        simulate_terminal(
            PARAMETERS, paths_per_draw=size.paths, steps=size.steps, dt_years=size.dt_years, seed=1
        )
    )


def quantlib_process() -> Any:
    """Their Heston process from a price of 1."""
    import QuantLib as ql

    today = ql.Date(2, 1, 2020)
    ql.Settings.instance().evaluationDate = today

    def flat(rate: float) -> Any:
        return ql.YieldTermStructureHandle(ql.FlatForward(today, rate, ql.Actual365Fixed()))

    p = PARAMETERS
    spot = ql.QuoteHandle(ql.SimpleQuote(1.0))
    parameters = (p.v0, p.kappa, p.theta, p.sigma, p.rho)
    scheme = ql.HestonProcess.QuadraticExponentialMartingale
    return ql.HestonProcess(flat(p.mu), flat(0.0), spot, *parameters, scheme)


def quantlib_generator(size: Size, seed: int) -> Any:
    """Their generator of paths."""
    import QuantLib as ql

    uniform = ql.UniformRandomSequenceGenerator(2 * size.steps, ql.UniformRandomGenerator(seed))
    normal = ql.GaussianRandomSequenceGenerator(uniform)
    times = list(ql.TimeGrid(size.steps * size.dt_years, size.steps))
    return ql.GaussianMultiPathGenerator(quantlib_process(), times, normal, False)


def quantlib(size: Size) -> Paths:
    """Their paths as arrays of log price and variance, shape (paths, steps + 1)."""
    generator = quantlib_generator(size, 42)
    price, variance = (np.empty((size.paths, size.steps + 1)) for _ in range(2))
    for i in range(size.paths):
        path = generator.next().value()
        price[i], variance[i] = path[0], path[1]
    return np.log(price, out=price), variance


def quantlib_unread(size: Size) -> None:
    """Their paths, which nobody looks at."""
    generator = quantlib_generator(size, 42)
    for _ in range(size.paths):
        generator.next()


def quantlib_engine(size: Size) -> tuple[float, float]:
    """Value and standard error of an at-the-money call, all of it in C++."""
    import QuantLib as ql

    today = ql.Settings.instance().evaluationDate
    engine = ql.MCEuropeanHestonEngine(
        quantlib_process(), "PseudoRandom", timeSteps=size.steps, requiredSamples=size.paths, seed=42
    )
    # Their dates are whole days: a year in as many steps, whatever the length of ours.
    option = ql.EuropeanOption(ql.PlainVanillaPayoff(ql.Option.Call, 1.0), ql.EuropeanExercise(today + 365))
    option.setPricingEngine(engine)
    return option.NPV(), option.errorEstimate()


def numpy_euler(size: Size) -> Paths:
    """Full truncation, all paths at once, float32; views of shape (paths, steps + 1), the step slowest in memory."""
    p, dt = PARAMETERS, size.dt_years
    rng = np.random.default_rng(7)
    log_price, variance = (np.empty((size.steps + 1, size.paths), np.float32) for _ in range(2))
    log_price[0], variance[0] = 0.0, p.v0
    v = variance[0].copy()
    rest = math.sqrt(1 - p.rho**2)
    for k in range(size.steps):
        z = rng.standard_normal((2, size.paths), dtype=np.float32)
        scale = np.sqrt(variance[k] * np.float32(dt))
        log_price[k + 1] = (
            log_price[k]
            + np.float32(p.mu * dt)
            - np.float32(dt / 2) * variance[k]
            + scale * (np.float32(p.rho) * z[0] + np.float32(rest) * z[1])
        )
        v += (
            np.float32(p.kappa * dt) * (np.float32(p.theta) - variance[k])
            + np.float32(p.sigma) * scale * z[0]
        )
        np.maximum(v, 0, out=variance[k + 1])
    return log_price.T, variance.T


# -- agreement ---------------------------------------------------------------------------------------------------------


def moments(
    log_price: np.ndarray, variance: np.ndarray, strike: float = 1.0
) -> dict[str, tuple[float, float]]:
    """Mean and standard error of what the ends say."""
    price, v = np.exp(log_price[:, -1].astype(float)), variance[:, -1].astype(float)
    samples = {
        "price": price,
        "call": np.maximum(price - strike, 0),
        "variance": v,
        "variance squared": v**2,
        "price x variance": price * v,
    }
    return {name: (x.mean(), x.std() / math.sqrt(len(x))) for name, x in samples.items()}


def agree(size: Size, sides: dict[str, Paths]) -> float:
    """Largest difference of any side's moments from our QE ones, in standard errors.

    Raises:
        SystemExit: one differs by more than the tolerance, or our E[S_T] from exp(mu T).
    """
    found = {name: moments(*paths) for name, paths in sides.items()}
    mine = found["ours"]
    forward = math.exp(PARAMETERS.mu * size.steps * size.dt_years)
    worst = abs(mine["price"][0] - forward) / mine["price"][1]
    for name, theirs in found.items():
        if name == "ours":
            continue
        for moment, (mean, error) in theirs.items():
            distance = abs(mean - mine[moment][0]) / math.hypot(error, mine[moment][1])
            worst = max(worst, distance)
            if not distance <= TOLERANCE:
                raise SystemExit(
                    f"{size.name}: {moment} of {name} is {distance:.1f} standard errors from ours"
                )
    if not worst <= TOLERANCE:
        raise SystemExit(f"{size.name}: our E[S_T] is {worst:.1f} standard errors from exp(mu T)")
    return worst


# -- the machine's limits ----------------------------------------------------------------------------------------------


def best(work: Callable[[], Any], repeats: int = 9) -> float:
    """Smallest wall seconds of some work whose result is waited for; a limit is what the machine can do when quiet."""
    import jax

    jax.block_until_ready(work())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def limits() -> dict[str, float]:
    """Measured rates of this device: bytes, arithmetic and random numbers per second."""
    import jax
    import jax.numpy as jnp

    cpu = jax.default_backend() == "cpu"
    options = {"xla_cpu_prefer_vector_width": "512"} if cpu else None
    lanes = 2**14 if cpu else 2**24
    found = {}

    # Memory: copy into a buffer that exists (read + write), and write a new one, as whole paths must.
    size = 2**26 if cpu else 2**28
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    buffer = jnp.zeros(size, jnp.float32)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        buffer = jax.block_until_ready(copy(buffer))
        seconds.append(time.perf_counter() - started)
    del buffer
    found["copy_bytes"] = 2 * 4 * size / min(seconds)
    fill = jax.jit(lambda x: jnp.full(size, x))
    found["new_bytes"] = 4 * size / best(lambda: fill(1.0))

    # Arithmetic: multiply and add in registers, in chains enough to hide how long one takes.
    chains, depth, rounds = 12, 32, 50

    def fused(x: Any) -> Any:
        def body(_: Any, x: Any) -> Any:
            values = [x + i for i in range(chains)]
            for _ in range(depth):
                values = [value * np.float32(0.999) + np.float32(0.001) for value in values]
            return sum(values) * np.float32(1 / chains)

        return jax.lax.fori_loop(0, rounds, body, x)

    chained = jax.jit(fused, compiler_options=options)
    x = jnp.ones(8 * lanes, jnp.float32)
    found["operations"] = 2 * chains * depth * rounds * x.size / best(lambda: chained(x))

    # Random numbers: two normals per path and step, from JAX's generator and from ours, with nothing else done.
    draw = jax.jit(lambda key: jax.random.normal(key, (2**24,)))
    found["jax_normals"] = 2**24 / best(lambda: draw(jax.random.key(0)))

    def summed(key: Any) -> Any:
        counter = jnp.arange(lanes, dtype=jnp.uint32)

        def body(step: Any, total: Any) -> Any:
            one, other = threefry(key, key, counter, step.astype(jnp.uint32))
            return total + (_normal(one) + _normal(other))

        return jax.lax.fori_loop(0, rounds, body, jnp.zeros(lanes))

    sums = jax.jit(summed, compiler_options=options)
    found["our_normals"] = 2 * rounds * lanes / best(lambda: sums(jnp.uint32(1)))
    return found


def operations_per_step() -> float:
    """Operations, floating-point and integer, of one path's step as XLA counts them; a logarithm or a root counts as one."""
    import jax
    import jax.numpy as jnp

    lanes = 4096
    work = _checked(PARAMETERS, lanes, 1, SESSION_YEARS, 0, "qe")
    words, x = jnp.zeros((1, lanes), jnp.uint32), jnp.zeros((1, lanes), jnp.float32)
    programs: list[Any] = [
        jax.jit(_qe_step).lower(work.constants_of(0, 1), (words, words), x, x),
        jax.jit(lambda key: threefry(key, key, words, words)).lower(jnp.uint32(0)),
    ]
    counts = [program.cost_analysis() for program in programs]
    return sum(float(c.get(name, 0.0)) for c in counts for name in ("flops", "transcendentals")) / lanes


# -- report ------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--size", choices=[size.name for size in SIZES], help="only this one")
    given = parser.parse_args()
    import jax
    import QuantLib

    device = jax.devices()[0]
    where = f"{device.platform} ({device.device_kind})"
    load = [round(os.getloadavg()[0], 2)]
    print(
        f"JAX {jax.__version__} on {where}, QuantLib {QuantLib.__version__}, load before: {load[0]}\n",
        flush=True,
    )
    sizes = [size for size in SIZES if given.size in (None, size.name)]

    seconds: dict[str, dict[str, list[float]]] = {}
    worst = 0.0
    for size in sizes:
        sides: dict[str, Callable[[], Any]] = {
            "ours": partial(ours, size, "qe"),
            "ours, Euler": partial(ours, size, "euler"),
            "ours, ends only": partial(ours_terminal, size),
            "QuantLib": partial(quantlib, size),
            "QuantLib, paths not read": partial(quantlib_unread, size),
            "QuantLib, C++ engine": partial(quantlib_engine, size),
            "NumPy, Euler": partial(numpy_euler, size),
        }
        whole = {name: sides[name]() for name in ("ours", "ours, Euler", "QuantLib", "NumPy, Euler")}
        ends = ours_terminal(size)
        whole["ours, ends only"] = ends[0][0][:, None], ends[1][0][:, None]
        worst = max(worst, agree(size, whole))
        del whole
        seconds[size.name] = in_turn(sides, given.repeats)
        medians = {side: statistics.median(values) for side, values in seconds[size.name].items()}
        print_table(
            [
                f"{size.paths:,} paths x {size.steps} {size.name}",
                "median ms",
                "min",
                "max",
                "M path-steps/s",
                "ours is",
            ],
            [
                [
                    side,
                    *(f"{1e3 * f(values):.1f}" for f in (statistics.median, min, max)),
                    f"{size.path_steps / medians[side] / 1e6:.2f}",
                    ""
                    if side.startswith("ours")
                    else f"{medians[side] / medians['ours, ends only' if 'engine' in side else 'ours']:.1f} x",
                ]
                for side, values in seconds[size.name].items()
            ],
        )
        print(f"equal: moments of the ends within {worst:.1f} standard errors\n", flush=True)

    limit = limits()
    operations = operations_per_step()
    rows, shares = [], {}
    for size in sizes:
        for side, stored in (("ours", 8), ("ours, ends only", 0)):
            rate = size.path_steps / statistics.median(seconds[size.name][side])
            parts = {
                "memory": rate * stored / limit["new_bytes"],
                "arithmetic": rate * operations / limit["operations"],
                "random numbers": rate * 2 / limit["our_normals"],
            }
            shares[f"{size.name}, {side}"] = {name: round(share, 3) for name, share in parts.items()}
            rows.append(
                [
                    f"{side}, {size.name}",
                    f"{rate / 1e6:.0f}",
                    *(f"{100 * share:.0f} %" for share in parts.values()),
                    f"{100 * rate * 2 / limit['jax_normals']:.0f} %",
                ]
            )
    print_table(
        [
            "share of the limit",
            "M path-steps/s",
            "memory",
            "arithmetic",
            "random numbers",
            "of jax.random.normal",
        ],
        rows,
    )
    print(
        f"\nlimits of {where}: copy {limit['copy_bytes'] / 1e9:.1f} GB/s, write to new memory "
        f"{limit['new_bytes'] / 1e9:.1f} GB/s, multiply-add {limit['operations'] / 1e9:.0f} Gflop/s, two normals of "
        f"ours per {2e9 / limit['our_normals']:.2f} ns, of jax.random.normal per {2e9 / limit['jax_normals']:.2f} ns; "
        f"a step keeps 8 bytes and takes {operations:.0f} operations (a root, a division or a logarithm is counted as "
        "one and costs many) of which two normals are a part"
    )
    load.append(round(os.getloadavg()[0], 2))
    print(f"load after: {load[1]}\n", flush=True)

    def ratio(size: str, peer: str, mine: str = "ours") -> float:
        return statistics.median(seconds[size][peer]) / statistics.median(seconds[size][mine])

    ratios: dict[str, float] = {}
    for name in seconds:
        ratios |= {
            f"quantlib_{name}": ratio(name, "QuantLib"),
            f"quantlib_paths_not_read_{name}": ratio(name, "QuantLib, paths not read"),
            f"quantlib_engine_{name}": ratio(name, "QuantLib, C++ engine", "ours, ends only"),
            f"numpy_euler_{name}": ratio(name, "NumPy, Euler"),
            f"numpy_euler_ours_euler_{name}": ratio(name, "NumPy, Euler", "ours, Euler"),
        }
    first = sizes[0]
    last_line(
        "heston_paths",
        ratio=ratios[f"quantlib_{first.name}"],
        ratios=ratios,
        ours=spread(seconds[first.name]["ours"]),
        theirs=spread(seconds[first.name]["QuantLib"]),
        work=f"{first.paths:,} Heston paths of {first.steps} {first.name}, quadratic-exponential scheme with martingale "
        f"correction, arrays of price and variance of every step; ours JAX {jax.__version__} on {where}, theirs QuantLib "
        f"{QuantLib.__version__} (GaussianMultiPathGenerator, Python reads each path; ratios: the same without reading, its "
        "C++ engine against our ends only, a NumPy Euler loop)",
        equal=True,
        equal_how=f"means of price, call, variance, its square and price x variance at the end: every side within "
        f"{worst:.1f} standard errors of ours, and ours of E[S_T] = exp(mu T)",
        path_steps_per_second={
            name: {
                side: round(size.path_steps / statistics.median(values))
                for side, values in seconds[name].items()
            }
            for name, size in ((size.name, size) for size in sizes)
        },
        share_of_limit=shares,
        limits_per_second={name: round(value) for name, value in limit.items()},
        load=load,
    )


if __name__ == "__main__":
    main()
