"""From results to rows, and back to what the pages show.

Belongs here: the shape in which backtests and sweeps are stored and read again. Does not belong here: computing them, and
how a page looks (`pages`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quant_assets.backtests import statistics, tables
from quant_assets.backtests.ablation import conclusion
from quant_assets.backtests.engine import BacktestError
from quant_assets.backtests.grid import STATISTICS
from quant_assets.backtests.pages.sheet import AblationView, SweepView, TearSheet
from quant_assets.backtests.portfolio import Backtest, on_axis
from quant_assets.backtests.space import load_space
from quant_assets.backtests.sweep import FoldResult, SweepResult, TrialStore
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.market.tables import BARS
from quant_assets.strategies import YARDSTICKS, strategy_class
from quant_resources.calendar import TradingCalendar
from quant_resources.iceberg import TableSpec, Warehouse


def backtest_tables(
    strategy: str,
    runs: Mapping[str, Backtest],
    summaries: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, object],
    sensitivity: Mapping[str, Sequence[Mapping[str, Any]]],
    calendar: TradingCalendar,
) -> dict[TableSpec, pa.Table]:
    """The rows of one strategy, by table.

    Args:
        strategy: name.
        runs, summaries, sensitivity: by window; `statistics.summary` and the results at multiples of the costs.
        facts: the other columns of `backtests.runs`.
        calendar: knows when a session closes.
    """
    parts: dict[TableSpec, list[pa.Table]] = {
        spec: [] for spec in (tables.EQUITY, tables.POSITIONS, tables.TRADES, tables.REJECTED_ORDERS)
    }
    rows = []
    # The same inputs give the same identity; rows with another one were written by another run.
    identity = json.dumps(
        [dict(facts), [[w, str(r.window.first), str(r.window.last)] for w, r in runs.items()]]
    )
    result = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    for window, run in runs.items():

        def dated(table: pa.Table, label: str = window) -> pa.Table:
            days = table["session"].to_pylist()
            return (
                table.append_column("strategy", pa.array([strategy] * len(days), pa.string()))
                .append_column("result", pa.array([result] * len(days), pa.string()))
                .append_column("window", pa.array([label] * len(days), pa.string()))
                .append_column("available_at", _closes(days, calendar))
            )

        paths = {"equity": run.equity, "invested": run.invested, "gross": run.gross}
        parts[tables.EQUITY].append(
            dated(pa.table({"session": pa.array(run.sessions, pa.date32()), **paths}))
        )
        parts[tables.POSITIONS] += [
            dated(
                pa.table(
                    {
                        "symbol": pa.array([symbol] * len(done.sessions), pa.string()),
                        "session": pa.array(done.sessions, pa.date32()),
                        "equity": done.equity,
                        "cash": done.cash,
                        "shares": done.shares,
                        "close": done.close,
                    }
                )
            )
            for symbol, done in run.simulations.items()
        ]
        parts[tables.TRADES].append(dated(run.trades.append_column("session", run.trades["exit_session"])))
        parts[tables.REJECTED_ORDERS].append(dated(run.rejected))
        rows.append(
            {
                "strategy": strategy,
                "window": window,
                "result": result,
                "session": run.window.last,
                "available_at": calendar.close(run.window.last),
                "first_session": run.window.first,
                "statistics": json.dumps(summaries[window], allow_nan=False),
                "cost_sensitivity": json.dumps(list(sensitivity.get(window, ())), allow_nan=False),
                **facts,
            }
        )
    written = {spec: pa.concat_tables(found) for spec, found in parts.items()}
    return written | {tables.RUNS: pa.Table.from_pylist(rows, schema=tables.RUNS.arrow_schema)}


def sweep_tables(
    result: SweepResult, folds: Sequence[FoldResult], counted: tuple[int, float], calendar: TradingCalendar
) -> dict[TableSpec, pa.Table]:
    """The rows of one strategy's newest sweep and walk-forward, by table; `counted` is `TrialStore.counted`."""
    sweep, best = result.sweep, result.best
    blocks = result.blocks()
    overfitting = None if blocks is None else statistics.backtest_overfitting_probability(*blocks).pbo
    chosen = {
        "strategy": sweep.strategy,
        "session": sweep.window.last,
        "available_at": calendar.close(sweep.window.last),
        "first_session": sweep.window.first,
        "study": result.study,
        "method": sweep.method,
        "objective": sweep.objective,
        "parameters": json.dumps(best.parameters),
        "objective_value": _or_none(best.values[sweep.objective]),
        "trials": len(result.complete),
        "failed": len(result.trials) - len(result.complete),
        "trials_ever": counted[0],
        "sharpe_variance": _or_none(counted[1]),
        "overfitting_probability": _or_none(overfitting),
    }
    steps, equity = [], []
    for number, fold in enumerate(folds):
        days: list[dt.date] = fold.test.sessions.astype(object).tolist()
        steps.append(
            {
                "strategy": sweep.strategy,
                "fold": number,
                "session": fold.fold.test.last,
                "available_at": calendar.close(fold.fold.test.last),
                "train_first": fold.fold.train.first,
                "train_last": fold.fold.train.last,
                "test_first": fold.fold.test.first,
                "parameters": json.dumps(fold.chosen.parameters if fold.chosen else {}),
                "objective": sweep.objective,
                "in_sample": _or_none(fold.chosen.values[sweep.objective]) if fold.chosen else None,
                "out_of_sample": _or_none(objective_of(fold.test, sweep.objective)),
                "total_return": float(fold.test.equity[-1] / fold.test.equity[0] - 1),
                "trials": fold.trials,
            }
        )
        equity.append(
            pa.table(
                {
                    "strategy": pa.array([sweep.strategy] * len(days), pa.string()),
                    "session": pa.array(days, pa.date32()),
                    "available_at": _closes(days, calendar),
                    "fold": pa.array([number] * len(days), pa.int64()),
                    "equity": fold.test.equity,
                }
            )
        )
    return {
        tables.WALK_FORWARD: pa.Table.from_pylist(steps, schema=tables.WALK_FORWARD.arrow_schema),
        tables.WALK_FORWARD_EQUITY: pa.concat_tables(equity)
        if equity
        else tables.WALK_FORWARD_EQUITY.arrow_schema.empty_table(),
        tables.SWEEPS: pa.Table.from_pylist([chosen], schema=tables.SWEEPS.arrow_schema),
    }


