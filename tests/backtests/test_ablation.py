"""What alternative data add: a ladder that finds what is there, finds nothing in noise, and pairs what it compares."""

import dataclasses
import datetime as dt
import itertools
from collections.abc import Callable
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant_assets.backtests import ablation, plots, statistics, tables
from quant_assets.backtests.ablation import RUNGS, Estimate, Said, ladder_rows
from quant_assets.backtests.engine import Account, Costs
from quant_assets.backtests.pages.comparison_figures import ablation_plot
from quant_assets.backtests.pages.figures import Plot
from quant_assets.backtests.portfolio import Window, run_backtest
from quant_assets.features.tables import COMPETITOR_INPUTS, TECHNICAL_INPUTS
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.models import evaluation
from quant_assets.models.assets import sentiment_gain
from quant_assets.models.dataset import Dataset, Windows, make_windows
from quant_assets.models.feature_sets import FEATURE_SETS
from quant_assets.models.mlp import MlpParameters
from quant_assets.presentation import render
from quant_assets.strategies import make_strategy
from quant_resources.calendar import TradingCalendar

QUICK = MlpParameters(hidden_units=(4,), max_epochs=12, batch_size=64)
SEEDS = (1, 2, 3)
# Enough of both for the sentence to be about what was found.
SESSIONS, TRAININGS = 2000, 5
SYMBOLS = ("AAA", "BBB", "CCC")
INPUTS = FEATURE_SETS["mlp_enhanced"].inputs


def test_every_rung_adds_to_the_one_before_and_the_last_reads_what_the_enhanced_model_reads() -> None:
    ladder = list(RUNGS.values())
    assert ladder[0] == FEATURE_SETS["mlp_technical"].inputs
    assert ladder[1] == FEATURE_SETS["mlp_sentiment"].inputs
    assert ladder[-1] == INPUTS
    assert [len(inputs) for inputs in ladder] == [31, 47, 63, 79]
    assert all(after[: len(before)] == before for before, after in itertools.pairwise(ladder))


# -- a made world ------------------------------------------------------------------------------------------------------


def world(
    calendar: TradingCalendar, strength: float, seed: int = 0, labelled: int | None = None
) -> tuple[Dataset, Windows]:
    """Noise on every input; one of the competitors' tells the labels, as strongly as it is said."""
    sessions = calendar.sessions(dt.date(2008, 1, 2), dt.date(2010, 12, 31))[:labelled]
    rng = np.random.default_rng(seed)
    rows = len(sessions) * len(SYMBOLS)
    x = rng.normal(0, 1, (rows, len(INPUTS))).astype(np.float32)
    knows = strength * x[:, INPUTS.index(COMPETITOR_INPUTS[0])]
    y = np.column_stack([rng.random(rows) < 1 / (1 + np.exp(1 - sign * knows)) for sign in (1, -1)])
    session = np.repeat(np.array(sessions, "datetime64[D]"), len(SYMBOLS))
    symbol = np.tile(np.array(SYMBOLS), len(sessions))
    dataset = Dataset(INPUTS, x, y.astype(np.float32), session, session, symbol)
    return dataset, make_windows(sessions)


def judged(dataset: Dataset, windows: Windows, said: dict[str, Said]) -> list[dict[str, Any]]:
    masks = dataset.masks(windows)
    unseen, base_rate = dataset.take(masks["out_of_sample"]), dataset.y[masks["train"]].mean(axis=0)
    weights = evaluation.session_resamples(unseen.session, 0, 200)
    probability = {rung: one.judged for rung, one in said.items()}
    found = ablation.classifier_estimates(probability, unseen.y, base_rate, weights)
    return ladder_rows(found, len(np.unique(unseen.session)), len(probability[ablation.FIRST_RUNG]))


def trained(dataset: Dataset, windows: Windows, seeds: tuple[int, ...] = SEEDS) -> dict[str, Said]:
    later = dataset.session > np.datetime64(windows.in_sample_last)
    return ablation.train_rungs(dataset, windows, QUICK, seeds, (dataset.x[later], dataset.symbol[later]))


