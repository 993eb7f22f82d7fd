"""The posterior against known parameters, an independent importance sampler, the latent model, and broken surrogates."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from quant_assets.posterior import heston
from quant_assets.posterior.diagnostics import Limits
from quant_assets.posterior.heston import FitRefused, HestonError, HestonPosterior, SamplerSettings, fit
from quant_assets.posterior.priors import DT_YEARS, PARAMETERS, QUANTITIES, HestonPriors
from quant_assets.posterior.variance_filter import filter_returns, simulate_returns

PRIORS = HestonPriors()
TRUE = {"mu": 0.08, "kappa": 5.0, "theta": 0.04, "sigma": 0.5, "rho": -0.6}
# Short, so that a test costs a second; compiled once for all of them.
QUICK = SamplerSettings(draws=500, fall_back=False)
PROJECT = Path(__file__).resolve().parents[2]


def simulate(sessions: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Returns and the path of the variance at `TRUE`."""
    returns, variance = simulate_returns(np.array(list(TRUE.values())), sessions, PRIORS.variance_floor, seed)
    return returns[0], variance[0]


@pytest.fixture(scope="module")
def short() -> np.ndarray:
    return simulate(300)[0]


@pytest.fixture(scope="module")
def short_fit(short: np.ndarray) -> HestonPosterior:
    return fit(short, settings=QUICK)


def monte_carlo_error(draws: np.ndarray) -> float:
    """Standard error of the mean of (chains, draws)."""
    import arviz

    return float(draws.std() / math.sqrt(arviz.ess(draws, method="mean")))


# -------------------------------------------------------------------------------------------------- what is refused


def make_noise(sessions: int = 300, sd: float = 0.01) -> np.ndarray:
    return np.random.default_rng(0).normal(0, sd, sessions)


def with_values(at: slice | int, value: float) -> np.ndarray:
    returns = make_noise()
    returns[at] = value
    return returns


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (make_noise(249), "249 returns are too few.* at least 250 .*longer window"),
        (np.empty(0), "0 returns are too few"),
        (with_values(17, np.nan), r"return 17 of 300 is nan \(1 are not finite\): fill or drop"),
        (with_values(slice(5, 8), -np.inf), r"return 5 of 300 is -inf \(3 are not finite\)"),
        (make_noise().reshape(2, 150), r"one series.*\(2, 150\)"),
        (np.zeros(300), "all returns are zero: a constant price"),
        (with_values(slice(40, 55), 0.0), "15 zero returns in a row from return 40.*stale.*cut the halt out"),
        (with_values(slice(290, 300), 0.0), "10 zero returns in a row from return 290"),
        (100 * make_noise(), r"1\d\d\d% a year: they look like percent; divide by 100"),
        (make_noise(sd=5e-4), r"0\.8\d\d% a year, at the model's floor of 1\.0%: lower `variance_floor`"),
        (np.full(300, 1e-4), r"0\.000% a year, at the model's floor"),
    ],
)
@pytest.mark.parametrize("sampler", ["marginal", "latent"])
def test_returns_that_no_posterior_can_come_from_are_refused(
    returns: np.ndarray, message: str, sampler: Any
) -> None:
    with pytest.raises(HestonError, match=message):
        fit(returns, settings=replace(QUICK, sampler=sampler))


def test_returns_that_look_odd_and_are_not_are_accepted() -> None:
    accepted = {
        "250 returns": make_noise(250),
        "nine zeros in a row": with_values(slice(40, 49), 0.0),
        "a price that falls by half": with_values(100, math.log(0.5)),
        "100 % volatility": make_noise(sd=1 / math.sqrt(252)),
        "2 % volatility": make_noise(sd=0.02 / math.sqrt(252)),
        "a list": list(make_noise()),
    }
    for name, returns in accepted.items():
        checked = heston.check_returns(returns, PRIORS)
        np.testing.assert_array_equal(checked, returns, err_msg=name)
        assert checked.dtype == float


