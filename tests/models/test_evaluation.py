"""Metrics against scikit-learn, intervals against what they promise, and the promotion rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from quant_assets.models import evaluation, gate


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_metrics_agree_with_scikit_learn(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 200)
    y[:2] = 0, 1
    p = rng.random(200)
    p = np.round(p, 1) * 0.98 + 0.01 if ties else p
    weight = rng.integers(0, 4, 200)
    weight[:2] = 1
    assert evaluation.auc(y, p) == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert evaluation.auc(y, p, weight) == pytest.approx(roc_auc_score(y, p, sample_weight=weight), abs=1e-12)
    assert evaluation.brier(y, p).mean() == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    assert evaluation.log_loss(y, p).mean() == pytest.approx(sklearn_log_loss(y, p), abs=1e-9)


def test_auc_of_one_class_is_undefined() -> None:
    assert np.isnan(evaluation.auc(np.ones(5), np.arange(5.0)))


def test_roc_curve_encloses_the_auc() -> None:
    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 2, 500), rng.random(500)
    false_positive, true_positive = evaluation.roc_curve(y, p)
    assert np.trapezoid(true_positive, false_positive) == pytest.approx(evaluation.auc(y, p), abs=1e-12)


def test_calibration_curve_of_true_probabilities_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(200_000)
    y = rng.random(200_000) < p
    for bin_ in evaluation.calibration_curve(y, p):
        assert bin_["observed"] == pytest.approx(bin_["predicted"], abs=0.012)
        assert bin_["rows"] == 20_000


def test_resamples_draw_whole_sessions_and_are_seeded() -> None:
    session = np.repeat(np.arange(100), 3)
    weights = evaluation.session_resamples(session, seed=5, resamples=50)
    assert (weights == evaluation.session_resamples(session, seed=5, resamples=50)).all()
    by_session = weights.reshape(50, 100, 3)
    assert (by_session == by_session[:, :, :1]).all()
    assert (weights.sum(axis=1) == 300).all()


def test_intervals_cover_under_dependence_between_sessions() -> None:
    """Means of AR(1) sessions: a bootstrap over rows would cover far too rarely."""
    rng = np.random.default_rng(3)
    covered_blocks = covered_rows = 0
    trials = 150
    for trial in range(trials):
        noise = rng.normal(size=700)
        level = np.zeros(700)
        for t in range(1, 700):
            level[t] = 0.7 * level[t - 1] + noise[t]
        values = np.repeat(level[200:], 4)
        session = np.repeat(np.arange(500), 4)
        interval = evaluation.mean_interval(values, evaluation.session_resamples(session, trial, 200))
        covered_blocks += interval.low <= 0 <= interval.high
        naive = evaluation.mean_interval(values, evaluation.session_resamples(np.arange(2000), trial, 200, 1))
        covered_rows += naive.low <= 0 <= naive.high
    assert covered_blocks / trials > 0.85
    assert covered_rows / trials < 0.6


def _probabilities(seed: int, edge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(400), 5)
    truth = 0.2 + 0.5 * rng.random((2000, 2))
    y = (rng.random((2000, 2)) < truth).astype(float)
    champion = np.full((2000, 2), y.mean())
    challenger = (1 - edge) * champion + edge * truth
    return y, challenger, champion, session


def test_a_better_challenger_is_promoted_and_says_by_how_much() -> None:
    y, challenger, champion, session = _probabilities(1, edge=0.9)
    verdict = gate.judge(y, challenger, champion, session)
    assert verdict.promote
    assert verdict.improvement is not None
    assert verdict.improvement.low > 0
    assert "better than the champion" in verdict.reason


def test_equal_worse_and_unproven_challengers_stay_challengers() -> None:
    y, challenger, champion, session = _probabilities(2, edge=0.9)
    assert not gate.judge(y, champion, champion, session).promote
    assert not gate.judge(y, champion, challenger, session).promote
    noise = np.clip(champion + np.random.default_rng(0).normal(0, 0.002, champion.shape), 0, 1)
    assert not gate.judge(y, noise, champion, session).promote
    assert not gate.judge(y[:0], champion[:0], champion[:0], session[:0]).promote


def test_a_handful_of_sessions_decides_nothing() -> None:
    """Resampling one or two blocks gives an interval of hardly any width, which every difference would clear."""
    y, challenger, champion, session = _probabilities(3, edge=0.9)
    few = session < 20
    verdict = gate.judge(y[few], challenger[few], champion[few], session[few])
    assert not verdict.promote
    assert "20 unseen sessions are too few to judge by (24 are needed)" in verdict.reason
    some = session < 24
    assert gate.judge(y[some], y[some], champion[some], session[some]).promote


def test_few_sessions_with_overlapping_labels_promote_noise_rarely() -> None:
    """30 sessions, each difference a sum over six: 2.5 % would be right, a bootstrap of blocks gives 14 %."""
    rng = np.random.default_rng(5)
    above = 0
    for _ in range(600):
        noise = rng.normal(size=35)
        values = np.array([noise[i : i + 6].sum() for i in range(30)])
        above += evaluation.block_interval(values, np.arange(30), 6).low > 0
    assert above / 600 < 0.075


def test_an_interval_over_blocks_is_students() -> None:
    values = np.array([1.0, 3.0, 2.0, 4.0, 5.0, 3.0, 0.0, 2.0])
    found = evaluation.block_interval(values, np.arange(8), 2)
    blocks = np.array([2.0, 3.0, 4.0, 1.0])
    reach = 3.182446305 * blocks.std(ddof=1) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - reach, 2.5 + reach))


def test_noise_is_promoted_no_more_often_than_the_interval_allows() -> None:
    """Challenger and champion equally good: the lower end of a 95 % interval is above 0 in about 2.5 % of the cases."""
    promoted = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        session = np.repeat(np.arange(300), 4)
        y = (rng.random((1200, 2)) < 0.4).astype(float)
        a, b = (np.clip(0.4 + rng.normal(0, 0.05, (1200, 2)), 0.01, 0.99) for _ in range(2))
        promoted += gate.judge(y, a, b, session).promote
    assert promoted / 120 < 0.08


def test_without_a_usable_champion_the_challenger_takes_the_place() -> None:
    assert gate.first_champion().promote
    assert "other feature" in gate.incomparable("other feature definitions").reason
