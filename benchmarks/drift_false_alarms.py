"""How often drift is found where there is none, how soon where there is: ours against i.i.d. p-values with the same rule.

Belongs here: stationary worlds, worlds whose volatility changes, the textbook's p-values. Does not belong here: our side; bars go through
`quant_assets/features`, a network is trained as in `quant_assets/models`, and `quant_assets/monitoring` is called as it stands.

A world is some thousand sessions of three symbols with constant parameters. The model learns from the first 1,300, and every event in
the 500 after them is false. Then the same world again, with returns that are multiplied from a session on. *Theirs* is what a text on
drift detection does: a two-sample Kolmogorov-Smirnov test per column that counts every row as independent, the
same windows, the same Holm correction, the same rule for events. `ratio` is their sessions in a false event over ours.
"""

from __future__ import annotations

import argparse
import datetime as dt
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from benchmarks import last_line, print_table, spread
from quant_assets.features.labels import labels
from quant_assets.features.sentiment import sentiment_features
from quant_assets.features.tables import (
    LABELS,
    SENTIMENT,
    SENTIMENT_INPUTS,
    TECHNICAL,
    TECHNICAL_INPUTS,
)
from quant_assets.features.technical import technical_features
from quant_assets.market.tables import BARS, NEWS
from quant_assets.monitoring.drift import (
    DriftParameters,
    Rows,
    Scored,
    events,
    flags,
    judge,
    make_reference,
    score,
)
from quant_assets.monitoring.performance import BRIER_LONG, Series, follow
from quant_assets.monitoring.statistics import STATISTICS, holm
from quant_assets.monitoring.watched import classifier_rows, scope_of
from quant_resources.calendar import TradingCalendar
from quant_resources.compute import Compute

PARAMETERS = DriftParameters()
REFERENCE_SESSIONS, FRESH_SESSIONS, AFTER_SESSIONS = 1300, 500, 60
# Sessions that the change of regime comes after the reference.
CHANGE_AFTER = 30
WARM_UP = 30  # sessions before the first row of features, and more
SYMBOLS = ("AAA", "BBB", "CCC")
CORRELATION = 0.4
DAILY_VOLATILITY = 0.015
FACTORS = (2.5, 0.4, 0.25)
YEAR = 250
CALENDAR = TradingCalendar(dt.date(1995, 1, 3), dt.date(2012, 12, 31))
TOY_COLUMNS = 36


@dataclass(frozen=True)
class World:
    """A stationary law of returns.

    Attributes:
        name: in the table.
        what: in words.
        news: whether the model reads sentiment as well.
        toy: persistence of columns that are no features at all, but autoregressions of order 1; None for returns.
    """

    name: str
    what: str
    news: bool = False
    toy: float | None = None


WORLDS = (
    World("constant", "normal returns of constant volatility"),
    World("garch", "GARCH(1,1) per symbol, alpha 0.05, beta 0.90, innovations t(8) with a common scale"),
    World(
        "persistent garch",
        "the same with alpha 0.06, beta 0.925: a shock to the variance halves in 46 sessions",
    ),
    World("heston", "Heston per symbol, kappa 8, theta 0.06, sigma 0.4, rho -0.5, correlated"),
    World("heston, news", "the same, and a model that reads news without any content too", news=True),
    World("toy iid", f"{TOY_COLUMNS} normal columns with common factors", toy=0.0),
    World("toy ar", "the same with an autocorrelation of 0.9", toy=0.9),
)


# -- worlds ------------------------------------------------------------------------------------------------------------


