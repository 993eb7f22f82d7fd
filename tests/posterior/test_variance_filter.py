"""The lattice filter against a dense quadrature of the model's definition, finite differences, simulation and crashes."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from quant_assets.posterior import variance_filter
from quant_assets.posterior.priors import DT_YEARS, PARAMETERS, HestonPriors
from quant_assets.posterior.variance_filter import filter_returns, simulate_returns

FLOOR = 1e-4
REGULAR = (0.05, 5.0, 0.03, 0.5, -0.5)
# Parameters, and how near the default lattice is to the truth with 100 returns.
CASES = {
    "regular": (REGULAR, 2e-3),
    "far inside Feller": ((0.0, 10.0, 0.09, 0.3, 0.0), 5e-5),
    "rho near -1": ((0.05, 5.0, 0.03, 0.4, -0.95), 5e-5),
    "rho near +1": ((0.05, 5.0, 0.03, 0.4, 0.9), 5e-5),
    "tiny sigma": ((0.0, 5.0, 0.03, 0.05, -0.5), 5e-5),
    "Feller violated 5 times": ((0.1, 2.0, 0.03, 0.8, -0.6), 0.05),
    "Feller violated 17 times": ((0.05, 3.0, 0.04, 2.0, -0.9), 0.1),
    "Feller violated 36 times": ((0.1, 1.0, 0.02, 1.2, 0.3), 0.15),
}
PRIORS = HestonPriors()


class Quadrature(NamedTuple):
    """What `integrate` finds: the log likelihood, the points of v, and (T + 1, points) smoothed masses."""

    log_likelihood: float
    variances: np.ndarray
    smoothed: np.ndarray


def make_points(
    parameters: tuple[float, ...], highest: float | None, panel: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and weights in s = sqrt(v), 8 a panel, panels finer at the lower end."""
    _, kappa, theta, sigma, rho = parameters
    stationary = stats.gamma(2 * kappa * theta / sigma**2, scale=sigma**2 / (2 * kappa))
    low = math.sqrt(max(FLOOR, stationary.ppf(1e-13) / 1.5))
    high = highest or 1.3 * math.sqrt(stationary.isf(1e-13))
    width = 0.5 * sigma * math.sqrt(DT_YEARS * (1 - rho**2))
    edges, size = [low], width / 8
    while edges[-1] < high:
        edges.append(edges[-1] + size)
        size = min(1.3 * size, panel * width)
    x, weight = np.polynomial.legendre.leggauss(8)
    edge = np.array(edges)
    half, middle = np.diff(edge) / 2, (edge[1:] + edge[:-1]) / 2
    s = (middle[:, None] + half[:, None] * x).ravel()
    return s * s, 2 * s * (half[:, None] * weight).ravel()


def integrate(
    returns: np.ndarray,
    parameters: tuple[float, ...],
    *,
    highest: float | None = None,
    panel: float = 3.0,
    smooth: bool = False,
) -> Quadrature:
    """The model of the module's docstring, written down day by day with dense matrices.

    p(r, v' | v) = N(r; (mu - v/2) dt, v dt) N(v'; drift + rho sigma z, sd² (1 - rho²)) / P(N(drift, sd²) > floor)
    """
    mu, kappa, theta, sigma, rho = parameters
    v, dv = make_points(parameters, highest, panel)
    stationary = stats.gamma(2 * kappa * theta / sigma**2, scale=sigma**2 / (2 * kappa))
    drift, sd = v + kappa * (theta - v) * DT_YEARS, sigma * np.sqrt(v * DT_YEARS)
    log_truncation = special.log_ndtr((drift - FLOOR) / sd)
    conditional_sd = sd * math.sqrt(1 - rho**2)
    mean = (mu - v / 2) * DT_YEARS

    def step(r: float) -> tuple[np.ndarray, float]:
        """(from, to) density of v' and r, divided by exp of the second value."""
        log_density = stats.norm.logpdf(r, mean, np.sqrt(v * DT_YEARS)) - log_truncation
        distance = (v[None, :] - (drift + rho * sigma * (r - mean))[:, None]) / conditional_sd[:, None]
        scale = np.exp(log_density - log_density.max()) / (conditional_sd * math.sqrt(2 * math.pi))
        return scale[:, None] * np.exp(-0.5 * distance * distance), log_density.max()

    forward = [stationary.pdf(v) / stationary.sf(FLOOR) * dv]
    log_likelihood = 0.0
    for r in returns:
        kernel, log_scale = step(r)
        mass = (forward[-1] @ kernel) * dv
        log_likelihood += log_scale + math.log(mass.sum())
        forward.append(mass / mass.sum())
    smoothed = np.empty((0, len(v)))
    if smooth:
        backward, rows = np.ones(len(v)), [forward[-1]]
        for r, mass in zip(returns[::-1], forward[-2::-1], strict=True):
            backward = step(r)[0] @ (dv * backward)
            backward /= backward.max()
            rows.append(mass * backward / (mass @ backward))
        smoothed = np.array(rows[::-1])
    return Quadrature(log_likelihood, v, smoothed)


