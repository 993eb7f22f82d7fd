"""Gymnasium environments and their closed-form optima. Pure: no assets, no Dagster, no files.

Belongs here: what an agent sees, does and is paid for (`execution.py`, `market_making.py`, `portfolio.py`), what they share
(`episodes.py`), and what theory says is best (`closed_form.py`). Does not belong here: where a market comes from (it is
handed in as arrays) and how an agent learns (`quant_assets/models/sac.py`).
"""