def test_the_rung_that_brings_information_is_named_and_no_other(calendar: TradingCalendar) -> None:
    dataset, windows = world(calendar, strength=2.0)
    rows = judged(dataset, windows, trained(dataset, windows))
    said = ablation.conclusion(rows)
    assert said.startswith("Beyond doubt, competitors adds 0."), said
    assert "own sentiment adds" not in said
    assert "industry adds" not in said
    assert "Better than a coin or the base rate: competitors by its AUC of long" in said
    steps = {(r["rung"], r["side"]): r["step_joint_low"] for r in rows if r["measure"] == "auc"}
    assert min(steps["competitors", "long"], steps["competitors", "short"]) > 0.05
    suspicious = ablation.suspicious_rows(rows, 0.03)
    assert {row["rung"] for row in suspicious} == {"competitors", "industry"}


@pytest.mark.parametrize(
    ("seed", "labelled"), [(5, None), (11, None), (12, 300), (13, 300), (14, 150), (15, 150), (16, 150)]
)
def test_of_noise_no_rung_adds_anything(calendar: TradingCalendar, seed: int, labelled: int | None) -> None:
    dataset, windows = world(calendar, strength=0.0, seed=seed, labelled=labelled)
    rows = judged(dataset, windows, trained(dataset, windows))
    said = ablation.conclusion(rows)
    assert said.startswith("No rung adds anything beyond doubt: of the 12 differences"), said
    assert "No rung ranks better than a coin" in said
    assert not ablation.suspicious_rows(rows, 0.03)
    for row in rows:
        if row["measure"] == "auc":
            assert 0.3 < row["low"] < row["high"] < 0.7
        assert row["joint_low"] < row["value"] < row["joint_high"]


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_of_few_sessions_nothing_is_said_not_even_of_a_gain_that_is_there(
    calendar: TradingCalendar, seed: int
) -> None:
    """With 95 labelled sessions 52 are out of sample: two blocks."""
    dataset, windows = world(calendar, strength=2.0, seed=seed, labelled=95)
    rows = judged(dataset, windows, trained(dataset, windows))
    said = ablation.conclusion(rows)
    assert said == "Too few sessions to say anything beyond doubt: 52 out of sample, and 80 are needed."
    assert all(row[key] is None for row in rows for key in ("joint_low", "step_joint_low", "gain_joint_low"))
    assert not ablation.suspicious_rows(rows, 0.03)
    assert {row["rung"] for row in ablation.doubtful_rows(rows, 0.03)} >= {"competitors"}


def test_of_one_seed_nothing_is_said_and_yet_a_leak_is_found(calendar: TradingCalendar) -> None:
    dataset, windows = world(calendar, strength=2.0)
    rows = judged(dataset, windows, trained(dataset, windows, (1,)))
    said = ablation.conclusion(rows)
    assert said.startswith("Too few seeds to say anything beyond doubt: 1, and 2 are needed"), said
    assert all(row["joint_low"] is row["step_joint_low"] is None for row in rows)
    assert {row["rung"] for row in ablation.suspicious_rows(rows, 0.03)} == {"competitors", "industry"}
    assert not ablation.doubtful_rows(rows, 0.03)


@pytest.mark.parametrize(
    ("strength", "seed", "labelled", "passed", "leaks"),
    [
        (0.0, 31, 150, True, False),
        (0.0, 32, 150, True, False),
        (0.0, 33, None, True, False),
        (2.0, 34, None, False, True),
        (2.0, 35, 95, False, False),
    ],
)
def test_the_check_of_the_models_finds_a_leak_and_only_warns_of_few_sessions(
    calendar: TradingCalendar, strength: float, seed: int, labelled: int | None, passed: bool, leaks: bool
) -> None:
    dataset, windows = world(calendar, strength, seed, labelled)
    says = trained(dataset, windows, (QUICK.seed,))["industry"].judged[0]
    unseen = dataset.take(dataset.masks(windows)["out_of_sample"])
    weights = evaluation.session_resamples(unseen.session, 0, 200)
    gain = sentiment_gain(dataset, windows, QUICK, says, weights)
    check = gain.check()
    assert (check.passed, gain.leaks) == (passed, leaks)
    assert check.severity == (dg.AssetCheckSeverity.ERROR if leaks else dg.AssetCheckSeverity.WARN)
    if not passed and not leaks:
        assert "52 out-of-sample sessions are too few to tell a leak from luck (80 are needed)" in str(
            gain.text
        )


