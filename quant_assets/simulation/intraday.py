"""Days of one minute bars drawn from the posterior: mid, spread, volume and variance of sessions that might come next.

Belongs here: what turns a Heston path of minutes into a day (the shapes of volume and variance over the session, noise,
the spread), and the estimate of those shapes from real minute bars. Does not belong here: the Heston scheme
(`paths.py`), files (`transitions.py`), what trades on a day (`environments`). JAX is imported by `paths`, when it runs.

A day starts at v_T, the last variance of its own posterior draw, and lasts `minutes`. Time: *instants* 0 ... minutes are
the open and the ends of the minutes; *minute* k lies between the instants k and k + 1. So `mid[:, k + 1]` is what a
minute bar calls the quote at its end, and whoever decides at the instant k knows mid and spread up to k, and volume
and variance of the minutes before k.

With v the Heston variance, f the shape of the variance over the day (mean 1), g that of the volume, E the mean daily
volume, sigma_ref the volatility at which the means hold, N0, N and M independent normals (N partly lasting from minute to minute):

    d ln S      = (mu - f v / 2) dt + sqrt(f v) dW1
    volume      = E g / minutes (sqrt(v) / sigma_ref)^elasticity  exp(s0 N0 - s0^2 / 2) exp(s N - s^2 / 2)
    spread      = S spread_bps 1e-4 (sqrt(f v) / sigma_ref)^a  thinness^b  exp(m M),   in whole ticks, at least one
    thinness    = exp(-(s0 N0 + s N)): the volume that profile and volatility let expect, over the volume there was

Because f has mean 1, the variance of a day's return stays that of the posterior. All of the variance from close to
close falls into the session: where nights matter, days are a little too wild.

References:
    Andersen and Bollerslev (1997), Intraday periodicity and volatility persistence in financial markets, J. Emp. Finance 4.
    Admati and Pfleiderer (1988), A theory of intraday patterns: volume and price variability, RFS 1.
    Tauchen and Pitts (1983), The price variability-volume relationship on speculative markets, Econometrica 51.
    Parkinson (1980), The extreme value method for estimating the variance of the rate of return, J. Business 53.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from quant_assets.posterior.priors import HestonParameters
from quant_assets.simulation.paths import SESSION_YEARS, iterate_paths

SESSION_MINUTES = 390  # 9:30 to 16:00 in New York
OPEN_MINUTE_OF_DAY = 9 * 60 + 30
# Volatility that spread and volume see is never below this, 1 % a year: the floor of the posterior's model.
VOLATILITY_FLOOR = 0.01
MEMORY_BYTES = 256 * 2**20
# A day in the making takes about this many times what its Heston path takes (measured: 22, and the path itself).
MEMORY_PER_PATH = 26

# What `calibrate` needs to see.
FEWEST_MINUTES = 300  # of a session; a half day has 210
FEWEST_QUOTES = 100  # of all sessions together
FEWEST_DAYS_OF_NOISE = 5  # to tell how daily volumes scatter; fewer keep the default


@dataclass(frozen=True)
class UShape:
    """A factor over the session that falls after the open and rises before the close; its mean over the minutes is 1.

    Proportional to 1 + open_excess exp(-t / open_minutes) + close_excess exp(-(minutes - t) / close_minutes).

    Attributes:
        open_excess, close_excess: height above midday at either end, in units of midday; 0 is flat.
        open_minutes, close_minutes: minutes after which that height has fallen to 37 %.
    """

    open_excess: float
    open_minutes: float
    close_excess: float
    close_minutes: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            lowest = 0.0 if field.name.endswith("excess") else 0.1
            if not (math.isfinite(value) and value >= lowest):
                raise ValueError(f"{field.name} = {value}: it must be a finite number of at least {lowest:g}")

    def factors(self, minutes: int) -> np.ndarray:
        """The factor in the middle of each minute, shape (minutes,); the mean is 1."""
        t = np.arange(minutes) + 0.5
        shape = (
            1
            + self.open_excess * np.exp(-t / self.open_minutes)
            + self.close_excess * np.exp((t - minutes) / self.close_minutes)
        )
        return shape / shape.mean()


@dataclass(frozen=True)
class IntradayModel:
    """How a session of one share looks beyond its Heston path.

    The defaults come from `calibrate` on three days of Apple (5, 6 and 9 June 2014: 390 bars with closing quotes each,
    650 dollars before its split, 93 after it), rounded; where three days cannot tell, from the daily bars of the sample.
    For another share give at least `mean_volume_shares`, `reference_volatility` and `spread_bps`.

    Attributes:
        minutes: length of the session.
        mean_volume_shares: mean volume of a day whose volatility is `reference_volatility`, without the auctions.
            Apple before the split: 10 and 12 million, with a last minute (the closing auction) of 4 and 5 %.
        volume_shape: g. Apple: the first half hour has 16 to 21 % of the volume, one at midday 4 to 5 %.
        volume_log_sd: sd of the log of a minute's volume about its profile, s. Apple: 0.42 to 0.58.
        volume_lasting_share: part of that noise's variance which lasts; the rest is new every minute. Apple: 0.42 to 0.53.
        volume_persistence: correlation of the lasting part from one minute to the next. Apple: 0.74 to 0.89, so a burst
            halves in 5 minutes. Noise of one kind, with its correlation of 0.45, would leave half hours too even.
        day_volume_log_sd: sd of the log of a whole day's volume, s0. Daily bars of AAPL, IBM, MSFT and GOOG, 2000 to 2013,
            scatter by 0.29 to 0.35 about their mean of 21 sessions, of which volatility explains a third.
        volume_elasticity: per cent of volume that come with one per cent of volatility. The same daily bars: 0.5 to 0.6
            by day and 0.6 to 0.8 by week; the longer range says better what the volatility was.
        reference_volatility: volatility per year at which the means hold. Apple in these days: 14, 16 and 20 %.
        variance_shape: f. Apple: the first half hour has 2.8 times the variance of an average one. Apple's variance does
            not rise before its close; that of 5-minute returns of the S&P 500 does (Andersen and Bollerslev 1997).
        spread_bps: median quoted spread at the reference volatility and a volume as expected. Apple: 1.6, 1.5 and 1.1.
        spread_volatility_exponent: a. Apple: 0, 0.9 and 1.1 in the three days; inventory risk lets expect about 1.
        spread_volume_exponent: b. Apple: 0.10 to 0.16.
        spread_log_sd: m, of every instant anew: Apple's correlation from minute to minute is 0.04. Apple: 0.5.
        tick_dollars: the grid of quotes and the least spread; one cent by Regulation NMS.
    """

    minutes: int = SESSION_MINUTES
    mean_volume_shares: float = 10_000_000.0
    volume_shape: UShape = UShape(4.5, 30.0, 4.0, 8.0)
    volume_log_sd: float = 0.55
    volume_lasting_share: float = 0.5
    volume_persistence: float = 0.88
    day_volume_log_sd: float = 0.25
    volume_elasticity: float = 0.7
    reference_volatility: float = 0.16
    variance_shape: UShape = UShape(5.5, 33.0, 0.3, 15.0)
    spread_bps: float = 1.5
    spread_volatility_exponent: float = 0.6
    spread_volume_exponent: float = 0.15
    spread_log_sd: float = 0.5
    tick_dollars: float = 0.01

    def __post_init__(self) -> None:
        if not 2 <= operator.index(self.minutes) <= 24 * 60:
            raise ValueError(f"minutes = {self.minutes}: a session has 2 to 1440 of them")
        for name in ("mean_volume_shares", "reference_volatility", "spread_bps", "tick_dollars"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} = {getattr(self, name)}: it must be a finite number above 0")
        for name in (
            "volume_log_sd",
            "day_volume_log_sd",
            "volume_elasticity",
            "spread_volatility_exponent",
            "spread_volume_exponent",
            "spread_log_sd",
        ):
            if not 0 <= getattr(self, name) <= 5:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be from 0 to 5")
        if not 0 <= self.volume_lasting_share <= 1:
            raise ValueError(f"volume_lasting_share = {self.volume_lasting_share}: it must be from 0 to 1")
        if not 0 <= self.volume_persistence < 1:
            raise ValueError(f"volume_persistence = {self.volume_persistence}: it must be from 0 to below 1")
        if self.mean_volume_shares < 10 * self.minutes:
            raise ValueError(
                f"mean_volume_shares = {self.mean_volume_shares}: fewer than 10 shares a minute make no market of "
                "minutes; take fewer, longer minutes or a share that trades"
            )

    def as_dict(self) -> dict[str, Any]:
        """Names and values, shapes as dictionaries of their own; for metadata."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> IntradayModel:
        """The model that `as_dict` describes."""
        shapes = {name: UShape(**values[name]) for name in ("volume_shape", "variance_shape")}
        return IntradayModel(**{**values, **shapes})

    def expected_volume_shares(self) -> np.ndarray:
        """Mean volume of each minute at the reference volatility, shape (minutes,)."""
        return self.mean_volume_shares / self.minutes * self.volume_shape.factors(self.minutes)

    def spread_dollars(
        self, mid: np.ndarray, variance: np.ndarray, thinness: np.ndarray, noise: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """The quoted spread in dollars, whole ticks and at least one; arguments broadcast.

        Args:
            mid: dollars.
            variance: f v, per year.
            thinness: expected over observed volume; above 1 is thin.
            noise: standard normals.
        """
        relative = np.maximum(np.sqrt(variance), VOLATILITY_FLOOR) / self.reference_volatility
        exact = (
            mid
            * (self.spread_bps * 1e-4)
            * relative**self.spread_volatility_exponent
            * thinness**self.spread_volume_exponent
            * np.exp(self.spread_log_sd * noise)
        )
        return np.maximum(np.rint(exact / self.tick_dollars), 1.0) * self.tick_dollars


class IntradayDays(NamedTuple):
    """Simulated sessions, one per row; float64 unless said otherwise. Days of one draw stand together, in order.

    Attributes:
        draw_id: the posterior draw of each day, int32, shape (days,).
        mid: dollars at the instants, shape (days, minutes + 1); column 0 is the open.
        spread: dollars at the instants, ask - bid, whole ticks, shape (days, minutes + 1).
        volume_shares: whole shares traded within each minute, at least 1, int64, shape (days, minutes).
        expected_volume_shares: the profile: what was expected before the day began, shape (days, minutes).
        variance: f v, mean of each minute, per year, 0 or above, shape (days, minutes); their mean is that of the day.
        parameters: of each day's draw, every field of shape (days,); v0 is the variance at the open.
    """

    draw_id: np.ndarray
    mid: np.ndarray
    spread: np.ndarray
    volume_shares: np.ndarray
    expected_volume_shares: np.ndarray
    variance: np.ndarray
    parameters: HestonParameters

    @property
    def days(self) -> int:
        """Number of days."""
        return len(self.draw_id)

    @property
    def minutes(self) -> int:
        """Minutes of a day."""
        return self.volume_shares.shape[1]


# -- simulation --------------------------------------------------------------------------------------------------------


def simulate_days(
    draws: HestonParameters,
    *,
    days_per_draw: int,
    seed: int,
    mid0: float | np.ndarray,
    model: IntradayModel | None = None,
    draw_ids: np.ndarray | None = None,
) -> IntradayDays:
    """Days for every draw, all in memory: 16 kB a day, twice that while chunks are joined. `iterate_days` bounds that.

    Args:
        draws: each field of shape (draws,), per year; `v0` is the posterior's v_T, where the day starts.
        days_per_draw: independent days of each draw.
        seed: from 0 to 2**64 - 1; the same seed gives the same bits, and more draws or more days of each begin with
            the days of fewer.
        mid0: mid at the open, dollars; one number or one per draw.
        model: the session's shapes; `IntradayModel()` when None.
        draw_ids: what the draws are called in their posterior, whole numbers, shape (draws,); 0, 1, 2, ... when None.

    Raises:
        ValueError: an argument is out of its range or shapes differ; the message names the field and the way out.
    """
    days = list(
        iterate_days(
            draws, days_per_draw=days_per_draw, seed=seed, mid0=mid0, model=model, draw_ids=draw_ids,
            memory_bytes=None,
        )
    )  # fmt: skip
    return join_days(days)


def iterate_days(
    draws: HestonParameters,
    *,
    days_per_draw: int,
    seed: int,
    mid0: float | np.ndarray,
    model: IntradayModel | None = None,
    draw_ids: np.ndarray | None = None,
    memory_bytes: int | None = MEMORY_BYTES,
) -> Iterator[IntradayDays]:
    """The days of `simulate_days` in chunks of draws, in order; joined they are the same bits.

    Args:
        draws, days_per_draw, seed, mid0, model, draw_ids: as for `simulate_days`.
        memory_bytes: what one chunk and the work on it may take; None: `MEMORY_BYTES`, or one draw if that needs more.

    Raises:
        ValueError: as `simulate_days`, at the call and not at the first chunk; or one draw alone needs more memory.
    """
    model = model or IntradayModel()
    first = np.atleast_1d(np.asarray(draws.v0, dtype=np.float64))
    count = max(np.asarray(value).size for value in draws)
    per_draw = operator.index(days_per_draw) * MEMORY_PER_PATH * (8 * (model.minutes + 1) + 64)
    if memory_bytes is None:
        memory_bytes = max(MEMORY_BYTES, per_draw)
    if not memory_bytes >= per_draw:
        raise ValueError(
            f"memory_bytes = {memory_bytes} holds no draw: {days_per_draw} days of {model.minutes} minutes take "
            f"{per_draw} bytes; raise it or simulate fewer days per draw"
        )
    paths = iterate_paths(
        draws,
        paths_per_draw=days_per_draw,
        steps=model.minutes,
        dt_years=SESSION_YEARS / model.minutes,
        seed=seed,
        # At least one draw, of which the paths are padded to whole vectors.
        memory_bytes=max(memory_bytes, per_draw * 5 // 4) // MEMORY_PER_PATH,
    )
    if first.ndim != 1:
        raise ValueError(f"v0 has shape {first.shape}: it must be (draws,)")
    mids = _per_draw("mid0", mid0, count)
    if not (np.isfinite(mids).all() and mids.min() >= 10 * model.tick_dollars):
        raise ValueError(
            f"mid0 = {mids[np.argmin(np.where(np.isfinite(mids), mids, -np.inf))]}: it must be finite and at least "
            f"10 ticks ({10 * model.tick_dollars:g} dollars)"
        )
    ids = np.arange(count, dtype=np.int32) if draw_ids is None else _draw_ids(draw_ids, count)
    parameters = HestonParameters(*(_per_draw(n, v, count) for n, v in draws._asdict().items()))

    def days() -> Iterator[IntradayDays]:
        start = 0
        for chunk in paths:
            size = chunk.log_price.shape[0]
            some = slice(start, start + size)
            yield _days_of(
                model,
                HestonParameters(*(value[some] for value in parameters)),
                chunk.log_price,
                chunk.variance,
                _normals(seed, start, size, days_per_draw, 3 * model.minutes + 2),
                mids[some],
                ids[some],
            )
            start += size

    return days()


def expected_variance(model: IntradayModel, parameters: HestonParameters) -> np.ndarray:
    """Mean over the session of f E[v_t], per year, one per draw: what the days' variances are around.

    Not quite the mean of E[v_t]: where v reverts during the session, the shape weighs its beginning more.
    """
    t = np.linspace(0, SESSION_YEARS, model.minutes + 1)
    kappa, theta, v0 = (
        np.asarray(values, dtype=np.float64)[..., None]
        for values in (parameters.kappa, parameters.theta, parameters.v0)
    )
    v = theta + (v0 - theta) * np.exp(-kappa * t)
    return (model.variance_shape.factors(model.minutes) * (v[..., 1:] + v[..., :-1]) / 2).mean(axis=-1)


def join_days(chunks: list[IntradayDays]) -> IntradayDays:
    """Chunks one after the other."""
    if not chunks:
        raise ValueError("no days to join")
    if len(chunks) == 1:
        return chunks[0]
    *columns, parameters = zip(*chunks, strict=True)
    joined = HestonParameters._make(np.concatenate(column) for column in zip(*parameters, strict=True))
    return IntradayDays._make([*(np.concatenate(column) for column in columns), joined])


def _per_draw(name: str, value: Any, draws: int) -> np.ndarray:
    """One number per draw, float64 of shape (draws,)."""
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), (draws,)):
        raise ValueError(f"{name} has shape {array.shape}: it must be one number or one per draw, ({draws},)")
    return np.broadcast_to(array, (draws,))


