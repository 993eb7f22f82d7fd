"""Simulated days: closed forms of the variance, shapes that are asked for, and real minute bars beside them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quant_assets.posterior.priors import HestonParameters
from quant_assets.simulation import plots
from quant_assets.simulation.intraday import (
    SESSION_YEARS,
    IntradayDays,
    IntradayModel,
    UShape,
    calibrate,
    expected_variance,
    iterate_days,
    join_days,
    real_days,
    simulate_days,
)

MODEL = IntradayModel()
DAYS = 5_000
SHARE = HestonParameters(mu=0.1, kappa=5.0, theta=0.03, sigma=0.5, rho=-0.6, v0=MODEL.reference_volatility**2)
REAL_BARS = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "files" / "minute_bars" / "AAPL_2014-06.parquet"
)
needs_real_bars = pytest.mark.skipif(not REAL_BARS.is_file(), reason="no real minute bars in ../shared/data")


@pytest.fixture(scope="module")
def days() -> IntradayDays:
    """Five thousand days under one set of parameters."""
    return simulate_days(SHARE, days_per_draw=DAYS, seed=3, mid0=100.0)


@pytest.fixture(scope="module")
def quiet() -> IntradayDays:
    """Days without noise in volume and spread, under 40 draws whose variances are far apart and stay where they are."""
    model = replace(MODEL, volume_log_sd=0.0, day_volume_log_sd=0.0, spread_log_sd=0.0, tick_dollars=1e-6)
    draws = several(40)._replace(v0=np.linspace(0.0004, 0.4, 40), kappa=np.zeros(40), sigma=np.zeros(40))
    return simulate_days(draws, days_per_draw=2, seed=1, mid0=500.0, model=model)


def several(draws: int) -> HestonParameters:
    """Different parameters for every draw."""
    rng = np.random.default_rng(5)
    low, high = [-0.1, 1.0, 0.01, 0.1, -0.9, 0.01], [0.2, 9.0, 0.1, 0.8, 0.3, 0.1]
    return HestonParameters(*rng.uniform(low, high, (draws, 6)).T)


def columns(days: IntradayDays) -> dict[str, np.ndarray]:
    """Every array by name."""
    return {
        **{k: v for k, v in days._asdict().items() if k != "parameters"},
        **days.parameters._asdict(),
    }


def assert_same_bits(one: IntradayDays, other: IntradayDays) -> None:
    for (name, a), b in zip(columns(one).items(), columns(other).values(), strict=True):
        assert a.dtype == b.dtype, name
        assert np.array_equal(a, b), name


def rows(days: IntradayDays, select: Any) -> IntradayDays:
    return IntradayDays(
        *(column[select] for column in days[:-1]), HestonParameters(*(p[select] for p in days.parameters))
    )


def standard_errors(sample: np.ndarray, expected: float) -> float:
    """How far the mean lies from what it should be."""
    return abs(float(sample.mean()) - expected) / (float(sample.std()) / math.sqrt(sample.size))


def half_hours(values: np.ndarray) -> np.ndarray:
    """Means of half hours, shape (days, 13)."""
    return np.nanmean(values.reshape(len(values), 13, 30), axis=2)


def bars_of(days: IntradayDays) -> pa.Table:
    """Simulated days as minute bars that a vendor might send."""
    start = np.datetime64("2024-01-02T14:30", "us") + np.arange(days.days) * np.timedelta64(1, "D")
    ts = (start[:, None] + np.arange(days.minutes) * np.timedelta64(1, "m")).ravel()
    before, after = days.mid[:, :-1].ravel(), days.mid[:, 1:].ravel()
    spread = days.spread[:, 1:].ravel()
    return pa.table(
        {
            "symbol": ["X"] * len(ts),
            "ts": pa.array(ts, pa.timestamp("us", "UTC")),
            "open": before,
            "high": np.maximum(before, after),
            "low": np.minimum(before, after),
            "close": after,
            "volume": days.volume_shares.ravel().astype(float),
            "bid": after - spread / 2,
            "ask": after + spread / 2,
        }
    )


# ---------------------------------------------------------------------------- mid and variance


def test_a_day_has_the_variance_of_the_posterior(days: IntradayDays) -> None:
    t = np.linspace(0, SESSION_YEARS, 391)
    v = SHARE.theta + (SHARE.v0 - SHARE.theta) * np.exp(-SHARE.kappa * t)
    expected = float((MODEL.variance_shape.factors(390) * (v[1:] + v[:-1]) / 2).mean())
    assert expected_variance(MODEL, SHARE) == pytest.approx(expected)
    # v stays near v_T within a day, and a U-shape of mean 1 moves the variance of the day by next to nothing.
    assert expected == pytest.approx(SHARE.v0, rel=0.01)
    assert standard_errors(days.variance.mean(axis=1), expected) < 3.5

    returns = np.log(days.mid[:, -1] / days.mid[:, 0])
    assert standard_errors((returns - returns.mean()) ** 2, expected * SESSION_YEARS) < 3.5
    realized = (np.diff(np.log(days.mid), axis=1) ** 2).sum(axis=1)
    assert standard_errors(realized, expected * SESSION_YEARS) < 3.5


def test_the_mid_grows_at_mu(days: IntradayDays) -> None:
    assert (days.mid[:, 0] == 100).all()
    assert standard_errors(days.mid[:, -1], 100 * math.exp(SHARE.mu * SESSION_YEARS)) < 3.5
    large = simulate_days(SHARE._replace(mu=50.0), days_per_draw=DAYS, seed=3, mid0=100.0)
    assert standard_errors(large.mid[:, -1], 100 * math.exp(50 * SESSION_YEARS)) < 3.5


def test_returns_have_the_shape_of_the_variance(days: IntradayDays) -> None:
    squares = half_hours(np.diff(np.log(days.mid), axis=1) ** 2)
    shape = half_hours(MODEL.variance_shape.factors(390)[None])[0]
    for i in range(13):
        assert standard_errors(squares[:, i], shape[i] * SHARE.v0 * SESSION_YEARS / 390) < 4.5
    assert shape[0] > 2.5
    assert shape[-1] > shape[6]


def test_the_leverage_effect_survives_the_shape(days: IntradayDays) -> None:
    """The correlation of returns and changes of variance is rho, minute by minute."""
    heston = days.variance / MODEL.variance_shape.factors(390)
    returns = np.diff(np.log(days.mid), axis=1) / np.sqrt(days.variance)
    # Means of two ends move by half of this minute's shock and half of the next one's.
    moves = heston[:, 2:] - heston[:, :-2]
    found = np.corrcoef(returns[:, 1:-1].ravel(), moves.ravel())[0, 1]
    assert found == pytest.approx(SHARE.rho / math.sqrt(1.5), abs=0.02)


# ---------------------------------------------------------------------------- volume


def test_volume_is_what_was_asked_for(days: IntradayDays) -> None:
    """Within 1 %: elasticity times a variance that itself varies."""
    totals = days.volume_shares.sum(axis=1)
    error = totals.std() / math.sqrt(DAYS)
    assert abs(totals.mean() - MODEL.mean_volume_shares) < 3 * error + 0.01 * MODEL.mean_volume_shares
    assert days.expected_volume_shares.sum(axis=1) == pytest.approx(MODEL.mean_volume_shares)
    # A day's noise, and what is left of that of its minutes.
    assert np.log(totals).std() == pytest.approx(MODEL.day_volume_log_sd, rel=0.15)


def test_volume_is_a_u(days: IntradayDays) -> None:
    profile = half_hours(days.volume_shares.astype(float)).mean(axis=0)
    assert profile[0] > 2.5 * profile[6]
    assert profile[-1] > 1.5 * profile[6]
    relative = days.volume_shares / days.expected_volume_shares
    assert half_hours(relative).mean(axis=0) == pytest.approx(1.0, abs=0.02)
    noise = np.log(relative)
    assert noise.std() == pytest.approx(math.hypot(MODEL.volume_log_sd, MODEL.day_volume_log_sd), rel=0.05)


def test_noise_of_volume_lasts(days: IntradayDays) -> None:
    noise = np.log(days.volume_shares / days.expected_volume_shares)
    noise -= noise.mean(axis=1, keepdims=True)
    for lag in (1, 5, 10):
        found = (noise[:, lag:] * noise[:, :-lag]).mean() / noise.var()
        assert found == pytest.approx(MODEL.volume_lasting_share * MODEL.volume_persistence**lag, abs=0.05)


def test_volume_follows_volatility(quiet: IntradayDays) -> None:
    totals = quiet.volume_shares.sum(axis=1)
    assert np.polyfit(np.log(np.sqrt(quiet.parameters.v0)), np.log(totals), 1)[0] == pytest.approx(
        MODEL.volume_elasticity, abs=0.001
    )


# ---------------------------------------------------------------------------- spread


def test_the_spread_is_whole_ticks_and_at_least_one() -> None:
    cheap = simulate_days(several(40), days_per_draw=2, seed=1, mid0=5.0)
    for some in (cheap, simulate_days(several(40), days_per_draw=2, seed=1, mid0=700.0)):
        ticks = some.spread / 0.01
        assert some.spread.min() >= 0.01
        assert np.abs(ticks - np.rint(ticks)).max() < 1e-9
    assert (cheap.spread == 0.01).mean() > 0.95  # 1.5 basis points of 5 dollars are far below a cent


def test_the_spread_widens_with_volatility(quiet: IntradayDays) -> None:
    """Draws are in order of their variance."""
    level = (quiet.spread / quiet.mid)[::2].mean(axis=1)
    assert (np.diff(level) > 0).all()
    assert level[-1] > 3 * level[0]
    # In the same day: the open is the wildest time.
    assert (quiet.spread[40:, 1:31].mean(axis=1) > quiet.spread[40:, 180:211].mean(axis=1)).all()


def test_the_spread_widens_where_volume_is_thin(days: IntradayDays) -> None:
    variance = np.full(6, 0.02)
    thinness = np.array([0.1, 0.5, 1.0, 2.0, 10.0, 100.0])
    assert (np.diff(MODEL.spread_dollars(np.array(1000.0), variance, thinness)) > 0).all()
    surprise = np.log(days.volume_shares / days.expected_volume_shares)
    bps = np.log(days.spread[:, 1:] / days.mid[:, 1:])
    flat = bps - bps.mean(axis=0)
    thin, heavy = surprise < -0.5, surprise > 0.5
    assert flat[thin].mean() > flat[heavy].mean() + 0.05


def test_a_spread_of_one_tick_stays_one_without_volatility() -> None:
    still = simulate_days(HestonParameters(*np.zeros((6, 40))), days_per_draw=2, seed=1, mid0=20.0)
    assert still.mid == pytest.approx(20.0, abs=1e-7)
    assert still.variance.max() < 1e-15
    assert np.isfinite(still.spread).all()
    assert still.volume_shares.min() >= 1


# ---------------------------------------------------------------------------- arrays


def test_shapes_types_and_ranges(days: IntradayDays) -> None:
    assert days.days == DAYS
    assert days.minutes == 390
    for name in ("mid", "spread"):
        assert getattr(days, name).shape == (DAYS, 391)
    for name in ("volume_shares", "expected_volume_shares", "variance"):
        assert getattr(days, name).shape == (DAYS, 390)
    assert days.volume_shares.dtype == np.int64
    assert days.draw_id.dtype == np.int32
    for name, values in columns(days).items():
        assert np.isfinite(values).all(), name
        if name in ("mid", "spread", "volume_shares", "expected_volume_shares", "variance"):
            assert values.min() > 0, name


def test_every_day_is_under_its_own_draw() -> None:
    rng = np.random.default_rng(1)
    draws = several(40)._replace(v0=rng.permutation(np.linspace(0.01, 0.4, 40)), sigma=np.full(40, 0.01))
    names, mids = rng.permutation(40) * 7, np.arange(40) * 100.0 + 50
    days = simulate_days(draws, days_per_draw=2, seed=2, mid0=mids, draw_ids=names)
    assert days.draw_id.tolist() == np.repeat(names, 2).tolist()
    for found, asked in zip(days.parameters, draws, strict=True):
        assert np.array_equal(found, np.repeat(asked, 2))
    assert np.array_equal(days.mid[:, 0], np.repeat(mids, 2))
    opening = days.variance[:, 0] / MODEL.variance_shape.factors(390)[0]
    assert opening == pytest.approx(np.repeat(draws.v0, 2), rel=0.02)
    assert len(np.unique(days.mid[:, -1])) == 80


def test_same_seed_same_bits_and_another_seed_others() -> None:
    draws = several(40)
    one = simulate_days(draws, days_per_draw=2, seed=7, mid0=80.0)
    assert_same_bits(one, simulate_days(draws, days_per_draw=2, seed=7, mid0=80.0))
    other = simulate_days(draws, days_per_draw=2, seed=8, mid0=80.0)
    for name in ("mid", "spread", "volume_shares", "variance"):
        assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_bits_do_not_depend_on_chunks_nor_on_how_many_are_asked_for() -> None:
    draws = several(23)
    whole = simulate_days(draws, days_per_draw=4, seed=2**63 + 5, mid0=80.0)
    chunks = list(
        iterate_days(draws, days_per_draw=4, seed=2**63 + 5, mid0=80.0, memory_bytes=5 * 4 * 26 * 3200)
    )
    assert len(chunks) == 5
    assert_same_bits(join_days(chunks), whole)

    fewer = HestonParameters(*(values[:10] for values in draws))
    assert_same_bits(simulate_days(fewer, days_per_draw=4, seed=2**63 + 5, mid0=80.0), rows(whole, slice(40)))
    less = simulate_days(draws, days_per_draw=2, seed=2**63 + 5, mid0=80.0)
    assert_same_bits(less, rows(whole, np.arange(92) % 4 < 2))


def test_noise_is_independent_of_the_draw_and_of_the_path(days: IntradayDays) -> None:
    some = simulate_days(several(DAYS // 10), days_per_draw=10, seed=3, mid0=100.0)
    totals = np.log(some.volume_shares.sum(axis=1) / np.sqrt(some.parameters.v0) ** MODEL.volume_elasticity)
    for apart in (1, 10):  # days of one draw, and of two
        assert abs(np.corrcoef(totals[apart:], totals[:-apart])[0, 1]) < 0.06
    returns = np.diff(np.log(days.mid), axis=1) / np.sqrt(days.variance)
    noise = np.log(days.volume_shares / days.expected_volume_shares)
    # The elasticity and rho: a falling price comes with a little more variance.
    assert abs(np.corrcoef(returns.ravel(), noise.ravel())[0, 1]) < 0.03


def test_other_sessions() -> None:
    model = replace(MODEL, minutes=78, volume_shape=UShape(0.0, 1.0, 0.0, 1.0))
    days = simulate_days(several(4), days_per_draw=2, seed=1, mid0=50.0, model=model)
    assert days.mid.shape == (8, 79)
    assert expected_variance(model, days.parameters).shape == (8,)
    assert days.expected_volume_shares == pytest.approx(MODEL.mean_volume_shares / 78)


def test_a_model_survives_its_dictionary() -> None:
    model = replace(MODEL, tick_dollars=0.05, volume_shape=UShape(1.0, 2.0, 3.0, 4.0))
    assert IntradayModel.from_dict(model.as_dict()) == model


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": several(3)._replace(v0=np.array([0.1, np.nan, 0.1]))}, "v0 = nan in draw 1"),
        ({"draws": several(3)._replace(rho=np.array([0.1, -1.2, 0.1]))}, "rho = -1.2 in draw 1"),
        ({"draws": several(3)._replace(theta=np.ones(4))}, "shapes"),
        ({"days_per_draw": 0}, "paths_per_draw = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"mid0": 0.0}, "mid0 = 0.0"),
        ({"mid0": np.array([10.0, 20.0])}, r"mid0 has shape \(2,\)"),
        ({"mid0": np.array([10.0, np.nan, 3.0])}, "mid0 = nan"),
        ({"draw_ids": np.array([1.0, 2.0, 3.0])}, "3 whole numbers"),
        ({"draw_ids": np.array([1, -2, 3])}, "draw_ids lie from -2"),
        ({"memory_bytes": 1000}, "memory_bytes = 1000 holds no draw"),
    ],
)
def test_bad_arguments_say_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"draws": several(3), "days_per_draw": 1, "seed": 1, "mid0": 10.0}
    with pytest.raises(ValueError, match=message):
        iterate_days(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 1}, "minutes = 1"),
        ({"mean_volume_shares": -5.0}, "mean_volume_shares = -5.0"),
        ({"mean_volume_shares": 400.0}, "fewer than 10 shares a minute"),
        ({"spread_bps": math.nan}, "spread_bps = nan"),
        ({"tick_dollars": 0.0}, "tick_dollars = 0.0"),
        ({"volume_log_sd": -0.1}, "volume_log_sd = -0.1"),
        ({"volume_persistence": 1.0}, "volume_persistence = 1.0"),
        ({"volume_lasting_share": 1.1}, "volume_lasting_share = 1.1"),
    ],
)
def test_bad_models_say_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MODEL, **changes)


def test_bad_shapes_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="open_excess = -1"):
        UShape(-1.0, 10.0, 1.0, 10.0)
    with pytest.raises(ValueError, match="close_minutes = 0"):
        UShape(1.0, 10.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="no days"):
        join_days([])


# ---------------------------------------------------------------------------- real minute bars


@pytest.fixture(scope="module")
def bars() -> pa.Table:
    """Two simulated days as minute bars."""
    return bars_of(simulate_days(SHARE, days_per_draw=2, seed=4, mid0=300.0))


def test_calibration_finds_the_model_again() -> None:
    truth = IntradayModel(
        mean_volume_shares=2e6,
        volume_shape=UShape(3.0, 40.0, 2.0, 15.0),
        volume_log_sd=0.4,
        volume_lasting_share=0.6,
        volume_persistence=0.8,
        day_volume_log_sd=0.3,
        reference_volatility=0.3,
        variance_shape=UShape(4.0, 25.0, 1.0, 20.0),
        spread_bps=4.0,
        spread_volatility_exponent=1.0,
        spread_volume_exponent=0.3,
        spread_log_sd=0.3,
    )
    p = SHARE._replace(v0=0.09, sigma=0.3)
    found = calibrate(bars_of(simulate_days(p, days_per_draw=25, seed=6, mid0=100.0, model=truth)))
    assert found.mean_volume_shares == pytest.approx(truth.mean_volume_shares, rel=0.2)
    for name in ("volume_shape", "variance_shape"):
        factors = (getattr(model, name).factors(390) for model in (found, truth))
        assert np.log(next(factors) / next(factors)) == pytest.approx(np.zeros(390), abs=0.2)
    assert found.volume_log_sd == pytest.approx(truth.volume_log_sd, rel=0.1)
    assert found.volume_lasting_share == pytest.approx(truth.volume_lasting_share, abs=0.1)
    assert found.volume_persistence == pytest.approx(truth.volume_persistence, abs=0.05)
    assert found.day_volume_log_sd == pytest.approx(truth.day_volume_log_sd, rel=0.5)
    assert found.reference_volatility == pytest.approx(truth.reference_volatility, rel=0.05)
    assert found.spread_bps == pytest.approx(truth.spread_bps, rel=0.05)
    assert found.spread_volatility_exponent == pytest.approx(1.0, abs=0.15)
    assert found.spread_volume_exponent == pytest.approx(0.3, abs=0.05)
    assert found.spread_log_sd == pytest.approx(truth.spread_log_sd, rel=0.1)


def test_calibration_sees_through_the_tick() -> None:
    """Six spreads in ten are one cent wide, which says that they are at most that."""
    days = simulate_days(SHARE, days_per_draw=10, seed=6, mid0=85.0)
    assert 0.5 < (days.spread == 0.01).mean() < 0.8
    found = calibrate(bars_of(days))
    assert found.spread_bps == pytest.approx(MODEL.spread_bps, rel=0.1)
    assert found.spread_log_sd == pytest.approx(MODEL.spread_log_sd, rel=0.1)


def test_one_day_is_enough(bars: pa.Table) -> None:
    found = calibrate(bars.slice(0, 390))
    assert found.day_volume_log_sd == MODEL.day_volume_log_sd
    assert 0.1 < found.reference_volatility < 0.25
    assert 1.0 < found.spread_bps < 2.0
    # And it can be simulated from.
    simulate_days(several(40), days_per_draw=2, seed=1, mid0=300.0, model=found)


def test_an_auction_and_a_burst_bend_little(bars: pa.Table) -> None:
    volume = bars["volume"].to_numpy().copy()
    volume[[389, 779]] *= 50
    volume[200:204] *= 20
    other = calibrate(bars.set_column(6, "volume", pa.array(volume)))
    plain = calibrate(bars)
    ratio = other.volume_shape.factors(390) / plain.volume_shape.factors(390)
    assert np.abs(np.log(ratio)).max() < 0.1


def test_bars_by_day(bars: pa.Table) -> None:
    extended = pa.concat_tables(
        [
            bars.take([0]).set_column(
                1, "ts", pa.array([1704186000000000], pa.timestamp("us", "UTC"))
            ),  # 9:00
            bars.slice(0, 100),
            bars.slice(101, 679),
        ]
    )
    real = real_days(extended)
    assert real.sessions.astype(str).tolist() == ["2024-01-02", "2024-01-03"]
    assert np.isnan(real.mid[0, 101])
    assert real.volume_shares[0, 100] == 0
    assert np.isfinite(real.mid[1]).all()
    assert np.isnan(real.spread[:, 0]).all()
    calibrate(extended)


def without(bars: pa.Table, name: str) -> pa.Table:
    return bars.set_column(
        bars.column_names.index(name), name, pa.nulls(bars.num_rows, bars.schema.field(name).type)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.slice(0, 200), "no session of at least 300 minute bars.* has 200"),
        (lambda b: b.slice(0, 0), "no session of at least 300 minute bars.* has 0"),
        (lambda b: b.drop_columns(["volume"]), "lack the column.*volume"),
        (lambda b: b.drop_columns(["bid"]), "0 minutes have trades and a bid.*without quotes"),
        (lambda b: without(b, "ask"), "0 minutes have trades and a bid"),
        (
            lambda b: b.set_column(7, "bid", pa.array(b["ask"].to_numpy() + 1)),
            "0 minutes have trades and a bid",
        ),
        (
            lambda b: pa.concat_tables([b, b.set_column(0, "symbol", pa.array(["Y"] * b.num_rows))]),
            "2 symbols",
        ),
        (lambda b: pa.concat_tables([b, b.slice(0, 1)]), "two bars of one minute"),
        (lambda b: b.set_column(1, "ts", b["ts"].cast(pa.timestamp("us"))), "with a time zone"),
        (lambda b: b.set_column(6, "volume", pa.array(np.zeros(b.num_rows))), "traded in 0 of 390 minutes"),
    ],
)
def test_bars_that_cannot_be_used_say_why(bars: pa.Table, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(change(bars))


@needs_real_bars
def test_real_days_lie_within_the_simulated_ones() -> None:
    """Three real days, under the defaults: volume and spread by half hour in the band of 99 % of days.

    Two half hours of volume (news at midday) of 39 are beyond. The spread is only compared in level.
    """
    real = real_days(pq.read_table(REAL_BARS))
    assert len(real.sessions) == 3
    v0 = MODEL.reference_volatility**2 * np.exp(np.random.default_rng(3).normal(0, 0.3, DAYS // 10))
    days = simulate_days(SHARE._replace(v0=v0), days_per_draw=10, seed=3, mid0=645.0)

    def share(volume: np.ndarray) -> np.ndarray:
        volume = volume.astype(float)
        volume[:, -1] = np.nan  # the closing auction
        mean = half_hours(volume)
        return mean / mean.sum(axis=1, keepdims=True)

    def inside(found: np.ndarray, simulated: np.ndarray) -> np.ndarray:
        low, high = np.quantile(simulated, [0.005, 0.995], axis=0)
        return (found >= low) & (found <= high)

    assert inside(share(real.volume_shares), share(days.volume_shares)).mean() > 0.9
    real_bps, bps = (some.spread[:, 1:] / some.mid[:, 1:] * 1e4 for some in (real, days))
    assert inside(half_hours(real_bps), half_hours(bps)).mean() > 0.9
    assert inside(real_bps.mean(axis=1), bps.mean(axis=1)).all()
    # Nine tenths of quotes: neither tighter nor wider than what is real.
    for level in (0.05, 0.95):
        assert np.quantile(bps, level) == pytest.approx(np.quantile(real_bps, level), rel=0.35)


@needs_real_bars
def test_calibration_of_real_days() -> None:
    found = calibrate(pq.read_table(REAL_BARS).slice(0, 780))
    assert 9e6 < found.mean_volume_shares < 12e6
    assert 0.13 < found.reference_volatility < 0.17
    assert 1.3 < found.spread_bps < 1.8
    volume, variance = found.volume_shape.factors(390), found.variance_shape.factors(390)
    assert volume[:30].mean() > 2 > 1 > volume[180:210].mean()
    assert variance[:30].mean() > 2 > 1 > variance[180:210].mean()


# ---------------------------------------------------------------------------- figures


def test_figures_with_and_without_real_days(days: IntradayDays, bars: pa.Table) -> None:
    some, real = rows(days, slice(50)), real_days(bars)
    assert len(plots.fan_figure(some).axes) == 1
    assert len(plots.day_figure(some, 3).axes) == 3
    assert len(plots.day_figure(some, 3, real, 1).axes) == 6
    for figure in (plots.profile_figure(some), plots.profile_figure(some, real)):
        assert len(figure.axes) == 2
    assert len(plots.volatility_figure(some).axes) == 2
    labels = [line.get_label() for line in plots.profile_figure(some, real).axes[0].lines]
    assert "real, 2024-01-02" in labels


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_the_check_of_the_asset_notices_days_that_are_too_wild(factor: float) -> None:
    """Positive control of `days_follow_the_posterior`: a fifth more variance than the draws imply."""
    from quant_assets.simulation.assets import _Judged, _NotThePosterior

    draws = HestonParameters(*(np.full(400, value) for value in (0.05, 5.0, 0.04, 0.3, -0.5, 0.04)))
    model = IntradayModel()
    days = simulate_days(draws, days_per_draw=1, seed=1, mid0=100.0, model=model)
    judged = _Judged(model, 400)
    chunks = iter([days._replace(variance=factor * days.variance)])
    if factor == 1.0:
        assert sum(chunk.days for chunk in judged.through(chunks)) == 400
        assert judged.result().passed
    else:
        with pytest.raises(_NotThePosterior, match=r"mean variance is .* standard errors"):
            list(judged.through(chunks))
        assert not judged.result().passed
