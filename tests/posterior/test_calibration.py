"""Simulation-based calibration: small real runs, resuming, and a judge that catches samplers that are wrong."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from quant_assets.posterior import calibration
from quant_assets.posterior.calibration import (
    CalibrationError,
    CalibrationPlan,
    Case,
    Outcome,
    bin_edges,
    ecdf_band,
    ecdf_difference_figure,
    holm,
    judge,
    rank_histogram_figure,
    ranks_of,
    run_calibration,
    run_case,
    simulate_case,
)
from quant_assets.posterior.diagnostics import Diagnostics, Limits
from quant_assets.posterior.heston import FitRefused, HestonPosterior, SamplerSettings
from quant_assets.posterior.priors import QUANTITIES, HestonPriors
from quant_resources.compute import Compute

HERE = Compute("sequential")
# Shorter than the default, with the same limits in parts of the draws.
SAMPLER = SamplerSettings(
    warmup=150, draws=100, threads=1, fall_back=False, limits=Limits(r_hat=1.1, ess=40.0)
)
PLAN = CalibrationPlan({250: 6}, ranked_draws=39, sampler=SAMPLER)


def comparable(outcomes: list[Outcome]) -> list[str]:
    """To the last bit, NaN equal to NaN, without the time it took."""
    return [repr(asdict(replace(outcome, seconds=0.0))) for outcome in outcomes]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    return run_calibration(PLAN, tmp_path_factory.mktemp("calibration") / "store.db", HERE)


def made_outcome(
    ranks: np.ndarray, replicate: int, sessions: int = 500, ranked_draws: int = 99, reason: str = ""
) -> Outcome:
    return Outcome(
        sessions,
        replicate,
        replicate,
        "refused" if reason else "accepted",
        reason,
        ranked_draws,
        {} if reason else {name: int(r) for name, r in zip(QUANTITIES, ranks, strict=True)},
        dict.fromkeys(QUANTITIES, 0.1),
        500.0,
        1.0,
        0.1,
        0.9,
        1.0,
    )


def made_outcomes(shift: float = 0.0, spread: float = 1.0, fits: int = 200, seed: int = 0) -> list[Outcome]:
    """Outcomes of a sampler of a standard normal posterior whose draws of `sigma` are shifted or spread."""
    random = np.random.default_rng(seed)
    made = []
    for replicate in range(fits):
        truth = dict(zip(QUANTITIES, random.standard_normal(len(QUANTITIES)), strict=True))
        draws = {name: random.standard_normal((4, 250)) for name in QUANTITIES}
        draws["sigma"] = shift + spread * draws["sigma"]
        ranks = ranks_of(truth, draws, 99)
        made.append(made_outcome(np.array([ranks[name] for name in QUANTITIES]), replicate))
    return made


# ---- real fits -----------------------------------------------------------------------------------------------------


def test_small_calibration(outcomes: list[Outcome]) -> None:
    assert [(o.sessions, o.replicate) for o in outcomes] == [(250, k) for k in range(6)]
    accepted = [o for o in outcomes if o.status == "accepted"]
    assert len(accepted) >= 4
    for o in accepted:
        assert tuple(o.ranks) == tuple(o.truth) == QUANTITIES
        assert all(0 <= rank <= PLAN.ranked_draws for rank in o.ranks.values())
        assert o.min_ess >= 40
        assert o.max_r_hat <= 1.1
        assert o.pareto_k <= 0.7
        assert 0.5 < o.weight_efficiency <= 1
    assert len({o.seed for o in outcomes}) == 6
    assert len({o.truth["kappa"] for o in outcomes}) == 6
    row = accepted[0].as_row()
    assert row["rank_v_T"] == accepted[0].ranks["v_T"]
    assert row["truth_mu"] == accepted[0].truth["mu"]
    # Six ranks cannot show that a sampler is right.
    assert not judge(outcomes).passed
    assert "at least 20 are needed" in judge(outcomes).failures[0]


@pytest.mark.slow
def test_processes_give_the_same_to_the_last_bit(outcomes: list[Outcome], tmp_path: Path) -> None:
    plan = replace(PLAN, datasets={250: 2})
    parallel = run_calibration(plan, tmp_path / "store.db", Compute("loky", 2))
    assert comparable(parallel) == comparable(outcomes[:2])


def test_a_stopped_run_goes_on(
    outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ran = replace(PLAN, datasets={250: 2}), []

    def stops_at_the_second(plan: CalibrationPlan, case: Case) -> Outcome:
        ran.append(case)
        if len(ran) == 2:
            raise ZeroDivisionError("not a refusal")
        return run_case(plan, case)

    monkeypatch.setattr(calibration, "run_case", stops_at_the_second)
    with pytest.raises(ZeroDivisionError, match="not a refusal"):
        run_calibration(plan, tmp_path / "store.db", HERE)
    messages: list[str] = []
    resumed = run_calibration(plan, tmp_path / "store.db", HERE, messages.append)
    assert ran == [(250, 0), (250, 1), (250, 1)]
    assert comparable(resumed) == comparable(outcomes[:2])
    assert messages[0].startswith("1 of 2 datasets: ")
    assert "1 of them found finished" in messages[0]
    assert messages[-1].startswith("2 of 2 datasets: ")


@pytest.mark.slow
def test_the_sampler_is_calibrated(tmp_path: Path) -> None:
    """Reduced: the asset runs 200 datasets of this length and 50 of 2000 sessions."""
    plan = CalibrationPlan({500: 24}, ranked_draws=39, sampler=SAMPLER, seed=1)
    result = judge(run_calibration(plan, tmp_path / "store.db", Compute("loky", 2)))
    assert result.passed, result.failures
    assert result.counts[500]["accepted"] >= 20


# ---- resuming ------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from quant_assets.posterior import calibration
from tests_calibration import PLAN, HERE, quick_case

ran = []

def killed_in_the_fourth(plan, case):
    ran.append(case)
    if len(ran) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return quick_case(plan, case)

calibration.run_case = killed_in_the_fourth
calibration.run_calibration(PLAN, Path(sys.argv[1]), HERE)
"""


