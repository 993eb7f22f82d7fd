"""Parameter sweeps: grid, random and Bayesian, resumable, every trial counted. Pure.

Belongs here: which sets are tried, evaluating them in parallel, remembering each trial, walk-forward. Does not belong here:
reading a search space (`space.py`) and simulating (`grid.py`).

Finished trials are kept in a small SQLite file, written after every chunk in one transaction, so a kill loses at most the
chunks in flight. A sweep that is started again walks the same sequence and looks each set up before it runs it; the
Bayesian sampler is seeded anew for every batch from the sweep's seed and fed with the same history, so a resumed sweep
proposes what an uninterrupted one would have.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib
import json
import math
import sqlite3
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quant_assets.backtests import engine, grid, portfolio, statistics
from quant_assets.backtests.engine import Account, Costs
from quant_assets.backtests.grid import STATISTICS, rule_array, simulate_sets
from quant_assets.backtests.portfolio import Backtest, Fold, Window, run_backtest
from quant_assets.backtests.space import Space
from quant_assets.market.series import ARRAYS, BarSeries
from quant_assets.strategies import indicators, make_strategy, strategy_class
from quant_assets.strategies import strategy as rules_module
from quant_assets.strategies.strategy import Rules, Strategy
from quant_resources.compute import Compute

Method = Literal["grid", "random", "bayesian"]
# All are better when larger.
OBJECTIVES = ("sharpe", "total_return", "max_drawdown", "sqn", "profit_factor")
CHUNK_SETS = 32
# Proposals that the Bayesian sampler makes before it hears of their results. Fixed, so that the number of workers does
# not change what is tried.
BAYESIAN_BATCH = 8


class SweepError(ValueError):
    """A sweep cannot be run, or found nothing. The message names the thing, its value and the way out."""


@dataclass(frozen=True)
class Trial:
    """One parameter set that was evaluated.

    Attributes:
        number: its place in the sweep, from 0.
        parameters: swept names -> values.
        values: `grid.STATISTICS` -> value, NaN where undefined; empty for a failed trial.
        error: why it failed; empty for a complete one.
        block_sums, block_squares, block_counts: of its returns, for CSCV (see `grid.GridResult`).
    """

    number: int
    parameters: dict[str, Any]
    values: dict[str, float]
    error: str = ""
    block_sums: tuple[float, ...] = ()
    block_squares: tuple[float, ...] = ()
    block_counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """What is searched, on what, and how. Two sweeps that differ in anything that changes a result are two studies.

    Attributes:
        strategy: name.
        space: search space.
        method: `grid` (every set), `random` (uniform), `bayesian` (Optuna's TPE).
        trials: sets to try with `random` and `bayesian`.
        seed: of the draws.
        objective: statistic that is maximised.
        window: the sessions that may be used.
        fixed: parameters that are not swept but differ from their defaults.
        costs, account: as in `run_backtest`.
        min_trades: a set with fewer trades is not chosen: a ratio of two trades is luck.
        most_trials: largest grid.
    """

    strategy: str
    space: Space
    window: Window
    method: Method = "grid"
    trials: int = 100
    seed: int = 0
    objective: str = "sharpe"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    account: Account = field(default_factory=Account)
    min_trades: int = 0
    most_trials: int = 20_000

    def __post_init__(self) -> None:
        if self.method not in ("grid", "random", "bayesian"):
            raise SweepError(f"method = {self.method!r} is not one of grid, random, bayesian")
        if self.objective not in OBJECTIVES:
            raise SweepError(f"objective = {self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        if self.method != "grid" and not 1 <= self.trials <= self.most_trials:
            raise SweepError(f"trials = {self.trials} must lie in 1..{self.most_trials}")
        if both := sorted(set(self.fixed) & set(self.space.names)):
            raise SweepError(f"{', '.join(both)} is both fixed and swept")

    def study(self, data: str, symbols: Sequence[str]) -> dict[str, Any]:
        """What identifies the sweep, JSON-serializable.

        Args:
            data: identity of bars and probabilities, see `data_identity`.
            symbols: declared, listed already or not.
        """
        return {
            "strategy": self.strategy,
            "space": [
                [d.name, d.type, *(list(d.values) if d.type == "choice" else [d.low, d.high, d.step])]
                for d in self.space.dimensions
            ],
            "ordered": [list(pair) for pair in self.space.ordered],
            "method": self.method,
            # A longer search with the same seed goes on where the shorter one ended.
            "seed": None if self.method == "grid" else self.seed,
            # Only what a proposal depends on: the objective steers the Bayesian search alone.
            "objective": self.objective if self.method == "bayesian" else None,
            "window": [str(self.window.first), str(self.window.last)],
            "fixed": dict(self.fixed),
            "costs": self.costs._asdict(),
            "account": self.account._asdict(),
            "symbols": sorted(symbols),
            "data": data,
            "code": code_identity(self.strategy),
        }


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep.

    Attributes:
        sweep: what was asked.
        study: its key in the `TrialStore`.
        trials: in the order of their numbers.
        reused: how many were found finished.
    """

    sweep: Sweep
    study: str
    trials: list[Trial]
    reused: int

    @property
    def complete(self) -> list[Trial]:
        """Trials that did not fail."""
        return [t for t in self.trials if not t.error]

    def _worth(self, trial: Trial) -> float:
        name = self.sweep.objective
        # A profit factor without a loss has no number, and nothing is better.
        spotless = name == "profit_factor" and trial.values["total_return"] > 0
        return math.inf if spotless and math.isnan(trial.values[name]) else trial.values[name]

    @property
    def _choosable(self) -> list[Trial]:
        enough = [t for t in self.complete if t.values["trades"] >= self.sweep.min_trades]
        return [t for t in enough if not math.isnan(self._worth(t))]

    @property
    def can_choose(self) -> bool:
        """Whether any trial can be chosen."""
        return bool(self._choosable)

    @property
    def best(self) -> Trial:
        """Best by the objective; the earlier one of equals.

        Raises:
            SweepError: no trial has a defined objective and enough trades.
        """
        if not self.can_choose:
            failed = [t for t in self.trials if t.error]
            why = (
                f"{len(failed)} failed, the first with {failed[0].parameters}: {failed[0].error.splitlines()[-1]}"
                if failed
                else f"none has a defined {self.sweep.objective} and at least {self.sweep.min_trades} trades"
            )
            raise SweepError(
                f"of {len(self.trials)} trials of {self.sweep.strategy} none can be chosen: {why}"
            )
        return max(self._choosable, key=lambda t: (self._worth(t), -t.number))

    def blocks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """(sums, squares) of shape (blocks, trials) and counts (blocks,), as CSCV takes them; None when too few."""
        usable = [t for t in self.complete if t.block_sums]
        if len(usable) < 2:
            return None
        return (
            np.array([t.block_sums for t in usable]).T,
            np.array([t.block_squares for t in usable]).T,
            np.array(usable[0].block_counts),
        )


class TrialStore:
    """Finished trials of all sweeps, in one SQLite file.

    Args:
        path: the file; created with its folder when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS studies (key TEXT PRIMARY KEY, strategy TEXT NOT NULL, scope TEXT NOT NULL, "
                "description TEXT NOT NULL, created_at TEXT NOT NULL)"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS trials (study TEXT NOT NULL REFERENCES studies, parameters TEXT NOT NULL, "
                "number INTEGER NOT NULL, content TEXT NOT NULL, finished_at TEXT NOT NULL, "
                "PRIMARY KEY (study, parameters))"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.OperationalError as error:
            raise SweepError(
                f"finished trials in {self.path} cannot be read or written: {error}. Free space or permissions there, or "
                "end the process that holds the file; nothing that was recorded is lost."
            ) from error

    def open_study(self, description: Mapping[str, Any], scope: str) -> str:
        """The key of a study, entered when it is new.

        Args:
            description: see `Sweep.study`.
            scope: what it was for: `in_sample`, `backtest`, or a fold of a walk-forward.
        """
        text = json.dumps(description, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO studies VALUES (?, ?, ?, ?, ?)",
                (key, str(description["strategy"]), scope, text, dt.datetime.now(dt.UTC).isoformat()),
            )
        return key

    def finished(self, study: str) -> dict[str, Trial]:
        """Trials by `parameter_key`."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT parameters, content FROM trials WHERE study = ?", (study,)
            ).fetchall()
        return {key: _from_json(content) for key, content in rows}

    def record(self, study: str, trials: Sequence[Trial]) -> None:
        """Remember trials, all or none of them."""
        now = dt.datetime.now(dt.UTC).isoformat()
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?, ?)",
                [(study, parameter_key(t.parameters), t.number, _to_json(t), now) for t in trials],
            )

    def counted(self, strategy: str) -> tuple[int, float]:
        """(trials, variance of their annual Sharpe ratios): what the deflated Sharpe ratio of a strategy is deflated by.

        A trial is a configuration: all parameters, costs, account and symbols. Every one that was ever evaluated counts
        once, by whatever sweep, walk-forward or backtest, on whatever window, also with code that has changed since. Not
        counted are failed ones and ones that never traded: they have no Sharpe ratio, so neither number knows them. Where a
        configuration was evaluated several times, its newest in-sample Sharpe ratio goes into the variance, else that of
        its backtest, else that of a fold.

        Trials are counted as if they were independent. Neighbouring sets are not, so the Sharpe ratio that luck explains
        is rather too high than too low.

        Returns:
            At least one trial; the variance (ddof 1) is NaN below two.
        """
        best: dict[str, tuple[int, float]] = {}
        for _, scope, description, _, trial in self.everything(strategy):
            sharpe = trial.values.get("sharpe", math.nan)
            if trial.error or not math.isfinite(sharpe):
                continue
            key = parameter_key(
                {
                    "parameters": all_parameters(strategy, {**description["fixed"], **trial.parameters}),
                    **{name: description[name] for name in ("costs", "account", "symbols")},
                }
            )
            rank = {"in_sample": 2, "backtest": 1}.get(scope, 0)
            if key not in best or rank >= best[key][0]:
                best[key] = (rank, sharpe)
        sharpes = [sharpe for _, sharpe in best.values()]
        return max(len(sharpes), 1), float(np.var(sharpes, ddof=1)) if len(sharpes) > 1 else math.nan

    def seen_until(self, strategy: str, parameters: Mapping[str, Any]) -> dt.date | None:
        """Last session of any sweep (folds left out) that evaluated these parameters; None when none did.

        Args:
            strategy: name.
            parameters: all of them.
        """
        ends = [
            dt.date.fromisoformat(description["window"][1])
            for _, scope, description, _, trial in self.everything(strategy)
            if scope == "in_sample"
            and all_parameters(strategy, {**description["fixed"], **trial.parameters}) == parameters
        ]
        return max(ends, default=None)

    def everything(
        self, strategy: str | None = None
    ) -> Iterator[tuple[str, str, dict[str, Any], str, Trial]]:
        """(study, scope, description, finished_at, trial) of every trial that was ever run, oldest study first."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT study, scope, description, finished_at, content FROM trials JOIN studies ON study = key "
                "WHERE ? IS NULL OR strategy = ? ORDER BY studies.rowid, number",
                (strategy, strategy),
            ).fetchall()
        for study, scope, description, finished_at, content in rows:
            yield study, scope, json.loads(description), finished_at, _from_json(content)


def parameter_key(parameters: Mapping[str, Any]) -> str:
    """The identity of a parameter set."""
    return json.dumps(dict(parameters), sort_keys=True)


def all_parameters(strategy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given parameters and the defaults of the others, by name."""
    cls = strategy_class(strategy)
    return {f.name: given.get(f.name, f.default) for f in fields(cls)}