def test_an_ablation_of_an_earlier_version_is_not_believed() -> None:
    rows = ladder_rows(estimates(lambda *_: 0.9, lambda *_: np.full(50, 0.9)), SESSIONS, TRAININGS)
    said = ablation.conclusion([{**row, "sessions": None} for row in rows])
    assert said.endswith("materialize backtests/sentiment_ablation again.")


def test_the_same_seeds_give_the_same_bits_and_more_seeds_keep_the_first(calendar: TradingCalendar) -> None:
    dataset, windows = world(calendar, strength=0.3)
    once, again = trained(dataset, windows, (7,)), trained(dataset, windows, (7, 8))
    for rung in RUNGS:
        assert once[rung].judged.shape[0] == 1
        assert np.array_equal(once[rung].judged[0], again[rung].judged[0])
        assert np.array_equal(once[rung].traded[0], again[rung].traded[0])
        assert not np.array_equal(again[rung].judged[0], again[rung].judged[1])
    assert judged(dataset, windows, once) == judged(dataset, windows, trained(dataset, windows, (7,)))


def test_a_rung_is_the_model_itself(calendar: TradingCalendar) -> None:
    """The first rung with one seed is the network that models/mlp_technical would be."""
    from quant_assets.models.mlp import train

    dataset, windows = world(calendar, strength=0.3)
    part = dataset.with_inputs(TECHNICAL_INPUTS)
    rows = {window: part.take(mask) for window, mask in part.masks(windows).items()}
    learning = [(rows[window].x, rows[window].y, rows[window].symbol) for window in ("train", "validation")]
    model = train(part.inputs, *learning, dataclasses.replace(QUICK, seed=3))
    said = trained(dataset, windows, (3,))["technical"]
    unseen = rows["out_of_sample"]
    assert np.array_equal(said.judged[0], model.predict(unseen.x, unseen.symbol))


def test_without_a_seed_there_is_nothing_to_train(calendar: TradingCalendar) -> None:
    dataset, windows = world(calendar, strength=0.3)
    with pytest.raises(ValueError, match="seeds is empty"):
        trained(dataset, windows, ())


# -- intervals ---------------------------------------------------------------------------------------------------------


def estimates(
    value: Callable[[str, str, str], float], draws: Callable[[str, str, str], np.ndarray]
) -> list[Estimate]:
    """One estimate per rung, measure and side."""
    made = []
    for rung in RUNGS:
        for measure, sides in (
            ("auc", ablation.SIDES),
            ("brier_gain", ablation.SIDES),
            ("sharpe", ("both",)),
        ):
            for side in sides:
                level = value(rung, measure, side)
                made.append(
                    Estimate(rung, measure, side, level, 0.01, level, level, draws(rung, measure, side))
                )
    return made


def test_differences_are_paired() -> None:
    """What all rungs share on a resample is in no difference."""
    shared = np.random.default_rng(0).normal(0, 0.05, 400)
    position = {rung: i for i, rung in enumerate(RUNGS)}
    made = estimates(lambda r, *_: 0.5 + 0.01 * position[r], lambda r, *_: 0.5 + 0.01 * position[r] + shared)
    rows = ladder_rows([dataclasses.replace(one, seed_sd=0.0) for one in made], SESSIONS, TRAININGS)
    for row in rows:
        if row["position"] == 0:
            assert row["step"] is row["gain"] is row["step_low"] is row["gain_high"] is None
            continue
        assert row["step_low"] == pytest.approx(0.01)
        assert row["step_high"] == pytest.approx(0.01)
        assert [row["gain_low"], row["gain_high"]] == pytest.approx([0.01 * row["position"]] * 2)
        assert row["high"] - row["low"] > 0.15
    assert "own sentiment adds 0.0100 [0.0100, 0.0100] to the AUC of long" in ablation.conclusion(rows)


