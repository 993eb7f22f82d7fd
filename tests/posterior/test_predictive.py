"""Posterior-predictive checks that pass on the model's own data and fail on other data, re-weighting against a second
fit, and the NetCDF file."""

import datetime as dt
import json
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import arviz
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from quant_assets.posterior import predictive
from quant_assets.posterior.diagnostics import Limits, diagnose
from quant_assets.posterior.heston import HestonPosterior, SamplerSettings, fit
from quant_assets.posterior.priors import PARAMETERS, QUANTITIES, HestonPriors
from quant_assets.posterior.variance_filter import filter_returns, simulate_returns

TRUTH = np.array([[0.08, 6.0, 0.05, 0.8, -0.6]])
FLOOR = HestonPriors().variance_floor
LOOSE = Limits(r_hat=1.05, ess=100)
SETTINGS = SamplerSettings(warmup=200, draws=200, seed=1, limits=LOOSE, fall_back=False)


@pytest.fixture(scope="module")
def posterior() -> HestonPosterior:
    """A fit to 400 returns of the model itself."""
    returns, _ = simulate_returns(TRUTH, 400, FLOOR, seed=3)
    return fit(returns[0], settings=SETTINGS)


def certain(posterior: HestonPosterior, parameters: np.ndarray, returns: np.ndarray) -> HestonPosterior:
    """A posterior with nearly no doubt about its parameters, and other data."""
    random = np.random.default_rng(0)
    draws = dict(posterior.draws)
    for name, value in zip(PARAMETERS, parameters, strict=True):
        draws[name] = value * np.exp(0.01 * random.standard_normal((4, 200)))
    return replace(posterior, draws=draws, returns=returns)


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_statistics_agree_with_scipy_numpy_and_pandas() -> None:
    returns, _ = simulate_returns(np.repeat(TRUTH, 3, axis=0), 700, FLOOR, seed=8)
    ours = predictive.return_statistics(returns)
    assert list(ours) == list(predictive.STATISTICS)
    for i, r in enumerate(returns):
        squares = r**2 - (r**2).mean()
        acf = np.correlate(squares, squares, "full")[len(r) - 1 :] / (squares @ squares)
        series, squared = pd.Series(r), pd.Series(r**2)
        expected = {
            "volatility": series.std() * np.sqrt(252),
            "skewness": stats.skew(r),
            "excess_kurtosis": stats.kurtosis(r),
            "smallest_return": r.min(),
            "acf_squares_1": acf[1],
            "acf_squares_5": acf[5],
            "acf_squares_20": acf[20],
            "acf_squares_mean": acf[1:21].mean(),
            "leverage": np.mean([series.corr(squared.shift(-k)) for k in range(1, 11)]),
        }
        assert {name: values[i] for name, values in ours.items()} == pytest.approx(expected, rel=1e-9)


def test_statistics_of_too_few_returns_are_refused() -> None:
    with pytest.raises(ValueError, match="59 returns are too few"):
        predictive.return_statistics(np.zeros(59))


# ---- posterior-predictive checks -----------------------------------------------------------------------------------


def test_p_values_count_the_data_among_the_simulated() -> None:
    simulated = np.arange(1.0, 100.0)
    middle = predictive._check("volatility", 50.0, simulated)
    assert (middle.median, middle.p_value, middle.inside) == (50.0, 1.0, True)
    low, high = (predictive._check("volatility", x, simulated) for x in (0.0, 1000.0))
    assert low.p_value == high.p_value == pytest.approx(2 / 100)
    assert not low.inside
    assert not high.inside
    third = predictive._check("volatility", 3.0, simulated)  # 3 of 99 at most as large
    assert third.p_value == pytest.approx(2 * 4 / 100)
    assert (middle.low, middle.high) == pytest.approx(tuple(np.quantile(simulated, [0.025, 0.975])))


