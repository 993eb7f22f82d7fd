"""Layer `backtests`: engine, statistics, sweeps, tear sheets.

Belongs here: what would have happened. Does not belong here: what a strategy decides (`quant_assets/strategies`) and what
is traded tonight (`quant_assets/serving`).
"""
