"""Figures show the numbers they claim to show, and nothing is cut off."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.integrate import quad
from scipy.stats import spearmanr

from quant_assets.posterior import plots, predictive
from quant_assets.posterior.diagnostics import diagnose
from quant_assets.posterior.heston import HestonPosterior, SamplerSettings
from quant_assets.posterior.priors import PARAMETERS, QUANTITIES, HestonPriors
from quant_assets.posterior.variance_filter import simulate_returns
from quant_assets.presentation import COLORS

CHAINS, DRAWS, SESSIONS = 4, 200, 300
CENTRES = {"mu": 0.1, "kappa": 8.0, "theta": 0.05, "sigma": 0.6, "rho": -0.5, "v0": 0.04, "v_T": 0.06}


def made_up(change: Callable[[dict[str, np.ndarray]], None] = lambda draws: None) -> HestonPosterior:
    """Draws without a fit: figures care about numbers, not about where they come from."""
    random = np.random.default_rng(0)
    shape = (CHAINS, DRAWS)
    draws = {
        name: centre * np.exp(0.2 * random.standard_normal(shape))
        if centre > 0
        else centre + 0.1 * random.standard_normal(shape)
        for name, centre in CENTRES.items()
    }
    draws["sigma"] *= draws["kappa"] / 8.0
    change(draws)
    energy = random.standard_normal(shape)
    returns, _ = simulate_returns(np.array([[0.1, 8.0, 0.05, 0.6, -0.5]]), SESSIONS, 1e-4, seed=2)
    return HestonPosterior(
        draws,
        "marginal",
        diagnose(draws, 0, energy, 0.1, 0.95),
        (),
        (),
        np.zeros(shape, bool),
        energy,
        HestonPriors(),
        SamplerSettings(chains=CHAINS, draws=DRAWS),
        returns[0],
        {},
    )


@pytest.fixture(scope="module")
def posterior() -> HestonPosterior:
    return made_up()


def draw_whole(figure: Figure) -> None:
    """Render as the UI does: no warning, nothing outside of the image, no empty panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(80)
    assert figure.get_figwidth() == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.02
    assert drawn.y0 > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02
    for ax in figure.axes:
        assert ax.has_data() or ax.texts or not ax.axison


def test_traces_and_ranks(posterior: HestonPosterior) -> None:
    figure = plots.trace_figure(posterior)
    draw_whole(figure)
    assert len(figure.axes) == 2 * len(QUANTITIES)
    for row, name in enumerate(QUANTITIES):
        left, right = figure.axes[2 * row], figure.axes[2 * row + 1]
        assert name in left.get_ylabel()
        assert len(left.lines) == CHAINS
        for line, chain in zip(left.lines, posterior.draws[name], strict=True):
            assert (line.get_ydata() == chain).all()
            assert left.get_ylim()[0] <= chain.min() <= chain.max() <= left.get_ylim()[1]
        assert len(right.containers) == CHAINS
        for chain in right.containers:
            assert len(chain) == plots.RANK_BINS
            # an excess over a flat histogram sums to nothing
            assert sum(bar.get_height() for bar in chain) == pytest.approx(0, abs=1e-9)
        assert f"{posterior.diagnostics.r_hat[name]:.3f}" in right.get_title(loc="right")


def outside_share(figure: Figure, quantity: str) -> np.ndarray:
    """Share of each chain's rank bars that leave the grey band."""
    ax = figure.axes[2 * QUANTITIES.index(quantity) + 1]
    bands = [p for p in ax.patches if isinstance(p, Rectangle) and same_color(p.get_facecolor()[:3], "black")]
    assert len(bands) == CHAINS
    shares = []
    for band, chain in zip(bands, ax.containers, strict=True):
        heights = np.array([bar.get_height() for bar in chain])
        shares.append(np.mean(np.abs(heights) > band.get_height() / 2))
    return np.array(shares)


def test_a_chain_that_sits_elsewhere_leaves_the_rank_band(posterior: HestonPosterior) -> None:
    def shift(draws: dict[str, np.ndarray]) -> None:
        draws["theta"][2] *= 1.3

    moved = made_up(shift)
    # The fit's own ESS would widen the band, and say so in the title; here, what the eye sees at the good ESS.
    figure = plots.trace_figure(replace(moved, diagnostics=posterior.diagnostics))
    assert outside_share(figure, "theta")[2] > 0.4
    assert outside_share(figure, "kappa").max() < 0.25
    good = plots.trace_figure(posterior)
    assert np.mean([outside_share(good, name) for name in QUANTITIES]) == pytest.approx(0.05, abs=0.04)


