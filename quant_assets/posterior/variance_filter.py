"""The likelihood of daily returns under the Heston model, with the path of the variance integrated out.

Belongs here: the filter over a lattice of variances, its score, draws of the first and the last variance, and the
simulation of the same model. Does not belong here: priors (`priors.py`), samplers (`heston.py`).

**The model.** With v_t the variance of session t (per year), dt = 1/252 and e1, e2 standard normals of correlation rho:

    r_t     = (mu - v_t / 2) dt + sqrt(v_t dt) e1                            log return of session t
    v_{t+1} = v_t + kappa (theta - v_t) dt + sigma sqrt(v_t dt) e2           conditioned on v_{t+1} > floor

and v_0 from the stationary Gamma(2 kappa theta / sigma², rate 2 kappa / sigma²), conditioned likewise (or from a log-normal of
its own). An Euler step
says nothing of what happens at zero; here the normal is truncated at `variance_floor`, in the simulation, the latent
model and the filter alike, so that all three are one model. Where the Feller condition is violated the truncation lifts the
long-run mean above theta (by 3 % at the prior medians, 2 kappa theta / sigma² = 1.2; by 68 % at 0.23), and the Gamma, which
is the law of the continuous process, is near the stationary one only above it. Parameters with kappa dt >= 1 or
theta <= floor have no place in the model.

**The filter.** Given v_t and r_t, v_{t+1} is normal with sd sigma sqrt(v_t dt (1 - rho²)): in s = sqrt(v) a kernel of
nearly constant width w = sigma sqrt(dt (1 - rho²)) / 2. The trapezoid rule is exact to about exp(-2 pi² (w/h)²) for
such a kernel, so points a little closer than w suffice:

    s(u) = sqrt(floor) + w u³ / (u² + c²),       u = h, 2h, 3h, ...

is equidistant above and vanishes to third order at the floor, where the truncated density has a jump. Only points whose
mass is above 1e-40 of the largest are kept from day to day (so that a crash finds the variances that explain it), and
each reaches only the points within 5.2 sd of its kernel. Every row of the transition matrix is normalized on the lattice,
which also is the constant of the truncation.

**The score** is exact differentiation of the filter on a fixed lattice (tangents of the five parameters are carried
along). Reference for grid filters of stochastic volatility: Kitagawa (1987), *Non-Gaussian state-space modeling of
nonstationary time series*; Langrock, MacDonald & Zucchini (2012), *Some nonstandard stochastic volatility models and
their estimation using structured hidden Markov models*.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit

from quant_assets.posterior.priors import DT_YEARS

KERNEL_SDS = 5.2  # how far a point of the lattice reaches: at most 16 points of 0.7 kernel widths
# Of the largest mass: not carried to the next day. The next one where the one before cut too much.
NEGLIGIBLE = (1e-20, 1e-100, 1e-250)
FINEST_NEGLIGIBLE = NEGLIGIBLE[-1]
LARGEST_EDGE = 1e-7
STEP = 0.7  # h, in kernel widths
BEND = 1.5  # c: below it the lattice is finer
LARGEST_SD = 5.0  # of the lattice: 500 % a year
PADDING = 8
MOST_POINTS = 20_000  # at the default step; what is possible does not depend on the step


class Filtered(NamedTuple):
    """Result of `filter_returns`; B parameter vectors.

    Attributes:
        log_likelihood: (B,); -inf where kappa dt >= 1 or theta <= floor, which the model leaves out, and where the lattice
            would need more than MOST_POINTS points.
        score: (B, 5), d log likelihood / d (mu, kappa, theta, sigma, rho); empty unless asked for.
        path: (B, T + 1), a draw of the whole path of the variance given all returns; empty unless asked for. `ends`:
            (B, 2), the first and the last of them.
        edge: (B,), the largest posterior mass at a cut end of the lattice over all days, against the day's largest:
            far above 1e-6 means that NEGLIGIBLE cut too much.
    """

    log_likelihood: np.ndarray
    score: np.ndarray
    path: np.ndarray
    ends: np.ndarray
    edge: np.ndarray


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _exp_of_minus(y: float) -> float:
    """exp(-y), y >= 0, as p(y / 256)^256: no branch and no table, so that loops over it become SIMD.

    Relative error below 1e-12 for y < 1, 2e-5 at y = 25, where it no longer matters; constant (1e-26) from 60 on.
    """
    x = min(y, 60.0) * (1.0 / 256.0)
    p = 1.0 - x * (1.0 - x * (0.5 - x * (1.0 / 6.0 - x * (1.0 / 24.0))))
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    return p * p


@njit(nogil=True, cache=True)
def _lattice(width, floor, step):
    """Variances of the lattice and the weights dv = (dv/du) h of its points."""
    lowest = math.sqrt(floor)
    n = int((LARGEST_SD - lowest) / (width * step)) + 1 + PADDING
    v = np.empty(n)
    dv = np.empty(n)
    bend = BEND * BEND
    for k in range(n):
        u = (k + 1) * step
        s = lowest + width * u**3 / (u * u + bend)
        v[k] = s * s
        dv[k] = 2.0 * s * width * (u**4 + 3.0 * bend * u * u) / (u * u + bend) ** 2 * step
    dv[n - PADDING :] = 0.0
    return v, dv


@njit(nogil=True, cache=True)
def _variance_between(k, offset, width, floor, step):
    """The variance at a place between the points of the lattice: `offset` in (-1/2, 1/2) steps from point k."""
    u = (k + 1 + offset) * step
    s = math.sqrt(floor) + width * u**3 / (u * u + BEND * BEND)
    return s * s


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _weigh(r, lo, hi, mu, dt, v, log_density, inverse_variance, mass, weighted):
    """Mass times the density of the return, the largest density scaled to 1: its logarithm, and the largest product."""
    largest = -np.inf
    # Unsigned: an index that may be negative keeps LLVM from vectorizing.
    for i in range(np.uint64(lo), np.uint64(hi)):
        z = r - (mu - 0.5 * v[i]) * dt
        weighted[i] = log_density[i] - z * z * inverse_variance[i]
        largest = max(largest, weighted[i])
    heaviest = 0.0
    for i in range(np.uint64(lo), np.uint64(hi)):
        # A fourth of the exponent, to the fourth: points that a crash rules out count e^-240, not e^-60.
        p = _exp_of_minus(0.25 * (largest - weighted[i]))
        p *= p
        weighted[i] = mass[i] * (p * p)
        heaviest = max(heaviest, weighted[i])
    return largest, heaviest


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _spread(j0, j1, v, centre, q, c, mass, gauss):
    """Add c exp(-q (v_j - centre)²) to the mass of points j0..j1, and leave the exponential in `gauss`."""
    for j in range(np.uint64(j0), np.uint64(j1)):
        d = v[j] - centre
        g = _exp_of_minus(d * d * q)
        gauss[j] = g
        mass[j] += c * g


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _spread_tangent(j0, j1, v, centre, gauss, a, b, e, tangent):
    """Add (a + b d + e d²) exp(-q d²), d = v_j - centre, to one tangent of points j0..j1."""
    for j in range(np.uint64(j0), np.uint64(j1)):
        d = v[j] - centre
        tangent[j] += gauss[j] * (a + d * (b + e * d))


@njit(nogil=True, cache=True)
def _pick(weights):
    """An index drawn in proportion to the weights."""
    target = np.random.random() * weights.sum()
    cumulated = 0.0
    for k in range(weights.size):
        cumulated += weights[k]
        if cumulated > target:
            return k
    return weights.size - 1


@njit(nogil=True, cache=True, error_model="numpy")
def _filter(
    returns,
    mu,
    kappa,
    theta,
    sigma,
    rho,
    floor,
    step,
    dt,
    with_score,
    seed,
    negligible,
    v0_log_mean,
    v0_log_sd,
):
    """One parameter vector. Returns (log likelihood, score, path of the variance or nothing, edge)."""
    score = np.zeros(5)
    across = 1.0 - rho * rho
    width = 0.5 * sigma * math.sqrt(dt * across)
    # An Euler step of kappa dt > 1 overshoots theta and then zero: no model of a variance, and no posterior is there.
    if kappa * dt >= 1.0 or theta <= floor:
        return -np.inf, score, np.empty(0), 0.0
    if not (width > 0.0) or LARGEST_SD / (width * STEP) > MOST_POINTS:
        return -np.inf, score, np.empty(0), 0.0
    v, dv = _lattice(width, floor, step)
    n = v.size

    # Constants of each row i: where the variance drifts to, and the sum of the row.
    drift = v + kappa * (theta - v) * dt
    row = np.zeros(n)
    d_row = np.zeros((3, n))  # d log row / d (kappa, theta, sigma)
    low = 0
    high = 0
    for i in range(n):
        sd = sigma * math.sqrt(v[i] * dt)
        while low > 0 and v[low - 1] >= drift[i] - KERNEL_SDS * sd:
            low -= 1
        while low < n - 1 and v[low] < drift[i] - KERNEL_SDS * sd:
            low += 1
        high = max(high, low)
        while high < n and v[high] <= drift[i] + KERNEL_SDS * sd:
            high += 1
        while high > low + 1 and v[high - 1] > drift[i] + KERNEL_SDS * sd:
            high -= 1
        total = 0.0
        first = 0.0
        second = 0.0
        q = 0.5 / (sd * sd)
        for j in range(low, high):
            d = v[j] - drift[i]
            p = dv[j] * _exp_of_minus(d * d * q)
            total += p
            first += p * d
            second += p * d * d
        # total = (integral of exp); the density needs 1 / total, whatever the normal's own constant
        # p(r, v' | v) = N(r; mean, v dt) N(v'; centre, sd² (1 - rho²)) / P(v' > floor | v); with the two constants of
        # the normals and the truncation in one: exp(-(v' - centre)² ...) / (sqrt(1 - rho²) total).
        row[i] = 1.0 / (total * math.sqrt(across)) if total > 0.0 else 0.0
        if with_score and total > 0.0:
            mean1 = first / total
            mean2 = second / total
            d_row[0, i] = -2.0 * q * mean1 * (theta - v[i]) * dt
            d_row[1, i] = -2.0 * q * mean1 * kappa * dt
            d_row[2, i] = -2.0 * q * mean2 / sigma
    return _walk(
        returns,
        mu,
        kappa,
        theta,
        sigma,
        rho,
        floor,
        step,
        dt,
        with_score,
        seed,
        negligible,
        v0_log_mean,
        v0_log_sd,
        v,
        dv,
        drift,
        row,
        d_row,
        width,
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _walk(
    returns,
    mu,
    kappa,
    theta,
    sigma,
    rho,
    floor,
    step,
    dt,
    with_score,
    seed,
    negligible,
    v0_log_mean,
    v0_log_sd,
    v,
    dv,
    drift,
    row,
    d_row,
    width,
):
    n = v.size
    across = 1.0 - rho * rho
    score = np.zeros(5)
    mass = np.zeros(n)
    tangent = np.zeros((5, n if with_score else 0))
    new_mass = np.zeros(n)
    new_tangent = np.zeros((5, n if with_score else 0))
    a = np.zeros(5)
    b = np.zeros(5)
    e = np.zeros(5)
    gauss = np.zeros(n)

    # v_0 on the lattice, normalized there: the stationary Gamma, or a log-normal of its own.
    shape = 2.0 * kappa * theta / (sigma * sigma)
    rate = 2.0 * kappa / (sigma * sigma)
    log_largest = -np.inf
    for k in range(n):
        if dv[k] == 0.0:
            mass[k] = -1e300
            continue
        log_v = math.log(v[k])
        if v0_log_sd > 0.0:
            mass[k] = -0.5 * ((log_v - v0_log_mean) / v0_log_sd) ** 2 - log_v + math.log(dv[k])
        else:
            mass[k] = (shape - 1.0) * log_v - rate * v[k] + math.log(dv[k])
        log_largest = max(log_largest, mass[k])
    total = 0.0
    for k in range(n):
        mass[k] = math.exp(mass[k] - log_largest)
        total += mass[k]
    mean_log = 0.0
    mean_v = 0.0
    for k in range(n):
        mass[k] /= total
        mean_log += mass[k] * math.log(v[k])
        mean_v += mass[k] * v[k]
    lo = 0
    hi = n
    while mass[lo] < negligible:
        lo += 1
    while mass[hi - 1] < negligible:
        hi -= 1
    if with_score and not v0_log_sd > 0.0:
        for k in range(lo, hi):
            by_shape = math.log(v[k]) - mean_log
            by_rate = mean_v - v[k]
            tangent[1, k] = mass[k] * (by_shape * shape / kappa + by_rate * rate / kappa)
            tangent[2, k] = mass[k] * by_shape * shape / theta
            tangent[3, k] = mass[k] * (by_shape * shape + by_rate * rate) * (-2.0 / sigma)

    # For the way back: what each point sends on each day.
    drawing = seed >= 0
    sent = np.empty(returns.size * 64 if drawing else 0)
    day_start = np.zeros(returns.size + 1, np.int64)
    day_low = np.zeros(returns.size, np.int64)

    log_likelihood = 0.0
    edge = 0.0
    emission = np.zeros(n)
    log_density = -0.5 * np.log(2.0 * math.pi * dt * v)
    inverse_variance = 0.5 / (v * dt)
    precision = 0.5 / (sigma * sigma * v * dt * across)
    reaches = KERNEL_SDS * sigma * np.sqrt(v * dt * across)
    for t in range(returns.size):
        r = returns[t]
        # Weigh every point with the density of the return, the largest scaled to 1.
        largest, heaviest = _weigh(r, lo, hi, mu, dt, v, log_density, inverse_variance, mass, emission)
        # The largest product becomes 1: after a crash it can be as small as the smallest mass that is kept.
        log_likelihood += largest + math.log(heaviest)
        scale = 1.0 / heaviest
        edge = max(edge, emission[hi - 1] / heaviest)
        if drawing:
            day_low[t] = lo
            day_start[t + 1] = day_start[t] + hi - lo
            if day_start[t + 1] > sent.size:
                longer = np.empty(2 * day_start[t + 1])
                longer[: day_start[t]] = sent[: day_start[t]]
                sent = longer
            sent[day_start[t] : day_start[t + 1]] = 0.0
        j_low = n
        j_high = 0
        j0 = lo
        for i in range(lo, hi):
            weight = emission[i] * scale
            if weight < negligible:
                continue
            z = r - (mu - 0.5 * v[i]) * dt
            centre = drift[i] + rho * sigma * z
            q = precision[i]
            reach = reaches[i]
            while j0 > 0 and v[j0 - 1] >= centre - reach:
                j0 -= 1
            while j0 < n - PADDING - 1 and v[j0] < centre - reach:
                j0 += 1
            # Whole blocks of 8 for the vector units; the lattice ends in PADDING points without weight.
            j1 = j0 + 8
            while j1 < n - PADDING and v[j1] <= centre + reach:
                j1 += 8
            c = weight * row[i]
            if drawing:
                sent[day_start[t] + i - lo] = c
                _spread(j0, j1, v, centre, q, c, new_mass, gauss)
            elif with_score:
                relative = c / mass[i]
                inverse_v = z / v[i]
                a[0] = c * inverse_v + relative * tangent[0, i]
                a[1] = c * d_row[0, i] + relative * tangent[1, i]
                a[2] = c * d_row[1, i] + relative * tangent[2, i]
                a[3] = c * d_row[2, i] + relative * tangent[3, i]
                a[4] = c * rho / across + relative * tangent[4, i]
                slope = 2.0 * q * c
                b[0] = -slope * rho * sigma * dt
                b[1] = slope * (theta - v[i]) * dt
                b[2] = slope * kappa * dt
                b[3] = slope * rho * z
                b[4] = slope * sigma * z
                e[3] = 2.0 * q * c / sigma
                e[4] = -2.0 * q * c * rho / across
                _spread(j0, j1, v, centre, q, c, new_mass, gauss)
                for k in range(5):
                    _spread_tangent(j0, j1, v, centre, gauss, a[k], b[k], e[k], new_tangent[k])
            else:
                _spread(j0, j1, v, centre, q, c, new_mass, gauss)
            j_low = min(j_low, j0)
            j_high = max(j_high, j1)
        total = 0.0
        top = 0.0
        for j in range(j_low, j_high):
            new_mass[j] *= dv[j]
            total += new_mass[j]
            top = max(top, new_mass[j])
        if not (total > 0.0):
            return -np.inf, score, np.empty(0), edge
        log_likelihood += math.log(total)
        for k in range(lo, hi):
            mass[k] = 0.0
        lo, hi = j_low, j_high
        while new_mass[lo] < negligible * top:
            new_mass[lo] = 0.0
            lo += 1
        while new_mass[hi - 1] < negligible * top:
            hi -= 1
            new_mass[hi] = 0.0
        inverse = 1.0 / total
        if with_score:
            for k in range(5):
                slope_sum = 0.0
                for j in range(j_low, j_high):
                    slope_sum += new_tangent[k, j] * dv[j]
                slope_sum *= inverse
                score[k] += slope_sum
                for j in range(j_low, j_high):
                    # the tangent of the normalized mass
                    tangent[k, j] = (new_tangent[k, j] * dv[j] - slope_sum * new_mass[j]) * inverse
                    new_tangent[k, j] = 0.0
        for j in range(j_low, j_high):
            mass[j] = new_mass[j] * inverse
            new_mass[j] = 0.0
    path = np.empty(returns.size + 1 if drawing else 0)
    if drawing:
        np.random.seed(seed)
        k = _pick(mass[lo:hi]) + lo
        path[-1] = _variance_between(k, np.random.random() - 0.5, width, floor, step)
        for t in range(returns.size - 1, -1, -1):
            first = day_low[t]
            count = day_start[t + 1] - day_start[t]
            for m in range(count):
                i = first + m
                z = returns[t] - (mu - 0.5 * v[i]) * dt
                d = v[k] - drift[i] - rho * sigma * z
                y = d * d * precision[i]
                gauss[m] = sent[day_start[t] + m] * _exp_of_minus(y) if y < 0.5 * KERNEL_SDS**2 else 0.0
            k = first + _pick(gauss[:count])
            path[t] = _variance_between(k, np.random.random() - 0.5, width, floor, step)
    return log_likelihood, score, path, edge


def filter_returns(
    returns: np.ndarray,
    parameters: np.ndarray,
    floor: float,
    *,
    score: bool = False,
    seeds: np.ndarray | None = None,
    keep_paths: bool = False,
    threads: int = 1,
    step: float = STEP,
    negligible: float | None = None,
    own_v0: tuple[float, float] | None = None,
) -> Filtered:
    """Log likelihood of one series under many parameter vectors; optionally its score, or draws of the variances.

    Args:
        returns: (T,) daily log returns.
        parameters: (B, 5), columns mu, kappa, theta, sigma, rho.
        floor: the smallest variance of the model, per year.
        score: also the derivatives with respect to the parameters (about three times the time).
        seeds: (B,) one non-negative seed each: draws the variances, by sampling backwards through the filter. Not
            together with `score`.
        keep_paths: not only the ends of what was drawn: 8 B (T + 1) bytes.
        threads: the compiled code runs without Python's lock; results do not depend on it.
        step: distance of lattice points in kernel widths.
        negligible: of NEGLIGIBLE; None to begin with the first and go on as far as needed.
        own_v0: mean and sd of log v0 under a prior of its own; None for the stationary law.
    """
    if score and seeds is not None:
        raise ValueError("ask for the score or for draws, not for both in one pass")
    returns = np.ascontiguousarray(returns, float)
    parameters = np.ascontiguousarray(np.atleast_2d(parameters), float)
    n = len(parameters)
    seed = np.full(n, -1) if seeds is None else np.asarray(seeds)
    nothing = np.empty(0)
    v0_log_mean, v0_log_sd = own_v0 or (0.0, 0.0)
    unknown = np.full(len(returns) + 1, np.nan)

    def one(k: int) -> tuple:
        for cut in NEGLIGIBLE if negligible is None else (negligible,):
            value, slope, path, edge = _filter(
                returns,
                *parameters[k],
                floor,
                step,
                DT_YEARS,
                score,
                int(seed[k]),
                cut,
                v0_log_mean,
                v0_log_sd,
            )
            if edge <= LARGEST_EDGE:
                break
        path = unknown if not len(path) else path
        return value, slope, path if keep_paths else nothing, path[[0, -1]], edge

    if threads > 1 and n > 1:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(one, range(n)))
    else:
        results = [one(k) for k in range(n)]
    value, slope, path, ends, edge = (np.array(column) for column in zip(*results, strict=True))
    drawn = seeds is not None
    return Filtered(
        value,
        slope if score else nothing,
        path if drawn and keep_paths else nothing,
        ends if drawn else nothing,
        edge,
    )


def simulate_returns(
    parameters: np.ndarray,
    sessions: int,
    floor: float,
    seed: int,
    own_v0: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Daily log returns and the path of the variance from the model of this module.

    Args:
        parameters: (B, 5), columns mu, kappa, theta, sigma, rho.
        sessions: T.
        floor: the smallest variance of the model, per year.
        seed: of numpy's generator.
        own_v0: see `filter_returns`.

    Returns:
        Log returns (B, T) and variances (B, T + 1), the last one after the last return.
    """
    from scipy.special import gammaincc, gammainccinv, ndtr, ndtri

    random = np.random.default_rng(seed)
    mu, kappa, theta, sigma, rho = np.atleast_2d(np.asarray(parameters, float)).T
    shape, rate = 2 * kappa * theta / sigma**2, 2 * kappa / sigma**2
    if own_v0 is None:
        v = gammainccinv(shape, gammaincc(shape, rate * floor) * random.random(len(mu))) / rate
    else:
        log_mean, log_sd = own_v0
        above = ndtr((log_mean - np.log(floor)) / log_sd)
        v = np.exp(log_mean - log_sd * ndtri(above * random.random(len(mu))))
    v = np.maximum(v, floor)
    returns, variances = np.empty((len(mu), sessions)), np.empty((len(mu), sessions + 1))
    variances[:, 0] = v
    for t in range(sessions):
        drift, sd = v + kappa * (theta - v) * DT_YEARS, sigma * np.sqrt(v * DT_YEARS)
        # by the survival function, which stays exact far in the tail: v' > floor
        beyond = ndtr((drift - floor) / sd)
        after = np.maximum(drift - sd * ndtri(beyond * random.random(len(mu))), floor)
        e2 = (after - drift) / sd
        e1 = rho * e2 + np.sqrt(1 - rho**2) * random.standard_normal(len(mu))
        returns[:, t] = (mu - v / 2) * DT_YEARS + np.sqrt(v * DT_YEARS) * e1
        variances[:, t + 1] = v = after
    return returns, variances
