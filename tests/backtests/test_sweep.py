"""Sweeps: the same seed gives the same trials however they are run, a kill loses little, and nothing later is seen."""

import datetime as dt
import importlib
import itertools
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quant_assets.backtests import sweep as sweep_module
from quant_assets.backtests.engine import Account, BacktestError, Costs
from quant_assets.backtests.grid import STATISTICS
from quant_assets.backtests.portfolio import Fold, Window, run_backtest, walk_forward
from quant_assets.backtests.space import Dimension, Space, SpaceError, load_space
from quant_assets.backtests.sweep import (
    Sweep,
    SweepError,
    SweepResult,
    Trial,
    TrialStore,
    chained_equity,
    parameter_key,
    record_backtest,
    run_sweep,
    run_walk_forward,
)
from quant_assets.market.series import ARRAYS, BarSeries, bar_series
from quant_assets.strategies import STRATEGIES, make_strategy
from quant_resources.compute import Compute

HERE = Compute("sequential")
METHODS = ("grid", "random", "bayesian")
YEARS = Window(dt.date(2008, 1, 2), dt.date(2009, 12, 31))
COSTS = Costs(commission_bps=1, half_spread_bps=1)

# A strategy that notes every evaluation in a file, takes its time and breaks when it is told to; a random walk; sweeps
# of 160 (grid, random) and 40 sets. In a module of its own because a process that can be killed has to import it.
COUNTED = """
import os, sys, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quant_assets.backtests.portfolio import Window
from quant_assets.backtests.space import Dimension, Space
from quant_assets.backtests.sweep import Sweep, TrialStore, parameter_key, run_sweep
from quant_assets.market.series import BarSeries
from quant_assets.strategies import STRATEGIES
from quant_assets.strategies.indicators import simple_moving_average
from quant_assets.strategies.strategy import ENTER_LONG, ENTER_SHORT, Strategy
from quant_resources.compute import Compute

STRATEGIES["counted"] = "counted_strategy:Counted"
SPACE = Space(
    "counted",
    (
        Dimension("period", "int", 2, 17),
        Dimension("band", "float", 0.0, 0.04, 0.01),
        Dimension("side", "choice", values=("both", "long")),
    ),
)
TRIALS = {"grid": 160, "random": 160, "bayesian": 40}


@dataclass(frozen=True, kw_only=True)
class Counted(Strategy):
    name: ClassVar[str] = "counted"

    period: int = 5
    band: float = 0.0
    side: str = "both"

    def decide(self, bars, probability=None):
        if path := os.environ.get("COUNTED_FILE"):
            swept = {name: getattr(self, name) for name in ("period", "band", "side")}
            with open(path, "a") as file:
                file.write(parameter_key(swept) + "\\n")
        time.sleep(float(os.environ.get("COUNTED_SECONDS", "0")))
        if self.period >= int(os.environ.get("COUNTED_BREAKS_FROM", "99")):
            raise ArithmeticError(f"a period of {self.period} broke")
        mean = simple_moving_average(bars.adj_close, self.period)
        up, down = bars.adj_close > mean * (1 + self.band), bars.adj_close < mean * (1 - self.band)
        return (ENTER_LONG * up + ENTER_SHORT * (down & (self.side == "both"))).astype(np.int8)


def series():
    rng = np.random.default_rng(5)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, 300)))
    open_ = np.r_[100.0, close[:-1]] * np.exp(rng.normal(0, 0.003, 300))
    sessions = np.datetime64("2011-01-03") + np.arange(300)
    high, low = np.maximum(open_, close) * 1.01, np.minimum(open_, close) * 0.99
    return {
        "TEST": BarSeries(
            "TEST", sessions, open_, high, low, close, np.full(300, 1e6), np.zeros(300), np.ones(300),
            open_, high, low, close,
        )
    }


def sweep(method, **changes):
    return Sweep(
        "counted",
        SPACE,
        Window(np.datetime64("2011-03-01").item(), np.datetime64("2011-10-01").item()),
        method,
        **{"trials": TRIALS[method], "seed": 3, **changes},
    )


if __name__ == "__main__":
    store, *methods = sys.argv[1:]
    for method in methods:
        found = run_sweep(sweep(method), series(), TrialStore(Path(store)), Compute("sequential"))
        print(repr(found.trials), flush=True)
"""


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module above, imported here, for other processes on their PYTHONPATH."""
    folder = tmp_path_factory.mktemp("strategies")
    (folder / "counted_strategy.py").write_text(textwrap.dedent(COUNTED))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setitem(STRATEGIES, "counted", "counted_strategy:Counted")
        yield importlib.import_module("counted_strategy")
        sys.modules.pop("counted_strategy")


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    return TrialStore(tmp_path / "backtests" / "trials.db")


@pytest.fixture(scope="module")
def series(sample_bars: pa.Table) -> dict[str, BarSeries]:
    return bar_series(sample_bars)


@pytest.fixture
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Keys of the sets that `counted` has evaluated in this process since the last call, in order."""
    path = tmp_path / "evaluations"
    monkeypatch.setenv("COUNTED_FILE", str(path))

    def read() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return read


