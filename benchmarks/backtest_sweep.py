"""Parameter sweeps: the grid against vectorbt, a bracket against backtesting.py, and up to a million sets.

Belongs here: the peers, written as a good user of each library would write them, and the proof that all sides give the
same numbers. Does not belong here: our side; `quant_assets/backtests` is called as it stands.

Three cases on the sample's AAPL, 3,270 daily bars. In the first two its adjusted prices are taken as plain prices, so
that nobody has to know what a split is; a hundred shares and a million dollars, so that no order is too large and every
number can be equal.

1. Moving-average crossovers, all 4,950 pairs of fast < slow in 2..101, always reversing: total return, Sharpe ratio,
   largest drawdown and number of trades of every pair. Both sides are handed the same signals.
2. One bracket strategy, long and short, bar by bar: every trade.
3. A thousand to a million pairs, from prices to statistics, on one core and on two, each in a process of its own whose
   peak memory is read at its end.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import in_turn, last_line, print_table, spread
from quant_assets.backtests.engine import Account, simulate
from quant_assets.backtests.grid import STATISTICS, GridResult, join_results, rule_array, run_grid
from quant_assets.backtests.portfolio import Window
from quant_assets.backtests.statistics import summary
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.strategies.sma_crossover import average_table, crossover_grid
from quant_assets.strategies.strategy import ENTER_LONG, ENTER_SHORT, Rules
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION, SampleSource

PERIODS = range(2, 102)
SHARES = 100.0
CASH = 1e6
ACCOUNT = Account(CASH)
WHOLE = Window(FIRST_SESSION, LAST_SESSION)
JOBS = 2
TOLERANCE = 1e-9
REPEATS = 7

MOVE_PCT, TARGET_PCT, STOP_PCT = 1.0, 2.0, 1.5
BRACKET = Rules("shares", SHARES, TARGET_PCT, STOP_PCT)
# Brackets at once, for the rate of the grid.
BRACKETS = 2_000

# Sets -> repeats.
SCALES = {1_000: 5, 10_000: 5, 100_000: 3, 1_000_000: 1}


def plain_bars() -> BarSeries:
    """AAPL's adjusted prices as if they had been quoted."""
    quoted = bar_series(SampleSource().bars(FIRST_SESSION, LAST_SESSION), ["AAPL"])["AAPL"]
    return bar_series(
        pa.table(
            {
                "symbol": ["AAPL"] * len(quoted),
                "session": pa.array(quoted.sessions),
                **{name: getattr(quoted, f"adj_{name}") for name in ("open", "high", "low", "close")},
                "volume": quoted.volume,
            }
        )
    )["AAPL"]


def pairs_of(periods: range) -> np.ndarray:
    """Every fast < slow, int64 of shape (sets, 2), in the order of `itertools.combinations`."""
    fast, slow = np.triu_indices(len(periods), 1)
    return np.column_stack([fast, slow]).astype(np.int64) + periods.start


def rules_of(rules: Rules, sets: int) -> np.ndarray:
    """The same rules for every set."""
    return np.repeat(rule_array([rules]), sets, axis=0)


# -- ours --------------------------------------------------------------------------------------------------------------


def sweep_signals(bars: BarSeries, decisions: np.ndarray, rules: np.ndarray, jobs: int) -> GridResult:
    """Signals in, statistics out."""
    parts = run_grid(
        {bars.symbol: bars},
        lambda _, chunk: decisions[chunk],
        rules,
        WHOLE,
        account=ACCOUNT,
        blocks=0,
        jobs=jobs,
    )
    return join_results([part for _, part in parts])


def sweep_prices(bars: BarSeries, pairs: np.ndarray, rules: np.ndarray, jobs: int) -> np.ndarray:
    """Prices in, statistics out: averages once, crosses chunk by chunk; shape (sets, statistics)."""
    table, waits = average_table(bars.adj_close, pairs), np.zeros(len(pairs), dtype=np.bool_)
    values = np.empty((len(pairs), len(STATISTICS)))
    parts = run_grid(
        {bars.symbol: bars},
        lambda _, chunk: crossover_grid(table, pairs[chunk], waits[chunk]),
        rules,
        WHOLE,
        account=ACCOUNT,
        blocks=0,
        jobs=jobs,
    )
    for chunk, part in parts:
        values[chunk] = part.values
    return values