def test_joint_bounds_are_wider_than_those_of_one() -> None:
    rng = np.random.default_rng(1)
    made = estimates(lambda *_: 0.5, lambda *_: 0.5 + rng.normal(0, 0.01, 2000))
    rows = ladder_rows([dataclasses.replace(one, seed_sd=0.0) for one in made], 100_000, TRAININGS)
    for row in rows:
        if row["measure"] in ablation.JUDGED and row["position"]:
            assert row["step_joint_low"] < row["step_low"] < 0 < row["step_high"] < row["step_joint_high"]
            # 12 differences of two: 2.87 of their standard deviations.
            assert row["step_joint_high"] == pytest.approx(2.865 * 0.01 * np.sqrt(2), rel=0.05)
    assert all(row["joint_low"] is None for row in rows if row["measure"] == "sharpe")


def test_joint_bounds_allow_for_other_seeds_and_for_few_blocks() -> None:
    """By hand: five blocks, and no difference between the seeds; then seeds that differ and resamples that do not."""
    draws = np.random.default_rng(6).normal(0.5, 0.01, 500)
    same = [dataclasses.replace(one, seed_sd=0.0) for one in estimates(lambda *_: 0.5, lambda *_: draws)]
    (row, *_) = ladder_rows(same, 119, TRAININGS)
    reach = stats.t.ppf(1 - 0.05 / 2 / 16, 4) * draws.std() * np.sqrt(5 / 4)
    assert [row["joint_low"], row["joint_high"]] == pytest.approx([0.5 - reach, 0.5 + reach])
    still = estimates(lambda *_: 0.5, lambda *_: np.full(500, 0.5))
    row = next(row for row in ladder_rows(still, 119, 5) if row["position"] == 1)
    # Two rungs of five seeds each, all with a standard deviation of 0.01.
    reach = stats.t.ppf(1 - 0.05 / 2 / 12, 8) * np.sqrt((0.01**2 + 0.01**2) / 5)
    assert row["step_joint_high"] == pytest.approx(reach)
    assert row["gain_joint_low"] == pytest.approx(-reach)
    assert row["step_high"] == pytest.approx(0.0)