def returns(world: World, rng: np.random.Generator, sessions: int) -> np.ndarray:
    """Log returns of the symbols, stationary, shape (sessions, symbols)."""
    symbols, burn_in = len(SYMBOLS), 500
    root = np.linalg.cholesky(np.full((symbols, symbols), CORRELATION) + (1 - CORRELATION) * np.eye(symbols))
    noise = rng.standard_normal((sessions + burn_in, symbols)) @ root.T
    if world.name == "constant":
        return DAILY_VOLATILITY * noise[burn_in:]
    out = np.empty_like(noise)
    if "garch" in world.name:
        alpha, beta = (0.06, 0.925) if world.name.startswith("persistent") else (0.05, 0.90)
        noise *= np.sqrt(6 / rng.chisquare(8, (len(noise), 1)))
        variance = np.full(symbols, DAILY_VOLATILITY**2)
        for t in range(len(noise)):
            out[t] = np.sqrt(variance) * noise[t]
            variance = (1 - alpha - beta) * DAILY_VOLATILITY**2 + alpha * out[t] ** 2 + beta * variance
        return out[burn_in:]
    kappa, theta, sigma, rho, step = 8.0, 0.06, 0.4, -0.5, 1 / 252
    other = rng.standard_normal(noise.shape) @ root.T
    variance = np.full(symbols, theta)
    for t in range(len(noise)):
        out[t] = -variance / 2 * step + np.sqrt(variance * step) * noise[t]
        shock = rho * noise[t] + np.sqrt(1 - rho**2) * other[t]
        variance = np.maximum(
            variance + kappa * (theta - variance) * step + sigma * np.sqrt(variance * step) * shock, 1e-4
        )
    return out[burn_in:]


def bars_of(log_returns: np.ndarray, rng: np.random.Generator, first: int = 0) -> pa.Table:
    """Daily bars as `market.bars` has them: the open is the close before, highs and lows lie a part of a move beyond.

    Args:
        log_returns: shape (sessions, symbols).
        rng: of the highs and lows.
        first: place of the first session on the calendar.
    """
    sessions = CALENDAR.sessions(CALENDAR.first, CALENDAR.last)[first : first + len(log_returns)]
    close = 50 * np.exp(np.cumsum(log_returns, axis=0))
    opening = np.vstack([np.full((1, close.shape[1]), 50.0), close[:-1]])
    wick = np.exp(0.5 * DAILY_VOLATILITY * np.abs(rng.standard_normal((2, *close.shape))))
    high, low = np.maximum(opening, close) * wick[0], np.minimum(opening, close) / wick[1]
    rows = len(sessions) * len(SYMBOLS)
    columns = {
        "symbol": np.repeat(SYMBOLS, len(sessions)).tolist(),
        "session": pa.array(sessions * len(SYMBOLS), pa.date32()),
        "available_at": pa.array(
            [CALENDAR.close(s) for s in sessions] * len(SYMBOLS), pa.timestamp("us", "UTC")
        ),
        **{n: v.T.ravel() for n, v in (("open", opening), ("high", high), ("low", low), ("close", close))},
        "volume": np.full(rows, 1e6),
        "dividend": np.zeros(rows),
        "split_factor": np.ones(rows),
        "source": ["simulated"] * rows,
    }
    return BARS.conform(pa.table(columns))


def news_of(bars: pa.Table, rng: np.random.Generator) -> pa.Table:
    """An article on six of ten symbols and sessions; its score knows nothing."""
    some = bars.filter(pa.array(rng.random(bars.num_rows) < 0.6))
    rows = some.num_rows
    columns = {
        "article_id": [f"a{i:06d}" for i in range(rows)],
        **{name: some[name] for name in ("symbol", "session", "available_at")},
        "title": [""] * rows,
        "url": [""] * rows,
        "sentiment_score": np.clip(0.25 * rng.standard_normal(rows), -1, 1),
        "relevance_score": rng.random(rows),
        "source": ["simulated"] * rows,
    }
    return NEWS.conform(pa.table(columns))


def feature_tables(bars: pa.Table, news: pa.Table | None) -> dict[str, pa.Table]:
    """The real features of a world's bars."""
    span = bars["session"][0].as_py(), max(bars["session"].to_pylist())
    tables = {TECHNICAL.name: TECHNICAL.conform(technical_features(bars, CALENDAR, *span))}
    if news is not None:
        rows = sentiment_features(news, bars, CALENDAR, *span, "simulated")
        tables[SENTIMENT.name] = SENTIMENT.conform(rows)
    return tables


