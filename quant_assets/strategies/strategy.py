"""What a strategy is: parameters in, decisions per bar out. Pure.

Belongs here: the vocabulary that strategies and the engine share (decisions, sizing, exits). Does not belong here: a
single strategy (one file each) and what happens to an order (`quant_assets/backtests/engine.py`).

A strategy knows bars up to the close of t when it decides for t. It says what it *wants*, as flags, without knowing
whether it holds a position; the engine turns that into orders for the open of t+1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal, Self

import numpy as np

from quant_assets.market.series import BarSeries

# Decisions of one bar, added together in one small integer.
ENTER_LONG, ENTER_SHORT, EXIT_LONG, EXIT_SHORT = 1, 2, 4, 8

Sizing = Literal["shares", "fraction", "volatility"]


class StrategyError(ValueError):
    """A parameter is unknown or makes no sense. The message names it, its value and what is allowed."""


@dataclass(frozen=True)
class Rules:
    """How large a position is and what ends it besides a decision.

    Attributes:
        sizing: `shares`: a fixed number; `fraction`: of the equity at the fill; `volatility`: the fraction that brings
            the position's annual volatility to `size`.
        size: shares, fraction of equity (1 is all of it), or annual volatility (0.15 is 15 %).
        profit_target_pct, stop_loss_pct: bracket around the entry price, percent; None for no such exit.
        max_bars: leave at the open after this many closes in the position; None for no limit.
        volatility_sessions: look-back of the `volatility` sizing.
    """

    sizing: Sizing = "fraction"
    size: float = 1.0
    profit_target_pct: float | None = None
    stop_loss_pct: float | None = None
    max_bars: int | None = None
    volatility_sessions: int = 20

    def __post_init__(self) -> None:
        if self.sizing not in ("shares", "fraction", "volatility"):
            raise StrategyError(f"sizing = {self.sizing!r} is not one of shares, fraction, volatility")
        for name in ("size", "profit_target_pct", "stop_loss_pct", "max_bars"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise StrategyError(f"{name} = {value} must be a number above 0")
        if self.stop_loss_pct is not None and self.stop_loss_pct >= 100:
            raise StrategyError(f"stop_loss_pct = {self.stop_loss_pct} must be below 100")
        if self.max_bars is not None:
            require_period("max_bars", self.max_bars)
        require_period("volatility_sessions", self.volatility_sessions, at_least=2)


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Base of all strategies: a frozen dataclass whose fields are its parameters.

    A new strategy is one file with a subclass that sets `name` and writes `decide`, and one line in
    `quant_assets/strategies/__init__.py`. Its search space is `<name>.yaml` beside it.

    Attributes:
        size: see `Rules.size`.
        sizing: see `Rules.sizing`.
    """

    name: ClassVar[str]
    # The registered model whose probabilities `decide` reads; None for strategies that read prices alone.
    model: ClassVar[str | None] = None

    size: float = 1.0
    sizing: Sizing = "fraction"

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        """Decisions per bar.

        Args:
            bars: one symbol.
            probability: shape (bars, 2), long and short, NaN where the model says nothing; only for strategies with
                a `model`.

        Returns:
            int8 of shape (bars,): a sum of `ENTER_LONG`, `ENTER_SHORT`, `EXIT_LONG`, `EXIT_SHORT`. Element t depends
            on bars up to t alone.
        """
        raise NotImplementedError

    @property
    def rules(self) -> Rules:
        """Size and exits."""
        return Rules(sizing=self.sizing, size=self.size)

    def __post_init__(self) -> None:
        _ = self.rules  # validates size and exits

    @classmethod
    def create(cls, **parameters: Any) -> Self:
        """Build from keyword arguments, with an error that lists the known names.

        Raises:
            StrategyError: unknown parameter or impossible value.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(parameters) - fields):
            raise StrategyError(
                f"{cls.name} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(fields))}"
            )
        return cls(**parameters)

    @classmethod
    def decide_grid(
        cls,
        bars: BarSeries,
        parameters: Sequence[Mapping[str, Any]],
        probability: np.ndarray | None = None,
    ) -> np.ndarray:
        """Decisions of many parameter sets, shape (sets, bars). Overridden where one pass over the bars serves all."""
        decisions = np.empty((len(parameters), len(bars)), dtype=np.int8)
        for row, given in enumerate(parameters):
            decisions[row] = cls.create(**given).decide(bars, probability)
        return decisions

    @property
    def parameters(self) -> dict[str, Any]:
        """Field -> value."""
        return dataclasses.asdict(self)


def require_period(name: str, value: float, at_least: int = 1) -> None:
    """Raise a `StrategyError` unless `value` is a whole number of at least `at_least` bars."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise StrategyError(f"{name} = {value} must be a whole number of at least {at_least} bars")
