"""The words of a tear sheet: what each statistic is called, how it is written and what it means.

Belongs here: labels, number formats and definitions, as data. Does not belong here: computing a statistic (`statistics.py`)
and the tables that show it (`tear_sheet.py`, `comparison.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

# Short formats: of a number, as text. A fraction is shown in percent.
FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": lambda v: f"{100 * v:,.1f}%",
    "percent2": lambda v: f"{100 * v:,.2f}%",
    "ratio": lambda v: f"{v:,.2f}",
    "probability": lambda v: f"{v:.3f}",
    "dollars": lambda v: f"{'-' if v < 0 else ''}${abs(v):,.0f}",
    "whole": lambda v: f"{v:,.0f}",
    "bps": lambda v: f"{v:,.1f} bps",
    "plain": lambda v: f"{v:g}" if isinstance(v, float) else str(v),
}

# group -> (key in `statistics.summary`, label, format, definition)
STATISTIC_GROUPS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "Return": (
        ("returns.final_equity", "Final equity", "dollars", "Money at the last close."),
        ("returns.total_pnl", "Total PnL", "dollars", "Final less initial equity."),
        ("returns.total_return", "Total return", "percent", "Final over initial equity, less 1."),
        ("returns.cagr", "CAGR", "percent", "Compound annual growth rate, by calendar days."),
        ("returns.best", "Best session", "percent2", "Largest return of one session."),
        ("returns.worst", "Worst session", "percent2", "Smallest return of one session."),
        ("returns.positive_share", "Positive sessions", "percent", "Share of sessions with a return above 0."),
    ),
    "Risk": (
        ("returns.volatility", "Volatility", "percent", "Annual standard deviation of the returns."),
        ("drawdown.maximum", "Maximum drawdown", "percent", "Deepest fall from a running peak of equity."),
        ("drawdown.longest_sessions", "Longest drawdown, sessions", "whole", "From a peak until equity is back there."),
        ("returns.value_at_risk", "VaR 95%, session", "percent2", "Return that 5% of the sessions fall below."),
        ("returns.conditional_value_at_risk", "CVaR 95%, session", "percent2", "Mean of the worst 5% of the sessions."),
        ("returns.skewness", "Skewness", "ratio", "Third standardised moment; negative: rare large losses."),
        ("returns.kurtosis", "Kurtosis", "ratio", "Fourth standardised moment (Pearson): 3 for a normal distribution."),
        ("returns.tail_ratio", "Tail ratio", "ratio", "95% quantile of the returns over the size of the 5% quantile."),
    ),
    "Return for risk": (
        ("returns.sharpe", "Sharpe ratio", "ratio", "Mean excess return over its standard deviation, annual."),
        ("returns.sharpe_low", "Sharpe, lower 95%", "ratio", "Lower end of the 95% interval, for non-normal returns (Mertens 2002)."),
        ("returns.sharpe_high", "Sharpe, upper 95%", "ratio", "Upper end of the 95% interval."),
        ("returns.sortino", "Sortino ratio", "ratio", "As Sharpe, with the deviation of losses alone."),
        ("returns.calmar", "Calmar ratio", "ratio", "Annual return over the size of the maximum drawdown."),
        ("returns.omega", "Omega ratio", "ratio", "Sum of positive over sum of negative returns."),
    ),
    "Against buy_and_hold": (
        ("benchmark.total_return", "Its total return", "percent", "Total return of buy_and_hold on the same sessions, with costs."),
        ("benchmark.sharpe", "Its Sharpe ratio", "ratio", "Sharpe ratio of buy_and_hold on the same sessions."),
        ("benchmark.max_drawdown", "Its maximum drawdown", "percent", "Deepest fall of buy_and_hold."),
        ("benchmark.alpha", "Alpha", "percent", "Annual return that beta does not explain (Jensen 1968)."),
        ("benchmark.beta", "Beta", "ratio", "Slope of the returns on those of buy_and_hold."),
        ("benchmark.correlation", "Correlation", "ratio", "Of the session returns with those of buy_and_hold."),
        ("benchmark.tracking_error", "Tracking error", "percent", "Annual deviation of the difference of returns."),
        ("benchmark.information_ratio", "Information ratio", "ratio", "Mean difference of returns over the tracking error, annual."),
    ),
    "Trades": (
        ("trades.count", "Trades", "whole", "Positions from opening to end; one still open counts, at the last close."),
        ("trades.long_count", "Long", "whole", "Long trades."),
        ("trades.short_count", "Short", "whole", "Short trades."),
        ("trades.win_rate", "Win rate", "percent", "Share of trades with a PnL above 0, net of costs."),
        ("trades.profit_factor", "Profit factor", "ratio", "Sum of gains over the size of the sum of losses."),
        ("trades.mean_pnl", "Mean PnL", "dollars", "Expectancy, dollars a trade, net."),
        ("trades.mean_return", "Mean return", "percent2", "Expectancy, as a fraction of the entry's value."),
        ("trades.best_return", "Best", "percent", "Largest return of a trade."),
        ("trades.worst_return", "Worst", "percent", "Smallest return of a trade."),
        ("trades.mean_winner_return", "Mean winner", "percent2", "Mean return of trades with a PnL above 0."),
        ("trades.mean_loser_return", "Mean loser", "percent2", "Mean return of trades with a PnL below 0."),
        ("trades.mean_bars_held", "Mean bars held", "ratio", "Bars from entry to exit."),
        ("trades.mean_mae", "Mean MAE", "percent2", "Mean of the worst price while held, against the entry price."),
        ("trades.mean_mfe", "Mean MFE", "percent2", "Mean of the best price while held, against the entry price."),
        ("trades.sqn", "SQN", "ratio", "System quality number: root of the number of trades, times mean over deviation of PnL (Tharp 1998)."),
    ),
    "Costs": (
        ("costs.total", "All costs", "dollars", "Commission, spread, impact and borrow fees."),
        ("costs.total_bps", "of traded value", "bps", "All costs over the value of all orders, basis points."),
        ("costs.commission", "Commission", "dollars", "Paid to the broker."),
        ("costs.spread", "Spread", "dollars", "From the middle to bid or ask."),
        ("costs.impact", "Impact", "dollars", "Own orders moving the price (square-root law)."),
        ("costs.borrow", "Borrow", "dollars", "Fees on borrowed shares."),
        ("costs.dividends", "Dividends", "dollars", "Received on longs less owed on shorts; part of the PnL, no cost."),
        ("costs.turnover", "Turnover, annual", "ratio", "Value of all orders over mean equity, a year; buys and sells both count."),
    ),
    "How far to believe it": (
        ("validity.observations", "Returns", "whole", "Sessions with a return."),
        ("validity.psr", "PSR", "probability", "Probability that the true Sharpe ratio is above 0 (Bailey and Lopez de Prado 2012)."),
        ("validity.trials", "Trials", "whole", "Parameter sets this one was chosen from."),
        ("validity.sr0", "Sharpe of luck", "ratio", "Sharpe ratio that the best of so many worthless trials is expected to show, annual."),
        ("validity.dsr", "DSR", "probability", "Deflated Sharpe ratio: probability that the Sharpe ratio is above that of luck."),
        ("validity.min_track_record_sessions", "Track record needed", "whole", "Sessions after which the PSR reaches 95%."),
    ),
}  # fmt: skip
DEFINITIONS = {key: definition for lines in STATISTIC_GROUPS.values() for key, _, _, definition in lines}

# What an in-sample summary cannot say if it does not know of the trials.
OF_THE_CHOICE = ("validity.trials", "validity.sr0", "validity.dsr")

# Columns of the comparison: (key in `statistics.summary`, label, format)
COMPARED = (
    ("returns.total_return", "Total return", "percent"),
    ("returns.cagr", "CAGR", "percent"),
    ("returns.volatility", "Volatility", "percent"),
    ("returns.sharpe", "Sharpe", "ratio"),
    ("returns.sortino", "Sortino", "ratio"),
    ("drawdown.maximum", "Max drawdown", "percent"),
    ("returns.calmar", "Calmar", "ratio"),
    ("benchmark.beta", "Beta", "ratio"),
    ("trades.count", "Trades", "whole"),
    ("trades.win_rate", "Win rate", "percent"),
    ("trades.profit_factor", "Profit factor", "ratio"),
    ("trades.sqn", "SQN", "ratio"),
)

# reason of a rejection -> what it says
REJECTIONS = {
    "cash": "the order was worth more than the buying power",
    "participation": "more than the allowed share of the bar's volume",
    "size": "less than one share",
    "volatility": "no volatility known yet to size it by",
    "conflict": "long and short wanted at once",
}


def statistic(summary: Mapping[str, Any] | None, key: str) -> Any:
    """A value of `statistics.summary` by `group.name`; None where there is none."""
    group, _, name = key.partition(".")
    return ((summary or {}).get(group) or {}).get(name)


def undefined(value: object) -> bool:
    """Whether there is no number to show."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))