def _to_json(trial: Trial) -> str:
    return json.dumps(
        {
            "number": trial.number,
            "parameters": trial.parameters,
            # JSON has no NaN.
            "values": {k: v if math.isfinite(v) else None for k, v in trial.values.items()},
            "error": trial.error,
            "blocks": [list(trial.block_sums), list(trial.block_squares), list(trial.block_counts)],
        },
        allow_nan=False,
    )


def _from_json(content: str) -> Trial:
    raw = json.loads(content)
    sums, squares, counts = raw["blocks"]
    values = {k: math.nan if v is None else v for k, v in raw["values"].items()}
    return Trial(
        raw["number"], raw["parameters"], values, raw["error"], tuple(sums), tuple(squares), tuple(counts)
    )


def data_identity(
    series: Mapping[str, BarSeries], probability: Mapping[str, np.ndarray] | None = None
) -> str:
    """A hash of everything that a simulation reads, 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for symbol in sorted(series):
        bars = series[symbol]
        digest.update(symbol.encode())
        digest.update(bars.sessions.astype("int64").tobytes())
        for name in ARRAYS:
            digest.update(np.ascontiguousarray(getattr(bars, name)).tobytes())
        if probability is not None:
            digest.update(np.ascontiguousarray(probability[symbol]).tobytes())
    return digest.hexdigest()


def code_identity(strategy: str) -> str:
    """A hash of the code that a simulation runs through, 16 hex digits: results of older code are not reused."""
    module = importlib.import_module(strategy_class(strategy).__module__)
    ours = (indicators, rules_module, engine, grid, portfolio)
    files = {module.__file__, __file__, *(m.__file__ for m in ours)}
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(str(f) for f in files):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def record_backtest(
    store: TrialStore, run: Backtest, costs: Costs, account: Account, symbols: Sequence[str], data: str
) -> None:
    """Remember a backtest as a trial: parameters that were tried by hand count as those of a sweep do."""
    description = {
        "strategy": run.strategy,
        "method": "backtest",
        "window": [str(run.window.first), str(run.window.last)],
        "fixed": {},
        "costs": costs._asdict(),
        "account": account._asdict(),
        "symbols": sorted(symbols),
        "data": data,
        "code": code_identity(run.strategy),
    }
    study = store.open_study(description, "backtest")
    returns = statistics.period_returns(run.equity)
    values = {
        "total_return": statistics.total_return(run.equity),
        "sharpe": statistics.sharpe_ratio(returns),
        "volatility": statistics.volatility(returns),
        "max_drawdown": statistics.max_drawdown(run.equity),
        "final_equity": float(run.equity[-1]),
        "trades": float(run.trades.num_rows),
        "rejected": float(run.rejected.num_rows),
    }
    store.record(study, [Trial(0, run.parameters, values)])


@dataclass(frozen=True)
class _Chunk:
    """What a worker gets: everything, because it may be another process."""

    strategy: type[Strategy]
    sets: list[tuple[int, dict[str, Any]]]
    fixed: dict[str, Any]
    series: Mapping[str, BarSeries]
    probability: Mapping[str, np.ndarray] | None
    window: Window
    costs: Costs
    account: Account
    accounts: int


def _evaluate(chunk: _Chunk) -> list[Trial]:
    """Simulate the sets of a chunk; a set that fails is reported and the others go on."""
    trials: dict[int, Trial] = {}
    good: list[tuple[int, dict[str, Any]]] = []
    rules: list[Rules] = []
    decisions: dict[str, list[np.ndarray]] = {symbol: [] for symbol in chunk.series}

    def fail(number: int, parameters: dict[str, Any], error: Exception) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        trials[number] = Trial(
            number,
            parameters,
            {},
            f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})",
        )

    for number, parameters in chunk.sets:
        try:
            rule = chunk.strategy.create(**chunk.fixed, **parameters).rules
            rows = {
                symbol: chunk.strategy.decide_grid(
                    bars, [{**chunk.fixed, **parameters}], (chunk.probability or {}).get(symbol)
                )
                for symbol, bars in chunk.series.items()
            }
        except Exception as error:  # the strategy is anybody's code
            fail(number, parameters, error)
            continue
        good.append((number, parameters))
        rules.append(rule)
        for symbol, row in rows.items():
            decisions[symbol].append(row)
    if good:
        result = simulate_sets(
            chunk.series,
            {symbol: np.concatenate(rows) for symbol, rows in decisions.items()},
            rule_array(rules),
            chunk.window,
            chunk.costs,
            chunk.account,
            accounts=chunk.accounts,
        )
        counts = tuple(int(c) for c in result.block_counts)
        for at, (number, parameters) in enumerate(good):
            trials[number] = Trial(
                number,
                parameters,
                {name: float(v) for name, v in zip(STATISTICS, result.values[at], strict=True)},
                "",
                tuple(result.block_sums[at].tolist()),
                tuple(result.block_squares[at].tolist()),
                counts,
            )
    return [trials[number] for number, _ in chunk.sets]


def run_sweep(
    sweep: Sweep,
    series: Mapping[str, BarSeries],
    store: TrialStore,
    compute: Compute,
    probability: Mapping[str, np.ndarray] | None = None,
    scope: str = "in_sample",
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Evaluate the sets of a sweep that are not finished yet.

    Args:
        sweep: what to search.
        series: bars by symbol; bars after the window are cut off before anything sees them.
        store: finished trials.
        compute: workers.
        probability: by symbol, shape (bars, 2).
        scope: recorded with the study.
        progress: called with (finished, all) after every chunk.

    Raises:
        SpaceError: the space is empty or too large.
        BacktestError: the window holds no session.
    """
    symbols = sorted(series)
    series, probability = _until(series, probability, sweep.window.last)
    study = store.open_study(sweep.study(data_identity(series, probability), symbols), scope)
    # A trial that failed is tried again: what was wrong may have been mended since.
    found = {key: trial for key, trial in store.finished(study).items() if not trial.error}
    known = dict(found)
    cls = strategy_class(sweep.strategy)

    def chunk(sets: list[tuple[int, dict[str, Any]]]) -> _Chunk:
        return _Chunk(
            cls,
            sets,
            dict(sweep.fixed),
            series,
            probability,
            sweep.window,
            sweep.costs,
            sweep.account,
            len(symbols),
        )

    def work(sets: list[tuple[int, dict[str, Any]]], size: int, total: int) -> None:
        todo = [(n, p) for n, p in sets if parameter_key(p) not in known]
        chunks = [chunk(todo[i : i + size]) for i in range(0, len(todo), size)]
        for trials in compute.map(_evaluate, chunks):
            store.record(study, trials)
            known.update({parameter_key(t.parameters): t for t in trials})
            if progress:
                progress(len(known), total)

    if sweep.method == "bayesian":
        order = _bayesian(sweep, known, lambda sets: work(sets, 1, sweep.trials))
    else:
        sets = (
            sweep.space.grid(sweep.most_trials)
            if sweep.method == "grid"
            else list(sweep.space.random(sweep.trials, sweep.seed))
        )
        order = [parameter_key(p) for p in sets]
        work(list(enumerate(sets)), CHUNK_SETS, len(sets))
    trials = [known[key] for key in order]
    return SweepResult(sweep, study, trials, sum(key in found for key in order))


