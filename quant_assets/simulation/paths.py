"""Paths of price and variance under the Heston model, for many draws of its parameters at once.

Belongs here: the two discretisations, their random numbers, and three ways out of them: whole paths, chunks of whole
paths, and only where paths end. Does not belong here: where parameters come from (`posterior`), what trades on the
paths (`environments`), and storage. JAX is imported by the functions that compute, not by this module.

The model, with time in years of 252 sessions of 390 minutes:

    d ln S = (mu - v / 2) dt + sqrt(v) dW1
    d v    = kappa (theta - v) dt + sigma sqrt(v) dW2,    d<W1, W2> = rho dt

`scheme="qe"` is Andersen's quadratic-exponential scheme with his martingale correction and central weights, the one to
use: the variance has the right conditional mean and variance at any step, and E[S_T] = S_0 exp(mu T). The correction
exists where E[exp(A v')] does (his A < 1 / (2a), A < beta: always for rho <= 0, and for rho > 0 unless sigma and the
step are large); a step without it takes the plain K0 of his equation (33). `scheme="euler"` is Euler with full
truncation, the reference: simple, and biased by the step.

Random numbers are counted, not drawn: Threefry-2x32 of (seed, draw) as the key and (path, step) as the counter gives
the two words of a step. So a path knows nothing of how the work was cut: chunks joined are bit for bit the whole, and
the same seed gives the same bits, on one kind of device with one version of JAX. A simulation of more steps, paths or
draws begins with the paths of the smaller one up to the last bit of a float, because the compiler may round another
shape differently; the words themselves are equal everywhere. All is float32, with increments arranged so that steps of
a minute keep their drift.

References:
    Andersen (2008), Simple and efficient simulation of the Heston stochastic volatility model, J. Comp. Finance 11(3).
    Lord, Koekkoek and van Dijk (2010), A comparison of biased simulation schemes, Quantitative Finance 10(2).
    Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, SC11.
    Giles (2010), Approximating the erfinv function, GPU Computing Gems 2.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from quant_assets.posterior.priors import HestonParameters

Scheme = Literal["qe", "euler"]

SESSION_YEARS = 1 / 252
MINUTE_YEARS = SESSION_YEARS / 390

# Andersen's switch between the two branches; any value in [1, 2] works, results hardly depend on it.
PSI_SWITCH = 1.5
# Below it the variance has no noise that float32 could tell from none, and there is nothing for rho to act on.
SMALLEST_SIGMA = 1e-6
# Lanes (paths of all draws) that step together. On a CPU: enough for its cores to share, few enough to stay in their
# caches. On a GPU: enough to fill it.
LANES = {"cpu": 10_240, "gpu": 1_048_576}
# Vectors are whole where a block is a multiple of this many lanes wide.
WIDTH = 16
# Draws of fewer paths than this do not make a row of their own, see `_Work`.
SHORT_ROW = 64
# Bytes per lane of a step's intermediates, on top of what is kept.
WORKING_BYTES = 64
MEMORY_BYTES = 256 * 2**20


class HestonPaths(NamedTuple):
    """Whole paths; float32, shape (draws, paths_per_draw, steps + 1), read-only views.

    In memory the step is the slowest axis, so `log_price[..., k]`, all paths at one time, lies together.

    Attributes:
        log_price: ln(S_t / S_0), 0 at the start.
        variance: v_t per year, at least 0; v0 at the start.
    """

    log_price: np.ndarray
    variance: np.ndarray


class HestonTerminal(NamedTuple):
    """Where paths end; float32, shape (draws, paths_per_draw).

    Attributes:
        log_price: ln(S_T / S_0).
        variance: v_T per year, at least 0.
        integrated_variance: integral of v over [0, T] by the trapezoid rule, the weights that the scheme uses.
    """

    log_price: np.ndarray
    variance: np.ndarray
    integrated_variance: np.ndarray


# -- ways in -----------------------------------------------------------------------------------------------------------


def simulate_paths(
    parameters: HestonParameters,
    *,
    paths_per_draw: int,
    steps: int,
    dt_years: float = SESSION_YEARS,
    seed: int,
    scheme: Scheme = "qe",
) -> HestonPaths:
    """Whole paths of every draw, all in memory: 8 bytes per draw, path and step. `iterate_paths` bounds that.

    Args:
        parameters: each field of shape (draws,), or one number for all draws; per year, see `HestonParameters`.
        paths_per_draw: paths for each draw; draws and paths are independent of each other.
        steps: steps after the start.
        dt_years: length of a step, `MINUTE_YEARS` to `SESSION_YEARS` or any other.
        seed: from 0 to 2**64 - 1; the same seed gives the same bits.
        scheme: `qe` (Andersen 2008) or `euler` (full truncation).

    Raises:
        ValueError: an argument is out of its range or shapes differ; the message names the field and the way out.
        TypeError: a count or the seed is no integer.
    """
    work = _checked(parameters, paths_per_draw, steps, dt_years, seed, scheme)
    return _paths_of(work, 0, work.draws)


def iterate_paths(
    parameters: HestonParameters,
    *,
    paths_per_draw: int,
    steps: int,
    dt_years: float = SESSION_YEARS,
    seed: int,
    scheme: Scheme = "qe",
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[HestonPaths]:
    """The paths of `simulate_paths` in chunks of draws, in order; joined along axis 0 they are the same bits.

    Args:
        parameters, paths_per_draw, steps, dt_years, seed, scheme: as for `simulate_paths`.
        memory_bytes: what one chunk and the work on it may take, on top of JAX itself (the first call compiles, in some
            20 MB). Whoever keeps a chunk pays for it on top.

    Raises:
        ValueError: as `simulate_paths`, at the call and not at the first chunk; or one draw alone needs more memory.
    """
    work = _checked(parameters, paths_per_draw, steps, dt_years, seed, scheme)
    lanes = paths_per_draw if paths_per_draw < SHORT_ROW else _padded(paths_per_draw)
    per_draw = lanes * (8 * (steps + 1) + WORKING_BYTES)
    if not memory_bytes >= per_draw:
        raise ValueError(
            f"memory_bytes = {memory_bytes} holds no draw: {paths_per_draw} paths of {steps} steps take {per_draw} "
            "bytes; raise it, or simulate fewer paths per draw or fewer steps"
        )
    size = min(int(memory_bytes // per_draw), work.draws)
    return (_paths_of(work, first, size) for first in range(0, work.draws, size))


def simulate_terminal(
    parameters: HestonParameters,
    *,
    paths_per_draw: int,
    steps: int,
    dt_years: float = SESSION_YEARS,
    seed: int,
    scheme: Scheme = "qe",
) -> HestonTerminal:
    """Where the paths of `simulate_paths` end, without keeping them: for option values and moments.

    The same random words as `simulate_paths`, so the ends agree up to rounding. Memory is 12 bytes per draw and path
    for the result, and a few MB for blocks of `LANES`, whatever the number of steps.

    Args:
        parameters, paths_per_draw, steps, dt_years, seed, scheme: as for `simulate_paths`.

    Raises:
        ValueError: as `simulate_paths`.
    """
    work = _checked(parameters, paths_per_draw, steps, dt_years, seed, scheme)
    result = HestonTerminal(
        *(np.empty((work.draws, paths_per_draw), np.float32) for _ in HestonTerminal._fields)
    )
    rows, columns = work.grid(work.draws)
    block_rows, block_columns = _block(rows, columns)
    kernel = _kernels().terminal
    # Every block has the same shape, so that one program is compiled; what hangs over the edge is cut off.
    for row in range(0, rows, block_rows):
        some = work.constants_of(row, block_rows)
        for column in range(0, columns, block_columns):
            block = kernel(
                some,
                *work.words,
                np.uint32(row),
                np.uint32(column),
                work.steps,
                columns=block_columns,
                fold=work.fold,
                scheme=work.scheme,
            )
            for array, part in zip(result, block, strict=True):
                target = array.reshape(rows, columns)[row : row + block_rows, column : column + block_columns]
                target[:] = np.asarray(part)[: target.shape[0], : target.shape[1]]
    return result


# -- checks and constants ----------------------------------------------------------------------------------------------


class _Work(NamedTuple):
    """Checked arguments, and how paths lie on a grid of rows and columns.

    A row is a draw and its columns are the paths: what a draw has of its own is one number per row. Draws of few paths
    would make rows too short for a processor, so there every path is a row of one column; `fold` is the rows per draw.
    """

    constants: dict[str, np.ndarray]
    draws: int
    paths: int
    steps: int
    words: tuple[np.uint32, np.uint32]
    scheme: str

    @property
    def fold(self) -> int:
        """Rows per draw."""
        return self.paths if self.paths < SHORT_ROW else 1

    def grid(self, draws: int) -> tuple[int, int]:
        """(rows, columns) of some draws."""
        return draws * self.fold, self.paths // self.fold

    def constants_of(self, first: int, size: int) -> dict[str, np.ndarray]:
        """float32 of shape (size, 1) for the rows from `first` on; past the last row it is repeated."""
        draw = np.minimum(np.arange(first, first + size) // self.fold, self.draws - 1)
        return {name: values[draw] for name, values in self.constants.items()}


def _checked(
    parameters: HestonParameters, paths_per_draw: int, steps: int, dt_years: float, seed: int, scheme: str
) -> _Work:
    """Arguments that every way in shares, or an error that names the field."""
    values = {name: np.asarray(value, dtype=np.float64) for name, value in parameters._asdict().items()}
    shapes = {name: value.shape for name, value in values.items() if value.ndim}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(
            f"parameters have shapes {shapes}: each must be one number or of the same shape (draws,)"
        )
    draws = next(iter(shapes.values()), (1,))[0]
    if draws < 1:
        raise ValueError("parameters hold no draw: give at least one")
    values = {name: np.broadcast_to(value, (draws,)) for name, value in values.items()}
    for name, value in values.items():
        if not np.isfinite(value).all():
            at = int(np.argmin(np.isfinite(value)))
            raise ValueError(f"{name} = {value[at]} in draw {at}: it must be finite; drop that draw")
        if name == "rho" and np.abs(value).max() > 1:
            at = int(np.abs(value).argmax())
            raise ValueError(f"rho = {value[at]} in draw {at}: a correlation lies in [-1, 1]")
        if name not in ("mu", "rho") and value.min() < 0:
            at = int(value.argmin())
            raise ValueError(f"{name} = {value[at]} in draw {at}: it must be 0 or above; drop that draw")
    for name, number in (("paths_per_draw", paths_per_draw), ("steps", steps)):
        if not 1 <= operator.index(number) < 2**31:
            raise ValueError(f"{name} = {number}: it must be from 1 to 2**31 - 1")
    if not (math.isfinite(dt_years) and dt_years > 0):
        raise ValueError(
            f"dt_years = {dt_years}: a step is above 0 years, such as MINUTE_YEARS or SESSION_YEARS"
        )
    if not 0 <= operator.index(seed) < 2**64:
        raise ValueError(f"seed = {seed}: it must be from 0 to 2**64 - 1")
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme = {scheme!r}: it must be one of {', '.join(get_args(Scheme))}")
    build = _qe_constants if scheme == "qe" else _euler_constants
    constants = {name: value.astype(np.float32)[:, None] for name, value in build(dt_years, **values).items()}
    return _Work(
        constants, draws, paths_per_draw, steps, (np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)), scheme
    )


def _qe_constants(
    dt: float,
    mu: np.ndarray,
    kappa: np.ndarray,
    theta: np.ndarray,
    sigma: np.ndarray,
    rho: np.ndarray,
    v0: np.ndarray,
) -> dict[str, np.ndarray]:
    """What a step of the quadratic-exponential scheme needs of the parameters, in float64."""
    noiseless = sigma < SMALLEST_SIGMA
    sigma, rho = np.where(noiseless, 0.0, sigma), np.where(noiseless, 0.0, rho)
    slope = rho / np.where(noiseless, 1.0, sigma)
    reverted = -np.expm1(-kappa * dt)  # 1 - exp(-kappa dt)
    # (1 - exp(-kappa dt)) / kappa, which is dt without mean reversion
    length = np.where(kappa > 0, reverted / np.where(kappa > 0, kappa, 1.0), dt)
    # Andersen's K1 + K3/2 = half - slope and A = K2 + K4/2 = half + slope.
    half = dt / 2 * (kappa * slope - rho**2 / 2)
    return {
        "v0": v0,
        "theta": theta,
        "reverted": reverted,
        "noise_v": sigma**2 * (1 - reverted) * length,
        "noise_theta": theta * sigma**2 * reverted * length / 2,
        "drift": mu * dt,
        "A": half + slope,
        "weight": (1 - rho**2) * dt / 2,
        # Without the correction: minus (K0 + (K1 + K3/2) v + A m), as a function of v and m.
        "plain_0": slope * theta * (kappa * dt - reverted),
        "plain_v": slope * reverted,
        "plain_sum": half,
        "half_dt": np.full_like(v0, dt / 2),
    }


def _euler_constants(
    dt: float,
    mu: np.ndarray,
    kappa: np.ndarray,
    theta: np.ndarray,
    sigma: np.ndarray,
    rho: np.ndarray,
    v0: np.ndarray,
) -> dict[str, np.ndarray]:
    """What a step of Euler with full truncation needs of the parameters, in float64."""
    return {
        "v0": v0,
        "theta": theta,
        "reverted": kappa * dt,
        "sigma": sigma,
        "drift": mu * dt,
        "dt": np.full_like(v0, dt),
        "rho": rho,
        "rest": np.sqrt(1 - rho**2),
        "half_dt": np.full_like(v0, dt / 2),
    }


# -- random numbers ----------------------------------------------------------------------------------------------------

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key_0: Any, key_1: Any, count_0: Any, count_1: Any) -> tuple[Any, Any]:
    """Two random uint32 words for a key and a counter of two words each: Threefry-2x32 with its 20 rounds.

    Plain operators on uint32 arrays of NumPy or JAX. Written out, because JAX's own generator is a call that no loop
    fuses with: on a CPU it costs more than everything else in a step.
    """
    keys = (key_0, key_1, key_0 ^ key_1 ^ np.uint32(0x1BD11BDA))
    x, y = count_0 + keys[0], count_1 + keys[1]
    for block in range(5):
        for bits in _ROTATIONS[block % 2]:
            x = x + y
            y = ((y << np.uint32(bits)) | (y >> np.uint32(32 - bits))) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def _signed(word: Any) -> tuple[Any, Any]:
    """A uniform in (0, 1/2] from the upper 31 bits of a word, and whether the lowest bit mirrors it."""
    import jax.numpy as jnp

    return ((word >> np.uint32(1)).astype(jnp.int32).astype(jnp.float32) + 0.5) * np.float32(2**-32), (
        word & np.uint32(1)
    ) == 1


# Giles' single-precision polynomials for erfinv(x) / x, times sqrt(2); in w - 2.5 and in sqrt(w) - 3.
_CENTRE = [
    np.float32(c * math.sqrt(2))
    for c in (
        2.81022636e-08,
        3.43273939e-07,
        -3.5233877e-06,
        -4.39150654e-06,
        0.00021858087,
        -0.00125372503,
        -0.00417768164,
        0.246640727,
        1.50140941,
    )
]
_TAILS = [
    np.float32(c * math.sqrt(2))
    for c in (
        -0.000200214257,
        0.000100950558,
        0.00134934322,
        -0.00367342844,
        0.00573950773,
        -0.0076224613,
        0.00943887047,
        1.00167406,
        2.83297682,
    )
]


def _quantile(p: Any, log_4pq: Any) -> Any:
    """z >= 0 with P(Z > z) = p for p in (0, 1/2], given log(4 p (1 - p)); within 1e-6 up to z = 5.5, 3e-3 at the end, 6.34."""
    import jax.numpy as jnp

    w = -log_4pq
    central = w < 5
    x = jnp.where(central, w - 2.5, jnp.sqrt(w) - 3)
    z = jnp.where(central, _CENTRE[0], _TAILS[0])
    for centre, tail in zip(_CENTRE[1:], _TAILS[1:], strict=True):
        z = jnp.where(central, centre, tail) + z * x
    return z * (1 - 2 * p)


def _normal(word: Any) -> Any:
    """A standard normal from a word."""
    import jax.numpy as jnp

    p, mirrored = _signed(word)
    z = _quantile(p, jnp.log(4 * p * (1 - p)))
    return jnp.where(mirrored, -z, z)


# -- one step ----------------------------------------------------------------------------------------------------------


def _qe_step(c: dict[str, Any], words: tuple[Any, Any], x: Any, v: Any) -> tuple[Any, Any]:
    """Andersen's QE-M: (log price, variance) one step later.

    With m and s2 the conditional mean and variance of v', A = K2 + K4/2 and C = ln E[exp(A (v' - m))], his step with
    the corrected K0 is

        x' = x + mu dt + A (v' - m) - C - w / 2 + sqrt(w) Z,    w = (1 - rho^2) dt (v + v') / 2

    which subtracts no large numbers: v' - m and C are themselves of the size of the step. Divisions and logarithms are
    few, and each result is used where it stands: XLA then makes one loop of nearly the whole step.
    """
    import jax.numpy as jnp

    A = c["A"]
    m = jnp.maximum(v + (c["theta"] - v) * c["reverted"], 1e-18)
    # g = s2 / m, so psi = s2 / m^2 = g / m; the bounds keep float32 finite where there is no noise, or no mean.
    g = jnp.clip((c["noise_v"] * v + c["noise_theta"]) / m, 1e-18 * m, 1e12 * m)
    quadratic = g <= PSI_SWITCH * m

    # Quadratic: v' = a (b + z)^2 with b^2 = t - 1 + sqrt(t (t - 1)), t = 2 / psi, a = m f, f = 1 / (1 + b^2).
    t = 2 * m / g
    root, root_1 = jnp.sqrt(t), jnp.sqrt(jnp.maximum(t - 1, 0))
    b = jnp.sqrt(root_1 * (root_1 + root))
    f = 1 / (root * (root_1 + root))
    # Exponential: v' = k log(m / (k (1 - u))) where that is above 0, else 0; k = 1 / beta = (m + g) / 2, 1 - p = m / k.
    k = 0.5 * (m + g)

    # The same uniform serves both: u = Phi(z), of which the upper tail 1 - u is at hand without cancellation.
    p, mirrored = _signed(words[0])
    logarithm = jnp.log(jnp.where(quadratic, 4 * p * (1 - p), m / (k * jnp.where(mirrored, 1 - p, p))))
    z = _quantile(p, logarithm)
    z = jnp.where(mirrored, -z, z)
    moved = jnp.where(quadratic, m * f * (2 * b * z + (z * z - 1)), k * jnp.maximum(logarithm, 0) - m)
    v_next = jnp.maximum(m + moved, 0)

    # C. Quadratic, with y = 2 A a:  A m y (1 - f) / (1 - y) - (log(1 - y) + y) / 2, by its series for small y;
    # exponential:  log(1 + A m / (1 - A k)) - A m. Where 1 - y or 1 - A k is not above 0, there is no correction.
    Am = A * m
    y = 2 * Am * f
    room = 1 - jnp.where(quadratic, y, A * k)
    ratio = jnp.where(quadratic, Am * y * (1 - f), Am) / room
    logarithm = jnp.log(jnp.where(quadratic, room, 1 + ratio))
    series = y * y * (1 / 4 + y * (1 / 6 + y * (1 / 8 + y * (1 / 10 + y * (1 / 12 + y / 14)))))
    excess = jnp.where(jnp.abs(y) < 0.1, series, -0.5 * (logarithm + y))
    corrected = jnp.where(quadratic, ratio + excess, logarithm - Am)
    plain = c["plain_0"] + c["plain_v"] * v - c["plain_sum"] * (v + m)

    w = c["weight"] * (v + v_next)
    shift = c["drift"] - jnp.where(room > 0, corrected, plain) - 0.5 * w + A * moved
    return x + (shift + jnp.sqrt(w) * _normal(words[1])), v_next


def _euler_step(c: dict[str, Any], words: tuple[Any, Any], x: Any, v: Any) -> tuple[Any, Any]:
    """Euler with full truncation: drift and noise see max(v, 0), while v itself may be below 0."""
    import jax.numpy as jnp

    positive = jnp.maximum(v, 0)
    scale = jnp.sqrt(positive * c["dt"])
    z = _normal(words[0])
    price_noise = c["rho"] * z + c["rest"] * _normal(words[1])
    return (
        x + (c["drift"] - 0.5 * positive * c["dt"] + scale * price_noise),
        v + ((c["theta"] - positive) * c["reverted"] + c["sigma"] * scale * z),
    )


# -- programs ----------------------------------------------------------------------------------------------------------


def _padded(lanes: int) -> int:
    """`lanes` up to the next multiple of `WIDTH`."""
    return -(-lanes // WIDTH) * WIDTH


def _block(rows: int, columns: int) -> tuple[int, int]:
    """(rows, columns) of the nearly equal blocks of about `LANES` into which a grid is cut.

    The longer side of a block is a multiple of `WIDTH`; so the blocks may reach over the edge of the grid.
    """
    import jax

    lanes = LANES.get(jax.default_backend(), LANES["gpu"])
    if columns == 1:
        return _padded(-(-rows // -(-rows // lanes))), 1
    across = -(-columns // lanes)
    down = -(-rows // max(1, lanes // columns))
    return -(-rows // down), _padded(-(-columns // across))


class _Kernels(NamedTuple):
    """Compiled functions, see `_kernels`."""

    paths: Callable[..., Any]
    terminal: Callable[..., Any]


@functools.cache
def _kernels() -> _Kernels:
    """Both programs.

    Log price and variance are carried as one complex number. A loop of XLA on a CPU writes one array, so two arrays
    would be two loops, each of which computes nearly all of the step; one array of pairs is computed once.
    """
    import jax
    import jax.numpy as jnp
    from jax import lax

    def start(
        c: dict[str, Any], seed: tuple[Any, Any], row: Any, column: Any, columns: int, fold: int
    ) -> tuple[Any, Any, Any]:
        """Keys of shape (rows, 1), counters and states of shape (rows, columns), of the grid in `_Work`."""
        row = row + jnp.arange(len(c["v0"]), dtype=jnp.uint32)[:, None]
        draw, path = row // np.uint32(fold), row % np.uint32(fold)
        keys = threefry(seed[0], seed[1], draw, jnp.zeros_like(draw))
        counters = column + jnp.arange(columns, dtype=jnp.uint32)[None, :]
        variance = jnp.broadcast_to(c["v0"], (len(row), columns))
        return (
            keys,
            path if columns == 1 and fold > 1 else counters,
            lax.complex(jnp.zeros_like(variance), variance),
        )

    def advance(c: dict[str, Any], keys: Any, counters: Any, scheme: str, step: Any, state: Any) -> Any:
        take = _qe_step if scheme == "qe" else _euler_step
        words = threefry(keys[0], keys[1], counters, step.astype(jnp.uint32))
        return lax.optimization_barrier(lax.complex(*take(c, words, state.real, state.imag)))

    def truncated(state: Any, scheme: str) -> Any:
        """What is shown of a state: QE is never below 0."""
        return state if scheme == "qe" else lax.complex(state.real, jnp.maximum(state.imag, 0))

    def paths(
        c: dict[str, Any],
        seed_0: Any,
        seed_1: Any,
        row: Any,
        *,
        columns: int,
        steps: int,
        fold: int,
        scheme: str,
    ) -> Any:
        """Complex (log price, variance), shape (steps + 1, rows, columns), both with a margin for whole blocks."""
        rows = len(c["v0"])
        block_rows, block_columns = _block(rows, columns)
        height, width = max(rows, block_rows), max(columns, block_columns)
        across = -(-columns // block_columns)

        def block(number: Any, kept: Any) -> Any:
            # The last block begins early enough to be whole: it simulates some paths again, to the same bits.
            first_row = jnp.minimum(number // across * block_rows, height - block_rows)
            first_column = jnp.minimum(number % across * block_columns, width - block_columns)
            own = {name: lax.dynamic_slice_in_dim(x, first_row, block_rows) for name, x in c.items()}
            begin = row + first_row.astype(jnp.uint32), first_column.astype(jnp.uint32)
            keys, counters, state = start(own, (seed_0, seed_1), *begin, block_columns, fold)

            def body(step: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
                state, kept = carry
                state = advance(own, keys, counters, scheme, step, state)
                shown = truncated(state, scheme)[None]
                return state, lax.dynamic_update_slice(kept, shown, (step + 1, first_row, first_column))

            kept = lax.dynamic_update_slice(kept, state[None], (0, first_row, first_column))
            return lax.fori_loop(0, steps, body, (state, kept))[1]

        kept = lax.empty((steps + 1, height, width), jnp.complex64)
        return lax.fori_loop(0, across * -(-rows // block_rows), block, kept)

    def terminal(
        c: dict[str, Any],
        seed_0: Any,
        seed_1: Any,
        row: Any,
        column: Any,
        steps: Any,
        *,
        columns: int,
        fold: int,
        scheme: str,
    ) -> tuple[Any, Any, Any]:
        """Log price, variance and its integral, each of shape (rows, columns)."""
        keys, counters, state = start(c, (seed_0, seed_1), row, column, columns, fold)

        def body(step: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, integral = carry
            after = advance(c, keys, counters, scheme, step, state)
            ends = truncated(state, scheme).imag + truncated(after, scheme).imag
            return after, integral + c["half_dt"] * ends

        state, integral = lax.fori_loop(0, steps, body, (state, jnp.zeros_like(state.real)))
        return state.real, truncated(state, scheme).imag, integral

    # XLA takes vectors of 256 bits even where the processor has 512; logarithms gain by the wider ones.
    options = {"xla_cpu_prefer_vector_width": "512"} if jax.default_backend() == "cpu" else None
    return _Kernels(
        paths=jax.jit(
            paths, static_argnames=("columns", "steps", "fold", "scheme"), compiler_options=options
        ),
        terminal=jax.jit(terminal, static_argnames=("columns", "fold", "scheme"), compiler_options=options),
    )


def _paths_of(work: _Work, first: int, size: int) -> HestonPaths:
    """Paths of the draws from `first` on, at most `size` of them; the program always runs `size`."""
    rows, columns = work.grid(size)
    row = first * work.fold
    pairs = _kernels().paths(
        work.constants_of(row, max(rows, _block(rows, columns)[0])),
        *work.words,
        np.uint32(row),
        columns=columns,
        steps=work.steps,
        fold=work.fold,
        scheme=work.scheme,
    )
    kept = np.asarray(pairs)[:, :rows, :columns].reshape(work.steps + 1, size, work.paths, copy=False)
    kept = kept[:, : work.draws - first].transpose(1, 2, 0)
    return HestonPaths(kept.real, kept.imag)