def test_a_lower_floor_of_the_model_admits_calmer_returns() -> None:
    calm = make_noise(sd=5e-4)
    heston.check_returns(calm, HestonPriors(variance_floor=1e-6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chains": 0}, "chains = 0: at least 1"),
        ({"warmup": 0}, "warmup = 0"),
        ({"draws": -5}, "draws = -5"),
        ({"threads": 0}, "threads = 0"),
        ({"rounds": 0}, "rounds = 0"),
        ({"sampler": "gibbs"}, "sampler 'gibbs': there are marginal and latent"),
    ],
)
def test_settings_without_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(HestonError, match=message):
        fit(make_noise(), settings=replace(QUICK, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kappa_median": 0.0}, "kappa_median = 0.0: it must be a finite number above 0"),
        ({"sigma_log_sd": -1.0}, "sigma_log_sd = -1.0"),
        ({"mu_mean": math.nan}, "mu_mean = nan"),
        ({"theta_median": math.inf}, "theta_median = inf"),
        ({"variance_floor": 0.01}, "variance_floor = 0.01 is not far below theta_median = 0.03"),
    ],
)
def test_priors_without_meaning_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HestonPriors(**change)


def test_a_negative_prior_mean_of_the_drift_is_a_prior() -> None:
    assert HestonPriors(mu_mean=-0.1).as_dict()["mu_mean"] == -0.1


def test_priors_map_normals_to_the_distributions_they_name() -> None:
    x = np.random.default_rng(0).standard_normal((4000, 5))
    names = {
        "mu": stats.norm(PRIORS.mu_mean, PRIORS.mu_sd),
        "kappa": stats.lognorm(PRIORS.kappa_log_sd, scale=PRIORS.kappa_median),
        "theta": stats.lognorm(PRIORS.theta_log_sd, scale=PRIORS.theta_median),
        "sigma": stats.lognorm(PRIORS.sigma_log_sd, scale=PRIORS.sigma_median),
        "rho": stats.uniform(-1, 2),
    }
    for name, values in zip(PARAMETERS, PRIORS.parameters(x), strict=True):
        assert stats.kstest(values, names[name].cdf).pvalue > 1e-4, name
    small = 1e-5
    for k in range(5):
        there, back = (PRIORS.parameters(x + sign * small * np.eye(5)[k])[k] for sign in (1, -1))
        np.testing.assert_allclose(PRIORS.jacobian(x)[:, k], (there - back) / (2 * small), rtol=1e-6)


# ----------------------------------------------------------------------------------------------- the right posterior


@pytest.mark.slow
def test_the_truth_is_inside_the_posterior_of_simulated_returns() -> None:
    returns, variance = simulate(2000)
    posterior = fit(returns, settings=QUICK)
    assert (posterior.sampler, posterior.failures, posterior.fell_back_because) == ("marginal", (), ())
    assert tuple(posterior.draws) == QUANTITIES
    truth = {**TRUE, "v0": variance[0], "v_T": variance[-1]}
    for name, draws in posterior.draws.items():
        assert draws.shape == (4, 500)
        low, high = np.quantile(draws, [0.005, 0.995])
        assert low < truth[name] < high, name
        assert posterior.diagnostics.r_hat[name] < 1.01
        assert posterior.diagnostics.ess_bulk[name] > 400
    # and the data, not the prior, put it there
    assert posterior.draws["theta"].std() < 0.35 * TRUE["theta"]
    assert posterior.draws["rho"].std() < 0.15
    assert posterior.diagnostics.pareto_k < 0.7
    assert posterior.diagnostics.draws == 2000
    np.testing.assert_array_equal(posterior.returns, returns)


def test_the_matrix_of_parameters_goes_chain_by_chain(short_fit: HestonPosterior) -> None:
    matrix = short_fit.parameter_matrix()
    assert matrix.shape == (2000, 5)
    for k, name in enumerate(PARAMETERS):
        np.testing.assert_array_equal(matrix[500:1000, k], short_fit.draws[name][1])