class Classifier:
    """A network trained on a world's first sessions, and the rows that are watched of it."""

    def __init__(
        self, world: World, bars: pa.Table, tables: Mapping[str, pa.Table], seed: int, first: int, until: int
    ) -> None:
        from quant_assets.models.dataset import make_dataset
        from quant_assets.models.mlp import MlpParameters, train

        inputs = TECHNICAL_INPUTS + SENTIMENT_INPUTS if world.news else TECHNICAL_INPUTS
        span = bars["session"][0].as_py(), max(bars["session"].to_pylist())
        outcomes = LABELS.conform(labels(bars, CALENDAR, *span))
        data = make_dataset(list(tables.values()), outcomes, inputs)
        position = np.array([CALENDAR.ordinal(day) for day in data.session.astype(object)])
        validated = until - (until - first) // 5
        fitted, held_out = (
            data.take((position >= low) & (position < high))
            for low, high in ((0, validated), (validated, until))
        )
        parts = [(part.x, part.y, part.symbol) for part in (fitted, held_out)]
        self.network = train(inputs, parts[0], parts[1], MlpParameters(seed=seed))
        self.bundle = {"inputs": list(inputs), "tables": list(tables)}

    def rows(self, tables: Mapping[str, pa.Table]) -> Rows:
        """Inputs, returns, probabilities."""
        return classifier_rows(self.bundle, tables, self.network, CALENDAR)  # type: ignore[arg-type]  # same predict


def toy_rows(persistence: float, rng: np.random.Generator, sessions: int) -> Rows:
    """Columns that are autoregressions, correlated over columns and symbols."""
    symbols, burn_in = len(SYMBOLS), 200
    shape = (sessions + burn_in, symbols, TOY_COLUMNS)
    shocks = rng.standard_normal(shape) + 0.7 * (
        rng.standard_normal((*shape[:2], 1)) + rng.standard_normal((shape[0], 1, TOY_COLUMNS))
    )
    values, state = np.empty(shape), shocks[0]
    for t in range(len(shocks)):
        state = persistence * state + np.sqrt(1 - persistence**2) * shocks[t]
        values[t] = state
    start = CALENDAR.ordinal(CALENDAR.sessions(CALENDAR.first, CALENDAR.last)[0])
    return Rows(
        tuple(f"toy_{i}" for i in range(TOY_COLUMNS)),
        np.repeat(np.arange(start, start + sessions), symbols),
        np.tile(SYMBOLS, sessions),
        values[burn_in:].reshape(-1, TOY_COLUMNS),
    )


# -- one world ---------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What was found in one world, per 250 sessions where it is false.

    Attributes:
        events, naive_events: false events.
        sessions, naive_sessions: sessions in a false event.
        delays: by factor, sessions from the first changed one to the event, both counted; infinite when none came in 60.
    """

    events: float = 0.0
    naive_events: float = 0.0
    sessions: float = 0.0
    naive_sessions: float = 0.0
    delays: dict[float, float] = field(default_factory=dict)


def _events_in(drifted: Sequence[bool]) -> tuple[int, int, int | None]:
    """Events, sessions in one, and the place of the first session in one."""
    going_on = events(drifted, PARAMETERS.hysteresis_sessions)
    begun = [place for place in going_on if place is not None]
    return len(set(begun)), len(begun), min(begun, default=None)


def _ours(scored: Scored) -> list[bool]:
    return list(flags(judge([scored], PARAMETERS.alpha)).values())


def naive(scored: Scored, reference_rows: int) -> list[bool]:
    """Whether any column drifts by p-values that count every row as independent: Kolmogorov's limit, as every text has it."""
    from scipy.special import kolmogorov

    rows = scored.window_rows[:, None]
    size = np.sqrt(reference_rows * rows / (reference_rows + rows))
    p = kolmogorov(size * scored.found[..., STATISTICS.index("ks")])
    return [bool(holm(of_session).min() < PARAMETERS.alpha) for of_session in p]


