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


def _interval(name: str, what: str) -> tuple[Column, ...]:
    return (
        Column(f"{name}low", "double", f"95 % interval of {what}, from resampled blocks of sessions"),
        Column(f"{name}high", "double", f"95 % interval of {what}, from resampled blocks of sessions"),
    )


SENTIMENT_ABLATION = TableSpec(
    name="backtests.sentiment_ablation",
    description="What each kind of alternative data adds to the classifier and to its strategy, out of sample: one row per rung, measure "
    "and side. Rungs share rows, windows, seeds and hyperparameters; differences are paired. Holds the newest ablation, replaced whole.",
    columns=(
        Column("rung", "string", "technical, own sentiment, competitors or industry", required=True),
        Column("position", "long", "of the rung, from 0", required=True),
        Column("inputs", "long", "of the rung's network", required=True),
        Column(
            "measure",
            "string",
            "auc; brier_gain: the base rate's Brier score less the model's; sharpe: annual, net of costs; total_return: fraction, net "
            "of costs; trades: of the strategy, their number",
            required=True,
        ),
        Column("side", "string", "long or short; both for what the strategy earned", required=True),
        Column("session", "date", "last session that the labels and bars reach", required=True),
        AVAILABLE_AT,
        Column("first_session", "date", "first out-of-sample session", required=True),
        Column("rows", "long", "labelled out-of-sample rows", required=True),
        Column("seeds", "long", "trainings of each rung", required=True),
        Column("value", "double", "mean over the seeds"),
        Column("seed_sd", "double", "standard deviation over the seeds; null for one"),
        Column("ensemble", "double", "of the mean of the seeds' probabilities"),
        *_interval("", "the value (strategy: of the ensemble)"),
        *_interval("joint_", "all rungs, sides, AUC and Brier gain together, for other seeds as well"),
        Column(
            "step", "double", "value (strategy: ensemble) less that of the rung before; null on the first"
        ),
        *_interval("step_", "the step"),
        *_interval("step_joint_", "all steps of AUC and Brier gain together, for other seeds as well"),
        Column("gain", "double", "value (strategy: ensemble) less that of technical; null on the first rung"),
        *_interval("gain_", "the gain"),
        *_interval(
            "gain_joint_",
            "all gains of AUC and Brier gain together, for other seeds as well where there are several",
        ),
        Column("sessions", "long", "labelled out-of-sample sessions"),
        Column(
            "hindsight_share",
            "double",
            "share of the rows whose list of competitors is younger than the session, fraction",
        ),
        Column(
            "news_source", "string", "source of the news; 'simulated' where it is not real", required=True
        ),
    ),
    key=("rung", "measure", "side"),
)

# -- agents: each table holds the newest evaluation and is replaced whole, the differences by environment ------------------

_AGENT_ROW = (
    Column("strategy", "string", "sac, or the name of a baseline", required=True),
    Column("seed", "long", "of the training; null for baselines and for the mean over seeds"),
    Column("chosen", "boolean", "whether it is the seed that serves", required=True),
    Column("seeds", "long", "trainings behind the row: 0 for a baseline, 1 for one seed", required=True),
)
_EVALUATED = (
    Column(
        "window",
        "string",
        "unseen: simulated days that no agent saw; real: sessions of minute bars after all that training rests on; real_seen: "
        "sessions that the simulation was calibrated on (or agents trained on); out_of_sample: sessions that neither training nor "
        "the choice among seeds nor the gate has seen",
        required=True,
    ),
    Column("symbol", "string", "one symbol, or all", required=True),
)
_RESTS_ON = (
    Column("session", "date", "last session that the evaluated data rest on", required=True),
    AVAILABLE_AT,
)
_MODEL = (
    Column("model", "string", "registered model of the agent", required=True),
    Column("model_version", "long", "its version", required=True),
)


def _estimate(name: str, what: str) -> tuple[Column, ...]:
    return (
        Column(f"{name}_mean", "double", what, required=True),
        Column(
            f"{name}_sd",
            "double",
            "standard deviation over paths (mean over seeds: of theirs); null for one path",
        ),
        Column(f"{name}_low", "double", "95 % interval of the mean over paths; null for one path"),
        Column(f"{name}_high", "double", "95 % interval of the mean over paths; null for one path"),
    )


EXECUTION = TableSpec(
    name="backtests.execution",
    description="What selling the same orders cost by each strategy; basis points of the order's value on arrival.",
    columns=(
        *_EVALUATED,
        *_AGENT_ROW,
        *_RESTS_ON,
        *_MODEL,
        Column("paths", "long", "days, one order each", required=True),
        *_estimate("implementation_shortfall_bps", "arrival value less proceeds, plus the penalty"),
        *_estimate(
            "cost_without_market_move_bps",
            "the same without slippage; equal in the mean where the mid is a martingale",
        ),
        Column("slippage_bps", "double", "the market's own move, mean", required=True),
        Column("spread_bps", "double", "half the quoted spread, mean", required=True),
        Column("temporary_impact_bps", "double", "mean", required=True),
        Column("permanent_impact_bps", "double", "mean", required=True),
        Column("leftover_bps", "double", "penalty on what was left at the end, mean", required=True),
        Column(
            "risk_bps",
            "double",
            "risk aversion times variance held; not part of the shortfall",
            required=True,
        ),
        Column("seed_sd", "double", "sd of the mean shortfall over seeds, bps; in the mean over seeds alone"),
    ),
    key=("window", "symbol", "strategy", "seed", "seeds"),
)