# -- vectorbt ----------------------------------------------------------------------------------------------------------


class Vectorbt:
    """The crossovers in vectorbt: signals of a close are filled at the next open, an opposite signal reverses."""

    def __init__(self, bars: BarSeries, decisions: np.ndarray) -> None:
        import pandas as pd

        index = pd.DatetimeIndex(bars.sessions)
        self.close = pd.Series(bars.close, index=index)
        self.open = bars.open[:, None]
        self.entries = np.zeros(decisions.T.shape, dtype=bool)
        self.short_entries = self.entries.copy()
        self.entries[1:] = (decisions[:, :-1] == ENTER_LONG).T
        self.short_entries[1:] = (decisions[:, :-1] == ENTER_SHORT).T

    def portfolio(self, entries: np.ndarray, short_entries: np.ndarray) -> Any:
        """Their simulation."""
        import vectorbt

        return vectorbt.Portfolio.from_signals(
            self.close,
            entries=entries,
            short_entries=short_entries,
            price=self.open,
            size=SHARES,
            size_type="amount",
            init_cash=CASH,
            upon_opposite_entry="reverse",
            freq="1D",
        )

    def statistics(self, portfolio: Any) -> tuple[Any, ...]:
        """Total return, Sharpe ratio, largest drawdown, trades."""
        return (
            portfolio.total_return(),
            portfolio.sharpe_ratio(),
            portfolio.max_drawdown(),
            portfolio.trades.count(),
        )

    def sweep_signals(self) -> tuple[Any, ...]:
        """Signals in, statistics out."""
        return self.statistics(self.portfolio(self.entries, self.short_entries))

    def sweep_prices(self) -> tuple[Any, ...]:
        """Prices in, statistics out, with their own averages and crosses."""
        import vectorbt

        fast, slow = vectorbt.MA.run_combs(self.close, window=np.array(PERIODS), r=2, short_names=["f", "s"])
        above, below = fast.ma_crossed_above(slow), fast.ma_crossed_below(slow)
        shifted = [np.vstack([np.zeros_like(x[:1]), x[:-1]]) for x in (above.to_numpy(), below.to_numpy())]
        return self.statistics(self.portfolio(*shifted))


def compare_with_vectorbt(ours: GridResult, peer: Vectorbt) -> float:
    """Largest difference of any statistic of any set, relative to the larger of 1 and the value.

    Their returns begin with a zero for the first bar and are annualised by 365 calendar days; the Sharpe ratio is taken
    again from their returns without that zero and by 252. Their portfolio and everything else is theirs as it comes.

    Raises:
        SystemExit: a number of trades differs, or anything by more than the tolerance.
    """
    portfolio = peer.portfolio(peer.entries, peer.short_entries)
    total_return, _, drawdown, trades = (x.to_numpy() for x in peer.statistics(portfolio))
    returns = portfolio.returns().to_numpy()
    if np.any(returns[0] != 0):
        raise SystemExit("vectorbt: the first return is not 0")
    sharpe = returns[1:].mean(axis=0) / returns[1:].std(axis=0, ddof=1) * math.sqrt(252)
    if not np.array_equal(ours.column("trades"), trades):
        raise SystemExit(f"trades differ in {int((ours.column('trades') != trades).sum())} sets")
    worst = 0.0
    for name, theirs in (("total_return", total_return), ("sharpe", sharpe), ("max_drawdown", drawdown)):
        difference = np.abs(ours.column(name) - theirs) / np.maximum(1.0, np.abs(theirs))
        if not difference.max() <= TOLERANCE:
            raise SystemExit(f"{name} differs by {difference.max():.2e} in set {int(difference.argmax())}")
        worst = max(worst, float(difference.max()))
    return worst


# -- backtesting.py ----------------------------------------------------------------------------------------------------


def bracket_decisions(bars: BarSeries) -> np.ndarray:
    """Against the last close-to-close move: long after a fall of more than a percent, short after such a rise."""
    move = np.r_[0.0, bars.close[1:] / bars.close[:-1] - 1]
    fell, rose = move < -MOVE_PCT / 100, move > MOVE_PCT / 100
    return np.where(fell, ENTER_LONG, np.where(rose, ENTER_SHORT, 0)).astype(np.int8)