def _bayesian(
    sweep: Sweep, known: Mapping[str, Trial], work: Callable[[list[tuple[int, dict[str, Any]]]], None]
) -> list[str]:
    """Walk Optuna's proposals batch by batch; the keys of the distinct sets, in order."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    order: list[str] = []
    # A small space runs out of new sets: proposals that repeat are answered from memory and do not count.
    batch = 0
    while len(order) < sweep.trials and batch < 20 + 4 * math.ceil(sweep.trials / BAYESIAN_BATCH):
        study.sampler = optuna.samplers.TPESampler(
            seed=(sweep.seed * 1_000_003 + batch) % 2**32, n_startup_trials=16, constant_liar=True
        )
        batch += 1
        asked = []
        for _ in range(BAYESIAN_BATCH):
            trial = study.ask()
            parameters = {d.name: _suggest(trial, d) for d in sweep.space.dimensions}
            asked.append((trial, parameters))
        fresh: list[tuple[int, dict[str, Any]]] = []
        for _, parameters in asked:
            key = parameter_key(parameters)
            if sweep.space.allows(parameters) and key not in order and len(order) < sweep.trials:
                order.append(key)
                fresh.append((len(order) - 1, parameters))
        work(fresh)
        for trial, parameters in asked:
            done = known.get(parameter_key(parameters))
            value = math.nan if done is None or done.error else done.values[sweep.objective]
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
    if not order:
        raise SweepError(
            f"the sampler found no set of {sweep.strategy} with ordered = {sweep.space.ordered}; widen the ranges"
        )
    return order


def _suggest(trial: Any, dimension: Any) -> Any:
    if dimension.type == "choice":
        # Optuna takes categories of simple types only; the index is one.
        return dimension.values[trial.suggest_categorical(dimension.name, list(range(len(dimension.values))))]
    if dimension.type == "int":
        return trial.suggest_int(dimension.name, int(dimension.low), int(dimension.high))
    return trial.suggest_float(dimension.name, dimension.low, dimension.high)


def _until(
    series: Mapping[str, BarSeries], probability: Mapping[str, np.ndarray] | None, last: dt.date
) -> tuple[dict[str, BarSeries], dict[str, np.ndarray] | None]:
    """Only what was known at the close of `last`; symbols without a bar until then are left out."""
    ends = {s: bars.position(last + dt.timedelta(days=1)) for s, bars in series.items()}
    kept = {s: bars.cut(0, ends[s]) for s, bars in series.items() if ends[s]}
    if probability is None:
        return kept, None
    return kept, {s: probability[s][: ends[s]] for s in kept}


@dataclass(frozen=True)
class FoldResult:
    """One step of a walk-forward: the trial chosen on the past, and what it did on the next window.

    Attributes:
        fold: windows.
        chosen: best trial of the training window; None when none can be chosen (nothing traded): the fold stays in cash.
        trials: sets evaluated there.
        test: the chosen parameters on the test window, with the money that the step before left.
    """

    fold: Fold
    chosen: Trial | None
    trials: int
    test: Backtest


def run_walk_forward(
    sweep: Sweep,
    folds: Sequence[Fold],
    series: Mapping[str, BarSeries],
    store: TrialStore,
    compute: Compute,
    probability: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[FoldResult]:
    """Choose on each training window alone, trade the next window, carry the money on.

    Positions do not cross from one test window to the next: what is still held at a window's end is marked at its last
    close, without exit costs, and the next window starts flat and waits for its own entry. So the chained equity says what
    the *choice* of parameters is worth; it is not the record of one account that traded through.

    Args:
        sweep: method, space, objective; its window is replaced by each fold's training window.
        folds: see `portfolio.walk_forward`.
        series, store, compute, probability: as in `run_sweep`.
        progress: called with (finished folds, folds).
    """
    results: list[FoldResult] = []
    account = sweep.account
    for step, fold in enumerate(folds):
        searched = run_sweep(
            replace(sweep, window=fold.train), series, store, compute, probability, scope=f"fold {step}"
        )
        # Where every trial failed, `best` raises: a broken strategy is no reason to stay in cash.
        best = searched.best if searched.can_choose or not searched.complete else None
        strategy = (
            make_strategy("flat")
            if best is None
            else strategy_class(sweep.strategy).create(**sweep.fixed, **best.parameters)
        )
        known, known_probability = _until(series, probability, fold.test.last)
        test = run_backtest(strategy, known, fold.test, known_probability, sweep.costs, account, len(series))
        results.append(FoldResult(fold, best, len(searched.complete), test))
        account = account._replace(initial_cash=float(test.equity[-1]))
        if progress:
            progress(step + 1, len(folds))
        if test.equity[-1] <= 0:
            break
    return results


def chained_equity(results: Sequence[FoldResult]) -> tuple[np.ndarray, np.ndarray]:
    """Sessions and equity of the test windows one after another."""
    return (
        np.concatenate([r.test.sessions for r in results]),
        np.concatenate([r.test.equity for r in results]),
    )