def exact(trials: list[Trial]) -> list[str]:
    """Every bit of every trial; NaN equals NaN."""
    return [repr(t) for t in trials]


def small(method: str = "grid", window: Window = YEARS, **changes: Any) -> Sweep:
    """Thirty-six crossovers, a few of them at random, or eighteen proposals."""
    space = Space(
        "sma_crossover",
        (Dimension("fast_period", "int", 2, 12, 2), Dimension("slow_period", "int", 15, 40, 5)),
        (("fast_period", "slow_period"),),
    )
    return Sweep("sma_crossover", space, window, method, **{"trials": 18, "costs": COSTS, **changes})  # type: ignore[arg-type]


def two(series: Mapping[str, BarSeries]) -> dict[str, BarSeries]:
    return {symbol: series[symbol] for symbol in ("AAPL", "IBM")}


def disturbed(bars: BarSeries, after: dt.date, factor: float = 2.0) -> BarSeries:
    """Other prices, volumes and events on every session after a date."""
    arrays = {name: getattr(bars, name).copy() for name in ARRAYS}
    later = bars.sessions > np.datetime64(after)
    for name in ARRAYS:
        if name not in ("dividend", "split_factor"):
            arrays[name][later] *= factor
    arrays["dividend"][later] += 0.5
    return BarSeries(bars.symbol, bars.sessions, **arrays)


# --------------------------------------------------------------------------------------------- the same trials


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_trials(
    method: str, series: dict[str, BarSeries], tmp_path: Path
) -> None:
    found = [run_sweep(small(method), two(series), TrialStore(tmp_path / f"{i}.db"), HERE) for i in range(2)]
    assert exact(found[0].trials) == exact(found[1].trials)
    assert found[0].study == found[1].study
    assert [t.number for t in found[0].trials] == list(range(36 if method == "grid" else 18))
    assert len({parameter_key(t.parameters) for t in found[0].trials}) == len(found[0].trials)
    assert [f.reused for f in found] == [0, 0]
    other = run_sweep(small(method, seed=1), two(series), TrialStore(tmp_path / "other.db"), HERE)
    same = [t.parameters for t in other.trials] == [t.parameters for t in found[0].trials]
    assert same == (method == "grid")


def test_a_trial_is_the_backtest_of_its_parameters(series: dict[str, BarSeries], store: TrialStore) -> None:
    found = run_sweep(small("random", fixed={"sizing": "shares", "size": 50.0}), two(series), store, HERE)
    for trial in found.trials[:5]:
        strategy = make_strategy("sma_crossover", **trial.parameters, sizing="shares", size=50.0)
        done = run_backtest(strategy, two(series), YEARS, costs=COSTS)
        assert trial.values["final_equity"] == done.equity[-1]
        assert trial.values["trades"] == done.trades.num_rows
        assert list(trial.values) == list(STATISTICS)
        assert sum(trial.block_counts) == done.sessions.size - 1
    assert found.best.values["sharpe"] == max(t.values["sharpe"] for t in found.trials)
    sums, squares, counts = found.blocks() or pytest.fail("no blocks")
    assert sums.shape == squares.shape == (16, 18)
    assert counts.tolist() == list(found.trials[0].block_counts)
    sharpes = [t.values["sharpe"] for t in found.trials]
    assert store.counted("sma_crossover") == (18, pytest.approx(np.var(sharpes, ddof=1)))