def backtesting_bracket(bars: BarSeries) -> Callable[[], Any]:
    """The bracket in backtesting.py; calling it runs it once."""
    import pandas as pd

    warnings.filterwarnings("ignore", module="backtesting")
    import backtesting
    from backtesting.backtesting import _Broker

    backtesting.backtesting._tqdm = lambda items, **_: items  # no progress bar

    class BracketBroker(_Broker):
        """Levels at percents of the fill; the public interface wants them before the next open is known."""

        def _open_trade(self, price: float, size: int, sl: Any, tp: Any, *rest: Any) -> None:
            side = 1 if size > 0 else -1
            stop, target = price * (1 - side * STOP_PCT / 100), price * (1 + side * TARGET_PCT / 100)
            super()._open_trade(price, size, stop, target, *rest)

    class Bracket(backtesting.Strategy):
        """An opposite signal reverses. The far stop and target make the broker look at the bar of the entry."""

        def init(self) -> None:
            pass

        def next(self) -> None:
            if len(self.data) < 2:
                return
            close = self.data.Close[-1]
            move = close / self.data.Close[-2] - 1
            if move < -MOVE_PCT / 100 and not self.position.is_long:
                self.position.close()
                self.buy(size=SHARES, sl=close / 100, tp=close * 100)
            elif move > MOVE_PCT / 100 and not self.position.is_short:
                self.position.close()
                self.sell(size=SHARES, sl=close * 100, tp=close / 100)

    frame = pd.DataFrame(
        {name.capitalize(): getattr(bars, name) for name in ("open", "high", "low", "close", "volume")},
        index=pd.DatetimeIndex(bars.sessions),
    )

    def run() -> Any:
        test = backtesting.Backtest(frame, Bracket, cash=CASH)
        test._broker = functools.partial(BracketBroker, **test._broker.keywords)
        return test.run()

    return run


def compare_with_backtesting(bars: BarSeries, run: Callable[[], Any]) -> int:
    """Number of trades, all of them equal: side, size, bars, and prices to 1e-12.

    Raises:
        SystemExit: one is not.
    """
    ours = simulate(bars, bracket_decisions(bars), BRACKET, None, ACCOUNT).trades.to_pandas()
    theirs = run()["_trades"]
    ended = ours[ours["reason"] != "open"]  # a position held at the end is no trade of theirs
    size = np.where(ended["side"] == "long", 1, -1) * ended["shares"]
    pairs = {
        "size": (size, theirs["Size"]),
        "bar of entry": (_at(bars, ended["entry_session"]), theirs["EntryBar"]),
        "bar of exit": (_at(bars, ended["exit_session"]), theirs["ExitBar"]),
        "entry price": (ended["entry_price"], theirs["EntryPrice"]),
        "exit price": (ended["exit_price"], theirs["ExitPrice"]),
    }
    if len(ended) != len(theirs):
        raise SystemExit(f"{len(ended)} trades against {len(theirs)}")
    for what, (a, b) in pairs.items():
        if not np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-12, atol=0):
            raise SystemExit(f"trades differ in their {what}")
    return len(ended)


def _at(bars: BarSeries, sessions: Any) -> np.ndarray:
    return np.searchsorted(bars.sessions, np.asarray(sessions, dtype="datetime64[D]"))


# -- in processes of their own -----------------------------------------------------------------------------------------


def scale(sets: int, jobs: int) -> None:
    """Sweep that many pairs from prices; print seconds and peak memory as JSON."""
    bars = plain_bars()
    most = 3
    while math.comb(most - 1, 2) < sets:
        most += 1
    pairs = pairs_of(range(2, most + 1))[:sets]
    rules = rules_of(Rules("shares", SHARES), sets)
    sweep_prices(bars, pairs[:600], rules[:600], jobs)
    before = _peak_mib()
    seconds = []
    for _ in range(SCALES[sets]):
        started = time.perf_counter()
        values = sweep_prices(bars, pairs, rules, jobs)
        seconds.append(time.perf_counter() - started)
    if not np.isfinite(values[:, STATISTICS.index("total_return")]).all():
        raise SystemExit("a set has no return")
    print(
        json.dumps(
            {
                "seconds": seconds,
                "before_mib": before,
                "peak_mib": _peak_mib(),
                "longest_period": most,
                "bars": len(bars),
            }
        )
    )