def _draw_ids(draw_ids: Any, draws: int) -> np.ndarray:
    ids = np.asarray(draw_ids)
    if ids.shape != (draws,) or ids.dtype.kind not in "iu":
        raise ValueError(f"draw_ids: {draws} whole numbers are needed, got {ids.dtype} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(f"draw_ids lie from {ids.min()} to {ids.max()}: they must be from 0 to 2**31 - 1")
    return ids.astype(np.int32)


def _normals(seed: int, first: int, draws: int, days_per_draw: int, numbers: int) -> np.ndarray:
    """Standard normals, shape (draws, days_per_draw, numbers): a stream of (seed, draw), so chunks do not matter."""
    result = np.empty((draws, days_per_draw, numbers))
    for i in range(draws):
        stream = np.random.Philox(key=np.array([seed, first + i], dtype=np.uint64))
        np.random.Generator(stream).standard_normal(out=result[i])
    return result


def _days_of(
    model: IntradayModel,
    parameters: HestonParameters,
    log_price: np.ndarray,
    heston_variance: np.ndarray,
    normals: np.ndarray,
    mid0: np.ndarray,
    draw_ids: np.ndarray,
) -> IntradayDays:
    """Days from Heston paths (draws, days_per_draw, minutes + 1) and normals (draws, days_per_draw, 3 minutes + 2)."""
    from scipy.signal import lfilter

    per_draw, minutes = log_price.shape[1], model.minutes
    x = log_price.reshape(-1, minutes + 1).astype(np.float64)
    v = heston_variance.reshape(-1, minutes + 1).astype(np.float64)
    normals = normals.reshape(-1, normals.shape[-1])
    own = HestonParameters(*(np.repeat(value, per_draw) for value in parameters))

    # The noise of each minute's return, without drift, is scaled by the root of f; the drift of -f v / 2 comes back.
    dt = SESSION_YEARS / minutes
    mean_v = 0.5 * (v[:, 1:] + v[:, :-1])
    variance = model.variance_shape.factors(minutes) * mean_v
    drift = own.mu[:, None] * dt
    noise = np.diff(x, axis=1) - drift + 0.5 * dt * mean_v
    returns = drift - 0.5 * dt * variance + np.sqrt(model.variance_shape.factors(minutes)) * noise
    mid = np.empty_like(x)
    mid[:, 0] = np.repeat(mid0, per_draw)
    np.cumsum(returns, axis=1, out=mid[:, 1:])
    mid[:, 1:] = mid[:, :1] * np.exp(mid[:, 1:])

    # Volume. The first value of the filter has the variance of all later ones.
    day, lasting, minute, quote = np.split(normals, [1, minutes + 1, 2 * minutes + 1], axis=1)
    persistence, share = model.volume_persistence, model.volume_lasting_share
    lasting[:, 1:] *= math.sqrt(1 - persistence**2)
    lasting = lfilter([1.0], [1.0, -persistence], lasting, axis=1)
    noise_of_minutes = math.sqrt(share) * lasting + math.sqrt(1 - share) * minute
    surprise = model.day_volume_log_sd * day + model.volume_log_sd * noise_of_minutes
    expected = model.expected_volume_shares()
    volatility = np.maximum(np.sqrt(mean_v), VOLATILITY_FLOOR) / model.reference_volatility
    surplus = surprise - 0.5 * (model.day_volume_log_sd**2 + model.volume_log_sd**2)
    volume = np.maximum(np.rint(expected * volatility**model.volume_elasticity * np.exp(surplus)), 1.0)

    # A quote sees the minute that it ends; the first one sees the variance at the open and no volume yet.
    seen = np.concatenate([model.variance_shape.factors(minutes)[0] * v[:, :1], variance], axis=1)
    thinness = np.exp(-np.concatenate([np.zeros_like(day), surprise], axis=1))
    return IntradayDays(
        draw_id=np.repeat(draw_ids, per_draw),
        mid=mid,
        spread=model.spread_dollars(mid, seen, thinness, quote),
        volume_shares=volume.astype(np.int64),
        expected_volume_shares=np.tile(expected, (len(mid), 1)),
        variance=variance,
        parameters=own,
    )


# -- real minute bars --------------------------------------------------------------------------------------------------


class RealDays(NamedTuple):
    """Sessions of real minute bars on the grid of `IntradayDays`; float64, NaN where there is none.

    Attributes:
        sessions: exchange dates, `datetime64[D]`, shape (days,).
        mid: dollars at the instants, shape (days, minutes + 1); column 0 is the opening price.
        spread: dollars at the instants, shape (days, minutes + 1); no quote in column 0.
        volume_shares: shares in each minute, 0 without a bar, shape (days, minutes). The last one has the closing auction.
        log_range: ln(high / low) of each minute, shape (days, minutes).
    """

    sessions: np.ndarray
    mid: np.ndarray
    spread: np.ndarray
    volume_shares: np.ndarray
    log_range: np.ndarray


def real_days(bars: pa.Table, minutes: int = SESSION_MINUTES) -> RealDays:
    """Minute bars of one symbol, by session; sessions of fewer than `FEWEST_MINUTES` bars (half days) are left out.

    Args:
        bars: columns ts (start of the minute, with time zone), open, high, low, close, volume, and bid and ask at the
            bar's end, which may be null or absent; as `market.minute_bars`. Raw prices. Other hours are ignored.
        minutes: length of the session from 9:30 in New York.

    Raises:
        ValueError: columns are missing, there are several symbols, two bars of one minute, or no session is left.
    """
    import pyarrow.compute as pc

    needed = ("ts", "open", "high", "low", "close", "volume")
    if missing := [name for name in needed if name not in bars.column_names]:
        raise ValueError(
            f"minute bars lack the column(s) {', '.join(missing)}; found {', '.join(bars.column_names)}"
        )
    if "symbol" in bars.column_names and len(symbols := bars["symbol"].unique().to_pylist()) > 1:
        raise ValueError(f"minute bars of {len(symbols)} symbols ({', '.join(symbols[:5])}): give one")
    kind = bars.schema.field("ts").type
    if not (pa.types.is_timestamp(kind) and kind.tz):
        raise ValueError(f"ts is {kind}: it must be a timestamp with a time zone")
    local = pc.local_timestamp(pc.cast(bars["ts"], pa.timestamp("us", "America/New_York")))
    local = local.to_numpy().astype("datetime64[m]")
    day = local.astype("datetime64[D]")
    minute = (local - day).astype(np.int64) - OPEN_MINUTE_OF_DAY
    inside = (minute >= 0) & (minute < minutes)
    sessions, row, count = np.unique(day[inside], return_inverse=True, return_counts=True)
    fewest = min(FEWEST_MINUTES, minutes)
    if not (count >= fewest).any():
        raise ValueError(
            f"no session of at least {fewest} minute bars between the open and {minutes} minutes later: the fullest of "
            f"{len(sessions)} has {count.max(initial=0)}; give whole, regular sessions"
        )
    at = row, minute[inside]
    if len(np.unique(row * minutes + minute[inside])) < len(row):
        raise ValueError("minute bars hold two bars of one minute: remove duplicates first")

    def grid(name: str) -> np.ndarray:
        result = np.full((len(sessions), minutes), np.nan)
        if name in bars.column_names:
            result[at] = pc.cast(bars[name], pa.float64()).to_numpy()[inside]
        return result

    bid, ask, opening, close, low, high = (
        grid(name) for name in ("bid", "ask", "open", "close", "low", "high")
    )
    quoted = (bid > 0) & (ask >= bid)
    mid = np.where(quoted, (bid + ask) / 2, close)
    first = np.take_along_axis(opening, np.argmax(np.isfinite(opening), axis=1)[:, None], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_range = np.where((low > 0) & (high >= low), np.log(high / low), np.nan)
    whole = count >= fewest
    return RealDays(
        sessions[whole],
        np.concatenate([first, mid], axis=1)[whole],
        np.concatenate([np.full_like(first, np.nan), np.where(quoted, ask - bid, np.nan)], axis=1)[whole],
        np.nan_to_num(grid("volume"))[whole],
        log_range[whole],
    )


def calibrate(bars: pa.Table, model: IntradayModel | None = None) -> IntradayModel:
    """The model of a share from its real minute bars, from one day on.

    Shapes are fitted to logs under a loss that forgives outliers, so that a burst of volume or a jump bends nothing; the
    last minute, which holds the closing auction, is left out. The spread is fitted by maximum likelihood knowing that
    quotes are whole ticks: a share that is always one tick wide says only that its spread is at most that.
    Every mean is one over the days, of which the volumes must be comparable: split-adjust first.

    Args:
        bars: as for `real_days`, with quotes.
        model: what the bars cannot tell: `minutes`, `volume_elasticity`, `tick_dollars`, and with fewer than
            `FEWEST_DAYS_OF_NOISE` days `day_volume_log_sd`; and where the exponents of the spread are drawn to
            (weakly: sd 0.5) if the day says nothing of them. `IntradayModel()` when None.

    Raises:
        ValueError: as `real_days`; or there are too few quotes, or too few minutes with trades.
    """
    model = model or IntradayModel()
    days = real_days(bars, model.minutes)
    traded = days.volume_shares > 0
    traded[:, -1] = False
    if (traded.sum(axis=1) < FEWEST_MINUTES / 390 * model.minutes / 2).any():
        worst = int(traded.sum(axis=1).argmin())
        raise ValueError(
            f"session {days.sessions[worst]} traded in {traded[worst].sum()} of {model.minutes} minutes: too few for a "
            "profile of volume; drop it or calibrate on a share that trades"
        )
    quoted = np.isfinite(days.spread[:, 1:]) & traded
    if quoted.sum() < FEWEST_QUOTES:
        raise ValueError(
            f"{quoted.sum()} minutes have trades and a bid at or below their ask, {FEWEST_QUOTES} are needed: the "
            "spread cannot be calibrated without quotes (columns bid and ask)"
        )

    with np.errstate(divide="ignore"):
        log_volume = np.where(traded, np.log(days.volume_shares), np.nan)
    volume_shape, level = _fit_shape(log_volume)
    surprise = log_volume - level[:, None] - np.log(volume_shape.factors(model.minutes))
    log_sd = 1.4826 * float(np.nanmedian(np.abs(surprise - np.nanmedian(surprise))))
    lasting_share, persistence = _fit_persistence(np.clip(surprise, -3 * log_sd, 3 * log_sd))
    continuous = volume_shape.factors(model.minutes)[:-1].sum() / model.minutes
    volumes = days.volume_shares[:, :-1].sum(axis=1) / continuous

    variance_shape = _fit_variance_shape(days.log_range)
    volatility = _realized_volatility(days.mid)
    reference = math.sqrt(float(np.mean(volatility**2)))
    usual = np.log(volatility[:, None] * np.sqrt(variance_shape.factors(model.minutes)))
    # Bursts of volume and of volatility come together: what a minute's range has beyond its shape is held fixed, or
    # volume would seem to widen the spread. Half a tick stands for no range at all.
    price = np.nanmean(days.mid, axis=1, keepdims=True)
    burst = np.log(np.maximum(days.log_range, 0.5 * model.tick_dollars / price)) - usual
    quoted &= np.isfinite(burst)
    spread = _fit_spread(
        model,
        ticks=np.rint(days.spread[:, 1:] / model.tick_dollars)[quoted],
        mid=days.mid[:, 1:][quoted],
        log_volatility=usual[quoted] - math.log(reference),
        log_thinness=-surprise[quoted],
        burst=burst[quoted] - float(np.mean(burst[quoted])),
    )
    day_log_sd = model.day_volume_log_sd
    if len(volumes) >= FEWEST_DAYS_OF_NOISE:
        # What volatility explains is no noise.
        unexplained = np.log(volumes) - model.volume_elasticity * np.log(volatility)
        day_log_sd = float(np.std(unexplained, ddof=1))
    return IntradayModel(
        minutes=model.minutes,
        mean_volume_shares=float(volumes.mean()),
        volume_shape=volume_shape,
        volume_log_sd=log_sd,
        volume_lasting_share=lasting_share,
        volume_persistence=persistence,
        day_volume_log_sd=day_log_sd,
        volume_elasticity=model.volume_elasticity,
        reference_volatility=reference,
        variance_shape=variance_shape,
        tick_dollars=model.tick_dollars,
        **spread,
    )


def _realized_volatility(mid: np.ndarray) -> np.ndarray:
    """Volatility per year of each day from its returns by the minute, shape (days,); gaps are bridged."""
    result = np.empty(len(mid))
    for i, row in enumerate(mid):
        result[i] = math.sqrt(float(np.sum(np.diff(np.log(row[np.isfinite(row)])) ** 2)) / SESSION_YEARS)
    return np.maximum(result, VOLATILITY_FLOOR)


def _fit_shape(log_values: np.ndarray) -> tuple[UShape, np.ndarray]:
    """The shape whose log, with a level for each day, follows the values (days, minutes), NaN ignored; and the levels.

    Least squares under the loss of scipy's `soft_l1`.
    """
    from scipy.optimize import least_squares

    minutes = log_values.shape[1]
    there = np.isfinite(log_values)

    def residuals(x: np.ndarray) -> np.ndarray:
        factors = UShape(x[0], x[1], x[2], x[3]).factors(minutes)
        return (log_values - x[4:, None] - np.log(factors))[there]

    start = [3.0, 0.08 * minutes, 1.0, 0.06 * minutes, *np.nanmedian(log_values, axis=1)]
    found = least_squares(
        residuals,
        start,
        bounds=(
            [0.0, 0.01 * minutes, 0.0, 0.01 * minutes, *[-np.inf] * len(log_values)],
            [50.0, 0.25 * minutes, 50.0, 0.25 * minutes, *[np.inf] * len(log_values)],
        ),
        loss="soft_l1",
        x_scale=[1.0, 0.05 * minutes, 1.0, 0.05 * minutes, *[1.0] * len(log_values)],
    )
    return UShape(*(float(value) for value in found.x[:4])), found.x[4:]


def _fit_persistence(noise: np.ndarray) -> tuple[float, float]:
    """(lasting share, persistence): the w and p for which w p^k is nearest to the autocorrelations of 1 to 15 minutes.

    Args:
        noise: shape (days, minutes), NaN ignored.
    """
    from scipy.optimize import least_squares

    centred = noise - np.nanmean(noise, axis=1, keepdims=True)
    variance = float(np.nanmean(centred**2))
    if not variance > 0:
        return 0.0, 0.0
    lags = np.arange(1, min(16, noise.shape[1] // 4))
    found = [float(np.nanmean(centred[:, k:] * centred[:, :-k])) / variance for k in lags]
    fit = least_squares(lambda x: x[0] * x[1] ** lags - found, [0.5, 0.8], bounds=([0, 0], [1, 0.99]))
    return float(fit.x[0]), float(fit.x[1])


def _fit_variance_shape(log_range: np.ndarray) -> UShape:
    """The shape whose mean the squared ranges (days, minutes) have, NaN ignored; every day has a level of its own.

    Quasi-likelihood of the gamma family, right for the mean whatever the noise: logs would follow the quiet minutes,
    and leave out the bursts that are half of the variance. The largest 0.5 % of a day count as the next smaller.
    """
    from scipy.optimize import minimize

    minutes = log_range.shape[1]
    squares = log_range**2
    squares = np.minimum(squares, np.nanquantile(squares, 0.995, axis=1, keepdims=True))
    there = np.isfinite(squares)

    def loss(x: np.ndarray) -> float:
        factors = UShape(*np.exp(x)).factors(minutes)
        levels = np.nanmean(squares / factors, axis=1)
        logs = np.where(there, np.log(factors), 0.0)
        return float((there.sum(axis=1) * np.log(levels)).sum() + logs.sum()) / there.sum()

    excess, length = (math.log(0.01), math.log(50)), (math.log(0.01 * minutes), math.log(0.25 * minutes))
    found = minimize(
        loss,
        np.log([3.0, 0.08 * minutes, 1.0, 0.06 * minutes]),
        method="L-BFGS-B",
        bounds=[excess, length, excess, length],
    )
    return UShape(*(float(value) for value in np.exp(found.x)))


def _fit_spread(
    model: IntradayModel,
    *,
    ticks: np.ndarray,
    mid: np.ndarray,
    log_volatility: np.ndarray,
    log_thinness: np.ndarray,
    burst: np.ndarray,
) -> dict[str, float]:
    """Maximum likelihood of the log spread, normal about its mean and seen rounded to ticks, one or none as one.

    Args:
        model: where the exponents are drawn to, and the tick.
        ticks, mid, log_volatility, log_thinness, burst: one number per quote; volatility relative to where the
            median is wanted, and what else moves the spread, held fixed.
    """
    from scipy.optimize import minimize
    from scipy.special import log_ndtr

    one_bps = np.log(mid * 1e-4)
    ticks = np.maximum(ticks, 1)
    upper = np.log((ticks + 0.5) * model.tick_dollars) - one_bps
    lower = np.where(ticks > 1, np.log(np.maximum(ticks - 0.5, 0.5) * model.tick_dollars) - one_bps, -np.inf)
    drawn_to = np.array([model.spread_volatility_exponent, model.spread_volume_exponent])

    def loss(x: np.ndarray) -> float:
        mean = x[0] + x[1] * log_volatility + x[2] * log_thinness + x[4] * burst
        low, high = (lower - mean) / np.exp(x[3]), (upper - mean) / np.exp(x[3])
        # In the upper tail the difference of small numbers is taken on the other side.
        flip = low > 0
        low, high = np.where(flip, -high, low), np.where(flip, -low, high)
        log_high, log_low = log_ndtr(high), log_ndtr(low)
        likelihood = log_high + np.log1p(-np.exp(np.minimum(log_low - log_high, -1e-12)))
        return float(-likelihood.sum() + 0.5 * np.sum(((x[1:3] - drawn_to) / 0.5) ** 2))

    middle = np.log(ticks * model.tick_dollars) - one_bps
    found = minimize(
        loss,
        [float(np.median(middle)), *drawn_to, math.log(max(float(np.std(middle)), 0.1)), 0.0],
        method="L-BFGS-B",
        bounds=[(-10, 10), (0, 5), (0, 5), (math.log(0.01), math.log(5)), (-5, 5)],
    )
    return {
        "spread_bps": math.exp(found.x[0]),
        "spread_volatility_exponent": float(found.x[1]),
        "spread_volume_exponent": float(found.x[2]),
        "spread_log_sd": math.exp(found.x[3]),
    }