def run_world(task: tuple[World, int, int]) -> tuple[str, Outcome]:
    """Everything about one world (law, seed, sessions of reference); the same task gives the same numbers."""
    world, seed, reference_sessions = task
    rng = np.random.default_rng([seed, *world.name.encode()])
    outcome, per_year = Outcome(), YEAR / FRESH_SESSIONS
    length = WARM_UP + reference_sessions + FRESH_SESSIONS
    classifier = None
    if world.toy is not None:
        rows = toy_rows(world.toy, rng, reference_sessions + FRESH_SESSIONS)
    else:
        moves = returns(world, rng, length)
        bars = bars_of(moves, np.random.default_rng([seed, 1]))
        news = news_of(bars, np.random.default_rng([seed, 2])) if world.news else None
        tables = feature_tables(bars, news)
        start = CALENDAR.ordinal(bars["session"][0].as_py())
        classifier = Classifier(
            world, bars, tables, seed, start + WARM_UP, start + WARM_UP + reference_sessions
        )
        rows = classifier.rows(tables)
    first = int(rows.session[0])
    if classifier is not None:
        first = start + WARM_UP
    until = first + reference_sessions
    trained = rows.take((rows.session >= first) & (rows.session < until))
    reference = make_reference(trained, PARAMETERS)
    fresh = range(until, until + FRESH_SESSIONS)
    scored = score(reference, rows, fresh, scope_of)
    count, inside, _ = _events_in(_ours(scored))
    outcome.events, outcome.sessions = count * per_year, inside * per_year
    count, inside, _ = _events_in(naive(scored, len(trained.session)))
    outcome.naive_events, outcome.naive_sessions = count * per_year, inside * per_year
    if classifier is None:
        return world.name, outcome
    # Features and windows reach back so far; what came before is as it was.
    change, back = WARM_UP + reference_sessions + CHANGE_AFTER, WARM_UP + 2 * PARAMETERS.window_sessions
    for factor in FACTORS:
        changed = moves[change - back : change + AFTER_SESSIONS].copy()
        changed[back:] *= factor
        bars = bars_of(changed, np.random.default_rng([seed, 3]), change - back)
        news = news_of(bars, np.random.default_rng([seed, 4])) if world.news else None
        after = range(start + change, start + change + AFTER_SESSIONS)
        scored = score(reference, classifier.rows(feature_tables(bars, news)), after, scope_of)
        place = _events_in(_ours(scored))[2]
        outcome.delays[factor] = np.inf if place is None else place + 1
    return world.name, outcome


# -- performance -------------------------------------------------------------------------------------------------------


def adwin_errors(series: int, seed: int = 0) -> list[tuple[float, float, float]]:
    """How often ADWIN takes a stationary series for one that became worse, and how soon it sees one that did.

    Values are means over five overlapping sessions, as Brier scores of labels with a horizon of five are.

    Returns:
        Rows of (size of the change in sd of a session's value, false changes for the worse per 250 sessions or median delay, 95 %).
    """
    rng = np.random.default_rng(seed)
    found = []
    for size in (0.0, 1.0, 2.0):
        values = []
        for _ in range(series):
            shocks = rng.standard_normal(1004)
            value = np.convolve(shocks, np.ones(5) / np.sqrt(5), "valid")
            value[YEAR:] += size
            one = np.ones(len(value))
            followed = follow(Series(BRIER_LONG, np.arange(len(value)), one, value, one), PARAMETERS, 3)
            began = np.flatnonzero(np.diff(followed.drifted.astype(int)) == 1) + 1
            if size == 0:
                values.append(len(began) * YEAR / len(value))
            else:
                late = began[began >= YEAR]
                values.append(float(late[0] - YEAR + 1) if len(late) else np.inf)
        if size == 0:
            found.append((size, float(np.mean(values)), float("nan")))
        else:
            found.append((size, float(np.median(values)), float(np.quantile(values, 0.95, method="higher"))))
    return found


# -- report ------------------------------------------------------------------------------------------------------------