def test_data_of_the_model_are_inside_the_bands(posterior: HestonPosterior) -> None:
    """One of nine may miss by chance: among 24 such fits, 4 had one miss (of 216 checks 2 %), none had two."""
    checks = predictive.predictive_checks(posterior)
    assert [check.statistic for check in checks] == list(predictive.STATISTICS)
    assert sum(not check.inside for check in checks) <= 1, [c.as_row() for c in checks if not c.inside]
    for check in checks:
        assert check.low < check.median < check.high
        assert check.simulated.shape == (400,)
        assert predictive.STATISTICS[check.statistic] == check.as_row()["statistic"]


def test_bands_hold_95_percent_of_the_models_series(posterior: HestonPosterior) -> None:
    """Series at draws of the posterior, each checked against others of the same posterior: p-values are uniform."""
    checks = [
        check
        for series in predictive.replicate(posterior, 40, seed=77)
        for check in predictive.predictive_checks(posterior, draws=150, seed=5, returns=series)
    ]
    inside = np.array([check.inside for check in checks]).reshape(40, -1)
    p_values = np.array([check.p_value for check in checks]).reshape(40, -1)
    # 360 correlated trials; those of one series count as one in the worst case: sd 3.4 %
    assert inside.mean() == pytest.approx(0.95, abs=0.07)
    assert p_values.mean() == pytest.approx(0.5, abs=0.12)
    # The mean would forgive one statistic that is always outside.
    assert (inside.mean(axis=0) > 0.8).all()


def test_normal_data_are_too_calm_for_a_wild_variance(posterior: HestonPosterior) -> None:
    parameters = np.array([0.05, 4.0, 0.04, 0.8, -0.5])
    normal = 0.2 * np.sqrt(1 / 252) * np.random.default_rng(1).standard_normal(2000)
    wild = certain(posterior, parameters, normal)
    by_name = {check.statistic: check for check in predictive.predictive_checks(wild)}
    assert by_name["volatility"].inside  # theta is right
    for name in ("excess_kurtosis", "acf_squares_1", "acf_squares_5", "acf_squares_mean"):
        assert by_name[name].observed < by_name[name].low, by_name[name]
        assert by_name[name].p_value < 0.02
    assert by_name["smallest_return"].observed > by_name["smallest_return"].high


def test_a_shuffled_series_has_lost_its_storms_and_nothing_else(posterior: HestonPosterior) -> None:
    parameters = np.array([0.05, 4.0, 0.04, 0.8, -0.7])
    series, _ = simulate_returns(parameters[None], 2000, FLOOR, seed=4)
    own = certain(posterior, parameters, series[0])
    assert all(check.inside for check in predictive.predictive_checks(own))
    shuffled = np.random.default_rng(2).permutation(series[0])
    outside = {c.statistic for c in predictive.predictive_checks(own, returns=shuffled) if not c.inside}
    assert outside >= {"acf_squares_1", "acf_squares_5", "acf_squares_mean", "leverage"}
    assert not outside & {"volatility", "skewness", "excess_kurtosis", "smallest_return"}


def test_same_seed_same_checks(posterior: HestonPosterior) -> None:
    one, two, other = (predictive.predictive_checks(posterior, draws=50, seed=s) for s in (3, 3, 4))
    assert one == two
    assert all((a.simulated == b.simulated).all() for a, b in zip(one, two, strict=True))
    assert one != other
    assert predictive.replicate(posterior, draws=10_000).shape == (800, 400)  # no draw twice


def test_other_data_must_be_as_long(posterior: HestonPosterior) -> None:
    with pytest.raises(ValueError, match="cannot be compared with simulated series of 400"):
        predictive.predictive_checks(posterior, returns=posterior.returns[:-1])


# ---- prior sensitivity ---------------------------------------------------------------------------------------------


