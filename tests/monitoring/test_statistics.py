"""Distances with known answers, null distributions of series that hang together, Holm."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant_assets.monitoring.statistics import (
    STATISTICS,
    ReferenceColumn,
    distances,
    drawn_null,
    effective_draws,
    fit_null,
    holm,
    independent_windows,
    p_values,
    uniform_reference,
)

PSI, KS, WASSERSTEIN = range(3)
# Few different values: ties within and between the samples.
tied = st.lists(st.integers(-6, 6).map(float), min_size=2, max_size=40)


def of(reference: list[float], window: list[float], bins: int = 10) -> np.ndarray:
    return distances(ReferenceColumn.of(np.array(reference), bins), np.array([window]))[0]


# -- distances ---------------------------------------------------------------------------------------------------------


def test_psi_by_hand() -> None:
    """Two bins of a half each; three quarters of the window lie in the lower one."""
    found = of([*range(10)], [1, 2, 3, 9], bins=2)[PSI]
    assert found == pytest.approx((0.75 - 0.5) * math.log(0.75 / 0.5) + (0.25 - 0.5) * math.log(0.25 / 0.5))


def test_an_empty_bin_counts_as_half_a_row() -> None:
    found = of([*range(10)], [1, 2, 3, 3], bins=2)[PSI]
    assert found == pytest.approx(0.5 * math.log(2) + (0.125 - 0.5) * math.log(0.125 / 0.5))


def test_equal_samples_have_no_distance() -> None:
    values = [*range(20)]
    assert of(values, values) == pytest.approx([0, 0, 0], abs=1e-15)


def test_a_shift_by_one_standard_deviation_is_one() -> None:
    values = np.arange(100.0)
    assert of([*values], [*(values + values.std())])[WASSERSTEIN] == pytest.approx(1.0)


@settings(max_examples=200, deadline=None)
@given(tied, tied)
def test_ks_and_wasserstein_are_those_of_scipy(reference: list[float], window: list[float]) -> None:
    found = of(reference, window)
    sd = float(np.std(reference)) or 1.0
    assert found[KS] == pytest.approx(stats.ks_2samp(window, reference, method="asymp").statistic, abs=1e-12)
    assert found[WASSERSTEIN] * sd == pytest.approx(stats.wasserstein_distance(window, reference), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(tied, tied, st.sampled_from([0.25, 2.0, 1024.0]), st.integers(-1000, 1000))
def test_units_do_not_matter(reference: list[float], window: list[float], scale: float, shift: int) -> None:
    """Powers of two and whole numbers: the transformed values are exact, so ties stay ties."""
    moved = of([scale * v + shift for v in reference], [scale * v + shift for v in window])
    expected = of(reference, window)
    assert moved[[PSI, KS]] == pytest.approx(expected[[PSI, KS]], abs=1e-12)
    if np.std(reference) > 0:
        assert moved[WASSERSTEIN] == pytest.approx(expected[WASSERSTEIN], abs=1e-9)


def test_windows_do_not_depend_on_each_other() -> None:
    """A night scores one window, a range many: the bits are the same."""
    rng = np.random.default_rng(1)
    reference = ReferenceColumn.of(rng.standard_normal(500), 10)
    windows = rng.standard_normal((40, 45))
    alone = np.concatenate([distances(reference, window[None]) for window in windows])
    assert (distances(reference, windows) == alone).all()


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_a_reference_needs_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="all have to be finite"):
        ReferenceColumn.of(np.array(values), 10)


# -- null distributions ------------------------------------------------------------------------------------------------


def autoregression(n: int, persistence: float, seed: int, columns: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shocks = rng.standard_normal((n + 200, columns))
    values = np.empty_like(shocks)
    state = shocks[0]
    for t, shock in enumerate(shocks):
        state = persistence * state + math.sqrt(1 - persistence**2) * shock
        values[t] = state
    return values[200:]


def test_a_series_is_worth_its_length_over_its_autocorrelation_time() -> None:
    """For an autoregression the time is (1 + phi) / (1 - phi)."""
    assert independent_windows(autoregression(20_000, 0.0, 1)[:, 0], 1) == pytest.approx(20_000, rel=0.05)
    assert independent_windows(autoregression(20_000, 0.8, 2)[:, 0], 1) == pytest.approx(20_000 / 9, rel=0.15)


def test_a_series_that_never_varies_is_worth_the_windows_that_do_not_overlap() -> None:
    assert independent_windows(np.zeros((300, 2)), 15).tolist() == [20, 20]


def windows_of(values: np.ndarray, length: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(values, length)


def rejected(persistence: float, level: float) -> tuple[float, float]:
    """Share of new windows below a level: ours, and if every row were independent (KS)."""
    ours, naive = [], []
    for seed in range(12):
        values = autoregression(1600, persistence, seed)[:, 0]
        reference = ReferenceColumn.of(values[:1000], 10)
        null = fit_null(distances(reference, windows_of(values[:1000], 15))[:, None, :], overlap=15)
        found = distances(reference, windows_of(values[1000:], 15)[::15])
        ours.append((p_values(null, found[:, None, :])[:, 0] < level).mean(axis=0))
        naive.append((stats.kstwo.sf(found[:, KS], round(1000 * 15 / 1015)) < level).mean())
    return float(np.mean(ours)), float(np.mean(naive))


def test_p_values_hold_their_level_where_rows_hang_together_and_textbook_ones_do_not() -> None:
    for persistence in (0.0, 0.9):
        ours, _ = rejected(persistence, 0.05)
        assert ours < 0.08
    assert rejected(0.9, 0.05)[1] > 0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 50), min_size=3, max_size=3), st.integers(0, 5))
def test_p_values_are_probabilities_and_fall_with_the_distance(found: list[float], seed: int) -> None:
    null = fit_null(np.random.default_rng(seed).lognormal(size=(100, 1, 3)), overlap=10)
    nearer, farther = (p_values(null, np.array([[found]]) * factor)[0, 0] for factor in (1.0, 1.5))
    assert ((nearer >= 0) & (nearer <= 1)).all()
    assert (farther <= nearer).all()


def test_a_window_no_farther_than_one_of_the_reference_is_no_alarm() -> None:
    """Whatever the fit says of it."""
    found = np.random.default_rng(3).lognormal(sigma=0.05, size=(200, 1, 3))
    found[7] = 100.0
    null = fit_null(found, overlap=10)
    assert p_values(null, np.full((1, 1, 3), 100.0)) == pytest.approx(2 / 201)
    assert (p_values(null, np.full((1, 1, 3), 101.0)) < 1e-6).all()


def test_a_column_that_never_varied_is_silent_until_it_does() -> None:
    reference = ReferenceColumn.of(np.zeros(300), 10)
    null = fit_null(distances(reference, np.zeros((200, 15)))[:, None, :], overlap=15)
    assert (p_values(null, distances(reference, np.zeros((1, 15)))[:, None, :]) == 1).all()
    other = distances(reference, np.r_[np.ones(8), np.zeros(7)][None])[:, None, :]
    assert p_values(null, other)[0, 0, KS] < 1e-6


def test_too_few_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 windows of the reference"):
        fit_null(np.ones((2, 1, 3)), overlap=1)


# -- independent draws -------------------------------------------------------------------------------------------------


def test_requests_of_a_session_count_as_often_as_they_differ() -> None:
    rng = np.random.default_rng(5)
    session = np.repeat(np.arange(10), 50)
    same = np.repeat(rng.random(10), 50)
    assert effective_draws(same, session) == pytest.approx(10)
    assert effective_draws(rng.random(500), session) > 300
    assert effective_draws(np.full(500, 0.3), session) == pytest.approx(10)
    assert effective_draws(rng.random(30), np.arange(30)) == 30
    assert effective_draws(np.full(40, 0.3), np.zeros(40)) == 1


@pytest.mark.parametrize("draws", [5, 40])
def test_draws_from_the_known_distribution_are_no_drift(draws: int) -> None:
    rng = np.random.default_rng(draws)
    reference = uniform_reference(-4.0, -1.5, 10)
    samples = rng.uniform(-4.0, -1.5, (1000, draws))
    p = p_values(drawn_null(draws, 10), distances(reference, samples)[:, None, :])[:, 0]
    assert ((p < 0.05).mean(axis=0) < 0.08).all()
    far = p_values(drawn_null(draws, 10), distances(reference, np.full((1, draws), -8.0))[:, None, :])
    assert far.min() < 1e-3


# -- Holm --------------------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2 (the one before is larger), 0.9 x 1."""
    assert holm([0.02, 0.9, 0.01, 0.03]) == pytest.approx([0.06, 0.9, 0.04, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_holm_is_a_step_down(p: list[float], random: object) -> None:
    adjusted = holm(p)
    order = np.argsort(p, kind="stable")
    assert ((adjusted >= np.array(p)) & (adjusted <= 1)).all()
    assert (np.diff(adjusted[order]) >= 0).all()
    # By its definition: reject in ascending order as long as p (k) <= alpha / (m - k).
    for alpha in (0.01, 0.2):
        rejecting, by_definition = True, set()
        for k, i in enumerate(order):
            rejecting &= p[i] * (len(p) - k) <= alpha
            by_definition |= {int(i)} if rejecting else set()
        assert set(np.flatnonzero(adjusted <= alpha).tolist()) == by_definition


def test_holm_keeps_the_shape() -> None:
    assert holm(np.full((2, len(STATISTICS)), 0.5)).shape == (2, 3)