def independent_posterior(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, sds and standard errors of the means of the seven quantities, by importance sampling from the prior
    and once more from a Student t with the moments found."""
    random = np.random.default_rng(99)

    def weigh(x: np.ndarray, log_proposal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.stack(PRIORS.parameters(x), axis=-1)
        result = filter_returns(
            returns, matrix, PRIORS.variance_floor, seeds=random.integers(2**31, size=len(x)), threads=2
        )
        ends = np.nan_to_num(result.ends)  # of impossible parameters there are none, and they weigh nothing
        log_weight = result.log_likelihood - 0.5 * (x**2).sum(axis=1) - log_proposal
        weight = np.exp(log_weight - log_weight.max())
        return weight / weight.sum(), np.concatenate([matrix, ends], axis=1)

    x = random.standard_normal((3000, 5))
    weight, _ = weigh(x, -0.5 * (x**2).sum(axis=1))
    centre = weight @ x
    proposal = stats.multivariate_t(centre, 1.3 * ((x - centre).T * weight) @ (x - centre), df=6, seed=random)
    x = proposal.rvs(4000)
    weight, quantities = weigh(x, proposal.logpdf(x))
    mean = weight @ quantities
    return (
        mean,
        np.sqrt(weight @ (quantities - mean) ** 2),
        np.sqrt(weight**2 @ (quantities - mean) ** 2),
    )


def test_posterior_agrees_with_importance_sampling_from_the_prior(
    short: np.ndarray, short_fit: HestonPosterior
) -> None:
    mean, sd, error = independent_posterior(short)
    assert (error < 0.05 * sd).all()  # else it is no answer to compare with
    for k, name in enumerate(QUANTITIES):
        draws = short_fit.draws[name]
        allowed = 4 * math.hypot(error[k], monte_carlo_error(draws))
        assert draws.mean() == pytest.approx(mean[k], abs=allowed), name
        assert draws.std() == pytest.approx(sd[k], rel=0.12), name


def sample_returns(ticker: str, sessions: int) -> np.ndarray:
    """Log returns up to 1 March 2013 of the adjusted close in `bokeh_sampledata`."""
    import importlib.resources

    import pandas as pd

    file = importlib.resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz"
    with importlib.resources.as_file(file) as path:
        rows = pd.read_csv(path)
    close = rows[rows["Ticker"] == ticker].sort_values("Date")["Adj Close"].to_numpy()
    return np.diff(np.log(close))[-sessions:]


@pytest.mark.slow
def test_both_samplers_agree_on_real_returns() -> None:
    """IBM, under a narrow prior of sigma: with the default one the latent chains hardly move in sigma and rho."""
    import arviz

    returns = sample_returns("IBM", 300)
    priors = HestonPriors(sigma_median=0.8, sigma_log_sd=0.1)
    loose = Limits(r_hat=1.3, ess=10, divergences=0.05, bfmi=0.01)
    settings = SamplerSettings(
        sampler="latent", chains=2, warmup=200, draws=300, latent_thinning=1, seed=1, limits=loose
    )
    latent = fit(returns, priors, settings)
    marginal = fit(returns, priors, QUICK)
    assert (latent.sampler, marginal.sampler) == ("latent", "marginal")
    assert latent.draws["mu"].shape == (2, 300)
    assert latent.diagnostics.pareto_k is None
    for name in QUANTITIES:
        ours, theirs = marginal.draws[name], latent.draws[name]
        allowed = 4 * math.hypot(monte_carlo_error(ours), monte_carlo_error(theirs))
        assert ours.mean() == pytest.approx(theirs.mean(), abs=allowed), name
        # relative error of an sd from n draws: 1 / sqrt(2 n)
        noise = 1 / math.sqrt(2 * float(arviz.ess(theirs, method="sd")))
        assert ours.std() == pytest.approx(theirs.std(), rel=max(0.2, 4 * noise)), name


def test_with_other_priors_the_posterior_moves_towards_them(
    short: np.ndarray, short_fit: HestonPosterior
) -> None:
    strict = HestonPriors(mu_mean=0.3, mu_sd=0.01, kappa_median=12.0, kappa_log_sd=0.02)
    posterior = fit(short, priors=strict, settings=QUICK)
    assert posterior.draws["mu"].mean() == pytest.approx(0.3, abs=0.01)
    assert posterior.draws["kappa"].mean() == pytest.approx(12, abs=0.2)
    assert posterior.draws["kappa"].std() < 0.1 * short_fit.draws["kappa"].std()
    assert posterior.priors == strict


def test_a_price_that_falls_by_half_in_one_day_is_fitted() -> None:
    returns = make_noise(sd=0.02)
    returns[150] = math.log(0.5)
    posterior = fit(returns, settings=QUICK)
    assert posterior.failures == ()
    assert posterior.draws["kappa"].max() < 252  # more than the whole distance in one day is no Euler step


# -------------------------------------------------------------------------------------------------- same seed, same draws


def test_same_seed_same_draws_whatever_the_threads(short: np.ndarray, short_fit: HestonPosterior) -> None:
    for settings in (QUICK, replace(QUICK, threads=1)):
        again = fit(short, settings=settings)
        for name in QUANTITIES:
            np.testing.assert_array_equal(again.draws[name], short_fit.draws[name], err_msg=name)
        np.testing.assert_array_equal(again.energy, short_fit.energy)
        assert again.diagnostics == short_fit.diagnostics


def test_another_seed_gives_other_draws_of_the_same_posterior(
    short: np.ndarray, short_fit: HestonPosterior
) -> None:
    other = fit(short, settings=replace(QUICK, seed=1))
    for name in QUANTITIES:
        ours, theirs = short_fit.draws[name], other.draws[name]
        assert not np.isin(theirs, ours).any()
        allowed = 4 * math.hypot(monte_carlo_error(ours), monte_carlo_error(theirs))
        assert theirs.mean() == pytest.approx(ours.mean(), abs=allowed), name
        assert theirs.std() == pytest.approx(ours.std(), rel=0.15), name


_CHILD = """
import sys, numpy as np
from quant_assets.posterior.heston import SamplerSettings, fit
returns = np.load(sys.argv[1])
posterior = fit(
    returns,
    settings=SamplerSettings(draws=500, fall_back=False),
    progress=lambda message: print(message, flush=True),
)
np.savez(sys.argv[2], **posterior.draws)
"""


@pytest.mark.slow
def test_a_killed_fit_leaves_nothing_behind(
    short: np.ndarray, short_fit: HestonPosterior, tmp_path: Path
) -> None:
    np.save(tmp_path / "returns.npy", short)
    command = [
        sys.executable,
        "-c",
        _CHILD,
        str(tmp_path / "returns.npy"),
        str(tmp_path / "draws.npz"),
    ]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert "points evaluated" in child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["returns.npy"]
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    with np.load(tmp_path / "draws.npz") as again:
        for name in QUANTITIES:
            np.testing.assert_array_equal(again[name], short_fit.draws[name], err_msg=name)


# ------------------------------------------------------------------------------------------ what cannot be believed


def test_a_fit_outside_its_limits_is_refused_and_says_why(short: np.ndarray) -> None:
    settings = replace(QUICK, limits=Limits(r_hat=0.9, ess=1e6))
    with pytest.raises(
        FitRefused, match=r"marginal fit is refused: R-hat of mu is 1\.00\d\d, above 0\.9;"
    ) as refusal:
        fit(short, settings=settings)
    assert "bulk ESS of v_T is" in str(refusal.value)
    assert "below 1000000" in str(refusal.value)
    assert "(now 2000)" in str(refusal.value)
    posterior = refusal.value.posterior
    assert len(posterior.failures) == 3 * len(QUANTITIES)
    assert posterior.draws["mu"].shape == (4, 500)


@pytest.mark.parametrize("latent_fails", [False, True])
def test_a_refused_marginal_fit_falls_back_to_the_whole_path(
    short: np.ndarray, short_fit: HestonPosterior, monkeypatch: pytest.MonkeyPatch, latent_fails: bool
) -> None:
    def latent(*asked: Any) -> HestonPosterior:
        calls.append(asked)
        return replace(
            short_fit, sampler="latent", failures=("BFMI is 0.01, below 0.3",) if latent_fails else ()
        )

    calls: list[Any] = []
    heard: list[str] = []
    monkeypatch.setattr(heston, "_sample_latent", latent)
    monkeypatch.setitem(heston._SAMPLERS, "latent", latent)
    settings = replace(QUICK, fall_back=True, limits=Limits(r_hat=0.9))
    if latent_fails:
        with pytest.raises(FitRefused, match=r"latent fit is refused: BFMI is 0\.01") as refusal:
            fit(short, settings=settings, progress=heard.append)
        posterior = refusal.value.posterior
    else:
        posterior = fit(short, settings=settings, progress=heard.append)
    assert posterior.sampler == "latent"
    assert len(posterior.fell_back_because) == len(QUANTITIES)
    assert posterior.fell_back_because[0].startswith("R-hat of mu is")
    assert any("marginal fit refused (R-hat of mu" in message for message in heard)
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0][0], short)
    assert calls[0][2] == settings


def make_surrogate(shift: float, sd: float) -> Any:
    """A surrogate that is a normal in the whitened coordinates, and takes no notice of the posterior."""
    exponents = heston._exponents()
    coefficients = np.zeros(len(exponents))
    for k in range(5):
        unit = np.eye(5, dtype=int)[k]
        coefficients[(exponents == 2 * unit).all(axis=1)] = -0.5 / sd**2
    first = (exponents == np.eye(5, dtype=int)[0]).all(axis=1)
    coefficients[first] = shift / sd**2
    return heston._Surrogate(coefficients.astype(np.float32), np.float32(20.0))


@pytest.mark.parametrize(("shift", "sd"), [(4.0, 1.0), (30.0, 1.0), (0.0, 0.35), (2.0, 0.5), (0.0, 0.05)])
def test_a_surrogate_that_is_wrong_is_noticed_by_its_weights(
    short: np.ndarray, monkeypatch: pytest.MonkeyPatch, shift: float, sd: float
) -> None:
    monkeypatch.setattr(heston, "_fit_surrogate", lambda z, value: make_surrogate(shift, sd))
    with pytest.raises(FitRefused) as refusal:
        fit(short, settings=replace(QUICK, rounds=1))
    assert any(
        "Pareto k" in failure or "ESS" in failure or "R-hat" in failure
        for failure in refusal.value.posterior.failures
    )


@pytest.mark.parametrize(("shift", "sd"), [(0.5, 1.0), (0.0, 0.85), (2.0, 1.6)])
def test_a_surrogate_that_is_a_little_wrong_is_refused_or_corrected(
    short: np.ndarray,
    short_fit: HestonPosterior,
    monkeypatch: pytest.MonkeyPatch,
    shift: float,
    sd: float,
) -> None:
    monkeypatch.setattr(heston, "_fit_surrogate", lambda z, value: make_surrogate(shift, sd))
    try:
        posterior = fit(short, settings=replace(QUICK, rounds=1, limits=Limits(ess=100, r_hat=1.05)))
    except FitRefused:
        return
    for name in QUANTITIES:
        ours, theirs = posterior.draws[name], short_fit.draws[name]
        allowed = 4.5 * math.hypot(monte_carlo_error(ours), monte_carlo_error(theirs))
        assert ours.mean() == pytest.approx(theirs.mean(), abs=allowed), name
        assert ours.std() == pytest.approx(theirs.std(), rel=0.25), name


def test_a_likelihood_that_is_impossible_at_every_draw_is_refused(
    short: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(returns: np.ndarray, parameters: np.ndarray, floor: float, **options: Any) -> Any:
        result = filter_returns(returns, parameters, floor, **options)
        if options.get("seeds") is not None:
            return result._replace(log_likelihood=np.full(len(parameters), -np.inf))
        return result

    monkeypatch.setattr(heston, "filter_returns", impossible)
    with pytest.raises((FitRefused, HestonError)):
        fit(short, settings=replace(QUICK, rounds=1))


def test_the_first_surrogate_is_mended_with_the_draws_it_got_wrong(
    short: np.ndarray, short_fit: HestonPosterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_surrogate, seen = heston._fit_surrogate, []

    def broken_once(z: np.ndarray, value: np.ndarray) -> Any:
        seen.append(len(z))
        return make_surrogate(3.0, 0.8) if len(seen) == 1 else fit_surrogate(z, value)

    monkeypatch.setattr(heston, "_fit_surrogate", broken_once)
    posterior = fit(short, settings=QUICK)
    assert seen == [900, 2900]
    assert posterior.diagnostics.weight_efficiency > 0.8
    for name in QUANTITIES:
        ours, theirs = posterior.draws[name], short_fit.draws[name]
        allowed = 4 * math.hypot(monte_carlo_error(ours), monte_carlo_error(theirs))
        assert ours.mean() == pytest.approx(theirs.mean(), abs=allowed), name


@pytest.mark.parametrize("seed", [0])
def test_pure_noise_is_fitted_or_refused_but_never_by_an_exploding_euler_step(seed: int) -> None:
    returns = np.random.default_rng(seed).normal(0, 0.01, 250)
    posterior = fit(returns, settings=QUICK)
    assert posterior.failures == ()
    assert posterior.draws["kappa"].max() < 252
    volatility = np.sqrt(posterior.draws["theta"].mean())
    assert 0.1 < volatility < 0.35  # the returns say 0.16


# ------------------------------------------------------------------------------------------------------- its pieces


@given(
    weights=st.lists(
        st.lists(st.floats(0, 1), min_size=20, max_size=20).filter(lambda row: sum(row) > 1e-3),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**32),
)
def test_resampling_keeps_order_and_proportion(weights: list[list[float]], seed: int) -> None:
    table = np.array(weights)
    picked = heston._resample_in_order(table, np.random.default_rng(seed))
    assert picked.shape == table.shape
    assert (np.diff(picked, axis=1) >= 0).all()
    for row, index in zip(table, picked, strict=True):
        counts = np.bincount(index, minlength=len(row))
        assert (np.abs(counts - len(row) * row / row.sum()) < 1 + 1e-9).all()


def test_resampling_equal_weights_keeps_every_draw() -> None:
    picked = heston._resample_in_order(np.full((2, 50), 0.01), np.random.default_rng(0))
    np.testing.assert_array_equal(picked, np.tile(np.arange(50), (2, 1)))


def test_a_draw_without_weight_is_never_picked() -> None:
    weights = np.array([[0.0, 0.0, 1.0, 0.0, 2.0, 0.0]])
    for seed in range(50):
        assert set(heston._resample_in_order(weights, np.random.default_rng(seed))[0]) == {2, 4}


def test_the_surrogate_of_a_quartic_is_the_quartic() -> None:
    random = np.random.default_rng(1)
    z = 1.3 * random.standard_normal((900, 5))
    tilt = np.array([0.1, -0.2, 0.05, 0.0, 0.1])

    def quartic(z: np.ndarray) -> np.ndarray:
        square = (z**2).sum(axis=-1)
        return -0.5 * square + (z @ tilt) ** 3 * 0.3 - 0.01 * square**2

    surrogate = heston._fit_surrogate(z, quartic(z))
    inside = z[(z**2).sum(axis=1) < float(surrogate.radius) ** 2][:200]
    found = heston.TEMPERATURE * heston._surrogate_log_density(inside, surrogate)
    expected = quartic(inside) - quartic(z).max()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_surrogate_falls_off_along_every_ray() -> None:
    random = np.random.default_rng(2)
    z = random.standard_normal((900, 5))
    surrogate = heston._fit_surrogate(z, -0.5 * (z**2).sum(axis=1) + 0.05 * z[:, 0] ** 3)
    for direction in random.standard_normal((50, 5)):
        ray = direction / np.linalg.norm(direction)
        far = np.array([3.0, 6.0, 12.0, 100.0])[:, None] * float(surrogate.radius) * ray
        values = heston._surrogate_log_density(far, surrogate)
        assert (np.diff(values) < 0).all()
    assert np.isfinite(heston._surrogate_log_density(np.zeros(5), surrogate))


@hypothesis_settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_latent_model_is_the_density_that_the_filter_integrates(seed: int) -> None:
    """log p(x, log(v - floor), r), computed in double precision with scipy at random points."""
    import jax.numpy as jnp
    from numpyro.infer.util import log_density

    random = np.random.default_rng(seed)
    x = random.uniform(-1.5, 1.5, 5)
    mu, kappa, theta, sigma, rho = (float(p) for p in PRIORS.parameters(x))
    sessions, floor = 20, PRIORS.variance_floor
    v = simulate_returns(np.array([mu, kappa, theta, sigma, rho]), sessions, floor, seed)[1][0] + 1e-5
    returns = random.normal(0, np.sqrt(v[:-1] * DT_YEARS))
    shape, scale = 2 * kappa * theta / sigma**2, sigma**2 / (2 * kappa)
    expected = stats.norm.logpdf(x).sum()
    expected += stats.gamma.logpdf(v[0], shape, scale=scale) - stats.gamma.logsf(floor, shape, scale=scale)
    for t in range(sessions):
        drift, sd = v[t] + kappa * (theta - v[t]) * DT_YEARS, sigma * math.sqrt(v[t] * DT_YEARS)
        covariance = rho * sd * math.sqrt(v[t] * DT_YEARS)
        # the pair of shocks as one bivariate normal, and the probability that the variance stays above the floor
        pair = stats.multivariate_normal(
            [(mu - v[t] / 2) * DT_YEARS, drift],
            [[v[t] * DT_YEARS, covariance], [covariance, sd**2]],
        )
        expected += pair.logpdf([returns[t], v[t + 1]]) - stats.norm.logsf(floor, drift, sd)
    expected += np.log(v - floor).sum()  # from v to log(v - floor)
    values = {"x": jnp.asarray(x), "log_excess": jnp.log(jnp.asarray(v - floor))}
    found, _ = log_density(heston.heston_model, (jnp.asarray(returns), PRIORS), {}, values)
    assert float(found) == pytest.approx(expected, rel=2e-4, abs=0.05)


def test_an_error_of_the_likelihood_itself_is_noticed(
    short: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights cannot see it: they compare the surrogate with the same wrong likelihood."""
    exact = filter_returns

    def coarse(*given: Any, step: float = 2.5, **options: Any) -> Any:
        return exact(*given, step=step, **options)

    monkeypatch.setattr(heston, "filter_returns", coarse)
    with pytest.raises(FitRefused, match="the log likelihood is off by"):
        fit(short, settings=QUICK)


def test_a_price_that_hardly_trades_is_refused() -> None:
    returns = np.where(np.arange(400) % 10 == 9, make_noise(400), 0.0)
    with pytest.raises(HestonError, match="90% of the returns are zero"):
        fit(returns)


def test_the_mode_is_found_from_afar_around_what_is_impossible() -> None:
    """A line search that gives up at an infinite value would hand the start back as the mode."""
    centre = np.array([0.2, -1.0, 0.5, 0.7, -0.4])
    curvature = np.diag([30.0, 4.0, 3.0, 60.0, 120.0])

    def negative_log_posterior(x: np.ndarray) -> tuple[float, np.ndarray]:
        if x[3] > 2:
            return np.inf, np.full(5, np.nan)
        return 0.5 * (x - centre) @ curvature @ (x - centre), curvature @ (x - centre)

    start = np.array([-0.2, 2.0, -2.0, 1.9, 1.5])
    mode, factor = heston._find_mode(negative_log_posterior, start)
    assert mode == pytest.approx(centre, abs=0.02)
    assert factor @ factor.T == pytest.approx(np.linalg.inv(curvature), rel=1e-3, abs=1e-6)