def quick_case(plan: CalibrationPlan, case: Case) -> Outcome:
    """A case without a fit; its ranks follow from its seed."""
    ranks = np.random.default_rng(plan.seed_of(case)).integers(plan.ranked_draws + 1, size=len(QUANTITIES))
    return made_outcome(ranks, case.replicate, case.sessions, plan.ranked_draws)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Cases that were run, none of them with a fit."""
    ran: list[Case] = []

    def case_that_counts(plan: CalibrationPlan, case: Case) -> Outcome:
        ran.append(case)
        return quick_case(plan, case)

    monkeypatch.setattr(calibration, "run_case", case_that_counts)
    return ran


def test_a_killed_run_loses_only_what_was_in_flight(tmp_path: Path, counted: list[Case]) -> None:
    # The process finds this file under a name of its own: test folders are no packages.
    (tmp_path / "tests_calibration.py").symlink_to(__file__)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "store.db")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = run_calibration(PLAN, tmp_path / "store.db", HERE)
    assert counted == [(250, 3), (250, 4), (250, 5)]
    counted.clear()
    assert comparable(resumed) == comparable(run_calibration(PLAN, tmp_path / "new.db", HERE))
    assert len(counted) == 6


def test_a_changed_plan_starts_anew_and_a_larger_one_goes_on(tmp_path: Path, counted: list[Case]) -> None:
    def run(plan: CalibrationPlan) -> int:
        counted.clear()
        run_calibration(plan, tmp_path / "store.db", HERE)
        return len(counted)

    assert run(PLAN) == 6
    assert run(PLAN) == 0
    assert run(replace(PLAN, seed=1)) == 6
    assert run(replace(PLAN, ranked_draws=29)) == 6
    assert run(replace(PLAN, priors=HestonPriors(sigma_log_sd=0.5))) == 6
    assert run(replace(PLAN, sampler=replace(SAMPLER, draws=110))) == 6
    assert run(replace(PLAN, sampler=replace(SAMPLER, fall_back=True))) == 6
    assert run(replace(PLAN, sampler=replace(SAMPLER, threads=2, seed=5))) == 0
    assert run(replace(PLAN, datasets={250: 8, 300: 1})) == 3
    assert run(PLAN) == 0


def test_newer_code_starts_anew(tmp_path: Path, counted: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    run_calibration(PLAN, tmp_path / "store.db", HERE)
    monkeypatch.setattr(calibration, "CODE_VERSION", calibration.CODE_VERSION + 1)
    run_calibration(PLAN, tmp_path / "store.db", HERE)
    assert len(counted) == 12


def test_seeds_are_fresh_and_do_not_depend_on_the_plan() -> None:
    plan = CalibrationPlan()
    cases = plan.cases
    assert len(cases) == 250
    assert len({plan.seed_of(case) for case in cases}) == 250
    assert plan.seed_of(Case(500, 7)) == replace(plan, datasets={500: 8}).seed_of(Case(500, 7))
    assert plan.seed_of(Case(500, 7)) != replace(plan, seed=1).seed_of(Case(500, 7))
    # the truth is drawn from the prior
    truth = [simulate_case(plan, Case(250, k))[1] for k in range(200)]
    assert np.median([t["kappa"] for t in truth]) == pytest.approx(5.0, rel=0.2)
    assert np.mean([t["rho"] for t in truth]) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": {}}, "datasets is empty"),
        ({"datasets": {100: 5}}, "at least 250 sessions"),
        ({"datasets": {500: 0}}, "counts at least 1"),
        ({"ranked_draws": 200}, "must lie in 1..100: a fit has 1000 draws"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_impossible_plans(change: dict, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        CalibrationPlan(**change)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("not a database " * 100)
    with pytest.raises(CalibrationError, match=r"store\.db cannot be read or written"):
        run_calibration(PLAN, tmp_path / "store.db", HERE)


# ---- refusals ------------------------------------------------------------------------------------------------------


def made_posterior(plan: CalibrationPlan, failures: tuple[str, ...], fell_back: tuple[str, ...] = ()) -> HestonPosterior:  # fmt: skip
    same = dict.fromkeys(QUANTITIES, 300.0)
    diagnostics = Diagnostics(dict.fromkeys(QUANTITIES, 1.2), same, same, 0, 1000, 1.0, 0.9, 0.4)
    draws = {name: np.linspace(0, 1, 1000).reshape(4, 250) for name in QUANTITIES}
    nothing = np.zeros((4, 250))
    return HestonPosterior(draws, "latent" if fell_back else "marginal", diagnostics, failures, fell_back,
                           nothing, nothing, plan.priors, plan.sampler, nothing, {})  # fmt: skip


def fit_that(posterior: HestonPosterior) -> Callable[..., HestonPosterior]:
    def fit(*_: object, **__: object) -> HestonPosterior:
        if posterior.failures:
            raise FitRefused(posterior)
        return posterior

    return fit


def test_a_refused_fit_is_an_outcome_without_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = made_posterior(PLAN, ("Pareto k of the weights is 0.90, above 0.7", "BFMI is 0.10, below 0.3"))
    monkeypatch.setattr(calibration, "fit", fit_that(refused))
    outcome = run_case(PLAN, Case(250, 0))
    assert outcome.status == "refused"
    assert outcome.reason == "Pareto k of the weights is 0.90, above 0.7; BFMI is 0.10, below 0.3"
    assert outcome.ranks == {}
    assert outcome.as_row()["rank_mu"] is None
    assert (outcome.pareto_k, outcome.max_r_hat, outcome.min_ess) == (0.9, 1.2, 300.0)


def test_a_fit_that_fell_back_is_rerouted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "fit", fit_that(made_posterior(PLAN, (), ("11 of 400 draws diverged",))))
    outcome = run_case(PLAN, Case(250, 0))
    assert (outcome.status, outcome.reason) == ("rerouted", "11 of 400 draws diverged")
    assert set(outcome.ranks) == set(QUANTITIES)


def test_returns_at_the_floor_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    priors = HestonPriors(theta_median=0.001, theta_log_sd=2.0, sigma_median=0.02)
    plan = replace(PLAN, priors=priors)
    monkeypatch.setattr(calibration, "fit", fit_that(made_posterior(plan, ())))
    refused = [o for k in range(20) if (o := run_case(plan, Case(250, k))).status == "refused"]
    assert 0 < len(refused) < 20
    for outcome in refused:
        assert "at the model's floor of 1.0%" in outcome.reason
        assert outcome.ranks == {}
        assert np.isnan(outcome.min_ess)


def test_other_errors_of_a_fit_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(calibration, "fit", broken)
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        run_case(PLAN, Case(250, 0))


def test_refusals_are_counted_with_reasons() -> None:
    made = made_outcomes(fits=40)
    nothing = np.zeros(0)
    made.append(made_outcome(nothing, 40, reason="BFMI is 0.10, below 0.3; 12 of 1000 draws diverged"))
    made.append(made_outcome(nothing, 41, reason="1 of 1000 draws diverged"))
    made.append(
        made_outcome(nothing, 42, reason="R-hat of v_T is 1.05, above 1.04; R-hat of v0 is 1.2, above 1.04")
    )
    judgement = judge(made)
    assert judgement.counts == {500: {"accepted": 40, "rerouted": 0, "refused": 3}}
    assert judgement.refusals == {
        "# of # draws diverged": 2,
        "BFMI is #, below #": 1,
        "R-hat is #, above #": 1,
    }
    assert {t.ranks for t in judgement.tests} == {40}


# ---- judge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_sampler_that_is_right_passes(seed: int) -> None:
    judgement = judge(made_outcomes(seed=seed))
    assert judgement.passed
    assert len(judgement.tests) == 2 * len(QUANTITIES)
    assert {t.bins for t in judgement.tests} == {0, 20}


@pytest.mark.parametrize(
    ("wrong", "at_least"),
    [
        pytest.param({"shift": 0.5}, {"ks", "chi_square"}, id="biased by half a standard deviation"),
        pytest.param({"shift": -0.5}, {"ks", "chi_square"}, id="biased the other way"),
        pytest.param({"spread": 2.0}, {"chi_square"}, id="too wide"),
        pytest.param({"spread": 0.6}, {"chi_square"}, id="too narrow"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_sampler_that_is_wrong_is_caught(wrong: dict[str, float], at_least: set[str], seed: int) -> None:
    judgement = judge(made_outcomes(**wrong, seed=seed))
    assert not judgement.passed
    caught = {t.test for t in judgement.tests if t.quantity == "sigma" and t.holm_p < 0.01}
    assert at_least <= caught
    assert any("200 ranks of sigma are not uniform" in failure for failure in judgement.failures)


def test_every_quantity_and_length_is_judged() -> None:
    """Ranks at both ends everywhere, as a posterior with hardly any width would give."""
    made = [
        made_outcome(np.full(len(QUANTITIES), 0 if k % 2 else 99), k, sessions) for sessions in (500, 2000) for k in range(50)
    ]  # fmt: skip
    judgement = judge(made)
    assert len(judgement.failures) == 4 * len(QUANTITIES)


def test_uniform_p_values() -> None:
    """The spread of discrete ranks makes the test exact: 5 % of right samplers have p < 0.05."""
    p = np.array([t.p for seed in range(60) for t in judge(made_outcomes(fits=40, seed=seed)).tests])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.025)
    assert (p < 0.5).mean() == pytest.approx(0.5, abs=0.06)


def test_the_judge_does_not_depend_on_the_order() -> None:
    made = made_outcomes(fits=50)
    assert judge(made) == judge(made[::-1])


def test_outcomes_of_different_plans_are_not_mixed() -> None:
    with pytest.raises(CalibrationError, match=r"rank \[39, 99\] draws"):
        judge([made_outcome(np.zeros(7), 0), made_outcome(np.zeros(7), 1, ranked_draws=39)])
    with pytest.raises(CalibrationError, match="rank no draws"):
        judge([])


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04, and never below the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0


@pytest.mark.parametrize(("ranks", "bins"), [(200, 20), (50, 10), (48, 9), (37, 7), (20, 4), (3, 1)])
def test_bins_expect_five(ranks: int, bins: int) -> None:
    edges = bin_edges(ranks, 99)
    assert len(edges) - 1 == bins
    assert (edges[0], edges[-1]) == (0, 100)
    if bins > 1:
        assert ranks * np.diff(edges).min() / 100 >= 5


def test_ranks_by_hand() -> None:
    draws = {"mu": np.array([[0.1, 0.5, 0.3], [0.7, 0.2, 0.9]])}
    # three of six, evenly spaced: 0.1, 0.3, 0.2
    assert ranks_of({"mu": 0.25}, draws, 3) == {"mu": 2}
    assert ranks_of({"mu": 0.05}, draws, 6) == {"mu": 0}
    assert ranks_of({"mu": 1.0}, draws, 6) == {"mu": 6}


# ---- show ----------------------------------------------------------------------------------------------------------


def test_band_holds_95_of_100() -> None:
    lower, upper = ecdf_band(50, 99)
    assert (lower <= 0).all()
    assert (upper >= 0).all()
    assert lower[-1] == upper[-1] == 0
    ranks = np.random.default_rng(7).integers(100, size=(4000, 50))
    ecdf = np.stack([np.bincount(row, minlength=100) for row in ranks]).cumsum(axis=1) / 50
    difference = ecdf - np.arange(1, 101) / 100
    inside = ((difference >= lower - 1e-12) & (difference <= upper + 1e-12)).all(axis=1)
    # counts are discrete: a little more than 95 %
    assert 0.94 <= inside.mean() <= 0.975


def test_figures_show_every_quantity_and_length() -> None:
    made = made_outcomes(fits=60) + [made_outcome(np.full(7, k), k, 2000) for k in range(25)]
    differences, histograms = ecdf_difference_figure(made), rank_histogram_figure(made)
    titles = [ax.get_title() for ax in differences.axes]
    assert titles == [*QUANTITIES, ""]
    assert [ax.get_title() for ax in histograms.axes] == [*QUANTITIES] + [""] * len(QUANTITIES)
    legend = differences.axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["T = 500, 60 fits", "T = 2000, 25 fits"]
    for figure in (differences, histograms):
        figure.canvas.draw()
