"""The problems that the project's agents are trained on, and in what terms backtests and endpoints ask them.

Belongs here: one choice of parameters per environment, with its reasons. Does not belong here: how long or with which
network an agent is trained (`quant_assets/models/agents.py`).
"""

from __future__ import annotations

from quant_assets.environments.execution import ExecutionParameters
from quant_assets.environments.market_making import MarketMakingParameters
from quant_assets.environments.portfolio import PortfolioParameters

# A decision every quarter of an hour, around the pace of the expected volume: the action 1/2, which an untrained actor takes
# on average, is VWAP. Rewards leave the market's own move out, which no action foresees and which would drown the costs.
EXECUTION = ExecutionParameters(minutes_per_decision=15, max_pace=2.0, slippage="none")

# A session in steps of two minutes, mids of 100 dollars, the order flow of Avellaneda and Stoikov (2008) per session. The
# penalty is the variance of wealth per step times half of a risk aversion of 0.1 per dollar, as theirs: 0.2 at a sigma of 2.
# Rewards leave the mid's moves out, as for execution.
MARKET_MAKING_MINUTES_PER_STEP = 2
MARKET_MAKING_RISK_AVERSION = 0.1  # per dollar
MARKET_MAKING_TYPICAL_VARIANCE = 4.0  # dollars squared per session: 2 % a day
MARKET_MAKING = MarketMakingParameters(
    max_depth=2.0,
    running_penalty=0.5 * MARKET_MAKING_RISK_AVERSION * MARKET_MAKING_TYPICAL_VARIANCE,
    penalty_scales_with_variance=True,
    typical_variance=MARKET_MAKING_TYPICAL_VARIANCE,
    liquidation_half_spread=0.5,
    reward_mid_moves=False,
)

# Two weeks of looking back, a quarter of a year per episode; costs of 5 bps and a twentieth of a day's volatility.
PORTFOLIO = PortfolioParameters(look_back=10, episode_steps=63, cost_bps=5.0, cost_volatility_factor=0.05)