def test_long_chains_are_thinned(posterior: HestonPosterior) -> None:
    long = replace(posterior, draws={k: np.tile(v, (1, 10)) for k, v in posterior.draws.items()})
    line = plots.trace_figure(long).axes[0].lines[0]
    assert len(line.get_xdata()) == 500
    assert line.get_ydata()[1] == long.draws["mu"][0, int(line.get_xdata()[1])]


def test_running_mean_by_chain_and_over_chains(posterior: HestonPosterior) -> None:
    figure = plots.running_mean_figure(posterior)
    draw_whole(figure)
    (ax,) = figure.axes
    theta = posterior.draws["theta"]
    *chains, pooled, _ = ax.lines
    assert len(chains) == CHAINS
    for line, chain in zip(chains, theta, strict=True):
        assert line.get_ydata() == pytest.approx(pd.Series(chain).expanding().mean().to_numpy())
    assert pooled.get_ydata() == pytest.approx(np.cumsum(theta.mean(axis=0)) / np.arange(1, DRAWS + 1))
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    width = np.ptp(corners[corners[:, 0] == DRAWS, 1])
    # independent draws: sd / sqrt(800) on each side, twice
    assert width == pytest.approx(4 * theta.std() / np.sqrt(theta.size), rel=0.25)
    assert {text.get_text() for text in ax.get_legend().get_texts()} >= {"chain 1", "mean over chains"}
    assert "theta" in ax.get_title(loc="left")
    assert "rho" in plots.running_mean_figure(posterior, "rho").axes[0].get_ylabel()


def test_pairs(posterior: HestonPosterior) -> None:
    figure = plots.pair_figure(posterior)
    draw_whole(figure)
    size = len(QUANTITIES)
    grid = np.array(figure.axes).reshape(size, size)
    flat = {name: values.ravel() for name, values in posterior.draws.items()}
    for i, row in enumerate(QUANTITIES):
        assert row in grid[i, 0].get_ylabel()
        assert row in grid[-1, i].get_xlabel()
        assert sum(patch.get_height() for patch in grid[i, i].patches) > 0.97 * flat[row].size
        for j, column in enumerate(QUANTITIES[:i]):
            expected = spearmanr(flat[row], flat[column]).statistic
            assert grid[j, i].texts[0].get_text() == f"{expected:+.2f}"
            counts = grid[i, j].collections[0].get_array()
            assert counts.sum() > 0.9 * flat[row].size
    kappa, sigma = QUANTITIES.index("kappa"), QUANTITIES.index("sigma")
    assert float(grid[kappa, sigma].texts[0].get_text()) > 0.5


def test_divergences_are_marked_only_where_they_belong_to_the_draws(posterior: HestonPosterior) -> None:
    divergent = np.zeros((CHAINS, DRAWS), bool)
    divergent[1, 5] = True
    for sampler, points in (("latent", 1), ("marginal", 0)):
        figure = plots.pair_figure(replace(posterior, sampler=sampler, divergent=divergent))
        ax = figure.axes[len(QUANTITIES)]  # second row, first column
        assert len(ax.lines[0].get_xdata()) == points
        if points:
            assert ax.lines[0].get_xydata()[0] == pytest.approx(
                [posterior.draws["mu"][1, 5], posterior.draws["kappa"][1, 5]]
            )


def test_chains_that_stand_still_can_be_looked_at() -> None:
    """Figures are for refused fits too: constant draws have no rank, no correlation and no ESS."""

    def stop(draws: dict[str, np.ndarray]) -> None:
        for name in draws:
            draws[name][:] = CENTRES[name]

    stuck = made_up(stop)
    draw_whole(plots.trace_figure(stuck))
    draw_whole(plots.pair_figure(stuck))
    draw_whole(plots.prior_posterior_figure(stuck))
    assert not any(result.reliable for result in predictive.prior_sensitivity(stuck))


def test_posterior_over_prior(posterior: HestonPosterior) -> None:
    figure = plots.prior_posterior_figure(posterior)
    draw_whole(figure)
    assert len(figure.axes) == 6
    for ax, name in zip(figure.axes, PARAMETERS, strict=False):
        area = sum(patch.get_height() * patch.get_width() for patch in ax.patches)
        assert area == pytest.approx(1)
        x, y = ax.lines[0].get_data()
        assert y == pytest.approx(plots.prior_density(posterior.priors, name, x))
        assert f"{posterior.draws[name].mean():.3g}" in ax.get_title(loc="left")
        if name in ("kappa", "theta", "sigma"):
            assert ax.get_xlim()[0] == 0