def test_the_same_prior_changes_nothing(posterior: HestonPosterior) -> None:
    fitted, again = predictive.prior_sensitivity(posterior, {"again": HestonPriors()})
    assert (fitted.alternative, again.alternative) == ("as fitted", "again")
    assert again.reliable
    assert again.efficiency == pytest.approx(1)
    assert again.pareto_k == -np.inf
    assert again.intervals == fitted.intervals
    for name in QUANTITIES:
        draws = posterior.draws[name]
        mean, low, high, error = again.intervals[name]
        assert mean == pytest.approx(draws.mean(), rel=1e-12)
        assert np.mean(draws < low) == pytest.approx(0.05, abs=0.006)  # resampled draws repeat
        assert np.mean(draws > high) == pytest.approx(0.05, abs=0.006)  # resampled draws repeat
        assert error == pytest.approx(arviz.mcse(draws, method="mean").item(), rel=0.01)
        assert again.shifts[name] == pytest.approx(0, abs=1e-9)


def test_ratio_of_the_priors_is_that_of_scipys_densities() -> None:
    random = np.random.default_rng(0)
    draws = {
        "mu": random.normal(size=(2, 5)),
        "rho": random.uniform(-1, 1, (2, 5)),
        **{name: random.lognormal(size=(2, 5)) for name in ("kappa", "theta", "sigma")},
    }
    one, other = HestonPriors(), HestonPriors(0.1, 0.4, 3, 0.5, 0.06, 1.2, 0.9, 0.3)

    def exact(priors: HestonPriors) -> np.ndarray:
        return stats.norm.logpdf(draws["mu"], priors.mu_mean, priors.mu_sd) + sum(
            stats.lognorm.logpdf(
                draws[name], getattr(priors, f"{name}_log_sd"), scale=getattr(priors, f"{name}_median")
            )
            for name in ("kappa", "theta", "sigma")
        )

    ours = predictive.prior_log_density(one, draws) - predictive.prior_log_density(other, draws)
    difference = ours - (exact(one) - exact(other))
    assert difference.shape == (2, 5)
    assert np.ptp(difference) < 1e-9


def test_weighting_agrees_with_a_second_fit(posterior: HestonPosterior) -> None:
    other = replace(HestonPriors(), kappa_median=8.0, sigma_median=0.8, mu_mean=0.25)
    _, weighted = predictive.prior_sensitivity(posterior, {"other": other})
    assert weighted.reliable, weighted.trouble
    second = fit(posterior.returns, other, replace(SETTINGS, seed=9))
    for name in QUANTITIES:
        draws, at = second.draws[name], weighted.intervals[name]
        error = np.hypot(at.error, draws.std() / np.sqrt(second.diagnostics.ess_bulk[name]))
        assert abs(at.mean - draws.mean()) < 4 * error, name
        assert at.high - at.low == pytest.approx(np.ptp(np.quantile(draws, [0.05, 0.95])), rel=0.35)
    # and the other prior did say something, more than the errors could hide
    for name in ("mu", "kappa", "sigma"):
        error = float(np.hypot(weighted.intervals[name].error, posterior.draws[name].std() / 20))
        assert weighted.intervals[name].mean - posterior.draws[name].mean() > 4 * error


def test_an_absurd_prior_has_no_numbers(posterior: HestonPosterior) -> None:
    absurd = replace(HestonPriors(), theta_median=2.0, theta_log_sd=0.05)
    _, result = predictive.prior_sensitivity(posterior, {"absurd": absurd})
    assert not result.reliable
    assert result.pareto_k > 0.7
    assert result.intervals == result.shifts == {}
    assert result.trouble.startswith("Pareto k ")
    assert "re-weighting is not enough, fit with these priors" in result.trouble
    row = result.as_row()
    assert row["note"] == result.trouble
    assert all(row[name] == "–" for name in QUANTITIES)  # noqa: RUF001


def test_few_effective_draws_have_no_numbers(posterior: HestonPosterior) -> None:
    """A prior that cuts a slice out of the posterior: weights are bounded (k is low), but little is left."""
    at = float(np.median(posterior.draws["mu"]))
    narrow = replace(HestonPriors(), mu_mean=at, mu_sd=0.008)
    _, result = predictive.prior_sensitivity(posterior, {"narrow": narrow})
    assert result.pareto_k < 0.6
    assert result.trouble.endswith(
        "effective draws are left: re-weighting is not enough, fit with these priors"
    )
    assert result.intervals == {}


