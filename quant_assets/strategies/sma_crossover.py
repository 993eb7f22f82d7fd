"""Moving-average crossover: long above, short below, always reversing. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit

from quant_assets.market.series import BarSeries
from quant_assets.strategies.indicators import simple_moving_average
from quant_assets.strategies.strategy import (
    ENTER_LONG,
    ENTER_SHORT,
    Strategy,
    StrategyError,
    require_period,
)

# Averages that differ by rounding alone are equal, or two that tie in decimals (IBM on 2005-06-27) would cross.
TIE_TOLERANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class SmaCrossover(Strategy):
    """Long when the fast average crosses above the slow one, short when it crosses below.

    A cross at t: the averages of t stand in strict order, and at the last bar on which they differed they stood the
    other way. Two averages that touch and part again on the same side have not crossed.

    Attributes:
        fast_period, slow_period: bars of the two simple moving averages of the adjusted close.
        enter_on_first_bar: take the side of the averages on the first bar that has both, without waiting for a cross.
    """

    name: ClassVar[str] = "sma_crossover"

    fast_period: int = 10
    slow_period: int = 30
    enter_on_first_bar: bool = False

    def __post_init__(self) -> None:
        require_period("fast_period", self.fast_period)
        require_period("slow_period", self.slow_period)
        if self.slow_period <= self.fast_period:
            raise StrategyError(
                f"slow_period = {self.slow_period} must be above fast_period = {self.fast_period}"
            )
        super().__post_init__()

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        """See `Strategy.decide`."""
        decisions = np.zeros(len(bars), dtype=np.int8)
        _crosses(
            simple_moving_average(bars.adj_close, self.fast_period),
            simple_moving_average(bars.adj_close, self.slow_period),
            self.slow_period - 1,
            self.enter_on_first_bar,
            decisions,
        )
        return decisions

    @classmethod
    def decide_grid(
        cls,
        bars: BarSeries,
        parameters: Sequence[Mapping[str, Any]],
        probability: np.ndarray | None = None,
    ) -> np.ndarray:
        """Each average is computed once, however many sets use it."""
        if not parameters:
            return np.empty((0, len(bars)), dtype=np.int8)
        sets = [cls.create(**given) for given in parameters]
        pairs = np.array([(s.fast_period, s.slow_period) for s in sets], dtype=np.int64).reshape(-1, 2)
        first = np.array([s.enter_on_first_bar for s in sets], dtype=np.bool_)
        return crossover_grid(average_table(bars.adj_close, pairs), pairs, first)


def average_table(close: np.ndarray, periods: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Simple moving averages of every distinct period: (periods, averages of shape (periods, bars))."""
    distinct = np.unique(periods)
    return distinct, np.stack([simple_moving_average(close, int(period)) for period in distinct])


def crossover_grid(
    table: tuple[np.ndarray, np.ndarray], periods: np.ndarray, enter_on_first_bar: np.ndarray
) -> np.ndarray:
    """Decisions of many crossovers.

    Args:
        table: `average_table` of all periods that occur.
        periods: int64 of shape (sets, 2): fast, slow.
        enter_on_first_bar: bool of shape (sets,).

    Returns:
        int8 of shape (sets, bars).
    """
    distinct, averages = table
    decisions = np.zeros((len(periods), averages.shape[1]), dtype=np.int8)
    _crosses_grid(
        averages, np.searchsorted(distinct, periods), periods[:, 1] - 1, enter_on_first_bar, decisions
    )
    return decisions


@njit(cache=True, nogil=True)
def _crosses(
    fast: np.ndarray, slow: np.ndarray, first: int, enter_on_first_bar: bool, decisions: np.ndarray
) -> None:
    side = 0
    for t in range(first, fast.size):
        gap, slack = fast[t] - slow[t], TIE_TOLERANCE * slow[t]
        now = 1 if gap > slack else (-1 if gap < -slack else side)
        if now != side:
            if side != 0 or enter_on_first_bar:
                decisions[t] = ENTER_LONG if now > 0 else ENTER_SHORT
            side = now


@njit(cache=True, nogil=True)
def _crosses_grid(
    averages: np.ndarray, rows: np.ndarray, first: np.ndarray, enter: np.ndarray, decisions: np.ndarray
) -> None:
    for s in range(rows.shape[0]):
        _crosses(averages[rows[s, 0]], averages[rows[s, 1]], first[s], enter[s], decisions[s])
