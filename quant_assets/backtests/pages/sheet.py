"""What a tear sheet is made from, and the tables behind its plots. Pure.

Belongs here: the contents of a page as data (`TearSheet`, `SweepView`) and the numbers that the interactive figures and those
of the Dagster UI (`plots.py`) both draw. Does not belong here: any number that needs a definition (`statistics.py`), reading
tables (`results.py`), and how anything looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from quant_assets.backtests.statistics import Conventions
from quant_assets.market.series import BarSeries
from quant_assets.strategies import YARDSTICKS

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class SweepView:
    """What a sweep of one strategy found.

    Attributes:
        objective: the column of `trials` that was maximised, e.g. `sharpe`.
        names: swept parameters.
        trials: one row per trial: a column per name in `names`, statistics as in `grid.STATISTICS`, `state` (`complete`
            or `failed`) and `error` (text or null).
        heat_map: 0, 1 or 2 of the names.
        chosen: name -> value of the set that the sweep chose; the page says so where the backtest used another.
        pbo: probability of backtest overfitting, in [0, 1].
        trial_count: how many trials the deflated Sharpe ratio counts.
        sharpe_variance: variance of their annual Sharpe ratios.
        walk_forward: one per fold: `train_first`, `train_last`, `test_first`, `test_last` (dates; the last may also be called
            `session`), `parameters` (dict), `in_sample` and `out_of_sample` (the objective), `total_return` (out of sample,
            fraction).
        walk_forward_sessions: `datetime64[D]`, shape (sessions,): the test windows, one after the other.
        walk_forward_equity: dollars, shape (sessions,).
    """

    objective: str
    names: tuple[str, ...]
    trials: pa.Table
    heat_map: tuple[str, ...]
    chosen: Mapping[str, Any]
    pbo: float | None = None
    trial_count: int = 1
    sharpe_variance: float | None = None
    walk_forward: Sequence[Mapping[str, Any]] = ()
    walk_forward_sessions: np.ndarray | None = None
    walk_forward_equity: np.ndarray | None = None


@dataclass(frozen=True)
class TearSheet:
    """One strategy on the out-of-sample window, and what is needed to judge it.

    Attributes:
        strategy: its name, also the name of its files.
        description: one sentence.
        parameters: field -> value.
        statistics: `statistics.summary` of the out-of-sample window.
        in_sample: the same of the in-sample window; None where the strategy's model was trained on it.
        sessions: `datetime64[D]`, shape (n,).
        equity: dollars at each close, shape (n,).
        invested: market value of the positions at each close, dollars, shorts negative, shape (n,).
        gross: the same with shorts counted positive, shape (n,).
        yardsticks: name -> equity on the same sessions, dollars, shape (n,).
        trades: columns as `engine.TRADE_SCHEMA`.
        rejected: columns as `engine.REJECTION_SCHEMA`.
        bars: by symbol, the whole history; charts show the window.
        cost_sensitivity: one per multiple of the costs: `cost_factor`, `total_return` (fraction), `sharpe` (annual),
            `final_equity` (dollars).
        costs: `Costs` as a dict.
        account: `Account` as a dict.
        sweep: what the parameters were chosen from; None where they were given.
        notes: what a reader must know first, shown on top.
    """

    strategy: str
    description: str
    parameters: Mapping[str, Any]
    statistics: Mapping[str, Any]
    in_sample: Mapping[str, Any] | None
    sessions: np.ndarray
    equity: np.ndarray
    invested: np.ndarray
    gross: np.ndarray
    yardsticks: Mapping[str, np.ndarray]
    trades: pa.Table
    rejected: pa.Table
    bars: Mapping[str, BarSeries]
    cost_sensitivity: Sequence[Mapping[str, float | None]]
    costs: Mapping[str, Any]
    account: Mapping[str, Any]
    sweep: SweepView | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.strategy or Path(self.strategy).name != self.strategy or self.strategy.startswith("."):
            raise ValueError(f"strategy = {self.strategy!r} names a file and cannot hold a path")
        if self.strategy == "index" or self.strategy == "comparison":
            raise ValueError(f"strategy = {self.strategy!r} is the name of another page")
        series = {"equity": self.equity, "invested": self.invested, "gross": self.gross, **self.yardsticks}
        for name, values in series.items():
            if np.shape(values) != self.sessions.shape:
                raise ValueError(f"{name} has shape {np.shape(values)} for {self.sessions.size} sessions")

    @property
    def conventions(self) -> Conventions:
        """How its numbers are annualised."""
        return Conventions(**self.statistics["conventions"])

    @property
    def is_yardstick(self) -> bool:
        """Whether it is only there to be compared with."""
        return self.strategy in YARDSTICKS


@dataclass(frozen=True)
class AblationView:
    """What alternative data add, rung by rung.

    Attributes:
        conclusion: what the intervals allow to say.
        rows: columns as `backtests.tables.SENTIMENT_ABLATION`, in order of the rungs.
    """

    conclusion: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def notes(self) -> str:
        """What it rests on, in a sentence or two."""
        first = self.rows[0]
        said = (
            f"Each rung adds inputs to those of the rung before: same {first['rows']:,} rows, windows, hyperparameters and "
            f"{first['seeds']} seeds; out of sample, {first['first_session']} to {first['session']}. "
        )
        share = first["hindsight_share"]
        if share:
            said += (
                f"In {share:.1%} of the rows the list of competitors is younger than the session: who competes was known with "
                "hindsight. "
            )
        elif share is not None:
            said += "No list of competitors is younger than the session that it was used for. "
        if "simulated" in first["news_source"]:
            return said + "The news are simulated: calibrated to what real news show, without any alpha."
        return said + f"Source of the news: {first['news_source']}."


def monthly_returns(sessions: np.ndarray, equity: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return of each calendar month and year, fractions.

    A month's return is its last equity over that of the month before (of the first session, for the first month), - 1.

    Args:
        sessions: `datetime64[D]`, shape (n,).
        equity: dollars, shape (n,).

    Returns:
        years; returns of months, shape (years, 12), NaN where there is no session; returns of years, shape (years,).
    """

    def changes(unit: str) -> tuple[np.ndarray, np.ndarray]:
        period = sessions.astype(f"datetime64[{unit}]")
        last = np.flatnonzero(np.r_[period[1:] != period[:-1], True])
        level = np.r_[equity[0], equity[last]]
        alive = np.minimum.accumulate(level)[:-1] > 0
        change = np.divide(level[1:], level[:-1], out=np.ones(last.size), where=alive) - 1
        return period[last].astype(int), change

    months, change = changes("M")
    years = list(range(1970 + int(months[0] // 12), 1971 + int(months[-1] // 12)))
    table, totals = np.full((len(years), 12), np.nan), np.full(len(years), np.nan)
    table[months // 12 + 1970 - years[0], months % 12] = change
    year, change = changes("Y")
    totals[year + 1970 - years[0]] = change
    return years, table, totals


def quoted_exit(trades: pa.Table) -> np.ndarray:
    """Exit prices as they were quoted on the exit's session, dollars, shape (trades,).

    The engine states them in shares of the entry's session; a split in between divides them.
    """
    return trades["exit_price"].to_numpy() / trades["split_factor"].to_numpy()


def completed(sweep: SweepView) -> pa.Table:
    """The trials that ended with a number for the objective, the best first."""
    trials = sweep.trials
    value = floats(trials, sweep.objective)
    good = np.isfinite(value)
    if "state" in trials.column_names:
        good &= np.array([state == "complete" for state in trials["state"].to_pylist()], dtype=bool)
    order = np.argsort(-value[good], kind="stable")
    return trials.take(pa.array(np.flatnonzero(good)[order]))


class HeatMap(NamedTuple):
    """The objective over two parameters.

    Attributes:
        x, y: values of the two parameters, ascending.
        z: shape (len(y), len(x)), the best objective over all other parameters, NaN where there was no trial.
        chosen: (column, row) of the chosen trial, None where it is not among the trials.
    """

    x: list[Any]
    y: list[Any]
    z: np.ndarray
    chosen: tuple[int, int] | None

    @property
    def sparse(self) -> bool:
        """Whether most cells are empty, as after a random search: then points say more than cells."""
        return float(np.isfinite(self.z).mean()) < 0.25


def heat_map_of(sweep: SweepView) -> HeatMap:
    """The table behind the heat map; needs two names in `heat_map` and a complete trial."""
    trials = completed(sweep)
    columns = [trials[name].to_pylist() for name in sweep.heat_map]
    x, y = (sorted(set(values), key=value_order) for values in columns)
    z = np.full((len(y), len(x)), np.nan)
    # Worst first, so that the best of a cell is what stays.
    cells = list(zip(*columns, floats(trials, sweep.objective), strict=True))[::-1]
    for a, b, value in cells:
        z[y.index(b), x.index(a)] = value
    a, b = (sweep.chosen.get(name) for name in sweep.heat_map)
    return HeatMap(x, y, z, (x.index(a), y.index(b)) if a in x and b in y else None)


def parallel_columns(sweep: SweepView) -> list[str]:
    """Columns of `trials` that the parallel coordinates show: parameters, then statistics, the objective last."""
    others = ("trades", "volatility", "max_drawdown", "total_return")
    return [*sweep.names, *(name for name in others if name != sweep.objective), sweep.objective]


class AxisNumbers(NamedTuple):
    """A column of trials as positions on an axis.

    Attributes:
        values: shape (trials,), without NaN.
        names: what stands at 0, 1, 2, ... where the column holds words; empty where it holds numbers.
    """

    values: np.ndarray
    names: list[str]


def axis_numbers(trials: pa.Table, name: str) -> AxisNumbers:
    """Numbers as they are (an undefined one as the lowest), words and yes or no in alphabetical order."""
    values = trials[name].to_pylist()
    if all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values):
        numbers = floats(trials, name)
        lowest = float(np.nanmin(numbers)) if np.isfinite(numbers).any() else 0.0
        return AxisNumbers(np.where(np.isfinite(numbers), numbers, lowest), [])
    names = sorted({str(value) for value in values})
    return AxisNumbers(np.array([names.index(str(value)) for value in values], dtype=float), names)


def thin(table: pa.Table, most: int) -> pa.Table:
    """At most so many rows, evenly spaced."""
    if table.num_rows <= most:
        return table
    return table.take(pa.array(np.unique(np.linspace(0, table.num_rows - 1, most).astype(int))))


def value_order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then everything else by name."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def floats(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64, null as NaN."""
    return np.array(table[name].to_pylist(), dtype=float)