def test_another_floor_is_another_likelihood(posterior: HestonPosterior) -> None:
    with pytest.raises(ValueError, match="part of the likelihood"):
        predictive.prior_sensitivity(posterior, {"floor": replace(HestonPriors(), variance_floor=2e-4)})


def test_default_alternatives() -> None:
    priors = HestonPriors()
    alternatives = predictive.default_alternatives(priors)
    assert len(alternatives) == 9
    changed = {
        name: {k: v / priors.as_dict()[k] for k, v in q.as_dict().items() if v != priors.as_dict()[k]}
        for name, q in alternatives.items()
    }
    assert changed["theta_median ÷ 2"] == {"theta_median": 0.5}
    assert set(changed["all scales × 2"]) == {"mu_sd", "kappa_log_sd", "theta_log_sd", "sigma_log_sd"}  # noqa: RUF001
    # half the median of theta would be next to the floor
    near = replace(priors, variance_floor=0.0029)
    assert set(alternatives) - set(predictive.default_alternatives(near)) == {"theta_median ÷ 2"}


# ---- smoothed volatility -------------------------------------------------------------------------------------------


def test_smoothed_volatility_covers_the_path_that_made_the_data(posterior: HestonPosterior) -> None:
    _, variances = simulate_returns(TRUTH, 400, FLOOR, seed=3)
    low, median, high = predictive.smoothed_volatility(posterior, draws=100, seed=0)
    assert low.shape == (401,)
    assert (low <= median).all()
    assert (median <= high).all()
    truth = np.sqrt(variances[0])
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.9, abs=0.12)
    assert np.corrcoef(median, truth)[0, 1] > 0.5
    # its ends are those of the stored draws
    assert median[-1] == pytest.approx(np.sqrt(np.median(posterior.draws["v_T"])), rel=0.25)
    assert (
        predictive.smoothed_volatility(posterior, 20, 7) == predictive.smoothed_volatility(posterior, 20, 7)
    ).all()


# ---- ArviZ, NetCDF -------------------------------------------------------------------------------------------------


def test_netcdf_round_trip(posterior: HestonPosterior, tmp_path: Path) -> None:
    sessions = pd.bdate_range("2020-01-01", periods=400).to_numpy()
    path = predictive.write_netcdf(
        posterior,
        tmp_path / "new" / "AAPL.nc",
        {"symbol": "AAPL", "source": ["sample"], "first_session": dt.date(2020, 1, 1), "rows": np.int64(400)},
        sessions,
    )
    assert [file.name for file in path.parent.iterdir()] == ["AAPL.nc"]
    back = arviz.from_netcdf(str(path), engine="h5netcdf")
    assert set(back.groups()) == {"posterior", "sample_stats", "observed_data", "constant_data"}
    for name in QUANTITIES:
        stored = back.posterior[name]
        assert stored.dims == ("chain", "draw")
        assert stored.dtype == posterior.draws[name].dtype
        assert np.array_equal(stored.to_numpy(), posterior.draws[name])
    assert back.posterior["theta"].attrs["units"] == "per year"
    assert np.array_equal(back.sample_stats["energy"].to_numpy(), posterior.energy)
    assert np.array_equal(back.sample_stats["diverging"].to_numpy().astype(bool), posterior.divergent)
    assert np.array_equal(back.observed_data["returns"].to_numpy(), posterior.returns)
    assert np.array_equal(back.observed_data["session"].to_numpy(), sessions)
    given = {k: v for k, v in HestonPriors().as_dict().items() if v is not None}
    assert {k: float(v) for k, v in back.constant_data.items()} == given
    assert (back.attrs["symbol"], back.attrs["sampler"], int(back.attrs["seed"])) == ("AAPL", "marginal", 1)
    assert json.loads(back.attrs["source"]) == ["sample"]
    assert (back.attrs["first_session"], int(back.attrs["rows"])) == ("2020-01-01", 400)
    assert json.loads(back.attrs["diagnostics"])["ess_bulk"] == posterior.diagnostics.ess_bulk
    assert json.loads(back.attrs["settings"])["limits"]["ess"] == LOOSE.ess
    # what ArviZ says of the file is what we said of the fit
    r_hat = arviz.rhat(back)
    assert float(r_hat["theta"]) == pytest.approx(posterior.diagnostics.r_hat["theta"])
    back.close()


