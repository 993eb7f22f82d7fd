"""Trade the probabilities of a registered classifier inside a bracket. Pure.

Live signals (`quant_assets/serving`) choose the side with the same function, so that what is backtested is what would
be traded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quant_assets.market.series import BarSeries
from quant_assets.strategies.strategy import ENTER_LONG, ENTER_SHORT, Rules, Strategy, StrategyError


@dataclass(frozen=True, kw_only=True)
class MlpLongShort(Strategy):
    """Long or short when the model's probability exceeds its threshold; the bracket ends the trade.

    Attributes:
        long_threshold, short_threshold: probability above which the side is taken; None is the break-even
            probability stop / (target + stop), at which winning the target and losing the stop cancel out.
        profit_target_pct, stop_loss_pct: bracket around the entry, percent.
        max_bars: leave at the open after this many closes; None holds until the bracket is touched. The labels look
            five sessions ahead.
    """

    name: ClassVar[str] = "mlp_long_short"
    model: ClassVar[str | None] = "mlp_technical"

    long_threshold: float | None = None
    short_threshold: float | None = None
    profit_target_pct: float = 2.0
    stop_loss_pct: float = 1.5
    max_bars: int | None = None

    def __post_init__(self) -> None:
        for name in ("long_threshold", "short_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise StrategyError(f"{name} = {value} is not a probability")
        super().__post_init__()

    @property
    def rules(self) -> Rules:
        """Size, bracket, time limit."""
        return Rules(
            sizing=self.sizing,
            size=self.size,
            profit_target_pct=self.profit_target_pct,
            stop_loss_pct=self.stop_loss_pct,
            max_bars=self.max_bars,
        )

    @property
    def break_even(self) -> float:
        """Probability of the target at which a bracket trade earns nothing, ignoring costs and time exits."""
        return self.stop_loss_pct / (self.profit_target_pct + self.stop_loss_pct)

    @property
    def thresholds(self) -> tuple[float, float]:
        """(long, short), with the break-even where none is set."""
        return (
            self.break_even if self.long_threshold is None else self.long_threshold,
            self.break_even if self.short_threshold is None else self.short_threshold,
        )

    def decide(self, bars: BarSeries, probability: np.ndarray | None = None) -> np.ndarray:
        """See `Strategy.decide`. Bars without a probability decide nothing."""
        if probability is None or probability.shape != (len(bars), 2):
            got = "none" if probability is None else f"shape {probability.shape}"
            raise StrategyError(
                f"{self.name} on {bars.symbol} needs probabilities of shape ({len(bars)}, 2) from {self.model}; "
                f"got {got}"
            )
        side = choose_side(probability, self.thresholds)
        return (ENTER_LONG * (side > 0) + ENTER_SHORT * (side < 0)).astype(np.int8)


@dataclass(frozen=True, kw_only=True)
class MlpSentimentLongShort(MlpLongShort):
    """The same rule on the probabilities of the model that also reads news sentiment."""

    name: ClassVar[str] = "mlp_sentiment_long_short"
    model: ClassVar[str | None] = "mlp_sentiment"


@dataclass(frozen=True, kw_only=True)
class MlpEnhancedLongShort(MlpLongShort):
    """The same rule on the probabilities of the model that also reads the news of competitors and industry."""

    name: ClassVar[str] = "mlp_enhanced_long_short"
    model: ClassVar[str | None] = "mlp_enhanced"


def choose_side(probability: np.ndarray, thresholds: tuple[float, float]) -> np.ndarray:
    """The side per row: the one whose probability exceeds its threshold by more; 0 when neither does.

    Args:
        probability: shape (rows, 2): long, short; NaN exceeds nothing.
        thresholds: long, short.

    Returns:
        int8 of shape (rows,): 1 long, -1 short, 0 flat.
    """
    excess = np.nan_to_num(probability - np.asarray(thresholds), nan=-1.0)
    side = np.where(excess[:, 0] >= excess[:, 1], 1, -1)
    return np.where(excess.max(axis=1) > 0, side, 0).astype(np.int8)