def test_two_processes_change_nothing(series: dict[str, BarSeries], tmp_path: Path) -> None:
    for method in METHODS:
        one, other = (
            run_sweep(small(method), two(series), TrialStore(tmp_path / f"{method} {c.backend}.db"), c)
            for c in (HERE, Compute("loky", 2))
        )
        assert exact(one.trials) == exact(other.trials), method


def test_progress_counts_up_to_all_of_them(counted: ModuleType, store: TrialStore) -> None:
    told: list[tuple[int, int]] = []
    run_sweep(counted.sweep("grid"), counted.series(), store, HERE, progress=lambda *x: told.append(x))
    assert told == [(n, 160) for n in (32, 64, 96, 128, 160)]


# ------------------------------------------------------------------------------------------------- started again


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_sweep_goes_on_where_it_was(
    method: str, counted: ModuleType, store: TrialStore, tmp_path: Path, evaluations: Callable[[], list[str]]
) -> None:
    total, enough = counted.TRIALS[method], {"bayesian": 11}.get(method, 64)
    lost = tmp_path / "killed"
    lost.touch()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(counted.__file__).parent), os.getcwd()]),
        "COUNTED_FILE": str(lost),
        "COUNTED_SECONDS": "0.02" if method != "bayesian" else "0.1",
    }
    with subprocess.Popen(
        [sys.executable, counted.__file__, str(store.path), method],
        env=environment,
        stdout=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        # Until the chunk that follows is under way.
        while not (enough <= rows(store) < len(lost.read_text().splitlines())):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finished = rows(store)
    assert enough <= finished < total
    started = lost.read_text().splitlines()
    # The chunk in flight is lost, and nothing else; one that holds a single set may just have been written.
    assert len(started) > finished or method == "bayesian"

    resumed = run_sweep(counted.sweep(method), counted.series(), store, HERE)
    again = evaluations()
    assert resumed.reused == finished
    assert len(again) == len(set(again)) == total - finished
    assert not set(again) & set(started[:finished])

    uninterrupted = run_sweep(
        counted.sweep(method), counted.series(), TrialStore(tmp_path / "fresh.db"), HERE
    )
    assert len(evaluations()) == total
    assert exact(resumed.trials) == exact(uninterrupted.trials)
    assert parameter_key(resumed.best.parameters) == parameter_key(uninterrupted.best.parameters)

    # And a third time there is nothing to do.
    third = run_sweep(counted.sweep(method), counted.series(), store, HERE)
    assert (third.reused, evaluations()) == (total, [])
    assert exact(third.trials) == exact(resumed.trials)


def rows(store: TrialStore) -> int:
    with closing(sqlite3.connect(store.path, timeout=60)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM trials").fetchone()[0])


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_a_longer_search_continues_the_shorter_one(
    method: str, counted: ModuleType, store: TrialStore, tmp_path: Path, evaluations: Callable[[], list[str]]
) -> None:
    short = run_sweep(counted.sweep(method, trials=13), counted.series(), store, HERE)
    assert len(evaluations()) == 13
    long = run_sweep(counted.sweep(method, trials=30), counted.series(), store, HERE)
    assert len(evaluations()) == 17
    assert (long.reused, long.study) == (13, short.study)
    assert exact(long.trials[:13]) == exact(short.trials)
    at_once = run_sweep(
        counted.sweep(method, trials=30), counted.series(), TrialStore(tmp_path / "f.db"), HERE
    )
    assert exact(long.trials) == exact(at_once.trials)
    # Back to the shorter one: its own trials and no more.
    evaluations()
    assert exact(run_sweep(counted.sweep(method, trials=13), counted.series(), store, HERE).trials) == exact(
        short.trials
    )
    assert evaluations() == []


def test_the_objective_of_a_search_that_it_does_not_steer_is_no_other_study(
    counted: ModuleType, store: TrialStore, evaluations: Callable[[], list[str]]
) -> None:
    for method in METHODS:
        first = run_sweep(counted.sweep(method, trials=10), counted.series(), store, HERE)
        evaluations()
        second = run_sweep(counted.sweep(method, trials=10, objective="sqn"), counted.series(), store, HERE)
        if method == "bayesian":
            assert second.study != first.study
            assert len(evaluations()) == 10
        else:
            assert second.study == first.study
            assert evaluations() == []
        assert second.best.values["sqn"] == np.nanmax([t.values["sqn"] for t in second.complete])


def test_two_processes_share_one_store(counted: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "shared" / "trials.db"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(counted.__file__).parent), os.getcwd()]),
        "COUNTED_SECONDS": "0.001",
    }
    command = [sys.executable, counted.__file__, str(path)]
    both = [
        subprocess.Popen([*command, *order], env=environment, stdout=subprocess.PIPE, text=True)
        for order in (("bayesian", "grid"), ("bayesian", "grid"))
    ]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed[0] == printed[1]
    expected = run_sweep(counted.sweep("grid"), counted.series(), TrialStore(tmp_path / "alone.db"), HERE)
    assert printed[0].splitlines()[1] == repr(expected.trials)
    assert rows(TrialStore(path)) == 160 + 40
    assert run_sweep(counted.sweep("grid"), counted.series(), TrialStore(path), HERE).reused == 160