def objective_of(run: Backtest, objective: str) -> float:
    """A sweep's objective of one backtest, with the definitions of `statistics`; NaN where undefined."""
    if objective == "sharpe":
        return statistics.sharpe_ratio(statistics.period_returns(run.equity))
    if objective == "total_return":
        return statistics.total_return(run.equity)
    if objective == "max_drawdown":
        return statistics.max_drawdown(run.equity)
    return float(getattr(statistics.trade_statistics(run.trades), objective))


def trial_table(store: TrialStore, calendar: TradingCalendar) -> pa.Table:
    """Every trial that was ever counted, as `backtests.parameter_sweep` stores it."""
    rows = []
    for study, scope, description, finished_at, trial in store.everything():
        first, last = (dt.date.fromisoformat(day) for day in description["window"])
        rows.append(
            {
                "study": study,
                "strategy": description["strategy"],
                "scope": scope,
                "method": description["method"],
                "number": trial.number,
                "session": last,
                "available_at": calendar.close(last),
                "first_session": first,
                "parameters": json.dumps(trial.parameters, sort_keys=True),
                "state": "failed" if trial.error else "complete",
                "error": trial.error,
                **{name: _or_none(trial.values.get(name)) for name in STATISTICS},
                "finished_at": dt.datetime.fromisoformat(finished_at),
            }
        )
    return pa.Table.from_pylist(rows, schema=tables.PARAMETER_SWEEP.arrow_schema)


def newest_sweep(warehouse: Warehouse, strategy: str) -> dict[str, Any] | None:
    """The row of `backtests.sweeps`, or None before the first sweep of the strategy."""
    rows = warehouse.read(tables.SWEEPS, only=strategy).to_pylist()
    return rows[0] if rows else None


def sweep_view(warehouse: Warehouse, strategy: str) -> SweepView | None:
    """What the plots of a sweep show, read from the tables; None before the first sweep of the strategy."""
    newest = newest_sweep(warehouse, strategy)
    if newest is None:
        return None
    stored = warehouse.read(tables.PARAMETER_SWEEP)
    # A longer search with the same seed shares the study: what this sweep asked for comes first in it.
    mine = pc.and_(
        pc.equal(stored["study"], newest["study"]),
        pc.less(stored["number"], newest["trials"] + newest["failed"]),
    )
    stored = stored.filter(mine).sort_by("number")
    parameters = [json.loads(text) for text in stored["parameters"].to_pylist()]
    # The names of the sweep itself: the file with the space may have changed since.
    names = tuple(json.loads(newest["parameters"]))
    trials = pa.table(
        {
            **{name: pa.array([p[name] for p in parameters]) for name in names},
            **{name: stored[name] for name in ("state", "error", *STATISTICS)},
        }
    )
    folds = warehouse.read(tables.WALK_FORWARD, only=strategy)
    equity = warehouse.read(tables.WALK_FORWARD_EQUITY, only=strategy)
    return SweepView(
        objective=newest["objective"],
        names=names,
        trials=trials,
        heat_map=tuple(name for name in load_space(strategy).heat_map if name in names),
        chosen=json.loads(newest["parameters"]),
        pbo=newest["overfitting_probability"],
        trial_count=newest["trials_ever"],
        sharpe_variance=newest["sharpe_variance"],
        walk_forward=[{**row, "parameters": json.loads(row["parameters"])} for row in folds.to_pylist()],
        walk_forward_sessions=equity["session"].to_numpy().astype("datetime64[D]")
        if equity.num_rows
        else None,
        walk_forward_equity=equity["equity"].to_numpy() if equity.num_rows else None,
    )


