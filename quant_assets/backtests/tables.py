"""Tables of the layer `backtests`: columns with units, keys, slices. Nothing else belongs here.

Every table is sliced by strategy: materializing one strategy anew replaces its rows and no other's.
"""

from __future__ import annotations

from quant_assets.market.tables import AVAILABLE_AT, SESSION, SYMBOL
from quant_resources.iceberg import Column, TableSpec

STRATEGY = Column("strategy", "string", "strategy", required=True)
WINDOW = Column("window", "string", "in_sample or out_of_sample", required=True)
RESULT = Column(
    "result", "string", "identity of the run's inputs; equal in all tables of one run", required=True
)
_PARAMETERS = Column("parameters", "string", "parameters, JSON", required=True)

RUNS = TableSpec(
    name="backtests.runs",
    description="One backtest: a strategy on a window, with everything that was assumed and every statistic.",
    columns=(
        STRATEGY,
        WINDOW,
        RESULT,
        Column("session", "date", "last session of the window", required=True),
        AVAILABLE_AT,
        Column("first_session", "date", "first session of the window", required=True),
        _PARAMETERS,
        Column("costs", "string", "assumed costs, JSON, see engine.Costs", required=True),
        Column("account", "string", "assumed account, JSON, see engine.Account", required=True),
        Column("symbols", "string", "symbols, JSON list", required=True),
        Column("statistics", "string", "statistics.summary of the window, JSON", required=True),
        Column(
            "cost_sensitivity",
            "string",
            "results at multiples of the costs, JSON list; [] in sample",
            required=True,
        ),
        Column("bars_snapshot", "string", "Iceberg snapshot of market.bars", required=True),
        Column(
            "model", "string", "registered model; '' for strategies that read prices alone", required=True
        ),
        Column("model_version", "long", "its version; null without a model"),
        Column("news_source", "string", "source of the news behind the model; 'none' without", required=True),
    ),
    key=("strategy", "window"),
    slice_column="strategy",
    partition_by="value",
)

EQUITY = TableSpec(
    name="backtests.equity",
    description="The money of one strategy at each close, all symbols together.",
    columns=(
        STRATEGY,
        WINDOW,
        RESULT,
        SESSION,
        AVAILABLE_AT,
        Column("equity", "double", "cash and positions, dollars", required=True),
        Column(
            "invested", "double", "market value of all positions, dollars; shorts negative", required=True
        ),
        Column("gross", "double", "market value of all positions, dollars; shorts positive", required=True),
    ),
    key=("strategy", "window", "session"),
    slice_column="strategy",
    partition_by="value",
)

POSITIONS = TableSpec(
    name="backtests.positions",
    description="The account of one symbol at each close: equity = cash + shares x close.",
    columns=(
        STRATEGY,
        WINDOW,
        RESULT,
        SYMBOL,
        SESSION,
        AVAILABLE_AT,
        Column("equity", "double", "dollars", required=True),
        Column("cash", "double", "dollars", required=True),
        Column("shares", "double", "shares held, negative when short", required=True),
        Column("close", "double", "close as quoted, dollars per share", required=True),
    ),
    key=("strategy", "window", "symbol", "session"),
    slice_column="strategy",
    partition_by="value",
)

TRADES = TableSpec(
    name="backtests.trades",
    description="One position from its opening to its end.",
    columns=(
        STRATEGY,
        WINDOW,
        RESULT,
        SYMBOL,
        Column(
            "session", "date", "session of the exit (the last one of the window while open)", required=True
        ),
        AVAILABLE_AT,
        Column("side", "string", "long or short", required=True),
        Column("shares", "double", "shares at the entry", required=True),
        Column("entry_session", "date", "session of the entry, filled at its open", required=True),
        Column("exit_session", "date", "session of the exit", required=True),
        Column("entry_price", "double", "market price of the entry, dollars per share", required=True),
        Column(
            "exit_price", "double", "market price of the exit, dollars per share of the entry", required=True
        ),
        Column(
            "reason",
            "string",
            "what ended it: signal, reversal, target, stop, time, ruin, or open",
            required=True,
        ),
        Column("pnl", "double", "profit net of all costs, dollars", required=True),
        Column("trade_return", "double", "pnl over the value of the entry, fraction", required=True),
        Column("commission", "double", "dollars", required=True),
        Column("spread", "double", "dollars", required=True),
        Column("impact", "double", "dollars", required=True),
        Column("borrow", "double", "fee for borrowed shares, dollars", required=True),
        Column("dividends", "double", "dividends received (owed: negative), dollars", required=True),
        Column("bars_held", "long", "closes in the position", required=True),
        Column("mae", "double", "worst price against the entry, fraction, at most 0", required=True),
        Column("mfe", "double", "best price against the entry, fraction, at least 0", required=True),
        Column("split_factor", "double", "splits while it was held, new shares per old", required=True),
        Column("traded_value", "double", "value of its orders, dollars", required=True),
    ),
    key=("strategy", "window", "symbol", "entry_session"),
    slice_column="strategy",
    partition_by="value",
)