def test_other_code_is_another_study(
    counted: ModuleType,
    store: TrialStore,
    monkeypatch: pytest.MonkeyPatch,
    evaluations: Callable[[], list[str]],
) -> None:
    first = run_sweep(counted.sweep("random", trials=20), counted.series(), store, HERE)
    evaluations()
    monkeypatch.setattr(sweep_module, "code_identity", lambda strategy: "written anew")
    second = run_sweep(counted.sweep("random", trials=20), counted.series(), store, HERE)
    assert second.study != first.study
    assert (second.reused, len(evaluations())) == (0, 20)
    assert exact(second.trials) == exact(first.trials)
    # Both are in the store; a set that was tried twice was tried.
    assert rows(store) == 40
    assert store.counted("counted")[0] == 20


def test_the_code_of_a_strategy_and_of_the_engine_is_hashed(
    counted: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = sweep_module.code_identity("counted")
    assert before == sweep_module.code_identity("counted") != sweep_module.code_identity("sma_crossover")
    for module in (counted, sweep_module.engine, sweep_module.grid, sweep_module.indicators):
        assert module.__file__ is not None
        changed = tmp_path / Path(module.__file__).name
        changed.write_text(Path(module.__file__).read_text() + "\n# changed\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(changed))
            assert sweep_module.code_identity("counted") != before, module.__name__
    assert sweep_module.code_identity("counted") == before


# ---------------------------------------------------------------------------------------------------- it breaks


def test_a_set_that_fails_does_not_stop_the_others(
    counted: ModuleType,
    store: TrialStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluations: Callable[[], list[str]],
) -> None:
    whole = run_sweep(counted.sweep("grid"), counted.series(), TrialStore(tmp_path / "whole.db"), HERE)
    breaks_from = whole.best.parameters["period"]  # the best one fails
    evaluations()

    monkeypatch.setenv("COUNTED_BREAKS_FROM", str(breaks_from))
    found = run_sweep(counted.sweep("grid"), counted.series(), store, HERE)
    failed = [t for t in found.trials if t.error]
    assert [t.parameters for t in failed] == [
        t.parameters for t in whole.trials if t.parameters["period"] >= breaks_from
    ]
    assert 0 < len(failed) < 160
    first = failed[0]
    assert first.error.startswith(
        f"ArithmeticError: a period of {first.parameters['period']} broke (counted_strategy.py:"
    )
    assert (first.values, first.block_sums) == ({}, ())
    assert [t.number for t in found.trials] == list(range(160))
    good = [t for t in whole.trials if t.parameters["period"] < breaks_from]
    assert exact(found.complete) == exact(good)
    assert found.best.values["sharpe"] == max(t.values["sharpe"] for t in good)
    assert (found.blocks() or pytest.fail("no blocks"))[0].shape == (16, len(good))
    assert store.counted("counted")[0] == sum(math.isfinite(t.values["sharpe"]) for t in good)
    assert len(evaluations()) == 160

    # It is still broken: only the failed ones are tried again.
    again = run_sweep(counted.sweep("grid"), counted.series(), store, HERE)
    assert exact(again.trials) == exact(found.trials)
    assert again.reused == len(good)
    assert sorted(evaluations()) == sorted(parameter_key(t.parameters) for t in failed)

    # It is mended.
    monkeypatch.delenv("COUNTED_BREAKS_FROM")
    mended = run_sweep(counted.sweep("grid"), counted.series(), store, HERE)
    assert exact(mended.trials) == exact(whole.trials)
    assert (mended.reused, len(evaluations())) == (len(good), len(failed))
    traded = [t for t in whole.trials if math.isfinite(t.values["sharpe"])]
    assert store.counted("counted")[0] == len(traded) > 100


def test_a_bayesian_search_goes_round_what_fails(
    counted: ModuleType, store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTED_BREAKS_FROM", "10")
    found = run_sweep(counted.sweep("bayesian"), counted.series(), store, HERE)
    assert len(found.trials) == 40
    assert {bool(t.error) for t in found.trials} == {True, False}
    assert all(bool(t.error) == (t.parameters["period"] >= 10) for t in found.trials)
    assert not found.best.error


def test_parameters_that_a_strategy_refuses_are_failed_trials(
    series: dict[str, BarSeries], store: TrialStore
) -> None:
    unordered = replace(
        small().space,
        ordered=(),
        dimensions=(Dimension("fast_period", "int", 10, 40, 10), Dimension("slow_period", "int", 15, 40, 25)),
    )
    found = run_sweep(replace(small(), space=unordered), two(series), store, HERE)
    assert [(t.parameters["fast_period"], t.parameters["slow_period"]) for t in found.complete] == [
        (10, 15),
        (10, 40),
        (20, 40),
        (30, 40),
    ]
    assert "StrategyError: slow_period = 15 must be above fast_period = 20" in found.trials[2].error


def test_when_everything_fails_the_first_is_named(
    counted: ModuleType, store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTED_BREAKS_FROM", "0")
    for method in METHODS:
        found = run_sweep(counted.sweep(method, trials=12), counted.series(), store, HERE)
        assert found.complete == []
        assert found.blocks() is None
        with pytest.raises(SweepError) as caught:
            _ = found.best
        message = str(caught.value)
        count, first = len(found.trials), found.trials[0]
        assert f"of {count} trials of counted none can be chosen: {count} failed, the first with" in message
        assert str(first.parameters) in message
        assert f"ArithmeticError: a period of {first.parameters['period']} broke" in message
    trials, variance = store.counted("counted")
    assert (trials, math.isnan(variance)) == (1, True)


def trial(number: int, sharpe: float, error: str = "") -> Trial:
    return Trial(
        number, {"fast_period": number}, {} if error else {"sharpe": sharpe, "trades": 5.0 * number}, error
    )


def test_the_best_is_the_earliest_of_equals_and_defined() -> None:
    trials = [trial(0, math.nan), trial(1, 0.5), trial(2, 0.7), trial(3, 0.7), trial(4, 0, "broke")]
    assert SweepResult(small(), "key", trials, 0).best.number == 2
    with pytest.raises(
        SweepError, match=r"of 1 trials of sma_crossover .* none has a defined sharpe and at least 0 trades"
    ):
        _ = SweepResult(small(), "key", trials[:1], 0).best
    # A ratio of a handful of trades is luck.
    assert SweepResult(small(min_trades=12), "key", trials, 0).best.number == 3
    assert not SweepResult(small(min_trades=99), "key", trials, 0).can_choose


def test_a_set_that_never_lost_has_the_best_profit_factor() -> None:
    values = {"sharpe": 1.0, "trades": 3.0, "total_return": 0.1}
    trials = [
        Trial(0, {"fast_period": 2}, {**values, "profit_factor": 266.7}),
        Trial(1, {"fast_period": 3}, {**values, "profit_factor": math.nan}),
        Trial(
            2, {"fast_period": 4}, {**values, "profit_factor": math.nan, "total_return": 0.0, "trades": 0.0}
        ),
    ]
    assert SweepResult(small(objective="profit_factor"), "key", trials, 0).best.number == 1


def test_misuse(series: dict[str, BarSeries], store: TrialStore) -> None:
    for changes, message in (
        ({"method": "gird"}, "method = 'gird' is not one of grid, random, bayesian"),
        ({"objective": "sharp"}, "objective = 'sharp' is not one of sharpe, total_return"),
        ({"method": "random", "trials": 0}, r"trials = 0 must lie in 1\.\.20000"),
        ({"method": "bayesian", "trials": 20_001}, r"trials = 20001 must lie in 1\.\.20000"),
        ({"fixed": {"fast_period": 3}}, "fast_period is both fixed and swept"),
    ):
        with pytest.raises(SweepError, match=message):
            small(**changes)
    with pytest.raises(SpaceError, match=r"36 sets .* more than 35"):
        run_sweep(small(most_trials=35), two(series), store, HERE)
    for window in (
        Window(dt.date(2012, 6, 2), dt.date(2012, 6, 3)),
        Window(dt.date(1999, 1, 1), dt.date(1999, 2, 1)),
    ):
        with pytest.raises(BacktestError, match="holds no session"):
            run_sweep(small(window=window), two(series), store, HERE)
    nothing = replace(small().space, ordered=(("slow_period", "fast_period"),))
    for method in METHODS:
        with pytest.raises((SpaceError, SweepError), match="ordered"):
            run_sweep(replace(small(method), space=nothing), two(series), store, HERE)
    assert store.counted("sma_crossover")[0] == 1


# ------------------------------------------------------------------------------------------------ what comes later


@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_sees_no_bar_after_its_window(
    method: str, series: dict[str, BarSeries], tmp_path: Path, store: TrialStore
) -> None:
    seen = run_sweep(small(method), series, store, HERE)
    other = {symbol: disturbed(bars, YEARS.last) for symbol, bars in series.items()}
    found = run_sweep(small(method), other, TrialStore(tmp_path / "other.db"), HERE)
    assert found.study == seen.study
    assert exact(found.trials) == exact(seen.trials)
    # Facebook is declared and has no bar yet: its share of the money is there, whatever its later bars are.
    assert other["FB"].sessions[0] > np.datetime64(YEARS.last)
    assert run_sweep(small(method), other, store, HERE).reused == len(seen.trials)
    # Another list of symbols splits the money otherwise.
    del other["FB"]
    assert run_sweep(small(method), other, store, HERE).reused == 0
    # The control: one bar inside, by a hair.
    inside = {**series, "IBM": disturbed(series["IBM"], YEARS.last - dt.timedelta(days=1), 1 + 1e-9)}
    changed = run_sweep(small(method), inside, store, HERE)
    assert changed.study != seen.study
    assert changed.reused == 0
    assert exact(changed.trials) != exact(seen.trials)


def test_probabilities_are_cut_too(series: dict[str, BarSeries], store: TrialStore) -> None:
    rng, bars = np.random.default_rng(1), two(series)
    probability = {symbol: rng.random((len(b), 2)) for symbol, b in bars.items()}
    sweep = Sweep("mlp_long_short", load_space("mlp_long_short"), YEARS, "random", trials=8)
    seen = run_sweep(sweep, bars, store, HERE, probability)
    later = {
        s: np.where(bars[s].sessions[:, None] > np.datetime64(YEARS.last), 0.0, p)
        for s, p in probability.items()
    }
    assert run_sweep(sweep, bars, store, HERE, later).reused == 8
    inside = {
        s: np.where(bars[s].sessions[:, None] >= np.datetime64(YEARS.last), 0.0, p)
        for s, p in probability.items()
    }
    assert run_sweep(sweep, bars, store, HERE, inside).study != seen.study


# --------------------------------------------------------------------------------------------------- walk-forward


@pytest.fixture(scope="module")
def folds(series: dict[str, BarSeries]) -> list[Fold]:
    sessions = [s.item() for s in series["AAPL"].sessions if s >= np.datetime64("2007-01-03")]
    return walk_forward(sessions, 400, 300, 5)


def test_walk_forward_carries_the_money_on(
    series: dict[str, BarSeries], folds: list[Fold], store: TrialStore
) -> None:
    told: list[tuple[int, int]] = []
    found = run_walk_forward(small(), folds, series, store, HERE, progress=lambda *x: told.append(x))
    assert [r.fold for r in found] == folds
    assert told == [(i + 1, len(folds)) for i in range(len(folds))]
    assert len(folds) == 4
    assert found[0].test.initial_cash == 100_000
    for one, other in itertools.pairwise(found):
        assert other.test.initial_cash == one.test.equity[-1]
        assert other.test.equity[0] == pytest.approx(one.test.equity[-1], rel=1e-12)
    sessions, equity = chained_equity(found)
    assert sessions.size == equity.size
    np.testing.assert_array_equal(
        sessions, series["AAPL"].sessions[series["AAPL"].sessions >= np.datetime64(folds[0].test.first)]
    )
    # Each fold's choice is the best of a sweep of its training window, and its test is a plain backtest.
    for result in found:
        alone = run_sweep(small(window=result.fold.train), series, store, HERE)
        assert (alone.reused, repr(alone.best)) == (36, repr(result.chosen))
        assert result.trials == 36
        known = {s: b for s, b in series.items() if b.sessions[0] <= np.datetime64(result.fold.test.last)}
        strategy = make_strategy("sma_crossover", **result.chosen.parameters)
        plain = run_backtest(
            strategy,
            known,
            result.fold.test,
            costs=COSTS,
            account=Account(result.test.initial_cash),
            accounts=len(series),
        )
        assert plain.equity.tolist() == result.test.equity.tolist()


def test_every_trial_is_counted(series: dict[str, BarSeries], folds: list[Fold], store: TrialStore) -> None:
    run_walk_forward(small(), folds, series, store, HERE)
    assert store.counted("sma_crossover")[0] == 36
    recorded = list(store.everything())
    assert len(recorded) == 36 * len(folds) == rows(store)
    assert [scope for _, scope, *_ in recorded] == [f"fold {i}" for i in range(len(folds)) for _ in range(36)]
    assert len({study for study, *_ in recorded}) == len(folds)
    for _, _, description, finished_at, trial in recorded:
        assert description["strategy"] == "sma_crossover"
        assert dt.datetime.fromisoformat(finished_at).tzinfo is not None
        assert set(trial.parameters) == {"fast_period", "slow_period"}
    run_sweep(small("random", trials=20, seed=5), series, store, HERE)
    drawn = {parameter_key(t.parameters) for *_, t in store.everything()}
    assert store.counted("sma_crossover")[0] == len(drawn) > 36
    assert store.counted("daily_breakout")[0] == 1


def test_a_backtest_by_hand_is_a_trial_and_other_costs_are_another(
    series: dict[str, BarSeries], store: TrialStore
) -> None:
    found = run_sweep(small(), series, store, HERE)
    swept, _ = store.counted("sma_crossover")
    window = small().window
    for fast, costs, more in ((2, COSTS, 1), (2, COSTS, 1), (2, Costs(), 2), (3, COSTS, 3)):
        run = run_backtest(
            make_strategy("sma_crossover", fast_period=fast, slow_period=99), series, window, costs=costs
        )
        record_backtest(store, run, costs, Account(), sorted(series), "bars")
        assert store.counted("sma_crossover")[0] == swept + more
    # On the same window, costs, account and symbols a swept set is no new configuration.
    run = run_backtest(make_strategy("sma_crossover", **found.best.parameters), series, window, costs=COSTS)
    record_backtest(store, run, small().costs, small().account, sorted(series), "bars")
    assert store.counted("sma_crossover")[0] == swept + 3


def test_the_variance_cannot_be_lowered_by_a_small_search(
    series: dict[str, BarSeries], store: TrialStore
) -> None:
    run_sweep(small(), series, store, HERE)
    trials, variance = store.counted("sma_crossover")
    run_sweep(small("random", trials=2, seed=9), series, store, HERE)
    more, now = store.counted("sma_crossover")
    assert more >= trials
    assert now == pytest.approx(variance, rel=0.25)


def test_who_tried_a_set_and_until_when_is_known(series: dict[str, BarSeries], store: TrialStore) -> None:
    found = run_sweep(small(), series, store, HERE)
    everything = make_strategy("sma_crossover", **found.best.parameters).parameters
    assert store.seen_until("sma_crossover", everything) == small().window.last
    later = Window(small().window.first, small().window.last + dt.timedelta(days=200))
    run_sweep(small(window=later), series, store, HERE)
    run_sweep(small(), series, store, HERE)
    assert store.seen_until("sma_crossover", everything) == later.last
    assert store.seen_until("sma_crossover", {**everything, "fast_period": 77}) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_fold_knows_nothing_after_its_training(
    method: str, series: dict[str, BarSeries], folds: list[Fold], tmp_path: Path
) -> None:
    sweep = small(method, trials=10)
    found = run_walk_forward(sweep, folds, series, TrialStore(tmp_path / "a.db"), HERE)
    # Everything after the second training window is another world.
    other = {s: disturbed(b, folds[1].train.last) for s, b in series.items()}
    again = run_walk_forward(sweep, folds, other, TrialStore(tmp_path / "b.db"), HERE)
    assert [repr(r.chosen) for r in again[:2]] == [repr(r.chosen) for r in found[:2]]
    assert repr(again[2].chosen) != repr(found[2].chosen)
    # The first test window reaches a few sessions past that day; up to there its money is the same.
    same = found[0].test.sessions <= np.datetime64(folds[1].train.last)
    assert 200 < same.sum() < same.size
    assert again[0].test.equity[same].tolist() == found[0].test.equity[same].tolist()
    assert again[0].test.equity[-1] != found[0].test.equity[-1]


def test_walk_forward_ends_with_the_money(counted: ModuleType, store: TrialStore) -> None:
    """A short that worked in training meets a price that quadruples."""
    rng = np.random.default_rng(2)
    close = 100 * np.exp(np.cumsum(np.r_[rng.normal(-0.01, 0.01, 120), [1.5], rng.normal(0, 0.01, 119)]))
    open_ = np.r_[100.0, close[:-1]]
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    plain = counted.series()["TEST"]
    bars = BarSeries(
        "TEST",
        plain.sessions[:240],
        open_,
        high,
        low,
        close,
        *(getattr(plain, n)[:240] for n in ("volume", "dividend", "split_factor")),
        open_,
        high,
        low,
        close,
    )
    space = Space("counted", (Dimension("period", "int", 2, 4),))
    folds = walk_forward([s.item() for s in bars.sessions], 80, 50)
    found = run_walk_forward(Sweep("counted", space, folds[0].train), folds, {"TEST": bars}, store, HERE)
    assert found[0].chosen.values["sharpe"] > 0
    assert found[-1].test.equity[-1] <= 0
    assert len(found) < len(folds)


# --------------------------------------------------------------------------------------------------------- store


def test_a_trial_survives_the_store_bit_for_bit(store: TrialStore) -> None:
    study = store.open_study({"strategy": "s", "x": 0.1}, "in_sample")
    written = [
        Trial(
            0,
            {"a": 0.1 + 0.2, "b": "c", "d": True},
            {"sharpe": 1 / 3, "sqn": math.nan},
            "",
            (0.1,),
            (1e-300,),
            (7,),
        ),
        Trial(1, {"a": 1.0}, {}, "ValueError: no (x.py:3)"),
    ]
    store.record(study, written)
    assert exact(list(store.finished(study).values())) == exact(written)
    assert list(store.finished(study)) == [parameter_key(t.parameters) for t in written]
    # The same study is found again; an answer that is given twice is kept once.
    assert store.open_study({"x": 0.1, "strategy": "s"}, "fold 3") == study
    store.record(study, [replace(written[1], error="", values={"sharpe": 2.0})])
    assert len(store.finished(study)) == 2
    assert len(list(store.everything("s"))) == 2
    assert list(store.everything("t")) == []
    assert [scope for _, scope, *_ in store.everything()] == ["in_sample"] * 2
    assert store.open_study({"strategy": "s", "x": 0.2}, "in_sample") != study
    assert store.finished("another") == {}


def test_everything_that_changes_a_result_is_in_the_study() -> None:
    base = small("random")
    space = base.space
    others = [
        replace(base, window=Window(YEARS.first, dt.date(2009, 12, 30))),
        replace(base, fixed={"size": 0.5}),
        replace(base, costs=Costs()),
        replace(base, account=Account(leverage=2)),
        replace(base, seed=1),
        small("grid"),
        small("bayesian"),
        replace(base, space=replace(space, ordered=())),
        replace(base, space=replace(space, dimensions=space.dimensions[::-1])),
        replace(
            base,
            space=replace(space, dimensions=(Dimension("fast_period", "int", 2, 13, 2), space.dimensions[1])),
        ),
    ]
    keys = [json.dumps(s.study("data", ["A"]), sort_keys=True) for s in (base, *others)]
    assert len(set(keys)) == len(keys)
    assert base.study("data", ["A"]) != base.study("other data", ["A"])
    assert base.study("data", ["A"]) != base.study("data", ["A", "B"])
    for same in (replace(base, trials=99), replace(base, objective="sqn"), replace(base, most_trials=50)):
        assert same.study("data", ["A"]) == base.study("data", ["A"])