def _peak_mib() -> float:
    """Largest resident memory of this process; `ru_maxrss` would begin with that of the process it came from."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    except OSError:  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def first_call() -> None:
    """One set from prices to statistics in a fresh process; print seconds as JSON."""
    bars, pairs = plain_bars(), np.array([[10, 30]])
    started = time.perf_counter()
    sweep_prices(bars, pairs, rules_of(Rules("shares", SHARES), 1), 1)
    print(json.dumps({"seconds": time.perf_counter() - started}))


def in_a_process(*options: str, **environment: str) -> dict[str, Any]:
    """This module run again with options; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.backtest_sweep", *options],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# -- the cases ---------------------------------------------------------------------------------------------------------


def measure_crossovers(bars: BarSeries, repeats: int) -> tuple[dict[str, list[float]], float, int]:
    """Seconds per side, largest difference, sets."""
    pairs = pairs_of(PERIODS)
    rules = rules_of(Rules("shares", SHARES), len(pairs))
    decisions = crossover_grid(
        average_table(bars.adj_close, pairs), pairs, np.zeros(len(pairs), dtype=np.bool_)
    )
    peer = Vectorbt(bars, decisions)
    difference = compare_with_vectorbt(sweep_signals(bars, decisions, rules, JOBS), peer)
    seconds = in_turn(
        {
            "ours": lambda: sweep_signals(bars, decisions, rules, JOBS),
            "ours, 1 core": lambda: sweep_signals(bars, decisions, rules, 1),
            "ours, from prices": lambda: sweep_prices(bars, pairs, rules, JOBS),
            "vectorbt": peer.sweep_signals,
            "vectorbt, from prices": peer.sweep_prices,
        },
        repeats,
    )
    return seconds, difference, len(pairs)


