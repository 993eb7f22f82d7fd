"""Heston paths: published option values, closed forms of the variance, and the same bits however the work is cut."""

import math
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from scipy import integrate, special, stats

from quant_assets.posterior.priors import HestonParameters
from quant_assets.simulation.paths import (
    MINUTE_YEARS,
    SESSION_YEARS,
    HestonPaths,
    Scheme,
    _normal,
    iterate_paths,
    simulate_paths,
    simulate_terminal,
    threefry,
)

PATHS = 1_000_000
SCHEMES: tuple[Scheme, ...] = ("qe", "euler")
# Ordinary parameters of a share, and a variance that keeps returning to 0 (2 kappa theta far below sigma^2).
SHARE = HestonParameters(mu=0.05, kappa=5.0, theta=0.03, sigma=0.5, rho=-0.6, v0=0.06)
NO_FELLER = HestonParameters(mu=0.3, kappa=1.0, theta=0.02, sigma=1.0, rho=-0.9, v0=0.02)


class Option(NamedTuple):
    """An option on the forward; `sign` 1 for a call, -1 for a put."""

    parameters: HestonParameters
    forward: float
    strike: float
    years: float
    discount: float
    sign: int
    value: float


# shared/KNOWN_ANSWERS.md
OPTIONS = {
    "call": Option(HestonParameters(0.0, 2.0, 0.5, 0.15, 0.3, 0.11), 100, 102, 1.2, 1.0, 1, 24.822196),
    "put": Option(HestonParameters(0.0, 10.0, 0.5, 0.9, 0.1, 0.5), 10, 10, 1.0, 0.98, -1, 2.708217),
}


def standard_errors(sample: np.ndarray, expected: float) -> float:
    """How far the mean lies from what it should be."""
    sample = sample.astype(float).ravel()
    return abs(sample.mean() - expected) / (sample.std() / math.sqrt(sample.size))


def variance_moments(p: HestonParameters, years: float) -> tuple[float, float]:
    """Mean and variance of v_T (Cox, Ingersoll and Ross 1985)."""
    decay = math.exp(-p.kappa * years)
    mean = p.theta + (p.v0 - p.theta) * decay
    return mean, p.sigma**2 / p.kappa * (1 - decay) * (p.v0 * decay + p.theta * (1 - decay) / 2)


def several(draws: int) -> HestonParameters:
    """Different parameters for every draw."""
    rng = np.random.default_rng(5)
    low, high = [-0.1, 0.5, 0.01, 0.1, -0.95, 0.0], [0.2, 9.0, 0.4, 1.2, 0.95, 0.3]
    return HestonParameters(*rng.uniform(low, high, (draws, 6)).T)


def assert_same_bits(one: HestonPaths, other: HestonPaths) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype == np.float32
        assert np.array_equal(a, b)


def joined(chunks: list[HestonPaths]) -> HestonPaths:
    return HestonPaths(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


# ---------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("name", OPTIONS)
def test_the_published_values_belong_to_these_parameters(name: str) -> None:
    """Lewis (2001): one integral of the characteristic function, nothing of ours in it."""
    p, forward, strike, years, discount, sign, value = OPTIONS[name]

    def integrand(u: float) -> float:
        w = u - 0.5j
        beta = p.kappa - 1j * p.rho * p.sigma * w
        d = np.sqrt(beta**2 + p.sigma**2 * (w**2 + 1j * w))
        g = (beta - d) / (beta + d)
        decay = np.exp(-d * years)
        level = (beta - d) / p.sigma**2 * (1 - decay) / (1 - g * decay)
        drift = p.kappa * p.theta / p.sigma**2 * ((beta - d) * years - 2 * np.log((1 - g * decay) / (1 - g)))
        transform = np.exp(drift + level * p.v0)
        return float((np.exp(1j * u * np.log(forward / strike)) * transform).real / (u**2 + 0.25))

    integral = integrate.quad(integrand, 0, 200, limit=500)[0]
    call = discount * (forward - math.sqrt(forward * strike) / math.pi * integral)
    found = call if sign > 0 else call - discount * (forward - strike)
    assert found == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("scheme", "name", "steps"), [("qe", "call", 200), ("qe", "put", 200), ("euler", "put", 400)]
)
def test_option_value_and_integrated_variance(scheme: Scheme, name: str, steps: int) -> None:
    """Within three standard errors at a million paths.

    Euler prices the call too, but is 18 standard errors off in its integrated variance at 300 steps (6 at 1,000): sigma
    is small there and what remains is the bias of its drift, see the next test.
    """
    p, forward, strike, years, discount, sign, value = OPTIONS[name]
    ends = simulate_terminal(
        p, paths_per_draw=PATHS, steps=steps, dt_years=years / steps, seed=11, scheme=scheme
    )
    price = forward * np.exp(ends.log_price.astype(float))
    payoff = discount * np.maximum(sign * (price - strike), 0)
    expected = (p.v0 - p.theta) * (1 - math.exp(-p.kappa * years)) / p.kappa + p.theta * years
    assert standard_errors(payoff, value) < 3
    assert standard_errors(ends.integrated_variance, expected) < 3
    assert standard_errors(price, forward) < 3