def test_same_fit_same_bytes(posterior: HestonPosterior, tmp_path: Path) -> None:
    one = predictive.write_netcdf(posterior, tmp_path / "1.nc").read_bytes()
    two = predictive.write_netcdf(replace(posterior, seconds={"nuts": 9.0}), tmp_path / "2.nc").read_bytes()
    assert one == two


def test_numbers_that_json_does_not_know(posterior: HestonPosterior) -> None:
    unknown = replace(posterior, diagnostics=replace(posterior.diagnostics, pareto_k=float("nan")))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = predictive.to_inference_data(unknown).attrs["diagnostics"]
    assert json.loads(text, parse_constant=refuse)["pareto_k"] == "nan"


def test_sessions_that_do_not_fit_are_refused(posterior: HestonPosterior) -> None:
    with pytest.raises(ValueError, match="2 sessions for 400 returns"):
        predictive.to_inference_data(posterior, sessions=["2020-01-01", "2020-01-02"])


def test_a_failed_write_leaves_the_old_file_and_no_other(
    posterior: HestonPosterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = predictive.write_netcdf(posterior, tmp_path / "AAPL.nc")
    old = path.read_bytes()

    def half(self: arviz.InferenceData, filename: str, **options: object) -> None:
        Path(filename).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(arviz.InferenceData, "to_netcdf", half)
    with pytest.raises(OSError, match="No space left"):
        predictive.write_netcdf(posterior, path, {"symbol": "new"})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_no_half_file(posterior: HestonPosterior, tmp_path: Path) -> None:
    stored = tmp_path / "posterior.pickle"
    stored.write_bytes(pickle.dumps(posterior))
    path = tmp_path / "out" / "AAPL.nc"
    program = f"""
import os, pickle, signal
from pathlib import Path
import arviz
from quant_assets.posterior import predictive

write = arviz.InferenceData.to_netcdf
def killed(self, filename, **options):
    write(self, filename, **options)
    os.truncate(filename, 1000)
    os.kill(os.getpid(), signal.SIGKILL)
arviz.InferenceData.to_netcdf = killed
predictive.write_netcdf(pickle.loads(Path({str(stored)!r}).read_bytes()), Path({str(path)!r}))
"""
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not path.exists()
    assert [file.name.startswith(".AAPL.nc.") for file in path.parent.iterdir()] == [True]
    # and the next one is not bothered by what is left
    predictive.write_netcdf(posterior, path)
    assert arviz.from_netcdf(str(path), engine="h5netcdf").posterior.sizes["draw"] == 200


def test_a_posterior_without_weights_is_kept_too(posterior: HestonPosterior) -> None:
    """What the latent sampler returns: no Pareto k, and energies that belong to the draws."""
    latent = replace(
        posterior,
        sampler="latent",
        diagnostics=diagnose(posterior.draws, 0, posterior.energy),
        fell_back_because=("Pareto k of the weights is 0.90, above 0.7",),
    )
    data = predictive.to_inference_data(latent)
    assert data.sample_stats.attrs["of"] == "the draws"
    assert "Pareto k" in data.attrs["fell_back_because"]
    assert len(predictive.prior_sensitivity(latent, {})) == 1


def test_the_stationary_start_is_the_models(posterior: HestonPosterior) -> None:
    """Replicates begin anywhere in the stationary law, not where the data began."""
    first = predictive.replicate(posterior, draws=800, seed=2)[:, 0]
    v0 = posterior.draws["v0"].mean()
    theta = posterior.draws["theta"].mean()
    assert np.var(first) * 252 == pytest.approx(theta, rel=0.35)
    ends = filter_returns(
        posterior.returns, posterior.parameter_matrix()[:50], FLOOR, seeds=np.arange(50)
    ).ends
    assert ends[:, 0].mean() == pytest.approx(v0, rel=0.3)