def rate_interval(count: float, years: float, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a Poisson rate (Garwood 1936)."""
    from scipy.stats import chi2

    tail = (1 - confidence) / 2
    low = chi2.ppf(tail, 2 * count) / 2 if count else 0.0
    return low / years, chi2.ppf(1 - tail, 2 * count + 2) / 2 / years


def _shown(delay: float) -> str:
    return f"{delay:.0f}" if np.isfinite(delay) else f"> {AFTER_SESSIONS}"


def main() -> None:
    """Simulate, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=40, help="of each kind (40)")
    parser.add_argument(
        "--reference",
        type=int,
        default=REFERENCE_SESSIONS,
        help=f"sessions of the reference ({REFERENCE_SESSIONS})",
    )
    parser.add_argument("--jobs", type=int, default=-1, help="processes (one per core)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    tasks = [(world, seed, arguments.reference) for world in WORLDS for seed in range(arguments.worlds)]
    outcomes: dict[str, list[Outcome]] = {world.name: [] for world in WORLDS}
    for name, outcome in Compute("loky", arguments.jobs).map(run_world, tasks):
        outcomes[name].append(outcome)
    years = arguments.worlds * FRESH_SESSIONS / YEAR
    table, ratios = [], {}
    for name, found in outcomes.items():
        count = sum(o.events for o in found) * FRESH_SESSIONS / YEAR
        low, high = rate_interval(round(count), years)
        ours, theirs = (statistics.mean(getattr(o, a) for o in found) for a in ("sessions", "naive_sessions"))
        # Half a session stands for none, so that a ratio exists.
        ratios[name.replace(", ", "_").replace(" ", "_")] = theirs / max(ours, 0.5 / years)
        delays = []
        for factor in FACTORS:
            seen = sorted(o.delays[factor] for o in found if factor in o.delays)
            delays.append(
                f"{_shown(statistics.median_low(seen))} / {_shown(seen[int(np.ceil(0.95 * len(seen))) - 1])}"
                if seen
                else ""
            )
        table.append(
            [name, f"{count / years:.3f} [{low:.3f}, {high:.3f}]", f"{ours:.2f}",
             f"{statistics.mean(o.naive_events for o in found):.2f}", f"{theirs:.0f}", *delays]
        )  # fmt: skip
    print_table(
        ["world", "false events / 250 [95 %]", "sessions in one", "i.i.d.: events", "sessions in one",
         *(f"x {factor:g}: median / 95 %" for factor in FACTORS)],
        table,
    )  # fmt: skip
    everything = [o for found in outcomes.values() for o in found]
    count = round(sum(o.events for o in everything) * FRESH_SESSIONS / YEAR)
    all_years = years * len(WORLDS)
    low, high = rate_interval(count, all_years)
    print(
        f"\n{count} false events in {all_years:.0f} years of 250 sessions: {count / all_years:.3f} [{low:.3f}, {high:.3f}] a year. "
        "Delays count sessions from the first changed one to the event, both included.\n"
    )
    for size, middle, late in adwin_errors(max(arguments.worlds, 40)):
        print(
            f"ADWIN, no change: {middle:.3f} false changes for the worse per 250 sessions and series"
            if size == 0
            else f"ADWIN, worse by {size:g} sd of a session's value: seen after {middle:.0f} sessions (median), {_shown(late)} (95 %)"
        )
    print(f"\n{time.perf_counter() - started:.0f} s\n", flush=True)
    ours = [o.sessions for o in everything]
    theirs = [o.naive_sessions for o in everything]
    last_line(
        "drift_false_alarms",
        ratio=statistics.mean(theirs) / max(statistics.mean(ours), 0.5 / all_years),
        ratios=ratios,
        ours={**spread(ours, "sessions in a false event per 250"), "mean": round(statistics.mean(ours), 4),
              "false_events_per_250": round(count / all_years, 4), "interval": [round(low, 4), round(high, 4)]},
        theirs={**spread(theirs, "sessions in a false event per 250"), "mean": round(statistics.mean(theirs), 2)},
        work=f"{arguments.worlds} stationary worlds of each of {len(WORLDS)} kinds, {arguments.reference} sessions of reference and "
        f"{FRESH_SESSIONS} after them, {len(SYMBOLS)} symbols; ours: PSI, KS and Wasserstein against windows of the reference, theirs: KS "
        f"with i.i.d. p-values; windows of {PARAMETERS.window_sessions} sessions, Holm at {PARAMETERS.alpha:g}, events after "
        f"{PARAMETERS.hysteresis_sessions} sessions in both",
        equal=None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