def test_euler_is_biased_by_its_step_and_qe_is_not() -> None:
    p, _, _, years, _, _, _ = OPTIONS["call"]
    expected = variance_moments(p, years)[0]
    found = {
        (scheme, steps): standard_errors(
            simulate_terminal(
                p, paths_per_draw=100_000, steps=steps, dt_years=years / steps, seed=2, scheme=scheme
            ).variance,
            expected,
        )
        for scheme in SCHEMES
        for steps in (5, 20)
    }
    assert max(found["qe", 5], found["qe", 20]) < 3
    assert found["euler", 5] > 2 * found["euler", 20] > 12


def test_threefry_known_answers() -> None:
    """The vectors of Random123 for threefry2x32 with 20 rounds."""
    ones = 0xFFFFFFFF
    for key, counter, expected in (
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((ones, ones), (ones, ones), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ):
        words = threefry(*(np.array([x], dtype=np.uint32) for x in (*key, *counter)))
        assert tuple(int(x[0]) for x in words) == expected


def test_normals_are_the_quantiles_of_their_words() -> None:
    words = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32)
    words[:4] = 2**32 - 2, 2**32 - 1, 14, 15
    upper = ((words >> 1) + 0.5) * 2.0**-32
    expected = np.where(words & 1, 1, -1) * special.ndtri(upper)
    found = np.asarray(_normal(words), dtype=float)
    assert np.abs(expected).max() > 5.8
    inside = np.abs(expected) < 5.5
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-4)
    ends = np.asarray(_normal(np.array([0, 1], dtype=np.uint32)))
    np.testing.assert_allclose(ends, [6.338, -6.338], atol=3e-3)


# ---------------------------------------------------------------------------- the process


@pytest.mark.parametrize(("dt_years", "steps"), [(SESSION_YEARS, 126), (1 / 12, 6), (0.5, 1)])
@pytest.mark.parametrize("parameters", [SHARE, NO_FELLER], ids=["share", "no-feller"])
def test_martingale_and_moments(parameters: HestonParameters, dt_years: float, steps: int) -> None:
    """E[S_T] = S_0 exp(mu T), mean and variance of v_T at any step, and no variance below 0."""
    ends = simulate_terminal(parameters, paths_per_draw=200_000, steps=steps, dt_years=dt_years, seed=3)
    years = steps * dt_years
    mean, variance = variance_moments(parameters, years)
    assert standard_errors(np.exp(ends.log_price.astype(float)), math.exp(parameters.mu * years)) < 3
    assert standard_errors(ends.variance, mean) < 3
    assert standard_errors((ends.variance.astype(float) - mean) ** 2, variance) < 3
    assert ends.variance.min() >= 0
    assert ends.integrated_variance.min() > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_variance_is_never_negative_along_the_way(scheme: Scheme) -> None:
    paths = simulate_paths(NO_FELLER, paths_per_draw=2_000, steps=252, seed=8, scheme=scheme)
    assert np.isfinite(paths.log_price).all()
    assert paths.variance.min() == 0
    assert (paths.variance[..., 1:] == 0).any(axis=-1).mean() > 0.9


