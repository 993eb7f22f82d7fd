"""What every strategy is held against: holding from the start, and doing nothing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quant_assets.market.series import BarSeries
from quant_assets.strategies.strategy import ENTER_LONG, Strategy


@dataclass(frozen=True, kw_only=True)
class BuyAndHold(Strategy):
    """Buy on the first bar and never sell. Its orders pay the same costs as everybody's."""

    name: ClassVar[str] = "buy_and_hold"

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        """See `Strategy.decide`. Wanted on every bar, so a backtest that starts anywhere buys at once."""
        return np.full(len(bars), ENTER_LONG, dtype=np.int8)


@dataclass(frozen=True, kw_only=True)
class Flat(Strategy):
    """Never trade: cash, with its interest."""

    name: ClassVar[str] = "flat"

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        """See `Strategy.decide`."""
        return np.zeros(len(bars), dtype=np.int8)