def simulated(parameters: tuple[float, ...], sessions: int, seed: int = 1) -> np.ndarray:
    return simulate_returns(np.array(parameters), sessions, FLOOR, seed)[0][0]


def log_likelihood(returns: np.ndarray, parameters: tuple[float, ...], **options: float) -> float:
    return float(filter_returns(returns, np.array(parameters), FLOOR, **options).log_likelihood[0])


def make_crash(fall: float = -0.73) -> np.ndarray:
    """100 calm days of 2 % noise, and AAPL's 29 September 2000 in the middle."""
    returns = np.random.default_rng(0).normal(0, 0.02, 100)
    returns[50] = fall
    return returns


def prior_draws(count: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((count, 5))
    return np.stack(PRIORS.parameters(x), axis=-1)


def feller_violation(parameters: np.ndarray) -> np.ndarray:
    """sigma² / (2 kappa theta): above 1 the process reaches zero."""
    return parameters[..., 3] ** 2 / (2 * parameters[..., 1] * parameters[..., 2])


# ------------------------------------------------------------------------------------------------- the log likelihood


@pytest.mark.parametrize("case", CASES)
def test_log_likelihood_agrees_with_a_dense_quadrature(case: str) -> None:
    parameters, tolerance = CASES[case]
    returns = simulated(parameters, 100)
    exact = integrate(returns, parameters).log_likelihood
    assert log_likelihood(returns, parameters) == pytest.approx(exact, abs=tolerance)
    assert log_likelihood(returns, parameters, step=0.3) == pytest.approx(exact, abs=2e-4)


def test_the_dense_quadrature_has_converged_itself() -> None:
    for case in ("regular", "Feller violated 5 times", "Feller violated 36 times"):
        parameters, _ = CASES[case]
        returns = simulated(parameters, 40)
        coarse, fine = (integrate(returns, parameters, panel=panel).log_likelihood for panel in (3.0, 1.5))
        assert coarse == pytest.approx(fine, abs=1e-7), case


def test_log_likelihood_where_the_returns_do_not_come_from_the_parameters() -> None:
    returns = simulated((0.0, 3.0, 0.12, 0.9, 0.5), 80)
    for name in ("regular", "rho near -1", "Feller violated 17 times"):
        parameters, _ = CASES[name]
        exact = integrate(returns, parameters, highest=1.5).log_likelihood
        assert log_likelihood(returns, parameters) == pytest.approx(exact, abs=0.02), name


def test_with_hardly_any_volatility_of_variance_returns_are_normal_with_variance_theta() -> None:
    mu, kappa, theta, sigma, rho = 0.1, 100.0, 0.04, 0.02, 0.0
    returns = np.random.default_rng(3).normal((mu - theta / 2) * DT_YEARS, math.sqrt(theta * DT_YEARS), 250)
    normal = stats.norm.logpdf(returns, (mu - theta / 2) * DT_YEARS, math.sqrt(theta * DT_YEARS)).sum()
    assert log_likelihood(returns, (mu, kappa, theta, sigma, rho)) == pytest.approx(normal, abs=0.02)


@settings(max_examples=15, deadline=None)
@given(x=st.lists(st.floats(-1.8, 1.8), min_size=5, max_size=5))
def test_the_likelihood_is_a_density_of_the_returns(x: list[float]) -> None:
    """Over all values of the last return it integrates to the likelihood of the returns before it."""
    parameters = np.array(PRIORS.parameters(np.array(x)))
    kappa, theta, sigma = parameters[1:4]
    largest = stats.gamma(2 * kappa * theta / sigma**2, scale=sigma**2 / (2 * kappa)).isf(1e-9) + 0.02
    end = 8 * math.sqrt(largest * DT_YEARS)
    # sinh: fine around zero, where a variance at the floor makes the density a spike
    y = np.linspace(-1, 1, 501)
    last = end * np.sinh(9 * y) / math.sinh(9)
    jacobian = end * 9 * np.cosh(9 * y) / math.sinh(9) * (y[1] - y[0])
    first = 0.4 * math.sqrt(theta * DT_YEARS)
    before = log_likelihood(np.array([first]), parameters)
    both = np.array([log_likelihood(np.array([first, r]), parameters) for r in last])
    assert math.log((np.exp(both - before) * jacobian).sum()) == pytest.approx(0, abs=2e-3)


@settings(max_examples=25, deadline=None)
@given(x=st.lists(st.floats(-2, 2), min_size=5, max_size=5), shift=st.floats(-0.05, 0.05))
def test_a_shift_of_the_returns_is_a_shift_of_mu(x: list[float], shift: float) -> None:
    mu, *rest = PRIORS.parameters(np.array(x))
    returns = simulated(REGULAR, 60)
    moved = log_likelihood(returns + shift, (mu + shift / DT_YEARS, *rest))
    assert moved == pytest.approx(log_likelihood(returns, (mu, *rest)), rel=1e-9, abs=1e-7)


def test_the_default_lattice_has_converged_over_the_prior() -> None:
    parameters = prior_draws(120, seed=0)
    parameters = parameters[np.abs(parameters[:, 4]) < 0.99]
    returns = simulate_returns(parameters, 250, FLOOR, seed=2)[0]
    coarse, fine = (
        np.array([log_likelihood(r, p, step=step) for r, p in zip(returns, parameters, strict=True)])
        for step in (variance_filter.STEP, 0.2)
    )
    error, violation = np.abs(coarse - fine), feller_violation(parameters)
    assert error[violation < 0.7].max() < 1e-2
    assert error[violation < 2].max() < 0.03
    # Feller violated far: tenths of a nat, of which what differs from draw to draw is a diagnostic of every fit
    assert error.max() < 0.25


def test_a_lattice_with_too_many_points_is_impossible_not_an_error() -> None:
    result = filter_returns(simulated(REGULAR, 60), np.array([*REGULAR[:4], 1 - 1e-12]), FLOOR, score=True)
    assert result.log_likelihood[0] == -np.inf
    assert np.isfinite(result.score).all()


@pytest.mark.parametrize("kappa", [20.0, 250.0, 400.0])
def test_log_likelihood_at_a_fast_reversion(kappa: float) -> None:
    returns, parameters = np.random.default_rng(0).normal(0, 0.01, 60), (0.05, kappa, 0.03, 0.25, -0.4)
    found = log_likelihood(returns, parameters)
    if kappa < 1 / DT_YEARS or np.isfinite(found):
        exact = integrate(returns, parameters, highest=0.6).log_likelihood
        assert found == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize("kappa", [1000.0, 15_000.0])
def test_an_euler_step_that_explodes_is_never_the_best_explanation(kappa: float) -> None:
    """Above 2 / dt every step overshoots theta by more than it was away; no returns are likely then."""
    returns = np.random.default_rng(0).normal(0, 0.01, 250)
    sane = log_likelihood(returns, (0.05, 20.0, 0.03, 0.25, -0.4))
    assert log_likelihood(returns, (0.05, kappa, 0.03, 0.25, -0.4)) < sane


# --------------------------------------------------------------------------------------------------------- the score


@pytest.mark.parametrize(
    "case", ["regular", "far inside Feller", "rho near -1", "rho near +1", "Feller violated 5 times"]
)
def test_score_agrees_with_central_differences(case: str) -> None:
    parameters = np.array(CASES[case][0])
    returns = simulated(CASES[case][0], 250)
    # Units in which the posterior is about as wide in every direction.
    unit = np.array([0.1, 0.2, 0.2, 0.2, 0.2]) * np.array([1, *parameters[1:4], 1 - parameters[4] ** 2])
    small = np.array([0.01, 3e-3, 3e-3, 3e-3, 3e-3]) * unit
    neighbours = np.concatenate([parameters + np.diag(small), parameters - np.diag(small)])
    values = filter_returns(returns, neighbours, FLOOR, step=0.2).log_likelihood
    difference = (values[:5] - values[5:]) / (2 * small) * unit
    score = filter_returns(returns, parameters, FLOOR, score=True, step=0.2).score[0] * unit
    for name, ours, theirs in zip(PARAMETERS, score, difference, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=3e-3), name
    default = filter_returns(returns, parameters, FLOOR, score=True).score[0] * unit
    for name, ours, theirs in zip(PARAMETERS, default, difference, strict=True):
        assert ours == pytest.approx(theirs, abs=0.1 if feller_violation(parameters) > 1 else 0.02), name


def test_the_score_comes_with_the_same_log_likelihood() -> None:
    parameters = np.array([case[0] for case in CASES.values()])
    returns = simulated(REGULAR, 250)
    plain = filter_returns(returns, parameters, FLOOR)
    scored = filter_returns(returns, parameters, FLOOR, score=True)
    np.testing.assert_allclose(scored.log_likelihood, plain.log_likelihood, rtol=1e-12)
    assert (plain.score.size, plain.ends.size, plain.path.size) == (0, 0, 0)


@pytest.mark.parametrize("case", ["regular", "rho near -1", "Feller violated 5 times"])
def test_the_score_of_simulated_returns_is_zero_on_average(case: str) -> None:
    """Of the true parameters, by definition of a likelihood: holds only if simulation and filter are one model."""
    parameters = np.array(CASES[case][0])
    count = 400
    returns, _ = simulate_returns(np.tile(parameters, (count, 1)), 100, FLOOR, seed=11)
    score = np.array([filter_returns(r, parameters, FLOOR, score=True, step=0.4).score[0] for r in returns])
    error = score.std(axis=0) / math.sqrt(count)
    assert (np.abs(score.mean(axis=0)) < 4 * error).all(), score.mean(axis=0) / error


def test_score_and_draws_in_one_pass_are_refused() -> None:
    with pytest.raises(ValueError, match="not for both"):
        filter_returns(simulated(REGULAR, 60), np.array(REGULAR), FLOOR, score=True, seeds=np.array([1]))


# ----------------------------------------------------------------------------------------------- draws of the variance


@pytest.mark.parametrize(
    ("case", "step"),
    # The default lattice is coarse at the floor: there the 5 % quantile is where 7 % of the draws are.
    [("regular", 0.7), ("rho near -1", 0.7), ("Feller violated 5 times", 0.2)],
)
def test_drawn_variances_follow_the_smoothing_distribution(case: str, step: float) -> None:
    parameters = CASES[case][0]
    returns, count = simulated(parameters, 60), 3000
    exact = integrate(returns, parameters, smooth=True)
    drawn = filter_returns(
        returns,
        np.tile(parameters, (count, 1)),
        FLOOR,
        seeds=np.arange(count),
        keep_paths=True,
        threads=2,
        step=step,
    )
    assert drawn.path.shape == (count, 61)
    assert drawn.path.min() > FLOOR
    np.testing.assert_array_equal(drawn.ends, drawn.path[:, [0, -1]])
    for t in (0, 1, 30, 59, 60):
        # half of each point's mass lies below it
        below = np.cumsum(exact.smoothed[t]) - 0.5 * exact.smoothed[t]

        def distribution(v: np.ndarray, below: np.ndarray = below) -> np.ndarray:
            return np.interp(v, exact.variances, below)

        mean = exact.smoothed[t] @ exact.variances
        sd = math.sqrt(exact.smoothed[t] @ (exact.variances - mean) ** 2)
        assert drawn.path[:, t].mean() == pytest.approx(mean, abs=4.5 * sd / math.sqrt(count)), t
        assert stats.kstest(drawn.path[:, t], distribution).pvalue > 1e-4, t
        for level in (0.05, 0.5, 0.95):
            quantile = np.interp(level, below, exact.variances)
            part = (drawn.path[:, t] < quantile).mean()
            assert part == pytest.approx(level, abs=4.5 * math.sqrt(level * (1 - level) / count) + 5e-3), t


def test_drawn_variances_move_together_as_the_path_does() -> None:
    """The increments of drawn paths have the model's size, which draws of each day on its own would not have."""
    returns, sessions = simulated(REGULAR, 1000), 1000
    path = filter_returns(returns, np.array(REGULAR), FLOOR, seeds=np.array([5]), keep_paths=True).path[0]
    mu, kappa, theta, sigma, rho = REGULAR
    e2 = (path[1:] - path[:-1] - kappa * (theta - path[:-1]) * DT_YEARS) / (
        sigma * np.sqrt(path[:-1] * DT_YEARS)
    )
    e1 = (returns - (mu - path[:-1] / 2) * DT_YEARS) / np.sqrt(path[:-1] * DT_YEARS)
    assert e2.std() == pytest.approx(1, abs=5 / math.sqrt(2 * sessions))
    assert e1.std() == pytest.approx(1, abs=5 / math.sqrt(2 * sessions))
    assert np.corrcoef(e1, e2)[0, 1] == pytest.approx(rho, abs=5 * (1 - rho**2) / math.sqrt(sessions))


def test_seeds_decide_the_draws_and_threads_decide_nothing() -> None:
    parameters, returns = prior_draws(16, seed=4), simulated(REGULAR, 250)
    seeds = np.arange(16)

    def run(seeds: np.ndarray | None, threads: int, score: bool = False) -> variance_filter.Filtered:
        return filter_returns(
            returns,
            parameters,
            FLOOR,
            seeds=seeds,
            keep_paths=seeds is not None,
            threads=threads,
            score=score,
        )

    once, again, parallel = run(seeds, 1), run(seeds, 1), run(seeds, 4)
    for other in (again, parallel):
        for field, ours in once._asdict().items():
            np.testing.assert_array_equal(getattr(other, field), ours, err_msg=field)
    for ours, theirs in zip(run(None, 1, score=True), run(None, 4, score=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (run(seeds + 100, 1).path != once.path).all()
    np.testing.assert_array_equal(run(seeds + 100, 1).log_likelihood, once.log_likelihood)


def test_the_order_of_parameter_vectors_does_not_matter() -> None:
    parameters, returns, seeds = prior_draws(8, seed=5), simulated(REGULAR, 120), np.arange(8)
    there = filter_returns(returns, parameters, FLOOR, seeds=seeds)
    back = filter_returns(returns, parameters[::-1], FLOOR, seeds=seeds[::-1])
    np.testing.assert_array_equal(there.log_likelihood, back.log_likelihood[::-1])
    np.testing.assert_array_equal(there.ends, back.ends[::-1])


# --------------------------------------------------------------------------------------------------------- simulation


def test_simulated_variance_is_stationary_with_the_moments_of_the_gamma() -> None:
    parameters = (0.1, 8.0, 0.06, 0.4, -0.7)
    _, kappa, theta, sigma, _ = parameters
    count = 4000
    _, v = simulate_returns(np.tile(parameters, (count, 1)), 120, FLOOR, seed=3)
    spread = math.sqrt(theta * sigma**2 / (2 * kappa))
    for t in (0, 60, 120):
        assert v[:, t].mean() == pytest.approx(theta, abs=4.5 * spread / math.sqrt(count)), t
        # an Euler step of one day adds kappa dt / 2, 1.6 %, to the variance; sampling error is 2 to 3 %
        assert v[:, t].var() == pytest.approx(spread**2, rel=0.12), t
    gamma = stats.gamma(2 * kappa * theta / sigma**2, scale=sigma**2 / (2 * kappa))
    assert stats.kstest(v[:, 0], gamma.cdf).pvalue > 1e-4
    correlation = np.corrcoef(v[:, 0], v[:, 10])[0, 1]
    assert correlation == pytest.approx((1 - kappa * DT_YEARS) ** 10, abs=0.05)


@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.6])
def test_simulated_shocks_are_standard_normals_of_correlation_rho(rho: float) -> None:
    mu, kappa, theta, sigma = 0.3, 8.0, 0.06, 0.4
    r, v = simulate_returns(np.array([mu, kappa, theta, sigma, rho]), 20_000, FLOOR, seed=4)
    now, after = v[0, :-1], v[0, 1:]
    e1 = (r[0] - (mu - now / 2) * DT_YEARS) / np.sqrt(now * DT_YEARS)
    e2 = (after - now - kappa * (theta - now) * DT_YEARS) / (sigma * np.sqrt(now * DT_YEARS))
    assert stats.kstest(e1, "norm").pvalue > 1e-4
    assert stats.kstest(e2, "norm").pvalue > 1e-4
    assert np.corrcoef(e1, e2)[0, 1] == pytest.approx(rho, abs=5 * (1 - rho**2) / math.sqrt(20_000))


def test_simulated_variance_is_never_below_the_floor() -> None:
    for case in ("Feller violated 17 times", "Feller violated 36 times"):
        for floor in (FLOOR, 1e-3):
            r, v = simulate_returns(np.tile(CASES[case][0], (200, 1)), 250, floor, seed=5)
            assert v.min() >= floor
            # and it is a truncation, not a wall where paths pile up
            assert (v == floor).mean() < 1e-3
            assert np.isfinite(r).all()


def test_simulated_returns_depend_on_the_seed_alone() -> None:
    parameters = prior_draws(5, seed=6)
    once, again, other = (simulate_returns(parameters, 50, FLOOR, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_array_equal(once[1], again[1])
    assert (once[0] != other[0]).all()
    assert (once[0].shape, once[1].shape) == ((5, 50), (5, 51))


@pytest.mark.parametrize("case", ["regular", "Feller violated 5 times"])
def test_a_filtered_forecast_is_calibrated_on_simulated_variances(case: str) -> None:
    """The rank of the true last variance among drawn ones is uniform, if the parameters are the true ones."""
    parameters = CASES[case][0]
    count, draws = 200, 19
    returns, v = simulate_returns(np.tile(parameters, (count, 1)), 60, FLOOR, seed=12)
    ranks = []
    for k in range(count):
        ends = filter_returns(
            returns[k], np.tile(parameters, (draws, 1)), FLOOR, seeds=draws * k + np.arange(draws)
        ).ends
        ranks.append((ends < v[k, [0, -1]]).sum(axis=0))
    for column in np.array(ranks).T:
        counts = np.bincount(column // 4, minlength=5)
        assert stats.chisquare(counts).pvalue > 1e-4, counts


# ------------------------------------------------------------------------------------------------- crashes and extremes


@pytest.mark.parametrize(
    ("parameters", "tolerance"),
    [
        ((0.05, 5.0, 0.1, 0.5, -0.5), 1e-3),
        ((0.05, 5.0, 0.1, 0.5, 0.9), 1e-3),
        ((0.05, 5.0, 0.1, 0.25, 0.0), 1e-3),
        ((0.1, 2.0, 0.03, 0.8, -0.6), 2e-3),
        ((0.1, 1.0, 0.02, 1.2, 0.3), 0.03),
    ],
)
def test_a_crash_finds_the_variances_that_explain_it(parameters: tuple[float, ...], tolerance: float) -> None:
    returns = make_crash()
    result = filter_returns(returns, np.array(parameters), FLOOR, score=True)
    exact = integrate(returns, parameters, highest=1.5).log_likelihood
    assert result.log_likelihood[0] == pytest.approx(exact, abs=tolerance)
    assert result.edge[0] <= variance_filter.LARGEST_EDGE
    assert np.isfinite(result.score).all()


def test_the_second_threshold_is_what_makes_a_crash_right(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = (0.05, 5.0, 0.1, 0.5, -0.5)
    default = log_likelihood(make_crash(), parameters)
    monkeypatch.setattr(variance_filter, "NEGLIGIBLE", (1e-280,))
    everything = log_likelihood(make_crash(), parameters)
    monkeypatch.setattr(variance_filter, "NEGLIGIBLE", (1e-20,))
    first_only = filter_returns(make_crash(), np.array(parameters), FLOOR)
    assert default == pytest.approx(everything, abs=1e-4)
    assert first_only.log_likelihood[0] < everything - 1
    assert first_only.edge[0] > variance_filter.LARGEST_EDGE  # and that is how it is noticed


@pytest.mark.parametrize("fall", [-0.73, -3.0, 5.0])
@pytest.mark.parametrize("seed", [None, 1])
def test_underflow_never_gives_nan(fall: float, seed: int | None) -> None:
    parameters = np.concatenate([prior_draws(12, seed=7), [case[0] for case in CASES.values()]])
    seeds = None if seed is None else seed + np.arange(len(parameters))
    result = filter_returns(make_crash(fall), parameters, FLOOR, seeds=seeds, score=seed is None)
    assert not np.isnan(result.log_likelihood).any()
    assert (result.log_likelihood < 1e6).all()
    possible = np.isfinite(result.log_likelihood)
    assert np.isfinite(result.score if seed is None else result.ends[possible]).all()


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-6])
def test_returns_that_hardly_move_lead_to_the_floor(scale: float) -> None:
    returns = scale * np.random.default_rng(1).standard_normal(120)
    exact = integrate(returns, REGULAR).log_likelihood
    result = filter_returns(
        returns, np.tile(REGULAR, (50, 1)), FLOOR, seeds=np.arange(50), keep_paths=True, step=0.3
    )
    assert result.log_likelihood[0] == pytest.approx(exact, abs=1e-3)
    assert result.path.min() > FLOOR
    assert np.median(result.path[:, 30:]) < 0.1 * REGULAR[2]


def test_thirty_years_of_returns() -> None:
    returns = simulated(REGULAR, 8000, seed=9)
    parameters = np.array([REGULAR, (0.05, 5.0, 0.03, 0.4, -0.5), (0.05, 5.0, 0.06, 0.5, -0.5)])
    result = filter_returns(returns, parameters, FLOOR, score=True)
    assert np.isfinite(result.log_likelihood).all()
    assert result.log_likelihood.argmax() == 0  # the true parameters, of these three
    assert result.edge.max() < variance_filter.LARGEST_EDGE
    fine = filter_returns(returns, parameters, FLOOR, step=0.35)
    np.testing.assert_allclose(result.log_likelihood, fine.log_likelihood, atol=0.02)


def test_log_likelihood_adds_up_over_independent_stretches() -> None:
    """Two years with a long quiet gap of forgetting: kappa so large that the past says nothing after a month."""
    parameters = (0.05, 100.0, 0.04, 1.0, -0.3)
    returns = simulated(parameters, 500, seed=10)
    whole = log_likelihood(returns, parameters)
    head, tail, overlap = (
        log_likelihood(part, parameters) for part in (returns[:260], returns[240:], returns[240:260])
    )
    # the middle 20 days forget the state: p(all) p(middle) = p(head) p(tail)
    assert whole + overlap == pytest.approx(head + tail, abs=0.02)


def test_v0_may_have_a_prior_of_its_own() -> None:
    """Against the stationary law by Bayes' rule: given v_0 both models are the same."""
    from scipy import stats

    own = (math.log(0.2), 0.3)
    returns = simulated(REGULAR, 80)
    _, kappa, theta, sigma, _ = REGULAR
    seeds = np.arange(4000)
    drawn = filter_returns(returns, np.tile(REGULAR, (len(seeds), 1)), FLOOR, seeds=seeds)
    v0 = drawn.ends[:, 0]
    gamma = stats.gamma(2 * kappa * theta / sigma**2, scale=sigma**2 / (2 * kappa))
    other = stats.norm(*own)
    # E over p(v_0 | returns) of the ratio of the two priors
    ratio = other.pdf(np.log(v0)) / v0 / gamma.pdf(v0)
    expected = math.log(ratio.mean())
    error = ratio.std() / ratio.mean() / math.sqrt(len(ratio))
    here = filter_returns(returns, np.array(REGULAR), FLOOR, own_v0=own, score=True)
    assert here.log_likelihood[0] - drawn.log_likelihood[0] == pytest.approx(expected, abs=4 * error)
    shift = np.array([0, 0, 0, 1e-4, 0])
    up, down = (
        filter_returns(returns, np.array(REGULAR) + s, FLOOR, own_v0=own).log_likelihood[0]
        for s in (shift, -shift)
    )
    assert here.score[0, 3] == pytest.approx((up - down) / 2e-4, rel=1e-3)


def test_the_simulator_starts_where_its_own_prior_says() -> None:
    own = (math.log(0.2), 0.3)
    _, variances = simulate_returns(np.tile(REGULAR, (5000, 1)), 1, FLOOR, 1, own)
    log_v0 = np.log(variances[:, 0])
    assert log_v0.mean() == pytest.approx(own[0], abs=4 * 0.3 / math.sqrt(5000))
    assert log_v0.std() == pytest.approx(0.3, rel=0.05)