def test_steps_of_a_minute_and_of_a_day_give_one_distribution() -> None:
    """Five sessions in 1,950 and in 5 steps, against the exact law of v_T (a scaled noncentral chi-square)."""
    years = 5 * SESSION_YEARS
    p = SHARE
    scale = p.sigma**2 * (1 - math.exp(-p.kappa * years)) / (4 * p.kappa)
    law = stats.ncx2(
        4 * p.kappa * p.theta / p.sigma**2, p.v0 * math.exp(-p.kappa * years) / scale, scale=scale
    )
    mean, variance = variance_moments(p, years)
    for dt_years, steps in ((MINUTE_YEARS, 1950), (SESSION_YEARS, 5)):
        ends = simulate_terminal(p, paths_per_draw=50_000, steps=steps, dt_years=dt_years, seed=4)
        v = ends.variance.ravel().astype(float)
        assert standard_errors(v, mean) < 3
        assert standard_errors((v - mean) ** 2, variance) < 3
        assert stats.kstest(v, law.cdf).pvalue > 0.01
        assert standard_errors(np.exp(ends.log_price.astype(float)), math.exp(p.mu * years)) < 3
        leverage = np.corrcoef(v, ends.log_price.ravel())[0, 1]
        assert leverage == pytest.approx(p.rho, abs=0.02)


def test_no_noise_leaves_black_and_scholes() -> None:
    p = HestonParameters(mu=0.1, kappa=0.0, theta=0.5, sigma=0.0, rho=0.9, v0=0.04)
    paths = simulate_paths(p, paths_per_draw=100_000, steps=4, dt_years=0.25, seed=6)
    assert np.all(paths.variance == np.float32(0.04))
    x = paths.log_price[0, :, -1].astype(float)
    assert standard_errors(x, 0.1 - 0.02) < 3
    assert x.std() == pytest.approx(0.2, rel=0.01)


