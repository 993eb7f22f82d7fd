"""Layer `strategies`: rules that turn prices and probabilities into decisions.

Belongs here: one file per strategy, its search space beside it, and the registry below. Does not belong here: filling
orders, money, statistics (`quant_assets/backtests`).

`quant_assets/strategies/<name>.py` holds the class, `<name>.yaml` the space that a parameter sweep walks.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from quant_assets.strategies.strategy import Strategy, StrategyError

# One line registers a strategy: name -> module:class. Imported when it is asked for.
STRATEGIES: dict[str, str] = {
    "sma_crossover": "quant_assets.strategies.sma_crossover:SmaCrossover",
    "daily_breakout": "quant_assets.strategies.daily_breakout:DailyBreakout",
    "mlp_long_short": "quant_assets.strategies.mlp_long_short:MlpLongShort",
    "mlp_sentiment_long_short": "quant_assets.strategies.mlp_long_short:MlpSentimentLongShort",
    "mlp_enhanced_long_short": "quant_assets.strategies.mlp_long_short:MlpEnhancedLongShort",
    "buy_and_hold": "quant_assets.strategies.yardsticks:BuyAndHold",
    "flat": "quant_assets.strategies.yardsticks:Flat",
}
# On every chart, and never ranked.
YARDSTICKS = ("buy_and_hold", "flat")


def strategy_class(name: str) -> type[Strategy]:
    """The class of a registered strategy.

    Raises:
        StrategyError: no such strategy.
    """
    if name not in STRATEGIES:
        raise StrategyError(f"no strategy {name!r}; registered are {', '.join(STRATEGIES)}")
    module, _, attribute = STRATEGIES[name].partition(":")
    return getattr(import_module(module), attribute)


def make_strategy(name: str, **parameters: Any) -> Strategy:
    """A registered strategy with these parameters, the others at their defaults.

    Raises:
        StrategyError: no such strategy, unknown parameter, impossible value.
    """
    return strategy_class(name).create(**parameters)


def space_path(name: str) -> Path:
    """The file with the search space of a strategy, beside its code.

    Raises:
        StrategyError: no such strategy.
    """
    module = import_module(strategy_class(name).__module__)
    assert module.__file__ is not None
    return Path(module.__file__).with_name(f"{name}.yaml")