REJECTED_ORDERS = TableSpec(
    name="backtests.rejected_orders",
    description="Orders, or parts of orders, that were not filled.",
    columns=(
        STRATEGY,
        WINDOW,
        RESULT,
        SYMBOL,
        SESSION,
        AVAILABLE_AT,
        Column("side", "string", "long, short or both", required=True),
        Column("shares", "double", "shares that were not filled; null when no size was computed"),
        Column(
            "reason",
            "string",
            "cash, participation, size, volatility or conflict, see the engine",
            required=True,
        ),
    ),
    key=("strategy", "window", "symbol", "session", "reason"),
    slice_column="strategy",
    partition_by="value",
)

PARAMETER_SWEEP = TableSpec(
    name="backtests.parameter_sweep",
    description="Every parameter set that was ever tried, failed ones included.",
    columns=(
        Column("study", "string", "identity of the sweep: space, data, code, costs, window", required=True),
        STRATEGY,
        Column("scope", "string", "in_sample, backtest, or the fold of a walk-forward", required=True),
        Column("method", "string", "grid, random, bayesian or backtest", required=True),
        Column("number", "long", "place in the sweep, from 0", required=True),
        Column("session", "date", "last session of the window", required=True),
        AVAILABLE_AT,
        Column("first_session", "date", "first session of the window", required=True),
        _PARAMETERS,
        Column("state", "string", "complete or failed", required=True),
        Column("error", "string", "why it failed; empty when complete", required=True),
        Column("total_return", "double", "fraction"),
        Column("sharpe", "double", "annual"),
        Column("volatility", "double", "annual, fraction"),
        Column("max_drawdown", "double", "fraction, at most 0"),
        Column("final_equity", "double", "dollars"),
        Column("trades", "double", "number"),
        Column("win_rate", "double", "fraction"),
        Column("profit_factor", "double", "gross profit over gross loss"),
        Column("sqn", "double", "system quality number"),
        Column("turnover", "double", "annual, traded value over mean equity"),
        Column("costs", "double", "dollars"),
        Column("rejected", "double", "orders"),
        Column("finished_at", "timestamptz", "when it was evaluated", required=True),
    ),
    key=("study", "parameters"),
)

SWEEPS = TableSpec(
    name="backtests.sweeps",
    description="The newest sweep of each strategy: what was chosen, and how much that choice can be believed.",
    columns=(
        STRATEGY,
        Column("session", "date", "last session of the window", required=True),
        AVAILABLE_AT,
        Column("first_session", "date", "first session of the window", required=True),
        Column("study", "string", "see backtests.parameter_sweep", required=True),
        Column("method", "string", "grid, random or bayesian", required=True),
        Column("objective", "string", "statistic that was maximised", required=True),
        _PARAMETERS,
        Column("objective_value", "double", "of the chosen set, on this window"),
        Column("trials", "long", "complete trials of this sweep", required=True),
        Column("failed", "long", "failed trials of this sweep", required=True),
        Column(
            "trials_ever", "long", "trials of the strategy that count, see TrialStore.counted", required=True
        ),
        Column("sharpe_variance", "double", "variance of the trials' annual Sharpe ratios"),
        Column("overfitting_probability", "double", "CSCV, over all trials of this sweep"),
    ),
    key=("strategy",),
    slice_column="strategy",
    partition_by="value",
)

WALK_FORWARD = TableSpec(
    name="backtests.walk_forward",
    description="One step of a walk-forward: parameters chosen on the past window alone, scored on the next; {} where none "
    "could be chosen and the step stayed in cash.",
    columns=(
        STRATEGY,
        Column("fold", "long", "from 0", required=True),
        Column("session", "date", "last session of the test window", required=True),
        AVAILABLE_AT,
        Column("train_first", "date", "first session of the training window", required=True),
        Column("train_last", "date", "last session of the training window", required=True),
        Column("test_first", "date", "first session of the test window", required=True),
        _PARAMETERS,
        Column("objective", "string", "statistic that was maximised", required=True),
        Column("in_sample", "double", "objective on the training window"),
        Column("out_of_sample", "double", "the same statistic on the test window"),
        Column("total_return", "double", "on the test window, fraction", required=True),
        Column("trials", "long", "sets tried on the training window", required=True),
    ),
    key=("strategy", "fold"),
    slice_column="strategy",
    partition_by="value",
)

WALK_FORWARD_EQUITY = TableSpec(
    name="backtests.walk_forward_equity",
    description="Equity over the test windows of a walk-forward, one after another; positions do not cross from one to the "
    "next.",
    columns=(
        STRATEGY,
        SESSION,
        AVAILABLE_AT,
        Column("fold", "long", "from 0", required=True),
        Column("equity", "double", "dollars", required=True),
    ),
    key=("strategy", "session"),
    slice_column="strategy",
    partition_by="value",
)