def test_prior_densities_are_those_of_the_sampler() -> None:
    """Integral 1, and the logarithm that re-weighting uses; quantiles as the map from standard normals has them."""
    priors = HestonPriors()
    for name in PARAMETERS:
        ends = (-1, 1) if name == "rho" else (-3, 3) if name == "mu" else (1e-9, 60 if name == "kappa" else 8)

        def density(v: float, name: str = name) -> float:
            return float(plots.prior_density(priors, name, np.array(v)))

        centre = {"theta": [0.03, 0.2], "sigma": [0.5, 2.0]}.get(name)
        assert quad(density, *ends, points=centre, limit=200)[0] == pytest.approx(1, abs=2e-3)
    draws = {name: np.array([0.6, 1.1]) * CENTRES[name] for name in PARAMETERS}
    joint = sum(np.log(plots.prior_density(priors, name, draws[name])) for name in PARAMETERS)
    assert np.diff(joint) == pytest.approx(np.diff(predictive.prior_log_density(priors, draws)))
    x = np.random.default_rng(0).standard_normal((20_000, 5))
    for name, values in zip(PARAMETERS, priors.parameters(x), strict=True):
        low, high = plots._prior_limits(priors, name)
        inside = np.mean((values >= low) & (values <= high))
        share = 1.0 if name == "rho" else 0.9 if name == "mu" else 0.95
        assert inside == pytest.approx(share, abs=0.006)


def test_predictive_panels(posterior: HestonPosterior) -> None:
    returns = posterior.returns.copy()
    returns[100] = -0.4  # a crash that the model does not make
    checks = predictive.predictive_checks(posterior, draws=200, returns=returns)
    outside = [check.statistic for check in checks if not check.inside]
    assert "smallest_return" in outside
    figure = plots.predictive_figure(checks)
    draw_whole(figure)
    assert len(figure.axes) == len(checks) == 9
    for ax, check in zip(figure.axes, checks, strict=True):
        title = ax.get_title(loc="left")
        assert predictive.STATISTICS[check.statistic] in title
        assert ("OUTSIDE" in title) == (check.statistic in outside)
        (line,) = ax.lines
        assert line.get_xdata()[0] == check.observed
        assert same_color(line.get_color(), COLORS[0 if check.inside else 1])
        assert ax.get_xlim()[0] < check.observed < ax.get_xlim()[1]
        assert sum(patch.get_height() for patch in ax.patches[1:]) >= 0.97 * 200
    (legend,) = figure.legends
    assert "the data, outside the band" in [text.get_text() for text in legend.get_texts()]
    calm = plots.predictive_figure([check for check in checks if check.inside][:2])
    draw_whole(calm)
    assert len(calm.legends[0].get_texts()) == 3


def test_sensitivity_panels(posterior: HestonPosterior) -> None:
    absurd = replace(HestonPriors(), theta_median=2.0, theta_log_sd=0.05)
    mild = replace(HestonPriors(), kappa_median=6.0)
    results = predictive.prior_sensitivity(posterior, {"mild": mild, "absurd": absurd})
    assert [result.reliable for result in results] == [True, True, False]
    figure = plots.sensitivity_figure(results)
    draw_whole(figure)
    assert len(figure.axes) == len(QUANTITIES) + 1
    for ax, name in zip(figure.axes, QUANTITIES, strict=False):
        assert name in ax.get_title(loc="left")
        assert [text.get_text() for text in ax.texts] == ["fit anew"]
        bars = [line for line in ax.lines if line.get_linestyle() == "-" and len(set(line.get_ydata())) == 1]
        intervals = [line.get_xdata() for line in bars if len(line.get_xdata()) == 2]
        assert len(intervals) == 2
        for drawn, result in zip(intervals, results, strict=False):
            assert tuple(drawn) == (result.intervals[name].low, result.intervals[name].high)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["as fitted", "mild", "absurd"]
    assert [text.get_text()[:2] for text in figure.axes[-1].texts] == ["eq", "k ", "k "]


def test_volatility_over_absolute_returns(posterior: HestonPosterior) -> None:
    sessions = pd.bdate_range("2019-01-01", periods=SESSIONS).to_numpy()
    band = np.array([[0.1], [0.2], [0.3]]) * np.linspace(1, 1.5, SESSIONS + 1)
    returns = posterior.returns.copy()
    returns[50] = -0.5
    figure = plots.volatility_figure(returns, band, sessions)
    draw_whole(figure)
    (ax,) = figure.axes
    (median,) = ax.lines
    assert (median.get_ydata() == band[1, :-1]).all()
    assert (median.get_xdata() == sessions.astype("datetime64[D]")).all()
    sticks = ax.collections[0].get_segments()
    assert [stick[1][1] for stick in sticks] == pytest.approx(np.abs(returns) * np.sqrt(252))
    top = ax.get_ylim()[1]
    beyond = int((np.abs(returns) * np.sqrt(252) > top).sum())
    assert beyond >= 1
    assert f"{beyond} returns beyond the axis" in ax.get_title(loc="left")
    assert len(figure.legends[0].get_texts()) == 3
