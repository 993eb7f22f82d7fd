"""Breakout of the look-back's range, long and short. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from quant_assets.market.series import BarSeries
from quant_assets.strategies.indicators import highest, lowest
from quant_assets.strategies.strategy import (
    ENTER_LONG,
    ENTER_SHORT,
    EXIT_LONG,
    EXIT_SHORT,
    Strategy,
    StrategyError,
    require_period,
)


@dataclass(frozen=True, kw_only=True)
class DailyBreakout(Strategy):
    """Long above the highest high of the look-back, short below its lowest low.

    The look-back of t is the `period` bars before t; t itself is not in it. The close of t decides. A position ends
    when the close falls back inside the range: a long one below the previous period's high, a short one above the previous
    period's low. That level moves with the look-back: on the bar after a breakout it contains the breakout's own high, so
    under `look_back` a position lives on only while the closes make new highs (lows).

    Attributes:
        period: look-back, bars.
        go_long, go_short: which sides are traded.
        exit_level: what "the previous period" of the exit is: the look-back (`look_back`), or the one bar before
            (`previous_bar`).
    """

    name: ClassVar[str] = "daily_breakout"

    period: int = 20
    go_long: bool = True
    go_short: bool = True
    exit_level: Literal["look_back", "previous_bar"] = "look_back"

    def __post_init__(self) -> None:
        require_period("period", self.period)
        if not (self.go_long or self.go_short):
            raise StrategyError("go_long and go_short are both off: nothing would ever be traded")
        if self.exit_level not in ("look_back", "previous_bar"):
            raise StrategyError(f"exit_level = {self.exit_level!r} is not one of look_back, previous_bar")
        super().__post_init__()

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        """See `Strategy.decide`."""
        decisions = np.zeros(len(bars), dtype=np.int8)
        if len(bars) <= self.period:
            return decisions
        close = bars.adj_close[1:]
        top, bottom = highest(bars.adj_high, self.period)[:-1], lowest(bars.adj_low, self.period)[:-1]
        if self.exit_level == "look_back":
            exit_long, exit_short = close < top, close > bottom
        else:
            ready = np.isfinite(top)
            exit_long, exit_short = ready & (close < bars.adj_high[:-1]), ready & (close > bars.adj_low[:-1])
        decisions[1:] += (EXIT_LONG * exit_long + EXIT_SHORT * exit_short).astype(np.int8)
        if self.go_long:
            decisions[1:] += (ENTER_LONG * (close > top)).astype(np.int8)
        if self.go_short:
            decisions[1:] += (ENTER_SHORT * (close < bottom)).astype(np.int8)
        return decisions