MARKET_MAKING = TableSpec(
    name="backtests.market_making",
    description="What quoting a session earned by each strategy on the same paths and market orders; mids start at 100 dollars.",
    columns=(
        *_EVALUATED,
        *_AGENT_ROW,
        *_RESTS_ON,
        *_MODEL,
        Column("paths", "long", "days", required=True),
        *_estimate("objective_dollars", "PnL less the penalties on inventory, dollars a day"),
        *_estimate(
            "objective_without_market_move_dollars",
            "the same without what the mid's moves did to the inventory; equal in the mean where the mid is a martingale",
        ),
        *_estimate("pnl_dollars", "wealth at the end less the cost of liquidation, dollars a day"),
        Column("final_inventory_mean_shares", "double", "before liquidation", required=True),
        Column("final_inventory_sd_shares", "double", "before liquidation, over paths", required=True),
        Column("inventory_sd_shares", "double", "over all instants and paths", required=True),
        Column("mean_spread_dollars", "double", "both depths together, mean over steps", required=True),
        Column(
            "seed_sd", "double", "sd of the mean objective over seeds, dollars; in the mean over seeds alone"
        ),
    ),
    key=("window", "symbol", "strategy", "seed", "seeds"),
)

PORTFOLIO = TableSpec(
    name="backtests.portfolio",
    description="What each strategy earned, net of costs, on sessions that neither training nor the choice among seeds nor the gate has "
    "seen; intervals from a moving-block bootstrap over sessions.",
    columns=(
        *_EVALUATED,
        *_AGENT_ROW,
        *_RESTS_ON,
        *_MODEL,
        Column("first_session", "date", "session of the first decision", required=True),
        Column("decisions", "long", "number", required=True),
        Column("annual_log_growth_pct", "double", "per cent a year", required=True),
        Column("annual_log_growth_pct_low", "double", "95 % interval"),
        Column("annual_log_growth_pct_high", "double", "95 % interval"),
        Column("annual_volatility_pct", "double", "per cent a year", required=True),
        Column("sharpe_ratio", "double", "annual, without a rate of interest; null for a constant"),
        Column("sharpe_ratio_low", "double", "95 % interval"),
        Column("sharpe_ratio_high", "double", "95 % interval"),
        Column("max_drawdown_pct", "double", "per cent below the peak", required=True),
        Column("mean_turnover_pct", "double", "of wealth, per session", required=True),
        Column("total_cost_pct", "double", "of wealth, summed over the window", required=True),
        Column("seed_sd", "double", "sd of the Sharpe ratio over seeds; in the mean over seeds alone"),
    ),
    key=("window", "symbol", "strategy", "seed", "seeds"),
)

PORTFOLIO_EQUITY = TableSpec(
    name="backtests.portfolio_equity",
    description="Wealth of each strategy at the open of the session, 1 before the first trade, net of costs.",
    columns=(
        Column("strategy", "string", "sac, or the name of a baseline", required=True),
        Column("seed", "long", "of the training; null for baselines"),
        SESSION,
        AVAILABLE_AT,
        Column("equity", "double", "in units of the start", required=True),
        Column(
            "turnover", "double", "of the trade whose return ends here, fraction of wealth", required=True
        ),
        Column("cost", "double", "of that trade, fraction of wealth", required=True),
    ),
    key=("strategy", "seed", "session"),
)

AGENT_DIFFERENCES = TableSpec(
    name="backtests.agent_differences",
    description="An agent less a baseline on the same paths, orders and sessions. Of costs, below 0 is better; of all else, above.",
    columns=(
        Column("environment", "string", "execution, market_making or portfolio", required=True),
        *_EVALUATED,
        *_AGENT_ROW,
        Column("baseline", "string", "what the agent is compared with", required=True),
        Column("measure", "string", "column of the environment's table, with its unit", required=True),
        *_RESTS_ON,
        Column("count", "long", "pairs: paths, or sessions of a portfolio", required=True),
        Column("difference", "double", "agent less baseline, mean", required=True),
        Column(
            "low", "double", "95 % interval of the mean over pairs, trained policies fixed; null for one path"
        ),
        Column(
            "high",
            "double",
            "95 % interval of the mean over pairs, trained policies fixed; null for one path",
        ),
        Column(
            "better_share",
            "double",
            "of pairs (portfolio: of resamples) in which the agent is better",
            required=True,
        ),
        Column("seed_sd", "double", "sd of the difference over seeds; in the mean over seeds alone"),
    ),
    key=("environment", "window", "symbol", "strategy", "seed", "seeds", "baseline", "measure"),
    slice_column="environment",
    partition_by="value",
)