def measure_bracket(bars: BarSeries, repeats: int) -> tuple[dict[str, list[float]], int]:
    """Seconds per backtest and side, trades."""
    run = backtesting_bracket(bars)
    trades = compare_with_backtesting(bars, run)
    decisions = bracket_decisions(bars)
    many, rules = np.repeat(decisions[None], BRACKETS, axis=0), rules_of(BRACKET, BRACKETS)

    def one() -> Any:
        return simulate(bars, decisions, BRACKET, None, ACCOUNT)

    def with_summary() -> Any:
        done = one()
        return summary(done.equity, done.sessions, done.trades)

    def repeated(backtest: Callable[[], Any]) -> None:
        for _ in range(batch):
            backtest()

    batch = 20  # a single one is too short for the clock
    seconds = in_turn(
        {
            "ours": lambda: repeated(one),
            "ours with a tear sheet's numbers": lambda: repeated(with_summary),
            "ours in a grid": lambda: sweep_signals(bars, many, rules, JOBS),
            "backtesting.py": run,
        },
        repeats,
    )
    each = {"ours": batch, "ours with a tear sheet's numbers": batch, "ours in a grid": BRACKETS}
    return {side: [x / each.get(side, 1) for x in values] for side, values in seconds.items()}, trades


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of cases 1 and 2")
    parser.add_argument("--most-sets", type=int, default=max(SCALES), help="largest sweep of case 3")
    parser.add_argument("--scale", type=int, choices=list(SCALES), help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--first-call", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.scale:
        return scale(given.scale, given.jobs)
    if given.first_call:
        return first_call()

    engine = "Rust" if find_spec("vectorbt_rust") else "numba"
    load = [round(os.getloadavg()[0], 2)]
    bars = plain_bars()
    print(f"load before: {load[0]}; {len(bars):,} bars of {bars.symbol}\n", flush=True)

    # First, because vectorbt leaves a process with gigabytes in pieces.
    bracket, trades = measure_bracket(bars, given.repeats)
    crossovers, difference, sets = measure_crossovers(bars, given.repeats)
    median = {side: statistics.median(values) for side, values in crossovers.items()}
    print_table(
        [f"1. {sets:,} crossovers", "median s", "min", "max", "bar-simulations/s", "ours is"],
        [
            [
                side,
                *(f"{f(values):.4f}" for f in (statistics.median, min, max)),
                f"{sets * len(bars) / median[side]:,.0f}",
                ""
                if side.startswith("ours")
                else f"{median[side] / median['ours, from prices' if 'prices' in side else 'ours']:.1f} x",
            ]
            for side, values in crossovers.items()
        ],
    )
    print(f"equal: trades of every set, the other statistics within {difference:.1e}\n", flush=True)

    rates = {side: len(bars) / statistics.median(values) for side, values in bracket.items()}
    print_table(
        ["2. one bracket", "median ms", "min", "max", "bar-simulations/s", "ours is"],
        [
            [
                side,
                *(f"{1e3 * f(values):.3f}" for f in (statistics.median, min, max)),
                f"{rates[side]:,.0f}",
                f"{rates[side] / rates['backtesting.py']:.0f} x" if side.startswith("ours") else "",
            ]
            for side, values in bracket.items()
        ],
    )
    print(f"equal: {trades:,} trades in side, size, bars and prices\n", flush=True)

    scales, rows = {}, []
    for size in (n for n in SCALES if n <= given.most_sets):
        for jobs in (1, JOBS):
            found = in_a_process("--scale", str(size), "--jobs", str(jobs))
            seconds = statistics.median(found["seconds"])
            rate = size * found["bars"] / seconds
            scales[f"{size}_sets_{jobs}_cores"] = {
                "seconds": round(seconds, 4),
                "bar_simulations_per_second": round(rate),
                "peak_mib": round(found["peak_mib"]),
            }
            rows.append(
                [
                    f"{size:,}",
                    jobs,
                    len(found["seconds"]),
                    f"2..{found['longest_period']}",
                    f"{seconds:.3f}",
                    f"{rate:,.0f}",
                    f"{found['before_mib']:.0f}",
                    f"{found['peak_mib']:.0f}",
                ]
            )
    print_table(
        ["3. sets", "cores", "runs", "periods", "s", "bar-simulations/s", "MiB before", "MiB at its peak"],
        rows,
    )

    with tempfile.TemporaryDirectory() as cache:
        cold = in_a_process("--first-call", NUMBA_CACHE_DIR=cache)["seconds"]
        warm = in_a_process("--first-call", NUMBA_CACHE_DIR=cache)["seconds"]
    load.append(round(os.getloadavg()[0], 2))
    print(f"\nfirst call: {cold:.1f} s with an empty numba cache, {warm:.2f} s with a warm one")
    print(f"load after: {load[1]}\n", flush=True)

    last_line(
        "backtest_sweep",
        ratio=median["vectorbt"] / median["ours"],
        ratios={
            "vectorbt": median["vectorbt"] / median["ours"],
            "vectorbt_ours_on_1_core": median["vectorbt"] / median["ours, 1 core"],
            "vectorbt_from_prices": median["vectorbt, from prices"] / median["ours, from prices"],
            "backtesting": rates["ours"] / rates["backtesting.py"],
            "backtesting_ours_with_a_tear_sheets_numbers": rates["ours with a tear sheet's numbers"]
            / rates["backtesting.py"],
            "backtesting_ours_in_a_grid": rates["ours in a grid"] / rates["backtesting.py"],
        },
        ours=spread(crossovers["ours"]),
        theirs=spread(crossovers["vectorbt"]),
        work=f"{sets:,} moving-average crossovers (fast < slow in {PERIODS.start}..{PERIODS.stop - 1}) on {bars.symbol}, "
        f"{len(bars):,} bars: from signals to total return, Sharpe ratio, largest drawdown and trades of every set; ours on "
        f"{JOBS} cores, vectorbt {version('vectorbt')} ({engine} engine) has no second one to use",
        equal=True,
        equal_how=f"every set: trades identical, total return, largest drawdown and Sharpe ratio within {difference:.1e} of "
        f"vectorbt's (Sharpe from its returns without the first zero, by 252); {trades:,} trades of the bracket identical to "
        "backtesting.py's in side, size, bars and prices (1e-12)",
        bracket={side: spread([1e3 * x for x in values], "ms") for side, values in bracket.items()},
        scaling=scales,
        first_call={"empty_cache_seconds": round(cold, 2), "warm_cache_seconds": round(warm, 3)},
        load=load,
    )


if __name__ == "__main__":
    main()