def test_where_the_correction_does_not_exist_the_plain_scheme_goes_on() -> None:
    """rho = 1, sigma = 5 and steps of three years: E[exp(A v')] is infinite, A k = 1.08."""
    p = HestonParameters(mu=0.1, kappa=3.0, theta=2.0, sigma=5.0, rho=1.0, v0=2.0)
    paths = simulate_paths(p, paths_per_draw=1_000, steps=5, dt_years=3.0, seed=1)
    assert all(np.isfinite(values).all() for values in paths)
    # rho = 1 leaves no noise but the variance's: x' = mu dt + K0 + K1 v + K2 v', K3 = K4 = 0.
    half = 1.5 * (3 / 5 - 0.5)
    k0, k1, k2 = -3 * 2 * 3 / 5, half - 1 / 5, half + 1 / 5
    expected = 0.3 + k0 + k1 * 2 + k2 * paths.variance[0, :, 1]
    np.testing.assert_allclose(paths.log_price[0, :, 1], expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------- seeds, draws and chunks


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("draws", "paths", "steps"), [(23, 7, 60), (7, 101, 60), (5, 1_001, 390), (2, 20_011, 5)]
)
def test_chunks_joined_are_the_whole(scheme: Scheme, draws: int, paths: int, steps: int) -> None:
    work = {"paths_per_draw": paths, "steps": steps, "seed": 2**63 + 5, "scheme": scheme}
    whole = simulate_paths(several(draws), **work)  # type: ignore[arg-type]
    assert whole.log_price.shape == whole.variance.shape == (draws, paths, steps + 1)
    for per_chunk in (1, (draws + 1) // 2):
        lanes = paths if paths < 64 else 16 * math.ceil(paths / 16)
        memory_bytes = per_chunk * lanes * (8 * (steps + 1) + 64)
        chunks = list(iterate_paths(several(draws), **work, memory_bytes=memory_bytes))  # type: ignore[arg-type]
        assert [len(chunk.variance) for chunk in chunks][:-1] == [per_chunk] * (len(chunks) - 1)
        assert_same_bits(joined(chunks), whole)
    assert_same_bits(simulate_paths(several(draws), **work), whole)  # type: ignore[arg-type]
    ends = simulate_terminal(several(draws), **work)  # type: ignore[arg-type]
    np.testing.assert_allclose(ends.log_price, whole.log_price[..., -1], atol=1e-6)
    area = (whole.variance[..., :-1] + whole.variance[..., 1:]).sum(axis=-1) * SESSION_YEARS / 2
    np.testing.assert_allclose(ends.integrated_variance, area, rtol=1e-5)


def test_the_start() -> None:
    parameters = several(3)
    paths = simulate_paths(parameters, paths_per_draw=4, steps=2, seed=0)
    assert np.all(paths.log_price[..., 0] == 0)
    assert np.array_equal(
        paths.variance[..., 0], np.repeat(np.asarray(parameters.v0, np.float32)[:, None], 4, axis=1)
    )


def test_a_longer_simulation_begins_with_the_shorter_one() -> None:
    small = simulate_paths(several(3), paths_per_draw=100, steps=10, seed=9)
    large = simulate_paths(several(8), paths_per_draw=150, steps=30, seed=9)
    for a, b in zip(small, large, strict=True):
        # `several` draws row by row, so its first three draws are the same.
        np.testing.assert_allclose(a, b[:3, :100, :11], atol=1e-6)


def test_seeds_draws_and_paths_are_independent() -> None:
    """Same parameters: no two of four draws, two seeds, or neighbouring steps have anything in common."""
    same = HestonParameters(*(np.full(4, x) for x in SHARE))
    one, other = (simulate_paths(same, paths_per_draw=20_000, steps=3, seed=seed) for seed in (1, 2))
    for field in HestonPaths._fields:
        moves = [np.diff(getattr(p, field).astype(float)) for p in (one, other)]
        columns = np.concatenate([m[..., i] for m in moves for i in range(3)])
        together = np.corrcoef(columns)[np.triu_indices(len(columns), 1)]
        # Mean reversion ties neighbouring steps of the variance by kappa dt, 0.02; the rest is noise of 1 / sqrt(n).
        assert np.abs(together).max() < 0.02 + 4 / math.sqrt(20_000)
        assert np.median(np.abs(together)) < 1 / math.sqrt(20_000)
        flat = moves[0][..., 0].ravel()
        assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 4 / math.sqrt(flat.size)
        assert len(np.unique(flat)) > 0.8 * flat.size


# ---------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rho", 1.2, r"rho = 1\.2 in draw 1: a correlation lies in \[-1, 1\]"),
        ("rho", -1.01, r"rho = -1\.01 in draw 1"),
        ("kappa", -1.0, r"kappa = -1\.0 in draw 1: it must be 0 or above"),
        ("theta", -0.1, r"theta = -0\.1 in draw 1"),
        ("sigma", -0.1, r"sigma = -0\.1 in draw 1"),
        ("v0", -0.1, r"v0 = -0\.1 in draw 1"),
        ("mu", math.nan, r"mu = nan in draw 1: it must be finite"),
        ("v0", math.inf, r"v0 = inf in draw 1: it must be finite"),
    ],
)
def test_bad_parameters(field: str, value: float, message: str) -> None:
    parameters = several(3)
    getattr(parameters, field)[1] = value
    with pytest.raises(ValueError, match=message):
        simulate_paths(parameters, paths_per_draw=2, steps=2, seed=0)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"shapes .*'kappa': \(2,\).*same shape \(draws,\)"):
        simulate_paths(several(3)._replace(kappa=np.ones(2)), paths_per_draw=2, steps=2, seed=0)
    with pytest.raises(ValueError, match=r"shapes .*\(2, 2\)"):
        simulate_paths(SHARE._replace(mu=np.ones((2, 2))), paths_per_draw=2, steps=2, seed=0)
    with pytest.raises(ValueError, match="no draw"):
        simulate_paths(several(0), paths_per_draw=2, steps=2, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps = 0: it must be from 1"),
        ({"paths_per_draw": 0}, "paths_per_draw = 0: it must be from 1"),
        ({"dt_years": 0.0}, r"dt_years = 0\.0: a step is above 0 years"),
        ({"dt_years": math.nan}, "dt_years = nan"),
        ({"seed": -1}, "seed = -1: it must be from 0"),
        ({"seed": 2**64}, "seed = 18446744073709551616"),
        ({"scheme": "milstein"}, "scheme = 'milstein': it must be one of qe, euler"),
        (
            {"memory_bytes": 2 * (8 * 3 + 64) - 1},
            "memory_bytes = 175 holds no draw: .* take 176 bytes; raise it",
        ),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iterate_paths(SHARE, **{"paths_per_draw": 2, "steps": 2, "seed": 0, **change})  # type: ignore[arg-type]


def test_the_module_imports_no_jax() -> None:
    code = "import sys, quant_assets.simulation.paths; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