def ablation_view(warehouse: Warehouse) -> AblationView | None:
    """The newest ablation of alternative data, read from its table; None before the first one."""
    rows = warehouse.read(tables.SENTIMENT_ABLATION).sort_by("position").to_pylist()
    return AblationView(conclusion(rows), rows) if rows else None


def _closes(days: Sequence[dt.date], calendar: TradingCalendar) -> pa.Array:
    known = {day: calendar.close(day) for day in set(days)}
    return pa.array([known[day] for day in days], pa.timestamp("us", "UTC"))


def _or_none(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def tear_sheets(warehouse: Warehouse, strategies: Sequence[str], store: TrialStore) -> list[TearSheet]:
    """The pages of all strategies that have a stored backtest, read from the tables, in the given order.

    Raises:
        BacktestError: the tables hold rows of two different runs, because one was killed while it wrote.
    """
    stored = {name: warehouse.read(tables.RUNS, only=name).to_pylist() for name in strategies}
    curves = {
        name: _out_of_sample(warehouse.read(tables.EQUITY, only=name))
        for name, rows in stored.items()
        if rows
    }
    bars: dict[str, dict[str, BarSeries]] = {}
    sheets = []
    for name, curve in curves.items():
        by_window = {row["window"]: row for row in stored[name]}
        run = by_window["out_of_sample"]
        symbols = json.loads(run["symbols"])
        if run["symbols"] not in bars:
            bars[run["symbols"]] = bar_series(warehouse.read(BARS), symbols)
        sessions = curve["session"].to_numpy().astype("datetime64[D]")
        trades = _out_of_sample(warehouse.read(tables.TRADES, only=name))
        for table in (curve, trades):
            if set(table["result"].unique().to_pylist()) - {run["result"]}:
                raise BacktestError(
                    f"the tables hold rows of two runs of {name}: one was ended while it wrote. Materialize "
                    f"backtests/{name} again."
                )
        counted = trials_of(name, store, run["model_version"])
        summaries = {
            # Trials that were run after the backtest count as well.
            window: statistics.recounted(json.loads(row["statistics"]), *counted)
            for window, row in by_window.items()
        }
        notes = []
        if "simulated" in run["news_source"]:
            notes.append(
                "The news behind this strategy are simulated: calibrated to what real news show, without any alpha."
            )
        if run["model"]:
            notes.append(
                f"Probabilities of {run['model']} version {run['model_version']}, which was trained on sessions before this "
                "window alone."
            )
            if run["model_version"] > 1:
                notes.append(
                    f"It was chosen among {run['model_version']} versions by their Brier score on sessions of this window; "
                    "each of them counts as a trial."
                )
        sheets.append(
            TearSheet(
                strategy=name,
                description=(strategy_class(name).__doc__ or name).strip().splitlines()[0],
                parameters=json.loads(run["parameters"]),
                statistics=summaries["out_of_sample"],
                in_sample=summaries.get("in_sample"),
                sessions=sessions,
                equity=curve["equity"].to_numpy(),
                invested=curve["invested"].to_numpy(),
                gross=curve["gross"].to_numpy(),
                yardsticks={
                    other: _rebased(curves[other], sessions, float(curve["equity"][0].as_py()))
                    for other in YARDSTICKS
                    if other in curves and other != name
                },
                trades=trades,
                rejected=_out_of_sample(warehouse.read(tables.REJECTED_ORDERS, only=name)),
                bars=bars[run["symbols"]],
                cost_sensitivity=json.loads(run["cost_sensitivity"]),
                costs=json.loads(run["costs"]),
                account=json.loads(run["account"]),
                sweep=sweep_view(warehouse, name),
                notes=notes,
            )
        )
    return sheets


def trials_of(strategy: str, store: TrialStore, model_version: int | None) -> tuple[int, float | None]:
    """(trials, variance of their annual Sharpe ratios) that a strategy's Sharpe ratio is deflated by.

    Yardsticks are not chosen from anything. Each earlier version of a model counts as a trial more: the one that serves was
    chosen among them by its out-of-sample Brier score, on sessions that the backtest trades.
    """
    if strategy in YARDSTICKS:
        return 1, None
    trials, variance = store.counted(strategy)
    trials += max((model_version or 1) - 1, 0)
    return trials, None if math.isnan(variance) else variance


def _out_of_sample(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["window"], "out_of_sample"))


def _rebased(curve: pa.Table, sessions: np.ndarray, start: float) -> np.ndarray:
    """A yardstick's equity on other sessions, worth `start` on the first of them."""
    values = on_axis(
        sessions, curve["session"].to_numpy().astype("datetime64[D]"), curve["equity"].to_numpy(), start
    )
    return values / values[0] * start