def test_a_student_interval_of_few_blocks_holds_as_often_as_it_says() -> None:
    """Sessions that depend on the four before: the resamples' own quantiles miss from below more than three times too often."""
    rng = np.random.default_rng(7)
    sessions, worlds = 80, 2000
    noise = rng.normal(size=(worlds, sessions + 4))
    values = sum(noise[:, i : i + sessions] for i in range(5)) / 5
    weights = evaluation.session_resamples(np.arange(sessions), 0, 200)
    draws = (weights @ values.T / weights.sum(axis=1)[:, None]).T
    means = values.mean(axis=1)
    student = np.array([evaluation.student_reach(one, sessions // 20) for one in draws])
    assert np.mean(means - student > 0) < 0.035
    assert np.mean(np.quantile(draws, 0.025, axis=1) > 0) > 0.08


def test_what_cannot_be_known_has_no_reach() -> None:
    draws = np.linspace(0, 1, 100)
    assert np.isnan(evaluation.student_reach(draws, 1))
    assert np.isnan(evaluation.student_reach(draws, 9, seed_sds=[0.1], seeds=1))
    assert np.isnan(evaluation.student_reach(np.where(draws < 0.06, np.nan, draws), 9))
    assert evaluation.student_reach(np.where(draws < 0.05, np.nan, draws), 9) > 0
    assert evaluation.student_reach(np.zeros(50), 9, seed_sds=[0.0], seeds=3) == 0


def test_twelve_gaussian_differences_hold_together_where_single_intervals_do_not() -> None:
    """Bonferroni alone: levels are drawn from the very distribution that the resamples have, of many sessions and equal seeds."""
    rng = np.random.default_rng(2)
    believed, single = 0, 0
    worlds = 400
    for _ in range(worlds):
        level = {key: rng.normal(0.5, 0.01) for key in [(r, m, s) for r in RUNGS for m in ("auc", "brier_gain", "sharpe") for s in ("long", "short", "both")]}  # fmt: skip
        made = estimates(lambda *key: level[key], lambda *key: level[key] + rng.normal(0, 0.01, 100))  # noqa: B023
        rows = ladder_rows([dataclasses.replace(one, seed_sd=0.0) for one in made], 100_000, TRAININGS)
        believed += " adds 0." in ablation.conclusion(rows)
        single += any(row["step_low"] is not None and row["step_low"] > 0 for row in rows)
    assert believed / worlds < 0.05
    assert single / worlds > 0.25


def test_a_step_down_is_said_and_what_is_undefined_is_left_out() -> None:
    nothing = np.full(50, np.nan)
    made = estimates(
        lambda r, *_: 0.4 if r == "industry" else 0.5,
        lambda r, *_: np.full(50, 0.4 if r == "industry" else 0.5),
    )
    made = [
        dataclasses.replace(one, value=np.nan, estimated=np.nan, draws=nothing)
        if one.side == "short"
        else dataclasses.replace(one, seed_sd=0.0)
        for one in made
    ]
    rows = ladder_rows(made, SESSIONS, TRAININGS)
    said = ablation.conclusion(rows)
    assert "Beyond doubt, industry takes 0.1000 [0.1000, 0.1000] from the AUC of long;" in said
    assert "of short" not in said
    assert all(row["value"] is row["low"] is row["step"] is None for row in rows if row["side"] == "short")
    assert {row["side"] for row in ablation.suspicious_rows(rows, -1.0)} == {"long"}


@pytest.mark.parametrize(("undefined", "has_interval"), [(5, True), (6, False)])
def test_where_many_resamples_are_undefined_there_is_no_interval(undefined: int, has_interval: bool) -> None:
    draws = np.r_[np.full(undefined, np.nan), np.linspace(0.4, 0.6, 100 - undefined)]
    for row in ladder_rows(estimates(lambda *_: 0.5, lambda *_: draws), SESSIONS, TRAININGS):
        assert row["value"] == 0.5
        assert (row["low"] is not None) == (row["high"] is not None) == has_interval
        assert (row["joint_low"] is not None) == (has_interval and row["measure"] in ablation.JUDGED)


def test_the_rows_are_those_of_the_table() -> None:
    rows = ladder_rows(estimates(lambda *_: 0.5, lambda *_: np.array([0.4, 0.6])), SESSIONS, TRAININGS)
    shared = {"session", "available_at", "first_session", "rows", "news_source", "hindsight_share"}
    assert set(rows[0]) | shared == {column.name for column in tables.SENTIMENT_ABLATION.columns}
    keys = [tuple(row[name] for name in tables.SENTIMENT_ABLATION.key) for row in rows]
    assert len(set(keys)) == len(keys)


# -- the strategy ------------------------------------------------------------------------------------------------------

# Of basis points: whether two returns differ is no matter of the last bits.
RETURNS = st.lists(st.integers(-2000, 2000), min_size=3, max_size=60).map(lambda bps: np.array(bps) / 1e4)


@settings(deadline=None, max_examples=100)
@given(returns=RETURNS, seed=st.integers(0, 1000))
def test_draws_are_the_statistics_of_resampled_returns(returns: np.ndarray, seed: int) -> None:
    taken = np.random.default_rng(seed).integers(0, len(returns), len(returns))
    weights = np.bincount(taken, minlength=len(returns)).astype(float)[None]
    drawn = returns[taken]
    total = ablation.total_return_draws(returns, weights)[0]
    assert total == pytest.approx(np.prod(1 + drawn) - 1, rel=1e-9, abs=1e-12)
    (sharpe,) = ablation.sharpe_draws(returns, weights)
    assert sharpe == pytest.approx(statistics.sharpe_ratio(drawn), rel=1e-9, abs=1e-12, nan_ok=True)


def test_after_a_ruin_the_return_of_a_resample_is_undefined() -> None:
    draws = ablation.total_return_draws(np.array([0.1, -1.0, 0.0]), np.ones((4, 3)))
    assert np.isnan(draws).all()


@pytest.fixture(scope="module")
def series(sample_bars: pa.Table) -> dict[str, BarSeries]:
    return {name: bars for name, bars in bar_series(sample_bars).items() if name in ("IBM", "MSFT")}


def strategy_rows(series: dict[str, BarSeries], level: float, seeds: int = 2) -> list[dict[str, Any]]:
    window = Window(dt.date(2011, 1, 3), dt.date(2011, 12, 30))
    symbols = np.concatenate([[name] * len(bars) for name, bars in series.items()])
    sessions = np.concatenate([bars.sessions for bars in series.values()])
    rng = np.random.default_rng(3)
    said = {}
    for rung in RUNGS:
        said[rung] = rng.uniform(level - 0.1, level + 0.1, (seeds, len(sessions), 2))
    found = ablation.strategy_estimates(
        said,
        symbols,
        sessions,
        make_strategy("mlp_enhanced_long_short"),
        series,
        window,
        Costs(),
        Account(),
        0,
        50,
    )
    again = ablation.strategy_estimates(
        said,
        symbols,
        sessions,
        make_strategy("mlp_enhanced_long_short"),
        series,
        window,
        Costs(),
        Account(),
        0,
        50,
    )
    assert ladder_rows(found, SESSIONS, seeds) == ladder_rows(again, SESSIONS, seeds)
    # By hand: the ensemble of the last rung.
    mean, at = said["industry"].mean(axis=0), np.cumsum([0, *(len(bars) for bars in series.values())])
    placed = {name: mean[at[i] : at[i + 1]] for i, name in enumerate(series)}
    run = run_backtest(make_strategy("mlp_enhanced_long_short"), series, window, placed, Costs(), Account())
    (mine,) = [e for e in found if (e.rung, e.measure) == ("industry", "total_return")]
    assert mine.ensemble == statistics.total_return(run.equity)
    (counted,) = [e for e in found if (e.rung, e.measure) == ("industry", "trades")]
    assert counted.ensemble == run.trades.num_rows
    return ladder_rows(found, SESSIONS, seeds)


def test_what_a_strategy_earns_is_what_the_engine_says(series: dict[str, BarSeries]) -> None:
    rows = strategy_rows(series, level=0.42)
    for row in rows:
        assert row["side"] == "both"
        if row["measure"] == "trades":
            assert row["low"] is row["joint_low"] is None
            assert row["ensemble"] > 10
        else:
            assert row["low"] < row["ensemble"] < row["high"]
        assert (row["step"] is None) == (row["position"] == 0)
    sharpe = [row for row in rows if row["measure"] == "sharpe"]
    assert len({row["ensemble"] for row in sharpe}) == len(RUNGS)
    assert all(row["seed_sd"] > 0 for row in sharpe)


def test_a_strategy_that_never_trades_has_no_sharpe_ratio_and_no_interval(
    series: dict[str, BarSeries],
) -> None:
    for row in strategy_rows(series, level=0.1, seeds=1):
        assert row["seed_sd"] is None
        if row["measure"] == "sharpe":
            assert row["value"] is row["ensemble"] is row["low"] is row["step"] is None
        elif row["measure"] == "trades":
            assert row["value"] == row["ensemble"] == 0
        else:
            assert row["value"] == row["ensemble"] == row["low"] == row["high"] == 0


def test_the_figure_draws_also_where_a_side_is_undefined() -> None:
    rng = np.random.default_rng(4)
    made = estimates(lambda *_: 0.5, lambda *_: 0.5 + rng.normal(0, 0.01, 100))
    rows = ladder_rows(made, SESSIONS, TRAININGS)
    figure = plots.ablation_figure(rows)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(RUNGS)
    assert render(figure).startswith("data:image/png")
    made = estimates(lambda *_: 0.5, lambda _, __, side: np.full(9, np.nan if side == "short" else 0.5))
    rows = ladder_rows(made, SESSIONS, TRAININGS)
    assert render(plots.ablation_figure(rows)).startswith("data:image/png")


def test_no_bar_is_drawn_backwards_where_an_interval_does_not_hold_its_estimate() -> None:
    rows = ladder_rows(
        estimates(lambda r, *_: 0.6 if r == "industry" else 0.5, lambda *_: np.linspace(0.49, 0.51, 50)),
        SESSIONS,
        TRAININGS,
    )
    assert any(row["step"] is not None and row["step"] > row["step_high"] for row in rows)
    shown = ablation_plot(rows)
    assert isinstance(shown, Plot)
    for trace in shown.figure.data:
        assert min(*trace.error_x.array, *trace.error_x.arrayminus) >= 0
